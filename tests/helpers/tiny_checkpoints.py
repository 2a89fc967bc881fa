"""Tiny random models of five architectures, for a tokenizer of any size."""

import torch

ARCHITECTURES = ("llama", "qwen2", "gpt2", "gpt_neox", "gemma3")
SLIDING_WINDOW = 8


def _config(name, vocabulary):
    from transformers import Gemma3TextConfig, GPT2Config, GPTNeoXConfig, LlamaConfig, Qwen2Config

    # Ten times the usual spread: with it a wrong mask or position changes the numbers by far more than rounding.
    common = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if name == "llama":
        return LlamaConfig(**common, num_key_value_heads=2)
    if name == "qwen2":
        return Qwen2Config(**common, num_key_value_heads=2)
    if name == "gpt_neox":
        return GPTNeoXConfig(**common)
    if name == "gpt2":
        same = {key: common[key] for key in ("vocab_size", "initializer_range", "bos_token_id", "eos_token_id")}
        return GPT2Config(**same, n_embd=32, n_layer=3, n_head=4, n_positions=512)
    return Gemma3TextConfig(
        **common,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=SLIDING_WINDOW,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )


def make_tiny(name, vocabulary, seed=0):
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(_config(name, vocabulary))
    return model.float().eval()
