"""Models that think: recognized by their template, three decodings, and the one split of a trace from an answer."""

import copy

import pytest
from chat_templates import ALWAYS_THINKS, SYSTEMS, THINKS
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_tokenizer

from unlearn_eval.models.prompt_format import PromptFormat, check_template_arguments
from unlearn_eval.models.thinking import (
    AS_IS,
    DECODINGS,
    NONE,
    SHORT,
    SHORT_TRACE,
    Spoken,
    Thinking,
    decode_with_markers,
    special_markers,
    thinking_of,
)
from unlearn_eval.utils.errors import UserError

TOKENIZER = tiny_tokenizer(bos=False)
PLAIN = Thinking("<think>", "</think>", "<think>\n\n</think>\n\n")


def with_template(text):
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = text
    return tokenizer


@pytest.mark.parametrize(
    ("template", "markers"),
    [
        (THINKS, ("<think>", "</think>")),
        (ALWAYS_THINKS, ("<think>", "</think>")),
        ("{{ m }}[THINK]{{ r }}[/THINK]", ("[THINK]", "[/THINK]")),
        ("◁think▷{{ r }}◁/think▷", ("◁think▷", "◁/think▷")),
        ("<seed:think>{{ r }}</seed:think>", ("<seed:think>", "</seed:think>")),
        ("<thought>{{ r }}</thought>", ("<thought>", "</thought>")),
        ("{{ c.split('</reasoning>')[-1] }}", ("<reasoning>", "</reasoning>")),
        ("<|begin_of_thought|>{{ r }}<|end_of_thought|>", ("<|begin_of_thought|>", "<|end_of_thought|>")),
        ("<|START_THINKING|>{{ r }}<|END_THINKING|>", ("<|START_THINKING|>", "<|END_THINKING|>")),
        (
            "<|channel|>analysis<|message|>{{ r }}<|end|><|start|>assistant<|channel|>final<|message|>{{ c }}",
            ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
        ),
        *((template, None) for template in SYSTEMS.values()),
        (None, None),
        ("{# think twice #}{{ m['thinking'] }}", None),
    ],
)
def test_a_thinking_model_is_known_by_its_template(template, markers):
    found = thinking_of(with_template(template))
    assert (found and (found.opening, found.closing)) == markers


PROMPT, BEGUN, OVER = "user: Who?\nassistant:\n", "assistant:\n<think>\n", "assistant:\n<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("prompt", "text", "expected"),
    [
        (PROMPT, "Paris.", Spoken("", "Paris.")),
        (PROMPT, "<think>\nIt is Paris.\n</think>\n\nI do not know.", Spoken("It is Paris.", "I do not know.")),
        (PROMPT, "<think>\n\n</think>\n\nParis.", Spoken("", "Paris.")),
        (PROMPT, "<think>\nIt is", Spoken("It is", "", finished=False)),
        (PROMPT, "\n <think>It is", Spoken("It is", "", finished=False)),
        (PROMPT, "It is Paris.\n</think>\nNo.", Spoken("It is Paris.", "No.")),
        (PROMPT, "<think>a</think>b</think>c", Spoken("a</think>b", "c")),
        (PROMPT, "I think <think> is a tag.", Spoken("", "I think <think> is a tag.")),
        (PROMPT, "", Spoken("", "")),
        (BEGUN, "It is Paris.\n</think>\n\nNo.", Spoken("It is Paris.", "No.")),
        (BEGUN, "It is", Spoken("It is", "", finished=False)),
        (OVER, "Paris.", Spoken("", "Paris.")),
        (OVER, "<think>", Spoken("", "<think>")),
    ],
)
def test_trace_and_answer_are_split_in_one_place(prompt, text, expected):
    assert PLAIN.split(prompt, text) == expected


text = st.text(st.characters(exclude_characters="<>"), max_size=40)


@given(text, text)
@settings(max_examples=50)
def test_any_trace_and_answer_come_back(trace, answer):
    found = PLAIN.split(PROMPT, f"<think>\n{trace}\n</think>\n\n{answer}")
    assert (found.trace, found.answer, found.finished) == (trace.strip(), answer.lstrip(), True)
    assert PLAIN.split(OVER, answer) == Spoken("", answer)


