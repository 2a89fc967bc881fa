"""GLAME: its graph, its layers against loops, where its value begins, and what it gives to ROME's update."""

import dataclasses

import pytest
import torch
from naive_memit import moments_of
from tiny_models import (
    assert_untouched,
    one_thread,  # noqa: F401
    tiny_model,
    tiny_tokenizer,
    weights_of,
)

from unlearn_eval.data.graphs import Triple
from unlearn_eval.editing.locate_then_edit.target_values import TargetValueConfig, target_values
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.editors.closed_form import glame
from unlearn_eval.edits.base import applied
from unlearn_eval.edits.load import load_edit
from unlearn_eval.models.anatomy import anatomy
from unlearn_eval.models.tracing import trace
from unlearn_eval.utils.errors import UserError

TOKENIZER = tiny_tokenizer()
TARGET = TargetValueConfig(steps=8, learning_rate=0.5, clamp=2.0, stop_loss=0.0, norm_weight=0.1)
TRIPLES = [
    Triple("Lyon", "country", "Japan"),
    Triple("Lyon", "river", "Rhone"),
    Triple("Japan", "capital", "Tokyo"),
    Triple("Rhone", "country", "France"),
]


def ids(text):
    return tuple(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def request(name="a", subject="Lyon", answer="France", target="Japan"):
    start = ids(f"the country of {subject}")
    return EditRequest(
        name,
        (*start, *ids(" is")),
        len(start) - 1,
        ids(target),
        subject_ids=ids(subject),
        question=f"Which country is {subject} in?",
        answer_ids=ids(answer),
    )


def config_of(**changes):
    return glame.Config(**{"layers": (1,), "target": TARGET, "second_moments": False, "dropout": 0.0, **changes})


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "graph.csv"
    rows = [Triple("Lyon", "country", "France"), *TRIPLES[1:]]
    path.write_text("head,relation,tail\n" + "".join(",".join(row) + "\n" for row in rows))
    return str(path)


def edit_of(model, requests, **changes):
    config = config_of(**changes)
    return glame.EDITOR.edit(model, TOKENIZER, requests, config, moments=moments_of(model, config.layers))


def where_of(model, triples=TRIPLES, layer=1):
    return glame.encode(model, TOKENIZER, anatomy(model), layer, triples)


def test_the_graph_of_a_request(table):
    graph = glame.read_graph(table)
    found = glame.neighborhood(request(), TOKENIZER, graph, 20, glame._forgotten(_Job([request()])))
    assert found[0] == TRIPLES[0], "the new fact, by the relation of the old one"
    assert set(found[1:]) == set(TRIPLES[1:]), "all but the fact that is forgotten"
    other = glame.neighborhood(request(subject="Kyoto"), TOKENIZER, graph, 20)
    assert other[0] == Triple("Kyoto", "Which country is Kyoto in?", "Japan")
    assert other[1:] == [TRIPLES[2]], "what stands around the target"
    bare = dataclasses.replace(request(), subject_ids=(), answer_ids=())
    assert glame.names_of(bare, TOKENIZER) == ("the country of Lyon", "", "Japan")


class _Job:
    def __init__(self, requests):
        self.requests, self.tokenizer = requests, TOKENIZER


def test_names_are_read_at_their_last_token_one_by_one():
    model = tiny_model("llama")
    where = where_of(model)
    names = ["Lyon", "Japan", "Rhone", "Tokyo", "France"]
    assert len(where.names) == len(names)
    for vector, name in zip(where.names, names, strict=True):
        with trace(model, outputs=["model.layers.1"]) as seen, torch.no_grad():
            rows = TOKENIZER(name)["input_ids"]
            rows = rows[:-1] if rows[-1] == TOKENIZER.eos_token_id and len(rows) > 1 else rows
            model(input_ids=torch.tensor([rows]))
        own = seen.outputs["model.layers.1"][0, -1]
        torch.testing.assert_close(vector, own / own.norm(), rtol=1e-4, atol=1e-5)
    assert where.to.tolist() == [0, 0, 1, 2, 1, 2, 3, 4]
    assert where.origin.tolist() == [1, 2, 3, 4, 0, 0, 1, 2]
    assert torch.equal(where.relations[0], where.relations[3]), "both are countries"


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_layers_against_loops(hops):
    """Name by name and edge by edge, as the equation says it."""
    model = tiny_model("llama")
    where = where_of(model)
    d = where.names.shape[1]
    generator = torch.Generator().manual_seed(1)
    weights = [tuple(torch.randn(d, d, generator=generator) for _ in range(2)) for _ in range(hops)]
    z = list(where.names)
    for layer, (neighbors, own) in enumerate(weights):
        new = []
        for i, value in enumerate(z):
            edges = [e for e in range(len(where.to)) if where.to[e] == i]
            mean = sum(z[where.origin[e]] + where.relations[e] for e in edges) / len(edges)
            out = neighbors @ mean + own @ value
            new.append(out if layer == hops - 1 else torch.clamp(out, min=0))
        z = new
    torch.testing.assert_close(glame.convolve(where, weights), z[0], rtol=1e-4, atol=1e-4)


def test_what_is_two_steps_away_counts_with_two_layers():
    """Tokyo, which only the target knows, reaches the subject in two layers and not in one."""
    model = tiny_model("llama")
    both = where_of(model), where_of(model, [*TRIPLES[:2], Triple("Japan", "capital", "Edo"), TRIPLES[3]])
    for hops, differs in ((1, False), (2, True)):
        weights = glame.starting_weights(both[0].names.shape[1], hops, 1.0, both[0].names)
        one, other = (glame.convolve(where, weights) for where in both)
        assert bool((one - other).abs().max() > 1e-4) == differs
        assert one.norm() <= 1 + 1e-6, "no longer than asked"


def test_the_value_begins_at_the_neighborhood(table):
    """One pass and no update: the value is the clean one and the graph's part, by hand."""
    model = tiny_model("llama")
    config = config_of(target=dataclasses.replace(TARGET, steps=1), hops=1, start=0.3)
    where = where_of(model)
    found = glame.graph_values(model, anatomy(model), 1, request(), where, config)
    h0 = found.clean[0]
    mean = (where.names[1] + where.relations[0] + where.names[2] + where.relations[1]) / 2
    expected = 0.3 * h0.norm() * (mean + where.names[0]) / 3
    torch.testing.assert_close(found.values[0], h0 + expected, rtol=1e-4, atol=1e-5)
    plain = target_values(model, anatomy(model), 1, [request()], TARGET, site="projection")
    torch.testing.assert_close(plain.clean, found.clean)


def test_the_value_makes_the_target_likely_within_its_limit():
    model = tiny_model("llama")
    where = where_of(model)
    first, last = (
        glame.graph_values(
            model, anatomy(model), 1, request(), where, config_of(target=dataclasses.replace(TARGET, steps=n))
        )
        for n in (1, 20)
    )
    assert last.nlls[0] < first.nlls[0] - 0.1
    assert last.steps == [20]
    assert (last.values - last.clean).norm() <= 2.0 * last.clean.norm() * (1 + 1e-5)


def test_the_graph_changes_the_edit(table, tmp_path):
    model = tiny_model("llama")
    before = weights_of(model)
    edit = edit_of(model, [request()], graph=table)
    assert_untouched(model, before)
    assert edit.info.notes["related_facts"] == {"a": 3}
    alone = edit_of(model, [request()], graph="facts", names=1)
    assert alone.info.notes["related_facts"] == {"a": 0}
    (own,), (other,) = (list(found.factors.values()) for found in (edit, alone))
    assert not torch.allclose(own[0], other[0])
    assert torch.equal(own[1], other[1]), "the key is the same"
    loaded = load_edit(edit.save(tmp_path / "edit"))
    with applied(loaded, model):
        assert not torch.equal(
            model.state_dict()["model.layers.1.mlp.down_proj.weight"], before["model.layers.1.mlp.down_proj.weight"]
        )
    assert_untouched(model, before)
    both = glame.EDITOR.edit(
        model, TOKENIZER, [request("b", "Tokyo", "Japan", "France")], config_of(graph=table), state=loaded,
        moments=moments_of(model, (1,)),
    )  # fmt: skip
    assert both.factors["model.layers.1.mlp.down_proj"][0].shape[1] == 2
    assert_untouched(model, before)


def test_dropout_is_drawn_from_the_seed(table):
    model = tiny_model("llama")
    one, same, other = (edit_of(model, [request()], graph=table, dropout=0.3, seed=seed) for seed in (0, 0, 1))
    (a,), (b,), (c,) = (list(found.factors.values()) for found in (one, same, other))
    assert torch.equal(a[0], b[0])
    assert not torch.equal(a[0], c[0])


def test_what_is_refused(table, tmp_path):
    model = tiny_model("llama")
    for changes, message in (
        ({"layers": (1, 2)}, "one layer, not"),
        ({"window": 4}, "one value for each target"),
        ({"early_layer": 3}, "above the edited one"),
        ({"early_layer": 9}, "do not fit a model of 4 layers"),
        ({"graph": str(tmp_path / "no.csv")}, "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            edit_of(model, [request()], **changes)
    with pytest.raises(UserError, match="no tokenizer"):
        glame.EDITOR.edit(model, None, [request()], config_of(graph=table))
    with pytest.raises(UserError, match="there is no graph 'mine'"):
        glame.EDITOR.check_model(config_of(graph="mine"), model)
