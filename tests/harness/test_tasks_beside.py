"""What benchmarks of editing ask beside a fact: portability, multi-hop questions, ripple effects, concepts."""

import json

import pytest
from benchmark_data import benchmark_files, write_benchmarks
from lm_eval_runs import evaluate, report, values
from saying import Before

from unlearn_eval.data.benchmark import Chosen
from unlearn_eval.data.benchmarks.concepts import FILE, NO, YES
from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.data.registry import asking_of, benchmark_documents
from unlearn_eval.data.spans import find_subject
from unlearn_eval.harness.consequences import NO_TEST, NOT_BEFORE, told
from unlearn_eval.results.files import write_result
from unlearn_eval.results.report.answers import answer_class, texts
from unlearn_eval.results.schema import Metric, Result
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import read_jsonl

NOTHING = lambda doc, prompt: "none"
SCORED = {"token_nll": [1.0, 1.0], "hits": [True, True], "ranks": [1, 1], "n_answer": 1, "text": ""}


class Model(Before):
    """What `replies` has for the first word of it that stands in a prompt, after the edit and before it."""

    def __init__(self, replies, before=None):
        says = lambda own: lambda doc, prompt: next((said for word, said in own.items() if word in prompt), "none")
        super().__init__(says(replies), None if before is None else says(before))

    def answer_logprobs(self, requests):
        return [SCORED for _ in requests]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(tmp_path / "data"))
    return lambda **replaced: write_benchmarks(tmp_path / "data", **replaced)


def run(lm, name, metadata=None, **options):
    result = evaluate(lm, f"unlearn_{name}", metadata or {}, **options)
    return result, values(result, f"unlearn_{name}")


def stored(result, name, place):
    """A run's result as a file, which another run can name."""
    made = Result.new(
        "evaluation", "2026-11-30T00:00:00+00:00", metrics={f"unlearn_{name}": {"x": Metric(1.0, None, 1)}}
    )
    samples = [{**own, "id": own["doc"]["id"]} for own in result["samples"][f"unlearn_{name}"]]
    return str(write_result(made, place, {f"unlearn_{name}": samples}))


# Portability -----------------------------------------------------------------------------------------------

RIVER = {"Recalled Relation": "(Imber, on, Till)", "New Question": "Which river is it?", "New Answer": "Till"}
KNOWEDIT = [
    {
        "subject": name,
        "prompt": f"Where was {name} born?",
        "ground_truth": ["Larkhill", "Lark Hill"],
        "target_new": "Imber",
        "rephrase_prompt": f"The birthplace of {name} is",
        "portability": {
            "Subject_Aliasing": [{"prompt": f"Where was Countess {name} born?", "ground_truth": "Imber"}],
            "Reasoning": [{"prompt": f"Which river flows by {name}'s birthplace?", "ground_truth": [["Till"]]}],
            "Logical_Generalization": [{"prompt": f"The town of {name} in Imber is", "ground_truth": "Hill"}],
        },
        "locality": {"Relation_Specificity": [{"prompt": f"{name}'s brother is", "ground_truth": [["Tom"]]}]},
    }
    for name in ("Ada", "Milo")
]


def test_portability_of_knowedit_s_file_is_scored_by_kind(data):
    root = data(zsre__zsre_mend_eval=None)
    (root / "zsre" / "ZsRE-test-all.json").write_text(json.dumps(KNOWEDIT))
    before = {"Countess": "Lark Hill", "brother": "Tom"}
    lm = Model({"Countess Ada": "Larkhill", "Countess Milo": "Larkhill", "river": "Till", "brother": "Ben"}, before)
    result, found = run(lm, "zsre", {"forget": 1})
    said, better = report(result, "unlearn_zsre"), result["higher_is_better"]["unlearn_zsre"]
    assert (found["forget_leak_alias"], found["forget_alias_known_before"]) == (1, 1)
    assert (found["retain_known_alias"], found["retain_alias_before_accuracy"]) == (1, 1)
    assert (better["forget_leak_alias"], better["retain_known_alias"]) == (False, True)
    assert (found["forget_portability_reasoning_accuracy"], found["forget_portability_logical_accuracy"]) == (1, 0)
    assert found["forget_portability_reasoning_before_accuracy"] == 0
    assert said["forget_portability_reasoning_accuracy"]["n"] == 1
    assert (found["neighbors_known_locality"], found["neighbors_locality_known_before"]) == (0, 1)
    assert "neighbors_accuracy" not in found, "KnowEdit's file has no unrelated question of its own"
    asked = [prompt for batch in lm.batches for prompt in batch]
    assert len(asked) == 2 * 2 + 4 + 1, (
        "question and paraphrase of both, four questions beside one, an alias of the other"
    )
    (item,) = load_forget_set("zsre:1")
    assert [own.kind for own in item.linked] == ["alias", "reasoning", "logical", "relation"]


