"""GRACE: the codebook's rules against a plain loop, values that say the target, and everything up to lm-eval."""

import warnings
from dataclasses import replace

import pytest
import torch
from naive_memories import generated, naive_answer, naive_logits
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

from unlearn_eval.editing.memory import replacements
from unlearn_eval.editing.memory.calibration import calibrated
from unlearn_eval.editing.memory.replacements import Replacements
from unlearn_eval.editing.requests.build import merge_keys
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.editors.memory import grace
from unlearn_eval.edits.base import applied
from unlearn_eval.edits.load import load_edit
from unlearn_eval.edits.memory.codebook import Codebook
from unlearn_eval.edits.memory.edit import read_inputs
from unlearn_eval.edits.memory.store import best_bound
from unlearn_eval.models.anatomy import anatomy
from unlearn_eval.utils.errors import UserError

Z = 2
SOME = {"layers": (Z,), "steps": 12, "stop_loss": 0.0}
NAME = f"model.layers.{Z}.mlp.down_proj"
ARCHITECTURES = ["llama", "qwen2", "gpt2", "gpt_neox", "gemma3"]


def key_of(model, request):
    return read_inputs(model, anatomy(model).projection_name(Z), [request.prompt_ids])[0][-1]


# Values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["onward", "last", "all", "prompt"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_are_those_of_the_whole_model(architecture, positions):
    """Only the blocks above run, only from the prompt's end on; the naive version runs everything, with a hook."""
    model, requests = tiny_model(architecture, torch.float64), random_requests(5, n_contexts=0)
    parts = anatomy(model)
    where = {"onward": (False, True), "last": (False, False), "all": (True, True), "prompt": (True, False)}[positions]
    rows = [(r.prompt_ids, r.target_ids) for r in requests]
    problem = Replacements(model, parts, Z, rows, whole=where[0])
    values = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def check(problem, rows, values):
        outputs = torch.where(problem.columns(*where)[..., None], values[:, None], problem.outputs)
        nll, missed = problem.losses(outputs)
        said = missed == 0
        for i, (prompt, target) in enumerate(rows):
            book = Codebook(
                key_of(model, EditRequest("x", prompt, 0, target))[None],
                values[i : i + 1],
                torch.ones(1, dtype=torch.float64),
                torch.zeros(1).long(),
                (target,),
                (("x",),),
                positions,
            )
            edit = grace.MemoryEdit(parts.projection_name(Z), book, grace.EditInfo("grace", {}))
            logp = naive_logits(model, [edit], prompt, target[:-1])[len(prompt) - 1 :].log_softmax(-1)
            right = -torch.stack([logp[j, t] for j, t in enumerate(target)]).mean()
            torch.testing.assert_close(nll[i], right, atol=1e-9, rtol=0)
            assert bool(said[i]) == (logp.argmax(-1).tolist() == list(target))

    check(problem, rows, values)
    chosen = [4, 0, 3]
    check(problem.select(chosen), [rows[i] for i in chosen], values[chosen])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_values_of_a_batch_are_those_of_one_request_at_a_time(architecture):
    model, requests = tiny_model(architecture, torch.float64), random_requests(3)
    before = weights_of(model)
    config = grace.Config(**SOME | {"steps": 6})
    whole = grace.EDITOR.edit(model, None, requests, config).store
    for i, request in enumerate(requests):
        alone = grace.EDITOR.edit(model, None, [request], config).store
        torch.testing.assert_close(whole.values[i], alone.values[0], atol=1e-8, rtol=0)
        torch.testing.assert_close(whole.keys[i], alone.keys[0], atol=1e-10, rtol=0)
        torch.testing.assert_close(whole.keys[i], key_of(model, request), atol=1e-10, rtol=0)
    assert_untouched(model, before)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_the_target_is_said_in_free_generation(architecture):
    """Targets of one token: one value cannot say every row of random tokens in a random model."""
    model, requests = certain_model(architecture), random_requests(6, n_contexts=0)
    requests = [replace(r, target_ids=r.target_ids[:1]) for r in requests]
    config = grace.Config(layers=(1,), epsilon=0.01, steps=100, stop_loss=0.1, learning_rate=2.0)
    edit = grace.EDITOR.edit(model, None, requests, config)
    said = edit.info.notes["said"]
    assert sum(said.values()) >= 5
    asked = [r for r in requests if edit.info.notes["steps"][r.id] < 100]  # stopped early
    assert len(asked) >= 5
    others = [(0, *random_ids(torch.Generator().manual_seed(40 + i), 6)) for i in range(3)]
    plain = generated(model, others)
    with applied(edit, model):
        answers = generated(model, [r.prompt_ids for r in asked] + others, min_new_tokens=0)
    for request, answer in zip(asked, answers, strict=False):
        assert tuple(answer[: len(request.target_ids)]) == request.target_ids
    for answer, right in zip(answers[len(asked) :], plain, strict=True):
        assert answer[:3] == right[:3]
    for request in asked:
        assert edit.info.notes["target_nll"][request.id] < 0.1


