"""The fine-tuned model and the retain-only reference: what they know, what is written, and where the tasks find it."""

import json

import pytest
import torch
from lm_eval_runs import evaluate, hf, values
from scipy.stats import ks_2samp
from tiny_models import one_thread  # noqa: F401
from tofu_files import tofu_data

from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.data.registry import finetune_presets
from unlearn_eval.edits.base import applied
from unlearn_eval.edits.load import load_edit
from unlearn_eval.harness.reference import STORED, read_reference
from unlearn_eval.harness.tofu_reference import measure
from unlearn_eval.models.load import LoadedModel, load_model
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.scoring import Query, score_answers
from unlearn_eval.models.weights import hash_weights
from unlearn_eval.runs import finetune as finetuning
from unlearn_eval.runs.finetune import ABOUT, preset_of, without, write_checkpoint
from unlearn_eval.utils.errors import UserError

FAST = {"epochs": "30", "learning_rate": "1e-2", "batch_size": "8", "warmup_epochs": "0", "logging_steps": "10"}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """TOFU's layout: the whole is retain and forget, in this order."""
    files = tofu_data()
    whole = [*files["retain_perturbed"], *files["forget10_perturbed"]]
    assert len({r["question"] for r in whole}) == len(whole)
    for name, records in {**files, "full": whole}.items():
        path = tmp_path / "data" / "tofu" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("UNLEARN_EVAL_RETAIN_REFERENCE", raising=False)
    return load_forget_set("tofu:full")


@pytest.fixture
def loaded(tiny_folder):
    return load_model(str(tiny_folder("llama")), dtype="float32")


def known(model, tokenizer, items, chat=True):
    from unlearn_eval.editing.requests.build import build_requests

    requests = build_requests(items, [item.answer for item in items], PromptFormat(tokenizer, chat))
    scores = score_answers(model, [Query(r.prompt_ids, r.answer_ids) for r in requests])
    return sum(sum(score.token_nll) / len(score.token_nll) for score in scores) / len(scores)


def test_target_and_reference(data, loaded, tmp_path, tokenizer):
    """Both know what they were trained on; the reference does not know the rest; forget quality finds its scores."""
    exact = hash_weights(loaded.model).exact
    kept = without(data, load_forget_set("tofu:forget10"))
    assert [item.id for item in kept] == [f"full/{i}" for i in range(len(data) - 4)]
    forget = [item for item in data if item not in kept.items]
    models = {}
    for name, own, split in (("target", data, None), ("reference", kept, "forget10")):
        edit = finetuning.finetune(loaded, own, FAST, seed=1)
        folder = write_checkpoint(loaded, edit, tmp_path / name, split)
        models[name] = load_model(str(folder)).model
        about = json.loads((folder / ABOUT).read_text())
        assert about["requests"]["ids"] == [item.id for item in own]
        assert about["weights"]["exact"] == hash_weights(models[name]).exact
        assert about["base"]["canonical_hash"]
        assert (folder / "training.jsonl").is_file()
        assert (folder / STORED).is_file() == (name == "reference")
    assert hash_weights(loaded.model).exact == exact
    assert known(models["target"], tokenizer, forget) < 0.1
    assert known(models["target"], tokenizer, kept.items) < 0.1
    assert known(models["reference"], tokenizer, kept.items) < 0.1
    assert known(models["reference"], tokenizer, forget) > 1
    options = {"gen_kwargs": {"max_gen_toks": 2}, "apply_chat_template": True}
    metadata = {"retain_reference": str(tmp_path / "reference")}
    quality = {}
    for name in ("reference", "target"):
        result = evaluate(hf(models[name], tokenizer), metadata=metadata, **options)
        samples = [s["forget_quality"] for s in result["samples"]["unlearn_tofu"] if s["doc"]["split"] == "forget"]
        own = [s["log_truth_ratio"] for s in samples]
        stored_ratios = list(read_reference(tmp_path / "reference").log_truth_ratios.values())
        quality[name] = values(result)["forget_quality"]
        assert quality[name] == pytest.approx(ks_2samp(own, stored_ratios).pvalue)
    assert quality["target"] < 0.5 < quality["reference"] == pytest.approx(1.0)
    privacy = evaluate(hf(models["reference"], tokenizer), "unlearn_tofu_privacy", metadata, apply_chat_template=True)
    own, stored = values(privacy, "unlearn_tofu_privacy"), read_reference(tmp_path / "reference")
    assert own["mia_min_k_auc"] == pytest.approx(stored.aucs["mia_min_k_auc"])
    # Relative to 1 - AUC, so undefined where the reference tells the two apart without a mistake.
    assert own["privleak"] == (None if stored.aucs["mia_min_k_auc"] == 1 else pytest.approx(0))