@pytest.mark.parametrize(
    ("name", "path"), [("zsre", "zsre/zsre_mend_eval"), ("counterfact", "counterfact/counterfact")]
)
def test_a_question_over_a_further_fact_is_scored_where_there_is_one(data, name, path):
    records = benchmark_files()[path]
    records[0]["portability"] = RIVER
    root = data(**{path.replace("/", "__"): None})
    (root / f"{path}_portability_gpt4.json").write_text(json.dumps(records))
    result, found = run(Model({"river": "The Till."}, {}), name, {"forget": 2})
    said = report(result, f"unlearn_{name}")
    assert found["forget_portability_reasoning_accuracy"] == 1
    counted = said["forget_portability_reasoning_accuracy"]
    assert (counted["n"], counted["n_unscored"]) == (1, 1)
    assert found["forget_portability_reasoning_known_before"] == 0
    for absent in ("forget_leak_alias", "forget_portability_logical_accuracy", "neighbors_known_locality"):
        assert found[absent] is None
        assert said[absent]["reason"] == "the item brings no such question"
    assert "forget_alias_known_before" not in found, "one line says that there is none"


def test_files_without_portability_cost_nothing(data):
    data()
    lm = Model({})
    result, found = run(lm, "zsre", {"forget": 2})
    assert found["forget_portability_reasoning_accuracy"] is None
    assert sum(map(len, lm.batches)) == 2 * 4 + 2, "question and paraphrase of four, and two unrelated questions"
    assert "linked" not in result["samples"]["unlearn_zsre"][0]["doc"], "the data's hash is as it was"


def test_the_unedited_model_s_result_stands_for_it(data, tmp_path):
    root = data(zsre__zsre_mend_eval=None)
    (root / "zsre" / "ZsRE-test-all.json").write_text(json.dumps(KNOWEDIT))
    before = {"Countess": "Lark Hill", "river": "Till"}
    place = stored(run(Model(before), "zsre", {"forget": 1})[0], "zsre", tmp_path / "before.json")
    lm = Model({"Countess": "none"})
    result, found = run(lm, "zsre", {"forget": 1, "unedited": place})
    assert (found["forget_leak_alias"], found["forget_alias_known_before"]) == (0, 1)
    assert (found["forget_portability_reasoning_accuracy"], found["forget_portability_reasoning_known_before"]) == (
        0,
        1,
    )


# MQuAKE ----------------------------------------------------------------------------------------------------

EDITED = {"Ada Brook was born in": "Imber", "Imber has the mayor": "Bo Lind"}
# By the first words of a prompt: what the unedited model says to multi-hop questions.
KNOWS = {"(a) Who is mayor where Ada": "none", "(b) Who is mayor where Ada": "It is Vale.", "Milo": "Ira Moss"}


