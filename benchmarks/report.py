"""How large a report of many runs is, how long it takes to make, and how soon Chromium shows it from disk.

python benchmarks/report.py [--runs 200] [--questions 400] [--output results/report.json]

The runs are made up (tests/helpers): different texts of eighteen words, about as hard to compress as English.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from unlearn_eval.results.report.page import write_page
from unlearn_eval.results.runs import read_runs
from unlearn_eval.utils.provenance import provenance

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from report_data import write_many  # noqa: E402


def opening_seconds(page_file: Path, times: int = 7) -> tuple[list[float], str]:
    """Seconds from asking for the page until every table is drawn and every answer unpacked; the browser's version."""
    seconds = []
    with sync_playwright() as driver:
        sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=sandbox)
        for _ in range(times):
            page = browser.new_page()
            started = time.perf_counter()
            page.goto(page_file.as_uri())
            page.wait_for_selector("body[data-ready]")
            seconds.append(time.perf_counter() - started)
            page.close()
        return seconds, browser.version


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "report.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_many(Path(folder), arguments.runs, arguments.questions)
        started = time.perf_counter()
        page_file = write_page(read_runs(folder), Path(folder) / "report.html")
        making = time.perf_counter() - started
        seconds, version = opening_seconds(page_file)
        result = {
            "runs": arguments.runs,
            "questions": arguments.questions,
            "page_bytes": page_file.stat().st_size,
            "making_seconds": making,
            "opening_seconds": statistics.median(seconds),
            "opening_seconds_each": seconds,
            "chromium": version,
            "provenance": provenance(),
        }
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{result['page_bytes'] / 2**20:.1f} MiB, made in {making:.0f} s, open in {result['opening_seconds']:.2f} s")


if __name__ == "__main__":
    main()
