"""Hashes of a model's weights: exact, and the same for every precision that holds the same bfloat16 values."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.provenance import hash_json, usable_cores

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WeightsHash:
    """Two SHA-256 of a model's weights.

    Attributes:
        exact: over every parameter and persistent buffer with its dtype: the very same model.
        canonical: over the parameters cast to bfloat16: the same checkpoint, in whichever dtype loaded.
    """

    exact: str
    canonical: str


def hash_weights(model: torch.nn.Module) -> WeightsHash:
    """Both hashes of a model's weights, the same on every device and in every process.

    A tensor's digest is SHA-256(name|dtype|shape| + SHA-256(bytes)); the hash is the SHA-256 of the digests
    in the order of their names. Tensors that share their storage count once, under their first name. The
    canonical hash takes floating tensors in bfloat16 and leaves the dtype out; casting a float16 or float32
    checkpoint rounds to nearest even on every device, so a model loaded in bfloat16 has the same hash.
    In a PEFT model the base model's weights are hashed, under their own names.

    Raises:
        UserError: if weights are on the `meta` device (offloaded), so that there are no bytes to hash.
    """
    tensors = _distinct(_base_names(model.state_dict(keep_vars=False)))
    parameters = set(_base_names(dict(model.named_parameters(remove_duplicate=False))))
    with ThreadPoolExecutor(min(8, usable_cores() or 1)) as pool:  # hashlib frees the lock
        digests = list(pool.map(lambda item: _tensor_digests(*item), tensors))
    canonical = {name: own for (name, _), (_, own) in zip(tensors, digests, strict=True) if name in parameters}
    return WeightsHash(_combine([exact for exact, _ in digests]), canonical_hash(canonical))


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether every number is finite; without a copy, which of a large tensor would take as much memory again."""
    import torch

    if not tensor.numel() or not tensor.is_floating_point():
        return True
    least, most = tensor.aminmax()
    return bool(torch.isfinite(least) and torch.isfinite(most))


def check_finite(model: torch.nn.Module, name: str) -> None:
    """Refuse a model with a weight that is NaN or infinite: every answer of it would be undefined.

    Raises:
        UserError: the weight is named.
    """
    for own, tensor in model.named_parameters():
        if not tensor.is_meta and not is_finite(tensor.detach()):
            raise UserError(f"the weights of {name} are not finite: {own} holds NaN or infinity", "load another copy")


def known_weights(model: torch.nn.Module) -> WeightsHash:
    """`hash_weights`, computed once for a model, and again after a change that was not undone.

    To see whether a model was restored bit for bit, use `hash_weights`.
    """
    state = state_of_weights(model)
    known = _KNOWN.get(model)
    if known is None or known[0] != state:
        known = _KNOWN[model] = (state, hash_weights(model))
    return known[1]


def hash_adapters(model: torch.nn.Module) -> str | None:
    """A hash of what PEFT has put beside a model's weights, which `hash_weights` leaves out; None if there is nothing.

    Its settings are part of it: they scale what its tensors add.
    """
    found = getattr(model, "peft_config", None)
    if not found:
        return None
    settings = {name: {key: str(own) for key, own in vars(config).items()} for name, config in found.items()}
    tensors = {name: own for name, own in model.state_dict().items() if ".lora_" in name}
    active = str(getattr(model, "active_adapter", None))
    return hash_json([hash_tensors(tensors), settings, active])


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """A hash of tensors by name, bit for bit."""
    return _combine([_tensor_digests(name, tensors[name])[0] for name in sorted(tensors)])


def state_of(tensor: torch.Tensor) -> int | None:
    """A number that changes when a tensor is changed in place, and is again what it was once it is restored.

    None of a tensor that was made in inference mode, whose changes PyTorch does not count.
    """
    if tensor.is_inference():
        return None
    version, state = getattr(tensor, _RESTORED, (None, None))
    return state if version == tensor._version else tensor._version


def mark_restored(tensor: torch.Tensor, state: int | None) -> None:
    """Say that a tensor holds again, bit for bit, what it held when `state_of` gave this state."""
    if not tensor.is_inference():
        setattr(tensor, _RESTORED, (tensor._version, state))


def state_of_weights(model: torch.nn.Module) -> tuple[object, ...]:
    """Equal as long as no weight was replaced, cast or changed in place (through PyTorch, not through `.data`)."""
    tensors = model.state_dict(keep_vars=True).values()
    return tuple((id(tensor), tensor.dtype, state_of(tensor)) for tensor in tensors)


def canonical_digest(name: str, tensor: torch.Tensor) -> bytes:
    """One parameter's part of the canonical hash."""
    return _tensor_digests(name, tensor)[1]


def canonical_hash(digests: Mapping[str, bytes]) -> str:
    """The canonical hash of a model, from the digests of its parameters (tied ones once, under their first name)."""
    return _combine([digests[name] for name in sorted(digests)])


def _combine(digests: list[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _base_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under the base model's names, without LoRA's; unchanged if PEFT did more than LoRA."""
    tensors = {name.removeprefix("_orig_mod."): tensor for name, tensor in tensors.items()}  # torch.compile
    prefix = "base_model.model."
    if not all(name.startswith(prefix) and "modules_to_save" not in name for name in tensors):
        return tensors
    kept = {name: tensor for name, tensor in tensors.items() if ".lora_" not in name}
    return {name.removeprefix(prefix).replace(".base_layer", ""): tensor for name, tensor in kept.items()}


def _distinct(tensors: dict[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    """Sorted by name, tied tensors once."""
    seen, kept = set(), []
    for name, tensor in sorted(tensors.items()):
        if tensor.is_meta:
            raise UserError(
                f"the weight '{name}' is offloaded: its bytes cannot be hashed",
                "load it on one device",
            )
        storage = tensor.untyped_storage().data_ptr()
        place = (tensor.device, storage, tensor.storage_offset(), tensor.shape, tensor.stride())
        if tensor.numel() == 0 or place not in seen:
            seen.add(place)
            kept.append((name, tensor.detach()))
    return kept


def _tensor_digests(name: str, tensor: torch.Tensor) -> tuple[bytes, bytes]:
    """The exact and the canonical digest of one tensor."""
    import torch

    exact, canonical = hashlib.sha256(), hashlib.sha256()
    cast = tensor.is_floating_point() and tensor.dtype != torch.bfloat16
    for chunk in _chunks(tensor):
        exact.update(_bytes(chunk))
        if cast:
            canonical.update(_bytes(chunk.to(torch.bfloat16)))
    values = (canonical if cast else exact).digest()
    dtype, shape = str(tensor.dtype).removeprefix("torch."), "x".join(map(str, tensor.shape))
    canonical_dtype = "" if tensor.is_floating_point() else dtype
    return (
        hashlib.sha256(f"{name}|{dtype}|{shape}|".encode() + exact.digest()).digest(),
        hashlib.sha256(f"{name}|{canonical_dtype}|{shape}|".encode() + values).digest(),
    )


def _chunks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    flat = tensor.reshape(-1)
    step = max(1, _CHUNK_BYTES // tensor.element_size())
    return (flat[start : start + step].cpu() for start in range(0, flat.numel(), step))


def _bytes(chunk: torch.Tensor) -> memoryview:
    import torch

    return chunk.contiguous().view(torch.uint8).numpy().data


_KNOWN: WeakKeyDictionary[torch.nn.Module, tuple[object, WeightsHash]] = WeakKeyDictionary()
_RESTORED = "_unlearn_eval_restored"  # on a tensor: the version at which it was restored, and to which state
_CHUNK_BYTES = 64 * 2**20  # what one thread holds of a tensor that is on another device or is cast
