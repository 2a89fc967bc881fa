"""The tasks through lm-eval: numbers against the plain loop, lm-eval's options, undefined and bad input, oracles."""

import copy
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from functools import partial

import lm_eval
import numpy as np
import pytest
import torch
from lm_eval.api.model import LM, TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval_runs import TASKS, evaluate, hf, report, values
from plain_loop import answer_numbers, our_ids, prompt_text, token_scores
from saying import SayingLM
from tiny_checkpoints import make_tiny
from tofu_files import tofu_data, write_tofu

from unlearn_eval.edits.base import EditInfo
from unlearn_eval.edits.load import describe_base
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.harness.borrowed import HAS_SCORERS
from unlearn_eval.harness.models import EditedLM
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.utils.errors import UserError

SHORT = {"gen_kwargs": {"max_gen_toks": 6}}
TOLERANCE = 1e-4


def close(got, expected, tolerance=TOLERANCE):
    assert got == pytest.approx(expected, rel=tolerance, abs=tolerance)


def check_samples(samples, model, tokenizer, chat):
    """Every answer-level metric of the samples against the plain loop; returns the loop's numbers by id."""
    expected = {}
    for sample in samples:
        document, split = sample["doc"], sample["doc"]["split"]
        own = expected[document["id"]] = answer_numbers(model, tokenizer, document, chat)
        if split == "forget":
            for key in ("probability", "paraphrase_probability", "exact_memorization", "extraction_strength"):
                close(sample[f"forget_{key}"], own[key])
            close(sample["forget_truth_ratio"], own["truth_ratio_forget"])
            close(math.exp(sample["forget_quality"]["log_truth_ratio"]), own["raw_truth_ratio"])
        else:
            close(sample[f"{split}_probability"], own["probability" if split == "retain" else "normalised"])
            close(sample[f"{split}_truth_ratio"], own["truth_ratio"])
        others = {"forget", "retain", "real_authors", "world_facts"} - {split}
        assert all(sample[f"{other}_{key}"] is None for other in others for key in ("probability", "rouge"))
        check_generation(sample, model, tokenizer, chat)
    return expected


def check_generation(sample, model, tokenizer, chat):
    """ROUGE of a plain greedy generation of the same length."""
    from rouge_score import rouge_scorer

    document, split = sample["doc"], sample["doc"]["split"]
    prompt = tokenizer.encode(prompt_text(document["question"], tokenizer, chat))
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(SHORT["gen_kwargs"]["max_gen_toks"]):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
    said = tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    close(sample[f"{split}_rouge"], scorer.score(document["answer"], said)["rougeL"].recall)


def check_aggregates(result, expected):
    found = values(result)
    mean = lambda split, key: np.mean([own[key] for i, own in expected.items() if i.startswith(f"{split}/")])
    for key in ("probability", "paraphrase_probability", "exact_memorization", "extraction_strength"):
        close(found[f"forget_{key}"], mean("forget", key))
    close(found["forget_truth_ratio"], mean("forget", "truth_ratio_forget"))
    for split in ("retain", "real_authors", "world_facts"):
        close(found[f"{split}_probability"], mean(split, "probability" if split == "retain" else "normalised"))
        close(found[f"{split}_truth_ratio"], mean(split, "truth_ratio"))
    nine = [found[f"{s}_{k}"] for s in ("retain", "real_authors", "world_facts") for k in ("probability", "rouge")]
    nine += [found[f"{s}_truth_ratio"] for s in ("retain", "real_authors", "world_facts")]
    close(found["model_utility"], 0 if min(nine) == 0 else len(nine) / sum(1 / value for value in nine))


# Numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "chat", "batch_size", "side"),
    [
        ("llama", False, 1, "left"),
        ("llama", False, 16, "right"),
        ("llama", True, 1, "right"),
        ("llama", True, 16, "left"),
        ("gemma3", False, 16, "left"),
        ("gemma3", True, 3, "right"),
        ("gpt2", True, 16, "left"),
        ("gpt_neox", False, 5, "right"),
    ],
)
def test_tofu_is_the_plain_loop(tiny, tokenizer, tofu, architecture, chat, batch_size, side):
    model, own = tiny(architecture), copy.deepcopy(tokenizer)
    own.padding_side = side
    result = evaluate(hf(model, own, batch_size=batch_size), apply_chat_template=chat, **SHORT)
    samples = result["samples"]["unlearn_tofu"]
    assert len(samples) == 4 + 4 + 3 + 3
    check_aggregates(result, check_samples(samples, model, tokenizer, chat))
    assert own.padding_side == side


@pytest.mark.parametrize(("chat", "batch_size", "side"), [(False, 16, "left"), (True, 2, "right")])
def test_privacy_is_the_plain_loop(tiny, tokenizer, tofu, chat, batch_size, side):
    from sklearn.metrics import roc_auc_score

    model, own = tiny("llama"), copy.deepcopy(tokenizer)
    own.padding_side = side
    result = evaluate(hf(model, own, batch_size=batch_size), "unlearn_tofu_privacy", apply_chat_template=chat)
    samples = result["samples"]["unlearn_tofu_privacy"]
    expected = [answer_numbers(model, tokenizer, sample["doc"], chat) for sample in samples]
    is_holdout = [sample["doc"]["split"] == "holdout" for sample in samples]
    assert sum(is_holdout) == 4 == len(samples) / 2
    for name in ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus"):
        for sample, own_numbers in zip(samples, expected, strict=True):
            close(sample[f"{name}_auc"][name], own_numbers[name])
        auc = roc_auc_score(is_holdout, [numbers[name] for numbers in expected])
        close(values(result, "unlearn_tofu_privacy")[f"{name}_auc"], auc)
    assert values(result, "unlearn_tofu_privacy")["privleak"] is None
    assert "no retain reference" in report(result, "unlearn_tofu_privacy")["privleak"]["reason"]


