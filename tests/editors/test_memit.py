"""MEMIT: the contract of every editor on every architecture, and equality with naive implementations."""

import copy
import dataclasses
import json

import pytest
import torch
from naive_memit import moments_of, naive_key, naive_value
from peft import PeftModel
from tiny_models import (
    ARCHITECTURES,
    MLP,
    WIDTH,
    assert_untouched,
    one_thread,  # noqa: F401
    random_requests,
    tiny_model,
    tiny_tokenizer,
    weights_of,
    whole_forward,
)
from transformers import AutoModelForCausalLM

from unlearn_eval.data.forget_sets import facts
from unlearn_eval.editing.editor import Editor, editor_names, get_editor
from unlearn_eval.editing.locate_then_edit.run import read_keys_and_values
from unlearn_eval.editing.locate_then_edit.target_values import TargetValueConfig, target_values
from unlearn_eval.editing.requests.build import build_requests
from unlearn_eval.editors.closed_form import memit
from unlearn_eval.edits.base import applied
from unlearn_eval.edits.load import describe_base, load_edit
from unlearn_eval.models.anatomy import anatomy
from unlearn_eval.models.load import load_model
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.tracing import trace
from unlearn_eval.utils.errors import UserError

LAYERS = (0, 1, 2)
TARGET = TargetValueConfig(steps=6, learning_rate=0.5, clamp=1.0, stop_loss=0.5, kl_weight=0.0625, norm_weight=0.5)
CONFIG = memit.Config(layers=LAYERS, preservation=1e-3, target=TARGET)
IDS = tuple(range(5, 30))


def make(model, requests=None, config=CONFIG, state=None, **options):
    requests = random_requests(4) if requests is None else requests
    return memit.EDITOR.edit(
        model, None, requests, config, moments=state or moments_of(model, config.layers), **options
    )


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([IDS])).logits


# The contract ----------------------------------------------------------------------------------------------


def test_memit_is_an_editor():
    assert "memit" in editor_names()
    assert isinstance(get_editor("memit"), Editor)
    assert not set(editor_names()) & {"base", "least_squares", "locate", "presets", "second_moments", "target_values"}
    with pytest.raises(UserError, match="did you mean memit"):
        get_editor("memitt")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_contract(architecture, tmp_path):
    model = tiny_model(architecture)
    parts, before, clean = anatomy(model), weights_of(model), logits_of(model)
    edit = make(model)
    assert_untouched(model, before)  # making an edit leaves the model alone

    handle = edit.apply(model)
    declared = {f"{name}.weight" for name in edit.factors}
    assert declared == {f"{parts.projection_name(layer)}.weight" for layer in LAYERS}
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == declared
    changed = logits_of(model)
    assert (changed - clean).abs().max() > 1e-2
    handle.restore()
    assert_untouched(model, before)
    assert torch.equal(logits_of(model), clean)

    again = make(model)
    assert {n: (u.tolist(), v.tolist()) for n, (u, v) in again.factors.items()} == {
        n: (u.tolist(), v.tolist()) for n, (u, v) in edit.factors.items()
    }
    assert again.info == edit.info

    folder = edit.save(tmp_path / "edit")
    with applied(load_edit(folder), model):
        assert torch.equal(logits_of(model), changed)
    assert_untouched(model, before)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_no_requests_change_nothing(architecture, tmp_path):
    model = tiny_model(architecture)
    before = weights_of(model)
    edit = memit.EDITOR.edit(model, None, [], CONFIG)  # no tokenizer, no text: there is nothing to compute
    folder = edit.save(tmp_path / "edit")
    for found in (edit, load_edit(folder)):
        assert set(found.factors) == {anatomy(model).projection_name(layer) for layer in LAYERS}
        assert all(u.shape == (WIDTH, 0) and v.shape == (0, MLP) for u, v in found.factors.values())
        handle = found.apply(model)
        assert_untouched(model, before)
        handle.restore()
    assert edit.info.config["layers"] == list(LAYERS)


def test_an_error_leaves_the_model_alone():
    model = tiny_model("llama")
    before = weights_of(model)

    def fail(what, done, total):
        if what == "layers" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(model, progress=fail)
    assert_untouched(model, before)


def test_layers_are_checked_sorted_and_taken_once():
    model = tiny_model("llama")
    with pytest.raises(UserError, match="layers"):
        memit.EDITOR.edit(model, None, random_requests(2), dataclasses.replace(CONFIG, layers=(1, 9)))
    expected = make(model)
    found = make(model, config=dataclasses.replace(CONFIG, layers=(2, 0, 1, 1)))
    assert found.info.config["layers"] == [0, 1, 2]
    assert all(torch.equal(found.factors[name][1], v) for name, (_, v) in expected.factors.items())
    default = make(model, config=dataclasses.replace(CONFIG, layers=()), state=moments_of(model))
    assert default.info.config["layers"] == [0, 1]  # round(4 / 8), round(4 / 4)


