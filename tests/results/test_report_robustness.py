"""What the page holds of attacks and localizations: the files' numbers, in old files too, and answers under attack."""

import dataclasses
import json
import random

import pytest
from attack_data import LAYERS, PROBE, RELEARN, STEPS, placed, probing, relearning, write_attacked, write_study
from report_data import TASK
from report_pages import NASTY, parts

from unlearn_eval.results.files import read_result, write_result
from unlearn_eval.results.report.page import build_page
from unlearn_eval.results.report.robustness import attack_entries, edit_numbers, headline_level, maps
from unlearn_eval.results.runs import read_runs


@pytest.fixture
def folder(tmp_path):
    return write_study(tmp_path / "runs", random.Random(0))


def entry(summary, run, task):
    index = [one["name"] for one in summary["runs"]].index(run)
    (found,) = [one for one in summary["attacks"] if (one["run"], one["task"]) == (index, task)]
    return found


def rewritten(path, change):
    """The file after `change` of its result's part `robustness`."""
    result = read_result(path)
    part = json.loads(json.dumps(result.robustness))
    change(part)
    write_result(dataclasses.replace(result, robustness=part), path)


def test_every_attack_is_there_with_its_curves_and_intervals(folder):
    summary, _ = parts(build_page(read_runs(folder)))
    found = entry(summary, "npo-fact_lookup", RELEARN)
    part = read_result(folder / "npo-fact_lookup.json").robustness[RELEARN]
    assert (found["axis"], found["level"], found["where"], found["reason"]) == ("step", 20, "fact_lookup", None)
    assert [(c["model"], c["value"], c["condition"]) for c in found["curves"]] == [
        (c["model"], c["value"], c["condition"]) for c in part["curves"]
    ]
    assert found["curves"][0]["at"] == list(STEPS)
    assert found["curves"][0]["mean"] == pytest.approx(part["curves"][0]["mean"], rel=1e-3)
    assert found["curves"][0]["n"] == 12
    cell = cells_of(summary, "npo-fact_lookup", RELEARN, "forget_accuracy_recovery")
    assert [cell["low"], cell["high"]] == part["intervals"]["forget_accuracy_recovery"], "the file's own interval"
    assert {one["task"] for one in summary["attacks"]} == {RELEARN, PROBE}


def cells_of(summary, run, task, name):
    index = [r["name"] for r in summary["runs"]].index(run)
    column = [(c["task"], c["name"]) for c in summary["columns"]].index((task, name))
    cells = summary["cells"]
    (row,) = [i for i in range(len(cells["run"])) if (cells["run"][i], cells["column"][i]) == (index, column)]
    return {key: values[row] for key, values in cells.items()}


def test_an_attack_that_measured_nothing_keeps_its_reason(folder):
    summary, _ = parts(build_page(read_runs(folder)))
    found = entry(summary, "grace", RELEARN)
    assert "cannot treat memory edits" in found["reason"]
    assert found["curves"] == []
    cell = cells_of(summary, "grace", RELEARN, "forget_attacked_accuracy")
    assert cell["value"] is None
    assert "cannot treat" in cell["reason"]


def test_files_without_curves_are_drawn_from_their_levels(folder):
    path = folder / "npo-fact_lookup.json"
    (before,) = [one for one in attack_entries(read_runs(path)) if one["task"] == RELEARN]

    def older(part):
        for own in part.values():
            for key in ("curves", "level", "does"):
                own.pop(key, None)

    rewritten(path, older)
    (found,) = [one for one in attack_entries(read_runs(path)) if one["task"] == RELEARN]
    assert found["level"] == 20
    for curve in found["curves"]:
        (own,) = [c for c in before["curves"] if all(c[k] == curve[k] for k in ("model", "condition", "value"))]
        assert curve["mean"] == pytest.approx(own["mean"], abs=1e-3)
        assert curve["low"] == [None] * len(STEPS)


def level(model, at, condition="attack", n=2, **values):
    return {"model": model, "condition": condition, "fold": 0, "seed": 0, "at": at, "n": n, "values": values}


