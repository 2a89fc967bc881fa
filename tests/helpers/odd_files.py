"""Odd files of every kind that a stranger may send: edits, results, localizations, studies, questions.

Each is a sound file with one thing changed. A changed file of an edit is listed with its new SHA-256, because who made
the edit made the list.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from report_data import records, write_run
from safetensors.torch import load_file, save_file
from study_files import FACTS, memit

from unlearn_eval.edits.base import EditInfo
from unlearn_eval.edits.dense import DenseEdit
from unlearn_eval.edits.load import describe_base
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.edits.memory.codebook import Codebook
from unlearn_eval.edits.memory.edit import MemoryEdit
from unlearn_eval.edits.memory.residual_memory import ResidualMemory
from unlearn_eval.edits.memory.side_memories import SideMemories

IDS = ["capital_of/france", "capital_of/germany"]
OUT = "model.layers.1.mlp.down_proj"
EDITS = ("low_rank", "dense", "grace", "wise", "memoir")
HUGE = "9" * 400  # a whole number that no float holds
VALUES = (
    *(None, True, -1, 0, 2.5, 1e300, -(2**63), 2**64, "", "x", "\x00", "../../../etc/passwd", "/etc/shadow"),
    *("a" * 5000, "[/INST] [bold]", "\x1b]0;owned\x07\x1b[31m", [], [1], ["x"], [[]], [None], {}, {"x": 1}, {"": None}),
    *(int(HUGE), "half \ud800 of a pair", "2026-01-01", "constructor", "__proto__"),
)
TEXTS = {
    "empty": lambda text: "",
    "blank": lambda text: " \n",
    "cut off": lambda text: text[: len(text) // 2],
    "twice": lambda text: text + text,
    "deep": lambda text: "[" * 100_000,
    "a number": lambda text: "1",
    "null": lambda text: "null",
    "a list": lambda text: "[]",
    "a text": lambda text: '"x"',
    "an empty table": lambda text: "{}",
    "nan": lambda text: _number(text, "NaN"),
    "infinity": lambda text: _number(text, "-Infinity"),
    "1e999": lambda text: _number(text, "1e999"),
    "many digits": lambda text: _number(text, "1" * 5000),
    "not utf-8": lambda text: text.encode() + b"\xff\xfe",
    "nul": lambda text: "\x00" * 64,
    "utf-16": lambda text: text.encode("utf-16"),
}


@dataclass(frozen=True)
class Odd:
    """One odd file.

    Attributes:
        name: what is odd.
        kind: of the file.
        write: writes it below a folder and returns the commands that read it.
    """

    name: str
    kind: str
    write: Callable[[Path], list[list[str]]]


# Sound ones ------------------------------------------------------------------------------------------------


def sound_edit(kind: str, loaded: Any, folder: Path) -> Path:
    """A small edit of a tiny Llama."""
    info = EditInfo(
        "memit" if kind == "low_rank" else kind,
        {"layers": [1]},
        base=describe_base(loaded),
        requests={"n": 2, "sets": [{"name": "facts", "hash": None, "ids": IDS}], "chat": False, "target": "idk"},
        seed=0,
        versions={"torch": "2"},
        seconds=1.5,
        peak_memory_bytes=10**9,
        notes={
            "self_check": {"n": 2, "n_took": 1, "target_probability_before": 0.1, "target_probability_after": 0.9},
            "weight_norms": {OUT: 3.5},
            "changes": {f"{OUT}.weight": {"frobenius": 1.5, "weight_norm": 3.0}},
        },
    )
    texts = {"targets.jsonl": json.dumps({"id": IDS[0], "target": "I don't know.", "source": "idk"}) + "\n"}
    generator = torch.Generator().manual_seed(0)
    weight = loaded.model.get_submodule(OUT).weight
    d_out, d_in = weight.shape

    def random_tensor(*shape):
        return 0.01 * torch.randn(shape, generator=generator)

    owners = ((IDS[0],), (IDS[1],))
    masks = torch.zeros(2, d_in, dtype=torch.bool)
    masks[0, :4] = masks[1, 4:8] = True
    made: Any = {
        "low_rank": lambda: LowRankEdit(
            {OUT: (random_tensor(d_out, 2), random_tensor(2, d_in))},
            info,
            state={"keys.1": random_tensor(2, d_in)},
            texts=texts,
        ),
        "dense": lambda: DenseEdit({f"{OUT}.weight": weight + random_tensor(d_out, d_in)}, info, texts),
        "grace": lambda: MemoryEdit(
            OUT,
            Codebook(
                random_tensor(2, d_in), random_tensor(2, d_out), torch.ones(2), torch.arange(2), ((1, 2), (3,)), owners
            ),
            info,
            texts,
        ),
        "wise": lambda: MemoryEdit(
            OUT,
            SideMemories(
                (torch.tensor([0, 5]), torch.tensor([1, 2])),
                (random_tensor(2), random_tensor(2)),
                torch.ones(2),
                (d_out, d_in),
                owners,
                mode="retrieve",
                prompts=(((1, 2),), ((3, 4),)),
            ),
            info,
            texts,
        ),
        "memoir": lambda: MemoryEdit(
            OUT,
            ResidualMemory(
                random_tensor(d_out, d_in),
                masks,
                torch.randperm(d_in, generator=generator),
                random_tensor(d_in),
                torch.tensor([0.5]),
                ((1,), (2,)),
                owners,
            ),
            info,
            texts,
        ),
    }[kind]()
    return made.save(folder, loaded.tokenizer, loaded.model.config)


def sound_localization() -> dict[str, Any]:
    """What `unlearn-eval localize` writes."""
    return {
        "kind": "components",
        "version": 1,
        "method": "fact_lookup",
        "modules": [OUT],
        "mlp_layers": [1],
        "n_weights": 384,
        "n_weights_in_blocks": 4000,
        "n_layers": 4,
        "budget": {"given": "1", "n_weights": 384},
        "ranking": [{"kind": "mlp", "layer": 1, "score": 0.5}, {"kind": "mlp", "layer": 0, "score": None}],
        "tables": {"effects": {"roles": ["subject"], "mlp": [[0.1], [0.2], [None], [0.4]]}, "probe_accuracy": {}},
        "settings": {"samples": 3},
        "seed": 0,
        "model": {"id": "tiny", "architecture": "LlamaForCausalLM", "weights": "a" * 64},
        "facts": {"set": "facts", "hash": "b" * 64, "n": 2, "skipped": {}, "chat": False},
        "notes": {"way": "noise"},
        "seconds": 1.0,
        "versions": {"torch": "2"},
    }


# Changes ---------------------------------------------------------------------------------------------------


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON document."""
    if path:
        yield path
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in pairs:
        yield from places(value, (*path, key))


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a place; `...` removes it."""
    content = copy.deepcopy(content)
    parent = content
    for step in path[:-1]:
        parent = parent[step]
    if value is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return content


def a_change(content: Any, generator: random.Random) -> tuple[str, str | bytes]:
    """One change of a JSON document, drawn: its name, and the text of the file."""
    text = json.dumps(content)
    draw = generator.random()
    if draw < 0.2:
        name = generator.choice(sorted(TEXTS))
        return name, TEXTS[name](text)
    path = generator.choice(sorted(places(content), key=str))
    where = ".".join(map(str, path))
    if draw < 0.3:
        return f"without {where}", json.dumps(changed(content, path, ...))
    if draw < 0.4:
        return f"unknown beside {where}", json.dumps(
            changed(content, (*path[:-1], "unknown"), 1) if not isinstance(path[-1], int) else content
        )
    value = generator.choice(VALUES)
    return f"{where} = {str(value)[:30]!r}", json.dumps(changed(content, path, value))


def tensor_changes() -> dict[str, Callable[[dict[str, torch.Tensor], str], dict[str, torch.Tensor]]]:
    """What may be done to one tensor of a file."""

    def with_(change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        return lambda tensors, name: tensors | {name: change(tensors[name]).contiguous()}

    def put(value: float) -> Any:
        def change(tensor: torch.Tensor) -> torch.Tensor:
            tensor = tensor.clone()
            if tensor.numel():
                tensor.view(-1)[0] = value if tensor.is_floating_point() else -7
            return tensor

        return with_(change)

    return {
        "nan": put(float("nan")),
        "infinity": put(float("inf")),
        "large": put(3e38),
        "one row less": with_(lambda t: t[:-1].clone()),
        "one row more": with_(lambda t: torch.cat([t, t[:1]])),
        "flat": with_(lambda t: t.reshape(-1)),
        "one dimension more": with_(lambda t: t[None]),
        "none": with_(lambda t: t[:0].clone()),
        "scalar": with_(lambda t: torch.tensor(1.0)),
        "other type": with_(lambda t: t.to(torch.int64 if t.is_floating_point() else torch.float32)),
        "bool": with_(lambda t: t.bool()),
        "bfloat16": with_(lambda t: t.to(torch.bfloat16)),
        "missing": lambda tensors, name: {k: t for k, t in tensors.items() if k != name},
        "another": lambda tensors, name: tensors | {"another": torch.ones(3)},
        "renamed": lambda tensors, name: {k if k != name else f"x.{k}": t for k, t in tensors.items()},
    }


def _broken_tensors(path: Path, how: str) -> None:
    """A safetensors file that is not one, or whose header lies."""
    content = path.read_bytes()
    n = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + n])
    name = next(key for key in header if key != "__metadata__")
    if how == "long header":
        content = (2**62).to_bytes(8, "little") + content[8:]
    elif how == "cut off":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = b""
    elif how == "pickle":
        content = b"\x80\x04cos\nsystem\n(S'true'\ntR."
    else:
        header[name] |= {"shape": [2**40, 2**20]} if how == "vast" else {"data_offsets": [0, 2**40]}
        text = json.dumps(header).encode()
        content = len(text).to_bytes(8, "little") + text + content[8 + n :]
    path.write_bytes(content)


BROKEN = ("long header", "cut off", "empty", "pickle", "vast", "offsets")


def relist(folder: Path) -> None:
    """`edit.json` lists its files as they are now."""
    path = folder / "edit.json"
    content = json.loads(path.read_text())
    content["files"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in content["files"]
        if (folder / name).is_file()
    }
    path.write_text(json.dumps(content))


def _number(text: str, number: str) -> str:
    """The text with another number in place of its last one."""
    places_ = [i for i, c in enumerate(text) if c.isdigit() and text[i - 1] == " " and text[i - 2] == ":"]
    if not places_:
        return text[:-1] + f', "more": {number}}}'
    start = end = places_[-1]
    while end < len(text) and (text[end].isdigit() or text[end] in ".e+-"):
        end += 1
    return text[:start] + number + text[end:]


def _write(path: Path, text: str | bytes) -> None:
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))


# All of them -----------------------------------------------------------------------------------------------


def odd_edits(sound: dict[str, Path], model: Path, n: int, generator: random.Random) -> Iterator[Odd]:
    """Edits of every kind in turn: their JSON, their tensors, their texts."""
    changes = tensor_changes()
    for i in range(n):
        kind = EDITS[i % len(EDITS)]
        source = sound[kind]
        seed, draw = generator.random(), generator.random()

        def write(
            folder: Path, source: Path = source, kind: str = kind, seed: float = seed, draw: float = draw, i: int = i
        ) -> list[list[str]]:
            own = random.Random(seed)
            place = folder / "edit"
            shutil.copytree(source, place)
            jsons = [name for name in ("dense.json", "memory.json", "adapter_config.json") if (place / name).is_file()]
            tensors = sorted(path.name for path in place.glob("*.safetensors"))
            if draw < 0.4:
                name = "edit.json"
            elif draw < 0.6:
                name = own.choice(jsons)
            elif draw < 0.65:
                name = "targets.jsonl"
            elif draw < 0.7:
                name = "config.json"
            else:
                name = own.choice(tensors)
            if name == "targets.jsonl":
                how, text = a_change(json.loads((place / name).read_text()), own)
                _write(place / name, text)
            elif name.endswith(".json"):
                how, text = a_change(json.loads((place / name).read_text()), own)
                _write(place / name, text)
            elif draw < 0.75:
                how = own.choice(BROKEN)
                _broken_tensors(place / name, how)
            else:
                found = load_file(place / name)
                tensor, how = own.choice(sorted(found)), own.choice(sorted(changes))
                save_file(changes[how](found, tensor), str(place / name))
                how = f"{tensor}: {how}"
            if name != "edit.json":
                relist(place)
            (folder / "what").write_text(f"{kind} {name}: {how}")
            commands = [["inspect", str(place)], ["inspect", "--json", str(place)]]
            if i % 2 == 0:
                commands.append(["export", str(place), "--merged", str(folder / "merged"), "--model", str(model)])
            if i % 7 == 0:
                commands.append(evaluation(place, model, folder))
            if i % 7 == 1:
                commands.append(
                    [
                        "edit",
                        "--continue",
                        str(place),
                        "--model",
                        str(model),
                        "--output",
                        str(folder / "more"),
                        "--limit",
                        "1",
                        "--set",
                        "layers=1",
                    ]
                )
            if i % 7 == 2:
                commands.append(
                    [
                        "attack",
                        "quantize",
                        "--edit",
                        str(place),
                        "--model",
                        str(model),
                        "--output",
                        str(folder / "attack.json"),
                        "--forget",
                        "facts",
                        "--limit",
                        "1",
                    ]
                )
            if i % 7 == 3 and kind in ("grace", "wise", "memoir"):
                commands.append(["inspect", str(place), "--ask", "What is it?", "--model", str(model)])
            return commands

        yield Odd(f"edit {i}", f"edit: {kind}", write)


def evaluation(edit: Path, model: Path, folder: Path) -> list[str]:
    """The command that evaluates an edit, briefly."""
    return [
        *("eval", "--edit", str(edit), "--tasks", "unlearn_facts", "--model", str(model), "--limit", "1"),
        *("--gen_kwargs", "max_gen_toks=2", "--output", str(folder / "eval.json"), "--metadata", '{"encoder": "off"}'),
        *("--device", "cpu", "--model_args", "dtype=float32"),
    ]


def odd_results(n: int, generator: random.Random) -> Iterator[Odd]:
    """Results beside sound ones."""
    for i in range(n):
        seed = generator.random()

        def write(folder: Path, seed: float = seed, i: int = i) -> list[list[str]]:
            own = random.Random(seed)
            results = folder / "results"
            write_run(results, "base", records(4, random.Random(0)))
            good = write_run(results, "good", records(4, random.Random(1)), "rome")
            odd = write_run(results, "odd", records(4, random.Random(2)), "memit")
            what = odd if own.random() < 0.8 else next(results.glob("odd.*.samples.jsonl"))
            if what == odd:
                content = json.loads(odd.read_text())
                content["robustness"] = ROBUSTNESS if own.random() < 0.3 else {}
                how, text = a_change(
                    content if content["robustness"] else {k: v for k, v in content.items() if k != "robustness"}, own
                )
                _write(odd, text)
            else:
                lines = what.read_text().splitlines()
                how, text = a_change(json.loads(lines[0]), own)
                _write(
                    what,
                    b"\n".join(
                        [
                            text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"),
                            *map(str.encode, lines[1:]),
                        ]
                    ),
                )
                content = json.loads(odd.read_text())
                content["samples"]["unlearn_facts"]["sha256"] = hashlib.sha256(what.read_bytes()).hexdigest()
                odd.write_text(json.dumps(content))
            (folder / "what").write_text(f"{what.name}: {how}")
            return [
                ["report", str(results), "--output", str(folder / "report.html")],
                ["check", str(odd), "--require", "forget_accuracy<0.9"],
                ["check", str(good), "--base", str(odd), "--require", "forget_accuracy<0.9*base"],
                ["compare", str(good), str(odd)],
                ["compare", str(odd), str(good), "--format", "markdown"],
            ]

        yield Odd(f"result {i}", "result", write)


ROBUSTNESS: dict[str, Any] = {
    "attack_quantize": {
        "attack": "quantize",
        "levels": [],
        "skipped": [{"what": "int4", "reason": "x"}],
        "curves": {},
    }
}


def odd_localizations(model: Path, n: int, generator: random.Random) -> Iterator[Odd]:
    """Localizations, beside a sound result for the report."""
    for i in range(n):
        seed = generator.random()

        def write(folder: Path, seed: float = seed) -> list[list[str]]:
            how, text = a_change(sound_localization(), random.Random(seed))
            results = folder / "results"
            write_run(results, "base", records(4, random.Random(0)))
            path = results / "where.json"
            _write(path, text)
            (folder / "what").write_text(how)
            return [
                ["report", str(results), "--output", str(folder / "report.html")],
                [
                    "edit",
                    "--editor",
                    "npo",
                    "--components",
                    str(path),
                    "--output",
                    str(folder / "e"),
                    "--model",
                    str(model),
                ],
            ]

        yield Odd(f"localization {i}", "localization", write)


def odd_studies(model: Path, n: int, generator: random.Random) -> Iterator[Odd]:
    """Study files; only planned."""
    content = {
        "name": "tiny",
        "models": [{"model": str(model), "dtype": "float32"}],
        "device": "cpu",
        "editors": [memit(model)],
        "recipes": ["plain"],
        "forget": ["facts"],
        "retain": "facts",
        "sizes": [2],
        "seeds": [0],
        "kept": 2,
        "tasks": [FACTS],
        "batch_size": 4,
        "attacks": [{"attack": "quantize", "settings": {}}],
        "known": False,
        "show": ["forget_accuracy"],
        "chat": False,
    }
    for i in range(n):
        seed = generator.random()

        def write(folder: Path, seed: float = seed) -> list[list[str]]:
            how, text = a_change(content, random.Random(seed))
            path = folder / "study.yaml"
            _write(path, text if isinstance(text, bytes) else _as_yaml(text))
            (folder / "what").write_text(how)
            return [["run", str(path), "--dry-run", "--output", str(folder / "out")]]

        yield Odd(f"study {i}", "study", write)


def _as_yaml(text: str) -> str:
    try:
        return yaml.safe_dump(json.loads(text), allow_unicode=False)
    except (ValueError, RecursionError, yaml.YAMLError):
        return text


def odd_questions(model: Path, n: int, generator: random.Random) -> Iterator[Odd]:
    """Forget sets in JSON lines and CSV, and targets."""
    record = {
        "id": "a",
        "question": "Who wrote it?",
        "answer": "Ann Lee",
        "paraphrases": ["By whom?"],
        "subject": "it",
        "aliases": ["Lee"],
    }
    for i in range(n):
        seed = generator.random()

        def write(folder: Path, seed: float = seed, i: int = i) -> list[list[str]]:
            own = random.Random(seed)
            if i % 4 == 3:
                how, text = a_change({"question": record["question"], "target": "Nobody."}, own)
                path = folder / "targets.jsonl"
                _write(path, text)
                (folder / "what").write_text(f"targets {how}")
                return [
                    [
                        "edit",
                        "--target",
                        str(path),
                        "--output",
                        str(folder / "e"),
                        "--model",
                        str(model),
                        "--limit",
                        "1",
                        "--set",
                        "layers=1",
                        "--set",
                        "target.steps=1",
                    ]
                ]
            how, text = a_change(record, own)
            path = folder / ("set.jsonl" if i % 4 < 2 else "set.csv")
            if path.suffix == ".csv" and isinstance(text, str):
                text = "question,answer\n" + text
            _write(path, text)
            (folder / "what").write_text(f"{path.name} {how}")
            return [
                [
                    "targets",
                    "--forget",
                    str(path),
                    "--target",
                    "idk",
                    "--output",
                    str(folder / "t.jsonl"),
                    "--model",
                    str(model),
                ]
            ]

        yield Odd(f"questions {i}", "questions", write)
