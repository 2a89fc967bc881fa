"""One object from a question to ids: the same ids, labels and look-ups as a slow reference, and as ever."""

import copy
import dataclasses
import hashlib
import json
import string
import unicodedata
from types import SimpleNamespace

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoTokenizer

from unlearn_eval.attacks.run import AttackConfig, _format_for
from unlearn_eval.data.forget_sets import facts
from unlearn_eval.data.shapes import SHAPES, Prompt, asked
from unlearn_eval.edits.base import EditInfo, applied
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.models import weights
from unlearn_eval.models.anatomy import anatomy
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.prompt_format import PromptFormat, as_shown
from unlearn_eval.models.weights import hash_weights
from unlearn_eval.utils.errors import UserError

TOKENIZERS = {
    "bos": tiny_tokenizer(),
    "no bos": tiny_tokenizer(bos=False),
    "bos, template without": tiny_tokenizer(chat_template=tiny_tokenizer(bos=False).chat_template),
}
# (text, its subject, answer)
TEXTS = (
    ("Who wrote Hamlet?", "Hamlet", "Shakespeare"),
    ("  Who likes Grünau, 北京 or 🎉 most?! ", None, "Ada"),
    ("Who wrote Hamlet, and is Hamlet a play?", "Hamlet", " Shakespeare wrote it."),
    ("__ wrote Hamlet in 1600.", "Hamlet", "I don't know.\n"),
)


# A slow reference, written down without the code -------------------------------------------------------------


def reference_text(question, shape, tokenizer, chat, system=None):
    """The prompt as text, and where in it the question begins."""
    stripped = question.strip()
    message = {
        "question": question,
        "sentence": f"Complete this sentence: {stripped} ...",
        "text": f"Continue this text:\n\n{stripped}",
        "blank": f"Please complete the blank in the following question.\nQuestion: {stripped}",
        "brief": f"Please briefly answer the following question.\nQuestion: {stripped}",
    }[shape]
    if chat:
        messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": message}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text + {"sentence": stripped, "blank": "Answer:", "brief": "Answer:"}.get(shape, "")
    plain = {
        "question": f"Question: {question}\nAnswer:",
        "sentence": stripped,
        "text": stripped,
        "blank": f"{message}\nAnswer:",
        "brief": f"{message}\nAnswer:",
    }[shape]
    return (f"{system}\n\n" if system else "") + plain


def reference_ids(text, tokenizer):
    bos = tokenizer.bos_token
    ids = tokenizer.encode(text, add_special_tokens=False)
    return ids if bos is None or text.startswith(bos) else [tokenizer.bos_token_id, *ids]


def reference_labels(text, answer, shape, tokenizer, chat):
    """The answer's ids and one end token; no token of these tokenizers spans the seam."""
    begun = chat and shape in ("sentence", "blank", "brief")
    space = " " if begun or not (chat or answer[0].isspace()) else ""
    ids = reference_ids(text + space + answer, tokenizer)[len(reference_ids(text, tokenizer)) :]
    return [*ids, tokenizer.convert_tokens_to_ids("<|end|>" if chat else "</s>")]


def reference_lookup(text, question, subject, tokenizer):
    """The token before which the text up to the subject's end, or the last word's, is not yet whole."""
    question = question if question in text else question.strip()
    content = subject or question.rstrip(string.punctuation + string.whitespace)
    while unicodedata.category(content[-1])[0] in "PZC":
        content = content[:-1]
    n_bytes = len((text[: text.rindex(question)] + question[: question.rindex(content)] + content).encode())
    ids = reference_ids(text, tokenizer)
    first = 1 if tokenizer.bos_token is not None and not text.startswith(tokenizer.bos_token) else 0
    done = 0
    for i, token in enumerate(ids[first:], first):
        piece = tokenizer.convert_ids_to_tokens(token)
        # Of a byte-level token each character is a byte; special tokens stand as they are.
        done += len(piece)
        if done >= n_bytes:
            return i
    raise AssertionError(text)


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_labels_and_lookups_are_the_references(name, shape, chat):
    tokenizer = TOKENIZERS[name]
    for system in (None, "Be brief."):
        prompt_format = PromptFormat(tokenizer, chat, system)
        for question, subject, answer in TEXTS:
            ask = asked(question, shape)
            text = reference_text(question, shape, tokenizer, chat, system)
            ids = reference_ids(text, tokenizer)
            assert prompt_format.render(ask) == text
            assert prompt_format.encode(text) == ids
            assert ids.count(tokenizer.bos_token_id) == (tokenizer.bos_token is not None)
            assert prompt_format.prompt_ids(question, shape) == tuple(ids)
            labels = prompt_format.labels_after(ask, text, ids, answer)
            assert list(labels.ids) == reference_labels(text, answer, shape, tokenizer, chat)
            assert labels.n_answer == len(labels.ids) - 1
            assert labels.text.strip() == answer.strip()
            lookup = reference_lookup(text, question, subject, tokenizer)
            assert prompt_format.encode_with_lookup(question, subject, shape) == (ids, lookup)
            if subject:
                start, end = prompt_format.subject_span(text, as_shown(question, shape, text), subject, ids)
                assert end == lookup + 1
                assert subject in tokenizer.decode(ids[start:end])


