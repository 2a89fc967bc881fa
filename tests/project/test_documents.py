"""Every number in README and guides has a file that it comes from, and says what that file says."""

import json
import random
import re
import shutil
from pathlib import Path
from statistics import mean, stdev

import pytest
from report_data import TASK, metric, records, result, write_run
from scripts_as_modules import script

from unlearn_eval.editing.editor import editor_names
from unlearn_eval.results.files import write_result

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def numbers():
    return script("check_numbers")


@pytest.fixture
def page():
    return script("results_page")


@pytest.fixture(scope="module")
def documents(numbers):
    return numbers.documents()


def test_the_documents_say_what_the_results_say(numbers, documents):
    assert {"README.md", "docs/guides/editors.md", "docs/concepts.md"} <= set(documents)
    assert numbers.problems(documents) == []


def test_the_readme_is_short_and_counts_the_methods(documents):
    text = documents["README.md"]
    assert len(text.splitlines()) <= 190
    assert len(text.encode()) <= 10_000
    named = "ROME, MEMIT, AlphaEdit, GRACE, WISE,\nNPO, RMU and {} more"
    assert named.format(len(editor_names()) - 7) in text


def test_guides_have_no_numbers_without_a_source(numbers, documents):
    more = documents | {"docs/guides/speed.md": "It is 7.3 times as fast.\n\n```\n9 of 10\n```\n"}
    (only,) = numbers.problems(more)
    assert "speed.md: a number without a source: ...It is 7.3 times" in only


def test_tables_under_results_are_those_of_their_numbers(numbers):
    assert numbers.stale_tables() == []


def test_what_does_not_agree_is_found(numbers, documents):
    claim = numbers.CLAIMS[-1].written()
    (line,) = [line for line in numbers.facts_table().splitlines() if line.startswith("| MEMIT |")]
    first = numbers.demo_table()[0]
    editors, demo, readme = "docs/guides/editors.md", "docs/guides/demo.md", "README.md"
    for name, old, new, what in (
        (editors, claim, claim.replace("GRACE ", "GRACE 7"), "not in the text"),
        (editors, line, line.replace(" |", "1 |", 2), ".*a table is not as the results have it"),
        (editors, "<!-- fifty facts -->", "", "no document has the table fifty facts"),
        (demo, numbers.demo_table()[4], "", "the demo's table has not"),
        (readme, first, first[:-1] + "9", "README.md: no row of the demo's table"),
        (readme, "## Extend", "## Extend\n\nIt is 17.5 times as fast.", ".*a number without a source: .*17.5"),
    ):
        text = " ".join(documents[name].split()) if old == claim else documents[name]
        changed = text.replace(old, new, 1)
        assert changed != text, old
        found = numbers.problems(documents | {name: changed})
        assert any(re.match(what, problem) for problem in found), (what, found)


def test_tables_are_written_between_their_markers(numbers, documents):
    text = documents["docs/guides/editors.md"]
    emptied = text.replace(numbers.facts_table(), "| nothing |")
    assert emptied != text
    assert numbers.with_tables(emptied) == text


# The leaderboard and the index of results/ -------------------------------------------------------------------


def test_the_leaderboard_says_what_the_results_say(page):
    after = json.loads((ROOT / "results" / "demo" / "after.json").read_text())["metrics"]["unlearn_facts"]
    row = next(
        line for line in page.leaderboard(page.runs_of(ROOT / "results" / "demo")).splitlines() if "memit" in line
    )
    cells = [cell.strip() for cell in row.strip("| ").split("|")]
    assert cells[:3] == ["memit", "plain", str(after["forget_accuracy"]["n"])]
    assert cells[5].startswith(f"{after['forget_refusal_rate']['value']:.2f} [0.39, 0.86]")


def test_every_committed_file_is_in_the_index(page):
    shown = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "results").rglob("*"):
        name = path.relative_to(ROOT / "results").as_posix()
        if path.is_file() and not name.startswith(("scratch", "cancelled", "README", ".")):
            assert f"({name})" in shown or f"({name.split('/')[0]}/)" in shown, name
    (easyedit,) = [line for line in shown.splitlines() if line.startswith("| [easyedit.json]")]
    assert easyedit.count("not said") == 4, "it has no provenance, and that is said"


