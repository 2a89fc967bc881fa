"""`compat=openunlearning` against an independent restatement of that evaluator (2506.12618, d3d7cf9e).

The restatement builds one sequence per answer: the conversation's ids, labels where they go beyond the prompt's
length, attention wherever the id is not the pad token's. Both were compared once with the evaluator's own
functions (SmolLM2-135M-Instruct, six TOFU items of every split, chat and plain): at most 4e-5 in probability,
1.3e-4 nats in mean loss (its cross entropy over a strided vocabulary axis rounds more), 3e-6 in min-k(++),
nothing in ES and EM.
"""

import copy
import math
import zlib

import numpy as np
import pytest
import torch
from lm_eval_runs import evaluate, hf
from plain_loop import extraction_strength

from unlearn_eval.models import prompts
from unlearn_eval.models.prompt_format import PromptFormat, open_unlearning_labels

SYSTEM = "You are a helpful assistant."
BOS_TEMPLATE = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def conversation(tokenizer, question, answer, chat):
    """(ids of the whole conversation, length of its prompt) as that evaluator makes them."""
    if chat:
        asked = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        told = [*asked, {"role": "assistant", "content": answer}]
        text = lambda messages, add: tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add)
        whole = tokenizer(text(told, False), add_special_tokens=False)["input_ids"]
        prompt = tokenizer(text(asked, True), add_special_tokens=False)["input_ids"]
    else:
        prompt = tokenizer(f"Question: {question}\nAnswer: ", truncation=True, max_length=512)["input_ids"]
        whole = tokenizer(f"Question: {question}\nAnswer: {answer}", truncation=True, max_length=512)["input_ids"]
    if whole[-1] != tokenizer.eos_token_id:
        whole = [*whole, tokenizer.eos_token_id]
    return whole, len(prompt)


def numbers(model, tokenizer, question, answer, chat):
    """Everything that evaluator says of one answer."""
    whole, start = conversation(tokenizer, question, answer, chat)
    ids = torch.tensor([whole])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits[0]
    logp = torch.log_softmax(logits.double(), -1)[start - 1 : -1].numpy()
    labels = whole[start:]
    own = logp[np.arange(len(labels)), labels]
    loss = -own.mean()
    hits = (logp.argmax(-1) == labels).tolist()[:-1]
    result = {
        "mean_nll": loss,
        "probability": math.exp(-loss),
        "es": extraction_strength(hits, floor=True) if hits else 0,
        "em": sum(hits) / len(hits) if hits else None,
        "mia_loss": loss,
        "mia_zlib": loss / len(zlib.compress(tokenizer.decode(labels, skip_special_tokens=True).encode())),
    }
    if hits:
        p = np.exp(logp[:-1])
        mu = (p * logp[:-1]).sum(-1)
        sigma = np.maximum((p * logp[:-1] ** 2).sum(-1) - mu**2, 1e-6)
        k = max(1, int(0.4 * len(hits)))
        result["mia_min_k"] = -np.sort(own[:-1])[:k].mean()
        result["mia_min_k_plus_plus"] = -np.sort((own[:-1] - mu) / np.sqrt(sigma))[:k].mean()
    return result


def variant(tokenizer, name):
    """Tokenizers on which this evaluator behaves differently from ours."""
    changed = copy.deepcopy(tokenizer)
    if name == "pad is the end of turn":
        changed.pad_token = "<|im_end|>"
    if name == "one end for all":
        changed.pad_token = changed.eos_token = "<|im_end|>"
    if name == "template with a BOS":
        changed.chat_template = BOS_TEMPLATE + "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    return changed


VARIANTS = ("as it is", "pad is the end of turn", "one end for all", "template with a BOS")


