"""What each metric is worth as Markdown and as one page, from the JSON that a meta-evaluation leaves."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from unlearn_eval.metrics.catalogue import meaning
from unlearn_eval.results.report.formats import escape_markdown

Content = Mapping[str, Any]
COLUMNS = (
    ("faithfulness", "faithful"),
    ("relearning", "relearning"),
    ("quantization", "quantization"),
    ("robustness", "robust"),
    ("trust", "trust"),
)
_TRUSTED = 0.8
_STYLE = """
td.bad { color: var(--worse); font-weight: 600; } td.good { color: var(--better); }
td small { color: var(--muted); display: block; } svg { max-width: 100%; height: auto; }
th:first-child, td:first-child { text-align: left; }
td.words { text-align: left; min-width: 12rem; white-space: normal; }
"""


def meta_markdown(content: Content) -> str:
    """The tables as Markdown."""
    n = content["n"]
    lines = [
        "# What is each metric worth?",
        "",
        f"{_counts(n)} Intervals are 95 % over models. {_explained()}",
        "",
        "| metric | " + " | ".join(title for _, title in COLUMNS) + " | a low value supports | breaks a control |",
        "|---|" + "---:|" * len(COLUMNS) + "---|---|",
    ]
    for own in ranked(content):
        cells = [_text(own[key]) for key, _ in COLUMNS]
        broken = "; ".join(own["broken"])
        supports = ", ".join(own["supports"])
        lines.append(f"| {escape_markdown(_name(own))} | {' | '.join([*cells, supports or '–', broken or '–'])} |")
    lines += ["", "## Published statements", "", "| statement | ours | published | verdict |", "|---|---:|---:|---|"]
    for row in content["directions"]:
        lines.append(f"| {row['statement']} | {_text(row['ours'])} | {row['published']:.3f} | {row['verdict']} |")
    lines += ["", f"Published: {content['published_source']}.", "", "## One number", "", *_combined_lines(content), ""]
    lines += [
        "## Controls",
        "",
        *([_harmed(content).strip(), ""] if _harmed(content) else []),
        *_control_lines(content),
        "",
    ]
    return "\n".join(lines)


def meta_page(content: Content) -> str:
    """The page: a file of its own without scripts or network."""
    style = (files("unlearn_eval.results.report") / "page.css").read_text(encoding="utf-8") + _STYLE
    body = [
        "<h1>What is each metric worth?</h1>",
        f"<p>{_e(_counts(content['n']))} {_e(_explained())} <span class=muted>{_e(content['created'][:10])}</span></p>",
        "<h2>Which metric should I report?</h2>",
        _table(
            ["metric", *(title for _, title in COLUMNS), "a low value supports", "controls that it breaks"],
            [_worth_row(own) for own in ranked(content)],
        ),
        "<h2>The pools by each metric</h2>",
        "<p>Each mark is a model; right is more knowledge. Above: it was taught; below: it never knew.</p>",
        *(_strip(content, own) for own in ranked(content)),
        "<h2>Controls</h2><p>How forgotten each metric calls them: 0 is the model before unlearning, 1 one that never "
        f"knew. Red breaks the order that must hold.{_e(_harmed(content))}</p>",
        _controls_table(content),
        "<h2>Unlearned models against the retain-only one</h2>",
        "<p>1 − |unlearned − reference| / |before − reference|, and the distance with its sign: below 0 it is "
        "over-forgetting.</p>",
        _gaps_table(content),
        "<h2>Published statements</h2>",
        _table(
            ["statement", "ours", "published", "verdict"],
            [
                [
                    _words(row["statement"]),
                    _cell(row["ours"]),
                    f"<td>{row['published']:.3f}</td>",
                    _verdict(row["verdict"]),
                ]
                for row in content["directions"]
            ],
        ),
        f"<p class=muted>{_e(content['published_source'])}</p>",
        "<h2>One number</h2>",
        *(f"<p>{_e(line)}</p>" for line in _combined_lines(content) if line),
        "<h2>How it was made</h2>",
        f"<p><code>{_e(' '.join(content['command']))}</code></p>",
    ]
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>What is each metric worth?</title><style>{style}</style></head><body>{''.join(body)}</body></html>\n"
    )


def ranked(content: Content) -> list[Content]:
    """The metrics, the most trusted first; then the most faithful."""

    def order(own: Content) -> tuple[float, float]:
        return -(own["trust"]["value"] or 0.0), -(own["faithfulness"]["value"] or 0.0)

    return sorted(content["metrics"], key=order)


def _counts(n: Content) -> str:
    out = f" ({', '.join(n['left_out'])} left out: too little utility)" if n["left_out"] else ""
    cells = (
        "" if n["complete"] == n["cells"] else f" Not finished: {n['complete']} of {n['cells']} models are measured."
    )
    return f"{n['knows']} models that know, {n['never']} that never knew, {n['unlearned']} unlearned ones{out}.{cells}"


def _explained() -> str:
    return (
        "Faithful: the share of pairs in which the metric is larger for the model that knows. Relearning and "
        "quantization: 1 where the metric moves as it does for a model that never knew, and not at all. Robust: their "
        "harmonic mean; trust: that of faithful and robust."
    )


def _name(own: Content) -> str:
    return str(own["metric"])


def _text(estimate: Content) -> str:
    if estimate["value"] is None:
        return "–"
    ends = "" if estimate["low"] is None else f" [{estimate['low']:.2f}, {estimate['high']:.2f}]"
    return f"{estimate['value']:.2f}{ends}"


def _combined_lines(content: Content) -> list[str]:
    own, held = content["combined"], content["combined"]["held_out"]
    if held["reason"]:
        return [f"It cannot be done: {held['reason']}."]
    both, one = held["combined"], held["single"]
    lines = []
    if own["weights"]:
        weights = ", ".join(f"{name.partition('/')[2]} {weight:.2f}" for name, weight in own["weights"].items())
        lines += [f"Weights from all models: {weights}.", ""]
    for title, worth in (("Combined", both), ("Best single metric", one)):
        parts = ", ".join(f"{name} {_text(worth[key])}" for key, name in COLUMNS)
        lines += [f"{title}, on recipes and methods that it was not chosen by: {parts}.", ""]
    better = (both["trust"]["value"] or 0) > (one["trust"]["value"] or 0)
    lines.append(
        f"The combination is {'better' if better else 'not better'} than the best single metric when held out."
    )
    if held["n_without"]:
        lines.append(f"In {held['n_without']} parts fewer than two metrics were trusted; they are left out.")
    return lines


def _harmed(content: Content) -> str:
    """Which controls were to harm nothing, and did."""
    names = ", ".join(content.get("harmed_controls", ()))
    return f" Not judged, as it lost too much utility to be a control: {names}." if names else ""


def _control_lines(content: Content) -> list[str]:
    controls = list(content["controls"])
    lines = ["| metric | " + " | ".join(controls) + " |", "|---|" + "---:|" * len(controls)]
    for own in ranked(content):
        key = f"{own['task']}/{own['metric']}"
        values = [content["controls"][name].get(key) for name in controls]
        lines.append(f"| {escape_markdown(_name(own))} | " + " | ".join(map(_number, values)) + " |")
    return lines


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


# HTML ------------------------------------------------------------------------------------------------------


def _e(text: object) -> str:
    return html.escape(str(text), quote=True)


def _words(text: str) -> str:
    return f"<td class=words>{_e(text)}</td>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    titles = "".join(f"<th>{_e(title)}</th>" for title in head)
    lines = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f"<div class='card scroll'><table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>"


def _cell(estimate: Content) -> str:
    value = estimate["value"]
    if value is None:
        return f"<td title='{_e(estimate['reason'] or '')}'>–</td>"
    kind = "good" if value >= _TRUSTED else "bad" if value < 0.5 else ""
    ends = "" if estimate["low"] is None else f"<small>{estimate['low']:.2f} to {estimate['high']:.2f}</small>"
    return f"<td class='{kind}'>{value:.2f}{ends}</td>"


def _worth_row(own: Content) -> list[str]:
    name = f"<td title='{_e(meaning(own['metric']).text)}'>{_e(_name(own))}<small>{_e(own['task'])}</small></td>"
    broken = "; ".join(own["broken"])
    bad = f"<td class='words bad'>{_e(broken)}</td>" if broken else _words("–")
    return [name, *(_cell(own[key]) for key, _ in COLUMNS), _words(", ".join(own["supports"]) or "–"), bad]


def _verdict(text: str) -> str:
    kind = {"confirmed": "good", "refuted": "bad"}.get(text, "")
    return f"<td class='{kind}'>{_e(text)}</td>"


def _strip(content: Content, own: Content) -> str:
    """The values of both pools on one line."""
    key = f"{own['task']}/{own['metric']}"
    points = [(m["role"], m["values"].get(key)) for m in content["models"] if m["role"] in ("knows", "never")]
    known = [value for _, value in points if value is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    width = high - low or 1.0
    marks = "".join(
        f"<circle cx='{20 + 560 * (value - low) / width:.1f}' cy='{12 if role == 'knows' else 30}' r='5' "
        f"fill='var({'--s1' if role == 'knows' else '--s0'})' fill-opacity='.7'/>"
        for role, value in points
        if value is not None
    )
    return (
        f"<figure><figcaption>{_e(_name(own))}: {low:.3g} to {high:.3g}</figcaption>"
        f"<svg viewBox='0 0 600 42' role=img aria-label='{_e(_name(own))}'>"
        f"<line x1='20' x2='580' y1='21' y2='21' stroke='var(--line)'/>{marks}</svg></figure>"
    )


def _controls_table(content: Content) -> str:
    controls = list(content["controls"])
    rows = []
    for own in ranked(content):
        key = f"{own['task']}/{own['metric']}"
        broken = {next(iter(order["values"])) for order in own["orders"] if order["holds"] is False}
        cells = [
            f"<td class='{'bad' if name in broken else ''}'>{_number(content['controls'][name].get(key))}</td>"
            for name in controls
        ]
        rows.append([f"<td>{_e(_name(own))}</td>", *cells])
    utility = [f"<td>{_number(content['control_utility'].get(name))}</td>" for name in controls]
    return _table(["metric", *controls], [*rows, ["<td>utility</td>", *utility]])


def _gaps_table(content: Content) -> str:
    models = list(content["gaps"])
    rows = []
    for own in ranked(content):
        key, cells = f"{own['task']}/{own['metric']}", []
        for model in models:
            found = content["gaps"][model].get(key) or {"gap": None, "signed": None}
            signed = "" if found["signed"] is None else f"<small>{found['signed']:+.2f}</small>"
            cells.append(f"<td>{_number(found['gap'])}{signed}</td>")
        rows.append([f"<td>{_e(_name(own))}</td>", *cells])
    return _table(["metric", *(model.partition(" (")[0] for model in models)], rows)
