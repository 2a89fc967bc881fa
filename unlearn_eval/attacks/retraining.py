"""Fine-tuning as an attack: a model is trained on some facts, and asked others on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from unlearn_eval.attacks.asking import Row
from unlearn_eval.attacks.base import Case, Observation
from unlearn_eval.data.items import ForgetItem
from unlearn_eval.editing.requests.build import build_requests
from unlearn_eval.editing.training import objectives
from unlearn_eval.editing.training.data import Row as TrainingRow
from unlearn_eval.editing.training.gradient import ANSWER, LOGITS
from unlearn_eval.editing.training.settings import Objective, TrainingConfig
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.progress import Progress
from unlearn_eval.utils.settings import Dropped, Positive, Size, Sizes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn_eval.editing.requests.request import EditRequest
    from unlearn_eval.models.memory import Phase

WHY_NO_MEMORY = (
    "a memory leaves the weights as they were and decides at the end of a prompt, which rows of training do not show"
)


OBJECTIVE = Objective(lambda said: objectives.likelihood(said[ANSWER].log_probs, said[ANSWER].mask), {ANSWER: LOGITS})


@dataclass(frozen=True)
class RetrainingConfig(TrainingConfig):
    """How an attacker fine-tunes; the defaults are those of Guo et al. 2024 (arXiv 2410.12949).

    LoRA on every linear map of the blocks, so that it fits wherever the model does; `lora_rank=0` trains all weights,
    for which a learning rate of about 1e-5 is usual. Differs from them in the rank, 64 instead of 512 at the same alpha
    (to first order Adam's updates are as strong, and a small model's factors are not larger than the model), and in
    training on the facts alone, without their losses on kept facts and on text.

    Attributes:
        seeds: one run for each.
        measure_at: the steps after which the facts are asked, beside the last.
    """

    seeds: tuple[int, ...] = (0,)
    measure_at: Sizes = (5, 10)
    steps: Size = 20
    batch_size: Size = 32
    learning_rate: Positive = 2e-4
    weight_decay: float = 0.0
    warmup_epochs: float = 0.0
    schedule: str = "cosine"
    lora_rank: int = 64
    lora_alpha: float = 32.0
    lora_dropout: Dropped = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or not self.seeds:
            raise UserError(
                f"{self.steps} steps with {len(self.seeds)} seeds train nothing",
                "give --set steps=20 and --set seeds=0",
            )
        if self.folder:
            raise UserError("an attack keeps no checkpoints", "leave out --set folder=...")

    @property
    def points(self) -> tuple[int, ...]:
        """The steps after which the facts are asked."""
        return tuple(sorted({step for step in self.measure_at if 0 < step < self.steps} | {self.steps}))


def retrained(
    loaded: LoadedModel,
    items: Sequence[ForgetItem],
    prompt_format: PromptFormat,
    config: RetrainingConfig,
    seed: int,
    measure: Callable[[int], Any],
    progress: Progress,
) -> str | None:
    """Train a model on items, calling `measure` with the step wherever the facts are to be asked; then restore it.

    Within `measure` the model is as trained so far. When the loss is no longer a number training stops, and what was
    measured before stays.

    Returns:
        None, or the reason why training stopped early.

    Raises:
        UserError: an item that does not fit the model's context, or as in `training_run.trained`.
    """
    from unlearn_eval.editing.training.run import trained  # imports the Trainer, which takes seconds

    model = loaded.model
    answers = [item.answer for item in items]
    requests = build_requests(items, answers, prompt_format, (), loaded.max_length)
    rows = _rows(requests)

    def told(what: str, done: int, total: int) -> None:
        progress("relearning", done, total)
        if what == "steps" and done in config.points:
            measure(done)

    own = replace(config, seed=seed, report_to="none")
    with trained(model, rows, OBJECTIVE, own, {"method": "attack"}, told) as run:
        step = run.notes.get("diverged_after_step")
    return None if step is None else f"the loss was no longer a number after {step} steps"


def memory(
    model: PreTrainedModel, requests: Sequence[EditRequest], config: RetrainingConfig, device: str
) -> list[Phase]:
    """What training has in memory, on a model without weights and a kind of device."""
    from unlearn_eval.editing.training.memory import memory as of_training  # imports the Trainer, which takes seconds

    return of_training(model, _rows(requests), OBJECTIVE, config, device)


def _rows(requests: Sequence[EditRequest]) -> dict[str, list[TrainingRow]]:
    return {ANSWER: [TrainingRow(request.prompt_ids, request.answer_ids) for request in requests]}


def curve(
    case: Case,
    config: RetrainingConfig,
    loaded: LoadedModel,
    shown: Sequence[ForgetItem],
    rows: Sequence[Row],
    run: Observation,
) -> Iterator[Observation]:
    """What is measured at each point of one run; why it stopped early, if it did, is noted in the case.

    Args:
        case: the case.
        config: how the model is trained.
        loaded: the model.
        shown: what it is trained on.
        rows: what it is asked.
        run: model, fold, seed and condition of the run; the rest of it is not read.
    """
    found: dict[int, Observation] = {}  # a run that is begun again with fewer rows writes over what it had

    def measure(step: int) -> None:
        scores = case.scores(loaded, rows)
        if all(
            score.values["probability"] is not None for score in scores
        ):  # else it has diverged: training will say so
            found[step] = replace(run, at=step, scores=scores)

    stopped = retrained(loaded, shown, case.format_for(loaded), config, run.seed, measure, case.progress)
    if stopped:
        case.skipped[f"{run.model}, {run.condition}, fold {run.fold}, seed {run.seed}"] = stopped
    yield from (found[step] for step in sorted(found))
