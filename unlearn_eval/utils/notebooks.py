"""How objects show themselves in a notebook: tables as HTML in which data are text, frames, and progress."""

from __future__ import annotations

import html
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.progress import Progress, no_progress

if TYPE_CHECKING:
    import pandas

MOST_ROWS = 20
MOST_CHARACTERS = 200


def html_table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table for a notebook: its first rows, and how many more there are; None is a dash."""
    head = "".join(f"<th>{_escaped(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows[:MOST_ROWS])
    more = f"<p>and {len(rows) - MOST_ROWS} more</p>" if len(rows) > MOST_ROWS else ""
    caption = _escaped(caption)
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _cell(value: object) -> str:
    return "–" if value is None else _escaped(f"{value:.4g}" if isinstance(value, float) else value)


def _escaped(value: object) -> str:
    text = str(value)
    return html.escape(text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…")


def data_frame(rows: Sequence[Mapping[str, Any]], what: str, columns: Sequence[str] | None = None) -> pandas.DataFrame:
    """The rows as a pandas DataFrame.

    Raises:
        UserError: pandas is not installed; `what` needs it.
    """
    try:
        import pandas
    except ImportError as error:
        raise UserError(f"{what} needs pandas", "pip install 'unlearn-eval[report]'") from error
    return pandas.DataFrame(list(rows), columns=None if columns is None else list(columns))


def usual_progress() -> Progress:
    """Bars in a notebook; elsewhere nothing, since commands show progress in their own way."""
    return bars() if in_notebook() else no_progress


def in_notebook() -> bool:
    """Whether a notebook's kernel runs this process."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})


def bars() -> Progress:
    """Progress by `tqdm.auto`, one bar for each kind of work: for notebooks and terminals."""
    from tqdm.auto import tqdm

    shown: dict[str, Any] = {}

    def show(what: str, done: int, total: int) -> None:
        bar = shown.get(what)
        if bar is None:
            bar = shown[what] = tqdm(total=total, desc=what, leave=False)
        bar.total = max(total, bar.total or 0)
        bar.update(min(done, bar.total) - bar.n)
        if bar.n >= bar.total:
            bar.close()
            del shown[what]

    return show
