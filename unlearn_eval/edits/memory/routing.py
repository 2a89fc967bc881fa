"""When a memory decides, and for how long: once for each sequence, at the end of its prompt, until the sequence ends.

The rule, for every memory edit (GRACE, WISE, MEMOIR) and every way of running a model:

1.  A sequence is a prompt and its continuation. The decision whether a memory answers is taken once, when the last
    token of the prompt is run, from what the edited module reads there or, if a memory is set so (WISE, MEMOIR), at all
    of the prompt's tokens.
    It then holds for that token and everything after it: while decoding, and through the answer when one is scored.
2.  Rows of a batch decide independently. Padding is never looked at; side and amount of padding, batch size, a
    key-value cache, and how a batch is split change nothing but rounding. Decisions travel with the cache: where
    rows of a cache are selected, repeated or reordered, theirs are too.
3.  Where the prompt ends is known
    *   in `model.generate`: after the ids (or the mask) that it was given. This holds with and without a cache, for
        sampling, several sequences for each prompt, beams, and chunked prefill;
    *   within `with prompt_lengths([...])`: after so many tokens of each row, padding not counted. `score_answers`
        and the model `edited` say it, so `answer_logprobs`, `loglikelihood` and `generate_until` agree with generation;
    *   in any other forward pass without a past: after the row's last token that is not padding. Passes that go on
        from its cache keep its decisions.
4.  What would break the rule is refused: a cache that was filled without the edit, a new decision on a cache that holds
    an edited continuation, caches of fixed size, whose masks do not say where the padding is.

`loglikelihood_rolling` has no prompt but the prefix token of each window, so memories stay silent there unless that
token is one of theirs. A prompt that is cut from the left to fit the context is decided by what is left of it.

`Router` is the machinery: hooks on the model, on each edited module, and on `generate`. With no memory edit in it a
model has none of these.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from unlearn_eval.models.arguments import cache_of, given_arguments, given_cache
from unlearn_eval.models.prompt_ends import PROMPT, ROUTER, PromptEnds
from unlearn_eval.models.tracing import in_rows
from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import Cache

UNDECIDED, NO_MEMORY = -2, -1
_DECISIONS = "unlearn_eval_decisions"  # on a cache


@dataclass(frozen=True)
class Decisions:
    """What one memory has decided for the rows of a batch.

    Attributes:
        choice: (B,) the index of the memory that answers, NO_MEMORY, or UNDECIDED while the prompt goes on.
        pooled: what has been gathered from the prompt so far, (B, ...), if the memory gathers anything.
        open, hit: whether any row is undecided, or has a memory (known without asking the device again).
    """

    choice: Tensor
    pooled: Tensor | None
    open: bool
    hit: bool

    def select(self, indices: Tensor) -> Decisions:
        """Those of some rows, in that order."""
        rows = indices.to(self.choice.device)
        pooled = None if self.pooled is None else self.pooled[rows]
        return _decisions(self.choice[rows], pooled)


def _decisions(choice: Tensor, pooled: Tensor | None) -> Decisions:
    low, high = (int(choice.min()), int(choice.max())) if len(choice) else (0, NO_MEMORY)
    return Decisions(choice, pooled, low == UNDECIDED, high >= 0)


class Memory(Protocol):
    """What the router asks of a memory; tensors of one forward pass have W columns."""

    @property
    def before(self) -> bool:
        """Whether the prompt's tokens before the last one are changed too; if so it must be run in one pass."""

    @property
    def after(self) -> bool:
        """Whether the continuation is changed, and not the prompt alone."""

    def gather(self, inputs: Tensor, prompt: Tensor, pooled: Tensor | None) -> Tensor | None:
        """What is known of the prompts after this pass: inputs (B, W, d_in), prompt (B, W) tells its columns."""

    def decide(self, ends: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor]:
        """The choice (R,) of rows whose prompts are over, from inputs at their ends (R, d_in) and what was gathered.

        Beside it (R,) how far each was from the other decision: |measure / bound - 1|, of the memory nearest to that.
        """

    def change(self, inputs: Tensor, output: Tensor, choice: Tensor, columns: Tensor) -> Tensor:
        """The module's output (B, W, d_out) with each row's memory in the marked columns (B, W)."""

    @property
    def reduction(self) -> str:
        """How what is gathered from several parts of a prompt becomes one: "sum" or "amax"."""

    def change_each(self, inputs: Tensor, output: Tensor, choice: Tensor) -> Tensor:
        """The same for T tokens, each with a choice (T,) of its own or a negative one; shapes depend on no value."""


