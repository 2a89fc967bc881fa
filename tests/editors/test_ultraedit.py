"""UltraEdit: the contract of every editor on every architecture, and equality with slow plain implementations."""

import copy
import dataclasses

import pytest
import torch
from peft import PeftModel
from tiny_models import (
    ARCHITECTURES,
    LAYERS,
    MLP,
    WIDTH,
    assert_untouched,
    one_thread,  # noqa: F401
    random_ids,
    random_requests,
    tiny_model,
    weights_of,
    whole_forward,
)
from torch import nn

from unlearn_eval.data.forget_sets import facts
from unlearn_eval.editing.editor import Editor, editor_names, get_editor
from unlearn_eval.editing.requests.build import build_requests
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.editors.closed_form import ultraedit
from unlearn_eval.editors.closed_form.ultraedit import Config, Moments
from unlearn_eval.edits.base import EditInfo, applied
from unlearn_eval.edits.load import load_edit
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.models.anatomy import anatomy
from unlearn_eval.models.load import load_model
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import configure

CONFIG = Config(layers=(1, 2), learning_rate=0.1)
IDS = tuple(range(5, 30))
GATED = ("llama", "qwen2", "gemma3")
INPUTS = {"gpt2": ["c_fc"], "gpt_neox": ["dense_h_to_4h"]} | {name: ["gate_proj", "up_proj"] for name in GATED}


def make(model, requests=None, config=CONFIG, **options):
    return ultraedit.EDITOR.edit(model, None, random_requests(4) if requests is None else requests, config, **options)


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([IDS])).logits


def products(edit):
    return {name: u.double() @ v.double() for name, (u, v) in edit.factors.items()}


def assert_same(one, other, tolerance):
    """The changes are equal within a part of the first one's norm."""
    one, other = products(one) if isinstance(one, LowRankEdit) else one, products(other)
    assert one.keys() == other.keys()
    for name, delta in one.items():
        assert delta.norm() > 0
        assert (delta - other[name]).norm() <= tolerance * delta.norm(), name


def nll(model, request):
    """The summed NLL of a target, from a whole pass."""
    logp = whole_forward(model, (*request.prompt_ids, *request.target_ids)).log_softmax(-1)
    start = len(request.prompt_ids) - 1
    return -sum(logp[start + j, token] for j, token in enumerate(request.target_ids))


# The contract ----------------------------------------------------------------------------------------------