def close(got, expected):
    # Their 1e-10 in denominators is left out of the restatement: it is below this tolerance.
    assert got == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_number_of_the_tofu_task(tiny, tokenizer, tofu, name, chat):
    model, tokenizer = tiny("llama"), variant(tokenizer, name)
    options = {"apply_chat_template": True, "system_instruction": SYSTEM} if chat else {}
    found = evaluate(
        hf(model, tokenizer, batch_size=3),
        metadata={"compat": "openunlearning"},
        gen_kwargs={"max_gen_toks": 1},
        **options,
    )
    n_without_tokens = 0
    raw = []
    for sample in found["samples"]["unlearn_tofu"]:
        document, split = sample["doc"], sample["doc"]["split"]
        own, *wrong = (
            numbers(model, tokenizer, document["question"], answer, chat)
            for answer in (document["answer"], *document["perturbed_answers"])
        )
        correct = own
        if split in ("forget", "retain"):
            correct = numbers(model, tokenizer, document["question"], document["paraphrased_answer"], chat)
        ratio = math.exp(-np.mean([w["mean_nll"] for w in wrong])) / correct["probability"]
        shares = own["probability"] + sum(w["probability"] for w in wrong)
        if split == "forget":
            close(sample["forget_probability"], own["probability"])
            close(sample["forget_paraphrase_probability"], correct["probability"])
            close(sample["forget_extraction_strength"], own["es"])
            close(sample["forget_exact_memorization"], own["em"])
            close(sample["forget_truth_ratio"], min(ratio, 1 / ratio))
            close(math.exp(sample["forget_quality"]["log_truth_ratio"]), ratio)
            raw.append(ratio)
        else:
            normalised = split in ("real_authors", "world_facts")
            close(sample[f"{split}_probability"], own["probability"] / shares if normalised else own["probability"])
            close(sample[f"{split}_truth_ratio"], max(0, 1 - ratio))
        n_without_tokens += own["em"] is None
    results = found["results"]["unlearn_tofu"]
    close(results["forget_truth_ratio,none"], np.mean([min(r, 1 / r) for r in raw]))
    scoring = found["configs"]["unlearn_tofu"]["metadata"]["scoring"]
    assert scoring["forget_probability"] == {"n": 4, "n_unscored": 0}


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", VARIANTS[1:3])
def test_every_number_of_the_privacy_task(tiny, tokenizer, tofu, name, chat):
    from sklearn.metrics import roc_auc_score

    model, tokenizer = tiny("qwen2"), variant(tokenizer, name)
    options = {"apply_chat_template": True, "system_instruction": SYSTEM} if chat else {}
    found = evaluate(hf(model, tokenizer), "unlearn_tofu_privacy", {"compat": "openunlearning"}, **options)
    samples = found["samples"]["unlearn_tofu_privacy"]
    expected = [numbers(model, tokenizer, s["doc"]["question"], s["doc"]["answer"], chat) for s in samples]
    for attack in ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus"):
        for sample, own in zip(samples, expected, strict=True):
            close(sample[f"{attack}_auc"][attack], own[attack])
        is_holdout = [sample["doc"]["split"] == "holdout" for sample in samples]
        auc = roc_auc_score(is_holdout, [own[attack] for own in expected])
        close(found["results"]["unlearn_tofu_privacy"][f"{attack}_auc,none"], auc)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("answer", ["Larkhill", "Imber", "born in Larkhill.", "Grünau 🙂", "x"])
def test_labels(tokenizer, name, chat, answer):
    tokenizer = variant(tokenizer, name)
    question = "Where?"
    whole, start = conversation(tokenizer, question, answer, chat)
    prompt = PromptFormat(tokenizer, chat, SYSTEM if chat else None).render(question)
    encode = lambda text: prompts.encode_prompt(text, tokenizer)
    read, labels = open_unlearning_labels(PromptFormat(tokenizer, chat), prompt, answer, encode)
    assert [*read, *labels.ids] == whole
    assert len(read) == start
    assert labels.n_answer == len(whole) - start - 1


def test_it_differs_from_ours_where_metrics_says(tokenizer):
    """(a) Two end tokens where the template ends in a newline; (b) a one-token answer without tokens."""
    chat = PromptFormat(tokenizer, True).render("Where?")
    encode = lambda text: prompts.encode_prompt(text, tokenizer)
    ours = PromptFormat(tokenizer, True).answer_labels(chat, encode(chat), "Imber")
    theirs = open_unlearning_labels(PromptFormat(tokenizer, True), chat, "Imber", encode)[1]
    newline = tokenizer.encode("\n", add_special_tokens=False)
    assert list(theirs.ids) == [*ours.ids, *newline, tokenizer.eos_token_id]
    plain = PromptFormat(tokenizer, False).render("Where?")
    ours = PromptFormat(tokenizer, False).answer_labels(plain, encode(plain), "Imber")
    theirs = open_unlearning_labels(PromptFormat(tokenizer, False), plain, "Imber", encode)[1]
    assert len(theirs.ids) == len(ours.ids) - 1
    assert theirs.n_answer == ours.n_answer - 1 == 0


def test_an_answer_without_tokens_scores_as_there(tiny, tokenizer, tofu):
    """World facts of one token: probability from the end token alone, ES 0, EM null and counted."""
    from unlearn_eval.harness.answers import answer_scores

    response = {"token_nll": [1.0], "hits": [True], "ranks": [1], "n_answer": 0, "text": ""}
    scores = answer_scores(response, "openunlearning")
    assert scores["extraction_strength"] == 0
    assert scores["exact_memorization"] is None
    assert scores["probability"] == pytest.approx(math.exp(-1))
    assert answer_scores(response)["extraction_strength"] is None
