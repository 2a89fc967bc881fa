"""The slow, obvious version of every answer-level number: one sequence at a time, no padding, no cache.

It shares no code with the package: formulas are those of METRICS written out with numpy.
"""

import math
import zlib

import numpy as np
import torch


def log_probabilities(model, prompt_ids, label_ids, attention_mask=None):
    """(T, V) float64: ln p over the vocabulary at each label, from one plain forward pass."""
    ids = torch.tensor([[*prompt_ids, *label_ids[:-1]]])  # nothing is predicted from the last label
    options = {} if attention_mask is None else {"attention_mask": torch.tensor([attention_mask[: ids.shape[1]]])}
    with torch.no_grad():
        logits = model(input_ids=ids, **options).logits[0].double().numpy()
    logits = logits[len(prompt_ids) - 1 :]
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def token_scores(model, prompt_ids, label_ids, attention_mask=None):
    """What `score_answers` should say of one answer, as plain lists by name."""
    logp = log_probabilities(model, prompt_ids, label_ids, attention_mask)
    own = logp[np.arange(len(label_ids)), list(label_ids)]
    p = np.exp(logp)
    mean = (p * logp).sum(-1)
    return {
        "token_nll": (-own).tolist(),
        "hits": (logp.argmax(-1) == np.array(label_ids)).tolist(),
        "ranks": [1 + int((row > value).sum()) for row, value in zip(logp, own, strict=True)],
        "means": mean.tolist(),
        "variances": ((p * (logp - mean[:, None]) ** 2).sum(-1)).tolist(),
    }


def prompt_text(question, tokenizer, chat, system=None):
    if not chat:
        return f"Question: {question}\nAnswer:"
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def our_ids(question, answer, tokenizer, chat):
    """Prompt ids and labels by METRICS: the answer's tokens, then one end token."""
    prompt = prompt_text(question, tokenizer, chat)
    # The templates of the tests write no BOS, so the tokenizer's own is the only one.
    ids, whole = tokenizer.encode(prompt), tokenizer.encode(prompt + ("" if chat else " ") + answer)
    assert whole[: len(ids)] == ids
    end = "<|im_end|>" if chat else tokenizer.eos_token
    return ids, [*whole[len(ids) :], tokenizer.convert_tokens_to_ids(end)]


def loss(scores):
    return float(np.mean(scores["token_nll"]))


def extraction_strength(hits, floor=False):
    """1 - k/N, by trying every prefix length."""
    n = len(hits)
    k = next(k for k in range(n + 1) if all(hits[k:]))
    return 1 - (min(k, n - 1) if floor else k) / n


def answer_numbers(model, tokenizer, document, chat):
    """All answer-level numbers of one TOFU document, by the names of the scores."""
    score = lambda answer: token_scores(model, *our_ids(document["question"], answer, tokenizer, chat))
    own = score(document["answer"])
    correct = score(document["paraphrased_answer"]) if document["paraphrased_answer"] else own
    wrong = [loss(score(answer)) for answer in document["perturbed_answers"]]
    n = len(own["token_nll"]) - 1
    numbers = {
        "probability": math.exp(-loss(own)),
        "paraphrase_probability": math.exp(-loss(correct)),
        "exact_memorization": sum(own["hits"][:n]) / n,
        "extraction_strength": extraction_strength(own["hits"][:n]),
    }
    if wrong:
        ratio = math.exp(-np.mean(wrong)) / math.exp(-loss(correct))
        c, w = math.exp(-loss(own)), [math.exp(-value) for value in wrong]
        numbers |= {
            "raw_truth_ratio": ratio,
            "truth_ratio_forget": min(ratio, 1 / ratio),
            "truth_ratio": max(0, 1 - ratio),
            "normalised": c / (c + sum(w)),
        }
    return numbers | membership_numbers(own, document["answer"])


def membership_numbers(own, text):
    n = len(own["token_nll"]) - 1
    logp = [-value for value in own["token_nll"][:n]]
    z = [
        (lp - mu) / math.sqrt(max(var, 1e-6))
        for lp, mu, var in zip(logp, own["means"][:n], own["variances"][:n], strict=True)
    ]
    k = max(1, int(0.4 * n))
    return {
        "mia_loss": loss(own),
        "mia_zlib": loss(own) / len(zlib.compress(text.encode())),
        "mia_min_k": -float(np.mean(sorted(logp)[:k])),
        "mia_min_k_plus_plus": -float(np.mean(sorted(z)[:k])),
    }
