"""Edits in a real engine (vLLM on a CPU): the same tokens and log-probabilities as with Hugging Face, in every mode.

`make test-vllm` runs this in an environment of its own.
"""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from serving_models import INSERTING, KINDS, MEMORIES, greedy, model_of, prompts_of, write_base, write_edit
from tiny_models import tiny_tokenizer
from vllm_engines import (  # noqa: F401
    NEW,
    SCORING,
    V2,
    N,
    ask,
    complete,
    edits_and_answers,
    engine,
    engine_settings,
    run,
    say,
    scores,
    serve_command,
    serving,
    vllm,
)

from unlearn_eval import load_edit
from unlearn_eval.edits.base import applied
from unlearn_eval.harness.requests import make_query
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.scoring import Query, score_answers
from unlearn_eval.runs.evaluate import EvalConfig, run_evaluation
from unlearn_eval.serving.engine import engine_stopped
from unlearn_eval.utils.errors import UserError

pytestmark = pytest.mark.vllm
MODES = {
    "chunked": {"max_num_batched_tokens": 48, "enable_chunked_prefill": True},
    "preempted": {"num_gpu_blocks_override": 12, "max_num_batched_tokens": 256},
    "compiled": {"enforce_eager": False, "max_num_batched_tokens": 256},
}
MODES["compiled and preempted"] = MODES["preempted"] | MODES["compiled"]
IN_MODES = [("llama", mode) for mode in ("chunked", "preempted", "compiled")]
IN_MODES += [(own, mode) for own in ("qwen2", "gpt2") for mode in ("chunked", "compiled and preempted")]
both_runners, smoke = pytest.mark.both_runners, pytest.mark.smoke


def cases():
    """Architecture, mode and kind; those that differ between vLLM's model runners are asked of both."""
    other = {(*own, kind) for own in (IN_MODES[0], IN_MODES[-1]) for kind in (*MEMORIES, *INSERTING)}
    other |= {(*IN_MODES[0], "low_rank")}
    every = [(*own, kind) for own in IN_MODES for kind in KINDS]
    short = {case for case in every if case[:2] == IN_MODES[0]} | {(*IN_MODES[-1], "grace")}
    marks = {case: [*([both_runners] if case in other else []), *([smoke] if case in short else [])] for case in every}
    return [pytest.param(*case, marks=marks[case]) for case in every]


@pytest.mark.parametrize(("architecture", "mode", "kind"), cases())
def test_tokens_and_log_probabilities_are_those_of_hugging_face(edits, architecture, kind, mode):
    _, folder, prompts, plain, edited = edits(architecture, kind)
    changed = sum(a != b for a, b in zip(plain, edited, strict=True))
    assert changed > N // 4
    if kind in (*MEMORIES, *INSERTING):
        assert changed < 3 * N // 4, "some are to be left alone"
    queries = [Query(tuple(prompts[i][:40]), tuple(prompts[i + 1][:7])) for i in range(0, N - 1, 4)]
    model = model_of(architecture)
    with applied(load_edit(folder), model):
        expected = [score.token_nll for score in score_answers(model, queries)]
    with engine(folder, **MODES[mode], **SCORING) as llm:
        assert say(llm, prompts) == edited
        for own, nll in zip(scores(llm, queries), expected, strict=True):
            torch.testing.assert_close(torch.tensor(own), -torch.tensor(nll), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "kind", [*(pytest.param(own, marks=both_runners) for own in ("grace", *INSERTING)), "low_rank"]
)
def test_second_turns_are_those_of_hugging_face(edits, kind):
    """A turn that goes on from an edited answer is a prompt of its own: the first one's cache may not answer."""
    _, folder, prompts, _, edited = edits("llama", kind)
    turns = [[*p, *said, *range(20, 29)] for p, said in zip(prompts[:24], edited, strict=False)]
    model = model_of("llama")
    with applied(load_edit(folder), model):
        expected = greedy(model, turns, NEW)
    with engine(folder, max_num_batched_tokens=64) as llm:
        assert say(llm, prompts[:24]) == edited[:24]
        assert say(llm, turns) == expected
        assert say(llm, turns[:3]) == expected[:3]
        with pytest.raises(Exception, match="maximum context length"):
            say(llm, [[5] * 400])
        assert say(llm, prompts[:3]) == edited[:3], "a refused request harms no other"


