"""NaN and infinity end a run where they come in: with a model's weights, or its logits."""

import pytest
import torch
from tiny_models import one_thread, tiny_model  # noqa: F401

from unlearn_eval.edits.tensors import is_finite
from unlearn_eval.models.load import load_model
from unlearn_eval.models.scoring import Query, finite_logits, score_answers
from unlearn_eval.models.weights import check_finite
from unlearn_eval.utils.errors import UserError

VALUES = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("value", VALUES)
def test_a_model_with_such_a_weight_is_not_loaded(value, tiny_folder, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_folder())
    name, weight = list(model.named_parameters())[3]
    weight.data.view(-1)[5] = value
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"not finite: {name} holds NaN or infinity"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_what_is_finite(dtype):
    tensor = torch.linspace(-3, 3, 12, dtype=torch.float32).to(dtype).view(3, 4)
    assert is_finite(tensor)
    assert is_finite(tensor[:0])
    for value in VALUES:
        wrong = tensor.clone()
        wrong[1, 2] = value
        assert not is_finite(wrong)
    check_finite(tiny_model("llama").to(dtype), "it")


def test_logits_that_are_not_finite_are_no_scores_and_no_answers():
    model = tiny_model("llama", exact_norms=False)
    queries = [Query((1, 2, 3), (4, 5))]
    assert score_answers(model, queries)
    ids = torch.tensor([[1, 2, 3]])
    with finite_logits(model):
        model.generate(ids, max_new_tokens=2, do_sample=False)
    model.get_output_embeddings().weight.data[7] = float("nan")
    with pytest.raises(UserError, match="logits are not finite"):
        score_answers(model, queries)
    with pytest.raises(UserError, match="logits are not finite"), finite_logits(model):
        model.generate(ids, max_new_tokens=2, do_sample=False)
    assert not model.get_output_embeddings()._forward_hooks
