"""A real engine for tests (vLLM on a CPU): in this process, as a server, or by our command line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import pytest
from serving_models import greedy, model_of, prompts_of, write_base, write_edit

from unlearn_eval import load_edit
from unlearn_eval.edits.base import applied
from unlearn_eval.serving.engine import engine_stopped


def _with_v2() -> bool:
    """Whether engines of this process have vLLM's second model runner (`VLLM_USE_V2_MODEL_RUNNER=1`), CUDA's default.

    It runs on a CPU too, with Triton's interpreter (`TRITON_INTERPRET=1`) in place of a compiler: vLLM only looks
    whether there is a back end named `cpu`, and so it finds one. PyTorch would ask more of it, and so finds none.
    """
    if os.environ.get("VLLM_USE_V2_MODEL_RUNNER") != "1":
        return False
    from triton.backends import Backend, backends

    backends["cpu"] = Backend(compiler=None, driver=SimpleNamespace(is_active=lambda: True))
    import vllm.triton_utils

    del backends["cpu"]
    assert vllm.triton_utils.HAS_TRITON, "set TRITON_INTERPRET=1"
    return True


vllm = pytest.importorskip("vllm")
V2 = _with_v2()

N, NEW = 64, 16
PLAIN = {"max_model_len": 256, "max_num_seqs": 6, "enforce_eager": True, "block_size": 32}


@pytest.fixture(scope="module", autouse=True, name="settings")
def engine_settings():
    """The engine in this process, with little memory for keys and values."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


SCORING = {"additional_config": {"unlearn_eval": {"scoring": True}}}  # of engines whose requests say where prompts end


@contextmanager
def engine(folder, **options):
    """A vLLM engine; everything of it is gone afterwards."""
    llm = vllm.LLM(str(folder), dtype="float32", seed=0, **(PLAIN | options))
    with engine_stopped(SimpleNamespace(model=llm)):
        yield llm


def say(llm, prompts, n=NEW):
    sampling = vllm.SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False)
    asked = [vllm.TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
    return [list(out.outputs[0].token_ids) for out in llm.generate(asked, sampling, use_tqdm=False)]


def scores(llm, queries):
    """Log-probabilities of each query's labels, the prompt's end said."""
    asked = [vllm.TokensPrompt(prompt_token_ids=[*q.prompt_ids, *q.label_ids]) for q in queries]
    sampling = [
        vllm.SamplingParams(
            temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False,
            extra_args={"prompt_end": len(q.prompt_ids)},
        )
        for q in queries
    ]  # fmt: skip
    found = []
    for out, query in zip(llm.generate(asked, sampling, use_tqdm=False), queries, strict=True):
        rows = out.prompt_logprobs[-len(query.label_ids) :]  # before them there may be what an edit added
        found.append([row[token].logprob for row, token in zip(rows, query.label_ids, strict=True)])
    return found


@pytest.fixture(scope="module", name="edits")
def edits_and_answers(tmp_path_factory):
    """(architecture, kind, settings) -> base, edit's folder, prompts, what is said without and with the edit."""
    root, made = tmp_path_factory.mktemp("edits"), {}
    prompts = prompts_of(N)

    def make(architecture, kind, **more):
        key = (architecture, kind, *sorted(more.items()))
        if key not in made:
            base = root / architecture
            if not base.is_dir():
                write_base(base, architecture)
            folder = write_edit(
                root / "-".join(map(str, key)).replace("'", ""), base, architecture, kind, prompts, **more
            )
            model = model_of(architecture)
            plain = greedy(model, prompts, NEW)
            with applied(load_edit(folder), model):
                made[key] = base, folder, prompts, plain, greedy(model, prompts, NEW)
        return made[key]

    return make


@contextmanager
def serving(command, log):
    """A server that this command starts (a port is added); gives its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("w") as out:
        running = subprocess.Popen(
            [part.replace("PORT", str(port)) for part in command],
            stdout=out, stderr=out, env=environment, start_new_session=True,
        )  # fmt: skip
    try:
        for _ in range(300):
            with suppress(OSError, ValueError):
                if ask(port, "/health")[0] == 200:
                    break
            assert running.poll() is None, log.read_text()[-2000:]
            time.sleep(1)
        yield port
    finally:
        os.killpg(running.pid, signal.SIGTERM)
        running.wait(60)


def serve_command(folder, *more):
    """`unlearn-eval serve` of an edit, known as `m`; its edits' root is where tests have all of theirs."""
    command = [sys.executable, "-m", "unlearn_eval.cli", "serve", str(folder), "--port", "PORT", "--name", "m"]
    command += ["--edits-root", str(folder.parents[1])]
    command += ["--api-key", "secret", "--", "--dtype", "float32", "--max-model-len", "256", "--enforce-eager"]
    return [*command, *more]


def ask(port, path, content=None, key="secret", timeout=60, data=None, **headers):
    """A server's status and answer; `data` are bytes in place of what is sent as JSON."""
    headers = ({"Authorization": f"Bearer {key}"} if key else {}) | {"Content-Type": "application/json"} | headers
    if content is not None:
        data = json.dumps(content).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, _read(answer)
    except urllib.error.HTTPError as error:
        return error.code, _read(error)


def _read(answer):
    """JSON, or the text of what is none."""
    text = answer.read().decode()
    with suppress(ValueError):
        return json.loads(text or "{}")
    return text


def complete(port, prompt, n=NEW, model="m"):
    """The tokens that a server says to a prompt (ids)."""
    asked = {"model": model, "prompt": prompt, "max_tokens": n, "temperature": 0, "ignore_eos": True}
    status, found = ask(port, "/v1/completions", asked | {"return_token_ids": True})
    assert status == 200, found
    return found["choices"][0]["token_ids"]


def run(*arguments):
    """Our command line, in a process of its own; where its engines are is its to say."""
    command = [sys.executable, "-m", "unlearn_eval.cli", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
