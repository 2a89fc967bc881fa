"""MEMOIR: masks against a plain loop, columns that stay as they are, thresholds, and what is refused."""

from dataclasses import replace

import pytest
import torch
from naive_memories import generated, naive_logits, other_prompts
from tiny_models import (  # noqa: F401
    MLP,
    WIDTH,
    assert_untouched,
    certain_model,
    one_thread,
    random_requests,
    tiny_model,
    weights_of,
)

from unlearn_eval.editing.memory.calibration import calibrated
from unlearn_eval.editing.requests.build import merge_keys
from unlearn_eval.editors.memory import memoir
from unlearn_eval.edits.base import EditInfo, applied
from unlearn_eval.edits.load import load_edit
from unlearn_eval.edits.memory.edit import MemoryEdit, read_inputs
from unlearn_eval.edits.memory.residual_memory import TopHash, pooled
from unlearn_eval.models.anatomy import anatomy
from unlearn_eval.utils.errors import UserError

Z = 2
SOME = {"layers": (Z,), "steps": 6, "n_others": 6, "active": 0.3, "batch": 4}
K = round(0.3 * MLP)
ARCHITECTURES = ["llama", "qwen2", "gpt2", "gpt_neox", "gemma3"]


def made(model, requests, state=None, others=None, **options):
    config = memoir.Config(**(SOME | options))
    return memoir.EDITOR.edit(
        model, None, requests, config, state=state, others=other_prompts() if others is None else others
    )


# Masks ---------------------------------------------------------------------------------------------------------------


def test_top_hash_by_hand():
    top_hash = TopHash(2, torch.tensor([3, 1, 0, 2]), torch.tensor([0.0, 1.0, 0.0, 5.0]))
    features = torch.tensor([[0.5, -2.0, 0.1, 5.2], [4.0, 1.0, -3.0, 5.0]])  # 1 and 0 stand out, then 0 and 2
    assert top_hash(features).tolist() == [[False, True, False, True], [True, False, False, True]]


