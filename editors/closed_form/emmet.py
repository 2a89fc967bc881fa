r"""EMMET: batched ROME, equality-constrained mass editing (Gupta et al. 2024, arXiv 2403.14236).

    Δ = R (Kᵀ C⁻¹ K)⁻¹ Kᵀ C⁻¹      (equation 9: min tr(Δ C Δᵀ) subject to ΔK = R)

Every key gets its new value exactly. That needs linearly independent keys, at most d_in of them; keys of earlier edits
are further constraints, with residual 0.

Differs from the authors' code (scalable-model-editing/unified-model-editing@23d72b56) in the term that
conditions Kᵀ C⁻¹ K: they add 0.1, we add `slack` times the mean of its diagonal, which does not depend on the
scale of the keys. (With a slack of s in place of equality this is MEMIT with λ = s · mean diagonal.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from unlearn_eval.editing.editor import MOMENTS, EditJob, Editor, if_given
from unlearn_eval.editing.locate_then_edit.least_squares import check_rank, least_squares
from unlearn_eval.editing.locate_then_edit.run import Editing, MassEditConfig, locate_then_edit, memory
from unlearn_eval.editing.locate_then_edit.second_moments import SecondMoments
from unlearn_eval.edits.base import LOW_RANK
from unlearn_eval.edits.low_rank import LowRankEdit

DEPTH = (5 / 32, 5 / 32)  # layer 5 of Llama-2-7B's 32


@dataclass(frozen=True)
class Config(MassEditConfig):
    """EMMET's settings.

    Attributes:
        slack: what is added to the diagonal of Kᵀ C⁻¹ K, relative to its mean; 0 is exact equality.
    """

    slack: float = 1e-5


def run(job: EditJob) -> LowRankEdit:
    """The EMMET edit for all requests at once.

    Raises:
        UserError: more keys than dimensions, or linearly dependent keys.
    """
    editing = Editing.start(EDITOR.name, job, DEPTH)

    def update(layer: int, keys: Tensor, residuals: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        check_rank(keys, past, len(keys), EDITOR.name)
        solve = editing.second_moments().solver(layer)  # A = C
        mean = float((keys * solve(keys)).sum() / keys.shape[1])
        return least_squares(keys, residuals, solve, job.config.slack * mean, past)

    return locate_then_edit(editing, update)


MEMORY = partial(memory, depth=DEPTH, factor=SecondMoments.solver)
EDITOR = Editor(
    "emmet", Config, run, makes=LOW_RANK, uses={MOMENTS}, needs_retain=if_given, memory=MEMORY, paper="2403.14236"
)
