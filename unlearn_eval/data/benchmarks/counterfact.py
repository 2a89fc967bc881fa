"""CounterFact (Meng et al. 2022, arXiv 2202.05262): its true facts, in prompts, paraphrases and neighborhoods."""

from __future__ import annotations

from typing import Any

from unlearn_eval.data.benchmark import Benchmark, ByIds, first_of, forgotten_items
from unlearn_eval.data.documents import Metadata, Splits, choose, document, rewrite_of, without_empty
from unlearn_eval.data.files import linked_in
from unlearn_eval.data.items import OF_NEW, ForgetItem
from unlearn_eval.data.sources import Source, load_source


def _splits(metadata: Metadata) -> Splits:
    """CounterFact's true facts: to be forgotten in the prompt and its paraphrases, kept in the neighborhood."""
    fields = ("case_id", "requested_rewrite", "paraphrase_prompts", "neighborhood_prompts", "generation_prompts")
    obtain = "It is counterfact.json of rome.baulab.info/data/dsets (MIT)."
    easyedit = ("counterfact_portability_gpt4",)  # the same records, with a question over a further fact each
    source = Source("counterfact", "counterfact", "azhx/counterfact", obtain=obtain, size=21919, alternatives=easyedit)
    documents = []
    neighbors: dict[str, list[Any]] = {}
    generation: dict[str, list[Any]] = {}
    for record in load_source(source, fields):
        rewrite = record["requested_rewrite"]
        key = str(record["case_id"])
        hint = "it has prompt, subject, target_true.str, target_new.str"
        prompt, subject, true, new = rewrite_of(rewrite, f"counterfact, case {key}", hint)
        common: dict[str, Any] = {
            "wrong_answers": [new],
            "group": str(rewrite.get("relation_id") or ""),
            "shape": "sentence",
        }
        documents.append(
            document(
                key,
                prompt,
                true,
                paraphrases=record["paraphrase_prompts"],
                subject=subject,
                linked=linked_in(record, OF_NEW),
                **common,
            )
        )
        neighbors[key] = [
            (f"{key}/neighbor/{i}", text, true, common) for i, text in enumerate(record["neighborhood_prompts"])
        ]
        texts = list(dict.fromkeys(record["generation_prompts"]))
        generation[key] = [(f"{key}/generation/{i}", text, true, common) for i, text in enumerate(texts)]
    forget, retain = choose(documents, metadata, 100, "case or relation")
    near = [one for own in forget for one in neighbors[own["id"]]]
    goes_on = [one for own in forget for one in generation[own["id"]]]
    return without_empty(
        {
            "forget": forget,
            "retain": retain,
            "neighbors": [document(key, text, answer, **common) for key, text, answer, common in near],
            "forget_generation": [document(key, text, answer, **common) for key, text, answer, common in goes_on],
        }
    )


def _items(which: str) -> tuple[ForgetItem, ...]:
    return forgotten_items("counterfact", _splits(first_of(which, "counterfact")))


BENCHMARK = Benchmark(
    name="counterfact",
    title="CounterFact",
    paper="arXiv 2202.05262",
    source="counterfact.json of rome.baulab.info/data/dsets, or the hub's azhx/counterfact",
    licence="MIT",
    readers={"counterfact": _splits},
    sets=("counterfact:NUMBER", "counterfact:all"),
    items=_items,
    tasks={"unlearn_counterfact": ByIds("counterfact:", "counterfact/")},
)