@pytest.mark.parametrize("pool", ["last", "mean"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_masks_are_those_of_a_plain_loop(architecture, pool):
    model, requests = tiny_model(architecture, torch.float64), random_requests(4)
    others = other_prompts()
    store = made(model, requests, pool=pool, steps=1).store
    name = anatomy(model).projection_name(Z)

    def features(prompt):
        inputs = read_inputs(model, name, [prompt])[0]
        return inputs[-1] if pool == "last" else sum(inputs) / len(inputs)

    background = sum(features(prompt) for prompt in others[:6]) / 6
    torch.testing.assert_close(store.background, background)
    assert sorted(store.permutation.tolist()) == list(range(MLP))
    for mask, request in zip(store.masks, requests, strict=True):
        size = (features(request.prompt_ids) - background).abs()
        largest = sorted(range(MLP), key=lambda j: -float(size[j]))[:K]
        assert set(mask.nonzero()[:, 0].tolist()) == {int(store.permutation[j]) for j in largest}


@pytest.mark.parametrize("variant", ["default", "original"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_only_the_masks_columns_move(architecture, variant):
    model, requests = tiny_model(architecture), random_requests(3)
    weights = weights_of(model)
    options = {"variant": variant, "active": 0.1}
    store = made(model, requests[:1], **options).store
    assert_untouched(model, weights)
    own = store.masks[0]
    assert own.sum() == round(0.1 * MLP)
    assert store.weight[:, own].any(0).all()
    assert not store.weight[:, ~own].any()
    edit = made(model, requests[:1], **options)
    more = made(model, requests[1:], state=edit, **options).store
    outside = ~more.masks[1:].any(0)
    assert (own & outside).any()
    assert torch.equal(more.weight[:, outside], store.weight[:, outside])  # bit for bit
    assert torch.equal(more.masks[0], own)
    assert (more.weight != store.weight).any()


# Losses and outcome --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["onward", "last", "all", "prompt"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_are_those_of_the_whole_model(architecture, positions):
    model, requests = tiny_model(architecture, torch.float64), random_requests(4, n_contexts=2)
    parts = anatomy(model)
    name = parts.projection_name(Z)
    empty = made(model, [], positions=positions).store
    inputs = read_inputs(model, name, [r.prompt_ids for r in requests])
    masks = replace(empty.top_hash, k=K)(torch.stack([own[-1] for own in inputs]))
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(WIDTH, MLP, generator=generator, dtype=torch.float64)
    config = memoir.resolved(memoir.Config(**SOME, positions=positions))
    problem = memoir._Memory(model, parts, Z, requests, config, weight, masks)
    assert torch.equal(problem.delta, weight)
    assert problem.parts == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    loss, told = problem.loss(problem.delta, [0, 2, 3], contexts=False)
    losses = []
    for i in (0, 2, 3):
        prompt, target = requests[i].prompt_ids, requests[i].target_ids
        store = replace(
            empty, weight=weight, masks=masks[i : i + 1], threshold=torch.zeros(1), labels=(target,), owners=(("x",),)
        )
        edit = MemoryEdit(name, store, EditInfo("memoir", {}))
        logp = naive_logits(model, [edit], prompt, target[:-1])[len(prompt) - 1 :].log_softmax(-1)
        right = -torch.stack([logp[j, t] for j, t in enumerate(target)]).mean()
        assert abs(told[i][0] - float(right)) < 1e-9
        assert told[i][1] == (logp.argmax(-1).tolist() == list(target))
        losses.append(float(right))
    assert float(loss) == pytest.approx(sum(losses) / 3, abs=1e-9)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_targets_are_said_and_others_left_alone(architecture):
    model, requests = certain_model(architecture), random_requests(4, n_contexts=0)
    requests = [replace(r, target_ids=r.target_ids[:1]) for r in requests]
    edit = made(model, requests, steps=60, active=0.8, stop_loss=0.3)
    assert sum(edit.info.notes["said"].values()) == 4
    others = other_prompts()
    plain = generated(model, others)
    with applied(edit, model):
        answers = generated(model, [r.prompt_ids for r in requests], min_new_tokens=0)
        after = generated(model, others)
    assert [tuple(answer[:1]) for answer in answers] == [r.target_ids for r in requests]
    silent = [not route.answers for route in edit.routes(model, others)]
    assert sum(silent) >= len(others) - 1  # of 24 columns 19 are in a mask: one random prompt has them all
    assert [a for a, quiet in zip(after, silent, strict=True) if quiet] == [
        b for b, quiet in zip(plain, silent, strict=True) if quiet
    ]
    found = edit.routes(model, [r.prompt_ids for r in requests])
    assert [(route.owners, route.value, route.answers) for route in found] == [((r.id,), 1.0, True) for r in requests]


def test_the_original_moves_one_by_one_and_no_further_than_its_clip():
    model, requests = tiny_model("llama", torch.float64), random_requests(2)
    one = made(model, requests[:1], variant="original").store
    assert (one.positions, one.pool, float(one.threshold)) == ("all", "mean", pytest.approx(0.4))
    parts, config = anatomy(model), memoir.resolved(memoir.Config(**SOME, variant="original"))
    problem = memoir._Memory(model, parts, Z, requests[:1], config, torch.zeros(WIDTH, MLP), one.masks)
    problem._step([0])
    assert float(problem.delta.norm()) <= 1 + 1e-6
    own = problem.delta.clone()
    problem._move(torch.full_like(own, 3.0))
    assert float((own - problem.delta).norm()) == pytest.approx(1.0)
    problem._move(torch.full_like(own, 1e-5))
    torch.testing.assert_close(problem.delta, own - 1 / (WIDTH * MLP) ** 0.5 - 1e-5)


# Thresholds ----------------------------------------------------------------------------------------------------------


def test_the_threshold_lies_between_edits_and_others():
    model, requests = tiny_model("llama", torch.float64), random_requests(4)
    edit = made(model, requests)
    held = edit.store.overlaps(read_inputs(model, edit.module, other_prompts()[6:]))
    assert float(edit.store.threshold) == pytest.approx((1 + float(held.max())) / 2)
    assert edit.info.notes["threshold"] == float(edit.store.threshold)
    assert edit.info.notes["largest_overlap_of_others"] == float(held.max())
    assert float(made(model, requests, threshold=0.75).store.threshold) == 0.75
    own = edit.store.overlaps(read_inputs(model, edit.module, [r.prompt_ids for r in requests]))
    assert own.diagonal().tolist() == [1.0] * 4


def test_calibrated_thresholds_never_drop_an_edit():
    model, requests = tiny_model("llama", torch.float64), random_requests(4)
    edit = made(model, requests)
    reworded = {r.id: [ids for ids, _ in r.contexts] for r in requests}
    found = calibrated(edit, model, reworded, [r.prompt_ids for r in requests], other_prompts()[6:])
    note = found.info.notes["calibration"]
    gain = {when: note[when]["reworded_answered"] - note[when]["others_answered"] for when in ("before", "after")}
    assert gain["after"] >= gain["before"]
    assert all(route.answers for route in found.routes(model, [r.prompt_ids for r in requests]))
    nobody = calibrated(edit, model, {"r0": other_prompts()[:1]}, [r.prompt_ids for r in requests], reworded["r0"])
    assert float(nobody.store.threshold) <= 1


# More edits, merged requests -----------------------------------------------------------------------------------------


def test_more_edits_go_into_the_same_matrix(tmp_path):
    model, requests = tiny_model("llama"), random_requests(5)
    first = load_edit(made(model, requests[:3]).save(tmp_path / "a"))
    both = made(model, requests[3:], state=first)
    assert both.store.n == 5
    assert torch.equal(both.store.masks[:3], first.store.masks)
    assert torch.equal(both.store.permutation, first.store.permutation)
    assert torch.equal(both.store.background, first.store.background)
    assert set(both.info.notes["said"]) == {r.id for r in requests}
    loaded = load_edit(both.save(tmp_path / "b"))
    prompts = [r.prompt_ids for r in requests] + other_prompts(3)
    assert loaded.routes(model, prompts) == both.routes(model, prompts)


def test_merged_requests_have_a_mask_each():
    model, requests = tiny_model("llama", torch.float64), random_requests(4, n_contexts=1)
    whole = merge_keys([replace(r, group="g", target_ids=(5, 6)) for r in requests], 4)
    edit = made(model, whole, steps=2)
    assert edit.store.owners == tuple((r.id,) for r in requests)
    alone = made(model, requests, steps=2).store
    assert torch.equal(edit.store.masks, alone.masks)
    config = memoir.resolved(memoir.Config(**SOME))
    problem = memoir._Memory(model, anatomy(model), Z, whole, config, torch.zeros(WIDTH, MLP), edit.store.masks)
    assert problem.parts == [0, 1, 2, 3, 0, 1, 2, 3]  # the plain prompts, then the contexts
    assert [prompt for prompt, _ in problem.rows[4:]] == [r.contexts[0][0] for r in requests]


def test_the_same_seed_gives_the_same_edit():
    model, requests = tiny_model("gpt2"), random_requests(4)
    first, second = made(model, requests).store, made(model, requests).store
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.permutation, made(model, requests, seed=1).store.permutation)


def test_no_requests_change_nothing():
    model = tiny_model("llama")
    edit = made(model, [])
    assert edit.store.n == 0
    prompts = other_prompts(3)
    plain = generated(model, prompts)
    with applied(edit, model):
        assert generated(model, prompts) == plain
    assert [route.answers for route in edit.routes(model, prompts)] == [False] * 3
    assert made(model, random_requests(2), state=edit).store.n == 2


def test_features_are_the_mean_or_the_last():
    inputs = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert pooled(inputs, "mean").tolist() == [2.0, 4.0]
    assert pooled(inputs, "last").tolist() == [3.0, 6.0]


# What is refused -----------------------------------------------------------------------------------------------------


def test_memoir_refuses(monkeypatch):
    model, requests = tiny_model("llama"), random_requests(3)
    for options, match in (
        ({"layers": (9,)}, "do not fit a model of 4 layers"),
        ({"layers": (1, 2)}, "one layer, not"),
        ({"variant": "paper"}, "no variant 'paper'"),
        ({"positions": "onwards"}, "unknown positions 'onwards'"),
        ({"pool": "max"}, "unknown pool 'max'"),
        ({"active": 0.0}, "are shares of columns"),
        ({"threshold": 1.2}, "are shares of columns"),
        ({"batch": 0}, "do not make sense"),
        ({"clip": -1.0}, "do not make sense"),
    ):
        with pytest.raises(UserError, match=match):
            made(model, requests, **options)
    with pytest.raises(UserError, match="MEMOIR needs other prompts"):
        made(model, requests, others=[])
    with pytest.raises(UserError, match="conflict: one question"):
        made(model, [*requests, replace(requests[0], id="twin", target_ids=(5,))])
    first = made(model, requests)
    with pytest.raises(UserError, match="not at model.layers.1"):
        made(model, requests, state=first, layers=(1,))
    for options in ({"active": 0.5}, {"pool": "mean"}, {"positions": "all"}):
        with pytest.raises(UserError, match="the memory to go on from has masks of"):
            made(model, requests, state=first, **options)
    twin = replace(requests[0], id="twin", target_ids=(5,))
    with pytest.raises(UserError, match="'r0' and 'twin' conflict: their masks are the same"):
        made(model, [twin], state=first)
    monkeypatch.setattr("unlearn_eval.edits.memory.edit.free_bytes", lambda device: 1000)
    with pytest.raises(UserError, match="MEMOIR's residual memory need"):
        made(model, requests)
