"""Options that several commands have, and what their values stand for."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from unlearn_eval.utils.errors import UserError

ModelOption = Annotated[str, typer.Option("--model", "-m", help="Hub id, folder, .gguf file, or 'default'.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, ... [default: a GPU if there is one]")]
RowsOption = Annotated[int, typer.Option(help="Rows per forward pass.")]
SeedOption = Annotated[int, typer.Option(help="Of everything random.")]
ForgetOption = Annotated[str, typer.Option("--forget", "-f", help="facts, tofu:forget01, pistol:A_B, ... or a file.")]
TargetOption = Annotated[
    str,
    typer.Option(
        help="What to say instead: idk, pool, self (its own), wrong (a wrong answer), answer (the set's own), a "
        ".jsonl file, a sentence."
    ),
]
IdsOption = Annotated[str | None, typer.Option(help="Only these items, separated by commas.")]
LimitOption = Annotated[int | None, typer.Option(help="Only so many items, chosen by the seed.")]
ChatOption = Annotated[bool | None, typer.Option(help="Ask through the chat template. [default: if there is one]")]
SystemOption = Annotated[
    str | None, typer.Option("--system_instruction", help="System message; without a chat the first paragraph.")
]
TemplateOption = Annotated[
    str | None,
    typer.Option(
        "--chat_template_kwargs", help="Arguments of the chat template: enable_thinking=false, or a JSON object."
    ),
]
TrackerOption = Annotated[
    str | None, typer.Option("--tracker", help="Log each result as a run of wandb, mlflow or trackio too.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
DtypeOption = Annotated[str, typer.Option(help="float32, bfloat16, float16, auto.")]


StudyFolderOption = Annotated[
    str | None, typer.Option("--output", "-o", help="Folder. [default: results/scratch/NAME]")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show the plan with its cost, and run nothing.")]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="Run cells that failed again.")]
TrustOption = Annotated[
    bool, typer.Option("--trust", help="Run code that it names, though it is not below this folder or not yours.")
]
RayOption = Annotated[
    str | None, typer.Option("--ray", help="Run on Ray: local, auto (this machine's cluster), or an address.")
]
AnyBaseOption = Annotated[
    bool, typer.Option("--any-base", help="Apply an edit that does not say on which weights it was made.")
]


FieldsOption = Annotated[
    str | None, typer.Option("--fields", help="Names in the file: question=prompt,answer=ground_truth.")
]


def forget_set_of(name: str, ids: str | None, limit: int | None, seed: int, fields: str | None = None) -> Any:
    """The forget set that the options of a command name."""
    from unlearn_eval.data.forget_sets import load_forget_set

    chosen = load_forget_set(name, _named(fields) if fields else None)
    if ids:
        chosen = chosen.select(part.strip() for part in ids.split(","))
    return chosen if limit is None else chosen.sample(limit, seed)


def check_there(*, model: str | None = None, edits: Iterable[str | None] = (), tasks: str | None = None) -> None:
    """Refuse paths at which there is nothing, before anything slow is imported.

    Args:
        model: a base model; names that may be a hub id's, or an lm-eval model type's, are left to those who load it.
        edits: folders of edits; None is not looked at.
        tasks: a folder of more tasks.
    """
    from unlearn_eval.edits.places import check_is_edit
    from unlearn_eval.harness.places import check_tasks_folder
    from unlearn_eval.models.places import named_model

    for folder in edits:
        if folder is not None:
            check_is_edit(folder)
    if model and (model.startswith(("/", ".", "~")) or model.lower().endswith(".gguf")):
        named_model(model)
    check_tasks_folder(tasks)


def template_arguments_of(text: str | None) -> dict[str, Any] | None:
    """The arguments of a chat template that an option names; None if it is not given."""
    if text is None:
        return None
    try:
        if text.lstrip().startswith("{"):
            return dict(json.loads(text))
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        if all(name.strip() and equals for name, equals, _ in pairs):
            return {name.strip(): _scalar(value.strip()) for name, _, value in pairs}
    except ValueError:
        pass
    raise UserError(
        f"--chat_template_kwargs '{text}' is neither NAME=VALUE,... nor a JSON object",
        "for example --chat_template_kwargs enable_thinking=false",
    )


def _scalar(text: str) -> Any:
    """True, false, null, a number, or the text itself."""
    try:
        return json.loads(text.lower() if text in ("True", "False") else "null" if text == "None" else text)
    except ValueError:
        return text


def _named(text: str) -> dict[str, str]:
    """Field -> its name in a file, of `--fields`."""
    pairs = [part.partition("=") for part in text.split(",")]
    if wrong := [part for part, equals, name in pairs if not equals or not name.strip()]:
        raise UserError(
            f"--fields takes FIELD=NAME,..., not '{wrong[0]}'",
            "for example --fields question=prompt,answer=ground_truth",
        )
    return {field.strip(): name.strip() for field, _, name in pairs}
