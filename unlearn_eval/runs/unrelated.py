"""Ten questions that no forget set is about, asked before and after an edit: what it broke shows in their answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from unlearn_eval.edits.base import Edit, applied
from unlearn_eval.metrics.edit_checks import Unrelated, unrelated_damage
from unlearn_eval.models import prompts
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.scoring import pad

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_NEW_TOKENS = 16

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
    before = _answers(loaded, prompt_format, rows)
    with applied(edit, loaded.model):
        after = _answers(loaded, prompt_format, rows)
    return unrelated_damage(before, after, [accepted for _, accepted in asked])


@torch.no_grad()
def _answers(loaded: LoadedModel, prompt_format: PromptFormat, rows: Sequence[Sequence[int]]) -> list[str]:
    """The model's own greedy answers; of a plain prompt the first line, since a base model goes on with a question."""
    model, tokenizer = loaded.model, loaded.tokenizer
    ends = prompt_format.end_tokens(model)
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    ids, mask = pad(rows, "left", model.device, filler=filler)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=ends,
        pad_token_id=filler,
    )
    texts = [
        str(tokenizer.decode(prompts.up_to_end(new, ends), skip_special_tokens=True))
        for new in output[:, ids.shape[1] :].tolist()
    ]
    return texts if prompt_format.chat else [text.strip().split("\n")[0] for text in texts]
