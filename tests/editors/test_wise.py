"""WISE: masks that freeze, losses against the whole model, merges by hand, thresholds, and what is refused."""

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
    random_ids,
    random_requests,
    tiny_model,
    weights_of,
)

from unlearn_eval.editing.memory import joint
from unlearn_eval.editing.memory.calibration import calibrated
from unlearn_eval.editors.memory import wise
from unlearn_eval.edits.base import applied
from unlearn_eval.edits.load import load_edit
from unlearn_eval.edits.memory.edit import read_inputs
from unlearn_eval.edits.memory.merging import merged, slerp
from unlearn_eval.edits.memory.side_memories import SideMemories
from unlearn_eval.models.anatomy import anatomy
from unlearn_eval.utils.errors import UserError

Z = 2
SOME = {"layers": (Z,), "steps": 6, "n_others": 6, "per_step": 4, "mask": 0.3, "batch": 4}
ARCHITECTURES = ["llama", "qwen2", "gpt2", "gpt_neox", "gemma3"]
POOLS = ["mean", "max", "last"]


def made(model, requests, state=None, **options):
    return wise.EDITOR.edit(model, None, requests, wise.Config(**(SOME | options)), state=state, others=other_prompts())


# Masks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["default", "original"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_masked_coordinates_never_move(architecture, variant):
    model, requests = tiny_model(architecture), random_requests(5)
    weights = weights_of(model)
    edit = made(model, requests, variant=variant, shards=2, learning_rate=0.01)
    assert_untouched(model, weights)
    store = edit.store
    assert [len(i) for i in store.indices] == [round(0.3 * WIDTH * MLP)] * 2
    assert set(store.indices[0].tolist()) != set(store.indices[1].tolist())  # each shard has its own
    module = model.get_submodule(edit.module)
    original = anatomy(model).weight(model, Z)
    for index, delta in zip(store.indices, store.deltas, strict=True):
        assert len(index.unique()) == len(index)
        assert (delta != 0).any()
        flat = original.flatten().clone()
        flat[index] += delta
        others = torch.ones(flat.numel(), dtype=torch.bool)
        others[index] = False
        assert torch.equal(flat[others], original.flatten()[others])  # bit for bit
    retrieve = replace(store, mode="retrieve", thresholds=torch.zeros(2))
    for change, index in zip(retrieve.dense(), store.indices, strict=True):
        others = torch.ones(change.numel(), dtype=torch.bool)
        others[index] = False
        assert change.shape == (WIDTH, MLP)
        assert not change.flatten()[others].any()
    assert module.weight is model.get_submodule(edit.module).weight


def test_a_mask_may_cover_everything_or_hardly_anything():
    model, requests = tiny_model("llama"), random_requests(2)
    assert len(made(model, requests, mask=1.0).store.deltas[0]) == WIDTH * MLP
    assert len(made(model, requests, mask=1e-6).store.deltas[0]) == 1


