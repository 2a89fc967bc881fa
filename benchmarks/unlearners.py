"""Every gradient method on TOFU: a model fine-tuned on it, one without what is forgotten, and each method's edit.

TOFU comes from the hub or from `UNLEARN_EVAL_DATA`. By default a part of it, for a CPU: forget01, the first 40 of
what is kept, and 40 questions of each split of the evaluation; `--whole` takes all (a GPU's work). Fine-tuned models
are kept in `--folder` as edits. Every row is written to results/unlearners.json as soon as it is there, and is not
computed again while it is there; results/unlearners.md is the table.

All methods have the settings of TOFU's preset, except what is said on the command line for all of them: the batch, and
a factor by which every learning rate is multiplied (a small model learns from none of those that are used for 7B).
Nothing is tuned for any method.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from editing import forget_peak_memory

from unlearn_eval import make_edit
from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.data.registry import finetune_presets
from unlearn_eval.editing.editor import trained_editor_names
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.editing.training.presets import unlearning_preset
from unlearn_eval.edits.base import applied
from unlearn_eval.edits.load import load_edit
from unlearn_eval.harness.patching import quiet
from unlearn_eval.harness.run import evaluate
from unlearn_eval.harness.tofu_reference import measure
from unlearn_eval.models.load import LoadedModel, load_model
from unlearn_eval.models.prompts import has_chat_template
from unlearn_eval.models.weights import hash_weights
from unlearn_eval.runs import finetune as finetuning
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.provenance import peak_memory_bytes, provenance

RESULT, TABLE = Path("results/unlearners.json"), Path("results/unlearners.md")
SPLITS = {"forget01": ("retain99", 40), "forget05": ("retain95", 200), "forget10": ("retain90", 400)}
COLUMNS = {
    "forget_quality": "forget quality",
    "model_utility": "model utility",
    "forget_truth_ratio": "truth ratio",
    "forget_probability": "probability",
    "forget_extraction_strength": "extraction strength",
    "mia_min_k_auc": "min-k AUC",
    "forget_refusal_rate": "refuses forget",
    "retain_refusal_rate": "refuses retain",
    "seconds": "seconds",
    "cpu_seconds": "CPU seconds",
    "peak_memory_gigabytes": "peak GB",
}


@dataclass(frozen=True)
class Study:
    """What is the same for every row.

    Attributes:
        forget, retain: what is forgotten and what is kept; the fine-tuned model knows both.
        limit: documents of each task's evaluation; None is all.
        tasks: of the evaluation.
        chat: whether everything is asked through the chat template.
        reference: the file with the retain-only model's scores.
    """

    forget: ForgetSet
    retain: ForgetSet
    limit: int | None
    tasks: tuple[str, str]
    chat: bool
    reference: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default")
    parser.add_argument("--device", default=None)
    parser.add_argument("--split", default="forget01", choices=SPLITS)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--n-retain", type=int, default=40)
    parser.add_argument("--limit", type=int, default=160)
    parser.add_argument("--finetune-epochs", default="12")
    parser.add_argument("--finetune-rate", default="1e-4")
    parser.add_argument("--batch-size", default="8")
    parser.add_argument("--rate-factor", type=float, default=2.0)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--evaluation-dtype", default="bfloat16", help="of the weights while the metrics are computed")
    parser.add_argument("--methods", default=",".join(trained_editor_names()))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default="results/scratch/unlearners")
    a = parser.parse_args()
    folder = Path(a.folder)
    folder.mkdir(parents=True, exist_ok=True)
    base = load_model(a.model, dtype="float32", device=a.device)
    retain_name, _ = SPLITS[a.split]
    retain = load_forget_set(f"tofu:{retain_name}")
    if not a.whole:
        retain = replace(retain, name=f"the first {a.n_retain} of tofu:full", items=retain.items[: a.n_retain])
    suffix = "" if a.split == "forget10" else f"_{a.split}"
    study = Study(
        load_forget_set(f"tofu:{a.split}"),
        retain,
        None if a.whole else a.limit,
        (f"unlearn_tofu{suffix}", f"unlearn_tofu_privacy{suffix}"),
        has_chat_template(base.tokenizer),
        folder / "retain_reference.json",
    )
    done = json.loads(RESULT.read_text()) if RESULT.is_file() else {"rows": {}}
    done |= {
        "settings": {key: value for key, value in vars(a).items() if key not in ("methods", "folder")},
        "base": {"id": base.name, "weights": hash_weights(base.model).exact},
        "provenance": provenance(base.model.device),
        "n_forget": len(study.forget),
        "n_retain": len(retain),
    }
    training = {
        "epochs": a.finetune_epochs,
        "learning_rate": a.finetune_rate,
        "batch_size": a.batch_size,
        "precision": a.precision,
    }
    everything = ForgetSet("retain and forget", (*retain.items, *study.forget.items))
    models = {
        "retain-only": tuned(base, retain, training, folder / "retain", a.seed),
        "fine-tuned": tuned(base, everything, training, folder / "full", a.seed),
    }
    if not study.reference.is_file():
        with applied(models["retain-only"], base.model):
            scores = measure(in_dtype(base.model, a), base.prompt_format(study.chat), a.split)
        study.reference.write_text(json.dumps(scores))
    row(done, "base", lambda: look(base, study, a))
    for name in ("fine-tuned", "retain-only"):
        with applied(models[name], base.model):
            cost = {"seconds": models[name].info.seconds, **memory(models[name].info)}
            row(done, name, lambda cost=cost: cost | look(base, study, a))
    models["fine-tuned"].apply(base.model)
    target = replace(base, name="fine-tuned", path=str(folder / "full"))
    for method in a.methods.split(","):
        row(done, method, lambda method=method: one(method, target, study, a))


def tuned(base: LoadedModel, data: ForgetSet, options: dict[str, str], folder: Path, seed: int) -> Any:
    """A fine-tuned model as an edit of the base, kept in a folder."""
    if not (folder / "edit.json").is_file():
        forget_peak_memory()
        with quiet():
            own = options | {"folder": f"{folder}.training"}
            made = finetuning.finetune(base, data, own, finetune_presets()["tofu"], seed=seed, progress=tell)
            made.save(folder, base.tokenizer, base.model.config)
        print(f"{folder.name}: {made.texts['training.jsonl'].splitlines()[-1]}", flush=True)
    return load_edit(folder)


def one(method: str, target: LoadedModel, study: Study, a: Any) -> dict[str, Any]:
    """A method's edit of the fine-tuned model, and what the edited model says."""
    preset = unlearning_preset(method, study.forget.name)
    assert preset is not None
    rate = float(preset.settings["learning_rate"]) * (1 if method == "ft_m" else a.rate_factor)
    options = {"batch_size": a.batch_size, "learning_rate": str(rate), "precision": a.precision}
    forget_peak_memory()
    started = time.process_time()
    try:
        with quiet():
            recipe = Recipe(seed=a.seed, chat=study.chat)
            edit = make_edit(target, study.forget, method, options, recipe, progress=tell, retain=study.retain)
    except UserError as error:
        return {"error": str(error).splitlines()[0]}
    about = {
        "settings": edit.info.config,
        "source": preset.source,
        "training": edit.info.notes["training"],
        "self_check": edit.info.notes["self_check"],
        "curve": [json.loads(line) for line in edit.texts["training.jsonl"].splitlines()],
        "seconds": edit.info.seconds,
        "cpu_seconds": round(time.process_time() - started, 1),
        **memory(edit.info),
    }
    with applied(edit, target.model):
        return about | look(target, study, a)


