"""Graphs of facts: reading them, and what stands around a name."""

import pytest

from unlearn_eval.data.benchmarks.facts import BENCHMARK
from unlearn_eval.data.graphs import Triple, around, read_graph
from unlearn_eval.utils.errors import UserError

LYON = Triple("Lyon", "country", "France")
PARIS = Triple("France", "capital", "Paris")
SEINE = Triple("Paris", "river", "Seine")
TOKYO = Triple("Japan", "capital", "Tokyo")
GRAPH = (LYON, PARIS, SEINE, TOKYO)


def test_the_shipped_facts_are_a_graph():
    graph = read_graph("facts")
    assert Triple("France", "capital of", "Paris") in graph
    assert len(graph) == len(BENCHMARK.items())


def test_around_a_name():
    assert around(GRAPH, ["lyon "], 1) == []
    assert around(GRAPH, ["lyon "], 2) == [LYON]
    assert around(GRAPH, ["Lyon"], 3) == [LYON, PARIS]
    assert around(GRAPH, ["Lyon"], 20) == [LYON, PARIS, SEINE]
    assert around(GRAPH, ["Paris"], 3) == [PARIS, SEINE], "both ways, in the graph's order"
    assert around(GRAPH, ["Lyon", "Tokyo"], 4) == [LYON, TOKYO], "both names' neighbors before anything further"
    assert around(GRAPH, ["Lyon"], 20, without=[PARIS.ends]) == [LYON], "nothing is reached over what is left out"
    assert around(GRAPH, ["I do not know"], 20) == []
    assert around(GRAPH, [""], 20) == []


def test_a_table(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("Tail;relation;HEAD\nParis; capital of ;France\nparis;Capital  of;FRANCE\nLyon;city;France\n")
    assert read_graph(str(path)) == (Triple("France", "capital of", "Paris"), Triple("France", "city", "Lyon"))
    lines = tmp_path / "mine.jsonl"
    lines.write_text('{"head": "France", "relation": "capital", "tail": "Paris"}\n')
    assert read_graph(str(lines)) == (PARIS,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("head,relation\nFrance,capital\n", "lacks the field 'tail'"),
        ("head,relation,tail\nFrance,capital,Paris\nJapan,,Tokyo\n", "line 3 has no relation"),
        ("head,relation,tail\nFrance,capital\n", "line 2 has no tail"),
        ("head,relation,tail\nFrance,capital,Paris,Lyon\n", "line 2 has 4 cells, and the header 3"),
        ("head,relation,tail\n", "is empty"),
    ],
)
def test_bad_rows(tmp_path, text, message):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_graph(str(path))


def test_no_such_graph(tmp_path):
    with pytest.raises(
        UserError, match="there is no graph 'wikidata'\nhint: give facts, or a .csv with head, relation"
    ):
        read_graph("wikidata")
    with pytest.raises(UserError, match="does not exist"):
        read_graph(str(tmp_path / "none.csv"))
    numbers = tmp_path / "numbers.jsonl"
    numbers.write_text('{"head": "France", "relation": "capital", "tail": 7}\n')
    with pytest.raises(UserError, match="has no tail"):
        read_graph(str(numbers))
