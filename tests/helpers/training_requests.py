"""Requests and settings for short training runs, and what a run changed."""

import torch
from tiny_models import random_ids

from unlearn_eval.editing.requests.request import EditRequest

FAST = {"epochs": 2, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2, "warmup_epochs": 0.0}


def requests(n, seed=0):
    """Prompts, answers and refusals of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [
        EditRequest(
            f"r{i}",
            (0, *random_ids(generator, 3 + 2 * (i % 4))),
            2,
            (*random_ids(generator, 2 + i % 2), 1),
            question="Who?",
            answer_ids=(*random_ids(generator, 1 + i % 4), 1),
        )
        for i in range(n)
    ]


FORGET, KEPT = requests(7), requests(5, seed=9)


def tensors_of(edit):
    return edit.tensors if hasattr(edit, "tensors") else {n: u @ v for n, (u, v) in edit.factors.items()}
