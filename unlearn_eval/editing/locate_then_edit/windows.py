r"""Long targets in windows (AnyEdit: Jiang et al. 2025, arXiv 2502.05628), for every method of the family.

One value cannot hold a long text. A target of more than W tokens is cut into windows t¹ … tᵐ of W tokens, each with a
value of its own: that of t¹ where the fact is looked up, that of tⁱ at the token before it, in the text ending there.

    x_i = prompt ∥ t¹ … tⁱ⁻¹,   p_i = the last token of x_i   (p_1: the request's own look-up token)
    δ_i minimizes the objective of tⁱ after x_i, with δ_1 … δ_{i−1} in their places   (sections 4.2, 4.3)

Each window is a request of its own from there on. Methods with a key cache also keep the values of the text's other
tokens: their keys are further columns of K_p.

Differs from the authors' code (jianghoucheng/AnyEdit@ac8e652) in that the first window is looked up where the method
does it, not always at the prompt's last token, that contexts take part, and that δ_1 has the KL term (they have none).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.edits.memory.edit import read_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def windows(request: EditRequest, size: int) -> list[EditRequest]:
    """The request as one for each window of its target; as it is, if there is one only or `size` is 0."""
    n = len(request.target_ids)
    if not size or n <= size:
        return [request]
    return [_window(request, start, start + size) for start in range(0, n, size)]


def columns(requests: Sequence[EditRequest], size: int) -> list[EditRequest]:
    """Every member of every window of the requests: each has a value, in this order."""
    return [part for request in requests for window in windows(request, size) for part in window.parts]


def _window(request: EditRequest, start: int, end: int) -> EditRequest:
    before, own = request.target_ids[:start], request.target_ids[start:end]
    members = tuple(_window(member, start, end) for member in request.members)
    found = replace(request, target_ids=own, members=members)
    if not start:
        return found
    prompt = (*request.prompt_ids, *before)
    contexts = tuple(((*ids, *before), len(ids) + start - 1) for ids, _ in request.contexts)
    return replace(found, prompt_ids=prompt, lookup=len(prompt) - 1, subject_ids=(), contexts=contexts)


def text_keys(model: PreTrainedModel, module: str, requests: Sequence[EditRequest], size: int) -> Tensor | None:
    """(m, d_in) what a module reads at the tokens of plain prompts and targets whose values are not to change.

    Those of the same beginning are the same, and are taken once. None if no request has more than one window.
    """
    long = [part for request in requests for part in request.parts if len(windows(part, size)) > 1]
    if not long:
        return None
    # Of short requests too: no other text may pass through one of their look-up tokens and keep it as it was.
    edited = {
        own.prompt_ids[: own.lookup + 1]
        for request in requests
        for part in request.parts
        for own in windows(part, size)
    }
    rows = [(*part.prompt_ids, *part.target_ids[:-1]) for part in long]
    found: dict[tuple[int, ...], Tensor] = {}
    for ids, inputs in zip(rows, read_inputs(model, module, rows), strict=True):
        for i, key in enumerate(inputs):
            if (start := ids[: i + 1]) not in edited:
                found.setdefault(start, key)
    return torch.stack(list(found.values())).double()


def gathered(keys: Tensor) -> Tensor:
    """(d, at most d) columns with the same K Kᵀ as keys (d, m)."""
    if keys.shape[1] <= keys.shape[0]:
        return keys
    values, vectors = torch.linalg.eigh(keys @ keys.T)
    columns: Tensor = vectors * values.clamp_min(0).sqrt()
    return columns
