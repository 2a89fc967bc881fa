"""What a run may say of our tasks: each option is applied or refused, and never only recorded."""

import json

import pytest
import yaml
from benchmark_data import benchmark_files, write_benchmarks
from chat_templates import SYSTEMS
from lm_eval_runs import TASKS, evaluate, hf
from saying import SayingLM
from tofu_files import write_tofu

from unlearn_eval.data.registry import is_ours
from unlearn_eval.harness.options import check_options, read_by, task_class
from unlearn_eval.metrics import contains_answer
from unlearn_eval.utils.errors import UserError

ALL = sorted(path.stem for path in TASKS.glob("*/unlearn_*.yaml"))
REFUSE = {  # a task -> why examples would make no sense
    "unlearn_forms": "few_shot is the one with examples",
    "unlearn_knowgic": "asked as they stand",
    "unlearn_muse_books": "the benchmark's own examples",
    "unlearn_muse_news": "the benchmark's own examples",
    "unlearn_rwku": "neighbors of the people to be forgotten",
    "unlearn_tofu_privacy": "after its own question alone",
    "unlearn_tofu_privacy_forget01": "after its own question alone",
    "unlearn_tofu_privacy_forget05": "after its own question alone",
    "unlearn_utility": "only lm-eval's have examples",
    "unlearn_utility_quick": "only lm-eval's have examples",
    "unlearn_wmdp": "all of its questions are to be forgotten",
}
BYPASSED = ["bypass,none", "bypass_stderr,none"]
SHORT = {"gen_kwargs": {"max_gen_toks": 4}}
FACTS = {"forget": ["capital_of/france", "capital_of/japan"], "retain": "author_of"}


class Silent(SayingLM):
    """A model that says nothing, and knows no probabilities; it keeps what it was asked."""

    def __init__(self):
        self.prompts = []
        super().__init__(lambda doc, asked: self.prompts.append(asked) or "")

    def answer_logprobs(self, requests):
        return [{"unscored": "it only writes"} for _ in requests]


@pytest.fixture
def data(tmp_path, monkeypatch):
    files = benchmark_files()
    pistol, lume = files["pistol/sample_data_1"], files["lume/retain"]
    pistol = [r | {"answer": f"{r['edge']} sold hats {i}."} for i, r in enumerate(pistol)]
    lume = [r | {"input": f"What of harbor {i}?", "output": f"Harbor {i}"} for i, r in enumerate(lume)]
    root = write_benchmarks(tmp_path / "data", pistol__sample_data_1=pistol, lume__retain=lume)
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(write_tofu(root)))
    monkeypatch.setattr("unlearn_eval.harness.tofu.RESAMPLES", 20)


# Examples --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ALL)
def test_examples_are_applied_or_refused_before_anything_is_loaded(task):
    assert is_ours(task)
    if task not in REFUSE:
        check_options([task], num_fewshot=2)
        return
    with pytest.raises(UserError, match=REFUSE[task]) as error:
        check_options([task], num_fewshot=2)
    assert error.value.message.startswith(f"{task} takes no examples (num_fewshot): ")
    assert "--num_fewshot" in error.value.hint
    check_options([task], num_fewshot=0)


APPLY = {
    "unlearn_facts": FACTS,
    "unlearn_leak_at_k": FACTS | {"samples": 1},
    "unlearn_thinking": FACTS,
    "unlearn_factual": {"forget": ["real_authors/0"]},
    "unlearn_pistol": {},
    "unlearn_lume": {},
    "unlearn_knowundo": {},
    "unlearn_counterfact": {"forget": 1},
    "unlearn_zsre": {"forget": 1},
    "unlearn_sports": {},
    "unlearn_tofu_forget01": {},
}


@pytest.mark.parametrize("task", APPLY)
def test_examples_are_retained_items_that_give_no_answer_away(data, task):
    lm = Silent()
    result = evaluate(lm, task, APPLY[task], num_fewshot=1, limit=6, **SHORT)
    assert result["n-shot"][task] == 1
    documents = [sample["doc"] for sample in result["samples"][task]]
    by_question = {own["question"]: own for own in documents}
    forgotten = [own for own in documents if own["split"].startswith("forget")]
    seen = 0
    for sample in result["samples"][task]:
        doc = sample["doc"]
        for arguments in sample["arguments"]:
            before, found, _ = arguments[0].rpartition("\n\n")
            if not found or doc["question"] not in arguments[0]:
                continue
            seen += 1
            assert doc["question"] not in before
            for own in (doc, *forgotten):
                assert not contains_answer(before, own["answer"]), (before, own["answer"])
    assert seen
    assert by_question
    plain = Silent()
    evaluate(plain, task, APPLY[task], limit=6, **SHORT)
    assert not set(plain.prompts) & set(lm.prompts), "every prompt has an example"


