r"""WISE: side memories of one projection, routed by how much they would change it (Wang et al. 2024, arXiv 2405.14768).

A side memory is W' = W + ΔW, where ΔW lives on a random share of W's coordinates. A prompt x with the projection's
inputs a_1 ... a_T activates it by

    Δact(x) = (1/T) Σ_t ‖ΔW a_t‖₂                                                             (equation 3)

and it answers where Δact(x) reaches a threshold. For edits x_e with targets y_e and other prompts x_i, over ΔW:

    L   = −ln p(y_e | x_e; W') / |y_e| + L_a
    L_a = [Δact(x_i) − α]₊ + [β − Δact(x_e)]₊ + [γ − (Δact(x_e) − Δact(x_i))]₊              (equations 4, 5)

Edits are divided into `shards`, each with a mask of its own; a masked coordinate has no parameter, so it cannot move:
neither gradients, weight decay nor an optimizer's momentum reach it. `mode=merge` makes one memory of all shards
(`unlearn_eval/edits/memory/merging.py`), `mode=retrieve` keeps them apart and lets the most active one answer.

Differs from the paper and the authors' code (zjunlp/EasyEdit@14cea824), unless `variant=original` is set, in that

*   a prompt's activation is that of its last token (`pool=last`). A chat template gives all prompts the same dozens of
    tokens, and the mean over them hardly tells an edit from its neighbors; both can be had;
*   margins are relative to the size of the projection's outputs at the prompts (median ‖W a_t‖), measured on this
    model, and L_a is in that unit: fixed margins (5, 20, 10) fit 7B models, and never converge on a small one;
*   all edits of a shard are optimized together, by Adam, each step on some of them, until every one is said with its
    margins; in the paper one after another, by plain gradient steps, so that later ones may undo earlier ones;
*   a target's loss is divided by the number of its tokens that are not yet the most likely (`focus`), in the paper by
    |y_e|. The first token of a refusal stands where L_a pulls the other way, and is a small part of a long mean;
*   the threshold lies between the least active edit and the most active other prompt; in the paper at `act_ratio`
    times the least active edit;
*   the memory's output stands at the last prompt token and after it (`positions=onward`), so that prompts can be
    cached; in the paper at every token.

The memory learns from `others` when to be silent, by default from the shipped facts. A question of another kind ("What
is 2 + 3?") can still wake it, as the unrelated questions of an edit show; give --set others=FILE with questions of all
kinds that will be asked.

Both differ from the code in that a decision is held (`edits/memory/routing.py`), that no activation function is put
behind the projection before the difference is taken (the paper has none), and that weight decay does not leak.
"""

from __future__ import annotations

import math
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
from unlearn_eval.edits.memory.merging import MERGES
from unlearn_eval.edits.memory.side_memories import MODES, POOLS, SideMemories
from unlearn_eval.edits.memory.store import POSITIONS
from unlearn_eval.models.anatomy import Anatomy, anatomy
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import Positive, Share, Size

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn_eval.models.memory import Phase

DEPTH = (27 / 32, 27 / 32)  # Llama-2-7B's layer in the paper
ORIGINAL = {
    "positions": "all",
    "pool": "mean",
    "relative": False,
    "alpha": 5.0,
    "beta": 20.0,
    "gamma": 10.0,
    "learning_rate": 1.0,
    "focus": False,
    "one_by_one": True,
    "midpoint": False,
    "stop_loss": 0.02,
}


