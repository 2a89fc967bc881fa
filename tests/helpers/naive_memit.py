"""What MEMIT and its relatives compute, from whole forward passes, one request at a time."""

import torch
from tiny_models import random_ids, whole_forward

from unlearn_eval.editing.locate_then_edit.corpus import Sequences
from unlearn_eval.editing.locate_then_edit.second_moments import second_moments
from unlearn_eval.models.anatomy import anatomy
from unlearn_eval.models.tracing import trace


def moments_of(model, layers=(0, 1, 2)):
    generator = torch.Generator().manual_seed(7)
    rows = [list(random_ids(generator, 20)) for _ in range(12)]
    return second_moments(model, anatomy(model), layers, [Sequences(rows, [0] * len(rows))], 10**6)


def naive_key(model, layer, request):
    """½ of the plain prompt's key + ½ of the mean of its contexts', each from a whole pass of its own."""
    parts = anatomy(model)
    name = parts.projection_name(layer)
    keys = []
    for ids, lookup in request.rows:
        with trace(model, inputs=[name]) as seen:
            whole_forward(model, ids)
        keys.append(seen.inputs[name][0, lookup].double())
    if len(keys) == 1:
        return keys[0]
    return 0.5 * keys[0] + 0.5 * torch.stack(keys[1:]).mean(0)


def naive_value(model, layer, request):
    name = f"{anatomy(model).blocks}.{layer}"
    with trace(model, outputs=[name]) as seen:
        whole_forward(model, request.prompt_ids)
    return seen.outputs[name][0, request.lookup].double()
