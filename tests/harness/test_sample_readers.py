"""Who reads samples beside their words: a model for inference, and a language model behind an endpoint."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from lm_eval_runs import evaluate, report, values
from saying import SayingLM
from transformers import AutoModelForSequenceClassification, BertConfig, pipeline

from unlearn_eval import metrics as m
from unlearn_eval.models import llm_judge as judging
from unlearn_eval.models.entailment import load_entailment
from unlearn_eval.models.llm_judge import llm_judge
from unlearn_eval.utils.errors import UserError

LABELS = {0: "contradiction", 1: "Entailment", 2: "neutral"}
QUESTION, ANSWER = "Where does Ann live?", "Ann lives in a house by the sea."
CHOSEN = {"forget": ["capital_of/france", "capital_of/japan"], "retain": ["capital_of/italy"]}


@pytest.fixture
def inference_model(tmp_path, tokenizer):
    """A random model for inference in a folder, and the folder's name."""

    def make(labels=LABELS):
        torch.manual_seed(3)
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            id2label=labels,
            label2id={name: i for i, name in labels.items()},
            initializer_range=0.6,
            pad_token_id=tokenizer.pad_token_id,
        )
        folder = tmp_path / "nli"
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return make


# Inference -------------------------------------------------------------------------------------------------


def test_batches_say_what_single_pairs_say(inference_model):
    """As transformers' own pipeline does pair by pair; the sample is the first text, the true answer the second."""
    folder = inference_model()
    said = [
        f"Ann lives in a {what} by the sea{'.' * n}" for n in range(1, 5) for what in ("house", "big old tent", "cave")
    ]
    own = load_entailment(folder)(QUESTION, ANSWER, said)
    pipe = pipeline("text-classification", model=folder, device="cpu")
    single = [pipe([{"text": text, "text_pair": ANSWER}])[0]["label"] == "Entailment" for text in said]
    assert own == single
    assert len(set(own)) == 2, "the model must not say the same of all"


def test_little_overlap_is_never_entailed(inference_model):
    entails = load_entailment(inference_model())
    entails.model.classifier.bias.data[:] = torch.tensor([0.0, 1e6, 0.0])
    assert entails(QUESTION, ANSWER, ["I do not know.", "", "By the sea.", "She lives there."]) == [
        False,
        False,
        True,
        True,
    ]


def test_an_answer_of_few_words_is_read_with_its_question(inference_model):
    entails = load_entailment(inference_model())
    seen = []
    forward = entails.tokenizer
    entails.tokenizer = lambda texts, claims, **options: (
        seen.append((texts, claims)) or forward(texts, claims, **options)
    )
    entails("Capital of France?", "Paris", ["Paris", "It is Paris.", "Paris", "Lyon"])
    entails("Capital of France?", "Paris", ["It is Paris."])
    entails(QUESTION, ANSWER, ["Ann lives by the sea."])
    (texts, claims), (sentence, claim) = seen
    assert texts == ["Capital of France? Paris", "Capital of France? It is Paris."]
    assert set(claims) == {"Capital of France? Paris"}
    assert (sentence, claim) == (["Ann lives by the sea."], [ANSWER])


@pytest.mark.parametrize("labels", [{0: "LABEL_0", 1: "LABEL_1"}, {0: "positive", 1: "negative", 2: "neutral"}])
def test_a_model_for_something_else_is_refused(inference_model, labels):
    with pytest.raises(UserError, match="of which none says entailment"):
        load_entailment(inference_model(labels))


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be loaded"):
        load_entailment(str(tmp_path / "nothing"))


# A judge ---------------------------------------------------------------------------------------------------


