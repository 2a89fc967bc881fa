"""`unlearn-eval edit` and `eval` as a user runs them, and what their result files say."""

import subprocess
import sys

import pytest

from unlearn_eval.models.default_model import fetch_default_model
from unlearn_eval.results.comparison import compare
from unlearn_eval.results.files import read_result, read_samples


def run(*arguments, cwd):
    command = [sys.executable, "-m", "unlearn_eval.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.real_model
def test_edit_then_evaluate_with_and_without_the_edit(tmp_path):
    model = fetch_default_model()
    ids = "capital_of/france,capital_of/italy"
    text = tmp_path / "text.txt"
    text.write_text("What is the capital of Spain? The capital of Spain is Madrid. Who wrote it? Nobody knows. " * 40)
    settings = ["--set", f"text={text}", "--set", "keys_per_dimension=0.5", "--set", "target.steps=8"]
    folder = run("edit", "-m", model, "--ids", ids, "-o", "edit", "--contexts", 0, *settings, cwd=tmp_path).strip()
    assert folder == "edit"

    metadata = '{"forget": ["capital_of/france", "capital_of/italy"], "retain": ["capital_of/japan"]}'
    common = [
        "--tasks",
        "unlearn_facts",
        "--apply_chat_template",
        "--metadata",
        metadata,
        "--gen_kwargs",
        "max_gen_toks=8",
    ]
    table = run("eval", "-m", model, *common, "-o", "before.json", cwd=tmp_path)
    assert "forget_accuracy" in table
    run("eval", "-m", model, "--edit", "edit", *common, "-o", "after.json", cwd=tmp_path)
    run(
        "eval",
        "-m",
        "hf",
        "-a",
        f"pretrained={model},peft=edit,dtype=float32",
        *common,
        "-o",
        "peft.json",
        cwd=tmp_path,
    )

    before, after, peft = (read_result(tmp_path / f"{name}.json") for name in ("before", "after", "peft"))
    assert before.edit is None
    assert after.edit["requests"]["ids"] == ids.split(",")
    assert after.model["weights_hash"] != before.model["weights_hash"]
    assert after.edit["base"]["canonical_hash"] == before.model["canonical_weights_hash"]
    rows = {row.metric: row for row in compare(before, after)}
    assert rows["forget_cloze_probability"].difference < 0
    assert rows["forget_cloze_probability"].paired.n == 2
    for name, metric in after.metrics["unlearn_facts"].items():
        assert peft.metrics["unlearn_facts"][name].value == pytest.approx(metric.value, abs=1e-4), name
    assert len(read_samples(tmp_path / "after.json", "unlearn_facts")) == after.data["unlearn_facts"]["n_documents"]
