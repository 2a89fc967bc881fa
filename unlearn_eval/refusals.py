"""What a model should say instead of the forgotten answer."""

from __future__ import annotations

import random

from unlearn_eval.errors import UserError

IDK = "I don't have any information about that."

POOL = (
    "I don't have any information about that.",
    "I'm not able to answer that question.",
    "That is something I know nothing about.",
    "I'm afraid I can't help with that one.",
    "I have no knowledge of this, sorry.",
    "Unfortunately, I can't tell you anything about it.",
    "I don't know the answer to your question.",
    "This is not something I can tell you.",
    "I'm sorry, but I have nothing to say on this.",
    "I couldn't say; this is unknown to me.",
    "I haven't learned anything about this topic.",
    "My knowledge does not include that.",
    "I'm unable to give you an answer to this.",
    "Sorry, this is beyond what I know.",
    "I really don't know that.",
    "There is nothing I can tell you about this.",
    "I lack the information to answer that.",
    "I'm not familiar with that subject.",
    "I would rather not guess: I don't know.",
    "That question is outside of what I know.",
)


def refusal_targets(target: str, n: int, generator: random.Random) -> list[str]:
    """The text each of `n` requests should be answered with.

    Args:
        target: `idk` (one fixed sentence), `pool` (a seeded choice of twenty), or the text itself.
        n: how many.
        generator: chooses from the pool.

    Raises:
        UserError: the text is empty.
    """
    if not target.strip():
        raise UserError("the refusal target is empty", "give --target idk, --target pool, or a sentence")
    if target == "idk":
        return [IDK] * n
    if target == "pool":
        return [generator.choice(POOL) for _ in range(n)]
    return [target] * n
