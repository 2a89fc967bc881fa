"""The request kind `answer_divergence`: how far the model's next-token distributions are from the unedited model's.

A request's arguments are `(context, answer, options)` as for `answer_logprobs`, with `options["base"]`, the name of the
unedited model or None; its response is `{"kl": [...], "n_answer"}`, KL(unedited || model) in nats at each label, or
`{"unscored": why}`. The unedited model is the model itself with its edit (`--model edited`) or its adapter (`hf` with
`peft=`) taken off; of other models, and of edits of whole tensors, it is loaded beside it for the length of this kind.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from unlearn_eval.harness import patching, requests
from unlearn_eval.harness.lm import autocast
from unlearn_eval.utils.errors import UserError

KIND = "answer_divergence"
UNNAMED = "the unedited model is not known: name it with --metadata '{\"base\": MODEL}'"
Unedited = Callable[[], AbstractContextManager[Any]]


def install() -> None:
    """Give lm-eval's models the request kind, as `requests.install` does."""
    patching.add_request_kind(KIND, not_given, from_transformers)


def not_given(self: Any, asked: Sequence[Any], disable_tqdm: bool = False) -> list[dict[str, Any]]:
    """`answer_divergence` for a model that gives no distributions."""
    return [{"unscored": f"{type(self).__name__} gives no distributions over its vocabulary"} for _ in asked]


def from_transformers(self: Any, asked: Sequence[Any], disable_tqdm: bool = False) -> list[dict[str, Any]]:
    """`answer_divergence` for lm-eval's `hf` model and ours."""
    from tqdm.auto import tqdm

    from unlearn_eval.models.scoring import answer_divergences

    if self.backend != "causal":
        return not_given(self, asked, disable_tqdm)
    unedited = _unedited(self, asked[0].args[2]["base"])
    if unedited is None:
        return [{"unscored": UNNAMED} for _ in asked]
    encode = functools.cache(lambda text: list(self.tok_encode(text)))
    read = []
    for request in asked:
        context, answer, options = request.args
        read.append(requests.make_query(self, context, answer, options, encode))
    reasons = [requests.cannot_score(query, labels, self.max_length) for query, labels in read]
    queries = [query for (query, _), reason in zip(read, reasons, strict=True) if reason is None]
    bar = tqdm(total=len(queries), desc=f"Running {KIND} requests", disable=disable_tqdm or self.rank != 0)
    with bar, autocast(self):
        found = iter(answer_divergences(self.model, unedited, queries, bar.update))
    return [
        {"unscored": reason} if reason else {"kl": next(found), "n_answer": labels.n_answer}
        for (_, labels), reason in zip(read, reasons, strict=True)
    ]


def taken_off(lm: Any) -> Unedited | None:
    """What takes the edit or the adapter off the model and puts it back; None if there is none, or none that can be."""
    if getattr(lm, "can_be_undone", False):
        undo: Unedited = lm.without_edit
        return undo
    if hasattr(lm.model, "disable_adapter"):
        return lambda: _without_adapter(lm.model)
    return None


def _unedited(lm: Any, name: str | None) -> Unedited | None:
    """What gives the unedited model, or None if nobody knows it."""
    if (undone := taken_off(lm)) is not None:
        return undone
    if name is None and hasattr(lm, "edit_info"):
        name = str(lm.pretrained)
    if name is None:
        return None
    base = _load(lm, name)
    return lambda: nullcontext(base)


@contextmanager
def _without_adapter(model: Any) -> Iterator[Any]:
    with model.disable_adapter():
        yield model


def _load(lm: Any, name: str) -> Any:
    """The unedited model, of the same type and on the same device.

    Raises:
        UserError: it cannot be had, or has another vocabulary.
    """
    from unlearn_eval.models.load import load_model

    loaded = load_model(name, str(lm.model.dtype).removeprefix("torch."), str(lm.device))
    if loaded.tokenizer.get_vocab() != lm.tokenizer.get_vocab():
        raise UserError(f"the base {name} has another vocabulary than the model", "name the model that was edited")
    return loaded.model
