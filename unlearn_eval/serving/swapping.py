"""Which edit may take the place of another in a running engine, and why not.

What an engine was started with is what it can serve: one that was started with a memory edit has everything off that
would make a memory wrong, so that it can serve edits of weights too; one that was started with an edit of weights may
reuse keys and values between requests, and none of its layers decides.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_eval.edits.folder import check_names_base, read_description
from unlearn_eval.edits.memory.edit import SETTINGS
from unlearn_eval.edits.memory.read import adds_to_prompts
from unlearn_eval.edits.memory.store import POSITIONS
from unlearn_eval.serving.names import EXTENSION
from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    from vllm.config import VllmConfig


@dataclass(frozen=True)
class EngineFacts:
    """What an engine cannot change while it runs.

    Attributes:
        module: at which a memory decides, or did before an edit of weights took its place; None if the engine was
            started with an edit of weights. In an eager engine it may be another one later.
        eager: whether its layers are called one by one, and not compiled.
        graphs: whether steps are replayed as CUDA graphs.
        whole_prompts: whether each prompt is run in one step.
        extension: the class by which its workers were extended.
    """

    module: str | None
    eager: bool
    graphs: bool
    whole_prompts: bool
    extension: str


def facts_of(vllm_config: VllmConfig, folder: Path) -> EngineFacts:
    """Those of an engine that was started with the edit in this folder."""
    scheduler, compilation = vllm_config.scheduler_config, vllm_config.compilation_config
    whole = (
        not scheduler.enable_chunked_prefill
        and not scheduler.long_prefill_token_threshold
        and scheduler.max_num_batched_tokens >= vllm_config.model_config.max_model_len
    )
    return EngineFacts(
        module=str(_settings(folder)["module"]) if is_memory(folder) else None,
        eager=bool(vllm_config.model_config.enforce_eager),
        graphs=getattr(compilation.cudagraph_mode, "name", "NONE") != "NONE",
        whole_prompts=whole,
        extension=vllm_config.parallel_config.worker_extension_cls,
    )


def is_memory(folder: Path) -> bool:
    """Whether an edit's folder holds a memory."""
    return bool(read_description(folder, check_files=False)["kind"] == "memory")


def check_swap(served: Path, wanted: Path, engine: EngineFacts) -> EngineFacts:
    """Refuse an edit that cannot take the place of another; else what holds of the engine afterwards.

    Args:
        served: the folder of the edit that is in the engine.
        wanted: of the one that is to be.
        engine: what it is like.

    Raises:
        UserError: with the reason, and how to serve the edit nevertheless.
    """
    old, new = read_description(served, check_files=False), read_description(wanted)
    anew = f"start a server for it: unlearn-eval serve {wanted}"
    check_names_base(new["info"]["base"])
    read_first = [folder for folder in (wanted, served) if is_memory(folder) and adds_to_prompts(folder)]
    if read_first:
        raise UserError(
            f"{wanted} cannot take the place of {served}: {read_first[0]} adds to prompts (notes, prefixes), and "
            "such an edit is read when its engine starts",
            anew,
        )
    own, other = (found["info"]["base"].get("canonical_hash") for found in (old, new))
    if own != other:
        raise UserError(
            f"{wanted} was made on {new['info']['base'].get('id')} (weights {str(other)[:12]}), and this server's base "
            f"has other weights ({str(own)[:12]})",
            anew,
        )
    if new["kind"] != "memory":
        if engine.module is not None:
            _check_workers(wanted, engine, anew)
        return engine
    if engine.module is None:
        raise UserError(
            f"{wanted} is a memory edit, and this server was started with an edit of weights: no layer of it decides, "
            "and it may reuse keys and values between requests",
            f"{anew}; it can take edits of weights afterwards",
        )
    _check_workers(wanted, engine, anew)
    settings = _settings(wanted)
    if POSITIONS[settings["positions"]].before and not engine.whole_prompts:
        raise UserError(
            f"{wanted} changes the prompt's own tokens, so a prompt must be run in one step, and this server may take "
            "several",
            anew,
        )
    if settings["module"] != engine.module and not engine.eager:
        raise UserError(
            f"{wanted} is a memory at {settings['module']}, and this server was compiled with one at {engine.module}",
            f"{anew}; with -- --enforce-eager a server takes memories at all modules",
        )
    return dataclasses.replace(engine, module=settings["module"])


def _check_workers(wanted: Path, engine: EngineFacts, anew: str) -> None:
    """Refuse where workers cannot exchange a memory."""
    if engine.extension != EXTENSION:
        raise UserError(
            f"{wanted} cannot be brought into this server: its workers were extended by {engine.extension} instead of "
            f"{EXTENSION}, which exchanges memories",
            f"{anew}, without --worker-extension-cls",
        )
    if engine.graphs:
        raise UserError(
            f"{wanted} cannot be brought into this server: the memory that it was started with is part of its CUDA "
            "graphs",
            f"{anew}; with -- --enforce-eager a server exchanges memories",
        )


def _settings(folder: Path) -> dict[str, Any]:
    """What `memory.json` says."""
    found: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    return found
