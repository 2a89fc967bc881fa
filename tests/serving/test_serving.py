"""What serving does before an engine is there: checkpoints are patched, and steps are routed token by token."""

import asyncio
import json
import os
import random
import re
import shutil
import sys
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from serving_models import KINDS, MEMORIES, model_of, prompts_of, write_edit
from tiny_models import ARCHITECTURES, one_thread, tiny_model, tiny_tokenizer  # noqa: F401

from unlearn_eval import load_edit
from unlearn_eval.edits.base import EditInfo, applied
from unlearn_eval.edits.dense import DenseEdit
from unlearn_eval.edits.load import describe_base
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.edits.memory.edit import MemoryEdit
from unlearn_eval.models.prompt_ends import prompt_lengths, said_prompt_end
from unlearn_eval.serving import door, gate, moments, start, vllm_requests
from unlearn_eval.serving import engine as engines
from unlearn_eval.serving.checkpoint_stream import layout_of, patched
from unlearn_eval.serving.gate import KNOWN, Gate
from unlearn_eval.serving.names import EXTENSION
from unlearn_eval.serving.plugin import edit_id
from unlearn_eval.serving.routed_layer import Progress, RoutedLayer, Slots, step_of
from unlearn_eval.serving.routes import EditRoutes, Served, inside
from unlearn_eval.serving.start import server_environment
from unlearn_eval.serving.swapping import EngineFacts, check_swap, facts_of
from unlearn_eval.serving.vllm_requests import lend, no_moments
from unlearn_eval.utils.errors import UserError


def checkpoint(model, bare=False):
    """What a checkpoint holds of it: tied tensors once, under the input's name; a body alone without its prefix."""
    seen, found = set(), {}
    for name, tensor in sorted(model.state_dict().items(), reverse=True):
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            found[name.removeprefix(f"{model.base_model_prefix}.") if bare else name] = tensor.clone()
    return found


def edit_of(model, kind):
    info = EditInfo(kind, {}, base=describe_base(model, "base"))
    draw = torch.Generator().manual_seed(1)
    if kind == "dense":
        tensors = {n: p.detach() + 1 for n, p in model.named_parameters() if ".1." in n or "embed" in n or "wte" in n}
        return DenseEdit(tensors, info)
    from unlearn_eval.models.anatomy import anatomy

    parts = anatomy(model)
    factors = {
        parts.projection_name(i): (
            torch.randn(parts.d_model, 3, generator=draw),
            torch.randn(3, parts.d_mlp, generator=draw),
        )
        for i in (1, 2)
    }
    return LowRankEdit(factors, info, parts.transposed)


@pytest.mark.parametrize("served", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["low_rank", "dense"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "tied", "bare"])
def test_a_patched_checkpoint_is_the_edited_model(architecture, kind, served):
    if architecture in ("tied", "bare"):
        model = model_of("llama" if architecture == "tied" else "gpt2", tied=True)
    else:
        model = tiny_model(architecture, exact_norms=False)
    edit = edit_of(model, kind)
    layout = layout_of(model.config, type(model).__name__)
    stream = checkpoint(model, bare=architecture == "bare")
    found = dict(patched(stream.items(), edit, layout, served))
    assert found.keys() == stream.keys()
    changed = model.to(served)
    with applied(edit, changed):
        expected = checkpoint(changed, bare=architecture == "bare")
    assert found.keys() == expected.keys()
    n = 0
    for name, tensor in found.items():
        n += int(not torch.equal(tensor, stream[name]))
        assert torch.equal(tensor.to(served), expected[name]), name
    assert n >= 2


def test_what_is_not_the_base_is_refused():
    model = model_of("llama")
    edit, layout = edit_of(model, "low_rank"), layout_of(model.config)
    good = checkpoint(model)

    def refused(stream, check=True):
        with pytest.raises(UserError) as raised:
            list(patched(stream.items(), edit, layout, torch.float32, check, "BASE"))
        return str(raised.value)

    other = good | {"model.norm.weight": good["model.norm.weight"] + 1e-2}
    assert "BASE has other weights" in refused(other)
    assert dict(patched(other.items(), edit, layout, torch.float32, check=False)), "another process has checked it"
    assert "it has no model.norm.weight" in refused({k: v for k, v in good.items() if k != "model.norm.weight"})
    name = "model.layers.1.mlp.down_proj.weight"
    assert f"has no {name}" in refused({k: v for k, v in good.items() if k != name}, check=False)
    assert "the base's weight 96×64" in refused(good | {name: good[name].T}, check=False)
    elsewhere = LowRankEdit({"model.layers.9.mlp.down_proj": (torch.ones(64, 1), torch.ones(1, 96))}, edit.info)
    with pytest.raises(UserError, match="model.layers.9.mlp.down_proj.weight, which its base's configuration"):
        list(patched(good.items(), elsewhere, layout, torch.float32))
    shuffled = dict(reversed(good.items())) | {"model.rotary_emb.inv_freq": torch.ones(2)}
    assert "model.rotary_emb.inv_freq" in dict(patched(shuffled.items(), edit, layout, torch.float32))


