"""Retained utility: locality bins, KL to the unedited model, lm-eval's own tasks inside ours, paired comparison."""

import json
import math
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval_runs import TASKS, evaluate, hf, report, values
from saying import SayingLM
from scipy import stats
from tiny_checkpoints import make_tiny
from tiny_models import assert_untouched, weights_of
from typer.testing import CliRunner

from unlearn_eval import metrics as m
from unlearn_eval.cli import app as cli
from unlearn_eval.data.benchmarks.facts import FACTS_FILE
from unlearn_eval.edits.base import EditInfo
from unlearn_eval.edits.dense import DenseEdit
from unlearn_eval.edits.load import describe_base
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.edits.memory.codebook import Codebook
from unlearn_eval.edits.memory.edit import MemoryEdit
from unlearn_eval.harness import borrowed, task_index
from unlearn_eval.harness.alignment import WITHOUT_EDIT
from unlearn_eval.harness.models import EditedLM
from unlearn_eval.harness.utility import BINS, DOMAIN_OF, forgotten, locality_bins
from unlearn_eval.models.scoring import Query, answer_divergences
from unlearn_eval.results.comparison import compare
from unlearn_eval.results.files import read_result, read_samples, write_result
from unlearn_eval.results.schema import Result, utc_now
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import read_jsonl

TASK = "unlearn_utility"
SHORT = {"gen_kwargs": {"max_gen_toks": 4}}
OWN = {"parts": [], "n_per_bin": 2, "forget": ["capital_of/france", "author_of/hamlet"]}
FACTS = {record["id"]: record for record in read_jsonl(FACTS_FILE)}


class Told(SayingLM):
    """A model that says what `says(document)` gives, and knows no probabilities."""

    def __init__(self, says):
        super().__init__(lambda doc, asked: says(doc))

    def answer_logprobs(self, requests):
        return [{"unscored": "it only writes"} for _ in requests]


def utility(lm, metadata=OWN, task=TASK, **options):
    result = evaluate(lm, task, metadata, **options)
    return result, values(result, task)


# Locality --------------------------------------------------------------------------------------------------


def test_every_kept_fact_is_in_the_nearest_bin():
    ids, subjects = forgotten(FACTS, {"forget": ["capital_of/france", "author_of/hamlet"]})
    found = locality_bins(FACTS, ids, subjects, n=10_000, seed=0)
    near = [key for name in BINS for key in found[name]]
    assert sorted(near) == sorted(set(FACTS) - ids)  # each once
    assert {FACTS[key]["subject"] for key in found["same_subject"]} == {"France"}
    assert {FACTS[key]["relation"] for key in found["same_relation"]} == {"capital_of", "author_of"}
    same_domain = {FACTS[key]["relation"] for key in found["same_domain"]}
    assert {DOMAIN_OF[relation] for relation in same_domain} == {"places", "culture"}
    assert not same_domain & {"capital_of", "author_of"}
    assert {DOMAIN_OF[FACTS[key]["relation"]] for key in found["random"]} == {"nature"}
    assert set(DOMAIN_OF) == {record["relation"] for record in FACTS.values()}


def test_bins_are_drawn_by_seed_without_overlap():
    ids, subjects = forgotten(FACTS, {})
    one, same, other = (locality_bins(FACTS, ids, subjects, 12, seed) for seed in (0, 0, 1))
    assert one == same != other
    drawn = [key for keys in one.values() for key in keys]
    assert len(drawn) == len(set(drawn)) == 36
    assert not set(drawn) & ids
    assert one["same_domain"] == []  # by default a fact of each relation is forgotten


def test_a_forget_set_from_a_file_shares_subjects_only(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"question": "Who rules France?", "answer": "Nobody", "subject": "France"}))
    ids, subjects = forgotten(FACTS, {"forget": str(path)})
    assert (ids, subjects) == (set(), {"France"})
    found = locality_bins(FACTS, ids, subjects, 48, 0)
    assert "capital_of/france" in found["same_subject"]
    assert found["same_relation"] == found["same_domain"] == []
    path.write_text(json.dumps({"question": FACTS["young_of/cow"]["question"], "answer": "calf"}))
    assert forgotten(FACTS, {"forget": str(path)}) == ({"young_of/cow"}, {"cow"})
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"forget": ["young_of/cow"], "retain": ["capital_of/france"]}))
    assert forgotten(FACTS, {"split": str(path)}) == ({"young_of/cow"}, {"cow"})


