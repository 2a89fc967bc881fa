"""Run by test_training in a process of its own: the peak memory of training by one method, and the models there are."""

import gc
import json
import sys

import torch
from training_requests import FORGET, KEPT
from transformers import LlamaConfig, LlamaForCausalLM

from unlearn_eval.editing.editor import get_editor
from unlearn_eval.editing.training import run as training_run  # noqa: F401 (what importing it needs is not what training needs)
from unlearn_eval.utils.provenance import peak_memory_bytes

torch.set_num_threads(1)
torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(vocab_size=400, hidden_size=512, intermediate_size=2048, num_hidden_layers=7, num_attention_heads=4)
).eval()
method = get_editor(sys.argv[1])
before, models = peak_memory_bytes(), 0


def count(what: str, done: int, total: int) -> None:
    global models
    models = max(models, sum(isinstance(thing, LlamaForCausalLM) for thing in gc.get_objects()))


method.edit(model, None, FORGET, method.Config(steps=3, batch_size=4), retain=KEPT, progress=count)
n_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
print(json.dumps({"bytes": peak_memory_bytes() - before, "models": models, "model_bytes": n_bytes}))
