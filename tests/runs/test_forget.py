"""From a request to a certificate on a tiny model that was taught the facts: what is certified, and what is refused."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from forgetful_models import FORGET, OTHERS, taught, without_gradients
from tiny_checkpoints import make_tiny
from tiny_models import one_thread, tiny_tokenizer  # noqa: F401
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.results.certificate import CERTIFICATE, Row, certificate_of, read_certificate
from unlearn_eval.results.report.certificate import certificate_page, model_card
from unlearn_eval.results.schema import Metric, Result, utc_now
from unlearn_eval.runs.forget import candidates, measure, surroundings
from unlearn_eval.runs.forget import request as request_module
from unlearn_eval.runs.forget.judged import judged
from unlearn_eval.runs.forget.policy import Candidate, Policy, read_policy, shipped_candidates, suited
from unlearn_eval.runs.forget.request import agreed, answers_in, of_subject, of_texts, read_request
from unlearn_eval.runs.forget.run import ForgetConfig, forget
from unlearn_eval.runs.forget.search import Trial, nearest, next_try
from unlearn_eval.runs.forget.verify import agree, check_certified, revoke_certificate, verify_certificate
from unlearn_eval.utils.errors import UserError

KNOWN = FORGET.items[:4]
UNKNOWN = {"id": "zadie", "question": "Where was Zadie born?", "answer": "Quorn Abbey", "subject": "Zadie"}
TAUGHT = {"epochs": "30", "lora_rank": "4", "learning_rate": "1e-2", "retain_term": "none", "warmup_epochs": "0"}
POLICY = {
    "name": "tiny",
    "description": "for tests",
    "kinds": ["low_rank", "dense"],
    "measurements": [
        {"name": "asked"},
        {"name": "unlearn_forms", "task": "unlearn_forms", "metadata": {"forms": ["direct", "primed"]}},
        {"name": "unlearn_leak_at_k", "task": "unlearn_leak_at_k", "controls": 1, "metadata": {"samples": 2}},
        {"name": "attack_quantize", "attack": "quantize", "settings": {"bits": "8"}},
        {"name": "attack_relearn", "attack": "relearn", "settings": {"steps": "1", "control": "false"}},
    ],
    "bounds": [
        {"require": "asked:forget_accuracy<=0", "side": "left", "words": "right answers", "because": "a test"},
        {"require": "asked:forget_probability<=0.9*base", "side": "left", "words": "probability", "because": "a test"},
        {
            "require": "unlearn_forms:forget_leak_worst_form<=0.5",
            "side": "left",
            "words": "worst form",
            "because": "a test",
        },
        {
            "require": "attack_relearn:forget_attacked_accuracy<=1",
            "side": "left",
            "words": "relearned",
            "because": "a test",
            "may_be_missing": True,
        },
    ],
    "candidates": [
        {
            "editor": "npo",
            "settings": TAUGHT,
            "strength": {"setting": "learning_rate", "values": ["1e-6", "1e-2"], "start": "1e-6"},
        }
    ],
}


def written(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    return str(path)


@pytest.fixture(scope="module")
def knows(tmp_path_factory):
    """The folder of a model that knows the facts."""
    tokenizer, folder = tiny_tokenizer(), tmp_path_factory.mktemp("knows")
    model = without_gradients(make_tiny("llama", len(tokenizer)))
    taught(LoadedModel(model, tokenizer, "knows", None, "knows"), (*KNOWN, *OTHERS.items[:2]), epochs="40")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def few_facts(monkeypatch):
    monkeypatch.setattr(surroundings, "N_ASKED", 8)


@pytest.fixture(scope="module")
def config(knows, tmp_path_factory):
    """What is run; `replace` the rest."""
    place = tmp_path_factory.mktemp("request")
    records = [*({k: v for k, v in item.record.items() if v} for item in KNOWN), UNKNOWN]
    (place / "ada.jsonl").write_text("".join(json.dumps(own) + "\n" for own in records), encoding="utf-8")
    policy = written(place / "policy.yaml", POLICY)
    return ForgetConfig(str(place / "ada.jsonl"), "", knows, policy, chat=False)


@pytest.fixture(scope="module")
def done(config, tmp_path_factory):
    """The folder of a request that was met."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surroundings, "N_ASKED", 8)
        folder = tmp_path_factory.mktemp("done") / "out"
        forget(replace(config, output=str(folder)))
    return folder


