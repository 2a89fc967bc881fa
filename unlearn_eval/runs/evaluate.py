"""One evaluation, from its settings to its result file."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from unlearn_eval.data.registry import is_ours
from unlearn_eval.edits.base import Edit, EditInfo
from unlearn_eval.edits.folder import read_description
from unlearn_eval.edits.places import edit_name
from unlearn_eval.harness.backends import check_backend, model_type
from unlearn_eval.harness.plan import (
    CHAT,
    EDIT,
    TEMPLATE,
    EvalPlan,
    edit_arguments,
    given_arguments,
    is_given,
    silent_plans,
)
from unlearn_eval.models.default_model import model_source
from unlearn_eval.models.load import LoadedModel, load_model
from unlearn_eval.models.places import resolve_model
from unlearn_eval.models.prompt_format import check_template_arguments
from unlearn_eval.models.weights import check_finite, hash_weights
from unlearn_eval.results.files import name_of_run, read_result, write_result
from unlearn_eval.results.schema import Result, utc_now
from unlearn_eval.serving.engine import engine_here, engine_stopped
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.folders import check_output
from unlearn_eval.utils.notebooks import in_notebook
from unlearn_eval.utils.settings import check_batch_size
from unlearn_eval.utils.terminal import say as say_on_terminal

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class EvalConfig:
    """What `unlearn-eval eval` does; the names are lm-eval's where it has them.

    Attributes:
        tasks: names or patterns.
        model: a base model (hub id, folder, `default`), or one of lm-eval's model types.
        model_args: further arguments of the model, `NAME=VALUE,...` or by name.
        edit: the folder of an edit to apply, or `hub:ORG/NAME[@REVISION]`.
        backend: what runs a base model: "hf", or "vllm".
        output: the result file; None makes one under `results/scratch`.
        limit, batch_size, device, num_fewshot, system_instruction, gen_kwargs, metadata, include_path, use_cache: as
            for `lm_eval` (`gen_kwargs` also by name). With an edit, tasks ask what it forgot unless the metadata say
            what is forgotten.
        apply_chat_template: whether everything is asked as a chat; None asks what an edit forgot as the edit was made,
            and the rest plainly.
        chat_template_kwargs: further arguments of the chat template; None are the edit's own, if there is an edit.
        seed: of everything random.
        any_base: whether the edit may leave open which model it was made on.
    """

    tasks: tuple[str, ...]
    model: str = "default"
    model_args: str | Mapping[str, Any] = ""
    edit: str | None = None
    backend: str = "hf"
    output: str | None = None
    limit: float | None = None
    batch_size: int | str = 16
    device: str | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    system_instruction: str | None = None
    gen_kwargs: str | Mapping[str, Any] = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    include_path: str | None = None
    use_cache: str | None = None
    seed: int = 1234
    any_base: bool = False

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size, auto=True)
        if self.limit is not None and not self.limit > 0:
            raise UserError(f"cannot take {self.limit:g} documents of a task", "give --limit a number above 0")


@dataclass(frozen=True)
class Lent:
    """What an evaluation is given in memory.

    Attributes:
        loaded: the model; None is the one that the settings name.
        edit: whether the folder of the edit is there for this run alone.
    """

    loaded: LoadedModel | None = None
    edit: bool = False


NOTHING = Lent()


def evaluate(
    model: str | Path | LoadedModel | PreTrainedModel,
    edit: str | Path | Edit | None = None,
    tasks: str | Sequence[str] = (),
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **settings: Any,
) -> Result:
    """Evaluate a model, with an edit if one is given; the result is written, too.

    Args:
        model: a `LoadedModel`, a transformers model (with its `tokenizer`), or a name as `EvalConfig` takes it. A model
            in memory is afterwards as it was.
        edit: an edit, or its folder; tasks then ask what it forgot.
        tasks: names or patterns, one or several.
        tokenizer: of a transformers model.
        settings: further attributes of `EvalConfig`, as Python values: `limit=10`, `gen_kwargs={"max_gen_toks": 8}`.

    Raises:
        UserError: as `run_evaluation`; an unknown setting, or a model without a tokenizer.
    """
    from unlearn_eval.harness.patching import quiet, quiet_libraries

    known = {own.name for own in fields(EvalConfig)} - {"model", "edit", "tasks"}
    if unknown := [name for name in settings if name not in known]:
        raise unknown_name("setting", unknown[0], known)
    if not tasks:
        raise UserError("no tasks are named", 'for example tasks=["unlearn_facts"]')
    loaded = None if isinstance(model, str | Path) else _loaded(model, tokenizer)
    if loaded is None and _is_edit(edit):
        loaded = load_model(str(model), device=settings.get("device"))
    config = EvalConfig(
        tasks=(tasks,) if isinstance(tasks, str) else tuple(tasks),
        model=str(model) if loaded is None else loaded.name,
        **settings,
    )
    with quiet() if in_notebook() else quiet_libraries(), _folder(edit, loaded) as folder:
        result = run_evaluation(replace(config, edit=folder), say_on_terminal, Lent(loaded, _is_edit(edit)))
    if result is None:
        raise UserError("this process writes no result: the first one of the run does", "ask the first one")
    return result


def _loaded(model: object, tokenizer: object) -> LoadedModel:
    """A transformers model as a `LoadedModel`, unless it is one."""
    if isinstance(model, LoadedModel):
        return model
    if tokenizer is None or not hasattr(model, "config"):
        what = type(model).__name__
        raise UserError(
            f"a {what} cannot be evaluated" + (" without its tokenizer" if hasattr(model, "config") else ""),
            "give a name, a LoadedModel, or a transformers model and tokenizer=...",
        )
    name = str(getattr(model, "name_or_path", "") or type(model).__name__)
    return LoadedModel(model, tokenizer, name, None, name)


def _is_edit(edit: object) -> bool:
    return not isinstance(edit, str | Path | None)


@contextmanager
def _folder(edit: str | Path | Edit | None, loaded: LoadedModel | None) -> Iterator[str | None]:
    """The folder of an edit, which one in memory has within a `with` block only."""
    if edit is None or isinstance(edit, str | Path):
        yield None if edit is None else str(edit)
        return
    own = (None, None) if loaded is None else (loaded.tokenizer, loaded.model.config)
    with TemporaryDirectory(prefix="unlearn-eval-") as place:
        yield str(edit.save(Path(place) / "edit", *own))


def run_evaluation(config: EvalConfig, say: Callable[[str], Any], lent: Lent = NOTHING) -> Result | None:
    """Evaluate and write the result; None on a rank that does not write.

    Args:
        config: the settings.
        say: called with each step in a line.
        lent: what is in memory already.

    Raises:
        UserError: no such task or model, a mistake in the settings, or the result cannot be written.
    """
    import torch

    from unlearn_eval.harness.patching import without_machine
    from unlearn_eval.harness.run import load_lm, names_of
    from unlearn_eval.models.scoring import finite_logits

    names = [name for task in config.tasks for name in names_of(task, config.include_path)]  # before a model is loaded
    _check(config, names)
    kind, arguments = model_arguments(config, lent.loaded is not None)
    plans = plans_of(config, names, arguments.get("edit"))
    _check_template(config, plans)
    for line in dict.fromkeys(plan.line for plan in plans):
        say(line.replace(str(config.edit), "the edit") if lent.edit else line)
    path = _output(config, kind, arguments)
    check_output(path, "result")
    created, started = utc_now(), time.monotonic()
    if lent.loaded is None:
        with_edit = f" with the edit{'' if lent.edit else f' {config.edit}'}" if config.edit else ""
        say(f"loading {arguments.get('pretrained', kind)}{with_edit}")
    on_vllm = kind.endswith("vllm")
    size = "auto" if on_vllm else config.batch_size  # vLLM makes its batches by itself
    with _given_back(lent) as used:
        with engine_here(arguments) if on_vllm else nullcontext():
            lm = load_lm(kind, arguments | _objects(lent), size, config.device)
        used.append(lm)
        weights = _hash(lm, lent.loaded)
        loaded = time.monotonic()
        own = getattr(lm, "model", None)
        watched = finite_logits(own) if isinstance(own, torch.nn.Module) else nullcontext()
        with engine_stopped(lm), without_machine(), watched:
            found = _ask(config, lm, arguments.get("edit"))
    if not found.metrics:
        return None
    timing = {"loading_seconds": round(loaded - started, 2), "evaluation_seconds": round(time.monotonic() - loaded, 2)}
    return _written(config, path, kind, arguments, lm, weights, found, created, timing, lent.edit)


def _objects(lent: Lent) -> dict[str, Any]:
    """The arguments of lm-eval's model that are objects."""
    return {} if lent.loaded is None else {"pretrained": lent.loaded.model, "tokenizer": lent.loaded.tokenizer}


