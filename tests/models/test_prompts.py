"""From text to ids: one BOS, no token lost at the seam, exactly one end token."""

import copy

import pytest
from transformers import AutoTokenizer

from unlearn_eval.models import prompts
from unlearn_eval.models.prompt_format import PromptFormat

QUESTION = "Where was Ada Brook born?"
ANSWERS = (
    "Larkhill",
    "Ada Brook was born in Larkhill, a small town by the sea.",
    "Grünau – 北京 🙂",
    "1911",
    "x",
    " Larkhill",
    "two\nlines\n",
    "</s> is written here",
)
BOS_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def with_template(tokenizer, template):
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def encoder(tokenizer):
    return lambda text: prompts.encode_prompt(text, tokenizer)


def labels_of(tokenizer, answer, chat, prompt=None):
    prompt = PromptFormat(tokenizer, chat).render(QUESTION) if prompt is None else prompt
    ids = prompts.encode_prompt(prompt, tokenizer)
    return prompt, ids, PromptFormat(tokenizer, chat).answer_labels(prompt, ids, answer)


def test_prompts_have_one_bos(tokenizer):
    plain = prompts.encode_prompt(PromptFormat(tokenizer, False).render(QUESTION), tokenizer)
    assert plain[0] == tokenizer.bos_token_id
    assert plain.count(tokenizer.bos_token_id) == 1
    for changed in (tokenizer, with_template(tokenizer, BOS_TEMPLATE)):
        chat = prompts.encode_prompt(PromptFormat(changed, True).render(QUESTION), changed)
        assert chat.count(tokenizer.bos_token_id) == 1
        assert chat[0] == tokenizer.bos_token_id


def test_the_prompts_are_those_of_our_tasks(tokenizer):
    assert PromptFormat(tokenizer, False).render(QUESTION) == f"Question: {QUESTION}\nAnswer:"
    assert PromptFormat(tokenizer, False, "Be brief.").render(QUESTION) == f"Be brief.\n\nQuestion: {QUESTION}\nAnswer:"
    chat = PromptFormat(tokenizer, True, "Be brief.").render(QUESTION)
    assert chat.index("Be brief.") < chat.index(QUESTION)
    assert chat.endswith("<|im_start|>assistant\n")
    assert prompts.has_chat_template(tokenizer)
    assert not prompts.has_chat_template(with_template(tokenizer, None))


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("answer", ANSWERS)
def test_labels_are_the_answer_and_one_end(tokenizer, answer, chat):
    prompt, ids, labels = labels_of(tokenizer, answer, chat)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>") if chat else tokenizer.eos_token_id
    assert labels.ids[-1] == end
    assert labels.n_answer == len(labels.ids) - 1
    assert labels.text == answer
    spoken = tokenizer.decode(labels.ids[:-1], clean_up_tokenization_spaces=False)
    assert spoken == (answer if chat or answer[0].isspace() else " " + answer)
    assert tokenizer.decode([*ids, *labels.ids[:-1]], clean_up_tokenization_spaces=False) == (
        tokenizer.decode(ids, clean_up_tokenization_spaces=False) + spoken
    )


def test_the_seam_is_the_whole_texts_where_possible(tokenizer):
    prompt, ids, labels = labels_of(tokenizer, "Larkhill by the sea.", chat=False)
    assert [*ids, *labels.ids[:-1]] == tokenizer.encode(prompt + " Larkhill by the sea.")


def test_no_answer_token_is_lost_when_a_token_spans_the_seam(tokenizer):
    prompt = "Question: where?\nAnswer: "  # its trailing space would merge with the first word
    whole = tokenizer.encode(prompt + "Larkhill")
    _, ids, labels = labels_of(tokenizer, "Larkhill", chat=False, prompt=prompt)
    assert whole[: len(ids)] != ids  # the case at hand
    assert tokenizer.decode(labels.ids[:-1]) == "Larkhill"
    assert labels.n_answer >= 1
    assert labels.ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("answer", ["", " ", "\n"])
@pytest.mark.parametrize("chat", [False, True])
def test_an_empty_answer_has_no_tokens(tokenizer, answer, chat):
    assert labels_of(tokenizer, answer, chat)[2].n_answer == 0


@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>\n{% endfor %}", "<|im_end|>"),
        ("{% for m in messages %}{{ m['content'] }}</s>{% endfor %}", "</s>"),
        ("{% for m in messages %}{{ m['content'] }}<|im_end|></s>\n{% endfor %}", "<|im_end|>"),
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}", "</s>"),  # no special token
        ("{% for m in messages %}{{ m['content'] }}{{ end }}{% endfor %}", "<|im_start|>"),
    ],
)
def test_the_end_of_turn_is_the_templates_first_special_token(tokenizer, template, end):
    changed = with_template(tokenizer, template)
    options = {"end": "<|im_start|>"} if "{{ end }}" in template else {}
    assert prompts.end_of_turn(changed, **options)[1] == tokenizer.convert_tokens_to_ids(end)


def test_a_tokenizer_that_closes_every_text(tokenizer):
    from tokenizers import processors

    closing = copy.deepcopy(tokenizer)
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A $B </s>",
        special_tokens=[("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)],
    )
    prompt = PromptFormat(closing, False).render(QUESTION)
    assert closing.encode(prompt)[-1] == tokenizer.eos_token_id
    assert prompts.encode_prompt(prompt, closing) == tokenizer.encode(prompt)
    assert labels_of(closing, "Larkhill", chat=False)[2] == labels_of(tokenizer, "Larkhill", chat=False)[2]


@pytest.mark.real_model
def test_the_real_tokenizer(real_model):
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    for chat in (False, True):
        for answer in ANSWERS[:5]:
            _, _, labels = labels_of(tokenizer, answer, chat)
            assert tokenizer.decode(labels.ids[:-1]).strip() == answer
            assert tokenizer.convert_ids_to_tokens(labels.ids[-1]) == "<|im_end|>"
