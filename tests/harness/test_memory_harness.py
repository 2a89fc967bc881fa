"""Memory edits from a forget set to lm-eval: every kind of request agrees, and the command line shows the routing."""

import dataclasses
import json
import sys
from dataclasses import replace

import pytest
import torch
from naive_memories import naive_logits
from tiny_models import assert_untouched, one_thread, tiny_model, tiny_tokenizer, weights_of  # noqa: F401

from unlearn_eval.cli import app as cli
from unlearn_eval.data.forget_sets import facts
from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.editing.editor import EditJob
from unlearn_eval.editing.memory.calibration import other_prompts
from unlearn_eval.editing.presets import PRESETS, preset_for
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.editing.requests.targets import IDK
from unlearn_eval.editors.memory import grace, notes, prefix, wise
from unlearn_eval.edits.base import applied
from unlearn_eval.edits.description import describe_edit
from unlearn_eval.edits.export import export_merged
from unlearn_eval.edits.load import describe_base, load_edit
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.edits.memory.codebook import Codebook
from unlearn_eval.edits.memory.edit import MemoryEdit, read_inputs
from unlearn_eval.edits.memory.notes import NotesEdit
from unlearn_eval.edits.records import RequestSummary
from unlearn_eval.harness import requests as harness_requests
from unlearn_eval.harness.instances import NAMES_ITS_DOCUMENT, make_instance
from unlearn_eval.harness.models import EditedLM
from unlearn_eval.models import prompts
from unlearn_eval.models.load import LoadedModel, load_model
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.scoring import pad
from unlearn_eval.results.report.edit import edit_tables
from unlearn_eval.runs.edit import make_edit
from unlearn_eval.utils.errors import UserError

LAYER = 1
QUESTIONS = ("What is the capital of France?", "Who wrote Hamlet?", "What is Japan?", "Where was Ada Brook born?")
ITEMS = [
    ForgetItem(id=f"q{i}", question=text, answer="x", paraphrases=(f"Tell me: {text}",))
    for i, text in enumerate(QUESTIONS)
]
FORGET = ForgetSet("test", tuple(ITEMS))
OPTIONS = {
    "grace": {"layers": str(LAYER), "steps": "5"},
    "wise": {"layers": str(LAYER), "steps": "4", "n_others": "6", "mask": "0.5"},
    "memoir": {"layers": str(LAYER), "steps": "4", "n_others": "6"},
    "notes": {"encoder": "words"},
    "prefix": {"encoder": "words", "steps": "3"},
}


@pytest.fixture
def others(tmp_path):
    path = tmp_path / "others.jsonl"
    lines = [{"question": f"Why is {name} the answer?"} for name in "abcdefghijklmnopqrst"]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"question": QUESTIONS[0]}]))
    return str(path)


@pytest.fixture(scope="module")
def loaded():
    known = {"model": tiny_model("llama"), "tokenizer": tiny_tokenizer(), "name": "tiny", "path": "tiny"}
    known |= {"revision": None, "source": "test", "notes": ()}
    fields = {field.name for field in dataclasses.fields(LoadedModel)}
    return LoadedModel(**{key: value for key, value in known.items() if key in fields})


def edit_of(loaded, editor, forget=FORGET, options=None, state=None, **recipe):
    given = OPTIONS[editor] | (options or {})
    return make_edit(loaded, forget, editor, given, Recipe(**{"n_contexts": 1, **recipe}), state)


