"""The script that counts bare `Any`: what it counts, and that it refuses too many."""

import importlib.util

import pytest
from documented import ROOT

SOURCE = """
from typing import Any

def plain(a: Any, b: "Any", c: Any | None = None, *d: Any, e: int, **f: object) -> Any: ...

class Thing:
    field: Any

    async def method(self, g: list[Any], h) -> None:
        def inner(i: Any): ...
"""


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("check_any", ROOT / "scripts" / "check_any.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_bare_ones_are_counted_wherever_functions_stand(script, tmp_path):
    path = tmp_path / "module.py"
    path.write_text(SOURCE)
    found = {name: bare for _, name, bare in script.annotated(path)}
    bare = {name for name, is_bare in found.items() if is_bare}
    assert bare == {"plain(a)", "plain(b)", "plain(c)", "plain(d)", "inner(i)"}
    assert set(found) - bare == {"plain(e)", "plain(f)", "method(g)"}


def test_too_many_are_refused(script, tmp_path, monkeypatch, capsys):
    path = tmp_path / "module.py"
    path.write_text(SOURCE)
    monkeypatch.setattr(script, "files", lambda: [("models", path)])
    monkeypatch.setattr("sys.argv", ["check_any.py"])
    assert script.main() == 1
    assert "5 of     8   62.5%  models" in capsys.readouterr().out
    monkeypatch.setattr(script, "ALLOWED", 0.7)
    assert script.main() == 0
    assert capsys.readouterr().out == "5 of 8 annotated arguments are a bare Any: 62.5% (70% allowed)\n"


def test_every_room_is_counted_once(script):
    rooms = [room for room, _ in script.files()]
    paths = [path.resolve() for _, path in script.files()]
    assert {"utils", "models", "harness", "cli", "editors"} <= set(rooms)
    assert len(paths) == len(set(paths))
