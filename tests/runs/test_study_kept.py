"""`kept` and `known` of a study reach every task that can use them, and a control is of facts that the model knows."""

import json

import pytest
from study_files import FACTS, study_content, write_model

from unlearn_eval.data.forget_sets import facts, load_forget_set
from unlearn_eval.data.registry import asking_of
from unlearn_eval.runs.study.cells.told import can_keep, choose, forget_set, known_control, told, wants_control
from unlearn_eval.runs.study.plan import plan
from unlearn_eval.runs.study.spec import study_of
from unlearn_eval.utils.errors import UserError


@pytest.fixture
def own(tmp_path):
    """A set of 16 items of a user's own."""
    path = tmp_path / "mine.jsonl"
    records = [{"id": f"i{n}", "question": f"Who built bridge {n}?", "answer": f"Person {n}"} for n in range(16)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model")


def study(tmp_path, model, **changes):
    few = {"editors": [], "retain": None, "tasks": [{"task": "unlearn_thinking"}], **changes}
    content = {key: value for key, value in study_content(model, **few).items() if value is not ...}
    return study_of(content, tmp_path / "s.yaml")


def planned(tmp_path, model, **changes):
    return plan(study(tmp_path, model, **changes), {})


# What tasks are told ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["unlearn_forms", "unlearn_leak_at_k", "unlearn_thinking"])
def test_tasks_on_any_set_ask_the_set_s_other_items_as_kept(own, task):
    chosen = choose(forget_set(own), 4, 0, 48, None)
    metadata, _ = told(task, chosen)
    assert len(chosen.kept) == 12
    assert metadata["retain"] == {"set": own, "ids": list(chosen.kept)}
    assert told(task, choose(forget_set(own), 4, 0, 3, None))[0]["retain"]["ids"] == list(chosen.kept[:3])
    assert "retain" not in told(task, choose(forget_set(own), None, 0, 48, None))[0]
    shipped = told(task, choose(facts(), 2, 0, 3, None))[0]
    assert len(shipped["retain"]) == 3
    assert not set(shipped["retain"]) & set(shipped["forget"])


@pytest.mark.parametrize(
    ("task", "keeps"),
    [
        ("unlearn_facts", True),
        ("unlearn_forms", True),
        ("unlearn_leak_at_k", True),
        ("unlearn_thinking", True),
        ("unlearn_factual", True),
        ("unlearn_pistol", True),
        ("unlearn_counterfact", True),
        ("unlearn_zsre", True),
        ("unlearn_sports", True),
        ("unlearn_utility", False),
        ("unlearn_lume", False),
        ("unlearn_knowundo", False),
        ("unlearn_rwku", False),
        ("unlearn_tofu", False),
        ("unlearn_wmdp", None),
        ("arc_easy", None),
    ],
)
def test_every_task_can_be_given_what_is_kept_or_says_that_it_cannot(task, keeps):
    assert can_keep(task) is keeps
    assert wants_control(task) == (task in ("unlearn_forms", "unlearn_leak_at_k", "unlearn_thinking"))
    if keeps is None:
        assert asking_of(task) is None


@pytest.mark.parametrize("strict", [False, True])
def test_benchmarks_are_given_what_is_kept_where_a_study_says_so(strict):
    items = load_forget_set("sports:all")
    chosen = choose(items, 2, 0, 3, None, strict)
    metadata, _ = told("unlearn_sports", chosen)
    kept = [key.removeprefix("sports/") for key in chosen.kept]
    assert metadata.get("retain") == (kept if strict else None)


# The control -----------------------------------------------------------------------------------------------


def test_the_control_of_a_whole_set_is_facts_that_the_model_knows(own):
    chosen = choose(forget_set(own), None, 0, 48, {f"i{n}" for n in range(16)})
    assert chosen.control is None
    known = {"capital_of/france", "capital_of/italy", "author_of/hamlet"}
    control = known_control(chosen, facts(), known, 2, 0)
    assert len(control.control) == 2
    assert {item.id for item in control.control} <= known
    assert told("unlearn_forms", control)[0]["retain"] == [item.id for item in control.control]
    assert known_control(chosen, facts(), known, 2, 0) == control
    with pytest.raises(UserError, match="knows none of the shipped facts"):
        known_control(chosen, facts(), set(), 2, 0)


def test_a_control_has_nothing_to_do_with_what_is_forgotten():
    france = choose(load_forget_set("facts").select(["capital_of/france"]), None, 0, 0, None)
    known = {"currency_of/france", "capital_of/france", "capital_of/italy"}
    control = known_control(france, facts(), known, 9, 0)
    assert [item.id for item in control.control] == ["capital_of/italy"]


# Plans -----------------------------------------------------------------------------------------------------


def test_a_set_is_not_refused_for_items_that_nobody_asked_for(tmp_path, model, own):
    common = {"forget": own, "sizes": [4], "known": True}
    assert planned(tmp_path, model, kept=..., **common).cells  # the default: as many as there are
    assert planned(tmp_path, model, kept=12, **common).cells
    with pytest.raises(UserError, match="17 items to forget and to keep are more than the 16") as error:
        planned(tmp_path, model, kept=13, **common)
    assert "4 are forgotten and 13 kept" in error.value.hint


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"retain": "facts", "tasks": [FACTS], "editors": ["ultraedit"]}, "retain: facts is not used"),
        ({"forget": "tofu:forget01", "tasks": ["unlearn_tofu_forget01"], "kept": 5}, "kept: 5 is not used"),
        (
            {"forget": "tofu:forget01", "known": True, "kept": ...}
            | {"tasks": ["unlearn_tofu_forget01", "unlearn_thinking"]},
            "unlearn_tofu_forget01: what is retained is the task's own",
        ),
        ({"attacks": ["quantize"], "tasks": [FACTS]}, "there is no edit to attack"),
        ({"recipes": ["plain", "self"], "tasks": [FACTS]}, "no editor uses self"),
    ],
)  # fmt: skip
def test_what_a_study_names_and_does_not_use_is_said(tmp_path, model, tofu, changes, warning):
    from study_files import memit

    editors = [] if "attacks" in changes else [memit(model) | {"recipes": ["plain"]}]
    found = planned(tmp_path, model, **{"editors": editors} | changes).warnings
    assert any(warning in own for own in found), found


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"task": "unlearn_forms", "num_fewshot": 5}, "unlearn_forms takes no examples"),
        ({"task": "unlearn_facts", "metadata": {"forgett": "x"}}, "unknown key in --metadata 'forgett'"),
        ({"task": "unlearn_facts", "metadata": {"samples": 5}}, "unknown key in --metadata 'samples'"),
        ({"task": "unlearn_leak_at_k", "metadata": {"samples": "5"}}, "samples in --metadata is '5'"),
        ({"task": "unlearn_facts", "gen_kwargs": {"temperature": 0.5}}, "temperature has no effect"),
        ({"task": "unlearn_facts", "gen_kwargs": {"max_new_tokens": 5}}, "is not read"),
    ],
)
def test_options_of_a_study_s_tasks_are_checked_when_it_is_planned(tmp_path, model, task, message):
    with pytest.raises(UserError, match=message):
        planned(tmp_path, model, tasks=[task])


def test_prompts_of_a_study_are_inputs_of_its_results(tmp_path, model):
    keys = [
        planned(tmp_path, model, tasks=[FACTS], **changes).cells[0].key
        for changes in ({}, {"system": "Be brief."}, {"chat_template_kwargs": {"enable_thinking": False}}, {})
    ]
    assert len(set(keys)) == 3
    assert keys[0] == keys[3]
    (cell,) = planned(tmp_path, model, tasks=[FACTS], system="Be brief.").cells
    assert cell.prompts == {"system": "Be brief."}
