"""Prefix: soft prompts that are trained until their targets follow, and are read where a gate lets them."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_models import assert_untouched, one_thread, tiny_model, tiny_tokenizer, weights_of  # noqa: F401

from unlearn_eval.editing.editor import EditJob
from unlearn_eval.editing.memory.calibration import calibrated
from unlearn_eval.editing.memory.prefixes import Row, prefixed_logits, target_losses
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.editors.memory import prefix
from unlearn_eval.edits.base import applied
from unlearn_eval.edits.load import load_edit
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.scoring import Query, score_answers
from unlearn_eval.utils.errors import UserError

TOKENIZER = tiny_tokenizer()
FORMAT = PromptFormat(TOKENIZER, True)
QUESTIONS = "What is the capital of France?", "Who wrote Hamlet?", "Which river flows through Cairo?"
TARGETS = (30, 30), (50, 50), (25, 25)  # what a random model can be brought to say
OTHER = "Why is the sky blue?"
SETTINGS = {"encoder": "words", "similarity": 0.9, "length": 8, "steps": 120, "learning_rate": 1.0, "stop_loss": 2.5}


def requests_of(indices, chat=True):
    made = PromptFormat(TOKENIZER, chat)
    return [EditRequest(QUESTIONS[i], made.prompt_ids(QUESTIONS[i]), 1, TARGETS[i]) for i in indices]


def edit_of(indices=(0, 1), model=None, previous=None, chat=True, requests=None, **settings):
    model = model or tiny_model("llama")
    config = prefix.Config(**{**SETTINGS, **settings})
    made = PromptFormat(TOKENIZER, chat)
    requests = requests or requests_of(indices, chat)
    return prefix.run(EditJob(model, TOKENIZER, requests, config, previous=previous, prompt_format=made))


@pytest.fixture(scope="module")
def edit():
    return edit_of()


def naive_logits(model, prompt, place, target, vectors):
    """Of one row, by embeddings that are joined by hand, without padding."""
    embed = model.get_input_embeddings()
    ids = torch.tensor([*prompt, *target[:-1]])
    whole = torch.cat([embed(ids[:place]), vectors.to(embed.weight), embed(ids[place:])])
    return model(inputs_embeds=whole[None]).logits[0, -len(target) :].float()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "gpt_neox"])
def test_losses_are_those_of_one_row_at_a_time(architecture):
    model = tiny_model(architecture)
    width = model.get_input_embeddings().weight.shape[1]
    generator = torch.Generator().manual_seed(1)
    rows = [Row(FORMAT.prompt_ids(question), 2 + i, TARGETS[i], i) for i, question in enumerate(QUESTIONS)]
    vectors = torch.randn(3, 4, width, generator=generator).requires_grad_()
    nll, said = target_losses(*prefixed_logits(model, rows, vectors))
    for i, row in enumerate(rows):
        logits = naive_logits(model, row.prompt, row.place, row.target, vectors[i])
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(row.target))
        assert nll[i].item() == pytest.approx(expected.item(), abs=1e-4)
        assert bool(said[i]) == (logits.argmax(-1).tolist() == list(row.target))
        (own,) = torch.autograd.grad(nll[i], vectors, retain_graph=True)
        (naive,) = torch.autograd.grad(expected, vectors)
        torch.testing.assert_close(own, naive, atol=1e-4, rtol=1e-3)
    plain, _ = target_losses(*prefixed_logits(model, rows, None))
    scores = score_answers(model, [Query(row.prompt, row.target) for row in rows])
    expected = [sum(score.token_nll) / len(score.token_nll) for score in scores]
    assert plain.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("chat", [True, False])
def test_the_targets_follow_and_other_questions_are_the_same_to_the_bit(chat):
    model = tiny_model("llama")
    before = weights_of(model)
    edit = edit_of(chat=chat, model=model)
    assert_untouched(model, before)
    assert edit.info.notes["said"] == {QUESTIONS[0]: True, QUESTIONS[1]: True}
    made = PromptFormat(TOKENIZER, chat)
    other = torch.tensor([made.prompt_ids(OTHER)])
    clean = model(other).logits
    for i in (0, 1):
        ids = torch.tensor([made.prompt_ids(QUESTIONS[i])])
        assert model.generate(ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :].tolist()[:2] != TARGETS[i]
    with applied(edit, model):
        for i in (0, 1):
            ids = torch.tensor([made.prompt_ids(QUESTIONS[i])])
            found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
            assert tuple(found[0, ids.shape[1] :].tolist()[: len(TARGETS[i])]) == TARGETS[i]
        assert torch.equal(model(other).logits, clean)
        score = score_answers(model, [Query(made.prompt_ids(QUESTIONS[i]), TARGETS[i]) for i in (0, 1)])
    noted = [edit.info.notes["target_nll"][QUESTIONS[i]] for i in (0, 1)]
    assert [sum(own.token_nll) / len(own.token_nll) for own in score] == pytest.approx(noted, abs=1e-4)
    assert max(noted) < 2.5


def test_a_prefix_is_done_by_itself_and_batches_change_nothing(edit):
    steps = edit.info.notes["steps"]
    assert len(set(steps.values())) > 1
    alone = edit_of((1,))
    assert alone.info.notes["steps"][QUESTIONS[1]] == steps[QUESTIONS[1]] < SETTINGS["steps"]
    torch.testing.assert_close(alone.store.prompts[0], edit.store.prompts[1], atol=1e-2, rtol=1e-2)
    whole, one_by_one = edit_of((0, 1, 2), steps=8), edit_of((0, 1, 2), steps=8, tokens_per_batch=1)
    torch.testing.assert_close(whole.store.prompts, one_by_one.store.prompts, atol=1e-3, rtol=1e-3)
    few = edit_of((0,), steps=1)
    embedded = tiny_model("llama").get_input_embeddings().weight[list(TARGETS[0] * 4)]
    assert torch.equal(few.store.prompts[0], embedded), "one pass and no update: the target's embeddings"


def test_a_shared_prefix_is_trained_on_all_requests():
    same = [replace(own, target_ids=(30, 30)) for own in requests_of((0, 1, 2))]
    edit = edit_of(requests=same, shared=True)
    assert edit.store.prompts.shape == (1, 8, 16)
    assert edit.store.prompt_of == (0, 0, 0)
    assert set(edit.info.notes["said"].values()) == {True}
    model = tiny_model("llama")
    with applied(edit, model):
        found = score_answers(model, [Query(own.prompt_ids, (30, 30)) for own in same])
    mean = sum(sum(own.token_nll) / 2 for own in found) / 3
    assert mean == pytest.approx(edit.info.notes["target_nll"][QUESTIONS[0]], abs=1e-4)


def test_members_of_a_request_share_a_prefix_and_contexts_are_trained_on():
    first, second = (replace(own, target_ids=(30, 30)) for own in requests_of((0, 1)))
    merged = edit_of(requests=[replace(first, members=(first, second))])
    assert merged.store.prompt_of == (0, 0)
    assert [own[0] for own in merged.store.owners] == list(QUESTIONS[:2])
    longer = (FORMAT.prompt_ids(f"Tell me. {QUESTIONS[0]}"), 1)
    plain = edit_of(requests=[replace(first, contexts=(longer,))])
    more = edit_of(requests=[replace(first, contexts=(longer,))], contexts=True)
    assert torch.equal(plain.store.prompts, edit_of(requests=[first]).store.prompts)
    assert not torch.equal(more.store.prompts, plain.store.prompts)


def test_saved_read_and_continued(edit, tmp_path):
    model = tiny_model("llama")
    found = load_edit(edit.save(tmp_path / "edit"))
    assert found.store.settings() == edit.store.settings()
    assert torch.equal(found.store.prompts, edit.store.prompts)
    both = edit_of((2,), previous=found)
    assert both.store.prompt_of == (0, 1, 2)
    prompts = [FORMAT.prompt_ids(question) for question in QUESTIONS]
    routes = both.routes(model, prompts)
    assert [route.owners for route in routes] == [(question,) for question in QUESTIONS]
    assert [route.answers for route in routes] == [True] * 3
    assert list(both.info.notes["steps"]) == list(QUESTIONS)
    assert torch.equal(both.store.prompts[:2], edit.store.prompts)
    assert torch.equal(both.store.prompts[2:], edit_of((2,)).store.prompts)
    for setting, value in (("length", 4), ("encoder", "other"), ("gate", "none")):
        with pytest.raises(UserError, match=f"made with {setting}="):
            edit_of((2,), previous=found, **{setting: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": lambda own: own[:1]}, "a prefix that is not there"),
        ({"vectors": lambda own: own[:1]}, "not equally many"),
        ({"prompts": lambda own: own[0]}, "the tensor prompts is"),
    ],
)
def test_what_does_not_fit_is_damaged(edit, tmp_path, change, message):
    from odd_files import relist
    from safetensors.torch import load_file, save_file

    folder = edit.save(tmp_path / "edit")
    tensors = load_file(folder / "memory.safetensors")
    changed = {name: change[name](own).contiguous() if name in change else own for name, own in tensors.items()}
    save_file(changed, str(folder / "memory.safetensors"))
    relist(folder)
    with pytest.raises(UserError, match=message):
        load_edit(folder)


def test_another_model_is_refused(edit):
    narrow = replace(edit, store=replace(edit.store, prompts=edit.store.prompts[..., :-1]))
    with pytest.raises(UserError, match=r"prefixes have \d+ numbers, and this model's embeddings \d+"):
        narrow.apply(tiny_model("llama"))


def test_the_gate_self_asks_with_a_note_and_inserts_the_prefix():
    model = tiny_model("llama")
    edit = edit_of(gate="self", model=model)
    assert all(note.ids for note in edit.store.notes)
    (route,) = edit.routes(model, [FORMAT.prompt_ids(QUESTIONS[1])])
    assert (route.measure, route.owners) == ("agreement", (QUESTIONS[1],))
    assert math.isfinite(route.value)
    handle = edit.apply(model)
    with_all = replace(edit, store=replace(edit.store, threshold=torch.tensor([-1e9])))
    handle.restore()
    handle = with_all.apply(model)
    (own,) = handle.additions([FORMAT.prompt_ids(QUESTIONS[1])])
    handle.restore()
    assert torch.equal(own.vectors, edit.store.prompts[1])
    assert not any(note.ids for note in edit_of(gate="encoder").store.notes), "no more text than the gate needs"


def test_calibration_parts_reworded_questions_from_others():
    model = tiny_model("llama")
    edit = edit_of(similarity=0.99)
    own = {QUESTIONS[0]: [FORMAT.prompt_ids(f"Tell me: {QUESTIONS[0]}")]}
    edited = [FORMAT.prompt_ids(text) for text in QUESTIONS[:2]]
    others = [FORMAT.prompt_ids(text) for text in (OTHER, "What is the meaning of life?", "Which way?")]
    found = calibrated(edit, model, own, edited, others)
    after = found.info.notes["calibration"]["after"]
    assert (after["reworded_answered"], after["others_answered"]) == (1, 0)
    assert torch.equal(found.store.prompts, edit.store.prompts)


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="did you mean encoder"):
        edit_of(gate="encodr")
    first = requests_of((0,))[0]
    with pytest.raises(UserError, match="one question with two different targets"):
        edit_of(requests=[first, replace(first, id="b", target_ids=(9,))])
    with pytest.raises(UserError, match="there is no tokenizer"):
        prefix.run(EditJob(tiny_model("llama"), None, [first], prefix.Config(**SETTINGS)))
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(UserError, match="losses that are not finite"):
        edit_of((0,), model=model, steps=2)
