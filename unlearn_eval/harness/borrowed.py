"""lm-eval's own tasks inside one of ours: what is there is asked, what is not there is missing with the reason.

lm-eval ends a run when the data of one of its tasks cannot be had. A `Bundle` is one lm-eval task made of a task of
ours and of lm-eval's own task objects, which build their requests, filter the answers and score them as in any run:
the numbers are lm-eval's. All stand in one table and one file of samples, so that two results are compared by item.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean, stderr_for_metric
from lm_eval.api.task import Task

from unlearn_eval.harness.task import Absent, Aggregation, Document, UnlearningTask
from unlearn_eval.harness.task_index import others_if_nowhere
from unlearn_eval.utils.errors import UserError, unknown_name

PARTS_HINT = 'for example {"parts": ["arc_easy"]}, {"parts": {"mine": "mine.yaml"}}, or {"parts": []} for none'
RESAMPLES = 1000
# lm-eval's perplexities are of all documents together. This loss is the mean over documents, so it can be paired.
BITS, NATS = "bits_per_byte", "nats_per_byte"
HAS_SCORERS = hasattr(Task, "process_instances")  # from lm-eval 0.5 on, a task filters, scores and aggregates by itself


@dataclass(frozen=True)
class Part:
    """One or more of lm-eval's tasks, whose documents count as one set.

    Attributes:
        name: what its metrics' names begin with.
        tasks: lm-eval's task objects, by their names.
        reason: why there are none, or None.
    """

    name: str
    tasks: Mapping[str, Any]
    reason: str | None = None

    def metrics(self) -> dict[str, BorrowedMetric | Absent]:
        """Every metric of every filter; of several tasks, over all of their documents."""
        if self.reason is not None:
            return {self.name: Absent(self.reason)}
        table: dict[str, BorrowedMetric | Absent] = {
            metric_name(self.name, key, filter_name): BorrowedMetric(function, task.higher_is_better().get(key))
            for task in self.tasks.values()
            for filter_name, functions in _aggregations(task)
            for key, function in functions.items()
        }
        if any(BITS in task.aggregation() for task in self.tasks.values()):
            table[f"{self.name}_{NATS}"] = BorrowedMetric(mean, False)
        return table

    def scores(self, by_filter: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """What a document contributes to each metric, from its scores by filter."""
        found: dict[str, Any] = {}
        for filter_name, own in by_filter.items():
            found |= {metric_name(self.name, key, filter_name): value for key, value in own.items()}
            if BITS in own:
                log_likelihood, n_bytes = own[BITS]
                found[f"{self.name}_{NATS}"] = -log_likelihood / n_bytes
        return found


def _aggregations(task: Any) -> Iterator[tuple[str, dict[str, Callable[[list[Any]], Any]]]]:
    """Each filter's name, and how each of its metrics is aggregated."""
    if not HAS_SCORERS:
        yield from ((ensemble.name, task.aggregation()) for ensemble in task._filters)
        return
    overridden = task.aggregation() if type(task).aggregation is not Task.aggregation else {}
    for scorer in task.scorers:
        yield scorer.name, overridden | {m.name: m.aggregation for m in scorer.metrics or () if m.aggregation}


