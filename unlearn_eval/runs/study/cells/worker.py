"""Does one cell after another: the model is loaded once, edits are put into it and taken off again."""

from __future__ import annotations

import gc
import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_eval.data.benchmark import Chosen
from unlearn_eval.data.items import ForgetSet
from unlearn_eval.data.recast import JOINED
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.editing.requests.targets import ANSWER, make_targets, targets_jsonl
from unlearn_eval.harness.backends import model_type
from unlearn_eval.metrics import mean_and_stderr, probability
from unlearn_eval.models.load import Check, LoadedModel, load_model
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.weights import WeightsHash, hash_weights
from unlearn_eval.results.files import read_result, read_samples, write_result
from unlearn_eval.results.schema import Result, utc_now
from unlearn_eval.runs.known_items import conversations, known_items
from unlearn_eval.runs.study.attacked import Try
from unlearn_eval.runs.study.cells.result import whole_result
from unlearn_eval.runs.study.cells.second_try import at_most_twice
from unlearn_eval.runs.study.cells.told import (
    MODEL,
    OTHERS,
    REFERENCE,
    STOP,
    TAUGHT,
    asked_of,
    choose,
    depends_on_set,
    forget_set,
    item_lines,
    keeps_what_is_known,
    known_control,
    reference_model,
    told,
    wants_control,
)
from unlearn_eval.runs.study.plan import Ask, Cell
from unlearn_eval.runs.study.store import RESULT, Store, read_if_whole
from unlearn_eval.serving.engine import engine_stopped
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.folders import remove_whole
from unlearn_eval.utils.json_files import dumps, write_all
from unlearn_eval.utils.locks import alone
from unlearn_eval.utils.progress import Progress, no_progress
from unlearn_eval.utils.provenance import hash_json
from unlearn_eval.utils.settings import configure

if TYPE_CHECKING:
    from unlearn_eval.harness.lm import LM

FACTS = "facts"  # the set that is shipped
_EVERYTHING = 2**20  # requests that vLLM is given at once ("auto" does too, with a bar of its own)
_MAX_NEW_TOKENS = 24  # of the answers by which it is told what a model knows


