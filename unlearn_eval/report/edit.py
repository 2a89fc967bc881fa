"""What an edit's folder says of it: where it comes from, what it changes and by how much, and what it cost.

Only the folder is read. The norms of ΔW = U V come from the factors: with U = Q_u R_u and Vᵀ = Q_v R_v (QR), the
singular values of ΔW are those of the small R_u R_vᵀ (n, n), so the full matrix is never formed.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor

from unlearn_eval.edits import DESCRIPTION, TARGETS, LowRankEdit, load_edit
from unlearn_eval.errors import UserError
from unlearn_eval.provenance import sha256_of_file

EXAMPLES = 3


def describe_edit(folder: str | Path) -> dict[str, Any]:
    """What is in an edit's folder, as plain values for JSON; what the edit does not say is None.

    `modules` has one entry for each changed map: `rank` is the number of singular values above rounding, `columns`
    that of stored ones, `share` the part of the total squared norm, `relative` ‖ΔW‖/‖W‖ (Frobenius), `parameters` the
    numbers stored.

    Raises:
        UserError: no such folder, not an edit, or its files are not as they were written.
    """
    folder = Path(folder)
    edit = load_edit(folder)
    info, notes = edit.info, edit.info.notes
    files = [path for path in folder.rglob("*") if path.is_file()]
    modules = _modules(edit, notes.get("weight_norms") or {})
    return {
        "folder": str(folder),
        "sha256": sha256_of_file(folder / DESCRIPTION),
        "editor": info.editor,
        "config": info.config,
        "seed": info.seed,
        "base": info.base,
        "requests": info.requests,
        "modules": modules,
        "total": _total(modules),
        "bytes": sum(path.stat().st_size for path in files),
        "seconds": info.seconds,
        "peak_memory_bytes": info.peak_memory_bytes,
        "self_check": notes.get("self_check"),
        "targets": _targets(edit.texts[TARGETS], folder / TARGETS) if TARGETS in edit.texts else None,
        "state": [_tensor(name, tensor) for name, tensor in sorted(edit.state.items())],
        "texts": sorted(edit.texts),
        "notes": {name: value for name, value in notes.items() if name not in ("self_check", "weight_norms")},
        "versions": info.versions,
    }


def singular_values(u: Tensor, v: Tensor) -> Tensor:
    """The singular values (min(n, d_out, d_in),) of U V, in float64, largest first; U (d_out, n), V (n, d_in)."""
    _, r_u = torch.linalg.qr(u.double())
    _, r_v = torch.linalg.qr(v.double().T)
    sizes: Tensor = torch.linalg.svdvals(r_u @ r_v.T)
    return sizes


def edit_tables(description: Mapping[str, Any]) -> list[Table]:
    """The description as tables for a terminal of 100 columns: the edit, its changes, its targets."""
    tables = [_overview(description)]
    if description["modules"]:
        tables.append(_changes(description))
    if description["targets"]:
        tables.append(_target_table(description["targets"]))
    return tables


# Reading ---------------------------------------------------------------------------------------------------


def _modules(edit: LowRankEdit, weight_norms: Mapping[str, float]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
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
    total = sum(row["frobenius"] ** 2 for row in rows)
    rows = [row | {"share": row["frobenius"] ** 2 / total if total else None} for row in rows]
    return sorted(rows, key=lambda row: (row["layer"] is None, row["layer"] or 0, row["module"]))


def _layer(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _total(modules: list[dict[str, Any]]) -> dict[str, Any]:
    norm = math.sqrt(sum(row["frobenius"] ** 2 for row in modules))
    weights = [row["weight_norm"] for row in modules]
    known = bool(weights) and all(weights)
    return {
        "modules": len(modules),
        "rank": sum(row["rank"] for row in modules),
        "parameters": sum(row["parameters"] for row in modules),
        "frobenius": norm,
        "spectral": max((row["spectral"] for row in modules), default=0.0),  # of the block-diagonal of all changes
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


# Showing ---------------------------------------------------------------------------------------------------


def _overview(d: Mapping[str, Any]) -> Table:
    table = _table(f"edit {d['folder']}")
    table.show_header = False
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    requests, base, total = d["requests"], d["base"], d["total"]
    rows = {
        "method": f"{d['editor']}, seed {_or_dash(d['seed'])}",
        "settings": ", ".join(f"{name}={_value(value)}" for name, value in _flat(d["config"])),
        "base": _joined(
            base.get("id"),
            base.get("architecture"),
            _tagged("revision", base.get("revision")),
            _tagged("weights", _short(base.get("canonical_hash"))),
        ),
        "forgets": _joined(
            _tagged("", requests.get("n"), "requests"),
            _tagged("of", requests.get("forget_set")),
            _short(requests.get("forget_set_hash")),
        ),
        "asked": _joined(
            {True: "as a chat", False: "as plain text"}.get(requests.get("chat")),
            _tagged("", len(requests.get("contexts") or ()) or None, "other openings"),
            _tagged("merged by", requests.get("merge") if requests.get("merge") != "none" else None),
        ),
        "target": _value(requests["target"]) if requests.get("target") is not None else "",
        "changes": f"{total['modules']} maps, rank {total['rank']}, {total['parameters']:,} numbers",
        "self-check": _self_check(d["self_check"] or {}),
        "state": ", ".join(f"{s['name']} {'×'.join(map(str, s['shape']))}" for s in d["state"]) or "none kept",
        "cost": _joined(
            _tagged("", None if d["seconds"] is None else f"{d['seconds']:.0f} s"),
            _tagged("peak memory", None if d["peak_memory_bytes"] is None else _size(d["peak_memory_bytes"])),
            f"folder {_size(d['bytes'])}",
        ),
        "made with": ", ".join(f"{name} {version}" for name, version in d["versions"].items()),
        "sha256": d["sha256"],
    }
    for name, text in rows.items():
        if text:
            table.add_row(name, Text(text))
    return table


def _self_check(check: Mapping[str, Any]) -> str:
    """What an edit's self-check found; values of other names than the known ones are shown as they are."""
    rest, parts = dict(check), []
    if {"n", "n_took"} <= rest.keys():
        parts.append(f"{rest.pop('n_took')} of {rest.pop('n')} targets are now the most likely answer")
    before, after = rest.pop("target_probability_before", None), rest.pop("target_probability_after", None)
    if before is not None and after is not None:
        parts.append(f"their probability {_value(before)} → {_value(after)}")
    return ", ".join([*parts, *(f"{name} {_value(value)}" for name, value in _flat(rest))])


