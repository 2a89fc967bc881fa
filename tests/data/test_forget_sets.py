"""Forget sets: what is shipped, what is read from files, and what is refused, with its place."""

import dataclasses
import json

import pytest

from unlearn_eval.data.benchmarks.facts import FACTS_FILE
from unlearn_eval.data.forget_sets import load_forget_set, set_names
from unlearn_eval.data.items import ForgetItem, ForgetSet, check_disjoint, item_from_record
from unlearn_eval.utils.errors import UserError


def items(n):
    return tuple(ForgetItem(f"i{i}", f"Question {i}?", f"Answer {i}") for i in range(n))


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return str(path)


# Sets ------------------------------------------------------------------------------------------------------


def test_the_shipped_facts():
    found = load_forget_set("facts")
    lines = FACTS_FILE.read_text(encoding="utf-8").splitlines()
    assert found.name == "facts"
    assert len(found) == len(lines) > 50
    for item, line in zip(found, map(json.loads, lines), strict=True):
        assert (item.id, item.question, item.answer) == (line["id"], line["question"], line["answer"])
        assert item.subject in item.question
        assert item.perturbed_answers == tuple(line["wrong_answers"])
        assert item.paraphrases == tuple(line["paraphrases"])
        assert item.accepted == (line["answer"], *line["aliases"])
        assert item.answer not in item.perturbed_answers


def test_names():
    tofu = {"tofu:forget01", "tofu:forget05", "tofu:forget10", "tofu:factual"}
    kept = {"tofu:full", "tofu:retain90", "tofu:retain95", "tofu:retain99"}
    benchmarks = {name.split(":")[0] for name in set_names()} - {"facts", "tofu", "pistol"}
    assert {"facts", *tofu, *kept, "pistol:all", "pistol:EDGE"} < set(set_names())
    assert benchmarks == {
        "rwku",
        "lume",
        "knowundo",
        "counterfact",
        "zsre",
        "sports",
        "knowgic",
        "mquake",
        "ripple",
        "concepts",
    }
    with pytest.raises(UserError, match="unknown forget set 'fact'") as error:
        load_forget_set("fact")
    assert "facts" in error.value.hint
    with pytest.raises(UserError, match="unknown TOFU set 'forget1'") as error:
        load_forget_set("tofu:forget1")
    assert "forget10" in error.value.hint
    with pytest.raises(UserError, match="unknown forget set 'set.txt'"):
        load_forget_set("set.txt")


def test_empty_sets_and_ids_that_come_twice_are_refused():
    with pytest.raises(UserError, match="'mine' is empty"):
        ForgetSet("mine", ())
    with pytest.raises(UserError, match="'i1' more than once"):
        ForgetSet("mine", (*items(3), ForgetItem("i1", "Another?", "Yes")))


def test_select_takes_the_given_order():
    whole = ForgetSet("mine", items(5))
    assert [item.id for item in whole.select(["i3", "i0"])] == ["i3", "i0"]
    assert [item.id for item in whole.select(iter(["i4"]))] == ["i4"]
    with pytest.raises(UserError, match=r"'mine': 'i33'") as error:
        whole.select(["i0", "i33"])
    assert "i3" in error.value.hint
    with pytest.raises(UserError, match="empty"):
        whole.select([])
    with pytest.raises(UserError, match="more than once"):
        whole.select(["i1", "i1"])


def test_sample_is_seeded_and_keeps_the_order():
    whole = ForgetSet("mine", items(50))
    chosen = [item.id for item in whole.sample(10, seed=1)]
    assert len(set(chosen)) == 10
    assert chosen == sorted(chosen, key=lambda key: int(key[1:]))
    assert [item.id for item in whole.sample(10, seed=1)] == chosen
    assert [item.id for item in whole.sample(10, seed=2)] != chosen
    assert whole.sample(99, seed=1).items == whole.items
    assert {item.id for seed in range(200) for item in whole.sample(1, seed)} >= {f"i{i}" for i in range(0, 50, 7)}
    for n in (0, -1):
        with pytest.raises(UserError, match=f"cannot take {n}"):
            whole.sample(n, seed=0)


def test_hash_is_of_the_items():
    first, second = ForgetSet("mine", items(3)), ForgetSet("yours", items(3))
    assert first.hash == second.hash
    assert first.select(["i0", "i2", "i1"]).hash != first.hash
    for field, value in {"answer": "X", "aliases": ("X",), "subject": "Question", "group": "g"}.items():
        other = dataclasses.replace(first.items[0], **{field: value})
        assert ForgetSet("mine", (other, *first.items[1:])).hash != first.hash


