"""The trainer: what it reads, what it computes, what it leaves behind, and what happens when a run goes wrong."""

import copy
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import (
    ARCHITECTURES,
    assert_untouched,
    one_thread,  # noqa: F401
    tiny_model,
    weights_of,
)
from training_requests import FAST, FORGET, KEPT, tensors_of

from unlearn_eval.editing.training import gradient, objectives
from unlearn_eval.editing.training.data import RETAIN, Row, Schedule, tensors
from unlearn_eval.editing.training.gradient import ANSWER, LOGITS, GradientConfig, Method
from unlearn_eval.editing.training.settings import Objective, TrainingConfig
from unlearn_eval.editing.training.weights import match_names, split_patterns
from unlearn_eval.editors.gradient import npo, pdu
from unlearn_eval.edits.base import applied
from unlearn_eval.models.scoring import Query, score_answers
from unlearn_eval.utils.errors import UserError

HERE = Path(__file__).parents[1] / "helpers"  # for processes of their own
PATHS = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])


def train(editor, model, config=None, retain=KEPT, forget=FORGET, **changes):
    return editor.edit(model, None, forget, config or editor.Config(**{**FAST, **changes}), retain=retain)


def assert_same(one, other, **tolerance):
    a, b = tensors_of(one), tensors_of(other)
    assert a.keys() == b.keys()
    for name in a:
        if tolerance:
            torch.testing.assert_close(a[name], b[name], **tolerance)
        else:
            assert torch.equal(a[name], b[name]), name


# The order --------------------------------------------------------------------------------------------------


def test_every_item_is_seen_once_per_epoch():
    schedule = Schedule(n_forget=6, n_retain=50, batch_size=4, steps=6, chunks=1, seed=0)
    seen = [i for k in range(6) for i in schedule[k].forget]
    assert [sorted(seen[start : start + 6]) for start in range(0, 24, 6)] == [list(range(6))] * 4
    assert seen[:6] != seen[6:12]
    kept = [i for k in range(6) for i in schedule[k].retain]
    assert len(kept) == 24
    assert len(set(kept)) > 12
    assert schedule.needed("answer") == list(range(6))
    assert schedule.needed(RETAIN) == sorted(set(kept))


@pytest.mark.parametrize("chunks", [2, 3, 4])
def test_processes_share_one_order(chunks):
    whole, parts = (Schedule(6, 9, 4, 5, n, seed=3) for n in (1, chunks))
    for step in range(5):
        own = [parts[step * chunks + k] for k in range(chunks)]
        assert sum((chunk.forget for chunk in own), ()) == whole[step].forget
        assert sum((chunk.retain for chunk in own), ()) == whole[step].retain
        assert all(chunk.forget for chunk in own)
    # What two processes retain is not the same (it is where each draws with the same seed).
    assert [parts[k].retain for k in range(0, 10, 2)] != [parts[k].retain for k in range(1, 11, 2)]
    assert Schedule(6, 9, 4, 5, 1, seed=4)[0] != whole[0]
    assert Schedule(6, 0, 4, 5, 1, seed=4)[0].retain == ()


# What is read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_changes_nothing(architecture, tmp_path):
    """Each row's label log-probabilities are those of the row alone, unpadded."""
    model = tiny_model(architecture, torch.float64)
    rows = [Row(r.prompt_ids, r.answer_ids) for r in FORGET]
    objective = Objective(lambda said: objectives.ascent(said[ANSWER].log_probs, said[ANSWER].mask), {ANSWER: LOGITS})
    unlearner = trainer_for(model, {ANSWER: rows}, objective, tmp_path)
    batch = tensors(rows)
    with torch.no_grad():
        said = unlearner.read(model, batch, LOGITS)
        for i, row in enumerate(rows):
            logits = model(input_ids=torch.tensor([[*row.prompt_ids, *row.label_ids[:-1]]])).logits[0].log_softmax(-1)
            start = len(row.prompt_ids) - 1
            alone = [logits[start + t, label].item() for t, label in enumerate(row.label_ids)]
            found = said.log_probs[i][said.mask[i]].tolist()
            assert found == pytest.approx(alone, rel=1e-9)  # float64 through four random blocks


