"""Probes, the logit lens, UDS, and attacks by prompts: against hand-computed activations and on planted cases."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from forgetful_models import FIRST, FORGET, OTHERS, planted, refusing, taught, without_gradients
from tiny_checkpoints import make_tiny
from tiny_models import (
    ARCHITECTURES,
    assert_untouched,
    changed_output,
    one_thread,  # noqa: F401
    tiny_model,
    tiny_tokenizer,
    weights_of,
    whole_forward,
)

from unlearn_eval.attacks.asking import answered, rows_of
from unlearn_eval.attacks.base import Case, ItemScore, Observation
from unlearn_eval.attacks.hidden_states import answer_states, entity_span, entity_tokens
from unlearn_eval.attacks.methods import logit_lens, prefix, probe, soft_prompt, uds
from unlearn_eval.attacks.run import attack_case
from unlearn_eval.data.items import ForgetItem, ForgetSet
from unlearn_eval.edits.base import EditInfo
from unlearn_eval.edits.dense import DenseEdit
from unlearn_eval.edits.memory.codebook import Codebook
from unlearn_eval.edits.memory.edit import MemoryEdit, read_inputs
from unlearn_eval.models.anatomy import anatomy
from unlearn_eval.models.load import LoadedModel
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.scoring import Query, score_answers
from unlearn_eval.models.tracing import last_states, read_out
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.settings import configure


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def models(tokenizer):
    return planted(lambda: without_gradients(make_tiny("llama", len(tokenizer))), tokenizer)


@pytest.fixture
def case(models):
    reference = lambda: models.never_knew  # noqa: E731
    return Case(
        models.knows,
        models.hides,
        FORGET,
        PromptFormat(None, False),
        OTHERS,
        max_new_tokens=12,
        open_reference=reference,
    )


@pytest.fixture
def oracle(case, models):
    """The same with an edit after which the model is the one that never knew."""
    own = {name: p.detach().clone() for name, p in models.never_knew.model.named_parameters()}
    return replace(case, edit=DenseEdit(own, EditInfo("oracle", {})))


def loaded_tiny(architecture, tokenizer, seed=0):
    return LoadedModel(tiny_model(architecture, seed=seed), tokenizer, "tiny", None, "tiny")


# States by hand --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_states_are_those_of_one_row_alone(architecture, tokenizer):
    loaded = loaded_tiny(architecture, tokenizer)
    rows = rows_of([*FORGET.items[:3], ForgetItem("x", "Who?", "Me")], PromptFormat(tokenizer, True))
    found = answer_states(loaded, rows, batch_size=3)
    parts = anatomy(loaded.model)
    for row, own in zip(rows, found, strict=True):
        ids = (*row.prompt_ids, *row.answer_ids[:-1])
        for layer in range(parts.n_layers):
            seen = []
            whole_forward(
                loaded.model, ids, parts.block(loaded.model, layer),
                lambda m, a, out, seen=seen: seen.append(out[0] if isinstance(out, tuple) else out),
            )  # fmt: skip
            expected = seen[0][0, len(row.prompt_ids) - 1 :]
            assert torch.allclose(own[layer], expected, atol=1e-4)
    prompts_of = [row.prompt_ids for row in rows]
    ends = last_states(loaded.model, parts, prompts_of, 2, [len(ids) for ids in prompts_of])[1:]
    assert torch.allclose(ends[:, 1], found[1][:, 0], atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reading_out_the_last_layer_is_the_model(architecture, tokenizer):
    loaded = loaded_tiny(architecture, tokenizer)
    before, model = weights_of(loaded.model), loaded.model
    rows = rows_of(FORGET.items[:2], PromptFormat(tokenizer, False))
    states = answer_states(loaded, rows, 2)
    for row, own in zip(rows, states, strict=True):
        logits = whole_forward(model, (*row.prompt_ids, *row.answer_ids[:-1]))[len(row.prompt_ids) - 1 :]
        assert torch.allclose(read_out(model, anatomy(model), own)[-1], logits, atol=1e-3)
        score = score_answers(model, [Query(row.prompt_ids, row.answer_ids)])[0]
        assert logit_lens.lens(loaded, own, row.answer_ids)[-1] == pytest.approx(-np.mean(score.token_nll), abs=1e-3)
    assert_untouched(model, before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_patching_by_hand(architecture, tokenizer):
    """A layer's states at the span's predicting positions come from another model; the rest is the model's own."""
    loaded, other = loaded_tiny(architecture, tokenizer), loaded_tiny(architecture, tokenizer, seed=5)
    before, model = weights_of(loaded.model), loaded.model
    parts = anatomy(model)
    rows = rows_of([FORGET.items[0], FORGET.items[4], FORGET.items[2]], PromptFormat(tokenizer, False))
    spans = [slice(1, 3), slice(0, 1), slice(0, len(rows[2].answer_ids))]
    states = answer_states(other, rows, 2)
    patching = uds.Patching(loaded, rows, spans)
    for layer in range(parts.n_layers):
        own = [state[layer] for state in states]
        found = patching.log_probs(layer, own).tolist()
        for row, span, state, value in zip(rows, spans, own, found, strict=True):
            first, ids = len(row.prompt_ids) - 1, (*row.prompt_ids, *row.answer_ids[:-1])

            def change(hidden, first=first, span=span, state=state):
                new = hidden.clone()
                new[0, first + span.start : first + span.stop] = state[span]
                return new

            logits = whole_forward(
                model, ids, parts.block(model, layer), lambda m, a, out, c=change: changed_output(out, c)
            )
            log_probs = logits.log_softmax(-1)[range(first + span.start, first + span.stop), row.answer_ids[span]]
            assert value == pytest.approx(float(log_probs.mean()), abs=1e-4)
    same = answer_states(loaded, rows, 2)
    plain = patching.plain.tolist()
    assert patching.log_probs(1, [s[1] for s in same]).tolist() == pytest.approx(plain, abs=1e-4)
    alone = [uds.Patching(loaded, [row], [span]).plain.item() for row, span in zip(rows, spans, strict=True)]
    assert alone == pytest.approx(plain, abs=1e-4)
    assert_untouched(model, before)


