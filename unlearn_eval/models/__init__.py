"""Models that nobody has edited: loading, prompts, scoring, tracing, and what judges their answers."""

from unlearn_eval.utils.lazy import exports

__all__, __getattr__, __dir__ = exports(
    __name__,
    {
        "load": "LoadedModel load_model resolve_model",
        "scoring": "Query score_answers",
        "anatomy": "Anatomy anatomy",
        "weights": "WeightsHash hash_weights",
    },
)
