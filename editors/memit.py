r"""MEMIT: mass editing of a few MLP layers by least squares (Meng et al. 2023, arXiv 2210.07229).

One target value v* per request at the deepest layer; then, from the lowest layer up, with the keys K and the values
at the deepest layer read again on the weights so far, each of the layers left takes an equal share of what is
still missing:

    R = (V* − Z) / (layers left),   Δ = R Kᵀ (λC + K Kᵀ)⁻¹      (equations 14, 19, 20; algorithm 1)

Keys are averages: half the plain prompt, half the mean over the contexts.

Differs from the authors' code (kmeng01/memit@80426fd9) in that λ is given relative to the keys' dimension (their
15000 for d = 16384 is 0.92): a key of Mahalanobis length d, as an average key has, then moves the same share of its
residual in a small model as in a large one. Text, look-up token and target are ids; the chat template is used where
the model will be asked through it; C comes from the model's own text unless another is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from unlearn_eval import corpus
from unlearn_eval.anatomy import Anatomy, anatomy, layers_at_depth
from unlearn_eval.editors.base import EditRequest, Progress, no_progress
from unlearn_eval.editors.least_squares import cholesky_solver, least_squares
from unlearn_eval.editors.second_moments import SecondMoments, cache_name, second_moments
from unlearn_eval.editors.target_values import TargetValueConfig, TargetValues, target_values
from unlearn_eval.edits import Applied, EditInfo, LowRankEdit
from unlearn_eval.models import cache_dir
from unlearn_eval.provenance import hash_weights
from unlearn_eval.scoring import pad
from unlearn_eval.tracing import first, trace


@dataclass(frozen=True)
class Config:
    """MEMIT's settings.

    Attributes:
        layers: the edited layers; by default those between 1/8 and 1/4 of the depth (4 to 8 of Llama-3-8B's 32).
        preservation: λ/d, the weight of C against one key.
        target: how target values are optimised.
        text: what second moments are taken of: `self` (the model's own text) or a file.
        keys_per_dimension: how many keys the second moments are taken of, divided by d.
        seed: of the text.
    """

    layers: tuple[int, ...] = ()
    preservation: float = 1.0
    target: TargetValueConfig = field(default_factory=TargetValueConfig)
    text: str = corpus.SELF
    keys_per_dimension: float = 10.0
    seed: int = 0


def edit(
    model: Any,
    tokenizer: Any,
    requests: Sequence[EditRequest],
    config: Config,
    generator: Any = None,
    state: SecondMoments | None = None,
    progress: Progress = no_progress,
) -> LowRankEdit:
    """The MEMIT edit for all requests at once; the model is as before afterwards.

    Args:
        model, tokenizer: in eval mode; float32 is best, bfloat16 works.
        requests: what to say instead; none gives an edit that changes nothing.
        config: the settings.
        generator: not used (the text has its own seed).
        state: second moments to use instead of computing or reading them.
        progress: told of second moments, target values and layers.
    """
    parts = anatomy(model)
    layers = tuple(sorted(set(config.layers))) or layers_at_depth(parts.n_layers, 1 / 8, 1 / 4)
    parts.check_layers(layers)
    resolved = asdict(config) | {"layers": list(layers)}
    if not requests:
        return LowRankEdit({}, EditInfo("memit", resolved), parts.transposed)
    moments = state or model_second_moments(model, tokenizer, parts, layers, config, progress)
    targets = target_values(model, parts, layers[-1], requests, config.target, progress)
    factors = _spread(model, parts, layers, requests, targets, moments, config, progress)
    notes = {
        "target_loss": dict(zip((r.id for r in requests), targets.losses, strict=True)),
        "target_nll": dict(zip((r.id for r in requests), targets.nlls, strict=True)),
        "steps": targets.steps,
        "n_keys": moments.n_keys,
    }
    return LowRankEdit(factors, EditInfo("memit", resolved, notes=notes), parts.transposed)


def model_second_moments(
    model: Any, tokenizer: Any, parts: Anatomy, layers: Sequence[int], config: Config, progress: Progress
) -> SecondMoments:
    """C of the layers, from the cache if this model's were computed before."""
    n_keys = round(config.keys_per_dimension * parts.d_mlp)
    settings = {"text": corpus.source_key(config.text), "n_keys": n_keys, "seed": config.seed}
    path = cache_dir() / "second_moments" / cache_name(hash_weights(model).canonical, layers, settings)
    batches = corpus.token_sequences(config.text, model, tokenizer, n_keys, seed=config.seed)
    return second_moments(model, parts, layers, batches, n_keys, path, progress)


def _spread(
    model: Any,
    parts: Anatomy,
    layers: Sequence[int],
    requests: Sequence[EditRequest],
    targets: TargetValues,
    moments: SecondMoments,
    config: Config,
    progress: Progress,
) -> dict[str, tuple[Tensor, Tensor]]:
    """The factors of every layer, computed on weights that already hold the lower layers' share."""
    handle = Applied()
    factors = {}
    try:
        for i, layer in enumerate(layers):
            keys, values = read_keys_and_values(model, parts, layer, layers[-1], requests)
            residuals = (targets.values.double() - values.double()).T / (len(layers) - i)
            solve = cholesky_solver(config.preservation * parts.d_mlp * moments.moment(layer))
            u, v = least_squares(keys.double().T, residuals, solve)
            weight = parts.weight(model, layer)
            handle.keep(parts.projection(model, layer).weight)  # type: ignore[arg-type]
            with torch.no_grad():
                weight.copy_(weight.double() + u @ v)
            factors[parts.projection_name(layer)] = (u.float(), v.float())
            progress("layers", i + 1, len(layers))
    finally:
        handle.restore()
    return factors


@torch.no_grad()
def read_keys_and_values(
    model: Any,
    parts: Anatomy,
    layer: int,
    top: int,
    requests: Sequence[EditRequest],
    rows_per_batch: int = 64,
) -> tuple[Tensor, Tensor]:
    """Each request's key at `layer` (n, d_in), averaged over its prompts, and its plain value at `top` (n, d).

    Prompts are cut after the look-up token, which sees nothing of the rest, and run up to block `top` only.
    """
    name, block = parts.projection_name(layer), f"{parts.blocks}.{top}"
    rows: list[tuple[int, ...]] = []
    weights: list[tuple[int, float, bool]] = []  # owner, weight of its key, is it the plain prompt
    for i, request in enumerate(requests):
        for j, (ids, lookup) in enumerate(request.rows):
            share = 1.0 if not request.contexts else 0.5 if j == 0 else 0.5 / len(request.contexts)
            rows.append(ids[: lookup + 1])
            weights.append((i, share, j == 0))
    keys: list[Any] = [0.0] * len(requests)
    values: list[Any] = [None] * len(requests)
    for start in range(0, len(rows), rows_per_batch):
        part = rows[start : start + rows_per_batch]
        tokens, mask = pad(part, "right", model.device)
        with trace(model, inputs=[name], outputs=[block], stop_after=block) as seen:
            model(input_ids=tokens, attention_mask=mask, use_cache=False)
        last = torch.tensor([len(row) - 1 for row in part], device=model.device)
        index = torch.arange(len(part), device=model.device)
        own_keys, own_values = seen.inputs[name][index, last], first(seen.outputs[block])[index, last]
        own = weights[start : start + rows_per_batch]
        for (i, share, plain), key, value in zip(own, own_keys, own_values, strict=True):
            keys[i] = keys[i] + share * key.double()
            if plain:
                values[i] = value
    return torch.stack(keys), torch.stack(values)
