"""Read a module's input or output, stop a forward pass early, and run only the layers above one.

Each is a context manager that leaves the model as it found it, also after an error.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unlearn_eval.models.anatomy import Blocks
from unlearn_eval.models.arguments import accepts, batch_shape, cache_argument, cache_of
from unlearn_eval.models.prompt_ends import prompt_lengths, refuse_inserted
from unlearn_eval.models.scoring import keeps_plain_cache, pad, positions

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel


class _Stop(Exception):
    """Raised inside a forward pass when everything asked for has been seen."""


def first(output: Tensor | tuple[Any, ...]) -> Tensor:
    """The tensor of a module's output, which some architectures wrap in a tuple."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def in_rows(tensor: Tensor, shape: tuple[int, int] | None) -> Tensor:
    """A module's tensor as (R, T, ...), of a pass of R rows and T columns: OPT's MLPs are given all tokens as (R · T).

    What is in rows already, or of a pass whose shape is not known, is given back as it is.
    """
    if shape is None or tensor.ndim != 2 or len(tensor) != shape[0] * shape[1]:
        return tensor
    return tensor.view(*shape, tensor.shape[-1])


class Traced:
    """What `trace` has seen: `inputs` and `outputs` by module name."""

    def __init__(self) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}


@contextmanager
def trace(
    model: nn.Module, inputs: Sequence[str] = (), outputs: Sequence[str] = (), stop_after: str | None = None
) -> Iterator[Traced]:
    """Keep the first input or the output of named modules during forward passes, in rows whatever the module is given.

    With `stop_after`, the pass ends when that module has run; the model's own call then returns nothing and
    the `with` block goes on after it (do one forward pass per block).

    Raises:
        UserError: an edit inserts text into the model's prompts.
    """
    refuse_inserted(model)
    seen = Traced()
    shape: tuple[int, int] | None = None

    def begin(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        nonlocal shape
        shape = batch_shape(model, arguments, options)

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Tensor | tuple[Any, ...]) -> Tensor | None:
            whole = first(output)
            apart = in_rows(whole, shape)
            if name in inputs:
                seen.inputs[name] = in_rows(arguments[0], shape)
            if name in outputs:
                seen.outputs[name] = apart
            if name == stop_after:
                raise _Stop
            # What was kept must be what the model goes on from: gradients by it are asked for.
            return None if apart is whole else apart.flatten(0, 1)

        return hook

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(begin, with_kwargs=True).remove)
        for name in dict.fromkeys([*inputs, *outputs, *([stop_after] if stop_after else [])]):
            handle = model.get_submodule(name).register_forward_hook(hook_for(name))
            stack.callback(handle.remove)
        try:
            yield seen
        except _Stop:
            return


