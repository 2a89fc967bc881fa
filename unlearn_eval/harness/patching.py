"""Our changes to lm-eval at run time (see `utils.patching`). lm-eval is imported when they are applied, not here."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from unlearn_eval.harness.names import MODELS, TASKS_FOLDER
from unlearn_eval.utils.patching import OneOf, Patches, Place, replaced, wrap
from unlearn_eval.utils.terminal import LEVEL, QUIET, VERBOSE, Lines

if TYPE_CHECKING:
    from unlearn_eval.harness.lm import LM

PATCHES = Patches("lm_eval", tested=("0.4.13", "0.5.0.dev1"))


# Names -----------------------------------------------------------------------------------------------------


@PATCHES.add(
    "task-index",
    "TaskIndex.build also reads the folder of our tasks wherever it reads lm-eval's own",
    Place("lm_eval.tasks._index:TaskIndex.build", takes="paths"),
)
def index_our_tasks(index_module: Any) -> None:
    """Make every task index that scans lm-eval's own folder scan ours right after it."""
    own_folder = os.path.realpath(os.path.dirname(index_module.__file__))

    def with_ours(build: Any) -> Any:
        def build_with_ours(paths: Any, **options: Any) -> Any:
            paths = list(paths)
            known = [os.path.realpath(path) for path in paths]
            if own_folder in known and os.path.realpath(TASKS_FOLDER) not in known:
                # After lm-eval's folder and before the user's, so that the user's --include_path still wins.
                paths.insert(known.index(own_folder) + 1, type(paths[0])(TASKS_FOLDER))
            return build(paths, **options)

        return build_with_ours

    wrap(index_module.TaskIndex, "build", with_ours)


@PATCHES.add(
    "model-names",
    "model_registry also holds our models (edited, edited-vllm)",
    Place("lm_eval.api.registry:model_registry.register", takes="aliases, target"),
)
def register_models() -> None:
    """Register our model names, unimported, after lm-eval's own."""
    import lm_eval.models  # noqa: F401  (registers lm-eval's own; must come first)
    from lm_eval.api.registry import model_registry

    for name, target in MODELS.items():
        if name not in model_registry:
            model_registry.register(name, target=target)


@PATCHES.add(
    "options",
    "simple_evaluate refuses, before it loads a model, options that one of our tasks could not apply",
    Place("lm_eval.evaluator:simple_evaluate", takes="model, model_args, tasks, num_fewshot"),
)
def check_our_options(evaluator: Any) -> None:
    """Make lm-eval check a run's options for our tasks first."""
    wrap(evaluator, "simple_evaluate", _checking_first)


def _checking_first(evaluate: Any) -> Any:
    parameters = inspect.signature(evaluate)

    def evaluating(*arguments: object, **options: object) -> Any:
        from unlearn_eval.edits.places import is_edit
        from unlearn_eval.harness.options import check_options

        given = parameters.bind(*arguments, **options).arguments
        named = [task for task in given.get("tasks") or () if isinstance(task, str)]
        manager = given.get("task_manager")
        metadata = {**(getattr(manager, "metadata", None) or {}), **(given.get("metadata") or {})}
        of_model = _parsed(given.get("model_args"))  # lm-eval puts these among the metadata
        check_options(
            named,
            metadata={key: value for key, value in metadata.items() if key not in of_model},
            num_fewshot=given.get("num_fewshot"),
            gen_kwargs=_parsed(given.get("gen_kwargs")),
        )
        if is_edit(of_model.get("peft")):
            keep_embeddings()
        return evaluate(*arguments, **options)

    return evaluating


def _parsed(text: str | Mapping[str, Any] | None) -> dict[str, Any]:
    from lm_eval.utils import simple_parse_args_string

    return dict(simple_parse_args_string(text)) if isinstance(text, str) else dict(text or {})


@PATCHES.add(
    "embeddings",
    "HFLM._create_model keeps the size of the embeddings under an adapter that is one of our edits: it adds no token",
    Place("lm_eval.models.huggingface:HFLM._create_model", mentions=("self._model.resize_token_embeddings(",)),
    Place("transformers:PreTrainedModel.resize_token_embeddings"),
)
def keep_embeddings() -> None:
    """Let lm-eval's `hf` model load an edit (`peft=DIR`) on the base as it is.

    lm-eval cuts the embeddings to the tokenizer's size before it loads any adapter. Where a vocabulary is padded, as
    Qwen's is, that makes another base model of it.
    """
    from lm_eval.models.huggingface import HFLM

    wrap(HFLM, "_create_model", _keeping_embeddings)


