"""Runs as rows: seeds averaged, labels of what differs, ranks, axes, plain names, and the sentence on each method."""

import math
from statistics import stdev

import pytest
from report_data import TASK, result

from unlearn_eval.metrics import catalogue
from unlearn_eval.results.files import write_result
from unlearn_eval.results.frames import load_frame
from unlearn_eval.results.groups import frontier_axes, group_runs, ranked, run_labels, scores, spread
from unlearn_eval.results.report.outcome import Number, outcome
from unlearn_eval.results.report.page_data import page_data
from unlearn_eval.results.runs import read_runs
from unlearn_eval.results.schema import Metric


def share(value, higher, n=20):
    return Metric(value, math.sqrt(value * (1 - value) / (n - 1)), n, 0, None, higher)


def metrics(right, kept, reworded=None):
    made = {"forget_accuracy": share(right, False), "retain_accuracy": share(kept, True)}
    return made if reworded is None else made | {"forget_paraphrase_accuracy": share(reworded, False)}


@pytest.fixture
def write(tmp_path):
    def put(name, own, method=None, seed=0, config=None, requests=None, cell=None, notes=None):
        made = result(name, own, method, seed)
        if made.edit:
            made.edit["config"] = config or {}
            made.edit["requests"] |= requests or {}
            made.edit["notes"] = notes or {}
        if cell:
            made.config["cell"] = cell
        return write_result(made, tmp_path / f"{name}.json")

    put.folder = tmp_path
    return put


def test_runs_are_called_by_what_differs_and_not_by_their_files(write):
    write("run-1", metrics(1.0, 1.0))
    for seed in (0, 1):
        write(f"run-2{seed}", metrics(0.1, 0.9), "alphaedit", seed, cell={"editor": "alphaedit", "recipe": "self"})
    write("run-3", metrics(0.1, 0.9), "alphaedit", cell={"editor": "alphaedit", "recipe": "plain"})
    runs = read_runs(write.folder)
    expected = {
        "run-1": "unedited",
        "run-20": "alphaedit, self, seed 0",
        "run-21": "alphaedit, self, seed 1",
        "run-3": "alphaedit",
    }
    assert run_labels(group_runs(runs.runs)) == expected
    summary, _ = page_data(runs)
    assert {run["name"]: run["label"] for run in summary["runs"]} == expected
    frame = load_frame(write.folder)
    assert dict(zip(frame.run, frame.label, strict=True)) == expected


def test_seeds_are_averaged_and_nothing_else(write):
    write("base", metrics(1.0, 1.0))
    for seed, right in enumerate((0.1, 0.2, 0.6)):
        write(f"a{seed}", metrics(right, 0.9), "memit", seed, requests={"forget_set_hash": str(seed) * 64})
    write("layers", metrics(0.1, 0.9), "memit", 0, config={"layers": [2]})
    write("target", metrics(0.1, 0.9), "memit", 0, requests={"target": "self"})
    for name in ("twice", "again"):  # of one seed: two rows, whatever they are
        write(name, metrics(0.1, 0.9), "rome", 7)
    groups = group_runs(read_runs(write.folder).runs)
    assert sorted(tuple(run.name for run in own.runs) for own in groups) == [
        ("a0", "a1", "a2"), ("again",), ("base",), ("layers",), ("target",), ("twice",),
    ]  # fmt: skip
    (averaged,) = [own for own in groups if len(own.runs) == 3]
    value = averaged.value(TASK, "forget_accuracy")
    assert (value.mean, value.deviation, value.n) == (pytest.approx(0.3), pytest.approx(stdev([0.1, 0.2, 0.6])), 3)
    summary, _ = page_data(read_runs(write.folder))
    row = summary["means"]["column"].index([c["name"] for c in summary["columns"]].index("forget_accuracy"))
    assert summary["means"]["value"][row] == pytest.approx(0.3)
    assert summary["means"]["n"][row] == 3


def test_labels_say_what_differs(write):
    write("plain", metrics(0.1, 0.9), "memit", 0, config={"layers": [1], "steps": 5})
    write("layers", metrics(0.1, 0.9), "memit", 0, config={"layers": [2], "steps": 5})
    write("target", metrics(0.1, 0.9), "memit", 0, config={"layers": [1], "steps": 5}, requests={"target": "self"})
    write("alone", metrics(0.1, 0.9), "rome", 0)
    write("cell", metrics(0.1, 0.9), "wise", 0, cell={"editor": "wise", "recipe": "self"})
    labels = {own.runs[0].name: own.label for own in group_runs(read_runs(write.folder).runs)}
    assert labels == {
        "plain": "memit, idk, layers=[1]",
        "layers": "memit, idk, layers=[2]",
        "target": "memit, self",
        "alone": "rome",
        "cell": "wise, self",
    }
    assert len(set(labels.values())) == len(labels)


