"""Where a search for a method's settings looks: the spaces that ship with the package, and how one is written.

A space is a table from settings to values: a list of choices, or `{low, high}` with `log: true` where steps should be
factors. A method of a user's own takes part with such a table in a study's `tune: spaces:`; one that names a method of
ours replaces single settings of its space.

Rates reach from OpenUnlearning's 1e-5, for models of 1B and more, to fifty times that, which is what narrow models
need; retain weights from 0.5 to 8, around the 1, 2 and 5 of the grid by which OpenUnlearning's methods were tuned for
Llama 3.2 1B. The rest of a method's own is a factor of about three below and above its authors' choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import as_text


@dataclass(frozen=True)
class Range:
    """Numbers from one to another.

    Attributes:
        low, high: both ends, which may be chosen.
        log: whether equal factors are equally likely, not equal steps.
        whole: whether whole numbers are chosen.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    @property
    def ends(self) -> tuple[str, str]:
        """Both ends as text."""
        return text_of(self.low, self.whole), text_of(self.high, self.whole)


Values = Range | tuple[str, ...]
Space = Mapping[str, Values]


def _times(value: float, factor: float = 3.0) -> Range:
    """A factor below and above a value."""
    return Range(value / factor, value * factor, log=True)


_RATE: dict[str, Values] = {"learning_rate": Range(1e-5, 5e-4, log=True)}
_TRAINED: dict[str, Values] = _RATE | {"epochs": ("5", "10", "20")}
_RETAINS: dict[str, Values] = _TRAINED | {"retain_weight": Range(0.5, 8.0, log=True)}
_TARGET: dict[str, Values] = {
    "target.clamp": Range(0.5, 8.0, log=True),
    "target.norm_weight": Range(1e-3, 1.0, log=True),
}
_BOUND: dict[str, Values] = {"bound": Range(2.0, 10.0)}  # nats: a uniform choice among 50,000 tokens has 10.8

SPACES: Mapping[str, Space] = {
    "gradient_ascent": _TRAINED | _BOUND,
    "gradient_difference": _RETAINS | _BOUND,
    "kl": _RETAINS | _BOUND,
    "idk": _RETAINS,
    "dpo": _RETAINS | {"beta": _times(0.1)},
    "npo": _RETAINS | {"beta": _times(0.1)},
    "simnpo": _RETAINS | {"beta": Range(1.5, 5.5), "forget_weight": _times(0.125)},
    "rmu": _RETAINS | {"steering": Range(1.0, 10.0, log=True), "variant": ("openunlearning", "wmdp")},
    "undial": _RETAINS | {"strength": _times(10.0)},
    "wga": _RETAINS | {"power": Range(0.1, 3.0, log=True)},
    "satimp": _TRAINED
    | {"retain_weight": Range(0.05, 2.0, log=True), "saturation": _times(5.0), "importance": _times(1.0)},
    "ceu": _RETAINS | {"variant": ("paper", "retain")},
    "altpo": _RETAINS | {"epochs": ("1", "2", "4"), "beta": _times(0.1)},
    "pdu": _TRAINED | {"bound": Range(0.1, 3.0, log=True), "dual_step": _times(5.0), "retain_weight": _times(30.0)},
    "unlikelihood": _RATE | {"forget_weight": Range(0.1, 5.0, log=True), "retain_weight": Range(0.5, 8.0, log=True)},
    "overwrite": {
        "learning_rate": Range(1e-4, 5e-3, log=True),
        "epochs": ("5", "10", "20"),
        "critical_fraction": Range(0.03, 0.3, log=True),
    },
    "ft_m": {"learning_rate": Range(5e-5, 5e-3, log=True), "stop_loss": Range(0.01, 0.5, log=True)},
    "memit": _TARGET | {"preservation": Range(0.1, 10.0, log=True)},
    "alphaedit": _TARGET
    | {"ridge": Range(0.1, 10.0, log=True), "null_space": ("energy:0.02", "energy:0.05", "energy:0.1")},
    "emmet": _TARGET | {"slack": Range(1e-6, 1e-2, log=True)},
    "unke": _TARGET | {"learning_rate": _times(2e-4), "steps": ("25", "50", "100")},
    "glame": _TARGET | {"start": Range(0.03, 0.5, log=True), "hops": ("1", "2", "3")},
    "rome": _TARGET | {"target.kl_weight": Range(0.02, 0.5, log=True)},
    "ultraedit": {"learning_rate": Range(5e-3, 0.2, log=True), "ridge": Range(0.1, 10.0, log=True)},
    "grace": {"epsilon": Range(0.1, 10.0, log=True), "steps": ("25", "50", "100")},
    "wise": {"mask": Range(0.05, 0.5), "act_ratio": Range(0.5, 0.95), "learning_rate": Range(0.03, 0.3, log=True)},
    "notes": {"gate": ("encoder", "self", "none"), "demonstrations": ("0", "1", "3"), "similarity": Range(0.5, 0.95)},
    "prefix": {"gate": ("encoder", "self"), "length": ("3", "5", "10"), "similarity": Range(0.5, 0.95)},
    "recipe": {"learning_rate": _times(0.05), "locality": Range(0.1, 3.0, log=True), "wrong": ("0", "0.25", "0.5")},
    "memoir": {"active": Range(0.05, 0.5, log=True), "learning_rate": Range(0.03, 0.3, log=True)},
}


def text_of(value: float, whole: bool = False) -> str:
    """A number of a space as a setting's text, with four digits: trials that differ by less are the same."""
    return str(round(value)) if whole else f"{value:.4g}"


def values_of(given: object, what: str) -> Values:
    """What a study file gives for one setting.

    Raises:
        UserError: it is neither a list of choices nor a range with two ends in their order.
    """
    if isinstance(given, list | tuple) and given:
        return tuple(map(as_text, given))
    if isinstance(given, Mapping) and {"low", "high"} <= given.keys() <= {"low", "high", "log"}:
        low, high, log = given["low"], given["high"], given.get("log", False)
        numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high))
        if numbers and low < high and isinstance(log, bool) and (low > 0 or not log):
            return Range(float(low), float(high), log, isinstance(low, int) and isinstance(high, int))
    raise UserError(f"{what} cannot be {given!r}", "give a list of choices, or {low: NUMBER, high: NUMBER, log: true}")


def space_of(editor: str, given: Mapping[str, Any]) -> Space:
    """The space of a method: the shipped one, with what a study gives over it.

    Raises:
        UserError: there is none.
    """
    found = {**SPACES.get(editor, {}), **{name: values_of(value, name) for name, value in given.items()}}
    if not found:
        raise UserError(
            f"nothing says where to look for settings of {editor}",
            f"give tune: spaces: {{{editor}: {{SETTING: [VALUES]}}}}, or leave it out of tune: editors",
        )
    return found


def samples_of(space: Space) -> list[dict[str, str]]:
    """Settings that between them have every choice and both ends of every range, to check that a method takes them."""
    options = {name: values.ends if isinstance(values, Range) else values for name, values in space.items()}
    longest = max(map(len, options.values()))
    return [{name: values[i % len(values)] for name, values in options.items()} for i in range(longest)]
