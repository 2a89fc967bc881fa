"""The house's rules: who imports whom, what an import costs, and what a wheel holds."""

import ast
import subprocess
import sys
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


def test_lm_eval_is_met_in_harness_only():
    for path in files(PACKAGE, ROOT / "editors"):
        outside = [name for name in imports_of(path) if name.split(".")[0] == "lm_eval"]
        allowed = "harness" in path.parts or path.name in ("autoload.py", "evaluation.py", "pipeline.py")
        assert allowed or not outside, path
        if path.name in ("evaluation.py", "pipeline.py"):  # one parser and one wrapper, inside functions
            assert set(outside) <= {"lm_eval.utils", "lm_eval.models.huggingface"}


def test_metrics_never_see_a_model_and_reports_only_read_files():
    for path in files(PACKAGE / "metrics"):
        assert not {"torch", "transformers", "lm_eval"} & {name.split(".")[0] for name in imports_of(path)}, path
    for path in files(PACKAGE / "results" / "report"):
        ours = {name for name in imports_of(path) if name.startswith("unlearn_eval")}
        allowed = {"results", "result_files", "meanings", "errors", "metrics"}
        assert all(name.startswith("unlearn_eval.results.report.") or name.split(".")[1] in allowed for name in ours), (
            path
        )


def test_nothing_that_computes_imports_reports():
    front = ("cli.py", "cli_attack.py", "cli_localization.py", "cli_report.py", "show.py")  # what a terminal shows
    for path in files(PACKAGE, ROOT / "editors"):
        if "report" not in path.parts and path.name not in front:
            assert not any(name.startswith("unlearn_eval.results.report") for name in imports_of(path)), path


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