# Routing ---------------------------------------------------------------------------------------------------


class Sequence:
    """A request: what its layer reads and gives at each token, and where its prompt ends."""

    def __init__(self, name, inputs, output, last):
        self.name, self.inputs, self.output, self.last = name, inputs, output, last
        self.computed, self.found = 0, [None] * len(inputs)


def schedule(layer, sequences, run, draw, slots, whole_prompts):
    """Run them in random steps, with requests that join, wait, are preempted and leave."""
    progress, waiting, running, preempted = Progress(), list(sequences), [], 0
    while waiting or running:
        while waiting and len(running) < 4 and draw.random() < 0.7:
            running.append(waiting.pop(0))
        if running and draw.random() < 0.25:
            back = running.pop(draw.randrange(len(running)))
            back.computed, preempted = 0, preempted + 1
            slots.free([back.name])
            progress.forget([back.name])
            waiting.insert(0, back)
        now = [s for s in running if draw.random() < 0.8]
        if not now:
            layer.rest()
            run(layer, torch.randn(5, sequences[0].inputs.shape[1]), torch.randn(5, sequences[0].output.shape[1]))
            continue
        draw.shuffle(now)
        sizes = []
        for s in now:
            left = len(s.inputs) - s.computed
            most = s.last + 1 if whole_prompts and s.computed == 0 else draw.randint(1, 9)
            sizes.append(min(left, most) if s.computed <= s.last or whole_prompts else 1)
        computed = [s.computed for s in now]
        progress.check([s.name for s in now], sizes, computed)
        layer.begin(step_of([slots.of(s.name) for s in now], sizes, computed, [s.last for s in now]))
        parts = [slice(s.computed, s.computed + n) for s, n in zip(now, sizes, strict=True)]
        padding = draw.randrange(3)
        inputs = torch.cat([*(s.inputs[p] for s, p in zip(now, parts, strict=True)), torch.randn(padding, 96)])
        output = torch.cat([*(s.output[p] for s, p in zip(now, parts, strict=True)), torch.randn(padding, 64)])
        changed = run(layer, inputs, output)
        at = 0
        for s, n in zip(now, sizes, strict=True):
            s.found[s.computed : s.computed + n] = changed[at : at + n]
            s.computed, at = s.computed + n, at + n
        for s in [s for s in running if s.computed == len(s.inputs)]:
            running.remove(s)
            slots.free([s.name])
            progress.forget([s.name])
    assert preempted, "the test should preempt"


