"""Which benchmarks there are, by their files in `benchmarks/`, and which tasks ask a forget set."""

from __future__ import annotations

from collections.abc import Iterator

from unlearn_eval.data.benchmark import ANY, Asking, Benchmark, FinetunePreset, Reader
from unlearn_eval.data.documents import Metadata, Splits
from unlearn_eval.utils.errors import unknown_name
from unlearn_eval.utils.registry import module_in, names_in

PACKAGE = "unlearn_eval.data.benchmarks"


def get_benchmark(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        UserError: there is none.
    """
    found: Benchmark = module_in(PACKAGE, name, "benchmark").BENCHMARK
    assert found.name == name, f"{found.name} is in the file {name}.py"
    return found


def benchmarks() -> Iterator[Benchmark]:
    """All of them, by name."""
    return map(get_benchmark, names_in(PACKAGE))


def benchmark_of_set(name: str) -> Benchmark | None:
    """The benchmark to which a forget set's name belongs, None for a file or an unknown name."""
    prefix = name.partition(":")[0]
    found = get_benchmark(prefix) if prefix in names_in(PACKAGE) else None
    return found if found is not None and found.offers(name) else None


def benchmark_documents(family: str, metadata: Metadata) -> Splits:
    """The documents of a family, by split.

    Raises:
        UserError: no such family, or data that cannot be read.
    """
    readers: dict[str, Reader] = {}
    for own in benchmarks():
        readers |= own.readers
    if family not in readers:
        raise unknown_name("benchmark", family, readers)
    return readers[family](metadata)


def asking_of(task: str) -> Asking | None:
    """How a task is given a forget set; None if it cannot be, or is no task of ours."""
    return next((own.tasks[task] for own in benchmarks() if task in own.tasks), None)


def is_ours(task: str) -> bool:
    """Whether a task is of one of the benchmarks."""
    return any(task in own.tasks for own in benchmarks())


def task_for(name: str) -> str:
    """The task that asks a forget set: one of its benchmark's, else one that asks any set."""
    found = [(task, asking) for own in benchmarks() for task, asking in own.tasks.items() if asking is not None]
    own_tasks = [task for task, asking in found if asking.sets != ANY and asking.fits(name)]
    exact = [task for task, asking in found if asking.sets == name]
    return [*exact, *own_tasks, *tasks_for_any_set()][0]


def tasks_for_any_set() -> list[str]:
    """The tasks that ask any forget set."""
    return [
        task for own in benchmarks() for task, asking in own.tasks.items() if asking is not None and asking.sets == ANY
    ]


def finetune_presets() -> dict[str, FinetunePreset]:
    """Published settings of fine-tuning, by name."""
    return {preset.name: preset for own in benchmarks() for preset in own.finetuning}


def left_out(name: str) -> str | None:
    """The part of a benchmark that a set of what is retained leaves out, None if it is no such set."""
    own = benchmark_of_set(name)
    return None if own is None else own.left_out.get(name)