@pytest.mark.real_model
@pytest.mark.parametrize(("chat", "batch_size", "side"), [
    (False, 16, "left"), pytest.param(True, 3, "right", marks=pytest.mark.slow),
])  # fmt: skip
def test_the_real_model_is_the_plain_loop(real_model, tofu, chat, batch_size, side):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    own = AutoTokenizer.from_pretrained(real_model, padding_side=side)
    lm = hf(model, own, batch_size=batch_size)
    samples = evaluate(lm, apply_chat_template=chat, limit=4, **SHORT)["samples"]["unlearn_tofu"]
    assert [sample["doc"]["split"] for sample in samples] == ["forget", "retain", "real_authors", "world_facts"]
    check_samples(samples, model, tokenizer, chat)


def mean_loss(model, tokenizer, chat, question, answer):
    return np.mean(token_scores(model, *our_ids(question, answer, tokenizer, chat))["token_nll"])


def test_facts(tiny, tokenizer):
    """The shipped facts: probability of every wording, truth ratio, and whether the answer is said."""
    model = tiny("llama")
    chosen = {"forget": ["capital_of/france", "capital_of/japan"], "retain": ["capital_of/italy", "capital_of/kenya"]}
    for chat in (False, True):
        result = evaluate(hf(model, tokenizer), "unlearn_facts", chosen, apply_chat_template=chat, **SHORT)
        for sample in result["samples"]["unlearn_facts"]:
            document, split = sample["doc"], sample["doc"]["split"]
            loss = partial(mean_loss, model, tokenizer, chat)
            own = loss(document["question"], document["answer"])
            close(sample[f"{split}_probability"], math.exp(-own))
            if split == "forget":
                reworded = [math.exp(-loss(text, document["answer"])) for text in document["paraphrases"]]
                close(sample["forget_paraphrase_probability"], np.mean(reworded))
            if split in ("forget", "retain"):
                wrong = np.mean([loss(document["question"], text) for text in document["wrong_answers"]])
                ratio = math.exp(own - wrong)
                close(sample[f"{split}_truth_ratio"], min(ratio, 1 / ratio) if split == "forget" else max(0, 1 - ratio))
        assert report(result, "unlearn_facts")["forget_accuracy"] == {"n": 2, "n_unscored": 0}
        assert result["configs"]["unlearn_facts"]["metadata"]["split_sizes"]["retain"] == 2
        assert "neighbors_accuracy" in values(result, "unlearn_facts")


CHOSEN = {"forget": ["capital_of/france", "capital_of/japan"], "retain": ["capital_of/italy", "capital_of/kenya"]}
REFUSAL = "I'm sorry, but I don't know that capital."


@pytest.mark.parametrize(
    ("say", "forget", "paraphrase", "retain", "neighbors"),
    [
        (lambda doc, asked: doc["answer"], 0, 0, 0, 0),
        (lambda doc, asked: REFUSAL, 1, 1, 1, 1),
        (lambda doc, asked: "Some other town.", 0, 0, 0, 0),
        (lambda doc, asked: f"{REFUSAL} Is it {doc['answer']}?", 0, 0, 0, 0),
        (lambda doc, asked: REFUSAL * 4, 0, 0, 0, 0),
        (lambda doc, asked: REFUSAL if doc["id"] == "forget/capital_of/france" else doc["answer"], 0.5, 0.5, 0, 0),
        (lambda doc, asked: REFUSAL if doc["paraphrases"][0] in asked else "Oslo.", 0, 1, 0, 0),
        (lambda doc, asked: "Oslo." if doc["id"].startswith("neighbors") else REFUSAL, 1, 1, 1, 0),
    ],
)
def test_refusals_of_facts(say, forget, paraphrase, retain, neighbors):
    """Both ends: a model that answers refuses nothing, one that only refuses refuses everything."""
    result = evaluate(SayingLM(say), "unlearn_facts", CHOSEN)
    found, directions = values(result, "unlearn_facts"), result["higher_is_better"]["unlearn_facts"]
    names = ("forget_refusal_rate", "forget_paraphrase_refusal_rate", "retain_refusal_rate", "neighbors_refusal_rate")
    assert [found[name] for name in names] == [forget, paraphrase, retain, neighbors]
    assert [directions[name] for name in names] == [True, True, False, False]
    assert report(result, "unlearn_facts")["forget_refusal_rate"] == {"n": 2, "n_unscored": 0}


def test_fluency_of_facts():
    said = {"forget/capital_of/france": "Paris.", "forget/capital_of/japan": "one two three four five"}
    result = evaluate(SayingLM(lambda doc, asked: said.get(doc["id"], "no no no no")), "unlearn_facts", CHOSEN)
    close(values(result, "unlearn_facts")["forget_fluency"], (2 / 3 * 2 + 4 / 3 * math.log2(3)) / 2)
    assert report(result, "unlearn_facts")["forget_fluency"]["n_unscored"] == 1  # one word has no pairs: not 0
    assert result["higher_is_better"]["unlearn_facts"]["forget_fluency"] is True


def test_refusals_of_tofu(tofu):
    def say(document, asked):
        refuses = document["split"] == "forget" and document["id"] != "forget/0" or document["id"] == "world_facts/0"
        return "I have no information about that person." if refuses else document["answer"]

    result = evaluate(SayingLM(say))
    found, directions = values(result), result["higher_is_better"]["unlearn_tofu"]
    expected = {"forget": 3 / 4, "retain": 0, "real_authors": 0, "world_facts": 1 / 3}
    for split, rate in expected.items():
        close(found[f"{split}_refusal_rate"], rate)
        assert directions[f"{split}_refusal_rate"] is (split == "forget")


