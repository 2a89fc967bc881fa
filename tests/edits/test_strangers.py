"""Edits from strangers: what is refused on reading, whichever command reads."""

import dataclasses
import json

import pytest
import torch
from in_process import run_here
from odd_files import EDITS, relist, sound_edit
from safetensors.torch import load_file, save_file
from tiny_models import one_thread, tiny_model  # noqa: F401

from unlearn_eval.edits.base import EditInfo
from unlearn_eval.edits.load import check_base, load_edit
from unlearn_eval.edits.records import BaseRef, RequestSummary, SelfCheck
from unlearn_eval.results import stored
from unlearn_eval.utils.errors import UserError


@pytest.fixture
def sound(loaded, tmp_path):
    return lambda kind: sound_edit(kind, loaded, tmp_path / kind)


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("kind", EDITS)
def test_sound_edits_are_read(kind, sound):
    assert load_edit(sound(kind)).info.seed == 0


@pytest.mark.parametrize("name", ["/etc/shadow", "../../etc/passwd", "a/../../b", "C:\\x", "a\0b", "", "."])
def test_no_file_of_an_edit_lies_outside_it(name, sound):
    """Nothing is said of the file: neither that it is there nor what is in it."""
    folder = sound("low_rank")
    description = json.loads((folder / "edit.json").read_text())
    change(folder / "edit.json", files=description["files"] | {name: "0" * 64})
    with pytest.raises(UserError, match=r"edit.json is damaged: .*inside the folder") as error:
        load_edit(folder)
    assert "lacks its file" not in str(error.value)


def test_no_shard_of_an_edit_lies_outside_it(sound):
    folder = sound("dense")
    (name,) = json.loads((folder / "dense.json").read_text())["tensors"]
    for file, message in (("../dense-1.safetensors", "plain file name"), ("other.safetensors", "no file of the edit")):
        (folder / "dense.json").write_text(json.dumps({"tensors": {name: file}}))
        relist(folder)
        with pytest.raises(UserError, match=message):
            load_edit(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("low_rank", "adapter_model.safetensors"),
        ("low_rank", "state.safetensors"),
        ("dense", "dense-1.safetensors"),
        ("grace", "memory.safetensors"),
        ("wise", "memory.safetensors"),
        ("memoir", "memory.safetensors"),
    ],
)
def test_every_number_of_an_edit_is_finite(kind, file, value, sound):
    folder = sound(kind)
    tensors = load_file(folder / file)
    for name in [name for name, tensor in tensors.items() if tensor.is_floating_point()]:
        wrong = tensors[name].clone()
        wrong.view(-1)[-1] = value
        save_file(tensors | {name: wrong}, str(folder / file))
        relist(folder)
        with pytest.raises(UserError, match=f"{name} is not finite"):
            load_edit(folder)


@pytest.mark.parametrize(
    ("kind", "tensor", "shape"),
    [
        ("low_rank", "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight", (3, 24)),
        ("grace", "keys", (2, 24, 1)),
        ("grace", "radii", (3,)),
        ("wise", "deltas.0", (3,)),
        ("wise", "thresholds", (1,)),
        ("memoir", "masks", (2, 2)),
        ("memoir", "threshold", (2,)),
        ("memoir", "background", (5,)),
    ],
)
def test_tensors_fit_each_other(kind, tensor, shape, sound):
    folder = sound(kind)
    (file,) = [path for path in folder.glob("*.safetensors") if path.name != "state.safetensors"]
    tensors = load_file(file)
    assert tensors[tensor].shape != shape
    save_file(tensors | {tensor: torch.zeros(shape, dtype=tensors[tensor].dtype)}, str(file))
    relist(folder)
    with pytest.raises(UserError, match="is damaged"):
        load_edit(folder)


@pytest.mark.parametrize("field", ["editor", "config"])
def test_what_an_edit_cannot_be_without_is_missed(field, sound):
    folder = sound("low_rank")
    info = json.loads((folder / "edit.json").read_text())["info"]
    del info[field]
    change(folder / "edit.json", info=info)
    with pytest.raises(UserError, match=f"lacks the field {field}"):
        load_edit(folder)


def test_another_scale_than_ours_is_refused(sound):
    """PEFT would multiply the change by lora_alpha / r, and we would not."""
    folder = sound("low_rank")
    change(folder / "adapter_config.json", lora_alpha=64)
    relist(folder)
    with pytest.raises(UserError, match="lora_alpha equal to r"):
        load_edit(folder)


@pytest.mark.parametrize("base", [{}, {"canonical_hash": None}, {"canonical_hash": ""}])
def test_an_edit_without_a_base_hash_is_refused_unless_any_base_is_given(base, sound, loaded):
    folder = sound("low_rank")
    description = json.loads((folder / "edit.json").read_text())
    change(folder / "edit.json", info=description["info"] | {"base": base})
    info = load_edit(folder).info
    with pytest.raises(UserError, match="does not say on which weights"):
        check_base(info, loaded)
    check_base(info, loaded, any_base=True)


@pytest.mark.parametrize(
    "command",
    [
        ["export", "EDIT", "--merged", "OUT"],
        ["attack", "quantize", "--edit", "EDIT", "--forget", "facts", "--limit", "1", "--output", "OUT.json"],
    ],
)
def test_commands_take_any_base(command, sound, model, tmp_path):
    folder = sound("low_rank")
    description = json.loads((folder / "edit.json").read_text())
    change(folder / "edit.json", info=description["info"] | {"base": {"id": str(model)}})
    words = [w.replace("EDIT", str(folder)).replace("OUT", str(tmp_path / "out")) for w in command]
    refused = run_here([*words, "--model", str(model)], 60)
    assert (refused.code, refused.traceback) == (1, "")
    assert "give --any-base" in refused.err
    assert run_here([*words, "--model", str(model), "--any-base"], 60).code == 0


def test_the_schema_of_edit_json_has_the_fields_of_the_records():
    """A field that is added to one and not to the other would be refused, or not be checked."""
    names = {
        stored.Base: BaseRef,
        stored.Requests: RequestSummary,
        stored.Check: SelfCheck,
        stored.EditSaid: EditInfo,
    }
    for schema, record in names.items():
        own = {field.name for field in dataclasses.fields(record)} - {"more", "order"}
        assert set(schema.model_fields) == own, record


def test_an_edit_with_the_name_of_a_terminal_command_is_shown_as_text(sound):
    folder = sound("low_rank")
    description = json.loads((folder / "edit.json").read_text())
    change(
        folder / "edit.json", info=description["info"] | {"config": {"x": "\x1b]0;owned\x07 [bold]b[/bold] [/INST]"}}
    )
    done = run_here(["inspect", str(folder)])
    assert done.code == 0, done.err
    assert "\\u001b]0;owned\\u0007 [bold]b[/bold] [/INST]" in " ".join(done.out.split())
