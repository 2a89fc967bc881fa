import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from unlearn_eval.models import weights
from unlearn_eval.models.weights import hash_weights
from unlearn_eval.utils import provenance as module
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.provenance import hash_json, peak_memory_bytes, provenance, redact, sha256_of_file


def tiny(seed=0, tied=True, **options):
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=40,
        tie_word_embeddings=tied,
        **options,
    )
    return AutoModelForCausalLM.from_config(config).eval()


# Weights ---------------------------------------------------------------------------------------------------


def test_the_hash_by_its_definition():
    # Another definition would part every stored edit, result and the default model from their weights.
    import hashlib

    layer = torch.nn.Linear(3, 2)

    def digest(name, dtype, tensor):
        shape = "x".join(map(str, tensor.shape))
        data = hashlib.sha256(bytes(tensor.detach().contiguous().view(torch.uint8).reshape(-1).tolist())).digest()
        return hashlib.sha256(f"{name}|{dtype}|{shape}|".encode() + data).digest()

    exact = [digest(n, "float32", t) for n, t in (("bias", layer.bias), ("weight", layer.weight))]
    canonical = [digest(n, "", t.bfloat16()) for n, t in (("bias", layer.bias), ("weight", layer.weight))]
    assert hash_weights(layer).exact == hashlib.sha256(b"".join(exact)).hexdigest()
    assert hash_weights(layer).canonical == hashlib.sha256(b"".join(canonical)).hexdigest()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_canonical_hash_survives_another_dtype_and_the_exact_does_not(dtype):
    first, second = hash_weights(tiny()), hash_weights(tiny().to(dtype))
    assert first.canonical == second.canonical
    assert first.exact != second.exact


def test_a_changed_weight_changes_both_hashes():
    model = tiny()
    before = hash_weights(model)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] += 1
    assert hash_weights(model).exact != before.exact
    assert hash_weights(model).canonical != before.canonical


def test_a_change_below_bfloat16_shows_in_the_exact_hash_alone():
    layer = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        before = hash_weights(layer)
        layer.weight.fill_(1.0 + 2**-20)
    assert hash_weights(layer).canonical == before.canonical
    assert hash_weights(layer).exact != before.exact


def test_tied_weights_count_once_and_untied_ones_twice():
    tied, untied = tiny(tied=True), tiny(tied=False)
    with torch.no_grad():
        untied.load_state_dict(tied.state_dict())
    assert len(weights._distinct(untied.state_dict())) == len(weights._distinct(tied.state_dict())) + 1
    assert hash_weights(tied).exact != hash_weights(untied).exact


def test_the_name_and_the_shape_are_hashed():
    wide, tall = torch.nn.Linear(4, 2, bias=False), torch.nn.Linear(2, 4, bias=False)
    with torch.no_grad():
        tall.weight.copy_(wide.weight.reshape(4, 2))
    assert hash_weights(wide).canonical != hash_weights(tall).canonical
    assert hash_weights(wide).canonical != hash_weights(torch.nn.Sequential(wide)).canonical


def test_buffers_count_in_the_exact_hash_alone():
    norm = torch.nn.BatchNorm1d(2)
    before = hash_weights(norm)
    norm.running_mean += 1
    after = hash_weights(norm)
    assert after.exact != before.exact
    assert after.canonical == before.canonical


def test_chunks_views_and_empty_tensors(monkeypatch):
    model = tiny()
    before = hash_weights(model)
    monkeypatch.setattr(weights, "_CHUNK_BYTES", 20)
    assert hash_weights(model) == before
    holder = torch.nn.Module()
    holder.weight = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4).T)  # not contiguous
    holder.scalar, holder.empty = torch.nn.Parameter(torch.tensor(1.0)), torch.nn.Parameter(torch.empty(0, 3))
    copy = torch.nn.Module()
    for name, parameter in holder.named_parameters():
        setattr(copy, name, torch.nn.Parameter(parameter.detach().clone(memory_format=torch.contiguous_format)))
    assert hash_weights(holder) == hash_weights(copy)


def test_a_peft_model_has_the_hash_of_its_base():
    from peft import LoraConfig, get_peft_model

    before = hash_weights(tiny())
    wrapped = get_peft_model(tiny(), LoraConfig(target_modules=["q_proj", "down_proj"], r=2))
    assert hash_weights(wrapped) == before
    saving = get_peft_model(tiny(), LoraConfig(target_modules=["q_proj"], r=2, modules_to_save=["lm_head"]))
    assert hash_weights(saving) != before, "more than LoRA: hashed as it is"


def test_offloaded_weights_are_refused():
    with pytest.raises(UserError, match="offloaded"), torch.device("meta"):
        hash_weights(torch.nn.Linear(2, 2))


