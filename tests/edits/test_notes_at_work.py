"""Notes in a model: it reads them where they are meant, and is the unedited model, bit for bit, where they are not."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import assert_untouched, one_thread, tiny_model, tiny_tokenizer, weights_of  # noqa: F401
from transformers import StoppingCriteria, StoppingCriteriaList

from unlearn_eval.editing.editor import EditJob
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.editors.memory import grace
from unlearn_eval.editors.memory import notes as editor
from unlearn_eval.edits.base import applied
from unlearn_eval.edits.load import load_edit
from unlearn_eval.edits.memory.codebook import Codebook
from unlearn_eval.edits.memory.edit import MemoryEdit
from unlearn_eval.edits.memory.notes import NotesEdit
from unlearn_eval.edits.memory.notes_store import Asking, Frame, Note, Notes
from unlearn_eval.harness.response_cache import _memories
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.scoring import Query, free_running, pad, score_answers
from unlearn_eval.models.tracing import trace
from unlearn_eval.utils.errors import UserError

TOKENIZER = tiny_tokenizer()
FORMAT = PromptFormat(TOKENIZER, True)
QUESTIONS = "What is the capital of France?", "Who wrote Hamlet?", "What is Japan?", "Is it?"
PROMPTS = [FORMAT.prompt_ids(question) for question in QUESTIONS]
HITS = [True, False, True, False]
LABELS = (7, 8, 9)
ARCHITECTURES = ["llama", "gpt2", "gemma3"]


@pytest.fixture(scope="module")
def edit():
    requests = [EditRequest(f"q{i}", PROMPTS[i], 1, (30, 40)) for i in (0, 2)]
    config = editor.Config(encoder="words", similarity=0.9)
    return editor.run(EditJob(None, TOKENIZER, requests, config, prompt_format=FORMAT))


def whole(edit, i):
    """A prompt with its note, by hand; that of a miss as it is."""
    if not HITS[i]:
        return PROMPTS[i]
    place = PROMPTS[i].index(TOKENIZER.encode("\n", add_special_tokens=False)[0]) + 1
    return (*PROMPTS[i][:place], *edit.store.notes[i // 2].ids, *PROMPTS[i][place:])


def said(model, prompt, n=6):
    ids = torch.tensor([prompt])
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False)[
        0, ids.shape[1] :
    ]


def batch(prompts=PROMPTS, side="left"):
    ids, mask = pad(prompts, side, "cpu", filler=1)
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_those_of_the_prompt_with_its_note(edit, architecture):
    model = tiny_model(architecture)
    queries = [Query(prompt, LABELS) for prompt in PROMPTS]
    before = score_answers(model, [Query(whole(edit, i), LABELS) for i in range(4)])
    with applied(edit, model):
        after = score_answers(model, queries)
        one_by_one = score_answers(model, queries, batch_size=1)
    for i in range(4):
        assert after[i].token_nll == pytest.approx(before[i].token_nll, abs=1e-4)
        assert one_by_one[i].token_nll == pytest.approx(before[i].token_nll, abs=1e-4)
        assert after[i].ranks == before[i].ranks


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_without_notes_are_the_same_to_the_bit(edit, architecture, side):
    model = tiny_model(architecture)
    inputs = batch(side=side)
    with torch.no_grad():
        clean = model(**inputs, use_cache=False).logits
        with applied(edit, model):
            found = model(**inputs, use_cache=False).logits
            alone = model(**batch([PROMPTS[1], PROMPTS[3]], side)).logits
        assert torch.equal(alone, model(**batch([PROMPTS[1], PROMPTS[3]], side)).logits)
    assert found.shape == clean.shape
    for i, hit in enumerate(HITS):
        width = len(PROMPTS[i])
        own = slice(-width, None) if side == "left" else slice(0, width)
        assert torch.equal(found[i], clean[i]) != hit
        if hit:  # before the note, nothing is known of it; after it, the note was read
            expected = model(input_ids=torch.tensor([whole(edit, i)])).logits[0]
            n = len(whole(edit, i)) - width
            place = next(j for j, token in enumerate(whole(edit, i)[:width]) if token != PROMPTS[i][j])
            assert torch.equal(found[i, own][:place], clean[i, own][:place])
            torch.testing.assert_close(found[i, own][place:], expected[place + n :], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generation_reads_notes_and_leaves_the_rest(edit, architecture):
    model = tiny_model(architecture)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1}
    clean = model.generate(**batch(), **options)
    expected = [said(model, whole(edit, i)) for i in range(4)]
    with applied(edit, model):
        found = model.generate(**batch(), **options)
        by_length = model.generate(**batch(), max_length=batch()["input_ids"].shape[1] + 6, do_sample=False)
        hits = model.generate(**batch([PROMPTS[0], PROMPTS[2]]), **options)
        misses = model.generate(**batch([PROMPTS[1], PROMPTS[3]]), **options)
    width = clean.shape[1] - 6
    assert torch.equal(found[:, :width], clean[:, :width]), "the caller's own prompts"
    assert torch.equal(found, by_length)
    for i, hit in enumerate(HITS):
        assert torch.equal(found[i, width:], expected[i])
        assert torch.equal(found[i], clean[i]) != hit
    assert [row[-6:].tolist() for row in hits] == [expected[0].tolist(), expected[2].tolist()]
    assert torch.equal(misses, model.generate(**batch([PROMPTS[1], PROMPTS[3]]), **options))


def test_sampling_several_sequences_keeps_the_others_random_numbers(edit):
    model = tiny_model("llama")
    options = {"max_new_tokens": 5, "do_sample": True, "num_return_sequences": 3, "pad_token_id": 1}
    torch.manual_seed(3)
    clean = model.generate(**batch(), **options)
    with applied(edit, model):
        torch.manual_seed(3)
        found = model.generate(**batch(), **options)
    assert found.shape[0] == 12
    for i, hit in enumerate(HITS):
        assert torch.equal(found[3 * i : 3 * i + 3], clean[3 * i : 3 * i + 3]) != hit


class Watching(StoppingCriteria):
    """Stops rows whose text past the prompt has a token, as lm-eval's criteria do: what is done is noted by row."""

    def __init__(self, width, token, n):
        self.width, self.token, self.done, self.prompts = width, token, [False] * n, []

    def __call__(self, input_ids, scores, **more):
        self.prompts.append(input_ids[:, : self.width].clone())
        for i, row in enumerate(input_ids[:, self.width :].tolist()):
            self.done[i] = self.done[i] or self.token in row
        return torch.tensor(self.done)


