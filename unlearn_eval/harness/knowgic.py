"""`unlearn_knowgic`: can the old fact still be deduced, question by question, and what of its surroundings is left?

Every question of the chains and of their surroundings is asked once, of the edited and the unedited model; chains are
put together from what comes of that. P(q) is the share of `samples` answers in which the answer or an alias stands
(`{"p": "probability"}`: the probability of the answer's own tokens).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from unlearn_eval import metrics as m
from unlearn_eval.data.benchmarks.knowgic import Cases, cases_of
from unlearn_eval.data.registry import benchmark_documents
from unlearn_eval.data.shapes import Asked, asked
from unlearn_eval.harness.alignment import REASONS
from unlearn_eval.harness.choices import log_probability
from unlearn_eval.harness.options import Check, a_count, a_text, names
from unlearn_eval.harness.task import BEFORE, Document, Metric, OverAll, Scores, UnlearningTask
from unlearn_eval.harness.unedited import NOT_STORED, SAME, UNKNOWN, read_unedited
from unlearn_eval.metrics.deducibility import Pair, chain_recovery, preservation, reliability
from unlearn_eval.results.files import scores_of
from unlearn_eval.utils.errors import unknown_name

SAMPLED, PROBABILITY = "sampled", "probability"
SAMPLES = 20  # the probabilities in the authors' example are multiples of a twentieth
LENGTHS = range(1, 6)
NOTHING = "the unedited model goes through none of the chains"
NO_CONTEXT = "the unedited model answers none of the questions on the surroundings"
SetMetric = tuple[float | None, float | None, str | None]


class KnowgicTask(UnlearningTask):
    """IFR and preservation of the edits that `forget` names, or of all."""

    splits = ("forget", "neighbors")
    no_examples = "its steps are asked as they stand, and none may be shown the answers of others"
    unedited: Mapping[str, Mapping[str, Any]] | None = None
    cases: Cases

    @classmethod
    def options(cls, metadata: Mapping[str, Any]) -> Mapping[str, Check]:
        """Which edits, how steps are asked, what P is, and the unedited model's result."""
        own = {"forget": names, "ask": a_text, "p": a_text, "samples": a_count, "unedited": a_text}
        return {**super().options(metadata), **own}

    def load_documents(self, metadata: Mapping[str, Any]) -> dict[str, list[Document]]:
        """The questions of the chains and of their surroundings, each once."""
        self.p, self.n_samples = str(metadata.get("p") or SAMPLED), int(metadata.get("samples") or SAMPLES)
        if self.p not in (SAMPLED, PROBABILITY):
            raise unknown_name("p", self.p, (SAMPLED, PROBABILITY))
        if place := metadata.get("unedited"):
            self.unedited = read_unedited(place, str(self.config.task))
        self.cases = cases_of(metadata)
        return benchmark_documents("knowgic", metadata)

    def questions(self, document: Document) -> dict[str, Asked]:
        """The same question, once for each sample."""
        ask = asked(document["question"], document["shape"])
        return {f"sample_{i}": ask for i in range(self.n_samples if self.p == SAMPLED else 0)}

    def answers(self, document: Document) -> dict[str, tuple[Any, ...]]:
        """The answer, where its probability is P."""
        ask = asked(document["question"], document["shape"])
        return {} if self.p == SAMPLED else {"answer": (ask, document["answer"])}

    def asked_before(self, document: Document) -> list[str]:
        """All of it, unless the unedited model's result is there."""
        return [] if self.unedited is not None else [*self.questions(document), *self.answers(document)]

    def score(self, document: Document, generated: dict[str, str], answers: dict[str, Scores]) -> Scores:
        """P after the edit and before it."""
        accepted = [document["answer"], *document["aliases"]]
        if self.p == SAMPLED:
            after: float | None = float(np.mean([m.contains_answer(text, accepted) for text in generated.values()]))
        else:
            after = _probability(answers["answer"])
        before, reason = self._before(document, accepted, after, answers)
        reasons = {} if before is not None else {"before": reason or UNKNOWN}
        return {"after": after, "before": before, REASONS: reasons}

    def _before(
        self, document: Document, accepted: Sequence[str], after: float | None, answers: Mapping[str, Scores]
    ) -> tuple[float | None, str | None]:
        """P of the unedited model, or why it is not known."""
        if self.unedited is not None:
            own = scores_of(self.unedited.get(document["id"], {})).get(METRIC_OF[document["split"]])
            return (None, NOT_STORED) if own is None else (own["after"], None)
        responses = [own for name, own in answers.items() if name.startswith(BEFORE)]
        if all(own.get(SAME) for own in responses):
            return after, None
        if reason := next((own["unscored"] for own in responses if "unscored" in own), None):
            return None, str(reason)
        if self.p == SAMPLED:
            return float(np.mean([m.contains_answer(str(own["text"]), accepted) for own in responses])), None
        return _probability(responses[0]), None

    def metrics(self) -> dict[str, Metric]:
        """IFR of all chains and of those of each length, preservation, and what they are of."""
        lengths = [n for n in LENGTHS if any(len(case.steps) == n for case in self.cases.cases)]
        keys = ("after", "before")
        table: dict[str, Metric] = {}
        for n in (None, *lengths):
            name = METRIC_OF["forget"] + ("" if n is None else f"_{n}")
            table[name] = OverAll(("forget",), keys, partial(recovered, cases=self.cases, length=n), False)
        table[METRIC_OF["neighbors"]] = OverAll(("neighbors",), keys, preserved, True)
        table["forget_chains_known_before"] = OverAll(("forget",), keys, partial(known, cases=self.cases), None)
        return table


