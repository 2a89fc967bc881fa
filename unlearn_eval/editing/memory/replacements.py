"""What memory editors share: targets' losses under another output of one projection, the layers below run once.

The projection's input never depends on what it gives out, at no token: blocks below are not edited, and a target's
tokens are given. So for each request the lower blocks run once, and a step of an optimizer runs the blocks above, on
the tokens from the prompt's last one on, with the keys and values of everything before it cached.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.edits.memory.codebook import Codebook
from unlearn_eval.edits.memory.edit import MemoryEdit
from unlearn_eval.edits.memory.residual_memory import ResidualMemory
from unlearn_eval.edits.memory.side_memories import SideMemories
from unlearn_eval.models.anatomy import Anatomy
from unlearn_eval.models.tracing import Tail, first, trace
from unlearn_eval.utils.errors import UserError, unknown_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Store = TypeVar("Store", Codebook, SideMemories, ResidualMemory)
Settings = TypeVar("Settings", bound=Any)
DEFAULT = "default"
Row = tuple[tuple[int, ...], tuple[int, ...]]  # prompt ids, target ids


class Replacements:
    """Rows of prompt and target, to be run again and again with another output of one projection.

    Args:
        model: a causal language model in eval mode.
        parts: its anatomy.
        layer: the block whose projection's output is replaced.
        rows: the prompts and what should be said.
        whole: whether the prompt's tokens before the last one may be replaced too.

    Attributes:
        inputs, outputs: (R, S, d_in), (R, S, d_out): what the projection reads and gives, as the model is.
        ends: (R,) the column of each prompt's last token.
        tokens: (R, S) which columns are tokens.
    """

    def __init__(
        self, model: PreTrainedModel, parts: Anatomy, layer: int, rows: Sequence[Row], whole: bool = False
    ) -> None:
        self.rows = list(rows)
        name = parts.projection_name(layer)
        ids = [(*prompt, *target[:-1]) for prompt, target in rows]
        ends = [len(prompt) - 1 for prompt, _ in rows]
        with trace(model, inputs=[name], outputs=[name]) as seen:
            self.tail = Tail(model, parts, layer, ids, [0] * len(rows) if whole else ends)
        self.norm = parts.post_norm(model, layer)
        self.inputs, self.outputs = seen.inputs[name], first(seen.outputs[name]).detach()
        device = self.outputs.device
        starts = self.tail.columns
        self.ends = starts + torch.tensor(ends, device=device) if whole else starts
        columns = torch.arange(self.outputs.shape[1], device=device)
        self.tokens = columns >= starts[:, None]
        if not whole:  # rows with shorter targets start further right; what stands before is prompt or padding
            lengths = torch.tensor([len(row) for row in ids], device=device)
            self.tokens = columns >= (len(columns) - lengths)[:, None]
        self._index(device)

    def _index(self, device: torch.device | str) -> None:
        read = [(r, len(target) - j, t) for r, (_, target) in enumerate(self.rows) for j, t in enumerate(target)]
        self._read = tuple(torch.tensor(column, device=device) for column in zip(*read, strict=True))
        self._lengths = torch.tensor([len(target) for _, target in self.rows], device=device)

    def select(self, keep: Sequence[int]) -> Replacements:
        """Those of some rows, without running anything."""
        chosen = copy.copy(self)
        chosen.rows = [self.rows[i] for i in keep]
        index = torch.tensor(list(keep), device=self.ends.device)
        chosen.inputs, chosen.outputs = self.inputs[index], self.outputs[index]
        chosen.ends, chosen.tokens = self.ends[index], self.tokens[index]
        chosen.tail = self.tail.select(index)
        chosen._index(self.ends.device)
        return chosen

    def columns(self, before: bool, after: bool) -> Tensor:
        """(R, S) the prompt's last token, and if asked for the tokens before and after it."""
        columns = torch.arange(self.outputs.shape[1], device=self.ends.device)
        where = columns == self.ends[:, None]
        if before:
            where = where | (columns < self.ends[:, None])
        if after:
            where = where | (columns > self.ends[:, None])
        chosen: Tensor = where & self.tokens
        return chosen

    def losses(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """(R,) each target's mean -ln p, and how many of its tokens are not the most likely; outputs (R, S, d_out)."""
        change = outputs - self.outputs
        if self.norm is not None:  # the residual stream changes by what the norm makes of the new output
            change = self.norm(outputs) - self.norm(self.outputs)
        rows, back, tokens = self._read
        logits = self.tail.logits(self.tail.hidden + change, rows, back)
        logp = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        own = logp.gather(-1, tokens[:, None])[:, 0]
        nll = own.new_zeros(len(self.rows)).index_add(0, rows, -own) / self._lengths
        missed = (own.detach() < logp.detach().amax(-1)).to(own)
        return nll, own.new_zeros(len(self.rows)).index_add(0, rows, missed)


def the_layer(parts: Anatomy, layers: tuple[int, ...], depth: tuple[float, float], what: str) -> int:
    """The one layer of a memory editor: the one that is given, or that at a fraction of the depth.

    Args:
        parts: of the model.
        layers: as configured; none takes it by depth.
        depth: the fraction, twice.
        what: has its memory there, for the message: "GRACE has its codebook".

    Raises:
        UserError: several layers, or one that the model does not have.
    """
    resolved = parts.resolve_layers(layers, depth)
    if len(resolved) != 1:
        raise UserError(f"{what} at one layer, not {list(resolved)}", f"give one, e.g. --set layers={resolved[-1]}")
    return resolved[0]


def with_variant(config: Settings, variants: Mapping[str, Mapping[str, Any]], method: str) -> Settings:
    """The settings with those of a variant in their place; `default` leaves them as they are.

    Raises:
        UserError: there is no such variant.
    """
    names = (DEFAULT, *variants)
    if config.variant not in names:
        raise UserError(f"{method} has no variant '{config.variant}'", f"give one of: {', '.join(names)}")
    return replace(config, **variants.get(config.variant, {}))


def check_names(config: Any, **allowed: Sequence[str]) -> None:
    """Refuse a setting whose value is none of the names that it may have.

    Raises:
        UserError: the nearest name is given.
    """
    for setting, names in allowed.items():
        if getattr(config, setting) not in names:
            raise unknown_name(setting, getattr(config, setting), names)


def with_past(state: MemoryEdit | None, notes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Notes by request, behind those of the edit that was gone on from."""
    past = state.info.notes if state is not None else {}
    return {key: past.get(key, {}) | dict(own) for key, own in notes.items()}


def rows_of(request: EditRequest, contexts: bool) -> list[Row]:
    """A request's prompts with its target: the plain ones of its members, and their contexts if asked for."""
    found: list[Row] = []
    for part in request.parts:
        prompts = part.rows if contexts else part.rows[:1]
        found += [(tuple(ids), request.target_ids) for ids, _ in prompts]
    return found


def check_prompts(requests: Sequence[EditRequest]) -> None:
    """Refuse two requests with the same prompt: the memory decides at its last token, so it can say one thing only.

    Raises:
        UserError: naming both.
    """
    seen: dict[tuple[int, ...], tuple[str, tuple[int, ...]]] = {}
    for request in requests:
        for part in request.parts:
            other = seen.setdefault(part.prompt_ids, (part.id, request.target_ids))
            if other[0] == part.id:
                continue
            if other[1] == request.target_ids:
                raise UserError(
                    f"the requests {other[0]!r} and {part.id!r} ask the same question",
                    "leave one of the two out (--ids)",
                )
            raise UserError(
                f"the requests {other[0]!r} and {part.id!r} conflict: one question with two different targets",
                "give both the same target, or leave one out (--ids)",
            )


def earlier_store(state: MemoryEdit | None, module: str, kind: type[Store]) -> Store | None:
    """What the edit to go on from holds, None if there is none.

    Raises:
        UserError: it is at another module.
    """
    if state is None:
        return None
    if state.module != module:
        raise UserError(
            f"the memory to go on from is at {state.module}, not at {module}",
            "leave out --set layers, or start a new edit",
        )
    assert isinstance(state.store, kind)
    return state.store
