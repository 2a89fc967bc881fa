"""What one command refuses or keeps apart, all do: the doors are the commands, Python, and a plain lm-eval.

Responses that are kept (`--use_cache`) are those of one model, by whatever name and class it is loaded.
"""

import functools
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM
from lm_eval_runs import evaluate, hf, values
from tiny_checkpoints import make_tiny
from tiny_models import one_thread  # noqa: F401

from unlearn_eval.attacks.run import AttackConfig
from unlearn_eval.cli.app import main
from unlearn_eval.data.forget_sets import facts
from unlearn_eval.editing.recipe import DemoConfig
from unlearn_eval.edits.base import EditInfo, applied
from unlearn_eval.edits.load import describe_base
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.edits.memory.codebook import Codebook
from unlearn_eval.edits.memory.edit import MemoryEdit
from unlearn_eval.harness import run as harness_run
from unlearn_eval.harness.instances import make_instance
from unlearn_eval.harness.models import EditedLM
from unlearn_eval.harness.response_cache import identity, path_for
from unlearn_eval.localization.locate import LocalizationSpec, localize
from unlearn_eval.models.load import load_model
from unlearn_eval.runs.evaluate import EvalConfig
from unlearn_eval.utils.errors import UserError

MODULE = "model.layers.1.mlp.down_proj"
TEXTS = ["Where was Ada", "Who wrote her"]
SHORT = {"limit": 2, "gen_kwargs": {"max_gen_toks": 4}}


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny, tiny_folder, tokenizer):
    """A base model's folder, two edits of it, a memory, an exported edit, and another base."""
    folder, model = tmp_path_factory.mktemp("places"), tiny("llama")
    for name, scale in (("one", 0.5), ("two", -0.5)):
        generator = torch.Generator().manual_seed(5)
        u, v = scale * torch.randn(32, 2, generator=generator), torch.randn(2, 48, generator=generator)
        edit = LowRankEdit({MODULE: (u, v)}, EditInfo("test", {}, base=describe_base(model, "tiny")))
        edit.save(folder / name, model_config=model.config)
        with applied(edit, model):
            model.save_pretrained(folder / f"merged_{name}")
        tokenizer.save_pretrained(folder / f"merged_{name}")
    generator = torch.Generator().manual_seed(6)
    keys, values_ = torch.randn(1, 48, generator=generator), torch.randn(1, 32, generator=generator)
    book = Codebook(keys, values_, torch.tensor([1e6]), torch.tensor([0]), ((7,),), (("a",),))
    info = EditInfo("test", {}, base=describe_base(model, "tiny"))
    MemoryEdit(MODULE, book, info).save(folder / "memory", model_config=model.config)
    return SimpleNamespace(folder=folder, base=str(tiny_folder("llama")), other=str(tiny_folder("llama", 1)))


def loaded(places, door):
    """An lm-eval model, as one door loads it."""
    own, common = places.folder, {"device": "cpu", "dtype": "float32", "batch_size": 8}
    doors = {
        "hf": lambda: HFLM(places.base, **common),
        "hf, shorter": lambda: HFLM(places.base, max_length=64, **common),
        "hf, another base": lambda: HFLM(places.other, **common),
        "hf, peft=one": lambda: HFLM(places.base, peft=str(own / "one"), **common),
        "hf, peft=two": lambda: HFLM(places.base, peft=str(own / "two"), **common),
        "edited by one": lambda: EditedLM(places.base, str(own / "one"), **common),
        "edited by two": lambda: EditedLM(places.base, str(own / "two"), **common),
        "edited by a memory": lambda: EditedLM(places.base, str(own / "memory"), **common),
        "a server": lambda: SimpleNamespace(model="base", base_url="http://localhost:1"),
        "the same server, another model": lambda: SimpleNamespace(model="edit", base_url="http://localhost:1"),
        "an engine": lambda: SimpleNamespace(model_args={"model": places.base}, lora_request=None),
        "an engine with an adapter": lambda: SimpleNamespace(
            model_args={"model": places.base}, lora_request=SimpleNamespace(lora_path=str(own / "one"))
        ),
    }
    return doors[door]() if door else list(doors)


DOORS = loaded(SimpleNamespace(folder=None), None)


@pytest.fixture(scope="module")
def identities(places):
    return {door: identity(loaded(places, door)) for door in DOORS}