def test_finished_values_rest_and_leave_the_batch(monkeypatch):
    model, requests = certain_model("llama").double(), random_requests(6, n_contexts=0)
    sizes, losses = [], Replacements.losses
    monkeypatch.setattr(Replacements, "losses", lambda self, o: (sizes.append(len(self.rows)), losses(self, o))[1])
    config = grace.Config(layers=(3,), steps=80, stop_loss=0.3)
    whole = grace.EDITOR.edit(model, None, requests, config)
    assert sizes[0] == 6
    assert min(sizes) <= 3
    for i, request in enumerate(requests):
        alone = grace.EDITOR.edit(model, None, [request], config)
        torch.testing.assert_close(whole.store.values[i], alone.store.values[0], atol=1e-7, rtol=0)
        assert whole.info.notes["steps"][request.id] == alone.info.notes["steps"][request.id]


# The codebook's rules ----------------------------------------------------------------------------------------


def naive_book(keys, labels, epsilon, original=False):
    """Algorithm 1, one request after another: [key number, radius, requests]."""
    book = []
    for n, (key, label) in enumerate(zip(keys, labels, strict=True)):
        if book:
            i = min(range(len(book)), key=lambda i: float((key - keys[book[i][0]]).norm()))
            d = float((key - keys[book[i][0]]).norm())
            if d <= epsilon + book[i][1]:
                if labels[book[i][0]] == label:
                    book[i][1] = max(book[i][1], d)
                    book[i][2].append(n)
                    continue
                other = book[i][1]
                book[i][1] = d / 2 - 1e-5 if original else min(other, d / 2 - 1e-5)
                book.append([n, d / 2 if original else min(epsilon, d / 2), [n]])
                continue
        book.append([n, epsilon, [n]])
    return book


@pytest.mark.parametrize("variant", ["default", "authors", "easyedit", "original"])
@pytest.mark.parametrize("epsilon", [0.05, 3.0, 6.0, 12.0])
def test_add_split_and_expand(epsilon, variant, monkeypatch):
    monkeypatch.setitem(grace.VARIANTS, "authors", grace.VARIANTS["authors"] | {"steps": 1})  # values play no part
    model = tiny_model("llama", torch.float64)
    requests = [replace(r, target_ids=((7, 8), (9,))[i % 3 == 0]) for i, r in enumerate(random_requests(12))]
    keys = [key_of(model, r) for r in requests]
    expected = naive_book(keys, [r.target_ids for r in requests], epsilon, variant != "default")
    config = grace.Config(layers=(Z,), steps=1, epsilon=epsilon, variant=variant)
    store = grace.EDITOR.edit(model, None, requests, config).store
    assert [list(own) for own in store.owners] == [[f"r{n}" for n in names] for _, _, names in expected]
    torch.testing.assert_close(store.radii, torch.tensor([e for _, e, _ in expected]).double())
    assert [store.labels[i] for i in store.value_of.tolist()] == [requests[n].target_ids for n, _, _ in expected]
    kinds = {len(names) > 1 for _, _, names in expected} | {e < epsilon for _, e, _ in expected}
    assert kinds == ({False} if epsilon == 0.05 else {False, True})
    # In two goes, with the folder in between, it is the same book.
    first = grace.EDITOR.edit(model, None, requests[:5], config)
    both = grace.EDITOR.edit(model, None, requests[5:], config, state=first).store
    assert both.owners == store.owners
    torch.testing.assert_close(both.radii, store.radii)


