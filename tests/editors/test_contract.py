"""The contract of every editor, from one row each: what it declares is what it makes, uses and leaves behind.

A row is the settings with which an editor is quick on a tiny model. Methods that are trained need none.
"""

import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from naive_memit import moments_of
from tiny_models import (
    assert_untouched,
    one_thread,  # noqa: F401
    random_ids,
    random_requests,
    tiny_model,
    tiny_tokenizer,
    weights_of,
)
from training_requests import FAST, FORGET, KEPT

from unlearn_eval.editing.editor import METHODS, MOMENTS, OTHERS, RETAIN, Editor, editor_names, get_editor
from unlearn_eval.editing.locate_then_edit.target_values import TargetValueConfig
from unlearn_eval.edits.base import KINDS, LOW_RANK, MEMORY, applied
from unlearn_eval.edits.load import READERS, load_edit
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.registry import module_in

TARGET = TargetValueConfig(steps=3, learning_rate=0.5)
ROWS = {
    "alphaedit": {"layers": (1, 2), "target": TARGET, "null_space": "energy:0.5", "ridge": 1e-3},
    "emmet": {"layers": (1,), "target": TARGET},
    "glame": {"layers": (1,), "target": TARGET},
    "grace": {"layers": (2,), "steps": 3},
    "memit": {"layers": (1, 2), "target": TARGET, "preservation": 1e-3},
    "memoir": {"layers": (2,), "steps": 3, "n_others": 4},
    "notes": {"gate": "none", "encoder": "words"},
    "prefix": {"gate": "none", "encoder": "words", "steps": 3},
    "recipe": {"gate": "none", "encoder": "words", "width": 8, "gate_steps": 2, "steps": 2, "batch": 2, "n_facts": 12},
    "rome": {"layers": (1,), "target": TARGET},
    "ultraedit": {"layers": (1, 2)},
    "unke": {"layers": (1,), "target": TARGET, "steps": 3, "text_tokens": 64},
    "wise": {"layers": (2,), "steps": 3, "n_others": 4},
}
TRAINED = {**FAST, "steps": 1}
ROOT = Path(__file__).parents[2]


def config_of(editor, **changes):
    row = TRAINED if editor.trained else ROWS[editor.name]
    return editor.Config(**{**row, **changes})


def job_of(editor, model, config):
    """The requests of a job, and of the rest of it only what the editor says that it uses."""
    generator = torch.Generator().manual_seed(5)
    given = {
        RETAIN: lambda: KEPT,
        OTHERS: lambda: [(0, *random_ids(generator, 6 + i % 3)) for i in range(8)],
        MOMENTS: lambda: moments_of(model, config.layers),
    }
    requests = FORGET[:3] if editor.trained else random_requests(3)
    return requests, {name: given[name]() for name in editor.uses}


def tensors_of(edit):
    """Everything that an edit holds, by name."""
    if edit.kind == LOW_RANK:
        return {f"{name}/{i}": own for name, pair in edit.factors.items() for i, own in enumerate(pair)}
    return edit.store.tensors() if edit.kind == MEMORY else dict(edit.tensors)


def changed_by(edit):
    """The names of the parameters that an edit may change."""
    if edit.kind == LOW_RANK:
        return {f"{name}.weight" for name in edit.factors}
    return set() if edit.kind == MEMORY else set(edit.tensors)


def output_of(model, prompt):
    with torch.no_grad():
        return model(input_ids=torch.tensor([prompt])).logits


def test_every_editor_has_a_row():
    assert set(ROWS) == {name for name in editor_names() if not get_editor(name).trained}


