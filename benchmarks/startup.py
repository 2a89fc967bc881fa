"""What the autoload `.pth` costs each interpreter start: its line run or not, in turn; medians in milliseconds.

python benchmarks/startup.py [--runs 60] [--output results/startup.json]
"""

import argparse
import json
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from unlearn_eval.utils.provenance import provenance

ROOT = Path(__file__).parent.parent
LINE = (ROOT / "unlearn_eval_autoload.pth").read_text().strip()
PATHS = [sysconfig.get_paths()["purelib"], str(ROOT)]
SETUP = f"import sys; sys.path += {PATHS!r}"


def seconds(code: str) -> float:
    """Wall time of one interpreter that runs `code` and nothing of site-packages."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-S", "-c", code], check=True)
    return time.perf_counter() - started


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "startup.json")
    arguments = parser.parse_args()
    for code in (SETUP, f"{SETUP}\n{LINE}"):
        seconds(code)  # byte code is compiled once
    pairs = [(seconds(SETUP), seconds(f"{SETUP}\n{LINE}")) for _ in range(arguments.runs)]
    difference = statistics.median(after - before for before, after in pairs) * 1000
    result = {
        "runs": arguments.runs,
        "without_milliseconds": statistics.median(before for before, _ in pairs) * 1000,
        "with_milliseconds": statistics.median(after for _, after in pairs) * 1000,
        "difference_milliseconds": difference,
        "provenance": provenance(),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"autoload costs {difference:.2f} ms of an interpreter's start (limit: 5 ms); {arguments.output}")
    sys.exit(difference >= 5)


if __name__ == "__main__":
    main()