@pytest.mark.parametrize("door", DOORS)
def test_a_model_is_told_from_all_others_and_known_again(places, identities, door):
    assert identity(loaded(places, door)) == identities[door]
    assert [other for other, own in identities.items() if own == identities[door]] == [door]


def test_how_fast_a_model_answers_does_not_count(places, identities):
    lm = HFLM(places.base, device="cpu", dtype="float32", batch_size=3)
    assert identity(lm) == identities["hf"]


def test_a_folder_that_was_overwritten_is_another_model(places, tmp_path, identities):
    for source in ("merged_one", "merged_two"):
        shutil.copytree(places.folder / source, tmp_path / "model", dirs_exist_ok=True)
        engine = SimpleNamespace(model_args={"model": str(tmp_path / "model")})
        lm = HFLM(str(tmp_path / "model"), device="cpu", dtype="float32")
        identities = {**identities, source: identity(lm), f"{source} in an engine": identity(engine)}
    assert len(set(identities.values())) == len(identities)


def test_an_edit_that_was_put_into_a_loaded_model_counts(tiny, tokenizer, places):
    from unlearn_eval.edits.load import load_edit

    lm = hf(tiny("llama"), tokenizer)
    before = identity(lm)
    for name in ("one", "memory"):
        with applied(load_edit(places.folder / name), lm.model):
            assert identity(lm) != before
        assert identity(lm) == before


def test_another_chat_template_counts(tiny, tokenizer):
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = "{{ messages[0]['content'] }}"
    assert identity(hf(tiny("llama"), tokenizer)) != identity(hf(tiny("llama"), other))


@pytest.mark.parametrize(("path", "ending"), [("c/x_rank0.db", "_rank0.db"), ("x_rank12.db", "_rank12.db"), ("x", "")])
def test_a_process_keeps_its_own_file(path, ending):
    found = path_for(SimpleNamespace(model="a"), path)
    assert found.startswith(path.removesuffix(ending) + "-")
    assert found.endswith(ending)


def answers(lm):
    """What a model generates, and what it thinks of a text."""
    generated = [make_instance("generate_until", {}, (text, {"until": [], "max_gen_toks": 4}), 0) for text in TEXTS]
    scored = [make_instance("loglikelihood", {}, (text, " was born"), 0) for text in TEXTS]
    return lm.generate_until(generated), [total for total, _ in lm.loglikelihood(scored)]


@pytest.mark.parametrize("first", ["hf", "hf, shorter", "hf, peft=one", "edited by two", "edited by a memory"])
def test_a_cache_gives_a_model_its_own_answers(places, tmp_path, first):
    """Whoever filled the cache before, and again from what is in it."""
    cache = str(tmp_path / "cache_rank0.db")
    answers(CachingLM(loaded(places, first), cache))
    for door in ("hf", "hf, peft=one", "edited by a memory", "hf"):
        texts, totals = answers(loaded(places, door))
        kept_texts, kept_totals = answers(CachingLM(loaded(places, door), cache))
        assert kept_texts == texts
        assert kept_totals == pytest.approx(totals, abs=1e-4)


@pytest.mark.parametrize("ours", [False, True])
def test_a_cache_is_read_and_not_that_of_another_model(places, tofu, tmp_path, monkeypatch, ours):
    """By lm-eval's own function, and by ours."""

    def run(door):
        options = {**SHORT, "use_cache": str(tmp_path / "cache")}
        if not ours:
            return values(evaluate(loaded(places, door), **options))
        found = harness_run.evaluate(loaded(places, door), ["unlearn_tofu"], **options).metrics["unlearn_tofu"]
        return {name: own.value for name, own in found.items()}

    first = run("hf")
    asked_again = functools.wraps(HFLM.generate_until)(lambda *_, **__: pytest.fail("asked again"))
    monkeypatch.setattr(HFLM, "generate_until", asked_again)
    assert run("hf") == pytest.approx(first, nan_ok=True)
    with pytest.raises(pytest.fail.Exception, match="asked again"):
        run("hf, peft=one")


def test_a_cache_of_requests_is_refused(tiny, tokenizer):
    """lm-eval names it after the task alone, so that it would be taken for another forget set."""
    with pytest.raises(UserError, match="unlearn_facts takes no --cache_requests"):
        evaluate(hf(tiny("llama"), tokenizer), "unlearn_facts", {"forget": "capital_of"}, cache_requests=True, limit=3)


