"""What is asked beside a fact and follows from it: over two hops, by another name, by what it implies.

Whoever cannot do this before an edit leaks nothing after it. A leak is therefore counted only where the unedited model
gives the answer (see `unedited.py`), and the number of such questions stands beside it; the same questions on retained
facts are the control.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from unlearn_eval import metrics as m
from unlearn_eval.data.benchmarks.facts import FACTS_FILE, fact_of
from unlearn_eval.data.chains import FIRST, SECOND, Chain, Fact, by_item, chains_of
from unlearn_eval.data.items import OF_ANSWER, OF_NEW, OF_OTHER, ForgetItem
from unlearn_eval.data.shapes import Asked, asked
from unlearn_eval.harness.alignment import REASONS
from unlearn_eval.harness.task import BEFORE, Document, Mean, Metric, OverAll, Scores
from unlearn_eval.harness.unedited import NOT_STORED, SAME, UNKNOWN
from unlearn_eval.results.files import scores_of
from unlearn_eval.utils.json_files import read_jsonl

CHAINS, LINKED = "chains", "linked"  # fields of documents that some sets give
MOST_CHAINS = 2  # at each place of a chain
TWO_HOP = "two_hop"
PLACES = {TWO_HOP: (FIRST, SECOND)}
CARRIED = ("alias", "reasoning", "logical")
# What benchmarks of editing ask beside: what follows from a new answer, and what is to stay as it is.
PORTABILITY, LOCALITY = "portability", "locality"
INDIRECT = (TWO_HOP, *CARRIED, PORTABILITY, LOCALITY)
WORDS = {"forget": "leak", "retain": "known"}
NO_CHAIN = "no chain of two facts goes through the item"
NO_LINKED = "the item brings no such question"
NOT_BEFORE = "the unedited model does not give the answer either"
ECHO = "the answer stands in the question, so that repeating the question would count"


@dataclass(frozen=True)
class Probe:
    """One way of asking, answered freely.

    Attributes:
        ask: what the model is asked.
        read: all that it reads: what stands there is not leaked by saying it again.
        accepted: what gives the fact away.
        wrong: wrong answers; None are those of the document.
        key: what it is called by in results; empty if its form has one wording.
        place: of the fact in a chain.
        after: what the model is asked after its own answer to `ask`.
    """

    ask: Asked
    read: str
    accepted: tuple[str, ...]
    wrong: tuple[str, ...] | None = None
    key: str = ""
    place: str = ""
    after: str = ""


def chains_for(forget: Sequence[Fact], retain: Sequence[Fact], most: int) -> dict[ForgetItem, list[dict[str, Any]]]:
    """The chains of each fact as records, at most so many at each place; those of retained facts forget nothing.

    Facts are joined with all that are forgotten or retained, and shipped ones with all that are shipped.
    """
    facts = {fact.item: fact for fact in (*forget, *retain)}
    shipped = {fact.item: fact for fact in map(fact_of, read_jsonl(FACTS_FILE))}
    chains = chains_of(list((shipped | facts if facts.keys() & shipped.keys() else facts).values()))
    forgotten = {fact.item for fact in forget}
    kept = [chain for chain in chains if not forgotten & {chain.first, chain.second}]
    found = {item: own for item, own in by_item(chains, most).items() if item in forgotten}
    found |= {item: own for item, own in by_item(kept, most).items() if item in facts}
    return {item: [_chain_record(*one) for one in own] for item, own in found.items()}


def _chain_record(place: str, chain: Chain) -> dict[str, Any]:
    return {
        "key": chain.key,
        "place": place,
        "question": chain.question,
        "shape": chain.shape,
        "answers": list(chain.second.accepted),
        "wrong_answers": list(chain.second.perturbed_answers),
        "steps": list(chain.steps),
    }


def two_hops(document: Document) -> list[Probe] | str:
    """The chains that go through a document's fact, or why there are none."""
    return [
        Probe(
            asked(own["question"], own["shape"]),
            own["question"],
            tuple(own["answers"]),
            tuple(own["wrong_answers"]),
            own["key"],
            own["place"],
        )
        for own in document.get(CHAINS) or ()
    ] or NO_CHAIN


def form_of(own: Mapping[str, Any]) -> str:
    """The form in which a question that an item brings is asked."""
    if own["of"] == OF_ANSWER:
        return str(own["kind"]) if own["kind"] in CARRIED else "reasoning"
    return {OF_NEW: PORTABILITY, OF_OTHER: LOCALITY}[str(own["of"])]


def linked(document: Document, form: str, kind: str | None = None) -> list[Probe] | str:
    """The questions that a document brings for a form, all or those of a kind, or why there are none."""
    accepted = (document["answer"], *document["aliases"])
    return [
        Probe(
            asked(own["question"], own["shape"]),
            own["question"],
            tuple(own["answers"]) or accepted,
            () if own["answers"] else None,
            own["question"],
        )
        for own in document.get(LINKED) or ()
        if form_of(own) == form and kind in (None, own["kind"])
    ] or NO_LINKED


_Forms = dict[str, Callable[[Document], list[Probe] | str]]
FORMS: _Forms = {
    TWO_HOP: two_hops,
    **{form: partial(linked, form=form) for form in INDIRECT[1:]},
}
# What follows from a new answer, by its kind, as tables of one benchmark have it.
BY_KIND: _Forms = {f"{PORTABILITY}_{kind}": partial(linked, form=PORTABILITY, kind=kind) for kind in CARRIED[1:]}
BROUGHT = {**FORMS, **BY_KIND}


