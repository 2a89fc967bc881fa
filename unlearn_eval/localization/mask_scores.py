r"""Which weights within chosen components matter: by attribution, or by a mask that is learned (arXiv 2410.12949).

    attribution   |w · ∂m/∂w|, m the logit difference of true and wrong answers, summed over facts: to first order what
                  m loses when the weight is set to zero (as in SNIP, arXiv 1810.02340)
    learned       1 − μ, where μ ∈ [0, 1] multiplies each weight, starts at 1 and is trained with the weights fixed:
                  min λ₁ · unlikelihood of what is forgotten + likelihood loss of what is kept + λ · mean(1 − μ)

The weights with the largest scores, so many of all components together, are what may be trained; all others stay as
they are. The second is the paper's variant (section 4; binary masks with an L1 penalty), whose code (magikarp01/
mechanistic-unlearning) is without a licence and was not read for this: rate, steps and penalty are our own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unlearn_eval.editing.training import objectives
from unlearn_eval.editing.training.data import RETAIN, Row, tensors
from unlearn_eval.editing.training.masks import WeightMasks, largest
from unlearn_eval.localization.activations import answer_metric
from unlearn_eval.localization.base import Run
from unlearn_eval.localization.budget import n_weights_of
from unlearn_eval.models.arguments import accepts
from unlearn_eval.models.scoring import pad, positions
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.progress import Progress
from unlearn_eval.utils.settings import Positive, Size

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WAYS = ("attribution", "learned")
FORGET = "forget"


@dataclass(frozen=True)
class MaskConfig:
    """How single weights are chosen.

    Attributes:
        way: `attribution` or `learned`.
        weights: how many: `10%` or `0.1` (of those in the chosen components), `500k`, `2M`, or a number.
        steps, learning_rate, batch_size: of training masks (Adam).
        forget_weight: λ₁, of the loss of what is forgotten.
        penalty: λ, of every weight that is masked.
        floor: as of the editor unlikelihood.
    """

    way: str = "attribution"
    weights: str = "10%"
    steps: Size = 20
    learning_rate: Positive = 0.05
    batch_size: Size = 8
    forget_weight: float = 1.0
    penalty: float = 1.0
    floor: float = -5.0

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise unknown_name("way to choose weights", self.way, WAYS)
        n_of(self.weights, 10**12)
        if self.steps < 1 or self.batch_size < 1 or self.learning_rate <= 0 or self.penalty < 0:
            raise UserError(
                f"steps {self.steps}, batch_size {self.batch_size}, learning_rate {self.learning_rate}, penalty"
                f" {self.penalty} of masks do not make sense",
                "give numbers above 0",
            )


def n_of(text: str, whole: int) -> int:
    """How many weights a text stands for, of so many.

    Raises:
        UserError: it is no number or share, or more than there are.
    """
    n = n_weights_of(text, whole)
    if n is None or not 0 < n <= whole:
        raise UserError(
            f"masks.weights '{text}' is no number of weights between 1 and {whole:,}", "give 10%, 0.1, 500k or 2M"
        )
    return n


def weight_masks(
    run: Run, modules: Sequence[str], config: MaskConfig, forget: Sequence[Row] = (), retain: Sequence[Row] = ()
) -> WeightMasks:
    """Masks of the components' weight matrices; biases are not trained.

    Args:
        run: the model and the facts.
        modules: paths of linear maps.
        config: how.
        forget, retain: rows to train masks on; not read by attribution.

    Raises:
        UserError: more weights than there are, nothing to train masks on, or fewer masks than that have moved.
    """
    parameters = {f"{name}.weight": run.model.get_submodule(name).weight for name in modules}
    n = n_of(config.weights, sum(own.numel() for own in parameters.values()))
    with _with_gradients(run.model, parameters if config.way == "attribution" else {}):
        if config.way == "attribution":
            scores = attributed(run, parameters)
        else:
            scores = learned(run.model, parameters, config, forget, retain, run.seed, run.progress)
    n_scored = sum(int((own > 0).sum()) for own in scores.values())
    if n_scored < n:
        raise UserError(
            f"{n_scored:,} weights have a score, and masks.weights is {config.weights} ({n:,})",
            "give fewer masks.weights, more facts, or more masks.steps",
        )
    return WeightMasks.of(largest(scores, n))


def attributed(run: Run, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameter -> |w · ∂m/∂w| in float32, in its shape."""
    model = run.model
    sums = {name: torch.zeros_like(own, dtype=torch.float32) for name, own in parameters.items()}
    options = {"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}
    for start in range(0, len(run.facts), run.rows):
        facts = run.facts[start : start + run.rows]
        ids, mask = pad([fact.prompt_ids for fact in facts], "left", model.device)
        own = {"attention_mask": mask, "use_cache": False, **positions(model, mask), **options}
        with torch.enable_grad():
            value = answer_metric(model(input_ids=ids, **own).logits[:, -1], facts, "logit_difference")
            gradients = torch.autograd.grad(value.sum(), list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            sums[name] += gradient
        run.progress("facts attributed", start + len(facts), len(run.facts))
    with torch.no_grad():
        return {name: (sums[name] * parameters[name].float()).abs() for name in sums}


def learned(
    model: PreTrainedModel,
    parameters: Mapping[str, Tensor],
    config: MaskConfig,
    forget: Sequence[Row],
    retain: Sequence[Row],
    seed: int,
    progress: Progress,
) -> dict[str, Tensor]:
    """Parameter -> 1 − μ in float32, in its shape; the model's weights stay as they are."""
    if not forget or not retain:
        raise UserError("masks are learned from what is forgotten and what is kept", "give --retain SET")
    masks = {name: torch.ones_like(own, dtype=torch.float32).requires_grad_() for name, own in parameters.items()}
    n = sum(own.numel() for own in masks.values())
    optimizer = torch.optim.Adam(masks.values(), lr=config.learning_rate)
    order = random.Random(seed)
    for step in range(config.steps):
        optimizer.zero_grad()
        with torch.enable_grad():
            for part, rows in ((FORGET, forget), (RETAIN, retain)):
                chosen = order.sample(range(len(rows)), min(config.batch_size, len(rows)))
                batch = {key: own.to(model.device) for key, own in tensors([rows[i] for i in chosen]).items()}
                torch.autograd.backward(_loss(model, parameters, masks, batch, part, config))
            for own in masks.values():
                assert own.grad is not None
                own.grad -= config.penalty / n  # the gradient of λ · mean(1 − μ)
        optimizer.step()
        with torch.no_grad():
            for own in masks.values():
                own.clamp_(0, 1)
        progress("masks", step + 1, config.steps)
    return {name: 1 - own.detach() for name, own in masks.items()}


def _loss(
    model: PreTrainedModel,
    parameters: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    part: str,
    config: MaskConfig,
) -> Tensor:
    """The mean loss of some rows, with masked weights in the place of the weights."""
    width = batch["labels"].shape[1]
    masked = {name: own * masks[name].to(own.dtype) for name, own in parameters.items()}
    options = {"attention_mask": batch["attention"], "use_cache": False, **positions(model, batch["attention"])}
    options |= {"logits_to_keep": width} if accepts(model, "logits_to_keep") else {}
    output = torch.func.functional_call(model, masked, (), {"input_ids": batch["ids"], **options})
    logits = output.logits[:, -width:].float()
    if part == FORGET:
        losses = objectives.unlikelihood(logits, batch["labels"], batch["mask"], config.floor)
        return config.forget_weight * losses.mean()
    return objectives.likelihood(objectives.label_log_probs(logits, batch["labels"]), batch["mask"]).mean()


@contextmanager
def _with_gradients(model: PreTrainedModel, parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """These parameters alone ask for gradients, within a `with` block."""
    before = {own: own.requires_grad for own in model.parameters()}
    wanted = {id(own) for own in parameters.values()}
    try:
        for own in before:
            own.requires_grad_(id(own) in wanted)
        yield
    finally:
        for own, needed in before.items():
            own.requires_grad_(needed)