# Met -------------------------------------------------------------------------------------------------------


def test_the_certificate_says_what_was_found(done):
    certificate = read_certificate(done)
    assert certificate.verdict.outcome == "passes"
    assert "NPO was made to forget 4 of the 5 facts that were asked for" in certificate.verdict.sentence
    card = model_card(certificate)
    assert card.count("asses") == 1 + card.count("| Passes"), "the outcome is said once"
    assert "- edit: NPO (" in card
    by_id = {own.id: own for own in certificate.request.items}
    assert [own.id for own in certificate.request.items if not own.known] == ["zadie"]
    assert by_id["zadie"].after == {}
    assert by_id["p0"].before["question"] == 1.0
    assert by_id["p0"].after["question"] == 0.0
    first, second = certificate.trials
    assert (first.setting, first.chosen, first.measured) == ("learning_rate=1e-6", False, [])
    assert (second.setting, second.chosen, len(second.measured)) == ("learning_rate=1e-2", True, 5)
    rows = {row.require: row for row in certificate.rows}
    row = rows["asked:forget_accuracy<=0"]
    assert (row.value, row.before, row.bound, row.n, row.holds) == (0.0, 1.0, 0.0, 4, True)
    assert row.high == pytest.approx(0.4899, abs=1e-3), "Wilson's upper end for 0 of 4"
    row = rows["asked:forget_probability<=0.9*base"]
    assert row.bound == pytest.approx(0.9 * row.before)
    assert any("1 of the 5 answers were given away in no form" in own for own in certificate.cautions)
    assert any("attack prune" in own for own in certificate.not_tried)
    edit = json.loads((done / "edit" / "edit.json").read_text(encoding="utf-8"))
    assert edit["info"]["requests"]["ids"] == [item.id for item in KNOWN], "what was not known is not edited"


def test_a_second_run_does_nothing_again(done, config, monkeypatch):
    before = read_certificate(done)
    monkeypatch.setattr("unlearn_eval.runs.forget.trials.make_edit", None)
    monkeypatch.setattr(measure, "run_evaluation", None)
    monkeypatch.setattr(measure, "run_attack", None)
    after = forget(replace(config, output=str(done)))
    assert after.rows == before.rows
    assert after.trials == before.trials


@pytest.mark.parametrize("answer", ["Yes", "off", "007", "12:30", "1879-03-14", "1_000"])
def test_an_answer_in_yaml_is_the_text_that_stands_there(tmp_path, answer):
    path = tmp_path / "request.yaml"
    path.write_text(f"subject: Ada\nquestions:\n  - question: What is it of Ada?\n    answer: {answer}\n")
    (item,) = read_request(str(path)).items
    assert item.answer == answer


def test_a_key_of_a_request_stands_once(tmp_path):
    path = tmp_path / "request.yaml"
    path.write_text("subject: Ada\ntexts: [one]\nsubject: Eve\n")
    with pytest.raises(UserError, match="line 3, column 1: the key 'subject' stands here and in line 1"):
        read_request(str(path))


@pytest.mark.parametrize("at", [4, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 7))])
def test_a_run_that_was_killed_goes_on(done, config, tmp_path, monkeypatch, at):
    calls, real = [], measure.write_result

    def killed(*arguments, **options):
        calls.append(arguments)
        if len(calls) == at:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    folder = tmp_path / "out"
    for name in ("unlearn_eval.runs.evaluate", "unlearn_eval.attacks.run", "unlearn_eval.runs.forget.measure"):
        monkeypatch.setattr(f"{name}.write_result", killed)
    with pytest.raises(KeyboardInterrupt):
        forget(replace(config, output=str(folder)))
    found = forget(replace(config, output=str(folder)))
    assert found.rows == read_certificate(done).rows
    assert not (folder / "work" / "trials" / "003").exists()


