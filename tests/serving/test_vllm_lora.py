"""vLLM's own LoRA serving reads edits as they are: one server answers as the base and as each of many edits."""

from __future__ import annotations

import json
import shutil
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
from unlearn_eval.edits.base import applied
from unlearn_eval.models.scoring import Query, score_answers
from unlearn_eval.utils.errors import UserError

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


@pytest.mark.both_runners
def test_only_modules_that_edits_change_have_room_for_them(edits):
    """Room costs time wherever it is; where names are not the checkpoint's, it is by their last part."""
    from unlearn_eval.serving.engine import engine_stopped
    from unlearn_eval.serving.together import Engine, read_adapter

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
            (again,) = engine.own.model.collective_rpc("unlearn_eval_quicken")
        assert found == without
        assert again == [], "the engine was quickened when it started"


@pytest.mark.smoke
def test_an_edit_that_does_not_name_its_base_s_weights_starts_no_engine(edits, tmp_path):
    from vllm.engine.arg_utils import EngineArgs

    from unlearn_eval.serving.together import read_adapter
    from unlearn_eval.serving.vllm_models import EditedVLLM

    base, made, *_ = edits("llama", "low_rank")
    folder = tmp_path / "edit"
    shutil.copytree(made, folder)
    content = json.loads((folder / "edit.json").read_text())
    content["info"]["base"]["canonical_hash"] = None
    (folder / "edit.json").write_text(json.dumps(content))
    says = "does not say on which weights it was made"
    with pytest.raises(UserError, match=says):
        read_adapter(str(folder))
    with pytest.raises(UserError, match=says):
        EditedVLLM(str(base), edit=str(folder))
    with pytest.raises(Exception, match=says):
        EngineArgs(model=str(folder), dtype="float32", max_model_len=256, enforce_eager=True).create_engine_config()


def test_adapters_of_a_step_are_multiplied_together():
    """Each token's own factors, also where steps follow each other, and nothing for tokens without an adapter."""
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    from unlearn_eval.serving.cpu_steps import grouped_class

    places, rank, d_in, widths = 4, 3, 5, (6, 2)
    draw = torch.Generator().manual_seed(0)
    first = tuple(torch.randn(places, 1, rank, d_in, generator=draw) for _ in widths)
    second = tuple(torch.randn(places, 1, width, rank, generator=draw) for width in widths)
    wrapper = PunicaWrapperCPU(64, 64, "cpu")
    wrapper.__class__ = grouped_class()
    for own in ([1, 3, 1, 0, 2, 2, 0, 1], [2, 1], [0, 0, 0]):  # ids; 0 is none
        mapping = LoRAMapping(index_mapping=tuple(own), prompt_mapping=tuple(own), is_prefill=True)
        wrapper.update_metadata(mapping, [3, None, 1, 2], places, 100)
        place = {1: 2, 2: 3, 3: 0}
        x, y = torch.randn(len(own), d_in, generator=draw), torch.randn(len(own), sum(widths), generator=draw)
        expected = y.clone()
        for i, name in enumerate(own):
            if name:
                delta = [b[place[name], 0] @ (a[place[name], 0] @ x[i]) for a, b in zip(first, second, strict=True)]
                expected[i] += 0.5 * torch.cat(delta)
        for _ in range(2):  # the second layer of a step
            found = y.clone()
            wrapper.add_lora_linear(found, x, first, second, 0.5, widths)
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quicker_steps_are_the_same(dtype):
    """Norms (alone, and with a residual) and rotations of what attention reads: a part of a wider matrix."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.layernorm import RMSNorm
    from vllm.model_executor.layers.rotary_embedding import get_rope

    from unlearn_eval.serving.cpu_steps import quicken

    draw = torch.Generator().manual_seed(0)
    with set_current_vllm_config(VllmConfig()):
        norm = RMSNorm(32, eps=1e-5, dtype=dtype)
        rope = get_rope(8, 64, is_neox_style=True, dtype=dtype)
    norm.weight.data = torch.randn(32, generator=draw).to(dtype)
    x, residual = (torch.randn(20, 32, generator=draw).to(dtype) for _ in range(2))
    query, key, _ = torch.randn(20, 64, generator=draw).to(dtype).split([32, 16, 16], dim=-1)
    asked = [(norm, (x,)), (norm, (x, residual)), (rope, (torch.arange(20) % 7, query, key))]

    def answers():
        """Of copies, for what is quick works in place."""
        found = []
        for module, inputs in asked:
            wide = [torch.empty(len(t), 64, dtype=t.dtype)[:, : t.shape[1]] if t.dim() > 1 else t for t in inputs]
            own = [
                w.copy_(t) if module is rope and t.dim() > 1 else t.clone() for w, t in zip(wide, inputs, strict=True)
            ]
            said = module(*own)
            found += [said] if isinstance(said, torch.Tensor) else [*said]
        return found

    before = answers()
    assert quicken(torch.nn.ModuleList([norm, rope])) == ["RMSNorm", "RotaryEmbedding"]
    for own, expected in zip(answers(), before, strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5 if dtype == torch.float32 else 0.04, rtol=0)