def _keeping_embeddings(create: Any) -> Any:
    from transformers import PreTrainedModel

    from unlearn_eval.edits.places import is_edit

    def creating(self: Any, *arguments: object, **options: object) -> Any:
        if not is_edit(options.get("peft")):
            return create(self, *arguments, **options)
        with replaced(PreTrainedModel, "resize_token_embeddings", lambda own, *_, **__: own.get_input_embeddings()):
            return create(self, *arguments, **options)

    return creating


# Requests and scores ---------------------------------------------------------------------------------------


@PATCHES.add(
    "request-kinds",
    "LM and HFLM also answer the request kinds answer_logprobs and answer_divergence",
    Place("lm_eval.api.model:LM"),
    Place("lm_eval.models.huggingface:HFLM._batch_scheduler", takes="self, pos, n_reordered_requests"),
    Place("lm_eval.models.huggingface:HFLM._encode_pair", takes="self, context, continuation"),
    Place("lm_eval.evaluator:evaluate", mentions=("getattr(lm, reqtype)",)),
)
def add_request_kind(kind: str, of_any: Callable[..., Any], of_transformers: Callable[..., Any]) -> None:
    """Give lm-eval's models a request kind.

    Args:
        kind: the method's name, which is the request's type.
        of_any: the method of models that have none.
        of_transformers: the method of lm-eval's `hf` model.
    """
    from lm_eval.api.model import LM
    from lm_eval.models.huggingface import HFLM

    if getattr(LM, kind, None) is None:
        setattr(LM, kind, of_any)
    if kind not in vars(HFLM):
        setattr(HFLM, kind, of_transformers)


@PATCHES.add(
    "trace-markers",
    "HFLM.tok_decode keeps the markers of a thinking model's trace where they are special tokens",
    Place("lm_eval.models.huggingface:HFLM.tok_decode", takes="self, tokens, skip_special_tokens"),
)
def keep_trace_markers() -> None:
    """Let lm-eval's `hf` model show where a trace ends, which it would decode away with other special tokens."""
    from lm_eval.models.huggingface import HFLM

    wrap(HFLM, "tok_decode", _keeping_markers)


def _keeping_markers(decode: Any) -> Any:
    from unlearn_eval.models.thinking import decode_with_markers, special_markers

    def decoding(self: LM, tokens: Sequence[int] | int, skip_special_tokens: bool = True) -> Any:
        markers = vars(self).get("_unlearn_eval_markers")
        if markers is None:
            markers = self._unlearn_eval_markers = special_markers(self.tokenizer)
        if not markers or not skip_special_tokens or isinstance(tokens, int):
            return decode(self, tokens, skip_special_tokens)
        return decode_with_markers(functools.partial(decode, self), list(tokens), markers)

    return decoding


@PATCHES.add(
    "quicker-generation",
    "HFLM._model_generate runs once what prompts share, and lets the head read contiguous states (faster on CPUs)",
    Place("lm_eval.models.huggingface:HFLM._model_generate", takes="self, context, max_length, stop"),
    Place(
        "lm_eval.models.huggingface:HFLM.generate_until",
        mentions=("context=context_enc,", "attention_mask=attn_masks,", "cont_toks[context_enc.shape[1] :]"),
    ),
)
def generate_quicker() -> None:
    """Let lm-eval's `hf` model run once what the prompts of a batch share, with a head that reads contiguous states."""
    from lm_eval.models.huggingface import HFLM

    wrap(HFLM, "_model_generate", _generating_quicker)


def _generating_quicker(generate: Any) -> Any:
    from unlearn_eval.harness.lm import autocast
    from unlearn_eval.models.generation import read_once
    from unlearn_eval.models.load import read_together

    def generating(self: Any, *arguments: Any, **options: Any) -> Any:
        read_together(self.model)
        several = any(options.get(name, 1) != 1 for name in ("num_beams", "num_return_sequences"))
        if arguments or several or options.get("attention_mask") is None or self.backend != "causal":
            return generate(self, *arguments, **options)
        ids, real = options.pop("context"), options.pop("attention_mask").bool()
        rows = [own[kept].tolist() for own, kept in zip(ids, real, strict=True)]
        with autocast(self):
            inputs = read_once(self.model, rows, options["max_length"] - ids.shape[1], self.tokenizer.pad_token_id or 0)
        return generate(self, context=inputs.pop("input_ids"), **inputs, **options)

    return generating