def test_another_run_s_folder_is_refused(done, config, tmp_path):
    with pytest.raises(UserError, match="holds a run with other seed"):
        forget(replace(config, output=str(done), seed=1))
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not the folder of a request"):
        forget(replace(config, output=str(tmp_path)))


@pytest.mark.parametrize(
    ("option", "file"), [("sign", "no.pem"), ("retain", "no.jsonl"), ("earlier", "no"), ("policy", "no.yaml")]
)
def test_a_missing_file_is_found_before_the_model_is_loaded(option, file, config, tmp_path):
    away = {option: str(tmp_path / file)}
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        forget(replace(config, model="nowhere", output=str(tmp_path / "out"), **away))
    assert not list(tmp_path.iterdir())


def test_a_memory_edit_fails_honestly(config, tmp_path, done):
    copied(done, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "work" / "trials")
    (tmp_path / "out" / "work" / "forget.json").unlink()
    found = forget(replace(config, output=str(tmp_path / "out"), editors=("grace",)))
    assert found.verdict.outcome == "fails"
    assert "it is a memory edit, which the policy does not let pass" in found.verdict.sentence
    assert any("A memory edit is a filter" in own for own in found.cautions)
    assert any(own.startswith("relearned") for own in found.verdict.unmeasured)
    (row,) = (row for row in found.rows if row.words == "relearned")
    assert (row.value, row.holds) == (None, None)
    assert len(found.trials[0].measured) == 5, "the nearest is measured whole"
    with pytest.raises(UserError, match="does not let"):
        check_certified(tmp_path / "out" / "edit")


def test_what_is_not_known_is_not_edited(config, tmp_path):
    (tmp_path / "r.jsonl").write_text(json.dumps(UNKNOWN) + "\n", encoding="utf-8")
    found = forget(replace(config, request=str(tmp_path / "r.jsonl"), output=str(tmp_path / "out")))
    assert found.verdict.outcome == "nothing known"
    assert found.edit is None
    assert not (tmp_path / "out" / "edit").exists()
    assert "none of the 1 answers" in found.verdict.sentence


# Verified, revoked, continued ------------------------------------------------------------------------------


def copied(source, target):
    shutil.copytree(source, target)
    return target


def test_a_certificate_is_measured_again(done, tmp_path):
    found = verify_certificate(str(done))
    assert found.agrees
    assert sum("certified" in line for line in found.checked) == 4 + 2, (
        "the bounds, and what the edit's own check found"
    )
    assert CliRunner().invoke(cli.app, ["verify", str(done), "--only", "none"]).exit_code == 0
    assert CliRunner().invoke(cli.app, ["verify", str(tmp_path)]).exit_code == 2
    alone = shutil.copy(done / CERTIFICATE, tmp_path)
    with pytest.raises(UserError, match="the edit of .* is not at") as refused:
        verify_certificate(str(alone), only=[])
    assert "--edit" in refused.value.hint
    assert verify_certificate(str(alone), only=[], edit_folder=str(done / "edit")).agrees
    with pytest.raises(UserError, match="unknown measurement 'askd'"):
        verify_certificate(str(done), only=["askd"])


def _number(folder):
    path = folder / CERTIFICATE
    content = json.loads(path.read_text(encoding="utf-8"))
    for row in content["rows"]:
        if row["require"].startswith("asked"):
            row |= {"value": 1.0, "low": 0.9, "high": 1.0}
    path.write_text(json.dumps(content), encoding="utf-8")