def trainer_for(model, rows, objective, folder):
    from unlearn_eval.editing.training.run import Unlearner, _arguments
    from unlearn_eval.editing.training.weights import FullWeights

    config, weights = TrainingConfig(**FAST), FullWeights(model, [], folder)
    n = len(rows[ANSWER])
    schedule = Schedule(n, len(rows.get(RETAIN, ())), n, 2, 1, 0)
    return Unlearner(weights, rows, objective, schedule, _arguments(weights, config, folder, 2, 1, 1), lambda *_: None)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_reference_is_what_the_model_said(softcap, tmp_path):
    """Its log-probabilities are the scorer's; its distributions come out whole, also where logits are capped."""
    model = tiny_model("gemma3", torch.float64)
    model.config.final_logit_softcapping = softcap
    rows = {ANSWER: [Row(r.prompt_ids, r.answer_ids) for r in FORGET]}
    reads = frozenset({"logits", "hidden", "reference", "reference_logits", "reference_hidden"})
    objective = Objective(lambda said: said, {ANSWER: reads}, layer="model.layers.1")
    unlearner = trainer_for(model, rows, objective, tmp_path / "a")
    unlearner.ask_reference(tmp_path / "a", "fingerprint", 2)
    assert unlearner.kinds[ANSWER] == ("log_probs", "logits" if softcap else "head_inputs", "hidden")
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)  # training goes on; the reference stays
        batch = unlearner.collator.batch(ANSWER, range(len(FORGET)))
        recalled = unlearner.read(model, batch, reads)
        model.lm_head.weight.div_(1.5)
        now = unlearner.read(model, unlearner.collator.batch(ANSWER, range(len(FORGET))), reads)
    for i, score in enumerate(score_answers(model, [Query(r.prompt_ids, r.answer_ids) for r in FORGET])):
        n = len(score.token_nll)
        assert (-recalled.reference[i, :n]).tolist() == pytest.approx(score.token_nll, rel=1e-5)  # it scores in float32
        torch.testing.assert_close(recalled.reference_logits[i, :n], now.logits[i, :n])
        torch.testing.assert_close(recalled.reference_hidden[i, :n], now.hidden[i, :n])
        assert not torch.allclose(recalled.logits[i, :n], now.logits[i, :n])


def test_the_reference_is_asked_once(tmp_path):
    from unlearn_eval.editing.training.reference_cache import ReferenceCache

    asked = []

    def ask(keys):
        asked.extend(keys)
        return [{"log_probs": torch.tensor([float(i)]), "hidden": torch.full((1, 2), float(i))} for _, i in keys]

    wanted = [("answer", 0), ("answer", 3), ("retain", 3)]
    ReferenceCache(tmp_path, "one").fill(wanted, ask, 2)
    assert asked == wanted
    again = ReferenceCache(tmp_path, "one")
    again.fill([*wanted, ("retain", 4)], ask, 2)
    assert asked == [*wanted, ("retain", 4)]
    other = ReferenceCache(tmp_path, "one", process=1)
    other.fill([("retain", 5)], ask, 2)
    again.open()
    for part, i in [*wanted, ("retain", 4), ("retain", 5)]:
        assert again.recall(part, i, ("log_probs", "hidden"))["hidden"].tolist() == [[i, i]]
    asked.clear()
    ReferenceCache(tmp_path, "two").fill(wanted, ask, 2)  # of another model: nothing of the old is used
    assert asked == wanted


# What is computed -------------------------------------------------------------------------------------------


