"""vLLM's plug-in (entry point `vllm.general_plugins`): every process of an engine knows the architectures `Edited...`.

Where it is missing, vLLM refuses an edit's folder, because nobody knows its architecture.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_eval.edits.folder import EDITED, check_names_base, read_description
from unlearn_eval.edits.memory.read import adds_to_prompts
from unlearn_eval.edits.places import DESCRIPTION
from unlearn_eval.serving import door
from unlearn_eval.serving.door import MEMORY, OWN, SCORING
from unlearn_eval.serving.names import EXTENSION, LOAD_FORMAT, MODELS, SCHEDULER, WORKER
from unlearn_eval.serving.patching import PATCHES, register_edited
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.terminal import say

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

LOWEST, BELOW = (0, 32), (0, 34)
_numbers = itertools.count(1)


def register() -> None:
    """Make the architectures known; harmless when repeated.

    In a vLLM that is built otherwise they stay unknown, so that it refuses edits; it serves other models as before.
    """
    try:
        PATCHES["edited-architectures"].check()
        from unlearn_eval.serving.loader import EditedModelLoader

        register_edited(EDITED, MODELS, LOAD_FORMAT, EditedModelLoader, _config_of)
    except UserError as error:
        say(f"unlearn-eval: edited models cannot be served: {' '.join(str(error).split())}")


def _config_of(stock: str) -> Any:
    """The hook by which vLLM lets an architecture change and refuse an engine's settings."""
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    class EditedConfig(VerifyAndUpdateConfig):  # type: ignore[misc]
        @staticmethod
        def verify_and_update_config(vllm_config: VllmConfig) -> None:
            own = MODELS_CONFIG_MAP.get(stock)
            if own is not None:
                own.verify_and_update_config(vllm_config)
            settle(vllm_config, stock)

        @staticmethod
        def verify_and_update_model_config(model_config: ModelConfig) -> None:
            own = MODELS_CONFIG_MAP.get(stock)
            if own is not None:
                own.verify_and_update_model_config(model_config)

    return EditedConfig


def settle(vllm_config: VllmConfig, stock: str) -> None:
    """Set what an edited model needs, and refuse what would make it wrong.

    Raises:
        UserError: with what to change.
    """
    check_version()
    _check_ours(stock)
    folder = Path(vllm_config.model_config.model)
    description = read_description(folder)
    check_names_base(description["info"]["base"])
    if vllm_config.model_config.quantization is not None:
        raise UserError(
            f"{folder} is to be served with {vllm_config.model_config.quantization} quantization, and an edit fits "
            "full weights only",
            "leave out the quantization, or export the edited model (unlearn-eval export --merged) and quantize that",
        )
    load = vllm_config.load_config
    if load.load_format not in ("auto", "hf", "safetensors", LOAD_FORMAT):
        raise UserError(f"an edited model cannot be read with load_format={load.load_format}", "leave it at auto")
    load.load_format = LOAD_FORMAT
    more = vllm_config.additional_config or {}
    # Part of the key under which vLLM keeps compiled code; the number tells engines of one process apart.
    own = {"edit": edit_id(folder), "number": next(_numbers), MEMORY: description["kind"] == "memory"}
    own[SCORING] = (more.get(OWN) or {}).get(SCORING) is True
    vllm_config.additional_config = {**more, OWN: own}
    door.install()
    if not vllm_config.parallel_config.worker_extension_cls:  # else somebody's own: memories cannot be swapped then
        vllm_config.parallel_config.worker_extension_cls = EXTENSION
    if description["kind"] == "memory":
        _settle_memory(vllm_config, folder)


