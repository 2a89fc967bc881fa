"""Patches of other packages: a place that has changed is refused with what, which version, and what to do."""

import inspect
import sys
from dataclasses import replace
from types import ModuleType

import pytest

from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.patching import OneOf, Patches, Place, replaced, warn_of_misfit, wrap


@pytest.fixture
def other(monkeypatch):
    """A package of somebody else's."""
    module = ModuleType("other_package")
    exec(
        "def ask(question, limit=3):\n    return question * limit\n"
        "class Engine:\n    @staticmethod\n    def build(paths, deep=True):\n        return list(paths)\n"
        "    def step(self, batch):\n        return batch\n",
        vars(module),
    )
    monkeypatch.setitem(sys.modules, "other_package", module)
    return module


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (Place("other_package"), None),
        (Place("other_package:Engine.build", takes="paths"), None),
        (Place("other_package:Engine.step", takes="self, batch"), None),
        (Place("other_package:ask", takes="question, limit"), None),
        (Place("other_package:ask", takes="text"), "takes (question, limit); expected (text)"),
        (Place("other_package:ask", takes="question, limit, more"), "expected (question, limit, more)"),
        (Place("other_package:Engine.run"), "has no Engine.run"),
        (Place("no_such_package.part:x"), "no_such_package.part cannot be imported"),
        (Place("json:dumps", mentions=("cls is None",)), None),
        (Place("json:dumps", mentions=("cls is None", "no such text")), "does not contain 'no such text'"),
        (Place("json:dumps.__defaults__", takes="obj"), "has no signature"),
        (OneOf((Place("other_package:old"), Place("other_package:ask"))), None),
        (OneOf((Place("other_package:ask"), Place("other_package:new"))), None),
        (OneOf((Place("other_package:old"), Place("other_package:new"))), "has no new"),
    ],
)
def test_a_place_is_as_expected_or_says_why_not(other, place, reason):
    found = place.misfit()
    assert found is None if reason is None else reason in found


def test_a_package_that_fails_in_its_own_way_does_not_fit(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("raise RuntimeError('operator does\\nnot exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "cannot be imported (RuntimeError: operator does not exist)" in Place("broken_package").misfit()


def test_a_patch_is_refused_where_it_does_not_fit(other):
    patches, applied = Patches("other_package", tested=("1.0", "1.1")), []

    @patches.add("longer", "ask is asked for more", Place("other_package:ask", takes="question, limit"))
    def longer(limit):
        """Ask for more."""
        applied.append(limit)
        return "done"

    assert (longer(4), applied, longer.__doc__) == ("done", [4], "Ask for more.")
    other.ask = lambda text: text
    with pytest.raises(UserError) as refused:
        longer(5)
    assert applied == [4]
    assert refused.value.message == (
        "cannot apply the patch 'longer' to other_package (unknown version): "
        "other_package:ask takes (text); expected (question, limit)"
    )
    assert refused.value.hint.startswith("install a tested version (other_package 1.0 or 1.1)")
    with pytest.raises(AssertionError, match="two patches"):
        patches.add("longer", "")


def test_status_tells_fits_from_misfits_and_absent_packages():
    patches = Patches("json", tested=("1",))
    patches.add("right", "a", Place("json:dumps", takes="obj"))
    patches.add("wrong", "b", Place("json:dump_all"))
    patches.add("away", "c", Place("no_such_package:x"), package="no_such_package", tested=("2",))
    right, wrong, away = (patch.status() for patch in patches)
    assert (right.status, right.reason, right.tested) == ("fits", None, ("1",))
    assert (wrong.status, wrong.reason) == ("does not fit", "json has no dump_all")
    assert (away.status, away.reason, away.package, away.tested) == ("not installed", None, "no_such_package", ("2",))
    pytest_patch = replace(patches["right"], package="pytest", distributions=("not-there", "pytest"))
    assert pytest_patch.version == pytest.__version__


def test_wrapping_twice_wraps_once_and_keeps_signatures(other):
    def louder(original):
        def loud(*arguments, **options):
            return [*original(*arguments, **options), "!"]

        return loud

    for _ in range(2):
        wrap(other.Engine, "build", louder)
    assert other.Engine.build("ab") == other.Engine().build("ab") == ["a", "b", "!"]
    assert list(inspect.signature(other.Engine.build).parameters) == ["paths", "deep"]
    assert Place("other_package:Engine.build", takes="paths").misfit() is None


def test_a_patch_that_only_saves_time_is_left_out_with_a_line(other, capsys):
    patches = Patches("other_package", tested=("1.0",))

    @patches.add("quicker", "ask is quicker", Place("other_package:ask", takes="question"))
    def quicker(n):
        return n + 1

    assert warn_of_misfit(quicker, 1) == 2
    assert capsys.readouterr().err == ""
    other.ask = lambda text: text
    assert warn_of_misfit(quicker, 1) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("unlearn-eval: slower than it could be: cannot apply the patch 'quicker'")


def test_a_replacement_ends_with_its_block(other):
    before = other.ask
    with replaced(other, "ask", lambda question: "silent"):
        assert other.ask("what") == "silent"
        assert Place("other_package:ask", takes="question, limit").misfit() is None  # as the original's
    assert other.ask is before

    def fail():
        with replaced(other, "ask", lambda question: "silent"):
            raise OSError("stop")

    with pytest.raises(OSError, match="stop"):
        fail()
    assert other.ask is before