def test_in_a_chat_the_question_is_the_users_message(tiny, tokenizer, tofu):
    """The same prompt as `unlearn_eval.models.prompts` gives to editors."""

    for chat in (False, True):
        result = evaluate(hf(tiny("llama"), tokenizer), apply_chat_template=chat, limit=4, **SHORT)
        for sample in result["samples"]["unlearn_tofu"]:
            expected = PromptFormat(tokenizer, chat).render(sample["doc"]["question"])
            assert {arguments[0] for arguments in sample["arguments"]} == {expected}
    result = evaluate(
        hf(tiny("llama"), tokenizer), apply_chat_template=True, system_instruction="Be brief.", limit=1, **SHORT
    )
    (sample,) = result["samples"]["unlearn_tofu"]
    assert sample["arguments"][0][0] == PromptFormat(tokenizer, True, "Be brief.").render(sample["doc"]["question"])


# Edited models ---------------------------------------------------------------------------------------------


def small_edit(model, folder, name="model.layers.1.mlp.down_proj", scale=0.3):
    weight = model.get_submodule(name).weight
    transposed = type(model.get_submodule(name)).__name__ == "Conv1D"
    d_out, d_in = weight.shape[::-1] if transposed else weight.shape
    generator = torch.Generator().manual_seed(5)
    u, v = torch.randn(d_out, 2, generator=generator), torch.randn(2, d_in, generator=generator)
    edit = LowRankEdit(
        {name: (scale * u, v)}, EditInfo("test", {}, base=describe_base(model, "tiny")), stored_transposed=transposed
    )
    edit.save(folder, model_config=model.config)
    patched = copy.deepcopy(model)
    with torch.no_grad():
        delta = scale * u @ v
        patched.get_submodule(name).weight += delta.T if transposed else delta
    return patched


def same_values(first, second, tolerance):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert (value is None) == (second[name] is None), name
        if value is not None:
            close(value, second[name], tolerance)


@pytest.mark.parametrize(
    ("architecture", "module"), [("llama", "model.layers.1.mlp.down_proj"), ("gpt2", "transformer.h.1.mlp.c_proj")]
)
def test_edited_is_the_patched_model_and_peft(tiny, tiny_folder, tokenizer, tofu, tmp_path, architecture, module):
    base = tiny_folder(architecture)
    patched = small_edit(tiny(architecture), tmp_path / "edit", module)
    options = {"pretrained": str(base), "device": "cpu", "batch_size": 4, "dtype": "float32"}
    edited = values(evaluate(EditedLM(edit=str(tmp_path / "edit"), **options), **SHORT))
    same_values(edited, values(evaluate(hf(patched, tokenizer), **SHORT)), 1e-5)
    peft = evaluate("hf", model_args=options | {"peft": str(tmp_path / "edit")}, **SHORT)
    same_values(edited, values(peft), TOLERANCE)
    unedited = values(evaluate(hf(tiny(architecture), tokenizer), **SHORT))
    assert abs(edited["forget_probability"] - unedited["forget_probability"]) > 1e-6
    assert abs(edited["forget_truth_ratio"] - unedited["forget_truth_ratio"]) > 1e-3


def test_an_edit_of_nothing_changes_nothing(tiny, tiny_folder, tokenizer, tofu, tmp_path):
    small_edit(tiny("llama"), tmp_path / "edit", scale=0.0)
    lm = EditedLM(str(tiny_folder("llama")), str(tmp_path / "edit"), device="cpu", batch_size=16, dtype="float32")
    before = evaluate(hf(tiny("llama"), tokenizer), **SHORT)
    same_values(values(evaluate(lm, **SHORT)), values(before), 0)
    info = lm.get_model_info()
    assert info["edit"] == str(tmp_path / "edit")
    assert info["editor"] == "test"


def test_edited_refuses_what_it_cannot_do(tiny, tiny_folder, tmp_path):
    base = str(tiny_folder("llama"))
    with pytest.raises(UserError, match="needs an edit"):
        EditedLM(base, device="cpu")
    small_edit(tiny("llama"), tmp_path / "edit")
    with pytest.raises(UserError, match="takes no peft"):
        EditedLM(base, str(tmp_path / "edit"), peft="x", device="cpu")
    with pytest.raises(UserError, match="other weights"):
        EditedLM(str(tiny_folder("llama", 1)), str(tmp_path / "edit"), device="cpu")


# lm-eval's options -----------------------------------------------------------------------------------------


def test_automatic_batch_size(tiny, tokenizer, tofu):
    reference = values(evaluate(hf(tiny("llama"), tokenizer), **SHORT))
    for size in ("auto", "auto:2", "auto:9"):
        lm = hf(tiny("llama"), tokenizer, batch_size=size, max_batch_size=8)
        same_values(values(evaluate(lm, **SHORT)), reference, TOLERANCE)


def test_an_automatic_batch_may_jump_over_a_schedule(tiny, tokenizer, tofu, monkeypatch):
    """lm-eval looks up the schedule before the current one, which does not exist if a batch jumped over it."""
    sizes = iter([2, 4, 4])  # of eight rows in four schedules: rows 0 and 1, then 2 to 5, so that the third has none
    lm = hf(tiny("llama"), tokenizer, batch_size="auto:4", max_batch_size=64)
    monkeypatch.setattr(lm, "_detect_batch_size", lambda *args: next(sizes))
    found = evaluate(lm, "unlearn_tofu_privacy")
    reference = evaluate(hf(tiny("llama"), tokenizer), "unlearn_tofu_privacy")
    same_values(values(found, "unlearn_tofu_privacy"), values(reference, "unlearn_tofu_privacy"), TOLERANCE)


def ranked(model, tokenizer, rank, shared):
    """lm-eval's `hf` model that believes to be one of several processes, gathering through `shared`."""
    lm = hf(model, tokenizer)

    class Ranked(type(lm)):
        rank = property(lambda self: self._rank)
        world_size = property(lambda self: len(shared["items"]))

        def _exchange(self, item):
            shared["items"][self._rank] = item
            shared["barrier"].wait(60)
            items = list(shared["items"])
            shared["barrier"].wait(60)
            return items

        def all_gather(self, tensor):
            return torch.stack([torch.as_tensor(item) for item in self._exchange(tensor)])

        def gather_object(self, obj, dst=0):
            items = self._exchange(obj)
            return items if self._rank == dst else None

        def barrier(self):
            shared["barrier"].wait(60)

    lm.__class__, lm._rank = Ranked, rank
    return halting(lm)