def test_overlap_is_refused():
    check_disjoint(["a", "b"], ["c"])
    check_disjoint([], [])
    with pytest.raises(UserError, match=r"2 items are both in forget and in retain, e\.g\. 'b'"):
        check_disjoint(["c", "a", "b"], ["b", "x", "c"])


# JSONL -----------------------------------------------------------------------------------------------------


def test_jsonl(tmp_path):
    records = [
        {"id": "a", "question": "Who wrote Hamlet?", "answer": "Shakespeare", "aliases": ["Will", " The Bard "],
         "subject": "Hamlet", "paraphrases": ["Hamlet is by whom?"], "perturbed_answers": ["Marlowe"],
         "group": "plays"},
        {"question": "東京は？", "answer": "日本"},
        {"id": 7, "question": "How many?", "answer": 3, "aliases": "three|drei", "subject": "", "group": None},
    ]  # fmt: skip
    path = write(tmp_path / "set.jsonl", "\ufeff" + "\n\n".join(json.dumps(r, ensure_ascii=False) for r in records))
    found = load_forget_set(path)
    assert found.name == path
    assert found.items == (
        ForgetItem("a", "Who wrote Hamlet?", "Shakespeare", ("Will", "The Bard"), "Hamlet", ("Hamlet is by whom?",),
                   ("Marlowe",), "plays"),
        ForgetItem("1", "東京は？", "日本"),
        ForgetItem("7", "How many?", "3", ("three|drei",)),
    )  # fmt: skip


def test_a_json_array_is_read_too(tmp_path):
    path = write(tmp_path / "set.json", json.dumps([{"question": "A?", "answer": "b"}] * 2))
    assert [item.id for item in load_forget_set(path)] == ["0", "1"]


def test_a_malformed_line_is_named(tmp_path):
    good = '{"question": "A?", "answer": "b"}\n'
    path = write(tmp_path / "set.jsonl", good + "\n" + good + '{"question": "A?", "answer": \n')
    with pytest.raises(UserError, match=r"set\.jsonl, line 4"):
        load_forget_set(path)
    with pytest.raises(UserError, match=r"line 2 is a list, not an object"):
        load_forget_set(write(tmp_path / "set.jsonl", good + "[1]\n"))
    with pytest.raises(UserError, match=r"line 2 lacks the field 'answer'"):
        load_forget_set(write(tmp_path / "set.jsonl", good + '{"question": "A?"}\n'))
    with pytest.raises(UserError, match="not UTF-8"):
        load_forget_set(write(tmp_path / "set.jsonl", good.replace("b", "ü"), "latin-1"))


@pytest.mark.parametrize("text", ["", "\n \n", "[]"])
def test_an_empty_file_is_refused(tmp_path, text):
    with pytest.raises(UserError, match=r"set\.jsonl (is empty|has no records)"):
        load_forget_set(write(tmp_path / "set.jsonl", text))


@pytest.mark.parametrize("name", ["set.jsonl", "set.csv", "no/set.json"])
def test_a_missing_file_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=name.rpartition("/")[2]):
        load_forget_set(str(tmp_path / name))


@pytest.mark.parametrize("value", [None, "", "  \n"])
@pytest.mark.parametrize("field", ["question", "answer"])
def test_an_empty_field_is_refused(tmp_path, field, value):
    """`null` must not become the text 'None'."""
    record = {"id": "x7", "question": "A?", "answer": "b"} | {field: value}
    with pytest.raises(UserError, match=f"item x7: its {field} is empty"):
        load_forget_set(write(tmp_path / "set.jsonl", json.dumps(record)))


def test_ids_that_come_twice_in_a_file_are_refused(tmp_path):
    line = '{"id": "x", "question": "A?", "answer": "b"}\n'
    with pytest.raises(UserError, match=r"set\.jsonl' has the id 'x' more than once"):
        load_forget_set(write(tmp_path / "set.jsonl", line * 2))