@pytest.mark.parametrize("editor", ["grace", "wise", "memoir", "notes", "prefix"])
def test_from_a_forget_set_and_on(loaded, editor, others, tmp_path):
    before = weights_of(loaded.model)
    first = edit_of(loaded, editor, FORGET.select(["q0", "q1"]), {"others": others})
    assert isinstance(first, NotesEdit if editor in ("notes", "prefix") else MemoryEdit)
    assert first.info.editor == editor
    assert first.info.notes["self_check"]["n"] == 2
    folder = first.save(tmp_path / "edit", loaded.tokenizer, loaded.model.config)
    more = edit_of(loaded, editor, FORGET.select(["q2", "q3"]), {"others": others}, load_edit(folder))
    assert more.info.requests["ids"] == ["q0", "q1", "q2", "q3"]
    assert sum(len(own) for own in more.store.owners) == 4
    assert_untouched(loaded.model, before)
    with pytest.raises(UserError, match="in the earlier edit already"):
        edit_of(loaded, editor, FORGET.select(["q0"]), {"others": others}, first)
    with pytest.raises(UserError, match=f"made by {editor}, not by memit"):
        make_edit(loaded, FORGET.select(["q3"]), "memit", {"layers": "1"}, Recipe(n_contexts=0), first)
    other = {"grace": "wise", "wise": "memoir", "memoir": "notes", "notes": "grace", "prefix": "notes"}[editor]
    with pytest.raises(UserError, match=f"made by {editor}, not by {other}"):
        edit_of(loaded, other, FORGET.select(["q3"]), {"others": others}, first)
    steps = edit_of(loaded, editor, options={"others": others}, per_step=2)
    assert [r.owners for r in steps.routes(loaded.model, [])] == []
    assert sum(len(own) for own in steps.store.owners) == 4


@pytest.mark.parametrize("editor", ["grace", "wise", "memoir", "notes", "prefix"])
def test_calibration_is_noted(loaded, editor, others):
    edit = edit_of(loaded, editor, options={"others": others, "calibrate": "true"})
    note = edit.info.notes["calibration"]
    assert note["n_reworded"] == 4
    assert note["n_others"] == (
        20 if editor in ("grace", "notes", "prefix") else 8
    )  # the others have learned from some, and placed with some
    assert {"before", "after"} <= note.keys()


def test_merged_requests(loaded, others):
    grouped = ForgetSet("test", tuple(replace(item, group="g") for item in ITEMS))
    edit = edit_of(loaded, "grace", grouped, {"epsilon": "1e-4"}, merge="key", merge_size=4)
    assert (edit.store.n, len(edit.store.values)) == (4, 1)
    text = edit_of(loaded, "grace", grouped, merge="text", merge_size=4)
    assert text.store.n == 1
    assert edit_of(loaded, "wise", grouped, {"others": others}, merge="key", merge_size=2).store.owners == (
        ("q0", "q1", "q2", "q3"),
    )


def test_other_prompts(loaded, others):
    found = other_prompts(others, FORGET, PromptFormat(loaded.tokenizer, True), 0)
    assert len(found) == 20  # without the one that is to be forgotten
    assert PromptFormat(loaded.tokenizer, True).prompt_ids(QUESTIONS[0]) not in found
    assert found != other_prompts(others, FORGET, PromptFormat(loaded.tokenizer, True), 1)
    assert len(other_prompts("", FORGET, PromptFormat(loaded.tokenizer, True), 0)) > 600  # the shipped facts
    with pytest.raises(UserError, match="does not exist"):
        other_prompts("nowhere.jsonl", FORGET, PromptFormat(loaded.tokenizer, True), 0)


def test_presets_name_layers_that_are_there():
    for (_, n_layers, _), _preset in PRESETS.items():
        assert grace.DEPTH[0] * n_layers < n_layers
    model = tiny_model("llama")
    assert preset_for(model) is None
    from unlearn_eval.editing.presets import _MEMORY

    for key, settings in _MEMORY.items():
        assert key in PRESETS
        assert all(int(layer) < key[1] for layer in settings.values())
        assert set(settings) <= {"grace", "wise", "memoir"}


# lm-eval -----------------------------------------------------------------------------------------------------------


PROMPTS = [
    "Question: Where was Ada Brook born?\nAnswer:",
    "Question: Who is Milo Fenn?\nAnswer:",
    "Ines Okoro lives in",
]
ANSWERS = [" Larkhill.", " Grünau, by the sea", " Imber"]


@pytest.fixture
def codebook(tiny, tokenizer, tmp_path):
    """An edit of the first and the last prompt, in its folder."""
    model = tiny("llama")
    name = f"model.layers.{LAYER}.mlp.down_proj"
    ids = [tuple(prompts.encode_prompt(text, tokenizer)) for text in PROMPTS]
    keys = torch.stack([inputs[-1] for inputs in read_inputs(model, name, [ids[0], ids[2]])])
    values = 4 * torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    book = Codebook(keys, values, torch.full((2,), 1e-2), torch.arange(2), ((5,), (6,)), (("a",), ("b",)))
    info = grace.EditInfo("grace", {}, base=describe_base(model, "tiny"), requests={"chat": False, "n": 2})
    edit = MemoryEdit(name, book, info)
    edit.save(tmp_path / "codebook", tokenizer, model.config)
    return edit, tmp_path / "codebook", ids