def test_old_levels_are_weighted_by_their_items_and_probes_get_their_control():
    from unlearn_eval.results.report.robustness import _from_levels

    found = {
        (c["model"], c["value"]): c["mean"]
        for c in _from_levels(
            [
                level("unlearned", 0, probe_accuracy=1.0),
                level("unlearned", 0, probe_accuracy=0.5, n=6),
                level("unlearned", 0, "random_labels", probe_accuracy=0.25),
                level("full", 0, log_probability=-1.0),
                level("unlearned", 0, log_probability=-3.0),
                level("unlearned", 1, log_probability=None),
            ]
        )
        if c["condition"] == "attack"
    }
    assert found["unlearned", "probe_accuracy"] == [0.625]
    assert found["unlearned", "above_control"] == [0.375]
    assert found["unlearned", "gap"] == [2.0]
    assert ("full", "gap") not in found


@pytest.mark.parametrize(
    ("headline", "means", "expected"),
    [
        ("last", {8: 0.9, 4: 0.1}, 4),
        ("worst", {8: 0.1, 4: 0.9}, 4),
        ("worst", {"a": 0.9, "b": 0.1}, "a"),
        ("last", {}, None),
    ],
)
def test_the_level_that_stands_for_an_attack_is_found_again(headline, means, expected):
    levels = [level("unlearned", None, accuracy=1.0)] + [level("unlearned", at, accuracy=v) for at, v in means.items()]
    assert headline_level({"headline": headline, "levels": levels}) == expected
    assert headline_level({"headline": headline, "levels": levels, "level": 7}) == 7


def test_answers_under_attack_are_those_of_the_samples(folder):
    _, answers = parts(build_page(read_runs(folder)))
    strings, rows = answers["strings"], answers["questions"][RELEARN]
    columns = answers["tried"]["npo-fact_lookup"][RELEARN]
    assert [(c["model"], c["at"]) for c in columns] == [("full", None), ("unlearned", None), ("unlearned", 20)]
    samples = [
        json.loads(line) for line in (folder / f"npo-fact_lookup.{RELEARN}.samples.jsonl").read_text().splitlines()
    ]
    for i, record in enumerate(samples):
        assert [strings[j] for j in rows[i][:4]] == [record["id"], "forget", record["question"], record["answer"]]
        for column in columns:
            (own,) = [o for o in record["observations"] if (o["model"], o["at"]) == (column["model"], column["at"])]
            assert strings[column["said"][i]] == own["said"]
            assert column["numbers"][i] == pytest.approx(own["probability"], abs=1e-3)
            right = "k" if column["model"] == "full" else "l"
            assert column["classes"][i] == (right if own["accuracy"] else "n")
    assert answers["runs"]["npo-fact_lookup"][RELEARN]["said"] == columns[1]["said"]
    (read,) = answers["tried"]["npo-fact_lookup"][PROBE]
    assert read["name"] == "forget_probe_accuracy"
    assert set(read["said"]) == {-1}
    assert set(read["numbers"]) <= {0.0, 1.0}
    assert strings[answers["questions"][TASK][0][2]] == samples[0]["question"], "where the two are joined"


def test_files_of_one_edit_are_known_as_such(folder):
    runs = read_runs(folder)
    numbers = dict(zip([run.name for run in runs.runs], edit_numbers(runs), strict=True))
    assert numbers["base"] is None
    assert len({numbers[name] for name in numbers if name.startswith("npo")}) == 3, "seeds are other edits"
    generator = random.Random(1)
    write_attacked(folder, "later", {PROBE: probing(4, generator)}, seed=1, where=placed("causal_tracing_mlps", [7, 8]))
    runs = read_runs(folder)
    numbers = dict(zip([run.name for run in runs.runs], edit_numbers(runs), strict=True))
    assert numbers["later"] == numbers["npo-causal_tracing_mlps"]
    result = read_result(folder / "later.json")
    others = result.edit | {"requests": result.edit["requests"] | {"hash": "of other items"}}
    write_result(dataclasses.replace(result, edit=others), folder / "later.json")
    runs = read_runs(folder)
    numbers = dict(zip([run.name for run in runs.runs], edit_numbers(runs), strict=True))
    assert numbers["later"] != numbers["npo-causal_tracing_mlps"]


