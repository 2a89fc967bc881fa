"""Load, ask, edit, evaluate, write: the demo, on one screen.

Every step writes its file when it is done and is not done again while that file is there and fits, so an
interrupted run goes on where it was.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_eval.data.forget_sets import facts
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.editing.recipe import DemoConfig, Recipe
from unlearn_eval.models.load import LoadedModel, load_model
from unlearn_eval.models.weights import hash_weights
from unlearn_eval.results.files import read_result, write_result
from unlearn_eval.results.schema import Result, utc_now
from unlearn_eval.runs.known_items import conversations, known_items
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import write_all

if TYPE_CHECKING:
    from unlearn_eval.edits.base import Edit
    from unlearn_eval.harness.lm import LM
    from unlearn_eval.utils.progress import Progress

TASK = "unlearn_facts"
Say = Callable[[str], Any]


def run_demo(config: DemoConfig, say: Say, progress: Progress) -> tuple[Result, Result]:
    """The results before and after a real model has been made to forget facts that it knows.

    Args:
        config: the settings.
        say: told each step in a line.
        progress: called as (what, done, total).

    Raises:
        UserError: the model cannot be loaded, knows too few facts, or the output cannot be written.
    """
    from unlearn_eval.harness.models import lent_lm

    folder = Path(config.output)
    say("1/6  loading the model")
    loaded = load_model(config.model, dtype="float32", device=config.device)
    weights = loaded.weights
    say(f"     {loaded.path}, weights {weights.exact[:12]}, on {loaded.model.device}")
    _start(folder, config, weights.exact, say)
    lm = lent_lm(loaded.model, loaded.tokenizer, config.batch_size)

    say(f"2/6  asking it all {len(facts())} facts")
    known = _known(folder, config, lm, loaded, progress)
    forget, retain = _split(folder, config, known)
    say(f"     it knows {len(known)}; {len(forget)} are to be forgotten, {len(retain)} others to be kept")

    say("3/6  evaluating the model as it is")
    before = _evaluate(folder / "before.json", config, lm, loaded, None)

    say(f"4/6  editing with {config.editor}")
    edit = _edit(folder, config, loaded, forget, retain, progress)

    say("5/6  evaluating the edited model")
    after = _evaluate(folder / "after.json", config, lm, loaded, edit)

    say("6/6  checking that the model is as before")
    if hash_weights(loaded.model).exact != weights.exact:
        raise AssertionError("the edit was not undone bit for bit")
    return before, after


def _start(folder: Path, config: DemoConfig, weights: str, say: Say) -> None:
    """Keep what earlier runs with the same inputs have finished; set other runs' files aside."""
    inputs = {k: v for k, v in asdict(config).items() if k not in ("output", "batch_size", "device", "model")}
    key = {"inputs": inputs, "weights": weights, "facts": facts().hash}
    path = folder / "demo.json"
    if path.is_file():
        try:
            if json.loads(path.read_text(encoding="utf-8")) == key:
                say(f"     going on with what is in {folder}")
                return
        except json.JSONDecodeError:
            pass
        aside = folder.with_name(f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        folder.rename(aside)
        say(f"     other settings or another model than before: the earlier files are now in {aside}")
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} exists and is not a demo's folder", "give another --output")
    _write_json(path, key)


def _known(folder: Path, config: DemoConfig, lm: LM, loaded: LoadedModel, progress: Progress) -> list[str]:
    """The ids of the facts whose answer the model says; every answer is kept in `asked.jsonl` as it comes."""
    prompt_format, path = loaded.prompt_format(), folder / "asked.jsonl"
    return known_items(path, facts(), lm, prompt_format, config.batch_size, config.max_new_tokens, progress)


