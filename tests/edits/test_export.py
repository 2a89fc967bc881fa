"""An exported checkpoint is an ordinary one, says what the edited model says, and is written whole or not at all."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from gguf_files import write_gguf
from safetensors import SafetensorError, safe_open
from tiny_models import ARCHITECTURES, one_thread, tiny_model, tiny_tokenizer  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from unlearn_eval.edits import export
from unlearn_eval.edits.base import EditInfo, applied
from unlearn_eval.edits.export import EXPORT, export_merged
from unlearn_eval.edits.load import describe_base, load_edit
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.models.anatomy import anatomy
from unlearn_eval.models.load import load_model
from unlearn_eval.models.weights import hash_weights
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.provenance import sha256_of_file

IDS = torch.arange(5, 25)[None]


def make_base(folder, architecture="llama", dtype=torch.float32, seed=0):
    tiny_model(architecture, dtype, seed, exact_norms=False).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def make_edit(base, folder, /, seed=0, scale=0.5, **info):
    loaded = load_model(str(base))
    parts, generator = anatomy(loaded.model), torch.Generator().manual_seed(seed)
    factors = {
        parts.projection_name(layer): (
            scale * torch.randn(parts.d_model, 2, generator=generator),
            torch.randn(2, parts.d_mlp, generator=generator),
        )
        for layer in sorted({0, parts.n_layers - 1})
    }
    about = EditInfo("memit", {}, describe_base(loaded.model, str(base)), {"n": 2, "forget_set": "facts"})
    edit = LowRankEdit(factors, dataclasses.replace(about, **info), parts.transposed)
    return edit.save(folder, loaded.tokenizer, loaded.model.config)


@pytest.fixture
def base(tmp_path):
    return make_base(tmp_path / "base")


@pytest.fixture
def edit(base, tmp_path):
    return make_edit(base, tmp_path / "edit")


def logits(model):
    return model(input_ids=IDS.to(model.device), use_cache=False).logits


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What is written -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_checkpoint_says_what_the_edited_model_says(architecture, dtype, tmp_path):
    base = make_base(tmp_path / "base", architecture, getattr(torch, dtype))
    edit = make_edit(base, tmp_path / "edit")
    output = export_merged(edit, tmp_path / "some" / "merged")
    model = AutoModelForCausalLM.from_pretrained(output)  # as anyone would load it
    assert model.dtype == getattr(torch, dtype)
    loaded = load_model(str(base))
    plain = logits(loaded.model)
    with applied(load_edit(edit), loaded.model):
        assert torch.equal(logits(model), logits(loaded.model))
        assert hash_weights(model) == hash_weights(loaded.model)
    assert (logits(model) - plain).abs().max() > 0.1  # the control: the edit does something
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer.encode("Paris") == loaded.tokenizer.encode("Paris")
    assert tokenizer.chat_template == loaded.tokenizer.chat_template
    assert not (output / "adapter_config.json").exists()
    assert not (output / "edit.json").exists()
    assert [p.name for p in output.parent.iterdir()] == ["merged"]


def test_in_another_type(base, edit, tmp_path):
    """Bit for bit the weights that an evaluation in that type measures."""
    output = export_merged(edit, tmp_path / "merged", dtype="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(output)
    assert model.dtype == torch.bfloat16
    loaded = load_model(str(base), dtype="bfloat16")
    with applied(load_edit(edit), loaded.model):
        assert torch.equal(logits(model), logits(loaded.model))
    wide = load_model(str(base))
    plain = logits(wide.model)
    with applied(load_edit(edit), wide.model):
        expected = logits(wide.model)
    # Rounding of 8 bits through four blocks of large random weights is far less than what the edit does.
    assert 0 < (logits(model).float() - expected).norm() < 0.1 * (expected - plain).norm()
    with pytest.raises(UserError, match="unknown dtype 'float8'"):
        export_merged(edit, tmp_path / "other", dtype="float8")


def test_tied_embeddings_stay_tied(tmp_path):
    config = LlamaConfig(
        vocab_size=400, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    base = tmp_path / "base"
    LlamaForCausalLM(config).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    output = export_merged(make_edit(base, tmp_path / "edit"), tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(output)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with safe_open(output / "model.safetensors", "pt") as stored:
        assert "lm_head.weight" not in stored.keys()  # noqa: SIM118
    with applied(load_edit(tmp_path / "edit"), AutoModelForCausalLM.from_pretrained(base)) as edited:
        assert torch.equal(logits(model), logits(edited))


def test_a_base_from_gguf_is_saved_without_quantization(tmp_path):
    write_gguf(tmp_path / "base.gguf")
    edit = make_edit(tmp_path / "base.gguf", tmp_path / "edit")
    output = export_merged(edit, tmp_path / "merged")
    assert "quantization_config" not in json.loads((output / "config.json").read_text())
    with applied(load_edit(edit), load_model(str(tmp_path / "base.gguf")).model) as edited:
        assert torch.equal(logits(load_model(str(output)).model), logits(edited))


def test_generation_settings_are_kept_as_they_are(base, tmp_path):
    """Also those that transformers refuses to save: a temperature without sampling, as some checkpoints have."""
    path = base / "generation_config.json"
    path.write_text(json.dumps({"bos_token_id": 0, "eos_token_id": [1, 3], "temperature": 0.6, "do_sample": False}))
    output = export_merged(make_edit(base, tmp_path / "edit"), tmp_path / "merged")
    found = json.loads((output / "generation_config.json").read_text())
    assert found["eos_token_id"] == [1, 3]
    assert found["temperature"] == 0.6
    assert AutoModelForCausalLM.from_pretrained(output).generation_config.eos_token_id == [1, 3]


def test_the_export_says_what_it_is_of(base, edit, tmp_path):
    said = []
    output = export_merged(edit, tmp_path / "merged", say=said.append)
    about = json.loads((output / EXPORT).read_text())
    assert about["schema_version"] == 1
    assert about["edit"] == {
        "sha256": sha256_of_file(edit / "edit.json"),
        "editor": "memit",
        "requests": 2,
        "forget_set": "facts",
    }
    assert about["base"]["canonical_hash"] == hash_weights(load_model(str(base)).model).canonical
    assert about["weights"]["exact"] == hash_weights(load_model(str(output)).model).exact
    assert about["dtype"] == "float32"
    assert {"torch", "transformers"} <= about["versions"].keys()
    assert said == [f"loading {base}", f"writing {output}"]


def test_an_export_is_a_base_like_any_other(edit, tmp_path):
    """It can be edited and exported again; the earlier edit no longer fits it."""
    first = export_merged(edit, tmp_path / "first")
    with pytest.raises(UserError, match="other weights"):
        export_merged(edit, tmp_path / "twice", model=str(first))
    assert not (tmp_path / "twice").exists()
    second = export_merged(make_edit(first, tmp_path / "more", seed=1), tmp_path / "second")
    assert not torch.equal(logits(load_model(str(second)).model), logits(load_model(str(first)).model))


def test_a_base_that_moved(base, edit, tmp_path):
    base.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"the edit's base is not here: no model .*base") as error:
        export_merged(edit, tmp_path / "merged")
    assert "--model" in error.value.hint
    export_merged(edit, tmp_path / "merged", model=str(tmp_path / "moved"))
    with pytest.raises(UserError, match="no model 'nowhere'"):
        export_merged(edit, tmp_path / "merged", model="nowhere")
    with pytest.raises(UserError, match="made on .*, and .*other has other weights"):
        export_merged(edit, tmp_path / "merged", model=str(make_base(tmp_path / "other", seed=1)))


def test_an_edit_that_does_not_name_its_base(base, tmp_path):
    edit = make_edit(base, tmp_path / "edit", base={})
    with pytest.raises(UserError, match="does not say which model") as error:
        export_merged(edit, tmp_path / "merged")
    assert "--model" in error.value.hint
    with pytest.raises(UserError, match="does not say on which weights.*\nhint: .*--any-base"):
        export_merged(edit, tmp_path / "merged", model=str(base))
    export_merged(edit, tmp_path / "merged", model=str(base), any_base=True)


@pytest.mark.parametrize(
    ("model", "revision", "expected"),
    [
        (None, None, ("org/base", "abc")),
        ("org/base", None, ("org/base", "abc")),
        ("org/base", "def", ("org/base", "def")),
        ("org/fork", None, ("org/fork", None)),  # another repository has other commits
    ],
)
def test_the_base_is_loaded_in_the_revision_that_was_edited(model, revision, expected, base, tmp_path, monkeypatch):
    info = describe_base(load_model(str(base)).model, "org/base", "abc")
    edit = make_edit(base, tmp_path / "edit", base=info)
    asked = []

    def load(name, dtype, device, revision):
        asked.append((name, revision))
        return load_model(str(base), dtype, device)

    monkeypatch.setattr(export, "load_model", load)
    export_merged(edit, tmp_path / "merged", model=model, revision=revision)
    assert asked == [expected]


# What is refused, and what is left -------------------------------------------------------------------------


def test_what_is_no_export_is_not_overwritten(base, edit, tmp_path, monkeypatch):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("do not lose me")
    (tmp_path / "file").write_text("nor me")
    before = tree(tmp_path)
    monkeypatch.setattr(export, "load_model", lambda *a, **k: pytest.fail("refused before anything is loaded"))
    for name in ("thesis", "file", "base", "edit"):
        with pytest.raises(UserError, match="exists and is not an export") as error:
            export_merged(edit, tmp_path / name)
        assert "--merged" in error.value.hint
    assert tree(tmp_path) == before
    monkeypatch.undo()
    with pytest.raises(UserError, match="cannot write the export"):
        export_merged(edit, tmp_path / "file" / "below")
    assert tree(tmp_path) == before
    (tmp_path / "empty").mkdir()
    export_merged(edit, tmp_path / "empty")


def test_an_earlier_export_is_replaced(base, edit, tmp_path):
    output = export_merged(edit, tmp_path / "merged")
    (output / "of_the_old_one.json").write_text("{}")
    first = json.loads((output / EXPORT).read_text())
    export_merged(make_edit(base, tmp_path / "other", seed=1), output)
    second = json.loads((output / EXPORT).read_text())
    assert first["weights"] != second["weights"]
    assert not (output / "of_the_old_one.json").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "edit", "merged", "other"]


def test_an_export_does_not_replace_what_it_reads(base, edit, tmp_path):
    first = export_merged(edit, tmp_path / "first")
    second = make_edit(first, tmp_path / "second")
    before = tree(tmp_path)
    with pytest.raises(UserError, match="holds the base model"):
        export_merged(second, first)
    assert tree(tmp_path) == before
    shutil.move(second, first / "second")
    with pytest.raises(UserError, match="holds the edit"):
        export_merged(first / "second", first)


def test_a_damaged_edit_is_refused_before_anything_is_loaded(edit, tmp_path, monkeypatch):
    (edit / "adapter_model.safetensors").write_bytes(b"")
    monkeypatch.setattr(export, "load_model", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(UserError, match="not as it was written"):
        export_merged(edit, tmp_path / "merged")


def no_space(*arguments, **options):
    raise OSError(28, "No space left on device")


def no_space_in_safetensors(*arguments, **options):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize(
    ("where", "how"),
    [
        ("transformers.modeling_utils.safe_save_file", no_space_in_safetensors),
        ("unlearn_eval.edits.export._description", no_space),
        ("unlearn_eval.utils.folders._put_in_place", no_space),
        ("unlearn_eval.utils.folders.tempfile.mkdtemp", no_space),
    ],
)
def test_a_full_disk_leaves_what_was_there(exists, where, how, base, edit, tmp_path, monkeypatch):
    if exists:
        export_merged(edit, tmp_path / "merged")
    other = make_edit(base, tmp_path / "other", seed=1)
    before = tree(tmp_path)
    monkeypatch.setattr(where, how)
    with pytest.raises(UserError, match="cannot write the export to .*No space left on device") as error:
        export_merged(other, tmp_path / "merged")
    assert "--merged" in error.value.hint
    assert len(str(error.value).splitlines()) == 2
    assert tree(tmp_path) == before
    assert (tmp_path / "merged").exists() == exists


@pytest.mark.parametrize("limit", [3000, 15000])
def test_files_that_do_not_fit_leave_nothing(limit, edit, tmp_path):
    """The system itself cuts a file off."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(UserError, match="cannot write the export"):
            export_merged(edit, tmp_path / "merged")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "edit"]


