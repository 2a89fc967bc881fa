"""From a forget set to an edit: recipes, steps, going on from an earlier edit, the self-check, presets."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from tiny_models import (
    assert_untouched,
    one_thread,  # noqa: F401
    tiny_model,
    tiny_tokenizer,
    weights_of,
)

from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.data.recast import recast
from unlearn_eval.editing.editor import METHODS, get_editor
from unlearn_eval.editing.locate_then_edit import run as locate
from unlearn_eval.editing.locate_then_edit import second_moments
from unlearn_eval.editing.locate_then_edit.run import check_requests
from unlearn_eval.editing.presets import PRESETS, preset_for
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.editing.requests.build import build_requests, merge_items, merge_keys
from unlearn_eval.editors.closed_form import alphaedit, emmet, memit, rome
from unlearn_eval.edits.base import applied
from unlearn_eval.edits.load import load_edit
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.runs import edit as editing
from unlearn_eval.runs.edit import make_edit, self_check
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.registry import module_in
from unlearn_eval.utils.settings import configure

ITEMS = (
    ForgetItem("a", "What is the capital of France?", "Paris", subject="France", group="g"),
    ForgetItem("b", "Who wrote Hamlet?", "Shakespeare", subject="Hamlet", group="g"),
    ForgetItem("c", "What is the capital of Japan?", "Tokyo", group="h"),
    ForgetItem("d", "Where is the question about?", "Japan", group="g"),
)
FORGET = ForgetSet("four", ITEMS)
OPTIONS = {"layers": "1,2", "preservation": "0.001", "target.steps": "4", "keys_per_dimension": "4"}


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_EVAL_CACHE", str(tmp_path / "cache"))
    fields = {f.name for f in dataclasses.fields(LoadedModel)}
    known = {
        "model": tiny_model("llama"),
        "tokenizer": tiny_tokenizer(),
        "name": "tiny",
        "path": "tiny",
        "revision": None,
        "source": "test",
        "notes": (),
    }
    return LoadedModel(**{key: value for key, value in known.items() if key in fields})


def edit_of(loaded, forget=FORGET, editor="memit", options=OPTIONS, state=None, **recipe):
    return make_edit(loaded, forget, editor, options, Recipe(**{"n_contexts": 1, **recipe}), state)


def targets_file(folder, items):
    path = folder / "targets.jsonl"
    lines = [json.dumps({"id": i.id, "question": i.question, "target": f"No {i.id}."}) for i in items]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def delta(edit):
    return {name: u.double() @ v.double() for name, (u, v) in edit.factors.items()}


def test_what_the_edit_remembers(loaded, tmp_path):
    before = weights_of(loaded.model)
    edit = edit_of(loaded)
    assert_untouched(loaded.model, before)
    info = edit.info
    assert info.requests["ids"] == ["a", "b", "c", "d"]
    order = "n n_merged forget_set forget_set_hash sets ids lookup hash chat target merge merge_size per_step contexts"
    assert list(info.requests) == order.split()  # as edit.json always had them
    assert info.requests["lookup"]["a"] == "subject"
    assert info.requests["lookup"]["c"] == "last content token"
    assert info.notes["preset"] is None
    check = info.notes["self_check"]
    assert check["n"] == 4
    assert check["target_probability_after"] > check["target_probability_before"]
    targets = [json.loads(line) for line in edit.texts["targets.jsonl"].splitlines()]
    assert [t["id"] for t in targets] == ["a", "b", "c", "d"]
    again = load_edit(edit.save(tmp_path / "edit", loaded.tokenizer, loaded.model.config))
    assert again.texts == edit.texts
    assert set(again.state) == {"keys.1", "keys.2"}
    assert again.state["keys.1"].shape == (4, 24)


def test_a_file_of_targets_is_used_again(loaded, tmp_path):
    edit = edit_of(loaded, target=targets_file(tmp_path, ITEMS))
    targets = [json.loads(line) for line in edit.texts["targets.jsonl"].splitlines()]
    assert [t["target"] for t in targets] == ["No a.", "No b.", "No c.", "No d."]
    assert {t["source"] for t in targets} == {"file"}


def test_going_on_from_an_edit(loaded, tmp_path):
    first = edit_of(loaded, FORGET.select(["a", "b"]))
    folder = first.save(tmp_path / "first", loaded.tokenizer, loaded.model.config)
    both = edit_of(loaded, FORGET.select(["c", "d"]), state=load_edit(folder))
    assert both.info.requests["ids"] == ["a", "b", "c", "d"]
    assert both.info.requests["n"] == 4
    assert all(u.shape[1] == 4 for u, _ in both.factors.values())
    assert both.state["keys.2"].shape == (4, 24)
    assert len(both.texts["targets.jsonl"].splitlines()) == 4
    # The first edit's part is in it as it was, and the earlier keys keep the values that the first edit gave them:
    # the lowest layer's keys cannot have moved.
    name = "model.layers.1.mlp.down_proj"
    torch.testing.assert_close(both.factors[name][0][:, :2], first.factors[name][0])
    added = delta(both)[name] - delta(first)[name]
    moved = (added @ first.state["keys.1"].double().T).norm()
    asked = (added @ both.state["keys.1"][2:].double().T).norm()
    assert moved < 0.05 * asked
    with pytest.raises(UserError, match="in the earlier edit already"):
        edit_of(loaded, FORGET.select(["b", "c"]), state=first)
    with pytest.raises(UserError, match="made by memit"):
        edit_of(loaded, FORGET.select(["c"]), "emmet", {"layers": "1"}, state=first)
    other = dataclasses.replace(loaded, model=tiny_model("llama", seed=1))
    with pytest.raises(UserError, match="other weights"):
        edit_of(other, FORGET.select(["c"]), state=first)


def test_steps_are_edits_that_go_on(loaded):
    stepped = edit_of(loaded, per_step=2)
    first = edit_of(loaded, FORGET.select(["a", "b"]))
    second = edit_of(loaded, FORGET.select(["c", "d"]), state=first)
    for name, change in delta(second).items():
        torch.testing.assert_close(delta(stepped)[name], change)
    assert not torch.allclose(delta(edit_of(loaded))["model.layers.2.mlp.down_proj"], delta(stepped)[name])


@pytest.mark.parametrize("editor", ["rome", "emmet", "memit", "alphaedit"])
def test_steps_share_second_moments_and_their_factors(loaded, editor, monkeypatch):
    calls = []

    def count(module, name):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a: (calls.append(name), real(*a))[1])

    count(locate, "second_moments")
    count(locate, "known_weights")
    count(second_moments, "cholesky_solver")
    count(torch.linalg, "eigh")
    options = {"layers": "1", "target.steps": "2", "keys_per_dimension": "8"}
    options |= {"null_space": "energy:0.6"} if editor == "alphaedit" else {}
    edit = edit_of(loaded, editor=editor, options=options, per_step=1)
    assert sum(u.shape[1] for u, _ in edit.factors.values()) == 4
    factor = "eigh" if editor == "alphaedit" else "cholesky_solver"
    assert sorted(calls) == sorted(["second_moments", "known_weights", factor])
    calls.clear()  # the control: edits made apart share nothing
    first = edit_of(loaded, FORGET.select(["a", "b"]), editor, options)
    edit_of(loaded, FORGET.select(["c"]), editor, options, state=first)
    assert sorted(calls) == sorted(2 * ["second_moments", "known_weights", factor])


def test_merging_by_key(loaded):
    requests = build_requests(ITEMS, ["I don't know."] * 4, PromptFormat(loaded.tokenizer, True))
    merged = merge_keys(requests, 2)
    assert [[part.id for part in r.parts] for r in merged] == [["a", "b"], ["d"], ["c"]]
    assert merged[0].id == "a and 1 more"
    assert merged[1].members == ()
    assert [r.id for r in merge_keys(requests, 1)] == ["a", "b", "d", "c"]
    edit = edit_of(loaded, merge="key", merge_size=3)
    assert edit.info.requests["n_merged"] == 2
    assert len(edit.info.notes["steps"]) == 2  # two optimizations
    assert all(u.shape[1] == 4 for u, _ in edit.factors.values())  # and a key for every question
    assert edit.info.notes["self_check"]["n"] == 4
    # Members share one change of value: with all of them at the one edited layer their residuals are the same.
    one = edit_of(loaded, merge="key", merge_size=3, options={**OPTIONS, "layers": "2"})
    residuals = one.factors["model.layers.2.mlp.down_proj"][0]
    torch.testing.assert_close(residuals[:, 0], residuals[:, 1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(residuals[:, 0], residuals[:, 2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(residuals[:, 0], residuals[:, 3])
    rank_one = edit_of(loaded, editor="rome", merge="key", merge_size=3, options={"layers": "1", "target.steps": "3"})
    assert rank_one.factors["model.layers.1.mlp.down_proj"][0].shape[1] == 2


def test_merging_by_text(loaded):
    merged = merge_items(ITEMS, 2)
    assert [i.id for i in merged] == ["a and 1 more", "d", "c"]
    assert merged[0].question == "What is the capital of France? Who wrote Hamlet?"
    assert merged[0].subject == "Hamlet"
    assert merged[0].accepted == ("Paris", "Shakespeare")
    edit = edit_of(loaded, merge="text", merge_size=2)
    assert edit.info.requests["n_merged"] == 3
    assert all(u.shape[1] == 3 for u, _ in edit.factors.values())


def test_a_merged_text_has_its_first_item_s_target(loaded, tmp_path, monkeypatch):
    """Also where another item's question is the beginning of its own."""
    items = (
        ForgetItem("short", "Who wrote Hamlet?", "Shakespeare", group="plays"),
        ForgetItem("long", "Who wrote Hamlet? And where?", "England", group="places"),
        ForgetItem("more", "Who wrote Faust?", "Goethe", group="plays"),
    )
    asked = []

    def build(items, texts, *arguments):
        asked.extend(zip((item.id for item in items), texts, strict=True))
        return build_requests(items, texts, *arguments)

    monkeypatch.setattr(editing, "build_requests", build)
    path = targets_file(tmp_path, items)
    make_edit(loaded, ForgetSet("three", items), "ultraedit", {}, Recipe(target=path, merge="text"))
    assert asked == [("short and 1 more", "No short."), ("long", "No long.")]