@pytest.mark.parametrize("way", ["_sparing", "_static"])
@pytest.mark.parametrize("positions", ["onward", "last", "prompt", "all"])
@pytest.mark.parametrize(("kind", "more"), [
    ("grace", {}), ("wise", {}), ("wise", {"pool": "max"}), ("wise", {"pool": "last"}), ("memoir", {}),
    ("memoir", {"pool": "last"}),
])  # fmt: skip
def test_tokens_of_many_requests_are_changed_as_rows_of_a_batch_are(tmp_path, kind, more, positions, way):
    prompts = prompts_of(24, longest=30)
    folder = write_edit(tmp_path / "edit", tmp_path, "llama", kind, prompts, positions=positions, **more)
    edit = load_edit(folder)
    assert isinstance(edit, MemoryEdit)
    model = model_of("llama")
    module = model.get_submodule(edit.module)
    longer = [[*prompt, *range(10, 10 + len(prompt) % 7)] for prompt in prompts]
    sequences, expected = [], []
    for i, (prompt, ids) in enumerate(zip(prompts, longer, strict=True)):
        plain, seen = run_layer(model, module, ids, len(prompt))
        with applied(edit, model):
            edited, _ = run_layer(model, module, ids, len(prompt))
        sequences.append(Sequence(str(i), seen, plain, len(prompt) - 1))
        expected.append(edited)
    hit = sum(not torch.equal(a, s.output) for a, s in zip(expected, sequences, strict=True))
    assert 0 < hit < len(prompts)
    memory = edit.store.at(torch.device("cpu"), torch.float32)
    layer = RoutedLayer(memory, 4, 256, torch.zeros(1, 96))
    slots = Slots(4)
    schedule(layer, sequences, lambda own, *given: getattr(own, way)(*given), random.Random(0), slots, memory.before)
    for s, own in zip(sequences, expected, strict=True):
        torch.testing.assert_close(torch.stack(s.found), own, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def run_layer(model, module, ids, n):
    """(T, d_out) what a module gives, after every hook on it, and (T, d_in) what it reads."""
    kept = {}
    own = module.register_forward_hook(lambda _, inputs, output: kept.update(inputs=inputs[0][0], output=output[0]))
    with prompt_lengths([n]):
        model(input_ids=torch.tensor([ids]), use_cache=False)
    own.remove()
    return kept["output"].clone(), kept["inputs"].clone()


def test_steps_that_would_make_a_memory_guess_are_refused():
    progress = Progress()
    progress.check(["a", "b"], [5, 3], [0, 0])
    progress.check(["a"], [1], [5])
    with pytest.raises(RuntimeError, match="b goes on at token 4, and the memory edit has seen 3"):
        progress.check(["b"], [1], [4])
    with pytest.raises(RuntimeError, match="c goes on at token 32"):
        progress.check(["c"], [1], [32])
    progress.check(["a"], [2], [0])
    slots = Slots(2)
    assert {slots.of("a"), slots.of("b"), slots.of("a")} == {0, 1}
    with pytest.raises(RuntimeError, match="2 requests are under way"):
        slots.of("c")
    slots.free(["a", "unknown"])
    assert list(slots) == ["b"]
    assert slots.of("c") in (0, 1)


@pytest.mark.parametrize("way", ["_sparing", "_static"])
@pytest.mark.parametrize("kind", MEMORIES)
def test_decisions_near_a_bound_are_recorded(tmp_path, kind, way, caplog):
    prompts = prompts_of(12, longest=20)
    edit = load_edit(write_edit(tmp_path / "edit", tmp_path, "llama", kind, prompts))
    model = model_of("llama")
    inputs = torch.cat([run_layer(model, model.get_submodule(edit.module), p, len(p))[1] for p in prompts])
    n = [len(p) for p in prompts]

    def near(store):
        layer = RoutedLayer(store.at(torch.device("cpu"), torch.float32), 12, 512, torch.zeros(1, 96))
        for _ in range(64):
            layer.begin(step_of(range(12), n, [0] * 12, [length - 1 for length in n]))
            getattr(layer, way)(inputs, torch.zeros(len(inputs), 64))
        assert layer.n_near % 64 == 0
        return layer.n_near // 64

    assert near(edit.store) == 0
    assert not caplog.records
    value = edit.routes(model, prompts)[1].value  # the second prompt's own measure becomes the bound
    name = {"grace": "radii", "wise": "thresholds", "memoir": "threshold"}[kind]
    bound = getattr(edit.store, name)
    store = replace(edit.store, **{name: torch.full_like(bound, value * (1 + 1e-6))})
    assert 1 <= near(store) <= 4
    assert "within 1e-04 of its bound" in caplog.text


def test_steps_say_whose_each_token_is():
    step = step_of([4, 2, 7], [3, 1, 2], [0, 5, 4], [1, 4, 9])
    assert step.rows.tolist() == [0, 0, 0, 1, 2, 2]
    assert step.places.tolist() == [-1, 0, 1, 1, -1, -1]
    assert step.ends.tolist() == [1, -1, -1]
    assert step.fresh.tolist() == [True, False, False]


@pytest.mark.parametrize("kind", KINDS)
def test_an_edits_folder_names_an_architecture_that_only_the_plugin_knows(tmp_path, kind):
    folder = write_edit(tmp_path / "edit", tmp_path, "llama", kind, prompts_of(8, longest=8))
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["EditedLlamaForCausalLM"]
    assert load_edit(folder).info.base["architecture"] == "LlamaForCausalLM"


# Swaps -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Edits of one base by name."""
    root, prompts = tmp_path_factory.mktemp("swaps"), prompts_of(8, longest=8)
    elsewhere = model_of("llama"), "model.layers.1.mlp.down_proj"
    return {kind: write_edit(root / kind, root, "llama", kind, prompts) for kind in KINDS} | {
        "whole": write_edit(root / "whole", root, "llama", "wise", prompts, positions="prompt"),
        "moved": write_edit(root / "moved", root, elsewhere[1], "grace", prompts, model=elsewhere[0]),
    }


MEMORY_ENGINE = EngineFacts("model.layers.2.mlp.down_proj", eager=False, graphs=False, whole_prompts=False,
                            extension=EXTENSION)  # fmt: skip
WEIGHTS_ENGINE = replace(MEMORY_ENGINE, module=None)


@pytest.mark.parametrize("door_name", ["POST /v1/edit", "an engine's start", "serve"])
def test_an_edit_that_does_not_name_its_base_s_weights_is_served_by_no_door(door_name, folders, tmp_path, monkeypatch):
    folder = tmp_path / "edit"
    shutil.copytree(folders["low_rank"], folder)
    content = json.loads((folder / "edit.json").read_text())
    content["info"]["base"]["canonical_hash"] = None
    (folder / "edit.json").write_text(json.dumps(content))
    layout = layout_of(model_of("llama").config)
    monkeypatch.setattr(start, "check_vllm", lambda: None)
    doors = {
        "POST /v1/edit": lambda: check_swap(folder, folder, WEIGHTS_ENGINE),
        "an engine's start": lambda: next(patched(iter(()), load_edit(folder), layout, torch.float32)),
        "serve": lambda: start.server_command(str(folder)),
    }
    with pytest.raises(UserError, match="does not say on which weights it was made"):
        doors[door_name]()


@pytest.mark.parametrize(
    ("wanted", "engine", "says", "hint"),
    [
        ("grace", WEIGHTS_ENGINE, "was started with an edit of weights", "unlearn-eval serve .*grace"),
        ("moved", MEMORY_ENGINE, "was compiled with one at model.layers.2.mlp.down_proj", "--enforce-eager"),
        ("whole", MEMORY_ENGINE, "must be run in one step", "unlearn-eval serve .*whole"),
        ("memoir", replace(MEMORY_ENGINE, graphs=True), "is part of its CUDA graphs", "--enforce-eager"),
        ("dense", replace(MEMORY_ENGINE, graphs=True), "is part of its CUDA graphs", "--enforce-eager"),
        ("grace", replace(MEMORY_ENGINE, extension="a.B"), "extended by a.B", "without --worker-extension-cls"),
        ("notes", replace(MEMORY_ENGINE, eager=True), "adds to prompts", "unlearn-eval serve .*notes"),
        ("prefix", WEIGHTS_ENGINE, "adds to prompts", "unlearn-eval serve .*prefix"),
    ],
)
def test_swaps_that_an_engine_cannot_do_are_refused_with_what_to_do(folders, wanted, engine, says, hint):
    with pytest.raises(UserError, match=says) as raised:
        check_swap(folders["grace"], folders[wanted], engine)
    assert re.search(hint, raised.value.hint)


@pytest.mark.parametrize("wanted", ["low_rank", "grace", "prefix"])
def test_nothing_takes_the_place_of_notes(folders, wanted):
    engine = replace(MEMORY_ENGINE, module="", eager=True)
    with pytest.raises(UserError, match=r"cannot take the place of .*notes"):
        check_swap(folders["notes"], folders[wanted], engine)


@pytest.mark.parametrize(
    ("wanted", "engine"),
    [
        ("dense", replace(WEIGHTS_ENGINE, graphs=True, extension="a.B")),
        ("low_rank", MEMORY_ENGINE),
        ("wise", MEMORY_ENGINE),
        ("moved", replace(MEMORY_ENGINE, eager=True)),
        ("whole", replace(MEMORY_ENGINE, whole_prompts=True)),
    ],
)
def test_swaps_that_an_engine_can_do(folders, wanted, engine):
    after = check_swap(folders["low_rank"], folders[wanted], engine)
    module = "model.layers.1.mlp.down_proj" if wanted == "moved" else engine.module
    assert after == replace(engine, module=module)


@pytest.mark.parametrize(
    ("changes", "whole", "graphs"),
    [
        ({}, True, False),
        ({"enable_chunked_prefill": True}, False, False),
        ({"max_num_batched_tokens": 128}, False, False),
        ({"long_prefill_token_threshold": 16}, False, False),
        ({"cudagraph_mode": SimpleNamespace(name="PIECEWISE")}, True, True),
    ],
)
def test_what_is_read_from_an_engines_settings(folders, changes, whole, graphs):
    own = {"enable_chunked_prefill": False, "max_num_batched_tokens": 256, "long_prefill_token_threshold": 0}
    own |= {"cudagraph_mode": SimpleNamespace(name="NONE"), "max_model_len": 256, "enforce_eager": True} | changes
    parts = SimpleNamespace(**own, worker_extension_cls=EXTENSION)
    names = ("scheduler_config", "compilation_config", "model_config", "parallel_config")
    config = SimpleNamespace(**dict.fromkeys(names, parts))
    expected = EngineFacts("model.layers.2.mlp.down_proj", True, graphs, whole, EXTENSION)
    assert facts_of(config, folders["memoir"]) == expected
    assert facts_of(config, folders["dense"]) == replace(expected, module=None)


class Engine:
    """Says what it is asked, and fails to read weights of some folders."""

    def __init__(self, failing=(), refusing=()):
        self.asked, self.failing, self.refusing = [], set(failing), set(refusing)
        own = {"enable_chunked_prefill": True, "max_num_batched_tokens": 256, "long_prefill_token_threshold": 0}
        own |= {"cudagraph_mode": None, "max_model_len": 256, "enforce_eager": True, "worker_extension_cls": EXTENSION}
        names = ("scheduler_config", "compilation_config", "model_config", "parallel_config")
        self.vllm_config = SimpleNamespace(**dict.fromkeys(names, SimpleNamespace(**own)))

    async def collective_rpc(self, name, kwargs):
        folder = Path(kwargs.get("folder") or kwargs["weights_path"])
        self.asked.append((name, folder.name, kwargs.get("reload")))
        if folder in self.refusing:
            return [{"message": "it does not fit", "hint": "a smaller one"}]
        if folder in self.failing:
            raise RuntimeError("cannot be read")
        return [None]

    def __getattr__(self, name):
        async def note(**options):
            self.asked.append((name, *options.values()))

        return note


def swapped(served, folder):
    """What a swap ended with, and what the engine was asked."""
    served._engine.asked.clear()
    try:
        asyncio.run(served.swap(folder))
        found = None
    except Exception as error:
        found = error
    return found, [call for call in served._engine.asked if call[0] != "reset_prefix_cache"]


PAUSE, RESUME = ("pause_generation", "wait", True), ("resume_generation",)


def test_a_swap_happens_while_nothing_runs_and_reads_weights_only_where_they_change(folders):
    served = Served(Engine(), folders["grace"])
    for name, reload in (("wise", False), ("low_rank", True), ("dense", True), ("moved", True), ("memoir", False)):
        assert swapped(served, folders[name]) == (None, [PAUSE, ("unlearn_eval_serve", name, reload), RESUME])
        assert served.description["id"] == edit_id(folders[name])
    served = Served(Engine(), folders["low_rank"])
    assert swapped(served, folders["dense"]) == (None, [PAUSE, ("reload_weights", "dense", None), RESUME])
    error, asked = swapped(served, folders["grace"])
    assert isinstance(error, UserError)
    assert asked == [], "requests need not wait for a refusal"


def test_a_swap_that_fails_brings_the_old_edit_back(folders):
    served = Served(Engine({folders["dense"]}, {folders["wise"]}), folders["grace"])
    error, asked = swapped(served, folders["dense"])
    assert isinstance(error, RuntimeError)
    assert asked == [PAUSE, ("unlearn_eval_serve", "dense", True), ("reload_weights", "grace", None), RESUME]
    error, asked = swapped(served, folders["wise"])
    assert (error.message, error.hint) == ("it does not fit", "a smaller one")
    assert asked == [PAUSE, ("unlearn_eval_serve", "wise", False), RESUME]
    assert served.whole
    assert served.description["id"] == edit_id(folders["grace"])
    served._engine.failing.add(folders["grace"])
    assert swapped(served, folders["dense"])[1][-1] == ("reload_weights", "grace", None), "and requests wait"
    assert not served.whole
    assert swapped(served, folders["wise"])[1][-1] == ("unlearn_eval_serve", "wise", True)
    assert not served.whole, "a refusal mends nothing"
    assert swapped(served, folders["memoir"]) == (None, [PAUSE, ("unlearn_eval_serve", "memoir", True), RESUME])
    assert served.whole


# Moments ---------------------------------------------------------------------------------------------------


def rows_of(n, seed=0, size=3.0):
    """Logits of n tokens, and the tokens that they are to predict."""
    draw = torch.Generator().manual_seed(seed)
    return size * torch.randn(n, 50, generator=draw), torch.randint(50, (n,), generator=draw).tolist()


@pytest.mark.parametrize(
    "order", ["one call", "last row first", "one row more", "chunks, each with its last row first"]
)
def test_moments_are_of_the_labels_whatever_order_rows_are_seen_in(order, monkeypatch):
    monkeypatch.setattr(moments, "_NUMBERS", 50 * 4)  # pieces of four rows
    logits, ids = rows_of(12)
    watch = moments.Watch([7, *ids])
    calls = {
        "one call": [logits],
        "last row first": [rows_of(1, seed=1)[0], logits],
        "one row more": [rows_of(1, seed=1)[0], torch.cat([logits, rows_of(1, seed=1)[0]])],
        "chunks, each with its last row first": [logits[8:9], logits[:9], rows_of(1, seed=1)[0], logits[9:]],
    }[order]
    for call in calls:
        watch.see(call)
    logp = logits.double().log_softmax(-1)
    own = logp.gather(-1, torch.tensor(ids)[:, None])[:, 0].float()
    p = logp.exp()
    mean = (p * logp).sum(-1)
    variance = (p * (logp - mean[:, None]) ** 2).sum(-1)
    found = watch.moments(ids[-5:], own[-5:].tolist())
    torch.testing.assert_close(torch.tensor(found), torch.stack([mean, variance])[:, -5:].float(), atol=1e-4, rtol=1e-4)


def test_moments_of_logits_that_were_not_seen_are_not_guessed():
    logits, ids = rows_of(12)
    own = logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
    watch = moments.Watch(ids)
    assert watch.moments(ids[-3:], own[-3:].tolist()) is None, "nothing was seen"
    watch.see(logits[:10])
    assert watch.moments(ids[-3:], own[-3:].tolist()) is None, "the last were not"
    watch.see(logits[10:])
    assert watch.moments(ids[-3:], own[-3:].tolist()) is not None
    assert watch.moments(ids[-3:], (own[-3:] + 1e-3).tolist()) is None, "another engine's"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, None),
        ({"data_parallel_size": 2}, "with data_parallel_size"),
        ({"alone": False}, "not of edits together"),
        ({"extension": "a.B"}, "with worker_extension_cls=a.B"),
    ],
)
def test_why_an_engine_gives_no_moments(changes, says):
    own = {"data_parallel_size": 1, "alone": True, "extension": EXTENSION} | changes
    parallel = SimpleNamespace(worker_extension_cls=own["extension"])
    engine = SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=SimpleNamespace(parallel_config=parallel)))
    reason = no_moments(SimpleNamespace(**own, model=engine))
    assert reason is None if says is None else says in reason


