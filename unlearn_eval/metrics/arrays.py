"""How the metrics read their input: float64 arrays, checked once, with the missing values taken out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from unlearn_eval.utils.errors import UserError

FloatArray = npt.NDArray[np.float64]
Numbers = Sequence[float] | npt.NDArray[np.floating[Any]]
MaybeNumbers = Sequence[float | None] | npt.NDArray[np.floating[Any]]

# A log-softmax in bfloat16 can land a little on the wrong side of 0; log-probabilities passed where losses
# are wanted are off by whole units, so anything between the two tells them apart.
SIGN_TOLERANCE = 1e-3
_LARGEST = float(np.finfo(np.float64).max)


def token_losses(token_nll: Numbers) -> FloatArray:
    """The negative log-likelihoods of an answer's tokens, in nats, as a float64 vector.

    Raises:
        UserError: a value is negative, so log-probabilities were probably passed.
    """
    losses = np.asarray(token_nll, dtype=np.float64).ravel()
    if np.any(losses < -SIGN_TOLERANCE):
        raise UserError(
            f"a token's negative log-likelihood is {losses.min():.4g}, which is below 0",
            "pass -ln p of each token, not ln p",
        )
    return np.maximum(losses, 0.0)


def mean_loss(token_nll: Numbers) -> float | None:
    """The mean negative log-likelihood per token in nats, or None without tokens or with a NaN among them.

    Infinite if a token has probability 0, so that the difference of two such answers is not taken for 0.
    """
    losses = token_losses(token_nll)
    mean = float(losses.mean()) if losses.size else math.nan
    return None if math.isnan(mean) else mean


def defined(value: float | np.floating[Any] | None) -> float | None:
    """The value as a finite Python float, or None if it is None or NaN.

    Infinities become the largest float, so that they keep their order and strict JSON can hold them.
    """
    if value is None or np.isnan(value):
        return None
    return min(max(float(value), -_LARGEST), _LARGEST)


def drop_missing(values: Iterable[float | None]) -> FloatArray:
    """The values that are neither None nor NaN, as a float64 vector; infinities as in `defined`."""
    numbers = np.asarray(values if isinstance(values, np.ndarray) else [*values], dtype=np.float64)  # None becomes NaN
    return np.clip(numbers[~np.isnan(numbers)], -_LARGEST, _LARGEST)
