r"""What MEMIT, EMMET and AlphaEdit share: target values at the top, then keys, residuals and update layer by layer.

From the lowest layer up, with the keys K and the values Z at the deepest layer read again on the weights so far,
each of the layers left takes an equal share of what is still missing, R = (V* − Z) / (layers left)
(MEMIT, 2210.07229, equations 19 and 20, algorithm 1); what a method makes of K and R is its `update`.

Keys are averages: half the plain prompt, half the mean over the contexts. Where an architecture has a norm
between MLP and residual stream (Gemma, OLMo 2), R is carried back through it to first order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unlearn_eval.editing.editor import EditJob, no_change
from unlearn_eval.editing.locate_then_edit import corpus
from unlearn_eval.editing.locate_then_edit import second_moments as moments_of_text
from unlearn_eval.editing.locate_then_edit import target_values as values_of_targets
from unlearn_eval.editing.locate_then_edit.corpus import Sequences
from unlearn_eval.editing.locate_then_edit.second_moments import SecondMoments, cache_name, second_moments
from unlearn_eval.editing.locate_then_edit.target_values import (
    Site,
    TargetValueConfig,
    TargetValues,
    target_values,
)
from unlearn_eval.editing.locate_then_edit.windows import columns, gathered, text_keys
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.edits.base import Applied, EditInfo, applied
from unlearn_eval.edits.low_rank import LowRankEdit, concatenate
from unlearn_eval.models.anatomy import Anatomy, anatomy
from unlearn_eval.models.assets import cache_dir
from unlearn_eval.models.out_of_memory import in_batches
from unlearn_eval.models.scoring import pad
from unlearn_eval.models.tracing import first, trace
from unlearn_eval.models.weights import known_weights
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.provenance import hash_json
from unlearn_eval.utils.settings import Positive

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn_eval.models.memory import Phase

# (layer, K (d_in, n), R (d_out, n), K_p (d_in, m) or None) -> U (d_out, n), V (n, d_in); all float64
Update = Callable[[int, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LocateConfig:
    """The settings that all locate-then-edit methods share.

    Attributes:
        layers: the edited layers; by default those of the model's preset, or by depth.
        target: how target values are optimized.
        text: what second moments are taken of, beside what is to be retained: `self` (the model's own text), a file, or
            `hub:NAME:CONFIG`.
        keys_per_dimension: how many keys the second moments are taken of, divided by d.
        seed: of the text.
        window: how many tokens of a target have a value of their own; a longer one has several (AnyEdit). 0: one for
            all.
    """

    layers: tuple[int, ...] = ()
    target: TargetValueConfig = field(default_factory=TargetValueConfig)
    text: str = corpus.SELF
    keys_per_dimension: Positive = 10.0
    seed: int = 0
    window: int = 0


@dataclass(frozen=True)
class MassEditConfig(LocateConfig):
    """The settings that methods for all requests at once share.

    Attributes:
        key_cache: whether keys of earlier edits are kept in place, and this edit's are remembered for later ones. An
            edit without it in the middle of a sequence passes the earlier ones' keys on as they are.
        keep_text: whether the values of the other tokens of a long text are kept in place; with `window`.
    """

    key_cache: bool = True
    keep_text: bool = True


@dataclass(frozen=True)
class Editing:
    """One run of one method: what every step of it needs.

    Attributes:
        name: of the method.
        job: what it was given.
        parts: of the model.
        layers: the edited ones.
        moments: second moments; without sums they are filled when they are needed.
    """

    name: str
    job: EditJob
    parts: Anatomy
    layers: tuple[int, ...]
    moments: SecondMoments

    @classmethod
    def start(cls, name: str, job: EditJob, depth: tuple[float, float]) -> Editing:
        """Check everything that can be checked before work begins.

        Raises:
            UserError: layers that the model lacks, or conflicting requests.
        """
        parts = anatomy(job.model)
        layers = parts.resolve_layers(job.config.layers, depth)
        check_requests(job.requests)
        return cls(name, job, parts, layers, job.moments or SecondMoments({}))

    def nothing(self) -> LowRankEdit:
        """The edit of no requests: the earlier one as it is, or a change of nothing."""
        names = [self.parts.projection_name(layer) for layer in self.layers]
        return self.job.previous or self.edit(no_change(self.job.model, names), {})

    @property
    def resolved(self) -> dict[str, Any]:
        """The settings with the layers as they are."""
        return asdict(self.job.config) | {"layers": list(self.layers)}

    def second_moments(self) -> SecondMoments:
        """C of the layers on this model's weights: as given, or from the cache, or computed; once in a run.

        With items to retain, half of it is of their prompts and answers, and half of the text.
        """
        if not self.moments.sums:
            job, config = self.job, self.job.config
            n_keys = round(config.keys_per_dimension * self.parts.d_mlp)
            settings = {"text": corpus.source_key(config.text), "n_keys": n_keys, "seed": config.seed}
            text = corpus.token_sequences(
                config.text, job.model, job.tokenizer, n_keys, seed=config.seed, progress=job.progress
            )
            found = self._moments(text, settings)
            if job.retain:
                retained = [(*request.prompt_ids, *request.target_ids) for request in job.retain]
                settings = {"retain": hash_json(retained), "n_keys": n_keys, "seed": config.seed}
                found = found.halved(self._moments(corpus.sequences_of(retained, config.seed), settings))
            self.moments.sums, self.moments.n_keys, self.moments.n_batches = found.sums, found.n_keys, found.n_batches
        return self.moments

    def _moments(self, batches: Iterable[Sequences], settings: dict[str, Any]) -> SecondMoments:
        """Second moments of some text, kept in the cache by what these settings say of it."""
        weights, folder = known_weights(self.job.model).canonical, cache_dir() / "second_moments"
        paths = {layer: folder / cache_name(weights, layer, settings) for layer in self.layers}
        return second_moments(
            self.job.model, self.parts, self.layers, batches, settings["n_keys"], paths, self.job.progress
        )

    def edit(
        self,
        factors: dict[str, tuple[Tensor, Tensor]],
        notes: dict[str, Any],
        keys: dict[str, Tensor] | None = None,
    ) -> LowRankEdit:
        """The finished edit: these factors after those of the earlier one, and the keys that the next step keeps."""
        previous: LowRankEdit | None = self.job.previous
        whole = concatenate(previous.factors, factors) if previous is not None else factors
        if previous is not None:  # an earlier step may have changed other layers
            notes |= {"weight_norms": previous.info.notes.get("weight_norms", {}) | notes["weight_norms"]}
        info = EditInfo(self.name, self.resolved, notes=notes)
        return LowRankEdit(whole, info, self.parts.transposed, state=keys or {})


def locate_then_edit(run: Editing, update: Update, notes: Mapping[str, Any] | None = None) -> LowRankEdit:
    """The edit of all requests of a run at once; the model is as before afterwards.

    Args:
        run: its settings are a `MassEditConfig`.
        update: what the method makes of a layer's keys and residuals.
        notes: what else is remembered; read when `update` has seen all layers.
    """
    job, requests, key_cache = run.job, run.job.requests, run.job.config.key_cache
    if not requests:
        return run.nothing()
    n_keys = run.second_moments().n_keys
    with applied(job.previous, job.model) if job.previous is not None else nullcontext():
        targets = target_values(
            job.model,
            run.parts,
            run.layers[-1],
            requests,
            job.config.target,
            job.progress,
            site="block",
            window=job.config.window,
        )
        members = columns(requests, job.config.window)
        earlier = {} if job.previous is None else dict(job.previous.state)
        factors, keys = _spread(run, members, targets, update, earlier if key_cache else {})
    weight_norms = {name: weight_norm(job.model, name) for name in factors}
    about = {**target_notes(requests, targets), "n_keys": n_keys, "weight_norms": weight_norms, **(notes or {})}
    return run.edit(factors, about, keys if key_cache else earlier)


def memory(
    job: EditJob,
    device: str,
    depth: tuple[float, float],
    factor: Callable[[SecondMoments, int], Any],
    site: Site = "block",
    at_once: int | None = None,
) -> list[Phase]:
    """What an edit has in memory, on a model without weights.

    Args:
        job: its settings are a `LocateConfig`.
        device: its kind.
        depth: where the method edits if nobody says.
        factor: what the method makes of the second moments of a layer.
        site: where target values are optimized.
        at_once: how many requests at most; None is all.
    """
    from unlearn_eval.models.memory import EDIT, ORIGINALS, Phase, counting, edited

    model, config, parts = job.model, job.config, anatomy(job.model)
    layers = parts.resolve_layers(config.layers, depth)
    n_keys, written = round(config.keys_per_dimension * parts.d_mlp), config.text == corpus.SELF
    phases, moments = moments_of_text.memory(model, parts, layers, n_keys, written)
    sums = {moments_of_text.SUMS: sum(own.sums[layer].nbytes for layer, own in moments.items())}
    requests = job.requests[:at_once]
    targets = values_of_targets.memory(model, parts, layers[-1], requests, config.target, device, site)
    weights = [parts.projection(model, layer).weight for layer in layers]
    originals = sum(own.nbytes for own in weights)  # type: ignore[misc]
    columns = sum(len(request.parts) for request in requests)
    moments[layers[-1]].n_keys = n_keys
    with counting(model) as counted, counted.without_numbers():
        u, v = (torch.zeros(size, dtype=torch.float64) for size in ((parts.d_model, columns), (columns, parts.d_mlp)))
    with counting(model, [u, v]) as counted:
        factored = factor(moments[layers[-1]], layers[-1])
        add_in_place(model, parts, layers[-1], u, v)
        del factored
    keys = 4 * (u.nbytes + v.nbytes)  # keys, what the factors make of them, residuals and the update
    edit = len(layers) * (u.nbytes + v.nbytes) // 2  # in float32
    left, disk = (
        edited(originals, edit, device),
        {EDIT: edit, "second moments, kept for the next edit": sum(sums.values())},
    )
    update = Phase("update", counted.peak, left, disk).beside(sums | {ORIGINALS: originals, "keys": keys})
    return [*phases, targets.beside(sums), update]


def target_notes(requests: Sequence[EditRequest], targets: TargetValues) -> dict[str, Any]:
    """What the optimization of the target values is remembered by."""
    return {
        "target_loss": dict(zip((r.id for r in requests), targets.losses, strict=True)),
        "target_nll": dict(zip((r.id for r in requests), targets.nlls, strict=True)),
        "steps": targets.steps,
    }


def check_requests(requests: Sequence[EditRequest]) -> None:
    """Refuse requests that ask the same twice, or want different answers for the same prompt or key.

    A key depends on the prompt up to the look-up token only, so equal beginnings are equal keys.

    Raises:
        UserError: naming both requests.
    """
    prompts: dict[tuple[int, ...], EditRequest] = {}
    keys: dict[tuple[int, ...], EditRequest] = {}
    for part in (part for request in requests for part in request.parts):
        other = prompts.setdefault(part.prompt_ids, part)
        if other.target_ids != part.target_ids:
            raise UserError(
                f"the requests {other.id!r} and {part.id!r} conflict: their prompts are the same, and their targets "
                "differ",
                "give both the same target, or leave one out (--ids)",
            )
        other = keys.setdefault(part.prompt_ids[: part.lookup + 1], part)
        if other is part:
            continue
        if other.prompt_ids == part.prompt_ids and other.target_ids == part.target_ids:
            raise UserError(
                f"the requests {other.id!r} and {part.id!r} ask the same question", "leave one of the two out (--ids)"
            )
        if other.target_ids != part.target_ids:
            raise UserError(
                f"the requests {other.id!r} and {part.id!r} conflict: their prompts are the same up to the look-up "
                "token, and their targets differ",
                "give both the same target, leave one out (--ids), or drop their subjects, so that the key is read "
                "at the end of the question",
            )


def _spread(
    run: Editing, columns: list[EditRequest], targets: TargetValues, update: Update, past: dict[str, Tensor]
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Factors and keys of every layer, computed on weights that already hold the lower layers' share."""
    model, parts, layers = run.job.model, run.parts, run.layers
    handle = Applied()
    factors, all_keys = {}, dict(past)  # keys of layers that are not edited now stay too
    try:
        for i, layer in enumerate(layers):
            keys, values = read_keys_and_values(model, parts, layer, layers[-1], columns)
            residuals = (targets.values.double() - values.double()) / (len(layers) - i)  # (n, d_out)
            if (post_norm := parts.post_norm(model, layer)) is not None:
                residuals = _before_norm(
                    post_norm, read_outputs(model, parts.projection_name(layer), columns), residuals
                )
            earlier = past.get(f"keys.{layer}")
            if earlier is not None and (earlier.ndim != 2 or earlier.shape[1] != keys.shape[1]):
                shape = "×".join(map(str, earlier.shape))
                raise UserError(
                    f"the keys of layer {layer} in the edit to go on from are {shape}, not N×{keys.shape[1]}",
                    "make that edit again, or get another copy from where it came",
                )
            kept_in_place = [] if earlier is None else [earlier.to(keys).T]
            name, config = parts.projection_name(layer), run.job.config
            text = text_keys(model, name, run.job.requests, config.window) if config.keep_text else None
            if text is not None:
                kept_in_place = [gathered(torch.cat([*kept_in_place, text.T], dim=1))]
            u, v = update(layer, keys.T, residuals.T, kept_in_place[0] if kept_in_place else None)
            handle.keep(parts.projection(model, layer).weight)  # type: ignore[arg-type]
            add_in_place(model, parts, layer, u, v)
            factors[name] = (narrow(u, model), narrow(v, model))
            kept = narrow(keys, model).cpu()
            all_keys[f"keys.{layer}"] = (
                torch.cat([past[f"keys.{layer}"].to(kept), kept]) if earlier is not None else kept
            )
            run.job.progress("layers", i + 1, len(layers))
    finally:
        handle.restore()
    return factors, all_keys


def add_in_place(model: PreTrainedModel, parts: Anatomy, layer: int, u: Tensor, v: Tensor) -> None:
    """W ← W + U V."""
    weight = parts.weight(model, layer)
    with torch.no_grad():
        weight.copy_(weight.double() + u @ v)


def narrow(tensor: Tensor, model: PreTrainedModel) -> Tensor:
    """A result in the model's own type, or float32 if that is wider."""
    return tensor.to(torch.promote_types(model.dtype, torch.float32))


def weight_norm(model: PreTrainedModel, name: str) -> float:
    """The Frobenius norm of a module's weight."""
    return float(torch.linalg.vector_norm(model.get_submodule(name).weight.float()))


def _before_norm(norm: nn.Module, outputs: Tensor, residuals: Tensor) -> Tensor:
    """The change (n, d) of an MLP's outputs u (n, d) after which g ⊙ u / rms(u) changes by `residuals`, to first order.

    The gain g is what the norm makes of a vector of ones. Where it is nearly 0 nothing could be changed anyway; the
    small constant keeps such directions from being blown up.
    """
    with torch.no_grad():
        parameter = next(norm.parameters())
        gain = norm(torch.ones_like(parameter)).double()
    rms = outputs.double().square().mean(1, keepdim=True).sqrt()
    change: Tensor = rms * residuals * gain / (gain.square() + 1e-3 * gain.square().mean())
    return change


@torch.no_grad()
def read(
    model: PreTrainedModel,
    inputs: str,
    outputs: str,
    rows: Sequence[tuple[Sequence[int], int]],
    rows_per_batch: int = 64,
) -> tuple[Tensor, Tensor]:
    """What module `inputs` is given and module `outputs` gives at the look-up token of each row: (R, d_in), (R, d).

    Rows are cut after the look-up token, which sees nothing of the rest; the pass ends when both have been seen. Where
    the device's memory is too small, half as many rows are run at once.
    """

    def run(part: Sequence[tuple[Sequence[int], int]]) -> tuple[Tensor, Tensor]:
        cut = [ids[: lookup + 1] for ids, lookup in part]
        tokens, mask = pad(cut, "right", model.device)
        with trace(model, inputs=[inputs], outputs=[outputs], stop_after=outputs) as seen:
            model(input_ids=tokens, attention_mask=mask, use_cache=False)
        last = torch.tensor([len(row) - 1 for row in cut], device=model.device)
        index = torch.arange(len(cut), device=model.device)
        return seen.inputs[inputs][index, last], first(seen.outputs[outputs])[index, last]

    hint = "use --dtype bfloat16, or a larger device"
    found = in_batches(
        rows, run, rows_per_batch, lambda row: UserError("the device's memory is too small to run one prompt", hint)
    )
    keys, values = zip(*found, strict=True)
    return torch.cat(keys), torch.cat(values)


def read_keys_and_values(
    model: PreTrainedModel,
    parts: Anatomy,
    layer: int,
    top: int,
    requests: Sequence[EditRequest],
    rows_per_batch: int = 64,
) -> tuple[Tensor, Tensor]:
    """Each request's key at `layer` (n, d_in), averaged over its prompts, and its plain value at `top` (n, d)."""
    rows = [row for request in requests for row in request.rows]
    name, block = parts.projection_name(layer), f"{parts.blocks}.{top}"
    row_keys, row_values = read(model, name, block, rows, rows_per_batch)
    row_keys = row_keys.double()
    keys, values, start = [], [], 0
    for request in requests:
        n = len(request.rows)
        own = row_keys[start : start + n]
        keys.append(own[0] if n == 1 else 0.5 * own[0] + 0.5 * own[1:].mean(0))
        values.append(row_values[start])
        start += n
    return torch.stack(keys), torch.stack(values)


def read_outputs(model: PreTrainedModel, name: str, requests: Sequence[EditRequest]) -> Tensor:
    """What a module gives at each request's look-up token in its plain prompt, (n, d)."""
    return read(model, name, name, [request.rows[0] for request in requests])[1]
