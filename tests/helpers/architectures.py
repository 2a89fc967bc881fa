"""Configurations of the architectures that are edited, from which tiny random models are made."""

from __future__ import annotations

import torch
from tiny_models import VOCABULARY
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

WIDTH, MLP, LAYERS, HEADS = 32, 48, 2, 4
_ENDS = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
_USUAL = {"hidden_size": WIDTH, "intermediate_size": MLP, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
          "max_position_embeddings": 512}  # fmt: skip
_GROUPED = {**_USUAL, "num_key_value_heads": 2}
_GPT = {"n_embd": WIDTH, "n_inner": MLP, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 512}
_MIXED = {**_GROUPED, "moe_intermediate_size": 16, "num_experts_per_tok": 2}

DENSE = {
    "apertus": _GROUPED,
    "bloom": {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS},
    "codegen": {**_GPT, "rotary_dim": 4},
    "cohere": _GROUPED,
    "deepseek_v3": {**_USUAL, "num_key_value_heads": HEADS, "first_k_dense_replace": LAYERS, "q_lora_rank": 16,
                    "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8},
    "exaone4": _GROUPED,
    "falcon": {"hidden_size": WIDTH, "ffn_hidden_size": MLP, "num_hidden_layers": LAYERS,
               "num_attention_heads": HEADS},
    "gemma": {**_GROUPED, "head_dim": 8},
    "gemma2": {**_GROUPED, "head_dim": 8, "sliding_window": 8},
    "gemma3_text": {**_GROUPED, "head_dim": 8, "sliding_window": 8},
    "glm4": {**_GROUPED, "head_dim": 8},
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gpt_neo": {"hidden_size": WIDTH, "intermediate_size": MLP, "num_layers": LAYERS, "num_heads": HEADS,
                "attention_types": [[["global", "local"], 1]], "window_size": 8, "max_position_embeddings": 512},
    "gpt_neox": _USUAL,
    "gptj": {**_GPT, "rotary_dim": 4},
    "granite": _GROUPED,
    "llama": _GROUPED,
    "mistral": {**_GROUPED, "head_dim": 8},
    "mpt": {"d_model": WIDTH, "n_heads": HEADS, "n_layers": LAYERS, "max_seq_len": 512},
    "nemotron": _GROUPED,
    "olmo": _GROUPED,
    "olmo2": _GROUPED,
    "opt": {"hidden_size": WIDTH, "ffn_dim": MLP, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
            "word_embed_proj_dim": WIDTH, "max_position_embeddings": 512},
    "persimmon": _USUAL,
    "phi": _USUAL,
    "phi3": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": {**_GROUPED, "head_dim": 8},
    "smollm3": _GROUPED,
    "stablelm": _GROUPED,
    "starcoder2": _GROUPED,
    "xglm": {"d_model": WIDTH, "ffn_dim": MLP, "num_layers": LAYERS, "attention_heads": HEADS},
}  # fmt: skip
# Of these the attention can be trained, and no MLP can be edited.
MIXTURES = {
    "deepseek_v3": {**DENSE["deepseek_v3"], "first_k_dense_replace": 1, "n_routed_experts": 4, "n_group": 1,
                    "topk_group": 1, "moe_intermediate_size": 16, "num_experts_per_tok": 2},
    "gpt_oss": {**_GROUPED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {**_GROUPED, "num_local_experts": 4},
    "olmoe": {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**_MIXED, "shared_expert_intermediate_size": 16, "num_experts": 4},
    "qwen3_moe": {**_MIXED, "head_dim": 8, "num_experts": 4},
}  # fmt: skip
# Not one stack of attention and MLPs, or nothing that comes after what stands before.
OTHERS = {
    "bert": _USUAL,
    "mamba": {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "state_size": 4},
    "rwkv": {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "attention_hidden_size": WIDTH},
    "recurrent_gemma": {**_USUAL, "lru_width": WIDTH, "attention_window_size": 8},
}


def config_of(kind: str, sizes: dict[str, object]):
    """A tiny configuration of an architecture."""
    return AutoConfig.for_model(kind, **{**_ENDS, **sizes})


def random_model(kind: str, sizes: dict[str, object], seed: int = 0) -> nn.Module:
    """A random model in eval mode, with larger weights than an architecture begins with: those make states alike."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_of(kind, sizes)).float().eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data *= 5
    return model