def halting(lm):
    """The model, but for generations that differ from item to item: else ROUGE, and its spread, would be 0."""
    lm.generate_until = lambda requests: [
        " ".join(request.doc["answer"].split()[: 1 + int(request.doc["id"][-1])]) for request in requests
    ]
    return lm


@pytest.mark.skipif(HAS_SCORERS, reason="lm-eval 0.5 gathers through torch.distributed, which threads cannot share")
@pytest.mark.parametrize(("task", "n"), [("unlearn_tofu", 2), ("unlearn_tofu", 3), ("unlearn_tofu_privacy", 3)])
def test_several_processes_give_the_metrics_of_one(tiny, tokenizer, tofu, task, n):
    """With three, the items of a split come back in another order: bootstraps must not depend on it."""
    # Of this model no part of the model utility is 0, so that it has a spread.
    model, shared = tiny("llama", 1), {"items": [None] * n, "barrier": threading.Barrier(n)}
    results = [None] * n

    def work(rank):
        try:
            results[rank] = evaluate(ranked(model, tokenizer, rank, shared), task)
        except BaseException:
            shared["barrier"].abort()  # the others would wait for ever
            raise

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert results[0]
    assert not any(results[1:])
    alone = evaluate(halting(hf(model, tokenizer)), task)
    assert len(results[0]["samples"][task]) == len(alone["samples"][task])
    for key, value in alone["results"][task].items():  # standard errors too
        if isinstance(value, float):
            close(results[0]["results"][task][key], value, 1e-5)
    if task == "unlearn_tofu":
        assert alone["results"][task]["model_utility_stderr,none"] > 0
    assert report(results[0], task) == report(alone, task)


def test_limit_takes_some_of_each_split(tiny, tokenizer, tofu):
    result = evaluate(hf(tiny("llama"), tokenizer), limit=6, **SHORT)
    splits = [sample["doc"]["split"] for sample in result["samples"]["unlearn_tofu"]]
    assert splits == ["forget", "retain", "real_authors", "world_facts", "forget", "retain"]
    assert report(result)["forget_probability"]["n"] == 2


def environment(**more):
    """For subprocesses: no network, few threads."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("UNLEARN_EVAL")}
    return kept | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"} | more


def python(code, cwd, **more):
    return subprocess.run(
        [sys.executable, *code], cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=200
    )


@pytest.mark.slow  # lm-eval reads ten thousand files for it
def test_the_plain_lm_eval_command_lists_our_tasks(tmp_path):
    found = python(["-m", "lm_eval", "ls", "tasks"], tmp_path)
    assert found.returncode == 0, found.stderr[-2000:]
    for name in ("unlearn_tofu", "unlearn_tofu_forget01", "unlearn_tofu_privacy", "unlearn_facts"):
        assert f"|{name} " in found.stdout


def test_the_plain_lm_eval_command_runs_from_anywhere(tiny, tiny_folder, tokenizer, tofu, tmp_path):
    small_edit(tiny("llama"), tmp_path / "edit")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    arguments = f"pretrained={tiny_folder('llama')},edit={tmp_path / 'edit'},dtype=float32"
    command = ["-m", "lm_eval", "run", "--model", "edited", "--model_args", arguments, "--device", "cpu"]
    command += ["--tasks", "unlearn_tofu,unlearn_tofu_privacy_forget05", "--limit", "8", "--log_samples"]
    command += ["--output_path", "out", "--batch_size", "auto:2", "--max_batch_size", "8", "--num_fewshot", "0"]
    command += ["--apply_chat_template", "--gen_kwargs", "max_gen_toks=6", "--metadata", '{"forget_split": "forget01"}']
    found = python(command, elsewhere, UNLEARN_EVAL_DATA=str(tofu), UNLEARN_EVAL_ENCODER="off")
    assert found.returncode == 0, found.stderr[-3000:]
    assert "forget_probability" in found.stdout
    (path,) = (elsewhere / "out").rglob("results_*.json")
    saved = json.loads(path.read_text())
    assert saved["configs"]["unlearn_tofu"]["metadata"]["scoring"]["forget_quality"]["reason"]
    assert saved["configs"]["unlearn_tofu"]["metadata"]["split_sizes"]["forget"] == 2
    assert saved["results"]["unlearn_tofu"]["forget_quality,none"] is None
    assert len(list((elsewhere / "out").rglob("samples_*.jsonl"))) == 2
    lm = EditedLM(str(tiny_folder("llama")), str(tmp_path / "edit"), device="cpu", batch_size=16, dtype="float32")
    here = evaluate(lm, metadata={"forget_split": "forget01"}, apply_chat_template=True, limit=8, **SHORT)
    same_values(values(saved), values(here), TOLERANCE)


OTHER_TASK = """
task: other_task
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{options}}}}"
doc_to_target: gold
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 1.0}}
"""
RUN_OTHER = """
import json, sys
import lm_eval
from lm_eval.tasks import TaskManager
folder, model = sys.argv[1:]
result = lm_eval.simple_evaluate(
    model="hf", model_args={"pretrained": model, "dtype": "float32"}, device="cpu", batch_size=4, tasks=["other_task"],
    task_manager=TaskManager(include_path=[folder], include_defaults=False), gen_kwargs={"max_gen_toks": 2},
)
assert "unlearn_eval.harness" not in sys.modules
print(json.dumps([{k: v for k, v in result["results"]["other_task"].items() if k != "alias"},
      [s["resps"] for s in result["samples"]["other_task"]]]))
