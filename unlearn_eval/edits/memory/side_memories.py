"""WISE's memories at work: sparse changes of one matrix (the editor is `editors/memory/wise.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from unlearn_eval.edits.memory.merging import MERGES, merged
from unlearn_eval.edits.memory.routing import NO_MEMORY, Memory
from unlearn_eval.edits.memory.store import POSITIONS, Positions, Route, best_bound, nobody, off, one_of
from unlearn_eval.edits.stored import Ids, MemorySettings
from unlearn_eval.utils.schemas import Size, Whole

MODES = ("merge", "retrieve")
POOLS = ("mean", "max", "last")


@dataclass(frozen=True)
class SideMemories:
    """WISE's memories: sparse changes ΔW of one matrix, each used where it is active enough.

    A prompt's activation of a memory is the mean over its tokens of ‖ΔW a‖₂, a the module's input (or the largest, or
    that of the last token). The most active memory that reaches its threshold adds ΔW a to the module's output.

    Attributes:
        indices: of each shard, (nnz,) flat indices of its masked coordinates in W (d_out, d_in).
        deltas: of each shard, (nnz,) what is added there.
        thresholds: one for each memory at work: for all shards merged, or one for each.
        shape: (d_out, d_in).
        owners: the requests of each shard.
        mode: `merge` (all shards as one memory) or `retrieve` (the most active shard).
        merge: a name of `merging.MERGES`.
        density: what the merge keeps of each shard, where it drops anything.
        seed: of the merge, where it is random.
        positions: a name of `POSITIONS`.
        pool: a name of `POOLS`.
        prompts: the edited prompts of each shard (ids), by which thresholds are placed again when shards are added.
    """

    indices: tuple[Tensor, ...]
    deltas: tuple[Tensor, ...]
    thresholds: Tensor
    shape: tuple[int, int]
    owners: tuple[tuple[str, ...], ...]
    mode: str = "merge"
    merge: str = "ties"
    density: float = 0.53
    seed: int = 0
    positions: str = "onward"
    pool: str = "mean"
    prompts: tuple[tuple[tuple[int, ...], ...], ...] = ()
    mechanism = "wise"
    bound = "threshold"

    @property
    def n(self) -> int:
        """How many memories are at work."""
        return len(self.thresholds)

    @property
    def bounds(self) -> Tensor:
        """The thresholds."""
        return self.thresholds

    def tensors(self) -> dict[str, Tensor]:
        """The shards and the thresholds."""
        found = {"thresholds": self.thresholds}
        for i, (index, delta) in enumerate(zip(self.indices, self.deltas, strict=True)):
            found |= {f"indices.{i}": index.int() if self.shape[0] * self.shape[1] < 2**31 else index}
            found |= {f"deltas.{i}": delta}
        return found

    def settings(self) -> dict[str, Any]:
        """Shape, owners, prompts, and how shards become memories."""
        names = ("mode", "merge", "density", "seed", "positions", "pool")
        own = {name: getattr(self, name) for name in names}
        own |= {"shape": list(self.shape), "owners": [list(ids) for ids in self.owners]}
        return own | {"prompts": [[list(ids) for ids in shard] for shard in self.prompts]}

    def memories(self) -> list[tuple[Tensor, Tensor]]:
        """(flat indices, changes) of each memory at work."""
        shards = list(zip(self.indices, self.deltas, strict=True))
        if self.mode == "retrieve" or len(shards) <= 1:
            return shards
        return [merged(shards, self.merge, self.density, self.seed)]

    def dense(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """ΔW (d_out, d_in) of each memory at work."""
        found = []
        for index, delta in self.memories():
            whole = torch.zeros(self.shape[0] * self.shape[1], dtype=dtype, device=device)
            found.append(whole.index_copy(0, index.long().to(device), delta.to(device, dtype)).view(self.shape))
        return found

    def at(self, device: torch.device, dtype: torch.dtype) -> Memory:
        """The side memories at work."""
        wide = torch.promote_types(dtype, torch.float32)
        return _SideMemoriesAtWork(
            self.dense(device, dtype), self.thresholds.to(device, wide), POSITIONS[self.positions], self.pool
        )

    def n_bytes(self, dtype: torch.dtype) -> int:
        """Of the matrices: they are sparse on disk only."""
        return self.n * self.shape[0] * self.shape[1] * dtype.itemsize

    def owners_of(self, memory: int) -> tuple[str, ...]:
        """The requests of one memory at work."""
        if self.mode == "retrieve":
            return self.owners[memory]
        return tuple(name for shard in self.owners for name in shard)

    def activations(self, prompts: Sequence[Tensor]) -> Tensor:
        """(P, n) the activation of each memory by each prompt, given as the module's inputs (T, d_in)."""
        if not prompts:
            return torch.zeros(0, self.n)
        first = prompts[0]
        changes = self.dense(first.device, first.dtype)
        wide = torch.promote_types(first.dtype, torch.float32)
        rows = [
            torch.stack([_pooled((inputs @ d.T).to(wide).norm(dim=-1), self.pool) for d in changes])
            if changes
            else torch.zeros(0, dtype=wide)
            for inputs in prompts
        ]
        return torch.stack(rows)

    def routes(self, prompts: Sequence[Tensor]) -> list[Route]:
        """By all tokens of each prompt."""
        found = []
        for own in self.activations(prompts):
            if not self.n:
                found.append(Route(None, (), "activation", None, None, False))
                continue
            chosen = int(_most_active(own[None], self.thresholds.to(own))[0])
            best = chosen if chosen >= 0 else int((own / self.thresholds.to(own)).argmax())
            value, threshold = float(own[best]), float(self.thresholds[best])
            found.append(Route(best, self.owners_of(best), "activation", value, threshold, chosen >= 0))
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Owners, threshold, changed coordinates."""
        return [
            {
                "memory": i,
                "owners": list(self.owners_of(i)),
                "threshold": float(self.thresholds[i]),
                "numbers": int((delta != 0).sum()),
            }
            for i, (_, delta) in enumerate(self.memories())
        ]

    def calibrated(
        self, names: Sequence[str], own: Sequence[Tensor], edited: Sequence[Tensor], other: Sequence[Tensor]
    ) -> SideMemories:
        """One threshold for each memory, never above its least active edit."""
        active, silent, edits = self.activations(own), self.activations(other), self.activations(edited)
        thresholds = self.thresholds.clone()
        for j in range(self.n):
            rows = [i for i, name in enumerate(names) if name in self.owners_of(j)]
            if not rows:
                continue
            bound = -best_bound(-active[rows, j], -silent[:, j])  # here what is above it answers
            mine = edits.argmax(-1) == j
            if mine.any():
                bound = min(bound, float(edits[mine, j].min()) * (1 - 1e-4))
            thresholds[j] = bound
        return replace(self, thresholds=thresholds)


def _pooled(norms: Tensor, pool: str) -> Tensor:
    """One number of a prompt's (T,)."""
    if pool == "last":
        return norms[-1]
    return norms.mean() if pool == "mean" else norms.amax()


