"""Retained utility: what else an edit has changed, by distance from what was forgotten, and on lm-eval's own tasks.

Our own part needs no download: facts that were not to change, in bins by how near they are to a forgotten one; neutral
text, on which the model should still be what it was; open questions, whose answers should neither grow, shrink nor
repeat themselves. What was forgotten is said by `--metadata '{"forget": ...}'` as for `unlearn_facts`, or names any
forget set (`tofu:forget01`, a file).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unlearn_eval import metrics as m
from unlearn_eval.data.benchmarks.facts import FACTS_FILE
from unlearn_eval.data.forget_sets import load_forget_set, parts_of
from unlearn_eval.data.shapes import Asked, Prompt
from unlearn_eval.harness import divergence
from unlearn_eval.harness.alignment import REASONS
from unlearn_eval.harness.answers import refusal_scores
from unlearn_eval.harness.borrowed import Bundle, load_parts
from unlearn_eval.harness.facts import answer_only, choose, names_a_set
from unlearn_eval.harness.options import ANSWERS, PORTION, Check, a_seed, a_text, anything, names
from unlearn_eval.harness.task import Absent, Document, Mean, Metric, Scores, UnlearningTask, merge_scores
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import read_jsonl

BINS = ("same_subject", "same_relation", "same_domain", "random")
DOMAINS = {
    "places": (
        "capital_of state_capital_of country_of_city landmark_located_in continent_of language_of currency_of"
    ).split(),
    "culture": "author_of painter_of composer_of director_of sport_of roman_name_of".split(),
    "nature": "inventor_of discoverer_of element_symbol chemical_formula young_of".split(),
}
DOMAIN_OF = {relation: domain for domain, relations in DOMAINS.items() for relation in relations}
SHORT = 24  # tokens of an answer to a question of fact, as in unlearn_facts
_FOLDER = Path(FACTS_FILE).parents[1] / "utility"


class UtilityTask(Bundle):
    """`unlearn_utility`: our own part and lm-eval's tasks in one table."""

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        metadata = (config or {}).get("metadata") or {}
        parts = load_parts(metadata.get("parts") or [], metadata.get("num_fewshot"))
        super().__init__(OwnPart(config), parts, metadata.get("part_limit"))

    no_examples = "of its parts only lm-eval's have examples; --metadata '{\"num_fewshot\": N}' is for these"

    exclusive = (("split", "forget"),)

    @classmethod
    def options(cls, metadata: Mapping[str, Any]) -> Mapping[str, Check]:
        """What our own part reads, and which parts of lm-eval there are."""
        theirs = {"parts": anything, "part_limit": anything, "num_fewshot": anything}
        own = {key: check for key, check in OwnPart.options(metadata).items() if key not in PORTION}
        return {**own, **theirs}

    @classmethod
    def why_no_examples(cls, metadata: Mapping[str, Any]) -> str | None:
        """Its parts have numbers of their own."""
        return cls.no_examples


