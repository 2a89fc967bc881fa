"""Edits that take each other's place in a running engine: answers are wholly the old edit's or wholly the new one's."""

from __future__ import annotations

import functools
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from serving_models import PROJECTION, greedy, model_of, write_edit
from tiny_models import tiny_tokenizer
from vllm_engines import (  # noqa: F401
    NEW,
    ask,
    complete,
    edits_and_answers,
    engine,
    engine_settings,
    say,
    serve_command,
    serving,
)

from unlearn_eval import load_edit
from unlearn_eval.edits.base import applied
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.serving.names import EXTENSION
from unlearn_eval.serving.plugin import edit_id
from unlearn_eval.serving.swapping import EngineFacts, check_swap, facts_of, is_memory

pytestmark = pytest.mark.vllm
HELD = 24  # tokens of the answers that are under way during a swap


@pytest.fixture
def server(edits, tmp_path):
    """A server that was started with GRACE, eager; gives its port, and how to ask it all prompts at once."""
    _, grace, prompts, *_ = edits("llama", "grace")
    with serving(serve_command(grace, "--max-num-seqs", "6"), tmp_path / "log") as port:

        def everything(n=NEW):
            with ThreadPoolExecutor(16) as pool:
                return list(pool.map(functools.partial(complete, port, n=n), prompts))

        yield port, everything


def swap(port, folder):
    return ask(port, "/v1/edit", {"edit": str(folder)}, timeout=300)


def test_memories_take_each_others_place_and_that_of_weights(server, edits, tmp_path):
    port, everything = server
    base, grace, prompts, plain, as_grace = edits("llama", "grace")
    elsewhere = PROJECTION["llama"].replace(".2.", ".1.")
    moved = write_edit(tmp_path / "moved", base, elsewhere, "grace", prompts[1:31], model=model_of("llama"))
    fewer = write_edit(tmp_path / "fewer", base, "llama", "grace", prompts[:9], positions="last", radius=0.02)
    model, longer, as_before = model_of("llama"), {}, plain
    steps = [edits("llama", kind)[1] for kind in ("wise", "memoir", "low_rank", "grace", "dense")]
    steps += [moved, edits("llama", "low_rank")[1], fewer, grace]
    for folder in (grace, *steps):
        if folder not in longer:
            with applied(load_edit(folder), model):
                longer[folder] = greedy(model, prompts, HELD)
    assert everything() == as_grace
    served = grace
    for folder in steps:
        with ThreadPoolExecutor(2) as pool:
            under_way = pool.submit(everything, HELD)
            time.sleep(0.3)  # some have ended, some run, some wait
            status, found = swap(port, folder)
            assert (status, found.get("id")) == (200, edit_id(folder)), found
            said = under_way.result()
        sides = [(own == old, own == new) for own, old, new in zip(said, longer[served], longer[folder], strict=True)]
        assert all(old or new for old, new in sides), "an answer of two edits"
        assert any(old and not new for old, new in sides), "none was under way"
        assert ask(port, "/health")[1]["edit"]["id"] == edit_id(folder)
        as_before, served = everything(), folder
        assert as_before == [row[:NEW] for row in longer[folder]], folder.name
    assert as_before == as_grace, "and back again"


def test_what_is_refused_or_fails_leaves_the_edit_that_is_served(server, edits, tmp_path):
    port, everything = server
    base, grace, prompts, _, as_grace = edits("llama", "grace")
    edit = load_edit(grace)
    whole = write_edit(tmp_path / "whole", base, "llama", "wise", prompts, positions="all")
    other = model_of("llama")
    with torch.no_grad():
        other.model.norm.weight += 1e-2
    stranger = write_edit(tmp_path / "stranger", base, "llama", "grace", prompts, model=other)
    nowhere, wide = tmp_path / "nowhere", tmp_path / "wide"
    own = model_of("llama").config
    type(edit)("model.layers.9.mlp.down_proj", edit.store, edit.info).save(nowhere, tiny_tokenizer(), own)
    type(edit)("model.layers.1.self_attn.o_proj", edit.store, edit.info).save(wide, tiny_tokenizer(), own)
    damaged = write_edit(tmp_path / "damaged", base, "llama", "memoir", prompts)
    (damaged / "memory.json").write_text("{}")
    for folder, says in (
        (whole, "a prompt must be run in one step"),
        (stranger, "this server's base has other weights"),
        (nowhere, "is at model.layers.9.mlp.down_proj, which EditedLlamaForCausalLM of vLLM does not have"),
        (wide, "fits a module of 64×96"),
        (damaged, "is not as it was written"),
        (tmp_path / "none", "no such edit below the server's edits root"),
    ):
        status, found = swap(port, folder)
        assert status == 400, found
        assert says in found["error"]["message"]
        assert ask(port, "/health")[1]["edit"]["id"] == edit_id(grace)
    assert everything() == as_grace
    # Its names fit, so that only reading it shows that its factors do not.
    torn = LowRankEdit({"model.layers.1.mlp.down_proj": (torch.ones(96, 1), torch.ones(1, 64))}, edit.info)
    torn.save(tmp_path / "torn", tiny_tokenizer(), own)
    assert swap(port, tmp_path / "torn")[0] == 500
    assert everything() == as_grace
    _, dense, _, _, as_dense = edits("llama", "dense")
    assert swap(port, dense)[0] == 200
    assert swap(port, tmp_path / "torn")[0] == 500
    assert swap(port, wide)[0] == 400
    assert everything() == as_dense


@pytest.mark.both_runners
def test_compiled_engines_exchange_memories_too(edits):
    _, grace, prompts, _, as_grace = edits("llama", "grace")
    whole = {"enable_chunked_prefill": False, "max_num_batched_tokens": 256}
    with engine(grace, enforce_eager=False, **whole) as llm:
        facts = facts_of(llm.llm_engine.vllm_config, grace)
        assert facts == EngineFacts(PROJECTION["llama"], False, False, True, EXTENSION)
        assert say(llm, prompts) == as_grace
        served = grace
        for kind, more in (("memoir", {}), ("low_rank", {}), ("wise", {"positions": "all"}), ("grace", {})):
            _, folder, _, _, expected = edits("llama", kind, **more)
            assert check_swap(served, folder, facts) == facts
            options = {"folder": str(folder), "reload": not (is_memory(served) and is_memory(folder))}
            assert llm.collective_rpc("unlearn_eval_serve", kwargs=options) == [None]
            assert say(llm, prompts) == expected
            served = folder
