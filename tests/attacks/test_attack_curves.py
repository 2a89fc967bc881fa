"""The curves that attacks leave for reports: means and intervals by level, gaps and shares by layer."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from unlearn_eval.attacks.base import ItemScore, Observation, attack_names
from unlearn_eval.attacks.curves import curves
from unlearn_eval.attacks.methods import logit_lens, probe, uds
from unlearn_eval.attacks.run import Attacked, sample_lines
from unlearn_eval.attacks.summary import RESAMPLES, MetricSpec, Summary, Table
from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.metrics import bootstrap
from unlearn_eval.metrics.robustness import Score, depth_score


def items_of(n, group=None):
    return ForgetSet("s", tuple(ForgetItem(f"i{i}", f"What is {i}?", str(i), group=group) for i in range(n)))


def observation(model, at, values, value="accuracy", **more):
    scores = tuple(ItemScore(f"i{i}", {value: own}) for i, own in enumerate(values) if own is not ...)
    return Observation(model, at, scores, **more)


def of(found, model, value, condition="attack"):
    (one,) = [c for c in found if (c["model"], c["value"], c["condition"]) == (model, value, condition)]
    return one


def test_a_point_is_the_mean_over_items_folds_and_seeds():
    items = items_of(4)
    seen = [
        observation("unlearned", 5, [1.0, 0.0, ..., ...], fold=0, seed=0),
        observation("unlearned", 5, [..., ..., 1.0, 1.0], fold=1, seed=0),
        observation("unlearned", None, [0.0, 0.0, 0.0, 0.0], seed=0),
        observation("unlearned", 5, [0.0, 0.0, 0.0, None], seed=1),
        observation("unlearned", 5, [0.5] * 4, condition="format"),
        observation("full", 5, [None] * 4),
    ]
    found = curves(items, seen)
    json.dumps(found, allow_nan=False)
    own = of(found, "unlearned", "accuracy")
    assert own["at"] == [None, 5], "before the attack comes first"
    assert own["mean"] == [0.0, pytest.approx(3 / 7, abs=1e-6)], "what is missing does not count"
    assert own["n"] == [4, 4]
    assert of(found, "unlearned", "accuracy", "format")["mean"] == [0.5]
    assert not [one for one in found if one["model"] == "full"], "a level at which nothing is known is left out"


def test_an_interval_is_that_of_a_bootstrap_over_clusters_and_seeds():
    """Of a ratio of two models' means, the same clusters and seeds drawn for both; what is missing does not count."""
    items = ForgetSet("s", tuple(ForgetItem(f"i{i}", f"{i}?", str(i), subject=f"s{i // 2}") for i in range(12)))
    known = np.random.default_rng(0).random((2, 2, 12)).round(2)  # model, seed, item
    known[0, 0, 3] = math.nan
    table = Table(items, [
        observation(model, 5, [None if math.isnan(own) else own for own in known[i, seed]], seed=seed)
        for i, model in enumerate(("unlearned", "full")) for seed in (0, 1)
    ])  # fmt: skip

    def ratio(parts, seeds):
        drawn = np.concatenate([[2 * i, 2 * i + 1] for i in parts])
        unlearned, full = (np.nanmean(one[seeds][:, drawn]) for one in known)
        return unlearned / full

    value = lambda mean: Score(mean(("unlearned", "attack", 5), "accuracy") / mean(("full", "attack", 5), "accuracy"))  # noqa: E731
    metric, ends = table.estimate("some", MetricSpec(value, None))
    peer = bootstrap(ratio, np.arange(6), np.arange(2), n_resamples=RESAMPLES)
    assert metric.value == pytest.approx(np.nanmean(known[0]) / np.nanmean(known[1]))
    assert [*ends, metric.stderr] == pytest.approx([peer.low, peer.high, peer.stderr])