def test_both_ends():
    knows, table = utility(Told(lambda doc: doc["answer"] or "one two three four one two three four"))
    _, silent = utility(Told(lambda doc: "I'm sorry, I don't know."))
    for name in BINS:
        assert (table[f"{name}_accuracy"], table[f"{name}_refusal_rate"]) == (1, 0)
        assert (silent[f"{name}_accuracy"], silent[f"{name}_refusal_rate"]) == (0, 1)
    assert table["open_repetition"] == pytest.approx(1 / 5)
    assert silent["open_repetition"] == 0
    assert (table["open_words"], silent["open_words"], silent["facts_words"]) == (8, 5, 5)
    assert (table["open_refusal_rate"], silent["open_refusal_rate"]) == (0, 1)
    said = report(knows, TASK)
    assert set(said) == set(table)
    for key in ("neutral_nll", "random_cloze_probability"):
        assert table[key] is None
        assert said[key]["reason"] == "it only writes"
    assert said["neutral_kl"]["reason"] == "Told gives no distributions over its vocabulary"
    directions = knows["higher_is_better"][TASK]
    assert (directions["random_accuracy"], directions["neutral_kl"], directions["open_words"]) == (True, False, None)


@pytest.mark.parametrize("chat", [False, True])
def test_prompts_and_neutral_text(tiny, tokenizer, chat):
    """Questions by the template, passages as they are; the loss is that of the passage's own tokens."""
    model = tiny("llama")
    options = {"apply_chat_template": True, "system_instruction": "Be brief."} if chat else {}
    result, found = utility(hf(model, tokenizer, batch_size=3), limit=2, **options, **SHORT)
    samples = result["samples"][TASK]
    assert len(samples) == 2 * (len(BINS) + 2)
    losses = []
    for sample in samples:
        document, contexts = sample["doc"], [arguments[0] for arguments in sample["arguments"]]
        if document["split"] == "neutral":
            assert set(contexts) == {document["question"]}
            ids = tokenizer.encode(document["question"])
            text = tokenizer.encode(f"{document['question']} {document['answer']}")
            with torch.no_grad():
                logp = model(input_ids=torch.tensor([text])).logits[0].log_softmax(-1)
            losses.append(-np.mean([float(logp[i - 1, text[i]]) for i in range(len(ids), len(text))]))
        elif chat:
            messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": document["question"]}]
            rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            assert contexts[0] == rendered
        else:
            assert contexts[0] == f"Question: {document['question']}\nAnswer:"
    assert found["neutral_nll"] == pytest.approx(np.mean(losses), rel=1e-4)
    asked = result["configs"][TASK]["metadata"]["asked"]
    assert asked == {
        "chat": chat,
        "system_instruction": "Be brief." if chat else None,
        "fewshot_as_multiturn": True,
    }


# KL to the unedited model ----------------------------------------------------------------------------------


def plain_kl(edited, base, prompt, labels):
    """The slow obvious version: one sequence, position by position."""
    ids = torch.tensor([[*prompt, *labels]])
    with torch.no_grad():
        p, q = (model(input_ids=ids).logits[0].double().softmax(-1) for model in (base, edited))
    places = range(len(prompt) - 1, len(prompt) + len(labels) - 1)
    return [stats.entropy(p[i].numpy(), q[i].numpy()) for i in places]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_divergences_are_scipys(tiny, architecture, monkeypatch):
    base, edited = tiny(architecture), tiny(architecture, seed=1)
    queries = [Query((1, 7, 9), (4, 5, 6, 8)), Query((1,), (12,)), Query((1, 30, 31, 32, 33), (40, 41))]
    found = answer_divergences(edited, lambda: nullcontext(base), queries)
    for own, query in zip(found, queries, strict=True):
        assert own == pytest.approx(plain_kl(edited, base, query.prompt_ids, query.label_ids), rel=1e-3, abs=1e-5)
    monkeypatch.setattr("unlearn_eval.models.scoring.MAX_LOGITS", 1)  # one at a time
    alone = answer_divergences(edited, lambda: nullcontext(base), queries)
    assert alone == [pytest.approx(own, rel=1e-4, abs=1e-6) for own in found]
    assert answer_divergences(base, lambda: nullcontext(base), queries)[0] == [0, 0, 0, 0]


def test_a_token_ruled_out_counts_as_nothing_or_as_infinite(tiny):
    class Sure:
        def __init__(self, shift):
            self.shift, self.device, self.config = shift, "cpu", tiny("llama").config

        def __call__(self, input_ids, **_):
            logits = torch.zeros(*input_ids.shape, 4)
            logits[..., 3] = self.shift
            return type("Out", (), {"logits": logits})

    query = [Query((1,), (2,))]
    out, free = Sure(-math.inf), Sure(0.0)
    assert answer_divergences(free, lambda: nullcontext(out), query)[0] == [pytest.approx(math.log(4 / 3))]
    assert answer_divergences(out, lambda: nullcontext(free), query)[0] == [math.inf]