@both_runners
def test_positions_that_change_the_prompt_are_run_whole(edits):
    _, folder, prompts, plain, edited = edits("llama", "wise", positions="all")
    assert plain != edited
    with engine(folder, max_num_batched_tokens=256) as llm:
        assert say(llm, prompts[:24]) == edited[:24]
    with pytest.raises(Exception, match="max_num_batched_tokens"), engine(folder, max_num_batched_tokens=64):
        pass


@both_runners
def test_tied_embeddings_that_an_edit_changes(tmp_path):
    prompts = prompts_of(8)
    base = write_base(tmp_path / "base", "llama", tied=True)
    folder = write_edit(tmp_path / "edit", base, "llama", "dense", prompts, tied=True)
    model = model_of("llama", tied=True)
    with applied(load_edit(folder), model):
        expected = greedy(model, prompts, NEW)
    with engine(folder) as llm:
        assert say(llm, prompts) == expected


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("grace", {"enable_lora": True}, "cannot be served with LoRA"),
        ("grace", {"tensor_parallel_size": 2}, "cannot be served with tensor parallelism"),
        ("grace", {"worker_cls": "vllm.v1.worker.cpu_worker.CPUWorker"}, "needs a worker that tells it of each step"),
        ("low_rank", {"quantization": "fp8"}, "fp8 quantization"),
        ("low_rank", {"load_format": "dummy"}, "load_format=dummy"),
    ],
)
def test_what_would_make_answers_wrong_is_refused(edits, kind, options, says):
    _, folder, *_ = edits("llama", kind)
    with pytest.raises(Exception, match=says), engine(folder, **options):
        pass


