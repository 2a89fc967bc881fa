"""Every benchmark as an lm-eval task: the contract that all keep, numbers against the plain loop, bad input."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from benchmark_data import PEOPLE, RWKU_ATTACKS, TOWNS, benchmark_files, write_benchmarks
from lm_eval_runs import TASKS, evaluate, hf, report, values
from plain_loop import our_ids, token_scores
from saying import SayingLM
from tiny_checkpoints import make_tiny

from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.harness.families import FAMILIES
from unlearn_eval.utils.errors import UserError

NAMES = sorted(FAMILIES)
SHORT = {"gen_kwargs": {"max_gen_toks": 4}}
SMALL = {"counterfact": {"forget": 2}, "zsre": {"forget": 2}, "mquake": {"forget": 2}, "ripple": {"forget": 1}}


def close(got, expected):
    assert got == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture
def data(data_root, monkeypatch):
    monkeypatch.setattr("unlearn_eval.harness.tofu.RESAMPLES", 20)
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(data_root))
    monkeypatch.delenv("UNLEARN_EVAL_RETAIN_REFERENCE", raising=False)
    return data_root


class Saying(SayingLM):
    """A model that only writes what `says` gives for a document."""

    def __init__(self, says):
        super().__init__(lambda doc, asked: says(doc))


class Knowing(Saying):
    """A model that knows every answer by heart and believes no other."""

    def __init__(self):
        super().__init__(lambda doc: doc["answer"])

    def answer_logprobs(self, requests):
        responses = []
        for request in requests:
            known = request.args[1].strip() == request.doc["answer"]
            own = {"token_nll": [0.0 if known else 9.0] * 3, "hits": [known] * 3, "ranks": [1 if known else 999] * 3}
            if request.args[2].get("free_running"):
                own |= {"free_ranks": [1, 1], "prompt_confidence": 0.5}
            responses.append(own | {"n_answer": 2, "text": request.args[1]})
        return responses


def run(lm, name, metadata=None, **options):
    result = evaluate(lm, f"unlearn_{name}", SMALL.get(name, {}) | (metadata or {}), **options)
    return result, values(result, f"unlearn_{name}")


# The contract ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_keeps_the_contract(tiny, tokenizer, data, name):
    """Both forms of asking, a real model: every declared metric is reported, undefined only with a reason."""
    for chat in (False, True):
        result, found = run(hf(tiny("llama"), tokenizer), name, apply_chat_template=chat, **SHORT)
        task = f"unlearn_{name}"
        said, sizes = report(result, task), result["configs"][task]["metadata"]["split_sizes"]
        for split, keys in FAMILIES[name].columns.items():
            assert {f"{split}_{key}" for key in keys} <= found.keys()
        assert set(FAMILIES[name].overall) <= found.keys()
        assert found.keys() == said.keys() == result["higher_is_better"][task].keys()
        for metric, value in found.items():
            assert value is None or math.isfinite(value), metric
            assert value is not None or said[metric]["reason"], metric
            assert said[metric]["n"] + said[metric]["n_unscored"] > 0, metric
        # The plain files bring no such questions, and of what only the unedited model decides there is none here.
        absent = ("_alias", "_portability_", "_locality", *FAMILIES[name].rates)
        undefined = [m for m, value in found.items() if value is None and not any(part in m for part in absent)]
        assert all("fluency" in metric or metric == "privleak" or "paraphrase" in metric for metric in undefined)
        assert sum(sizes.values()) == len(result["samples"][task])
        json.dumps(result["results"][task], allow_nan=False)


@pytest.mark.parametrize("name", NAMES)
def test_limit_takes_some_of_each_split(data, name):
    result, _ = run(Saying(lambda doc: "x"), name)
    sizes = result["configs"][f"unlearn_{name}"]["metadata"]["split_sizes"]
    limited, _ = run(Saying(lambda doc: "x"), name, limit=len(sizes))
    assert [sample["doc"]["split"] for sample in limited["samples"][f"unlearn_{name}"]] == list(sizes)


@pytest.mark.parametrize("name", NAMES)
def test_both_ends(data, name):
    """What a model that knows everything says of itself, and one that only refuses: the two ends of each scale."""
    _, knows = run(Knowing(), name)
    result, refuses = run(Saying(lambda doc: "I'm sorry, but I don't know that."), name)
    directions = result["higher_is_better"][f"unlearn_{name}"]
    for metric, value in knows.items():
        key = metric.split("_", 1)[1] if "_" in metric else metric
        if key.endswith(("accuracy", "rouge1", "rouge", "rouge_f1", "exact_match")) and value is not None:
            assert (value, refuses[metric]) == (1, 0), metric
            assert directions[metric] is not metric.startswith("forget"), metric
        if key.endswith("refusal_rate"):
            assert (value, refuses[metric]) == (0, 1), metric
            assert directions[metric] is metric.startswith("forget"), metric
        if key.endswith(("preference", "exact_memorization", "extraction_strength")):
            assert value == 1, metric
            assert refuses[metric] is None, metric


def test_the_plain_index_lists_every_benchmark():
    from lm_eval.tasks import TaskManager

    names = set(TaskManager(include_path=str(TASKS), include_defaults=False).all_tasks)
    assert {f"unlearn_{name}" for name in NAMES} <= names
    for name in NAMES:
        assert (TASKS / name.removesuffix("_news").removesuffix("_books") / "README.md").is_file(), name


# Numbers ---------------------------------------------------------------------------------------------------


def own(model, tokenizer, question, answer, chat=False):
    prompt, labels = our_ids(question, answer, tokenizer, chat)
    return prompt, labels, token_scores(model, prompt, labels)


def free_running(model, prompt, gold, end):
    """PISTOL's ranks, one plain forward pass per step: gold token j in the distribution of the model's own step j."""
    ids, ranks, ended = list(prompt), [], False
    for token in gold:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        ranks.append(math.inf if ended else 1 + int((logits > logits[token]).sum()))
        ids.append(int(logits.argmax()))
        ended = ended or ids[-1] == end
    with torch.no_grad():
        p = model(input_ids=torch.tensor([list(prompt)])).logits[0].softmax(-1)
    return ranks, float(p.max(-1).values[: len(gold)].mean())


@pytest.mark.parametrize(("chat", "batch_size", "ends_early"), [(False, 4, False), (True, 1, False), (False, 3, True)])
def test_factual_is_the_plain_loop(tokenizer, data, chat, batch_size, ends_early):
    """The paper's numbers, corrected and in the form of the authors' released evaluation."""
    model = make_tiny("llama", len(tokenizer), seed=1)
    if ends_early:  # its own answers end after some tokens, before the gold answer does
        question = "Who wrote the novel 0?"
        with torch.no_grad():
            ids = tokenizer.encode(f"Question: {question}\nAnswer:")
            step = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        model.generation_config.eos_token_id = step
    result, found = run(hf(model, tokenizer, batch_size=batch_size), "factual", apply_chat_template=chat, **SHORT)
    numbers = {"forget": [], "retain": []}
    for sample in result["samples"]["unlearn_factual"]:
        document, split = sample["doc"], sample["doc"]["split"]
        prompt, labels, scores = own(model, tokenizer, document["question"], document["answer"], chat)
        ranks = scores["ranks"][:-1]
        end = model.generation_config.eos_token_id
        end = end if isinstance(end, int) else tokenizer.eos_token_id
        free, confidence = free_running(model, prompt, labels[:-1], end)
        expected = {
            "probability": math.exp(-np.mean(scores["token_nll"])),
            "mean_reciprocal_rank": np.mean([1 / rank for rank in ranks]),
            "top_hit_ratio": np.mean([rank <= 100 for rank in ranks]),
            "legacy_probability": confidence,
            "legacy_mean_reciprocal_rank": np.mean([1 / rank for rank in free]),
            "legacy_top_hit_ratio": np.mean([rank <= 100 for rank in free]),
        }
        if ends_early and document["question"].endswith("novel 0?"):
            assert free[1:] == [math.inf] * (len(free) - 1)
        for key, value in expected.items():
            close(sample[f"{split}_{key}"], value)
        numbers[split].append(expected)
    for split, items in numbers.items():
        for key in items[0]:
            close(found[f"{split}_{key}"], np.mean([item[key] for item in items]))
    close(found["combined"], 1 - found["forget_rouge1"] + found["retain_rouge1"])


def test_the_shipped_paraphrases_ask_the_same(data, tmp_path, monkeypatch):
    """One for each of the 217 questions, found by the question itself; here for two of them."""
    from unlearn_eval.data.benchmarks.factual import PARAPHRASES_FILE, factual, question_key

    shipped = json.loads(PARAPHRASES_FILE.read_text(encoding="utf-8"))
    assert len(shipped) == len(set(shipped.values())) == 217
    real = [{"question": "Who wrote 'The Great Gatsby'?", "answer": "F. Scott Fitzgerald", "perturbed_answer": ["X"]}]
    fact = [{"question": "What is the capital of Spain?", "answer": "Madrid", "perturbed_answer": ["Rome"]}]
    changed = {"tofu__real_authors_perturbed": real, "tofu__world_facts_perturbed": fact}
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(write_benchmarks(tmp_path, **changed)))
    splits = factual({"forget": "real_authors"})
    assert splits["forget"][0]["paraphrases"] == [shipped[question_key("Who wrote 'The Great Gatsby'?")]]
    assert splits["retain"][0]["paraphrases"] == ["Name Spain's capital city."]
    asked = []
    _, found = run(Saying(lambda doc: asked.append(doc["id"]) or doc["answer"]), "factual", {"forget": "real_authors"})
    assert sorted(asked) == ["real_authors/0"] * 2 + ["world_facts/0"] * 2
    assert found["paraphrase_combined"] == found["combined"] == 1


@pytest.mark.parametrize("chat", [False, True])
def test_counterfact_is_the_plain_loop(tiny, tokenizer, data, chat):
    """Within a sentence: the answer's own tokens, without the end; in the prompt, the paraphrases, the neighborhood."""
    model = tiny("llama")
    result, found = run(hf(model, tokenizer), "counterfact", apply_chat_template=chat, **SHORT)
    samples = result["samples"]["unlearn_counterfact"]
    assert {sample["doc"]["split"] for sample in samples} == {"forget", "retain", "neighbors", "forget_generation"}

    def loss(text, answer):
        if chat:
            message = [{"role": "user", "content": f"Complete this sentence: {text} ..."}]
            text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True) + text
        ids = tokenizer.encode(text)
        labels = tokenizer.encode(f"{text} {answer}")[len(ids) :]
        return np.mean(token_scores(model, ids, labels)["token_nll"])

    for sample in samples:
        document, split = sample["doc"], sample["doc"]["split"]
        if split == "forget_generation":
            continue
        texts = [document["question"], *document["paraphrases"]]
        true = [loss(text, document["answer"]) for text in texts]
        new = [loss(text, document["wrong_answers"][0]) for text in texts]
        close(sample[f"{split}_probability"], math.exp(-true[0]))
        close(sample[f"{split}_preference"], float(true[0] < new[0]))
        close(sample[f"{split}_normalised_probability"], 1 / (1 + math.exp(true[0] - new[0])))
        if split != "neighbors":
            close(sample[f"{split}_paraphrase_probability"], np.mean([math.exp(-x) for x in true[1:]]))
            close(sample[f"{split}_paraphrase_preference"], np.mean(np.less(true[1:], new[1:])))
    assert found["neighbors_preference"] is not None


