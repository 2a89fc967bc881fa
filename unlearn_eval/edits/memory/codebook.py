"""GRACE's memory at work: keys, values and radii (the editor is `editors/memory/grace.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from unlearn_eval.edits.memory.routing import NO_MEMORY, Memory
from unlearn_eval.edits.memory.store import POSITIONS, Positions, Route, best_bound, nobody, off, one_of
from unlearn_eval.edits.stored import Ids, MemorySettings


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
    bound = "radius"

    @property
    def n(self) -> int:
        """How many keys."""
        return len(self.keys)

    @property
    def bounds(self) -> Tensor:
        """The radii."""
        return self.radii

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

    def calibrated(
        self, names: Sequence[str], own: Sequence[Tensor], edited: Sequence[Tensor], other: Sequence[Tensor]
    ) -> Codebook:
        """One radius for all keys, but no ball reaches more than half way to a key with another target."""
        if not self.n:
            return self
        near = torch.tensor([route.value for route in self.routes(own)])
        far = torch.tensor([route.value for route in self.routes(other)])
        radius = best_bound(near, far)
        labels = [self.labels[int(i)] for i in self.value_of]
        radii = torch.full_like(self.radii, radius)
        for i, key in enumerate(self.keys):
            apart = torch.tensor([label != labels[i] for label in labels])
            if apart.any():
                half = float((self.keys[apart] - key).norm(dim=-1).min()) / 2
                radii[i] = min(radius, half)
        return replace(self, radii=radii)


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
    reduction = "sum"

    def __init__(self, keys: Tensor, values: Tensor, radii: Tensor, value_of: Tensor, positions: Positions) -> None:
        self.keys, self.values, self.radii, self.value_of = keys, values, radii, value_of
        self.before, self.after = positions.before, positions.after

    def gather(self, inputs: Tensor, prompt: Tensor, pooled: Tensor | None) -> Tensor | None:
        """Nothing: the last token says all."""
        return None

    def decide(self, ends: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor]:
        """The nearest key, if within its radius."""
        if not len(self.keys):
            return nobody(ends)
        nearest, distance = nearest_key(ends, self.keys)
        radii = self.radii[nearest]
        return torch.where(distance <= radii, nearest, NO_MEMORY), off(distance, radii)

    def change(self, inputs: Tensor, output: Tensor, choice: Tensor, columns: Tensor) -> Tensor:
        """The value in place of the output."""
        values = self.values[self.value_of[choice.clamp(min=0)]][:, None].to(output.dtype)
        return torch.where(columns[..., None], values, output)

    def change_each(self, inputs: Tensor, output: Tensor, choice: Tensor) -> Tensor:
        """The same token by token."""
        if not len(self.keys):
            return output.clone()
        values = self.values[self.value_of[choice.clamp(min=0)]].to(output.dtype)
        return torch.where((choice >= 0)[:, None], values, output)


class CodebookSettings(MemorySettings):
    """`memory.json` of GRACE."""

    mechanism: Literal["grace"]
    labels: list[Ids]


def layout(settings: Mapping[str, Any]) -> dict[str, str]:
    """The shapes of the tensors, as `check_layout` takes them."""
    return {"keys": "N d_in", "values": "M d_out", "radii": "N", "value_of": "whole: N"}


def read_codebook(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Codebook:
    """From `memory.json` and `memory.safetensors` (ValueError if they do not fit each other)."""
    book = Codebook(
        tensors["keys"],
        tensors["values"],
        tensors["radii"],
        tensors["value_of"].long(),
        tuple(tuple(map(int, ids)) for ids in settings["labels"]),
        tuple(tuple(map(str, names)) for names in settings["owners"]),
        one_of(settings["positions"], POSITIONS),
    )
    if len({len(book.keys), len(book.radii), len(book.value_of), len(book.owners)}) != 1:
        raise ValueError("keys, radii and owners are not equally many")
    if len(book.values) != len(book.labels) or (
        book.n and not 0 <= int(book.value_of.min()) <= int(book.value_of.max()) < len(book.values)
    ):
        raise ValueError("values, labels and keys do not fit each other")
    return book