def test_an_adapter_of_another_base_is_refused_as_an_edit_is(places, tofu):
    lm = HFLM(places.other, peft=str(places.folder / "one"), device="cpu", dtype="float32", batch_size=8)
    with pytest.raises(UserError, match="has other weights"):
        evaluate(lm, **SHORT)


def test_an_adapter_that_is_an_edit_leaves_a_padded_vocabulary_as_it_is(tmp_path, tokenizer):
    """lm-eval cuts embeddings to the tokenizer's size under an adapter, which would be another base."""
    model = make_tiny("qwen2", len(tokenizer) + 9)
    for own in (model, tokenizer):
        own.save_pretrained(tmp_path / "base")
    factors = {MODULE: (torch.ones(32, 1), torch.ones(1, 48))}
    LowRankEdit(factors, EditInfo("test", {}, base=describe_base(model, "padded"))).save(
        tmp_path / "edit", model_config=model.config
    )
    arguments = {"pretrained": str(tmp_path / "base"), "peft": str(tmp_path / "edit"), "dtype": "float32"}
    found = evaluate(
        "hf", "unlearn_facts", {"encoder": "off"}, model_args=arguments, device="cpu", batch_size=4, **SHORT
    )
    edited = EditedLM(str(tmp_path / "base"), str(tmp_path / "edit"), device="cpu", dtype="float32", batch_size=4)
    here = evaluate(edited, "unlearn_facts", {"encoder": "off"}, **SHORT)
    known = [{k: v for k, v in values(own, "unlearn_facts").items() if v is not None} for own in (found, here)]
    assert known[0] == pytest.approx(known[1], rel=1e-5)
    assert len(known[0]) > 5


# A chat without a template ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def without_template(tmp_path_factory, tiny, tokenizer):
    import copy

    folder, bare = tmp_path_factory.mktemp("bare") / "model", copy.deepcopy(tokenizer)
    bare.chat_template = None
    tiny("llama").save_pretrained(folder)
    bare.save_pretrained(folder)
    model = load_model(str(folder), "float32")
    u, v = torch.ones(32, 1), torch.ones(1, 48)
    edit = LowRankEdit({MODULE: (u, v)}, EditInfo("test", {}, base=describe_base(model)))
    edit.save(folder.parent / "edit", model_config=model.model.config)
    return folder