def _changes(d: Mapping[str, Any]) -> Table:
    table = _table("what it changes")
    for column in ("layer", "map", "shape", "rank", "‖ΔW‖F", "‖ΔW‖2", "share", "‖ΔW‖/‖W‖"):
        left = column in ("layer", "map")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for i, row in enumerate(rows := d["modules"]):
        layer = "" if row["layer"] is None else str(row["layer"])
        name = row["module"].split(f".{layer}.")[-1] if layer else row["module"]
        shape = "×".join(map(str, row["shape"]))
        table.add_row(
            layer, Text(name), shape, str(row["rank"]), *_sizes(row), end_section=i + 1 == len(rows) and len(rows) > 1
        )
    if len(rows) > 1:
        total = d["total"]
        table.add_row(
            "all", "", "", str(total["rank"]), *_sizes(total | {"share": 1.0 if total["frobenius"] else None})
        )
    return table


def _sizes(row: Mapping[str, Any]) -> list[str]:
    return [_number(row["frobenius"]), _number(row["spectral"]), _percent(row["share"]), _percent(row["relative"])]


def _target_table(targets: Mapping[str, Any]) -> Table:
    counts = ", ".join(f"{n} {source}" for source, n in targets["sources"].items())
    table = _table(f"targets: {targets['n']} ({counts})")
    table.add_column("source", no_wrap=True)
    table.add_column("question", overflow="fold", ratio=1)
    table.add_column("says", overflow="fold", ratio=1)
    for record in targets["examples"]:
        question = record.get("question") or record.get("prompt") or record.get("id")
        says = next((record[key] for key in ("target", "text", "answer") if record.get(key) is not None), None)
        table.add_row(Text(_or_dash(record.get("source"))), Text(_or_dash(question)), Text(_or_dash(says)))
    return table


def _table(title: str) -> Table:
    return Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """`{"target": {"steps": 3}}` as `target.steps`, as `--set` takes it; lists and texts are values."""
    pairs: list[tuple[str, Any]] = []
    for name, value in content.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, value)]
    return pairs


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_value(item) for item in value) + "]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _or_dash(value)


def _joined(*parts: str | None) -> str:
    return ", ".join(str(part) for part in parts if part)


def _tagged(before: str, value: Any, after: str = "") -> str | None:
    return " ".join(part for part in (before, str(value), after) if part) if value not in (None, "") else None


def _short(digest: str | None) -> str | None:
    return digest[:12] if digest else None


def _or_dash(value: Any) -> str:
    return "–" if value is None else str(value)


def _number(value: float) -> str:
    return f"{value:.3f}" if value == 0 or 1e-2 <= value < 1e4 else f"{value:.2e}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}%"


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"
