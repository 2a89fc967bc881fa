"""Questions and their sources: forget sets, public benchmarks, and the shape of each prompt."""

from unlearn_eval.utils.lazy import exports

__all__, __getattr__, __dir__ = exports(
    __name__,
    {
        "items": "ForgetItem ForgetSet",
        "forget_sets": "facts load_forget_set",
    },
)
