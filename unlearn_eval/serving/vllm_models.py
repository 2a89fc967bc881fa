"""Edited models in vLLM for lm-eval: `--model edited-vllm --model_args pretrained=BASE,edit=DIR`."""

from __future__ import annotations

from typing import Any

from unlearn_eval.edits.folder import check_names_base
from unlearn_eval.edits.load import load_edit
from unlearn_eval.edits.places import DESCRIPTION, local_folder
from unlearn_eval.harness.backends import vllm_class
from unlearn_eval.harness.plan import edit_arguments
from unlearn_eval.models.places import resolve_model
from unlearn_eval.serving.patching import find_vllm_version
from unlearn_eval.serving.vllm_requests import lend
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.provenance import sha256_of_file

find_vllm_version()  # before lm-eval's module, which asks for it
VLLM = vllm_class()
lend(VLLM)


class EditedVLLM(VLLM):  # type: ignore[misc, valid-type]
    """lm-eval's `vllm` model with an edit in it; it takes all of `vllm`'s arguments.

    Args:
        pretrained: the base model: hub id, folder, or `default`.
        edit: the folder of the edit, or `hub:ORG/NAME[@REVISION]`. Another base model than the one it was made on is
            refused by the engine.
        options: as for `vllm`; the arguments of the chat template are those of the edit, unless they are named.
    """

    def __init__(self, pretrained: str, edit: str | None = None, **options: Any) -> None:
        if not edit:
            raise UserError("the model 'edited-vllm' needs an edit", "give --model_args pretrained=BASE,edit=DIR")
        if options.get("lora_local_path"):
            raise UserError("the model 'edited-vllm' takes no lora_local_path=", "merge it into the base model first")
        edit = str(local_folder(edit))
        self.edit_folder, self.edit_info = edit, load_edit(edit).info
        check_names_base(self.edit_info.base)
        options = edit_arguments(self.edit_info, options)
        extra = dict(options.pop("model_loader_extra_config", None) or {})
        extra["base"] = resolve_model(pretrained)
        super().__init__(pretrained=edit, model_loader_extra_config=extra, **options)

    @property
    def answers_hash(self) -> str:
        """What the model's answers depend on: the edit, which names its base's weights."""
        return sha256_of_file(f"{self.edit_folder}/{DESCRIPTION}")