@pytest.fixture
def low_rank(tiny, tiny_folder, tmp_path):
    """The folder of an edit of the tiny model."""
    name = "model.layers.1.mlp.down_proj"
    generator = torch.Generator().manual_seed(0)
    factors = {name: (torch.randn(32, 2, generator=generator), torch.randn(2, 48, generator=generator))}
    info = EditInfo("by hand", {}, describe_base(tiny("llama"), str(tiny_folder())))
    return LowRankEdit(factors, info).save(tmp_path / "low_rank")


def test_what_is_done_to_an_edited_model_is_taken_off_with_the_edit_and_put_back(tiny_folder, low_rank):
    """Quantization, noise or teaching after an edit: who looks at the unedited model in between does not undo it."""
    lm = EditedLM(str(tiny_folder()), edit=str(low_rank), device="cpu", batch_size=4)
    edited = weights_of(lm.model)
    with lm.without_edit():
        base = weights_of(lm.model)
    name = next(name for name in edited if name.endswith("mlp.down_proj.weight"))
    weight = lm.model.get_parameter(name)

    @contextmanager
    def doubled():
        before = weight.detach().clone()
        weight.data.mul_(2)
        yield
        weight.data.copy_(before)

    with lm.changed_by(doubled):
        changed = weights_of(lm.model)
        assert torch.equal(changed[name], 2 * edited[name])
        for _ in range(2):
            with lm.without_edit():
                assert_untouched(lm.model, base)
            assert_untouched(lm.model, changed)
    assert_untouched(lm.model, edited)
    with lm.without_edit():
        assert_untouched(lm.model, base)
    assert_untouched(lm.model, edited)


def test_an_edit_is_taken_off_and_put_back(tiny, tiny_folder, tokenizer, low_rank):
    lm = EditedLM(str(tiny_folder()), edit=str(low_rank), device="cpu", batch_size=4)
    before = {name: weight.clone() for name, weight in lm.model.state_dict().items()}
    result, found = utility(lm, limit=2, **SHORT)
    assert all(torch.equal(weight, before[name]) for name, weight in lm.model.state_dict().items())
    with lm.without_edit() as base:
        assert all(torch.equal(own, base.state_dict()[name]) for name, own in tiny("llama").state_dict().items())
    expected = []
    for sample in result["samples"][TASK]:
        if (document := sample["doc"])["split"] == "neutral":
            prompt = tokenizer.encode(document["question"])
            labels = tokenizer.encode(f" {document['answer']}", add_special_tokens=False)
            expected.append(np.mean(plain_kl(lm.model, tiny("llama"), prompt, labels)))
    assert found["neutral_kl"] == pytest.approx(np.mean(expected), rel=1e-3)
    assert found["neutral_kl"] > 0.01


def test_the_unedited_model_in_four_ways(tiny, tiny_folder, tokenizer, low_rank, tmp_path):
    """Taken off, as an adapter, loaded beside an edit of whole tensors, and by its name: the same divergence."""
    import peft
    from transformers import AutoModelForCausalLM

    base = str(tiny_folder())
    lm = EditedLM(base, edit=str(low_rank), device="cpu")
    _, expected = utility(lm, limit=2, **SHORT)
    name = "model.layers.1.mlp.down_proj.weight"
    dense = DenseEdit({name: lm.model.get_parameter(name).detach().clone()}, lm.edit_info).save(tmp_path / "dense")
    adapted = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(low_rank)).eval()
    whole = EditedLM(base, edit=str(dense), device="cpu")
    assert not whole.can_be_undone
    for other, metadata in ((whole, OWN), (hf(adapted, tokenizer), OWN), (hf(whole.model, tokenizer), {"base": base})):
        _, found = utility(other, OWN | metadata, limit=2, **SHORT)
        assert found["neutral_kl"] == pytest.approx(expected["neutral_kl"], rel=1e-3)
    _, same = utility(hf(tiny("llama"), tokenizer), OWN | {"base": base}, limit=2, **SHORT)
    assert same["neutral_kl"] == 0