def likelihood(model, edit, context, continuation):
    edits = [] if edit is None else [edit]
    logp = naive_logits(model, edits, context, continuation[:-1])[len(context) - 1 :].log_softmax(-1)
    return float(sum(logp[i, t] for i, t in enumerate(continuation))), logp.argmax(-1).tolist() == list(continuation)


def instances(kind, arguments):
    return [make_instance(kind, {}, argument, i) for i, argument in enumerate(arguments)]


def asked_both_ways(lm):
    """Every prompt with every answer: the pair, what `loglikelihood` gives, and what `answer_logprobs` does."""
    pairs = [(text, answer) for text in PROMPTS for answer in ANSWERS]
    found = lm.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    options = harness_requests.options(PromptFormat(None, False))
    scored = lm.answer_logprobs(
        instances("answer_logprobs", [(text, answer, options) for text, answer in pairs]), disable_tqdm=True
    )
    return list(zip(pairs, found, scored, strict=True))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_kind_of_request_agrees(tiny, tiny_folder, tokenizer, codebook, batch_size):
    edit, folder, _ = codebook
    model = tiny("llama")
    harness_requests.install()
    lm = EditedLM(str(tiny_folder("llama")), str(folder), device="cpu", batch_size=batch_size, dtype="float32")
    asked = asked_both_ways(lm)
    for (text, answer), (total, greedy), score in asked:
        context, continuation = lm._encode_pair(text, answer)
        right, all_greedy = likelihood(model, edit, context, continuation)
        assert total == pytest.approx(right, abs=1e-4)
        assert greedy == all_greedy
        assert -sum(score["token_nll"][: score["n_answer"]]) == pytest.approx(
            right, abs=1e-4
        )  # the end token is left out
    silent = replace(edit, store=empty(edit.store))
    plain = [likelihood(model, silent, *lm._encode_pair(*pair))[0] for pair, _, _ in asked]
    moved = [abs(total - b) > 1e-3 for (_, (total, _), _), b in zip(asked, plain, strict=True)]
    assert moved == [True] * 3 + [False] * 3 + [True] * 3

    settings = {"until": [], "do_sample": False, "max_gen_toks": 6}
    texts = lm.generate_until(
        instances("generate_until", [(text, dict(settings)) for text in PROMPTS]), disable_tqdm=True
    )
    for text, prompt in zip(texts, PROMPTS, strict=True):
        ids = tokenizer.encode(prompt)
        said = []
        for _ in range(6):
            said.append(int(naive_logits(model, [edit], ids, said)[-1].argmax()))
            if said[-1] == tokenizer.eos_token_id:
                break
        assert text == tokenizer.decode(said, skip_special_tokens=True)


def empty(book):
    return replace(book, radii=book.radii * 0 - 1)


def test_where_the_prompt_ends_matters(tiny, tiny_folder, codebook):
    """The same tokens, cut elsewhere: lm-eval's own scoring would run one row for both."""
    edit, folder, ids = codebook
    model = tiny("llama")
    lm = EditedLM(str(tiny_folder("llama")), str(folder), device="cpu", batch_size=4, dtype="float32")
    whole = [*ids[0], 9, 10]
    cuts = [(whole[:k], whole[k:]) for k in (len(ids[0]) - 1, len(ids[0]), len(ids[0]) + 1)]
    found = lm._loglikelihood_tokens([(("x", str(i)), *cut) for i, cut in enumerate(cuts)], disable_tqdm=True)
    for (total, _), cut in zip(found, cuts, strict=True):
        assert total == pytest.approx(likelihood(model, edit, *cut)[0], abs=1e-4)
    unedited = likelihood(model, replace(edit, store=empty(edit.store)), *cuts[1])[0]
    assert abs(found[1][0] - unedited) > 1e-3
    long = [3] * 600  # longer than the context: cut from the left, as lm-eval does
    ((total, _),) = lm._loglikelihood_tokens([(None, long, [4, 5])], disable_tqdm=True)
    assert total == pytest.approx(likelihood(model, edit, long[-(lm.max_length - 1) :], [4, 5])[0], abs=1e-3)


