"""What a notes edit holds: the notes, how a question stands in a prompt, and which note is near a text.

`notes.py` says what they do to a model.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from unlearn_eval.edits.memory.store import Route, best_bound, one_of
from unlearn_eval.edits.stored import Ids
from unlearn_eval.models.embedding import Encoder, load_encoder
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.schemas import Count, Table, Whole

GATES = "none", "self", "encoder"
WORDS = "words"
WORDS_WIDTH = 4096
_WORD = re.compile(r"\w+")


def encoder_of(name: str) -> Encoder:
    """The encoder of a name (`load_encoder`), or `words`: counts of words, hashed, which needs no model."""
    return _WORDS if name == WORDS else load_encoder(name or None)


def _bags(texts: list[str], batch_size: int) -> Any:
    """(n, WORDS_WIDTH) how often each word stands in each text."""
    rows = np.zeros((len(texts), WORDS_WIDTH), dtype=np.float32)
    for row, text in zip(rows, texts, strict=True):
        for word in _WORD.findall(text.lower()):
            row[int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "big") % WORDS_WIDTH] += 1
    return rows


_WORDS = Encoder(WORDS, _bags)


@dataclass(frozen=True)
class Frame:
    """How the question stands in a prompt.

    Attributes:
        mark: the last tokens before the question.
        closing: the tokens after it.
        inside: whether a note comes behind the mark, as part of a user's message, and not before it.
        first: the token that begins every prompt (BOS); -1 if there is none.
    """

    mark: tuple[int, ...] = ()
    closing: tuple[int, ...] = ()
    inside: bool = False
    first: int = -1

    def parts(self, prompt: Sequence[int]) -> tuple[int, tuple[int, ...]]:
        """Where a note is inserted, and the question's ids; of a prompt of another form its beginning, and all of it.

        What follows the closing (the beginning of an answer) belongs to the question. The closing's last token may be
        missing at the end: of a context, lm-eval gives a last newline to the answer.
        """
        ids, cut = tuple(prompt), self.closing[:-1]
        end = len(ids) - len(cut) if cut and ids[-len(cut) :] == cut else _last(ids, self.closing)
        end = len(ids) if end < 0 else end
        start = _last(ids[:end], self.mark)
        if start < 0 or not self.mark:
            return min(int(ids[:1] == (self.first,)), len(ids) - 1), ids
        after = start + len(self.mark)
        place = min(after if self.inside else start, len(ids) - 1)  # the last token is read after the note
        return place, ids[after:end] + ids[end + len(self.closing) :]


@dataclass(frozen=True)
class Note:
    """One note.

    Attributes:
        question: that it is about, as text.
        ids: of the note, as it is inserted.
        example: ids of the note with its question and answer, for other questions.
    """

    question: str
    ids: tuple[int, ...]
    example: tuple[int, ...]


@dataclass(frozen=True)
class Insertion:
    """What is inserted into a prompt.

    Attributes:
        place: the number of the prompt's tokens before it.
        ids: of the text; where there are vectors, as many tokens that stand for them.
        vectors: (len(ids), d_model) what the model reads in place of those tokens' embeddings; None for text.
    """

    place: int
    ids: tuple[int, ...]
    vectors: Tensor | None = None


@dataclass(frozen=True)
class Asking:
    """How the model says itself whether a note is about a question: what it reads after the note, and two answers."""

    ids: tuple[int, ...] = ()
    yes: int = 0
    no: int = 0


@dataclass(frozen=True)
class Notes:
    """What a notes edit holds; every prompt is given to it as (nearest note, its value), see `NotesEdit.inputs`.

    Attributes:
        vectors: (N, d) the encoder's, of each note's question.
        threshold: (1,) from which value on the nearest note is used.
        notes: their texts.
        owners: the request of each.
        frame: how a question stands in a prompt.
        asking: of the gate `self`.
        gate, encoder: a name of `GATES`, and one that `encoder_of` takes.
        demonstrations: how many examples come before the note.
    """

    vectors: Tensor
    threshold: Tensor
    notes: tuple[Note, ...]
    owners: tuple[tuple[str, ...], ...]
    frame: Frame
    asking: Asking
    gate: str = "encoder"
    encoder: str = ""
    demonstrations: int = 0
    mechanism = "notes"
    bound = "threshold"

    @property
    def n(self) -> int:
        """How many notes."""
        return len(self.notes)

    @property
    def bounds(self) -> Tensor:
        """The threshold."""
        return self.threshold

    @property
    def longest(self) -> int:
        """How many tokens are inserted at most."""
        examples = sorted((len(note.example) for note in self.notes), reverse=True)
        return max((len(note.ids) for note in self.notes), default=0) + sum(examples[: self.demonstrations])

    @property
    def has_vectors(self) -> bool:
        """Whether vectors are inserted, in place of text."""
        return False

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model that cannot read what is inserted: of text there is none."""

    def insertion(self, place: int, order: Sequence[int]) -> Insertion:
        """The nearest note of an order, behind the examples of the next ones, the nearest last."""
        examples = [self.notes[i].example for i in order[1 : 1 + self.demonstrations]]
        return Insertion(place, sum(reversed(examples), ()) + self.notes[order[0]].ids)

    def tensors(self) -> dict[str, Tensor]:
        """Vectors and threshold."""
        return {"vectors": self.vectors, "threshold": self.threshold}

    def settings(self) -> dict[str, Any]:
        """Everything else."""
        plain = {name: getattr(self, name) for name in ("gate", "encoder", "demonstrations")}
        own = {"notes": list(map(asdict, self.notes)), "frame": asdict(self.frame), "asking": asdict(self.asking)}
        return plain | own | {"owners": [list(ids) for ids in self.owners]}

    def similar(self, text: str) -> Tensor:
        """(N,) cosines of one text; one at a time, so that no decision depends on what else is in a batch.

        Raises:
            UserError: the encoder cannot be had, or is another one.
        """
        if not text:
            return self.vectors.new_zeros(self.n)
        vector = torch.from_numpy(encoder_of(self.encoder)([text])[0])
        if len(vector) != self.vectors.shape[1]:
            raise UserError(
                f"the encoder gives vectors of {len(vector)} numbers, and the notes have {self.vectors.shape[1]}",
                "use the encoder with which the edit was made",
            )
        # Rounded, so that a question is as near to itself as can be.
        return (self.vectors * vector.to(self.vectors)).sum(-1).round(decimals=5)

    def routes(self, prompts: Sequence[Tensor]) -> list[Route]:
        """By the value of the nearest note."""
        measure, bound = "agreement" if self.gate == "self" else "similarity", float(self.threshold[0])
        found = []
        for nearest, value in (own.tolist() for own in prompts):
            if nearest < 0:
                found.append(Route(None, (), measure, None, None, False))
            else:
                i = int(nearest)
                found.append(Route(i, self.owners[i], measure, value, bound, value >= bound))
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Owners, threshold, tokens."""
        return [
            {"memory": i, "owners": list(owners), "threshold": float(self.threshold[0]), "numbers": len(note.ids)}
            for i, (owners, note) in enumerate(zip(self.owners, self.notes, strict=True))
        ]

    def calibrated(
        self, names: Sequence[str], own: Sequence[Tensor], edited: Sequence[Tensor], other: Sequence[Tensor]
    ) -> Notes:
        """One threshold, never above the value of an edited question; without a gate there is none to choose."""
        if not self.n or self.gate == "none":
            return self
        near, far = (torch.tensor([-float(given[1]) for given in some]) for some in (own, other))
        least = min(float(given[1]) for given in edited)
        return replace(self, threshold=torch.full_like(self.threshold, min(-best_bound(near, far), least)))


def _last(ids: tuple[int, ...], part: tuple[int, ...]) -> int:
    """Where a part stands last; -1 if nowhere, the end if it is empty."""
    starts = range(len(ids) - len(part), -1, -1)
    return next((i for i in starts if ids[i : i + len(part)] == part), -1)


class StoredFrame(Table):
    """`Frame`."""

    mark: Ids
    closing: Ids
    inside: bool
    first: Whole


class StoredAsking(Table):
    """`Asking`."""

    ids: Ids
    yes: Count
    no: Count


class StoredNote(Table):
    """`Note`."""

    question: str
    ids: Ids
    example: Ids


class NotesSettings(Table):
    """`memory.json` of notes."""

    mechanism: Literal["notes"]
    module: Literal[""]
    owners: list[list[str]]
    gate: Literal["none", "self", "encoder"]
    encoder: str
    demonstrations: Count
    frame: StoredFrame
    asking: StoredAsking
    notes: list[StoredNote]


def layout(settings: Mapping[str, Any]) -> dict[str, str]:
    """The shapes of the tensors, as `check_layout` takes them."""
    return {"vectors": "N d", "threshold": "1"}


def stored(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], gates: Sequence[str]) -> dict[str, Any]:
    """What `Notes` takes, of what was written (ValueError if the gate is none of `gates`)."""
    frame, asking = settings["frame"], settings["asking"]
    return {
        "vectors": tensors["vectors"],
        "threshold": tensors["threshold"],
        "notes": tuple(Note(own["question"], tuple(own["ids"]), tuple(own["example"])) for own in settings["notes"]),
        "owners": tuple(tuple(names) for names in settings["owners"]),
        "frame": Frame(tuple(frame["mark"]), tuple(frame["closing"]), frame["inside"], frame["first"]),
        "asking": Asking(tuple(asking["ids"]), asking["yes"], asking["no"]),
        "gate": one_of(settings["gate"], gates),
        "encoder": settings["encoder"],
        "demonstrations": settings["demonstrations"],
    }


def read_notes(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Notes:
    """From `memory.json` and `memory.safetensors` (ValueError if they do not fit each other)."""
    store = Notes(**stored(settings, tensors, GATES))
    if len({len(store.vectors), store.n, len(store.owners)}) != 1:
        raise ValueError("vectors, notes and owners are not equally many")
    return store
