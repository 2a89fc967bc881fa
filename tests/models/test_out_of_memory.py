"""Smaller batches where the memory is too small: finished ones are kept, and the item that is too large is named."""

import weakref

import pytest
import torch

from unlearn_eval.models.out_of_memory import in_batches, is_out_of_memory, until_it_fits
from unlearn_eval.utils.errors import UserError


class Device:
    """A device with room for so much; it remembers every batch that was tried and every one that ran."""

    def __init__(self, room, error=None):
        self.room, self.tried, self.ran = room, [], []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def __call__(self, batch):
        self.tried.append(list(batch))
        if sum(batch) > self.room:
            raise self.error
        self.ran.append(list(batch))
        return [2 * item for item in batch]


def refused(item):
    return UserError(f"{item} does not fit", "leave it out")


def test_batches_without_trouble():
    device = Device(room=100)
    assert list(in_batches([1] * 7, device, 3, refused)) == [[2] * 3, [2] * 3, [2]]
    assert device.tried == device.ran
    assert list(in_batches([], device, 3, refused)) == []


@pytest.mark.parametrize(
    "error",
    [
        None,
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    ],
)
def test_a_batch_that_fails_resumes_where_it_failed(error):
    items = [1, 1, 1, 1, 3, 3, 1, 1, 1, 1]
    device = Device(room=4, error=error)
    found = [item for batch in in_batches(items, device, 4, refused) for item in batch]
    assert found == [2 * item for item in items]
    assert [item for batch in device.ran for item in batch] == items, "nothing is done twice"
    assert [len(batch) for batch in device.tried] == [4, 4, 2, 1, 1, 1, 1, 1, 1], "a smaller batch stays small"


def test_budgets_in_tokens():
    device = Device(room=8)
    found = list(in_batches([6, 3, 3, 2, 1, 1], device, 12, refused, cost=lambda item: item))
    assert device.tried == [[6, 3], [6], [3, 3], [2, 1, 1]]
    assert [item for batch in found for item in batch] == [12, 6, 6, 4, 2, 2]
    assert list(in_batches([6], Device(room=8), 2, refused, cost=lambda item: item)) == [[12]], "one item is always run"


def test_the_item_that_does_not_fit_is_named():
    device = Device(room=4)
    batches = in_batches([1, 1, 5, 1], device, 4, refused)
    assert next(batches) == [2, 2]
    with pytest.raises(UserError, match="5 does not fit") as error:
        next(batches)
    assert error.value.__cause__ is device.error
    assert device.ran == [[1, 1]]


def test_other_errors_pass_through():
    with pytest.raises(RuntimeError, match="shapes"):
        list(in_batches([1, 9], Device(room=4, error=RuntimeError("shapes do not match")), 2, refused))
    assert not is_out_of_memory(ValueError("no such layer"))


def test_work_that_begins_again_is_prepared():
    sizes, prepared = [], []

    def run(size):
        sizes.append(size)
        if size > 2:
            raise MemoryError
        return "done"

    assert until_it_fits(run, 11, prepared.append) == ("done", 2)
    assert (sizes, prepared) == ([11, 5, 2], [11, 5])
    with pytest.raises(UserError, match="two processes"):
        until_it_fits(run, 11, lambda size: UserError("two processes", "give less") if size < 11 else None)


def test_what_a_failed_pass_held_is_freed_before_the_next():
    held = []

    def run(size):
        activations = torch.zeros(10)
        held.append(weakref.ref(activations))
        if size > 1:
            try:
                raise ValueError("inside")
            except ValueError:
                raise torch.OutOfMemoryError("CUDA out of memory")  # noqa: B904
        return size

    freed = []
    until_it_fits(run, 2, lambda size: freed.append(held[0]() is None))
    assert freed == [True]
