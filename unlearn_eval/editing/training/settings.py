"""What a training run is told: how to train, and what to minimize. `training_run.py` does it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from unlearn_eval.editing.training import objectives
from unlearn_eval.editing.training.data import RETAIN
from unlearn_eval.editing.training.stop import StopRule
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.settings import Dropped, Positive, Size

_NEEDS = {
    "none": None,
    "likelihood": frozenset({"logits"}),
    "kl": frozenset({"logits", "reference_logits"}),
    "representation": frozenset({"hidden", "reference_hidden"}),
}
RETAIN_TERMS = tuple(_NEEDS)
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained, whatever the objective.

    Attributes:
        epochs: how often each item to forget is seen.
        steps: how many steps instead, if not 0.
        batch_size: items to forget per step, over all processes; at most as many as there are.
        micro_batch_size: rows per forward pass, at most; it changes memory and speed, not the result.
        learning_rate: the highest.
        weight_decay: AdamW's.
        warmup_epochs: over how many epochs it rises from 0.
        schedule: how it goes on: linear, cosine, constant_with_warmup, ... (the Trainer's names).
        max_grad_norm: longer gradients are cut to this; 0: never.
        optimizer: one of the Trainer's names.
        components: what is trained: patterns of module names separated by commas, as in `mlp.down_proj` or
            `layers.(5|6).mlp`; empty: everything (with LoRA: every linear map in the blocks).
        masks: a file of masks: only these single weights are trained, all others stay bit for bit (`weight_masks.py`).
        lora_rank: rank of LoRA factors; 0: the weights themselves.
        lora_alpha: LoRA's scale is this over its rank; 0: twice the rank.
        lora_dropout: LoRA's.
        precision: float32, bfloat16 (mixed), or auto: float32 on a CPU for a float32 model, else mixed.
        gradient_checkpointing: less memory, a third slower.
        shard: share weights, gradients and the optimizer out over the processes that torchrun has started (FSDP2).
        checkpoint_steps: steps between checkpoints; 0: once per epoch, at most five in a run.
        logging_steps: steps between entries of the curve.
        stop_probability: mean probability of the forget answers at which the run ends (of answers that are taught, to
            which it rises): a number, or a retain-only model's folder or result, whose probability it is. Empty: never.
        max_utility_drop: share by which the loss of retained answers may rise before the run ends; 0: any.
        stop_loss: mean forget loss at which the run ends; 0: never.
        check_steps: steps between checks of these three; 0: once per epoch.
        report_to: the Trainer's trackers, separated by commas; none: the curve in the edit alone.
        folder: where checkpoints and the reference's answers are kept, so that the same run can go on; empty: nowhere.
        seed: of the order, of what is retained, of dropout and of LoRA's start.
    """

    epochs: Positive = 10.0
    steps: int = 0
    batch_size: Size = 32
    micro_batch_size: Size = 8
    learning_rate: Positive = 1e-5
    weight_decay: float = 0.01
    warmup_epochs: float = 1.0
    schedule: str = "linear"
    max_grad_norm: float = 1.0
    optimizer: str = "adamw_torch"
    components: str = ""
    masks: str = ""
    lora_rank: int = 0
    lora_alpha: float = 0.0
    lora_dropout: Dropped = 0.0
    precision: str = "auto"
    gradient_checkpointing: bool = False
    shard: bool = False
    checkpoint_steps: int = 0
    logging_steps: Size = 1
    stop_probability: str = ""
    max_utility_drop: float = 0.0
    stop_loss: float = 0.0
    check_steps: int = 0
    report_to: str = "none"
    folder: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        if self.masks and self.lora_rank:
            raise UserError(
                "LoRA factors change whole matrices, and masks name single weights",
                "set lora_rank=0, or leave out masks",
            )
        if self.masks and self.shard:
            raise UserError("masks are of whole matrices, and shard=true parts them", "leave out shard or masks")
        if min(self.batch_size, self.micro_batch_size) < 1 or (self.steps <= 0 and self.epochs <= 0):
            raise UserError(
                f"batch_size {self.batch_size}, micro_batch_size {self.micro_batch_size}, epochs {self.epochs}, "
                f"steps {self.steps} do not make sense",
                "give batch sizes of at least 1, and epochs or steps above 0",
            )
        number = _number(self.stop_probability)
        if self.stop_probability and not (0 < number < 1 or math.isnan(number)):
            raise UserError(
                f"the setting stop_probability cannot be '{self.stop_probability}'",
                "give a number between 0 and 1, or the folder or result of a retain-only model",
            )

    def stop_rule(self, rises: bool = False) -> StopRule:
        """When the run ends early.

        Args:
            rises: whether the answers are taught.

        Raises:
            UserError: `stop_probability` names a file, of which `make_edit` reads the number.
        """
        number = _number(self.stop_probability)
        if self.stop_probability and math.isnan(number):
            raise UserError(
                f"stop_probability is '{self.stop_probability}', and not a number", "give a number between 0 and 1"
            )
        probability = number if self.stop_probability else None
        return StopRule(probability, rises, self.max_utility_drop, self.stop_loss, self.check_steps)


