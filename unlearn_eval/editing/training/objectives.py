r"""The objectives of gradient unlearning, as pure functions of what a model says: one number for each row.

Symbols: x a prompt, y = y_1..y_T its labels (the end token among them), π the model that is trained, π_r the same model
before, log π(y_t) short for ln π(y_t | x, y_<t), σ the logistic function. Shapes: `log_probs`, `reference` and `mask`
are (B, T), logits (B, T, V), hidden states (B, T, d); `mask` is true where a row has a label. What is masked
counts for nothing, whatever stands there. Everything is minimized.

Every objective is a mean over a row's own labels (or a sum, where the paper has the probability of the whole
answer), and a batch's loss is the mean of its rows. So rows count the same however long they are and in whatever
batches they come; OpenUnlearning (d3d7cf9e) takes the mean over a batch's tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

__all__ = [
    "ascent",
    "avoidance",
    "dpo",
    "dual_step",
    "flatness",
    "importance_weighted",
    "kl_divergence",
    "label_log_probs",
    "likelihood",
    "mean_over_labels",
    "npo",
    "probability_weighted",
    "representation",
    "self_distillation",
    "simnpo",
    "steering",
    "steering_direction",
    "sum_over_labels",
    "unlikelihood",
]


def label_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """The labels' log π(y_t), (B, T), from logits (B, T, V) and labels (B, T)."""
    return logits.gather(-1, labels[..., None])[..., 0] - logits.logsumexp(-1)


def sum_over_labels(values: Tensor, mask: Tensor) -> Tensor:
    """Σ_t of a row's own labels, (B,)."""
    return torch.where(mask, values, 0).sum(-1)


def mean_over_labels(values: Tensor, mask: Tensor) -> Tensor:
    """(1/T) Σ_t of a row's own labels, (B,); 0 for a row without labels."""
    return sum_over_labels(values, mask) / mask.sum(-1).clamp(min=1)


def likelihood(log_probs: Tensor, mask: Tensor) -> Tensor:
    """−(1/T) Σ log π(y_t): what fine-tuning minimizes."""
    return -mean_over_labels(log_probs, mask)


def ascent(log_probs: Tensor, mask: Tensor, bound: float = 0.0) -> Tensor:
    """(1/T) Σ log π(y_t): gradient ascent on the likelihood (Jang et al. 2022, arXiv 2210.01504).

    Args:
        log_probs, mask: as everywhere.
        bound: B, of the row's loss: max(−B, ...) in its place (arXiv 2502.08075). 0 is none.
    """
    mean = mean_over_labels(log_probs, mask)
    return mean.clamp(min=-bound) if bound else mean


def kl_divergence(logits: Tensor, reference_logits: Tensor, mask: Tensor) -> Tensor:
    """(1/T) Σ_t KL(π_r(· | x, y_<t) ‖ π(· | x, y_<t)): stay what you were (TOFU, arXiv 2401.06121)."""
    reference = reference_logits.log_softmax(-1)
    divergence = (reference.exp() * (reference - logits.log_softmax(-1))).sum(-1)
    return mean_over_labels(divergence, mask)


def dpo(preferred: Tensor, preferred_reference: Tensor, rejected: Tensor, rejected_reference: Tensor,
        preferred_mask: Tensor, rejected_mask: Tensor, beta: float) -> Tensor:  # fmt: skip
    """−(2/β) ln σ(β [ln π(y⁺)/π_r(y⁺) − ln π(y⁻)/π_r(y⁻)]) (Rafailov et al. 2023, arXiv 2305.18290, equation 7).

    The factor 2/β is TOFU's and NPO's: as β → 0 the gradient tends to that of the difference of log-probabilities.
    """
    gain = sum_over_labels(preferred - preferred_reference, preferred_mask)
    loss = sum_over_labels(rejected - rejected_reference, rejected_mask)
    return -2 / beta * logsigmoid(beta * (gain - loss))


def npo(log_probs: Tensor, reference: Tensor, mask: Tensor, beta: float) -> Tensor:
    """−(2/β) ln σ(−β ln π(y)/π_r(y)): DPO with a rejected answer only (arXiv 2404.05868)."""
    return 2 / beta * softplus(beta * sum_over_labels(log_probs - reference, mask))


def simnpo(log_probs: Tensor, mask: Tensor, beta: float, margin: float) -> Tensor:
    """−(2/β) ln σ(−(β/T) ln π(y) − γ), γ the margin: NPO by length, without reference (arXiv 2410.07163)."""
    return 2 / beta * softplus(beta * mean_over_labels(log_probs, mask) + margin)


