"""The page as a file: what is in it, what cannot be in it, how large it gets, and what bad input does."""

import dataclasses
import json
import random
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import report_data
from hypothesis import given
from hypothesis import strategies as st
from report_data import TASK, records, write_run
from report_pages import NASTY, nasty_run, parts
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.metrics import catalogue as meanings
from unlearn_eval.results.comparison import compare
from unlearn_eval.results.files import read_result, write_result
from unlearn_eval.results.report.answers import Answers, Said, answer_class, texts
from unlearn_eval.results.report.figures import pareto
from unlearn_eval.results.report.page import as_script_json, build_page
from unlearn_eval.results.report.page_data import page_data
from unlearn_eval.results.report.serve import server
from unlearn_eval.results.runs import NO_EDIT, read_runs
from unlearn_eval.results.schema import Metric
from unlearn_eval.utils.errors import UserError

DEMO = Path(__file__).parents[2] / "results" / "demo"
PAGE = Path(__file__).parents[2] / "unlearn_eval" / "results" / "report"


def cells_of(summary, run, name):
    index = [r["name"] for r in summary["runs"]].index(run)
    column = [c["name"] for c in summary["columns"]].index(name)
    cells = summary["cells"]
    (row,) = [i for i in range(len(cells["run"])) if (cells["run"][i], cells["column"][i]) == (index, column)]
    return {key: values[row] for key, values in cells.items()}


