"""Notes: text of the edit's own facts before the questions that a gate lets through."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_models import one_thread, tiny_model, tiny_tokenizer  # noqa: F401

from unlearn_eval.editing.editor import EditJob
from unlearn_eval.editing.memory.calibration import calibrated
from unlearn_eval.editing.memory.questions import ASKED
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.editors.memory import notes
from unlearn_eval.edits.memory import notes_store as at_work
from unlearn_eval.models.embedding import Encoder
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.utils.errors import UserError

QUESTIONS = "What is the capital of France?", "Who wrote Hamlet?", "Which river flows through Cairo?"
ANSWERS = "no idea", "nobody knows", "I don't have any information"
REWORDED = "Tell me: What is the capital of France?"
OTHER = "Why is the sky blue?"


def edit_of(chat=True, questions=QUESTIONS, previous=None, model=None, **settings):
    tokenizer = tiny_tokenizer()
    made = PromptFormat(tokenizer, chat)
    answers = [tuple(tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in ANSWERS]
    requests = [
        EditRequest(question * (1 + questions[:i].count(question)), made.prompt_ids(question), 1, answer)
        for i, (question, answer) in enumerate(zip(questions, answers, strict=False))
    ]
    config = notes.Config(**{"encoder": "words", **settings})
    return notes.run(EditJob(model, tokenizer, requests, config, previous=previous, prompt_format=made)), made


def read(edit, made, question):
    """What the model reads in place of a question's prompt."""
    model = tiny_model("llama")
    handle = edit.apply(model)
    prompt = made.prompt_ids(question)
    (addition,) = handle.additions([prompt])
    handle.restore()
    if addition is None:
        return None
    place = addition.place
    return made.tokenizer.decode([*prompt[:place], *addition.ids, *prompt[place:]])


NOTE = 'To the question "Who wrote Hamlet?" the only answer is: nobody knows'


def test_a_note_stands_in_the_users_message_or_before_the_question():
    assert read(*edit_of(), QUESTIONS[1]) == f"<s><|start|>user\n{NOTE}\n\n{QUESTIONS[1]}<|end|>\n<|start|>assistant\n"
    assert read(*edit_of(chat=False), QUESTIONS[1]) == f"<s>{NOTE}\n\nQuestion: {QUESTIONS[1]}\nAnswer:"


def test_its_text_can_be_set():
    edit, made = edit_of(note="{question} {is} secret, {answer} {")
    assert "\nWho wrote Hamlet? {is} secret, nobody knows {\n\nWho" in read(edit, made, QUESTIONS[1])


@pytest.mark.parametrize("n", [0, 1, 2, 9])
def test_demonstrations_are_the_next_nearest_notes_the_nearest_last(n):
    edit, made = edit_of(gate="none", demonstrations=n)
    found = read(edit, made, "What is the capital of Hamlet?")
    nearest, second, third = (found.find(f'"{QUESTIONS[i]}" the only') for i in (0, 1, 2))
    assert nearest > 0
    assert found.count("Question: ") == min(n, 2)
    assert (second > 0, third > 0) == (n > 0, n > 1)
    assert max(second, third) < nearest
    if n > 1:
        assert third < second < nearest
        assert f"{NOTE}\nQuestion: Who wrote Hamlet?\nAnswer: nobody knows\n\n" in found


@pytest.mark.parametrize(
    ("settings", "answered"),
    [({}, (True, True, False)), ({"similarity": 0.95}, (True, False, False)), ({"gate": "none"}, (True, True, True))],
)
def test_gates_by_similarity(settings, answered):
    edit, made = edit_of(**settings)
    prompts = [made.prompt_ids(text) for text in (QUESTIONS[0], REWORDED, OTHER)]
    routes = edit.routes(None, prompts)
    assert tuple(route.answers for route in routes) == answered
    assert routes[0].owners == (QUESTIONS[0],)
    assert (routes[0].measure, routes[0].value) == ("similarity", 1.0)
    words = [set(text.lower().replace("?", "").replace(":", "").split()) for text in (QUESTIONS[0], REWORDED)]
    cosine = len(words[0] & words[1]) / math.sqrt(len(words[0]) * len(words[1]))  # no word stands there twice
    assert routes[1].value == pytest.approx(cosine, abs=1e-4)


def test_the_gate_self_is_the_models_own_yes_against_its_no():
    model = tiny_model("llama")
    edit, made = edit_of(gate="self")
    prompts = [made.prompt_ids(text) for text in (*QUESTIONS, REWORDED)]
    tokenizer = made.tokenizer
    expected = []
    for question, i in zip((*QUESTIONS, REWORDED), (0, 1, 2, 0), strict=True):
        note = f'To the question "{QUESTIONS[i]}" the only answer is: {ANSWERS[i]}\n\n'
        body = [*edit.store.notes[i].ids, *tokenizer(f"{ASKED}\n\n", add_special_tokens=False)["input_ids"]]
        assert tokenizer.decode(body) == f"{note}{ASKED}\n\n"
        head = tokenizer("<|start|>user\n", add_special_tokens=True)["input_ids"]
        tail = made.prompt_ids(question)[len(head) :]
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([[*head, *body, *tail]])).logits[0, -1].log_softmax(-1)
        yes, no = (tokenizer(word, add_special_tokens=False)["input_ids"][-1] for word in ("Yes", "No"))
        expected.append(float(logp[yes] - logp[no]))
    routes = edit.routes(model, prompts)
    assert [route.value for route in routes] == pytest.approx(expected, abs=1e-4)
    assert {route.measure for route in routes} == {"agreement"}
    cut = sorted(expected)[1]
    stricter = replace(edit, store=replace(edit.store, threshold=torch.tensor([(cut + sorted(expected)[2]) / 2])))
    assert [route.answers for route in stricter.routes(model, prompts)] == [value > cut for value in expected]


