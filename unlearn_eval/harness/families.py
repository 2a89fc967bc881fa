"""The forget benchmarks as lm-eval tasks: one class, and a table that says what is reported of which split.

`FAMILIES` is what there is to read: for each benchmark its splits, the scores of each (`SCORES` says what a score
needs, and whether it means knowledge), and what is computed over several splits. Which questions are asked and
which answers are scored follows from that. A task's YAML names its row: `metadata: {family: pistol}`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from unlearn_eval import metrics as m
from unlearn_eval.data.documents import CONSEQUENCES
from unlearn_eval.data.registry import benchmark_documents
from unlearn_eval.data.shapes import Asked, asked
from unlearn_eval.harness.alignment import REASONS
from unlearn_eval.harness.answers import answer_scores, contrast_scores, free_running_scores, refusal_scores
from unlearn_eval.harness.consequences import (
    Rate,
    asked_beside,
    conditions,
    consequence_metrics,
    consequence_scores,
)
from unlearn_eval.harness.indirect import BROUGHT, LINKED, Probe, indirect_metrics, indirect_scores, probes_of
from unlearn_eval.harness.options import ANSWERS, Check, a_count, a_flag, a_text, anything, names, names_or_count
from unlearn_eval.harness.reference import find_reference
from unlearn_eval.harness.requests import OPEN_UNLEARNING
from unlearn_eval.harness.task import Document, Mean, Metric, OverAll, Released, Scores, UnlearningTask, merge_scores
from unlearn_eval.harness.tofu import FURTHER, attacks_of, auc, further_scores, membership_scores, privleak_of
from unlearn_eval.harness.unedited import read_unedited
from unlearn_eval.utils.errors import unknown_name

SetMetric = tuple[float | None, float | None, str | None]
ECHO = "the answer stands in the question, so that repeating the question would count"
NO_PARAPHRASE = "this question has no paraphrase"
NO_WRONG = "this question has no wrong answers"
NOT_EDITED = "the edit's new answer is not told"
PARAPHRASE = "paraphrase_"
TAUGHT = "taught"  # a split: what an edit may teach in place, which is no fault of one that only forgets

TEXTS = ("forget_texts", "holdout_texts")
MEMBERS = ("forget_texts", "retain_texts")


# Scores ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """One number of one document.

    Attributes:
        needs: `generated`, `answer` (its tokens' probabilities), `wrong` (those of wrong answers too), `free`, `lower`
            (those of the answer in lower case too).
        knows: whether a higher value means that the model knows more (None: neither end is good).
    """

    needs: str
    knows: bool | None = True


SCORES: dict[str, Score] = {
    "accuracy": Score("generated"),
    "exact_match": Score("generated"),
    "rouge1": Score("generated"),
    "rouge": Score("generated"),
    "rouge_f1": Score("generated"),
    "edit_success": Score("generated", knows=None),
    "refusal_rate": Score("generated", knows=False),
    "fluency": Score("generated", knows=None),
    "probability": Score("answer"),
    "extraction_strength": Score("answer"),
    "exact_memorization": Score("answer"),
    "mean_reciprocal_rank": Score("answer"),
    "top_hit_ratio": Score("answer"),
    "mia_loss": Score("answer", knows=None),
    "mia_zlib": Score("answer", knows=None),
    "mia_lower": Score("lower", knows=None),
    "min_k": Score("answer", knows=None),
    "mia_min_k_plus_plus": Score("answer", knows=None),
    "truth_ratio": Score("wrong"),
    "preference": Score("wrong"),
    "normalised_probability": Score("wrong"),
    "legacy_probability": Score("free", knows=None),
    "legacy_mean_reciprocal_rank": Score("free"),
    "legacy_top_hit_ratio": Score("free"),
}


def is_forget(split: str) -> bool:
    """Whether a split's documents are to be forgotten."""
    return split.startswith("forget")


def direction(split: str, key: str) -> bool | None:
    """Whether a higher value of a score is better on this split."""
    key = key.removeprefix(PARAPHRASE)
    if split == TAUGHT:
        return None
    if key == "fluency":
        return True
    if key == "truth_ratio" and is_forget(split):
        return True  # min(TR, 1/TR): 1 where the model cannot tell right from wrong
    knows = SCORES[key].knows
    return None if knows is None else knows != is_forget(split)


def generated_scores(document: Document, question: str, said: str, rouge_options: Mapping[str, Any]) -> Scores:
    """What one generation is worth; the options are those of `metrics.rouge`."""
    accepted = [document["answer"], *document["aliases"]]
    rouge = m.rouge(document["answer"], said, **rouge_options)
    echoes = m.contains_answer(question, accepted)
    new = document.get("wrong_answers", ())[:1]
    scores = {
        "edit_success": float(m.contains_answer(said, new)) if new else None,
        "accuracy": None if echoes else float(m.contains_answer(said, accepted)),
        "exact_match": float(any(m.normalise(said) == m.normalise(text) for text in accepted)),
        "rouge1": rouge["rouge1_recall"],
        "rouge": rouge["rougeL_recall"],
        "rouge_f1": rouge["rougeL_f1"],
        "fluency": m.ngram_entropy(said),
        REASONS: ({"accuracy": ECHO} if echoes else {}) | ({} if new else {"edit_success": NO_WRONG}),
    }
    merge_scores(scores, refusal_scores(said, question, accepted, document.get("wrong_answers", ())))
    return scores


def own_tokens(response: Scores) -> Scores:
    """A response without its end token: within a sentence it may go on after the answer."""
    n = response.get("n_answer")
    lists = ("token_nll", "reference_token_nll", "hits", "ranks")
    return {key: value[:n] if key in lists else value for key, value in response.items()}


def scored(document: Document, response: Scores, wrong: list[Scores], compat: str | None = None) -> Scores:
    """What the probabilities of the answer, and of wrong ones, are worth."""
    if document["shape"] in ("sentence", "bare"):
        response, wrong = own_tokens(response), [own_tokens(own) for own in wrong]
    own = answer_scores(response, compat)
    others = [answer_scores(one) for one in wrong]
    contrast = contrast_scores(own, others)
    preference = None
    if contrast["log_truth_ratio"] is not None:
        preference = float(all(own["mean_nll"] < other["mean_nll"] for other in others))
    membership = membership_scores(response) if document["shape"] == "bare" else {}
    return {
        **own,
        **free_running_scores(response),
        **membership,
        "min_k": membership.get("mia_min_k"),
        "truth_ratio": contrast["truth_ratio_forget" if is_forget(document["split"]) else "truth_ratio"],
        "preference": preference,
        "normalised_probability": contrast["normalised"],
        **(
            {} if wrong else {REASONS: dict.fromkeys(("truth_ratio", "preference", "normalised_probability"), NO_WRONG)}
        ),
    }


# The table -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overall:
    """A metric over several splits.

    Attributes:
        function: takes the items that `OverAll` gives, and the run's metadata as `metadata`.
        keys: the scores that it needs.
        splits: names or beginnings of names of the splits that count.
        higher_is_better: its direction.
    """

    function: Callable[..., SetMetric]
    keys: tuple[str, ...]
    splits: tuple[str, ...]
    higher_is_better: bool | None


@dataclass(frozen=True)
class Family:
    """What a benchmark reports.

    Attributes:
        columns: name of a split -> its scores, in the order of the table. Where several splits begin with the
            name and `_`, each has these scores, and all of them together have them under the name.
        overall: metrics over several splits.
        n_paraphrases: at most so many of each question's paraphrases are asked.
        options: keys of a run's metadata that its reader and its metrics read, each with a check of the value.
        no_examples: why examples in its prompts would make no sense, if so.
        linked: split -> the forms in which its documents' `linked` questions are asked, where a file has them.
        rates: name of a metric -> the tests of `consequences` that it is over.
        rouge: options of `metrics.rouge`, which make it the benchmark's own.
        released: name that `compat` takes beside "openunlearning" -> what that code does in its own way.
    """

    columns: Mapping[str, tuple[str, ...]]
    overall: Mapping[str, Overall] = field(default_factory=dict)
    n_paraphrases: int = 1
    options: Mapping[str, Check] = field(default_factory=dict)
    no_examples: str | None = None
    linked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rates: Mapping[str, Rate] = field(default_factory=dict)
    rouge: Mapping[str, Any] = field(default_factory=dict)
    released: Mapping[str, Released] = field(default_factory=dict)

    def covers(self, column: str, split: str) -> bool:
        """Whether a split's documents have the scores of a column."""
        return split == column or split.startswith(f"{column}_") and split not in self.columns


def combined(items: list[Scores], metadata: Mapping[str, Any], key: str) -> SetMetric:
    """1 - ROUGE-1 on forget + ROUGE-1 on retain (arXiv 2505.19855)."""
    groups = [[i[key] for i in items if is_forget(i["split"]) == forget] for forget in (True, False)]
    (forget, forget_stderr, _), (retain, retain_stderr, _) = (m.mean_and_stderr(group) for group in groups)
    value = m.combined_score(forget, retain)
    if value is None:
        return None, None, "it needs scored questions of both sets"
    known = forget_stderr is not None and retain_stderr is not None
    return value, float(np.hypot(forget_stderr, retain_stderr)) if known else None, None  # type: ignore[arg-type]


def worst_group(items: list[Scores], metadata: Mapping[str, Any], key: str) -> SetMetric:
    """The largest mean of a group: the edge or person that is forgotten least."""
    groups: dict[str, list[float]] = {}
    for item in items:
        if item[key] is not None:
            groups.setdefault(item["group"], []).append(item[key])
    return largest_mean(groups, "no question could be scored")


def largest_mean(groups: Mapping[str, Sequence[float]], nothing: str) -> SetMetric:
    """The largest mean of some groups with its standard error; without any group `nothing` is the reason."""
    if not groups:
        return None, None, nothing
    mean, stderr, _ = max((m.mean_and_stderr([*own]) for own in groups.values()), key=lambda found: found.mean or 0.0)
    return mean, stderr, None


def lume_aggregate(items: list[Scores], metadata: Mapping[str, Any]) -> SetMetric:
    """LUME's task aggregate: the harmonic mean of twelve scores, those of forget inverted.

    ROUGE-L recall of completions, exact match of questions; three tasks, forget and retain.
    """
    means: dict[str, list[float]] = {}
    for item in items:
        key = "rouge" if item["split"].endswith("completion") else "exact_match"
        if item[key] is not None:
            means.setdefault(item["split"], []).append(item[key])
    if len(means) < 12:
        return None, None, f"it needs all twelve parts; {len(means)} are there"
    parts = [1 - np.mean(own) if is_forget(split) else np.mean(own) for split, own in means.items()]
    return m.harmonic_mean([float(part) for part in parts]), None, None


def lower_score(own: Scores, lower: Scores) -> float | None:
    """MUSE's attack by case: a text's mean loss, in relation to that in lower case (Carlini et al. 2021)."""
    losses = [m.loss_score(one["token_nll"]) if one.get("token_nll") else None for one in (own, lower)]
    return None if losses[0] is None or not losses[1] else losses[0] / losses[1]


def text_auc(items: list[Scores], metadata: Mapping[str, Any], key: str, splits: tuple[str, str]) -> SetMetric:
    """AUC of a membership score: the texts of the first split against those of the second."""
    return auc(items, key, splits)


def text_attack(key: str, splits: tuple[str, str] = TEXTS) -> Overall:
    """The metric of that; in MUSE's texts the second are those that no model has seen."""
    return Overall(partial(text_auc, key=key, splits=splits), (key,), splits, None)


def muse_privleak(items: list[Scores], metadata: Mapping[str, Any]) -> SetMetric:
    """The AUC's relative distance from that of the retain-only model, in percent."""
    return privleak_of(items, find_reference(metadata), "min_k", TEXTS)


RANKS = ("mean_reciprocal_rank", "top_hit_ratio")
PAPER = ("rouge1", "probability", *RANKS)
LEGACY = ("legacy_probability", "legacy_mean_reciprocal_rank", "legacy_top_hit_ratio")
SAID = ("accuracy", "rouge", "refusal_rate")
ANSWERED = ("rouge", "accuracy", "refusal_rate", "probability", "extraction_strength")
PROBES = ("rouge", "accuracy", "refusal_rate")
TOLD = ("preference", "probability", "normalised_probability", "exact_memorization")


def reworded(keys: tuple[str, ...]) -> tuple[str, ...]:
    """The same scores of the paraphrases."""
    return tuple(PARAPHRASE + key for key in keys)


_FACTUAL = (*PAPER, "accuracy", "refusal_rate", *reworded((*PAPER, "accuracy")), *LEGACY)
_MUSE_STOPS = ("\n\n", "\nQuestion", "Question:")
_MUSE = Family(
    {
        "forget_knowledge": ("rouge_f1", "rouge", "accuracy", "refusal_rate"),
        "forget_verbatim": ("rouge_f1", "rouge", "extraction_strength", "exact_memorization"),
        "retain_knowledge": ("rouge_f1", "rouge", "accuracy", "refusal_rate"),
    },
    {
        "mia_min_k_auc": text_attack("min_k"),
        **{f"{key}_auc": text_attack(key) for key in ("mia_min_k_plus_plus", "mia_loss", "mia_zlib", "mia_lower")},
        "privleak": Overall(muse_privleak, ("min_k",), TEXTS, None),
    },
    rouge={"stem": False},
    released={
        "muse": Released({"short": _MUSE_STOPS}, {"stem": False, "compat": OPEN_UNLEARNING}),
        OPEN_UNLEARNING: Released({"short": _MUSE_STOPS}, {"compat": OPEN_UNLEARNING}),
    },
    options={"retain_reference": a_text, "gradnorm": anything, "reference_model": a_text},
    no_examples="its questions bring the benchmark's own examples, and its texts are read alone",
)
_LUME_PARTS = tuple(f"{role}_{task}" for role in ("forget", "retain") for task in ("creative", "personal", "biography"))

CHOSEN: Mapping[str, Check] = {"forget": names_or_count, "retain": names_or_count, "n_retain": a_count}
BESIDE: Mapping[str, Check] = {"unedited": a_text}
# RippleEdits' criteria: what follows from the new answer, and what is to stay as it is.
_FOLLOWING = ("logical_generalization", "compositionality_i", "compositionality_ii", "subject_aliasing")
_STAYING = ("relation_specificity", "forgetfulness")
_PORTABILITY = {
    "forget": ("alias", "portability_reasoning", "portability_logical", "locality"),
    "retain": ("alias",),  # the control: who gave the answer by another name still does
}

FAMILIES: dict[str, Family] = {
    "factual": Family(
        {"forget": _FACTUAL, "retain": _FACTUAL},
        {
            "combined": Overall(partial(combined, key="rouge1"), ("rouge1",), ("forget", "retain"), True),
            "paraphrase_combined": Overall(
                partial(combined, key="paraphrase_rouge1"), ("paraphrase_rouge1",), ("forget", "retain"), True
            ),
        },
        options=CHOSEN,
    ),
    "pistol": Family(
        {split: (*PAPER, "accuracy", "refusal_rate", *LEGACY) for split in ("forget", "retain")},
        {
            "forget_worst_edge_rouge1": Overall(
                partial(worst_group, key="rouge1"), ("rouge1", "group"), ("forget",), False
            ),
            "combined": Overall(partial(combined, key="rouge1"), ("rouge1",), ("forget", "retain"), True),
        },
        options={**CHOSEN, "file": a_text},
    ),
    "lume": Family(
        {part: ("rouge", "exact_match", "accuracy", "refusal_rate") for part in _LUME_PARTS},
        {"task_aggregate": Overall(lume_aggregate, ("rouge", "exact_match"), _LUME_PARTS, True)},
        options={"task": a_text, "ids": names},
    ),
    "knowundo": Family({"forget": ANSWERED, "retain": ANSWERED}, options={"ids": names}),
    "rwku": Family(
        {
            "forget_blank": PROBES,
            "forget_question": PROBES,
            "forget_attack": PROBES,
            "neighbors_blank": PROBES,
            "neighbors_question": PROBES,
            **dict.fromkeys(MEMBERS, ("mia_loss", "mia_zlib")),
        },
        {f"{key}_auc": text_attack(key, MEMBERS) for key in ("mia_loss", "mia_zlib")},
        options={"forget": names, "ids": names},
        no_examples="its attacks are whole prompts, and what it retains are neighbors of the people to be forgotten",
        rouge={"compat": "rwku"},
    ),
    "muse_news": _MUSE,
    "muse_books": _MUSE,
    "counterfact": Family(
        {
            "forget": (*TOLD, *reworded(("preference", "probability")), "accuracy"),
            "forget_generation": ("accuracy", "refusal_rate", "fluency"),
            "neighbors": ("preference", "probability", "normalised_probability"),
            "retain": (*TOLD, *reworded(("preference", "probability")), "accuracy"),
        },
        n_paraphrases=2,
        options={**CHOSEN, **BESIDE},
        linked=_PORTABILITY,
    ),
    "zsre": Family(
        {
            "forget": (*SAID, "probability", "exact_memorization", *reworded((*SAID, "exact_memorization"))),
            "neighbors": (*SAID, "probability", "exact_memorization"),
            "retain": (*SAID, "probability", "exact_memorization", *reworded((*SAID, "exact_memorization"))),
        },
        options={**CHOSEN, **BESIDE},
        linked=_PORTABILITY,
    ),
    "mquake": Family(
        {
            "forget": ("accuracy", "edit_success", "refusal_rate"),
            "forget_cases": (),
            "retain": ("accuracy", "refusal_rate"),
            "retain_cases": (),
        },
        options={**CHOSEN, **BESIDE, "file": a_text},
        rates={
            "forget_multi_hop_success": Rate("forget_cases", "multi_hop", None),
            "forget_single_hops_success": Rate("forget_cases", "single_hops", None),
            "forget_leak_multi_hop": Rate("forget_cases", "old_multi_hop", False),
            "retain_known_multi_hop": Rate("retain_cases", "old_multi_hop", True),
        },
    ),
    "ripple": Family(
        {"forget": ("accuracy", "edit_success", "refusal_rate"), "retain": ("accuracy", "refusal_rate")},
        options={**CHOSEN, **BESIDE, "file": a_text, "successful": a_flag},
        rates={
            "forget_leak_alias": Rate("forget", "old_alias", False),
            **{f"forget_{kind}": Rate("forget", kind, None) for kind in _FOLLOWING},
            **{f"forget_{kind}": Rate("forget", kind, True) for kind in _STAYING},
        },
    ),
    "concepts": Family(
        {
            "forget": ("probability", "refusal_rate"),
            TAUGHT: ("exact_memorization", *reworded(("exact_memorization",))),
            "neighbors": ("probability", "exact_memorization"),
            "retain": ("probability", "refusal_rate"),
        },
        options={**CHOSEN, **BESIDE, "file": a_text},
        rates={
            f"{split}_{'leak' if split == 'forget' else 'known'}_{kind}": Rate(split, kind, split != "forget")
            for kind in ("instance", "category", "definition")
            for split in ("forget", "neighbors", "retain")
        },
    ),
    "sports": Family(
        {
            split: (
                "preference",
                "normalised_probability",
                "probability",
                "accuracy",
                *reworded(("preference", "accuracy")),
            )
            for split in ("forget", "retain")
        },
        options=CHOSEN,
    ),
}


class BenchmarkTask(UnlearningTask):
    """Every benchmark of `FAMILIES`; the YAML's metadata names the row."""

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        name = str(((config or {}).get("metadata") or {}).get("family"))
        if name not in FAMILIES:
            raise unknown_name("family", name, FAMILIES)
        self.benchmark_name, self.family = name, FAMILIES[name]
        self.keys_of: dict[str, tuple[str, ...]] = {}
        self.brought: set[tuple[str, str]] = set()  # splits and forms of which the file has questions
        self.unedited: Mapping[str, Mapping[str, Any]] | None = None
        self.released = {**type(self).released, **self.family.released}
        self.needs_moments = any("mia_min_k_plus_plus" in own.keys for own in self.family.overall.values())
        super().__init__(config)

    exclusive = (("retain", "n_retain"),)

    @classmethod
    def options(cls, metadata: Mapping[str, Any]) -> Mapping[str, Check]:
        """What the family reads."""
        return {**super().options(metadata), "family": a_text, **FAMILIES[metadata["family"]].options, **ANSWERS}

    @classmethod
    def why_no_examples(cls, metadata: Mapping[str, Any]) -> str | None:
        """What the family says of it."""
        return FAMILIES[metadata["family"]].no_examples

    def load_documents(self, metadata: Mapping[str, Any]) -> dict[str, list[Document]]:
        """The benchmark's documents; at most `n_paraphrases` paraphrases of each."""
        splits = benchmark_documents(self.benchmark_name, metadata)
        for documents in splits.values():
            for own in documents:
                own["paraphrases"] = own["paraphrases"][: self.family.n_paraphrases]
        for split in splits:
            keys = [key for name, own in self.family.columns.items() if self.family.covers(name, split) for key in own]
            keys += [
                key
                for metric in self.family.overall.values()
                if _among(split, metric.splits)
                for key in metric.keys
                if key != "group"
            ]
            self.keys_of[split] = tuple(dict.fromkeys(keys))
            forms = self.family.linked.get(split, ())
            self.brought |= {(split, form) for form in forms if any(_probes(own, (form,)) for own in splits[split])}
        everything = [own for documents in splits.values() for own in documents]
        for name in (LINKED, CONSEQUENCES):
            if any(name in own for own in everything):  # one table has the same columns for all
                for own in everything:
                    own.setdefault(name, [])
        if place := metadata.get("unedited"):
            self.unedited = read_unedited(place, str(self.config.task))
        return splits

    def needs_free_running(self, name: str) -> bool:
        """The authors' forms are reported of the question, not of its paraphrases."""
        legacy = any(key.startswith("legacy_") for own in self.family.columns.values() for key in own)
        return legacy and name == "answer"

    def attacked_with(self, document: Document, name: str) -> dict[str, Any]:
        """The attacks on texts that the run's metadata ask for (see `tofu.attacks_of`)."""
        texts = document["shape"] == "bare" and name == "answer"
        return attacks_of(self.config.metadata or {}) if texts else {}

    def _needs(self, document: Document, paraphrased: bool) -> set[str]:
        """What must be asked of a document's question, or of its paraphrases."""
        keys = self.keys_of[document["split"]]
        own = [key.removeprefix(PARAPHRASE) for key in keys if key.startswith(PARAPHRASE) == paraphrased]
        return {SCORES[key].needs for key in own}

    def _views(self, document: Document) -> dict[str, tuple[str, Asked, set[str]]]:
        """Name -> (text, how it is asked, what is needed): the question, and each paraphrase."""
        texts = {"": document["question"]}
        texts |= {f"{PARAPHRASE}{i}/": text for i, text in enumerate(document["paraphrases"])}
        return {
            name: (text, asked(text, document["shape"], document["turns"]), self._needs(document, bool(name)))
            for name, text in texts.items()
        }

    def questions(self, document: Document) -> dict[str, Asked]:
        """What is answered freely, where a score of the split needs it, and what the file asks beside."""
        views = self._views(document).items()
        own = {f"{name}generated": ask for name, (_, ask, needs) in views if "generated" in needs}
        return own | {name: probe.ask for name, probe in self._beside(document).items()} | asked_beside(document)

    def _beside(self, document: Document) -> dict[str, Probe]:
        return _probes(document, self.family.linked.get(document["split"], ()))

    def asked_before(self, document: Document) -> list[str]:
        """What the file asks beside, unless the unedited model's result is there."""
        return [] if self.unedited is not None else [*self._beside(document), *conditions(document)]

    def answers(self, document: Document) -> dict[str, tuple[Any, ...]]:
        """The answer, and the wrong ones where a score of the split needs them."""
        named: dict[str, tuple[Any, ...]] = {}
        for name, (_, ask, needs) in self._views(document).items():
            if needs & {"answer", "wrong", "free", "lower"}:
                named[f"{name}answer"] = (ask, document["answer"])
            if "lower" in needs:
                named[f"{name}lower"] = (ask, document["answer"].lower())
            if "wrong" in needs:
                named |= {f"{name}wrong_{i}": (ask, text) for i, text in enumerate(document["wrong_answers"])}
        return named

    def score(self, document: Document, generated: dict[str, str], answers: dict[str, Scores]) -> Scores:
        """The scores of the question, and the means of those of its paraphrases."""
        views: list[Scores] = []
        rouge = self.released[self.compat].rouge if self.compat else self.family.rouge
        for name, (text, _, _) in self._views(document).items():
            own: Scores = {REASONS: {}}
            if f"{name}generated" in generated:
                merge_scores(own, generated_scores(document, text, generated[f"{name}generated"], rouge))
            if f"{name}answer" in answers:
                wrong = [answers[key] for key in answers if key.startswith(f"{name}wrong_")]
                merge_scores(own, scored(document, answers[f"{name}answer"], wrong, self._scoring_compat))
            if (wanted := self.attacked_with(document, f"{name}answer")) and f"{name}answer" in answers:
                merge_scores(own, further_scores(own_tokens(answers[f"{name}answer"]), wanted))
            if f"{name}lower" in answers:
                own["mia_lower"] = lower_score(*(own_tokens(answers[f"{name}{key}"]) for key in ("answer", "lower")))
            views.append(own)
        first, *others = views
        first["group"] = document["group"]
        for key in self.keys_of[document["split"]]:
            if key.startswith(PARAPHRASE):
                plain = key.removeprefix(PARAPHRASE)
                first[key] = m.mean_and_stderr([own.get(plain) for own in others]).mean
                reasons = [own[REASONS][plain] for own in others if plain in own[REASONS]]
                if reasons or not others:
                    first[REASONS][key] = reasons[0] if reasons else NO_PARAPHRASE
        for form in self.family.linked.get(document["split"], ()):
            probes = _probes(document, (form,))
            merge_scores(first, indirect_scores(form, document, probes, generated, answers, self.unedited))
        kinds = [rate.kind for rate in self.family.rates.values() if rate.split == document["split"]]
        tests = consequence_scores(kinds, document, generated, answers, self.unedited)
        if (self.config.metadata or {}).get("successful") and not self._is_edited(document, generated):
            tests = {**dict.fromkeys(tests), REASONS: dict.fromkeys(tests, NOT_EDITED)}
        merge_scores(first, tests)
        return first

    def _is_edited(self, document: Document, generated: Mapping[str, str]) -> bool:
        """Whether the answer that an edit was to teach is told to the question itself."""
        taught = document["wrong_answers"][:1] or [document["answer"]]
        return m.contains_answer(generated.get("generated", ""), taught)

    def metrics(self) -> dict[str, Metric]:
        """The columns that the table names, of the splits that are there."""
        table: dict[str, Metric] = {}
        for name, keys in self.family.columns.items():
            parts = [split for split in self.split_sizes if self.family.covers(name, split)]
            for key in keys if parts else ():
                table[f"{name}_{key}"] = Mean(tuple(parts), key, direction(name, key))
            for split in parts if parts != [name] else ():
                table |= {f"{split}_{key}": Mean(split, key, direction(split, key)) for key in keys}
        for split, forms in self.family.linked.items():
            for form in forms if split in self.split_sizes else ():
                beside = indirect_metrics(form, (split,))
                first = next(iter(beside))  # of what the file does not have, one line says so
                table |= beside if (split, form) in self.brought else {first: beside[first]}
        rates = {name: own for name, own in self.family.rates.items() if own.split in self.split_sizes}
        table |= consequence_metrics(rates)
        further = [
            FURTHER[key] for key in attacks_of(self.config.metadata or {}) if set(TEXTS) <= set(self.split_sizes)
        ]
        asked = {f"{key}_auc": text_attack(key) for key in further}
        for name, own in {**self.family.overall, **asked}.items():
            splits = tuple(split for split in self.split_sizes if _among(split, own.splits))
            function = partial(own.function, metadata=self.config.metadata or {})
            table[name] = OverAll(splits, own.keys, function, own.higher_is_better)
        return table


def _probes(document: Document, forms: Sequence[str]) -> dict[str, Probe]:
    """`form/i` -> the i-th question that a document brings for a form."""
    return probes_of(document, {form: BROUGHT[form] for form in forms})


def _among(split: str, names: tuple[str, ...]) -> bool:
    return any(split == name or split.startswith(f"{name}_") for name in names)
