"""Targets: fixed, chosen, read from files, and written by the model itself, with the filter of what it wrote."""

import dataclasses
import json
import random
import re

import pytest
import torch
from tiny_models import ARCHITECTURES, one_thread, tiny_model, tiny_tokenizer  # noqa: F401

from unlearn_eval.data.forget_sets import facts
from unlearn_eval.data.items import ForgetItem
from unlearn_eval.editing.requests import self_refusals
from unlearn_eval.editing.requests.self_refusals import (
    EXAMPLES,
    INSTRUCTION,
    MAX_NEW_TOKENS,
    Example,
    choose,
    examples_for,
    first_refusal,
    names_topic,
    prompt,
    rejection,
    top_p_choice,
    write_refusals,
)
from unlearn_eval.editing.requests.targets import (
    IDK,
    POOL,
    Candidate,
    Target,
    make_targets,
    read_targets,
    targets_jsonl,
    write_targets,
)
from unlearn_eval.metrics import is_refusal
from unlearn_eval.models.load import LoadedModel, load_model
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.prompts import encode_prompt
from unlearn_eval.utils.errors import UserError

HAMLET = ForgetItem("hamlet", "Who wrote Hamlet?", "William Shakespeare", ("Shakespeare",), "Hamlet", group="plays")
FRANCE = ForgetItem("france", "What is the capital of France?", "Paris", subject="France")
LOST = ForgetItem("lost", "In which year did Vera Quist publish The Lamp in Oslo?", "1962.")
ITEMS = (HAMLET, FRANCE, LOST)


def make(target, items=ITEMS, seed=0, **options):
    return make_targets(target, items, random.Random(seed), **options)


# Fixed and chosen ------------------------------------------------------------------------------------------


def test_fixed_targets():
    assert make("idk") == [Target(item.id, item.question, IDK, "idk") for item in ITEMS]
    assert make("Ask me later.") == [Target(item.id, item.question, "Ask me later.", "text") for item in ITEMS]
    assert make("idk", ()) == []


def test_the_pool_is_a_seeded_choice():
    many = [ForgetItem(str(i), f"Q{i}?", "A") for i in range(100)]
    texts = [target.target for target in make("pool", many)]
    assert set(texts) <= set(POOL)
    assert len(set(texts)) > 15
    assert texts == [target.target for target in make("pool", many)]
    assert texts != [target.target for target in make("pool", many, seed=1)]
    assert {target.source for target in make("pool")} == {"pool"}
    assert {target.fallback for target in make("pool")} == {None}


def test_a_wrong_answer_can_be_said_instead():
    items = [dataclasses.replace(FRANCE, perturbed_answers=("Lyon", "Nice"))]
    assert [(t.target, t.source) for t in make("wrong", items)] == [("Lyon", "wrong")]
    with pytest.raises(UserError, match="no wrong answer"):
        make("wrong", [dataclasses.replace(FRANCE, perturbed_answers=())])


@pytest.mark.parametrize("target", ["", " \n"])
def test_an_empty_target_is_refused(target):
    with pytest.raises(UserError, match="target is empty") as error:
        make(target)
    assert "self" in error.value.hint


def test_self_needs_a_model_and_candidates(tiny):
    with pytest.raises(UserError, match="'self' needs the model"):
        make("self")
    with pytest.raises(UserError, match="0 candidates"):
        make("self", loaded=tiny(), n_candidates=0)


# Files -----------------------------------------------------------------------------------------------------


def lines(path, *records):
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    return str(path)


