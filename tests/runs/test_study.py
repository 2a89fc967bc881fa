"""Studies: what a file may say, what is refused before anything runs, and what happens to cells."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from study_files import FACTS, NPO, command, memit, numbers, study_content, write_model, write_study
from tiny_models import one_thread, tiny_model  # noqa: F401
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.data.forget_sets import facts
from unlearn_eval.results.comparison import compare
from unlearn_eval.results.files import read_result
from unlearn_eval.runs.study import run as study_run
from unlearn_eval.runs.study.cells.told import choose, told
from unlearn_eval.runs.study.costs import Costs, n_parameters
from unlearn_eval.runs.study.plan import plan
from unlearn_eval.runs.study.read import read_study, study_file
from unlearn_eval.runs.study.run import states_of
from unlearn_eval.runs.study.show import Board
from unlearn_eval.runs.study.spec import ModelSpec, study_of
from unlearn_eval.runs.study.store import Store
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.locks import locked


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("study") / "model")


def run(study, *arguments):
    """`unlearn-eval run` in this process; its error, if it ends with one, is raised."""
    done = CliRunner().invoke(cli.app, ["run", str(study), *map(str, arguments)])
    if isinstance(done.exception, UserError):
        raise done.exception
    return done


def planned(path, *overrides):
    return plan(study_of(read_study(path, overrides), path), {})


# Reading ---------------------------------------------------------------------------------------------------


def test_yaml_is_read_as_people_mean_it(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("encoder: off\nrate: 1e-5\nflag: true\nn: 3\nbase: &b {x: 1}\nown: {<<: *b, y: no}\n")
    content = read_study(path)
    assert content == {
        "encoder": "off", "rate": 1e-5, "flag": True, "n": 3, "base": {"x": 1}, "own": {"x": 1, "y": "no"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("models: a\nforget: b\nmodels: c\n", r"line 3.*'models' stands here and in line 1"),
        ("models: [a\nforget: b\n", r"study.yaml, line 2"),
        ("- a\n- b\n", "holds a list"),
        ("", "is empty"),
        ("\tmodels: a\n", r"line 1"),
    ],
)
def test_unreadable_yaml_is_named_with_its_line(tmp_path, text, says):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        read_study(path)


def test_settings_of_the_command_line_hold_for_all_parts_and_names_mean_the_files_entries(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "editors: [{name: small, editor: memit, settings: {preservation: 2}}, grace]\nforget: facts\ntasks: [t]\n"
        "parts: {a: {sizes: [1], forget: x}, b: {sizes: [2]}}\n"
    )
    content = read_study(path, ["sizes=[10]", "editors=[small, rome]", "b.forget=y", "parts=b"])
    assert content["sizes"] == [10]
    assert content["editors"] == [{"name": "small", "editor": "memit", "settings": {"preservation": 2}}, "rome"]
    assert content["parts"] == {"b": {"forget": "y"}}
    for wrong, says in (("sizes", "KEY=VALUE"), ("c.sizes=1", "unknown part 'c'"), ("parts=[c]", "unknown part 'c'")):
        with pytest.raises(UserError, match=says):
            read_study(path, [wrong])


# Refusing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"editers": ["memit"]}, "did you mean editors"),
        ({"editors": ["memti"]}, "did you mean memit"),
        (
            {"editors": [NPO, {"editor": "memit", "settings": {"preservaton": 2}}]},
            r"editors\[1\]: unknown setting 'preservaton'.*did you mean preservation",
        ),
        ({"editors": [{"editor": "memit", "setings": {}}]}, "did you mean settings"),
        ({"recipes": ["plan"]}, "did you mean plain"),
        ({"recipes": [{"name": "x", "merg": "text"}]}, "did you mean merge"),
        ({"recipes": [{"name": "x", "merge": "txt"}]}, "did you mean text"),
        ({"recipes": [{"name": "x", "merge_size": "5"}]}, r"recipes\[0\].merge_size is '5'.*a whole number"),
        ({"recipes": [{"name": "x", "target": "nowhere.jsonl"}]}, "no file nowhere.jsonl"),
        ({"tasks": ["unlearn_fact"]}, "did you mean unlearn_facts"),
        ({"tasks": [{"task": "unlearn_facts", "limt": 3}]}, "did you mean limit"),
        ({"tasks": ["unlearn_rwku"]}, "unlearn_rwku asks about rwku:..., not about 'facts'"),
        ({"tasks": ["unlearn_tofu_forget01"]}, "asks about 'tofu:forget01'"),
        ({"tasks": None}, "has no tasks"),
        ({"forget": "fact"}, "did you mean facts"),
        ({"forget": "tofu:forget01", "tasks": ["unlearn_tofu_forget01"]}, "forget01_perturbed"),
        ({"sizes": [705]}, "705 items of 'facts' are to be forgotten, and there are 704"),
        ({"sizes": ["many"]}, r"sizes\[0\] is 'many'.*all, or a whole number of at least 1"),
        ({"sizes": [2, 704]}, "the retain set of unlearn_facts is empty"),
        ({"seeds": [-1]}, r"seeds\[0\] is -1.*a whole number of at least 0"),
        ({"known": True, "kept": 703, "sizes": [2]}, "705 items to forget and to keep are more than the 704"),
        ({"retain": None}, "npo needs items to retain"),
        ({"editors": [{"editor": "memit", "settings": {"text": "others"}}]}, "give the study known: true"),
        ({"editors": [{"editor": "npo"}], "recipes": ["merge"]}, "nothing to merge"),
        (
            {"forget": "sports:all", "tasks": ["unlearn_sports"], "editors": ["memit"], "recipes": ["merge"]},
            "cannot be merged by text",
        ),
        ({"backends": ["hf", "vlm"]}, "unknown backend"),
        ({"models": "/no/such/model"}, "/no/such/model"),
        ({"dtype": "float23"}, "did you mean float32"),
        ({"editors": ["memit", "memit"]}, "'memit' stands in the study twice"),
        ({"parts": {"a": {"forgte": "facts"}}}, "did you mean forget"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(model, tmp_path, monkeypatch, changes, says):
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(tmp_path))
    study = write_study(tmp_path / "study.yaml", model, **changes)
    with pytest.raises(UserError, match="(?s)" + says) as caught:
        run(study, "--output", tmp_path / "output")
    assert caught.value.hint
    assert not (tmp_path / "output").exists()


def test_ray_that_is_not_there_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"unlearn-eval\[sweep\]"):
        run(write_study(tmp_path / "study.yaml", model), "--output", tmp_path / "output", "--ray", "local")
    monkeypatch.undo()
    pytest.importorskip("ray")
    with pytest.raises(UserError, match="no Ray cluster at '127.0.0.1:9'"):
        run(write_study(tmp_path / "study.yaml", model), "--output", tmp_path / "output", "--ray", "127.0.0.1:9")


def test_foreign_folders_and_unknown_studies_are_refused(model, tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not a study's folder"):
        run(write_study(tmp_path / "study.yaml", model), "--output", tmp_path / "output")
    with pytest.raises(UserError, match="did you mean smoke"):
        study_file("smok")
    assert study_file("smoke").is_file()


# Planning --------------------------------------------------------------------------------------------------


def test_keys_depend_on_every_input_and_on_no_name(model, tmp_path):
    def keys(**changes):
        cells = planned(write_study(tmp_path / "study.yaml", model, **changes)).cells
        return {cell.editor.editor if cell.editor else "base": cell.key for cell in cells}

    first = keys()
    assert first == keys(batch_size=3, show=["forget_accuracy"], editors=[{"name": "mine", **memit(model)}, NPO])
    for changes in (
        {"sizes": [3]},
        {"seeds": [1]},
        {"kept": 3},
        {"dtype": "bfloat16"},
        {"chat": False},
        {"known": True},
        {"tasks": [{**FACTS, "limit": 2}]},
        {"tasks": [{**FACTS, "metadata": {}}]},
    ):
        assert not set(first.values()) & set(keys(**changes).values()), changes
    stronger = keys(editors=[memit(model, preservation=2), NPO])
    assert {name for name in first if first[name] != stronger[name]} == {"memit"}
    (tmp_path / "text.txt").write_text("Another text. " * 50)
    a = keys(editors=[memit(model, text=str(tmp_path / "text.txt")), NPO])["memit"]
    (tmp_path / "text.txt").write_text("Yet another text. " * 50)
    assert keys(editors=[memit(model, text=str(tmp_path / "text.txt")), NPO])["memit"] != a
    with (model / "generation_config.json").open("a") as file:
        file.write("\n")  # one byte of the model's folder
    assert not set(first.values()) & set(keys().values())


def test_editors_take_their_own_recipes_and_a_cell_that_stands_twice_is_run_once(model, tmp_path):
    own = tmp_path / "set.jsonl"
    own.write_text("".join(f'{{"question": "Who is {i}?", "answer": "Person {i}"}}\n' for i in range(3)))
    changes = {"forget": str(own), "sizes": [2, 3, "all"], "recipes": ["plain", "merge"], "tasks": ["unlearn_forms"]}
    study = write_study(tmp_path / "study.yaml", model, **changes)
    cells, warnings = planned(study).cells, planned(study).warnings
    names = [(cell.editor.name, cell.recipe.name, cell.size) for cell in cells if cell.editor]
    assert sorted(names, key=str) == sorted(
        [(e, r, n) for e, r in (("memit", "plain"), ("memit", "merge"), ("npo", "plain")) for n in (2, 3)], key=str
    )
    assert any("twice" in warning for warning in warnings)


def test_the_same_items_come_first_for_every_size():
    items = facts()
    few, more = (choose(items, n, 3, 5, None) for n in (4, 9))
    ids = [item.id for item in items]
    assert {item.id for item in few.forget} < {item.id for item in more.forget}
    assert not {item.id for item in more.forget} & set(more.kept)
    assert [item.id for item in few.forget] == sorted((item.id for item in few.forget), key=ids.index)
    known = choose(items, None, 0, 0, {"capital_of/france", "capital_of/italy"})
    assert len(known.forget) == 2
    assert not known.whole
    with pytest.raises(UserError, match="there are 1 that the model knows"):
        choose(items, 2, 0, 0, {"capital_of/france"})


def test_what_tasks_are_told():
    two = choose(facts(), 2, 0, 3, None)
    ids = [item.id for item in two.forget]
    assert told("unlearn_facts", two) == ({"forget": ids, "retain": list(two.kept)}, None)
    assert told("unlearn_forms", two) == ({"forget": ids, "retain": [item.id for item in two.control]}, None)
    assert {item.id for item in two.control} == set(two.kept)
    assert told("unlearn_utility", two) == ({"forget": ids}, None)
    assert told("arc_easy", two) == ({}, None)
    with pytest.raises(UserError, match="parts of their own"):
        told("unlearn_pistol", two)


# Running ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """A study that has run, with its output on the terminal."""
    folder = tmp_path_factory.mktemp("finished")
    study = write_study(folder / "study.yaml", model)
    return study, folder / "output", run(study, "--output", folder / "output")


def test_a_study_runs_and_its_results_are_ordinary_ones(finished):
    study, output, done = finished
    assert done.exit_code == 0, done.output
    assert "3 cells: 0 done, 3 to do" in done.stderr
    assert "rule of thumb" in done.stderr
    assert "unlearn_facts · facts" in done.stdout
    base, edited, trained = (
        read_result(next(output.glob(f"runs/*_{name}_*/result.json"))) for name in ("base", "memit", "npo")
    )
    assert base.edit is None
    assert edited.edit["requests"]["ids"] == base.config["cell"]["ids"]
    for own in (edited, trained):  # each of the model as it was, not as the one before had edited it
        assert own.edit["base"]["canonical_hash"] == base.model["canonical_weights_hash"]
    assert len({result.model["weights_hash"] for result in (base, edited, trained)}) == 3
    assert trained.edit["config"]["steps"] == 2
    rows = {row.metric: row for row in compare(base, edited)}
    assert rows["forget_probability"].paired.n == 2
    assert rows["forget_probability"].difference != 0
    assert edited.metrics["unlearn_facts"]["retain_accuracy"].n == 2


def test_it_is_the_same_as_edit_and_eval_by_hand(finished, model, tmp_path):
    _, output, _ = finished
    result = read_result(next(output.glob("runs/*_memit_*/result.json")))
    ids = ",".join(result.config["cell"]["ids"])
    sets = [f"--set={name}={value}" for name, value in result.config["cell"]["settings"].items()]
    CliRunner().invoke(
        cli.app,
        ["edit", "-m", str(model), "--ids", ids, "--device", "cpu", "-o", str(tmp_path / "edit"), *sets]
        + ["--retain", "facts"],
        catch_exceptions=False,
    )
    metadata = {"forget": result.config["cell"]["ids"], "retain": result.config["cell"]["kept"], "encoder": "off"}
    arguments = (
        f"eval -m {model} --edit {tmp_path / 'edit'} -t unlearn_facts --apply_chat_template --device cpu".split()
    )
    arguments += ["-a", "dtype=float32", "--gen_kwargs", "max_gen_toks=4", "--metadata", json.dumps(metadata)]
    CliRunner().invoke(cli.app, [*arguments, "-o", str(tmp_path / "after.json")], catch_exceptions=False)
    assert read_result(tmp_path / "after.json").metrics == result.metrics


def test_what_is_done_is_not_done_again_and_a_new_task_is_asked_alone(finished, monkeypatch):
    from unlearn_eval.runs.study.cells.worker import Worker

    study, output, _ = finished
    before = {path: path.stat().st_mtime_ns for path in output.glob("*/*/*")}
    monkeypatch.setattr(Worker, "run", lambda self, cell: pytest.fail("a cell was run again"))
    again = run(study, "--output", output)
    assert again.exit_code == 0
    assert "3 done, 0 to do" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in output.glob("*/*/*")} == before
    monkeypatch.undo()
    monkeypatch.setattr("unlearn_eval.runs.edit.make_edit", lambda *a, **k: pytest.fail("an edit was made again"))
    asked = []
    from unlearn_eval.harness import run as harness

    evaluate = harness.evaluate
    monkeypatch.setattr(harness, "evaluate", lambda lm, tasks, **k: asked.append(tasks) or evaluate(lm, tasks, **k))
    utility = "{task: unlearn_utility_quick, limit: 1, metadata: {parts: []}}"
    more = run(study, f"tasks=[unlearn_facts, {utility}]", "--output", output)
    assert more.exit_code == 0, more.output
    assert asked == [["unlearn_utility_quick"]] * 3
    assert "what cells of this folder took" in more.stderr


def test_results_by_other_code_are_named_and_not_used(finished, monkeypatch):
    study, output, _ = finished
    monkeypatch.setattr("unlearn_eval.runs.study.plan.code_hash", lambda room="": f"newer {room}")
    monkeypatch.setattr("unlearn_eval.runs.study.identity.code_hash", lambda room="": f"newer {room}")
    done = run(study, "--output", output, "--dry-run")
    assert "3 cells: 0 done, 3 to do" in done.stdout
    assert "note: 3 cells have results by another version of the code" in done.stdout


def test_estimates_rest_on_what_was_measured_else_on_the_size_of_the_model(finished, model):
    study, output, _ = finished
    cells = planned(study).cells
    timing = {"editing_seconds": 10.0, "evaluation_seconds": 6.0}
    of_one_task = [own for own in Store(output).results() if len(own.data) == 1]
    recorded, ruled = Costs([replace(own, timing=timing) for own in of_one_task], False), Costs([], False)
    n_documents = of_one_task[0].data["unlearn_facts"]["n_documents"]
    assert {ask.n_documents for cell in cells for ask in cell.asks} == {n_documents}
    for cell in cells:
        found, by_rule = recorded.of(cell, 6), ruled.of(cell, 6)
        assert found.seconds == pytest.approx(6.0 + (30.0 if cell.editor else 0.0)), "made of two items, asked for six"
        assert found.memory_bytes >= min(own.config["peak_memory_bytes"] for own in of_one_task)
        assert found.source == "what cells of this folder took"
        assert by_rule.source == "a rule of thumb by parameter count"
    size = sum(tensor.numel() for tensor in tiny_model("llama").parameters())
    assert n_parameters(ModelSpec("x", str(model))) == size
    assert n_parameters(ModelSpec("x", "org/Llama-2-7b-chat-hf")) == 7_000_000_000
    assert n_parameters(ModelSpec("x", "org/some-model")) is None
    edited = next(cell for cell in cells if cell.editor)
    assert ruled.of(edited, 20).seconds > 2 * ruled.of(edited, 2).seconds
    assert Costs([], True).of(edited, 2).seconds < ruled.of(edited, 2).seconds / 10


def test_a_terminal_sees_what_runs_and_what_is_done(finished):
    study, output, _ = finished
    own = planned(study)
    result = next(iter(Store(output).results()))
    screen = Console(file=io.StringIO(), force_terminal=True, width=150)
    board = Board(screen, own.cells, {cell.key: "to do" for cell in own.cells})
    with board.live():
        board.begin(own.cells[0])
        board.done(own.cells[0], result)
        board.begin(own.cells[1])
        board.progress(own.cells[1], "target values", 3, 25)
        screen.print(board._draw())
    said = screen.file.getvalue()
    for words in ("done", "forget_accuracy", "runs", "target values: 3 of 25", "1 of 3 cells done"):
        assert words in said


def test_a_dry_run_writes_nothing(model, tmp_path):
    done = run(write_study(tmp_path / "study.yaml", model), "--output", tmp_path / "output", "--dry-run")
    assert "3 cells: 0 done, 3 to do" in done.stdout
    assert not (tmp_path / "output").exists()


def test_a_failing_cell_is_recorded_and_the_others_go_on(model, tmp_path):
    bad = {"name": "bad", "editor": "memit", "settings": {"layers": [77]}}
    study = write_study(tmp_path / "study.yaml", model, editors=[bad, memit(model)])
    done = run(study, "--output", tmp_path / "output")
    assert done.exit_code == 1
    assert "hint: what failed is run again by" in done.stderr
    states = {name.split("_")[1]: found[0] for name, found in numbers(tmp_path / "output").items()}
    assert states == {"base": "complete", "bad": "failed", "memit": "complete"}
    failed = read_result(next(tmp_path.glob("output/runs/*_bad_*/result.json")))
    assert "77" in failed.notes[0]
    assert "Traceback" in failed.notes[1]
    again = run(study, "--output", tmp_path / "output")
    assert "2 done, 0 to do, 1 failed before" in again.stderr
    retried = run(study, "--output", tmp_path / "output", "--retry-failed")
    assert "[2/3]" in retried.stderr
    assert retried.exit_code == 1


def test_a_model_that_a_failure_leaves_changed_is_loaded_again(model, tmp_path, monkeypatch):
    from unlearn_eval.runs import edit as editing

    make_edit = editing.make_edit

    def spoil(loaded, forget, editor, *arguments, **options):
        if editor == "memit":
            next(loaded.model.parameters()).add_(1)
            raise RuntimeError("spoilt")
        return make_edit(loaded, forget, editor, *arguments, **options)

    study = write_study(tmp_path / "study.yaml", model)
    assert run(study, "--output", tmp_path / "whole").exit_code == 0
    monkeypatch.setattr(editing, "make_edit", spoil)
    assert run(study, "--output", tmp_path / "output").exit_code == 1
    expected, found = (
        {key: value for key, value in numbers(tmp_path / name).items() if "_npo_" in key}
        for name in ("whole", "output")
    )
    assert found == expected


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_stops_the_study_and_damages_nothing(model, tmp_path, monkeypatch, number):
    study = write_study(tmp_path / "study.yaml", model, editors=[memit(model)])
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 12:
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr("unlearn_eval.utils.json_files.os.fsync", full)
    done = run(study, "--output", tmp_path / "output")
    monkeypatch.undo()
    assert done.exit_code == 1
    assert "Go on with:" in done.stderr
    assert f"unlearn-eval run {study} --output {tmp_path / 'output'}" in done.stderr
    assert "failed" not in {found[0] for found in numbers(tmp_path / "output").values()}
    assert run(study, "--output", tmp_path / "output").exit_code == 0
    assert len(numbers(tmp_path / "output")) == 2
    assert not list(tmp_path.glob("output/**/*.tmp"))


def test_a_full_disk_is_recognised_where_the_error_does_not_say_so(model, tmp_path, monkeypatch):
    from unlearn_eval.runs import edit as editing

    usage = shutil.disk_usage(tmp_path)

    def fails(*arguments, **options):
        monkeypatch.setattr(study_run.shutil, "disk_usage", lambda folder: usage._replace(free=4096))
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")

    monkeypatch.setattr(editing, "make_edit", fails)
    study = write_study(tmp_path / "study.yaml", model)
    done = run(study, "--output", tmp_path / "output")
    assert done.exit_code == 1
    assert "is full (RuntimeError" in done.stderr
    assert "Go on with:" in done.stderr
    monkeypatch.undo()
    assert {found[0] for found in numbers(tmp_path / "output").values()} == {"complete"}
    assert run(study, "--output", tmp_path / "output").exit_code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_a_schedulers_end_print_the_command_that_goes_on(model, tmp_path, monkeypatch, number):
    from unlearn_eval.runs.study.cells.worker import Worker

    work = Worker.run

    def interrupted(self, cell):
        if cell.editor:
            os.kill(os.getpid(), number)
            time.sleep(5)
        return work(self, cell)

    monkeypatch.setattr(Worker, "run", interrupted)
    study = write_study(tmp_path / "a study.yaml", model)
    done = run(study, "sizes=[3]", "--output", tmp_path / "output")
    assert done.exit_code == 130
    assert f"unlearn-eval run '{study}' 'sizes=[3]' --output {tmp_path / 'output'}" in done.stderr
    assert len(numbers(tmp_path / "output")) == 1


def test_a_cell_that_takes_the_process_with_it_comes_last(model, tmp_path):
    path = write_study(tmp_path / "study.yaml", model)
    own, store = planned(path), Store(tmp_path / "output")
    states, _ = states_of(own, store)
    first = own.cells[0]
    for _ in range(2):
        store.attempt(first.name, first.key)
    left = study_run.left_to_do(own, store, states, retry_failed=False)
    assert [cell.key for cell in left] == [*(cell.key for cell in own.cells[1:]), first.key]


def test_one_run_at_a_time(model, tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from unlearn_eval.utils.locks import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "study.json").write_text("{}")
    other = subprocess.Popen([command()[0], "-c", code, str(tmp_path / "output")], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {other.pid} on .*, since 20"):
            run(write_study(tmp_path / "study.yaml", model), "--output", tmp_path / "output")
    finally:
        other.kill()
        other.wait()
    with locked(tmp_path / "output"):  # of the dead nothing is left
        pass


def test_edits_may_go_when_their_cells_are_done(model, tmp_path):
    study = write_study(tmp_path / "study.yaml", model, editors=[memit(model)], keep_edits=False)
    assert run(study, "--output", tmp_path / "output").exit_code == 0
    assert not list(tmp_path.glob("output/shared/edits/*"))
    assert len(numbers(tmp_path / "output")) == 2


def test_a_model_may_be_taught_first(model, tmp_path):
    (tmp_path / "set.jsonl").write_text(
        "".join(json.dumps({"question": f"Who is number {i}?", "answer": f"Person {i}"}) + "\n" for i in range(4))
    )
    study = write_study(
        tmp_path / "study.yaml",
        model,
        editors=[],
        forget=str(tmp_path / "set.jsonl"),
        finetune={"on": str(tmp_path / "set.jsonl"), "settings": {"steps": 2, "learning_rate": 0.01, "batch_size": 2}},
        tasks=[{"task": "unlearn_forms", "limit": 2, "gen_kwargs": {"max_gen_toks": 4}}],
    )
    done = run(study, "--output", tmp_path / "output")
    assert done.exit_code == 0, done.output
    assert "fine-tuning model on" in done.stderr
    found = read_result(next(tmp_path.glob("output/runs/*/result.json")))
    assert found.data["unlearn_forms"]["n_documents"]
    (tuned,) = tmp_path.glob("output/shared/models/*/unlearn_eval_finetune.json")
    assert json.loads(tuned.read_text())["weights"]["exact"] == found.model["weights_hash"]


def test_what_the_model_knows_is_asked_once(model, tmp_path, monkeypatch):
    from unlearn_eval.runs.study.cells import worker

    asked = []

    def two_known(path, items, *arguments):
        asked.append(path)
        return ["capital_of/france", "capital_of/italy", "capital_of/spain"]

    monkeypatch.setattr(worker, "known_items", two_known)
    study = write_study(
        tmp_path / "study.yaml", model, known=True, kept=1, retain=None, editors=[memit(model)], seeds=[0, 1]
    )
    assert run(study, "--output", tmp_path / "output").exit_code == 0
    assert len(asked) == 1
    for path in tmp_path.glob("output/runs/*/result.json"):
        cell = read_result(path).config["cell"]
        assert {*cell["ids"], *cell["kept"]} == {"capital_of/france", "capital_of/italy", "capital_of/spain"}


def test_text_may_be_what_the_model_says_to_the_other_items(model, tmp_path, monkeypatch):
    from unlearn_eval.runs.study.cells import worker

    ids = ["capital_of/france", "capital_of/italy", "capital_of/spain"]

    def three_known(path, items, *arguments):
        lines = [{"id": item.id, "generated": f"said to {item.id} " * 20} for item in items]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return ids

    monkeypatch.setattr(worker, "known_items", three_known)
    study = write_study(
        tmp_path / "study.yaml",
        model,
        known=True,
        kept=1,
        retain=None,
        editors=[memit(model, text="others")],
        seeds=[0, 1],
    )
    assert run(study, "--output", tmp_path / "output").exit_code == 0
    used = []
    for path in tmp_path.glob("output/runs/*/result.json"):
        result = read_result(path)
        if result.edit is not None:
            text = Path(result.edit["config"]["text"])
            said = {json.loads(line)["answer"].split()[2] for line in text.read_text().splitlines()}
            cell = result.config["cell"]
            used.append({*cell["ids"], *cell["kept"]})
            assert said == {item.id for item in facts()} - used[-1]
    assert len(used) == 2

    content = study_content(model, known=True, editors=[memit(model, text="others")])
    kept = [plan(study_of(content | {"kept": n}, study), {}).cells[1].edit_key for n in (1, 2)]
    assert kept[0] != kept[1], "what is kept says what the text is"


def test_help_of_run_is_fast():
    started = time.monotonic()
    done = subprocess.run(command("run", "--help"), capture_output=True, text=True, check=True)
    assert "KEY=VALUE" in done.stdout
    assert time.monotonic() - started < 5


def test_study_content_is_what_the_file_says(model, tmp_path):
    assert read_study(write_study(tmp_path / "study.yaml", model)) == json.loads(json.dumps(study_content(model)))
