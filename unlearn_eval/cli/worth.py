"""What a meta-evaluation found, in files and on the terminal: for `unlearn-eval meta` and for `run`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_eval.utils.json_files import dumps, write_all
from unlearn_eval.utils.terminal import put, say

if TYPE_CHECKING:
    from unlearn_eval.runs.study.file import MetaEntry

NAMES = "meta.json", "meta.md", "meta.html"


def tell_worth(results: Sequence[Any], n_cells: int, meta: MetaEntry, folder: Path, console: Any, json_: bool) -> None:
    """Write what was found into the folder, and show it."""
    from unlearn_eval.results.report.meta import meta_markdown, meta_page
    from unlearn_eval.runs.meta.summary import summary
    from unlearn_eval.utils.provenance import redact

    content = redact(summary(results, n_cells, meta, list(sys.argv)))
    text = meta_markdown(content)
    write_all(dict(zip(NAMES, (dumps(content, indent=2) + "\n", text, meta_page(content)), strict=True)), folder)
    if json_:
        put(dumps(content, indent=2))
        return
    console.print(text, soft_wrap=True, highlight=False, markup=False)
    for name in NAMES:
        say(f"{folder / name}")
