"""What a plan knows of attacks and localizations: how many, what they cost, which cannot be; and tables over seeds."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console
from study_files import NPO, memit, write_model, write_study
from tiny_models import one_thread  # noqa: F401
from typer.testing import CliRunner

from unlearn_eval.attacks.base import Attack, Work, attack_names, get_attack
from unlearn_eval.cli import app as cli
from unlearn_eval.localization.base import Localizer, get_localizer, localizer_names
from unlearn_eval.results.schema import Metric, Result
from unlearn_eval.runs.study.costs import Costs, attack_tokens, shared_by
from unlearn_eval.runs.study.over_seeds import Spread, over_seeds, spread
from unlearn_eval.runs.study.plan import plan
from unlearn_eval.runs.study.read import read_study
from unlearn_eval.runs.study.show import result_tables
from unlearn_eval.runs.study.spec import study_of
from unlearn_eval.utils.errors import UserError

NOW = "2026-01-01T00:00:00+00:00"
QUANTIZE = {"attack": "quantize", "settings": {"bits": [4]}}
RELEARN = {"attack": "relearn", "settings": {"steps": 4, "measure_at": []}}
PLACES = {**NPO, "settings": {"steps": 2}, "components": ["causal_tracing_mlps(budget=1)", "random_mlps(budget=1)"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("planned") / "model")


def planned(path):
    return plan(study_of(read_study(path, ()), path), {})


def cells_of(tmp_path, model, **changes):
    return planned(write_study(tmp_path / "study.yaml", model, **changes)).cells


# How many, and what they cost ------------------------------------------------------------------------------


def test_a_dry_run_counts_attacks_and_localizations(model, tmp_path):
    path = tmp_path / "study.yaml"
    attacks = [QUANTIZE, RELEARN, {"attack": "merge_back"}]
    write_study(path, model, editors=[PLACES, memit(model)], attacks=attacks, seeds=[0, 1])
    done = CliRunner().invoke(cli.app, ["run", str(path), "--output", str(tmp_path / "out"), "--dry-run"])
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    assert "8 cells: 0 done, 8 to do" in said
    assert "18 attacks: 3 on each of 6 edits (quantize, relearn, merge_back), and 4 on models without an edit" in said
    assert "4 localizations for 4 edits (causal_tracing_mlps, random_mlps)" in said
    assert "quantize, relearn, merge_back: without a reference" in said
    row = next(line.split() for line in done.stdout.splitlines() if "npo-causal_tracing_mlps" in line)
    assert row[5:8] == ["2", "6", "0"], "cells, attacks, done"


def test_other_masks_are_another_localization(model, tmp_path):
    places = ["random(budget=1)", *(f"random(budget=1,masks=attribution,masks.weights={n})" for n in ("5%", "10%"))]
    cells = cells_of(tmp_path, model, editors=[{**PLACES, "components": places}])
    assert len({cell.located.key for cell in cells if cell.editor}) == 3


def test_what_is_shared_is_paid_once(model, tmp_path):
    cells = cells_of(tmp_path, model, editors=[PLACES, memit(model)], attacks=[RELEARN, {"attack": "revert"}])
    first = shared_by(cells)
    base, traced, random, closed = cells
    assert first[base.key] == ()
    assert first[traced.key] == (traced.tries[0].control_key, traced.located.key)
    assert first[random.key] == (random.located.key,)
    assert first[closed.key] == ()
    assert traced.tries[1].control_key == "", "what it gives without the edit belongs to the edit"
    costs = Costs([], False)
    alone, shared = (costs.of(traced, 2, own).seconds for own in ((), first[traced.key]))
    assert shared > alone
    only_attacks = costs.of(traced, 2, first[traced.key][:1]).seconds
    assert alone < only_attacks < shared, "both the control and the localization cost something"
    assert costs.of(random, 2, first[random.key]).seconds == costs.of(random, 2).seconds, "nothing is looked at"


def test_attacks_cost_what_they_do(model, tmp_path):
    def tokens(**settings):
        attack = {"attack": "relearn", "settings": {"measure_at": [], "control": False, "steps": 4, **settings}}
        (cell,) = (
            cell
            for cell in cells_of(tmp_path, model, sizes=[8], editors=[memit(model)], attacks=[attack])
            if cell.editor
        )
        return attack_tokens(cell.tries[0], cell, 8, 20.0)

    answered = 8 * (2 * 20 + 24)
    training = 3 * 4 * 4 * 2 * 20  # forward and backward, steps, half of the facts, folds, tokens
    assert tokens() == training + 2 * answered
    assert tokens(control=True) == 2 * training + 3 * answered
    assert tokens(seeds=[0, 1]) == 2 * training + 3 * answered
    assert tokens(steps=8) == 2 * training + 2 * answered
    assert tokens(folds=4) == 3 * 4 * 6 * 4 * 20 + 2 * answered


def test_an_estimate_rests_on_cells_that_were_attacked_alike(model, tmp_path):
    cells = cells_of(tmp_path, model, editors=[memit(model)], attacks=[RELEARN])
    edited = cells[1]
    cell = {"model": edited.model.name, "editor": "memit", "ids": ["a", "b"]}
    timing = {"editing_seconds": 10.0, "evaluation_seconds": 46.0, "attack_seconds": 40.0}
    data = {"unlearn_facts": {"n_documents": sum(ask.n_documents for ask in edited.asks)}}

    def record(attacks):
        config = {"cell": {**cell, "attacks": attacks}, "peak_memory_bytes": 7}
        return Result("evaluation", "complete", NOW, config=config, data=data, timing=timing)

    alike, other = record([{"attack": "relearn", "settings": {"steps": "4", "measure_at": ""}}]), record([])
    found = Costs([alike, other], False).of(edited, 4)
    assert found.source == "what cells of this folder took"
    assert found.seconds == pytest.approx(6 + (10 + 40) * 2)
    assert Costs([other], False).of(edited, 4).source == "a rule of thumb by parameter count"


def test_every_attack_and_localization_says_what_it_costs():
    for name in attack_names():
        attack = get_attack(name)
        assert isinstance(attack, Attack)
        few, many = (attack.work(attack.Config(), n, 12) for n in (4, 40))
        assert few != Work()
        assert (many.trained, many.answered, many.read) >= (few.trained, few.answered, few.read)
        assert many.answered + many.read + many.trained > few.answered + few.read + few.trained
    for name in localizer_names():
        method = get_localizer(name)
        assert isinstance(method, Localizer)
        assert (method.passes(method.Config(), 12) > 0) == method.needs_facts


# What cannot be --------------------------------------------------------------------------------------------


def write_items(path, n, **more):
    records = [{"id": f"i{i}", "question": f"Where is T{i}?", "answer": f"A{i % 3}", **more} for i in range(n)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


GRACE = {"editor": "grace", "settings": {"layers": [1]}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attacks": [RELEARN], "editors": [GRACE]}, "relearn cannot treat the edits of grace: a memory leaves"),
        ({"attacks": [RELEARN], "sizes": [1]}, "relearn: 1 facts in 1 groups are too few for 2 folds"),
        ({"attacks": [RELEARN], "sizes": [1], "known": True}, "relearn: 1 facts in 1 groups are too few"),
        ({"attacks": ["probe"], "sizes": [1]}, "probe: 1 facts in 1 groups"),
        ({"attacks": [{"attack": "probe", "retain": "few"}]}, "probe: probes are trained on at least 10 other facts"),
        (
            {"editors": [PLACES], "forget": "bare"},
            "npo-causal_tracing_mlps in model: none of the 12 items of .* subject",
        ),
        ({"editors": [PLACES], "forget": "alike"}, "have the same answer and no wrong ones"),
        (
            {"editors": [{**PLACES, "components": "random(budget=9)"}]},
            "npo-random in model: the budget '9' is nothing, or",
        ),
        (
            {"editors": [{**PLACES, "components": "fact_lookup(way=probe)"}]},
            "npo-fact_lookup in model: a probe with 5 folds needs 5 facts of each answer",
        ),
    ],
)
def test_what_cannot_be_is_found_before_anything_runs(changes, says, model, tmp_path):
    files = {
        "few": write_items(tmp_path / "few.jsonl", 3),
        "bare": write_items(tmp_path / "bare.jsonl", 12),
        "alike": write_items(tmp_path / "alike.jsonl", 12, answer="A", subject="Where"),
    }
    text = json.dumps(changes)
    for name, path in files.items():
        text = text.replace(f'"{name}"', json.dumps(path))
    asks = {"tasks": [{"task": "unlearn_forms", "metadata": {"forms": ["direct"]}}]} if "forget" in changes else {}
    with pytest.raises(UserError, match=says):
        cells_of(tmp_path, model, **asks, **json.loads(text))


def test_an_architecture_without_the_parts_is_refused(model, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for file in model.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "config.json").read_text())
    state = {"model_type": "mamba", "architectures": ["MambaForCausalLM"], "hidden_size": 16, "num_hidden_layers": 2}
    (other / "config.json").write_text(json.dumps({**state, "vocab_size": config["vocab_size"]}))
    with pytest.raises(UserError, match="npo-causal_tracing_mlps in other: "):
        cells_of(tmp_path, other, editors=[PLACES])


def test_edits_that_one_attack_cannot_treat_are_named(model, tmp_path):
    reference = [own | {"reference": str(model)} for own in (RELEARN, QUANTIZE)]
    path = write_study(tmp_path / "study.yaml", model, editors=[memit(model), GRACE], attacks=reference)
    warnings = planned(path).warnings
    (warning,) = (own for own in warnings if own.startswith("relearn"))
    assert warning.startswith("relearn cannot treat the edits of grace and is null there")


# Over seeds ------------------------------------------------------------------------------------------------


def test_seeds_are_one_row_with_mean_and_deviation(model, tmp_path):
    cells = cells_of(tmp_path, model, editors=[memit(model)], seeds=[0, 1, 2])
    values = {0: (0.2, 0.5), 1: (0.4, None), 2: (0.9, 0.7)}
    results = {}
    for cell in cells:
        first, second = values[cell.seed]
        metrics = {
            "unlearn_facts": {"forget_accuracy": Metric(first if cell.editor else 1.0, n=2, higher_is_better=False)},
            "attack_relearn": {
                "forget_accuracy": Metric(second, n=2, reason=None if second else "none", higher_is_better=False),
                "forget_other": Metric(0.0, n=2),
            },
        }
        edit = {"folder": "x"} if cell.editor else None
        timing = {"editing_seconds": 10.0 * (1 + cell.seed), "localization_seconds": 4.0}
        results[cell.key] = Result("evaluation", "complete", NOW, metrics=metrics, edit=edit, timing=timing)
    rows = over_seeds(cells, results, [("unlearn_facts", "forget_accuracy"), ("", "editing_seconds")])
    assert [(row.cell.editor and row.cell.editor.name, row.n) for row in rows] == [(None, 3), ("memit", 3)]
    assert rows[1].values["unlearn_facts", "forget_accuracy"] == Spread(pytest.approx(0.5), pytest.approx(0.360555), 3)
    assert rows[0].values["", "editing_seconds"] == Spread(None, None, 0)
    assert spread([1.0, None]) == Spread(1.0, None, 1)
    screen = Console(file=io.StringIO(), width=160)
    shown = ("attack_relearn/forget_accuracy", "unlearn_facts/forget_accuracy")
    screen.print(result_tables(cells, results, shown)[-2])
    lines = [" ".join(line.split()) for line in screen.file.getvalue().splitlines() if line.strip()]
    assert lines[0] == "facts · mean ± standard deviation over seeds"
    assert "memit 2 3 0.600 ±0.141 0.500 ±0.361 4 ±0 20 ±10" in lines
    assert any(line.startswith("unedited 2 3 0.600 ±0.141 1.000 ±0.000 – –") for line in lines)
    assert "other" not in screen.file.getvalue(), "only what the study names"
    one = [cell for cell in cells if cell.seed == 0]
    assert not any("over seeds" in str(getattr(table, "title", "")) for table in result_tables(one, results, shown))


def test_cells_that_failed_are_left_out_of_means(model, tmp_path):
    cells = cells_of(tmp_path, model, editors=[memit(model)], seeds=[0, 1])
    results = {
        cell.key: Result(
            "evaluation",
            "complete" if cell.seed else "failed",
            NOW,
            metrics={"t": {"m": Metric(0.25, n=1)}} if cell.seed else {},
            notes=["it failed"],
        )
        for cell in cells
    }
    assert [row.n for row in over_seeds(cells, results, [("t", "m")])] == [1, 1]
    assert replace(cells[0], seed=1).name != cells[0].name
