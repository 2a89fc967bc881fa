"""Files as people have them: every common form gives the same items, and what would need a guess is refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_eval import load_forget_set
from unlearn_eval.data.spans import find_subject, stands_inside_a_word
from unlearn_eval.data.tables import listed_in, read_rows
from unlearn_eval.utils.errors import UserError

ITEMS = [
    {"question": "Which lake lies north of Imberfield?", "answer": "Lake Orsa"},
    {"question": "Who built the bridge of Kestrel Bay?", "answer": "Milo Fenn"},
]
CSV = "question,answer\n" + "".join(f"{item['question']},{item['answer']}\n" for item in ITEMS)
COLUMNS = {name: [item[name] for item in ITEMS] for name in ITEMS[0]}


def written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def pairs(found):
    return [{"question": item.question, "answer": item.answer} for item in found]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", "\n\n".join(map(json.dumps, ITEMS))),
        ("a.JSONL", "\n".join(map(json.dumps, ITEMS))),
        ("a.ndjson", "\n".join(map(json.dumps, ITEMS))),
        ("a.json", json.dumps(ITEMS)),
        ("a.json", json.dumps(COLUMNS)),
        ("a.json", json.dumps({name: {str(i): v for i, v in enumerate(c)} for name, c in COLUMNS.items()})),
        ("a.json", json.dumps({"data": ITEMS})),
        ("a.csv", CSV),
        ("a.CSV", "\ufeff" + CSV),
        ("a.csv", CSV.replace(",", ";")),
        ("a.csv", CSV.replace(",", "\t")),
        ("a.tsv", CSV.replace(",", "\t")),
        ("a.csv", "sep=;\n" + CSV.replace(",", ";")),
        ("a.csv", CSV.replace("question,answer", "Question, ANSWER ")),
        ("a.csv", CSV + ",\n,,\n\n"),
        ("a.csv", CSV.replace("question,answer\n", "question,answer,,\n")),
    ],
)
def test_the_same_items_in_every_form(tmp_path, name, text):
    assert pairs(load_forget_set(written(tmp_path / name, text))) == ITEMS


def test_parquet_folders_and_saved_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ITEMS)
    data.to_parquet(tmp_path / "one.parquet")
    (tmp_path / "snapshot" / "data").mkdir(parents=True)
    data.to_parquet(tmp_path / "snapshot" / "data" / "train-00000-of-00001.parquet")
    data.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "splits")
    for name in ("one.parquet", "snapshot", "saved", "splits", "splits/train"):
        assert pairs(load_forget_set(str(tmp_path / name))) == ITEMS, name
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "two")
    with pytest.raises(UserError, match="holds several splits: train, test"):
        load_forget_set(str(tmp_path / "two"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="a folder without a dataset; there is: nothing"):
        load_forget_set(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "question,answer\nWhere?,Northshire, Albany\n", r"line 2 has 3 cells, and the header 2"),
        ("a.csv", "question,answer,Answer\nA?,b,c\n", "two columns called 'answer'"),
        ("a.csv", 'question,answer\n"A?,b\n', "not CSV"),
        ("a.json", json.dumps({"question": ["A?", "B?"], "answer": ["a"]}), "columns of different lengths"),
        ("a.json", json.dumps([{"question": "A?", "answer": {"text": "a"}}]), "its answer is an object, not a text"),
        ("a.json", json.dumps([{"question": ["A?"], "answer": "a"}]), "its question is a list, not a text"),
        ("a.json", json.dumps([{"question": "A?", "answer": True}]), "its answer is true or false, not a text"),
        ("a.json", json.dumps([{"question": "A?", "answer": []}]), "its answer is empty"),
        ("a.json", json.dumps([{"question": "A?", "answer": ["a", {"b": 1}]}]), "its answer is an object"),
        ("a.json", json.dumps([{"question": "A?", "answer": "a", "aliases": [["b"]]}]), "its aliases is a list"),
        ("a.jsonl", '{"prompt": "A?", "target_new": "b"}', "has no ground_truth"),
        ("a.jsonl", '{"frage": "A?", "antwort": "b"}', "lacks the field 'question'"),
        ("a.jsonl", '{"question": "Who is Adam?", "answer": "b", "subject": "Ada"}', "only inside another one"),
    ],
)
def test_what_would_need_a_guess_is_refused(tmp_path, name, text, says):
    with pytest.raises(UserError, match=says) as error:
        load_forget_set(written(tmp_path / name, text))
    assert name in error.value.message


def test_lists_of_answers_are_answer_and_aliases(tmp_path):
    lines = [
        {"question": "A?", "answer": ["Ada Brook", " A. Brook "], "aliases": ["Brook"]},
        {"question": "B?", "answer": [1912, "MCMXII"]},
    ]
    first, second = load_forget_set(written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines))))
    assert (first.answer, first.aliases) == ("Ada Brook", ("A. Brook", "Brook"))
    assert (second.answer, second.aliases) == ("1912", ("MCMXII",))
    for cell in ("\"['Ada Brook', 'A. Brook']\"", '"[""Ada Brook"", ""A. Brook""]"'):
        (item,) = load_forget_set(written(tmp_path / "a.csv", f"question,answer\nA?,{cell}\n"))
        assert (item.answer, item.aliases) == ("Ada Brook", ("A. Brook",))
    (item,) = load_forget_set(written(tmp_path / "a.csv", "question,answer\nA?,[redacted]\n"))
    assert (item.answer, item.aliases) == ("[redacted]", ())


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Who wrote it?", "subject": "it", "ground_truth": "Ada", "target_new": "Bo", "rephrase_prompt": "By?"},  # noqa: E501
        {"prompt": "Who wrote it?", "subject": "it", "ground_truth": ["Ada"], "target_new": "Bo", "rephrase": ["By?"]},
        {"src": "Who wrote it?", "subject": "it", "answers": ["Ada"], "alt": "Bo", "rephrase": "By?", "loc": "nq"},
        {"QUESTION": "Who wrote it?", "Subject": "it", "Answer": "Ada", "perturbed_answers": ["Bo"],
         "paraphrases": ["By?"]},
    ],
)  # fmt: skip
def test_records_of_other_projects(tmp_path, record):
    (item,) = load_forget_set(written(tmp_path / "a.json", json.dumps([record])))
    assert (item.question, item.answer, item.subject, item.shape) == ("Who wrote it?", "Ada", "it", "question")
    assert (item.paraphrases, item.perturbed_answers) == (("By?",), ("Bo",))


def test_counterfact_is_a_sentence(tmp_path):
    rewrite = {"prompt": "The mother tongue of {} is", "subject": "Ada", "target_true": {"str": "French"}}
    record = {"case_id": 7, "requested_rewrite": rewrite | {"target_new": {"str": "English"}}}
    (item,) = load_forget_set(written(tmp_path / "a.json", json.dumps([record])))
    assert (item.id, item.question, item.answer, item.shape) == (
        "7",
        "The mother tongue of Ada is",
        "French",
        "sentence",
    )
    assert item.perturbed_answers == ("English",)


def test_fields_are_named(tmp_path):
    path = written(tmp_path / "a.csv", "prompt;truth\nA?;b\n")
    (item,) = load_forget_set(path, fields={"question": "prompt", "answer": "truth"})
    assert (item.question, item.answer) == ("A?", "b")
    with pytest.raises(UserError, match="has no field 'wahr', which is to be its answer"):
        load_forget_set(path, fields={"question": "prompt", "answer": "wahr"})


def test_outer_white_space_goes_and_ids_are_unique(tmp_path):
    lines = [
        '{"id": "1", "question": " A? ", "answer": "\\na\\n", "paraphrases": " B?"}',
        '{"question": "C?", "answer": "c"}',
    ]
    first, second = load_forget_set(written(tmp_path / "a.jsonl", "\n".join(lines)))
    assert (first.question, first.answer, first.paraphrases) == ("A?", "a", ("B?",))
    assert first.id != second.id


def test_lines_are_those_of_the_file(tmp_path):
    path = written(tmp_path / "a.jsonl", '\n\n{"a": 1}\n\n{"a": 2}\n')
    assert [row.where.rpartition(", ")[2] for row in read_rows(path)] == ["line 3", "line 5"]
    path = written(tmp_path / "a.csv", 'sep=;\na;b\n"x\ny";1\n\nz;2\n')
    assert [row.where.rpartition(", ")[2] for row in read_rows(path, ("a",))] == ["line 4", "line 6"]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_only_lists_are_listed(text):
    found = listed_in(text)
    assert found is None or (text.strip()[0], text.strip()[-1]) == ("[", "]")


@pytest.mark.parametrize(
    ("question", "subject", "found"),
    [
        ("Who was the Roman emperor in Rome, Romania?", "Roman", "Roman"),
        ("Did Ada meet Adam?", "Ada", "Ada"),
        ("Who is Zoe\u0308 E\u0301lan?", "Zo\u00eb \u00c9lan", "Zoe\u0308 E\u0301lan"),
        ("Who is Zo\u00eb \u00c9lan?", "Zoe\u0308 E\u0301lan", "Zo\u00eb \u00c9lan"),
        ("O\u2019Neil's book?", "O'Neil", "O\u2019Neil"),
        ("In New\u00a0York?", "New York", "New\u00a0York"),
        ("東京都は?", "東京", "東京"),
        ("作者Ada是谁?", "Ada", "Ada"),
        ("Ada's book?", "Ada", "Ada"),
        ("Who is Adam?", "Ada", None),
        ("Who is Bo?", "Ada", None),
    ],
)
def test_subjects_stand_as_words(question, subject, found):
    span = find_subject(question, subject)
    assert (None if span is None else question[slice(*span)]) == found
    assert stands_inside_a_word(question, subject) is (found is None and subject in question)


def test_the_last_whole_word_is_the_subject():
    assert find_subject("Did Ada see Ada in Adaville?", "Ada") == (12, 15)
    assert find_subject("Who was the Roman emperor in Romania?", "Roman") == (12, 17)