@smoke
def test_only_the_edited_base_is_served(edits, tmp_path):
    base, folder, prompts, _, edited = edits("llama", "low_rank")
    other = tmp_path / "other"
    model = model_of("llama")
    with torch.no_grad():
        model.model.norm.weight += 1e-2
    model.save_pretrained(other)
    with (
        pytest.raises(Exception, match="has other weights"),
        engine(folder, model_loader_extra_config={"base": str(other)}),
    ):
        pass
    moved = shutil.copytree(base, tmp_path / "moved")
    with engine(folder, model_loader_extra_config={"base": str(moved)}) as llm:
        assert llm.llm_engine.model_config.model == str(folder)
        assert say(llm, prompts[:4]) == edited[:4]
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    with (damaged / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(Exception, match="is not as it was written"), engine(damaged):
        pass


def test_without_the_plugin_nothing_is_served(edits):
    _, folder, *_ = edits("llama", "low_rank")
    code = f"from vllm import LLM; LLM({str(folder)!r}, dtype='float32', enforce_eager=True)"
    environment = {**os.environ, "VLLM_PLUGINS": "none"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "EditedLlamaForCausalLM" in done.stderr


def test_other_versions_and_other_plugins_are_named(monkeypatch):
    from vllm.model_executor.models import ModelRegistry

    from unlearn_eval.serving import plugin

    monkeypatch.setattr(vllm, "__version__", "0.31.2")
    with pytest.raises(UserError, match=r"this is vLLM 0.31.2, and edited models are served with 0.32 up to"):
        plugin.check_version()
    monkeypatch.setitem(ModelRegistry.models, "EditedLlamaForCausalLM", SimpleNamespace(module_name="another.plugin"))
    with pytest.raises(UserError, match=r"another plug-in \(another.plugin\) claims"):
        plugin._check_ours("LlamaForCausalLM")


@pytest.fixture
def server(edits, tmp_path):
    """`unlearn-eval serve` of a low-rank edit; gives its port and the folder."""
    _, folder, *_ = edits("llama", "low_rank")
    with serving(serve_command(folder, "--max-num-seqs", "2"), tmp_path / "log") as port:
        yield port, folder


@smoke
def test_a_server_answers_says_what_it_serves_and_swaps(server, edits):
    from concurrent.futures import ThreadPoolExecutor

    from unlearn_eval.serving.plugin import edit_id

    port, folder = server
    _, dense, prompts, _, as_dense = edits("llama", "dense")
    _, _, _, _, as_low_rank = edits("llama", "low_rank")
    _, grace, *_ = edits("llama", "grace")

    def many():  # more at once than there are slots
        with ThreadPoolExecutor(12) as pool:
            return list(pool.map(functools.partial(complete, port), prompts[:12]))

    assert ask(port, "/health")[1]["edit"]["id"] == edit_id(folder)
    assert ask(port, "/v1/edit", key="wrong")[0] == 401
    request = {"model": "m", "prompt": prompts[0], "max_tokens": 4, "temperature": 0}
    for name, value in (
        ("prompt_logprobs", 1),
        ("echo", True),
        ("truncate_prompt_tokens", 3),
        ("use_beam_search", True),
    ):
        assert ask(port, "/v1/completions", request | {name: value})[0] == 200, f"{name} shows nothing but the edit"
    for name, value in (("vllm_xargs", {"prompt_end": 1}), ("kv_transfer_params", {"a": 1}), ("nobody_knows", 1)):
        assert ask(port, "/v1/completions", request | {name: value})[0] == 400, name
    assert many() == as_low_rank[:12]
    assert ask(port, "/v1/edit", {"edit": str(dense)})[1]["id"] == edit_id(dense)
    assert ask(port, "/health")[1]["edit"]["kind"] == "dense"
    assert many() == as_dense[:12]
    assert "is a memory edit" in ask(port, "/v1/edit", {"edit": str(grace)})[1]["error"]["message"]
    assert ask(port, "/v1/edit", {"edit": "/nowhere"})[0] == 400
    status, found = ask(port, "/v1/completions", {"model": "m", "prompt": [5] * 400, "max_tokens": 4})
    assert status == 400
    with suppress(OSError):  # a client that goes away
        ask(port, "/v1/completions", {"model": "m", "prompt": prompts[0], "max_tokens": 200}, timeout=0.05)
    assert many() == as_dense[:12]
    assert ask(port, "/v1/edit", {"edit": str(folder)})[0] == 200
    assert many() == as_low_rank[:12]


def assert_same_metrics(found, expected):
    assert found.metrics.keys() == expected.metrics.keys()
    for task, metrics in expected.metrics.items():
        for name, metric in metrics.items():
            assert found.metrics[task][name].value == pytest.approx(metric.value, abs=1e-4), name


def with_hugging_face(**settings):
    """The same evaluation without vLLM."""
    own = {"model_args": "dtype=float32,max_length=512", "device": "cpu"} | settings
    paths = {name: str(own[name]) for name in ("model", "edit", "output")}
    return run_evaluation(EvalConfig(**{**own, **paths}), print)


def test_several_edits_share_one_engine(edits, tmp_path):
    from dataclasses import replace

    from unlearn_eval.results.files import read_result

    base, folder, *_ = edits("llama", "low_rank")
    edit = load_edit(folder)
    second = tmp_path / "second"
    replace(edit, factors={name: (2 * u, v) for name, (u, v) in edit.factors.items()}).save(
        second, tiny_tokenizer(), model_of("llama").config
    )
    asked = ["eval", "--tasks", "unlearn_facts", "--model", base, "--limit", "30", "--gen_kwargs", "max_gen_toks=8"]
    asked += ["--metadata", '{"forget": "capital_of", "encoder": "off"}']
    together = [*asked, "--backend", "vllm", "--model_args", "dtype=float32,max_model_len=512,enforce_eager=True"]
    done = run(*together, "--edits", folder, second, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr[-2000:]
    same = {"tasks": ("unlearn_facts",), "model": str(base), "limit": 30, "gen_kwargs": "max_gen_toks=8"}
    same["metadata"] = {"forget": "capital_of", "encoder": "off"}
    for own in (folder, second):
        (path,) = (tmp_path / "out").glob(f"*+{own.name}_*.json")
        found, expected = read_result(path), with_hugging_face(edit=own, output=tmp_path / f"{own.name}.json", **same)
        assert found.edit["editor"] == expected.edit["editor"]
        assert_same_metrics(found, expected)
    _, dense, *_ = edits("llama", "dense")
    refused = run(*together, "--edits", folder, dense, "--output", tmp_path / "no")
    assert refused.returncode == 1
    assert "only low-rank ones can share an engine" in refused.stderr


def test_a_study_asks_both_back_ends(edits, tmp_path):
    from study_files import memit, write_study

    from unlearn_eval.results.files import read_result

    base, *_ = edits("llama", "low_rank")
    (base / "text.txt").write_text("What is the capital of Spain? Nobody knows. " * 60)
    study = write_study(tmp_path / "study.yaml", base, editors=[memit(base)], backends=["hf", "vllm"])
    done = run("run", study, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr[-2000:]
    results = {path.parent.name: read_result(path) for path in (tmp_path / "out").glob("runs/*/result.json")}
    assert len(results) == 4
    assert len(list((tmp_path / "out").glob("shared/edits/*/edit.json"))) == 1, "both ask the same edit"
    for name, result in results.items():
        if "_vllm-" in name:
            same = name.split("_vllm-")[0]
            (own,) = [other for key, other in results.items() if key.startswith(f"{same}-")]
            assert result.config["model_type"] == ("vllm" if result.edit is None else "edited-vllm")
            assert_same_metrics(result, own)


@pytest.mark.parametrize("kind", ["low_rank", "dense"])
def test_two_processes_of_one_engine_share_an_edited_model(edits, kind, monkeypatch):
    base, folder, prompts, _, edited = edits("qwen2", kind)
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    code = (
        "import json, sys; from vllm import LLM, SamplingParams, TokensPrompt\n"
        "if __name__ == '__main__':\n"
        f"    options = dict(dtype='float32', enforce_eager=True, tensor_parallel_size=2, max_model_len=256)\n"
        f"    llm = LLM({str(folder)!r}, **options)\n"
        "    prompts = [TokensPrompt(prompt_token_ids=p) for p in json.load(sys.stdin)]\n"
        f"    sampling = SamplingParams(temperature=0, max_tokens={NEW}, ignore_eos=True, detokenize=False)\n"
        "    said = [list(o.outputs[0].token_ids) for o in llm.generate(prompts, sampling, use_tqdm=False)]\n"
        "    print('SAID', json.dumps(said))\n"
    )
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    script = folder.parent / "two.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, script], input=json.dumps(prompts[:16]), env=environment, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    said = [line for line in done.stdout.splitlines() if line.startswith("SAID")]
    assert said, done.stderr[-2000:]
    assert json.loads(said[0][5:]) == edited[:16]


def test_the_other_model_runner_says_the_same_steps():
    """V2's state (CUDA's default) driven by hand, as its runner would, with what no run here comes to."""
    from unlearn_eval.serving import routed_model

    made = []
    state = object.__new__(routed_model._model_state_cls())
    state.rope_state = state.prompt_embeds_state = None
    state.supports_mm_inputs = False
    layer = SimpleNamespace(begin=made.append, rest=lambda: made.append(None))
    state.model = SimpleNamespace(unlearn_eval_layer=layer)
    state._progress, state._last, state._scoring = routed_model.Progress(), {}, True
    scored = SimpleNamespace(extra_args={"prompt_end": 3})
    plain = SimpleNamespace(extra_args=None)
    for slot, name, n, sampling in ((5, "a", 6, plain), (2, "b", 8, scored)):
        state.add_request(
            slot, SimpleNamespace(req_id=name, prompt_token_ids=[0] * n, sampling_params=sampling, mm_features=[])
        )

    def batch(names, slots, scheduled, computed):
        return SimpleNamespace(
            req_ids=names,
            idx_mapping_np=np.array(slots),
            num_scheduled_tokens=np.array(scheduled),
            num_computed_tokens_np=np.array(computed),
        )

    state.prepare_inputs(batch(["made up", "this too"], [0, 1], [3, 3], [0, 0]), None)
    assert made.pop() is None, "what memory is measured with is nobody's"
    state.prepare_inputs(batch(["b", "a"], [2, 5], [8, 4], [0, 0]), None)
    state.prepare_inputs(batch(["a"], [5], [2], [4]), None)
    state.prepare_dummy_inputs(1, 1)
    assert made[0].slots.tolist() == [2, 5]
    assert made[0].ends.tolist() == [2, -1]
    assert made[0].places.tolist() == [-1, -1, 0, 1, 1, 1, 1, 1, -1, -1, -1, -1]
    assert made[1].ends.tolist() == [1]
    assert made[2] is None
    with pytest.raises(RuntimeError, match="goes on at token 9"):
        state.prepare_inputs(batch(["a"], [5], [1], [9]), None)
    state.remove_request("a")
    state.add_request(5, SimpleNamespace(req_id="a", prompt_token_ids=[0] * 6, sampling_params=plain, mm_features=[]))
    state.prepare_inputs(batch(["a"], [5], [6], [0]), None)
    assert made[-1].ends.tolist() == [5]


@pytest.mark.real_model
@pytest.mark.parametrize("kind", ["low_rank", "grace", "wise"])
def test_a_real_model_says_what_it_says_with_hugging_face(tmp_path, kind):
    from unlearn_eval.models.load import load_model

    loaded = load_model("default", dtype="float32")
    model, name = loaded.model, "model.layers.12.mlp.down_proj"
    prompts = prompts_of(N, longest=60)
    prompts = [[token + 500 for token in prompt] for prompt in prompts]
    more = {"size": 0.02} if kind == "low_rank" else {}
    folder = write_edit(tmp_path / "edit", Path(loaded.path), name, kind, prompts, model=model, **more)
    plain = greedy(model, prompts[:16], 8)
    with applied(load_edit(folder), model):
        edited = greedy(model, prompts, 8)
    assert plain != edited[:16]
    with engine(folder, max_num_seqs=16, max_num_batched_tokens=256) as llm:
        assert say(llm, prompts, 8) == edited


@both_runners
@pytest.mark.parametrize("kind", [None, "grace"])
def test_means_and_variances_are_those_of_hugging_face(edits, kind):
    from lm_eval.api.instance import Instance

    from unlearn_eval.harness.requests import KIND, options
    from unlearn_eval.serving import vllm_models

    base, folder, *_ = edits("llama", kind or "low_rank")
    own = {"dtype": "float32", "max_model_len": 256, "enforce_eager": True, "block_size": 32}
    own |= {"max_num_batched_tokens": 32} if kind else {}  # in several steps
    if kind:
        lm = vllm_models.EditedVLLM(str(base), str(folder), **own)
    else:
        lm = vllm_models.VLLM(str(base), **own)
    with engine_stopped(lm):
        questions = [(f"Who wrote book {'very ' * i}{i}?", f" Nobody wrote {'it ' * (i % 5)}.") for i in range(24)]
        asked = [
            Instance("loglikelihood", {}, (*question, options(PromptFormat(None, False), moments=i % 4 > 0)), i)
            for i, question in enumerate(questions)
        ]
        found = getattr(lm, KIND)(asked, disable_tqdm=True)
        queries = [make_query(lm, *request.args, lm.tok_encode)[0] for request in asked]
    assert max(map(len, queries)) > 40
    model = model_of("llama")
    with applied(load_edit(folder), model) if kind else nullcontext():
        expected = score_answers(model, queries, moments=True)
    for i, (own, score) in enumerate(zip(found, expected, strict=True)):
        assert "partial" not in own
        assert ("means" in own) == (i % 4 > 0)
        for name in ("token_nll", *(("means", "variances") if i % 4 else ())):
            torch.testing.assert_close(torch.tensor(own[name]), torch.tensor(getattr(score, name)), atol=1e-4, rtol=0)


@both_runners
def test_what_answers_have_in_common_is_run_once(edits):
    """Their prompt's blocks are read from the cache; what was cached of an answer itself is run again, to be scored."""
    from lm_eval.api.instance import Instance

    from unlearn_eval.harness.requests import KIND, options
    from unlearn_eval.serving import vllm_models

    base, *_ = edits("llama", "low_rank")
    lm = vllm_models.VLLM(str(base), dtype="float32", max_model_len=256, enforce_eager=True, block_size=32)
    calls, generate = [], lm._model_generate

    def noted(*arguments, **options):
        calls.append(generate(*arguments, **options))
        return calls[-1]

    lm._model_generate = noted
    with engine_stopped(lm):
        questions = [f"Who wrote {'very ' * 12}old book, number {i}?" for i in range(3)]
        answers = [" Nobody wrote it.", " Anna did.", f" Ben {'never ' * 12}did."]
        pairs = [(question, answer) for question in questions for answer in (*answers, answers[-1])]
        asked = [
            Instance("loglikelihood", {}, (*pair, options(PromptFormat(None, False))), i)
            for i, pair in enumerate(pairs)
        ]
        found = getattr(lm, KIND)(asked, disable_tqdm=True)
        queries = [make_query(lm, *request.args, lm.tok_encode)[0] for request in asked]
    first, again = calls
    assert all(0 < len(query.prompt_ids) % 32 for query in queries), "else the prompt's end is cached too"
    assert sum(out.num_cached_tokens > 0 for out in first) == 11, "of the first nothing, of the others the beginning"
    assert len(again) == len(questions), "the answers that were given twice"
    assert all(out.num_cached_tokens == 0 for out in again)
    for out, query in zip(again, queries[len(answers) :: len(answers) + 1], strict=True):
        rows = out.prompt_logprobs[1:]  # of every token but the first
        known = [not math.isnan(rows[i][token].logprob) for i, token in enumerate(out.prompt_token_ids[1:])]
        n_prompt = len(query.prompt_ids) - 1
        # The second runner takes logits of whole steps.
        assert known == [V2] * n_prompt + [True] * len(query.label_ids), "logits of the answer, and of nothing else"
    for own, score in zip(found, score_answers(model_of("llama"), queries), strict=True):
        torch.testing.assert_close(torch.tensor(own["token_nll"]), torch.tensor(score.token_nll), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["dense", "grace"])
def test_tofu_has_the_same_numbers_on_both_back_ends(edits, tmp_path, monkeypatch, kind):
    from tofu_files import write_tofu

    from unlearn_eval.results.files import read_result

    write_tofu(tmp_path / "data")
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(tmp_path / "data"))
    base, folder, *_ = edits("llama", kind)
    off = {"encoder": "off", "fluency_model": "off"}
    asked = ["eval", "--tasks", "unlearn_tofu,unlearn_tofu_privacy", "--model", base, "--edit", folder, "--limit", "24"]
    asked += ["--gen_kwargs", "max_gen_toks=8", "--metadata", json.dumps(off), "--backend", "vllm"]
    asked += ["--model_args", "dtype=float32,max_model_len=512,enforce_eager=True", "--output", tmp_path / "vllm.json"]
    done = run(*asked)
    assert done.returncode == 0, done.stderr[-2000:]
    found = read_result(tmp_path / "vllm.json")
    same = {"tasks": ("unlearn_tofu", "unlearn_tofu_privacy"), "model": base, "edit": folder, "limit": 24}
    expected = with_hugging_face(**same, gen_kwargs="max_gen_toks=8", metadata=off, output=tmp_path / "hf.json")
    assert_same_metrics(found, expected)
    assert found.metrics["unlearn_tofu_privacy"]["mia_min_k_plus_plus_auc"].value is not None
