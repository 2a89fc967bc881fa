"""Tail's logits are the whole model's, for every architecture; nothing is left behind in the model."""

import pytest
import torch
from tiny_models import (
    ARCHITECTURES,
    LAYERS,
    WIDTH,
    WINDOW,
    assert_untouched,
    changed_output,
    one_thread,  # noqa: F401
    random_ids,
    tiny_model,
    weights_of,
    whole_forward,
)
from transformers import AutoConfig, AutoModelForCausalLM

from unlearn_eval.models import tracing
from unlearn_eval.models.anatomy import anatomy
from unlearn_eval.models.tracing import Tail, trace

# Rows and look-up tokens: look-up at 0 and at the end, rows of one token, prefixes and tails beyond the window.
SHAPES = {
    "mixed": [(20, 3), (7, 6), (5, 0), (1, 0), (18, 17), (9, 4)],
    "long_tails": [(30, 9), (12, 11), (25, 2)],
    "long_prefixes": [(30, 28), (29, 20), (24, 23)],
    "all_at_0": [(6, 0), (3, 0), (WINDOW + 3, 0)],
    "one": [(13, 10)],
}


def whole_logits(model, parts, layer, row, lookup, noise, keep):
    """The slow way: the whole model on one unpadded row, with a hook that adds noise from the look-up token on."""

    def add(hidden):
        return torch.cat([hidden[:, :lookup], hidden[:, lookup:] + noise], dim=1)

    block = parts.block(model, layer)
    return whole_forward(model, row, block, lambda m, a, output: changed_output(output, add))[-keep:]


@pytest.mark.parametrize("layer", [-1, 0, 2, LAYERS - 1])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_tail_serves_the_blocks_above_it_too(architecture, layer):
    """Above another block nothing is computed again, and above the embeddings every block is run."""
    model = tiny_model(architecture, torch.float64)
    parts, before = anatomy(model), weights_of(model)
    generator = torch.Generator().manual_seed(1)
    rows, lookups = [random_ids(generator, n) for n in (20, 7, 12)], [9, 3, 11]
    tail = Tail(model, parts, 0, rows, lookups)
    own = Tail(model, parts, max(layer, 0), rows, lookups).hidden
    index, ends = torch.arange(3), torch.ones(3, dtype=torch.long)
    found = tail.above(layer).logits(own, index, ends)
    for row, logits in zip(rows, found, strict=True):
        torch.testing.assert_close(logits, whole_forward(model, row)[-1], atol=1e-10, rtol=0)
    torch.testing.assert_close(tail.logits(tail.hidden, index, ends), found, atol=1e-10, rtol=0)
    tokens = torch.tensor([[7, 300], [5, 6], [399, 0]])
    some = tail.above(layer).logits(own, index, ends, tokens)
    torch.testing.assert_close(some, found.gather(-1, tokens), atol=1e-10, rtol=0)
    assert_untouched(model, before)


