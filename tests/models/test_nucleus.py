"""Sampling without a sort of the vocabulary against the samplers that sort it."""

import pytest
import torch
from scipy import stats
from transformers.generation.logits_process import TopPLogitsWarper

from unlearn_eval.models import nucleus
from unlearn_eval.models.nucleus import TopP, top_p_choice

VOCABULARY = 5000


def logits(kind, rows=4):
    generator = torch.Generator().manual_seed(0)
    spread = {"peaked": 8.0, "usual": 2.5, "flat": 0.05}[kind]
    return spread * torch.randn(rows, VOCABULARY, generator=generator)


def sorted_choice(scores, drawn, top_p):
    """The slow obvious version: a stable sort of everything."""
    p, tokens = scores.softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = p.cumsum(-1) - p
    kept = torch.where((before < top_p) | (before == before[:, :1]), p, 0.0)
    reached = kept.cumsum(-1) > drawn[:, None] * kept.sum(-1, keepdim=True)
    return tokens.gather(1, reached.int().argmax(-1, keepdim=True))[:, 0]


@pytest.mark.parametrize("kind", ["peaked", "usual", "flat"])
@pytest.mark.parametrize("top_p", [0.05, 0.95])
def test_the_distribution_is_that_of_the_sampler_that_sorts(kind, top_p):
    scores = logits(kind)
    ours = TopP(top_p)(None, scores).softmax(-1)
    exact = TopPLogitsWarper(top_p)(None, scores).softmax(-1)
    # At the border sums in another order may differ by one token.
    assert (ours - exact).abs().sum(-1).max() < 1.01 * exact.where(exact > 0, 1.0).amin(-1).max() * 2 + 1e-5
    assert ((ours > 0).sum(-1) - (exact > 0).sum(-1)).abs().max() <= 1


@pytest.mark.parametrize("kind", ["peaked", "usual", "flat"])
def test_each_number_picks_the_same_token(kind):
    drawn = torch.rand(64, generator=torch.Generator().manual_seed(1))
    scores = logits(kind, 64)
    for top_p in (1e-9, 0.5, 0.95, 1.0):
        assert torch.equal(top_p_choice(scores, drawn, top_p), sorted_choice(scores, drawn, top_p))


def test_tokens_are_drawn_as_often_as_the_exact_sampler_says(monkeypatch):
    monkeypatch.setattr(nucleus, "FIRST_TOKENS", 4)  # so that more have to be taken
    scores = torch.tensor([[2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -4.0, -5.0]])
    exact = TopPLogitsWarper(0.98)(None, scores).softmax(-1)[0]
    n = 4000
    drawn = torch.rand(n, generator=torch.Generator().manual_seed(2))
    counts = torch.bincount(top_p_choice(scores.expand(n, -1), drawn, 0.98), minlength=8)
    allowed = exact > 0
    assert counts[~allowed].sum() == 0
    assert allowed.sum() > 4
    expected = exact[allowed].double()
    assert stats.chisquare(counts[allowed].numpy(), (n * expected / expected.sum()).numpy()).pvalue > 0.01


def test_steps_are_told():
    told = []
    processor = TopP(0.9, lambda: told.append(1))
    for _ in range(3):
        processor(None, logits("usual"))
    assert len(told) == 3
