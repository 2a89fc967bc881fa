"""Run by test_training with two processes: train, and write down what each process got."""

import sys

import torch
from tiny_models import tiny_model
from training_requests import FAST, FORGET, KEPT

from unlearn_eval.editors.gradient import npo

torch.set_num_threads(1)
edit = npo.EDITOR.edit(tiny_model("llama", torch.float64), None, FORGET, npo.Config(**FAST), retain=KEPT)
rank = torch.distributed.get_rank()
torch.save(
    {"tensors": dict(edit.tensors), "processes": edit.info.notes["training"]["processes"]},
    f"{sys.argv[1]}/{rank}.pt",
)
torch.distributed.destroy_process_group()
