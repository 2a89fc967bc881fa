"""Results of other projects as ours: lm-eval's `results_*.json` with its samples, and OpenUnlearning's `*_EVAL.json`.

Metrics of the same meaning get our names and directions; others keep theirs. What such a file does not say is null.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from unlearn_eval.results.schema import Metric, Result
from unlearn_eval.results.stored import Sample
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import Record, parse, read_text
from unlearn_eval.utils.provenance import sha256_of_file
from unlearn_eval.utils.schemas import MOST, OpenTable, validated

Object = dict[str, Any]

LM_EVAL, OPEN_UNLEARNING = "lm-eval", "OpenUnlearning"  # kinds of results
WRITERS = {LM_EVAL: "lm-evaluation-harness", OPEN_UNLEARNING: "OpenUnlearning"}
_AGGREGATE, _ITEMS = "agg_value", "value_by_index"
_RESULTS = re.compile(r"results_(?P<date>.+)\.json")
MOST_DIGITS = 300  # of a whole number that a float can hold
_FOLDERS = re.compile(r"evals?([_-].*)?|results?|checkpoint-.*")  # which say nothing of what they hold


def kind_of(content: object) -> str | None:
    """Which project wrote the content of a JSON file: `LM_EVAL`, `OPEN_UNLEARNING`, or None."""
    if not isinstance(content, dict) or "schema_version" in content:
        return None
    if isinstance(content.get("results"), dict) and isinstance(content.get("configs"), dict):
        return LM_EVAL
    known = (isinstance(log, dict) and _AGGREGATE in log for log in content.values())
    return OPEN_UNLEARNING if any(known) or _logged(content) else None


def read_content(path: Path) -> Any:
    """What a JSON file says, in which other projects may write NaN, here None; ours may not.

    Raises:
        UserError: as `json_files.parse`.
    """
    text = read_text(path, "result file")
    try:
        return parse(text, path, "the run was cut off, or it was edited: run it again", vast=True)
    except UserError:
        content = _with_nan(text)
        if kind_of(content) is None:
            raise
        return content


def _with_nan(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=lambda constant: None, parse_int=_whole)
    except (ValueError, RecursionError):
        return None


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"{digits[:20]}... is more than a number may be")
    return int(digits)


def foreign_result(content: Mapping[str, Any], kind: str, path: Path) -> Result:
    """The result in the content of a file of another project.

    Raises:
        UserError: it is not as that project writes it, or holds no metric.
    """
    result = _from_lm_eval(content, path) if kind == LM_EVAL else _from_open_unlearning(content, path)
    if not result.metrics:
        raise UserError(f"{path} holds no metrics of {WRITERS[kind]}", "name a file that an evaluation wrote")
    return result


def foreign_samples(result: Result, task: str, file: Path) -> list[Record]:
    """The samples of a task of such a result, as ours are."""
    if result.kind == OPEN_UNLEARNING:
        content = read_content(file)
        if kind_of(content) != OPEN_UNLEARNING:
            raise UserError(f"{file} is no log of {WRITERS[OPEN_UNLEARNING]}", "name its EVAL.json, as it was")
        harness = HarnessLog(content, file)
        return harness.samples(task) if harness.tasks else OpenUnlearningLog(content, file).samples(task)
    text = read_text(file, "file of samples")
    records = []
    for i, line in enumerate(text.split("\n"), 1):
        if line.strip():
            records.append(_record(_with_nan(line), f"{file}, line {i}"))
    return _sound(records, file)


def _record(record: object, place: str) -> Record:
    if not isinstance(record, dict) or not isinstance(record.get("doc_id"), int):
        raise UserError(f"{place}: not a sample of {WRITERS[LM_EVAL]}", "it was cut off: run it again")
    return {**record, "arguments": _listed(record.get("arguments"))}


def _sound(records: Sequence[Record], file: Path) -> list[Record]:
    samples = plain_samples(records)
    for record in samples:
        validated(Sample, record, f"{file}, doc_id {record['doc_id']}", "is not a sound sample", "run it again")
    return samples


# lm-eval ---------------------------------------------------------------------------------------------------


class LmEvalFile(OpenTable):
    """What is read of lm-eval's file of results."""

    results: dict[str, Object]
    configs: dict[str, Object]
    n_samples: dict[str, Object] = Field(default={}, alias="n-samples")
    higher_is_better: dict[str, Object] = {}
    config: Object = {}
    date: float | None = None
    git_hash: str | None = None
    lm_eval_version: str | None = None
    transformers_version: str | None = None
    model_name: str | None = None
    total_evaluation_time_seconds: str | float | None = None