"""


def test_other_tasks_keep_their_numbers(tiny_folder, tofu, tmp_path):
    """Another task's result, bit for bit, without our autoload and next to one of our tasks with it."""
    folder = tmp_path / "other"
    folder.mkdir()
    records = [
        {"question": item["question"], "options": [item["answer"], *item["perturbed_answer"]], "gold": i % 4}
        for i, item in enumerate(tofu_data()["world_facts_perturbed"] + tofu_data()["forget10_perturbed"])
    ]
    data = folder / "data.json"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "other.yaml").write_text(OTHER_TASK.format(path=data))
    model = str(tiny_folder("llama"))
    (tmp_path / "run.py").write_text(RUN_OTHER)
    own = {"HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    without = python(["run.py", str(folder), model], tmp_path, UNLEARN_EVAL_AUTOLOAD="0", **own)
    assert without.returncode == 0, without.stderr[-2000:]
    with_ours = lm_eval.simple_evaluate(
        model="hf", model_args={"pretrained": model, "dtype": "float32"}, device="cpu", batch_size=4,
        tasks=["other_task", "unlearn_tofu"], gen_kwargs={"max_gen_toks": 2},
        task_manager=TaskManager(include_path=[str(folder), str(TASKS)], include_defaults=False),
    )  # fmt: skip
    found = {key: value for key, value in with_ours["results"]["other_task"].items() if key != "alias"}
    responses = [sample["resps"] for sample in with_ours["samples"]["other_task"]]
    assert json.loads(without.stdout.splitlines()[-1]) == json.loads(json.dumps([found, responses]))
    assert found["acc,none"] >= 0


# Autoload --------------------------------------------------------------------------------------------------


def index_module(folder):
    """A copy of lm-eval's index module whose own task folder is small, with our autoload applied to it."""
    import importlib.util

    from lm_eval.tasks import _index

    from unlearn_eval.harness.patching import index_our_tasks

    folder.mkdir()
    copied = shutil.copy(_index.__file__, folder / "_index.py")
    name = "lm_eval.tasks.copied_index"  # it may import from where it stands
    spec = importlib.util.spec_from_file_location(name, copied)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (folder / "native.yaml").write_text("task: native_task\noutput_type: generate_until\n")
    index_our_tasks(module)
    return module


def test_the_users_include_path_wins(tmp_path):
    module = index_module(tmp_path / "tasks")
    user = tmp_path / "user"
    user.mkdir()
    (user / "mine.yaml").write_text("task: unlearn_tofu\noutput_type: generate_until\n")
    build = module.TaskIndex.build
    plain = build([tmp_path / "tasks"])
    assert {"native_task", "unlearn_tofu", "unlearn_facts"} <= plain.keys()
    assert "unlearn_eval" in str(plain["unlearn_tofu"].yaml_path)
    mixed = build([tmp_path / "tasks", user])
    assert mixed["unlearn_tofu"].yaml_path == user / "mine.yaml"
    assert "unlearn_tofu_privacy" in mixed
    assert build([user]).keys() == {"unlearn_tofu"}  # the user wants no defaults
    once = build([tmp_path / "tasks", TASKS])
    assert once["unlearn_tofu"].yaml_path == TASKS / "tofu" / "unlearn_tofu.yaml"


def test_a_changed_lm_eval_goes_on_without_us(tmp_path):
    for name in ("lm_eval", "lm_eval/tasks", "lm_eval/models"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / "lm_eval/tasks/_index.py").write_text("VALUE = 3\n")
    code = "import lm_eval.tasks._index as i, lm_eval.models; print(i.VALUE, i.__loader__.name)"
    found = python(["-c", code], tmp_path, PYTHONPATH=str(tmp_path))
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "3 lm_eval.tasks._index"
    (line,) = found.stderr.splitlines()
    assert line.startswith("unlearn-eval: could not add its tasks")
    off = python(["-c", code], tmp_path, PYTHONPATH=str(tmp_path), UNLEARN_EVAL_AUTOLOAD="0")
    assert (off.returncode, off.stderr) == (0, "")


def test_a_task_that_is_only_looked_at_imports_no_model_classes():
    """What a study's plan does with each task; asking it installs what it needs, as before."""
    code = (
        "import sys; from unlearn_eval.harness.run import task_data\n"
        "from unlearn_eval.harness.requests import looked_at\n"
        "print(task_data('unlearn_facts', {})[0], looked_at(), 'lm_eval.models.huggingface' in sys.modules)\n"
        "from unlearn_eval.harness.task_index import manager_for\n"
        "manager_for(['unlearn_facts'], {}, None).load(['unlearn_facts'])\n"
        "print('lm_eval.models.huggingface' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()[-2:]
    assert first.split()[1:] == ["False", "False"]
    assert int(first.split()[0]) > 0
    assert second == "True"


def test_starting_an_interpreter_imports_nothing_heavy(tmp_path):
    code = "import sys; print(sorted({'torch', 'lm_eval', 'transformers', 'numpy'} & set(sys.modules)))"
    found = python(["-c", code], tmp_path)
    assert found.stdout.strip() == "[]"


# Models of other kinds -------------------------------------------------------------------------------------


class CountingLM(TemplateLM):
    """A model that lm-eval's interface describes, and that knows nothing of ours."""

    def __init__(self, model, tokenizer):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer

    eot_token_id = property(lambda self: self.tokenizer.eos_token_id)
    tokenizer_name = "counting"

    def tok_encode(self, string, add_special_tokens=None, **kwargs):
        return self.tokenizer.encode(string)

    def _loglikelihood_tokens(self, requests, **kwargs):
        scores = [token_scores(self.model, context, answer) for _, context, answer in requests]
        return [(-sum(score["token_nll"]), all(score["hits"])) for score in scores]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def generate_until(self, requests, disable_tqdm=False):
        return [request.doc["answer"] for request in requests]


class SilentLM(SayingLM):
    """A model that only refuses."""

    def __init__(self):
        super().__init__(lambda document, asked: "I would rather not say.")


def test_a_model_with_loglikelihoods_only(tiny, tokenizer, tofu):
    model = tiny("llama")
    result = evaluate(CountingLM(model, tokenizer))
    found, said = values(result), report(result)
    for sample in result["samples"]["unlearn_tofu"]:
        if sample["doc"]["split"] == "forget":
            prompt, labels = our_ids(sample["doc"]["question"], sample["doc"]["answer"], tokenizer, False)
            nll = token_scores(model, prompt, labels)["token_nll"][:-1]  # the end token is not to be had
            close(sample["forget_probability"], math.exp(-np.mean(nll)))
    assert found["forget_rouge"] == 1
    assert found["forget_truth_ratio"] > 0
    for name in ("forget_extraction_strength", "forget_exact_memorization", "forget_quality"):
        assert found[name] is None
        assert said[name]["reason"]
    assert said["forget_extraction_strength"]["n_unscored"] == 4
    assert "without the end token" in said["forget_extraction_strength"]["reason"]
    private = evaluate(CountingLM(model, tokenizer), "unlearn_tofu_privacy")
    assert values(private, "unlearn_tofu_privacy")["mia_min_k_auc"] is None


READ_FROM_TEXT = ("rouge", "refusal_rate", "leak_rate", "gibberish_rate")


@pytest.mark.parametrize("task", ["unlearn_tofu", "unlearn_tofu_privacy", "unlearn_facts"])
def test_a_model_that_only_writes(tofu, task):
    result = evaluate(SilentLM(), task)
    for name, value in values(result, task).items():
        said = report(result, task)[name]
        if any(part in name for part in (*READ_FROM_TEXT, "accuracy", "fluency")):
            assert value is not None
            assert said["n_unscored"] == 0
        else:
            assert value is None, name
            assert said["reason"]
            assert name.startswith("forget_quality") or "SilentLM" in json.dumps(said)
    json.dumps(result["results"], allow_nan=False)


def test_a_model_without_loglikelihoods(tiny, tokenizer, tofu):
    class NoLoglikelihoods(CountingLM):
        def loglikelihood(self, requests, disable_tqdm=False):
            raise NotImplementedError

    result = evaluate(NoLoglikelihoods(tiny("llama"), tokenizer))
    assert values(result)["forget_probability"] is None
    assert report(result)["forget_probability"]["reason"] == "NoLoglikelihoods gives no loglikelihoods"
    assert values(result)["forget_rouge"] == 1


# Undefined -------------------------------------------------------------------------------------------------


def changed_item(name, index, **changes):
    records = tofu_data()[name]
    records[index] = records[index] | changes
    return {name: records}


def test_a_question_longer_than_the_context(tiny, tokenizer, tmp_path, monkeypatch):
    long = "Where was Ada Brook born? " * 40
    monkeypatch.setenv(
        "UNLEARN_EVAL_DATA", str(write_tofu(tmp_path, **changed_item("forget10_perturbed", 1, question=long)))
    )
    result = evaluate(hf(tiny("gpt2"), tokenizer, max_length=128), **SHORT)
    said = report(result)
    assert said["forget_probability"]["n"] == 3
    assert said["forget_probability"]["n_unscored"] == 1
    assert "longer than the model's context (128 tokens)" in next(iter(said["forget_probability"]["unscored_reasons"]))
    sample = next(s for s in result["samples"]["unlearn_tofu"] if s["doc"]["id"] == "forget/1")
    assert "unscored" in sample["forget_probability"]
    others = [s["forget_probability"] for s in result["samples"]["unlearn_tofu"] if s["doc"]["split"] == "forget"]
    known = [value for value in others if not isinstance(value, dict)]
    close(values(result)["forget_probability"], np.mean(known))  # not counted as 0
    assert said["retain_probability"] == {"n": 4, "n_unscored": 0}


def test_an_answer_of_nothing(tiny, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv(
        "UNLEARN_EVAL_DATA", str(write_tofu(tmp_path, **changed_item("forget10_perturbed", 0, answer=" ")))
    )
    for lm in (hf(tiny("llama"), tokenizer), CountingLM(tiny("llama"), tokenizer)):
        result = evaluate(lm, **SHORT)
        said = report(result)
        (reason,) = said["forget_probability"]["unscored_reasons"]
        assert "the answer has no tokens" in reason
        assert said["forget_probability"]["n_unscored"] == 1
        assert said["forget_rouge"]["n_unscored"] == 1
        assert said["forget_truth_ratio"]["n_unscored"] == 0  # its paraphrase is there


@pytest.mark.parametrize("task", ["unlearn_tofu", "unlearn_tofu_privacy"])
def test_nothing_is_0_for_undefined(tiny, tokenizer, tmp_path, monkeypatch, task):
    """When nothing can be scored, every value is null with a reason and everything is counted as unscored."""
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(write_tofu(tmp_path)))
    result = evaluate(hf(tiny("llama"), tokenizer, max_length=8), task, **(SHORT if task == "unlearn_tofu" else {}))
    for name, value in values(result, task).items():
        said = report(result, task)[name]
        if any(part in name for part in READ_FROM_TEXT):
            continue
        assert value is None, name
        assert said["reason"]
        assert said["n"] == 0
        assert said["n_unscored"] > 0
    assert all(
        value == "N/A" or any(part in key for part in READ_FROM_TEXT)
        for key, value in result["results"][task].items()
        if key.endswith("_stderr,none")
    )


# Bad input -------------------------------------------------------------------------------------------------


def refused(tokenizer=None, task="unlearn_tofu", metadata=None, match=""):
    with pytest.raises(UserError, match=match):
        evaluate(SilentLM(), task, metadata)


def test_missing_data(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(tmp_path / "nowhere"))
    refused(match="nowhere, which is not a folder")
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(write_tofu(tmp_path / "d", retain_perturbed=None)))
    refused(match="no tofu/retain_perturbed.json in the data folder")


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("retain_perturbed", '{"question": "a"\n', r"retain_perturbed.json, line 1, column \d+: not JSON"),
        ("forget10_perturbed", "", "is empty"),
        ("forget10_perturbed", "[]", "no records"),
        ("world_facts_perturbed", '{"question": "q", "answer": "a"}\n', "line 1 lacks the field 'perturbed_answer'"),
        (
            "forget10_perturbed",
            '{"question": "q", "answer": "a", "perturbed_answer": ["b"]}\n',
            "line 1 lacks the field 'paraphrased_answer'",
        ),
        (
            "real_authors_perturbed",
            '{"question": "q", "answer": "a", "perturbed_answer": "b"}\n',
            "real_authors_perturbed, record 1: 'perturbed_answer' is not a list",
        ),
    ],
)
def test_bad_files(tmp_path, monkeypatch, name, text, match):
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(write_tofu(tmp_path, **{name: text})))
    refused(match=match)