def test_ultraedit_is_an_editor():
    assert "ultraedit" in editor_names()
    assert isinstance(get_editor("ultraedit"), Editor)
    config = configure(Config, {"layers": "3,4", "modules": "up", "pooled": "true", "learning_rate": "1e-6"})
    assert config == Config((3, 4), "up", 1e-6, pooled=True)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_contract(architecture, tmp_path):
    model = tiny_model(architecture)
    parts, before, clean = anatomy(model), weights_of(model), logits_of(model)
    edit = make(model)
    assert_untouched(model, before)  # making an edit leaves the model alone
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())

    handle = edit.apply(model)
    inside = [f"mlp.{name}.weight" for name in INPUTS[architecture]]
    declared = {f"{parts.blocks}.{layer}.{name}" for layer in CONFIG.layers for name in inside}
    assert {f"{name}.weight" for name in edit.factors} == declared
    assert {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])} == declared
    changed = logits_of(model)
    assert (changed - clean).abs().max() > 1e-2
    handle.restore()
    assert_untouched(model, before)
    assert torch.equal(logits_of(model), clean)

    again = make(model)
    assert all(torch.equal(a, b) for n in edit.factors for a, b in zip(again.factors[n], edit.factors[n], strict=True))
    assert all(torch.equal(again.state[key], value) for key, value in edit.state.items())
    assert again.info == edit.info

    loaded = load_edit(edit.save(tmp_path / "edit"))
    with applied(loaded, model):
        assert torch.equal(logits_of(model), changed)
    assert_untouched(model, before)
    more = random_requests(3, seed=9)  # a saved edit can be continued; its statistics are kept in float32 (6e-8)
    assert_same(make(model, more, state=edit), make(model, more, state=loaded), 1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_no_requests_change_nothing(architecture, tmp_path):
    model = tiny_model(architecture)
    before = weights_of(model)
    edit = make(model, [])
    folder = edit.save(tmp_path / "edit")
    for found in (edit, load_edit(folder)):
        assert set(found.factors) == set(make(model).factors)
        assert all(u.shape[1] == v.shape[0] == 0 for u, v in found.factors.values())
        handle = found.apply(model)
        assert_untouched(model, before)
        handle.restore()
    assert edit.info.config["layers"] == list(CONFIG.layers)
    some = make(model)
    assert_same(some, make(model, [], state=some), 0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_peft_reads_the_folder(architecture, tmp_path):
    base = tiny_model(architecture, exact_norms=False)
    edit = make(base)
    folder = edit.save(tmp_path / "edit", model_config=base.config)
    with applied(edit, base):
        expected = logits_of(base)
    with torch.no_grad():
        found = PeftModel.from_pretrained(copy.deepcopy(base), str(folder))(input_ids=torch.tensor([IDS])).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (expected - logits_of(base)).abs().max() > 1e-2


@pytest.mark.parametrize("requires_grad", [False, True])
def test_nothing_is_left_in_the_model_also_after_an_error(requires_grad):
    model = tiny_model("llama")
    model.lm_head.requires_grad_(requires_grad)
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    before, flags = weights_of(model), [p.requires_grad for p in model.parameters()]

    def interrupt(what, done, total):
        if done == 2:
            raise KeyboardInterrupt

    def stop(module, arguments, output):
        raise KeyboardInterrupt

    with torch.no_grad():
        edit = make(model)
    assert not any(tensor.requires_grad for factors in edit.factors.values() for tensor in factors)
    with pytest.raises(KeyboardInterrupt):
        make(model, config=dataclasses.replace(CONFIG, requests_per_step=2), progress=interrupt)
    handle = model.model.layers[3].register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        make(model, state=edit)
    handle.remove()
    assert_untouched(model, before)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(model.lm_head.weight.grad, torch.ones_like(model.lm_head.weight))
    assert all(p.grad is None for p in model.parameters() if p is not model.lm_head.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_nearly_the_same(dtype):
    wide = tiny_model("llama", dtype).float()
    narrow = copy.deepcopy(wide).to(dtype)
    before = weights_of(narrow)
    expected, found = products(make(wide)), products(make(narrow))
    assert_untouched(narrow, before)
    for name, delta in expected.items():
        cosine = nn.functional.cosine_similarity(delta.flatten(), found[name].flatten(), dim=0)
        assert cosine > 0.95, (name, cosine)


def test_the_target_becomes_more_likely():
    model = tiny_model("llama")
    requests = random_requests(6)
    config = dataclasses.replace(CONFIG, learning_rate=0.05, passes=3)
    edit = make(model, requests, config)
    before = [float(nll(model, r)) for r in requests]
    with applied(edit, model):
        after = [float(nll(model, r)) for r in requests]
    assert sum(after) < 0.8 * sum(before), (before, after)
    noted = edit.info.notes
    assert noted["nll_before"] == pytest.approx(
        {r.id: b / len(r.target_ids) for r, b in zip(requests, before, strict=True)}, rel=1e-4
    )
    assert sorted(noted["mean_nll_by_pass"], reverse=True) == noted["mean_nll_by_pass"]
    assert noted["n_tokens"] == sum(len(r.target_ids) for r in requests)
    # The control: the opposite learning rate makes targets less likely.
    wrong = LowRankEdit({name: (-u, v) for name, (u, v) in edit.factors.items()}, edit.info)
    with applied(wrong, model):
        assert sum(float(nll(model, r)) for r in requests) > sum(before)


# Against a plain implementation ----------------------------------------------------------------------------


def read_plainly(model, names, requests):
    """Rows of h, g and y at the predicting tokens, each request alone, through the library's own backward hooks."""
    rows = {name: ([], [], []) for name in names}
    for request in requests:
        seen, handles = {}, []
        for name in names:
            module = model.get_submodule(name)
            module.weight.requires_grad_(True)

            def forward(module, arguments, output, name=name, seen=seen):
                seen[name] = [arguments[0].detach(), output.detach()]

            def backward(module, inputs, outputs, name=name, seen=seen):
                seen[name].append(outputs[0].detach())

            handles += [module.register_forward_hook(forward), module.register_full_backward_hook(backward)]
        nll(model, request).backward()
        where = slice(len(request.prompt_ids) - 1, len(request.prompt_ids) + len(request.target_ids) - 1)
        for name in names:
            h, y, g = (tensor[0, where] for tensor in seen[name])
            for kept, tensor in zip(rows[name], (h, g, y), strict=True):
                kept.append(tensor)
        for handle in handles:
            handle.remove()
        model.zero_grad(set_to_none=True)
        model.requires_grad_(False)
    return {name: [torch.cat(kind) for kind in kinds] for name, kinds in rows.items()}


def plain_ultraedit(model, names, steps, config):
    """The formula of the docstring on a copy of the model with d×d systems; returns name -> Δ (d_out, d_in)."""
    model = copy.deepcopy(model)
    past = {name: [] for name in names}  # every row so far, instead of running statistics
    total = dict.fromkeys(names, 0.0)
    for requests in steps:
        rows = read_plainly(model, names, requests)
        for name in names:
            past[name].append(rows[name])
        for name in names:
            h, g, _ = rows[name]
            same = [n for n in names if rows[n][0].shape == h.shape and rows[n][1].shape == g.shape]
            counted = [part for n in (same if config.pooled else [name]) for part in past[n]]
            all_h, all_g = torch.cat([part[0] for part in counted]), torch.cat([part[1] for part in counted])
            own_y = torch.cat([part[2] for part in past[name]])
            h_hat = (h - all_h.mean(0)) / (all_h.std(0) + 2**-23)
            g_hat = (g - all_g.mean(0)) / (all_g.std(0) + 2**-23)
            size = own_y.square().mean().sqrt() / h.shape[1] if config.scale == "relative" else 1.0
            values = torch.stack(
                [-config.learning_rate * size * (a @ a) * b for a, b in zip(h_hat, g_hat, strict=True)]
            )
            eye = torch.eye(h.shape[1], dtype=h.dtype)
            shift = torch.linalg.inv(h.T @ h + config.ridge * eye) @ h.T @ values  # (d_in, d_out)
            total[name] = total[name] + shift.T
            module = model.get_submodule(name)
            stored = shift if type(module).__name__ == "Conv1D" else shift.T
            with torch.no_grad():
                module.weight += stored
    return total


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"modules": "down", "ridge": 10.0},
        {"pooled": True, "scale": "absolute", "learning_rate": 1e-3},
        {"requests_per_step": 2, "passes": 2, "learning_rate": 0.02},
    ],
)
@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_a_plain_implementation(architecture, options):
    model = tiny_model(architecture, torch.float64)
    before = weights_of(model)
    config = dataclasses.replace(CONFIG, **options)
    requests = random_requests(5)
    names = ultraedit.projections(model, anatomy(model), config.layers, config.modules)
    size = config.requests_per_step
    steps = [requests[i : i + size] for i in range(0, len(requests), size)] * config.passes
    expected = plain_ultraedit(model, names, steps, config)
    edit = make(model, requests, config)
    assert_same(expected, edit, 1e-8)
    assert_untouched(model, before)
    assert all(u.dtype == v.dtype == torch.float64 for u, v in edit.factors.values())


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_more_tokens_than_dimensions_make_no_wider_factors(architecture):
    model = tiny_model(architecture, torch.float64)
    requests = [dataclasses.replace(r, id=f"{i}", target_ids=IDS[:6]) for i, r in enumerate(random_requests(6) * 2)]
    for modules in ("gate_up", "down"):  # more inputs than outputs, and fewer
        config = dataclasses.replace(CONFIG, modules=modules, ridge=10.0)
        names = ultraedit.projections(model, anatomy(model), config.layers, modules)
        edit = make(model, requests, config)
        assert sum(len(r.target_ids) for r in requests) > 2 * MLP
        assert all(u.shape[1] == v.shape[0] == WIDTH for u, v in edit.factors.values())
        assert_same(plain_ultraedit(model, names, [requests], config), edit, 1e-8)
        few = make(model, requests, dataclasses.replace(config, requests_per_step=2))
        assert all(u.shape[1] == v.shape[0] == WIDTH for u, v in few.factors.values())


