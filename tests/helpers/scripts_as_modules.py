"""A script of scripts/ as a module."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def script(name):
    """A script of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module
