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
        keys_per_dimension: how much text the editor's second moments are taken of, if it uses them.
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
    keys_per_dimension: float = 15.0
