"""Notes and prefixes before an engine is there: its core gives the model the prompts that `--model edited` reads."""

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from serving_models import INSERTING, greedy, model_of, prompts_of, write_edit
from tiny_models import one_thread  # noqa: F401

from unlearn_eval import load_edit
from unlearn_eval.edits.base import applied
from unlearn_eval.serving import door, inserting_core, plugin
from unlearn_eval.serving.inserted import Inserting, load_inserting
from unlearn_eval.serving.names import SCHEDULER, WORKER
from unlearn_eval.utils.errors import UserError

PROMPTS, LONGEST = prompts_of(12, longest=30), 64


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("inserting")
    return {kind: write_edit(root / kind, root, "llama", kind, PROMPTS) for kind in INSERTING}


def request_of(ids, **changes):
    """As vLLM's `EngineCoreRequest` is shaped."""
    own = {"prompt_token_ids": list(ids), "prompt_embeds": None, "prompt_is_token_ids": None, "mm_features": None}
    own |= {"resumable": False, "sampling_params": SimpleNamespace(extra_args=None, prompt_logprobs=None)}
    return SimpleNamespace(**own | changes)


def reader(folder, scoring=False, longest=LONGEST):
    return Inserting(load_inserting(folder), torch.float32, longest, scoring)


@torch.no_grad()
def said(model, request, n):
    """What a model says that reads a request as vLLM's does: embeddings where the mask is false, else of its tokens."""
    embedded = model.get_input_embeddings()(torch.tensor(request.prompt_token_ids))
    if request.prompt_embeds is not None:
        real = torch.tensor(request.prompt_is_token_ids)[:, None]
        embedded = torch.where(real, embedded, request.prompt_embeds)
    out = model.generate(inputs_embeds=embedded[None], max_new_tokens=n, do_sample=False, eos_token_id=None)
    return out[0].tolist()


@pytest.mark.parametrize("kind", INSERTING)
def test_a_request_has_the_prompt_that_hugging_face_reads(folders, kind):
    model, read = model_of("llama"), reader(folders[kind])
    with applied(load_edit(folders[kind]), model):
        expected = greedy(model, PROMPTS, 5)
    moved = 0
    for ids, answer in zip(PROMPTS, expected, strict=True):
        request = request_of(ids)
        found = read(request)
        assert request.prompt_token_ids == ids, "the front end's stays"
        assert request.prompt_embeds is None
        assert said(model, found, 5) == answer
        if found is request:
            assert greedy(model, [ids], 5) == [answer]
            continue
        moved += 1
        assert (found.prompt_embeds is not None) == (kind == "prefix")
        assert len(found.prompt_token_ids) == len(ids) + load_edit(folders[kind]).store.longest
        assert found.sampling_params is request.sampling_params
    assert 3 < moved < len(PROMPTS)


def hit(folder):
    """A prompt that something is added to."""
    read = reader(folder)
    return next(ids for ids in PROMPTS if len(ids) > 3 and read(request_of(ids)).prompt_token_ids != ids)


@pytest.mark.parametrize("kind", INSERTING)
def test_only_an_engine_that_scores_asks_where_a_prompt_ends(folders, kind):
    ids, n = hit(folders[kind]), load_edit(folders[kind]).store.longest
    sampling = SimpleNamespace(extra_args={"prompt_end": len(ids), "other": 1})
    longer = request_of([*ids, 7, 8, 9, 10], sampling_params=sampling)
    found = reader(folders[kind], scoring=True)(longer)
    assert found.sampling_params.extra_args == {"prompt_end": len(ids) + n, "other": 1}
    assert sampling.extra_args == {"prompt_end": len(ids), "other": 1}
    assert found.prompt_token_ids[: len(ids) + n] == reader(folders[kind])(request_of(ids)).prompt_token_ids
    assert found.prompt_token_ids[len(ids) + n :] == [7, 8, 9, 10]
    for end in (1, 2, -1, 10**9, "1", True):  # of a client
        own = request_of(ids, sampling_params=SimpleNamespace(extra_args={"prompt_end": end}))
        plain = reader(folders[kind])(request_of(ids))
        assert reader(folders[kind])(own).prompt_token_ids == plain.prompt_token_ids


@pytest.mark.parametrize("kind", INSERTING)
def test_what_cannot_be_read_is_answered_by_nobody(folders, kind):
    ids, read = hit(folders[kind]), reader(folders[kind])
    for changes in (
        {"prompt_embeds": torch.zeros(2, 64)},
        {"mm_features": [1]},
        {"resumable": True},
        {"prompt_token_ids": None},
        {"prompt_token_ids": []},
    ):
        with pytest.raises(RuntimeError, match="others than tokens alone"):
            read(request_of(ids, **changes))
    n = len(ids) + load_edit(folders[kind]).store.longest
    assert reader(folders[kind], longest=n + 1)(request_of(ids)).prompt_token_ids
    with pytest.raises(RuntimeError, match=f"longer than {n - 1} tokens"):
        reader(folders[kind], longest=n)(request_of(ids))


def test_the_door_refuses_what_could_not_be_read():
    def refused(inserts=9, **changes):
        rules = door.Rules(memory=True, scoring=False, inserts=inserts)
        found = door.prompt_refusal(request_of(range(1, 41), **changes), rules, 50)
        return found and found[0]

    assert refused() is None
    assert "the prompt has 41 tokens, and this model takes at most 40" in refused(prompt_token_ids=[1] * 41)
    assert "leave out images" in refused(mm_features=[1])
    assert "leave out streamed input" in refused(resumable=True)
    assert "not on embeddings" in refused(prompt_embeds=torch.zeros(1))
    assert refused(0, prompt_token_ids=[1] * 41, mm_features=[1], resumable=True) is None


