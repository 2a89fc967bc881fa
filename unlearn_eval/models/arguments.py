"""What a model's forward pass takes and gives, under the names that the installed Transformers uses.

Transformers 5.24 renamed the cache of keys and values from `past_key_values` to `cache`; 5.40 drops the old name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

CACHE, OLD_CACHE = "cache", "past_key_values"


def accepts(model: Any, argument: str) -> bool:
    """Whether the model's forward pass (below a PEFT wrapper, if any) takes `argument`."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return argument in inspect.signature(inner.forward).parameters


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
