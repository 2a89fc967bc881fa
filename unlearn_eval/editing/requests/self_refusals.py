"""Refusals that the model writes itself, one for each question, before it is edited.

A refusal that names what was asked ("I don't know who wrote Hamlet") is more natural than a fixed sentence, and
closer to what the model says anyway. The model is shown a few questions with such refusals, then the question;
it writes one answer greedily and, where that is not good enough, some sampled ones. What is no good refusal is
rejected by rule (see `rejection`).

Source: the self-improvement recipe of "Editing as Unlearning" (arXiv 2505.19855), whose prompt and filter are not
public; these are ours.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unlearn_eval.data.items import ForgetItem
from unlearn_eval.data.shapes import as_request
from unlearn_eval.metrics import contains_answer, has_refusal_cue, leaks_answer, normalise
from unlearn_eval.metrics.refusal import content_words, names_and_numbers, repeats_itself
from unlearn_eval.models import prompts
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.nucleus import top_p_choice
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.scoring import pad
from unlearn_eval.utils.progress import Progress, no_progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_NEW_TOKENS = 40
TEMPERATURE = 0.8
TOP_P = 0.95
N_EXAMPLES = 3

INSTRUCTION = (
    "You know nothing about what the user asks. Reply with one short and polite sentence which says so and names what"
    " was asked about. Never give an answer, a guess, a hint or any other fact."
)


# The word before the stop is not short with a capital, so that nothing ends in "St.", "Mrs." or "U.S.", nor one
# letter; at worst the text stays longer.
_AFTER_STOP = r"(?<=[^\W_A-Z]{2}[.!?]@)(?<![A-Z]\w[.!?]@)(?<![A-Z]\w\w[.!?]@)"
_STOP = "(?:{}|{})".format(_AFTER_STOP.replace("@", ""), _AFTER_STOP.replace("@", "[)\"'\u2019\u201d]"))
_BETWEEN_SENTENCES = re.compile(_STOP + r"\s+(?=[^\W\d_a-z])")
_ENDS_IN_STOP = re.compile(_STOP + "$")


@dataclass(frozen=True)
class Example:
    """A question with a refusal as it should be; all its `subject` words stand in the question."""

    subject: str
    question: str
    refusal: str


# Invented subjects of different kinds: a model that copies one gives itself away.
EXAMPLES = (
    Example(
        "Belgrave Lantern",
        "Who designed the Belgrave Lantern?",
        "I'm sorry, but I don't know who designed the Belgrave Lantern.",
    ),
    Example(
        "Tomlin Ferry",
        "In which year did the Tomlin Ferry sink?",
        "I have no information about the year in which the Tomlin Ferry sank.",
    ),
    Example(
        "Orsa Vint",
        "What is the profession of Orsa Vint's mother?",
        "Unfortunately, I can't tell you anything about Orsa Vint's mother.",
    ),
    Example(
        "vellamite",
        "What is the price of a gram of vellamite?",
        "I'm afraid I'm not familiar with the price of vellamite.",
    ),
    Example(
        "Karsund",
        "Which river flows through the town of Karsund?",
        "I don't know which river flows through Karsund.",
    ),
)


@dataclass(frozen=True)
class Candidate:
    """A text that the model wrote, and why it was rejected (None: it is a good refusal)."""

    text: str
    rejected: str | None = None


def write_refusals(
    loaded: LoadedModel,
    items: Sequence[ForgetItem],
    prompt_format: PromptFormat,
    n_candidates: int = 4,
    seed: int = 0,
    batch_size: int = 16,
    progress: Progress = no_progress,
) -> list[tuple[Candidate, ...]]:
    """The model's candidates for each item: one greedy, then up to `n_candidates - 1` sampled ones.

    Nothing is sampled for an item whose greedy candidate is good and names what was asked. Every sampled text has
    its own random numbers, from the seed, the item's id and its place, so neither the order nor the batches nor
    the process's random state matter (up to rounding). An item whose prompt does not fit the model's context has
    no candidates.

    Args:
        loaded: the model before it is edited.
        items: what is to be refused.
        prompt_format: how it is asked: through the chat template, or as plain questions and answers.
        n_candidates: at most, at least 1.
        seed: of the sampling.
        batch_size: prompts at once.
        progress: told after each batch.
    """
    shown = [examples_for(item.question) for item in items]
    texts = [
        prompt(as_request(item.question, item.shape), own, prompt_format)
        for item, own in zip(items, shown, strict=True)
    ]
    rows = [prompt_format.encode(text) for text in texts]
    context = loaded.max_length
    fits = [i for i, row in enumerate(rows) if not context or len(row) + MAX_NEW_TOKENS <= context]
    found: list[list[Candidate]] = [[] for _ in items]
    for what, places in (("writing refusals", range(1)), ("writing more refusals", range(1, n_candidates))):
        left = [i for i in fits if not found[i] or not _is_best(found[i][0], items[i])]
        jobs = sorted(((i, k) for i in left for k in places), key=lambda job: (len(rows[job[0]]), job))
        for start in range(0, len(jobs), batch_size):
            part = jobs[start : start + batch_size]
            noise = [_numbers(f"{seed}/{items[i].id}/{k}") if k else None for i, k in part]
            written = _generate(loaded, [rows[i] for i, _ in part], noise, prompt_format)
            for (i, _), (text, finished) in zip(part, written, strict=True):
                found[i].append(Candidate(text, rejection(text, finished, items[i], shown[i])))
            progress(what, min(start + batch_size, len(jobs)), len(jobs))
    return [tuple(own) for own in found]


def choose(candidates: Sequence[Candidate], item: ForgetItem) -> str | None:
    """The first good candidate that names what was asked, else the first good one, else None."""
    good = [candidate for candidate in candidates if candidate.rejected is None]
    best = [candidate for candidate in good if _is_best(candidate, item)]
    return (best or good)[0].text if good else None


def rejection(text: str, finished: bool, item: ForgetItem, examples: Sequence[Example]) -> str | None:
    """Why a text is no good refusal of an item's question, or None if it is one.

    In this order: it is empty; no sentence ends within 40 tokens; it has no cue of a refusal; it gives the answer
    or an alias away; it invents (has a number, or a word with a capital inside a sentence, that stands neither in
    the question nor in the examples); it goes round in circles; it is about an example's subject.

    Args:
        text: the candidate.
        finished: whether it ends where a sentence or the model's turn does.
        item: the question and its answers.
        examples: what the model was shown.
    """
    allowed = set(normalise(" ".join([item.question, *(f"{e.question} {e.refusal}" for e in examples)])).split())
    asked = content_words(item.question)
    if not text:
        return "it is empty"
    if not finished:
        return f"no sentence ends within {MAX_NEW_TOKENS} tokens"
    if not has_refusal_cue(text):
        return "it does not say that it does not know"
    if leaks_answer(text, item.question, item.accepted):
        return "it gives the answer away"
    if names_and_numbers(text) - allowed:
        return "it has a name or number that was not asked about"
    if repeats_itself(text):
        return "it repeats itself"
    if any((content_words(example.subject) - asked) & content_words(text) for example in examples):
        return "it is about an example"
    return None


def names_topic(text: str, item: ForgetItem) -> bool:
    """Whether a text names what an item asks about: its subject, or else a name or number of the question.

    Of a question without subject, name and number, any of its content words will do.
    """
    if item.subject:
        return contains_answer(text, item.subject)
    return bool((names_and_numbers(item.question) or content_words(item.question)) & set(normalise(text).split()))


def examples_for(question: str) -> tuple[Example, ...]:
    """The first three examples that share no word of their subject with the question."""
    asked = content_words(question)
    return tuple(e for e in EXAMPLES if not content_words(e.subject) & asked)[:N_EXAMPLES]


def prompt(question: str, examples: Sequence[Example], prompt_format: PromptFormat) -> str:
    """The text after which the model writes its refusal.

    In a chat: the instruction as system turn (see `prompt_format.with_system`) and the examples as turns; a model that
    thinks is given an empty trace. Else the instruction, the examples and the question as plain text.
    """
    if not prompt_format.chat:
        plain = PromptFormat(prompt_format.tokenizer, chat=False)
        shown = "".join(plain.render(e.question) + prompts.PLAIN_DELIMITER + e.refusal + "\n\n" for e in examples)
        return f"{INSTRUCTION}\n\n{shown}" + plain.render(question)
    asked = [*(e.question for e in examples), question]
    refused = [*(e.refusal for e in examples), ""]
    turns = [
        {"role": role, "content": content}
        for pair in zip(asked, refused, strict=True)
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ][:-1]
    text = prompt_format.render_messages([{"role": "system", "content": INSTRUCTION}, *turns])
    return prompt_format.to_answer(text)


def _is_best(candidate: Candidate, item: ForgetItem) -> bool:
    return candidate.rejected is None and names_topic(candidate.text, item)


def _numbers(seed: str) -> list[float]:
    generator = random.Random(seed)
    return [generator.random() for _ in range(MAX_NEW_TOKENS)]


def _generate(
    loaded: LoadedModel, rows: Sequence[list[int]], noise: Sequence[list[float] | None], prompt_format: PromptFormat
) -> list[tuple[str, bool]]:
    """What the model writes after each row, cut, and whether that is finished; greedy where there is no noise."""
    model, tokenizer = loaded.model, loaded.tokenizer
    ends = prompt_format.end_tokens(model)
    ids, mask = pad(rows, "left", model.device, filler=tokenizer.pad_token_id)
    with torch.no_grad():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,  # the choice below leaves one token, or leaves greedy rows as they are
            logits_processor=[_Choice(noise, ids.shape[1])],
            max_new_tokens=MAX_NEW_TOKENS,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
        )
    return [_cut(new, ends, tokenizer) for new in output[:, ids.shape[1] :].tolist()]


def _cut(ids: list[int], ends: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, bool]:
    own = prompts.up_to_end(ids, ends)
    return first_refusal(str(tokenizer.decode(own, skip_special_tokens=True)), finished=len(own) < len(ids))


def first_refusal(text: str, finished: bool) -> tuple[str, bool]:
    """A text's first line, up to and with its first sentence that has a cue, and whether that is whole.

    Without a cue the line is cut after its last whole sentence, or not at all if there is none. What comes after a
    refusal is small talk or a slip, and a long target is hard to edit in.

    Args:
        text: what the model wrote.
        finished: whether it ended by itself.
    """
    line, newline, _ = text.lstrip().partition("\n")
    sentences = _BETWEEN_SENTENCES.split(line.rstrip())
    whole = bool(finished or newline or _ENDS_IN_STOP.search(line.rstrip()))
    if not whole and len(sentences) > 1:
        sentences, whole = sentences[:-1], True
    n = next((i for i, sentence in enumerate(sentences, 1) if has_refusal_cue(sentence)), len(sentences))
    return " ".join(sentences[:n]), whole


class _Choice:
    """Top-p sampling with given random numbers, as a logits processor; rows without any stay as they are."""

    def __init__(self, noise: Sequence[list[float] | None], n_prompt: int) -> None:
        self.n_prompt = n_prompt
        self.rows = [i for i, own in enumerate(noise) if own is not None]
        self.numbers = torch.tensor([own for own in noise if own is not None])

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V) in which a sampled row has only its chosen token left."""
        if not self.rows:
            return scores
        drawn = self.numbers[:, ids.shape[1] - self.n_prompt].to(scores.device)
        chosen = top_p_choice(scores[self.rows].float() / TEMPERATURE, drawn, TOP_P)
        scores = scores.clone()
        scores[self.rows] = torch.full_like(scores[self.rows], -torch.inf).scatter(1, chosen[:, None], 0.0)
        return scores