def _number(text: str) -> float:
    """A text as a number; NaN if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


@dataclass(frozen=True)
class Said:
    """What a model says at the labels of a batch, and what the reference said; shapes as in `objectives.py`."""

    labels: Tensor
    mask: Tensor
    logits: Tensor | None = None
    hidden: Tensor | None = None
    reference: Tensor | None = None
    reference_logits: Tensor | None = None
    reference_hidden: Tensor | None = None

    @cached_property
    def log_probs(self) -> Tensor:
        """The labels' ln π(y_t), (B, T)."""
        assert self.logits is not None
        return objectives.label_log_probs(self.logits, self.labels)


@dataclass(frozen=True)
class Dual:
    """A retain loss that must not exceed a bound, by a multiplier that grows while it does (PDU).

    Attributes:
        start: the multiplier at first.
        bound: of the retain loss.
        step: of dual ascent, once per training step.
        warmup_steps: training steps before the multiplier moves.
    """

    start: float
    bound: float
    step: float
    warmup_steps: int


@dataclass(frozen=True)
class Objective:
    """What is minimized: forget_weight · mean forget loss + retain_weight · mean retain loss.

    Attributes:
        forget: from what is said of each kind of row to one loss for each item, (B,).
        reads: kind of row -> what is needed of it: `logits`, `hidden`, `reference` (its ln π_r(y_t)),
            `reference_logits`, `reference_hidden`.
        retain_term: one of `RETAIN_TERMS`.
        forget_weight, retain_weight: of the two losses.
        layer: the path of the block whose output is `hidden`.
        dual: makes the retain weight a multiplier.
    """

    forget: Callable[[Mapping[str, Said]], Tensor]
    reads: Mapping[str, frozenset[str]]
    retain_term: str = "none"
    forget_weight: float = 1.0
    retain_weight: float = 1.0
    layer: str | None = None
    dual: Dual | None = None

    @property
    def all_reads(self) -> dict[str, frozenset[str]]:
        """`reads`, and what the retain term needs."""
        retain = _NEEDS[self.retain_term]
        return dict(self.reads) | ({} if retain is None else {RETAIN: retain})

    def retain(self, said: Said) -> Tensor:
        """The retain loss of each row, (B,)."""
        if self.retain_term == "likelihood":
            return objectives.likelihood(said.log_probs, said.mask)
        if self.retain_term == "kl":
            assert said.logits is not None and said.reference_logits is not None  # noqa: PT018
            return objectives.kl_divergence(said.logits, said.reference_logits, said.mask)
        assert said.hidden is not None and said.reference_hidden is not None  # noqa: PT018
        return objectives.representation(said.hidden, said.reference_hidden, said.mask)
