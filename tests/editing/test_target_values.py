"""The batched optimization of v* is the loop over one request at a time, for every architecture."""

from dataclasses import replace

import pytest
import torch
from tiny_models import (
    ARCHITECTURES,
    LAYERS,
    WIDTH,
    assert_untouched,
    changed_output,
    one_thread,  # noqa: F401
    random_requests,
    tiny_model,
    weights_of,
    whole_forward,
)

from unlearn_eval.editing.locate_then_edit.target_values import TargetValueConfig, target_values
from unlearn_eval.models import tracing
from unlearn_eval.models.anatomy import anatomy
from unlearn_eval.models.tracing import trace

Z = 1
CONFIG = TargetValueConfig(steps=8, learning_rate=0.5, clamp=1.2, stop_loss=5.5, tokens_per_batch=10**6)
TOLERANCE = 1e-8  # eight steps of Adam in float64: rounding of 1e-15, divided by gradients of 1e-3 and larger


def reference(model, request, config, reverse_kl=False):
    """MEMIT's compute_z for one request, as slow and obvious as possible: no batch, no cache, whole passes."""
    parts = anatomy(model)
    block = parts.block(model, Z)

    def run(ids, lookup, delta):
        def add(hidden):
            moved = hidden.clone()
            moved[0, lookup] = moved[0, lookup] + delta
            return moved

        return whole_forward(model, ids, block, lambda m, a, output: changed_output(output, add))

    with trace(model, outputs=[f"{parts.blocks}.{Z}"]) as seen:
        whole_forward(model, request.prompt_ids)
    h0 = seen.outputs[f"{parts.blocks}.{Z}"][0, request.lookup].detach()

    subject = request.subject_ids or request.prompt_ids[: request.lookup + 1]
    target = torch.tensor(request.target_ids)
    delta = torch.zeros(WIDTH, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=config.learning_rate)
    clean = None
    for step in range(config.steps):
        adam.zero_grad()
        nlls = []
        for ids, lookup in ((request.prompt_ids, request.lookup), *request.contexts):
            logits = run((*ids, *request.target_ids), lookup, delta)
            of_target = logits[len(ids) - 1 : len(ids) - 1 + len(target)]
            nlls.append(torch.nn.functional.cross_entropy(of_target, target))
        nll = torch.stack(nlls).mean()
        edited = run(subject, len(subject) - 1, delta)[-1].log_softmax(-1)
        clean = edited.detach() if clean is None else clean
        kl = (edited.exp() * (edited - clean)).sum()
        if reverse_kl:
            kl = (clean.exp() * (clean - edited)).sum()
        loss = nll + config.kl_weight * kl + config.norm_weight * delta.norm() / h0.norm() ** 2
        if loss < config.stop_loss or step == config.steps - 1:
            break
        loss.backward()
        adam.step()
        with torch.no_grad():
            most = config.clamp * h0.norm()
            if delta.norm() > most:
                delta.mul_(most / delta.norm())
    return h0 + delta.detach(), h0, loss.item(), nll.item(), step + 1


