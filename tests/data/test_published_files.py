"""Benchmarks' files in the forms that authors, the hub and `datasets` give them, and nothing lost on the way."""

import json

import pytest
from benchmark_data import PEOPLE, TOWNS, benchmark_files, write_benchmarks
from lm_eval_runs import evaluate, values
from saying import SayingLM

from unlearn_eval.data import sources
from unlearn_eval.data.benchmarks.rwku import kind_of_attack
from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.data.registry import benchmark_documents
from unlearn_eval.data.sources import Source, load_source
from unlearn_eval.data.tables import read_rows
from unlearn_eval.utils.errors import UserError

RECORDS = [{"question": f"Where was {name} born?", "answer": town} for name, town in zip(PEOPLE, TOWNS, strict=True)]
HUB = Source("mine", "part", "somebody/My-Own", "part", "test", alternatives=("old/part2",))
ONE = Source("mine", "mine", "somebody/My-Own")  # a dataset with one configuration


def as_json(path, records=RECORDS):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records), encoding="utf-8")


def as_lines(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, RECORDS)), encoding="utf-8")


def as_parquet(path, records=RECORDS):
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(records).to_parquet(str(path))


def in_two(root, stem):
    as_parquet(root / f"{stem}-00000-of-00002.parquet", RECORDS[:3])
    as_parquet(root / f"{stem}-00001-of-00002.parquet", RECORDS[3:])


def saved(path, **splits):
    import datasets

    parts = {split: datasets.Dataset.from_list(records) for split, records in splits.items()}
    (datasets.DatasetDict(parts) if parts else datasets.Dataset.from_list(RECORDS)).save_to_disk(str(path))


def numbered(root):
    """One record in each folder; 10 comes after 2, and what has no number does not count."""
    for i, record in zip((1, 2, 3, 10), RECORDS, strict=True):
        as_json(root / f"{i}_{record['answer']}" / "part.json", [record])
    as_json(root / "backup" / "part.json")


@pytest.mark.parametrize(
    ("source", "write"),
    [
        (HUB, lambda root: as_json(root / "mine/part.json")),
        (HUB, lambda root: as_json(root / "mine/PART.JSON")),
        (HUB, lambda root: as_lines(root / "mine/part.jsonl")),
        (HUB, lambda root: as_parquet(root / "mine/part.parquet")),
        (HUB, lambda root: in_two(root, "mine/part")),
        (HUB, lambda root: in_two(root, "mine/part/test")),
        (HUB, lambda root: as_json(root / "mine/part/test.json")),
        (HUB, lambda root: in_two(root, "My-Own/part/test")),
        (HUB, lambda root: as_json(root / "MINE/part.json")),
        (HUB, lambda root: as_json(root / "my_own/part.json")),
        (HUB, lambda root: as_json(root / "mine/old/part2.json")),
        (HUB, lambda root: saved(root / "mine/part")),
        (HUB, lambda root: saved(root / "mine/part", test=RECORDS)),
        (HUB, lambda root: saved(root / "mine/part", train=RECORDS[:1], test=RECORDS)),
        (HUB, lambda root: numbered(root / "mine")),
        (ONE, lambda root: in_two(root, "mine/data/train")),
        (ONE, lambda root: saved(root / "mine", train=RECORDS, test=RECORDS[:1])),
        (ONE, lambda root: saved(root / "My-Own")),
    ],
)
def test_the_same_records_in_every_form(tmp_path, monkeypatch, source, write):
    write(tmp_path)
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(tmp_path))
    assert load_source(source, ("question", "answer")) == RECORDS


def test_what_is_no_form_of_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(tmp_path))
    as_json(tmp_path / "mine" / "backup" / "part.json")
    in_two(tmp_path, "mine/data/train")  # of a dataset with several configurations this says nothing
    with pytest.raises(UserError, match=r"no mine/part\.json in the data folder .*; there is: backup, data"):
        load_source(HUB, ())


