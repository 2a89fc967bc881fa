r"""GRACE: a codebook in place of one projection's output (Hartvigsen et al. 2023, arXiv 2211.11031).

A key is what the projection reads at a prompt's last token. A query within ε of its nearest key gets that key's value
as the projection's output, so that the model says the target; any other query is left alone.

    d = min_i ‖q − k_i‖₂ over the keys so far, i the nearest                                   (algorithm 1)
    no key, or d > ε_init + ε_i        add      k = q, ε = ε_init
    another target                     split    ε_i = d/2 − 1e-5, k = q with ε = d/2
    the same target and d > ε_i        expand   ε_i = d
    value                              Adam on −ln p(target | prompt) / |target|

All values are optimized at once, each with its own early stop, and only the blocks above the layer run in each step.
When a memory decides, and how long that holds, is in `edits/memory/routing.py`. Requests that are merged by key
share one value, with a key for each.

Differs from the paper and the authors' code (Thartvigsen/GRACE@f674183f), unless `variant=authors` is set, in that

*   the value stands at the last prompt token and at every token after it (`positions=onward`). With the last token
    alone (EasyEdit's `replace_last`) a refusal of ten tokens takes three to four times as many steps;
*   a value starts from the projection's own output, the learning rate is in units of its size, and a value is done when
    its target is the most likely answer and its loss below `stop_loss`;
*   a split makes no radius larger than it was.

Two codes set GRACE differently, and both can be had. Values of both start from U[0, 1), with learning rate 1, no early
stop, and splits as above.

*   `variant=authors`: Thartvigsen/GRACE as configured there, 100 steps with the value at the prompt's tokens
    (`replace_prompt`). Their slice ends before the prompt's last token, where the key is read; here the value stands at
    that one too. They edit the projection into an MLP (`c_fc` of GPT-2 XL's block 35), we the one out of it.
*   `variant=easyedit`: zjunlp/EasyEdit@14cea824, the value at the last token alone (`replace_last`). Its steps depend
    on the model (50 for Llama-2-7B, 200 for GPT-2 XL); `steps` says how many. Until version 0.2 this was called
    `original`, which still works with a warning.

All compare targets as token ids (the codes compare the means of padded label ids), hold a decision through decoding
(the codes ask again at every token), and have no state but the edit.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unlearn_eval.editing.adam_rows import AdamRows
from unlearn_eval.editing.editor import EditJob, Editor
from unlearn_eval.editing.memory.replacements import (
    Replacements,
    Row,
    check_prompts,
    earlier_store,
    rows_of,
    the_layer,
    with_past,
    with_variant,
)
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.edits.base import MEMORY, EditInfo
from unlearn_eval.edits.memory.codebook import Codebook, nearest_key
from unlearn_eval.edits.memory.edit import MemoryEdit, check_memory
from unlearn_eval.edits.memory.store import POSITIONS
from unlearn_eval.models.anatomy import Anatomy, anatomy
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.progress import Progress, no_progress
from unlearn_eval.utils.settings import Positive, Size

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn_eval.models.memory import Phase

DEPTH = (0.8, 0.8)  # layer 24 of SmolLM2-135M's 30; Llama-2-7B's 27 of 32 in EasyEdit
_CODES = {"initial": "cold", "relative_rate": False, "learning_rate": 1.0, "stop_loss": 0.0}
VARIANTS = {"authors": _CODES | {"positions": "prompt", "steps": 100}, "easyedit": _CODES | {"positions": "last"}}


@dataclass(frozen=True)
class Config:
    """GRACE's settings.

    Attributes:
        layers: the one layer whose projection gets the codebook; by default that of the model's preset, or by depth.
        variant: `default`, `authors` (as in the authors' code; also overrides steps) or `easyedit` (as in EasyEdit's);
            both override positions, initial, relative_rate, learning_rate and stop_loss.
        epsilon: the radius of a new key.
        positions: where the value stands: `onward` (the prompt's last token and all after it), `last`, `prompt` (the
            prompt alone) or `all`.
        steps: forward passes at most; there is one update less.
        learning_rate: of Adam.
        relative_rate: whether the learning rate is in units of the output's root mean square.
        initial: what a value starts from: `warm` (the projection's output) or `cold` (uniform between 0 and 1).
        stop_loss: a value is done when its targets are the most likely answers and its loss is below this; 0 runs all
            steps.
        tokens_per_batch: how many tokens are optimized at once.
        calibrate: choose one radius for all keys from the forget set's paraphrases and from `others`.
        others: questions that no memory may answer, for `calibrate`: a .jsonl with `question` in each line; by default
            the shipped facts that are not forgotten.
        seed: of cold values.
    """

    layers: tuple[int, ...] = ()
    variant: str = "default"
    epsilon: Positive = 1.0
    positions: str = "onward"
    steps: Size = 50
    learning_rate: Positive = 1.0
    relative_rate: bool = True
    initial: str = "warm"
    stop_loss: float = 0.05
    tokens_per_batch: Size = 512
    calibrate: bool = False
    others: str = ""
    seed: int = 0


@dataclass
class _Book:
    """The codebook while it grows: one entry in each list for each key."""

    keys: list[Tensor]
    radii: list[float]
    value_of: list[int]
    owners: list[list[str]]
    labels: list[tuple[int, ...]]  # of each value
    rows: dict[int, list[Row]]  # of each value: what it is to be optimized for


def run(job: EditJob) -> MemoryEdit:
    """The codebook after which the model says each request's target; the model is as before afterwards.

    Raises:
        UserError: settings that do not fit, an earlier edit of another layer, requests whose keys are the same and
            whose targets differ, or more keys than fit the memory.
    """
    config: Config = resolved(job.config)
    model, requests, parts = job.model, job.requests, anatomy(job.model)
    layer = the_layer(parts, config.layers, DEPTH, "GRACE has its codebook")
    name = parts.projection_name(layer)
    earlier = earlier_store(job.previous, name, Codebook)
    check_prompts(requests)
    n = sum(len(request.parts) for request in requests) + (earlier.n if earlier else 0)
    wide = torch.promote_types(model.dtype, torch.float32)
    check_memory(2 * n * (parts.d_mlp + parts.d_model) * wide.itemsize, model.device, f"a codebook of {n} keys")

    book, values, outputs = _grow(model, parts, layer, requests, config, earlier)
    work = [i for i in range(len(values)) if i in book.rows]
    found, notes = optimise(
        model, parts, layer, [book.rows[i] for i in work], values[work], outputs, config, job.progress
    )
    values[work] = found
    names = [
        "+".join(dict.fromkeys(o for k, os in enumerate(book.owners) if book.value_of[k] == i for o in os))
        for i in work
    ]
    kept = torch.stack(book.keys).to(wide).cpu() if book.keys else torch.zeros(0, parts.d_mlp, dtype=wide)
    store = Codebook(
        kept,
        values.to(wide).cpu(),
        torch.tensor(book.radii, dtype=wide),
        torch.tensor(book.value_of, dtype=torch.long),
        tuple(book.labels),
        tuple(tuple(own) for own in book.owners),
        config.positions,
    )
    told = with_past(job.previous, {key: dict(zip(names, values, strict=True)) for key, values in notes.items()})
    about = asdict(config) | {"layers": [layer]}
    return MemoryEdit(name, store, EditInfo(EDITOR.name, about, notes=told | {"keys": store.n, "values": len(values)}))


def resolved(config: Config) -> Config:
    """The settings that the variant makes of these.

    Raises:
        UserError: a name or number that GRACE does not have.
    """
    if config.variant == "original":
        warnings.warn(
            "GRACE's variant 'original' is EasyEdit's, and is now called 'easyedit'", FutureWarning, stacklevel=2
        )
        config = replace(config, variant="easyedit")
    config = with_variant(config, VARIANTS, "GRACE")
    if config.positions not in POSITIONS:
        raise UserError(f"positions cannot be '{config.positions}'", f"give one of: {', '.join(POSITIONS)}")
    if config.initial not in ("warm", "cold"):
        raise UserError(f"initial cannot be '{config.initial}'", "give warm or cold")
    if config.epsilon <= 0 or config.steps < 1 or config.learning_rate <= 0:
        raise UserError(
            f"epsilon {config.epsilon}, steps {config.steps}, learning_rate {config.learning_rate} do not make sense",
            "give numbers above 0",
        )
    return config


@torch.no_grad()
def _grow(
    model: PreTrainedModel,
    parts: Anatomy,
    layer: int,
    requests: Sequence[EditRequest],
    config: Config,
    earlier: Codebook | None,
) -> tuple[_Book, Tensor, Tensor]:
    """The codebook with the requests' keys, its values before any optimization, and what the projection gives now.

    Returns:
        The book; values (M, d_out), of which those with rows are to be optimized; and for those the clean output of
        each one's first prompt (m, d_out), in order.
    """
    rows = [row for request in requests for row in rows_of(request, contexts=False)]
    keys, clean = _ends(model, parts, layer, [prompt for prompt, _ in rows])
    book = _Book([], [], [], [], [], {})
    values: list[Tensor] = []
    if earlier is not None:
        book.keys = list(earlier.keys.to(keys))
        book.radii, book.value_of = earlier.radii.tolist(), earlier.value_of.tolist()
        book.owners, book.labels = [list(own) for own in earlier.owners], list(earlier.labels)
        values = list(earlier.values.to(clean))
    generator = torch.Generator().manual_seed(config.seed)
    outputs: dict[int, Tensor] = {}
    at = 0
    for request in requests:
        own: int | None = None  # the value that this request's new keys share
        for part in request.parts:
            entry = _place(book, keys[at], part.id, request.target_ids, config)
            if entry < 0:
                if own is None:
                    own = len(values)
                    cold = torch.rand(clean.shape[1], generator=generator).to(clean)
                    values.append(clean[at].clone() if config.initial == "warm" else cold)
                    book.labels.append(request.target_ids)
                book.value_of.append(own)
                entry = len(book.value_of) - 1
            value = book.value_of[entry]
            book.rows.setdefault(value, []).append(rows[at])
            outputs.setdefault(value, clean[at])
            at += 1
    stacked = torch.stack(values) if values else clean.new_zeros(0, parts.d_model)
    first = [outputs[i] for i in sorted(outputs)]
    return book, stacked, torch.stack(first) if first else clean.new_zeros(0, parts.d_model)


def _place(book: _Book, key: Tensor, owner: str, label: tuple[int, ...], config: Config) -> int:
    """Make room for a key: the entry that it falls into, or -1 if it was added (its value is then the caller's)."""
    radius = config.epsilon
    if book.keys:
        nearest, distance = nearest_key(key[None], torch.stack(book.keys))
        i, d = int(nearest[0]), float(distance[0])
        if d <= config.epsilon + book.radii[i]:
            if book.labels[book.value_of[i]] == label:
                book.radii[i] = max(book.radii[i], d)
                book.owners[i].append(owner)
                return i
            # Two passes of the same prompt differ by rounding; keys nearer than that cannot be told apart.
            if d / 2 <= 1e-5 + 1e-5 * float(key.norm()):
                raise UserError(
                    f"the requests {book.owners[i][0]!r} and {owner!r} conflict: their keys are the same "
                    f"(distance {d:.1e}), and their targets differ",
                    "give both the same target, or leave one out (--ids)",
                )
            if config.variant != "default":
                book.radii[i], radius = d / 2 - 1e-5, d / 2
            else:
                book.radii[i], radius = min(book.radii[i], d / 2 - 1e-5), min(config.epsilon, d / 2)
    book.keys.append(key)
    book.radii.append(radius)
    book.owners.append([owner])
    return -1


@torch.no_grad()
def _ends(
    model: PreTrainedModel, parts: Anatomy, layer: int, prompts: Sequence[tuple[int, ...]]
) -> tuple[Tensor, Tensor]:
    """What the projection reads and gives at each prompt's last token: (R, d_mlp), (R, d_model)."""
    from unlearn_eval.editing.locate_then_edit.run import read

    if not prompts:
        empty = torch.zeros(0, dtype=model.dtype, device=model.device)
        return empty.reshape(0, parts.d_mlp), empty.reshape(0, parts.d_model)
    name = parts.projection_name(layer)
    return read(model, name, name, [(ids, len(ids) - 1) for ids in prompts])


def optimise(
    model: PreTrainedModel,
    parts: Anatomy,
    layer: int,
    groups: Sequence[Sequence[Row]],
    values: Tensor,
    clean: Tensor,
    config: Config,
    progress: Progress = no_progress,
) -> tuple[Tensor, dict[str, list[Any]]]:
    """Values (M, d_out) with which the projection makes the model say the targets of each value's rows.

    Args:
        model, parts, layer: where.
        groups: the rows (prompt, target) of each value.
        values: (M, d_out) what each starts from.
        clean: (M, d_out) what the projection gives by itself, by whose size rates are scaled.
        config: the settings.
        progress: told of the steps.

    Returns:
        The values, and for each `target_nll`, `said` (whether its targets are the most likely answers) and `steps`.
    """
    wide = torch.promote_types(model.dtype, torch.float32)
    found = values.to(wide).clone()
    rates = torch.full((len(values),), config.learning_rate, dtype=wide, device=found.device)
    if config.relative_rate:
        rates = rates * clean.to(wide).square().mean(-1).sqrt()
    adam = AdamRows(found, rates)
    nlls, said, steps = [0.0] * len(values), [False] * len(values), [0] * len(values)
    done = 0
    for batch in _batches(groups, config.tokens_per_batch):
        held, running = list(batch), set(batch)  # values in the problem, and those of them that still move
        problem = _problem(model, parts, layer, groups, batch, config)
        for step in range(config.steps):
            own = found[held].detach().requires_grad_()
            nll, right = problem.losses(own)
            for i, loss, hit in zip(held, nll.tolist(), right.tolist(), strict=True):
                if i in running:
                    nlls[i], said[i], steps[i] = loss, hit, step + 1
                    running -= {i} if hit and loss < config.stop_loss else set()
            progress("values", done * config.steps + (step + 1) * len(batch), len(groups) * config.steps)
            if step == config.steps - 1 or not running:
                break
            rows = [j for j, i in enumerate(held) if i in running]
            (gradient,) = torch.autograd.grad(nll[rows].sum(), own)
            adam.step(gradient[rows], torch.tensor([held[j] for j in rows], device=found.device))
            if 2 * len(rows) <= len(held):  # enough are done to be worth a smaller batch
                held, problem = [held[j] for j in rows], problem.select(rows)
        done += len(batch)
    bad = [i for i, nll in enumerate(nlls) if nll != nll or nll == float("inf")]
    if bad:
        raise UserError(
            f"{len(bad)} of {len(nlls)} values are not finite", "load the model in float32 or bfloat16 (--dtype)"
        )
    progress("values", 1, 1)
    return found.to(values.dtype), {"target_nll": nlls, "said": said, "steps": steps}


def _batches(groups: Sequence[Sequence[Row]], budget: int) -> list[list[int]]:
    found: list[list[int]] = []
    used = budget + 1
    for i, rows in enumerate(groups):
        cost = sum(len(target) for _, target in rows)
        if used + cost > budget:
            found.append([])
            used = 0
        found[-1].append(i)
        used += cost
    return found


class _Problem:
    """The rows of some values."""

    def __init__(self, rows: Replacements, owners: list[int], columns: Tensor) -> None:
        self.rows, self.owners, self.columns = rows, owners, columns
        self.index = torch.tensor(owners, device=columns.device)
        counts = torch.bincount(self.index)
        self.shares = 1 / counts.double()

    def losses(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(m,) the mean loss over each value's rows, and whether all its targets are the most likely answers."""
        given = values[self.index].to(self.rows.outputs.dtype)[:, None]
        nll, missed = self.rows.losses(torch.where(self.columns[..., None], given, self.rows.outputs))
        mean = nll.new_zeros(len(values)).index_add(0, self.index, nll) * self.shares.to(nll)
        wrong = nll.new_zeros(len(values)).index_add(0, self.index, (missed > 0).to(nll))
        return mean, wrong == 0

    def select(self, keep: list[int]) -> _Problem:
        """That of some values."""
        rows = [r for r, owner in enumerate(self.owners) if owner in set(keep)]
        new = {old: i for i, old in enumerate(keep)}
        left = self.rows.select(rows)
        return _Problem(left, [new[self.owners[r]] for r in rows], self.columns[rows])


def _problem(
    model: PreTrainedModel,
    parts: Anatomy,
    layer: int,
    groups: Sequence[Sequence[Row]],
    batch: list[int],
    config: Config,
) -> _Problem:
    where = POSITIONS[config.positions]
    rows = Replacements(model, parts, layer, [row for i in batch for row in groups[i]], whole=where.before)
    owners = [j for j, i in enumerate(batch) for _ in groups[i]]
    return _Problem(rows, owners, rows.columns(where.before, where.after))


def memory(job: EditJob, device: str) -> list[Phase]:
    """What one step over the first values has in memory, on a model without weights."""
    from unlearn_eval.models.memory import Phase, counting

    config, model, parts = resolved(job.config), job.model, anatomy(job.model)
    layer = the_layer(parts, config.layers, DEPTH, "GRACE has its codebook")
    groups = [rows_of(request, contexts=False) for request in job.requests]
    batch = _batches(groups, config.tokens_per_batch)[0]
    with counting(model) as counted:
        problem = _problem(model, parts, layer, groups, batch, config)
        values = problem.rows.outputs.new_zeros(len(batch), parts.d_model)
        for _ in range(2):  # in the second step the first one's results are still there
            own = values.clone().requires_grad_()
            nll, right = problem.losses(own)
            torch.autograd.grad(nll.sum(), own)
    return [Phase("values", counted.peak)]


EDITOR = Editor(
    "grace",
    Config,
    run,
    makes=MEMORY,
    memory=memory,
    paper="2211.11031",
    one_layer=True,
    calibrates=True,
)