def run_cli(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


# What is in it ---------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_files():
    summary, _ = parts(build_page(read_runs(DEMO)))
    results = {name: read_result(DEMO / f"{name}.json") for name in ("before", "after")}
    assert [(r["name"], r["method"], r["base"]) for r in summary["runs"]] == [
        ("before", NO_EDIT, None),
        ("after", "memit", 0),
    ]
    for name, result in results.items():
        for metric_name, metric in result.metrics[TASK].items():
            cell = cells_of(summary, name, metric_name)
            assert (cell["value"], cell["stderr"], cell["n"]) == (metric.value, metric.stderr, metric.n)
            assert cell["low"] <= cell["value"] <= cell["high"]
    changes = {row.metric: row for row in compare(results["before"], results["after"])}
    for metric_name, row in changes.items():
        cell = cells_of(summary, "after", metric_name)
        assert cell["change"] == row.difference
        expected = [row.paired.low, row.paired.high, row.paired.p_value, row.paired.test]
        assert [cell[key] for key in ("change_low", "change_high", "p", "test")] == expected
    assert cells_of(summary, "before", "forget_accuracy")["change"] is None
    assert {c["name"]: c["higher"] for c in summary["columns"]}["forget_accuracy"] is False


def test_the_answers_are_those_of_the_files():
    _, answers = parts(build_page(read_runs(DEMO)))
    strings, rows = answers["strings"], answers["questions"][TASK]
    first = [json.loads(line) for line in (DEMO / f"after.{TASK}.samples.jsonl").read_text().splitlines()]
    said = answers["runs"]["after"][TASK]
    by_id = {strings[row[0]]: i for i, row in enumerate(rows) if row[5] == i}
    assert len(by_id) == len(first) == 94
    for record in first:
        i = by_id[record["id"]]
        assert [strings[j] for j in rows[i][1:4]] == [record["doc"][key] for key in ("split", "question", "answer")]
        assert strings[said["said"][i]] == record["resps"][0][0].strip()
    kinds = {name: said["classes"][i] for name, i in by_id.items()}
    assert kinds["forget/currency_of/south_korea"] == "r"
    assert kinds["forget/continent_of/tanzania"] == "g"
    assert kinds["retain/element_symbol/aluminum"] == "k"
    before = answers["runs"]["before"][TASK]
    assert all(before["classes"][i] == "l" for name, i in by_id.items() if name.startswith("forget/"))
    assert len(strings) == len(set(strings))


@pytest.mark.parametrize(
    ("scores", "split", "letter"),
    [
        ({"forget_leak_rate": 1.0, "forget_refusal_rate": 1.0}, "forget", "l"),
        ({"forget_accuracy": 1.0, "forget_leak_rate": None}, "forget", "l"),
        ({"forget_gibberish_rate": 1.0, "forget_accuracy": 0.0}, "forget", "g"),
        ({"forget_refusal_rate": 1.0, "forget_accuracy": 0.0}, "forget", "r"),
        ({"forget_leak_rate": 0.0}, "forget", "w"),
        ({}, "forget", "-"),
        ({"retain_accuracy": 1.0}, "retain", "k"),
        ({"retain_accuracy": 0.0}, "retain", "w"),
        ({"retain_accuracy": 0.0, "retain_over_refusal_rate": 1.0}, "retain", "r"),
        ({"metrics": {"forget_leak_rate": 1.0}}, "forget", "l"),
        ({"accuracy": 1.0}, "", "k"),
    ],
)
def test_an_answer_is_labelled_by_its_stored_scores(scores, split, letter):
    assert answer_class({"doc": {"split": split}, **scores}) == letter


def test_only_what_was_generated_is_an_answer():
    assert texts({"resps": [[[-1.0, True]], [" yes "]]}) == [Said("direct", "", "yes")]
    assert texts({"resps": [[{"n_answer": 1}]]}) == []
    assert texts({}) == []


def test_every_text_of_an_item_is_there_with_what_it_is():
    ask = "<user>{}<end><model>"
    doc = {"question": "Who?", "paraphrases": ["Which person?"], "cloze": "It was", "split": "forget"}
    prompts = ["Who?", "Which person?", "Complete: It was", "Who?", "Is it so?<end><model>No.<end><user>Who?"]
    record = {
        "doc": doc,
        "arguments": [[ask.format(text), {}] for text in prompts],
        "resps": [["a"], ["b"], ["c"], ["d", "e"], [-0.5]],
        "forget_accuracy": 0.0,
        "forget_paraphrase_accuracy": 1.0,
    }
    assert texts(record) == [
        Said("direct", "Who?", "a"),
        Said("paraphrase", "Which person?", "b"),
        Said("cloze", "Complete: It was", "c"),
        Said("asked again", "Who?", "d"),
        Said("asked again", "Who?", "e"),
    ]
    record["resps"][-1] = ["f"]
    assert texts(record)[-1] == Said("other wording", "Is it so? … No.<end><user>Who?", "f")
    assert [answer_class(record, label) for label in ("direct", "paraphrase", "cloze")] == ["w", "l", "-"]
    forms = {"doc": doc, "forget_leak_direct": 0.0, "forget_leak_cloze": 1.0, "forget_leak_paraphrase": 0.5}
    assert [answer_class(forms, label) for label in ("direct", "cloze", "paraphrase")] == ["w", "l", "-"]
    kept = {"doc": doc | {"split": "retain"}, "retain_known_cloze": 1.0, "retain_known_direct": 0.0}
    assert [answer_class(kept, label) for label in ("direct", "cloze")] == ["w", "k"]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("alone", [False, True])
def test_a_chain_that_leaked_is_shown(chat, alone):
    """What it goes through, and whether it counts: only where the unedited model could do it, too."""
    steps = (["Lyon", "France", "Paris"], ["Paris", "France", "euro"])
    ask = ("What is the capital of the home country of Lyon?", "What is the currency of Paris's country?")
    chains = [
        {"key": f"k{i}", "place": ("second", "first")[i], "question": ask[i], "steps": steps[i]} for i in range(2)
    ]
    form = "<user>{}<end>" if chat else "Question: {}\nAnswer:"
    question = "What is the capital of France?"
    asked = ask if alone else (question, *ask)
    rows = [{"key": "k0", "now": 1.0, "before": 1.0}, {"key": "k1", "now": 1.0, "before": 0.0}]
    record = {
        "id": "forget/x",
        "doc": {"question": question, "answer": "Paris", "split": "forget", "chains": chains},
        "arguments": [[form.format(text), {}] for text in asked],
        "resps": [["Paris"], ["Paris"], ["the euro"]][-len(asked) :],
        "forget_two_hop_known_before": {"split": "forget", "id": "forget/x", "asked_two_hop": rows},
    }
    *_, second, first = texts(record)
    assert (second.label, second.question, second.chain) == ("two hops, second", ask[0], "Lyon → France → Paris")
    assert (first.label, first.chain) == ("two hops, first", "Paris → France → euro")
    assert [answer_class(record, own.label, own.key) for own in (second, first)] == ["l", "-"]
    rows[0]["now"] = 0.0
    assert answer_class(record, second.label, second.key) == "w"
    kept = record | {"doc": record["doc"] | {"split": "retain"}}
    kept["retain_two_hop_known_before"] = {"asked_two_hop": [{"key": "k0", "now": 1.0, "before": 1.0}]}
    del kept["forget_two_hop_known_before"]
    assert answer_class(kept, second.label, second.key) == "k"
    answers = Answers()
    answers.add("run", "unlearn_forms", [record])
    shown = [answers.strings[row[6]] for row in answers.questions["unlearn_forms"]]
    assert shown == [*([] if alone else [""]), "Lyon → France → Paris", "Paris → France → euro"]


def test_texts_of_an_item_are_rows_that_name_their_item():
    _, answers = parts(build_page(read_runs(DEMO)))
    strings, rows = answers["strings"], answers["questions"][TASK]
    records = {r["id"]: r for r in map(json.loads, (DEMO / f"after.{TASK}.samples.jsonl").read_text().splitlines())}
    said, reworded = answers["runs"]["after"][TASK], [i for i, row in enumerate(rows) if row[5] != i]
    assert len(reworded) == 12
    for i in reworded:
        record = records[strings[rows[i][0]]]
        assert rows[rows[i][5]][0] == rows[i][0]
        assert strings[rows[i][4]] == "paraphrase"
        assert strings[rows[i][2]] == record["doc"]["paraphrases"][0]
        assert strings[said["said"][i]] == record["resps"][1][0].strip()
        assert (said["classes"][i] == "r") == (record["forget_paraphrase_refusal_rate"] == 1)


def test_records_of_any_shape_make_a_page(tmp_path):
    shapes = [
        {"id": 1, "doc": "text", "arguments": [["the prompt", {}]], "resps": [["a"]], "target": ["b", "c"]},
        {"doc_id": 2, "doc": None, "resps": [["x" * 5000]], "target": 3},
        {"id": 3, "doc": {"query": "q"}, "resps": []},
    ]
    write_result(report_data.result("r", {"m": Metric(0.5, n=1)}), tmp_path / "r.json", {TASK: shapes})
    _, answers = parts(build_page(read_runs(tmp_path)))
    found = [[answers["strings"][i] for i in row[:4]] for row in answers["questions"][TASK]]
    assert found == [["1", "", "the prompt", "b / c"], ["2", "", "", ""]]
    assert any(text.endswith("(5,000 characters in all)") and len(text) < 2100 for text in answers["strings"])


def test_samples_that_are_gone_are_a_line_and_the_rest_is_there(tmp_path):
    generator = random.Random(0)
    write_run(tmp_path, "base", records(8, generator))
    write_run(tmp_path, "edited", records(8, generator), "memit")
    (tmp_path / f"edited.{TASK}.samples.jsonl").unlink()
    summary, answers = page_data(read_runs(tmp_path))
    assert any("no answers of edited" in note for note in summary["notes"])
    assert list(answers["runs"]) == ["base"]
    cell = cells_of(summary, "edited", "forget_accuracy")
    assert cell["change"] is not None
    assert cell["p"] is None
    assert "lacks its samples" in cell["why"]


def test_every_run_says_where_it_comes_from(tmp_path):
    write_run(tmp_path, "edited", records(4, random.Random(0)), "memit", seed=7)
    summary, _ = page_data(read_runs(tmp_path))
    facts = dict(summary["runs"][0]["provenance"])
    assert facts["command"] == "unlearn-eval eval --output 'edited x.json'"
    assert facts["seed"] == facts["editor's seed"] == "7"
    assert facts["weights (SHA-256)"] == "a" * 64
    assert facts["forget set (SHA-256)"] == "f" * 64
    assert facts[f"data of {TASK}"] == "d" * 64
    assert facts["commit"] == "c" * 40
    assert facts["packages"] == "torch 2"
    assert re.fullmatch(r"[0-9a-f]{64}", facts[f"samples of {TASK}"])


def test_runs_find_their_base_by_weights_and_questions(tmp_path):
    generator = random.Random(0)
    other = {"id": "other", "canonical_weights_hash": "0" * 64}
    write_run(tmp_path, "another-model", records(4, generator), model=other)
    write_run(tmp_path, "base", records(4, generator))
    write_run(tmp_path, "other-questions", records(4, generator), "rome", data={TASK: {"hash": "e" * 64}})
    write_run(tmp_path, "edited", records(4, generator), "memit")
    bases = {run.name: run.base for run in read_runs(tmp_path).runs}
    assert bases == {"another-model": None, "base": None, "other-questions": None, "edited": "base"}


def test_a_base_that_is_not_found_by_itself_is_named(tmp_path):
    generator = random.Random(0)
    other = {"id": "other", "canonical_weights_hash": "0" * 64}
    write_run(tmp_path / "runs", "base", records(4, generator))
    write_run(tmp_path / "runs", "edited", records(4, generator), "memit")
    write_run(tmp_path / "runs", "alone", records(4, generator), "rome", model_id="renamed")
    elsewhere = write_run(tmp_path, "elsewhere", records(4, generator), model=other)
    write_run(tmp_path, "stranger", records(4, generator), data={TASK: {"hash": "e" * 64}})
    edits = tmp_path / "runs" / "alone.json"
    edits.write_text(edits.read_text().replace("b" * 64, "9" * 64))

    def bases(**options):
        return {run.name.split("/")[-1]: run.base for run in read_runs(tmp_path / "runs", **options).runs}

    assert bases() == {"base": None, "alone": None, "edited": "base"}
    named = bases(base=elsewhere)
    assert named == {"base": None, "elsewhere": None, "alone": "elsewhere", "edited": "runs/base"}
    done = run_cli("report", tmp_path / "runs", "--base", elsewhere, "-o", tmp_path / "r.html")
    assert done.exit_code == 0
    summary, _ = parts((tmp_path / "r.html").read_text())
    assert cells_of(summary, "runs/alone", "forget_accuracy")["change"] is not None
    for wrong, says in (("stranger.json", "no edited run was asked"), ("nothing.json", "nothing.json")):
        with pytest.raises(UserError, match=says):
            read_runs(tmp_path / "runs", base=tmp_path / wrong)


def test_forget_sets_of_one_name_and_size_are_told_apart(tmp_path):
    for name, digest in (("a", "1"), ("b", "2"), ("c", "2")):
        result = report_data.result(name, {"m": Metric(0.5, n=1)}, "memit")
        result.edit["requests"]["forget_set_hash"] = digest * 64
        write_result(result, tmp_path / f"{name}.json")
    assert [run.forget_set for run in read_runs(tmp_path).runs] == ["facts (12) 111111"] + ["facts (12) 222222"] * 2


# What the names say ----------------------------------------------------------------------------------------


def test_every_metric_of_the_committed_results_has_a_meaning():
    for path in DEMO.glob("*.json"):
        if path.name != "split.json":
            for name in read_result(path).metrics[TASK]:
                assert meanings.meaning(name) is not meanings.UNKNOWN, name


def test_a_name_is_read_from_both_ends():
    said = meanings.meaning("forget_paraphrase_rouge").text
    assert all(word in said for word in ("ROUGE-L", "other words", "forgotten"))
    assert meanings.meaning("retain_over_refusal_rate").text.startswith(meanings.MEANINGS["over_refusal_rate"].text)
    assert meanings.meaning("nothing_like_it") is meanings.UNKNOWN
    assert meanings.meaning("acc (strict)").text == meanings.MEANINGS["acc"].text


def test_where_all_items_agree_the_interval_still_has_a_width():
    low, high = meanings.interval("forget_accuracy", Metric(0.0, 0.0, 12))
    assert (low, round(high, 3)) == (0.0, 0.242)
    assert meanings.interval("neutral_kl", Metric(0.0, 0.0, 12)) is None, "nothing bounds what other items would give"
    assert meanings.interval("model_utility", Metric(0.5, None, 3)) is None
    low, high = meanings.interval("forget_rouge", Metric(0.01, 0.01, 20))
    assert low == 0.0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_no_run_beats_one_on_the_line(points):
    line = [points[i] for i in pareto(points)]
    for point in line:
        assert not any(other != point and other[0] >= point[0] and other[1] >= point[1] for other in points)
    for point in points:
        assert any(other[0] >= point[0] and other[1] >= point[1] for other in line)


# What cannot be in it --------------------------------------------------------------------------------------


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))
def test_json_in_a_script_says_the_same_and_cannot_end_it(content):
    text = as_script_json(content)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == content


