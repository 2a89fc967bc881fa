"""Tensors read from the files of an edit: each of the type and shape that it has to be of, and every number finite."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from unlearn_eval.models.weights import is_finite
from unlearn_eval.utils.errors import UserError

HINT = "make the edit again, or get another copy from where it came"
_WHOLE = "whole numbers"
_KINDS = {torch.int64: _WHOLE, torch.int32: _WHOLE, torch.uint8: "bytes", torch.bool: "truth values"}


def read_tensors(path: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, whose header is held against its size before anything is read.

    Args:
        path: of the file.
        names: of the tensors that must be there, and no others; None is whatever is there.

    Raises:
        UserError: it is no safetensors file, a tensor is missing or not expected, or a number is not finite.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dictionary)
    except (SafetensorError, OSError, ValueError, OverflowError, KeyError) as error:
        raise _damaged(path, f"it is not a safetensors file ({' '.join(str(error).split())[:100]})") from error
    if names is not None:
        _check_names(path, tensors, names)
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise _damaged(path, f"the tensor {name} is not finite")
    return tensors


def check_layout(
    path: Path, tensors: Mapping[str, Tensor], layout: Mapping[str, str], sizes: Mapping[str, int] | None = None
) -> None:
    """Refuse tensors that do not fit each other.

    Args:
        path: their file.
        tensors: by name.
        layout: name -> shape, as in "N d_in": a dimension has the same size wherever its name stands. Numbers are
            floating unless the shape begins with "whole:" or "bytes:".
        sizes: of dimensions that are known.

    Raises:
        UserError: a tensor is missing, not expected, or of another type or shape.
    """
    _check_names(path, tensors, layout)
    known = dict(sizes or {})
    for name, text in layout.items():
        kind, _, dimensions = text.rpartition(":")
        tensor, wanted = tensors[name], dimensions.split()
        own = "" if tensor.is_floating_point() else _KINDS.get(tensor.dtype, "other numbers").partition(" ")[0]
        if own != kind:
            raise _damaged(path, f"the tensor {name} holds {tensor.dtype}")
        shape = tuple(tensor.shape)
        if len(shape) != len(wanted) or any(known.setdefault(d, n) != n for d, n in zip(wanted, shape, strict=True)):
            expected = "×".join(str(known.get(d, d)) for d in wanted)
            raise _damaged(path, f"the tensor {name} is {'×'.join(map(str, shape)) or 'one number'}, not {expected}")


def _check_names(path: Path, tensors: Mapping[str, Tensor], names: Iterable[str]) -> None:
    wanted = set(names)
    if missing := sorted(wanted - tensors.keys()):
        raise _damaged(path, f"it has no tensor {missing[0]}")
    if unknown := sorted(tensors.keys() - wanted):
        raise _damaged(path, f"it has the unknown tensor {unknown[0][:80]}")


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is damaged: {re.sub(r'[^ -~×]', '?', what)}", HINT)