def test_the_authors_scale_does_not_follow_the_outputs_and_ours_does():
    """Twice the weights of the edited map, and half of what reads it: the same function, twice the shift."""
    model = tiny_model("gpt2", torch.float64)
    name = "transformer.h.1.mlp.c_fc"
    config = dataclasses.replace(CONFIG, layers=(1,))
    other = copy.deepcopy(model)
    inner = other.get_submodule(name)
    inner.weight.data *= 2
    inner.bias.data *= 2
    act = other.transformer.h[1].mlp.act
    other.transformer.h[1].mlp.act = type("Halved", (nn.Module,), {"forward": lambda self, x: act(x / 2)})()
    torch.testing.assert_close(logits_of(other), logits_of(model), atol=1e-10, rtol=0)
    absolute = dataclasses.replace(config, scale="absolute", learning_rate=1e-3)
    delta, doubled = products(make(model, config=config))[name], products(make(other, config=config))[name]
    torch.testing.assert_close(doubled, 2 * delta, rtol=1e-4, atol=1e-8)
    delta, doubled = products(make(model, config=absolute))[name], products(make(other, config=absolute))[name]
    torch.testing.assert_close(doubled, delta, rtol=1e-4, atol=1e-8)


# Batches, steps and states -----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batches_change_nothing(architecture):
    model = tiny_model(architecture, torch.float64)
    requests = random_requests(6)
    expected = make(model, requests)
    for tokens in (1, 40):
        found = make(model, requests, dataclasses.replace(CONFIG, tokens_per_batch=tokens))
        assert_same(expected, found, 1e-10)
        for key, value in expected.state.items():
            torch.testing.assert_close(found.state[key], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_going_on_from_a_state_is_the_next_step(architecture):
    model = tiny_model(architecture)
    requests = random_requests(6)
    whole = make(model, requests, dataclasses.replace(CONFIG, requests_per_step=2))
    state = None
    for start in (0, 2, 4):
        state = make(model, requests[start : start + 2], state=state)
    for name, factors in whole.factors.items():
        assert all(torch.equal(a, b) for a, b in zip(factors, state.factors[name], strict=True)), name
    assert whole.state.keys() == state.state.keys()
    assert all(torch.equal(value, state.state[key]) for key, value in whole.state.items())
    # The control: steps are not one batch, nor edits made apart; later gradients see the earlier change.
    one, apart = make(model, requests), make(model, requests[4:])
    name = next(iter(whole.factors))
    assert (products(one)[name] - products(whole)[name]).norm() > 0.05 * products(one)[name].norm()
    first = make(model, requests[:4], dataclasses.replace(CONFIG, requests_per_step=2))
    summed = products(first)[name] + products(apart)[name]
    assert (summed - products(whole)[name]).norm() > 0.05 * summed.norm()


def test_passes_are_states_too():
    model = tiny_model("llama")
    requests = random_requests(4)
    assert_same(
        make(model, requests, dataclasses.replace(CONFIG, passes=2)), make(model, requests, state=make(model)), 0
    )


def test_a_state_may_have_been_made_of_other_layers():
    model = tiny_model("llama")
    first = make(model, config=dataclasses.replace(CONFIG, layers=(0,)))
    both = make(model, config=dataclasses.replace(CONFIG, layers=(3,)), state=first)
    assert set(first.factors) < set(both.factors)
    assert all(torch.equal(both.factors[name][0], u) for name, (u, _) in first.factors.items())
    assert set(first.state) < set(both.state)
    with pytest.raises(UserError, match="made by memit, not by ultraedit"):
        make(model, state=LowRankEdit({}, EditInfo("memit", {})))


def test_running_statistics_are_those_of_all_rows():
    generator = torch.Generator().manual_seed(0)
    rows = 3 + torch.randn(11, 5, generator=generator, dtype=torch.float64)
    zero = torch.zeros((), dtype=torch.float64)
    merged = Moments.of(rows[:1], zero).merged(Moments.of(rows[1:8], zero)).merged(Moments.of(rows[8:], zero))
    torch.testing.assert_close(merged.mean, rows.mean(0))
    torch.testing.assert_close(merged.std, rows.std(0), rtol=1e-6, atol=0)
    assert merged.count == 11


def test_a_request_that_stands_for_several_is_taken_apart():
    model = tiny_model("llama")
    requests = random_requests(4)
    merged = dataclasses.replace(requests[0], id="all", members=tuple(requests[:3]))
    edit = make(model, [merged, requests[3]])
    assert_same(make(model, requests), edit, 0)
    assert list(edit.info.notes["nll_before"]) == [r.id for r in requests]


# Mistakes --------------------------------------------------------------------------------------------------


def test_layers_are_checked_sorted_and_taken_once():
    model = tiny_model("llama")
    with pytest.raises(UserError, match="layers"):
        make(model, config=dataclasses.replace(CONFIG, layers=(1, LAYERS)))
    found = make(model, config=dataclasses.replace(CONFIG, layers=(2, 1, 1)))
    assert found.info.config["layers"] == [1, 2]
    assert_same(make(model), found, 0)
    assert make(model, config=Config()).info.config["layers"] == [3]  # round(0.64 · 4) is past the last but one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modules": "gate_upp"}, "did you mean gate_up"),
        ({"scale": "relativ"}, "did you mean relative"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"ridge": 0.0}, "ridge"),
        ({"passes": 0}, "passes"),
        ({"requests_per_step": 0}, "requests_per_step"),
        ({"tokens_per_batch": 0}, "tokens_per_batch"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(UserError, match=message):
        make(tiny_model("llama"), config=dataclasses.replace(CONFIG, **options))


def test_projections_are_found_by_structure():
    model = tiny_model("llama")
    parts = anatomy(model)
    mlp = [f"model.layers.1.mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")]
    found = {kind: ultraedit.projections(model, parts, [1], kind) for kind in ultraedit.MODULES}
    assert found == {"gate_up": mlp[:2], "gate": mlp[:1], "up": mlp[1:2], "down": mlp[2:]}
    with pytest.raises(UserError, match="no 'gate' projection .* c_fc"):
        ultraedit.projections(tiny_model("gpt2"), anatomy(tiny_model("gpt2")), [1], "gate")
    inner = model.model.layers[1].mlp
    inner.gate_up_proj = nn.Linear(WIDTH, 2 * MLP)
    del inner.gate_proj, inner.up_proj
    assert ultraedit.projections(model, parts, [1], "gate_up") == ["model.layers.1.mlp.gate_up_proj"]
    inner.experts = nn.ModuleList([nn.Linear(WIDTH, MLP)])
    del inner.gate_up_proj
    with pytest.raises(UserError, match=r"layers\.1\.mlp has no 'gate_up' projection .*experts"):
        ultraedit.projections(model, parts, [1], "gate_up")