def test_too_little_space_is_seen_before_writing(edit, tmp_path, monkeypatch):
    monkeypatch.setattr(export.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr(export, "write_whole", lambda *a: pytest.fail("written"))
    with pytest.raises(UserError, match=r"needs 0\.0 GB, and 0\.0 GB are free"):
        export_merged(edit, tmp_path / "not" / "yet" / "there")
    assert not (tmp_path / "not").exists()


def test_any_other_error_is_not_hidden_and_leaves_nothing(edit, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "hash_weights", lambda model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_merged(edit, tmp_path / "merged")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "edit"]


# The real model --------------------------------------------------------------------------------------------


@pytest.mark.real_model
@pytest.mark.slow
def test_the_default_model(real_model, tmp_path):
    """Tied embeddings, 135 million weights, a chat template; float32 and bfloat16."""
    edit = make_edit(real_model, tmp_path / "edit", scale=0.05)
    output = export_merged(edit, tmp_path / "merged", model="default")
    found, loaded = load_model(str(output)), load_model(str(real_model))
    config = json.loads((output / "config.json").read_text())
    assert config["tie_word_embeddings"]
    assert "quantization_config" not in config
    plain = logits(loaded.model)
    with applied(load_edit(edit), loaded.model):
        assert torch.equal(logits(found.model), logits(loaded.model))
        question = [{"role": "user", "content": "What is the capital of France?"}]
        ids = [t.tokenizer.apply_chat_template(question, add_generation_prompt=True) for t in (found, loaded)]
        assert ids[0] == ids[1]
    assert (logits(found.model) - plain).abs().max() > 0.1
    size = (output / "model.safetensors").stat().st_size
    export_merged(edit, output, dtype="bfloat16")
    assert (output / "model.safetensors").stat().st_size == pytest.approx(size / 2, rel=0.01)