def test_a_capped_logit_is_capped_when_it_is_the_only_one():
    """Gemma 2's soft cap, and a head with a bias."""
    config = AutoConfig.for_model(
        "gemma2",
        vocab_size=400,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.5,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().double()
    model.lm_head = torch.nn.Linear(16, 400).double()
    # No padding: its attention, softmax in float32 of masks in float64, has no number for a query that sees nothing.
    rows, tokens = [(5, 9, 12, 30), (7, 8, 11)], torch.tensor([[3, 4, 5], [6, 7, 8]])
    tail, ends = Tail(model, anatomy(model), 0, rows, [1, 1]), torch.ones(2, dtype=torch.long)
    found = tail.logits(tail.hidden, torch.arange(2), ends, tokens)
    for row, own, logits in zip(rows, tokens, found, strict=True):
        torch.testing.assert_close(logits, whole_forward(model, row)[-1][own], atol=1e-6, rtol=0)
    assert found.abs().max() <= 0.5


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_equal_the_whole_model_s(architecture, cached, monkeypatch):
    if not cached:
        monkeypatch.setattr(tracing, "keeps_plain_cache", lambda model: False)
    model = tiny_model(architecture, torch.float64)
    parts, before = anatomy(model), weights_of(model)
    generator = torch.Generator().manual_seed(0)
    for layer, (name, shapes) in zip((2, 0, 1, 0, LAYERS - 1), SHAPES.items(), strict=True):
        rows = [random_ids(generator, n) for n, _ in shapes]
        lookups = [k for _, k in shapes]
        tail = Tail(model, parts, layer, rows, lookups)
        assert (tail._cache is not None) == (cached and max(lookups) > 0)
        moved, expected, places = tail.hidden.clone(), [], []
        for i, (row, lookup) in enumerate(zip(rows, lookups, strict=True)):
            noise = torch.randn(len(row) - lookup, WIDTH, generator=generator, dtype=torch.float64)
            moved[i, tail.columns[i] :] += noise
            n = min(3, len(row) - lookup)
            expected += whole_logits(model, parts, layer, row, lookup, noise, n)
            places += [(i, n - k) for k in range(n)]
        rows_of, back = torch.tensor(places).T
        for _ in range(2):  # a second call must not see the first one's keys and values
            for own, right in zip(tail.logits(moved, rows_of, back), expected, strict=True):
                torch.testing.assert_close(own, right, atol=1e-10, rtol=0, msg=name)
        kept = torch.arange(len(rows)) != 1  # the same without the second row, if there is one
        mine = kept[rows_of]
        fewer = tail.select(kept.nonzero()[:, 0]).logits(moved[kept], (kept.cumsum(0) - 1)[rows_of[mine]], back[mine])
        right = torch.stack(expected)[mine]
        torch.testing.assert_close(fewer, right, atol=1e-10, rtol=0, msg=f"{name}, selected")
    assert_untouched(model, before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_is_what_the_block_puts_out(architecture):
    model = tiny_model(architecture, torch.float64)
    parts = anatomy(model)
    generator = torch.Generator().manual_seed(1)
    rows, lookups = [random_ids(generator, n) for n in (20, 7, 5)], [3, 6, 0]
    tail = Tail(model, parts, 1, rows, lookups)
    for i, (row, lookup) in enumerate(zip(rows, lookups, strict=True)):
        name = f"{parts.blocks}.1"
        with trace(model, outputs=[name]) as seen:
            model(input_ids=torch.tensor([row]), use_cache=False)
        expected = seen.outputs[name][0, lookup:]
        torch.testing.assert_close(tail.hidden[i, tail.columns[i] :], expected, atol=1e-10, rtol=0)


def test_gradients_reach_the_replaced_hidden_states_only_from_the_look_up_token_on():
    model = tiny_model("llama", torch.float64)
    rows = [random_ids(torch.Generator().manual_seed(2), n) for n in (6, 11)]
    tail = Tail(model, anatomy(model), 1, rows, [5, 5])
    hidden = tail.hidden.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        tail.logits(hidden, torch.arange(2), torch.ones(2, dtype=torch.long)).square().sum(), hidden
    )
    assert torch.isfinite(gradient).all()
    assert gradient[0, tail.columns[0]].norm() > 0
    assert gradient[1, tail.columns[1]].norm() > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_model_is_as_before_after_an_error(architecture):
    model = tiny_model(architecture)
    parts, before = anatomy(model), weights_of(model)
    expected = model(input_ids=torch.arange(5, 12)[None]).logits
    rows = [tuple(range(5, 12)), tuple(range(9, 13))]
    tail = Tail(model, parts, 1, rows, [3, 1])
    with pytest.raises(RuntimeError):
        tail.logits(torch.zeros(5, 2, WIDTH + 1), torch.arange(2), torch.ones(2, dtype=torch.long))
    assert_untouched(model, before)

    def fail(*arguments):
        raise MemoryError

    handle = parts.projection(model, 0).register_forward_hook(fail)
    with pytest.raises(MemoryError):
        Tail(model, parts, 1, rows, [3, 1])
    handle.remove()
    assert_untouched(model, before)
    assert torch.equal(model(input_ids=torch.arange(5, 12)[None]).logits, expected)


def test_a_block_s_own_replaced_forward_comes_back():
    """Some libraries (accelerate) put their own `forward` on a module; it must survive."""
    model = tiny_model("llama")
    parts = anatomy(model)
    block = parts.block(model, 0)
    own = block.forward
    block.forward = own
    tail = Tail(model, parts, 1, [tuple(range(5, 12))], [3])
    tail.logits(tail.hidden, torch.tensor([0]), torch.tensor([1]))
    assert block.__dict__["forward"] is own


def test_trace_keeps_inputs_and_outputs():
    model = tiny_model("llama", torch.float64)
    parts = anatomy(model)
    name, block = parts.projection_name(2), f"{parts.blocks}.2"
    with trace(model, inputs=[name], outputs=[name, block]) as seen:
        output = model(input_ids=torch.arange(5, 12)[None])
    assert output.logits.shape[:2] == (1, 7)
    key, value = seen.inputs[name], seen.outputs[name]
    torch.testing.assert_close(key @ parts.weight(model, 2).T, value, atol=1e-12, rtol=0)
    assert seen.outputs[block].shape == (1, 7, WIDTH)
    assert set(seen.inputs) == {name}


def test_stop_after_ends_the_pass_there():
    model = tiny_model("gpt_neox")
    parts, before = anatomy(model), weights_of(model)
    ran = []
    handles = [parts.block(model, i).register_forward_hook(lambda m, a, o, i=i: ran.append(i)) for i in range(LAYERS)]
    reached = False
    with trace(model, outputs=[f"{parts.blocks}.0"], stop_after=f"{parts.blocks}.1") as seen:
        model(input_ids=torch.arange(5, 12)[None])
        reached = True
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]
    assert not reached
    assert set(seen.outputs) == {f"{parts.blocks}.0"}
    assert_untouched(model, before)


def test_trace_passes_errors_on_and_leaves_no_hook():
    model = tiny_model("gpt2")
    before = weights_of(model)
    with pytest.raises(ZeroDivisionError), trace(model, inputs=["transformer.h.1.mlp.c_proj"]):
        raise ZeroDivisionError
    assert_untouched(model, before)
    with pytest.raises(AttributeError), trace(model, inputs=["transformer.h.1.mlp.c_proj", "no.such.module"]):
        pass
    assert_untouched(model, before)
