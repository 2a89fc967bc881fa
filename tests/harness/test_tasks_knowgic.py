"""KnowGIC: its files, chains put together from questions that are asked once, and its two numbers by hand."""

import json

import pytest
from benchmark_data import benchmark_files, write_benchmarks
from lm_eval_runs import evaluate, hf, report, values
from plain_loop import token_scores
from saying import SayingLM

from unlearn_eval.data.benchmarks.knowgic import cases_of
from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.data.registry import benchmark_documents, task_for
from unlearn_eval.harness import unedited
from unlearn_eval.utils.errors import UserError

TASK = "unlearn_knowgic"
ADA, MILO = "ada_brook_was_born_in", "milo_fenn_was_born_in"


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(write_benchmarks(tmp_path)))
    return tmp_path


class Sometimes(SayingLM):
    """A model that answers rightly in so many of its samples: `shares` by the beginning of a question."""

    def __init__(self, after, before=None):
        super().__init__(None)
        self.after, self.before, self.asked = after, before, {}

    def _say(self, request, shares, state):
        key = (state, request.doc["id"])
        n = self.asked[key] = self.asked.get(key, 0) + 1
        share = next((own for text, own in shares.items() if request.doc["question"].startswith(text)), 1.0)
        return request.doc["answer"] if n <= round(10 * share) else "nobody knows"

    def generate_until(self, requests):
        return [self._say(request, self.after, "after") for request in requests]

    def generate_unedited(self, requests):
        if self.before is None:
            return unedited.not_known(self, requests)
        return [{"text": self._say(request, self.before, "before")} for request in requests]


def run(lm, metadata=None, **options):
    result = evaluate(lm, TASK, {"samples": 10} | (metadata or {}), **options)
    return result, values(result, TASK)


def test_questions_are_asked_once_and_chains_are_made_of_them():
    found = cases_of({})
    assert list(found.edits) == [ADA, MILO]
    assert [len(case.steps) for case in found.cases] == [1, 2, 3, 1]
    assert len(found.questions) == 7
    splits = benchmark_documents("knowgic", {})
    assert [len(splits[name]) for name in ("forget", "neighbors")] == [5, 3]
    first = splits["forget"][0]
    assert (first["question"], first["answer"], first["shape"]) == ("Ada Brook was born in", "Larkhill", "sentence")
    assert first["aliases"] == ["Lark Hill"], "an alias that names nothing is left out"
    asked = benchmark_documents("knowgic", {"ask": "questions"})["forget"][0]
    assert (asked["question"], asked["shape"]) == ("Tell me: Ada Brook was born in what?", "question")
    some = benchmark_documents("knowgic", {"forget": [MILO]})
    assert [len(some[name]) for name in ("forget", "neighbors")] == [1, 1]


def test_both_numbers_are_those_by_hand():
    before = {"Milo Fenn was born": 0.8, "Till": 0.5}
    after = {"Ada Brook was": 0.0, "Milo Fenn was born": 0.4, "Ines": 0.5, "Till": 0.2, "Larkhill has": 0.9}
    result, found = run(Sometimes(after, before))
    # R after / R before: Ada's own 0; her friend's .4/.8; the sister's .5; Milo's own .4/.8, and 1/sqrt(n) each.
    weights = [1, 2**-0.5, 3**-0.5, 1]
    by_hand = sum(w * r for w, r in zip(weights, (0, 0.5, 0.5, 0.5), strict=True)) / sum(weights)
    assert found["forget_chain_recovery"] == pytest.approx(by_hand)
    assert [found[f"forget_chain_recovery_{n}"] for n in (1, 2, 3)] == pytest.approx([0.25, 0.5, 0.5])
    assert "forget_chain_recovery_4" not in found
    assert found["neighbors_preservation"] == pytest.approx((0.9 + 0.2 / 0.5 + 0.4 / 0.8) / 3)
    assert found["forget_chains_known_before"] == 4
    directions = result["higher_is_better"][TASK]
    assert (directions["forget_chain_recovery"], directions["neighbors_preservation"]) == (False, True)


