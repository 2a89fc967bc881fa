"""Answer-level items per second: ours against one lm-eval `loglikelihood` call per answer, in one process.

    python benchmarks/throughput.py [--model default] [--questions 24] [--batch-size 16] [--output FILE]

Both score the same answers (each question's true one and its wrong ones) of the shipped facts through lm-eval's
`hf` model; the two alternate, and the ratio of their medians is the result. Ours also gives every token's rank and hit.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from unlearn_eval.data.forget_sets import facts
from unlearn_eval.harness import requests
from unlearn_eval.harness.patching import quiet
from unlearn_eval.harness.run import load_lm
from unlearn_eval.models.places import resolve_model
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.weights import hash_weights
from unlearn_eval.utils.provenance import provenance

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="default")
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default=None)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "throughput.json")
    arguments = parser.parse_args()
    with quiet():
        result = measure(arguments)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    for mode, row in result["modes"].items():
        print(f"{mode}: {row['ratio']:.1f} times as fast ({row['items_per_second']:.1f} items per second)")
    print(arguments.output)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time both ways, plain and as a chat."""
    from lm_eval.api.instance import Instance

    requests.install()
    options = {"pretrained": resolve_model(arguments.model), "dtype": "float32"}
    lm = load_lm("hf", options, arguments.batch_size, arguments.device)
    one = load_lm("hf", options, 1, arguments.device)
    items = facts().sample(arguments.questions, seed=0)
    modes = {}
    for mode in ("plain", "chat"):
        chat = mode == "chat"
        pairs = [
            (PromptFormat(lm.tokenizer, chat).render(item.question), answer)
            for item in items
            for answer in (item.answer, *item.perturbed_answers)
        ]
        opts = requests.options(PromptFormat(lm.tokenizer, chat))
        ours = [Instance(requests.KIND, {}, (context, answer, opts), i) for i, (context, answer) in enumerate(pairs)]
        theirs = [
            Instance("loglikelihood", {}, (context, answer if chat else f" {answer}"), i)
            for i, (context, answer) in enumerate(pairs)
        ]
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(arguments.runs):
            started = time.perf_counter()
            getattr(lm, requests.KIND)(ours, disable_tqdm=True)
            times["ours"].append(time.perf_counter() - started)
            started = time.perf_counter()
            for request in theirs:
                one.loglikelihood([request], disable_tqdm=True)
            times["theirs"].append(time.perf_counter() - started)
        middle = {name: statistics.median(values) for name, values in times.items()}
        modes[mode] = {
            "n_answers": len(pairs),
            "ours_seconds": times["ours"],
            "one_at_a_time_seconds": times["theirs"],
            "items_per_second": len(pairs) / middle["ours"],
            "ratio": middle["theirs"] / middle["ours"],
        }
    return {
        "model": {"id": arguments.model, "weights_hash": hash_weights(lm.model).exact},
        "batch_size": arguments.batch_size,
        "questions": arguments.questions,
        "modes": modes,
        "provenance": provenance(lm.device),
    }


if __name__ == "__main__":
    main()
