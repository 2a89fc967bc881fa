"""The memory that a command will need, from a model's configuration: nothing is loaded, nothing large is downloaded.

The model is built without weights, and what takes memory runs on it (`models.memory`): the editor's or the trainer's
own code, and generation and scoring as an evaluation has them. A plan is a list of phases; the largest one is what has
to fit.

Lengths of prompts are those of the tokenizer if the model's folder (or the hub's cache) has one, else an estimate by
letters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_eval.data.benchmark import NOTES
from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.editing.editor import EditJob, Editor
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.editing.requests.build import build_requests
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.models.assets import hub_reachable
from unlearn_eval.models.places import resolve_model
from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from unlearn_eval.data.benchmark import FinetunePreset
    from unlearn_eval.models.memory import Phase

CARDS = (24, 40, 80, 141)  # GB of the usual cards
CONTEXT_BYTES = 10**9  # what CUDA has for itself, or Python and its libraries
AROUND, LETTERS = 24, 4  # tokens that a template puts around a question, and letters of a token
BATCH_SIZE, NEW_TOKENS = 16, 64


@dataclass(frozen=True)
class Sized:
    """A model of which the configuration is known.

    Attributes:
        name: as the user gave it.
        config: its configuration.
        dtype: in which it is loaded.
        path: its folder or hub id, where its tokenizer may be.
    """

    name: str
    config: PretrainedConfig
    dtype: str
    path: str

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model without weights."""
        import torch

        from unlearn_eval.models.memory import weightless

        return weightless(self.config, getattr(torch, self.dtype))

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer; None where that would have to be downloaded."""
        from transformers import AutoTokenizer

        try:
            found = AutoTokenizer.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
            return found if found("word").input_ids else None  # of a config.json alone some classes make an empty one
        except (OSError, ValueError, KeyError, ImportError):
            return None

    @cached_property
    def requests(self) -> dict[tuple[Any, ...], list[EditRequest]]:
        """Those that were built already: a study asks the same of one model for many methods."""
        return {}

    @property
    def n_parameters(self) -> int:
        """How many numbers its weights have, tied ones once."""
        return sum(own.numel() for own in self.model.parameters())

    @property
    def weights_bytes(self) -> int:
        """What its weights take in memory."""
        from unlearn_eval.models.memory import weights_bytes

        return weights_bytes(self.model)

    @property
    def download_bytes(self) -> int:
        """What its checkpoint takes on the disk: by its files or their index, else in its published type."""
        index = Path(self.path) / "model.safetensors.index.json"
        if index.is_file():
            return int(json.loads(index.read_text(encoding="utf-8"))["metadata"]["total_size"])
        if files := list(Path(self.path).glob("*.safetensors")) if Path(self.path).is_dir() else []:
            return sum(file.stat().st_size for file in files)
        published: Any = getattr(self.config, "dtype", None)
        return self.n_parameters * (published.itemsize if hasattr(published, "itemsize") else 2)

    def in_type(self, dtype: str) -> Sized:
        """The same, loaded in another type."""
        return replace(self, dtype=dtype)


def sized(name: str, dtype: str = "float32", revision: str | None = None) -> Sized:
    """A model by its configuration alone.

    Args:
        name: what `load_model` takes; also a folder that has nothing but a config.json, or that file.
        dtype: as for `load_model`.
        revision: a hub model's branch, tag or commit.

    Raises:
        UserError: there is no configuration to read, or it is quantized or no causal language model.
    """
    from transformers import AutoConfig

    path = Path(name).expanduser()
    if name.lower().endswith(".gguf"):
        raise UserError(f"{name} is a GGUF file, which has no config.json", "give that of the model it is of")
    if path.name == "config.json" and path.is_file():
        path = path.parent
    place = str(path) if (path / "config.json").is_file() else resolve_model(name)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    if not Path(place).exists() and not hub_reachable():
        options["local_files_only"] = True
    try:
        config = AutoConfig.from_pretrained(place, **options)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"the configuration of {name} cannot be read: {' '.join(str(error).split())[:120]}",
            "give its config.json, which may lie in a folder by itself",
        ) from error
    if getattr(config, "quantization_config", None) is not None or getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{name} is quantized, or no causal language model", "give a decoder-only model in full precision"
        )
    published = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return Sized(name, config, published if dtype == "auto" else dtype, place)


@dataclass(frozen=True)
class MemoryPlan:
    """What a command needs.

    Attributes:
        what: the command, in words.
        model: the model.
        phases: of its work.
        disk: what it writes, and what has to be there -> bytes.
        notes: what the numbers leave out.
    """

    what: str
    model: Sized
    phases: tuple[Phase, ...]
    disk: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def largest(self) -> Phase:
        """The phase in which most is in memory."""
        return max(self.phases, key=lambda phase: phase.n_bytes)

    @property
    def peak_bytes(self) -> int:
        """The most that is in memory at once."""
        return self.model.weights_bytes + self.largest.n_bytes

    def fits(self, card: int) -> bool:
        """Whether that fits a card of so many GB, of which one is CUDA's."""
        return self.peak_bytes + CONTEXT_BYTES <= card * 10**9

    @property
    def record(self) -> dict[str, Any]:
        """The plan as JSON has it."""
        return {
            "command": self.what,
            "model": self.model.name,
            "dtype": self.model.dtype,
            "n_parameters": self.model.n_parameters,
            "weights_bytes": self.model.weights_bytes,
            "peak_bytes": self.peak_bytes,
            "largest_phase": self.largest.name,
            "phases": [{"name": own.name, "bytes": own.n_bytes, "held": dict(own.held)} for own in self.phases],
            "disk": dict(self.disk),
            "notes": list(self.notes),
        }


