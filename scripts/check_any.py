"""How many annotated arguments are a bare `Any`, room by room; `make check` refuses more than a few.

    python scripts/check_any.py [--list ROOM]

A bare `Any` says nothing of what a function takes. Counted are the arguments of all functions and methods of the
package and the editors; `list[Any]` and the like are not bare.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = 0.04  # of all annotated arguments


def annotated(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Line, name and whether it is a bare `Any`, of each annotated argument in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            own = node.args
            every = [*own.posonlyargs, *own.args, *own.kwonlyargs, own.vararg, own.kwarg]
            for argument in every:
                if argument is not None and argument.annotation is not None:
                    yield argument.lineno, f"{node.name}({argument.arg})", _is_any(argument.annotation)


def _is_any(annotation: ast.expr) -> bool:
    """`Any`, also as text or beside None."""
    text = annotation.value if isinstance(annotation, ast.Constant) else ast.unparse(annotation)
    return str(text) in ("Any", "Any | None", "Optional[Any]", "typing.Any")


def files() -> Iterator[tuple[str, Path]]:
    """Every file of the package and the editors, with its room."""
    for path in sorted((ROOT / "unlearn_eval").rglob("*.py")):
        parts = path.relative_to(ROOT / "unlearn_eval").parts
        if parts[0] not in ("editors", "tasks", "studies"):  # links
            yield parts[0], path
    for path in sorted((ROOT / "editors").rglob("*.py")):
        yield "editors", path


def main() -> int:
    """Print the shares; 1 if there are too many."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", metavar="ROOM", help="Room whose bare `Any` are listed, or 'all'.")
    options = parser.parse_args()
    total: Counter[str] = Counter()
    bare: Counter[str] = Counter()
    for room, path in files():
        for line, name, is_any in annotated(path):
            total[room] += 1
            bare[room] += is_any
            if is_any and options.list in (room, "all"):
                print(f"{path.relative_to(ROOT)}:{line}: {name}")
    share = bare.total() / total.total()
    if options.list or share > ALLOWED:
        for room in sorted(total, key=lambda room: -bare[room]):
            print(f"{bare[room]:5} of {total[room]:5}  {bare[room] / total[room]:6.1%}  {room}")
    print(f"{bare.total()} of {total.total()} annotated arguments are a bare Any: {share:.1%} ({ALLOWED:.0%} allowed)")
    return int(share > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
