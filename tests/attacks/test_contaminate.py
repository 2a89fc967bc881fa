"""Contamination: which requests are near victims by keys and by gradients, and what is measured of the victims."""

import json
from dataclasses import replace

import pytest
import torch
from forgetful_models import FORGET, OTHERS, planted, without_gradients
from tiny_checkpoints import make_tiny
from tiny_models import (
    assert_untouched,
    one_thread,  # noqa: F401
    random_requests,
    tiny_model,
    tiny_tokenizer,
    weights_of,
)

from unlearn_eval.attacks.base import Case, ItemScore, Observation
from unlearn_eval.attacks.methods import contaminate
from unlearn_eval.attacks.run import attack, attack_case
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.editing.similarity import harms, key_similarities, nearest, places
from unlearn_eval.metrics import paired_comparison
from unlearn_eval.models.gradient_norms import answer_loss
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.scoring import Query
from unlearn_eval.results.files import read_samples
from unlearn_eval.runs.edit import make_edit
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import configure

FAST = {"layers": "1,2", "target.steps": "3", "keys_per_dimension": "1"}
FEW = {"n": "2", "n_victims": "3", "n_random": "2"}


# Similarity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_keys_are_what_the_maps_read_at_the_look_up_token(architecture):
    model = tiny_model(architecture)
    some, others = random_requests(2, seed=1), random_requests(4, seed=2)
    names = places(model, {name for name, _ in model.named_modules()})
    assert len(names) == 3
    seen = {}
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(lambda m, x, name=name: seen.__setitem__(name, x[0]))
    rows = []
    for own in (*some, *others):
        model(input_ids=torch.tensor([list(own.prompt_ids)]))
        rows.append([seen[name].reshape(-1, seen[name].shape[-1])[own.lookup] for name in names])
    for module in model.modules():
        module._forward_pre_hooks.clear()
    found = key_similarities(model, some, others, names)
    for i in range(2):
        for j in range(4):
            cosines = []
            for k in range(3):
                mean = torch.stack([row[k] for row in rows]).mean(0)
                a, b = rows[i][k] - mean, rows[2 + j][k] - mean
                cosines.append(float(a @ b / a.norm() / b.norm()))
            assert float(found[i, j]) == pytest.approx(sum(cosines) / 3, abs=1e-4)
    twin = replace(some[1], prompt_ids=(*some[1].prompt_ids, 7), contexts=())  # the same key, another prompt
    assert nearest(model, some, [*others, twin], 1, names) == [4]


def test_harm_is_what_a_small_step_does_to_the_victims():
    model = tiny_model("llama", torch.float64)
    victims = [replace(own, answer_ids=own.target_ids) for own in random_requests(2, seed=1)]
    others, names, before = random_requests(4, seed=2), places(model), weights_of(model)
    found = harms(model, victims, others, names)
    assert_untouched(model, before)
    assert not any(parameter.requires_grad for parameter in model.parameters())

    def loss():
        with torch.no_grad():
            return sum(answer_loss(model, Query(v.prompt_ids, v.answer_ids), len(v.answer_ids)) for v in victims)

    weights = [model.get_submodule(name).weight for name in names]
    grown = []
    for own in others:
        for weight in weights:
            weight.requires_grad_(True)
        gradients = torch.autograd.grad(
            answer_loss(model, Query(own.prompt_ids, own.target_ids), len(own.target_ids)), weights
        )
        size = torch.cat([g.flatten() for g in gradients]).norm()
        start = loss()
        with torch.no_grad():
            for weight, g in zip(weights, gradients, strict=True):
                weight.requires_grad_(False).sub_(1e-4 * g / size)
            grown.append(float(loss() - start))
            model.load_state_dict(before)
    order = [int(i) for i in found.argsort()]
    assert order == sorted(range(4), key=grown.__getitem__)
    assert [value > 0 for value in grown] == [bool(value > 0) for value in found]


# The attack ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models():
    tokenizer = tiny_tokenizer()
    return planted(lambda: without_gradients(make_tiny("llama", len(tokenizer))), tokenizer)