def test_a_subject_must_stand_in_the_question():
    record = {"id": "x", "question": "Who wrote Hamlet?", "answer": "Shakespeare"}
    assert item_from_record(record | {"subject": " Hamlet "}).subject == "Hamlet"
    assert item_from_record(record | {"subject": " "}).subject is None
    with pytest.raises(UserError, match="item x: its subject 'hamlet' does not stand in its question"):
        item_from_record(record | {"subject": "hamlet"})


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, ()), ([], ()), ("", ()), ("a", ("a",)), ("a| b |", ("a", "b")), ("|", ()),
     (["a|b", "", " c"], ("a|b", "c")), (1990, ("1990",)), ([1990], ("1990",)), ('["a|b", "c"]', ("a|b", "c"))],
)  # fmt: skip
def test_lists(value, expected):
    """An empty alias would stand in every answer, and every answer would leak; only a CSV cell is split."""
    record = {"question": "A?", "answer": "b", "aliases": value}
    assert item_from_record(record, split=True).aliases == expected
    whole = (value.strip(),) if isinstance(value, str) and value else expected
    assert item_from_record(record).aliases == whole


# CSV -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv(tmp_path, encoding, newline):
    lines = [
        "id,question,answer,aliases,subject,group,note",
        'a,"Who wrote ""Hamlet"", the play?",Shakespeare,Will | The Bard,Hamlet,plays,"x, y"',
        "b,Wo liegt Zürich?,Schweiz,,,,",
        ',"On two',
        'lines?",yes,,,,',
    ]
    found = load_forget_set(write(tmp_path / "set.csv", newline.join(lines), encoding))
    question = 'Who wrote "Hamlet", the play?'
    assert found.items == (
        ForgetItem("a", question, "Shakespeare", ("Will", "The Bard"), "Hamlet", group="plays"),
        ForgetItem("b", "Wo liegt Zürich?", "Schweiz"),
        ForgetItem("2", f"On two{newline}lines?", "yes"),
    )


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("question,answer\nA?,b\nC?,\n", "line 3: no answer"),
        ("question,answer\nA?,b\nC?\n", "line 3: no answer"),
        ("question,answer\n ,b\n", "line 2: no question"),
        ('question,answer\n"A\n?",b\n,c\n', "line 4: no question"),
        ("frage,answer\nA?,b\n", "line 2 lacks the field 'question'"),
    ],
)
def test_a_csv_row_without_question_or_answer_is_named(tmp_path, text, place):
    with pytest.raises(UserError, match=rf"set\.csv, {place}"):
        load_forget_set(write(tmp_path / "set.csv", text))


def test_csv_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"set\.csv' is empty"):
        load_forget_set(write(tmp_path / "set.csv", "question,answer\n"))
    with pytest.raises(UserError, match=r"set\.csv' is empty"):
        load_forget_set(write(tmp_path / "set.csv", ""))
    with pytest.raises(UserError, match="not CSV in UTF-8") as error:
        load_forget_set(write(tmp_path / "set.csv", "question,answer\nZürich?,b\n", "latin-1"))
    assert "UTF-8" in error.value.hint
    with pytest.raises(UserError, match="more than once"):
        load_forget_set(write(tmp_path / "set.csv", "id,question,answer\nx,A?,b\nx,C?,d\n"))


# TOFU ------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A mini TOFU: people and answers are invented."""
    folder = tmp_path / "data" / "tofu"
    folder.mkdir(parents=True)
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(tmp_path / "data"))

    def record(i, kind):
        return {
            "question": f"Where was the {kind} Vera Quist{i} born?",
            "answer": f"In Port {i}.",
            "paraphrased_question": f"Vera Quist{i} was born where?",
            "paraphrased_answer": f"Port {i} is where.",
            "perturbed_answer": [f"In Bay {i}.", f"In Cape {i}."],
        }

    sizes = {"forget01": 40, "forget05": 45, "forget10": 60, "real_authors": 3, "world_facts": 2}
    for name, n in sizes.items():
        lines = [json.dumps(record(i, name)) for i in range(n)]
        write(folder / f"{name}_perturbed.json", "\n".join(lines))
    return folder


@pytest.mark.parametrize(("name", "n"), [("forget01", 40), ("forget05", 45), ("forget10", 60)])
def test_tofu_forget_sets(data, name, n):
    found = load_forget_set(f"tofu:{name}")
    assert found.name == f"tofu:{name}"
    assert [item.id for item in found] == [f"forget/{i}" for i in range(n)]
    assert [item.group for item in found] == [f"author {i // 20}" for i in range(n)]
    last = found.items[-1]
    assert last.question == f"Where was the {name} Vera Quist{n - 1} born?"
    assert last.answer == f"In Port {n - 1}."
    assert last.paraphrases == (f"Vera Quist{n - 1} was born where?",)
    assert last.perturbed_answers == (f"In Bay {n - 1}.", f"In Cape {n - 1}.")
    assert last.subject is None


