r"""AlphaEdit: null-space constrained editing (Fang et al. 2025, arXiv 2410.02355).

    Δ = R Kᵀ P (K_p K_pᵀ P + K Kᵀ P + L2·I)⁻¹      (equation 14; L2 = 1 there, 10 in the code)

P projects on the span of those eigenvectors of C whose eigenvalues are below a threshold, so that Δ does not touch
what the model usually computes. With K̃ = PK this is least squares with A = L2·I, and only the eigenvectors are
needed, not the d×d projection.

The threshold: `absolute:0.02` (the authors': eigenvalue below 0.02, whatever the model's scale), `relative:0.1`
(below a tenth of the mean eigenvalue), `energy:0.05` (the smallest eigenvalues, which hold 5 % of the trace together).
L2 is `ridge` times E‖Pk‖² = tr(PC), or `l2` itself if that is above 0; the authors' setting is
`null_space=absolute:0.02 l2=10`.

Differs from the authors' code (jianghoucheng/AlphaEdit@f5248d3d) in the relative defaults, in that C is
decomposed as the symmetric matrix it is, and in that an edit remembers the keys that it was made with, where they read
them again on the edited weights: edits in sequence are then one edit of all requests wherever they are so in `memit`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from unlearn_eval.editing.editor import MOMENTS, EditJob, Editor, if_given
from unlearn_eval.editing.locate_then_edit.least_squares import check_rank, least_squares
from unlearn_eval.editing.locate_then_edit.run import Editing, MassEditConfig, locate_then_edit, memory
from unlearn_eval.editing.locate_then_edit.second_moments import SecondMoments
from unlearn_eval.edits.base import LOW_RANK
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.utils.errors import UserError

DEPTH = (1 / 8, 1 / 4)  # layers 4 to 8 of Llama-3-8B's 32


@dataclass(frozen=True)
class Config(MassEditConfig):
    """AlphaEdit's settings.

    Attributes:
        null_space: which eigenvectors of C span it: `absolute:X`, `relative:X` or `energy:X`.
        ridge: L2 relative to E‖Pk‖², the mean squared length of a key's projection.
        l2: L2 itself; above 0 it takes the place of `ridge`.
    """

    null_space: str = "energy:0.05"
    ridge: float = 1.0
    l2: float = 0.0


def run(job: EditJob) -> LowRankEdit:
    """The AlphaEdit edit for all requests at once.

    Raises:
        UserError: a threshold that cannot be read or leaves no null space, fewer keys in C than dimensions, or
            more requests than the null space has dimensions.
    """
    editing = Editing.start(EDITOR.name, job, DEPTH)
    config: Config = job.config
    kind, threshold = parse_threshold(config.null_space)
    if config.ridge <= 0 and config.l2 <= 0:
        raise UserError(f"ridge {config.ridge} and l2 {config.l2} leave no regularization", "give one of them above 0")
    if job.requests and (n_keys := editing.second_moments().n_keys) < editing.parts.d_mlp:
        raise UserError(
            f"the second moments are of {n_keys} keys, fewer than the {editing.parts.d_mlp} dimensions, so most of "
            "their null space is chance",
            "give more text, or raise keys_per_dimension",
        )
    sizes: dict[str, int] = {}

    def update(layer: int, keys: Tensor, residuals: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        values, vectors = null_space(*editing.second_moments().eigen(layer), kind, threshold)
        sizes[str(layer)] = len(values)
        check_rank(keys, past, len(values), f"{EDITOR.name}'s null space")

        def project(columns: Tensor) -> Tensor:
            return vectors @ (vectors.T @ columns)  # PK

        l2 = config.l2 or config.ridge * float(values.clamp_min(0).sum())
        projected = None if past is None else project(past)
        return least_squares(project(keys), residuals, lambda right: right / l2, past=projected)

    return locate_then_edit(editing, update, {"null_space_dimensions": sizes})


def null_space(values: Tensor, vectors: Tensor, kind: str, threshold: float) -> tuple[Tensor, Tensor]:
    """The small ones of the eigenvalues (d,) of C, smallest first, and their eigenvectors: (q,), (d, q).

    Raises:
        UserError: no eigenvalue is small enough.
    """
    if kind == "energy":
        small = values.clamp_min(0).cumsum(0) < threshold * values.clamp_min(0).sum()
    else:
        small = values < (threshold if kind == "absolute" else threshold * values.mean())
    n = int(small.sum())
    if n == 0:
        raise UserError(
            f"no direction of the keys is in the null space {kind}:{threshold}",
            "raise the threshold, e.g. --set null_space=energy:0.1",
        )
    return values[:n], vectors[:, :n]


def parse_threshold(text: str) -> tuple[str, float]:
    """The kind and the number of a threshold such as `energy:0.05`."""
    kind, _, number = text.partition(":")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if kind not in ("absolute", "relative", "energy") or value <= 0 or (kind == "energy" and value > 1):
        raise UserError(
            f"null_space cannot be '{text}'",
            "give absolute:X, relative:X, or energy:X with X above 0 (energy: up to 1)",
        )
    return kind, value


def _decomposed(moments: SecondMoments, layer: int) -> Any:
    """What a layer's eigenvectors take, for the plan of memory: LAPACK's work space is twice as large as C."""
    work = moments.moment(layer).new_empty(2, *moments.sums[layer].shape)
    return moments.eigen(layer), work


MEMORY = partial(memory, depth=DEPTH, factor=_decomposed)
EDITOR = Editor(
    "alphaedit", Config, run, makes=LOW_RANK, uses={MOMENTS}, needs_retain=if_given, memory=MEMORY, paper="2410.02355"
)
