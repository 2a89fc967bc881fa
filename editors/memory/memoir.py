r"""MEMOIR: a residual memory of one projection, each edit in columns of its own (Wang et al. 2025, arXiv 2506.07899).

Beside the projection W_0 stands a memory W_m of the same shape, zero at first. An edit with the prompt x_e may use k of
its columns, those of a mask M that depends on the prompt alone:

    output   W_0 a_t + W_m (M ⊙ a_t)
    mask     M_{π(j)} = 1 where |ā(x) − μ|_j is one of the k largest                            (TopHash)
    loss     −ln p(y_e | x_e; W_m) / |y_e|

a_t is what the projection reads at token t, ā(x) the prompt's features made of them, μ the mean features of other
prompts, and π a fixed random permutation, which spreads edits with like features over all columns. No gradient reaches
a column outside the mask. At run time the edit whose mask overlaps the prompt's most answers with *its own* mask, if
they share at least `threshold` of their columns; otherwise W_m is silent.

Differs from the paper and the authors' code (qym7/MEMOIR@d231b6c0), unless `variant=original` is set, in that

*   a prompt's features are those of its last token (`pool=last`), not the mean over all, for the reason given in
    `wise.py`: a chat template gives all prompts the same dozens of tokens;
*   the threshold lies half way between 1 and the largest overlap with any of 100 other prompts; in the paper's code it
    is .4 on zsRE and .9 on SelfCheckGPT. `calibrate=true` places it by paraphrases;
*   all edits are optimized together, by Adam at a rate in units of W_0's root mean square, each until its target is
    said; in the paper one after another by 30 clipped gradient steps at rate 1, so that later ones may undo earlier;
*   the memory's output stands at the last prompt token and after it (`positions=onward`); in the paper at every token.

Both hold a decision through decoding (`edits/memory/routing.py`), and neither has the code's weight decay, which
shrinks the columns of all earlier edits in every step. Contexts share the mask of their plain prompt, as in the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unlearn_eval.editing.editor import OTHERS, EditJob, Editor
from unlearn_eval.editing.memory.joint import Joint, schedule_of
from unlearn_eval.editing.memory.replacements import (
    Replacements,
    check_names,
    check_prompts,
    earlier_store,
    the_layer,
    with_past,
    with_variant,
)
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.edits.base import MEMORY, EditInfo
from unlearn_eval.edits.memory.edit import MemoryEdit, check_memory, read_inputs
from unlearn_eval.edits.memory.residual_memory import POOLS, ResidualMemory, overlap, pooled
from unlearn_eval.edits.memory.store import POSITIONS
from unlearn_eval.models.anatomy import Anatomy, anatomy
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import Positive, Size

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn_eval.models.memory import Phase

DEPTH = (27 / 32, 27 / 32)  # layer 27 of Llama-3-8B in the paper
ORIGINAL = {
    "positions": "all",
    "pool": "mean",
    "relative": False,
    "learning_rate": 1.0,
    "clip": 1.0,
    "one_by_one": True,
    "steps": 30,
    "contexts": 10,
    "stop_loss": 0.02,
    "threshold": 0.4,
}


@dataclass(frozen=True)
class Config:
    """MEMOIR's settings.

    Attributes:
        layers: the one layer whose projection gets the memory; by default that of the model's preset, or by depth.
        variant: `default`, or `original` (the paper's: overrides positions, pool, relative, learning_rate, clip,
            one_by_one, steps, contexts, stop_loss and threshold).
        active: k as a share of the projection's inputs; the paper's is 4,096 of Llama-3-8B's 14,336.
        positions: where the memory's output stands: `onward` (the prompt's last token and all after it), `last`,
            `prompt` or `all`.
        pool: of what a prompt's features are made: the `mean` over its tokens, or the `last` one.
        threshold: which share of an edit's columns a prompt must have; 0 places it half way between 1 and the largest
            overlap with another prompt.
        n_others: how many other prompts the mean features are taken over; as many more place the threshold.
        steps: rounds over the edits at most; `one_by_one`: steps for each edit.
        learning_rate: of Adam, in units of W_0's root mean square if `relative`; `one_by_one`: of gradient descent.
        relative: whether it is.
        clip: the largest norm of a gradient; 0 leaves it as it is.
        one_by_one: whether each edit is optimized alone, after the ones before it.
        batch: requests per step.
        contexts: how many of a request's contexts are in each step.
        stop_loss: an edit is done when its target is the most likely answer and its loss is below this.
        calibrate: choose the threshold from the forget set's paraphrases and other questions.
        others: questions that no memory may answer: a .jsonl with `question` in each line; by default the shipped facts
            that are not forgotten.
        seed: of the permutation and of batches.
    """

    layers: tuple[int, ...] = ()
    variant: str = "default"
    active: float = 4096 / 14336
    positions: str = "onward"
    pool: str = "last"
    threshold: float = 0.0
    n_others: int = 100
    steps: Size = 70
    learning_rate: Positive = 0.1
    relative: bool = True
    clip: float = 0.0
    one_by_one: bool = False
    batch: Size = 10
    contexts: int = 1
    stop_loss: float = 0.1
    calibrate: bool = False
    others: str = ""
    seed: int = 0


def run(job: EditJob) -> MemoryEdit:
    """The residual memory with which the model says each request's target; the model is as before afterwards.

    Raises:
        UserError: settings that do not fit, an earlier edit of another layer or size of mask, two requests with one
            prompt or one mask, no other prompts, or a memory that does not fit the device.
    """
    config: Config = resolved(job.config)
    model, requests, parts = job.model, job.requests, anatomy(job.model)
    layer = the_layer(parts, config.layers, DEPTH, "MEMOIR has its memory")
    name = parts.projection_name(layer)
    earlier = earlier_store(job.previous, name, ResidualMemory)
    check_prompts(requests)
    if not job.others and earlier is None:
        raise UserError(
            "MEMOIR needs other prompts, by which it tells its own apart", "give a .jsonl with --set others=FILE"
        )
    wide = torch.promote_types(model.dtype, torch.float32)
    asked = [part for request in requests for part in request.parts]
    n_masks = len(asked) + (earlier.n if earlier else 0)
    n_bytes = (5 * parts.d_mlp * parts.d_model + n_masks * parts.d_mlp) * wide.itemsize
    check_memory(n_bytes, model.device, "MEMOIR's residual memory")

    start = earlier or _empty(model, parts, name, config, [tuple(ids) for ids in job.others[: config.n_others]])
    top_hash = start.top_hash if start.n else replace(start.top_hash, k=max(1, round(config.active * parts.d_mlp)))
    _check_size(start, config, parts)
    masks = top_hash(_features(model, parts, name, [part.prompt_ids for part in asked], config.pool))
    labels = [request.target_ids for request in requests for _ in request.parts]
    owners = [part.id for part in asked]
    _check_masks(start, masks, labels, owners)

    weight, notes = start.weight, {}
    if requests:
        problem = _Memory(model, parts, layer, requests, config, start.weight, masks)
        weight, notes = problem.optimise(job.progress).cpu(), problem.notes
    job.progress("MEMOIR's memory", 1, 1)
    store = replace(
        start,
        weight=weight,
        masks=torch.cat([start.masks, masks.cpu()]),
        labels=(*start.labels, *labels),
        owners=(*start.owners, *((owner,) for owner in owners)),
    )
    held = [tuple(ids) for ids in job.others[config.n_others : 2 * config.n_others] or job.others]
    nearest = store.overlaps(read_inputs(model, name, held)).amax(-1) if held and store.n else torch.zeros(1)
    threshold = config.threshold or (1 + float(nearest.max())) / 2
    store = replace(store, threshold=torch.tensor([threshold], dtype=wide))
    ids = [request.id for request in requests]
    told: dict[str, Any] = with_past(
        job.previous, {key: dict(zip(ids, own, strict=True)) for key, own in notes.items()}
    )
    columns = int(store.masks.any(0).sum()) if store.n else 0
    told |= {"threshold": threshold, "columns_in_use": columns, "largest_overlap_of_others": float(nearest.max())}
    return MemoryEdit(name, store, EditInfo(EDITOR.name, asdict(config) | {"layers": [layer]}, notes=told))


def resolved(config: Config) -> Config:
    """The settings that the variant makes of these.

    Raises:
        UserError: a name or number that MEMOIR does not have.
    """
    config = with_variant(config, {"original": ORIGINAL}, "MEMOIR")
    check_names(config, positions=tuple(POSITIONS), pool=POOLS)
    if not 0 < config.active <= 1 or not 0 <= config.threshold <= 1:
        raise UserError(
            f"active {config.active} and threshold {config.threshold} are shares of columns",
            "give an active above 0 and up to 1, and a threshold from 0 to 1",
        )
    if min(config.steps, config.batch, config.n_others) < 1 or config.learning_rate <= 0 or config.clip < 0:
        raise UserError(
            f"steps {config.steps}, batch {config.batch}, n_others {config.n_others}, learning_rate "
            f"{config.learning_rate}, clip {config.clip} do not make sense",
            "give numbers above 0 (clip may be 0)",
        )
    return config


def _empty(
    model: PreTrainedModel, parts: Anatomy, name: str, config: Config, others: Sequence[tuple[int, ...]]
) -> ResidualMemory:
    """A memory of nothing, with a permutation and the mean features of other prompts."""
    wide = torch.promote_types(model.dtype, torch.float32)
    permutation = torch.randperm(parts.d_mlp, generator=torch.Generator().manual_seed(config.seed))
    return ResidualMemory(
        torch.zeros(parts.d_model, parts.d_mlp, dtype=wide),
        torch.zeros(0, parts.d_mlp, dtype=torch.bool),
        permutation,
        _features(model, parts, name, others, config.pool).mean(0).cpu(),
        torch.ones(1, dtype=wide),
        (),
        (),
        config.positions,
        config.pool,
    )


def _features(
    model: PreTrainedModel, parts: Anatomy, name: str, prompts: Sequence[tuple[int, ...]], pool: str
) -> Tensor:
    """(P, d_in) what the prompts are told apart by."""
    wide = torch.promote_types(model.dtype, torch.float32)
    found = [pooled(inputs.to(wide), pool) for inputs in read_inputs(model, name, prompts)]
    return torch.stack(found) if found else torch.zeros(0, parts.d_mlp, dtype=wide, device=model.device)


def _check_size(start: ResidualMemory, config: Config, parts: Anatomy) -> None:
    """Refuse to go on with other masks than the earlier edit's."""
    k, own = start.top_hash.k, max(1, round(config.active * parts.d_mlp))
    if start.n and (k != own or start.pool != config.pool or start.positions != config.positions):
        raise UserError(
            f"the memory to go on from has masks of {k} columns by the {start.pool} token(s), at '{start.positions}'; "
            f"these settings ask for {own}, {config.pool}, '{config.positions}'",
            "leave out --set active, pool, positions and variant, or start a new edit",
        )


