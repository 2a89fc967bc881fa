"""What the gradient methods share: from requests to rows, from an objective to a run, from a run to an edit.

    minimize   w_f · mean over forget items of L_forget  +  w_r · mean over retain items of L_retain

A method is one file: its equation, its settings, and its forget loss for each item, as a function of what the model
(and the model before training) says of the answer that is to be forgotten and of the refusal that is to take its place.
The result is a `DenseEdit` of the changed tensors, or a `LowRankEdit` if LoRA factors were trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from unlearn_eval.editing.editor import RETAIN, EditJob, Editor, check_state
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.editing.training.data import RETAIN as RETAIN_ROWS
from unlearn_eval.editing.training.data import Row
from unlearn_eval.editing.training.settings import RETAIN_TERMS, Dual, Objective, Said, TrainingConfig
from unlearn_eval.editing.training.sharding import whole
from unlearn_eval.editing.training.stop import watched
from unlearn_eval.editing.training.weights import FullWeights, LowRankWeights, check_components
from unlearn_eval.edits.base import DENSE, LOW_RANK, EditInfo, applied
from unlearn_eval.edits.dense import DenseEdit
from unlearn_eval.edits.low_rank import LowRankEdit, concatenate
from unlearn_eval.models.anatomy import blocks_of, is_transposed
from unlearn_eval.models.weights import known_weights
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.json_files import dumps
from unlearn_eval.utils.progress import Progress, no_progress

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from unlearn_eval.editing.training.run import Watch
    from unlearn_eval.models.memory import Phase
    from unlearn_eval.models.prompt_format import PromptFormat

CURVE = "training.jsonl"
PLACES = ("folder", "masks")  # settings that are paths of this machine
ANSWER, TARGET = "answer", "target"
TrainedEdit = DenseEdit | LowRankEdit

LOGITS = frozenset({"logits"})
WITH_REFERENCE = frozenset({"logits", "reference"})


@dataclass(frozen=True)
class GradientConfig(TrainingConfig):
    """What every gradient method has beside the settings of training.

    Attributes:
        retain_term: what keeps the rest: `likelihood` of retain answers, `kl` to the model before, `representation`
            (hidden states as before), or `none`.
        forget_weight, retain_weight: of the two losses.
    """

    retain_term: str = "likelihood"
    forget_weight: float = 1.0
    retain_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.retain_term not in RETAIN_TERMS:
            raise unknown_name("retain term", self.retain_term, RETAIN_TERMS)

    @property
    def retains(self) -> bool:
        """Whether anything holds the rest, for which items to retain are needed."""
        return self.retain_term != "none" and self.retain_weight != 0


class ForgetLoss(Protocol):
    """The loss of each item, (B,), from what is said of each kind of row."""

    def __call__(self, said: Mapping[str, Said], config: Any) -> Tensor:
        """The loss."""


@dataclass(frozen=True)
class Method:
    """One gradient method.

    Attributes:
        name: as on the command line.
        forget_loss: see `ForgetLoss`.
        reads: kind of row (`answer`, `target`) -> what is needed of it, as in `Objective.reads`.
        prepare: settings that depend on the model filled in.
        layer: the block whose output is read, if one is.
        dual: makes the retain weight a multiplier; given the settings and the steps per epoch.
        rewrite: other requests in place of the given ones (AltPO's alternate answers), and texts for the edit.
        teaches: whether the answers are to become likelier, so that `stop_probability` is reached from below.
    """

    name: str
    forget_loss: ForgetLoss
    reads: Mapping[str, frozenset[str]]
    prepare: Callable[[Any, Any], Any] = lambda config, model: config
    layer: Callable[[Any, Any], str | None] = lambda config, model: None
    dual: Callable[[Any, float], Dual | None] = lambda config, steps_per_epoch: None
    rewrite: Callable[..., tuple[list[EditRequest], dict[str, str]]] | None = None
    teaches: bool = False


def editor(method: Method, config: type[GradientConfig] = GradientConfig, paper: str = "") -> Editor:
    """The editor that trains by a method's objective.

    Args:
        method: the method.
        config: its settings.
        paper: arXiv identifiers.
    """

    def run(job: EditJob) -> TrainedEdit:
        return train_edit(
            method,
            job.model,
            job.tokenizer,
            job.requests,
            job.config,
            job.previous,
            job.progress,
            job.retain,
            job.prompt_format,
        )

    def check(config: GradientConfig, model: Any) -> None:
        own = method.prepare(config, model)
        if own.retains and own.retain_term == "representation":
            blocks_of(model)
        check_components(model, own.components, bool(own.lora_rank))

    return Editor(
        method.name,
        config,
        run,
        makes=_kind_made,
        uses={RETAIN},
        paper=paper,
        needs_retain=lambda config: config.retains or config.max_utility_drop > 0,
        check=check,
        says_targets=ANSWER not in method.reads,
        memory=partial(memory, method),
    )


def memory(method: Method, job: EditJob, device: str) -> list[Phase]:
    """What training by a method's objective has in memory, on a model without weights."""
    from unlearn_eval.editing.training.memory import memory as of_training  # imports the Trainer, which takes seconds

    parts = [part for request in job.requests for part in request.parts]
    config = method.prepare(job.config, job.model)
    rows = _rows(method, parts, job.retain, config)
    return of_training(job.model, rows, _objective(method, job.model, config, len(parts)), config, device)


def train_edit(
    method: Method,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    config: GradientConfig,
    state: TrainedEdit | None = None,
    progress: Progress = no_progress,
    retain: Sequence[EditRequest] = (),
    prompt_format: PromptFormat | None = None,
) -> TrainedEdit:
    """Train by a method's objective; the model is as before afterwards.

    Args:
        method: the method.
        model: a causal language model.
        tokenizer: of the model, if the method writes texts.
        requests: what to forget (`answer_ids`) and what to say instead (`target_ids`).
        config: the method's settings.
        state: an earlier edit by this method, to go on from; the new one holds both.
        progress: told of what is done.
        retain: what to keep (`answer_ids`).
        prompt_format: how questions were put, if the method writes texts.

    Raises:
        UserError: no retain items where the objective needs some, requests without what the objective reads, settings
            that the model cannot have, another method's edit, or as in `training_run.trained`.
    """
    if state is not None:
        _check_state(method, config, state)
    parts = [part for request in requests for part in request.parts]
    if not parts:
        return state or _nothing(method, config)
    config = method.prepare(config, model)
    texts: dict[str, str] = {}
    with applied(state, model) if state is not None else nullcontext():
        if method.rewrite is not None:
            parts, texts = method.rewrite(model, tokenizer, parts, config, progress, prompt_format)
        rows = _rows(method, parts, retain, config)
        objective = _objective(method, model, config, len(parts))
        watch = _watch(method, parts, retain, config)
        from unlearn_eval.editing.training.run import trained  # imports the Trainer, which takes seconds

        identity = {"method": method.name, "weights": known_weights(model).exact if config.folder else None}
        with trained(model, rows, objective, config, identity, progress, watch) as run:
            recorded = {name: value for name, value in asdict(config).items() if name not in PLACES}
            notes: dict[str, Any] = {"training": run.notes | {"n_retain": len(retain)}}
            info = EditInfo(method.name, recorded, notes=notes)
            made = _edit_of(run.weights, info)
    texts |= {CURVE: "".join(dumps(entry) + "\n" for entry in run.curve)}
    return _joined(made, state, texts)


def _kind_made(config: GradientConfig) -> str:
    return LOW_RANK if config.lora_rank else DENSE


def _rows(
    method: Method, requests: Sequence[EditRequest], retain: Sequence[EditRequest], config: GradientConfig
) -> dict[str, list[Row]]:
    """The rows of every kind that the objective reads."""
    rows: dict[str, list[Row]] = {}
    for part in method.reads:
        for request in requests:
            if not (request.answer_ids if part == ANSWER else request.target_ids):
                what = "answer to forget" if part == ANSWER else "target to say instead"
                raise UserError(
                    f"{method.name} needs the {part}s, and request {request.id} has none", f"give its {what}"
                )
        rows[part] = [Row(r.prompt_ids, r.answer_ids if part == ANSWER else r.target_ids) for r in requests]
    if config.retains:
        if not retain:
            raise UserError(
                f"{method.name} needs items to retain, and there are none",
                "give --retain SET (tofu:retain90, pistol:all, facts, a file), or --set retain_term=none",
            )
        rows[RETAIN_ROWS] = [Row(r.prompt_ids, r.answer_ids or r.target_ids) for r in retain]
    return rows


def _watch(
    method: Method, requests: Sequence[EditRequest], retain: Sequence[EditRequest], config: GradientConfig
) -> Watch | None:
    """What ends the run early, and the rows by which it is known; None if nothing does."""
    from unlearn_eval.editing.training.run import Watch

    rule = config.stop_rule(method.teaches)
    if not rule:
        return None
    if rule.probability is not None and (bare := [r.id for r in requests if not r.answer_ids]):
        raise UserError(
            f"stop_probability is that of the answers to forget, and request {bare[0]} has none",
            "give its answer to forget, or leave out stop_probability",
        )
    if rule.drop and not retain:
        raise UserError(
            "max_utility_drop is of items to retain, and there are none",
            "give --retain SET (tofu:retain90, pistol:all, facts, a file), or leave out max_utility_drop",
        )
    answers = [Row(r.prompt_ids, r.answer_ids) for r in requests if r.answer_ids]
    kept = [Row(r.prompt_ids, r.answer_ids or r.target_ids) for r in retain]
    return Watch(rule, watched(answers, config.seed), watched(kept, config.seed))


def _objective(method: Method, model: PreTrainedModel, config: GradientConfig, n: int) -> Objective:
    def forget(said: Mapping[str, Said]) -> Tensor:
        return method.forget_loss(said, config)

    keeps = config.retain_term if config.retain_weight != 0 else "none"
    layer = method.layer(config, model)
    if keeps == "representation" and layer is None:
        parts = blocks_of(model)
        layer = f"{parts.blocks}.{parts.n_layers - 1}"
    return Objective(
        forget,
        method.reads,
        keeps,
        config.forget_weight,
        config.retain_weight,
        layer,
        method.dual(config, n / min(config.batch_size, n)),
    )


def _edit_of(weights: FullWeights | LowRankWeights, info: EditInfo) -> TrainedEdit:
    """What training has changed, while it is in the model."""
    if isinstance(weights, LowRankWeights):
        factors = weights.factors()
        norms = {name: weight_norm(weights.model, name) for name in factors}
        base = weights.model.get_base_model()
        transposed = any(is_transposed(base.get_submodule(name).base_layer) for name in factors)
        return LowRankEdit(factors, replace(info, notes=info.notes | {"weight_norms": norms}), transposed)
    tensors, changes = weights.changes()
    return DenseEdit(tensors, replace(info, notes=info.notes | {"changes": changes}))


def weight_norm(model: PeftModel, name: str) -> float:
    """‖W‖ of a map that has LoRA factors beside it."""
    return float(whole(model.get_base_model().get_submodule(name).base_layer.weight.detach()).double().norm())


def _joined(made: TrainedEdit, state: TrainedEdit | None, texts: Mapping[str, str]) -> TrainedEdit:
    """An edit and the one that it went on from, as one."""
    if state is None:
        return replace(made, texts=texts)
    curve = state.texts.get(CURVE, "") + texts[CURVE]
    whole = {**texts, CURVE: curve}
    if isinstance(made, LowRankEdit) and isinstance(state, LowRankEdit):
        return replace(made, factors=concatenate(state.factors, made.factors), texts=whole)
    assert isinstance(made, DenseEdit) and isinstance(state, DenseEdit)  # noqa: PT018
    return replace(made.after(state), texts=whole)


def _check_state(method: Method, config: GradientConfig, state: TrainedEdit) -> None:
    check_state(state, method.name)
    if state.kind != _kind_made(config):
        before, now = ("LoRA factors", "weights") if state.kind == LOW_RANK else ("weights", "LoRA factors")
        raise UserError(f"the edit to go on from changed {before}, this one would change {now}", "set lora_rank alike")


def _nothing(method: Method, config: GradientConfig) -> TrainedEdit:
    info = EditInfo(method.name, {name: value for name, value in asdict(config).items() if name not in PLACES})
    return LowRankEdit({}, info) if config.lora_rank else DenseEdit({}, info)


def block_at_depth(model: PreTrainedModel, depth: float) -> int:
    """The block at a relative depth, e.g. 7/32."""
    n_layers = blocks_of(model).n_layers
    return int(min(n_layers - 1, max(0, round(depth * n_layers))))


def like(tensor: Tensor, values: Tensor) -> Tensor:
    """A constant on the device and in the type of a tensor."""
    return values.to(tensor.device, tensor.dtype)


def no_grad_norm(hidden: Tensor) -> Tensor:
    """‖h_t‖ of each token, (B, T, 1), without gradient."""
    with torch.no_grad():
        size: Tensor = hidden.norm(dim=-1, keepdim=True)
        return size
