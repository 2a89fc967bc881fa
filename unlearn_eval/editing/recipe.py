"""The settings of whole runs; the only place where their defaults live (methods keep their own beside them)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unlearn_eval.editing.presets import DEFAULT_EDITOR
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.settings import check_batch_size


@dataclass(frozen=True)
class DemoConfig:
    """What `unlearn-eval demo` does.

    Attributes:
        model: hub id, folder, GGUF file, or `default` (SmolLM2-135M-Instruct).
        output: the folder of everything that it writes; a second run goes on from what is there.
        n_forget: how many of the facts that the model knows are to be forgotten.
        n_retain: how many others that it knows are to be kept.
        target: what it should say instead: `idk`, `pool`, or a sentence.
        editor: the method.
        seed: chooses the facts, samples the contexts and the text for second moments.
        batch_size: rows per forward pass.
        device: `cpu`, `cuda`, ...; None takes a GPU if there is one.
        max_new_tokens: length of a free answer.
        keys_per_dimension: how much text the editor's second moments are taken of, if it uses them.
    """

    model: str = "default"
    output: str = "demo"
    n_forget: int = 12
    n_retain: int = 48
    target: str = "idk"
    editor: str = DEFAULT_EDITOR
    seed: int = 0
    batch_size: int = 32
    device: str | None = None
    max_new_tokens: int = 24
    keys_per_dimension: float = 15.0

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)


MERGES = ("none", "text", "key")


@dataclass(frozen=True)
class Recipe:
    """How a forget set becomes requests, whatever the method.

    Attributes:
        target: what to say instead: `idk`, `pool`, `self` (the model's own refusals), `wrong` (a wrong answer),
            `answer` (the set's own: new facts are edited in), a file of targets, or a sentence.
        merge: `none`, `text` (the questions of a group in one prompt) or `key` (one change of value for a group).
        merge_size: how many at most are merged.
        per_step: requests per step; each step starts from the model as the steps before have edited it. 0 is all at
            once.
        chat: ask through the chat template; None does if there is one.
        n_contexts: how many sampled openings stand before the question in further prompts: 3 here, for speed; 5 in
            MEMIT's and AlphaEdit's code (beside the bare prompt), 21 prompts in ROME's, 10 openings in WISE's.
        preset: whether the model's published settings are used, where there are some.
        seed: of everything random.
        system: system message of every prompt.
        chat_template_kwargs: further arguments of the chat template, such as `{"enable_thinking": False}`.
    """

    target: str = "idk"
    merge: str = "none"
    merge_size: int = 5
    per_step: int = 0
    chat: bool | None = None
    n_contexts: int = 3
    preset: bool = True
    seed: int = 0
    system: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.merge not in MERGES:
            raise unknown_name("kind of merging", self.merge, MERGES)
        if self.merge_size < 1 or self.per_step < 0 or self.n_contexts < 0:
            raise UserError(
                f"merge_size {self.merge_size}, per_step {self.per_step}, contexts {self.n_contexts} do not make sense",
                "merge at least 1, and give no negative numbers",
            )
