"""Run lm-eval from Python and make our result of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unlearn_eval.data.shapes import Asked, Prompt, cut
from unlearn_eval.harness.chat_template import ChatTemplate
from unlearn_eval.harness.names import TASKS_FOLDER
from unlearn_eval.harness.patching import keep_responses_apart, register_models
from unlearn_eval.harness.task_index import manager_for, own_names, small_manager, task_manager
from unlearn_eval.models.load import DTYPES, device_named
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.results.foreign import metrics_of, n_documents, plain_samples
from unlearn_eval.results.schema import Metric
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.provenance import hash_json
from unlearn_eval.utils.settings import check_batch_size

SEED = 1234


@dataclass(frozen=True)
class Evaluation:
    """What lm-eval found.

    Attributes:
        metrics: by task, then name.
        samples: by task: lm-eval's records, the scores among them.
        data: by task: data hash, split sizes, number of documents.
        configs: by task: lm-eval's resolved configuration.
    """

    metrics: dict[str, dict[str, Metric]]
    samples: dict[str, list[dict[str, Any]]]
    data: dict[str, Any]
    configs: dict[str, Any]


def model_names() -> list[str]:
    """The model types that `--model` takes."""
    from lm_eval.api.registry import model_registry

    register_models()
    return sorted(model_registry.keys())


def model_class(name: str) -> str:
    """The class of one of lm-eval's model types, which is not imported; "" where lm-eval does not say it."""
    import lm_eval.models

    return str(getattr(lm_eval.models, "MODEL_MAPPING", {}).get(name, "")).rpartition(":")[2]


def names_of(task: str, include_path: str | None = None) -> list[str]:
    """The tasks that a name or a pattern stands for, those in the folder `include_path` among them.

    Raises:
        UserError: nothing is called so; the nearest names are given.
    """
    if include_path is None and task in own_names():
        return [task]
    return match_tasks([task], manager_for([task], {}, include_path))


def task_data(task: str, metadata: Mapping[str, Any], include_path: str | None = None) -> tuple[int | None, str]:
    """How many documents a task has, None if it does not say, and a hash of them.

    Raises:
        UserError: its data is not to be had, or it refuses the metadata.
    """
    from unlearn_eval.harness.requests import only_looked_at  # imports the metrics

    try:
        with only_looked_at():
            loaded = manager_for([task], metadata, include_path).load([task])["tasks"].values()
            documents = [(own, list(own.eval_docs)) for own in loaded]
    except UserError:
        raise
    except Exception as error:  # datasets raises many kinds of errors for "not there"
        text = " ".join(str(error).split())[:200]
        raise UserError(
            f"the task {task} cannot be loaded: {type(error).__name__}: {text}", "check its data and its metadata"
        ) from error
    hashes = [getattr(own, "data_hash", None) or _hash_documents(found) for own, found in documents]
    return sum(len(found) for _, found in documents), hash_json(hashes)


def _hash_documents(documents: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(documents, sort_keys=True, default=str).encode()).hexdigest()


def match_tasks(tasks: Sequence[str], manager: Any) -> list[str]:
    """The tasks that names and patterns stand for.

    Raises:
        UserError: nothing is called so; the nearest names are given.
    """
    names: list[str] = manager.match_tasks(list(tasks))
    for task in tasks:
        if task not in names and not manager.match_tasks([task]):
            raise unknown_name("task", task, manager.all_tasks)
    return names


def parse_arguments(text: str) -> dict[str, Any]:
    """The arguments in a text `NAME=VALUE,NAME=VALUE,...`, read as `lm_eval --model_args` reads them.

    Raises:
        ValueError: an argument without a value.
    """
    from lm_eval.utils import simple_parse_args_string

    return dict(simple_parse_args_string(text))


