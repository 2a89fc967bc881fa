"""What localizations compute is what running the whole model again and again would give; on every architecture."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tiny_models import (
    ARCHITECTURES,
    LAYERS,
    assert_untouched,
    one_thread,  # noqa: F401
    random_ids,
    tiny_model,
    weights_of,
)
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from unlearn_eval.localization import paths, probes
from unlearn_eval.localization.activations import Corrupted, activations, embedding_spread, own_columns, subject_noise
from unlearn_eval.localization.base import Fact, Localizer, Run, get_localizer, localizer_names
from unlearn_eval.localization.methods import attribution_patching, causal_tracing, fact_lookup
from unlearn_eval.localization.scores import ROLES, NoiseConfig, Tally, job_table, roles
from unlearn_eval.localization.sites import ATTENTION, KINDS, MLP, Unit, sites
from unlearn_eval.models.anatomy import anatomy
from unlearn_eval.models.tracing import last_states, trace
from unlearn_eval.utils.errors import UserError

WORDS = tuple(range(5, 60))


def facts(n=4, seed=0):
    """Prompts of different lengths; subjects of one to three tokens, one of them at a prompt's end."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(n):
        length, start, size = 9 + 3 * i, 2 + i, 1 + i % 3
        start = length + 1 - size if i == 3 else start
        ids = (0, *random_ids(generator, length))
        found.append(
            Fact(f"f{i}", ids, (start, start + size), 10 + i, 20 + i, f"a{i % 2}", (0, *ids[start : start + size]))
        )
    return found


def the_run(model, own=None, **options):
    return Run(model, sites(model), own or facts(), **{"words": WORDS, "rows": 16, **options})


