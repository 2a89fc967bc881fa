"""Runs of lm-eval on models that are already loaded, and what their results hold."""

from pathlib import Path
from unittest import mock

TASKS = Path(__file__).parents[2] / "tasks"


def evaluate(model, task="unlearn_tofu", metadata=None, include_path=TASKS, **options):
    """lm-eval's result of one or more tasks; only `include_path` is indexed, which takes no time."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(include_path), include_defaults=False, metadata=metadata or {})
    tasks = [task] if isinstance(task, str) else list(task)
    options = {"bootstrap_iters": 100, "metadata": metadata} | options

    # It runs `pip list`, which takes longer than all the rest. Tests evaluate in threads too: what one of them puts
    # back may be another's stand-in, so that it must have the arguments that are expected.
    def nothing(storage):
        return None

    with mock.patch("lm_eval.evaluator.add_env_info", nothing):
        return lm_eval.simple_evaluate(model=model, tasks=tasks, task_manager=manager, **options)


def hf(model, tokenizer, **options):
    """lm-eval's `hf` model around objects that are already loaded."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", **({"batch_size": 16} | options))


def report(result, task="unlearn_tofu"):
    """What a run says of its own scoring: metric -> n, n_unscored, reasons."""
    return result["configs"][task]["metadata"]["scoring"]


def values(result, task="unlearn_tofu"):
    """Metric -> value, without the standard errors."""
    table = result["results"][task]
    return {
        key.removesuffix(",none"): value
        for key, value in table.items()
        if key.endswith(",none") and not key.endswith("_stderr,none")
    }