# Questions ---------------------------------------------------------------------------------------------------


def without_writing(recipe: Recipe) -> Recipe:
    """The recipe with a fixed refusal in place of what the model would write itself."""
    return replace(recipe, target=Recipe().target) if recipe.target == "self" else recipe


def requests_of(model: Sized, items: Sequence[ForgetItem], recipe: Recipe) -> list[EditRequest]:
    """The requests of some items, as long as they will be; what the model would write itself is a fixed refusal."""
    key = (tuple(items), repr(recipe))
    if key not in model.requests:
        model.requests[key] = _requests_of(model, items, recipe)
    return model.requests[key]


def _requests_of(model: Sized, items: Sequence[ForgetItem], recipe: Recipe) -> list[EditRequest]:
    import random

    from unlearn_eval.editing.requests.targets import make_targets

    made = make_targets(without_writing(recipe).target, items, random.Random(recipe.seed))
    targets = [own.target for own in made]
    contexts = [" ".join(["word"] * 8) + "."] * recipe.n_contexts
    if model.tokenizer is not None:
        from unlearn_eval.models.prompt_format import PromptFormat

        arguments = recipe.chat_template_kwargs or None
        prompt_format = PromptFormat.of(model.tokenizer, recipe.chat, model.name, recipe.system, arguments)
        return build_requests(items, targets, prompt_format, contexts)
    return [_by_letters(i, item, target, contexts) for i, (item, target) in enumerate(zip(items, targets, strict=True))]