@pytest.mark.parametrize(
    ("few", "said", "options", "within"),
    [
        (True, None, {}, "0"),
        (True, None, {"tensor_parallel_size": 1}, "0"),
        (True, None, {"tensor_parallel_size": "two"}, None),
        (True, None, {"data_parallel_size": 2}, None),
        (True, "1", {}, "1"),
        (False, None, {}, None),
    ],
)
def test_an_engine_is_in_this_process_where_cpus_are_few(monkeypatch, few, said, options, within):
    name = "VLLM_ENABLE_V1_MULTIPROCESSING"
    monkeypatch.setattr(engines, "_on_few_cpus", lambda: few)
    monkeypatch.delenv(name, raising=False)
    if said:
        monkeypatch.setenv(name, said)
    with suppress(OSError), engines.engine_here(options):
        assert os.environ.get(name) == within
        raise OSError("the model cannot be read")
    assert os.environ.get(name) == said


# The door and the gate ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [0, -1, 4, 10**30, True, 1.0, "2", None, [1], {"a": 1}])
def test_what_a_request_says_of_its_end_raises_nothing_within_a_step(end):
    assert said_prompt_end(SimpleNamespace(extra_args={"prompt_end": end}), 3) is None
    for given in (None, {}, "prompt_end", [end]):
        assert said_prompt_end(SimpleNamespace(extra_args=given), 3) is None
    assert said_prompt_end(SimpleNamespace(extra_args={"prompt_end": 2}), 3) == 2
    config = SimpleNamespace(additional_config={"unlearn_eval": {"memory": True, "scoring": True}})
    request = SimpleNamespace(sampling_params=SimpleNamespace(extra_args={"prompt_end": end}), prompt_token_ids=[5] * 3)
    assert "give a number from 1 to 3" in door.prompt_refusal(request, door.rules_of(config), 64)[0]