def logits_with(model, ids, hooks):
    """The last position's logits (V,) of one whole row under some hooks on modules' outputs."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        return model(input_ids=torch.tensor([ids])).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()


def difference(logits, fact):
    return float(logits[fact.true_id] - logits[fact.false_id])


def changed(output, change):
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


def known(model, seed=0):
    """Facts whose true answers lose by random subjects: where they gain, true and false are swapped."""
    found = []
    for i, fact in enumerate(facts(seed=seed)):
        total = float(paths.pair(the_run(model), [fact], i).total)
        swapped = dataclasses.replace(fact, true_id=fact.false_id, false_id=fact.true_id)
        found.append(fact if total > 0 else swapped)
    return found


# Tracing ---------------------------------------------------------------------------------------------------


def corrupted(model):
    """A run, the noise on its subjects, its facts with that noise, and which position of which is restored when."""
    run = the_run(model)
    noise = subject_noise(run, run.facts, 0, 2, 3 * embedding_spread(model, run.facts))
    batch = Corrupted.of(run, run.facts, noise, 2, "logit_difference")
    rows, where, _ = job_table(batch.facts, model.device)
    return run, noise, batch, rows, where


def whole_row(kept, fact):
    """What is known of a prompt's last positions (n, ...), with zeros before them: one for each of its tokens."""
    length, n = len(fact.prompt_ids), min(len(fact.prompt_ids), len(kept))
    return torch.cat([kept.new_zeros(length - n, *kept.shape[1:]), kept[-n:]])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_restored_unit_is_that_of_the_whole_model(architecture):
    model = tiny_model(architecture, torch.float64)
    before = weights_of(model)
    run, noise, batch, rows, where = corrupted(model)
    embeddings = model.get_input_embeddings()
    for unit in run.sites.units(*KINDS):
        found = batch.restored(unit, rows, where, 5)
        name = run.sites.output(unit)
        for k in range(unit.layer, len(rows), 5):
            fact = batch.facts[rows[k]]
            added, mine = (whole_row(own, fact) for own in (noise[rows[k]].double(), where[k]))
            with trace(model, outputs=[name]) as seen:
                model(input_ids=torch.tensor([fact.prompt_ids]))
            hooks = [
                (embeddings, lambda m, a, out, added=added: out + added),
                (
                    model.get_submodule(name),
                    lambda m, a, out, mine=mine, clean=seen.outputs[name]: torch.where(mine[None, :, None], clean, out),
                ),
            ]
            assert difference(logits_with(model, fact.prompt_ids, hooks), fact) == pytest.approx(
                float(found[k]), abs=1e-9
            )
    assert_untouched(model, before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_restored_head_is_that_of_the_whole_model(architecture):
    """What the output projection is given of one head, at some positions, in a run of the whole model."""
    model = tiny_model(architecture, torch.float64)
    before = weights_of(model)
    run, noise, batch, rows, where = corrupted(model)
    embeddings, seen_differences = model.get_input_embeddings(), set()
    for layer, head in ((0, 1), (1, 0), (3, 1)):
        unit = Unit(ATTENTION, layer)
        found = batch.restored(unit, rows, where, 5, head)
        name = run.sites.output(unit)
        size = batch.clean.heads[layer].shape[-1] // run.sites.n_heads
        for k in range(layer, len(rows), 7):
            fact = batch.facts[rows[k]]
            added, mine = (whole_row(own, fact) for own in (noise[rows[k]].double(), where[k]))
            with trace(model, inputs=[name]) as seen:
                model(input_ids=torch.tensor([fact.prompt_ids]))

            def give(module, arguments, mine=mine, clean=seen.inputs[name], head=head):
                z = arguments[0].clone()
                z[0, mine, head * size : (head + 1) * size] = clean[0, mine, head * size : (head + 1) * size]  # noqa: B023
                return (z, *arguments[1:])

            handle = model.get_submodule(name).register_forward_pre_hook(give)
            noisy = [(embeddings, lambda m, a, out, added=added: out + added)]
            expected = difference(logits_with(model, fact.prompt_ids, noisy), fact)
            handle.remove()
            assert expected == pytest.approx(float(found[k]), abs=1e-9)
            seen_differences.add(round(expected - float(batch.baseline[rows[k]]), 6))
    assert len(seen_differences) > 5, "heads do something here"
    assert_untouched(model, before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_estimate_of_heads_tends_to_the_exact_effect(architecture):
    model = tiny_model(architecture, torch.float64)
    config = NoiseConfig(noise=1e-3, samples=2, positions=False, heads=True)
    exact, estimate = (own.localize(the_run(model), config) for own in (causal_tracing, attribution_patching))
    left, right = (np.array(found.tables["head_effects"]) for found in (exact, estimate))
    assert left.shape == right.shape == (LAYERS, 2)
    assert right == pytest.approx(left, abs=0.02 * np.abs(left).max())
    assert spearmanr(left.ravel(), right.ravel()).statistic > 0.95
    best = exact.notes["heads"][0]
    assert left[best["layer"], best["head"]] == best["effect"] == left.max()
    plain = causal_tracing.localize(the_run(model), replace(config, heads=False))
    assert plain.scores == exact.scores, "heads are looked at beside the units"
    assert plain.tables == {}


def test_heads_together_are_their_attention_where_the_metric_is_linear():
    """GPT-NeoX's last attention without the last norm: exact, and a sum over heads."""
    model = tiny_model("gpt_neox", torch.float64)
    model.gpt_neox.final_layer_norm = nn.Identity()
    config = NoiseConfig(samples=2, heads=True)
    exact, estimate = (own.localize(the_run(model), config) for own in (causal_tracing, attribution_patching))
    last = exact.scores[Unit(ATTENTION, LAYERS - 1)]
    assert abs(last) > 1e-3
    for found in (exact, estimate):
        assert sum(found.tables["head_effects"][-1]) == pytest.approx(last, abs=1e-9)
        assert found.tables["effects"]["attention"]
    assert estimate.tables["head_effects"][-1] == pytest.approx(exact.tables["head_effects"][-1], abs=1e-9)


@pytest.mark.parametrize("method", ["causal_tracing_mlps", "attribution_patching_mlps"])
def test_heads_are_not_looked_at_among_mlps(method):
    with pytest.raises(UserError, match="looks at MLPs only"):
        get_localizer(method).run(the_run(tiny_model("llama")), NoiseConfig(heads=True))


def test_noise_is_on_subjects_only_and_does_not_depend_on_batches():
    model = tiny_model("llama")
    run = the_run(model)
    noise = subject_noise(run, run.facts, 0, 3, 2.0)
    alone = subject_noise(run, run.facts[2:3], 2, 3, 2.0)
    n = alone.shape[1]
    assert torch.equal(noise[6:9, -n:], alone)
    for row, fact in enumerate(fact for fact in run.facts for _ in range(3)):
        start = own_columns(fact, noise.shape[1]).start
        size = fact.subject[1] - fact.subject[0]
        assert (noise[row] != 0).any(-1).nonzero()[:, 0].tolist() == list(range(start, start + size))
    values = noise[noise != 0]
    assert float(values.std()) == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("method", [causal_tracing, attribution_patching])
def test_the_batch_size_changes_nothing(method):
    model = tiny_model("gemma3", torch.float64)
    config = NoiseConfig(samples=2)
    one, other = (method.localize(the_run(model, rows=rows), config) for rows in (8, 64))
    assert one.units == other.units
    for unit, score in one.scores.items():
        assert other.scores[unit] == pytest.approx(score, abs=1e-9)
    for kind in KINDS:
        first, second = (np.array(found.tables["effects"][kind], dtype=float) for found in (one, other))
        assert first == pytest.approx(second, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("method", [causal_tracing, attribution_patching])
def test_without_single_positions_the_ranking_is_the_same(method):
    run = the_run(tiny_model("llama", torch.float64))
    whole, short = (method.localize(run, NoiseConfig(samples=2, positions=own)) for own in (True, False))
    assert short.units == whole.units
    assert [short.scores[unit] for unit in short.units] == pytest.approx([whole.scores[unit] for unit in whole.units])
    assert short.notes == whole.notes
    assert whole.tables["effects"]
    assert short.tables == {}
    rows, where, places = job_table(run.facts, "cpu", single=False)
    assert rows.tolist() == [0, 1, 2, 3]
    assert places.tolist() == [-1] * 4
    assert [int(own.sum()) for own in where] == [len(fact.prompt_ids) - fact.subject[0] for fact in run.facts]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_estimate_tends_to_the_exact_effect(architecture):
    """To first order: with little noise estimates and effects are the same, and so are ranks."""
    model = tiny_model(architecture, torch.float64)
    before, config = weights_of(model), NoiseConfig(noise=1e-3, samples=2)
    exact = causal_tracing.localize(the_run(model), config)
    estimate = attribution_patching.localize(the_run(model), config)
    units = list(exact.scores)
    left, right = ([found.scores[unit] for unit in units] for found in (exact, estimate))
    assert spearmanr(left, right).statistic > 0.99
    assert right == pytest.approx(left, abs=0.02 * max(map(abs, left)))
    for kind in KINDS:
        one, other = (np.array(found.tables["effects"][kind], dtype=float) for found in (exact, estimate))
        assert other == pytest.approx(one, abs=0.02 * np.nanmax(np.abs(one)), nan_ok=True)
    assert_untouched(model, before)


LINEAR = [("llama", "model.norm", (MLP,)), ("gpt_neox", "gpt_neox.final_layer_norm", KINDS)]


@pytest.mark.parametrize(("architecture", "norm", "kinds"), LINEAR)
def test_the_estimate_is_exact_where_the_metric_is_linear(architecture, norm, kinds):
    """Without the last norm, logits are linear in what the last MLP writes; of parallel blocks also the attention."""
    model = tiny_model(architecture, torch.float64)
    parent, _, child = norm.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    exact, estimate = (
        method.localize(the_run(model), NoiseConfig(samples=2)) for method in (causal_tracing, attribution_patching)
    )
    for kind in kinds:
        unit = Unit(kind, LAYERS - 1)
        assert abs(exact.scores[unit]) > 1e-3
        assert estimate.scores[unit] == pytest.approx(exact.scores[unit], abs=1e-9)
    below = Unit(MLP, 0)
    assert estimate.scores[below] != pytest.approx(exact.scores[below], abs=1e-3), "elsewhere it is an estimate"


def test_only_the_mlps_that_write_something_have_effects():
    model = tiny_model("llama", torch.float64)
    run = the_run(model)
    for layer in (0, 2, 3):
        model.get_submodule(run.sites.mlp[layer]).weight.data.zero_()
    for method in ("causal_tracing_mlps", "attribution_patching_mlps"):
        found = get_localizer(method).run(run, NoiseConfig(samples=1))
        assert [unit for unit, score in found.scores.items() if abs(score) > 1e-9] == [Unit(MLP, 1)]
        assert {unit.kind for unit in found.units} == {MLP}
        assert found.units[0] == Unit(MLP, 1) or found.scores[Unit(MLP, 1)] < 0


def test_the_probability_can_be_looked_at_instead():
    model = tiny_model("llama", torch.float64)
    found = causal_tracing.localize(the_run(model), NoiseConfig(samples=1, metric="probability"))
    assert max(map(abs, found.scores.values())) < 1
    assert found.notes["metric"] == "probability"
    with pytest.raises(UserError, match="did you mean probability"):
        causal_tracing.localize(the_run(model), NoiseConfig(samples=1, metric="probabilty"))


def test_effects_are_means_by_role():
    fact = Fact("f", tuple(range(9)), (2, 5), 1, 2)
    assert roles(fact) == [ROLES[0], ROLES[1], ROLES[2], ROLES[3], *[ROLES[4]] * 2, ROLES[5]]
    assert roles(Fact("f", tuple(range(4)), (3, 4), 1, 2)) == ["last subject token"]
    assert roles(Fact("f", tuple(range(5)), (3, 4), 1, 2)) == ["last subject token", "last token"]
    tally, short = Tally([Unit(MLP, 0)]), Fact("g", tuple(range(5)), (3, 4), 1, 2)
    tally.begin([fact, short], torch.tensor([1.0, 3.0]))
    effects = torch.tensor(
        [[1.0, 2, 3, 4, 5, 7, 8], [9, 9, 9, 9, 9, 10, 20]]
    )  # the second's first five are not its own
    tally.add(0, [fact, short], torch.tensor([5.0, 6.0]), effects)
    found = tally.ranking()
    assert found.tables["effects"]["mlp"] == [[1, 2, (3 + 10) / 2, 4, (5 + 7) / 2, (8 + 20) / 2]]
    assert found.scores == {Unit(MLP, 0): 5.5}
    assert found.notes["total_effect"] == 2
    alone = Tally([Unit(MLP, 0)])
    alone.begin([short], torch.tensor([1.0]))
    alone.add(0, [short], torch.tensor([1.0]), torch.tensor([[1.0, 2.0]]))
    assert alone.ranking().tables["effects"]["mlp"] == [[None, None, 1, None, None, 2]], "undefined is not 0"


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 400}


def test_a_model_that_adds_in_place_is_read_before_it_does():
    """Falcon adds attention to the MLP's output in place."""
    torch.manual_seed(0)
    model = (
        AutoModelForCausalLM.from_config(AutoConfig.for_model("falcon", ffn_hidden_size=24, **SMALL)).eval().double()
    )
    own = [Fact("a", (1, 5, 6, 7, 8, 9), (2, 4), 10, 11), Fact("b", (1, 5, 16, 7, 8, 9, 12), (2, 4), 12, 13)]
    run = the_run(model.requires_grad_(False), own)
    exact, estimate = (
        method.localize(run, NoiseConfig(noise=1e-3, samples=1)) for method in (causal_tracing, attribution_patching)
    )
    most = max(map(abs, exact.scores.values()))
    for unit, score in exact.scores.items():
        assert estimate.scores[unit] == pytest.approx(score, abs=0.02 * most)


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("mamba", {}, "no list of blocks"),
        ("mixtral", {"num_local_experts": 2, "num_key_value_heads": 1}, "no list of blocks"),
    ],
)
def test_models_that_cannot_be_looked_into_are_refused(kind, options, says):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SMALL, **options})).eval()
    with pytest.raises(UserError, match=says):
        causal_tracing.localize(the_run(model), NoiseConfig())