def probes_of(document: Document, forms: _Forms) -> dict[str, Probe]:
    """`form/i` -> the i-th question that a form makes of a document, of the forms that it allows."""
    return {
        f"{form}/{i}": probe
        for form, make in forms.items()
        if not isinstance(made := make(document), str)
        for i, probe in enumerate(made)
    }


def gives(probe: Probe, text: str, wrong: Sequence[str]) -> float | None:
    """Whether a text gives a probe's answer; None where the question says it already."""
    if m.contains_answer(probe.read, probe.accepted):
        return None
    return float(m.leaks_answer(text, probe.read, probe.accepted, wrong=wrong if probe.wrong is None else probe.wrong))


def indirect_scores(
    form: str,
    document: Document,
    probes: Mapping[str, Probe],
    generated: Mapping[str, str],
    responses: Mapping[str, Scores],
    unedited: Mapping[str, Mapping[str, Any]] | None = None,
) -> Scores:
    """The scores of one document in one form.

    Args:
        form: its name.
        document: it.
        probes: by name.
        generated: what the model says to each.
        responses: those of the unedited model, with `BEFORE` before the names.
        unedited: by id of a document, what the unedited model's result has instead (see `read_unedited`).
    """
    stored = None if unedited is None else _stored_answers(unedited.get(document["id"], {}), form)
    rows: list[dict[str, Any]] = []
    reasons: list[str] = []
    wrong = document["wrong_answers"]
    for name, probe in probes.items():
        now = gives(probe, generated[name], wrong)
        if now is None:
            reasons.append(ECHO)
            continue
        then, reason = _before(probe, now, responses.get(BEFORE + name), stored, wrong)
        reasons += [reason] if reason else []
        rows.append({"key": probe.key, "place": probe.place, "now": now, "before": then})
    nothing = NO_CHAIN if form == TWO_HOP else NO_LINKED
    why = reasons[0] if reasons else NOT_BEFORE if rows else nothing
    scores: Scores = {
        f"{form}_accuracy": _mean([row["now"] for row in rows]),
        f"{form}_before_accuracy": _mean([row["before"] for row in rows]),
        f"asked_{form}": rows or None,
        f"leak_{form}": _mean([row["now"] for row in rows if row["before"]]),
    }
    found = {key: why for key, value in scores.items() if value is None}
    for place in PLACES.get(form, ()):
        own = [row for row in rows if row["place"] == place]
        scores[key := f"leak_{form}_{place}"] = _mean([row["now"] for row in own if row["before"]])
        if scores[key] is None:
            found[key] = why if own else nothing
    return {**scores, REASONS: found}


def _before(
    probe: Probe, now: float, response: Scores | None, stored: Mapping[str, Any] | None, wrong: Sequence[str]
) -> tuple[float | None, str | None]:
    """Whether the unedited model gives a probe's answer, or why that is not known."""
    if stored is not None:
        found = stored.get(probe.key)
        return found, None if found is not None else NOT_STORED
    assert response is not None
    if response.get(SAME):
        return now, None
    if "text" not in response:
        return None, str(response["unscored"])
    return gives(probe, response["text"], wrong), None


def indirect_metrics(form: str, splits: Sequence[str] = ("forget", "retain")) -> dict[str, Metric]:
    """The rows of a form: leaks of what the unedited model could do, how much that is, and what is said in all."""
    table: dict[str, Metric] = {}
    for split in splits:
        name, word, better = split, WORDS[split], split == "retain"
        if form == LOCALITY:
            name, word, better = {"forget": "neighbors"}.get(split, split), "known", True
        better_end = None if form.startswith(PORTABILITY) else better
        if form in BY_KIND:  # an answer that was not right before the edit: what is told in all comes first
            table[f"{name}_{form}_accuracy"] = Mean(split, f"{form}_accuracy", better_end)
        for own in (form, *(f"{form}_{place}" for place in PLACES.get(form, ()))) if form not in BY_KIND else ():
            table[f"{name}_{word}_{own}"] = Mean(split, f"leak_{own}", better_end)
        table[f"{name}_{form}_known_before"] = OverAll((split,), (f"asked_{form}",), partial(_n_known, form), None)
        table[f"{name}_{form}_accuracy"] = Mean(split, f"{form}_accuracy", better_end)
        table[f"{name}_{form}_before_accuracy"] = Mean(split, f"{form}_before_accuracy", None)
    return table


def _stored_answers(record: Mapping[str, Any], form: str) -> dict[str, Any]:
    """Key of a probe -> whether its answer was given, from what a result stores of a document."""
    own = scores_of(record)
    for split in (*WORDS, "neighbors"):
        item = own.get(f"{split}_{form}_known_before")
        if isinstance(item, Mapping):
            return {str(row["key"]): row["now"] for row in item.get(f"asked_{form}") or ()}
    return {}


def _n_known(form: str, items: list[Scores]) -> tuple[float | None, float | None, str | None]:
    """How many of the questions of a form the unedited model answers."""
    rows = [row for item in items for row in item[f"asked_{form}"] or ()]
    if not rows:
        return None, None, NO_CHAIN if form == TWO_HOP else NO_LINKED
    if any(row["before"] is None for row in rows):
        return None, None, UNKNOWN
    return float(sum(bool(row["before"]) for row in rows)), None, None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
