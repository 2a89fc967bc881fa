"""What thousands of requests cost in one batch: results/many_requests.json and .md, one row at a time.

10, 100, 1,000 and, if asked for, 10,000 requests on invented people are edited into SmolLM2-135M-Instruct at once, each
size in a process of its own on one thread: CPU seconds of the edit, the most memory above the loaded model, the size of
the edit on disk, and the share of targets that are the most likely answer afterwards. The exponent between two sizes is
the slope of the cost on logarithmic axes: 1 is linear.

Second moments are made beforehand with few keys, and target values take few steps (`SETTINGS`): this measures how cost
grows, not how well an editor does. Rows that are there are not made again. Options: editors by name (all by default);
--sizes 10 100 1000.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from editing import forget_peak_memory

from unlearn_eval import make_edit
from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.harness.patching import quiet_libraries
from unlearn_eval.models.load import load_model
from unlearn_eval.utils.json_files import dumps, write_all
from unlearn_eval.utils.provenance import peak_memory_bytes, provenance

RESULT = Path("results/many_requests.json")
SETTINGS: dict[str, dict[str, str]] = {
    "memit": {"keys_per_dimension": "2", "target.steps": "5"},
    "alphaedit": {"keys_per_dimension": "2", "target.steps": "5"},
    "ultraedit": {},
    "memoir": {"steps": "5"},
}
FIRST = (
    "Ada Ben Cora Dov Elin Finn Gita Hugo Ines Jan Kira Lew Mona Nils Olga Pavel Rosa Sven Tara Uwe Vera Wim".split()
)
MIDDLE = "Alder Birch Cedar Dorn Esche Fern Ginster Hasel Ilex Klee Linde Malve Nelke Olive Pinie Quitte Rose".split()
LAST = "Bauer Dahl Ekman Farkas Grau Holm Iversen Juhl Kron Lund Meyer Novak Ostrow Perl Quist Roth Stein Thorn".split()
TOWNS = ("Imberfield", "Kestrel Bay", "Orsa", "Tornbridge", "Velden", "Marrow Hill", "Lindholm", "Cazal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("editors", nargs="*", default=list(SETTINGS))
    parser.add_argument("--sizes", nargs="*", type=int, default=[10, 100, 1000])
    parser.add_argument("--measure", action="store_true", help="measure one size of one editor in this process")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measured(arguments.editors[0], arguments.sizes[0])))
        return
    for editor in arguments.editors:
        for n in sorted(arguments.sizes):
            done = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {"rows": {}}
            rows = done["rows"].setdefault(editor, {})
            if str(n) in rows:
                continue
            command = [sys.executable, __file__, editor, "--measure", "--sizes", str(n)]
            ended = subprocess.run(command, capture_output=True, text=True, check=True)
            rows[str(n)] = json.loads(ended.stdout.splitlines()[-1])
            done = {"what": "What 10 to 10,000 requests in one batch cost", "settings": SETTINGS} | done
            done["provenance"] = provenance()
            write_all({RESULT.name: dumps(done, indent=2) + "\n", f"{RESULT.stem}.md": table(done)}, RESULT.parent)
            print(editor, n, rows[str(n)], flush=True)


def invented(n: int) -> ForgetSet:
    """So many facts on people who do not exist."""
    items = []
    for i in range(n):
        j, last = divmod(i, len(LAST))
        j, middle = divmod(j, len(MIDDLE))
        j, first = divmod(j, len(FIRST))
        name = f"{FIRST[first]} {MIDDLE[middle]} {LAST[last]}" + (f" {j + 1}" if j else "")
        town = TOWNS[(7 * i) % len(TOWNS)]
        items.append(ForgetItem(f"person/{i}", f"Where was {name} born?", town, subject=name))
    return ForgetSet("invented people", tuple(items))


def measured(editor: str, n: int) -> dict[str, Any]:
    """One size: a small edit first, which loads the libraries and makes the second moments."""
    torch.set_num_threads(1)
    recipe = Recipe(n_contexts=0)
    with quiet_libraries(), TemporaryDirectory() as folder:
        loaded = load_model("default")
        make_edit(loaded, invented(2), editor, SETTINGS[editor], recipe, unrelated=False)
        forget = invented(n)
        forget_peak_memory()
        start, started = peak_memory_bytes(), time.process_time()
        edit = make_edit(loaded, forget, editor, SETTINGS[editor], recipe, unrelated=False)
        seconds, peak = time.process_time() - started, peak_memory_bytes()
        place = edit.save(Path(folder) / "edit")
        size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    check = edit.info.self_check
    return {
        "cpu_seconds": round(seconds, 2),
        "peak_bytes": peak - start,
        "edit_bytes": size,
        "took": round(check.n_took / check.n, 4),
    }


def table(done: Mapping[str, Any]) -> str:
    """A row for each editor and size, and the exponents between sizes."""
    lines = [
        "# Thousands of requests in one batch",
        "",
        "SmolLM2-135M-Instruct, float32, one thread; requests on invented people, all at once; second moments made "
        f"before, few steps for each target ({_settings(done['settings'])}): how the cost grows, not how well a method "
        "does. *Memory* is the most above the loaded model. *Took*: the target is the most likely answer. An exponent "
        "of 1 is linear: as much for each request at any size. Made by `benchmarks/many_requests.py`.",
        "",
        "| editor | requests | CPU seconds | for each request | exponent | memory | exponent | edit on disk | took |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for editor, rows in done["rows"].items():
        sizes = sorted(map(int, rows))
        slopes = {
            b: {key: _slope(rows, a, b, key) for key in ("cpu_seconds", "peak_bytes")} for a, b in pairwise(sizes)
        }
        for n in sizes:
            row, slope = rows[str(n)], slopes.get(n, {})
            cells = [
                editor,
                f"{n:,}",
                f"{row['cpu_seconds']:.1f}",
                f"{row['cpu_seconds'] / n:.3f}",
                slope.get("cpu_seconds", "–"),
                f"{row['peak_bytes'] / 1e6:,.0f} MB",
                slope.get("peak_bytes", "–"),
                f"{row['edit_bytes'] / 1e6:.1f} MB",
                f"{row['took']:.2f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _slope(rows: Mapping[str, Any], small: int, large: int, key: str) -> str:
    one, other = rows[str(small)][key], rows[str(large)][key]
    return f"{math.log(other / one) / math.log(large / small):.2f}" if min(one, other) > 0 else "–"


def _settings(settings: Mapping[str, Mapping[str, str]]) -> str:
    said = {name: ", ".join(f"{key} {value}" for key, value in own.items()) for name, own in settings.items()}
    return "; ".join(f"{name}: {text}" for name, text in said.items() if text)


if __name__ == "__main__":
    main()
