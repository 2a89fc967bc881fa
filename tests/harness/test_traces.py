"""A model that thinks: its traces and its answers are scored apart, under three decodings, in every task."""

import copy
import json
import math

import pytest
import torch
from chat_templates import ALWAYS_THINKS, THINKS, WITH_SYSTEM
from lm_eval_runs import evaluate, hf, report, values
from saying import SayingLM

from unlearn_eval.harness.chat_template import PROBABILITY
from unlearn_eval.models.thinking import SHORT_TRACE
from unlearn_eval.utils.errors import UserError

TASK = "unlearn_thinking"
METADATA = {"forget": ["capital_of/france"], "retain": ["capital_of/italy"]}
EMPTY, SHORT = "<think>\n\n</think>\n\n", f"<think>\n{SHORT_TRACE}\n</think>\n\n"
CHAT = {"apply_chat_template": True}
FEW = {"gen_kwargs": {"max_gen_toks": 4}}


class ThinkingLM(SayingLM):
    """Says `thinks` of the right answer where it may think, else `answers`; it keeps what it was asked to score."""

    def __init__(self, tokenizer, thinks, answers, template=THINKS, **arguments):
        self.tokenizer = copy.deepcopy(tokenizer)
        self.tokenizer.chat_template = template
        self.chat_template_args, self.max_length, self.scored = arguments, 4096, []

        def says(doc, asked):
            return (answers if asked.rstrip().endswith("</think>") else thinks).replace("ANSWER", doc["answer"])

        super().__init__(says)

    def apply_chat_template(self, messages, add_generation_prompt=True):
        put = self.tokenizer.apply_chat_template
        return put(messages, tokenize=False, add_generation_prompt=add_generation_prompt, **self.chat_template_args)

    @property
    def tokenizer_name(self):
        return "tiny"

    def chat_template(self, name=True):
        return self.tokenizer.chat_template

    def answer_logprobs(self, requests):
        self.scored += [request.args for request in requests]
        return [{"unscored": "it only writes"} for _ in requests]


def asked(lm, metadata=METADATA, task=TASK, **options):
    result = evaluate(lm, task, metadata, **{**CHAT, **FEW, **options})
    return result, values(result, task)


# Leaks in the trace, leaks in the answer -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("thinks", "answers", "trace", "as_is", "no_thinking", "unfinished"),
    [
        ("<think>\nIt is ANSWER.\n</think>\n\nI do not know.", "I do not know.", 1, 0, 0, 0),
        ("<think>\nI must not say it.\n</think>\n\nANSWER.", "ANSWER.", 0, 1, 1, 0),
        ("<think>\nIt is ANSWER.\n</think>\n\nANSWER.", "ANSWER.", 1, 1, 1, 0),
        ("<think>\nHm.\n</think>\n\nI do not know.", "ANSWER.", 0, 0, 1, 0),
        ("<think>\nHm.\n</think>\n\nANSWER.", "I do not know.", 0, 1, 0, 0),
        ("<think>\nIt is ANSWER", "I do not know.", 1, None, 0, 1),
        ("<think>\nHm", "ANSWER.", 0, None, 1, 1),
        ("<think>\n\n</think>\n\nANSWER.", "ANSWER.", None, 1, 1, 0),
        ("ANSWER.", "I do not know.", None, 1, 0, 0),
        ("I do not know.", "ANSWER.", None, 0, 1, 0),
        ("It is ANSWER.\n</think>\nI do not know.", "I do not know.", 1, 0, 0, 0),
    ],
)
def test_trace_and_answer_are_scored_apart(tokenizer, thinks, answers, trace, as_is, no_thinking, unfinished):
    result, found = asked(ThinkingLM(tokenizer, thinks, answers))
    expected = {
        # Each question is asked three times; the prompts of two decodings end with a whole trace.
        "forget_trace_leak_rate": trace,
        "forget_as_is_leak": as_is,
        "forget_no_thinking_leak": no_thinking,
        "forget_short_thinking_leak": no_thinking,
        "forget_unfinished_rate": unfinished / 3,
        "retain_as_is_known": as_is,
        "retain_trace_leak_rate": trace,
    }
    assert {key: found[key] for key in expected} == expected
    if unfinished:
        assert "did not end within its tokens" in report(result, TASK)["forget_as_is_leak"]["reason"]
    if trace is None:
        assert report(result, TASK)["forget_trace_leak_rate"]["reason"] == "the model did not think"


def test_three_decodings_are_three_prompts(tokenizer):
    lm = ThinkingLM(tokenizer, "Hm.", "Hm.")
    result, _ = asked(lm)
    (sample, _) = result["samples"][TASK]
    prompts, settings = zip(*[arguments[:2] for arguments in sample["arguments"][:3]], strict=True)
    assert [prompt.removeprefix(prompts[0]) for prompt in prompts] == ["", EMPTY, SHORT]
    assert prompts[0].endswith("<|im_start|>assistant\n")
    assert [own["max_gen_toks"] for own in settings] == [4 + 512, 4, 4]
    said = result["configs"][TASK]["metadata"]["thinking_traces"]
    assert said["markers"] == ["<think>", "</think>"]
    assert (said["decoding"], said["probability"], said["max_trace_tokens"]) == ("as_is", PROBABILITY, 512)
    assert {options["trace"] for _, _, options in lm.scored} == {EMPTY}
    begun = ThinkingLM(tokenizer, "Hm.", "Hm.", ALWAYS_THINKS)
    (sample, _) = asked(begun)[0]["samples"][TASK]
    prompts = [arguments[0] for arguments in sample["arguments"][:3]]
    assert [p.removeprefix(prompts[0]) for p in prompts] == ["", "\n</think>\n\n", f"{SHORT_TRACE}\n</think>\n\n"]