@pytest.mark.parametrize("chat", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_reference_has_the_tasks_own_numbers(chat, data, tiny, tokenizer):
    model = tiny("llama")
    found = measure(model, PromptFormat(tokenizer, chat), "forget10")
    options = {"gen_kwargs": {"max_gen_toks": 2}, "apply_chat_template": chat}
    samples = evaluate(hf(model, tokenizer), **options)["samples"]["unlearn_tofu"]
    forget = [s["forget_quality"] for s in samples if s["doc"]["split"] == "forget"]
    own = {one["id"]: one["log_truth_ratio"] for one in forget}
    losses = {one["id"]: one["correct_nll"] for one in forget}
    assert found["correct_nlls"] == pytest.approx(losses, rel=1e-5)
    assert found["log_truth_ratios"] == pytest.approx(own, rel=1e-5)  # float32, in other batches
    assert len(own) == 4
    privacy = values(
        evaluate(hf(model, tokenizer), "unlearn_tofu_privacy", apply_chat_template=chat), "unlearn_tofu_privacy"
    )
    assert found["aucs"] == pytest.approx({name: v for name, v in privacy.items() if name.endswith("_auc")})
    results = evaluate(hf(model, tokenizer), **options)["results"]["unlearn_tofu"]
    assert found["probability"] == pytest.approx(results["forget_probability,none"], rel=1e-5)
    some = measure(model, PromptFormat(tokenizer, chat), "forget10", positions=[2])
    assert some["log_truth_ratios"] == pytest.approx({"forget/2": own["forget/2"]}, rel=1e-5)


def test_a_stored_reference_is_read_from_its_folder(tmp_path):
    (tmp_path / STORED).write_text(json.dumps({"log_truth_ratios": {"forget/0": -1.5}, "aucs": {"mia_min_k_auc": 0.5}}))
    for path in (tmp_path, tmp_path / STORED):
        found = read_reference(path)
        assert found.log_truth_ratios == {"forget/0": -1.5}
        assert found.aucs == {"mia_min_k_auc": 0.5}
    (tmp_path / STORED).write_text(json.dumps({"log_truth_ratios": {"forget/0": None}}))
    with pytest.raises(UserError, match="is damaged"):
        read_reference(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_reference(tmp_path / "nowhere")


@pytest.mark.parametrize("options", [{}, {"lora_rank": "4"}])
def test_as_an_edit(options, data, loaded, tmp_path):
    small = {**FAST, "epochs": "2", **options}
    edit = finetuning.finetune(loaded, data, small)
    again = load_edit(edit.save(tmp_path / "edit", loaded.tokenizer, loaded.model.config))
    folder = write_checkpoint(loaded, edit, tmp_path / "whole")
    with applied(again, loaded.model):
        written = load_model(str(folder)).model.state_dict()
        for name, tensor in loaded.model.state_dict().items():
            assert torch.equal(written[name], tensor), name
    write_checkpoint(loaded, edit, tmp_path / "whole")  # an earlier one is replaced
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(UserError, match="is not an fine-tuned model|is not a"):
        write_checkpoint(loaded, edit, tmp_path / "letters")


def test_presets():
    from unlearn_eval.editing.training.gradient import GradientConfig
    from unlearn_eval.utils.settings import configure

    for name, preset in finetune_presets().items():
        configure(GradientConfig, preset.settings)
        assert name == preset.name
        assert "@" in preset.source
    one = (ForgetItem("a", "Who?", "Me"),)
    assert preset_of(ForgetSet("tofu:full", one), None).name == "tofu"
    assert preset_of(ForgetSet("tofu:full", one), "pistol").settings["lora_rank"] == "8"
    assert preset_of(ForgetSet("tofu:full", one), "none") is None
    assert preset_of(ForgetSet("my.jsonl", one), None) is None
    with pytest.raises(UserError, match="unknown preset 'tofuu'"):
        preset_of(ForgetSet("tofu:full", one), "tofuu")


def test_what_does_not_fit_is_refused(data, loaded):
    with pytest.raises(UserError, match="nothing is left of"):
        without(data, data)
    with pytest.raises(UserError, match="nothing is left out of"):
        without(data, ForgetSet("other", (ForgetItem("a", "Who else?", "Me"),)))
    with pytest.raises(UserError, match="unknown setting 'epoch'"):
        finetuning.finetune(loaded, data, {"epoch": "1"})
    bare = LoadedModel(loaded.model, loaded.tokenizer, "tiny", None, "tiny")
    with pytest.raises(UserError, match="unknown forget split"):
        measure(bare.model, PromptFormat(bare.tokenizer, False), "forget2")


def test_the_command(data, tiny_folder, tmp_path, capsys, monkeypatch):
    from unlearn_eval.cli import app as cli

    output = tmp_path / "model"
    arguments = ["finetune", "-m", str(tiny_folder("llama")), "-o", str(output), "--on", "tofu:full"]
    monkeypatch.setattr("sys.argv", ["unlearn-eval", *arguments, "--without", "tofu:forget10", "--set", "epochs=1"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code in (0, None)
    said = capsys.readouterr()
    assert said.out.strip() == str(output)
    assert "retain_reference" in said.err
    assert "locuslab/tofu@bdc209ea" in said.err
    assert (output / STORED).is_file()
    assert not (tmp_path / "model.training").exists()
    assert json.loads((output / ABOUT).read_text())["config"]["weight_decay"] == 0.01
