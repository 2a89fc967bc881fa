"""Commands that are killed leave nothing half written; run again they end as if nothing had been."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from odd_files import sound_edit
from study_files import memit, write_model

from unlearn_eval.edits.load import load_edit
from unlearn_eval.models.load import load_model
from unlearn_eval.results.files import read_result

SCRIPT = Path(__file__).parents[1] / "helpers" / "killed_command.py"
SMALL = {"layers": 1, "target.steps": 2, "keys_per_dimension": 1}
TRAINED = ["--set", "steps=4", "--set", "checkpoint_steps=1"]
MASKS = ["--set", "samples=1", "--set", "masks=attribution"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


def words(name, model, folder):
    """A command on the tiny model; FOLDER is replaced by each run's own."""
    on = ["--model", model, "--device", "cpu"]
    two = ["--limit", "2"]
    if name == "attack":
        edit = folder / "edit"
        sound_edit("low_rank", load_model(str(model), dtype="float32", device="cpu"), edit)
        return ["attack", "quantize", "--edit", edit, "--forget", "facts", *two, *on, "--output", "FOLDER/out.json"]
    if name == "localize":
        return ["localize", "causal_tracing", *two, *on, *MASKS, "--output", "FOLDER/out.json"]
    if name == "edit":
        settings = SMALL | {"text": memit(model)["settings"]["text"]}
        given = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        return ["edit", *two, *on, *given, "--no-unrelated", "--output", "FOLDER/out"]
    if name == "trained edit":
        given = [*TRAINED, "--set", "retain_term=none"]
        return ["edit", "--editor", "npo", *two, *on, *given, "--no-unrelated", "--output", "FOLDER/out"]
    return ["finetune", "--on", "facts", *two, *on, *TRAINED, "--output", "FOLDER/out"]


def numbers(name, folder):
    """What a command has computed, without times and places; None where it has not come so far."""
    out = folder / "out" if name in ("edit", "trained edit", "finetune") else folder / "out.json"
    if not out.exists():
        return None
    if name == "attack":
        return json.loads(json.dumps(read_result(out).metrics, default=vars))
    if name == "localize":
        content = json.loads(out.read_text())
        return {key: content[key] for key in ("ranking", "modules", "tables")} | {"mask": content["mask"]["sha256"]}
    if name == "finetune":
        return json.loads((out / "unlearn_eval_finetune.json").read_text())["weights"]
    edit = load_edit(out)
    tensors = edit.tensors if name == "trained edit" else {i: own for i, pair in edit.factors.items() for own in pair}
    return {key: own.tolist() for key, own in tensors.items()}


def files(folder):
    """The names of all files; of locks, and of temporary files of texts, a kill may leave some."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return {name for name in found if not name.endswith((".lock", ".tmp"))}


def check(name, model, folder, shares):
    command = [sys.executable, str(SCRIPT), str(folder), json.dumps(shares), *map(str, words(name, model, folder))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    expected, moments = numbers(name, folder / "whole"), json.loads(done.stdout.splitlines()[-1])["moments"]
    assert expected is not None
    assert all(moment["killed"] for moment in moments), moments
    for moment in moments:
        then, again = (folder / f"{kind}{moment['moment']}" for kind in ("then", "killed"))
        assert numbers(name, then) in (None, expected), moment  # what is there is whole
        assert moment["again"] == 0, (moment, Path(f"{again}.log").read_text()[-2000:])
        assert numbers(name, again) == expected, moment
        assert files(again) == files(folder / "whole"), moment
    return moments


def test_a_killed_command_can_be_run_again(model, tmp_path):
    """The short form: while checkpoints are removed, after the model was written."""
    check("finetune", model, tmp_path, [0.9])


@pytest.mark.slow  # 17 runs each
@pytest.mark.parametrize("name", ["attack", "localize", "edit", "trained edit", "finetune"])
def test_kills_at_any_moment_change_no_number(name, model, tmp_path):
    moments = check(name, model, tmp_path, [i / 7 for i in range(8)])
    assert len(moments) > 5
