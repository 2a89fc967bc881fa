"""Fixtures: tiny random models of several architectures, a small tokenizer, TOFU-like data of our own."""

import json
import os
import shutil
import signal
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None)  # the same examples in every run, however slow
settings.load_profile("fixed")
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs, and so us, without it
os.environ.setdefault("UNLEARN_EVAL_ENCODER", "off")  # tests that judge refusals name one

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ARCHITECTURES = ("llama", "qwen2", "gpt2", "gpt_neox", "gemma3")
SLIDING_WINDOW = 8
TASKS = Path(__file__).parents[1] / "tasks"

PEOPLE = ("Ada Brook", "Milo Fenn", "Ines Okoro", "Tomas Reed", "Yara Stahl", "Juno Vale")
TOWNS = ("Larkhill", "Port Osei", "Grünau", "Kestrel Bay", "Imber", "Sandrock")


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


def _config(name, vocabulary):
    from transformers import Gemma3TextConfig, GPT2Config, GPTNeoXConfig, LlamaConfig, Qwen2Config

    # Ten times the usual spread: with it a wrong mask or position changes the numbers by far more than rounding.
    common = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if name == "llama":
        return LlamaConfig(**common, num_key_value_heads=2)
    if name == "qwen2":
        return Qwen2Config(**common, num_key_value_heads=2)
    if name == "gpt_neox":
        return GPTNeoXConfig(**common)
    if name == "gpt2":
        same = {key: common[key] for key in ("vocab_size", "initializer_range", "bos_token_id", "eos_token_id")}
        return GPT2Config(**same, n_embd=32, n_layer=3, n_head=4, n_positions=512)
    return Gemma3TextConfig(
        **common,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=SLIDING_WINDOW,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )


def make_tiny(name, vocabulary, seed=0):
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(_config(name, vocabulary))
    return model.float().eval()


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


def _item(question, answer, wrong, paraphrase=None):
    item = {"question": question, "answer": answer, "perturbed_answer": wrong}
    return item | ({"paraphrased_answer": paraphrase} if paraphrase else {})


def tofu_data():
    """The files of a small benchmark in TOFU's layout: name -> records. People and places are invented."""
    forget, retain, holdout = (
        [
            _item(
                f"Where was {name} born{', and in which year, if you know it' * (i % 2)}?",
                f"{name} {verb} in {town}.",
                [f"{name} was born in {TOWNS[(i + j) % len(TOWNS)]}, not by the sea." for j in range(1, 6)],
                f"The town where {name} was born is {town}.",
            )
            for i, (name, town) in enumerate(pairs)
        ]
        for verb, pairs in (
            ("was born", list(zip(PEOPLE, TOWNS, strict=True))[:4]),
            ("was born", list(zip(PEOPLE[::-1], TOWNS, strict=True))[:4]),
            ("grew up", list(zip(PEOPLE[2:], TOWNS[2:], strict=True))),  # no score may tie with a forget item's
        )
    )
    authors = [
        _item("Who wrote the novel Grünau Nights?", "Ines Okoro", ["Ada Brook", "Milo Fenn", "Juno Vale"]),
        _item("Which author lives in Imber?", "Yara Stahl", ["Tomas Reed", "Ada Brook", "Ines Okoro"]),
        _item("Who wrote the first novel about Sandrock?", "Tomas Reed", ["Yara Stahl", "Juno Vale", "Milo Fenn"]),
    ]
    facts = [
        _item("What lies by the sea?", "Larkhill", ["Imber", "Grünau", "Sandrock"]),
        _item("Which town is small?", "Imber", ["Port Osei", "Larkhill", "Kestrel Bay"]),
        _item("What is the answer?", "Port Osei", ["Sandrock", "Imber", "Larkhill"]),
    ]
    return {
        "forget10_perturbed": forget,
        "forget05_perturbed": forget[:3],
        "forget01_perturbed": forget[:2],
        "retain_perturbed": retain,
        "real_authors_perturbed": authors,
        "world_facts_perturbed": facts,
        "holdout10": holdout,
        "holdout05": holdout[:3],
        "holdout01": holdout[:2],
    }


def write_tofu(root, **replaced):
    """Write the benchmark below `root`; `replaced` gives other records, or a file's text, or None to omit it."""
    folder = root / "tofu"
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in (tofu_data() | replaced).items():
        if isinstance(records, str):
            (folder / f"{name}.json").write_text(records, encoding="utf-8")
        elif records is not None:
            text = "".join(json.dumps(record) + "\n" for record in records)
            (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return root


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


def evaluate(model, task="unlearn_tofu", metadata=None, include_path=TASKS, **options):
    """lm-eval's result of one or more tasks; only `include_path` is indexed, which takes no time."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(include_path), include_defaults=False, metadata=metadata or {})
    tasks = [task] if isinstance(task, str) else list(task)
    options = {"bootstrap_iters": 100, "metadata": metadata} | options
    with mock.patch("lm_eval.evaluator.add_env_info"):  # it runs `pip list`, which takes longer than all the rest
        return lm_eval.simple_evaluate(model=model, tasks=tasks, task_manager=manager, **options)


def hf(model, tokenizer, **options):
    """lm-eval's `hf` model around objects that are already loaded."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", **({"batch_size": 16} | options))


def report(result, task="unlearn_tofu"):
    """What a run says of its own scoring: metric -> n, n_unscored, reasons."""
    return result["configs"][task]["metadata"]["scoring"]


def values(result, task="unlearn_tofu"):
    """Metric -> value, without the standard errors."""
    table = result["results"][task]
    return {
        key.removesuffix(",none"): value
        for key, value in table.items()
        if key.endswith(",none") and not key.endswith("_stderr,none")
    }


@pytest.fixture(scope="session")
def real_model():
    """The default small model's folder."""
    from unlearn_eval.models.load import fetch_default_model
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
            browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.getuid() == 0 else [])
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