@pytest.fixture(scope="module")
def edit(models, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARN_EVAL_CACHE", str(tmp_path_factory.mktemp("cache")))
        return make_edit(models.knows, FORGET, "memit", FAST, Recipe(n_contexts=1, chat=False), unrelated=False)


@pytest.fixture
def case(models, edit, tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_EVAL_CACHE", str(tmp_path / "cache"))
    return Case(models.knows, edit, FORGET, PromptFormat(None, False), OTHERS, max_new_tokens=8)


def test_victims_are_measured_and_never_requested(case):
    before = weights_of(case.loaded.model)
    made = attack_case(contaminate.ATTACK, case, configure(contaminate.Config, FEW))
    assert_untouched(case.loaded.model, before)
    victims = {item.id for item in made.items}
    assert len(victims) == 3
    assert victims < {item.id for item in OTHERS}
    assert all({score.id for score in own.scores} == victims for own in made.observations)
    assert [(own.model, own.at, own.condition, own.seed) for own in made.observations] == [
        ("full", None, "attack", 0),
        ("unlearned", None, "attack", 0),
        ("unlearned", "keys", "attack", 0),
        ("unlearned", "gradients", "attack", 0),
        ("unlearned", "drawn", "random_requests", 0),
        ("unlearned", "drawn", "random_requests", 1),
    ]
    for note in made.notes:
        requested = set(note.partition(": ")[2].split(", "))
        assert len(requested) == 2
        assert requested < {item.id for item in OTHERS} - victims
    metrics = made.summary.metrics
    assert metrics["victims_unedited_accuracy"].value == 1
    assert metrics["victims_attacked_probability"].value < metrics["victims_unedited_probability"].value
    again = attack_case(contaminate.ATTACK, replace(case, notes=[]), configure(contaminate.Config, FEW))
    assert again.summary == made.summary


def test_the_worst_is_paired_with_the_mean_of_random_requests():
    items, scores = OTHERS.items, {"keys": [0, 0, 0, 1], "gradients": [0, 1, 1, 1], 0: [1, 1, 1, 1], 1: [0, 1, 1, 1]}
    victims = type(OTHERS)("victims", items[:4])

    def seen(values, at, condition="attack", seed=0):
        own = [ItemScore(i.id, {"accuracy": v, "probability": v / 2}) for i, v in zip(victims, values, strict=True)]
        return Observation("unlearned", at, tuple(own), seed=seed, condition=condition)

    tried = [seen(scores["keys"], "keys"), seen(scores["gradients"], "gradients")]
    tried += [seen(scores[i], "drawn", "random_requests", i) for i in (0, 1)]
    metrics = contaminate.summary(victims, tried, contaminate.ATTACK, False).metrics
    assert metrics["victims_attacked_accuracy"].value == 0.25
    assert metrics["victims_random_requests_accuracy"].value == 0.875
    assert metrics["victims_accuracy_excess_drop"].value == pytest.approx(0.625)
    expected = paired_comparison([0.5, 1, 1, 1], scores["keys"]).p_value
    assert metrics["victims_accuracy_excess_drop_p_value"].value == expected
    assert metrics["victims_unedited_accuracy"].value is None


def test_a_trained_method_retains_what_is_nearest(models, case, monkeypatch):
    trained = {"steps": 1, "components": "layers.1.mlp.down_proj"}
    made = make_edit(models.knows, FORGET, "npo", trained, Recipe(chat=False), retain=OTHERS, unrelated=False)
    asked = []
    monkeypatch.setattr(contaminate, "nearest", lambda *a: asked.append(a[3]) or nearest(*a))
    for retain in ("drawn", "nearest"):
        settings = configure(contaminate.Config, {**FEW, "n_random": "1", "retain": retain, "n_retain": "2"})
        found = attack_case(contaminate.ATTACK, replace(case, edit=made, notes=[]), settings)
        assert found.summary.metrics["victims_attacked_probability"].value is not None
    assert asked == [2, 2, 2], "for each of the three edits, and only where it is asked for"


def test_the_result_is_of_the_victims(case, tmp_path):
    lines = [json.dumps({"id": i.id, "question": i.question, "answer": i.answer, "subject": i.subject}) for i in OTHERS]
    (tmp_path / "others.jsonl").write_text("\n".join(lines))
    result = attack(
        case.edit, "contaminate", case.loaded, settings=FEW, forget=FORGET, retain=str(tmp_path / "others.jsonl"),
        output=str(tmp_path / "result.json"), max_new_tokens=4,
    )  # fmt: skip
    samples = read_samples(tmp_path / "result.json", "attack_contaminate")
    (data,) = result.data.values()
    assert [own["id"] for own in samples] == data["ids"]
    assert len(data["ids"]) == 3
    assert result.metrics["attack_contaminate"]["victims_accuracy_excess_drop"].n == 3


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n_victims": "8"}, "needs 16 other facts, and there are 8"),
        ({"n": "7"}, "needs 19"),
        ({"retain": "near"}, "did you mean nearest"),
    ],
)
def test_what_cannot_be_is_refused(case, settings, says):
    with pytest.raises(UserError, match=says):
        attack_case(contaminate.ATTACK, case, configure(contaminate.Config, settings))
