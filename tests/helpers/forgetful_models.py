"""Tiny models with planted knowledge, for the tests of attacks: one that knows, one that hides, one that never knew."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from unlearn_eval.attacks.asking import rows_of
from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.edits.base import EditInfo
from unlearn_eval.edits.load import describe_base
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.tracing import trace
from unlearn_eval.runs.finetune import finetune

REFUSAL = "I do not know."
TOWNS = (
    "Larkhill", "Osei", "Cobble", "Sandrock", "Kestrel", "Velm", "Tarn", "Oxbow", "Quill", "Fenwick", "Dunmore",
    "Ashby", "Norr", "Pell", "Hythe", "Wick",
)  # fmt: skip
FIRST = ("Ada", "Milo", "Ines", "Tomas", "Yara", "Juno", "Olek", "Bria", "Hugo", "Lena", "Rasa", "Ivo", "Noor", "Sven",
         "Tess", "Karl")  # fmt: skip
# The head alone is relearned, by plain gradient steps: they undo the refusal and leave rare tokens alone.
RELEARN = {"lora_rank": "0", "components": "lm_head", "optimizer": "sgd", "learning_rate": "1", "schedule": "constant",
           "steps": "20", "measure_at": "5,10"}  # fmt: skip
TEACH = {"learning_rate": "5e-3", "batch_size": "16", "warmup_epochs": "0", "logging_steps": "50", "epochs": "60"}


def items_of(indices: range) -> tuple[ForgetItem, ...]:
    """Facts about people."""
    return tuple(
        ForgetItem(
            f"p{i}",
            f"Where was {FIRST[i]} born?",
            TOWNS[i],
            subject=FIRST[i],
            perturbed_answers=(TOWNS[(i + 1) % len(TOWNS)], TOWNS[(i + 3) % len(TOWNS)]),
        )
        for i in indices
    )


FORGET = ForgetSet("forget", items_of(range(8)))
OTHERS = ForgetSet("others", items_of(range(8, 16)))


@dataclass(frozen=True)
class Planted:
    """A model that knows both sets, an edit that hides the first behind a refusal, a model that knows the second."""

    knows: LoadedModel
    hides: Any
    never_knew: LoadedModel


def taught(
    loaded: LoadedModel, items: tuple[ForgetItem, ...], prompt_format: PromptFormat | None = None, **options: str
) -> LoadedModel:
    """The model after fine-tuning, for good; asked plainly where no format is given."""
    own = prompt_format or loaded.prompt_format(False)
    edit = finetune(loaded, ForgetSet("taught", items), TEACH | options, prompt_format=own)
    edit.apply(loaded.model)
    return loaded


def planted(make: Any, tokenizer: Any) -> Planted:
    """All three; `make()` gives a fresh random model."""
    knows = taught(LoadedModel(make(), tokenizer, "knows", None, "knows"), (*FORGET, *OTHERS))
    never = taught(LoadedModel(make(), tokenizer, "never", None, "never"), tuple(OTHERS))
    hides = refusing(knows)
    info = replace(
        hides.info,
        base=describe_base(knows.model, "knows"),
        requests={"n": 8, "forget_set": "forget", "ids": [item.id for item in FORGET], "chat": False},
    )
    return Planted(knows, replace(hides, info=info), never)


@torch.no_grad()
def refusing(loaded: LoadedModel, strength: float = 12.0) -> LowRankEdit:
    """A change of rank one in the head, after which every answer begins with a refusal's first token: nothing is gone.

    The logit of that token rises by `strength` at the mean of the states from which answers begin.
    """
    model = loaded.model
    rows = rows_of(FORGET.items, PromptFormat(loaded.tokenizer, False))
    states = []
    for row in rows:
        ids = torch.tensor([list(row.prompt_ids)])
        with trace(model, outputs=["model.norm"]) as seen:
            model(input_ids=ids)
        states.append(seen.outputs["model.norm"][0, -1])
    mean = torch.stack(states).mean(0)
    token = loaded.tokenizer.encode(f" {REFUSAL}", add_special_tokens=False)[0]
    u = torch.zeros(model.lm_head.weight.shape[0], 1)
    u[token] = strength
    return LowRankEdit({"lm_head": (u, mean[None] / mean.square().sum())}, EditInfo("refusing", {}))


def without_gradients(model: torch.nn.Module) -> torch.nn.Module:
    """As `load_model` gives it."""
    return model.eval().requires_grad_(False)
