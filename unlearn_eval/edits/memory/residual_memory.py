"""MEMOIR's memory at work: one matrix beside the projection's, and masks of its columns (`editors/memory/memoir`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from unlearn_eval.edits.memory.routing import NO_MEMORY, Memory
from unlearn_eval.edits.memory.store import POSITIONS, Positions, Route, best_bound, nobody, off, one_of
from unlearn_eval.edits.stored import Ids, MemorySettings

POOLS = ("mean", "last")


@dataclass(frozen=True)
class TopHash:
    """Which columns of the memory belong to a prompt: those of its largest features, scattered by a permutation.

    Attributes:
        k: how many columns.
        permutation: (d_in,) π: the feature j stands for the column π(j).
        background: (d_in,) the mean features of other prompts, subtracted first.
    """

    k: int
    permutation: Tensor
    background: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """(R, d_in) the masks of prompts with these features (R, d_in), each with k columns set."""
        largest = (features.to(self.background) - self.background).abs().topk(self.k, dim=-1).indices
        empty = torch.zeros(features.shape, dtype=torch.bool, device=features.device)
        return empty.scatter(-1, self.permutation[largest], torch.ones_like(largest, dtype=torch.bool))

    def to(self, device: torch.device, dtype: torch.dtype) -> TopHash:
        """The same on a device."""
        return TopHash(self.k, self.permutation.to(device), self.background.to(device, dtype))


@dataclass(frozen=True)
class ResidualMemory:
    """MEMOIR's memory W_m: a prompt whose mask overlaps an edit's by the threshold or more gets W_m (M ⊙ a) added.

    M is the mask of the edit that overlaps most, not the prompt's own; a is the module's input.

    Attributes:
        weight: (d_out, d_in) W_m.
        masks: (N, d_in) the columns of each edit.
        permutation, background: (d_in,), of `TopHash`.
        threshold: (1,) which share of an edit's columns a prompt must have.
        labels: the target ids of each edit.
        owners: the requests of each edit.
        positions: a name of `POSITIONS`.
        pool: whether a prompt's features are the `mean` over its tokens or those of the `last` one.
    """

    weight: Tensor
    masks: Tensor
    permutation: Tensor
    background: Tensor
    threshold: Tensor
    labels: tuple[tuple[int, ...], ...]
    owners: tuple[tuple[str, ...], ...]
    positions: str = "onward"
    pool: str = "last"
    mechanism = "memoir"
    bound = "threshold"

    @property
    def n(self) -> int:
        """How many edits have a mask."""
        return len(self.masks)

    @property
    def bounds(self) -> Tensor:
        """The threshold, if there is anything to answer."""
        return self.threshold[: self.n]

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def top_hash(self) -> TopHash:
        """How prompts get their masks."""
        k = int(self.masks[0].sum()) if self.n else 1
        return TopHash(k, self.permutation, self.background)

    def tensors(self) -> dict[str, Tensor]:
        """The matrix, the masks (eight columns to a byte), and what fingerprints need."""
        return {
            "weight": self.weight,
            "masks": packed(self.masks),
            "permutation": self.permutation.int(),
            "background": self.background,
            "threshold": self.threshold,
        }

    def settings(self) -> dict[str, Any]:
        """Labels, owners, positions, pool."""
        return {
            "positions": self.positions,
            "pool": self.pool,
            "labels": [list(ids) for ids in self.labels],
            "owners": [list(ids) for ids in self.owners],
        }

    def at(self, device: torch.device, dtype: torch.dtype) -> Memory:
        """The memory at work. Features are compared in float32 or wider, whatever the model computes in."""
        wide = torch.promote_types(dtype, torch.float32)
        return _ResidualMemoryAtWork(
            self.weight.to(device, dtype),
            self.masks.to(device, dtype),
            self.top_hash.to(device, wide),
            float(self.threshold),
            POSITIONS[self.positions],
            self.pool,
        )

    def n_bytes(self, dtype: torch.dtype) -> int:
        """Of the matrix and the masks."""
        return (self.weight.numel() + self.masks.numel()) * dtype.itemsize

    def overlaps(self, prompts: Sequence[Tensor]) -> Tensor:
        """(P, N) the share of each edit's columns that each prompt has, given as the module's inputs (T, d_in)."""
        if not prompts or not self.n:
            return torch.zeros(len(prompts), self.n)
        wide = torch.promote_types(prompts[0].dtype, torch.float32)
        features = torch.stack([pooled(inputs.to(wide), self.pool) for inputs in prompts])
        return overlap(self.top_hash.to(features.device, wide)(features), self.masks.to(features.device, wide))

    def routes(self, prompts: Sequence[Tensor]) -> list[Route]:
        """By the features of each prompt."""
        if not self.n:
            return [Route(None, (), "overlap", None, None, False) for _ in prompts]
        threshold = float(self.threshold)
        shares, edits = self.overlaps(prompts).max(-1)
        return [
            Route(i, self.owners[i], "overlap", share, threshold, share >= threshold)
            for share, i in zip(shares.tolist(), edits.tolist(), strict=True)
        ]

    def rows(self) -> list[dict[str, Any]]:
        """Owners, threshold, numbers in the edit's columns."""
        return [
            {
                "memory": i,
                "owners": list(owners),
                "threshold": float(self.threshold),
                "numbers": int(self.masks[i].sum()) * self.shape[0],
            }
            for i, owners in enumerate(self.owners)
        ]

    def calibrated(
        self, names: Sequence[str], own: Sequence[Tensor], edited: Sequence[Tensor], other: Sequence[Tensor]
    ) -> ResidualMemory:
        """One threshold for all edits, never above what an edited prompt has in common with its own mask."""
        if not self.n:
            return self
        near, far = self.overlaps(own).amax(-1), self.overlaps(other).amax(-1)
        bound = -best_bound(-near, -far)  # here what is above it answers
        bound = min(bound, float(self.overlaps(edited).amax(-1).min()))
        return replace(self, threshold=torch.full_like(self.threshold, bound))