class Tail:
    """The part of a model above block `layer`, for a fixed batch of rows, from (at least) each look-up token on.

    Nothing before the look-up token can change (attention is causal), so the keys and values of those
    positions are computed once. What block `layer` outputs on the last S positions is kept in `hidden`; S is just
    enough for every row's look-up token. `logits` runs only the blocks above on any replacement of it. Embeddings,
    masks, positions, final norm and head stay the model's own business: the lower blocks are merely told to hand
    their input on, so this holds for every architecture. A model without a plain key-value cache is run on whole
    rows instead.

    Args:
        model: a causal language model in eval mode.
        anatomy: its anatomy.
        layer: the block whose output is replaced.
        rows: token ids of each row.
        lookups: index of each row's look-up token.
        also: a module of block `layer`; `at_lookup` then gives its output, not the block's.
        starts: for each row an index up to its look-up token, from which on `hidden` must reach; by default that one.

    Attributes:
        hidden: (R, S, d), the block's output on the last S positions; rows are padded on the left.
        columns: (R,) where the look-up token stands in `hidden`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        anatomy: Blocks,
        layer: int,
        rows: Sequence[Sequence[int]],
        lookups: Sequence[int],
        also: str | None = None,
        starts: Sequence[int] | None = None,
    ) -> None:
        self.model, self.anatomy, self.layer = model, anatomy, layer
        self._also: Tensor | None = None
        self._cache: Any = None
        # Every row is cut at the same distance from its end, so that no padding stands between a row's prefix and
        # its tail: sliding windows count columns, not tokens.
        width = max(len(row) - k for row, k in zip(rows, lookups if starts is None else starts, strict=True))
        cut = [max(0, len(row) - width) for row in rows]
        if not any(cut) or not keeps_plain_cache(model):
            cut = [0] * len(rows)
        ids, mask = pad([row[k:] for row, k in zip(rows, cut, strict=True)], "left", model.device)
        lengths = mask.sum(-1)
        offset = torch.tensor([k - c for k, c in zip(lookups, cut, strict=True)], device=model.device)
        self.columns = ids.shape[1] - lengths + offset
        if any(cut):
            prefix_mask = self._fill_cache([row[:k] for row, k in zip(rows, cut, strict=True)])
            mask = torch.cat([prefix_mask, mask], dim=1)
        self._arguments = {
            "input_ids": ids,
            "attention_mask": mask,
            **positions(model, mask, last=ids.shape[1]),
        }
        self._tuple = False
        self.hidden = self._run_below(also)
        self._thin_cache()

    @torch.no_grad()
    def _fill_cache(self, prefixes: list[Sequence[int]]) -> Tensor:
        # A row without a prefix still needs one visible position here, or its values would be undefined.
        ids, mask = pad([prefix or (0,) for prefix in prefixes], "left", self.model.device)
        options = {"attention_mask": mask, "use_cache": True, **positions(self.model, mask)}
        head = self.model.get_output_embeddings()
        handle = head.register_forward_pre_hook(lambda module, arguments: (arguments[0][:1, :1],))  # nobody reads it
        try:
            self._cache = cache_of(self.model(input_ids=ids, **options))
        finally:
            handle.remove()
        empty = torch.tensor([not prefix for prefix in prefixes], device=mask.device)
        return mask.masked_fill(empty[:, None], 0)

    def _call(self, **options: object) -> Any:
        if self._cache is None:
            return self.model(**self._arguments, use_cache=False, **options)
        cache = cache_argument(self.model, self._own_cache())
        return self.model(**self._arguments, **cache, use_cache=True, **options)

    def _own_cache(self) -> Any:
        cache = copy.copy(self._cache)  # its layers grow by concatenation, so sharing their tensors is safe
        cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        return cache

    @torch.no_grad()
    def _run_below(self, also: str | None) -> Tensor:
        name = f"{self.anatomy.blocks}.{self.layer}"
        seen: list[Any] = []
        handle = self.model.get_submodule(name).register_forward_hook(lambda m, a, out: seen.append(out))
        try:
            with trace(self.model, outputs=[also] if also else [], stop_after=name) as traced:
                self._call()
        finally:
            handle.remove()
        self._tuple = isinstance(seen[0], tuple)
        if also:
            self._also = traced.outputs[also][torch.arange(len(self.columns)), self.columns]
        return first(seen[0])

    def _thin_cache(self) -> None:
        """Let go of keys and values that are never read again: up to `layer` the cache only says how long it is."""
        if self._cache is not None:
            kept: dict[type, Any] = {}
            self._cache.layers = [
                kept.setdefault(type(own), own) if i <= self.layer else own for i, own in enumerate(self._cache.layers)
            ]

    def at_lookup(self) -> Tensor:
        """(R, d): the output of the block (or of the module `also`) at the look-up tokens."""
        return self.hidden[torch.arange(len(self.columns)), self.columns] if self._also is None else self._also

    def above(self, layer: int) -> Tail:
        """The same above another block, `layer` >= this one's; nothing is computed again.

        Its `hidden` is still this block's: give `logits` what that other block is to output. Of a tail above block 0
        there is also one above -1, the embeddings, which runs every block on the tail's tokens.
        """
        assert layer >= self.layer or (layer, self.layer) == (-1, 0), (layer, self.layer)
        other = copy.copy(self)
        other.layer = layer
        return other

    def select(self, rows: Tensor) -> Tail:
        """The same for some rows only, by their indices; nothing is computed again."""
        other = copy.copy(self)
        other.hidden, other.columns = self.hidden[rows], self.columns[rows]
        other._also = None if self._also is None else self._also[rows]
        n = len(self.columns)
        other._arguments = {
            key: value[rows] if torch.is_tensor(value) and len(value) == n else value
            for key, value in self._arguments.items()
        }
        if self._cache is not None:
            other._cache = self._own_cache()
            other._cache.batch_select_indices(rows)
        return other

    def logits(self, hidden: Tensor, rows: Tensor, back: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Logits (n, V) when block `layer` outputs `hidden` (R, S, d), at n places only.

        Args:
            hidden: what stands in for the block's output.
            rows: (n,) of which row.
            back: (n,) at which position from the row's end; 1 is the last.
            tokens: (n, k), if only the logits (n, k) of these are wanted; the head then computes no others.
        """
        options = {"logits_to_keep": int(back.max())} if accepts(self.model, "logits_to_keep") else {}

        places: list[int] = []

        def gather(head: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
            (states,) = arguments
            places.append(states.shape[1])
            return (states[rows, states.shape[1] - back][None],)

        with ExitStack() as stack:
            for layer in range(self.layer + 1):
                block = self.anatomy.block(self.model, layer)
                stack.callback(_hand_on(block, hidden if layer == self.layer else None, self._tuple))
            head = self.model.get_output_embeddings()
            stack.callback(head.register_forward_pre_hook(gather).remove)
            only = tokens is not None and type(head) is nn.Linear
            if only:
                stack.callback(_give_only(head, tokens))
            logits: Tensor = self._call(**options).logits
        found = logits[0] if places else logits[rows, logits.shape[1] - back]  # a head that is no module's call
        return found if tokens is None or (only and places) else found.gather(-1, tokens)


def _give_only(head: nn.Linear, tokens: Tensor | None) -> Any:
    """Make a linear head give (1, n, k) for states (1, n, d), of `tokens` (n, k) only; returns what undoes it.

    What a model does with its logits after (a scale, a soft cap) it does to each by itself.
    """

    def forward(states: Tensor) -> Tensor:
        logits = torch.einsum("nkd,nd->nk", head.weight[tokens], states[0])
        return (logits if head.bias is None else logits + head.bias[tokens])[None]

    return _replace_forward(head, forward)


@torch.no_grad()
def block_outputs(model: PreTrainedModel, anatomy: Blocks, rows: Sequence[Sequence[int]]) -> Tensor:
    """(L, R, T, d): what every block hands on at every token of some rows, padded on the right.

    The last block's is what the final norm reads. Nothing here says where prompts end: do it around the call
    (`routing.prompt_lengths`) where a memory edit is in the model.
    """
    names = [f"{anatomy.blocks}.{layer}" for layer in range(anatomy.n_layers)]
    ids, mask = pad(rows, "right", model.device)
    with trace(model, outputs=names) as seen:
        model(input_ids=ids, attention_mask=mask, use_cache=False, **positions(model, mask))
    return torch.stack([seen.outputs[name] for name in names])


@torch.no_grad()
def last_states(
    model: PreTrainedModel,
    anatomy: Blocks,
    rows: Sequence[Sequence[int]],
    at_once: int,
    ends: Sequence[int] | None = None,
) -> Tensor:
    """(1 + L, R, d) in float32 on the CPU: the residual stream at each row's last token.

    First comes what the first block is given, then what each block hands on.

    Args:
        model, anatomy: the model.
        rows: token ids.
        at_once: rows per forward pass.
        ends: how many tokens of each row are the prompt, which memory edits need to know; None where none is in it.
    """
    names, parts = [f"{anatomy.blocks}.{layer}" for layer in range(anatomy.n_layers)], []
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once]
        ids, mask = pad(part, "right", model.device)
        said = nullcontext() if ends is None else prompt_lengths(ends[start : start + at_once])
        with said, trace(model, inputs=names[:1], outputs=names, stop_after=names[-1]) as seen:
            model(input_ids=ids, attention_mask=mask, use_cache=False, **positions(model, mask))
        at = torch.arange(len(part)), torch.tensor([len(row) - 1 for row in part])
        stream = [seen.inputs[names[0]], *(seen.outputs[name] for name in names)]
        parts.append(torch.stack([states[at].float().cpu() for states in stream]))
    return torch.cat(parts, dim=1)


