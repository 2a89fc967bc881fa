"""What a metric is worth: against counting by hand, scikit-learn, and planted pools."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from unlearn_eval.metrics import meta_evaluation as me

values = st.lists(st.floats(-5, 5).map(lambda x: round(x, 1)), min_size=2, max_size=8)


@settings(max_examples=50)
@given(values, values)
def test_the_area_is_scikit_learns(knows, never):
    assert me.area(knows, never) == pytest.approx(roc_auc_score([1] * len(knows) + [0] * len(never), knows + never))


@pytest.mark.parametrize(
    ("unlearned", "retained", "expected"),
    [
        ((0.2, 0.4), (0.2, 0.3), 0.5),  # it learns twice as fast as one that never knew
        ((0.2, 0.3), (0.2, 0.6), 1.0),  # slower: cut at 1
        ((0.2, 0.2), (0.2, 0.6), None),
        ((0.4, 0.2), (0.2, 0.6), None),
    ],
)
def test_published_relearning(unlearned, retained, expected):
    assert me.published_relearning(unlearned, retained).value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("before", "after", "expected"), [(0.2, 0.4, 0.5), (0.4, 0.2, 1.0), (0.0, 0.0, 1.0), (0.0, 0.3, 0.0), (-1, 2, None)]
)
def test_published_quantization(before, after, expected):
    assert me.published_quantization(before, after).value == expected


@pytest.mark.parametrize(
    ("unlearned", "gap", "signed"),
    [(0.2, 1.0, 0.0), (0.8, 0.0, 0.6), (0.1, 5 / 6, -0.1), (0.5, 0.5, 0.3), (1.1, -0.5, 0.9)],
)
def test_a_gap_tells_over_forgetting_by_its_sign(unlearned, gap, signed):
    score, distance = me.gap(unlearned, 0.8, 0.2)
    assert (score.value, distance) == pytest.approx((gap, signed))
    assert me.gap(unlearned, 0.21, 0.2)[0].value is None


@pytest.mark.parametrize(
    ("metric", "higher", "value", "expected"),
    [
        ("forget_probability", False, 0.3, 0.3),
        ("forget_truth_ratio", True, 0.3, 0.7),
        ("forget_refusal_rate", True, 1.0, 0.0),
        ("forget_logit_lens_gap", True, 2.0, -2.0),
        ("mia_loss_auc", None, 0.9, 0.9),
        ("privleak", None, -80.0, 80.0),
        ("forget_rouge", False, None, None),
    ],
)
def test_more_is_more_knowledge(metric, higher, value, expected):
    assert me.as_knowledge(metric, value, higher) == (None if expected is None else pytest.approx(expected))


def test_separated_pools_have_an_interval_with_a_width():
    low, high = me.area_interval(1.0, 12, 12)
    assert 0.7 < low < 0.95
    assert high == pytest.approx(1.0)
    low, high = me.area_interval(0.5, 12, 12)
    assert (low + high) / 2 == pytest.approx(0.5)
    assert me.area_interval(1.0, 100, 100)[0] > me.area_interval(1.0, 12, 12)[0]


def test_the_threshold_tells_the_pools_apart():
    assert me.threshold([0.5, 0.6, 0.9], [0.1, 0.2, 0.3]) == pytest.approx(0.4)
    assert me.threshold([0.2, 0.6, 0.9], [0.1, 0.15, 0.3]) == pytest.approx(0.175), "the lowest of two"
    assert me.threshold([0.5, 0.5], [0.5]) == 0.5


def pools(names, faithful, robust, seed=0):
    """Models of which a metric is faithful or noise, and unlearned ones that relearn as the retain-only one or not."""
    generator = np.random.default_rng(seed)

    def values(level):
        return {
            name: float((level if faithful[name] else 0.5) + 0.04 * generator.normal() * (1 if faithful[name] else 5))
            for name in names
        }

    knows = [me.Model(recipe, values(0.8)) for recipe in ("a", "b", "c") for _ in range(4)]
    never = [me.Model(recipe, values(0.2)) for recipe in ("x", "y", "z") for _ in range(4)]

    def unlearned(method):
        before = {name: 0.2 for name in names}
        after = {name: 0.2 + (0.1 if robust[name] else 0.6) for name in names}
        return me.Model(method, before, after, before)

    retained = me.Model("retain", {n: 0.2 for n in names}, {n: 0.3 for n in names}, {n: 0.2 for n in names})
    return knows, never, [unlearned(method) for method in "opqrst"], retained


def test_worth_tells_faithful_and_robust_metrics_from_others():
    names = ("good", "fragile", "blind")
    made = pools(
        names, {"good": True, "fragile": True, "blind": False}, {"good": True, "fragile": False, "blind": True}
    )
    good, fragile, blind = (me.worth_of(me.named(name), *made) for name in names)
    assert good.trust.value == pytest.approx(1.0)
    assert good.supports == (me.FORGOTTEN,)
    assert fragile.faithfulness.value == 1.0
    assert fragile.relearning.value == pytest.approx(1 - 0.5 / 0.7)
    assert fragile.published_relearning.value == pytest.approx(1 / 6)
    assert fragile.supports == (me.HIDDEN,)
    assert blind.faithfulness.value < 0.75
    assert blind.supports == ()
    assert good.faithfulness.low < good.faithfulness.value


def test_a_metric_that_misses_models_taught_in_other_words_does_not_ask_rightly():
    knows = {"questions": [0.8, 0.9], "biographies": [0.1, 0.15], "paraphrases": [0.7, 0.9], "more": [0.8] * 20}
    found = me.worth(knows, {"retain": [0.3, 0.2, 0.25]}, [], None)
    assert found.by_recipe["biographies"] == 0.0
    assert found.supports == (me.ASKED,)
    assert found.robustness.value is None
    assert "calls none unlearned" in found.robustness.reason


def test_undefined_values_are_null_with_the_reason():
    found = me.worth({"a": [None, None, 0.3]}, {"b": [0.1, 0.2]}, [], None)
    assert found.faithfulness.value is None
    assert "1 models that know" in found.faithfulness.reason
    found = me.worth({"a": [None, None, 0.4, 0.3]}, {"b": [0.1, 0.2]}, [], None)
    assert "undefined for 2 models" in found.faithfulness.reason


def test_models_that_a_metric_does_not_call_unlearned_do_not_count():
    pair, other = me.Pair("m", 0.2, 0.3, 0.2), me.Pair("o", 0.7, 0.9, 0.7)
    found = me.worth({"a": [0.8, 0.9]}, {"b": [0.1, 0.2]}, [pair, other], pair)
    assert (found.robustness.n, found.n_left_out) == (1, 1)
    assert found.robustness.low is None, "one model has no interval"
    assert found.faithfulness.low is not None


def test_the_combination_is_weighted_on_other_recipes_than_it_is_measured_on():
    names = ("one", "two", "blind")
    made = pools(names, {"one": True, "two": True, "blind": False}, dict.fromkeys(names, True))
    held = me.leave_method_out(names, *made)
    assert held.combined.trust.value == pytest.approx(1.0, abs=0.01)  # the scales of the parts differ by noise
    assert held.n_without == 0
    assert len(held.chosen) == 6
    worths = {name: me.worth_of(me.named(name), *made) for name in names}
    joined = me.combine(worths, made[0], made[1])
    assert set(joined.weights) == {"one", "two"}
    assert sum(joined.weights.values()) == pytest.approx(1)
    assert np.mean([joined(model.values) for model in made[0]]) == pytest.approx(1)
    assert np.mean([joined(model.values) for model in made[1]]) == pytest.approx(0)
    assert joined({"one": 0.3}) is None


def test_it_is_said_why_there_is_nothing_to_combine():
    names = ("one", "blind")
    made = pools(names, {"one": True, "blind": False}, dict.fromkeys(names, True))
    assert "in no part are two metrics trusted" in me.leave_method_out(names, *made).reason
    assert "at least two recipes" in me.leave_method_out(names, made[0], made[1], made[2][:1], made[3]).reason


RIGHT = {"noop": 0.0, "refuse_all": 0.6, "filter": 0.0, "placebo": 0.1, "random_layers": 0.7, "oracle": 1.0}
RIGHT |= {"noise": 0.2, "wrong_answers": 0.5}


@pytest.mark.parametrize(
    ("control", "value"),
    [
        ("noop", 0.2), ("refuse_all", 1.0), ("filter", 0.9), ("placebo", 0.8), ("noise", 1.0), ("wrong_answers", 0.99),
        ("random_layers", 1.2), ("oracle", 0.4),
    ],
)  # fmt: skip
def test_a_broken_order_is_seen(control, value):
    assert all(order.holds for order in me.control_orders(RIGHT))
    broken = [order for order in me.control_orders(RIGHT | {control: value}) if not order.holds]
    assert broken
    assert all(control in order.values for order in broken)
    missing = {key: own for key, own in RIGHT.items() if key != control}
    assert any(order.holds is None for order in me.control_orders(missing))
