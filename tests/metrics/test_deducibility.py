"""KnowGIC's two numbers against a calculation by hand, and what they are of models that know nothing or everything."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_eval.metrics.deducibility import chain_recovery, preservation, reliability
from unlearn_eval.utils.errors import UserError

P = st.floats(0.01, 1)
CHAINS = st.lists(st.lists(st.tuples(P, P), min_size=1, max_size=5), min_size=1, max_size=6)


def test_the_example_of_the_authors():
    chain = [(0.9, 0.7), (0.85, 0.8), (0.9, 0.85)]
    assert reliability([0.9, 0.85, 0.9]) == pytest.approx(0.6885)
    assert chain_recovery([chain]) == pytest.approx(0.476 / 0.6885)
    assert round(chain_recovery([chain]), 1) == 0.7, "one chain's weight goes out again"
    context = [(0.9, 0.7), (0.85, 0.8), (0.9, 0.6), (0.85, 0.5)]
    assert preservation(context) == pytest.approx((0.7 / 0.9 + 0.8 / 0.85 + 0.6 / 0.9 + 0.5 / 0.85) / 4)
    assert round(preservation(context), 2) == 0.74  # .725 in their README, of ratios rounded before


def test_chains_weigh_by_the_root_of_their_length():
    short, long = [(1.0, 1.0)], [(0.5, 0.25), (1.0, 1.0), (1.0, 0.5), (0.8, 0.8)]
    weights = 1, 1 / 2
    assert chain_recovery([short, long]) == pytest.approx((1 * weights[0] + 0.25 * weights[1]) / sum(weights))


def test_what_could_not_be_done_before_does_not_count():
    never = [(0.9, 0.9), (0.0, 0.7)]
    assert chain_recovery([never]) is None
    assert chain_recovery([never, [(0.5, 0.25)]]) == 0.5
    assert preservation([(0.0, 0.4)]) is None
    assert preservation([(0.0, 0.4), (0.5, 0.5)]) == 1
    assert chain_recovery([]) is None
    assert preservation([]) is None


@settings(max_examples=30)
@given(CHAINS)
def test_both_ends(chains):
    same = [[(before, before) for before, _ in chain] for chain in chains]
    gone = [[(before, 0.0) for before, _ in chain] for chain in chains]
    assert chain_recovery(same) == pytest.approx(1)
    assert chain_recovery(gone) == 0
    assert preservation([pair for chain in same for pair in chain]) == pytest.approx(1)
    assert preservation([pair for chain in gone for pair in chain]) == 0
    slow = sum(math.prod(a for _, a in c) / math.prod(b for b, _ in c) / len(c) ** 0.5 for c in chains)
    assert chain_recovery(chains) == pytest.approx(slow / sum(len(c) ** -0.5 for c in chains))


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_what_is_no_probability(bad):
    with pytest.raises(UserError, match="is no probability"):
        chain_recovery([[(0.5, bad)]])
    with pytest.raises(UserError, match="is no probability"):
        preservation([(bad, 0.5)])
