"""What an evaluation on this machine would run with: packages, devices, caches, and whether our patches fit."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unlearn_eval.harness.patching import PATCHES as OF_LM_EVAL
from unlearn_eval.serving.patching import PATCHES as OF_VLLM
from unlearn_eval.utils.patching import Patch
from unlearn_eval.utils.provenance import provenance, redact


def patches() -> list[Patch]:
    """Every change that we make to another package at run time."""
    return [*OF_LM_EVAL, *OF_VLLM]


def environment() -> dict[str, Any]:
    """The provenance that results record, and `executable`, `caches` and `patches`.

    torch and every package that is patched are imported.
    """
    import torch  # noqa: F401  (so that the provenance has its threads and devices)

    return {
        **provenance(),
        "executable": redact(sys.executable),
        "caches": [{"name": name, "folder": redact(str(path)), "exists": path.is_dir()} for name, path in _caches()],
        "patches": [asdict(status) for status in _statuses()],
    }


def _statuses() -> Iterable[Any]:
    with contextlib.redirect_stdout(sys.stderr):  # vLLM logs to stdout when it is imported
        return [patch.status() for patch in patches()]


def _caches() -> list[tuple[str, Path]]:
    import datasets.config
    from huggingface_hub import constants

    from unlearn_eval.models.assets import cache_dir

    requests = os.environ.get("LM_HARNESS_CACHE_PATH")
    found = [
        ("models", Path(constants.HF_HUB_CACHE)),
        ("datasets", Path(datasets.config.HF_DATASETS_CACHE)),
        ("unlearn-eval", cache_dir()),
    ]
    return [*found, ("lm-eval requests", Path(requests))] if requests else found
