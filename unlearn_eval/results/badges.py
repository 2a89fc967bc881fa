"""What each metric was measured to be worth, for the place beside its name.

The numbers are those of a meta-evaluation: the file that `UNLEARN_EVAL_META` names, or what is shipped in
`report/trust.json`, which `scripts/make_reference.py` takes from `results/meta.json`. Without either no metric has a
badge: a worth that was not measured is not shown.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import parse, read_text

META, TRUST = "meta_evaluation", "trust"  # kinds of file: what `unlearn-eval meta` writes, and what is shipped of it
VARIABLE = "UNLEARN_EVAL_META"
SHIPPED = Path(__file__).parent / "report" / "trust.json"
_HINT = "give the meta.json that `unlearn-eval meta` writes"


@dataclass(frozen=True)
class Badge:
    """What a metric is worth; numbers from 0 to 1, None where they are undefined.

    Attributes:
        faithfulness, robustness, trust: As in `metrics.meta_evaluation.Worth`.
        supports: The claims that a low value supports.
        broken: The rules on controls that the metric breaks.
    """

    faithfulness: float | None
    robustness: float | None
    trust: float | None
    supports: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """In a few letters: `F .95 R .77`, with `!` where a control is broken."""
        shown = [
            f"{letter} {'–' if value is None else f'{value:.2f}'.removeprefix('0')}"
            for letter, value in (("F", self.faithfulness), ("R", self.robustness))
        ]
        return " ".join([*shown, *(["!"] if self.broken else [])])

    @property
    def words(self) -> str:
        """In a sentence."""
        supports = f" A low value supports: {', '.join(self.supports)}." if self.supports else ""
        broken = f" It breaks: {'; '.join(self.broken)}." if self.broken else ""
        return f"{self.text} (faithfulness, robustness).{supports}{broken}"


def badges(path: str | Path | None = None) -> Mapping[str, Badge]:
    """Metric -> its badge; empty if no meta-evaluation is there.

    Args:
        path: A meta.json; None is the one that the environment names, else the shipped one.

    Raises:
        UserError: The file that is named cannot be read, or is another one.
    """
    named = path or os.environ.get(VARIABLE)
    place = Path(named).expanduser() if named else SHIPPED
    if not named and not place.is_file():
        return {}
    text = read_text(place, "meta-evaluation")
    return _badges(text, str(place))


@cache
def _badges(text: str, place: str) -> Mapping[str, Badge]:
    content = parse(text, Path(place), _HINT)
    if not isinstance(content, dict) or content.get("kind") not in (META, TRUST):
        raise UserError(f"{place} is no meta-evaluation", _HINT)
    found = content["metrics"] if content["kind"] == TRUST else compact(content)["metrics"]
    return {
        name: Badge(
            entry["faithfulness"],
            entry["robustness"],
            entry["trust"],
            tuple(entry["supports"]),
            tuple(entry["broken"]),
        )
        for name, entry in found.items()
    }


def compact(content: Mapping[str, Any]) -> dict[str, Any]:
    """Of a meta-evaluation what badges need, as it is shipped."""
    return {
        "kind": TRUST,
        "created": content["created"],
        "n": content["n"],
        "metrics": {
            own["metric"]: {
                **{key: own[key]["value"] for key in ("faithfulness", "robustness", "trust")},
                "supports": list(own["supports"]),
                "broken": list(own["broken"]),
            }
            for own in content["metrics"]
        },
    }


def by_trust(names: Sequence[str], known: Mapping[str, Badge] | None = None) -> list[str]:
    """The names with the most trusted first; those without a badge keep their order, behind them."""
    known = badges() if known is None else known

    def order(name: str) -> tuple[bool, float]:
        badge = known.get(name)
        return badge is None or badge.trust is None, -(badge.trust or 0.0) if badge else 0.0

    return sorted(names, key=order)


def untrusted(names: Sequence[str], least: float, known: Mapping[str, Badge]) -> list[str]:
    """Why metrics may not be relied on: a sentence for each whose trust is unknown or below a bound."""
    found = []
    for name in names:
        badge = known.get(name)
        if badge is None or badge.trust is None:
            found.append(f"{name}: its worth was not measured")
        elif badge.trust < least:
            found.append(f"{name}: its trust is {badge.trust:.2f}, below {least:g} ({badge.text})")
    return found
