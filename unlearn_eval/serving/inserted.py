"""Notes and prefixes in an engine: what they add to a request's prompt is put there before anything is scheduled.

Every request comes to an engine's core by one method, whatever route, class or front end it took (`patching.py`). There
its tokens become those that `--model edited` would run: the front end, and so the client, keeps the prompt that it
sent. The model and its workers are vLLM's own. They read other tokens, so batches, chunks, caches and preemption need
nothing of ours. Of prefixes they read vectors in the places of tokens that stand for them.

This knows nothing of vLLM.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from unlearn_eval.edits.load import load_edit
from unlearn_eval.edits.memory.notes import NotesEdit
from unlearn_eval.edits.memory.notes_store import Insertion, encoder_of
from unlearn_eval.models.prompt_ends import PROMPT_END, said_prompt_end
from unlearn_eval.utils.errors import UserError


def load_inserting(folder: Path) -> NotesEdit:
    """The notes or prefixes in a folder (errors as `load_edit`).

    Raises:
        UserError: the model itself says when they are read, and in an engine it is asked for nothing but answers.
    """
    edit: NotesEdit = load_edit(folder)
    if edit.store.gate == "self":
        raise UserError(
            f"{folder} asks the model itself whether a note fits (gate=self), which vLLM cannot do before it answers",
            "run it with Hugging Face (--model edited), or make the edit with --set gate=encoder",
        )
    return edit


class Inserting:
    """The notes or prefixes of an engine, for its requests.

    Args:
        edit: whose gate does not ask the model.
        dtype: of the model's embeddings.
        longest: tokens of a sequence at most.
        scoring: whether requests say where their prompts end.

    Raises:
        UserError: its encoder or its tokenizer cannot be had.
    """

    def __init__(self, edit: NotesEdit, dtype: torch.dtype, longest: int, scoring: bool) -> None:
        self._edit, self._dtype, self._longest, self._scoring = edit, dtype, longest, scoring
        if edit.store.n:  # whatever is missing is said now
            encoder_of(edit.store.encoder)(["a"])
            edit.insertions(None, [(0,)])

    def __call__(self, request: Any) -> Any:
        """A request (vLLM's `EngineCoreRequest`) with the prompt that the model is to read; the given one stays as is.

        Raises:
            RuntimeError: it has a prompt in which nothing can be found. No front end lets such pass.
        """
        ids = request.prompt_token_ids
        if not ids or request.prompt_embeds is not None or request.mm_features or request.resumable:
            raise RuntimeError("notes are chosen by a prompt's tokens, and this request has others than tokens alone")
        said = said_prompt_end(request.sampling_params, len(ids)) if self._scoring else None
        (own,) = self._edit.insertions(None, [tuple(ids[: said or len(ids)])])
        if own is None:
            return request
        changed = copy.copy(request)
        changed.prompt_token_ids = [*ids[: own.place], *own.ids, *ids[own.place :]]
        if len(changed.prompt_token_ids) >= self._longest:
            raise RuntimeError(
                f"the prompt and what a memory edit adds to it are longer than {self._longest - 1} tokens"
            )
        if said is not None:
            changed.sampling_params = copy.copy(request.sampling_params)
            changed.sampling_params.extra_args = {**request.sampling_params.extra_args, PROMPT_END: said + len(own.ids)}
        if own.vectors is not None:
            self._embed(changed, own)
        return changed

    def _embed(self, request: Any, own: Insertion) -> None:
        """Say which of the prompt's tokens stand for vectors, and for which."""
        assert own.vectors is not None
        n, places = len(request.prompt_token_ids), slice(own.place, own.place + len(own.ids))
        request.prompt_embeds = torch.zeros(n, own.vectors.shape[1], dtype=self._dtype)
        request.prompt_embeds[places] = own.vectors.to(self._dtype)
        request.prompt_is_token_ids = [not places.start <= i < places.stop for i in range(n)]
