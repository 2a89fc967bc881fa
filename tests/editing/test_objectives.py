"""Every objective against slow float64 computation in plain Python and numpy, by hand, and by finite differences."""

import math

import numpy as np
import pytest
import torch

from unlearn_eval.editing.training import objectives as o

B, T, V, D = 3, 4, 6, 5
LENGTHS = (4, 1, 3)
BETA = 0.7


def numbers(seed, *shape, scale=1.5):
    return np.random.default_rng(seed).normal(scale=scale, size=shape)


LOGITS, REFERENCE_LOGITS, OTHER, OTHER_REFERENCE = (numbers(seed, B, T, V) for seed in range(4))
LABELS = np.random.default_rng(5).integers(0, V, size=(B, T))
HIDDEN, REFERENCE_HIDDEN = numbers(6, B, T, D), numbers(7, B, T, D)
DIRECTION = numbers(8, D)
MASK = np.array([[t < n for t in range(T)] for n in LENGTHS])


def tensor(array):
    return torch.from_numpy(np.array(array))


def as_tensors(*arrays):
    return [tensor(array) for array in arrays]


# The slow references: one token after another, nothing shared with the code above ---------------------------


def distribution(z):
    exponentials = [math.exp(value - max(z)) for value in z]
    return [value / sum(exponentials) for value in exponentials]


def log_p(logits, row, t):
    return math.log(distribution(logits[row][t])[LABELS[row][t]])


def rows(per_token, reduce):
    found = []
    for row, n in enumerate(LENGTHS):
        values = [per_token(row, t) for t in range(n)]
        found.append(sum(values) / n if reduce == "mean" else sum(values))
    return np.array(found)


def log_sigmoid(x):
    return math.log(1 / (1 + math.exp(-x)))


def slow_likelihood():
    return rows(lambda r, t: -log_p(LOGITS, r, t), "mean")


def slow_ascent():
    return -slow_likelihood()


def slow_kl():
    def token(r, t):
        p, q = distribution(REFERENCE_LOGITS[r][t]), distribution(LOGITS[r][t])
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    return rows(token, "mean")


def slow_npo():
    ratios = rows(lambda r, t: log_p(LOGITS, r, t) - log_p(REFERENCE_LOGITS, r, t), "sum")
    return np.array([-2 / BETA * log_sigmoid(-BETA * ratio) for ratio in ratios])


def slow_dpo():
    lost = rows(lambda r, t: log_p(LOGITS, r, t) - log_p(REFERENCE_LOGITS, r, t), "sum")
    won = rows(lambda r, t: log_p(OTHER, r, t) - log_p(OTHER_REFERENCE, r, t), "sum")
    return np.array([-2 / BETA * log_sigmoid(BETA * (w - y)) for w, y in zip(won, lost, strict=True)])


def slow_simnpo():
    means = rows(lambda r, t: log_p(LOGITS, r, t), "mean")
    return np.array([-2 / BETA * log_sigmoid(-BETA * mean - 0.3) for mean in means])


def slow_wga():
    return rows(lambda r, t: math.exp(log_p(LOGITS, r, t)) ** 1.7 * log_p(LOGITS, r, t), "mean")


def slow_unlikelihood():
    def token(r, t):
        p = math.exp(log_p(LOGITS, r, t))
        return -math.log(1 - p) if math.log(p) >= -2.0 else 0.0

    return rows(token, "mean")


def slow_satimp():
    def token(r, t):
        p = math.exp(log_p(LOGITS, r, t))
        return p**2.5 * (1 - p) ** 0.5 * math.log(p)

    return rows(token, "mean")


def slow_undial():
    def token(r, t):
        z = list(REFERENCE_LOGITS[r][t])
        z[LABELS[r][t]] -= 3.0
        return -sum(a * math.log(b) for a, b in zip(distribution(z), distribution(LOGITS[r][t]), strict=True))

    return rows(token, "mean")


def slow_ceu(skip):
    found = []
    for r, n in enumerate(LENGTHS):
        values = []
        for t in range(skip, n):
            p = distribution(LOGITS[r][t])
            rest = 1 - p[LABELS[r][t]]
            values.append(-sum(q / rest * math.log(q) for v, q in enumerate(p) if v != LABELS[r][t]))
        found.append(sum(values) / len(values) if values else 0.0)
    return np.array(found)


def slow_flatness():
    return rows(lambda r, t: (max(LOGITS[r][t]) - sum(LOGITS[r][t]) / V) ** 2, "mean")


def slow_steering():
    return rows(lambda r, t: sum((HIDDEN[r][t][i] - DIRECTION[i]) ** 2 for i in range(D)) / D, "mean")


def slow_representation():
    return rows(lambda r, t: sum((HIDDEN[r][t][i] - REFERENCE_HIDDEN[r][t][i]) ** 2 for i in range(D)) / D, "mean")


# Each objective as a function of the tensor that is trained -------------------------------------------------

labels, mask, reference_logits, direction, reference_hidden, other_reference = as_tensors(
    LABELS, MASK, REFERENCE_LOGITS, DIRECTION, REFERENCE_HIDDEN, OTHER_REFERENCE
)
reference = o.label_log_probs(reference_logits, labels)


