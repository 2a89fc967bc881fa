"""One trainer for all gradient methods: the Hugging Face Trainer, told what to read, and what to do when it goes wrong.

A run leaves the model as it found it and hands back the change. It goes on from where it was cut off, if it has a
folder; it halves the rows per forward pass when memory runs out (which changes nothing but the speed); and when the
loss is no longer a number it stops and keeps the last state in which it was one.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from unlearn_eval.editing.training import objectives
from unlearn_eval.editing.training.data import RETAIN, Collator, Row, Rows, Schedule, tensors
from unlearn_eval.editing.training.masks import read_masks
from unlearn_eval.editing.training.reading import Reader, wide
from unlearn_eval.editing.training.reference_cache import ReferenceCache
from unlearn_eval.editing.training.settings import Objective, Said, TrainingConfig
from unlearn_eval.editing.training.sharding import all_finite, check_launch, sharded, whole, whole_copy
from unlearn_eval.editing.training.stop import LAST_STEP, Check, StopRule
from unlearn_eval.editing.training.weights import ORIGINALS, FullWeights, LowRankWeights, split_patterns
from unlearn_eval.models.out_of_memory import until_it_fits
from unlearn_eval.models.tracing import trace
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.folders import remove_whole
from unlearn_eval.utils.json_files import write_all
from unlearn_eval.utils.locks import locked
from unlearn_eval.utils.provenance import hash_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerControl, TrainerState

RUN, COMPLETE, TRAINED, STATE = "run.json", "complete", "trained.safetensors", "objective.json"
OPTIMIZER_STATE, SCHEDULER_STATE = "optimizer.pt", "scheduler.pt"  # as the Trainer calls them
# What may differ between a run and the one that goes on from it.
_FREE = {
    "folder",
    "micro_batch_size",
    "gradient_checkpointing",
    "shard",
    "checkpoint_steps",
    "logging_steps",
    "report_to",
}
_CURVE = ("step", "epoch", "loss", "forget_loss", "retain_loss", "multiplier", "learning_rate", "grad_norm")
Progress = Callable[[str, int, int], Any]


@dataclass
class Trained:
    """What a run has made, while it is still in the model.

    Attributes:
        weights: the trained weights; they are taken out of the model when the `with` block ends.
        curve: one entry for each logged step.
        notes: steps, rows per forward pass, and what went wrong.
    """

    weights: Any
    curve: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Watch:
    """What ends a run early, and the rows that tell.

    Attributes:
        rule: the limits.
        answers: rows of the answers whose probability is looked at.
        retain: rows of the answers that are to be retained.
    """

    rule: StopRule
    answers: Sequence[Row] = ()
    retain: Sequence[Row] = ()


class Ended(Exception):
    """A checkpoint from which to go on is that of a run which had met a limit: nothing is left to train."""


class Diverged(Exception):
    """The loss or a weight is no longer a number after `step` updates."""

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(f"the loss is not finite after {step} steps")


@contextmanager
def trained(
    model: PreTrainedModel,
    rows: Rows,
    objective: Objective,
    config: TrainingConfig,
    identity: Mapping[str, Any],
    progress: Progress = lambda what, done, total: None,
    watch: Watch | None = None,
) -> Iterator[Trained]:
    """Train a model; within the block it is as trained, afterwards bit for bit as before.

    Args:
        model: a causal language model.
        rows: one row of every kind for each item to forget, and any number to retain.
        objective: what is minimized.
        config: how.
        identity: what else makes this run what it is (method, hashes of the model and of the data), so that it goes on
            only from its own checkpoints.
        progress: told of rows that the reference has scored, and of steps.
        watch: when the run ends early; None is never.

    Raises:
        UserError: unknown components, a folder with another run's checkpoints, or one row is too much for the memory.
    """
    check_launch(config.shard)
    with ExitStack() as stack:
        folder = Path(config.folder) if config.folder else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(_held(folder))
        fingerprint = _claim(folder, config, identity, rows)
        stack.enter_context(_own_randomness(model, config.seed))
        processes, process = _processes()
        stack.enter_context(_cleaned(model))
        weights: FullWeights | LowRankWeights
        patterns = split_patterns(config.components)
        if config.lora_rank:
            if config.shard:
                stack.enter_context(sharded(model))
            alpha = config.lora_alpha or 2 * config.lora_rank
            weights = LowRankWeights(model, patterns, config.lora_rank, alpha, config.lora_dropout)
        else:
            masks = read_masks(config.masks) if config.masks else None
            weights = FullWeights(model, patterns, folder, process, masks)
            stack.callback(weights.path.unlink)
        stack.callback(weights.restore)
        if config.shard and not config.lora_rank:  # as what is trained has become float32
            stack.enter_context(sharded(model))
        run = Trained(weights)
        longest = max(len(row) for kind in rows.values() for row in kind)

        def too_large(size: int) -> UserError | None:
            weights.reset()
            what = f"memory does not suffice for {size} rows of up to {longest} tokens in one forward pass"
            if size == 1:
                return UserError(
                    what,
                    "give --set gradient_checkpointing=true, --set lora_rank=8 or fewer --set components=..., "
                    "or leave the longest items out (--ids)",
                )
            if processes > 1:  # the others are still computing: all have to begin again
                return UserError(what, f"give --set micro_batch_size={size // 2}")
            warnings.warn(f"{what}: beginning again with {size // 2}, which changes only the speed", stacklevel=2)
            return None

        attempt = partial(_train, run, rows, objective, config, folder, fingerprint, progress=progress, watch=watch)
        until_it_fits(attempt, config.micro_batch_size, too_large)
        yield run


def _train(
    run: Trained,
    rows: Rows,
    objective: Objective,
    config: TrainingConfig,
    folder: Path,
    fingerprint: str,
    size: int,
    progress: Progress,
    watch: Watch | None,
) -> None:
    """Train with at most `size` rows per forward pass."""
    processes, _ = _processes()
    n = len(next(kind for part, kind in rows.items() if part != RETAIN))
    batch, accumulation = passes_of(n, config.batch_size, size, processes)
    steps = config.steps or math.ceil(n * config.epochs / batch)
    schedule = Schedule(n, len(rows.get(RETAIN, ())), batch, steps, accumulation * processes, config.seed)
    arguments = _arguments(run.weights, config, folder, steps, accumulation, n / batch)
    arguments.ddp_find_unused_parameters = objective.layer is not None
    run.notes |= {
        "steps": steps,
        "batch_size": batch,
        "rows_per_forward_pass": math.ceil(batch / (accumulation * processes)),
        "processes": processes,
        "trained_parameters": run.weights.n_trained,
        "stopped": {"by": LAST_STEP},
    }
    trainer = None
    try:
        trainer = Unlearner(run.weights, rows, objective, schedule, arguments, progress, watch, size, config.shard)
        trainer.ask_reference(folder, fingerprint, size)
        trainer.check_start()
        if start := _last_checkpoint(folder):
            run.notes["went_on_from_step"] = _step_of(start)
        try:
            with suppress(Ended):
                trainer.train(resume_from_checkpoint=str(start) if start else None)
            if trainer.stopped is not None:
                run.notes["stopped"] = trainer.stopped | {"planned_steps": steps}
                run.notes["steps"] = steps = trainer.state.global_step
            trainer.check_end()
        except Diverged as end:
            _keep_last_good(run, folder, end.step)
            run.notes["stopped"] = {"by": "diverged"}
    finally:
        if trainer is not None:
            trainer.release()
    if trainer.checks and watch is not None and watch.rule.scores:
        run.notes["checks"] = [check.record for check in trainer.checks]
    run.curve = [
        {key: entry[key] for key in _CURVE if key in entry}
        for entry in trainer.state.log_history
        if "loss" in entry and entry["step"] <= run.notes.get("kept_step", steps)
    ]


class Unlearner(Trainer):  # type: ignore[misc]
    """The Hugging Face Trainer for an `Objective`.

    Its batches are chunks of a schedule, its checkpoints hold the trained weights only, and a step's loss is the mean
    over the step's items, whatever the chunks.
    """

    def __init__(
        self,
        weights: FullWeights | LowRankWeights,
        rows: Rows,
        objective: Objective,
        schedule: Schedule,
        arguments: TrainingArguments,
        progress: Progress,
        watch: Watch | None = None,
        size: int = 8,
        is_shared: bool = False,
    ) -> None:
        self.weights, self.objective, self.schedule = weights, objective, schedule
        self.watch, self.rows_at_once = watch, size
        self.checks: list[Check] = []
        self.stopped: dict[str, Any] | None = None
        self.told = progress
        self.is_shared = is_shared
        self.reader = Reader(weights.model, objective.layer, ends_early=not is_shared)
        self.inner = self.reader.inner
        self.reads = {part: reads for part, reads in objective.all_reads.items() if rows.get(part)}
        self.cache: ReferenceCache | None = None
        self.kinds: dict[str, tuple[str, ...]] = {}
        self.head: Any = None
        self.is_linear: bool | None = None
        self.collator = Collator({part: rows[part] for part in self.reads}, self._recall)
        self.multiplier = objective.dual.start if objective.dual else objective.retain_weight
        super().__init__(
            model=weights.model,
            args=arguments,
            train_dataset=schedule,
            data_collator=self.collator,
            callbacks=[_Watcher(self)],
        )
        # Transformers' own way with a model that is shared out before training: Accelerate does not wrap it again.
        self.is_distributed_loading_by_transformers = is_shared
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = (
            True  # the loss is divided by all of a step's rows
        )
        self._sums = torch.zeros(3, dtype=torch.float64)  # forget, retain, rows since the last entry of the curve
        self._step_sums = torch.zeros(3, dtype=torch.float64)  # forget, retain, rows of this step
        self._checked_sums = torch.zeros(3, dtype=torch.float64)  # the same since the last check

    def _move_model_to_device(self, model: torch.nn.Module, device: torch.device) -> None:
        if not self.is_shared:  # else it lies where it was shared out to
            super()._move_model_to_device(model, device)

    # What the model says -----------------------------------------------------------------------------------

    def read(self, model: PreTrainedModel, batch: Mapping[str, Tensor], wanted: frozenset[str]) -> Said:
        """What the model says at the labels of a batch."""
        return self.reader.read(model, batch, wanted, self._reference_logits)

    # What the reference said -------------------------------------------------------------------------------

    def ask_reference(self, folder: Path, fingerprint: str, size: int) -> None:
        """Let the model, not yet trained, score the rows that the run will compare with; once, and kept on disk."""
        parts = {part: _kinds(reads) for part, reads in self.reads.items() if _kinds(reads)}
        if not parts:
            return
        processes, process = _processes()
        self.head = self._frozen_head() if any("distribution" in kinds for kinds in parts.values()) else None
        wanted = [(part, i) for part in parts for i in self.schedule.needed(part, process, processes)]
        cache = ReferenceCache(folder / "reference", fingerprint, process)

        def ask(keys: Sequence[tuple[str, int]]) -> list[dict[str, Tensor]]:
            return self._answers(keys, parts[keys[0][0]])

        self.model.eval()
        with torch.no_grad(), self._autocast():
            fewer = self._fewer_passes(cache.n_batches(wanted, size)) if self.is_shared else 0
            cache.fill(wanted, ask, size, lambda done, total: self.told("reference", done, total))
            for _ in range(fewer):  # the others need this process's part of the model
                ask(wanted[:1])
        cache.open()
        for part, kinds in parts.items():
            stored = [kind for k in kinds for kind in (("head_inputs", "logits") if k == "distribution" else (k,))]
            self.kinds[part] = cache.kinds(part, self.schedule.needed(part, process, processes)[0], stored)
        self.cache = cache

    def _fewer_passes(self, own: int) -> int:
        """How many passes fewer this process has to make than the one that makes most."""
        every = self.accelerator.gather(torch.tensor([own], device=self.args.device))
        return int(every.max()) - own

    def _answers(self, keys: Sequence[tuple[str, int]], kinds: tuple[str, ...]) -> list[dict[str, Tensor]]:
        """What is cached of some rows of one kind."""
        part = keys[0][0]
        batch = self._prepare_inputs(self.collator.batch(part, [i for _, i in keys]))
        width = batch["labels"].shape[1]
        layer, head = self.objective.layer if "hidden" in kinds else None, self._head_name()
        with trace(self.inner, [head] if self.head is not None else [], [layer] if layer else []) as seen:
            logits = wide(self.reader.forward(self.model, batch, width))
        found: dict[str, Tensor] = {}
        if "log_probs" in kinds:
            found["log_probs"] = objectives.label_log_probs(logits, batch["labels"])
        if "hidden" in kinds and layer:
            found["hidden"] = seen.outputs[layer][:, -width:]
        if "distribution" in kinds:
            inputs = seen.inputs[head][:, -width:]
            if self.is_linear is None:  # else the model caps or scales its logits, and they have to be kept themselves
                self.is_linear = torch.allclose(wide(self.head(inputs)), logits, rtol=1e-4, atol=1e-4)
            found |= {"head_inputs": inputs} if self.is_linear else {"logits": logits}
        lengths = batch["mask"].sum(-1).tolist()
        return [{kind: found[kind][i, :n] for kind in found} for i, n in enumerate(lengths)]

    def _head_name(self) -> str:
        head = self.inner.get_output_embeddings()
        return next(str(name) for name, module in self.inner.named_modules() if module is head)

    def _frozen_head(self) -> Any:
        """The output layer as it is now: itself, or a copy if training will change it."""
        head = self.inner.get_output_embeddings()
        changes = any(parameter.requires_grad for parameter in head.parameters())
        return whole_copy(head) if changes or self.is_shared else head

    def _reference_logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        if "reference_logits" in batch:
            return batch["reference_logits"]
        with torch.no_grad(), self._autocast():
            return wide(self.head(batch["reference_head_inputs"]))

    def _recall(self, part: str, position: int) -> Mapping[str, Tensor]:
        if self.cache is None or part not in self.kinds:
            return {}
        return self.cache.recall(part, position, self.kinds[part])

    def _autocast(self) -> Any:
        mixed = self.args.bf16
        return torch.autocast(self.args.device.type, torch.bfloat16) if mixed else nullcontext()

    # What is minimized -------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: Mapping[str, Mapping[str, Tensor]],
        return_outputs: bool = False,
        num_items_in_batch: object = None,
    ) -> Any:
        """This chunk's part of the mean over a step's items."""
        said = {part: self.read(model, inputs[part], self.reads[part]) for part in inputs}
        forget = self.objective.forget(said)
        retain = self.objective.retain(said[RETAIN]) if RETAIN in said else forget.new_zeros(len(forget))
        total = self.objective.forget_weight * forget.sum() + self.multiplier * retain.sum()
        loss = total * self.args.world_size / num_items_in_batch  # gradients are averaged over processes
        self._check(loss)
        entry = torch.stack([forget.detach().sum(), retain.detach().sum(), forget.new_tensor(len(forget))])
        self._sums += entry.double().cpu()
        self._step_sums += entry.double().cpu()
        return (loss, None) if return_outputs else loss

    def _check(self, loss: Tensor) -> None:
        finite = torch.isfinite(loss.detach()).to(torch.float32)
        if self.args.world_size > 1:
            finite = self.accelerator.reduce(finite, "mean")  # all stop together
        if finite.item() < 1:
            raise Diverged(self.state.global_step)

    @torch.no_grad()
    def check_end(self) -> None:
        """The last update, too, must leave numbers: in the weights, and in the loss of the first chunk."""
        self._check(torch.tensor(0.0 if all_finite(self.weights.current().values()) else math.nan).to(self.args.device))
        self.model.eval()
        with self._autocast():
            inputs = self._prepare_inputs(self.collator([self.schedule[_processes()[1]]]))
            said = {part: self.read(self.model, inputs[part], self.reads[part]) for part in inputs}
            self._check(self.objective.forget(said).sum())

    def after_step(self) -> None:
        """Put back what may not change, and move the multiplier, if there is one."""
        self.weights.after_step()
        dual = self.objective.dual
        if dual is not None and self.state.global_step > dual.warmup_steps:
            _, retain, rows = self._over_processes(self._step_sums)
            self.multiplier = objectives.dual_step(self.multiplier, retain / rows - dual.bound, dual.step)
        self._checked_sums += self._step_sums
        self._step_sums = torch.zeros(3, dtype=torch.float64)

    def _over_processes(self, sums: Tensor) -> list[float]:
        """Sums over all processes."""
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums.to(self.args.device, torch.float32), "sum").cpu().double()
        return list(map(float, sums.tolist()))

    # When it ends early ------------------------------------------------------------------------------------

    def check_start(self) -> None:
        """What the limits compare with: the model before training."""
        if self.watch is not None:
            self.checks = [self._check_now(0)]

    def limit_met(self) -> bool:
        """Check the model, if a check is due after this step; whether the run is over."""
        watch, step = self.watch, self.state.global_step
        n = len(next(kind for part, kind in self.collator.rows.items() if part != RETAIN))
        if watch is None or not watch.rule.due(step, n / self.schedule.forget.shape[1]):
            return False
        check = self._check_now(step)
        self.checks.append(check)
        self.stopped = watch.rule.met(check, self.checks[0])
        return self.stopped is not None

    def _check_now(self, step: int) -> Check:
        assert self.watch is not None
        rule = self.watch.rule
        forget, _, rows = self._over_processes(self._checked_sums)
        self._checked_sums = torch.zeros(3, dtype=torch.float64)
        probability = retain = None
        if rule.probability is not None:
            scores = self._mean_log_probs(self.watch.answers)
            probability = sum(map(math.exp, scores)) / len(scores)
        if rule.drop:
            scores = self._mean_log_probs(self.watch.retain)
            retain = -sum(scores) / len(scores)
        return Check(step, probability, retain, forget / rows if rows else None)

    @torch.no_grad()
    def _mean_log_probs(self, rows: Sequence[Row]) -> list[float]:
        """(1/T) Σ ln π(y_t) of each row, by the model as it is, without dropout."""
        was_training = self.model.training
        self.model.eval()
        found: list[float] = []
        with self._autocast():
            for start in range(0, len(rows), self.rows_at_once):
                batch = self._prepare_inputs(tensors(rows[start : start + self.rows_at_once]))
                said = self.read(self.model, batch, frozenset({"logits"}))
                found += objectives.mean_over_labels(said.log_probs, said.mask).double().tolist()
        self.model.train(was_training)
        return found

    # What the Trainer leaves to us -------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """One chunk at a time, in the schedule's order; each process takes every so-manieth."""
        loader = DataLoader(self.schedule, batch_size=1, shuffle=False, collate_fn=self.collator)
        return self.accelerator.prepare(loader)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device | str) -> int:
        n = sum(len(next(rows for part, rows in b.items() if part != RETAIN)["ids"]) for b in batch_samples)
        if self.args.world_size > 1:
            n = int(self.accelerator.reduce(torch.tensor(float(n), device=device), "sum").item())
        return n

    def floating_point_ops(self, inputs: Mapping[str, Tensor]) -> int:
        """Not counted: our batches have no `input_ids`."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the two losses, and count epochs by the items that were seen."""
        if "loss" in logs:
            forget, retain, rows = self._over_processes(self._sums)
            logs |= {"forget_loss": forget / rows}
            if RETAIN in self.reads:
                logs |= {"retain_loss": retain / rows}
            if self.objective.dual is not None:
                logs |= {"multiplier": self.multiplier}
            self._sums = torch.zeros(3, dtype=torch.float64)
        super().log(logs, start_time)
        n = len(next(kind for part, kind in self.collator.rows.items() if part != RETAIN))
        self.state.log_history[-1]["epoch"] = round(self.state.global_step * self.schedule.forget.shape[1] / n, 4)

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Tensor] | None = None) -> None:
        from safetensors.torch import save_file

        trained = {name: whole(t).cpu().contiguous() for name, t in self.weights.current().items()}
        if not self.args.should_save:
            return  # of a model that is shared out each process has given its part
        target = Path(str(output_dir))
        target.mkdir(parents=True, exist_ok=True)
        save_file(trained, str(target / TRAINED))
        state = {
            "multiplier": self.multiplier,
            "stopped": self.stopped,
            "checks": [check.record for check in self.checks],
            "sums": self._checked_sums.tolist(),
        }
        (target / STATE).write_text(json.dumps(state))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_shared:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        whole_state = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_optimizer_state_dict(self.model, self._plain_optimizer(), options=whole_state)
        if self.args.should_save and self.lr_scheduler is not None:
            torch.save(state, Path(output_dir) / OPTIMIZER_STATE)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_shared or checkpoint is None or self.lr_scheduler is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        state = torch.load(Path(checkpoint) / OPTIMIZER_STATE, weights_only=True)
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(self.model, self._plain_optimizer(), state, options=options)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_STATE, weights_only=True))

    def _plain_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer without Accelerate's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)  # type: ignore[return-value]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: PreTrainedModel | None = None) -> None:
        self.weights.load(_read_checkpoint(Path(resume_from_checkpoint)))
        state = json.loads((Path(resume_from_checkpoint) / STATE).read_text())
        self.multiplier, self.stopped = float(state["multiplier"]), state.get("stopped")
        self.checks = [Check(**check) for check in state.get("checks", ())]
        self._checked_sums = torch.tensor(state.get("sums", [0.0, 0.0, 0.0]), dtype=torch.float64)

    def release(self) -> None:
        """Let go of everything large."""
        self.optimizer = self.lr_scheduler = self.model_wrapped = self.cache = self.head = None