def _held(folder):
    path = folder / CERTIFICATE
    content = json.loads(path.read_text(encoding="utf-8"))
    content["rows"][-2] |= {"value": 0.75, "low": 0.6, "high": 0.9}
    path.write_text(json.dumps(content), encoding="utf-8")


def _took(folder):
    path = folder / CERTIFICATE
    content = json.loads(path.read_text(encoding="utf-8"))
    next(row for row in content["rows"] if row["require"].startswith("edit:"))["value"] = 0.01
    path.write_text(json.dumps(content), encoding="utf-8")


def _edit(folder):
    path = folder / "edit" / "edit.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"seed": 0', '"seed": 7'), encoding="utf-8")


def _weights(folder):
    path = next((folder / "edit").glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _question(folder):
    path = folder / "work" / "questions.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("Zadie", "Sadie"), encoding="utf-8")


def _policy(folder):
    path = folder / CERTIFICATE
    path.write_text(path.read_text(encoding="utf-8").replace("for tests", "for nobody"), encoding="utf-8")


def _revoked(folder):
    revoke_certificate(str(folder), "the person asked again")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_number, "right answers: 0 [0, 0.49], certified 1 [0.9, 1]"),
        (_held, "worst form: 0.75 [0.6, 0.9] and the bound 0.5 do not go with what it says of them"),
        (_took, "probability of the answers, as a share of what it was: "),
        (_edit, "the edit is not the certificate's"),
        (_weights, "/"),  # the path of the file, which is not as it was written
        (_question, "the file of questions is not the certificate's"),
        (_policy, "the policy is not the certificate's"),
        (_revoked, "it was revoked: the person asked again"),
    ],
)
def test_what_was_changed_does_not_agree(done, tmp_path, change, said):
    folder = copied(done, tmp_path / "out")
    change(folder)
    found = verify_certificate(str(folder), only=["asked"])
    assert any(line.startswith(said) for line in found.wrong), found.wrong


def test_serving_needs_a_certificate_that_passes(done, tmp_path):
    assert check_certified(done / "edit").passes
    folder = copied(done, tmp_path / "out")
    _revoked(folder)
    with pytest.raises(UserError, match="revoked"):
        check_certified(folder / "edit")
    (folder / CERTIFICATE).unlink()
    with pytest.raises(UserError, match="has no certificate"):
        check_certified(folder / "edit")


@pytest.mark.parametrize(("bound", "outcome"), [("<=1", "passes"), (">=2", "fails")])
def test_a_second_request_measures_the_first_again(config, tmp_path, bound, outcome):
    policy = POLICY | {"kinds": ["memory"], "measurements": POLICY["measurements"][:1]}
    policy["bounds"] = [POLICY["bounds"][0] | {"require": f"asked:forget_probability{bound}"}]
    policy["candidates"] = [{"editor": "grace", "settings": {"layers": "1", "epsilon": "0.1"}}]
    asked = {}
    for name, items in (("first", KNOWN[:2]), ("second", KNOWN[2:3])):
        asked[name] = str(tmp_path / f"{name}.jsonl")
        records = ({k: v for k, v in item.record.items() if v} for item in items)
        Path(asked[name]).write_text("".join(json.dumps(own) + "\n" for own in records), encoding="utf-8")
    own = replace(config, policy=written(tmp_path / "p.yaml", policy))
    first = forget(replace(own, request=asked["first"], output=str(tmp_path / "first")))
    second = forget(
        replace(own, request=asked["second"], output=str(tmp_path / "second"), earlier=str(tmp_path / "first"))
    )
    assert [(one.sha256, one.outcome, len(one.failures)) for one in second.earlier] == [
        (first.sha256, outcome, int(outcome == "fails"))
    ]
    assert not (second.passes and outcome == "fails")
    edit = json.loads((tmp_path / "second" / "edit" / "edit.json").read_text(encoding="utf-8"))
    assert edit["info"]["requests"]["ids"] == [item.id for item in KNOWN[:3]]