# The default model's tokenizer, as of version 0.1 ------------------------------------------------------------

OPENING = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2]
OPENING += [198, 1, 4093]  # its template's system message, and "user"
TURN = [2, 198, 1, 520, 9531, 198]
# (text, subject, shape, answer): in a chat (ids after the opening, look-up, labels), and plain (ids, look-up, labels)
FROZEN = {
    ("Who wrote Hamlet?", "Hamlet", "question", "Shakespeare"): (
        ([198, 10576, 4150, 24630, 47, *TURN], 26, [4370, 10735, 2]),
        ([17872, 42, 6244, 4150, 24630, 47, 198, 21350, 42], 4, [12081, 2]),
    ),
    ("  Who likes Grünau, 北京 or 🎉 most?! ", None, "question", "Ada"): (
        (
            [3805, 6244, 15044, 9171, 47682, 603, 28, 13223, 230, 241, 16736, 122, 355, 15107, 232, 227, 768, 17593]
            + [216, *TURN],
            39,
            [4503, 81, 2],
        ),
        (
            [17872, 42, 256, 6244, 15044, 9171, 47682, 603, 28, 13223, 230, 241, 16736, 122, 355, 15107, 232, 227, 768]
            + [17593, 216, 198, 21350, 42],
            18,
            [34099, 2],
        ),
    ),
    ("Ada Brook plays the sport of", "Ada Brook", "sentence", "golf"): (
        (
            [198, 34486, 451, 6330, 42, 34099, 15907, 4566, 260, 7807, 282, 4563, *TURN]
            + [4503, 81, 15907, 4566, 260, 7807, 282],
            43,
            [18355, 2],
        ),
        ([4503, 81, 15907, 4566, 260, 7807, 282], 2, [18355, 2]),
    ),
    ("Ada Brook was born", None, "text", "in Larkhill."): (
        ([198, 26226, 451, 1694, 42, 198, 198, 4503, 81, 15907, 436, 3988, *TURN], 34, [254, 450, 792, 17925, 30, 2]),
        ([4503, 81, 15907, 436, 3988], 4, [281, 450, 792, 17925, 30, 2]),
    ),
    ("__ wrote Hamlet in 1600.", "Hamlet", "blank", "Shakespeare"): (
        (
            [198, 10180, 2994, 260, 8884, 281, 260, 1695, 1962, 30, 198, 17872, 42, 2758, 4150, 24630, 281, 216, 33, 38]
            + [32, 32, 30, *TURN, 21350, 42],
            38,
            [12081, 2],
        ),
        (
            [10180, 2994, 260, 8884, 281, 260, 1695, 1962, 30, 198, 17872, 42, 2758, 4150, 24630, 281, 216, 33, 38, 32]
            + [32, 30, 198, 21350, 42],
            14,
            [12081, 2],
        ),
    ),
    ("Who wrote Hamlet?", "Hamlet", "brief", "Shakespeare"): (
        (
            [198, 10180, 13099, 2988, 260, 1695, 1962, 30, 198, 17872, 42, 6244, 4150, 24630, 47, *TURN, 21350, 42],
            36,
            [12081, 2],
        ),
        (
            [10180, 13099, 2988, 260, 1695, 1962, 30, 198, 17872, 42, 6244, 4150, 24630, 47, 198, 21350, 42],
            12,
            [12081, 2],
        ),
    ),
}
# SHA-256 of the 704 facts' ids, look-ups and labels, as a chat and plain.
ALL_FACTS = "906c290b1552943c3d4844835bfc555d2b75f4b86df0cd9df9ce965647a071de"


