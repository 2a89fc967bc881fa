"""How well linear probes tell classes apart in the residual stream: logistic regression, cross-validated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from unlearn_eval.utils.errors import UserError


def check_classes(labels: Sequence[str], folds: int) -> None:
    """Refuse labels that no cross-validated probe can learn.

    Raises:
        UserError: fewer than two classes, or a class with fewer members than folds.
    """
    counts = Counter(labels)
    if len(counts) < 2:
        raise UserError(
            f"a probe tells classes apart, and all {len(labels)} facts have the answer {next(iter(counts), '')!r}",
            "give others with --retain (of sports the whole set: --retain sports:all), or --set way=path_patching",
        )
    fewest = min(counts, key=lambda name: counts[name])
    if counts[fewest] < folds:
        raise UserError(
            f"a probe with {folds} folds needs {folds} facts of each answer; {fewest!r} has {counts[fewest]}",
            "give more facts, fewer --set folds=..., or --set way=path_patching",
        )


def probe_accuracy(
    states: npt.NDArray[Any], labels: Sequence[str], folds: int, regularization: float, seed: int
) -> float:
    """The share of rows (n, d) whose label a probe that has not seen them predicts rightly.

    States are centered and divided by one number (their root mean square), and turned into the space that they span:
    both are the same for all rows and without labels, and the second changes no L2-regularized probe, only the cost.

    Args:
        states: (n, d).
        labels: n of them.
        folds: of the stratified cross-validation.
        regularization: 1/C of scikit-learn.
        seed: of the folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    centered = np.asarray(states, dtype=np.float64) - np.mean(states, axis=0)
    centered /= max(float(np.sqrt(np.mean(centered**2))), 1e-12)
    if centered.shape[0] < centered.shape[1]:
        left, singular, _ = np.linalg.svd(centered, full_matrices=False)
        centered = left * singular
    probe = LogisticRegression(C=1 / regularization, max_iter=500, tol=1e-3)
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return float(np.mean(cross_val_score(probe, centered, list(labels), cv=split)))
