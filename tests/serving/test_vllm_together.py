"""Evaluations that share an engine: whose turn it is, who asks the engine, and what an error does to the others."""

import threading
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")  # of which nothing runs here
from unlearn_eval.serving import together

pytestmark = pytest.mark.vllm


class Echo:
    """An engine that says each prompt back, and notes which prompts came together and in which thread."""

    def __init__(self, fails_at=None):
        self.calls, self.threads, self.fails_at = [], set(), fails_at

    def generate(self, prompts, sampling_params, lora_request, use_tqdm):
        if len(self.calls) == self.fails_at:
            raise MemoryError("no room")
        self.calls.append(list(zip(prompts, lora_request, strict=True)))
        self.threads.add(threading.current_thread())
        return [f"{prompt} by {adapter}" for prompt, adapter in zip(prompts, lora_request, strict=True)]


@pytest.fixture
def engine_of(monkeypatch):
    """(number of views, settings of the echo) -> what shares it."""

    def view_of(engine, number, adapter):
        return SimpleNamespace(number=number, lora_request=f"edit {number}")

    def make(n, **settings):
        monkeypatch.setattr(together, "_started", lambda *_: SimpleNamespace(model=Echo(**settings)))
        monkeypatch.setattr(together.Engine, "_view", view_of)
        return together.Engine("base", [None] * n)

    return make


def test_everybodys_requests_are_mixed_and_asked_by_the_engines_own_thread(engine_of):
    engine = engine_of(3)
    at_once, most = [], []

    def work(view):
        said = []
        for i in range(view.number + 1):  # the first asks once, the last three times
            at_once.append(view)
            time.sleep(0.02)  # in which others would come, if they could
            most.append(len(at_once))
            at_once.remove(view)
            said += engine.ask(view.number, [f"{i}{letter}" for letter in "ab"], [None] * 2)
        return said

    found = engine.run(work)
    assert found == [[f"{i}{letter} by edit {n}" for i in range(n + 1) for letter in "ab"] for n in range(3)]
    calls = engine.own.model.calls
    assert [len(call) for call in calls] == [6, 4, 2]
    assert sorted(calls[0]) == sorted((f"0{letter}", f"edit {n}") for n in range(3) for letter in "ab")
    assert len({prompt for prompt, _ in calls[0][:3]}) == 1, "each one's first before anybody's second"
    assert max(most) == 1, "one at a time"
    assert engine.own.model.threads == {threading.current_thread()}


def test_an_evaluation_that_fails_keeps_no_other_waiting(engine_of):
    engine, done = engine_of(3), []

    def work(view):
        engine.ask(view.number, ["first"], [None])
        if view.number == 1:
            raise ValueError("a mistake in one")
        done.append(engine.ask(view.number, ["second"], [None]))

    with pytest.raises(ValueError, match="a mistake in one"):
        engine.run(work)
    assert sorted(done) == [["second by edit 0"], ["second by edit 2"]]


def test_an_engine_that_fails_is_everybodys_error(engine_of):
    engine, told = engine_of(3, fails_at=1), []

    def work(view):
        engine.ask(view.number, ["first"], [None])
        try:
            engine.ask(view.number, ["second"], [None])
        except MemoryError:
            told.append(view.number)
            raise

    with pytest.raises(MemoryError, match="no room"):
        engine.run(work)
    assert sorted(told) == [0, 1, 2]
