"""Edits of whole tensors: bit for bit in, out, on disk, in an export, and in words."""

import dataclasses
import json

import pytest
import torch
from rich.console import Console
from tiny_models import (
    ARCHITECTURES,
    assert_untouched,
    one_thread,  # noqa: F401
    tiny_model,
    tiny_tokenizer,
    weights_of,
)

from unlearn_eval.edits import dense as dense_edits
from unlearn_eval.edits.base import EditInfo, applied
from unlearn_eval.edits.dense import INDEX, DenseEdit
from unlearn_eval.edits.description import describe_edit
from unlearn_eval.edits.export import export_merged
from unlearn_eval.edits.load import describe_base, load_edit
from unlearn_eval.models.load import load_model
from unlearn_eval.results.report.edit import edit_tables
from unlearn_eval.utils.errors import UserError


def some_edit(model, names=None, seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    names = names or list(parameters)[1:4]
    tensors = {n: torch.randn(parameters[n].shape, generator=generator).to(parameters[n].dtype) for n in names}
    noted = {
        name: {
            "frobenius": float((tensor - parameters[name]).double().norm()),
            "weight_norm": float(parameters[name].double().norm()),
        }
        for name, tensor in tensors.items()
    }
    info = EditInfo("npo", {"beta": 0.1}, describe_base(model, "org/base"), {"n": 2}, notes={"changes": noted})
    return dataclasses.replace(DenseEdit(tensors, info, {"targets.jsonl": ""}), **changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_apply_restore_save_and_load_are_exact(architecture, dtype, tmp_path):
    model = tiny_model(architecture, dtype)
    before, edit = weights_of(model), some_edit(model)
    again = load_edit(edit.save(tmp_path / "edit", tiny_tokenizer(), model.config))
    assert isinstance(again, DenseEdit)
    assert again.info == edit.info
    assert again.texts == edit.texts
    assert again.tensors.keys() == edit.tensors.keys()
    for own in (edit, again):
        handle = own.apply(model)
        now = model.state_dict()
        for name in before:
            assert torch.equal(now[name], edit.tensors.get(name, before[name])), name
        handle.restore()
        handle.restore()
        assert_untouched(model, before)
    assert all(tensor.dtype == dtype for tensor in again.tensors.values())


def test_tied_weights_change_together(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
                    tie_word_embeddings=True)
    ).eval()  # fmt: skip
    edit = some_edit(model, ["model.embed_tokens.weight"])
    with applied(load_edit(edit.save(tmp_path / "edit")), model):
        assert torch.equal(model.lm_head.weight, edit.tensors["model.embed_tokens.weight"])


def test_shards(tmp_path, monkeypatch):
    model = tiny_model("llama")
    edit = some_edit(model, list(dict(model.named_parameters())))
    monkeypatch.setattr(dense_edits, "SHARD_BYTES", 10_000)
    folder = edit.save(tmp_path / "edit")
    index = json.loads((folder / INDEX).read_text())["tensors"]
    assert len(set(index.values())) > 3
    assert list(index) == list(edit.tensors)
    for file in set(index.values()):
        assert (folder / file).stat().st_size < 30_000  # the largest tensor alone has 25,600
    again = load_edit(folder)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in edit.tensors.items())
    assert list(again.tensors) == list(edit.tensors)


def test_nothing_changed(tmp_path):
    model = tiny_model("llama")
    before = weights_of(model)
    empty = DenseEdit({}, EditInfo("npo", {}))
    with applied(load_edit(empty.save(tmp_path / "edit")), model):
        assert_untouched(model, before)
    assert describe_edit(tmp_path / "edit")["total"]["parameters"] == 0


def test_another_model_is_refused_and_left_alone(tmp_path):
    edit = some_edit(tiny_model("llama"))
    other = tiny_model("gpt2")
    before = weights_of(other)
    with pytest.raises(UserError, match="which this model does not have"):
        edit.apply(other)
    assert_untouched(other, before)
    model = tiny_model("llama")
    before = weights_of(model)
    wrong = dataclasses.replace(edit, tensors={**edit.tensors, "model.norm.weight": torch.zeros(3)})
    with pytest.raises(UserError, match=r"the edit's model.norm.weight is 3, the model's 16"):
        wrong.apply(model)
    assert_untouched(model, before)


def test_a_damaged_folder_is_refused(tmp_path):
    folder = some_edit(tiny_model("llama")).save(tmp_path / "edit")
    with (folder / "dense-1.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(UserError, match="not as it was written"):
        load_edit(folder)
    (folder / "dense-1.safetensors").unlink()
    with pytest.raises(UserError, match="lacks its file"):
        load_edit(folder)


def test_export_is_the_edited_model(tmp_path):
    tiny_model("llama", exact_norms=False).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    loaded = load_model(str(tmp_path / "base"))
    edit = some_edit(loaded.model)
    info = dataclasses.replace(edit.info, base=describe_base(loaded.model, str(tmp_path / "base")))
    folder = dataclasses.replace(edit, info=info).save(tmp_path / "edit", loaded.tokenizer, loaded.model.config)
    merged = load_model(str(export_merged(folder, tmp_path / "merged")))
    with applied(edit, loaded.model):
        for name, tensor in loaded.model.state_dict().items():
            assert torch.equal(merged.model.state_dict()[name], tensor), name


def test_the_edited_model_of_lm_eval_applies_it(tmp_path, tiny, tiny_folder, tokenizer):
    from unlearn_eval.harness.models import EditedLM

    model = tiny("llama")
    edit = some_edit(model)
    folder = edit.save(tmp_path / "edit", tokenizer, model.config)
    lm = EditedLM(str(tiny_folder("llama")), edit=str(folder), device="cpu", dtype="float32")
    for name, tensor in edit.tensors.items():
        assert torch.equal(lm.model.state_dict()[name], tensor)


def test_in_words(tmp_path):
    model = tiny_model("llama")
    edit = some_edit(model)
    described = describe_edit(edit.save(tmp_path / "edit"))
    assert json.loads(json.dumps(described)) == described
    rows = {row["module"]: row for row in described["modules"]}
    for name, tensor in edit.tensors.items():
        change = tensor.double() - dict(model.named_parameters())[name].double()
        assert rows[name]["frobenius"] == pytest.approx(float(change.norm()))
        assert rows[name]["rank"] is None
    assert sum(row["share"] for row in described["modules"]) == pytest.approx(1)
    console = Console(width=100, no_color=True, color_system=None)
    with console.capture() as capture:
        for table in edit_tables(described):
            console.print(table)
    assert f"{len(edit.tensors)} tensors" in capture.get()
    assert "None" not in capture.get()
