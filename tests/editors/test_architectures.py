"""Every architecture that has an anatomy passes one contract, whatever its parts are called and its tensors' shapes.

Of each kind of edit one editor is run on all of them, and all editors on one that is unlike the others (OPT gives its
MLPs all tokens of a batch as one row); the whole product is marked slow.
"""

from functools import cache

import pytest
import torch
from architectures import DENSE, LAYERS, MIXTURES, MLP, OTHERS, WIDTH, config_of, random_model
from naive_memit import moments_of
from tiny_models import (
    assert_untouched,
    one_thread,  # noqa: F401
    random_ids,
    random_requests,
    tiny_tokenizer,
    weights_of,
)
from training_requests import FAST, FORGET, KEPT

from unlearn_eval.editing.editor import MOMENTS, RETAIN, editor_names, get_editor
from unlearn_eval.editing.editor import OTHERS as UNRELATED
from unlearn_eval.editing.locate_then_edit.target_values import TargetValueConfig
from unlearn_eval.edits.base import applied
from unlearn_eval.localization.base import Fact, Run, get_localizer
from unlearn_eval.localization.sites import sites
from unlearn_eval.models.anatomy import anatomy, blocks_of
from unlearn_eval.models.load import load_model, skeleton
from unlearn_eval.models.scoring import Query, score_answers
from unlearn_eval.runs.edit import model_check
from unlearn_eval.utils.errors import UserError

# Of blocks like Llama's one is enough by default.
ALIKE = {"apertus", "exaone4", "gemma", "granite", "mistral", "nemotron", "olmo", "qwen2", "smollm3"}
KINDS = [pytest.param(kind, marks=pytest.mark.slow) if kind in ALIKE else kind for kind in DENSE]
TARGET = TargetValueConfig(steps=2, learning_rate=0.5)
SETTINGS = {  # with which an editor that is not trained is quick
    "alphaedit": {"layers": (0, 1), "target": TARGET, "null_space": "energy:0.5", "ridge": 1e-3},
    "emmet": {"layers": (0,), "target": TARGET},
    "glame": {"layers": (0,), "target": TARGET},
    "grace": {"layers": (1,), "steps": 2},
    "memit": {"layers": (0, 1), "target": TARGET, "preservation": 1e-3},
    "memoir": {"layers": (1,), "steps": 2, "n_others": 4},
    "notes": {"gate": "none", "encoder": "words"},
    "prefix": {"gate": "none", "encoder": "words", "steps": 3},
    "recipe": {"gate": "none", "encoder": "words", "width": 8, "gate_steps": 2, "steps": 2, "batch": 2, "n_facts": 12},
    "rome": {"layers": (0,), "target": TARGET},
    "ultraedit": {"layers": (0, 1)},
    "unke": {"layers": (0,), "target": TARGET, "steps": 2, "text_tokens": 32},
    "wise": {"layers": (1,), "steps": 2, "n_others": 4},
}
TRAINED = {**FAST, "steps": 1}
LOW_RANK = {**TRAINED, "lora_rank": 2}
CLOSED_FORM, MEMORY, GRADIENT = "memit", "grace", "npo"  # one of each kind


@cache
def model_of(kind):
    """One model for all tests of an architecture: each leaves it as it was, or fails."""
    return random_model(kind, DENSE[kind])