@pytest.mark.parametrize(("after", "recovery", "kept"), [({}, 1, 1), ({"": 0.0}, 0, 0)])
def test_both_ends(after, recovery, kept):
    """The unedited model itself, and one that has forgotten everything."""
    _, found = run(Sometimes(after, {}))
    assert (found["forget_chain_recovery"], found["neighbors_preservation"]) == (recovery, kept)


def test_a_chain_that_was_never_gone_through_does_not_count():
    _, found = run(Sometimes({"Ines": 0.0}, {"Milo Fenn's sister": 0.0}))
    assert (found["forget_chain_recovery"], found["forget_chains_known_before"]) == (1, 3)
    result, found = run(Sometimes({}, {"": 0.0}))
    for name in ("forget_chain_recovery", "neighbors_preservation"):
        assert found[name] is None
        assert "unedited model" in report(result, TASK)[name]["reason"]
    assert found["forget_chains_known_before"] == 0


def test_without_the_unedited_model_both_are_null():
    result, found = run(Sometimes({}))
    for name in ("forget_chain_recovery", "neighbors_preservation", "forget_chains_known_before"):
        assert found[name] is None
        assert "name its result" in report(result, TASK)[name]["reason"]


def test_an_alias_is_the_answer():
    class Alias(Sometimes):
        def _say(self, request, shares, state):
            return (request.doc["aliases"] or [request.doc["answer"]])[0]

    assert run(Alias({}, {}))[1]["forget_chain_recovery"] == 1


def test_the_probability_is_that_of_the_answer_s_tokens(tiny, tokenizer):
    model = tiny("llama")
    lm = hf(model, tokenizer)
    lm.logprobs_unedited = lambda requests: [{"same": True} for _ in requests]
    result, found = run(lm, {"p": "probability", "forget": [MILO]})
    (sample,) = [s for s in result["samples"][TASK] if s["doc"]["split"] == "forget"]
    ids = tokenizer.encode("Milo Fenn was born in")
    labels = tokenizer.encode("Milo Fenn was born in Larkhill")[len(ids) :]
    loss = sum(token_scores(model, ids, labels)["token_nll"])
    assert sample["forget_chain_recovery"]["after"] == pytest.approx(2.718281828**-loss, rel=1e-3)
    assert found["forget_chain_recovery"] == found["neighbors_preservation"] == 1


def test_a_set_for_each_edit():
    whole = load_forget_set("knowgic:all")
    assert [item.id for item in whole] == [f"knowgic/{ADA}", f"knowgic/{MILO}"]
    (item,) = load_forget_set(f"knowgic:{MILO}")
    assert (item.question, item.answer, item.subject) == ("Milo Fenn was born in", "Larkhill", "Milo Fenn")
    assert (item.perturbed_answers, item.shape) == (("Imber",), "sentence")
    assert task_for("knowgic:all") == TASK
    with pytest.raises(UserError, match="did you mean"):
        load_forget_set("knowgic:milo_fen_was_born_in")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"chain": {"questions": ["?"]}}, "case 0: its chain is not as published"),
        ({"chain": None}, "its chain is not as published"),
        (
            {"broader_context": {"questions": [], "answers": ["x"], "prompts": [], "subjects": []}},
            "its broader_context",
        ),
        ({"requested_rewrite": [{"prompt": "x"}]}, "its requested_rewrite is not as published"),
    ],
)
def test_files_that_are_not_as_published(data, monkeypatch, change, match):
    records = benchmark_files()["knowgic/chains"]
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(write_benchmarks(data, knowgic__chains=[records[0] | change])))
    with pytest.raises(UserError, match=match):
        cases_of({})


def test_the_readme_s_list_of_one_chain_is_read(data, monkeypatch):
    records = json.loads(json.dumps(benchmark_files()["knowgic/chains"]))
    for record in records:
        record["chains"] = [record.pop("chain")]
    expected = cases_of({})
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(write_benchmarks(data, knowgic__chains=records)))
    assert cases_of({}) == expected


@pytest.mark.parametrize(
    ("metadata", "match"),
    [({"p": "greedy"}, "unknown p"), ({"ask": "prompt"}, "did you mean prompts"), ({"forget": ["x"]}, "unknown edit")],
)
def test_bad_options(metadata, match):
    with pytest.raises(UserError, match=match):
        run(Sometimes({}, {}), metadata)