def test_muse_is_the_plain_loop(tiny, tokenizer, data, tmp_path):
    """Texts are scored as they are, also with a chat template; examples come before a question; privleak."""
    from sklearn.metrics import roc_auc_score

    model = tiny("llama")
    for chat in (False, True):
        result, found = run(hf(model, tokenizer), "muse_news", apply_chat_template=chat, **SHORT)
        scores = {"forget_texts": [], "holdout_texts": []}
        for sample in result["samples"]["unlearn_muse_news"]:
            document, split = sample["doc"], sample["doc"]["split"]
            context = sample["arguments"][0][0]
            if split in scores:
                ids = tokenizer.encode(document["answer"])
                assert (context, ids[0]) == ("", tokenizer.bos_token_id)
                nll = token_scores(model, ids[:1], ids[1:])["token_nll"]
                lowest = sorted(nll, reverse=True)[: max(1, int(0.4 * len(nll)))]
                close(sample["mia_min_k_auc"]["min_k"], np.mean(lowest))
                scores[split].append(np.mean(lowest))
            elif split == "forget_knowledge":
                example, answer = document["turns"]
                if chat:
                    said = (("user", example), ("assistant", answer), ("user", document["question"]))
                    messages = [{"role": role, "content": text} for role, text in said]
                    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
                else:
                    expected = f"Question: {example}\nAnswer: {answer}\n\nQuestion: {document['question']}\nAnswer:"
                assert context == expected
            elif split == "forget_verbatim" and not chat:
                assert context == document["question"]
        truth = [0] * 4 + [1] * 4
        close(found["mia_min_k_auc"], roc_auc_score(truth, scores["forget_texts"] + scores["holdout_texts"]))
        assert found["privleak"] is None
        assert "no retain reference" in report(result, "unlearn_muse_news")["privleak"]["reason"]


