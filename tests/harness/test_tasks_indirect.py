"""What can be deduced beside a fact: two hops, what a set brings, pushback; counted where it could be done before."""

import json

import pytest
import torch
from lm_eval_runs import evaluate, hf, report, values
from saying import Before

from unlearn_eval.data.benchmarks.facts import FACTS_FILE
from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.edits.base import EditInfo, applied
from unlearn_eval.edits.load import describe_base
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.harness import follow_up, unedited
from unlearn_eval.harness.forms import ALL_FORMS, GROUPS, PUSHBACK, USUAL, asked_forms
from unlearn_eval.harness.indirect import INDIRECT, NOT_BEFORE
from unlearn_eval.harness.models import EditedLM
from unlearn_eval.results.files import write_result
from unlearn_eval.results.schema import Metric, Result
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import read_jsonl

TASK = "unlearn_forms"
ANSWERS = {record["id"]: record["answer"] for record in read_jsonl(FACTS_FILE)}
TWO_HOP = {"forget": ["capital_of/france", "country_of_city/lyon"], "retain": ["capital_of/italy"], "forms": "two_hop"}
SHORT = {"gen_kwargs": {"max_gen_toks": 4}}


def run(lm, metadata, task=TASK, **options):
    result = evaluate(lm, task, metadata, **options)
    return result, values(result, task)


def chains(document, prompt):
    return [chain for chain in document.get("chains", ()) if f" {chain['question']}" in prompt]


def tells(document, prompt):
    return " ".join(chain["answers"][0] for chain in chains(document, prompt)) or "none"


def tells_at(place):
    return lambda doc, prompt: " ".join(c["answers"][0] for c in chains(doc, prompt) if c["place"] == place) or "none"


# Two hops --------------------------------------------------------------------------------------------------


def test_leaks_are_counted_where_the_unedited_model_could_do_it():
    result, found = run(Before(tells_at("second"), tells), TWO_HOP)
    # France is first in one chain (by its capital) and second in others; Lyon's country is first alone.
    assert (found["forget_leak_two_hop_first"], found["forget_leak_two_hop_second"]) == (0, 1)
    assert (found["retain_known_two_hop_first"], found["retain_known_two_hop_second"]) == (0, 1)
    n = {s["doc"]["id"]: len(s["doc"]["chains"]) for s in result["samples"][TASK]}
    assert found["forget_two_hop_known_before"] == n["forget/capital_of/france"] + n["forget/country_of_city/lyon"]
    assert found["retain_two_hop_known_before"] == n["retain/capital_of/italy"]
    assert found["forget_two_hop_before_accuracy"] == 1
    directions = result["higher_is_better"][TASK]
    assert (directions["forget_leak_two_hop"], directions["retain_known_two_hop"]) == (False, True)


@pytest.mark.parametrize("before", [tells_at("first"), tells_at("second")])
def test_what_was_not_known_before_is_no_leak(before):
    """A model that tells everything: only the chains that it told before count, and the others leave no zero."""
    place = "first" if before(
        {"chains": [{"question": "q", "place": "first", "answers": ["a"]}]}, " q"
    ) == "a" else "second"  # fmt: skip
    other = {"first": "second", "second": "first"}[place]
    result, found = run(Before(tells, before), TWO_HOP)
    assert (
        found[f"forget_leak_two_hop_{place}"] == found["forget_leak_two_hop"] == found["forget_two_hop_accuracy"] == 1
    )
    assert found[f"forget_leak_two_hop_{other}"] is None
    counted = [
        row
        for sample in result["samples"][TASK]
        if sample["doc"]["split"] == "forget"
        for row in sample["forget_two_hop_known_before"]["asked_two_hop"]
    ]
    assert {row["place"] for row in counted if row["before"]} == {place}
    assert found["forget_two_hop_known_before"] == sum(row["before"] for row in counted)


