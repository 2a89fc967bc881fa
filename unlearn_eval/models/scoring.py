"""Per-token scores of answers under a causal language model: the one place where answer-level numbers come from.

Many answers share a question (the true one, its paraphrase, five wrong ones), and all questions a beginning (the chat
template's). Both are run once; their keys and values are then used by all that follow. Rows are padded behind the
beginning and right-padded in the answer, with explicit positions, so that batching changes nothing but rounding. Every
pass says where its prompts end, which memory edits need to know (`routing.py`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unlearn_eval.models.arguments import accepts, cache_argument, cache_of
from unlearn_eval.models.prompt_ends import ROUTER, needs_whole_prompts, prompt_lengths
from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOT_FINITE = "the model's logits are not finite", "load it in a wider type, such as dtype=float32"
MAX_LOGITS = 2**26  # log-softmax works on at most this many numbers at once (256 MiB in float32)
LEAST_SAVED = 64  # tokens, for which one more pass of a few pays


@dataclass(frozen=True)
class Query:
    """One answer to score: the prompt's ids and the labels that follow (never empty).

    `masked_token`, for compatibility modes only, is a token id that attention must not see anywhere. The first
    `n_unscored` labels are read and not scored: a model is made to say them before its answer.
    """

    prompt_ids: tuple[int, ...]
    label_ids: tuple[int, ...]
    masked_token: int | None = None
    n_unscored: int = 0

    @property
    def whole(self) -> Query:
        """The same with the unscored labels as the end of the prompt."""
        n = self.n_unscored
        return replace(
            self, prompt_ids=self.prompt_ids + self.label_ids[:n], label_ids=self.label_ids[n:], n_unscored=0
        )

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.label_ids) - 1


@dataclass(frozen=True)
class AnswerScore:
    """What the model thinks of each label, given the labels before it; all of length T.

    Attributes:
        token_nll: -ln p(label), in nats.
        hits: whether the label is the most likely token.
        ranks: 1 + the number of tokens that are more likely.
        means, variances: of ln p over the vocabulary (for min-k++), if asked for.
    """

    token_nll: list[float]
    hits: list[bool]
    ranks: list[int]
    means: list[float] | None = None
    variances: list[float] | None = None

    def after(self, n: int) -> AnswerScore:
        """The scores without those of the first `n` labels."""
        means, variances = (None if own is None else own[n:] for own in (self.means, self.variances))
        return AnswerScore(self.token_nll[n:], self.hits[n:], self.ranks[n:], means, variances)


@dataclass(frozen=True)
class FreeRunning:
    """What the released evaluation of PISTOL and LUNAR reads in the place of an answer, for comparison only.

    Attributes:
        ranks: of the answer's j-th token in the distribution of the j-th step of the model's own greedy
            answer; None for steps after that has ended.
        prompt_confidence: the mean, over as many of the prompt's first positions as the answer has tokens, of
            the largest probability there. It is called a probability of the answer, and does not depend on it.
    """

    ranks: list[int | None]
    prompt_confidence: float | None


@torch.no_grad()
def free_running(
    model: PreTrainedModel, queries: Sequence[Query], lengths: Sequence[int], batch_size: int = 1
) -> list[FreeRunning]:
    """For each query, its first `lengths[i]` labels against the model's own greedy answer, in order."""
    found: list[FreeRunning | None] = [None] * len(queries)
    order = sorted(range(len(queries)), key=lambda i: -len(queries[i].prompt_ids))
    for rows in _chunks(order, batch_size):
        prompts, n = [queries[i].prompt_ids for i in rows], [lengths[i] for i in rows]
        steps, ends = _greedy_steps(model, prompts, max(n))
        confidence = _first_confidences(model, prompts, n)
        for r, i in enumerate(rows):
            gold = queries[i].label_ids[: lengths[i]]
            ranks = [
                int((steps[j][r] > steps[j][r, token]).sum()) + 1 if j < min(ends[r], len(steps)) else None
                for j, token in enumerate(gold)
            ]
            found[i] = FreeRunning(ranks, confidence[r])
    assert all(own is not None for own in found)
    return found  # type: ignore[return-value]


