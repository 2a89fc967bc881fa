r"""What a prefix edit holds: continuous vectors in place of notes, and the gates that say which question gets which.

A prefix is L vectors in the space of the model's token embeddings, put where a note would be put (`notes.py` has what
is done with them). Its gates are those of notes, and one more:

    sentinel    with a query head h, keys k_i and a sentinel Θ, all of d numbers:
                value of prefix i = (h(e)ᵀk_i − h(e)ᵀΘ) / √d, e the encoder's vector of the question

so a prefix answers where it is nearer to the question than the sentinel is (RECIPE, arXiv 2405.03279, equation 8).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unlearn_eval.edits.memory import notes_store
from unlearn_eval.edits.memory.notes_store import Insertion, Notes, NotesSettings, stored
from unlearn_eval.edits.memory.store import Route
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.schemas import Count

SENTINEL = "sentinel"
GATES = (*notes_store.GATES, SENTINEL)
NOTHING = -1e6  # the margin of a prompt without a question


@dataclass(frozen=True)
class Head:
    """A linear map and a residual block: u = Ae + a, h(e) = u + C relu(Bu + b) + c.

    Attributes:
        weights: A (d, d_encoder), a (d), B (d_hidden, d), b (d_hidden), C (d, d_hidden), c (d), in this order.
    """

    weights: tuple[Tensor, ...]

    NAMES = "into", "into_bias", "up", "up_bias", "down", "down_bias"
    SHAPES = "d e", "d", "h d", "h", "d h", "d"

    @classmethod
    def new(cls, d_in: int, d: int, d_hidden: int, generator: torch.Generator) -> Head:
        """A from N(0, 1), for vectors of length 1; B from N(0, 1/columns); C and biases of 0."""
        into = torch.randn(d, d_in, generator=generator)
        up = torch.randn(d_hidden, d, generator=generator) / math.sqrt(d)
        zeros = torch.zeros
        return cls((into, zeros(d), up, zeros(d_hidden), zeros(d, d_hidden), zeros(d)))

    def __call__(self, vectors: Tensor) -> Tensor:
        """(..., d) of the encoder's vectors (..., d_encoder)."""
        into, into_bias, up, up_bias, down, down_bias = self.weights
        first = vectors @ into.T + into_bias
        return first + torch.relu(first @ up.T + up_bias) @ down.T + down_bias

    def named(self, prefix: str) -> dict[str, Tensor]:
        """The weights by the names under which they are stored."""
        return {f"{prefix}_{name}": own for name, own in zip(self.NAMES, self.weights, strict=True)}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], prefix: str) -> Head:
        """Those stored under a prefix."""
        return cls(tuple(tensors[f"{prefix}_{name}"] for name in cls.NAMES))