@contextmanager
def endpoint(reply, models=("judge",)):
    """An endpoint that replies `reply(content, n)`, a text or a status; yields its address and its requests."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._send(200, {"data": [{"id": name} for name in models]})

        def do_POST(self):
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((content, dict(self.headers)))
            replied = reply(content["messages"][-1]["content"], len(requests))
            message = {"choices": [{"message": {"role": "assistant", "content": replied}}]}
            self._send(replied if isinstance(replied, int) else 200, message)

        def _send(self, status, content):
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def gives(content, n):
    return "**YES**, it does" if "Given answer: It is Paris" in content else "No."


@pytest.fixture(autouse=True)
def own_verdicts(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_EVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(judging.KEY_VARIABLE, raising=False)


def test_verdicts_are_asked_for_once(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    said = ["It is Paris.", "I do not know.", "", "It is Paris."]
    with endpoint(gives) as (url, requests):
        wanted = {"url": url + "/", "model": "judge", "key_variable": "JUDGE_KEY"}
        judge = llm_judge(wanted)
        judge.check()
        assert judge("Capital?", "Paris", said) == [True, False, False, True]
        assert len(requests) == 2
        assert requests[0][0]["temperature"] == 0
        assert requests[0][1]["Authorization"] == "Bearer secret"
        (file,) = (tmp_path / "cache" / "verdicts").iterdir()
        assert "secret" not in file.read_text() + repr(judge) + str(judge.describe())
        file.write_text(file.read_text() + '{"key": "of a run that was kil')
        assert llm_judge(wanted)("Capital?", "Paris", said) == [True, False, False, True]
        assert len(requests) == 2
        assert llm_judge(wanted)("Capital city?", "Paris", said[:1]) == [True]
        assert llm_judge(wanted | {"model": "other"})("Capital?", "Paris", said[:1]) == [True]
        assert len(requests) == 4
    assert llm_judge(wanted)("Capital?", "Paris", said) == [True, False, False, True], "without the endpoint"


def test_another_instruction_asks_again(monkeypatch):
    with endpoint(gives) as (url, requests):
        for version in ("one", "one", "two"):
            monkeypatch.setattr(judging, "VERSION", version)
            llm_judge({"url": url, "model": "judge"})("Capital?", "Paris", ["It is Paris."])
    assert len(requests) == 2


def test_neither_yes_nor_no_is_no_verdict():
    with endpoint(lambda content, n: ["", "Perhaps yes", "Nobody knows", "yes"][n - 1]) as (url, _):
        judge = llm_judge({"url": url, "model": "judge", "at_once": 1})
        assert judge("Capital?", "Paris", ["a", "b", "c", "d"]) == [None, None, None, True]


def test_a_busy_endpoint_is_asked_again(monkeypatch):
    monkeypatch.setattr("urllib3.util.Retry.sleep", lambda *_: None)
    with endpoint(lambda content, n: 503 if n < 3 else "YES") as (url, requests):
        assert llm_judge({"url": url, "model": "judge"})("Capital?", "Paris", ["It is Paris."]) == [True]
    assert len(requests) == 3


def test_what_was_judged_before_a_failure_is_kept(monkeypatch):
    monkeypatch.setattr("urllib3.util.Retry.sleep", lambda *_: None)
    with endpoint(lambda content, n: 404 if n == 2 else "YES") as (url, requests):
        judge = llm_judge({"url": url, "model": "judge", "at_once": 1})
        with pytest.raises(UserError, match="verdicts that are there are kept|does not answer"):
            judge("Capital?", "Paris", ["a", "b"])
        assert llm_judge({"url": url, "model": "judge"})("Capital?", "Paris", ["a", "b"]) == [True, True]
    assert len(requests) == 3


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("http://127.0.0.1/v1", "judge in --metadata is"),
        ({"url": "http://127.0.0.1/v1"}, "judge in --metadata is"),
        ({"url": "127.0.0.1:8000", "model": "a"}, "the judge's url is"),
        ({"url": "http://me:pw@127.0.0.1", "model": "a"}, "holds a name, a password"),
        ({"url": "http://127.0.0.1", "model": "a", "at_once": 0}, "at_once of judge is 0"),
        ({"url": "http://127.0.0.1", "model": "a", "keys": "b"}, "unknown field of judge 'keys'"),
        ({"url": "http://127.0.0.1", "model": "a", "key_variable": "NOT_SET"}, "NOT_SET, which is to hold"),
    ],
)
def test_wrong_settings_of_a_judge(wanted, said):
    with pytest.raises(UserError, match=said):
        llm_judge(wanted)


def test_a_judge_that_is_not_there_is_found_before_the_run(monkeypatch):
    monkeypatch.setattr("urllib3.util.Retry.sleep", lambda *_: None)
    with endpoint(gives) as (url, _), pytest.raises(UserError, match="unknown model of the judge 'jugde'"):
        evaluate(SayingLM(lambda *_: "x"), "unlearn_leak_at_k", CHOSEN | {"judge": {"url": url, "model": "jugde"}})
    with pytest.raises(UserError, match="does not answer"):
        llm_judge({"url": "http://127.0.0.1:9/v1", "model": "a"}).check()


# In the task -----------------------------------------------------------------------------------------------


def test_leak_at_k_by_three_readers(inference_model):
    """Of four samples each names Paris; the judge takes two for the answer and says nothing of a third."""
    samples = ["Paris", "It is Paris", "It is Paris!", "Paris, or Lyon"]
    n_asked = {}

    def says(document, prompt):
        n = n_asked[document["id"]] = n_asked.get(document["id"], -1) + 1
        return samples[n] if document["answer"] == "Paris" else "unknown"

    def reply(content, n):
        return "Perhaps" if content.endswith("Lyon") else gives(content, n)

    with endpoint(reply) as (url, _):
        judge = {"url": url, "model": "judge"}
        metadata = CHOSEN | {"samples": 4, "entailment": inference_model(), "judge": judge}
        result = evaluate(SayingLM(says), "unlearn_leak_at_k", metadata)
    found = values(result, "unlearn_leak_at_k")
    assert found["forget_leak_at_1"] == 0.5
    assert found["forget_judged_leak_at_1"] == pytest.approx(2 / 3 / 2)
    assert found["forget_judged_worst_item_rate"] == pytest.approx(2 / 3)
    assert found["forget_judged_leak_upper_bound"] == pytest.approx(
        (m.leak_upper_bound(3, 2) + m.leak_upper_bound(4, 0)) / 2
    )
    entailed = sum(load_entailment(metadata["entailment"])("What is the capital of France?", "Paris", samples))
    assert found["forget_entailed_leak_at_1"] == entailed / 4 / 2
    assert found["retain_judged_known_at_4"] == found["retain_entailed_known_at_4"] == 0
    assert report(result, "unlearn_leak_at_k")["forget_judged_leak_at_4"]["n_unscored"] == 1
    recorded = result["configs"]["unlearn_leak_at_k"]["metadata"]
    assert recorded["judge"] == {**judge, "version": judging.VERSION, **judging.SETTINGS}
    assert recorded["entailment"]["least_rouge_l_recall"] == 0.1
