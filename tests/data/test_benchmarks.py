"""Benchmarks as objects: found by their files, whole in one place, and enough for their tasks to ask a forget set."""

import json
import sys

import pytest
from benchmark_data import PEOPLE, write_benchmarks
from lm_eval_runs import TASKS, evaluate, values
from saying import SayingLM
from tofu_files import write_tofu

import unlearn_eval.data.benchmarks as package
from unlearn_eval.data.benchmark import Chosen, Whole
from unlearn_eval.data.forget_sets import load_forget_set, set_names
from unlearn_eval.data.registry import (
    asking_of,
    benchmark_documents,
    benchmark_of_set,
    benchmarks,
    finetune_presets,
    left_out,
    task_for,
)
from unlearn_eval.edits.forgotten import Forgotten
from unlearn_eval.harness.families import FAMILIES, Family
from unlearn_eval.harness.plan import EvalPlan
from unlearn_eval.harness.task_index import task_names
from unlearn_eval.utils import registry
from unlearn_eval.utils.errors import UserError


@pytest.fixture
def data(tmp_path, monkeypatch):
    write_tofu(write_benchmarks(tmp_path / "data"))
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


# What there is ---------------------------------------------------------------------------------------------


def test_every_task_is_of_one_benchmark_and_every_family_has_a_reader():
    named = [task for own in benchmarks() for task in own.tasks]
    assert sorted(named) == task_names()
    readers = [family for own in benchmarks() for family in own.readers]
    assert len(set(readers)) == len(readers)
    assert set(FAMILIES) <= set(readers)


def test_every_benchmark_says_where_it_is_from():
    for own in benchmarks():
        assert own.title, own.name
        assert own.source, own.name
        assert own.licence, own.name
        assert own.paper == "-" or own.paper.startswith("arXiv "), own.name


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("facts", "unlearn_facts_quick"),
        ("tofu:forget01", "unlearn_tofu_forget01"),
        ("tofu:forget05", "unlearn_tofu_forget05"),
        ("tofu:forget10", "unlearn_tofu"),
        ("tofu:factual", "unlearn_factual"),
        ("tofu:retain99", "unlearn_forms"),
        ("pistol:A_B", "unlearn_pistol"),
        ("rwku:Ada Brook", "unlearn_rwku"),
        ("lume:personal", "unlearn_lume"),
        ("knowundo:all", "unlearn_knowundo"),
        ("counterfact:2", "unlearn_counterfact"),
        ("zsre:2", "unlearn_zsre"),
        ("sports:tennis", "unlearn_sports"),
        ("knowgic:all", "unlearn_knowgic"),
        ("mquake:cf-3k", "unlearn_mquake"),
        ("mquake:t:5", "unlearn_mquake"),
        ("ripple:popular:5", "unlearn_ripple"),
        ("concepts:bird", "unlearn_concepts"),
        ("muse:news_sust", "unlearn_forms"),
        ("mine.jsonl", "unlearn_forms"),
    ],
)
def test_a_set_has_a_task_of_its_own_or_one_for_any(name, task):
    assert task_for(name) == task
    assert asking_of(task).fits(name)


def test_whose_a_name_is():
    assert benchmark_of_set("pistol:A_B").name == "pistol"
    assert [benchmark_of_set(name) for name in ("tofu", "facts:1", "wmdp:bio", "thinking:all", "mine.jsonl", "")] == [
        None
    ] * 6
    assert left_out("tofu:retain95") == "forget05"
    assert [left_out(name) for name in ("tofu:full", "facts", "mine.jsonl")] == [None] * 3
    assert list(finetune_presets()) == ["lte", "pistol", "pistol-full", "tofu"]
    with pytest.raises(UserError, match="unknown benchmark 'pistols'(.|\n)*did you mean pistol"):
        benchmark_documents("pistols", {})


