"""Edits read from their folders, and the base model that each belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from unlearn_eval.edits.base import MEMORY, EditInfo
from unlearn_eval.edits.dense import DenseEdit, read_dense
from unlearn_eval.edits.folder import check_names_base, read_description
from unlearn_eval.edits.low_rank import LowRankEdit, read_low_rank
from unlearn_eval.edits.memory.read import AnyMemoryEdit, read_memory
from unlearn_eval.edits.places import local_folder
from unlearn_eval.edits.records import BaseRef
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.weights import known_weights
from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AnyEdit = LowRankEdit | DenseEdit | AnyMemoryEdit
READERS: Mapping[str, Callable[..., AnyEdit]] = {
    LowRankEdit.kind: read_low_rank,
    DenseEdit.kind: read_dense,
    MEMORY: read_memory,
}  # kind of edit -> how its folder is read


def load_edit(folder: str | Path) -> Any:
    """The edit in a folder (one of `AnyEdit`), after checking its files: are they as written?

    Args:
        folder: Folder of the edit, or `hub:ORG/NAME[@REVISION]`.

    Raises:
        UserError: no such folder, not an edit, a file is missing or was changed, or a newer format.
    """
    folder = local_folder(folder)
    description = read_description(folder)
    kind = description["kind"]
    if kind not in READERS:
        raise UserError(
            f"{folder} holds an edit of the kind '{kind}', which this version cannot apply", "update unlearn-eval"
        )
    info = EditInfo(**description["info"])
    texts = {name: (folder / name).read_bytes().decode() for name in description.get("texts", ())}
    return READERS[kind](folder, description, info, texts)


def check_base(
    info: EditInfo, model: nn.Module | LoadedModel, name: str = "this model", any_base: bool = False
) -> None:
    """Refuse a model that is not the one the edit was made on (compared at bfloat16, so any float type loads).

    Args:
        info: of the edit.
        model: the base model.
        name: what it is called in errors.
        any_base: whether an edit may leave open which model it was made on.

    Raises:
        UserError: the edit names another model, or none.
    """
    expected = info.base.canonical_hash
    if not any_base:
        check_names_base(info.base, "make the edit again; or, if you know its base, give --any-base")
    if isinstance(model, LoadedModel):
        found, name = model.weights.canonical, model.name
    else:
        found = known_weights(model).canonical
    if expected and found != expected:
        raise UserError(
            f"the edit was made on {info.base.id} (weights {expected[:12]}), and {name} has other weights "
            f"({found[:12]})",
            "give the base model that edit.json names, without other edits",
        )


def describe_base(model: PreTrainedModel | LoadedModel, name: str = "", revision: str | None = None) -> BaseRef:
    """The `base` entry of an edit; a `LoadedModel` has a name and a revision of its own."""
    if isinstance(model, LoadedModel):
        described = {
            "id": model.path if model.name == "default" else model.name,
            "revision": model.revision,
            "canonical_hash": model.weights.canonical,
            "architecture": type(model.model).__name__,
        }
    else:
        described = {
            "id": name,
            "revision": revision,
            "canonical_hash": known_weights(model).canonical,
            "architecture": type(model).__name__,
        }
    return BaseRef.of(described)  # a revision that is None is written too