class _Pass:
    """One forward pass: which of its columns are tokens, and where the rows' prompts end."""

    def __init__(
        self, ids: Tensor, mask: Tensor | None, past: int, prompt: PromptEnds | None, cache: Cache | None
    ) -> None:
        self.rows, self.width = ids.shape[:2]
        self.device, self.past, self.prompt, self.cache = ids.device, past, prompt, cache
        self.held: dict[int, Decisions] = {}  # what the edits have decided in this pass
        self._mask = mask

    @functools.cached_property
    def real(self) -> Tensor:
        """(B, past + W) which columns are tokens."""
        total = self.past + self.width
        if self._mask is None:
            return torch.ones((self.rows, total), dtype=torch.bool, device=self.device)
        if self._mask.ndim != 2 or tuple(self._mask.shape) != (self.rows, total):
            raise UserError(
                f"a memory edit cannot tell padding from tokens in a mask of shape {tuple(self._mask.shape)} "
                f"(it needs {self.rows}×{total})",
                "use the ordinary growing cache (no cache_implementation) and a mask with one number per token",
            )
        return self._mask.to(self.device) != 0

    @functools.cached_property
    def ends(self) -> Tensor:
        """(B,) the column of each prompt's last token, counted from the first of the cache; -1: not reached yet."""
        real, prompt = self.real, self.prompt
        columns = torch.arange(real.shape[1], device=real.device)
        if prompt is not None and prompt.lengths is not None:
            if len(prompt.lengths) != self.rows:
                raise UserError(
                    f"{len(prompt.lengths)} prompt lengths were given for a batch of {self.rows} rows", "give one each"
                )
            lengths = torch.tensor(prompt.lengths, device=real.device)[:, None]
            found = (real.cumsum(-1) == lengths) & real
            return torch.where(found.any(-1), found.int().argmax(-1), -1)
        width = real.shape[1] if prompt is None or prompt.width is None else prompt.width
        if width > real.shape[1]:
            return torch.full((self.rows,), -1, device=real.device)
        return torch.where(real[:, :width], columns[:width], -1).amax(-1)

    def held_by_all(self, past_decisions: Decisions | None) -> bool:
        """Whether everything was decided in an earlier pass (cheap: decoding asks this at every step)."""
        if past_decisions is None or past_decisions.open:
            return False
        if self.prompt is None:
            return True
        return self.prompt.width is not None and self.prompt.width <= self.past


