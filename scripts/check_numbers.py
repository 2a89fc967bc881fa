"""Where the numbers of README and guides come from: checked against the committed results, tables written from them.

    python scripts/check_numbers.py            lists disagreements and numbers without a source; exits with 1 if any
    python scripts/check_numbers.py --write    writes the tables between their markers, and results/README.md

A sentence with measured numbers stands in `CLAIMS` with the file that each comes from; `PLAIN` lists those that are no
measurements. Whatever number is left in the text has no source.
"""

from __future__ import annotations

import importlib
import io
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [
    str(ROOT / "scripts"),
    str(ROOT / "benchmarks"),
]  # neighbors, importable also where this file is a module

import results_page  # noqa: E402

Content = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """A piece of text with numbers in it.

    Attributes:
        text: with `{}` in the place of each number.
        file: under `results/`.
        values: the numbers, as they are written, from the file's content.
    """

    text: str
    file: str
    values: Callable[[Any], tuple[str, ...]]

    def written(self) -> str:
        """The text as it should stand."""
        return self.text.format(*self.values(read(self.file)))


def read(file: str) -> Any:
    """The content of a result, or the lines of a .jsonl."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line] if file.endswith(".jsonl") else json.loads(text)


def _once(d: Content) -> Content:
    (found,) = d["rounds"]
    return dict(found)


def _ours(d: Content, name: str) -> str:
    return f"{next(row for row in reversed(d['ours']) if row['name'] == name)['cpu_s_per_edit']:.1f}"


def _metric(d: Content, name: str) -> Any:
    return d["metrics"]["unlearn_facts"][name]


def _place(d: Content, localization: str, column: str) -> str:
    """The mean over seeds of what one localization reached with facts made unlikely."""
    own = [cell for cell in d["cells"] if cell["part"] == "unlearning" and cell["localization"] == localization]
    return f"{sum(cell['values'][column] for cell in own) / len(own):.2f}"


def _worth(d: Content, metric: str, part: str) -> str:
    """One number of a metric's worth."""
    return f"{next(own for own in d['metrics'] if own['metric'] == metric)[part]['value']:.2f}"


def _uds(d: Content, role: str, recipe: str = "") -> str:
    """The least UDS of the models of a role."""
    own = [
        m["values"]["attack_uds/forget_uds"] for m in d["models"] if m["role"] == role and recipe in ("", m["recipe"])
    ]
    return f"{1 - max(own):.2f}"


def _moments(d: Content, name: str) -> tuple[str, ...]:
    """Other facts and facts near that are right after an edit, and refusals, in per cent."""
    own = next(row for row in d["rows"] if row["name"] == name)["metrics"]
    return tuple(
        f"{100 * own[key]['value']:.0f}" for key in ("retain_accuracy", "neighbors_accuracy", "forget_refusal_rate")
    )


