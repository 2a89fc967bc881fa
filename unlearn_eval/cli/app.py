"""The command line: `unlearn-eval demo | edit | finetune | targets | inspect | eval | compare | run | report | ...`.

Exit codes: 0 done, 1 a user's mistake or a failed run (two lines on stderr), 2 wrong usage, 130 interrupted.
Data goes to stdout, everything else to stderr. Heavy imports happen inside the commands.
"""

from __future__ import annotations

import contextvars
import errno
import json
import os
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from unlearn_eval import __version__
from unlearn_eval.cli import attack as cli_attack
from unlearn_eval.cli import env as cli_env
from unlearn_eval.cli import forget as cli_forget
from unlearn_eval.cli import localize as cli_localization
from unlearn_eval.cli import ls as cli_ls
from unlearn_eval.cli import meta as cli_meta
from unlearn_eval.cli import plan as cli_plan
from unlearn_eval.cli import push as cli_push
from unlearn_eval.cli import rate as cli_rate
from unlearn_eval.cli import report as cli_report
from unlearn_eval.cli import serve as cli_serve
from unlearn_eval.cli import study as cli_study
from unlearn_eval.cli.groups import CommandGroups
from unlearn_eval.cli.options import (
    AnyBaseOption,
    ChatOption,
    DeviceOption,
    DtypeOption,
    FieldsOption,
    ForgetOption,
    IdsOption,
    JsonOption,
    LimitOption,
    ModelOption,
    RowsOption,
    SeedOption,
    SystemOption,
    TargetOption,
    TemplateOption,
    TrackerOption,
    check_there,
    forget_set_of,
    template_arguments_of,
)
from unlearn_eval.cli.terminal import pair as _pair
from unlearn_eval.cli.terminal import progress as _progress
from unlearn_eval.editing.presets import DEFAULT_EDITOR
from unlearn_eval.editing.recipe import DemoConfig, Recipe
from unlearn_eval.edits.records import SelfCheck
from unlearn_eval.utils.errors import UserError, is_out_of_memory, unknown_name
from unlearn_eval.utils.folders import check_folder, check_output, is_of_the_disk
from unlearn_eval.utils.json_files import dumps
from unlearn_eval.utils.terminal import LEVEL, QUIET, USUAL, VERBOSE, new_console, put, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from unlearn_eval.editing.editor import Editor
    from unlearn_eval.results.schema import Result