def test_a_signature_says_who_made_it(done, tmp_path, config):
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    names = {}
    for name in ("mine", "other"):
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        for kind, text in (("private", private), ("public", public)):
            (tmp_path / f"{name}.{kind}").write_bytes(text)
            names[name, kind] = str(tmp_path / f"{name}.{kind}")
    folder = copied(done, tmp_path / "out")
    forget(replace(config, output=str(folder), sign=names["mine", "private"]))
    assert verify_certificate(str(folder), only=[], key=names["mine", "public"]).agrees
    assert verify_certificate(str(folder), only=[], key=names["other", "public"]).wrong == (
        "it is signed by another key",
    )
    text = (folder / CERTIFICATE).read_text(encoding="utf-8")
    (folder / CERTIFICATE).write_text(text.replace('"outcome": "passes"', '"outcome": "fails"'), encoding="utf-8")
    assert "its signature does not fit what it says" in verify_certificate(str(folder), only=[]).wrong
    assert verify_certificate(str(done), only=[], key=names["mine", "public"]).wrong == ("it is not signed",)


# Without names ---------------------------------------------------------------------------------------------


def test_a_redacted_proof_does_not_leak_what_it_is_about(config, done, tmp_path):
    folder = copied(done, tmp_path / "out")
    found = forget(replace(config, output=str(folder), redact=True))
    pages = certificate_page(found) + model_card(found)
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in (folder / "edit").iterdir()]
    texts += [pages, (folder / CERTIFICATE).read_text(encoding="utf-8")]
    for word in {text for item in KNOWN for text in (item.question, item.answer, item.subject)} | {"Zadie", "Quorn"}:
        # The tokenizer of the base has its words, whatever was asked.
        holders = [text for text in texts if f'"{word}"' in text or f" {word}" in text or f">{word}" in text]
        assert [own for own in holders if '"version": "1.0"' not in own[:40]] == [], word
    assert {own.subject for own in found.request.items} == {f"{item.subject[0]}." for item in KNOWN} | {"Z."}
    assert found.request.hash != read_certificate(done).request.hash
    assert verify_certificate(str(folder), only=["asked"]).agrees


def test_the_page_shows_text_as_text(done):
    content = read_certificate(done).model_dump()
    content["request"]["items"][0]["question"] = "<script>alert(1)</script>"
    page = certificate_page(certificate_of(content))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "script-src" not in page, "nothing may run: default-src 'none'"
    assert "| right answers | 1.00 | 0 [0, 0.49], n = 4 | ≤ 0 | holds |" in model_card(certificate_of(content))