@dataclass
class Loaded:
    """A model in memory.

    Attributes:
        key: which one, and in which dtype.
        model: it.
        weights: its hash, to see that it is still the same.
        prompt_format: how it is asked.
        lm: lm-eval's view of it, unedited.
        known: set -> ids of the items that it knows.
    """

    key: str
    model: LoadedModel
    weights: WeightsHash
    prompt_format: PromptFormat
    lm: Any = None
    known: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Worker:
    """Runs cells in one process.

    Attributes:
        store: where everything is written.
        batch_size, device: as in `Study`.
        keep_edits: as in `Study`.
        command: for the results.
        say, progress: told what is done.
    """

    store: Store
    batch_size: int = 16
    device: str | None = None
    keep_edits: bool = True
    command: list[str] = field(default_factory=lambda: list(sys.argv))
    say: Callable[[str], Any] = lambda text: None
    progress: Progress = no_progress
    loaded: Loaded | None = None

    def run(self, cell: Cell) -> Result:
        """The result of a cell, written.

        Raises:
            Exception: whatever goes wrong in it; the model is as before, or loaded again for the next cell.
        """
        created, started = utc_now(), time.monotonic()
        try:
            loaded = self._load(cell)
            chosen = self._choose(cell, loaded)
            loaded_seconds = time.monotonic() - started
            folder = None if cell.editor is None else self._edit(cell, loaded, chosen)
            edited_seconds = time.monotonic() - started - loaded_seconds
            then = self._taught_then(cell, loaded, chosen, folder)
            parts = self._evaluate(cell, loaded, chosen, folder, then)
            attacked = self._attack(cell, loaded, chosen, folder, then)
        except Exception:
            self._forget_if_changed()
            raise
        timing = {"loading_seconds": loaded_seconds, "editing_seconds": edited_seconds}
        if attacked:
            timing["attack_seconds"] = sum(part.timing["evaluation_seconds"] for part in attacked)
        return self._write(cell, loaded, chosen, folder, parts + attacked, created, timing)

    # The model ---------------------------------------------------------------------------------------------

    def _load(self, cell: Cell) -> Loaded:
        key = hash_json([cell.model_key, cell.model.dtype, cell.chat, *([cell.prompts] if cell.prompts else [])])
        if self.loaded is None or self.loaded.key != key:
            self._unload()
            spec = replace(cell.model, revision=cell.commit or cell.model.revision)
            if cell.finetune is None:
                model = self._read(spec.model, spec.dtype, spec.revision, _check_of(cell))
            else:
                model = self._finetuned(cell, spec)
            self.loaded = Loaded(key, model, model.weights, _format_for(cell, model))
        return self.loaded

    def _read(self, name: str, dtype: str, revision: str | None, check: Check | None = None) -> LoadedModel:
        self.say(f"loading {name}")
        return load_model(name, dtype, self.device, revision, check)

    def _finetuned(self, cell: Cell, spec: Any) -> LoadedModel:
        """The model after it was taught a set; its checkpoint is kept in the study's folder."""
        from unlearn_eval.runs.finetune import ABOUT

        folder = self.store.shared("models", f"{cell.model.name}-{cell.model_key[-12:]}")
        with alone([folder], f"the model {cell.model.name}", self.say):
            if not (folder / ABOUT).is_file():
                self._finetune(cell, spec, folder)
        return self._read(str(folder), spec.dtype, None)

    def _probability_without(self, cell: Cell, chosen: Chosen) -> float:
        """The mean probability per token of the forget answers, of the retain-only model that the study teaches."""
        from unlearn_eval.editing.requests.build import build_requests
        from unlearn_eval.models.scoring import Query, score_answers

        about = [_retain_only(cell).model_key, cell.model.dtype, cell.chat, cell.prompts, chosen.forget.hash]
        path = self.store.shared("references", f"probability-{hash_json(about)[:16]}.json")
        with alone([path], f"the reference of {cell.model.name}", self.say):
            if not path.is_file():
                model = self._taught(cell)
                asked = _format_for(cell, model)
                answers = [item.answer for item in chosen.forget]
                requests = build_requests(chosen.forget.items, answers, asked, (), model.max_length)
                queries = [Query(own.prompt_ids, own.answer_ids) for own in requests]
                scores = score_answers(model.model, queries, self.batch_size)
                found = mean_and_stderr(probability(score.token_nll) for score in scores).mean
                write_all({path.name: dumps({"probability": found}) + "\n"}, path.parent)
        return float(json.loads(path.read_text(encoding="utf-8"))["probability"])

    def _taught(self, cell: Cell, before: bool = False) -> LoadedModel:
        """The retain-only model that the study teaches, or the one before unlearning, beside the cell's in memory."""
        own = _before(cell) if before else _retain_only(cell)
        return self._finetuned(own, replace(own.model, revision=own.commit or own.model.revision))

    def _finetune(self, cell: Cell, spec: Any, folder: Path) -> None:
        from unlearn_eval.data.registry import left_out
        from unlearn_eval.runs.finetune import finetune, preset_of, write_checkpoint

        assert cell.finetune is not None
        base = self._read(spec.model, spec.dtype, spec.revision)
        data = forget_set(cell.finetune.on)
        self.say(f"fine-tuning {cell.model.name} on {data.name}")
        training = self.store.shared("training", folder.name)
        options = {**cell.finetune.settings, "folder": str(training)}
        chosen = preset_of(data, cell.finetune.preset)
        made = finetune(base, data, options, chosen, _format_for(cell, base), 0, self.progress)
        self._say_end(made.info.notes)
        write_checkpoint(base, made, folder, left_out(data.name), self.say)
        remove_whole(training)

    def _say_end(self, notes: Mapping[str, Any]) -> None:
        """What ended a training run before its last step."""
        from unlearn_eval.editing.training.stop import stop_line

        if line := stop_line(notes.get("training", {})):
            self.say(line)

    def _unload(self) -> None:
        self.loaded = None
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _forget_if_changed(self) -> None:
        """After a failure: is the model what it was? If not, the next cell loads it again."""
        if self.loaded is not None and hash_weights(self.loaded.model.model).exact != self.loaded.weights.exact:
            self._unload()

    def _plain_lm(self, loaded: Loaded) -> Any:
        if loaded.lm is None:
            from unlearn_eval.harness.models import lent_lm

            arguments = loaded.prompt_format.template_arguments
            loaded.lm = lent_lm(loaded.model.model, loaded.model.tokenizer, self.batch_size, arguments)
        return loaded.lm

    # What is forgotten -------------------------------------------------------------------------------------

    def _choose(self, cell: Cell, loaded: Loaded) -> Chosen:
        items = forget_set(cell.forget)
        known = self._known(cell, loaded, items) if cell.known else None
        chosen = choose(items, cell.size, cell.seed, cell.kept, known, cell.strict, cell.sequence)
        needs = any(wants_control(ask.task.task) and "retain" not in ask.task.metadata for ask in cell.asks)
        if cell.known and needs and chosen.control is None and cell.kept != 0 and items.name != FACTS:
            facts = forget_set(FACTS)
            return known_control(chosen, facts, self._known(cell, loaded, facts), cell.kept, cell.seed)
        return chosen

    def _known(self, cell: Cell, loaded: Loaded, items: ForgetSet) -> set[str]:
        """The ids of the items that the unedited model answers rightly."""
        if items.hash not in loaded.known:
            self.say(f"asking {cell.model.name} the {len(items)} questions of {items.name}")
            path = self._asked(loaded, items)
            lm = self._plain_lm(loaded)
            with alone([path], f"the answers of {cell.model.name}", self.say):
                loaded.known[items.hash] = known_items(
                    path, items, lm, loaded.prompt_format, self.batch_size, _MAX_NEW_TOKENS, self.progress
                )
        return set(loaded.known[items.hash])

    def _asked(self, loaded: Loaded, items: ForgetSet) -> Path:
        return self.store.shared("asked", f"{hash_json([loaded.key, items.hash])[:16]}.jsonl")

    def _others(self, cell: Cell, loaded: Loaded, chosen: Chosen) -> Path:
        """A file of what the model says to the items of the set that are neither forgotten nor kept."""
        items = forget_set(cell.forget)
        used = {item.id for item in chosen.forget} | set(chosen.kept) | {key for own in chosen.requests for key in own}
        text = conversations(self._asked(loaded, items), items, used, cell.seed)
        path = self.store.shared("texts", f"{hash_json(text)[:16]}.jsonl")
        write_all({path.name: text}, path.parent)
        return path

    # The edit ----------------------------------------------------------------------------------------------

    def _edit(self, cell: Cell, loaded: Loaded, chosen: Chosen) -> Path:
        """The folder of the edit, made unless it is there and whole."""
        folder = self._edit_folder(cell)
        if cell.stage is None and not self.keep_edits:
            return folder if self._is_whole(folder) else self._make_edit(cell, loaded, chosen, folder)
        with alone([folder], f"the edit {folder.name}", self.say):  # other cells need it too, after a change or later
            return folder if self._is_whole(folder) else self._make_edit(cell, loaded, chosen, folder)

    def _edit_folder(self, cell: Cell) -> Path:
        # Every back end asks the same edit. What is done to it then is not in it: those cells share it, if it stays.
        name = replace(cell, backend="hf", then=None if self.keep_edits else cell.then).name
        return self.store.shared("edits", f"{name}-{str(cell.edit_key)[:12]}")

    def _is_whole(self, folder: Path) -> bool:
        """Whether there is an edit as it was written; another one is removed."""
        from unlearn_eval.edits.folder import read_description
        from unlearn_eval.edits.places import is_edit

        if not is_edit(folder):
            return False
        try:
            read_description(folder)
            return True
        except UserError as error:
            self.say(f"{error.message}: it is made again")
            shutil.rmtree(folder)
            return False

    def _make_edit(self, cell: Cell, loaded: Loaded, chosen: Chosen, folder: Path) -> Path:
        """An edit, written; of a sequence it goes on from the one before, which is made if it is not there."""
        from unlearn_eval.edits.load import load_edit
        from unlearn_eval.runs.edit import make_edit

        assert cell.editor is not None  # noqa: PT018
        made = None
        if cell.stage is not None and cell.stage.previous is not None:
            made = load_edit(self._edit(cell.stage.previous, loaded, chosen))
        options, training = dict(cell.editor.settings), self.store.shared("training", folder.name)
        if options.get("text") == OTHERS:
            options["text"] = str(self._others(cell, loaded, chosen))
        if options.get(STOP) == f"{MODEL}{TAUGHT}":
            options[STOP] = repr(self._probability_without(cell, chosen))
        retain = None if cell.retain is None else self._retained(cell, loaded, chosen)
        steps, seconds = self._steps(cell, loaded, chosen), 0.0
        for i, (items, recipe) in enumerate(steps):
            self.say(f"{cell.editor.name} on {len(items)} items of {items.name}")
            if _trains(cell.editor.editor):
                options["folder"] = str(training if len(steps) == 1 else training / f"request-{i}")

            make = partial(
                make_edit,
                loaded.model,
                items,
                cell.editor.editor,
                recipe=recipe,
                state=made,
                progress=self.progress,
                retain=retain,
                unrelated=i + 1 == len(steps),
            )
            made, less = at_most_twice(make, cell.editor.editor, options, self.say)
            if less is not None:
                made = replace(made, info=replace(made.info, notes=made.info.notes | {"out_of_memory_before": less}))
            self._say_end(made.info.notes)
            seconds += made.info.seconds or 0.0
        assert made is not None
        made = replace(made, info=replace(made.info, seconds=round(seconds, 2)))
        made.save(folder, loaded.model.tokenizer, loaded.model.model.config)
        remove_whole(training)
        return folder

    def _steps(self, cell: Cell, loaded: Loaded, chosen: Chosen) -> list[tuple[ForgetSet, Recipe]]:
        """What the cell's own edit is asked for: one step, or of a sequence of groups one for each."""
        assert cell.recipe is not None
        recipe = replace(cell.recipe.recipe, seed=cell.seed, chat=cell.chat, **cell.prompts)
        if cell.stage is None or cell.sequence is None:
            return [(chosen.forget, recipe)]
        size, stage, items = cell.sequence.per_step, cell.stage, forget_set(cell.forget)
        own = chosen.requests[stage.start : stage.mark]
        if stage.learns and own:
            return [self._together(loaded, recipe, items.select(key for ids in own for key in ids), chosen)]
        if stage.learns:
            assert chosen.learned is not None
            return [(chosen.learned, replace(recipe, target=ANSWER, per_step=size))]
        if cell.sequence.of_groups and size:
            steps = [own[i : i + size] for i in range(0, len(own), size)]
            return [(items.select(key for ids in step for key in ids), recipe) for step in steps]
        return [(items.select(key for ids in own for key in ids), replace(recipe, per_step=size))]

    def _together(
        self, loaded: Loaded, recipe: Recipe, forgotten: ForgetSet, chosen: Chosen
    ) -> tuple[ForgetSet, Recipe]:
        """What is forgotten and what is learned as one step, each item with its own target."""
        assert chosen.learned is not None
        asked = random.Random(recipe.seed), loaded.model, loaded.prompt_format
        targets = make_targets(recipe.target, forgotten.items, *asked, seed=recipe.seed, progress=self.progress)
        targets += make_targets(ANSWER, chosen.learned.items, *asked)
        text = targets_jsonl(targets)
        path = self.store.shared("targets", f"{hash_json(text)[:16]}.jsonl")
        write_all({path.name: text}, path.parent)
        both = ForgetSet(f"{forgotten.name}{JOINED}{chosen.learned.name}", (*forgotten.items, *chosen.learned.items))
        return both, replace(recipe, target=str(path), per_step=0)

    def _retained(self, cell: Cell, loaded: Loaded, chosen: Chosen) -> ForgetSet:
        """What a method that is trained keeps: of the forget set itself only what is known, and not asked as kept."""
        whole = retain = forget_set(str(cell.retain))
        if cell.sequence is not None:  # what another request is about is not to be retained either
            asked = forget_set(cell.forget).select(key for own in chosen.requests for key in own)
            taken = {item.question.strip() for item in (*asked, *(chosen.learned or ()))}
            retain = replace(retain, items=tuple(item for item in retain if item.question.strip() not in taken))
        if not keeps_what_is_known(cell.known, cell.retain, cell.forget):
            return retain
        able = {item.id for item in retain} - {*chosen.kept, *(item.id for item in chosen.forget)}
        ids = [key for key in loaded.known[whole.hash] if key in able]
        if not ids:
            raise UserError(
                f"of '{retain.name}' the model knows nothing but what is forgotten and asked as kept",
                "give smaller sizes or kept, or another retain set",
            )
        return retain.select(ids)

    # What is done then -------------------------------------------------------------------------------------

    def _taught_then(self, cell: Cell, loaded: Loaded, chosen: Chosen, folder: Path | None) -> Path | None:
        """The folder of what the edited model is taught then, made unless it is there; None if it is taught nothing."""
        from unlearn_eval.edits.places import is_edit
        from unlearn_eval.runs.finetune import finetune

        if cell.then is None or not cell.then.teaches:
            return None
        about = hash_json([cell.model_key, cell.model.dtype, cell.chat, cell.prompts, cell.edit_key, cell.then_key])
        target = self.store.shared("then", f"{cell.then.name}-{about[:16]}")
        if is_edit(target):
            return target
        data = forget_set(str(cell.then.on))
        self.say(f"{cell.then.name}: teaching {data.name}")
        with self._with_edit(loaded, folder):
            made = finetune(
                loaded.model, data, cell.then.settings, None, loaded.prompt_format, cell.seed, self.progress
            )
        made.save(target, loaded.model.tokenizer, loaded.model.model.config)
        return target

    @contextmanager
    def _with_edit(self, loaded: Loaded, folder: Path | None) -> Iterator[None]:
        """The model with the edit of a folder, if there is one."""
        from unlearn_eval.edits.base import applied
        from unlearn_eval.edits.load import load_edit

        with nullcontext() if folder is None else applied(load_edit(folder), loaded.model.model):
            yield

    @contextmanager
    def _then(self, cell: Cell, loaded: Loaded, then: Path | None) -> Iterator[None]:
        """The model, edited or not, with what is done to it then."""
        from unlearn_eval.runs.study.cells.afterwards import rewritten

        if cell.then is None or cell.then.teaches:
            with self._with_edit(loaded, then):
                yield
        else:
            with rewritten(cell.then, loaded.model.model):
                yield

    def _on_top(self, cell: Cell, loaded: Loaded, then: Path | None, lm: Any) -> Any:
        """`_then` while a model answers, which also takes it off and puts it back where it does so with its edit."""
        change = partial(self._then, cell, loaded, then)
        return lm.changed_by(change) if cell.then is not None and hasattr(lm, "changed_by") else change()

    # The evaluation ----------------------------------------------------------------------------------------

    def _evaluate(
        self, cell: Cell, loaded: Loaded, chosen: Chosen, folder: Path | None, then: Path | None
    ) -> list[Result]:
        """One result for each task; those that are there are read."""
        places = [self.store.shared("evaluations", f"{ask.task.task}-{ask.key[:16]}.json") for ask in cell.asks]
        found = [read_if_whole(path) for path in places]
        left = [i for i, result in enumerate(found) if result is None]
        if left:
            with self._lm(cell, loaded, folder) as lm, self._on_top(cell, loaded, then, lm):
                weights: WeightsHash | None = loaded.weights
                if folder is not None or cell.then is not None:  # of an engine, the edit's id says it
                    weights = None if cell.backend == "vllm" else hash_weights(loaded.model.model)
                for i in left:
                    found[i] = self._ask(cell, cell.asks[i], places[i], lm, loaded, chosen, weights)
        return [result for result in found if result is not None]

    @contextmanager
    def _lm(self, cell: Cell, loaded: Loaded, folder: Path | None) -> Iterator[Any]:
        if cell.backend == "vllm":
            with self._engine(cell, loaded, folder) as lm:
                yield lm
            return
        if folder is None:
            yield self._plain_lm(loaded)
            return
        from unlearn_eval.harness.models import EditedLM

        lm = EditedLM(loaded.model.model, str(folder), tokenizer=loaded.model.tokenizer, batch_size=self.batch_size)
        try:
            yield lm
        finally:
            lm.take_off()

    @contextmanager
    def _engine(self, cell: Cell, loaded: Loaded, folder: Path | None) -> Iterator[Any]:
        """A vLLM engine with the edit in it; on a GPU the model that was edited makes room for it."""
        from unlearn_eval.harness.run import load_lm

        self.say("starting vLLM")
        arguments: dict[str, Any] = {"pretrained": loaded.model.path, "dtype": cell.model.dtype}
        device = loaded.model.model.device
        if folder is not None:
            arguments["edit"] = str(folder)
        elif loaded.prompt_format.template_arguments:
            arguments["chat_template_args"] = dict(loaded.prompt_format.template_arguments)
        if device.type == "cuda":
            loaded.model.model.to("cpu")
            loaded.lm = None
        try:
            lm = load_lm(model_type("vllm", folder is not None), arguments, _EVERYTHING)
            with engine_stopped(lm):
                yield lm
        finally:
            loaded.model.model.to(device)

    def _ask(self, cell: Cell, ask: Ask, path: Path, lm: LM, loaded: Loaded, chosen: Chosen, weights: Any) -> Result:
        metadata = asked_of(ask.task, self._metadata(ask.task.task, chosen), chosen)
        if (reference := reference_model(metadata)) is not None:
            metadata[REFERENCE] = str(self._reference(cell, ask, metadata, reference))
        return self._evaluated(cell, ask, path, lm, loaded.prompt_format, metadata, loaded.model.describe(weights))

    def _evaluated(
        self,
        cell: Cell,
        ask: Ask,
        path: Path,
        lm: LM,
        prompt_format: PromptFormat,
        metadata: Mapping[str, Any],
        model: dict[str, Any],
    ) -> Result:
        from unlearn_eval.harness.run import SEED, evaluate

        task, created, started = ask.task, utc_now(), time.monotonic()
        self.say(f"asking {task.task}")
        found = evaluate(
            lm,
            [task.task],
            include_path=task.include_path,
            limit=task.limit,
            num_fewshot=task.num_fewshot,
            apply_chat_template=prompt_format.chat,
            system_instruction=task.system_instruction or prompt_format.system,
            gen_kwargs=task.gen_kwargs,
            metadata=metadata,
            seed=SEED + (cell.seed if depends_on_set(task.task) else 0),  # whose key has the seed
        )
        result = Result.part(
            "evaluation",
            created,
            config={"tasks": found.configs},
            model=model,
            data=found.data,
            metrics=found.metrics,
            timing={"evaluation_seconds": round(time.monotonic() - started, 2)},
        )
        write_result(result, path, found.samples)
        return read_result(path)

    def _reference(self, cell: Cell, ask: Ask, metadata: Mapping[str, Any], name: str) -> Path:
        """The result of the retain-only model of this name on the same task, asked in the same way."""
        from unlearn_eval.harness.models import lent_lm

        own = {key: value for key, value in metadata.items() if key != REFERENCE}
        about = [
            name,
            _retain_only(cell).model_key if name == TAUGHT else ask.reference,
            cell.model.dtype,
            cell.chat,
            cell.prompts,
            asdict(replace(ask.task, metadata=own)),
            cell.seed,
        ]
        path = self.store.shared("references", f"{ask.task.task}-{hash_json(about)[:16]}.json")
        with alone([path], f"the numbers of {name}", self.say):
            if read_if_whole(path) is None:
                model = self._taught(cell) if name == TAUGHT else self._read(name, cell.model.dtype, None)
                asked = _format_for(cell, model)
                lm = lent_lm(model.model, model.tokenizer, self.batch_size, asked.template_arguments)
                self._evaluated(cell, ask, path, lm, asked, own, model.describe(model.weights))
        return path

    def _metadata(self, task: str, chosen: Chosen) -> dict[str, Any]:
        """What the task is told; a set that has no name of its own is written to a file."""
        metadata, _ = told(task, chosen)
        for key, value in metadata.items():
            if isinstance(value, ForgetSet):
                path = self.store.shared("sets", f"{value.hash[:16]}.jsonl")
                write_all({path.name: "".join(dumps(line) + "\n" for line in item_lines(value.items))}, path.parent)
                metadata[key] = str(path)
        return metadata

    # Attacks -----------------------------------------------------------------------------------------------

    def _attack(
        self, cell: Cell, loaded: Loaded, chosen: Chosen, folder: Path | None, then: Path | None
    ) -> list[Result]:
        """One result for each attack; those that are there are read."""
        from unlearn_eval.edits.load import load_edit

        found = []
        for own in cell.tries:
            path = self.store.shared("attacks", f"{own.attack.name}-{own.key[:16]}.json")
            done = read_if_whole(path)
            if done is None and cell.before_key is None:
                done = self._try(cell, own, path, loaded, chosen, load_edit(str(folder)))
            elif done is None:  # what is attacked is the model as it stands, whatever was done to it
                with self._with_edit(loaded, folder), self._then(cell, loaded, then):
                    done = self._try(cell, own, path, loaded, chosen, None)
            assert done is not None
            found.append(done)
        return found

    def _other_facts(self, cell: Cell, loaded: Loaded, chosen: Chosen, retain: str | None) -> ForgetSet | None:
        """Facts for an attack's controls and training; of the forget set itself only what the model knows, if asked."""
        from unlearn_eval.attacks.run import others_of

        found = others_of(chosen.forget, retain)
        if found is None or not cell.known or found.name != chosen.forget.name:
            return found
        known = set(loaded.known[forget_set(cell.forget).hash])
        items = tuple(item for item in found if item.id in known)
        return replace(found, items=items) if items else None

    def _try(self, cell: Cell, own: Try, path: Path, loaded: Loaded, chosen: Chosen, edit: Any) -> Result:
        from unlearn_eval.attacks.base import Case, get_attack
        from unlearn_eval.attacks.controls import kept_controls
        from unlearn_eval.attacks.run import attack_case, described, robustness, sample_lines, task_name

        attack, created, started = own.attack, utc_now(), time.monotonic()
        self.say(f"attack: {attack.name}")
        dtype = str(loaded.model.model.dtype).removeprefix("torch.")
        case = Case(
            loaded=loaded.model,
            edit=edit,
            items=chosen.forget,
            prompt_format=loaded.prompt_format,
            others=self._other_facts(cell, loaded, chosen, attack.retain),
            batch_size=self.batch_size,
            max_new_tokens=attack.max_new_tokens,
            open_reference=self._opens_reference(cell, attack.reference, dtype),
            open_full=None if edit is not None else lambda: self._taught(cell, before=True),
            progress=self.progress,
        )
        method = get_attack(attack.attack)
        settings, known = configure(method.Config, attack.settings), None
        if own.control_key and (edit is None or edit.kind in method.kinds):
            place = self.store.shared("controls", f"{attack.attack}-{own.control_key[:16]}.json")
            with alone([place], f"the controls of {attack.attack}", self.say):
                known = kept_controls(method, case, settings, place)
        made = attack_case(method, case, settings, known)
        task, items = task_name(attack.name), made.items or chosen.forget
        result = Result.part(
            "attack",
            created,
            config={"tasks": {task: described(made, case)}},
            model=loaded.model.describe(loaded.weights),
            data={task: {"hash": items.hash, "n": len(items)}},
            metrics={task: made.summary.metrics},
            robustness={task: robustness(made)},
            timing={"evaluation_seconds": round(time.monotonic() - started, 2)},
            notes=made.notes,
        )
        write_result(result, path, {task: sample_lines(made, items)})
        return read_result(path)

    def _opens_reference(self, cell: Cell, name: str | None, dtype: str) -> Callable[[], LoadedModel] | None:
        """What loads the model that never knew the items, if an attack names one."""
        if name == f"{MODEL}{TAUGHT}":
            return lambda: self._taught(cell)
        return None if name is None else lambda: self._read(str(name), dtype, None)

    # The result --------------------------------------------------------------------------------------------

    def _write(
        self,
        cell: Cell,
        loaded: Loaded,
        chosen: Chosen,
        folder: Path | None,
        parts: list[Result],
        created: str,
        timing: dict[str, float],
    ) -> Result:
        """The parts as one result in the cell's folder."""
        from unlearn_eval.edits.folder import read_description

        edit = None if folder is None else {"folder": str(folder), **read_description(folder)["info"]}
        device = loaded.model.model.device
        result = whole_result(cell, chosen, edit, parts, device, timing, created, self.command)
        assert all(part.path is not None for part in parts)
        samples = {task: read_samples(str(part.path), task) for part in parts for task in part.samples}
        path = self.store.run_folder(cell.name, cell.key) / RESULT
        write_result(result, path, samples)
        if not self.keep_edits:
            for own in () if folder is None else self._edits_done_with(cell, folder):
                shutil.rmtree(own, ignore_errors=True)
        return read_result(path)

    def _edits_done_with(self, cell: Cell, folder: Path) -> list[Path]:
        """The edits that nothing needs any more: of a sequence not the one from which the next mark goes on."""
        if cell.stage is None:
            return [folder]
        before = [] if cell.stage.previous is None else [self._edit_folder(cell.stage.previous)]
        return before + ([folder] if cell.stage.is_last else [])


def _format_for(cell: Cell, model: LoadedModel) -> PromptFormat:
    return model.prompt_format(cell.chat, cell.system, cell.chat_template_kwargs)


def _retain_only(cell: Cell) -> Cell:
    """The cell with the retain-only model that the study teaches."""
    assert cell.finetune is not None and cell.finetune.reference is not None and cell.reference_key  # noqa: PT018
    return replace(cell, finetune=cell.finetune.of(cell.finetune.reference), model_key=cell.reference_key)


def _before(cell: Cell) -> Cell:
    """The cell with the model before unlearning that the study teaches."""
    assert cell.finetune is not None and cell.finetune.before is not None and cell.before_key  # noqa: PT018
    return replace(cell, finetune=cell.finetune.of(cell.finetune.before), model_key=cell.before_key)


def _check_of(cell: Cell) -> Check | None:
    """A check that the cell's method can edit the architecture; None without an edit."""
    from unlearn_eval.editing.editor import get_editor
    from unlearn_eval.runs.edit import model_check

    return None if cell.editor is None else model_check(get_editor(cell.editor.editor), cell.editor.settings)


def _trains(editor: str) -> bool:
    from unlearn_eval.editing.editor import get_editor

    return "folder" in get_editor(editor).settings