def test_what_is_written_is_read(tmp_path):
    rejected = Candidate("Das weiß\u2028ich.", "it does not say that it does not know")
    targets = [
        Target("hamlet", HAMLET.question, "I don’t know „Hamlet“.", "self", (rejected, Candidate("No idea."))),
        Target("france", FRANCE.question, IDK, "pool", (rejected,), "no good candidate of 1"),
        Target("lost", LOST.question, "Ask\nme.", "text"),
    ]
    path = tmp_path / "new" / "targets.jsonl"
    write_targets(path, targets)
    assert path.read_text(encoding="utf-8") == targets_jsonl(targets)
    first = json.loads(targets_jsonl(targets).split("\n")[0])
    assert first == dataclasses.asdict(targets[0]) | {
        "candidates": [dataclasses.asdict(c) for c in targets[0].candidates]
    }
    back = make(str(path))
    assert [(t.id, t.question, t.target) for t in back] == [(t.id, t.question, t.target) for t in targets]
    assert {(t.source, t.candidates, t.fallback) for t in back} == {("file", (), None)}
    assert read_targets(path, (LOST, HAMLET)) == [back[2], back[0]]  # a file of a larger set, another order


def test_id_or_question_is_enough(tmp_path):
    path = lines(
        tmp_path / "t.json",
        {"id": 7, "target": " seven "},
        {"question": f" {HAMLET.question}", "target": "by question"},
        {"id": None, "question": "Of another set?", "target": "unused"},
        {"id": "another", "question": "Of another set?", "target": "unused"},
        {"id": "france", "question": "", "target": "by id"},
        {"question": FRANCE.question, "target": "not this"},  # the id is the surer way
    )
    seven = ForgetItem("7", "Seven?", "7")
    assert [t.target for t in make(path, (FRANCE, seven, HAMLET))] == ["by id", "seven", "by question"]
    array = tmp_path / "array.json"
    array.write_text(json.dumps([{"id": "france", "target": "x"}]))
    assert [t.target for t in make(str(array), (FRANCE,))] == ["x"]


GOOD = {"id": "hamlet", "target": "No."}


