"""The parts of every architecture are found by what they are, and what cannot be edited is refused."""

import pytest
import torch
from tiny_models import ARCHITECTURES, LAYERS, MLP, VOCABULARY, WIDTH, one_thread, tiny_model  # noqa: F401
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from unlearn_eval.models.anatomy import anatomy, layers_at_depth
from unlearn_eval.models.tracing import first, trace
from unlearn_eval.utils.errors import UserError

PROJECTIONS = {
    "llama": ("model.layers", "mlp.down_proj"),
    "qwen2": ("model.layers", "mlp.down_proj"),
    "gemma3": ("model.layers", "mlp.down_proj"),
    "gpt2": ("transformer.h", "mlp.c_proj"),
    "gpt_neox": ("gpt_neox.layers", "mlp.dense_4h_to_h"),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parts_are_found(architecture):
    model = tiny_model(architecture)
    parts = anatomy(model)
    assert (parts.blocks, parts.down_projection) == PROJECTIONS[architecture]
    assert (parts.n_layers, parts.d_model, parts.d_mlp) == (LAYERS, WIDTH, MLP)
    assert parts.transposed == (architecture == "gpt2")
    assert parts.projection_name(2) == f"{parts.blocks}.2.{parts.down_projection}"
    assert parts.block(model, 2) is model.get_submodule(f"{parts.blocks}.2")
    assert parts.weight(model, 2).shape == (WIDTH, MLP)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weight_maps_the_input_to_the_output(architecture):
    """W k + b is the value, and a change of `weight` in place changes the model."""
    model = tiny_model(architecture, torch.float64)
    parts = anatomy(model)
    name, ids = parts.projection_name(1), torch.arange(5, 12)[None]
    for _ in range(2):
        with trace(model, inputs=[name], outputs=[name]) as seen:
            model(input_ids=ids)
        bias = getattr(parts.projection(model, 1), "bias", None)
        value = seen.inputs[name] @ parts.weight(model, 1).T + (0 if bias is None else bias)
        torch.testing.assert_close(value, seen.outputs[name], atol=1e-12, rtol=0)
        parts.weight(model, 1).mul_(-1)


OTHERS = {
    "opt": {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
            "word_embed_proj_dim": 16},
    "gptj": {"n_embd": 16, "n_inner": 24, "n_layer": 3, "n_head": 2, "rotary_dim": 4},
    "phi": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2},
    "mistral": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
                "num_key_value_heads": 1},
    "falcon": {"hidden_size": 16, "ffn_hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2},
    "bloom": {"hidden_size": 16, "n_layer": 3, "n_head": 2},
    "qwen3": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
              "num_key_value_heads": 1, "head_dim": 8},
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_more_architectures(kind):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=50, **OTHERS[kind])).eval()
    parts = anatomy(model)
    assert (parts.n_layers, parts.d_model, parts.d_mlp) == (3, 16, 64 if kind == "bloom" else 24)
    name, block = parts.projection_name(1), f"{parts.blocks}.1"
    with torch.no_grad(), trace(model, inputs=[name], outputs=[block]) as seen:
        before = model(input_ids=torch.arange(3, 9)[None]).logits
        parts.weight(model, 1).mul_(3)
    assert seen.inputs[name].shape[-1] == parts.d_mlp
    assert first(seen.outputs[block]).shape == (1, 6, 16)
    with torch.no_grad():
        assert (model(input_ids=torch.arange(3, 9)[None]).logits - before).abs().max() > 1e-4


def test_a_mixture_of_experts_is_refused():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = AutoConfig.for_model("mixtral", vocab_size=50, intermediate_size=24, num_local_experts=2, **sizes)
    with pytest.raises(UserError, match="no list of blocks"):
        anatomy(AutoModelForCausalLM.from_config(config))


def test_experts_above_a_dense_first_block_are_refused():
    """DeepSeek's first block is dense and the others are not: the first one must not speak for all."""
    model = tiny_model("llama")
    model.model.layers[2].mlp = nn.Identity()
    with pytest.raises(UserError, match=r"block 2 of model\.layers has no mlp\.down_proj"):
        anatomy(model)


@pytest.mark.parametrize("weight", [torch.zeros(WIDTH, MLP, dtype=torch.int8), torch.zeros(WIDTH * MLP // 2, 1, 1)])
def test_quantised_weights_are_refused(weight):
    model = tiny_model("llama")
    model.model.layers[0].mlp.down_proj.weight = nn.Parameter(weight, requires_grad=False)
    with pytest.raises(UserError, match="weights") as error:
        anatomy(model)
    assert "quantization" in error.value.hint


def test_a_model_without_blocks_is_refused():
    with pytest.raises(UserError, match="Linear has no list of blocks"):
        anatomy(nn.Linear(2, 2))


@pytest.mark.parametrize("layers", [(), (-1,), (LAYERS,), (0, LAYERS + 3)])
def test_layers_that_do_not_exist_are_refused(layers):
    parts = anatomy(tiny_model("llama"))
    parts.check_layers((0, LAYERS - 1))
    with pytest.raises(UserError, match=f"{LAYERS} layers") as error:
        parts.check_layers(layers)
    assert f"0 to {LAYERS - 1}" in error.value.hint


def test_layers_are_sorted_taken_once_and_found_by_depth():
    parts = anatomy(tiny_model("llama"))
    assert parts.resolve_layers((2, 0, 2), (1.0, 1.0)) == (0, 2)
    assert parts.resolve_layers((), (1 / 4, 1 / 2)) == (1, 2)
    with pytest.raises(UserError, match=f"{LAYERS} layers"):
        parts.resolve_layers((0, LAYERS), (1.0, 1.0))


def test_layers_at_depth():
    assert layers_at_depth(32, 1 / 8, 1 / 4) == (4, 5, 6, 7, 8)
    assert layers_at_depth(30, 1 / 8, 1 / 4) == (4, 5, 6, 7, 8)
    assert layers_at_depth(1, 1 / 8, 1 / 4) == (0,)
    assert layers_at_depth(4, 1.0, 1.0) == (3,)
    for n in range(1, 100):
        layers = layers_at_depth(n, 1 / 8, 1 / 4)
        assert layers
        assert 0 <= layers[0] <= layers[-1] < n
        assert layers == tuple(range(layers[0], layers[-1] + 1))
