"""An edit is undone bit for bit, and its folder is written whole, read back as it was, and refused if changed."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny_models import ARCHITECTURES, assert_untouched, one_thread, tiny_model, tiny_tokenizer, weights_of  # noqa: F401
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from unlearn_eval.edits.base import Applied, EditInfo, applied
from unlearn_eval.edits.folder import read_description
from unlearn_eval.edits.load import check_base, describe_base, load_edit
from unlearn_eval.edits.low_rank import LowRankEdit, compact, concatenate
from unlearn_eval.models.anatomy import anatomy
from unlearn_eval.models.weights import hash_weights
from unlearn_eval.utils.errors import UserError


def random_edit(model, layers=(0, 2), rank=3, seed=0, scale=0.1, base=None, dtype=torch.float32):
    parts = anatomy(model)
    generator = torch.Generator().manual_seed(seed)
    factors = {
        parts.projection_name(layer): (
            scale * torch.randn(parts.d_model, rank, generator=generator, dtype=dtype),
            torch.randn(rank, parts.d_mlp, generator=generator, dtype=dtype),
        )
        for layer in layers
    }
    return LowRankEdit(factors, EditInfo("memit", {"seed": seed}, base or {}, seed=seed), parts.transposed)


# Applying and undoing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_restore_is_bit_exact(architecture, dtype):
    model = tiny_model(architecture, dtype)
    parts, before = anatomy(model), weights_of(model)
    edit = random_edit(model)
    handle = edit.apply(model)
    for name, (u, v) in edit.factors.items():
        layer = int(name.split(".")[-3])
        wide = torch.promote_types(dtype, torch.float32)
        stored = before[f"{name}.weight"]
        original = (stored.T if parts.transposed else stored).to(wide)
        expected = (original + u.to(wide) @ v.to(wide)).to(dtype)  # rounded once
        torch.testing.assert_close(parts.weight(model, layer), expected)
        assert not torch.equal(parts.weight(model, layer), original.to(dtype))
    handle.restore()
    assert_untouched(model, before)
    handle.restore()  # harmless
    assert_untouched(model, before)


def test_subtracting_would_not_be_exact():
    """The control: why the original tensors are kept."""
    model = tiny_model("llama", torch.bfloat16)
    before = weights_of(model)
    edit = random_edit(model)
    edit.apply(model)
    opposite = {name: (-u, v) for name, (u, v) in edit.factors.items()}
    dataclasses.replace(edit, factors=opposite).apply(model)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nested_edits_are_undone_in_reverse(dtype):
    model = tiny_model("gpt2", dtype)
    before = weights_of(model)
    first, second = random_edit(model, (0, 1), seed=1), random_edit(model, (1, 2), seed=2)
    with applied(first, model):
        between = weights_of(model)
        with applied(second, model):
            name = "transformer.h.1.mlp.c_proj.weight"
            assert not torch.equal(model.get_parameter(name), between[name])
        assert_untouched(model, between)
    assert_untouched(model, before)


def test_a_weight_that_was_changed_twice_goes_back_to_the_first():
    weight = torch.zeros(2, 2)
    handle = Applied()
    for value in (1.0, 2.0):
        handle.keep(weight)
        weight.fill_(value)
    handle.restore()
    assert torch.equal(weight, torch.zeros(2, 2))


def test_an_error_in_the_block_undoes_the_edit():
    model = tiny_model("llama")
    before = weights_of(model)
    with pytest.raises(ZeroDivisionError), applied(random_edit(model), model):
        raise ZeroDivisionError
    assert_untouched(model, before)


def test_an_edit_that_does_not_fit_changes_nothing():
    """The first map fits and the second does not: the first one is put back."""
    model = tiny_model("llama")
    before = weights_of(model)
    edit = random_edit(model, (0, 1))
    first, second = edit.factors
    wrong_shape = {first: edit.factors[first], second: (torch.zeros(16, 1), torch.zeros(1, 25))}
    with pytest.raises(UserError, match="16×25.*16×24") as error:
        dataclasses.replace(edit, factors=wrong_shape).apply(model)
    assert "made on" in error.value.hint
    assert_untouched(model, before)
    missing = {first: edit.factors[first], "model.layers.9.mlp.down_proj": edit.factors[second]}
    with pytest.raises(UserError, match=r"layers\.9\.mlp\.down_proj, which this model does not have"):
        dataclasses.replace(edit, factors=missing).apply(model)
    assert_untouched(model, before)
    with pytest.raises(UserError, match="does not have"):
        edit.apply(tiny_model("gpt2"))


def test_another_base_is_refused():
    model = tiny_model("llama")
    base = describe_base(model, "org/base", "abc")
    assert base["architecture"] == "LlamaForCausalLM"
    info = random_edit(model, base=base).info
    check_base(info, model)
    check_base(info, tiny_model("llama", torch.bfloat16))  # the same checkpoint in another type
    with pytest.raises(UserError, match="made on org/base") as error:
        check_base(info, tiny_model("llama", seed=1), "the other")
    assert "the other has other weights" in error.value.message
    with applied(random_edit(model), model), pytest.raises(UserError, match="other weights"):
        check_base(info, model)  # an edit on top of an edit
    check_base(info, model)
    with pytest.raises(UserError, match="does not say on which weights"):
        check_base(EditInfo("memit", {}), model)
    check_base(EditInfo("memit", {}), model, any_base=True)


# The folder ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folder_is_read_as_it_was_written(architecture, tmp_path):
    model = tiny_model(architecture)
    edit = random_edit(model, base=describe_base(model, "org/base"))
    folder = edit.save(tmp_path / "some" / "edit", tiny_tokenizer(), model.config)
    assert folder == tmp_path / "some" / "edit"
    found = load_edit(folder)
    assert found.info == edit.info
    assert found.stored_transposed == (architecture == "gpt2")
    assert list(found.factors) == sorted(edit.factors)
    for name, (u, v) in edit.factors.items():
        assert torch.equal(found.factors[name][0], u)
        assert torch.equal(found.factors[name][1], v)
    with applied(edit, model):
        expected = weights_of(model)
    with applied(found, model):
        assert_untouched(model, expected)
    assert AutoConfig.from_pretrained(folder).model_type == model.config.model_type
    assert AutoTokenizer.from_pretrained(folder).encode("Paris") == tiny_tokenizer().encode("Paris")
    listed = read_description(folder)["files"]
    assert set(listed) == {p.name for p in folder.iterdir()} - {"edit.json"}
    assert (folder.stat().st_mode & 0o777) == 0o755
    assert [p.name for p in folder.parent.iterdir()] == ["edit"]


def test_the_adapter_is_in_peft_s_layout(tmp_path):
    model = tiny_model("llama")
    edit = random_edit(model, base={"id": "org/base", "revision": "abc"})
    folder = edit.save(tmp_path / "edit")
    adapter = json.loads((folder / "adapter_config.json").read_text())
    assert adapter["r"] == adapter["lora_alpha"] == 3
    assert adapter["base_model_name_or_path"] == "org/base"
    assert adapter["revision"] == "abc"
    assert adapter["target_modules"] == sorted(edit.factors)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert tensors["base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"].shape == (3, 24)
    assert tensors["base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"].shape == (16, 3)


@pytest.mark.parametrize(("d_out", "d_in", "rank"), [(16, 24, 40), (24, 16, 40), (16, 16, 17), (16, 24, 16), (1, 5, 4)])
def test_more_columns_than_dimensions_are_compacted(d_out, d_in, rank, tmp_path):
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(d_out, rank, generator=generator, dtype=torch.float64)
    v = torch.randn(rank, d_in, generator=generator, dtype=torch.float64)
    thin_u, thin_v = compact(u, v)
    assert thin_u.shape == (d_out, min(d_out, d_in, rank))
    assert thin_v.shape == (min(d_out, d_in, rank), d_in)
    torch.testing.assert_close(thin_u @ thin_v, u @ v, atol=1e-12, rtol=0)
    # Through the folder, in float32; the other map has rank 1 and is padded.
    other = (u[:, :1].float(), v[:1].float())
    edit = LowRankEdit({"a.x": (u.float(), v.float()), "b.x": other}, EditInfo("memit", {}))
    found = load_edit(edit.save(tmp_path / "edit")).factors
    torch.testing.assert_close(found["a.x"][0] @ found["a.x"][1], (u @ v).float(), atol=3e-5, rtol=0)
    torch.testing.assert_close(found["b.x"][0] @ found["b.x"][1], other[0] @ other[1], atol=1e-6, rtol=0)


def test_the_folder_is_small(tmp_path):
    """Bytes of the weights against the model's own, for a Llama-3-8B-like ratio of requests to width."""
    sizes = {"hidden_size": 128, "intermediate_size": 448, "num_hidden_layers": 32, "num_attention_heads": 4}
    config = AutoConfig.for_model("llama", vocab_size=512, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    # 4096 × 14336 with 100 requests is 128 × 448 with 3; five edited layers of 32.
    folder = random_edit(model, layers=range(4, 9), rank=3).save(tmp_path / "edit", model_config=config)
    size = sum(path.stat().st_size for path in folder.rglob("*"))
    assert size < 0.05 * sum(p.numel() * p.element_size() for p in model.parameters())
    # In numbers of the weights themselves (without names and JSON) it is far less.
    weights = 5 * 3 * (128 + 448) * 4
    assert (folder / "adapter_model.safetensors").stat().st_size < weights + 4096


# What is refused on reading --------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    model = tiny_model("llama")
    return random_edit(model).save(tmp_path / "edit", tiny_tokenizer(), model.config)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "config.json", "tokenizer.json"])