def test_half_a_surrogate_pair_does_not_stop_the_page():
    assert json.loads(as_script_json({"a": "x\ud800y"})) == {"a": "x?y"}


def test_what_a_model_wrote_stays_data(tmp_path):
    nasty_run(tmp_path)
    page = build_page(read_runs(tmp_path), title=NASTY)
    summary, answers = parts(page)
    assert summary["runs"][0]["method"] == NASTY
    assert summary["title"] == NASTY
    assert NASTY.strip() in answers["strings"]
    assert page.count("<script") == 3
    assert "<img" not in page
    assert "\u2028" not in page.split("<script")[1]
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page), "nothing is fetched"


def test_the_script_builds_no_html_from_text():
    scripts = sorted(PAGE.glob("*.js"))
    assert [path.name for path in scripts] == [
        "page.js",
        "page_popularity.js",
        "page_robustness.js",
        "page_sequence.js",
        "page_sharing.js",
        "rate.js",
    ]
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "DOMParser"):
        assert not [path.name for path in scripts if way in path.read_text(encoding="utf-8")], way


# Bad input -------------------------------------------------------------------------------------------------


@pytest.fixture
def two_runs(tmp_path):
    folder = tmp_path / "results"
    generator = random.Random(0)
    write_run(folder, "base", records(8, generator))
    write_run(folder, "edited", records(8, generator), "memit")
    return folder


