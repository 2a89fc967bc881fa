"""From a localization to an edit: facts, budgets, files, the command line, editors, studies; and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml
from study_files import FACTS, memit, study_content, write_model
from tiny_models import ARCHITECTURES, one_thread, tiny_model, tiny_tokenizer  # noqa: F401
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.data.forget_sets import facts
from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.editing.editor import get_editor
from unlearn_eval.editing.recipe import Recipe
from unlearn_eval.editing.training.weights import match_names, split_patterns
from unlearn_eval.edits.load import load_edit
from unlearn_eval.localization import locate
from unlearn_eval.localization.base import Ranking
from unlearn_eval.localization.budget import budget_of, chosen, usual_budget
from unlearn_eval.localization.components import Components, load_components, patterns_of
from unlearn_eval.localization.facts import bare, check_some, facts_of, plain_words
from unlearn_eval.localization.locate import LocalizationSpec, localization_spec, localize
from unlearn_eval.localization.methods import random_mlps
from unlearn_eval.localization.sites import KINDS, MLP, Unit, sites
from unlearn_eval.models.load import LoadedModel, load_model
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.results.files import read_result
from unlearn_eval.results.report.localization import component_tables, write_component_figures
from unlearn_eval.runs.edit import make_edit
from unlearn_eval.runs.study.plan import plan
from unlearn_eval.runs.study.read import read_study
from unlearn_eval.runs.study.spec import study_of
from unlearn_eval.utils.errors import UserError

TOKENIZER = tiny_tokenizer()
PLAIN = PromptFormat(TOKENIZER, chat=False)
SET = facts().sample(6, seed=0)
FAST = {"samples": "1"}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("UNLEARN_EVAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "localization"


def tiny(architecture="llama", seed=0):
    return LoadedModel(tiny_model(architecture, seed=seed), TOKENIZER, f"tiny-{architecture}-{seed}", None, "tiny")


# Facts -----------------------------------------------------------------------------------------------------


def test_the_subject_s_tokens_are_its_tokens():
    found, skipped = facts_of(SET.items, PLAIN)
    assert not skipped
    for item, fact in zip(SET, found, strict=True):
        text = TOKENIZER.decode(fact.prompt_ids[1:])
        said = f"Question: {item.question}\nAnswer: "
        assert text.startswith(said.rstrip())
        for answers, token in (((item.answer,), fact.true_id), (item.perturbed_answers, fact.false_id)):
            whole = text + TOKENIZER.decode([token])
            assert any(f"{said}{answer}</s>".startswith(whole) for answer in answers), whole
        assert TOKENIZER.decode(fact.prompt_ids[slice(*fact.subject)]).strip() == item.subject
        assert TOKENIZER.decode(fact.subject_ids[1:]).strip() == item.subject
        assert fact.subject_ids[0] == TOKENIZER.bos_token_id
        assert fact.true_id != fact.false_id
        assert fact.answer == item.answer


def test_a_sentence_is_gone_on_with_and_not_asked():
    item = ForgetItem(
        "s",
        "Fact: Ada Brook plays the sport of",
        "chess",
        subject="Ada Brook",
        perturbed_answers=("golf",),
        shape="sentence",
    )
    ((fact,), _) = facts_of([item], PLAIN)
    assert TOKENIZER.decode(fact.prompt_ids[1:]).rstrip() == item.question
    ((asked,), _) = facts_of([SET.items[0]], PromptFormat(TOKENIZER, True))
    assert "<|start|>user" in TOKENIZER.decode(asked.prompt_ids)


def test_what_cannot_be_used_is_named():
    good = SET.items[0]
    items = [
        good,
        dataclasses.replace(good, id="no", subject=None),
        dataclasses.replace(good, id="elsewhere", subject="Atlantis"),
    ]
    found, skipped = facts_of(items, PLAIN)
    assert [fact.id for fact in found] == [good.id]
    assert skipped == {
        "no": "it has no subject",
        "elsewhere": "its subject does not stand in the question",
    }
    alone = dataclasses.replace(good, perturbed_answers=(good.answer, " "))
    assert "no wrong answer" in facts_of([alone], PLAIN)[1][good.id]
    _, long = facts_of([good], PLAIN, max_length=5)
    assert "context of 5" in long[good.id]
    with pytest.raises(UserError, match="none of the 2 items of 'mine'.*has no subject"):
        check_some([], skipped, ForgetSet("mine", tuple(items)))


def test_wrong_answers_are_borrowed_from_the_group_first():
    def item(key, answer, group, wrong=()):
        return ForgetItem(key, f"Where is {key}?", answer, subject=key, group=group, perturbed_answers=wrong)

    items = [item("A", "xx", "one"), item("B", "yy", "two"), item("C", "zz", "one"), item("D", "vv", "two")]
    for seed in range(4):
        found, _ = facts_of(items, PLAIN, seed)
        assert [TOKENIZER.decode([fact.false_id]).strip()[0] for fact in found] == ["z", "v", "x", "y"]


def test_what_two_answers_begin_with_alike_is_asked_with_the_question():
    item = ForgetItem("A", "Who is A?", "qwk", subject="A", perturbed_answers=("qwkz", "qwj"))
    ((fact,), _) = facts_of([item], PLAIN)
    assert TOKENIZER.decode(fact.prompt_ids[1:]) == "Question: Who is A?\nAnswer: qw", "of two the earlier difference"
    assert (TOKENIZER.decode([fact.true_id]), TOKENIZER.decode([fact.false_id])) == ("k", "j")
    longer = dataclasses.replace(item, perturbed_answers=("qwkz",))
    ((fact,), _) = facts_of([longer], PLAIN)
    assert (fact.true_id, TOKENIZER.decode([fact.false_id])) == (TOKENIZER.eos_token_id, "z")


def test_the_bare_subject_follows_a_token_that_begins_a_text():
    plain = tiny_tokenizer(bos=False)
    assert bare("Japan", plain)[0] == plain.eos_token_id
    assert bare("Japan", TOKENIZER).count(TOKENIZER.bos_token_id) == 1


def test_words_in_place_of_subjects_are_plain():
    words = plain_words(TOKENIZER, seed=0, n=40)
    assert len(set(words)) == len(words) == 40
    assert all(TOKENIZER.decode([word]).strip().isalpha() for word in words)
    assert not set(words) & set(TOKENIZER.all_special_ids)
    assert words != plain_words(TOKENIZER, seed=1, n=40)


# How much --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_method_gets_the_same_number_of_weights(architecture):
    """Within half a linear map, whatever the units and their order; a number of MLPs is met exactly by MLPs."""
    found = sites(tiny_model(architecture))
    whole = sum(found.parameters.values())
    largest = max(found.parameters.values())
    for text in ("1", "2", "3", "10%", "0.37", "1.5k"):
        budget = budget_of(text, found)
        for seed in range(5):
            for kinds in ((MLP,), KINDS):
                units = found.units(*kinds)
                order = torch.randperm(len(units), generator=torch.Generator().manual_seed(seed)).tolist()
                names = chosen([units[i] for i in order], found, budget)
                n = sum(found.parameters[name] for name in names)
                assert abs(n - budget.n_weights) <= largest / 2
                if text.isdigit() and kinds == (MLP,):
                    assert n == budget.n_weights
                    assert len({name.split(".mlp.")[0] for name in names}) == int(text)
    assert budget_of("100%", found).n_weights == whole
    assert usual_budget(found).n_weights == found.size(Unit(MLP, 0)), "one in six of four layers is one"


@pytest.mark.parametrize("text", ["0", "5", "many", "-1", "0%", "101%", "1.5", "3x", "2M"])
def test_budgets_that_cannot_be(text):
    with pytest.raises(UserError, match="budget"):
        budget_of(text, sites(tiny_model("llama")))


def test_a_method_that_names_too_little_is_refused():
    found = sites(tiny_model("llama"))
    with pytest.raises(UserError, match="there are 1 units.*the budget '3'"):
        chosen([Unit(MLP, 0)], found, budget_of("3", found))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_patterns_name_the_modules_and_nothing_else(architecture):
    model = tiny_model(architecture)
    found = sites(model)
    maps = list(found.parameters)
    names = [name for name, _ in model.named_parameters()]
    for modules in (maps, maps[::3], maps[2:7], [n for layer in (0, 3) for n in found.maps[Unit(MLP, layer)]]):
        matched = match_names(names, split_patterns(patterns_of(modules)))
        assert {name.rpartition(".")[0] for name in matched} == set(modules)
    own = patterns_of([n for layer in (0, 3) for n in found.maps[Unit(MLP, layer)]])
    assert "," not in own, "layers that are alike are one pattern"
    assert own.startswith(f"{found.parts.blocks}.(0|3).")


def test_the_method_s_own_rule_is_used_without_a_budget():
    found = sites(tiny_model("llama"))
    units = tuple(found.units(MLP))
    names, spent = locate._cut(Ranking(units, n_chosen=2), found, None)
    assert {name.split(".")[2] for name in names} == {"0", "1"}
    assert spent["given"] == "the method's own rule"
    assert len(locate._cut(Ranking(units, n_chosen=2), found, budget_of("3", found))[0]) == 9
    every, none = locate._cut(Ranking(units, takes_budget=False), found, budget_of("3", found))
    assert len(every) == 12
    assert none is None


def test_edits_carry_the_scores_of_their_localization():
    """Small, and what a report of the edit's runs draws: every unit's score at its layer, and what was seen."""
    for method in ("causal_tracing_mlps", "random_mlps"):
        found = localize(tiny(), SET, LocalizationSpec(method, "1", FAST if method != "random_mlps" else {}))
        notes = json.loads(json.dumps(locate.source_of(found, method), allow_nan=False))
        assert set(notes["scores"]) == {MLP}
        assert notes["n_layers"] == len(notes["scores"][MLP]) == found.n_layers
        for unit in found.ranking:
            own = notes["scores"][MLP][unit["layer"]]
            assert own == (None if unit["score"] is None else pytest.approx(unit["score"], rel=1e-3))
        assert notes["n_weights_in_blocks"] == found.n_weights_in_blocks
        if method == "random_mlps":
            assert "effects" not in notes
        else:
            effects = found.tables["effects"]
            assert notes["effects"]["roles"] == effects["roles"]
            assert notes["effects"][MLP][1] == pytest.approx(effects[MLP][1], rel=1e-3)
            assert notes["notes"]["metric"] == "logit_difference"
        assert len(json.dumps(notes)) < 4000


# Components ------------------------------------------------------------------------------------------------


def test_components_are_read_back_as_they_were(tmp_path):
    made = localize(tiny(), SET, LocalizationSpec("causal_tracing", "2", FAST))
    again = load_components(made.save(tmp_path / "c.json"))
    assert again == Components(**{**dataclasses.asdict(made), "ranking": again.ranking})
    assert list(again.ranking) == [dict(own) for own in made.ranking]
    assert again.facts["n"] == len(SET)
    again.check(tiny().model, "tiny")
    with pytest.raises(UserError, match="components are of tiny-llama-0"):
        again.check(tiny(seed=1).model, "other")
    text = (tmp_path / "c.json").read_text()
    for broken, says in (
        ("{}", "holds no components"),
        (text.replace('"version": 1', '"version": 9'), "has version 9"),
        (text.replace('"modules"', '"moduls"'), "not whole"),
        (text[:50], "not JSON"),
    ):
        (tmp_path / "broken.json").write_text(broken)
        with pytest.raises(UserError, match=says):
            load_components(tmp_path / "broken.json")


def test_what_was_computed_is_not_computed_again(cache, monkeypatch):
    first = localize(tiny(), SET, LocalizationSpec("random_mlps", "2"), seed=3)
    assert len(list(cache.glob("*.json"))) == 1

    def never(run, config):
        raise AssertionError("computed again")

    monkeypatch.setattr(random_mlps, "LOCALIZER", dataclasses.replace(random_mlps.LOCALIZER, run=never))
    again = localize(tiny(), SET, LocalizationSpec("random_mlps", "2"), seed=3)
    assert (again.modules, again.seconds) == (first.modules, first.seconds)
    for other in (
        lambda: localize(tiny(), SET, LocalizationSpec("random_mlps", "2"), seed=4),
        lambda: localize(tiny(), SET, LocalizationSpec("random_mlps", "3"), seed=3),
        lambda: localize(tiny(seed=1), SET, LocalizationSpec("random_mlps", "2"), seed=3),
        lambda: localize(tiny(), SET, LocalizationSpec("random_mlps", "2"), seed=3, cache=False),
    ):
        with pytest.raises(AssertionError, match="computed again"):
            other()


def test_other_facts_are_computed_anew(cache):
    localize(tiny(), SET, LocalizationSpec("attribution_patching", "2", FAST))
    localize(tiny(), facts().sample(6, seed=1), LocalizationSpec("attribution_patching", "2", FAST))
    localize(tiny(), SET, LocalizationSpec("attribution_patching", "2", {"samples": "2"}))
    assert len(list(cache.glob("*.json"))) == 3


def test_wanted_is_read_as_it_is_written():
    assert localization_spec("fact_lookup") == LocalizationSpec("fact_lookup")
    assert localization_spec("fact_lookup(budget=6, way=probe)") == LocalizationSpec(
        "fact_lookup", "6", {"way": "probe"}
    )
    assert localization_spec("random_mlps(budget=10%)") == LocalizationSpec("random_mlps", "10%")
    assert localization_spec("my/components.json") == Path("my/components.json")
    for patterns in ("mlp.down_proj", "layers.(5|6).mlp", "mlp", "layers.1.mlp.(gate_proj|up_proj),o_proj"):
        assert localization_spec(patterns) is None
    with pytest.raises(UserError, match="'probe' in .* has no value"):
        localization_spec("fact_lookup(probe)")
    with pytest.raises(UserError, match="did you mean fact_lookup"):
        localization_spec("fact_lokup(budget=3)")


# Editors ---------------------------------------------------------------------------------------------------

NPO = {"steps": "2", "micro_batch_size": "4", "retain_term": "none"}


def test_training_is_where_the_components_are():
    loaded = tiny()
    edit = make_edit(loaded, SET, "npo", {**NPO, "components": "random_mlps(budget=2)"}, Recipe(seed=5))
    expected = localize(loaded, SET, LocalizationSpec("random_mlps", "2"), seed=5)
    assert {name.removesuffix(".weight") for name in edit.tensors} == set(expected.modules)
    source = edit.info.notes["components"]
    assert source["given"] == "random_mlps(budget=2)"
    assert source["modules"] == list(expected.modules)
    assert edit.info.config["components"] == expected.patterns
    assert "components" not in make_edit(loaded, SET, "npo", {**NPO, "components": "mlp.down_proj"}).info.notes


def test_editors_take_their_layers_from_components(tmp_path):
    loaded = tiny()
    (tmp_path / "text.txt").write_text("The capital of Spain is Madrid. " * 60)
    fast = {"target.steps": "2", "keys_per_dimension": "1", "text": str(tmp_path / "text.txt")}
    found = localize(loaded, SET, LocalizationSpec("causal_tracing_mlps", "2", FAST))
    path = str(found.save(tmp_path / "c.json"))
    both = make_edit(loaded, SET, "memit", {**fast, "components": path})
    assert both.info.config["layers"] == sorted(found.mlp_layers)
    assert both.info.notes["components"]["method"] == "causal_tracing_mlps"
    one = make_edit(loaded, SET.sample(1, 0), "rome", {**fast, "components": path})
    assert one.info.config["layers"] == [found.mlp_layers[0]], "of several the best"
    assert found.mlp_layers[0] == next(own["layer"] for own in found.ranking)


def test_what_cannot_go_together_is_refused(tmp_path):
    loaded = tiny()
    other = str(localize(tiny(seed=1), SET, LocalizationSpec("random_mlps", "1")).save(tmp_path / "other.json"))
    for editor, components, says in (
        ("npo", other, "components are of tiny-llama-1"),
        ("npo", "fact_lokup", "did you mean fact_lookup"),
        ("npo", str(tmp_path / "none.json"), "no components file"),
        ("npo", "causal_tracing(noize=2)", "did you mean noise"),
        ("memit", "mlp.down_proj", "unknown localization 'mlp.down_proj'"),
        ("memit", "random_mpls", "did you mean random_mlps"),
    ):
        with pytest.raises(UserError, match=says):
            make_edit(loaded, SET, editor, {**(NPO if editor == "npo" else {}), "components": components})


def test_components_without_an_mlp_edit_nothing():
    made = Components("random", ("model.layers.0.self_attn.o_proj",), (), 1, 2, 4)
    with pytest.raises(UserError, match="memit edits MLPs, and random names none"):
        locate.settings_for(get_editor("memit"), made)


# The command line ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("localization") / "model")


def command(*arguments):
    done = CliRunner().invoke(cli.app, list(map(str, arguments)))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("attribution_patching", ["--set", "samples=1", "--budget", "30%"]),
        ("causal_tracing_mlps", ["--set", "samples=1", "--limit", "2"]),
        ("random_mlps", ["--budget", "2"]),
        ("all_mlps", []),
    ],
)
def test_localize_writes_what_edit_reads(model, name, options, tmp_path):
    file, figures = tmp_path / "found" / "c.json", tmp_path / "figures"
    common = ["--model", model, "--forget", "facts", "--device", "cpu"]
    limit = [] if "--limit" in options else ["--limit", 6]
    done = command("localize", name, *common, *limit, *options, "--output", file, "--figures", figures)
    assert name in done.stdout
    assert str(file) in done.stdout.splitlines()
    found = load_components(file)
    assert found.method == name
    for kind in ("svg", "pdf"):
        assert (figures / f"localization_{name}.{kind}").stat().st_size > 1000
    settings = [f"--set={key}={value}" for key, value in NPO.items()]
    command("edit", *common, "--limit", 3, "--editor", "npo", *settings, "--components", file, "-o", tmp_path / "edit")
    edit = load_edit(tmp_path / "edit")
    assert {key.removesuffix(".weight") for key in edit.tensors} == set(found.modules)
    assert f"where {name}" in " ".join(command("inspect", tmp_path / "edit").stdout.split())
    assert json.loads((tmp_path / "edit" / "edit.json").read_text())["info"]["notes"]["components"]["method"] == name


def test_mistakes_are_told_before_the_model_is_loaded(tmp_path):
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors"):  # there, and impossible to load
        (tmp_path / "model" / name).write_text("{}")
    for arguments, says in (
        (["localize", "fact_lokup", "-o", "x.json"], "did you mean fact_lookup"),
        (["localize", "fact_lookup", "--set", "heds=3", "-o", "x.json"], "did you mean heads"),
        (["localize", "fact_lookup", "--set", "way=probes", "-o", "x.json"], "did you mean probe"),
        (["localize", "random", "--forget", "fact", "-o", "x.json"], "did you mean facts"),
        (["edit", "--components", "fact_lokup", "--editor", "memit", "-o", tmp_path / "e"], "did you mean fact_lookup"),
    ):
        with pytest.raises(UserError, match=says):
            command(*arguments, *([] if "--model" in arguments else ["--model", tmp_path / "model"]))
    assert command("ls", "localizations").stdout.split()[0] == "all_mlps"


def test_tables_say_what_was_found(monkeypatch):
    from rich.console import Console

    found = localize(tiny(), SET, LocalizationSpec("causal_tracing", "1", FAST))
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in component_tables(dataclasses.asdict(found)):
        console.print(table)
    text = console.export_text()
    best = found.ranking[0]
    assert f"{best['score']:+.3f}*" in text
    assert "how much logit difference comes back" in text
    assert f"{found.n_weights:,} weights" in text


def test_figures_of_unscored_and_probed_layers(tmp_path):
    found = dataclasses.asdict(localize(tiny(), SET, LocalizationSpec("random", "1")))
    assert all(path.stat().st_size > 1000 for path in write_component_figures(found, tmp_path / "one"))
    probed = found | {"tables": {"probe_accuracy": {"bare subject": [0.2, 0.4, 0.9, 0.9, 1.0]}}}
    svg, _ = write_component_figures(probed, tmp_path / "two")
    assert "bare subject" in svg.read_text()


# Studies ---------------------------------------------------------------------------------------------------


def planned(model, tmp_path, **changes):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study_content(model, tasks=[FACTS], **changes)))
    return plan(study_of(read_study(path, ()), path), {})


def keys(plan_):
    return {cell.editor.name: cell.edit_key for cell in plan_.cells if cell.editor is not None}


def test_a_study_s_editors_say_where(model, tmp_path):
    npo = {"editor": "npo", "settings": {"steps": 2}}
    file = localize(load_model(str(model), "float32"), SET, LocalizationSpec("random_mlps", "1")).save(
        tmp_path / "c.json"
    )
    where = {"lookup": "fact_lookup(budget=1)", "two": "fact_lookup(budget=2)", "file": str(file)}
    editors = [{**npo, "name": name, "settings": {"steps": 2, "components": own}} for name, own in where.items()]
    editors.append(memit(model, components="random_mlps(budget=1)"))
    found = keys(planned(model, tmp_path, editors=editors))
    assert len(set(found.values())) == len(editors)
    Path(file).write_text(Path(file).read_text().replace('"seed": 0', '"seed": 1'))
    again = keys(planned(model, tmp_path, editors=editors))
    assert {name for name in found if found[name] != again[name]} == {"file"}, "a file counts by its content"
    several = {**npo, "components": ["fact_lookup(budget=1)", "random_mlps", "random_mlps(budget=2)", str(file)]}
    names = {
        cell.editor.name: cell.editor.settings
        for cell in planned(model, tmp_path, editors=[several]).cells
        if cell.editor
    }
    assert names == {
        "npo-fact_lookup": {"steps": "2", "components": "fact_lookup(budget=1)"},
        "npo-random_mlps": {"steps": "2", "components": "random_mlps"},
        "npo-random_mlps-budget-2": {"steps": "2", "components": "random_mlps(budget=2)"},
        "npo-c": {"steps": "2", "components": str(file)},
    }
    for wrong, says in (("causal_tracing(noize=1)", "did you mean noise"), ("fact_lokup(budget=1)", "fact_lookup")):
        with pytest.raises(UserError, match=says):
            planned(model, tmp_path, editors=[{**npo, "settings": {"components": wrong}}])


def test_a_study_runs_where_it_is_told(model, tmp_path, cache):
    """Two cells with the same training in two places; the localization is remembered in the cache and in the result."""
    where = ["attribution_patching_mlps(budget=1,samples=1)", "random_mlps(budget=1)"]
    npo = {"editor": "npo", "settings": {"steps": 1, "learning_rate": 1e-3, "retain_term": "none"}, "components": where}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study_content(model, editors=[npo], retain=None)))
    done = command("run", path, "--output", tmp_path / "out")
    assert done.exit_code == 0
    assert len(list(cache.glob("*.json"))) == 2
    results = [read_result(own) for own in sorted((tmp_path / "out" / "runs").glob("*/result.json"))]
    found = {r.edit["notes"]["components"]["method"]: r for r in results if r.edit}
    assert set(found) == {"attribution_patching_mlps", "random_mlps"}
    for result in found.values():
        source = result.edit["notes"]["components"]
        assert len(source["mlp_layers"]) == 1
        assert f".{source['mlp_layers'][0]}." in result.edit["config"]["components"]
    assert found["random_mlps"].config["cell"]["settings"]["components"] == "random_mlps(budget=1)"