@pytest.mark.parametrize(
    ("question", "answer", "aliases", "span"),
    [
        ("What is the capital of France?", "Paris", (), "Paris"),
        ("What is the name of the author?", "The author's full name is Hsiao Yun-Hwa.", (), "Hsiao Yun-Hwa"),
        ("When was Ada Brook born?", "Ada Brook was born on 3 May 1961, in spring.", (), "3 May 1961"),
        ("What did she study?", "she studied how rivers change their bed", (), "studied how rivers change their bed"),
        ("Where is Ada from?", "Ada comes from the town of Larkhill by the Sea", ("Larkhill",), "Larkhill"),
        ("Is Ada a painter, and is she old?", "Ada is a painter, and is old", (), "Ada is a painter, and is old"),
    ],
)  # fmt: skip
def test_where_the_fact_stands(question, answer, aliases, span, tokenizer):
    item = ForgetItem("a", question, answer, aliases=aliases)
    start, end = entity_span(item)
    assert answer[start:end] == span
    (row,) = rows_of([item], PromptFormat(tokenizer, False))
    said = tokenizer.decode(row.answer_ids[entity_tokens(row, PromptFormat(tokenizer, False))])
    assert said.strip(" .,") == span


# Planted cases ---------------------------------------------------------------------------------------------


def test_depth_is_zero_behind_a_refusal_and_one_where_nothing_was_known(case, oracle):
    before = weights_of(case.loaded.model)
    hidden = attack_case(uds.ATTACK, case, uds.Config()).summary.metrics
    assert hidden["forget_uds"].value == pytest.approx(0, abs=1e-4)
    assert hidden["forget_uds"].n == len(FORGET)
    gone = attack_case(uds.ATTACK, oracle, uds.Config()).summary.metrics
    assert gone["forget_uds"].value == pytest.approx(1)
    assert gone["forget_last_patched_drop"].value > 1
    seen = attack_case(logit_lens.ATTACK, case, logit_lens.Config()).summary.metrics
    assert seen["forget_logit_lens_gap"].value == pytest.approx(0, abs=1e-4)
    assert seen["forget_logit_lens_depth"].value == pytest.approx(0, abs=1e-4)
    unseen = attack_case(logit_lens.ATTACK, oracle, logit_lens.Config()).summary.metrics
    assert unseen["forget_logit_lens_depth"].value == pytest.approx(1)
    assert unseen["forget_last_logit_lens_gap"].value > 1
    assert_untouched(case.loaded.model, before)


def test_without_a_reference_depth_is_null_and_drops_are_not(case):
    alone = attack_case(uds.ATTACK, replace(case, open_reference=None), uds.Config()).summary.metrics
    assert alone["forget_uds"].value is None
    assert "--reference" in alone["forget_uds"].reason
    assert alone["forget_patched_drop"].value == pytest.approx(0, abs=1e-4)