def test_the_band_is_that_of_a_bootstrap_over_clusters():
    values = [float(i % 3 == 0) for i in range(60)]
    own = of(curves(items_of(60), [observation("full", 1, values)]), "full", "accuracy")
    peer = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=0).confidence_interval
    assert own["low"][0] == pytest.approx(peer.low, abs=0.03)  # steps of 1/60, 500 resamples
    assert own["high"][0] == pytest.approx(peer.high, abs=0.03)
    alike = [float(i // 6 % 2) for i in range(60)]  # ten groups of six that agree
    groups = ForgetSet("s", tuple(ForgetItem(f"i{i}", f"What is {i}?", "x", group=f"g{i // 6}") for i in range(60)))
    wide = of(curves(groups, [observation("full", 1, alike)]), "full", "accuracy")
    narrow = of(curves(items_of(60), [observation("full", 1, alike)]), "full", "accuracy")
    assert wide["high"][0] - wide["low"][0] > 1.5 * (narrow["high"][0] - narrow["low"][0])
    one = of(curves(items_of(3, group="g"), [observation("full", 1, [1.0, 0.0, 1.0])]), "full", "accuracy")
    assert (one["low"], one["high"]) == ([None], [None]), "one cluster has no interval"


def test_seeds_that_differ_widen_the_band():
    def seeds(*levels):
        return [observation("full", 1, [level] * 8, seed=i) for i, level in enumerate(levels)]

    same = of(curves(items_of(8), seeds(0.5, 0.5)), "full", "accuracy")
    apart = of(curves(items_of(8), seeds(0.2, 0.8)), "full", "accuracy")
    assert same["low"] == same["high"] == [0.5]
    assert (apart["mean"], apart["low"], apart["high"]) == ([0.5], [0.2], [0.8])


def test_items_that_agree_leave_room_for_others():
    for mean in (0.0, 1.0):
        own = of(curves(items_of(12), [observation("full", 1, [mean] * 12)]), "full", "accuracy")
        peer = stats.binomtest(int(12 * mean), 12).proportion_ci(method="wilson")
        assert (own["low"][0], own["high"][0]) == pytest.approx((peer.low, peer.high), abs=1e-5)


def test_probes_are_drawn_above_their_control_item_by_item():
    seen = [
        observation("unlearned", 0, [1.0, 0.0], probe.VALUE),
        observation("unlearned", 0, [1.0, 0.0], probe.VALUE, condition=probe.RANDOM, seed=0),
        observation("unlearned", 0, [0.0, 0.0], probe.VALUE, condition=probe.RANDOM, seed=1),
        observation("full", 0, [1.0, 1.0], probe.VALUE),
    ]
    (made,) = probe.derived(items_of(2), seen)
    assert (made.model, made.at) == ("unlearned", 0), "without a control there is nothing to be above"
    assert [score.values for score in made.scores] == [{probe.ABOVE: 0.5}, {probe.ABOVE: 0.0}]


def drops():
    """UDS's drops of two items at three layers."""
    return {
        "reference": [[0.02, 1.0], [1.0, 1.0], [3.0, 2.0]],
        "unlearned": [[9.0, 0.25], [2.0, -1.0], [1.5, 1.0]],
    }


def test_what_layers_add_to_the_depth_sums_to_it():
    items = items_of(2)
    seen = [
        observation(model, layer, own, uds.VALUE) for model, rows in drops().items() for layer, own in enumerate(rows)
    ]
    found = curves(items, uds.derived(items, seen))
    expected = [
        depth_score([row[i] for row in drops()["reference"]], [row[i] for row in drops()["unlearned"]]).value
        for i in (0, 1)
    ]
    metrics = uds.summary(items, seen, uds.ATTACK, True).metrics
    assert sum(of(found, "unlearned", "share")["mean"]) == pytest.approx(sum(expected) / 2, abs=1e-5)
    assert sum(of(found, "unlearned", "share")["mean"]) == pytest.approx(metrics["forget_uds"].value, abs=1e-5)
    assert sum(of(found, "reference", "share")["mean"]) == pytest.approx(1, abs=1e-5)
    assert uds.derived(items, [one for one in seen if one.model == "unlearned"]) == [], "without a reference nothing"


def test_the_lens_is_drawn_as_its_gap_to_the_full_model():
    items = items_of(2)
    read = {"full": [[-1.0, -2.0], [-0.5, -0.5]], "unlearned": [[-1.5, -2.0], [-3.5, -1.5]]}
    seen = [observation(m, layer, own, logit_lens.VALUE) for m, rows in read.items() for layer, own in enumerate(rows)]
    found = curves(items, logit_lens.derived(items, seen))
    assert of(found, "unlearned", "gap")["mean"] == [0.25, 2.0]
    assert not [one for one in found if one["value"] == "share"]
    assert logit_lens.summary(items, seen, logit_lens.ATTACK, False).metrics["forget_logit_lens_gap"].value == 1.125
    nothing = logit_lens.summary(items, [], logit_lens.ATTACK, False, "it has no layers").metrics
    assert nothing["forget_logit_lens_gap"].reason == "it has no layers"


def test_samples_keep_a_control_s_mean_and_every_other_observation():
    items = items_of(2)
    seen = [
        observation("full", 0, [1.0, 0.0], probe.VALUE),
        *(
            observation("full", 0, [hit, None], probe.VALUE, condition=probe.RANDOM, seed=i)
            for i, hit in enumerate((1.0, 0.0, 0.0))
        ),
        observation("full", 0, [1.0, 1.0], probe.VALUE, seed=1),
        Observation("full", 5, (ItemScore("i1", {"accuracy": 1.0}, "said"),), condition="format", seed=3),
    ]
    first, second = sample_lines(Attacked("probe", {}, Summary({}, {}, {}), tuple(seen), {}, ()), items)
    assert [(one["condition"], one["seed"], one[probe.VALUE]) for one in first["observations"]] == [
        ("attack", 0, 1.0),
        ("attack", 1, 1.0),
        (probe.RANDOM, None, pytest.approx(1 / 3)),
    ]
    assert second["observations"][-1][probe.VALUE] is None
    assert [(one["seed"], one["said"]) for one in second["observations"] if "said" in one] == [(3, "said")]


def test_what_attacks_share_is_no_attack():
    assert "curves" not in attack_names()