def test_examples_are_turns_of_a_chat_and_follow_the_seed(tiny, tokenizer):
    lm = hf(tiny("llama"), tokenizer)

    def prompts(**options):
        found = evaluate(lm, "unlearn_thinking", FACTS, apply_chat_template=True, limit=2, num_fewshot=2, **options)
        return [s["arguments"][0][0] for s in found["samples"]["unlearn_thinking"]]

    first = prompts(fewshot_random_seed=1, fewshot_as_multiturn=True, **SHORT)
    assert all(prompt.count("<|im_start|>assistant") == 3 for prompt in first)
    assert all(prompt.count("<|im_start|>user") == 3 for prompt in first)
    assert first == prompts(fewshot_random_seed=1, fewshot_as_multiturn=True, **SHORT)
    assert first != prompts(fewshot_random_seed=2, fewshot_as_multiturn=True, **SHORT)
    one_turn = prompts(fewshot_random_seed=1, fewshot_as_multiturn=False, **SHORT)
    assert all(prompt.count("<|im_start|>user") == 1 and prompt.count("\nAnswer: ") == 2 for prompt in one_turn)


def test_too_many_examples_are_refused():
    few = {"forget": ["capital_of/france"], "retain": ["capital_of/italy", "capital_of/kenya"]}
    with pytest.raises(UserError, match="has 2 retained items that hold no answer to be forgotten; 3 examples"):
        evaluate(Silent(), "unlearn_thinking", few, num_fewshot=3)
    with pytest.raises(UserError, match="2 examples are wanted for retain/capital_of/italy, and 1 retained items"):
        evaluate(Silent(), "unlearn_thinking", few, num_fewshot=2)
    with pytest.raises(UserError, match="num_fewshot is -1"):
        check_options(["unlearn_thinking"], num_fewshot=-1)


# Metadata --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ALL)
def test_every_key_of_a_task_s_metadata_is_read_or_refused(task):
    """The keys of its YAML, those that its class names, and those of all other tasks."""
    kind, own = task_class(task)
    read = kind.options(own)
    assert set(own) - {"version"} <= set(read)
    everything = {key for other in ALL for key in task_class(other)[0].options(task_class(other)[1])}
    for key in [*everything, "forgett", "Forget", "n_kept"]:
        if key in read:
            continue
        with pytest.raises(UserError, match=f"unknown key in --metadata '{key}'"):
            check_options([task], metadata={key: "x"}, strict=True)
        check_options([task, "arc_easy"], metadata={key: "x"})  # which may read it
        if key in everything:
            assert key not in read_by(task, read, {key: "x"}), "another task's key is not recorded"
            continue
        with pytest.raises(UserError, match=f"unknown key in --metadata '{key}'"):
            check_options([task], metadata={key: "x"})


WRONG = [
    ("unlearn_forms", {"n_retain": "5"}, "n_retain in --metadata is '5'"),
    ("unlearn_forms", {"n_retain": True}, "n_retain in --metadata is True"),
    ("unlearn_forms", {"n_retain": 0}, "n_retain in --metadata is 0"),
    ("unlearn_forms", {"n_retain": 2.5}, "n_retain in --metadata is 2.5"),
    ("unlearn_forms", {"seed": "x"}, "seed in --metadata is 'x'"),
    ("unlearn_forms", {"forget": 5}, "forget in --metadata is 5"),
    ("unlearn_forms", {"retain": 5}, "retain in --metadata is 5"),
    ("unlearn_leak_at_k", {"samples": "8"}, "samples"),
    ("unlearn_facts", {"split": 3}, "split in --metadata is 3"),
    ("unlearn_facts", {"forget": True}, "forget in --metadata is True"),
    ("unlearn_zsre", {"n_retain": -1}, "n_retain in --metadata is -1"),
    ("unlearn_zsre", {"forget": 0}, "forget in --metadata is 0"),
    ("unlearn_zsre", {"chat": "yes"}, "chat in --metadata is 'yes'"),
    ("unlearn_tofu", {"forget_split": 5}, "forget_split in --metadata is 5"),
    ("unlearn_lume", {"ids": 7}, "ids in --metadata is 7"),
    ("unlearn_thinking", {"thinking_tokens": 0}, "thinking_tokens in --metadata is 0"),
    ("unlearn_forms", {"split": "s.json", "forget": "capital_of"}, "'split' and 'forget' in --metadata exclude"),
    ("unlearn_zsre", {"retain": 1, "n_retain": 3}, "'retain' and 'n_retain' in --metadata exclude"),
]


@pytest.mark.parametrize(("task", "metadata", "message"), WRONG)
def test_values_of_another_kind_are_refused(data, task, metadata, message):
    with pytest.raises(UserError, match=message) as error:
        check_options([task], metadata=metadata)
    assert error.value.hint
    if len(metadata) == 1:
        with pytest.raises(UserError, match=message):
            evaluate(Silent(), task, metadata)