META, MOMENTS = "results/meta.json", "results/second_moments.json"
WHERE, PLACES = "results/localization_speed.json", "results/mechanistic_facts.json"
EASY, TARGETS, DEMO = "results/easyedit.json", "results/target_values.json", "results/demo/after.json"
MEMORIES = "results/memory_editors.json"
CLAIMS = (
    *(
        Claim(f"{text} | {{}} | {{}} | {{}} |", MOMENTS, lambda d, name=name: _moments(d, name))
        for text, name in (
            ("| (unedited)", "unedited"),
            ("| the model's own text, the default", "memit-self"),
            ("those asked left out", "memit-retain"),
            ("in the tables above)", "memit-others"),
        )
    ),
    Claim("from {} models of the pools and eight", META, lambda d: (str(d["n"]["knows"] + d["n"]["never"]),)),
    Claim(
        "faithful {}, robust {}, and it breaks no control",
        META,
        lambda d: (_worth(d, "mia_zlib_auc", "faithfulness"), _worth(d, "mia_zlib_auc", "robustness")),
    ),
    Claim(
        "faithful {} and {}, robust {} and {}",
        META,
        lambda d: tuple(
            _worth(d, metric, part)
            for part in ("faithfulness", "robustness")
            for metric in ("forget_rouge", "forget_probability")
        ),
    ),
    Claim(
        "NPO is at a UDS of {}, models that never knew at {} or more",
        META,
        lambda d: (_uds(d, "unlearned", "npo"), _uds(d, "never")),
    ),
    Claim(
        "faithful** ({}, {}), as published",
        META,
        lambda d: (
            _worth(d, "forget_truth_ratio", "faithfulness"),
            _worth(d, "forget_extraction_strength", "faithfulness"),
        ),
    ),
    Claim(
        "that never knew ({}, one model), where {} was published",
        META,
        lambda d: (
            _worth(d, "forget_extraction_strength", "relearning"),
            f"{next(m for m in d['metrics'] if 'extraction' in m['metric'])['published']['relearning']:.2f}",
        ),
    ),
    Claim(
        "Probability of paraphrases ({}) and refusals ({})",
        META,
        lambda d: (
            _worth(d, "forget_paraphrase_probability", "faithfulness"),
            _worth(d, "forget_refusal_rate", "faithfulness"),
        ),
    ),
    Claim(
        "held out by recipe and method ({} against {})",
        META,
        lambda d: tuple(f"{d['combined']['held_out'][own]['trust']['value']:.2f}" for own in ("combined", "single")),
    ),
    Claim(
        "makes SmolLM2-135M-Instruct forget {} facts and checks {} others. Six of its {} rows",
        DEMO,
        lambda d: (
            str(_metric(d, "forget_accuracy")["n"]),
            str(_metric(d, "retain_accuracy")["n"]),
            str(len(d["metrics"]["unlearn_facts"])),
        ),
    ),
    Claim(
        "queries it for all {} facts of",
        "tasks/facts/facts.jsonl",
        lambda d: (str(len(d)),),
    ),
    Claim(
        "| {} real-world facts of {} relations, written for this project",
        "tasks/facts/facts.jsonl",
        lambda d: (str(len(d)), str(len({record["relation"] for record in d}))),
    ),
    Claim(
        "makes it forget {} of those that it answers, and checks {} others",
        DEMO,
        lambda d: (str(_metric(d, "forget_accuracy")["n"]), str(_metric(d, "retain_accuracy")["n"])),
    ),
    Claim(
        "in either wording; {} of the {} retained facts still are",
        DEMO,
        lambda d: (
            f"{_metric(d, 'retain_accuracy')['value'] * _metric(d, 'retain_accuracy')['n']:.0f}",
            str(_metric(d, "retain_accuracy")["n"]),
        ),
    ),
    Claim(
        "calibrated on {} author-labeled answers",
        "tasks/refusal/answers.jsonl",
        lambda d: (str(len(d)),),
    ),
    Claim(
        "for all its answers: {} times, and {} times in a chat, as fast as one",
        "results/throughput.json",
        lambda d: tuple(f"{d['modes'][mode]['ratio']:.1f}" for mode in ("plain", "chat")),
    ),
    Claim(
        "adds {} ms to Python's start",
        "results/startup.json",
        lambda d: (f"{d['difference_milliseconds']:.1f}",),
    ),
    Claim(
        "make a page of {} MiB that opens in {} s",
        "results/report.json",
        lambda d: (f"{d['page_bytes'] / 2**20:.1f}", f"{d['opening_seconds']:.1f}"),
    ),
    Claim(
        "look-up token on: {} times less CPU time than the plain loop of the papers in bfloat16, {} times in float32",
        TARGETS,
        lambda d: (
            f"{_once(d)['plain_cpu_seconds'] / _once(d)['ours_bfloat16_cpu_seconds']:.1f}",
            f"{_once(d)['plain_cpu_seconds'] / _once(d)['ours_cpu_seconds']:.1f}",
        ),
    ),
    Claim(
        "in {} GB (the model included), and linear up to {} requests",
        TARGETS,
        lambda d: (f"{max(row['peak_bytes'] for row in d['curve']) / 1e9:.1f}", f"{d['curve'][-1]['n']:,}"),
    ),
    Claim(
        "Tracing takes {} times less CPU time",
        WHERE,
        lambda d: (f"{d['ratio']:.1f}",),
    ),
    Claim(
        "estimate takes {} times less than that",
        WHERE,
        lambda d: (f"{d['estimate']['ratio']:.0f}",),
    ),
    Claim(
        "{} of the forgotten facts are still answered where fact lookup points, {} in random MLPs and {} where all "
        "weights are trained; {}, {} and {} after training on half of them; and {}, {} and {} of the retained ones",
        PLACES,
        lambda d: tuple(
            _place(d, name, column)
            for column in ("forgotten: right", "relearned", "kept: right")
            for name in ("fact_lookup", "random_mlps", "none")
        ),
    ),
    Claim(
        "MEMIT needs {} CPU-seconds per edit against {}, AlphaEdit {} against {} (with one context; {} with three), "
        "ROME {} against {}",
        EASY,
        lambda d: (
            _ours(d, "memit D bf16"),
            f"{d['rows']['memit']['cpu_s_per_edit']:.1f}",
            _ours(d, "alphaedit D bf16, 1 context"),
            f"{d['rows']['alphaedit_qwen']['cpu_s_per_edit']:.1f}",
            _ours(d, "alphaedit D bf16, 3 contexts, again"),
            _ours(d, "rome preset bf16"),
            f"{d['rows']['rome']['cpu_s_per_edit']:.1f}",
        ),
    ),
    Claim(
        "An edit takes GRACE {}, MEMOIR {} and WISE {} CPU-seconds",
        MEMORIES,
        lambda d: tuple(
            f"{d['rows'][name]['cpu_seconds_per_edit']:.1f}"
            for name in ("GRACE, radius 1, 10", "MEMOIR, 10", "WISE, 10")
        ),
    ),
)
# Numbers that are no measurements: versions, sizes of published things, settings, codes.
PLAIN = (
    r"`40M` weights, `10%`",
    r"\b2\d{3}\.\d{5}\b",  # arXiv
    r"Python 3\.11 or newer",
    r"NPO, RMU and 23 more",  # counted by a test
    r"vLLM \(0\.32 and 0\.33;",
    r"4-bit-rounded",
    r"135-million-parameter",
    r"the 217 real authors and world facts",
    r"1, 10 and 50 facts",
    r"radius of 1\b",
    r"radius 1\b",
    r"Apache-2\.0",
    r"in its article 17\.",
    r"95 % interval",
    r"until 128 are known: 32 are measured",  # settings, and arithmetic
    r"of 32 a share of 0\.91",
    r"of 0\.76 to\s+0\.97\), 96 are",
    r"``: 64 of those",
    r"neighbors and 64 others; `` all 704",
    r"exits with 1 if one fails, 2 on",
    # headings, versions, an address, statuses and limits of a server, ranks that vLLM allows, and arithmetic
    r"## \d\. ",
    r"vLLM 0\.32 and 0\.33",
    r"127\.0\.0\.1",
    r"version 0\.\d\b",
    r"at most 8 MiB, or 16 KiB",  # limits, not measurements
    r"8, 16, 32, 64, 128, 256, 320, 512",
    r"its 680 labeled answers",  # checked in the README
    r"one for each 40 tokens",  # a setting
    r"never 0\b",
    r"not 1:",
    r"n = 2 no change",
    r"`` ends with 1 if",
    r"separation of 40 items gives 2e-23, of 400 items 1e-239",
    r"steps of 0\.083",
    r"What is 2 \+ 3\?",
    r"gives the answer away is 0 in every language",
    r"one in five \(95 %\)",
    r"so a 0 or a 1 has one",
    r"exact test for 0/1 scores",
    r"below 0\.05 by chance",
    r"\b4(00|03|04|13|15)\b",  # HTTP: statuses of refused requests
)