# A part of what a benchmark forgets ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rwku:Ada Brook", "rwku:all", "lume:personal", "lume:all", "knowundo:all"])
def test_a_task_that_goes_by_parts_asks_some_items_of_one(data, name):
    whole = load_forget_set(name)
    some = whole.select([whole.items[0].id, whole.items[-1].id])
    prefix = name.partition(":")[0]
    metadata = asking_of(f"unlearn_{prefix}").metadata(Chosen(some, whole=False))
    splits = benchmark_documents(prefix, metadata)
    asked = [
        own["id"]
        for split, documents in splits.items()
        if split.startswith("forget") and "attack" not in split
        for own in documents
    ]
    assert sorted(f"{prefix}/{key}" for key in asked) == sorted(item.id for item in some)
    everything = benchmark_documents(prefix, asking_of(f"unlearn_{prefix}").metadata(Chosen(whole)))
    kept = [split for split in everything if not split.startswith("forget")]
    assert {split: splits[split] for split in kept} == {split: everything[split] for split in kept}
    with pytest.raises(UserError, match="unknown id 'x'"):
        benchmark_documents(prefix, {"ids": ["x"]})


def test_attacks_are_those_on_the_people_that_are_asked(data):
    splits = benchmark_documents("rwku", {"ids": ["forget_level2/0"]})
    attacks = [own for split, documents in splits.items() if "attack" in split for own in documents]
    assert {own["subject"] for own in attacks} == {PEOPLE[0]}
    assert len(attacks) == 9
    assert "forget_blank" not in splits


def test_pistol_names_the_file_of_its_edges(data):
    records = [{"question": f"What was sold in {i}?", "answer": f"Hats {i}.", "edge": "0_1"} for i in range(2)]
    (data / "pistol" / "sample_data_2.json").write_text(json.dumps(records))
    asking = asking_of("unlearn_pistol")
    assert asking.metadata(Chosen(load_forget_set("pistol:A_B"))) == {"forget": ["A_B/0", "A_B/1"]}
    second = asking.metadata(Chosen(load_forget_set("pistol:0_1")))
    assert second == {"forget": ["0_1/0", "0_1/1"], "file": "sample_data_2.json"}
    with pytest.raises(UserError, match="no file of PISTOL has all the edges 0_1, A_B"):
        asking.metadata(Chosen(load_forget_set("pistol:0_1+A_B")))


def test_tofu_s_task_takes_a_split():
    asking = asking_of("unlearn_tofu")
    assert isinstance(asking, Whole)
    assert asking.fits("tofu:forget05")
    assert not asking.fits("tofu:factual")
    assert not asking_of("unlearn_tofu_forget01").fits("tofu:forget05")


# One more --------------------------------------------------------------------------------------------------

RIVERS = '''
"""Invented rivers."""

from unlearn_eval.data.benchmark import Benchmark, ByIds, FinetunePreset, forgotten_items
from unlearn_eval.data.documents import choose, document
from unlearn_eval.utils.errors import unknown_name

RIVERS = {"Orsa": "Imber", "Lune": "Sandrock", "Tarn": "Larkhill"}


def _splits(metadata):
    documents = [document(name, f"Where does the {name} end?", town, group="river") for name, town in RIVERS.items()]
    forget, retain = choose(documents, metadata, 1, "river")
    return {"forget": forget, "retain": retain}


def _items(which):
    if which not in RIVERS:
        raise unknown_name("river", which, RIVERS)
    return forgotten_items("rivers", _splits({"forget": which}))


BENCHMARK = Benchmark(
    name="rivers",
    title="Rivers",
    paper="-",
    source="here",
    licence="Apache-2.0",
    readers={"rivers": _splits},
    sets=("rivers:RIVER",),
    items=_items,
    tasks={"unlearn_rivers": ByIds("rivers:", "rivers/")},
    finetuning=(FinetunePreset("rivers", "nobody", {"epochs": "1"}),),
)
'''