def test_a_memory_is_taken_off_and_put_back(tiny, tiny_folder, tmp_path):
    """A codebook that always answers: the same divergence as with the unedited model loaded beside it."""
    generator = torch.Generator().manual_seed(0)
    keys, values_ = torch.randn(2, 48, generator=generator), torch.randn(2, 32, generator=generator)
    book = Codebook(keys, values_, torch.full((2,), 1e6), torch.arange(2), ((5,), (6,)), (("a",), ("b",)))
    info = EditInfo("grace", {}, describe_base(tiny("llama"), str(tiny_folder())))
    folder = MemoryEdit("model.layers.1.mlp.down_proj", book, info).save(tmp_path / "memory")
    lm = EditedLM(str(tiny_folder()), edit=str(folder), device="cpu", batch_size=4)
    found = [utility(lm, limit=3, **SHORT)[1]["neutral_kl"] for _ in range(2)]
    lm._undo = None
    assert found[0] == found[1] == pytest.approx(utility(lm, limit=3, **SHORT)[1]["neutral_kl"], rel=1e-3)
    assert found[0] > 0.01


def test_word_salad_is_told_by_the_model_without_its_edit(tiny, tiny_folder, tokenizer, low_rank, tmp_path):
    """Taken off the edited model or its adapter, or loaded by its name: one cut, and the same answers are no text."""
    import peft
    from transformers import AutoModelForCausalLM

    base = str(tiny_folder())
    asked = {"forget": ["capital_of/france", "author_of/hamlet"], "retain": ["capital_of/italy"], "encoder": "none"}

    def judged(lm, **more):
        result = evaluate(lm, "unlearn_facts", asked | more, **SHORT)
        told = result["configs"]["unlearn_facts"]["metadata"]["alignment"]
        gibberish = {s["doc"]["id"]: s["forget_gibberish_rate"] for s in result["samples"]["unlearn_facts"]}
        return told["fluency_model"], told["nll_cut"], gibberish

    lm = EditedLM(base, edit=str(low_rank), device="cpu", batch_size=4)
    before = {name: weight.clone() for name, weight in lm.model.state_dict().items()}
    name, cut, gibberish = judged(lm)
    assert name == WITHOUT_EDIT
    assert all(torch.equal(weight, before[key]) for key, weight in lm.model.state_dict().items())
    adapted = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(low_rank)).eval()
    assert judged(hf(adapted, tokenizer)) == (WITHOUT_EDIT, pytest.approx(cut, rel=1e-4), gibberish)
    assert judged(lm, fluency_model=base) == (base, pytest.approx(cut, rel=1e-4), gibberish)
    edited = judged(hf(lm.model, tokenizer), fluency_model=base)  # its weights alone do not say what it was
    assert edited == (base, pytest.approx(cut, rel=1e-4), gibberish)
    assert judged(lm, fluency_model="off")[:2] == (None, None)
    assert judged(hf(lm.model, tokenizer))[:2] == (None, None)


def test_an_unknown_base_is_a_reason_and_a_wrong_one_an_error(tiny, tokenizer, tmp_path):
    result, found = utility(hf(tiny("llama"), tokenizer), limit=1, **SHORT)
    assert found["neutral_kl"] is None
    assert "name it with --metadata" in report(result, TASK)["neutral_kl"]["reason"]
    small = make_tiny("llama", len(tokenizer))
    small.save_pretrained(tmp_path)
    other = tokenizer.from_pretrained(tokenizer.name_or_path)
    other.add_tokens(["<another>"])
    other.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has another vocabulary"):
        utility(hf(tiny("llama"), tokenizer), OWN | {"base": str(tmp_path)}, limit=1, **SHORT)


# lm-eval's own tasks ---------------------------------------------------------------------------------------

CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}, train: {data}}}}}
training_split: train
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 3}}
"""
WRITING = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}, train: {data}}}}}
training_split: train
fewshot_split: train
test_split: test
output_type: generate_until
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["Q:"], do_sample: false, max_gen_toks: 9}}
num_fewshot: 2
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
filter_list:
  - {{name: strict-match, filter: [{{function: take_first}}]}}
  - {{name: first-word, filter: [{{function: regex, regex_pattern: "(\\\\w+)"}}, {{function: take_first}}]}}
metadata: {{version: 1}}
"""
ROLLING = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: byte_perplexity}}, {{metric: bits_per_byte}}]
metadata: {{version: 2}}
"""
GROUP = """
group: {name}
task: [t_choice, t_other]
aggregate_metric_list: [{{metric: acc, weight_by_size: true}}]
metadata: {{version: 1}}
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A folder of tasks of lm-eval's own kinds, as if lm-eval shipped it."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    folder = tmp_path / "theirs"
    folder.mkdir()
    records = [
        {"question": f"Where was {name} born?", "choices": [f"in {t}" for t in towns], "label": i % 3}
        for i, (name, *towns) in enumerate(
            (f"N{i}", "Larkhill", "Imber by the sea" * (1 + i % 2), "Sandrock") for i in range(14)
        )
    ]
    for stem, rows in (("many", records), ("few", records[:5])):
        (folder / f"{stem}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = {"t_choice": (CHOICE, "many"), "t_other": (CHOICE, "few"), "t_writing": (WRITING, "many")}
    texts |= {"t_rolling": (ROLLING, "few"), "t_gone": (CHOICE, "nowhere"), "t_group": (GROUP, "few")}
    for name, (text, data) in texts.items():
        (folder / f"{name}.yaml").write_text(text.format(name=name, data=folder / f"{data}.json"))
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    monkeypatch.setattr(borrowed, "_manager", lambda name: manager)
    return folder


PARTS = ["t_choice", "t_writing", "t_rolling", "t_group", "t_gone"]


@pytest.mark.parametrize(("chat", "limit"), [(False, 4), (True, 4), (False, None)])
def test_numbers_are_lm_evals(tiny, tokenizer, theirs, chat, limit):
    lm = hf(tiny("llama"), tokenizer)
    options = {"apply_chat_template": chat, "limit": limit, "fewshot_random_seed": 5, **SHORT}
    options["bootstrap_iters"] = borrowed.RESAMPLES  # 0.4 takes at most a hundred of them, 0.5 all
    if chat:
        options |= {"system_instruction": "Be brief.", "fewshot_as_multiturn": True}
    parts = {"one": "t_choice", "writing": "t_writing", "rolling": "t_rolling", "gone": "t_gone"}
    result, found = utility(lm, OWN | {"parts": parts}, **options)
    expected = evaluate(lm, ["t_choice", "t_writing", "t_rolling"], include_path=theirs, **options)
    assert result["results"][TASK]["sample_len"] == len(result["samples"][TASK])
    compared = 0
    for part, task in parts.items():
        for key, value in expected["results"].get(task, {}).items():
            if "," not in key:
                continue
            metric, filter_name = key.split(",")
            spread = metric.endswith("_stderr")
            own = borrowed.metric_name(part, metric.removesuffix("_stderr"), filter_name)
            got = result["results"][TASK][f"{own}_stderr,none" if spread else f"{own},none"]
            assert got == value, key
            compared += 1
    assert compared == 2 * (2 + 2 + 3)
    assert 0 < found["one_acc"] < 1
    bits = [s["bits_per_byte"] for s in expected["samples"]["t_rolling"]]
    assert found["rolling_nats_per_byte"] == pytest.approx(np.mean([-total / n for total, n in bits]))
    for name, samples in expected["samples"].items():
        ours = [s for s in result["samples"][TASK] if s["doc"].get("task") == name]
        key = {"t_choice": "one_acc", "t_writing": "writing_exact_match_strict_match"}.get(name)
        kept = [s for s in samples if s["filter"] in ("none", "strict-match")]
        assert [s["arguments"] for s in ours] == [s["arguments"] for s in kept]
        assert [s["target"] for s in ours] == [s["target"] for s in kept]
        if key:
            assert [s[key] for s in ours] == [s["acc" if name == "t_choice" else "exact_match"] for s in kept]


def test_processes_share_the_documents(theirs):
    """Two ranks ask each document once, under the number that one process gives it."""
    whole = loaded_task({"parts": ["t_choice", "t_writing"]})
    expected = dict(whole.doc_iterator(limit=3))
    shares = [dict(whole.doc_iterator(limit=3, rank=rank, world_size=2)) for rank in (0, 1)]
    assert shares[0] | shares[1] == expected
    assert len(shares[0]) + len(shares[1]) == len(expected)
    for rank, share in enumerate(shares):
        whole.build_all_requests(limit=3, rank=rank, world_size=2)
        assert {instance.doc_id for instance in whole.instances} == set(share)


def loaded_task(metadata):
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASKS / "utility"), include_defaults=False, metadata=OWN | metadata)
    task = manager.load([TASK])["tasks"][TASK]
    task.set_fewshot_seed(0)
    return task


def shipped_data(path, name=None, split=None, **_):
    """Invented records in the form of each data set that lm-eval's tasks of the shipped parts read."""
    import datasets

    towns = ["Larkhill", "Imber", "Sandrock", "Grünau"]
    rows = {
        "allenai/ai2_arc": lambda i: {
            "question": f"Where is the mill number {i}?",
            "choices": {"text": towns, "label": list("ABCD")},
            "answerKey": "ABCD"[i % 4],
        },
        "cais/mmlu": lambda i: {"question": f"{name}, number {i}?", "choices": towns, "answer": i % 4},
        "Rowan/hellaswag": lambda i: {
            "activity_label": "Walking",
            "ctx_a": f"Person {i} walks.",
            "ctx_b": "then",
            "endings": [f"goes to {town}." for town in towns],
            "label": str(i % 4),
        },
        "truthfulqa/truthful_qa": lambda i: {
            "question": f"Which town is number {i}?",
            "mc1_targets": {"choices": towns[i % 2 :], "labels": [1, 0, 0, 0][: 4 - i % 2]},
            "mc2_targets": {"choices": towns, "labels": [1, 1, 0, 0]},
        },
        "openai/gsm8k": lambda i: {"question": f"What is {i} and 1?", "answer": f"It is one more. #### {i + 1}"},
        "EleutherAI/wikitext_document_level": lambda i: {"page": f" = Mill = \n The mill {i} @-@ like all , stands . "},
    }
    made = datasets.Dataset.from_list([rows[path](i) for i in range(8)])
    if split:  # so lm-eval 0.5 asks
        return [made] * len(split)
    return datasets.DatasetDict(dict.fromkeys(("train", "validation", "test", "dev"), made))


