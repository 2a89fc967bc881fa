"""Notes at work: text before a question, chosen by what the question says (the editor is `editors/memory/notes.py`).

Prefixes (`prefix_store.py`) are the same with continuous vectors in place of text: the model is given embeddings.

A prompt is token ids: an opening, the question, a closing. `Frame` finds the question in it. The encoder's cosine
between the question and those of all notes gives the nearest note; the gate gives it a value:

    none, encoder    the cosine itself                (none: with a threshold that every cosine reaches)
    self             ln p(Yes) − ln p(No) of the model after the note, the question, and whether one is about the other

From its threshold on, the note is inserted before the question, with examples made of the next nearest ones before it.
The model is the same: it reads more tokens than it is given, in `generate` and in a forward pass of whole prompts.
Logits stand where the caller's own tokens are. Rows whose notes stay silent have the numbers of the unedited model, bit
for bit, also in a batch with others: the batch is run as it is, and once more for the rows with notes.

The decision is made once for each prompt, as for other memories (`routing.py`, rules 1 to 3). A cache that the caller
goes on from, embeddings in place of ids, and traces of hidden states are refused: they are of other tokens.
"""

from __future__ import annotations

import copy
import functools
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from unlearn_eval.edits.base import MEMORY, EditInfo
from unlearn_eval.edits.memory.edit import write_memory
from unlearn_eval.edits.memory.notes_store import Insertion, Notes
from unlearn_eval.edits.memory.routing import pass_of
from unlearn_eval.edits.memory.store import Route
from unlearn_eval.edits.sharing import OnHub
from unlearn_eval.models.arguments import given_arguments, given_cache
from unlearn_eval.models.prompt_ends import ROUTER
from unlearn_eval.models.scoring import pad
from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROWS_PER_PASS = 16


@dataclass(frozen=True)
class NotesEdit(OnHub):
    """Notes, or prefixes, before the prompts of a model.

    Attributes:
        store: the notes.
        info: what this is.
        texts: file name -> content of small texts that belong to the edit.
        tokenizer: of the model, or the folder that has it; it decodes questions.
        module: none: the whole model reads them.
    """

    kind: ClassVar[str] = MEMORY
    module: ClassVar[str] = ""
    store: Notes
    info: EditInfo
    texts: Mapping[str, str] = field(default_factory=dict)
    tokenizer: Any = field(default=None, compare=False, repr=False)

    def apply(self, model: nn.Module) -> NotesAtWork:
        """Put the notes before the model; its weights stay as they are.

        Raises:
            UserError: there is a memory edit in the model already, or the store's vectors are of another model.
        """
        if hasattr(model, ROUTER):
            raise UserError(
                "there is a memory edit in this model already, and notes share a model with none",
                "restore it first; to grow one edit use --continue",
            )
        self.store.check_model(model)
        return NotesAtWork(model, self)

    def save(
        self, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None, model_config: Any = None
    ) -> Path:
        """Write the folder, with the tokenizer, without which no question could be read (errors as `write_edit`)."""
        own = tokenizer
        if own is None and self.tokenizer is not None:
            own = self.read_tokenizer
        return write_memory(self, folder, own, model_config)

    def routes(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[Route]:
        """Which note would answer each prompt (token ids) of this model; the edit need not be in it."""
        return self.store.routes(self.inputs(model, prompts))

    def inputs(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
        """(2,) of each prompt: its nearest note (-1 if there is none) and that one's value."""
        order, values = self.ranked(model, prompts)
        return [
            torch.tensor([float(own[0]), value]) if own else torch.tensor([-1.0, 0.0])
            for own, value in zip(order, values, strict=True)
        ]

    @functools.cached_property
    def read_tokenizer(self) -> Any:
        """The tokenizer, from the edit's folder if the edit was read from there."""
        if not isinstance(self.tokenizer, Path):
            return self.tokenizer
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.tokenizer)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.tokenizer} has no tokenizer, so its notes cannot read a question", "make the edit again"
            ) from error

    def ranked(self, model: Any, prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[float]]:
        """The notes in the order in which they are near each prompt's question, and the value of the nearest.

        Raises:
            UserError: the encoder cannot be had, or is another one.
        """
        store = self.store
        if not store.n or not prompts:
            return [[] for _ in prompts], [0.0] * len(prompts)
        decode = self.read_tokenizer.decode
        texts = [decode(list(store.frame.parts(ids)[1]), skip_special_tokens=True).strip() for ids in prompts]
        similar = torch.stack([store.similar(text) for text in texts])
        order = similar.argsort(dim=-1, descending=True, stable=True)
        values = similar.gather(1, order[:, :1])[:, 0].tolist()
        if store.gate == "self":
            values = self._agreement(model, prompts, order[:, 0].tolist())
        return order.tolist(), values

    def insertions(self, model: PreTrainedModel | None, prompts: Sequence[Sequence[int]]) -> list[Insertion | None]:
        """What is inserted into each prompt, and where; None where the notes stay silent.

        Args:
            model: which the gate `self` asks; others ask none.
            prompts: token ids.

        Raises:
            UserError: the encoder or the tokenizer cannot be had.
        """
        store = self.store
        order, values = self.ranked(model, prompts)
        return [
            store.insertion(store.frame.parts(ids)[0], own) if own and value >= float(store.threshold[0]) else None
            for ids, own, value in zip(prompts, order, values, strict=True)
        ]

    @torch.no_grad()
    def _agreement(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], nearest: Sequence[int]
    ) -> list[float]:
        """The ln p(Yes) − ln p(No) of the unedited model, asked whether each prompt's note is about its question."""
        at_work = getattr(model, ROUTER, None)
        run = at_work.plain if isinstance(at_work, NotesAtWork) else model
        asking, frame = self.store.asking, self.store.frame
        rows = [
            _with(ids, frame.parts(ids)[0], self.store.notes[i].ids + asking.ids)
            for ids, i in zip(prompts, nearest, strict=True)
        ]
        found: list[float] = []
        for start in range(0, len(rows), ROWS_PER_PASS):
            part = rows[start : start + ROWS_PER_PASS]
            ids, mask = pad(part, "right", model.device)
            logits = run(input_ids=ids, attention_mask=mask, use_cache=False).logits
            ends = torch.stack([logits[i, len(row) - 1] for i, row in enumerate(part)])
            found += (ends[:, asking.yes] - ends[:, asking.no]).tolist()
        return found