@PATCHES.add(
    "standard-errors",
    "stderr_for_metric asks an aggregation for its own standard error first",
    OneOf(
        (
            Place("lm_eval.evaluator_utils:stderr_for_metric", takes="metric, bootstrap_iters"),
            Place(
                "lm_eval.scorers._base:Scorer.aggregate",
                mentions=("from lm_eval.api.metrics import mean, stderr_for_metric",),
            ),
        )
    ),
    Place("lm_eval.api.metrics:stderr_for_metric", takes="metric, bootstrap_iters"),
)
def use_own_standard_errors() -> None:
    """Let an aggregation with a method `stderr` give its own standard error, instead of a bootstrap."""
    import lm_eval.api.metrics as metrics
    import lm_eval.evaluator_utils as utils

    # 0.4 has imported the name where it calls it; 0.5 imports it at each call.
    wrap(utils if hasattr(utils, "stderr_for_metric") else metrics, "stderr_for_metric", _own_first)


def _own_first(original: Any) -> Any:
    def stderr_for_metric(metric: Any, bootstrap_iters: int) -> Any:
        own = getattr(metric, "stderr", None) if bootstrap_iters > 0 else None
        return own or original(metric, bootstrap_iters)

    return stderr_for_metric


@PATCHES.add(
    "response-cache",
    "CachingLM keeps the responses of each model (--use_cache) in a file of its own",
    Place("lm_eval.api.model:CachingLM.__init__", takes="self, lm, cache_db"),
)
def keep_responses_apart(model_module: Any) -> None:
    """Give every model its own cache of responses: lm-eval's does not tell an edited model from its base."""

    def with_identity(initialize: Any) -> Any:
        def initialize_own(self: Any, lm: Any, cache_db: str) -> None:
            from unlearn_eval.harness.response_cache import path_for

            initialize(self, lm, path_for(lm, cache_db))

        return initialize_own

    wrap(model_module.CachingLM, "__init__", with_identity)


# Output ----------------------------------------------------------------------------------------------------


@PATCHES.add("log-levels", "loggers of lm_eval, datasets, transformers and accelerate show errors only, for a block")
@contextmanager
def quiet() -> Iterator[None]:
    """Only errors in the logs of lm-eval, datasets, transformers and accelerate, within a `with` block."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "transformers", "accelerate")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@PATCHES.add(
    "no-machine-report",
    "simple_evaluate collects nothing about machine and git, for a block: our provenance has it",
    Place("lm_eval.evaluator:simple_evaluate", mentions=("add_env_info(results)", "get_git_commit_hash()")),
    Place("lm_eval.evaluator:add_env_info", takes="storage"),
    Place("lm_eval.evaluator:get_git_commit_hash"),
)
@contextmanager
def without_machine() -> Iterator[None]:
    """Skip lm-eval's report on machine and git, which takes a second or two after every evaluation."""
    import lm_eval.evaluator

    with (
        replaced(lm_eval.evaluator, "add_env_info", lambda storage: None),
        replaced(lm_eval.evaluator, "get_git_commit_hash", lambda: None),
    ):
        yield


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """What libraries say within a command: as `quiet`, and outside a terminal no bars; with --verbose all of it."""
    if LEVEL.get() >= VERBOSE:
        yield
        return
    with quiet():
        if LEVEL.get() > QUIET and sys.stderr.isatty():
            yield
        else:
            with bars_as_lines():
                yield


@PATCHES.add(
    "bars-as-lines",
    "progress bars are a line every ten seconds, for a block: a log cannot draw over a line",
    Place("tqdm.std:tqdm.__init__", takes="self, iterable, desc, total"),
    package="tqdm",
    tested=("4.70.1",),
)
@contextmanager
def bars_as_lines() -> Iterator[None]:
    """Let progress bars say how far they are in lines, within a `with` block."""
    form = "{desc}: {n_fmt} of {total_fmt} ({elapsed} so far, {remaining} left)"
    instead = {
        "file": Lines(),
        "mininterval": 10.0,
        "maxinterval": 10.0,
        "miniters": 1,
        "bar_format": form,
        "leave": False,
    }

    with _bars_with(lambda options: instead if options.get("desc") else {"disable": True}):
        yield


@contextmanager
def _bars_with(changes: Callable[[Mapping[str, object]], Mapping[str, object]]) -> Iterator[None]:
    """Give progress bars other options, which may follow from their own, within a `with` block."""
    import tqdm

    show = tqdm.std.tqdm.__init__

    def changed(self: Any, *arguments: object, **options: object) -> None:
        show(self, *arguments, **{**options, **changes(options)})

    with replaced(tqdm.std.tqdm, "__init__", changed):
        yield


@PATCHES.add(
    "no-bars",
    "progress bars are off, for a block: a study shows its own progress",
    Place("tqdm.std:tqdm.__init__", takes="self, iterable, desc, total"),
    package="tqdm",
    tested=("4.70.1",),
)
@contextmanager
def within_a_study() -> Iterator[None]:
    """Turn progress bars off, and skip what `without_machine` skips."""
    with _bars_with(lambda options: {"disable": True}), without_machine():
        yield