@contextmanager
def _given_back(lent: Lent) -> Iterator[list[Any]]:
    """Leave a model in memory as it was, without edits and in its mode, after lm-eval's models have used it."""
    used: list[Any] = []
    was_training = lent.loaded is not None and lent.loaded.model.training
    try:
        yield used
    finally:
        if lent.loaded is not None:
            for lm in used:
                getattr(lm, "take_off", lambda: None)()
            lent.loaded.model.train(was_training)


def run_together(config: EvalConfig, edits: Sequence[str], say: Callable[[str], Any]) -> list[Result]:
    """Evaluate several low-rank edits of one base model in one vLLM engine, and write a result for each.

    Args:
        config: with `output` a folder (or None), and without `edit`.
        edits: their folders.
        say: told what is done.

    Raises:
        UserError: as `run_evaluation`, and an edit that is no LoRA or was made on another base; no result is lost that
            was written before.
    """
    from unlearn_eval.harness.patching import without_machine
    from unlearn_eval.harness.run import names_of

    tasks = [name for task in config.tasks for name in names_of(task, config.include_path)]
    _check(config, tasks)
    names = [edit_name(edit) for edit in edits]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two edits are called {twice[0]}", "give their folders different names")
    if config.output and Path(config.output).suffix == ".json":
        raise UserError(f"{len(edits)} results do not fit into {config.output}", "give --output a folder")
    kind, arguments = model_arguments(replace(config, backend="vllm"))
    if kind != "vllm":
        raise UserError(f"the model type '{kind}' cannot share an engine between edits", "give a base model")
    from unlearn_eval.serving.checkpoint_stream import check_checkpoint
    from unlearn_eval.serving.together import Engine, read_adapter

    adapters = [read_adapter(edit) for edit in edits]
    bases = {adapter.info.base.canonical_hash: adapter.info for adapter in adapters}
    for info in bases.values():  # there should be one
        check_checkpoint(info, arguments["pretrained"], arguments.get("revision"))
    for line in dict.fromkeys(plan.line for edit in edits for plan in plans_of(config, tasks, edit)):
        say(line)
    created, started = utc_now(), time.monotonic()
    say(f"loading {arguments['pretrained']} with {len(edits)} edits")
    options = {name: value for name, value in arguments.items() if name != "pretrained"}
    with engine_here(options):
        engine = Engine(arguments["pretrained"], adapters, **options)
    loaded = time.monotonic()
    with engine_stopped(engine.own), without_machine():
        found = engine.run(lambda lm: _ask(config, lm, lm.edit_folder))
    timing = {"loading_seconds": round(loaded - started, 2), "evaluation_seconds": round(time.monotonic() - loaded, 2)}
    results = []
    for edit, lm, own in zip(edits, engine.views, found, strict=True):
        one = replace(config, edit=edit)
        path = _output(one, kind, arguments)
        results.append(_written(one, path, kind, arguments, lm, {}, own, created, timing))
    return results