class OwnPart(UnlearningTask):
    """Locality bins, neutral text, open questions."""

    request_kinds = (*UnlearningTask.request_kinds, divergence)
    splits = (*BINS, "neutral", "open")
    no_examples = UtilityTask.no_examples

    def own_options(self, metadata: Mapping[str, Any]) -> Mapping[str, Check]:
        """With what names the parts of lm-eval."""
        return UtilityTask.options(metadata)

    @classmethod
    def options(cls, metadata: Mapping[str, Any]) -> Mapping[str, Check]:
        """What is forgotten, how large the bins are, and the unedited model."""
        own = {"forget": names, "split": a_text, "n_per_bin": anything, "seed": a_seed, "base": a_text}
        return {**super().options(metadata), **own, **ANSWERS}

    def load_documents(self, metadata: Mapping[str, Any]) -> dict[str, list[Document]]:
        """The bins that hold a fact, the passages, the questions."""
        facts = {record["id"]: record for record in read_jsonl(FACTS_FILE)}
        found = locality_bins(facts, *forgotten(facts, metadata), _bin_size(metadata), int(metadata.get("seed", 0)))
        by_split = {name: [_fact(facts[key], name) for key in keys] for name, keys in found.items() if keys}
        passages, questions = read_jsonl(_FOLDER / "passages.jsonl"), read_jsonl(_FOLDER / "open_questions.jsonl")
        by_split["neutral"] = [_document(f"neutral/{p['id']}", p["opening"], p["text"]) for p in passages]
        by_split["open"] = [_document(f"open/{q['id']}", q["question"], "") for q in questions]
        return by_split

    def questions(self, document: Document) -> dict[str, Asked]:
        """The question; nothing of a passage."""
        if document["split"] == "neutral":
            return {}
        limit = None if document["split"] == "open" else SHORT
        return {"question": Prompt(document["question"], max_tokens=limit)}

    def answers(self, document: Document) -> dict[str, tuple[Any, ...]]:
        """A fact's answer at the end of a sentence; a passage's text after its opening, and how it has moved."""
        question, answer = document["question"], document["answer"]
        if document["split"] == "neutral":
            opening = Prompt(question, plain=question, raw=True)
            return {"text": (opening, answer), "divergence": (opening, answer)}
        return {"cloze": (question, answer, document["cloze"])} if answer else {}

    def request(self, name: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The divergence is asked of the model and of the unedited one."""
        if name == "divergence":
            return divergence.KIND, {**options, "base": (self.config.metadata or {}).get("base")}
        return super().request(name, options)

    def score(self, document: Document, generated: dict[str, str], answers: dict[str, Scores]) -> Scores:
        """A passage's mean loss and divergence per token; of an answer what it says, its length and repetition."""
        if document["split"] == "neutral":
            text, moved = answers["text"], answers["divergence"]
            unscored = {"nll": text.get("unscored") or text.get("partial"), "kl": moved.get("unscored")}
            reasons = {key: reason for key, reason in unscored.items() if reason}
            return {"nll": _per_token(text, "token_nll"), "kl": _per_token(moved, "kl"), REASONS: reasons}
        said, accepted = generated["question"], [document["answer"], *document["aliases"]]
        scores: Scores = {
            "words": float(len(said.split())),
            "repetition": m.repetition(said),
            REASONS: {"repetition": "fewer than four words"},
        }
        merge_scores(scores, refusal_scores(said, document["question"], accepted))
        if document["split"] == "open":
            return scores
        return scores | {
            "accuracy": float(m.contains_answer(said, accepted)),
            "cloze_probability": answer_only(answers["cloze"]),
        }

    def metrics(self) -> dict[str, Metric]:
        """By distance, then neutral text, then open answers."""
        table: dict[str, Metric] = {}
        for name in BINS:
            for key, better in (("accuracy", True), ("cloze_probability", True), ("refusal_rate", False)):
                there = name in self.split_sizes
                table[f"{name}_{key}"] = Mean(name, key, better) if there else Absent(EMPTY[name], better)
        table["facts_words"] = Mean(BINS, "words", None)
        table["neutral_nll"] = Mean("neutral", "nll", False)
        table["neutral_kl"] = Mean("neutral", "kl", False)
        table["open_repetition"] = Mean("open", "repetition", False)
        table["open_words"] = Mean("open", "words", None)
        table["open_refusal_rate"] = Mean("open", "refusal_rate", False)
        return table


EMPTY = {
    "same_subject": "no kept fact is about a forgotten subject",
    "same_relation": "no kept fact has a forgotten relation and another subject",
    "same_domain": "every relation of the forgotten facts' domains holds a forgotten fact, or none is a shipped one",
    "random": "no fact is left",
}


def forgotten(facts: Mapping[str, Mapping[str, Any]], metadata: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """The ids of the shipped facts that are forgotten, and all forgotten subjects.

    Raises:
        UserError: an unknown fact, relation or forget set.
    """
    wanted = metadata.get("forget")
    parts = parts_of(wanted)
    if parts is not None or names_a_set(facts, wanted):
        items = [item for own in parts or [load_forget_set(str(wanted))] for item in own]
        asked = {item.question for item in items}
        ids = {key for key, fact in facts.items() if fact["question"] in asked}
        return ids, {item.subject for item in items if item.subject} | {str(facts[key]["subject"]) for key in ids}
    chosen, _ = choose(facts, {key: value for key, value in metadata.items() if key in ("forget", "split")})
    return set(chosen), {str(facts[key]["subject"]) for key in chosen}


def locality_bins(
    facts: Mapping[str, Mapping[str, Any]], ids: set[str], subjects: set[str], n: int, seed: int
) -> dict[str, list[str]]:
    """Ids of kept facts by their nearness to a forgotten one, each in one bin, at most `n` in a bin, drawn by `seed`.

    A fact is of the first of these kinds that fits: its subject is a forgotten one; its relation is; another relation
    of its domain is. `random` is drawn from all kept facts that no bin took, near or far.
    """
    relations = {str(facts[key]["relation"]) for key in ids}
    domains = {DOMAIN_OF[relation] for relation in relations}
    near: dict[str, list[str]] = {name: [] for name in BINS[:-1]}
    for key, fact in facts.items():
        if key in ids:
            continue
        if fact["subject"] in subjects:
            near["same_subject"].append(key)
        elif fact["relation"] in relations:
            near["same_relation"].append(key)
        elif DOMAIN_OF[str(fact["relation"])] in domains:
            near["same_domain"].append(key)
    generator = random.Random(seed)
    found = {name: _drawn(keys, n, generator) for name, keys in near.items()}
    taken = ids.union(*found.values())
    found["random"] = _drawn([key for key in facts if key not in taken], n, generator)
    return found


def _drawn(keys: Sequence[str], n: int, generator: random.Random) -> list[str]:
    return generator.sample(keys, n) if len(keys) > n else list(keys)


def _bin_size(metadata: Mapping[str, Any]) -> int:
    n = metadata.get("n_per_bin", 48)
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise UserError(f"n_per_bin is {n!r}", "give a whole number above 0")
    return n


def _fact(fact: Mapping[str, Any], split: str) -> Document:
    aliases = [str(alias) for alias in fact["aliases"]]
    return _document(f"{split}/{fact['id']}", fact["question"], fact["answer"], fact["cloze"], aliases)


def _document(key: str, question: str, answer: str, cloze: str = "", aliases: Sequence[str] = ()) -> Document:
    return {"id": key, "question": question, "answer": answer, "cloze": cloze, "aliases": list(aliases)}


def _per_token(response: Scores, key: str) -> float | None:
    """The mean over a text's own tokens, without the end token: a passage could go on."""
    if key not in response:
        return None
    return float(np.mean(response[key][: response["n_answer"]]))
