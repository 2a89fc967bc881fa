"""What each editor and recipe does to a small real model: 1, 10 and 50 known facts edited to a refusal.

Every row is written to results/editors.json as soon as it is there, and is not computed again while it is there;
results/editors.md is the table. What the editors must leave alone is estimated on the model's own answers to
facts that no list holds. Options: --sizes, --only (names of rows), --seed, --folder (where its answers are kept).

Queries are merged within a relation (five capitals become one prompt, or share one change of value): these facts'
own groups, their subjects, hardly ever have two.

Target values are the costly part; they are computed in bfloat16. Where two rows optimize exactly the same ones (MEMIT
and AlphaEdit do) they are computed once, and their seconds are counted in both rows.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from editing import conversations, evaluate, forget_peak_memory, known_facts, split

from unlearn_eval import make_edit
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.editing.locate_then_edit import run as locate
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.edits.base import applied
from unlearn_eval.harness.patching import quiet
from unlearn_eval.models.load import load_model
from unlearn_eval.models.weights import hash_weights
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.provenance import hash_json, provenance

RESULT, TABLE = Path("results/editors.json"), Path("results/editors.md")


@dataclass(frozen=True)
class Row:
    """One line of the table: a method with a recipe."""

    name: str
    editor: str
    options: dict[str, str] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)


KEYS = {"merge": "key", "merge_size": 5}
TEXT = {"merge": "text", "merge_size": 5}
SELF = {"target": "self"}
ROWS = (
    Row("MEMIT", "memit"),
    Row("AlphaEdit", "alphaedit"),
    Row("EMMET", "emmet"),
    Row("ROME (R-ROME)", "rome"),
    Row("UltraEdit", "ultraedit"),
    Row("MEMIT, self", "memit", {}, SELF),
    Row("AlphaEdit, self", "alphaedit", {}, SELF),
    Row("MEMIT, merged by key", "memit", {}, KEYS),
    Row("AlphaEdit, merged by key", "alphaedit", {}, KEYS),
    Row("ROME, merged by key", "rome", {}, KEYS),
    Row("MEMIT, merged by text", "memit", {}, TEXT),
    Row("ROME, merged by text", "rome", {}, TEXT),
    Row("ROME (original)", "rome", {"variant": "original"}),
    Row("ROME without C", "rome", {"second_moments": "false"}),
    Row("MEMIT in steps of 10", "memit", {}, {"per_step": 10}),
    Row("MEMIT in steps of 10, no key cache", "memit", {"key_cache": "false"}, {"per_step": 10}),
    Row("AlphaEdit in steps of 10", "alphaedit", {}, {"per_step": 10}),
)


class Shared:
    """Target values by what they depend on, and the seconds that each took."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[Any, float]] = {}
        self.saved = 0.0
        self.compute = locate.target_values

    def __call__(
        self, model: Any, parts: Any, layer: int, requests: Any, config: Any, *more: Any, **options: Any
    ) -> Any:
        """As `target_values`."""
        weights = hash_weights(model).exact
        key = hash_json([weights, layer, [asdict(r) for r in requests], asdict(config), options.get("site", "block")])
        if key in self.found:
            self.saved += self.found[key][1]
        else:
            start = time.process_time()
            self.found[key] = (
                self.compute(model, parts, layer, requests, config, *more, **options),
                time.process_time() - start,
            )
        return self.found[key][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1,10,50")
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default="results/scratch/editors")
    arguments = parser.parse_args()
    loaded = load_model("default", dtype="float32")
    shared = Shared()
    locate.target_values = shared
    with quiet():
        lm, known = known_facts(Path(arguments.folder), loaded)
    done = json.loads(RESULT.read_text()) if RESULT.is_file() else {"rows": {}}
    done |= {"model_weights_hash": hash_weights(loaded.model).exact, "provenance": provenance(), "n_known": len(known)}
    for n in map(int, arguments.sizes.split(",")):
        forget, retain, neighbors = split(known, n, arguments.seed)
        used = {item.id for item in forget} | set(retain) | set(neighbors)
        text = conversations(Path(arguments.folder), used)
        base = f"no edit, {n}"
        if base not in done["rows"]:
            with quiet():
                done["rows"][base] = {"name": "no edit", "n": n, **evaluate(lm, forget, retain, neighbors)}
        for row in ROWS:
            if arguments.only and row.name not in arguments.only.split("; "):
                continue
            if n <= row.recipe.get("per_step", 0) or (n == 1 and row.recipe.get("merge")):
                continue  # the same as the plain row
            key = f"{row.name}, {n}"
            if key in done["rows"]:
                continue
            done["rows"][key] = run(row, n, loaded, lm, forget, retain, neighbors, text, shared, arguments.seed)
            RESULT.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
            TABLE.write_text(table(done), encoding="utf-8")
            print(json.dumps(done["rows"][key]), flush=True)


