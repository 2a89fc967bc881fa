"""What benchmarks of editing ask beside a fact: portability, multi-hop questions, ripple effects, concepts."""

import json

import pytest
from benchmark_data import benchmark_files, write_benchmarks
from lm_eval_runs import evaluate, report, values
from saying import Before

from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.results.files import write_result
from unlearn_eval.results.schema import Metric, Result

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
