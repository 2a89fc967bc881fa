"""Top-p sampling without sorting the vocabulary: the most likely tokens are found first, and only they are sorted.

Which tokens are kept is exact: where the first `FIRST_TOKENS` do not have `top_p` together, more are taken.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FIRST_TOKENS = 512
_MORE = 8  # times as many, where those do not suffice
_SLACK = 1e-4  # of probability: sums in another order differ in the last bits


def nucleus(p: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The most likely tokens that have `top_p` together, in order; ties among them by their number.

    Args:
        p: (B, V), probabilities.
        top_p: from 0 to 1; one token at least is kept.

    Returns:
        (B, K) probabilities, 0 for those that are not kept, and (B, K) tokens; K is enough for every row.
    """
    n = p.shape[-1]
    k = min(FIRST_TOKENS, n)
    while True:
        values, tokens = p.topk(k, dim=-1, sorted=False)
        if k == n or bool((values.sum(-1) >= top_p + _SLACK).all()):
            break
        k = min(k * _MORE, n)
    tokens, order = tokens.sort(dim=-1)
    values, order = values.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    tokens = tokens.gather(-1, order)
    before = values.cumsum(-1) - values
    return torch.where((before < top_p) | (before == before[:, :1]), values, 0.0), tokens


def top_p_choice(logits: Tensor, drawn: Tensor, top_p: float) -> Tensor:
    """The token (B,) that each number in [0, 1) picks among the most likely ones that have `top_p` together.

    Args:
        logits: (B, V).
        drawn: (B,), one random number for each row.
        top_p: the smallest set of most likely tokens with at least this probability is kept, one token at least.
    """
    kept, tokens = nucleus(logits.softmax(-1), top_p)
    reached = kept.cumsum(-1) > drawn[:, None] * kept.sum(-1, keepdim=True)
    return tokens.gather(1, reached.int().argmax(-1, keepdim=True))[:, 0]


class TopP:
    """A logits processor that leaves the tokens of `nucleus`, as transformers' `TopPLogitsWarper` does by a sort."""

    def __init__(self, top_p: float, after_step: Callable[[], object] = lambda: None) -> None:
        self.top_p, self.after_step = top_p, after_step

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V) in which the other tokens have none."""
        kept, tokens = nucleus(scores.float().softmax(-1), self.top_p)
        allowed = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, tokens, kept > 0)
        self.after_step()
        return scores.masked_fill(~allowed, -torch.inf)