def run_before_and_after(config: EvalConfig, say: Callable[[str], Any]) -> tuple[Result, Result] | None:
    """Evaluate the base model and the edited one on the same plan, and write both results.

    Args:
        config: with an edit; the base model's result is `NAME.baseline.json` beside an `output` of `NAME.json`.
        say: called with each step in a line.

    Returns:
        The results before and after; None on a rank that does not write.

    Raises:
        UserError: as `run_evaluation`, or there is no edit.
    """
    if not config.edit:
        raise UserError("--baseline compares an edit with its base model", "give the edit: --edit DIR")
    say = _once(say)  # both say what is asked
    after = run_evaluation(config, say)  # first: another base than the edit's is refused before anything is evaluated
    gc.collect()
    base = {"edited": "hf", "edited-vllm": "vllm"}.get(config.model, config.model)
    output = config.output
    if output and Path(output).suffix == ".json":
        output = str(Path(output).with_suffix(".baseline.json"))
    metadata = {EDIT: config.edit, **config.metadata}
    unedited = replace(config, model=base, edit=None, output=output, metadata=metadata)
    before = run_evaluation(unedited, say)
    return (before, after) if before is not None and after is not None else None


def _check(config: EvalConfig, tasks: Sequence[str]) -> None:
    """Refuse options that one of our tasks would not apply."""
    from unlearn_eval.harness.options import check_options

    kwargs = _parsed(config.gen_kwargs)
    check_options(tasks, metadata=config.metadata, num_fewshot=config.num_fewshot, gen_kwargs=kwargs)