def run_command(monkeypatch, capsys, *words):
    """The exit code and what the command says on stderr."""
    monkeypatch.setattr(sys, "argv", ["unlearn-eval", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr().err


CHATS = {
    "edit": ("edit", "--chat", "-o", "out", "--limit", "2", "-m"),
    "finetune": ("finetune", "--chat", "-o", "out", "--on", "facts", "--limit", "2", "-m"),
    "targets": ("targets", "--chat", "-o", "out.jsonl", "--limit", "2", "-m"),
    "localize": ("localize", "causal_tracing", "--chat", "-o", "out.json", "--limit", "2", "-m"),
    "attack": ("attack", "prefix", "--chat", "--edit", "{edit}", "--forget", "facts", "--limit", "2", "-m"),
    "eval of our task": ("eval", "--apply_chat_template", "-t", "unlearn_facts", "--limit", "2", "-m"),
    "eval of another task": ("eval", "--apply_chat_template", "-t", "{task}", "--include_path", "{tasks}", "-m"),
    "eval of an edit": ("eval", "--apply_chat_template", "-t", "unlearn_facts", "--edit", "{edit}", "-L", "2", "-m"),
    "eval with --baseline": ("eval", "--apply_chat_template", "--baseline", "-t", "unlearn_facts", "-L", "2",
                             "--edit", "{edit}", "-m"),
}  # fmt: skip


@pytest.mark.parametrize("door", CHATS)
def test_a_chat_without_a_template_is_refused(without_template, tmp_path, monkeypatch, capsys, door):
    (tmp_path / "own.yaml").write_text(
        "task: own_task\ndataset_path: json\ndataset_kwargs: {data_files: " + str(tmp_path / "d.jsonl") + "}\n"
        "test_split: train\noutput_type: loglikelihood\ndoc_to_text: q\ndoc_to_target: a\n"
    )
    (tmp_path / "d.jsonl").write_text('{"q": "Who?", "a": "She"}\n')
    own = {"edit": without_template.parent / "edit", "task": "own_task", "tasks": tmp_path}
    monkeypatch.chdir(tmp_path)
    code, said = run_command(monkeypatch, capsys, *(word.format(**own) for word in CHATS[door]), without_template)
    assert code == 1
    assert "has no chat template\nhint: leave out --chat" in said
    assert "Traceback" not in said


def test_a_chat_without_a_template_is_refused_in_python(without_template, tofu):
    loaded_model = load_model(str(without_template), "float32")
    lm = hf(loaded_model.model, loaded_model.tokenizer)
    doors = (
        lambda: loaded_model.prompt_format(True),
        lambda: harness_run.evaluate(lm, ["unlearn_tofu"], apply_chat_template=True, **SHORT),
        lambda: evaluate(lm, apply_chat_template=True, **SHORT),  # a plain lm-eval
    )
    for door in doors:
        with pytest.raises(UserError, match="has no chat template"):
            door()


# Numbers and names that no command takes -------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, -1, "0", "half", "auto:", "1.5", True])
def test_a_batch_size_is_a_whole_number(size):
    for make in (
        DemoConfig,
        lambda **given: EvalConfig(("t",), **given),
        lambda **given: AttackConfig("a", "e", **given),
    ):
        with pytest.raises(UserError, match="the batch size is"):
            make(batch_size=size)
    with pytest.raises(UserError, match="the batch size is"):
        harness_run.load_lm("hf", {"pretrained": "x"}, size, "cpu")
    with pytest.raises(UserError, match="the batch size is"):
        localize(None, facts(), LocalizationSpec("none"), rows=size)


@pytest.mark.parametrize("size", [1, 16, "8", "auto", "auto:4"])
def test_lm_evals_batch_sizes_are_taken(size):
    assert EvalConfig(("t",), batch_size=size).batch_size == size


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("edit", "-o", "{full}"), "exists and is not an edit"),
        (("finetune", "-o", "{full}", "--on", "facts"), "exists and is not an fine-tuned model"),
        (("finetune", "-o", "{full}", "--on", "facts", "--as", "edit"), "exists and is not an edit"),
        (("localize", "none", "-o", "{full}"), "a components file is a .json file"),
        (("localize", "none", "-o", "where"), "a components file is a .json file"),
        (("localize", "none", "-o", "w.json", "--batch-size", "0"), "the batch size is 0"),
        (("attack", "prefix", "--edit", "e", "-b", "0"), "the batch size is 0"),
        (("demo", "--batch-size", "0"), "the batch size is 0"),
        (("eval", "-t", "unlearn_facts", "-b", "-4"), "the batch size is -4"),
        (("eval", "-t", "unlearn_facts", "--limit", "0"), "cannot take 0 documents"),
        (("edit", "-o", "out", "--limit", "0"), "cannot take 0 items"),
        (("eval", "-t", "unlearn_facts", "-m", "{base}", "-a", "dtype=float33"), "dtype 'float33'"),
        (("edit", "-o", "out", "-m", "{base}", "--dtype", "float33"), "dtype 'float33'"),
        (("eval", "-t", "unlearn_facts", "-m", "{base}", "--device", "gpu"), "unknown device 'gpu'"),
        (("edit", "-o", "out", "-m", "{base}", "--device", "gpu"), "unknown device 'gpu'"),
        (("demo", "-m", "{base}", "--device", "gpu"), "unknown device 'gpu'"),
    ],
)  # fmt: skip
def test_a_mistake_is_two_lines_before_anything_is_loaded(places, tmp_path, monkeypatch, capsys, command, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for place in (
        "transformers.AutoModelForCausalLM.from_pretrained",
        "unlearn_eval.models.places.fetch_default_model",
    ):
        monkeypatch.setattr(place, lambda *_, **__: pytest.fail("a model is loaded"))
    own = {"full": tmp_path / "full", "base": places.base}
    code, said = run_command(monkeypatch, capsys, *(word.format(**own) for word in command))
    assert code == 1
    assert said.count("\n") <= 4  # what is being loaded, and the two lines
    assert f"error: {says}" in said or says in said
    assert "hint: " in said