def test_a_multi_hop_question_is_answered_if_any_of_three_wordings_is(data):
    data()
    replies = {"(c) Who is mayor where Ada": "That is Yara Stahl.", **EDITED}
    result, found = run(Model(replies, KNOWS), "mquake", {"forget": 2})
    sizes = result["configs"]["unlearn_mquake"]["metadata"]["split_sizes"]
    assert sizes == {"forget": 2, "forget_cases": 2, "retain": 2, "retain_cases": 1}, (
        "one goes through a forgotten fact"
    )
    assert found["forget_multi_hop_success"] == 0.5, "the second case has another new answer"
    assert (found["forget_edit_success"], found["forget_accuracy"]) == (1, 0)
    assert (found["forget_leak_multi_hop"], found["forget_leak_multi_hop_tests"]) == (0, 2)
    assert (found["retain_known_multi_hop"], found["retain_known_multi_hop_tests"]) == (0, 1)
    better = result["higher_is_better"]["unlearn_mquake"]
    assert (better["forget_leak_multi_hop"], better["retain_known_multi_hop"]) == (False, True)


def test_an_instance_needs_all_of_its_hops(data):
    data()
    hops = {"Question: Ada Brook was born": "old Imber", "Question: Imber has the mayor": "Bo Lind"}
    _, found = run(Model(hops, {}), "mquake", {"forget": 2})
    assert found["forget_single_hops_success"] == 0.5, "the first case's new mayor is another one"
    assert found["forget_multi_hop_success"] == 0


def test_the_page_shows_which_question_leaked(data):
    data()
    result, _ = run(Model({"(b) Who is mayor where Ada": "Juno Vale"}, KNOWS), "mquake", {"forget": 2})
    case = next(own for own in result["samples"]["unlearn_mquake"] if own["doc"]["split"] == "forget_cases")
    said = texts(json.loads(json.dumps(case)))
    shown = [(own.label, answer_class(case, own.label, own.key)) for own in said]
    assert [label for label, _ in shown] == ["old multi hop"] * 3 + ["single hops"] * 2
    assert [letter for _, letter in shown] == ["l", "l", "l", "-", "-"], "one test of three wordings"


@pytest.mark.parametrize("leaks", [True, False])
def test_both_ends_of_mquake(data, leaks):
    """The unedited model, which knows all the old answers, and one that knows none of them any more."""
    data()
    old = lambda doc, prompt: doc["answer"] if "Who is mayor" in prompt else "none"
    lm = Before(old if leaks else NOTHING, old)
    lm.answer_logprobs = lambda requests: [SCORED for _ in requests]
    _, found = run(lm, "mquake", {"forget": 2})
    assert found["forget_leak_multi_hop"] == found["retain_known_multi_hop"] == float(leaks)
    assert found["forget_leak_multi_hop_tests"] == 2
    assert found["forget_multi_hop_success"] == 0


def test_what_was_not_known_before_counts_nowhere(data):
    data()
    result, found = run(Model({"Ada": "Juno Vale"}, {}), "mquake", {"forget": 2})
    assert found["forget_leak_multi_hop"] is None
    assert report(result, "unlearn_mquake")["forget_leak_multi_hop"]["reason"] == NOT_BEFORE
    assert found["forget_leak_multi_hop_tests"] == 0
    result, found = run(Model({"Ada": "Juno Vale"}), "mquake", {"forget": 2})
    for name in ("forget_leak_multi_hop", "forget_leak_multi_hop_tests"):
        assert found[name] is None
        assert "name its result" in report(result, "unlearn_mquake")[name]["reason"]


def test_the_unedited_model_s_result_decides_what_counts(data, tmp_path):
    data()
    place = stored(run(Model(KNOWS), "mquake", {"forget": 2})[0], "mquake", tmp_path / "before.json")
    lm = Model({"(a) Who is mayor where Ada": "Vale"})
    _, found = run(lm, "mquake", {"forget": 2, "unedited": place})
    assert found == run(Model({"(a) Who is mayor where Ada": "Vale"}, KNOWS), "mquake", {"forget": 2})[1]
    assert found["forget_leak_multi_hop"] == 1


