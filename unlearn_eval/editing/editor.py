"""What every editor is: a job in, an edit out, and the model left as it was found.

A method is one file in `editors/`. It ends in `EDITOR = Editor(NAME, Config, run, ...)`, which declares what the
method makes and what it uses of a job. Nothing else says what a method can do: no list of names, no signature.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unlearn_eval.editing.from_file import (
    check_config,
    check_function,
    check_parts,
    editor_file,
    editor_label,
    is_editor_file,
    kind_returned,
    module_from_file,
    parameters,
)
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.edits.base import KINDS, Edit
from unlearn_eval.models.anatomy import anatomy, is_transposed
from unlearn_eval.utils.errors import UserError, unknown_name
from unlearn_eval.utils.progress import Progress, no_progress
from unlearn_eval.utils.registry import module_in, names_in, summary_in

if TYPE_CHECKING:
    import random

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from unlearn_eval.editing.locate_then_edit.second_moments import SecondMoments
    from unlearn_eval.models.memory import Phase

METHODS = "unlearn_eval.editors"
RETAIN, OTHERS, MOMENTS = "retain", "others", "moments"  # what an editor may use of a job beside its requests


@dataclass(frozen=True)
class EditJob:
    """What an editor is given.

    Attributes:
        model, tokenizer: a causal language model in eval mode, and its tokenizer.
        requests: what the model should say instead.
        config: the method's settings.
        generator: random numbers of the whole sequence of steps.
        previous: an earlier edit of this model by this method; the new one continues it and holds both.
        retain: requests whose answers are to be retained, for methods that use `RETAIN` or take second moments of text.
        others: prompts (ids) of questions that are not to be forgotten, for methods that use `OTHERS`.
        moments: second moments of keys that all steps of a sequence share, for methods that use `MOMENTS`; empty ones
            are filled for the next step. None leaves them to the method.
        progress: called with (what, done, total).
        prompt_format: how questions are put to the model, for methods that let it write; None if nobody says.
    """

    model: Any
    tokenizer: Any
    requests: Sequence[EditRequest]
    config: Any
    generator: Any = None
    previous: Any = None
    retain: Sequence[EditRequest] = ()
    others: Sequence[Sequence[int]] = ()
    moments: SecondMoments | None = None
    progress: Progress = no_progress
    prompt_format: Any = None


@dataclass(frozen=True)
class Editor:
    """One method, as its file declares it.

    Some settings mean the same wherever a `Config` has them: `seed` follows the recipe's; `components`, `masks` and
    `layers` take the result of a localization; `folder` is where training keeps its checkpoints.

    Attributes:
        name: as on the command line.
        Config: frozen dataclass of settings, each with a default.
        run: makes the edit of a job; the model is as before afterwards, however it ends.
        makes: kind of edit, or a function from settings to it; None if a user's file does not say.
        uses: what it uses of a job: any of `RETAIN`, `OTHERS`, `MOMENTS`. A method that uses `RETAIN` is trained.
        paper: arXiv identifiers.
        one_layer: whether it changes one layer only; of several located layers it gets the best.
        calibrates: whether a memory's bounds are calibrated where the setting `calibrate` is true.
        others_read: function from settings to the number of `others` that the method itself reads at most; calibration
            takes those behind them.
        needs_retain: function from settings to whether items to retain are needed; None: they are used where given.
        check: refuses a model that these settings cannot edit, from its modules alone: it may have no weights. Without
            one, a method that has `layers` edits the MLP projections of layers.
        says_targets: whether the model is made to say the requests' targets alone, so that new facts can be edited in.
        memory: function from a job whose model has no weights, and the kind of device, to what the method has in memory
            beside the weights, in phases; None: nobody has said.
        file: name and SHA-256 of the user's file that holds the method.
    """

    name: str
    Config: type[Any]
    run: Callable[[EditJob], Edit]
    makes: str | Callable[[Any], str] | None = None
    uses: Collection[str] = frozenset()
    paper: str = ""
    one_layer: bool = False
    calibrates: bool = False
    others_read: Callable[[Any], int] = lambda config: 0
    needs_retain: Callable[[Any], bool | None] = lambda config: False
    check: Callable[[Any, Any], object] | None = None
    says_targets: bool = True
    memory: Callable[[EditJob, str], Sequence[Phase]] | None = None
    file: Mapping[str, str] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "uses", frozenset(self.uses))
        if unknown := sorted(set(self.uses) - {RETAIN, OTHERS, MOMENTS}):
            raise UserError(f"the editor {self.name} uses {unknown}", f"a job has {RETAIN}, {OTHERS} and {MOMENTS}")
        if isinstance(self.makes, str) and self.makes not in KINDS:
            raise unknown_name("kind of edit", self.makes, KINDS)

    @property
    def title(self) -> str:
        """The name as people write it, with which the file of the method begins; of a user's file its name."""
        return self.name if self.file is not None else summary_in(METHODS, self.name).partition(":")[0]

    @property
    def trained(self) -> bool:
        """Whether weights are trained on every question, beside items to retain."""
        return RETAIN in self.uses

    @property
    def retains(self) -> bool:
        """Whether it takes items to retain: to be trained beside, or for second moments."""
        return self.trained or (MOMENTS in self.uses and "text" in self.settings)

    @property
    def settings(self) -> frozenset[str]:
        """The names of the settings."""
        return frozenset(own.name for own in fields(self.Config))

    def kind(self, config: Any) -> str | None:
        """The kind of edit that these settings make; None if that is not known."""
        return self.makes(config) if callable(self.makes) else self.makes

    def check_model(self, config: Any, model: nn.Module) -> None:
        """Refuse a model that the method cannot edit with these settings, before its weights are read.

        Raises:
            UserError: parts or layers that the method edits are not there.
        """
        if self.check is not None:
            self.check(config, model)
        elif "layers" in self.settings and self.file is None:  # what a user's file edits it says itself
            parts = anatomy(model)
            if config.layers:
                parts.check_layers(tuple(config.layers))

    def edit(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest],
        config: Any,
        generator: random.Random | None = None,
        state: Edit | None = None,
        progress: Progress = no_progress,
        **more: Any,
    ) -> Any:
        """The edit of a job that is written out, for direct calls: `EDITOR.edit(model, tokenizer, requests, Config())`.

        Args:
            model, tokenizer, requests, config, generator, progress: as in `EditJob`.
            state: its `previous`.
            more: its `retain`, `others` and `moments`.

        Raises:
            UserError: an earlier edit of another method, or as the method does.
        """
        check_state(state, self.name)
        return self.run(EditJob(model, tokenizer, requests, config, generator, state, progress=progress, **more))