def load_lm(model: str, arguments: Mapping[str, Any], batch_size: Any = 1, device: str | None = None) -> Any:
    """An lm-eval model; without a device on a GPU if there is one.

    Raises:
        UserError: an unknown type, device, number type or batch size, a package that it needs is not there, or the
            model cannot be loaded.
    """
    import torch
    from lm_eval.api.registry import get_model

    if model not in model_names():
        raise unknown_name("model type", model, model_names())
    check_batch_size(batch_size, auto=True)
    dtype = arguments.get("dtype", "auto")
    if dtype != "auto" and isinstance(dtype, str) and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise unknown_name("dtype", dtype, DTYPES)
    options = {"batch_size": batch_size, "device": device_named(device)}
    try:
        return get_model(model).create_from_arg_obj(dict(arguments), options)
    except ImportError as error:
        raise UserError(
            f"the model type '{model}' needs a package that is not there: {error}",
            f"install {error.name or 'it'} in this environment, or use --model hf or edited",
        ) from error
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        text = " ".join(str(error).split())[:200]
        raise UserError(
            f"the model {arguments.get('pretrained', model)} cannot be loaded: {text}",
            "give a folder, a hub id, or 'default'",
        ) from error


def evaluate(
    lm: Any,
    tasks: Sequence[str],
    *,
    include_path: str | None = None,
    limit: float | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    system_instruction: str | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    use_cache: str | None = None,
    seed: int = SEED,
) -> Evaluation:
    """Evaluate a loaded model on tasks, with lm-eval's `simple_evaluate` underneath.

    Raises:
        UserError: an unknown task, what the task itself refuses, or a chat template that the model does not have.
    """
    import lm_eval.api.model
    from lm_eval import simple_evaluate

    keep_responses_apart(lm_eval.api.model)
    if apply_chat_template and (tokenizer := getattr(lm, "tokenizer", None)) is not None:
        name = getattr(lm, "pretrained", None)
        PromptFormat.of(tokenizer, True, name if isinstance(name, str) else "the model")

    manager = small_manager(tasks, metadata or {}, include_path) or task_manager(include_path, metadata)
    names = match_tasks(tasks, manager)
    if apply_chat_template and system_instruction:  # lm-eval's own tasks, too: their models drop what has no place
        lm.apply_chat_template = ChatTemplate.of(lm.apply_chat_template)
    results = simple_evaluate(
        model=lm,
        tasks=names,
        num_fewshot=num_fewshot,
        limit=limit,
        use_cache=use_cache,
        apply_chat_template=apply_chat_template,
        system_instruction=system_instruction,
        gen_kwargs=dict(gen_kwargs) if gen_kwargs else None,
        task_manager=manager,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
        bootstrap_iters=1000,
    )
    if results is None:  # another rank than the first
        return Evaluation({}, {}, {}, {})
    return _collected(results)


def _collected(results: Mapping[str, Any]) -> Evaluation:
    data = {}
    for task in results["results"]:
        metadata = results["configs"].get(task, {}).get("metadata") or {}
        data[task] = {
            "hash": metadata.get("data_hash"),
            "split_sizes": metadata.get("split_sizes"),
            "n_documents": n_documents(results, task) or 0,
        }
    samples = {task: plain_samples(records) for task, records in results.get("samples", {}).items()}
    configs = {task: _portable(config) for task, config in results["configs"].items()}
    return Evaluation(metrics_of(results), samples, data, configs)


def _portable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A task's configuration without this machine's folders: our YAML is named from our tasks' folder on."""
    metadata = dict(config.get("metadata") or {})
    source = str(metadata.get("config_source", ""))
    if source.startswith(TASKS_FOLDER):
        metadata["config_source"] = "tasks" + source.removeprefix(TASKS_FOLDER)
    return {**config, "metadata": metadata}


def ask(lm: Any, questions: Sequence[Asked], prompt_format: PromptFormat, max_new_tokens: int = 24) -> list[str]:
    """What the model answers freely (greedily), asked as our tasks ask; one that thinks is given an empty trace."""
    from unlearn_eval.harness.instances import make_instance

    requests = []
    stops = [prompt_format.stops(question) for question in questions]
    for i, question in enumerate(questions):
        limit = question.max_tokens if isinstance(question, Prompt) else None
        length = max_new_tokens if limit is None else min(limit, max_new_tokens)
        options = {"until": list(stops[i]), "do_sample": False, "max_gen_toks": length}
        requests.append(make_instance("generate_until", {}, (prompt_format.render_to_answer(question), options), i))
    texts = lm.generate_until(requests, disable_tqdm=True)
    return [cut(str(text), own).strip() for text, own in zip(texts, stops, strict=True)]