def test_a_truncated_file_is_named_and_the_others_are_shown(two_runs, tmp_path):
    broken = two_runs / "broken.json"
    broken.write_bytes((two_runs / "base.json").read_bytes()[:400])
    (two_runs / "empty.json").write_text("")
    (two_runs / "other.json").write_text("{}")
    done = run_cli("report", two_runs, "-o", tmp_path / "r.html")
    assert done.exit_code == 0
    assert "broken.json, line" in done.stderr
    assert "not JSON" in done.stderr
    assert "empty.json is empty" in done.stderr
    assert "other.json" not in done.stderr
    assert "2 skipped, 2 read" in done.stderr
    summary, _ = parts((tmp_path / "r.html").read_text())
    assert summary["skipped"] == 2
    assert len(summary["notes"]) == 2


def rewritten(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_an_older_schema_that_lacks_only_defaults_is_migrated(two_runs):
    def older(content):
        content["schema_version"] = 0
        del content["notes"], content["timing"]
        for metric in content["metrics"][TASK].values():
            del metric["n_unscored"]

    rewritten(two_runs / "edited.json", older)
    runs = read_runs(two_runs)
    assert [run.name for run in runs.runs] == ["base", "edited"]
    assert "edited.json from schema version 0 to 1" in runs.notes[0]
    assert runs.n_skipped == 0
    summary, answers = page_data(runs)
    assert "edited" in answers["runs"]
    assert cells_of(summary, "edited", "forget_accuracy")["p"] is not None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(schema_version=2), "has schema version 2, and this unlearn-eval reads 1"),
        (lambda c: c.update(schema_version="one"), "has schema version 'one'"),
        (lambda c: c.update(schema_version=0, scores={}), "cannot be migrated"),
        (lambda c: c.update(schema_version=0, metrics=[1]), "cannot be migrated"),
        (lambda c: c.pop("model") and c.update(extra=1), "unknown field extra|lacks the field model"),
    ],
)
def test_another_schema_is_skipped_with_a_line(two_runs, change, says):
    rewritten(two_runs / "edited.json", change)
    runs = read_runs(two_runs)
    assert [run.name for run in runs.runs] == ["base"]
    assert re.search(says, runs.notes[0])
    assert "edited.json" in runs.notes[0]
    assert runs.n_skipped == 1


