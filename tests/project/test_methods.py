"""What a method can do is declared by it: not in lists of names elsewhere, and not guessed from signatures."""

import ast
from pathlib import Path

import pytest

from unlearn_eval.attacks.base import METHODS as ATTACKS
from unlearn_eval.attacks.base import attack_names, get_attack
from unlearn_eval.editing.editor import METHODS as EDITORS
from unlearn_eval.editing.editor import editor_names, get_editor
from unlearn_eval.localization.base import METHODS as LOCALIZATIONS
from unlearn_eval.localization.base import get_localizer, localizer_names
from unlearn_eval.utils.registry import module_in, names_in

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "unlearn_eval"
PRESETS = {"editing/presets.py", "editing/training/presets.py", "editing/spaces.py"}  # settings, by method
OTHER_MEANINGS = {  # a method's name that is also another word -> where it is that word
    "dpo": {"editing/training/objectives.py"},  # a loss
    "npo": {"editing/training/objectives.py"},
    "simnpo": {"editing/training/objectives.py"},
    "unlikelihood": {"editing/training/objectives.py"},
    "kl": {"editing/training/settings.py", "harness/", "metrics/", "runs/study/show.py"},  # a divergence
    "idk": {"editing/recipe.py", "editing/requests/targets.py"},  # a target
    "grace": {"edits/memory/codebook.py"},  # the mechanism that memory.json names
    "wise": {"edits/memory/side_memories.py"},
    "memoir": {"edits/memory/residual_memory.py"},
    "prefix": {"editors/memory/prefix.py", "edits/memory/prefix_store.py"},  # an editor, and its mechanism
    "recipe": {"editing/__init__.py", "results/", "runs/study/"},  # settings of an edit, or of fine-tuning
    "notes": {""},  # what else there is to say of anything
    "probe": {"localization/methods/fact_lookup.py", "results/report/localization.py"},  # a way to look facts up
    "uds": {"metrics/", "results/report/attacked.py"},  # a metric
    "random": {"harness/", "metrics/"},  # facts that were drawn
    "none": {""},  # nothing, in settings and options
}
READERS = {"signature", "getfullargspec", "get_type_hints", "return_annotation"}  # of signatures
ABOVE_METHODS = ("editing/", "editors/", "localization/", "attacks/", "runs/", "cli/")  # the rooms below know none
KINDS = {EDITORS: "editor", ATTACKS: "attack", LOCALIZATIONS: "localization"}
NAMES = {name: module_in(package, name, kind).__name__ for package, kind in KINDS.items() for name in names_in(package)}


def sources():
    """Every file of the package and of `editors/`, by its path below the package."""
    for folder, below in ((PACKAGE, PACKAGE), (ROOT / "editors", ROOT)):
        for path in sorted(folder.rglob("*.py")):
            name = path.relative_to(below).as_posix()
            if folder != PACKAGE or not name.startswith(("editors/", "tasks/", "studies/")):  # links in a checkout
                yield name, path.read_text(encoding="utf-8")


def quoted(text):
    """The texts in quotes that are nothing but a method's name."""
    found = (node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant))
    return {value for value in found if isinstance(value, str) and value in NAMES}


def strays(name, text):
    """The methods' names in quotes in a file where they may not be."""
    if name in PRESETS:
        return set()
    module = f"unlearn_eval.{name.removesuffix('.py').replace('/', '.')}"
    return {
        method
        for method in quoted(text)
        if NAMES[method] != module and not name.startswith(tuple(OTHER_MEANINGS.get(method, {"nowhere"})))
    }


def test_methods_are_named_in_their_own_files_only():
    found = {name: strays(name, text) for name, text in sources()}
    assert len(found) > 100
    assert {name: methods for name, methods in found.items() if methods} == {}


def test_a_stray_name_is_found():
    assert strays("cli/app.py", 'editor = editor or "memit"') == {"memit"}
    assert strays("localization/locate.py", 'ONE = ("rome", "wise")') == {"rome", "wise"}
    assert strays("editors/closed_form/memit.py", 'EDITOR = Editor("memit", Config, run)') == set()
    assert strays("editors/closed_form/emmet.py", 'EDITOR = Editor("memit", Config, run)') == {"memit"}
    assert strays("editing/presets.py", 'DEFAULT_EDITOR = "memit"') == set()


def test_other_meanings_are_not_stale():
    texts = dict(sources())
    for method, places in OTHER_MEANINGS.items():
        for place in places:
            files = [text for name, text in texts.items() if name.startswith(place) and name not in PRESETS]
            assert any(method in quoted(text) for text in files), (method, place)


def test_signatures_are_read_of_users_functions_only():
    """What one of our methods takes is never read off its signature: rooms that can import methods read none."""
    found = set()
    for name, text in sources():
        for node in ast.walk(ast.parse(text)):
            imported = isinstance(node, ast.ImportFrom) and {alias.name for alias in node.names} & READERS
            read = isinstance(node, ast.Attribute) and node.attr in READERS
            if imported or (read and (node.attr != "signature" or ast.unparse(node.value) == "inspect")):
                found.add(name)
    assert {name for name in found if name.startswith(ABOVE_METHODS)} == {"editing/from_file.py"}


@pytest.mark.parametrize(
    ("package", "attribute", "names", "get"),
    [
        (EDITORS, "EDITOR", editor_names, get_editor),
        (ATTACKS, "ATTACK", attack_names, get_attack),
        (LOCALIZATIONS, "LOCALIZER", localizer_names, get_localizer),
    ],
)
def test_every_method_declares_itself_under_the_name_of_its_file(package, attribute, names, get):
    for name in names():
        declared = get(name)
        assert declared.name == name
        assert declared is getattr(module_in(package, name, KINDS[package]), attribute)
