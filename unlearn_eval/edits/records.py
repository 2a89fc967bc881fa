"""What `edit.json` says of an edit, typed: its base, its requests, its self-check and its costs.

Each is written as it was read: with the same keys in the same order, and those that this version does not know. They
can be read like dictionaries too, as they were before version 0.2 (`info.requests["chat"]`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Self


@dataclass(frozen=True, eq=False)
class Stored(Mapping[str, Any]):
    """A JSON object with known fields. As a mapping it has the keys that are written; equal to a like dictionary.

    Attributes:
        more: what was read and is no known field.
        order: the keys as they were read; of a record that was made by hand, fields at their default are not written.
    """

    more: Mapping[str, Any] = field(default_factory=dict, kw_only=True, repr=False)
    order: tuple[str, ...] = field(default=(), kw_only=True, repr=False)

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Self:
        """The record of a JSON object; one of this class is returned as it is."""
        if isinstance(stored, cls):
            return stored
        known = cls._defaults()
        own = {key: value for key, value in stored.items() if key in known}
        more = {key: value for key, value in stored.items() if key not in known}
        return cls(**own, more=more, order=tuple(stored))

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        return {
            own.name: own.default if own.default_factory is MISSING else own.default_factory()
            for own in fields(cls)
            if own.name not in ("more", "order")
        }

    def __iter__(self) -> Iterator[str]:
        changed = [name for name, default in self._defaults().items() if getattr(self, name) != default]
        return iter(dict.fromkeys([*self.order, *self.more, *changed]))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, key: str) -> Any:
        if key not in list(self):
            raise KeyError(key)
        return self.more[key] if key in self.more else getattr(self, key)

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**self, **other}

    def __ror__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**other, **self}


@dataclass(frozen=True, eq=False)
class BaseRef(Stored):
    """The model that was edited.

    Attributes:
        id: a hub id or a folder.
        revision: the hub's commit; None for what is not from the hub.
        canonical_hash: of its weights at bfloat16, so any float type of the same checkpoint has it.
        architecture: the name of its class.
    """

    id: str | None = None
    revision: str | None = None
    canonical_hash: str | None = None
    architecture: str | None = None


@dataclass(frozen=True, eq=False)
class RequestSummary(Stored):
    """What was asked for.

    Attributes:
        n: how many items are to be forgotten, with those of the edits that this one continues.
        n_merged: how many requests this edit made of its own items.
        forget_set, forget_set_hash: where the items are from.
        sets: the forget sets, with those of the edits that this one continues; none of a fine-tuned model.
        ids: of all items.
        lookup: where each item's look-up token is: "subject" or "last content token".
        shapes: of items that are not asked as a question.
        hash: of the requests.
        chat: whether questions went through the chat template.
        system, chat_template_kwargs: the system message, and what the template was given besides, if anything.
        target: where the targets are from.
        merge, merge_size: how requests were merged.
        per_step: requests in each step; 0 is one step.
        contexts: texts that stood before the prompts.
        retain_set, retain_set_hash: what was to be retained.
    """

    n: int | None = None
    n_merged: int | None = None
    forget_set: str | None = None
    forget_set_hash: str | None = None
    sets: Sequence[Mapping[str, Any]] | None = None
    ids: Sequence[str] = ()
    lookup: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, str] = field(default_factory=dict)
    hash: str | None = None
    chat: bool | None = None
    system: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    target: str | None = None
    merge: str | None = None
    merge_size: int | None = None
    per_step: int | None = None
    contexts: Sequence[str] | None = None
    retain_set: str | None = None
    retain_set_hash: str | None = None


@dataclass(frozen=True, eq=False)
class SelfCheck(Stored):
    """Whether an edit took, teacher-forced on the plain prompts.

    Attributes:
        n: how many targets there are.
        n_took: how many of them are now the most likely answer.
        target_probability_before, target_probability_after: the targets' mean probability per token.
        answer_probability_before, answer_probability_after: that of the answers to be forgotten, where known.
        unrelated: Counts over ten unrelated questions, as `metrics.edit_checks.Unrelated` has them; empty if they were
            not asked.
    """

    n: int = 0
    n_took: int = 0
    target_probability_before: float = 0.0
    target_probability_after: float = 0.0
    answer_probability_before: float | None = None
    answer_probability_after: float | None = None
    unrelated: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Costs:
    """What making an edit took.

    Attributes:
        seconds: of the clock.
        peak_memory_bytes: the most memory that the process held; not that of a GPU.
    """

    seconds: float | None = None
    peak_memory_bytes: int | None = None
