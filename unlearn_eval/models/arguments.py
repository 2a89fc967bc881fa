"""What a model's forward pass takes and gives, under the names that the installed Transformers uses.

Transformers 5.24 renamed the cache of keys and values from `past_key_values` to `cache`; 5.40 drops the old name.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

CACHE, OLD_CACHE = "cache", "past_key_values"


def accepts(model: Any, argument: str) -> bool:
    """Whether the model's forward pass (below a PEFT wrapper, if any) takes `argument`."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return argument in inspect.signature(inner.forward).parameters


def given_arguments(model: Any, arguments: Sequence[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """What a forward pass is given, by name."""
    return {**options, **dict(zip(_parameter_names(type(model).forward), arguments, strict=False))}


def batch_shape(model: Any, arguments: Sequence[Any], options: Mapping[str, Any]) -> tuple[int, int] | None:
    """How many rows and columns a forward pass is given; None if it is given neither ids nor embeddings."""
    given = given_arguments(model, arguments, options)
    found = given.get("input_ids")
    found = given.get("inputs_embeds") if found is None else found
    return None if found is None else (int(found.shape[0]), int(found.shape[1]))


@functools.lru_cache(maxsize=64)
def _parameter_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)[1:]


def cache_argument(model: Any, cache: Any) -> dict[str, Any]:
    """The argument by which a model is given a cache."""
    return {CACHE if accepts(model, CACHE) else OLD_CACHE: cache}


def given_cache(options: Mapping[str, Any]) -> Any:
    """The cache among a model's arguments, under either name, or None."""
    found = options.get(CACHE)
    return options.get(OLD_CACHE) if found is None else found


def cache_of(output: Any) -> Any:
    """The cache in a model's output, or None."""
    return output.cache if hasattr(output, CACHE) else getattr(output, OLD_CACHE, None)
