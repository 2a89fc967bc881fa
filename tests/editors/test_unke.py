"""UnKE: the block comes to give the target values, leaves texts as they are, and goes on from an edit of its own."""

from dataclasses import replace

import pytest
import torch
from tiny_models import (
    assert_untouched,
    random_ids,
    random_requests,
    tiny_model,
    tiny_tokenizer,
    weights_of,
)  # noqa: F401, E501

from unlearn_eval.editing.editor import EditJob, get_editor
from unlearn_eval.editing.locate_then_edit import corpus
from unlearn_eval.editing.locate_then_edit.target_values import TargetValueConfig, target_values
from unlearn_eval.edits.base import applied
from unlearn_eval.models.anatomy import anatomy
from unlearn_eval.models.scoring import Query, score_answers
from unlearn_eval.models.tracing import first, trace
from unlearn_eval.utils.errors import UserError

LAYER = 1
TARGET = TargetValueConfig(steps=6, learning_rate=0.5, clamp=2.0)
QUICK = {"layers": (LAYER,), "target": TARGET, "steps": 100, "learning_rate": 2e-3, "text_tokens": 128}
UNKE = get_editor("unke")


def given_by(model, ids):
    """What the block gives for one row, by a whole pass."""
    name = f"{anatomy(model).blocks}.{LAYER}"
    with torch.no_grad(), trace(model, outputs=[name]) as seen:
        model(input_ids=torch.tensor([ids]), use_cache=False)
    return first(seen.outputs[name])[0]


def made(model, requests, previous=None, **changes):
    config = UNKE.Config(**{**QUICK, **changes})
    return UNKE.run(EditJob(model, tiny_tokenizer(), requests, config, previous=previous))


@pytest.mark.parametrize(
    "architecture",
    ["llama", "gpt2", pytest.param("gemma3", marks=pytest.mark.slow)],  # norms around both parts
)
def test_the_block_gives_the_target_values(architecture):
    model, requests = tiny_model(architecture), random_requests(2)
    before = weights_of(model)
    found = target_values(model, anatomy(model), LAYER, requests, TARGET)
    edit = made(model, requests)
    assert_untouched(model, before)
    losses = edit.info.notes["block_loss"]
    delta = found.values - found.clean
    assert losses[0] == pytest.approx(float(delta.square().mean()), rel=1e-4), "all prompts of a request move alike"
    assert losses[-1] < 0.1 * losses[0]
    with applied(edit, model):
        for request, value in zip(requests, found.values, strict=True):
            missed = given_by(model, request.prompt_ids)[request.lookup] - value
            assert missed.norm() < 0.3 * delta.norm(dim=1).min()
    assert all(name.startswith(f"{anatomy(model).blocks}.{LAYER}.") for name in edit.tensors)


def test_texts_are_kept_where_they_weigh():
    model, requests = tiny_model("llama"), random_requests(2)
    (own,) = corpus.token_sequences("self", model, tiny_tokenizer(), QUICK["text_tokens"], seed=0)
    clean = [given_by(model, row) for row in own.rows]

    def drift(**changes):
        with applied(made(model, requests, steps=30, **changes), model):
            new = [given_by(model, row) for row in own.rows]
        return sum(float((a - b).square().sum()) for a, b in zip(new, clean, strict=True))

    assert drift(keep_weight=1.0) < 0.5 * drift(keep_weight=0.0)


def test_it_goes_on_from_an_edit_of_its_own(tmp_path):
    (tmp_path / "text.txt").write_text("Some words that every model reads alike. " * 40, encoding="utf-8")
    quick = {"text": str(tmp_path / "text.txt"), "steps": 5}
    model, (one, other) = tiny_model("llama"), random_requests(2)
    first_edit = made(model, [one], **quick)
    both = made(model, [other], previous=first_edit, **quick)
    with applied(first_edit, model):
        alone = made(model, [other], **quick)
    assert both.tensors.keys() == alone.tensors.keys()
    assert all(torch.equal(own, alone.tensors[name]) for name, own in both.tensors.items())
    elsewhere = made(model, [other], previous=first_edit, layers=(0,), **quick)
    assert {name.split(".")[2] for name in elsewhere.tensors} == {"0", "1"}


def test_a_long_target_has_a_value_for_each_window():
    model = tiny_model("llama")
    generator = torch.Generator().manual_seed(9)
    (request,) = [replace(own, target_ids=random_ids(generator, 9)) for own in random_requests(1, n_contexts=0)]
    query = Query(tuple(request.prompt_ids), tuple(request.target_ids))
    said = {}
    for window in (0, 3):
        with applied(made(model, [request], window=window, steps=50), model):
            (score,) = score_answers(model, [query])
        said[window] = -sum(score.token_nll) / len(score.token_nll)
    assert said[3] > said[0] + 0.2


def test_wrong_settings_are_named():
    model = tiny_model("llama")
    with pytest.raises(UserError, match="keep_weight is -1"):
        made(model, random_requests(1), keep_weight=-1)
    with pytest.raises(UserError, match="not finite"):
        made(model, random_requests(1), learning_rate=1e30)