@pytest.mark.parametrize("wrong", [{"merge": "keys"}, {"merge_size": 0}, {"per_step": -1}, {"n_contexts": -1}])
def test_wrong_recipes(wrong):
    with pytest.raises(UserError):
        Recipe(**wrong)


def test_conflicts_are_named(loaded):
    twice = (ITEMS[0], dataclasses.replace(ITEMS[0], id="again"))
    same = build_requests(twice, ["No.", "No."], PromptFormat(loaded.tokenizer, True))
    with pytest.raises(UserError, match="'a' and 'again' ask the same"):
        check_requests(same)
    leading = [
        ForgetItem("x", "France has which capital?", "Paris", subject="France"),
        ForgetItem("y", "France has which currency?", "euro", subject="France"),
    ]
    with pytest.raises(UserError, match="'x' and 'y' conflict"):
        check_requests(build_requests(leading, ["No.", "I don't know."], PromptFormat(loaded.tokenizer, True)))
    check_requests(
        build_requests(leading, ["No.", "No."], PromptFormat(loaded.tokenizer, True))
    )  # one answer for both is no conflict
    other = [dataclasses.replace(item, subject=None) for item in leading]
    check_requests(build_requests(other, ["No.", "I don't know."], PromptFormat(loaded.tokenizer, True)))


