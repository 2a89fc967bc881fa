"""Teaching a memory on facts that are not edited: which facts, the gate's losses, and a map from facts to prefixes.

What is taught once serves every later edit: an edit is then a forward pass. RECIPE and MindBridge do so.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.data.shapes import asked
from unlearn_eval.editing.editor import EditJob
from unlearn_eval.editing.memory.prefixes import Row, embedding_size, prefixed_logits, target_losses
from unlearn_eval.edits.memory.notes_store import Frame
from unlearn_eval.edits.memory.prefix_store import Head
from unlearn_eval.models.embedding import Encoder
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.progress import Progress, no_progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAST = 8  # facts; fewer teach nothing of what is another fact
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Lesson:
    """A fact that is not edited.

    Attributes:
        statement: the question and the target, as text.
        questions: the question and its paraphrases.
        prompts: of each question, token ids.
        target: what is to be said, token ids.
    """

    statement: str
    questions: tuple[str, ...]
    prompts: tuple[Ids, ...]
    target: Ids


def lessons(job: EditJob, source: str, wrong: float, most: int, seed: int) -> list[Lesson]:
    """Facts to be taught with, in a random order.

    Args:
        job: its requests' questions are left out; its targets are taught.
        source: a set of facts, as `load_forget_set` takes it.
        wrong: share of facts whose target is a wrong answer of their own, where they have one, and not a job's target.
        most: number of facts at most.
        seed: of the order and the targets.

    Raises:
        UserError: no such set, or fewer facts than `LEAST` are left.
    """
    made = job.prompt_format or PromptFormat.of(job.tokenizer)
    own = {part.id for request in job.requests for part in request.parts}
    prompts = {part.prompt_ids for request in job.requests for part in request.parts}
    targets = list(dict.fromkeys(request.target_ids for request in job.requests))
    rng = random.Random(seed)
    items = list(load_forget_set(source))
    rng.shuffle(items)
    found: list[Lesson] = []
    for item in items:
        ids = made.prompt_ids(item.question, item.shape)
        if len(found) == most or item.id in own or ids in prompts:
            continue
        if item.perturbed_answers and (not targets or rng.random() < wrong):
            text = rng.choice(item.perturbed_answers)
            target: Ids = tuple(
                made.labels_after(
                    asked(item.question, item.shape), made.render(asked(item.question, item.shape)), ids, text
                ).ids
            )
        elif targets:
            target = rng.choice(targets)
            text = str(job.tokenizer.decode(list(target), skip_special_tokens=True)).strip()
        else:
            continue
        questions = (item.question, *item.paraphrases)
        rows = (ids, *(made.prompt_ids(question, item.shape) for question in item.paraphrases))
        found.append(Lesson(f"{item.question} {text}", questions, rows, target))
    if len(found) < LEAST:
        raise UserError(
            f"{len(found)} facts of {source} are left to teach with, and {LEAST} are needed",
            "name a larger set: --set facts=SET, e.g. facts or zsre:1000",
        )
    return found


@dataclass(frozen=True)
class Gate:
    """Which fact a question is about: heads for questions and for facts, and the sentinel.

    Attributes:
        query, key: d numbers of an encoder's vector of a question, and of a fact's statement.
        sentinel: (d,) what no fact is nearer to than.
        loss: the last step's.
    """

    query: Head
    key: Head
    sentinel: Tensor
    loss: float


def gate_losses(asked_: Tensor, keys: Tensor, sentinel: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    r"""RECIPE's contrastive losses (equations 9 and 10): of questions about facts, and of questions about none.

    Args:
        asked_: (B, d) a question about each fact.
        keys: (B, d) the facts.
        sentinel: (d,).
        outside: (U, d) questions about none of them.

    Returns:
        The means of −ln softmax(qᵀ[keys; Θ]/√d) at each question's own fact, and at Θ.
    """
    table = torch.cat([keys, sentinel[None]]) / math.sqrt(keys.shape[1])
    own = torch.arange(len(keys), device=keys.device)
    last = torch.full((len(outside),), len(keys), device=keys.device)
    return cross_entropy(asked_ @ table.T, own), cross_entropy(outside @ table.T, last)


def teach_gate(
    facts: Sequence[Lesson], encode: Encoder, width: int, steps: int, batch: int, learning_rate: float, seed: int
) -> Gate:
    """Heads and sentinel that tell the questions of a fact from those of others; Adam, on the encoder's vectors.

    Args:
        facts: to be taught.
        encode: the sentence encoder, which stays as it is.
        width: d.
        steps, learning_rate: of Adam.
        batch: facts in each step, at most half of all; as many others are asked about as outside.
        seed: of weights and batches.
    """
    generator = torch.Generator().manual_seed(seed)
    statements = torch.from_numpy(encode([fact.statement for fact in facts]))
    flat = torch.from_numpy(encode([text for fact in facts for text in fact.questions]))
    counts = torch.tensor([len(fact.questions) for fact in facts])
    starts = counts.cumsum(0) - counts
    key = Head.new(statements.shape[1], width, 2 * width, generator)
    query = Head(tuple(own.clone() for own in key.weights))
    inner = statements.mean(0)
    weights = [own.requires_grad_() for own in (*query.weights, *key.weights, inner)]
    adam = torch.optim.Adam(weights, lr=learning_rate)
    n = max(1, min(batch, len(facts) // 2))
    loss = torch.zeros(())
    for _ in range(steps):
        order = torch.randperm(len(facts), generator=generator)
        some, others = order[:n], order[n : 2 * n]
        at = torch.rand(len(facts), generator=generator)
        rows = starts + (at * counts).long()
        own, silent = gate_losses(query(flat[rows[some]]), key(statements[some]), key(inner), query(flat[rows[others]]))
        loss = own + silent
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    plain = [Head(tuple(own.detach() for own in head.weights)) for head in (query, key)]
    return Gate(plain[0], plain[1], plain[1](inner.detach()), float(loss.detach()))


PromptMap = Mapping[str, Tensor]


def prefixes_of(prompt_map: PromptMap, keys: Tensor, length: int) -> Tensor:
    """(N, L, d_model): D relu(U k/‖k‖ + u) + b of keys (N, d)."""
    inner = torch.relu(normalize(keys, dim=-1) @ prompt_map["prompt_up"].T + prompt_map["prompt_up_bias"])
    flat = inner @ prompt_map["prompt_down"].T + prompt_map["prompt_down_bias"]
    return flat.reshape(len(keys), length, -1)


def teach_prompts(
    model: PreTrainedModel,
    facts: Sequence[Lesson],
    keys: Tensor,
    frame: Frame,
    length: int,
    steps: int,
    batch: int,
    learning_rate: float,
    locality: float,
    seed: int,
    progress: Progress = no_progress,
) -> tuple[PromptMap, list[float]]:
    """A map from a fact's key to its prefix, through the frozen model; the model is as before.

    Each step draws facts and as many others. The loss is the mean −ln p of the facts' targets after their questions
    (reliability) and after paraphrases (generality), and `locality` times the mean KL of the others' answers under the
    plain model from those under the facts' prefixes.

    Args:
        model: a causal language model in eval mode.
        facts: to be taught.
        keys: (n, d) theirs.
        frame: how a question stands in a prompt.
        length: L.
        steps, batch: number of steps, and of facts in each.
        learning_rate: of Adam; values of prefixes move in units of the embeddings' root mean square.
        locality: weight of the KL.
        seed: of weights and batches.
        progress: told of the steps.

    Returns:
        The map, and the loss of each step.

    Raises:
        UserError: the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    device, d = model.device, keys.shape[1]
    start = [facts[0].target[i % len(facts[0].target)] for i in range(length)]
    size = embedding_size(model, start)
    with torch.no_grad():
        bias = model.get_input_embeddings()(torch.tensor(start, device=device)).float().flatten()
    up = torch.randn(2 * d, d, generator=generator).to(device)
    weights = {
        "prompt_up": up,
        "prompt_up_bias": torch.zeros(2 * d, device=device),
        "prompt_down": torch.zeros(len(bias), 2 * d, device=device),
        "prompt_down_bias": bias,
    }
    for own in weights.values():
        own.requires_grad_()
    rates = {"prompt_up": 1.0, "prompt_up_bias": 1.0, "prompt_down": size / math.sqrt(2 * d), "prompt_down_bias": size}
    adam = torch.optim.Adam([{"params": [weights[name]], "lr": learning_rate * rates[name]} for name in weights])
    keys, losses = keys.to(device), list[float]()
    n = max(1, min(batch, len(facts) // 2))
    for step in range(steps):
        order = torch.randperm(len(facts), generator=generator).tolist()
        some, others = order[:n], order[n : 2 * n]
        picks = torch.rand(n, generator=generator).tolist()
        vectors = prefixes_of(weights, keys[some], length)
        rows = [_row(facts[i], 0, frame) for i in some]
        again = [
            _row(facts[i], min(1, len(facts[i].prompts) - 1) + int(at * (len(facts[i].prompts) - 1)), frame)
            for i, at in zip(some, picks, strict=True)
        ]
        loss = sum(target_losses(*prefixed_logits(model, part, vectors))[0].mean() for part in (rows, again))
        assert isinstance(loss, Tensor)
        if locality:
            loss = loss + locality * _moved(model, [_row(facts[i], 0, frame) for i in others], vectors)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise UserError(
                f"the loss of the prefixes is not finite after {step} steps",
                "load the model in float32 or bfloat16 (--dtype), or set a lower learning_rate",
            )
        gradients = torch.autograd.grad(loss, list(weights.values()))
        for own, gradient in zip(weights.values(), gradients, strict=True):
            own.grad = gradient
        adam.step()
        progress("prefixes taught", step + 1, steps)
    return {name: own.detach().cpu() for name, own in weights.items()}, losses


def _row(fact: Lesson, which: int, frame: Frame) -> Row:
    prompt = fact.prompts[min(which, len(fact.prompts) - 1)]
    return Row(prompt, frame.parts(prompt)[0], fact.target, 0)


def _moved(model: PreTrainedModel, rows: Sequence[Row], vectors: Tensor) -> Tensor:
    """Mean KL, over the rows' answer tokens, of the plain model's distributions from those under the prefixes."""
    with torch.no_grad():
        plain, labels = prefixed_logits(model, rows, None)
    changed, _ = prefixed_logits(model, rows, vectors[: len(rows)])
    logp, logq = plain.log_softmax(-1), changed.log_softmax(-1)
    each = (logp.exp() * (logp - logq)).sum(-1)
    real = labels >= 0
    return (each * real).sum() / real.sum()