@pytest.mark.parametrize("name", editor_names())
def test_contract(name, tmp_path):
    editor, model = get_editor(name), tiny_model("llama")
    config, before = config_of(editor), weights_of(model)
    requests, used = job_of(editor, model, config)
    edit = editor.edit(model, tiny_tokenizer(), requests, config, **used)
    assert_untouched(model, before)
    assert editor.name == name == edit.info.editor
    assert edit.kind == editor.kind(config)
    again = editor.edit(model, tiny_tokenizer(), requests, config, **used)
    assert again.info == edit.info
    own, other = tensors_of(edit), tensors_of(again)
    assert own.keys() == other.keys()
    assert own
    assert all(torch.equal(tensor, other[key]) for key, tensor in own.items()), "the same job gives the same edit"
    prompt = requests[0].prompt_ids
    clean = output_of(model, prompt)
    with applied(edit, model):
        moved = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
        changed = output_of(model, prompt)
    assert moved == changed_by(edit)
    assert not torch.equal(changed, clean), "it does something"
    assert_untouched(model, before)
    with applied(load_edit(edit.save(tmp_path / "edit")), model):
        torch.testing.assert_close(output_of(model, prompt), changed, atol=1e-3, rtol=1e-3)  # factors are float32
    assert_untouched(model, before)


@pytest.mark.parametrize("name", [name for name in editor_names() if "layers" in get_editor(name).settings])
def test_one_layer_is_declared_where_there_can_be_one_only(name):
    editor, model = get_editor(name), tiny_model("llama")
    config = config_of(editor, layers=(1, 2))
    expected = pytest.raises(UserError, match="one layer, not") if editor.one_layer else nullcontext()
    with expected:
        editor.edit(model, None, [], config, **job_of(editor, model, config)[1])


@pytest.mark.parametrize("name", editor_names())
def test_no_requests_and_no_change(name):
    editor, model = get_editor(name), tiny_model("llama")
    config, before = config_of(editor), weights_of(model)
    requests, used = job_of(editor, model, config)
    clean = output_of(model, requests[0].prompt_ids)
    with applied(editor.edit(model, None, [], config, **used), model):
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
        assert torch.equal(output_of(model, requests[0].prompt_ids), clean)
    assert_untouched(model, before)


@pytest.mark.parametrize("name", editor_names())
def test_what_an_editor_declares_is_so(name):
    editor = get_editor(name)
    assert isinstance(editor, Editor)
    module = module_in(METHODS, name, "editor")
    assert editor is module.EDITOR
    assert editor.Config.__module__ == module.__name__, "its settings are in its own file"
    assert editor.kind(editor.Config()) in KINDS
    assert editor.kind(editor.Config()) in READERS
    text = (ROOT / "docs" / "paper_index.md").read_text()
    for paper in editor.paper.split(", "):
        assert re.fullmatch(r"\d{4}\.\d{5}", paper), editor.paper
        assert paper in module.__doc__
    assert f"/{name}.py`" in text, "a line in docs/paper_index.md"
    assert editor.calibrates == ("calibrate" in editor.settings)
    assert (OTHERS in editor.uses) == ("n_others" in editor.settings) == (editor.others_read(editor.Config()) > 0)
    assert editor.trained == ("retain_term" in editor.settings)
    state = SimpleNamespace(info=SimpleNamespace(editor="another"))
    with pytest.raises(UserError, match=f"made by another, not by {name}"):
        editor.edit(None, None, [], editor.Config(), state=state)


def test_wrong_declarations_are_refused():
    memit = get_editor("memit")
    with pytest.raises(UserError, match="uses .'retained'."):
        Editor("mine", memit.Config, memit.run, uses={"retained"})
    with pytest.raises(UserError, match="did you mean low_rank"):
        Editor("mine", memit.Config, memit.run, makes="low_rang")


def test_what_needs_items_to_retain_says_so():
    npo = get_editor("npo")
    assert npo.needs_retain(npo.Config()) is True
    assert npo.needs_retain(npo.Config(retain_term="none")) is False
    assert npo.needs_retain(npo.Config(retain_weight=0.0)) is False
    assert get_editor("gradient_ascent").needs_retain(get_editor("gradient_ascent").Config()) is False
    memit, rome, ultraedit = map(get_editor, ("memit", "rome", "ultraedit"))
    assert memit.needs_retain(memit.Config()) is None, "used where it is given"
    assert rome.needs_retain(rome.Config(second_moments=False)) is False
    assert ultraedit.needs_retain(ultraedit.Config()) is False
    assert (memit.retains, rome.retains, ultraedit.retains, npo.retains) == (True, True, False, True)
    assert (npo.kind(npo.Config()), npo.kind(npo.Config(lora_rank=2))) == ("dense", "low_rank")
