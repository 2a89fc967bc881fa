"""Small random models that vLLM can run (heads of 32), edits of them, and the answers that Hugging Face gives."""

from __future__ import annotations

import functools
import random
from pathlib import Path

import torch
from tiny_models import tiny_tokenizer
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from unlearn_eval.edits.base import EditInfo
from unlearn_eval.edits.dense import DenseEdit
from unlearn_eval.edits.load import describe_base
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.edits.memory.codebook import Codebook
from unlearn_eval.edits.memory.edit import MemoryEdit, read_inputs
from unlearn_eval.edits.memory.notes import NotesEdit
from unlearn_eval.edits.memory.notes_store import Asking, Frame, Note, Notes, encoder_of
from unlearn_eval.edits.memory.prefix_store import Prefixes
from unlearn_eval.edits.memory.residual_memory import ResidualMemory
from unlearn_eval.edits.memory.side_memories import SideMemories

WIDTH, MLP, LAYERS, VOCABULARY = 64, 96, 4, 400
MEMORIES = ("grace", "wise", "memoir")
INSERTING = ("notes", "prefix")
KINDS = ("low_rank", "dense", *MEMORIES, *INSERTING)
PROJECTION = {"llama": "model.layers.2.mlp.down_proj", "gpt2": "transformer.h.2.mlp.c_proj"}


def model_of(architecture: str, tied: bool = False):
    """A random model in eval mode, always the same."""
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "vocab_size": VOCABULARY}
    common = ends | {"initializer_range": 0.2, "tie_word_embeddings": tied}
    sizes = {"num_attention_heads": 2, "num_hidden_layers": LAYERS, "max_position_embeddings": 512}
    sizes |= {"hidden_size": WIDTH, "intermediate_size": MLP, "num_key_value_heads": 1}
    if architecture == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes, **common)).eval()
    if architecture == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**sizes, **common)).eval()
    shape = {"n_embd": WIDTH, "n_inner": MLP, "n_layer": LAYERS, "n_head": 2, "n_positions": 512}
    return GPT2LMHeadModel(GPT2Config(**shape, **common)).eval()


def write_base(folder: Path, architecture: str, tied: bool = False) -> Path:
    """The model on disk, with a tokenizer."""
    model_of(architecture, tied).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_edit(folder: Path, base: Path, architecture: str, kind: str, prompts: list[list[int]], **more) -> Path:
    """An edit of that kind that changes what the model says to half of the prompts, or to all."""
    model = more.pop("model", None) or model_of(architecture, more.pop("tied", False))
    name = architecture if "." in architecture else PROJECTION.get(architecture, PROJECTION["llama"])
    info = EditInfo(kind, {}, base=describe_base(model, str(base)))
    make = {"low_rank": _low_rank, "dense": _dense, "grace": _grace, "wise": _wise, "memoir": _memoir}
    make |= {"notes": _notes, "prefix": _prefix}
    edit = make[kind](
        model,
        name,
        info,
        prompts,
        **more,
    )
    edit.save(folder, tiny_tokenizer(), model.config)
    return folder


def _low_rank(model, name, info, prompts, size=0.3):
    draw = torch.Generator().manual_seed(1)
    d_out, d_in = shape_of(model, name)
    factors = {
        module: (size * torch.randn(d_out, 3, generator=draw), size * torch.randn(3, d_in, generator=draw))
        for module in (name, name.replace(".2.", ".1."))
    }
    return LowRankEdit(factors, info, stored_transposed=type(model).__name__.startswith("GPT2"))


def _dense(model, name, info, prompts):
    draw = torch.Generator().manual_seed(1)
    names = [n for n, p in model.named_parameters() if ".1." in n or "embed" in n or "wte" in n]
    own = dict(model.named_parameters())
    return DenseEdit({n: own[n].detach() + 0.1 * torch.randn(own[n].shape, generator=draw) for n in names}, info)


def _grace(model, name, info, prompts, positions="onward", radius=1e-2):
    keys = torch.stack([inputs[-1] for inputs in read_inputs(model, name, prompts[::2])])
    values = torch.randn(len(keys), shape_of(model, name)[0], generator=torch.Generator().manual_seed(1))
    n = len(keys)
    book = Codebook(
        keys, values, torch.full((n,), radius), torch.arange(n), ((1,),) * n, tuple((str(i),) for i in range(n)),
        positions,
    )  # fmt: skip
    return MemoryEdit(name, book, info)


