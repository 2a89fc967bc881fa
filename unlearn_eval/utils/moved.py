"""Modules that users' files import by names from before version 0.2: they still work, with a DeprecationWarning."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as in `lazy`
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

MOVED = {
    "anatomy": ("models.anatomy",),
    "asking": ("edits.memory.ask",),
    "backends": ("harness.backends",),
    "calibration": ("editing.memory.calibration", "models.prompts"),
    "config": ("editing.recipe", "runs.demo"),
    "corpus": ("editing.locate_then_edit.corpus",),
    "default_model": ("models.default_model",),
    "dense_edits": ("edits.dense",),
    "description": ("edits.description",),
    "discovery": ("utils.registry",),
    "edit_requests": ("editing.requests.build", "models.prompt_format"),
    "editors.alphaedit": ("editors.closed_form.alphaedit",),
    "editors.altpo": ("editors.gradient.altpo",),
    "editors.base": ("editing.editor", "editing.requests.request", "utils.progress"),
    "editors.ceu": ("editors.gradient.ceu",),
    "editors.dpo": ("editors.gradient.dpo",),
    "editors.emmet": ("editors.closed_form.emmet",),
    "editors.from_file": ("editing.from_file",),
    "editors.ft_m": ("editors.gradient.ft_m",),
    "editors.grace": ("editors.memory.grace",),
    "editors.gradient_ascent": ("editors.gradient.gradient_ascent",),
    "editors.gradient_difference": ("editors.gradient.gradient_difference",),
    "editors.idk": ("editors.gradient.idk",),
    "editors.joint": ("editing.memory.joint",),
    "editors.kl": ("editors.gradient.kl",),
    "editors.least_squares": ("editing.locate_then_edit.least_squares",),
    "editors.locate": ("editing.locate_then_edit.run",),
    "editors.memit": ("editors.closed_form.memit",),
    "editors.memoir": ("editors.memory.memoir",),
    "editors.npo": ("editors.gradient.npo",),
    "editors.objectives": ("editing.training.objectives",),
    "editors.pdu": ("editors.gradient.pdu",),
    "editors.presets": ("editing.presets",),
    "editors.replacements": ("editing.memory.replacements",),
    "editors.rmu": ("editors.gradient.rmu",),
    "editors.rome": ("editors.closed_form.rome",),
    "editors.satimp": ("editors.gradient.satimp",),
    "editors.second_moments": ("editing.locate_then_edit.second_moments",),
    "editors.simnpo": ("editors.gradient.simnpo",),
    "editors.target_values": ("editing.locate_then_edit.target_values",),
    "editors.ultraedit": ("editors.closed_form.ultraedit",),
    "editors.undial": ("editors.gradient.undial",),
    "editors.unlearning_presets": ("editing.training.presets",),
    "editors.unlikelihood": ("editors.gradient.unlikelihood",),
    "editors.wga": ("editors.gradient.wga",),
    "editors.wise": ("editors.memory.wise",),
    "embedding": ("models.embedding",),
    "errors": ("utils.errors",),
    "evaluation": ("runs.evaluate",),
    "export": ("edits.export",),
    "finetuning": ("runs.finetune",),
    "forget_sets": ("data.forget_sets", "data.items", "data.benchmarks.facts"),
    "json_files": ("utils.json_files",),
    "known_items": ("runs.known_items",),
    "meanings": ("metrics.catalogue",),
    "memory_edits": ("edits.memory.edit",),
    "merging": ("edits.memory.merging",),
    "pipeline": ("runs.demo",),
    "prompts": ("models.prompts", "models.prompt_format"),
    "provenance": ("utils.provenance", "models.weights"),
    "reference_cache": ("editing.training.reference_cache",),
    "refusal_judge": ("models.refusal_judge",),
    "refusals": ("editing.requests.targets",),
    "result_files": ("results.files",),
    "routing": ("edits.memory.routing", "models.prompt_ends"),
    "scoring": ("models.scoring", "models.arguments"),
    "self_refusals": ("editing.requests.self_refusals",),
    "settings": ("utils.settings",),
    "shapes": ("data.shapes",),
    "terminal": ("cli.terminal",),
    "tracing": ("models.tracing",),
    "trained_weights": ("editing.training.weights",),
    "training": ("editing.training.settings",),
    "training_data": ("editing.training.data",),
    "training_run": ("editing.training.run",),
    "weight_masks": ("editing.training.masks",),
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
        vars(module)["__getattr__"] = lookup(module.__name__, self._homes)


def lookup(old: str, homes: Sequence[str]) -> Callable[[str], Any]:
    """What finds a name of an old module in its new homes, for the `__getattr__` of what bears its name now."""
    places = [f"unlearn_eval.{home}" for home in homes]

    def get(name: str) -> Any:
        import importlib
        import warnings

        if not name.startswith("__"):
            for home in places:
                found = importlib.import_module(home)
                if hasattr(found, name):
                    warnings.warn(f"{old}.{name} is now {home}.{name}", DeprecationWarning, stacklevel=2)
                    return getattr(found, name)
        raise AttributeError(f"module '{old}' has no attribute '{name}'; it is now {' and '.join(places)}")

    return get


def install() -> None:
    """Start looking up old names; harmless when repeated."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())  # type: ignore[arg-type]