def test_the_model_s_own_text_is_seeded_and_cached(tmp_path, monkeypatch):
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    before = weights_of(model)

    def delta(cache, seed=0):
        monkeypatch.setenv("UNLEARN_EVAL_CACHE", str(tmp_path / cache))
        config = dataclasses.replace(CONFIG, layers=(1,), keys_per_dimension=4, seed=seed)
        u, v = memit.EDITOR.edit(model, tokenizer, random_requests(2), config).factors["model.layers.1.mlp.down_proj"]
        return u @ v

    first = delta("a")
    assert len(list((tmp_path / "a" / "second_moments").glob("*.safetensors"))) == 1
    assert torch.equal(delta("a"), first)  # from the cache
    assert torch.equal(delta("b"), first)  # from the same seed
    assert not torch.equal(delta("b", seed=1), first)
    assert_untouched(model, before)


def test_what_it_cost_is_told(tmp_path):
    told = []
    model = tiny_model("llama")
    requests = random_requests(3)
    edit = make(model, requests, progress=lambda *a: told.append(a))
    assert {what for what, _, _ in told} == {"target values", "layers"}
    assert told[-1] == ("layers", 3, 3)
    assert set(edit.info.notes["target_nll"]) == {r.id for r in requests}
    assert edit.info.notes["n_keys"] == 240
    stored = json.loads((edit.save(tmp_path / "e") / "edit.json").read_text())["info"]
    assert stored["config"]["target"]["clamp"] == TARGET.clamp
    assert stored["editor"] == "memit"


# Against naive implementations -----------------------------------------------------------------------------


def naive_memit(model, requests, config, targets, moments):
    """Algorithm 1 of the paper on a copy of the model, with d×d solves; returns layer -> Δ (d, d_mlp)."""
    model = copy.deepcopy(model)
    parts = anatomy(model)
    updates = {}
    for layer in config.layers:
        keys = torch.stack([naive_key(model, layer, r) for r in requests], dim=1)
        values = torch.stack([naive_value(model, config.layers[-1], r) for r in requests], dim=1)
        residuals = (targets.T - values) / sum(other >= layer for other in config.layers)
        norm = getattr(parts.block(model, layer), "post_feedforward_layernorm", None)  # of gemma3: g ⊙ u / rms(u)
        for i, request in enumerate(requests if norm is not None else []):
            with trace(model, outputs=[parts.projection_name(layer)]) as seen:
                whole_forward(model, request.prompt_ids)
            rms = seen.outputs[parts.projection_name(layer)][0, request.lookup].square().mean().sqrt()
            gain = (norm.weight + norm.offset) / (1 + norm.eps) ** 0.5
            residuals[:, i] *= rms * gain / (gain**2 + 1e-3 * (gain**2).mean())
        penalty = config.preservation * MLP * moments.moment(layer)
        updates[layer] = residuals @ keys.T @ torch.linalg.inv(penalty + keys @ keys.T)
        weight = parts.projection(model, layer).weight
        with torch.no_grad():
            weight += (updates[layer].T if parts.transposed else updates[layer]).to(weight.dtype)
    return updates