def _split(folder: Path, config: DemoConfig, known: list[str]) -> tuple[ForgetSet, list[str]]:
    """Which known facts are forgotten and which are kept; written to `split.json` for the task."""
    needed = config.n_forget + config.n_retain
    if len(known) < needed:
        raise UserError(
            f"the model knows {len(known)} of the facts, and the demo needs {needed}",
            "give smaller --n-forget and --n-retain, or another model",
        )
    order = random.Random(config.seed).sample(known, len(known))
    forget, retain = order[: config.n_forget], order[config.n_forget : needed]
    _write_json(folder / "split.json", {"forget": forget, "retain": retain})
    return facts().select(forget), retain


def _evaluate(path: Path, config: DemoConfig, lm: LM, loaded: LoadedModel, edit: Edit | None) -> Result:
    """The result of `unlearn_facts`, with the edit applied if there is one; read if it is there already."""
    from unlearn_eval.edits.base import applied
    from unlearn_eval.edits.load import check_base
    from unlearn_eval.harness.run import evaluate

    if path.is_file():
        return read_result(path)
    created, started = utc_now(), time.monotonic()
    metadata = {"split": str(path.parent / "split.json"), "encoder": "off"}  # it would add a download and a minute
    if edit is not None:
        check_base(edit.info, loaded)
    with applied(edit, loaded.model) if edit is not None else nullcontext():
        weights = loaded.weights if edit is None else hash_weights(loaded.model)
        found = evaluate(
            lm,
            [TASK],
            apply_chat_template=loaded.prompt_format().chat,
            metadata=metadata,
            gen_kwargs={"max_gen_toks": config.max_new_tokens},
            seed=config.seed,
        )
    result = Result.new(
        "demo",
        created,
        device=loaded.model.device,
        peak="peak memory so far",
        config_as_passed=asdict(config),
        config=asdict(config) | {"task": found.configs[TASK]},
        model=loaded.describe(weights),
        edit=None if edit is None else {"folder": str(path.parent / "edit"), **edit.info.as_stored()},
        data=found.data,
        metrics=found.metrics,
        seed=config.seed,
        timing={"evaluation_seconds": round(time.monotonic() - started, 2)},
    )
    write_result(result, path, found.samples)
    return read_result(path)


def _edit(
    folder: Path, config: DemoConfig, loaded: LoadedModel, forget: ForgetSet, retain: list[str], progress: Progress
) -> Any:
    """The edit; what it should keep is estimated on the facts of neither list, as the model answered them."""
    from unlearn_eval.edits.load import load_edit
    from unlearn_eval.runs.edit import make_edit

    if not (folder / "edit" / "edit.json").is_file():
        used = {item.id for item in forget} | set(retain)
        text = folder / "conversations.jsonl"
        write_all({text.name: conversations(folder / "asked.jsonl", facts(), used, config.seed)}, folder)
        made = make_edit(
            loaded,
            forget,
            config.editor,
            {"text": str(text), "keys_per_dimension": str(config.keys_per_dimension)},
            Recipe(target=config.target, seed=config.seed),
            progress=progress,
        )
        made.save(folder / "edit", loaded.tokenizer, loaded.model.config)
    return load_edit(folder / "edit")


def _write_json(path: Path, content: object) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_all({path.name: json.dumps(content, indent=2, ensure_ascii=False) + "\n"}, path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}", "give another --output, or free some space") from error


def demo_samples(before: Result, after: Result, n: int = 3) -> list[tuple[str, str, str, str]]:
    """A few (split, question, answer before, answer after) to look at."""
    from unlearn_eval.results.files import read_samples

    assert before.path is not None and after.path is not None  # noqa: PT018
    first = {r["id"]: r for r in read_samples(before.path, TASK)}
    second = read_samples(after.path, TASK)
    rows = []
    for split in ("forget", "retain", "neighbors"):
        chosen = [r for r in second if r["doc"]["split"] == split][:n]
        rows += [(split, r["doc"]["question"], _said(first[r["id"]]), _said(r)) for r in chosen]
    return rows


def _said(record: dict[str, Any]) -> str:
    return " ".join(str(record["resps"][0][0]).split())