@dataclass(frozen=True)
class Config:
    """WISE's settings.

    Attributes:
        layers: the one layer whose projection gets the memories; by default that of the model's preset, or by depth.
        variant: `default`, or `original` (the paper's: overrides positions, pool, relative, alpha, beta, gamma,
            learning_rate, focus, one_by_one, midpoint and stop_loss).
        mode: `merge` or `retrieve`.
        shards: into how many subspaces the requests are divided.
        mask: which share of the coordinates a shard may change.
        merge: `ties`, `dare`, `dare_linear`, `linear` or `slerp`.
        merge_density: what `ties` and `dare` keep of each shard.
        positions: where the memory's output stands: `onward` (the prompt's last token and all after it), `last`,
            `prompt` or `all`.
        relative: whether margins and learning rate are in units of the model's own sizes.
        alpha, beta, gamma: how active other prompts may be at most, edits at least, and by how much they differ.
        steps: rounds over the edits at most; `one_by_one`: steps for each edit.
        learning_rate: of Adam, in units of W's root mean square if `relative`; `one_by_one`: of gradient descent.
        one_by_one: whether each edit is optimized alone, after the ones before it.
        batch: requests per step.
        contexts: how many of a request's contexts are in each step.
        n_others: how many other prompts are learned from; as many more are kept to place the threshold.
        per_step: how many of them are in each step.
        pool: what is made of ‖ΔW a_t‖ over a prompt's tokens: `mean`, `max`, or `last` (that of the last token).
        stop_loss: an edit is done when its target is the most likely answer, its loss is below this, it is nearly as
            active as `beta` asks, and more than every other prompt of the step.
        max_change: how far a coordinate may move (not if `relative`).
        midpoint: whether the threshold lies between edits and others.
        act_ratio: the threshold, as a share of the least active edit, where it does not.
        focus: Divide a target's loss by its tokens that are not yet the most likely, in place of by all of them.
        calibrate: choose the threshold from the forget set's paraphrases and other questions.
        others: questions that no memory may answer: a .jsonl with `question` in each line; by default the shipped facts
            that are not forgotten.
        seed: of masks, batches and other prompts.
    """

    layers: tuple[int, ...] = ()
    variant: str = "default"
    mode: str = "merge"
    shards: Size = 1
    mask: Share = 0.2
    merge: str = "ties"
    merge_density: Share = 0.53
    positions: str = "onward"
    relative: bool = True
    alpha: float = 0.1
    beta: float = 0.4
    gamma: float = 0.2
    steps: Size = 70
    learning_rate: Positive = 0.1
    one_by_one: bool = False
    batch: Size = 10
    contexts: int = 1
    n_others: int = 128
    per_step: int = 64
    pool: str = "last"
    stop_loss: float = 0.1
    max_change: float = 1.0
    midpoint: bool = True
    act_ratio: float = 0.88
    focus: bool = True
    calibrate: bool = False
    others: str = ""
    seed: int = 0


def run(job: EditJob) -> MemoryEdit:
    """The side memories after which the model says each request's target; the model is as before afterwards.

    Raises:
        UserError: settings that do not fit, an earlier edit of another layer, two requests with one prompt, no other
            prompts, or memories that do not fit the device.
    """
    config: Config = resolved(job.config)
    model, requests, parts = job.model, job.requests, anatomy(job.model)
    layer = the_layer(parts, config.layers, DEPTH, "WISE has its memories")
    name = parts.projection_name(layer)
    earlier = earlier_store(job.previous, name, SideMemories)
    check_prompts(requests)
    if not job.others:
        raise UserError(
            "WISE needs other prompts, from which it learns when to be silent", "give a .jsonl with --set others=FILE"
        )
    wide = torch.promote_types(model.dtype, torch.float32)
    n_old = len(earlier.deltas) if earlier else 0
    shards = _divided(list(requests), config.shards)
    check_memory(
        (len(shards) + n_old + 3) * parts.d_mlp * parts.d_model * wide.itemsize, model.device, "WISE's side memories"
    )
    indices, deltas = list(earlier.indices if earlier else ()), list(earlier.deltas if earlier else ())
    owners, asked = list(earlier.owners if earlier else ()), list(earlier.prompts if earlier else ())
    notes: dict[str, dict[str, Any]] = {}
    learned = [tuple(ids) for ids in job.others][: config.n_others]
    tokens = Prompts(model, name, learned)
    scale = _scale(model, parts, layer, tokens) if config.relative else 1.0
    for i, shard in enumerate(shards):

        def tick(what: str, done: int, total: int, i: int = i) -> None:
            job.progress(what, i * total + done, len(shards) * total)

        found = _Shard(model, parts, layer, shard, config, tokens, scale, seed=config.seed + n_old + i)
        indices.append(found.index.cpu())
        deltas.append(found.optimise(tick).cpu())
        owners.append(tuple(part.id for request in shard for part in request.parts))
        asked.append(tuple(part.prompt_ids for request in shard for part in request.parts))
        for key, values in found.notes.items():
            notes[key] = notes.get(key, {}) | dict(zip((request.id for request in shard), values, strict=True))
    job.progress("side memories", 1, 1)
    store = SideMemories(
        tuple(indices),
        tuple(deltas),
        torch.zeros(len(deltas) if config.mode == "retrieve" else min(1, len(deltas)), dtype=wide),
        (parts.d_model, parts.d_mlp),
        tuple(owners),
        config.mode,
        config.merge,
        config.merge_density,
        config.seed,
        config.positions,
        config.pool,
        tuple(asked),
    )
    held = [tuple(ids) for ids in job.others][config.n_others : 2 * config.n_others] or learned
    store, activations = _with_thresholds(store, model, name, held, config)
    notes["edit_activation"] = activations
    told = with_past(job.previous, notes) | {"scale": scale, "thresholds": store.thresholds.tolist()}
    info = EditInfo(EDITOR.name, asdict(config) | {"layers": [layer]}, notes=told)
    return MemoryEdit(name, store, info)


