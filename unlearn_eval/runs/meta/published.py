"""What was published of metrics' worth, and the statements that a meta-evaluation confirms or refutes.

Source: UDS (arXiv 2605.24614), its file docs/data/meta_eval.json: 30 + 30 models of the pools and 150 unlearned ones,
of Llama 3.2 1B on TOFU's forget10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unlearn_eval.metrics.meta_evaluation import Estimate, Worth

SOURCE = "UDS, arXiv 2605.24614 (symmetric forms; Llama 3.2 1B, TOFU forget10)"
_FIGURES = {
    "forget_extraction_strength": (0.891, 0.970, 0.770, 0.859),
    "forget_exact_memorization": (0.817, 0.984, 0.605, 0.750),
    "forget_probability": (0.816, 0.924, 0.642, 0.757),
    "forget_paraphrase_probability": (0.707, 0.853, 0.899, 0.875),
    "forget_truth_ratio": (0.947, 0.996, 0.234, 0.379),
    "forget_rouge": (0.722, 0.934, 0.203, 0.333),
    "forget_paraphrase_rouge": (0.832, 0.951, 0.064, 0.119),
    "forget_primed_rouge": (0.757, 0.971, 0.183, 0.308),
    "mia_loss_auc": (0.902, 0.935, 0.519, 0.668),
    "mia_zlib_auc": (0.867, 0.938, 0.487, 0.642),
    "mia_min_k_auc": (0.907, 0.923, 0.532, 0.675),
    "mia_min_k_plus_plus_auc": (0.816, 0.883, 0.431, 0.579),
    "forget_uds": (0.971, 0.968, 0.900, 0.933),
    "forget_logit_lens_depth": (0.927, 0.959, 0.812, 0.879),
}  # metric -> faithfulness, Q, R, robustness
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    name: dict(zip(("faithfulness", "quantization", "relearning", "robustness"), own, strict=True))
    for name, own in _FIGURES.items()
}
_OUTPUTS = tuple(name for name in _FIGURES if name not in ("forget_uds", "forget_logit_lens_depth"))
FAITHFUL, FAILS = 0.8, 0.5  # what the statements call faithful, and failing; both divide the published figures


Direction = Callable[[Mapping[str, Worth]], dict[str, Any]]


def _find(worths: Mapping[str, Worth], metric: str) -> Worth | None:
    return next((own for name, own in worths.items() if name.partition("/")[2] == metric), None)


def _side(own: Estimate, bound: float, above: bool) -> str:
    """Whether a whole interval is on the side that is claimed."""
    if own.value is None or own.low is None or own.high is None:
        return "not measured"
    if own.low > bound or own.high < bound:
        return "confirmed" if (own.low > bound) == above else "refuted"
    return "undecided"


def _bounded(text: str, metric: str, part: str, bound: float, above: bool) -> Direction:
    def check(worths: Mapping[str, Worth]) -> dict[str, Any]:
        own = _find(worths, metric)
        estimate = Estimate(None, reason="not measured") if own is None else getattr(own, part)
        return {
            "statement": text,
            "verdict": _side(estimate, bound, above),
            "ours": estimate._asdict(),
            "published": PUBLISHED[metric][part],
        }

    return check


def _best(text: str, metric: str, among: Sequence[str]) -> Direction:
    """Whether a metric's trust is the largest of several: decided where its interval and the next one's are apart."""

    def check(worths: Mapping[str, Worth]) -> dict[str, Any]:
        found = {name: own.trust for name in among if (own := _find(worths, name)) and own.trust.value is not None}
        mine = found.pop(metric, Estimate(None, reason="not measured"))
        rival = max(found, key=lambda name: found[name].value or 0.0, default=None)
        verdict = "not measured"
        if mine.value is not None and rival is not None:
            other = found[rival]
            apart = None not in (mine.low, mine.high, other.low, other.high) and (
                mine.low > other.high or mine.high < other.low  # type: ignore[operator]
            )
            verdict = "undecided" if not apart else "confirmed" if mine.value > (other.value or 0) else "refuted"
        return {
            "statement": text,
            "verdict": verdict,
            "ours": mine._asdict(),
            "published": PUBLISHED[metric]["robustness"],
            "next": None if rival is None else {"metric": rival, **found[rival]._asdict()},
        }

    return check


DIRECTIONS: tuple[Direction, ...] = (
    _bounded("the truth ratio is faithful", "forget_truth_ratio", "faithfulness", FAITHFUL, True),
    _bounded("the truth ratio is not robust to relearning", "forget_truth_ratio", "relearning", FAILS, False),
    _bounded("ROUGE fails relearning", "forget_rouge", "relearning", FAILS, False),
    _bounded("extraction strength is faithful", "forget_extraction_strength", "faithfulness", FAITHFUL, True),
    _bounded("extraction strength is robust to relearning", "forget_extraction_strength", "relearning", FAILS, True),
    _best("extraction strength is the best of the output metrics", "forget_extraction_strength", _OUTPUTS),
    _bounded("depth by the logit lens is faithful", "forget_logit_lens_depth", "faithfulness", FAITHFUL, True),
    _bounded("depth by the logit lens is robust to relearning", "forget_logit_lens_depth", "relearning", FAILS, True),
    _bounded("UDS is faithful", "forget_uds", "faithfulness", FAITHFUL, True),
    _bounded("UDS is robust to relearning", "forget_uds", "relearning", FAILS, True),
)