def test_requests_merged_by_key_share_a_value(tmp_path):
    model, singles = tiny_model("llama", torch.float64), random_requests(5)
    merged = merge_keys([replace(r, group="g") for r in singles], 3)
    edit = grace.EDITOR.edit(model, None, merged, grace.Config(layers=(3,), epsilon=0.01, steps=60, stop_loss=0.2))
    assert edit.store.keys.shape == (5, MLP)
    assert edit.store.values.shape == (2, WIDTH)
    assert edit.store.value_of.tolist() == [0, 0, 0, 1, 1]
    assert [r.owners for r in edit.routes(model, [s.prompt_ids for s in singles])] == [(f"r{i}",) for i in range(5)]
    loaded = load_edit(edit.save(tmp_path / "e"))
    with applied(loaded, model):
        answers = generated(model, [s.prompt_ids for s in singles[:3]], min_new_tokens=0)
    if all(edit.info.notes["said"].values()):
        assert {tuple(a[: len(singles[0].target_ids)]) for a in answers} == {singles[0].target_ids}


def test_more_edits_keep_the_earlier_ones(tmp_path):
    model, requests = tiny_model("gpt2", torch.float64), random_requests(6, n_contexts=0)
    config = grace.Config(layers=(3,), epsilon=0.01, steps=30)
    first = load_edit(grace.EDITOR.edit(model, None, requests[:3], config).save(tmp_path / "a"))
    both = grace.EDITOR.edit(model, None, requests[3:], config, state=first)
    whole = grace.EDITOR.edit(model, None, requests, config)
    assert torch.equal(both.store.values[:3].float(), first.store.values.float())
    torch.testing.assert_close(both.store.values, whole.store.values, atol=1e-4, rtol=1e-4)  # the folder is float32
    assert both.store.owners == whole.store.owners
    assert both.info.notes["steps"] == whole.info.notes["steps"]


