"""Examples in a prompt (`--num_fewshot`): drawn from what is retained, and never a hint at an answer under test.

lm-eval asks a task's sampler for examples of each document. Ours draws from the documents of the splits that are to be
retained. An example neither is a document to be forgotten nor contains the answer of one, nor that of the document
which it precedes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm_eval.api.samplers import ContextSampler

from unlearn_eval.data.shapes import QUESTION, Prompt, asked
from unlearn_eval.metrics import contains_answer
from unlearn_eval.utils.errors import UserError

Document = Mapping[str, Any]
_IS_EXAMPLE = "is_example"


def accepted_answers(document: Document) -> list[str]:
    """The answer of a document, and other ways to write it."""
    return [text for text in (document["answer"], *document.get("aliases", ())) if text]


def example_pool(documents: Iterable[Document]) -> list[Document]:
    """The documents to be retained that contain no answer to be forgotten, and repeat no question of one."""
    documents = list(documents)
    forgotten = [own for own in documents if str(own["split"]).startswith("forget")]
    questions = {str(own["question"]).strip() for own in forgotten}
    answers = list(dict.fromkeys(text for own in forgotten for text in accepted_answers(own)))
    return [
        own
        for own in documents
        if str(own["split"]).startswith("retain")
        and str(own["question"]).strip() not in questions
        and not contains_answer(_text(own), answers)
    ]


def _text(document: Document) -> str:
    return f"{document['question']} {document['answer']}"


class ExampleSampler(ContextSampler):  # type: ignore[misc]
    """lm-eval's sampler over a pool of documents; `document` is the one that the examples will precede."""

    document: Document | None = None

    def sample(self, n: int, *_: object, **__: object) -> Sequence[Document]:
        """`n` examples for the current document, each marked for `example_turn`.

        Raises:
            UserError: there are not so many.
        """
        own = self.document or {}
        pool = self.df
        if own:
            answers, shape = accepted_answers(own), own.get("shape")
            pool = [
                one
                for one in self.df
                if one["id"] != own["id"]
                and one.get("shape") == shape
                and one["question"] != own["question"]
                and not contains_answer(_text(one), answers)
            ]
        if len(pool) < n:
            raise UserError(
                f"{n} examples are wanted for {own.get('id')}, and {len(pool)} retained items give no answer away",
                f"give --num_fewshot {len(pool)} or less, or retain more items",
            )
        return [{**one, _IS_EXAMPLE: True} for one in self.rnd.sample(pool, n)]


def is_example(document: Document) -> bool:
    """Whether a document comes from the sampler, as an example."""
    return bool(document.get(_IS_EXAMPLE))


def example_turn(document: Document, chat: bool, plain: str) -> tuple[str, str]:
    """What a user and the model say in an example.

    Args:
        document: the example.
        chat: whether the two are turns of a chat.
        plain: what precedes the answer to a question without a chat.
    """
    ask = asked(document["question"], str(document.get("shape") or QUESTION))
    if not isinstance(ask, Prompt):
        return (ask if chat else plain), document["answer"]
    if not chat:
        return ask.plain or plain, document["answer"]
    return ask.text, f"{ask.opening} {document['answer']}" if ask.opening else document["answer"]
