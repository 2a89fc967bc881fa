"""Our changes to lm-eval: every one fits, is refused where lm-eval differs, and stands in one file."""

import ast
import inspect
from pathlib import Path

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval_runs import hf

from unlearn_eval.harness import patching, requests
from unlearn_eval.harness.instances import make_instance
from unlearn_eval.harness.patching import bars_as_lines, quiet, within_a_study, without_machine
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.patching import OneOf, Place

PACKAGE = Path(__file__).parents[2] / "unlearn_eval"
CHANGES = {
    "task-index": lambda: patching.index_our_tasks(None),
    "model-names": patching.register_models,
    "embeddings": patching.keep_embeddings,
    "request-kinds": requests.install,
    "quicker-generation": requests.install,
    "standard-errors": requests.install,
    "trace-markers": requests.install,
    "options": lambda: patching.check_our_options(None),
    "response-cache": lambda: patching.keep_responses_apart(None),
    "no-machine-report": lambda: without_machine().__enter__(),
    "no-bars": lambda: within_a_study().__enter__(),
    "bars-as-lines": lambda: bars_as_lines().__enter__(),
}


def places_of(patch):
    for expected in patch.expects:
        yield expected.places if isinstance(expected, OneOf) else (expected,)


def test_every_patch_of_lm_eval_fits():
    for patch in patching.PATCHES:
        assert patch.misfit() is None
        assert patch.tested
        assert patch.status().status == "fits"


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_place_is_refused(name, monkeypatch):
    patch = patching.PATCHES[name]
    for places in places_of(patch):
        with monkeypatch.context() as changed:
            for place in places:
                changed.setattr(Place, "misfit", _missing(place.path))
            with pytest.raises(UserError, match=f"cannot apply the patch '{name}' to ") as refused:
                CHANGES[name]()
            assert refused.value.hint.startswith("install a tested version")


def _missing(path):
    real = Place.misfit
    return lambda self: f"{path} is gone" if self.path == path else real(self)


def test_all_patches_with_places_are_tried_here():
    assert {patch.name for patch in patching.PATCHES if patch.expects} == CHANGES.keys()


def test_blocks_put_back_what_they_replace():
    import lm_eval.evaluator
    import tqdm

    def now():
        return vars(lm_eval.evaluator) | {"bars": inspect.getattr_static(tqdm.std.tqdm, "__init__")}

    before = now()
    with quiet(), within_a_study(), without_machine():
        assert lm_eval.evaluator.get_git_commit_hash() is None
        assert lm_eval.evaluator.add_env_info({}) is None
        assert tqdm.tqdm(range(3)).disable
    assert now() == before


def foreign_names(tree):
    """The names that a file imports from a package that we patch."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] in ("lm_eval", "vllm", "tqdm"):
                    yield name.asname or name.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("lm_eval", "vllm", "tqdm"):
            yield from (name.asname or name.name for name in node.names)


def changed_names(tree):
    """The names whose attributes or entries a file sets."""
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) in ("setattr", "wrap", "replaced"):
            targets = [ast.Attribute(node.args[0], "")]
        for target in targets:
            for own in target.elts if isinstance(target, ast.Tuple) else (target,):
                while isinstance(own, ast.Attribute | ast.Subscript):
                    own = own.value
                    if isinstance(own, ast.Name):
                        yield own.id


def test_only_patching_py_changes_other_packages():
    changing = set()
    for room in ("harness", "serving"):
        for path in (PACKAGE / room).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            if set(foreign_names(tree)) & set(changed_names(tree)):
                changing.add(path.relative_to(PACKAGE).as_posix())
    assert changing == {"harness/patching.py", "serving/patching.py"}


@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": True, "temperature": 1.0}])
def test_generation_is_the_same_where_what_prompts_share_is_run_once(tiny, tokenizer, monkeypatch, options):
    requests.install()
    lm = hf(tiny("llama"), tokenizer, batch_size=8)
    beginning = "The old house by the river was built in the year of the flood. " * 2
    prompts = [beginning + end for end in ("Who", "Who wrote the book?", "Where is the river?", "When?")]
    asked = [
        make_instance("generate_until", {}, (prompt, {"until": [], "max_gen_toks": 6} | options), i)
        for i, prompt in enumerate([*prompts, *prompts[:1] * 4])
    ]
    given = []

    def said(generate):
        def generating(self, **more):
            given.append("past_key_values" in more)
            return generate(self, **more)

        monkeypatch.setattr(HFLM, "_model_generate", patching._generating_quicker(generating) if quicker else generate)
        torch.manual_seed(0)
        return lm.generate_until(asked, disable_tqdm=True)

    original = inspect.unwrap(HFLM._model_generate)
    found = {}
    for quicker in (True, False):
        found[quicker] = said(original)
    assert found[True] == found[False]
    assert given == [True], "one batch, with the keys and values of what the prompts share"
    assert len(set(found[True])) > 2
