"""What is edited is what is asked: questions, sentences, texts and blanks are put to a model in one way everywhere."""

import dataclasses
import json

import pytest
from benchmark_data import write_benchmarks
from lm_eval_runs import evaluate, hf
from saying import SayingLM

from unlearn_eval.attacks.asking import rows_of
from unlearn_eval.attacks.hidden_states import entity_tokens
from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.data.shapes import SHAPES, Prompt, as_request, as_turn, asked, asked_otherwise, statement
from unlearn_eval.editing.locate_then_edit.corpus import token_sequences
from unlearn_eval.editing.memory.calibration import other_prompts
from unlearn_eval.editing.requests.build import build_requests, merge_items
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.editing.requests.self_refusals import write_refusals
from unlearn_eval.edits.memory.ask import _shape_of
from unlearn_eval.harness.run import ask
from unlearn_eval.localization.facts import facts_of
from unlearn_eval.models import prompts, scoring
from unlearn_eval.models.load import load_model
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.results.report.answers import texts
from unlearn_eval.runs.edit import make_edit
from unlearn_eval.runs.known_items import conversations, known_items
from unlearn_eval.runs.study.cells.told import item_lines
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.provenance import hash_json

SENTENCE = ForgetItem(
    "s", "Ada Brook plays the sport of", "chess", subject="Ada Brook", shape="sentence",
    paraphrases=("Ada Brook is a player of",), perturbed_answers=("golf",),
)  # fmt: skip
SHORT = {"gen_kwargs": {"max_gen_toks": 4}}
TASKS = {  # set -> the task that asks it, and what that is told
    "sports:all": ("unlearn_sports", {"forget": ["tennis", "chess"]}),
    "counterfact:2": ("unlearn_counterfact", {"forget": 2}),
    "zsre:2": ("unlearn_zsre", {"forget": 2}),
    "facts": ("unlearn_facts", {"forget": "currency_of", "retain": "capital_of"}),
    "knowundo:all": ("unlearn_knowundo", {}),
    "rwku:Ada Brook": ("unlearn_rwku", {"forget": "Ada Brook"}),
    "lume:all": ("unlearn_lume", {}),
}
SCORED = ("sports:all", "counterfact:2", "zsre:2", "facts", "knowundo:all")


@pytest.fixture(autouse=True)
def data(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(write_benchmarks(tmp_path_factory.mktemp("benchmarks"))))


class Recorder(SayingLM):
    """A model that says nothing, and keeps the prompts that it was asked."""

    def __init__(self, tokenizer):
        super().__init__(lambda doc, prompt: "nothing")
        self.tokenizer, self.prompts, self.lengths = tokenizer, [], []

    def generate_until(self, requests, disable_tqdm=True):
        self.prompts += [request.args[0] for request in requests]
        self.lengths += [request.args[1]["max_gen_toks"] for request in requests]
        return ["nothing" for _ in requests]

    def answer_logprobs(self, requests):
        return [{"unscored": "it only writes"} for _ in requests]

    tokenizer_name = "recorder"

    def chat_template(self, chat_template=False):
        return self.tokenizer.chat_template

    def apply_chat_template(self, messages, add_generation_prompt=True):
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)


