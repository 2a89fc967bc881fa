"""A memory edit in a continuous-batching engine: which tokens are whose, and one operation at the edited layer.

An engine runs tokens of many requests in one flat batch. Before each step the host says which slot each token belongs
to and where prompts end (`Step`); the operation at the layer then does what `routing.py` does for batches of rows: it
gathers from prompts, decides at their ends, and changes the tokens whose request has a memory. What was decided stays
in buffers of fixed size, one entry for each slot, so that the operation has static shapes and asks the host nothing.

This knows nothing of vLLM; `routed_model.py` puts it there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlearn_eval.edits.memory.routing import NO_MEMORY, UNDECIDED, Memory

BEFORE, END, AFTER, NOBODY = -1, 0, 1, 2
NEAR = 1e-4  # relative: other kernels or batches may round a decision this near to its bound to the other side
_LOOK_EVERY = 64  # steps; looking waits for the device
_logger = logging.getLogger("vllm.unlearn_eval")


@dataclass(frozen=True)
class Step:
    """What one forward pass computes, for T tokens of R requests, in the order of the batch.

    Attributes:
        slots: (R,) each request's slot.
        rows: (T,) whose token it is, as an index of `slots`.
        places: (T,) BEFORE its prompt's last token, that END, or AFTER it.
        ends: (R,) the index among the T tokens at which the prompt ends; -1 if it ends in another step.
        fresh: (R,) whether the request begins here.
    """

    slots: np.ndarray[Any, Any]
    rows: np.ndarray[Any, Any]
    places: np.ndarray[Any, Any]
    ends: np.ndarray[Any, Any]
    fresh: np.ndarray[Any, Any]


def step_of(
    slots: Sequence[int], scheduled: Sequence[int], computed: Sequence[int], last_of_prompt: Sequence[int]
) -> Step:
    """The step of R requests.

    Args:
        slots: each request's slot.
        scheduled: how many of its tokens are run now.
        computed: how many were run before; 0 begins (again).
        last_of_prompt: the position of its prompt's last token.
    """
    own, n, past, last = (np.asarray(values, dtype=np.int64) for values in (slots, scheduled, computed, last_of_prompt))
    starts = np.cumsum(n) - n
    rows = np.repeat(np.arange(len(n)), n)
    positions = np.arange(int(n.sum())) - starts[rows] + past[rows]
    here = (past <= last) & (last < past + n)
    return Step(own, rows, np.sign(positions - last[rows]), np.where(here, starts + last - past, -1), past == 0)


class Progress:
    """How far each request has come, to refuse steps that skip tokens: a memory that has not seen them would guess."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def check(self, requests: Sequence[str], scheduled: Sequence[int], computed: Sequence[int]) -> None:
        """Note a step.

        Raises:
            RuntimeError: a request goes on from another token than the one it had come to.
        """
        for name, n, past in zip(requests, scheduled, computed, strict=True):
            if past and self._seen.get(name, 0) != past:
                raise RuntimeError(
                    f"request {name} goes on at token {past}, and the memory edit has seen {self._seen.get(name, 0)} "
                    "of them: prefix caching and transfer of keys and values must be off"
                )
            self._seen[name] = int(past + n)

    def forget(self, names: Sequence[str]) -> None:
        """Requests that are over, or will begin again."""
        for name in names:
            self._seen.pop(name, None)


class Slots:
    """A slot for each request that has begun; freed when it ends or is preempted."""

    def __init__(self, n: int) -> None:
        self._free = list(range(n - 1, -1, -1))
        self._of: dict[str, int] = {}

    def of(self, name: str) -> int:
        """The request's slot; a new one if it has none.

        Raises:
            RuntimeError: there are more requests than the engine said it would run at once.
        """
        if name not in self._of:
            if not self._free:
                raise RuntimeError(f"{len(self._of)} requests are under way, and the memory edit has no slot for more")
            self._of[name] = self._free.pop()
        return self._of[name]

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._of))

    def free(self, names: Sequence[str]) -> None:
        """Give the slots of these requests back, if they have any."""
        for name in names:
            slot = self._of.pop(name, None)
            if slot is not None:
                self._free.append(slot)