def test_unknown_names(tofu):
    refused(metadata={"forget_split": "forget1"}, match="unknown forget split 'forget1'(.|\n)*did you mean forget10")
    refused(metadata={"compat": "open_unlearning"}, match="unknown compat 'open_unlearning'")
    refused(task="unlearn_tofu_privacy", metadata={"compat": "x"}, match="allowed: openunlearning")


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({"forget": ["capital_of/france"], "retain": ["capital_of/france"]}, "both in forget and in retain"),
        ({"forget": []}, "the forget set of unlearn_facts is empty"),
        ({"forget": ["capital_of/atlantis"]}, "unknown fact 'capital_of/atlantis'"),
        ({"forget": "capital"}, "unknown relation or fact 'capital'"),
        ({"split": "nowhere.json"}, "split file nowhere.json does not exist"),
        ({"n_retain": 0}, "n_retain in --metadata is 0"),
    ],
)
def test_bad_choices_of_facts(metadata, match):
    refused(task="unlearn_facts", metadata=metadata, match=match)


def test_a_bad_split_file(tmp_path):
    for text in ("{", "[]", '{"forget": ["capital_of/france"]}'):
        (tmp_path / "split.json").write_text(text)
        refused(task="unlearn_facts", metadata={"split": str(tmp_path / "split.json")}, match="is not a split file")