@pytest.mark.parametrize(("size", "said"), [(None, False), (4, False), (5, True), (3, True)])
def test_another_size_than_the_published_one_is_said_once(tmp_path, monkeypatch, capsys, size, said):
    sources._say.cache_clear()
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(tmp_path))
    as_json(tmp_path / "mine" / "part.json")
    for _ in range(2):
        load_source(Source("mine", "part", size=size), ())
    line = f"mine/part in {tmp_path} has 4 records; the published one {size}\n"
    assert capsys.readouterr().err == (line if said else "")


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (lambda root: (in_two(root, "data/train"), in_two(root, "data/test")), "several splits: test, train"),
        (lambda root: (in_two(root, "a/test"), in_two(root, "b/test")), "several configurations: a, b"),
    ],
)
def test_a_snapshot_of_several_sets_is_none(tmp_path, write, match):
    write(tmp_path)
    with pytest.raises(UserError, match=match):
        load_forget_set(str(tmp_path))


def test_a_snapshot_of_one_configuration_is_a_set(tmp_path):
    in_two(tmp_path, "only/test")
    assert [item.answer for item in load_forget_set(str(tmp_path))] == list(TOWNS)


@pytest.mark.parametrize("name", ["a.json", "a.JSON"])
def test_a_list_of_texts_is_a_column(tmp_path, name):
    as_json(tmp_path / name, ["One text.", "Another, on\ntwo lines."])
    assert [row.record for row in read_rows(tmp_path / name, ("text",))] == [
        {"text": "One text."}, {"text": "Another, on\ntwo lines."},
    ]  # fmt: skip
    as_json(tmp_path / name, ["One text.", 2])
    with pytest.raises(UserError, match="record 1 is a str, not an object"):
        read_rows(tmp_path / name, ("text",))


def test_muse_as_its_authors_have_it(tmp_path, monkeypatch):
    """Texts as lists, and what is retained called `retain2`."""
    files = {
        key.removeprefix("muse_news/"): own for key, own in benchmark_files().items() if key.startswith("muse_news")
    }
    for path, records in files.items():
        texts = [record["text"] for record in records] if path.startswith("privleak") else records
        as_json(tmp_path / "MUSE-News" / f"{path.replace('retain', 'retain2')}.json", texts)
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(tmp_path))
    theirs = benchmark_documents("muse_news", {})
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(write_benchmarks(tmp_path / "ours")))
    assert theirs == benchmark_documents("muse_news", {})


def test_knowundo_as_its_authors_have_it(tmp_path, monkeypatch):
    for path, records in benchmark_files().items():
        if path.startswith("knowundo"):
            as_json(tmp_path / f"{path.replace('privacy_', 'privacy/')}.json", records)
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(tmp_path))
    assert {split: len(own) for split, own in benchmark_documents("knowundo", {}).items()} == {
        "forget_train": 3, "forget_val": 3, "retain_train": 3, "retain_val": 3,
    }  # fmt: skip


# RWKU ------------------------------------------------------------------------------------------------------

# As the 6,984 records of forget_level3 write them, and what is one kind.
KINDS = {
    "prefix injection": "prefix_injection",
    "affirmative suffix": "affirmative_suffix",
    "role play": "role_play",
    "multiple choice": "multiple_choice",
    "reverse query": "reverse_query",
    "synonym manipulation": "synonym_manipulation",
    "context hint": "context_hint",
    "incontext learning": "incontext_learning",
    "cross lingual": "cross_lingual",
    "cross lingual (Spanish)": "cross_lingual",
    "cross lingual (French)": "cross_lingual",
    "cross lingual (German)": "cross_lingual",
    "cross lingual (Portuguese)": "cross_lingual",
    "cross lingual (Italian)": "cross_lingual",
    "cross lingual (Russian)": "cross_lingual",
    "cross-lingual (French)": "cross_lingual",
}


@pytest.mark.parametrize(("written", "kind"), KINDS.items())
def test_sixteen_spellings_are_nine_kinds(written, kind):
    assert kind_of_attack(written) == kind
    assert len(set(KINDS.values())) == 9


