"""The retain-only model's scores on the forget set: what forget quality and privleak compare with.

A reference is a file: our result of the task (with its samples beside it), the samples that
`lm_eval --log_samples` wrote, or OpenUnlearning's `TOFU_EVAL.json`; or the folder of a model that
`unlearn-eval finetune` made, where its scores lie as `retain_reference.json`. It is named by
`--metadata '{"retain_reference": PATH}'` or by the variable `UNLEARN_EVAL_RETAIN_REFERENCE`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearn_eval.results.foreign import OpenUnlearningLog
from unlearn_eval.utils.errors import UserError

REFERENCE_VARIABLE = "UNLEARN_EVAL_RETAIN_REFERENCE"
ATTACKS = ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus")
STORED = "retain_reference.json"
PROBABILITY, OPEN_UNLEARNING_PROBABILITY = "forget_probability", "forget_Q_A_Prob"  # ours, and OpenUnlearning's name
OPEN_UNLEARNING_LOSSES = "forget_Q_A_PARA_Prob"
OPEN_UNLEARNING_KEYS = frozenset({"forget_truth_ratio", *ATTACKS})
ABSENT = f"no retain reference (give --metadata retain_reference or set {REFERENCE_VARIABLE})"


@dataclass(frozen=True)
class RetainReference:
    """What a retain-only model scored.

    Attributes:
        log_truth_ratios: id of a forget item -> ln of its raw truth ratio.
        aucs: names of membership inference metrics -> their values.
        path: where this was read.
        correct_nlls: id of a forget item -> mean loss of its right (paraphrased) answer; empty if the file has none.
        probability: mean probability per token of the answers; None if the file does not have it.
    """

    log_truth_ratios: dict[str, float]
    aucs: dict[str, float]
    path: str
    correct_nlls: dict[str, float] = field(default_factory=dict)
    probability: float | None = None


def find_reference(metadata: Mapping[str, Any]) -> RetainReference | None:
    """The reference that the run names, None if it names none."""
    named = metadata.get("retain_reference") or os.environ.get(REFERENCE_VARIABLE)
    return read_reference(Path(str(named)).expanduser()) if named else None


def read_reference(path: Path) -> RetainReference:
    """Read a reference from any of the kinds of file, or from the folder of a retain-only model.

    Raises:
        UserError: the file is missing, is not JSON, or holds no truth ratios and no membership AUCs.
    """
    if path.is_dir():
        path = path / STORED
    if not path.is_file():
        raise UserError(f"the retain reference {path} does not exist", "name a result file of the retain-only model")
    if path.suffix == ".jsonl":
        return _from_samples(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"the retain reference {path} is not JSON: {error}", "was its run cut off?") from error
    known = content.keys() if isinstance(content, dict) else set()
    if "log_truth_ratios" in known:
        reference = _stored(content, path)
    elif OPEN_UNLEARNING_KEYS & known:
        reference = _from_open_unlearning(OpenUnlearningLog(content, path))
    else:
        reference = _from_result(path)
    if not reference.log_truth_ratios and not reference.aucs:
        raise UserError(
            f"{path} holds neither truth ratios of forget items nor membership AUCs",
            "evaluate the retain-only model with the same task and name that result file",
        )
    return reference


def _stored(content: Mapping[str, Any], path: Path) -> RetainReference:
    """What `tofu_reference.measure` found."""
    try:
        ratios = {str(key): float(value) for key, value in content["log_truth_ratios"].items()}
        aucs = {str(key): float(value) for key, value in content.get("aucs", {}).items()}
        losses = {str(key): float(value) for key, value in content.get("correct_nlls", {}).items()}
        probability = None if content.get("probability") is None else float(content["probability"])
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__}: {error}", "make it again") from error
    return RetainReference(ratios, aucs, str(path), losses, probability)


def _from_result(path: Path) -> RetainReference:
    from unlearn_eval.results.files import read_result, read_samples

    result = read_result(path)
    ratios: dict[str, float] = {}
    losses: dict[str, float] = {}
    aucs: dict[str, float] = {}
    probability = None
    for task, metrics in result.metrics.items():
        if PROBABILITY in metrics:
            probability = metrics[PROBABILITY].value
        aucs |= {n: m.value for n, m in metrics.items() if n.endswith("_auc") and m.value is not None}
        if task in result.samples:
            samples = read_samples(path, task)
            ratios |= _scores_of(samples, "log_truth_ratio")
            losses |= _scores_of(samples, "correct_nll")
    return RetainReference(ratios, aucs, str(path), losses, probability)


def _from_samples(path: Path) -> RetainReference:
    from unlearn_eval.utils.json_files import read_jsonl

    samples = read_jsonl(path)
    ratios = _scores_of(samples, "log_truth_ratio")
    if not ratios:
        raise UserError(f"{path} holds no truth ratios of forget items", "name the samples of unlearn_tofu")
    return RetainReference(ratios, {}, str(path), _scores_of(samples, "correct_nll"))


def _scores_of(samples: list[dict[str, Any]], key: str) -> dict[str, float]:
    """A score of each forget item that has it, by id."""
    found = (sample.get("forget_quality") for sample in samples)
    return {str(item["id"]): float(item[key]) for item in found if isinstance(item, dict) and item.get(key) is not None}


def _from_open_unlearning(log: OpenUnlearningLog) -> RetainReference:
    """OpenUnlearning stores raw ratios by position in the split; ours are called `forget/POSITION`."""
    ratios = {
        f"forget/{place}": math.log(max(ratio, 1e-300))
        for place, ratio in log.values("forget_truth_ratio", "score", needed=True).items()
    }
    losses = {f"forget/{place}": loss for place, loss in log.values(OPEN_UNLEARNING_LOSSES, "avg_loss").items()}
    aucs = {f"{name}_auc": auc for name in ATTACKS if (auc := log.aggregate(name)) is not None}
    return RetainReference(ratios, aucs, str(log.path), losses, log.aggregate(OPEN_UNLEARNING_PROBABILITY))