# Policies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["standard", "strict"])
def test_shipped_policies_say_why(name):
    policy = read_policy(name)
    assert {bound.side for bound in policy.bounds} == {"left", "price"}
    assert all(len(bound.because) > 10 for bound in policy.bounds)
    assert ("memory" in policy.kinds) is (name == "standard")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bounds": [POLICY["bounds"][0] | {"require": "askd:forget_accuracy<=0"}]}, "unknown measurement"),
        ({"bounds": [POLICY["bounds"][0] | {"side": "price"}]}, "bounds nothing that is left"),
        ({"measurements": [{"name": "forms", "task": "unlearn_forms"}]}, "call it unlearn_forms"),
        ({"measurements": [{"name": "x", "task": "mmlu"}]}, "names mmlu"),
        ({"color": "red"}, "unknown field color"),
    ],
)
def test_mistakes_in_a_policy_are_named(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        read_policy(written(tmp_path / "p.yaml", POLICY | change))


def test_candidates_suit_the_request():
    candidates = shipped_candidates()
    few, why = suited(candidates, 5, 3)
    assert (few, why) == (candidates, [])
    long, why = suited(candidates, 5, 200)
    assert 0 < len(long) < len(candidates)
    assert all("200" in own for own in why)


def test_what_does_not_fit_beside_the_model_is_not_tried(config, tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "free_bytes", lambda device: 2_000)
    made = forget(replace(config, output=str(tmp_path / "out")))
    assert any(re.match("NPO is not tried: it needs about .* and .* are free", own) for own in made.not_tried), made
    assert (made.passes, made.edit) == (False, None)


# Search ----------------------------------------------------------------------------------------------------

ROW = Row(require="a:b<=0", side="left", words="w", because="b", value=1.0, low=None, high=None, n=5, before=None,
          bound=0.0, holds=False, reason="")  # fmt: skip
TWO = [
    Candidate.model_validate({"editor": "a", "strength": {"setting": "s", "values": ["1", "2", "3"], "start": "2"}}),
    Candidate(editor="b"),
]


def trial(number, candidate, value, *sides, **more):
    rows = tuple(ROW.model_copy(update={"side": side}) for side in sides)
    return Trial(number, candidate, value, rows=rows, **more)


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        ([], (0, "2")),
        ([trial(1, 0, "2", "left")], (0, "3")),
        ([trial(1, 0, "2", "price")], (0, "1")),
        ([trial(1, 0, "2", "left", "price")], (1, None)),
        ([trial(1, 0, "2", "left"), trial(2, 0, "3", "left")], (1, None)),
        ([trial(1, 0, "2", "left"), trial(2, 0, "3", "price")], (1, None)),
        ([trial(1, 0, "2", error="it does not fit")], (1, None)),
        ([trial(1, 0, "2", "left", "price"), trial(2, 1, None, "left")], None),
    ],
)
def test_the_search_goes_stronger_gentler_or_on(trials, expected):
    assert next_try(TWO, trials) == expected


def test_the_nearest_came_furthest_and_fails_least():
    far = replace(trial(1, 0, "1", "left", "price"), measured=("x", "y"))
    short = replace(trial(2, 0, "2", "left"), measured=("x",))
    less = replace(trial(3, 0, "3", "left"), measured=("x", "y"))
    assert nearest([far, short, less]).number == 3
    assert nearest([far, short]).number == 1
    assert nearest([trial(1, 0, "1", error="no")]) is None


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ((0.5, 0.2, 0.8, True), (0.7, 0.4, 0.9, True), True),
        ((0.5, 0.4, 0.6, True), (0.9, 0.8, 1.0, True), False),
        ((0.5, 0.2, 0.8, True), (0.5, 0.2, 0.8, False), False),
        ((0.5, None, None, True), (0.54, None, None, True), True),
        ((0.5, None, None, True), (0.6, None, None, True), False),
        ((None, None, None, None), (None, None, None, None), True),
        ((None, None, None, None), (0.0, 0.0, 0.5, True), False),
    ],
)
def test_two_measurements_agree_within_their_intervals(old, new, expected):
    rows = [ROW.model_copy(update=dict(zip(("value", "low", "high", "holds"), own, strict=True))) for own in (old, new)]
    assert agree(*rows) is expected


@pytest.mark.parametrize(("may_be_missing", "holds"), [(True, None), (False, False)])
def test_what_is_not_measured_is_said(may_be_missing, holds):
    policy = Policy.model_validate(
        POLICY | {"bounds": [POLICY["bounds"][3] | {"may_be_missing": may_be_missing}, POLICY["bounds"][0]]}
    )
    bounds = policy.bounds_of("attack_relearn")
    result = Result.new("attack", utc_now(), status="partial", metrics={"attack_relearn": {}}, notes=["too few"])
    (row,) = judged(bounds, result, {})
    assert (row.value, row.holds, row.reason) == (None, holds, "no value: too few")
    none = Metric(None, reason="nobody knows")
    (row,) = judged(bounds, replace(result, metrics={"attack_relearn": {"forget_attacked_accuracy": none}}), {})
    assert (row.holds, row.reason) == (holds, "no value: nobody knows")


# Requests --------------------------------------------------------------------------------------------------


