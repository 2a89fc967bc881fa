"""`score_answers` against one plain forward pass per answer, for several architectures and batch sizes."""

import copy
import itertools

import numpy as np
import pytest
import torch
from plain_loop import token_scores
from tiny_checkpoints import ARCHITECTURES, SLIDING_WINDOW

from unlearn_eval.models import scoring
from unlearn_eval.models.scoring import Query, score_answers

TOLERANCE = 1e-5  # float32 rounding of these models; a wrong position or mask is off by more than 0.01


def random_ids(generator, n):
    return tuple(int(token) for token in generator.integers(5, 300, size=n))


@pytest.fixture(scope="module")
def queries():
    """Prompts of 1 to 40 tokens (the sliding window is 8), answers of 1 to 12, seven for one question."""
    generator = np.random.default_rng(0)
    made = []
    for n_prompt, n_answers in ((1, 2), (2, 1), (5, 7), (SLIDING_WINDOW, 2), (23, 3), (40, 2), (1, 1), (24, 1)):
        prompt = random_ids(generator, n_prompt)
        made += [Query(prompt, random_ids(generator, int(generator.integers(1, 13)))) for _ in range(n_answers)]
    return [made[i] for i in generator.permutation(len(made))]


def check(model, queries, scores, tolerance=TOLERANCE, moments=True):
    assert len(scores) == len(queries)
    for query, score in zip(queries, scores, strict=True):
        expected = token_scores(model, query.prompt_ids, query.label_ids)
        np.testing.assert_allclose(score.token_nll, expected["token_nll"], rtol=tolerance, atol=tolerance)
        assert score.hits == expected["hits"]
        assert score.ranks == expected["ranks"]
        if moments:
            np.testing.assert_allclose(score.means, expected["means"], rtol=tolerance, atol=tolerance)
            # E[x^2] - E[x]^2 in float32 loses digits of E[x^2], which is about 100 here.
            np.testing.assert_allclose(score.variances, expected["variances"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_as_one_sequence_at_a_time(tiny, queries, architecture, batch_size):
    model = tiny(architecture)
    check(model, queries, score_answers(model, queries, batch_size, moments=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_models_notice_positions_and_context(tiny, queries, architecture):
    """The control: these tiny models are sensitive enough for the comparison above to mean something."""
    query = max(queries, key=len)
    model = tiny(architecture)
    right = token_scores(model, query.prompt_ids, query.label_ids)["token_nll"]
    swapped = (*query.prompt_ids[:-6], *query.prompt_ids[-6:][::-1])
    assert np.abs(np.subtract(right, token_scores(model, swapped, query.label_ids)["token_nll"])).max() > 0.01
    shorter = token_scores(model, query.prompt_ids[1:], query.label_ids)["token_nll"]
    assert np.abs(np.subtract(right, shorter)).max() > 1e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_flat_and_shared_paths_agree(tiny, queries, architecture, monkeypatch):
    model = tiny(architecture)
    assert scoring.keeps_plain_cache(model)
    shared = score_answers(model, queries, 4)
    monkeypatch.setattr(scoring, "keeps_plain_cache", lambda model: False)
    monkeypatch.setattr(scoring, "_score_shared", None)  # must not be called
    flat = score_answers(model, queries, 4)
    check(model, queries, flat, moments=False)
    for a, b in zip(shared, flat, strict=True):
        np.testing.assert_allclose(a.token_nll, b.token_nll, rtol=TOLERANCE, atol=TOLERANCE)
        assert (a.hits, a.ranks) == (b.hits, b.ranks)


def test_a_recurrent_model_is_scored_flat(tokenizer, queries):
    from transformers import MambaConfig, MambaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MambaForCausalLM(
            MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, state_size=4)
        ).eval()
    assert not scoring.keeps_plain_cache(model)
    some = queries[:8]
    check(model, some, score_answers(model, some, 3), moments=False)


def test_a_peft_model(tiny, queries):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    wrapped = get_peft_model(
        copy.deepcopy(tiny("llama")), LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    ).eval()
    scores = score_answers(wrapped, queries, 4, moments=True)
    check(wrapped, queries, scores)
    base = score_answers(tiny("llama"), queries, 4)
    assert not np.allclose(scores[0].token_nll, base[0].token_nll, atol=1e-3)  # the adapter was on


@pytest.mark.parametrize("batch_size", [2, 16])
def test_every_question_is_run_once(tiny, batch_size):
    """Counts the real tokens that pass through the model: the question's once, not once per answer."""
    generator = np.random.default_rng(1)
    prompts = [random_ids(generator, 30), random_ids(generator, 30)]
    queries = [Query(prompt, random_ids(generator, 4)) for prompt in prompts for _ in range(7)]
    model = tiny("llama")
    tokens = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        score_answers(model, queries, batch_size)
    finally:
        hook.remove()
    probe = 2  # of keeps_plain_cache
    # 29 question tokens once; then per answer the question's last token and its labels but the last.
    assert sum(tokens) == probe + 2 * 29 + 14 * 4
    if batch_size == 2:
        assert max(tokens) <= 2 * 30


def test_batch_size_may_be_a_function_and_rows_are_counted(tiny, queries):
    done, asked = [], []

    def size(n):
        asked.append(n)
        return 3 if n < 5 else 8

    model = tiny("gpt2")
    check(model, queries, score_answers(model, queries, size, progress=done.append), moments=False)
    assert sum(done) == len(queries)
    assert max(asked) <= len(queries)


def test_nothing_is_never_nan_and_order_does_not_matter(tiny, queries):
    model = tiny("gemma3")
    forward = score_answers(model, queries, 16, moments=True)
    backward = score_answers(model, queries[::-1], 16, moments=True)[::-1]
    for a, b in zip(forward, backward, strict=True):
        numbers = [*a.token_nll, *a.means, *a.variances]
        assert np.isfinite(numbers).all()
        np.testing.assert_allclose(a.token_nll, b.token_nll, rtol=TOLERANCE, atol=TOLERANCE)
    assert score_answers(model, []) == []


def test_long_vocabularies_are_read_in_pieces(tiny, queries, monkeypatch):
    model = tiny("qwen2")
    monkeypatch.setattr(scoring, "MAX_LOGITS", 700)  # less than two rows of this vocabulary
    check(model, queries, score_answers(model, queries, 4, moments=True))


def test_the_longest_context_still_fits(tiny):
    """GPT-2 has a table of positions: prompt and labels but the last may fill it, in any batch and mode."""
    model = tiny("gpt2")
    generator = np.random.default_rng(2)
    limit = model.config.n_positions
    assert limit == 512
    full = Query(random_ids(generator, limit - 9), random_ids(generator, 10))
    short = Query(random_ids(generator, 4), random_ids(generator, 12))
    assert len(full) == limit
    check(model, [full, short], score_answers(model, [full, short], 4), tolerance=1e-4, moments=False)
    masked = [Query(q.prompt_ids, q.label_ids, masked_token=4) for q in (full, short)]  # 4 occurs nowhere
    check(model, masked, score_answers(model, masked, 4), tolerance=1e-4, moments=False)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_masked_token_is_seen_nowhere(tiny, architecture):
    """Of compatibility modes: the attention mask is `ids != masked`, positions still count every token."""
    model, generator = tiny(architecture), np.random.default_rng(3)
    hidden = 7
    prompts = [random_ids(generator, n) for n in (12, 20)]
    prompts = [(*p[:4], hidden, *p[5:9], hidden, *p[10:]) for p in prompts]
    queries = [Query(p, (*random_ids(generator, n), hidden), hidden) for p in prompts for n in (3, 8)]
    scores = score_answers(model, queries, 3)
    for query, score in zip(queries, scores, strict=True):
        mask = [int(token != hidden) for token in (*query.prompt_ids, *query.label_ids)]
        expected = token_scores(model, query.prompt_ids, query.label_ids, mask)
        np.testing.assert_allclose(score.token_nll, expected["token_nll"], rtol=1e-5, atol=1e-5)
        unmasked = token_scores(model, query.prompt_ids, query.label_ids)["token_nll"]
        assert not np.allclose(score.token_nll, unmasked, atol=1e-3)


def test_masked_and_plain_queries_mix(tiny, queries):
    model = tiny("llama")
    mixed = list(
        itertools.chain.from_iterable(
            (query, Query(query.prompt_ids, query.label_ids, masked_token=4)) for query in queries[:5]
        )
    )
    check(model, mixed, score_answers(model, mixed, 4), moments=False)


def test_a_query_without_a_prompt_is_our_mistake(tiny):
    with pytest.raises(ValueError, match="at least one prompt token"):
        score_answers(tiny("llama"), [Query((), (5, 6))])


@pytest.mark.real_model
def test_the_real_model(real_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    questions = ("The capital of France is", "Question: Who wrote Hamlet, and in which century?\nAnswer:", "A")
    answers = (" Paris.", " William Shakespeare wrote it around the year 1600.", " B")
    queries = [Query(tuple(tokenizer.encode(q)), tuple(tokenizer.encode(a))) for q in questions for a in answers]
    for batch_size in (1, 16):
        for query, score in zip(queries, score_answers(model, queries, batch_size, moments=True), strict=True):
            expected = token_scores(model, query.prompt_ids, query.label_ids)
            np.testing.assert_allclose(score.token_nll, expected["token_nll"], atol=1e-4)
            np.testing.assert_allclose(score.means, expected["means"], atol=1e-4)
            # In float32 E[x^2] - E[x]^2 keeps about 1e-6 of E[x^2].
            np.testing.assert_allclose(score.variances, expected["variances"], rtol=1e-4, atol=1e-3)
            assert score.hits == expected["hits"]
            # Tokens whose probabilities differ by rounding may change places far down the list.
            np.testing.assert_allclose(score.ranks, expected["ranks"], rtol=1e-3, atol=1)
