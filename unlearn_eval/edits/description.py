"""What an edit's folder says of it: where it comes from, what it changes and by how much, and what it cost.

Only the folder is read. The norms of ΔW = U V come from the factors: with U = Q_u R_u and Vᵀ = Q_v R_v (QR), the
singular values of ΔW are those of the small R_u R_vᵀ (n, n), so the full matrix is never formed.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearn_eval.edits.base import MEMORY
from unlearn_eval.edits.dense import DenseEdit
from unlearn_eval.edits.folder import TARGETS
from unlearn_eval.edits.load import load_edit
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.edits.memory.read import AnyMemoryEdit
from unlearn_eval.edits.places import DESCRIPTION, local_folder
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.provenance import sha256_of_file

EXAMPLES = 3
_SHOWN_ELSEWHERE = ("self_check", "weight_norms", "changes")


def describe_edit(folder: str | Path) -> dict[str, Any]:
    """What is in an edit's folder, as plain values for JSON; what the edit does not say is None.

    `modules` has one entry for each changed map: `rank` is the number of singular values above rounding, `columns`
    that of stored ones, `share` the part of the total squared norm, `relative` ‖ΔW‖/‖W‖ (Frobenius), `parameters` the
    numbers stored. `memory` is what a memory edit holds instead: `rows` has one entry for each memory.

    Raises:
        UserError: no such folder, not an edit, or its files are not as they were written.
    """
    folder = local_folder(folder)
    edit = load_edit(folder)
    info, notes = edit.info, edit.info.notes
    files = [path for path in folder.rglob("*") if path.is_file()]
    modules = _MODULES[edit.kind](edit, notes)
    return {
        "folder": str(folder),
        "sha256": sha256_of_file(folder / DESCRIPTION),
        "editor": info.editor,
        "config": info.config,
        "seed": info.seed,
        "base": dict(info.base),
        "requests": dict(info.requests),
        "modules": modules,
        "total": _total(modules),
        "memory": _memory(edit) if edit.kind == MEMORY else None,
        "bytes": sum(path.stat().st_size for path in files),
        "seconds": info.seconds,
        "peak_memory_bytes": info.peak_memory_bytes,
        "self_check": notes.get("self_check"),
        "faults": list(info.faults),
        "targets": _targets(edit.texts[TARGETS], folder / TARGETS) if TARGETS in edit.texts else None,
        "state": [_tensor(name, tensor) for name, tensor in sorted(getattr(edit, "state", {}).items())],
        "texts": sorted(edit.texts),
        "notes": {name: value for name, value in notes.items() if name not in _SHOWN_ELSEWHERE},
        "versions": info.versions,
    }


def singular_values(u: Tensor, v: Tensor) -> Tensor:
    """The singular values (min(n, d_out, d_in),) of U V, in float64, largest first; U (d_out, n), V (n, d_in)."""
    _, r_u = torch.linalg.qr(u.double())
    _, r_v = torch.linalg.qr(v.double().T)
    sizes: Tensor = torch.linalg.svdvals(r_u @ r_v.T)
    return sizes


# Details ---------------------------------------------------------------------------------------------------


def _tensors(edit: DenseEdit, notes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Whole tensors: the norms of their changes are what the editor has noted; a rank is not known."""
    rows: list[dict[str, Any]] = []
    for name, tensor in edit.tensors.items():
        noted = (notes.get("changes") or {}).get(name, {})
        norm, weight_norm = noted.get("frobenius"), noted.get("weight_norm")
        rows.append(
            {
                "module": name,
                "layer": _layer(name),
                "shape": list(tensor.shape),
                "columns": None,
                "rank": None,
                "parameters": tensor.numel(),
                "frobenius": norm,
                "spectral": None,
                "weight_norm": weight_norm,
                "relative": norm / weight_norm if norm is not None and weight_norm else None,
            }
        )
    return _with_shares(rows)


def _modules(edit: LowRankEdit, notes: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    weight_norms = notes.get("weight_norms") or {}
    for name, (u, v) in edit.factors.items():
        sizes = singular_values(u, v)
        largest = sizes[0].item() if len(sizes) else 0.0
        # Factors are float32: what is below their rounding is no direction of its own.
        rank = int((sizes > largest * max(u.shape[0], v.shape[1]) * torch.finfo(torch.float32).eps).sum())
        norm, weight_norm = sizes.square().sum().sqrt().item(), weight_norms.get(name)
        rows.append(
            {
                "module": name,
                "layer": _layer(name),
                "shape": [u.shape[0], v.shape[1]],
                "columns": u.shape[1],
                "rank": rank,
                "parameters": u.numel() + v.numel(),
                "frobenius": norm,
                "spectral": largest,
                "weight_norm": weight_norm,
                "relative": norm / weight_norm if weight_norm else None,
            }
        )
    return _with_shares(rows)


_MODULES: Mapping[str, Callable[[Any, Mapping[str, Any]], list[dict[str, Any]]]] = {
    LowRankEdit.kind: _modules,
    DenseEdit.kind: _tensors,
    MEMORY: lambda edit, notes: [],
}  # kind of edit -> the maps that it changes


def _with_shares(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    total = sum((row["frobenius"] or 0.0) ** 2 for row in rows)
    rows = [row | {"share": (row["frobenius"] or 0.0) ** 2 / total if total else None} for row in rows]
    return sorted(rows, key=lambda row: (row["layer"] is None, row["layer"] or 0, row["module"]))


def _memory(edit: AnyMemoryEdit) -> dict[str, Any]:
    tensors = edit.store.tensors().values()
    rows = edit.store.rows()
    bounds = [row["threshold"] for row in rows]
    settings = {k: v for k, v in edit.store.settings().items() if isinstance(v, str | int | float)}
    return {
        "mechanism": edit.store.mechanism,
        "bound": edit.store.bound,
        "module": edit.module,
        "layer": _layer(edit.module),
        "settings": settings,
        "n": edit.store.n,
        "bounds": {"least": min(bounds), "largest": max(bounds)} if bounds else None,
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        "rows": rows,
    }


def _layer(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _total(modules: list[dict[str, Any]]) -> dict[str, Any]:
    norm = math.sqrt(sum((row["frobenius"] or 0.0) ** 2 for row in modules))
    ranks = [row["rank"] for row in modules]
    spectral = [row["spectral"] for row in modules]
    weights = [row["weight_norm"] for row in modules]
    known = bool(weights) and all(weights)
    return {
        "modules": len(modules),
        "rank": None if None in ranks else sum(ranks),
        "parameters": sum(row["parameters"] for row in modules),
        "frobenius": norm,
        "spectral": None if None in spectral else max(spectral, default=0.0),  # of the block-diagonal of all changes
        "relative": norm / math.sqrt(sum(weight**2 for weight in weights)) if known else None,
    }


def _tensor(name: str, tensor: Tensor) -> dict[str, Any]:
    return {"name": name, "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def _targets(text: str, path: Path) -> dict[str, Any]:
    """How many targets came from where, and the first of each source, filled up with others."""
    try:
        records = [json.loads(line) for line in text.split("\n") if line.strip()]
        sources = Counter(str(record.get("source") or "unknown") for record in records)
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} does not have one JSON object on each line", "make the edit again") from error
    firsts = {str(record.get("source")): record for record in reversed(records)}
    chosen = {id(record) for record in sorted(firsts.values(), key=records.index)[:EXAMPLES]}
    for record in records:
        if len(chosen) < EXAMPLES:
            chosen.add(id(record))
    examples = [record for record in records if id(record) in chosen]
    return {"n": len(records), "sources": dict(sources.most_common()), "examples": examples}