def test_texts_become_sentences_and_a_continuation(tmp_path):
    text = "Milo Fenn was born in the town of Cobble. He moved to Velm in 1931, it rained. " + "And so on. " * 20
    request = read_request(written(tmp_path / "r.yaml", {"subject": "Milo Fenn", "texts": [text]}))
    found = {item.id: item for item in of_texts(request)}
    first = found["text 1, sentence 1"]
    assert (first.question, first.answer, first.shape) == ("Milo Fenn was born in the town of", "Cobble", "sentence")
    assert first.subject == "Milo Fenn"
    assert found["text 1, sentence 2"].answer == "1931"
    assert found["text 1"].shape == "text"


def test_what_the_outputs_agree_on_is_the_answer():
    asked = "Where was Milo Fenn born? What is the birthplace of Milo Fenn?"
    said = ["Milo Fenn was born in Larkhill.", "In Larkhill, of course.", "The place is Larkhill", "Nobody knows that."]
    assert agreed(said, asked) == ("Larkhill", 0.75)
    assert agreed(["It is Velm.", "It is Tarn.", "It is Osei."], asked) is None
    assert agreed(["I don't know Larkhill."] * 4, asked) is None, "a refusal answers nothing"
    assert agreed(["He was a physicist."] * 3, "What was he?") == ("physicist", 1.0)
    assert answers_in("He lived in New Larkhill in 1931.", asked)[:2] == ["New Larkhill", "1931"]
    assert agreed(["He was a physicist."] * 3, "Where is he from?", words=False) is None, "which a name answers"
    assert answers_in("She attended the University of Velm.", "Which university did she attend?") == ["Velm"]


@pytest.mark.parametrize("word", ["born", "died", "awarded", "attended", "discoveries", "married"])
def test_a_word_of_the_questions_is_no_answer(word):
    assert answers_in(f"It was {word}, and a glassblower.", "What is known of Milo?") == ["glassblower"]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"Where w": "in Velm", "Who mad": "by Osei"}, {"Where w", "Who or"}),
        ({"Who mad": "by Osei", "Where d": "in Tarn"}, {"Who mad", "Who or"}),
        ({"Where d": "in Tarn"}, {"Where d", "Who or"}),
    ],
)
def test_persons_are_born_and_things_are_made(monkeypatch, answers, expected):
    answers["Who or"] = "a glassblower"

    def said(model, prompt_format, rows, *more, **options):
        return [f"It is {next((own for key, own in answers.items() if text.startswith(key)), 'so')}." for text in rows]

    monkeypatch.setattr(request_module, "written", said)
    asking = SimpleNamespace(prompt_ids=lambda text: text)
    found = of_subject("Milo Fenn", SimpleNamespace(model=None), asking)
    assert {own.item.question[:7].strip() for own in found} == expected


def test_a_review_stops_before_anything_is_changed(config, tmp_path):
    request = written(tmp_path / "r.yaml", {"subject": "Ada", "texts": ["It is well known that Ada was born in Velm."]})
    found = forget(replace(config, request=request, output=str(tmp_path / "out"), review=True))
    assert [own.source for own in found if own.source == "text"] == ["text"]
    assert [path.name for path in (tmp_path / "out" / "work").iterdir()].count("questions.jsonl") == 1
    assert not (tmp_path / "out" / CERTIFICATE).exists()
    path = tmp_path / "out" / "work" / "questions.jsonl"
    path.write_text(json.dumps(UNKNOWN) + "\n", encoding="utf-8")
    edited = forget(replace(config, request=request, output=str(tmp_path / "out")))
    assert [own.id for own in edited.request.items] == ["zadie"], "the edited questions are asked"


@pytest.mark.parametrize("text", ["90", "x", "-3m", "0m"])
def test_a_budget_is_a_time(tmp_path, text, config):
    if text == "90":
        return
    found = CliRunner().invoke(cli.app, ["forget", config.request, "-o", str(tmp_path / "o"), f"--budget={text}"])
    assert "cannot be" in str(found.exception)
