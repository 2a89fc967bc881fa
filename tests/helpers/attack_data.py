"""Results of attacks to report on, made by a seed: numbers, curves and samples that agree, as attacks write them."""

from report_data import TASK, WORDS, metric, records, result

from unlearn_eval.results.files import write_result
from unlearn_eval.results.schema import Metric

RELEARN, PROBE, UDS = "attack_relearn", "attack_probe", "attack_uds"
STEPS, LAYERS = (None, 5, 10, 20), 12
MODELS = {"unlearned": (0.1, 0.7), "full": (0.9, 0.95), "reference": (0.05, 0.15)}
NO_REFERENCE = "no reference model that never knew the facts was given (--reference)"


def observed(model, at, value, condition="attack", said=None):
    """What one model does at one level, for one item."""
    told = {} if said is None else {"said": said}
    numbers = {"accuracy": float(value > 0.5), "probability": round(value, 4)}
    return {"model": model, "condition": condition, "fold": 0, "seed": 0, "at": at, **numbers, **told}


def curve(model, value, at, mean, condition="attack", n=8):
    ends = [[round(own + shift, 4) for own in mean] for shift in (-0.05, 0.05)]
    own = {"at": list(at), "mean": list(mean), "low": ends[0], "high": ends[1], "n": [n] * len(mean)}
    return {"model": model, "condition": condition, "value": value, **own}


def relearning(n_items, generator, comes_back=0.7, texts=None, reference=True):
    """Metrics, the part `robustness` and the samples of an attack by relearning."""
    names = [name for name in MODELS if reference or name != "reference"]
    rows, by_metric = [], {"forget_accuracy": [], "forget_attacked_accuracy": [], "forget_unedited_accuracy": []}
    for i in range(n_items):
        seen = []
        for name in names:
            low, high = MODELS[name]
            high = comes_back if name == "unlearned" else high
            for place, at in enumerate(STEPS):
                value = min(1.0, max(0.0, low + (high - low) * place / 3 + generator.uniform(-0.3, 0.3)))
                said = texts[i] if texts else " ".join(generator.choices(WORDS, k=6)) + f" {value:.4f}"
                seen.append(observed(name, at, value, said=said))
        for key, model, at in (
            ("forget_accuracy", "unlearned", None), ("forget_attacked_accuracy", "unlearned", 20),
            ("forget_unedited_accuracy", "full", None),
        ):  # fmt: skip
            by_metric[key].append(next(o["accuracy"] for o in seen if (o["model"], o["at"]) == (model, at)))
        item = {
            "id": str(2 * i),
            "question": f"What is the answer to question number {2 * i}?",
            "answer": f"answer {2 * i}",
        }
        rows.append({**item, "metrics": {key: own[i] for key, own in by_metric.items()}, "observations": seen})
    return _metrics(rows, by_metric, names), _part(rows, names), rows


def _means(rows, name, at, value):
    own = [o[value] for row in rows for o in row["observations"] if (o["model"], o["at"]) == (name, at)]
    return sum(own) / len(own)


def _metrics(rows, by_metric, names):
    made = {key: metric(own, key == "forget_unedited_accuracy") for key, own in by_metric.items()}
    for key, name, at in (("", "unlearned", None), ("attacked_", "unlearned", 20), ("unedited_", "full", None)):
        made[f"forget_{key}probability"] = Metric(
            _means(rows, name, at, "probability"), 0.02, len(rows), 0, None, False
        )
    made["forget_attacked_guessing"] = Metric(0.12, None, len(rows))
    for value in ("accuracy", "probability"):
        own, full = (_means(rows, name, 20, value) for name in ("unlearned", "full"))
        if "reference" in names:
            low = _means(rows, "reference", 20, value)
            made[f"forget_reference_{value}"] = Metric(low, 0.02, len(rows))
            made[f"forget_{value}_recovery"] = Metric((own - low) / (full - low), 0.1, len(rows), 0, None, False)
        else:
            made[f"forget_{value}_recovery"] = Metric(None, None, 0, len(rows), NO_REFERENCE, False)
        made[f"forget_{value}_durability"] = Metric(1 - own, 0.1, len(rows), 0, None, True)
        made[f"forget_{value}_stability"] = Metric(0.3, 0.1, len(rows), 0, None, True)
    return made


def _part(rows, names):
    curves = [
        curve(name, value, STEPS, [round(_means(rows, name, at, value), 4) for at in STEPS], n=len(rows))
        for name in names
        for value in ("accuracy", "probability")
    ]
    curves.append(curve("unlearned", "accuracy", STEPS[1:], [0.1, 0.15, 0.2], "format", len(rows)))
    levels = [
        {"model": name, "condition": "attack", "fold": 0, "seed": 0, "at": at, "n": len(rows),
         "values": {value: _means(rows, name, at, value) for value in ("accuracy", "probability")}}
        for name in names
        for at in STEPS
    ]  # fmt: skip
    about = {
        "attack": "relearn",
        "axis": "step",
        "does": "fine-tunes on some of the forgotten facts and asks the others",
    }
    back = (_means(rows, "unlearned", 20, "accuracy") - 0.05) / 0.9
    ends = {"forget_accuracy_recovery": [back - 0.2, back + 0.2]} if "reference" in names else {}
    return {
        **about,
        "headline": "last",
        "level": 20,
        "curves": curves,
        "levels": levels,
        "intervals": ends,
        "skipped": [],
    }