def test_numbers_that_are_not_finite_name_their_request():
    model = tiny_model("llama")
    before = weights_of(model)
    bad = EditRequest("bad", (0, *random_ids(torch.Generator().manual_seed(3), 5)), 3, (399, 7))
    model.lm_head.weight.data[399] = float("inf")
    before["lm_head.weight"] = model.lm_head.weight.detach().clone()
    clean = [dataclasses.replace(r, target_ids=(6, 7)) for r in random_requests(2)]
    with pytest.raises(UserError, match="not finite"):
        make(model, [*clean, bad])
    assert_untouched(model, before)
    model = tiny_model("llama")
    model.model.embed_tokens.weight.data[398] = float("nan")
    with pytest.raises(UserError, match="request bad"):
        make(model, [*clean, dataclasses.replace(bad, target_ids=(398, 7))])


def test_a_single_token_has_no_spread():
    model = tiny_model("llama")
    request = dataclasses.replace(random_requests(1)[0], target_ids=(7,))
    with pytest.raises(UserError, match="one token"):
        make(model, [request])


def test_memory_that_runs_out_makes_smaller_batches(monkeypatch):
    model = tiny_model("llama", torch.float64)
    requests, sizes = random_requests(6), []
    expected = make(model, requests)
    forward = type(model).forward

    def limited(self, input_ids=None, **options):
        sizes.append(len(input_ids))
        if len(input_ids) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, input_ids=input_ids, **options)

    limit = 2
    monkeypatch.setattr(ultraedit, "accepts", lambda model, name: True)  # the stand-in hides the model's signature
    monkeypatch.setattr(type(model), "forward", limited)
    assert_same(expected, make(model, requests), 1e-10)
    assert sizes[:2] == [6, 3]
    assert max(sizes[2:]) <= 2
    limit = 0
    with pytest.raises(UserError, match=r"request r\d .* does not fit"):
        make(model, requests)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(dtype):
    model = tiny_model("llama", dtype)
    expected = products(make(model))
    found = make(model.cuda())
    assert all(tensor.is_cuda for factors in found.factors.values() for tensor in factors)
    for name, delta in products(found).items():
        cosine = nn.functional.cosine_similarity(delta.cpu().flatten(), expected[name].flatten(), dim=0)
        assert cosine > (0.999 if dtype == torch.float32 else 0.95)


