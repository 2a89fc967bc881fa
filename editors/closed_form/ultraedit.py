r"""UltraEdit: one gradient, one least squares, running statistics (Gu et al. 2025, arXiv 2505.14679).

Needs no subject, no training and no text of its own. For every token t that predicts a token of a target, an edited
linear map sees an input h_t and the gradient g_t of the target's loss with respect to the map's output. Both are
normalized by the mean μ and standard deviation σ over all requests so far ("lifelong normalization"):

    ĥ = (h − μ_h) / σ_h,   ĝ = (g − μ_g) / σ_g
    v_t = −η s ‖ĥ_t‖² ĝ_t                          the shift that the map's output should make
    Δ = Vᵀ H (Hᵀ H + λI)⁻¹                         with rows h_t of H (not normalized) and v_t of V

All maps are changed at once, from one forward and one backward pass for each request; the statistics count the
requests of the step before they are used.

Nothing here preserves what other inputs give (A = I in the solver, where MEMIT has the keys' second moments). Questions
that end in the same tokens of a chat template have much the same h where the refusal starts, so refusing some of them
makes the model refuse others too; fewer layers, a larger λ or a smaller η trade one for the other.

Differs from the authors' code (XiaojieGu/UltraEdit@0beb2225) in these ways.
  - Learning rate. Theirs is η = 1e-6 with s = 1 in every model. Since E‖ĥ‖² = d_in, an element of v_t is then η·d_in
    in the outputs' own units, whatever those are: a model seven times narrower is moved seven times less. Here
    s = rms(outputs)/d_in, so that η is the shift in units of a typical output; `scale="absolute"` is theirs.
  - Statistics belong to a module; theirs are shared by modules of one shape (`pooled=True`). Their running variance
    multiplies the unbiased variance of each micro-batch by n instead of n − 1, and is NaN for a micro-batch of one
    token; here the sums are exact, so micro-batches change nothing.
  - Losses are summed over tokens; theirs are averaged over those of a micro-batch, which weighs a token by the company
    it comes in. (Normalization takes the constant out, but for σ + 1.2e-7.)
  - Prompts are ids, through the chat template where the model will be asked through it, and the end of the turn is
    part of the target. EasyEdit's copy (zjunlp/EasyEdit@14cea824) takes all tokens of prompt and target for H
    (`token: mask`) instead of those that predict a target token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unlearn_eval.editing.editor import EditJob, Editor, no_change
from unlearn_eval.editing.locate_then_edit.least_squares import cholesky_solver, least_squares
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.edits.base import LOW_RANK, EditInfo, applied
from unlearn_eval.edits.low_rank import LowRankEdit, compact, concatenate
from unlearn_eval.models.anatomy import Anatomy, anatomy, is_transposed
from unlearn_eval.models.arguments import accepts
from unlearn_eval.models.out_of_memory import in_batches
from unlearn_eval.models.scoring import pad
from unlearn_eval.models.tracing import trace
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.settings import Positive, Size

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn_eval.models.memory import Phase

DEPTH = (0.64, 0.93)  # layers 18 to 26 of Qwen2.5-7B's 28
# The linear maps into an MLP, by the names that architectures give them; the first that is there is taken.
GATES = ("gate_proj", "w1")
UPS = ("up_proj", "w3", "c_fc", "fc_in", "dense_h_to_4h", "fc1")
FUSED = ("gate_up_proj",)
MODULES = ("gate_up", "gate", "up", "down")
SCALES = ("relative", "absolute")
EPSILON = torch.finfo(torch.float32).eps  # added to σ, as in the authors' code


@dataclass(frozen=True)
class Config:
    """UltraEdit's settings.

    Attributes:
        layers: the edited layers; by default those between 0.64 and 0.93 of the depth (18 to 26 of Qwen2.5-7B's 28;
            the authors choose them for each model, Llama-3-8B has 11 to 24 of 32, Mistral-7B 29 and 30 of 32).
        modules: the edited maps of their MLPs: `gate_up` (every map into the MLP), `gate`, `up` (the only one of an
            MLP without gate), or `down` (the authors' for GPT-J, Mistral and Phi-4).
        learning_rate: η, the size of a shift; with 0.02 the default small model refuses eight facts after one pass.
        scale: what η counts in: `relative` (a typical output of the map) or `absolute` (the authors'; theirs is 1e-6).
        pooled: share statistics among maps of one shape, as the authors do.
        ridge: λ, in units of ‖h‖².
        passes: how often all requests are gone through, each time on the weights edited so far.
        requests_per_step: how many requests make one least squares (the authors': 100); the next step's gradients are
            taken on the weights edited so far.
        tokens_per_batch: tokens in one forward pass, with padding; changes nothing but memory and time.
    """

    layers: tuple[int, ...] = ()
    modules: str = "gate_up"
    learning_rate: Positive = 0.02
    scale: str = "relative"
    pooled: bool = False
    ridge: float = 1.0
    passes: Size = 1
    requests_per_step: Size = 100
    tokens_per_batch: Size = 2048


@dataclass(frozen=True)
class Moments:
    """Running statistics of the rows [h, g] of one module, exact under any order and grouping; float64.

    Attributes:
        count: how many rows, a scalar.
        mean: (d_in + d_out,).
        m2: (d_in + d_out,), the sum of squared differences from the mean.
        squares: the sum over rows of the mean square of the module's outputs, a scalar.
    """

    count: Tensor
    mean: Tensor
    m2: Tensor
    squares: Tensor

    @classmethod
    def of(cls, rows: Tensor, squares: Tensor) -> Moments:
        """The statistics of some rows (n, d_in + d_out)."""
        mean = rows.mean(0)
        count = torch.tensor(float(len(rows)), dtype=rows.dtype, device=rows.device)
        return cls(count, mean, (rows - mean).square().sum(0), squares)

    def merged(self, other: Moments) -> Moments:
        """The statistics of both samples together (Chan, Golub and LeVeque 1979), where and as these are."""
        n, mean, m2, squares = (getattr(other, field.name).to(self.mean) for field in fields(other))
        count, delta = self.count + n, mean - self.mean
        m2 = self.m2 + m2 + delta.square() * (self.count * n / count)
        return Moments(count, self.mean + delta * (n / count), m2, self.squares + squares)

    @property
    def std(self) -> Tensor:
        """The standard deviation, unbiased, of at least two rows."""
        return (self.m2 / (self.count - 1)).sqrt()


@dataclass(frozen=True)
class Features:
    """What one module saw at the tokens that predict a target: h (n, d_in), g (n, d_out), and its outputs' squares."""

    inputs: Tensor
    gradients: Tensor
    squares: Tensor


def run(job: EditJob) -> LowRankEdit:
    """The UltraEdit edit for all requests; the model is as before afterwards.

    Of a request only `prompt_ids` and `target_ids` count; one that stands for several is taken apart. No requests give
    an edit that changes nothing more. The statistics of an earlier edit are continued. Nothing is random.

    Raises:
        UserError: a setting or layer that does not fit the model, or a request that gives
            infinite numbers or does not fit in memory.
    """
    config: Config = job.config
    model, parts = job.model, anatomy(job.model)
    layers = parts.resolve_layers(config.layers, DEPTH)
    _check(config)
    names = projections(model, parts, layers, config.modules)
    transposed = is_transposed(model.get_submodule(names[0]))
    info = EditInfo(EDITOR.name, asdict(config) | {"layers": list(layers)})
    nothing = LowRankEdit(no_change(model, names), info, transposed)
    current: LowRankEdit = nothing if job.previous is None else replace(job.previous, info=info)
    wanted = [part for request in job.requests for part in request.parts]
    losses: list[list[float]] = []
    for k in range(config.passes):
        losses.append([])
        for start in range(0, len(wanted), config.requests_per_step):
            step = wanted[start : start + config.requests_per_step]
            with applied(current, model):
                features, nlls = read_features(model, names, step, config.tokens_per_batch)
            current = _step(model, current, features, config)
            losses[-1] += nlls
            job.progress("requests", k * len(wanted) + start + len(step), config.passes * len(wanted))
    return replace(current, info=replace(info, notes=_notes(wanted, losses, names)))


def _check(config: Config) -> None:
    for name, value, allowed in (("modules", config.modules, MODULES), ("scale", config.scale, SCALES)):
        if value not in allowed:
            raise unknown_name(name, value, allowed)
    for name in ("learning_rate", "ridge", "passes", "requests_per_step", "tokens_per_batch"):
        if not getattr(config, name) > 0:
            raise UserError(f"{name} is {getattr(config, name)}", "give a number above 0")


def _notes(requests: Sequence[EditRequest], losses: list[list[float]], names: Sequence[str]) -> dict[str, Any]:
    if not requests:
        return {}
    return {
        "nll_before": dict(zip((r.id for r in requests), losses[0], strict=True)),
        "mean_nll_by_pass": [sum(row) / len(row) for row in losses],
        "n_tokens": sum(len(r.target_ids) for r in requests),
        "modules": list(names),
    }


def projections(model: nn.Module, parts: Anatomy, layers: Sequence[int], modules: str) -> list[str]:
    """The full paths of the linear maps to edit, found beside the MLP's last one.

    Raises:
        UserError: the MLP has no such map, or it is not a plain matrix.
    """
    if modules == "down":
        return [parts.projection_name(layer) for layer in layers]
    inside = parts.down_projection.rpartition(".")[0]
    names = []
    for layer in layers:
        path = f"{parts.blocks}.{layer}.{inside}".rstrip(".")
        mlp = model.get_submodule(path)
        gate, up, fused = (next((n for n in group if _is_matrix(mlp, n)), None) for group in (GATES, UPS, FUSED))
        found = {"gate": [gate], "up": [up], "gate_up": [gate, up, fused]}[modules]
        if not any(found):
            here = ", ".join(name for name, _ in mlp.named_children())
            raise UserError(
                f"{path} has no '{modules}' projection that can be edited (it has {here})",
                "give another --set modules=... (gate_up, gate, up or down), and a dense model in full precision",
            )
        names += [f"{path}.{name}" for name in found if name]
    return names


def _is_matrix(mlp: nn.Module, name: str) -> bool:
    weight = getattr(getattr(mlp, name, None), "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and weight.is_floating_point()


# One pass over the requests ---------------------------------------------------------------------------------


def read_features(
    model: PreTrainedModel, names: Sequence[str], requests: Sequence[EditRequest], tokens_per_batch: int
) -> tuple[dict[str, Features], list[float]]:
    """What every module saw, in the order of the requests, and each request's mean NLL of its target's tokens."""
    lengths = [len(r.prompt_ids) + len(r.target_ids) - 1 for r in requests]
    order = sorted(range(len(requests)), key=lambda i: -lengths[i])  # rows of one length need no padding
    pieces: list[tuple[list[Tensor], list[Tensor], list[Tensor]]] = []
    losses: list[float] = []
    for part, own in in_batches(
        order,
        lambda batch: _read_batch(model, names, [requests[i] for i in batch]),
        tokens_per_batch,
        lambda i: _too_long(requests[i]),
        lambda i: lengths[i],
    ):
        pieces += part
        losses += own
    seen, nlls = dict(zip(order, pieces, strict=True)), dict(zip(order, losses, strict=True))
    columns = [seen[i] for i in range(len(requests))]
    features = {
        name: Features(*(torch.cat([column[kind][k] for column in columns]) for kind in range(3)))
        for k, name in enumerate(names)
    }
    return features, [nlls[i] for i in range(len(requests))]


def _too_long(request: EditRequest) -> UserError:
    return UserError(
        f"request {request.id} with its {len(request.prompt_ids) + len(request.target_ids)} tokens does not fit "
        "in the device's memory",
        "load the model in bfloat16, edit fewer or higher layers, or leave the request out",
    )


def _read_batch(
    model: PreTrainedModel, names: Sequence[str], requests: Sequence[EditRequest]
) -> tuple[list[tuple[list[Tensor], list[Tensor], list[Tensor]]], list[float]]:
    """For every request and module h, g and the outputs' mean squares, and every request's mean NLL."""
    ids, mask = pad([(*r.prompt_ids, *r.target_ids[:-1]) for r in requests], "right", model.device)
    counts = [len(r.target_ids) for r in requests]
    starts = [len(r.prompt_ids) - 1 for r in requests]  # the last token of the prompt predicts the first of the target
    row = torch.arange(len(requests)).repeat_interleave(torch.tensor(counts)).to(model.device)
    column = torch.cat([torch.arange(n) + s for n, s in zip(counts, starts, strict=True)]).to(model.device)
    labels = torch.tensor([token for r in requests for token in r.target_ids], device=model.device)
    kept, of_kept = torch.unique(column, return_inverse=True)
    fewer = accepts(model, "logits_to_keep")
    # Half precision's smallest numbers are not far below a gradient.
    loss_scale = 1024.0 if model.dtype == torch.float16 else 1.0
    with _differentiable(model, names), trace(model, inputs=names, outputs=names) as seen:
        output = model(
            input_ids=ids, attention_mask=mask, use_cache=False, **({"logits_to_keep": kept} if fewer else {})
        )
        logits = output.logits[row, of_kept if fewer else column]  # (n, V)
        wide = torch.promote_types(logits.dtype, torch.float32)
        nll = nn.functional.cross_entropy(logits.to(wide), labels, reduction="none")
        gradients = torch.autograd.grad(loss_scale * nll.sum(), [seen.outputs[name] for name in names])

    def at(tensor: Tensor) -> tuple[Tensor, ...]:
        rows = tensor.detach().reshape(*ids.shape, -1)[row, column]
        return torch.split(rows, counts)

    inputs = [at(seen.inputs[name]) for name in names]
    slopes = [at(gradient.to(wide) / loss_scale) for gradient in gradients]
    squares = [[x.to(wide).square().mean(-1) for x in at(seen.outputs[name])] for name in names]
    losses = torch.split(nll.detach(), counts)
    for i, request in enumerate(requests):
        found = [losses[i], *(kind[i] for group in (inputs, slopes, squares) for kind in group)]
        if any(bool((~tensor.isfinite()).any()) for tensor in found):
            raise UserError(
                f"request {request.id} gives activations or gradients that are not finite",
                "load the model in bfloat16 or float32, or use a smaller learning_rate (or fewer passes)",
            )
    by_request = [tuple([kind[i] for kind in group] for group in (inputs, slopes, squares)) for i in range(len(counts))]
    return by_request, [float(loss.mean()) for loss in losses]  # type: ignore[return-value]


@contextmanager
def _differentiable(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Gradients flow down to the named modules' outputs, and no further, in a `with` block."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.requires_grad_(False)
        for name in names:
            model.get_submodule(name).weight.requires_grad_(True)  # type: ignore[union-attr, operator]
        with torch.enable_grad():
            yield
    finally:
        for parameter, needed in before:
            parameter.requires_grad_(needed)


# From features to factors -----------------------------------------------------------------------------------


def _step(model: nn.Module, current: LowRankEdit, features: Mapping[str, Features], config: Config) -> LowRankEdit:
    """`current` with the least squares of one step added, and its statistics."""
    moments = _moments_in(current)
    for name, seen in features.items():
        rows = torch.cat([seen.inputs.double(), seen.gradients.double()], dim=1)
        own = Moments.of(rows, seen.squares.double().sum())
        moments[name] = own.merged(moments[name]) if name in moments else own
        if moments[name].count < 2:
            raise UserError(
                "one token in all has no spread by which it could be normalized",
                "give a longer target, or more requests in the first step (--set requests_per_step=...)",
            )
    factors = {}
    for name, seen in features.items():
        used = _pooled(moments, features, name) if config.pooled else moments[name]
        shifts = value_shifts(seen, used, moments[name], config)
        weight: Any = model.get_submodule(name).weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        u, v = _ridge(seen.inputs.double().T, shifts.T, config.ridge)
        factors[name] = u.to(wide), v.to(wide)
    both = {name: compact(u, v) for name, (u, v) in concatenate(current.factors, factors).items()}
    return replace(current, factors=both, state=_as_state(moments))


def value_shifts(seen: Features, moments: Moments, own: Moments, config: Config) -> Tensor:
    """The shifts v (n, d_out): how far each token's output should move."""
    h, g = seen.inputs.double(), seen.gradients.double()
    d_in = h.shape[1]
    spread = moments.std
    h_hat = (h - moments.mean[:d_in]) / (spread[:d_in] + EPSILON)
    g_hat = (g - moments.mean[d_in:]) / (spread[d_in:] + EPSILON)
    size = float((own.squares / own.count).sqrt()) / d_in if config.scale == "relative" else 1.0
    return -config.learning_rate * size * h_hat.square().sum(1, keepdim=True) * g_hat


def _pooled(moments: Mapping[str, Moments], features: Mapping[str, Features], name: str) -> Moments:
    """The statistics of all maps of one shape together."""
    shape = {n: (seen.inputs.shape[1], seen.gradients.shape[1]) for n, seen in features.items()}
    same = [moments[other] for other in features if shape[other] == shape[name]]
    result = same[0]
    for other in same[1:]:
        result = result.merged(other)
    return result


def _ridge(keys: Tensor, shifts: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Δ = shifts keysᵀ (keys keysᵀ + λI)⁻¹ as factors of rank at most d_in; the smaller of two systems is solved."""
    d_in, n = keys.shape
    if n <= d_in:
        return least_squares(keys, shifts, lambda right: right / ridge)
    eye = torch.eye(d_in, dtype=keys.dtype, device=keys.device)
    solve = cholesky_solver(keys @ keys.T + ridge * eye)
    return solve(keys @ shifts.T).T, eye


def _moments_in(edit: LowRankEdit) -> dict[str, Moments]:
    names = sorted({key.rpartition(".")[0] for key in edit.state})
    return {name: Moments(*(edit.state[f"{name}.{field.name}"] for field in fields(Moments))) for name in names}


def _as_state(moments: Mapping[str, Moments]) -> dict[str, Tensor]:
    return {
        f"{name}.{field.name}": getattr(value, field.name) for name, value in moments.items() for field in fields(value)
    }


def memory(job: EditJob, device: str) -> list[Phase]:
    """What reading one step's features has in memory, on a model without weights."""
    from unlearn_eval.models.memory import Phase, taken

    config, model, parts = job.config, job.model, anatomy(job.model)
    names = projections(model, parts, parts.resolve_layers(config.layers, DEPTH), config.modules)
    wanted = [part for request in job.requests for part in request.parts][: config.requests_per_step]
    return [Phase("features", taken(model, lambda: read_features(model, names, wanted, config.tokens_per_batch)))]


EDITOR = Editor("ultraedit", Config, run, makes=LOW_RANK, memory=memory, paper="2505.14679")
