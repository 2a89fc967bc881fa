r"""Does a metric mean what it says? Arithmetic on a metric's values for models of which the truth is known.

    faithfulness      area under the ROC curve of models that know (P) against models that never knew (N)
    relearning        published: R = min((ret_a - ret_b) / (unl_a - unl_b), 1)
                      symmetric: R = 1 - |D_unl - D_ret| / (|D_unl| + |D_ret|), D = after - before
    quantization      published: Q = min(unl_b / unl_a, 1);  symmetric: Q = 1 - |a - b| / (|a| + |b|)
    robustness        harmonic mean of R and Q;  trust: harmonic mean of faithfulness and robustness

All values are turned so that more means more knowledge; b is before and a after the change of the model.

Source: OpenUnlearning (arXiv 2506.12618) for the pools and the published forms, UDS (arXiv 2605.24614) for the
symmetric ones. Differs from both in intervals, which draw models with replacement, and in null, with the reason, where
a denominator is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from unlearn_eval.metrics.arrays import FloatArray
from unlearn_eval.metrics.catalogue import meaning
from unlearn_eval.metrics.intervals import percentile_interval
from unlearn_eval.metrics.robustness import Score, symmetric_quantization, symmetric_relearning
from unlearn_eval.metrics.utility import harmonic_mean

RESAMPLES = 1000
LEAST_UTILITY = 0.8  # of the model before unlearning's; models below it have lost more than they were asked to
TRUSTED = 0.8  # what `check --trust` and headlines ask for by default; chosen before anything was measured
FORGOTTEN, HIDDEN, ASKED = "forgotten", "hidden", "not asked rightly"
_Z = 1.959963984540054
_TINY = 1e-9  # below which a change is rounding

Values = Mapping[str, float | None]  # model -> a metric's value, more for more knowledge


class Estimate(NamedTuple):
    """A number with its 95 % interval over models; None with the reason."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class Pair:
    """An unlearned model, or the retain-only one, by one metric.

    Attributes:
        method: By which it was made.
        before: The metric's value.
        relearned, quantized: Its values after the two changes.
    """

    method: str
    before: float | None
    relearned: float | None
    quantized: float | None


@dataclass(frozen=True)
class Worth:
    """What a metric is worth.

    Attributes:
        faithfulness, relearning, quantization, robustness, trust: The symmetric, bounded forms.
        published_relearning, published_quantization: The published forms.
        by_recipe: How the models that know were taught -> faithfulness of these against all that never knew.
        n_left_out: Unlearned models that do not count, as the metric does not call them unlearned.
        supports: The claims that a low value supports.
    """

    faithfulness: Estimate
    relearning: Estimate
    quantization: Estimate
    robustness: Estimate
    trust: Estimate
    published_relearning: Estimate
    published_quantization: Estimate
    by_recipe: Mapping[str, float | None] = field(default_factory=dict)
    n_left_out: int = 0
    supports: tuple[str, ...] = ()


# Orientation -----------------------------------------------------------------------------------------------


def is_of_forgetting(metric: str) -> bool:
    """Whether a metric is of what was to be forgotten, under no attack: those take part."""
    return metric.startswith(("forget_", "mia_")) or metric == "privleak"


def as_knowledge(metric: str, value: float | None, higher_is_better: bool | None) -> float | None:
    """A metric's value turned so that more means more knowledge.

    On the forget set the worse end is the one that knows: of shares from 0 to 1 in which more is better 1 minus the
    value, of other numbers their negative. An AUC of membership inference is 1 for members; PrivLeak falls meanwhile.
    """
    if value is None:
        return None
    if metric == "privleak":
        return -value
    if higher_is_better is not True:
        return value
    return 1 - value if meaning(metric).bounds == (0.0, 1.0) else -value


# Single numbers --------------------------------------------------------------------------------------------


def area(knows: Sequence[float] | FloatArray, never: Sequence[float] | FloatArray) -> float:
    """The share of pairs in which the model that knows has the larger value; ties count half."""
    one, other = np.asarray(knows, float)[:, None], np.asarray(never, float)[None, :]
    return float(((one > other) + 0.5 * (one == other)).mean())