def _greedy_steps(model: PreTrainedModel, prompts: list[tuple[int, ...]], n: int) -> tuple[list[Tensor], list[int]]:
    """Logits (R, V) of each greedy step, and how many steps of each row come before or at its end token."""
    ids, mask = pad(prompts, "left", model.device)
    ends = _end_tokens(model)
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=max(n, 1),
        do_sample=False,
        num_beams=1,
        return_dict_in_generate=True,
        output_logits=True,
        pad_token_id=min(ends) if ends else 0,
    )
    said = out.sequences[:, ids.shape[1] :].tolist()
    lengths = [next((j + 1 for j, token in enumerate(row) if token in ends), len(row)) for row in said]
    return [step.float() for step in out.logits], lengths


def _end_tokens(model: PreTrainedModel) -> set[int]:
    config = getattr(model, "generation_config", None)
    ends = getattr(config, "eos_token_id", None) if config is not None else None
    ends = model.config.eos_token_id if ends is None else ends
    return set() if ends is None else set(ends) if isinstance(ends, list | tuple) else {int(ends)}


def _first_confidences(model: PreTrainedModel, prompts: list[tuple[int, ...]], n: list[int]) -> list[float | None]:
    """The mean of the largest probability at the first n[r] positions of each prompt."""
    starts = [prompt[:length] for prompt, length in zip(prompts, n, strict=True)]
    if not any(starts):
        return [None] * len(starts)
    ids, _ = pad(starts, "right", model.device)
    largest = model(input_ids=ids, use_cache=False).logits.float().softmax(-1).amax(-1)  # (R, t)
    return [float(largest[r, : len(start)].mean()) if start else None for r, start in enumerate(starts)]


@torch.no_grad()
def score_answers(
    model: PreTrainedModel,
    queries: Sequence[Query],
    batch_size: int | Callable[[int], int] = 16,
    moments: bool = False,
    progress: Callable[[int], Any] = lambda n: None,
) -> list[AnswerScore]:
    """The scores of every query, in order.

    Args:
        model: a Hugging Face causal language model (or one wrapped by PEFT), in eval mode.
        queries: what to score. Each question (`prompt_ids`) is run once for all its answers.
        batch_size: rows per forward pass, or a function of the number of rows already done.
        moments: also the mean and variance of ln p over the vocabulary.
        progress: called with the number of rows done since the last call.
    """
    if not all(query.prompt_ids and query.label_ids for query in queries):
        raise ValueError(
            "a query needs at least one prompt token, by which its first label is predicted, and one label"
        )
    scores: list[AnswerScore | None] = [None] * len(queries)
    size = batch_size if callable(batch_size) else lambda done: batch_size
    shared = (
        any(q.masked_token is None for q in queries) and not needs_whole_prompts(model) and keeps_plain_cache(model)
    )
    own = [query for query in queries if query.masked_token is None] if shared else []
    beginning = Beginning()
    if own:
        beginning = Beginning.of(model, list({query.prompt_ids for query in own}), max(map(len, own)))
    done = 0
    for unit in _units(queries, size, shared):
        rows = [row for group in unit for row in group]
        if shared and queries[rows[0]].masked_token is None:
            found = _score_shared(model, queries, unit, size(done), moments, beginning)
        else:
            found = _score_flat(model, queries, unit, size(done), moments)
        for row, score in found:
            scores[row] = score.after(n) if (n := queries[row].n_unscored) else score
            done += 1
            progress(1)
    assert all(score is not None for score in scores)
    return scores  # type: ignore[return-value]