@pytest.mark.parametrize(
    ("variant", "name", "positions", "steps"),
    [
        ("authors", "authors", "prompt", 100),  # Thartvigsen/GRACE: replace_prompt, n_iter 100
        ("easyedit", "easyedit", "last", 7),  # zjunlp/EasyEdit: replace_last, n_iter by model
        ("original", "easyedit", "last", 7),  # what it was called
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_codes_settings(variant, name, positions, steps):
    config = grace.resolved(grace.Config(variant=variant, positions="onward", stop_loss=0.5, steps=7))
    assert (config.variant, config.positions, config.steps) == (name, positions, steps)
    assert (config.initial, config.learning_rate, config.relative_rate, config.stop_loss) == ("cold", 1.0, False, 0.0)
    assert grace.resolved(config) == config  # an edit that is continued is resolved again


def test_the_old_name_is_read_with_a_warning():
    with pytest.warns(FutureWarning, match="now called 'easyedit'"):
        grace.resolved(grace.Config(variant="original"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for variant in ("default", "authors", "easyedit"):
            grace.resolved(grace.Config(variant=variant))
    with pytest.raises(UserError, match="no variant 'paper'") as error:
        grace.resolved(grace.Config(variant="paper"))
    assert error.value.hint == "give one of: default, authors, easyedit"


def test_easyedit_s_value_stands_at_the_last_token():
    config = grace.resolved(grace.Config(variant="easyedit"))
    model, requests = tiny_model("llama"), random_requests(2)
    edit = grace.EDITOR.edit(model, None, requests, replace(config, layers=(Z,), steps=5))
    assert set(edit.info.notes["steps"].values()) == {5}
    assert edit.store.positions == "last"


# Calibration -----------------------------------------------------------------------------------------------------


def test_best_bound():
    near, far = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([4.0, 6.0, 7.0])
    assert best_bound(near, far) == 3.0  # 2/3 - 0; up to 5 it would be 1 - 1/3
    assert best_bound(torch.tensor([1.0, 2.0]), torch.tensor([9.0])) == 5.5
    assert best_bound(torch.tensor([9.0]), torch.tensor([1.0, 2.0])) < 1.0  # nobody
    assert best_bound(torch.tensor([3.0]), torch.tensor([1.0, 1.0, 8.0])) < 8.0


def test_calibrated_radii_answer_reworded_questions():
    model, requests = tiny_model("llama", torch.float64), random_requests(4, n_contexts=0)
    edit = grace.EDITOR.edit(model, None, requests, grace.Config(**SOME | {"steps": 1}))
    generator = torch.Generator().manual_seed(9)
    reworded = {r.id: [(*r.prompt_ids[:-1], *random_ids(generator, 1)), r.prompt_ids] for r in requests}
    others = [(0, *random_ids(generator, 5 + i % 4)) for i in range(8)]
    found = calibrated(edit, model, reworded, [r.prompt_ids for r in requests], others)
    note = found.info.notes["calibration"]
    assert (note["n_reworded"], note["n_others"]) == (4, 8)  # the edited prompts themselves say nothing

    def best():
        near = torch.tensor([r.value for r in edit.routes(model, [rows[0] for rows in reworded.values()])])
        far = torch.tensor([r.value for r in edit.routes(model, others)])
        return max(float((near <= r).double().mean() - (far <= r).double().mean()) for r in [*near, *far])

    rates = note["after"]
    assert rates["reworded_answered"] - rates["others_answered"] <= best() + 1e-9
    labels = [r.target_ids for r in requests]
    assert len(set(labels)) == 4  # so that balls may not reach half way to each other
    apart = torch.cdist(edit.store.keys, edit.store.keys) + 1e9 * torch.eye(4).double()
    assert (found.store.radii <= apart.min(1).values / 2 + 1e-9).all()
    assert torch.equal(found.store.keys, edit.store.keys)
    assert all(route.answers for route in found.routes(model, [r.prompt_ids for r in requests]))
    with pytest.raises(UserError, match="no paraphrases"):
        calibrated(edit, model, {"r0": []}, [], others)
    with pytest.raises(UserError, match="no other questions"):
        calibrated(edit, model, reworded, [], [])


# What is refused -------------------------------------------------------------------------------------------------


def test_grace_refuses(monkeypatch):
    model, requests = tiny_model("llama"), random_requests(3)
    for options, match in (
        ({"layers": (9,)}, "do not fit a model of 4 layers"),
        ({"layers": (1, 2)}, "one layer, not"),
        ({"variant": "paper"}, "no variant 'paper'"),
        ({"positions": "first"}, "positions cannot be 'first'"),
        ({"initial": "hot"}, "initial cannot be 'hot'"),
        ({"epsilon": 0.0}, "do not make sense"),
    ):
        with pytest.raises(UserError, match=match):
            grace.EDITOR.edit(model, None, requests, grace.Config(**({"layers": (Z,)} | options)))
    twin = replace(requests[0], id="twin")
    with pytest.raises(UserError, match="'r0' and 'twin' ask the same question"):
        grace.EDITOR.edit(model, None, [*requests, twin], grace.Config(**SOME))
    with pytest.raises(UserError, match="'r0' and 'twin' conflict: one question"):
        grace.EDITOR.edit(model, None, [*requests, replace(twin, target_ids=(5,))], grace.Config(**SOME))
    first = grace.EDITOR.edit(model, None, requests, grace.Config(**SOME))
    later = replace(requests[0], id="later", target_ids=(5,))
    with pytest.raises(UserError, match="'r0' and 'later' conflict: their keys are the same"):
        grace.EDITOR.edit(model, None, [later], grace.Config(**SOME), state=first)
    with pytest.raises(UserError, match=f"is at {NAME}, not at model.layers.1"):
        grace.EDITOR.edit(model, None, requests, grace.Config(layers=(1,)), state=first)
    monkeypatch.setattr("unlearn_eval.edits.memory.edit.free_bytes", lambda device: 900)
    with pytest.raises(UserError, match="a codebook of 3 keys need"):
        grace.EDITOR.edit(model, None, requests, grace.Config(**SOME))


def test_a_value_that_is_not_finite_is_refused(monkeypatch):
    model, requests = tiny_model("llama"), random_requests(2)
    monkeypatch.setattr(
        replacements.Replacements, "losses", lambda self, o: (o.sum((1, 2)) * torch.nan, torch.tensor([False, False]))
    )
    with pytest.raises(UserError, match="2 of 2 values are not finite"):
        grace.EDITOR.edit(model, None, requests, grace.Config(**SOME))


def test_no_requests_are_an_empty_book():
    model = tiny_model("llama")
    edit = grace.EDITOR.edit(model, None, [], grace.Config(**SOME))
    assert edit.store.n == 0
    assert naive_answer(model, [], (0, 7, 9)) == generated_with(edit, model, (0, 7, 9))


def generated_with(edit, model, prompt):
    with applied(edit, model):
        return generated(model, [prompt])[0]
