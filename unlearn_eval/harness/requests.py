"""The request kind `answer_logprobs`, for lm-eval's own models and ours.

lm-eval sends a document's requests to the model by name (`getattr(lm, kind)`). `install()` adds this kind to
its base class, with what plain `loglikelihood` can give, and to `hf`, with everything, from one forward pass
per answer. It is called when one of our tasks is built, and makes `hf` faster on CPUs; it changes nothing else.

A request's arguments are `(context, answer, options)`, its response is a JSON object:
`token_nll, hits, ranks` (lists over the T labels), `n_answer`, `text`, where it is known `n_vocabulary`; with
`options["moments"]` also `means, variances`, with `options["free_running"]` also `free_ranks, prompt_confidence` (see
`scoring.FreeRunning`), with `options["gradients"]` (the order of a norm) also `gradient_norm`, with
`options["reference"]` (a model) also `reference_token_nll`; or `unscored`, the reason why there is nothing. With
`options["trace"]` the model is made to say that text before the answer; `options["template_arguments"]` are those of
the context's chat template, if it has some.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

from unlearn_eval.edits.base import EditInfo
from unlearn_eval.edits.folder import read_description
from unlearn_eval.edits.load import check_base
from unlearn_eval.edits.places import is_edit
from unlearn_eval.harness import patching
from unlearn_eval.harness.lm import autocast
from unlearn_eval.metrics import gradnorm_score
from unlearn_eval.models.prompt_format import PromptFormat, open_unlearning_labels
from unlearn_eval.models.prompts import Labels
from unlearn_eval.utils.errors import UserError

KIND = "answer_logprobs"
OPEN_UNLEARNING = "openunlearning"
COMPATIBILITY = (None, OPEN_UNLEARNING)


def options(
    prompt_format: PromptFormat,
    compat: str | None = None,
    moments: bool = False,
    free_running: bool = False,
    gradients: float | None = None,
    reference: str | None = None,
) -> dict[str, Any]:
    """The third argument of a request."""
    if compat not in COMPATIBILITY:
        raise UserError(f"unknown compat '{compat}' in --metadata", "allowed: openunlearning, or leave it out")
    asked = {"chat": prompt_format.chat, "compat": compat, "moments": moments}
    arguments = dict(prompt_format.template_arguments)
    more = {
        "template_arguments": arguments,
        "free_running": free_running,
        "gradients": gradients,
        "reference": reference,
    }
    return asked | {name: value for name, value in more.items() if value}


_looked_at: ContextVar[bool] = ContextVar("looked_at", default=False)


@contextlib.contextmanager
def only_looked_at() -> Iterator[None]:
    """Tasks that are built within are not asked: nothing is installed, and no class of models is imported for it."""
    token = _looked_at.set(True)
    try:
        yield
    finally:
        _looked_at.reset(token)


def looked_at() -> bool:
    """Whether what is built now is only looked at."""
    return _looked_at.get()


def install() -> None:
    """Give lm-eval's models the request kind, and its aggregations a standard error of their own."""
    patching.add_request_kind(KIND, from_loglikelihood, from_transformers)
    patching.keep_trace_markers()
    patching.generate_quicker()
    patching.use_own_standard_errors()


def from_transformers(self: Any, requests: list[Any], disable_tqdm: bool = False) -> list[dict[str, Any]]:
    """`answer_logprobs` for lm-eval's `hf` model: exact, batched, each question run once."""
    from tqdm.auto import tqdm

    from unlearn_eval.models.scoring import Query, score_answers

    if self.backend != "causal":  # an encoder-decoder reads prompt and answer apart
        return from_loglikelihood(self, requests, disable_tqdm)
    _check_adapter(self)
    for request in requests:
        request.answered_by = weakref.ref(self)
    responses: list[dict[str, Any]] = [{} for _ in requests]
    queries: list[Query] = []
    owners: list[int] = []
    encoded: dict[str, list[int]] = {}

    def encode(text: str) -> list[int]:
        if text not in encoded:
            encoded[text] = list(self.tok_encode(text))
        return encoded[text]

    for i, request in enumerate(requests):
        context, answer, asked = request.args
        query, labels = make_query(self, context, answer, asked, encode)
        responses[i] = {"n_answer": labels.n_answer, "text": labels.text}
        reason = cannot_score(query, labels, self.max_length)
        if reason:
            responses[i] = {"unscored": reason}
        else:
            queries.append(query)
            owners.append(i)

    moments = any(request.args[2]["moments"] for request in requests)
    bar = tqdm(total=len(queries), desc=f"Running {KIND} requests", disable=disable_tqdm or self.rank != 0)
    with bar, autocast(self):
        scores = score_answers(self.model, queries, _batch_size(self, queries), moments, bar.update)
        _add_free_running(self, requests, queries, owners, responses)
        _add_gradients(self, requests, queries, owners, responses, disable_tqdm)
        _add_reference(self, requests, queries, owners, responses)
    for owner, score in zip(owners, scores, strict=True):
        own = {key: value for key, value in vars(score).items() if value is not None}
        responses[owner].update(own)
    for response in responses:
        response |= vocabulary(self)
    return responses