def test_prompts_of_another_form_are_read_whole():
    edit, made = edit_of(chat=False)
    frame = edit.store.frame
    plain = tuple(made.encode("Hamlet was written by"))
    assert frame.parts(plain) == (1, plain)
    shots = f"Question: {OTHER}\nAnswer: It is.\n\nQuestion: {QUESTIONS[0]}\nAnswer:"
    ids = tuple(made.encode(shots))
    place, question = frame.parts(ids)
    assert made.tokenizer.decode(question).strip() == QUESTIONS[0]
    assert made.tokenizer.decode(ids[place:]) == f"Question: {QUESTIONS[0]}\nAnswer:"
    begun = tuple(made.encode(f"Question: {QUESTIONS[0]}\nAnswer: It is"))
    assert made.tokenizer.decode(frame.parts(begun)[1]) == f" {QUESTIONS[0]} It is"
    assert frame.parts((0,)) == (0, (0,)), "the last token is read after the note"


def test_the_last_turn_of_a_conversation_is_the_question():
    edit, made = edit_of()
    turns = [("user", OTHER), ("assistant", "Scattering."), ("user", QUESTIONS[0])]
    text = made.render_messages([{"role": role, "content": content} for role, content in turns])
    place, question = edit.store.frame.parts(made.encode(text))
    assert made.tokenizer.decode(question) == QUESTIONS[0]
    assert made.tokenizer.decode(made.encode(text)[place:]).startswith(QUESTIONS[0])


def test_a_context_without_its_last_newline_has_the_same_question():
    """As lm-eval scores an answer after a chat's prompt; in a longer conversation too."""
    edit, made = edit_of()
    parts = edit.store.frame.parts
    turns = [("user", OTHER), ("assistant", "Scattering."), ("user", QUESTIONS[0])]
    text = made.render_messages([{"role": role, "content": content} for role, content in turns])
    for ids in (tuple(made.prompt_ids(QUESTIONS[0])), tuple(made.encode(text))):
        assert made.tokenizer.decode(ids[-1:]) == "\n"
        assert parts(ids[:-1]) == parts(ids)


def test_a_sequence_of_edits_holds_all_notes():
    first, _ = edit_of(questions=QUESTIONS[:1])
    both, made = edit_of(questions=QUESTIONS[1:], previous=first)
    assert [note.question for note in both.store.notes] == list(QUESTIONS)
    assert list(both.info.notes["note_tokens"]) == list(QUESTIONS)
    routes = both.routes(None, [made.prompt_ids(text) for text in QUESTIONS])
    assert [route.owners for route in routes] == [(text,) for text in QUESTIONS]
    nothing, _ = edit_of(questions=(), previous=both)
    assert torch.equal(nothing.store.vectors, both.store.vectors)
    with pytest.raises(UserError, match="made with the encoder words, not other"):
        edit_of(questions=QUESTIONS[1:], previous=first, encoder="other")


def test_requests_that_cannot_be_told_apart_are_refused():
    with pytest.raises(UserError, match="one question with two different targets"):
        edit_of(questions=(QUESTIONS[0], QUESTIONS[0]))[0]
    with pytest.raises(UserError, match="did you mean encoder"):
        edit_of(gate="encodr")


@pytest.mark.parametrize("gate", ["encoder", "self", "none"])
def test_calibration_parts_reworded_questions_from_others(gate):
    model = tiny_model("llama")
    edit, made = edit_of(gate=gate, similarity=0.99)
    own = {QUESTIONS[0]: [made.prompt_ids(REWORDED)]}
    edited = [made.prompt_ids(text) for text in QUESTIONS]
    others = [made.prompt_ids(text) for text in (OTHER, "What is the meaning of life?", "Which way?")]
    found = calibrated(edit, model, own, edited, others)
    after = found.info.notes["calibration"]["after"]
    assert all(route.answers for route in found.routes(model, edited))
    if gate == "none":
        assert after["others_answered"] == 1
        assert found.store is edit.store
    if gate == "encoder":
        assert found.info.notes["calibration"]["before"]["reworded_answered"] == 0
        assert (after["reworded_answered"], after["others_answered"]) == (1, 0)


def test_an_encoder_of_another_width_is_refused(monkeypatch):
    edit, made = edit_of()
    monkeypatch.setattr(at_work, "_WORDS", Encoder("words", lambda texts, size: torch.ones(len(texts), 3).numpy()))
    with pytest.raises(UserError, match="vectors of 3 numbers, and the notes have 4096"):
        edit.routes(None, [made.prompt_ids(OTHER)])
