"""What ends a training run before its last step: the limits, when they are checked, and what is said of it."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_models import one_thread, tiny_model, weights_of  # noqa: F401
from training_requests import FAST, FORGET, KEPT, tensors_of

from unlearn_eval.editing.training.data import Row
from unlearn_eval.editing.training.gradient import GradientConfig, train_edit
from unlearn_eval.editing.training.stop import MOST_ROWS, Check, StopRule, stop_line, watched
from unlearn_eval.editors.gradient import ft_m, gradient_ascent, npo, rmu
from unlearn_eval.edits.base import applied
from unlearn_eval.models.scoring import Query, score_answers
from unlearn_eval.runs.finetune import FINETUNE
from unlearn_eval.utils.errors import UserError

EVERY_STEP = {"micro_batch_size": 4, "warmup_epochs": 0.0, "batch_size": 7, "check_steps": 1, "steps": 12}


def means(model, requests):
    """The mean ln π per token of each answer, by the scorer."""
    scores = score_answers(model, [Query(r.prompt_ids, r.answer_ids) for r in requests])
    return torch.tensor([-sum(score.token_nll) / len(score.token_nll) for score in scores])


@pytest.mark.parametrize(
    ("rule", "check", "by"),
    [
        (StopRule(probability=0.2), Check(4, probability=0.2), "stop_probability"),
        (StopRule(probability=0.2), Check(4, probability=0.21), None),
        (StopRule(probability=0.9, rises=True), Check(4, probability=0.95), "stop_probability"),
        (StopRule(probability=0.9, rises=True), Check(4, probability=0.5), None),
        (StopRule(drop=0.1), Check(4, retain_loss=2.21), "max_utility_drop"),
        (StopRule(drop=0.1), Check(4, retain_loss=2.19), None),
        (StopRule(loss=0.01), Check(4, forget_loss=0.01), "stop_loss"),
        (StopRule(loss=0.01), Check(4, forget_loss=0.02), None),
        (StopRule(probability=0.2, drop=0.1), Check(4, probability=0.5, retain_loss=3.0), "max_utility_drop"),
        (StopRule(), Check(4, probability=0.0, retain_loss=9.0, forget_loss=0.0), None),
    ],
)
def test_limits(rule, check, by):
    found = rule.met(check, Check(0, probability=0.9, retain_loss=2.0))
    assert (found and found["by"]) == by
    if found:
        line = stop_line({"steps": 4, "stopped": found | {"planned_steps": 9}})
        assert line.startswith("stopped after 4 of 9 steps: the ")
        assert by in line


def test_a_rule_is_due_once_per_epoch_or_at_its_steps():
    assert [step for step in range(1, 8) if StopRule(drop=1.0).due(step, 2.5)] == [3, 6]
    assert [step for step in range(1, 8) if StopRule(drop=1.0, every=2).due(step, 2.5)] == [2, 4, 6]
    assert not any(StopRule(every=1).due(step, 1) for step in range(1, 8))
    assert stop_line({"steps": 4, "stopped": {"by": "steps"}}) is None


def test_rows_are_scored_once_and_at_most_so_many():
    rows = [Row((0, i), (1,)) for i in range(MOST_ROWS + 9)]
    assert watched([*rows[:3], *rows[:3]], 0) == rows[:3]
    found = watched(rows, 0)
    assert len(found) == MOST_ROWS == len(set(found))
    assert found == watched(rows, 0) != watched(rows, 1)


def test_forgetting_ends_at_the_probability():
    model = tiny_model("llama")
    start = float(means(model, FORGET).exp().mean())
    config = npo.Config(**EVERY_STEP, learning_rate=1e-2, stop_probability=str(start / 3))
    made = npo.EDITOR.edit(model, None, FORGET, config, retain=KEPT)
    notes = made.info.notes["training"]
    assert notes["stopped"]["by"] == "stop_probability"
    assert notes["stopped"]["planned_steps"] == 12 > notes["steps"] == notes["checks"][-1]["step"]
    values = [check["probability"] for check in notes["checks"]]
    assert values[0] == pytest.approx(start, rel=1e-5)
    assert min(values[:-1]) > start / 3 >= values[-1]
    with applied(made, model):
        assert float(means(model, FORGET).exp().mean()) == pytest.approx(values[-1], rel=1e-4)
    assert len(made.texts["training.jsonl"].splitlines()) == notes["steps"]


@pytest.mark.parametrize("method", [npo, gradient_ascent])
def test_forgetting_ends_when_the_retained_loss_has_risen(method):
    """Also of a method that retains nothing, which gets what is to be retained for this alone."""
    model = tiny_model("llama")
    config = method.Config(**EVERY_STEP, learning_rate=3e-2, retain_term="none", max_utility_drop=0.02)
    assert method.EDITOR.needs_retain(config)
    assert not method.EDITOR.needs_retain(replace(config, max_utility_drop=0.0))
    start = -float(means(model, KEPT).mean())
    notes = method.EDITOR.edit(model, None, FORGET, config, retain=KEPT).info.notes["training"]
    assert notes["stopped"]["by"] == "max_utility_drop"
    assert notes["stopped"]["limit"] == pytest.approx(1.02 * start, rel=1e-5)
    values = [check["retain_loss"] for check in notes["checks"]]
    assert max(values[:-1]) < 1.02 * start <= values[-1]


def test_teaching_ends_at_the_probability():
    model = tiny_model("llama")
    config = GradientConfig(
        **{**EVERY_STEP, "steps": 60}, learning_rate=1e-2, stop_probability="0.5", retain_term="none"
    )
    made = train_edit(FINETUNE, model, None, FORGET, config)
    values = [check["probability"] for check in made.info.notes["training"]["checks"]]
    assert max(values[:-1]) < 0.5 <= values[-1]
    assert made.info.notes["training"]["steps"] < 60


def test_ft_m_ends_at_its_loss():
    model = tiny_model("llama")
    loud = ft_m.Config(**EVERY_STEP, learning_rate=1e-2, stop_loss=1e9)
    assert ft_m.Config().stop_loss == 1e-2
    notes = ft_m.EDITOR.edit(model, None, FORGET, loud).info.notes["training"]
    assert (notes["steps"], notes["stopped"]["by"]) == (1, "stop_loss")
    assert "checks" not in notes
    quiet = ft_m.EDITOR.edit(model, None, FORGET, replace(loud, stop_loss=1e-9)).info.notes["training"]
    assert (quiet["steps"], quiet["stopped"]) == (12, {"by": "steps"})


def test_checks_change_nothing_that_is_trained():
    model = tiny_model("gpt2")  # it has dropout
    plain = npo.Config(**EVERY_STEP, learning_rate=1e-3)
    checked = replace(plain, max_utility_drop=1e6)
    one, other = (npo.EDITOR.edit(model, None, FORGET, config, retain=KEPT) for config in (plain, checked))
    for name, tensor in tensors_of(one).items():
        assert torch.equal(tensor, tensors_of(other)[name]), name


def test_a_killed_run_stops_where_it_would_have(tmp_path):
    """Killed before and after the step at which it stops, it ends with the same weights and notes."""
    model = tiny_model("llama")
    options = {**EVERY_STEP, "check_steps": 4, "learning_rate": 1e-2, "checkpoint_steps": 1}
    config = npo.Config(**options, stop_probability="0.008")
    whole = npo.EDITOR.edit(model, None, FORGET, config, retain=KEPT)
    end = whole.info.notes["training"]["steps"]
    assert end in (4, 8)
    for killed in (end - 1, end):
        own = replace(config, folder=str(tmp_path / str(killed)))

        def kill(what, done, total, killed=killed):
            if (what, done) == ("steps", killed) and killed < end:
                raise KeyboardInterrupt

        if killed < end:
            with pytest.raises(KeyboardInterrupt):
                npo.EDITOR.edit(model, None, FORGET, own, retain=KEPT, progress=kill)
        else:  # all but the edit was written
            npo.EDITOR.edit(model, None, FORGET, own, retain=KEPT)
        again = npo.EDITOR.edit(model, None, FORGET, own, retain=KEPT)
        notes = again.info.notes["training"]
        assert notes.pop("went_on_from_step") in (killed - 1, killed)
        assert notes == whole.info.notes["training"]
        assert again.texts["training.jsonl"] == whole.texts["training.jsonl"]
        for name, tensor in tensors_of(whole).items():
            assert torch.equal(tensor, tensors_of(again)[name]), name


def test_what_is_missing_is_named():
    model = tiny_model("llama")
    with pytest.raises(UserError, match="max_utility_drop is of items to retain"):
        gradient_ascent.EDITOR.edit(model, None, FORGET, gradient_ascent.Config(steps=1, max_utility_drop=0.1))
    bare = [replace(FORGET[0], answer_ids=())]
    with pytest.raises(UserError, match="request r0 has none"):
        ft_m.EDITOR.edit(model, None, bare, ft_m.Config(steps=1, stop_probability="0.1"))
    for text in ("1.5", "0", "-1", "inf"):
        with pytest.raises(UserError, match="give a number between 0 and 1"):
            npo.Config(stop_probability=text)
    with pytest.raises(UserError, match="not a number"):
        npo.Config(stop_probability="reference/").stop_rule()


# What bounds and steers --------------------------------------------------------------------------------------


def test_bounded_ascent_leaves_alone_what_is_beyond_the_bound():
    model = tiny_model("llama")
    options = {**EVERY_STEP, "learning_rate": 1e-2, "weight_decay": 0.0, "max_grad_norm": 0.0, "optimizer": "sgd"}
    start = float(-means(model, FORGET).max())
    still = gradient_ascent.EDITOR.edit(model, None, FORGET, gradient_ascent.Config(**options, bound=start / 2))
    assert not tensors_of(still)
    losses = {}
    for bound in (0.0, 7.0):
        config = gradient_ascent.Config(**{**options, "optimizer": "adamw_torch", "steps": 30}, bound=bound)
        with applied(gradient_ascent.EDITOR.edit(model, None, FORGET, config), model):
            losses[bound] = float(-means(model, FORGET).mean())
    assert losses[7.0] < losses[0.0]


def test_variants_of_rmu_train_what_they_say():
    model = tiny_model("llama")
    own = {}
    for name in rmu.DEPTHS:
        own[name] = rmu.EDITOR.edit(model, None, FORGET, rmu.Config(**FAST, variant=name), retain=KEPT)
    assert set(own["wmdp"].tensors) == {f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)}
    trained = set(own["openunlearning"].tensors)
    assert own["openunlearning"].info.config["layer"] == 2  # 7/16 of 4, rounded
    assert {"model.embed_tokens.weight", "model.layers.2.self_attn.q_proj.weight"} <= trained
    assert not any(name.startswith("model.layers.3.") for name in trained)
    assert weights_of(model).keys() > trained
    with pytest.raises(UserError, match="did you mean wmdp"):
        rmu.Config(variant="wdmp")


def test_the_curve_says_what_adaptive_steering_starts_with():
    """With c = β ‖h_r‖ the first loss is of that size, whatever the model's own: (1/d) E ‖h − β ‖h‖ u‖²."""
    model = tiny_model("llama")
    losses = {}
    for scale in (1.0, 5.0):
        config = rmu.Config(**{**EVERY_STEP, "steps": 1}, learning_rate=1e-6, steering=scale, layer=1)
        made = rmu.EDITOR.edit(model, None, FORGET, config, retain=KEPT)
        losses[scale] = json.loads(made.texts["training.jsonl"].splitlines()[0])["forget_loss"]
    assert 8 < losses[5.0] / losses[1.0] < 40
