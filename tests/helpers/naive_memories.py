"""Memory edits as the slow, obvious version: one row, no padding, no cache; and generation to compare it with."""

import torch
from tiny_models import random_ids

from unlearn_eval.edits.memory.codebook import Codebook
from unlearn_eval.edits.memory.residual_memory import ResidualMemory
from unlearn_eval.models.scoring import pad

N_NEW = 7


def decides(edit, inputs):
    """Which memory answers a prompt, given the module's inputs at all its tokens; None if none does."""
    store = edit.store
    if isinstance(store, Codebook):
        distances = [float((inputs[-1] - key).norm()) for key in store.keys]
        nearest = min(range(len(distances)), key=distances.__getitem__)
        return nearest if distances[nearest] <= store.radii[nearest] else None
    if isinstance(store, ResidualMemory):
        features = inputs[-1] if store.pool == "last" else sum(inputs) / len(inputs)
        k = int(store.masks[0].sum())
        order = sorted(range(len(features)), key=lambda j: -abs(float(features[j] - store.background[j])))
        own = {int(store.permutation[j]) for j in order[:k]}
        shares = [len(own & set(mask.nonzero()[:, 0].tolist())) / k for mask in store.masks]
        best = max(range(len(shares)), key=shares.__getitem__)
        return best if shares[best] >= store.threshold else None
    found = {}
    for i, change in enumerate(store.dense(dtype=inputs.dtype)):
        active = sum(float((change @ token).norm()) for token in inputs) / len(inputs)
        if active >= store.thresholds[i]:
            found[i] = active
    return max(found, key=found.get) if found else None


def naive_logits(model, edits, prompt, continuation=(), per_token=False):
    """Logits (T, V) of one unpadded row; with `per_token`, as existing code does: every token is a query of its own."""
    handles = []

    def hook_of(edit):
        def hook(module, arguments, output):
            inputs, changed = arguments[0][0], output.clone()
            end = len(prompt) - 1
            fixed = decides(edit, inputs[: end + 1])
            for t in range(end, len(inputs)):
                choice = decides(edit, inputs[t : t + 1]) if per_token and t > end else fixed
                if choice is None or (t > end and edit.store.positions == "last"):
                    continue
                changed[0, t] = new_output(edit, choice, inputs[t], output[0, t])
            if edit.store.positions in ("prompt", "all") and fixed is not None:
                for t in range(end):
                    changed[0, t] = new_output(edit, fixed, inputs[t], output[0, t])
                if edit.store.positions == "prompt":
                    changed[0, end + 1 :] = output[0, end + 1 :]
            return changed

        return hook

    for edit in edits:
        handles.append(model.get_submodule(edit.module).register_forward_hook(hook_of(edit)))
    try:
        with torch.no_grad():
            return model(input_ids=torch.tensor([[*prompt, *continuation]]), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()


def new_output(edit, choice, inputs, output):
    store = edit.store
    if isinstance(store, Codebook):
        return store.values[store.value_of[choice]]
    if isinstance(store, ResidualMemory):
        return output + store.weight @ torch.where(store.masks[choice], inputs, 0.0)
    return output + store.dense(dtype=inputs.dtype)[choice] @ inputs


def naive_answer(model, edits, prompt, n=N_NEW, **options):
    said = []
    for _ in range(n):
        logits = naive_logits(model, edits, prompt, said, **options)[-1]
        logits[1] = -torch.inf  # no end of sequence: answers have a fixed length
        said.append(int(logits.argmax()))
    return said


def generated(model, prompts, side="left", **options):
    """Greedy answers to a batch."""
    ids, mask = pad(prompts, side, model.device, filler=1)
    settings = {"do_sample": False, "max_new_tokens": N_NEW, "min_new_tokens": N_NEW, "pad_token_id": 1}
    output = model.generate(input_ids=ids, attention_mask=mask, **(settings | options))
    return [row[ids.shape[1] :] for row in output.tolist()]


def other_prompts(n=12, seed=50):
    generator = torch.Generator().manual_seed(seed)
    return [(0, *random_ids(generator, 4 + i % 5)) for i in range(n)]
