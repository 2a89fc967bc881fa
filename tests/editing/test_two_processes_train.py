"""Training in two processes (gloo, on a CPU) gives what one process gives, also where they share the model out."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from documented import ROOT

HELPERS = ROOT / "tests" / "helpers"
SCRIPT = HELPERS / "two_processes.py"
PATHS = os.pathsep.join([str(ROOT), str(HELPERS)])

pytestmark = pytest.mark.slow  # three starts of PyTorch and Transformers


def run(folder, processes, *more):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = ["--master_addr=127.0.0.1", f"--master_port={free.getsockname()[1]}"]
    start = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", *place] if processes > 1 else []
    command = [sys.executable, *start, str(SCRIPT), str(folder), *more]
    environment = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Process (or None: alone) -> name of a run -> what it got; a process was killed in the run that goes on."""
    folder = tmp_path_factory.mktemp("processes")
    killed = run(folder, 2, "2")
    assert killed.returncode != 0
    assert (folder / "run-2" / "checkpoint-2" / "complete").is_file()
    assert not (folder / "2-0.pt").exists()
    for processes in (1, 2):
        done = run(folder, processes)
        assert done.returncode == 0, done.stderr[-3000:]
    files = {None: "1-0.pt", 0: "2-0.pt", 1: "2-1.pt"}
    return {process: torch.load(folder / name, weights_only=True) for process, name in files.items()}


@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize(
    "name",
    [
        "everything",
        "everything, shared",
        "clipped",
        "frozen head",
        "hidden states",
        "mixed precision",
        "factors",
        "factors, distribution",
        "ends early",
        "two trainings",
        "goes on",
    ],
)
def test_two_processes_do_what_one_does(name, process, found):
    alone, own = found[None][name], found[process][name]
    assert (alone["processes"], own["processes"]) == (1, 2)
    assert alone["steps"] == own["steps"]
    assert own["tensors"].keys() == alone["tensors"].keys() != set()
    for key, tensor in alone["tensors"].items():
        assert tensor.abs().max() > 0, key  # no part was left untrained
        torch.testing.assert_close(own["tensors"][key], tensor, rtol=1e-4, atol=1e-6)
    losses = [[json.loads(line)["loss"] for line in one["curve"].splitlines()] for one in (alone, own)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_what_was_killed_goes_on(found):
    assert found[0]["goes on"]["went_on_from_step"] == 2
