"""OpenUnlearning's gradnorm and reference attacks, against its formulas written out on tiny models."""

import copy
import math

import numpy as np
import pytest
import torch
from lm_eval_runs import evaluate, hf, report, values
from plain_loop import our_ids, token_scores
from saying import SayingLM
from sklearn.metrics import roc_auc_score
from tiny_models import assert_untouched, one_thread, random_requests, tiny_model, weights_of  # noqa: F401

from unlearn_eval import metrics as m
from unlearn_eval.edits.base import EditInfo, applied
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.harness.tofu import NEEDS_TRANSFORMERS, attacks_of
from unlearn_eval.models.gradient_norms import gradient_norms
from unlearn_eval.models.scoring import Query
from unlearn_eval.utils.errors import UserError

TASK = "unlearn_tofu_privacy"


def their_gradnorm(model, prompt_ids, label_ids, order):
    """One sample at a time: the loss without the last label, backwards, and the mean of the parameters' norms."""
    model = copy.deepcopy(model).requires_grad_(True)
    ids = torch.tensor([[*prompt_ids, *label_ids]])
    log_probs = torch.log_softmax(model(input_ids=ids).logits, -1)[:, :-1]
    own = log_probs.gather(2, ids[:, 1:, None])[0, len(prompt_ids) - 1 : -1, 0]
    (-own.mean()).backward()
    norms = [p.grad.norm(p=order) for p in model.parameters() if p.grad is not None]
    return float(torch.stack(norms).mean())


@pytest.mark.parametrize("order", [1, 2, math.inf])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "gemma3"])
def test_gradients_are_theirs(architecture, order):
    model = tiny_model(architecture)
    before = weights_of(model)
    requests = random_requests(4)
    queries = [Query(own.prompt_ids, (*own.target_ids, 1)) for own in requests]
    lengths = [len(own.target_ids) for own in requests]
    found = [m.gradnorm_score(norms) for norms in gradient_norms(model, queries, lengths, float(order))]
    expected = [their_gradnorm(model, query.prompt_ids, query.label_ids, order) for query in queries]
    assert found == pytest.approx(expected, rel=1e-4)
    assert_untouched(model, before)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())


def test_tied_weights_count_once():
    model = tiny_model("llama")
    model.lm_head.weight = model.model.embed_tokens.weight
    query = Query((0, 7, 8), (9, 10, 1))
    assert m.gradnorm_score(gradient_norms(model, [query], [2])[0]) == pytest.approx(
        their_gradnorm(model, query.prompt_ids, query.label_ids, 2), rel=1e-4
    )


def test_an_edit_in_the_model_counts_as_its_weights(tmp_path):
    """A LoRA beside a weight gives the gradient of the merged weight."""
    from peft import PeftModel

    model, name = tiny_model("llama"), "model.layers.1.mlp.down_proj"
    generator = torch.Generator().manual_seed(2)
    u, v = torch.randn(16, 2, generator=generator), torch.randn(2, 24, generator=generator)
    edit = LowRankEdit({name: (u, v)}, EditInfo("test", {}))
    query = Query((0, 7, 8), (9, 10, 1))
    clean = m.gradnorm_score(gradient_norms(model, [query], [2])[0])
    with applied(edit, model):
        merged = m.gradnorm_score(gradient_norms(model, [query], [2])[0])
    adapter = PeftModel.from_pretrained(model, str(edit.save(tmp_path / "edit")))
    beside = m.gradnorm_score(gradient_norms(adapter, [query], [2])[0])
    assert beside == pytest.approx(merged, rel=1e-4)
    assert abs(merged - clean) > 1e-3 * clean


def test_gradients_that_were_there_are_put_back():
    model = tiny_model("llama").requires_grad_(True)
    weight = model.model.layers[0].mlp.down_proj.weight
    weight.grad = own = torch.ones_like(weight)
    with pytest.raises(IndexError):
        gradient_norms(model, [Query((0, 7), (9, 10**6))], [2])  # no such token
    gradient_norms(model, [Query((0, 7), (9, 1))], [1])
    assert weight.grad is own
    assert weight.requires_grad


def test_an_answer_without_tokens_has_no_score():
    assert gradient_norms(tiny_model("llama"), [Query((0, 7), (1,))], [0]) == [[]]
    assert m.gradnorm_score([]) is None