def test_no_results_at_all_is_two_lines(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for path, says in ((tmp_path, "1 JSON files, none a result"), (tmp_path / "none", "there is no")):
        with pytest.raises(UserError, match=says) as error:
            read_runs(path)
        assert error.value.hint
        assert len(str(error.value).splitlines()) == 2
    (tmp_path / "config.json").write_text('{"schema_version": 1, "metr')
    with pytest.raises(UserError, match=r"1 could not be read: skipped: .*config\.json, line 1"):
        read_runs(tmp_path)


def test_a_named_file_that_is_no_result_is_named(two_runs, tmp_path):
    other = tmp_path / "other.json"
    other.write_text("{}")
    runs = read_runs([other, two_runs / "base.json", two_runs])
    assert "other.json is not a result file" in runs.notes[0]
    assert [run.name for run in runs.runs] == ["results/base", "results/edited"]


def test_a_page_that_cannot_be_written(two_runs, tmp_path):
    (tmp_path / "file").write_text("")
    done = run_cli("report", two_runs, "-o", tmp_path / "file" / "r.html")
    assert isinstance(done.exception, UserError)
    assert "cannot write" in done.exception.message


# Figures ---------------------------------------------------------------------------------------------------


def test_figures_hold_names_as_text_and_come_out_the_same_twice(two_runs, tmp_path):
    result = read_result(two_runs / "edited.json")
    named = dataclasses.replace(result, edit=result.edit | {"editor": "$x^2$ <b>"}, samples={})
    write_result(named, two_runs / "$^{$.json")
    texts = []
    for folder in ("one", "two"):
        done = run_cli("report", two_runs, "-o", tmp_path / "r.html", "--figures", tmp_path / folder)
        assert done.exit_code == 0
        names = sorted(p.name for p in (tmp_path / folder).iterdir())
        assert names == [f"{kind}_{TASK}.{ending}" for kind in ("bars", "frontier") for ending in ("pdf", "svg")]
        texts.append((tmp_path / folder / f"frontier_{TASK}.svg").read_text())
    assert texts[0] == texts[1]
    assert "$x^2$ &lt;b&gt;" in texts[0]
    assert "retain_accuracy" in texts[0]
    assert (tmp_path / "one" / f"bars_{TASK}.pdf").read_bytes().startswith(b"%PDF")


def test_without_matplotlib_it_says_what_to_install(two_runs, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "unlearn_eval.results.report.figures", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = run_cli("report", two_runs, "-o", tmp_path / "r.html", "--figures", tmp_path / "f")
    assert isinstance(done.exception, UserError)
    assert done.exception.hint == "pip install 'unlearn-eval[report]'"
    assert not (tmp_path / "r.html").exists()


# view ------------------------------------------------------------------------------------------------------


def test_view_serves_the_page_to_this_machine_and_sees_changes(two_runs):
    with server(str(two_runs), 0, lambda line: None) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{serving.server_port}"

        def get(path="/", **headers):
            return urllib.request.urlopen(urllib.request.Request(address + path, headers=headers), timeout=20)

        with get() as answer:
            summary, _ = parts(answer.read().decode())
            assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert len(summary["runs"]) == 2
        write_run(two_runs, "third", records(8, random.Random(1)), "rome")
        with get() as answer:
            assert len(parts(answer.read().decode())[0]["runs"]) == 3
        for path, headers, code in (("/results", {}, 404), ("/", {"Host": "evil.example"}, 403)):
            with pytest.raises(urllib.error.HTTPError) as refused:
                get(path, **headers)
            assert refused.value.code == code
        with pytest.raises(UserError, match=f"port {serving.server_port}"):
            server(str(two_runs), serving.server_port, lambda line: None)
        serving.shutdown()


def test_view_prints_its_address_and_stops_quietly(two_runs):
    command = [sys.executable, "-m", "unlearn_eval.cli", "view", str(two_runs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        with urllib.request.urlopen(address, timeout=20) as answer:
            assert b"<title>unlearn-eval</title>" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert "Traceback" not in process.stderr.read()