def memory(info: Any) -> dict[str, float]:
    """The process's peak of resident memory while it trained, the model included."""
    return {"peak_memory_gigabytes": round((info.peak_memory_bytes or peak_memory_bytes() or 0) / 1e9, 2)}


def look(loaded: LoadedModel, study: Study, a: Any) -> dict[str, Any]:
    """The metrics of both tasks, and one answer to a question of each split."""
    from unlearn_eval.harness.models import HFLM

    started = time.monotonic()
    model = in_dtype(loaded.model, a)
    lm = HFLM(pretrained=model, tokenizer=loaded.tokenizer, batch_size=64, device=str(model.device))
    options: dict[str, Any] = {
        "apply_chat_template": study.chat,
        "metadata": {"retain_reference": str(study.reference)},
    }
    found: dict[str, Any] = {}
    samples: dict[str, Any] = {}
    with quiet():
        for task in study.tasks:
            generation = {"gen_kwargs": {"max_gen_toks": a.max_new_tokens}} if "privacy" not in task else {}
            result = evaluate(lm, [task], limit=study.limit, **options, **generation)
            found |= {name: asdict(metric) for name, metric in result.metrics[task].items()}
            samples |= {s["id"]: s for s in result.samples.get(task, []) if "privacy" not in task}
    says = {key: says_to(samples[key]) for key in ("forget/0", "retain/0", "world_facts/0") if key in samples}
    return {"metrics": found, "says": says, "evaluation_seconds": round(time.monotonic() - started, 1)}


def in_dtype(model: Any, a: Any) -> Any:
    """A copy of the model as edited, in the evaluation's dtype."""
    return copy.deepcopy(model).to(getattr(torch, a.evaluation_dtype))


def says_to(sample: dict[str, Any]) -> str | None:
    """The generated text among a sample's responses."""
    texts = [r[0] if isinstance(r, list) else r for r in sample.get("resps", [])]
    return next((text for text in texts if isinstance(text, str)), None)


