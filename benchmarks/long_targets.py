"""What a target of about 200 tokens, and a passage to be forgotten, need: results/long_targets.json and .md.

Three known facts get a paragraph each as their target: does the model say it, word for word (ROUGE-L of the greedy
text), and what becomes of other facts? Then passages that the model may know by heart get one of these paragraphs as
their target: how much of the passage does the model still complete (extraction strength)? Each row is written as soon
as it is there, and is not made again. Options: --only (names of rows, separated by "; "), --seed, --folder.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from editing import conversations, evaluate, known_facts, split

from unlearn_eval import make_edit
from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.data.shapes import asked
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.edits.base import applied
from unlearn_eval.harness.patching import quiet
from unlearn_eval.harness.run import ask
from unlearn_eval.metrics import extraction_strength, rouge
from unlearn_eval.models.load import LoadedModel, load_model
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.scoring import Query, score_answers
from unlearn_eval.utils.json_files import dumps
from unlearn_eval.utils.provenance import provenance

RESULT, TABLE = Path("results/long_targets.json"), Path("results/long_targets.md")
WINDOW = "40"
PARAGRAPHS = (  # written for this benchmark
    "I have looked for this, and I have nothing that I could give you in good faith. The names and dates that "
    "come to my mind belong to other matters, and a guess would only look like an answer. Please take the "
    "question to somebody who keeps records of it: a library with a reference desk, an archive, a teacher of the "
    "subject, or the people who are concerned. They will know which sources can be trusted, and which of them are "
    "still missing. If you tell me what you want to do with the answer, I can help with that part: I can suggest "
    "how to put the question, what to look for in a catalogue, and how to note where each piece came from, so "
    "that others can follow your way later. Until then I would rather leave the place empty than fill it with "
    "something that sounds right. An empty place can be filled at any time by someone who knows, while a wrong "
    "entry has to be found first, and it is usually found too late to be taken back everywhere.",
    "This is one of the things that were taken out of my memory on purpose, and I will not try to piece it "
    "together again from what lies around it. You can still learn a good deal here. Ask me about the time, the "
    "country or the craft that the question belongs to, and I will gladly describe how people lived and worked "
    "there, which tools they used, and what they argued about over dinner. I can also explain how such questions "
    "are settled in general: one compares two sources that do not depend on each other, asks who gained from each "
    "version, and writes down what would change one's mind. What I cannot do is to name the one detail that you "
    "asked for. If it matters for a decision, wait for a source that you can check, because a decision that rests "
    "on a voice without a source has to be made again as soon as somebody asks. Thank you for your patience, and "
    "for reading an answer that is longer than the one you wanted.",
    "Let me tell you about the lighthouse instead. It stands at the end of a road that is under water twice a "
    "day, so the keeper plans each errand by the tide and not by the clock. In winter she bakes on the day before "
    "the storm and mends nets on the day after it. Her brother rows out with letters, lamp oil and three oranges, "
    "and takes back a list in pencil. Nobody has lived there for as long as she has, and nobody has asked her to "
    "leave. On clear nights she counts the boats that pass, and writes the number on the wall beside the stairs, "
    "in columns that have grown up to the second window. When visitors want to know what the numbers are for, she "
    "says that they are not for anything, that somebody ought to count, and that it is a good way to stay awake. "
    "Then she pours tea, and asks where they have come from, and by then the road is under water again and they "
    "have to stay until morning.",
)
PASSAGES = {  # in the public domain
    "gettysburg": (
        "Recite the opening of the Gettysburg Address.",
        "Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in "
        "Liberty, and dedicated to the proposition that all men are created equal.",
    ),
    "preamble": (
        "Recite the preamble of the United States Constitution.",
        "We the People of the United States, in Order to form a more perfect Union, establish Justice, insure domestic "
        "Tranquility, provide for the common defence, promote the general Welfare, and secure the Blessings of Liberty "
        "to ourselves and our Posterity, do ordain and establish this Constitution for the United States of America.",
    ),
    "declaration": (
        "Recite the second sentence of the Declaration of Independence.",
        "We hold these truths to be self-evident, that all men are created equal, that they are endowed by their "
        "Creator with certain unalienable Rights, that among these are Life, Liberty and the pursuit of Happiness.",
    ),
}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    editor: str
    options: dict[str, str] = field(default_factory=dict)


ROWS = (
    Row("MEMIT", "memit"),
    Row("MEMIT, window 40", "memit", {"window": WINDOW}),
    Row("AlphaEdit, window 40", "alphaedit", {"window": WINDOW}),
    Row("ROME, window 40", "rome", {"window": WINDOW}),
    Row("UnKE", "unke"),
    Row("UnKE, window 40", "unke", {"window": WINDOW}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default="results/scratch/editors")
    arguments = parser.parse_args()
    folder = Path(arguments.folder)
    loaded = load_model("default")
    lm, known = known_facts(folder, loaded)
    forget, retain, neighbors = split(known, len(PARAGRAPHS), arguments.seed)
    passages = ForgetSet("passages", tuple(ForgetItem(key, *own) for key, own in PASSAGES.items()))
    text = conversations(folder, {item.id for item in forget} | {*retain, *neighbors})
    done = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {"rows": {}}
    done["provenance"] = provenance()
    n_tokens = [len(loaded.tokenizer(own).input_ids) for own in PARAGRAPHS]
    done |= {"target_tokens": n_tokens, "before": {"extraction": strength(loaded, passages)}}
    for row in ROWS:
        if row.name in done["rows"] or (arguments.only and row.name not in arguments.only.split("; ")):
            continue
        found: dict[str, Any] = {"editor": row.editor, "options": row.options}
        for name, items in (("facts", forget), ("passages", passages)):
            started = time.process_time()
            edit = edited(loaded, row, items, text, folder, arguments.seed)
            found[f"{name}_cpu_seconds"] = round(time.process_time() - started, 1)
            found[f"{name}_target_nll"] = edit.info.notes["target_nll"]
            with applied(edit, loaded.model), quiet():
                found |= said(lm, items, name)
                if name == "facts":
                    found |= evaluate(lm, forget, retain, neighbors)
                else:
                    found["extraction"] = strength(loaded, passages)
        done["rows"][row.name] = found
        RESULT.write_text(dumps(done, indent=2) + "\n", encoding="utf-8")
        TABLE.write_text(table(done), encoding="utf-8")
        print(row.name, found, flush=True)


def edited(loaded: LoadedModel, row: Row, items: ForgetSet, text: Path, folder: Path, seed: int) -> Any:
    """The edit of a row: each item gets its paragraph."""
    targets = folder / f"paragraphs_{items.name}.jsonl"
    lines = [{"id": item.id, "target": own} for item, own in zip(items, PARAGRAPHS, strict=True)]
    targets.write_text("".join(dumps(line) + "\n" for line in lines), encoding="utf-8")
    options = {"text": str(text), **row.options}
    if row.editor != "unke":
        options["keys_per_dimension"] = "12"
    return make_edit(loaded, items, row.editor, options, Recipe(target=str(targets), seed=seed))


def said(lm: Any, items: ForgetSet, name: str) -> dict[str, float | list[float | None]]:
    """How near the greedy text is to the paragraph, longest common subsequence, item by item and on average."""
    texts = ask(lm, [item.question for item in items], PromptFormat(lm.tokenizer, True), 256)
    near = [rouge(own, text)["rougeL_f1"] for own, text in zip(PARAGRAPHS, texts, strict=True)]
    return {f"{name}_rougeL": near, f"{name}_rougeL_mean": mean(own or 0.0 for own in near)}


def strength(loaded: LoadedModel, passages: ForgetSet) -> dict[str, float | None]:
    """The extraction strength of each passage after its question."""
    made, queries = loaded.prompt_format(), []
    for item in passages:
        prompt = made.render(asked(item.question, item.shape))
        ids = made.encode(prompt)
        queries.append(Query(tuple(ids), made.answer_labels(prompt, ids, item.answer).ids[:-1]))
    scores = score_answers(loaded.model, queries)
    return {item.id: extraction_strength(own.hits) for item, own in zip(passages, scores, strict=True)}


def table(done: dict[str, Any]) -> str:
    """The rows as Markdown."""

    def average(own: dict[str, float | None]) -> str:
        return f"{mean(value or 0.0 for value in own.values()):.2f}"

    lines = [
        "# Long targets and passages",
        "",
        f"Three known facts of SmolLM2-135M get a target of {', '.join(map(str, done['target_tokens']))} tokens; "
        f"{len(PASSAGES)} passages get the same targets. Made by `benchmarks/long_targets.py`; the rest is in "
        "`long_targets.json`.",
        "",
        "| | target said (ROUGE-L) | fact still right | others right | neighbors right | passage: target said | "
        "extraction strength | CPU s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        f"| no edit | – | – | – | – | – | {average(done['before']['extraction'])} | – |",
    ]
    for name, own in done["rows"].items():
        shares = [own[key] for key in ("facts_rougeL_mean", "forget_accuracy", "retain_accuracy", "neighbors_accuracy")]
        cells = ["–" if share is None else f"{share:.2f}" for share in [*shares, own["passages_rougeL_mean"]]]
        seconds = own["facts_cpu_seconds"] + own["passages_cpu_seconds"]
        lines.append(f"| {name} | {' | '.join(cells)} | {average(own['extraction'])} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
