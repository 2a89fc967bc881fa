"""RECIPE: a gate with a sentinel and a map from facts to prompts, taught on other facts; editing is a forward pass."""

import json
import math
from dataclasses import replace

import pytest
import torch
from tiny_models import assert_untouched, one_thread, tiny_model, tiny_tokenizer, weights_of  # noqa: F401

from unlearn_eval.editing.editor import EditJob
from unlearn_eval.editing.memory import lessons as teaching
from unlearn_eval.editing.memory.lessons import Lesson, gate_losses, lessons, prefixes_of, teach_gate, teach_prompts
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.editors.memory import recipe
from unlearn_eval.edits.base import applied
from unlearn_eval.edits.load import load_edit
from unlearn_eval.edits.memory.notes_store import Frame, encoder_of
from unlearn_eval.edits.memory.prefix_store import Head
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.utils.errors import UserError

TOKENIZER = tiny_tokenizer()
FORMAT = PromptFormat(TOKENIZER, True)
NAMES = [f"{a}{b}" for a in ("bor", "kel", "mun", "sil", "tar", "wex") for b in ("ada", "ino", "uth", "esk")]
QUESTIONS = "What is the capital of Zorado?", "Who rules Velmin?"
OTHER = "Why is the sky blue?"
SETTINGS = {"encoder": "words", "width": 32, "gate_steps": 150, "gate_batch": 8, "steps": 3, "batch": 3}
TARGET = (30, 30)


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """Twenty-four invented ones, with the first question that is edited among them."""
    path = tmp_path_factory.mktemp("facts") / "facts.jsonl"
    rows = [
        {
            "question": f"What is the capital of {name}?",
            "answer": name.upper(),
            "paraphrases": [f"Which city is the capital of {name}?", f"Tell me the capital of {name}."],
            "perturbed_answers": ["nowhere"],
        }
        for name in NAMES
    ]
    rows.append({"question": QUESTIONS[0], "answer": "x"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def requests_of(indices):
    return [EditRequest(QUESTIONS[i], FORMAT.prompt_ids(QUESTIONS[i]), 1, TARGET) for i in indices]


def job_of(facts, indices=(0, 1), previous=None, model=None, **settings):
    config = recipe.Config(**{**SETTINGS, "facts": facts, **settings})
    model = model or tiny_model("llama")
    return EditJob(model, TOKENIZER, requests_of(indices), config, previous=previous, prompt_format=FORMAT)


@pytest.fixture(scope="module")
def edit(facts):
    return recipe.run(job_of(facts))


def test_the_gates_losses_are_the_papers():
    """Equations 9 and 10, written out for each question."""
    generator = torch.Generator().manual_seed(0)
    questions, keys, outside = (torch.randn(n, 9, generator=generator) for n in (4, 4, 3))
    sentinel = torch.randn(9, generator=generator)
    own = silent = 0.0
    for i in range(4):
        scores = [math.exp(float(questions[i] @ k) / 3) for k in (*keys, sentinel)]
        own -= math.log(scores[i] / sum(scores)) / 4
    for question in outside:
        scores = [math.exp(float(question @ k) / 3) for k in (*keys, sentinel)]
        silent -= math.log(scores[-1] / sum(scores)) / 3
    found = gate_losses(questions, keys, sentinel, outside)
    assert [float(loss) for loss in found] == pytest.approx([own, silent], abs=1e-5)


def test_a_head_is_what_its_docstring_says():
    head = Head.new(5, 3, 6, torch.Generator().manual_seed(2))
    weights = [torch.randn(own.shape, generator=torch.Generator().manual_seed(i)) for i, own in enumerate(head.weights)]
    a, a_bias, b, b_bias, c, c_bias = weights
    e = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0])
    u = a @ e + a_bias
    torch.testing.assert_close(Head(tuple(weights))(e), u + c @ (b @ u + b_bias).clamp(min=0) + c_bias)


def test_what_is_taught(facts):
    found = lessons(job_of(facts), facts, 0.0, 1000, 0)
    assert len(found) == len(NAMES), "what is edited is left out"
    assert {own.target for own in found} == {TARGET}
    said = TOKENIZER.decode(list(TARGET)).strip()
    assert found[0].statement == f"{found[0].questions[0]} {said}"
    assert found[0].prompts == tuple(FORMAT.prompt_ids(question) for question in found[0].questions)
    assert len(found[0].questions) == 3
    assert found == lessons(job_of(facts), facts, 0.0, 1000, 0) != lessons(job_of(facts), facts, 0.0, 1000, 1)
    wrong = lessons(job_of(facts), facts, 1.0, 10, 0)
    assert len(wrong) == 10
    assert all(own.statement.endswith("? nowhere") for own in wrong)
    assert TOKENIZER.decode(wrong[0].target, skip_special_tokens=True).strip() == "nowhere"
    with pytest.raises(UserError, match="3 facts of .* are left to teach with, and 8 are needed"):
        lessons(job_of(facts), facts, 0.0, 3, 0)


def test_a_taught_gate_parts_questions_that_it_has_not_seen(facts):
    found = lessons(job_of(facts), facts, 0.0, 1000, 0)
    encode = encoder_of("words")
    taught, new = found[:16], found[16:]

    def margins(gate):
        keys = gate.key(torch.from_numpy(encode([own.statement for own in new])))
        asked = gate.query(torch.from_numpy(encode([own.questions[1] for own in new])))
        return asked @ (keys - gate.sentinel).T

    before, after = (margins(teach_gate(taught, encode, 128, n, 8, 1e-3, 0)) for n in (0, 200))
    own = torch.eye(len(new), dtype=torch.bool)

    def auc(found):
        return float((found[own][:, None] > found[~own][None]).float().mean())

    assert auc(after) > 0.95, auc(before)
    assert teach_gate(taught, encode, 32, 150, 8, 1e-3, 0).loss < teach_gate(taught, encode, 32, 1, 8, 1e-3, 0).loss / 2