@dataclass(frozen=True)
class Prefixes(Notes):
    """What a prefix edit holds.

    Attributes:
        vectors: (N, d) the encoder's, of each prefix's question; under the gate `sentinel` the keys k_i.
        threshold, owners, frame, asking, gate, encoder: as of notes.
        notes: the question of each, with ids for the gate `self` alone.
        prompts: (M, L, d_model) the prefixes.
        prompt_of: which of them each of the N questions has; several questions may share one.
        query: h of the gate `sentinel`.
        sentinel: (d,) its Θ.
        trained: tensors with which further prefixes are made, by name.
    """

    prompts: Tensor = torch.zeros(0, 1, 1)
    prompt_of: tuple[int, ...] = ()
    query: Head | None = None
    sentinel: Tensor | None = None
    trained: Mapping[str, Tensor] | None = None
    mechanism = "prefix"

    @property
    def longest(self) -> int:
        """How many vectors are inserted."""
        return self.prompts.shape[1]

    @property
    def has_vectors(self) -> bool:
        """They are."""
        return True

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model whose embeddings have another width than the prefixes.

        Raises:
            UserError: naming both.
        """
        width = int(model.get_input_embeddings().weight.shape[1])  # type: ignore[operator]
        if width != self.prompts.shape[2]:
            raise UserError(
                f"the edit's prefixes have {self.prompts.shape[2]} numbers, and this model's embeddings {width}",
                "give the model it was made on",
            )

    def insertion(self, place: int, order: Sequence[int]) -> Insertion:
        """The prefix of the nearest question; the tokens that stand for it are those that begin a prompt."""
        vectors = self.prompts[self.prompt_of[order[0]]]
        return Insertion(place, (max(self.frame.first, 0),) * len(vectors), vectors)

    def joined(self, other: Prefixes) -> Prefixes:
        """These and another edit's behind them, with that one's threshold, frame and what it was trained with."""
        return replace(
            other,
            vectors=torch.cat([self.vectors, other.vectors]) if other.n else self.vectors,
            notes=(*self.notes, *other.notes),
            owners=(*self.owners, *other.owners),
            prompts=torch.cat([self.prompts, other.prompts]),
            prompt_of=(*self.prompt_of, *(i + len(self.prompts) for i in other.prompt_of)),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Vectors, threshold, prefixes, and what the gate and the making of prefixes need."""
        found = super().tensors() | {"prompts": self.prompts} | dict(self.trained or {})
        if self.query is not None and self.sentinel is not None:
            found |= self.query.named("query") | {"sentinel": self.sentinel}
        return found

    def settings(self) -> dict[str, Any]:
        """Everything else."""
        return super().settings() | {"prompt_of": list(self.prompt_of), "trained": bool(self.trained)}

    def similar(self, text: str) -> Tensor:
        """(N,) cosines of one text, or under the gate `sentinel` how much nearer than Θ each key is.

        Raises:
            UserError: the encoder cannot be had, or is another one.
        """
        if self.query is None or self.sentinel is None:
            return super().similar(text)
        if not text:
            return self.vectors.new_full((self.n,), NOTHING)
        vector = torch.from_numpy(notes_store.encoder_of(self.encoder)([text])[0])
        if len(vector) != self.query.weights[0].shape[1]:
            raise UserError(
                f"the encoder gives vectors of {len(vector)} numbers, and the gate reads "
                f"{self.query.weights[0].shape[1]}",
                "use the encoder with which the edit was made",
            )
        asked = self.query(vector.to(self.vectors))
        margins = ((self.vectors - self.sentinel) * asked).sum(-1) / math.sqrt(self.vectors.shape[1])
        return margins.round(decimals=5)

    def routes(self, prompts: Sequence[Tensor]) -> list[Route]:
        """By the value of the nearest; under the gate `sentinel` it is called a margin."""
        found = super().routes(prompts)
        return [replace(own, measure="margin") for own in found] if self.gate == SENTINEL else found

    def rows(self) -> list[dict[str, Any]]:
        """Owners, threshold, and how many numbers the prefix has."""
        return [own | {"numbers": self.prompts[0].numel()} for own in super().rows()]


class PrefixSettings(NotesSettings):
    """`memory.json` of prefixes."""

    mechanism: Literal["prefix"]  # type: ignore[assignment]
    gate: Literal["none", "self", "encoder", "sentinel"]  # type: ignore[assignment]
    prompt_of: list[Count]
    trained: bool


def layout(settings: Mapping[str, Any]) -> dict[str, str]:
    """The shapes of the tensors, as `check_layout` takes them."""
    found = {"vectors": "N d" if settings["gate"] == SENTINEL else "N e", "threshold": "1", "prompts": "M L D"}
    if settings["gate"] == SENTINEL:
        found |= {f"query_{name}": shape for name, shape in zip(Head.NAMES, Head.SHAPES, strict=True)}
        found |= {"sentinel": "d"}
    return found | (TRAINED if settings["trained"] else {})


# Shapes of what further prefixes are made with (`editors/memory/recipe.py`).
TRAINED = {
    **{f"key_{name}": shape for name, shape in zip(Head.NAMES, Head.SHAPES, strict=True)},
    "prompt_up": "p d",
    "prompt_up_bias": "p",
    "prompt_down": "q p",
    "prompt_down_bias": "q",
}


def read_prefixes(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Prefixes:
    """From `memory.json` and `memory.safetensors` (ValueError if they do not fit each other)."""
    common = stored(settings, tensors, GATES)
    gated = common["gate"] == SENTINEL
    store = Prefixes(
        **common,
        prompts=tensors["prompts"],
        prompt_of=tuple(settings["prompt_of"]),
        query=Head.read(tensors, "query") if gated else None,
        sentinel=tensors["sentinel"] if gated else None,
        trained={name: tensors[name] for name in TRAINED} if settings["trained"] else None,
    )
    if len({len(store.vectors), store.n, len(store.owners), len(store.prompt_of)}) != 1:
        raise ValueError("vectors, questions, owners and their prefixes are not equally many")
    if any(i >= len(store.prompts) for i in store.prompt_of):
        raise ValueError("a question has a prefix that is not there")
    return store