def test_rwku_as_its_authors_have_it(tmp_path, monkeypatch):
    """A folder for each person, all spellings, and neighbors by their names."""
    for i, person in enumerate(PEOPLE[:2], 1):
        folder = tmp_path / "RWKU" / f"{i}_{person.replace(' ', '_')}"
        common = {"subject": person, "answer": "Larkhill"}
        for level in "12":
            as_json(folder / f"forget_level{level}.json", [{**common, "query": f"{person} ___", "level": level}])
            near = {**common, "query": "The Red Town ___", "neighbor": "The Red Town", "level": level}
            as_json(folder / f"neighbor_level{level}.json", [near])
        attacks = [{**common, "query": f"{kind}: {person}?", "type": kind, "level": "3"} for kind in KINDS]
        as_json(folder / "forget_level3.json", attacks)
        for role in ("forget", "retain"):
            as_json(folder / f"{role}_mia.json", [{"ngram": 3, "subject": person, "text": f"{role} {person}"}] * i)
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(tmp_path))
    splits = benchmark_documents("rwku", {})
    assert [len(splits[f"{role}_texts"]) for role in ("forget", "retain")] == [3, 3]
    assert len(benchmark_documents("rwku", {"forget": PEOPLE[1]})["forget_texts"]) == 2
    assert not [item for item in load_forget_set(f"rwku:{PEOPLE[0]}") if "mia" in item.id], "texts are no questions"
    assert {split: len(own) for split, own in splits.items() if "attack" in split} == {
        f"forget_attack_{kind}": 2 * list(KINDS.values()).count(kind) for kind in KINDS.values()
    }
    assert [own["subject"] for own in splits["forget_blank"]] == list(PEOPLE[:2])
    assert {(own["subject"], own["group"]) for own in splits["neighbors_blank"]} == {
        ("The Red Town", person) for person in PEOPLE[:2]
    }
    lm = SayingLM(lambda doc, context: doc["answer"] if "cross" in doc["split"] else "none")
    found = values(evaluate(lm, "unlearn_rwku", {"forget": PEOPLE[0]}), "unlearn_rwku")
    assert found["forget_attack_cross_lingual_rouge"] == 1
    assert found["forget_attack_rouge"] == 0.5  # eight of sixteen


# All means all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "n"),
    [("zsre:all", 130), ("zsre:100", 100), ("zsre:129", 129), ("counterfact:all", 130), ("counterfact:100", 100)],
)
def test_all_is_not_the_first_hundred(tmp_path, monkeypatch, name, n):
    benchmark = name.partition(":")[0]
    path = {"zsre": "zsre/zsre_mend_eval", "counterfact": "counterfact/counterfact"}[benchmark]
    first = benchmark_files()[path][0]
    many = [{**first, **({"case_id": i} if "case_id" in first else {})} for i in range(130)]
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(write_benchmarks(tmp_path, **{path.replace("/", "__"): many})))
    items = load_forget_set(name)
    assert (len(items), items.items[-1].id) == (n, f"{benchmark}/{n - 1}")


@pytest.mark.parametrize(("rewrites", "ids"), [(1, ["7"]), (3, ["7/0", "7/1", "7/2"])])
def test_a_record_may_hold_several_rewrites(tmp_path, rewrites, ids):
    """As MQuAKE's and KnowGIC's do."""
    own = [
        {"prompt": "{} was born in", "subject": name, "target_true": {"str": town}, "target_new": {"str": "Imber"}}
        for name, town in zip(PEOPLE[:rewrites], TOWNS[:rewrites], strict=True)
    ]
    as_json(tmp_path / "cases.json", [{"case_id": 7, "requested_rewrite": own, "questions": ["?"]}])
    items = load_forget_set(str(tmp_path / "cases.json")).items
    assert [item.id for item in items] == ids
    assert [(item.subject, item.answer, item.shape) for item in items] == [
        (name, town, "sentence") for name, town in zip(PEOPLE[:rewrites], TOWNS[:rewrites], strict=True)
    ]