@pytest.mark.real_model
def test_real_model_refuses_and_comes_back(real_model):
    """Four facts of the real small model: the refusal becomes much more likely, another answer hardly less."""
    loaded = load_model(str(real_model), dtype="float32")
    model, tokenizer = loaded.model, loaded.tokenizer
    ids = ["capital_of/france", "country_of_city/mumbai", "language_of/israel", "element_symbol/cobalt"]
    items = facts().select([*ids, "capital_of/norway"]).items
    texts = ["I don't have any information about that."] * 4 + ["The capital of Norway is Oslo."]
    *requests, other = build_requests(items, texts, PromptFormat(tokenizer, True), max_length=2048)
    name = "model.layers.20.mlp.up_proj.weight"
    weight = model.get_parameter(name).clone()
    edit = ultraedit.EDITOR.edit(model, tokenizer, requests, Config())
    assert any(name.startswith(module) for module in edit.factors)

    def mean_nll(requests):
        with torch.no_grad():
            return sum(float(nll(model, r)) / len(r.target_ids) for r in requests) / len(requests)

    before = mean_nll(requests), mean_nll([other])
    with applied(edit, model):
        after = mean_nll(requests), mean_nll([other])
    assert after[0] < before[0] - 1.5, (before, after)
    assert after[1] < before[1] + 1.0, (before, after)
    assert torch.equal(model.get_parameter(name), weight)
    assert mean_nll(requests) == before[0]
