"""An evaluation of an edit asks what that edit forgot, in the prompt format in which it was made, by default.

The edit is named in a run's metadata (`{"edit": DIR}`). lm-eval puts `--model_args` there, so `--model edited` names
it already, and `unlearn-eval eval --edit` does the same. Each of our tasks then gets its own metadata from the edit
(`plan_metadata`). A run whose metadata say what is forgotten is left as it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from unlearn_eval.data.benchmark import ANY, Asking, Chosen, Whole
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.data.registry import asking_of, is_ours
from unlearn_eval.edits.base import EditInfo
from unlearn_eval.edits.folder import DESCRIPTION, read_description
from unlearn_eval.edits.forgotten import Forgotten, read_forgotten
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.terminal import say

EDIT, CHAT = "edit", "chat"  # keys of a run's metadata: the edit's folder; whether our tasks are asked as it was made
GIVEN = ("forget", "split", "task", "ids", "forget_split")  # keys with which a run says itself what is forgotten
_TOKENIZER = "tokenizer_config.json"


@dataclass(frozen=True)
class EvalPlan:
    """What one task asks of an edit.

    Attributes:
        task: its name.
        folder: of the edit.
        metadata: what makes the task ask what the edit forgot.
        n, n_forgotten: how many items that is, and how many the edit forgot.
        chat: whether the edit's questions went through the chat template; None if it does not say.
        reason: why the task cannot ask them; then it asks what it asks by itself.
        note: what it asks as forgotten beyond them.
    """

    task: str
    folder: Path
    metadata: dict[str, Any] = field(default_factory=dict)
    n: int = 0
    n_forgotten: int = 0
    chat: bool | None = None
    reason: str | None = None
    note: str | None = None

    @classmethod
    def from_edit(cls, edit: str | Path | Forgotten, task: str) -> EvalPlan:
        """What a task asks of an edit, whole or by its folder.

        Raises:
            UserError: the folder is no edit.
        """
        try:
            forgotten = edit if isinstance(edit, Forgotten) else read_forgotten(edit)
        except UserError as error:
            folder = Path(str(edit))
            if not (folder / DESCRIPTION).is_file():
                raise
            return cls(task, folder, reason=error.message)  # it may be an older edit, or data may be missing
        plan = cls(task, forgotten.folder, n_forgotten=len(forgotten), chat=forgotten.chat)
        asking = asking_of(task)
        if asking is None:
            return replace(plan, reason="it cannot be given a forget set")
        parts = [chosen for chosen in forgotten.sets if asking.fits(chosen.forget.name)]
        if not parts:
            return replace(plan, reason=f"it asks {_shown(asking)}, not {forgotten.names}")
        try:
            metadata = _metadata(asking, parts)
        except UserError as error:
            return replace(plan, reason=error.message)
        n = sum(len(chosen.forget) for chosen in parts)
        more = [chosen.forget.name for chosen in parts if asking.asks_more(chosen)]
        note = f"and all others of {more[0]}" if more else None
        return replace(plan, metadata=metadata, n=n, note=note)

    @property
    def line(self) -> str:
        """One line for a terminal."""
        if self.reason is not None:
            return f"{self.task} is asked as without an edit: {self.reason}"
        some = "" if self.n == self.n_forgotten else f"{self.n} of "
        facts = f"{some}the {self.n_forgotten} fact{'s' * (self.n_forgotten != 1)}"
        more = f" {self.note}" if self.note else ""
        return f"{self.task}: asking {facts} that {self.folder} forgot{more}{', as a chat' if self.chat else ''}"


def _shown(asking: Asking) -> str:
    return f"{asking.sets}..." if asking.sets.endswith(":") else asking.sets


def _metadata(asking: Asking, parts: Sequence[Chosen]) -> dict[str, Any]:
    """One task's metadata for parts of several sets, of which each fits."""
    if asking.sets == ANY:
        return _any(asking, parts)
    if len(parts) == 1:
        return asking.metadata(parts[0])
    if isinstance(asking, Whole):
        names = " and ".join(chosen.forget.name for chosen in parts)
        raise UserError(f"one run of the task asks one split, and the edit forgot {names}")
    prefix = parts[0].forget.name.partition(":")[0]
    items = tuple(item for chosen in parts for item in chosen.forget)
    name = parts[0].forget.name if ":" not in parts[0].forget.name else f"{prefix}:all"
    return asking.metadata(Chosen(ForgetSet(name, items), whole=False))


