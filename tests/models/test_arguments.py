"""The cache has other names in other versions of Transformers; ours is the one that the model takes."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from tiny_models import ARCHITECTURES, one_thread, random_requests, tiny_model  # noqa: F401

from unlearn_eval.edits.memory.edit import read_inputs
from unlearn_eval.models.anatomy import anatomy
from unlearn_eval.models.arguments import accepts, cache_argument, cache_of, given_cache
from unlearn_eval.models.scoring import Query, score_answers


class New(torch.nn.Module):
    def forward(self, input_ids, cache=None):
        """As from 5.24 on."""


class Old(torch.nn.Module):
    def forward(self, input_ids, past_key_values=None):
        """As before, and as remote code may stay."""


def test_the_cache_has_the_name_that_the_model_takes():
    assert cache_argument(New(), 3) == {"cache": 3}
    assert cache_argument(Old(), 3) == {"past_key_values": 3}
    assert accepts(New(), "cache")
    assert not accepts(Old(), "cache")
    assert cache_argument(SimpleNamespace(get_base_model=New), 3) == {"cache": 3}  # a PEFT wrapper's own is bare


@pytest.mark.parametrize(
    ("options", "cache"),
    [
        ({"cache": 3}, 3),
        ({"past_key_values": 4}, 4),
        ({"cache": None, "past_key_values": 4}, 4),
        ({"cache": 3, "past_key_values": None}, 3),
        ({}, None),
    ],
)
def test_a_cache_is_found_under_either_name(options, cache):
    assert given_cache(options) == cache


def test_an_outputs_cache_is_found_under_either_name():
    assert cache_of(SimpleNamespace(past_key_values=4)) == 4
    assert cache_of(SimpleNamespace(cache=3, past_key_values=4)) == 3
    assert cache_of(SimpleNamespace(cache=None, past_key_values=4)) is None  # the new name is the one that counts
    assert cache_of((1, 2)) is None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_of_ours_uses_a_name_that_goes(architecture):
    """Sharing a question between answers, and an opening between prompts, gives a model a cache."""
    model = tiny_model(architecture)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        shared = score_answers(model, [Query((5, 6, 7, 8), (9, 10)), Query((5, 6, 7, 8), (11,))], 2)
        module = anatomy(model).projection_name(1)
        rows = read_inputs(model, module, [(5, 6, 7, 8), (5, 6, 7, 9, 10)])
    alone = score_answers(model, [Query((5, 6, 7, 8), (11,))], 1)
    assert shared[1].token_nll == pytest.approx(alone[0].token_nll, abs=1e-4)
    torch.testing.assert_close(rows[1], read_inputs(model, module, [(5, 6, 7, 9, 10)])[0], atol=1e-4, rtol=1e-4)