@pytest.fixture(scope="module")
def towns(tokenizer):
    """Three answers that many share: a model that knows, an edit that hides it, one that knows the others alone."""
    names = [f"{old}{first}" for first in FIRST for old in ("", "Old ")]
    answers = ("Paris", "Hamlet", "Japan")  # each of one token, by which the states tell them apart

    def items(indices):
        return ForgetSet(
            "towns",
            tuple(
                ForgetItem(f"s{i}", f"What is the capital of {names[i]}?", answers[(i + i // 3) % 3], subject=names[i])
                for i in indices
            ),
        )

    forget, others = items(range(9)), items(range(9, 32))
    make = lambda: without_gradients(make_tiny("llama", len(tokenizer)))  # noqa: E731
    options = {"epochs": "60", "learning_rate": "1e-2"}
    knows = taught(LoadedModel(make(), tokenizer, "knows", None, "knows"), (*forget, *others), **options)
    never = taught(LoadedModel(make(), tokenizer, "never", None, "never"), tuple(others), **options)
    return Case(
        knows,
        refusing(knows),
        forget,
        PromptFormat(None, False),
        others,
        max_new_tokens=6,
        open_reference=lambda: never,
    )


def test_a_probe_reads_what_is_hidden_not_what_was_never_known_and_shuffled_labels_stay_at_chance(towns):
    before = weights_of(towns.loaded.model)
    settings = configure(probe.Config, {"n_controls": "20"})
    attacked = attack_case(probe.ATTACK, towns, settings)
    assert_untouched(towns.loaded.model, before)
    assert attacked.notes == ("probes read answers",)
    metrics = attacked.summary.metrics
    assert metrics["forget_unedited_probe_accuracy"].value >= 0.9
    assert metrics["forget_probe_accuracy"].value == metrics["forget_unedited_probe_accuracy"].value
    assert metrics["forget_reference_probe_accuracy"].value <= 0.6
    assert metrics["forget_random_labels_probe_accuracy"].value <= 0.5
    assert metrics["forget_probe_recovery"].value == pytest.approx(1)
    control = metrics["forget_random_labels_probe_accuracy"].value
    assert metrics["forget_probe_selectivity"].value == pytest.approx(metrics["forget_probe_accuracy"].value - control)
    layers = {o.at for o in attacked.observations}
    assert layers == {0, 1, 2}


def test_readers_read_what_is_there_and_nothing_else():
    generator = np.random.default_rng(0)
    items = [ForgetItem(str(i), f"Q{i}?", "A") for i in range(200)]
    rows = [probe.Statement(item, (), 0, label) for item in items for label in ("true", "false")]
    signs = np.tile([1.0, -1.0], 200)
    x, y = generator.normal(size=(400, 8)), generator.normal(size=(400, 8))
    x[:, 3] += 3 * signs
    y[:, 3] += 3 * signs
    labels = np.tile(["true", "false"], 200)
    found = [score.values[probe.VALUE] for score in probe.read(x, labels, y, rows, 0.1)]
    assert np.mean(found) > 0.95
    shuffled = [s.values[probe.VALUE] for s in probe.read(x, generator.permutation(labels), y, rows, 0.1)]
    upside_down = probe.read(x, labels, -y, rows, 0.1)
    assert np.mean([s.values[probe.VALUE] for s in upside_down]) < 0.05
    assert len(shuffled) == 200
    nothing = [s.values[probe.VALUE] for s in probe.read(x, labels, generator.normal(size=(400, 8)), rows, 0.1)]
    assert abs(np.mean(nothing) - 0.5) < 0.12  # 3.4 standard errors of 200 coins


def test_choosing_the_layer_does_not_inflate():
    """Forty layers of coin flips: the best layer is well above a half, the cross-fitted one is not."""
    generator = np.random.default_rng(1)
    items = ForgetSet("coins", tuple(ForgetItem(str(i), f"Q{i}?", "A") for i in range(60)))
    flips = generator.integers(2, size=(40, 60)).astype(float)
    observations = [
        Observation("unlearned", layer, tuple(ItemScore(i.id, {probe.VALUE: v}) for i, v in zip(items, row)))  # noqa: B905
        for layer, row in enumerate(flips)
    ]  # fmt: skip
    assert flips.mean(1).max() > 0.6
    (best,) = probe.best_layers(items, observations)
    assert abs(np.mean([score.values[probe.VALUE] for score in best.scores]) - 0.5) < 0.15
    perfect = [replace(o, scores=tuple(replace(s, values={probe.VALUE: float(o.at == 7)}) for s in o.scores))
               for o in observations]  # fmt: skip
    (best,) = probe.best_layers(items, perfect)
    assert all(score.values[probe.VALUE] == 1 for score in best.scores)


def test_what_readers_are_shown(case, towns):
    assert probe.kind_of_labels(FORGET, OTHERS) == "truth"
    assert probe.kind_of_labels(towns.items, towns.others) == "answers"
    rows = probe.statements(case.format_for(case.loaded), FORGET, "truth", 0)
    assert [row.label for row in rows[:4]] == ["true", "false", "true", "false"]
    said = [case.loaded.tokenizer.decode(row.ids[row.end :]).strip() for row in rows]
    for true, false, item in zip(said[::2], said[1::2], FORGET, strict=True):
        assert true == item.answer
        assert false in item.perturbed_answers
    with pytest.raises(UserError, match="at least 10 other facts, and there are 8"):
        attack_case(probe.ATTACK, case, probe.Config())
    with pytest.raises(UserError, match="did you mean truth"):
        probe.Config(labels="thruth")
    lonely = ForgetSet("s", (ForgetItem("a", "Q?", "Paris"), ForgetItem("b", "R?", "Paris")))
    with pytest.raises(UserError, match="no wrong answer"):
        probe.statements(case.format_for(case.loaded), lonely, "truth", 0)


# Prompts ---------------------------------------------------------------------------------------------------


def test_openings_and_wraps_are_part_of_the_prompt(tokenizer):
    item = FORGET.items[0]
    for chat in (False, True):
        (plain,) = rows_of([item], PromptFormat(tokenizer, chat))
        (opened,) = rows_of([item], PromptFormat(tokenizer, chat), opening="Sure, it is")
        (wrapped,) = rows_of([item], PromptFormat(tokenizer, chat), wrap="Please: {question} Now!")
        text = tokenizer.decode(opened.prompt_ids)
        assert text == tokenizer.decode(plain.prompt_ids) + ("" if chat else " ") + "Sure, it is"
        assert f"Please: {item.question} Now!" in tokenizer.decode(wrapped.prompt_ids)
        assert tokenizer.decode(opened.answer_ids) == f" {item.answer}"
        assert wrapped.answer_ids == plain.answer_ids
        assert opened.prompt_ids.count(tokenizer.bos_token_id) == 1


def test_prompts_are_levels_and_the_worst_counts(case):
    before = weights_of(case.loaded.model)
    settings = configure(prefix.Config, {"prompts": "sure,exam", "opening": "It is"})
    attacked = attack_case(prefix.ATTACK, case, settings)
    assert_untouched(case.loaded.model, before)
    assert [o.at for o in attacked.observations] == [None, "sure", "exam", "own"] * 3
    assert attacked.summary.metrics["forget_attacked_accuracy"].value is not None
    for options in ({"prompts": "sur"}, {"prompts": ""}, {"wrap": "no place"}):
        with pytest.raises(UserError):
            configure(prefix.Config, options)


def test_vectors_stand_for_tokens_and_leave_no_trace(case, models):
    loaded, before = models.knows, weights_of(models.knows.model)
    rows = case.rows(loaded, FORGET)
    ids = soft_prompt.unused_ids(loaded, rows, 3)
    assert len(set(ids)) == 3
    assert not set(ids) & {token for row in rows for token in (*row.prompt_ids, *row.answer_ids)}
    longer = soft_prompt.inserted(rows, ids, loaded)
    assert longer[0].prompt_ids == (rows[0].prompt_ids[0], *ids, *rows[0].prompt_ids[1:])  # behind the BOS
    embeddings = loaded.model.get_input_embeddings().weight
    vectors = embeddings[[7, 8, 9]].detach().clone()
    with soft_prompt.spoken(loaded.model, ids, vectors):
        found = answered(loaded.model, PromptFormat(loaded.tokenizer, False), longer, 3, 8)
    replaced = [replace(r, prompt_ids=(r.prompt_ids[0], 7, 8, 9, *r.prompt_ids[4:])) for r in longer]
    expected = answered(loaded.model, PromptFormat(loaded.tokenizer, False), replaced, 3, 8)
    assert [a.said for a in found] == [a.said for a in expected]
    assert [a.probability for a in found] == pytest.approx([a.probability for a in expected])
    assert_untouched(loaded.model, before)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_training_makes_the_answers_more_probable(architecture, tokenizer):
    loaded = loaded_tiny(architecture, tokenizer)
    before = weights_of(loaded.model)
    rows = rows_of(FORGET.items[:4], PromptFormat(tokenizer, False))
    config = soft_prompt.Config(n_tokens=2, steps=30, learning_rate=0.1, radius=4.0)
    ids = soft_prompt.unused_ids(loaded, rows, 2)
    longer = soft_prompt.inserted(rows, ids, loaded)
    losses = []
    for steps in (1, 30):
        vectors = soft_prompt.trained_vectors(loaded, longer, ids, replace(config, steps=steps), 0)
        with soft_prompt.spoken(loaded.model, ids, vectors), torch.no_grad():
            losses.append(float(soft_prompt._loss(loaded.model, longer)))
    assert losses[1] < losses[0] - 0.2
    every = loaded.model.get_input_embeddings()(torch.arange(400)).norm(dim=-1).mean()
    assert vectors.norm(dim=-1).max() <= 4.0 * every * 1.001
    assert not vectors.requires_grad
    assert_untouched(loaded.model, before)
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


def test_soft_prompts_are_tried_on_the_other_half(case):
    before = weights_of(case.loaded.model)
    attacked = attack_case(soft_prompt.ATTACK, case, soft_prompt.Config(steps=20, n_tokens=2))
    assert_untouched(case.loaded.model, before)
    assert {(o.model, o.fold, o.at) for o in attacked.observations} == {
        (model, fold, at) for model in ("unlearned", "full", "reference") for fold in (0, 1) for at in (None, 20)
    }
    metrics = attacked.summary.metrics
    assert metrics["forget_reference_attacked_accuracy"].value == 0
    assert metrics["forget_attacked_probability"].value > metrics["forget_reference_attacked_probability"].value


# Memories, and models without blocks -----------------------------------------------------------------------


def test_memories_are_attacked_with_their_decisions_at_the_prompts_end(case):
    """A codebook edit: it answers the plain question, so that state and answer are its own, and leaves no trace."""
    model = case.loaded.model
    rows = case.rows(case.loaded, FORGET)
    name = anatomy(model).projection_name(1)
    keys = torch.stack([inputs[-1] for inputs in read_inputs(model, name, [rows[i].prompt_ids for i in (0, 2, 4)])])
    values = 6 * torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    owners = tuple((rows[i].item.id,) for i in (0, 2, 4))
    book = Codebook(keys, values, torch.full((3,), 1e-3), torch.arange(3), ((5,), (6,), (7,)), owners, "onward")
    edit = MemoryEdit(name, book, EditInfo("grace", {}))
    before = weights_of(model)
    memory = replace(case, edit=edit, skipped={}, notes=[])
    with memory.model("unlearned") as loaded:
        own = answer_states(loaded, rows, 3)
        alone = [answer_states(loaded, [row], 1)[0] for row in rows]
    with memory.model("full") as loaded:
        plain = answer_states(loaded, rows, 3)
    for i, (a, b, c) in enumerate(zip(own, alone, plain, strict=True)):
        assert torch.allclose(a, b, atol=1e-4)
        assert torch.allclose(a[0], c[0], atol=1e-4)  # below the memory nothing changes
        assert torch.allclose(a[1], c[1], atol=1e-4) == (i not in (0, 2, 4))
    asked = attack_case(prefix.ATTACK, memory, configure(prefix.Config, {"prompts": "exam"}))
    said = {o.at: [s.values["accuracy"] for s in o.scores] for o in asked.observations if o.model == "unlearned"}
    assert said[None][0] == said[None][2] == said[None][4] == 0
    assert attack_case(uds.ATTACK, memory, uds.Config()).summary.metrics["forget_uds"].value is not None
    settings = soft_prompt.Config(n_tokens=1, steps=2)
    assert attack_case(soft_prompt.ATTACK, memory, settings).observations
    assert_untouched(model, before)


def test_a_model_whose_blocks_are_not_found_is_refused_and_left_alone():
    from unlearn_eval.attacks.changed_weights import changed_maps

    model = torch.nn.Sequential(torch.nn.Linear(3, 3))
    before = weights_of(model)
    with pytest.raises(UserError, match="no list of blocks"), changed_maps(model, lambda weight: weight * 0):
        pass
    assert_untouched(model, before)
