"""The house's rules: who imports whom, what an import costs, and what a wheel holds."""

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "unlearn_eval"


def imports_of(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def files(*folders):
    return [path for folder in folders for path in folder.rglob("*.py")]


def lint(folder):
    """What import-linter says of the package in a folder, by the names of its contracts."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    own = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    done = subprocess.run(
        [*command, str(folder / "pyproject.toml")], cwd=folder, env=own, capture_output=True, text=True
    )
    found = {
        name: verdict == "KEPT" for name, verdict in re.findall(r"^(.+?) (KEPT|BROKEN)\b", done.stdout, re.MULTILINE)
    }
    return done.returncode, found, done.stdout + done.stderr


def contracts():
    return [
        c["name"] for c in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    ]


def test_imports_keep_every_contract():
    code, found, output = lint(ROOT)
    assert code == 0, output
    assert found == dict.fromkeys(contracts(), True)


def test_every_contract_can_be_broken(tmp_path):
    shutil.copytree(
        PACKAGE, tmp_path / "unlearn_eval", ignore=shutil.ignore_patterns("tasks", "studies", "__pycache__")
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    wrong = {
        "utils/errors.py": "import unlearn_eval.models.load",
        "harness/run.py": "import unlearn_eval.autoload",
        "metrics/text.py": "def late():\n    import torch",
        "runs/demo.py": "import unlearn_eval.results.report.page",
        "runs/evaluate.py": "def late():\n    from lm_eval.utils import simple_parse_args_string",
        "harness/backends.py": "def late():\n    import vllm.platforms",
        "runs/edit.py": "import typer",
        "runs/finetune.py": "from ray.exceptions import RayError",
        "runs/known_items.py": "def late():\n    import optuna",
        "data/benchmark.py": "import unlearn_eval.data.forget_sets",
    }
    for name, code in wrong.items():
        with (tmp_path / "unlearn_eval" / name).open("a") as stream:
            stream.write(f"\n\n{code}\n")
    code, found, output = lint(tmp_path)
    assert code == 1, output
    assert found == dict.fromkeys(contracts(), False), output


def test_tests_share_helpers_and_nothing_else():
    """What two test files need is in tests/helpers/."""
    paths = files(ROOT / "tests")
    names = {path.stem for path in paths if path.parent.name != "helpers"}
    assert "conftest" in names
    for path in paths:
        assert not names & set(imports_of(path)), path


@pytest.mark.parametrize(
    "module", ["unlearn_eval", "unlearn_eval.cli", "unlearn_eval.results.schema", "unlearn_eval.autoload"]
)
def test_import_is_light(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers', 'lm_eval', 'vllm') if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_public_names_are_there():
    import unlearn_eval

    for name in unlearn_eval.__all__:
        assert getattr(unlearn_eval, name) is not None
        assert getattr(unlearn_eval, name).__doc__
    assert dir(unlearn_eval) == sorted(unlearn_eval.__all__)
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = unlearn_eval.nothing_like_this


@pytest.mark.parametrize("package", ["unlearn_eval", "unlearn_eval.metrics"])
def test_type_checkers_see_the_public_names(package):
    found = importlib.import_module(package)
    stub = ast.parse(Path(found.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    places = {
        name.asname: (node.module, name.name)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    for name, (module, own) in places.items():
        assert name == own
        assert getattr(found, name) is getattr(importlib.import_module(module), name)
    assert sorted(places) == found.__all__
    assert (PACKAGE / "py.typed").is_file()


def test_no_global_state_in_editors():
    for path in files(ROOT / "editors"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Global), path


def package_files(folder):
    """The files of a package's folder, those behind links among them, by their names below it."""
    found = set()
    for where, _, names in os.walk(folder, followlinks=True):
        if Path(where).name != "__pycache__":
            found |= {(Path(where) / name).relative_to(folder).as_posix() for name in names}
    return {name for name in found if not name.endswith((".pyc", ".DS_Store"))}


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """What is built of a checkout: `sdist`, `from_sdist` (a wheel) and `wheel`; kind -> file."""
    folder = tmp_path_factory.mktemp("built")
    build = [sys.executable, "-m", "build", "--no-isolation"]
    subprocess.run([*build, "--outdir", folder / "a", ROOT], check=True, capture_output=True)
    subprocess.run([*build, "--wheel", "--outdir", folder / "b", ROOT], check=True, capture_output=True)
    places = {"sdist": "a/*.tar.gz", "from_sdist": "a/*.whl", "wheel": "b/*.whl"}
    return {kind: next(folder.glob(place)) for kind, place in places.items()}


def test_every_way_of_installing_has_the_same_importable_files(built, tmp_path):
    checkout = package_files(PACKAGE)
    assert {"editors/closed_form/memit.py", "tasks/tofu/unlearn_tofu.yaml", "studies/smoke.yaml"} <= checkout
    with tarfile.open(built["sdist"]) as archive:
        archive.extractall(tmp_path / "sdist", filter="data")
    (root,) = (tmp_path / "sdist").iterdir()
    found = {"sdist": package_files(root / "unlearn_eval")}
    for kind in ("wheel", "from_sdist"):
        zipfile.ZipFile(built[kind]).extractall(tmp_path / kind)
        found[kind] = package_files(tmp_path / kind / "unlearn_eval")
    for kind, names in found.items():
        assert names == checkout, (kind, sorted(names ^ checkout))
    for folder in (root, tmp_path / "wheel", tmp_path / "from_sdist"):  # and they can be imported there
        code = "import unlearn_eval.editors.closed_form as found; print(found.__file__)"
        run = [sys.executable, "-c", code]
        environment = os.environ | {"PYTHONPATH": str(folder)}  # before the .pth that starts an installed one
        said = subprocess.run(run, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment).stdout
        assert said.startswith(str(folder))


def test_an_editable_install_is_the_checkout(tmp_path):
    """In the environment that runs the tests, as `make` builds it."""
    origin = json.loads(importlib.metadata.distribution("unlearn-eval").read_text("direct_url.json") or "{}")
    if origin.get("url") != ROOT.as_uri():
        pytest.skip(f"this environment has another install: {origin}")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code = "import sys, unlearn_eval; print(unlearn_eval.__path__[0], 'unlearn_eval.autoload' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=clean
    )
    folder, is_loaded = run.stdout.split()
    assert package_files(folder) == package_files(PACKAGE)
    assert Path(folder) == PACKAGE
    assert is_loaded == "True", "the .pth started it"


