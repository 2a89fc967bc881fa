"""Our tables on a small random model, to compare two environments (see `make test-next`).

    python scripts/table_of_tasks.py model FOLDER        write the model and the data
    python scripts/table_of_tasks.py table FOLDER FILE   evaluate it on our tasks, in this environment
    python scripts/table_of_tasks.py compare FILE FILE   exit with 1 where two tables differ

The same weights are read in both environments, so that every metric, standard error and count must agree.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TASKS = {
    "unlearn_facts": {"forget": "capital_of"},
    "unlearn_forms": {"forget": "capital_of"},
    "unlearn_leak_at_k": {"forget": "capital_of", "samples": 4},
    "unlearn_thinking": {"forget": "capital_of"},
    "unlearn_tofu": {"forget_split": "forget01"},
    "unlearn_utility": {"forget": "capital_of", "parts": {"choice": "choice.yaml", "answer": "answer.yaml"}},
}
CHOICE = """task: borrowed_choice
dataset_path: json
dataset_kwargs: {data_files: {test: items.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{options}}"
doc_to_target: gold
target_delimiter: ""
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
ANSWER = """task: borrowed_answer
dataset_path: json
dataset_kwargs: {data_files: {test: items.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{options[gold]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
filter_list:
  - name: first_word
    filter:
      - {function: regex, regex_pattern: "(\\\\w+)"}
      - {function: take_first}
  - name: all
    filter:
      - {function: take_first}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
LIMIT = 8  # documents of each task, or of each split


def write_model(folder: Path) -> None:
    """A small Llama with random weights, the data of TOFU in small, and two tasks as lm-eval's own are."""
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    from tiny_models import tiny_model, tiny_tokenizer  # type: ignore[import-not-found]
    from tofu_files import write_tofu  # type: ignore[import-not-found]

    folder.mkdir(parents=True, exist_ok=True)
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    write_tofu(folder / "data")
    # The space is part of the answer: lm-eval 0.5 counts the delimiter before it in acc_norm's lengths, 0.4 does not.
    words = [" red", " blue", " green", " black"]
    items = [{"question": f"What color is thing {i}?", "options": words, "gold": i % 4} for i in range(LIMIT)]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / "choice.yaml").write_text(CHOICE)
    (folder / "answer.yaml").write_text(ANSWER)


def table(folder: Path) -> dict[str, Any]:
    """Every metric of every task, and the names of what its samples hold."""
    os.chdir(folder)  # the two tasks name their data from here
    os.environ |= {"UNLEARN_EVAL_DATA": str(folder / "data"), "UNLEARN_EVAL_ENCODER": "off"}
    from dataclasses import asdict

    from unlearn_eval.harness.patching import quiet, within_a_study
    from unlearn_eval.harness.run import evaluate, load_lm

    found: dict[str, Any] = {}
    with quiet(), within_a_study():
        lm = load_lm("hf", {"pretrained": "model", "dtype": "float32"}, 4, "cpu")
        for chat in (False, True):
            for task, metadata in TASKS.items():
                print(task, "in a chat" if chat else "", file=sys.stderr, flush=True)
                made = evaluate(
                    lm,
                    [task],
                    metadata=metadata,
                    limit=LIMIT,
                    apply_chat_template=chat,
                    gen_kwargs={"max_gen_toks": 4},
                )
                found[f"{task}{', chat' * chat}"] = {
                    "metrics": {name: asdict(metric) for name, metric in made.metrics[task].items()},
                    "data": made.data[task],
                    "samples": [sample["resps"] for sample in made.samples[task]],
                }
    return found


def differences(first: Any, second: Any, place: str = "") -> list[str]:
    """Where two tables differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        only = [f"{place}/{name} is in one only" for name in sorted(first.keys() ^ second.keys())]
        both = first.keys() & second.keys()
        return only + [d for name in sorted(both) for d in differences(first[name], second[name], f"{place}/{name}")]
    return [] if first == second else [f"{place}: {first!r} and {second!r}"[:300]]


def main(what: str, *paths: str) -> int:
    """Run one of the three commands; the exit code."""
    first, *rest = (Path(path).resolve() for path in paths)
    if what == "model":
        write_model(first)
    elif what == "table":
        rest[0].write_text(json.dumps(table(first), indent=1))
    else:
        tables = [json.loads(path.read_text()) for path in (first, *rest)]
        found = differences(*tables)
        n = sum(len(task["metrics"]) for task in tables[0].values())
        print("\n".join(found) or f"the same {n} metrics in {len(tables[0])} tables, and the same answers")
        return int(bool(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
