"""The base of our lm-eval tasks: documents of several splits, several requests each, metrics across splits.

A subclass says which documents there are (`load_documents`), what of a document is asked (`questions`) and
scored (`answers`), what its responses are worth (`score`) and how that becomes metrics (`metrics`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, zip_longest
from typing import Any, Protocol

import datasets
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from unlearn_eval.data.shapes import BETWEEN_TURNS, QUESTION, Asked, Prompt, cut
from unlearn_eval.harness import follow_up, requests, unedited
from unlearn_eval.harness.alignment import REASONS, AlignmentRoom
from unlearn_eval.harness.chat_template import Decoder, decoder_of
from unlearn_eval.harness.examples import ExampleSampler, accepted_answers, example_pool, example_turn, is_example
from unlearn_eval.harness.instances import make_instance, stops_of
from unlearn_eval.harness.options import ALWAYS, VALIDATION, Check, check_values, read_by, refuse_examples
from unlearn_eval.harness.plan import as_made, may_forget_all, plan_metadata
from unlearn_eval.metrics import mean_and_stderr
from unlearn_eval.metrics.alignment import Question
from unlearn_eval.metrics.leaks import gives_away
from unlearn_eval.models.prompt_format import PromptFormat, check_template_arguments
from unlearn_eval.models.prompts import PLAIN_DELIMITER
from unlearn_eval.models.thinking import Spoken
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.provenance import hash_json

BESIDE = "beside"  # marks what a metric takes of documents that it does not count
Document = dict[str, Any]
Scores = dict[str, Any]
TRACE_LEAK, UNFINISHED = "trace_leak_rate", "unfinished_rate"
NOT_FINISHED = "the trace did not end within its tokens (thinking_tokens in --metadata)"
NO_TRACE = "the model did not think"
BEFORE = "before/"  # before the name of a question or an answer: what the unedited model responds to it
PLAIN = PromptFormat(None, chat=False)  # lm-eval renders and encodes: only the seam with an answer is ours


@dataclass(frozen=True)
class Released:
    """What an evaluator's released code does in its own way, for `compat`.

    Attributes:
        stops: Shape of a question -> the texts at which its answer is cut; of other shapes it is not cut.
        rouge: Options of `metrics.rouge`.
    """

    stops: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rouge: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Mean:
    """A metric that is the mean of one number per document of one split, or of several.

    Attributes:
        split, key: which documents, and which of their scores.
        higher_is_better: its direction; None where neither end is good.
    """

    split: str | tuple[str, ...]
    key: str
    higher_is_better: bool | None

    def pick(self, document: Document, scores: Scores, reason: str) -> Any:
        """This document's contribution (see `Aggregation`)."""
        if document["split"] not in ((self.split,) if isinstance(self.split, str) else self.split):
            return None
        reason = scores.get(REASONS, {}).get(self.key, reason)
        value = scores.get(self.key)
        return {"unscored": reason} if value is None else value

    def aggregate(self, items: Sequence[Any]) -> tuple[float | None, float | None, str | None]:
        """(value, standard error, reason why there is no value)."""
        mean, stderr, _ = mean_and_stderr([None if isinstance(item, dict) else item for item in items])
        return mean, stderr, None


@dataclass(frozen=True)
class OverAll:
    """A metric of the set: a function of the scores of all documents of some splits.

    Attributes:
        splits: the documents that count.
        keys: the scores that it needs of each.
        function: takes `[{"split": ..., "id": ..., key: ...}, ...]`, gives (value, stderr, reason).
        higher_is_better: its direction.
        beside: further scores of all documents that the function takes, of any split; nothing of them is counted.
    """

    splits: tuple[str, ...]
    keys: tuple[str, ...]
    function: Callable[[list[Scores]], tuple[float | None, float | None, str | None]]
    higher_is_better: bool | None
    beside: tuple[str, ...] = ()

    def pick(self, document: Document, scores: Scores, reason: str) -> Scores | None:
        """The scores of one document that this metric needs (see `Aggregation`)."""
        more = {key: scores.get(key) for key in self.beside}
        if document["split"] not in self.splits:
            return {"split": document["split"], "id": document["id"], BESIDE: True, **more} if more else None
        own = {key: scores.get(key) for key in self.keys}
        known = [text for key, text in scores.get(REASONS, {}).items() if key in self.keys]
        missing = {"unscored": known[0] if known else reason} if None in own.values() else {}
        return {"split": document["split"], "id": document["id"], **more, **own, **missing}

    def aggregate(self, items: Sequence[Scores]) -> tuple[float | None, float | None, str | None]:
        """(value, standard error, reason why there is no value)."""
        # Several processes hand their documents in by turns: an interval drawn at random must not depend on it.
        return self.function(sorted(items, key=lambda item: str(item["id"])))