def slow_npo(model, config, steps, chunks=1):
    """NPO with likelihood on retain items: a plain loop, a second model, one row at a time."""
    reference = copy.deepcopy(model)
    model = copy.deepcopy(model).requires_grad_(True)
    decayed = [p for n, p in model.named_parameters() if p.ndim > 1]
    plain = [p for n, p in model.named_parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=config.learning_rate,
    )
    schedule = Schedule(len(FORGET), len(KEPT), config.batch_size, steps, 1, config.seed)

    def label_log_probs(network, row):
        logits = network(input_ids=torch.tensor([[*row.prompt_ids, *row.answer_ids[:-1]]])).logits[0].log_softmax(-1)
        start = len(row.prompt_ids) - 1
        return torch.stack([logits[start + t, label] for t, label in enumerate(row.answer_ids)])

    for step in range(steps):
        chunk, terms = schedule[step], []
        for i, j in zip(chunk.forget, chunk.retain, strict=True):
            with torch.no_grad():
                before = label_log_probs(reference, FORGET[i]).sum()
            ratio = label_log_probs(model, FORGET[i]).sum() - before
            forget = -2 / config.beta * torch.log(torch.sigmoid(-config.beta * ratio))
            terms.append(forget + config.retain_weight * -label_log_probs(model, KEPT[j]).mean())
        torch.stack(terms).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 - step / steps)  # linear, without warm-up
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_a_run_against_a_plain_loop_with_a_second_model(architecture):
    model = tiny_model(architecture, torch.float64)
    config = npo.Config(**{**FAST, "learning_rate": 1e-3, "retain_weight": 0.7, "steps": 5})
    edit = train(npo.EDITOR, model, config)
    expected = slow_npo(model, config, 5)
    assert edit.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        # Adam divides by gradients that may be near 0; 1e-3 is the step.
        torch.testing.assert_close(edit.tensors[name], tensor, rtol=1e-6, atol=1e-8)


def test_rows_per_forward_pass_change_nothing():
    model = tiny_model("llama", torch.float64)
    whole = train(npo.EDITOR, model, batch_size=7, micro_batch_size=7)
    assert whole.info.notes["training"]["rows_per_forward_pass"] == 7
    for size in (1, 2, 5):  # 2 and 5 leave a rest
        again = train(npo.EDITOR, model, batch_size=7, micro_batch_size=size)
        assert again.info.notes["training"]["rows_per_forward_pass"] <= size
        assert_same(again, whole, rtol=1e-6, atol=1e-8)


def test_gradient_checkpointing_changes_nothing():
    model = tiny_model("llama", torch.float64)
    before = weights_of(model)
    assert_same(train(npo.EDITOR, model, gradient_checkpointing=True), train(npo.EDITOR, model), rtol=1e-9, atol=1e-12)
    assert_untouched(model, before)
    assert not model.is_gradient_checkpointing


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_what_accelerate_would_share_out_is_refused(name, monkeypatch):
    """The trained parameters would be others than those that are read afterwards: an empty edit."""
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    model = tiny_model("llama")
    before = weights_of(model)
    with pytest.raises(UserError, match=f"by {name}.*\nhint: .*shard=true"):
        train(npo.EDITOR, model)
    assert_untouched(model, before)


def test_one_process_shares_nothing_out():
    with pytest.raises(UserError, match="there is one\nhint: .*torchrun"):
        train(npo.EDITOR, tiny_model("llama"), shard=True)


def test_the_multiplier_of_pdu():
    model = tiny_model("llama", torch.float64)
    config = pdu.Config(**FAST, retain_weight=2.0, bound=1.0, dual_step=0.5, dual_warmup_epochs=0.5)
    curve = [json.loads(line) for line in train(pdu.EDITOR, model, config).texts["training.jsonl"].splitlines()]
    assert len(curve) == 4  # 7 items twice, 4 at a time
    multiplier = 2.0
    for entry in curve:
        expected = entry["forget_loss"] + multiplier * entry["retain_loss"]
        assert entry["loss"] == pytest.approx(expected, rel=1e-6)
        if entry["step"] > 1:  # half an epoch is one step
            multiplier = max(0.0, multiplier + 0.5 * (entry["retain_loss"] - 1.0))
        assert entry["multiplier"] == pytest.approx(multiplier)


# What is left behind ----------------------------------------------------------------------------------------


def test_bfloat16_weights_are_trained_in_float32():
    """Steps smaller than half a bfloat16's spacing add up, and the model is as before, in its own type."""
    model = tiny_model("llama", torch.bfloat16)
    before = weights_of(model)
    edit = train(npo.EDITOR, model, learning_rate=1e-4, steps=30, weight_decay=0.0, precision="float32")
    assert_untouched(model, before)
    assert all(tensor.dtype == torch.bfloat16 for tensor in edit.tensors.values())
    spacing = 2.0**-9  # relative, half a unit in the last place
    large = [name for name, tensor in before.items() if name in edit.tensors and tensor.float().abs().max() > 0.1]
    moved = [(edit.tensors[n].float() - before[n].float()).abs()[before[n].float().abs() > 0.1].max() for n in large]
    assert max(moved) > 1e-4  # no single step of 1e-4 moves a weight above 0.1: 0.1 · 2^-9 = 2e-4
    assert 0.1 * spacing > 1e-4


