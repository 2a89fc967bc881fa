"""What prompts share is run once: the same text as from one prompt at a time, and how many tokens that takes."""

import numpy as np
import pytest
import torch
from tiny_checkpoints import ARCHITECTURES, SLIDING_WINDOW

from unlearn_eval.models import generation, scoring
from unlearn_eval.models.generation import read_once, written
from unlearn_eval.models.prompt_ends import ROUTER
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.scoring import Beginning, Query, score_answers

NEW = 6


def ids(generator, n):
    return [int(token) for token in generator.integers(5, 300, size=n)]


@pytest.fixture(scope="module")
def prompts():
    """With the same beginning of 12 tokens: one is nothing more than that and a token, two are the same."""
    generator = np.random.default_rng(0)
    beginning = ids(generator, 12)
    found = [beginning + ids(generator, n) for n in (1, 4, 9, 3, 7, 2, 5)]
    return [*found, found[2]]


def continued(model, inputs):
    width = inputs["input_ids"].shape[1]
    output = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0)
    return output[:, width:].tolist()


def tokens_run(model, monkeypatch):
    """How many tokens of prompts and answers pass through the model, padding among them."""
    seen = []
    plain = model.forward

    def forward(*arguments, **options):
        seen.append(options["input_ids"].numel())
        return plain(*arguments, **options)

    forward.__wrapped__ = plain
    monkeypatch.setattr(model, "forward", forward)
    return seen


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_prompts_that_share_are_continued_as_if_alone(tiny, prompts, architecture):
    model = tiny(architecture)
    alone = [continued(model, {"input_ids": torch.tensor([own])})[0] for own in prompts]
    inputs = read_once(model, prompts, NEW, 0)
    assert len(inputs) == (2 if model.config.get_text_config().to_dict().get("sliding_window") == SLIDING_WINDOW else 3)
    assert continued(model, inputs) == alone
    kept = [own[real.bool()].tolist() for own, real in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    assert kept == prompts


def test_a_prompt_of_many_samples_is_run_once(tiny, prompts, monkeypatch):
    model = tiny("llama")
    plain = continued(model, {"input_ids": torch.tensor([prompts[2]] * 8)})
    seen = tokens_run(model, monkeypatch)
    inputs = read_once(model, [prompts[2]] * 8, NEW, 0)
    assert sum(seen) == len(prompts[2]) - 1 + 2, "and two for what kind of cache it is"
    assert continued(model, inputs) == plain


def test_samples_are_those_of_whole_prompts(tiny, prompts, tokenizer, monkeypatch):
    model, prompt_format = tiny("llama"), PromptFormat(tokenizer, chat=False)
    rows = [prompts[1]] * 6 + [prompts[4]] * 6
    found = written(model, prompt_format, rows, 12, NEW, seed=3)
    monkeypatch.setattr(generation, "keeps_plain_cache", lambda model: False)
    assert written(model, prompt_format, rows, 12, NEW, seed=3) == found
    assert len(set(found)) > 2


def test_answers_share_the_beginning_of_their_prompts(tiny, prompts, monkeypatch):
    model = tiny("llama")
    queries = [Query(tuple(own), (7, 8)) for own in prompts[:7]]
    alone = [score_answers(model, [query])[0].token_nll for query in queries]
    seen = tokens_run(model, monkeypatch)
    found = score_answers(model, queries, 3)
    np.testing.assert_allclose([own.token_nll for own in found], alone, rtol=1e-5, atol=1e-5)
    together = sum(seen)
    seen.clear()
    monkeypatch.setattr(scoring, "LEAST_SAVED", 10**9)
    score_answers(model, queries, 3)
    assert together == sum(seen) - 6 * 12, "eleven tokens of a beginning are there, and the twelfth where one ends"


@pytest.mark.parametrize(
    ("lengths", "longest", "n"),
    [((12, 3), 20, 0), ((12, 9), 20, 12), ((12, 9), 99, 12)],
)
def test_a_beginning_has_to_pay(tiny, lengths, longest, n):
    shared, many = lengths
    rows = [[*range(5, 5 + shared), 50 + i, 60] for i in range(many)]
    assert Beginning.of(tiny("llama"), rows, longest).n == n


def test_a_model_with_a_memory_runs_whole_prompts(tiny, prompts, monkeypatch):
    model = tiny("llama")
    monkeypatch.setattr(model, ROUTER, object(), raising=False)
    assert set(read_once(model, prompts, NEW, 0)) == {"input_ids", "attention_mask"}