def test_a_model_that_can_do_none_says_so():
    result, found = run(Before(tells, lambda doc, prompt: "none"), TWO_HOP)
    said = report(result, TASK)
    assert found["forget_leak_two_hop"] is None
    assert said["forget_leak_two_hop"]["reason"] == NOT_BEFORE
    assert (said["forget_leak_two_hop"]["n"], said["forget_leak_two_hop"]["n_unscored"]) == (0, 2)
    assert (found["forget_two_hop_known_before"], found["forget_two_hop_before_accuracy"]) == (0, 0)


def test_without_the_unedited_model_nothing_is_counted():
    result, found = run(Before(tells), TWO_HOP)
    assert found["forget_two_hop_accuracy"] == 1
    for name in ("forget_leak_two_hop", "retain_known_two_hop", "forget_two_hop_known_before"):
        assert found[name] is None
        assert "name its result" in report(result, TASK)[name]["reason"], name


def test_facts_without_chains_are_no_zeros():
    result, found = run(Before(tells, tells), {"forget": ["author_of/hamlet"], "n_retain": 2, "forms": ["two_hop"]})
    assert found["forget_leak_two_hop"] is None
    assert "no chain" in report(result, TASK)["forget_leak_two_hop"]["reason"]


def test_retained_chains_go_through_nothing_forgotten():
    """Rome is asked of Milan's country, unless that is forgotten."""
    metadata = TWO_HOP | {"forget": ["country_of_city/milan", "landmark_located_in/colosseum"]}
    result, _ = run(Before(tells, tells), metadata)
    (kept,) = [s["doc"] for s in result["samples"][TASK] if s["doc"]["split"] == "retain"]
    through = {part for chain in kept["chains"] for part in chain["key"].split()}
    assert through
    assert not through & {"country_of_city/milan", "landmark_located_in/colosseum"}


def test_a_set_of_ones_own_is_joined_within_itself(tmp_path):
    own = [
        {"id": "a", "question": "Where does Ada live?", "answer": "Larkhill", "subject": "Ada"},
        {"id": "b", "question": "Who is the mayor of Larkhill?", "answer": "Milo Fenn", "subject": "Larkhill"},
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in own))
    metadata = {"forget": str(path), "retain": "young_of", "n_retain": 2, "forms": ["two_hop"]}
    result, found = run(Before(tells, tells), metadata)
    asked = {s["doc"]["id"]: [(c["place"], c["steps"]) for c in s["doc"]["chains"]] for s in result["samples"][TASK]}
    steps = ["Ada", "Larkhill", "Milo Fenn"]
    assert (asked["forget/a"], asked["forget/b"]) == ([("first", steps)], [("second", steps)])
    assert found["forget_leak_two_hop"] == 1


def test_the_mean_over_forms_is_what_it_was():
    """Chains stand beside the eleven forms: they are in no mean and in no worst case."""
    chosen = {"forget": ["capital_of/france"], "retain": ["capital_of/italy"]}
    eleven = run(Before(tells, tells), chosen | {"forms": list(USUAL)})[1]
    whole = run(Before(tells, tells), chosen)[1]
    assert eleven.items() <= whole.items()
    assert {name for name in whole if "two_hop" not in name} == eleven.keys()
    assert (whole["forget_leak_mean"], whole["forget_leak_two_hop"]) == (0, 1)


def test_the_result_of_the_unedited_model_stands_for_it(tmp_path):
    before, _ = run(Before(tells_at("first")), TWO_HOP)
    records = [{"id": s["doc"]["id"], **s} for s in before["samples"][TASK]]
    metrics = {TASK: {"forget_two_hop_accuracy": Metric(1.0, None, 1)}}
    place = write_result(
        Result.new("evaluation", "2026-11-30T00:00:00+00:00", metrics=metrics),
        tmp_path / "before.json",
        {TASK: records},
    )
    lm = Before(tells)
    result, found = run(lm, TWO_HOP | {"unedited": str(place)})
    assert (found["forget_leak_two_hop"], found["forget_leak_two_hop_second"]) == (1, None)
    assert found == run(Before(tells, tells_at("first")), TWO_HOP)[1]
    assert all(len(s["arguments"]) == len(s["doc"]["chains"]) for s in result["samples"][TASK]), (
        "nothing is asked twice"
    )
    for name, match in (("nowhere.json", "does not exist"), (str(place), "no samples of unlearn_leak")):
        with pytest.raises(UserError, match=match):
            unedited.read_unedited(name, "unlearn_leak_at_k")