# Tables ----------------------------------------------------------------------------------------------------

FACTS_TABLE = "fifty facts"
_ROWS = {
    "MEMIT": ("results/editors.json", "MEMIT, 50"),
    "AlphaEdit": ("results/editors.json", "AlphaEdit, 50"),
    "EMMET": ("results/editors.json", "EMMET, 50"),
    "R-ROME, one after another": ("results/editors.json", "ROME (R-ROME), 50"),
    "UltraEdit": ("results/editors.json", "UltraEdit, 50"),
    "GRACE, radius 1": (MEMORIES, "GRACE, radius 1, 50"),
    "GRACE, calibrated radius": (MEMORIES, "GRACE, calibrated, 50"),
    "WISE": (MEMORIES, "WISE, 50"),
    "MEMOIR": (MEMORIES, "MEMOIR, 50"),
}
_COLUMNS = {
    "refuses": "forget_refusal_rate",
    "aligned": "forget_refusal_alignment",
    "reworded: refuses": "paraphrase_refusal_rate",
    "facts near: right": "neighbors_accuracy",
    "other facts: right": "retain_accuracy",
}


def facts_table() -> str:
    """What each editor does to fifty facts, per cent."""
    lines = ["| | " + " | ".join(_COLUMNS) + " |", "|---|" + "---:|" * len(_COLUMNS)]
    for name, (file, key) in _ROWS.items():
        row = read(file)["rows"][key]
        cells = ["–" if row.get(column) is None else f"{100 * row[column]:.0f}" for column in _COLUMNS.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {FACTS_TABLE: facts_table, "leaderboard": results_page.short_leaderboard}


def with_tables(text: str) -> str:
    """A document with its tables as the results have them."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, found, rest = text.partition(begin)
        if found:
            text = before + found + table() + "\n" + end + rest.partition(end)[2]
    return text


def demo_table() -> list[str]:
    """The lines of the demo's table of metrics, as a terminal shows them."""
    from rich.console import Console

    from unlearn_eval.results.comparison import compare
    from unlearn_eval.results.files import read_result
    from unlearn_eval.results.report.table import comparison_tables

    before, after = (read_result(ROOT / "results" / "demo" / f"{name}.json") for name in ("before", "after"))
    console = Console(width=100, file=io.StringIO(), color_system=None)
    for table in comparison_tables(compare(before, after)):
        console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.strip() for line in text.splitlines() if "±" in line]


