"""KnowGIC (Baser et al. 2025, arXiv 2506.01386): chains of questions by which an edited fact can still be deduced."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unlearn_eval.data.benchmark import Benchmark, ByIds
from unlearn_eval.data.documents import ALL, Document, Metadata, Splits, document, names_something, rewrite_of, slug
from unlearn_eval.data.items import ForgetItem
from unlearn_eval.data.sources import Source, load_source, place_of
from unlearn_eval.utils.errors import UserError, unknown_name

OBTAIN = "It is chains.json of github.com/manitbaser/KnowGIC (MIT)."
CHAINS = Source("knowgic", "chains", obtain=OBTAIN, size=1406)
ALIASES = Source("knowgic", "attributes_with_aliases")
PROMPTS, QUESTIONS = "prompts", "questions"  # how a step is asked: as the beginning of a sentence, or as a question
_LISTS = ("questions", "prompts", "subjects", "answers")


@dataclass(frozen=True)
class Case:
    """A chain that leads to the old answer of an edit, and questions on its surroundings.

    Attributes:
        key: of the chain.
        edit: of what is forgotten.
        steps, context: keys of questions (see `questions`).
    """

    key: str
    edit: str
    steps: tuple[str, ...]
    context: tuple[str, ...]


@dataclass(frozen=True)
class Cases:
    """All of the benchmark, or the part that some edits concern.

    Attributes:
        edits: key -> what is forgotten, as a document.
        cases: the chains.
        questions: key -> a question of chains or surroundings, each once.
    """

    edits: Mapping[str, Document]
    cases: tuple[Case, ...]
    questions: Mapping[str, Document]


def cases_of(metadata: Metadata) -> Cases:
    """The chains of the edits that `forget` names (keys, or `all`), with their questions.

    Raises:
        UserError: data that are not as published, or an unknown edit.
    """
    ask = str(metadata.get("ask") or PROMPTS)
    if ask not in (PROMPTS, QUESTIONS):
        raise unknown_name("ask", ask, (PROMPTS, QUESTIONS))
    aliases = _aliases()
    edits: dict[str, Document] = {}
    keys: dict[tuple[str, str], str] = {}
    questions: dict[str, Document] = {}
    cases = []
    for record in load_source(CHAINS, ("case_id", "requested_rewrite", "broader_context")):
        about = f"knowgic, case {record['case_id']}"
        edit = _edit(record, about, aliases)
        edits.setdefault(edit["id"], edit)
        parts = []
        for name in ("chain", "broader_context"):
            own = []
            for text, subject, answer in _steps(record, name, ask, about):
                key = keys.setdefault((text, answer), f"q{len(keys)}")
                if key not in questions:
                    shape = "sentence" if ask == PROMPTS else "question"
                    more = aliases.get(answer, ())
                    questions[key] = document(key, text, answer, aliases=more, subject=subject, shape=shape)
                own.append(key)
            parts.append(tuple(own))
        cases.append(Case(str(record["case_id"]), edit["id"], *parts))
    wanted = metadata.get("forget")
    if wanted in (None, ALL):
        return Cases(edits, tuple(cases), questions)
    named = [wanted] if isinstance(wanted, str) else [str(key) for key in wanted]
    for key in named:
        if key not in edits:
            raise unknown_name("edit of KnowGIC", key, edits)
    chosen = tuple(case for case in cases if case.edit in named)
    used = {key for case in chosen for key in (*case.steps, *case.context)}
    return Cases(
        {key: edits[key] for key in named}, chosen, {key: own for key, own in questions.items() if key in used}
    )


def _edit(record: Mapping[str, Any], about: str, aliases: Mapping[str, Sequence[str]]) -> Document:
    rewrite = record["requested_rewrite"]
    own = rewrite[0] if isinstance(rewrite, list) and rewrite else rewrite
    text, subject, true, new = rewrite_of(own, about, OBTAIN)
    key = slug(f"{subject} {own['prompt'].replace('{}', '')}")
    return document(
        key, text, true, aliases=aliases.get(true, ()), wrong_answers=[new], subject=subject, shape="sentence"
    )


def _steps(record: Mapping[str, Any], name: str, ask: str, about: str) -> Iterator[tuple[str, str, str]]:
    """Text, subject and answer of each question of a chain or of its surroundings."""
    own = record.get(name, record.get(f"{name}s"))
    own = own[0] if isinstance(own, list) and own else own  # its README writes a list of one
    lists = [own.get(key) for key in _LISTS] if isinstance(own, Mapping) else [None]
    if not all(isinstance(one, list) for one in lists) or len({len(one) for one in lists if one is not None}) != 1:
        raise UserError(
            f"{about}: its {name} is not as published", f"it has {', '.join(_LISTS)}, equally long. {OBTAIN}"
        )
    for question, prompt, subject, answer in zip(*lists, strict=True):  # type: ignore[arg-type]
        yield (str(prompt).replace("{}", str(subject)) if ask == PROMPTS else str(question)), str(subject), str(answer)


def _aliases() -> dict[str, list[str]]:
    """Answer -> other ways to write it; nothing without the authors' file of them."""
    place = place_of(ALIASES)
    if place is None:
        return {}
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
        return {name: [text for text in own["answer_alias"] if names_something(text)] for name, own in content.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{place} is not as published: {error!r}", OBTAIN) from error


def _splits(metadata: Metadata) -> Splits:
    """The questions of chains (`forget`) and of surroundings (`neighbors`), each once."""
    found = cases_of(metadata)
    used = {
        "forget": dict.fromkeys(key for case in found.cases for key in case.steps),
        "neighbors": dict.fromkeys(key for case in found.cases for key in case.context),
    }
    return {
        split: [{**found.questions[key], "id": f"{split}/{key}"} for key in keys]
        for split, keys in used.items()
        if keys
    }


def _items(which: str) -> tuple[ForgetItem, ...]:
    edits = cases_of({"forget": which or ALL}).edits
    return tuple(
        ForgetItem(
            f"knowgic/{key}",
            own["question"],
            own["answer"],
            tuple(own["aliases"]),
            own["subject"] if own["subject"] in own["question"] else None,
            perturbed_answers=tuple(own["wrong_answers"]),
            shape=own["shape"],
        )
        for key, own in edits.items()
    )


BENCHMARK = Benchmark(
    name="knowgic",
    title="KnowGIC",
    paper="arXiv 2506.01386",
    source="chains.json of github.com/manitbaser/KnowGIC",
    licence="MIT",
    readers={"knowgic": _splits},
    sets=("knowgic:EDIT", "knowgic:all"),
    items=_items,
    tasks={"unlearn_knowgic": ByIds("knowgic:", "knowgic/")},
)
