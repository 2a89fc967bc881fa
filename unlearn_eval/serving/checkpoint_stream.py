"""What an edit changes, in the terms of its base's checkpoint: tensors stream in, and come out edited and checked.

This knows nothing of vLLM. Working on the checkpoint's tensors, before an engine shards, packs or prepacks them, is
right for every parallelism and every layout of kernels.
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unlearn_eval.edits.base import Edit, EditInfo
from unlearn_eval.edits.dense import DenseEdit
from unlearn_eval.edits.folder import check_names_base
from unlearn_eval.edits.low_rank import LowRankEdit, added
from unlearn_eval.models.anatomy import is_transposed
from unlearn_eval.models.weights import canonical_digest, canonical_hash
from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Stream = Iterable[tuple[str, Tensor]]
_AHEAD = 16  # tensors that are being hashed while others are read


@dataclass(frozen=True)
class Layout:
    """The parameters of a model, and how its checkpoint names them.

    Attributes:
        owners: every parameter's name -> the first (in the order of the alphabet) of the names that share its values.
        transposed: the modules that store their weight as (inputs, outputs).
        prefix: before the names of the model's body, which checkpoints of a body alone leave out.
    """

    owners: Mapping[str, str]
    transposed: frozenset[str]
    prefix: str

    def owner(self, name: str) -> str | None:
        """The parameter that a checkpoint's tensor is, by its first name; None of anything else (buffers)."""
        return self.owners.get(name) or self.owners.get(f"{self.prefix}.{name}")


def layout_of(config: PretrainedConfig, architecture: str | None = None) -> Layout:
    """The layout of the model that a Hugging Face configuration describes; no memory is taken for it.

    Args:
        config: of the base model.
        architecture: the name of the class that was edited; None lets Transformers choose.
    """
    import transformers

    known = getattr(transformers, architecture or "", None)
    with torch.device("meta"):
        model = known(config) if known is not None else transformers.AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    first: dict[int, str] = {}
    owners = {}
    for name, parameter in sorted(model.named_parameters(remove_duplicate=False)):
        owners[name] = first.setdefault(id(parameter), name)
    transposed = frozenset(name for name, module in model.named_modules() if is_transposed(module))
    return Layout(owners, transposed, model.base_model_prefix)


def patched(
    stream: Stream, edit: Edit, layout: Layout, dtype: torch.dtype, check: bool = True, base: str = "this model"
) -> Iterator[tuple[str, Tensor]]:
    """The base checkpoint's tensors, edited as `edit.apply` edits a model that was loaded in `dtype`.

    Args:
        stream: (name, tensor) of the whole base checkpoint, unedited.
        edit: a `LowRankEdit` or `DenseEdit`; any other changes no weights.
        layout: of the base model.
        dtype: in which the model is served.
        check: whether the base's hash is computed and compared with the one in the edit.
        base: the base's name, for errors.

    Raises:
        UserError: at the end of the stream, if the base is not the one that was edited, or lacks what the edit
            changes; nothing may be served then.
    """
    changes = _changes(edit, layout)
    if check:
        check_names_base(edit.info.base)
    expected = edit.info.base.canonical_hash if check else None
    missing, hashing = set(changes), _Hashing()
    for name, tensor in stream:
        owner = layout.owner(name)
        if owner is None:
            yield name, tensor
            continue
        if expected:
            hashing.add(owner, tensor)
        change = changes.get(owner)
        if change is None:
            yield name, tensor
        else:
            missing.discard(owner)
            yield name, change(tensor.to(dtype))
    if missing:
        raise UserError(f"{base} has no {', '.join(sorted(missing)[:3])}, which the edit changes", _HINT)
    if expected:
        _compare(hashing.done(), set(layout.owners.values()), expected, edit, base)


_HINT = "give the base model that edit.json names, without other edits"


