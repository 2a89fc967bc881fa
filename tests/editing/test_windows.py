"""Long targets in windows: each window's value by the slow, obvious loop, and what the edits make of them."""

from dataclasses import replace

import pytest
import torch
from naive_memit import moments_of
from tiny_models import changed_output, one_thread, random_ids, random_requests, tiny_model, whole_forward  # noqa: F401

from unlearn_eval.editing.editor import get_editor
from unlearn_eval.editing.locate_then_edit.least_squares import least_squares
from unlearn_eval.editing.locate_then_edit.target_values import TargetValueConfig, target_values
from unlearn_eval.editing.locate_then_edit.windows import gathered, text_keys, windows
from unlearn_eval.editing.requests.build import merge_keys
from unlearn_eval.models.anatomy import anatomy
from unlearn_eval.models.tracing import trace
from unlearn_eval.utils.errors import UserError

Z, W = 1, 3
CONFIG = TargetValueConfig(steps=3, clamp=1.2, stop_loss=1.0, kl_weight=0.0)
EDITORS = {
    "memit": {"layers": (0, 1), "preservation": 0.05},
    "alphaedit": {"layers": (0, 1), "null_space": "energy:0.9", "ridge": 1e-3},
    "rome": {"layers": (1,)},
}


def long_requests(n=3, lengths=(8, 3, 6)):
    """Requests of three, one and two windows."""
    generator = torch.Generator().manual_seed(9)
    return [
        replace(request, target_ids=random_ids(generator, length))
        for request, length in zip(random_requests(n, n_contexts=1), lengths, strict=False)
    ]


def naive_windows(model, request, config):
    """The values of one request's windows, one after another, from whole passes: no batch, no cache, no tail."""
    parts = anatomy(model)
    block = parts.block(model, Z)
    rows = request.rows
    held = [{} for _ in rows]  # of each row: position -> change
    values, nlls, steps = [], [], []
    for start in range(0, len(request.target_ids), W):
        own = torch.tensor(request.target_ids[start : start + W])
        before = request.target_ids[:start]
        places = [lookup if not start else len(ids) + start - 1 for ids, lookup in rows]

        def loss_of(delta, own=own, before=before, places=places):
            found = []
            for (ids, _), place, changes in zip(rows, places, held, strict=True):

                def add(hidden, place=place, changes=changes):
                    moved = hidden.clone()
                    for at, change in {**changes, place: delta}.items():
                        moved[0, at] = moved[0, at] + change
                    return moved

                text = (*ids, *before, *own.tolist())
                logits = whole_forward(model, text, block, lambda m, a, out, add=add: changed_output(out, add))
                found.append(torch.nn.functional.cross_entropy(logits[-len(own) - 1 : -1], own))
            return torch.stack(found).mean()

        with trace(model, outputs=[f"{parts.blocks}.{Z}"]) as seen:
            whole_forward(model, (*request.prompt_ids, *before))
        h0 = seen.outputs[f"{parts.blocks}.{Z}"][0, places[0]].detach()
        delta = torch.zeros_like(h0, requires_grad=True)
        adam = torch.optim.Adam([delta], lr=config.learning_rate)
        for step in range(config.steps):
            adam.zero_grad()
            nll = loss_of(delta)
            loss = nll + config.norm_weight * delta.norm() / h0.norm() ** 2
            if loss < config.stop_loss or step == config.steps - 1:
                break
            loss.backward()
            adam.step()
            with torch.no_grad():
                delta.mul_(min(1.0, float(config.clamp * h0.norm() / delta.norm())))
        for changes, place in zip(held, places, strict=True):
            changes[place] = delta.detach()
        values.append(h0 + delta.detach())
        nlls.append(nll.item())
        steps.append(step + 1)
    return torch.stack(values), sum(nlls) / len(nlls), sum(steps)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_batched_windows_equal_the_loop(architecture):
    model = tiny_model(architecture, torch.float64)
    requests = long_requests()
    found = target_values(model, anatomy(model), Z, requests, CONFIG, window=W)
    expected = [naive_windows(model, request, CONFIG) for request in requests]
    assert [len(values) for values, _, _ in expected] == [3, 1, 2]
    torch.testing.assert_close(found.values, torch.cat([values for values, _, _ in expected]), atol=1e-7, rtol=0)
    assert found.nlls == pytest.approx([nll for _, nll, _ in expected], abs=1e-7)
    assert found.steps == [steps for _, _, steps in expected]


