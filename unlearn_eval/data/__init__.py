"""Which questions there are and where they come from: forget sets, benchmarks, the shapes of a prompt."""

from unlearn_eval.utils.lazy import exports

__all__, __getattr__, __dir__ = exports(
    __name__,
    {
        "forget_sets": "ForgetItem ForgetSet facts load_forget_set",
    },
)
