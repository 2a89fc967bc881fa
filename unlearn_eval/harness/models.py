"""Edited models for lm-eval: `--model edited --model_args pretrained=BASE,edit=DIR`."""

from __future__ import annotations

from typing import Any

from lm_eval.models.huggingface import HFLM

from unlearn_eval.edits import check_base, load_edit
from unlearn_eval.errors import UserError
from unlearn_eval.models import resolve_model
from unlearn_eval.provenance import hash_weights


class EditedLM(HFLM):  # type: ignore[misc]
    """lm-eval's `hf` model with an edit in its weights; it takes all of `hf`'s arguments.

    Args:
        pretrained: the base model: hub id, folder, or `default`.
        edit: the folder of the edit. Another base model than the one it was made on is refused.
        options: as for `hf`.
    """

    def __init__(self, pretrained: Any, edit: str | None = None, **options: Any) -> None:
        if not edit:
            raise UserError("the model 'edited' needs an edit", "give --model_args pretrained=BASE,edit=DIR")
        if options.get("peft") or options.get("delta"):
            raise UserError("the model 'edited' takes no peft= or delta=", "merge it into the base model first")
        loaded = load_edit(edit)  # before the model: a damaged folder is found in no time
        super().__init__(resolve_model(pretrained) if isinstance(pretrained, str) else pretrained, **options)
        check_base(loaded.info, self.model, str(pretrained))
        self.edit_folder, self.edit_info = edit, loaded.info
        loaded.apply(self.model)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Refuse a response cache (`--use_cache`) that other weights have filled: lm-eval would answer from it."""
        cache = cache_hook.dbdict
        if cache is not None:
            own = hash_weights(self.model).exact
            if len(cache) and cache.get("weights") != own:
                raise UserError(
                    "the response cache holds another model's answers (its weights differ or are not named)",
                    "give each model its own --use_cache path",
                )
            cache["weights"] = own
        super().set_cache_hook(cache_hook)

    def get_model_info(self) -> dict[str, Any]:
        """lm-eval's description of the model, and which edit is in it."""
        info: dict[str, Any] = super().get_model_info()
        return info | {"edit": self.edit_folder, "editor": self.edit_info.editor}