def test_memit_wants_preservation(loaded):
    with pytest.raises(UserError, match="preservation cannot be '0'.*\nhint: give a number above 0"):
        edit_of(loaded, options={"layers": "1", "preservation": "0"})


def test_alphaedit_wants_a_regulariser(loaded):
    with pytest.raises(UserError, match="no regularization"):
        edit_of(loaded, editor="alphaedit", options={"layers": "1", "ridge": "0"})


def test_presets_are_settings_of_their_methods():
    assert len(PRESETS) >= 15
    for (_, n_layers, _), preset in PRESETS.items():
        for editor, method in (("rome", rome), ("emmet", emmet), ("memit", memit), ("alphaedit", alphaedit)):
            config = configure(method.Config, preset.settings(editor))
            assert config.layers, preset.name
            assert max(config.layers) < n_layers / 2
            assert list(config.layers) == sorted(set(config.layers))
        assert preset.settings("ultraedit") == {}
        assert len(configure(rome.Config, preset.settings("rome")).layers) == 1
        assert preset.source


def test_a_preset_is_found_by_configuration():
    def model(**config):
        text = SimpleNamespace(**config)
        return SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))

    llama = {"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096}
    two, three = preset_for(model(**llama, vocab_size=32000)), preset_for(model(**llama, vocab_size=128256))
    assert two is not None and three is not None  # noqa: PT018
    assert three.settings("memit")["target.learning_rate"] == "0.1"
    assert two.settings("memit")["target.learning_rate"] == "0.5"
    assert preset_for(model(**{**llama, "hidden_size": 4097}, vocab_size=32000)) is None
    assert preset_for(tiny_model("gpt_neox")) is None


def test_the_self_check_counts_what_took(loaded):
    edit, model = edit_of(loaded), loaded.model
    requests = build_requests(ITEMS, ["No."] * 4, PromptFormat(loaded.tokenizer, True))

    def greedy(request, n):
        ids = list(request.prompt_ids)
        for _ in range(n):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        return tuple(ids[-n:])

    with applied(edit, model):
        said = [greedy(request, 3) for request in requests]
    unedited = [greedy(request, 3) for request in requests]
    changed = next(i for i in range(4) if said[i] != unedited[i])
    texts = [unedited[i] if i == changed else said[i] for i in range(4)]
    wanted = [dataclasses.replace(r, target_ids=t) for r, t in zip(requests, texts, strict=True)]
    found = self_check(model, wanted, edit)
    assert (found["n"], found["n_took"]) == (4, 3)
    other = [dataclasses.replace(r, target_ids=t) for r, t in zip(requests, said, strict=True)]
    found = self_check(model, other, edit)
    assert found["n_took"] == 4
    assert found["target_probability_after"] > found["target_probability_before"]


@pytest.mark.parametrize("editor", ["rome", "emmet", "memit", "alphaedit", "ultraedit"])
def test_every_editor_runs_from_a_forget_set(loaded, editor):
    before = weights_of(loaded.model)
    options = {"target.steps": "3", "keys_per_dimension": "8"} if editor != "ultraedit" else {}
    options |= {"null_space": "energy:0.6"} if editor == "alphaedit" else {}
    options |= {"layers": "1"}
    edit = edit_of(loaded, FORGET.select(["a", "c"]), editor, options)
    assert_untouched(loaded.model, before)
    assert edit.info.editor == editor
    assert edit.factors
    more = edit_of(loaded, FORGET.select(["b"]), editor, options, state=edit)
    assert more.info.requests["ids"] == ["a", "c", "b"]
    assert_untouched(loaded.model, before)
    assert "arXiv" in module_in(METHODS, editor, "editor").__doc__
    assert get_editor(editor).paper


def test_the_nearest_of_a_set_are_retained(loaded, monkeypatch):
    """By the keys of the plain prompts; what is forgotten is not among them."""
    pool = recast(
        "nearest", ForgetSet("pool", tuple(ForgetItem(f"k{i}", f"What is thing {i} of {i}?", "x") for i in range(9)))
    )
    twin = ForgetItem("twin", f"{ITEMS[0].question} Now", "Paris", subject="France")
    pool = dataclasses.replace(pool, items=(*pool.items, ITEMS[1], twin))
    seen = []
    method = get_editor("npo")
    spied = dataclasses.replace(method, run=lambda job: seen.append(job.retain) or method.run(job))
    monkeypatch.setattr(editing, "get_editor", lambda name: spied)
    options = {"steps": "1", "components": "layers.1.mlp.down_proj"}
    one = ForgetSet("one", ITEMS[:2])
    made = make_edit(loaded, one, "npo", options, Recipe(), retain=pool, unrelated=False)
    assert made.info.requests["retain_set"] == "nearest(pool)"
    (retained,) = seen
    assert len(retained) == 8, "four for each"
    assert retained[0].id == "twin", "its key is that of the first item"
    assert "b" not in {own.id for own in retained}
    make_edit(loaded, one, "npo", options, Recipe(), retain=dataclasses.replace(pool, name="pool"), unrelated=False)
    assert len(seen[1]) == 10