SHIPPED = ("arc_easy", "arc_challenge", "hellaswag", "truthfulqa_mc1", "truthfulqa_mc2", "gsm8k", "wikitext", "mmlu")


def test_the_shipped_parts_are_lm_evals(tiny, tokenizer, monkeypatch):
    """lm-eval's own files for every shipped part, on invented data in their format."""
    import lm_eval.tasks

    monkeypatch.setattr("datasets.load_dataset", shipped_data)
    lm = hf(tiny("llama"), tokenizer)
    options = {"limit": 2, "fewshot_random_seed": 1, **SHORT}
    result, found = utility(lm, {"n_per_bin": 1}, **options)
    folder = Path(lm_eval.tasks.__file__).parent
    compared = set()
    for task in SHIPPED:
        own = folder / ("mmlu/default" if task == "mmlu" else task.split("_")[0])
        expected = evaluate(lm, task, include_path=own, **options)["results"][task]
        for key, value in expected.items():
            metric, _, filter_name = key.partition(",")
            if filter_name and not metric.endswith("_stderr"):
                name = borrowed.metric_name(task, metric, filter_name)
                assert found[name] == pytest.approx(value, rel=1e-12), name
                compared.add(name)
    assert len(compared) == 2 + 2 + 2 + 1 + 1 + 2 + 3 + 1
    assert report(result, TASK)["mmlu_acc"]["n"] == 2 * 57
    fixed, _ = utility(lm, OWN | {"parts": ["truthfulqa_mc1", "arc_easy"], "num_fewshot": 3}, **options)
    described = fixed["configs"][TASK]["metadata"]["borrowed"]
    assert described["truthfulqa_mc1"]["truthfulqa_mc1"]["num_fewshot"] == 0  # as lm-eval: 0 in a task's file stays
    assert described["arc_easy"]["arc_easy"]["num_fewshot"] == 3
    _, quick = utility(lm, {"n_per_bin": 1}, task=f"{TASK}_quick", **options)
    assert quick["arc_easy_acc"] == found["arc_easy_acc"]
    assert quick["mmlu_slice_acc"] is not None


def test_a_group_counts_as_one_set(tiny, tokenizer, theirs):
    lm = hf(tiny("llama"), tokenizer)
    result, found = utility(lm, OWN | {"parts": ["t_group"]}, **SHORT)
    expected = evaluate(lm, "t_group", include_path=theirs)
    assert found["t_group_acc"] == pytest.approx(expected["results"]["t_group"]["acc,none"])
    assert report(result, TASK)["t_group_acc"]["n"] == 14 + 5
    described = result["configs"][TASK]["metadata"]["borrowed"]["t_group"]
    assert {name: own["n_documents"] for name, own in described.items()} == {"t_choice": 14, "t_other": 5}


def test_examples_are_chosen_once_and_recorded(tiny, tokenizer, theirs):
    lm = hf(tiny("llama"), tokenizer)
    metadata = OWN | {"parts": PARTS, "num_fewshot": {"t_choice": 1}}
    with pytest.raises(UserError, match="in two parts"):
        utility(lm, metadata)
    metadata["parts"] = PARTS[:2]
    with pytest.raises(UserError, match="only lm-eval's have examples"):
        utility(lm, metadata, limit=3, num_fewshot=7, **SHORT)
    result, found = utility(lm, metadata, limit=3, **SHORT)
    expected = evaluate(lm, "t_choice", include_path=theirs, limit=3, num_fewshot=1)
    assert found["t_choice_acc_norm"] == expected["results"]["t_choice"]["acc_norm,none"]
    described = result["configs"][TASK]["metadata"]["borrowed"]
    assert described["t_choice"]["t_choice"]["num_fewshot"] == 1
    assert described["t_writing"]["t_writing"]["num_fewshot"] == 2
    (sample, *_) = [s for s in result["samples"][TASK] if s["doc"].get("task") == "t_choice"]
    assert sample["arguments"][0][0].count("Q:") == 2