def test_what_another_task_reads_is_not_recorded():
    found = evaluate(Silent(), "unlearn_thinking", FACTS | {"samples": 2}, limit=1, **SHORT)
    recorded = found["configs"]["unlearn_thinking"]["metadata"]
    assert "samples" not in recorded
    assert recorded["forget"] == FACTS["forget"]


def test_the_number_of_retained_items_holds_for_named_ones():
    found = evaluate(Silent(), "unlearn_thinking", FACTS | {"n_retain": 2}, **SHORT)
    assert [s["doc"]["split"] for s in found["samples"]["unlearn_thinking"]].count("retain") == 2


# Generation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tasks", "given", "message"),
    [
        (["unlearn_facts"], {"temperature": 0.7}, "temperature has no effect on unlearn_facts"),
        (["unlearn_facts"], {"top_p": 0.9}, "top_p has no effect"),
        (["unlearn_facts"], {"temperature": 0.7, "do_sample": False}, "temperature has no effect"),
        (["unlearn_facts"], {"max_new_tokens": 8}, "max_new_tokens in --gen_kwargs is not read"),
        (["unlearn_facts", "arc_easy"], {"max_tokens": 8}, "max_tokens in --gen_kwargs is not read"),
        (["unlearn_facts"], {"max_gen_toks": "many"}, "max_gen_toks is 'many'"),
        (["unlearn_facts"], {"max_gen_toks": 0}, "max_gen_toks is 0"),
        (["unlearn_tofu_privacy"], {"max_gen_toks": 8}, "generate nothing"),
        (["unlearn_facts"], {"temperature": 0.7, "do_sample": True}, None),
        (["unlearn_facts"], {"temperature": 0}, None),
        (["unlearn_facts"], {"max_gen_toks": 8}, None),
        (["unlearn_leak_at_k"], {"temperature": 0.7}, None),
        (["unlearn_tofu_privacy", "unlearn_tofu"], {"max_gen_toks": 8}, None),
        (["arc_easy"], {"max_new_tokens": 8}, None),
    ],
)
def test_settings_of_generation_are_applied_or_refused(tasks, given, message):
    if message is None:
        check_options(tasks, gen_kwargs=given)
        return
    with pytest.raises(UserError, match=message):
        check_options(tasks, gen_kwargs=given)


def test_predict_only_scores_nothing():
    result = evaluate(Silent(), "unlearn_facts", FACTS, predict_only=True, **SHORT)
    assert [key for key in result["results"]["unlearn_facts"] if key.endswith(",none")] == BYPASSED
    assert all(sample["resps"] for sample in result["samples"]["unlearn_facts"])
    own = {"forget": FACTS["forget"], "parts": [], "n_per_bin": 1}
    found = evaluate(Silent(), "unlearn_utility", own, predict_only=True, limit=1, **SHORT)
    assert [key for key in found["results"]["unlearn_utility"] if key.endswith(",none")] == BYPASSED


def test_kept_requests_are_refused():
    with pytest.raises(UserError, match="takes no --cache_requests"):
        evaluate(Silent(), "unlearn_facts", FACTS, cache_requests=True)


# The system message ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", SYSTEMS)
@pytest.mark.parametrize("task", ["unlearn_thinking", "unlearn_utility"])
def test_a_system_message_reaches_every_prompt(tiny, tokenizer, template, task):
    import copy

    own = copy.deepcopy(tokenizer)
    own.chat_template = SYSTEMS[template]
    metadata = {"unlearn_thinking": FACTS, "unlearn_utility": {"forget": FACTS["forget"], "parts": [], "n_per_bin": 1}}
    options = {"apply_chat_template": True, "system_instruction": "Be brief.", "limit": 1}
    result = evaluate(hf(tiny("llama"), own), task, metadata[task], **options, **SHORT)
    prompts = [
        arguments[0]
        for sample in result["samples"][task]
        if sample["doc"]["split"] != "neutral"  # a document's text, without a user
        for arguments in sample["arguments"]
    ]
    assert prompts
    assert all(prompt.count("Be brief.") == 1 for prompt in prompts)
    assert "parrot" not in json.dumps(prompts)


def test_a_system_message_without_a_chat_is_a_paragraph():
    lm = Silent()
    evaluate(lm, "unlearn_thinking", FACTS, system_instruction="Be brief.", limit=1, **SHORT)
    assert all(prompt.startswith("Be brief.\n\nQuestion: ") for prompt in lm.prompts)


def test_no_yaml_fixes_the_number_of_examples():
    """lm-eval ignores --num_fewshot without a word where a task's own file says 0."""
    for path in TASKS.glob("*/*yaml"):
        content = yaml.load(path.read_text().replace("!function ", ""), Loader=yaml.SafeLoader)
        assert "num_fewshot" not in content, path