def published_relearning(unlearned: tuple[float, float], retained: tuple[float, float]) -> Score:
    """min((ret_a - ret_b) / (unl_a - unl_b), 1) of (before, after); below 1 where the unlearned model learns faster."""
    rise = unlearned[1] - unlearned[0]
    if rise <= _TINY:
        return Score(None, "the unlearned model's value does not rise")
    return Score(min((retained[1] - retained[0]) / rise, 1.0))


def published_quantization(before: float, after: float) -> Score:
    """min(before / after, 1): below 1 where quantization brings knowledge back."""
    if min(before, after) < 0:
        return Score(None, "a ratio of values below 0 says nothing")
    if after <= before:
        return Score(1.0)
    return Score(before / after)


def gap(unlearned: float, before: float, reference: float, least: float = 0.05) -> tuple[Score, float]:
    """How far an unlearned model is from one that never knew: (1 - |u - r| / |b - r|, and u - r with its sign).

    1 is a model that never knew, 0 one as far from it as before unlearning. A negative sign is over-forgetting where
    the metric is larger for more knowledge. The first number is not clipped at 0.

    Args:
        unlearned, before, reference: The metric of the three models.
        least: Below this distance between the last two there was nothing to forget.
    """
    signed = unlearned - reference
    if abs(before - reference) < least:
        return Score(None, f"before unlearning it was within {least:g} of a model that never knew"), signed
    return Score(1 - abs(signed) / abs(before - reference)), signed


def threshold(knows: Sequence[float], never: Sequence[float]) -> float:
    """The cut that tells the pools apart best, midway between two values: at most this is called unlearned.

    Of several that are as good it is the lowest.
    """
    values = sorted({*knows, *never})
    cuts = [(low + high) / 2 for low, high in pairwise(values)] or values
    shares = [np.mean(np.asarray(knows) > cut) + np.mean(np.asarray(never) <= cut) for cut in cuts]
    return cuts[int(np.argmax(shares))]


def area_interval(value: float, n_knows: int, n_never: int) -> tuple[float, float]:
    """The 95 % score interval of an area with Hanley and McNeil's variance; it has a width where pools are separated.

    Source: Newcombe 2006 (Statistics in Medicine 25, 559), method 5. No known difference.
    """
    n = (n_knows + n_never) / 2

    def distance(theta: float) -> float:
        factor = 1 + (n - 1) * (1 - theta) / (2 - theta) + (n - 1) * theta / (1 + theta)
        return abs(value - theta) - _Z * math.sqrt(theta * (1 - theta) * factor / (n_knows * n_never))

    def end(inside: float, outside: float) -> float:
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if distance(middle) > 0 else (middle, outside)
        return inside

    return end(value, 0.0), end(value, 1.0)


# One metric ------------------------------------------------------------------------------------------------


def worth(
    knows: Mapping[str, Sequence[float | None]],
    never: Mapping[str, Sequence[float | None]],
    unlearned: Sequence[Pair],
    retained: Pair | None,
    n_resamples: int = RESAMPLES,
) -> Worth:
    """What a metric is worth, with intervals over models.

    Args:
        knows, never: Recipe -> values of the models that were taught so; more for more knowledge.
        unlearned: Models that have kept their utility.
        retained: The retain-only model, with which relearning is compared.
        n_resamples: Of the intervals; 0 is without any.
    """
    recipes = {name: _known(values) for name, values in knows.items()}
    p, n = _known(value for own in knows.values() for value in own), _known(v for own in never.values() for v in own)
    total = sum(map(len, knows.values())), sum(map(len, never.values()))
    if len(p) < 2 or len(n) < 2:
        none = Estimate(None, reason=f"it has values for {len(p)} models that know and {len(n)} that never knew")
        return Worth(none, none, none, none, none, none, none)
    if len(p) + len(n) < 0.8 * sum(total):
        none = Estimate(None, n=len(p) + len(n), reason=f"it is undefined for {sum(total) - len(p) - len(n)} models")
        return Worth(none, none, none, none, none, none, none)
    cut = threshold(p, n)
    counted = [own for own in unlearned if own.before is not None and own.before <= cut]
    forms = {
        "relearning": [_relearned(own, retained, symmetric=True) for own in counted],
        "quantization": [_quantized(own, symmetric=True) for own in counted],
        "published_relearning": [_relearned(own, retained, symmetric=False) for own in counted],
        "published_quantization": [_quantized(own, symmetric=False) for own in counted],
    }
    generator = np.random.default_rng(0)
    draws: dict[str, list[float | None]] = {name: [] for name in ("faithfulness", "robustness", "trust", *forms)}
    pa, na = np.asarray(p), np.asarray(n)
    for _ in range(n_resamples):
        faithful = area(generator.choice(pa, len(pa)), generator.choice(na, len(na)))
        means = _means(forms, generator.integers(len(counted), size=len(counted)) if counted else [])
        for name, value in _joined({"faithfulness": faithful, **means}).items():
            draws[name].append(value)
    point = _joined({"faithfulness": area(p, n)} | _means(forms, range(len(counted))))
    found = {name: _estimate(name, point[name], draws[name], p, n, forms, len(counted)) for name in draws}
    own_recipes = {name: area(values, n) if values else None for name, values in recipes.items()}
    supports = _supports(found["faithfulness"].value, found["robustness"].value, own_recipes)
    left_out = len(unlearned) - len(counted)
    return Worth(**found, by_recipe=own_recipes, n_left_out=left_out, supports=supports)


