"""What a localization found, as tables for a terminal and as figures; from the content of its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from unlearn_eval.results.report.robustness import chosen_units

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Content = Mapping[str, Any]
KINDS = {"attention": "attention", "mlp": "MLP"}


def component_tables(content: Content) -> list[Table]:
    """What was chosen, and every layer with its scores; what is chosen is marked."""
    return [_overview(content), _layers(content)]


def _overview(content: Content) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False, title_justify="left", title_style="bold")
    table.title = content["method"]
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    share, n_maps = content["n_weights"] / content["n_weights_in_blocks"], len(content["modules"])
    table.add_row("chosen", f"{n_maps} linear maps, {content['n_weights']:,} weights ({share:.1%} of the blocks')")
    if content.get("mask"):
        ways = content["mask"]["settings"]
        table.add_row("masks", f"single weights by {ways['way']}, {ways['weights']} of those in the maps")
    layers = sorted(content["mlp_layers"])
    table.add_row("MLP layers", ", ".join(map(str, layers)) or "none")
    if content["budget"]:
        table.add_row("budget", f"{content['budget']['given']}: {content['budget']['n_weights']:,} weights")
    facts, model = content["facts"], content["model"]
    if facts:
        n = len(facts.get("skipped", {}))
        table.add_row("facts", f"{facts['n']} of {facts['set']}" + (f", {n} left out" if n else ""))
    table.add_row("model", f"{model['id']} ({model['architecture']}, weights {model['weights'][:12]})")
    notes = content["notes"]
    for key, name in (("way", "way"), ("extraction_layer", "extraction"), ("total_effect", "lost by corruption")):
        if key in notes:
            value = notes[key]
            text = f"from layer {value} on" if key == "extraction_layer" else value
            table.add_row(name, f"{text:.3g}" if isinstance(text, float) else str(text))
    if notes.get("heads"):
        heads = ", ".join(f"{own['layer']}.{own['head']} ({own['effect']:+.2f})" for own in notes["heads"])
        name = "extracting heads" if "extraction_layer" in notes else "heads"
        table.add_row(name, heads)
    table.add_row("score", _meaning(content))
    table.add_row("settings", ", ".join(f"{key}={value}" for key, value in content["settings"].items()) or "none")
    table.add_row("cost", f"{content['seconds']:.1f} s, seed {content['seed']}")
    return table


def _layers(content: Content) -> Table:
    """One row for each layer."""
    scores = {(own["kind"], own["layer"]): own["score"] for own in content["ranking"]}
    kinds = [kind for kind in KINDS if any(own == kind for own, _ in scores)]
    probes = content["tables"].get("probe_accuracy", {})
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title="layers, * chosen", title_justify="left", title_style="bold"
    )
    table.add_column("layer", justify="right")
    for name in (*(KINDS[kind] for kind in kinds), *(f"probe, {name}" for name in probes)):
        table.add_column(name, justify="right")
    marks = {(kind, layer) for kind, layer, _ in chosen_units(content["modules"])}
    for layer in range(content["n_layers"]):
        cells = [_cell(scores, marks, kind, layer) for kind in kinds]
        table.add_row(str(layer), *cells, *(f"{curve[layer + 1]:.3f}" for curve in probes.values()))
    return table


def _cell(scores: Mapping[tuple[str, int], Any], marks: set[tuple[str, int]], kind: str, layer: int) -> str:
    mark = "*" if (kind, layer) in marks else " "
    if (kind, layer) not in scores:
        return f"–{mark}"
    score = scores[kind, layer]
    return mark if score is None else f"{score:+.3f}{mark}"


def _meaning(content: Content) -> str:
    notes = content["notes"]
    if notes.get("way") == "probe":
        return "the rise of the bare subject's probe over the layer"
    if notes.get("way") == "path_patching":
        return "the share of the lost logit difference that comes back"
    if "metric" in notes:
        return f"how much {notes['metric'].replace('_', ' ')} comes back"
    return "not computed"


# Figures ---------------------------------------------------------------------------------------------------


def write_component_figures(content: Content, folder: str | Path) -> list[Path]:
    """Writes `localization_METHOD` as .svg and .pdf: effects by layer and role, or scores by layer; returns the paths.

    Raises:
        UserError: matplotlib is missing, or the folder cannot be written.
    """
    from unlearn_eval.results.report.figures import STYLE, _figure, _save  # first: it says when matplotlib is missing

    import matplotlib as mpl  # isort: skip

    with mpl.rc_context(STYLE):
        effects, probes = content["tables"].get("effects"), content["tables"].get("probe_accuracy")
        if effects:
            kinds = [kind for kind in KINDS if kind in effects]
            figure, grid = _figure(3.4 * len(kinds) + 1, 2.4 + 0.12 * content["n_layers"], 1, len(kinds))
            for kind, plot in zip(kinds, grid[0], strict=True):
                figure.colorbar(_heat_map(plot, effects[kind], effects["roles"], KINDS[kind]), ax=plot, shrink=0.7)
        else:
            figure, grid = _figure(5, 3)
            plot = grid[0][0]
            if probes:
                for name, curve in probes.items():
                    plot.plot(range(-1, len(curve) - 1), curve, marker=".", label=name)
                plot.set_ylabel("probe's accuracy after the layer")
                plot.legend(frameon=False)
            else:
                _bars(plot, content)
            plot.set_xlabel("layer")
        layers = ", ".join(map(str, sorted(content["mlp_layers"])))
        figure.suptitle(f"{content['method']}, {content['model']['id']}: MLPs {layers or 'none'}")
        return _save(figure, Path(folder).expanduser() / f"localization_{content['method']}")


def _heat_map(plot: Axes, effects: Sequence[Sequence[float | None]], roles: Sequence[str], title: str) -> Any:
    """Layers from below up, roles from left to right; colors are the same distance from 0 in both directions."""
    values = [[float("nan") if value is None else value for value in row] for row in effects]
    most = max((abs(value) for row in effects for value in row if value is not None), default=0.0) or 1.0
    image = plot.imshow(values, aspect="auto", origin="lower", cmap="RdBu_r", vmin=-most, vmax=most)
    plot.set_xticks(range(len(roles)), list(roles), rotation=60, ha="right")
    plot.set_ylabel("layer")
    plot.set_title(title, loc="left")
    return image


def _bars(plot: Axes, content: Content) -> None:
    """A bar for each unit with a score; all have the same height where nothing is scored."""
    for kind, name in KINDS.items():
        own = [unit for unit in content["ranking"] if unit["kind"] == kind]
        if own:
            shift = 0.2 if kind == "mlp" else -0.2
            heights = [1.0 if unit["score"] is None else unit["score"] for unit in own]
            plot.bar([unit["layer"] + shift for unit in own], heights, width=0.4, label=name)
    plot.set_ylabel("score" if any(unit["score"] is not None for unit in content["ranking"]) else "may be chosen")
    plot.legend(frameon=False)