def test_a_wheel_holds_the_package_and_nothing_else(built):
    for kind in ("wheel", "from_sdist"):
        names = zipfile.ZipFile(built[kind]).namelist()
        assert "unlearn_eval/tasks/facts/facts.jsonl" in names
        assert {f"unlearn_eval/results/report/page.{own}" for own in ("html", "css", "js")} <= set(names)
        assert "unlearn_eval_autoload.pth" in names
        assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
            "unlearn_eval",
            "unlearn_eval_autoload.pth",
        }
        assert len(names) == len(set(names))


def test_links_that_were_checked_out_as_text_are_named(tmp_path):
    """Git without symlink support writes a link as a file that holds its target."""
    shutil.copy(ROOT / "hatch_build.py", tmp_path)
    spec = importlib.util.spec_from_file_location("hook", tmp_path / "hatch_build.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    (tmp_path / "unlearn_eval").mkdir()
    hook.check_links(tmp_path)  # an sdist or a checkout without them fails elsewhere
    (tmp_path / "unlearn_eval" / "editors").mkdir()
    hook.check_links(tmp_path)
    (tmp_path / "unlearn_eval" / "tasks").write_text("../tasks")
    with pytest.raises(RuntimeError, match="unlearn_eval/tasks is a text file .*core.symlinks true"):
        hook.check_links(tmp_path)


@pytest.mark.slow
def test_wheel_install_teaches_lm_eval_our_tasks(built, tmp_path):
    venv.create(tmp_path / "v", with_pip=True, system_site_packages=False)
    python = tmp_path / "v" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(built["wheel"])], check=True)
    # lm-eval and the rest come from this environment; its editable install of ours must not help.
    (tmp_path / "v" / "lib").mkdir(exist_ok=True)
    site = next((tmp_path / "v" / "lib").glob("python*/site-packages"))
    here = next(Path(p) for p in sys.path if p.endswith("site-packages"))
    (site / "zz_borrowed.pth").write_text(f"{here}\n")
    code = (
        "import unlearn_eval, lm_eval.tasks as t; assert 'site-packages' in unlearn_eval.__file__;"
        "print([n for n in t.TaskManager().all_tasks if n.startswith('unlearn_')])"
    )
    output = subprocess.run([python, "-E", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert "unlearn_tofu" in output
    assert "unlearn_facts" in output
