"""Which tasks there are: ours, a user's, and lm-eval's thousands, which are parsed only where they must be."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearn_eval.harness.names import TASKS_FOLDER
from unlearn_eval.harness.places import check_tasks_folder
from unlearn_eval.utils.errors import unknown_name

_NAMED = re.compile(r"^(?:task|group): *([\w-]+)", re.MULTILINE)


def task_manager(include_path: str | None = None, metadata: Mapping[str, Any] | None = None) -> Any:
    """lm-eval's task manager, which knows our tasks and those in the folder `include_path`.

    Raises:
        UserError: there is no such folder.
    """
    from lm_eval.tasks import TaskManager

    check_tasks_folder(include_path)
    paths = [TASKS_FOLDER, *([include_path] if include_path else [])]
    return TaskManager(include_path=paths, metadata=dict(metadata or {}))


def task_names(include_path: str | None = None) -> list[str]:
    """The names of our own tasks."""
    from lm_eval.tasks import TaskManager

    return sorted(TaskManager(include_path=include_path or TASKS_FOLDER, include_defaults=False).all_tasks)


@functools.cache
def own_names() -> frozenset[str]:
    """The names of our own tasks, read once."""
    return frozenset(task_names())


@functools.cache
def _everything(include_path: str | None, metadata: str) -> Any:
    return task_manager(include_path, json.loads(metadata))


def manager_for(names: Sequence[str], metadata: Mapping[str, Any], include_path: str | None) -> Any:
    """A task manager that knows these names; lm-eval's thousands of files are read only if one of them is there."""
    small = small_manager(names, metadata, include_path)
    for name in names if small is None else ():
        others = None if set("*?[") & set(name) or name in own_names() else others_if_nowhere(name, include_path)
        if others is not None:
            raise unknown_name("task", name, sorted(others))
    return small or _everything(include_path, json.dumps(dict(metadata), sort_keys=True))


@functools.cache
def others_if_nowhere(name: str, include_path: str | None) -> frozenset[str] | None:
    """The names that stand in the files of tasks if this one stands in none of them; None if it does.

    lm-eval parses all of them to see that, which takes ten seconds.
    """
    import lm_eval.tasks

    folders = [Path(lm_eval.tasks.__file__).parent, *([Path(include_path).expanduser()] if include_path else [])]
    known = set(own_names())
    # As the value of such a key, or in a list: many a word stands in the prose of prompts.
    key, end = r"""(?:^|\b(?:task|group|tag)["']?\s*:|^\s*-|[\[,])\s*["']?""", r"""["']?\s*(?:$|[\],#])"""
    named = re.compile(key + re.escape(name) + end, re.MULTILINE)
    for path in (path for folder in folders for path in folder.rglob("*")):
        if path.suffix in ("", ".yaml", ".yml", ".py") and path.is_file():  # many that are included have no ending
            text = path.read_text(encoding="utf-8", errors="replace")
            if name in text and named.search(text):
                return None
            known.update(_NAMED.findall(text))
    return frozenset(known)


def small_manager(names: Sequence[str], metadata: Mapping[str, Any], include_path: str | None) -> Any:
    """A task manager of our own tasks and of those in a folder, or None if they are not all the names."""
    from lm_eval.tasks import TaskManager

    check_tasks_folder(include_path)
    known = own_names() if include_path is None else own_names() | set(task_names(include_path))
    if not set(names) <= known:
        return None
    paths = [TASKS_FOLDER, *([include_path] if include_path else [])]
    return TaskManager(include_path=paths, include_defaults=False, metadata=dict(metadata))