def test_mixed_precision_runs():
    model = tiny_model("llama", exact_norms=False)
    before = weights_of(model)
    mixed = train(npo.EDITOR, model, precision="bfloat16", learning_rate=1e-3, retain_term="kl")
    assert_untouched(model, before)
    plain = train(npo.EDITOR, model, precision="float32", learning_rate=1e-3, retain_term="kl")
    curves = [[json.loads(line) for line in edit.texts["training.jsonl"].splitlines()] for edit in (mixed, plain)]
    assert curves[0][0]["loss"] == pytest.approx(curves[1][0]["loss"], rel=0.02)  # bfloat16 has 8 bits
    assert curves[0] != curves[1]


@pytest.mark.parametrize("components", ["", "mlp.down_proj"])
def test_precision_is_that_of_the_model(components):
    """Mixed for bfloat16 on a CPU, whether all of it is trained, and in float32 by then, or a part."""
    model = tiny_model("llama", torch.bfloat16)
    automatic, mixed = (
        train(npo.EDITOR, model, learning_rate=1e-3, components=components, precision=precision).texts["training.jsonl"]
        for precision in ("auto", "bfloat16")
    )
    assert automatic == mixed


def test_what_is_not_trained_must_be_wide_enough():
    with pytest.raises(UserError, match="what is not trained of the model is bfloat16"):
        train(npo.EDITOR, tiny_model("llama", torch.bfloat16), components="mlp.down_proj", precision="float32")


def test_a_model_of_bfloat16_can_be_trained_again():
    """The Trainer leaves a mark on a model that computes in mixed precision; with it the next one would not."""
    model = tiny_model("llama", torch.bfloat16)
    first, second = (train(npo.EDITOR, model, learning_rate=1e-3, components="mlp.down_proj") for _ in range(2))
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items())


