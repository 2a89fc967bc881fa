"""Where the commands of documents are run: a tiny model, and a folder with the files that the guides show."""

import pytest
import torch
from documented import GUIDES, files
from tiny_models import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from unlearn_eval.models import load as models


@pytest.fixture(scope="module")
def six_layers(tmp_path_factory):
    """A tiny model deep enough for the default settings of the guides."""
    folder = tmp_path_factory.mktemp("guides") / "model"
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 6, "num_attention_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, **shape, **ends)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def workplace(six_layers, tmp_path, monkeypatch):
    """A folder with the guides' files, in which `default` is the tiny model."""
    for path in sorted(GUIDES.glob("*.md")):
        for name, text in files(path.read_text(encoding="utf-8")).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    load = models.load_model

    def load_tiny(name="default", dtype="float32", device=None, revision=None, check=None):
        return load(str(six_layers) if name == "default" else name, dtype, "cpu", revision)

    monkeypatch.setattr(models, "load_model", load_tiny)
    return tmp_path