class Router:
    """The memory edits of one model, and the hooks through which they see its passes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._local = threading.local()
        self._hooks: dict[int, Any] = {}
        self._modules: dict[int, str] = {}
        self._memories: dict[int, Memory] = {}
        self._next = 0
        self._undo: list[Callable[[], Any]] = []

    @property
    def needs_whole_prompts(self) -> bool:
        """Whether a prompt has to be run in one pass, because its own tokens may be changed."""
        return any(memory.before for memory in self._memories.values())

    def memories(self) -> list[tuple[str, Memory]]:
        """Each memory, with the path of its module."""
        return [(self._modules[number], memory) for number, memory in self._memories.items()]

    def add(self, module: str, memory: Memory) -> int:
        """Put a memory at a module; the number takes it out again.

        Raises:
            UserError: there is one already.
        """
        if module in self._modules.values():
            raise UserError(
                f"there is a memory edit at {module} already",
                "restore it first, or give the second edit another layer; to grow one edit use --continue",
            )
        if not self._memories:
            self._install()
        number, self._next = self._next, self._next + 1
        self._memories[number], self._modules[number] = memory, module

        def hook(_: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor | None:
            current: _Pass | None = getattr(self._local, "current", None)
            shape = None if current is None else (current.rows, current.width)
            apart = in_rows(output, shape)
            changed = self._route(number, in_rows(arguments[0], shape), apart)
            return changed if changed is None or apart is output else changed.flatten(0, 1)

        self._hooks[number] = self.model.get_submodule(module).register_forward_hook(hook)
        return number

    def remove(self, number: int) -> None:
        """Take a memory out; with the last one everything of the router goes."""
        if number not in self._memories:
            return
        self._hooks.pop(number).remove()
        del self._memories[number], self._modules[number]
        if not self._memories:
            while self._undo:
                self._undo.pop()()

    # The model's own calls ---------------------------------------------------------------------------------

    def _install(self) -> None:
        model = self.model
        before = model.register_forward_pre_hook(self._begin, with_kwargs=True)
        after = model.register_forward_hook(self._end, always_call=True)
        self._undo = [before.remove, after.remove]
        setattr(model, ROUTER, self)
        self._undo.append(lambda: delattr(model, ROUTER))
        generate = getattr(model, "generate", None)
        if generate is not None:
            had = model.__dict__.get("generate")
            model.__dict__["generate"] = self._generating(generate)

            def undo() -> None:
                if had is None:
                    model.__dict__.pop("generate", None)
                else:
                    model.__dict__["generate"] = had

            self._undo.append(undo)

    def _generating(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(generate)
        def wrapped(*arguments: Any, **options: Any) -> Any:
            token = PROMPT.set(PromptEnds(width=_prompt_width(arguments, options)))
            try:
                return generate(*arguments, **options)
            finally:
                PROMPT.reset(token)

        return wrapped

    def _begin(self, model: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._local.current = pass_of(given_arguments(model, arguments, options))

    def _end(self, model: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        current: _Pass | None = getattr(self._local, "current", None)
        self._local.current = None
        if current is None or not current.held:
            return
        cache = current.cache
        if cache is None:
            cache = cache_of(output)
            if cache is None and isinstance(output, tuple):
                cache = next((part for part in output if hasattr(part, "get_seq_length")), None)
        if cache is not None:
            _keep(cache, current.held)

    # The edited modules' calls -----------------------------------------------------------------------------

    def _route(self, number: int, inputs: Tensor, output: Tensor) -> Tensor | None:
        current: _Pass | None = getattr(self._local, "current", None)
        if current is None:
            raise UserError(
                "a part of the model was called alone, so a memory edit cannot know where the prompt ends",
                "call the whole model, or restore the edit first",
            )
        memory = self._memories[number]
        before = _kept(current.cache).get(number) if current.past else None
        if current.past and before is None:
            raise UserError(
                "this cache was filled without the memory edit", "run the prompt again with the edit in the model"
            )
        if before is not None and len(before.choice) != current.rows:
            raise UserError(
                f"the cache holds {len(before.choice)} rows, and the pass has {current.rows}",
                "select rows with the cache's own methods (batch_select_indices, reorder_cache)",
            )
        if current.held_by_all(before):
            assert before is not None
            if not before.hit or not memory.after:
                return None
            everywhere = torch.ones((current.rows, current.width), dtype=torch.bool, device=output.device)
            return memory.change(inputs, output, before.choice, everywhere & (before.choice >= 0)[:, None])
        now = self._decide(current, memory, before, inputs)
        current.held[number] = now
        if not now.hit:
            return None
        return memory.change(inputs, output, now.choice, self._columns(current, memory, now))

    def _decide(self, current: _Pass, memory: Memory, before: Decisions | None, inputs: Tensor) -> Decisions:
        """The decisions after this pass: those of earlier passes, and of the rows whose prompts end in this one."""
        ends = current.ends - current.past  # within this pass
        here = ends >= 0
        columns = torch.arange(current.width, device=inputs.device)
        going_on = (current.ends < 0)[:, None]  # the whole pass is prompt
        prompt = current.real[:, current.past :] & (going_on | (columns <= ends[:, None]))
        if before is None:
            choice = torch.full((current.rows,), UNDECIDED, dtype=torch.long, device=inputs.device)
            pooled = None
        else:
            choice, pooled = before.choice.clone(), before.pooled
            if before.hit and bool((here & (choice >= 0)).any()):
                raise UserError(
                    "a new prompt cannot go on from the cache of an edited answer: its decision would be another",
                    "start the turn without past_key_values",
                )
        pooled = memory.gather(inputs, prompt, pooled)
        rows = here.nonzero()[:, 0]
        if len(rows):
            own = None if pooled is None else pooled[rows]
            choice[rows], _ = memory.decide(inputs[rows, ends[rows]], own)
        if before is None or before.open:
            lost = (choice == UNDECIDED) & (current.ends >= 0)
            if bool(lost.any()):
                raise UserError(
                    "a prompt has ended before the memory edit saw its end",
                    "pad on the left, or run each prompt in one pass",
                )
        decided = _decisions(choice, pooled)
        if memory.before and current.past and bool((here & (choice >= 0)).any()):
            raise UserError(
                "this memory edit changes the prompt's own tokens, so a prompt must be run in one pass",
                "do without prefill_chunk_size and without past_key_values, or edit with positions=onward",
            )
        return decided

    @staticmethod
    def _columns(current: _Pass, memory: Memory, now: Decisions) -> Tensor:
        """(B, W) the columns that are changed."""
        ends = (current.ends - current.past)[:, None]
        columns = torch.arange(current.width, device=now.choice.device)[None]
        where = columns == ends
        if memory.after:
            where = where | (columns > ends)
        if memory.before:
            where = where | (columns < ends)
        chosen: Tensor = where & (now.choice >= 0)[:, None]
        return chosen


def pass_of(given: Mapping[str, Any]) -> _Pass:
    """The forward pass of a model that is given these arguments, by name.

    Raises:
        UserError: neither ids nor embeddings are given.
    """
    ids = given.get("input_ids")
    if ids is None:
        ids = given.get("inputs_embeds")
    if ids is None:
        raise UserError("a memory edit needs input_ids or inputs_embeds", "call the model with one of them")
    cache = given_cache(given)
    past = int(cache.get_seq_length()) if cache is not None else 0
    return _Pass(ids, given.get("attention_mask"), past, PROMPT.get(), cache)


def router(model: nn.Module) -> Router:
    """The model's router; made if there is none.

    Raises:
        UserError: there are notes or prefixes in the model, which give it other tokens.
    """
    found = getattr(model, ROUTER, None)
    if found is not None and not isinstance(found, Router):
        raise UserError(
            "there are notes in this model already (or prefixes), and they share a model with no other memory",
            "restore them first",
        )
    return found or Router(model)


# Details ---------------------------------------------------------------------------------------------------


def _prompt_width(arguments: tuple[Any, ...], options: Mapping[str, Any]) -> int:
    """How many columns `generate` is given as the prompt."""
    ids = arguments[0] if arguments else options.get("inputs")
    for name in ("input_ids", "inputs_embeds"):
        ids = options.get(name) if ids is None else ids
    width = 1 if ids is None else int(ids.shape[1])  # without ids `generate` starts from one
    mask, cache = options.get("attention_mask"), given_cache(options)
    if mask is not None and mask.ndim == 2:
        return max(width, int(mask.shape[1]))
    past = int(cache.get_seq_length()) if cache is not None else 0
    return width if width > past else past + width


class _CarriesDecisions:
    """A cache whose decisions follow its rows."""

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        _reorder(self, indices)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        _reorder(self, beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        some = next(iter(_kept(self).values()), None)
        if some is not None:
            _reorder(self, torch.arange(len(some.choice)).repeat_interleave(repeats))


@functools.lru_cache(maxsize=64)
def _carrying(cache_class: type[Cache]) -> Any:
    return type(cache_class.__name__, (_CarriesDecisions, cache_class), {"__module__": cache_class.__module__})


def _kept(cache: Cache | None) -> Mapping[int, Decisions]:
    found: Mapping[int, Decisions] = getattr(cache, _DECISIONS, {})
    return found


def _keep(cache: Cache, held: Mapping[int, Decisions]) -> None:
    """Put decisions on a cache. The mapping is replaced, not changed: copies of a cache share it."""
    if not isinstance(cache, _CarriesDecisions):
        cache.__class__ = _carrying(type(cache))  # type: ignore[arg-type]
    setattr(cache, _DECISIONS, {**_kept(cache), **held})


def _reorder(cache: Cache, indices: Tensor) -> None:
    setattr(cache, _DECISIONS, {number: kept.select(indices) for number, kept in _kept(cache).items()})
