"""What is said of an edit is what dense computation finds, and comes from the folder alone."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
from rich.console import Console
from tiny_models import one_thread, random_requests, tiny_model, tiny_tokenizer  # noqa: F401

from unlearn_eval.edits.base import EditInfo
from unlearn_eval.edits.description import describe_edit, singular_values
from unlearn_eval.edits.load import describe_base, load_edit
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.models.anatomy import anatomy
from unlearn_eval.results.report.edit import edit_tables
from unlearn_eval.utils.errors import UserError

TARGETS = [
    {"id": "a", "question": "Who?", "target": "I [b]cannot[/b] say.", "source": "self"},
    {"id": "b", "question": "When?", "target": "No [/] idea.", "source": "self"},
    {"id": "c", "question": "Where?", "target": "Ich weiß es nicht.", "source": "self"},
    {"id": "d", "question": "Why?", "target": "I don't know.", "source": "pool"},
]


def random_edit(model, layers=(2, 0), rank=3, dtype=torch.float32, **changes):
    parts = anatomy(model)
    generator = torch.Generator().manual_seed(0)
    factors = {
        parts.projection_name(layer): (
            (layer + 1) * torch.randn(parts.d_model, rank, generator=generator, dtype=dtype),
            torch.randn(rank, parts.d_mlp, generator=generator, dtype=dtype),
        )
        for layer in layers
    }
    norms = {name: model.get_submodule(name).weight.norm().item() for name in factors}
    info = EditInfo(
        "memit",
        {"layers": list(layers), "target": {"steps": 25, "clamp": 0.75}, "seed": 0, "bfloat16": False},
        describe_base(model, "org/base", "abc123"),
        {"n": 4, "forget_set": "facts", "chat": True, "target": "self", "merge": "key", "contexts": ["x", "y"]},
        seed=0,
        versions={"torch": "2.9"},
        seconds=12.345,
        peak_memory_bytes=1_500_000_000,
        notes={"weight_norms": norms, "self_check": {"n": 4, "n_took": 3}, "target_loss": {"a": 0.5}},
    )
    edit = LowRankEdit(factors, info, parts.transposed, {"keys.0": torch.zeros(4, 24)}, {})
    return dataclasses.replace(edit, **changes)


def targets_text(records=TARGETS):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def shown(description, width=100):
    console = Console(width=width, no_color=True, color_system=None)
    with console.capture() as capture:
        for table in edit_tables(description):
            console.print(table)
    return capture.get()


# Norms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d_out", "d_in", "n"), [(16, 24, 3), (24, 16, 16), (5, 7, 12), (1, 9, 2), (6, 6, 1)])
def test_singular_values_are_those_of_the_product(d_out, d_in, n):
    generator = torch.Generator().manual_seed(d_out)
    u = torch.randn(d_out, n, generator=generator, dtype=torch.float64)
    v = torch.randn(n, d_in, generator=generator, dtype=torch.float64)
    expected = torch.linalg.svdvals(u @ v)
    found = singular_values(u, v)
    assert len(found) == min(n, d_out, d_in)
    torch.testing.assert_close(found, expected[: len(found)], atol=1e-12, rtol=1e-12)
    assert singular_values(u[:, :0], v[:0]).shape == (0,)


def test_the_full_matrix_is_never_formed():
    """100000 × 100000 would be 80 GB."""
    u, v = torch.randn(100_000, 2), torch.randn(2, 100_000)
    assert singular_values(u, v).shape == (2,)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_norms_against_dense_computation(architecture, tmp_path):
    model = tiny_model(architecture)
    edit = random_edit(model)
    found = describe_edit(edit.save(tmp_path / "edit"))
    dense = {name: u.double() @ v.double() for name, (u, v) in edit.factors.items()}
    total = sum(delta.square().sum().item() for delta in dense.values())
    assert [row["layer"] for row in found["modules"]] == [0, 2]
    for row in found["modules"]:
        delta, weight = dense[row["module"]], model.get_submodule(row["module"]).weight.double()
        assert row["shape"] == list(delta.shape)
        assert row["rank"] == row["columns"] == 3
        assert row["frobenius"] == pytest.approx(delta.norm().item(), rel=1e-6)
        assert row["spectral"] == pytest.approx(torch.linalg.matrix_norm(delta, 2).item(), rel=1e-6)
        assert row["share"] == pytest.approx(delta.square().sum().item() / total, rel=1e-6)
        assert row["relative"] == pytest.approx((delta.norm() / weight.norm()).item(), rel=1e-6)
        assert row["parameters"] == 3 * sum(delta.shape)
    weights = sum(model.get_submodule(name).weight.double().square().sum().item() for name in dense)
    assert found["total"]["frobenius"] == pytest.approx(math.sqrt(total), rel=1e-6)
    assert found["total"]["relative"] == pytest.approx(math.sqrt(total / weights), rel=1e-6)
    assert found["total"]["spectral"] == pytest.approx(
        max(torch.linalg.matrix_norm(delta, 2).item() for delta in dense.values()), rel=1e-6
    )
    assert sum(row["share"] for row in found["modules"]) == pytest.approx(1)


def test_rank_counts_directions_and_not_columns(tmp_path):
    """Three columns of which one repeats another, in float32."""
    model = tiny_model("llama")
    edit = random_edit(model)
    factors = {
        name: (torch.cat([u[:, :2], u[:, :1]], 1), torch.cat([v[:2], v[:1]])) for name, (u, v) in edit.factors.items()
    }
    found = describe_edit(dataclasses.replace(edit, factors=factors).save(tmp_path / "edit"))
    assert [(row["columns"], row["rank"]) for row in found["modules"]] == [(3, 2), (3, 2)]


# What else is said -----------------------------------------------------------------------------------------


def test_what_is_said_is_what_the_folder_holds(tmp_path):
    model = tiny_model("llama")
    edit = random_edit(model, texts={"targets.jsonl": targets_text(), "notes.md": "x"})
    folder = edit.save(tmp_path / "edit", tiny_tokenizer(), model.config)
    found = describe_edit(folder)
    json.dumps(found, allow_nan=False)
    assert found["editor"] == "memit"
    assert found["config"] == edit.info.config
    assert found["base"] == edit.info.base
    assert found["requests"] == edit.info.requests
    assert found["seconds"] == 12.345
    assert found["self_check"] == {"n": 4, "n_took": 3}
    assert found["notes"] == {"target_loss": {"a": 0.5}}
    assert found["state"] == [{"name": "keys.0", "shape": [4, 24], "dtype": "float32"}]
    assert found["texts"] == ["notes.md", "targets.jsonl"]
    assert found["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert found["targets"]["n"] == 4
    assert found["targets"]["sources"] == {"self": 3, "pool": 1}
    assert [record["id"] for record in found["targets"]["examples"]] == ["a", "b", "d"]  # each source is there


def test_nothing_but_the_folder_is_read(tmp_path, monkeypatch):
    folder = random_edit(tiny_model("llama")).save(tmp_path / "edit")
    moved = tmp_path / "elsewhere"
    shutil.move(folder, moved)
    before = {path.name: path.read_bytes() for path in moved.iterdir()}
    monkeypatch.setattr("unlearn_eval.models.load.load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    describe_edit(moved)
    assert {path.name: path.read_bytes() for path in moved.iterdir()} == before


def test_what_is_unknown_is_none(tmp_path):
    edit = random_edit(tiny_model("llama"), info=EditInfo("rome", {}), state={})
    found = describe_edit(edit.save(tmp_path / "edit"))
    for row in (*found["modules"], found["total"]):
        assert row["relative"] is None
    assert found["targets"] is found["self_check"] is found["seconds"] is None
    assert found["state"] == []
    text = shown(found)
    assert "none kept" in text
    assert "–" in text
    assert "None" not in text
    one_known = {"weight_norms": {found["modules"][0]["module"]: 2.0}}
    partly = dataclasses.replace(edit, info=EditInfo("rome", {}, notes=one_known))
    found = describe_edit(partly.save(tmp_path / "edit"))
    assert [row["relative"] is None for row in found["modules"]] == [False, True]
    assert found["total"]["relative"] is None


@pytest.mark.parametrize("rank", [0, None])
def test_an_edit_of_nothing(rank, tmp_path):
    edit = random_edit(tiny_model("llama"), rank=rank or 0)
    edit = edit if rank == 0 else dataclasses.replace(edit, factors={})
    found = describe_edit(edit.save(tmp_path / "edit"))
    assert len(found["modules"]) == (2 if rank == 0 else 0)
    assert all(row["rank"] == row["frobenius"] == 0 and row["share"] is None for row in found["modules"])
    assert found["total"]["frobenius"] == found["total"]["spectral"] == 0
    json.dumps(found, allow_nan=False)
    assert "memit" in shown(found)


def test_a_changed_folder_is_refused(tmp_path):
    folder = random_edit(tiny_model("llama")).save(tmp_path / "edit")
    (folder / "state.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="not as it was written"):
        describe_edit(folder)
    with pytest.raises(UserError, match="not an edit"):
        describe_edit(tmp_path)


@pytest.mark.parametrize("text", ["no JSON\n", "[1]\n", '{"a": 1}\n"x"\n'])
def test_targets_that_are_none_are_refused(text, tmp_path):
    folder = random_edit(tiny_model("llama"), texts={"targets.jsonl": text}).save(tmp_path / "edit")
    load_edit(folder)
    with pytest.raises(UserError, match=r"targets\.jsonl does not have one JSON object on each line"):
        describe_edit(folder)


# The tables ------------------------------------------------------------------------------------------------


def test_the_tables_fit_and_lose_nothing(tmp_path):
    model = tiny_model("llama")
    edit = random_edit(model, texts={"targets.jsonl": targets_text()})
    found = describe_edit(edit.save(tmp_path / "edit"))
    text = shown(found)
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    for part in (
        "memit, seed 0", "target.steps=25", "target.clamp=0.75", "seed=0", "bfloat16=no", "org/base", "revision abc123",
        "4 requests", "of facts", "as a chat", "2 other openings", "merged by key", "12 s", "1.5 GB", "keys.0 4×24",
        "3 of 4 targets are now", "mlp.down_proj", "4 (3 self, 1 pool)", "I [b]cannot[/b] say.", "No [/] idea.",
        "16×24", edit.info.base["canonical_hash"][:12],
    ):  # fmt: skip
        assert part in text, part
    first, last = found["modules"]
    assert f"{first['frobenius']:.3f}" in text
    assert f"{100 * last['share']:.2f}%" in text
    assert f"{100 * last['relative']:.2f}%" in text
    assert "100.00%" in text


def test_small_and_large_norms_are_readable(tmp_path):
    edit = random_edit(tiny_model("llama"), layers=(0,))
    ((name, (u, v)),) = edit.factors.items()
    scaled = dataclasses.replace(edit, factors={name: (u * 1e-6 / (u @ v).norm(), v)})
    assert "1.00e-06" in shown(describe_edit(scaled.save(tmp_path / "edit")))


def test_a_real_memit_edit(tmp_path, monkeypatch):
    """What the editor writes by itself is understood: its layers, its weights' norms."""
    from unlearn_eval.editors.closed_form import memit

    monkeypatch.setenv("UNLEARN_EVAL_CACHE", str(tmp_path / "cache"))
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    config = memit.Config(layers=(1, 2), keys_per_dimension=4.0)
    edit = memit.EDITOR.edit(model, tokenizer, random_requests(3), config)
    found = describe_edit(edit.save(tmp_path / "edit"))
    assert [row["layer"] for row in found["modules"]] == [1, 2]
    assert [row["rank"] for row in found["modules"]] == [3, 3]
    for row in found["modules"]:
        u, v = edit.factors[row["module"]]
        assert row["frobenius"] == pytest.approx((u.double() @ v.double()).norm().item(), rel=1e-5)
        if row["weight_norm"] is not None:
            assert row["weight_norm"] == pytest.approx(model.get_submodule(row["module"]).weight.norm().item())
    assert "transformer" not in shown(found)  # the layer's number and the rest of the name say it
