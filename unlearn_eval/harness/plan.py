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
from pathlib import Path
from typing import Any

from unlearn_eval.data.benchmark import ANY, Asking, Chosen, Whole
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.data.registry import asking_of, is_ours
from unlearn_eval.edits.base import EditInfo
from unlearn_eval.edits.folder import read_description
from unlearn_eval.edits.forgotten import Forgotten, read_forgotten
from unlearn_eval.edits.places import is_edit, local_folder
from unlearn_eval.harness.chat_template import ChatTemplate
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.terminal import say

EDIT, CHAT = "edit", "chat"  # keys of a run's metadata: the edit's folder; whether our tasks are asked as it was made
TEMPLATE, ENABLE_THINKING = "chat_template_args", "enable_thinking"  # lm-eval's model arguments, which it puts there
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
        system, template_arguments: the edit's system message and template arguments.
        difference: how the run's prompts differ from the edit's, in words.
        reason: why the task cannot ask them; then it asks what it asks by itself.
        note: what it asks as forgotten beyond them.
    """

    task: str
    folder: Path
    metadata: dict[str, Any] = field(default_factory=dict)
    n: int = 0
    n_forgotten: int = 0
    chat: bool | None = None
    system: str | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    difference: str | None = None
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
            folder = local_folder(str(edit))
            if not is_edit(folder):
                raise
            return cls(task, folder, reason=error.message)  # it may be an older edit, or data may be missing
        plan = cls(
            task,
            forgotten.folder,
            n_forgotten=len(forgotten),
            chat=forgotten.chat,
            system=forgotten.system,
            template_arguments=forgotten.template_arguments,
        )
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
        form = ", as a chat" if self.chat else ""
        if self.difference is not None:
            form += f"; {self.difference}"
        elif self.chat and self.template_arguments:
            form += f" with {shown_arguments(self.template_arguments)}"
        return f"{self.task}: asking {facts} that {self.folder} forgot{more}{form}"

    def asked_with(self, chat: bool | None, system: str | None, arguments: Mapping[str, Any] | None) -> EvalPlan:
        """The plan of a run that names its prompt format, or parts of it; None is as the edit was made."""
        plan = self if chat is None else replace(self, chat=chat)
        return replace(plan, difference=prompt_difference(plan, system, arguments))


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


def _say(line: str) -> None:
    if _speaks.get() and os.environ.get("RANK", "0") == "0":
        say(line)


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
    _say(plan.asked_with(metadata.get(CHAT), None, given_arguments(metadata)).line)
    return {CHAT: chat, **metadata, **plan.metadata}


def as_made(metadata: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of lm-eval's `build_all_requests`, with the prompt format in which the edit was made.

    Without lm-eval's `--apply_chat_template` our tasks put the edit's questions as the edit's were, by the template
    that lies in its folder. With it all questions go through a template: that of the edit if it was made as a chat,
    else the model's. The edit's system message and template arguments are used unless the run names others, which is
    then said.

    Args:
        metadata: of the task, which name the edit (see `plan_metadata`).
        options: as lm-eval gives them.
    """
    found, folder = dict(options), metadata.get(EDIT)
    chat, planned = bool(options.get("apply_chat_template")), metadata.get(CHAT)
    if folder and (chat or planned is not None) and not isinstance(options.get("chat_template"), EditTemplate):
        made = _format_of(str(folder))
        if made is not None and made.chat == (chat or planned is True):
            found |= _in_format(made, metadata, options, str(folder))
    if found.get("apply_chat_template"):
        check_template(found.get("chat_template"))
    if found.get("chat_template"):
        found["chat_template"] = ChatTemplate.of(found["chat_template"])
    return found


class EditTemplate(ChatTemplate):
    """The chat template that lies in an edit's folder."""


def _in_format(made: PromptFormat, metadata: Mapping[str, Any], options: Mapping[str, Any], folder: str) -> Any:
    """The options that put questions in an edit's format, or in what the run makes of it."""
    system, arguments = options.get("system_instruction"), given_arguments(metadata)
    if difference := prompt_difference(made, system, None):  # of arguments the plan's line has said it
        _say(f"{folder}: {difference}")
    found: dict[str, Any] = {"system_instruction": system or made.system}
    if made.chat:
        used = replace(
            made, system=None, template_arguments=made.template_arguments if arguments is None else arguments
        )
        length = getattr(used.tokenizer, "model_max_length", None)
        known = ChatTemplate.of(options["chat_template"]).max_length if options.get("chat_template") else length
        template = EditTemplate(used.render_messages, used.tokenizer, used.template_arguments, known)
        found |= {"apply_chat_template": True, "chat_template": template}
    return found


def given_arguments(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """The template arguments that a run names, ours or those among lm-eval's model arguments; None if it names none."""
    given, thinks = metadata.get(TEMPLATE), metadata.get(ENABLE_THINKING)
    if given is None and thinks is None:
        return None
    return {**(given or {}), **({} if thinks is None else {ENABLE_THINKING: thinks})}


def prompt_difference(
    made: PromptFormat | EvalPlan, system: str | None, arguments: Mapping[str, Any] | None
) -> str | None:
    """How a run's prompts differ from those of an edit, in words; None if they do not.

    Args:
        made: with `system` and `template_arguments` of the edit.
        system, arguments: what the run names; None is what the edit has.
    """
    parts = []
    if arguments is not None and dict(arguments) != dict(made.template_arguments):
        parts.append(
            f"{shown_arguments(arguments)} (the edit was made with {shown_arguments(made.template_arguments)})"
        )
    if system and system != made.system:
        parts.append(f"another system message than the edit's ({made.system or 'none'})")
    if not parts:
        return None
    return f"asked with {' and '.join(parts)}; an edit that reads the prompt's end, as memories do, may not answer"


def shown_arguments(arguments: Mapping[str, Any]) -> str:
    """Template arguments in words."""
    return ", ".join(f"{name}={value}" for name, value in arguments.items()) or "the template's defaults"


def edit_arguments(info: EditInfo, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an lm-eval model with an edit's template arguments, unless they name others themselves."""
    own = dict(info.requests.get("chat_template_kwargs") or {})
    named = any(options.get(key) is not None for key in (TEMPLATE, ENABLE_THINKING))
    return dict(options) if named or not own else {**options, TEMPLATE: own}


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


def _format_of(folder: str) -> PromptFormat | None:
    """The format of an edit; None if its folder has no tokenizer."""
    folder = str(local_folder(folder))
    if not (Path(folder) / _TOKENIZER).is_file():
        return None
    from transformers import AutoTokenizer

    info = EditInfo(**read_description(folder, check_files=False)["info"])
    if info.requests.get("chat") is None:
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the tokenizer in {folder} cannot be read: {error}", "make the edit again") from error
    return PromptFormat.of_edit(info, tokenizer, folder)
