"""How large the gradient of an answer's loss is, by each of a model's parameters: what an attack reads of it.

A parameter's gradient is let go as soon as its norm is known, so that no second copy of the model is needed; what a
tied parameter gets from its several places is summed first. Answers are run one by one: their gradients must not mix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unlearn_eval.models.prompt_ends import prompt_lengths
from unlearn_eval.models.scoring import Query

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def gradient_norms(
    model: PreTrainedModel,
    queries: Sequence[Query],
    lengths: Sequence[int],
    order: float = 2.0,
    progress: Callable[[int], Any] = lambda n: None,
) -> list[list[float]]:
    """For each query the norm of its loss's gradient by each of the model's parameters; nothing without tokens.

    The loss is the mean over the first `lengths[i]` labels. Factors of adapters are no parameters of the model, but
    act in it.

    Args:
        model: a causal language model in eval mode; it is as before afterwards.
        queries: what is read.
        lengths: how many labels of each are tokens of the answer: its end token is left out.
        order: of the norm.
        progress: called with the number of queries done since the last call.
    """
    found: list[list[float]] = []
    with _each_norm(model, order) as norms:
        for query, n in zip(queries, lengths, strict=True):
            norms.clear()
            if n:
                answer_loss(model, query, n).backward()  # type: ignore[no-untyped-call]
            found.append([float(norm) for norm in norms])
            progress(1)
    return found


def answer_loss(model: PreTrainedModel, query: Query, n: int) -> Tensor:
    """The mean loss of a query's first `n` labels, with its graph."""
    ids = torch.tensor([[*query.prompt_ids, *query.label_ids[:-1]]], device=model.device)
    options = {} if query.masked_token is None else {"attention_mask": (ids != query.masked_token).long()}
    start = len(query.prompt_ids) - 1
    with torch.enable_grad(), prompt_lengths([len(query.prompt_ids)]):
        logits = model(input_ids=ids, use_cache=False, **options).logits[0, start : start + n]
        labels = torch.tensor(query.label_ids[:n], device=logits.device)
        return torch.nn.functional.cross_entropy(logits.float(), labels)


@contextmanager
def _each_norm(model: PreTrainedModel, order: float) -> Iterator[list[Tensor]]:
    """The norms of the gradients of all parameters, on the CPU, as a backward pass comes by them."""
    norms: list[Tensor] = []
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    own = [p for name, p in model.named_parameters() if p.is_floating_point() and ".lora_" not in name]

    def keep(parameter: Tensor) -> None:
        assert parameter.grad is not None
        norms.append(torch.linalg.vector_norm(parameter.grad.detach().float(), order).cpu())
        parameter.grad = None

    with ExitStack() as stack:
        try:
            for parameter, _, _ in before:
                parameter.grad = None
            for parameter in own:
                parameter.requires_grad_(True)
                stack.callback(parameter.register_post_accumulate_grad_hook(keep).remove)
            yield norms
        finally:
            for parameter, needed, gradient in before:
                parameter.requires_grad_(needed)
                parameter.grad = gradient