# Paths -----------------------------------------------------------------------------------------------------


def written_by_hand(model, run, layer, kind, inner):
    """What a unit writes into the stream from the input of its last map, by the weights alone; (d,)."""
    module = model.get_submodule(run.sites.output(Unit(kind, layer)))
    weight = module.weight if type(module).__name__ == "Conv1D" else module.weight.T
    output = inner @ weight + (0 if getattr(module, "bias", None) is None else module.bias)
    block = run.sites.parts.block(model, layer)
    if not hasattr(block, "post_feedforward_layernorm"):
        return output
    return (block.post_attention_layernorm if kind == ATTENTION else block.post_feedforward_layernorm)(output)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_head_reaches_the_logits_directly(architecture):
    model = tiny_model(architecture, torch.float64)
    run, before = the_run(model), weights_of(model)
    batch = paths.pair(run, run.facts, 0)
    found = paths.head_effects(run, batch)
    assert found.shape == (LAYERS, 2)
    last = run.sites.parts.block(model, LAYERS - 1)
    expected = torch.zeros_like(found)
    for fact, row in zip(run.facts, batch.rows, strict=True):
        clean, corrupt = (activations(model, run.sites, [ids]) for ids in (fact.prompt_ids, row))
        plain = difference(corrupt.logits[0], fact)
        for layer in range(LAYERS):
            own, other = (given.heads[layer][0, -1] for given in (corrupt, clean))
            for head in range(2):
                part = slice(head * len(own) // 2, (head + 1) * len(own) // 2)
                mixed = own.clone()
                mixed[part] = other[part]
                change = written_by_hand(model, run, layer, ATTENTION, mixed)
                change = change - written_by_hand(model, run, layer, ATTENTION, own)

                def add(hidden, change=change):
                    return torch.cat([hidden[:, :-1], hidden[:, -1:] + change], dim=1)

                hooks = [(last, lambda m, a, out, add=add: changed(out, add))]
                expected[layer, head] += difference(logits_with(model, row, hooks), fact) - plain
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    assert found.abs().min() > 1e-6
    assert_untouched(model, before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_mlp_reaches_the_receiving_layer_directly(architecture):
    model = tiny_model(architecture, torch.float64)
    run, receiver = the_run(model), 2
    batch = paths.pair(run, run.facts, 0)
    found = paths.mlp_effects(run, batch, receiver)
    below = run.sites.parts.block(model, receiver - 1)
    expected = torch.zeros(receiver, dtype=torch.float64)
    for fact, row in zip(run.facts, batch.rows, strict=True):
        seen = {}
        for name, ids in (("clean", fact.prompt_ids), ("corrupt", row)):
            with trace(model, inputs=run.sites.mlp) as traced:
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            seen[name] = traced.inputs
        for layer in range(receiver):
            after, own = (
                written_by_hand(model, run, layer, MLP, seen[name][run.sites.mlp[layer]])
                for name in ("clean", "corrupt")
            )
            hooks = [(below, lambda m, a, out, change=after - own: changed(out, lambda hidden: hidden + change))]
            expected[layer] += difference(logits_with(model, row, hooks), fact) - difference(logits, fact)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    assert found.abs().min() > 1e-6


def test_a_random_subject_is_another_one_and_nothing_else_changes():
    generator = torch.Generator().manual_seed(0)
    for fact in facts():
        row = paths.with_random_subject(fact, WORDS, generator)
        differs = [i for i, (a, b) in enumerate(zip(row, fact.prompt_ids, strict=True)) if a != b]
        assert differs == list(range(*fact.subject))
    with pytest.raises(UserError, match="no two words"):
        paths.pair(the_run(tiny_model("llama"), words=(7,)), facts(), 0)


def test_fact_lookup_by_paths():
    model = tiny_model("llama", torch.float64)
    run = the_run(model, known(model))
    found = fact_lookup.localize(run, fact_lookup.Config(way="path_patching", heads=2))
    receiver = found.notes["extraction_layer"]
    effects = np.array(found.tables["head_effects"])
    best = sorted(effects.flatten(), reverse=True)[:2]
    assert [head["effect"] for head in found.notes["heads"]] == pytest.approx(best)
    assert receiver == max(1, min(head["layer"] for head in found.notes["heads"]))
    assert {unit.layer for unit in found.units} == set(range(receiver)), "only what lies below extraction"
    fixed = fact_lookup.localize(run, fact_lookup.Config(way="path_patching", extraction_layer=3, threshold=0.0))
    assert len(fixed.units) == 3
    assert fixed.n_chosen == max(1, sum(score > 0 for score in fixed.scores.values()))
    whole = sum(float(batch.total.sum()) for batch in [paths.pair(run, run.facts, 0)])
    direct = paths.mlp_effects(run, paths.pair(run, run.facts, 0), 3) / whole
    assert [fixed.scores[Unit(MLP, layer)] for layer in range(3)] == pytest.approx(direct.tolist())
    split = fact_lookup.localize(
        dataclasses.replace(run, rows=2), fact_lookup.Config(way="path_patching", extraction_layer=3)
    )
    assert list(split.scores.values()) == pytest.approx(list(fixed.scores.values()))
    for layer in (0, LAYERS):
        with pytest.raises(UserError, match="extraction_layer"):
            fact_lookup.localize(run, fact_lookup.Config(way="path_patching", extraction_layer=layer))


def test_facts_that_the_model_does_not_know_are_refused():
    model = tiny_model("llama", torch.float64)
    unknown = [dataclasses.replace(f, true_id=f.false_id, false_id=f.true_id) for f in known(model)]
    with pytest.raises(UserError, match="facts that the model knows"):
        fact_lookup.localize(the_run(model, unknown), fact_lookup.Config(way="path_patching"))


# Probes ----------------------------------------------------------------------------------------------------


def athletes(n=30):
    """Subjects whose last token is the same, and whose first says the class."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for i in range(n):
        subject = ((50, 90)[i % 2], *random_ids(generator, 1), 33)
        found.append(Fact(f"a{i}", (0, 7, *subject, 8), (2, 5), 10, 20, ("tennis", "chess")[i % 2], (0, *subject)))
    return found


def test_fact_lookup_by_probe():
    model = tiny_model("llama")
    run = the_run(model, athletes())
    found = fact_lookup.localize(run, fact_lookup.Config())
    assert found.notes["way"] == "probe"
    bare = found.tables["probe_accuracy"]["bare subject"]
    assert len(bare) == LAYERS + 1
    assert bare[0] <= 0.6, "what the last token's embedding knows is nothing"
    assert bare[1] >= 0.8, "attention in the first layer fetches it"
    assert found.units[0] == Unit(MLP, 0)
    assert found.scores[Unit(MLP, 0)] == pytest.approx(bare[1] - bare[0])
    assert found.n_chosen == sum(b - a > 0.02 for a, b in zip(bare, bare[1:], strict=False))


def test_others_serve_the_probe_as_well():
    own = athletes()
    with pytest.raises(UserError, match="all 15 facts have the answer 'tennis'"):
        fact_lookup.localize(the_run(tiny_model("llama"), own[::2]), fact_lookup.Config(way="probe"))
    run = the_run(tiny_model("llama"), own[::2], others=own[1::2])
    assert fact_lookup.localize(run, fact_lookup.Config()).notes["classes"] == {"tennis": 15, "chess": 15}
    fewer = fact_lookup.localize(run, fact_lookup.Config(probe_facts=22)).notes
    assert fewer["classes"] == {"tennis": 15, "chess": 7}


def test_too_few_facts_of_a_class_are_refused():
    run = the_run(tiny_model("llama"), [*athletes(8), dataclasses.replace(athletes()[0], answer="golf")])
    with pytest.raises(UserError, match="'golf' has 1"):
        fact_lookup.localize(run, fact_lookup.Config(way="probe", folds=3))


def test_the_turned_probe_is_the_plain_one():
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    rng = np.random.default_rng(0)
    labels = [str(i % 3) for i in range(45)]
    states = rng.normal(size=(45, 80)) + np.eye(3)[np.arange(45) % 3] @ rng.normal(size=(3, 80)) * 0.25 + 5
    plain = states - states.mean(0)
    plain /= np.sqrt((plain**2).mean())
    probe = LogisticRegression(C=1.0, max_iter=500, tol=1e-3)
    split = StratifiedKFold(5, shuffle=True, random_state=3)
    expected = cross_val_score(probe, plain, labels, cv=split).mean()
    assert 0.4 < expected < 0.95
    assert probes.probe_accuracy(states, labels, 5, 1.0, 3) == pytest.approx(expected, abs=1 / 45 + 1e-9)
    shuffled = list(rng.permutation(labels))
    assert probes.probe_accuracy(states, shuffled, 5, 1.0, 3) < 0.55, "no fact, no probe"


def test_states_are_those_of_each_row_s_last_token():
    model = tiny_model("gpt2", torch.float64)
    rows = [(0, 7, 8), (0, 9, 11, 12, 13)]
    states = last_states(model, anatomy(model), rows, 1)
    both = last_states(model, anatomy(model), rows, 2)
    assert torch.allclose(states, both, atol=1e-5)
    hidden = model(input_ids=torch.tensor([rows[1]]), output_hidden_states=True).hidden_states
    for layer in range(LAYERS):  # the last one goes through the final norm there
        assert torch.allclose(states[layer, 1], hidden[layer][0, -1].float(), atol=1e-5)


# All methods -----------------------------------------------------------------------------------------------


def test_they_are_all_there():
    assert set(localizer_names()) == {
        "all_mlps", "attribution_patching", "attribution_patching_mlps", "causal_tracing", "causal_tracing_mlps",
        "fact_lookup", "none", "random", "random_mlps",
    }  # fmt: skip
    with pytest.raises(UserError, match="did you mean fact_lookup"):
        get_localizer("fact_lokup")


@pytest.mark.parametrize("name", localizer_names())
def test_contract(name):
    method = get_localizer(name)
    assert isinstance(method, Localizer)
    assert method.name == name
    model = tiny_model("llama")
    before, own = weights_of(model), known(tiny_model("llama"))
    config = dataclasses.replace(method.Config(), **({"samples": 1} if hasattr(method.Config, "samples") else {}))
    one, again = (method.run(the_run(model, own), config) for _ in range(2))
    assert one == again, "the same seed gives the same"
    assert_untouched(model, before)
    assert len(set(one.units)) == len(one.units)
    scores = [one.scores[unit] for unit in one.units if unit in one.scores]
    assert scores == sorted(scores, reverse=True)
    assert not method.needs_facts or len(scores) == len(one.units)
    if name.startswith("random"):
        others = [method.run(the_run(model, seed=seed), config).units for seed in range(5)]
        assert len(set(others)) > 1
