"""Data is printed as text by one module, whatever is in it."""

import ast
import io

import pytest
from documented import ROOT
from rich.table import Table

from unlearn_eval.utils import terminal
from unlearn_eval.utils.terminal import new_console, printable

HOSTILE = "\x1b]0;owned\x07\x1b[31mred\x9b0m \u202eback [/INST] [a] b :smile: half \ud800\r\n\tline"
OWN = ("utils/terminal.py", "autoload.py")  # the latter imports nothing of ours, and prints a sentence of its own


def test_control_characters_are_escapes():
    text = printable(HOSTILE)
    assert all(ord(c) >= 32 or c in "\n\t" for c in text)
    assert "\\u001b]0;owned\\u0007\\u001b[31mred\\u009b0m \\u202eback [/INST] [a] b" in text
    text.encode()


@pytest.mark.parametrize("put", ["put", "say"])
def test_what_is_printed_is_text(put, capsys):
    getattr(terminal, put)(HOSTILE)
    said = "".join(capsys.readouterr())
    assert "\x1b" not in said
    assert "[/INST] [a] b" in said


@pytest.mark.parametrize("where", ["cell", "title", "header", "line"])
def test_brackets_are_no_markup_in_tables(where):
    stream = io.StringIO()
    table = Table(title=HOSTILE if where == "title" else None, width=150)
    table.add_column(HOSTILE if where == "header" else "x")
    table.add_row(HOSTILE if where == "cell" else "y")
    new_console(stream, 200).print(HOSTILE if where == "line" else table)
    assert "[/INST] [a] b :smile:" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_the_demo_s_table_shows_answers_as_they_are():
    from unlearn_eval.cli.app import _samples_table

    stream = io.StringIO()
    new_console(stream, 120).print(_samples_table([("forget", "[a] b?", "[/INST] yes", "[bold]no")]))
    assert all(text in stream.getvalue() for text in ("[a] b?", "[/INST] yes", "[bold]no"))


def _names(call):
    func = call.func
    return func.id if isinstance(func, ast.Name) else func.attr if isinstance(func, ast.Attribute) else ""


def test_nothing_else_prints():
    """`print`, a console of rich's own, its markup, and the streams' `write`."""
    found = []
    for path in sorted((ROOT / "unlearn_eval").rglob("*.py")):
        name = path.relative_to(ROOT / "unlearn_eval").as_posix()
        if name in OWN:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                printed = isinstance(node.func, ast.Name) and node.func.id == "print"
                written = isinstance(node.func, ast.Attribute) and ast.unparse(node.func) in (
                    "sys.stdout.write", "sys.stderr.write", "typer.echo", "click.echo", "Text.from_markup",
                )  # fmt: skip
                if printed or written or _names(node) in ("Console", "Text"):
                    found.append(f"{name}:{node.lineno}: {ast.unparse(node)[:60]}")
    assert not found
