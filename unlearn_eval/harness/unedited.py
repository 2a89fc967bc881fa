"""Request kinds that the model before its edit answers: `generate_unedited` and `logprobs_unedited`.

What is deduced after an edit counts only where it could be deduced before. A request's arguments are those of
`generate_until` and `answer_logprobs`, and `{"edit": FOLDER}`, which the run names; its response is `{"text": ...}`,
what `answer_logprobs` gives, `{"same": True}` of a model that has no edit, or `{"unscored": why}`. An edit or adapter
is taken off and put back, all requests of a kind together; the answers of another model are read from its result
(`--metadata '{"unedited": RESULT}'`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_eval.edits.base import EditInfo
from unlearn_eval.edits.folder import read_description
from unlearn_eval.edits.load import check_base
from unlearn_eval.edits.places import local_folder
from unlearn_eval.harness import patching, requests
from unlearn_eval.harness.divergence import taken_off
from unlearn_eval.results.files import read_result, read_samples
from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    from unlearn_eval.harness.lm import LM

GENERATED, SCORED = "generate_unedited", "logprobs_unedited"
UNKNOWN = (
    "the model before the edit is not known: name its result of this task with --metadata '{\"unedited\": RESULT}'"
)
NOT_STORED = "the unedited model's result has no such question"
SAME = "same"  # in a response: the model that answers is the unedited one


def install() -> None:
    """Give lm-eval's models the two request kinds."""
    patching.add_request_kind(GENERATED, not_known, generated)
    patching.add_request_kind(SCORED, not_known, scored)


def not_known(self: LM, asked: Sequence[Any], disable_tqdm: bool = False) -> list[dict[str, Any]]:
    """Either kind for a model whose edit cannot be taken off."""
    return [{"unscored": UNKNOWN} for _ in asked]


def generated(self: LM, asked: Sequence[Any], disable_tqdm: bool = False) -> list[dict[str, Any]]:
    """`generate_unedited` for lm-eval's `hf` model and ours."""
    texts = _unedited(self, asked, lambda own: self.generate_until(own, disable_tqdm=disable_tqdm))
    return [{"text": own} if isinstance(own, str) else own for own in texts]


def scored(self: LM, asked: Sequence[Any], disable_tqdm: bool = False) -> list[dict[str, Any]]:
    """`logprobs_unedited` for lm-eval's `hf` model and ours."""
    return _unedited(self, asked, lambda own: requests.from_transformers(self, own, disable_tqdm))


def _unedited(lm: LM, asked: Sequence[Any], ask: Callable[[list[Any]], list[Any]]) -> list[Any]:
    """What the unedited model responds to requests without their last argument."""
    undone = taken_off(lm)
    if undone is None:
        same = not hasattr(lm, "edit_info") and _is_base_of(lm, asked[0].args[-1].get("edit"))
        return [{SAME: True} if same else {"unscored": UNKNOWN} for _ in asked]
    own = [copy.copy(request) for request in asked]
    for request in own:
        request.arguments = request.args[:-1]
    context: AbstractContextManager[Any] = undone()
    with context:
        return list(ask(own))


def _is_base_of(lm: LM, edit: str | None) -> bool:
    """Whether a model is the one that an edit was made on, by its weights."""
    if edit is None:
        return False
    info = EditInfo(**read_description(local_folder(edit), check_files=False)["info"])
    try:
        check_base(info, lm.model, str(getattr(lm, "pretrained", "this model")))
    except UserError:
        return False
    return True


def read_unedited(place: object, task: str) -> dict[str, Mapping[str, Any]]:
    """Id of a document -> what the unedited model's result stores of it.

    Raises:
        UserError: there is no such result, or it has no samples of the task.
    """
    path = Path(str(place)).expanduser()
    if not path.is_file():
        raise UserError(f"the result {path} of the unedited model does not exist", "name a result file of this task")
    result = read_result(path)
    if task not in result.samples:
        raise UserError(f"{path} has no samples of {task}", "evaluate the unedited model with this task first")
    return {str(record["id"]): record for record in read_samples(path, task)}