def vocabulary(lm: Any) -> dict[str, int]:
    """`{"n_vocabulary": V}`, of how many tokens a model chooses the next; empty where that is not known."""
    config = getattr(getattr(lm, "model", None), "config", None)
    found = getattr(config.get_text_config(), "vocab_size", None) if config is not None else None
    if found is None:
        with contextlib.suppress(TypeError, NotImplementedError):  # a tokenizer without a size
            found = len(lm.tokenizer)
    return {"n_vocabulary": int(found)} if isinstance(found, int) else {}


def _check_adapter(lm: Any) -> None:
    """Refuse an edit that lm-eval's own class reads as an adapter (`peft=DIR`) on another base than it was made on.

    Raises:
        UserError: naming both.
    """
    folder = getattr(lm, "peft", None)
    if isinstance(folder, str) and is_edit(folder):
        check_base(EditInfo(**read_description(folder, check_files=False)["info"]), lm.model, str(lm.pretrained))


def answered_by(requests: Sequence[Any]) -> Any:
    """The `hf` model that has answered these requests, if it is still there; None of other models."""
    known = (getattr(request, "answered_by", None) for request in requests)
    return next((lm for reference in known if reference is not None and (lm := reference()) is not None), None)


def score_tokens(
    lm: Any, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, size: int | None = None
) -> list[tuple[float, bool]]:
    """`loglikelihood` from tokens: (name, context, continuation) -> (sum of ln p, is it the greedy continuation).

    As lm-eval's `hf` gives it, truncated on the left as there, but with each context known to be the prompt; each
    context is run once for all its continuations.
    """
    from tqdm.auto import tqdm

    from unlearn_eval.models.scoring import Query, score_answers

    queries = []
    for _, context, continuation in requests:
        kept = context[-max(1, lm.max_length + 1 - len(continuation)) :]
        queries.append(Query(tuple(kept), tuple(continuation)))
    bar = tqdm(total=len(queries), desc="Running loglikelihood requests", disable=disable_tqdm or lm.rank != 0)
    with bar, autocast(lm):
        scores = score_answers(lm.model, queries, size or _batch_size(lm, queries), progress=bar.update)
    found = [(-sum(score.token_nll), all(score.hits)) for score in scores]
    for (name, _, _), answer in zip(requests, found, strict=True):
        if name is not None:  # a window of loglikelihood_rolling, which lm-eval keeps by itself
            lm.cache_hook.add_partial("loglikelihood", name, answer)
    return found


def _add_free_running(
    lm: Any, requests: list[Any], queries: list[Any], owners: list[int], responses: list[dict[str, Any]]
) -> None:
    """What the model says by itself in the answer's place, for the requests that ask for it."""
    from unlearn_eval.models.scoring import free_running

    wanted = [
        (owner, query)
        for owner, query in zip(owners, queries, strict=True)
        if requests[owner].args[2].get("free_running")
    ]
    lengths = [responses[owner]["n_answer"] for owner, _ in wanted]
    size = lm.batch_size if isinstance(lm.batch_size, int) else 1
    found = free_running(lm.model, [query.whole for _, query in wanted], lengths, size)
    for (owner, _), own in zip(wanted, found, strict=True):
        responses[owner] |= {"free_ranks": own.ranks, "prompt_confidence": own.prompt_confidence}


def _asking(
    requests: list[Any], queries: list[Any], owners: list[int], option: str
) -> dict[Any, list[tuple[int, Any]]]:
    """The queries of the requests that ask for something, by what they ask for."""
    found: dict[Any, list[tuple[int, Any]]] = defaultdict(list)
    for owner, query in zip(owners, queries, strict=True):
        if (value := requests[owner].args[2].get(option)) is not None:
            found[value].append((owner, query))
    return found


def _add_gradients(
    lm: Any, requests: list[Any], queries: list[Any], owners: list[int], responses: list[dict[str, Any]], silent: bool
) -> None:
    """The norms of the gradients of the answers' losses, for the requests that ask for them."""
    from tqdm.auto import tqdm

    from unlearn_eval.models.gradient_norms import gradient_norms

    for order, wanted in _asking(requests, queries, owners, "gradients").items():
        lengths = [responses[owner]["n_answer"] for owner, _ in wanted]
        with tqdm(total=len(wanted), desc="Running gradients", disable=silent or lm.rank != 0) as bar:
            norms = gradient_norms(lm.model, [query.whole for _, query in wanted], lengths, order, bar.update)
        for (owner, _), norm in zip(wanted, norms, strict=True):
            responses[owner]["gradient_norm"] = gradnorm_score(norm)