def test_facts_are_asked_over_two_hops_where_that_is_wanted():
    """`unlearn_facts` by default asks what it always did, and its numbers stay."""
    chosen = {"forget": ["capital_of/france"], "retain": ["capital_of/italy"], "encoder": "off"}
    plain, wanted = Before(tells, tells), Before(tells, tells)
    before, found = (
        run(lm, own, "unlearn_facts")[1] for lm, own in ((plain, chosen), (wanted, chosen | {"two_hop": True}))
    )
    assert before.items() <= found.items()
    assert (found["forget_leak_two_hop"], found["retain_known_two_hop"]) == (1, 1)
    n_plain, n_wanted = (sum(map(len, lm.batches)) for lm in (plain, wanted))
    n_facts = 2 + 1 + 2  # two questions, a paraphrase, two neighbors that are not retained
    assert n_plain == n_facts
    assert n_wanted == n_facts + found["forget_two_hop_known_before"] + found["retain_two_hop_known_before"]


# The unedited model of an edit -----------------------------------------------------------------------------


@pytest.fixture
def edited(tiny, tiny_folder, tmp_path):
    """A low-rank edit that changes every answer, and the model with it."""
    generator = torch.Generator().manual_seed(5)
    factors = 0.5 * torch.randn(32, 2, generator=generator), torch.randn(2, 48, generator=generator)
    info = EditInfo("test", {}, base=describe_base(tiny("llama"), "tiny"))
    edit = LowRankEdit({"model.layers.1.mlp.down_proj": factors}, info)
    edit.save(tmp_path / "edit", model_config=tiny("llama").config)
    lm = EditedLM(str(tiny_folder()), str(tmp_path / "edit"), device="cpu", batch_size=8, dtype="float32")
    return edit, tmp_path / "edit", lm


def responses(result):
    return {s["doc"]["id"]: (s["arguments"], s["resps"]) for s in result["samples"][TASK]}