def test_a_system_line_is_read_in_every_form(data):
    """Also before a sentence, an instruction or examples, by a model without a chat template; not before bare texts."""
    for name in NAMES:
        result, _ = run(Saying(lambda doc: "x"), name, system_instruction="Be brief.")
        for sample in result["samples"][f"unlearn_{name}"]:
            bare = sample["doc"]["shape"] == "bare"
            assert all(arguments[0].startswith("Be brief.") is not bare for arguments in sample["arguments"]), name


def test_lume_aggregates_twelve_parts(data):
    """ROUGE-L of completions and exact match of questions, forget inverted, harmonic mean."""
    half = lambda doc: (
        doc["answer"] if doc["id"].startswith("f") and doc["id"].endswith("0sc1") else doc["answer"] + " x"
    )
    _, found = run(Saying(half), "lume")
    assert found["forget_creative_completion_rouge"] == 1
    assert found["task_aggregate"] == 0  # no question is answered exactly, and nothing is forgotten
    forgets = lambda doc: "none" if doc["id"].startswith("f") else doc["answer"]
    assert run(Saying(forgets), "lume")[1]["task_aggregate"] == 1
    some = lambda doc: doc["answer"] if doc["id"][-4] == "0" or doc["id"].startswith("r") else "none"
    close(run(Saying(some), "lume")[1]["task_aggregate"], 12 / (6 / 0.5 + 6))  # every forget part is half said
    _, one = run(Saying(forgets), "lume", {"task": "personal"})
    assert one["task_aggregate"] is None
    assert set(one) == {m for m in one if "personal" in m or m == "task_aggregate"}