def _from_lm_eval(content: Mapping[str, Any], path: Path) -> Result:
    wrong = f"is not as {WRITERS[LM_EVAL]} writes it"
    file = validated(LmEvalFile, dict(content), path, wrong, "run it again, or leave it out")
    results = {"results": file.results, "configs": file.configs, "n-samples": file.n_samples}
    metrics = metrics_of({**results, "higher_is_better": file.higher_is_better})
    config = file.config
    given = config.get("model_args")
    arguments = dict(given) if isinstance(given, dict) else _arguments(str(given or ""))
    name = arguments.get("pretrained") or arguments.get("model") or file.model_name
    seed = config.get("random_seed")
    return Result(
        kind=LM_EVAL,
        status="complete",
        created=_utc(file.date, path),
        config={"model_type": config.get("model"), "model_args": arguments, "tasks": file.configs},
        model={
            "id": None if name is None else str(name),
            "revision": _text(config.get("model_revision")),
            "dtype": _text(config.get("model_dtype")),
            "n_parameters": config.get("model_num_parameters"),
        },
        edit=_edit(config, arguments),
        data={task: {"hash": _data_hash(file.configs.get(task))} for task in metrics},
        metrics={task: own for task, own in metrics.items() if own},
        samples=_lm_eval_samples(path, list(file.results)),
        provenance={
            "written_by": " ".join([WRITERS[LM_EVAL], file.lm_eval_version or ""]).strip(),
            "git": {"commit": file.git_hash} if file.git_hash else {},
            "packages": {"transformers": file.transformers_version} if file.transformers_version else {},
        },
        seed=seed if isinstance(seed, int) and not isinstance(seed, bool) else None,
        timing=_seconds(file.total_evaluation_time_seconds),
        notes=[f"read from {path.name}, which {WRITERS[LM_EVAL]} wrote"],
        path=path,
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _data_hash(config: object) -> str | None:
    return _text(_table(_table(config).get("metadata")).get("data_hash"))


def _arguments(text: str) -> dict[str, Any]:
    """`NAME=VALUE,...`, as older releases store them."""
    pairs = (part.partition("=") for part in text.split(",") if "=" in part)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _edit(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """Which edit or adapter was in the model; its editor is there where it was one of ours."""
    folder = config.get("edit") or arguments.get("edit")
    if folder:
        return {"editor": str(config.get("editor") or "edit"), "config": {}, "folder": str(folder)}
    adapter = arguments.get("peft") or arguments.get("delta") or arguments.get("lora_local_path")
    return {"editor": "adapter", "config": {}, "folder": str(adapter)} if adapter else None


def _utc(seconds: float | None, path: Path) -> str:
    """When a run was made, or else its file."""
    try:
        found = path.stat().st_mtime if seconds is None else seconds
        return datetime.fromtimestamp(found, UTC).isoformat(timespec="seconds")
    except (OSError, OverflowError, ValueError) as error:
        raise UserError(f"{path}: {seconds} is no time", "run it again, or leave it out") from error


def _seconds(value: str | float | None) -> dict[str, float]:
    try:
        seconds = float(value or "nan")
    except ValueError:
        return {}
    return {"evaluation_seconds": seconds} if math.isfinite(seconds) and seconds >= 0 else {}


def _lm_eval_samples(path: Path, tasks: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The files of samples beside a file of results: of the same moment, one for each task."""
    named = _RESULTS.fullmatch(path.name) or re.fullmatch(r".+_(?P<date>\d{4}-\d\d-\d\dT[\d.-]+)\.json", path.name)
    found = {}
    for task in tasks if named else ():
        name = f"samples_{task}_{named['date']}.jsonl" if named else ""
        if "/" not in name and "\\" not in name and "\0" not in name and len(name) < 250:
            file = path.parent / name
            if file.is_file():
                n = sum(1 for line in file.read_bytes().split(b"\n") if line.strip())
                found[task] = {"file": name, "sha256": sha256_of_file(file), "n": n}
    return found


def _listed(arguments: object) -> object:
    """`{"gen_args_0": {"arg_0": ...}}` as the lists that it was."""
    if not isinstance(arguments, dict):
        return arguments
    return [list(own.values()) if isinstance(own, dict) else own for own in arguments.values()]


def metrics_of(results: Mapping[str, Any]) -> dict[str, dict[str, Metric]]:
    """lm-eval's table of results, from its file or from `simple_evaluate`, as metrics by task and name."""
    metrics = {}
    for task, values in results["results"].items():
        scoring = _table(_table(results["configs"].get(task, {}).get("metadata")).get("scoring"))
        usual = {"n": n_documents(results, task)}
        directions = results["higher_is_better"].get(task, {})
        metrics[task] = {
            _name(key): _metric(values, key, _table(scoring.get(_name(key), usual)), directions)
            for key in values
            if "," in key and not key.partition(",")[0].endswith("_stderr")
        }
    return metrics


def n_documents(results: Mapping[str, Any], task: str) -> int | None:
    """How many documents of a task lm-eval evaluated, None of a group or where it does not say."""
    n = results["n-samples"].get(task, {}).get("effective")
    return n if isinstance(n, int) and abs(n) <= MOST else None


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _name(key: str) -> str:
    metric, _, filter_name = key.partition(",")
    return metric if filter_name in ("none", "") else f"{metric} ({filter_name})"


def _metric(values: Mapping[str, Any], key: str, report: Mapping[str, Any], directions: Mapping[str, Any]) -> Metric:
    metric, _, filter_name = key.partition(",")
    value = _finite(values[key])
    error = None if value is None else _finite(values.get(f"{metric}_stderr,{filter_name}"))
    n, unscored, direction = report.get("n"), report.get("n_unscored", 0), directions.get(metric)
    return Metric(
        value=value,
        stderr=None if error is None or error < 0 else error,
        n=n if isinstance(n, int) and 0 <= n <= MOST else None,
        n_unscored=unscored if isinstance(unscored, int) and 0 <= unscored <= MOST else 0,
        reason=None if value is not None else str(report.get("reason") or f"lm-eval gives {values[key]!r}")[:2000],
        higher_is_better=direction if isinstance(direction, bool) else None,
    )


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e300:
        return None
    return float(value)


def plain_samples(records: Sequence[Mapping[str, Any]]) -> list[Record]:
    """lm-eval's records with the item's id in front, and without what stands in them twice."""
    plain = []
    for record in records:
        own = {key: value for key, value in record.items() if key != "filtered_resps"}
        document = record.get("doc")
        key = document.get("id", record["doc_id"]) if isinstance(document, dict) else record["doc_id"]
        plain.append({"id": key, **own})
    return sorted(plain, key=lambda record: record["doc_id"])


# OpenUnlearning --------------------------------------------------------------------------------------------

_SPLITS = {"forget": "forget", "retain": "retain", "ra": "real_authors", "wf": "world_facts"}
_TOFU = {  # their name -> ours, and which direction is better
    "forget_Q_A_Prob": ("forget_probability", False),
    "forget_Q_A_PARA_Prob": ("forget_paraphrase_probability", False),
    "forget_Q_A_ROUGE": ("forget_rouge", False),
    "forget_truth_ratio": ("forget_truth_ratio", True),
    "extraction_strength": ("forget_extraction_strength", False),
    "exact_memorization": ("forget_exact_memorization", False),
    "forget_quality": ("forget_quality", True),
    "retain_Q_A_Prob": ("retain_probability", True),
    "ra_Q_A_Prob_normalised": ("real_authors_probability", True),
    "wf_Q_A_Prob_normalised": ("world_facts_probability", True),
    **{f"{own}_Q_A_ROUGE": (f"{_SPLITS[own]}_rouge", True) for own in ("retain", "ra", "wf")},
    **{f"{own}_Truth_Ratio": (f"{_SPLITS[own]}_truth_ratio", True) for own in ("retain", "ra", "wf")},
    "model_utility": ("model_utility", True),
}
_MUSE = {
    "forget_knowmem_ROUGE": ("forget_knowledge_rouge_f1", False),
    "retain_knowmem_ROUGE": ("retain_knowledge_rouge_f1", True),
    "forget_verbmem_ROUGE": ("forget_verbatim_rouge_f1", False),
    "extraction_strength": ("forget_verbatim_extraction_strength", False),
    "exact_memorization": ("forget_verbatim_exact_memorization", False),
}
_TOFU_TASKS = {40: "unlearn_tofu_forget01", 200: "unlearn_tofu_forget05"}  # by the number of items
_CORPORA = re.compile(r"(?<![a-z])(news|books)(?![a-z])", re.IGNORECASE)  # only the folders say which
_READINGS: tuple[tuple[str, Callable[[float], float]], ...] = (  # of an item, of which the aggregate is the mean
    *((field, float) for field in ("score", "prob", "rougeL_recall", "rougeL_f1", "rouge1_recall")),
    ("score", lambda ratio: min(ratio, 1 / (ratio + 1e-10))),  # truth ratios: of what is forgotten,
    ("score", lambda ratio: max(0.0, 1 - ratio)),  # and of the rest
)


@dataclass(frozen=True)
class OpenUnlearningLog:
    """A log of OpenUnlearning: by metric, its aggregate and what it is of each item.

    Attributes:
        content: as JSON has it.
        path: the file.
    """

    content: Mapping[str, Any]
    path: Path

    def _log(self, metric: str) -> Mapping[str, Any]:
        log = self.content.get(metric, {})
        if not isinstance(log, dict):
            raise self._damaged(metric)
        return log

    def _damaged(self, metric: str) -> UserError:
        return UserError(
            f"{self.path} is not as OpenUnlearning writes it: see {metric[:60]}", "name its TOFU_EVAL.json, as it was"
        )

    def aggregate(self, metric: str) -> float | None:
        """The metric's value, None if it is not there or undefined."""
        value = self._log(metric).get(_AGGREGATE)
        if isinstance(value, list | dict | str | bool):
            raise self._damaged(metric)
        return _finite(value)

    def items(self, metric: str) -> dict[str, Mapping[str, Any]]:
        """What the log holds of each item, by its place in the split; without those that are lists."""
        items = self._log(metric).get(_ITEMS) or {}
        if not isinstance(items, dict):
            raise self._damaged(metric)
        return {place: item for place, item in items.items() if isinstance(item, dict)}

    def values(self, metric: str, field: str, needed: bool = False) -> dict[str, float]:
        """One field of each item that has it; if it is needed, items without it are an error."""
        items = self.items(metric)
        if needed and not all(isinstance(item.get(field, ""), float | int | None) for item in items.values()):
            raise self._damaged(metric)
        found = {place: _finite(item.get(field)) for place, item in items.items()}
        return {place: value for place, value in found.items() if value is not None}

    def scores(self, metric: str) -> dict[str, float]:
        """The scores of which the aggregate is the mean, by item; none where it is a mean of nothing that is there."""
        aggregate = self.aggregate(metric)
        if aggregate is None:
            return {}
        for field, reading in _READINGS:
            if any(field in item for item in self.items(metric).values()):
                values = {place: reading(value) for place, value in self.values(metric, field).items()}
                if values and math.isclose(statistics.fmean(values.values()), aggregate, rel_tol=1e-4, abs_tol=1e-6):
                    return values
        return {}

    @cached_property
    def places(self) -> dict[str, tuple[str, str, bool | None]]:
        """Their name of a metric -> task, our name, and direction."""
        known = _MUSE if any("knowmem" in name or "verbmem" in name for name in self.content) else _TOFU
        sizes = {len(self.items(name)) for name in self.content if name in known and name.startswith("forget")}
        task = _TOFU_TASKS.get(max(sizes, default=0), "unlearn_tofu")
        if known is _MUSE:
            corpora = {own.lower() for own in _CORPORA.findall(str(self.path.resolve().parent))}
            task = "_".join(["unlearn_muse", *corpora]) if len(corpora) == 1 else "unlearn_muse"
        private = task if known is _MUSE else "unlearn_tofu_privacy"
        found: dict[str, tuple[str, str, bool | None]] = {}
        for name, log in self.content.items():
            if not isinstance(log, dict) or _AGGREGATE not in log:
                continue
            if name.startswith("mia_"):
                found[name] = private, f"{name}_auc", None
            elif name == "privleak":
                found[name] = private, name, None
            else:
                found[name] = task, *known.get(name, (name, None))
        return found

    def metrics(self) -> dict[str, dict[str, Metric]]:
        """The metrics by task and name."""
        found: dict[str, dict[str, Metric]] = {}
        for name, (task, own, direction) in self.places.items():
            value, items, scores = self.aggregate(name), self.items(name), self.scores(name)
            n = len(scores)
            found.setdefault(task, {})[own] = Metric(
                value=value,
                stderr=statistics.stdev(scores.values()) / math.sqrt(n) if n > 1 else None,
                n=n or None,
                n_unscored=len(items) - n if n else 0,
                reason=None if value is not None else f"{WRITERS[OPEN_UNLEARNING]} gives no value",
                higher_is_better=direction,
            )
        return found

    def samples(self, task: str) -> list[Record]:
        """A record for each item of a task: its scores, and where something was generated the question and the text."""
        records: dict[str, Record] = {}
        for name, own, split in self._itemized(task):
            scores = self.scores(name)
            for place, item in self.items(name).items():
                key = f"{split}/{place}"
                record = records.setdefault(key, {"id": key, "doc": {"split": split}, "metrics": {}})
                record["metrics"][own] = scores.get(place)
                if isinstance(item.get("generation"), str):
                    record["doc"] |= {"question": str(item.get("input")), "answer": str(item.get("ground_truth"))}
                    record["resps"] = [[item["generation"]]]
        return list(records.values())

    def _itemized(self, task: str) -> Iterator[tuple[str, str, str]]:
        """The metrics of a task that are means over items: their name, ours, and the items' split."""
        for name, (where, own, _) in self.places.items():
            if where == task and self.scores(name):
                split = "forget" if name in ("extraction_strength", "exact_memorization") else name.partition("_")[0]
                yield name, own, _SPLITS.get(split, split)


def _logged(content: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The samples by task in a log of OpenUnlearning's runs of lm-eval, which keeps them below the name of each run."""
    return {
        task: records
        for log in content.values()
        if isinstance(log, dict)
        for task, records in log.items()
        if isinstance(records, list) and records and isinstance(records[0], dict) and "doc_id" in records[0]
    }


@dataclass(frozen=True)
class HarnessLog:
    """`LMEval_EVAL.json`, where OpenUnlearning keeps lm-eval's samples, with the `LMEval_SUMMARY.json` beside it.

    Attributes:
        content: as JSON has it.
        path: the file.
    """

    content: Mapping[str, Any]
    path: Path

    @cached_property
    def tasks(self) -> dict[str, list[Record]]:
        """The samples of each task, as lm-eval gives them."""
        return {
            task: [_record(record, f"{self.path}, {task}, sample {i}") for i, record in enumerate(records)]
            for task, records in _logged(self.content).items()
        }

    @cached_property
    def summary(self) -> dict[tuple[str, str], float | None]:
        """The values of tasks and groups, by task and metric; none without a summary."""
        path = self.path.with_name(self.path.name.replace("_EVAL", "_SUMMARY"))
        content = _with_nan(read_text(path, "summary")) if path != self.path and path.is_file() else {}
        pairs = {key.rpartition("/")[::2]: _finite(value) for key, value in _table(content).items()}
        return {pair: value for pair, value in pairs.items() if pair[0]}

    def samples(self, task: str) -> list[Record]:
        """The samples of a task, as ours are."""
        return _sound(self.tasks[task], self.path)

    def metrics(self) -> dict[str, dict[str, Metric]]:
        """The summary's metrics, and for those that it lacks (of tasks of a group, of filters) means over samples."""
        found = {task: _means(records) for task, records in self.tasks.items()}
        for (task, name), value in self.summary.items():
            filters = {record.get("filter") for record in self.tasks.get(task, ())}
            if not name.endswith("_stderr") and len(filters) <= 1:  # of several, it has one value and not its filter
                error = None if value is None else self.summary.get((task, f"{name}_stderr"))
                stderr = None if error is None or error < 0 else error
                n = len(self.tasks[task]) if task in self.tasks else None
                reason = None if value is not None else f"{WRITERS[OPEN_UNLEARNING]} gives no value"
                found.setdefault(task, {})[name] = Metric(value=value, stderr=stderr, n=n, reason=reason)
        return {task: metrics for task, metrics in found.items() if metrics}


def _means(records: Sequence[Record]) -> dict[str, Metric]:
    """The means of samples' metrics that are shares of 1; others may be summed up otherwise, and are null."""
    values: dict[str, list[float | None]] = {}
    for record in records:
        named = record.get("metrics")
        for metric in named if isinstance(named, list) else ():
            key = _name(f"{metric},{record.get('filter', 'none')}")
            values.setdefault(key, []).append(_finite(record.get(str(metric))))
    found = {}
    for name, own in values.items():
        known = [value for value in own if value is not None]
        n = len(known)
        if known and all(0 <= value <= 1 for value in known):
            stderr = statistics.stdev(known) / math.sqrt(n) if n > 1 else None
            found[name] = Metric(value=statistics.fmean(known), stderr=stderr, n=n, n_unscored=len(own) - n)
        else:
            reason = "the summary does not have it, and its samples are not shares of 1, whose mean it would be"
            found[name] = Metric(value=None, n=n, n_unscored=len(own) - n, reason=reason)
    return found


def _from_open_unlearning(content: Mapping[str, Any], path: Path) -> Result:
    harness = HarnessLog(content, path)
    log = harness if harness.tasks else OpenUnlearningLog(content, path)
    metrics = log.metrics()
    counts = {task: len(log.samples(task)) for task in metrics if log is not harness or task in harness.tasks}
    folders = (folder for folder in path.resolve().parent.parts[::-1] if not _FOLDERS.fullmatch(folder))
    sha256 = sha256_of_file(path)
    return Result(
        kind=OPEN_UNLEARNING,
        status="complete",
        created=_utc(None, path),
        config={"run": next(folders, "")},
        data={task: {"hash": None} for task in metrics},
        metrics=metrics,
        samples={task: {"file": path.name, "sha256": sha256, "n": n} for task, n in counts.items() if n},
        provenance={"written_by": WRITERS[OPEN_UNLEARNING]},
        notes=[
            f"read from {path.name}, which {WRITERS[OPEN_UNLEARNING]} wrote; it names neither model nor method",
            "the time is that of the file",
        ],
        path=path,
    )
