r"""GLAME: a value that begins from the graph around the new fact (Zhang et al. 2024, arXiv 2402.13593).

    z_i ← g( W₁ mean_{(r, j) at i} (z_j + z_r)  +  W₂ z_i )                       a layer of graph convolution
    v* = h₀ + δ + z_s,   (δ, W₁, W₂) minimize  mean_j −ln p(t | x_j) + kl_weight · KL + norm_weight · ‖v* − h₀‖ / ‖h₀‖²
    W ← W + (v* − W k) / (kᵀ C⁻¹ k) (C⁻¹ k)ᵀ                                      as in ROME

The graph is what stands around the subject s and the target: the new triple (s, r, t), and up to `names` names that
`graph` reaches from both, without the facts that are to be forgotten. z_i and z_r begin as what an early block says at
the last token of a name or relation. `hops` layers pass them on. The last one is linear: a value may have any sign.

W₁ and W₂ are of one request, as in the paper, and begin as multiples of 1, so that v* begins in the direction of the
neighborhood. One target can be reached from any beginning: how much the graph changes has to be measured.

Differs from the authors' code (Acruxos/GLAME) in that the graph is of our own facts or a user's table, where theirs
is of Wikidata; in two layers by default, so that what is related to the target reaches the subject; in R-ROME's one key
everywhere; and in the weights' beginning and rate: a step moves z_s by about what it moves δ.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unlearn_eval.data.graphs import SHIPPED, Triple, around, read_graph, same
from unlearn_eval.editing.editor import MOMENTS, EditJob, Editor, if_given
from unlearn_eval.editing.locate_then_edit.run import Editing, LocateConfig
from unlearn_eval.editing.locate_then_edit.run import memory as memory_of
from unlearn_eval.editing.locate_then_edit.second_moments import SecondMoments
from unlearn_eval.editing.locate_then_edit.target_values import (
    Problem,
    TargetValueConfig,
    TargetValues,
    in_bfloat16,
    objective,
)
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.editors.closed_form.rome import one_after_another
from unlearn_eval.edits.base import LOW_RANK
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.models.anatomy import anatomy
from unlearn_eval.models.scoring import pad
from unlearn_eval.models.tracing import trace
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import Dropped, Share, Size

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from unlearn_eval.models.anatomy import Anatomy
    from unlearn_eval.models.memory import Phase

DEPTH = (9 / 48, 9 / 48)  # block 9 of GPT-2 XL's 48
EARLY = 5 / 48  # names and relations are read at its block 5
Weights = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Config(LocateConfig):
    """GLAME's settings.

    Attributes:
        second_moments: whether C is used; without it C = I.
        graph: Triples: `facts` (the shipped facts), or a table (.csv, .tsv, .jsonl, ...) with the columns head,
            relation and tail.
        names: Number of names in the graph of one request at most.
        hops: Number of layers.
        early_layer: Block at which names and relations are read; -1: by depth.
        start: Length of z_s at the start, in units of ‖h₀‖ (at most).
        dropout: Share of the messages' numbers that are left out in each step.
    """

    target: TargetValueConfig = field(
        default_factory=lambda: TargetValueConfig(steps=35, norm_weight=0.1, clamp=4.0, stop_loss=0.04)
    )
    second_moments: bool = True
    graph: str = SHIPPED
    names: Size = 20
    hops: Size = 2
    early_layer: int = -1
    start: Share = 0.1
    dropout: Dropped = 0.2


@dataclass(frozen=True)
class Neighborhood:
    """The graph of one request, in numbers.

    Attributes:
        triples: its facts; the first is the new one.
        names: (n, d) of each name, the subject first.
        relations: (e, d) of each edge; an edge is walked both ways.
        to, origin: (e,) numbers of names: each edge brings what is at `origin` to `to`.
    """

    triples: tuple[Triple, ...]
    names: Tensor
    relations: Tensor
    to: Tensor
    origin: Tensor


def run(job: EditJob) -> LowRankEdit:
    """The rank-one edits of all requests, one after another; the model is as before afterwards.

    Raises:
        UserError: more than one layer, an early block above it, windows, a graph that cannot be read, or no tokenizer.
    """
    config: Config = job.config
    editing = Editing.start(EDITOR.name, job, DEPTH)
    if len(editing.layers) != 1:
        raise UserError(f"GLAME edits one layer, not {list(editing.layers)}", "give one, e.g. --set layers=9")
    if config.window:
        raise UserError("GLAME has one value for each target", "leave out window, or use an editor with windows")
    early = _early(config, editing.parts)
    if early > editing.layers[0]:
        raise UserError(
            f"names are read at block {early}, above the edited one, {editing.layers[0]}", "give a lower early_layer"
        )
    if not job.requests:
        return editing.nothing()
    if job.tokenizer is None:
        raise UserError("a graph has names, and there is no tokenizer to read them", "give the model's tokenizer")
    graph = read_graph(config.graph)
    forgotten = _forgotten(job)
    used: dict[str, int] = {}

    def values(request: EditRequest) -> TargetValues:
        triples = neighborhood(request, job.tokenizer, graph, config.names, forgotten)
        used[request.id] = len(triples) - 1
        where = encode(job.model, job.tokenizer, editing.parts, early, triples)
        return graph_values(job.model, editing.parts, editing.layers[0], request, where, config)

    made = one_after_another(editing, values)
    made.info.notes["related_facts"] = used
    return made


# The graph -------------------------------------------------------------------------------------------------


def neighborhood(
    request: EditRequest,
    tokenizer: PreTrainedTokenizerBase,
    graph: Sequence[Triple],
    n_names: int,
    forgotten: Collection[tuple[str, str]] = (),
) -> list[Triple]:
    """The new triple of a request, and the facts around its subject and target.

    Args:
        request: whose target takes the place of its answer.
        tokenizer: which reads its names.
        graph: all facts.
        n_names: how many names at most.
        forgotten: ends of facts that no graph may hold.
    """
    subject, answer, target = names_of(request, tokenizer)
    ends = same(subject), same(answer)
    known = next((triple.relation for triple in graph if triple.ends == ends), None)
    relation = known or request.question or _text(tokenizer, request.prompt_ids)
    return [Triple(subject, relation, target), *around(graph, [subject, target], n_names, forgotten)]


def names_of(request: EditRequest, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, str]:
    """A request's subject (what stands up to the look-up token, if it has none), answer and target, as text."""
    subject = _text(tokenizer, request.subject_ids) or _text(tokenizer, request.prompt_ids[: request.lookup + 1])
    return subject, _text(tokenizer, request.answer_ids), _text(tokenizer, request.target_ids)