def _most_active(activations: Tensor, thresholds: Tensor) -> Tensor:
    """(R,) the most active memory of those (R, n) that reach their thresholds, or NO_MEMORY."""
    if not activations.shape[1]:
        return torch.full((len(activations),), NO_MEMORY, dtype=torch.long, device=activations.device)
    eligible = torch.where(activations >= thresholds, activations, -1.0)
    value, index = eligible.max(-1)
    return torch.where(value >= 0, index, NO_MEMORY)


class _SideMemoriesAtWork:
    def __init__(self, changes: list[Tensor], thresholds: Tensor, positions: Positions, pool: str) -> None:
        self.changes, self.thresholds, self.pool = changes, thresholds, pool
        self.before, self.after = positions.before, positions.after

    def gather(self, inputs: Tensor, prompt: Tensor, pooled: Tensor | None) -> Tensor | None:
        """(B, n + 1) the sums (or largest) over the prompts' tokens of each ‖ΔW a‖, and the number of tokens."""
        if self.pool == "last":
            return None
        norms = [self._norms(inputs, change).masked_fill(~prompt, 0) for change in self.changes]
        found = [n.sum(-1) if self.pool == "mean" else n.amax(-1) for n in norms]
        now = torch.stack([*found, prompt.sum(-1).to(self.thresholds.dtype)], dim=-1)
        if pooled is None:
            return now
        return pooled + now if self.pool == "mean" else torch.maximum(pooled, now)

    def _norms(self, inputs: Tensor, change: Tensor) -> Tensor:
        norms: Tensor = (inputs @ change.T).to(self.thresholds.dtype).norm(dim=-1)
        return norms

    def decide(self, ends: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor]:
        """The most active memory that reaches its threshold."""
        if not self.changes:
            return nobody(ends)
        if self.pool == "last":
            own = torch.stack([self._norms(ends, change) for change in self.changes], dim=-1)
        else:
            assert pooled is not None
            own = pooled[:, :-1] / (pooled[:, -1:] if self.pool == "mean" else 1)
        return _most_active(own, self.thresholds), off(own, self.thresholds).amin(-1)

    def change(self, inputs: Tensor, output: Tensor, choice: Tensor, columns: Tensor) -> Tensor:
        """ΔW a added to the output."""
        moved = output.clone()
        for i, change in enumerate(self.changes):
            rows = (choice == i).nonzero()[:, 0]
            if len(rows):
                more = (inputs[rows] @ change.T).to(output.dtype)
                moved[rows] = torch.where(columns[rows][..., None], output[rows] + more, output[rows])
        return moved

    @property
    def reduction(self) -> str:
        """Sums for means, else the largest."""
        return "sum" if self.pool == "mean" else "amax"

    def change_each(self, inputs: Tensor, output: Tensor, choice: Tensor) -> Tensor:
        """The same token by token."""
        moved = output.clone()
        for i, change in enumerate(self.changes):
            more = (inputs @ change.T).to(output.dtype)
            moved = torch.where((choice == i)[:, None], output + more, moved)
        return moved