def test_pistol_goes_by_edge(data):
    says = lambda doc: doc["answer"] if doc["group"] == "A_B" or doc["split"] == "retain_far" else "none"
    result, found = run(Saying(says), "pistol", {"forget": "A_B+A_C"})
    sizes = result["configs"]["unlearn_pistol"]["metadata"]["split_sizes"]
    assert sizes == {"forget": 4, "retain_far": 2}
    assert (found["forget_rouge1"], found["forget_worst_edge_rouge1"], found["retain_far_rouge1"]) == (0.5, 1, 1)
    assert found["combined"] == 1.5
    result, found = run(Saying(says), "pistol")  # the first edge; A is in another one, too
    assert result["configs"]["unlearn_pistol"]["metadata"]["split_sizes"] == {
        "forget": 2, "retain_near": 2, "retain_far": 2,
    }  # fmt: skip
    assert (found["retain_rouge1"], found["retain_near_rouge1"], found["combined"]) == (0.5, 0, 0.5)


def test_rwku_goes_by_person_and_attack(data):
    says = lambda doc: doc["answer"] if doc["split"] == "forget_attack_reverse_query" else "none"
    result, found = run(Saying(says), "rwku", {"forget": PEOPLE[1]})
    assert {sample["doc"]["subject"] for sample in result["samples"]["unlearn_rwku"]} == {PEOPLE[1]}
    close(found["forget_attack_rouge"], 1 / 9)
    assert found["forget_attack_reverse_query_rouge"] == 1
    slugs = {kind.replace(" ", "_") for kind in RWKU_ATTACKS}
    assert {f"forget_attack_{slug}_accuracy" for slug in slugs} <= found.keys()
    contexts = {s["doc"]["split"]: s["arguments"][0][0] for s in result["samples"]["unlearn_rwku"]}
    assert contexts["forget_question"].endswith("\nQuestion: Where was Milo Fenn born?\nAnswer:")
    assert contexts["forget_attack_affirmative_suffix"].endswith("(affirmative suffix) Where was Milo Fenn born?")
    assert "Question: (incontext" not in contexts["forget_attack_incontext_learning"]


