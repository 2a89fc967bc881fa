"""The description of an edit as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from unlearn_eval.metrics.edit_checks import unrelated_line
from unlearn_eval.utils.terminal import styled


def edit_tables(description: Mapping[str, Any]) -> list[Table]:
    """The description as tables for a terminal of 100 columns: the edit, its changes, its targets."""
    tables = [_overview(description)]
    if description["modules"]:
        tables.append(_changes(description))
    if description.get("memory"):
        tables.append(_memories(description["memory"]))
    if description["targets"]:
        tables.append(_target_table(description["targets"]))
    return tables


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
        "where": _where((d.get("notes") or {}).get("components")),
        "changes": "no weights" if d.get("memory") else _changes_in_words(total),
        "memory": _memory_line(d["memory"]) if d.get("memory") else "",
        "self-check": _self_check(d["self_check"] or {}),
        "warning": "\n".join(d.get("faults") or ()),
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
            table.add_row(name, styled(text))
    return table


def _where(source: Mapping[str, Any] | None) -> str:
    """The localization that an edit's components come from."""
    if not source:
        return ""
    layers = ", ".join(map(str, sorted(source["mlp_layers"])))
    return _joined(source["method"], f"as {source['given']}", _tagged("MLPs", layers or None), f"seed {source['seed']}")


def _changes_in_words(total: Mapping[str, Any]) -> str:
    if total["rank"] is None:
        return f"{total['modules']} tensors, {total['parameters']:,} numbers"
    return f"{total['modules']} maps, rank {total['rank']}, {total['parameters']:,} numbers"


def _self_check(check: Mapping[str, Any]) -> str:
    """What an edit's self-check found; values of other names than the known ones are shown as they are."""
    rest, parts = dict(check), []
    unrelated = rest.pop("unrelated", None)
    if {"n", "n_took"} <= rest.keys():
        parts.append(f"{rest.pop('n_took')} of {rest.pop('n')} targets are now the most likely answer")
    before, after = rest.pop("target_probability_before", None), rest.pop("target_probability_after", None)
    if before is not None and after is not None:
        parts.append(f"their probability {_value(before)} → {_value(after)}")
    parts += [f"{name} {_value(value)}" for name, value in _flat(rest)]
    lines = [", ".join(parts), unrelated_line(unrelated) if unrelated else ""]
    return "\n".join(line for line in lines if line)


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
            layer,
            styled(name),
            shape,
            _or_dash(row["rank"]),
            *_sizes(row),
            end_section=i + 1 == len(rows) and len(rows) > 1,
        )
    if len(rows) > 1:
        total = d["total"]
        table.add_row(
            "all", "", "", _or_dash(total["rank"]), *_sizes(total | {"share": 1.0 if total["frobenius"] else None})
        )
    return table


ROWS = 12


def _memory_line(memory: Mapping[str, Any]) -> str:
    bounds = memory["bounds"]
    between = "" if bounds is None else f"{memory['bound']} {_number(bounds['least'])} to {_number(bounds['largest'])}"
    settings = ", ".join(f"{name}={_value(value)}" for name, value in memory["settings"].items())
    return _joined(
        f"{memory['n']} at {memory['module'] or 'the prompt'}",
        between,
        settings,
        f"{_size(memory['bytes'])} of tensors",
    )


def _memories(memory: Mapping[str, Any]) -> Table:
    rows = memory["rows"]
    more = f" (the first {ROWS} of {len(rows)})" if len(rows) > ROWS else ""
    table = _table(f"what it remembers{more}")
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("of", overflow="fold", ratio=1)
    table.add_column(memory["bound"], justify="right", no_wrap=True)
    table.add_column("numbers", justify="right", no_wrap=True)
    for row in rows[:ROWS]:
        owners = ", ".join(row["owners"][:3]) + (f" and {len(row['owners']) - 3} more" if row["owners"][3:] else "")
        table.add_row(str(row["memory"]), styled(owners), _number(row["threshold"]), f"{row['numbers']:,}")
    return table


def route_lines(answer: Mapping[str, Any]) -> list[str]:
    """What `inspect --ask` says of one question."""
    if answer["memory"] is None:
        return ["no memory answers: there is none"]
    compared = f"{answer['measure']} {_number(answer['value'])}, {answer['bound']} {_number(answer['threshold'])}"
    owners = ", ".join(answer["owners"][:5])
    if answer["answers"]:
        return [f"memory {answer['memory']} answers (of {owners}): {compared}"]
    return [f"no memory answers; the nearest is {answer['memory']} (of {owners}): {compared}"]


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
        table.add_row(styled(_or_dash(record.get("source"))), styled(_or_dash(question)), styled(_or_dash(says)))
    return table


def _table(title: str) -> Table:
    return Table(title=styled(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """`{"target": {"steps": 3}}` as `target.steps`, as `--set` takes it; lists and texts are values."""
    pairs: list[tuple[str, Any]] = []
    for name, value in content.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, value)]
    return pairs


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_value(item) for item in value) + "]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _or_dash(value)


def _joined(*parts: str | None) -> str:
    return ", ".join(str(part) for part in parts if part)


def _tagged(before: str, value: object, after: str = "") -> str | None:
    return " ".join(part for part in (before, str(value), after) if part) if value not in (None, "") else None


def _short(digest: str | None) -> str | None:
    return digest[:12] if digest else None


def _or_dash(value: object) -> str:
    return "–" if value is None else str(value)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if value == 0 or 1e-2 <= value < 1e4 else f"{value:.2e}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}%"


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"