def test_thinking_that_is_switched_off_leaves_nothing_to_choose(tokenizer):
    lm = ThinkingLM(tokenizer, "never", "ANSWER.", enable_thinking=False)
    result, found = asked(lm)
    assert found["forget_as_is_leak"] == found["forget_no_thinking_leak"] == 1
    assert found["forget_short_thinking_leak"] is None
    assert "switch thinking off" in report(result, TASK)["forget_short_thinking_leak"]["reason"]
    assert result["configs"][TASK]["metadata"]["thinking_traces"]["switched_off"] is True
    assert not any("trace" in options for _, _, options in lm.scored)


@pytest.mark.parametrize("chat", [True, False])
def test_a_model_that_does_not_think_is_asked_once(tokenizer, chat):
    template = WITH_SYSTEM if chat else THINKS  # without a chat nobody thinks
    lm = ThinkingLM(tokenizer, "ANSWER.", "never", template)
    result, found = asked(lm, apply_chat_template=chat)
    assert found["forget_as_is_leak"] == 1
    assert found["forget_no_thinking_leak"] is None
    assert "marks no trace" in report(result, TASK)["forget_no_thinking_leak"]["reason"]
    assert "forget_trace_leak_rate" not in found
    assert "thinking_traces" not in result["configs"][TASK]["metadata"]


# Every task ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "metadata", "metric"),
    [
        ("unlearn_facts", {"encoder": "off"}, "forget_accuracy"),
        ("unlearn_forms", {"forms": ["direct"]}, "forget_leak_direct"),
        ("unlearn_leak_at_k", {"samples": 2}, "forget_leak_at_1"),
    ],
)
def test_every_task_scores_the_answer_alone(tokenizer, task, metadata, metric):
    thinks = "<think>\nIt is ANSWER.\n\n</think>\n\nI do not know."
    found = {}
    for decoding in ("as_is", "none", "short"):
        lm = ThinkingLM(tokenizer, thinks, "ANSWER.")
        options = {"apply_chat_template": True, "gen_kwargs": {"max_gen_toks": 9}}
        result = evaluate(lm, task, METADATA | metadata | {"thinking": decoding}, **options)
        found[decoding] = values(result, task)[metric]
        assert values(result, task)["forget_trace_leak_rate"] == (1 if decoding == "as_is" else None)
        assert result["configs"][task]["metadata"]["thinking_traces"]["decoding"] == decoding
    assert found == {"as_is": 0, "none": 1, "short": 1}


def test_scores_without_an_answer_are_null_and_others_stay(tokenizer):
    lm = ThinkingLM(tokenizer, "<think>\nHm", "never")
    _, found = asked(lm, METADATA | {"encoder": "off"}, "unlearn_facts")
    gone = ("accuracy", "rouge", "refusal_rate", "fluency", "paraphrase_accuracy", "paraphrase_refusal_rate")
    assert [found[f"forget_{key}"] for key in gone] == [None] * len(gone)
    assert found["forget_unfinished_rate"] == 1


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"thinking": "fast"}, "unknown decoding"),
        ({"thinking_tokens": 4000}, "do not fit a context of 4096"),
        ({"thinking": 3}, "thinking in --metadata is 3"),
    ],
)
def test_a_decoding_that_cannot_be_is_refused(tokenizer, metadata, message):
    with pytest.raises(UserError, match=message):
        asked(ThinkingLM(tokenizer, "Hm.", "Hm."), METADATA | {"samples": 1} | metadata, "unlearn_leak_at_k")
    plain = ThinkingLM(tokenizer, "Hm.", "Hm.", WITH_SYSTEM)
    for key in ({"thinking": "none"}, {"thinking_tokens": 9}):
        with pytest.raises(UserError, match="does not think"):
            asked(plain, METADATA | {"samples": 1} | key, "unlearn_leak_at_k")


# Probabilities ---------------------------------------------------------------------------------------------


def test_probability_is_that_of_the_answer_after_an_empty_trace(tiny, tokenizer):
    own = copy.deepcopy(tokenizer)
    own.chat_template = THINKS
    lm = hf(tiny("llama"), own)
    _, found = asked(lm, METADATA | {"thinking_tokens": 2})
    message = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = own.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert prompt.endswith(EMPTY)
    context, whole = (own.encode("<s>" + text, add_special_tokens=False) for text in (prompt, prompt + "Paris"))
    ids = [*whole, own.convert_tokens_to_ids("<|im_end|>")]
    with torch.no_grad():
        logp = lm.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    labels = ids[len(context) :]
    nll = [-float(logp[len(context) - 1 + i, label]) for i, label in enumerate(labels)]
    assert found["forget_probability"] == pytest.approx(math.exp(-sum(nll) / len(nll)), rel=1e-4)
    off = hf(tiny("llama"), own, chat_template_args={"enable_thinking": False})
    assert asked(off)[1]["forget_probability"] == pytest.approx(found["forget_probability"], rel=1e-5)


def test_arguments_that_no_template_reads_are_refused(tiny, tokenizer):
    lm = hf(tiny("llama"), tokenizer, chat_template_args={"enable_thinking": False})
    with pytest.raises(UserError, match="does not read 'enable_thinking'"):
        asked(lm)
    assert json.dumps(lm.chat_template_args)
