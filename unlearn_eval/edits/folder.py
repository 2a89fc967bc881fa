"""The folder of an edit: what every kind has in it, written whole and checked on reading."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel
from torch import Tensor

from unlearn_eval.edits.base import DENSE, LOW_RANK, MEMORY, EditInfo
from unlearn_eval.edits.places import DESCRIPTION, check_is_edit
from unlearn_eval.edits.stored import Description, Version
from unlearn_eval.edits.tensors import HINT
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.folders import files_below, write_whole
from unlearn_eval.utils.json_files import parse, read_text
from unlearn_eval.utils.provenance import sha256_of_file
from unlearn_eval.utils.schemas import PLAIN_NAME, validated

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

SCHEMA_VERSION = 1
EDITED = "Edited"  # before the names of architectures in an edit's config.json; vLLM knows them by our plug-in
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
STATE, TARGETS = "state.safetensors", "targets.jsonl"
KINDS = {  # kind of edit -> the files that it cannot be without
    LOW_RANK: (ADAPTER, ADAPTER_CONFIG),
    DENSE: ("dense.json",),
    MEMORY: ("memory.safetensors", "memory.json"),
}
_TAKEN = {DESCRIPTION, STATE, "config.json", "generation_config.json"}.union(*KINDS.values())


def write_edit(
    folder: Path,
    kind: str,
    info: EditInfo,
    fill: Callable[[Path], None],
    texts: Mapping[str, str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    model_config: PretrainedConfig | None = None,
) -> Path:
    """Write the folder of an edit of any kind: what `fill` writes, the base's files, the texts, and `edit.json`.

    Raises:
        UserError: the folder exists and holds something else than an edit, writing fails, or a text has a name
            that is no plain file name or is taken.
    """
    texts = texts or {}
    for name in texts:
        _check_text_name(name, _TAKEN)

    def fill_all(target: Path) -> None:
        fill(target)
        if model_config is not None:
            model_config.save_pretrained(target)
            _name_architecture(target / "config.json", info.base.architecture)
        if tokenizer is not None:
            tokenizer.save_pretrained(target)
        for name, text in texts.items():
            _check_text_name(name, (path.name for path in target.iterdir()))
            (target / name).write_bytes(text.encode())  # as it is: no other line ends
        files = {path.relative_to(target).as_posix(): sha256_of_file(path) for path in files_below(target)}
        description = {"schema_version": SCHEMA_VERSION, "kind": kind, "info": info.as_stored()}
        write_json(target / DESCRIPTION, description | {"texts": sorted(texts), "files": files})

    return write_whole(folder, "edit", DESCRIPTION, fill_all)


def _name_architecture(path: Path, own: str | None) -> None:
    """Call the architecture edited, so that a server that does not know edits refuses the folder."""
    config = json.loads(path.read_text(encoding="utf-8"))
    names = config.get("architectures") or ([own] if own else [])
    config["architectures"] = [EDITED + name.removeprefix(EDITED) for name in names]
    write_json(path, config)


def check_names_base(base: Mapping[str, Any], hint: str = "make the edit again: vLLM serves no others") -> None:
    """Refuse an edit whose `base` entry does not say on which weights it was made; `hint` is for the error.

    Raises:
        UserError: nothing shows which model is its base.
    """
    if not base.get("canonical_hash"):
        raise UserError(
            "the edit does not say on which weights it was made, so nothing shows whether this is its base", hint
        )


def check_architecture(folder: Path) -> None:
    """Refuse a folder that a server would take for a model of its own.

    Raises:
        UserError: its config.json is missing, or names the base's architecture.
    """
    path = folder / "config.json"
    names = json.loads(path.read_text(encoding="utf-8")).get("architectures") if path.is_file() else None
    if not names or not all(name.startswith(EDITED) for name in names):
        raise UserError(
            f"{path} does not name the architecture of an edited model", "make the edit again, or export it (--merged)"
        )


def read_description(folder: str | Path, check_files: bool = True) -> dict[str, Any]:
    """`edit.json` of a folder; its files are checked against it, unless told not to (errors as in `load_edit`)."""
    folder = check_is_edit(folder)
    path = folder / DESCRIPTION
    version = read_stored(path, Version)["schema_version"]
    if version > SCHEMA_VERSION:
        raise UserError(f"{folder} was written in format {version}, newer than {SCHEMA_VERSION}", "update unlearn-eval")
    description = read_stored(path, Description)
    files = description["files"]
    if missing := [name for name in KINDS.get(description["kind"], ()) if name not in files]:
        raise UserError(f"{path} is damaged: it does not list {' and '.join(missing)}", HINT)
    for name, digest in files.items() if check_files else ():
        file = folder / name
        if not file.is_file():
            raise UserError(f"the edit {folder} lacks its file {name}", "copy the whole folder, or make the edit again")
        if sha256_of_file(file) != digest:
            raise UserError(
                f"{file} is not as it was written (its SHA-256 differs from the one in {DESCRIPTION})",
                "restore the file, or make the edit again",
            )
    return description


def read_stored(path: Path, schema: type[BaseModel]) -> dict[str, Any]:
    """The content of a JSON file of an edit, as its schema has it.

    Raises:
        UserError: it is missing, not JSON, or something in it does not fit.
    """
    try:
        content: dict[str, Any] = parse(read_text(path, "file"), path, HINT)
    except UserError as error:
        raise UserError(f"{path} is damaged: {error.message.removeprefix(str(path)).lstrip(', :')}", HINT) from error
    validated(schema, content, path, "is damaged", HINT)
    return content


def for_disk(tensor: Tensor) -> Tensor:
    """A copy of its own (safetensors refuses views of one storage), floating numbers as float32."""
    tensor = tensor.detach().cpu()
    return tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype).clone().contiguous()


def _check_text_name(name: str, taken: Iterable[str]) -> None:
    if not PLAIN_NAME.fullmatch(name):
        raise UserError(f"'{name}' is not a plain file name", "give a text of an edit a name such as targets.jsonl")
    if name.lower() in {other.lower() for other in taken}:  # some file systems do not tell A from a
        raise UserError(f"an edit's folder has a file {name} already", "give the text another name")


def write_json(path: Path, content: object) -> None:
    """Write a JSON file, strictly: no NaN, no infinity."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