def test_rwku_s_texts_are_told_apart_by_their_losses(data, tiny, tokenizer):
    result = evaluate(hf(tiny("llama"), tokenizer), "unlearn_rwku", {"forget": PEOPLE[1]})
    own, found = {"forget_texts": [], "retain_texts": []}, values(result, "unlearn_rwku")
    for sample in result["samples"]["unlearn_rwku"]:
        if sample["doc"]["split"] in own:
            own[sample["doc"]["split"]] += [
                s["mia_loss"] for s in sample.values() if isinstance(s, dict) and "mia_loss" in s
            ][:1]
    assert [len(losses) for losses in own.values()] == [3, 3]
    forget, retain = own.values()
    close(found["forget_texts_mia_loss"], sum(forget) / 3)
    close(found["mia_loss_auc"], sum(r > f for r in retain for f in forget) / 9)
    assert 0 <= found["mia_zlib_auc"] <= 1


@pytest.mark.parametrize(
    ("name", "metric", "compat", "change", "value"),
    [
        ("rwku", "forget_question_rouge", None, str.lower, 0),  # RWKU's counts case
        ("rwku", "forget_question_rouge", None, lambda text: f"{text}. It is.", 1),
        ("rwku", "forget_question_rouge", None, lambda text: f"{text}, it is.", 0),
        ("pistol", "forget_rouge1", None, str.lower, 1),
        ("muse_news", "forget_verbatim_rouge_f1", None, lambda text: text.replace("wrote", "writing"), 1 - 1 / 17),
        ("muse_news", "forget_verbatim_rouge_f1", "muse", lambda text: text.replace("novel", "novels"), None),
        ("muse_news", "forget_verbatim_rouge_f1", "openunlearning", lambda text: text.replace("novel", "novels"), 1),
    ],
)
def test_overlap_is_measured_as_the_benchmark_s_authors_do(data, name, metric, compat, change, value):
    _, found = run(Saying(lambda doc: change(doc["answer"])), name, {"compat": compat} if compat else {})
    if value in (0, 1):
        assert found[metric] == value
    else:  # one word of each text is another one, since nothing is stemmed
        assert 0.85 < found[metric] < 1