def test_a_changed_file_is_refused(saved, name):
    load_edit(saved)
    content = bytearray((saved / name).read_bytes())
    content[len(content) // 2] ^= 1
    (saved / name).write_bytes(bytes(content))
    with pytest.raises(UserError, match="not as it was written") as error:
        load_edit(saved)
    assert name in error.value.message


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "tokenizer.json"])
def test_a_missing_file_is_refused(saved, name):
    (saved / name).unlink()
    with pytest.raises(UserError, match=f"lacks its file {name}"):
        load_edit(saved)


def test_no_folder_and_no_edit_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_edit(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not an edit"):
        load_edit(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError):
        load_edit(tmp_path / "file")


def changed_description(saved, **changes):
    path = saved / "edit.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_other_formats_are_refused(saved):
    changed_description(saved, schema_version=2, files={})
    with pytest.raises(UserError, match="format 2, newer than 1"):
        load_edit(saved)
    changed_description(saved, schema_version=1, kind="wooden")
    with pytest.raises(UserError, match="kind 'wooden'"):
        load_edit(saved)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"schema_version": 1}', '{"schema_version": "x", "kind": "low_rank", "files": {}}',
     '{"schema_version": 1, "kind": "low_rank", "info": {}, "files": {}}',
     '{"schema_version": 1, "kind": "low_rank", "info": {}, "files": 3}'],
)  # fmt: skip
def test_a_damaged_description_is_refused(saved, text):
    """Also one that lists no files, so that nothing would be checked."""
    (saved / "edit.json").write_text(text)
    with pytest.raises(UserError, match="is damaged"):
        load_edit(saved)
    (saved / "edit.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="is damaged"):
        load_edit(saved)


# What is refused, and what is left, on writing -------------------------------------------------------------


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_foreign_folder_is_not_overwritten(tmp_path):
    edit = random_edit(tiny_model("llama"))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("do not lose me")
    (tmp_path / "file").write_text("nor me")
    before = tree(tmp_path)
    for name in ("thesis", "file"):
        with pytest.raises(UserError, match="is not an edit"):
            edit.save(tmp_path / name)
    with pytest.raises(UserError, match="cannot write"):
        edit.save(tmp_path / "file" / "below")
    assert tree(tmp_path) == before
    (tmp_path / "empty").mkdir()
    assert load_edit(edit.save(tmp_path / "empty")).info == edit.info


def test_an_edit_is_replaced(saved):
    model = tiny_model("llama")
    new = random_edit(model, (1,), seed=5)
    new.save(saved)
    assert load_edit(saved).info == new.info
    assert not (saved / "tokenizer.json").exists()  # nothing of the old one stays
    assert [p.name for p in saved.parent.iterdir()] == ["edit"]


def full_disk(*arguments, **options):
    raise OSError(28, "No space left on device")


def full_disk_in_safetensors(tensors, filename, metadata=None):
    with open(filename, "wb") as stream:
        stream.write(b"half")
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize(
    ("where", "how"),
    [
        ("safetensors.torch.save_file", full_disk_in_safetensors),
        ("unlearn_eval.edits.folder.write_json", full_disk),
        ("unlearn_eval.edits.folder.sha256_of_file", full_disk),
        ("unlearn_eval.utils.folders._put_in_place", full_disk),
        ("unlearn_eval.utils.folders.tempfile.mkdtemp", full_disk),
    ],
)
def test_a_full_disk_leaves_what_was_there(exists, where, how, tmp_path, monkeypatch):
    model = tiny_model("llama")
    if exists:
        random_edit(model, seed=1).save(tmp_path / "edit")
    before = tree(tmp_path)
    monkeypatch.setattr(where, how)
    with pytest.raises(UserError, match="No space left on device") as error:
        random_edit(model, seed=2).save(tmp_path / "edit")
    assert "--output" in error.value.hint
    monkeypatch.undo()
    assert tree(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == (["edit"] if exists else [])
    assert not exists or load_edit(tmp_path / "edit").info.seed == 1


def test_a_file_that_does_not_fit_leaves_nothing(tmp_path):
    """What the test above pretends is what happens: the system itself cuts the file off."""
    resource = pytest.importorskip("resource")
    edit = random_edit(tiny_model("llama"), rank=10)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # Python ignores the signal, so writing fails
    try:
        with pytest.raises(UserError, match="cannot write the edit"):
            edit.save(tmp_path / "edit")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_move_puts_the_old_edit_back(saved, monkeypatch):
    before = tree(saved.parent)
    path_type = type(saved)
    rename, calls = path_type.rename, []

    def second_fails(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(path_type, "rename", second_fails)
    with pytest.raises(UserError, match="Permission denied"):
        random_edit(tiny_model("llama"), seed=9).save(saved)
    monkeypatch.undo()
    assert len(calls) == 3
    assert tree(saved.parent) == before


def test_any_other_error_leaves_nothing_either(tmp_path):
    class Tokenizer:
        def save_pretrained(self, folder):
            raise RuntimeError("not a full disk")

    with pytest.raises(RuntimeError):
        random_edit(tiny_model("llama")).save(tmp_path / "edit", Tokenizer())
    assert list(tmp_path.iterdir()) == []


def test_a_half_written_folder_of_a_killed_run_is_in_nobody_s_way(saved):
    half = saved.parent / f".{saved.name}.abc123"
    shutil.copytree(saved, half)
    (half / "edit.json").unlink()
    load_edit(saved)
    random_edit(tiny_model("llama"), seed=3).save(saved)
    assert load_edit(saved).info.seed == 3
    with pytest.raises(UserError, match="not an edit"):
        load_edit(half)


def test_files_in_subfolders_are_kept_and_checked(tmp_path):
    """A tokenizer with several chat templates writes the others into a folder of their own."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "{{ messages }}"}
    folder = random_edit(tiny_model("llama")).save(tmp_path / "edit", tokenizer)
    (inner,) = [path for path in folder.rglob("*") if path.is_file() and path.parent != folder]
    load_edit(folder)
    inner.write_text("changed")
    with pytest.raises(UserError, match="not as it was written"):
        load_edit(folder)


# Precision, state, texts, nothing, and two edits in one ----------------------------------------------------


def test_float64_edits_of_float64_weights_stay_there():
    model = tiny_model("llama", torch.float64)
    edit = random_edit(model, dtype=torch.float64)
    (name, (u, v)), *_ = edit.factors.items()
    before = model.get_submodule(name).weight.clone()
    with applied(edit, model):
        found = model.get_submodule(name).weight
        assert torch.equal(found, before + u @ v)
        assert (found - (before + (u.float() @ v.float()).double())).abs().max() > 1e-9  # float32 would be seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float64_factors_do_before_saving_what_they_do_after(dtype, tmp_path):
    model = tiny_model("gpt2", dtype)
    edit = random_edit(model, dtype=torch.float64)
    with applied(edit, model):
        expected = weights_of(model)
    found = load_edit(edit.save(tmp_path / "edit"))
    assert all(u.dtype == v.dtype == torch.float32 for u, v in found.factors.values())
    with applied(found, model):
        assert_untouched(model, expected)


def with_more(model, **changes):
    keys = torch.randn(7, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    state = {"keys.0": keys[:4], "keys.2": keys.T[:, :2], "count": torch.tensor([2**30 + 1])}
    narrow = keys.float()
    state |= {"all": narrow, "again": narrow}  # one storage, which safetensors refuses as it is
    texts = {"targets.jsonl": '{"target": "Ich weiß es nicht. 東京 🎉"}\r\n', "notes.md": ""}
    return dataclasses.replace(random_edit(model), **({"state": state, "texts": texts} | changes))


def test_state_and_texts_are_read_as_they_were_written(tmp_path):
    model = tiny_model("llama")
    edit = with_more(model)
    folder = edit.save(tmp_path / "edit", tiny_tokenizer(), model.config)
    found = load_edit(folder)
    assert found.texts == dict(edit.texts)
    assert found.state.keys() == edit.state.keys()
    for name, tensor in edit.state.items():
        assert torch.equal(found.state[name], tensor.float() if tensor.is_floating_point() else tensor)
    assert found.state["keys.0"].dtype == torch.float32
    listed = read_description(folder)["files"]
    assert {"state.safetensors", "targets.jsonl", "notes.md"} <= set(listed)
    again = load_edit(found.save(tmp_path / "again"))
    assert again.texts == found.texts
    assert all(torch.equal(again.state[name], found.state[name]) for name in found.state)


@pytest.mark.parametrize("name", ["state.safetensors", "targets.jsonl"])
def test_changed_state_and_texts_are_refused(name, tmp_path):
    folder = with_more(tiny_model("llama")).save(tmp_path / "edit")
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(UserError, match=f"{name} is not as it was written"):
        load_edit(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"lacks its file {name}"):
        load_edit(folder)


def test_what_the_description_does_not_name_is_not_read(saved):
    """A file that somebody put there has no hash; and a folder written before there was state is read."""
    assert not (saved / "state.safetensors").exists()
    (saved / "state.safetensors").write_bytes(b"not ours")
    (saved / "targets.jsonl").write_text("not ours")
    description = json.loads((saved / "edit.json").read_text())
    assert description["schema_version"] == 1
    del description["texts"]
    (saved / "edit.json").write_text(json.dumps(description))
    found = load_edit(saved)
    assert (found.state, found.texts) == ({}, {})


@pytest.mark.parametrize("texts", [["targets.jsonl"], ["../secret"], ["/etc/hostname"], 3, [["x"]]])
def test_a_description_that_names_other_files_as_texts_is_damaged(saved, texts):
    (saved.parent / "secret").write_text("secret")
    changed_description(saved, texts=texts)
    with pytest.raises(UserError, match="is damaged"):
        load_edit(saved)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *((name, "not a plain file name") for name in ("../x", "a/b", "", ".", "..", ".hidden", "a b", "a\n", "ä")),
        *((name, "already") for name in ("edit.json", "config.json", "Edit.JSON", "state.safetensors")),
        *((name, "already") for name in ("adapter_config.json", "adapter_model.safetensors", "Tokenizer.json")),
    ],
)
def test_a_text_has_a_name_of_its_own(name, message, tmp_path):
    model = tiny_model("llama")
    with pytest.raises(UserError, match=message):
        with_more(model, texts={name: "x"}).save(tmp_path / "edit", tiny_tokenizer(), model.config)
    assert list(tmp_path.iterdir()) == []


def test_texts_that_differ_in_case_only_are_refused(tmp_path):
    with pytest.raises(UserError, match="already"):
        with_more(tiny_model("llama"), texts={"a.md": "x", "A.md": "y"}).save(tmp_path / "edit")


def test_padding_is_not_read_back(tmp_path):
    """Ranks 3 and 1 are written as 3 and 3; a column of which one factor is zero is not padding."""
    model = tiny_model("llama")
    edit = random_edit(model)
    first, second = edit.factors
    u, v = edit.factors[first]
    u = u.clone()
    u[:, 2] = 0
    factors = {first: (u, v), second: tuple(f.narrow(d, 0, 1) for d, f in ((1, u), (0, v)))}
    found = load_edit(dataclasses.replace(edit, factors=factors).save(tmp_path / "edit")).factors
    assert [found[name][0].shape[1] for name in (first, second)] == [3, 1]
    for name, pair in factors.items():
        assert all(torch.equal(a, b) for a, b in zip(found[name], pair, strict=True))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_change_of_nothing_is_an_edit_like_any_other(architecture, tmp_path):
    """No request: factors of no column. Not even the sign of a zero changes, and peft and transformers read it."""
    from peft import PeftModel

    model = tiny_model(architecture, exact_norms=False)
    edit = random_edit(model, rank=0, base=describe_base(model, "org/base"))
    (name, _), *_ = edit.factors.items()
    model.get_submodule(name).weight.data[0, 0] = -0.0
    before = hash_weights(model)
    folder = edit.save(tmp_path / "edit", model_config=model.config)
    found = load_edit(folder)
    assert {name: u.shape[1] for name, (u, _) in found.factors.items()} == dict.fromkeys(sorted(edit.factors), 0)
    for one in (edit, found):
        with applied(one, model):
            assert hash_weights(model) == before
    ids = torch.arange(5, 15)[None]
    expected = model(input_ids=ids).logits
    model.save_pretrained(tmp_path / "base")
    adapted = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted.load_adapter(str(folder))
    assert torch.equal(adapted(input_ids=ids).logits, expected)
    assert torch.equal(PeftModel.from_pretrained(model, folder)(input_ids=ids).logits, expected)


def test_an_edit_of_no_map_at_all_is_saved_too(tmp_path):
    """Only peft has no word for it."""
    model = tiny_model("llama")
    before = weights_of(model)
    found = load_edit(LowRankEdit({}, EditInfo("memit", {})).save(tmp_path / "edit"))
    assert found.factors == {}
    with applied(found, model):
        assert_untouched(model, before)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_two_edits_in_one(architecture, tmp_path):
    model = tiny_model(architecture, torch.float64)
    first, second = random_edit(model, (0, 1), 3, seed=1), random_edit(model, (1, 2), 2, seed=2, dtype=torch.float64)
    both = dataclasses.replace(second, factors=concatenate(first.factors, second.factors))
    assert [u.shape[1] for u, _ in both.factors.values()] == [3, 5, 2]
    assert both.factors[list(both.factors)[1]][0].dtype == torch.float64
    with applied(first, model), applied(second, model):
        expected = weights_of(model)
    with applied(both, model):
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, expected[name], atol=1e-14, rtol=0)
    assert concatenate({}, first.factors) == concatenate(first.factors, {}) == first.factors
    name = next(iter(first.factors))
    with pytest.raises(UserError, match="16×24, the other's 16×25"):
        concatenate(first.factors, {name: (torch.zeros(16, 1), torch.zeros(1, 25))})


@pytest.mark.parametrize("limit", [3000, 12000])
def test_a_tokenizer_that_does_not_fit_leaves_nothing(limit, tmp_path):
    """Tokenizers have an error of their own for a full disk."""
    resource = pytest.importorskip("resource")
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    edit = random_edit(model, rank=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(UserError, match="cannot write the edit"):
            edit.save(tmp_path / "edit", tokenizer, model.config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_through_a_link(saved):
    link = saved.parent / "link"
    link.symlink_to(saved.name)
    random_edit(tiny_model("llama"), seed=8).save(link)
    assert link.is_symlink()
    assert load_edit(saved).info.seed == load_edit(link).info.seed == 8
    assert sorted(p.name for p in saved.parent.iterdir()) == ["edit", "link"]


def test_every_file_can_be_read_by_others(tmp_path):
    folder = with_more(tiny_model("llama")).save(tmp_path / "edit", tiny_tokenizer())
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
