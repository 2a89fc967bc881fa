"""What a model says at the labels of a batch: one forward pass, and of it only what an objective reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unlearn_eval.editing.training.settings import Said
from unlearn_eval.models.arguments import accepts
from unlearn_eval.models.tracing import trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Reader:
    """Forward passes of the model that is trained.

    Args:
        model: the model, or PEFT's wrapper around it.
        layer: the path of the block whose output is `hidden`, if one is read.
        ends_early: whether a pass may end at that block, where nothing else is read.

    Attributes:
        inner: the model itself.
    """

    def __init__(self, model: Any, layer: str | None, ends_early: bool = True) -> None:
        self.model, self.layer, self.ends_early = model, layer, ends_early
        self.inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.takes_keep = accepts(self.inner, "logits_to_keep")
        self.takes_positions = accepts(self.inner, "position_ids")

    def read(
        self,
        model: PreTrainedModel,
        batch: Mapping[str, Tensor],
        wanted: frozenset[str],
        reference_logits: Any = lambda batch: None,
    ) -> Said:
        """What `model`, which may be wrapped once more, says of a batch; and what the reference said of it.

        Args:
            model: what is called.
            batch: tensors as a `Collator` makes them.
            wanted: what is needed, as in `Objective.reads`.
            reference_logits: function from the batch to the reference's logits, called where they are needed.
        """
        width = batch["labels"].shape[1]
        layer = self.layer if wanted & {"hidden"} else None
        early = layer if layer and "logits" not in wanted and model is self.model and self.ends_early else None
        with trace(self.inner, outputs=[layer] if layer else [], stop_after=early) as seen:
            logits = self.forward(model, batch, width)
        return Said(
            labels=batch["labels"],
            mask=batch["mask"],
            logits=wide(logits) if "logits" in wanted else None,
            hidden=wide(seen.outputs[layer][:, -width:]) if layer else None,
            reference=batch.get("reference_log_probs"),
            reference_logits=reference_logits(batch) if "reference_logits" in wanted else None,
            reference_hidden=batch.get("reference_hidden"),
        )

    def forward(self, model: PreTrainedModel, batch: Mapping[str, Tensor], width: int) -> Tensor:
        """Logits (B, T, V) by which the labels are predicted."""
        options: dict[str, Any] = {"logits_to_keep": width} if self.takes_keep else {}
        if self.takes_positions:
            options["position_ids"] = (batch["attention"].cumsum(-1) - 1).clamp(min=0)
        output = model(input_ids=batch["ids"], attention_mask=batch["attention"], use_cache=False, **options)
        logits: Tensor = output.logits[:, -width:]
        return logits


def wide(tensor: Tensor) -> Tensor:
    """A tensor in float32, or in its own type if that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
