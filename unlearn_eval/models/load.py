"""A base model with its tokenizer: from a hub id, a folder, a GGUF file, or the small default model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_eval.models.assets import hub_reachable
from unlearn_eval.models.default_model import model_source
from unlearn_eval.models.gguf import converted_gguf
from unlearn_eval.models.places import resolve_model
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.weights import WeightsHash, check_finite, known_weights
from unlearn_eval.utils.errors import UserError, is_out_of_memory, unknown_name

if TYPE_CHECKING:  # paths are resolved without torch
    from collections.abc import Mapping

    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from unlearn_eval.models.anatomy import Anatomy, Blocks

DTYPES = ("auto", "float32", "bfloat16", "float16")
Check = Callable[[Any], object]


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be edited or asked: eval mode, no gradients.

    Attributes:
        model: the transformers model.
        tokenizer: its tokenizer, which has a pad token and, where the model needs one, adds one BOS.
        name: what the user called it ("default", a hub id, a path).
        revision: the hub's commit, or None for what is not from the hub.
        path: the hub id or path that was loaded.
        source: `source.json` of the default model, else None.
        notes: what was changed on loading, one sentence each, for the result file.

    To see that a model was restored bit for bit, hash it anew (`weights.hash_weights`).
    """

    model: Any
    tokenizer: Any
    name: str
    revision: str | None
    path: str
    source: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"LoadedModel({self.name!r}, {type(self.model).__name__}, {self.model.dtype}, {self.model.device})"

    @property
    def weights(self) -> WeightsHash:
        """Hashes of the weights: computed once, and again after a change that was not undone."""
        return known_weights(self.model)

    @cached_property
    def anatomy(self) -> Anatomy:
        """Where the model keeps its blocks and projections.

        Raises:
            UserError: they are not found (see `anatomy.anatomy`).
        """
        from unlearn_eval.models.anatomy import anatomy

        return anatomy(self.model)

    @cached_property
    def blocks(self) -> Blocks:
        """Where the model keeps its blocks, which may be mixtures of experts.

        Raises:
            UserError: they are not found (see `anatomy.blocks_of`).
        """
        from unlearn_eval.models.anatomy import blocks_of

        return blocks_of(self.model)

    @property
    def max_length(self) -> int | None:
        """Tokens that fit the model's context; None if its configuration does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def device(self) -> torch.device:
        """Device of the inputs."""
        return self.model.device  # type: ignore[no-any-return]

    @property
    def device_map(self) -> dict[str, Any]:
        """Device of each module; of a model that is on one device the empty name stands for all of it."""
        return dict(getattr(self.model, "hf_device_map", None) or {"": self.device})

    def prompt_format(
        self,
        chat: bool | None = None,
        system: str | None = None,
        template_arguments: Mapping[str, Any] | None = None,
    ) -> PromptFormat:
        """How the model is prompted; by default through its chat template if there is one.

        Raises:
            UserError: the chat template is asked for, and there is none; or it does not read one of its arguments.
        """
        return PromptFormat.of(self.tokenizer, chat, self.name, system, template_arguments)

    def describe(self, weights: WeightsHash | None) -> dict[str, Any]:
        """The `model` entry of a result; `weights` are the hashes of those that answer, None if they are not known."""
        return {
            "id": self.name,
            "revision": self.revision,
            "path": self.path,
            "source": self.source,
            "weights_hash": None if weights is None else weights.exact,
            "canonical_weights_hash": None if weights is None else weights.canonical,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "n_parameters": sum(p.numel() for p in self.model.parameters()),
            "notes": list(self.notes),
        }


def load_model(
    name: str,
    dtype: str = "auto",
    device: str | None = "cpu",
    revision: str | None = None,
    check: Check | None = None,
) -> LoadedModel:
    """The model and tokenizer called `name`; a checkpoint's own code is never run.

    Args:
        name: what `resolve_model` takes.
        dtype: one of `DTYPES`; "auto" is the checkpoint's own.
        device: "cpu", "cuda", "cuda:1"; None is CUDA if there is any, else the CPU.
        revision: a hub model's branch, tag or commit.
        check: Check of the architecture: it is given the model without weights before any weight is read (of a GGUF
            file the model that was read), and refuses what it cannot use by a `UserError`.

    Raises:
        UserError: if it cannot be had, is quantized, is no causal language model, lacks weights, or as `check` does.
    """
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    device = device_named(device)
    path = resolve_model(name)
    notes: list[str]
    if path.lower().endswith(".gguf") and Path(path).is_file():
        model, tokenizer = or_user_error(name, converted_gguf, Path(path), dtype)
        if check is not None:
            check(model)
        notes = ["read from a GGUF file, dequantized", *_one_bos(tokenizer, model.config)]
    else:
        model, tokenizer, notes = or_user_error(name, _load_checkpoint, path, dtype, revision, check)
    notes += _pad_token(tokenizer)
    model = model.to(device).eval().requires_grad_(False)
    check_finite(model, name)
    read_together(model)
    commit = None if Path(path).exists() else getattr(model.config, "_commit_hash", None) or revision
    return LoadedModel(model, tokenizer, name, commit, path, model_source(path), tuple(notes))


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """The causal language model of a configuration, without weights: its modules take no memory and compute nothing."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return model


