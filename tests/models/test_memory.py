"""What a model without weights says of memory, beside what the same code has in memory with weights."""

import pytest
import torch
from tiny_models import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from unlearn_eval.models.memory import (
    ACTIVATIONS,
    CACHE,
    GRADIENTS,
    LOGITS,
    Counted,
    Phase,
    counting,
    generation,
    ids_of,
    largest,
    taken,
    weightless,
    weights_bytes,
)
from unlearn_eval.models.scoring import Query, score_answers

ARCHITECTURES = ("llama", "qwen2", "gpt2", "gemma3")


@pytest.fixture(params=ARCHITECTURES)
def pair(request):
    """A tiny model, and the same without weights."""
    model = tiny_model(request.param, exact_norms=False)
    return model, weightless(model.config, torch.float32)


def in_memory(model, run):
    """The same count of a run with weights."""
    config = model.config.get_text_config()
    held = [*model.parameters(), *model.buffers()]
    counted = Counted(config.vocab_size, held, (own.shape for own in model.parameters() if own.requires_grad))
    assert isinstance(counted, TorchDispatchMode)
    with counted:
        run()
    return counted.peak


def test_weights_are_counted_once_where_they_are_tied(pair):
    model, empty = pair
    assert weights_bytes(empty) == weights_bytes(model)
    assert sum(own.numel() for own in empty.parameters()) == sum(own.numel() for own in model.parameters())
    assert weights_bytes(weightless(model.config, torch.bfloat16)) < 0.51 * weights_bytes(model) + 10_000


def test_a_pass_takes_without_weights_what_it_takes_with_them(pair):
    model, empty = pair

    def step(model):
        model.requires_grad_(True)
        model(input_ids=ids_of(3, 20), use_cache=False).logits.float().log_softmax(-1).sum().backward()
        model.zero_grad()
        model.requires_grad_(False)

    with torch.no_grad():
        found, real = (
            run(own, lambda own=own: own(input_ids=ids_of(3, 20))) for own, run in ((empty, taken), (model, in_memory))
        )
    assert sum(found.values()) == pytest.approx(sum(real.values()), rel=0.02)
    found, real = (run(own, lambda own=own: step(own)) for own, run in ((empty, taken), (model, in_memory)))
    assert sum(found.values()) == pytest.approx(sum(real.values()), rel=0.02)


def test_scoring_runs_as_it_is(pair):
    model, empty = pair
    queries = [Query((1, i, *range(12)), (1, 2, 3, 4)) for i in range(2, 10)]
    found = taken(empty, lambda: score_answers(empty, queries, 4))
    assert sum(found.values()) == pytest.approx(
        sum(in_memory(model, lambda: score_answers(model, queries, 4)).values()), rel=0.05
    )


def test_what_generation_keeps_grows_with_what_it_generates():
    empty = weightless(tiny_model("llama").config, torch.float32)
    config = empty.config
    few, many = (generation(empty, 8, 10, new) for new in (200, 400))
    width = 2 * config.num_key_value_heads * config.hidden_size // config.num_attention_heads * config.num_hidden_layers
    assert many[CACHE] - few[CACHE] == pytest.approx(8 * 200 * width * 4, rel=0.01)
    drawn = generation(empty, 64, 2, 3, sampled=True)
    assert drawn[LOGITS] >= 2 * 64 * config.vocab_size * 4, "a copy in float32, and what is left of it"


def test_kinds_and_questions_about_numbers():
    empty = weightless(tiny_model("llama").config, torch.float32)
    weight = next(empty.parameters()).requires_grad_(True)
    with counting(empty) as counted:
        assert float(weight.sum()) == 0.0
        assert not bool((weight > 0).any())
        with counted.kind("kept"):
            kept = weight.detach().clone()
        chosen = kept[torch.tensor([True, False, True] + [False] * (len(kept) - 3))]
        assert chosen.shape == (2, kept.shape[1])
        (weight * 2.0).sum().backward()
    assert counted.now["kept"] == kept.nbytes
    assert counted.now[GRADIENTS] >= weight.nbytes
    del kept
    assert counted.now["kept"] == 0, "what is gone does not count"
    with counting(empty) as counted, counted.without_numbers():
        assert torch.zeros(10**9, 10**3).nbytes == 4 * 10**12, "nothing is there"


def test_phases():
    phase = Phase("one", {ACTIVATIONS: 3}).beside({"kept": 4, ACTIVATIONS: 1})
    assert (phase.n_bytes, phase.held) == (8, {"kept": 4, ACTIVATIONS: 4})
    assert largest({"a": 1}, {"b": 3}, {"c": 2}) == {"b": 3}