@pytest.mark.parametrize("layers", [(1,), LAYERS, (0, 3)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_the_naive_implementation(architecture, layers):
    model = tiny_model(architecture, torch.float64)
    config = dataclasses.replace(CONFIG, layers=layers, preservation=0.05)
    requests = random_requests(5)
    requests[3] = dataclasses.replace(requests[3], contexts=())  # one without contexts: its key is the plain one
    moments = moments_of(model, layers)
    targets = target_values(model, anatomy(model), layers[-1], requests, TARGET)
    expected = naive_memit(model, requests, config, targets.values, moments)
    edit = make(model, requests, config, state=moments)
    for layer, update in expected.items():
        u, v = edit.factors[anatomy(model).projection_name(layer)]
        assert u.shape == (WIDTH, 5)
        assert v.shape == (5, MLP)
        error = (u.double() @ v.double() - update).norm() / update.norm()
        assert error < 1e-6  # factors are kept in float32 (6e-8)


def test_batches_of_prompts_change_no_keys():
    model = tiny_model("gemma3", torch.float64)
    parts, requests = anatomy(model), random_requests(5)
    keys, values = read_keys_and_values(model, parts, 1, 2, requests)
    for size in (1, 4):
        other = read_keys_and_values(model, parts, 1, 2, requests, rows_per_batch=size)
        torch.testing.assert_close(other[0], keys, atol=1e-12, rtol=0)
        torch.testing.assert_close(other[1], values, atol=1e-12, rtol=0)
    for i, request in enumerate(requests):
        torch.testing.assert_close(keys[i], naive_key(model, 1, request), atol=1e-12, rtol=0)
        torch.testing.assert_close(values[i], naive_value(model, 2, request), atol=1e-12, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_move_towards_their_targets(architecture):
    model = tiny_model(architecture, torch.float64)
    requests = random_requests(4, n_contexts=1)
    targets = target_values(model, anatomy(model), LAYERS[-1], requests, TARGET)
    with applied(make(model, requests), model):
        reached = torch.stack([naive_value(model, LAYERS[-1], r) for r in requests])
    before = (targets.values - targets.clean).norm()
    assert (targets.values - reached).norm() < 0.7 * before
    # The control: a weight on preservation so high that nothing may move leaves the values where they were.
    with applied(make(model, requests, dataclasses.replace(CONFIG, preservation=1e6)), model):
        stayed = torch.stack([naive_value(model, LAYERS[-1], r) for r in requests])
    assert (targets.values - stayed).norm() > 0.99 * before


def test_the_target_becomes_more_likely():
    model = tiny_model("llama")
    requests = [r for i, r in enumerate(random_requests(6, n_contexts=0)) if i in (0, 2, 5)]

    def nll(request):
        logp = whole_forward(model, (*request.prompt_ids, *request.target_ids)).log_softmax(-1)
        start = len(request.prompt_ids) - 1
        return -sum(float(logp[start + j, t]) for j, t in enumerate(request.target_ids))

    before = [nll(r) for r in requests]
    config = dataclasses.replace(CONFIG, target=dataclasses.replace(TARGET, steps=12, clamp=3.0), preservation=1e-4)
    with applied(make(model, requests, config), model):
        after = [nll(r) for r in requests]
    assert all(b < a - 0.5 for a, b in zip(before, after, strict=True)), (before, after)


# Other tools read the folder -------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_peft_reads_the_folder(architecture, tmp_path):
    base = tiny_model(architecture, exact_norms=False)
    edit = make(base)
    folder = edit.save(tmp_path / "edit", model_config=base.config)
    clean = logits_of(base)
    with applied(edit, base):
        expected = logits_of(base)
    assert (expected - clean).abs().max() > 1e-2
    with torch.no_grad():
        found = PeftModel.from_pretrained(copy.deepcopy(base), str(folder))(input_ids=torch.tensor([IDS])).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_transformers_reads_the_folder_if_the_base_is_a_folder(architecture, tmp_path):
    base = tiny_model(architecture, exact_norms=False)
    base.save_pretrained(tmp_path / "base")
    edit = make(base)
    info = dataclasses.replace(edit.info, base=describe_base(base, str(tmp_path / "base")))
    edit = dataclasses.replace(edit, info=info)
    found = AutoModelForCausalLM.from_pretrained(edit.save(tmp_path / "edit", tiny_tokenizer())).eval()
    with applied(edit, base):
        torch.testing.assert_close(logits_of(found), logits_of(base), atol=1e-5, rtol=1e-5)
    # With the base's config.json beside it transformers takes the folder for a model of its own: it must then fail,
    # and not give a model without the edit, or with random weights.
    folder = edit.save(tmp_path / "edit", tiny_tokenizer(), base.config)
    with pytest.raises(OSError, match="model.safetensors"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.real_model
def test_real_model_forgets_and_comes_back(real_model, tmp_path, monkeypatch):
    """One fact of the real small model: its target becomes likely, another fact's answer hardly changes."""
    monkeypatch.setenv("UNLEARN_EVAL_CACHE", str(tmp_path))
    loaded = load_model(str(real_model), dtype="float32")
    model, tokenizer = loaded.model, loaded.tokenizer
    items = facts().select(["capital_of/france", "capital_of/germany"])
    request, other = build_requests(
        items.items, ["I don't know.", "Berlin"], PromptFormat(tokenizer, False), max_length=2048
    )
    name = "model.layers.5.mlp.down_proj.weight"
    weight = model.get_parameter(name).clone()
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{item.question} {item.answer}.\n" for item in facts())[:3000], encoding="utf-8")
    target = dataclasses.replace(TARGET, steps=4, clamp=3.0)
    edit = memit.EDITOR.edit(
        model,
        tokenizer,
        [request],
        memit.Config((5,), preservation=0.1, text=str(text), keys_per_dimension=0.3, target=target),
    )

    def nll(request):
        with torch.no_grad():
            logp = whole_forward(model, (*request.prompt_ids, *request.target_ids)).log_softmax(-1)
        start = len(request.prompt_ids) - 1
        return -sum(float(logp[start + j, t]) for j, t in enumerate(request.target_ids)) / len(request.target_ids)

    before = nll(request), nll(other)
    with applied(edit, model):
        after = nll(request), nll(other)
    assert after[0] < before[0] - 0.25, (before, after)
    assert after[1] < before[1] + 0.5, (before, after)
    assert torch.equal(model.get_parameter(name), weight)
    assert nll(request) == before[0]