def _check_masks(start: ResidualMemory, masks: Tensor, labels: Sequence[tuple[int, ...]], owners: list[str]) -> None:
    """Refuse two requests that cannot be told apart and are to be answered differently."""
    everyone = [*(names[0] for names in start.owners), *owners]
    said = [*start.labels, *labels]
    every = torch.cat([start.masks.to(masks.device), masks]).float()
    for i, own in enumerate(overlap(masks, every) if len(masks) else ()):
        for j in (own >= 1).nonzero()[:, 0].tolist():
            if j < start.n + i and said[j] != labels[i]:
                raise UserError(
                    f"the requests {everyone[j]!r} and {owners[i]!r} conflict: their masks are the same, and their "
                    "targets differ",
                    "give both the same target, or leave one out (--ids)",
                )


class _Memory(Joint):
    """The optimization of W_m."""

    def __init__(
        self,
        model: PreTrainedModel,
        parts: Anatomy,
        layer: int,
        requests: Sequence[EditRequest],
        config: Config,
        start: Tensor,
        masks: Tensor,
    ) -> None:
        weight = parts.weight(model, layer)
        wide = torch.promote_types(weight.dtype, torch.float32)
        schedule = schedule_of(config, weight, clip=config.clip or None)
        self.masks, self.compute = masks.to(weight.dtype), weight.dtype
        delta = start.to(weight.device, wide).clone()
        random = torch.Generator().manual_seed(config.seed)
        super().__init__(model, parts, layer, requests, schedule, config.positions, delta, random, "MEMOIR's memory")

    def terms(self, delta: Tensor, problem: Replacements, rows: list[int]) -> tuple[Tensor, Tensor | None, Tensor]:
        """W_m (M ⊙ a), each row with the mask of its own prompt; nothing else is asked of a row."""
        own = self.masks[torch.tensor([self.parts[row] for row in rows], device=delta.device)]
        change = (problem.inputs * own[:, None]) @ delta.to(self.compute).T
        return change, None, torch.ones(len(rows), dtype=torch.bool, device=delta.device)


def memory(job: EditJob, device: str) -> list[Phase]:
    """What one step has in memory, on a model without weights."""
    from unlearn_eval.models.memory import Phase, counting

    config, model, parts = resolved(job.config), job.model, anatomy(job.model)
    layer = the_layer(parts, config.layers, DEPTH, "MEMOIR has its memory")
    n = sum(len(request.parts) for request in job.requests)
    with counting(model) as counted:
        with counted.kind("residual memory"), counted.without_numbers():
            start = torch.zeros(parts.d_model, parts.d_mlp)
            masks = torch.zeros(n, parts.d_mlp, dtype=torch.bool)
        _Memory(model, parts, layer, job.requests, config, start, masks).one_step()
    return [Phase("residual memory", counted.peak)]


EDITOR = Editor(
    "memoir",
    Config,
    run,
    makes=MEMORY,
    memory=memory,
    uses={OTHERS},
    paper="2506.07899",
    one_layer=True,
    calibrates=True,
    others_read=lambda config: 2 * config.n_others,
)
