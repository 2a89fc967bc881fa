"""Results on the hub (a fake one): a dataset with the files as they are, a table of metrics, and a card."""

import json
import random

import fake_hub
import pytest
import yaml
from report_data import records, write_run

from unlearn_eval import push_results
from unlearn_eval.results.files import read_result, read_samples
from unlearn_eval.utils.errors import UserError

REPOSITORY = "lab/results"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    return fake_hub.install(tmp_path / "hub", monkeypatch)


@pytest.fixture
def folder(tmp_path):
    generator = random.Random(0)
    write_run(tmp_path / "runs", "before", records(5, generator))
    write_run(tmp_path / "runs" / "more", "after", records(5, generator), "memit")
    return tmp_path / "runs"


def test_results_are_read_back_from_the_dataset(folder, hub, tmp_path):
    address = push_results(folder, REPOSITORY, private=True)
    assert address.endswith(REPOSITORY)
    assert hub.repository("dataset", REPOSITORY).private
    files = hub.files(REPOSITORY, "dataset")
    for name, content in files.items():
        (tmp_path / "back" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "back" / name).write_bytes(content)
    for name in ("before.json", "more/after.json"):
        assert read_result(tmp_path / "back" / name) == read_result(folder / name)
        assert read_samples(tmp_path / "back" / name, "unlearn_facts") == read_samples(folder / name, "unlearn_facts")
    assert files.keys() == {
        ".gitattributes", "README.md", "metrics.jsonl", "before.json", "before.unlearn_facts.samples.jsonl",
        "more/after.json", "more/after.unlearn_facts.samples.jsonl",
    }  # fmt: skip


def test_the_table_and_the_card_say_what_the_files_say(folder, hub):
    push_results(folder, REPOSITORY)
    files = hub.files(REPOSITORY, "dataset")
    rows = [json.loads(line) for line in files["metrics.jsonl"].splitlines()]
    after = read_result(folder / "more" / "after.json").metrics["unlearn_facts"]
    own = {row["metric"]: row for row in rows if row["file"] == "more/after.json"}
    assert own.keys() == after.keys()
    for name, metric in after.items():
        assert (own[name]["value"], own[name]["stderr"], own[name]["n"]) == (metric.value, metric.stderr, metric.n)
        assert own[name]["editor"] == "memit"
    _, head, body = files["README.md"].decode().split("---\n", 2)
    (shown,) = yaml.safe_load(head)["configs"]
    assert shown == {"config_name": "metrics", "data_files": "metrics.jsonl", "default": True}
    assert "| `more/after.json` | tiny | memit | unlearn_facts | 2026-01-02 | complete |" in body
    assert "| `before.json` | tiny | unedited |" in body


def test_a_second_upload_replaces_the_first_and_nothing_else(folder, hub):
    push_results(folder, REPOSITORY)
    push_results(folder / "more", REPOSITORY)
    assert "before.json" not in hub.files(REPOSITORY, "dataset")
    hub.create_repo("lab/corpus", repo_type="dataset")
    hub.commit(("dataset", "lab/corpus"), {"train.parquet": b"0"})
    with pytest.raises(UserError, match="holds something else"):
        push_results(folder, "lab/corpus")


def test_what_cannot_be_pushed_is_said(folder, hub, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no result file in"):
        push_results(tmp_path / "empty", REPOSITORY)
    (folder / "before.unlearn_facts.samples.jsonl").unlink()
    with pytest.raises(UserError, match="lacks its samples"):
        push_results(folder, REPOSITORY)
    with pytest.raises(UserError, match="is not the name of a repository"):
        push_results(folder, "results")
    assert not hub.repositories
