"""The two models that TOFU and PISTOL need: one that knows everything, and one without what is to be forgotten.

Both are fine-tuned on answers by the trainer of the gradient methods. A retain-only model of TOFU also gets its scores
on the forget set written beside it, where the tasks find them: forget quality is a comparison with that model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from unlearn_eval.data.forget_sets import ForgetSet
from unlearn_eval.editing.editor import Progress, no_progress
from unlearn_eval.editing.requests.build import build_requests
from unlearn_eval.editing.training import objectives
from unlearn_eval.editing.training.gradient import ANSWER, LOGITS, GradientConfig, Method, train_edit
from unlearn_eval.edits.base import applied
from unlearn_eval.edits.export import save_checkpoint
from unlearn_eval.edits.load import describe_base
from unlearn_eval.edits.records import RequestSummary
from unlearn_eval.models import prompts
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.weights import hash_weights
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.folders import write_whole
from unlearn_eval.utils.provenance import peak_memory_bytes, provenance, redact
from unlearn_eval.utils.settings import configure

ABOUT = "unlearn_eval_finetune.json"  # says what a checkpoint was fine-tuned on; other programs do not read it
SCHEMA_VERSION = 1
# A retain set of TOFU, and the forget set that it leaves out.
LEFT_OUT = {"tofu:retain90": "forget10", "tofu:retain95": "forget05", "tofu:retain99": "forget01"}


@dataclass(frozen=True)
class FinetunePreset:
    """How somebody fine-tuned.

    Attributes:
        name: of the benchmark.
        source: who published it.
        settings: as text, like `--set`.
    """

    name: str
    source: str
    settings: Mapping[str, str]


PRESETS = {
    "tofu": FinetunePreset(
        "tofu",
        "TOFU, arXiv 2401.06121; locuslab/tofu@bdc209ea, config/finetune.yaml (batches of 16 on two GPUs); Llama 2 7B "
        "(Phi 1.5: learning rate 2e-5); OpenUnlearning@d3d7cf9e has the same for Llama 3",
        {"epochs": "5", "batch_size": "32", "learning_rate": "1e-5", "weight_decay": "0.01", "warmup_epochs": "1"},
    ),
    "pistol": FinetunePreset(
        "pistol",
        "bill-shen-BS/PISTOL@9851fb5e, config/config.yaml (LoRA)",
        {
            "epochs": "20",
            "batch_size": "16",
            "learning_rate": "1e-4",
            "weight_decay": "0",
            "warmup_epochs": "2",
            "lora_rank": "8",
            "lora_alpha": "32",
            "lora_dropout": "0.05",
        },
    ),
    "pistol-full": FinetunePreset(
        "pistol-full",
        "bill-shen-BS/PISTOL@9851fb5e, README (all weights; Llama 2 7B; Mistral 7B: learning rate 1e-5)",
        {"epochs": "20", "batch_size": "16", "learning_rate": "2e-5", "weight_decay": "0", "warmup_epochs": "2"},
    ),
}


def _likelihood(said: Any, config: Any) -> Any:
    return objectives.likelihood(said[ANSWER].log_probs, said[ANSWER].mask)


FINETUNE = Method("finetune", _likelihood, {ANSWER: LOGITS})


def preset_of(data: ForgetSet, name: str | None) -> FinetunePreset | None:
    """The preset of that name; without a name, that of the benchmark which the data are of; `none` is none.

    Raises:
        UserError: there is none of that name.
    """
    if name is None:
        return PRESETS.get(data.name.partition(":")[0])
    if name != "none" and name not in PRESETS:
        raise unknown_name("preset", name, [*PRESETS, "none"])
    return PRESETS.get(name)


def without(data: ForgetSet, left_out: ForgetSet) -> ForgetSet:
    """The items of one set whose questions are not in another.

    Raises:
        UserError: nothing is left, or nothing is left out.
    """
    asked = {item.question.strip() for item in left_out}
    kept = tuple(item for item in data if item.question.strip() not in asked)
    if len(kept) in (0, len(data)):
        what = "nothing is left of" if not kept else "nothing is left out of"
        raise UserError(f"{what} '{data.name}' without '{left_out.name}'", "give a part of it as --without")
    return ForgetSet(f"{data.name} without {left_out.name}", kept)


def finetune(
    loaded: LoadedModel,
    data: ForgetSet,
    options: Mapping[str, str] | None = None,
    preset: FinetunePreset | None = None,
    chat: bool | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Any:
    """The edit that fine-tuning on questions and answers leaves: whole tensors, or LoRA factors.

    The model is as before.

    Args:
        loaded: the base model.
        data: what it is to know.
        options: settings of training as text, over the preset's.
        preset: somebody's settings.
        chat: whether questions go through the chat template; None does if there is one.
        seed: of everything random.
        progress: told of steps.

    Raises:
        UserError: an unknown setting, an item that does not fit the model's context, or as in `training_run.trained`.
    """
    started = time.monotonic()
    config = configure(GradientConfig, {**(preset.settings if preset else {}), "seed": str(seed), **(options or {})})
    config = replace(config, retain_term="none")
    asked_as_chat = prompts.has_chat_template(loaded.tokenizer) if chat is None else chat
    if asked_as_chat and not prompts.has_chat_template(loaded.tokenizer):
        raise UserError(f"{loaded.name} has no chat template", "leave out --chat")
    length = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    answers = [item.answer for item in data]
    requests = build_requests(data.items, answers, loaded.tokenizer, asked_as_chat, (), length)
    made = train_edit(FINETUNE, loaded.model, loaded.tokenizer, requests, config, progress=progress)
    info = replace(
        made.info,
        base=describe_base(loaded.model, loaded.path if loaded.name == "default" else loaded.name, loaded.revision),
        requests=RequestSummary.of(
            {
                "n": len(data),
                "forget_set": data.name,
                "forget_set_hash": data.hash,
                "ids": [item.id for item in data],
                "chat": asked_as_chat,
            }
        ),
        seed=seed,
        versions=provenance()["packages"],
        seconds=round(time.monotonic() - started, 2),
        peak_memory_bytes=peak_memory_bytes(),
        notes=made.info.notes | {"preset": None if preset is None else asdict(preset), "self_check": None},
    )
    return replace(made, info=info)


def write_checkpoint(
    loaded: LoadedModel,
    edit: Any,
    output: str | Path,
    forget_split: str | None = None,
    say: Callable[[str], Any] = lambda line: None,
    positions: Any = None,
) -> Path:
    """The fine-tuned model as an ordinary checkpoint, with what it was made of, and its scores if it is a reference.

    Args:
        loaded: the base model; it is as before afterwards.
        edit: what `finetune` made.
        output: the folder; an earlier model of ours there is replaced, once the new one is whole.
        forget_split: of TOFU, if this is its retain-only model.
        say: told of the steps.
        positions: only these items of the forget split.

    Raises:
        UserError: the folder is something else, cannot be written, or TOFU is not to be had.
    """
    from unlearn_eval.harness.reference import STORED

    with applied(edit, loaded.model):
        reference = None
        if forget_split is not None:
            from unlearn_eval.harness.tofu_reference import measure

            say(f"scoring {forget_split}, for forget quality")
            chat = bool(edit.info.requests.chat)
            reference = measure(loaded.model, loaded.tokenizer, forget_split, chat, positions=positions)
        weights = hash_weights(loaded.model)

        def fill(target: Path) -> None:
            save_checkpoint(loaded.model, loaded.tokenizer, target)
            about = {
                "schema_version": SCHEMA_VERSION,
                "kind": "finetuned",
                **edit.info.as_stored(),
                "weights": {"exact": weights.exact, "canonical": weights.canonical},
            }
            _write_json(target / ABOUT, redact(about))
            if reference is not None:
                _write_json(target / STORED, {**reference, "weights": weights.exact})
            for name, text in edit.texts.items():
                (target / name).write_text(text, encoding="utf-8")

        say(f"writing {output}")
        return write_whole(Path(output), "fine-tuned model", ABOUT, fill)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
