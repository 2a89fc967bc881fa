"""Base models before any edit: loading, prompts, scoring, tracing, and the encoder that judges answers."""

from unlearn_eval.utils.lazy import exports

__all__, __getattr__, __dir__ = exports(
    __name__,
    {
        "load": "LoadedModel load_model",
        "places": "resolve_model",
        "scoring": "Query score_answers",
        "anatomy": "Anatomy anatomy",
        "weights": "WeightsHash hash_weights",
    },
)