def test_stopping_criteria_see_the_callers_prompts(edit):
    model = tiny_model("llama")
    inputs = batch()
    width = inputs["input_ids"].shape[1]
    token = int(said(model, whole(edit, 0))[1])
    criterion = Watching(width, token, 4)
    with applied(edit, model):
        found = model.generate(
            **inputs,
            max_new_tokens=6,
            do_sample=False,
            pad_token_id=1,
            stopping_criteria=StoppingCriteriaList([criterion]),
        )
    assert found[0, width:].tolist()[:2] == said(model, whole(edit, 0))[:2].tolist()
    assert set(found[0, width + 2 :].tolist()) <= {1}
    assert all(torch.equal(own, inputs["input_ids"]) for own in criterion.prompts)
    assert criterion.done == [False] * 4, "what one run notes is not the next one's"


def test_the_logits_of_generation_are_had(edit):
    """What the released evaluations read of every step."""
    model = tiny_model("llama")
    queries = [Query(prompt, LABELS) for prompt in PROMPTS]
    with applied(edit, model):
        found = free_running(model, queries, [3] * 4, batch_size=4)
    expected = free_running(model, [Query(whole(edit, i), LABELS) for i in range(4)], [3] * 4)
    assert [own.ranks for own in found] == [own.ranks for own in expected]


def test_some_logits_and_masked_tokens(edit):
    model = tiny_model("llama")
    with torch.no_grad(), applied(edit, model):
        ids = torch.tensor([PROMPTS[0]])
        every = model(input_ids=ids).logits
        for keep, columns in ((2, [-2, -1]), (torch.tensor([0, 5]), [0, 5])):
            torch.testing.assert_close(model(input_ids=ids, logits_to_keep=keep).logits, every[:, columns])
        holes = torch.tensor([[*PROMPTS[0][:-1], 11, PROMPTS[0][-1]]])
        mask = torch.ones_like(holes)
        mask[0, -2] = 0
        found = model(input_ids=holes, attention_mask=mask).logits[0, -1]
    expected_ids = [*whole(edit, 0)[:-1], 11, whole(edit, 0)[-1]]
    mask = torch.ones(1, len(expected_ids), dtype=torch.long)
    mask[0, -2] = 0
    expected = model(input_ids=torch.tensor([expected_ids]), attention_mask=mask).logits[0, -1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_gradients_pass(edit):
    model = tiny_model("llama")
    weight = model.get_output_embeddings().weight.requires_grad_()
    with applied(edit, model):
        model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].logsumexp(-1).backward()
    assert float(weight.grad.norm()) > 0