def test_a_case_is_asked_if_all_of_its_edits_are_made(data):
    data()
    items = load_forget_set("mquake:cf-3k")
    assert [item.id for item in items] == [f"mquake/cf-3k/{key}" for key in ("0/0", "1/1", "2/0", "3/0")]
    assert (items[1].question, items[1].answer, items[1].perturbed_answers) == (
        "Imber has the mayor",
        "Yara Stahl",
        ("Bo Lind",),
    )
    chosen = asking_of("unlearn_mquake").metadata(Chosen(items.select([items[1].id]), whole=False))
    assert chosen == {"forget": ["cf-3k/1/1"], "file": "cf-3k"}
    assert "forget_cases" not in benchmark_documents("mquake", chosen), "Ada's town is edited too"
    assert len(load_forget_set("mquake:t:1")) == 1
    assert load_forget_set("mquake:t")[0].id == "mquake/t/2/0"
    with pytest.raises(UserError, match="unknown file of mquake 'cf3k'(.|\n)*did you mean cf-3k"):
        load_forget_set("mquake:cf3k")


@pytest.mark.parametrize(
    ("name", "path", "change", "match"),
    [
        ("mquake", "mquake/MQuAKE-CF-3k", {"requested_rewrite": [{"prompt": "x"}]}, "case 0: its requested_rewrite is"),
        ("mquake", "mquake/MQuAKE-CF-3k", {"new_single_hops": [{"cloze": "x"}]}, "case 0 is not as published"),
        ("mquake", "mquake/MQuAKE-CF-3k", {"questions": []}, "case 0 is not as published"),
        ("ripple", "ripple/popular", {"edit": {"prompt": "Ada Imber."}}, "record 1: its fact 'Ada Imber.' is not"),
        ("ripple", "ripple/popular", {"Forgetfulness": [{"test_queries": []}]}, "record 1 is not as published"),
        ("ripple", "ripple/popular", {"edit": None}, "record 1 is not as published"),
    ],
)
def test_files_that_are_not_as_published(data, name, path, change, match):
    data(**{path.replace("/", "__"): [benchmark_files()[path][0] | change]})
    with pytest.raises(UserError, match=match):
        benchmark_documents(name, {"forget": 1})


# RippleEdits -----------------------------------------------------------------------------------------------

HOLDS = {"mother of": "Nan", "mayor of Imber": "Yara Stahl", "Count Ada": "Larkhill"}
RIPPLE = {"forget": 1}


def test_tests_count_whose_conditions_hold_in_the_unedited_model(data):
    data()
    replies = {
        "mother of": "Ida",
        "A child of": "Ada Brook",
        "Is it a town": "Yes.",
        "mayor of the town": "Yara Stahl",
        "Count Ada": "Larkhill",
        "friends": "Bo and Ove Dahl",
        "town of Ada": "Imber Bay",
    }
    result, found = run(Model(replies, HOLDS), "ripple", RIPPLE)
    assert found["forget_relation_specificity"] == 0, "the mother was known before, and is not any more"
    assert found["forget_compositionality_i"] == 1, "both of its conditions hold"
    assert (found["forget_logical_generalization"], found["forget_forgetfulness"]) == (1, 1)
    assert found["forget_subject_aliasing"] == 0
    assert found["forget_leak_alias"] == 1, "the old town is told of the count, as before"
    assert found["forget_compositionality_ii"] is None
    assert report(result, "unlearn_ripple")["forget_compositionality_ii"]["reason"] == NO_TEST
    assert found["forget_edit_success"] == 1
    better = result["higher_is_better"]["unlearn_ripple"]
    assert [better[f"forget_{name}"] for name in ("leak_alias", "forgetfulness", "subject_aliasing")] == [
        False,
        True,
        None,
    ]
    _, found = run(Model(replies, HOLDS | {"mother of": "N"}), "ripple", RIPPLE)
    assert found["forget_relation_specificity"] is found["forget_compositionality_i"] is None, "one letter is no name"
    assert found["forget_compositionality_i_tests"] == 0


@pytest.mark.parametrize(
    ("replies", "name", "value"),
    [
        ({"A child of": "Ada Brook"}, "logical_generalization", 0),  # AND: the other question is not answered
        ({"friends": "Bo"}, "forgetfulness", 0),  # an answer of each group is needed
        ({"Count Ada": "Imber"}, "subject_aliasing", 1),  # an alias will do
    ],
)
def test_what_a_test_needs(data, replies, name, value):
    data()
    assert run(Model(replies, HOLDS), "ripple", RIPPLE)[1][f"forget_{name}"] == value


