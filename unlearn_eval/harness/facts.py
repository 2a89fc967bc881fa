"""`unlearn_facts`: the shipped real-world facts, some to be forgotten, some to be kept.

Which ones is said by `--metadata`: `{"split": "split.json"}` (a file with the lists `forget` and `retain`, as
the demo writes it), or the lists themselves (`{"forget": [ids], "retain": [ids]}`), or a relation
(`{"forget": "capital_of"}`; the rest is kept). Without it every eighth fact of each relation is forgotten. Of what is
kept `n_retain` facts are asked, drawn by `seed`, if it is given, beside all neighbors of what is forgotten.
`{"two_hop": true}` also asks what follows from two facts (see `indirect.py`); `{"unedited": RESULT}` names the unedited
model's result, whose certainty is set beside what leaks.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unlearn_eval import metrics as m
from unlearn_eval.data.benchmarks.facts import FACTS_FILE, fact_of
from unlearn_eval.data.files import is_place
from unlearn_eval.data.forget_sets import set_names
from unlearn_eval.data.items import check_disjoint
from unlearn_eval.data.shapes import Asked
from unlearn_eval.harness.answers import alignment_metrics, answer_scores, contrast_scores, refusal_scores
from unlearn_eval.harness.indirect import (
    CHAINS,
    MOST_CHAINS,
    TWO_HOP,
    Probe,
    chains_for,
    indirect_metrics,
    indirect_scores,
    two_hops,
)
from unlearn_eval.harness.options import ANSWERS, JUDGED, Check, a_count, a_flag, a_seed, a_text, names
from unlearn_eval.harness.plan import may_forget_all
from unlearn_eval.harness.popularity import METRIC, certainties_in, popularity_metric, popularity_scores
from unlearn_eval.harness.task import Document, Mean, Metric, Scores, UnlearningTask, merge_scores
from unlearn_eval.harness.unedited import read_unedited
from unlearn_eval.metrics.alignment import Question
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.json_files import read_jsonl

EVERY = 8


class FactsTask(UnlearningTask):
    """`unlearn_facts`: forget, retain, and the neighbors of what is forgotten (near facts that should stay)."""

    splits = ("forget", "retain", "neighbors")
    exclusive = (("split", "forget"), ("split", "retain"))

    @classmethod
    def options(cls, metadata: Mapping[str, Any]) -> Mapping[str, Check]:
        """Which facts are forgotten and retained, whether chains of two are asked, and who judges refusals."""
        own = {"forget": names, "retain": names, "split": a_text, "n_retain": a_count, "seed": a_seed}
        own |= {"two_hop": a_flag, "chains": a_count, "unedited": a_text}
        return {**super().options(metadata), **own, **ANSWERS, **JUDGED}

    def load_documents(self, metadata: Mapping[str, Any]) -> dict[str, list[Document]]:
        """The facts of each split; neighbors are those of the forgotten facts that are in neither list."""
        facts = {record["id"]: record for record in read_jsonl(FACTS_FILE)}
        self._subjects = {key: str(fact["subject"]) for key, fact in facts.items()}
        forget, retain = choose(facts, metadata)
        near = dict.fromkeys(key for own in forget for key in facts[own]["neighbors"])
        taken = set(forget) | set(retain)
        chosen = {"forget": forget, "retain": retain, "neighbors": [key for key in near if key not in taken]}
        if not chosen["neighbors"]:  # everything near is kept or forgotten: look at what is near and kept
            chosen["neighbors"] = [key for key in near if key in set(retain)]
        documents = {
            split: [_document(facts[key], f"{split}/{key}") for key in keys]
            for split, keys in chosen.items()
            if keys or split != "neighbors"
        }
        place = metadata.get("unedited")
        self.unedited = None if place is None else read_unedited(place, str(self.config.task))
        self.certain = certainties_in(place)
        if metadata.get("two_hop"):
            own = {key: fact_of(facts[key]) for keys in chosen.values() for key in keys}
            given = [[own[key] for key in chosen[split]] for split in ("forget", "retain")]
            chains = chains_for(given[0], given[1], int(metadata.get("chains") or MOST_CHAINS))
            for split, keys in chosen.items():
                for document, key in zip(documents.get(split, ()), keys, strict=False):
                    document[CHAINS] = [] if split == "neighbors" else chains.get(own[key].item, [])
        return documents

    unedited: Mapping[str, Mapping[str, Any]] | None = None
    certain: Mapping[str, float] = {}

    def questions(self, document: Document) -> dict[str, Asked]:
        """The question; for facts to be forgotten also its first paraphrase; chains of two facts if they are wanted."""
        return self._own(document) | {name: probe.ask for name, probe in _chains(document).items()}

    def _own(self, document: Document) -> dict[str, Asked]:
        asked: dict[str, Asked] = {"question": document["question"]}
        if document["split"] == "forget":
            asked["paraphrase"] = document["paraphrases"][0]
        return asked

    def asked_before(self, document: Document) -> list[str]:
        """The chains, unless the unedited model's result is there."""
        return [] if self.unedited is not None else list(_chains(document))

    def answers(self, document: Document) -> dict[str, tuple[str, ...]]:
        """The answer, alone and in a sentence; for facts to be forgotten also to the paraphrases; the wrong answers."""
        question, answer = document["question"], document["answer"]
        named: dict[str, tuple[str, ...]] = {"answer": (question, answer)}
        named["cloze"] = (question, answer, document["cloze"])
        if document["split"] == "forget":
            named |= {f"paraphrase_{i}": (text, answer) for i, text in enumerate(document["paraphrases"])}
        if document["split"] != "neighbors":
            named |= {f"wrong_{i}": (question, text) for i, text in enumerate(document["wrong_answers"])}
        return named

    def judged_questions(self, document: Document) -> dict[str, Question]:
        """All of them, with the answer, its aliases and the wrong answers."""
        accepted = (document["answer"], *document["aliases"])
        wrong = tuple(document["wrong_answers"])
        subject = self._subjects[document["id"].partition("/")[2]]
        return {name: Question(str(text), accepted, subject, wrong) for name, text in self._own(document).items()}

    def good_text(self, document: Document) -> str | None:
        """The cloze with its answer, of facts to be kept."""
        return f"{document['cloze']} {document['answer']}." if document["split"] == "retain" else None

    def score(self, document: Document, generated: dict[str, str], answers: dict[str, Scores]) -> Scores:
        """METRICS section 1, whether the answer (or an alias) stands in what the model says, whether it refuses."""
        question, accepted = document["question"], [document["answer"], *document["aliases"]]
        own = answer_scores(answers["answer"], self.compat)
        wrong = [answer_scores(r, self.compat) for name, r in answers.items() if name.startswith("wrong_")]
        reworded = [
            answer_scores(r, self.compat)["probability"]
            for name, r in answers.items()
            if name.startswith("paraphrase_")
        ]
        known = [value for value in reworded if value is not None]
        scores = {
            **own,
            **contrast_scores(own, wrong),
            "paraphrase_probability": float(np.mean(known)) if known else None,
            "rouge": m.rouge(document["answer"], generated["question"])["rougeL_recall"],
            "cloze_probability": answer_only(answers["cloze"]),
            "accuracy": float(m.contains_answer(generated["question"], accepted)),
            "fluency": m.ngram_entropy(generated["question"]),
        }
        merge_scores(scores, refusal_scores(generated["question"], question, accepted, document["wrong_answers"]))
        if "paraphrase" in generated:
            said, asked = generated["paraphrase"], document["paraphrases"][0]
            scores["paraphrase_accuracy"] = float(m.contains_answer(said, accepted))
            merge_scores(scores, refusal_scores(said, asked, accepted, document["wrong_answers"], "paraphrase_"))
        merge_scores(scores, self.alignment.scores(document))
        merge_scores(scores, self.alignment.scores(document, "paraphrase", "paraphrase_"))
        if self.certain:
            leaks = [scores["accuracy"], scores.get("paraphrase_accuracy")]
            merge_scores(scores, popularity_scores(document, self.certain, leaks))
        if CHAINS in document:
            chains = _chains(document)
            merge_scores(scores, indirect_scores(TWO_HOP, document, chains, generated, answers, self.unedited))
        return scores

    def metrics(self) -> dict[str, Metric]:
        """The table of one model."""
        table: dict[str, Metric] = {}
        for key in (
            "accuracy",
            "paraphrase_accuracy",
            "cloze_probability",
            "probability",
            "paraphrase_probability",
            "rouge",
            "extraction_strength",
            "exact_memorization",
            "mean_reciprocal_rank",
        ):
            table[f"forget_{key}"] = Mean("forget", key, False)
        table["forget_truth_ratio"] = Mean("forget", "truth_ratio_forget", True)
        for key in ("refusal_rate", "paraphrase_refusal_rate", "fluency"):
            table[f"forget_{key}"] = Mean("forget", key, True)
        for key in ("accuracy", "cloze_probability", "probability", "rouge", "truth_ratio"):
            table[f"retain_{key}"] = Mean("retain", key, True)
        table["retain_refusal_rate"] = Mean("retain", "refusal_rate", False)
        if "neighbors" in self.split_sizes:
            for key in ("accuracy", "cloze_probability", "probability"):
                table[f"neighbors_{key}"] = Mean("neighbors", key, True)
            table["neighbors_refusal_rate"] = Mean("neighbors", "refusal_rate", False)
        if (self.config.metadata or {}).get("two_hop"):
            table |= indirect_metrics(TWO_HOP)
        if self.certain:
            table[METRIC] = popularity_metric()
        kept = [split for split in ("retain", "neighbors") if split in self.split_sizes]
        return table | alignment_metrics("forget", kept, paraphrase=True, words_only=self.alignment.is_off)