@torch.no_grad()
def answer_divergences(
    model: PreTrainedModel,
    unedited: Callable[[], AbstractContextManager[Any]],
    queries: Sequence[Query],
    progress: Callable[[int], Any] = lambda n: None,
) -> list[list[float]]:
    """KL(unedited || model) in nats of the distributions that predict each label, T numbers for each query, in order.

    At most `MAX_LOGITS` logits are kept of one model while the other is run (or those of one query, if more).

    Args:
        model: a Hugging Face causal language model, in eval mode.
        unedited: gives the unedited model, with the same vocabulary, for the length of a `with` block; it may be
            `model` itself with its edit taken off.
        queries: what is read.
        progress: called with the number of queries done since the last call.
    """
    found: list[list[float]] = [[] for _ in queries]
    longest_first = sorted(range(len(queries)), key=lambda row: -len(queries[row]))
    start = 0
    while start < len(queries):
        n = max(1, MAX_LOGITS // (len(queries[longest_first[start]]) * model.config.get_text_config().vocab_size))
        rows = longest_first[start : start + n]
        batch = [queries[row] for row in rows]
        own = _label_logp(model, batch)
        with unedited() as base:
            reference = _label_logp(base, batch)
        for row, p, q in zip(rows, reference, own, strict=True):
            each = (p.exp() * (p - q)).nan_to_num(0.0, posinf=math.inf).sum(-1)  # 0 ln 0 = 0
            found[row] = each.clamp(min=0).tolist()
        progress(len(rows))
        start += len(rows)
    return found


def _label_logp(model: PreTrainedModel, queries: Sequence[Query]) -> list[Tensor]:
    """For each query (T, V): ln p over the vocabulary in float32, where its T labels are predicted."""
    logits = _flat_logits(model, queries)
    starts = [len(query.prompt_ids) - 1 for query in queries]
    return [
        logits[row, start : start + len(query.label_ids)].float().log_softmax(-1)
        for row, (start, query) in enumerate(zip(starts, queries, strict=True))
    ]


def _units(queries: Sequence[Query], size: Callable[[int], int], shared: bool) -> Iterator[list[list[int]]]:
    """Groups of rows that share a question, gathered into units of about one batch, longest first."""
    groups: dict[Any, list[int]] = {}
    for row, query in enumerate(queries):
        key = (query.prompt_ids, query.masked_token) if shared else row
        groups.setdefault(key, []).append(row)

    def length(group: list[int]) -> tuple[bool, int, int]:
        first = queries[group[0]]
        return (first.masked_token is None, len(first.prompt_ids), max(len(queries[row]) for row in group))

    unit: list[list[int]] = []
    done = 0
    for group in sorted(groups.values(), key=length, reverse=True):
        kind = (queries[group[0]].masked_token is None, len(queries[group[0]].prompt_ids) > 1)
        full = unit and sum(map(len, unit)) + len(group) > size(done)
        if full or (unit and kind != _kind(queries, unit)):
            yield unit
            done += sum(map(len, unit))
            unit = []
        unit.append(group)
    if unit:
        yield unit


def _kind(queries: Sequence[Query], unit: list[list[int]]) -> tuple[bool, bool]:
    first = queries[unit[0][0]]
    return (first.masked_token is None, len(first.prompt_ids) > 1)


@dataclass(frozen=True)
class Beginning:
    """What several prompts begin with, run once for all of them.

    Attributes:
        n: how many tokens; 0 if a pass of their own would save too little.
        cache: their keys and values, of one row.
    """

    n: int = 0
    cache: Any = None

    @classmethod
    def of(cls, model: PreTrainedModel, prompts: Sequence[Sequence[int]], longest: int) -> Beginning:
        """What all prompts begin with, of a model that keeps a plain cache (see `keeps_plain_cache`).

        Args:
            model: it is run.
            prompts: ids; the last token of each is left to whoever goes on.
            longest: tokens of the longest sequence that comes of them. Within a sliding window that is shorter, padding
                behind the beginning would push it out of sight.
        """
        window = getattr(model.config.get_text_config(), "sliding_window", None)
        first, last = min(prompts, key=tuple), max(prompts, key=tuple)
        most = min(map(len, prompts)) - 1
        n = next((i for i in range(most) if first[i] != last[i]), most)
        if n * (len(prompts) - 1) < LEAST_SAVED or hasattr(model, ROUTER) or (window and window < longest):
            return cls()
        ids, mask = pad([first[:n]], "left", model.device)
        return cls(n, _read_on(model, ids, mask, None))


def read_prompts(model: PreTrainedModel, prompts: Sequence[Sequence[int]], beginning: Beginning) -> tuple[Any, Tensor]:
    """Keys and values of each prompt's tokens but the last (None if there are none), and which columns hold tokens.

    The columns (G, W) are the prompts' common beginning, padding, and what is left of each.
    """
    width = max(map(len, prompts)) - 1
    if not width:
        return None, torch.zeros((len(prompts), 0), dtype=torch.long, device=model.device)
    cache, n = copy.deepcopy(beginning.cache), beginning.n
    begun = torch.ones((len(prompts), n), dtype=torch.long, device=model.device)
    if cache is not None:
        cache.batch_repeat_interleave(len(prompts))
    if n == width:
        return cache, begun
    ids, mask = pad([prompt[n:-1] for prompt in prompts], "left", model.device)
    mask = torch.cat([begun, mask], dim=1)
    with prompt_lengths([len(prompt) for prompt in prompts]):
        return _read_on(model, ids, mask, cache), mask


def _read_on(model: PreTrainedModel, ids: Tensor, mask: Tensor, cache: Any) -> Any:
    """The cache after these tokens."""
    options = {} if cache is None else cache_argument(model, cache)
    options |= {"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}
    places = positions(model, mask, last=ids.shape[1])
    return cache_of(model(input_ids=ids, attention_mask=mask, use_cache=True, **places, **options))


def _score_shared(
    model: PreTrainedModel,
    queries: Sequence[Query],
    unit: list[list[int]],
    batch_size: int,
    moments: bool,
    beginning: Beginning,
) -> Iterator[tuple[int, AnswerScore]]:
    """Run each question's tokens but the last once, then its last token and the answers on top of that."""
    cache, read = read_prompts(model, [queries[group[0]].prompt_ids for group in unit], beginning)
    rows = [(g, row) for g, group in enumerate(unit) for row in group]
    for batch in _chunks(rows, batch_size):
        inputs = [(queries[row].prompt_ids[-1], *queries[row].label_ids[:-1]) for _, row in batch]
        ids, mask = pad(inputs, "right", model.device)
        options = {}
        if cache is not None:
            owners = torch.tensor([g for g, _ in batch], device=model.device)
            past = cache if len(rows) <= batch_size else copy.deepcopy(cache)
            past.batch_select_indices(owners)
            mask = torch.cat([read[owners], mask], dim=1)
            options = cache_argument(model, past)
        with prompt_lengths([len(queries[row].prompt_ids) for _, row in batch]):
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                use_cache=cache is not None,
                **positions(model, mask, last=ids.shape[1]),
                **options,
            ).logits
        labels = [queries[row].label_ids for _, row in batch]
        yield from zip((row for _, row in batch), _read(logits, [0] * len(batch), labels, moments), strict=True)


def _score_flat(
    model: PreTrainedModel, queries: Sequence[Query], unit: list[list[int]], batch_size: int, moments: bool
) -> Iterator[tuple[int, AnswerScore]]:
    """Run each prompt with its labels as one right-padded sequence: any causal model can do this."""
    rows = [row for group in unit for row in group]
    for batch in _chunks(rows, batch_size):
        logits = _flat_logits(model, [queries[row] for row in batch])
        starts = [len(queries[row].prompt_ids) - 1 for row in batch]
        labels = [queries[row].label_ids for row in batch]
        yield from zip(batch, _read(logits, starts, labels, moments), strict=True)


def _flat_logits(model: PreTrainedModel, queries: Sequence[Query]) -> Tensor:
    """Logits (R, L, V) of right-padded sequences, each a prompt with its labels but the last."""
    masked = queries[0].masked_token
    inputs = [(*query.prompt_ids, *query.label_ids[:-1]) for query in queries]
    ids, mask = pad(inputs, "right", model.device, filler=masked or 0)
    options = {} if masked is None else {"attention_mask": (ids != masked).long()}
    ends = [max(1, sum(token != masked for token in query.prompt_ids)) for query in queries]
    with prompt_lengths(ends):
        logits: Tensor = model(input_ids=ids, use_cache=False, **options).logits
    return logits


def _read(
    logits: Tensor, starts: Sequence[int], labels: Sequence[Sequence[int]], moments: bool
) -> Iterator[AnswerScore]:
    """Read the labels' scores from logits (R, L, V); row r's labels are predicted from position starts[r] on."""
    for row, (start, label_ids) in enumerate(zip(starts, labels, strict=True)):
        part = logits[row, start : start + len(label_ids)]
        step = max(1, MAX_LOGITS // part.shape[-1])
        pieces = [
            _read_positions(part[i : i + step], label_ids[i : i + step], moments)
            for i in range(0, len(label_ids), step)
        ]
        columns: list[list[Any]] = [sum(column, []) for column in zip(*pieces, strict=True)]
        yield AnswerScore(*columns) if moments else AnswerScore(*columns[:3])


def _read_positions(logits: Tensor, label_ids: Sequence[int], moments: bool) -> tuple[list[Any], ...]:
    logp = logits.float().log_softmax(-1)  # (t, V)
    label = torch.tensor(label_ids, device=logp.device)
    own = logp.gather(-1, label[:, None])
    hits = logp.argmax(-1) == label
    ranks = (logp > own).sum(-1) + 1
    losses = (-own[:, 0]).tolist()
    if any(map(math.isnan, losses)):
        raise UserError(*NOT_FINITE)
    result: tuple[list[Any], ...] = (losses, hits.tolist(), ranks.tolist())
    if not moments:
        return result
    mean, variance = moments_of(logp)
    return (*result, mean.tolist(), variance.tolist())


def moments_of(logp: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (t,) of ln p under p itself, from ln p (t, V)."""
    p = logp.exp()
    mean = (p * logp).nan_to_num().sum(-1)
    square = (p * logp.square()).nan_to_num().sum(-1)
    return mean, square - mean.square()


@contextmanager
def finite_logits(model: nn.Module) -> Iterator[None]:
    """Refuse logits that are NaN or infinite, of whatever runs the model within a `with` block.

    The last position is read: what is not finite at a token is not finite at those after it.

    Raises:
        UserError: by the pass that gives them.
    """

    def check(head: nn.Module, inputs: Any, logits: Any) -> None:
        if isinstance(logits, Tensor) and logits.numel() and not torch.isfinite(logits[:, -1].amax(-1)).all():
            raise UserError(*NOT_FINITE)

    find = getattr(model, "get_output_embeddings", None)
    head = find() if find else None
    handle = None if head is None else head.register_forward_hook(check)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def pad(rows: Sequence[Sequence[int]], side: str, device: torch.device | str, filler: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both (len(rows), longest), padded on `side` ('left' or 'right')."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), filler, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, where] = torch.tensor(row, dtype=torch.long)
        mask[i, where] = 1
    return ids.to(device), mask.to(device)


def positions(model: PreTrainedModel, mask: Tensor, last: int | None = None) -> dict[str, Tensor]:
    """`position_ids` that count real tokens only, for models that take them; the last `last` columns."""
    if not accepts(model, "position_ids"):
        return {}
    counted = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"position_ids": counted if last is None else counted[:, -last:]}


@torch.no_grad()
def keeps_plain_cache(model: PreTrainedModel) -> bool:
    """Whether the model keeps keys and values per layer, which can be shared between a question's answers.

    Recurrent and hybrid models keep a state that padding would disturb: they are scored without sharing.
    """
    from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

    try:
        ids = torch.zeros((1, 2), dtype=torch.long, device=model.device)
        cache = cache_of(model(input_ids=ids, use_cache=True))
    except (TypeError, ValueError, NotImplementedError):
        return False
    return isinstance(cache, Cache) and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers
    )


def _chunks(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