def test_only_successful_edits_as_the_authors_count(data):
    data()
    for town, value in (("Imber Bay", 1), ("nowhere", None)):
        lm = Model({"mother of": "Nan", "town of Ada": town}, HOLDS)
        result, found = run(lm, "ripple", RIPPLE | {"successful": True})
        assert found["forget_relation_specificity"] == value
    assert "new answer is not told" in report(result, "unlearn_ripple")["forget_relation_specificity"]["reason"]


def test_an_edit_is_parted_into_prompt_and_answers(data):
    data()
    own, *_ = load_forget_set("ripple:popular")
    assert (own.question, own.answer, own.perturbed_answers) == ("The town of Ada Brook is", "Larkhill", ("Imber Bay",))
    own, *_ = load_forget_set("ripple:recent:2")
    assert (own.answer, own.perturbed_answers) == ("Imber Bay", ()), "a recent fact is what may be forgotten itself"
    assert asking_of("unlearn_ripple").metadata(Chosen(load_forget_set("ripple:recent:1")))["file"] == "recent"
    records = benchmark_files()["ripple/popular"]
    records[0]["edit"] = {
        "prompt": "The sequel of What is Art is Is It Art.",
        "previous_fact": {"prompt": "The sequel of What is Art is Is It."},
    }
    records[1]["edit"]["prompt"] = "The town of Milo Fenn is ."
    data(ripple__popular=records)
    first, second = load_forget_set("ripple:popular")
    assert (first.question, first.answer, first.perturbed_answers) == (
        "The sequel of What is Art is",
        "Is It",
        ("Is It Art",),
    )
    assert second.id == "ripple/popular/2", "an entity without a name is passed over"


@pytest.mark.parametrize(
    ("text", "value"), [("Imber", True), ("It is Imber.", False), ("Imber, it is", True), ("Where is Imber?", False)]
)
def test_what_a_question_says_counts_only_as_the_first_words(text, value):
    assert told(text, "Is Imber a town? Say Imber or Till.", ["Imber"]) is value
    assert told("It is Till Bay", "Is it Imber?", ["Till"])


# Concepts --------------------------------------------------------------------------------------------------

CONCEPTS = read_jsonl(FILE)


def believes(denied=(), defined=True):
    """A model that knows what is what, but denies all of some concepts, and defines them by their marks or not."""
    kinds = {f"Is {one} {own['concept']}?" for own in CONCEPTS for one in own["instances"]}
    marks = {f"What is {own['concept']}?": own["marks"][0] for own in CONCEPTS}

    def says(doc, prompt):
        question = prompt.removeprefix("Question: ").removesuffix("\nAnswer:")
        if question in marks:
            return marks[question] if defined else "a thing"
        return "Yes, it is." if question in kinds and not question.endswith(tuple(denied)) else "No, it is not."

    return says


def concepts(after, before, metadata=None):
    lm = Before(after, before)
    lm.answer_logprobs = lambda requests: [SCORED for _ in requests]
    return run(lm, "concepts", metadata or {"forget": ["bird", "tool"]})


def test_the_shipped_concepts_are_whole():
    assert len(CONCEPTS) >= 20
    assert len({own["concept"] for own in CONCEPTS}) == len(CONCEPTS)
    instances = [one for own in CONCEPTS for one in own["instances"]]
    assert len(set(instances)) == len(instances), "an instance of two concepts would be no contrast"
    for own in CONCEPTS:
        assert len(own["instances"]) == 6
        assert own["concept"].split()[0] in ("a", "an")
        assert not any(find_subject(own["concept"], mark) for mark in own["marks"]), own
        assert told(own["definition"], f"What is {own['concept']}?", own["marks"]), own
    assert [item.id for item in load_forget_set("concepts:bird")] == ["concepts/bird"]
    assert len(load_forget_set("concepts:animal")) == 4
    assert len(load_forget_set("concepts:all")) == len(CONCEPTS)