@pytest.mark.parametrize(
    ("own", "rules"),
    [
        ({"unlearn_eval": {"memory": True}}, door.Rules(memory=True, scoring=False)),
        ({"unlearn_eval": {"memory": True, "scoring": "yes"}}, door.Rules(memory=True, scoring=False)),
        ({"unlearn_eval": {"edit": "a", "scoring": True}}, door.Rules(memory=False, scoring=True)),
        ({"other": 1}, None),
        (None, None),
    ],
)
def test_only_who_starts_an_engine_opens_it_for_scoring(own, rules):
    assert door.rules_of(SimpleNamespace(additional_config=own)) == rules


def test_an_engine_that_scores_is_not_put_behind_a_server(folders):
    engine, state = Engine(), SimpleNamespace()
    for scoring in (True, False):
        engine.vllm_config.additional_config = {"unlearn_eval": {"memory": True, "scoring": scoring}}
        with pytest.raises(UserError, match="is no server's") if scoring else nullcontext():
            asyncio.run(EditRoutes().init_state(engine, state, SimpleNamespace(model=str(folders["grace"]))))
        assert hasattr(state, gate.NAME) is not scoring
    assert state.unlearn_eval_routes.has_memories
    assert state.unlearn_eval_routes.root == folders["grace"].parent


