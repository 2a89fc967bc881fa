"""The look-up token is the subject's last one, in one tokenization of the whole prompt, for every tokenizer."""

import pytest
import torch
from tiny_models import one_thread, tiny_model, tiny_tokenizer  # noqa: F401
from tokenizers import Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from unlearn_eval.data.forget_sets import facts
from unlearn_eval.data.items import ForgetItem
from unlearn_eval.editing.requests.build import CONTEXT_SEEDS, build_requests, sample_contexts
from unlearn_eval.models import prompts
from unlearn_eval.models.load import load_model
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.utils.errors import UserError


def sentencepiece_like():
    """As Llama-2's and Gemma's: spaces are ▁, one BOS, unknown characters are spelled in byte tokens."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *map(chr, range(33, 127))]
    merges = [("▁", "P"), ("▁P", "a"), ("▁Pa", "r"), ("▁Par", "i"), ("▁Pari", "s"), ("i", "s")]
    words += [a + b for a, b in merges]
    model = BPE({w: i for i, w in enumerate(dict.fromkeys(words))}, merges, unk_token="<unk>", byte_fallback=True)
    inner = Tokenizer(model)
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


TOKENIZERS = {
    "bos": tiny_tokenizer(),
    "no_bos": tiny_tokenizer(bos=False),
    "sentencepiece": sentencepiece_like(),
    "slow": ByT5Tokenizer(),
}
KINDS_AND_CHAT = [(kind, False) for kind in TOKENIZERS] + [("bos", True), ("no_bos", True)]
CASES = {
    "plain": ("What is the capital of France?", "France"),
    "repeated": ("Is Paris in Paris, and was Paris in Roma?", "Paris"),
    "leading": ("Paris is the capital of what?", "Paris"),
    "last_word": ("Who wrote Hamlet", "Hamlet"),
    "part_of_a_word": ("Are Parisians happy?", "Paris"),
    "whole": ("Japan", "Japan"),
    "chinese": ("東京は日本の何ですか？東京の人口は？", "東京"),
    "emoji": ("Who likes 🎉🎊 and 🎉🎊?", "🎉🎊"),
    "accents": ("Who was Gödel’s friend in Zürich?", "Zürich"),
    "several_words": ("Did the question about Japan help?", "the question about Japan"),
}


def text_up_to(ids, lookup, tokenizer):
    """What the tokens up to and with the look-up token say."""
    return tokenizer.decode(ids[: lookup + 1], skip_special_tokens=True)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("kind", "chat"), KINDS_AND_CHAT)
def test_look_up_token_ends_the_subject_s_last_occurrence(kind, case, chat):
    tokenizer = TOKENIZERS[kind]
    question, subject = CASES[case]
    ids, lookup = PromptFormat(tokenizer, chat).encode_with_lookup(question, subject)
    before, after = question.rpartition(subject)[0] + subject, question.rpartition(subject)[2]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    read, short = text_up_to(ids, lookup, tokenizer), text_up_to(ids, lookup - 1, tokenizer)
    if case == "part_of_a_word":  # the token may go on after the subject, but holds its last character
        assert read.rpartition("Are ")[2].startswith("Paris")
        assert not short.endswith("Paris")
        return
    assert read.endswith(before), (read, before)
    assert whole[len(read) :].startswith(after)
    assert not short.endswith(before)  # no token earlier would do


SENTENCES = {
    "plain": ("The capital of France is", "France"),
    "repeated": ("Roma is not Paris\nParis is", "Paris"),
    "last": ("The capital of France", "France"),
    "chinese": ("東京は日本の", "日本"),
    "none": ("It lies by the sea, and", None),
    "spaces": ("  The capital of France is ", "France"),
}


@pytest.mark.parametrize("context", ["", "The question is about France. "])
@pytest.mark.parametrize("case", SENTENCES)
@pytest.mark.parametrize(("kind", "chat"), KINDS_AND_CHAT)
def test_look_up_token_of_a_sentence_stands_where_it_is_completed(kind, chat, case, context):
    """In a chat it stands in the request as well: it is looked up where the answer begins with it."""
    tokenizer = TOKENIZERS[kind]
    sentence, subject = SENTENCES[case]
    text = (context + sentence).strip()
    ids, lookup = PromptFormat(tokenizer, chat).encode_with_lookup(context + sentence, subject, "sentence")
    whole, read = tokenizer.decode(ids, skip_special_tokens=True), text_up_to(ids, lookup, tokenizer)
    content = text.rpartition(subject)[0] + subject if subject else text
    assert whole.endswith(text)
    assert read.endswith(content)
    assert len(whole) - len(read) == len(text) - len(content)  # the last time that it stands there
    assert not text_up_to(ids, lookup - 1, tokenizer).endswith(content)
    if not chat:
        assert ids == prompts.encode_prompt(text, tokenizer)


def test_subject_is_ended_by_all_of_its_bytes():
    """An emoji is four byte tokens: the look-up token is the fourth of them, though all have the same offsets."""
    for kind in ("bos", "sentencepiece", "slow"):
        tokenizer = TOKENIZERS[kind]
        ids, lookup = PromptFormat(tokenizer, False).encode_with_lookup("Who likes 🎉 most?", "🎉")
        assert "🎉" in text_up_to(ids, lookup, tokenizer)
        assert "🎉" not in text_up_to(ids, lookup - 1, tokenizer)
        assert len(ids) > lookup + 1


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(
    ("question", "content"),
    [
        ("Who wrote Hamlet?", "Who wrote Hamlet"),
        ("Who wrote “Hamlet”?!  ", "Who wrote “Hamlet"),
        ("Who wrote Hamlet (the play)?", "Who wrote Hamlet (the play"),
        ("Qui a écrit « Hamlet » ?", "Qui a écrit « Hamlet"),
        ("من كتب هاملت؟", "من كتب هاملت"),
        ("谁写了《哈姆雷特》？", "谁写了《哈姆雷特"),
        ("हैमलेट किसने लिखा।", "हैमलेट किसने लिखा"),
        ("Who wrote Hamlet", "Who wrote Hamlet"),
        ("What is 🎉?", "What is 🎉"),
    ],
)
def test_without_a_subject_the_last_word_s_last_token(kind, question, content):
    tokenizer = TOKENIZERS[kind]
    ids, lookup = PromptFormat(tokenizer, False).encode_with_lookup(question, None)
    assert text_up_to(ids, lookup, tokenizer).endswith(content)
    assert not text_up_to(ids, lookup - 1, tokenizer).endswith(content)


def test_a_question_of_signs_only_has_a_look_up_token():
    ids, lookup = PromptFormat(TOKENIZERS["bos"], False).encode_with_lookup("???", None)
    assert text_up_to(ids, lookup, TOKENIZERS["bos"]).endswith("???")


def test_the_fast_and_the_slow_way_agree():
    """A fast tokenizer without usable offsets falls back to encoding the text before."""

    class Broken:
        is_fast = True

        def __init__(self, inner, **replaced):
            self.inner, self.replaced = inner, replaced

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __call__(self, text, **options):
            return self.replaced | {k: v for k, v in self.inner(text, **options).items() if k not in self.replaced}

    for question, subject in CASES.values():
        if question == "Are Parisians happy?":
            continue
        inner = TOKENIZERS["bos"]
        right = PromptFormat(inner, True).encode_with_lookup(question, subject)
        n = len(right[0])
        assert (
            PromptFormat(Broken(inner, offset_mapping=[(0, 0)] * n), True).encode_with_lookup(question, subject)
            == right
        )
        assert PromptFormat(Broken(inner, input_ids=[7] * n), True).encode_with_lookup(question, subject) == right


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_plain_prompts_have_one_bos_and_no_end(kind):
    tokenizer = TOKENIZERS[kind]
    ids, _ = PromptFormat(tokenizer, False).encode_with_lookup("Who wrote Hamlet?", "Hamlet")
    if tokenizer.bos_token_id is not None:
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "Question: Who wrote Hamlet?\nAnswer:"


@pytest.mark.parametrize("kind", ["bos", "no_bos"])
@pytest.mark.parametrize("question", ["Who wrote Hamlet?", "  Who wrote Hamlet?\n", "東京は？", "user", "<s>"])
def test_chat_prompts_are_the_template_s(kind, question):
    tokenizer = TOKENIZERS[kind]
    ids, lookup = PromptFormat(tokenizer, True).encode_with_lookup(question, None)
    messages = [{"role": "user", "content": question}]
    expected = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)["input_ids"]
    assert ids == list(expected)
    if kind == "bos" and question != "<s>":
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids[0] == tokenizer.bos_token_id
    if question not in ("user", "<s>"):
        content = question.strip().rstrip("?？")
        assert text_up_to(ids, lookup, tokenizer).endswith(content)


def test_a_template_that_hides_the_question_is_refused():
    tokenizer = tiny_tokenizer(chat_template="{{ bos_token }}{{ messages[0]['content'] | upper }}")
    with pytest.raises(UserError, match="does not show the question 'Who wrote Hamlet"):
        PromptFormat(tokenizer, True).encode_with_lookup("Who wrote Hamlet?", "Hamlet")


def test_a_subject_that_is_not_in_the_question_is_refused():
    with pytest.raises(UserError, match="'Macbeth' does not stand in the question"):
        PromptFormat(TOKENIZERS["bos"], False).encode_with_lookup("Who wrote Hamlet?", "Macbeth")


# Requests --------------------------------------------------------------------------------------------------

ITEMS = (
    ForgetItem("a", "Who wrote Hamlet?", "Shakespeare", subject="Hamlet", group="plays"),
    ForgetItem("b", "What is the capital of Japan, and where is Japan?", "Tokyo", subject="Japan"),
    ForgetItem("c", "What is that?", "A thing"),
)
TARGETS = ["I don't have any information about that.", "I don't know.", "東京 🎉"]


@pytest.mark.parametrize(("kind", "chat"), KINDS_AND_CHAT)
def test_requests(kind, chat):
    tokenizer = TOKENIZERS[kind]
    contexts = ["The question is about Japan.", "Therefore"]
    requests = build_requests(ITEMS, TARGETS, PromptFormat(tokenizer, chat), contexts, max_length=500)
    end = tokenizer.convert_tokens_to_ids("<|end|>") if chat else tokenizer.eos_token_id
    assert [r.id for r in requests] == ["a", "b", "c"]
    assert [r.group for r in requests] == ["plays", None, None]
    for item, target, request in zip(ITEMS, TARGETS, requests, strict=True):
        assert (list(request.prompt_ids), request.lookup) == PromptFormat(tokenizer, chat).encode_with_lookup(
            item.question, item.subject
        )
        # The target: its own tokens, which say it again, then exactly one end token.
        assert request.target_ids[-1] == end
        assert list(request.target_ids).count(end) == 1
        assert tokenizer.decode(request.target_ids[:-1]).strip() == target
        assert tokenizer.bos_token_id is None or tokenizer.bos_token_id not in request.target_ids
        # The model reads prompt and target as it reads their text.
        text = PromptFormat(tokenizer, chat).render(item.question) + ("" if chat else " ") + target
        assert prompts.encode_prompt(text, tokenizer) == [*request.prompt_ids, *request.target_ids[:-1]]
        # Contexts keep the subject, and its last occurrence is still the question's.
        assert len(request.contexts) == 2
        for context, (ids, lookup) in zip(contexts, request.contexts, strict=True):
            question = f"{context} {item.question}"
            content = question[: question.rindex(item.subject) + len(item.subject)] if item.subject else question[:-1]
            assert text_up_to(ids, lookup, tokenizer).endswith(content)
            assert ids[0] == request.prompt_ids[0]
        if item.subject:
            assert tokenizer.decode(request.subject_ids, skip_special_tokens=True).strip() == item.subject
            if tokenizer.bos_token_id is not None:
                assert request.subject_ids[0] == tokenizer.bos_token_id
        else:
            assert request.subject_ids == ()
        assert len(request.rows) == 3


def test_every_fact_has_its_subject_s_token():
    tokenizer = TOKENIZERS["bos"]
    for item in facts():
        for chat in (True, False):
            ids, lookup = PromptFormat(tokenizer, chat).encode_with_lookup(item.question, item.subject)
            before = item.question.rpartition(item.subject)[0] + item.subject
            assert text_up_to(ids, lookup, tokenizer).endswith(before)


def test_a_target_without_tokens_is_refused():
    with pytest.raises(UserError, match=r"item b: the target '  ' has no tokens"):
        build_requests(ITEMS[:2], ["No.", "  "], PromptFormat(TOKENIZERS["bos"], False))


def test_as_many_targets_as_items():
    with pytest.raises(ValueError, match="zip"):
        build_requests(ITEMS, ["No."], PromptFormat(TOKENIZERS["bos"], False))


def test_a_question_that_does_not_fit_is_refused():
    tokenizer = TOKENIZERS["bos"]
    (request,) = build_requests(ITEMS[:1], TARGETS[:1], PromptFormat(tokenizer, True))
    length = len(request.prompt_ids) + len(request.target_ids)
    build_requests(ITEMS[:1], TARGETS[:1], PromptFormat(tokenizer, True), max_length=length)
    with pytest.raises(UserError, match=f"item a: question and target have {length} tokens") as error:
        build_requests(ITEMS[:1], TARGETS[:1], PromptFormat(tokenizer, True), max_length=length - 1)
    assert str(length - 1) in error.value.message
    assert "--ids" in error.value.hint
    # Contexts make prompts longer: they must fit as well.
    with pytest.raises(UserError, match="item a"):
        build_requests(
            ITEMS[:1], TARGETS[:1], PromptFormat(tokenizer, True), ["The question is about Japan."], max_length=length
        )


def test_sampled_contexts():
    model, tokenizer = tiny_model("llama"), TOKENIZERS["bos"]
    state = torch.random.get_rng_state()
    contexts = sample_contexts(model, tokenizer, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len(contexts) == len(CONTEXT_SEEDS)
    assert all(c.startswith(seed) and c.endswith(".") for c, seed in zip(contexts, CONTEXT_SEEDS, strict=True))
    assert all("\n" not in c and "<s>" not in c for c in contexts)
    assert sample_contexts(model, tokenizer, seed=3) == contexts
    assert sample_contexts(model, tokenizer, seed=4) != contexts


@pytest.mark.real_model
def test_the_real_model_s_tokenizer(real_model):
    tokenizer = load_model(str(real_model)).tokenizer
    for item in facts():
        ids, lookup = PromptFormat(tokenizer, True).encode_with_lookup(item.question, item.subject)
        messages = [{"role": "user", "content": item.question}]
        assert ids == tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        before = item.question.rpartition(item.subject)[0] + item.subject
        assert text_up_to(ids, lookup, tokenizer).endswith(before)
    (request,) = build_requests(facts().items[:1], ["I don't know."], PromptFormat(tokenizer, True))
    assert tokenizer.convert_ids_to_tokens(request.target_ids[-1]) == "<|im_end|>"