def _by_letters(i: int, item: ForgetItem, target: str, contexts: Sequence[str]) -> EditRequest:
    def ids(text: str, around: int = 0) -> tuple[int, ...]:
        return (i, *range(1, around + -(-len(text) // LETTERS)))

    prompt = ids(item.question, AROUND)
    lookup = len(prompt) - AROUND // 4
    longer = [ids(f"{context} {item.question}", AROUND) for context in contexts]
    return EditRequest(
        item.id,
        prompt,
        lookup,
        (*ids(target), 0),
        ids(item.subject) if item.subject else (),
        tuple((row, len(row) - AROUND // 4) for row in longer),
        answer_ids=(*ids(item.answer), 0),
    )


# Phases that several commands have ---------------------------------------------------------------------------


def answers(model: PreTrainedModel, requests: Sequence[EditRequest], batch_size: int, new_tokens: int) -> list[Phase]:
    """What asking questions has in memory: greedy answers, and the scores of the true ones."""
    longest = sorted(requests, key=lambda own: -len(own.prompt_ids) - len(own.answer_ids))[:batch_size]
    lengths = tuple((len(own.prompt_ids), len(own.answer_ids)) for own in longest)
    return list(_answers(model, lengths, batch_size, new_tokens))


@lru_cache(maxsize=8)  # the same for every editor of a model
def _answers(
    model: PreTrainedModel, lengths: tuple[tuple[int, int], ...], batch_size: int, new_tokens: int
) -> tuple[Phase, ...]:
    from unlearn_eval.models.memory import Phase, generation, taken
    from unlearn_eval.models.scoring import Query, score_answers

    queries = [Query((i, *range(1, prompt)), tuple(range(answer))) for i, (prompt, answer) in enumerate(lengths)]
    written = generation(model, batch_size, max(prompt for prompt, _ in lengths), new_tokens)
    scored = taken(model, lambda: score_answers(model, queries, batch_size))
    return Phase("answers", written), Phase("scores", scored)


def loglikelihood(model: PreTrainedModel, rows: int, length: int) -> Phase:
    """What lm-eval has in memory for the likelihood of texts: logits of whole rows, twice."""
    import torch

    from unlearn_eval.models.memory import Phase, ids_of, taken

    def run() -> None:
        with torch.no_grad():
            logits = model(input_ids=ids_of(rows, length)).logits
            torch.nn.functional.log_softmax(logits, dim=-1, dtype=torch.float32)

    return Phase("loglikelihood", taken(model, run))


# Commands ----------------------------------------------------------------------------------------------------


def plan_edit(
    model: Sized,
    method: Editor,
    forget: ForgetSet,
    options: Mapping[str, str] | None = None,
    recipe: Recipe | None = None,
    retain: ForgetSet | None = None,
    device: str = "cuda",
) -> MemoryPlan:
    """The memory of making an edit.

    Args:
        model: the base model.
        method: the editor.
        forget, recipe, retain: as for `make_edit`.
        options: settings of the method, as text.
        device: kind of device.

    Raises:
        UserError: the method cannot edit the model with these settings.
    """
    from unlearn_eval.runs.edit import check_recipe, published_settings

    recipe = recipe or Recipe()
    check_recipe(method, recipe, retain)
    config = published_settings(model.model, method, forget.name, recipe, options or {})
    method.check_model(config, model.model)
    requests = requests_of(model, forget.items, recipe)
    kept = (
        requests_of(model, (retain or forget).items, replace(recipe, target=Recipe().target)) if method.trained else ()
    )
    step = requests[: recipe.per_step or None]
    job = EditJob(model.model, model.tokenizer, step, config, retain=kept)
    notes: list[str] = []
    phases: list[Phase] = []
    if method.memory is None:
        notes.append(f"what {method.name} itself takes is not in it: its file declares no memory")
    else:
        phases += method.memory(job, device)
    left = {kind: n for phase in phases for kind, n in phase.left.items()}
    phases += [own.beside(left) for own in answers(model.model, requests, BATCH_SIZE, 16)]
    return MemoryPlan(f"edit with {method.name}", model, tuple(phases), _disk(model, phases), tuple(notes))


def plan_finetune(
    model: Sized,
    data: ForgetSet,
    options: Mapping[str, str] | None = None,
    preset: FinetunePreset | None = None,
    device: str = "cuda",
) -> MemoryPlan:
    """The memory of fine-tuning on questions and answers; arguments as for `finetune`, and the kind of device."""
    from unlearn_eval.editing.training.gradient import memory
    from unlearn_eval.runs.finetune import FINETUNE, finetune_config

    config = finetune_config(options or {}, preset, 0)
    requests = requests_of(model, data.items, Recipe(n_contexts=0))
    if preset is not None and preset.rows == NOTES:
        from unlearn_eval.runs.lte import longest_rows

        requests = longest_rows(requests)
    phases = memory(FINETUNE, EditJob(model.model, model.tokenizer, requests, config), device)
    return MemoryPlan("finetune", model, tuple(phases), _disk(model, phases))


def plan_eval(
    model: Sized, data: ForgetSet, batch_size: int = BATCH_SIZE, new_tokens: int = NEW_TOKENS, length: int = 0
) -> MemoryPlan:
    """The memory of an evaluation in Transformers.

    Args:
        model: the base model.
        data: what is asked.
        batch_size: rows per forward pass.
        new_tokens: of an answer.
        length: tokens of a document of lm-eval's own tasks; 0: none of these is evaluated.
    """
    requests = requests_of(model, data.items, Recipe(n_contexts=0))
    phases = answers(model.model, requests, batch_size, new_tokens)
    if length:
        phases.append(loglikelihood(model.model, batch_size, length))
    return MemoryPlan(f"eval at batch {batch_size}", model, tuple(phases), _disk(model, phases))


def plan_attack(
    model: Sized,
    name: str,
    data: ForgetSet,
    options: Mapping[str, str] | None = None,
    batch_size: int = BATCH_SIZE,
    device: str = "cuda",
    reference: bool = False,
) -> MemoryPlan:
    """The memory of an attack, as far as it is known from what the attack declares.

    Args:
        model: the base model, without the edit.
        name: of the attack.
        data: what was to be forgotten.
        options: settings of the attack, as text.
        batch_size: rows per forward pass.
        device: kind of device.
        reference: whether a second model is compared with, which is in memory at the same time.
    """
    from unlearn_eval.attacks.base import get_attack
    from unlearn_eval.attacks.retraining import memory
    from unlearn_eval.utils.settings import configure

    attack = get_attack(name)
    config = configure(attack.Config, options or {})
    requests = requests_of(model, data.items, Recipe(n_contexts=0))
    phases = answers(model.model, requests, batch_size, 24)
    notes: tuple[str, ...] = ("what the edit keeps in the model is not in it: see plan edit",)
    if attack.retrains:
        phases += memory(model.model, requests, config, device)
    elif attack.work(config, len(data), 1).trained or attack.work(config, len(data), 1).read:
        notes += (f"passes of {name} beside answers are not in it",)
    if reference:
        phases = [own.beside({"reference model": model.weights_bytes}) for own in phases]
    return MemoryPlan(f"attack {name}", model, tuple(phases), _disk(model, phases), notes)


def _disk(model: Sized, phases: Sequence[Phase]) -> dict[str, int]:
    return {"checkpoint": model.download_bytes} | {kind: n for phase in phases for kind, n in phase.disk.items()}


# What makes it fit -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """An option that takes less memory.

    Attributes:
        text: as it is given on the command line.
        dtype: in which the model is loaded then; None leaves that.
        settings: of the method.
        batch_size: rows per forward pass; None leaves that.
    """

    text: str
    dtype: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    batch_size: int | None = None


def choices(dtype: str, config: Any = None, batch_size: int | None = None) -> list[Choice]:
    """What may be tried, by the settings that there are, from what changes least to what changes most.

    Args:
        dtype: in which the model is loaded.
        config: of the method, if there is one.
        batch_size: rows per forward pass, if the command has it.
    """

    def at(path: str) -> Any:
        found = config
        for name in path.split("."):
            found = getattr(found, name, None)
        return found

    found = []
    if batch_size and batch_size > 1:
        found.append(Choice("--batch_size 1", batch_size=1))
    for name, less in (("target.tokens_per_batch", "256"), ("tokens_per_batch", "128"), ("batch", "1")):
        if isinstance(at(name), int) and at(name) not in (1, int(less)):
            found.append(Choice(f"--set {name}={less}", settings={name: less}))
    if isinstance(at("micro_batch_size"), int) and at("micro_batch_size") > 1:
        found.append(Choice("--set micro_batch_size=1", settings={"micro_batch_size": "1"}))
    if at("gradient_checkpointing") is False:
        found.append(Choice("--set gradient_checkpointing=true", settings={"gradient_checkpointing": "true"}))
    if dtype == "float32":
        found.append(Choice("--dtype bfloat16", dtype="bfloat16"))
    if at("lora_rank") == 0 and not at("masks"):
        found.append(Choice("--set lora_rank=8", settings={"lora_rank": "8"}))
    return found


def smaller(plan: Callable[[Choice], MemoryPlan], tried: Sequence[Choice]) -> Iterator[MemoryPlan]:
    """Plans with one option more each time, of those that help, until none is left; each is planned anew.

    Args:
        plan: function from options to the plan with them.
        tried: the options, in their order.
    """
    together, least = Choice(""), plan(Choice(""))
    for choice in tried:
        both = Choice(
            f"{together.text} {choice.text}".strip(),
            choice.dtype or together.dtype,
            {**together.settings, **choice.settings},
            choice.batch_size or together.batch_size,
        )
        own = plan(both)
        if own.peak_bytes < 0.99 * least.peak_bytes:
            together, least = both, replace(own, what=both.text)
            yield least