def _forgotten(job: EditJob) -> set[tuple[str, str]]:
    """The ends of all facts that the requests are to change, in both directions."""
    found = set()
    for part in (part for request in job.requests for part in request.parts):
        subject, answer, _ = map(same, names_of(part, job.tokenizer))
        found |= {(subject, answer), (answer, subject)} if answer else set()
    return found


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()


def encode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    parts: Anatomy,
    layer: int,
    triples: Sequence[Triple],
) -> Neighborhood:
    """A graph in numbers: what block `layer` says at the last token of each name and relation, scaled to length 1."""
    names: dict[str, str] = {}
    for triple in triples:
        for name in (triple.head, triple.tail):
            names.setdefault(same(name), name)
    numbers = {name: i for i, name in enumerate(names)}
    relations = list(dict.fromkeys(triple.relation for triple in triples))
    vectors = _read(model, tokenizer, f"{parts.blocks}.{layer}", [*names.values(), *relations])
    of_names, of_relations = vectors[: len(names)], vectors[len(names) :]
    ends = torch.tensor([[numbers[end] for end in triple.ends] for triple in triples], device=vectors.device)
    edges = of_relations[[relations.index(triple.relation) for triple in triples]]
    return Neighborhood(
        tuple(triples),
        of_names,
        torch.cat([edges, edges]),
        torch.cat([ends[:, 0], ends[:, 1]]),
        torch.cat([ends[:, 1], ends[:, 0]]),
    )


@torch.no_grad()
def _read(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, block: str, texts: Sequence[str]) -> Tensor:
    rows = [list(tokenizer(text)["input_ids"]) for text in texts]
    rows = [row[:-1] if len(row) > 1 and row[-1] == tokenizer.eos_token_id else row for row in rows]
    ids, mask = pad([row or [tokenizer.eos_token_id or 0] for row in rows], "left", model.device)
    with trace(model, outputs=[block], stop_after=block) as seen:
        model(input_ids=ids, attention_mask=mask)
    last = seen.outputs[block][:, -1]
    return nn.functional.normalize(last.to(torch.promote_types(last.dtype, torch.float32)), dim=-1)


# The value -------------------------------------------------------------------------------------------------


