"""A study that is killed at a random moment and started again ends with the numbers of one that nobody disturbed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from study_files import write_model, write_study


def killed(tmp_path, n, seed):
    study = write_study(tmp_path / "study.yaml", write_model(tmp_path / "model"))
    script = Path(__file__).parents[1] / "helpers" / "killed_study.py"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, script, study, tmp_path, str(n), str(seed)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["cells"] == 3
    assert len(found["moments"]) == n
    for moment in found["moments"]:
        assert moment["equal"], moment
    return found


def test_a_kill_changes_no_number(tmp_path):
    killed(tmp_path, 1, seed=1)


@pytest.mark.slow
def test_twenty_kills_change_no_number(tmp_path):
    found = killed(tmp_path, 20, seed=7)
    assert len({moment["results_then"] for moment in found["moments"]}) > 1, "kills came at different stages"