def found(prompt_format, question, subject, shape, answer):
    ids, lookup = prompt_format.encode_with_lookup(question, subject, shape)
    ask = asked(question, shape)
    text = prompt_format.render(ask)
    assert prompt_format.encode(text) == ids
    return ids, lookup, list(prompt_format.labels_after(ask, text, ids, answer).ids)


@pytest.mark.real_model
def test_the_default_model_reads_what_it_has_always_read(real_model):
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    for question, (in_chat, plain) in FROZEN.items():
        ids, lookup, labels = in_chat
        assert found(PromptFormat(tokenizer, True), *question) == ([*OPENING, *ids], lookup, labels)
        assert found(PromptFormat(tokenizer, False), *question) == plain
    rows = [
        list(found(PromptFormat(tokenizer, chat), item.question, item.subject, item.shape, item.answer))
        for chat in (True, False)
        for item in facts()
    ]
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == ALL_FACTS


# Which format it is ------------------------------------------------------------------------------------------


def without_template(tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    return bare


def test_a_chat_template_is_used_if_there_is_one():
    tokenizer = TOKENIZERS["bos"]
    bare = without_template(tokenizer)
    assert [PromptFormat.of(own, chat).chat for own in (tokenizer, bare) for chat in (None, False)] == [
        True, False, False, False,
    ]  # fmt: skip
    assert PromptFormat.of(tokenizer, True) == PromptFormat(tokenizer, True)
    with pytest.raises(UserError, match="gpt2 has no chat template") as error:
        PromptFormat.of(bare, True, "gpt2")
    assert "--chat" in error.value.hint


def test_arguments_of_the_template_are_in_every_text():
    template = (
        "{% for m in messages %}<|start|>{{ m['role'] }} {{ m['content'] }}{{ mark }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>{{ 'thinks' if thinking else 'says' }} {% endif %}"
    )
    tokenizer = tiny_tokenizer(chat_template=template)
    plain = PromptFormat(tokenizer, True)
    changed = dataclasses.replace(plain, template_arguments={"thinking": True, "mark": "<|start|>"})
    assert plain.render("Who?") == "<|start|>user Who?<|end|><|start|>says "
    assert changed.render("Who?") == "<|start|>user Who?<|start|><|end|><|start|>thinks "
    assert changed.render(Prompt("And?", (("Who?", "Ada"),))).endswith("user And?<|start|><|end|><|start|>thinks ")
    ends = [
        own.labels_after("Who?", own.render("Who?"), own.prompt_ids("Who?"), "Ada").ids[-1] for own in (plain, changed)
    ]
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|end|>", "<|start|>"]
    model = tiny_model("llama")
    assert [set(own.end_tokens(model)) for own in (plain, changed)] == [{1, ends[0]}, {1, ends[1]}]


def test_an_edit_keeps_its_format():
    tokenizer = TOKENIZERS["bos"]
    assert PromptFormat(tokenizer, False).record == {"chat": False}
    assert PromptFormat(tokenizer, True).record == {"chat": True}  # as edits of version 0.1 have it
    chosen = PromptFormat(tokenizer, True, "Be brief.", {"enable_thinking": False})
    record = json.loads(json.dumps(chosen.record))
    assert record == {"chat": True, "system": "Be brief.", "chat_template_kwargs": {"enable_thinking": False}}
    for prompt_format in (chosen, PromptFormat(tokenizer, False), PromptFormat(tokenizer, False, "Be brief.")):
        info = EditInfo("memit", {}, requests={"n": 1, **prompt_format.record})
        assert PromptFormat.of_edit(info, tokenizer) == prompt_format
    unknown = EditInfo("memit", {}, requests={"n": 1})
    assert PromptFormat.of_edit(unknown, tokenizer).chat
    assert not PromptFormat.of_edit(unknown, without_template(tokenizer)).chat
    with pytest.raises(UserError, match="gpt2 has no chat template"):
        PromptFormat.of_edit(EditInfo("memit", {}, requests=record), without_template(tokenizer), "gpt2")


def test_an_attack_asks_as_the_edit_was_made_unless_told_otherwise():
    own = LoadedModel(None, TOKENIZERS["bos"], "tiny", None, "tiny")
    edit = SimpleNamespace(info=EditInfo("memit", {}, requests={"chat": False, "system": "Be brief."}))
    config = AttackConfig("relearn", "an/edit")
    assert _format_for(config, edit, own) == PromptFormat(own.tokenizer, False, "Be brief.")
    assert _format_for(dataclasses.replace(config, chat=True), edit, own) == PromptFormat(own.tokenizer, True)


def test_another_model_is_asked_alike():
    first, second = TOKENIZERS["bos"], TOKENIZERS["no bos"]
    other = PromptFormat(first, True, "Be brief.").with_tokenizer(second)
    assert other == PromptFormat(second, True, "Be brief.")


# A model that knows itself -----------------------------------------------------------------------------------


def loaded(architecture="llama", **options):
    return LoadedModel(tiny_model(architecture), tiny_tokenizer(**options), "tiny", None, "a/tiny", notes=("made",))


def test_weights_are_hashed_once(monkeypatch):
    own, calls = loaded(), []
    monkeypatch.setattr(weights, "hash_weights", lambda model: calls.append(model) or hash_weights(model))
    assert own.weights == hash_weights(own.model)
    assert own.weights is own.weights
    assert len(calls) == 1
    assert loaded().weights == own.weights  # of another load they are hashed again
    assert len(calls) == 2


def test_changed_weights_are_hashed_again(monkeypatch):
    own, calls = loaded(), []
    monkeypatch.setattr(weights, "hash_weights", lambda model: calls.append(model) or hash_weights(model))
    before = own.weights
    name = own.anatomy.projection_name(1)
    edit = LowRankEdit({name: (torch.ones(16, 1), torch.ones(1, 24))}, EditInfo("memit", {}))
    other = LowRankEdit({name: (torch.ones(16, 1), -torch.ones(1, 24))}, EditInfo("memit", {}))
    with applied(edit, own.model):
        changed = own.weights
        assert changed == hash_weights(own.model) != before
        with applied(other, own.model):
            assert own.weights == hash_weights(own.model) not in (before, changed)
        assert own.weights == changed
    n = len(calls)
    assert own.weights == before == hash_weights(own.model)
    with applied(edit, own.model):
        pass
    assert own.weights == before
    assert len(calls) == n + 1  # for the hash of the edited model was kept last; restoring alone costs none
    with torch.no_grad():
        own.model.get_parameter(f"{name}.weight")[0, 0] += 1  # nobody restores it
    assert own.weights == hash_weights(own.model) != before
    own.model.to(torch.bfloat16)
    assert own.weights == hash_weights(own.model)


def test_what_a_model_knows_of_itself():
    own = loaded("gpt2")
    assert own.max_length == 512
    assert own.anatomy == anatomy(own.model)
    assert own.device.type == "cpu"
    assert own.device_map == {"": own.device}
    assert own.prompt_format() == PromptFormat(own.tokenizer, True)
    assert own.prompt_format(False) == PromptFormat(own.tokenizer, False)
    assert not loaded(chat_template=None).prompt_format().chat
    with pytest.raises(UserError, match="tiny has no chat template"):
        loaded(chat_template=None).prompt_format(True)
    own.model.config.max_position_embeddings = None
    assert own.max_length is None


def test_the_description_of_a_model():
    own = loaded()
    description = own.describe(own.weights)
    assert description == {
        "id": "tiny",
        "revision": None,
        "path": "a/tiny",
        "source": None,
        "weights_hash": hash_weights(own.model).exact,
        "canonical_weights_hash": hash_weights(own.model).canonical,
        "dtype": "float32",
        "n_parameters": sum(p.numel() for p in own.model.parameters()),
        "notes": ["made"],
    }
    unknown = {"weights_hash": None, "canonical_weights_hash": None}
    assert own.describe(None) == description | unknown
