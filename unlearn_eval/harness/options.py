"""Options that a task cannot apply: refused, so that no result records what did not happen.

Each task class states which keys of `--metadata` it reads (`options`) and why it takes no examples (`no_examples`).
`check_options` compares a run with these before a model is loaded. `unlearn-eval eval`, studies and, by a patch, a
plain `lm_eval` call it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from unlearn_eval.data.registry import is_ours
from unlearn_eval.harness.names import TASKS_FOLDER
from unlearn_eval.utils.errors import UserError, unknown_name

Check = Callable[[object], str | None]  # None, or what was expected instead
LENGTHS = ("max_new_tokens", "max_tokens", "max_completion_tokens")  # lm-eval prefers a task's own max_gen_toks
PORTIONS = VALIDATION, REPORT = "validation", "report"  # settings are chosen by the first, and reported on the second
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")


# Kinds of values -------------------------------------------------------------------------------------------


def a_text(value: object) -> str | None:
    """A text that is not empty."""
    return None if isinstance(value, str) and value.strip() else "a text"


def a_flag(value: object) -> str | None:
    """True or false."""
    return None if isinstance(value, bool) else "true or false"


def a_count(value: object) -> str | None:
    """A whole number of at least 1."""
    return None if _is_whole(value) and value >= 1 else "a whole number above 0"  # type: ignore[operator]


def a_count_of_splits(value: object) -> str | None:
    """A whole number of at least 1, or one of at least 0 for each of some splits."""
    if isinstance(value, Mapping) and value and all(_is_whole(own) and own >= 0 for own in value.values()):
        return None
    return None if a_count(value) is None else "a whole number above 0, or {SPLIT: NUMBER}"


def a_seed(value: object) -> str | None:
    """A whole number."""
    return None if _is_whole(value) else "a whole number"


def a_portion(value: object) -> str | None:
    """One of the two portions of a task's documents."""
    return None if value in PORTIONS else " or ".join(PORTIONS)


