"""LTE: the rows by which a base learns to follow notes, and that it is a base like any other afterwards."""

from collections import Counter

import pytest
from tiny_models import assert_untouched, one_thread, tiny_tokenizer, weights_of  # noqa: F401

from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.data.registry import finetune_presets
from unlearn_eval.editing.editor import EditJob
from unlearn_eval.editing.requests.build import build_requests
from unlearn_eval.editing.requests.targets import POOL
from unlearn_eval.editors.memory import notes
from unlearn_eval.models.generation import written
from unlearn_eval.models.load import load_model
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.scoring import Query, score_answers
from unlearn_eval.runs import lte
from unlearn_eval.runs.finetune import finetune, preset_of, write_checkpoint
from unlearn_eval.utils.errors import UserError

TOKENIZER = tiny_tokenizer()
ITEMS = tuple(
    ForgetItem(
        name,
        f"What is the capital of {name}?",
        answer,
        paraphrases=(f"{name} has which capital?",),
        perturbed_answers=wrong,
    )
    for name, answer, wrong in (
        ("France", "Paris", ("Lyon", "Nice")),
        ("Japan", "Tokyo", ("Kyoto",)),
        ("Egypt", "Cairo", ()),
    )
) + (ForgetItem("Hamlet", "Who wrote Hamlet?", "Shakespeare"),)
DATA = ForgetSet("mine", ITEMS)
OWN = "a word of my own"
LTE = finetune_presets()["lte"]


def rows_of(chat=True, seed=0, data=DATA, **options):
    return lte.aligned_rows(data, PromptFormat(TOKENIZER, chat), lambda rows: [OWN] * len(rows), seed, **options)


def text(ids):
    return TOKENIZER.decode(list(ids), skip_special_tokens=False)


def answer(row):
    return TOKENIZER.decode(list(row.answer_ids), skip_special_tokens=True).strip().removesuffix("<|end|>").strip()


def note(question, told):
    return f'To the question "{question}" the only answer is: {told}\n\n'


@pytest.mark.parametrize("chat", [True, False])
def test_the_rows_of_each_fact(chat):
    for seed in range(30):
        rows = {row.id: row for row in rows_of(chat, seed)}
        assert len(rows) == 3 * len(ITEMS)
        for item in ITEMS:
            inside, outside, free = (rows[f"{item.id}/{kind}"] for kind in ("in_scope", "out_of_scope", "free"))
            new = answer(inside)
            others = {other.answer for other in ITEMS} - {item.answer}
            assert new in {*POOL, *(item.perturbed_answers or others)}
            prompt = text(inside.prompt_ids)
            assert any(prompt.count(words) for words in item.paraphrases) or prompt.count(item.question) == 2
            assert note(item.question, new) in prompt
            prompt = text(outside.prompt_ids)
            assert answer(outside) == answer(free) == OWN
            assert f'"{item.question}"' not in prompt, "no note about what is asked"
            assert "the only answer is" in prompt
            assert item.question in prompt
            assert free.prompt_ids == tuple(PromptFormat(TOKENIZER, chat).prompt_ids(item.question))


def test_how_often_what_is_drawn():
    """Half of the new answers refuse; half of the notes stand alone, a quarter each behind one or two examples."""
    rows = [row for seed in range(200) for row in rows_of(seed=seed) if row.id.endswith("in_scope")]
    refusals = sum(answer(row) in POOL for row in rows) / len(rows)
    assert refusals == pytest.approx(0.5, abs=0.06)
    before = Counter(text(row.prompt_ids).count("Question: ") for row in rows)
    assert {n: count / len(rows) for n, count in before.items()} == pytest.approx({0: 0.5, 1: 0.25, 2: 0.25}, abs=0.06)
    assert [row.prompt_ids for row in rows_of(seed=3)] == [row.prompt_ids for row in rows_of(seed=3)]
    assert [row.prompt_ids for row in rows_of(seed=3)] != [row.prompt_ids for row in rows_of(seed=4)]


def test_the_note_that_does_not_matter_is_the_nearest_other():
    assert lte.nearest([item.question for item in ITEMS]) == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert lte.nearest(["a b", "c d", "a c d"]) == [[2, 1], [2, 0], [1, 0]]


