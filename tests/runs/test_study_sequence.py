"""Requests one after another: marks are cells that go on from each other, and the first requests are asked at each."""

import json

import pytest
import torch
from study_files import FACTS, NPO, memit, numbers, write_model, write_study
from tiny_models import one_thread  # noqa: F401
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.data.forget_sets import facts, load_forget_set
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.edits.load import load_edit
from unlearn_eval.models.load import load_model
from unlearn_eval.results.comparison import compare
from unlearn_eval.results.files import read_result
from unlearn_eval.runs import edit as editing
from unlearn_eval.runs.study.cells.told import choose
from unlearn_eval.runs.study.plan import plan
from unlearn_eval.runs.study.read import read_study, study_file
from unlearn_eval.runs.study.spec import Learn, RequestSequence, study_of
from unlearn_eval.utils.errors import UserError

FORMS = {
    "task": "unlearn_forms",
    "metadata": {"forms": ["direct"], "n_retain": 1},
    "gen_kwargs": {"max_gen_toks": 2},
}
MARKS = {"sizes": None, "tasks": [FORMS], "sequence": {"marks": [1, 2, 4]}}
LEARN = {"sizes": [2], "sequence": {"learn": {"on": "wrong(facts)", "size": 1}, "per_step": 0}}
LEARNED = {**FORMS, "metadata": {**FORMS["metadata"], "forget": "learned"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("sequence") / "model")


def run(path, output, *more):
    return CliRunner().invoke(cli.app, ["run", str(path), "--output", str(output), *more])


def cells_of(path, model, **changes):
    path = write_study(path / "study.yaml", model, **changes)
    return plan(study_of(read_study(path), path), {}).cells


def results(output):
    """By mark, and by order if there are several; the unedited one is 0."""
    found = [read_result(path) for path in output.glob("runs/*/result.json")]
    return {own.config["cell"].get("step", "base"): own for own in found}


# What is asked for -----------------------------------------------------------------------------------------


def test_the_first_requests_are_asked_and_none_is_among_the_retained():
    items, sequence = facts(), RequestSequence((2, 5), again=2, learn=Learn("wrong(facts)"))
    chosen = choose(items, 5, 3, 4, None, sequence=sequence)
    plain = choose(items, 5, 3, 4, None)
    assert {key for own in chosen.requests for key in own} == {item.id for item in plain.forget}
    assert chosen.kept == plain.kept
    assert {item.id for item in chosen.forget} == {key for own in chosen.requests[:2] for key in own}
    assert not chosen.whole
    asked = {item.question for item in (*plain.forget, *items.select(plain.kept))}
    assert len(chosen.learned) == 5
    assert not asked & {item.question for item in chosen.learned}
    more = choose(items, 50, 3, 4, None, sequence=sequence)
    assert more.requests[:5] == chosen.requests, "a longer sequence begins alike"


def test_groups_are_requests_in_the_order_of_the_set(tmp_path):
    path = tmp_path / "set.jsonl"
    records = [{"question": f"Who is {i}?", "answer": f"P{i}", "group": f"g{i % 3}"} for i in range(7)]
    path.write_text("".join(json.dumps(own) + "\n" for own in records))
    chosen = choose(load_forget_set(str(path)), 2, 0, 1, None, sequence=RequestSequence(by="group", again=1))
    assert [list(own) for own in chosen.requests] == [["0", "3", "6"], ["1", "4"]]
    assert [item.id for item in chosen.forget] == ["0", "3", "6"]
    assert chosen.kept == ("2",)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sequence": {"marks": [4, 2]}}, r"\[4, 2\] do not rise"),
        ({"sequence": {"by": "itme"}}, "did you mean item"),
        ({"sequence": {"orders": ["together"]}}, "nothing is learned"),
        ({"sequence": {"learn": "wrong(facts)", "orders": "together_"}}, "did you mean together"),
        ({"sequence": {"marks": [1]}}, "sizes and the marks"),
        ({"sizes": None, "sequence": {"marks": [705]}}, "there are 704"),
        ({"sizes": [2], "tasks": [FACTS, LEARNED]}, "asks what is learned, and nothing is"),
        ({"editors": [NPO], **LEARN}, "npo makes the answers of requests unlikely.*cannot edit new facts in"),
        ({**MARKS, "tune": {"trials": 1, "minimize": "unlearn_facts/forget_probability"}}, "tune and sequence"),
    ],
)
def test_what_cannot_be_is_refused(model, tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        cells_of(tmp_path, model, **changes)


def test_an_edit_s_key_is_that_of_what_came_before(model, tmp_path):
    plain = {"editors": [memit(model)], "sizes": None, "retain": None}
    few, more = (
        [cell.edit_key for cell in cells_of(tmp_path, model, **plain, sequence=own)][1:]
        for own in ({"marks": [1, 2]}, {"marks": [1, 2, 4], "again": 2})
    )
    assert more[:2] == few, "neither more requests nor what is asked makes the first ones another edit"
    base, *cells = cells_of(tmp_path, model, **MARKS)
    assert [cell.stage.mark for cell in cells] == [1, 2, 4] * 2
    assert [cell.n_edited for cell in cells] == [1, 1, 2] * 2
    assert [cell.stage.previous and cell.stage.previous.edit_key for cell in cells[:3]] == [
        None,
        *(cell.edit_key for cell in cells[:2]),
    ]
    assert {ask.key for ask in base.asks}.isdisjoint(ask.key for cell in cells for ask in cell.asks)
    assert len({cell.key for cell in (base, *cells)}) == 7


# What is done ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("marks")
    study = write_study(folder / "study.yaml", model, editors=[memit(model)], retain=None, **MARKS)
    return study, folder / "whole", run(study, folder / "whole")


def test_each_mark_is_an_ordinary_result_on_the_same_questions(finished):
    _, output, done = finished
    assert done.exit_code == 0, done.output
    found = results(output)
    assert list(sorted(found)) == ["after-1", "after-2", "after-4", "base"]
    assert len({own.data["unlearn_forms"]["hash"] for own in found.values()}) == 1
    assert [found[f"after-{n}"].edit["requests"]["n"] for n in (1, 2, 4)] == [1, 2, 4]
    assert [found[f"after-{n}"].config["n_edited"] for n in (1, 2, 4)] == [1, 1, 2]
    sizes = [found[f"after-{n}"].config["edit_bytes"] for n in (1, 2, 4)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3, "keys and factors of each request are kept"
    assert all(own.timing["editing_seconds"] > 0 for name, own in found.items() if name != "base")


def test_marks_are_the_same_as_one_call_with_a_request_per_step(finished, model):
    _, output, _ = finished
    found = results(output)["after-4"]
    edit = load_edit(found.edit["folder"])
    items = facts().select(found.edit["requests"]["ids"])
    loaded = load_model(str(model), device="cpu")
    settings = found.config["cell"]["settings"]
    whole = editing.make_edit(loaded, items, "memit", settings, Recipe(per_step=1), unrelated=False)
    for name, (u, v) in whole.factors.items():
        own_u, own_v = edit.factors[name]
        torch.testing.assert_close(own_u @ own_v, u @ v, rtol=1e-3, atol=1e-4)
    once = editing.make_edit(loaded, items, "memit", settings, Recipe(), unrelated=False)
    assert not torch.allclose(own_u @ own_v, torch.matmul(*once.factors[name]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kept", [True, False])
def test_a_killed_sequence_goes_on_at_its_last_mark(finished, model, tmp_path, monkeypatch, kept):
    _, whole, _ = finished
    study = write_study(tmp_path / "study.yaml", model, editors=[memit(model)], retain=None, keep_edits=kept, **MARKS)
    make_edit, calls = editing.make_edit, []

    def killed(loaded, items, *arguments, **options):
        calls.append(len(items))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return make_edit(loaded, items, *arguments, **options)

    monkeypatch.setattr(editing, "make_edit", killed)
    assert run(study, tmp_path / "out").exit_code == 130
    assert len(list(tmp_path.glob("out/shared/edits/[!.]*"))) == (2 if kept else 1), "the last one, to go on from"
    assert run(study, tmp_path / "out").exit_code == 0
    assert calls == [1, 1, 2, 2]
    assert numbers(tmp_path / "out") == numbers(whole)
    assert len(list(tmp_path.glob("out/shared/edits/[!.]*"))) == (3 if kept else 0)


def test_groups_are_edited_one_after_another(model, tmp_path, monkeypatch):
    path = tmp_path / "set.jsonl"
    records = [{"question": f"Who is person {i}?", "answer": f"P{i}", "group": f"g{i % 2}"} for i in range(5)]
    path.write_text("".join(json.dumps(own) + "\n" for own in records))
    make_edit, calls = editing.make_edit, []
    monkeypatch.setattr(
        editing,
        "make_edit",
        lambda loaded, items, *a, **o: calls.append(list(items)) or make_edit(loaded, items, *a, **o),
    )
    changes = {"forget": str(path), "sizes": [2], "sequence": {"by": "group", "again": 1}, "tasks": [FORMS]}
    study = write_study(tmp_path / "study.yaml", model, editors=[memit(model)], **changes)
    assert run(study, tmp_path / "out").exit_code == 0
    assert [[item.id for item in own] for own in calls] == [["0", "2", "4"], ["1", "3"]]
    (edited,) = [own for name, own in results(tmp_path / "out").items() if name != "base"]
    assert edited.config["n_edited"] == 5
    assert edited.config["cell"]["ids"] == ["0", "2", "4"]


# Learning and forgetting -----------------------------------------------------------------------------------


def test_what_is_learned_and_forgotten_in_three_orders(model, tmp_path):
    changes = {**LEARN, "tasks": [LEARNED], "editors": [memit(model)]}
    study = write_study(tmp_path / "study.yaml", model, **changes)
    done = run(study, tmp_path / "out")
    assert done.exit_code == 0, done.output
    found = results(tmp_path / "out")
    last = {"learn_first-after-2", "forget_first-after-2-learned", "together-after-2-learned"}
    assert set(found) == {"base", "learn_first-after-0-learned", "forget_first-after-2", *last}
    for name in last:
        ids = found[name].edit["requests"]["ids"]
        assert len(ids) == 3
        assert sum(key.startswith("wrong/") for key in ids) == 1
        targets = load_edit(found[name].edit["folder"]).texts["targets.jsonl"].splitlines()
        (new,) = [own for own in map(json.loads, targets) if own["id"].startswith("wrong/")]
        (item,) = load_forget_set("wrong(facts)").select([new["id"]])
        assert new["target"] == item.answer
    found = {name: own for name, own in found.items() if name in last}
    hashes = {own.data["unlearn_forms"]["hash"] for own in found.values()}
    assert len(hashes) == 1, "all are asked what was learned"
    said = json.loads(run(study, tmp_path / "out", "--json").stdout)
    names = {own["key"]: own["name"] for own in said["cells"]}
    pairs = [(names[own["first"]], names[own["second"]]) for own in said["orders"]]
    assert len(pairs) == 3, "each order with each other"
    assert all("learn_first" in pairs[i][0] for i in (0, 1))
    one, other = found["learn_first-after-2"], found["forget_first-after-2-learned"]
    rows = {row["metric"]: row for row in said["orders"][0]["metrics"]}
    expected = {row.metric: row.record for row in compare(one, other)}
    assert rows == json.loads(json.dumps(expected))
    assert rows["forget_leak_direct"]["test"], "it is a paired test"
    assert "does the order matter?" in done.stdout
    assert "learn first, then forget first" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("name", "more", "steps"),
    [
        ("sustained_requests", "parts=[facts]", {"after-10", "after-100", "after-600"}),
        (
            "learn_then_forget",
            "seeds=0",
            {
                "learn_first-after-0-learned",
                "learn_first-after-20",
                "forget_first-after-20",
                "forget_first-after-20-learned",
                "together-after-20-learned",
            },
        ),
    ],
)
def test_shipped_sequences_are_planned(model, name, more, steps):
    path = study_file(name)
    cells = plan(study_of(read_study(path, [f"models={model}", more]), path), {}).cells
    assert len(cells) == 1 + 4 * len(steps)
    assert {cell.stage.name for cell in cells if cell.editor} == steps
