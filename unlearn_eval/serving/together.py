"""Several edits of one base model, evaluated in one vLLM engine at once: each is a LoRA, and their requests are mixed.

lm-eval evaluates one model after another, and would leave the engine half empty at the end of each. Here every edit
has a view of the engine (`View`) and an evaluation of its own, in a thread of its own. Only one of them runs at a time;
when all of them wait for the engine, it is given the requests of all, by the thread that started it: on a CPU an engine
that is asked by another thread than its own takes twice as long.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn_eval.edits.base import EditInfo
from unlearn_eval.edits.folder import ADAPTER_CONFIG, check_names_base, read_description
from unlearn_eval.edits.places import DESCRIPTION, local_folder
from unlearn_eval.serving import vllm_models
from unlearn_eval.serving.engine import engine_stopped
from unlearn_eval.serving.vllm_requests import extends_workers
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.provenance import sha256_of_file

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM allows
PACKED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # several of them are one module there


@dataclass(frozen=True)
class Adapter:
    """A low-rank edit as vLLM's LoRA takes it.

    Attributes:
        folder: of the edit.
        info: what it is.
        rank: of its factors as they are stored.
        modules: the full names of the modules that it changes.
    """

    folder: str
    info: EditInfo
    rank: int
    modules: frozenset[str]


def read_adapter(folder: str) -> Adapter:
    """An edit's folder as an adapter.

    Raises:
        UserError: an edit that is no LoRA, or has too high a rank.
    """
    folder = str(local_folder(folder))
    description, alone = read_description(folder), "evaluate it by itself: --edit DIR --backend vllm"
    kind = description["kind"]
    if kind != "low_rank":
        raise UserError(f"{folder} is a {kind} edit, and only low-rank ones can share an engine", alone)
    check_names_base(description["info"]["base"])
    config = json.loads((Path(folder) / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    if config["r"] > RANKS[-1]:
        raise UserError(f"{folder} has rank {config['r']}, and vLLM's LoRA goes up to {RANKS[-1]}", alone)
    return Adapter(folder, EditInfo(**description["info"]), int(config["r"]), frozenset(config["target_modules"]))


def _started(model: str, adapters: Sequence[Adapter], options: Mapping[str, Any]) -> Any:
    """lm-eval's model with room for every adapter, in the modules that they change and no others.

    A module with room for adapters is slow even where they have nothing: on a CPU all down-projections of a model take
    longer than the model itself. Not every model of vLLM has its modules under their names in the checkpoint; then it
    is started again with room wherever a module's last name is one of theirs.
    """
    names = frozenset().union(*(adapter.modules for adapter in adapters))
    last = {name: name.rpartition(".")[2] for name in names}
    # Of all modules vLLM would wrap the head too, and then cannot give log-probabilities of prompts.
    loose = sorted(set(last.values()))
    exact = sorted({last[name] if last[name] in PACKED else name for name in names})
    if not extends_workers(options):
        exact = loose  # nobody could tell whether the names are right

    def start(targets: Sequence[str]) -> Any:
        highest = max(adapter.rank for adapter in adapters)
        rank = next(rank for rank in RANKS if rank >= highest)
        lora = {"enable_lora": True, "max_lora_rank": rank, "max_loras": len(adapters), "lora_target_modules": targets}
        return vllm_models.VLLM(pretrained=model, **{**lora, **options})  # type: ignore[attr-defined]

    own = start(exact)
    if exact != loose and any(own.model.collective_rpc("unlearn_eval_without_lora", args=(exact,))):
        with engine_stopped(own):
            pass
        own = start(loose)
    if extends_workers(options):
        own.model.collective_rpc("unlearn_eval_quicken")
    return own


class Engine:
    """One vLLM engine, and who waits for it."""

    def __init__(self, model: str, adapters: Sequence[Adapter], **options: Any) -> None:
        self.own = _started(model, adapters, options)
        self.views = [self._view(i, adapter) for i, adapter in enumerate(adapters)]
        self._turn = threading.Condition()
        self._running: int | None = None
        self._waiting: dict[int, tuple[list[Any], list[Any]]] = {}
        self._answers: dict[int, Any] = {}
        self._alive: set[int] = set()
        self._error: BaseException | None = None

    def _view(self, number: int, adapter: Adapter) -> Any:
        """The engine as the model with one edit, for lm-eval."""
        from vllm.lora.request import LoRARequest

        view = object.__new__(_view_class())
        vars(view).update(vars(self.own))
        view.engine, view.number = self, number
        view.edit_folder, view.edit_info = adapter.folder, adapter.info
        view.lora_request = LoRARequest(f"edit-{number}", number + 1, adapter.folder)
        view.batch_size = "auto"
        return view

    def run(self, work: Callable[[Any], Any]) -> list[Any]:
        """What `work` gives for each view, all at once.

        Raises:
            BaseException: the first error of any of them, when all are done.
        """
        found: list[Any] = [None] * len(self.views)
        errors: list[BaseException | None] = [None] * len(self.views)
        self._alive = set(range(len(self.views)))

        def one(number: int) -> None:
            try:
                self._take(number)
                found[number] = work(self.views[number])
            except BaseException as error:
                errors[number] = error
            finally:
                self._leave(number)

        threads = [threading.Thread(target=one, args=(i,), daemon=True) for i in range(len(self.views))]
        for thread in threads:
            thread.start()
        with self._turn:
            while self._alive:
                self._turn.wait_for(lambda: not self._alive or self._all_wait())
                if self._alive:
                    self._ask_for_all()
                    self._turn.notify_all()
        for thread in threads:
            thread.join()
        for error in errors:
            if error is not None:
                raise error
        return found

    # Turns -----------------------------------------------------------------------------------------------------

    def _take(self, number: int) -> None:
        """Wait until nobody else runs."""
        with self._turn:
            self._turn.wait_for(lambda: self._running is None)
            self._running = number

    def _leave(self, number: int) -> None:
        with self._turn:
            self._alive.discard(number)
            if self._running == number:
                self._running = None
            self._turn.notify_all()

    def ask(self, number: int, prompts: list[Any], sampling: list[Any]) -> Any:
        """The engine's answers to one view's requests, together with those of all others."""
        with self._turn:
            self._waiting[number] = prompts, sampling
            self._running = None
            self._turn.notify_all()
            self._turn.wait_for(lambda: (number in self._answers or self._error) and self._running is None)
            self._running = number
            if self._error is not None:
                raise self._error
            return self._answers.pop(number)

    def _all_wait(self) -> bool:
        """Whether nobody is left who could ask for more."""
        return bool(self._waiting) and set(self._waiting) == self._alive and self._error is None

    def _ask_for_all(self) -> None:
        """Give the engine everybody's requests, mixed."""
        waiting, self._waiting = self._waiting, {}
        longest = max(len(prompts) for prompts, _ in waiting.values())
        order = [(n, i) for i in range(longest) for n, (prompts, _) in waiting.items() if i < len(prompts)]
        try:
            answers = self.own.model.generate(
                [waiting[n][0][i] for n, i in order],
                sampling_params=[waiting[n][1][i] for n, i in order],
                lora_request=[self.views[n].lora_request for n, _ in order],
                use_tqdm=False,
            )
        except BaseException as error:
            self._error = error
            return
        found: dict[int, list[Any]] = {n: [None] * len(prompts) for n, (prompts, _) in waiting.items()}
        for (n, i), answer in zip(order, answers, strict=True):
            found[n][i] = answer
        self._answers |= found


def _view_class() -> Any:
    from vllm import SamplingParams, TokensPrompt

    class View(vllm_models.VLLM):  # type: ignore[misc, attr-defined, name-defined]
        """lm-eval's `vllm` model with one edit of several."""

        engine: Engine
        number: int
        alone = False  # its requests run beside those of others

        def _model_generate(self, requests: Any, generate: bool = False, sampling_params: Any = None) -> Any:
            if not generate or sampling_params is None:
                sampling_params = SamplingParams(temperature=0, prompt_logprobs=1, max_tokens=1, detokenize=False)
            if not isinstance(sampling_params, list):
                sampling_params = [sampling_params] * len(requests)
            prompts = [TokensPrompt(prompt_token_ids=list(ids)) for ids in requests]
            return self.engine.ask(self.number, prompts, sampling_params)

        @property
        def answers_hash(self) -> str:
            """What the model's answers depend on: the edit, which names its base's weights."""
            return sha256_of_file(f"{self.edit_folder}/{DESCRIPTION}")

    return View