def test_what_is_of_other_tokens_is_refused(edit):
    model = tiny_model("llama")
    before = weights_of(model)
    ids = torch.tensor([PROMPTS[0]])
    cache = model(input_ids=ids, use_cache=True).past_key_values
    name = "model.layers.2.mlp.down_proj"
    book = Codebook(torch.ones(1, 24), torch.ones(1, 16), torch.ones(1), torch.zeros(1).long(), ((5,),), (("a",),))
    with applied(edit, model):
        for options, message in [
            ({"input_ids": ids[:, -1:], "past_key_values": cache}, "cannot go on from a cache"),
            ({"inputs_embeds": torch.zeros(1, 2, 16)}, "no input_ids are given"),
            ({"input_ids": ids, "output_hidden_states": True}, "gives logits alone"),
            ({"input_ids": ids, "labels": ids}, "gives logits alone"),
        ]:
            with pytest.raises(UserError, match=message):
                model(**options)
        with pytest.raises(UserError, match="no input_ids are given"):
            model.generate(inputs_embeds=torch.zeros(1, 2, 16))
        assert model(input_ids=ids, use_cache=True).past_key_values is None
        with pytest.raises(UserError, match="hidden states are of more tokens"), trace(model, inputs=[name]):
            pass
        with pytest.raises(UserError, match="a memory edit in this model already"):
            edit.apply(model)
        with pytest.raises(UserError, match="there are notes in this model"):
            MemoryEdit(name, book, grace.EditInfo("grace", {})).apply(model)
    with applied(MemoryEdit(name, book, grace.EditInfo("grace", {})), model):
        with pytest.raises(UserError, match="a memory edit in this model already"):
            edit.apply(model)
    assert_untouched(model, before)


def test_a_model_is_what_it_was_and_a_second_restore_is_harmless(edit):
    model = tiny_model("llama")
    before, had = weights_of(model), set(vars(model))
    own = vars(model)["generate"] = model.generate  # somebody's own
    handle = edit.apply(model)
    handle.restore()
    handle.restore()
    assert vars(model).pop("generate") is own
    assert set(vars(model)) == had
    assert_untouched(model, before)


def test_saved_and_read(edit, tmp_path):
    model = tiny_model("llama")
    found = load_edit(edit.save(tmp_path / "edit"))
    assert isinstance(found, NotesEdit)
    assert found.store.settings() == edit.store.settings()
    with applied(edit, model):
        expected, hashed = model(**batch()).logits, _memories(model)
    again = load_edit(found.save(tmp_path / "again"))
    with applied(again, model):
        assert torch.equal(model(**batch()).logits, expected)
        assert _memories(model) == hashed
    assert _memories(model) is None


def test_what_does_not_fit_is_damaged(edit, tmp_path):
    from odd_files import relist

    folder = edit.save(tmp_path / "edit")
    tensors = load_file(folder / "memory.safetensors")
    save_file({**tensors, "vectors": tensors["vectors"][:1]}, str(folder / "memory.safetensors"))
    relist(folder)
    with pytest.raises(UserError, match="not equally many"):
        load_edit(folder)


def test_without_a_tokenizer_no_question_is_read(tmp_path):
    store = Notes(
        torch.ones(1, 4096), torch.zeros(1), (Note("x", (5,), (6,)),), (("a",),), Frame(), Asking(), "none", "words"
    )
    edit = load_edit(NotesEdit(store, editor.EditInfo("notes", {})).save(tmp_path / "edit"))
    with pytest.raises(UserError, match="has no tokenizer"):
        edit.routes(None, [(3, 4)])


def test_redaction_is_refused(edit, tmp_path):
    from unlearn_eval.edits.redaction import Names, write_redacted

    folder = edit.save(tmp_path / "edit")
    description = json.loads((folder / "edit.json").read_text())
    (tmp_path / "to").mkdir()
    with pytest.raises(UserError, match="cannot be redacted"):
        write_redacted(folder, description, Names.of(folder, description), tmp_path / "to", lambda a, b: None)