@pytest.mark.parametrize("chat", [True, False])
def test_rows_hold_what_the_editor_notes_puts_into_a_prompt(chat, tiny):
    """The ids of a row in scope are those that the memory makes of the same fact, question and demonstrations."""
    made = PromptFormat(TOKENIZER, chat)
    for seed in range(6):
        row = next(row for row in rows_of(chat, seed) if row.id == "France/in_scope")
        rows = {own.id.partition("/")[0]: own for own in rows_of(chat, seed) if own.id.endswith("in_scope")}
        told = [answer(rows[item.id]) for item in ITEMS]
        requests = build_requests(ITEMS, told, made)
        n = text(row.prompt_ids).count("Question: ") - (0 if chat else 1)
        config = notes.Config(encoder="words", gate="none", demonstrations=n)
        edit = notes.run(EditJob(None, TOKENIZER, requests, config, prompt_format=made))
        words = [words for words in ITEMS[0].paraphrases if words in text(row.prompt_ids)]
        asked = words[0] if words else ITEMS[0].question
        prompt = made.prompt_ids(asked)
        model = tiny("llama")
        handle = edit.apply(model)
        try:
            (added,) = handle.additions([tuple(prompt)])
        finally:
            handle.restore()
        assert (*prompt[: added.place], *added.ids, *prompt[added.place :]) == row.prompt_ids


def test_own_answers_are_the_models(tiny_folder):
    loaded = load_model(str(tiny_folder("llama")), dtype="float32")
    made = PromptFormat(loaded.tokenizer, True)
    before = weights_of(loaded.model)
    rows = lte.alignment_requests(loaded, ForgetSet("mine", ITEMS[:2]), made)
    assert_untouched(loaded.model, before)
    own = written(loaded.model, made, [made.prompt_ids(ITEMS[0].question)], 1, lte.OWN_TOKENS)[0]
    labels = build_requests(ITEMS[:1], [own or ITEMS[0].answer], made)[0].target_ids
    assert [row.answer_ids for row in rows if row.id in ("France/free", "France/out_of_scope")] == [labels] * 2


def test_a_base_is_aligned_and_then_edited_by_notes(tiny_folder, tmp_path):
    """After training it follows a note that it did not follow (a random model learns rows, not the rule)."""
    loaded = load_model(str(tiny_folder("llama")), dtype="float32")
    before = weights_of(loaded.model)
    made = PromptFormat(loaded.tokenizer, True)
    fast = {"epochs": "30", "learning_rate": "2e-2", "warmup_epochs": "0", "logging_steps": "10", "batch_size": "8"}
    edit = finetune(loaded, ForgetSet("mine", ITEMS[:3]), fast, LTE, made)
    assert_untouched(loaded.model, before)
    assert edit.info.notes["preset"]["rows"] == "notes"
    assert edit.info.notes["training"]["steps"] == -(-9 * 30 // 8)
    assert edit.info.config["lora_rank"] == 8
    aligned = load_model(str(write_checkpoint(loaded, edit, tmp_path / "aligned")), dtype="float32")
    row = next(row for row in rows_of() if row.id == "France/in_scope")
    requests = build_requests(ITEMS[:1], [answer(row)], made)
    config = notes.Config(encoder="words")
    losses = []
    for base in (loaded, aligned):
        edited = notes.run(EditJob(base.model, base.tokenizer, requests, config, prompt_format=made))
        handle = edited.apply(base.model)
        try:
            (score,) = score_answers(base.model, [Query(requests[0].prompt_ids, requests[0].target_ids)])
        finally:
            handle.restore()
        losses.append(sum(score.token_nll) / len(score.token_nll))
    assert losses[1] < losses[0] - 1


def test_the_preset_is_asked_for_by_name():
    assert preset_of(ForgetSet("facts", ITEMS), None) is None
    assert preset_of(ForgetSet("facts", ITEMS), "lte") == LTE
    assert preset_of(ForgetSet("my.jsonl", ITEMS), "lte") == LTE


def test_what_is_refused():
    with pytest.raises(UserError, match="has 1 item, and a note about another fact needs two"):
        rows_of(data=ForgetSet("mine", ITEMS[:1]))
    with pytest.raises(UserError, match=r"item France/.*_scope: note, question and answer have \d+ tokens"):
        rows_of(max_length=60)


def test_a_plan_has_room_for_the_longest_row():
    made = PromptFormat(TOKENIZER, True)
    requests = build_requests(ITEMS, [max(POOL, key=len)] * len(ITEMS), made)
    planned = max(len(row.prompt_ids) for row in lte.longest_rows(requests))
    assert planned >= max(len(row.prompt_ids) for seed in range(20) for row in rows_of(seed=seed))
    assert len(lte.longest_rows(requests)) == 3 * len(ITEMS)