def own(z):
    return o.label_log_probs(z, labels)


def fast_dpo(z, other):
    return o.dpo(
        own(other), o.label_log_probs(other_reference, labels), own(z), reference, mask, mask, BETA
    )  # fmt: skip


CASES = {
    "likelihood": (lambda z: o.likelihood(own(z), mask), slow_likelihood, (LOGITS,)),
    "ascent": (lambda z: o.ascent(own(z), mask), slow_ascent, (LOGITS,)),
    "bounded ascent": (lambda z: o.ascent(own(z), mask, 2.5), lambda: np.maximum(-2.5, slow_ascent()), (LOGITS,)),
    "kl": (lambda z: o.kl_divergence(z, reference_logits, mask), slow_kl, (LOGITS,)),
    "dpo": (fast_dpo, slow_dpo, (LOGITS, OTHER)),
    "npo": (lambda z: o.npo(own(z), reference, mask, BETA), slow_npo, (LOGITS,)),
    "simnpo": (lambda z: o.simnpo(own(z), mask, BETA, 0.3), slow_simnpo, (LOGITS,)),
    "wga": (lambda z: o.probability_weighted(own(z), mask, 1.7), slow_wga, (LOGITS,)),
    "satimp": (lambda z: o.importance_weighted(own(z), mask, 2.5, 0.5), slow_satimp, (LOGITS,)),
    "unlikelihood": (lambda z: o.unlikelihood(z, labels, mask, -2.0), slow_unlikelihood, (LOGITS,)),
    "undial": (lambda z: o.self_distillation(z, reference_logits, labels, mask, 3.0), slow_undial, (LOGITS,)),
    "ceu": (lambda z: o.avoidance(z, labels, mask), lambda: slow_ceu(0), (LOGITS,)),
    "ceu-skip": (lambda z: o.avoidance(z, labels, mask, 1), lambda: slow_ceu(1), (LOGITS,)),
    "flatness": (lambda z: o.flatness(z, mask), slow_flatness, (LOGITS,)),
    "steering": (lambda h: o.steering(h, direction, mask), slow_steering, (HIDDEN,)),
    "representation": (lambda h: o.representation(h, reference_hidden, mask), slow_representation, (HIDDEN,)),
}
HELD_FIXED = {"wga", "satimp", "ceu", "ceu-skip"}  # a part of the formula has no gradient


@pytest.mark.parametrize("name", CASES)
def test_values_against_the_slow_reference(name):
    fast, slow, inputs = CASES[name]
    np.testing.assert_allclose(
        fast(*as_tensors(*inputs)).numpy(), slow(), rtol=1e-12, atol=1e-14
    )  # ln(1/(1+e)) rounds at 1e-16


@pytest.mark.parametrize("name", CASES)
def test_what_is_masked_does_not_matter(name):
    fast, _, inputs = CASES[name]
    whole = fast(*as_tensors(*inputs))
    changed = [tensor(np.where(MASK[..., None], array, 1e6 * (1 + array))) for array in inputs]
    changed = [value.requires_grad_() for value in changed]
    again = fast(*changed)
    assert torch.equal(again, whole)
    again.sum().backward()
    for value in changed:
        assert torch.all(value.grad[~mask] == 0)
        assert torch.isfinite(value.grad).all()


@pytest.mark.parametrize("name", sorted(set(CASES) - HELD_FIXED))
def test_gradients_against_finite_differences(name):
    fast, _, inputs = CASES[name]
    assert torch.autograd.gradcheck(fast, [value.requires_grad_() for value in as_tensors(*inputs)])


def frozen_wga(z):
    weight = np.exp(1.7 * own(tensor(LOGITS)).numpy())
    return o.mean_over_labels(tensor(weight) * own(z), mask)


def frozen_satimp(z):
    p = np.exp(own(tensor(LOGITS)).numpy())
    return o.mean_over_labels(tensor(p**2.5 * (1 - p) ** 0.5) * own(z), mask)


def frozen_ceu(skip):
    target = np.zeros((B, T, V))
    for r, n in enumerate(LENGTHS):
        for t in range(skip, n):
            target[r, t] = distribution(LOGITS[r][t])
            target[r, t, LABELS[r, t]] = 0
            target[r, t] /= target[r, t].sum()
    counted = tensor(MASK & (np.arange(T) >= skip))
    return lambda z: o.mean_over_labels(-(tensor(target) * z.log_softmax(-1)).sum(-1), counted)


@pytest.mark.parametrize(
    ("name", "frozen"),
    [("wga", frozen_wga), ("satimp", frozen_satimp), ("ceu", frozen_ceu(0)), ("ceu-skip", frozen_ceu(1))],
)
def test_gradients_of_what_is_held_fixed(name, frozen):
    """The gradient is that of the formula with its weights as constants, which in turn meets finite differences."""
    fast, _, inputs = CASES[name]
    (z,) = (value.requires_grad_() for value in as_tensors(*inputs))
    (expected,) = torch.autograd.grad(frozen(z).sum(), z)
    (found,) = torch.autograd.grad(fast(z).sum(), z)
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(frozen, [z])