def test_what_is_missing_says_why_and_nothing_else_is_lost(tiny, tokenizer, theirs):
    lm = hf(tiny("llama"), tokenizer)
    result, found = utility(lm, OWN | {"parts": ["t_gone", "t_other"], "part_limit": 3}, limit=9, **SHORT)
    said = report(result, TASK)
    assert found["t_gone"] is None
    assert "t_gone could not be loaded" in said["t_gone"]["reason"]
    assert "nowhere.json" in said["t_gone"]["reason"]
    assert said["t_other_acc"]["n"] == 3
    assert "missing" in result["configs"][TASK]["metadata"]["borrowed"]["t_gone"]
    alone = utility(lm, OWN, limit=9, **SHORT)[1]
    assert {key: found[key] for key in alone} == alone
    ids = [s["doc"]["id"] for s in result["samples"][TASK]]
    assert len(ids) == len(set(ids))
    assert ids[-3:] == ["t_other/0", "t_other/1", "t_other/2"]


@pytest.mark.parametrize("task", ["unlearn_utility", "unlearn_utility_quick"])
def test_without_the_hub_the_shipped_tasks_run(tiny, tokenizer, task, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: (_ for _ in ()).throw(ConnectionError("no network")))
    result = evaluate(hf(tiny("llama"), tokenizer), task, {"n_per_bin": 1}, limit=1, **SHORT)
    found, said = values(result, task), report(result, task)
    missing = result["configs"][task]["metadata"]["parts"]
    assert len(missing) >= 4
    for name in missing:
        assert found[name] is None
        assert "could not be loaded: ConnectionError: no network" in said[name]["reason"]
    assert found["random_accuracy"] is not None


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({"parts": ["arc_easier"]}, "unknown task of lm-eval 'arc_easier'(.|\n)*did you mean arc_easy"),
        ({"parts": ["nowhere.yaml"]}, "there is no task file nowhere.yaml"),
        ({"parts": [3]}, "names no task of lm-eval(.|\n)*for example"),
        ({"parts": 3}, "names no task of lm-eval"),
        ({"parts": [], "num_fewshot": {"gsm9k": 5}}, "unknown part 'gsm9k'"),
        ({"part_limit": 0}, "part_limit is 0"),
        ({"n_per_bin": "many"}, "n_per_bin is 'many'"),
        ({"forget": "capital"}, "unknown relation, fact or forget set 'capital'"),
        ({"forget": []}, "the forget set of unlearn_facts is empty"),
    ],
)
def test_bad_input(metadata, match):
    with pytest.raises(UserError, match=match):
        utility(Told(lambda doc: ""), OWN | metadata)


def test_bad_parts(theirs):
    with pytest.raises(UserError, match="num_fewshot of t_other is -1"):
        utility(Told(lambda doc: ""), OWN | {"parts": ["t_other"], "num_fewshot": -1})
    whole = loaded_task({})
    with pytest.raises(UserError, match="two parts have a metric called random_accuracy"):
        borrowed.Bundle(whole.own, [borrowed.Part("random_accuracy", {}, "missing")])
    with pytest.raises(UserError, match="takes no --samples"):
        whole.build_all_requests(samples=[0])


def test_a_task_file_of_ones_own(tiny, tokenizer, theirs, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("HF_HOME", str(theirs.parent / "hf"))
    path = str(theirs / "t_other.yaml")
    _, found = utility(hf(tiny("llama"), tokenizer), OWN | {"parts": [path]}, limit=2, **SHORT)
    assert found["t_other_acc"] is not None
    assert borrowed._manager("arc_easy").all_tasks


# Two results -----------------------------------------------------------------------------------------------


def test_mcnemar_is_scipys_and_the_sign_flip_test():
    generator = np.random.default_rng(4)
    for n in (6, 40, 400):
        before, after = generator.integers(2, size=n), (generator.uniform(size=n) < 0.7).astype(int)
        result = m.paired_comparison(before.tolist(), after.tolist())
        gained, lost = int(((after - before) > 0).sum()), int(((after - before) < 0).sum())
        assert result.p_value == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)
        assert result.test == "exact McNemar"
        if n == 40:
            theirs = stats.permutation_test(
                (after - before,), np.mean, permutation_type="samples", n_resamples=9999, rng=0
            )
            assert result.p_value == pytest.approx(theirs.pvalue, abs=0.02)
    assert m.paired_comparison([0] * 300, [1] * 300).p_value < 1e-80  # no floor of drawn signs
    assert m.paired_comparison([1, 0], [1, 0]).p_value == 1
    assert m.paired_comparison([0.5, 0.1], [0.4, 0.3]).test == "exact sign flips"
    assert m.paired_comparison([0.0] * 20, np.linspace(0.1, 1, 20)).test == "sign flips"