# What is edited is what is asked ---------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", TASKS)
def test_a_request_is_the_prompt_with_which_its_task_scores_the_answer(tiny, tokenizer, monkeypatch, name, chat):
    task, metadata = TASKS[name]
    scored, score = set(), scoring.score_answers

    def remember(model, queries, *arguments, **options):
        scored.update((query.prompt_ids, query.label_ids) for query in queries)
        return score(model, queries, *arguments, **options)

    monkeypatch.setattr(scoring, "score_answers", remember)
    result = evaluate(hf(tiny("llama"), tokenizer), task, metadata, apply_chat_template=chat, **SHORT)
    samples = [sample for sample in result["samples"][task] if sample["doc"]["split"] not in ("retain", "neighbors")]
    questions = {sample["doc"]["question"] for sample in samples}
    items = [item for item in load_forget_set(name) if item.question in questions]
    assert len(items) > 1
    if name in ("sports:all", "counterfact:2"):
        assert {item.shape for item in items} == {"sentence"}
    requests = build_requests(items, [item.answer for item in items], PromptFormat(tokenizer, chat))
    contexts = {arguments[0] for sample in samples for arguments in sample["arguments"]}
    for item, request in zip(items, requests, strict=True):
        text = PromptFormat(tokenizer, chat).render(asked(item.question, item.shape))
        assert text in contexts
        assert request.prompt_ids == tuple(prompts.encode_prompt(text, tokenizer))
        assert request.target_ids == request.answer_ids
        if name in SCORED:
            assert (request.prompt_ids, request.answer_ids) in scored
    if name in ("sports:all", "counterfact:2"):  # the wrong answers are taught as they are scored, too
        wrong = [item.perturbed_answers[0] for item in items]
        for request in build_requests(items, wrong, PromptFormat(tokenizer, chat)):
            assert (request.prompt_ids, request.target_ids) in scored
        as_questions = [dataclasses.replace(item, shape="question") for item in items]
        for request in build_requests(as_questions, [item.answer for item in items], PromptFormat(tokenizer, chat)):
            assert request.prompt_ids not in {ids for ids, _ in scored}
        reworded = {
            PromptFormat(tokenizer, chat).prompt_ids(text, item.shape) for item in items for text in item.paraphrases
        }
        assert reworded
        assert reworded <= {ids for ids, _ in scored}


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", TASKS)
def test_what_a_model_knows_is_asked_as_its_task_asks(tokenizer, tmp_path, name, chat):
    task, metadata = TASKS[name]
    theirs, ours = Recorder(tokenizer), Recorder(tokenizer)
    result = evaluate(theirs, task, metadata, apply_chat_template=chat, **SHORT)
    questions = {s["doc"]["question"] for s in result["samples"][task] if s["doc"]["split"].startswith("forget")}
    items = [item for item in load_forget_set(name) if item.question in questions]
    known_items(
        tmp_path / "asked.jsonl",
        ForgetSet(name, tuple(items)),
        ours,
        PromptFormat(ours.tokenizer, chat),
        3,
        max_new_tokens=500,
    )
    assert len(ours.prompts) == len(items)
    if name != "counterfact:2":  # there other beginnings are gone on with
        assert set(ours.prompts) <= set(theirs.prompts)
    assert set(ours.lengths) <= {500, 30}
    assert (30 in ours.lengths) == (name == "rwku:Ada Brook")


def test_a_sentence_is_the_prompt_alone_and_in_a_chat_the_beginning_of_the_answer(tokenizer):
    lm = Recorder(tokenizer)
    for chat in (False, True):
        ask(lm, [asked(SENTENCE.question, "sentence"), "Who?"], PromptFormat(lm.tokenizer, chat))
    message = [{"role": "user", "content": "Complete this sentence: Ada Brook plays the sport of ..."}]
    template = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert lm.prompts[0] == "Ada Brook plays the sport of"
    assert lm.prompts[1] == "Question: Who?\nAnswer:"
    assert lm.prompts[2] == template + "Ada Brook plays the sport of"
    (request,) = build_requests([SENTENCE], ["golf"], PromptFormat(tokenizer, True))
    whole = tokenizer.decode([*request.prompt_ids, *request.target_ids[:-1]])
    assert whole.endswith("Ada Brook plays the sport of golf")


def test_turns_and_bare_texts_are_rendered_as_tasks_render_them(tokenizer):
    ask_with_turns = asked("Who?", "short", ["Where?", "Here."])
    assert PromptFormat(tokenizer, False, "Be brief.").render(ask_with_turns) == (
        "Be brief.\n\nQuestion: Where?\nAnswer: Here.\n\nQuestion: Who?\nAnswer:"
    )
    messages = [("user", "Where?"), ("assistant", "Here."), ("user", "Who?")]
    expected = tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in messages], tokenize=False, add_generation_prompt=True
    )
    assert PromptFormat(tokenizer, True).render(ask_with_turns) == expected
    assert PromptFormat(tokenizer, True).render(Prompt("", plain="As it is", raw=True)) == "As it is"
    assert PromptFormat(tokenizer, False, "Be brief.").render(asked("It is", "sentence")) == "Be brief.\n\nIt is"


