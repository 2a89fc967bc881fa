r"""UnKE: one whole block is trained until it gives the target values (Deng et al. 2025, arXiv 2405.15349).

    θ ← argmin  mean_j ‖f_θ(x_j)_p − v*_j‖² + keep_weight · mean_t ‖f_θ(x_t) − f_0(x_t)‖²      (section 3)

f is the block, attention and MLP; v* the value at its output that makes the target likely, optimized as MEMIT's are; p
the look-up token of the plain prompt and of each context, whose value moves by the same δ; x_t texts that it leaves as
they are. With `window` a long target has a value for each of its windows (AnyEdit, 2502.05628), as the methods in
closed form have them. Only the block is run: what it reads cannot change.

Differs from the code that AnyEdit's authors have of it (jianghoucheng/AnyEdit@ac8e652) in that contexts take part, that
the look-up token is the request's and not always the prompt's last, that the texts are the model's own unless others
are named (theirs: twenty of Alpaca), and that all requests of a step are trained at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from unlearn_eval.editing.editor import EditJob, Editor, check_state
from unlearn_eval.editing.locate_then_edit import corpus
from unlearn_eval.editing.locate_then_edit import target_values as values_of_targets
from unlearn_eval.editing.locate_then_edit.run import Editing, target_notes
from unlearn_eval.editing.locate_then_edit.target_values import TargetValueConfig, target_values
from unlearn_eval.editing.locate_then_edit.windows import columns
from unlearn_eval.edits.base import DENSE, EditInfo, applied
from unlearn_eval.edits.dense import DenseEdit, change_norms
from unlearn_eval.models.anatomy import anatomy
from unlearn_eval.models.scoring import pad
from unlearn_eval.models.tracing import first, trace
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import Positive, Size

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn_eval.models.memory import Phase

DEPTH = (7 / 32, 7 / 32)  # layer 7 of Llama-2-7B's and Llama-3-8B's 32


@dataclass(frozen=True)
class Config:
    """UnKE's settings.

    Attributes:
        layers: the block; by default that of the model's preset, or by depth.
        target: how target values are optimized.
        steps, learning_rate: of AdamW, on the block.
        text: what it should leave as it is: `self` (the model's own text), a file, or `hub:NAME:CONFIG`.
        text_tokens: how much of that.
        keep_weight: of the second term, beside 1 for the first.
        seed: of the text.
        window: how many tokens of a target have a value of their own; a longer one has several. 0: one for all.
    """

    layers: tuple[int, ...] = ()
    target: TargetValueConfig = field(default_factory=TargetValueConfig)
    steps: Size = 50
    learning_rate: Positive = 2e-4
    text: str = corpus.SELF
    text_tokens: Size = 1280  # twenty texts, as the authors take
    keep_weight: float = 1.0
    seed: int = 0
    window: int = 0


@dataclass(frozen=True)
class _Batch:
    """Some rows as the block reads them, and what it should give.

    Attributes:
        arguments, options: of the block's call, in float32.
        places: rows and columns of the outputs that count.
        goals: (P, d) what these should be.
    """

    arguments: tuple[Any, ...]
    options: dict[str, Any]
    places: tuple[Tensor, Tensor]
    goals: Tensor


def run(job: EditJob) -> DenseEdit:
    """The UnKE edit of all requests at once; the model is as before afterwards.

    Raises:
        UserError: more than one layer, a negative weight, or a loss that is not finite.
    """
    config: Config = job.config
    if config.keep_weight < 0:
        raise UserError(f"keep_weight is {config.keep_weight}", "give a number from 0 up")
    editing = Editing.start(EDITOR.name, job, DEPTH)
    if len(editing.layers) != 1:
        raise UserError(f"UnKE trains one layer, not {list(editing.layers)}", "give one, e.g. --set layers=5")
    check_state(job.previous, EDITOR.name)
    if not job.requests:
        return job.previous or DenseEdit({}, EditInfo(EDITOR.name, editing.resolved))
    model, (layer,) = job.model, editing.layers
    block, path = editing.parts.block(model, layer), f"{editing.parts.blocks}.{layer}"
    texts = [
        (tuple(row), start)
        for own in corpus.token_sequences(
            config.text, model, job.tokenizer, config.text_tokens, seed=config.seed, progress=job.progress
        )
        for row, start in zip(own.rows, own.starts, strict=True)
    ]
    with applied(job.previous, model) if job.previous is not None else nullcontext():
        found = target_values(
            model, editing.parts, layer, job.requests, config.target, job.progress, window=config.window
        )
        goals = _edited(model, path, job, found.values - found.clean)
        kept = list(_read(model, path, [row for row, _ in texts], [range(start, len(row)) for row, start in texts]))
        before = {name: own.detach() for name, own in block.named_parameters()}
        new, losses = _trained(block, before, goals, kept, job)
        tensors = {f"{path}.{name}": new[name].to(own).cpu() for name, own in before.items()}
        changes = {f"{path}.{name}": change_norms(new[name].to(own), own) for name, own in before.items()}
    notes = target_notes(job.requests, found) | {"changes": changes, "block_loss": losses}
    edit = DenseEdit(tensors, EditInfo(EDITOR.name, editing.resolved, notes=notes))
    return edit if job.previous is None else edit.after(job.previous)


def _edited(model: PreTrainedModel, path: str, job: EditJob, delta: Tensor) -> list[_Batch]:
    """All prompts of all requests, with what the block gives now moved by δ (M, d) of their members."""
    members = columns(job.requests, job.config.window)
    rows, shifts = [], []
    for part, shift in zip(members, delta, strict=True):
        for ids, lookup in part.rows:
            rows.append(tuple(ids[: lookup + 1]))
            shifts.append(shift)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    rows = [rows[i] for i in order]
    shift_of, moved = torch.stack([shifts[i] for i in order]), []
    for own in _read(model, path, rows, [range(len(row) - 1, len(row)) for row in rows]):
        n = len(own.goals)
        moved.append(replace(own, goals=own.goals + shift_of[:n].to(own.goals)))
        shift_of = shift_of[n:]
    return moved


@torch.no_grad()
def _read(
    model: PreTrainedModel, path: str, rows: Sequence[tuple[int, ...]], places: Sequence[range], size: int = 32
) -> Iterator[_Batch]:
    """What the block at `path` reads in passes of the model, which end there, and gives at some places of each row."""
    block = model.get_submodule(path)
    weights = {name: own.float() for name, own in block.named_parameters()}
    both = list(zip(rows, places, strict=True))
    for some in (both[i : i + size] for i in range(0, len(both), size)):
        seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        tokens, mask = pad([row for row, _ in some], "right", model.device)
        handle = block.register_forward_pre_hook(
            lambda module, arguments, options, seen=seen: seen.append((arguments, options)), with_kwargs=True
        )
        try:
            with trace(model, stop_after=path):
                model(input_ids=tokens, attention_mask=mask, use_cache=False)
        finally:
            handle.remove()
        arguments, options = tree_map(_in_float32, seen[0])
        row_of = torch.tensor([i for i, (_, own) in enumerate(some) for _ in own], device=model.device)
        column_of = torch.tensor([column for _, own in some for column in own], device=model.device)
        given = first(functional_call(block, weights, arguments, options))
        yield _Batch(arguments, options, (row_of, column_of), given[row_of, column_of])


def _in_float32(own: Any) -> Any:
    if not isinstance(own, Tensor):
        return own
    return own.detach().float() if own.is_floating_point() else own.detach()


def _trained(
    block: nn.Module, before: dict[str, Tensor], goals: Sequence[_Batch], kept: Sequence[_Batch], job: EditJob
) -> tuple[dict[str, Tensor], list[float]]:
    """The block's parameters in float32 after training, and the loss before each step and at the end."""
    config: Config = job.config
    weights = {name: own.float().clone().requires_grad_() for name, own in before.items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=config.learning_rate)
    losses = []
    for step in range(config.steps + 1):
        optimizer.zero_grad()
        total = 0.0
        for batches, weight in ((goals, 1.0), (kept, config.keep_weight)):
            n = sum(own.goals.numel() for own in batches)
            for own in batches:
                given = first(functional_call(block, weights, own.arguments, own.options))[own.places]
                loss = weight / n * (given - own.goals).square().sum()
                if step < config.steps:
                    loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
        losses.append(total)
        if not math.isfinite(total):
            raise UserError("the loss of the block is not finite", "give a smaller learning_rate")
        if step < config.steps:
            optimizer.step()
        job.progress("block", step, config.steps)
    return {name: own.detach() for name, own in weights.items()}, losses


def memory(job: EditJob, device: str) -> list[Phase]:
    """What an edit has in memory, on a model without weights: its target values, and the block in training."""
    from unlearn_eval.models.memory import EDIT, Phase, edited, n_bytes, taken

    model, config, parts = job.model, job.config, anatomy(job.model)
    layer = parts.resolve_layers(config.layers, DEPTH)[0]
    block, path = parts.block(model, layer), f"{parts.blocks}.{layer}"
    texts = [(1,) * corpus.LENGTH] * -(-config.text_tokens // corpus.LENGTH)
    short = replace(job, config=replace(config, steps=1))

    def train() -> None:
        n = len(columns(job.requests, config.window))
        goals = _edited(model, path, job, torch.zeros(n, parts.d_model))
        kept = list(_read(model, path, texts, [range(len(row)) for row in texts]))
        _trained(block, dict(block.named_parameters()), goals, kept, short)

    edit = n_bytes(block.parameters())
    targets = values_of_targets.memory(model, parts, layer, job.requests, config.target, device)
    return [targets, Phase("block", taken(model, train), edited(edit, edit, device), {EDIT: edit})]


EDITOR = Editor("unke", Config, run, makes=DENSE, memory=memory, paper="2405.15349, 2502.05628", one_layer=True)
