"""What edit.json says, typed: it is written as it was read, byte for byte, and reads like dictionaries still."""

import dataclasses
import json

import pytest

from unlearn_eval.edits.base import EditInfo
from unlearn_eval.edits.load import load_edit
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.edits.records import BaseRef, Costs, RequestSummary, SelfCheck

BASE = {"id": "org/base", "revision": None, "canonical_hash": "ab" * 32, "architecture": "LlamaForCausalLM"}
REQUESTS = {
    "n": 2,
    "n_merged": 2,
    "forget_set": "facts",
    "forget_set_hash": "cd" * 32,
    "ids": ["a", "b"],
    "lookup": {"a": "subject", "b": "last content token"},
    "hash": "ef" * 32,
    "chat": True,
    "target": "idk",
    "merge": "none",
    "merge_size": 10,
    "per_step": 0,
    "contexts": [],
}
CHECK = {"n": 2, "n_took": 1, "target_probability_before": 0.1, "target_probability_after": 0.9}
# As other versions wrote them, or will: other keys, another order, fewer, or none.
STORED = [
    (BASE, REQUESTS),
    ({}, {}),
    ({"id": "x"}, {"n": 1}),
    (dict(reversed(BASE.items())), dict(reversed(REQUESTS.items()))),
    ({"quantized": False, **BASE, "device": {"name": "cpu"}}, {"more": [1], "order": "a", **REQUESTS, "system": None}),
    ({"id": None}, {"ids": [], "n": 0, "chat": None, "shapes": {}, "contexts": ["x"], "lookup": {}}),
]


def text_of(folder):
    return (folder / "edit.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(("base", "requests"), STORED)
def test_edit_json_stays_what_it_was(base, requests, tmp_path):
    notes = {"self_check": CHECK, "weight_norms": {"x": 1.0}}
    info = EditInfo("memit", {"layers": [1]}, base, requests, 3, {"torch": "2"}, 1.5, 7, notes)
    folder = LowRankEdit({}, info).save(tmp_path / "one")
    expected = {
        "editor": "memit",
        "config": {"layers": [1]},
        "base": base,
        "requests": requests,
        "seed": 3,
        "versions": {"torch": "2"},
        "seconds": 1.5,
        "peak_memory_bytes": 7,
        "notes": notes,
    }
    stored = json.loads(text_of(folder))["info"]
    assert json.dumps(stored) == json.dumps(expected), "with the order of all keys"
    again = load_edit(folder)
    assert text_of(again.save(tmp_path / "two")) == text_of(folder)
    changed = dataclasses.replace(again, info=dataclasses.replace(again.info, seed=4))
    assert text_of(changed.save(tmp_path / "three")) == text_of(folder).replace('"seed": 3', '"seed": 4')


def test_they_are_typed_and_read_like_dictionaries():
    info = EditInfo("memit", {}, BASE, {**REQUESTS, "system": "Be brief."}, notes={"self_check": CHECK})
    assert isinstance(info.base, BaseRef)
    assert isinstance(info.requests, RequestSummary)
    assert (info.base.id, info.base.revision, info.base.architecture) == ("org/base", None, "LlamaForCausalLM")
    assert (info.requests.n, info.requests.chat, info.requests.ids) == (2, True, ["a", "b"])
    assert info.requests.retain_set is None
    assert info.requests.shapes == {}
    assert info.requests["chat"] is True
    assert info.requests["system"] == info.requests.get("system") == "Be brief."
    assert info.requests.get("retain_set", "none") == "none"
    assert "shapes" not in info.requests
    with pytest.raises(KeyError, match="shapes"):
        info.requests["shapes"]
    assert info.base == BASE
    assert dict(info.base) == {**info.base} == BASE
    assert info.base | {"id": "x"} == {**BASE, "id": "x"}
    assert {"loaded": 1} | info.base == {"loaded": 1, **BASE}
    assert len(info.base) == 4
    check = info.self_check
    assert isinstance(check, SelfCheck)
    assert (check.n_took, check.answer_probability_before) == (1, None)
    assert info.notes["self_check"] is CHECK
    assert EditInfo("x", {}).self_check is None
    assert EditInfo("x", {}, seconds=2.0, peak_memory_bytes=3).costs == Costs(2.0, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.requests.chat = False


def test_what_is_made_by_hand_has_the_fields_that_are_given():
    made = RequestSummary(n=2, chat=False, per_step=0, ids=["a"], contexts=[])
    assert list(made) == ["n", "ids", "chat", "per_step", "contexts"], "in the order of the fields"
    assert RequestSummary.of(made) is made
    more = dataclasses.replace(RequestSummary.of({"later": 1, "n": 2}), chat=True)
    assert dict(more) == {"later": 1, "n": 2, "chat": True}
    assert list(more) == ["later", "n", "chat"]


def test_dataclasses_in_notes_are_written_as_before(tmp_path):
    info = EditInfo("mine", {}, notes={"costs": Costs(1.0, 2), "pair": (1, 2)})
    stored = json.loads(text_of(LowRankEdit({}, info).save(tmp_path / "edit")))["info"]["notes"]
    assert stored == {"costs": {"seconds": 1.0, "peak_memory_bytes": 2}, "pair": [1, 2]}
