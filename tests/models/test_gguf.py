"""A GGUF file is converted once; what is read from the cache is the same, bit for bit."""

import os

import pytest
import torch
from gguf_files import write_gguf

from unlearn_eval.models import gguf
from unlearn_eval.models.load import load_model
from unlearn_eval.models.weights import hash_weights


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_EVAL_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_converted_once_and_stays_the_same(file, dtype, monkeypatch, capsys):
    direct, tokenizer = gguf.load_gguf(file, dtype)
    first = load_model(str(file), dtype=dtype)
    assert "converting tiny.gguf" in capsys.readouterr().err
    monkeypatch.setattr(gguf, "load_gguf", lambda *arguments: pytest.fail("converted again"))
    second = load_model(str(file), dtype=dtype)
    assert "converting" not in capsys.readouterr().err
    hashes = {hash_weights(own).exact for own in (direct, first.model, second.model)}
    assert len(hashes) == 1
    assert second.model.dtype == first.model.dtype == getattr(torch, dtype)
    text = "Who wrote it?\n\n 20"
    assert second.tokenizer(text).input_ids == first.tokenizer(text).input_ids
    assert second.tokenizer.chat_template == tokenizer.chat_template
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(first.model(ids).logits, second.model(ids).logits)
    assert second.notes == first.notes
    assert second.path == str(file)


def test_another_file_and_type_are_others(file, tmp_path):
    load_model(str(file), dtype="float32")
    load_model(str(file), dtype="bfloat16")
    assert len(list((tmp_path / "cache" / "gguf").iterdir())) == 2
    again = tmp_path / "renamed.gguf"
    again.write_bytes(file.read_bytes())
    load_model(str(again), dtype="float32")
    assert len(list((tmp_path / "cache" / "gguf").iterdir())) == 2, "the content counts, not the name"


def test_a_cache_that_cannot_be_written_is_done_without(file, tmp_path, capsys):
    (tmp_path / "cache").write_text("a file")
    assert load_model(str(file), dtype="float32").model is not None
    assert "the conversion is not kept" in capsys.readouterr().err


def test_what_was_cut_off_is_not_taken_for_whole(file, tmp_path, monkeypatch):
    def full(self, folder, **options):
        open(os.path.join(folder, "config.json"), "w").close()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.PreTrainedModel.save_pretrained", full)
        load_model(str(file), dtype="float32")
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []
    assert load_model(str(file), dtype="float32").model is not None
