"""`unlearn-eval ls`: what there is, what each is in one line, and where to start."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from unlearn_eval.utils.errors import unknown_name
from unlearn_eval.utils.json_files import dumps
from unlearn_eval.utils.terminal import columns, put

START = "start with this"


@dataclass(frozen=True)
class Entry:
    """One thing of a list.

    Attributes:
        name: as on the command line.
        does: what it is, in one line.
        start: whether a newcomer should start with it.
    """

    name: str
    does: str
    start: bool = False


def ls(
    what: Annotated[
        str, typer.Argument(help="tasks, editors, attacks, localizations, models, sets, or studies.")
    ] = "tasks",
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """List tasks, editors, attacks, models, sets, studies."""
    if what not in KINDS:
        raise unknown_name("list", what, KINDS)
    found = list(KINDS[what]())
    if json_:
        put(dumps([asdict(own) for own in found], indent=2))
        return
    width = max(len(own.name) for own in found) + 2
    room = columns()
    for own in found:
        text = f"({START}) {own.does}" if own.start else own.does
        put(_cut(f"{own.name:{width}}{text}".rstrip(), room))


def _cut(line: str, room: int | None) -> str:
    return line if room is None or len(line) <= room else f"{line[: room - 1]}…"


def _editors() -> Iterator[Entry]:
    from unlearn_eval.editing.presets import DEFAULT_EDITOR
    from unlearn_eval.utils.registry import names_in, summary_in

    for name in names_in("unlearn_eval.editors"):
        yield Entry(name, summary_in("unlearn_eval.editors", name), name == DEFAULT_EDITOR)


def _attacks() -> Iterator[Entry]:
    from unlearn_eval.attacks.base import attack_names, get_attack

    for name in attack_names():
        yield Entry(name, get_attack(name).does, get_attack(name).first)


def _localizations() -> Iterator[Entry]:
    from unlearn_eval.localization.base import METHODS, get_localizer, localizer_names
    from unlearn_eval.utils.registry import summary_in

    for name in localizer_names():
        yield Entry(name, summary_in(METHODS, name), get_localizer(name).first)


def _tasks() -> Iterator[Entry]:
    """Our tasks, each with the first sentence of its folder's README."""
    from unlearn_eval.data.registry import task_for
    from unlearn_eval.harness.names import TASKS_FOLDER

    first = task_for("facts")
    for path in sorted(Path(TASKS_FOLDER).glob("*/unlearn_*.yaml"), key=lambda own: own.stem):
        yield Entry(path.stem, _first_sentence(path.parent / "README.md"), path.stem == first)


def _first_sentence(readme: Path) -> str:
    """Of the first paragraph below the title, without markup."""
    text = readme.read_text(encoding="utf-8").partition("\n\n")[2].partition("\n\n")[0]
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)|[*`_]", lambda found: found[1] or "", " ".join(text.split()))
    return re.split(r"(?<=[a-z)\]]{2}[.?]) (?=[A-Z])", plain)[0]


def _models() -> Iterator[Entry]:
    from unlearn_eval.harness.names import MODELS
    from unlearn_eval.harness.run import model_class, model_names

    ours = ("a base model with an edit: pretrained=MODEL,edit=DIR", "the same in vLLM's engine")
    known = dict(zip(MODELS, ours, strict=True))
    for name in model_names():
        yield Entry(name, known.get(name) or f"lm-eval's {model_class(name)}".strip(), name == next(iter(MODELS)))


def _sets() -> Iterator[Entry]:
    from unlearn_eval.data.forget_sets import set_names
    from unlearn_eval.data.registry import PACKAGE
    from unlearn_eval.utils.registry import summary_in

    for name in set_names():
        yield Entry(name, summary_in(PACKAGE, name.partition(":")[0]), name == "facts")


def _studies() -> Iterator[Entry]:
    """The studies that are shipped, each with the first sentence of its file's comment."""
    from unlearn_eval.runs.study.read import STUDIES_FOLDER

    for path in sorted(STUDIES_FOLDER.glob("*.yaml")):
        lines = [line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
        text = " ".join(line for line in lines if "yaml-language-server" not in line)
        yield Entry(path.stem, re.split(r"(?<=[.?]) (?=[A-Z`])", text)[0], path.stem == "smoke")


KINDS: dict[str, Callable[[], Iterator[Entry]]] = {
    "tasks": _tasks,
    "editors": _editors,
    "attacks": _attacks,
    "localizations": _localizations,
    "models": _models,
    "sets": _sets,
    "studies": _studies,
}
