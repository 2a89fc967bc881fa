"""Did this model forget, and at what price?

The public names below are loaded when they are used: importing the package loads no torch, lm_eval or vllm.
"""

__version__ = "0.1.0"

_HOMES = {
    "ForgetItem": "forget_sets",
    "ForgetSet": "forget_sets",
    "load_forget_set": "forget_sets",
    "load_model": "models",
    "Recipe": "config",
    "make_edit": "editing",
    "LowRankEdit": "edits",
    "load_edit": "edits",
    "applied": "edits",
    "EvalConfig": "evaluation",
    "run_evaluation": "evaluation",
    "score_answers": "scoring",
    "Query": "scoring",
    "Result": "results",
    "Metric": "results",
    "read_result": "results",
    "write_result": "results",
    "compare": "results",
    "UserError": "errors",
}

__all__ = sorted(_HOMES)


def __getattr__(name):  # type: ignore[no-untyped-def]
    """Import a public name from its home on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'unlearn_eval' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"unlearn_eval.{_HOMES[name]}"), name)
