"""Which facts the tasks on any forget set ask: those to forget, those to keep, and what they lend each other.

A fact without wrong answers, examples or a description gets them from the others: they never give its answer away.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from unlearn_eval import metrics as m
from unlearn_eval.data.benchmarks.facts import FACTS_FILE, fact_of
from unlearn_eval.data.chains import Fact
from unlearn_eval.data.documents import check_aliases
from unlearn_eval.data.files import extras_in
from unlearn_eval.data.forget_sets import load_forget_set, parts_of
from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.data.shapes import QUESTION, as_turn
from unlearn_eval.data.translations import translated
from unlearn_eval.harness.facts import choose, fact_ids, names_a_set
from unlearn_eval.harness.indirect import CHAINS, LINKED, chains_for
from unlearn_eval.harness.options import Check, a_count, a_seed, a_text, names
from unlearn_eval.harness.plan import may_forget_all
from unlearn_eval.harness.popularity import POPULARITY
from unlearn_eval.harness.task import Document, UnlearningTask
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import read_jsonl

N_EXAMPLES = 3
N_WRONG = 3
MOST_OTHERS = 500  # facts that are looked at for a wrong answer or an example, so that a large set stays linear
BLANK = "___"
TRANSLATED = "translated"  # a field of documents
SIBLING = 'what is missing at ___ in the sentence "{sentence}"'


class FactsInForms(UnlearningTask):
    """What the tasks on any forget set share: the facts to forget, and those to keep as a control."""

    splits = ("forget", "retain")
    exclusive = (("split", "forget"), ("split", "retain"))

    @classmethod
    def options(cls, metadata: Mapping[str, Any]) -> Mapping[str, Check]:
        """Which items are forgotten and retained."""
        own = {"forget": names, "retain": names, "split": a_text, "n_retain": a_count, "seed": a_seed}
        return {**super().options(metadata), **own}

    def load_documents(self, metadata: Mapping[str, Any]) -> dict[str, list[Document]]:
        """Both sets, with examples and wrong answers taken from the facts themselves where they bring none."""
        forget, retain = forget_and_retain(metadata)
        facts = {"forget": forget, "retain": retain}
        documents = {split: _documents(split, own, retain) for split, own in facts.items()}
        for name, values in self.beside(forget, retain).items():
            for split, own in facts.items():
                for document, fact in zip(documents[split], own, strict=True):
                    document[name] = values.get(fact.item, [])
        if any(fact.item.shape != QUESTION for fact in (*forget, *retain)):  # the data's hash of questions stays
            for split, own in facts.items():
                for document, fact in zip(documents[split], own, strict=True):
                    document["shape"] = fact.item.shape
        return documents

    most_chains = 0  # at each place of a chain; 0 makes none
    translates = False  # whether facts are asked in other languages

    def beside(self, forget: Sequence[Fact], retain: Sequence[Fact]) -> dict[str, dict[ForgetItem, Any]]:
        """What is asked beside the facts, where there is any: field of a document -> its value for each fact."""
        items = [fact.item for fact in (*forget, *retain)]
        linked = {item: [{**asdict(one), "answers": list(one.answers)} for one in item.linked] for item in items}
        found: dict[str, dict[ForgetItem, Any]] = {}
        if any(linked.values()):
            found[LINKED] = linked
        if any(item.popularity is not None for item in items):
            found[POPULARITY] = {item: item.popularity for item in items}
        if self.most_chains and (chains := chains_for(forget, retain, self.most_chains)):
            found[CHAINS] = chains
        if self.translates:
            facts = [fact for fact in (*forget, *retain) if fact.item.subject]
            own = {f.item: translated(f.relation, str(f.item.subject), f.item.accepted) for f in facts}
            found |= {TRANSLATED: own} if any(own.values()) else {}
        return found


def shape_of(document: Document) -> str:
    """How a document's question is put to a model; documents of sets that hold questions only do not say so."""
    return str(document.get("shape") or QUESTION)


def forget_and_retain(metadata: Mapping[str, Any]) -> tuple[list[Fact], list[Fact]]:
    """What is forgotten and what is kept as a control.

    Without `retain`, as many shipped facts as are forgotten (or `n_retain`), chosen by `seed`.

    Raises:
        UserError: an unknown set, relation or id, a fact in both, or an alias that says nothing.
    """
    records = {record["id"]: record for record in read_jsonl(FACTS_FILE)}
    forget, retain = metadata.get("forget"), metadata.get("retain")
    if metadata.get("split"):
        forget, retain = choose(records, metadata)
    facts = _facts(records, choose(records, {})[0] if forget is None else forget)
    if retain is None:
        about = {fact.item.subject for fact in facts} | {fact.item.question for fact in facts}  # no control then
        free = [key for key, own in records.items() if not about & {own["subject"], own["question"]}]
        n = int(metadata.get("n_retain") or len(facts))
        chosen = set(random.Random(int(metadata.get("seed", 0))).sample(free, min(n, len(free))))
        retain = [key for key in free if key in chosen]
    kept = _facts(records, retain)
    if metadata.get("n_retain"):
        kept = kept[: int(metadata["n_retain"])]
    for name, own in (("forget", facts), ("retain", kept)):
        if not own and not (name == "retain" and may_forget_all(metadata)):
            raise UserError(f"the {name} set is empty", "give it at least one item")
    asked = {fact.item.question for fact in facts}
    if twice := [fact.item.question for fact in kept if fact.item.question in asked]:
        raise UserError(f"{twice[0]!r} is both in forget and in retain", "take it out of one of the two")
    for fact in (*facts, *kept):
        check_aliases(fact.item.id, fact.item.aliases)
    return facts, kept


