"""Leaks of models that think: in the trace and in the answer, under three decodings.

A model that has unlearned a fact may still spell it out in its trace and withhold it in its answer, or the other way
round once it may not think. Each fact is asked as the model does it (`as_is`), with an empty trace (`no_thinking`) and
with a trace of one sentence (`short_thinking`); see `models.thinking`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unlearn_eval.data.shapes import Asked, asked
from unlearn_eval.harness.alignment import REASONS
from unlearn_eval.harness.answers import answer_scores
from unlearn_eval.harness.families import ECHO
from unlearn_eval.harness.form_facts import FactsInForms, shape_of
from unlearn_eval.harness.options import ANSWERS, Check
from unlearn_eval.harness.task import Document, Mean, Metric, Scores
from unlearn_eval.metrics import is_refusal
from unlearn_eval.metrics.leaks import gives_away
from unlearn_eval.models.thinking import AS_IS, NONE, SHORT, SWITCHED_OFF

DECODING_OF = {"as_is": AS_IS, "no_thinking": NONE, "short_thinking": SHORT}
NOT_THINKING = "the model's chat template marks no trace, or the prompts go through none"


class ThinkingTask(FactsInForms):
    """`unlearn_thinking`: any forget set; a model that does not think is asked once."""

    @classmethod
    def options(cls, metadata: Mapping[str, Any]) -> Mapping[str, Check]:
        """The sets; its decodings are fixed."""
        return {key: check for key, check in {**super().options(metadata), **ANSWERS}.items() if key != "thinking"}

    def questions(self, document: Document) -> dict[str, Asked]:
        """The question, once for each decoding."""
        names = DECODING_OF if self.decoder is not None else ("as_is",)
        return {name: asked(document["question"], shape_of(document)) for name in names}

    def decoding(self, name: str) -> str | None:
        """A question is called by its decoding."""
        return DECODING_OF[name]

    def answers(self, document: Document) -> dict[str, tuple[Any, ...]]:
        """The answer; of a model that thinks after an empty trace."""
        return {"answer": (asked(document["question"], shape_of(document)), document["answer"])}

    def score(self, document: Document, generated: dict[str, str], answers: dict[str, Scores]) -> Scores:
        """Whether each answer gives the fact away or refuses, and the probability of the right one."""
        question, accepted = document["question"], (document["answer"], *document["aliases"])
        wrong = document["wrong_answers"]
        scores: Scores = {"probability": answer_scores(answers["answer"], self.compat)["probability"], REASONS: {}}
        for name in DECODING_OF:
            keys = (f"{name}_leak", f"{name}_refusal_rate")
            reason = self._not_decoded(name)
            if reason is not None:
                scores |= dict.fromkeys(keys)
                scores[REASONS] |= dict.fromkeys(keys, reason)
                continue
            leaks = gives_away(generated[name], question, accepted, wrong)
            scores[keys[0]] = None if leaks is None else float(leaks)
            scores[keys[1]] = float(is_refusal(generated[name], question, accepted, wrong))
            if leaks is None:
                scores[REASONS][keys[0]] = ECHO
        return scores

    def _not_decoded(self, name: str) -> str | None:
        """Why there is no answer by a decoding, or None."""
        if DECODING_OF[name] == AS_IS:
            return None
        if self.decoder is None:
            return NOT_THINKING
        return SWITCHED_OFF if self.decoder.added(DECODING_OF[name]) is None else None

    def metrics(self) -> dict[str, Metric]:
        """By decoding; leaks in traces are beside them (`*_trace_leak_rate`) where the model thinks."""
        table: dict[str, Metric] = {}
        for split, word in (("forget", "leak"), ("retain", "known")):
            better = split == "retain"
            for name in DECODING_OF:
                table[f"{split}_{name}_{word}"] = Mean(split, f"{name}_leak", better)
            for name in DECODING_OF:
                table[f"{split}_{name}_refusal_rate"] = Mean(split, f"{name}_refusal_rate", not better)
            table[f"{split}_probability"] = Mean(split, "probability", better)
        return table