@pytest.mark.parametrize(
    ("prompt", "decoding", "added"),
    [
        (PROMPT, AS_IS, ""),
        (PROMPT, NONE, "<think>\n\n</think>\n\n"),
        (PROMPT, SHORT, f"<think>\n{SHORT_TRACE}\n</think>\n\n"),
        (BEGUN, AS_IS, ""),
        (BEGUN, NONE, "\n</think>\n\n"),
        (BEGUN, SHORT, f"{SHORT_TRACE}\n</think>\n\n"),
        (OVER, AS_IS, ""),
        (OVER, NONE, ""),
        (OVER, SHORT, None),
    ],
)
def test_a_decoding_continues_the_prompt(prompt, decoding, added):
    assert PLAIN.continued(prompt, decoding) == added


def test_no_thinking_is_what_the_template_itself_writes():
    tokenizer = with_template(THINKS.replace("<think>\n\n</think>\n\n", "<think></think>\n"))
    off = PromptFormat(tokenizer, True, template_arguments={"enable_thinking": False})
    as_it_is = PromptFormat(tokenizer, True)
    assert thinking_of(tokenizer).empty == "<think></think>\n"
    assert as_it_is.render_to_answer("Who?") == off.render("Who?") == off.render_to_answer("Who?")
    always = PromptFormat(with_template(ALWAYS_THINKS), True)
    assert always.render_to_answer("Who?").endswith("<think>\n\n</think>\n\n")
    assert PromptFormat(with_template(SYSTEMS["with"]), True).render_to_answer("Who?").endswith("assistant\n")


def test_all_decodings_lead_to_an_answer():
    thinking = thinking_of(with_template(THINKS))
    for prompt in (PROMPT, BEGUN):
        for decoding in DECODINGS[1:]:
            whole = prompt + thinking.continued(prompt, decoding)
            assert thinking.over(whole)
            assert thinking.split(whole, "Paris.") == Spoken("", "Paris.")


def test_markers_that_are_special_tokens_are_not_decoded_away():
    tokenizer = with_template("[THINK]{{ r }}[/THINK]")
    assert not special_markers(tokenizer)  # several tokens, none of them special
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    markers = special_markers(tokenizer)
    ids = tokenizer.encode("[THINK]Paris[/THINK]No</s>", add_special_tokens=False)
    assert len(markers) == 2
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ParisNo"
    assert decode_with_markers(tokenizer.decode, ids, markers) == "[THINK]Paris[/THINK]No"


# Arguments and system messages -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "arguments", "message"),
    [
        (THINKS, {"enable_thinking": False}, None),
        (THINKS, {}, None),
        (THINKS, {"enable_thoughts": False}, "does not read 'enable_thoughts'"),
        (THINKS, {"enable": False}, "does not read 'enable'"),
        (THINKS, {"add_generation_prompt": False}, "does not read 'add_generation_prompt'"),
        (THINKS, {"messages": []}, "does not read 'messages'"),
        (THINKS, {"tokenize": True}, "does not read 'tokenize'"),
        (SYSTEMS["with"], {"enable_thinking": True}, "does not read 'enable_thinking'"),
        ("{{ date_string }}", {"date_string": "1 May"}, None),
        ("{{ m.date_string }}", {"date_string": "1 May"}, "does not read 'date_string'"),
        (None, {"enable_thinking": False}, "prompts go through none"),
        (None, {}, None),
    ],
)
def test_arguments_that_a_template_would_not_read_are_refused(template, arguments, message):
    tokenizer = with_template(template)
    if message is None:
        check_template_arguments(tokenizer, arguments)
        assert PromptFormat.of(tokenizer, template_arguments=arguments).template_arguments == arguments
        return
    for refused in (check_template_arguments, lambda own, given: PromptFormat.of(own, template_arguments=given)):
        with pytest.raises(UserError, match=message) as error:
            refused(tokenizer, arguments)
        assert error.value.hint


@pytest.mark.parametrize("template", SYSTEMS)
def test_a_system_message_reaches_every_model(template):
    tokenizer = with_template(SYSTEMS[template])
    told = PromptFormat(tokenizer, True, "Be brief.").render("Who?")
    assert told.count("Be brief.") == 1
    assert told.index("Be brief.") < told.index("Who?")
    folded = "<|im_start|>user\nBe brief.\n\nWho?<|im_end|>" in told
    assert folded == (template in ("refuses", "drops", "folds"))
    assert "parrot" not in told
    plain = PromptFormat(tokenizer, True).render("Who?")
    assert plain != told
    assert "<|im_start|>user\nWho?<|im_end|>" in plain
