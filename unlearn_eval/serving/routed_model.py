"""The architectures `Edited...`: vLLM's own, with a memory edit at one layer if the edit is one.

`EditedLlamaForCausalLM` and all others are made when they are asked for. The layer's forward pass ends in one opaque
operation, so that compilers see nothing of it, and another edit can take its place (`prepared`). What a step computes
is told to it by the model runner: V2's has a place for that (`get_model_state_cls`), and V1's steps are watched by the
worker (`routed_worker`).
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unlearn_eval.edits.folder import EDITED, read_description
from unlearn_eval.edits.load import load_edit
from unlearn_eval.edits.memory.edit import MemoryEdit, check_memory
from unlearn_eval.models.prompt_ends import said_prompt_end
from unlearn_eval.serving.door import OWN, rules_of
from unlearn_eval.serving.names import SCHEDULER, WORKER
from unlearn_eval.serving.routed_layer import Progress, RoutedLayer, Silence, Slots, step_of
from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.mm.encoder_cache import EncoderCache
    from vllm.v1.worker.gpu.states import RequestState
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

_LAYER, _MODULE = "unlearn_eval_layer", "unlearn_eval_module"  # of a model
_NUMBER = "unlearn_eval_number"  # of a module
_layers: weakref.WeakValueDictionary[int, RoutedLayer | Silence] = weakref.WeakValueDictionary()


def __getattr__(name: str) -> Any:
    """`Edited...`: a class of vLLM's, edited."""
    if not name.startswith(EDITED):
        raise AttributeError(name)
    from vllm.model_executor.models import ModelRegistry

    known = ModelRegistry.models.get(name.removeprefix(EDITED))
    if known is None:
        raise AttributeError(name)
    return _edited(known.load_model_cls(), name)


