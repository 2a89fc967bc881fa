"""Objects in a notebook: short texts, tables in which data are text, frames and bars."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.results.comparison import COLUMNS, compare
from unlearn_eval.results.files import read_result
from unlearn_eval.results.schema import Metric, Result
from unlearn_eval.utils import notebooks
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.progress import no_progress

DEMO = Path(__file__).parents[2] / "results" / "demo"
BAD = "<script>alert(1)</script>&\"'"


@pytest.fixture(scope="module")
def shown():
    before, after = (read_result(DEMO / f"{name}.json") for name in ("before", "after"))
    items = ForgetSet(BAD, tuple(ForgetItem(f"{BAD}{i}", BAD, "Answer", aliases=("A",)) for i in range(25)))
    bad = Result("evaluation", "complete", "2026-01-02T03:04:05+00:00", metrics={BAD: {BAD: Metric(None, reason=BAD)}})
    return {"set": items, "result": after, "bad": bad, "comparisons": compare(before, after)}


@pytest.mark.parametrize("name", ["set", "result", "bad", "comparisons"])
def test_texts_are_short_and_html_holds_data_as_text(shown, name):
    own = shown[name]
    assert len(repr(own)) < 200
    html = own._repr_html_()
    assert html.startswith("<table><caption>")
    assert "<script" not in html
    assert html.count("<tr>") <= 1 + notebooks.MOST_ROWS
    if name in ("set", "bad"):
        assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;&#x27;" in html


@given(st.lists(st.text(), min_size=1, max_size=4))
@settings(max_examples=50)
def test_no_text_is_markup(cells):
    html = notebooks.html_table("", ["a"] * len(cells), [cells])
    inside = html.split("<tbody><tr><td>")[1].removesuffix("</td></tr></tbody></table>")
    assert "<" not in inside.replace("</td><td>", "")


def test_what_does_not_fit_is_counted(shown):
    assert "and 5 more" in shown["set"]._repr_html_()
    assert f"<td>{'x' * notebooks.MOST_CHARACTERS}…</td>" in notebooks.html_table("", ["a"], [["x" * 999]])
    assert "<td>–</td><td>0.3333</td>" in notebooks.html_table("", ["a", "b"], [[None, 1 / 3]])


def test_frames_hold_every_number(shown):
    frame = shown["set"].to_frame()
    assert list(frame.columns)[:3] == ["id", "question", "answer"]
    assert frame.aliases[0] == ("A",)
    result = shown["result"]
    frame = result.to_frame()
    for row in frame.itertuples():
        assert row.value == result.metrics[row.task][row.metric].value
    frame = shown["comparisons"].to_frame()
    assert list(frame.columns) == COLUMNS
    assert list(frame.change) == [row.difference for row in shown["comparisons"]]


@pytest.mark.parametrize("name", ["set", "result", "comparisons"])
def test_without_pandas_frames_say_what_to_install(shown, name, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="to_frame needs pandas"):
        shown[name].to_frame()


def test_bars_are_shown_in_a_notebook_by_default(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert notebooks.usual_progress() is no_progress
    for config, own in (({}, True), ({"IPKernelApp": {}}, False)):
        shell = SimpleNamespace(config=config)
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert (notebooks.usual_progress() is no_progress) == own


def test_bars_count_each_kind_of_work(monkeypatch):
    made = []

    class Bar(SimpleNamespace):
        def __init__(self, total, desc, leave):
            super().__init__(total=total, desc=desc, n=0, closed=False)
            made.append(self)

        def update(self, by):
            self.n += by

        def close(self):
            self.closed = True

    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    show = notebooks.bars()
    for done in (1, 2, 4):
        show("values", done, 4)
    show("moments", 1, 2)
    show("values", 1, 4)
    assert [(bar.desc, bar.n, bar.closed) for bar in made] == [
        ("values", 4, True),
        ("moments", 1, False),
        ("values", 1, False),
    ]