def run(
    row: Row,
    n: int,
    loaded: Any,
    lm: Any,
    forget: Any,
    retain: Any,
    neighbors: Any,
    text: Path,
    shared: Shared,
    seed: int,
) -> dict[str, Any]:
    """One row: the edit's cost and what the edited model says."""
    options = dict(row.options)
    if row.editor != "ultraedit":
        options |= {"text": str(text), "keys_per_dimension": "12", "target.bfloat16": "true"}
    forget_peak_memory()
    shared.saved, start = 0.0, time.process_time()
    found: dict[str, Any] = {"name": row.name, "n": n, "n_retain": len(retain), "n_neighbors": len(neighbors)}
    try:
        grouped = _by_relation(forget) if row.recipe.get("merge") else forget
        edit = make_edit(loaded, grouped, row.editor, options, Recipe(**row.recipe, seed=seed))
    except UserError as error:
        return found | {"error": str(error).splitlines()[0]}
    found |= {
        "cpu_seconds": round(time.process_time() - start + shared.saved, 1),
        "peak_memory_bytes": edit.info.peak_memory_bytes,
        "took": edit.info.notes["self_check"],
        "config": edit.info.config | {"text": "conversations"},
        "recipe": asdict(Recipe(**row.recipe, seed=seed)),
    }
    with applied(edit, loaded.model), quiet():
        return found | evaluate(lm, forget, retain, neighbors)


def _by_relation(forget: ForgetSet) -> ForgetSet:
    return ForgetSet(forget.name, tuple(replace(item, group=item.id.split("/")[0]) for item in forget))


def table(done: dict[str, Any]) -> str:
    """The rows as Markdown, shares in per cent."""
    columns = {
        "refuses": "forget_refusal_rate",
        "aligned": "forget_refusal_alignment",
        "still right": "forget_accuracy",
        "refuses (reworded)": "paraphrase_refusal_rate",
        "still right (reworded)": "paraphrase_accuracy",
        "neighbors right": "neighbors_accuracy",
        "others right": "retain_accuracy",
        "others refused": "retain_refusal_rate",
    }
    columns = {name: key for name, key in columns.items() if any(key in row for row in done["rows"].values())}
    lines = []
    for n in sorted({row["n"] for row in done["rows"].values()}):
        rows = [row for row in done["rows"].values() if row["n"] == n]
        lines += [
            f"## {n} fact{'s' if n > 1 else ''}",
            "",
            "| | " + " | ".join(columns) + " | fluency, bits | CPU s | peak GiB |",
        ]
        lines += ["|---|" + "---:|" * (len(columns) + 3)]
        for row in rows:
            if "error" in row:
                lines.append(f"| {row['name']} | {row['error']} |" + " |" * (len(columns) + 2))
                continue
            cells = ["–" if row.get(key) is None else f"{100 * row[key]:.0f}" for key in columns.values()]
            fluency = row.get("forget_fluency_bits")
            cells += ["–" if fluency is None else f"{fluency:.2f}", str(row.get("cpu_seconds", "–"))]
            peak = row.get("peak_memory_bytes")
            cells += ["–" if peak is None else f"{peak / 2**30:.1f}"]
            lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
        lines.append("")
    if "remark" in done:
        lines += [done["remark"], ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
