"""Results and localizations are read whole: one bad file is named and skipped, and every committed one is read."""

import json
import random

import pytest
from documented import ROOT
from in_process import run_here
from odd_files import sound_localization
from report_data import TASK, records, write_run

from unlearn_eval.localization.components import load_components
from unlearn_eval.results.files import read_result
from unlearn_eval.results.runs import read_runs
from unlearn_eval.results.stored import AttackedSample, Localization, Sample
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.schemas import validated

COMMITTED = [
    path
    for path in sorted((ROOT / "results").rglob("*.json"))
    if '"kind": "' in path.read_text()[:60] and '"kind": "meta_evaluation"' not in path.read_text()[:60]
    if "scratch" not in path.parts  # what `make certificate` leaves
]
VAST = 10**400
BAD = {
    "edit.requests": ["x", 3],
    "edit.base.canonical_hash": [7, []],
    "edit.notes": [[], "x"],
    "edit.seconds": ["x", -1, VAST],
    "metrics.unlearn_facts.forget_accuracy.value": ["x", True, VAST],
    "metrics.unlearn_facts.forget_accuracy.n": [2.5, -1],
    "metrics.unlearn_facts.forget_accuracy.higher_is_better": [2],
    "samples.unlearn_facts": [None, 3],
    "samples.unlearn_facts.sha256": ["x"],
    "provenance.git": ["x"],
    "model.id": ["", 3],
    "timing": [{"seconds": 1}, {"x_seconds": "y"}],
    "created": ["yesterday", "2026-01-01"],
    "command": ["x", [1]],
    "notes": ["x", [None]],
}


@pytest.mark.parametrize(("place", "value"), [(place, value) for place, values in BAD.items() for value in values])
def test_one_bad_result_is_named_and_skipped(place, value, tmp_path):
    write_run(tmp_path, "good", records(4, random.Random(0)))
    bad = write_run(tmp_path, "bad", records(4, random.Random(1)), "memit")
    content = json.loads(bad.read_text())
    *parents, last = place.split(".")
    at = content
    for step in parents:
        at = at[step]
    at[last] = value
    bad.write_text(json.dumps(content))
    with pytest.raises(UserError, match="is not a sound result file") as error:
        read_result(bad)
    assert place in error.value.message
    runs = read_runs(tmp_path)
    assert [run.name for run in runs.runs] == ["good"]
    assert runs.n_skipped == 1
    assert str(bad) in runs.notes[0]


@pytest.mark.parametrize("change", [{"doc_hash": {}}, {"id": [1]}, {"resps": 3}, {"id": 2.5}])
def test_bad_samples_are_named_and_the_rest_is_shown(change, tmp_path):
    write_run(tmp_path, "good", records(4, random.Random(0)))
    bad = write_run(tmp_path, "bad", [one | change for one in records(4, random.Random(1))], "memit")
    done = run_here(["report", str(tmp_path), "--output", str(tmp_path / "report.html")])
    assert done.code == 0, done.traceback + done.err
    file = bad.with_name(f"bad.{TASK}.samples.jsonl")
    assert f"no answers of bad: {file}, line 1" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.relative_to(ROOT / "results").as_posix())
def test_every_committed_result_is_read(path):
    result = read_result(path)
    for task, entry in result.samples.items():
        schema = AttackedSample if task in result.robustness else Sample
        lines = (path.parent / entry["file"]).read_text(encoding="utf-8").split("\n")
        for line in filter(None, lines):
            validated(schema, json.loads(line), path, "", "")


def test_a_meta_evaluation_beside_results_is_passed_over():
    """It has metrics, too; who names it as a result is told what it is."""
    runs = read_runs([ROOT / "results"])
    assert (runs.n_skipped, runs.notes) == (0, ())
    with pytest.raises(UserError, match="meta.json is a meta-evaluation, and no result"):
        read_runs([ROOT / "results" / "meta.json"])


def test_there_are_committed_results():
    assert len(COMMITTED) >= 11


@pytest.mark.parametrize(
    "change",
    [
        {"n_layers": 0},
        {"n_layers": 10**9},
        {"mlp_layers": [9]},
        {"ranking": [{"kind": "mlp", "layer": 9}]},
        {"model": "x"},
        {"ranking": [{"kind": "constructor", "layer": 0}]},
        {"n_weights_in_blocks": 0},
        {"tables": 2.5},
        {"notes": [None]},
        {"tables": {"probe_accuracy": {"full": [0.5]}}},
        {"seconds": "x"},
        {"more": 1},
        {"mask": {"file": "../x", "sha256": "0" * 64, "n_weights": 1, "settings": {"way": "x", "weights": "1"}}},
    ],
)
def test_bad_localizations_are_refused_and_skipped(change, tmp_path):
    write_run(tmp_path, "good", records(4, random.Random(0)))
    path = tmp_path / "where.json"
    path.write_text(json.dumps(sound_localization()))
    assert load_components(path).method == "fact_lookup"
    assert len(read_runs(tmp_path).localizations) == 1
    path.write_text(json.dumps(sound_localization() | change))
    with pytest.raises(UserError, match="is not whole, or has been changed"):
        load_components(path)
    runs = read_runs(tmp_path)
    assert (runs.localizations, runs.n_skipped) == ((), 1)


def test_a_localization_has_the_fields_of_components():
    import dataclasses

    from unlearn_eval.localization.components import Components

    own = {field.name for field in dataclasses.fields(Components)} - {"folder"}
    assert set(Localization.model_fields) - {"kind", "version"} == own