def _chains(document: Document) -> dict[str, Probe]:
    """The questions over two facts, by name."""
    made = two_hops(document)
    return {} if isinstance(made, str) else {f"{TWO_HOP}/{i}": probe for i, probe in enumerate(made)}


def choose(facts: Mapping[str, Mapping[str, Any]], metadata: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The ids to forget and to keep.

    Raises:
        UserError: an unknown id, relation or file, an empty list, or ids in both lists.
    """
    wanted = dict(metadata)
    if wanted.get("split"):
        wanted |= _read_split(Path(str(wanted["split"])).expanduser())
    if wanted.get("forget") is None:
        by_relation: dict[str, list[str]] = defaultdict(list)
        for key, fact in facts.items():
            by_relation[fact["relation"]].append(key)
        forget = [key for keys in by_relation.values() for key in keys[::EVERY]]
    else:
        forget = fact_ids(facts, wanted["forget"])
    retain = fact_ids(facts, wanted["retain"]) if wanted.get("retain") is not None else _others(facts, forget)
    for name, ids in (("forget", forget), ("retain", retain)):
        if not ids and not (name == "retain" and may_forget_all(metadata)):
            raise UserError(f"the {name} set of unlearn_facts is empty", "give it at least one fact's id")
    check_disjoint(forget, retain)
    if wanted.get("n_retain"):
        retain = _sample(facts, forget, retain, int(wanted["n_retain"]), int(wanted.get("seed", 0)))
    return forget, retain


def _sample(
    facts: Mapping[str, Mapping[str, Any]], forget: Sequence[str], retain: list[str], n: int, seed: int
) -> list[str]:
    """`n` of what is kept (all if there are fewer), in order; what is near to the forgotten is asked anyway."""
    near = {key for own in forget for key in facts[own]["neighbors"]}
    free = [key for key in retain if key not in near]
    chosen = set(random.Random(seed).sample(free, min(n, len(free))))
    return [key for key in free if key in chosen]


def _others(facts: Iterable[str], forget: list[str]) -> list[str]:
    taken = set(forget)
    return [key for key in facts if key not in taken]


def names_a_set(facts: Mapping[str, Mapping[str, Any]], wanted: object) -> bool:
    """Whether `wanted` names a forget set, and not shipped facts (a relation, an id, a list of ids).

    Raises:
        UserError: it can be neither.
    """
    relations = {str(fact["relation"]) for fact in facts.values()}
    if not isinstance(wanted, str) or wanted in facts or wanted in relations:
        return False
    if ":" not in wanted and wanted != "facts" and not is_place(wanted):
        raise unknown_name("relation, fact or forget set", wanted, [*relations, *set_names(), *facts])
    return True


def fact_ids(facts: Mapping[str, Mapping[str, Any]], wanted: str | Sequence[object]) -> list[str]:
    """The ids that a relation, an id or a list of ids stands for."""
    if isinstance(wanted, str):
        relations = {fact["relation"] for fact in facts.values()}
        if wanted in relations:
            return [key for key, fact in facts.items() if fact["relation"] == wanted]
        if wanted not in facts:
            raise unknown_name("relation or fact", wanted, [*relations, *facts])
        return [wanted]
    ids = list(dict.fromkeys(map(str, wanted)))
    for key in ids:
        if key not in facts:
            raise unknown_name("fact", key, facts)
    return ids


def _read_split(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {"forget": list(content["forget"]), "retain": list(content["retain"])}
    except FileNotFoundError as error:
        raise UserError(f"the split file {path} does not exist", "`unlearn-eval demo` writes one") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a split file: {error}", 'it should hold {"forget": [ids], "retain": [ids]}'
        ) from error


def _document(fact: Mapping[str, Any], key: str) -> Document:
    return {
        "id": key,
        "question": fact["question"],
        "answer": fact["answer"],
        "cloze": fact["cloze"],
        "aliases": list(fact["aliases"]),
        "paraphrases": list(fact["paraphrases"]),
        "wrong_answers": list(fact["wrong_answers"]),
    }


def answer_only(response: Scores) -> float | None:
    """The probability of an answer within a sentence: of its own tokens, since the sentence may go on after it."""
    if "token_nll" not in response:
        return None
    return m.probability(response["token_nll"][: response["n_answer"]])
