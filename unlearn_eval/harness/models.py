"""Edited models for lm-eval: `--model edited --model_args pretrained=BASE,edit=DIR`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.models.huggingface import HFLM

from unlearn_eval.edits.base import DENSE, MEMORY
from unlearn_eval.edits.load import check_base, load_edit
from unlearn_eval.edits.places import DESCRIPTION, local_folder
from unlearn_eval.harness.plan import edit_arguments
from unlearn_eval.harness.requests import install, score_tokens
from unlearn_eval.models.places import resolve_model
from unlearn_eval.models.weights import hash_weights
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.provenance import hash_json, sha256_of_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Change = Callable[[], AbstractContextManager[Any]]


def lent_lm(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    template_arguments: Mapping[str, Any] | None = None,
) -> HFLM:
    """lm-eval's `hf` model around one that is loaded already."""
    install()
    arguments = dict(template_arguments or {})
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, chat_template_args=arguments)


class EditedLM(HFLM):  # type: ignore[misc]
    """lm-eval's `hf` model with an edit in it; it takes all of `hf`'s arguments.

    A memory edit must know where each prompt ends (`routing.py`). `generate_until` and `answer_logprobs` say so by
    themselves; `loglikelihood` is scored here, since lm-eval's own hands over context and continuation as one.

    Args:
        pretrained: the base model: hub id, folder, or `default`; or a loaded one, for which `take_off` undoes the edit.
        edit: the folder of the edit, or `hub:ORG/NAME[@REVISION]`. Another base model than the one it was made on is
            refused.
        any_base: whether an edit may leave open which model it was made on.
        options: as for `hf`; the arguments of the chat template are those of the edit, unless they are named.
    """

    def __init__(self, pretrained: Any, edit: str | None = None, any_base: bool = False, **options: Any) -> None:
        if not edit:
            raise UserError("the model 'edited' needs an edit", "give --model_args pretrained=BASE,edit=DIR")
        if options.get("peft") or options.get("delta"):
            raise UserError("the model 'edited' takes no peft= or delta=", "merge it into the base model first")
        edit = str(local_folder(edit))
        loaded = load_edit(edit)  # before the model: a damaged folder is found in no time
        options = edit_arguments(loaded.info, options)
        super().__init__(resolve_model(pretrained) if isinstance(pretrained, str) else pretrained, **options)
        check_base(loaded.info, self.model, pretrained if isinstance(pretrained, str) else "this model", any_base)
        self.edit_folder, self.edit_info = edit, loaded.info
        self._routed = loaded.kind == MEMORY
        handle = loaded.apply(self.model)
        # To undo it, an edit keeps what it has changed: of whole tensors that may be as much as the model itself.
        lent = not isinstance(pretrained, str)
        self._undo = None if loaded.kind == DENSE and not lent else (loaded, handle)
        self._change: Change | None = None
        self._changed = ExitStack()

    @property
    def can_be_undone(self) -> bool:
        """Whether `without_edit` has what it needs."""
        return self._undo is not None

    @contextmanager
    def without_edit(self) -> Iterator[Any]:
        """The unedited model, bit for bit, within a `with` block; the edit is put back afterwards."""
        assert self._undo is not None
        edit, handle = self._undo
        self._changed.close()
        handle.restore()
        try:
            yield self.model
        finally:
            self._undo = (edit, edit.apply(self.model))
            if self._change is not None:
                self._changed.enter_context(self._change())

    @contextmanager
    def changed_by(self, change: Change) -> Iterator[None]:
        """Another change of the model, on top of the edit, within a `with` block.

        Args:
            change: makes it, and undoes it; called again after each `without_edit`, which takes both off.
        """
        self._change = change
        self._changed.enter_context(change())
        try:
            yield
        finally:
            self._change = None
            self._changed.close()

    def take_off(self) -> None:
        """Leave the unedited model, bit for bit, to whoever lent it; this object is of no use afterwards."""
        assert self._undo is not None
        _, handle = self._undo
        self._undo = None
        handle.restore()

    @property
    def answers_hash(self) -> str:
        """What the model's answers depend on: its weights, and a memory edit, which is not in them."""
        weights = hash_weights(self.model).exact
        return hash_json([weights, sha256_of_file(Path(self.edit_folder) / DESCRIPTION)]) if self._routed else weights

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        if not self._routed:
            found: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
            return found
        return score_tokens(self, requests, disable_tqdm, override_bs)

    def get_model_info(self) -> dict[str, Any]:
        """lm-eval's description of the model, and which edit is in it."""
        info: dict[str, Any] = super().get_model_info()
        return info | {"edit": self.edit_folder, "editor": self.edit_info.editor}
