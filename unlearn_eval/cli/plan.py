"""`unlearn-eval plan`: what fits, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unlearn_eval.cli.options import (
    ChatOption,
    ForgetOption,
    IdsOption,
    JsonOption,
    LimitOption,
    SeedOption,
    TargetOption,
    forget_set_of,
)
from unlearn_eval.cli.terminal import pair
from unlearn_eval.editing.presets import DEFAULT_EDITOR
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.utils.json_files import dumps
from unlearn_eval.utils.terminal import gigabytes, put

if TYPE_CHECKING:
    from unlearn_eval.runs.memory import Choice, MemoryPlan, Sized

app = typer.Typer(no_args_is_help=True)
RECIPE = Recipe()

ModelOption = Annotated[str, typer.Option("--model", "-m", help="Hub id, folder, 'default', or a config.json alone.")]
DtypeOption = Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto: the checkpoint's.")]
DeviceOption = Annotated[str, typer.Option(help="Kind of device: cuda or cpu.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="A setting, NAME=VALUE.")]
BatchOption = Annotated[int, typer.Option("--batch_size", "-b", help="Rows per forward pass.")]


@app.command()
def edit(
    model: ModelOption = "default",
    forget: ForgetOption = "facts",
    retain: Annotated[str | None, typer.Option("--retain", help="What to keep. [default: the forget set]")] = None,
    editor: Annotated[str, typer.Option("--editor", "-e", help="One of `ls editors`, or a file.")] = DEFAULT_EDITOR,
    target: TargetOption = RECIPE.target,
    per_step: Annotated[int, typer.Option(help="Requests per step; 0: all at once.")] = RECIPE.per_step,
    contexts: Annotated[int, typer.Option(help="Sampled openings before each question.")] = RECIPE.n_contexts,
    preset: Annotated[bool, typer.Option(help="Use the model's published settings.")] = RECIPE.preset,
    ids: IdsOption = None,
    limit: LimitOption = None,
    chat: ChatOption = None,
    set_: SetOption = None,
    dtype: DtypeOption = "float32",
    seed: SeedOption = RECIPE.seed,
    device: DeviceOption = "cuda",
    json_: JsonOption = False,
) -> None:
    """Plan the memory of making an edit."""
    from unlearn_eval.editing.editor import get_editor
    from unlearn_eval.runs.edit import published_settings
    from unlearn_eval.runs.memory import choices, plan_edit

    method, forget_set = get_editor(editor), forget_set_of(forget, ids, limit, seed)
    kept = None if retain is None else forget_set_of(retain, None, None, seed)
    recipe = Recipe(target=target, per_step=per_step, n_contexts=contexts, preset=preset, seed=seed, chat=chat)
    options = dict(pair(text) for text in set_ or [])

    def plan(base: Sized, choice: Choice) -> MemoryPlan:
        return plan_edit(base, method, forget_set, {**options, **choice.settings}, recipe, kept, device)

    def tried(base: Sized) -> list[Choice]:
        return choices(base.dtype, published_settings(base.model, method, forget_set.name, recipe, options))

    _show(model, dtype, plan, tried, json_)


@app.command()
def finetune(
    on: Annotated[str, typer.Option("--on", help="What the model is to know: tofu:full, pistol:all, a file.")],
    model: ModelOption = "default",
    preset: Annotated[str | None, typer.Option(help="As for finetune. [default: the data's own]")] = None,
    limit: LimitOption = None,
    set_: SetOption = None,
    dtype: DtypeOption = "float32",
    seed: SeedOption = RECIPE.seed,
    device: DeviceOption = "cuda",
    json_: JsonOption = False,
) -> None:
    """Plan the memory of fine-tuning."""
    from unlearn_eval.runs.finetune import finetune_config, preset_of
    from unlearn_eval.runs.memory import choices, plan_finetune

    data = forget_set_of(on, None, limit, seed)
    chosen, options = preset_of(data, preset), dict(pair(text) for text in set_ or [])
    config = finetune_config(options, chosen, seed)

    def plan(base: Sized, choice: Choice) -> MemoryPlan:
        return plan_finetune(base, data, {**options, **choice.settings}, chosen, device)

    _show(model, dtype, plan, lambda base: choices(base.dtype, config), json_)


@app.command("eval")
def evaluate(
    model: ModelOption = "default",
    forget: ForgetOption = "facts",
    batch_size: BatchOption = 16,
    new_tokens: Annotated[int, typer.Option(help="Tokens of an answer.")] = 64,
    length: Annotated[
        int, typer.Option(help="Tokens of a document, where lm-eval's own tasks are evaluated too; 0: none are.")
    ] = 0,
    limit: LimitOption = None,
    dtype: DtypeOption = "auto",
    seed: SeedOption = RECIPE.seed,
    json_: JsonOption = False,
) -> None:
    """Plan the memory of an evaluation in Transformers."""
    from unlearn_eval.runs.memory import choices, plan_eval
    from unlearn_eval.utils.settings import check_batch_size

    check_batch_size(batch_size)
    data = forget_set_of(forget, None, limit, seed)

    def plan(base: Sized, choice: Choice) -> MemoryPlan:
        return plan_eval(base, data, choice.batch_size or batch_size, new_tokens, length)

    _show(model, dtype, plan, lambda base: choices(base.dtype, None, batch_size), json_)


@app.command()
def attack(
    name: Annotated[str, typer.Argument(help="Which: `unlearn-eval ls attacks`.")],
    model: ModelOption = "default",
    forget: ForgetOption = "facts",
    reference: Annotated[bool, typer.Option(help="Keep a reference model of the same size beside it.")] = False,
    set_: SetOption = None,
    limit: LimitOption = None,
    batch_size: BatchOption = 16,
    dtype: DtypeOption = "float32",
    seed: SeedOption = 0,
    device: DeviceOption = "cuda",
    json_: JsonOption = False,
) -> None:
    """Plan the memory of an attack."""
    from unlearn_eval.attacks.base import get_attack
    from unlearn_eval.runs.memory import choices, plan_attack
    from unlearn_eval.utils.settings import check_batch_size, configure

    check_batch_size(batch_size)
    options = dict(pair(text) for text in set_ or [])
    config = configure(get_attack(name).Config, options)
    data = forget_set_of(forget, None, limit, seed)

    def plan(base: Sized, choice: Choice) -> MemoryPlan:
        settings, rows = {**options, **choice.settings}, choice.batch_size or batch_size
        return plan_attack(base, name, data, settings, rows, device, reference)

    _show(model, dtype, plan, lambda base: choices(base.dtype, config, batch_size), json_)


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="A study file, or the name of one that is shipped.")],
    settings: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE over the file's, as in sizes=[10].")] = None,
    json_: JsonOption = False,
) -> None:
    """Plan the time and memory of a study, as its --dry-run."""
    from unlearn_eval.cli.study import run as run_study

    run_study(study, settings, dry_run=True, json_=json_)


def _show(
    model: str,
    dtype: str,
    plan: Callable[[Sized, Choice], MemoryPlan],
    tried: Callable[[Sized], list[Choice]],
    json_: bool,
) -> None:
    """Print a plan, the cards that it fits, and what makes it smaller where it does not fit them all."""
    from unlearn_eval.harness.patching import quiet_libraries
    from unlearn_eval.runs.memory import CARDS, Choice, sized, smaller

    with quiet_libraries():
        base = sized(model, dtype)
        first = plan(base, Choice(""))
        others = [] if first.fits(min(CARDS)) else list(smaller(lambda own: plan(_as(base, own), own), tried(base)))
    fits = {str(card): next((own for own in (first, *others) if own.fits(card)), None) for card in CARDS}
    cards = {card: None if own is None else "" if own is first else own.what for card, own in fits.items()}
    if json_:
        more = [{"options": own.what, "peak_bytes": own.peak_bytes} for own in others]
        put(dumps({**first.record, "cards": cards, "with_options": more}, indent=2))
        return
    for line in lines(first, others, cards):
        put(line)


def _as(base: Sized, choice: Choice) -> Sized:
    return base if choice.dtype in (None, base.dtype) else base.in_type(str(choice.dtype))


def lines(plan: MemoryPlan, others: list[MemoryPlan], cards: Mapping[str, Any]) -> list[str]:
    """A plan as text, at most 80 columns wide but for names and options."""
    found = [
        f"{plan.what}: {plan.model.name}, {plan.model.n_parameters:,} parameters in {plan.model.dtype}",
        f"  weights {_size(plan.model.weights_bytes)}, at most {_size(plan.peak_bytes)} ({plan.largest.name})",
        "",
        f"  {'phase':<24}{'beside the weights':>20}",
    ]
    for phase in plan.phases:
        found.append(f"  {phase.name:<24}{_size(phase.n_bytes):>20}")
        held = sorted(((n, kind) for kind, n in phase.held.items() if n >= 0.005 * plan.peak_bytes), reverse=True)
        found += [f"    {kind:<32}{_size(n):>10}" for n, kind in held]
    found += ["", "  on the disk", *(f"    {kind:<40}{_size(n):>10}" for kind, n in plan.disk.items()), ""]
    for card, options in cards.items():
        answer = "does not fit" if options is None else "fits" if not options else f"fits with {options}"
        found.append(f"  {card + ' GB':<8}{answer}")
    for own in others:
        found.append(f"  {_size(own.peak_bytes)} at most with {own.what} ({own.largest.name})")
    return found + [f"  note: {note}" for note in plan.notes]


def _size(n: int) -> str:
    return gigabytes(n) if n >= 1e9 else f"{n / 1e6:.0f} MB"