# Examples by hand -------------------------------------------------------------------------------------------


def test_by_hand():
    half, all_of_it = torch.tensor([[math.log(0.5)]]).double(), torch.ones(1, 1, dtype=torch.bool)
    assert o.likelihood(half, all_of_it).item() == pytest.approx(math.log(2))
    # At the reference: ln σ(0) = −ln 2, whatever β.
    for beta in (0.1, 1.0, 5.0):
        assert o.npo(half, half, all_of_it, beta).item() == pytest.approx(2 / beta * math.log(2))
        assert o.dpo(half, half, half, half, all_of_it, all_of_it, beta).item() == pytest.approx(2 / beta * math.log(2))
    # π = π_r / 2 with β = 1: −2 ln σ(ln 2) = −2 ln(2/3).
    assert o.npo(half, half * 0, all_of_it, 1.0).item() == pytest.approx(-2 * math.log(2 / 3))
    # Mean log-probability ln ½, β = 1, no margin: the same number, by length.
    assert o.simnpo(half, all_of_it, 1.0, 0.0).item() == pytest.approx(-2 * math.log(2 / 3))
    assert o.probability_weighted(half, all_of_it, 1.0).item() == pytest.approx(-0.5 * math.log(2))
    assert o.importance_weighted(half, all_of_it, 5.0, 1.0).item() == pytest.approx(-(0.5**6) * math.log(2))
    z = torch.tensor([[[math.log(2), 0.0, 0.0]]]).double()  # ½, ¼, ¼
    first = torch.zeros(1, 1, dtype=torch.long)
    assert o.label_log_probs(z, first).item() == pytest.approx(math.log(0.5))
    assert o.avoidance(z, first, all_of_it).item() == pytest.approx(math.log(4))  # ½·ln 4 + ½·ln 4
    assert o.kl_divergence(z, 0 * z, all_of_it).item() == pytest.approx(
        (math.log(2 / 3) + 2 * math.log(4 / 3)) / 3
    )  # fmt: skip
    assert o.self_distillation(z, z, first, all_of_it, math.log(2)).item() == pytest.approx(
        (math.log(2) + 2 * math.log(4)) / 3  # the teacher becomes uniform
    )
    assert o.flatness(z, all_of_it).item() == pytest.approx((2 / 3 * math.log(2)) ** 2)
    assert o.dual_step(1.0, 0.25, 2.0) == 1.5
    assert o.dual_step(1.0, -0.75, 2.0) == 0.0


def test_limits():
    """As β → 0 NPO's gradient is gradient ascent's (of the sum); far below the reference it vanishes."""
    z = tensor(LOGITS).requires_grad_()
    (npo,) = torch.autograd.grad(o.npo(own(z), reference, mask, 1e-7).sum(), z)
    (ascent,) = torch.autograd.grad(o.sum_over_labels(own(z), mask).sum(), z)
    torch.testing.assert_close(npo, ascent, rtol=1e-5, atol=1e-6)  # of first order in β
    assert o.npo(own(z) - 100, reference, mask, 1.0).abs().max() < 1e-30
    far = torch.full((1, 1), 1e4).double()  # neither overflows nor loses its slope
    assert o.npo(far, 0 * far, torch.ones(1, 1, dtype=torch.bool), 1.0).item() == pytest.approx(2e4)


def test_ce_u_survives_a_certain_model_and_satimp_an_overconfident_one():
    z = torch.zeros(1, 1, 3)
    z[..., 0] = 80.0
    z.requires_grad_()
    loss = o.avoidance(z, torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool))
    loss.sum().backward()
    assert loss.item() == pytest.approx(80)  # both other tokens have e^−80, the target ½ each
    assert torch.isfinite(z.grad).all()
    above = torch.full((1, 1), 1e-7)  # rounding may put a log-probability above 0
    assert torch.isfinite(o.importance_weighted(above, torch.ones(1, 1, dtype=torch.bool), 5.0, 0.5)).all()


def test_the_direction_is_a_unit_vector_and_the_seeds():
    u = o.steering_direction(64, seed=3)
    assert u.norm().item() == pytest.approx(1)
    assert torch.equal(u, o.steering_direction(64, seed=3))
    assert not torch.equal(u, o.steering_direction(64, seed=4))
    assert (u >= 0).all()


def test_unlikelihood_is_right_where_the_label_is_certain_and_stops_where_it_is_unlikely():
    """−ln(1 − p) of p = 1 − 1e-17 is 39 and not infinite, and its gradient pulls; below the floor there is none."""
    certain = torch.tensor([[[39.1439, 0.0, -50.0]]], dtype=torch.float64, requires_grad=True)
    label, one = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
    loss = o.unlikelihood(certain, label, one, -5.0)
    assert loss.item() == pytest.approx(39.1439)
    loss.sum().backward()
    assert certain.grad[0, 0, 0].item() == pytest.approx(1.0)
    low = torch.tensor([[[-5.1, 0.0, -50.0]]], dtype=torch.float64)
    assert o.unlikelihood(low, label, one, -5.0).item() == 0
    assert o.unlikelihood(low, label, one, -6.0).item() > 0