def test_rows_are_ranked_by_both_and_failed_edits_come_last(write):
    failed = {"self_check": {"n": 10, "n_took": 0}}
    for name, own, notes in (
        ("keeps", metrics(0.0, 1.0, 0.9), None),
        ("both", metrics(0.0, 0.9, 0.1), None),
        ("failed", metrics(0.0, 1.0, 0.0), failed),
    ):
        write(name, own, name, notes=notes)
    write("base", metrics(1.0, 1.0, 0.9))
    groups = group_runs(read_runs(write.folder).runs)
    axes = frontier_axes(groups, TASK)
    assert axes == ("forget_paraphrase_accuracy", "retain_accuracy")
    assert [groups[i].runs[0].name for i in ranked(groups, TASK, *axes)] == ["base", "both", "keeps", "failed"]
    found = dict(zip((own.runs[0].name for own in groups), scores(groups, TASK, *axes), strict=True))
    assert found["base"] is None
    assert found["both"] == pytest.approx(2 / (1 / 0.9 + 1 / 0.9))
    assert found["keeps"] == pytest.approx(2 / (1 / 0.1 + 1 / 1.0))


def test_an_axis_on_which_all_edits_are_alike_is_left_out(write):
    write("base", metrics(1.0, 1.0, 0.9))
    for name, right in (("a", 0.0), ("b", 0.3)):
        write(name, metrics(right, 0.9, 0.2), name)
    groups = group_runs(read_runs(write.folder).runs)
    assert frontier_axes(groups, TASK) == ("forget_accuracy", "retain_accuracy"), "of paraphrases all say 0.2"
    assert frontier_axes(groups, "nothing") == (None, None)


def test_a_study_names_its_page_and_its_columns(write, tmp_path):
    folder = tmp_path / "study" / "runs" / "cell-0123456789ab"
    made = result("x", metrics(0.1, 0.9), "memit")
    made.config["cell"] = {"editor": "memit"}
    write_result(made, folder / "result.json")
    assert (read_runs(tmp_path / "study").study, read_runs(folder).show) == ("study", ())
    (tmp_path / "study" / "study.json").write_text('{"study": {"name": "mine", "show": ["t/retain_accuracy", "kl"]}}')
    runs = read_runs(tmp_path / "study")
    assert (runs.study, runs.show) == ("mine", ("retain_accuracy", "kl"))
    summary, _ = page_data(runs)
    assert (summary["tasks"][0]["forget_columns"], summary["tasks"][0]["keep_columns"]) == ([], ["retain_accuracy"])
    write_result(result("y", metrics(0.1, 0.9)), tmp_path / "study" / "other.json")
    assert read_runs(tmp_path / "study").study is None


def test_spreads_leave_out_what_is_missing():
    assert (spread([None, 1.0, 3.0]).mean, spread([None, 1.0, 3.0]).n) == (2.0, 2)
    assert spread([1.0]).deviation is None
    assert spread([None]).mean is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("forget_accuracy", ("Forgotten facts", "", "right answers")),
        ("forget_paraphrase_accuracy", ("Forgotten facts", "", "right answers, paraphrased")),
        ("forget_refusal_rate", ("How it declines", "", "refuses")),
        ("retain_over_refusal_rate", ("Retained facts", "retained", "refuses needlessly")),
        ("neighbors_cloze_probability", ("Neighboring facts", "neighbors", "probability of the answer, as a cloze")),
        ("forget_attacked_accuracy", ("Under attack", "", "right answers, attacked")),
        ("model_utility", ("Overall", "", "model utility")),
        ("acc (strict)", ("Overall", "", "acc (strict)")),
    ],
)
def test_metrics_have_plain_names(name, expected):
    assert catalogue.plain(name) == expected


def test_a_leaderboard_has_four_columns_of_each_kind():
    names = [f"forget_{own}" for own in ("fluency", "probability", "rouge", "accuracy", "refusal_rate", "truth_ratio")]
    forgets, keeps = catalogue.leaderboard_columns([*names, "retain_rouge", "retain_accuracy"])
    assert forgets == ["forget_accuracy", "forget_refusal_rate", "forget_rouge", "forget_truth_ratio"]
    assert keeps == ["retain_accuracy", "retain_rouge"]
    assert catalogue.leaderboard_columns(["acc", "word_perplexity"]) == ([], ["acc", "word_perplexity"])


def number(value, before, p, higher=False, n=20):
    return Number(value, n, higher, before, p)


@pytest.mark.parametrize(
    ("right", "reworded", "kept", "says"),
    [
        (
            (0.0, 1.0, 0.001),
            (0.05, 0.8, 0.001),
            (1.0, 1.0, 1.0),
            "forgets, also paraphrased, without a measurable loss: ",
        ),
        ((0.0, 1.0, 0.001), (0.8, 0.8, 1.0), (0.5, 1.0, 0.01), "forgets the exact wording only, with a loss: "),
        ((0.9, 1.0, 0.5), (0.8, 0.8, 1.0), (0.9, 1.0, 0.2), "does not measurably forget, without a measurable loss: "),
        ((0.0, 1.0, None), (0.8, 0.8, None), (0.5, 1.0, None), "right answers 0 of 20 (20 before)"),
    ],
)
def test_a_sentence_says_what_came_of_a_method(right, reworded, kept, says):
    known = {
        "forget_accuracy": number(*right),
        "forget_paraphrase_accuracy": number(*reworded),
        "retain_accuracy": number(*kept, higher=True, n=48),
        "forget_gibberish_rate": number(0.25, 0.0, 0.01),
    }
    text = outcome(known.get, ["forget_accuracy", "forget_paraphrase_accuracy"], ["retain_accuracy"])
    assert text.startswith(says)
    assert text.endswith(".")
    assert f"paraphrased {reworded[0] * 20:.0f} of 20 (16)" in text
    assert "gibberish 5 of 20 (0)" in text
    assert f"retained right answers {kept[0] * 48:.0f} of 48 (48)" in text or kept[0] == 0.9


