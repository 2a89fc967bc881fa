"""Means and variances of ln p over the vocabulary, of which an engine's answers say nothing.

An engine asks its model for logits (`compute_logits`, which every model of vLLM has) of a prompt's tokens when their
log-probabilities are asked for. A watch notes the moments there, of one request at a time. Which row of logits belongs
to which token is not assumed, but found from the log-probabilities that the engine answers with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unlearn_eval.models.scoring import moments_of

SAME = 1e-4  # ln p of the same logits by other kernels; rounding is below 1e-5
_NUMBERS = 2**24  # logits in float32 at once


class Watch:
    """What is noted of the logits of one request.

    Args:
        ids: its tokens.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self._known = sorted(set(ids))
        self._means: list[Tensor] = []
        self._variances: list[Tensor] = []
        self._logp: list[Tensor] = []

    @torch.no_grad()
    def see(self, logits: Tensor) -> None:
        """Note rows of logits (R, V)."""
        columns = torch.tensor(self._known, device=logits.device)
        for part in torch.split(logits, max(1, _NUMBERS // logits.shape[-1])):
            logp = part.float().log_softmax(-1)
            mean, variance = moments_of(logp)
            self._means.append(mean.cpu())
            self._variances.append(variance.cpu())
            self._logp.append(logp[:, columns].cpu())

    def moments(self, labels: Sequence[int], logp: Sequence[float]) -> tuple[list[float], list[float]] | None:
        """Means and variances at the last tokens of the request, or None if their rows are not among those seen.

        Rows are seen in the order of the tokens, here and there with one of another token between them.

        Args:
            labels: those tokens.
            logp: ln p of each, by the engine.
        """
        if not self._logp:
            return None
        seen, means, variances = torch.cat(self._logp), torch.cat(self._means), torch.cat(self._variances)
        rows, end = [], len(seen)
        for label, value in zip(reversed(labels), reversed(logp), strict=True):
            own = seen[:end, self._known.index(label)]
            same = ((own - value).abs() < SAME).nonzero()[:, 0]
            if not len(same):
                return None
            end = int(same[-1])
            rows.append(end)
        rows.reverse()
        return means[rows].tolist(), variances[rows].tolist()