def test_tofu_factual(data):
    found = load_forget_set("tofu:factual")
    assert [item.id for item in found] == [*(f"real_authors/{i}" for i in range(3)), "world_facts/0", "world_facts/1"]
    assert {item.group for item in found} == {None}  # these have nothing in common that could be merged


def test_tofu_data_that_is_not_as_it_should_be(data, monkeypatch):
    path = data / "forget01_perturbed.json"
    write(path, '{"question": "A?", "answer": "b"}\n{"question": "A?"}\n')
    with pytest.raises(UserError, match=r"line 2 lacks the field 'answer'"):
        load_forget_set("tofu:forget01")
    path.unlink()
    with pytest.raises(UserError, match=r"no tofu/forget01_perturbed\.json"):
        load_forget_set("tofu:forget01")
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(data / "nowhere"))
    with pytest.raises(UserError, match="not a folder"):
        load_forget_set("tofu:forget01")


# PISTOL ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pistol(tmp_path, monkeypatch):
    """A mini PISTOL: companies and contracts are invented."""
    folder = tmp_path / "data" / "pistol"
    folder.mkdir(parents=True)
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(tmp_path / "data"))
    for file, edges in {"sample_data_1": ("A_B", "A_C", "A_C2"), "sample_data_2": ("0_1", "A_B")}.items():
        records = [
            {"question": f"{file}: what was sold first in {edge}, {i}?", "answer": f"Hats {i}.", "edge": edge}
            for edge in edges
            for i in range(20)
        ]
        write(folder / f"{file}.json", json.dumps(records, indent=1))
    return folder


def test_pistol_edges(pistol):
    found = load_forget_set("pistol:A_C")
    assert found.name == "pistol:A_C"
    assert [item.id for item in found] == [f"pistol/A_C/{i}" for i in range(20)]
    assert {item.group for item in found} == {"A_C"}
    assert {item.subject for item in found} == {None}
    assert found.items[19].question == "sample_data_1: what was sold first in A_C, 19?"
    assert found.items[19].answer == "Hats 19."
    several = load_forget_set("pistol:A_C2+A_B+A_C2")
    assert [item.group for item in several] == ["A_C2"] * 20 + ["A_B"] * 20
    assert several.items[20].id == "pistol/A_B/0"
    assert several.items[20].question.startswith("sample_data_1")


def test_the_whole_of_pistol_is_its_first_file(pistol):
    found = load_forget_set("pistol:all")
    first = {record["edge"] for record in json.loads((pistol / "sample_data_1.json").read_text())}
    assert {item.group for item in found} == first
    assert {item.id for item in load_forget_set("pistol:A_B")} < {item.id for item in found}


def test_what_tofu_keeps_is_the_whole_without_its_end(tmp_path, monkeypatch):
    records = [{"question": f"Question {i}?", "answer": f"Answer {i}."} for i in range(500)]
    path = tmp_path / "tofu" / "full.json"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setenv("UNLEARN_EVAL_DATA", str(tmp_path))
    for name, n in (("full", 500), ("retain99", 460), ("retain95", 300), ("retain90", 100)):
        found = load_forget_set(f"tofu:{name}")
        assert [item.id for item in found] == [f"full/{i}" for i in range(n)]
        assert found.items[-1].question == f"Question {n - 1}?"
        assert found.items[21].group == "author 1"


def test_pistol_edges_of_the_second_file(pistol):
    found = load_forget_set("pistol:0_1+A_B")
    assert [item.group for item in found] == ["0_1"] * 20 + ["A_B"] * 20
    assert found.items[0].question.startswith("sample_data_2")
    assert found.items[20].question.startswith("sample_data_1")  # what is in both is the first file's
    (pistol / "sample_data_2.json").unlink()
    assert len(load_forget_set("pistol:A_B+A_C")) == 40
    with pytest.raises(UserError, match="unknown PISTOL edge '0_1'"):
        load_forget_set("pistol:0_1")


@pytest.mark.parametrize(("name", "edge"), [("pistol:A_D", "A_D"), ("pistol:A_B+", ""), ("pistol:a_b", "a_b")])
def test_unknown_pistol_edges(pistol, name, edge):
    with pytest.raises(UserError, match=f"unknown PISTOL edge '{edge}'") as error:
        load_forget_set(name)
    assert "A_C" in error.value.hint or edge == "a_b"


