"""Did this model forget, and at what price?

The public names below are loaded when they are used: importing the package loads no torch, lm_eval or vllm.
"""

__version__ = "0.1.0"

_HOMES = {
    "ForgetItem": "data.forget_sets",
    "ForgetSet": "data.forget_sets",
    "load_forget_set": "data.forget_sets",
    "load_model": "models.load",
    "Recipe": "editing.recipe",
    "make_edit": "runs.edit",
    "LowRankEdit": "edits.base",
    "load_edit": "edits.base",
    "applied": "edits.base",
    "EvalConfig": "runs.evaluate",
    "run_evaluation": "runs.evaluate",
    "score_answers": "models.scoring",
    "Query": "models.scoring",
    "Result": "results.schema",
    "Metric": "results.schema",
    "read_result": "results.schema",
    "write_result": "results.schema",
    "compare": "results.schema",
    "UserError": "utils.errors",
}

__all__ = sorted(_HOMES)


def __getattr__(name):  # type: ignore[no-untyped-def]
    """Import a public name from its home on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'unlearn_eval' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"unlearn_eval.{_HOMES[name]}"), name)