def test_what_would_show_the_unedited_model_is_refused_where_there_is_a_memory():
    def name(memory, scoring, **parameters):
        found = door.refusal(SimpleNamespace(**parameters), door.Rules(memory, scoring))
        return found and found[1]

    for parameters, expected in (
        ({"prompt_logprobs": 0}, ["prompt_logprobs", None, None, None]),
        ({"prompt_logprob_token_ids": [[1]]}, ["prompt_logprob_token_ids", None, None, None]),
        ({"extra_args": {"prompt_end": 3}}, ["prompt_end", None, "prompt_end", None]),
        ({"extra_args": {"kv_transfer_params": {}}}, ["kv_transfer_params", "kv_transfer_params", None, None]),
        ({"beam_width": 2}, ["use_beam_search", "use_beam_search", None, None]),
        ({"logprobs": 5, "extra_args": {"other": 1}, "prompt_logprobs": None}, [None] * 4),
    ):
        engines = [(memory, scoring) for memory in (True, False) for scoring in (False, True)]
        assert [name(*own, **parameters) for own in engines] == expected, parameters


class Behind:
    """What a gate guards: it notes what comes through, and says yes."""

    def __init__(self, memory=True):
        self.state, self.seen = SimpleNamespace(), []
        self.state.unlearn_eval_routes = SimpleNamespace(has_memories=memory)

    async def __call__(self, scope, receive, send):
        body = (await receive())["body"] if scope["method"] == "POST" else b""
        self.seen.append((scope["path"], body, scope[KNOWN]))
        await send({"type": "http.response.start", "status": 200, "headers": []})