def test_a_failed_edit_is_no_result_and_means_are_no_counts():
    assert (
        outcome({}.get, ["forget_accuracy"], [], "the edit did not take")
        == "is no result of its method: the edit did not take."
    )
    assert outcome({}.get, ["forget_accuracy"], []) == "has no numbers of this task."
    rouge = {"forget_rouge": Number(0.123, 20, False, 0.95, 0.001)}
    assert outcome(rouge.get, ["forget_rouge"], []) == "forgets: ROUGE-L 0.12 (0.95 before)."


# Over seeds, beyond the page -------------------------------------------------------------------------------


def test_a_frame_over_seeds_has_one_row_for_each_method(write):
    pytest.importorskip("pandas")
    write("base", metrics(1.0, 1.0))
    for seed, right in enumerate((0.1, 0.2, 0.6)):
        write(f"a{seed}", metrics(right, 0.9), "memit", seed)
    write("b", metrics(0.4, 0.8), "rome", 0)
    whole = load_frame(write.folder, over_seeds=True)
    rows = whole[whole.metric == "forget_accuracy"].set_index("method")
    assert list(rows.index) == ["no edit", "memit", "rome"]
    memit = rows.loc["memit"]
    assert (memit.value, memit.deviation) == (pytest.approx(0.3), pytest.approx(stdev([0.1, 0.2, 0.6])))
    assert (memit.n_seeds, memit.seeds, memit.runs, memit.direction) == (3, [0, 1, 2], ["a0", "a1", "a2"], "lower")
    assert math.isnan(rows.loc["rome"].deviation)
    assert len(load_frame(write.folder)) == 5 * 2


def test_what_settings_were_chosen_by_is_no_result(write):
    write("base", metrics(1.0, 1.0))
    about = {"editor": "npo", "recipe": "plain"}
    for i, state in enumerate(("untuned", "tuned")):
        write(
            state,
            metrics(0.5, 0.9),
            "npo",
            0,
            cell=about | {"trial": {"of": "npo", "number": None, "state": state}, "i": i},
        )
    for number in (0, 1):
        trial = {"of": "npo", "number": number, "state": "trial"}
        write(f"t{number}", metrics(0.1, 0.9), "npo", 0, cell=about | {"editor": f"npo-t{number}", "trial": trial})
    found = read_runs(write.folder)
    assert [run.name for run in found.runs] == ["base", "tuned", "untuned"]
    assert [run.name for run in found.trials] == ["t0", "t1"]
    (write.folder / "alone").mkdir()
    (write.folder / "t0.json").rename(write.folder / "alone" / "t0.json")
    alone = read_runs(write.folder / "alone")  # who asks for trials gets them
    assert [run.name for run in alone.runs] == ["t0"]


def test_the_page_has_trials_behind_what_was_chosen_and_untuned_beside_tuned(write):
    write("base", metrics(1.0, 1.0))
    about = {"recipe": "plain", "forget": "facts", "size": 12, "backend": "hf", "part": ""}

    def cell(editor, number, state):
        return about | {"editor": editor, "trial": {"of": "npo", "number": number, "state": state}}

    write("untuned", metrics(0.5, 0.9), "npo", 0, cell=cell("npo", None, "untuned"))
    write("tuned", metrics(0.2, 0.9), "npo", 0, cell=cell("npo-tuned", None, "tuned"))
    for number, right in enumerate((0.3, 0.1)):
        write(f"t{number}", metrics(right, 0.8), "npo", 0, cell=cell(f"npo-t{number}", number, "trial"))
    summary, _ = page_data(read_runs(write.folder))
    labels = [own["label"] for own in summary["groups"]]
    assert sorted(labels) == ["npo", "npo-tuned", "unedited"]
    assert {own["hue"] for own in summary["groups"]} == {None, 0}, "one hue untuned and tuned"
    assert summary["tuned"] == [(labels.index("npo"), labels.index("npo-tuned"))]
    column = [own["name"] for own in summary["columns"]].index("forget_accuracy")
    trials = summary["trials"]
    rows = list(zip(trials["group"], trials["trial"], trials["column"], trials["value"], strict=True))
    assert [row for row in rows if row[2] == column] == [
        (labels.index("npo-tuned"), 0, column, 0.3),
        (labels.index("npo-tuned"), 1, column, 0.1),
    ]
