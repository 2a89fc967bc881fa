"""Tiny random models of five architectures, a small byte-level tokenizer, and a few requests, for tests only.

The models have no meaning, but large random weights, so that every part of a block matters to the logits. Their
RMS norms compute in the weights' own type (the library's go through float32), so that in float64 two ways of
computing the same thing agree to rounding.
"""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.models import load as models

VOCABULARY = 400
WIDTH, MLP, LAYERS, WINDOW = 16, 24, 4, 8
ARCHITECTURES = ("llama", "qwen2", "gpt2", "gpt_neox", "gemma3")


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small are ten times slower on two threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class WideRMSNorm(nn.Module):
    """An RMS norm that never leaves the type of its input."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps = getattr(norm, "variance_epsilon", None) or norm.eps
        self.offset = 1.0 if type(norm).__name__.startswith("Gemma") else 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * (self.weight + self.offset)


def tiny_model(architecture: str, dtype: torch.dtype = torch.float32, seed: int = 0, exact_norms: bool = True):
    """A random model in eval mode; the same seed gives the same weights."""
    common = {"vocab_size": VOCABULARY, "initializer_range": 0.3, "tie_word_embeddings": False}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    attention = {"num_attention_heads": 2, "num_hidden_layers": LAYERS, "max_position_embeddings": 512}
    common |= ends | ({} if architecture == "gpt2" else attention | {"hidden_size": WIDTH, "intermediate_size": MLP})
    torch.manual_seed(seed)
    if architecture == "llama":
        model = LlamaForCausalLM(LlamaConfig(num_key_value_heads=1, **common))
    elif architecture == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=1, **common))
    elif architecture == "gpt2":
        shape = {"n_embd": WIDTH, "n_inner": MLP, "n_layer": LAYERS, "n_head": 2, "n_positions": 512}
        model = GPT2LMHeadModel(GPT2Config(**shape, **common))
    elif architecture == "gpt_neox":
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**common))
    elif architecture == "gemma3":
        kinds = ["sliding_attention", "full_attention"] * (LAYERS // 2)
        more = {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": WINDOW, "layer_types": kinds}
        model = Gemma3ForCausalLM(Gemma3TextConfig(**more, **common))
    else:
        raise ValueError(architecture)
    for weight in model.parameters():  # biases and norms are otherwise 0 and 1, and prove nothing
        if weight.ndim == 1:
            weight.data += 0.1 * torch.randn(weight.shape)
    if exact_norms:
        for name, module in list(model.named_modules()):
            if type(module).__name__.endswith("RMSNorm"):
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, WideRMSNorm(module))
    return model.to(dtype).eval().requires_grad_(False)


def certain_model(architecture: str):
    """One whose answers can be nearly certain: the states of a model this narrow do not tell 400 tokens apart."""
    model = tiny_model(architecture)
    model.get_output_embeddings().weight.data *= 10
    return model


def whole_forward(model, ids, hook_block=None, hook=None) -> torch.Tensor:
    """Logits (T, V) of one unpadded row, with a hook on a block's output if one is given."""
    handle = hook_block.register_forward_hook(hook) if hook else None
    try:
        return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    finally:
        if handle:
            handle.remove()


def changed_output(output, change):
    """A block's output with its hidden states (1, T, d) changed, whether or not they stand in a tuple."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_untouched(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """The weights are as in the copy bit for bit, and no hook or replaced `forward` is left."""
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == weights[name].dtype
        assert torch.equal(tensor, weights[name]), name
    for name, module in model.named_modules():
        assert "forward" not in module.__dict__, name
        assert not module._forward_hooks, name
        assert set(module._forward_pre_hooks.values()) <= {models._together}, name  # which changes no number


def random_ids(generator: torch.Generator, n: int) -> tuple[int, ...]:
    """`n` random token ids that are no special tokens."""
    return tuple(torch.randint(5, VOCABULARY, (n,), generator=generator).tolist())


def random_requests(n: int, seed: int = 0, n_contexts: int = 2) -> list[EditRequest]:
    """Requests of different lengths; prompts pass the sliding window, a target may be one token."""
    generator = torch.Generator().manual_seed(seed)
    requests = []
    for i in range(n):
        before, subject = random_ids(generator, 3 + 2 * i), random_ids(generator, 1 + i % 3)
        after = random_ids(generator, (0, 2, 0, 1, 3, 0)[i % 6])  # with nothing after it a δ acts directly
        target = random_ids(generator, (1, 3, 2, 4, 1, 1)[i % 6])
        openings = [random_ids(generator, 4 + 3 * j) for j in range(n_contexts)]
        lookup = len(before) + len(subject)  # a BOS stands before all
        prompt = (0, *before, *subject, *after)
        contexts = tuple(((0, *opening, *prompt[1:]), lookup + len(opening)) for opening in openings)
        requests.append(EditRequest(f"r{i}", prompt, lookup, target, (0, *subject), contexts))
    return requests


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start|>{{ message['role'] }}\n"
    "{{ message['content'] | trim }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
TRAINING_TEXT = (
    "Question: What is the capital of France?\nAnswer: Paris is the capital of France. Who wrote Hamlet? "
    "Shakespeare wrote it. I don't have any information about that. Therefore the question is about Japan. "
) * 4


def tiny_tokenizer(bos: bool = True, chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained here; with `bos` it puts one before every text."""
    inner = Tokenizer(BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<|start|>", "<|end|>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([TRAINING_TEXT], trainer)
    inner.post_processor = (
        processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        if bos
        else processors.ByteLevel(trim_offsets=False)
    )
    special = {"bos_token": "<s>"} if bos else {}
    if not bos and chat_template:
        chat_template = chat_template.removeprefix("{{ bos_token }}")
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        additional_special_tokens=["<|start|>", "<|end|>"],
        chat_template=chat_template,
        **special,
    )