@pytest.mark.parametrize("value", [1, 2, 2.0, "1", "2", "inf", math.inf])
def test_orders_of_a_norm(value):
    assert attacks_of({"gradnorm": value}) == {"gradients": float(value)}


@pytest.mark.parametrize("value", [0, 3, -1, "x", True, "nan", [2], {}])
def test_other_orders_are_refused(value):
    with pytest.raises(UserError, match="the norm of gradients is") as error:
        attacks_of({"gradnorm": value})
    assert error.value.hint == "give 1, 2 or inf"


# The task --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [False, True])
def test_the_task_gives_their_numbers(tiny, tiny_folder, tokenizer, tofu, chat):
    model, other = tiny("llama"), tiny("llama", 1)
    asked = {"gradnorm": 2, "reference_model": str(tiny_folder("llama", 1))}
    before = weights_of(model)
    found = evaluate(hf(model, tokenizer, batch_size=3), TASK, asked, apply_chat_template=chat)
    assert_untouched(model, before)
    samples = found["samples"][TASK]
    expected = {"mia_gradnorm": [], "mia_reference": []}
    for sample in samples:
        ids, labels = our_ids(sample["doc"]["question"], sample["doc"]["answer"], tokenizer, chat)
        expected["mia_gradnorm"].append(their_gradnorm(model, ids, labels, 2))
        losses = [np.mean(token_scores(one, ids, labels)["token_nll"]) for one in (model, other)]
        expected["mia_reference"].append(losses[0] - losses[1])
    is_holdout = [sample["doc"]["split"] == "holdout" for sample in samples]
    for name, scores in expected.items():
        assert [sample[f"{name}_auc"][name] for sample in samples] == pytest.approx(scores, rel=1e-3, abs=1e-5)
        assert values(found, TASK)[f"{name}_auc"] == pytest.approx(roc_auc_score(is_holdout, scores))


def test_without_being_asked_for_they_are_not_in_the_table(tiny, tokenizer, tofu):
    found = values(evaluate(hf(tiny("llama"), tokenizer), TASK), TASK)
    assert "mia_loss_auc" in found
    assert not {"mia_gradnorm_auc", "mia_reference_auc"} & found.keys()


def test_compat_reads_its_labels(tiny, tokenizer, tofu):
    from unlearn_eval.models.prompt_format import PromptFormat, open_unlearning_labels

    model = tiny("llama")
    found = evaluate(hf(model, tokenizer), TASK, {"gradnorm": 2, "compat": "openunlearning"})
    for sample in found["samples"][TASK][:3]:
        prompt_format = PromptFormat(tokenizer, False)
        prompt = prompt_format.render(sample["doc"]["question"])
        ids, labels = open_unlearning_labels(prompt_format, prompt, sample["doc"]["answer"], tokenizer.encode)
        assert sample["mia_gradnorm_auc"]["mia_gradnorm"] == pytest.approx(
            their_gradnorm(model, ids, labels.ids, 2), rel=1e-3
        )


def test_a_model_that_is_elsewhere_says_so(tiny, tokenizer, tofu, monkeypatch):
    """What an engine gives: losses of the tokens, and no gradients."""
    from unlearn_eval.harness import requests

    for name in ("_add_gradients", "_add_reference"):
        monkeypatch.setattr(requests, name, lambda *_: None)
    asked = {"gradnorm": 2, "reference_model": "another"}
    found = evaluate(hf(tiny("llama"), tokenizer), TASK, asked)
    for name in ("mia_gradnorm_auc", "mia_reference_auc"):
        assert values(found, TASK)[name] is None
        assert NEEDS_TRANSFORMERS in report(found, TASK)[name]["reason"]
    assert values(found, TASK)["mia_loss_auc"] is not None
    silent = evaluate(SayingLM(lambda document, prompt: ""), TASK, asked)
    assert values(silent, TASK)["mia_gradnorm_auc"] is None
    assert report(silent, TASK)["mia_gradnorm_auc"]["reason"]


def test_a_reference_model_of_another_vocabulary_is_refused(tiny, tiny_folder, tokenizer, tofu, tmp_path):
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<another>"])
    tiny("llama", 1).save_pretrained(tmp_path)
    other.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has another vocabulary"):
        evaluate(hf(tiny("llama"), tokenizer), TASK, {"reference_model": str(tmp_path)})