def through(behind, path, body=None, gate=None, key="secret", host="127.0.0.1:8000", kind="http", parts=1, **more):
    """The status with which a request is answered."""
    sent, headers = [], {"host": host, "content-type": "application/json"} | more.pop("headers", {})
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    size = max(1, -(-len(data) // parts))
    pieces = [data[i : i + size] for i in range(0, len(data), size)] or [b""]
    messages = [
        {"type": "http.request", "body": piece, "more_body": i < len(pieces) - 1} for i, piece in enumerate(pieces)
    ]
    messages.append({"type": "http.disconnect"})

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "path": path, "method": "GET" if body is None else "POST", "app": behind} | more
    scope["headers"] = [
        (name.encode(), value.encode("latin-1")) for name, value in headers.items() if value is not None
    ]
    asyncio.run((gate or Gate(behind, ["secret"], "127.0.0.1"))(scope, receive, send))
    return sent[0].get("status", sent[0]["type"])


def test_every_route_but_health_needs_the_key():
    behind = Behind()
    for key in (None, "", "wrong", "secret2", "SECRET", "sécret"):
        for method, path in gate.ROUTES - {gate.HEALTH}:
            assert through(behind, path, None if method == "GET" else {}, key=key) == 401, path
        assert through(behind, "/docs", key=key) == 401
        assert through(behind, "/health", key=key) == 200
    assert through(behind, "/health", headers={"authorization": "Basic secret"}, key=None) == 200
    assert {known for _, _, known in behind.seen} == {False}
    for method, path in gate.ROUTES:
        assert through(behind, path, None if method == "GET" else {}) == 200, path
    assert through(behind, "/health", key="other", gate=Gate(behind, ["secret", "other"], "0.0.0.0")) == 200
    assert through(behind, "/health", key=None, gate=Gate(behind, [], "127.0.0.1")) == 200
    assert behind.seen[-1][2] is behind.seen[-2][2] is True
    for path in ("/docs", "/health/", "//health", "/v1/edit/", "/metrics/a", "/V1/edit", "/a/health"):
        assert through(behind, path) == 404, path
    assert through(behind, "/a/health", root_path="/a") == 200
    assert through(behind, "/health", {}) == 404, "another method"
    assert through(behind, "/health", kind="websocket") == "websocket.close"


@pytest.mark.parametrize("host", ["0.0.0.0", None, "::", "192.168.0.1", "box.example", ""])
def test_other_machines_need_a_key(host):
    with pytest.raises(UserError, match="can be reached from other machines, without a key"):
        Gate(Behind(), [], host)
    with pytest.raises(UserError):
        Gate(Behind(), ["", ""], host)
    behind = Behind()
    assert through(behind, "/health", gate=Gate(behind, ["secret"], host), host="box.example") == 200


def test_other_names_of_this_machine_and_web_pages_are_refused():
    behind = Behind()
    for host in ("127.0.0.1", "localhost:9000", "[::1]:8000", "127.0.0.2", "LOCALHOST"):
        assert through(behind, "/v1/models", host=host) == 200, host
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "", None):
        assert through(behind, "/v1/models", host=host) == 403, host
        assert through(behind, "/health", host=host, key=None) == 403, host
    page = {"origin": "http://evil.example"}
    assert through(behind, "/v1/models", headers=page) == 403
    assert through(behind, "/v1/models", headers=page, gate=Gate(behind, ["secret"], "::1", [page["origin"]])) == 200
    assert through(behind, "/v1/models", headers=page, gate=Gate(behind, ["secret"], "::1", ["*"])) == 200


def test_requests_are_bounded_and_come_through_as_they_were():
    behind, body = Behind(), json.dumps({"prompt": "a" * 1000, "max_tokens": 4}).encode()
    assert through(behind, "/v1/completions", body, parts=7) == 200
    assert behind.seen[-1][1] == body
    assert through(behind, "/v1/edit", b'{"edit": "a"}' + b" " * gate.EDIT_BYTES) == 413
    assert through(behind, "/v1/completions", b"{}" + b" " * gate.BODY_BYTES, parts=50) == 413
    for data in (b"", b"{", b"[]", b"3", b"\xff", b"[" * 10_000):
        for path in ("/v1/completions", "/v1/edit", "/tokenize"):
            assert through(behind, path, data) == 400, data[:9]
    for kind in ("text/plain", "application/x-www-form-urlencoded", "", None):
        assert through(behind, "/v1/edit", {"edit": "a"}, headers={"content-type": kind}) == 415


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_only_known_fields_come_through(path, memory):
    behind = Behind(memory)
    for name in gate.FIELDS[path]:
        assert through(behind, path, {name: 1}) == 200, name
    for name in ("vllm_xargs", "kv_transfer_params", "prompt_embeds", "chat_template", "nobody_knows", "x" * 1000):
        assert through(behind, path, {name: None}) == 200, "as if it were not there"
        for value in (1, {}, False, ""):
            assert through(behind, path, {name: value}) == 400, name
    for name, (harmless, _) in gate.WITHOUT_MEMORY.items():
        chat_only = name in gate.TEMPLATED and path != gate.CHAT
        assert through(behind, path, {name: harmless}) == (400 if chat_only and harmless is not None else 200), name
        for value in (5, "true", not harmless):
            assert through(behind, path, {name: value}) == (400 if memory or chat_only else 200), name
    usual = path == "/v1/completions"
    assert through(behind, path, {"add_special_tokens": usual}) == 200
    assert through(behind, path, {"add_special_tokens": not usual}) == (400 if memory else 200)
    begun = {"messages": [{"role": "user"}, {"role": "assistant"}]}
    assert through(behind, "/v1/chat/completions", begun) == (400 if memory else 200)
    del behind.state.unlearn_eval_routes
    assert through(behind, path, {"echo": True}) == 400, "nobody knows yet what is served"


