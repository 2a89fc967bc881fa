"""`unlearn-eval localize`: where in a model the facts of a set are."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from unlearn_eval.cli.options import FieldsOption, ModelOption, SeedOption, SystemOption, TemplateOption
from unlearn_eval.utils.terminal import new_console, put, say


def localize(
    name: Annotated[str, typer.Argument(help="The method; `unlearn-eval ls localizations`.")],
    output: Annotated[str, typer.Option("--output", "-o", help="File to write (.json), for edit --components.")],
    model: ModelOption = "default",
    forget: Annotated[str, typer.Option("--forget", "-f", help="facts, sports:all, ... or a file.")] = "facts",
    retain: Annotated[
        str | None, typer.Option("--retain", help="Further facts, for probes: other answers than those to forget.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="How much: 6 (MLPs), 40M (weights), 10%. [default: the method's rule, or 1 in 6]")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the method, or masks=WAY: NAME=VALUE.")
    ] = None,
    figures: Annotated[str | None, typer.Option(help="A folder for SVG and PDF; needs matplotlib.")] = None,
    ids: Annotated[str | None, typer.Option(help="Only these items, separated by commas.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many items, chosen by the seed.")] = None,
    fields: FieldsOption = None,
    chat: Annotated[bool, typer.Option(help="Ask through the chat template.")] = False,
    system_instruction: SystemOption = None,
    chat_template_kwargs: TemplateOption = None,
    batch_size: Annotated[int, typer.Option(help="Prompts per forward pass.")] = 64,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, auto.")] = "float32",
    seed: SeedOption = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... [default: a GPU if there is one]")] = None,
) -> None:
    """Find where in a model facts are; for edit --components."""
    from unlearn_eval.cli.options import check_there, forget_set_of, template_arguments_of

    check_there(model=model)
    facts = forget_set_of(forget, ids, limit, seed, fields)
    others = None if retain is None else forget_set_of(retain, None, None, seed)
    from unlearn_eval.cli.terminal import pair, progress
    from unlearn_eval.harness.patching import quiet_libraries
    from unlearn_eval.localization import locate
    from unlearn_eval.localization.base import get_localizer
    from unlearn_eval.localization.sites import sites
    from unlearn_eval.models.load import load_model
    from unlearn_eval.results.report.localization import component_tables, write_component_figures
    from unlearn_eval.utils.folders import check_output
    from unlearn_eval.utils.json_files import json_place
    from unlearn_eval.utils.settings import check_batch_size

    get_localizer(name)
    check_output(output, "localization")
    wanted = locate.LocalizationSpec.of(name, budget, dict(pair(text) for text in set_ or []))
    wanted.check()
    arguments = template_arguments_of(chat_template_kwargs)
    check_batch_size(batch_size)
    json_place(output, "components file")
    with quiet_libraries():
        say(f"loading {model}")
        loaded = load_model(model, dtype=dtype, device=device, check=sites)
        say(f"{name} on {len(facts)} items of {facts.name}")
        prompt_format = loaded.prompt_format(chat, system_instruction, arguments)
        found = locate.localize(loaded, facts, wanted, seed, others, prompt_format, batch_size, progress())
    path = found.save(output)
    console = new_console()
    for table in component_tables(asdict(found)):
        console.print(table)
    skipped = found.facts.get("skipped", {})
    for reason in sorted(set(skipped.values())):
        say(f"left out: {list(skipped.values()).count(reason)} items, because {reason}")
    for figure in write_component_figures(asdict(found), figures) if figures else ():
        put(figure)
    say("train or edit there with:")
    say(f"  unlearn-eval edit --model {model} --components {path} ...")
    put(path)