# Losses and activations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["onward", "all"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_are_those_of_the_whole_model(architecture, positions):
    model, requests = tiny_model(architecture, torch.float64), random_requests(4, n_contexts=0)
    parts = anatomy(model)
    config = wise.resolved(wise.Config(**SOME, positions=positions, contexts=0))
    others = wise.Prompts(model, parts.projection_name(Z), other_prompts())
    shard = wise._Shard(model, parts, Z, requests, config, others, 1.0, 0)
    generator = torch.Generator().manual_seed(4)
    shard.delta = torch.randn(len(shard.index), generator=generator, dtype=torch.float64)
    _, told = shard.loss(shard.delta, [0, 2, 3], contexts=False)
    store = SideMemories(
        (shard.index,), (shard.delta,), torch.zeros(1).double(), (WIDTH, MLP), (("x",),), "retrieve",
        positions=positions,
    )  # fmt: skip
    edit = wise.MemoryEdit(parts.projection_name(Z), store, wise.EditInfo("wise", {}))
    for i in (0, 2, 3):
        prompt, target = requests[i].prompt_ids, requests[i].target_ids
        logp = naive_logits(model, [edit], prompt, target[:-1])[len(prompt) - 1 :].log_softmax(-1)
        right = -torch.stack([logp[j, t] for j, t in enumerate(target)]).mean()
        assert abs(told[i][0] - float(right)) < 1e-9
        assert told[i][1] == (logp.argmax(-1).tolist() == list(target))


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_activations(architecture, pool):
    model = tiny_model(architecture, torch.float64)
    name = anatomy(model).projection_name(Z)
    prompts = other_prompts()
    prompts += [(*prompts[0], 9, 8), (*prompts[0], 9, 7)]  # shared openings are kept once
    found = wise.Prompts(model, name, prompts)
    assert len(found.inputs) < sum(map(len, prompts))
    change = torch.randn(WIDTH, MLP, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    which = [3, 12, 13, 0]
    ours = found.activations(change, which, pool)
    inputs = read_inputs(model, name, prompts)
    for value, i in zip(ours, which, strict=True):
        norms = [float((change @ a).norm()) for a in inputs[i]]
        right = {"mean": sum(norms) / len(norms), "max": max(norms), "last": norms[-1]}[pool]
        assert abs(float(value) - right) < 1e-9
    store = SideMemories(
        (torch.arange(WIDTH * MLP),), (change.flatten(),), torch.zeros(1), (WIDTH, MLP), (("x",),), pool=pool
    )
    torch.testing.assert_close(store.activations([inputs[i] for i in which])[:, 0], ours)


@pytest.mark.parametrize("pool", POOLS)
def test_every_pool_decides_alike_in_a_batch(pool):
    model, requests = tiny_model("llama", torch.float64), random_requests(5)
    edit = made(model, requests, pool=pool, shards=2, mode="retrieve", learning_rate=0.3)
    prompts = [r.prompt_ids for r in requests] + other_prompts(5)
    own = edit.store.activations(read_inputs(model, edit.module, prompts))
    edit = replace(edit, store=replace(edit.store, thresholds=own.median(0).values + 1e-6))
    alone = []
    with applied(edit, model):
        for prompt in prompts:
            alone += generated(model, [prompt])
        assert generated(model, prompts) == alone
        assert generated(model, prompts, use_cache=False) == alone
        if pool != "last":
            assert generated(model, prompts, prefill_chunk_size=3) == alone
    answered = [route.answers for route in edit.routes(model, prompts)]
    assert any(answered)
    assert not all(answered)
    plain = generated(model, prompts)
    assert all(a == b for a, b, hit in zip(alone, plain, answered, strict=True) if not hit)


def test_gradients_at_zero_are_finite():
    norms = wise._norms(torch.zeros(2, 3, requires_grad=True))
    norms.sum().backward()
    assert norms.tolist() == [0.0, 0.0]


# The outcome -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_targets_are_said_and_others_left_alone(architecture):
    model, requests = certain_model(architecture), random_requests(4, n_contexts=0)
    requests = [replace(r, target_ids=r.target_ids[:1]) for r in requests]
    options = {"steps": 60, "mask": 0.8, "learning_rate": 0.1, "pool": "last", "stop_loss": 0.3}
    edit = made(model, requests, **options)
    said = edit.info.notes["said"]
    assert sum(said.values()) == 4
    others = other_prompts()
    plain = generated(model, others)
    with applied(edit, model):
        answers = generated(model, [r.prompt_ids for r in requests], min_new_tokens=0)
        after = generated(model, others)
    silent = [not route.answers for route in edit.routes(model, others)]
    for request, answer in zip(requests, answers, strict=True):
        if said[request.id]:
            assert tuple(answer[: len(request.target_ids)]) == request.target_ids
    assert all(a == b for a, b, quiet in zip(after, plain, silent, strict=True) if quiet)
    assert all(route.answers for route in edit.routes(model, [r.prompt_ids for r in requests]))


def test_thresholds():
    model, requests = tiny_model("llama", torch.float64), random_requests(4)
    edit = made(model, requests, pool="last", learning_rate=0.2, steps=15)
    own = edit.store.activations(read_inputs(model, edit.module, [r.prompt_ids for r in requests]))[:, 0]
    held = edit.store.activations(read_inputs(model, edit.module, other_prompts()[6:]))[:, 0]  # nothing learned there
    least, most = float(own.min()), float(held.max())
    expected = (least + most) / 2 if least > most else 0.88 * least
    assert edit.store.thresholds.tolist() == pytest.approx([expected])
    assert edit.info.notes["edit_activation"] == pytest.approx(
        dict(zip([r.id for r in requests], own.tolist(), strict=True))
    )
    paper = made(model, requests, variant="original", learning_rate=0.01, steps=3)
    own = paper.store.activations(read_inputs(model, paper.module, [r.prompt_ids for r in requests]))[:, 0]
    assert paper.store.thresholds.tolist() == pytest.approx([0.88 * float(own.min())])
    assert (paper.store.positions, paper.info.config["one_by_one"]) == ("all", True)


def test_calibrated_thresholds_never_drop_an_edit():
    model, requests = tiny_model("llama", torch.float64), random_requests(4)
    edit = made(model, requests, pool="last", learning_rate=0.2, steps=15)
    reworded = {r.id: [ids for ids, _ in r.contexts] for r in requests}
    edited = [r.prompt_ids for r in requests]
    found = calibrated(edit, model, reworded, edited, other_prompts()[6:])
    note = found.info.notes["calibration"]
    assert all(route.answers for route in found.routes(model, edited))
    gain = {when: note[when]["reworded_answered"] - note[when]["others_answered"] for when in ("before", "after")}
    own = edit.store.activations(read_inputs(model, edit.module, edited))[:, 0].min()
    if float(found.store.thresholds[0]) < float(own) * (1 - 2e-4):  # not held back by an edit
        assert gain["after"] >= gain["before"]


@pytest.mark.parametrize("mode", ["merge", "retrieve"])
def test_more_edits_are_more_shards(tmp_path, mode):
    model, requests = tiny_model("llama"), random_requests(5)
    first = load_edit(made(model, requests[:3], mode=mode).save(tmp_path / "a"))
    both = made(model, requests[3:], state=first, mode=mode)
    assert [len(own) for own in both.store.owners] == [3, 2]
    assert torch.equal(both.store.deltas[0], first.store.deltas[0])
    assert torch.equal(both.store.indices[0], first.store.indices[0])
    assert not torch.equal(both.store.indices[1], first.store.indices[0])
    assert both.store.n == (1 if mode == "merge" else 2)
    assert set(both.info.notes["edit_activation"]) == {r.id for r in requests}
    loaded = load_edit(both.save(tmp_path / "b"))
    prompts = [r.prompt_ids for r in requests]
    assert loaded.routes(model, prompts) == both.routes(model, prompts)


def test_the_same_seed_gives_the_same_edit():
    model, requests = tiny_model("gpt2"), random_requests(4)
    first, second = made(model, requests), made(model, requests)
    other = made(model, requests, seed=1)
    for a, b in zip(first.store.deltas, second.store.deltas, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.store.indices[0], other.store.indices[0])


def test_no_requests_change_nothing():
    model = tiny_model("llama")
    edit = made(model, [])
    assert edit.store.n == 0
    prompts = other_prompts(3)
    plain = generated(model, prompts)
    with applied(edit, model):
        assert generated(model, prompts) == plain
    assert [route.answers for route in edit.routes(model, prompts)] == [False] * 3


# Merging -----------------------------------------------------------------------------------------------------------

A = (torch.tensor([0, 1, 2, 3]), torch.tensor([4.0, -1.0, 0.5, 2.0]))
B = (torch.tensor([1, 2, 3, 5]), torch.tensor([3.0, 0.25, -6.0, 8.0]))


def test_linear_by_hand():
    index, value = merged([A, B], "linear")
    assert index.tolist() == [0, 1, 2, 3, 5]
    assert value.tolist() == [2.0, 1.0, 0.375, -2.0, 4.0]


def test_ties_by_hand():
    # Half of each: A keeps 4 and 2, B keeps -6 and 8. At 3 they disagree, and -6 weighs more; the others stand alone.
    index, value = merged([A, B], "ties", 0.5)
    assert dict(zip(index.tolist(), value.tolist(), strict=True)) == {0: 4.0, 1: 0.0, 2: 0.0, 3: -6.0, 5: 8.0}
    _, value = merged([A, B], "ties", 1.0)  # at 2 they agree: the mean of 0.5 and 0.25
    assert value.tolist() == [4.0, 3.0, 0.375, -6.0, 8.0]
    assert merged([A], "ties", 1.0)[1].tolist() == A[1].tolist()


@pytest.mark.parametrize("n", [2, 4])
def test_ties_and_dare_mean_what_they_mean_in_peft(n):
    from peft.utils import merge_utils

    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(n, 1000, generator=generator)
    rows[0, ::3] = 0  # what is 0 has no vote
    rows[1, 1::3] = -rows[0, 1::3]  # a sum of 0 counts as positive
    changes = [(torch.arange(1000), row) for row in rows]
    ones = torch.ones(n)
    for density in (0.5, 0.25):  # of 1000, so that nothing is rounded
        assert torch.equal(merged(changes, "ties", density)[1], merge_utils.ties(list(rows), ones, density))
    assert merged(changes[1:2], "ties", 0.5309)[1].count_nonzero() == 531
    assert merge_utils.prune(rows[1], 0.5309, "magnitude").count_nonzero() == 530, "peft rounds down"
    whole = merged(changes, "dare", 1.0)[1]
    vote = merge_utils.calculate_majority_sign_mask(rows)
    assert torch.equal(whole, merge_utils.disjoint_merge(rows, vote))
    assert torch.equal(merged(changes, "dare_linear", 1.0)[1], merge_utils.task_arithmetic(list(rows), ones) / n)


def test_slerp_by_hand():
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    torch.testing.assert_close(slerp(x, y, 0.5), torch.tensor([2**-0.5, 2**-0.5]))
    torch.testing.assert_close(slerp(x, y, 0.0), x)
    torch.testing.assert_close(slerp(x, y, 1 / 3), torch.tensor([3**0.5 / 2, 0.5]))
    torch.testing.assert_close(slerp(2 * x, 4 * x, 0.5), 3 * x)  # parallel: a straight line
    torch.testing.assert_close(slerp(0 * x, y, 0.25), y / 4)
    index, value = merged([(torch.tensor([0]), torch.ones(1)), (torch.tensor([7]), torch.ones(1))], "slerp")
    assert index.tolist() == [0, 7]
    torch.testing.assert_close(value, torch.tensor([2**-0.5, 2**-0.5]))


def test_dare_drops_and_scales_up():
    many = (torch.arange(4000), torch.ones(4000))
    for how in ("dare", "dare_linear"):
        _, value = merged([many], how, 0.25, seed=3)
        assert set(value.tolist()) == {0.0, 4.0}
        assert float(value.mean()) == pytest.approx(1.0, abs=0.1)  # four standard deviations
        assert torch.equal(value, merged([many], how, 0.25, seed=3)[1])
        assert not torch.equal(value, merged([many], how, 0.25, seed=4)[1])
    both = merged([many, (many[0], -many[1])], "dare_linear", 1.0)[1]
    assert not both.any()


def test_merges_refuse():
    with pytest.raises(UserError, match="unknown merge 'tie'"):
        merged([A], "tie")
    with pytest.raises(UserError, match="density cannot be 0"):
        merged([A], "ties", 0)
    assert merged([], "ties")[1].numel() == 0


@pytest.mark.parametrize("how", ["ties", "dare", "dare_linear", "linear", "slerp"])
def test_every_merge_works_in_an_edit(how):
    model, requests = tiny_model("llama"), random_requests(4)
    edit = made(model, requests, shards=2, merge=how)
    assert edit.store.n == 1
    shards = list(zip(edit.store.indices, edit.store.deltas, strict=True))
    index, value = merged(shards, how, 0.53, 0)
    assert torch.equal(edit.store.dense()[0].flatten()[index], value)


# What is refused ---------------------------------------------------------------------------------------------------


def test_wise_refuses(monkeypatch):
    model, requests = tiny_model("llama"), random_requests(3)
    for options, match in (
        ({"layers": (9,)}, "do not fit a model of 4 layers"),
        ({"layers": (1, 2)}, "one layer, not"),
        ({"variant": "paper"}, "no variant 'paper'"),
        ({"mode": "merged"}, "unknown mode 'merged'"),
        ({"merge": "sum"}, "unknown merge 'sum'"),
        ({"pool": "min"}, "unknown pool 'min'"),
        ({"mask": 0.0}, "do not make sense"),
        ({"alpha": 0.5, "beta": 0.4}, "alpha 0.5 must be below beta 0.4"),
    ):
        with pytest.raises(UserError, match=match):
            made(model, requests, **options)
    with pytest.raises(UserError, match="WISE needs other prompts"):
        wise.EDITOR.edit(model, None, requests, wise.Config(**SOME))
    with pytest.raises(UserError, match="conflict: one question"):
        made(model, [*requests, replace(requests[0], id="twin", target_ids=(5,))])
    first = made(model, requests)
    with pytest.raises(UserError, match="not at model.layers.1"):
        made(model, requests, state=first, layers=(1,))
    monkeypatch.setattr("unlearn_eval.edits.memory.edit.free_bytes", lambda device: 1000)
    with pytest.raises(UserError, match="WISE's side memories need"):
        made(model, requests)


# Long targets, and requests that are undone ---------------------------------------------------------------------


class Requests(joint.Joint):
    """Requests that need one round each to be done; each step on some of them may undo the others."""

    def __init__(self, n, undone_by, **schedule):
        self.requests, self.delta, self.name = [None] * n, torch.zeros(1), "test"
        self.schedule = joint.Schedule(
            **{"rate": 1.0, "steps": 40, "batch": 10, "contexts": 0, "stop_loss": 0.1} | schedule
        )
        self.random, self.undone_by, self._done = torch.Generator().manual_seed(0), undone_by, {}
        self.said, self.nll, self._best = [False] * n, [1.0] * n, ()
        self.work = [3] * n
        self.stepped = []

    def _step(self, requests, update=True):
        self.stepped.append(sorted(requests))
        for i in requests:
            self._done[i] = self.work[i] <= 0
            self.work[i] -= 1
        for other in self.undone_by.get(tuple(sorted(requests)), ()):
            self.work[other] = 2
        return 0.0

    def _check(self, requests):
        for i in requests:
            self._done[i] = self.work[i] < 0
        return [i for i in requests if not self._done[i]]


def test_what_is_done_is_looked_at_again_while_others_are_not():
    """Request 1 never ends, and its steps undo request 0: that must not wait for the end, as it once did."""
    made = Requests(2, {(1,): (0,)})
    made.work = [0, 10**6]
    made.optimise(lambda *told: None)
    alone = [part == [1] for part in made.stepped]
    assert not all(alone[joint.CHECK_EVERY :])  # request 0 came back
    longest = max(len(run) for run in "".join("x" if one else " " for one in alone).split())
    assert longest < joint.CHECK_EVERY


def counted(made, check):
    """Each step is one more change, after which no request is done; `check` is told how many there are."""

    def step(requests, update=True):
        made.delta += 1
        made._done = dict.fromkeys(requests, False)
        return 0.0

    made._step, made._check = step, lambda requests: check(requests, int(made.delta))
    made.optimise(lambda *told: None)


def test_the_best_change_is_kept():
    """Of the changes that were checked: that by which most is said, then that with the least loss."""
    made = Requests(4, {}, steps=15)
    said_after = {5: 1, 10: 3, 15: 2}

    def check(requests, n_steps):
        made.said = [i < said_after[n_steps] for i in range(4)]
        return list(requests)

    counted(made, check)
    assert float(made.delta) == 10.0  # the second check, after ten rounds
    assert sum(made.said) == 3


def test_what_is_done_goes_before_what_is_only_said():
    """All four said, and awake everywhere, are worse than three that are done."""
    made = Requests(4, {}, steps=15)
    done_after = {5: 0, 10: 3, 15: 1}

    def check(requests, n_steps):
        n = done_after[n_steps]
        made.said = [i < n or n == 0 for i in range(4)]
        return [i for i in requests if i >= n]

    counted(made, check)
    assert float(made.delta) == 10.0


def test_a_set_that_is_done_ends_the_rounds():
    made = Requests(3, {})
    made.optimise(lambda *told: None)
    assert made.stepped == [[0, 1, 2]] * 4


@pytest.mark.parametrize("focus", [True, False])
def test_focus_divides_by_the_tokens_that_are_not_said(focus):
    model, requests = tiny_model("llama", torch.float64), random_requests(3, n_contexts=0)
    others = wise.Prompts(model, anatomy(model).projection_name(Z), other_prompts())
    config = wise.resolved(wise.Config(**SOME, focus=focus, beta=1e-9, alpha=1e-12, gamma=0.0))
    shard = wise._Shard(model, anatomy(model), Z, requests, config, others, 1.0, seed=0)
    delta = torch.zeros_like(shard.delta)
    missed = shard.problem.losses(shard.problem.outputs)[1].tolist()
    assert any(missed)
    shard.terms = lambda delta, problem, rows: (0.0 * problem.outputs, None, torch.ones(len(rows), dtype=torch.bool))
    loss, told = shard.loss(delta, [0, 1, 2], contexts=False)
    lengths = [len(target) for _, target in shard.rows]
    weights = [n / m if focus and m else 1.0 for n, m in zip(lengths, missed, strict=True)]
    means = [told[i][0] for i in range(3)]  # what is noted is the mean over all tokens, either way
    assert float(loss) == pytest.approx(sum(w * m for w, m in zip(weights, means, strict=True)) / 3)


def test_the_original_does_not_focus():
    assert wise.Config().focus
    assert not wise.resolved(wise.Config(variant="original")).focus
