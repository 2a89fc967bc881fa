"""What a cache of responses (`--use_cache`) is of: lm-eval's has one key for each prompt, and none for the model.

Each model is given a file of its own, whose name ends in the model's identity: what its answers depend on beside the
requests. That is found in the model as it is when it answers, not in what the user called it: a folder may have been
overwritten, the weights edited in place, or an adapter put beside them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearn_eval.models.prompt_ends import ROUTER
from unlearn_eval.models.weights import hash_adapters, hash_tensors, known_weights
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.provenance import hash_json

_RANK = re.compile(r"(?=_rank\d+\.db$)")
# Attributes of lm-eval's models that change how fast they answer, or whose content is found elsewhere.
_SPEED = re.compile(r"batch|rank|world_size|device|concurrent|retries|timeout|seed|logits_cache|vocab_size")
_PLACES = ("pretrained", "peft", "delta", "edit_folder", "revision")


def path_for(lm: Any, path: str) -> str:
    """The path of a model's own cache, `NAME-IDENTITY_rank0.db` for `NAME_rank0.db`."""
    return _RANK.sub(f"-{identity(lm)[:16]}", path) if _RANK.search(path) else f"{path}-{identity(lm)[:16]}"


def identity(lm: Any) -> str:
    """A hash of what an lm-eval model's answers depend on, beside the requests.

    Of a model in this process: its weights, adapters and memories, its tokenizer, and its settings. Of another one (an
    engine's, a server's) its settings, and of every file that they name the size and the time of its last change.
    """
    settings = {name: own for name, own in _plain(vars(lm)).items() if not _SPEED.search(name)}
    weights = _weights(getattr(lm, "model", None))
    if weights is not None:
        settings = {name: own for name, own in settings.items() if name not in _PLACES}
    files = {} if weights is not None else {text: _files(Path(text)) for text in _texts(settings)}
    return hash_json(
        {
            "class": f"{type(lm).__module__}.{type(lm).__qualname__}",
            "weights": weights,
            "edit": getattr(lm, "answers_hash", None) if weights is None else None,
            "tokenizer": _tokenizer(getattr(lm, "tokenizer", None)),
            "settings": settings,
            "files": {text: own for text, own in files.items() if own},
        }
    )


def _weights(model: Any) -> list[str | None] | None:
    """Hashes of the weights, adapters and memories of a model of PyTorch; None of others, and of offloaded weights."""
    import torch

    if not isinstance(model, torch.nn.Module):
        return None
    try:
        weights = known_weights(model).exact
    except UserError:  # offloaded
        return None
    return [weights, hash_adapters(model), _memories(model)]


def _memories(model: Any) -> str | None:
    """A hash of what memory edits in a model hold."""
    import torch

    router = getattr(model, ROUTER, None)
    if router is None:
        return None
    tensors: dict[str, torch.Tensor] = {}
    for module, memory in router.memories():
        for name, own in vars(memory).items():
            parts = own if isinstance(own, list | tuple) else [own]
            tensors |= {f"{module}/{name}/{i}": part for i, part in enumerate(parts) if torch.is_tensor(part)}
    return hash_tensors(tensors)


def _tokenizer(tokenizer: Any) -> str | None:
    """A hash of a tokenizer: its vocabulary and rules, and its template."""
    if tokenizer is None:
        return None
    inner = getattr(tokenizer, "backend_tokenizer", None)
    rules = inner.to_str() if inner is not None else str(sorted(getattr(tokenizer, "get_vocab", dict)().items()))
    return hash_json([rules, str(getattr(tokenizer, "chat_template", None))])


def _plain(value: Any) -> Any:
    """What of a mapping is plain data, types and the like as text; other objects are left out."""
    if isinstance(value, Mapping):
        found = {str(key): _plain(own) for key, own in value.items()}
        return {key: own for key, own in found.items() if own is not None}
    if isinstance(value, list | tuple):
        return [_plain(own) for own in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if type(value).__module__ == "torch":  # a type or a device
        return str(value)
    path = getattr(value, "lora_path", None)  # vLLM's adapter
    return path if isinstance(path, str) else None


def _texts(value: Any) -> Sequence[str]:
    """Every text in plain data."""
    if isinstance(value, Mapping):
        return [text for own in value.values() for text in _texts(own)]
    if isinstance(value, list):
        return [text for own in value for text in _texts(own)]
    return [value] if isinstance(value, str) else []


def _files(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of a file, or of all files below a folder; nothing where there is neither."""
    try:
        found = sorted(own for own in path.rglob("*") if own.is_file()) if path.is_dir() else [path]
        stats = [(own, own.stat()) for own in found if own.is_file()]
    except (OSError, ValueError):  # a text that is no path
        return []
    return [(str(own.relative_to(path)), stat.st_size, stat.st_mtime_ns) for own, stat in stats]