def if_given(config: Any) -> None:
    """`needs_retain` of a method that uses items to retain where there are any."""


def editor_names() -> list[str]:
    """The names of the methods: the files in `editors/`."""
    return names_in(METHODS)


def trained_editor_names() -> list[str]:
    """The names of the methods that are trained on every question."""
    return [name for name in editor_names() if get_editor(name).trained]


def get_editor(name: str) -> Editor:
    """The editor called `name`, or in the file of that path (`my_editor.py`).

    Raises:
        UserError: there is none, and the nearest names are given; or the file holds no editor.
    """
    if is_editor_file(name):
        return _from_module(module_from_file(name), name)
    found: Editor = module_in(METHODS, name, "editor").EDITOR
    return found


@cache
def _from_module(module: ModuleType, path: str) -> Editor:
    """The editor in a user's module: its `EDITOR`, or one made of its `Config` and `edit`.

    Raises:
        UserError: it has neither, or one of them in another shape.
    """
    found = getattr(module, "EDITOR", None)
    if found is None:
        check_parts(module, path)
        found = module.edit if isinstance(module.edit, Editor) else _of_function(module, path)
        found = replace(found, Config=module.Config)
    if not isinstance(found, Editor):
        raise UserError(
            f"EDITOR in {path} is a {type(found).__name__}, not an Editor",
            "write EDITOR = Editor(NAME, Config, run), as docs/guides/own_editor.md shows",
        )
    check_config(found.Config, path)
    return replace(found, name=editor_label(path), file=editor_file(path))


def _of_function(module: ModuleType, path: str) -> Editor:
    """An editor made of a function `edit(model, tokenizer, requests, config, generator, state, progress)`.

    This protocol has no declarations: further parameters of the function say what it uses.
    """
    edit = module.edit
    check_config(module.Config, path)
    check_function(edit, path)
    uses = {RETAIN, OTHERS, MOMENTS} & parameters(edit)

    def run(job: EditJob) -> Edit:
        more = {name: getattr(job, name) for name in uses}
        if job.moments is None:
            more.pop(MOMENTS, None)
        made: Edit = edit(
            job.model,
            job.tokenizer,
            job.requests,
            job.config,
            job.generator,
            state=job.previous,
            progress=job.progress,
            **more,
        )
        return made

    def needs_retain(config: Any) -> bool | None:
        if RETAIN not in uses or getattr(config, "retain_weight", 1) == 0:
            return False
        return config.retain_term != "none" if hasattr(config, "retain_term") else None

    return Editor(
        module.__name__,
        module.Config,
        run,
        makes=kind_returned(edit),
        uses=uses,
        calibrates="calibrate" in {own.name for own in fields(module.Config)},
        others_read=lambda config: 2 * getattr(config, "n_others", 0),
        needs_retain=needs_retain,
    )


def check_state(state: Edit | None, name: str) -> None:
    """Refuse to go on with the method `name` from an edit that another one made, or whose items were left out."""
    if state is not None and state.info.editor != name:
        raise UserError(
            f"the edit to go on from was made by {state.info.editor}, not by {name}",
            f"use --editor {state.info.editor}, or start a new edit",
        )
    if state is not None and state.info.notes.get("redacted"):
        raise UserError(
            "the edit to go on from is redacted: it does not say what it forgot", "go on from the one it was made of"
        )


def no_change(model: nn.Module, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Factors of no column for some linear maps: they change nothing, and PEFT reads no edit that names no map."""
    factors = {}
    for name in names:
        module = model.get_submodule(name)
        shape: Sequence[int] = module.weight.shape  # type: ignore[assignment, union-attr]
        d_out, d_in = reversed(shape) if is_transposed(module) else shape
        factors[name] = torch.zeros(d_out, 0), torch.zeros(0, d_in)
    return factors
