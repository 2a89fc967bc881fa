r"""Several sparse changes of one matrix as one: TIES, DARE, linear and spherical averages.

A change is (indices, values): coordinate `indices[i]` of the flat matrix is changed by `values[i]`, every other one by
0. With n changes τ_1 ... τ_n, coordinate by coordinate:

*   `linear`: (1/n) Σ τ_i. Where shards do not overlap every edit shrinks to 1/n of its size.
*   `ties` (2306.01708): each τ_i keeps its `density` largest values by magnitude; a coordinate's sign is that of the
    sum of what is left; the result is the mean of those that agree with it and are not 0.
*   `dare` (2311.03099): each τ_i keeps each of its values with probability `density` and is divided by it; then the
    agreeing ones are averaged as in TIES. `dare_linear` adds them up and divides by n instead.
*   `slerp`: spherical interpolation between the first two; more are added one by one with weight 1/i, so that all count
    the same.

WISE's authors' code (zjunlp/EasyEdit@14cea824) merges with TIES at density .53 of the whole matrix's coordinates, and
its `linear` and `slerp` take only the first memory; here they take all, and the density is that of each change.

peft's `merge_utils` gives the same votes and means (tested), and is not used for three reasons. It rounds the number of
values that are kept down, where edits on disk were merged with the nearest; it drops values by PyTorch's global random
state alone; and its import takes 7 CPU-seconds and 260 MB more than PyTorch's, in every process that applies an edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from unlearn_eval.utils.errors import UserError, unknown_name

MERGES = ("ties", "dare", "dare_linear", "linear", "slerp")
Change = tuple[Tensor, Tensor]


def merged(changes: Sequence[Change], how: str = "ties", density: float = 0.53, seed: int = 0) -> Change:
    """One change in place of several.

    Args:
        changes: (indices, values) of each; an index stands at most once in one of them.
        how: one of `MERGES`.
        density: the share of each change's values that is kept (`ties`, `dare`, `dare_linear`).
        seed: of what `dare` drops.

    Raises:
        UserError: an unknown way, or a density that is not between 0 and 1.
    """
    if how not in MERGES:
        raise unknown_name("merge", how, MERGES)
    if not 0 < density <= 1:
        raise UserError(f"the merge's density cannot be {density}", "give a share above 0 and up to 1")
    if not changes:
        empty = torch.zeros(0)
        return empty.long(), empty
    union = torch.cat([index.long() for index, _ in changes]).unique()  # type: ignore[no-untyped-call]  # sorted
    values = [value for _, value in changes]
    if how == "ties":
        values = [_largest(value, density) for value in values]
    elif how.startswith("dare"):
        generator = torch.Generator().manual_seed(seed)
        values = [_dropped(value, density, generator) for value in values]
    table = torch.zeros(len(changes), len(union), dtype=reduce(torch.promote_types, (own.dtype for own in values)))
    for row, (index, _), value in zip(table, changes, values, strict=True):
        row[torch.searchsorted(union, index.long())] = value.to(table)
    return union, _combined(table, how)


def _combined(table: Tensor, how: str) -> Tensor:
    """(n, m) values of n changes as one (m,)."""
    if how in ("linear", "dare_linear"):
        return table.mean(0)
    if how == "slerp":
        whole = table[0]
        for i in range(1, len(table)):
            whole = slerp(whole, table[i], 1 / (i + 1))
        return whole
    sign = torch.where(table.sum(0) >= 0, 1.0, -1.0).to(table)
    agree = (table.sign() == sign) & (table != 0)
    return (table * agree).sum(0) / agree.sum(0).clamp(min=1)


def slerp(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """The point between two vectors on the arc that joins them; on the straight line if they are parallel."""
    norms = first.norm(), second.norm()
    if not norms[0] or not norms[1]:
        return (1 - weight) * first + weight * second
    cosine = ((first / norms[0]) @ (second / norms[1])).clamp(-1, 1)
    if float(cosine.abs()) > 0.9995:
        return (1 - weight) * first + weight * second
    angle = torch.arccos(cosine)
    left, right = torch.sin((1 - weight) * angle), torch.sin(weight * angle)
    return (left * first + right * second) / torch.sin(angle)


def _largest(values: Tensor, density: float) -> Tensor:
    """The `density` largest values by magnitude, and 0 for the others; equal ones by their order."""
    keep = round(density * len(values))
    order = values.abs().argsort(descending=True, stable=True)
    kept = torch.zeros_like(values)
    kept[order[:keep]] = values[order[:keep]]
    return kept


def _dropped(values: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Each value divided by `density` with that probability, and else 0."""
    kept = torch.rand(len(values), generator=generator).to(values.device) < density
    return torch.where(kept, values / density, 0.0)
