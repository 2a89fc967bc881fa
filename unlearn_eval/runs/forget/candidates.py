"""Which methods are tried for a request: those that suit it, the model and the memory, with the settings of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from unlearn_eval.data.items import ForgetSet
from unlearn_eval.editing.editor import MOMENTS, Editor, get_editor
from unlearn_eval.models.out_of_memory import free_bytes
from unlearn_eval.runs.edit import model_check
from unlearn_eval.runs.forget.measure import Bench
from unlearn_eval.runs.forget.policy import Candidate, Policy, shipped_candidates, suited
from unlearn_eval.runs.forget.surroundings import KEYS_PER_DIMENSION, share_of_text
from unlearn_eval.runs.memory import Sized, plan_edit
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import configure
from unlearn_eval.utils.terminal import gigabytes


def chosen(
    editors: Sequence[str], policy: Policy, items: ForgetSet, bench: Bench, earlier: str | None
) -> tuple[list[Candidate], list[str]]:
    """What is tried: what the policy names, as far as it suits the request, the model, the memory and the user."""
    listed = list(policy.candidates) or shipped_candidates()
    if editors:
        by_name = {own.editor: own for own in reversed([*listed, *shipped_candidates()])}
        listed = [by_name.get(name, Candidate(editor=name)) for name in editors]
    most = max(len(item.answer.split()) for item in items)
    found, reasons = (listed, []) if editors else suited(listed, len(items), most)
    kept = []
    for own in found:
        why = _why_not(own, policy, replace(bench, forget=items), earlier, forced=bool(editors))
        if why:
            reasons.append(f"{get_editor(own.editor).title} is not tried: {why}")
        else:
            kept.append(own)
    return kept, reasons


def _why_not(own: Candidate, policy: Policy, bench: Bench, earlier: str | None, forced: bool) -> str | None:
    """Why a method cannot be tried, or None."""
    method = get_editor(own.editor)
    options = options_of(own, None, bench)
    try:
        model_check(method, options)(bench.loaded.model)
    except UserError as error:
        return error.message
    if earlier not in (None, own.editor):
        return f"the earlier edit is {earlier}'s, and only the same method goes on from it"
    config = configure(method.Config, options)
    kind = method.kind(config)
    if kind not in (None, *policy.kinds) and not forced:
        return f"it makes a {kind} edit, which the policy does not let pass"
    free = free_bytes(bench.loaded.model.device)
    if free is None:
        return None
    try:
        needed = _beside(method, bench, options)
    except UserError as error:
        return error.message
    if needed > free:
        return f"it needs about {gigabytes(needed)}, and {gigabytes(free)} are free beside the model"
    return None


def _beside(method: Editor, bench: Bench, options: Mapping[str, str]) -> int:
    """The most that making an edit has in memory beside the weights, in bytes, by its plan."""
    loaded = bench.loaded
    model = Sized(loaded.name, loaded.model.config, str(loaded.model.dtype).removeprefix("torch."), loaded.path)
    retain = bench.around.trained if method.trained else None
    plan = plan_edit(model, method, bench.forget, options, bench.recipe, retain, loaded.model.device.type)
    return plan.largest.n_bytes


def options_of(own: Candidate, value: str | None, bench: Bench, folder: Path | None = None) -> dict[str, str]:
    """The settings of a method, with the value of the one that makes it stronger, and the run's text and folder."""
    method = get_editor(own.editor)
    options = dict(own.settings)
    if own.strength is not None and value is not None:
        options[own.strength.setting] = value
    if MOMENTS in method.uses and "text" in method.settings and "text" not in options and _is_enough(bench):
        options |= {"text": str(bench.around.conversations), "keys_per_dimension": str(KEYS_PER_DIMENSION)}
    if "folder" in method.settings and folder is not None:
        options.setdefault("folder", str(folder / "training"))
    return options


def _is_enough(bench: Bench) -> bool:
    """Whether the answers to shipped facts are text enough for second moments; else the model writes more."""
    return share_of_text(bench.around.conversations.read_text(encoding="utf-8"), bench.loaded) >= 1