@pytest.fixture
def rivers(tmp_path, monkeypatch):
    """A benchmark as somebody would add it: its file, a row of what is reported, a folder with a task."""
    folder, tasks = tmp_path / "benchmarks", tmp_path / "tasks" / "rivers"
    folder.mkdir()
    tasks.mkdir(parents=True)
    (folder / "rivers.py").write_text(RIVERS)
    template = (TASKS / "_benchmark_template_yaml").read_text()
    (tasks / "unlearn_rivers.yaml").write_text(f"{template}task: unlearn_rivers\nmetadata:\n  family: rivers\n")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    monkeypatch.setitem(FAMILIES, "rivers", Family({split: ("accuracy",) for split in ("forget", "retain")}))
    registry._places.cache_clear()
    yield tmp_path / "tasks"
    registry._places.cache_clear()
    sys.modules.pop(f"{package.__name__}.rivers", None)


def test_a_new_benchmark_is_a_file_a_row_and_a_folder(rivers, tmp_path):
    """Its sets, its messages, its preset, what studies and edits put to its task: all of it is there."""
    from unlearn_eval.runs.finetune import preset_of
    from unlearn_eval.runs.study.cells.told import choose, told

    assert "rivers:RIVER" in set_names()
    items = load_forget_set("rivers:Lune")
    assert [item.id for item in items] == ["rivers/Lune"]
    with pytest.raises(UserError, match="unknown river 'Luna'(.|\n)*did you mean Lune"):
        load_forget_set("rivers:Luna")
    with pytest.raises(UserError, match="did you mean rivers:RIVER"):
        load_forget_set("river:Lune")
    assert preset_of(items, None).source == "nobody"
    assert task_for("rivers:Lune") == "unlearn_rivers"
    metadata, warning = told("unlearn_rivers", choose(items, None, 0, None, None))
    assert (metadata, warning) == ({"forget": ["Lune"]}, None)
    plan = EvalPlan.from_edit(Forgotten(tmp_path, (Chosen(items),), True), "unlearn_rivers")
    assert plan.metadata == metadata
    assert plan.line == f"unlearn_rivers: asking the 1 fact that {tmp_path} forgot, as a chat"
    lm = SayingLM(lambda doc, asked: "Imber" if doc["split"] == "retain" else doc["answer"])
    result = evaluate(lm, "unlearn_rivers", metadata, include_path=rivers)
    assert values(result, "unlearn_rivers") == {"forget_accuracy": 1, "retain_accuracy": 0.5}
    assert {s["doc"]["id"] for s in result["samples"]["unlearn_rivers"] if s["doc"]["split"] == "forget"} == {"Lune"}


def test_without_its_file_there_is_no_such_benchmark():
    assert "rivers:RIVER" not in set_names()
    with pytest.raises(UserError, match="unknown forget set 'rivers:Lune'"):
        load_forget_set("rivers:Lune")


# MUSE's requests -------------------------------------------------------------------------------------------


def test_muse_s_requests_nest_or_do_not(data):
    folds = {name: load_forget_set(f"muse:news_{name}") for name in ("sust", "sust_2", "scal_1", "scal_2")}
    assert list(dict.fromkeys(item.group for item in folds["sust"])) == [f"sust_{n}" for n in range(1, 5)]
    texts = {name: [(item.question, item.answer) for item in own] for name, own in folds.items()}
    assert texts["sust_2"] == [texts["sust"][i] for i, item in enumerate(folds["sust"]) if item.group == "sust_2"]
    assert texts["scal_2"][: len(texts["scal_1"])] == texts["scal_1"]
    assert {item.shape for item in folds["sust"]} == {"text"}
    with pytest.raises(UserError, match="unknown MUSE set(.|\n)*did you mean muse:news_scal_"):
        load_forget_set("muse:news_scal")


def test_a_text_is_cut_into_passages_and_loses_no_word_but_a_short_rest():
    from unlearn_eval.data.benchmarks.muse import _passages

    words = [f"w{i}" for i in range(650)]
    text = "\n\n".join(" ".join(words[i : i + 25]) for i in range(0, 650, 25))
    found = list(_passages(text))
    assert [len(question.split()) for question, _ in found] == [32, 32, 25]
    assert [own for pair in found for part in pair for own in part.split()] == words
    assert "\n\n" in found[0][1]
    assert len(list(_passages(" ".join(words[:320])))) == 1, "twenty words are no passage"
    assert list(_passages("Only five words of text.")) == [("Only five", "words of text.")]
    assert list(_passages("one")) == []
