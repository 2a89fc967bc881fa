"""Run by test_two_processes: the same command in several processes at once; JSON of how they ended on stdout."""

import json
import sys
from pathlib import Path

from forked import ended, prepare, start


def main(folder: Path, n: int, words: list[str]) -> None:
    """Run `words` in `n` children at once; N in them is each child's number."""
    prepare(words[0])
    children = [start([word.replace("{N}", str(i)) for word in words], folder / f"{i}.log") for i in range(n)]
    print(json.dumps([ended(child) for child in children]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