def _supports(faithful: float | None, robust: float | None, by_recipe: Mapping[str, float | None]) -> tuple[str, ...]:
    """What a value as low as that of a model that never knew may mean.

    Forgotten only by a metric that is faithful and robust. If it is faithful, but not robust, the fact may be hidden;
    if it misses models that were taught in other words, it may not have been asked for rightly.
    """
    if faithful is None or faithful < TRUSTED:
        return ()
    missed = any(value is not None and value < TRUSTED for value in by_recipe.values())
    if missed:
        return (ASKED,)
    return (FORGOTTEN,) if robust is not None and robust >= TRUSTED else (HIDDEN,)


def _relearned(own: Pair, retained: Pair | None, symmetric: bool) -> float | None:
    if own.before is None or own.relearned is None or retained is None:
        return None
    if retained.before is None or retained.relearned is None:
        return None
    pairs = (own.before, own.relearned), (retained.before, retained.relearned)
    return (symmetric_relearning(*pairs, least=_TINY) if symmetric else published_relearning(*pairs)).value


def _quantized(own: Pair, symmetric: bool) -> float | None:
    if own.before is None or own.quantized is None:
        return None
    return (symmetric_quantization if symmetric else published_quantization)(own.before, own.quantized).value


def _means(forms: Mapping[str, Sequence[float | None]], drawn: Any) -> dict[str, float | None]:
    return {name: _mean([values[i] for i in drawn]) for name, values in forms.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    known = _known(values)
    return sum(known) / len(known) if known else None


def _joined(own: Mapping[str, float | None]) -> dict[str, float | None]:
    """The numbers with their harmonic means."""
    robust = harmonic_mean([own["relearning"], own["quantization"]])
    return {**own, "robustness": robust, "trust": harmonic_mean([own["faithfulness"], robust])}


def _estimate(
    name: str,
    value: float | None,
    draws: Sequence[float | None],
    knows: Sequence[float],
    never: Sequence[float],
    forms: Mapping[str, Sequence[float | None]],
    n_counted: int,
) -> Estimate:
    n = len(knows) + len(never) if name == "faithfulness" else n_counted
    if value is None:
        what = "of the unlearned models that keep their utility, this metric calls none unlearned"
        return Estimate(None, n=n, reason=what if not n_counted else "it is undefined for the unlearned models")
    interval = percentile_interval(draws)
    low, high = interval.low, interval.high
    if name == "faithfulness":
        if low is None or high is None or high - low < _TINY:
            low, high = area_interval(value, len(knows), len(never))
    elif n_counted < 2:
        low = high = None
    return Estimate(value, low, high, n)


def _known(values: Any) -> list[float]:
    return [float(value) for value in values if value is not None and math.isfinite(value)]


# One number from several -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Combination:
    """A weighted mean of metrics on one scale: 0 is the mean model that never knew, 1 the mean one that knows.

    Attributes:
        weights: Metric -> its weight; they sum to 1.
        never, knows: Metric -> its means in the two pools.
    """

    weights: Mapping[str, float]
    never: Mapping[str, float]
    knows: Mapping[str, float]

    def __call__(self, values: Values) -> float | None:
        """The combined value of a model; None if it lacks one of the metrics."""
        total = 0.0
        for name, weight in self.weights.items():
            value = values.get(name)
            if value is None:
                return None
            total += weight * (value - self.never[name]) / (self.knows[name] - self.never[name])
        return total


@dataclass(frozen=True)
class Model:
    """A model of a pool, or an unlearned one, with all metrics.

    Attributes:
        recipe: How it was taught or unlearned.
        values: Its metrics, more for more knowledge.
        relearned, quantized: The same after the two changes; empty of models of the pools.
    """

    recipe: str
    values: Values
    relearned: Values = field(default_factory=dict)
    quantized: Values = field(default_factory=dict)

    def pair(self, measure: Callable[[Values], float | None]) -> Pair:
        """The model by one measure."""
        return Pair(self.recipe, measure(self.values), measure(self.relearned), measure(self.quantized))


def worth_of(
    measure: Callable[[Values], float | None],
    knows: Sequence[Model],
    never: Sequence[Model],
    unlearned: Sequence[Model],
    retained: Model | None,
    n_resamples: int = RESAMPLES,
) -> Worth:
    """What any measure is worth: one metric, or a combination."""

    def by_recipe(models: Sequence[Model]) -> dict[str, list[float | None]]:
        found: dict[str, list[float | None]] = {}
        for model in models:
            found.setdefault(model.recipe, []).append(measure(model.values))
        return found

    pairs = [model.pair(measure) for model in unlearned]
    return worth(
        by_recipe(knows), by_recipe(never), pairs, None if retained is None else retained.pair(measure), n_resamples
    )


def named(metric: str) -> Callable[[Values], float | None]:
    """A metric as a measure."""
    return lambda values: values.get(metric)


def combine(
    worths: Mapping[str, Worth], knows: Sequence[Model], never: Sequence[Model], least: float = TRUSTED
) -> Combination | None:
    """The combination of all metrics with a trust of at least `least`, weighted by it; None of fewer than two.

    Metrics that are undefined for a model of the pools, or whose means do not differ, take no part.
    """
    trusted = {
        name: own.trust.value
        for name, own in worths.items()
        if own.trust.value is not None and own.trust.value >= least
    }
    return _weighted(trusted, knows, never, fewest=2)


def _weighted(
    weights: Mapping[str, float], knows: Sequence[Model], never: Sequence[Model], fewest: int = 1
) -> Combination | None:
    """The combination with these weights, of those metrics of which both pools have all values and different means."""
    means = {}
    for name in weights:
        columns = [[model.values.get(name) for model in pool] for pool in (never, knows)]
        if all(value is not None for column in columns for value in column):
            low, high = (float(np.mean(np.asarray(column, float))) for column in columns)
            if high - low > _TINY:
                means[name] = low, high
    if len(means) < fewest:
        return None
    total = sum(weights[name] for name in means)
    return Combination(
        {name: weights[name] / total for name in means},
        {name: low for name, (low, _) in means.items()},
        {name: high for name, (_, high) in means.items()},
    )


@dataclass(frozen=True)
class HeldOut:
    """How a combination fares on what it was not weighted by.

    Attributes:
        combined, single: Worth of the combinations, and of the single metrics that were best on the same training
            parts, on the parts that were held out.
        chosen: The single metric of each part.
        n_without: Parts in which fewer than two metrics were trusted, so that there was nothing to combine.
        reason: Why there is no answer, if there is none.
    """

    combined: Worth | None
    single: Worth | None
    chosen: Mapping[str, str] = field(default_factory=dict)
    n_without: int = 0
    reason: str | None = None


def leave_method_out(
    metrics: Sequence[str],
    knows: Sequence[Model],
    never: Sequence[Model],
    unlearned: Sequence[Model],
    retained: Model | None,
) -> HeldOut:
    """The combination and the best single metric, each chosen without the recipe on which it is then measured.

    Three partitions at once: every held-out part has one recipe of the models that know, one of those that never knew,
    and one unlearning method (by turns, where there are more of these). Scores of all parts are on one scale: 0 is the
    mean model that never knew, 1 the mean one that knows. There the ratios of both changes are harsh, since values are
    near 0: a single metric that all parts choose is measured on its own scale.
    """
    recipes = [list(dict.fromkeys(model.recipe for model in pool)) for pool in (knows, never, unlearned)]
    if min(map(len, recipes)) < 2:
        return HeldOut(None, None, reason="every pool, and the unlearned models, need at least two recipes")
    n_parts = max(map(len, recipes))
    held: dict[str, dict[str, dict[str, list[Any]]]] = {kind: {"knows": {}, "never": {}} for kind in ("all", "one")}
    pairs: dict[str, list[Pair]] = {"all": [], "one": []}
    kept: dict[str, list[Pair]] = {"all": [], "one": []}
    chosen: dict[str, str] = {}
    without = 0
    for i in range(n_parts):
        out = [own[i % len(own)] for own in recipes]
        rest = [
            [m for m in pool if m.recipe != gone] for pool, gone in zip((knows, never, unlearned), out, strict=True)
        ]
        worths = {name: worth_of(named(name), rest[0], rest[1], rest[2], retained, n_resamples=0) for name in metrics}
        joined = combine(worths, rest[0], rest[1])
        best = max(worths, key=lambda name: worths[name].trust.value or 0.0)
        one = _weighted({best: 1.0}, rest[0], rest[1])
        chosen[" / ".join(out)] = best
        if joined is None or one is None:
            without += 1
            continue
        for kind, measure in (("all", joined), ("one", one)):
            for side, pool, gone in (("knows", knows, out[0]), ("never", never, out[1])):
                own = [measure(m.values) for m in pool if m.recipe == gone]
                held[kind][side].setdefault(gone, []).extend(own)
            pairs[kind] += [m.pair(measure) for m in unlearned if m.recipe == out[2]]
            kept[kind] += [] if retained is None else [retained.pair(measure)]
    if not pairs["all"]:
        return HeldOut(None, None, chosen, without, f"in no part are two metrics trusted by {TRUSTED:g}")
    found = {
        kind: worth(held[kind]["knows"], held[kind]["never"], pairs[kind], _mean_pair(kept[kind])) for kind in held
    }
    choices = set(chosen.values())
    single = worth_of(named(choices.pop()), knows, never, unlearned, retained) if len(choices) == 1 else found["one"]
    return HeldOut(found["all"], single, chosen, without)


def _mean_pair(pairs: Sequence[Pair]) -> Pair | None:
    """The retain-only model over the parts."""
    if not pairs:
        return None
    return Pair(
        pairs[0].method, *(_mean([getattr(own, key) for own in pairs]) for key in ("before", "relearned", "quantized"))
    )


# The controls ----------------------------------------------------------------------------------------------


class Order(NamedTuple):
    """Whether a metric ranks two controls as it must.

    Attributes:
        rule: In words.
        holds: None if one of the values is missing.
        values: What was compared.
    """

    rule: str
    holds: bool | None
    values: Mapping[str, float | None]


def control_orders(forgotten: Mapping[str, float | None], least: float = 0.05) -> list[Order]:
    """The orders that must hold of a headline metric of forgetting.

    Args:
        forgotten: Control -> how forgotten the metric calls it, from 0 (as before unlearning) to 1 (as a model that
            never knew; not clipped). Controls: `noop`, `refuse_all`, `filter`, `placebo`, `random_layers`, `oracle`,
            `noise`, `wrong_answers`.
        least: What counts as a difference.
    """

    def order(rule: str, names: Sequence[str], holds: Callable[..., bool]) -> Order:
        values = {name: forgotten.get(name) for name in names}
        known = None not in values.values()
        return Order(rule, holds(*values.values()) if known else None, values)

    best = "oracle"
    return [
        order("an edit that changes nothing forgets nothing", ["noop"], lambda a: abs(a) <= least),
        order("forgetting another fact does not forget this one", ["placebo", best], lambda a, b: a < 0.5 * b),
        order("refusing everything does not win", ["refuse_all", best], lambda a, b: a < b - least),
        order(
            "a filter in front of an unchanged model does not pass as forgotten",
            ["filter", best],
            lambda a, b: a < 0.5 * b,
        ),
        order("a collapsed model has not forgotten well", ["noise", best], lambda a, b: a < b - least),
        order("answering wrongly on purpose is not forgetting", ["wrong_answers", best], lambda a, b: a < b - least),
        order(
            "random layers are no better than the retrained model", ["random_layers", best], lambda a, b: a <= b + least
        ),
    ]