def _facts(records: Mapping[str, Mapping[str, Any]], wanted: Any) -> list[Fact]:
    """The shipped facts of a relation or of some ids, or the items of a forget set or of parts of some."""
    parts = parts_of(wanted)
    if parts is not None:
        return [fact for items in parts for fact in _from_set(items, records)]
    if names_a_set(records, wanted):
        return _from_set(load_forget_set(wanted), records)
    return [fact_of(records[key]) for key in fact_ids(records, wanted)]


def _from_set(items: ForgetSet, records: Mapping[str, Mapping[str, Any]]) -> list[Fact]:
    if items.name == "facts":
        return [fact_of(records[item.id]) for item in items]
    extras = extras_in(items.name)
    return [Fact(item, **extras.get(item.id, {})) for item in items]  # type: ignore[arg-type]


def _documents(split: str, facts: Sequence[Fact], others: Sequence[Fact]) -> list[Document]:
    by_subject: dict[str, list[Fact]] = {}
    answers: dict[tuple[str, str], int] = {}
    for fact in (*facts, *(other for other in others if split != "retain")):
        if fact.item.subject:
            by_subject.setdefault(fact.item.subject, []).append(fact)
        key = (_pattern(fact), m.normalise(fact.item.answer))
        answers[key] = answers.get(key, 0) + 1
    examples = random.Random(0).sample(list(others), len(others))
    items = [fact.item for fact in facts]
    chosen = [fact.item for fact in examples]
    documents = []
    for position, fact in enumerate(facts):
        item = fact.item
        siblings = [own for own in by_subject.get(item.subject or "", ()) if own.item.id != item.id]
        documents.append(
            {
                "id": f"{split}/{item.id}",
                "question": item.question,
                "answer": item.answer,
                "aliases": list(item.aliases),
                "subject": item.subject or "",
                "cloze": fact.cloze,
                "paraphrases": list(item.paraphrases[:3]),
                "wrong_answers": _wrong(items, position),
                "description": fact.description or _description(siblings, answers),
                "examples": _examples(item, chosen),
            }
        )
    return documents


def _pattern(fact: Fact) -> str:
    return fact.cloze.replace(fact.item.subject or "\0", BLANK)


def _description(siblings: Sequence[Fact], answers: Mapping[tuple[str, str], int]) -> str:
    """What a sibling, another fact on the same subject, says of it, if no other subject has the same answer there."""
    for own in siblings:
        alone = answers[_pattern(own), m.normalise(own.item.answer)] == 1
        if own.cloze and own.item.subject and own.item.subject in own.cloze and alone:
            return SIBLING.format(sentence=f"{_pattern(own)} {own.item.answer}.")
    return ""


def _clash(first: ForgetItem, second: ForgetItem) -> bool:
    return any(m.contains_answer(a, b) or m.contains_answer(b, a) for a in first.accepted for b in second.accepted)


def _wrong(items: Sequence[ForgetItem], position: int) -> list[str]:
    """Three wrong answers for one item: its own, or those of other items, the next ones first."""
    item = items[position]
    wrong = [text for text in item.perturbed_answers if not m.contains_answer(text, item.accepted)]
    for step in range(1, min(len(items), MOST_OTHERS)):
        if len(wrong) >= N_WRONG:
            break
        other = items[(position + step) % len(items)]
        taken = any(m.contains_answer(other.answer, text) or m.contains_answer(text, other.answer) for text in wrong)
        if not taken and not _clash(item, other):
            wrong.append(other.answer)
    return wrong[:N_WRONG]


def _examples(item: ForgetItem, others: Sequence[ForgetItem]) -> list[str]:
    """Questions and answers of three facts to be kept that say nothing of this one, by turns."""
    chosen: list[ForgetItem] = []
    for other in others[:MOST_OTHERS]:
        if len(chosen) == N_EXAMPLES:
            break
        near = other.id == item.id or other.subject is not None and other.subject == item.subject
        if not near and not _clash(item, other):
            chosen.append(other)
    return [text for other in chosen for text in as_turn(other.question, other.shape, other.answer)]
