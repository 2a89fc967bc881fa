"""An edit: what an editor changed, as a small folder that can be applied, undone, served, shared and continued.

    edit/
      edit.json                   what, on which base model (hash), from which requests, by which method
      adapter_config.json         PEFT's LoRA layout, so that peft, `lm_eval --model hf peft=`, and vLLM's LoRA
      adapter_model.safetensors   serving read the folder as it is
      config.json, tokenizer...   of the base model

Every file's SHA-256 stands in `edit.json`; a changed file, or another base model, is refused.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from unlearn_eval.errors import UserError
from unlearn_eval.provenance import hash_weights, sha256_of_file

SCHEMA_VERSION = 1
DESCRIPTION = "edit.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class EditInfo:
    """What an edit is, as it stands in `edit.json`.

    Attributes:
        editor: the method's name.
        config: its settings as resolved.
        base: `{"id", "revision", "canonical_hash", "architecture"}` of the model that was edited.
        requests: `{"n", "hash", "chat", "target"}`: what was asked for.
        seed: of everything random.
        versions: of the packages that made it.
        seconds, peak_memory_bytes: what it cost.
        notes: anything else worth keeping, e.g. the loss of every request.
    """

    editor: str
    config: dict[str, Any]
    base: dict[str, Any] = field(default_factory=dict)
    requests: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    versions: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)


class Edit(Protocol):
    """What every kind of edit can do."""

    info: EditInfo

    def apply(self, model: nn.Module) -> Applied:
        """Change the model; the result undoes it."""

    def save(self, folder: str | Path, tokenizer: Any = None, model_config: Any = None) -> Path:
        """Write the folder, whole or not at all."""


class Applied:
    """An edit in a model; `restore()` puts the original tensors back, bit for bit."""

    def __init__(self) -> None:
        self._originals: list[tuple[Tensor, Tensor]] = []

    def keep(self, weight: Tensor) -> None:
        """Remember a weight before it is changed in place."""
        self._originals.append((weight, weight.detach().clone()))

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back; harmless when repeated."""
        while self._originals:
            weight, original = self._originals.pop()
            weight.copy_(original)


@contextmanager
def applied(edit: Edit, model: nn.Module) -> Iterator[nn.Module]:
    """The model with the edit, within a `with` block."""
    handle = edit.apply(model)
    try:
        yield model
    finally:
        handle.restore()