def test_the_quick_task_asks_a_sample_of_what_is_kept_and_all_that_is_near():
    forget = ["capital_of/japan", "author_of/the_hobbit"]

    def documents_of(task, **more):
        metadata = {"forget": forget, "encoder": "off", **more}
        manager = TaskManager(metadata=metadata, include_path=str(TASKS), include_defaults=False)
        return manager.load([task])["tasks"][task].eval_docs

    whole, quick = documents_of("unlearn_facts"), documents_of("unlearn_facts_quick")
    again, other = (documents_of("unlearn_facts_quick", n_retain=n, seed=seed) for n, seed in ((64, 0), (9, 1)))

    def of(documents, split):
        return [own["id"].partition("/")[2] for own in documents if own["split"] == split]

    assert of(quick, "forget") == of(whole, "forget") == forget
    near = of(whole, "neighbors")
    assert len(of(whole, "retain")) == 702
    assert set(near) < set(of(whole, "retain")), "all are kept"
    assert of(quick, "neighbors") == near
    assert of(quick, "retain") == of(again, "retain")
    assert (len(of(quick, "retain")), len(of(other, "retain"))) == (64, 9)
    assert not {*forget, *near} & set(of(quick, "retain"))
    assert not set(of(other, "retain")) <= set(of(quick, "retain")), "drawn by the seed"
    relations = {own.partition("/")[0] for own in of(quick, "retain")}
    assert len(relations) > 9, "not the first ones of the file"


# Controls: both ends ---------------------------------------------------------------------------------------


class OracleLM(LM):
    """A model that knows every true answer by heart and believes no other."""

    def loglikelihood(self, requests):
        raise AssertionError("it has something better")

    loglikelihood_rolling = loglikelihood

    def generate_until(self, requests):
        return [request.doc["answer"] for request in requests]

    def answer_logprobs(self, requests):
        responses = []
        for request in requests:
            _, answer, options = request.args
            known = answer in (request.doc["answer"], request.doc["paraphrased_answer"])
            member = request.doc["split"] != "holdout"
            nll = [0.0 if known and member else 12.0] * 5
            responses.append(
                {
                    "token_nll": nll,
                    "hits": [known] * 5,
                    "ranks": [1 if known else 500] * 5,
                    "n_answer": 4,
                    "text": answer,
                    **({"means": [-3.0] * 5, "variances": [1.0] * 5} if options["moments"] else {}),
                }
            )
        return responses


