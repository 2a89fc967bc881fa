"""What means and variances over the vocabulary cost with vLLM: plain requests, all at once, and watched ones, in turn.

python benchmarks/vllm_moments.py [--requests 24] [--rounds 5] [--output results/vllm_moments.json]

Medians in CPU seconds of this process, in which the engine runs, on one thread, with the default small model. On a GPU
the share of running one request at a time would be larger; no GPU has run it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from serving import ENGINE

WORDS = "the author of a book who was born in a small town and wrote about her life with many friends".split()


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("results/vllm_moments.json"))
    arguments = parser.parse_args()
    os.environ |= {**ENGINE, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    import numpy as np
    import torch
    from lm_eval.api.instance import Instance

    from unlearn_eval.harness.requests import KIND, options
    from unlearn_eval.models.places import resolve_model
    from unlearn_eval.models.prompt_format import PromptFormat
    from unlearn_eval.serving import vllm_models
    from unlearn_eval.utils.provenance import provenance

    draw = np.random.default_rng(0)
    texts = [
        (f"Question: {' '.join(draw.choice(WORDS, 24))}?", f" {' '.join(draw.choice(WORDS, 36))}.")
        for _ in range(arguments.requests)
    ]
    lm: Any = vllm_models.VLLM(  # type: ignore[attr-defined]
        resolve_model("default"), dtype="float32", max_model_len=512, enforce_eager=True
    )

    def seconds(moments: bool) -> float:
        asked = [
            Instance("loglikelihood", {}, (*text, options(PromptFormat(None, False), moments=moments)), i)
            for i, text in enumerate(texts)
        ]
        started = time.process_time()
        found = getattr(lm, KIND)(asked, disable_tqdm=True)
        assert all(("means" in own) == moments for own in found)
        return (time.process_time() - started) / len(asked)

    for moments in (False, True):
        seconds(moments)  # what is made once
    pairs = [(seconds(False), seconds(True)) for _ in range(arguments.rounds)]
    plain, watched = (statistics.median(own) for own in zip(*pairs, strict=True))
    result = {
        "requests": arguments.requests,
        "rounds": arguments.rounds,
        "plain_cpu_seconds_per_request": plain,
        "watched_cpu_seconds_per_request": watched,
        "times_as_much": statistics.median(after / before for before, after in pairs),
        "provenance": provenance(device="cpu"),
        "torch_threads": torch.get_num_threads(),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"with moments a request takes {result['times_as_much']:.2f} times as much; {arguments.output}")
    lm.model.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main()
