"""The same plan on Ray: a task for each cell, with its GPU and memory, tried again when its node is lost.

Workers write into the study's folder, which every node must see, as whole files: a cell that is run twice writes the
same again. Cells of unedited models come first; those that need what they leave (what a model knows, a fine-tuned
model) wait for theirs.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlearn_eval.results.schema import Result
from unlearn_eval.runs.study.costs import Cost
from unlearn_eval.runs.study.plan import Cell, Plan
from unlearn_eval.runs.study.run import Options, no_room, record_failure, run_cell
from unlearn_eval.runs.study.show import Board
from unlearn_eval.runs.study.store import Store
from unlearn_eval.utils.errors import UserError

RETRIES = 3  # of a cell whose node is lost
_SECONDS_BETWEEN_LOOKS = 1.0
_CARRIED = (  # variables that workers on other machines see as well
    "UNLEARN_EVAL_DATA",
    "UNLEARN_EVAL_CACHE",
    "UNLEARN_EVAL_ENCODER",
    "UNLEARN_EVAL_RETAIN_REFERENCE",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "TOKENIZERS_PARALLELISM",
)


def connect(address: str) -> Any:
    """Ray, connected: `local` starts it here, `auto` and an address join a cluster.

    Raises:
        UserError: Ray is not installed, or there is no cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("--ray needs Ray, which is not installed", "pip install 'unlearn-eval[sweep]'") from error
    host, _, port = address.rpartition(":")
    if port.isdigit() and "//" not in host:
        _reachable(host, int(port))
    carried = {name: os.environ[name] for name in _CARRIED if name in os.environ}
    try:
        ray.init(
            address=None if address == "local" else address,
            ignore_reinit_error=True,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": carried},
        )
    except ConnectionError as error:
        raise UserError(
            f"there is no Ray cluster at '{address}'", "start one (ray start --head), or give --ray local"
        ) from error
    return ray


def _reachable(host: str, port: int) -> None:
    """Find out in seconds what Ray tries for minutes."""
    try:
        socket.create_connection((host, port), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"there is no Ray cluster at '{host}:{port}': {error}", "start one (ray start --head), or give --ray local"
        ) from error


def run_on_ray(
    ray: Any,
    cells: list[Cell],
    plan: Plan,
    store: Store,
    board: Board,
    options: Options,
    costs: Mapping[str, Cost | None],
) -> None:
    """Run cells on Ray's workers; a cell whose worker is lost again and again is recorded as failed.

    Raises:
        UserError: the workers write into a folder that is not the one here.
        Exception: what is wrong is the disk.
    """
    from ray.exceptions import RayError

    study = plan.study
    n_gpus = 1 if study.device != "cpu" and ray.cluster_resources().get("GPU", 0) else 0
    most = max(node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"])
    work = ray.remote(max_retries=RETRIES)(_work)
    settings = (store.folder.resolve(), study.batch_size, study.device, study.keep_edits, tuple(options.command))
    running: dict[Any, Cell] = {}
    first: dict[tuple[str, str], Any] = {}
    edits: dict[str, Any] = {}  # of sequences: who makes the edit from which the next mark goes on
    for cell in sorted(cells, key=lambda own: own.editor is not None):
        place = (cell.model_key, cell.forget)
        needs = first.get(place) if cell.known or cell.finetune else None
        if cell.stage is not None and cell.stage.previous is not None:
            needs = edits.get(str(cell.stage.previous.edit_key), needs)
        cost = costs.get(cell.key)  # more than the largest node has would wait for ever
        memory = (
            {"memory": int(min(cost.memory_bytes, most))} if cost is not None and cost.memory_bytes is not None else {}
        )
        asked = work.options(num_cpus=1, num_gpus=n_gpus, name=cell.name, **memory)
        reference = asked.remote(cell, settings, os.getcwd(), needs)
        first.setdefault(place, reference)
        if cell.stage is not None:
            edits.setdefault(str(cell.edit_key), reference)
        running[reference] = cell
    try:
        while running:
            ready, _ = ray.wait(list(running), timeout=_SECONDS_BETWEEN_LOOKS)
            for reference in ready:
                cell = running.pop(reference)
                try:
                    ray.get(reference)
                except RayError as error:
                    if no_room(error):
                        raise
                    record_failure(cell, error, store, options.command)
                board.done(cell, _written(cell, store))
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _written(cell: Cell, store: Store) -> Result:
    result = store.result(cell.name, cell.key)
    if result is None:
        raise UserError(
            f"a worker has written {cell.name}, and it is not in {store.folder}",
            "give an --output that every node sees (a network drive)",
        )
    return result


def _work(cell: Cell, settings: tuple[Any, ...], folder: str, needs: Any) -> None:
    """One cell, on a worker, in the folder from which the study's relative paths count.

    `needs` is what it had to wait for.
    """
    from unlearn_eval.harness.patching import quiet, within_a_study

    if os.path.isdir(folder):
        os.chdir(folder)
    worker = _worker(*settings)
    with quiet(), within_a_study():
        found = worker.store.result(cell.name, cell.key)
        if found is None or found.status == "failed":  # a lost node may have been lost after writing it
            run_cell(cell, worker, worker.store, worker.command)


@functools.cache
def _worker(folder: Path, batch_size: int, device: str | None, keep_edits: bool, command: tuple[str, ...]) -> Any:
    """What runs the cells of a study in this process: the model stays loaded from one to the next."""
    from unlearn_eval.runs.study.cells.worker import Worker

    return Worker(Store(folder), batch_size, device, keep_edits, list(command))
