"""Complete runs that join the other rooms: one edit, one evaluation, one fine-tuning, the demo, a study."""

from unlearn_eval.utils.lazy import exports

__all__, __getattr__, __dir__ = exports(
    __name__,
    {
        "edit": "make_edit",
        "evaluate": "EvalConfig evaluate run_evaluation",
    },
)