def probability_weighted(log_probs: Tensor, mask: Tensor, power: float) -> Tensor:
    """(1/T) Σ π(y_t)^α log π(y_t), the weight held fixed: WGA (arXiv 2502.19301).

    Ascent on what the model still believes: a token that it no longer says pulls no more.
    """
    weight = (power * log_probs.detach()).exp()
    return mean_over_labels(weight * log_probs, mask)


def importance_weighted(log_probs: Tensor, mask: Tensor, saturation: float, importance: float) -> Tensor:
    """(1/T) Σ π(y_t)^β₁ (1 − π(y_t))^β₂ log π(y_t), the weights held fixed: SatImp (arXiv 2505.11953).

    Args:
        log_probs, mask: as everywhere.
        saturation: β₁, turns away from what is forgotten already.
        importance: β₂, turns away from tokens that are certain whatever the fact (names of the question, endings).
    """
    fixed = log_probs.detach()
    weight = (saturation * fixed).exp() * (-torch.expm1(fixed)).clamp(min=0) ** importance
    return mean_over_labels(weight * log_probs, mask)


def self_distillation(
    logits: Tensor, reference_logits: Tensor, labels: Tensor, mask: Tensor, strength: float
) -> Tensor:
    """(1/T) Σ_t cross-entropy of π against softmax(z_r − β 1[y_t]): UNDIAL (arXiv 2402.10052).

    z_r are the reference's logits: its own distribution with the label's logit lowered by `strength` (β).
    """
    lowered = reference_logits.scatter_add(-1, labels[..., None], torch.full_like(reference_logits[..., :1], -strength))
    return mean_over_labels(-(lowered.softmax(-1) * logits.log_softmax(-1)).sum(-1), mask)


def avoidance(logits: Tensor, labels: Tensor, mask: Tensor, skip: int = 0) -> Tensor:
    """(1/T) Σ_t cross-entropy of π against π without the label, held fixed: CE-U (arXiv 2503.01224).

    The target is softmax(z with z_{y_t} = −∞): the model's own beliefs, renormalized. The first `skip` labels of each
    row are left out (the paper's footnote leaves out one).
    """
    target = logits.detach().scatter(-1, labels[..., None], float("-inf")).softmax(-1)
    later = mask & (mask.cumsum(-1) > skip)
    return mean_over_labels(-(target * logits.log_softmax(-1)).sum(-1), later)


def unlikelihood(logits: Tensor, labels: Tensor, mask: Tensor, floor: float) -> Tensor:
    """−(1/T) Σ_t 1[ln π(y_t) ≥ floor] ln(1 − π(y_t)): arXiv 2410.12949; without floor arXiv 1908.04319.

    1 − π(y_t) is what the other tokens have together, so that the gradient is right where π(y_t) is nearly 1.
    """
    whole = logits.logsumexp(-1)
    others = logits.scatter(-1, labels[..., None], float("-inf")).logsumexp(-1)
    likely = label_log_probs(logits.detach(), labels) >= floor
    return mean_over_labels(torch.where(likely, whole - others, 0), mask)


def flatness(logits: Tensor, mask: Tensor) -> Tensor:
    """(1/T) Σ_t (max_v z_v − mean_v z_v)²: nothing stands out (PDU, arXiv 2506.05314)."""
    return mean_over_labels((logits.amax(-1) - logits.mean(-1)).square(), mask)


def dual_step(multiplier: float, constraint: float, step: float) -> float:
    """max(0, λ + η c): the multiplier of a constraint c ≤ 0 after one step of dual ascent (PDU, arXiv 2506.05314)."""
    return max(0.0, multiplier + step * constraint)


def steering_direction(width: int, seed: int) -> Tensor:
    """The unit vector u (d,) of uniform random numbers in [0, 1) (RMU, arXiv 2403.03218)."""
    u = torch.rand(width, generator=torch.Generator().manual_seed(seed))
    unit: Tensor = u / u.norm()
    return unit


def steering(hidden: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """(1/T) Σ_t ‖h_t − c u‖² / d: push hidden states to one place (RMU, arXiv 2403.03218).

    Args:
        hidden: h, (B, T, d).
        target: c u, (d,); or (B, T, d) where the size depends on the token.
        mask: (B, T).
    """
    return mean_over_labels((hidden - target).square().mean(-1), mask)


def representation(hidden: Tensor, reference_hidden: Tensor, mask: Tensor) -> Tensor:
    """(1/T) Σ_t ‖h_t − h_t of the reference‖² / d: keep hidden states in place (RMU, arXiv 2403.03218)."""
    return steering(hidden, reference_hidden, mask)