@dataclass(frozen=True)
class LowRankEdit:
    """Changes W + U V of some linear maps.

    Attributes:
        factors: module name -> (U, V), U (d_out, n) and V (n, d_in), whatever way round the module stores W.
        info: what this is.
        stored_transposed: whether the modules store W as (d_in, d_out), as GPT-2's Conv1D does.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    info: EditInfo
    stored_transposed: bool = False

    @torch.no_grad()
    def apply(self, model: nn.Module) -> Applied:
        """Add U V to every weight, computed in float32 and rounded once to the weight's type."""
        handle = Applied()
        try:
            for name, (u, v) in self.factors.items():
                weight = _weight_of(model, name, u, v)
                handle.keep(weight)
                wide = torch.promote_types(weight.dtype, torch.float32)
                delta = u.to(weight.device, wide) @ v.to(weight.device, wide)
                delta = delta.T if _is_transposed(model.get_submodule(name)) else delta
                weight.copy_(weight.to(wide) + delta)
        except BaseException:
            handle.restore()
            raise
        return handle

    def save(self, folder: str | Path, tokenizer: Any = None, model_config: Any = None) -> Path:
        """Write the folder in PEFT's LoRA layout, with the base's `config.json` and tokenizer if they are given.

        Raises:
            UserError: the folder exists and holds something else than an edit, or writing fails.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        thin = {name: _compact(u.cpu().double(), v.cpu().double()) for name, (u, v) in self.factors.items()}
        rank = max([1, *(u.shape[1] for u, _ in thin.values())])
        tensors = {}
        for name, (u, v) in thin.items():
            tensors[f"{_PREFIX}{name}.lora_A.weight"] = _padded(v, rank, 0).float().contiguous()
            tensors[f"{_PREFIX}{name}.lora_B.weight"] = _padded(u, rank, 1).float().contiguous()

        def fill(target: Path) -> None:
            save_file(tensors, str(target / ADAPTER), metadata={"format": "pt"})
            _write_json(target / ADAPTER_CONFIG, self._peft_config(rank))
            if model_config is not None:
                model_config.save_pretrained(target)
            if tokenizer is not None:
                tokenizer.save_pretrained(target)

        return _write_folder(folder, "low_rank", self.info, fill)

    def _peft_config(self, rank: int) -> dict[str, Any]:
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.info.base.get("id"),
            "revision": self.info.base.get("revision"),
            "inference_mode": True,
            "r": rank,
            "lora_alpha": rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": self.stored_transposed,
            "target_modules": sorted(self.factors),
        }


def load_edit(folder: str | Path) -> LowRankEdit:
    """The edit in a folder, after checking that its files are as they were written.

    Raises:
        UserError: no such folder, not an edit, a file is missing or was changed, or a newer format.
    """
    folder = Path(folder)
    description = read_description(folder)
    if description["kind"] != "low_rank":
        raise UserError(
            f"{folder} holds an edit of the kind '{description['kind']}', which this version cannot apply",
            "update unlearn-eval",
        )
    from safetensors.torch import load_file

    tensors = load_file(str(folder / ADAPTER))
    names = sorted(key[len(_PREFIX) : -len(".lora_A.weight")] for key in tensors if key.endswith(".lora_A.weight"))
    factors = {
        name: (tensors[f"{_PREFIX}{name}.lora_B.weight"], tensors[f"{_PREFIX}{name}.lora_A.weight"]) for name in names
    }
    adapter = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return LowRankEdit(factors, EditInfo(**description["info"]), bool(adapter["fan_in_fan_out"]))


def read_description(folder: str | Path) -> dict[str, Any]:
    """`edit.json` of a folder whose files have been checked against it (errors as in `load_edit`)."""
    folder = Path(folder)
    path = folder / DESCRIPTION
    if not folder.is_dir():
        raise UserError(f"the edit folder {folder} does not exist", "make one with `unlearn-eval edit --output DIR`")
    if not path.is_file():
        raise UserError(
            f"{folder} is not an edit: it has no {DESCRIPTION}",
            "name a folder that `unlearn-eval edit` wrote",
        )
    try:
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = int(description["schema_version"])
        if version <= SCHEMA_VERSION:
            kind, files = description["kind"], dict(description["files"])
            if kind == "low_rank" and not {ADAPTER, ADAPTER_CONFIG} <= set(files):
                raise ValueError(f"it does not list {ADAPTER} and {ADAPTER_CONFIG}")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__}: {error}", "make the edit again") from error
    if version > SCHEMA_VERSION:
        raise UserError(f"{folder} was written in format {version}, newer than {SCHEMA_VERSION}", "update unlearn-eval")
    for name, digest in files.items():
        file = folder / name
        if not file.is_file():
            raise UserError(f"the edit {folder} lacks its file {name}", "copy the whole folder, or make the edit again")
        if sha256_of_file(file) != digest:
            raise UserError(
                f"{file} is not as it was written (its SHA-256 differs from the one in {DESCRIPTION})",
                "restore the file, or make the edit again",
            )
    return description


def check_base(info: EditInfo, model: nn.Module, name: str = "this model") -> None:
    """Refuse a model that is not the one the edit was made on (compared at bfloat16, so any float type loads)."""
    expected = info.base.get("canonical_hash")
    found = hash_weights(model).canonical
    if expected and found != expected:
        raise UserError(
            f"the edit was made on {info.base.get('id')} (weights {expected[:12]}), and {name} has other weights "
            f"({found[:12]})",
            "give the base model that edit.json names, without other edits",
        )


def describe_base(model: Any, name: str, revision: str | None = None) -> dict[str, Any]:
    """The `base` entry of an edit."""
    return {
        "id": name,
        "revision": revision,
        "canonical_hash": hash_weights(model).canonical,
        "architecture": type(model).__name__,
    }


# Details ---------------------------------------------------------------------------------------------------


def _is_transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"


def _weight_of(model: nn.Module, name: str, u: Tensor, v: Tensor) -> Tensor:
    try:
        module = model.get_submodule(name)
        weight: Tensor = module.weight  # type: ignore[assignment]
    except AttributeError as error:
        raise UserError(
            f"the edit changes {name}, which this model does not have", "give the model it was made on"
        ) from error
    shape = (u.shape[0], v.shape[1])
    stored = tuple(reversed(weight.shape)) if _is_transposed(module) else tuple(weight.shape)
    if shape != stored:
        raise UserError(
            f"the edit's change of {name} is {shape[0]}×{shape[1]}, the model's weight {stored[0]}×{stored[1]}",
            "give the model it was made on",
        )
    return weight


def _compact(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with no more columns than the matrix has rows or columns (exact: a QR step)."""
    if u.shape[1] <= min(u.shape[0], v.shape[1]):
        return u, v
    if u.shape[0] <= v.shape[1]:
        q, r = torch.linalg.qr(u)
        return q, r @ v
    q, r = torch.linalg.qr(v.T)
    return u @ r.T, q.T


def _padded(factor: Tensor, rank: int, dim: int) -> Tensor:
    missing = rank - factor.shape[dim]
    if missing <= 0:
        return factor
    shape = [missing, factor.shape[1]] if dim == 0 else [factor.shape[0], missing]
    return torch.cat([factor, factor.new_zeros(shape)], dim=dim)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _write_folder(folder: Path, kind: str, info: EditInfo, fill: Any) -> Path:
    """Write a folder beside its place, describe it, and move it there; what was there goes only when that is done."""
    from safetensors import SafetensorError

    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / DESCRIPTION).is_file())):
        raise UserError(f"{folder} exists and is not an edit", "give another --output")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise UserError(f"cannot write the edit to {folder}: {error}", "give another --output") from error
    try:
        fill(temporary)
        paths = sorted(path for path in temporary.rglob("*") if path.is_file())  # several chat templates: a folder
        files = {path.relative_to(temporary).as_posix(): sha256_of_file(path) for path in paths}
        description = {"schema_version": SCHEMA_VERSION, "kind": kind, "info": asdict(info), "files": files}
        _write_json(temporary / DESCRIPTION, description)
        os.chmod(temporary, 0o755)
        _put_in_place(temporary, folder)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own way
        raise UserError(
            f"cannot write the edit to {folder}: {error}", "free some space or give another --output"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _put_in_place(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; an older folder stands aside until that has worked."""
    if not folder.exists():
        new.rename(folder)
        return
    aside = new.with_name(new.name + ".old")
    folder.rename(aside)
    try:
        new.rename(folder)
    except BaseException:
        aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)