@functools.cache
def _edited(stock: type[nn.Module], name: str) -> Any:
    def __init__(self: nn.Module, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        stock.__init__(self, vllm_config=vllm_config, prefix=prefix)
        folder = Path(vllm_config.model_config.model)
        rules = rules_of(vllm_config)
        if rules is not None and rules.inserts:  # read by the engine's core
            _check_inserting(vllm_config)
        elif read_description(folder, check_files=False)["kind"] == "memory":  # other kinds are the loader's to read
            _check_settled(vllm_config)
            _put_in(self, load_routed(folder), vllm_config)

    return type(name, (stock,), {"__init__": __init__, "__module__": __name__, "__qualname__": name})


def _check_settled(vllm_config: VllmConfig) -> None:
    """What `plugin.settle` has set must still hold where the model is built."""
    parallel = vllm_config.parallel_config
    if vllm_config.cache_config.enable_prefix_caching or parallel.world_size > 1 or vllm_config.lora_config:
        raise UserError(
            "a memory edit is to be served with prefix caching, in parallel, or with LoRA",
            "leave these out: its answers would be wrong",
        )
    _check_worker(vllm_config)


def _check_inserting(vllm_config: VllmConfig) -> None:
    """The same of an edit that inserts."""
    if vllm_config.scheduler_config.scheduler_cls != SCHEDULER or vllm_config.lora_config:
        raise UserError(
            "a memory edit that adds to prompts is to be served with another scheduler, or with LoRA",
            "leave these out: its answers would be wrong",
        )
    _check_worker(vllm_config)


def _check_worker(vllm_config: VllmConfig) -> None:
    parallel = vllm_config.parallel_config
    if parallel.worker_cls != WORKER:
        raise UserError(
            f"a memory edit is to be served by the worker {parallel.worker_cls}, which tells it of no step",
            "leave out worker_cls",
        )


# The layer -------------------------------------------------------------------------------------------------


def load_routed(folder: Path) -> MemoryEdit:
    """The memory edit in a folder (errors as `load_edit`).

    Raises:
        UserError: it stands beside no layer.
    """
    edit = load_edit(folder)
    if not isinstance(edit, MemoryEdit):
        raise UserError(
            f"{folder} is an edit of {edit.info.editor}, which adds to prompts: no layer of this engine can take it",
            f"start a server for it: unlearn-eval serve {folder}",
        )
    return edit


def _put_in(model: nn.Module, edit: MemoryEdit, vllm_config: VllmConfig) -> None:
    """Let the edited layer's forward pass end in our operation."""
    module = _module_of(model, edit)
    model.__dict__["get_model_state_cls"] = _model_state_cls
    _serve(model, module, _layer_of(module, edit, vllm_config), vllm_config)


def prepared(model: nn.Module, folder: Path, vllm_config: VllmConfig) -> Callable[[], None]:
    """What puts another edit into a model that was built with a memory edit, once nothing runs.

    Nothing changes before it is called, and it cannot fail. In the place of a memory an edit of weights puts silence;
    its weights are the loader's to read.

    Raises:
        UserError: the edit does not fit the model, or the device's memory.
    """
    if read_description(folder, check_files=False)["kind"] == "memory":
        edit = load_routed(folder)  # refuses files that have changed
        module = _module_of(model, edit)
        return functools.partial(_serve, model, module, _layer_of(module, edit, vllm_config), vllm_config)
    read_description(folder)  # refuses files that have changed
    silence = Silence(vllm_config.scheduler_config.max_num_seqs)
    return functools.partial(_serve, model, vars(model)[_MODULE], silence, vllm_config)


def _module_of(model: nn.Module, edit: MemoryEdit) -> Any:
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    name = mapper._map_name(edit.module) if mapper is not None else edit.module
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise UserError(
            f"the edit is at {edit.module}, which {type(model).__name__} of vLLM does not have",
            "serve it with Hugging Face: --model edited",
        ) from error
    d_out, d_in = edit.store.shape
    if (getattr(module, "output_size", None), getattr(module, "input_size", None)) != (d_out, d_in):
        raise UserError(f"the edit's memory fits a module of {d_out}×{d_in}, and {name} is another", "give its base")
    return module


def _layer_of(module: nn.Module, edit: MemoryEdit, vllm_config: VllmConfig) -> RoutedLayer:
    weight: Tensor = module.weight  # type: ignore[assignment]
    check_memory(edit.store.n_bytes(weight.dtype), weight.device, f"the {edit.store.n} memories of this edit")
    scheduler = vllm_config.scheduler_config
    memory = edit.store.at(weight.device, weight.dtype)
    inputs = torch.zeros(1, edit.store.shape[1], dtype=weight.dtype, device=weight.device)
    # CUDA graphs pad a step, also beyond the number of tokens that are ever scheduled.
    sizes = getattr(vllm_config.compilation_config, "cudagraph_capture_sizes", None) or [0]
    n_tokens = max(scheduler.max_num_batched_tokens, *sizes)
    return RoutedLayer(memory, scheduler.max_num_seqs, n_tokens, inputs)


def _serve(model: nn.Module, module: nn.Module, layer: RoutedLayer | Silence, vllm_config: VllmConfig) -> None:
    """Let this layer decide, at this module and at no other."""
    own, number = model.__dict__, int(vllm_config.additional_config[OWN]["number"])
    _layers[number] = own[_LAYER] = layer
    own["unlearn_eval_slots"], own["unlearn_eval_progress"] = Slots(layer.nobody), Progress()
    before = own.get(_MODULE)
    if before is module:
        return
    if before is not None:
        before.__class__ = type(before).__bases__[0]
    own[_MODULE] = module
    setattr(module, _NUMBER, number)
    kind: Any = type(module)
    module.__class__ = _routed(kind)


@functools.cache
def _routed(linear: type[Any]) -> Any:
    def forward(self: nn.Module, input_: Tensor) -> Any:
        found = linear.forward(self, input_)
        output, *rest = found if isinstance(found, tuple) else (found,)
        bias = rest[0] if rest else None
        if bias is not None:  # of layers that leave it to their caller
            raise UserError("the edited layer's bias is added elsewhere", "serve it with Hugging Face: --model edited")
        changed = torch.ops.unlearn_eval.route(input_, output, self.unlearn_eval_number)
        return (changed, *rest) if isinstance(found, tuple) else changed

    return type(f"Routed{linear.__name__}", (linear,), {"forward": forward, "__module__": __name__})


_library: Any = torch.library.Library(  # type: ignore[no-untyped-call]
    "unlearn_eval", "FRAGMENT"
)


def _route(inputs: Tensor, output: Tensor, number: int) -> Tensor:
    changed: Tensor = _layers[number](inputs, output)
    return changed if changed is not output else output.clone()


_library.define("route(Tensor inputs, Tensor output, int number) -> Tensor")
_library.impl("route", _route, "CompositeExplicitAutograd")
_library._register_fake("route", lambda inputs, output, number: torch.empty_like(output))


# What each step computes: V1 ---------------------------------------------------------------------------------


def step(runner: GPUModelRunner, scheduler_output: SchedulerOutput, scheduled: Sequence[int]) -> None:
    """Tell a memory edit's layer of a step of the V1 model runner."""
    model = runner.get_model()
    if _LAYER in vars(model):
        _tell_v1(model, runner, scheduler_output, scheduled)


def rest(runner: GPUModelRunner) -> None:
    """Tell it that the next pass is nobody's."""
    layer = vars(runner.get_model()).get(_LAYER)
    if layer is not None:
        layer.rest()


def _tell_v1(
    model: nn.Module, runner: GPUModelRunner, scheduler_output: SchedulerOutput, scheduled: Sequence[int]
) -> None:
    own = vars(model)
    slots, progress, layer = own["unlearn_eval_slots"], own["unlearn_eval_progress"], own[_LAYER]
    # Which have finished is said in steps that may run nothing, and then come not by here.
    gone = [name for name in slots if name not in runner.requests]
    gone += [*scheduler_output.finished_req_ids, *(getattr(scheduler_output, "preempted_req_ids", None) or ())]
    slots.free(gone)
    progress.forget(gone)
    batch = runner.input_batch
    names = list(batch.req_ids[: batch.num_reqs])
    computed = batch.num_computed_tokens_cpu[: len(names)]
    lengths = batch.num_prompt_tokens[: len(names)]
    scoring = is_scoring(runner.vllm_config)
    ends = [
        last_of_prompt(runner.requests[name].sampling_params, int(n), scoring)
        for name, n in zip(names, lengths, strict=True)
    ]
    progress.check(names, scheduled, computed)
    layer.begin(step_of([slots.of(name) for name in names], scheduled, computed, ends))


def last_of_prompt(sampling: SamplingParams, n: int, scoring: bool) -> int:
    """The position of the last token of a request's prompt; in an engine that scores, a request says how long it is."""
    return ((said_prompt_end(sampling, n) if scoring else None) or n) - 1


def is_scoring(vllm_config: VllmConfig) -> bool:
    """Whether an engine was started to score answers; what a request of any other says about its prompt is ignored."""
    rules = rules_of(vllm_config)
    return rules is not None and rules.scoring


# What each step computes: V2 ---------------------------------------------------------------------------------


@functools.cache
def _model_state_cls() -> Any:
    from vllm.v1.worker.gpu.model_states.default import DefaultModelState

    class RoutedModelState(DefaultModelState):  # type: ignore[misc]
        """V2's per-request state: where each request's prompt ends."""

        def __init__(
            self, vllm_config: VllmConfig, model: nn.Module, encoder_cache: EncoderCache | None, device: torch.device
        ) -> None:
            super().__init__(vllm_config, model, encoder_cache, device)
            self._progress = Progress()
            self._last: dict[str, int] = {}
            self._scoring = is_scoring(vllm_config)

        def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
            super().add_request(req_index, new_req_data)
            n = new_req_data.prompt_len if hasattr(new_req_data, "prompt_len") else len(new_req_data.prompt_token_ids)
            self._last[new_req_data.req_id] = last_of_prompt(new_req_data.sampling_params, n, self._scoring)
            self._progress.forget([new_req_data.req_id])

        def remove_request(self, req_id: str) -> None:
            super().remove_request(req_id)
            self._last.pop(req_id, None)
            self._progress.forget([req_id])

        def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, Any]:
            found: dict[str, Any] = super().prepare_inputs(input_batch, req_states)
            layer, names = vars(self.model)[_LAYER], input_batch.req_ids
            if self._last.keys().isdisjoint(names):  # made up, to measure memory or to warm up
                layer.rest()
                return found
            slots = [int(i) for i in input_batch.idx_mapping_np]
            scheduled, computed = input_batch.num_scheduled_tokens, input_batch.num_computed_tokens_np
            self._progress.check(names, scheduled, computed)
            layer.begin(step_of(slots, scheduled, computed, [self._last[name] for name in names]))
            return found

        def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
            vars(self.model)[_LAYER].rest()
            found: dict[str, Any] = super().prepare_dummy_inputs(num_reqs, num_tokens)
            return found

    return RoutedModelState