def _check_template(config: EvalConfig, plans: Sequence[EvalPlan]) -> None:
    """Refuse arguments of a chat template where nothing is asked as a chat."""
    as_made = config.apply_chat_template is None and any(plan.chat and plan.reason is None for plan in plans)
    if config.chat_template_kwargs and not (config.apply_chat_template or as_made):
        check_template_arguments(None, config.chat_template_kwargs)


def _once(say: Callable[[str], Any]) -> Callable[[str], Any]:
    """`say` for lines that were not there before."""
    lines: set[str] = set()

    def say_new(line: str) -> None:
        if line not in lines:
            lines.add(line)
            say(line)

    return say_new


def plans_of(config: EvalConfig, tasks: Sequence[str], edit: str | None) -> list[EvalPlan]:
    """What each of our tasks asks of an edit; none if there is no edit or the metadata say what is forgotten.

    Args:
        config: what is evaluated.
        tasks: names.
        edit: the folder of the edit that is applied; without one, that of the metadata.

    Raises:
        UserError: the folder is no edit.
    """
    folder = edit or config.metadata.get(EDIT)
    if folder is None or is_given(config.metadata):
        return []
    plans = [EvalPlan.from_edit(str(folder), task) for task in tasks if is_ours(task)]
    given = config.apply_chat_template, config.system_instruction, _arguments(config)
    return [plan.asked_with(*given) for plan in plans]


def _arguments(config: EvalConfig) -> dict[str, Any] | None:
    """The template arguments that a run names, None if it names none."""
    given = given_arguments(_parsed(config.model_args))
    if given is not None and config.chat_template_kwargs is not None:
        raise UserError("--model_args names template arguments too", "leave out --chat_template_kwargs")
    return given if config.chat_template_kwargs is None else config.chat_template_kwargs


def _ask(config: EvalConfig, lm: Any, edit: str | None) -> Any:
    from unlearn_eval.harness.run import evaluate

    metadata = {**({EDIT: edit} if edit else {}), **config.metadata}
    if (arguments := _arguments(config)) is not None:
        metadata[TEMPLATE] = arguments
    if config.apply_chat_template is False:
        metadata = {CHAT: False, **metadata}
    with silent_plans():
        return evaluate(
            lm,
            config.tasks,
            include_path=config.include_path,
            limit=config.limit,
            num_fewshot=config.num_fewshot,
            apply_chat_template=bool(config.apply_chat_template),
            system_instruction=config.system_instruction,
            gen_kwargs=_parsed(config.gen_kwargs),
            metadata=metadata,
            use_cache=config.use_cache,
            seed=config.seed,
        )


def _written(
    config: EvalConfig,
    path: Path,
    kind: str,
    arguments: dict[str, Any],
    lm: Any,
    weights: dict[str, Any],
    found: Any,
    created: str,
    timing: dict[str, float],
    in_memory: bool = False,
) -> Result:
    passed, entry = asdict(config), _edit_entry(lm, config.edit)
    if in_memory and entry is not None:  # the folder is gone afterwards
        passed, arguments, entry = passed | {"edit": None}, {**arguments, "edit": None}, entry | {"folder": None}
    result = Result.new(
        "evaluation",
        created,
        device=getattr(lm, "device", None),
        peak="peak memory",
        config_as_passed={key: value for key, value in passed.items() if value not in (None, "", {})},
        config={"model_type": kind, "model_args": arguments, "tasks": found.configs},
        model={"id": arguments.get("pretrained", kind), **weights},
        edit=entry,
        data=found.data,
        metrics=found.metrics,
        seed=config.seed,
        timing=timing,
    )
    write_result(result, path, found.samples)
    return read_result(path)


