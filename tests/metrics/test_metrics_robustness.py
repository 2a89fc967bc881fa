"""What comes back, as arithmetic: by hand, at the ends, and where it is undefined."""

import pytest

from unlearn_eval.metrics.robustness import (
    above_chance,
    curve_area,
    depth_score,
    durability,
    first_reaching,
    recovery,
    symmetric_quantization,
    symmetric_relearning,
)


def test_recovery():
    assert recovery(0.5, 0.9, 0.1).value == pytest.approx(0.5)
    assert recovery(0.1, 0.9, 0.1).value == pytest.approx(0)
    assert recovery(0.0, 0.9, 0.1).value == pytest.approx(-0.125)  # told as it is
    none = recovery(0.5, 0.52, 0.5)
    assert none.value is None
    assert "0.020 above the reference" in none.reason


def test_symmetric_forms():
    assert symmetric_relearning((0.1, 0.5), (0.2, 0.3)).value == pytest.approx(1 - 0.3 / 0.5)
    assert symmetric_relearning((0.1, 0.5), (0.2, 0.6)).value == pytest.approx(1)
    assert symmetric_relearning((0.1, 0.5), (0.5, 0.1)).value == pytest.approx(0)  # signs matter
    assert symmetric_relearning((0.1, 0.1), (0.5, 0.5)).value is None
    assert symmetric_quantization(0.2, 0.6).value == pytest.approx(0.5)
    assert symmetric_quantization(0.6, 0.2).value == pytest.approx(0.5)
    assert symmetric_quantization(0, 0).value is None


def test_durability_and_chance():
    assert durability(0.1, 0.3, 0.9).value == pytest.approx(0.75)
    assert durability(0.1, 0.05, 0.9).value == 1  # what falls further has not come back
    assert durability(0.5, 0.9, 0.52).value is None
    assert above_chance(0.5, 1 / 3).value == pytest.approx(0.25)
    assert above_chance(0.2, 1 / 3).value < 0
    assert above_chance(1.0, 1.0).value is None


def test_curves():
    assert curve_area([0, 1, 3], [0, 1, 1]).value == pytest.approx((0.5 + 2) / 3)
    assert curve_area([0], [1]).value is None
    assert first_reaching([0, 5, 10], [0.1, 0.4, 0.6], 0.4).value == 5
    assert first_reaching([0, 5, 10], [0.1, 0.4, 0.6], 0.7).value is None


def test_depth_score():
    # Layers: below the threshold, half as deep, deeper than the reference, against the reference.
    assert depth_score([0.01, 0.4, 0.2, 0.4], [9, 0.2, 0.5, -1]).value == pytest.approx((0.2 + 0.2 + 0) / 1.0)
    assert depth_score([0.2, 0.3], [0.2, 0.3]).value == pytest.approx(1)
    assert depth_score([0.2, 0.3], [0, 0]).value == 0
    assert depth_score([0.05, 0.01], [1, 1]).value is None
