"""What an editor is asked for: token ids, from the prompt to what the model should say instead."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from unlearn_eval.data.shapes import QUESTION


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
