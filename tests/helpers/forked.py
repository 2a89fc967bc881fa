"""Commands in forked children, so that the seconds that imports take are spent once; for scripts, not for pytest."""

import importlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers.models.llama import modeling_llama  # noqa: F401  (imported before forking)

from unlearn_eval.cli import app as cli

TRAINER, LM_EVAL = "unlearn_eval.editing.training.run", "unlearn_eval.harness.models"
IMPORTED = {  # what else a command imports
    "attack": ["unlearn_eval.attacks.run"],
    "edit": ["unlearn_eval.runs.edit", TRAINER],
    "finetune": ["unlearn_eval.runs.finetune", TRAINER],
    "localize": ["unlearn_eval.localization.locate"],
    "run": [TRAINER, LM_EVAL, "unlearn_eval.harness.run", "unlearn_eval.runs.study.cells.worker"],
}


def prepare(command: str) -> None:
    """Import what a command needs."""
    for name in IMPORTED[command]:
        importlib.import_module(name)


def start(words: list[str], log: Path, first: Callable[[], object] = lambda: None) -> int:
    """The number of a child that calls `first`, then runs `unlearn-eval WORDS`; what it says goes into `log`."""
    child = os.fork()
    if child:
        return child
    torch.set_num_threads(1)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["unlearn-eval", *words]
    code = 0
    try:
        first()
        cli.main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """The exit code of a child that is waited for; negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def whole(words: list[str], log: Path) -> float:
    """Run to the end; the seconds that it took."""
    began = time.monotonic()
    if ended(start(words, log)) != 0:
        raise SystemExit(log.read_text()[-3000:])
    return time.monotonic() - began
