"""Ten questions that no forget set is about, asked before and after an edit: what it broke shows in their answers."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from unlearn_eval.edits.base import Edit, applied
from unlearn_eval.metrics.edit_checks import Unrelated, unrelated_damage
from unlearn_eval.models.generation import written
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.weights import known_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

MAX_NEW_TOKENS = 16

_KNOWN: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], list[str]]] = WeakKeyDictionary()
QUESTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("What is 2 + 3?", ("5", "five")),
    ("How many days are there in a week?", ("7", "seven")),
    ("What color is the sky on a clear day?", ("blue",)),
    ("Which animal says meow?", ("cat", "cats", "kitten")),
    ("What is the opposite of hot?", ("cold",)),
    ("Which month comes after March?", ("April",)),
    ("What do bees make?", ("honey",)),
    ("How many legs does a dog have?", ("4", "four")),
    ("What is frozen water called?", ("ice",)),
    ("What is the plural of mouse?", ("mice",)),
)


def ask_unrelated(
    loaded: LoadedModel, prompt_format: PromptFormat, edit: Edit, forgotten: Sequence[str] = ()
) -> Unrelated | None:
    """What an edit did to the questions that it should leave alone; None if all of them are to be forgotten.

    Greedy answers of at most 16 tokens, all questions in one batch, without and with the edit.

    Args:
        loaded: Base model.
        prompt_format: Form in which the edit's own questions are asked.
        edit: Edit of that model.
        forgotten: Questions that are to be forgotten; none of them is asked.
    """
    left_out = {question.strip() for question in forgotten}
    asked = [(question, accepted) for question, accepted in QUESTIONS if question not in left_out]
    if not asked:
        return None
    rows = [prompt_format.prompt_ids(question) for question, _ in asked]
    before = _as_it_is(loaded, prompt_format, rows)
    with applied(edit, loaded.model):
        after = _answers(loaded, prompt_format, rows)
    return unrelated_damage(before, after, [accepted for _, accepted in asked])


def _as_it_is(loaded: LoadedModel, prompt_format: PromptFormat, rows: Sequence[Sequence[int]]) -> list[str]:
    """The answers without an edit, which are the same for every edit of a model, and are asked for once."""
    known = _KNOWN.setdefault(loaded.model, {})
    key = known_weights(loaded.model).exact, prompt_format.chat, tuple(map(tuple, rows))
    if key not in known:
        known[key] = _answers(loaded, prompt_format, rows)
    return known[key]


def _answers(loaded: LoadedModel, prompt_format: PromptFormat, rows: Sequence[Sequence[int]]) -> list[str]:
    """The model's own greedy answers; of a plain prompt the first line, since a base model goes on with a question."""
    texts = written(loaded.model, prompt_format, rows, len(rows), MAX_NEW_TOKENS)
    return texts if prompt_format.chat else [text.split("\n")[0] for text in texts]