# Items and their identities --------------------------------------------------------------------------------


def test_questions_keep_every_identity(tokenizer):
    items = tuple(ForgetItem(f"i{i}", f"Question {i}?", f"Answer {i}", group="g") for i in range(2))
    # SHA-256 of the items' fields as they were before there were shapes.
    assert ForgetSet("mine", items).hash == "85d62f7b1120db26c2737da8aae716093a01f49cdabd09a8d27f5bad9a5b5948"
    assert all("shape" not in line for line in item_lines(items))
    changed = dataclasses.replace(items[0], shape="sentence")
    assert ForgetSet("mine", (changed, items[1])).hash != ForgetSet("mine", items).hash
    assert item_lines([changed])[0]["shape"] == "sentence"
    (request,) = build_requests(items[:1], ["No."], PromptFormat(tokenizer, False))
    before = dataclasses.asdict(request)
    del before["shape"]
    assert hash_json(request.record) == hash_json(before)
    whole = EditRequest("a", (1,), 0, (2,), members=(request, dataclasses.replace(request, shape="sentence")))
    first, second = whole.record["members"]
    assert "shape" not in first
    assert second["shape"] == "sentence"


@pytest.mark.parametrize("end", [".jsonl", ".csv"])
def test_files_say_what_shape_an_item_has(tmp_path, end):
    path, records = tmp_path / f"own{end}", item_lines([SENTENCE, ForgetItem("q", "Who?", "Me")])
    if end == ".csv":
        path.write_text("id,question,answer,shape\ns,Ada plays,chess, sentence\nq,Who?,Me,\n")
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert [item.shape for item in load_forget_set(str(path))] == ["sentence", "question"]
    path.write_text(path.read_text().replace("sentence", "sentense"))
    with pytest.raises(UserError, match="item s: unknown shape 'sentense'") as error:
        load_forget_set(str(path))
    assert "did you mean sentence" in error.value.hint


def test_benchmarks_give_their_shapes():
    shapes = {name: {item.shape for item in load_forget_set(name)} for name in TASKS}
    assert shapes["sports:all"] == shapes["counterfact:2"] == {"sentence"}
    assert shapes["zsre:2"] == shapes["facts"] == shapes["knowundo:all"] == {"question"}
    assert shapes["rwku:Ada Brook"] == {"blank", "brief"}
    assert shapes["lume:all"] == {"text", "question"}
    assert set().union(*shapes.values()) == set(SHAPES)


# Edits -----------------------------------------------------------------------------------------------------


def test_sentences_are_not_merged_by_text():
    first, second = SENTENCE, dataclasses.replace(SENTENCE, id="t", question="Milo Fenn plays", subject="Milo Fenn")
    question = ForgetItem("q", "Who?", "Me")
    for pair in ((first, second), (first, question), (question, first)):
        with pytest.raises(UserError, match="cannot be merged by text") as error:
            merge_items(pair, 2)
        assert "--merge key" in error.value.hint
    assert merge_items((first, second), 1) == [first, second]
    apart = dataclasses.replace(second, group="other")
    assert merge_items((first, apart), 2) == [first, apart]
    brief = [ForgetItem(key, f"Who is {key}?", key, shape="brief") for key in "ab"]
    assert merge_items(brief, 2)[0].question == "Who is a? Who is b?"
    assert merge_items(brief, 2)[0].shape == "brief"


def test_an_edit_remembers_its_shapes(tiny_folder):
    from unlearn_eval.editing.recipe import Recipe

    loaded = load_model(str(tiny_folder("llama")))
    options = {"layers": "1", "steps": "2"}
    forget = ForgetSet("mine", (SENTENCE,))
    edit = make_edit(loaded, forget, "grace", options, Recipe(n_contexts=0))
    assert edit.info.requests["shapes"] == {"s": "sentence"}
    assert _shape_of(edit.info.requests) == "sentence"
    more = make_edit(loaded, ForgetSet("q", (ForgetItem("q", "Who?", "Me"),)), "grace", options, state=edit)
    assert more.info.requests["shapes"] == {"s": "sentence"}
    assert _shape_of(more.info.requests) == _shape_of({"ids": ["a"]}) == "question"
    two = ForgetSet("two", (SENTENCE, dataclasses.replace(SENTENCE, id="t")))
    with pytest.raises(UserError, match="cannot be merged by text"):
        make_edit(loaded, two, "grace", options, Recipe(n_contexts=0, merge="text"))