# Checks ----------------------------------------------------------------------------------------------------


def documents() -> dict[str, str]:
    """The README, the guides and the concepts: path in the repository -> text."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md")), ROOT / "docs" / "concepts.md"]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def problems(texts: Mapping[str, str]) -> list[str]:
    """What does not agree with the results in the documents, and which of their numbers have no source."""
    found, prose = [], {name: _prose(text) for name, text in texts.items()}
    for name, text in texts.items():
        if with_tables(text) != text:
            found.append(f"{name}: a table is not as the results have it: python scripts/check_numbers.py --write")
    for name in TABLES:
        if not any(f"<!-- {name} -->" in text for text in texts.values()):
            found.append(f"no document has the table {name}")
    rows = demo_table()
    shown = {name: {line.strip() for line in text.splitlines()} for name, text in texts.items()}
    found += [f"the demo's table has not: {line}" for line in rows if not any(line in own for own in shown.values())]
    chosen = {line for line in shown.get("README.md", ()) if " ±" in line}
    found += [f"README.md: no row of the demo's table: {line}" for line in sorted(chosen - set(rows))]
    for claim in CLAIMS:
        written = " ".join(claim.written().split())
        if not any(written in text for text in prose.values()):
            found.append(f"not in the text, but in {claim.file}: {written}")
        prose = {name: text.replace(written, " ") for name, text in prose.items()}
    return found + [f"{name}: {line}" for name, text in prose.items() for line in _unsourced(text, PLAIN)]


def _unsourced(prose: str, plain: Sequence[str]) -> list[str]:
    """The numbers of a text that are none of the plain ones."""
    for pattern in plain:
        prose = re.sub(pattern, " ", prose)
    return [
        f"a number without a source: ...{prose[max(0, match.start() - 50) : match.end() + 30]}..."
        for match in re.finditer(r"(?<![\w.,-])\d[\d,]*(?:\.\d+)?(?![\w-])", prose)
    ]


def stale_tables() -> list[str]:
    """The tables under results/ that are not those of the numbers beside them."""
    found = results_page.stale()
    for name in ("editors", "memory_editors", "serving", "unlearners"):
        made = importlib.import_module(name).table(read(f"results/{name}.json"))
        if made != (ROOT / "results" / f"{name}.md").read_text(encoding="utf-8"):
            found.append(f"results/{name}.md is not the table of results/{name}.json: run benchmarks/{name}.py")
    return found


def _prose(text: str) -> str:
    """Without code, links, tables that are written, and line breaks."""
    text = re.sub(r"```.*?```", " ", text, flags=re.DOTALL)
    text = re.sub(r"<!-- [^>]* -->.*?<!-- end -->", " ", text, flags=re.DOTALL)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    text = re.sub(r"`[^`]*`", "``", text)
    return " ".join(text.split())


def main() -> int:
    """Check the documents and the tables under results/; 1 if anything is wrong."""
    texts = documents()
    if "--write" in sys.argv[1:]:
        texts = {name: with_tables(text) for name, text in texts.items()}
        for name, text in texts.items():
            (ROOT / name).write_text(text, encoding="utf-8")
        results_page.write()
    found = problems(texts) + stale_tables()
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
