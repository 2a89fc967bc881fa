"""vLLM's own LoRA serving reads edits as they are: one server answers as the base and as each of many edits."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from serving_models import greedy, model_of, shape_of
from tiny_models import tiny_tokenizer
from vllm_engines import NEW, ask, complete, edits_and_answers, engine_settings, serving  # noqa: F401

from unlearn_eval import load_edit
from unlearn_eval.edits import applied
from unlearn_eval.scoring import Query, score_answers

pytestmark = pytest.mark.vllm
RANKS = {"one": 1, "three": 3, "twenty": 20}


def edit_of_rank(folder, edit, model, rank):
    """Other factors at the same modules; at the second module one rank less, if there is one."""
    draw = torch.Generator().manual_seed(rank)
    factors = {}
    for name, own in zip(edit.factors, (rank, max(1, rank - 1)), strict=True):
        d_out, d_in = shape_of(model, name)
        u, v = torch.randn(d_out, own, generator=draw), torch.randn(own, d_in, generator=draw)
        factors[name] = 0.5 * u / rank**0.5, v
    return replace(edit, factors=factors).save(folder, tiny_tokenizer(), model.config)


def scores_of(port, model, ids):
    """Ln p of each token of a prompt but the first, as the server gives it."""
    asked = {"model": model, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    status, found = ask(port, "/v1/completions", asked)
    assert status == 200, found
    rows = found["choices"][0]["prompt_logprobs"][1:]
    return [row[str(token)]["logprob"] for row, token in zip(rows, ids[1:], strict=True)]


def test_one_server_answers_as_the_base_and_as_each_edit(edits, tmp_path):
    base, first, prompts, plain, _ = edits("llama", "low_rank")
    model, expected, folders = model_of("llama"), {"plain": plain}, {}
    for name, rank in RANKS.items():
        folders[name] = edit_of_rank(tmp_path / name, load_edit(first), model, rank)
        with applied(load_edit(folders[name]), model):
            expected[name] = greedy(model, prompts, NEW)
    some = [tuple(map(tuple, said)) for said in expected.values()]
    assert len(set(some)) == len(some), "each edit says something of its own"
    command = [sys.executable, "-c", "from vllm.entrypoints.cli.main import main; main()", "serve", str(base)]
    command += ["--port", "PORT", "--served-model-name", "plain", "--dtype", "float32", "--max-model-len", "256"]
    # One LoRA more than there are: on CPUs vLLM gives requests for the base, in a batch with others, the last one.
    command += ["--enforce-eager", "--enable-lora", "--max-lora-rank", "32", "--max-loras", str(len(folders) + 1)]
    command += ["--lora-target-modules", "down_proj", "--lora-modules"]
    command += [f"{name}={folder}" for name, folder in folders.items()]
    with serving(command, tmp_path / "log") as port:
        names = [model["id"] for model in ask(port, "/v1/models")[1]["data"]]
        assert sorted(names) == sorted(expected)
        asked = [(name, i) for i in range(len(prompts)) for name in expected]  # mixed
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda own: complete(port, prompts[own[1]], model=own[0]), asked))
        scored = {name: scores_of(port, name, prompts[3]) for name in expected}
    for (name, i), said in zip(asked, found, strict=True):
        assert said == expected[name][i], (name, i)
    for name, own in scored.items():
        with applied(load_edit(folders[name]), model) if name in folders else nullcontext():
            (score,) = score_answers(model, [Query(tuple(prompts[3][:1]), tuple(prompts[3][1:]))])
        # Base and adapter are computed apart and added, which rounds otherwise than one matrix does.
        torch.testing.assert_close(torch.tensor(own), -torch.tensor(score.token_nll), atol=3e-4, rtol=0)


def test_only_modules_that_edits_change_have_room_for_them(edits):
    """Room costs time wherever it is; where names are not the checkpoint's, it is by their last part."""
    from unlearn_eval.backends import engine_stopped
    from unlearn_eval.harness.together import Engine, read_adapter

    base, folder, *_ = edits("llama", "low_rank")
    own = read_adapter(str(folder))
    model = model_of("llama")
    every = sorted(name for name, _ in model.named_modules() if name.endswith("down_proj"))
    assert own.modules < set(every)
    elsewhere = replace(own, modules=frozenset(name.replace("model.", "text.model.") for name in own.modules))
    for adapter, without in ((own, sorted(set(every) - own.modules)), (elsewhere, [])):
        options = {"dtype": "float32", "max_model_len": 256, "enforce_eager": True}
        engine = Engine(str(base), [adapter], **options)
        with engine_stopped(engine.own):
            (found,) = engine.own.model.collective_rpc("unlearn_eval_without_lora", args=(every,))
        assert found == without