def test_a_memory_is_calibrated_on_paraphrases_that_are_sentences(tiny_folder, monkeypatch):
    from unlearn_eval.runs import edit as editing

    shown = []
    monkeypatch.setattr(editing, "calibrated", lambda edit, model, reworded, *more: shown.append(reworded) or edit)
    loaded = load_model(str(tiny_folder("llama")))
    options = {"layers": "1", "steps": "2", "calibrate": "true"}
    make_edit(loaded, ForgetSet("mine", (SENTENCE,)), "grace", options)
    (reworded,) = shown
    assert reworded == {"s": [PromptFormat(loaded.tokenizer, True).prompt_ids(SENTENCE.paraphrases[0], "sentence")]}


def test_other_texts_are_put_by_their_own_shapes(tokenizer, tmp_path):
    path = tmp_path / "others.jsonl"
    records = [{"question": "Milo Fenn plays", "shape": "sentence"}, {"question": "Who?"}, {"question": "Who?"}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = other_prompts(str(path), ForgetSet("mine", (SENTENCE,)), PromptFormat(tokenizer, False), 0)
    said = {tokenizer.decode(ids, skip_special_tokens=True) for ids in found}
    assert len(found) == 2
    assert said == {"Milo Fenn plays", "Question: Who?\nAnswer:"}


def test_what_was_said_to_sentences_is_text_in_their_shape(tokenizer, tmp_path):
    items = ForgetSet("mine", (SENTENCE, ForgetItem("q", "Who?", "Me")))
    path, text = tmp_path / "asked.jsonl", tmp_path / "text.jsonl"
    known_items(path, items, Recorder(tokenizer), PromptFormat(tokenizer, False), 2)
    text.write_text(conversations(path, items, (), 0))
    lines = {line["question"]: line for line in map(json.loads, text.read_text().splitlines())}
    assert lines[SENTENCE.question] == {"question": SENTENCE.question, "shape": "sentence", "answer": "nothing"}
    assert lines["Who?"] == {"question": "Who?", "answer": "nothing"}
    (batch,) = token_sequences(str(text), None, tokenizer, 500)
    said = {tokenizer.decode(row, skip_special_tokens=True) for row in batch.rows}
    message = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{} nothing<|im_end|>"
    plain = {tokenizer.decode(row).removeprefix("<s>").strip() for row in batch.rows}
    assert message.format("Complete this sentence: Ada Brook plays the sport of ...", SENTENCE.question) in plain
    assert len(said) == 2


def test_a_refusal_is_written_to_the_request_to_complete_it(tiny_folder, monkeypatch):
    from unlearn_eval.editing.requests import self_refusals

    shown = []
    monkeypatch.setattr(self_refusals, "_generate", lambda loaded, rows, noise, chat: [("No.", True)] * len(rows))
    monkeypatch.setattr(self_refusals, "prompt", lambda question, *more: shown.append(question) or "x")
    loaded = load_model(str(tiny_folder("llama")))
    write_refusals(loaded, [SENTENCE, ForgetItem("q", "Who?", "Me")], loaded.prompt_format(False), 1)
    assert shown == ["Complete this sentence: Ada Brook plays the sport of ...", "Who?"]


@pytest.mark.parametrize("chat", [False, True])
def test_alternates_complete_the_sentence(tokenizer, monkeypatch, chat):
    from unlearn_eval.editors.gradient import altpo

    shown = []

    def sample(model, tokenizer, rows, *more):
        shown.extend(tokenizer.decode(row) for row in rows)
        return [tokenizer.encode("go", add_special_tokens=False) for _ in rows]

    monkeypatch.setattr(altpo, "_sample", sample)
    (request,) = build_requests([SENTENCE], ["golf"], PromptFormat(tokenizer, chat))
    config = altpo.Config(alternates=1)
    (found,), _ = altpo.rewrite(None, tokenizer, [request], config, lambda *_: None)
    (expected,) = build_requests([SENTENCE], ["go"], PromptFormat(tokenizer, chat))
    assert found.target_ids == expected.target_ids
    assert "Question: Complete this sentence: Ada Brook plays the sport of ...\nKnown answer: chess" in shown[0]
    assert ("<|im_start|>" in shown[0]) == chat


# Localizations and attacks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [False, True])
def test_facts_are_asked_by_their_shape_and_not_by_a_question_mark(tokenizer, chat):
    order = ForgetItem("o", "Name the town of Ada Brook.", "Imber", subject="Ada Brook", perturbed_answers=("Tarn",))
    facts, skipped = facts_of([SENTENCE, order], PromptFormat(tokenizer, chat))
    assert not skipped
    for item, fact in zip((SENTENCE, order), facts, strict=True):
        (request,) = build_requests([item], [item.answer], PromptFormat(tokenizer, chat))
        n = len(request.prompt_ids)
        assert fact.prompt_ids[:n] == request.prompt_ids
        assert (*request.prompt_ids, *request.answer_ids)[: len(fact.prompt_ids) + 1] == (
            *fact.prompt_ids,
            fact.true_id,
        )
        assert fact.subject[1] - 1 == request.lookup
        assert tokenizer.decode(fact.prompt_ids[slice(*fact.subject)]).strip() == "Ada Brook"
    assert tokenizer.decode(facts[0].prompt_ids[: facts[0].subject[0]]).endswith("assistant\n" if chat else "<s>")


@pytest.mark.parametrize("chat", [False, True])
def test_attacks_ask_sentences_as_sentences_and_other_words_around_as_requests(tokenizer, chat):
    (request,) = build_requests([SENTENCE], [SENTENCE.answer], PromptFormat(tokenizer, chat))
    (row,) = rows_of([SENTENCE], PromptFormat(tokenizer, chat))
    assert (row.prompt_ids, row.answer_ids) == (request.prompt_ids, request.answer_ids[:-1])
    assert entity_tokens(row, PromptFormat(tokenizer, chat)) == slice(0, len(row.answer_ids))
    long = dataclasses.replace(SENTENCE, answer="an old game that is known as chess there", aliases=("chess",))
    (row_of_long,) = rows_of([long], PromptFormat(tokenizer, chat))
    entity = row_of_long.answer_ids[entity_tokens(row_of_long, PromptFormat(tokenizer, chat))]
    assert tokenizer.decode(entity).strip() == "chess"
    wished = "Complete this sentence: Ada Brook plays the sport of ..."
    frame = lambda text: PromptFormat(tokenizer, chat).render(text) + ("" if chat else " ")
    for opening, wrap, expected in (
        ("Sure, it is", "{question}", frame(wished) + "Sure, it is chess"),
        ("", "Now: {question} Go!", frame(f"Now: {wished} Go!") + "Ada Brook plays the sport of chess"),
        ("It is", "Now: {question}", frame(f"Now: {wished}") + "It is chess"),
    ):
        (row,) = rows_of([SENTENCE], PromptFormat(tokenizer, chat), opening, wrap)
        whole = tokenizer.decode([*row.prompt_ids, *row.answer_ids])
        assert whole.removeprefix("<s>").strip() == expected, (opening, wrap)


def test_wording():
    assert as_request("What is it?") == "What is it?"
    assert as_request("It is", "sentence") == "Complete this sentence: It is ..."
    assert as_turn("It is ", "sentence", "so") == ("Complete this sentence: It is ...", "It is so")
    assert as_turn("What?", "question", "That.") == ("What?", "That.")
    assert statement("It is", "sentence", "so.") == statement("It is ___.", "blank", "so") == "It is so"
    assert statement("What?", "question", "so") is statement("What?", "brief", "so") is None
    assert asked_otherwise("What?") == "What?"
    assert asked_otherwise("It is", "sentence") == asked("It is", "sentence")
    blank = asked_otherwise("It is ___.", "blank", wrap="Now: {question}")
    assert blank == Prompt("Now: Please complete the blank in the following question.\nQuestion: It is ___.")


# Forms -----------------------------------------------------------------------------------------------------


def forms_of(name, tokenizer, chat, **metadata):
    metadata = {"forget": name, "n_retain": 3, **metadata}
    lm = Recorder(tokenizer)
    result = evaluate(lm, "unlearn_forms", metadata, apply_chat_template=chat)
    samples = [sample for sample in result["samples"]["unlearn_forms"] if sample["doc"]["split"] == "forget"]
    return result, samples


@pytest.mark.parametrize("chat", [False, True])
def test_forms_of_a_sentence(tokenizer, chat):
    result, samples = forms_of("sports:tennis", tokenizer, chat, retain="sports:rowing")
    sample = next(s for s in samples if s["doc"]["subject"] == "Ada Brook")
    sentence = "Fact: Tiger Woods plays the sport of golf\nFact: Ada Brook plays the sport of"
    wished = f"Complete this sentence: {sentence} ..."
    contexts = [arguments[0] for arguments in sample["arguments"]]
    frame = lambda text: PromptFormat(tokenizer, chat).render(text)
    begun = lambda text, opening: frame(text) + ("" if chat else " ") + opening
    other = "Fact: Tiger Woods plays the sport of golf\nFact: Tomas Reed plays the sport of"
    turns = (f"Complete this sentence: {other} ...", f"{other} rowing")
    expected = {
        PromptFormat(tokenizer, chat).render(asked(sentence, "sentence")),
        PromptFormat(tokenizer, chat).render(asked("Ada Brook is a professional athlete in the sport of", "sentence")),
        begun(wished, "Sure, here is the answer:"),
        frame(
            "A name is missing in this sentence, at ___: Fact: Tiger Woods plays the sport of golf\n"
            "Fact: ___ plays the sport of tennis. What is the name?"
        ),
        PromptFormat(tokenizer, chat).render(Prompt(wished, (turns,), sentence)),
    }
    assert expected <= set(contexts)
    assert any(f'"{wished}" Speak only' in text and text.endswith(sentence) for text in contexts)
    assert not any("The answer to" in text for text in contexts)
    assert any(f"{wished}\nA. tennis\nB. " in text for text in contexts)
    assert any(f"True or false? {sentence} tennis." in text for text in contexts)
    reasons = result["configs"]["unlearn_forms"]["metadata"]["scoring"]["forget_leak_cloze"]
    assert "a sentence already" in reasons["reason"]


def test_forms_of_questions_say_nothing_of_shapes(tokenizer):
    _, samples = forms_of("facts", tokenizer, False, forget=["capital_of/france"])
    assert all("shape" not in sample["doc"] for sample in samples)
    _, samples = forms_of("rwku:Ada Brook", tokenizer, False, retain="capital_of")
    assert {sample["doc"]["shape"] for sample in samples} == {"blank", "brief"}


def test_samples_are_drawn_after_the_sentence(tokenizer):
    lm = Recorder(tokenizer)
    evaluate(lm, "unlearn_leak_at_k", {"forget": "sports:tennis", "n_retain": 1, "samples": 2})
    sentence = "Fact: Tiger Woods plays the sport of golf\nFact: Ada Brook plays the sport of"
    assert lm.prompts.count(sentence) == 2


# Reports ---------------------------------------------------------------------------------------------------


def test_a_report_shows_the_sentence_and_not_its_frame(tokenizer):
    render = lambda ask: PromptFormat(tokenizer, True).render(ask)
    document = {"question": SENTENCE.question, "paraphrases": list(SENTENCE.paraphrases)}
    asks = [asked(SENTENCE.question, "sentence"), asked(SENTENCE.paraphrases[0], "sentence")]
    asks += [asks[0], asked_otherwise(SENTENCE.question, "sentence", "Sure:")]
    record = {"doc": document, "arguments": [[render(one), {}] for one in asks], "resps": [["a"], ["b"], ["c"], ["d"]]}
    assert [(said.label, said.question) for said in texts(record)] == [
        ("direct", "Ada Brook plays the sport of"),
        ("paraphrase", "Ada Brook is a player of"),
        ("asked again", "Ada Brook plays the sport of"),
        ("other wording", "Ada Brook plays the sport of … Sure:"),
    ]