def test_muse_s_attacks_on_texts(tiny, tiny_folder, tokenizer, data):
    """By loss, by loss in lower case, ... as the plain loop has them; norms and a reference model where asked for."""
    from sklearn.metrics import roc_auc_score

    lm, folder = hf(tiny("llama"), tokenizer), str(tiny_folder("llama", 1))
    metadata = {"gradnorm": 2, "reference_model": folder}
    result, found = run(lm, "muse_news", metadata, **SHORT)
    losses, lower = {}, {}
    for sample in result["samples"]["unlearn_muse_news"]:
        if (document := sample["doc"])["shape"] == "bare":
            for values_of, text in ((losses, document["answer"]), (lower, document["answer"].lower())):
                ids = tokenizer.encode(text)
                values_of[document["id"]] = np.mean(token_scores(tiny("llama"), ids[:1], ids[1:])["token_nll"])
            close(sample["mia_loss_auc"]["mia_loss"], losses[document["id"]])
            close(sample["mia_lower_auc"]["mia_lower"], losses[document["id"]] / lower[document["id"]])
    truth = [key.startswith("holdout") for key in losses]
    close(found["mia_loss_auc"], roc_auc_score(truth, list(losses.values())))
    names = ("zlib", "min_k", "min_k_plus_plus", "gradnorm", "reference")
    assert all(0 <= found[f"mia_{name}_auc"] <= 1 for name in names)
    assert not {"mia_gradnorm_auc", "mia_reference_auc"} & run(lm, "muse_news", **SHORT)[1].keys()


def test_sports_prefers_one_of_the_sports(tiny, tokenizer, data):
    model = tiny("llama")
    result, _ = run(hf(model, tokenizer), "sports", {"forget": "tennis"}, **SHORT)
    samples = result["samples"]["unlearn_sports"]
    assert {s["doc"]["group"] for s in samples if s["doc"]["split"] == "forget"} == {"tennis"}
    for sample in samples:
        document = sample["doc"]
        prompt = f"Fact: Tiger Woods plays the sport of golf\nFact: {document['subject']} plays the sport of"
        ids = tokenizer.encode(prompt)
        options = [document["answer"], *document["wrong_answers"]]
        assert sorted(options) == ["chess", "golf", "rowing", "tennis"]
        labels = [tokenizer.encode(f"{prompt} {option}")[len(ids) :] for option in options]
        losses = [np.mean(token_scores(model, ids, own)["token_nll"]) for own in labels]
        close(sample[f"{document['split']}_preference"], float(losses[0] == min(losses)))


# Bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "metadata", "match"),
    [
        ("pistol", {"forget": "A_Z"}, "unknown PISTOL edge 'A_Z'(.|\n)*A_B"),
        ("pistol", {"forget": ["A_B"], "retain": ["A_B"]}, "both in forget and in retain, e.g. 'A_B/0'"),
        ("rwku", {"forget": "Ada Brok"}, "unknown person of RWKU 'Ada Brok'(.|\n)*did you mean Ada Brook"),
        ("lume", {"task": "poems"}, "unknown LUME task 'poems'"),
        ("sports", {"forget": "tenis"}, "unknown sport or athlete 'tenis'(.|\n)*tennis"),
        ("factual", {"forget": "real_author"}, "unknown part or question 'real_author'"),
        ("counterfact", {"forget": 0}, "forget in --metadata is 0"),
        ("counterfact", {"forget": 3}, "the retain set of unlearn_counterfact is empty"),
    ],
)
def test_unknown_names(data, name, metadata, match):
    with pytest.raises(UserError, match=match):
        run(Saying(lambda doc: ""), name, metadata)


