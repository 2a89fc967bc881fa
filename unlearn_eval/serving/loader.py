"""Reads an edited model: the base's checkpoint, tensor by tensor, changed on the way."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from unlearn_eval.edits.folder import EDITED, read_description
from unlearn_eval.edits.load import load_edit
from unlearn_eval.models.places import resolve_model
from unlearn_eval.serving.checkpoint_stream import layout_of, patched
from unlearn_eval.serving.names import BASE
from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    from vllm.config import LoadConfig, ModelConfig

_OWN = ("base", "base_revision")


class EditedModelLoader(DefaultModelLoader):  # type: ignore[misc]
    """vLLM's own loader of the base's checkpoint, with an edit on top.

    In `model_loader_extra_config` it takes `base`, the base model's hub id or folder (by default the one that edit.json
    names), `base_revision`, and what vLLM's own takes.
    """

    def __init__(self, load_config: LoadConfig) -> None:
        options = dict(load_config.model_loader_extra_config or {})
        self._base = {name: options.pop(name) for name in _OWN if name in options}
        super().__init__(dataclasses.replace(load_config, load_format="auto", model_loader_extra_config=options))

    def download_model(self, model_config: ModelConfig) -> None:
        """Fetch the base's checkpoint."""
        super().download_model(self._of_base(model_config))

    def get_all_weights(self, model_config: ModelConfig, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """The edited tensors, by the names of the base's checkpoint."""
        edit = load_edit(model_config.model)
        base = self._of_base(model_config)
        layout = layout_of(base_config(Path(model_config.model)), edit.info.base.architecture)
        stream = super().get_all_weights(base, model)
        yield from patched(stream, edit, layout, model_config.dtype, self._is_first(), base.model)

    def _of_base(self, model_config: ModelConfig) -> Any:
        """The model's configuration, with the base's place."""
        info = read_description(model_config.model, check_files=False)["info"]["base"]  # the edit is read once, later
        name = self._base.get(BASE) or info.get("id")
        if not name:
            raise UserError(
                f"{model_config.model} does not say which model it was made on",
                'give it with --model-loader-extra-config \'{"base": "ORG/NAME"}\'',
            )
        own = copy.copy(model_config)
        try:
            own.model = resolve_model(name)
        except UserError as error:
            raise UserError(
                f"the edit's base is not here: {error.message}",
                'give its place with --model-loader-extra-config \'{"base": "FOLDER"}\'',
            ) from error
        own.revision = self._base.get("base_revision", info.get("revision") if name == info.get("id") else None)
        own.model_weights = ""
        return own

    @staticmethod
    def _is_first() -> bool:
        """Whether this process is the one that checks the base's hash: they all read the same files."""
        return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def base_config(folder: Path) -> Any:
    """The base model's configuration, from an edit's folder."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.architectures = [name.removeprefix(EDITED) for name in written.get("architectures") or ()]
    return config
