"""Real knowledge within TOFU, with paraphrases of our own: what arXiv 2505.19855 calls factual.

Its forget set is `tofu:factual`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from unlearn_eval.data.benchmark import Benchmark, ByIds
from unlearn_eval.data.benchmarks.tofu import HUB_ID, records_of
from unlearn_eval.data.documents import Metadata, Splits, choose, document

PARAPHRASES_FILE = Path(__file__).parents[2] / "tasks" / "factual" / "paraphrases.json"


def factual(metadata: Metadata) -> Splits:
    """TOFU's 100 questions on real authors and 117 on world facts: what arXiv 2505.19855 calls factual."""
    paraphrases = json.loads(PARAPHRASES_FILE.read_text(encoding="utf-8"))
    documents = []
    for part in ("real_authors", "world_facts"):
        for i, record in enumerate(records_of(f"{part}_perturbed", ("question", "answer", "perturbed_answer"))):
            question = str(record["question"]).strip()
            own = paraphrases.get(question_key(question))
            documents.append(
                document(
                    f"{part}/{i}",
                    question,
                    record["answer"],
                    paraphrases=[own] if own else [],
                    wrong_answers=record["perturbed_answer"],
                    group=part,
                )
            )
    every_eighth = [own["id"] for own in documents[::8]]
    forget, retain = choose(documents, metadata, every_eighth, "part or question")
    return {"forget": forget, "retain": retain}


def question_key(question: str) -> str:
    """What our paraphrases call a question, without repeating it."""
    return hashlib.sha256(" ".join(question.split()).encode()).hexdigest()[:12]


BENCHMARK = Benchmark(
    name="factual",
    title="TOFU's real authors and world facts",
    paper="arXiv 2401.06121, as used in arXiv 2505.19855",
    source=f"the hub's {HUB_ID}; paraphrases in tasks/factual/paraphrases.json",
    licence="MIT; the paraphrases Apache-2.0",
    readers={"factual": factual},
    tasks={"unlearn_factual": ByIds("tofu:factual")},
)