def row(done: dict[str, Any], name: str, compute: Any) -> None:
    if name in done["rows"]:
        return
    done["rows"][name] = compute()
    RESULT.write_text(json.dumps(done, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    TABLE.write_text(table(done), encoding="utf-8")
    print(name, {key: cell(done["rows"][name], key) for key in COLUMNS}, flush=True)


def table(done: dict[str, Any]) -> str:
    """The rows as Markdown."""
    own = done["settings"]
    lines = [
        "# Gradient methods on TOFU",
        "",
        f"{done['base']['id']}, {done['n_forget']} items of {own['split']} to forget, {done['n_retain']} to keep; "
        f"{'all' if own['whole'] else own['limit']} documents in the evaluation, answers of up to "
        f"{own['max_new_tokens']} tokens, {own['evaluation_dtype']}; batches of {own['batch_size']}, the presets' "
        f"learning rates times {own['rate_factor']} (FT-M's as it is), nothing tuned for any method, one seed. Made by "
        "`benchmarks/unlearners.py`; the rest is in `unlearners.json`.",
        "",
        "| | " + " | ".join(COLUMNS.values()) + " |",
        "|---|" + "---:|" * len(COLUMNS),
    ]
    for name, found in done["rows"].items():
        lines.append(f"| {name} | " + " | ".join(cell(found, key) for key in COLUMNS) + " |")
    return "\n".join([*lines, *reading(done["rows"])]) + "\n"


def reading(rows: dict[str, Any]) -> list[str]:
    """What the table says beside what is published, and why some methods do nothing; empty while rows are missing."""
    wanted = "fine-tuned gradient_ascent ceu gradient_difference pdu npo undial simnpo idk dpo ft_m rmu satimp".split()
    if not set(wanted) <= rows.keys():
        return []

    def of(name: str, key: str) -> str:
        return cell(rows[name], key)

    def utility(name: str) -> str:
        return of(name, "model_utility")

    def loss(name: str) -> tuple[float, float]:
        """The forget loss's means over the first and the last five steps."""
        values = [step["forget_loss"] for step in rows[name]["curve"]]
        return sum(values[:5]) / 5, sum(values[-5:]) / 5

    alone = ", ".join(f"{name} {utility(name)}" for name in ("gradient_ascent", "ceu"))
    rmu, satimp = loss("rmu"), loss("satimp")
    return [
        "",
        "## Beside what is published",
        "",
        "- These runs say little about the methods: SatImp's two weights were exchanged, SatImp and WGA trained half "
        "their epochs, AltPO and PDU had other settings than their authors', and the fine-tuned model knows the "
        "answers so well that ascent has hardly a gradient. The presets are corrected; the table is "
        "still to be made again.",
        f"- Ascent destroys utility, and so does CE-U, which retains nothing either ({alone}; fine-tuned "
        f"{utility('fine-tuned')}). Gradient difference and PDU lose much of it too "
        f"({utility('gradient_difference')}, {utility('pdu')}).",
        f"- NPO keeps it ({utility('npo')}) and takes the answers' probability from "
        f"{of('fine-tuned', 'forget_probability')} to {of('npo', 'forget_probability')}; UNDIAL does better on both "
        f"({utility('undial')}, {of('undial', 'forget_probability')}). SimNPO keeps less than published "
        f"({utility('simnpo')}) and leaves {of('simnpo', 'forget_probability')}.",
        f"- Refusals hide: after IDK and DPO {of('idk', 'forget_refusal_rate')} and "
        f"{of('dpo', 'forget_refusal_rate')} of the forgotten questions are refused, and the answers still have "
        f"{of('idk', 'forget_probability')} and {of('dpo', 'forget_probability')}; IDK refuses "
        f"{of('idk', 'retain_refusal_rate')} of what should be kept, FT-M, which trains one layer until it refuses, "
        f"{of('ft_m', 'retain_refusal_rate')} (utility {utility('ft_m')}).",
        f"- Two methods do nothing with these settings, and their curves say why. RMU's forget loss goes from "
        f"{rmu[0]:.1f} to {rmu[1]:.1f}: its layer's states are that far from a steering vector of length 2, and "
        f"so few steps in three matrices do not move them. SatImp's is {abs(satimp[0]):.4f} from the start: its "
        f"importance is one minus the probability, and fine-tuning has taken that to "
        f"{of('fine-tuned', 'forget_probability')}.",
        f"- Forget quality is that of a model that never knew only where utility is gone (CE-U "
        f"{of('ceu', 'forget_quality')}, PDU {of('pdu', 'forget_quality')}); the base model has "
        f"{of('base', 'forget_quality')}.",
    ]


def cell(found: dict[str, Any], key: str) -> str:
    value = found.get(key)
    if "metrics" in found and key in found["metrics"]:
        value = found["metrics"][key]["value"]
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3f}" if abs(value) < 10 else f"{value:.0f}"


def tell(what: str, done: int, total: int) -> None:
    if done == total or done % 10 == 0:
        print(f"  {what} {done}/{total}", flush=True)


if __name__ == "__main__":
    main()
