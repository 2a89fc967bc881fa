"""What GRACE, WISE and MEMOIR do to a small real model: 10, 50 and 100 known facts edited to a refusal.

Every row is written to results/memory_editors.json as soon as it is there, and is not computed again while it is there;
results/memory_editors.md is the table, in the columns of results/editors.md. Options: --sizes, --only (names of rows,
separated by "; "), --seed, --folder (where the model's own answers are kept).

Evaluated are the questions, their first paraphrases, known facts near them, and 48 others. Radii and thresholds are
calibrated on the second paraphrases and on questions that are in none of these lists; WISE and MEMOIR learn when to be
silent from such questions too.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from editing import conversations, evaluate, known_facts, split

from unlearn_eval import make_edit
from unlearn_eval.data.forget_sets import facts
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.edits.base import applied
from unlearn_eval.harness.patching import quiet
from unlearn_eval.models.load import load_model
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.scoring import pad
from unlearn_eval.models.weights import hash_weights
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.provenance import provenance

RESULT, TABLE = Path("results/memory_editors.json"), Path("results/memory_editors.md")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    editor: str
    options: dict[str, str] = field(default_factory=dict)


CALIBRATED = {"calibrate": "true"}
ROWS = (
    Row("GRACE, radius 1", "grace"),
    Row("GRACE, calibrated", "grace", CALIBRATED),
    Row("GRACE (EasyEdit)", "grace", {"variant": "easyedit"}),
    Row("GRACE (authors)", "grace", {"variant": "authors"}),
    Row("WISE", "wise"),
    Row("WISE, calibrated", "wise", CALIBRATED),
    Row("WISE, 2 shards merged by TIES", "wise", {"shards": "2"}),
    Row("MEMOIR", "memoir"),
    Row("MEMOIR, calibrated", "memoir", CALIBRATED),
    Row("MEMOIR (original)", "memoir", {"variant": "original"}),
    Row("WISE, 2 shards retrieved", "wise", {"shards": "2", "mode": "retrieve"}),
    Row("WISE, mean over the prompt", "wise", {"pool": "mean", "alpha": "0.03", "beta": "0.15", "gamma": "0.1"}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="10,50,100")
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default="results/scratch/editors")
    arguments = parser.parse_args()
    loaded = load_model("default", dtype="float32")
    with quiet():
        lm, known = known_facts(Path(arguments.folder), loaded)
    done = json.loads(RESULT.read_text()) if RESULT.is_file() else {"rows": {}}
    done |= {"model_weights_hash": hash_weights(loaded.model).exact, "provenance": provenance(), "n_known": len(known)}
    for n in map(int, arguments.sizes.split(",")):
        forget, retain, neighbors = split(known, n, arguments.seed)
        used = {item.id for item in forget} | set(retain) | set(neighbors)
        others = conversations(Path(arguments.folder), used)
        base = f"no edit, {n}"
        if base not in done["rows"]:
            with quiet():
                found = evaluate(lm, forget, retain, neighbors)
            done["rows"][base] = {"name": "no edit", "n": n, **found, **speed(loaded)}
        for row in ROWS:
            key = f"{row.name}, {n}"
            if key in done["rows"] or (arguments.only and row.name not in arguments.only.split("; ")):
                continue
            done["rows"][key] = run(row, n, loaded, lm, forget, retain, neighbors, others, arguments.seed)
            RESULT.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
            TABLE.write_text(table(done), encoding="utf-8")
            print(json.dumps(done["rows"][key]), flush=True)


def run(
    row: Row, n: int, loaded: Any, lm: Any, forget: Any, retain: Any, neighbors: Any, others: Path, seed: int
) -> dict[str, Any]:
    """One row: the edit's cost and size, and what the edited model says."""
    held_out = ForgetSet(forget.name, tuple(replace(item, paraphrases=item.paraphrases[1:]) for item in forget))
    start = time.process_time()
    found: dict[str, Any] = {"name": row.name, "n": n, "n_retain": len(retain), "n_neighbors": len(neighbors)}
    try:
        options = row.options | {"others": str(others)}
        edit = make_edit(loaded, held_out, row.editor, options, Recipe(seed=seed))
    except UserError as error:
        return found | {"error": str(error).splitlines()[0]}
    found |= {
        "cpu_seconds_per_edit": round((time.process_time() - start) / n, 2),
        "took": edit.info.notes["self_check"],
        "steps": edit.info.notes["steps"],
        "calibration": edit.info.notes.get("calibration"),
        "memory_bytes": sum(t.numel() * t.element_size() for t in edit.store.tensors().values()),
        "config": edit.info.config | {"others": "conversations"},
    }
    with applied(edit, loaded.model), quiet():
        return found | evaluate(lm, forget, retain, neighbors) | speed(loaded)


def speed(loaded: Any, n_tokens: int = 24) -> dict[str, float]:
    """Tokens per CPU second when eight questions that are not edited are answered."""
    tokenizer = loaded.tokenizer
    rows = [PromptFormat(tokenizer, True).prompt_ids(item.question) for item in list(facts())[-8:]]
    ids, mask = pad(rows, "left", loaded.model.device, filler=tokenizer.pad_token_id)
    start = time.process_time()
    loaded.model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=n_tokens, min_new_tokens=n_tokens, do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return {"tokens_per_cpu_second": round(len(rows) * n_tokens / (time.process_time() - start), 1)}


COLUMNS = {
    "refuses": "forget_refusal_rate",
    "aligned": "forget_refusal_alignment",
    "still right": "forget_accuracy",
    "refuses (reworded)": "paraphrase_refusal_rate",
    "still right (reworded)": "paraphrase_accuracy",
    "neighbors right": "neighbors_accuracy",
    "neighbors refused": "neighbors_refusal_rate",
    "others right": "retain_accuracy",
    "others refused": "retain_refusal_rate",
}


def table(done: dict[str, Any]) -> str:
    """The rows as Markdown, shares in per cent."""
    lines = []
    for n in sorted({row["n"] for row in done["rows"].values()}):
        lines += [f"## {n} facts", ""]
        lines += ["| | " + " | ".join(COLUMNS) + " | fluency, bits | MB | CPU s per edit | tokens per CPU s |"]
        lines += ["|---|" + "---:|" * (len(COLUMNS) + 4)]
        for row in (row for row in done["rows"].values() if row["n"] == n):
            if "error" in row:
                lines.append(f"| {row['name']} | {row['error']} |" + " |" * (len(COLUMNS) + 3))
                continue
            cells = ["–" if row.get(key) is None else f"{100 * row[key]:.0f}" for key in COLUMNS.values()]
            fluency, size = row.get("forget_fluency_bits"), row.get("memory_bytes")
            cells += ["–" if fluency is None else f"{fluency:.2f}", "–" if size is None else f"{size / 1e6:.2f}"]
            cells += [str(row.get("cpu_seconds_per_edit", "–")), str(row["tokens_per_cpu_second"])]
            lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
        earlier = {row["made_by"] for row in done["rows"].values() if row["n"] == n and "made_by" in row}
        lines += ["", *(f"These rows were made by {commit}, and not again since.\n" for commit in sorted(earlier))]
    if "remark" in done:
        lines += [done["remark"], ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