def logits_of(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def check_edit(model, name, **settings):
    """An edit does something, and is undone bit for bit, by its maker and by whoever applies it."""
    editor, before = get_editor(name), weights_of(model)
    config = editor.Config(**(settings or (TRAINED if editor.trained else SETTINGS[name])))
    generator = torch.Generator().manual_seed(5)
    given = {
        RETAIN: lambda: KEPT,
        UNRELATED: lambda: [(0, *random_ids(generator, 6 + i % 3)) for i in range(8)],
        MOMENTS: lambda: moments_of(model, config.layers),
    }
    requests = FORGET[:3] if editor.trained else random_requests(3)
    editor.check_model(config, model)
    used = {own: given[own]() for own in editor.uses}
    edit = editor.edit(model, tiny_tokenizer(), requests, config, **used)
    assert_untouched(model, before)
    prompt = requests[0].prompt_ids
    clean = logits_of(model, prompt)
    with applied(edit, model):
        changed = logits_of(model, prompt)
    assert not torch.equal(changed, clean), "it does something"
    assert_untouched(model, before)
    assert torch.equal(logits_of(model, prompt), clean)
    return edit


@pytest.mark.parametrize("kind", DENSE)
def test_its_parts_are_found_with_and_without_weights(kind):
    config = config_of(kind, DENSE[kind])
    parts = anatomy(skeleton(config))
    assert parts == anatomy(model_of(kind))
    assert (parts.n_layers, parts.d_model) == (LAYERS, WIDTH)
    assert parts.d_mlp == (4 * WIDTH if kind in ("bloom", "mpt") else MLP)


@pytest.mark.parametrize("editor", [CLOSED_FORM, GRADIENT])
@pytest.mark.parametrize("kind", KINDS)
def test_an_editor_changes_and_restores_weights(kind, editor):
    check_edit(model_of(kind), editor)


@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_answers_its_own_question_alone(kind):
    """Rows of one batch decide by themselves: here it matters that a batch's rows are told apart."""
    model = model_of(kind)
    edit = check_edit(model, MEMORY)
    mine, other = random_requests(1)[0].prompt_ids, (0, *random_ids(torch.Generator().manual_seed(11), 4))
    clean = [logits_of(model, ids)[-1] for ids in (mine, other)]
    with applied(edit, model):
        alone = [logits_of(model, ids)[-1] for ids in (mine, other)]
        queries = [Query(mine, (7, 8)), Query(other, (9,))]
        scores = score_answers(model, queries, batch_size=2)
    assert not torch.equal(alone[0], clean[0])
    assert torch.equal(alone[1], clean[1])
    for own, score, query in zip(alone, scores, queries, strict=True):
        expected = -float(own.log_softmax(-1)[query.label_ids[0]])
        assert score.token_nll[0] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_single_rows(kind):
    model = model_of(kind)
    queries = [Query(request.prompt_ids, request.target_ids) for request in random_requests(4)]
    queries.append(Query(queries[0].prompt_ids, (7, 8, 9)))
    for query, score in zip(queries, score_answers(model, queries, batch_size=3), strict=True):
        logp = logits_of(model, (*query.prompt_ids, *query.label_ids)).log_softmax(-1)
        places = range(len(query.prompt_ids) - 1, len(query.prompt_ids) + len(query.label_ids) - 1)
        expected = [-float(logp[place, label]) for place, label in zip(places, query.label_ids, strict=True)]
        assert score.token_nll == pytest.approx(expected, abs=1e-3)


def facts():
    """Prompts of two lengths, with subjects of one and two tokens."""
    generator = torch.Generator().manual_seed(0)
    rows = [(0, *random_ids(generator, 5 + 2 * i)) for i in range(2)]
    return [Fact(f"f{i}", row, (2, 3 + i), 10 + i, 20 + i, "a", (0, *row[2 : 3 + i])) for i, row in enumerate(rows)]


@pytest.mark.parametrize("kind", KINDS)
def test_facts_are_located(kind):
    model = model_of(kind)
    before, run = weights_of(model), Run(model, sites(model), facts(), words=tuple(range(5, 60)))
    method = get_localizer("causal_tracing")
    found = method.run(run, method.Config(samples=1))
    assert len(found.scores) == 2 * LAYERS
    assert any(score != 0 for score in found.scores.values())
    assert_untouched(model, before)


@pytest.mark.parametrize("name", editor_names())
def test_every_editor_where_mlps_are_given_all_tokens_as_one_row(name):
    check_edit(model_of("opt"), name)


@pytest.mark.slow  # 33 architectures times 23 editors
@pytest.mark.parametrize("kind", DENSE)
def test_every_editor(kind):
    for name in editor_names():
        check_edit(random_model(kind, DENSE[kind]), name)
    check_edit(random_model(kind, DENSE[kind]), GRADIENT, **LOW_RANK)


# Mixtures of experts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MIXTURES)
def test_the_attention_of_a_mixture_of_experts_gets_factors(kind):
    """Unless components are named too: there are no other linear maps for which PEFT has no name of its own."""
    edit = check_edit(random_model(kind, MIXTURES[kind]), GRADIENT, **LOW_RANK)
    assert edit.factors
    assert all(".self_attn." in name for name in edit.factors)


@pytest.mark.parametrize(
    "settings", [{**LOW_RANK, "components": "self_attn.q_proj"}, {**TRAINED, "components": "self_attn"}]
)
def test_the_attention_of_a_mixture_of_experts_is_trained_by_name(settings):
    edit = check_edit(random_model("qwen3_moe", MIXTURES["qwen3_moe"]), GRADIENT, **settings)
    changed = list(edit.factors if settings.get("lora_rank") else edit.tensors)
    assert changed
    assert all(f".{settings['components']}" in name for name in changed)


@pytest.mark.parametrize("kind", [*MIXTURES, *OTHERS])
@pytest.mark.parametrize(
    "name", [name for name in SETTINGS if name not in ("notes", "prefix", "recipe")]
)  # it changes nothing inside a model
def test_what_cannot_be_edited_is_refused_by_its_configuration(kind, name):
    check = model_check(get_editor(name), {})
    with pytest.raises(UserError) as error:
        check(skeleton(config_of(kind, {**MIXTURES, **OTHERS}[kind])))
    assert "\n" not in error.value.message
    assert ("--components self_attn" in error.value.hint) == (kind in MIXTURES)


def test_an_edit_is_refused_before_weights_are_read(tmp_path):
    """A folder whose weights are no weights: whoever reads them fails otherwise."""
    config_of("qwen3_moe", MIXTURES["qwen3_moe"]).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"none")
    for check in (model_check(get_editor("memit"), {}), sites):
        with pytest.raises(UserError, match="no list of blocks with an MLP output projection"):
            load_model(str(tmp_path), check=check)
    options = {"lora_rank": "2", "components": "self_atn"}
    with pytest.raises(UserError, match=r"no component of the model is called 'self_atn'|self_atn"):
        load_model(str(tmp_path), check=model_check(get_editor("npo"), options))
    fits = model_check(get_editor("npo"), {**options, "components": "self_attn"})
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(str(tmp_path), check=fits)


def test_an_encoder_decoder_is_refused(tmp_path):
    config_of("bart", {"d_model": WIDTH, "decoder_layers": 1, "encoder_layers": 1}).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"none")
    with pytest.raises(UserError, match=r"is an encoder-decoder \(bart\)"):
        load_model(str(tmp_path))


def test_an_image_encoder_with_more_layers_is_not_taken_for_the_model():
    """The configuration says how many layers the text has, and how wide they are."""
    model = random_model("llama", DENSE["llama"])
    other = random_model("llama", {**DENSE["llama"], "hidden_size": 16, "num_hidden_layers": 5})
    model.vision = other.model
    assert blocks_of(model).blocks == anatomy(model).blocks == "model.layers"
    same = random_model("llama", DENSE["llama"])
    same.second = random_model("llama", DENSE["llama"]).model
    with pytest.raises(UserError, match="has 2 lists of 2 blocks: model.layers, second.layers"):
        anatomy(same)
