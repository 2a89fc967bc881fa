"""Attacks in studies: after every edit's tasks, keyed and skipped like the rest."""

import shutil
from dataclasses import replace
from inspect import signature

import pytest
from study_files import NPO, memit, write_model, write_study
from tiny_models import one_thread  # noqa: F401
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.results.files import read_result, read_samples
from unlearn_eval.runs.study.plan import plan
from unlearn_eval.runs.study.read import read_study
from unlearn_eval.runs.study.spec import study_of
from unlearn_eval.utils.errors import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("attacked") / "model")


def planned(path):
    return plan(study_of(read_study(path, ()), path), {})


def run(path, output):
    done = CliRunner().invoke(cli.app, ["run", str(path), "--output", str(output)])
    if isinstance(done.exception, UserError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return {p.parent.name.rpartition("-")[0]: read_result(p) for p in output.glob("runs/*/result.json")}


QUANTIZE = {"attack": "quantize", "settings": {"bits": [4]}}


def test_attacks_follow_the_tasks_of_every_edit_and_are_done_once(model, tmp_path):
    path, output = tmp_path / "study.yaml", tmp_path / "out"
    write_study(path, model, editors=[memit(model)], attacks=[QUANTIZE])
    results = run(path, output)
    assert sorted(results) == ["model_base_facts-2_s0", "model_memit_facts-2_s0"]
    base, edited = results["model_base_facts-2_s0"], results["model_memit_facts-2_s0"]
    assert list(base.metrics) == ["unlearn_facts"]
    assert list(edited.metrics) == ["unlearn_facts", "attack_quantize"]
    assert edited.metrics["attack_quantize"]["forget_attacked_accuracy"].n == 2
    assert {one["at"] for one in edited.robustness["attack_quantize"]["levels"]} == {None, 4}
    assert edited.config["cell"]["attacks"][0]["settings"] == {"bits": "4"}
    ids = [record["id"] for record in read_samples(edited.path, "attack_quantize")]
    assert ids == edited.config["cell"]["ids"]
    (first,) = (output / "shared" / "attacks").glob("quantize-*.json")
    written = first.stat().st_mtime_ns
    run(path, output)  # nothing is left to do
    more = {"attack": "merge_back", "name": "halves", "settings": {"shares": [0.5]}}
    write_study(path, model, editors=[memit(model)], attacks=[QUANTIZE, more])
    run(path, output)  # the cell has another key now, and so a second folder
    again = next(r for p in output.glob("runs/*memit*/result.json") if "attack_halves" in (r := read_result(p)).metrics)
    assert first.stat().st_mtime_ns == written
    assert list(again.metrics) == ["unlearn_facts", "attack_quantize", "attack_halves"]
    assert again.metrics["attack_quantize"] == edited.metrics["attack_quantize"]


def test_keys_depend_on_attacks_and_nothing_changes_without_any(model, tmp_path):
    path = tmp_path / "study.yaml"
    keys = {}
    for name, attacks in (
        ("none", None), ("empty", []), ("one", [QUANTIZE]), ("other", [QUANTIZE | {"settings": {"bits": [8]}}]),
        ("retain", [QUANTIZE | {"retain": "facts"}]), ("reference", [QUANTIZE | {"reference": str(model)}]),
    ):  # fmt: skip
        path.write_text("")
        write_study(path, model, editors=[memit(model)], attacks=attacks)
        cells = {cell.editor and cell.editor.name: cell for cell in planned(path).cells}
        keys[name] = cells["memit"].key
        keys[f"{name} base"] = cells[None].key
        assert cells[None].tries == ()
    assert keys["none"] == keys["empty"]
    assert len({keys[name] for name in ("none", "one", "other", "retain", "reference")}) == 5
    assert len({key for name, key in keys.items() if name.endswith("base")}) == 1


def test_what_is_not_edited_is_attacked_once_for_all_edits(model, tmp_path, monkeypatch):
    """Two edits, one pass over the unedited model; the results are those of attacks that do it all by themselves."""
    from unlearn_eval.attacks.methods import quantize

    asked, whole = [], quantize.ATTACK
    watched = replace(whole, run=lambda case, config: asked.append(case.names) or whole.run(case, config))
    monkeypatch.setattr(quantize, "ATTACK", watched)
    path, output = tmp_path / "study.yaml", tmp_path / "out"
    editors = [memit(model), {**memit(model, preservation=3), "name": "other"}]
    reference = QUANTIZE | {"reference": str(model)}
    write_study(path, model, editors=editors, attacks=[reference], seeds=[0, 1])
    results = run(path, output)
    assert asked == [*[("full", "reference"), ("unlearned",), ("unlearned",)] * 2]
    assert len([*(output / "shared" / "controls").glob("quantize-*.json")]) == 2, "one for each choice of facts"
    monkeypatch.setattr(quantize, "ATTACK", replace(watched, controls_alone=False))
    write_study(path, model, editors=editors, attacks=[reference], seeds=[1])
    alone = {name: result for name, result in run(path, tmp_path / "alone").items() if "base" not in name}
    assert asked[6:] == [("unlearned", "full", "reference")] * 2
    for name, result in alone.items():
        assert result.metrics["attack_quantize"] == results[name].metrics["attack_quantize"]
        assert result.robustness == results[name].robustness


def test_answers_are_as_long_as_the_study_says(model, tmp_path):
    path = tmp_path / "study.yaml"
    lengths, keys = {}, set()
    for n in (1, 5):
        write_study(path, model, editors=[memit(model)], attacks=[QUANTIZE | {"max_new_tokens": n}])
        (cell,) = (cell for cell in planned(path).cells if cell.editor)
        keys |= {cell.key, cell.tries[0].control_key}
        results = run(path, tmp_path / "out")
        edited = next(r for p in (tmp_path / "out").glob("runs/*memit*") if (r := read_result(p / "result.json")))
        lengths[n] = edited.config["tasks"]["attack_quantize"]["max_new_tokens"]
        assert results
        shutil.rmtree(tmp_path / "out")
    assert lengths == {1: 1, 5: 5}
    assert len(keys) == 4


def test_with_known_facts_only_what_is_known_is_trained_on_and_read(model, tmp_path, monkeypatch):
    """What is kept in training is known, not forgotten and not asked; what probes learn from is known."""
    from unlearn_eval.attacks.methods import prefix
    from unlearn_eval.data.forget_sets import facts
    from unlearn_eval.runs import edit as editing
    from unlearn_eval.runs.study.cells import worker

    known = [item.id for item in facts()][3:60:5]
    monkeypatch.setattr(worker, "known_items", lambda *a: known)
    seen, make, whole = {}, editing.make_edit, prefix.ATTACK

    def watched_edit(*arguments, **options):
        seen["kept"] = signature(make).bind(*arguments, **options).arguments["retain"]
        return make(*arguments, **options)

    monkeypatch.setattr(editing, "make_edit", watched_edit)
    watched = replace(whole, run=lambda case, config: seen.update(others=case.others) or whole.run(case, config))
    monkeypatch.setattr(prefix, "ATTACK", watched)
    path = tmp_path / "study.yaml"
    write_study(
        path, model, editors=[NPO], known=True, attacks=[{"attack": "prefix", "settings": {"prompts": ["sure"]}}]
    )
    (result,) = (r for name, r in run(path, tmp_path / "out").items() if "npo" in name)
    cell = result.config["cell"]
    assert len(cell["ids"]) == len(cell["kept"]) == 2
    assert sorted(item.id for item in seen["kept"]) == sorted({*known} - {*cell["ids"], *cell["kept"]})
    assert {item.id for item in seen["others"]} <= {*known} - {*cell["ids"]}
    assert len(seen["others"]) >= len(known) - 4
    write_study(path, model, editors=[NPO], known=True, kept=len(known))
    with pytest.raises(AssertionError, match="knows nothing but what is forgotten"):
        run(path, tmp_path / "none_left")


@pytest.mark.parametrize(
    ("attacks", "says"),
    [
        (["relern"], "did you mean relearn"),
        ([{"attack": "relearn", "setings": {}}], "did you mean settings"),
        ([{"attack": "relearn", "settings": {"fold": 3}}], "did you mean folds"),
        ([{"attack": "quantize", "settings": {"bits": 1}}], "bits"),
        (["quantize", "quantize"], "stands in the study twice"),
        ([{"attack": "relearn", "retain": "fact"}], "did you mean facts"),
        ([{"attack": "relearn", "reference": "/no/such/model"}], "/no/such/model"),
    ],
)
def test_mistakes_are_found_before_anything_runs(attacks, says, model, tmp_path):
    path = tmp_path / "study.yaml"
    write_study(path, model, editors=[memit(model)], attacks=attacks)
    with pytest.raises(UserError, match=says):
        planned(path)
