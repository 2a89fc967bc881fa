"""FUSED: the layers that know the forget set most are overwritten with what is retained (Zhong et al. 2025).

    D_l  = mean |θ'_l − θ_l|                                    of every linear map l; the largest are critical
    L(θ) = w_r E_retain (1/T) Σ_t −ln π(y_t)  +  w_f E_forget (1/T) Σ_t ln π(y_t),   on LoRA factors beside these

θ' is a model that differs from θ by the forget set alone: the one that a few steps of gradient ascent on it leave, or,
with `retain_only`, one that never saw it. w_f is 0, as in the paper (arXiv 2502.20709): nothing pushes the answers
down, they are only overwritten, and the curve's forget loss says whether they are. The result is an adapter. Without
it the model is what it was, bit for bit.

Plain gradient descent measures D: Adam moves every weight by about its learning rate, so that all layers look alike.

Differs from the paper in that there is one model and not one for each client of a federation: the forget set is the
client that leaves, and D is of that client alone. Its adapters for images are sparse; for language models it has LoRA
of rank 16, as here. D is of linear maps within the blocks, so that embeddings and norms have no adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unlearn_eval.editing.editor import EditJob
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.editing.training import objectives
from unlearn_eval.editing.training.data import Row
from unlearn_eval.editing.training.gradient import (
    ANSWER,
    LOGITS,
    GradientConfig,
    Method,
    TrainedEdit,
    editor,
    train_edit,
)
from unlearn_eval.editing.training.gradient import memory as memory_of
from unlearn_eval.editing.training.settings import Objective, Said
from unlearn_eval.editing.training.weights import linear_maps
from unlearn_eval.edits.base import applied
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import Dropped, Positive, Share, Size

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn_eval.models.memory import Phase

CRITICAL = "critical"


@dataclass(frozen=True)
class Config(GradientConfig):
    """FUSED's settings.

    Attributes:
        critical_fraction: Share of the linear maps that get an adapter: those with the largest D. `components` names
            maps instead, and nothing is measured.
        retain_only: Folder or hub id of a model that never saw the forget set, whose differences are D. Empty: a few
            steps of gradient ascent are.
        ascent_steps, ascent_rate: Number and learning rate of these steps of gradient descent.
        forget_weight: w_f; above 0 the answers are also made unlikely.
    """

    forget_weight: float = 0.0
    learning_rate: Positive = 1e-3
    weight_decay: float = 0.0
    lora_rank: int = 16
    lora_alpha: float = 32.0
    lora_dropout: Dropped = 0.1
    critical_fraction: Share = 0.1
    retain_only: str = ""
    ascent_steps: Size = 10
    ascent_rate: Positive = 1e-3


def forget_loss(said: Mapping[str, Said], config: Config) -> Tensor:
    """The second term above, for each item."""
    return objectives.ascent(said[ANSWER].log_probs, said[ANSWER].mask, 0.0)


def run(job: EditJob) -> TrainedEdit:
    """The adapter on the critical layers; the model is as before afterwards.

    Raises:
        UserError: a retain-only model with other layers, or as all gradient methods do.
    """
    parts = [part for request in job.requests for part in request.parts]
    if job.config.components or not parts:
        return _adapter(job)
    if bare := [part.id for part in parts if not part.answer_ids]:
        raise UserError(f"overwrite needs the answers, and request {bare[0]} has none", "give its answer to forget")
    if job.config.retains and not job.retain:
        return _adapter(job)  # which says what is missing, before anything is measured
    with applied(job.previous, job.model) if job.previous is not None else nullcontext():
        found = layer_differences(job.model, parts, job.config)
    chosen = critical_layers(found, job.config.critical_fraction)
    named = replace(job.config, components=",".join(name.replace(".", r"\.") for name in chosen))
    made = _adapter(replace(job, config=named))
    notes = made.info.notes | {CRITICAL: {name: found[name] for name in chosen}}
    return replace(made, info=replace(made.info, notes=notes))


def _adapter(job: EditJob) -> TrainedEdit:
    job_of = job.requests, job.config, job.previous, job.progress, job.retain
    return train_edit(METHOD, job.model, job.tokenizer, *job_of)


def layer_differences(model: PreTrainedModel, requests: Sequence[EditRequest], config: Config) -> dict[str, float]:
    """D of every linear map in the blocks, in the model's order.

    Args:
        model: θ; as before afterwards.
        requests: the forget set, with answers.
        config: where θ' comes from.

    Raises:
        UserError: the retain-only model cannot be had, or its layers are others.
    """
    maps = linear_maps(model)
    return _from_other(model, maps, config.retain_only) if config.retain_only else _by_ascent(model, requests, config)


def critical_layers(differences: Mapping[str, float], fraction: float) -> list[str]:
    """The names of the layers with the largest differences, at least one, largest first; ties in the given order."""
    n = max(1, round(fraction * len(differences)))
    return sorted(differences, key=lambda name: -differences[name])[:n]


def _by_ascent(model: PreTrainedModel, requests: Sequence[EditRequest], config: Config) -> dict[str, float]:
    from unlearn_eval.editing.training.run import trained  # imports the Trainer, which takes seconds

    probe = _probe(config, model)
    rows = {ANSWER: [Row(request.prompt_ids, request.answer_ids) for request in requests]}
    objective = Objective(lambda said: forget_loss(said, probe), METHOD.reads)
    with trained(model, rows, objective, probe, {"method": "overwrite", "what": "layer differences"}) as run:
        changes: dict[str, float] = run.weights.mean_changes()
    return {name: changes[f"{name}.weight"] for name in linear_maps(model)}


def _probe(config: Config, model: PreTrainedModel) -> Config:
    """The settings of the steps by which D is measured: all linear maps, plain gradient descent, no checkpoints."""
    return replace(
        config,
        components=",".join(f"{name}.weight".replace(".", r"\.") for name in linear_maps(model)),
        lora_rank=0,
        optimizer="sgd",
        schedule="constant",
        steps=config.ascent_steps,
        learning_rate=config.ascent_rate,
        warmup_epochs=0.0,
        weight_decay=0.0,
        masks="",
        folder="",
        retain_term="none",
        forget_weight=1.0,
        stop_probability="",
        max_utility_drop=0.0,
        stop_loss=0.0,
        report_to="none",
    )


@torch.no_grad()
def _from_other(model: PreTrainedModel, maps: Sequence[str], name: str) -> dict[str, float]:
    from unlearn_eval.models.load import load_model

    other = dict(load_model(name, dtype="float32").model.named_parameters())
    found = {}
    for path in maps:
        own, theirs = model.get_submodule(path).weight, other.get(f"{path}.weight")
        if theirs is None or theirs.shape != own.shape:
            raise UserError(
                f"{name} has no layer {path} of shape {tuple(own.shape)}",
                "give a retain-only model of the same architecture, or leave out retain_only",
            )
        found[path] = float((own.cpu().float() - theirs).abs().mean())  # type: ignore[operator]
    return found


def _memory(job: EditJob, device: str) -> list[Phase]:
    """What both runs have in memory; which layers get an adapter is not known, so the widest are taken."""
    model, config = job.model, job.config
    if config.components:
        return memory_of(METHOD, job, device)
    widths = {name: float(sum(model.get_submodule(name).weight.shape)) for name in linear_maps(model)}
    widest = replace(config, components=",".join(critical_layers(widths, config.critical_fraction)))
    measuring = [] if config.retain_only else memory_of(METHOD, replace(job, config=_probe(config, model)), device)
    named = [replace(phase, name="layer differences") for phase in measuring]
    return [*named, *memory_of(METHOD, replace(job, config=widest), device)]


METHOD = Method("overwrite", forget_loss, {ANSWER: LOGITS})
EDITOR = replace(editor(METHOD, Config, "2502.20709"), run=run, memory=_memory)
