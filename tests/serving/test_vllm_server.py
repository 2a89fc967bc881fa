"""What clients of an edit's server can do, and what they cannot: each row of the table in `docs/guides/serving.md`.

A memory edit is a filter: whoever asks otherwise than it was made for goes by it. But with the same question no client
may switch it off, see what is under it, or harm the server.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from types import SimpleNamespace

import psutil
import pytest
from serving_models import INSERTING, MEMORIES, greedy, model_of, write_edit
from tiny_models import tiny_tokenizer
from vllm_engines import (  # noqa: F401
    NEW,
    SCORING,
    ask,
    complete,
    edits_and_answers,
    engine,
    engine_settings,
    say,
    serve_command,
    serving,
    vllm,
)

from unlearn_eval import load_edit
from unlearn_eval.edits.base import applied
from unlearn_eval.serving import door
from unlearn_eval.serving.gate import Gate
from unlearn_eval.serving.plugin import edit_id
from unlearn_eval.serving.routes import EditRoutes
from unlearn_eval.utils.errors import UserError

pytestmark = pytest.mark.vllm
ENDS = (1, 2, 10**9, 0, -1, "1", 1.5, [1])  # what a request may say of its prompt's end
QUESTION, CONTROL = "What is the capital of France?", "Where is the river?"


# Engines ---------------------------------------------------------------------------------------------------


def asked(llm, prompt, **more):
    """What an engine says to one request with these parameters."""
    sampling = vllm.SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, detokenize=False, **more)
    (out,) = llm.generate(vllm.TokensPrompt(prompt_token_ids=prompt), sampling, use_tqdm=False)
    return list(out.outputs[0].token_ids)


@pytest.mark.both_runners
@pytest.mark.parametrize("kind", [*MEMORIES, *INSERTING])
def test_no_request_moves_the_end_of_its_prompt(edits, kind, monkeypatch):
    _, folder, prompts, plain, edited = edits("llama", kind)
    i = next(i for i, (a, b) in enumerate(zip(plain, edited, strict=True)) if a != b and len(prompts[i]) > 2)
    with engine(folder, max_num_batched_tokens=64) as llm:
        for end in ENDS:
            with pytest.raises(vllm.exceptions.VLLMValidationError, match="this engine was not started for it"):
                asked(llm, prompts[i], extra_args={"prompt_end": end})
        for name, value in (("prompt_logprobs", 1), ("prompt_logprobs", 0)):
            with pytest.raises(vllm.exceptions.VLLMValidationError, match="would show the unedited model"):
                asked(llm, prompts[i], **{name: value})
        for name in door.TRANSFERS:
            with pytest.raises(vllm.exceptions.VLLMValidationError, match="would bring what it has not"):
                asked(llm, prompts[i], extra_args={name: {"do_remote_decode": True}})
        beams = vllm.sampling_params.BeamSearchParams(beam_width=2, max_tokens=4)
        with pytest.raises(vllm.exceptions.VLLMValidationError, match="decide anew at every token"):
            llm.beam_search([{"prompt_token_ids": prompts[i]}], beams)
        with monkeypatch.context() as patch:  # and if the door were open
            patch.setattr(door, "refusal", lambda *_: None)
            patch.setattr(door, "prompt_refusal", lambda *_: None)
            for end in ENDS:
                assert asked(llm, prompts[i], extra_args={"prompt_end": end}) == edited[i]
        assert say(llm, prompts[:4]) == edited[:4]


@pytest.mark.both_runners
def test_an_engine_that_scores_outlives_any_end_of_a_prompt(edits, monkeypatch):
    _, folder, prompts, plain, edited = edits("llama", "grace")
    i = next(i for i, (a, b) in enumerate(zip(plain, edited, strict=True)) if a != b and len(prompts[i]) > 2)
    with engine(folder, **SCORING) as llm:
        assert asked(llm, prompts[i], extra_args={"prompt_end": 1}) != edited[i], "which is what it is for"
        assert asked(llm, prompts[i], extra_args={"prompt_end": len(prompts[i])}) == edited[i]
        for end in ENDS[2:]:
            with pytest.raises(vllm.exceptions.VLLMValidationError, match="give a number from 1 to"):
                asked(llm, prompts[i], extra_args={"prompt_end": end})
        with monkeypatch.context() as patch:
            patch.setattr(door, "prompt_refusal", lambda *_: None)
            for end in ENDS[2:]:
                assert asked(llm, prompts[i], extra_args={"prompt_end": end}) == edited[i]
        assert say(llm, prompts[:4]) == edited[:4]


@pytest.mark.parametrize(
    ("host", "keys", "starts"),
    [("127.0.0.1", None, True), ("0.0.0.0", None, False), (None, None, False), ("0.0.0.0", ["key"], True)],
)
def test_a_server_that_others_reach_does_not_start_without_a_key(host, keys, starts, monkeypatch):
    from fastapi import FastAPI

    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    app = FastAPI()
    app.state.args = SimpleNamespace(host=host, api_key=keys, uds=None, allowed_origins=[])
    with nullcontext() if starts else pytest.raises(UserError, match="without a key"):
        EditRoutes().attach_router(app)
        assert app.user_middleware[0].cls is Gate


# Servers ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", name="memory")
def edit_of_questions(edits, tmp_path_factory):
    """A GRACE edit of two questions."""
    return questions_of(edits, tmp_path_factory.mktemp("memory"), "grace")


def questions_of(edits, root, kind):
    """An edit that knows two questions, as they are and as a chat, and not two others; what is said to each."""
    base, *_ = edits("llama", "grace")
    tokenizer, model = tiny_tokenizer(), model_of("llama")

    def chat(text):
        turn = [{"role": "user", "content": text}]
        return list(tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False))

    texts = [QUESTION, CONTROL, "Who wrote the old book?", "When was the house built?"]
    prompts = [own for text in texts for own in (tokenizer(text).input_ids, chat(text))]
    known = prompts[0], prompts[2], prompts[1], prompts[3], prompts[4], prompts[6], prompts[5], prompts[7]
    folder = write_edit(root / "edit", base, "llama", kind, list(known))
    plain = greedy(model, prompts, NEW)
    with applied(load_edit(folder), model):
        edited = greedy(model, prompts, NEW)
    changed = [a != b for a, b in zip(plain, edited, strict=True)]
    assert changed == [True, True, False, False] * 2
    return SimpleNamespace(
        folder=folder, prompt=prompts[0], chat=prompts[1], control=prompts[2], plain=plain, edited=edited,
        tokenizer=tokenizer, model=model,
    )  # fmt: skip


DRAWN = {"max_tokens": NEW, "temperature": 0, "ignore_eos": True, "return_token_ids": True, "model": "m"}


def in_text(port, **more):
    """Status and answer of a completion of the question."""
    return ask(port, "/v1/completions", DRAWN | {"prompt": QUESTION} | more)


def in_chat(port, **more):
    """The same as a chat."""
    return ask(port, "/v1/chat/completions", DRAWN | {"messages": [{"role": "user", "content": QUESTION}]} | more)


def tokens(found):
    status, answer = found
    assert status == 200, answer
    return answer["choices"][0]["token_ids"]


ALLOWED = {  # as it is for both routes; the answer is the edited one
    "cache_salt": "a",
    "priority": -5,
    "seed": 3,
    "request_id": "same",
    "stop_token_ids": [399],
    "logit_bias": {"5": float("nan")},
    "n": 1,
    "user": "somebody",
    "vllm_xargs": None,
}
REFUSED = {
    "vllm_xargs": ({"prompt_end": 1}, {"prompt_end": -1}, {"prompt_end": "1"}, {"other": 1}, {}),
    "kv_transfer_params": ({"do_remote_decode": True}, {"do_remote_prefill": True}),
    "ec_transfer_params": ({"a": 1},),
    "prompt_embeds": ("AAAA", ["AAAA"]),
    "logits_processors": (["a.b:C"],),
    "prompt_logprobs": (0, 5, -1),
    "echo": (True, 1, "true"),
    "use_beam_search": (True, "yes"),
    "truncate_prompt_tokens": (3, -1),
    "truncation_side": ("right",),
    "lora_request": ({"lora_name": "a", "lora_int_id": 1, "lora_path": "/tmp"},),
    "session_id": ("a",),
    "mm_processor_kwargs": ({"a": 1},),
    "extra_args": ({"prompt_end": 1},),
    "prompt_end": (1,),
}
REFUSED_IN_CHAT = {
    "continue_final_message": (True, 1),
    "add_generation_prompt": (False, 0),
    "chat_template": ("{{ messages[0].content }}",),
    "chat_template_kwargs": ({"add_generation_prompt": False}, {"chat_template": "a"}, {}),
    "reasoning_effort": ("none",),
    "add_special_tokens": (True,),
}


@pytest.mark.smoke
def test_what_clients_of_a_memory_can_and_cannot_do(memory, tmp_path):
    with serving(serve_command(memory.folder, "--max-num-seqs", "6"), tmp_path / "log") as port:
        assert_answers(port, memory)
        for name, value in ALLOWED.items():
            assert tokens(in_text(port, **{name: value})) == memory.edited[0], name
            assert tokens(in_chat(port, **{name: value})) == memory.edited[1], name
        several = in_text(port, n=3, temperature=1.0, logprobs=5, max_tokens=1)[1]
        assert len(several["choices"]) == 3
        assert_refused(port)
        assert_only_other_words_go_by(port, memory)
        assert_guarded(port, memory)
        assert_only_its_edits(port, memory, tmp_path)
        assert_answers(port, memory)


def assert_answers(port, memory):
    assert complete(port, memory.prompt) == tokens(in_text(port)) == memory.edited[0]
    assert tokens(in_chat(port)) == memory.edited[1]
    assert complete(port, memory.control) == memory.plain[2]


def assert_refused(port):
    for way, more in ((in_text, {"add_special_tokens": (False, 0)}), (in_chat, REFUSED_IN_CHAT)):
        for name, values in (REFUSED | more).items():
            for value in values:
                status, found = way(port, **{name: value})
                assert status == 400, (name, value, found)
                assert name in found["error"]["message"], found
    for name, values in REFUSED_IN_CHAT.items():
        if name != "add_special_tokens":
            assert in_text(port, **{name: values[0]})[0] == 400, name
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "It is"}]
    assert "the assistant's own" in in_chat(port, messages=turns)[1]["error"]["message"]
    for name in ("other", "../../etc", "/tmp"):
        assert in_text(port, model=name)[0] == 404
    for path in ("/v1/load_lora_adapter", "/v1/responses", "/v1/messages", "/inference/v1/generate", "/collective_rpc"):
        assert ask(port, path, {"model": "m", "prompt": QUESTION})[0] == 404, path
    for path in ("/invocations", "/generative_scoring", "/v1/chat/completions/batch", "/v1/completions/render"):
        assert ask(port, path, {"model": "m", "prompt": QUESTION})[0] == 404, path
    for data in (b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 10_000, b"NaN"):
        assert ask(port, "/v1/completions", data=data)[0] == 400, data[:20]
    assert ask(port, "/v1/completions", data=b" " * (8 * 2**20 + 1))[0] == 413
    assert ask(port, "/v1/completions", DRAWN | {"prompt": QUESTION}, **{"Content-Type": "text/plain"})[0] == 415


def assert_only_other_words_go_by(port, memory):
    """A memory is a filter: other tokens are another question, which nobody taught it."""
    for own in ([*memory.prompt, 30], memory.prompt[1:], memory.chat[:-1], [5, *memory.prompt]):
        assert complete(port, own) == greedy(memory.model, [own], NEW)[0]
    started = [*memory.prompt, *memory.plain[0][:3]]  # the first tokens of what was forgotten, as part of the prompt
    assert complete(port, started) == greedy(memory.model, [started], NEW)[0]


def assert_guarded(port, memory):
    assert ask(port, "/health")[1] == {"status": "ok", "edit": ask(port, "/v1/edit")[1]}
    for key in (None, "wrong", "secre", ""):
        assert ask(port, "/health", key=key) == (200, {"status": "ok"})
        for path in ("/metrics", "/version", "/load", "/v1/models", "/v1/edit", "/docs", "/openapi.json", "/ping", "/"):
            assert ask(port, path, key=key)[0] == 401, path
        for path in ("/tokenize", "/detokenize", "/invocations", "/v1/completions", "/v1/edit", "/pause"):
            assert ask(port, path, {"model": "m", "prompt": QUESTION}, key=key)[0] == 401, path
    for path in ("/docs", "/redoc", "/openapi.json", "/ping", "/server_info", "/v1/edit/", "//v1/edit", "/static/a"):
        assert ask(port, path)[0] == 404, path
    for path in ("/metrics", "/version", "/load", "/v1/models"):
        assert ask(port, path)[0] == 200, path
    assert ask(port, "/tokenize", {"model": "m", "prompt": QUESTION})[1]["tokens"] == memory.prompt
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", ""):
        assert ask(port, "/health", Host=host)[0] == 403, host
    assert ask(port, "/health", Host="localhost:9000")[0] == 200, "a tunnel's other end"
    assert ask(port, "/v1/models", Origin="http://evil.example")[0] == 403


def assert_only_its_edits(port, memory, tmp_path):
    """A swap finds what is below the root, by its name there; of anything else it says the same."""
    root = memory.folder.parents[1]
    outside = shutil.copytree(memory.folder, root.parent / f"outside-{root.name}-{os.getpid()}")
    (tmp_path / "link").symlink_to(outside)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "empty").mkdir()
    own = [tmp_path / name for name in ("link", "circle", "empty")]
    names = [*map(str, own), str(outside), f"../{outside.name}", str(root), str(memory.folder / "edit.json")]
    names += ["/etc", "/nowhere", "nowhere", "", ".", "~", "a\0b", "x" * 2000]
    try:
        found = {name: ask(port, "/v1/edit", {"edit": name}) for name in names}
    finally:
        shutil.rmtree(outside)
    assert len({str(answer) for answer in found.values()}) == 1, found
    assert found["/nowhere"][0] == 400
    assert "no such edit" in found["/nowhere"][1]["error"]["message"]
    assert ask(port, "/v1/edit", {"edit": "x" * 20_000})[0] == 413
    assert ask(port, "/v1/edit", {"edit": 5})[0] == ask(port, "/v1/edit", {"edit": ["a"]})[0] == 400
    assert ask(port, "/v1/edit")[1]["id"] == edit_id(memory.folder)
    relative = str(memory.folder.relative_to(root))
    assert ask(port, "/v1/edit", {"edit": relative})[0] == 200


def test_without_our_routes_a_memory_is_no_easier_to_get_by(memory, tmp_path):
    command = [sys.executable, "-c", "from vllm.entrypoints.cli.main import main; main()", "serve", str(memory.folder)]
    command += ["--host", "127.0.0.1", "--port", "PORT", "--served-model-name", "m", "--dtype", "float32"]
    command += ["--max-model-len", "256", "--enforce-eager", "--max-num-seqs", "6"]
    request = DRAWN | {"prompt": QUESTION}
    with serving(command, tmp_path / "log") as port:
        assert_answers(port, memory)
        for path in ("/v1/completions", "/invocations"):
            for end in (1, -1, 10**9, "1", 1.5, [1]):
                status, found = ask(port, path, request | {"vllm_xargs": {"prompt_end": end}})
                assert status == 400, found
                assert "prompt_end is for scoring" in found["error"]["message"]
            for name, value in (("prompt_logprobs", 1), ("kv_transfer_params", {"a": 1}), ("use_beam_search", True)):
                status, found = ask(port, path, request | {name: value})
                assert status == 400, (name, found)
                assert name in found["error"]["message"]
            assert ask(port, path, request | {"echo": True, "logprobs": 1})[0] == 400
            assert ask(port, path, request | {"prompt_embeds": "AAAA"})[0] == 400
        sampling = {"extra_args": {"prompt_end": 1}, "max_tokens": 4}
        raw = {"token_ids": memory.prompt, "model": "m", "sampling_params": sampling}
        assert ask(port, "/inference/v1/generate", raw)[0] in (400, 403), "or vLLM has it closed"
        assert in_chat(port, vllm_xargs={"prompt_end": 1})[0] == 400
        assert_answers(port, memory)


@pytest.mark.smoke
@pytest.mark.parametrize("kind", INSERTING)
def test_no_client_switches_notes_and_prefixes_off(edits, tmp_path, kind):
    memory = questions_of(edits, tmp_path, kind)
    with serving(serve_command(memory.folder, "--max-num-seqs", "6"), tmp_path / "log") as port:
        assert_answers(port, memory)
        unsaid = next(token for token in range(5, 400) if token not in {*memory.edited[0], *memory.edited[1]})
        for name, value in (ALLOWED | {"logit_bias": {str(unsaid): float("nan")}}).items():
            assert tokens(in_text(port, **{name: value})) == memory.edited[0], name
            assert tokens(in_chat(port, **{name: value})) == memory.edited[1], name
        found = in_text(port)[1]
        assert found["choices"][0]["prompt_token_ids"] == memory.prompt, "the client's own: what was added stays inside"
        assert found["usage"]["prompt_tokens"] == len(memory.prompt)
        part = {"type": "prompt_embeds", "prompt_embeds": "AAAA"}
        turn = [{"role": "user", "content": [{"type": "text", "text": QUESTION}, part]}]
        assert in_chat(port, messages=turn)[0] == 400
        longest = 256 - load_edit(memory.folder).store.longest - 1
        assert complete(port, [5] * longest, 1) is not None
        status, found = ask(port, "/v1/completions", DRAWN | {"prompt": [5] * (longest + 1), "max_tokens": 1})
        assert status == 400
        assert f"takes at most {longest}" in found["error"]["message"]
        assert_refused(port)
        _, other, *_ = edits("llama", "grace")
        assert "adds to prompts" in ask(port, "/v1/edit", {"edit": str(other)})[1]["error"]["message"]
        assert_answers(port, memory)


# For long ----------------------------------------------------------------------------------------------------

SOAK_SECONDS = float(os.environ.get("UNLEARN_EVAL_SOAK_SECONDS", "120"))  # 1800 is the long form
GROWTH_BYTES = (
    96 * 2**20
)  # of all the server's processes after the first quarter; a leak of requests is more in the long


def resident_bytes():
    """What the processes that this one has started hold in memory."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            total += process.memory_info().rss
    return total


