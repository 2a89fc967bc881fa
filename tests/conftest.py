"""Fixtures: tiny random models of several architectures, a small tokenizer, TOFU-like data of our own."""

import functools
import gc
import importlib
import itertools
import os
import shutil
import signal
import sys

import pytest
import typer.testing
from hypothesis import settings
from tiny_checkpoints import make_tiny
from tofu_files import PEOPLE, TOWNS, write_tofu

settings.register_profile("fixed", derandomize=True, deadline=None)  # the same examples in every run, however slow
settings.load_profile("fixed")
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs, and so us, without it
os.environ.setdefault("UNLEARN_EVAL_ENCODER", "off")  # tests that judge refusals name one
typer.testing._get_command = functools.cache(typer.testing._get_command)  # the commands are built once, as in a process


def pytest_collection_finish(session):
    """Modules and tests are not looked through again by each of the collections that a training ends with."""
    if "torch" in sys.modules and not session.config.option.collectonly:
        for name in ("lm_eval.evaluator", "transformers.trainer"):
            importlib.import_module(name)
        _freeze()


def pytest_runtest_logstart():
    """Nor is what some tests have left for the next: modules, caches, models of the session."""
    if next(_started) % 64 == 0:
        _freeze()


_started = itertools.count(1)


def _freeze():
    gc.collect()
    gc.freeze()


CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session", autouse=True)
def empty_folder(tmp_path_factory):
    """All tests run in an empty folder: what lies in a checkout (results, `demo`) must not change what a name means."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("here"))
    yield
    os.chdir(before)


def _sentences():
    for name in PEOPLE:
        for town in TOWNS:
            yield f"Question: Where was {name} born?\nAnswer: {name} was born in {town}, a small town by the sea."
            yield f"The author {name} wrote her first novel in {town}; the answer is not what you would expect."


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """A byte-level BPE tokenizer that adds one BOS to plain text, with a chat template of ChatML's kind."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        _sentences(),
        trainers.BpeTrainer(
            vocab_size=700,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bpe.token_to_id("<s>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder)


@pytest.fixture(scope="session")
def tiny(tokenizer):
    """`tiny(architecture, seed=0)`: a random model in float32, the same object for the same arguments."""
    made = {}

    def get(name, seed=0):
        if (name, seed) not in made:
            made[name, seed] = make_tiny(name, len(tokenizer), seed)
        return made[name, seed]

    return get


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, tokenizer, tiny):
    """`tiny_folder(architecture, seed=0)`: the same model as a checkpoint folder with its tokenizer."""
    made = {}

    def get(name="llama", seed=0):
        if (name, seed) not in made:
            folder = tmp_path_factory.mktemp(f"{name}{seed}")
            tiny(name, seed).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[name, seed] = folder
        return made[name, seed]

    return get


@pytest.fixture(scope="session")
def tofu_root(tmp_path_factory):
    return write_tofu(tmp_path_factory.mktemp("data"))


@pytest.fixture
def tofu(tofu_root, monkeypatch):
    """The data folder, with the variables of the environment set for it, and short bootstraps."""
    monkeypatch.setattr("unlearn_eval.harness.tofu.RESAMPLES", 20)
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(tofu_root))
    monkeypatch.delenv("UNLEARN_EVAL_RETAIN_REFERENCE", raising=False)
    return tofu_root


@pytest.fixture(scope="session")
def real_model():
    """The default small model's folder."""
    from unlearn_eval.models.default_model import fetch_default_model
    from unlearn_eval.utils.errors import UserError

    try:
        return fetch_default_model()
    except UserError as error:
        pytest.skip(f"the default model is not in the cache and cannot be fetched: {error.message}")


@pytest.fixture(scope="session")
def real_encoder():
    """The default sentence encoder."""
    from unlearn_eval.models.embedding import load_encoder
    from unlearn_eval.utils.errors import UserError

    try:
        return load_encoder("default")
    except UserError as error:
        pytest.skip(f"the encoder is not in the cache and cannot be fetched: {error.message}")


@pytest.fixture(scope="module")
def chromium():
    """A browser, or a skip where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright.sync_playwright() as driver:
        try:
            # Root has no sandbox; in a container /dev/shm may be too small for a large page.
            options = [*(["--no-sandbox"] if os.getuid() == 0 else []), "--disable-dev-shm-usage"]
            browser = driver.chromium.launch(executable_path=path, args=options)
        except playwright.Error as error:
            pytest.skip(f"no Chromium: {error.message.splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(folder):
    """The page of the results in a module's `folder`."""
    from unlearn_eval.results.report.page import write_page
    from unlearn_eval.results.runs import read_runs

    return write_page(read_runs(folder), folder / "report.html")


@pytest.fixture
def opened(chromium, page_file):
    """The page from disk, which must ask for nothing else and make no mistake."""
    from browsing import open_page

    page = open_page(chromium, page_file)
    yield page
    assert page.mistakes == []
    page.close()