def test_what_an_edit_adds_at_most(folders):
    notes = load_edit(folders["notes"]).store
    assert (notes.longest, notes.has_vectors) == (9, False)
    examples = tuple(replace(own, example=(5,) * i) for i, own in enumerate(notes.notes))
    assert replace(notes, notes=examples, demonstrations=2).longest == 9 + 5 + 4
    prefixes = load_edit(folders["prefix"]).store
    assert (prefixes.longest, prefixes.has_vectors) == (3, True)


def test_a_gate_that_asks_the_model_is_refused(folders, tmp_path):
    edit = load_edit(folders["notes"])
    folder = replace(edit, store=replace(edit.store, gate="self")).save(tmp_path / "edit")
    with pytest.raises(UserError, match="asks the model itself"):
        load_inserting(folder)


# Engines ---------------------------------------------------------------------------------------------------


def config_of(folder, number=1, **changes):
    """As vLLM's configuration is shaped."""
    parallel = SimpleNamespace(worker_cls="auto", tensor_parallel_size=4, pipeline_parallel_size=1, enable_dbo=False)
    own = {
        "additional_config": {door.OWN: {"number": number, door.MEMORY: True}},
        "parallel_config": parallel,
        "scheduler_config": SimpleNamespace(scheduler_cls=None, async_scheduling=True),
        "cache_config": SimpleNamespace(enable_prefix_caching=True),
        "model_config": SimpleNamespace(model=str(folder), dtype=torch.float32, max_model_len=LONGEST),
    }
    return SimpleNamespace(**own | dict.fromkeys(("lora_config", "speculative_config", "kv_transfer_config")) | changes)


@pytest.mark.parametrize("kind", INSERTING)
def test_an_engine_is_settled(folders, kind):
    config = config_of(folders[kind])
    plugin._settle_memory(config, folders[kind])
    assert config.scheduler_config.scheduler_cls == SCHEDULER
    assert config.parallel_config.worker_cls == WORKER
    assert config.cache_config.enable_prefix_caching, "prompts are other tokens, and are cached as such"
    own = config.additional_config[door.OWN]
    assert (own[door.INSERTS], own[door.VECTORS]) == ((9, False) if kind == "notes" else (3, True))
    assert door.rules_of(config) == door.Rules(memory=True, scoring=False, inserts=own[door.INSERTS])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lora_config": 1}, "cannot be served with LoRA"),
        ({"speculative_config": 1}, "cannot be served with speculative decoding"),
        ({"kv_transfer_config": 1}, "cannot be served with transfer of keys and values"),
        ({"scheduler_config": SimpleNamespace(scheduler_cls="a.B")}, "scheduler_cls=a.B is another's"),
        ({"parallel_config": SimpleNamespace(worker_cls="a.B")}, "worker_cls=a.B is another"),
    ],
)
def test_engines_that_would_be_wrong_are_refused(folders, changes, says):
    with pytest.raises(UserError, match=says):
        plugin._settle_memory(config_of(folders["notes"], **changes), folders["notes"])


class EngineCore:
    """As vLLM's is shaped."""

    def __init__(self, vllm_config):
        self.vllm_config = vllm_config

    def preprocess_add_request(self, request):
        return request, 0


class Scheduler:
    def __init__(self, vllm_config, block_size):
        self.block_size = block_size


class AsyncScheduler(Scheduler):
    pass


@pytest.fixture
def core(monkeypatch):
    """Stand-ins for the modules of vLLM that an engine's core is made of."""
    fields = dict.fromkeys(("prompt_token_ids", "prompt_embeds", "prompt_is_token_ids"))
    kind = type("EngineCore", (EngineCore,), {"preprocess_add_request": EngineCore.preprocess_add_request})
    for name, own in {
        "vllm": {},
        "vllm.v1": {},
        "vllm.v1.engine": {"EngineCoreRequest": type("EngineCoreRequest", (), fields)},
        "vllm.v1.engine.core": {"EngineCore": kind},
        "vllm.v1.core": {},
        "vllm.v1.core.sched": {},
        "vllm.v1.core.sched.async_scheduler": {"AsyncScheduler": AsyncScheduler},
        "vllm.v1.core.sched.scheduler": {"Scheduler": Scheduler},
    }.items():
        module = ModuleType(name)
        vars(module).update(own)
        monkeypatch.setitem(sys.modules, name, module)
    return kind


def test_every_request_of_an_engine_is_read_by_its_own_edit(folders, core):
    module, _, name = SCHEDULER.rpartition(".")
    assert getattr(sys.modules[module], name) is inserting_core.scheduler
    cores = {}
    for number, kind in enumerate(INSERTING, 10):
        config = config_of(folders[kind], number)
        plugin._settle_memory(config, folders[kind])
        made = inserting_core.scheduler(vllm_config=config, block_size=8)
        assert (type(made), made.block_size) == (AsyncScheduler, 8)
        config.scheduler_config.async_scheduling = False
        assert type(inserting_core.scheduler(vllm_config=config, block_size=8)) is Scheduler
        cores[kind] = core(config)
    ids = hit(folders["notes"])
    for kind, n in (("notes", 9), ("prefix", 3)):
        found, wave = cores[kind].preprocess_add_request(request_of(ids))
        assert (len(found.prompt_token_ids), wave) == (len(ids) + n, 0), "once, though the core was changed twice"
    other = request_of(ids)
    for own in ({}, {door.OWN: {"number": 1, door.MEMORY: True}}):
        plain = core(SimpleNamespace(additional_config=own))
        assert plain.preprocess_add_request(other)[0] is other
    lost = core(SimpleNamespace(additional_config={door.OWN: {"number": 99, door.INSERTS: 3}}))
    with pytest.raises(KeyError):  # and no answer
        lost.preprocess_add_request(other)