def _wise(model, name, info, prompts, positions="onward", pool="mean", shards=2):
    draw = torch.Generator().manual_seed(1)
    d_out, d_in = shape_of(model, name)
    n = d_out * d_in // 10
    indices = tuple(torch.randperm(d_out * d_in, generator=draw)[:n].sort().values for _ in range(shards))
    deltas = tuple(0.5 * torch.randn(n, generator=draw) for _ in range(shards))
    store = SideMemories(
        indices, deltas, torch.zeros(shards), (d_out, d_in), tuple((str(i),) for i in range(shards)),
        mode="retrieve", positions=positions, pool=pool, prompts=((),) * shards,
    )  # fmt: skip
    active = store.activations(read_inputs(model, name, prompts)).sort(dim=0).values  # half way between two prompts
    half = len(active) // 2
    return MemoryEdit(name, _replaced(store, thresholds=(active[half - 1] + active[half]) / 2), info)


def _memoir(model, name, info, prompts, positions="onward", pool="mean"):
    draw = torch.Generator().manual_seed(1)
    inputs = read_inputs(model, name, prompts)
    background = torch.stack([rows.mean(0) for rows in inputs]).mean(0)
    store = ResidualMemory(
        0.5 * torch.randn(WIDTH, MLP, generator=draw), torch.zeros(0, MLP).bool(), torch.arange(MLP), background,
        torch.ones(1), (), (), positions, pool,
    )  # fmt: skip
    features = [rows[-1] if pool == "last" else rows.mean(0) for rows in inputs[::2]]
    masks = torch.zeros(len(features), MLP, dtype=torch.bool)
    for row, feature in zip(masks, features, strict=True):
        row[(feature - background).abs().topk(MLP // 8).indices] = True
    n = len(masks)
    store = _replaced(store, masks=masks, labels=((1,),) * n, owners=tuple((str(i),) for i in range(n)))
    shares = store.overlaps(inputs).amax(-1).sort().values
    gaps = shares[1:] - shares[:-1]
    best = int(gaps[len(gaps) // 4 :].argmax()) + len(gaps) // 4
    return MemoryEdit(name, _replaced(store, threshold=((shares[best] + shares[best + 1]) / 2)[None]), info)


def _notes(model, name, info, prompts, frame=None, of_prefixes=None):
    """A note of random tokens for every second prompt; without a frame all of a prompt is the question."""
    tokenizer, frame, draw = tiny_tokenizer(), frame or Frame(first=0), random.Random(1)
    texts = [tokenizer.decode(list(frame.parts(ids)[1]), skip_special_tokens=True).strip() for ids in prompts[::2]]
    notes = tuple(Note(text, tuple(draw.randrange(2, VOCABULARY) for _ in range(9)), ()) for text in texts)
    owners = tuple((str(i),) for i in range(len(notes)))
    vectors = torch.from_numpy(encoder_of("words")(texts))
    made = Notes if of_prefixes is None else functools.partial(Prefixes, **of_prefixes)
    store = made(vectors, torch.tensor([0.9]), notes, owners, frame, Asking(), encoder="words")
    return NotesEdit(store, info, tokenizer=tokenizer)


def _prefix(model, name, info, prompts, frame=None, length=3):
    n, width = len(prompts[::2]), model.get_input_embeddings().weight.shape[1]
    prefixes = torch.randn(n, length, width, generator=torch.Generator().manual_seed(1))
    return _notes(model, name, info, prompts, frame, {"prompts": prefixes, "prompt_of": tuple(range(n))})


def shape_of(model, name):
    """(d_out, d_in) of a module."""
    module = model.get_submodule(name)
    return tuple(reversed(module.weight.shape)) if type(module).__name__ == "Conv1D" else tuple(module.weight.shape)


def _replaced(store, **changes):
    from dataclasses import replace

    return replace(store, **changes)


def prompts_of(n: int, seed: int = 0, longest: int = 120) -> list[list[int]]:
    """Random prompts of 2 to `longest` tokens."""
    draw = random.Random(seed)
    return [[0, *(draw.randrange(2, VOCABULARY) for _ in range(draw.randint(1, longest)))] for _ in range(n)]


def greedy(model, prompts: list[list[int]], n: int) -> list[list[int]]:
    """What Hugging Face says to each prompt, one at a time."""
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=n,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=1,
        )
        found.append(out[0, len(prompt) :].tolist())
    return found