def _kinds(reads: frozenset[str]) -> tuple[str, ...]:
    names = {"reference": "log_probs", "reference_logits": "distribution", "reference_hidden": "hidden"}
    return tuple(kind for name, kind in names.items() if name in reads)


class _Watcher(TrainerCallback):  # type: ignore[misc]
    """Tells of progress, moves the multiplier, and marks checkpoints as whole."""

    def __init__(self, trainer: Unlearner) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if self.trainer.stopped is not None:
            raise Ended

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self.trainer.after_step()
        self.trainer.told("steps", state.global_step, state.max_steps)
        if self.trainer.limit_met():
            control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


# Checkpoints -----------------------------------------------------------------------------------------------


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder; of several processes the first looks after it.

    Raises:
        UserError: another run writes to it, or it holds something else than checkpoints.
    """
    if _processes()[1] > 0:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    ours = (".", f"{ORIGINALS}-")  # other processes of this run may have been quicker
    if any(not path.name.startswith(ours) for path in folder.iterdir()) and not (folder / RUN).is_file():
        raise UserError(f"{folder} holds something else than checkpoints of a run", "give an empty or a new folder")
    with locked(folder, "wait for it, or give another --output or --set folder=..."):
        yield


def remove_run(folder: Path) -> None:
    """Remove the checkpoints of a run that is done, or of its steps, unless another process goes on from them."""
    try:
        for run in (folder, *folder.glob("*/")):
            if (run / RUN).is_file():
                with locked(run):
                    pass
    except UserError:
        return
    remove_whole(folder)


def _claim(folder: Path, config: TrainingConfig, identity: Mapping[str, Any], rows: Rows) -> str:
    """Make the folder this run's; the run's fingerprint.

    Raises:
        UserError: it holds another run's checkpoints; what differs is named.
    """
    settings = {name: value for name, value in asdict(config).items() if name not in _FREE}
    content = {part: [[row.prompt_ids, row.label_ids] for row in kind] for part, kind in rows.items()}
    own = json.loads(json.dumps({**identity, **settings, "rows": hash_json(content)}))
    path = folder / RUN
    if _processes()[1] > 0:
        pass  # the first process looks after the folder
    elif path.is_file():
        other = json.loads(path.read_text(encoding="utf-8"))
        differences = [
            f"{name} {other.get(name)} -> {value}" for name, value in own.items() if other.get(name) != value
        ]
        if differences:
            raise UserError(
                f"{folder} holds checkpoints of another run: {'; '.join(differences[:3])}",
                "give another folder, or remove it",
            )
    else:
        write_all({RUN: json.dumps(own, indent=2) + "\n"}, folder)
    return hash_json(own)


def _checkpoints(folder: Path) -> list[Path]:
    """Those that were written whole, in the order of their steps."""
    return sorted((path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")), key=_step_of)


def _last_checkpoint(folder: Path) -> Path | None:
    for path in folder.glob("checkpoint-*"):
        if not (path / COMPLETE).is_file() and _processes()[1] == 0:
            shutil.rmtree(path)  # it was being written when the run was cut off
    whole = [path for path in _checkpoints(folder) if (path / OPTIMIZER_STATE).is_file()]
    return whole[-1] if whole else None


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.partition("-")[2])


def _read_checkpoint(checkpoint: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(str(checkpoint / TRAINED))


def _keep_last_good(run: Trained, folder: Path, step: int) -> None:
    """Go back to the last checkpoint after which the loss was still a number, or to the start."""
    good = [path for path in _checkpoints(folder) if _step_of(path) < step]  # its own loss was computed, and finite
    kept = _step_of(good[-1]) if good else 0
    if good:
        run.weights.load(_read_checkpoint(good[-1]))
    else:
        run.weights.reset()
    run.notes |= {"diverged_after_step": step, "kept_step": kept}
    warnings.warn(f"the loss was not finite after {step} steps: stopped, and kept the state after {kept}", stacklevel=2)


# The model, and the process --------------------------------------------------------------------------------


def _processes() -> tuple[int, int]:
    """How many processes there are, and which this is (as `accelerate launch` and `torchrun` say)."""
    return int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))


def _arguments(
    weights: FullWeights | LowRankWeights,
    config: TrainingConfig,
    folder: Path,
    steps: int,
    accumulation: int,
    steps_per_epoch: float,
) -> TrainingArguments:
    device = next(weights.model.parameters()).device
    launched = _processes()[0] > 1
    if device.type == "cuda" and device.index and not launched:
        raise UserError(
            f"training runs on the first visible GPU, not on {device}", f"set CUDA_VISIBLE_DEVICES={device.index}"
        )
    precision = precision_of(weights.dtype, config, device.type)
    narrow = {str(p.dtype).removeprefix("torch.") for p in weights.model.parameters() if p.dtype.itemsize < 4}
    if precision == "float32" and narrow:
        raise UserError(
            f"precision=float32, and what is not trained of the model is {', '.join(sorted(narrow))}",
            "load the model with --dtype float32, or leave precision out",
        )
    checkpoint_steps = config.checkpoint_steps or max(math.ceil(steps_per_epoch), math.ceil(steps / 5))
    reports = [name.strip() for name in config.report_to.split(",") if name.strip()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=1,  # one chunk, of as many rows as fit
            gradient_accumulation_steps=accumulation,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            warmup_steps=min(steps - 1, round(config.warmup_epochs * steps_per_epoch)),
            lr_scheduler_type=config.schedule,
            max_grad_norm=config.max_grad_norm,
            optim=config.optimizer,
            bf16=precision == "bfloat16",
            gradient_checkpointing=config.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
            save_strategy="steps",
            save_steps=min(checkpoint_steps, steps),
            save_total_limit=2,
            save_only_model=not config.folder,
            logging_steps=config.logging_steps,
            logging_nan_inf_filter=False,
            report_to=reports or "none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=device.type == "cpu",
            seed=config.seed,
        )
    if not launched and arguments.n_gpu > 1:
        arguments._n_gpu = 1  # several GPUs are for `accelerate launch`; without it the first one is used
    return arguments


def passes_of(n: int, batch_size: int, size: int, processes: int = 1) -> tuple[int, int]:
    """The rows of a step over `n`, and in how many passes of at most `size` rows each process takes them."""
    batch = max(min(batch_size, n), processes)
    return batch, math.ceil(batch / (size * processes))


def precision_of(dtype: torch.dtype, config: TrainingConfig, device: str) -> str:
    """In which precision a model of a type is trained on a kind of device."""
    full = dtype in (torch.float32, torch.float64)
    auto = "float32" if full and device == "cpu" else "bfloat16"
    return auto if config.precision == "auto" else config.precision


@contextmanager
def _own_randomness(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """The run's own random numbers; nothing else's move."""
    device = next(model.parameters()).device
    kept = random.getstate(), np.random.get_state()  # noqa: NPY002 (the Trainer seeds the global one)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])  # noqa: NPY002


# The last says that a model computes in mixed precision already: with it left, the next training would not.
_LEFT_BEHIND = ("forward", "_original_forward", "peft_config", "_is_accelerate_prepared")


@contextmanager
def _cleaned(model: PreTrainedModel) -> Iterator[None]:
    """Take away what the Trainer leaves behind: its mode, its wrapper around `forward`, gradient checkpointing."""
    training, checkpointing = model.training, bool(getattr(model, "is_gradient_checkpointing", False))
    before = set(model.__dict__)
    hooks = [(kind, set(kind)) for m in model.modules() for kind in (m._forward_hooks, m._forward_pre_hooks)]
    device = next(model.parameters()).device
    try:
        yield
    finally:
        for name in set(model.__dict__) - before:
            if name in _LEFT_BEHIND or name.startswith("_require_grads_hook"):
                del model.__dict__[name]
        if not checkpointing and getattr(model, "is_gradient_checkpointing", False):
            model.gradient_checkpointing_disable()
        for kind, known in hooks:
            for key in set(kind) - known:
                del kind[key]
        model.train(training)
        if next(model.parameters()).device != device:
            model.to(device)
