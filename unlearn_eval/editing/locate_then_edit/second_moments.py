"""C = E[k kᵀ], the uncentred second moment of the keys of some layers: streamed, cached by layer, resumable.

All missing layers are read in one pass that stops above the deepest one. Differs from kmeng01/memit@80426fd9, which
makes one pass over Wikipedia for each layer: the default text is what the model itself writes, so
nothing has to be downloaded, and 10 keys per dimension are used (FastMEMIT, 2506.04226, finds that enough).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
from torch import Tensor

from unlearn_eval.editing.locate_then_edit.corpus import BATCH, LENGTH, OPENING, Sequences
from unlearn_eval.editing.locate_then_edit.least_squares import Solve, cholesky_solver
from unlearn_eval.models.anatomy import Anatomy
from unlearn_eval.models.scoring import pad
from unlearn_eval.models.tracing import trace
from unlearn_eval.utils.folders import check_output
from unlearn_eval.utils.locks import alone
from unlearn_eval.utils.progress import Progress, no_progress
from unlearn_eval.utils.provenance import hash_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn_eval.models.memory import Phase


SUMS = "second moments"


@dataclass
class SecondMoments:
    """Sums of k kᵀ by layer, and how many keys they are of.

    Attributes:
        sums: layer -> (d_in, d_in), float32.
        n_keys: keys so far, the same for every layer.
        n_batches: batches so far (where to resume).
        factored: what has been factored, to be used again by further edits with these moments; None keeps nothing
            (a layer's factors are as large as C, in float64).
    """

    sums: dict[int, Tensor]
    n_keys: int = 0
    n_batches: int = 0
    factored: dict[tuple[str, int], Any] | None = None

    def halved(self, other: SecondMoments) -> SecondMoments:
        """Half of each mean, as sums of this one's number of keys."""
        weight = self.n_keys / other.n_keys
        return SecondMoments({i: (own + weight * other.sums[i]) / 2 for i, own in self.sums.items()}, self.n_keys)

    def moment(self, layer: int, ridge: float = 1e-4) -> Tensor:
        """C of one layer in float64, with a ridge of 1e-4 of its mean eigenvalue, so that it can be factored."""
        moment = self.sums[layer].double() / self.n_keys
        moment.diagonal().add_(ridge * moment.diagonal().mean())
        return moment

    def solver(self, layer: int) -> Solve:
        """X ↦ C⁻¹ X for the C of `moment`."""
        solve: Solve = self._factored("cholesky", layer, lambda: cholesky_solver(self.moment(layer)))
        return solve

    def eigen(self, layer: int) -> tuple[Tensor, Tensor]:
        """The eigenvalues (d_in,) of C without ridge, smallest first, and its eigenvectors (d_in, d_in)."""
        values, vectors = self._factored("eigen", layer, lambda: torch.linalg.eigh(self.moment(layer, ridge=0.0)))
        return values, vectors

    def _factored(self, kind: str, layer: int, factor: Callable[[], Any]) -> Any:
        if self.factored is None:
            return factor()
        if (kind, layer) not in self.factored:
            self.factored[kind, layer] = factor()
        return self.factored[kind, layer]

    @torch.no_grad()
    def add(self, layer: int, keys: Tensor) -> None:
        """Add keys (n, d_in) of one layer."""
        keys = keys.float()
        self.sums[layer].addmm_(keys.T, keys)

    def save(self, path: Path) -> None:
        """Write to a file, whole or not at all."""
        from safetensors.torch import save_file

        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{uuid4().hex[:8]}.part")
        counts = {"n_keys": str(self.n_keys), "n_batches": str(self.n_batches)}
        try:
            save_file({str(layer): total.cpu() for layer, total in self.sums.items()}, str(temporary), metadata=counts)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path, device: torch.device | str) -> SecondMoments:
        """Read what `save` wrote."""
        from safetensors import safe_open

        with safe_open(str(path), framework="pt", device=str(device)) as file:
            counts = file.metadata()
            sums = {int(key): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return cls(sums, int(counts["n_keys"]), int(counts["n_batches"]))


def second_moments(
    model: PreTrainedModel,
    anatomy: Anatomy,
    layers: Sequence[int],
    batches: Iterable[Sequences],
    n_keys: int,
    paths: Mapping[int, Path] | None = None,
    progress: Progress = no_progress,
) -> SecondMoments:
    """Second moments of the keys of `layers` over token sequences, up to `n_keys` keys.

    Args:
        model, anatomy: the model; it is only read.
        layers: whose keys.
        batches: token sequences; the same ones in the same order if the work is to be resumed.
        n_keys: stop after this many.
        paths: a file for each layer, kept up to date after every batch; the batches that are in it are not run again.
            One process at a time brings it further.
        progress: told how many keys are done.

    Raises:
        UserError: the files cannot be written.
    """
    own = _begun(model, anatomy, layers, paths)
    if min(done.n_keys for done in own.values()) < n_keys and paths:
        check_output(paths[layers[0]], "second moments", "UNLEARN_EVAL_CACHE")
        with alone([paths[layer] for layer in layers], "the second moments"):
            for left in (left for path in paths.values() for left in path.parent.glob(f"{path.stem}.*.part")):
                left.unlink()  # of a run that was killed: we hold the locks
            own = _begun(model, anatomy, layers, paths)  # as another process has left them
            _add_batches(own, model, anatomy, batches, n_keys, paths, progress)
    else:
        _add_batches(own, model, anatomy, batches, n_keys, {}, progress)
    sums = {layer: done.sums[layer] for layer, done in own.items()}
    return SecondMoments(sums, min(done.n_keys for done in own.values()), min(done.n_batches for done in own.values()))


def _begun(
    model: PreTrainedModel, anatomy: Anatomy, layers: Sequence[int], paths: Mapping[int, Path] | None
) -> dict[int, SecondMoments]:
    """What the files have of each layer."""
    own = {}
    for layer in layers:
        if paths and paths[layer].is_file():
            own[layer] = SecondMoments.load(paths[layer], model.device)
        else:
            own[layer] = SecondMoments({layer: torch.zeros(anatomy.d_mlp, anatomy.d_mlp, device=model.device)})
    return own


def _add_batches(
    own: Mapping[int, SecondMoments],
    model: PreTrainedModel,
    anatomy: Anatomy,
    batches: Iterable[Sequences],
    n_keys: int,
    paths: Mapping[int, Path],
    progress: Progress,
) -> None:
    """Bring every layer up to `n_keys` keys, and its file too."""

    def n_done() -> int:
        return min(done.n_keys for done in own.values())

    for number, batch in enumerate(batches if n_done() < n_keys else ()):
        # Another call may have brought some of the layers further.
        names = {i: anatomy.projection_name(i) for i in own if own[i].n_batches == number and own[i].n_keys < n_keys}
        if not names:
            continue
        ids, mask = pad(batch.rows, "right", model.device)
        deepest = names[max(names)]
        with torch.no_grad(), trace(model, inputs=list(names.values()), stop_after=deepest) as seen:
            model(input_ids=ids, attention_mask=mask, use_cache=False)
        first = torch.tensor(batch.starts, device=mask.device)
        text = mask.bool() & (torch.arange(mask.shape[1], device=mask.device) >= first[:, None])
        for layer, name in names.items():
            done = own[layer]
            done.add(layer, seen.inputs[name][text])
            done.n_keys += int(text.sum())
            done.n_batches += 1
            if paths:
                done.save(paths[layer])
        progress("second moments", min(n_done(), n_keys), n_keys)
        if n_done() >= n_keys:
            break


def memory(
    model: PreTrainedModel, anatomy: Anatomy, layers: Sequence[int], n_keys: int, written: bool
) -> tuple[list[Phase], dict[int, SecondMoments]]:
    """What taking second moments has in memory, and those of each layer, on a model without weights.

    Args:
        model, anatomy, layers, n_keys: as for `second_moments`.
        written: whether the model writes the text itself.
    """
    from unlearn_eval.models.memory import Phase, counting, generation

    rows = min(BATCH, -(-n_keys // LENGTH))
    opening = OPENING if written else 0
    with counting(model) as counted, counted.kind(SUMS), counted.without_numbers():
        own = _begun(model, anatomy, layers, None)
    sums = dict(counted.now)
    phases = []
    if written:
        text = generation(model, rows, opening, LENGTH, sampled=True)
        phases.append(Phase("text for second moments", text).beside(sums))
    batch = Sequences([list(range(opening + LENGTH)) for _ in range(rows)], [opening] * rows)
    with counting(model, [done.sums[layer] for layer, done in own.items()]) as counted:
        _add_batches(own, model, anatomy, [batch], n_keys, {}, no_progress)
    return [*phases, Phase(SUMS, counted.peak).beside(sums)], own


def cache_name(canonical_hash: str, layer: int, settings: dict[str, Any]) -> str:
    """A file name that differs whenever the weights, the layer or the text do."""
    return hash_json([canonical_hash, layer, settings])[:32] + ".safetensors"