def written(result, path):
    """The run's result file, as `unlearn-eval eval` writes it."""
    from unlearn_eval.harness.run import _collected

    found = _collected(result)
    new = Result("evaluation", "complete", utc_now(), data=found.data, metrics=found.metrics, config=found.configs)
    return write_result(new, path, found.samples)


def test_a_name_is_looked_for_no_further_than_where_it_stands(monkeypatch):
    task_index.others_if_nowhere.cache_clear()
    assert task_index.others_if_nowhere("hellaswag", None) is None
    assert "hellaswag" in task_index.others_if_nowhere("hella_swag_1", None)
    assert (
        task_index.others_if_nowhere("acp_bench_hard", None) is None
    )  # in a file without an ending, which others include
    assert task_index.others_if_nowhere("constructor", None), "a word of many prompts, and no task"
    monkeypatch.setattr(Path, "rglob", lambda *_: pytest.fail("the files are read again"))
    assert task_index.others_if_nowhere("hellaswag", None) is None


def test_the_command_compares_by_item(tiny, tiny_folder, tokenizer, theirs, low_rank, tmp_path, monkeypatch):
    metadata = OWN | {"parts": ["t_choice", "t_rolling", "t_gone"]}
    edited = EditedLM(str(tiny_folder()), edit=str(low_rank), device="cpu")
    before = written(utility(hf(tiny("llama"), tokenizer), metadata, **SHORT)[0], tmp_path / "before.json")
    after = written(utility(edited, metadata, **SHORT)[0], tmp_path / "after.json")
    rows = {row.metric: row for row in compare(read_result(before), read_result(after))}
    scores = [[s["t_choice_acc"] for s in read_samples(path, TASK)] for path in (before, after)]
    changes = [b - a for a, b in zip(*scores, strict=True) if a is not None]
    moved = [change for change in changes if change]
    assert (rows["t_choice_acc"].paired.n, rows["t_choice_acc"].paired.test) == (14, "exact McNemar")
    assert moved
    expected = stats.binomtest(sum(change > 0 for change in moved), len(moved)).pvalue
    assert rows["t_choice_acc"].paired.p_value == pytest.approx(expected)
    for name in ("t_rolling_nats_per_byte", "neutral_nll"):
        pairs = [[s[name] for s in read_samples(path, TASK) if s[name] is not None] for path in (before, after)]
        theirs_p = stats.permutation_test(
            (np.subtract(*pairs[::-1]),), np.mean, permutation_type="samples", n_resamples=9999, rng=0
        ).pvalue
        assert rows[name].paired.p_value == pytest.approx(theirs_p, abs=0.03)
        assert rows[name].paired.difference == pytest.approx(rows[name].difference)
    assert rows["t_rolling_nats_per_byte"].paired.test == "exact sign flips"
    assert rows["neutral_nll"].paired.test == "sign flips"
    assert rows["neutral_nll"].paired.n == 32
    done = CliRunner().invoke(cli.app, ["compare", str(before), str(after)])
    assert done.exit_code == 0
    lines = {line.split()[0]: line for line in done.output.splitlines() if line.strip()}
    assert "exact" in lines["t_choice_acc"]  # the rest may be on the next line
    assert f"{expected:.3f}" in lines["t_choice_acc"]
    assert "t_gone could not be loaded" in done.output
    assert "no test of t_rolling_word_perplexity" in done.output
    other = written(evaluate(hf(tiny("llama"), tokenizer), "t_choice", include_path=theirs), tmp_path / "other.json")
    done = CliRunner().invoke(cli.app, ["compare", str(before), str(other)])
    assert isinstance(done.exception, UserError)
    assert "share no task" in done.exception.message


def test_items_are_paired_where_a_part_is_missing_in_one(tiny, tokenizer, theirs, tmp_path):
    """Documents keep their ids whatever else is asked."""
    lm = hf(tiny("llama"), tokenizer)
    results = []
    for parts in (["t_writing", "t_choice"], ["t_gone", "t_choice"]):
        path = tmp_path / f"{parts[0]}.json"
        results.append(read_result(written(utility(lm, OWN | {"parts": parts}, limit=5, **SHORT)[0], path)))
    rows = {row.metric: row for row in compare(*results)}
    assert (rows["t_choice_acc"].difference, rows["t_choice_acc"].paired.n) == (0, 5)
    assert rows["t_gone"].reason == "the first result lacks it"
