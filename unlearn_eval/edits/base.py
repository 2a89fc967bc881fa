"""An edit: what an editor changed, as a small folder that can be applied, undone, served, shared and continued.

    edit/
      edit.json                   what, on which base model (hash), from which requests, by which method
      adapter_config.json         PEFT's LoRA layout, so that peft, `lm_eval --model hf peft=`, and vLLM's LoRA
      adapter_model.safetensors   serving read the folder as it is
      state.safetensors           what more edits of the same model go on from, if the method keeps anything
      memory.json, .safetensors   instead of an adapter: edits that leave the weights alone (`memory_edits.py`)
      targets.jsonl ...           small texts that belong to the edit, if it has any
      config.json, tokenizer...   of the base model

Every file's SHA-256 stands in `edit.json`; a changed file, or another base model, is refused.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from unlearn_eval.models.anatomy import is_transposed
from unlearn_eval.models.weights import hash_weights
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.provenance import sha256_of_file

SCHEMA_VERSION = 1
EDITED = "Edited"  # before the names of architectures in an edit's config.json; vLLM knows them by our plug-in
DESCRIPTION = "edit.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
STATE, TARGETS = "state.safetensors", "targets.jsonl"
KINDS = {  # kind of edit -> the files that it cannot be without
    "low_rank": (ADAPTER, ADAPTER_CONFIG),
    "dense": ("dense.json",),
    "memory": ("memory.safetensors", "memory.json"),
}
Factors = Mapping[str, tuple[Tensor, Tensor]]
_PREFIX = "base_model.model."
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_TAKEN = {DESCRIPTION, STATE, "config.json", "generation_config.json"}.union(*KINDS.values())


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


class Restorable(Protocol):
    """An edit in a model."""

    def restore(self) -> None:
        """Make the model what it was, bit for bit; harmless when repeated."""


class Edit(Protocol):
    """What every kind of edit can do."""

    @property
    def info(self) -> EditInfo:
        """What this is."""

    @property
    def texts(self) -> Mapping[str, str]:
        """File name -> content of small texts that belong to the edit, e.g. `targets.jsonl`."""

    def apply(self, model: nn.Module) -> Restorable:
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
        factors: module name -> (U, V), U (d_out, n) and V (n, d_in), whatever way round the module stores W. A change
            of nothing is n = 0; PEFT refuses an edit that names no module at all.
        info: what this is.
        stored_transposed: whether the modules store W as (d_in, d_out), as GPT-2's Conv1D does.
        state: what the method needs to go on from this edit, e.g. `keys.5`: (n, d_in) past keys.
        texts: file name -> content of small texts that belong to the edit, e.g. `targets.jsonl`.
    """

    factors: Factors
    info: EditInfo
    stored_transposed: bool = False
    state: Mapping[str, Tensor] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)

    @torch.no_grad()
    def apply(self, model: nn.Module) -> Applied:
        """Add U V to every weight, computed in float32 (float64 for such weights) and rounded once to its type.

        Factors are first taken to that type, so that float64 factors do what they do after saving.
        """
        handle = Applied()
        try:
            for name, (u, v) in self.factors.items():
                weight = _weight_of(model, name, u, v)
                if u.shape[1] == 0:  # even adding zero changes a bit: -0.0 becomes 0.0
                    continue
                handle.keep(weight)
                weight.copy_(added(weight, u, v, is_transposed(model.get_submodule(name))))
        except BaseException:
            handle.restore()
            raise
        return handle

    def save(self, folder: str | Path, tokenizer: Any = None, model_config: Any = None) -> Path:
        """Write the folder in PEFT's LoRA layout, with the base's `config.json` and tokenizer if they are given.

        Floating numbers are written as float32.

        Raises:
            UserError: the folder exists and holds something else than an edit, writing fails, or a text has a name
                that is no plain file name or is taken.
        """
        from safetensors.torch import save_file

        thin = {name: compact(u.cpu().double(), v.cpu().double()) for name, (u, v) in self.factors.items()}
        rank = max([1, *(u.shape[1] for u, _ in thin.values())])
        tensors = {}
        for name, (u, v) in thin.items():
            tensors[f"{_PREFIX}{name}.lora_A.weight"] = _padded(v, rank, 0).float().contiguous()
            tensors[f"{_PREFIX}{name}.lora_B.weight"] = _padded(u, rank, 1).float().contiguous()

        def fill(target: Path) -> None:
            save_file(tensors, str(target / ADAPTER), metadata={"format": "pt"})
            _write_json(target / ADAPTER_CONFIG, self._peft_config(rank))
            if self.state:
                state = {name: for_disk(tensor) for name, tensor in self.state.items()}
                save_file(state, str(target / STATE), metadata={"format": "pt"})

        return write_edit(Path(folder), "low_rank", self.info, fill, self.texts, tokenizer, model_config)

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