def test_the_oracle_is_at_the_end_of_every_scale(tofu):
    found = values(evaluate(OracleLM()))
    for name in ("probability", "paraphrase_probability", "rouge", "extraction_strength", "exact_memorization"):
        assert found[f"forget_{name}"] == 1, name
    assert found["forget_truth_ratio"] < 1e-4
    assert found["model_utility"] > 0.9999
    private = values(evaluate(OracleLM(), "unlearn_tofu_privacy"), "unlearn_tofu_privacy")
    assert {private[f"{name}_auc"] for name in ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus")} == {1}


def test_a_random_model_is_near_chance(tokenizer, tofu):
    model = make_tiny("llama", len(tokenizer), seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.05)  # nearly uniform
    found = values(evaluate(hf(model, tokenizer), **SHORT))
    close(found["forget_probability"], 1 / len(tokenizer), 0.05)
    assert abs(found["real_authors_probability"] - 1 / 4) < 0.02
    assert abs(found["world_facts_probability"] - 1 / 4) < 0.02
    assert found["forget_truth_ratio"] > 0.95
    assert found["forget_exact_memorization"] < 0.2
    assert found["forget_extraction_strength"] < 0.2
    assert found["forget_rouge"] < 0.3
    private = values(evaluate(hf(model, tokenizer), "unlearn_tofu_privacy"), "unlearn_tofu_privacy")
    assert 0 < private["mia_loss_auc"] < 1


def test_gibberish_has_a_model_utility_of_0_and_not_null(tofu):
    class Gibberish(OracleLM):
        def generate_until(self, requests):
            return ["zzz" for _ in requests]

    found = values(evaluate(Gibberish()))
    assert found["model_utility"] == 0
    assert found["forget_rouge"] == 0


# Refusal alignment -----------------------------------------------------------------------------------------


@pytest.fixture
def toy_judge(monkeypatch):
    """A judge whose encoder knows two directions: texts with "know" in them, and others."""
    from unlearn_eval.metrics.alignment import Calibration
    from unlearn_eval.models import refusal_judge
    from unlearn_eval.models.embedding import Encoder

    def encode(texts, batch_size):
        return np.array([[1.0, 0.1] if "know" in text else [0.1, 1.0] for text in texts])

    encoder = Encoder("toy", encode)
    references, contrast = np.array([[1.0, 0.0]] * 3), np.array([[0.0, 1.0]] * 3)
    calibration = Calibration("toy", (20.0, 0.0, 0.0), -10.0, 2.0, None, "hash")
    judge = refusal_judge.Judge(encoder, calibration, references, contrast)
    monkeypatch.setattr(refusal_judge, "load_judge", lambda name=None, device=None: judge)
    return judge


def test_alignment_of_facts(toy_judge):
    said = {
        "forget/capital_of/france": "I don't know the capital of France.",
        "forget/capital_of/japan": "I don't know. Perhaps Tokyo.",
        "retain/capital_of/italy": "I don't know that.",
    }
    result = evaluate(
        SayingLM(lambda doc, asked: said.get(doc["id"], doc["answer"])), "unlearn_facts", CHOSEN | {"encoder": "toy"}
    )
    found = values(result, "unlearn_facts")
    assert 0.49 < found["forget_refusal_alignment"] < 0.5  # one refuses, names France, and gives nothing away
    assert found["forget_leak_rate"] == 0.5
    assert found["forget_gibberish_rate"] == found["forget_fabrication_rate"] == 0
    assert found["retain_over_refusal_rate"] == 0.5
    assert found["neighbors_over_refusal_rate"] == 0
    expected = math.sqrt(found["forget_refusal_alignment"] * (1 - found["retain_refusal_probability"]))
    close(found["refusal_headline"], expected)
    (sample,) = (s for s in result["samples"]["unlearn_facts"] if s["doc"]["id"] == "forget/capital_of/japan")
    assert sample["forget_refusal_alignment"] == 0
    assert sample["forget_leak_rate"] == 1
    assert result["configs"]["unlearn_facts"]["metadata"]["alignment"]["encoder"] == "toy"
    directions = result["higher_is_better"]["unlearn_facts"]
    assert directions["forget_refusal_alignment"] is True
    assert directions["forget_leak_rate"] is directions["retain_over_refusal_rate"] is False
    assert toy_judge.encoder.n_encoded == len(set(toy_judge.encoder._known))


def test_alignment_without_an_encoder_is_null_with_the_reason(monkeypatch):
    from unlearn_eval.models import refusal_judge

    absent = refusal_judge.Judge(None, missing="the encoder cannot be had")
    monkeypatch.setattr(refusal_judge, "load_judge", lambda name=None, device=None: absent)
    result = evaluate(SayingLM(lambda doc, asked: doc["answer"]), "unlearn_facts", CHOSEN | {"encoder": "default"})
    found = values(result, "unlearn_facts")
    assert found["forget_refusal_alignment"] is found["refusal_headline"] is found["forget_topic_similarity"] is None
    assert found["forget_leak_rate"] == found["forget_accuracy"] == 1
    for name in ("forget_refusal_alignment", "retain_over_refusal_rate", "refusal_headline"):
        assert report(result, "unlearn_facts")[name]["reason"] == "the encoder cannot be had"


def test_alignment_switched_off_leaves_what_reads_words():
    found = values(evaluate(SayingLM(lambda doc, asked: doc["answer"]), "unlearn_facts", CHOSEN), "unlearn_facts")
    assert found["forget_leak_rate"] == 1
    assert "forget_refusal_alignment" not in found


def test_alignment_of_tofu(tofu, toy_judge):
    def say(document, asked):
        return "I don't know that." if document["split"] == "forget" else document["answer"]

    found = values(evaluate(SayingLM(say), metadata={"encoder": "toy"}))
    assert 0.79 < found["forget_refusal_alignment"] < 0.8  # it does not name whom it knows nothing of
    for split in ("retain", "real_authors", "world_facts"):
        assert found[f"{split}_over_refusal_rate"] == 0


def test_an_encoder_that_is_no_name_is_refused():
    from unlearn_eval.utils.errors import UserError

    with pytest.raises(UserError, match="encoder in --metadata is 3"):
        evaluate(SayingLM(lambda doc, asked: ""), "unlearn_facts", CHOSEN | {"encoder": 3})


@pytest.mark.real_model
def test_likelihood_under_the_unedited_model(real_model, toy_judge):
    """Texts in a random order are less likely than sentences under the model that the run names."""
    from unlearn_eval.models.load import load_model
    from unlearn_eval.models.refusal_judge import base_likelihoods

    base = load_model(str(real_model))
    question = "What is the capital of France?"
    texts = ["I'm sorry, but I don't know the answer to that.", "the don't sorry answer I'm but to I know that", ""]
    good, salad, empty = base_likelihoods(
        base, [(question, text) for text in texts], PromptFormat(base.tokenizer, True)
    )
    assert good < 3 < 5 < salad
    assert empty is None