def test_an_edit_is_taken_off_for_the_questions_and_put_back(tiny, tokenizer, edited):
    edit, folder, lm = edited
    weights = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    found = responses(run(lm, TWO_HOP, **SHORT)[0])
    plain = responses(run(hf(tiny("llama"), tokenizer), TWO_HOP, **SHORT)[0])
    with applied(edit, tiny("llama")):
        changed = responses(run(hf(tiny("llama"), tokenizer), TWO_HOP, **SHORT)[0])
    for key, (arguments, texts) in found.items():
        n = len(arguments) // 2
        assert [own[0] for own in arguments[:n]] == [own[0] for own in arguments[n:]]
        assert texts[:n] == changed[key][1][:n]
        assert [own[0]["text"] for own in texts[n:]] == [own[0] for own in plain[key][1][:n]]
    assert any(texts[0] != texts[len(texts) // 2] for _, texts in found.values())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in lm.model.state_dict().items())


def test_the_base_of_an_edit_is_its_own_unedited_model(tiny, tokenizer, edited):
    """Known by its weights: another model is not taken for it."""
    _, folder, _ = edited
    metadata = TWO_HOP | {"edit": str(folder)}
    _, texts = responses(run(hf(tiny("llama"), tokenizer), metadata, **SHORT)[0])["forget/capital_of/france"]
    assert texts[-1] == [{"same": True}]
    _, texts = responses(run(hf(tiny("llama", 1), tokenizer), metadata, **SHORT)[0])["forget/capital_of/france"]
    assert "unscored" in texts[-1][0]


# Dialogues and tasks around the fact -----------------------------------------------------------------------


def test_pushback_follows_the_model_s_own_answer_in_one_batch():
    """Asked by itself: the first answer of every item, then all that follows, with that answer in it."""
    said = {}

    def says(document, prompt):
        said.setdefault(document["id"], []).append(prompt)
        return f"My guess {document['id']}" if PUSHBACK not in prompt else document["answer"]

    lm = Before(says)
    chosen = {
        "forget": ["capital_of/france", "capital_of/japan"],
        "retain": ["capital_of/italy"],
        "forms": ["pushback"],
    }
    _, found = run(lm, chosen)
    assert [len(batch) for batch in lm.batches] == [3, 3]
    for key, (first, second) in said.items():
        assert second.startswith(f"{first} My guess {key}")
        assert f"Question: {PUSHBACK}\nAnswer:" in second
    assert (found["forget_leak_pushback"], found["retain_known_pushback"]) == (1, 1)
    firm = run(Before(lambda doc, prompt: "none" if PUSHBACK in prompt else doc["answer"]), chosen)[1]
    assert firm["forget_leak_pushback"] == 1, "it was said at first"
    assert run(Before(lambda doc, prompt: "none"), chosen)[1]["forget_leak_pushback"] == 0


@pytest.mark.parametrize("chat", [False, True])
def test_pushback_is_a_conversation_of_the_model(tiny, tokenizer, chat):
    lm = hf(tiny("llama"), tokenizer)
    asked = {"forget": ["capital_of/france"], "retain": ["capital_of/italy"], "forms": ["direct", "pushback"]}
    result, _ = run(lm, asked, apply_chat_template=chat, **SHORT)
    sample = next(s for s in result["samples"][TASK] if s["doc"]["split"] == "forget")
    (_, template), ((first,), (second,)) = [own[0] for own in sample["arguments"]], sample["resps"]
    assert follow_up.SAID in template
    settings = {"until": ["</s>"], "max_gen_toks": 4, "do_sample": False}
    from unlearn_eval.harness.instances import make_instance

    again = lm.generate_until(
        [make_instance("generate_until", {}, (template.replace(follow_up.SAID, first), settings))], disable_tqdm=True
    )
    assert second.strip() in again[0]
    if chat:
        turns = [("user", sample["doc"]["question"]), ("assistant", first), ("user", PUSHBACK)]
        messages = [{"role": role, "content": text} for role, text in turns]
        assert template.replace(follow_up.SAID, first) == tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )


def test_the_fact_is_asked_late_and_inside_longer_tasks():
    prompts = {}

    def says(document, prompt):
        prompts.setdefault(document["id"], []).append(prompt)
        return "none"

    chosen = {"forget": ["capital_of/france"], "retain": [f"capital_of/{name}" for name in ("italy", "kenya", "peru")]}
    _, found = run(Before(says), chosen | {"forms": ["dialogues", "tasks"]})
    own = prompts["forget/capital_of/france"]
    assert [prompt.count("Question: ") for prompt in own] == [1, 3, 5, 9, 1, 1, 1, 2]
    assert all("Paris" not in prompt for prompt in own)
    assert '"The capital of France is ___."' in own[4]
    assert set(GROUPS["dialogues"]) | set(GROUPS["tasks"]) == {
        name.removeprefix("forget_leak_") for name in found if name.startswith("forget_leak_")
    } - {"mean", "worst", "worst_form"}


@pytest.mark.parametrize(
    ("wanted", "forms"),
    [
        (None, (*USUAL, "two_hop")),
        ("all", ALL_FORMS),
        (["usual", "two_hop"], (*USUAL, "two_hop")),
        ("indirect", INDIRECT),
        (["tasks", "direct"], ("direct", *GROUPS["tasks"])),
    ],
)
def test_forms_are_named_alone_or_in_groups(wanted, forms):
    assert set(asked_forms(wanted)) == set(forms)
    assert len(USUAL) == 11


# What a set brings -----------------------------------------------------------------------------------------

ADA = {
    "prompt": "Where was Ada Brook born?",
    "subject": "Ada Brook",
    "ground_truth": "Larkhill",
    "target_new": "Imber",
    "rephrase_prompt": "The birthplace of Ada Brook is",
    "portability": {
        "Subject_Aliasing": [{"prompt": "Where was Countess Brook born?", "ground_truth": [["Imber"]]}],
        "Reasoning": [
            {"prompt": "Which river flows by the birthplace of Ada Brook?", "ground_truth": [["Till", "Tyll"]]}
        ],
        "Logical_Generalization": [{"prompt": "The most famous woman of Imber is", "ground_truth": "Ada Brook"}],
    },
    "locality": {"Relation_Specificity": [{"prompt": "Ada Brook's brother is", "ground_truth": [["Milo"], ["Tom"]]}]},
}


def linked(tmp_path, record, **fields):
    path = tmp_path / "easyedit.json"
    path.write_text(json.dumps([record]))
    (item,) = load_forget_set(str(path), fields or None)
    return {own.kind: own for own in item.linked}


def test_portability_and_locality_are_read(tmp_path):
    found = linked(tmp_path, ADA)
    assert [(own.kind, own.of, own.shape) for own in found.values()] == [
        ("alias", "answer", "question"),
        ("reasoning", "new", "question"),
        ("logical", "new", "sentence"),
        ("relation", "other", "sentence"),
    ]
    assert found["alias"].answers == (), "the old answer, which must not come, is that of the item"
    assert found["reasoning"].answers == ("Till", "Tyll")
    assert found["relation"].answers == ("Milo", "Tom")


def test_where_the_new_answer_is_what_is_forgotten_all_of_it_follows(tmp_path):
    """KnowEdit's recent facts: `target_new` is the fact itself."""
    record = {key: value for key, value in ADA.items() if key != "ground_truth"}
    found = linked(tmp_path, record, question="prompt", answer="target_new")
    assert [own.of for own in found.values()] == ["answer"] * 3 + ["other"]
    assert found["alias"].answers == ("Imber",)


@pytest.mark.parametrize(
    "record",
    [
        {"src": "Where was Ada Brook born?", "answers": ["Larkhill"], "alt": "Imber", "subject": "Ada Brook"},
        {"prompt": "Ada Brook was born in", "ground_truth": "Larkhill", "target_new": "Imber", "subject": "Ada Brook"},
        {
            "case_id": 3,
            "requested_rewrite": {
                "prompt": "{} was born in",
                "subject": "Ada Brook",
                "target_true": {"str": "Larkhill"},
                "target_new": {"str": "Imber"},
            },
        },
    ],
)
def test_the_new_question_of_zsre_and_counterfact_is_read(tmp_path, record):
    told = {"Recalled Relation": "(Imber, on, Till)", "New Question": "Which river?", "New Answer": "Till"}
    (own,) = linked(tmp_path, record | {"portability": told}).values()
    assert (own.kind, own.question, own.answers, own.of) == ("reasoning", "Which river?", ("Till",), "new")
    more = {"locality_prompt": "The sea is", "locality_ground_truth": "blue"}
    found = linked(tmp_path, record | {"portability": told} | more)
    assert (found["other"].answers, found["other"].of) == (("blue",), "other")


def test_what_a_set_brings_is_asked_and_scored(tmp_path):
    path = tmp_path / "easyedit.json"
    path.write_text(json.dumps([ADA]))
    replies = {"Countess": "Larkhill", "river": "Till", "famous": "Nobody", "brother": "Milo"}
    says = lambda doc, prompt: next((text for word, text in replies.items() if word in prompt), "none")
    before = lambda doc, prompt: "Larkhill" if "Countess" in prompt else "Tom"
    _, found = run(Before(says, before), {"forget": str(path), "retain": "young_of", "n_retain": 2})
    assert (found["forget_leak_alias"], found["forget_alias_known_before"]) == (1, 1)
    assert found["forget_portability_accuracy"] == 0.5
    assert (found["neighbors_known_locality"], found["neighbors_locality_before_accuracy"]) == (1, 1)
    assert "forget_leak_reasoning" not in found, "the set has none that follow from the old answer"
    assert found["forget_leak_direct"] == 0


def test_sets_without_such_questions_have_the_hash_that_they_had():
    item = load_forget_set("facts").items[0]
    assert {"linked", "popularity"}.isdisjoint(item.record)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"linked": ["x"]}, "its linked question is"),
        ({"linked": [{"question": "A?", "kind": "alais"}]}, "did you mean alias"),
        ({"linked": [{"question": "A?", "of": "nothing"}]}, "unknown of"),
        ({"popularity": "much"}, "popularity 'much' is no number"),
        ({"popularity": True}, "popularity True is no number"),
    ],
)
def test_bad_fields_are_refused(tmp_path, bad, match):
    path = tmp_path / "own.json"
    path.write_text(json.dumps([{"question": "Where is Ada?", "answer": "Larkhill", **bad}]))
    with pytest.raises(UserError, match=match):
        load_forget_set(str(path))


