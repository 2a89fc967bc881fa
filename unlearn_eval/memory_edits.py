"""Edits that leave the weights alone: at run time a memory decides whether a question is one of its own.

    edit/
      edit.json             as for every edit
      memory.json           which mechanism, at which module, with which settings; who each memory belongs to
      memory.safetensors    its tensors: GRACE's keys, values and radii; WISE's sparse changes and thresholds
      config.json, tokenizer...

When a memory decides, and how long that holds, is written in `routing.py`; it is the same for all of them. The
memories are small: GRACE keeps one key and one value for each edit, WISE the changed coordinates of one matrix.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from unlearn_eval.anatomy import is_transposed
from unlearn_eval.edits import EditInfo, for_disk, write_edit
from unlearn_eval.errors import UserError
from unlearn_eval.merging import MERGES, merged
from unlearn_eval.routing import NO_MEMORY, Memory, Router, prompt_lengths, router
from unlearn_eval.scoring import accepts, keeps_plain_cache, pad, positions
from unlearn_eval.tracing import trace

MEMORY, SETTINGS = "memory.safetensors", "memory.json"
MODES = ("merge", "retrieve")
POOLS = ("mean", "max", "last")


@dataclass(frozen=True)
class Positions:
    """Which tokens of an answered sequence are changed besides the last of the prompt, at which it is decided.

    Attributes:
        before: the prompt's other tokens.
        after: the continuation.
    """

    before: bool
    after: bool


POSITIONS = {
    "onward": Positions(before=False, after=True),
    "last": Positions(before=False, after=False),
    "prompt": Positions(before=True, after=False),
    "all": Positions(before=True, after=True),
}


@dataclass(frozen=True)
class Route:
    """Which memory would answer a prompt.

    Attributes:
        memory: index of the nearest memory (GRACE) or the most active one (WISE); None if there is none at all.
        owners: the requests that it belongs to.
        measure: what `value` is: "distance" (answers up to the threshold) or "activation" (from it on).
        value, threshold: of that memory.
        answers: whether it answers.
    """

    memory: int | None
    owners: tuple[str, ...]
    measure: str
    value: float | None
    threshold: float | None
    answers: bool


class Store(Protocol):
    """The tensors of a mechanism, and how it decides with them."""

    @property
    def mechanism(self) -> str:
        """Its name in `memory.json`."""

    @property
    def n(self) -> int:
        """How many memories there are."""

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the module that it fits."""

    def tensors(self) -> dict[str, Tensor]:
        """What is written to `memory.safetensors`."""

    def settings(self) -> dict[str, Any]:
        """What is written to `memory.json` beside the module's name."""

    def at(self, device: torch.device, dtype: torch.dtype) -> Memory:
        """The memory at work, for a module of this device and type."""

    def n_bytes(self, dtype: torch.dtype) -> int:
        """How many bytes that takes."""

    def routes(self, prompts: Sequence[Tensor]) -> list[Route]:
        """What it makes of prompts, each given as the module's inputs at all its tokens (T, d_in)."""

    def rows(self) -> list[dict[str, Any]]:
        """One description of each memory, for people."""


