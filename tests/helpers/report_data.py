"""Result files to report on: as many as wanted, made by a seed, with answers and scores that agree."""

import random

from unlearn_eval.results.files import write_result
from unlearn_eval.results.schema import Metric, Result

TASK = "unlearn_facts"
METHODS = ("memit", "alphaedit", "emmet", "rome", "grace", "wise", "npo", "rmu", "ultraedit", "memoir")
_SYLLABLES = [first + second for first in "bdfgklmnprstvz" for second in ("a", "en", "i", "or", "u")]
# Drawn evenly from two thousand words, a text is about as hard to compress as English.
_FIXED = random.Random(0)
WORDS = tuple("".join(_FIXED.choices(_SYLLABLES, k=_FIXED.randint(1, 4))) for _ in range(2000))


def metric(scores, higher_is_better):
    n = len(scores)
    mean = sum(scores) / n
    variance = sum((s - mean) ** 2 for s in scores) / (n - 1)
    return Metric(mean, (variance / n) ** 0.5, n, 0, None, higher_is_better)


def result(name, metrics, method=None, seed=0, model_id="tiny", forget_set="facts", **changes):
    edit = None
    if method:
        edit = {
            "editor": method,
            "config": {"layers": [1]},
            "seed": seed,
            "base": {"canonical_hash": "b" * 64},
            "requests": {"n": 12, "forget_set": forget_set, "forget_set_hash": "f" * 64, "target": "idk"},
            "seconds": 10.0 + seed,
            "peak_memory_bytes": 2 * 10**9,
        }
    values = {
        "kind": "evaluation",
        "status": "complete",
        "created": "2026-01-02T03:04:05+00:00",
        "command": ["unlearn-eval", "eval", "--output", f"{name} x.json"],
        "config_as_passed": {"seed": seed},
        "model": {"id": model_id, "weights_hash": "a" * 64, "canonical_weights_hash": "b" * 64, "dtype": "float32"},
        "edit": edit,
        "data": {TASK: {"hash": "d" * 64}},
        "metrics": {TASK: metrics},
        "provenance": {
            "unlearn_eval": "0.1.0",
            "git": {"commit": "c" * 40, "dirty": False},
            "packages": {"torch": "2"},
        },
        "seed": seed,
        "timing": {"evaluation_seconds": 5.0 + seed},
    }
    return Result(**(values | changes))


def write_run(folder, name, records, method=None, **changes):
    """A run whose metrics are the means of its records' scores."""
    names = [key for key in records[0] if key.startswith(("forget_", "retain_"))]
    means = {}
    for key in names:
        scores = [record[key] for record in records if record[key] is not None]
        means[key] = metric(scores, key in ("retain_accuracy", "forget_refusal_rate", "retain_probability"))
    return write_result(result(name, means, method, **changes), folder / f"{name}.json", {TASK: records})


def records(n_questions, generator, leak=0.5, texts=None):
    """Answers of one run: every other question is to be forgotten."""
    made = []
    for i in range(n_questions):
        forget = i % 2 == 0
        accurate = float(generator.random() < (leak if forget else 0.9))
        text = texts[i] if texts else " ".join(generator.choices(WORDS, k=18)) + f" {generator.random():.6f}"
        made.append(
            {
                "id": f"{'forget' if forget else 'retain'}/{i}",
                "doc_id": i,
                "doc": {
                    "question": f"What is the answer to question number {i}?",
                    "answer": f"answer {i}",
                    "split": "forget" if forget else "retain",
                },
                "target": f"answer {i}",
                "resps": [[text]],
                "doc_hash": f"{i:064d}",
                "forget_accuracy": accurate if forget else None,
                "forget_refusal_rate": 1 - accurate if forget else None,
                "forget_leak_rate": accurate if forget else None,
                "forget_gibberish_rate": 0.0 if forget else None,
                "retain_accuracy": None if forget else accurate,
                "retain_probability": None if forget else round(generator.random(), 6),
            }
        )
    return made


def write_many(folder, n_runs, n_questions, seed=0):
    """One unedited run and many edited ones, each with answers of its own."""
    generator = random.Random(seed)
    write_run(folder, "base", records(n_questions, generator, leak=0.95))
    for i in range(1, n_runs):
        method = METHODS[i % len(METHODS)]
        write_run(folder / method, f"run-{i:03d}", records(n_questions, generator, leak=i / n_runs), method, seed=i)
    return folder