def _changes(edit: Edit, layout: Layout) -> dict[str, Callable[[Tensor], Tensor]]:
    """First name of each parameter that the edit changes -> how."""
    if isinstance(edit, LowRankEdit):
        found = {}
        for module, (u, v) in edit.factors.items():
            if u.shape[1]:
                found[_owned(f"{module}.weight", layout)] = _adding(u, v, module in layout.transposed)
        return found
    if isinstance(edit, DenseEdit):
        return {_owned(name, layout): _replacing(name, tensor) for name, tensor in edit.tensors.items()}
    return {}


def _owned(name: str, layout: Layout) -> str:
    if name not in layout.owners:
        raise UserError(f"the edit changes {name}, which its base's configuration does not have", _HINT)
    return layout.owners[name]


def _adding(u: Tensor, v: Tensor, transposed: bool) -> Callable[[Tensor], Tensor]:
    def change(weight: Tensor) -> Tensor:
        shape = (v.shape[1], u.shape[0]) if transposed else (u.shape[0], v.shape[1])
        _check_shape(weight, shape)
        return added(weight, u, v, transposed)

    return change


def _replacing(name: str, tensor: Tensor) -> Callable[[Tensor], Tensor]:
    def change(weight: Tensor) -> Tensor:
        _check_shape(weight, tuple(tensor.shape))
        return tensor.to(weight)

    return change


def _check_shape(weight: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(weight.shape) != shape:
        own, found = ("×".join(map(str, s)) for s in (shape, weight.shape))
        raise UserError(f"the edit's change is {own}, and the base's weight {found}", _HINT)


class _Hashing:
    """Digests of tensors, computed beside the reading; only a few tensors wait at a time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(4)
        self._waiting: deque[tuple[str, Future[bytes]]] = deque()
        self._digests: dict[str, bytes] = {}

    def add(self, owner: str, tensor: Tensor) -> None:
        if owner in self._digests or any(owner == name for name, _ in self._waiting):
            return  # a tied tensor that the checkpoint holds twice
        self._waiting.append((owner, self._pool.submit(canonical_digest, owner, tensor)))
        while len(self._waiting) > _AHEAD:
            self._take()

    def _take(self) -> None:
        owner, future = self._waiting.popleft()
        self._digests[owner] = future.result()

    def done(self) -> dict[str, bytes]:
        while self._waiting:
            self._take()
        self._pool.shutdown()
        return self._digests


def _compare(digests: Mapping[str, bytes], wanted: set[str], expected: str, edit: Edit, base: str) -> None:
    lacking = sorted(wanted - set(digests))
    if lacking:
        some = ", ".join(itertools.islice(lacking, 3))
        raise UserError(f"it cannot be told whether {base} is the edit's base: it has no {some}", _HINT)
    found = canonical_hash(digests)
    if found != expected:
        raise UserError(
            f"the edit was made on {edit.info.base.id} (weights {expected[:12]}), and {base} has other "
            f"weights ({found[:12]})",
            _HINT,
        )


def check_checkpoint(info: EditInfo, place: str, revision: str | None = None) -> None:
    """Refuse a base checkpoint that is not the one an edit was made on; nothing of it is kept in memory.

    Args:
        info: of the edit whose base it should be.
        place: a folder with safetensors, or a hub id.
        revision: of the hub's model.

    Raises:
        UserError: other weights, or files that this cannot read.
    """
    from huggingface_hub import snapshot_download
    from safetensors import safe_open
    from transformers import AutoConfig

    patterns = ["*.safetensors", "*.json"]
    own = place if Path(place).is_dir() else snapshot_download(place, revision=revision, allow_patterns=patterns)
    folder = Path(own)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = [path.name for path in sorted(folder.glob("*.safetensors"))]
    if not names:
        raise UserError(f"{place} has no safetensors, so that its weights cannot be compared with the edit's", _HINT)

    def stream() -> Iterator[tuple[str, Tensor]]:
        for name in names:
            with safe_open(str(folder / name), framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 (not a mapping)
                    yield key, opened.get_tensor(key)

    layout = layout_of(AutoConfig.from_pretrained(folder), info.base.architecture)
    for _ in patched(stream(), LowRankEdit({}, info), layout, torch.float32, base=place):
        pass
