"""An edit written into its base model: an ordinary Hugging Face checkpoint, for programs that know nothing of edits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_eval.edits.base import MEMORY
from unlearn_eval.edits.load import check_base, load_edit
from unlearn_eval.edits.places import DESCRIPTION, local_folder
from unlearn_eval.models.load import LoadedModel, load_model
from unlearn_eval.models.places import resolve_model
from unlearn_eval.models.weights import hash_weights
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.folders import check_place, write_whole
from unlearn_eval.utils.provenance import provenance, redact, sha256_of_file
from unlearn_eval.utils.terminal import gigabytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from unlearn_eval.edits.base import Edit

EXPORT = "unlearn_eval_export.json"  # says what a checkpoint is an export of; other programs do not read it
SCHEMA_VERSION = 1


def export_merged(
    edit_folder: str | Path,
    output: str | Path,
    model: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    device: str | None = "cpu",
    say: Callable[[str], Any] = lambda line: None,
    any_base: bool = False,
) -> Path:
    """Write the base model with the edit in it as a checkpoint of its own: weights, config, tokenizer, generation.

    The base is loaded in `dtype`, the edit added in float32 and rounded once, so the checkpoint's weights are bit for
    bit those that an evaluation of the edit in that type has measured.

    Args:
        edit_folder: what `unlearn-eval edit` wrote.
        output: the checkpoint's folder; an earlier export there is replaced, once the new one is whole.
        model: the base model; by default the one that edit.json names.
        dtype: "float32", "bfloat16", "float16"; by default the base checkpoint's own.
        revision: of a base model from the hub; by default the edit's own.
        device: where the product is computed.
        say: told of the steps, one line each.
        any_base: whether an edit may leave open which model it was made on.

    Raises:
        UserError: not an edit, no base model or another one, or `output` is something else or cannot be written.
    """
    edit_folder, output = local_folder(edit_folder), Path(output)
    edit = load_edit(edit_folder)  # before the model: a damaged folder is found in no time
    if edit.kind == MEMORY:
        raise UserError(
            f"{edit_folder} is a memory edit ({edit.info.editor}): it decides at run time, so no weights can hold it",
            "evaluate it with --model edited --model_args pretrained=BASE,edit=DIR",
        )
    check_place(output, "export", EXPORT, "--merged")
    _check_not_inside(output, edit_folder, "the edit")
    loaded = load_base(edit, model, dtype, revision, device, say)
    _check_not_inside(output, Path(loaded.path), "the base model")
    check_base(edit.info, loaded, any_base=any_base)
    edit.apply(loaded.model)
    _check_space(output, loaded.model)
    say(f"writing {output}")

    def fill(target: Path) -> None:
        save_checkpoint(loaded.model, loaded.tokenizer, target)
        text = json.dumps(_description(edit_folder, edit, loaded), indent=2, ensure_ascii=False, allow_nan=False)
        (target / EXPORT).write_text(text + "\n", encoding="utf-8")

    return write_whole(output, "export", EXPORT, fill, "--merged")


def load_base(
    edit: Edit,
    model: str | None,
    dtype: str | None,
    revision: str | None,
    device: str | None,
    say: Callable[[str], Any],
) -> LoadedModel:
    """The model that an edit was made on: the named one, or the one that edit.json names."""
    base = edit.info.base
    name = model or base.id
    if not name:
        raise UserError("edit.json does not say which model the edit was made on", "give it with --model")
    if revision is None and name == base.id:
        revision = base.revision
    try:
        resolve_model(name)
    except UserError as error:
        if model is not None:
            raise
        raise UserError(f"the edit's base is not here: {error.message}", "give it with --model") from error
    say(f"loading {name}")
    return load_model(name, dtype=dtype or "auto", device=device, revision=revision)


def _check_not_inside(output: Path, source: Path, what: str) -> None:
    """Refuse to replace a folder in which something stands that is being read."""
    if source.exists() and source.resolve().is_relative_to(output.resolve()):
        raise UserError(f"{output} holds {what} ({source})", "give another --merged")


def _check_space(output: Path, model: PreTrainedModel) -> None:
    """Refuse before hours of copying what will not fit."""
    tensors = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in model.parameters()}
    needed, place = sum(tensors.values()), output.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{output} needs {gigabytes(needed)}, and {gigabytes(free)} are free",
            "free some space or give another --merged",
        )


def save_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, target: Path) -> None:
    """Write weights, config, tokenizer and generation settings into a folder."""
    from transformers import GenerationConfig

    # Kept as the base has it: `save_pretrained` refuses settings such as a temperature without sampling.
    generation, model.generation_config = model.generation_config, GenerationConfig()
    model.save_pretrained(target)
    model.generation_config = generation
    generation.to_json_file(target / "generation_config.json", use_diff=True, keys_to_pop=["compile_config"])
    tokenizer.save_pretrained(target)


def _description(edit_folder: Path, edit: Edit, loaded: LoadedModel) -> dict[str, Any]:
    weights = hash_weights(loaded.model)
    info: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": "merged",
        "edit": {
            "sha256": sha256_of_file(edit_folder / DESCRIPTION),  # which has the SHA-256 of all its other files
            "editor": edit.info.editor,
            "requests": edit.info.requests.n,
            "forget_set": edit.info.requests.forget_set,
        },
        "base": edit.info.base | {"loaded": loaded.name},
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "weights": {"exact": weights.exact, "canonical": weights.canonical},
        "versions": provenance()["packages"],
    }
    return redact(info)  # type: ignore[no-any-return]