@torch.no_grad()
def read_out(model: PreTrainedModel, anatomy: Blocks, states: Tensor) -> Tensor:
    """Logits (R, T, V) of states (R, T, d) by the model's own final norm and head: all blocks are told to hand on.

    Embeddings are run for nothing, so that this holds for every architecture, whatever comes after its head.
    """
    ids = torch.zeros(states.shape[:2], dtype=torch.long, device=states.device)
    last, wrapped = anatomy.n_layers - 1, _gives_tuple(model, anatomy)
    with ExitStack() as stack:
        for layer in range(anatomy.n_layers):
            block = anatomy.block(model, layer)
            stack.callback(_hand_on(block, states if layer == last else None, wrapped))
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def _gives_tuple(model: PreTrainedModel, anatomy: Blocks) -> bool:
    """Whether the model's blocks wrap what they hand on in a tuple: seen at the first, in a pass of one token."""
    found: list[bool] = []

    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Tensor | tuple[Any, ...]) -> None:
        found.append(isinstance(output, tuple))
        raise _Stop

    handle = anatomy.block(model, 0).register_forward_hook(hook)
    try:
        with suppress(_Stop):
            model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device), use_cache=False)
    finally:
        handle.remove()
    return found[0]


def _hand_on(block: nn.Module, value: Tensor | None, as_tuple: bool) -> Any:
    """Make a block return `value` (or its input); returns the function that undoes it."""

    def forward(hidden_states: Tensor | None = None, *arguments: object, **options: object) -> Any:
        output = value if value is not None else hidden_states
        return (output, None) if as_tuple else output

    return _replace_forward(block, forward)


def _replace_forward(module: nn.Module, forward: Callable[..., Any]) -> Any:
    had = module.__dict__.get("forward")
    module.__dict__["forward"] = forward

    def undo() -> None:
        if had is None:
            module.__dict__.pop("forward", None)
        else:
            module.__dict__["forward"] = had

    return undo