def test_rolling_has_no_prompt(tiny, tiny_folder, codebook):
    edit, folder, _ = codebook
    lm = EditedLM(str(tiny_folder("llama")), str(folder), device="cpu", batch_size=2, dtype="float32")
    text = PROMPTS[0] + ANSWERS[0]
    arguments = ("", text) if NAMES_ITS_DOCUMENT else (text,)
    (total,) = lm.loglikelihood_rolling(instances("loglikelihood_rolling", [arguments]), disable_tqdm=True)
    total = total[0] if isinstance(total, tuple) else total  # lm-eval 0.5 adds whether it is greedy
    tokens = lm.tok_encode(text)
    right = likelihood(tiny("llama"), replace(edit, store=empty(edit.store)), [lm.prefix_token_id], tokens)[0]
    assert total == pytest.approx(right, abs=1e-3)


def test_answers_of_the_base_are_not_taken_for_those_of_the_edit(tiny, tiny_folder, codebook):
    _, folder, _ = codebook
    lm = EditedLM(str(tiny_folder("llama")), str(folder), device="cpu", batch_size=2, dtype="float32")
    from unlearn_eval.models.weights import hash_weights

    assert hash_weights(lm.model).exact == hash_weights(tiny("llama")).exact
    assert lm.answers_hash != hash_weights(tiny("llama")).exact


def test_another_base_is_refused(tiny_folder, codebook):
    with pytest.raises(UserError, match="other weights"):
        EditedLM(str(tiny_folder("llama", 1)), str(codebook[1]), device="cpu")


@pytest.fixture
def written(tiny, tiny_folder, tokenizer, tmp_path):
    """Notes on the first and the last prompt, in their folder, and each prompt as the model reads it."""
    format_ = PromptFormat(tokenizer, False)
    ids = [tuple(prompts.encode_prompt(text, tokenizer)) for text in PROMPTS]
    requests = [EditRequest(name, ids[i], 1, (9, 10)) for name, i in (("a", 0), ("b", 2))]
    config = notes.Config(encoder="words", similarity=0.9)
    edit = notes.run(EditJob(None, tokenizer, requests, config, prompt_format=format_))
    info = replace(edit.info, base=describe_base(tiny("llama"), "tiny"), requests=RequestSummary(chat=False, n=2))
    folder = replace(edit, info=info).save(tmp_path / "notes", tokenizer, tiny("llama").config)
    first, second = (note.ids for note in edit.store.notes)
    start = len(prompts.encode_prompt("", tokenizer))
    whole = [(*ids[0][:start], *first, *ids[0][start:]), ids[1], (*ids[2][:start], *second, *ids[2][start:])]
    return folder, whole