def test_nothing_elses_randomness_moves():
    model = tiny_model("gpt2")
    states = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    train(npo.EDITOR, model, lora_rank=2)
    assert np.array_equal(np.random.get_state()[1], states[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[1])


def test_components():
    model = tiny_model("llama")
    before = weights_of(model)
    edit = train(npo.EDITOR, model, components="layers.(1|2).mlp.down_proj, layers.3.self_attn")
    parts = ["model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"]
    attention = [f"model.layers.3.self_attn.{x}_proj" for x in "qkvo"]
    assert set(edit.tensors) == {f"{name}.weight" for name in (*parts, *attention)}
    assert_untouched(model, before)
    low_rank = train(npo.EDITOR, model, components="mlp.down_proj", lora_rank=2)
    assert set(low_rank.factors) == {f"model.layers.{i}.mlp.down_proj" for i in range(4)}
    for components, hint in (("mlp.downproj", "mlp.down_proj"), ("layers.9", "layers"), ("zzz", "there are: ")):
        with pytest.raises(UserError, match=f"no component of the model is called '{components}'\nhint: .*{hint}"):
            train(npo.EDITOR, model, components=components)
    with pytest.raises(UserError, match="no regular expression"):
        train(npo.EDITOR, model, components="layers.(1")
    assert_untouched(model, before)


def test_patterns():
    names = ["a.0.b.weight", "a.10.b.weight", "a.1.bb.weight", "c.weight"]
    assert match_names(names, ["a.0"]) == names[:1]
    assert match_names(names, ["b"]) == names[:2]
    assert match_names(names, [r"\d+"]) == names[:3]
    assert match_names(names, ["c", "b.weight"]) == [names[0], names[1], names[3]]
    assert split_patterns("a.{1,2}.b, c,,d.(e|f),[a,b]") == ["a.{1,2}.b", "c", "d.(e|f)", "[a,b]"]


# When a run goes wrong --------------------------------------------------------------------------------------


def failing(at, error=None, value=None):
    """NPO whose loss, from a forward pass on, is an error or another number."""
    calls = {"n": 0, "rows": []}

    def forget_loss(said, config):
        calls["n"] += 1
        loss = npo.forget_loss(said, config)
        calls["rows"].append(len(loss))
        if calls["n"] >= at(len(loss)) if callable(at) else calls["n"] >= at:
            if error is not None:
                raise error
            return loss * value
        return loss

    method = Method("npo", forget_loss, {ANSWER: gradient.WITH_REFERENCE})
    return gradient.editor(method), calls


@pytest.mark.parametrize(("architecture", "editor", "more"), [
    ("gpt2", npo.EDITOR, {}),  # it has dropout
    ("llama", npo.EDITOR, {"lora_rank": 2, "lora_dropout": 0.1}),
    ("llama", pdu.EDITOR, {"dual_warmup_epochs": 0.0}),
    ("gemma3", npo.EDITOR, {"retain_term": "kl"}),
])  # fmt: skip
@pytest.mark.parametrize("killed", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on(architecture, editor, more, killed, tmp_path):
    """The weights are those of a run that was not killed, bit for bit."""
    model = tiny_model(architecture)
    before = weights_of(model)
    config = editor.Config(**{**FAST, "steps": 6, "checkpoint_steps": 2, "folder": str(tmp_path / "run"), **more})

    def kill(what, done, total):
        if (what, done) == ("steps", killed):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        editor.edit(model, None, FORGET, config, retain=KEPT, progress=kill)
    assert_untouched(model, before)
    steps = []

    def note(what, done, total):
        if what == "steps":
            steps.append(done)

    again = editor.edit(model, None, FORGET, config, retain=KEPT, progress=note)
    assert steps == list(range(killed - killed % 2 + 1, 7))
    assert again.info.notes["training"]["went_on_from_step"] == killed - killed % 2
    whole = train(editor, model, replace(config, folder=""))
    assert_same(again, whole)
    assert again.texts["training.jsonl"] == whole.texts["training.jsonl"]
    assert_untouched(model, before)


def test_a_checkpoint_that_was_being_written_does_not_count(tmp_path):
    model = tiny_model("llama")
    config = npo.Config(**{**FAST, "steps": 4, "checkpoint_steps": 2, "folder": str(tmp_path / "run")})
    train(npo.EDITOR, model, config)
    half = tmp_path / "run" / "checkpoint-9"
    half.mkdir()
    (half / "trained.safetensors").write_bytes(b"cut off")
    assert_same(train(npo.EDITOR, model, config), train(npo.EDITOR, model, replace(config, folder="")))


def test_another_runs_checkpoints_are_refused(tmp_path):
    model = tiny_model("llama")
    config = npo.Config(**FAST, folder=str(tmp_path / "run"))
    train(npo.EDITOR, model, config)
    for other, what in (
        (lambda: train(npo.EDITOR, model, replace(config, beta=0.5)), "beta 0.1 -> 0.5"),
        (lambda: train(npo.EDITOR, model, config, forget=FORGET[1:]), "rows"),
        (lambda: train(npo.EDITOR, tiny_model("llama", seed=1), config), "weights"),
    ):
        with pytest.raises(UserError, match=f"checkpoints of another run: .*{what}.*\nhint: give another folder"):
            other()
    train(npo.EDITOR, model, replace(config, micro_batch_size=1, logging_steps=2))  # what does not matter may differ
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(UserError, match="something else than checkpoints"):
        train(npo.EDITOR, model, replace(config, folder=str(tmp_path / "letters")))


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverging_run_keeps_the_last_good_state(value, lora_rank):
    model = tiny_model("llama")
    before = weights_of(model)
    config = npo.Config(**{**FAST, "micro_batch_size": 4, "steps": 8, "checkpoint_steps": 2, "lora_rank": lora_rank})
    edit, _ = failing(at=6, value=value)  # the loss after 5 updates; checkpoints are after 2 and 4
    with pytest.warns(UserWarning, match="not finite after 5 steps: stopped, and kept the state after 4"):
        found = edit.edit(model, None, FORGET, config, retain=KEPT)
    assert found.info.notes["training"] | {"diverged_after_step": 5, "kept_step": 4} == found.info.notes["training"]
    assert len(found.texts["training.jsonl"].splitlines()) == 4
    assert all(torch.isfinite(tensor).all() for tensor in tensors_of(found).values())
    assert_untouched(model, before)
    states = []

    def watch(said, config):
        states.append({n: p.detach().clone() for n, p in model.named_parameters()})
        return npo.forget_loss(said, config)

    gradient.train_edit(
        Method("npo", watch, {ANSWER: gradient.WITH_REFERENCE}), model, None, FORGET, config, retain=KEPT
    )
    if not lora_rank:
        for name, tensor in found.tensors.items():
            assert torch.equal(tensor, states[4][name])  # what the fifth step began with


def test_a_run_that_diverges_at_once_changes_nothing():
    model = tiny_model("llama")
    before = weights_of(model)
    edit, _ = failing(at=1, value=math.nan)
    with pytest.warns(UserWarning, match="kept the state after 0"):
        found = edit.edit(model, None, FORGET, npo.Config(**FAST), retain=KEPT)
    assert found.tensors == {}
    assert_untouched(model, before)
    with applied(found, model):
        assert_untouched(model, before)


def test_weights_that_explode_in_the_last_step_are_not_kept():
    model = tiny_model("llama")
    with pytest.warns(UserWarning, match="not finite after 1 steps"):
        found = train(
            npo.EDITOR, model, learning_rate=3e38, forget_weight=1e3, optimizer="sgd", max_grad_norm=0.0, steps=1
        )  # fmt: skip
    assert found.tensors == {}


def test_too_large_a_batch_is_halved_until_it_fits():
    model = tiny_model("llama", torch.float64)
    before = weights_of(model)
    too_many = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    edit, calls = failing(at=lambda rows: 0 if rows > 2 else math.inf, error=too_many)
    config = npo.Config(**{**FAST, "batch_size": 7, "micro_batch_size": 7})
    with pytest.warns(UserWarning, match="memory does not suffice for 3 rows .* beginning again with 1"):
        found = edit.edit(model, None, FORGET, config, retain=KEPT)
    assert max(calls["rows"]) == 7
    assert found.info.notes["training"]["rows_per_forward_pass"] == 1
    assert_same(found, train(npo.EDITOR, model, config), rtol=1e-6, atol=1e-8)
    assert_untouched(model, before)
    edit, _ = failing(at=1, error=RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"))
    longest = max(len(r.prompt_ids) + len(r.answer_ids) - 1 for r in (*FORGET, *KEPT))
    with (
        pytest.warns(UserWarning, match="beginning again"),
        pytest.raises(UserError, match=f"suffice for 1 rows of up to {longest} tokens.*\nhint: .*checkpointing"),
    ):
        edit.edit(model, None, FORGET, config, retain=KEPT)
    assert_untouched(model, before)
    edit, _ = failing(at=1, error=RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        edit.edit(model, None, FORGET, config, retain=KEPT)
    assert_untouched(model, before)


def test_nonsense_is_refused():
    with pytest.raises(UserError, match="unknown precision 'float8'"):
        npo.Config(precision="float8")
    with pytest.raises(UserError, match="do not make sense"):
        npo.Config(batch_size=0)
    with pytest.raises(UserError, match="do not make sense"):
        npo.Config(epochs=0)
    with pytest.raises(UserError, match="unknown retain term 'KL'"):
        GradientConfig(retain_term="KL")


# What it costs ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_second_model():
    """NPO with cached reference log-probabilities needs what training without a reference does, plus 5 % at most."""
    peaks = {}
    for name in ("gradient_difference", "npo"):
        environment = {**os.environ, "PYTHONPATH": PATHS}
        done = subprocess.run(
            [sys.executable, str(HERE / "peak_memory.py"), name], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        peaks[name] = json.loads(done.stdout.splitlines()[-1])
    assert peaks["npo"]["models"] == 1
    # Over what the process had before training; a second model would be 120 MB more, of about 600.
    assert peaks["npo"]["bytes"] < 1.05 * peaks["gradient_difference"]["bytes"]
    assert peaks["npo"]["model_bytes"] > 0.1 * peaks["gradient_difference"]["bytes"]  # else the test could not tell