def write_edit(
    folder: Path,
    kind: str,
    info: EditInfo,
    fill: Callable[[Path], None],
    texts: Mapping[str, str] | None = None,
    tokenizer: Any = None,
    model_config: Any = None,
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
            _name_architecture(target / "config.json", info.base.get("architecture"))
        if tokenizer is not None:
            tokenizer.save_pretrained(target)
        for name, text in texts.items():
            _check_text_name(name, (path.name for path in target.iterdir()))
            (target / name).write_bytes(text.encode())  # as it is: no other line ends
        files = {path.relative_to(target).as_posix(): sha256_of_file(path) for path in _files_below(target)}
        description = {"schema_version": SCHEMA_VERSION, "kind": kind, "info": asdict(info)}
        _write_json(target / DESCRIPTION, description | {"texts": sorted(texts), "files": files})

    return write_whole(folder, "edit", DESCRIPTION, fill_all)


def _name_architecture(path: Path, own: str | None) -> None:
    """Call the architecture edited, so that a server that does not know edits refuses the folder."""
    config = json.loads(path.read_text(encoding="utf-8"))
    names = config.get("architectures") or ([own] if own else [])
    config["architectures"] = [EDITED + name.removeprefix(EDITED) for name in names]
    _write_json(path, config)


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


def load_edit(folder: str | Path) -> Any:
    """The edit in a folder (`LowRankEdit`, `DenseEdit`, `MemoryEdit`), after checking its files: are they as written?

    Raises:
        UserError: no such folder, not an edit, a file is missing or was changed, or a newer format.
    """
    folder = Path(folder)
    description = read_description(folder)
    kind = description["kind"]
    if kind not in KINDS:
        raise UserError(
            f"{folder} holds an edit of the kind '{kind}', which this version cannot apply", "update unlearn-eval"
        )
    info = EditInfo(**description["info"])
    texts = {name: (folder / name).read_bytes().decode() for name in description.get("texts", ())}
    if kind == "dense":
        from unlearn_eval.edits.dense import read_dense

        return read_dense(folder, info, texts)
    if kind == "memory":
        from unlearn_eval.edits.memory.edit import read_memory

        return read_memory(folder, description, info, texts)
    return _read_low_rank(folder, description, info, texts)


def _read_low_rank(
    folder: Path, description: Mapping[str, Any], info: EditInfo, texts: Mapping[str, str]
) -> LowRankEdit:
    from safetensors.torch import load_file

    tensors = load_file(str(folder / ADAPTER))
    names = sorted(key[len(_PREFIX) : -len(".lora_A.weight")] for key in tensors if key.endswith(".lora_A.weight"))
    factors = {
        name: _unpadded(tensors[f"{_PREFIX}{name}.lora_B.weight"], tensors[f"{_PREFIX}{name}.lora_A.weight"])
        for name in names
    }
    adapter = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    state = load_file(str(folder / STATE)) if STATE in description["files"] else {}
    return LowRankEdit(factors, info, bool(adapter["fan_in_fan_out"]), state, texts)


@torch.no_grad()
def added(weight: Tensor, u: Tensor, v: Tensor, transposed: bool) -> Tensor:
    """W + U V in float32 (float64 of such a weight), rounded once to the weight's type."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    delta = u.to(weight.device, wide) @ v.to(weight.device, wide)
    return (weight.to(wide) + (delta.T if transposed else delta)).to(weight.dtype)


def concatenate(first: Factors, second: Factors) -> dict[str, tuple[Tensor, Tensor]]:
    """The factors of two edits made one after another: U = [U₁ U₂], V = [V₁; V₂] where both change a map.

    Each map's factors are on the device of the later edit, in the wider of both types.

    Raises:
        UserError: the two change one map in different shapes, so that they are of different models.
    """
    both = dict(first) | dict(second)
    for name in first.keys() & second.keys():
        (u, v), (more_u, more_v) = first[name], second[name]
        if (u.shape[0], v.shape[1]) != (more_u.shape[0], more_v.shape[1]):
            raise UserError(
                f"one edit's change of {name} is {u.shape[0]}×{v.shape[1]}, the other's "
                f"{more_u.shape[0]}×{more_v.shape[1]}",
                "go on from an edit of the same model",
            )
        wide = torch.promote_types(u.dtype, more_u.dtype)
        both[name] = (
            torch.cat([u.to(more_u.device, wide), more_u.to(wide)], dim=1),
            torch.cat([v.to(more_v.device, wide), more_v.to(wide)], dim=0),
        )
    return both


def compact(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with no more columns than the matrix has rows or columns (exact: a QR step)."""
    if u.shape[1] <= min(u.shape[0], v.shape[1]):
        return u, v
    if u.shape[0] <= v.shape[1]:
        q, r = torch.linalg.qr(u)
        return q, r @ v
    q, r = torch.linalg.qr(v.T)
    return u @ r.T, q.T


def read_description(folder: str | Path, check_files: bool = True) -> dict[str, Any]:
    """`edit.json` of a folder; its files are checked against it, unless told not to (errors as in `load_edit`)."""
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
            missing = [name for name in KINDS.get(kind, ()) if name not in files]
            if missing:
                raise ValueError(f"it does not list {' and '.join(missing)}")
            if not all(name in files and _PLAIN_NAME.fullmatch(name) for name in description.get("texts", ())):
                raise ValueError("it names a text that is not among its files")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__}: {error}", "make the edit again") from error
    if version > SCHEMA_VERSION:
        raise UserError(f"{folder} was written in format {version}, newer than {SCHEMA_VERSION}", "update unlearn-eval")
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