class NotesAtWork:
    """Notes in a model, until `restore`: its `forward` and `generate` read them before the prompts they are for."""

    needs_whole_prompts = True
    inserts = True

    def __init__(self, model: PreTrainedModel, edit: NotesEdit) -> None:
        self.model, self.edit = model, edit
        self._local = threading.local()
        self._known: dict[tuple[int, ...], Insertion | None] = {}
        self.plain: Callable[..., Any] = model.forward
        self._plain_generate: Callable[..., Any] | None = getattr(model, "generate", None)
        self._before = {name: model.__dict__[name] for name in ("forward", "generate") if name in model.__dict__}
        model.__dict__["forward"] = _under_the_name(self.plain, self._forward)
        if self._plain_generate is not None:
            model.__dict__["generate"] = _under_the_name(self._plain_generate, self._generate)
        setattr(model, ROUTER, self)

    def restore(self) -> None:
        """Make the model what it was; harmless when repeated."""
        if getattr(self.model, ROUTER, None) is not self:
            return
        delattr(self.model, ROUTER)
        for name in ("forward", "generate"):
            self.model.__dict__.pop(name, None)
        self.model.__dict__.update(self._before)

    def memories(self) -> list[tuple[str, Any]]:
        """What answers depend on, as tensors: the notes' own, and the rest of the store as bytes."""
        store = self.edit.store
        text = bytearray(json.dumps(store.settings(), sort_keys=True).encode())
        return [("", SimpleNamespace(**store.tensors(), settings=torch.frombuffer(text, dtype=torch.uint8)))]

    def additions(self, prompts: Sequence[tuple[int, ...]]) -> list[Insertion | None]:
        """What is inserted into each prompt, and where; None where the notes stay silent."""
        new = list(dict.fromkeys(ids for ids in prompts if ids not in self._known))
        self._known.update(zip(new, self.edit.insertions(self.model, new), strict=True))
        return [self._known[ids] for ids in prompts]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._local.alone = True
        try:
            yield
        finally:
            self._local.alone = False

    # Forward passes ----------------------------------------------------------------------------------------

    def _forward(self, *arguments: Any, **options: Any) -> Any:
        if getattr(self._local, "alone", False):
            return self.plain(*arguments, **options)
        given = given_arguments(self.model, arguments, options)
        _check_given(given.get("input_ids"), given)
        for name in ("labels", "output_hidden_states", "output_attentions"):
            if given.get(name) is not None and given.get(name) is not False:
                raise UserError(
                    f"a model with notes gives logits alone, not what {name} is for", "restore the edit first"
                )
        current = pass_of(given)
        ids, real, ends = given["input_ids"], current.real, current.ends
        if bool((ends < 0).any()):
            raise UserError("a model with notes needs whole prompts", "run each prompt in one pass")
        # From the first token to the last, holes of the mask among them.
        spans = [(int(row.nonzero()[0]), int(row.nonzero()[-1]) + 1) if row.any() else (0, 0) for row in real]
        prompts = [
            tuple(row[start:][keep[start:]].tolist())
            for row, keep, (start, _) in zip(ids, _until(real, ends), spans, strict=True)
        ]
        additions = self.additions(prompts)
        output = self.plain(*arguments, **options)
        if not any(additions):
            return output
        return self._with_notes(output, given, real, spans, additions)

    def _with_notes(
        self,
        output: Any,
        given: Mapping[str, Any],
        real: Tensor,
        spans: list[tuple[int, int]],
        additions: list[Insertion | None],
    ) -> Any:
        """The output with the logits of rows that have notes in the places of their own tokens."""
        ids, hits = given["input_ids"], [(i, own) for i, own in enumerate(additions) if own]
        rows, masks, moved = [], [], []
        for i, own in hits:
            start, end = spans[i]
            # `place` counts tokens of the prompt; masked ones in between stay where they are.
            column = int(real[i].nonzero()[own.place]) - start
            row, seen = ids[i, start:end].tolist(), real[i, start:end].tolist()
            rows.append(_with(row, column, own.ids))
            masks.append(_with(seen, column, [True] * len(own.ids)))
            moved.append((start, column, len(own.ids)))
        longer, _ = pad(rows, "right", ids.device)
        mask, _ = pad(masks, "right", ids.device)
        places = [(r, moved[r][1], own) for r, (_, own) in enumerate(hits)]
        vectors = _embedded(self.model, longer, places)
        inputs = {"input_ids": longer} if vectors is None else {"inputs_embeds": vectors}
        found = self.plain(**inputs, attention_mask=mask, use_cache=False).logits
        kept = torch.arange(ids.shape[1], device=ids.device)
        keep = given.get("logits_to_keep", 0)
        kept = kept[keep] if isinstance(keep, Tensor) else kept[-keep:] if keep else kept
        logits = output.logits.clone()
        for r, ((i, _), (start, column, n)) in enumerate(zip(hits, moved, strict=True)):
            after = (kept >= start + column) & (kept < spans[i][1])
            logits[i, after] = found[r, kept[after] - start + n]
        output.logits = logits
        for name in ("cache", "past_key_values"):  # of other tokens than these logits
            if getattr(output, name, None) is not None:
                setattr(output, name, None)
        return output

    # Generation --------------------------------------------------------------------------------------------

    def _generate(self, *arguments: Any, **options: Any) -> Any:
        assert self._plain_generate is not None
        ids: Any
        if getattr(self._local, "alone", False):
            return self._plain_generate(*arguments, **options)
        ids = arguments[0] if arguments else options.get("inputs")
        ids = options.get("input_ids") if ids is None else ids
        _check_given(ids, options)
        mask = options.get("attention_mask")
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask != 0
        prompts = [tuple(row[keep].tolist()) for row, keep in zip(ids, real, strict=True)]
        additions = self.additions(prompts)
        with self._alone():
            if not any(additions):
                return self._plain_generate(*arguments, **options)
            # Both runs have all rows, so that a row is the same with and without notes elsewhere in its batch.
            clean = None if all(additions) else self._plain_generate(*arguments, **_fresh(options, lambda own: own))
            rows = [_with(row, own.place, own.ids) if own else row for row, own in zip(prompts, additions, strict=True)]
            longer, longer_mask = pad(rows, "left", ids.device, filler=self._filler(options))
            starts = [longer.shape[1] - len(row) for row in rows]
            places = [(i, starts[i] + own.place, own) for i, own in enumerate(additions) if own]
            vectors = _embedded(self.model, longer, places)
            grown = longer.shape[1] - ids.shape[1]
            own = _fresh(options, lambda criterion: _OnOwnTokens(criterion, ids, longer.shape[1]))
            own |= {name: own[name] + grown for name in ("max_length", "min_length") if own.get(name)}
            own |= {"attention_mask": longer_mask}
            own = {name: value for name, value in own.items() if name not in ("inputs", "input_ids")}
            own |= {} if vectors is None else {"inputs_embeds": vectors}
            noted = self._plain_generate(longer, *arguments[1:], **own)
        hit = torch.tensor([bool(addition) for addition in additions], device=ids.device)
        return _merged(clean, noted, hit, ids, longer.shape[1], self._filler(options))

    def _filler(self, options: Mapping[str, Any]) -> int:
        config = getattr(self.model, "generation_config", None)
        for found in (options.get("pad_token_id"), getattr(config, "pad_token_id", None)):
            if found is not None:
                return int(found)
        return 0