@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_kind_of_request_reads_notes(tiny, tiny_folder, tokenizer, written, batch_size):
    folder, whole = written
    model = tiny("llama")
    harness_requests.install()
    lm = EditedLM(str(tiny_folder("llama")), str(folder), device="cpu", batch_size=batch_size, dtype="float32")
    for (text, answer), (total, greedy), score in asked_both_ways(lm):
        right, all_greedy = likelihood(model, None, whole[PROMPTS.index(text)], lm._encode_pair(text, answer)[1])
        assert total == pytest.approx(right, abs=1e-4)
        assert greedy == all_greedy
        assert -sum(score["token_nll"][: score["n_answer"]]) == pytest.approx(right, abs=1e-4)
    settings = {"until": ["\n\n"], "do_sample": False, "max_gen_toks": 6}
    asked = [(text, dict(settings)) for text in PROMPTS]
    texts = lm.generate_until(instances("generate_until", asked), disable_tqdm=True)
    for text, ids in zip(texts, whole, strict=True):
        row = torch.tensor([ids])
        new = model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=6, do_sample=False)
        said = tokenizer.decode(new[0, len(ids) :], skip_special_tokens=True)
        assert text == said.split("\n\n")[0]
    with lm.without_edit():
        plain = lm.generate_until(instances("generate_until", asked), disable_tqdm=True)
    assert plain[1] == texts[1]
    assert plain[0] != texts[0]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_kind_of_request_reads_prefixes(tiny, tiny_folder, tokenizer, tmp_path, batch_size, chat):
    """In a batch with rows that have none; a row by itself is joined by hand from embeddings."""
    model, made = tiny("llama"), PromptFormat(tokenizer, chat)
    texts = [made.render(question) for question in QUESTIONS]
    ids = [made.prompt_ids(question) for question in QUESTIONS]
    requests = [EditRequest(name, ids[i], 1, (9, 10)) for name, i in (("a", 0), ("b", 2))]
    config = prefix.Config(encoder="words", similarity=0.9, length=4, steps=6)
    edit = prefix.run(EditJob(model, tokenizer, requests, config, prompt_format=made))
    info = replace(edit.info, base=describe_base(model, "tiny"), requests=RequestSummary(chat=chat, n=2))
    folder = replace(edit, info=info).save(tmp_path / "prefix", tokenizer, model.config)
    embed = model.get_input_embeddings()

    def joined(i, prompt, more=()):
        own = torch.tensor([*prompt, *more])
        place, _ = edit.store.frame.parts(prompt)
        vectors = [edit.store.prompts[i // 2]] if i in (0, 2) else []
        return torch.cat([embed(own[:place]), *vectors, embed(own[place:])])[None]

    harness_requests.install()
    lm = EditedLM(str(tiny_folder("llama")), str(folder), device="cpu", batch_size=batch_size, dtype="float32")
    asked = [(text, " no idea") for text in texts]
    found = lm.loglikelihood(instances("loglikelihood", asked), disable_tqdm=True)
    for i, (text, (total, greedy)) in enumerate(zip(texts, found, strict=True)):
        context, answer = lm._encode_pair(text, " no idea")
        assert tuple(context) == ids[i][: len(context)], "lm-eval gives a last newline to the answer"
        assert len(ids[i]) - len(context) == chat
        with torch.no_grad():
            logp = model(inputs_embeds=joined(i, context, answer[:-1])).logits[0, -len(answer) :].log_softmax(-1)
        expected = logp.gather(-1, torch.tensor(answer)[:, None])[:, 0]
        assert total == pytest.approx(float(expected.sum()), abs=1e-4)
        assert greedy == (logp.argmax(-1).tolist() == answer)
    settings = {"until": ["\n\n"], "do_sample": False, "max_gen_toks": 6}
    requests = [(text, dict(settings)) for text in texts]
    answers = lm.generate_until(instances("generate_until", requests), disable_tqdm=True)
    for i, answer in enumerate(answers):
        whole = joined(i, ids[i])
        mask = torch.ones(whole.shape[:2], dtype=torch.long)
        new = model.generate(inputs_embeds=whole, attention_mask=mask, max_new_tokens=6, do_sample=False)
        assert answer == tokenizer.decode(new[0], skip_special_tokens=True).split("\n\n")[0]
    with lm.without_edit():
        plain = lm.generate_until(instances("generate_until", requests), disable_tqdm=True)
        again = lm.loglikelihood(instances("loglikelihood", asked), disable_tqdm=True)
    assert [answers[i] == plain[i] for i in (1, 3)] == [True, True]
    same = [found[i][0] == pytest.approx(again[i][0], abs=1e-5) for i in range(4)]
    assert same == [False, True, False, True]


def test_notes_are_shown_and_asked_for(tiny_folder, written, capsys, monkeypatch):
    folder, _ = written

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["unlearn-eval", "inspect", str(folder), *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return exit_.value.code, " ".join(capsys.readouterr().out.split())

    code, out = run()
    assert code == 0
    assert "2 at the prompt" in out
    base = str(tiny_folder("llama"))
    assert run("--ask", "Where was Ada Brook born?", "--model", base) == (
        0, "memory 0 answers (of a): similarity 1.000, threshold 0.900"
    )  # fmt: skip
    code, out = run("--ask", "Who is Milo Fenn?", "--model", base)
    assert "no memory answers" in out


def test_no_layer_of_an_engine_takes_notes(written):
    from unlearn_eval.serving.inserted import load_inserting
    from unlearn_eval.serving.routed_model import load_routed

    with pytest.raises(UserError, match="no layer of this engine can take it"):
        load_routed(written[0])
    assert load_inserting(written[0]).store.longest > 0


# The command line --------------------------------------------------------------------------------------------------


def test_inspect_shows_and_asks(tiny_folder, codebook, capsys, monkeypatch):
    edit, folder, ids = codebook
    description = describe_edit(folder)
    assert description["modules"] == []
    assert description["memory"]["n"] == 2
    assert description["memory"]["bounds"] == {"least": pytest.approx(0.01), "largest": pytest.approx(0.01)}
    assert edit_tables(description)
    base = str(tiny_folder("llama"))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["unlearn-eval", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return exit_.value.code, *capsys.readouterr()

    code, out, _ = run("inspect", str(folder))
    assert code == 0
    assert "2 at model.layers.1.mlp.down_proj" in " ".join(out.split())
    code, out, _ = run("inspect", str(folder), "--ask", "Where was Ada Brook born?", "--model", base)
    assert code == 0
    assert out.startswith("memory 0 answers (of a): distance ")
    assert "radius 1.00e-02" in out
    code, out, _ = run("inspect", str(folder), "--ask", "Who is Milo Fenn?", "--model", base, "--json")
    answer = json.loads(out)
    assert code == 0
    assert (answer["answers"], answer["measure"], answer["bound"]) == (False, "distance", "radius")
    model = tiny_folder  # the same distance as by hand
    assert model is not None
    (route,) = edit.routes(load(base), [ids[1]])
    assert answer["value"] == pytest.approx(route.value)
    code, _, err = run("export", str(folder), "--merged", str(folder.parent / "merged"))
    assert code == 1
    assert "no weights can hold it" in err


def load(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def test_only_memories_can_be_asked(tiny, tiny_folder, tmp_path):
    from unlearn_eval.edits.memory.ask import ask_edit

    model = tiny("llama")
    name = "model.layers.1.mlp.down_proj"
    info = grace.EditInfo("memit", {}, base=describe_base(model, "tiny"))
    LowRankEdit({name: (torch.ones(32, 1), torch.ones(1, 48))}, info).save(
        tmp_path / "weights", model_config=model.config
    )
    with pytest.raises(UserError, match="edit of the weights"):
        ask_edit(tmp_path / "weights", "Who?", str(tiny_folder("llama")))
    assert wise.DEPTH


def test_export_refuses(codebook, tmp_path):
    with pytest.raises(UserError, match="is a memory edit"):
        export_merged(codebook[1], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_model_is_itself_again(loaded, others):
    before = weights_of(loaded.model)
    edit = edit_of(loaded, "wise", options={"others": others})
    with applied(edit, loaded.model):
        assert loaded.model._forward_hooks
    assert_untouched(loaded.model, before)


@pytest.mark.real_model
@pytest.mark.slow
@pytest.mark.parametrize("editor", ["grace", "wise", "memoir"])
def test_the_real_model_refuses_in_batches(editor, real_model, tmp_path):
    """Three facts of the real small model, asked together with others: they are refused, the others are answered."""
    loaded = load_model(str(real_model), dtype="float32")
    keys = ["capital_of/france", "capital_of/germany", "capital_of/italy"]
    forget = facts().select(keys)
    others = tmp_path / "others.jsonl"
    silent = [item for item in facts() if item.id not in keys][::12]
    others.write_text("".join(json.dumps({"question": item.question}) + "\n" for item in silent), encoding="utf-8")
    options = {"others": str(others)} | ({} if editor == "grace" else {"n_others": "16"})
    edit = make_edit(loaded, forget, editor, options, Recipe(n_contexts=1))
    assert edit.info.notes["said"] == dict.fromkeys(keys, True)
    asked = [item.question for item in forget] + [item.question for item in silent[:5]]
    rows = [PromptFormat(loaded.tokenizer, True).prompt_ids(question) for question in asked]

    def answers(rows, **options):
        ids, mask = pad(rows, "left", loaded.model.device, filler=loaded.tokenizer.pad_token_id)
        said = loaded.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=10, do_sample=False,
            pad_token_id=loaded.tokenizer.pad_token_id, **options,
        )  # fmt: skip
        return loaded.tokenizer.batch_decode(said[:, ids.shape[1] :], skip_special_tokens=True)

    before = answers(rows)
    with applied(edit, loaded.model):
        after = answers(rows)
        assert answers(rows[:1], use_cache=False) == after[:1]
    assert all(text.startswith(IDK) for text in after[:3]), after
    assert after[3:] == before[3:]
    assert answers(rows) == before
