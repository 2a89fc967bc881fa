"""The two models that TOFU and PISTOL need: one that knows everything, and one without what is to be forgotten.

A third follows notes: the preset `lte` (`lte.py`). All are fine-tuned by the trainer of the gradient methods. A
retain-only model of TOFU also gets its scores on the forget set written beside it, where the tasks find them: forget
quality is a comparison with that model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_eval.data.benchmark import ANSWERS, NOTES, FinetunePreset
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.data.registry import benchmark_of_set, finetune_presets
from unlearn_eval.editing.requests.build import build_requests
from unlearn_eval.editing.training import objectives
from unlearn_eval.editing.training.gradient import ANSWER, LOGITS, GradientConfig, Method, train_edit
from unlearn_eval.edits.base import applied
from unlearn_eval.edits.export import save_checkpoint
from unlearn_eval.edits.load import describe_base
from unlearn_eval.edits.places import DESCRIPTION
from unlearn_eval.edits.records import RequestSummary
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.weights import hash_weights
from unlearn_eval.runs.lte import alignment_requests
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.folders import check_folder, write_whole
from unlearn_eval.utils.progress import Progress, no_progress
from unlearn_eval.utils.provenance import peak_memory_bytes, provenance, redact
from unlearn_eval.utils.settings import configure

if TYPE_CHECKING:
    from unlearn_eval.editing.training.settings import Said
    from unlearn_eval.edits.base import Edit

ABOUT = "unlearn_eval_finetune.json"  # says what a checkpoint was fine-tuned on; other programs do not read it
SCHEMA_VERSION = 1


def _likelihood(said: Mapping[str, Said], config: object) -> Any:
    return objectives.likelihood(said[ANSWER].log_probs, said[ANSWER].mask)


FINETUNE = Method("finetune", _likelihood, {ANSWER: LOGITS}, teaches=True)


def preset_of(data: ForgetSet, name: str | None) -> FinetunePreset | None:
    """The preset of that name; without a name, that of the benchmark which the data are of; `none` is none.

    Raises:
        UserError: there is none of that name.
    """
    if name is None:
        benchmark = benchmark_of_set(data.name)
        own = () if benchmark is None else benchmark.finetuning
        return next((preset for preset in own if preset.rows == ANSWERS), None)
    presets = finetune_presets()
    if name != "none" and name not in presets:
        raise unknown_name("preset", name, [*presets, "none"])
    return presets.get(name)


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


def check_place(output: str, form: str) -> None:
    """Refuse, before anything is trained, a place where the model or edit cannot be written; errors as they will be.

    Args:
        output: the folder.
        form: "checkpoint" or "edit".
    """
    what, marker = ("edit", DESCRIPTION) if form == "edit" else ("fine-tuned model", ABOUT)
    check_folder(output, what, marker)


def check_settings(options: Mapping[str, str]) -> None:
    """Refuse settings of training that are unknown or out of their range."""
    configure(GradientConfig, options)


def finetune_config(options: Mapping[str, str], preset: FinetunePreset | None, seed: int) -> GradientConfig:
    """Settings of training over the preset's; nothing is retained beside what is learned."""
    given = {**(preset.settings if preset else {}), "seed": str(seed), **options}
    config: GradientConfig = configure(GradientConfig, given)
    return replace(config, retain_term="none")


def finetune(
    loaded: LoadedModel,
    data: ForgetSet,
    options: Mapping[str, str] | None = None,
    preset: FinetunePreset | None = None,
    prompt_format: PromptFormat | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Any:
    """The edit that fine-tuning on questions and answers leaves: whole tensors, or LoRA factors.

    The model is as before.

    Args:
        loaded: the base model.
        data: what it is to know, or, by a preset for notes, what the notes are about.
        options: settings of training as text, over the preset's.
        preset: somebody's settings.
        prompt_format: how questions are put; None is through the chat template if there is one.
        seed: of everything random.
        progress: told of steps.

    Raises:
        UserError: an unknown setting, an item that does not fit the model's context, or as in `training_run.trained`.
    """
    started = time.monotonic()
    config = finetune_config(options or {}, preset, seed)
    prompt_format = prompt_format or loaded.prompt_format()
    if preset is not None and preset.rows == NOTES:
        requests = alignment_requests(loaded, data, prompt_format, config.seed, progress)
    else:
        answers = [item.answer for item in data]
        requests = build_requests(data.items, answers, prompt_format, (), loaded.max_length)
    made = train_edit(FINETUNE, loaded.model, loaded.tokenizer, requests, config, progress=progress)
    info = replace(
        made.info,
        base=describe_base(loaded),
        requests=RequestSummary.of(
            {
                "n": len(data),
                "forget_set": data.name,
                "forget_set_hash": data.hash,
                "ids": [item.id for item in data],
                **prompt_format.record,
                "sets": [],  # nothing was forgotten
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
    edit: Edit,
    output: str | Path,
    forget_split: str | None = None,
    say: Callable[[str], Any] = lambda line: None,
    positions: Sequence[int] | None = None,
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
            prompt_format = PromptFormat.of_edit(edit.info, loaded.tokenizer, loaded.name)
            reference = measure(loaded.model, prompt_format, forget_split, positions=positions)
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


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