class RoutedLayer:
    """The memory of one layer, and what it has decided for each slot.

    Args:
        memory: at work, on the layer's device.
        n_slots: requests at once.
        n_tokens: tokens of one step, at most.
        inputs: (1, d_in) of the layer, whose device and type are meant.
    """

    def __init__(self, memory: Memory, n_slots: int, n_tokens: int, inputs: Tensor) -> None:
        self.memory, self.nobody = memory, n_slots  # the last slot is nobody's: of padding
        n, device = n_slots + 1, inputs.device
        self._slot = torch.full((n_tokens,), n_slots, dtype=torch.long, device=device)
        self._place = torch.full((n_tokens,), NOBODY, dtype=torch.long, device=device)
        self._end = torch.zeros(n, dtype=torch.long, device=device)
        self._ends_here = torch.zeros(n, dtype=torch.bool, device=device)
        self._fresh = torch.zeros(n, dtype=torch.bool, device=device)
        self._choice = torch.full((n,), UNDECIDED, dtype=torch.long, device=device)
        gathered = memory.gather(inputs[:, None], torch.ones(1, 1, dtype=torch.bool, device=device), None)
        self._pooled = None if gathered is None else gathered.new_zeros(n, gathered.shape[1])
        self._active = False
        self._near = torch.zeros((), dtype=torch.long, device=device)
        self._told, self._steps = 0, 0

    @property
    def n_near(self) -> int:
        """How many decisions so far were within NEAR of their bound (waits for the device)."""
        return int(self._near)

    def _tell(self) -> None:
        """Record decisions that rounding could have turned."""
        self._steps += 1
        if self._steps % _LOOK_EVERY == 0 and (n := self.n_near) > self._told:
            _logger.warning(
                "%d decisions of a memory edit were within %.0e of its bound so far; batching may turn such", n, NEAR
            )
            self._told = n

    def begin(self, step: Step) -> None:
        """Say what the next pass computes."""
        self._tell()
        n = len(step.rows)
        slot = np.full(len(self._slot), self.nobody, dtype=np.int64)
        place = np.full(len(self._slot), NOBODY, dtype=np.int64)
        slot[:n], place[:n] = step.slots[step.rows], step.places
        end = np.zeros(self.nobody + 1, dtype=np.int64)
        ends_here, fresh = np.zeros((2, self.nobody + 1), dtype=bool)
        end[step.slots], ends_here[step.slots], fresh[step.slots] = np.maximum(step.ends, 0), step.ends >= 0, step.fresh
        for own, values in (
            (self._slot, slot),
            (self._place, place),
            (self._end, end),
            (self._ends_here, ends_here),
            (self._fresh, fresh),
        ):
            own.copy_(torch.from_numpy(values))
        self._active = True

    def rest(self) -> None:
        """The next passes are nobody's: profiling, warming up, capturing graphs."""
        self._slot.fill_(self.nobody)
        self._place.fill_(NOBODY)
        self._end.zero_()
        self._ends_here.zero_()
        self._fresh.zero_()
        self._active = False

    def __call__(self, inputs: Tensor, output: Tensor) -> Tensor:
        """The layer's output (T, d_out) with the memories in it, from its inputs (T, d_in) and its own output."""
        if inputs.device.type != "cpu":
            return self._static(inputs, output)
        return self._sparing(inputs, output) if self._active else output

    # Everything at fixed shapes: no question to the device, so that it can be captured in a graph ------------

    def _static(self, inputs: Tensor, output: Tensor) -> Tensor:
        n = len(inputs)
        slot, place = self._slot[:n], self._place[:n]
        self._choice.masked_fill_(self._fresh, UNDECIDED)
        self._gather(inputs, slot, place)
        chosen, margins = self.memory.decide(inputs[self._end], self._pooled)
        torch.where(self._ends_here, chosen, self._choice, out=self._choice)
        self._near += ((margins < NEAR) & self._ends_here).sum()
        choice = self._choice[slot]
        where = self._changed(place) & (choice >= 0)
        return self.memory.change_each(inputs, output, torch.where(where, choice, NO_MEMORY))

    # Only what is needed: where asking costs nothing -----------------------------------------------------------

    def _sparing(self, inputs: Tensor, output: Tensor) -> Tensor:
        n = len(inputs)
        slot, place = self._slot[:n], self._place[:n]
        self._choice.masked_fill_(self._fresh, UNDECIDED)
        prompt = (place <= END).nonzero()[:, 0]
        self._gather(inputs[prompt], slot[prompt], place[prompt])
        over = self._ends_here.nonzero()[:, 0]
        if len(over):
            pooled = None if self._pooled is None else self._pooled[over]
            self._choice[over], margins = self.memory.decide(inputs[self._end[over]], pooled)
            self._near += (margins < NEAR).sum()
        choice = self._choice[slot]
        where = (self._changed(place) & (choice >= 0)).nonzero()[:, 0]
        if not len(where):
            return output.clone()  # an operation may not give back what it was given
        moved = output.clone()
        moved[where] = self.memory.change_each(inputs[where], output[where], choice[where])
        return moved

    # Both -------------------------------------------------------------------------------------------------------

    def _changed(self, place: Tensor) -> Tensor:
        """Which tokens a memory may change."""
        where = place == END
        if self.memory.after:
            where = where | (place == AFTER)
        if self.memory.before:
            where = where | (place == BEFORE)
        return where

    def _gather(self, inputs: Tensor, slot: Tensor, place: Tensor) -> None:
        """Add what these tokens' prompts are known by to what their slots have."""
        if self._pooled is None:
            return
        self._pooled.masked_fill_(self._fresh[:, None], 0)
        own = self.memory.gather(inputs[:, None], (place <= END)[:, None], None)  # each token a row of its own
        assert own is not None
        if self.memory.reduction == "sum":
            self._pooled.index_add_(0, slot, own)
        else:
            self._pooled.scatter_reduce_(0, slot[:, None].expand_as(own), own, "amax")


class Silence:
    """In the place of a memory while the engine serves an edit of weights: every output stays what it is."""

    def __init__(self, n_slots: int) -> None:
        self.nobody = n_slots

    def begin(self, step: Step) -> None:
        """Nothing depends on whose tokens these are."""

    def rest(self) -> None:
        """The same."""

    def __call__(self, inputs: Tensor, output: Tensor) -> Tensor:
        """The output."""
        return output
