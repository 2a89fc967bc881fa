"""What our tasks and memory edits ask of lm-eval's own `vllm` model: the request kind, and where prompts end.

A log-probability is that of vLLM's sampler in float32. Means and variances over the vocabulary (for min-k++) are noted
where the engine computes its logits; requests that ask for them run one at a time, and no others pay for it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unlearn_eval.edits.folder import EDITED
from unlearn_eval.harness.requests import KIND, cannot_score, make_query, vocabulary
from unlearn_eval.models.prompt_ends import PROMPT_END
from unlearn_eval.serving.door import OWN, SCORING, rules_of
from unlearn_eval.serving.names import EXTENSION
from unlearn_eval.serving.patching import extend_lm

if TYPE_CHECKING:
    from unlearn_eval.harness.lm import LM

Pair = tuple[tuple[int, ...], tuple[int, ...]]  # a prompt and its labels
_UNSEEN = "the logits that vLLM scored this answer with were not seen, so its means and variances are not known"
_AT_ONCE = 1024  # requests whose log-probabilities are held before only the needed ones are kept


def lend(own: Any) -> None:
    """Give lm-eval's `vllm` class the request kind, and log-likelihoods that say where each prompt ends."""
    extend_lm(own, KIND, from_vllm, _extending, _saying_where_prompts_end)


def _saying_where_prompts_end(plain: Any) -> Any:
    def tokens(self: LM, requests: Any, disable_tqdm: bool = False) -> Any:
        return score_tokens(self, requests) if is_edited(self) else plain(self, requests, disable_tqdm)

    return tokens


def _extending(start: Any) -> Any:
    """The class's `__init__`, for scoring, with our extension of its workers unless the user wants another."""

    def extended(self: LM, *arguments: object, **options: object) -> None:
        given = options.get("additional_config") or {}
        if isinstance(given, Mapping):  # else vLLM says what is wrong with it
            options["additional_config"] = {**given, OWN: {**given.get(OWN, {}), SCORING: True}}
        ours = extends_workers(options)
        if ours:
            options["worker_extension_cls"] = EXTENSION
        start(self, *arguments, **options)
        engine = getattr(getattr(self, "model", None), "llm_engine", None)
        rules = None if engine is None else rules_of(engine.vllm_config)
        if rules is not None and rules.inserts:
            self._max_length = self.max_length - rules.inserts  # the rest is kept for what the edit adds
        if ours:
            self.model.collective_rpc("unlearn_eval_only_answers")

    return extended


def extends_workers(options: Mapping[str, Any]) -> bool:
    """Whether an engine with these options has our extension of its workers: one engine, and no extension but ours."""
    alone = int(options.get("data_parallel_size", 1)) == 1  # else engines come and go
    return alone and options.get("worker_extension_cls", EXTENSION) == EXTENSION


def no_moments(lm: LM) -> str | None:
    """Why an engine gives no means and variances over the vocabulary, or None."""
    if lm.data_parallel_size > 1:
        return "vLLM with data_parallel_size gives no means and variances over the vocabulary"
    if not getattr(lm, "alone", True):
        return "vLLM gives means and variances over the vocabulary of one request at a time, not of edits together"
    extension = lm.model.llm_engine.vllm_config.parallel_config.worker_extension_cls
    if extension != EXTENSION:
        return f"vLLM gives no means and variances over the vocabulary with worker_extension_cls={extension}"
    return None


def is_edited(lm: LM) -> bool:
    """Whether the engine serves an edit."""
    if lm.data_parallel_size > 1:
        return False  # its engines are elsewhere; one of a memory edit would refuse to guess
    names = getattr(lm.model.llm_engine.model_config.hf_config, "architectures", None) or ()
    return any(name.startswith(EDITED) for name in names)


def score_tokens(lm: LM, requests: Sequence[tuple[Any, list[int], list[int]]]) -> list[tuple[float, bool]]:
    """`loglikelihood` from tokens: (name, context, continuation) -> (sum of ln p, is it the greedy continuation)."""
    longest = lm.max_length - 1  # the engine generates one token more
    pairs = []
    for _, context, continuation in requests:
        kept = context[-max(1, longest - len(continuation)) :]
        pairs.append((tuple(kept), tuple(continuation)))
    found = [(sum(logp), all(rank == 1 for rank in ranks)) for logp, ranks in _scored(lm, pairs)]
    for (name, _, _), answer in zip(requests, found, strict=True):
        if name is not None:
            lm.cache_hook.add_partial("loglikelihood", name, answer)
    return found