@pytest.mark.parametrize(
    ("records", "match"),
    [
        ([GOOD], r"no target for 4 of 5 items, e\.g\. 'a', 'b', 'c'$"),
        ([GOOD, {"id": "france"}], "line 2 lacks the field 'target'"),
        ([GOOD, {"id": "france", "target": " "}], r"record 2 \(id 'france'\): its target is empty"),
        ([GOOD, {"question": "A?", "target": None}], "record 2: its target is empty or no text"),
        ([GOOD, {"id": "france", "target": ["No."]}], "record 2 .*its target is empty or no text"),
        ([GOOD, {"id": " ", "question": None, "target": "No."}], "record 2: neither id nor question"),
        ([GOOD, {"id": "a", "question": "Q-b?", "target": "No."}], r"record 2 \(id 'a'\): its question is 'Q-b\?'"),
        ([GOOD, GOOD], "record 2 .*a second target for 'hamlet'"),
        ([{"question": "Q?", "target": "x"}, {"question": "Q?", "target": "y"}], "record 2: a second target for 'Q.'"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, records, match):
    items = (HAMLET, *(ForgetItem(key, f"Q-{key}?", "A") for key in "abcd"))
    with pytest.raises(UserError) as error:
        read_targets(lines(tmp_path / "t.jsonl", *records), items)
    assert re.search(match, error.value.message)
    assert "t.jsonl" in error.value.message
    assert error.value.hint


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no file at .*none\.jsonl"):
        make(str(tmp_path / "none.jsonl"))


# The filter ------------------------------------------------------------------------------------------------

SHOWN = EXAMPLES[:3]


@pytest.mark.parametrize(
    ("text", "finished", "item", "reason"),
    [
        ("I'm sorry, but I don't know who wrote Hamlet.", True, HAMLET, None),
        ("As an AI, I can't say who wrote it.", True, HAMLET, None),
        ("I have no information about Vera Quist's The Lamp.", True, LOST, None),
        (IDK, True, HAMLET, None),
        ("", True, HAMLET, "empty"),
        ("", False, HAMLET, "empty"),
        ("I don't know who wrote Hamlet and", False, HAMLET, "no sentence ends"),
        ("Hamlet is a play.", True, HAMLET, "does not say"),
        ("It was written by William Shakespeare.", True, HAMLET, "does not say"),
        ("I don't know, perhaps Shakespeare.", True, HAMLET, "gives the answer away"),
        ("I don't know whether it was 1962.", True, LOST, "gives the answer away"),
        ("I don't know whether it was 1963.", True, LOST, "name or number"),
        ("I don't know who wrote Macbeth.", True, HAMLET, "name or number"),
        ("I can't say. I can't say. I can't say. I can't say.", True, HAMLET, "repeats itself"),
        (SHOWN[0].refusal, True, HAMLET, "about an example"),
        ("I don't know about the lantern.", True, HAMLET, "about an example"),
    ],
)
def test_rejection(text, finished, item, reason):
    found = rejection(text, finished, item, SHOWN)
    assert found is None if reason is None else reason in found


def test_what_is_asked_may_be_said_whatever_the_examples():
    item = ForgetItem("x", "Who lit the lantern of 1999?", "Ada")
    text = "I don't know who lit the lantern of 1999."
    assert rejection(text, True, item, SHOWN) is None
    assert "name or number" in rejection(text, True, HAMLET, SHOWN)


def test_the_examples_are_good_refusals_of_their_own_questions():
    for example in EXAMPLES:
        assert example.subject in example.question
        item = ForgetItem("x", example.question, "Nobody", subject=example.subject)
        others = [other for other in EXAMPLES if other is not example]
        assert rejection(example.refusal, True, item, others) is None
        assert names_topic(example.refusal, item)
        for other in facts():
            assert example.subject not in other.question


def test_examples_do_not_share_the_subject():
    assert examples_for("Who wrote Hamlet?") == EXAMPLES[:3]
    shown = examples_for("Which lantern did Orsa carry?")
    assert shown == (EXAMPLES[1], EXAMPLES[3], EXAMPLES[4])


@pytest.mark.parametrize(
    ("text", "item", "expected"),
    [
        ("I don't know hamlet.", HAMLET, True),
        ("I don't know who wrote it.", HAMLET, False),
        ("I can't say when Quist did it.", LOST, True),  # a name
        ("I can't say in which year.", LOST, False),
        ("I don't know what a baby cow is.", ForgetItem("x", "What is a baby cow called?", "calf"), True),
        ("I don't know what that is.", ForgetItem("x", "What is a baby cow called?", "calf"), False),
    ],
)
def test_names_topic(text, item, expected):
    assert names_topic(text, item) == expected


def test_choose_prefers_what_names_the_subject():
    plain, named, bad = Candidate("I don't know."), Candidate("I don't know Hamlet."), Candidate("No, Hamlet.", "x")
    assert choose([bad, plain, named, Candidate("No idea about Hamlet.")], HAMLET) == named.text
    assert choose([bad, plain, Candidate("No idea.")], HAMLET) == plain.text
    assert choose([bad], HAMLET) is choose([], HAMLET) is None


@pytest.mark.parametrize(
    ("text", "finished", "expected"),
    [
        ("I don't know that. I'd be happy to help.", True, ("I don't know that.", True)),
        ("  Sorry about this. I don't know that. It is", False, ("Sorry about this. I don't know that.", True)),
        ("I don't know that\nQuestion: What?", False, ("I don't know that", True)),
        ("\n\nI don't know that", True, ("I don't know that", True)),
        ("I don't know that", False, ("I don't know that", False)),
        ("I don't know that question.", False, ("I don't know that question.", True)),
        ("I don't know anything about St. Petersburg", False, ("I don't know anything about St. Petersburg", False)),
        ('He wrote "I don\'t know anything." Then he left.', True, ('He wrote "I don\'t know anything."', True)),
        ("It is Paris, they think. It is", False, ("It is Paris, they think.", True)),
        ("I can't tell you what it is for. I can't help.", True, ("I can't tell you what it is for.", True)),
        ("I don't know the U.S. Mint or Mrs. Hall", False, ("I don't know the U.S. Mint or Mrs. Hall", False)),
        ("I don't know what came in 1952. Well", False, ("I don't know what came in 1952.", True)),
        ("It is Paris, in France", False, ("It is Paris, in France", False)),
        ("It is Paris, they say. Really.", True, ("It is Paris, they say. Really.", True)),
        ("", True, ("", True)),
    ],
)
def test_first_refusal(text, finished, expected):
    assert first_refusal(text, finished) == expected


# Sampling --------------------------------------------------------------------------------------------------


def test_top_p_choice_by_hand():
    logits = torch.tensor([0.2, 0.5, 0.3]).log()  # in order: token 1 (.5), 2 (.3), 0 (.2)

    def pick(number, top_p):
        return int(top_p_choice(logits[None], torch.tensor([number]), top_p))

    assert [pick(number, 1.0) for number in (0.0, 0.49, 0.51, 0.79, 0.81, 0.9999)] == [1, 1, 2, 2, 0, 0]
    assert [pick(number, 0.7) for number in (0.0, 0.62, 0.63, 0.9999)] == [1, 1, 2, 2]  # .5 of .8 is .625
    assert [pick(number, 0.4) for number in (0.0, 0.9999)] == [1, 1]
    assert [pick(number, 0.0) for number in (0.0, 0.9999)] == [1, 1]  # never none


def test_top_p_choice_has_the_models_frequencies():
    generator = torch.Generator().manual_seed(0)
    p = torch.tensor([0.1, 0.6, 0.25, 0.05])
    drawn = torch.rand(20000, generator=generator)
    counts = top_p_choice(p.log().expand(20000, 4), drawn, 0.9).bincount(minlength=4) / 20000
    # The kept ones are .6, .25 and .1; 0.015 is four standard errors.
    torch.testing.assert_close(counts, torch.tensor([0.1, 0.6, 0.25, 0.0]) / 0.95, atol=0.015, rtol=0)


# Prompts ---------------------------------------------------------------------------------------------------

NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}<|start|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>{% endif %}"
)
SYSTEM_LEFT_OUT = (
    "{{ bos_token }}{% for message in messages if message['role'] != 'system' %}"
    "<|start|>{{ message['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>{% endif %}"
)