def test_a_window_is_a_request_of_its_own():
    request = long_requests()[0]
    first, second, third = windows(request, W)
    assert sum((own.target_ids for own in (first, second, third)), ()) == request.target_ids
    assert (first.prompt_ids, first.lookup, first.subject_ids) == (
        request.prompt_ids, request.lookup, request.subject_ids
    )  # fmt: skip
    assert third.prompt_ids == request.prompt_ids + request.target_ids[:6]
    assert third.lookup == len(third.prompt_ids) - 1
    assert [ids[lookup] for ids, lookup in third.rows] == [request.target_ids[5]] * 2
    assert windows(request, 0) == windows(request, 8) == [request]
    members = merge_keys([replace(own, group="g", target_ids=request.target_ids) for own in long_requests()], 3)[0]
    assert [len(own.parts) for own in windows(members, W)] == [3, 3, 3]
    assert len({part.prompt_ids for own in windows(members, W) for part in own.parts}) == 9


def edit_of(name, model, requests, **settings):
    editor = get_editor(name)
    config = editor.Config(**{**EDITORS[name], "target": CONFIG, **settings})
    return editor.edit(model, None, requests, config, moments=moments_of(model, config.layers))


@pytest.mark.parametrize("name", EDITORS)
def test_a_window_that_holds_every_target_is_the_plain_method(name):
    model = tiny_model("llama", torch.float64)
    requests = long_requests()
    plain, windowed = (edit_of(name, model, requests, window=size) for size in (0, 8))
    for module, (u, v) in plain.factors.items():
        assert torch.equal(u, windowed.factors[module][0])
        assert torch.equal(v, windowed.factors[module][1])


@pytest.mark.parametrize("name", EDITORS)
def test_a_long_target_becomes_more_likely_by_windows(name):
    from unlearn_eval.edits.base import applied
    from unlearn_eval.models.scoring import Query, score_answers

    model = tiny_model("llama")
    requests = [replace(own, contexts=()) for own in long_requests(1, (4,))]
    query = [Query(requests[0].prompt_ids, requests[0].target_ids)]
    nlls = []
    settings = {"layers": (1,), "target": replace(CONFIG, steps=8, clamp=6.0, norm_weight=0.001)}
    for size in (0, 1):
        with applied(edit_of(name, model, requests, window=size, **settings), model):
            nlls.append(sum(score_answers(model, query)[0].token_nll))
    assert nlls[1] < nlls[0] < sum(score_answers(model, query)[0].token_nll)


def test_the_texts_other_tokens_are_keys_to_keep():
    model = tiny_model("llama", torch.float64)
    requests = [replace(own, contexts=()) for own in long_requests()]
    name = anatomy(model).projection_name(0)
    keys = text_keys(model, name, requests, W)
    expected = []
    edited = {own.prompt_ids[: own.lookup + 1] for request in requests for own in windows(request, W)}
    for request in (requests[0], requests[2]):  # that of one window is a plain one
        text = (*request.prompt_ids, *request.target_ids[:-1])
        with trace(model, inputs=[name]) as seen:
            whole_forward(model, text)
        expected += [
            seen.inputs[name][0, i]
            for i in range(len(text))
            if text[: i + 1] not in edited and (i or request is requests[0])  # the BOS once
        ]
    torch.testing.assert_close(keys, torch.stack(expected), atol=1e-12, rtol=0)
    assert text_keys(model, name, requests, 8) is None

    def moved(edit):
        u, v = (own.double() for own in edit.factors[name])
        return float((u @ (v @ keys.T)).norm())

    kept, free = (edit_of("memit", model, requests, layers=(0,), window=W, keep_text=keep) for keep in (True, False))
    assert moved(kept) < 0.5 * moved(free)
    assert kept.state["keys.0"].shape[0] == 6, "later edits keep the windows' keys alone"


def test_many_keys_are_gathered_exactly():
    generator = torch.Generator().manual_seed(0)
    past = torch.randn(5, 30, generator=generator, dtype=torch.float64)
    keys, residuals = (torch.randn(5, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    assert gathered(past).shape == (5, 5)
    assert gathered(keys) is keys
    plain, short = (least_squares(keys, residuals, lambda x: x / 0.1, past=own) for own in (past, gathered(past)))
    torch.testing.assert_close(plain[0] @ plain[1], short[0] @ short[1], atol=1e-10, rtol=0)


def test_the_authors_rome_has_one_value():
    with pytest.raises(UserError, match="one value for each target"):
        edit_of("rome", tiny_model("llama"), long_requests(), variant="original", window=W)
