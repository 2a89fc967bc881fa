"""`unlearn-eval attack`: does it come back?"""

from __future__ import annotations

from typing import Annotated

import typer

from unlearn_eval.cli.options import AnyBaseOption, TemplateOption, check_there, template_arguments_of
from unlearn_eval.cli.terminal import pair, progress
from unlearn_eval.utils.terminal import say


def attack(
    name: Annotated[str, typer.Argument(help="Which: `unlearn-eval ls attacks`.")],
    edit: Annotated[str, typer.Option("--edit", help="Folder of the edit, or hub:ORG/NAME.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The base model, if edit.json's is elsewhere.")
    ] = None,
    forget: Annotated[
        str | None, typer.Option("--forget", "-f", help="What was to be forgotten. [default: what edit.json says]")
    ] = None,
    retain: Annotated[
        str | None,
        typer.Option(
            "--retain", help="Other facts, for controls and training. [default: the rest of the forget set, or facts]"
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="A model that never knew the facts: what recovery is measured from."),
    ] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Result file (.json).")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting of the attack, NAME=VALUE.")] = None,
    ids: Annotated[str | None, typer.Option(help="Only these items, separated by commas.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many items, chosen by the seed.")] = None,
    chat: Annotated[bool | None, typer.Option(help="Ask through the chat template. [default: as the edit was]")] = None,
    system_instruction: Annotated[
        str | None, typer.Option("--system_instruction", help="System message. [default: the edit's]")
    ] = None,
    chat_template_kwargs: TemplateOption = None,
    batch_size: Annotated[int, typer.Option("--batch_size", "-b", help="Rows per forward pass.")] = 16,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, auto.")] = "float32",
    seed: Annotated[int, typer.Option(help="Chooses items; the attack has seeds of its own.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... [default: a GPU if there is one]")] = None,
    any_base: AnyBaseOption = False,
) -> None:
    """Try to bring back what an edit made a model forget."""
    from unlearn_eval.utils.settings import check_batch_size

    check_batch_size(batch_size)
    check_there(model=model, edits=[edit])
    from unlearn_eval.attacks.base import get_attack

    get_attack(name)  # a misspelt name is found at once
    from unlearn_eval.attacks.run import AttackConfig, run_attack, task_name
    from unlearn_eval.harness.patching import quiet_libraries
    from unlearn_eval.results.report.table import show_result

    config = AttackConfig(
        attack=name,
        edit=edit,
        model=model,
        forget=forget,
        ids=tuple(part.strip() for part in ids.split(",")) if ids else (),
        limit=limit,
        retain=retain,
        reference=reference,
        settings=dict(pair(text) for text in set_ or []),
        output=output,
        chat=chat,
        batch_size=batch_size,
        dtype=dtype,
        device=device,
        seed=seed,
        system=system_instruction,
        chat_template_kwargs=template_arguments_of(chat_template_kwargs),
        any_base=any_base,
    )
    with quiet_libraries():
        result = run_attack(config, say, progress())
    skipped = result.robustness[task_name(name)]["skipped"]
    show_result(result, [f"skipped: {entry['what']}: {entry['reason']}" for entry in skipped])