# Localizations ---------------------------------------------------------------------------------------------


def test_a_localization_is_shown_once_with_its_scores_and_the_random_one_last(folder):
    write_attacked(folder, "again", {PROBE: probing(4, random.Random(2))}, seed=9, where=placed("fact_lookup", [1, 2]))
    found = maps(read_runs(folder))
    assert [one["method"] for one in found] == ["fact_lookup", "causal_tracing_mlps", "random_mlps"] or [
        one["method"] for one in found
    ] == ["causal_tracing_mlps", "fact_lookup", "random_mlps"]
    own = {one["method"]: one for one in found}
    assert len(own["fact_lookup"]["runs"]) == 2
    assert own["fact_lookup"]["scores"]["mlp"][0] == pytest.approx(0.6)
    assert own["fact_lookup"]["chosen"] == [("mlp", 1, 2), ("mlp", 2, 2)]
    assert own["random_mlps"]["scores"]["mlp"] == [None] * LAYERS
    assert {one["n_weights"] for one in found} == {4000}


def components(**changes):
    own = {
        "kind": "components",
        "version": 1,
        "method": "causal_tracing",
        "modules": ["model.layers.1.self_attn.o_proj", "model.layers.0.mlp.down_proj"],
        "mlp_layers": [0],
        "n_weights": 10,
        "n_weights_in_blocks": 40,
        "n_layers": 2,
        "budget": {"given": "1", "n_weights": 10},
        "ranking": [
            {"kind": "mlp", "layer": 0, "score": 0.5},
            {"kind": "attention", "layer": 1, "score": -0.25},
            {"kind": "attention", "layer": 0, "score": 0.123456},
        ],
        "tables": {"effects": {"roles": ["last token"], "mlp": [[0.5], [None]], "attention": [[0.1], [0.2]]}},
        "settings": {"noise": 3.0},
        "seed": 0,
        "model": {"id": "org/tiny"},
        "facts": {"set": "facts", "n": 3},
        "notes": {"metric": "probability", "heads": [{"layer": 0, "head": 1, "effect": 0.5}]},
    }
    return own | changes


def test_files_of_localize_are_shown_and_are_no_results(folder):
    (folder / "where.json").write_text(json.dumps(components()))
    (folder / "other.json").write_text(json.dumps({"kind": "else"}))
    runs = read_runs(folder)
    assert runs.n_skipped == 0
    (own,) = [one for one in maps(runs) if one["file"]]
    assert own["file"] == "where.json"
    assert own["scores"] == {"mlp": [0.5, None], "attention": [0.1235, -0.25]}
    assert sorted(own["chosen"]) == [("attention", 1, 1), ("mlp", 0, 1)]
    assert own["effects"]["mlp"] == [[0.5], [None]]
    assert own["notes"] == {"metric": "probability"}
    assert own["facts"] == "facts (3)"


def test_edits_without_scores_still_say_what_was_chosen(folder):
    old = {
        key: value for key, value in placed("fact_lookup", [4]).items() if key not in ("scores", "n_layers", "model")
    }
    write_attacked(folder / "old", "run", {PROBE: probing(4, random.Random(3))}, where=old)
    (own,) = maps(read_runs(folder / "old"))
    assert (own["n_layers"], own["scores"], own["chosen"]) == (5, {}, [("mlp", 4, 2)])


def test_pages_of_results_without_attacks_have_none(tmp_path):
    from report_data import write_many

    summary, answers = parts(build_page(read_runs(write_many(tmp_path, 3, 6))))
    assert (summary["attacks"], summary["maps"], answers["tried"]) == ([], [], {})


def test_what_a_model_wrote_under_attack_cannot_end_the_script(tmp_path):
    texts = [NASTY] * 6
    where = placed(NASTY, [1])
    parts_ = {RELEARN: relearning(6, random.Random(0), texts=texts)}
    write_attacked(tmp_path, "run", parts_, where=where)
    page = build_page(read_runs(tmp_path))
    _, answers = parts(page)  # exactly three scripts
    assert page.count("<script") == 3
    assert "<img" not in page
    column = answers["tried"]["run"][RELEARN][2]
    assert answers["strings"][column["said"][0]] == NASTY
