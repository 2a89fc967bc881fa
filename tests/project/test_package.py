"""The house's rules: who imports whom, what an import costs, and what a wheel holds."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "unlearn_eval"


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
    }
    for name, code in wrong.items():
        with (tmp_path / "unlearn_eval" / name).open("a") as stream:
            stream.write(f"\n\n{code}\n")
    code, found, output = lint(tmp_path)
    assert code == 1, output
    assert found == dict.fromkeys(contracts(), False), output


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
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = unlearn_eval.nothing_like_this


def test_no_global_state_in_editors():
    for path in files(ROOT / "editors"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Global), path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)  # the sdist, and the wheel from the sdist
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_built_from_the_sdist_holds_everything_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tracked = [p.relative_to(ROOT) for p in files(PACKAGE, ROOT / "editors") if "__pycache__" not in p.parts]
    for path in tracked:
        inside = path if path.parts[0] == "unlearn_eval" else Path("unlearn_eval") / path
        assert str(inside) in names, path
    assert "unlearn_eval/tasks/tofu/unlearn_tofu.yaml" in names
    assert "unlearn_eval/tasks/facts/facts.jsonl" in names
    assert {f"unlearn_eval/results/report/page.{kind}" for kind in ("html", "css", "js")} <= set(names)
    assert "unlearn_eval/studies/smoke.yaml" in names
    assert "unlearn_eval_autoload.pth" in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "unlearn_eval",
        "unlearn_eval_autoload.pth",
    }
    assert len(names) == len(set(names))


@pytest.mark.slow
def test_wheel_install_teaches_lm_eval_our_tasks(wheel, tmp_path):
    venv.create(tmp_path / "v", with_pip=True, system_site_packages=False)
    python = tmp_path / "v" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(wheel)], check=True)
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