@dataclass(frozen=True)
class Codebook:
    """GRACE's memory: a query within the radius of its nearest key gets that key's value as the module's output.

    Attributes:
        keys: (N, d_in) what the module reads at the last token of an edited prompt.
        values: (M, d_out) what it gives instead; keys may share one.
        radii: (N,) ε, Euclidean.
        value_of: (N,) each key's value.
        labels: the target ids of each value.
        owners: the requests of each key.
        positions: a name of `POSITIONS`.
    """

    keys: Tensor
    values: Tensor
    radii: Tensor
    value_of: Tensor
    labels: tuple[tuple[int, ...], ...]
    owners: tuple[tuple[str, ...], ...]
    positions: str = "onward"
    mechanism = "grace"

    @property
    def n(self) -> int:
        """How many keys."""
        return len(self.keys)

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return self.values.shape[1], self.keys.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """Keys, values, radii, and whose value is which."""
        return {"keys": self.keys, "values": self.values, "radii": self.radii, "value_of": self.value_of}

    def settings(self) -> dict[str, Any]:
        """Labels, owners, positions."""
        return {
            "positions": self.positions,
            "labels": [list(ids) for ids in self.labels],
            "owners": [list(ids) for ids in self.owners],
        }

    def at(self, device: torch.device, dtype: torch.dtype) -> Memory:
        """The codebook at work. Distances are taken in float32 or wider, whatever the model computes in."""
        wide = torch.promote_types(dtype, torch.float32)
        return _CodebookAtWork(
            self.keys.to(device, wide),
            self.values.to(device, dtype),
            self.radii.to(device, wide),
            self.value_of.to(device),
            POSITIONS[self.positions],
        )

    def n_bytes(self, dtype: torch.dtype) -> int:
        """Of keys and values."""
        wide = torch.promote_types(dtype, torch.float32)
        return self.keys.numel() * wide.itemsize + self.values.numel() * dtype.itemsize

    def routes(self, prompts: Sequence[Tensor]) -> list[Route]:
        """By the last token of each prompt."""
        if not self.n or not prompts:
            return [Route(None, (), "distance", None, None, False) for _ in prompts]
        queries = torch.stack([inputs[-1] for inputs in prompts])
        nearest, distance = nearest_key(queries, self.keys)
        found = []
        for i, d in zip(nearest.tolist(), distance.tolist(), strict=True):
            radius = float(self.radii[i])
            found.append(Route(i, self.owners[i], "distance", d, radius, d <= radius))
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Owners, radius, target length."""
        return [
            {"memory": i, "owners": list(owners), "threshold": float(radius), "numbers": sum(self.shape)}
            for i, (owners, radius) in enumerate(zip(self.owners, self.radii, strict=True))
        ]


def nearest_key(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) index and Euclidean distance of the nearest of keys (N, d) to each query (R, d).

    Differences are squared, not expanded: the expanded form loses small distances between large vectors.
    """
    wide = torch.promote_types(queries.dtype, torch.promote_types(keys.dtype, torch.float32))
    distances = torch.cdist(
        queries.to(wide), keys.to(queries.device, wide), compute_mode="donot_use_mm_for_euclid_dist"
    )
    smallest, index = distances.min(-1)
    return index, smallest