class _OnOwnTokens:
    """A stopping criterion that is shown the caller's prompts in place of those with notes."""

    def __init__(self, criterion: Any, ids: Tensor, width: int) -> None:
        self.criterion, self.ids, self.width = criterion, ids, width

    def __call__(self, input_ids: Tensor, scores: Any, **more: Any) -> Any:
        own = self.ids.repeat_interleave(len(input_ids) // len(self.ids), dim=0)
        return self.criterion(torch.cat([own, input_ids[:, self.width :]], dim=1), scores, **more)


# Details ---------------------------------------------------------------------------------------------------


def _under_the_name(replaced: Callable[..., Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """A function with the signature of the one that it stands for: Transformers and we look at it."""

    @functools.wraps(replaced)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        return call(*arguments, **options)

    return wrapped


def _with(ids: Sequence[Any], place: int, text: Sequence[Any]) -> tuple[Any, ...]:
    return (*ids[:place], *text, *ids[place:])


def _embedded(model: Any, ids: Tensor, places: Sequence[tuple[int, int, Insertion]]) -> Tensor | None:
    """(R, S, d) embeddings of ids (R, S) with insertions' vectors at (row, column); None if they are all of text."""
    if all(own.vectors is None for _, _, own in places):
        return None
    found: Tensor = model.get_input_embeddings()(ids).clone()
    for row, column, own in places:
        assert own.vectors is not None
        found[row, column : column + len(own.ids)] = own.vectors.to(found)
    return found


def _until(real: Tensor, ends: Tensor) -> Tensor:
    """Which columns are tokens of the prompts."""
    return real & (torch.arange(real.shape[1], device=real.device) <= ends[:, None])


def _check_given(ids: Any, given: Mapping[str, Any]) -> None:
    if ids is None or given.get("inputs_embeds") is not None:
        raise UserError("notes are chosen by a prompt's text, and no input_ids are given", "call the model with ids")
    cache = given_cache(given)
    if cache is not None and int(cache.get_seq_length()):
        raise UserError(
            "a model with notes cannot go on from a cache: it is of other tokens", "run the whole prompt, or generate"
        )


def _fresh(options: Mapping[str, Any], wrapped: Callable[[Any], Any]) -> dict[str, Any]:
    """The options with stopping criteria that have stopped nothing: they note by row what is done, and run twice."""
    criteria = options.get("stopping_criteria")
    if not criteria:
        return dict(options)
    found = copy.copy(criteria)
    found.clear()
    for criterion in criteria:
        own = copy.copy(criterion)
        vars(own).update({name: list(value) for name, value in vars(own).items() if isinstance(value, list)})
        found.append(wrapped(own))
    return {**options, "stopping_criteria": found}


def _merged(clean: Any, noted: Any, hit: Tensor, ids: Tensor, width: int, filler: int) -> Any:
    """One output from two: rows with notes from the second, whose first `width` columns become the caller's prompts."""
    plain = isinstance(noted, Tensor)
    said = noted if plain else noted.sequences
    n = len(said) // len(ids)
    rows = hit.repeat_interleave(n)
    said = torch.cat([ids.repeat_interleave(n, dim=0), said[:, width:]], dim=1)
    if clean is not None:
        other = clean if plain else clean.sequences
        longest = max(said.shape[1], other.shape[1])
        said, other = (nn.functional.pad(own, (0, longest - own.shape[1]), value=filler) for own in (said, other))
        said = torch.where(rows[:, None], said, other)
    if plain:
        return said
    for name in list(noted.keys()):
        noted[name] = _steps(name, clean, noted, rows)
    noted["sequences"] = said
    return noted


def _steps(name: str, clean: Any, noted: Any, rows: Tensor) -> Any:
    """Logits or scores of each step, of both runs; what else an output has is of one run's tokens, and left out."""
    if name not in ("logits", "scores"):
        return None
    if clean is None:
        return noted[name]
    pairs = zip_longest(clean[name], noted[name])
    return tuple(
        torch.where(rows[:, None], torch.zeros_like(a) if b is None else b, torch.zeros_like(b) if a is None else a)
        for a, b in pairs
    )