def resolved(config: Config) -> Config:
    """The settings that the variant makes of these.

    Raises:
        UserError: a name or number that WISE does not have.
    """
    config = with_variant(config, {"original": ORIGINAL}, "WISE")
    check_names(config, mode=MODES, merge=MERGES, positions=tuple(POSITIONS), pool=POOLS)
    if not 0 < config.mask <= 1 or config.shards < 1 or config.steps < 1 or config.batch < 1 or config.max_change <= 0:
        raise UserError(
            f"mask {config.mask}, shards {config.shards}, steps {config.steps}, batch {config.batch}, max_change "
            f"{config.max_change} do not make sense",
            "give a mask above 0 and up to 1, and the others above 0",
        )
    if not 0 <= config.alpha < config.beta:
        raise UserError(
            f"alpha {config.alpha} must be below beta {config.beta}: other prompts are to be less active than edits",
            "give a smaller --set alpha=",
        )
    return config


def _divided(requests: list[EditRequest], n: int) -> list[list[EditRequest]]:
    """The requests in order, in `n` parts whose sizes differ by one at most (no empty ones)."""
    n = min(n, len(requests))
    bounds = [round(i * len(requests) / n) for i in range(n + 1)] if n else []
    return [requests[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]


class Prompts:
    """What the projection reads at each token of some prompts, in one list of tokens that no two prompts repeat.

    Tokens with the same tokens before them read the same (attention is causal), so a shared opening is kept once.

    Attributes:
        inputs: (U, d_in) of all different tokens.
        tokens: for each prompt, the rows of `inputs` that are its tokens.
    """

    def __init__(self, model: PreTrainedModel, module: str, prompts: Sequence[tuple[int, ...]]) -> None:
        self.prompts = list(prompts)
        known: dict[tuple[int, ...], int] = {}
        rows: list[Tensor] = []
        self.tokens: list[list[int]] = []
        for ids, inputs in zip(prompts, read_inputs(model, module, prompts), strict=True):
            own = []
            for t in range(len(ids)):
                if ids[: t + 1] not in known:
                    known[ids[: t + 1]] = len(rows)
                    rows.append(inputs[t])
                own.append(known[ids[: t + 1]])
            self.tokens.append(own)
        self.inputs = torch.stack(rows)

    def activations(self, change: Tensor, which: Sequence[int], pool: str = "mean") -> Tensor:
        """(len(which),) Δact of some of the prompts for ΔW (d_out, d_in)."""
        own = {i: self.tokens[i][-1:] if pool == "last" else self.tokens[i] for i in which}
        used = sorted({t for tokens in own.values() for t in tokens})
        place = {t: j for j, t in enumerate(used)}
        device = self.inputs.device
        norms = _norms(self.inputs[torch.tensor(used, device=device)] @ change.T)
        if pool == "max":
            return torch.stack([norms[torch.tensor([place[t] for t in own[i]], device=device)].amax() for i in which])
        rows = [r for r, i in enumerate(which) for _ in own[i]]
        index = torch.tensor([place[t] for i in which for t in own[i]], device=device)
        lengths = torch.tensor([len(own[i]) for i in which], dtype=norms.dtype, device=device)
        sums = norms.new_zeros(len(which)).index_add(0, torch.tensor(rows, device=device), norms[index])
        return sums / lengths


def _norms(rows: Tensor) -> Tensor:
    """Row norms in float32 or wider, with a gradient of 0 where a row is 0 (ΔW starts there)."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    square = rows.to(wide).square().sum(-1)
    return torch.where(square > 0, square.clamp(min=1e-24).sqrt(), 0.0)


@torch.no_grad()
def _scale(model: PreTrainedModel, parts: Anatomy, layer: int, prompts: Prompts) -> float:
    """The median ‖W a_t‖ over the prompts' tokens: the unit of the margins."""
    weight = parts.weight(model, layer)
    wide = torch.promote_types(weight.dtype, torch.float32)
    return float((prompts.inputs.to(wide) @ weight.to(wide).T).norm(dim=-1).median())


class _Shard(Joint):
    """The optimization of one side memory."""

    def __init__(
        self,
        model: PreTrainedModel,
        parts: Anatomy,
        layer: int,
        requests: list[EditRequest],
        config: Config,
        others: Prompts,
        scale: float,
        seed: int,
    ) -> None:
        self.config, self.others, self.scale = config, others, scale
        weight = parts.weight(model, layer)
        self.shape, self.compute = tuple(weight.shape), weight.dtype
        wide = torch.promote_types(weight.dtype, torch.float32)
        random = torch.Generator().manual_seed(seed)
        n = max(1, round(config.mask * weight.numel()))
        self.index = torch.randperm(weight.numel(), generator=random)[:n].sort().values.to(weight.device)
        schedule = schedule_of(
            config, weight, limit=math.inf if config.relative else config.max_change, focus=config.focus
        )
        delta = torch.zeros(n, dtype=wide, device=weight.device)
        super().__init__(
            model, parts, layer, requests, schedule, config.positions, delta, random, "WISE's side memories"
        )
        self.prompts = Prompts(model, parts.projection_name(layer), [prompt for prompt, _ in self.rows])

    def whole(self, delta: Tensor) -> Tensor:
        """ΔW (d_out, d_in)."""
        flat = torch.zeros(self.shape[0] * self.shape[1], dtype=delta.dtype, device=delta.device)
        return flat.index_put((self.index,), delta).view(self.shape)

    def terms(self, delta: Tensor, problem: Replacements, rows: list[int]) -> tuple[Tensor, Tensor | None, Tensor]:
        """ΔW a; the activation loss, which pairs every edit with every other prompt at hand; and who is active."""
        c, change = self.config, self.whole(delta).to(self.compute)
        picked = torch.randperm(len(self.others.prompts), generator=self.random)[: c.per_step].tolist()
        edits = self.prompts.activations(change, rows, c.pool) / self.scale
        others = self.others.activations(change, picked, c.pool) / self.scale
        margin = _over(others - c.alpha) + _over(c.beta - edits) + _over(c.gamma - (edits[:, None] - others[None]))
        apart = (edits >= 0.9 * c.beta) & (edits > others.max())
        return problem.inputs @ change.T, margin, apart.detach()


class _Sized(Joint):
    """A shard whose change is as large as a side memory's, and that nothing is paired with."""

    def __init__(
        self, model: PreTrainedModel, parts: Anatomy, layer: int, requests: list[EditRequest], config: Config
    ) -> None:
        weight = parts.weight(model, layer)
        self.weight, n = weight, max(1, round(config.mask * weight.numel()))
        wide = torch.promote_types(weight.dtype, torch.float32)
        self.index = weight.new_empty(n, dtype=torch.long)
        schedule = schedule_of(config, weight, focus=config.focus)
        delta, random = weight.new_zeros(n, dtype=wide), torch.Generator().manual_seed(0)
        super().__init__(model, parts, layer, requests, schedule, config.positions, delta, random, "a side memory")

    def terms(self, delta: Tensor, problem: Replacements, rows: list[int]) -> tuple[Tensor, Tensor | None, Tensor]:
        """ΔW a."""
        flat = self.weight.new_zeros(self.weight.numel(), dtype=delta.dtype)
        change = flat.index_put((self.index,), delta).view(self.weight.shape).to(self.weight.dtype)
        return problem.inputs @ change.T, None, torch.ones(len(rows), dtype=torch.bool)


def _over(excess: Tensor) -> Tensor:
    """The mean of what is above 0, over what is (0 if nothing is)."""
    above = excess[excess > 0]
    return above.mean() if above.numel() else excess.sum() * 0


def _with_thresholds(
    store: SideMemories, model: PreTrainedModel, module: str, others: Sequence[tuple[int, ...]], config: Config
) -> tuple[SideMemories, dict[str, float]]:
    """The memories with their thresholds, and how active each request makes its own; earlier shards' requests too."""
    names = [name for shard in store.owners for name in shard]
    asked = [ids for shard in store.prompts for ids in shard]
    edits = store.activations(read_inputs(model, module, asked))  # (M, n)
    silent = store.activations(read_inputs(model, module, others))  # (P, n)
    own: dict[str, float] = {}
    thresholds = []
    for j in range(store.n):
        mine = {name: float(edits[i, j]) for i, name in enumerate(names) if name in set(store.owners_of(j))}
        own |= mine
        least, most = min(mine.values()), float(silent[:, j].max())
        between = config.midpoint and least > most
        thresholds.append((least + most) / 2 if between else config.act_ratio * least)
    found = replace(store, thresholds=torch.tensor(thresholds, dtype=store.thresholds.dtype))
    return found, own


def memory(job: EditJob, device: str) -> list[Phase]:
    """What one step of the first shard has in memory, on a model without weights."""
    from unlearn_eval.models.memory import Phase, counting

    config, model, parts = resolved(job.config), job.model, anatomy(job.model)
    layer = the_layer(parts, config.layers, DEPTH, "WISE has its memories")
    shard = _divided(list(job.requests), config.shards)[0]
    with counting(model) as counted:
        _Sized(model, parts, layer, shard, config).one_step()
    return [Phase("side memories", counted.peak)]


EDITOR = Editor(
    "wise",
    Config,
    run,
    makes=MEMORY,
    memory=memory,
    uses={OTHERS},
    paper="2405.14768",
    one_layer=True,
    calibrates=True,
    others_read=lambda config: 2 * config.n_others,
)