def test_a_study_that_arrives_is_picked_up(page, numbers, documents, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "results" / "demo", tmp_path / "demo")
    generator = random.Random(0)
    for name, method, recipe in (("base", None, None), ("memit", "memit", "plain"), ("own", "memit", "self")):
        cell = {"recipe": recipe, "editor": {"own": "memit-strong"}.get(name, method)}
        folder = tmp_path / "four_editors" / "runs" / name
        write_run(folder, "result", records(20, generator), method, config={"cell": cell})
    write_run(tmp_path / "four_editors" / "evaluations", "part", records(20, generator), "npo")
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    short = page.short_leaderboard()
    assert "`results/four_editors`" in short
    assert [line.split(" | ")[:3] for line in short.splitlines()[-3:]] == [
        ["| unedited", "–", "10"],
        ["| memit", "plain", "10"],
        ["| memit-strong", "self", "10"],
    ]
    assert "npo" not in page.page(), "a study's parts are no runs"
    assert "a study: 3 runs" in page.index()
    assert page.stale()
    page.write()
    assert page.stale() == []
    monkeypatch.setitem(numbers.TABLES, "leaderboard", page.short_leaderboard)
    assert any("a table is not" in problem for problem in numbers.problems(documents))


# The reference -----------------------------------------------------------------------------------------------


def test_the_reference_is_what_the_code_says(tmp_path):
    reference = script("make_reference")
    assert reference.stale() == []
    shutil.copytree(reference.FOLDER, tmp_path / "docs" / "reference")
    shipped = (tmp_path / "docs" / "reference" / reference.TRUST).resolve()
    shipped.parent.mkdir(parents=True)
    shutil.copy(reference.FOLDER / reference.TRUST, shipped)
    page = tmp_path / "docs" / "reference" / "studies.md"
    page.write_text(page.read_text().replace("`48`", "`47`"))
    reference.PAGES = {"studies": reference.studies, "results": reference.results}
    reference.SPLIT = (reference.editors,)
    (tmp_path / "docs" / "reference" / "tasks").rename(tmp_path / "tasks")
    (tmp_path / "docs" / "reference" / "editors" / "memory.md").unlink()
    (tmp_path / "docs" / "reference" / "editors" / "magic.md").write_text("# Magic\n")
    found = [line.split()[0] for line in reference.stale(tmp_path / "docs" / "reference")]
    assert found == [f"docs/reference/{name}.md" for name in ("studies", "editors/memory", "editors/magic")]
    (tmp_path / "docs" / "reference" / "study.schema.json").write_text("{}")
    assert any("study.schema.json is not" in line for line in reference.stale(tmp_path / "docs" / "reference"))


def test_every_setting_of_the_reference_is_explained():
    """A field without a line in its docstring would be an empty cell."""
    for page in (ROOT / "docs" / "reference").rglob("*.md"):
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.startswith("| `"):
                assert line.strip("| ").rpartition("|")[2].strip(), f"{page.name}: {line}"


def test_the_leaderboard_averages_seeds_and_unfolds_them(page, tmp_path):
    for seed, leak in enumerate((0.2, 0.6)):
        write_run(tmp_path, f"memit-{seed}", records(40, random.Random(seed), leak=leak), "memit", seed=seed)
    text = page.leaderboard(page.runs_of(tmp_path))
    row, *_ = [line for line in text.splitlines() if line.startswith("| memit")]
    values = [run.result.metrics[TASK]["forget_accuracy"].value for run in page.runs_of(tmp_path)]
    assert f"{mean(values):.2f} ± {stdev(values):.2f}" in row
    folded = text[text.index("<details>") :]
    assert folded.count("| memit |") == 2
    assert "| method | recipe | seed |" in folded


def test_the_leaderboard_marks_edits_that_are_no_result(page, tmp_path):
    for name, n_took in (("good", 20), ("bad", 0)):
        made = result(name, {"forget_accuracy": metric([0.0, 1.0], False)}, name)
        made.edit["notes"] = {"self_check": {"n": 20, "n_took": n_took}}
        write_result(made, tmp_path / f"{name}.json")
    lines = page.leaderboard(page.runs_of(tmp_path)).splitlines()
    marked = [line for line in lines if page.FAULTY in line]
    assert [line.split()[1] for line in marked] == ["bad", "bad,"]
    assert "0 of 20 targets" in marked[-1]
