"""What came of each method, in one sentence that is made from its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unlearn_eval.metrics.catalogue import plain

PARAPHRASE = "_paraphrase_"
_SURE = 0.05
_MUCH_GIBBERISH = 0.1


@dataclass(frozen=True)
class Number:
    """A metric of one method.

    Attributes:
        value: the metric, over seeds their mean.
        n: items that it rests on.
        higher: whether higher is better; None if neither is.
        before: the same of the unedited model, or None.
        p: p-value of the change, or None.
    """

    value: float
    n: int = 0
    higher: bool | None = None
    before: float | None = None
    p: float | None = None

    @property
    def verdict(self) -> str:
        """`better` or `worse` for a change with p < 0.05, else the empty text."""
        if self.before is None or self.p is None or self.p >= _SURE or self.higher is None or self.value == self.before:
            return ""
        return "better" if (self.value > self.before) == self.higher else "worse"


def outcome(
    number: Callable[[str], Number | None], forgets: Sequence[str], keeps: Sequence[str], fault: str = ""
) -> str:
    """The sentence, without its subject: "forgets, also paraphrased, without a measurable loss: ...".

    Args:
        number: a metric's number, or None where it has none.
        forgets, keeps: the metrics of forgetting and of keeping that stand in the leaderboard.
        fault: why the edit is not to be read as a result, or "".
    """
    if fault:
        return f"is no result of its method: {fault}."
    known = {name: own for name in (*forgets, *keeps) if (own := number(name)) is not None}
    direct = next((n for n in forgets if n in known and PARAPHRASE not in n and not _declines(n)), None)
    reworded = next((n for n in forgets if n in known and PARAPHRASE in n and not _declines(n)), None)
    kept = [name for name in keeps if name in known and not _declines(name)][:2]
    if direct is None and reworded is None and not kept:
        return "has no numbers of this task."
    verdicts = [_forgetting(known.get(direct or ""), known.get(reworded or "")), _keeping([known[n] for n in kept])]
    parts = [_amount(name, known[name], name == reworded and direct is not None) for name in (direct, reworded) if name]
    refuses = next((n for n in forgets if n in known and plain(n)[2] == "refuses"), None)
    parts += [_amount(refuses, known[refuses])] if refuses else []
    gibberish = number("forget_gibberish_rate")
    if gibberish is not None and gibberish.value >= _MUCH_GIBBERISH:
        parts.append(_amount("forget_gibberish_rate", gibberish))
    parts += [_amount(name, known[name]) for name in kept]
    parts = [part.replace(" before)", ")") if i else part for i, part in enumerate(parts)]
    said = ", ".join(verdict for verdict in verdicts if verdict)
    return f"{said}: {'; '.join(parts)}." if said else f"{'; '.join(parts)}."


def _forgetting(direct: Number | None, reworded: Number | None) -> str:
    known = [own for own in (direct, reworded) if own is not None]
    if not known or all(own.p is None for own in known):
        return ""
    forgot = [own.verdict == "better" for own in known]
    if len(known) == 1:
        return "forgets" if forgot[0] else "does not measurably forget"
    if all(forgot):
        return "forgets, also paraphrased"
    if forgot[0]:
        return "forgets the exact wording only"
    return "forgets paraphrases only" if forgot[1] else "does not measurably forget"


def _keeping(kept: Sequence[Number]) -> str:
    if not kept or all(own.p is None for own in kept):
        return ""
    return "with a loss" if any(own.verdict == "worse" for own in kept) else "without a measurable loss"


def _declines(name: str) -> bool:
    return "refus" in name


def _amount(name: str, own: Number, again: bool = False) -> str:
    """`right answers 0 of 20 (20 before)`; the number itself of what is no share of items."""
    _, of, words = plain(name)
    words = words.rpartition(", ")[2] if again and ", " in words else words
    values = [value for value in (own.value, own.before) if value is not None]
    as_counts = all(_is_share_of_items(value, own.n) for value in values)
    shown = [f"{round(value * own.n)}" if as_counts else _number(value) for value in values]
    text = f"{shown[0]} of {own.n}" if as_counts else shown[0]
    before = f" ({shown[1]} before)" if len(shown) > 1 else ""
    return f"{of + ' ' if of else ''}{words} {text}{before}"


def _is_share_of_items(value: float, n: int) -> bool:
    return n > 0 and 0 <= value <= 1 and abs(value * n - round(value * n)) < 1e-6


def _number(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 0.01 else f"{value:.2f}"