def _any(asking: Asking, parts: Sequence[Chosen]) -> dict[str, Any]:
    if len(parts) == 1:
        found = asking.metadata(parts[0])
        return {key: _spec(own) if isinstance(own, ForgetSet) else own for key, own in found.items()}
    return {"forget": [_spec(chosen.forget) for chosen in parts]}


def _spec(items: ForgetSet) -> dict[str, Any]:
    return {"set": items.name, "ids": [item.id for item in items]}


# In a task -------------------------------------------------------------------------------------------------

_speaks: ContextVar[bool] = ContextVar("speaks", default=True)


@contextmanager
def silent_plans() -> Iterator[None]:
    """Within this, tasks do not say what they ask: who runs them has said it."""
    before = _speaks.set(False)
    try:
        yield
    finally:
        _speaks.reset(before)


def is_given(metadata: Mapping[str, Any]) -> bool:
    """Whether a run's metadata say themselves what is forgotten."""
    return any(metadata.get(key) is not None for key in GIVEN)


def may_forget_all(metadata: Mapping[str, Any]) -> bool:
    """Whether nothing need be left to be retained: an edit may have forgotten all that there is."""
    return bool(metadata.get(EDIT))


def plan_metadata(task: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A task's metadata, with what the edit forgot that they name, unless they say themselves what is forgotten.

    Raises:
        UserError: `edit` names no edit.
    """
    edit = metadata.get(EDIT)
    asking = asking_of(task)
    fixed = isinstance(asking, Whole) and not asking.others  # its YAML names its split
    if not edit or not is_ours(task) or (is_given(metadata) and not fixed):
        return dict(metadata)
    plan = EvalPlan.from_edit(str(edit), task)
    chat = plan.reason is None and plan.chat is True and (plan.folder / _TOKENIZER).is_file()
    if _speaks.get() and os.environ.get("RANK", "0") == "0":
        say(plan.line)
    return {CHAT: chat, **metadata, **plan.metadata}


def as_made(metadata: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of lm-eval's `build_all_requests`, with the prompt format in which the edit was made.

    lm-eval's own `--apply_chat_template` puts every task's questions through the model's template, and is left as it
    is. Without it our tasks put theirs as the edit's were, by the template that lies in its folder.

    Args:
        metadata: of the task, which name the edit (see `plan_metadata`).
        options: as lm-eval gives them.
    """
    if options.get("apply_chat_template"):
        check_template(options.get("chat_template"))
    if options.get("apply_chat_template") or not metadata.get(EDIT) or metadata.get(CHAT) is not True:
        return dict(options)
    prompt_format = _format_of(str(metadata[EDIT]))
    system = options.get("system_instruction") or prompt_format.system
    own = {"apply_chat_template": True, "chat_template": _template(prompt_format), "system_instruction": system}
    return {**options, **own}


def check_template(template: Callable[..., str] | None) -> None:
    """Refuse a chat that lm-eval's model has no template for, before any prompt is made.

    Raises:
        UserError: the template is not there.
    """
    try:
        if template is not None:
            template([{"role": "user", "content": "?"}], add_generation_prompt=True)
    except ValueError as error:
        if isinstance(error, UserError) or "chat_template" not in str(error):
            raise
        raise UserError("the model has no chat template", "leave out --apply_chat_template") from error


def _format_of(folder: str) -> PromptFormat:
    from transformers import AutoTokenizer

    info = EditInfo(**read_description(folder, check_files=False)["info"])
    return PromptFormat.of_edit(info, AutoTokenizer.from_pretrained(folder), folder)


def _template(prompt_format: PromptFormat) -> Callable[..., str]:
    """The format as lm-eval calls a model's template."""
    from jinja2.exceptions import TemplateError

    def render(messages: Sequence[dict[str, str]], add_generation_prompt: bool = True) -> str:
        form = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        put = partial(prompt_format.tokenizer.apply_chat_template, tokenize=False, **form)
        try:
            return str(put(list(messages), **prompt_format.template_arguments))
        except TemplateError:  # as lm-eval does: some templates refuse a system message
            users = [message for message in messages if message["role"] != "system"]
            return str(put(users, **prompt_format.template_arguments))

    return render