def model_arguments(config: EvalConfig, is_loaded: bool = False) -> tuple[str, dict[str, Any]]:
    """lm-eval's model type and its arguments: `--model NAME` may be a type or a base model.

    Args:
        config: the settings.
        is_loaded: whether the model is in memory, and its name is no more than that.

    Raises:
        UserError: a type without `pretrained`, an edit with a type that cannot apply it, or no such model.
    """
    from unlearn_eval.harness.run import model_names

    check_backend(config.backend)
    arguments = _parsed(config.model_args)
    kind = config.model
    if is_loaded and config.backend != "hf":
        raise UserError(f"a model in memory is not run by {config.backend}", "give its name, or leave out backend")
    if is_loaded or kind not in model_names():
        arguments = {"pretrained": kind if is_loaded else resolve_model(kind), **arguments}
        edited = bool(config.edit or "edit" in arguments)
        kind = model_type(config.backend, edited)
    elif arguments.get("pretrained") == "default":
        arguments["pretrained"] = resolve_model("default")
    if config.backend == "vllm" and not kind.endswith("vllm"):
        raise UserError(f"--model {kind} is not run by vLLM", "leave out --backend, or give a base model as --model")
    folder = config.edit or arguments.get("edit") or config.metadata.get(EDIT)
    if config.edit and arguments.get("edit") not in (None, config.edit):
        raise UserError(f"--edit {config.edit} and --model_args edit={arguments['edit']} differ", "give one of them")
    if config.chat_template_kwargs is not None:
        _arguments(config)  # named once
        arguments[TEMPLATE] = config.chat_template_kwargs
    elif folder and not (config.edit or arguments.get("edit")):  # an edited model takes the edit's own by itself
        arguments = edit_arguments(EditInfo(**read_description(folder, check_files=False)["info"]), arguments)
    if config.edit:
        if kind in ("hf", "huggingface", "hf-auto"):
            kind = "edited"
        if kind == "vllm":
            kind = "edited-vllm"
        if not kind.startswith("edited"):
            raise UserError(f"the model type '{kind}' cannot apply an edit", "use --model edited, or a base model")
        arguments["edit"] = config.edit
        arguments |= {"any_base": True} if config.any_base and kind == "edited" else {}
    return kind, arguments


def _parsed(text: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(text, Mapping):
        return dict(text)
    from unlearn_eval.harness.run import parse_arguments

    try:
        return parse_arguments(text)
    except ValueError as error:
        raise UserError(
            f"'{text}' is not NAME=VALUE,NAME=VALUE,...", "for example pretrained=gpt2,dtype=float32"
        ) from error


def _hash(lm: Any, loaded: LoadedModel | None = None) -> dict[str, Any]:
    """The hashes of the weights that answer, for models whose weights are in this process."""
    import torch

    model = getattr(lm, "model", None)
    if not isinstance(model, torch.nn.Module):
        return {}
    name = str(getattr(lm, "pretrained", "")) if loaded is None else loaded.path
    check_finite(model, name or "the model")
    weights = hash_weights(model)
    return {
        "weights_hash": weights.exact,
        "canonical_weights_hash": weights.canonical,
        "dtype": str(getattr(model, "dtype", "")).removeprefix("torch."),
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "source": model_source(name) if Path(name).is_dir() else None,
    }


def _edit_entry(lm: Any, folder: str | None) -> dict[str, Any] | None:
    info = getattr(lm, "edit_info", None)
    return None if info is None else {"folder": getattr(lm, "edit_folder", folder), **info.as_stored()}


def _output(config: EvalConfig, kind: str, arguments: dict[str, Any]) -> Path:
    if config.output:
        path = Path(config.output)
        return path if path.suffix == ".json" else path / _file_name(config, kind, arguments)
    return Path("results") / "scratch" / _file_name(config, kind, arguments)


def _file_name(config: EvalConfig, kind: str, arguments: dict[str, Any]) -> str:
    model = Path(str(arguments.get("pretrained", kind))).name
    edit = f"+{edit_name(config.edit)}" if config.edit else ""
    task = config.tasks[0].replace("*", "all") if len(config.tasks) == 1 else f"{len(config.tasks)}-tasks"
    return name_of_run(f"{task}_{model}{edit}")
