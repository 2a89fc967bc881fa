"""Modules that users' files import by names from before version 0.2: they still work, with a DeprecationWarning."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as in `lazy`
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

MOVED = {
    "anatomy": ("models.anatomy",),
    "config": ("editing.recipe", "runs.settings"),
    "default_model": ("models.default_model", "models.assets"),
    "dense_edits": ("edits.dense",),
    "editors.base": ("editing.editor", "editing.requests.request", "utils.progress"),
    "editors.gradient": ("editing.training.gradient",),
    "editors.least_squares": ("editing.locate_then_edit.least_squares",),
    "editors.locate": ("editing.locate_then_edit.run",),
    "editors.objectives": ("editing.training.objectives",),
    "editors.second_moments": ("editing.locate_then_edit.second_moments",),
    "editors.target_values": ("editing.locate_then_edit.target_values",),
    "errors": ("utils.errors",),
    "evaluation": ("runs.evaluate",),
    "export": ("edits.export",),
    "forget_sets": ("data.forget_sets",),
    "memory_edits": ("edits.memory.edit",),
    "prompts": ("models.prompts",),
    "provenance": ("utils.provenance", "models.weights"),
    "result_files": ("results.runs",),
    "routing": ("edits.memory.routing", "models.prompt_ends"),
    "scoring": ("models.scoring",),
    "shapes": ("data.shapes",),
    "tracing": ("models.tracing",),
}  # old module -> where its names are now


class _Finder:
    """Asked last, so that only what is nowhere else comes here."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, old = name.partition(".")
        if package != "unlearn_eval" or old not in MOVED:
            return None
        from importlib.machinery import ModuleSpec

        return ModuleSpec(name, _Loader(MOVED[old]))  # type: ignore[arg-type]


class _Loader:
    """Makes a module of names that live elsewhere."""

    def __init__(self, homes: Sequence[str]) -> None:
        self._homes = homes

    def create_module(self, spec: ModuleSpec) -> None:
        """An ordinary module."""

    def exec_module(self, module: ModuleType) -> None:
        """Let the module's names be looked up in their new homes."""
        old, homes = module.__name__, [f"unlearn_eval.{home}" for home in self._homes]

        def get(name: str) -> Any:
            import importlib
            import warnings

            if not name.startswith("__"):
                for home in homes:
                    found = importlib.import_module(home)
                    if hasattr(found, name):
                        warnings.warn(f"{old}.{name} is now {home}.{name}", DeprecationWarning, stacklevel=2)
                        return getattr(found, name)
            raise AttributeError(f"module '{old}' has no attribute '{name}'; it is now {' and '.join(homes)}")

        vars(module)["__getattr__"] = get


def install() -> None:
    """Start looking up old names; harmless when repeated."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())  # type: ignore[arg-type]
