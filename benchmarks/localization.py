"""Causal tracing against one run of the whole model for each unit and position, and the gradient's estimate beside it.

    python benchmarks/localization.py [--model default] [--facts 4] [--checked 96] [--output FILE]

Ours traces attention and MLPs of all layers at all positions of a few shipped facts. Of the plain way, so many of the
same runs, drawn at random, are made, half before and half after; all of them would take that much more. CPU seconds,
so that other processes count for little. The numbers of both ways are compared, and estimates with exact effects.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from unlearn_eval.data.forget_sets import facts
from unlearn_eval.harness.patching import quiet
from unlearn_eval.localization.activations import (
    Activations,
    Corrupted,
    activations,
    answer_metric,
    embedding_spread,
    embeddings_with,
    subject_noise,
)
from unlearn_eval.localization.base import Run
from unlearn_eval.localization.facts import facts_of
from unlearn_eval.localization.methods import attribution_patching, causal_tracing
from unlearn_eval.localization.scores import NoiseConfig, job_table
from unlearn_eval.localization.sites import KINDS, Unit, sites
from unlearn_eval.models.load import load_model
from unlearn_eval.models.weights import hash_weights
from unlearn_eval.utils.provenance import provenance

ROOT = Path(__file__).parent.parent
CONFIG = NoiseConfig(samples=1)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="default")
    parser.add_argument("--facts", type=int, default=4)
    parser.add_argument("--checked", type=int, default=96)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--device", default=None)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "localization_speed.json")
    arguments = parser.parse_args()
    with quiet():
        result = measure(arguments)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"causal tracing: {result['ratio']:.1f} times as fast, differences up to {result['largest_difference']:.1e}")
    print(f"attribution patching: {result['estimate']['ratio']:.0f} times as fast")
    print(arguments.output)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time the ways, and compare their numbers."""
    loaded = load_model(arguments.model, "float32", arguments.device)
    found, _ = facts_of(facts().sample(arguments.facts, seed=0).items, loaded.prompt_format(False))
    run = Run(loaded.model, sites(loaded.model), found, rows=arguments.rows)
    units = run.sites.units(*KINDS)
    noise = subject_noise(run, found, 0, 1, CONFIG.noise * embedding_spread(loaded.model, found))
    places, where, columns = job_table(found, loaded.model.device)
    single = (columns >= 0).nonzero()[:, 0].tolist()
    jobs = random.Random(0).sample([(unit, i) for unit in units for i in single], arguments.checked)
    clean = [activations(run.model, run.sites, [fact.prompt_ids]) for fact in found]  # once, and not timed
    plain_seconds, plain = _timed(lambda: [_plain(run, clean, noise, places, where, *job) for job in jobs[::2]])
    exact_seconds, exact = _timed(lambda: causal_tracing.localize(run, CONFIG))
    more_seconds, more = _timed(lambda: [_plain(run, clean, noise, places, where, *job) for job in jobs[1::2]])
    estimate_seconds, estimate = _timed(lambda: attribution_patching.localize(run, CONFIG))
    batch = Corrupted.of(run, found, noise, 1, CONFIG.metric)
    differences = [
        abs(float(batch.restored(unit, places[i : i + 1], where[i : i + 1])) - value)
        for (unit, i), value in zip([*jobs[::2], *jobs[1::2]], [*plain, *more], strict=True)
    ]
    n_runs, per_run = len(units) * len(places), (plain_seconds + more_seconds) / len(jobs)
    scores = [[ranking.scores[unit] for unit in units] for ranking in (exact, estimate)]
    return {
        "model": {"id": arguments.model, "weights_hash": hash_weights(loaded.model).exact},
        "n_facts": len(found),
        "n_tokens": [len(fact.prompt_ids) for fact in found],
        "n_runs": n_runs,
        "rows": arguments.rows,
        "plain": {"n_runs": len(jobs), "cpu_seconds_per_run": per_run},
        "exact": {"cpu_seconds": exact_seconds},
        "ratio": per_run * n_runs / exact_seconds,
        "largest_difference": max(differences),
        "estimate": {
            "cpu_seconds": estimate_seconds,
            "ratio": exact_seconds / estimate_seconds,
            "rank_correlation": float(spearmanr(*scores).statistic),
        },
        "provenance": provenance(loaded.model.device),
    }


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    found = work()
    return time.process_time() - started, found


@torch.no_grad()
def _plain(
    run: Run, clean: list[Activations], noise: Tensor, places: Tensor, where: Tensor, unit: Unit, job: int
) -> float:
    """The metric of one corrupted row with one unit restored, by the whole model; `clean` is what rows gave before."""
    row = int(places[job])
    fact, name = run.facts[row], run.sites.output(unit)
    n = min(len(fact.prompt_ids), noise.shape[1])
    mine, before = where[job, -n:], clean[row].output(unit)[:, -n:]

    def restore(module: Any, given: Any, output: Tensor) -> Tensor:
        kept = before.where(mine[None, :, None], output[:, -n:])
        return torch.cat([output[:, :-n], kept], dim=1)

    handle = run.model.get_submodule(name).register_forward_hook(restore)
    try:
        with embeddings_with(run.model, noise[row : row + 1, -n:]):
            ids = torch.tensor([fact.prompt_ids], device=run.model.device)
            logits = run.model(input_ids=ids, use_cache=False).logits[:, -1]
    finally:
        handle.remove()
    return float(answer_metric(logits, [fact], CONFIG.metric))


if __name__ == "__main__":
    main()