METRIC_OF = {"forget": "forget_chain_recovery", "neighbors": "neighbors_preservation"}


def recovered(items: list[Scores], cases: Cases, length: int | None = None) -> SetMetric:
    """KnowGIC's IFR of the chains, or of those of one length, with a bootstrap standard error over chains."""
    chains = _chains(items, cases, length)
    value = chain_recovery(chains)
    counted = [chain for chain in chains if reliability([before for before, _ in chain]) > 0]
    numbers = np.arange(len(counted))
    stderr = m.bootstrap(lambda drawn: chain_recovery([counted[i] for i in drawn]), numbers).stderr if counted else None
    return value, stderr, None if value is not None else _reason(items, NOTHING)


def preserved(items: list[Scores]) -> SetMetric:
    """KnowGIC's preservation, with its standard error over questions."""
    pairs = _pairs(items).values()
    stderr = m.mean_and_stderr([after / before for before, after in pairs if before > 0]).stderr
    value = preservation(list(pairs))
    return value, stderr, None if value is not None else _reason(items, NO_CONTEXT)


def known(items: list[Scores], cases: Cases) -> SetMetric:
    """How many chains the unedited model goes through."""
    chains = _chains(items, cases, None)
    if not chains:
        return None, None, _reason(items, NOTHING)
    return float(sum(reliability([before for before, _ in chain]) > 0 for chain in chains)), None, None


def _pairs(items: Sequence[Scores]) -> dict[str, Pair]:
    """Key of a question -> P before and after."""
    known = [item for item in items if item["before"] is not None and item["after"] is not None]
    return {str(item["id"]).rpartition("/")[2]: (float(item["before"]), float(item["after"])) for item in known}


def _chains(items: Sequence[Scores], cases: Cases, length: int | None) -> list[list[Pair]]:
    """P before and after of the questions of each chain all of whose questions were asked."""
    pairs = _pairs(items)
    return [
        [pairs[key] for key in case.steps]
        for case in cases.cases
        if length in (None, len(case.steps)) and all(key in pairs for key in case.steps)
    ]


def _reason(items: Sequence[Scores], otherwise: str) -> str:
    return next((str(item["unscored"]) for item in items if "unscored" in item), otherwise)


def _probability(response: Scores) -> float | None:
    """The probability of an answer's own tokens, as their product."""
    found = log_probability(response) if response.get("n_answer") else None
    return None if found is None else float(np.exp(found))
