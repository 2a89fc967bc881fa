"""The request kind `generate_later`: what is answered after the model's own answer, in the same conversation.

A request's arguments are those of `generate_until`; in its context `SAID` stands for the answer to an earlier request,
which `follow` names. lm-eval asks one kind after the other, so that this answer is there, and all requests of this kind
are one batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from unlearn_eval.harness import patching

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from unlearn_eval.harness.lm import LM

KIND = "generate_later"
SAID = "@@its-own-answer@@"


def install() -> None:
    """Give lm-eval's models the request kind."""
    patching.add_request_kind(KIND, answered, answered)


def follow(request: Instance, said: Callable[[], str]) -> None:
    """Let a request follow another one, whose answer `said` gives once it is there."""
    request.said = said


def answered(self: LM, asked: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
    """`generate_later` for every model that generates."""
    own = []
    for request in asked:
        context, settings = request.args
        own.append(copy.copy(request))
        own[-1].arguments = (context.replace(SAID, request.said()), settings)
    return list(self.generate_until(own))
