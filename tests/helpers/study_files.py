"""A tiny model on disk and studies on it, for the tests of studies."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml
from tiny_models import tiny_model, tiny_tokenizer

TEXT = "What is the capital of Spain? The capital of Spain is Madrid. Who wrote it? Nobody knows. " * 60
FACTS = {"task": "unlearn_facts", "gen_kwargs": {"max_gen_toks": 4}, "metadata": {"encoder": "off"}}
NPO = {"editor": "npo", "settings": {"steps": 2, "components": "layers.1.mlp.down_proj"}, "recipes": ["plain"]}


def write_model(folder: Path) -> Path:
    """A tiny random Llama with its tokenizer."""
    tiny_model("llama", exact_norms=False).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    return folder


def memit(model: Path, **settings: object) -> dict[str, object]:
    """MEMIT that takes a second on the tiny model."""
    fast = {"layers": [1], "target.steps": 2, "keys_per_dimension": 1, "text": str(model / "text.txt")}
    return {"editor": "memit", "settings": fast | settings}


def study_content(model: Path, **changes: object) -> dict[str, object]:
    """MEMIT and NPO on two facts; changes are set over it."""
    content = {
        "models": str(model),
        "device": "cpu",
        "editors": [memit(model), NPO],
        "recipes": ["plain"],
        "forget": "facts",
        "retain": "facts",
        "sizes": [2],
        "kept": 2,
        "tasks": [FACTS],
    }
    return {key: value for key, value in (content | changes).items() if value is not None}


def write_study(path: Path, model: Path, **changes: object) -> Path:
    """The same in a file."""
    path.write_text(yaml.safe_dump(study_content(model, **changes)), encoding="utf-8")
    return path


def numbers(folder: Path) -> dict[str, object]:
    """Everything that a study measured, by the name of the cell, without times, places and hashes of files."""
    from unlearn_eval.results.files import read_result, read_samples

    found = {}
    for path in sorted(folder.glob("runs/*/result.json")):
        result = read_result(path)
        samples = {task: read_samples(path, task) for task in result.samples}
        metrics = json.loads(json.dumps(result.metrics, default=vars))
        found[path.parent.name] = [result.status, result.model.get("weights_hash"), metrics, samples]
    return found


def command(*arguments: object) -> list[str]:
    """`unlearn-eval ARGUMENTS` in this environment."""
    return [sys.executable, "-m", "unlearn_eval.cli", *map(str, arguments)]
