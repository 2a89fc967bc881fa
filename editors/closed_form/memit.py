r"""MEMIT: mass editing of a few MLP layers by least squares (Meng et al. 2023, arXiv 2210.07229).

    R = (V* − Z) / (layers left),   Δ = R Kᵀ (λC + K_p K_pᵀ + K Kᵀ)⁻¹      (equations 14, 19, 20; algorithm 1)

K_p are the keys of earlier edits: with the key cache, an edit that goes on from another leaves its values alone. Edits
in sequence are exactly one edit of all requests in one layer (whose keys no edit moves), for fixed target values,
without contexts (the key is then that of the prompt at which the value is read), and without a norm between MLP and
residual stream; otherwise they approximate it.

Differs from the authors' code (kmeng01/memit@80426fd9) in that λ is given relative to the keys' dimension (their
15000 for d = 16384 is 0.92): a key of Mahalanobis length d, as an average key has, then moves the same share of its
residual in a small model as in a large one; and in the key cache, which they do not have (`key_cache=false`). Text,
look-up token and target are ids; the chat template is used where the model will be asked through it; C comes
from the model's own text unless another is named.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from unlearn_eval.editing.editor import MOMENTS, EditJob, Editor, if_given
from unlearn_eval.editing.locate_then_edit.least_squares import least_squares
from unlearn_eval.editing.locate_then_edit.run import Editing, MassEditConfig, locate_then_edit, memory
from unlearn_eval.editing.locate_then_edit.second_moments import SecondMoments
from unlearn_eval.edits.base import LOW_RANK
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import Positive

DEPTH = (1 / 8, 1 / 4)  # layers 4 to 8 of Llama-3-8B's 32


@dataclass(frozen=True)
class Config(MassEditConfig):
    """MEMIT's settings.

    Attributes:
        preservation: λ/d, the weight of C against one key.
    """

    preservation: Positive = 1.0


def run(job: EditJob) -> LowRankEdit:
    """The MEMIT edit for all requests at once; none gives an edit that changes nothing.

    Raises:
        UserError: no preservation, or (as in all methods) layers or requests that do not fit.
    """
    config: Config = job.config
    if config.preservation <= 0:
        raise UserError(f"preservation is {config.preservation}", "give a number above 0")
    editing = Editing.start(EDITOR.name, job, DEPTH)

    def update(layer: int, keys: Tensor, residuals: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        solve = editing.second_moments().solver(layer)  # C⁻¹
        weight = config.preservation * len(keys)  # λ = preservation · d
        return least_squares(keys, residuals, lambda right: solve(right) / weight, past=past)  # A = λC

    return locate_then_edit(editing, update)


MEMORY = partial(memory, depth=DEPTH, factor=SecondMoments.solver)
EDITOR = Editor(
    "memit", Config, run, makes=LOW_RANK, uses={MOMENTS}, needs_retain=if_given, memory=MEMORY, paper="2210.07229"
)
