"""Attacks on planted cases: what only hides comes back, what was never known does not, and every model is restored."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from forgetful_models import FORGET, OTHERS, RELEARN, planted, without_gradients
from tiny_checkpoints import make_tiny
from tiny_models import (
    assert_untouched,
    one_thread,  # noqa: F401
    tiny_model,
    tiny_tokenizer,
    weights_of,
)

from unlearn_eval.attacks.base import Attack, Case, ItemScore, Observation, attack_names, get_attack
from unlearn_eval.attacks.changed_weights import changed_maps
from unlearn_eval.attacks.controls import kept_controls
from unlearn_eval.attacks.folds import apart, clusters, split
from unlearn_eval.attacks.methods import benign_finetune, merge_back, prune, quantize, relearn, revert
from unlearn_eval.attacks.methods.jailbreak import JAILBREAKS
from unlearn_eval.attacks.retraining import RetrainingConfig
from unlearn_eval.attacks.run import attack_case, robustness
from unlearn_eval.attacks.summary import guessing
from unlearn_eval.cli import app as cli
from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.editing.training.weights import linear_maps
from unlearn_eval.edits.base import KINDS, EditInfo, applied
from unlearn_eval.edits.dense import DenseEdit
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.models.anatomy import is_transposed
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.results.files import read_result, read_samples
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import configure

WIDE = ForgetSet("wide", (*OTHERS, *(replace(own, id=f"{own.id}b", subject=None) for own in OTHERS.items[:4])))


@pytest.fixture(scope="module")
def models():
    tokenizer = tiny_tokenizer()
    return planted(lambda: without_gradients(make_tiny("llama", len(tokenizer))), tokenizer)


@pytest.fixture
def case(models):
    reference = lambda: models.never_knew  # noqa: E731
    return Case(
        models.knows,
        models.hides,
        FORGET,
        PromptFormat(None, False),
        OTHERS,
        max_new_tokens=12,
        open_reference=reference,
    )


def mean(observation, name="accuracy"):
    return sum(score.values[name] for score in observation.scores) / len(observation.scores)


def measured(attacked, model, at, condition="attack", name="accuracy"):
    """The mean over folds of one model at one level."""
    found = [o for o in attacked.observations if (o.model, o.at, o.condition) == (model, at, condition)]
    assert found
    return sum(mean(o, name) for o in found) / len(found)


# Relearning ------------------------------------------------------------------------------------------------


def test_what_hides_behind_a_refusal_is_relearned_and_what_was_never_known_is_not(case):
    before = weights_of(case.loaded.model)
    attacked = attack_case(relearn.ATTACK, case, configure(relearn.Config, RELEARN))
    assert_untouched(case.loaded.model, before)
    assert measured(attacked, "full", None) >= 0.85
    assert measured(attacked, "unlearned", None) == 0
    assert measured(attacked, "reference", None) == 0
    assert measured(attacked, "unlearned", 20) == measured(attacked, "full", 20) >= 0.85
    assert measured(attacked, "reference", 20) == 0
    metrics = attacked.summary.metrics
    assert metrics["forget_accuracy_recovery"].value == pytest.approx(1)
    assert metrics["forget_accuracy_durability"].value == pytest.approx(0)
    assert metrics["forget_probability_recovery"].value == pytest.approx(1, abs=0.1)
    assert metrics["forget_accuracy_half_step"].value == 5
    assert metrics["forget_accuracy_above_chance"].value >= 0.85
    assert metrics["forget_worst"].value == metrics["forget_attacked_accuracy"].value
    assert metrics["forget_attacked_guessing"].stderr is None
    # Its own training shows that it is the format alone that was missing.
    assert metrics["forget_format_accuracy"].value == metrics["forget_attacked_accuracy"].value
    assert metrics["forget_attacked_accuracy"].n == len(FORGET)
    assert attacked.summary.intervals["forget_attacked_accuracy"][0] <= metrics["forget_attacked_accuracy"].value
    assert {o.at for o in attacked.observations} == {None, 5, 10, 20}
    assert {o.fold for o in attacked.observations} == {0, 1}


def test_a_model_that_never_knew_does_not_come_back(case, models):
    """The unlearned model is the one that never knew: the very same weights, as an edit of the full model."""
    own, never = dict(models.knows.model.named_parameters()), dict(models.never_knew.model.named_parameters())
    gone = DenseEdit({name: never[name].detach().clone() for name in own}, EditInfo("oracle", {}))
    forgotten = replace(case, edit=gone)
    attacked = attack_case(relearn.ATTACK, forgotten, configure(relearn.Config, RELEARN | {"control": "false"}))
    metrics = attacked.summary.metrics
    assert metrics["forget_attacked_accuracy"].value == 0
    assert metrics["forget_accuracy_recovery"].value == 0
    assert metrics["forget_probability_recovery"].value == pytest.approx(0, abs=1e-3)
    assert metrics["forget_accuracy_durability"].value == 1
    assert "forget_format_accuracy" not in metrics


def test_all_seeds_and_folds_are_measured_and_lora_leaves_nothing_behind(case):
    before = weights_of(case.loaded.model)
    options = {"lora_rank": "2", "steps": "2", "measure_at": "1", "seeds": "0,1", "folds": "4", "control": "false"}
    attacked = attack_case(relearn.ATTACK, replace(case, open_reference=None), configure(relearn.Config, options))
    assert_untouched(case.loaded.model, before)
    runs = {(o.model, o.seed, o.fold, o.at) for o in attacked.observations}
    assert len(runs) == len(attacked.observations) == 2 * 2 * 4 * 3
    for seed in (0, 1):
        tested = [s.id for o in attacked.observations if (o.model, o.seed, o.at) == ("full", seed, 2) for s in o.scores]
        assert sorted(tested) == sorted(item.id for item in FORGET)
    recovery = attacked.summary.metrics["forget_accuracy_recovery"]
    assert recovery.value is None
    assert "--reference" in recovery.reason


def test_an_attack_that_diverges_keeps_what_it_measured(case):
    before = weights_of(case.loaded.model)
    options = RELEARN | {"learning_rate": "1e30", "max_grad_norm": "0", "components": "", "control": "false"}
    with pytest.warns(UserWarning, match="not finite"):
        attacked = attack_case(relearn.ATTACK, replace(case, open_reference=None), configure(relearn.Config, options))
    assert_untouched(case.loaded.model, before)
    assert any("no longer a number" in reason for reason in attacked.skipped.values())
    assert measured(attacked, "full", None) >= 0.85
    part = robustness(attacked)
    json.dumps(part, allow_nan=False)
    attacked_accuracy = attacked.summary.metrics["forget_attacked_accuracy"]
    assert attacked_accuracy.value is None
    assert attacked_accuracy.reason == "the unlearned model was not measured at any level"


def test_benign_finetuning_brings_back_what_only_hides(case):
    before = weights_of(case.loaded.model)
    attacked = attack_case(benign_finetune.ATTACK, case, configure(benign_finetune.Config, RELEARN))
    assert_untouched(case.loaded.model, before)
    assert measured(attacked, "unlearned", None) == 0
    assert measured(attacked, "unlearned", 20) >= 0.85
    assert measured(attacked, "reference", 20) == 0
    with pytest.raises(UserError, match="other facts"):
        attack_case(benign_finetune.ATTACK, replace(case, others=None), benign_finetune.Config())


# Weights ---------------------------------------------------------------------------------------------------


def test_rounding_by_hand():
    weight = torch.tensor([[0.7, -0.24, 0.05, 0.0], [0.0, 0.0, 0.0, 0.0], [1.1, 2.0, -7.0, 3.6]])
    by_row = quantize.rounded(weight, 4)  # steps of 0.1, of anything, of 1
    expected = torch.tensor([[0.7, -0.2, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 2.0, -7.0, 4.0]])
    assert torch.allclose(by_row, expected, atol=1e-6)
    by_pair = quantize.rounded(weight, 4, 2)  # the second pair of the first row has steps of 0.05 / 7
    assert by_pair[0, 2] == pytest.approx(0.05)
    assert by_pair[2].tolist() == pytest.approx([8 / 7, 2.0, -7.0, 4.0], abs=1e-6)
    uneven = quantize.rounded(weight[:, :3], 4, 2)  # the last group has one input, which is kept
    assert uneven[:, 2].tolist() == pytest.approx([0.05, 0.0, -7.0])
    assert torch.allclose(quantize.rounded(weight, 16), weight, atol=1e-3)


def test_nf4_by_hand():
    weight = torch.tensor([[2.0, -2.0, 0.0, 0.85, 0.16]])
    # Over the largest, 1, -1, 0, .425, .08: the nearest quantiles are 1, -1, 0, .4407, .0796.
    found = quantize.rounded_nf4(weight, 0)[0].tolist()
    assert found == pytest.approx([2, -2, 0, 2 * 0.44070982933044434, 2 * 0.07958029955625534])


def test_pruning_by_hand():
    weight = torch.tensor([[0.5, -0.1, 0.3], [-0.2, 0.4, -0.6]])
    assert prune.pruned(weight, 0.5).tolist() == [[0.5, 0.0, 0.0], [0.0, pytest.approx(0.4), pytest.approx(-0.6)]]
    assert torch.equal(prune.pruned(weight, 0.1), weight)  # a tenth of six is none
    ties = torch.ones(4, 5)
    assert int((prune.pruned(ties, 0.25) == 0).sum()) == 5


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "gemma3", "qwen2"])
def test_every_linear_map_of_the_blocks_is_changed_by_output_and_put_back(architecture):
    model = tiny_model(architecture, torch.bfloat16)
    before = weights_of(model)
    with changed_maps(model, lambda weight: quantize.rounded(weight, 4)):
        for name in linear_maps(model):
            module = model.get_submodule(name)
            old = before[f"{name}.weight"].float()
            old = old.T if is_transposed(module) else old
            new = module.weight.T if is_transposed(module) else module.weight
            assert torch.equal(new, quantize.rounded(old, 4).to(torch.bfloat16)), name
        untouched = set(before) - {f"{name}.weight" for name in linear_maps(model)}
        assert all(torch.equal(model.state_dict()[name], before[name]) for name in untouched)
    assert_untouched(model, before)
    with pytest.raises(RuntimeError), changed_maps(model, lambda weight: weight[:1, :1].expand(2, 2, 2)):
        pass
    assert_untouched(model, before)


@pytest.mark.parametrize("module", [quantize, prune])
def test_weight_attacks_restore_all_models_and_report_each_level(case, module):
    before, never = weights_of(case.loaded.model), case.open_reference().model
    before_never = weights_of(never)
    attacked = attack_case(module.ATTACK, case, module.Config())
    assert_untouched(case.loaded.model, before)
    assert_untouched(never, before_never)
    levels = getattr(module.Config(), "bits", None) or module.Config().fractions
    assert [o.at for o in attacked.observations] == [None, *levels] * 3
    metrics = attacked.summary.metrics
    assert metrics["forget_accuracy"].value == 0
    worst = max(measured(attacked, "unlearned", at) for at in levels)
    assert metrics["forget_attacked_accuracy"].value == worst


def low_rank(model, rank, seed=0):
    generator = torch.Generator().manual_seed(seed)
    names = linear_maps(model)[:2]
    shapes = {n: model.get_submodule(n).weight.shape for n in names}
    shapes = {n: tuple(reversed(s)) if is_transposed(model.get_submodule(n)) else tuple(s) for n, s in shapes.items()}
    draw = lambda *shape: torch.randn(shape, generator=generator) / 10  # noqa: E731
    factors = {name: (draw(d_out, rank), draw(rank, d_in)) for name, (d_out, d_in) in shapes.items()}
    return LowRankEdit(factors, EditInfo("some", {}), any(is_transposed(model.get_submodule(n)) for n in names))


def as_dense(edit, model):
    with applied(edit, model):
        tensors = {f"{n}.weight": model.get_submodule(n).weight.detach().clone() for n in edit.factors}
    return DenseEdit(tensors, EditInfo("some", {}))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_merging_back_by_hand(architecture, dense):
    model = tiny_model(architecture)
    before, edit = weights_of(model), low_rank(model, 3)
    delta = {name: (u @ v).T if edit.stored_transposed else u @ v for name, (u, v) in edit.factors.items()}
    edit = as_dense(edit, model) if dense else edit
    for share in (0.25, 0.5, 1.0):
        with applied(merge_back.without_share(edit, model, share), model):
            for name, change in delta.items():
                expected = before[f"{name}.weight"] + (1 - share) * change
                assert torch.allclose(model.get_submodule(name).weight, expected, atol=1e-6)
            if share == 1:
                assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert_untouched(model, before)
    with applied(edit, model):
        whole = weights_of(model)
    with applied(merge_back.without_share(edit, model, 0.0), model):
        assert all(torch.equal(tensor, whole[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_reverting_by_hand(architecture, dense):
    model = tiny_model(architecture)
    before, edit = weights_of(model), low_rank(model, 3)
    products = {name: u @ v for name, (u, v) in edit.factors.items()}
    transposed, edit = edit.stored_transposed, as_dense(edit, model) if dense else edit
    for k in (1, 2, 3, 7):
        with applied(revert.without_directions(edit, model, k), model):
            for name, product in products.items():
                left, sigma, right = torch.linalg.svd(product.double(), full_matrices=False)
                rest = ((left[:, k:] * sigma[k:]) @ right[k:]).float()
                found = model.get_submodule(name).weight - before[f"{name}.weight"]
                assert torch.allclose(found.T if transposed else found, rest, atol=1e-5)
                assert k < 3 or rest.abs().max() < 1e-6
        assert_untouched(model, before)


def test_the_randomised_svd_finds_the_largest_directions(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    change = torch.randn(60, 6, generator=generator) @ torch.randn(6, 50, generator=generator)
    change += 1e-4 * torch.randn(60, 50, generator=generator)
    exact = revert._largest(change, 2, 0)
    monkeypatch.setattr(revert, "_EXACT_UP_TO", 10)
    before = torch.random.get_rng_state()
    assert torch.allclose(revert._largest(change, 2, 0), exact, atol=1e-3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_merging_and_reverting_the_planted_edit(case):
    before = weights_of(case.loaded.model)
    merged = attack_case(merge_back.ATTACK, case, merge_back.Config(shares=(0.1, 1.0)))
    assert measured(merged, "unlearned", 0.1) < 0.5 < measured(merged, "unlearned", 1.0)
    full = [o for o in merged.observations if o.model == "full"][0]
    back = [o for o in merged.observations if o.at == 1.0][0]
    assert back.scores == full.scores
    reverted = attack_case(revert.ATTACK, case, revert.Config((1,)))
    assert measured(reverted, "unlearned", 1) == measured(reverted, "full", None)
    assert_untouched(case.loaded.model, before)


def test_jailbreaks_are_published_prompts_and_the_worst_case_is_over_all(case):
    assert len(JAILBREAKS) >= 20
    for name, (paper, prompt) in JAILBREAKS.items():
        assert re.fullmatch(r"\d{4}\.\d{5}", paper), name
        assert prompt.wrap.count("{question}") == 1, name
        assert prompt.opening or prompt.wrap != "{question}", name
    assert len({prompt for _, prompt in JAILBREAKS.values()}) == len(JAILBREAKS)
    attack, before = get_attack("jailbreak"), weights_of(case.loaded.model)
    attacked = attack_case(
        attack, replace(case, max_new_tokens=4), configure(attack.Config, {"prompts": "sure_here,guess"})
    )
    assert_untouched(case.loaded.model, before)
    own = [o for o in attacked.observations if o.model == "unlearned" and o.at is not None]
    assert [o.at for o in own] == ["sure_here", "guess"]
    best = [max(o.scores[i].values["accuracy"] for o in own) for i in range(len(FORGET))]
    assert attacked.summary.metrics["forget_worst"].value == pytest.approx(sum(best) / len(best))
    with pytest.raises(UserError, match="did you mean sure_here"):
        configure(attack.Config, {"prompts": "sure_her"})


# Folds and chance ------------------------------------------------------------------------------------------


def item(key, subject=None, group=None, question=None, answer="A"):
    question = question or f"What of {subject or key}?"
    return ForgetItem(key, question, answer, subject=subject, group=group)


def test_a_group_that_is_the_answer_holds_nothing_together():
    """Athletes of one sport are known or forgotten one by one: others of it can be trained on, and read."""
    names = [f"Athlete {i}" for i in range(12)]
    athletes = ForgetSet(
        "sports",
        tuple(
            ForgetItem(name, f"{name} plays", sport, subject=name, group=sport.title())
            for name, sport in zip(names, ["golf", "tennis"] * 6, strict=True)
        ),
    )
    forget = athletes.select(names[:4])
    assert [item.id for item in apart(forget, athletes)] == names[4:]
    assert all(len(shown) == len(tested) == 2 for shown, tested in split(forget, 2, 0))


def test_folds_share_no_subject_and_no_group():
    items = ForgetSet("s", (
        item("a", "Ada", "x"), item("b", "Ada", "y"), item("c", "Bo", "y"), item("d", "Cy"), item("e", "Di"),
        item("f", "Ed"), item("g", question="What of Ed?"), item("h", "Flo", "z"), item("i", "Gus", "z"),
    ))  # fmt: skip
    names = [sorted(items.items[i].id for i in part) for part in clusters(items)]
    assert sorted(names) == [["a", "b", "c"], ["d"], ["e"], ["f", "g"], ["h", "i"]]
    for seed in range(5):
        folds = split(items, 2, seed)
        tested = [i.id for _, v in folds for i in v]
        assert sorted(tested) == list("abcdefghi")
        for shown, v in folds:
            assert {i.id for i in shown} | {i.id for i in v} == set("abcdefghi")
            assert not {i.subject for i in shown} & {i.subject for i in v} - {None}
            assert not {i.group for i in shown} & {i.group for i in v} - {None}
            assert abs(len(v) - 4.5) <= 1
    assert split(FORGET, 2, 0) == split(FORGET, 2, 0)
    assert any(split(FORGET, 2, seed) != split(FORGET, 2, 0) for seed in range(1, 5))


def test_too_few_facts_are_refused():
    one = ForgetSet("s", (item("a", "Ada"), item("b", "Ada")))
    with pytest.raises(UserError, match="2 facts in 1 groups are too few for 2 folds"):
        split(one, 2, 0)
    with pytest.raises(UserError, match="leave nothing to test"):
        split(FORGET, 1, 0)


def test_other_facts_have_nothing_in_common():
    items = ForgetSet("s", (item("a", "Ada", "x"),))
    others = ForgetSet("o", (
        item("a", "Bo"), item("b", "Ada"), item("c", "Cy", "x"), item("d", question="What of Ada?"), item("e", "Di"),
    ))  # fmt: skip
    assert [i.id for i in apart(items, others)] == ["e"]
    assert apart(items, items) is None


def test_guessing_is_the_accuracy_of_answers_dealt_at_random():
    items = [item(str(i), answer=answer) for i, answer in enumerate(["golf", "golf", "chess", "polo"])]
    said = {"0": "golf", "1": "golf", "2": "it is golf", "3": "polo"}
    # Of the 12 pairs (item, answer to another): golf/0 is said to 1 and 2, golf/1 to 0 and 2.
    assert guessing(ForgetSet("s", tuple(items)), said).value == pytest.approx(4 / 12)
    assert guessing(ForgetSet("s", tuple(items)), {"0": "golf"}).value is None


# Names, kinds, settings, the command -----------------------------------------------------------------------


def test_names_and_settings():
    assert {"relearn", "quantize", "prune", "merge_back", "revert", "benign_finetune"} <= set(attack_names())
    for name in attack_names():
        attack = get_attack(name)
        assert isinstance(attack, Attack)
        assert attack.name == name
        assert attack.does
        assert attack.headline in ("last", "worst")
        assert attack.Config()
        assert set(attack.kinds) <= set(KINDS)
        assert bool(attack.why_not) == (set(attack.kinds) != set(KINDS)), "why not the others"
        assert attack.retrains == isinstance(attack.Config(), RetrainingConfig)
    with pytest.raises(UserError, match="did you mean relearn"):
        get_attack("relern")
    assert configure(prune.Config, {"fractions": "0.1,0.4"}).fractions == (0.1, 0.4)
    for module, options in (
        (quantize, {"bits": "1"}), (quantize, {"scheme": "int"}), (prune, {"fractions": "1.5"}),
        (merge_back, {"shares": "0"}), (revert, {"directions": "0"}), (relearn, {"steps": "0"}),
        (relearn, {"folder": "x"}), (prune, {"fraction": "0.1"}), (prune, {"fractions": "much"}),
    ):  # fmt: skip
        with pytest.raises(UserError):
            configure(module.Config, options)


FAST = {
    "jailbreak": {"prompts": "sure_here,guess"},
    "relearn": {"lora_rank": "2", "steps": "1", "lora_dropout": "0"},
    "benign_finetune": {"lora_rank": "2", "steps": "1", "lora_dropout": "0"},
    "probe": {"n_train": "10", "n_controls": "2", "labels": "truth"},
    "soft_prompt": {"steps": "2", "n_tokens": "2"},
}


def with_and_without_reference():
    """Each attack with a reference; without one too, where that is no second training in the default suite."""
    for name in attack_names():
        attack = get_attack(name)
        if attack.controls_alone:
            yield name, True
            yield pytest.param(name, False, marks=[pytest.mark.slow] if attack.retrains else [])


@pytest.mark.parametrize(("name", "with_reference"), with_and_without_reference())
def test_what_other_models_give_is_measured_once_and_changes_nothing(name, with_reference, case, tmp_path):
    case = replace(case, max_new_tokens=3)
    if name == "probe":
        case = replace(case, items=ForgetSet("few", FORGET.items[:4]), others=WIDE)
    if not with_reference:
        case = replace(case, open_reference=None)
    attack, before = get_attack(name), weights_of(case.loaded.model)
    settings, path = configure(attack.Config, FAST.get(name, {})), tmp_path / "controls" / "own.json"

    def attacked(known=None, attack=attack):
        return attack_case(attack, replace(case, notes=[], skipped={}), settings, known)

    plain = attacked()
    made = kept_controls(attack, case, settings, path)
    assert {one.model for one in made.observations} <= {"full", "reference"}
    assert case.notes == []
    assert case.skipped == {}
    for known in (made, kept_controls(attack, case, settings, path)):
        again = attacked(known)
        assert again.summary == plain.summary
        assert robustness(again) == robustness(plain)
        assert again.notes == plain.notes
    asked = []
    watched = replace(attack, run=lambda case, config: asked.append(case.names) or attack.run(case, config))
    attacked(kept_controls(watched, case, settings, path), watched)
    assert asked == [("unlearned",)]
    path.write_text(path.read_text()[:-20])  # cut off: it is made again
    assert kept_controls(attack, case, settings, path).observations == made.observations
    assert_untouched(case.loaded.model, before)


def test_an_edit_that_cannot_be_treated_is_skipped_with_the_reason(case):
    class Memory:
        """Not a LowRankEdit and not a DenseEdit."""

        kind = "memory"
        info = EditInfo("grace", {})

    for name in ("relearn", "merge_back", "revert"):
        attack = get_attack(name)
        attacked = attack_case(attack, replace(case, edit=Memory(), skipped={}), attack.Config())
        assert attacked.observations == ()
        assert list(attacked.skipped) == ["memory edit"]
        assert attacked.summary.metrics["forget_attacked_accuracy"].value is None
        assert all(
            metric.reason.startswith(f"{name} cannot treat memory edits: ")
            for metric in attacked.summary.metrics.values()
        )


def test_a_score_that_is_no_number_is_null_with_a_reason():
    from unlearn_eval.attacks.summary import summary

    scores = tuple(ItemScore(i.id, {"accuracy": 0.0, "probability": None}) for i in FORGET)
    found = summary(FORGET, [Observation("unlearned", None, scores), Observation("unlearned", 4, scores)],
                    quantize.ATTACK, False)  # fmt: skip
    assert found.metrics["forget_attacked_accuracy"].value == 0
    assert found.metrics["forget_attacked_probability"].value is None
    assert found.metrics["forget_accuracy_durability"].value is None
    assert "full model was not measured" in found.metrics["forget_accuracy_durability"].reason
    assert not any(metric.value is not None and math.isnan(metric.value) for metric in found.metrics.values())


def test_every_metric_has_a_meaning(case):
    from unlearn_eval.attacks.summary import summary
    from unlearn_eval.metrics.catalogue import UNKNOWN, meaning

    for attack in (get_attack(name) for name in attack_names()):
        summarize = attack.summary or summary
        for name, metric in summarize(FORGET, (), attack, True, "skipped").metrics.items():
            assert meaning(name) is not UNKNOWN, name
            assert metric.reason == "skipped"
    assert meaning("forget_unedited_attacked_accuracy").text.count(".") == 4
    assert meaning("forget_accuracy_recovery").bounds is None
    assert "true answer" in meaning("forget_accuracy_recovery").text


@pytest.fixture(scope="module")
def on_disk(models, tmp_path_factory):
    """The planted models and edit as folders, the sets as files."""
    root = tmp_path_factory.mktemp("attacked")
    for name, own in (("knows", models.knows), ("never", models.never_knew)):
        own.model.save_pretrained(root / name)
        own.tokenizer.save_pretrained(root / name)
    for items in (FORGET, OTHERS):
        lines = [{"id": i.id, "question": i.question, "answer": i.answer, "subject": i.subject} for i in items]
        (root / f"{items.name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    info = models.hides.info
    info = replace(info, requests=info.requests | {"forget_set": str(root / "forget.jsonl")})
    replace(models.hides, info=info).save(root / "edit", models.knows.tokenizer, models.knows.model.config)
    return root


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["unlearn-eval", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0


def test_the_command_writes_an_ordinary_result(on_disk, tmp_path, monkeypatch, capsys):
    output = tmp_path / "attack.json"
    code = run(
        monkeypatch, "attack", "merge_back", "--edit", on_disk / "edit", "--model", on_disk / "knows",
        "--retain", on_disk / "others.jsonl", "--reference", on_disk / "never", "--output", output,
        "--set", "shares=0.5,1", "--device", "cpu",
    )  # fmt: skip
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "forget_attacked_accuracy" in said.out
    result = read_result(output)
    assert result.kind == "attack"
    assert result.config["settings"] == {"shares": [0.5, 1.0]}
    assert result.edit["editor"] == "refusing"
    metrics = result.metrics["attack_merge_back"]
    assert metrics["forget_attacked_accuracy"].value >= 0.85
    assert metrics["forget_accuracy"].value == 0
    part = result.robustness["attack_merge_back"]
    assert part["axis"] == "share"
    assert [(one["model"], one["at"]) for one in part["levels"]] == [
        ("unlearned", None), ("full", None), ("unlearned", 0.5), ("unlearned", 1.0),
    ]  # fmt: skip
    assert part["level"] in (0.5, 1.0)
    (curve,) = [
        c for c in part["curves"] if (c["model"], c["condition"], c["value"]) == ("unlearned", "attack", "accuracy")
    ]
    assert curve["at"] == [None, 0.5, 1.0]
    assert curve["mean"][curve["at"].index(part["level"])] == pytest.approx(metrics["forget_attacked_accuracy"].value)
    assert curve["low"][0] == curve["mean"][0] == 0
    assert 0.2 < curve["high"][0] < 0.5, "none of eight is compatible with some"
    assert curve["n"] == [len(FORGET)] * 3
    samples = read_samples(output, "attack_merge_back")
    assert [record["id"] for record in samples] == [i.id for i in FORGET]
    assert sum(r["metrics"]["forget_attacked_accuracy"] for r in samples) / 8 == pytest.approx(
        metrics["forget_attacked_accuracy"].value
    )
    assert {"model", "at", "said", "accuracy", "probability"} <= set(samples[0]["observations"][0])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["relern"], "did you mean relearn"),
        (["relearn", "--set", "fold=3"], "did you mean folds"),
        (["relearn", "--limit", "1"], "too few for 2 folds"),
        (["relearn", "--set", "folds"], "NAME=VALUE"),
        (["quantize", "--output", "x.txt"], "is a .json file"),
        (["quantize", "--reference", "/no/such/model"], "/no/such/model"),
    ],
)
def test_mistakes_are_two_lines(arguments, says, on_disk, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name, *more = arguments
    common = ["--edit", on_disk / "edit", "--model", on_disk / "knows", "--device", "cpu"]
    assert run(monkeypatch, "attack", name, *common, *more) == 1
    said = capsys.readouterr().err
    assert says in said
    assert [line.partition(":")[0] for line in said.strip().splitlines()[-2:]] == ["error", "hint"]
    assert not list(tmp_path.iterdir())
