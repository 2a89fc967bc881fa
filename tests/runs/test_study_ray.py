"""A study on two nodes of a Ray cluster, one of which is killed in the middle."""

import io
import threading
import time

import pytest
from rich.console import Console
from study_files import memit, numbers, write_model, write_study

from unlearn_eval.runs.study.costs import Cost
from unlearn_eval.runs.study.plan import plan
from unlearn_eval.runs.study.read import read_study
from unlearn_eval.runs.study.run import Options, run_study, states_of
from unlearn_eval.runs.study.show import Board
from unlearn_eval.runs.study.spec import study_of
from unlearn_eval.runs.study.store import Store

ray = pytest.importorskip("ray")


def ready(path, folder, run_cells=None):
    """A plan with its store and a board that writes into a text."""
    planned, store, text = plan(study_of(read_study(path), path), {}), Store(folder), io.StringIO()
    board = Board(Console(file=text, width=200), planned.cells, states_of(planned, store)[0])
    return planned, store, board, Options(["test"], False, {}), text


@pytest.mark.slow
def test_a_node_that_is_killed_loses_nothing(tmp_path):
    from ray.cluster_utils import Cluster

    from unlearn_eval.runs.study.on_ray import connect, run_on_ray

    model = write_model(tmp_path / "model")
    study = write_study(tmp_path / "study.yaml", model, editors=[memit(model)], seeds=[0, 1, 2, 3])
    planned, store, board, options, _ = ready(study, tmp_path / "whole")
    run_study(planned, store, board, options)
    expected = numbers(tmp_path / "whole")
    assert len(expected) == 8

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        connected = connect(cluster.address)
        cluster.wait_for_nodes()
        planned, store, board, options, text = ready(study, tmp_path / "output")
        costs = {cell.key: Cost(1.0, 1e8, "test") for cell in planned.cells}
        killed = []

        def kill():
            while not list(tmp_path.glob("output/runs/*/result.json")):
                time.sleep(0.2)
            cluster.remove_node(node, allow_graceful=False)
            killed.append(len(list(tmp_path.glob("output/runs/*/result.json"))))

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        run_study(
            planned,
            store,
            board,
            options,
            lambda cells: run_on_ray(connected, cells, planned, store, board, options, costs),
        )
        killer.join(60)
        assert killed
        assert killed[0] < 8, "it was killed in the middle"
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert set(board.states.values()) == {"done"}
    assert numbers(tmp_path / "output") == expected
    assert "[8/8]" in text.getvalue()