# Files and JSON --------------------------------------------------------------------------------------------


def test_hashes_of_files_and_json(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of_file(tmp_path / "abc") == abc
    assert hash_json({"b": [1, "é"], "a": None}) == hash_json({"a": None, "b": [1, "é"]})
    assert hash_json([1, 2]) != hash_json([2, 1])
    with pytest.raises(ValueError, match="JSON"):
        hash_json({"a": float("nan")})


# Redaction -------------------------------------------------------------------------------------------------

HF = "hf_" + "aB3" * 11
SK = "sk-" + "proj-1a2B3c" * 3


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("/home/ann/models/x", "~/models/x"),
        ("see /home/ann.", "see ~."),
        ("file:///home/ann/x", "file://~/x"),
        ("/home/anna/x", "/home/anna/x"),
        ("/home/ann.old/x", "/home/ann.old/x"),
        ("/mnt/home/ann/x", "/mnt/home/ann/x"),
        (f"token {HF}, key {SK}", "token [redacted], key [redacted]"),
        ("HF_TOKEN=abc,x=1", "HF_TOKEN=[redacted],x=1"),
        ("pretrained=m,api_key=abc", "pretrained=m,api_key=[redacted]"),
        ("--openai-api-key=abc", "--openai-api-key=[redacted]"),
        ("https://ann:pass@host/x", "https://[redacted]@host/x"),
        (
            "hf_transformers sk-learn task-1 monkey=1 pad_token=x",
            "hf_transformers sk-learn task-1 monkey=1 pad_token=x",
        ),
    ],
)
def test_texts_are_redacted(monkeypatch, text, wanted):
    monkeypatch.setenv("HOME", "/home/ann")
    assert redact(text) == wanted


def test_structures_are_redacted_by_key_and_by_option():
    given = {
        "HF_TOKEN": "a",
        "OPENAI_API_KEY": "a",
        "PASSWORD": 7,
        "api_key": "a",
        "GH_TOKEN": None,
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "nested": [{"hf_token": "a"}, ("--token-budget", 3)],
        "command": ["x", "--api-key", "a", "--pad-token", "b"],
    }
    assert redact(given) == {
        "HF_TOKEN": "[redacted]",
        "OPENAI_API_KEY": "[redacted]",
        "PASSWORD": "[redacted]",
        "api_key": "[redacted]",
        "GH_TOKEN": None,
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "nested": [{"hf_token": "[redacted]"}, ("--token-budget", 3)],
        "command": ["x", "--api-key", "[redacted]", "--pad-token", "b"],
    }
    assert given["HF_TOKEN"] == "a", "the original is left alone"
    assert redact(Path.home() / "x") == "~/x"


# The run ---------------------------------------------------------------------------------------------------


def test_provenance_says_what_ran_where_and_is_json():
    facts = provenance("cpu")
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert facts["device"] == "cpu"
    assert facts["cpu"]["cores"] == os.cpu_count()
    assert set(facts["git"]) == {"commit", "dirty", "reason"}
    assert os.path.expanduser("~") + "/" not in json.dumps(facts)


def git(root, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)


def test_commit_and_dirty_flag_of_a_checkout(tmp_path):
    assert module._git_state(tmp_path)["commit"] is None
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "unlearn_eval").mkdir()
    (tmp_path / "unlearn_eval" / "a.py").write_text("")
    git(tmp_path, "init", "-q")
    assert "no commit" in module._git_state(tmp_path)["reason"]
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "x")
    clean = module._git_state(tmp_path)
    assert (len(clean["commit"]), clean["dirty"], clean["reason"]) == (40, False, None)
    (tmp_path / "results.json").write_text("")
    assert module._git_state(tmp_path)["dirty"] is False, "a result is no change of the code"
    (tmp_path / "unlearn_eval" / "a.py").write_text("x = 1")
    assert module._git_state(tmp_path)["dirty"] is True


def test_a_wheel_inside_someone_elses_checkout_has_no_commit(tmp_path):
    git(tmp_path, "init", "-q")
    assert module._git_state(tmp_path / "site-packages")["commit"] is None
    assert module._git_state(tmp_path)["reason"] == "not run from a git checkout"


def test_peak_memory_is_in_bytes():
    assert 50e6 < peak_memory_bytes() < 1e12


def test_importing_loads_no_heavy_package():
    code = (
        "import sys, unlearn_eval.results.schema, unlearn_eval.utils.provenance, unlearn_eval.models.load as m\n"
        "m.resolve_model('a/b'); unlearn_eval.utils.provenance.provenance()\n"
        "print([n for n in ('torch', 'transformers', 'lm_eval', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
