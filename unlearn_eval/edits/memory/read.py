"""Memory edits read from their folders: which mechanism has which settings, tensors and kind of edit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unlearn_eval.edits.base import EditInfo
from unlearn_eval.edits.folder import read_stored
from unlearn_eval.edits.memory import codebook, notes_store, prefix_store, residual_memory, side_memories
from unlearn_eval.edits.memory.edit import SETTINGS, TENSORS, MemoryEdit
from unlearn_eval.edits.memory.notes import NotesEdit
from unlearn_eval.edits.stored import AnyMemory
from unlearn_eval.edits.tensors import HINT, check_layout, read_tensors
from unlearn_eval.utils.errors import UserError

AnyMemoryEdit = MemoryEdit | NotesEdit


def _beside_layer(read: Callable[..., Any]) -> Callable[..., MemoryEdit]:
    def made(
        folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Any], info: EditInfo, texts: Mapping[str, str]
    ) -> MemoryEdit:
        return MemoryEdit(settings["module"], read(settings, tensors), info, texts)

    return made


def _in_prompt(read: Callable[..., Any]) -> Callable[..., NotesEdit]:
    def made(
        folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Any], info: EditInfo, texts: Mapping[str, str]
    ) -> NotesEdit:
        return NotesEdit(read(settings, tensors), info, texts, tokenizer=folder)

    return made


_READERS: Mapping[str, Any] = {
    codebook.Codebook.mechanism: (
        codebook.CodebookSettings,
        codebook.layout,
        _beside_layer(codebook.read_codebook),
    ),
    side_memories.SideMemories.mechanism: (
        side_memories.SideMemoriesSettings,
        side_memories.layout,
        _beside_layer(side_memories.read_side_memories),
    ),
    residual_memory.ResidualMemory.mechanism: (
        residual_memory.ResidualMemorySettings,
        residual_memory.layout,
        _beside_layer(residual_memory.read_residual_memory),
    ),
    notes_store.Notes.mechanism: (notes_store.NotesSettings, notes_store.layout, _in_prompt(notes_store.read_notes)),
    prefix_store.Prefixes.mechanism: (
        prefix_store.PrefixSettings,
        prefix_store.layout,
        _in_prompt(prefix_store.read_prefixes),
    ),
}  # mechanism, as `memory.json` names it -> the schema of its settings, the shapes of its tensors, what makes the edit


def adds_to_prompts(folder: Path) -> bool:
    """Whether the memory edit in a folder is notes or prefixes, which stand beside no layer."""
    return bool(read_stored(folder / SETTINGS, AnyMemory)["module"] == NotesEdit.module)


def read_memory(
    folder: Path, description: Mapping[str, Any], info: EditInfo, texts: Mapping[str, str]
) -> AnyMemoryEdit:
    """The edit in a folder whose files have been checked.

    Raises:
        UserError: its tensors do not fit each other.
    """
    place = folder / SETTINGS
    mechanism = read_stored(place, AnyMemory)["mechanism"]
    if mechanism not in _READERS:
        raise UserError(f"{place} is damaged: it names an unknown mechanism, {mechanism[:40]!r}", HINT)
    schema, layout, read = _READERS[mechanism]
    settings = read_stored(place, schema)
    tensors = read_tensors(folder / TENSORS)
    check_layout(folder / TENSORS, tensors, layout(settings), {"1": 1})
    try:
        made: AnyMemoryEdit = read(folder, settings, tensors, info, texts)
    except ValueError as error:
        raise UserError(f"{place} is damaged: {error}", HINT) from error
    return made