def _weight_of(model: nn.Module, name: str, u: Tensor, v: Tensor) -> Tensor:
    try:
        module = model.get_submodule(name)
        weight: Tensor = module.weight  # type: ignore[assignment]
    except AttributeError as error:
        raise UserError(
            f"the edit changes {name}, which this model does not have", "give the model it was made on"
        ) from error
    shape = (u.shape[0], v.shape[1])
    stored = tuple(reversed(weight.shape)) if is_transposed(module) else tuple(weight.shape)
    if shape != stored:
        raise UserError(
            f"the edit's change of {name} is {shape[0]}×{shape[1]}, the model's weight {stored[0]}×{stored[1]}",
            "give the model it was made on",
        )
    return weight


def _padded(factor: Tensor, rank: int, dim: int) -> Tensor:
    missing = rank - factor.shape[dim]
    if missing <= 0:
        return factor
    shape = [missing, factor.shape[1]] if dim == 0 else [factor.shape[0], missing]
    return torch.cat([factor, factor.new_zeros(shape)], dim=dim)


def _unpadded(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The factors without the zero columns and rows that `_padded` put behind them."""
    used = (u.any(dim=0) | v.any(dim=1)).nonzero()
    n = int(used.max()) + 1 if used.numel() else 0
    return u[:, :n], v[:n]


def for_disk(tensor: Tensor) -> Tensor:
    """A copy of its own (safetensors refuses views of one storage), floating numbers as float32."""
    tensor = tensor.detach().cpu()
    return tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype).clone().contiguous()


def _check_text_name(name: str, taken: Iterable[str]) -> None:
    if not _PLAIN_NAME.fullmatch(name):
        raise UserError(f"'{name}' is not a plain file name", "give a text of an edit a name such as targets.jsonl")
    if name.lower() in {other.lower() for other in taken}:  # some file systems do not tell A from a
        raise UserError(f"an edit's folder has a file {name} already", "give the text another name")


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _files_below(folder: Path) -> list[Path]:
    """Every file, also in subfolders: several chat templates go into one of their own."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def check_place(folder: Path, what: str, marker: str, option: str = "--output") -> None:
    """Refuse to write over anything but an empty folder, or one that holds the file `marker`."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / marker).is_file())):
        raise UserError(f"{folder} exists and is not an {what}", f"give another {option}")


def write_whole(folder: Path, what: str, marker: str, fill: Callable[[Path], None], option: str = "--output") -> Path:
    """Fill a folder beside its place and move it there; what was there goes only when that is done.

    Args:
        folder: where it should be; its parents are made.
        what: "edit" or "export", for errors.
        marker: the file that `fill` writes and by which an earlier folder of this kind is known.
        fill: writes the files into the folder it is given.
        option: with which the user named the folder, for hints.

    Raises:
        UserError: the folder exists and is something else, or it cannot be written (no space, no permission).
    """
    check_place(folder, what, marker, option)
    place = folder.resolve()  # through a link: the link stays
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    except OSError as error:
        raise UserError(f"cannot write the {what} to {folder}: {error}", f"give another {option}") from error
    try:
        fill(temporary)
        os.chmod(temporary, 0o755)
        for path in _files_below(temporary):
            path.chmod(0o644)  # safetensors writes for the owner alone
        _put_in_place(temporary, place)
    except Exception as error:
        if not _is_of_the_disk(error):
            raise
        reason = " ".join(str(error).split())
        raise UserError(
            f"cannot write the {what} to {folder}: {reason}", f"free some space or give another {option}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _is_of_the_disk(error: Exception) -> bool:
    """Whether writing failed: safetensors has its own error for that, and tokenizers a bare one with a number."""
    from safetensors import SafetensorError

    return isinstance(error, OSError | SafetensorError) or "(os error " in str(error)


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