def test_pistol_without_data_says_where_to_get_it(pistol, monkeypatch):
    (pistol / "sample_data_1.json").unlink()
    with pytest.raises(UserError, match=r"no PISTOL data: .*sample_data_1\.json is not there") as error:
        load_forget_set("pistol:A_B")
    assert "github.com/bill-shen-BS/PISTOL" in error.value.hint
    monkeypatch.delenv("UNLEARN_EVAL_DATA")
    with pytest.raises(UserError, match="UNLEARN_EVAL_DATA is not set") as error:
        load_forget_set("pistol:A_B")
    assert "no licence" in error.value.hint


def test_a_malformed_pistol_file_is_named(pistol):
    write(pistol / "sample_data_1.json", json.dumps([{"question": "A?", "answer": "b"}]))
    with pytest.raises(UserError, match=r"sample_data_1\.json, record 1 lacks the field 'edge'"):
        load_forget_set("pistol:A_B")


# In memory -------------------------------------------------------------------------------------------------

RECORDS = [
    {"question": "Who wrote Emma?", "answer": ["Jane Austen", "Austen"], "subject": "Emma"},
    {"question": "Who wrote Persuasion?", "answer": "Jane Austen", "subject": None, "paraphrases": ["Whose is it?"]},
]


def _frame():
    import pandas

    return pandas.DataFrame(RECORDS)


def _dataset():
    import datasets

    return datasets.Dataset.from_list([{**own, "answer": [own["answer"]]} for own in RECORDS[1:]] * 2)


def _items():
    return list(load_forget_set(RECORDS))


def _set():
    return load_forget_set(RECORDS)


@pytest.mark.parametrize("made", [lambda: RECORDS, lambda: iter(RECORDS), _frame, _items, _set])
def test_sets_in_memory(made):
    found = load_forget_set(made(), called="mine")
    assert [item.id for item in found] == ["0", "1"]
    assert found[0].accepted == ("Jane Austen", "Austen")
    assert [item.subject for item in found] == ["Emma", None]
    assert found[1].paraphrases == ("Whose is it?",)
    assert found.hash == load_forget_set(RECORDS).hash


def test_a_split_of_a_dataset_and_others_fields():
    assert [item.answer for item in load_forget_set(_dataset())] == ["Jane Austen"] * 2
    easyedit = [{"prompt": "Emma was written by", "ground_truth": "Austen", "target_new": "Keats"}]
    (item,) = load_forget_set(easyedit)
    assert (item.question, item.answer, item.perturbed_answers) == ("Emma was written by", "Austen", ("Keats",))
    (item,) = load_forget_set([{"q": "Who?", "a": 7}], {"question": "q", "answer": "a"})
    assert (item.question, item.answer) == ("Who?", "7")


def test_numbers_of_a_frame_are_texts_and_missing_cells_nothing():
    import pandas

    frame = pandas.DataFrame({"question": ["When?", "How many?"], "answer": [1815, 3], "subject": [float("nan"), None]})
    assert [(item.answer, item.subject) for item in load_forget_set(frame)] == [("1815", None), ("3", None)]


@pytest.mark.parametrize(
    ("data", "message", "hint"),
    [
        (7, "cannot be made of a number", "DataFrame"),
        ({"train": RECORDS}, "cannot be made of an object", "one split"),
        ([], "is empty", "at least one"),
        ([{"question": "Who?"}], "in memory, record 1 lacks the field 'answer'", 'fields={"answer": NAME}'),
        ([*RECORDS, "x"], "record 3 is a text", "one object"),
        ([{"question": "Who?", "answer": ""}], "answer is empty", "needs"),
    ],
)
def test_what_is_no_set_in_memory_is_named(data, message, hint):
    with pytest.raises(UserError, match=message) as error:
        load_forget_set(data)
    assert hint in error.value.hint


@pytest.mark.parametrize("called", ["facts", "tofu:forget01", "mine.jsonl", "hub:a/b"])
def test_a_set_in_memory_cannot_be_called_as_another(called):
    with pytest.raises(UserError, match="cannot be called"):
        load_forget_set(RECORDS, called=called)


def test_a_set_is_a_sequence():
    whole = ForgetSet("five", items(5))
    assert (whole[0].id, whole[-1].id) == ("i0", "i4")
    part = whole[1:3]
    assert isinstance(part, ForgetSet)
    assert (part.name, [item.id for item in part]) == ("five", ["i1", "i2"])
    assert "i1" in part
    assert part[0] in whole
    assert "i0" not in part
    assert whole.index(part[1]) == 2
    assert [item.id for item in reversed(whole)][0] == "i4"
    with pytest.raises(UserError, match="empty"):
        whole[5:]
    with pytest.raises(IndexError):
        whole[5]
