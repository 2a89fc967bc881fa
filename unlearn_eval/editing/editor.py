"""What every editor is: requests in, an edit out, and the model left as it was found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from unlearn_eval.data.shapes import QUESTION
from unlearn_eval.editing.from_file import editor_from_file, is_editor_file
from unlearn_eval.edits.base import Edit
from unlearn_eval.models.anatomy import is_transposed
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.registry import module_in, names_in

Progress = Callable[[str, int, int], Any]  # (what, done, total)
METHODS = "unlearn_eval.editors"


def no_progress(what: str, done: int, total: int) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True)
class EditRequest:
    """What a model should say after a prompt, in token ids.

    Attributes:
        id: of the forget item.
        prompt_ids: the whole rendered prompt, with its BOS, up to where the answer starts.
        lookup: index in `prompt_ids` of the token at which the fact is looked up.
        target_ids: what the model should say instead, without an end token unless it is part of the target.
        subject_ids: a short text that ends in the look-up token and whose continuation should stay as it is
            (for the KL term: a BOS and the subject); empty if there is no subject.
        contexts: the same prompt after other openings, as (prompt ids, look-up index) pairs.
        group: items of one group may be merged into one request.
        question: as text, before any template; empty if the request was made of ids.
        answer_ids: what the model is to forget: the true answer's tokens and the end token; empty if it is not known.
        members: if this request stands for several (query merging by key), those; they share one change of value, and
            everything else here is the first one's.
        shape: how the question was put to the model (see `ForgetItem.shape`).
    """

    id: str
    prompt_ids: tuple[int, ...]
    lookup: int
    target_ids: tuple[int, ...]
    subject_ids: tuple[int, ...] = ()
    contexts: tuple[tuple[tuple[int, ...], int], ...] = ()
    group: str | None = None
    question: str = ""
    answer_ids: tuple[int, ...] = ()
    members: tuple[EditRequest, ...] = ()
    shape: str = QUESTION

    @property
    def rows(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        """The plain prompt and its contexts, as (ids, look-up index)."""
        return ((self.prompt_ids, self.lookup), *self.contexts)

    @property
    def parts(self) -> tuple[EditRequest, ...]:
        """The requests this one stands for: its members, or itself."""
        return self.members or (self,)

    @property
    def record(self) -> dict[str, Any]:
        """The fields by name; `shape` only of what is no question, so that requests of questions keep their hashes."""
        own = {key: value for key, value in asdict(self).items() if (key, value) != ("shape", QUESTION)}
        return own | {"members": tuple(member.record for member in self.members)}


@runtime_checkable
class Editor(Protocol):
    """A module in `editors/`: a frozen dataclass `Config` and a function `edit`."""

    Config: type[Any]

    def edit(
        self,
        model: Any,
        tokenizer: Any,
        requests: Sequence[EditRequest],
        config: Any,
        generator: Any,
        state: Any = None,
        progress: Progress = no_progress,
    ) -> Edit:
        """The edit that makes the model say each request's target. The model is as before afterwards.

        `state` is an earlier edit by the same method on the same model: the new one goes on from it and holds both.
        An editor with a parameter `moments` is given the same `SecondMoments` in every step of one sequence.
        A method that is trained also takes `retain`, requests whose answers are to be kept.
        """


def editor_names() -> list[str]:
    """The names of the methods: the files in `editors/`."""
    return names_in(METHODS)


def get_editor(name: str) -> Editor:
    """The editor called `name`, or in the file of that path (`my_editor.py`).

    Raises:
        UserError: there is none, and the nearest names are given; or the file holds no editor.
    """
    if is_editor_file(name):
        return editor_from_file(name)  # type: ignore[no-any-return]
    return module_in(METHODS, name, "editor")  # type: ignore[no-any-return]


def check_state(state: Edit | None, name: str) -> None:
    """Refuse to go on with the method `name` from an edit that another one made."""
    if state is not None and state.info.editor != name:
        raise UserError(
            f"the edit to go on from was made by {state.info.editor}, not by {name}",
            f"use --editor {state.info.editor}, or start a new edit",
        )


def no_change(model: nn.Module, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Factors of no column for some linear maps: they change nothing, and PEFT reads no edit that names no map."""
    factors = {}
    for name in names:
        module = model.get_submodule(name)
        shape: Sequence[int] = module.weight.shape  # type: ignore[assignment, union-attr]
        d_out, d_in = reversed(shape) if is_transposed(module) else shape
        factors[name] = torch.zeros(d_out, 0), torch.zeros(0, d_in)
    return factors