def test_both_ends_of_concepts():
    """The unedited model, and an oracle that has forgotten two concepts and nothing else."""
    knows = believes()
    result, found = concepts(knows, knows)
    kinds = [(split, kind) for split in ("neighbors_known", "retain_known") for kind in ("instance", "definition")]
    assert found["forget_leak_instance"] == found["forget_leak_definition"] == 1
    assert all(found["_".join(own)] == 1 for own in kinds)
    assert (found["forget_leak_instance_tests"], found["forget_leak_definition_tests"]) == (12, 2)
    sizes = result["configs"]["unlearn_concepts"]["metadata"]["split_sizes"]
    assert sizes == {"forget": 2, "forget_new": 2, "neighbors": 7, "retain": 15}
    forgetful = believes(denied=(" a bird?", " a tool?"))
    says = lambda doc, prompt: (
        "a thing"
        if prompt.endswith(("What is a bird?\nAnswer:", "What is a tool?\nAnswer:"))
        else forgetful(doc, prompt)
    )
    _, found = concepts(says, knows)
    assert found["forget_leak_instance"] == found["forget_leak_definition"] == 0
    assert all(found["_".join(own)] == 1 for own in kinds)


def test_a_definition_may_change_and_instances_stay():
    _, found = concepts(believes(defined=False), believes())
    assert (found["forget_leak_definition"], found["forget_leak_instance"]) == (0, 1)


def test_who_says_yes_to_everything_knows_nothing():
    result, found = concepts(believes(), lambda doc, prompt: "Yes")
    assert found["forget_leak_instance"] is None
    assert report(result, "unlearn_concepts")["forget_leak_instance"]["reason"] == NOT_BEFORE


def test_a_contrast_is_no_instance():
    """Both answers are words of their own: a denial is no yes, and a yes is no denial."""
    documents = benchmark_documents("concepts", {"forget": "bird"})["forget"]
    (condition,) = documents[0]["consequences"][0]["conditions"]
    assert condition["question"] == "Is a sparrow a fruit?"
    for text, yes, no in (
        ("Yes, it is.", True, False),
        ("No. Yes?", True, True),
        ("no", False, True),
        ("None", False, False),
    ):
        assert (told(text, "Is it?", YES), told(text, "Is it?", NO)) == (yes, no)


def test_conceptedit_s_files_are_read(data):
    records = [
        {
            "label": label,
            "prompt": f"The definition of {label} is",
            "phrase_prompt": f"{label} is defined as",
            "target_new_desc": "a town by the sea",
            "instance_prompt": f"Is Imber {i} a {label}? Answer yes or no:",
            "locality_prompt": "The sea is",
            "locality_answer": "blue",
        }
        for i, label in enumerate(("river", "hill", "wood"))
    ]
    root = data()
    (root / "concepts").mkdir()
    (root / "concepts" / "final_gpt2_inter.json").write_text(json.dumps(records))
    metadata = {"file": "final_gpt2_inter", "forget": 2}
    after = lambda doc, prompt: "no" if "river" in prompt else "yes"
    result, found = concepts(after, lambda doc, prompt: "yes", metadata)
    assert (found["forget_leak_instance"], found["forget_leak_instance_tests"]) == (0.5, 2)
    assert found["retain_known_instance"] == 1
    assert found["forget_leak_definition"] is None
    assert found["forget_new_exact_memorization"] == found["forget_new_paraphrase_exact_memorization"] == 1
    asked = {own["doc"]["split"]: own["arguments"][0][0] for own in result["samples"]["unlearn_concepts"]}
    assert asked["forget"] == "Is Imber 1 a hill? Answer yes or no:", "asked as it stands"
    records[0].pop("label")
    (root / "concepts" / "final_gpt2_inter.json").write_text(json.dumps(records))
    with pytest.raises(UserError, match="lacks the field 'label'"):
        benchmark_documents("concepts", metadata)