def probing(n_items, generator, read=0.8):
    """The same of probes, which say nothing."""
    at = list(range(LAYERS))
    rise = [min(1.0, layer / 6) for layer in at]
    curves = [
        curve("unlearned", "above_control", at, [round(read * r * 0.5, 4) for r in rise]),
        curve("full", "above_control", at, [round(0.5 * r, 4) for r in rise]),
        curve("unlearned", "probe_accuracy", at, [round(0.5 + read * r * 0.4, 4) for r in rise]),
        curve("full", "probe_accuracy", at, [round(0.5 + 0.45 * r, 4) for r in rise]),
        curve("unlearned", "probe_accuracy", at, [0.5 for _ in at], "random_labels"),
    ]
    scores = [float(generator.random() < read) for _ in range(n_items)]
    rows = [
        {"id": str(2 * i), "question": f"What is the answer to question number {2 * i}?", "answer": f"answer {2 * i}",
         "metrics": {"forget_probe_accuracy": score, "forget_unedited_probe_accuracy": 1.0}, "observations": []}
        for i, score in enumerate(scores)
    ]  # fmt: skip
    metrics = {
        "forget_probe_accuracy": metric(scores, False),
        "forget_unedited_probe_accuracy": metric([1.0] * n_items, True),
    }
    part = {
        "attack": "probe",
        "axis": "layer",
        "does": "reads the facts from each layer",
        "headline": "worst",
        "level": None,
    }
    return metrics, {**part, "curves": curves, "levels": [], "intervals": {}, "skipped": []}, rows


def placed(method, layers, scored=True, n_layers=LAYERS):
    """What an edit's notes say of the localization that placed it."""
    modules = [f"model.layers.{layer}.mlp.{name}" for layer in layers for name in ("up_proj", "down_proj")]
    scores = [round(0.1 * (n_layers / 2 - layer), 4) if scored else None for layer in range(n_layers)]
    own = {"given": method, "method": method, "settings": {}, "budget": {"given": "2", "n_weights": 4000}}
    own |= {"n_weights": 4000, "mlp_layers": layers, "modules": modules, "facts": {"set": "facts", "n": 12}, "seed": 0}
    own |= {"n_layers": n_layers, "n_weights_in_blocks": 40000, "scores": {"mlp": scores}, "model": {"id": "tiny"}}
    return own | {"notes": {"way": "probe"} if scored else {}}


def write_attacked(folder, name, parts, method="npo", seed=0, where=None, answers=None, **changes):
    """An edit's run with attacks, `parts`: task -> (metrics, robustness, samples); answers are of the usual task."""
    made = result(name, {}, method, seed, **changes)
    edit = made.edit | ({"notes": {"components": where}} if where else {})
    own = {task: metrics for task, (metrics, _, _) in parts.items()}
    samples = {task: rows for task, (_, _, rows) in parts.items() if rows}
    data = dict(made.data)
    if answers:
        keys = ("forget_accuracy", "retain_accuracy")
        scores = {key: [row[key] for row in answers if row[key] is not None] for key in keys}
        own = {TASK: {key: metric(values, key == "retain_accuracy") for key, values in scores.items()}, **own}
        samples = {TASK: answers, **samples}
    content = {**vars(made), "metrics": own, "edit": edit, "data": data}
    content["robustness"] = {task: part for task, (_, part, _) in parts.items()}
    return write_result(type(made)(**content), folder / f"{name}.json", samples)


def write_study(folder, generator, texts=None):
    """An unedited run, three edits in different places with two attacks each, and one that could not be attacked."""
    from report_data import write_run

    write_run(folder, "base", records(24, generator, leak=0.95))
    for i, (where, layers, back) in enumerate(
        (("fact_lookup", [1, 2], 0.3), ("causal_tracing_mlps", [7, 8], 0.8), ("random_mlps", [3, 9], 0.5))
    ):
        parts = {RELEARN: relearning(12, generator, back, texts), PROBE: probing(12, generator, back)}
        place = placed(where, layers, where != "random_mlps")
        write_attacked(folder, f"npo-{where}", parts, seed=i, where=place, answers=records(24, generator, leak=0.2))
    why = "relearn cannot treat memory edits: a memory leaves the weights as they were"
    none = {"forget_attacked_accuracy": Metric(None, None, 0, 12, why, False)}
    part = {"attack": "relearn", "axis": "step", "headline": "last", "levels": [], "intervals": {}}
    part["skipped"] = [{"what": "memory edit", "reason": why}]
    write_attacked(folder, "grace", {RELEARN: (none, part, [])}, "grace", answers=records(24, generator, leak=0.1))
    return folder