class SideMemoriesSettings(MemorySettings):
    """`memory.json` of WISE."""

    mechanism: Literal["wise"]
    mode: Literal["merge", "retrieve"]
    merge: Literal["ties", "dare", "dare_linear", "linear", "slerp"]
    density: Annotated[float, Field(gt=0, le=1)]
    seed: Whole
    pool: Literal["mean", "max", "last"]
    shape: Annotated[list[Size], Field(min_length=2, max_length=2)]
    prompts: list[list[Annotated[Ids, Field(min_length=1)]]]


def layout(settings: Mapping[str, Any]) -> dict[str, str]:
    """The shapes of the tensors, as `check_layout` takes them."""
    shards = range(len(settings["owners"]))
    found = {f"indices.{i}": f"whole: n{i}" for i in shards} | {f"deltas.{i}": f"n{i}" for i in shards}
    return found | {"thresholds": "T"}


def read_side_memories(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SideMemories:
    """From `memory.json` and `memory.safetensors` (ValueError if they do not fit each other)."""
    n = len(settings["owners"])
    d_out, d_in = map(int, settings["shape"])
    indices = tuple(tensors[f"indices.{i}"].long() for i in range(n))
    deltas = tuple(tensors[f"deltas.{i}"] for i in range(n))
    for index, delta in zip(indices, deltas, strict=True):
        if index.shape != delta.shape or (len(index) and not 0 <= int(index.min()) <= int(index.max()) < d_out * d_in):
            raise ValueError("indices do not fit the matrix")
    n_at_work = n if settings["mode"] == "retrieve" else min(n, 1)
    n_prompts, n_owners = (list(map(len, settings[name])) for name in ("prompts", "owners"))
    kept = dict(enumerate(n_prompts)) if n_prompts else dict.fromkeys(range(n), 0)
    if len(tensors["thresholds"]) != n_at_work or any(kept.get(i) not in (0, n_owners[i]) for i in range(n)):
        raise ValueError(f"{n} shards need {n_at_work} thresholds, and a prompt for each owner of a shard or none")
    return SideMemories(
        indices,
        deltas,
        tensors["thresholds"],
        (d_out, d_in),
        tuple(tuple(map(str, names)) for names in settings["owners"]),
        one_of(settings["mode"], MODES),
        one_of(settings["merge"], MERGES),
        float(settings["density"]),
        int(settings["seed"]),
        one_of(settings["positions"], POSITIONS),
        one_of(settings["pool"], POOLS),
        tuple(tuple(tuple(map(int, ids)) for ids in shard) for shard in settings["prompts"]),
    )
