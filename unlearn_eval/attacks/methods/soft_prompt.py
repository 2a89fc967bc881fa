r"""A soft prompt: a few free vectors before every question, trained on some of the facts, tried on the others.

    minimize over v_1..v_k   -mean over items of T of (1/n) Σ_t log π(y_t | v, x, y_<t),   ‖v_j‖ ≤ radius · mean ‖e‖

The vectors stand for k tokens that occur in no prompt and no answer: their embeddings are replaced as they are looked
up, so that scoring, generation and caches are the ordinary ones. Each model gets vectors of its own, by the same steps.

Source: Lester et al. 2021 (arXiv 2104.08691); as an attack on unlearning Schwinn et al. 2024 (arXiv 2402.09063) and Guo
et al. 2024 (arXiv 2410.12949). Differs from both in one prompt for all items, tested on others, and in its settings.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unlearn_eval.attacks.asking import Row
from unlearn_eval.attacks.base import Attack, Case, Observation, Work
from unlearn_eval.attacks.folds import check, split
from unlearn_eval.editing.training import objectives
from unlearn_eval.editing.training.data import Row as TrainingRow
from unlearn_eval.editing.training.data import tensors
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.prompt_ends import prompt_lengths
from unlearn_eval.models.scoring import positions
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import Positive, Size

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Config:
    """Settings of the soft prompt.

    Attributes:
        n_tokens: how many vectors.
        steps: of Adam.
        learning_rate: in units of the embeddings' root mean square.
        batch_size: items per step.
        radius: longest vector, in units of the embeddings' mean norm.
        folds: in how many parts the facts are split.
        seeds: one run for each.
    """

    n_tokens: Size = 4
    steps: Size = 100
    learning_rate: Positive = 0.05
    batch_size: Size = 16
    radius: Positive = 6.0
    folds: int = 2
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if min(self.n_tokens, self.steps, self.batch_size) < 1 or min(self.radius, self.learning_rate) <= 0:
            raise UserError(
                f"n_tokens {self.n_tokens}, steps {self.steps}, batch_size {self.batch_size}, radius {self.radius}, "
                f"learning_rate {self.learning_rate} do not make sense",
                "give numbers above 0",
            )


def attack(case: Case, config: Config) -> Iterator[Observation]:
    """Every model without vectors and with those that were trained on the other folds."""
    for name in case.names:
        with case.model(name) as loaded:
            for seed in config.seeds:
                for fold, (shown, tested) in enumerate(split(case.items, config.folds, seed)):
                    rows, training = case.rows(loaded, tested), case.rows(loaded, shown)
                    yield case.observed(loaded, rows, name, None, fold=fold, seed=seed)
                    ids = unused_ids(loaded, [*rows, *training], config.n_tokens)
                    case.progress(f"soft prompts, {name} model", fold, config.folds)
                    vectors = trained_vectors(loaded, inserted(training, ids, loaded), ids, config, seed)
                    if not bool(torch.isfinite(vectors).all()):
                        case.skipped[f"{name}, fold {fold}, seed {seed}"] = "the vectors are no longer numbers"
                        continue
                    with spoken(loaded.model, ids, vectors):
                        observation = case.observed(
                            loaded, inserted(rows, ids, loaded), name, config.steps, fold=fold, seed=seed
                        )
                    yield observation


def work(config: Config, n_items: int, n_layers: int) -> Work:
    """Every fold and seed."""
    rows = config.steps * min(config.batch_size, n_items - n_items // config.folds) * config.folds
    return Work(len(config.seeds) * rows, len(config.seeds) * 2 * n_items)


def unused_ids(loaded: LoadedModel, rows: Sequence[Row], n: int) -> list[int]:
    """Tokens that occur in none of the rows and are not special: the vectors' places.

    Raises:
        UserError: the vocabulary has not as many.
    """
    used = {token for row in rows for token in (*row.prompt_ids, *row.answer_ids)}
    used |= set(loaded.tokenizer.all_special_ids)
    size = loaded.model.get_input_embeddings().weight.shape[0]
    free = [token for token in range(min(size, len(loaded.tokenizer)) - 1, -1, -1) if token not in used][:n]
    if len(free) < n:
        raise UserError(
            f"only {len(free)} tokens of the vocabulary occur in no question", "give a smaller --set n_tokens"
        )
    return free


def inserted(rows: Sequence[Row], ids: Sequence[int], loaded: LoadedModel) -> list[Row]:
    """The rows with these tokens in front, behind a BOS."""
    bos = loaded.tokenizer.bos_token_id
    found = []
    for row in rows:
        at = 1 if row.prompt_ids[0] == bos else 0
        found.append(replace(row, prompt_ids=(*row.prompt_ids[:at], *ids, *row.prompt_ids[at:])))
    return found


@contextmanager
def spoken(model: PreTrainedModel, ids: Sequence[int], vectors: Tensor) -> Iterator[None]:
    """The model with vectors (k, d) as the embeddings of k tokens, within a `with` block; no weight is changed."""
    embeddings = model.get_input_embeddings()
    place = torch.full((embeddings.weight.shape[0],), -1, device=embeddings.weight.device)
    place[list(ids)] = torch.arange(len(ids), device=place.device)

    def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        own = place[arguments[0]]
        return torch.where((own >= 0)[..., None], vectors[own.clamp(min=0)].to(output.dtype), output)

    handle = embeddings.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def trained_vectors(loaded: LoadedModel, rows: Sequence[Row], ids: Sequence[int], config: Config, seed: int) -> Tensor:
    """The vectors (k, d) after training on rows that hold their tokens; they start from embeddings of random tokens."""
    model = loaded.model
    weight = model.get_input_embeddings().weight.detach()
    generator, order = torch.Generator().manual_seed(seed), random.Random(seed)
    start = torch.randint(len(weight), (config.n_tokens,), generator=generator).to(weight.device)
    with torch.no_grad():  # as the model embeds them: some scale what they look up
        own = model.get_input_embeddings()(start).float()
        every = model.get_input_embeddings()(torch.arange(min(len(weight), 4096), device=weight.device)).float()
    longest, unit = config.radius * every.norm(dim=-1).mean(), every.square().mean().sqrt()
    free = (own / unit).requires_grad_(True)
    optimizer = torch.optim.Adam([free], lr=config.learning_rate)
    for _ in range(config.steps):
        batch = order.sample(list(rows), min(config.batch_size, len(rows)))
        optimizer.zero_grad()
        with spoken(model, ids, free * unit):
            loss = _loss(model, batch)
        if not bool(torch.isfinite(loss)):
            return torch.full_like(own, torch.nan)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            free.mul_((longest / (free * unit).norm(dim=-1, keepdim=True)).clamp(max=1))
    vectors: Tensor = (free * unit).detach()
    return vectors


def _loss(model: PreTrainedModel, rows: Sequence[Row]) -> Tensor:
    """The mean over rows of the answer's negative log-probability per token."""
    batch = {
        name: tensor.to(model.device)
        for name, tensor in tensors([TrainingRow(row.prompt_ids, row.answer_ids) for row in rows]).items()
    }
    mask, width = batch["attention"], batch["labels"].shape[1]
    with prompt_lengths([len(row.prompt_ids) for row in rows]):
        output = model(input_ids=batch["ids"], attention_mask=mask, use_cache=False, **positions(model, mask))
    log_probs = objectives.label_log_probs(output.logits[:, -width:].float(), batch["labels"])
    return objectives.likelihood(log_probs, batch["mask"]).mean()


ATTACK = Attack(
    "soft_prompt",
    Config,
    attack,
    work,
    does="trains vectors before the question on some facts and asks the others",
    axis="step",
    headline="last",
    check=check,
)
