"""How much is chosen: so many MLPs, so many weights, or a share of them; the same for every method."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from unlearn_eval.localization.sites import MLP, Sites, Unit
from unlearn_eval.utils.errors import UserError

_TIMES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_MLPS_IN = 6  # one in so many: the paper's choices are 6 of 28 layers, 5 of 42 and 4 of 32


@dataclass(frozen=True)
class Budget:
    """A number of weights, and how it was said.

    Attributes:
        text: as it was said.
        n_weights: at most half a linear map more or less than this is chosen.
    """

    text: str
    n_weights: int


def budget_of(text: str, sites: Sites) -> Budget:
    """What a text stands for in one model.

    Args:
        text: `6` (the size of so many MLPs), `40M` or `1.2B` (weights), `10%` or `0.1` (of the linear maps in blocks).
        sites: of the model.

    Raises:
        UserError: it is none of these, or more than there is.
    """
    whole = sum(sites.parameters.values())
    mlps = [sites.size(Unit(MLP, layer)) for layer in range(sites.parts.n_layers)]
    n = n_weights_of(text, whole)
    if n is None:
        raise UserError(
            f"the budget '{text}' cannot be read", "give a number of MLPs (6), of weights (40M), or a share (10%)"
        )
    if text.strip().isdecimal():  # of MLPs
        n = sum(mlps[:n]) if n <= len(mlps) else whole + 1
    if not 0 < n <= whole:
        raise UserError(
            f"the budget '{text}' is nothing, or more than the model's {len(mlps)} MLPs and {whole:,} weights",
            "give a number of MLPs (6), of weights (40M), or a share (10%)",
        )
    return Budget(text.strip(), n)


def n_weights_of(text: str, whole: int) -> int | None:
    """How many weights of so many a number (`500`, `40M`) or a share (`10%`, `0.1`) says; None if it is neither."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|[kmb]?)", text.strip().lower())
    if found is None:
        return None
    number, unit = float(found[1]), found[2]
    if unit == "%" or (not unit and "." in found[1]):
        return round(whole * (number / 100 if unit == "%" else number))
    return round(number * _TIMES[unit])


def usual_budget(sites: Sites) -> Budget:
    """One MLP in six, as much as arXiv 2410.12949 chooses."""
    return budget_of(str(max(1, round(sites.parts.n_layers / _MLPS_IN))), sites)


def chosen(units: Sequence[Unit], sites: Sites, budget: Budget) -> list[str]:
    """The linear maps of the first units, as many as come nearest to the budget.

    Whole units as long as they fit; of the next one as many maps, in the model's order, as bring the number nearer.

    Raises:
        UserError: all units together fall short of the budget by more than half a map.
    """
    names = [name for unit in units for name in sites.maps[unit]]
    taken: list[str] = []
    left = budget.n_weights
    for name in names:
        size = sites.parameters[name]
        if abs(left - size) >= abs(left):
            break
        taken.append(name)
        left -= size
    smallest = min(sites.parameters[name] for name in names)
    if len(taken) == len(names) and left > smallest / 2:
        raise UserError(
            f"there are {len(units)} units to choose from, with {sum(sites.parameters[n] for n in names):,} weights, "
            f"and the budget '{budget.text}' is {budget.n_weights:,}",
            "give a smaller --budget (of path patching also a higher --set extraction_layer)",
        )
    return taken