class _CodebookAtWork:
    def __init__(self, keys: Tensor, values: Tensor, radii: Tensor, value_of: Tensor, positions: Positions) -> None:
        self.keys, self.values, self.radii, self.value_of = keys, values, radii, value_of
        self.before, self.after = positions.before, positions.after

    def gather(self, inputs: Tensor, prompt: Tensor, pooled: Tensor | None) -> Tensor | None:
        """Nothing: the last token says all."""
        return None

    def choose(self, ends: Tensor, pooled: Tensor | None) -> Tensor:
        """The nearest key, if within its radius."""
        if not len(self.keys):
            return torch.full((len(ends),), NO_MEMORY, dtype=torch.long, device=ends.device)
        nearest, distance = nearest_key(ends, self.keys)
        return torch.where(distance <= self.radii[nearest], nearest, NO_MEMORY)

    def change(self, inputs: Tensor, output: Tensor, choice: Tensor, columns: Tensor) -> Tensor:
        """The value in place of the output."""
        values = self.values[self.value_of[choice.clamp(min=0)]][:, None].to(output.dtype)
        return torch.where(columns[..., None], values, output)


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

    @property
    def n(self) -> int:
        """How many memories are at work."""
        return len(self.thresholds)

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

    def dense(self, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> list[Tensor]:
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

    def choose(self, ends: Tensor, pooled: Tensor | None) -> Tensor:
        """The most active memory that reaches its threshold."""
        if self.pool == "last":
            norms = [self._norms(ends, change) for change in self.changes]
            own = torch.stack(norms, dim=-1) if norms else self.thresholds.new_zeros(len(ends), 0)
            return _most_active(own, self.thresholds)
        assert pooled is not None
        counts = pooled[:, -1:] if self.pool == "mean" else 1
        return _most_active(pooled[:, :-1] / counts, self.thresholds)

    def change(self, inputs: Tensor, output: Tensor, choice: Tensor, columns: Tensor) -> Tensor:
        """ΔW a added to the output."""
        moved = output.clone()
        for i, change in enumerate(self.changes):
            rows = (choice == i).nonzero()[:, 0]
            if len(rows):
                more = (inputs[rows] @ change.T).to(output.dtype)
                moved[rows] = torch.where(columns[rows][..., None], output[rows] + more, output[rows])
        return moved


class Routed:
    """A memory edit in a model; `restore()` takes it out."""

    def __init__(self, owner: Router, number: int) -> None:
        self._owner, self._number = owner, number

    def restore(self) -> None:
        """Make the model what it was (its weights were never touched); harmless when repeated."""
        self._owner.remove(self._number)


@dataclass(frozen=True)
class MemoryEdit:
    """A memory at one module of a model.

    Attributes:
        module: its path, e.g. `model.layers.24.mlp.down_proj`.
        store: what it remembers.
        info: what this is.
        texts: file name -> content of small texts that belong to the edit, e.g. `targets.jsonl`.
    """

    module: str
    store: Codebook | SideMemories
    info: EditInfo
    texts: Mapping[str, str] = field(default_factory=dict)

    def apply(self, model: nn.Module) -> Routed:
        """Put the memory into the model, on top of whatever edits are in it; the weights stay as they are.

        Raises:
            UserError: the model has no such module, or one of another shape; there is a memory there already; or the
                device's memory is too small.
        """
        module = _module_of(model, self.module, self.store.shape)
        weight: Tensor = module.weight  # type: ignore[assignment]
        check_memory(self.store.n_bytes(weight.dtype), weight.device, f"the {self.store.n} memories of this edit")
        owner = router(model)
        return Routed(owner, owner.add(self.module, self.store.at(weight.device, weight.dtype)))

    def save(self, folder: str | Path, tokenizer: Any = None, model_config: Any = None) -> Path:
        """Write the folder, with the base's `config.json` and tokenizer if they are given (errors as `write_edit`)."""
        from safetensors.torch import save_file

        def fill(target: Path) -> None:
            tensors = {name: for_disk(tensor) for name, tensor in self.store.tensors().items()}
            save_file(tensors, str(target / MEMORY), metadata={"format": "pt"})
            settings = {"mechanism": self.store.mechanism, "module": self.module, **self.store.settings()}
            text = json.dumps(settings, ensure_ascii=False, allow_nan=False)
            (target / SETTINGS).write_text(text + "\n", encoding="utf-8")

        return write_edit(Path(folder), "memory", self.info, fill, self.texts, tokenizer, model_config)

    def routes(self, model: Any, prompts: Sequence[Sequence[int]]) -> list[Route]:
        """Which memory would answer each prompt (token ids) in this model; the edit need not be in it."""
        _module_of(model, self.module, self.store.shape)
        return self.store.routes(read_inputs(model, self.module, prompts))


def read_memory(folder: Path, description: Mapping[str, Any], info: EditInfo, texts: Mapping[str, str]) -> MemoryEdit:
    """The edit in a folder whose files have been checked.

    Raises:
        UserError: its tensors do not fit each other.
    """
    from safetensors.torch import load_file

    tensors = load_file(str(folder / MEMORY))
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        store = _STORES[settings["mechanism"]](settings, tensors)
        return MemoryEdit(str(settings["module"]), store, info, texts)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / SETTINGS} is damaged: {type(error).__name__}: {error}", "make the edit again"
        ) from error