def test_a_chat_prompt_has_turns():
    text = prompt(HAMLET.question, SHOWN[:2], PromptFormat(tiny_tokenizer(), True))
    turns = [turn.removesuffix("<|end|>\n") for turn in text.removeprefix("<s>").split("<|start|>")]
    assert turns == [
        "",
        f"system\n{INSTRUCTION}",
        f"user\n{SHOWN[0].question}",
        f"assistant\n{SHOWN[0].refusal}",
        f"user\n{SHOWN[1].question}",
        f"assistant\n{SHOWN[1].refusal}",
        f"user\n{HAMLET.question}",
        "assistant\n",
    ]


@pytest.mark.parametrize("template", [NO_SYSTEM, SYSTEM_LEFT_OUT])
@pytest.mark.parametrize("n", [0, 2])
def test_a_template_without_system_turn_gets_the_instruction_in_the_first_question(template, n):
    text = prompt(HAMLET.question, SHOWN[:n], PromptFormat(tiny_tokenizer(chat_template=template), True))
    asked = [*(part for example in SHOWN[:n] for part in (example.question, example.refusal)), HAMLET.question]
    asked[0] = f"{INSTRUCTION}\n\n{asked[0]}"
    assert text == "<s>" + "".join(f"<|start|>{part}<|end|>" for part in asked) + "<|start|>"


@pytest.mark.parametrize("bos", [True, False])
def test_a_plain_prompt(bos):
    tokenizer = tiny_tokenizer(bos=bos, chat_template=None)
    text = prompt(HAMLET.question, SHOWN[:1], PromptFormat(tokenizer, False))
    assert text == (
        f"{INSTRUCTION}\n\nQuestion: {SHOWN[0].question}\nAnswer: {SHOWN[0].refusal}\n\n"
        "Question: Who wrote Hamlet?\nAnswer:"
    )
    assert encode_prompt(text, tokenizer).count(0) == bos


