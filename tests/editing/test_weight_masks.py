"""Masks of single weights: packed and read back, chosen by what matters, and nothing else is trained."""

import json

import pytest
import torch
from tiny_models import (
    ARCHITECTURES,
    assert_untouched,
    certain_model,
    one_thread,  # noqa: F401
    tiny_model,
    tiny_tokenizer,
    weights_of,
)
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.data.forget_sets import facts
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.editing.training.data import Row
from unlearn_eval.editing.training.masks import WeightMasks, largest, read_masks
from unlearn_eval.edits.base import applied
from unlearn_eval.edits.dense import DenseEdit
from unlearn_eval.localization.activations import answer_metric
from unlearn_eval.localization.base import Fact, Run
from unlearn_eval.localization.components import load_components
from unlearn_eval.localization.locate import LocalizationSpec, localization_spec, localize
from unlearn_eval.localization.mask_scores import MaskConfig, attributed, learned, n_of, weight_masks
from unlearn_eval.localization.sites import MLP, Unit, sites
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.runs.edit import make_edit
from unlearn_eval.utils.errors import UserError

TOKENIZER = tiny_tokenizer()
SET = facts().sample(6, seed=0)
KEPT = facts().sample(12, seed=1)
TRAINING = {"steps": "3", "micro_batch_size": "4", "learning_rate": "1e-2", "weight_decay": "0.5", "floor": "-50"}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("UNLEARN_EVAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "localization"


def tiny(architecture="llama", dtype=torch.float32, seed=0):
    model = tiny_model(architecture, dtype, seed)
    return LoadedModel(model, TOKENIZER, f"tiny-{architecture}-{seed}", None, "tiny")


def some_facts(n=4):
    generator = torch.Generator().manual_seed(1)
    rows = [(0, *torch.randint(5, 400, (7 + i,), generator=generator).tolist()) for i in range(n)]
    return [Fact(f"f{i}", row, (2, 4), 10 + i, 20 + i) for i, row in enumerate(rows)]


def run_of(model, **options):
    return Run(model, sites(model), some_facts(), **options)


def modules_of(model, *layers):
    found = sites(model)
    return [name for layer in layers for name in found.maps[Unit(MLP, layer)]]


# Bits ------------------------------------------------------------------------------------------------------


def random_masks(model, names, share=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    return {name: torch.rand(parameters[name].shape, generator=generator) < share for name in names}


def test_masks_are_packed_and_read_back_as_they_were(tmp_path):
    generator = torch.Generator().manual_seed(0)
    plain = {f"w{n}": torch.rand(3, n, generator=generator) < 0.4 for n in (1, 7, 8, 9, 40)}
    made = WeightMasks.of({**plain, "nothing": torch.zeros(5, 5, dtype=torch.bool)})
    made.save(tmp_path / "a.masks")
    found = read_masks(tmp_path / "a.masks")
    assert set(found.bits) == set(plain), "what may not change at all needs no mask"
    for name, mask in plain.items():
        assert torch.equal(found.mask(name), mask)
        assert found.counts[name] == int(mask.sum())
        assert len(found.bits[name]) == -(-mask.numel() // 8)
    assert found.n_weights == sum(int(mask.sum()) for mask in plain.values())
    assert found.bits["w8"].tolist() == [
        sum(2 ** (7 - i) for i, own in enumerate(row) if own) for row in plain["w8"].tolist()
    ]


def test_files_that_hold_no_masks_are_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "a.masks"
    WeightMasks.of({"w": torch.ones(3, 3, dtype=torch.bool)}).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_masks(path)
    save_file({"w": torch.ones(3)}, str(path))
    with pytest.raises(UserError, match="holds no masks of version 1"):
        read_masks(path)
    with pytest.raises(UserError, match="no masks at"):
        read_masks(tmp_path / "none")


@pytest.mark.parametrize("n", [1, 5, 17, 59, 60])
def test_the_largest_are_those_that_sorting_gives(n):
    generator = torch.Generator().manual_seed(n)
    scores = {"a": torch.rand(4, 5, generator=generator), "b": torch.rand(40, generator=generator)}
    scores["a"][1] = scores["b"][7]  # five ties, and one more
    found = largest(scores, n)
    flat = torch.cat([scores["a"].flatten(), scores["b"]])
    expected = torch.zeros(60, dtype=torch.bool)
    expected[flat.argsort(descending=True, stable=True)[:n]] = True
    assert torch.equal(torch.cat([found["a"].flatten(), found["b"]]), expected)
    assert found["a"].shape == (4, 5)


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(UserError, match="not finite"):
        largest({"a": torch.tensor([1.0, float("nan")])}, 1)


@pytest.mark.parametrize(("text", "n"), [("10%", 100), ("0.5", 500), ("7", 7), ("1k", 1000), ("0.02k", 20)])
def test_numbers_of_weights(text, n):
    assert n_of(text, 1000) == n


@pytest.mark.parametrize("text", ["0", "2k", "many", "101%", "-1"])
def test_numbers_that_cannot_be(text):
    with pytest.raises(UserError, match=r"masks\.weights"):
        n_of(text, 1000)


# Training --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw_torch", "sgd"])
@pytest.mark.parametrize(
    ("architecture", "dtype"), [*((own, torch.float32) for own in ARCHITECTURES), ("llama", torch.bfloat16)]
)
def test_only_masked_weights_change_bit_for_bit(architecture, dtype, optimizer, tmp_path):
    """With a weight decay that would move every weight of the trained matrices."""
    loaded = tiny(architecture, dtype)
    model, before = loaded.model, weights_of(loaded.model)
    names = [f"{name}.weight" for name in modules_of(model, 1, 2)]
    masks = random_masks(model, names)
    WeightMasks.of(masks).save(tmp_path / "a.masks")
    options = {**TRAINING, "optimizer": optimizer, "masks": str(tmp_path / "a.masks")}
    edit = make_edit(loaded, SET, "unlikelihood", options, Recipe(preset=False, chat=False), retain=KEPT)
    assert_untouched(model, before)
    assert isinstance(edit, DenseEdit)
    assert set(edit.tensors) == set(names)
    n_changed = 0
    for name, tensor in edit.tensors.items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor[~masks[name]], before[name][~masks[name]]), name
        n_changed += int((tensor != before[name]).sum())
    n = sum(int(mask.sum()) for mask in masks.values())
    assert 0.8 * n < n_changed <= n
    assert edit.info.notes["training"]["trained_parameters"] == n
    assert "masks" not in edit.info.config, "a path of this machine"
    edit.save(tmp_path / "edit", TOKENIZER, model.config)
    with applied(edit, model):
        assert not torch.equal(model.state_dict()[names[0]], before[names[0]])
    assert_untouched(model, before)


def test_masks_narrow_the_components_and_foreign_ones_are_refused(tmp_path):
    loaded = tiny()
    first, second = (f"{name}.weight" for name in modules_of(loaded.model, 1)[:2])
    masks = random_masks(loaded.model, [first, second])

    def train(masks, **more):
        WeightMasks.of(masks).save(tmp_path / "a.masks")
        options = {**TRAINING, "masks": str(tmp_path / "a.masks"), **more}
        return make_edit(loaded, SET, "unlikelihood", options, Recipe(preset=False, chat=False), retain=KEPT)

    assert set(train(masks, components=first.removesuffix(".weight")).tensors) == {first}
    before = weights_of(loaded.model)
    for wrong, says in (
        ({first: torch.ones(3, 4, dtype=torch.bool)}, f"the mask of {first} is 3×4, the model's 24×16"),
        ({"model.nothing": torch.ones(3, dtype=torch.bool)}, "model.nothing, which this model does not have"),
    ):
        with pytest.raises(UserError, match=says):
            train(wrong)
    with pytest.raises(UserError, match="no masked weight is in the components"):
        train(masks, components="lm_head")
    with pytest.raises(UserError, match="LoRA factors change whole matrices"):
        train(masks, lora_rank="2")
    assert_untouched(loaded.model, before)


# What matters ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attribution_is_what_the_metric_loses_to_first_order(architecture):
    model = tiny_model(architecture, torch.float64)
    before, run = weights_of(model), run_of(model)
    names = [f"{name}.weight" for name in modules_of(model, 1)]
    parameters = {name: dict(model.named_parameters())[name] for name in names}
    for own in parameters.values():
        own.requires_grad_(True)
    scores = attributed(run, parameters)
    model.requires_grad_(False)

    def metric():
        rows = [torch.tensor([fact.prompt_ids]) for fact in run.facts]
        with torch.no_grad():
            logits = torch.stack([model(input_ids=row).logits[0, -1] for row in rows])
        return float(answer_metric(logits, run.facts, "logit_difference").sum())

    step, whole = 1e-5, metric()
    for name, place in zip(names, ((0, 0), (3, 2), (5, 7)), strict=False):
        weight = parameters[name].data
        kept = weight[place].clone()
        weight[place] = kept * (1 - step)
        change = abs(metric() - whole) / step
        weight[place] = kept
        assert float(scores[name][place]) == pytest.approx(change, rel=1e-3, abs=1e-6)
    small, large = (attributed_with(model, run, names, rows) for rows in (1, 64))
    for name in names:
        assert torch.allclose(small[name], large[name], rtol=1e-4, atol=1e-6)
    assert_untouched(model, before)


def attributed_with(model, run, names, rows):
    from dataclasses import replace

    masks = weight_masks(replace(run, rows=rows), [name.removesuffix(".weight") for name in names], MaskConfig())
    return {name: masks.mask(name).float() for name in names if name in masks.bits} | {
        name: torch.zeros(1) for name in names if name not in masks.bits
    }


def rows_of(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        Row((0, *torch.randint(5, 400, (6 + i,), generator=generator).tolist()), (30 + i, 40 + i, 1)) for i in range(n)
    ]


def loss(model, rows):
    """What is forgotten, as probability of the labels."""
    found = []
    for row in rows:
        ids = torch.tensor([[*row.prompt_ids, *row.label_ids[:-1]]])
        logits = model(input_ids=ids).logits[0, -len(row.label_ids) :].log_softmax(-1)
        found.append(float(logits.gather(-1, torch.tensor(row.label_ids)[:, None]).exp().mean()))
    return sum(found) / len(found)


def known_row(model, row):
    """The prompt with what the model says to it."""
    said = model.generate(torch.tensor([row.prompt_ids]), max_new_tokens=3, do_sample=False, eos_token_id=None)
    return Row(row.prompt_ids, tuple(said[0, len(row.prompt_ids) :].tolist()))


def test_learned_masks_take_away_what_is_to_be_forgotten():
    """Without these weights less is left of what is forgotten, and more of the rest, than without random ones."""
    model = certain_model("llama")
    forget, retain = ([known_row(model, row) for row in rows_of(4, seed)] for seed in (3, 4))
    before, modules = weights_of(model), modules_of(model, 1, 2, 3)
    config = MaskConfig("learned", "5%", steps=40, learning_rate=0.02, floor=-100.0, penalty=0.0)
    masks = weight_masks(run_of(model), modules, config, forget, retain)
    assert_untouched(model, before)
    assert all(not own.requires_grad for own in model.parameters())
    n = sum(model.get_submodule(name).weight.numel() for name in modules)
    assert masks.n_weights == round(0.05 * n)
    again = weight_masks(run_of(model), modules, config, forget, retain)
    assert all(torch.equal(masks.bits[name], again.bits[name]) for name in masks.bits)

    def without(chosen):
        """How probable both kinds of answers are when these weights are zero."""
        parameters = dict(model.named_parameters())
        kept = {name: parameters[name].data.clone() for name in chosen}
        for name, mask in chosen.items():
            parameters[name].data[mask] = 0
        values = loss(model, forget), loss(model, retain)
        for name, own in kept.items():
            parameters[name].data.copy_(own)
        return torch.tensor(values)

    named = without({name: masks.mask(name) for name in masks.bits})
    generator = torch.Generator().manual_seed(0)
    others = []
    for _ in range(5):
        scores = {
            f"{own}.weight": torch.rand(model.get_submodule(own).weight.shape, generator=generator) for own in modules
        }
        others.append(without(largest(scores, masks.n_weights)))
    forgotten, kept = (named - torch.stack(others).mean(0)).tolist()
    assert forgotten < -0.1, "less of what is forgotten is left than with random weights"
    assert kept > 0.1, "and more of what is kept"


def test_a_penalty_keeps_masks_open_and_nothing_to_learn_from_is_refused():
    model = tiny_model("gpt2")
    forget, retain, modules = rows_of(3, 3), rows_of(3, 4), modules_of(model, 1)
    parameters = {f"{name}.weight": model.get_submodule(name).weight for name in modules}

    def closed(penalty):
        config = MaskConfig("learned", steps=4, penalty=penalty, floor=-100.0)
        found = learned(model, parameters, config, forget, retain, 0, lambda *_: None)
        return float(sum(own.sum() for own in found.values()))

    assert closed(0.0) > closed(1e3) > -1e-9
    with pytest.raises(UserError, match="learned from what is forgotten and what is kept"):
        weight_masks(run_of(model), modules, MaskConfig("learned"), forget, [])
    with pytest.raises(UserError, match="0 weights have a score"):
        weight_masks(run_of(model), modules, MaskConfig("learned", steps=1, penalty=1e9), forget, retain)


# From localization to edit ---------------------------------------------------------------------------------


def test_masks_are_written_as_settings():
    assert localization_spec("random_mlps(budget=2,masks=attribution)") == LocalizationSpec(
        "random_mlps", "2", {}, {"way": "attribution"}
    )
    text = "causal_tracing(samples=1,masks=learned,masks.weights=5%)"
    assert localization_spec(text) == LocalizationSpec(
        "causal_tracing", None, {"samples": "1"}, {"way": "learned", "weights": "5%"}
    )
    for text, says in (
        ("random_mlps(masks=atribution)", "did you mean attribution"),
        ("random_mlps(masks.weigths=5%)", "did you mean weights"),
        ("random_mlps(masks.weights=5x)", "masks.weights"),
    ):
        with pytest.raises(UserError, match=says):
            localization_spec(text).check()


@pytest.mark.parametrize("way", ["attribution", "learned"])
def test_a_localization_with_masks_is_kept_and_trained(way, tmp_path, cache, monkeypatch):
    loaded = tiny()
    text = f"random_mlps(budget=2,masks={way},masks.weights=25%,masks.steps=3,masks.floor=-100)"
    found = localize(loaded, SET, localization_spec(text), retain=KEPT)
    whole = localize(loaded, SET, localization_spec("random_mlps(budget=2)"))
    assert found.modules == whole.modules
    n_maps = sum(loaded.model.get_submodule(name).weight.numel() for name in whole.modules)
    assert found.n_weights == found.mask["n_weights"] == round(0.25 * n_maps)
    assert whole.mask == {}
    path = found.save(tmp_path / "where.json")
    read = load_components(path)
    masks = read_masks(read.mask_file)
    assert read.mask_file == str(tmp_path / "where.masks")
    assert masks.n_weights == found.n_weights
    assert "folder" not in json.loads(path.read_text())
    monkeypatch.setattr("unlearn_eval.localization.locate.weight_masks", lambda *a: pytest.fail("computed again"))
    kept = localize(loaded, SET, localization_spec(text), retain=KEPT)
    assert kept.mask["sha256"] == found.mask["sha256"]
    before = weights_of(loaded.model)
    for components in (str(path), text):
        recipe = Recipe(preset=False, chat=False)
        edit = make_edit(loaded, SET, "unlikelihood", {**TRAINING, "components": components}, recipe, retain=KEPT)
        assert edit.info.notes["components"]["mask"]["n_weights"] == found.n_weights
        for name, tensor in edit.tensors.items():
            mask = masks.mask(name)
            assert torch.equal(tensor[~mask], before[name][~mask])
    assert_untouched(loaded.model, before)
    for editor, components in (("memit", str(path)), ("memit", text)):
        with pytest.raises(UserError, match="masks of single weights, and this editor changes whole matrices"):
            make_edit(loaded, SET, editor, {"components": components})
    (tmp_path / "where.masks").write_bytes((tmp_path / "where.masks").read_bytes() + b" ")
    with pytest.raises(UserError, match="have been changed"):
        load_components(path)


def test_the_command_writes_masks_beside_its_file(tmp_path):
    from study_files import write_model

    model = write_model(tmp_path / "model")
    arguments = (
        f"localize all_mlps --model {model} --forget facts --limit 4 --device cpu --output {tmp_path / 'c.json'}"
    )
    done = CliRunner().invoke(cli.app, [*arguments.split(), "--set", "masks=attribution", "--set", "masks.weights=200"])
    assert done.exit_code == 0, done.output
    assert "single weights by attribution, 200 of those in the maps" in done.stdout
    assert load_components(tmp_path / "c.json").n_weights == 200
    assert read_masks(tmp_path / "c.masks").n_weights == 200