@pytest.mark.parametrize(
    ("name", "path", "records", "match"),
    [
        ("lume", "lume__retain", None, "no lume/retain.json(.|\n)*forget.json"),
        ("rwku", "rwku__forget_level3", [{"query": "q", "answer": "a", "subject": "s"}], "lacks the field 'type'"),
        ("zsre", "zsre__zsre_mend_eval", [{"src": "q"}], "lacks the field 'subject'"),
        ("knowundo", "knowundo__privacy_unlearn_val", [{"text": "q", "labels": " "}], "its answer is empty"),
        ("muse_news", "muse_news__knowmem/forget_qa", "[{", "not JSON"),
        ("lume", "lume__forget", [{"id": "7", "input": "a", "output": "b", "task": "Task1"}], "ids end in sc or qa"),
        (
            "counterfact",
            "counterfact__counterfact",
            [benchmark_files()["counterfact/counterfact"][0] | {"requested_rewrite": {"prompt": "{} is"}}],
            "case 0: its requested_rewrite is not as published",
        ),
        (
            "zsre",
            "zsre__zsre_mend_eval",
            [benchmark_files()["zsre/zsre_mend_eval"][0] | {"answers": []}],
            "zsre, record 1: no answers",
        ),
    ],
)  # fmt: skip
def test_bad_files(tmp_path, monkeypatch, name, path, records, match):
    root = tmp_path / "data"
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(write_benchmarks(root, **{path: records})))
    with pytest.raises(UserError, match=match):
        run(Saying(lambda doc: ""), name)


def test_an_answer_in_its_question_is_not_an_echo(tmp_path, monkeypatch):
    records = benchmark_files()["pistol/sample_data_1"]
    records[0]["question"] += " Larkhill bricks?"
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(write_benchmarks(tmp_path, pistol__sample_data_1=records)))
    result, found = run(Saying(lambda doc: doc["question"]), "pistol")
    said = report(result, "unlearn_pistol")["forget_accuracy"]
    assert (found["forget_accuracy"], said["n"], said["n_unscored"]) == (0, 1, 1)
    assert "stands in the question" in next(iter(said["unscored_reasons"]))


def test_data_that_the_datasets_library_wrote_is_found(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(write_benchmarks(tmp_path)))
    files = benchmark_files()
    (tmp_path / "muse_books/knowmem/forget_qa.json").unlink()
    target = tmp_path / "muse_books/knowmem/forget_qa-00000-of-00001.parquet"
    datasets.Dataset.from_list(files["muse_books/knowmem/forget_qa"]).to_parquet(str(target))
    result, _ = run(Saying(lambda doc: doc["answer"]), "muse_books")
    assert result["configs"]["unlearn_muse_books"]["metadata"]["split_sizes"]["forget_knowledge"] == 2
    assert {doc["answer"] for doc in files["muse_books/knowmem/forget_qa"]} == set(TOWNS[:2])


def test_without_a_data_folder_what_is_on_no_hub_says_where_to_get_it(monkeypatch):
    monkeypatch.delenv("UNLEARN_EVAL_DATA", raising=False)
    with pytest.raises(UserError, match="UNLEARN_EVAL_DATA is not set(.|\n)*zsre/zsre_mend_eval.json(.|\n)*baulab"):
        run(Saying(lambda doc: ""), "zsre")


@pytest.mark.parametrize("folder", ["", "an empty one"])
def test_without_the_paper_s_file_there_are_athletes_of_our_own(tmp_path, monkeypatch, folder):
    monkeypatch.delenv("UNLEARN_EVAL_DATA", raising=False)
    if folder:
        monkeypatch.setenv("UNLEARN_EVAL_DATA", str(tmp_path))
    items = load_forget_set("sports:all").items
    assert Counter(item.answer for item in items) == {"football": 50, "basketball": 50, "baseball": 50}
    assert len({item.subject for item in items}) == 150
    (jordan,) = (item for item in items if item.subject == "Michael Jordan")
    assert jordan.answer == "basketball"
    assert set(jordan.perturbed_answers) == {"football", "baseball", "golf"}