def assert_equal_to_reference(model, requests, config, **options):
    found = target_values(model, anatomy(model), Z, requests, config)
    for i, request in enumerate(requests):
        value, clean, loss, nll, steps = reference(model, request, config, **options)
        torch.testing.assert_close(found.values[i], value, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(found.clean[i], clean, atol=1e-10, rtol=0)
        assert found.losses[i] == pytest.approx(loss, abs=TOLERANCE)
        assert found.nlls[i] == pytest.approx(nll, abs=TOLERANCE)
        assert found.steps[i] == steps
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batched_equals_the_loop(architecture):
    model = tiny_model(architecture, torch.float64)
    before = weights_of(model)
    found = assert_equal_to_reference(model, random_requests(6), CONFIG)
    # The case is worth the name only if requests stop early, at different steps, so that batches shrink on the way.
    assert len(set(found.steps)) >= 3, found.steps
    assert max(found.steps) == CONFIG.steps
    moved = (found.values - found.clean).norm(dim=1)
    assert [bool(m > 0) for m in moved] == [n > 1 for n in found.steps]  # done at once: not moved at all
    assert_untouched(model, before)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_small_batches_give_the_same(architecture):
    model = tiny_model(architecture, torch.float64)
    requests = random_requests(6)
    parts = anatomy(model)
    whole = target_values(model, parts, Z, requests, CONFIG)
    for budget in (1, 40):  # one request at a time; a few
        split = target_values(model, parts, Z, requests, replace(CONFIG, tokens_per_batch=budget))
        torch.testing.assert_close(split.values, whole.values, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(split.clean, whole.clean, atol=TOLERANCE, rtol=0)
        assert split.losses == pytest.approx(whole.losses, abs=TOLERANCE)
        assert split.steps == whole.steps


def test_without_a_cache_the_same(monkeypatch):
    monkeypatch.setattr(tracing, "keeps_plain_cache", lambda model: False)
    assert_equal_to_reference(tiny_model("gemma3", torch.float64), random_requests(4), CONFIG)


def test_requests_without_contexts_or_subject():
    requests = [replace(r, subject_ids=(), contexts=r.contexts[: i % 2]) for i, r in enumerate(random_requests(4))]
    assert_equal_to_reference(tiny_model("gpt_neox", torch.float64), requests, CONFIG)


def test_look_up_at_the_first_and_at_the_last_token():
    first, second, third = random_requests(3)
    plain = replace(first, lookup=0, contexts=(), subject_ids=(0,))
    last = replace(second, lookup=len(second.prompt_ids) - 1, contexts=())
    assert_equal_to_reference(tiny_model("gemma3", torch.float64), [plain, last, third], CONFIG)
    assert_equal_to_reference(tiny_model("llama", torch.float64), [plain], CONFIG)


def test_the_divergence_is_of_the_edited_from_the_clean():
    """The authors' F.kl_div(clean, edited, log_target=True) is KL(edited ‖ clean); the other one is another v*."""
    model, requests = tiny_model("llama", torch.float64), random_requests(3)
    for weight in (CONFIG.kl_weight, 1.0):
        config = replace(CONFIG, kl_weight=weight, stop_loss=0.0)
        found = assert_equal_to_reference(model, requests, config).values
        for i, request in enumerate(requests):
            wrong = reference(model, request, config, reverse_kl=True)[0]
            assert (found[i] - wrong).norm() > 1e4 * TOLERANCE


def test_clamp_holds_and_binds():
    model, requests = tiny_model("qwen2", torch.float64), random_requests(4)
    parts = anatomy(model)
    tight = target_values(model, parts, Z, requests, replace(CONFIG, clamp=0.1, stop_loss=0.0))
    moved = (tight.values - tight.clean).norm(dim=1)
    torch.testing.assert_close(moved, 0.1 * tight.clean.norm(dim=1), atol=1e-12, rtol=0)
    wide = target_values(model, parts, Z, requests, replace(CONFIG, clamp=1e6, stop_loss=0.0))
    moved = (wide.values - wide.clean).norm(dim=1)
    assert (moved > 0.1 * wide.clean.norm(dim=1)).all()
    assert (moved < 1e6 * wide.clean.norm(dim=1)).all()


def test_clean_value_is_of_the_plain_prompt():
    model, requests = tiny_model("llama", torch.float64), random_requests(3)
    parts = anatomy(model)
    name = f"{parts.blocks}.{Z}"
    found = target_values(model, parts, Z, requests, CONFIG).clean
    for i, request in enumerate(requests):
        values = []
        for ids, lookup in request.rows:
            with trace(model, outputs=[name]) as seen:
                whole_forward(model, ids)
            values.append(seen.outputs[name][0, lookup])
        torch.testing.assert_close(found[i], values[0], atol=1e-10, rtol=0)
        assert (found[i] - values[1]).norm() > 1e-3


def test_one_step_changes_nothing_and_measures_the_target():
    model, requests = tiny_model("gpt2", torch.float64), random_requests(3)
    found = target_values(model, anatomy(model), Z, requests, replace(CONFIG, steps=1))
    assert torch.equal(found.values, found.clean)
    assert found.losses == found.nlls
    assert found.steps == [1, 1, 1]
    request = requests[0]
    nlls = []
    for ids, _ in request.rows:
        logp = whole_forward(model, (*ids, *request.target_ids)).log_softmax(-1)
        nlls.append(-sum(logp[len(ids) - 1 + j, t] for j, t in enumerate(request.target_ids)) / len(request.target_ids))
    assert found.nlls[0] == pytest.approx(float(sum(nlls) / len(nlls)), abs=1e-10)


def test_a_finished_request_does_not_move_while_others_go_on():
    model, requests = tiny_model("llama", torch.float64), random_requests(6)
    parts = anatomy(model)
    together = target_values(model, parts, Z, requests, CONFIG)
    early = min((i for i in range(6) if together.steps[i] > 1), key=lambda i: together.steps[i])
    assert 1 < together.steps[early] < max(together.steps)
    alone = target_values(model, parts, Z, [requests[early]], CONFIG)
    torch.testing.assert_close(together.values[early], alone.values[0], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_models_have_wide_values(dtype):
    model, requests = tiny_model("llama", dtype), random_requests(4)
    config = replace(CONFIG, stop_loss=0.0, steps=10)
    found = target_values(model, anatomy(model), Z, requests, config)
    assert found.values.dtype == torch.float32
    assert torch.isfinite(found.values).all()
    start = target_values(model, anatomy(model), Z, requests, replace(config, steps=1))
    # Look-up tokens right before the answer: the others reach it through attention only, which takes more steps.
    assert all(found.nlls[i] < start.nlls[i] - 0.5 for i in (0, 2))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_bfloat16_comes_near_float32_and_leaves_the_weights_alone(architecture):
    model, requests = tiny_model(architecture), random_requests(4)
    parts, before = anatomy(model), weights_of(model)
    config = replace(CONFIG, stop_loss=0.0, steps=8)
    wide = target_values(model, parts, Z, requests, config)
    told = []

    def look(*arguments):
        told.append(parts.weight(model, LAYERS - 1).dtype)

    low = target_values(model, parts, Z, requests, replace(config, bfloat16=True), look)
    assert torch.bfloat16 in told  # it was bfloat16 that computed
    assert low.values.dtype == torch.float32
    assert not torch.equal(low.values, wide.values)
    torch.testing.assert_close(torch.tensor(low.nlls), torch.tensor(wide.nlls), atol=0.2, rtol=0.05)
    assert_untouched(model, before)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())

    def fail(*arguments):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        target_values(model, parts, Z, requests, replace(config, bfloat16=True), fail)
    assert_untouched(model, before)


def test_progress_goes_up_to_the_end():
    told = []
    model = tiny_model("llama")
    config = replace(CONFIG, tokens_per_batch=1, stop_loss=0.0, steps=3)
    target_values(model, anatomy(model), Z, random_requests(3), config, lambda *a: told.append(a))
    shares = [done / total for _, done, total in told]
    assert {what for what, _, _ in told} == {"target values"}
    assert shares == sorted(shares)
    assert shares[-1] == 1
