"""Smaller batches where a device's memory is too small: the one loop that halves them.

accelerate's `find_executable_batch_size` begins the whole work again with nine tenths of the batch, knows memory errors
by their text alone, and ends with a bare RuntimeError at a batch of none. Here finished batches are kept, the next one
resumes at the first item of the one that failed, and the caller says which item does not fit.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from unlearn_eval.utils.errors import UserError, is_out_of_memory

Item = TypeVar("Item")
Found = TypeVar("Found")


def until_it_fits(
    run: Callable[[int], Found], size: int, too_large: Callable[[int], UserError | None]
) -> tuple[Found, int]:
    """`run(size)`, or with half the size, a quarter, ... until the memory suffices; and the size that did.

    Args:
        run: the work, given its size.
        size: the first size to try.
        too_large: called with each size that has failed, when its tensors are freed. It returns an error where the
            work cannot be smaller (at the latest for 1), and else prepares the next try.

    Raises:
        UserError: what `too_large` returned. Errors of any other kind pass through.
    """
    while True:
        try:
            return run(size), size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failure = error.with_traceback(None)  # its frames would keep the failed pass's tensors alive
        failure.__context__ = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if (refused := too_large(size)) is not None:
            raise refused from failure
        assert size > 1, "nothing is smaller than one item"
        size //= 2


def in_batches(
    items: Sequence[Item],
    run: Callable[[Sequence[Item]], Found],
    budget: int,
    refused: Callable[[Item], UserError],
    cost: Callable[[Item], int] = lambda item: 1,
) -> Iterator[Found]:
    """What `run` returns for each batch, in order. Where the memory is too small, batches are halved and stay small.

    Args:
        items: the work; the costliest first if costs differ, since a batch is planned by its first item.
        run: the work on one batch.
        budget: the most that a batch may cost; one item may cost more.
        refused: the error for an item that does not fit by itself.
        cost: of one item, e.g. its tokens.

    Raises:
        UserError: one item alone does not fit.
    """
    start = 0
    while start < len(items):
        price = cost(items[start])
        planned = min(max(1, budget // price), len(items) - start)
        found, size = until_it_fits(
            lambda n, at=start: run(items[at : at + n]),  # type: ignore[misc]
            planned,
            lambda n, at=start: refused(items[at]) if n == 1 else None,  # type: ignore[misc]
        )
        yield found
        budget = budget if size == planned else price * size
        start += size


def free_bytes(device: torch.device) -> int | None:
    """How much of a device's memory is free, or None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