def _scores(task: Any, number: int, doc: Any, answers: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """A document's scores by filter, as lm-eval's task computes them."""
    if HAS_SCORERS:  # it has scored all of its documents by now
        return {scorer.name: scorer.reduced_docs[number] for scorer in task.scorers}
    names = [ensemble.name for ensemble in task._filters]
    return {name: task.process_results(doc, [by_filter[name] for by_filter in answers]) for name in names}


@dataclass(frozen=True)
class BorrowedMetric:
    """A metric as lm-eval aggregates it.

    Attributes:
        function: of the contributions of all documents.
        higher_is_better: its direction.
    """

    function: Callable[[list[Any]], Any]
    higher_is_better: bool | None

    def aggregate(self, items: Sequence[Any]) -> tuple[float | None, float | None, str | None]:
        """(value, standard error, None)."""
        own = list(items)
        spread = stderr_for_metric(self.function, RESAMPLES) if len(own) > 1 else None
        return float(self.function(own)), float(spread(own)) if spread else None, None


def metric_name(part: str, metric: str, filter_name: str) -> str:
    """`arc_easy_acc_norm`; of a named filter also that: `gsm8k_exact_match_strict_match`."""
    name = f"{part}_{metric}" + ("" if filter_name == "none" else f"_{filter_name}")
    return re.sub(r"\W+", "_", name)


# Loading ---------------------------------------------------------------------------------------------------


def load_parts(wanted: Any, shots: Any = None) -> list[Part]:
    """The parts that a run's metadata names, each whole or missing.

    Args:
        wanted: names of lm-eval's tasks or groups, or paths of YAML files; or a mapping, part -> one or several.
        shots: examples in the prompt, for all parts or by part; None leaves what each task says.

    Raises:
        UserError: it is no list or mapping, a name is unknown, or a task runs code or reads images.
    """
    if isinstance(wanted, str):
        wanted = [wanted]
    named = dict(wanted) if isinstance(wanted, Mapping) else {_stem(name): name for name in _texts(wanted)}
    counts = shots if isinstance(shots, Mapping) else dict.fromkeys(named, shots)
    if unknown := [name for name in counts if name not in named]:
        raise unknown_name("part", str(unknown[0]), named)
    return [_load(str(name), _texts(tasks), counts.get(name)) for name, tasks in named.items()]


def _texts(value: Any) -> list[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, Sequence) or not all(isinstance(text, str) and text for text in values):
        raise UserError(f"parts holds {value!r}, which names no task of lm-eval", PARTS_HINT)
    return list(values)


def _stem(name: str) -> str:
    return Path(name).stem if _is_file(name) else name


def _is_file(name: str) -> bool:
    return Path(name).suffix in (".yaml", ".yml")


def _load(name: str, tasks: Sequence[str], shots: Any) -> Part:
    if shots is not None and (isinstance(shots, bool) or not isinstance(shots, int) or shots < 0):
        raise UserError(f"num_fewshot of {name} is {shots!r}", "give a whole number, or leave it out")
    found: dict[str, Any] = {}
    for task in tasks:
        manager = _manager(task)
        try:
            for key, one in manager.load([task])["tasks"].items():
                _ = one.eval_docs  # lm-eval 0.5 loads them only now
                found[key.rpartition("::")[2]] = one  # and writes GROUP::TASK
        except Exception as error:  # datasets, the hub and the tasks' own code raise many kinds
            text = " ".join(str(error).split())[:300]
            return Part(name, {}, f"{task} could not be loaded: {type(error).__name__}: {text}")
    for key, task in found.items():
        _check(name, key, task)
        _set_shots(task, shots)
    return Part(name, found)


def _manager(name: str) -> Any:
    """A task manager that knows the task; lm-eval's whole index takes seconds, so its likely folder is tried first.

    Raises:
        UserError: there is no such task or file.
    """
    import lm_eval.tasks as theirs
    from lm_eval.tasks import TaskManager

    if _is_file(name):
        if not Path(name).expanduser().is_file():
            raise UserError(f"there is no task file {name}", PARTS_HINT)
        return TaskManager(include_defaults=False)
    folder = Path(theirs.__file__).parent / name.split("_")[0]
    if folder.is_dir():
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        if name in manager.all_tasks:
            return manager
    if (others := others_if_nowhere(name, None)) is not None:
        raise unknown_name("task of lm-eval", name, sorted(others))
    manager = TaskManager()
    if name not in manager.all_tasks:
        raise unknown_name("task of lm-eval", name, manager.all_tasks)
    return manager


def _check(part: str, name: str, task: Any) -> None:
    if isinstance(task, UnlearningTask | Bundle):
        raise UserError(f"the part {part} is one of our own tasks", f"ask for it beside this one: --tasks ...,{name}")
    if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
        raise UserError(f"the part {part} runs code that a model writes, or reads images", "run it with lm_eval itself")


def _set_shots(task: Any, shots: int | None) -> None:
    """As lm-eval does: what is 0 in a task's own file stays so."""
    own = task.get_config("num_fewshot")
    if own is None or (shots is not None and own != 0):
        task.set_config(key="num_fewshot", value=shots or 0)


# One task of several ---------------------------------------------------------------------------------------


_SHARED = "_scorers" if HAS_SCORERS else "_filters"  # what lm-eval's evaluator reads of a task beside its methods


class Bundle(Task):  # type: ignore[misc]
    """An lm-eval task made of one of ours and of parts from lm-eval.

    `--limit N` takes N documents of each split of ours and N of each of lm-eval's tasks, as lm-eval does (a fraction is
    taken of our own documents, and the number that it makes holds for all).

    Args:
        own: our task; the configuration, the version and the reports are its own.
        parts: lm-eval's tasks.
        limit: at most so many documents of each of lm-eval's tasks.

    Raises:
        UserError: two metrics have one name, or the limit is no whole number above 0.
    """

    def __init__(self, own: UnlearningTask, parts: Sequence[Part], limit: Any = None) -> None:
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise UserError(f"part_limit is {limit!r}", "give a whole number above 0, or leave it out")
        self.own, self.parts, self.limit = own, parts, limit
        self._config, self.VERSION, self.OUTPUT_TYPE = own.config, own.VERSION, own.OUTPUT_TYPE
        setattr(self, _SHARED, getattr(own, _SHARED))
        self._borrowed = {name: (part, task) for part in parts for name, task in part.tasks.items()}
        if len(self._borrowed) < sum(len(part.tasks) for part in parts):
            raise UserError("one task of lm-eval is in two parts", "name it once")
        self._metrics: dict[str, Any] = {}
        tables: list[Mapping[str, Any]] = [own._metrics, *(part.metrics() for part in parts)]
        for table in tables:
            if twice := sorted(set(table) & set(self._metrics)):
                raise UserError(f"two parts have a metric called {twice[0]}", "give the parts other names")
            self._metrics |= table
        self._asked: dict[str, Any] = {}
        self._first: dict[str, int] = {}  # the number of each borrowed task's first document
        n = len(own.eval_docs)
        for name, (_, task) in self._borrowed.items():
            self._first[name] = n
            n += len(task.eval_docs)

    def _limits(self, limit: int | None) -> tuple[int | None, int | None]:
        """How many documents of ours, and of each of lm-eval's tasks."""
        known = [n for n in (limit, self.limit) if n is not None]
        ours = limit and sum(min(limit, size) for size in self.own.split_sizes.values())  # splits take turns
        return ours, min(known, default=None)

    def build_all_requests(self, *, limit: int | None = None, samples: Any = None, **options: Any) -> None:
        """The requests of all; documents are numbered through."""
        if samples is not None:
            raise UserError(f"{self.task_name} takes no --samples", "use --limit")
        ours, theirs = self._limits(limit)
        options = self.own.as_planned(options)
        self.own.build_all_requests(limit=ours, **options)
        self._metrics |= self.own._metrics  # of a model that thinks there are more
        self._asked = {
            "chat": bool(options.get("apply_chat_template")),
            "system_instruction": options.get("system_instruction"),
            "fewshot_as_multiturn": bool(options.get("fewshot_as_multiturn")),
        }
        instances: list[Instance] = list(self.own.instances)
        for name, (_, task) in self._borrowed.items():
            task.build_all_requests(limit=theirs, **options)
            for instance in task.instances:
                instance.doc_id += self._first[name]
            instances += task.instances
        self._instances = instances

    def doc_iterator(
        self, *, rank: int = 0, limit: int | None = None, world_size: int = 1, samples: Any = None
    ) -> Iterator[tuple[int, Document]]:
        """Number and document of all that is asked; a borrowed one is `{"id", "task", "doc"}`."""
        ours, theirs = self._limits(limit)
        yield from self.own.doc_iterator(rank=rank, limit=ours, world_size=world_size)
        for name, (_, task) in self._borrowed.items():
            for i, doc in task.doc_iterator(rank=rank, limit=theirs, world_size=world_size):
                yield self._first[name] + i, {"id": f"{name}/{i}", "task": name, "doc": doc}

    def apply_filters(self) -> None:
        """Each task's own; the answers of lm-eval's are kept by filter."""
        self.own.apply_filters()
        for _, task in self._borrowed.values():
            if task.instances:  # a process may have none
                task.apply_filters()
            for instance in task.instances:
                instance.filtered_resps = {"none": dict(instance.filtered_resps)}

    def process_instances(self) -> None:
        """What lm-eval 0.5 calls in place of filters and `process_results`."""
        self.own.apply_filters()
        for name, (_, task) in self._borrowed.items():
            if task.instances:
                task.process_instances()
            for instance in task.instances:
                i = instance.doc_id - self._first[name]
                instance.doc = {"id": f"{name}/{i}", "task": name, "doc": instance.doc}
        asked: dict[int, list[Instance]] = {}
        for instance in self._instances:
            asked.setdefault(instance.doc_id, []).append(instance)
        scored = {}
        for number, requests in asked.items():
            doc, target = requests[0].doc, requests[0].target
            results = [] if "task" in doc else [r for request in requests for r in request.filtered_resps["none"]]
            own = self.process_results(doc, results)
            scored[number] = _scored_doc(number, target, {name: [value] for name, value in own.items()})
        self._scorers[0].set_results(scored)

    def process_results(self, doc: Document, results: Sequence[Any]) -> dict[str, Any]:
        """Every metric's contribution of one document, None where it has none."""
        if self.own.only_predicts:
            return dict.fromkeys(self.own.aggregation(), 0)
        found: dict[str, Any] = dict.fromkeys(self._metrics)
        if "task" not in doc:
            return found | self.own.process_results(doc, results)
        part, task = self._borrowed[doc["task"]]
        number = self._first[doc["task"]] + int(doc["id"].rpartition("/")[2])
        found |= part.scores(_scores(task, number, doc["doc"], results))
        return {name: found[name] for name in self._metrics}

    def aggregation(self) -> dict[str, Callable[..., Any]]:
        """One callable per metric, with a `stderr` of its own."""
        if self.own.only_predicts:
            return self.own.aggregation()
        return {name: Aggregation(name, metric, self.own._reports) for name, metric in self._metrics.items()}

    def higher_is_better(self) -> dict[str, bool | None]:
        """The direction of every metric."""
        if self.own.only_predicts:
            return self.own.higher_is_better()
        return {name: metric.higher_is_better for name, metric in self._metrics.items()}

    def set_config(self, key: str, value: Any, update: bool = False) -> None:
        """lm-eval sets how to generate, for all that generate; examples are a setting of the parts."""
        if key == "num_fewshot":
            self.own.set_config(key=key, value=value, update=update)
            return
        for task in (self.own, *(task for _, task in self._borrowed.values())):
            if key != "generation_kwargs" or task.get_config("output_type") == "generate_until":
                task.set_config(key=key, value=value, update=update)

    def set_num_fewshot(self, num_fewshot: int) -> None:
        """As lm-eval 0.5 sets it."""
        self.set_config("num_fewshot", num_fewshot)

    def override_metric(self, metric_name: str) -> None:
        """lm-eval's `--predict_only`: nothing is scored."""
        self.own.override_metric(metric_name)

    def set_fewshot_seed(self, seed: int | None = None) -> None:
        """The seed by which examples are chosen."""
        for task in (self.own, *(task for _, task in self._borrowed.values())):
            task.set_fewshot_seed(seed=seed)

    def dump_config(self) -> dict[str, Any]:
        """Our configuration, how everything was asked, and what lm-eval's tasks are or why they are missing."""
        config: dict[str, Any] = self.own.dump_config()
        config["metadata"] |= {"asked": self._asked, "borrowed": {part.name: _description(part) for part in self.parts}}
        return config

    # What lm-eval asks of any task -------------------------------------------------------------------------

    @property
    def eval_docs(self) -> Any:
        """Our own documents."""
        return self.own.eval_docs

    @property
    def task_name(self) -> str:
        """The name in the table."""
        return str(self.own.config.task)

    def doc_to_text(self, doc: Document) -> Any:
        """The question."""
        return self._borrowed[doc["task"]][1].doc_to_text(doc["doc"]) if "task" in doc else self.own.doc_to_text(doc)

    def doc_to_target(self, doc: Document) -> Any:
        """The answer."""
        if "task" in doc:
            return self._borrowed[doc["task"]][1].doc_to_target(doc["doc"])
        return self.own.doc_to_target(doc)

    def construct_requests(self, doc: Document, ctx: str, **kwargs: Any) -> list[Instance]:
        """Of our own documents; lm-eval's tasks make theirs themselves."""
        return self.own.construct_requests(doc, ctx, **kwargs)

    def has_training_docs(self) -> bool:
        """None."""
        return False

    def has_validation_docs(self) -> bool:
        """None."""
        return False

    def has_test_docs(self) -> bool:
        """All."""
        return True


def _scored_doc(number: int, target: Any, scores: dict[str, list[Any]]) -> Any:
    from lm_eval.scorers import ScoredDoc

    return ScoredDoc(doc_id=number, reference=target, scores=scores)


def _description(part: Part) -> dict[str, Any]:
    if part.reason is not None:
        return {"missing": part.reason}
    return {
        name: {
            "version": task.VERSION,
            "num_fewshot": task.get_config("num_fewshot"),
            "dataset": [task.get_config("dataset_path"), task.get_config("dataset_name")],
            "n_documents": len(task.eval_docs),
        }
        for name, task in part.tasks.items()
    }