def _read_codebook(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Codebook:
    book = Codebook(
        tensors["keys"],
        tensors["values"],
        tensors["radii"],
        tensors["value_of"].long(),
        tuple(tuple(map(int, ids)) for ids in settings["labels"]),
        tuple(tuple(map(str, names)) for names in settings["owners"]),
        _one_of(settings["positions"], POSITIONS),
    )
    if len({len(book.keys), len(book.radii), len(book.value_of), len(book.owners)}) != 1:
        raise ValueError("keys, radii and owners are not equally many")
    if len(book.values) != len(book.labels) or (book.n and not 0 <= int(book.value_of.max()) < len(book.values)):
        raise ValueError("values, labels and keys do not fit each other")
    return book


def _read_side_memories(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SideMemories:
    n = len(settings["owners"])
    d_out, d_in = map(int, settings["shape"])
    indices = tuple(tensors[f"indices.{i}"].long() for i in range(n))
    deltas = tuple(tensors[f"deltas.{i}"] for i in range(n))
    for index, delta in zip(indices, deltas, strict=True):
        if index.shape != delta.shape or (len(index) and not 0 <= int(index.min()) <= int(index.max()) < d_out * d_in):
            raise ValueError("indices do not fit the matrix")
    return SideMemories(
        indices,
        deltas,
        tensors["thresholds"],
        (d_out, d_in),
        tuple(tuple(map(str, names)) for names in settings["owners"]),
        _one_of(settings["mode"], MODES),
        _one_of(settings["merge"], MERGES),
        float(settings["density"]),
        int(settings["seed"]),
        _one_of(settings["positions"], POSITIONS),
        _one_of(settings["pool"], POOLS),
        tuple(tuple(tuple(map(int, ids)) for ids in shard) for shard in settings["prompts"]),
    )


_STORES: Mapping[str, Any] = {"grace": _read_codebook, "wise": _read_side_memories}


def _one_of(name: str, allowed: Any) -> str:
    if name not in allowed:
        raise ValueError(f"{name!r} is none of {', '.join(allowed)}")
    return name


# Details ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def read_inputs(model: Any, module: str, prompts: Sequence[Sequence[int]], rows_per_batch: int = 32) -> list[Tensor]:
    """What a module reads at each token of each prompt, (T, d_in); the pass ends there.

    An opening that all prompts share (a chat template's system message) is run once.
    """
    shared = _shared_opening(prompts) if len(prompts) > 1 and keeps_plain_cache(model) else 0
    opening, cache = None, None
    if shared:
        with trace(model, inputs=[module]) as seen, prompt_lengths([shared + 1]):  # not decided yet
            keep = {"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}
            ids = torch.tensor([list(prompts[0][:shared])], device=model.device)
            cache = model(input_ids=ids, use_cache=True, **keep).past_key_values
        opening = seen.inputs[module][0]
    found: list[Tensor] = []
    for start in range(0, len(prompts), rows_per_batch):
        part = [list(ids[shared:]) for ids in prompts[start : start + rows_per_batch]]
        ids, mask = pad(part, "right", model.device)
        options: dict[str, Any] = {"use_cache": False}
        if cache is not None:
            past = copy.deepcopy(cache)
            past.batch_repeat_interleave(len(part))
            mask = torch.cat([mask.new_ones(len(part), shared), mask], dim=1)
            options = {"past_key_values": past, "use_cache": True}
        places = positions(model, mask, last=ids.shape[1])
        lengths = prompt_lengths([len(row) + shared for row in part])
        with lengths, trace(model, inputs=[module], stop_after=module) as seen:
            model(input_ids=ids, attention_mask=mask, **places, **options)
        rows = [seen.inputs[module][i, : len(row)].clone() for i, row in enumerate(part)]
        found += rows if opening is None else [torch.cat([opening, row]) for row in rows]
    return found


def _shared_opening(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, leaving each at least one."""
    shortest = min(len(ids) for ids in prompts) - 1
    return next((i for i in range(shortest) if len({ids[i] for ids in prompts}) > 1), shortest)


def _module_of(model: nn.Module, name: str, shape: tuple[int, int]) -> nn.Module:
    try:
        module = model.get_submodule(name)
        weight: Tensor = module.weight  # type: ignore[assignment]
    except AttributeError as error:
        raise UserError(
            f"the edit is at {name}, which this model does not have", "give the model it was made on"
        ) from error
    stored = tuple(reversed(weight.shape)) if is_transposed(module) else tuple(weight.shape)
    if stored != shape:
        raise UserError(
            f"the edit's memory fits a module of {shape[0]}×{shape[1]}, and {name} is {stored[0]}×{stored[1]}",
            "give the model it was made on",
        )
    return module


def check_memory(n_bytes: int, device: torch.device, what: str) -> None:
    """Refuse what will not fit the device.

    Raises:
        UserError: more is needed than is free.
    """
    free = free_bytes(device)
    if free is not None and n_bytes > free:
        raise UserError(
            f"{what} need {n_bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free on {device}",
            "edit fewer items (--limit), merge them (--merge key), or use a larger device",
        )


def free_bytes(device: torch.device) -> int | None:
    """How much of a device's memory is free, or None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def without_info(edit: MemoryEdit, store: Codebook | SideMemories, notes: Mapping[str, Any]) -> MemoryEdit:
    """The same edit with another store and more notes."""
    info = replace(edit.info, notes={**edit.info.notes, **notes})
    return replace(edit, store=store, info=info)