def overlap(own: Tensor, masks: Tensor) -> Tensor:
    """(R, N) which share of each mask (N, d_in), of equally many columns, is in each of `own` (R, d_in)."""
    return own.to(masks) @ masks.T / masks.sum(-1).clamp(min=1)


def pooled(inputs: Tensor, pool: str) -> Tensor:
    """The features (d_in,) of a prompt (T, d_in)."""
    return inputs[-1] if pool == "last" else inputs.mean(0)


class _ResidualMemoryAtWork:
    reduction = "sum"

    def __init__(
        self, weight: Tensor, masks: Tensor, top_hash: TopHash, threshold: float, positions: Positions, pool: str
    ) -> None:
        self.weight, self.masks, self.top_hash, self.threshold, self.pool = weight, masks, top_hash, threshold, pool
        self.before, self.after = positions.before, positions.after

    def gather(self, inputs: Tensor, prompt: Tensor, pooled: Tensor | None) -> Tensor | None:
        """(B, d_in + 1) the sum over the prompts' tokens of what the module reads, and the number of tokens."""
        if self.pool == "last":
            return None
        wide = self.top_hash.background.dtype
        sums = (inputs.to(wide) * prompt[..., None]).sum(1)
        now = torch.cat([sums, prompt.sum(-1, keepdim=True).to(wide)], dim=-1)
        return now if pooled is None else pooled + now

    def decide(self, ends: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor]:
        """The edit with the largest overlap, if that reaches the threshold."""
        if not len(self.masks):
            return nobody(ends)
        features = ends if pooled is None else pooled[:, :-1] / pooled[:, -1:]
        wide = self.top_hash.background.dtype
        share, edit = overlap(self.top_hash(features), self.masks.to(wide)).max(-1)
        return torch.where(share >= self.threshold, edit, NO_MEMORY), off(share, self.threshold)

    def change(self, inputs: Tensor, output: Tensor, choice: Tensor, columns: Tensor) -> Tensor:
        """W_m (M ⊙ a) added to the output."""
        rows = (choice >= 0).nonzero()[:, 0]
        more = ((inputs[rows] * self.masks[choice[rows]][:, None]) @ self.weight.T).to(output.dtype)
        moved = output.clone()
        moved[rows] = torch.where(columns[rows][..., None], output[rows] + more, output[rows])
        return moved

    def change_each(self, inputs: Tensor, output: Tensor, choice: Tensor) -> Tensor:
        """The same token by token."""
        if not len(self.masks):
            return output.clone()
        more = ((inputs * self.masks[choice.clamp(min=0)]) @ self.weight.T).to(output.dtype)
        return torch.where((choice >= 0)[:, None], output + more, output)


def packed(masks: Tensor) -> Tensor:
    """(N, ⌈d/8⌉) bytes of masks (N, d): column 8i + j is bit j of byte i."""
    n, d = masks.shape
    wide = torch.zeros(n, -(-d // 8) * 8, dtype=torch.uint8)
    wide[:, :d] = masks
    return (wide.view(n, -1, 8) << torch.arange(8, dtype=torch.uint8)).sum(-1).to(torch.uint8)


def unpacked(found: Tensor, d: int) -> Tensor:
    """The masks (N, d) in these bytes."""
    bits = (found[..., None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.reshape(len(found), -1)[:, :d].bool()


class ResidualMemorySettings(MemorySettings):
    """`memory.json` of MEMOIR."""

    mechanism: Literal["memoir"]
    labels: list[Ids]
    pool: Literal["mean", "last"]


def layout(settings: Mapping[str, Any]) -> dict[str, str]:
    """The shapes of the tensors, as `check_layout` takes them."""
    own = {"weight": "d_out d_in", "masks": "bytes: N d_in/8", "permutation": "whole: d_in"}
    return own | {"background": "d_in", "threshold": "1"}


def read_residual_memory(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ResidualMemory:
    """From `memory.json` and `memory.safetensors` (ValueError if they do not fit each other)."""
    weight, permutation = tensors["weight"], tensors["permutation"].long()
    d_in = weight.shape[1]
    if sorted(permutation.tolist()) != list(range(d_in)) or tensors["background"].shape != (d_in,):
        raise ValueError("the permutation or the background does not fit the matrix")
    if tensors["masks"].shape[1] != -(-d_in // 8):
        raise ValueError("the masks do not fit the matrix")
    memory = ResidualMemory(
        weight,
        unpacked(tensors["masks"], d_in),
        permutation,
        tensors["background"],
        tensors["threshold"].reshape(1),
        tuple(tuple(map(int, ids)) for ids in settings["labels"]),
        tuple(tuple(map(str, names)) for names in settings["owners"]),
        one_of(settings["positions"], POSITIONS),
        one_of(settings["pool"], POOLS),
    )
    if not len(memory.masks) == len(memory.labels) == len(memory.owners):
        raise ValueError("masks, labels and owners are not equally many")
    if len(set(memory.masks.sum(-1).tolist())) > 1:
        raise ValueError("the masks differ in size")
    return memory