def _add_reference(
    lm: Any, requests: list[Any], queries: list[Any], owners: list[int], responses: list[dict[str, Any]]
) -> None:
    """The losses of the same tokens under another model, for the requests that name one."""
    from unlearn_eval.models.load import load_model
    from unlearn_eval.models.scoring import score_answers

    for name, wanted in _asking(requests, queries, owners, "reference").items():
        loaded = load_model(name, str(lm.model.dtype).removeprefix("torch."), str(lm.device))
        if loaded.tokenizer.get_vocab() != lm.tokenizer.get_vocab():
            raise UserError(
                f"the reference model {name} has another vocabulary", "name a model that has the same tokenizer"
            )
        own = [query for _, query in wanted]
        scores = score_answers(loaded.model, own, lm.batch_size if isinstance(lm.batch_size, int) else 1)
        for (owner, _), score in zip(wanted, scores, strict=True):
            responses[owner]["reference_token_nll"] = score.token_nll


def make_query(lm: Any, context: str, answer: str, opts: dict[str, Any], encode: Any) -> tuple[Any, Labels]:
    """A request's tokens, and which of them are its answer's labels."""
    from unlearn_eval.models.scoring import Query

    template = opts.get("template_arguments", lm.chat_template_args) if opts["chat"] else {}
    prompt_format = PromptFormat(lm.tokenizer, opts["chat"], template_arguments=template)
    trace = opts.get("trace", "")
    if opts["compat"] == OPEN_UNLEARNING:
        prompt_ids, labels = open_unlearning_labels(prompt_format, context + trace, answer, encode)
        return Query(tuple(prompt_ids), labels.ids, lm.tokenizer.pad_token_id), labels
    prompt_ids = encode(context) or [lm.prefix_token_id]
    if not trace:
        labels = prompt_format.answer_labels(context, prompt_ids, answer, encode)
        return Query(tuple(prompt_ids), labels.ids), labels
    # The prompt ends before the trace: a memory decides there, as when the model speaks by itself.
    whole = encode(context + trace)
    if whole[: len(prompt_ids)] != prompt_ids:
        prompt_ids = whole
    labels = prompt_format.answer_labels(context + trace, whole, answer, encode)
    said = whole[len(prompt_ids) :]
    return Query(tuple(prompt_ids), (*said, *labels.ids), n_unscored=len(said)), labels


def cannot_score(query: Any, labels: Labels, max_length: int) -> str | None:
    """Why a query has no scores, or None."""
    if query.masked_token is None and labels.n_answer == 0:
        return "the answer has no tokens"
    if not labels.ids:
        return "the answer has no labels"
    if len(query) > max_length:
        return f"question and answer are longer than the model's context ({max_length} tokens)"
    return None


def _batch_size(lm: Any, queries: list[Any]) -> Any:
    """lm-eval's batch size, a number or its `auto:N` search."""
    if lm.batch_size != "auto":
        return int(lm.batch_size)
    longest_first = sorted(
        ((None, list(query.prompt_ids), list(query.label_ids)) for query in queries),
        key=lambda item: -len(item[1]) - len(item[2]),
    )
    # lm-eval looks up the schedule before the current one, which a large batch may have jumped over.
    lm.batch_sizes = defaultdict(int)

    def size(done: int) -> int:
        if len(queries) <= lm.batch_schedule:
            return 1
        return int(lm._batch_scheduler(min(done, len(queries) - 1), longest_first))

    return size


def from_loglikelihood(self: Any, requests: list[Any], disable_tqdm: bool = False) -> list[dict[str, Any]]:
    """`answer_logprobs` for any other model: the sum that `loglikelihood` gives, where tokens can be counted.

    Per-token values, ranks and the end token are not to be had this way; metrics that need them are null.
    """
    import copy

    name = type(self).__name__
    responses: list[dict[str, Any]] = []
    plain, counts = [], []
    for request in requests:
        context, answer, opts = request.args
        context += opts.get("trace", "")
        spaced = PromptFormat(None, opts["chat"]).after(context, answer)
        n = _count_tokens(self, context, spaced) if answer.strip() else 0
        if n:
            clone = copy.copy(request)
            clone.arguments = (context, spaced)
            plain.append(clone)
            counts.append(n)
            responses.append({"n_answer": n, "text": answer})
        else:
            untold = f"{name} does not say how many tokens an answer has"
            responses.append({"unscored": untold if answer.strip() else "the answer has no tokens"})
    try:
        totals = self.loglikelihood(plain) if plain else []
    except NotImplementedError:
        return [{"unscored": f"{name} gives no loglikelihoods"} for _ in requests]
    scored = (response for response in responses if "unscored" not in response)
    for response, n, (total, greedy) in zip(scored, counts, totals, strict=True):
        response |= {
            "mean_nll": -float(total) / n,
            "all_hit": bool(greedy),
            "partial": f"{name} gives loglikelihoods only, without the end token",
        }
    return responses


def _count_tokens(lm: Any, context: str, answer: str) -> int:
    encode = getattr(lm, "_encode_pair", None)
    if encode is None or getattr(lm, "tokenizer", None) is None:
        return 0
    return len(encode(context, answer)[1])