def from_vllm(self: LM, requests: list[Any], disable_tqdm: bool = False) -> list[dict[str, Any]]:
    """`answer_logprobs` for vLLM: per-token values and ranks, of the answer's tokens only."""
    responses: list[dict[str, Any]] = [{} for _ in requests]
    together: dict[int, Pair] = {}
    alone: dict[int, Pair] = {}
    skipped: dict[int, int] = {}  # labels before an answer that are read and not scored
    encode = functools.cache(lambda text: tuple(self.tok_encode(text)))
    untold = no_moments(self) if any(request.args[2]["moments"] for request in requests) else None
    for i, request in enumerate(requests):
        context, answer, asked = request.args
        query, labels = make_query(self, context, answer, asked, lambda text: list(encode(text)))
        responses[i] = {"n_answer": labels.n_answer, "text": labels.text, **vocabulary(self)}
        reason = cannot_score(query, labels, self.max_length - 2)  # all labels are inputs, and one token is generated
        if query.masked_token is not None:
            reason = "compat=openunlearning masks tokens within the prompt, which vLLM cannot"
        if reason:
            responses[i] = {"unscored": reason}
            continue
        if asked["moments"] and untold:
            responses[i]["partial"] = untold
        (alone if asked["moments"] and not untold else together)[i] = query.prompt_ids, query.label_ids
        skipped[i] = query.n_unscored
    for owner, (logp, ranks) in zip(together, _scored(self, [*together.values()], disable_tqdm), strict=True):
        responses[owner] |= _said(logp, ranks, skipped[owner])
    for owner, (logp, ranks, more) in zip(alone, _with_moments(self, [*alone.values()], disable_tqdm), strict=True):
        kept = {key: own[skipped[owner] :] if isinstance(own, list) else own for key, own in more.items()}
        responses[owner] |= _said(logp, ranks, skipped[owner]) | kept
    return responses


def _said(logp: list[float], ranks: list[int], skipped: int) -> dict[str, Any]:
    logp, ranks = logp[skipped:], ranks[skipped:]
    return {"token_nll": [-value for value in logp], "hits": [rank == 1 for rank in ranks], "ranks": ranks}


def _with_moments(
    lm: LM, pairs: Sequence[Pair], silent: bool
) -> Iterator[tuple[list[float], list[int], dict[str, Any]]]:
    """The same, and the moments at each label or the reason why there are none, one request after another."""
    from tqdm.auto import tqdm

    quiet = silent or lm.rank != 0 or not pairs
    for prompt, labels in tqdm(pairs, desc=f"Running {KIND} requests with moments", disable=quiet):
        lm.model.collective_rpc("unlearn_eval_watch", args=([*prompt, *labels],))
        ((logp, ranks),) = _scored(lm, [(prompt, labels)], silent=True)
        found = lm.model.collective_rpc("unlearn_eval_moments", args=(list(labels), logp))
        own = next((moments for moments in found if moments), None)
        yield logp, ranks, dict(zip(("means", "variances"), own, strict=True)) if own else {"partial": _UNSEEN}


def _scored(lm: LM, pairs: Sequence[Pair], silent: bool = False) -> Iterator[tuple[list[float], list[int]]]:
    """Ln p and ranks of each (prompt, labels)'s labels, in order.

    A prompt's answers are asked one after another: what of it fills blocks of the engine's cache is run once.
    """
    from tqdm.auto import tqdm
    from vllm import SamplingParams

    def ask(part: Sequence[Pair], whole: bool) -> Any:
        """What the engine says to some of them, each of which is run whole or from where its text is known."""
        sampling = [
            SamplingParams(
                temperature=0,
                max_tokens=1,
                prompt_logprobs=0,  # of the prompt's own tokens, with their ranks
                flat_logprobs=True,
                detokenize=False,
                extra_args={PROMPT_END: len(prompt)},
                skip_reading_prefix_cache=whole,
            )
            for prompt, _ in part
        ]
        size = lm.batch_size
        lm.batch_size = len(part)  # else it shows a bar of its own
        try:
            asked = [[*prompt, *labels] for prompt, labels in part]
            return lm._model_generate(requests=asked, generate=True, sampling_params=sampling)
        finally:
            lm.batch_size = size

    bar = tqdm(total=len(pairs), desc=f"Running {KIND} requests", disable=silent or lm.rank != 0)
    with bar:
        for start in range(0, len(pairs), _AT_ONCE):
            part = pairs[start : start + _AT_ONCE]
            found = dict(enumerate(ask(part, whole=False)))
            # Of tokens whose keys and values are read from the cache there are no log-probabilities.
            unseen = [i for i, (prompt, _) in enumerate(part) if (found[i].num_cached_tokens or 0) >= len(prompt)]
            found |= zip(unseen, ask([part[i] for i in unseen], whole=True) if unseen else (), strict=True)
            for i, (_, labels) in enumerate(part):
                rows = found[i].prompt_logprobs
                first = len(rows) - len(labels)  # one runner leaves out what was cached, the other has it empty
                rows = [rows[first + j][label] for j, label in enumerate(labels)]
                bar.update(1)
                yield [row.logprob for row in rows], [row.rank for row in rows]