@dataclass(frozen=True)
class Absent:
    """A metric that no document can contribute to.

    Attributes:
        reason: why.
        higher_is_better: its direction.
    """

    reason: str
    higher_is_better: bool | None = None

    def pick(self, document: Document, scores: Scores, reason: str) -> None:
        """Nothing (see `Aggregation`)."""

    def aggregate(self, items: Sequence[Any]) -> tuple[None, None, str]:
        """(value, standard error, reason why there is no value)."""
        return None, None, self.reason


Metric = Mean | OverAll | Absent


class Aggregated(Protocol):
    """What turns contributions into a number."""

    def aggregate(self, items: Sequence[Any]) -> tuple[float | None, float | None, str | None]:
        """(value, standard error, reason why there is no value)."""


class Aggregation:
    """What lm-eval calls with all documents' contributions; it reports what could not be scored, and why.

    A contribution is None for a document that the metric does not concern, and holds the key `unscored` (the
    reason) for one that it concerns but that could not be scored.
    """

    def __init__(self, name: str, metric: Aggregated, reports: dict[str, dict[str, Any]]) -> None:
        self.__name__, self.metric, self.reports = name, metric, reports
        self._result: tuple[float | None, float | None, str | None] = (None, None, None)

    def __call__(self, items: Sequence[Any]) -> float | None:
        """The metric's value, None where it is undefined."""
        own = [item for item in items if item is not None]
        reasons = Counter(item["unscored"] for item in own if isinstance(item, dict) and "unscored" in item)
        counted = [item for item in own if not (isinstance(item, dict) and BESIDE in item)]
        report: dict[str, Any] = {"n": len(counted) - reasons.total(), "n_unscored": reasons.total()}
        if reasons:
            report["unscored_reasons"] = dict(reasons)
        if own or isinstance(self.metric, Absent):
            self._result = self.metric.aggregate(own)
        else:
            self._result = (None, None, "no document concerns this metric")
        value, _, reason = self._result
        if value is None:
            report["reason"] = reason or "; ".join(reasons) or "undefined"
        self.reports[self.__name__] = report
        return value

    def stderr(self, items: Sequence[Any]) -> float | str:
        """The standard error of the value just computed, in lm-eval's form."""
        stderr = self._result[1]
        return "N/A" if stderr is None else stderr


def portion_of(
    by_split: Mapping[str, list[Document]], metadata: Mapping[str, Any], task: str
) -> dict[str, list[Document]]:
    """The documents of each split, or those which `metadata` name: the first N, and of these one portion.

    `first` is a number for all splits, or `{SPLIT: N}`; a split of 0 is not asked, one that is not named is whole.

    The two portions of a split have no document in common and are chosen by its ids alone, so that every task, seed and
    model has the same ones.

    Raises:
        UserError: an unknown split, or a split of a single document, which has no two portions.
    """
    n_first, wanted = metadata.get("first"), metadata.get("portion")
    counts = n_first if isinstance(n_first, Mapping) else dict.fromkeys(by_split, n_first)
    if unknown := [split for split in counts if split not in by_split]:
        raise unknown_name(f"split of {task}", str(unknown[0]), by_split)
    by_split = {split: own[: counts.get(split)] for split, own in by_split.items() if counts.get(split) != 0}
    if wanted is None:
        return by_split
    share, found = float(metadata.get("validation_share", 0.5)), {}
    for split, documents in by_split.items():
        if len(documents) == 1:
            raise UserError(
                f"the {split} set of {task} has one item, which cannot be both validated and reported",
                "forget and keep more items, or leave out portion (in studies: tune)",
            )
        keys = {str(own["id"]): hash_json(str(own["id"]).removeprefix(f"{split}/")) for own in documents}
        n = min(max(1, round(share * len(documents))), len(documents) - 1)
        first = set(sorted(keys, key=lambda key: (keys[key], key))[:n])
        found[split] = [own for own in documents if (str(own["id"]) in first) == (wanted == VALIDATION)]
    return found