# Popularity ------------------------------------------------------------------------------------------------


def test_a_number_of_ones_own_is_related_to_leaks(tmp_path):
    """Who is known best leaks: the correlation is 1, at no request more."""
    own = [{"id": str(i), "question": f"Who is {i}?", "answer": f"Ada {i}x", "popularity": 100 * i} for i in range(6)]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in own))
    chosen = {"forget": str(path), "retain": "young_of", "n_retain": 2, "forms": ["direct"]}
    known = Before(
        lambda doc, prompt: doc["answer"] if doc.get("popularity", 0) and doc["popularity"] > 250 else "none"
    )
    result, found = run(known, chosen)
    assert found["forget_popularity_correlation"] == pytest.approx(0.878, abs=1e-3)
    assert sum(map(len, known.batches)) == 8
    none = [{key: value for key, value in record.items() if key != "popularity"} for record in own]
    path.write_text("".join(json.dumps(record) + "\n" for record in none))
    assert "forget_popularity_correlation" not in run(known, chosen)[1]
    path.write_text("".join(json.dumps(record) + "\n" for record in own[:3]))
    result, found = run(known, chosen)
    assert found["forget_popularity_correlation"] is None
    assert "at least 4 items" in report(result, TASK)["forget_popularity_correlation"]["reason"]


def test_the_certainty_of_a_stored_result_is_related_to_leaks(tmp_path):
    ids = [f"capital_of/{name}" for name in ("france", "japan", "italy", "kenya", "peru")]
    chosen = {"forget": ids, "retain": ["capital_of/chile"], "encoder": "off"}
    records = [
        {"id": f"forget/{key}", "doc": {}, "forget_cloze_probability": 0.9 - 0.1 * i} for i, key in enumerate(ids)
    ]
    metrics = {"unlearn_facts": {"forget_accuracy": Metric(1.0, None, 5)}}
    made = Result.new("evaluation", "2026-11-30T00:00:00+00:00", metrics=metrics)
    place = write_result(made, tmp_path / "before.json", {"unlearn_facts": records})
    lm = Before(
        lambda doc, prompt: (
            doc["answer"] if doc["id"] in ("forget/capital_of/france", "forget/capital_of/japan") else ""
        )
    )
    found = run(lm, chosen | {"unedited": str(place)}, "unlearn_facts")[1]
    assert found["forget_popularity_correlation"] == pytest.approx(0.866, abs=1e-3)
    assert "forget_popularity_correlation" not in run(lm, chosen, "unlearn_facts")[1]