app = typer.Typer(
    name="unlearn-eval",
    no_args_is_help=True,
    cls=CommandGroups,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        put(f"unlearn-eval {__version__}")
        raise typer.Exit


@app.callback()
def _levels(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say errors and warnings only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what libraries say too.")] = False,
) -> None:
    """Did this model forget, and at what price?"""
    LEVEL.set(QUIET if quiet else VERBOSE if verbose else USUAL)


DEMO = DemoConfig()
RECIPE = Recipe()
_DTYPE = "float32"


@app.command()
def demo(
    model: ModelOption = DEMO.model,
    output: Annotated[str, typer.Option("--output", "-o", help="Folder; a second run goes on from it.")] = DEMO.output,
    n_forget: Annotated[int, typer.Option(help="Known facts to forget.")] = DEMO.n_forget,
    n_retain: Annotated[int, typer.Option(help="Known facts to keep.")] = DEMO.n_retain,
    target: Annotated[str, typer.Option(help="What to say instead: idk, pool, or a sentence.")] = DEMO.target,
    seed: SeedOption = DEMO.seed,
    batch_size: RowsOption = DEMO.batch_size,
    device: DeviceOption = None,
) -> None:
    """Make a small model forget facts, and measure it."""
    from unlearn_eval.harness.patching import quiet_libraries
    from unlearn_eval.results.comparison import compare as compare_results
    from unlearn_eval.results.report.table import comparison_tables, reasons
    from unlearn_eval.runs.demo import demo_samples, run_demo

    config = DemoConfig(
        model=model,
        output=output,
        n_forget=n_forget,
        n_retain=n_retain,
        target=target,
        seed=seed,
        batch_size=batch_size,
        device=device,
    )
    with quiet_libraries():
        before, after = run_demo(config, say, _progress())
    console = new_console()
    for table in comparison_tables(compare_results(before, after)):
        console.print(table)
    for line in reasons([after]):
        console.print(line)
    console.print(_samples_table(demo_samples(before, after)))
    console.print("↑ higher is better, ↓ lower is better; ± standard error; green and red: changes with p < 0.05")
    console.print(
        f"results: {before.path}, {after.path} (samples beside them)\nthe edit: {output}/edit", soft_wrap=True
    )


@app.command()
def edit(
    output: Annotated[str, typer.Option("--output", "-o", help="Folder of the edit.")],
    model: ModelOption = "default",
    forget: ForgetOption = "facts",
    retain: Annotated[
        str | None,
        typer.Option(
            "--retain",
            help="What to keep: a set or a file, which methods are trained on or take second moments of; nearest(SET): "
            "of it what is nearest to what is forgotten; nearest: of the forget set.",
        ),
    ] = None,
    editor: Annotated[
        str | None,
        typer.Option(
            "--editor", "-e", help=f"One of `ls editors`, or a file, my_editor.py. [default: {DEFAULT_EDITOR}]"
        ),
    ] = None,
    target: TargetOption = RECIPE.target,
    merge: Annotated[
        str, typer.Option(help="Query merging: none, text (one prompt) or key (one change of value).")
    ] = RECIPE.merge,
    merge_size: Annotated[int, typer.Option(help="How many of a group are merged.")] = RECIPE.merge_size,
    per_step: Annotated[
        int, typer.Option(help="Requests per step, each on the model as edited so far; 0: all at once.")
    ] = RECIPE.per_step,
    continue_: Annotated[
        str | None,
        typer.Option("--continue", help="Edit to go on from, folder or hub:ORG/NAME; the new one holds both."),
    ] = None,
    ids: IdsOption = None,
    limit: LimitOption = None,
    fields: FieldsOption = None,
    chat: ChatOption = None,
    system_instruction: SystemOption = None,
    chat_template_kwargs: TemplateOption = None,
    contexts: Annotated[
        int, typer.Option(help="Sampled openings before each question (the papers': MEMIT 5, ROME 21).")
    ] = RECIPE.n_contexts,
    preset: Annotated[bool, typer.Option(help="Use the model's published settings.")] = RECIPE.preset,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting of the method, NAME=VALUE.")] = None,
    components: Annotated[
        str | None,
        typer.Option(help="Where: a localization, as in 'fact_lookup(budget=4)', its file, or names of modules."),
    ] = None,
    dtype: DtypeOption = _DTYPE,
    seed: SeedOption = RECIPE.seed,
    device: DeviceOption = None,
    unrelated: Annotated[
        bool, typer.Option(help="Ask ten unrelated questions before and after, to see what the edit broke.")
    ] = True,
) -> None:
    """Make an edit: a small folder that forgets a set."""
    from unlearn_eval.edits.places import DESCRIPTION

    check_folder(output, "edit", DESCRIPTION)
    check_there(model=model, edits=[continue_])
    forget_set = forget_set_of(forget, ids, limit, seed, fields)
    retain = f"nearest({forget_set.name})" if retain == "nearest" else retain
    retain_set = None if retain is None else forget_set_of(retain, None, None, seed)
    from unlearn_eval.editing.editor import get_editor
    from unlearn_eval.edits.load import load_edit
    from unlearn_eval.harness.patching import quiet_libraries
    from unlearn_eval.models.load import load_model
    from unlearn_eval.runs.edit import make_edit, model_check

    state = load_edit(continue_) if continue_ else None
    editor = editor or (_editor_of(state) if state else DEFAULT_EDITOR)
    method = get_editor(editor)
    recipe = Recipe(
        target=target,
        merge=merge,
        merge_size=merge_size,
        per_step=per_step,
        chat=chat,
        n_contexts=contexts,
        preset=preset,
        seed=seed,
        system=system_instruction,
        chat_template_kwargs=template_arguments_of(chat_template_kwargs) or {},
    )
    options = dict(_pair(text) for text in set_ or []) | ({"components": components} if components else {})
    fits = model_check(method, options)
    training = _training_folder(method, output, options)
    with quiet_libraries():
        say(f"loading {model}")
        loaded = load_model(model, dtype=dtype, device=device, check=fits)
        say(f"{editor} on {len(forget_set)} items of {forget_set.name}")
        made = make_edit(loaded, forget_set, editor, options, recipe, state, _progress(), retain_set, unrelated)
        if not _is_first_process():
            return
        folder = made.save(output, loaded.tokenizer, loaded.model.config)
    _remove(training)
    _tell(made)
    say(f"done in {made.info.seconds:.0f} s; look at it, and evaluate it (before and after: --baseline), with:")
    say(f"  unlearn-eval inspect {shlex.quote(str(folder))}")
    say(f"  {_next_command(folder, forget_set.name, model, dtype, device)}")
    put(folder)


@app.command()
def finetune(
    output: Annotated[str, typer.Option("--output", "-o", help="Folder of the model.")],
    on: Annotated[str, typer.Option("--on", help="What it is to know: tofu:full, tofu:retain90, pistol:all, a file.")],
    model: ModelOption = "default",
    without: Annotated[str | None, typer.Option("--without", help="Leave this set out: a retain-only model.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="tofu, pistol, pistol-full, lte (follow notes) or none. [default: the data's own]"),
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting of training, NAME=VALUE.")] = None,
    as_: Annotated[str, typer.Option("--as", help="checkpoint (an ordinary model) or edit.")] = "checkpoint",
    limit: LimitOption = None,
    fields: FieldsOption = None,
    chat: ChatOption = None,
    system_instruction: SystemOption = None,
    chat_template_kwargs: TemplateOption = None,
    dtype: DtypeOption = "float32",
    seed: SeedOption = RECIPE.seed,
    device: DeviceOption = None,
) -> None:
    """Make target and reference models, and bases for notes."""
    check_there(model=model)
    data = forget_set_of(on, None, limit, seed, fields)
    left_out = None if without is None else forget_set_of(without, None, None, seed)
    from unlearn_eval.data.benchmark import NOTES
    from unlearn_eval.data.registry import left_out as left_out_of
    from unlearn_eval.harness.patching import quiet_libraries
    from unlearn_eval.models.load import load_model
    from unlearn_eval.runs import finetune as finetuning

    if as_ not in ("checkpoint", "edit"):
        raise unknown_name("form", as_, ("checkpoint", "edit"))
    arguments = template_arguments_of(chat_template_kwargs)
    finetuning.check_place(output, as_)
    chosen = finetuning.preset_of(data, preset)
    split = left_out_of(data.name)
    if left_out is not None:
        data = finetuning.without(data, left_out)
        split = left_out.name.removeprefix("tofu:") if left_out.name.startswith("tofu:forget") else None
    options = dict(_pair(text) for text in set_ or [])
    finetuning.check_settings(options)
    training = None if "folder" in options else options.setdefault("folder", f"{output.rstrip('/')}.training")
    with quiet_libraries():
        say(f"loading {model}")
        loaded = load_model(model, dtype=dtype, device=device)
        say(f"fine-tuning on {len(data)} items of {data.name}, {'as ' + chosen.source if chosen else 'without preset'}")
        prompt_format = loaded.prompt_format(chat, system_instruction, arguments)
        made = finetuning.finetune(loaded, data, options, chosen, prompt_format, seed, _progress())
        if not _is_first_process():
            return
        if as_ == "edit":
            folder = made.save(output, loaded.tokenizer, loaded.model.config)
        else:
            folder = finetuning.write_checkpoint(loaded, made, output, split, say)
    _remove(training)
    _tell_training(made.info.notes["training"])
    if split and as_ == "checkpoint":
        asked = " --apply_chat_template" if made.info.requests.chat else ""
        say("forget quality of other models, compared with this one:")
        say(f"""  unlearn-eval eval --tasks unlearn_tofu{asked} --metadata '{{"retain_reference": "{folder}"}}' ...""")
    if chosen is not None and chosen.rows == NOTES and as_ == "checkpoint":
        say("facts are edited into it by notes:")
        say(f"  unlearn-eval edit --model {shlex.quote(str(folder))} --forget my_facts.jsonl --editor notes")
    put(folder)


@app.command(hidden=True)  # as view is: edit writes them by itself, and docs/reference has it
def targets(
    output: Annotated[str, typer.Option("--output", "-o", help="JSONL file to write.")],
    model: ModelOption = "default",
    forget: ForgetOption = "facts",
    target: TargetOption = "self",
    ids: IdsOption = None,
    limit: LimitOption = None,
    fields: FieldsOption = None,
    chat: ChatOption = None,
    system_instruction: SystemOption = None,
    chat_template_kwargs: TemplateOption = None,
    dtype: DtypeOption = "float32",
    seed: SeedOption = RECIPE.seed,
    device: DeviceOption = None,
) -> None:
    """Write what to say to each question, for --target FILE."""
    check_there(model=model)
    import random

    from unlearn_eval.editing.requests.targets import make_targets, write_targets
    from unlearn_eval.harness.patching import quiet_libraries
    from unlearn_eval.models.load import load_model

    arguments = template_arguments_of(chat_template_kwargs)
    check_output(output, "file of targets")
    forget_set = forget_set_of(forget, ids, limit, seed, fields)
    with quiet_libraries():
        loaded = load_model(model, dtype=dtype, device=device)
        prompt_format = loaded.prompt_format(chat, system_instruction, arguments)
        made = make_targets(
            target, forget_set.items, random.Random(seed), loaded, prompt_format, seed=seed, progress=_progress()
        )
    write_targets(output, made)
    put(output)


@app.command()
def inspect(
    folder: Annotated[str, typer.Argument(help="Folder of an edit, or hub:ORG/NAME.")],
    ask: Annotated[
        str | None, typer.Option("--ask", help="A question: which memory of a GRACE, WISE or MEMOIR edit would answer?")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="For --ask: the base model, if edit.json's is elsewhere.")
    ] = None,
    system_instruction: SystemOption = None,
    chat_template_kwargs: TemplateOption = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    any_base: AnyBaseOption = False,
) -> None:
    """Show an edit: layers, ranks, norms, targets, cost.

    With --ask, show what a memory edit makes of a question.
    """
    check_there(model=model, edits=[folder])
    from unlearn_eval.edits.description import describe_edit
    from unlearn_eval.results.report.edit import edit_tables, route_lines

    if ask is not None:
        from unlearn_eval.edits.memory.ask import ask_edit
        from unlearn_eval.harness.patching import quiet_libraries

        with quiet_libraries():
            arguments = template_arguments_of(chat_template_kwargs)
            answer = ask_edit(
                folder, ask, model, say, any_base, system=system_instruction, template_arguments=arguments
            )
        put(json.dumps(answer, indent=2, ensure_ascii=False) if json_ else "\n".join(route_lines(answer)))
        return
    if system_instruction is not None or chat_template_kwargs is not None:
        raise UserError("nothing is asked", "give a question: --ask QUESTION")
    description = describe_edit(folder)
    if json_:
        put(json.dumps(description, indent=2, ensure_ascii=False))
        return
    console = new_console()
    for table in edit_tables(description):
        console.print(table)


@app.command()
def export(
    folder: Annotated[str, typer.Argument(help="Folder of an edit, or hub:ORG/NAME.")],
    merged: Annotated[str, typer.Option("--merged", help="Folder of the checkpoint to write.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The base model, if edit.json's is elsewhere.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, ... [default: the base's own]")] = None,
    device: DeviceOption = None,
    any_base: AnyBaseOption = False,
) -> None:
    """Write the edited model as an ordinary checkpoint."""
    check_there(model=model, edits=[folder])
    from unlearn_eval.edits.export import export_merged
    from unlearn_eval.harness.patching import quiet_libraries

    with quiet_libraries():
        put(export_merged(folder, merged, model=model, dtype=dtype, device=device, say=say, any_base=any_base))


@app.command("eval", context_settings={"allow_extra_args": True})
def eval_(
    context: typer.Context,
    tasks: Annotated[str, typer.Option("--tasks", "-t", help="Names or patterns, separated by commas.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A base model, or an lm-eval model type with --model_args.")
    ] = "default",
    model_args: Annotated[str, typer.Option("--model_args", "-a", help="As for lm_eval: NAME=VALUE,...")] = "",
    edit: Annotated[str | None, typer.Option("--edit", help="Edit to apply: folder or hub:ORG/NAME.")] = None,
    edits: Annotated[
        str | None, typer.Option("--edits", help="Several edits in one vLLM engine: --edits DIR1 DIR2 ...")
    ] = None,
    backend: Annotated[str, typer.Option(help="What runs a base model: hf, or vllm.")] = "hf",
    output: Annotated[str | None, typer.Option("--output_path", "--output", "-o", help="Result file (.json).")] = None,
    limit: Annotated[float | None, typer.Option("--limit", "-L", help="Documents per task.")] = None,
    batch_size: Annotated[str, typer.Option("--batch_size", "-b", help="A number, auto, or auto:N.")] = "16",
    device: DeviceOption = None,
    num_fewshot: Annotated[int | None, typer.Option("--num_fewshot", help="Examples in the prompt.")] = None,
    apply_chat_template: Annotated[
        bool | None,
        typer.Option(
            "--apply_chat_template/--no-apply_chat_template",
            help="Ask as a chat. [default: what an edit forgot as the edit was made, the rest not]",
        ),
    ] = None,
    chat_template_kwargs: TemplateOption = None,
    system_instruction: SystemOption = None,
    gen_kwargs: Annotated[str, typer.Option("--gen_kwargs", help="NAME=VALUE,... for generation.")] = "",
    metadata: Annotated[str, typer.Option("--metadata", help="JSON for the tasks.")] = "{}",
    include_path: Annotated[str | None, typer.Option("--include_path", help="More tasks.")] = None,
    use_cache: Annotated[str | None, typer.Option("--use_cache", help="Cache of generations.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of everything random.")] = 1234,
    any_base: AnyBaseOption = False,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Evaluate the base model too, and compare the two.")
    ] = False,
    tracker: TrackerOption = None,
    json_: JsonOption = False,
) -> None:
    """Evaluate a model or an edit on lm-eval tasks.

    With --edit, tasks ask what that edit forgot, in the form in which it was made; other options override this.
    """
    check_there(model=model, edits=[edit, edits, *(context.args if edits else ())], tasks=include_path)
    from unlearn_eval.runs.evaluate import EvalConfig, run_before_and_after, run_evaluation, run_together

    config = EvalConfig(
        tasks=tuple(part.strip() for part in tasks.split(",") if part.strip()),
        model=model,
        model_args=model_args,
        edit=edit,
        backend=backend,
        output=output,
        limit=limit,
        batch_size=int(batch_size) if batch_size.isdigit() else batch_size,
        device=device,
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
        chat_template_kwargs=template_arguments_of(chat_template_kwargs),
        system_instruction=system_instruction,
        gen_kwargs=gen_kwargs,
        metadata=_json_object(metadata),
        include_path=include_path,
        use_cache=use_cache,
        seed=seed,
        any_base=any_base,
    )
    folders = [edits, *context.args] if edits else []
    if context.args and not edits:
        raise UserError(f"'{context.args[0]}' is no option", "several edits are --edits DIR1 DIR2 ...")
    if folders and (edit or backend != "vllm"):
        raise UserError("--edits are evaluated in one vLLM engine", "give --backend vllm, and no --edit")
    if folders and baseline:
        raise UserError("--baseline compares one edit with its base model", "give --edit DIR in place of --edits")
    from unlearn_eval.harness.patching import quiet_libraries
    from unlearn_eval.results.report.formats import comparison_rows
    from unlearn_eval.results.runs import result_summary
    from unlearn_eval.runs.trackers import tracker as tracker_of

    log = None if tracker is None else tracker_of(tracker, say)
    if baseline:
        with quiet_libraries():
            both = run_before_and_after(config, say)
        _log(log, both or ())
        if both is not None and json_:
            from unlearn_eval.results.comparison import compare as compare_results

            rows = comparison_rows(compare_results(*both))
            put(dumps({"results": [result_summary(own) for own in both], "comparison": rows}, indent=2))
        elif both is not None:
            _show_comparison(*both)
            put(f"results: {both[0].path}, {both[1].path}")
        return
    with quiet_libraries():
        one = None if folders else run_evaluation(config, say)
        results = run_together(config, folders, say) if folders else [one] if one else []  # a rank may write nothing
    _log(log, results)
    if json_:
        put(dumps({"results": [result_summary(own) for own in results]}, indent=2))
        return
    from unlearn_eval.results.report.table import show_result

    for result in results:
        show_result(result)


@app.command()
def compare(
    before: Annotated[str, typer.Argument(help="Result file of the first model, as `eval` writes it.")],
    after: Annotated[str, typer.Argument(help="Result file of the second, on the same tasks and items.")],
    format_: Annotated[str, typer.Option("--format", help="table, markdown, latex, csv or json.")] = "table",
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="Result of a model that never knew: show how far the second is from it."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Compare two results item by item, with paired tests."""
    from unlearn_eval.results.comparison import compare as compare_results
    from unlearn_eval.results.files import read_result
    from unlearn_eval.results.report.formats import FORMATS

    format_ = "json" if json_ else format_
    if format_ not in ("table", *FORMATS):
        raise unknown_name("format", format_, ("table", *FORMATS))
    first, second = read_result(before), read_result(after)
    if not first.metrics.keys() & second.metrics.keys():
        raise UserError(
            f"{before} and {after} share no task ({', '.join(first.metrics)}; {', '.join(second.metrics)})",
            "evaluate both models on the same --tasks",
        )
    if reference is not None:
        _show_gaps(first, second, read_result(reference), format_)
        return
    if format_ != "table":
        put(FORMATS[format_](compare_results(first, second)), end="")
        return
    _show_comparison(first, second)


def _log(log: Callable[[Result, str], None] | None, results: Iterable[Result]) -> None:
    """Log results by the names of their files."""
    if log is None:
        return
    for result in results:
        assert result.path is not None
        log(result, result.path.stem)


def _show_gaps(first: Any, second: Any, third: Any, format_: str) -> None:
    """How far the second result is from the third, as a table or as JSON."""
    from unlearn_eval.results.gaps import gaps
    from unlearn_eval.results.report.table import gap_tables

    rows = gaps(first, second, third)
    if format_ not in ("table", "json"):
        raise UserError(f"gaps are not written as {format_}", "give --format table or json")
    if format_ == "json":
        put(dumps([row.record for row in rows], indent=2))
        return
    console = new_console(width=140)
    for table in gap_tables(rows):
        console.print(table)
    console.print("gap: 1 as a model that never knew, 0 as far from it as before; side: + knows more than it, - less")


def _show_comparison(first: Any, second: Any) -> None:
    from unlearn_eval.results.comparison import compare as compare_results
    from unlearn_eval.results.groups import group_runs, run_labels
    from unlearn_eval.results.report.table import comparison_tables, fault_lines, reasons, unpaired
    from unlearn_eval.results.runs import runs_of

    rows = compare_results(first, second)
    console = new_console(width=140)
    runs = runs_of((first, second))
    labels = run_labels(group_runs(runs))
    for name, result in (("before", first), ("after", second)):
        (label,) = (labels[run.name] for run in runs if run.result.path == result.path)
        console.print(f"{name}: {label} ({result.path})", soft_wrap=True, markup=False)
    for table in comparison_tables(rows, tests=True):
        console.print(table)
    for line in (*fault_lines([first, second]), *reasons([first, second]), *unpaired(rows)):
        console.print(line)
    console.print("↑ higher is better, ↓ lower is better; ± standard error; p of each change by itself, two-sided")


app.add_typer(cli_plan.app, name="plan", help="Plan the memory of a command, before anything is loaded.")
app.command()(cli_forget.forget)
app.command()(cli_forget.verify)
app.command(hidden=True)(cli_forget.revoke)  # the list of commands fits on a screen; verify names it
app.command()(cli_push.push)
app.command()(cli_attack.attack)
app.command()(cli_localization.localize)
app.command()(cli_study.run)
app.command()(cli_meta.meta)
app.command()(cli_rate.rate)
app.command()(cli_report.report)
app.command(hidden=True)(cli_report.view)  # the list of commands fits on a screen; report names it
app.command()(cli_report.check)
app.command(context_settings={"allow_extra_args": True})(cli_serve.serve)


app.command()(cli_ls.ls)


@app.command("tasks-path")
def tasks_path() -> None:
    """Print our tasks' folder, for --include_path."""
    from unlearn_eval.harness.names import TASKS_FOLDER

    put(TASKS_FOLDER)


app.command()(cli_env.env)


@app.command("fetch-model", hidden=True)
def fetch_model() -> None:
    """Get the default model; print its folder."""
    from unlearn_eval.models.default_model import fetch_default_model

    put(fetch_default_model())


@app.command("fetch-encoder", hidden=True)  # the list of commands fits on a screen
def fetch_encoder() -> None:
    """Get the default sentence encoder; print its folder."""
    from unlearn_eval.models.embedding import fetch_default_encoder

    put(fetch_default_encoder())


def main() -> None:
    """Run a command; a user's mistake, or the machine's, is two lines and exit code 1, never a traceback."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before we began
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
    try:
        try:
            contextvars.copy_context().run(app)  # what -q and -v set ends with the command
        finally:
            sys.stdout.flush()
    except UserError as error:
        _fail(f"{error}")
    except BrokenPipeError:
        _drop_output()  # whoever read it has gone
        sys.exit(1)
    except OSError as error:
        if error.errno == errno.ENOMEM or is_out_of_memory(error):
            _fail(_MEMORY)
        if error.errno is None:
            raise
        if error.errno in _CANNOT_WRITE:
            _drop_output()  # it may itself be what is full
            _fail(f"cannot write {error.filename or 'a file'}: {error.strerror}\nhint: {_ROOM}")
        _fail(f"{error.filename or 'a file'}: {error.strerror}\nhint: check the path, and what may be done there")
    except Exception as error:
        if str(error).startswith("Could not determine home"):
            _fail("there is no home folder\nhint: set HOME, or UNLEARN_EVAL_CACHE and HF_HOME")
        if is_out_of_memory(error):
            _fail(_MEMORY)
        if not is_of_the_disk(error):
            raise
        _fail(f"cannot write a file: {' '.join(str(error).split())[:200]}\nhint: {_ROOM}")
    except KeyboardInterrupt:
        say("interrupted; what was finished is kept, the same command goes on from there")
        sys.exit(130)


_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG)
_ROOM = "free some space or give another --output; the same command goes on from there"
_MEMORY = "the memory is too small\nhint: give a smaller --batch_size or model, or --dtype bfloat16"


def _drop_output() -> None:
    """Throw away what could not be written to standard output, which the interpreter would try again at its end."""
    if sys.stdout is sys.__stdout__:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _fail(text: str) -> NoReturn:
    say(f"error: {text}")
    sys.exit(1)


# Details ---------------------------------------------------------------------------------------------------


def _tell(made: Any) -> None:
    """What the self-check found, and what to try if an edit did not take."""
    from unlearn_eval.metrics.edit_checks import did_harm, took, unrelated_line

    check, preset = made.info.self_check, made.info.notes["preset"]
    say(
        f"self-check: {check.n_took} of {check.n} targets are now the most likely answer (probability per token "
        f"{check.target_probability_before:.3f} -> {check.target_probability_after:.3f})"
    )
    if check.unrelated:
        say(unrelated_line(check.unrelated))
    for fault in made.info.faults:
        say(f"warning: {fault}")
    could_retain = "text" in made.info.config and not made.info.requests.retain_set
    if could_retain and check.unrelated and did_harm(check.unrelated):
        say("hint: say what is to stay, by --retain facts or a set of your own")
    if "training" in made.info.notes:
        _tell_training(made.info.notes["training"], check)
    elif took(made.info.notes) is False:
        known = "there is no preset for this model" if preset is None else f"the preset is {preset['name']}'s"
        remedies = _remedies(made.info.config)
        say(f"hint: {known}; try {remedies}" if "layers" in remedies else f"hint: try {remedies}")


_REMEDIES = {  # by setting: what to do with it where an edit did not take
    "layers": "other --set layers=...",
    "target": "more --set target.steps=...",
    "steps": "more --set steps=...",
    "preservation": "less --set preservation=...",
    "calibrate": "--set calibrate=true with paraphrases in the forget set",
    "note": "another --set note=...",
    "gate": "another --set gate=...",
}


def _remedies(settings: dict[str, Any]) -> str:
    """What to try with an edit that did not take, by the settings that its editor has."""
    return ", ".join(text for name, text in _REMEDIES.items() if name in settings) or "other --set values"


def _tell_training(notes: dict[str, Any], check: SelfCheck | None = None) -> None:
    """What became of the answers, and what went otherwise than asked."""
    from unlearn_eval.editing.training.stop import stop_line

    if check is not None and check.answer_probability_before is not None:
        before, after = check.answer_probability_before, check.answer_probability_after
        say(f"the answers' probability per token {before:.3f} -> {after:.3f}, in {notes['steps']} steps")
    if line := stop_line(notes):
        say(line)
    if "diverged_after_step" in notes:
        say(f"the loss was not finite after {notes['diverged_after_step']} steps: kept is step {notes['kept_step']}")
        say("hint: give a smaller --set learning_rate, or fewer --set epochs")


def _next_command(folder: Any, forget_set: str, model: str, dtype: str, device: str | None) -> str:
    """The command that evaluates an edit on what it forgot."""
    from unlearn_eval.data.registry import task_for

    words = ["unlearn-eval", "eval", "--edit", str(folder), "--tasks", task_for(forget_set)]
    words += ["--model", model] if model != "default" else []
    words += ["--model_args", f"dtype={dtype}"] if dtype != _DTYPE else []
    words += ["--device", device] if device else []
    return shlex.join(words)


def _training_folder(method: Editor, output: str, options: dict[str, str]) -> str | None:
    """Where a method that is trained keeps its checkpoints until the edit is there, if the user has not said where."""
    if "folder" in options or "folder" not in method.settings:
        return None
    options["folder"] = f"{output.rstrip('/')}.training"
    return options["folder"]


def _editor_of(state: Any) -> str:
    """The method of an edit to go on from."""
    file = state.info.notes.get("editor_file")
    if file is not None:
        raise UserError(
            f"the edit to go on from was made by a file, {file['name']}", f"give --editor FOLDER/{file['name']}"
        )
    return str(state.info.editor)


def _remove(folder: str | None) -> None:
    from pathlib import Path

    from unlearn_eval.editing.training.run import remove_run

    if folder is not None:
        remove_run(Path(folder))


def _is_first_process() -> bool:
    """Whether this process writes: of several that `accelerate launch` has started, the first."""
    import os

    return os.environ.get("RANK", "0") == "0"


def _json_object(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"--metadata is not JSON: {error}", """for example --metadata '{"forget": "capital_of"}'"""
        ) from error
    if not isinstance(content, dict):
        raise UserError("--metadata is not a JSON object", """for example --metadata '{"forget": "capital_of"}'""")
    return content


def _samples_table(rows: list[tuple[str, str, str, str]]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title="what it says", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "question", "before", "after"):
        table.add_column(column, overflow="fold", ratio=None if not column else 1)
    for i, row in enumerate(rows):
        table.add_row(*row, end_section=i + 1 < len(rows) and rows[i + 1][0] != row[0])
    return table


if __name__ == "__main__":
    main()