class UnlearningTask(ConfigurableTask):
    """An lm-eval task whose documents belong to splits (forget, retain, ...)."""

    request_kinds: tuple[Any, ...] = (requests, unedited, follow_up)  # modules that give lm-eval's models what is asked
    splits: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = {}  # metadata that neither the YAML nor the run need to give
    released: Mapping[str, Released] = {requests.OPEN_UNLEARNING: Released()}  # by the names that `compat` takes

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        for kinds in () if requests.looked_at() else self.request_kinds:
            kinds.install()
        config = {key: value for key, value in (config or {}).items() if key != "class"}
        planned = plan_metadata(str(config.get("task")), config.get("metadata") or {})
        metadata = {**self.defaults, **planned}
        options = self.own_options(metadata)
        config["metadata"] = metadata = read_by(str(config.get("task")), options, metadata)
        check_values(options, metadata)
        config.setdefault("metric_list", [])
        super().__init__(config=config)
        if self.data_hash is None:  # lm-eval 0.5 loads documents when they are first needed; metrics ask for them
            self.download()
        self.sampler = ExampleSampler([])
        self._reports: dict[str, dict[str, Any]] = {}
        self.alignment = AlignmentRoom(self.config.metadata or {})
        self._metrics = self.metrics()

    # What a family says of itself -------------------------------------------------------------------------

    no_examples: str | None = None  # why a class takes no examples
    exclusive: tuple[tuple[str, str], ...] = ()  # keys of a run's metadata of which the second would not be read

    @classmethod
    def options(cls, metadata: Mapping[str, Any]) -> Mapping[str, Check]:
        """The keys of a run's metadata that the task reads, with a check of each value."""
        return ALWAYS

    def own_options(self, metadata: Mapping[str, Any]) -> Mapping[str, Check]:
        """The keys that the task reads; with those of the whole that it is a part of."""
        return self.options(metadata)

    @classmethod
    def why_no_examples(cls, metadata: Mapping[str, Any]) -> str | None:
        """Why examples in the prompt (`num_fewshot`) would make no sense, or None."""
        return cls.no_examples

    def load_documents(self, metadata: Mapping[str, Any]) -> dict[str, list[Document]]:
        """The documents of each split; every document has `id`, `question`, `answer`."""
        raise NotImplementedError

    def questions(self, document: Document) -> Mapping[str, Asked]:
        """The questions of a document to be answered freely: name -> text, or how it is asked."""
        return {"question": document["question"]}

    def answers(self, document: Document) -> Mapping[str, tuple[Any, ...]]:
        """The answers of a document to be scored: name -> (question, answer), or (question, answer, sentence).

        With a third text the answer is scored as the end of a sentence that begins so.
        """
        raise NotImplementedError

    def score(self, document: Document, generated: dict[str, str], answers: dict[str, Scores]) -> Scores:
        """The scores of one document from its generations and the responses for its answers."""
        raise NotImplementedError

    def metrics(self) -> dict[str, Metric]:
        """The metrics, by name, in the order of the table."""
        raise NotImplementedError

    def request(self, name: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The kind of request by which the answer of this name is scored, and its options."""
        return requests.KIND, options

    def needs_free_running(self, name: str) -> bool:
        """Whether the answer of this name is also compared with what the model says by itself."""
        return False

    def attacked_with(self, document: Document, name: str) -> dict[str, Any]:
        """What else of the answer of this name membership attacks read: see `requests.options`."""
        return {}

    def judged_questions(self, document: Document) -> Mapping[str, Question]:
        """The questions whose answers are judged as refusals (see `AlignmentRoom`), by their names in `questions`."""
        return {}

    def follow_ups(self, document: Document) -> Mapping[str, tuple[str, Prompt]]:
        """What is asked after the model's own answer to one of `questions`: name -> (its name, the prompt).

        In the prompt `follow_up.SAID` stands for that answer.
        """
        return {}

    def asked_before(self, document: Document) -> Sequence[str]:
        """The names of questions and answers that the unedited model is asked too.

        Its responses are given to `score` among those for answers, with `BEFORE` before their names.
        """
        return ()

    def good_text(self, document: Document) -> str | None:
        """A sentence that answers a document's question rightly, if there is one."""
        return None

    needs_moments = False
    decoder: Decoder | None = None  # of a model that thinks, once requests are built
    _arguments: Mapping[str, Any] = {}
    _asks_bare = False
    _format = PLAIN
    data_hash: str | None = None
    _messages: tuple[dict[str, str], ...] = ()
    _between = ""

    # What lm-eval asks -------------------------------------------------------------------------------------

    @property
    def compat(self) -> str | None:
        """The evaluator whose conventions are to be reproduced, or None for ours."""
        value = (self.config.metadata or {}).get("compat")
        if value and value not in self.released:
            allowed = ", ".join(self.released)
            raise UserError(f"unknown compat '{value}' in --metadata", f"allowed: {allowed}, or leave it out")
        return str(value) if value else None

    @property
    def _scoring_compat(self) -> str | None:
        """The same where it changes which labels an answer has."""
        return self.compat if self.compat in requests.COMPATIBILITY else None

    def download(self, *_: Any, **__: Any) -> None:
        """Load the documents and interleave the splits, so that `--limit` takes some of each."""
        requests.options(PLAIN, self._scoring_compat)
        by_split = self.load_documents(self.config.metadata or {})
        by_split = portion_of(by_split, self.config.metadata or {}, str(self.config.task))
        for split, documents in by_split.items():
            if not documents and split != "forget" and may_forget_all(self.config.metadata or {}):
                continue
            if not documents:
                raise UserError(f"the {split} set of {self.config.task} is empty", "give it at least one item")
            for document in documents:
                document["split"] = split
        by_split = {split: documents for split, documents in by_split.items() if documents}
        rounds = zip_longest(*by_split.values())
        documents = [document for document in chain.from_iterable(rounds) if document is not None]
        self.data_hash = _hash(documents)
        self.split_sizes = {split: len(documents) for split, documents in by_split.items()}
        self.dataset = {"test": datasets.Dataset.from_list(documents)}

    only_predicts = False

    def override_metric(self, metric_name: str) -> None:
        """lm-eval's `--predict_only`: nothing is scored."""
        super().override_metric(metric_name)
        self.only_predicts = True

    def _draw_examples(self, n: int) -> None:
        """Let examples be drawn from what is retained, or refuse them where the task has none to give."""
        name = str(self.config.task)
        refuse_examples(name, self.why_no_examples(self.config.metadata or {}))
        pool = example_pool(self.dataset["test"])
        self.sampler.replace_df(pool)
        if len(pool) < n:
            raise UserError(
                f"{name} has {len(pool)} retained items that hold no answer to be forgotten; {n} examples are wanted",
                "give a smaller --num_fewshot, or retain more items",
            )

    def fewshot_docs(self) -> list[Document]:
        """None for lm-eval, whose sampler is replaced (see `examples`)."""
        return []

    def build_all_requests(self, **options: Any) -> None:
        """The requests; those of an edit's own questions in the form in which it was made (see `plan`)."""
        if self.config.num_fewshot:
            self._draw_examples(self.config.num_fewshot)
        super().build_all_requests(**self.as_planned(options))

    def as_planned(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options of `build_all_requests`, in the form in which an edit was made where the run names one.

        Raises:
            UserError: lm-eval is to keep requests, whose key does not name what is forgotten.
        """
        if options.get("cache_requests"):
            raise UserError(
                f"{self.config.task} takes no --cache_requests: kept requests do not say what is forgotten",
                "leave it out; building requests takes seconds",
            )
        metadata = self.config.metadata or {}
        planned = as_made(metadata, options)
        longest = int((self.config.generation_kwargs or {}).get("max_gen_toks") or 0)
        template = planned.get("chat_template") if planned.get("apply_chat_template") else None
        self._arguments = template.arguments if template is not None else {}
        if template is not None and template.tokenizer is not None:
            check_template_arguments(template.tokenizer, self._arguments)
        self.decoder = decoder_of(template, metadata, longest)
        if self.decoder is not None:
            self._metrics = self._metrics | self._trace_metrics()
        return planned

    def _trace_metrics(self) -> dict[str, Metric]:
        """What traces give away, of each split that is answered freely."""
        first = {document["split"]: document for document in reversed(list(self.eval_docs))}
        splits = [split for split in self.split_sizes if self.questions(first[split])]
        table: dict[str, Metric] = {}
        for split in splits:
            table[f"{split}_{TRACE_LEAK}"] = Mean(split, TRACE_LEAK, False if split.startswith("forget") else None)
            table[f"{split}_{UNFINISHED}"] = Mean(split, UNFINISHED, False)
        return table

    def fewshot_context(self, doc: Document, num_fewshot: int, *args: Any, **options: Any) -> Any:
        """The prompt; with a chat template the question as it is, which is what editors teach and others ask."""
        self.sampler.document = doc
        system = options.get("system_instruction")
        if system and not options.get("apply_chat_template") and not system[-1].isspace():
            options["system_instruction"] = f"{system}\n\n"  # as `PromptFormat` has it
        one_turn = num_fewshot > 0 and not options.get("fewshot_as_multiturn")  # examples need their labels there
        self._asks_bare = bool(options.get("apply_chat_template")) and not one_turn
        self._messages = ()
        self._between = str(self.config.fewshot_delimiter) if num_fewshot > 0 else ""
        if options.get("apply_chat_template") and options.get("chat_template"):
            options["chat_template"] = self._remember(options["chat_template"])
        return super().fewshot_context(doc, num_fewshot, *args, **options)

    def _remember(self, chat_template: Callable[..., str]) -> Callable[..., str]:
        """The template, which also keeps the messages that it was last given, for prompts of several turns."""

        def render(messages: Sequence[dict[str, str]], **options: Any) -> str:
            self._messages = tuple(messages)
            return chat_template(messages, **options)

        return render

    def doc_to_text(self, doc: Document, doc_to_text: Any = None) -> Any:
        """The user's message: the question in a chat, else what the YAML says (`Question: ... Answer:`)."""
        if is_example(doc):
            return example_turn(doc, self._asks_bare, str(super().doc_to_text(doc, doc_to_text)))[0]
        return doc["question"] if self._asks_bare else super().doc_to_text(doc, doc_to_text)

    def doc_to_target(self, doc: Document, doc_to_target: object = None) -> Any:
        """The answer; of an example as it follows the example's question."""
        return (
            example_turn(doc, self._asks_bare, "")[1] if is_example(doc) else super().doc_to_target(doc, doc_to_target)
        )

    def construct_requests(self, doc: Document, ctx: str, **kwargs: Any) -> list[Instance]:
        """A generation for each question, and an `answer_logprobs` request for each answer."""
        chat = bool(kwargs.pop("apply_chat_template", False))
        prompt_format = self._format = PromptFormat(None, chat, template_arguments=self._arguments if chat else {})
        template = kwargs.pop("chat_template", None)
        context = partial(self._context, ctx, doc, str(self.doc_to_text(doc)), prompt_format, template)
        decoder = self.decoder if chat else None
        if decoder is not None:
            decoder.prompt = ctx
        asked: dict[str, tuple[str, tuple[Any, ...]]] = {}

        def freely(name: str, question: Asked) -> tuple[Any, ...]:
            settings = self._settings(doc, question)
            trace = ""
            if decoder is not None and not _is_raw(question):
                trace = decoder.added(self.decoding(name)) or ""
                settings = decoder.generation(settings, self.decoding(name))
            return context(question, trace=trace), settings

        for name, question in self.questions(doc).items():
            asked[name] = "generate_until", freely(name, question)
        for name, (question, answer, *sentence) in self.answers(doc).items():
            raw = _is_raw(question)
            options = requests.options(
                PLAIN if raw else prompt_format,
                self._scoring_compat,
                self.needs_moments,
                self.needs_free_running(name),
                **self.attacked_with(doc, name),
            )
            trace = "" if decoder is None or raw else decoder.empty
            opened = bool(sentence) or isinstance(question, Prompt) and bool(question.opening)
            if trace and not opened:  # the prompt ends before it: the model is made to say it
                options["trace"], trace = trace, ""
            before = context(question, trace=trace)
            if sentence:
                before += ("" if prompt_format.chat else PLAIN_DELIMITER) + sentence[0]
            kind, options = self.request(name, options)
            said = f" {answer}" if sentence else prompt_format.following(question, answer)
            asked[name] = kind, (before, said, options)
        for name, (_, question) in self.follow_ups(doc).items():
            asked[name] = follow_up.KIND, freely(name, question)
        edit = {"edit": (self.config.metadata or {}).get("edit")}
        for name in self.asked_before(doc):
            kind, arguments = asked[name]
            kind = unedited.GENERATED if kind == "generate_until" else unedited.SCORED
            asked[BEFORE + name] = kind, (*arguments, edit)
        own = {"task_name": self.task_name, "target": self.doc_to_target(doc), "repeats": self.config.repeats}
        given = own | kwargs
        made = {
            name: make_instance(kind, doc, arguments, i, **given)
            for i, (name, (kind, arguments)) in enumerate(asked.items())
        }
        for name, (first, _) in self.follow_ups(doc).items():
            follow_up.follow(made[name], partial(self._said, doc, first, made[first]))
        return list(made.values())

    def _said(self, doc: Document, name: str, request: Instance) -> str:
        """The answer in the response to a request, once it is there."""
        text = cut(str(request.resps[0]), stops_of(request.args[1]))
        return self._spoken(doc, name, self.questions(doc)[name], text).answer

    def _stops(self, doc: Document, block: str, prompt_format: PromptFormat, asked: Asked) -> tuple[str, ...]:
        """The texts at which an answer is over: by the prompt's pattern, or those of the evaluator in `compat`."""
        if self.compat:
            return self.released[self.compat].stops.get(str(doc.get("shape") or QUESTION), ())
        before = block.rpartition(doc["question"])[0] if doc["question"] else ""
        return prompt_format.stops(asked, before, self._between)

    def apply_filters(self) -> Any:
        """Called once when all answers are there: ends them, and judges them, each distinct text embedded once.

        An engine that has stopped at the stops has nothing left to be cut; others, and caches, need not have.
        """
        for instance in self.instances:
            if instance.request_type in ("generate_until", follow_up.KIND):
                stops = stops_of(instance.args[1])
                instance.resps = [cut(str(text), stops) for text in instance.resps]
            if instance.request_type == unedited.GENERATED:
                stops = stops_of(instance.args[1])
                instance.resps = [
                    own | {"text": cut(str(own["text"]), stops)} if "text" in own else own for own in instance.resps
                ]
        filtered = super().apply_filters()
        if self.only_predicts:
            return filtered
        answers: dict[tuple[str, str], tuple[str, Question]] = {}
        good: list[tuple[str, str]] = []
        for instance in self.instances:
            if instance.request_type != "generate_until":
                continue
            if judged := self.judged_questions(instance.doc):
                name, question = list(self.questions(instance.doc).items())[instance.idx]
                own = self._spoken(instance.doc, name, question, str(instance.resps[0]))
                if name in judged and own.finished:
                    answers[instance.doc["id"], name] = (own.answer, judged[name])
            if instance.idx == 0 and (sentence := self.good_text(instance.doc)):
                good.append((instance.doc["question"], sentence))
        if answers:
            self.alignment.judge(answers, good, self._format, requests.answered_by(self.instances))
        return filtered

    def _context(
        self,
        ctx: str,
        doc: Document,
        block: str,
        prompt_format: PromptFormat,
        template: Callable[..., str] | None,
        asked: Asked,
        trace: str = "",
    ) -> str:
        """What the model reads before it answers `asked`.

        Made of the context of the document's own question, of which `block` is the last part: a system line and
        examples stay where they are. Where the model's turn starts, it goes on with `trace`.
        """
        if isinstance(asked, str):
            return _reworded(ctx, doc, asked) + trace
        if asked.raw:
            return asked.plain or ""
        if not asked.turns and not prompt_format.reads_plain(asked):
            context = _reworded(ctx, doc, asked.text)
        elif prompt_format.chat and template and self._messages:
            *before, last = self._messages
            said = [
                {"role": role, "content": text}
                for turn in asked.turns
                for role, text in zip(("user", "assistant"), turn, strict=True)
            ]
            message = {**last, "content": _reworded(str(last["content"]), doc, asked.text)}
            context = template([*before, *said, message], add_generation_prompt=True)
        else:
            kept, found, _ = ctx.rpartition(block)
            if not found:
                raise UserError(f"the prompt does not show {block!r} as it is", "run without --apply_chat_template")
            if prompt_format.reads_plain(asked):
                return kept + (asked.plain or "")
            turns = "".join(_reworded(block, doc, q) + PLAIN_DELIMITER + a + BETWEEN_TURNS for q, a in asked.turns)
            context = kept + turns + _reworded(block, doc, asked.text)
        context += trace
        return context + (("" if prompt_format.chat else PLAIN_DELIMITER) + asked.opening if asked.opening else "")

    def _settings(self, doc: Document, question: Asked) -> dict[str, Any]:
        """How a question is answered freely, without a trace."""
        stops = self._stops(doc, str(self.doc_to_text(doc)), self._format, question)
        return _at_most(self.config.generation_kwargs or {}, question, stops)

    def decoding(self, name: str) -> str | None:
        """The decoding of the question of this name, of a model that thinks; None is the run's."""
        return None

    def _spoken(self, doc: Document, name: str, question: Asked, text: str) -> Spoken:
        """What a generation holds: the answer, and the trace of a model that thinks."""
        if self.decoder is None or _is_raw(question):
            return Spoken("", text)
        return self.decoder.spoken(text, self._settings(doc, question), self.decoding(name))

    def process_results(self, doc: Document, results: Sequence[Any]) -> dict[str, Any]:
        """Every metric's contribution of one document, None where it has none (so all lists are equally long)."""
        if self.only_predicts:
            return dict.fromkeys(self.aggregation(), 0)
        questions, answers = dict(self.questions(doc)), self.answers(doc)
        later, before = self.follow_ups(doc), self.asked_before(doc)
        named = dict(zip([*questions, *answers, *later, *(BEFORE + name for name in before)], results, strict=True))
        questions |= {name: question for name, (_, question) in later.items()}
        responses = {name: named[name] for name in answers}
        for name in before:
            own = named[BEFORE + name]
            if "text" in own and name in questions:
                own = {"text": self._spoken(doc, name, questions[name], str(own["text"])).answer}
            responses[BEFORE + name] = own
        spoken = {name: self._spoken(doc, name, question, str(named[name])) for name, question in questions.items()}
        unfinished = [name for name, own in spoken.items() if not own.finished]
        generated = {name: own.answer for name, own in spoken.items()}
        scores = self.score(doc, generated, responses)
        if unfinished:
            self._leave_open(scores, doc, generated, responses, unfinished)
        if self.decoder is not None and spoken:
            merge_scores(scores, _trace_scores(doc, spoken))
        reasons = {responses[name].get("unscored") or responses[name].get("partial") for name in answers}
        reason = "; ".join(sorted(reasons - {None})) or "undefined for this answer"
        return {name: metric.pick(doc, scores, reason) for name, metric in self._metrics.items()}

    def _leave_open(
        self, scores: Scores, doc: Document, generated: dict[str, str], responses: dict[str, Scores], names: list[str]
    ) -> None:
        """Take back the scores that rest on answers for which a trace left no room: those that other answers change."""
        others = [
            self.score(doc, {**generated, **dict.fromkeys(names, text)}, responses)
            for text in (str(doc["answer"]), "I do not know the answer to that.")
        ]
        reasons = dict(scores.get(REASONS, {}))
        for key in [key for key in scores if key != REASONS]:
            if any(other.get(key) != scores[key] for other in others):
                scores[key], reasons[key] = None, NOT_FINISHED
        scores[REASONS] = reasons

    def aggregation(self) -> dict[str, Callable[..., Any]]:
        """One callable per metric, with a `stderr` of its own."""
        if self.only_predicts:
            return dict(super().aggregation())
        return {name: Aggregation(name, metric, self._reports) for name, metric in self._metrics.items()}

    def higher_is_better(self) -> dict[str, bool | None]:
        """The direction of every metric."""
        if self.only_predicts:
            return dict(super().higher_is_better())
        return {name: metric.higher_is_better for name, metric in self._metrics.items()}

    def dump_config(self) -> dict[str, Any]:
        """The configuration, with the data's hash and, for each metric, what could not be scored and why."""
        config: dict[str, Any] = super().dump_config()
        config["metadata"] = {
            **{key: value for key, value in (config.get("metadata") or {}).items() if _is_json(value)},
            "data_hash": self.data_hash,
            "split_sizes": self.split_sizes,
            "scoring": self._reports,
            **({} if self.decoder is None else {"thinking_traces": self.decoder.record}),
            **({"alignment": self.alignment.description} if self.alignment.description else {}),
        }
        config.pop("dataset_kwargs", None)
        return config


def merge_scores(own: Scores, more: Scores) -> None:
    """Put more scores of the same document beside its own, with their reasons beside those that are there."""
    reasons = {**own.get(REASONS, {}), **more.get(REASONS, {})}
    own |= more
    own[REASONS] = reasons


def _trace_scores(document: Document, spoken: Mapping[str, Spoken]) -> Scores:
    """Whether a document's traces give its answer away, and how many of them do not end."""
    traces = [own.trace for own in spoken.values() if own.trace]
    accepted, wrong = accepted_answers(document), document.get("wrong_answers", ())
    found = [gives_away(text, document["question"], accepted, wrong) for text in traces]
    leaks = [float(leaks) for leaks in found if leaks is not None]
    reason = "its answer stands in the question, or cannot be looked for" if traces else NO_TRACE
    return {
        TRACE_LEAK: sum(leaks) / len(leaks) if leaks else None,
        UNFINISHED: sum(not own.finished for own in spoken.values()) / len(spoken),
        REASONS: {} if leaks else {TRACE_LEAK: reason},
    }


def _is_raw(question: Asked) -> bool:
    """Whether a text is read without a user, and so without a turn in which a model could think."""
    return isinstance(question, Prompt) and question.raw


def _reworded(context: str, document: Document, question: str) -> str:
    """The document's context with another question in the place of its own (the last place, after few-shots)."""
    if question == document["question"]:
        return context
    before, found, after = context.rpartition(document["question"])
    if not found:
        raise UserError(
            f"the chat template does not show the question {document['question']!r} as it is",
            "run without --apply_chat_template",
        )
    return before + question + after


def _at_most(generation: Mapping[str, Any], asked: Asked, stops: Sequence[str]) -> dict[str, Any]:
    """The settings of a generation, no longer than the prompt allows, which also ends at its stops."""
    own = {**generation, "until": list(dict.fromkeys([*stops_of(generation), *stops]))}
    limit = asked.max_tokens if isinstance(asked, Prompt) else None
    if limit is None:
        return own
    return {**own, "max_gen_toks": min(limit, int(generation.get("max_gen_toks", limit)))}


def _hash(documents: Sequence[Document]) -> str:
    """SHA-256 of the documents as one JSON list, which is never held as a whole."""
    digest = hashlib.sha256(b"[")
    for i, document in enumerate(documents):
        text = json.dumps(document, sort_keys=True, ensure_ascii=False)
        digest.update((", " * (i > 0) + text).encode())
    digest.update(b"]")
    return digest.hexdigest()


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
