"""Attacks that change weights by a rule: those of every linear map of the blocks, or the edit itself.

Afterwards the model is as before, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unlearn_eval.attacks.base import FULL, UNLEARNED, Case, Observation
from unlearn_eval.editing.training.weights import linear_maps
from unlearn_eval.edits.base import applied
from unlearn_eval.models.anatomy import is_transposed
from unlearn_eval.models.weights import mark_restored, state_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Change = Callable[[Tensor], Tensor]  # a weight (d_out, d_in), at least float32, to another; it may not change its input


@contextmanager
def changed_maps(model: PreTrainedModel, change: Change) -> Iterator[None]:
    """The model with every linear map of its blocks changed, within a `with` block.

    Originals wait in the CPU's memory, so that a GPU that holds the model holds this too. What is computed in float32
    is rounded once to the weight's own type. Embeddings, norms, biases and head stay.
    """
    originals: list[tuple[Tensor, Tensor, int | None]] = []
    try:
        with torch.no_grad():
            for name in linear_maps(model):
                module = model.get_submodule(name)
                weight: Tensor = module.weight
                originals.append((weight, weight.detach().to("cpu", copy=True), state_of(weight)))
                wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
                new = change(wide.T if is_transposed(module) else wide)
                weight.copy_(new.T if is_transposed(module) else new)
        yield
    finally:
        with torch.no_grad():
            for weight, original, state in originals:
                weight.copy_(original)
                mark_restored(weight, state)


def weaker_edits(case: Case, at: Sequence[float], weaker: Callable[[Any, float], Any]) -> Iterator[Observation]:
    """The unlearned and the full model as they are, and the full one with less and less of the edit.

    Args:
        case: what is attacked.
        at: the levels.
        weaker: (full model, level) -> what is left of the edit.
    """
    for name in (UNLEARNED, FULL):
        with case.model(name) as loaded:
            yield case.observed(loaded, case.rows(loaded, case.items), name, None)
    with case.model(FULL) as loaded:
        rows = case.rows(loaded, case.items)
        for level in at:
            with applied(weaker(loaded.model, level), loaded.model):
                observation = case.observed(loaded, rows, UNLEARNED, level)
            yield observation


def levels(case: Case, changes: list[tuple[float, Change]]) -> Iterator[Observation]:
    """Every model as it is, and with each change of its weights."""
    for name in case.names:
        with case.model(name) as loaded:
            rows = case.rows(loaded, case.items)
            yield case.observed(loaded, rows, name, None)
            for i, (at, change) in enumerate(changes):
                case.progress(f"{name} model, levels", i, len(changes))
                with changed_maps(loaded.model, change):
                    observation = case.observed(loaded, rows, name, at)
                yield observation
