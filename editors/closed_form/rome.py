r"""ROME: rank-one editing of one MLP (Meng et al. 2022, arXiv 2202.05262), by default as R-ROME (2403.07175).

    Λ = (v* − W k) / (kᵀ C⁻¹ k),   W ← W + Λ (C⁻¹ k)ᵀ      (equation 2)

One request after another, each on the weights that the ones before have changed. k is the mean key over the plain
prompt and its contexts, v* the value that makes the target likely, optimized at the MLP's output.

`variant="rome"` is R-ROME: one k everywhere. `variant="original"` is the authors' code: the mean key in C⁻¹k, the plain
prompt's key in the denominator and in W k; where the two keys differ much the denominator is small and
the update explodes (2403.07175, section 3). Each request's kᵀC⁻¹k is noted.

Differs from the authors' code (kmeng01/rome@0874014c) in that the plain prompt and contexts are ours and given as
ids, and that C is taken of about ten keys per dimension. `second_moments=false` takes C = I.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unlearn_eval.editing.editor import MOMENTS, EditJob, Editor
from unlearn_eval.editing.locate_then_edit.least_squares import Solve, least_squares
from unlearn_eval.editing.locate_then_edit.run import (
    Editing,
    LocateConfig,
    add_in_place,
    memory,
    narrow,
    read,
    target_notes,
    weight_norm,
)
from unlearn_eval.editing.locate_then_edit.second_moments import SecondMoments
from unlearn_eval.editing.locate_then_edit.target_values import TargetValues, target_values
from unlearn_eval.editing.locate_then_edit.windows import windows
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.edits.base import LOW_RANK, Applied, applied
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEPTH = (5 / 32, 5 / 32)  # layer 5 of Llama-2-7B's 32
VARIANTS = ONE_KEY, AUTHORS = "rome", "original"


@dataclass(frozen=True)
class Config(LocateConfig):
    """ROME's settings.

    Attributes:
        variant: `rome` (R-ROME: one key everywhere) or `original` (the authors' code).
        second_moments: whether C is used; without it C = I.
    """

    variant: str = ONE_KEY
    second_moments: bool = True


def run(job: EditJob) -> LowRankEdit:
    """The ROME edits of all requests, one after another; the model is as before afterwards.

    A request that stands for several takes the mean of all their keys.

    Raises:
        UserError: an unknown variant, more than one layer, or a key whose update is not finite.
    """
    config: Config = job.config
    if config.variant not in VARIANTS:
        raise UserError(f"ROME has no variant '{config.variant}'", f"give one of: {', '.join(VARIANTS)}")
    editing = Editing.start(EDITOR.name, job, DEPTH)
    if len(editing.layers) != 1:
        raise UserError(f"ROME edits one layer, not {list(editing.layers)}", "give one, e.g. --set layers=5")
    if not job.requests:
        return editing.nothing()

    def values(request: EditRequest) -> TargetValues:
        parts, layer = editing.parts, editing.layers[0]
        return target_values(job.model, parts, layer, [request], config.target, site="projection", window=config.window)

    return one_after_another(editing, values, config.variant)


def one_after_another(
    editing: Editing, values: Callable[[EditRequest], TargetValues], variant: str = ONE_KEY
) -> LowRankEdit:
    """The rank-one edits of all requests of a run, each on the weights that the ones before have changed.

    Args:
        editing: the run; its settings have `second_moments`.
        values: what makes the values of one request, called on the weights so far.
        variant: of ROME.
    """
    job, parts, layer = editing.job, editing.parts, editing.layers[0]
    model, requests, config = job.model, job.requests, job.config
    name = parts.projection_name(layer)
    c = editing.second_moments() if config.second_moments else None
    solve: Solve = c.solver(layer) if c else lambda right: right
    handle = Applied()
    factors: list[tuple[Tensor, Tensor]] = []
    found: list[TargetValues] = []
    scales: dict[str, float] = {}
    with applied(job.previous, model) if job.previous is not None else nullcontext():
        try:
            handle.keep(parts.projection(model, layer).weight)  # type: ignore[arg-type]
            for i, request in enumerate(requests):
                found.append(values(request))
                cut = windows(request, config.window)
                u, v, scales[request.id] = _update(model, name, cut, found[-1], solve, variant)
                add_in_place(model, parts, layer, u, v)
                factors.append((narrow(u, model), narrow(v, model)))
                job.progress("requests", i + 1, len(requests))
        finally:
            handle.restore()
    whole = (torch.cat([u for u, _ in factors], dim=1), torch.cat([v for _, v in factors]))
    notes = target_notes(
        requests,
        TargetValues(
            torch.cat([t.values for t in found]),
            torch.cat([t.clean for t in found]),
            [loss for t in found for loss in t.losses],
            [nll for t in found for nll in t.nlls],
            [steps for t in found for steps in t.steps],
        ),
    )
    notes |= {"key_scale": scales, "n_keys": c.n_keys if c else None, "weight_norms": {name: weight_norm(model, name)}}
    return editing.edit({name: whole}, notes)


def _update(
    model: PreTrainedModel,
    name: str,
    requests: Sequence[EditRequest],
    targets: TargetValues,
    solve: Solve,
    variant: str,
) -> tuple[Tensor, Tensor, float]:
    """Λ (d_out, m), the row vectors (m, d_in), and kᵀC⁻¹k of the first window.

    Several windows are solved at once: every key gets its value exactly, as EMMET has it. One is the rank-one update.

    Args:
        model, name: the model, and its module.
        requests: the m windows of one request.
        targets: v* of their members.
        solve: X ↦ C⁻¹X.
        variant: of ROME.
    """
    if variant == AUTHORS and len(requests) > 1:
        raise UserError(
            "the authors' ROME has one value for each target", "use --set variant=rome, or leave out window"
        )
    all_keys, residuals, n = [], [], 0
    for request in requests:
        keys, values = read(model, name, name, [row for part in request.parts for row in part.rows])
        keys, values = keys.double(), values.double()
        goals = targets.values[n : (n := n + len(request.parts))].double()
        if variant == AUTHORS:
            return _as_the_authors(request, keys, values, goals, solve)
        all_keys.append(keys.mean(0))  # k̄
        residuals.append(goals.mean(0) - values.mean(0))  # v* − W k̄
    keys = torch.stack(all_keys, dim=1)  # (d_in, m)
    u, v = least_squares(keys, torch.stack(residuals, dim=1), solve, slack=0.0)
    return u, v, float((keys[:, 0] @ solve(keys[:, :1])).item())


def _as_the_authors(
    request: EditRequest, keys: Tensor, values: Tensor, goals: Tensor, solve: Solve
) -> tuple[Tensor, Tensor, float]:
    """Λ (d_out, 1), the row vector (1, d_in), and kᵀC⁻¹k, with two different keys.

    Args:
        request: whose prompts the rows are of.
        keys, values: (R, d_in), (R, d_out) of all its prompts; the first of each member is the plain one.
        goals: v* of its members.
        solve: X ↦ C⁻¹X.
    """
    starts, n = [], 0
    for part in request.parts:
        starts.append(n)
        n += len(part.rows)
    mean_key = keys.mean(0)[:, None]  # k̄: (d_in, 1)
    target = goals.mean(0)[:, None]  # v*: (d_out, 1)
    plain_key, plain_value = keys[starts].mean(0)[:, None], values[starts].mean(0)[:, None]
    left = solve(mean_key)  # C⁻¹k̄
    scale = float((plain_key.T @ left).item())
    if not scale or not torch.isfinite(left).all():
        raise UserError(
            f"request {request.id}: the plain prompt's key has no part along the mean key's", "use --set variant=rome"
        )
    return (target - plain_value) / scale, left.T, scale


MEMORY = partial(memory, depth=DEPTH, factor=SecondMoments.solver, site="projection", at_once=1)
EDITOR = Editor(
    "rome",
    Config,
    run,
    makes=LOW_RANK,
    uses={MOMENTS},
    needs_retain=lambda config: None if config.second_moments else False,
    memory=MEMORY,
    paper="2202.05262, 2403.07175",
    one_layer=True,
)