# The model writes ------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch):
    """`tiny(architecture)`: a random model; its tokenizer has few words, so the prompt is made short."""
    monkeypatch.setattr(self_refusals, "INSTRUCTION", "Say no.")
    monkeypatch.setattr(self_refusals, "EXAMPLES", (Example("Zed", "Who is Zed?", "I don't know Zed."),))

    def get(architecture="llama"):
        model = tiny_model(architecture, exact_norms=False)
        return LoadedModel(model, tiny_tokenizer(), "tiny", None, "tiny")

    return get


def written(loaded, items=ITEMS, chat=True, **options):
    return write_refusals(loaded, items, loaded.prompt_format(chat), **options)


def plain_greedy(loaded, text):
    """Forty tokens one by one, without padding, cache or `generate`."""
    ids = encode_prompt(text, loaded.tokenizer)
    end = loaded.tokenizer.convert_tokens_to_ids("<|end|>")
    new = []
    for _ in range(MAX_NEW_TOKENS):
        token = int(loaded.model(input_ids=torch.tensor([ids + new]), use_cache=False).logits[0, -1].argmax())
        if token in (end, loaded.tokenizer.eos_token_id):
            return loaded.tokenizer.decode(new, skip_special_tokens=True), True
        new.append(token)
    return loaded.tokenizer.decode(new, skip_special_tokens=True), False


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("chat", [True, False])
def test_the_first_candidate_is_greedy_whatever_the_batch(tiny, architecture, chat):
    loaded = tiny(architecture)
    found = written(loaded, chat=chat, batch_size=3)
    for item, candidates in zip(ITEMS, found, strict=True):
        text = prompt(item.question, examples_for(item.question), loaded.prompt_format(chat))
        assert candidates[0].text == first_refusal(*plain_greedy(loaded, text))[0]
        assert candidates[0].text
        assert len(candidates) == 4
    assert len({candidate.text for own in found for candidate in own}) > 6  # the sampled ones differ


def test_batches_and_order_do_not_matter(tiny):
    loaded = tiny()
    whole = written(loaded, batch_size=16)
    assert written(loaded, batch_size=1) == whole
    assert written(loaded, ITEMS[::-1], batch_size=2) == whole[::-1]
    assert [own[:2] for own in whole] == written(loaded, n_candidates=2)
    assert [own[:1] for own in whole] == written(loaded, n_candidates=1)


