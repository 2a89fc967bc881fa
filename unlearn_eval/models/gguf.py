"""GGUF files as ordinary checkpoints: converted once, kept in the cache, read from there."""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_eval.models.assets import cache_dir
from unlearn_eval.utils.provenance import sha256_of_file
from unlearn_eval.utils.terminal import say

if TYPE_CHECKING:
    import torch

_WHOLE = "config.json"  # a folder is moved to its place when it is whole


def load_gguf(gguf: Path, dtype: torch.dtype | str) -> tuple[Any, Any]:
    """Model and tokenizer of a GGUF file as an ordinary, dequantized model that can be edited and saved."""
    import transformers

    options: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(gguf.parent), **options)
    if hasattr(transformers, "GgufConfig"):  # these releases may else keep 4-bit blocks, and call it quantized
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=dtype, **options)
    return model, tokenizer


def converted_gguf(gguf: Path, dtype: str) -> tuple[Any, Any]:
    """The same as `load_gguf`, bit for bit, from a checkpoint in the cache that is written on first use.

    Its folder is named after the file's content, the number type and the version of transformers, which dequantizes.
    A cache that cannot be written is done without.
    """
    import transformers

    version = importlib.metadata.version("transformers")
    home = cache_dir() / "gguf"
    folder = home / f"{sha256_of_file(gguf)[:32]}-{dtype}-transformers-{version}"
    if not (folder / _WHOLE).is_file():
        say(f"converting {gguf.name} to a checkpoint (minutes for a large one; once: it is kept in {home})")
        model, tokenizer = load_gguf(gguf, dtype)
        _keep(folder, model, tokenizer)
        return model, tokenizer
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto", trust_remote_code=False)
    return model, tokenizer


def _keep(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write a checkpoint beside its place and move it there; of two processes the first one's stays."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    except OSError as error:
        say(f"the conversion is not kept: {error.strerror or error}")
        return
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        temporary.chmod(0o755)
        for path in temporary.iterdir():
            path.chmod(0o644)  # safetensors writes for the owner alone; the cache may be shared
        temporary.rename(folder)
    except Exception as error:  # safetensors has an error of its own for a full disk
        if not folder.is_dir():
            say(f"the conversion is not kept: {error}")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