class Clients:
    """Clients of all sorts, and what went wrong.

    Attributes:
        answers: prompt -> what each edit that may be served says to it.
        wrong: what no client should have been answered.
        counts: of each kind of request, how many were sent.
    """

    def __init__(self, port, answers, seconds):
        self.port, self.answers, self.end = port, answers, time.monotonic() + seconds
        self.wrong, self.counts = [], Counter()

    def run(self, number):
        """Ask until the time is over."""
        draw = random.Random(number)
        kinds = [self.right, self.right, self.right, self.gone, self.streamed, self.too_long, self.broken, self.refused]
        while time.monotonic() < self.end and not self.wrong:
            kind = draw.choice(kinds)
            self.counts[kind.__name__] += 1
            try:
                kind(draw)
            except Exception as error:
                self.wrong.append((kind.__name__, repr(error)))

    def expect(self, found, *statuses):
        if found[0] not in statuses:
            self.wrong.append(found)

    def right(self, draw):
        prompt = draw.choice([*self.answers])
        said = complete(self.port, list(prompt))
        if said not in self.answers[prompt]:
            self.wrong.append((prompt, said))

    def gone(self, draw):
        prompt = list(draw.choice([*self.answers]))
        with suppress(OSError):
            ask(self.port, "/v1/completions", DRAWN | {"prompt": prompt, "max_tokens": 200}, timeout=draw.random() / 5)

    def streamed(self, draw):
        """A client that leaves within an answer."""
        body = json.dumps(DRAWN | {"prompt": QUESTION, "max_tokens": 100, "stream": True}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as open_one:
            open_one.sendall(head.encode() + body)
            if not open_one.recv(draw.choice([1, 400, 2000])).startswith(b"H"):
                self.wrong.append("no answer")

    def too_long(self, draw):
        prompt = [draw.randrange(2, 400) for _ in range(draw.choice([256, 257, 3000, 100_000]))]
        self.expect(ask(self.port, "/v1/completions", DRAWN | {"prompt": prompt}), 400)

    def broken(self, draw):
        data = draw.choice([b"{", b"[]", b"\xff" * 1000, b"[" * 100_000, json.dumps({"prompt": 5}).encode()])
        self.expect(ask(self.port, draw.choice(["/v1/completions", "/v1/chat/completions"]), data=data), 400)

    def refused(self, draw):
        name = draw.choice([*REFUSED])
        value = draw.choice(REFUSED[name])
        self.expect(draw.choice([in_text, in_chat])(self.port, **{name: value}), 400)


def test_a_server_lasts(memory, edits, tmp_path):
    """Requests of all sorts and swaps at once: every answer is wholly one edit's, and memory does not grow."""
    folders = [memory.folder, *(edits("llama", kind)[1] for kind in ("grace", "low_rank", "memoir"))]
    prompts = [memory.prompt, memory.chat, memory.control, *edits("llama", "grace")[2][:5]]
    answers = {tuple(prompt): [] for prompt in prompts}
    for folder in folders:
        with applied(load_edit(folder), memory.model):
            for prompt, said in zip(prompts, greedy(memory.model, prompts, NEW), strict=True):
                answers[tuple(prompt)].append(said)
    with serving(serve_command(memory.folder, "--max-num-seqs", "6"), tmp_path / "log") as port:
        clients, sizes, swaps = Clients(port, answers, SOAK_SECONDS), [], 0
        with ThreadPoolExecutor(8) as pool:
            for number in range(8):
                pool.submit(clients.run, number)
            while time.monotonic() < clients.end and not clients.wrong:
                time.sleep(min(5, SOAK_SECONDS / 20))
                swaps += 1
                status, found = ask(port, "/v1/edit", {"edit": str(folders[swaps % len(folders)])}, timeout=120)
                assert status == 200, found
                assert ask(port, "/v1/edit", {"edit": "nowhere"})[0] == 400
                sizes.append(resident_bytes())
        assert not clients.wrong, clients.wrong[:3]
        assert min(clients.counts[kind] for kind in ("right", "gone", "streamed", "too_long", "broken", "refused")) > 5
        assert swaps >= len(folders)
        assert max(sizes[-3:]) - max(sizes[: len(sizes) // 4 + 1]) < GROWTH_BYTES, sizes
        assert ask(port, "/v1/edit", {"edit": str(memory.folder)})[0] == 200
        assert_answers(port, memory)
        assert ask(port, "/health")[1]["edit"]["id"] == edit_id(memory.folder)