def a_share(value: object) -> str | None:
    """A number between 0 and 1."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return None if number and 0 < value < 1 else "a number between 0 and 1"  # type: ignore[operator]


def names(value: object) -> str | None:
    """A name, or names: of facts, groups, sets, or parts of sets."""
    single = isinstance(value, str | Mapping) or isinstance(value, Sequence) and not isinstance(value, bytes)
    return None if single else "a name, or a list of names"


def names_or_count(value: object) -> str | None:
    """Names, or how many from the start."""
    return None if names(value) is None or a_count(value) is None else "a name, a list of names, or a number above 0"


def anything(value: object) -> str | None:
    """A value that the task checks by itself."""
    return None


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# What a task reads -----------------------------------------------------------------------------------------

PORTION: Mapping[str, Check] = {  # what `task.portion_of` reads
    "first": a_count_of_splits,
    "portion": a_portion,
    "validation_share": a_share,
}
ALWAYS: Mapping[str, Check] = {  # what `plan` and `chat_template` read for every task
    "edit": a_text,
    "chat": a_flag,
    "chat_template_args": anything,
    "thinking": a_text,
    "thinking_tokens": a_count,
    **PORTION,
}
ANSWERS: Mapping[str, Check] = {"compat": anything}
JUDGED: Mapping[str, Check] = {"encoder": anything, "fluency_model": anything}


def check_values(options: Mapping[str, Check], metadata: Mapping[str, Any]) -> None:
    """Refuse values of another kind than a task reads.

    Raises:
        UserError: naming the key, the value and what was expected.
    """
    for key, check in options.items():
        value = metadata.get(key)
        expected = None if value is None else check(value)
        if expected is not None:
            raise UserError(f"{key} in --metadata is {value!r}", f"give {expected}, or leave it out")


# A run -----------------------------------------------------------------------------------------------------


def check_options(
    tasks: Iterable[str],
    *,
    metadata: Mapping[str, Any] | None = None,
    num_fewshot: int | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    strict: bool = False,
) -> None:
    """Refuse options of a run that our tasks among these would record and not apply. No data is read.

    Args:
        tasks: names, without patterns.
        metadata: of the run, as the user gave them.
        num_fewshot, gen_kwargs: as for lm-eval.
        strict: whether keys of the metadata are refused that only other tasks of ours read. They are not recorded.

    Raises:
        UserError: naming the option and the task.
    """
    tasks = list(tasks)
    known = [task for task in tasks if _is_shipped(task)]
    if num_fewshot is not None and num_fewshot < 0:
        raise UserError(f"num_fewshot is {num_fewshot}", "give a whole number of at least 0")
    if not known:
        return
    for task in known if num_fewshot else ():
        refuse_examples(task, _no_examples(task))
    given = {key: value for key, value in (metadata or {}).items() if value not in (None, "", [], {})}
    _check_metadata(tasks, known, given, set() if strict else all_keys())
    if gen_kwargs:
        _check_generation(tasks, known, gen_kwargs)


def refuse_examples(task: str, reason: str | None) -> None:
    """Refuse examples in the prompts of a task that takes none, for a reason."""
    if reason is not None:
        raise UserError(f"{task} takes no examples (num_fewshot): {reason}", "leave out --num_fewshot")


def _check_metadata(
    tasks: Sequence[str], known: Sequence[str], metadata: Mapping[str, Any], elsewhere: Collection[str]
) -> None:
    read = {task: _options(task) for task in known}
    for task in known:
        check_values(read[task], metadata)
        for first, second in task_class(task)[0].exclusive:
            if first in metadata and second in metadata:
                raise UserError(f"'{first}' and '{second}' in --metadata exclude each other", f"leave out '{second}'")
    if len(known) < len(tasks):
        return  # another task may read the key
    used = {key for own in read.values() for key in own}
    for key in metadata:
        if key not in used and key not in elsewhere:
            error = unknown_name("key in --metadata", key, used)
            raise UserError(f"{error.message}: {' and '.join(tasks)} would not read it", error.hint)


def _check_generation(tasks: Sequence[str], known: Sequence[str], given: Mapping[str, Any]) -> None:
    own = {task: _content(task).get("generation_kwargs") for task in known}
    if len(known) == len(tasks) and not any(own.values()):
        raise UserError(f"{' and '.join(known)} generate nothing", "leave out --gen_kwargs")
    for name in LENGTHS:
        if name in given:
            raise UserError(f"{name} in --gen_kwargs is not read: our tasks set max_gen_toks", "give max_gen_toks=N")
    length = given.get("max_gen_toks")
    if length is not None and a_count(length):
        raise UserError(f"max_gen_toks is {length!r}", "give a whole number above 0")
    for task, settings in own.items():
        greedy = settings and {**settings, **given}.get("do_sample") is False
        idle = [name for name in SAMPLING if name in given and given[name] not in (0, 0.0, None)]
        if greedy and idle:
            raise UserError(f"{idle[0]} has no effect on {task}, which decodes greedily", "add do_sample=true")


# Our tasks, without their data -----------------------------------------------------------------------------


def _no_examples(task: str) -> str | None:
    kind, metadata = task_class(task)
    reason: str | None = kind.why_no_examples(metadata)
    return reason


def _options(task: str) -> Mapping[str, Check]:
    kind, metadata = task_class(task)
    read: Mapping[str, Check] = kind.options(metadata)
    return read


@cache
def all_keys() -> frozenset[str]:
    """The keys of metadata that any of our tasks reads."""
    names = (path.stem for path in Path(TASKS_FOLDER).glob("*/unlearn_*.yaml"))
    return frozenset(key for name in names for key in _options(name))


def read_by(task: str, options: Mapping[str, Check], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata without what only other tasks of ours read, so that no result of this one records it."""
    if not _is_shipped(task):
        return dict(metadata)
    return {key: value for key, value in metadata.items() if key in options or key not in all_keys()}


def task_class(task: str) -> tuple[Any, Mapping[str, Any]]:
    """The class of one of our tasks, and the metadata in its YAML file."""
    content = _content(task)
    module, _, name = str(content["class"]).rpartition(".")
    return getattr(importlib.import_module(module), name), content.get("metadata") or {}


def _is_shipped(task: str) -> bool:
    """Whether a task is ours and its file in our folder; a benchmark of the user's own has its file elsewhere."""
    return is_ours(task) and _file(task) is not None


@cache
def _file(task: str) -> Path | None:
    return next(Path(TASKS_FOLDER).glob(f"*/{task}.yaml"), None)


@cache
def _content(task: str) -> Mapping[str, Any]:
    path = _file(task)
    assert path is not None, task
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads `!function a.b` as the text `a.b`."""

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    content: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader)  # noqa: S506
    include = content.pop("include", None)
    return {**(_read(path.parent / include) if include else {}), **content}
