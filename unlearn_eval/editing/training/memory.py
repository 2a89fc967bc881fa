"""What training has in memory, on a model without weights: a whole step, once the optimizer has a state."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from unlearn_eval.editing.training.data import RETAIN, Rows, tensors
from unlearn_eval.editing.training.reading import Reader, wide
from unlearn_eval.editing.training.run import passes_of, precision_of
from unlearn_eval.editing.training.settings import Objective, TrainingConfig
from unlearn_eval.editing.training.weights import LowRankWeights, match_names, split_patterns
from unlearn_eval.models.memory import EDIT, GRADIENTS, Counted, Phase, counting, edited, hollow, n_bytes, set_data
from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OPTIMIZER, MASTER = "optimizer", "trained weights in float32"


def memory(
    model: PreTrainedModel, rows: Rows, objective: Objective, config: TrainingConfig, device: str
) -> list[Phase]:
    """What a run has in memory beside the model's weights.

    Args:
        model: weightless; as before afterwards.
        rows, objective, config: as for `trained`.
        device: its kind, by which `precision` is chosen, and how the optimizer goes through the weights.
    """
    n = len(next(kind for part, kind in rows.items() if part != RETAIN))
    batch, accumulation = passes_of(n, config.batch_size, config.micro_batch_size)
    size = math.ceil(batch / accumulation)
    longest = {part: sorted(kind, key=len)[-size:] for part, kind in rows.items() if objective.all_reads.get(part)}
    dtype = model.dtype  # as it was: what is trained becomes float32
    mixed = precision_of(dtype, config, device) == "bfloat16"
    with _trained(model, config) as (whole, more):
        reader = Reader(whole, objective.layer)
        parameters = [own for own in whole.parameters() if own.requires_grad]
        head = reader.inner.get_output_embeddings()
        if any("reference_logits" in reads for reads in objective.all_reads.values()) and head.weight.requires_grad:
            more |= {"frozen head": n_bytes(head.parameters())}
        if config.gradient_checkpointing:
            reader.inner.gradient_checkpointing_enable({"use_reentrant": False})
        whole.train()
        optimizer = _optimizer(whole, config, device)
        with counting(whole) as counted:
            _gradients(counted, parameters)
            with counted.kind(OPTIMIZER):
                optimizer.step()  # from here on it has a state
            optimizer.zero_grad()
            if accumulation > 1:  # gradients of the passes before
                _gradients(counted, parameters)
            with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
                loss = _loss(reader, longest, objective)
            loss.backward()  # type: ignore[no-untyped-call]
            with counted.kind(OPTIMIZER):
                optimizer.step()
            optimizer.zero_grad()
            del loss
        trained = n_bytes(parameters)
        edit = trained if config.lora_rank else trained * dtype.itemsize // 4
        originals = sum(map(_replaced, whole.modules())) if config.lora_rank else edit
    steps = {"checkpoints of the run": 2 * (3 if config.folder else 1) * trained}
    disk = {EDIT: edit, **steps, **({} if config.lora_rank else {"originals of the run": edit})}
    return [Phase("training", counted.peak, edited(originals, edit, device), disk).beside(more)]


def _replaced(module: torch.nn.Module) -> int:
    """The bytes of the weight that a module's factors are added to."""
    return module.base_layer.weight.nbytes if hasattr(module, "lora_A") else 0  # type: ignore[union-attr, return-value]


def _gradients(counted: Counted, parameters: Sequence[Tensor]) -> None:
    with counted.kind(GRADIENTS):
        for own in parameters:
            own.grad = torch.zeros_like(own)


def _loss(reader: Reader, longest: Rows, objective: Objective) -> Tensor:
    said = {}
    for part, kind in longest.items():
        batch, reads = tensors(kind), objective.all_reads[part]
        batch |= _reference(reader, batch, reads)
        said[part] = reader.read(reader.model, batch, reads, lambda batch: batch["reference_logits"])
    loss: Tensor = objective.forget_weight * objective.forget(said).sum()
    return loss + objective.retain_weight * objective.retain(said[RETAIN]).sum() if RETAIN in said else loss


def _reference(reader: Reader, batch: Mapping[str, Tensor], reads: frozenset[str]) -> dict[str, Tensor]:
    """What the reference said of a batch, of the size that it has."""
    config = reader.inner.config.get_text_config()
    weight, shape = next(reader.inner.parameters()), batch["labels"].shape
    sizes = {"reference": shape, "reference_hidden": (*shape, config.hidden_size)}
    sizes["reference_logits"] = (*shape, config.vocab_size)
    names = {"reference": "reference_log_probs"}
    return {
        names.get(name, name): weight.new_zeros(size, dtype=torch.promote_types(weight.dtype, torch.float32))
        for name, size in sizes.items()
        if name in reads
    }


def _optimizer(model: Any, config: TrainingConfig, device: str) -> torch.optim.Optimizer:
    """The optimizer that the Trainer would take.

    Raises:
        UserError: it cannot run on tensors without numbers.
    """
    try:
        with TemporaryDirectory() as folder:
            arguments = TrainingArguments(folder, optim=config.optimizer, report_to="none", use_cpu=True)
            kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        if kind is torch.optim.AdamW:
            options["foreach"] = device != "cpu"  # on a GPU it goes through all weights at once
        made: torch.optim.Optimizer = kind([own for own in model.parameters() if own.requires_grad], **options)
        return made
    except (ImportError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the memory of the optimizer {config.optimizer} cannot be planned: {' '.join(str(error).split())[:120]}",
            "plan with --set optimizer=adamw_torch",
        ) from error


@contextmanager
def _trained(model: PreTrainedModel, config: TrainingConfig) -> Iterator[tuple[Any, dict[str, int]]]:
    """The model with what is trained as in a run, and what that takes beside the weights, within a `with` block."""
    patterns = split_patterns(config.components)
    if config.lora_rank:
        with torch.device("meta"):
            weights = LowRankWeights(model, patterns, config.lora_rank, 1.0, config.lora_dropout)
        hollow(weights.model)
        own = n_bytes(parameter for parameter in weights.model.parameters() if parameter.requires_grad)
        try:
            yield weights.model, {"LoRA": 2 * own}  # with the factors at the start
        finally:
            _plain(weights.model)
            weights.restore()
        return
    parameters = {name: own for name, own in model.named_parameters() if own.is_floating_point()}
    names = match_names(list(parameters), patterns) if patterns else list(parameters)
    chosen = [parameters[name] for name in names]
    before = [own.detach() for own in chosen]
    for own, narrow in zip(chosen, before, strict=True):
        set_data(own, wide(narrow))
        own.requires_grad_(True)
    grown = n_bytes(chosen) - n_bytes(before)
    try:
        yield model, {MASTER: grown} if grown else {}
    finally:
        _plain(model)
        for own, data in zip(chosen, before, strict=True):
            own.grad = None
            set_data(own, data)
            own.requires_grad_(False)


def _plain(model: Any) -> None:
    model.eval()
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if getattr(inner, "is_gradient_checkpointing", False):
        inner.gradient_checkpointing_disable()
