"""How a text is put to a model: as the question, the sentence, the text or the blank that it is.

There is one definition for all: what editors and unlearners teach, what tasks ask and what attacks and localizations
read. `PromptFormat.render` makes the text that a model reads of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from unlearn_eval.utils.errors import unknown_name

QUESTION = "question"
SHAPES = (QUESTION, "sentence", "text", "blank", "brief")  # those that an item of a forget set may have
COMPLETE = "Complete this sentence: {text} ..."
CONTINUE = "Continue this text:\n\n{text}"
FILL = "Please complete the blank in the following question.\nQuestion: {text}"
BRIEF = "Please briefly answer the following question.\nQuestion: {text}"
BRIEF_EXAMPLES = "Please briefly answer the following question.\n{text}"
AS_IT_IS = "{question}"
_GAP = re.compile("_{2,}")
_LABEL = re.compile(r"[ \t]*([^\s:][^:\n]{0,40}:)")
BETWEEN_TURNS = "\n\n"  # what stands between the examples of a plain prompt


@dataclass(frozen=True)
class Prompt:
    """A question that is not just asked by its text.

    Attributes:
        text: the user's message.
        turns: what was said before: (question, answer), in order.
        opening: how the answer is made to begin; the model reads it as its own words.
        plain: what a model without a chat template reads in the question's place; None: the usual form.
        raw: a chat model reads `plain` as well: the text of a document, without a user.
        max_tokens: no more than these are generated, whatever the task's limit is.
        starts: how the lines of `plain` begin with which its pattern would start again after the answer.
    """

    text: str
    turns: tuple[tuple[str, str], ...] = ()
    opening: str = ""
    plain: str | None = None
    raw: bool = False
    max_tokens: int | None = None
    starts: tuple[str, ...] = ()


Asked = str | Prompt


def check_shape(shape: str) -> str:
    """The shape of a forget set's item.

    Raises:
        UserError: there is none of that name.
    """
    if shape not in SHAPES:
        raise unknown_name("shape", shape, SHAPES)
    return shape


def asked(text: str, shape: str = QUESTION, turns: Sequence[str] = ()) -> Asked:
    """How a text of some shape is put to a model.

    Args:
        text: the question, or a paraphrase of it.
        shape: `question`; `sentence`, a beginning which the answer completes; `text`, which goes on; `blank`, with a
            gap; `brief`, a question for a short answer; or what a benchmark's own prompt needs.
        turns: of `short`: questions and answers that were said before, by turns.
    """
    if shape == QUESTION:
        return text
    text = text.strip()
    if shape == "sentence":
        return Prompt(COMPLETE.format(text=text), opening=text, plain=text, starts=repeated_label(text))
    if shape == "text":
        return Prompt(CONTINUE.format(text=text), plain=text)
    if shape == "short":
        return Prompt(text, turns=tuple(zip(turns[::2], turns[1::2], strict=True)), max_tokens=32)
    if shape == "bare":
        return Prompt("", plain="", raw=True)
    if shape in ("blank", "brief", "brief_examples"):
        own = {"blank": FILL, "brief": BRIEF, "brief_examples": BRIEF_EXAMPLES}[shape]
        form, starts = own.format(text=text), line_starts(own.format(text=""))
        return Prompt(form, opening="Answer:", plain=f"{form}\nAnswer:", max_tokens=30, starts=starts)
    if shape == "brief_open":
        form = BRIEF.format(text=text)
        return Prompt(form, plain=form, max_tokens=30, starts=line_starts(BRIEF.format(text="")))
    return text


def as_request(text: str, shape: str = QUESTION) -> str:
    """What a user says to have a text of some shape answered, completed or continued."""
    ask = asked(text, shape)
    return ask if isinstance(ask, str) else ask.text


def asked_otherwise(
    text: str,
    shape: str = QUESTION,
    opening: str = "",
    turns: Sequence[tuple[str, str]] = (),
    wrap: str = AS_IT_IS,
) -> Asked:
    """The same as `asked`, with another beginning of the answer, with turns before it, or with words around it.

    Also without a chat template it is a question then, which asks to complete the sentence; the answer still begins
    with the sentence, unless it is made to begin otherwise.

    Args:
        text, shape: what is asked.
        opening: words with which the answer begins.
        turns: what was said before: (question, answer), in order.
        wrap: text around the question, with `{question}` in it.
    """
    if not opening and not turns and wrap == AS_IT_IS:
        return asked(text, shape)
    begun = text.strip() if shape == "sentence" else ""
    return Prompt(wrap.replace(AS_IT_IS, as_request(text, shape)), tuple(turns), opening or begun)


def as_turn(text: str, shape: str, answer: str) -> tuple[str, str]:
    """What a user and a model say where an item is an example: (question, answer)."""
    return as_request(text, shape), f"{text.strip()} {answer}" if shape == "sentence" else answer


def statement(text: str, shape: str, answer: str) -> str | None:
    """The sentence that a text is with its answer, without a stop at its end; None of what is asked as a question."""
    answer = answer.rstrip(".")
    if shape in ("sentence", "text"):
        return f"{text.strip()} {answer}"
    if shape == "blank" and _GAP.search(text):
        return _GAP.sub(lambda gap: answer, text.strip()).rstrip(".")
    return None


# Where an answer ends --------------------------------------------------------------------------------------


def line_starts(before: str) -> tuple[str, ...]:
    """How the lines begin of what stands before a question in a plain prompt: "Question:"."""
    lines = (line.strip() for line in before.splitlines())
    return tuple(dict.fromkeys(line for line in lines if any(c.isalnum() for c in line)))


def repeated_label(text: str) -> tuple[str, ...]:
    """The label with which the last line of a text begins, if an earlier line begins with it too: "Fact:"."""
    *before, last = text.strip().splitlines() or [""]
    label = _LABEL.match(last)
    shown = label and any((own := _LABEL.match(line)) and own.group(1) == label.group(1) for line in before)
    return (label.group(1),) if label and shown else ()


def cut(text: str, stops: Sequence[str]) -> str:
    """A generated text up to the first of its stops.

    A stop that begins with a line break ends the text at each line that begins with its words: after spaces or marks
    of a heading or not, with a number or not if it is a label ("Question 2:"), and at the first line too, since a
    model that answers nothing may start the next example at once.

    Args:
        text: what a model has generated.
        stops: texts with which it was to stop (`PromptFormat.stops`).
    """
    for stop in filter(None, stops):
        text = text.partition(stop)[0]
        if stop.startswith("\n") and (line := stop.strip()):
            label = re.escape(line.removesuffix(":")) + (r"[ \t]*\d*[ \t*]*:" if line.endswith(":") else "")
            found = re.search(rf"^[ \t*#]*{label}", text, re.MULTILINE)
            text = text[: found.start()] if found else text
    return text