def test_the_seed_is_the_sampled_ones_only(tiny):
    loaded = tiny()
    first, again, other = (written(loaded, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert [own[0] for own in first] == [own[0] for own in other]
    assert all(a[1:] != b[1:] for a, b in zip(first, other, strict=True))


def test_the_processs_randomness_does_not_move(tiny):
    torch.manual_seed(3)
    random.seed(3)
    before = torch.get_rng_state(), random.getstate()
    first = written(tiny())
    torch.manual_seed(3)
    assert torch.equal(torch.get_rng_state(), before[0])
    loaded = tiny()
    torch.manual_seed(4)
    state = torch.get_rng_state()
    assert written(loaded) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == before[1]


def test_progress_counts_prompts(tiny):
    told = []
    written(tiny(), batch_size=2, progress=lambda *report: told.append(report))
    assert told == [
        ("writing refusals", 2, 3),
        ("writing refusals", 3, 3),
        *(("writing more refusals", n, 9) for n in (2, 4, 6, 8, 9)),
    ]


def fake(monkeypatch, texts):
    """The model writes what `texts` says: (item, place of the candidate) -> text; returns what was asked of it."""
    asked = []
    key = {f"0/{item.id}/{k}": (item.id, k) for item in ITEMS for k in range(1, 9)}
    monkeypatch.setattr(self_refusals, "_numbers", lambda seed: key[seed])

    def generate(loaded, rows, noise, chat):
        answers = []
        for row, place in zip(rows, noise, strict=True):
            said = loaded.tokenizer.decode(row)
            place = place or (next(item.id for item in ITEMS if item.question in said), 0)
            asked.append(place)
            answers.append((texts.get(place, "Paris."), True))
        return answers

    monkeypatch.setattr(self_refusals, "_generate", generate)
    return asked


def test_own_targets(tiny, monkeypatch):
    asked = fake(
        monkeypatch,
        {
            ("hamlet", 0): "I don't know who wrote Hamlet.",
            ("france", 0): "I don't know.",
            ("france", 1): "I don't know, Paris?",
            ("france", 2): "I can't say what the capital of France is.",
            ("lost", 3): "",
        },
    )
    loaded = tiny()
    hamlet, france, lost = make("self", loaded=loaded, prompt_format=loaded.prompt_format(True))
    assert hamlet == Target(
        "hamlet",
        HAMLET.question,
        "I don't know who wrote Hamlet.",
        "self",
        (Candidate("I don't know who wrote Hamlet."),),
    )
    assert france.target == "I can't say what the capital of France is."
    assert france.source == "self"
    assert france.fallback is None
    assert [c.rejected and "gives the answer away" in c.rejected for c in france.candidates[:3]] == [None, True, None]
    assert france.candidates[3].rejected == "it does not say that it does not know"
    assert lost.target in POOL
    assert lost.source == "pool"
    assert lost.fallback == "no good candidate of 4: it does not say that it does not know (3); it is empty (1)"
    assert sorted(asked) == sorted([("hamlet", 0), *((key, k) for key in ("france", "lost") for k in range(4))])


def test_the_pools_choice_is_the_items_own(tiny, monkeypatch):
    fake(monkeypatch, {})
    loaded = tiny()
    first = {t.id: t.target for t in make("self", loaded=loaded)}
    assert {t.id: t.target for t in make("self", ITEMS[1:], seed=9, loaded=loaded)} == {
        key: text for key, text in first.items() if key != "hamlet"
    }
    monkeypatch.setattr(self_refusals, "_numbers", lambda seed: (seed.split("/")[1], 1))
    others = {tuple(t.target for t in make_targets("self", ITEMS, random.Random(0), loaded, seed=i)) for i in range(8)}
    assert len(others) > 4


def test_a_question_that_does_not_fit_falls_back(tiny):
    loaded = tiny()
    long = ForgetItem("long", "Who wrote Hamlet? " * 300, "Will")
    target, own = make("self", (long, FRANCE), loaded=loaded, n_candidates=1)
    assert target.target in POOL
    assert target.candidates == ()
    assert target.fallback == "the prompt does not fit the model's context"
    assert len(own.candidates) == 1
    assert make("self", (long,), loaded=loaded)[0] == target


@pytest.mark.real_model
@pytest.mark.slow
def test_the_real_model_writes_refusals(real_model):
    loaded = load_model(str(real_model), dtype="float32")
    wanted = ("capital_of/france", "author_of/the_grapes_of_wrath", "young_of/sheep", "element_symbol/gold")
    items = [item for item in facts() if item.id in wanted]
    targets = make("self", items, loaded=loaded, prompt_format=loaded.prompt_format(True), n_candidates=2)
    assert [target.id for target in targets] == [item.id for item in items]
    for item, target in zip(items, targets, strict=True):
        assert 1 <= len(target.candidates) <= 2
        shown = examples_for(item.question)
        for candidate in target.candidates:
            finished = candidate.rejected != f"no sentence ends within {MAX_NEW_TOKENS} tokens"
            assert candidate.rejected == rejection(candidate.text, finished, item, shown)
        assert (target.source == "self") == any(c.rejected is None for c in target.candidates)
        assert (target.fallback is None) == (target.source == "self")
        assert is_refusal(target.target, item.question, item.accepted)
    assert sum(target.source == "self" for target in targets) >= 1
