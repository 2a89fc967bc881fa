"""The settings of whole runs; the only place where their defaults live (methods keep their own beside them)."""

from __future__ import annotations

from dataclasses import dataclass


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
    """

    model: str = "default"
    output: str = "demo"
    n_forget: int = 12
    n_retain: int = 48
    target: str = "idk"
    editor: str = "memit"
    seed: int = 0
    batch_size: int = 32
    device: str | None = None
    max_new_tokens: int = 24


@dataclass(frozen=True)
class EditConfig:
    """What `unlearn-eval edit` does.

    Attributes:
        model, device: as in `DemoConfig`.
        dtype: `auto`, `float32`, `bfloat16`, `float16`.
        editor: the method.
        forget: the forget set: a name or a file (see `forget_sets`).
        output: the folder of the edit.
        target: `idk`, `pool`, or a sentence.
        ids: only these items.
        limit: only so many items, chosen by the seed.
        chat: ask through the chat template; None does if the model has one.
        n_contexts: how many sampled openings stand before the question in further prompts.
        seed: of everything random.
        options: the method's own settings, by name.
    """

    model: str
    forget: str
    output: str
    editor: str = "memit"
    target: str = "idk"
    ids: tuple[str, ...] = ()
    limit: int | None = None
    chat: bool | None = None
    n_contexts: int = 3
    seed: int = 0
    device: str | None = None
    dtype: str = "float32"
    options: tuple[tuple[str, str], ...] = ()