def read_together(model: PreTrainedModel) -> None:
    """Let a model's head read states that lie together in memory; up to rounding the numbers are the same.

    Of a part of each row's states (the last ones, when text is generated, or an answer's, when it is trained) PyTorch
    makes one product for each row on a CPU, and copies the weights for it: in bfloat16 that takes 200 times as long.
    """
    head = model.get_output_embeddings()
    if head is not None and _together not in head._forward_pre_hooks.values():
        head.register_forward_pre_hook(_together)


def _together(head: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(own.contiguous() for own in arguments)


def device_named(device: str | None) -> str:
    """A device by its name; without one a GPU if there is one, else the CPU.

    Raises:
        UserError: there is no such device.
    """
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"unknown device '{device}'", "allowed: cpu, cuda, cuda:0 …") from error
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device '{device}' asked for, but PyTorch sees {torch.cuda.device_count()} CUDA devices",
            "use --device cpu, or install PyTorch for your GPU's driver",
        )
    return device


def _load_checkpoint(path: str, dtype: str, revision: str | None, check: Check | None) -> tuple[Any, Any, list[str]]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"trust_remote_code": False, "revision": revision}
    if not Path(path).exists() and not hub_reachable():
        options["local_files_only"] = True  # what the hub's cache holds, without a minute of retries
    config = AutoConfig.from_pretrained(path, **options)
    if (quantization := getattr(config, "quantization_config", None)) is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise UserError(
            f"{path} is quantized ({method or 'unknown method'}): its weights cannot be edited or hashed",
            "give the checkpoint from which it was quantized",
        )
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{path} is an encoder-decoder ({config.model_type}), not a causal language model",
            "give a decoder-only model",
        )
    if check is not None:
        check(skeleton(config))
    tokenizer = AutoTokenizer.from_pretrained(path, **options)
    model, loading = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True, **options)
    if missing := sorted(loading.get("missing_keys", ())):
        # Transformers fills these with random numbers and goes on.
        raise UserError(
            f"{path} lacks {len(missing)} of the model's weights, first '{missing[0]}'",
            "the download is incomplete, or it is not a causal language model",
        )
    extra = sorted(loading.get("unexpected_keys", ()))
    return model, tokenizer, [f"{len(extra)} weights were not used, first '{extra[0]}'"] if extra else []


def or_user_error(name: str, load: Callable[..., Any], *arguments: Any) -> Any:
    """`load(*arguments)`; what transformers says of a missing or unreadable model, in two lines."""
    try:
        return load(*arguments)
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        text = " ".join(str(error).split())
        reason, hint = (
            text[:200],
            "run again with a model that transformers can load as a causal language model",
        )
        if "trust_remote_code" in text or "custom code" in text:
            reason = "it needs Python code from its own repository, which is never run here"
            hint = "give a model whose architecture is part of transformers"
        elif isinstance(error, OSError) and not Path(name).expanduser().exists():
            reason = "there is no such folder, and the hub is out of reach, has no such model or wants a login"
            hint = "check the name and the network (a gated model needs: hf auth login), or give 'default'"
        raise UserError(f"the model '{name}' cannot be loaded: {reason}", hint) from error


def _pad_token(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Gives a tokenizer without a pad token one, so that questions can be batched; says so."""
    if tokenizer.pad_token_id is not None:
        return []
    tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise UserError("the tokenizer has no pad, end or unknown token", "add a pad token to its files")
    return [f"the tokenizer has no pad token: '{tokenizer.pad_token}' is used"]


def _one_bos(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> list[str]:
    """Makes a Gemma tokenizer read from GGUF add exactly one BOS, without which Gemma talks nonsense."""
    bos = tokenizer.bos_token_id
    if bos is None or not str(config.model_type).startswith("gemma"):
        return []
    if tokenizer.encode("a")[:1] == [bos]:
        return []
    from tokenizers.processors import TemplateProcessing

    token = tokenizer.bos_token
    with suppress(AttributeError):
        tokenizer.add_bos_token = True  # kept when the tokenizer is saved
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token}:1 $B:1", special_tokens=[(token, bos)]
    )
    ids = tokenizer.encode("a")
    assert ids.count(bos) == 1, ids
    assert ids[0] == bos, ids
    return [f"the GGUF file's tokenizer adds no BOS: set to add one '{token}'"]