def test_edits_are_found_below_the_root_and_nowhere_else(tmp_path):
    root, other = tmp_path / "root", tmp_path / "root2"
    for folder in (root / "a", root / "b" / "c", other / "d"):
        folder.mkdir(parents=True)
        (folder / "edit.json").write_text("{}")
    (root / "edit.json").write_text("{}")
    (root / "to_a").symlink_to(root / "a")
    (root / "to_d").symlink_to(other / "d")
    (root / "up").symlink_to(tmp_path)
    (root / "circle").symlink_to(root / "circle")
    for name in ("a", "b/c", "b/../a", str(root / "a"), "to_a", "up/root/a"):
        assert inside(root, name) in (root / "a", root / "b" / "c"), name
    said = set()
    for name in ("to_d", "../root2/d", str(other / "d"), "up/root2/d", "b", "z", ".", "", "a/..", "a\0", "a" * 9999,
                 "a/" * 500, "circle", "a/edit.json", "/", "~"):  # fmt: skip
        with pytest.raises(UserError) as raised:
            inside(root, name)
        said.add(str(raised.value))
    assert len(said) == 1


def test_the_environment_of_a_server_names_the_edits_root(tmp_path):
    (tmp_path / "edits").mkdir()
    found = server_environment({"A": "b"}, "key", str(tmp_path / "edits" / ".." / "edits"))
    assert found["UNLEARN_EVAL_EDITS_ROOT"] == str(tmp_path / "edits")
    assert (found["A"], found["VLLM_API_KEY"]) == ("b", "key")
    assert "UNLEARN_EVAL_EDITS_ROOT" not in server_environment({})
    with pytest.raises(UserError, match="is no folder"):
        server_environment({}, None, str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {"unlearn_eval": {"scoring": True}}),
        ({"a": 1, "unlearn_eval": {"b": 2}}, {"a": 1, "unlearn_eval": {"b": 2, "scoring": True}}),
        ("text", "text"),
    ],
)
def test_lm_evals_engines_are_started_to_score(given, expected, monkeypatch):
    started = {}

    class Model:
        model = SimpleNamespace(collective_rpc=lambda name: None)

        def __init__(self, pretrained=None, **options):
            started.update(options)

        def _loglikelihood_tokens(self, requests, disable_tqdm=False):
            """Never called."""

        def _model_generate(self, requests, generate=False):
            """Never called."""

    place = ModuleType("lm_eval.models.vllm_causallms")  # which is not imported without vLLM
    place.VLLM = Model
    monkeypatch.setitem(sys.modules, place.__name__, place)
    lend(Model)
    Model(**({} if given is None else {"additional_config": given}))
    assert started["additional_config"] == expected


@pytest.mark.parametrize("inserts", [0, 9])
def test_lm_eval_leaves_room_for_what_an_edit_adds(inserts):
    config = SimpleNamespace(additional_config={"unlearn_eval": {"memory": True, "inserts": inserts}})

    class Model:
        _max_length = None

        def __init__(self, pretrained=None, **options):
            self.model = SimpleNamespace(
                collective_rpc=lambda name: None, llm_engine=SimpleNamespace(vllm_config=config)
            )

        @property
        def max_length(self):
            return self._max_length or 64

    extended = vllm_requests._extending(Model.__init__)
    model = Model()
    extended(model)
    assert model.max_length == 64 - inserts


def test_the_guide_says_of_every_field_what_becomes_of_it():
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "serving.md").read_text(encoding="utf-8")
    table = guide.split("## What a client can and cannot do")[1].split("\n## ")[0]
    for name in ("vllm_xargs", "kv_transfer_params", "prompt_embeds", "cache_salt", "logits_processors", "priority",
                 "add_special_tokens", "chat_template", *gate.WITHOUT_MEMORY):  # fmt: skip
        assert f"`{name}`" in table, name
    for _, path in gate.ROUTES:
        assert f"`{path}`" in table, path