def convolve(
    where: Neighborhood, weights: Weights, dropout: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """z_s after all layers, (d,).

    Args:
        where: the graph.
        weights: W₁ and W₂ of each layer, (d, d).
        dropout: share of the messages' numbers that are left out.
        generator: draws them.
    """
    z = where.names
    degree = z.new_zeros(len(z)).index_add(0, where.to, torch.ones_like(where.to, dtype=z.dtype)).clamp(min=1)
    for i, (neighbors, own) in enumerate(weights):
        messages = z[where.origin] + where.relations  # (e, d)
        if dropout:
            draws = torch.rand(messages.shape, generator=generator, dtype=torch.float32)
            messages = messages * (draws >= dropout).to(messages) / (1 - dropout)
        mean = torch.zeros_like(z).index_add(0, where.to, messages) / degree[:, None]
        z = mean @ neighbors.T + z @ own.T
        z = z.relu() if i < len(weights) - 1 else z
    return z[0]


def starting_weights(d: int, hops: int, length: float, like: Tensor) -> Weights:
    """W₁ = W₂ = a·1: a third, since three vectors of length 1 are added, and in the last layer `length` of it."""
    one = torch.eye(d, dtype=like.dtype, device=like.device) / 3
    return [(one.clone(), one.clone()) if i < hops - 1 else (length * one, length * one) for i in range(hops)]


def graph_values(
    model: PreTrainedModel, parts: Anatomy, layer: int, request: EditRequest, where: Neighborhood, config: Config
) -> TargetValues:
    """v* of every member of a request at the output of the block's MLP; the model is only read.

    Raises:
        UserError: the loss is not finite.
    """
    settings = config.target
    with in_bfloat16(model, parts, layer, settings.bfloat16):
        problem = Problem(model, parts, layer, [request], "projection", settings.bfloat16)
        clean = problem.clean.to(torch.promote_types(problem.clean.dtype, torch.float32))
        size = problem.mean(clean.norm(dim=1))  # (1,)
        delta = torch.zeros_like(clean[:1]).requires_grad_()
        weights = starting_weights(clean.shape[1], config.hops, config.start * float(size), clean)
        trained = [own.requires_grad_() for pair in weights for own in pair]
        rate = settings.learning_rate / math.sqrt(clean.shape[1])
        rates = [rate / float(size)] * (len(trained) - 2) + [rate] * 2  # the last layer's weights are as long as h₀
        groups = [{"params": [own], "lr": rate} for own, rate in zip(trained, rates, strict=True)]
        adam = torch.optim.Adam([{"params": [delta], "lr": settings.learning_rate}, *groups])
        generator = torch.Generator().manual_seed(config.seed)
        with torch.no_grad():
            reference = problem.parts(torch.zeros_like(delta))[1]

        def change(dropout: float) -> Tensor:
            whole = delta + convolve(where, weights, dropout, generator)[None]
            limit = settings.clamp * size
            shrunk: Tensor = whole * (limit / whole.norm(dim=1).clamp(min=1e-12)).clamp(max=1.0)[:, None]
            return shrunk

        def loss_of(whole: Tensor) -> tuple[Tensor, Tensor]:
            nll, logp, _ = problem.parts(whole)
            return objective(problem, whole, nll, logp, reference, size, settings), nll

        for step in range(settings.steps):
            loss, nll = loss_of(change(config.dropout))
            if (
                step == settings.steps - 1
                or not bool(loss.isfinite().all())
                or float(loss.detach()) < settings.stop_loss
            ):
                break
            adam.zero_grad()
            loss.sum().backward()  # type: ignore[no-untyped-call]
            adam.step()
        with torch.no_grad():
            found = change(0.0)
            loss, nll = loss_of(found)
    if not bool(loss.isfinite().all()):
        raise UserError(
            f"the target value of request {request.id} is not finite", "load the model in float32 or bfloat16 (--dtype)"
        )
    return TargetValues(clean + found, clean, loss.tolist(), nll.tolist(), [step + 1])


def _early(config: Config, parts: Anatomy) -> int:
    """The block at which names are read.

    Raises:
        UserError: the model lacks it.
    """
    if config.early_layer < 0:
        return min(parts.n_layers - 1, round(EARLY * parts.n_layers))
    parts.check_layers((config.early_layer,))
    return config.early_layer


def check(config: Config, model: nn.Module) -> None:
    """Refuse a graph that cannot be read, and layers that the model lacks."""
    read_graph(config.graph)
    parts = anatomy(model)
    _early(config, parts)
    if config.layers:
        parts.check_layers(tuple(config.layers))


def _memory(job: EditJob, device: str) -> list[Phase]:
    d = anatomy(job.model).d_model
    weights = {"graph convolution": 4 * 2 * job.config.hops * d * d * 4}  # weights, gradients, two moments
    found = memory_of(job, device, DEPTH, SecondMoments.solver, "projection", 1)
    return [phase.beside(weights) if phase.name == "target values" else phase for phase in found]


EDITOR = Editor(
    "glame",
    Config,
    run,
    makes=LOW_RANK,
    uses={MOMENTS},
    needs_retain=if_given,
    paper="2402.13593",
    one_layer=True,
    check=check,
    memory=_memory,
)
