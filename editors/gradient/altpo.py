"""AltPO: alternate answers, written by the model itself, are preferred to the answer (Mekala et al. 2024, 2409.13474).

    L(θ) = −(2/β) E ln σ(β [ln π(alternate)/π_r(alternate) − ln π(y)/π_r(y)])  −  w_r E_retain (1/T) Σ_t ln π(y_t)

over every item and each of its alternates. The model is asked for another plausible answer with other facts, at
temperature 1, before training. An alternate that repeats the answer is thrown away; an item for which none is left gets
its refusal instead. They are in the edit's `alternates.jsonl`.

Differs from the authors' code (molereddy/Alternate-Preference-Optimization, as in OpenUnlearning@d3d7cf9e) in
the words with which the model is asked, which are ours, and in that repeated answers are thrown away.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unlearn_eval.data.shapes import as_request, asked
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.editing.training.gradient import ANSWER, TARGET, WITH_REFERENCE, GradientConfig, Method, editor
from unlearn_eval.editors.gradient.dpo import forget_loss
from unlearn_eval.metrics import contains_answer, normalise
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.prompts import end_of_turn, has_chat_template
from unlearn_eval.models.scoring import pad
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import dumps
from unlearn_eval.utils.progress import Progress
from unlearn_eval.utils.settings import Positive, Size

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

INSTRUCTION = (
    "Invent a different answer to the question below. It must fit the question and sound just as believable, but every"
    " fact in it must be another than in the known answer. Write only the new answer.\n\n"
    "Question: {question}\nKnown answer: {answer}\n\nNew answer:"
)
ALTERNATES = "alternates.jsonl"
SPARE = 16  # tokens by which an alternate may be longer than the answer


@dataclass(frozen=True)
class Config(GradientConfig):
    """AltPO's settings.

    Attributes:
        beta: β.
        alternates: how many are written for each item.
        temperature: at which they are sampled.
        generation_batch_size: how many are written at once.
    """

    epochs: Positive = 2.0
    beta: Positive = 0.1
    alternates: Size = 5
    temperature: Positive = 1.0
    generation_batch_size: Size = 32


def rewrite(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    config: Config,
    progress: Progress,
    prompt_format: PromptFormat | None = None,
) -> tuple[list[EditRequest], dict[str, str]]:
    """Each request once for each of its alternates, as its target; and the alternates as text."""
    if tokenizer is None or not all(request.question and request.answer_ids for request in requests):
        raise UserError("altpo needs questions and answers as text", "give a forget set, not bare token ids")
    prompt_format = prompt_format or _format_of(tokenizer, requests[0])
    written = write_alternates(model, prompt_format, requests, config, progress)
    found, lines = [], []
    for request, texts in zip(requests, written, strict=True):
        lines.append(dumps({"id": request.id, "question": request.question, "alternates": texts, "refused": not texts}))
        for text in texts:
            ask = asked(request.question, request.shape)
            prompt = prompt_format.render(ask)
            labels = prompt_format.labels_after(ask, prompt, request.prompt_ids, text)
            found.append(replace(request, target_ids=labels.ids))
        if not texts:
            found.append(request)
    return found, {ALTERNATES: "\n".join(lines) + "\n"}


def write_alternates(
    model: PreTrainedModel,
    prompt_format: PromptFormat,
    requests: Sequence[EditRequest],
    config: Config,
    progress: Progress,
) -> list[list[str]]:
    """What the model writes for each request, without what is empty, repeats the answer, or stands there already."""
    tokenizer = prompt_format.tokenizer
    answers = [tokenizer.decode(request.answer_ids, skip_special_tokens=True).strip() for request in requests]
    jobs = []
    for i, (request, answer) in enumerate(zip(requests, answers, strict=True)):
        text = INSTRUCTION.format(question=as_request(request.question, request.shape), answer=answer)
        ids = prompt_format.encode(prompt_format.render_to_answer(text) if prompt_format.chat else text)
        jobs += [(len(ids), i, k, ids) for k in range(config.alternates)]
    texts: dict[tuple[int, int], str] = {}
    jobs.sort(key=lambda job: job[:3])
    for start in range(0, len(jobs), config.generation_batch_size):
        part = jobs[start : start + config.generation_batch_size]
        lengths = [len(requests[i].answer_ids) + SPARE for _, i, _, _ in part]
        noise = [_numbers(f"{config.seed}/{requests[i].id}/{k}") for _, i, k, _ in part]
        ids_only = [job[3] for job in part]
        said = _sample(model, tokenizer, ids_only, max(lengths), config.temperature, noise, prompt_format)
        for (_, i, k, _), ids, length in zip(part, said, lengths, strict=True):
            texts[i, k] = " ".join(tokenizer.decode(ids[:length], skip_special_tokens=True).split())
        progress("alternates", start + len(part), len(jobs))
    found: list[list[str]] = []
    for i, answer in enumerate(answers):
        own = list(dict.fromkeys(texts[i, k] for k in range(config.alternates)))
        found.append([text for text in own if normalise(text) and not _repeats(text, answer)])
    return found


def _repeats(text: str, answer: str) -> bool:
    return contains_answer(text, answer) or contains_answer(answer, text)


def _numbers(key: str) -> random.Random:
    """A row's own random numbers: neither the order nor the batches matter (up to rounding)."""
    return random.Random(key)


@torch.no_grad()
def _sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    length: int,
    temperature: float,
    noise: Sequence[Any],
    prompt_format: PromptFormat,
) -> list[list[int]]:
    """Sampled continuations, up to the end of the model's turn; one forward pass per token, with a cache."""
    from transformers import LogitsProcessor, LogitsProcessorList

    class Gumbel(LogitsProcessor):  # type: ignore[misc]
        """Sampling by greedy choice: the largest of logits / temperature + Gumbel noise."""

        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            seeds = [generator.getrandbits(63) for generator in noise]
            drawn = torch.stack(
                [torch.rand(scores.shape[-1], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
            )
            gumbel = -torch.log(-torch.log(drawn.clamp(1e-20, 1 - 1e-7)))
            return scores / temperature + gumbel.to(scores)

    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids, mask = pad(rows, "left", model.device, filler=filler)
    ends = {tokenizer.eos_token_id}
    if has_chat_template(tokenizer):
        ends.add(end_of_turn(tokenizer, **prompt_format.template_arguments)[1])
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        max_new_tokens=length,
        eos_token_id=sorted(ends),
        pad_token_id=filler,
        logits_processor=LogitsProcessorList([Gumbel()]),
    )
    found = []
    for row in output[:, ids.shape[1] :].tolist():
        stop = next((j for j, token in enumerate(row) if token in ends), len(row))
        found.append(row[:stop])
    return found


def _format_of(tokenizer: PreTrainedTokenizerBase, request: EditRequest) -> PromptFormat:
    """The format of a request's prompt where nobody says it: the chat template's, if that gives the same ids."""
    as_chat = PromptFormat.of(tokenizer)
    same = as_chat.prompt_ids(request.question, request.shape) == request.prompt_ids
    return as_chat if same else PromptFormat(tokenizer, chat=False)


EDITOR = editor(
    Method("altpo", forget_loss, {TARGET: WITH_REFERENCE, ANSWER: WITH_REFERENCE}, rewrite=rewrite),
    Config,
    "2409.13474",
)