def test_a_map_is_taught_through_the_model(facts):
    """Each step follows reliability, generality and locality: their sum, computed row by row, falls."""
    model, frame = tiny_model("llama"), Frame(first=1)
    before = weights_of(model)
    rows = [Lesson(f"{i}", (f"{i}",), ((1, 10 + i, 11), (1, 12, 10 + i)), TARGET) for i in range(8)]
    keys = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    found, losses = teach_prompts(model, rows, keys, frame, 2, 40, 4, 0.3, 0.0, 0)
    assert_untouched(model, before)
    assert sum(losses[-5:]) < sum(losses[:5]) - 5
    start, first = teach_prompts(model, rows, keys, frame, 2, 1, 4, 1e-9, 0.5, 0)
    embedded = model.get_input_embeddings()
    vectors = prefixes_of(start, keys, 2)
    torch.testing.assert_close(vectors[3], embedded.weight[list(TARGET)], atol=1e-4, rtol=1e-4)
    order = torch.randperm(8, generator=_after_weights(6)).tolist()

    def logits(ids, place, i):
        own = [embedded(torch.tensor(ids[:place])), *([vectors[i]] if i is not None else [])]
        whole = torch.cat([*own, embedded(torch.tensor(ids[place:]))])
        return model(inputs_embeds=whole[None]).logits[0, -2:].log_softmax(-1)

    expected = 0.0
    with torch.no_grad():
        for i, j in zip(order[:4], order[4:], strict=True):
            for prompt in rows[i].prompts:
                expected -= float(logits([*prompt, 30], 1, i)[:, 30].mean()) / 4
            plain, moved = (logits([*rows[j].prompts[0], 30], 1, own) for own in (None, i))
            expected += 0.5 * float((plain.exp() * (plain - moved)).sum(-1).mean()) / 4
    assert first[0] == pytest.approx(expected, abs=1e-3)


def _after_weights(d):
    """The generator as it is when the first step draws its facts."""
    generator = torch.Generator().manual_seed(0)
    torch.randn(2 * d, d, generator=generator)
    return generator


def test_an_edit_is_gated_by_the_sentinel_and_the_rest_is_the_same_to_the_bit(edit):
    model = tiny_model("llama")
    before = weights_of(model)
    prompts = [FORMAT.prompt_ids(question) for question in (*QUESTIONS, OTHER)]
    routes = edit.routes(model, prompts)
    assert [route.measure for route in routes] == ["margin"] * 3
    assert [route.owners for route in routes[:2]] == [(question,) for question in QUESTIONS]
    store = edit.store
    e = torch.from_numpy(encoder_of("words")([QUESTIONS[0]])[0])
    q = store.query(e)
    value = float(q @ store.vectors[0] - q @ store.sentinel) / math.sqrt(32)
    assert routes[0].value == pytest.approx(value, abs=1e-4)
    assert routes[0].value == pytest.approx(edit.info.notes["value"][QUESTIONS[0]], abs=1e-4)
    assert [route.answers for route in routes] == [route.value >= 0 for route in routes]
    silent, answering = (
        replace(edit, store=replace(store, threshold=torch.tensor([routes[0].value + off]))) for off in (1e-3, -1e-3)
    )
    ids = torch.tensor([prompts[0]])
    clean = model(ids).logits
    with applied(silent, model):
        assert torch.equal(model(ids).logits, clean)
    with applied(answering, model):
        assert not torch.equal(model(ids).logits, clean)
    assert_untouched(model, before)
    assert edit.info.notes["taught"]["facts"] == len(NAMES)


def test_continued_and_started_edits_are_not_taught_again(edit, facts, tmp_path, monkeypatch):
    folder = edit.save(tmp_path / "edit")
    found = load_edit(folder)
    assert found.store.settings() == edit.store.settings()
    assert all(torch.equal(own, found.store.tensors()[name]) for name, own in edit.store.tensors().items())
    first = recipe.run(job_of(facts, (0,)))
    monkeypatch.setattr(recipe, "teach_gate", None)
    monkeypatch.setattr(recipe, "teach_prompts", None)
    both = recipe.run(job_of(facts, (1,), previous=first))
    assert both.store.n == 2
    assert torch.equal(both.store.prompts[:1], first.store.prompts)
    again = recipe.run(job_of(facts, (0, 1), start=str(folder)))
    assert torch.equal(again.store.prompts, edit.store.prompts)
    assert again.info.notes["taught"] == edit.info.notes["taught"]
    assert both.store.prompt_of == (0, 1)
    for setting, value in (("length", 4), ("gate", "none"), ("encoder", "other")):
        with pytest.raises(UserError, match=f"made with {setting}="):
            recipe.run(job_of(facts, (1,), previous=first, **{setting: value}))


def test_bad_input_is_refused(facts):
    with pytest.raises(UserError, match="did you mean sentinel"):
        recipe.run(job_of(facts, gate="sentinal"))
    with pytest.raises(UserError, match=r"wrong 1\.5, locality 1\.0 do not make sense"):
        recipe.run(job_of(facts, wrong=1.5))
    with pytest.raises(UserError, match="no file at nowhere"):
        recipe.run(job_of("nowhere.jsonl"))
    assert teaching.LEAST == 8
    nothing = recipe.run(job_of(facts, ()))
    with pytest.raises(UserError, match="nothing was taught"):
        recipe.run(job_of(facts, (0,), previous=nothing))
