"""Plans of memory: from a configuration alone, by what editors declare."""

import json
from types import SimpleNamespace

import pytest
from tiny_models import tiny_model
from transformers import AutoConfig

from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.editing.editor import EditJob, editor_names, get_editor
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.editing.training.run import Unlearner
from unlearn_eval.models.memory import ACTIVATIONS, GRADIENTS, LOGITS, Counted
from unlearn_eval.runs.memory import (
    Choice,
    choices,
    plan_attack,
    plan_edit,
    plan_eval,
    plan_finetune,
    requests_of,
    sized,
    smaller,
)
from unlearn_eval.runs.study import costs
from unlearn_eval.runs.study.spec import ModelSpec, RecipeSpec
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import configure

FORGET = load_forget_set("facts").sample(4, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that holds a configuration, and nothing else."""
    place = tmp_path_factory.mktemp("config")
    tiny_model("llama").config.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def model(folder):
    return sized(str(folder), "float32")


def kind_bytes(plan, kind):
    return max(phase.held.get(kind, 0) for phase in plan.phases)


def test_a_configuration_is_enough(folder, model):
    weights = sum(own.numel() for own in tiny_model("llama").parameters())
    assert (model.n_parameters, model.tokenizer) == (weights, None)
    assert sized(str(folder / "config.json"), "bfloat16").weights_bytes < model.weights_bytes
    assert sized(str(folder), "auto").dtype == str(AutoConfig.from_pretrained(folder).dtype or "float32")[-7:]
    (folder / "model.safetensors.index.json").write_text('{"metadata": {"total_size": 77}}')
    assert model.download_bytes == 77
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match="no model"):
        sized("nothing-here")


@pytest.mark.parametrize("name", ["memit", "grace", "npo"])
def test_editors_say_what_they_take(name, model):
    method = get_editor(name)
    settings = {"steps": "2", "micro_batch_size": "2"} if method.trained else {}
    retain = FORGET if method.trained else None
    plan = plan_edit(model, method, FORGET, settings, retain=retain, device="cpu")
    assert len(plan.phases) >= 3, "its own, and the self-check's two"
    assert plan.peak_bytes == model.weights_bytes + max(phase.n_bytes for phase in plan.phases)
    assert plan.record["phases"][0]["bytes"] > 0
    json.dumps(plan.record)
    assert not model.model.training, "as it was"
    assert not any(own.requires_grad for own in model.model.parameters())


def test_editors_that_change_or_read_layers_declare_their_memory():
    silent = [method for name in editor_names() if (method := get_editor(name)).memory is None]
    assert [method.name for method in silent if {"layers", "components"} & method.settings] == []


def test_training_takes_gradients_and_moments_of_what_is_trained(model):
    full = plan_finetune(model, FORGET, {"micro_batch_size": "2"})
    lora = plan_finetune(model, FORGET, {"lora_rank": "1", "micro_batch_size": "2"})
    assert kind_bytes(full, "optimizer") >= 2 * model.weights_bytes - 10_000
    assert kind_bytes(lora, "optimizer") < kind_bytes(full, "optimizer") / 4
    assert full.disk["edit"] == sum(own.nbytes for own in model.model.parameters())
    half = plan_finetune(model.in_type("bfloat16"), FORGET, {"micro_batch_size": "2"})
    assert kind_bytes(half, "trained weights in float32") == model.in_type("bfloat16").n_parameters * 2
    assert half.disk["edit"] == full.disk["edit"] // 2


def test_more_rows_take_more_and_a_reference_model_counts(model):
    one, many = plan_eval(model, FORGET, 1, 8), plan_eval(model, FORGET, 8, 8, length=40)
    assert many.peak_bytes > one.peak_bytes
    assert many.phases[-1].held["logits"] >= 2 * 8 * 40 * model.config.vocab_size * 4
    alone, two = (plan_attack(model, "prefix", FORGET, batch_size=2, reference=own) for own in (False, True))
    assert two.peak_bytes - alone.peak_bytes == model.weights_bytes


def test_what_helps_is_planned_and_kept(model):
    tried = choices("float32", None, 8)
    assert [own.text for own in tried] == ["--batch_size 1", "--dtype bfloat16"]

    def plan(choice):
        base = model.in_type(choice.dtype) if choice.dtype else model
        return plan_eval(base, FORGET, choice.batch_size or 8, 8)

    found = list(smaller(plan, [Choice("--nothing"), *tried]))
    assert [own.what for own in found] == ["--batch_size 1", "--batch_size 1 --dtype bfloat16"]
    assert found[0].peak_bytes > found[1].peak_bytes
    names = {own.text for own in choices("bfloat16", get_editor("npo").Config())}
    assert {"--set lora_rank=8", "--set gradient_checkpointing=true", "--set micro_batch_size=1"} == names


def test_a_localization_needs_the_weights(model):
    with pytest.raises(UserError, match="without the weights"):
        plan_edit(model, get_editor("npo"), FORGET, {"components": "random(budget=1)"}, retain=FORGET)


@pytest.mark.parametrize("settings", [{"lora_rank": "2"}, {}])
def test_training_has_in_memory_what_is_planned(settings, model, monkeypatch):
    """The same count of the real trainer's pass, with weights."""
    real, method = tiny_model("llama"), get_editor("npo")
    config = configure(method.Config, {"steps": "1", "batch_size": "4", "micro_batch_size": "4", **settings})
    peaks, step = [], Unlearner.training_step

    def counted_step(self, *args, **kwargs):
        held = [*self.model.parameters(), *self.model.buffers()]
        counted = Counted(real.config.vocab_size, held, ())
        with counted:
            loss = step(self, *args, **kwargs)
        peaks.append(sum(counted.peak.values()))
        return loss

    monkeypatch.setattr(Unlearner, "training_step", counted_step)
    requests = requests_of(model, FORGET.items, Recipe(n_contexts=0))
    method.run(EditJob(real, None, requests, config, retain=requests))
    (phase,) = method.memory(EditJob(model.model, None, requests, config, retain=requests), "cpu")
    planned = sum(phase.held[kind] for kind in (ACTIVATIONS, LOGITS, GRADIENTS))
    assert planned == pytest.approx(max(peaks), rel=0.05)


def cells_of(*recipes, **changes):
    """Cells of MEMIT that differ in their recipe."""
    own = {
        "model_key": "m",
        "editor": SimpleNamespace(name="memit", editor="memit", settings={"layers": "1"}),
        "forget": "facts",
        "retain": None,
        "tries": (),
    }
    return [SimpleNamespace(**(own | changes | {"recipe": RecipeSpec(name, recipe)})) for name, recipe in recipes]


@pytest.fixture
def planned(monkeypatch, tmp_path):
    """The sizes of what was planned; nothing is known from before."""
    found = []
    monkeypatch.setenv("UNLEARN_EVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(costs, "_peak_bytes", lambda cell, n, device: found.append(n) or n)
    return found


def test_cells_that_differ_in_size_have_one_plan(planned):
    """The largest one's, if that is asked for first."""
    cells = cells_of(("plain", Recipe()), ("self", Recipe(target="self")), model=ModelSpec("m", "m"))
    of = costs.Costs([], on_gpu=False)._memory
    assert len({of(cell, n) for n in (20, 5) for cell in cells}) == 1
    assert planned == [20]


def test_a_plan_is_made_once_for_all_runs(planned, monkeypatch, tmp_path):
    (cell,) = cells_of(("plain", Recipe()), model=ModelSpec("m", "m"))
    first = costs.Costs([], on_gpu=False)._memory(cell, 20)
    assert costs.Costs([], on_gpu=False)._memory(cell, 20) == first
    assert planned == [20]
    others = [
        cells_of(("plain", Recipe()), model=ModelSpec("m", "m"), model_key="other weights"),
        cells_of(("plain", Recipe()), model=ModelSpec("m", "m", dtype="bfloat16")),
        cells_of(("plain", Recipe(n_contexts=0)), model=ModelSpec("m", "m")),
        cells_of(("plain", Recipe()), model=ModelSpec("m", "m"), retain="facts"),
    ]
    for n, (other,) in enumerate(others, 2):
        costs.Costs([], on_gpu=False)._memory(other, 20)
        assert len(planned) == n
    costs.Costs([], on_gpu=True)._memory(cell, 20)
    monkeypatch.setattr(costs, "code_of_cell", lambda rooms: "other code")
    costs.Costs([], on_gpu=False)._memory(cell, 20)
    assert len(planned) == 7


def test_a_plan_that_cannot_be_kept_is_made_again(planned, tmp_path):
    (cell,) = cells_of(("plain", Recipe()), model=ModelSpec("m", "m"))
    (tmp_path / "cache").write_text("a file where the folder should be")
    for _ in range(2):
        assert costs.Costs([], on_gpu=False)._memory(cell, 20) == costs.Costs([], on_gpu=False)._memory(cell, 20)
    assert len(planned) == 4


def test_a_plan_of_a_users_method_goes_by_its_file(planned, tmp_path):
    own = tmp_path / "mine.py"
    editor = SimpleNamespace(name="mine", editor=str(own), settings={})
    for n, text in enumerate(("first", "second"), 1):
        own.write_text(text)
        (cell,) = cells_of(("plain", Recipe()), model=ModelSpec("m", "m"), editor=editor)
        costs.Costs([], on_gpu=False)._memory(cell, 20)
        assert len(planned) == n


def test_a_plan_goes_by_what_is_in_the_files_of_its_settings(planned, tmp_path):
    graph = tmp_path / "graph.csv"
    editor = SimpleNamespace(name="glame", editor="glame", settings={"graph": str(graph)})
    for n, text in enumerate(("head,relation,tail\na,b,c\n", "head,relation,tail\na,b,d\n"), 1):
        graph.write_text(text)
        (cell,) = cells_of(("plain", Recipe()), model=ModelSpec("m", "m"), editor=editor)
        costs.Costs([], on_gpu=False)._memory(cell, 20)
        assert len(planned) == n