def _settle_memory(vllm_config: VllmConfig, folder: Path) -> None:
    from unlearn_eval.edits.memory.store import POSITIONS
    from unlearn_eval.serving.routed_model import load_routed

    inserts, parallel = adds_to_prompts(folder), vllm_config.parallel_config
    _refuse(
        folder,
        {
            "LoRA": vllm_config.lora_config is not None,
            "speculative decoding": vllm_config.speculative_config is not None,
            "transfer of keys and values": vllm_config.kv_transfer_config is not None,
        },
    )
    if parallel.worker_cls not in ("auto", WORKER):
        raise UserError(
            f"the memory edit {folder} needs a worker that tells it of each step, and worker_cls={parallel.worker_cls} "
            "is another",
            "leave out worker_cls",
        )
    parallel.worker_cls = WORKER
    if inserts:
        _settle_inserting(vllm_config, folder)
        return
    edit = load_routed(folder)
    refused = {
        "tensor parallelism": parallel.tensor_parallel_size > 1,
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "context parallelism": getattr(parallel, "decode_context_parallel_size", 1) > 1
        or getattr(parallel, "prefill_context_parallel_size", 1) > 1,
        "micro-batches": bool(getattr(parallel, "enable_dbo", False)),
    }
    _refuse(folder, refused)
    # Blocks that hold an edited answer's keys and values would be reused where another decision holds.
    vllm_config.cache_config.enable_prefix_caching = False
    if POSITIONS[getattr(edit.store, "positions")].before:  # noqa: B009 (not of the protocol)
        scheduler = vllm_config.scheduler_config
        longest = vllm_config.model_config.max_model_len
        if scheduler.max_num_batched_tokens < longest:
            raise UserError(
                f"the memory edit {folder} changes the prompt's own tokens, so a prompt must be run in one step, and "
                f"max_num_batched_tokens ({scheduler.max_num_batched_tokens}) is below max_model_len ({longest})",
                f"give --max-num-batched-tokens {longest}, or a smaller --max-model-len",
            )
        scheduler.enable_chunked_prefill = False
        scheduler.long_prefill_token_threshold = 0
    compilation = vllm_config.compilation_config
    if hasattr(compilation, "cudagraph_mode") and getattr(compilation.cudagraph_mode, "name", "") not in ("NONE", ""):
        from vllm.config.compilation import CUDAGraphMode

        compilation.cudagraph_mode = CUDAGraphMode.PIECEWISE  # the operation runs between graphs


def _refuse(folder: Path, features: Mapping[str, bool]) -> None:
    """Refuse those of an engine's features that are wanted."""
    for feature, wanted in features.items():
        if wanted:
            raise UserError(
                f"the memory edit {folder} cannot be served with {feature}: its answers would be wrong", "leave it out"
            )


def _settle_inserting(vllm_config: VllmConfig, folder: Path) -> None:
    """The settings of an engine whose core adds to prompts: it may do everything else as it does without an edit."""
    from unlearn_eval.serving.inserted import load_inserting

    store, scheduler = load_inserting(folder).store, vllm_config.scheduler_config
    if scheduler.scheduler_cls not in (None, SCHEDULER):
        raise UserError(
            f"the memory edit {folder} reads requests before they are scheduled, and "
            f"scheduler_cls={scheduler.scheduler_cls} is another's",
            "leave out scheduler_cls",
        )
    scheduler.scheduler_cls = SCHEDULER
    # One at least: an edit without notes, too, is not a layer's.
    own = {door.INSERTS: max(1, store.longest), door.VECTORS: store.has_vectors}
    vllm_config.additional_config[OWN].update(own)


def edit_id(folder: Path) -> str:
    """What an edit is known by: the SHA-256 of its description, which has that of all its other files."""
    return hashlib.sha256((folder / DESCRIPTION).read_bytes()).hexdigest()


def check_version() -> None:
    """Refuse a vLLM that this was not made for.

    Raises:
        UserError: with the range.
    """
    import vllm

    parts = tuple(int(part) for part in vllm.__version__.split("+")[0].split(".")[:2])
    if not LOWEST <= parts < BELOW:
        lowest, below = (".".join(map(str, v)) for v in (LOWEST, BELOW))
        raise UserError(
            f"this is vLLM {vllm.__version__}, and edited models are served with {lowest} up to (not with) {below}",
            f"pip install 'vllm>={lowest},<{below}'",
        )


def _check_ours(stock: str) -> None:
    from vllm.model_executor.models import ModelRegistry

    known = ModelRegistry.models.get(EDITED + stock)
    place = getattr(known, "module_name", getattr(getattr(known, "model_cls", None), "__module__", None))
    if place != MODELS:
        raise UserError(
            f"another plug-in ({place}) claims the architecture {EDITED}{stock} too",
            "name the one that you want in VLLM_PLUGINS, e.g. VLLM_PLUGINS=unlearn_eval",
        )
