"""Memory edits: one decision for each sequence, whatever the way in which a model is run; saved, stacked, taken out."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from naive_memories import N_NEW, generated, naive_answer, naive_logits
from tiny_models import (  # noqa: F401
    LAYERS,
    VOCABULARY,
    WIDTH,
    assert_untouched,
    one_thread,
    random_ids,
    tiny_model,
    weights_of,
)

from unlearn_eval.edits.base import EditInfo, applied
from unlearn_eval.edits.load import describe_base, load_edit
from unlearn_eval.edits.low_rank import LowRankEdit
from unlearn_eval.edits.memory import edit as memory_edits
from unlearn_eval.edits.memory.codebook import Codebook
from unlearn_eval.edits.memory.edit import MemoryEdit, read_inputs
from unlearn_eval.edits.memory.residual_memory import ResidualMemory, packed, pooled, read_residual_memory, unpacked
from unlearn_eval.edits.memory.side_memories import SideMemories
from unlearn_eval.models.anatomy import anatomy
from unlearn_eval.models.prompt_ends import prompt_lengths
from unlearn_eval.models.scoring import Query, pad, positions, score_answers
from unlearn_eval.utils.errors import UserError

LAYER = 2
ARCHITECTURES = ["llama", "qwen2", "gpt2", "gpt_neox", "gemma3"]
INFO = EditInfo("grace", {})
EXACT = {"atol": 1e-9, "rtol": 0}  # float64: two orders of the same sums differ by about 1e-13 here


def prompts_of(n=6, seed=1):
    """Prompts of different lengths (some pass the sliding window); 0, 2, 4 are edited, the others are not."""
    generator = torch.Generator().manual_seed(seed)
    return [(0, *random_ids(generator, length)) for length in (4, 11, 7, 15, 2, 5)[:n]]


def grace_edit(model, prompts, positions="onward", layer=LAYER, radius=1e-3):
    """A codebook with the keys of prompts 0, 2, 4, two of which share a value."""
    name = anatomy(model).projection_name(layer)
    keys = torch.stack([inputs[-1] for inputs in read_inputs(model, name, prompts[0:6:2])])
    generator = torch.Generator().manual_seed(2)
    values = 6 * torch.randn(2, WIDTH, generator=generator, dtype=model.dtype)
    value_of = torch.tensor([0, 1, 0][: len(keys)])
    radii = torch.full((len(keys),), radius, dtype=model.dtype)
    owners = tuple((f"r{i}",) for i in range(len(keys)))
    return MemoryEdit(name, Codebook(keys, values, radii, value_of, ((5, 6), (7,)), owners, positions), INFO)


def wise_edit(model, prompts, positions="onward", mode="retrieve", layer=LAYER):
    """Two side memories with thresholds in the widest gap of all prompts' activations."""
    parts = anatomy(model)
    name, shape = parts.projection_name(layer), (parts.d_model, parts.d_mlp)
    generator = torch.Generator().manual_seed(3)
    indices, deltas = [], []
    for _ in range(2):
        index = torch.randperm(shape[0] * shape[1], generator=generator)[: shape[0] * shape[1] // 3].sort().values
        indices.append(index)
        deltas.append(torch.randn(len(index), generator=generator, dtype=model.dtype))
    n = 2 if mode == "retrieve" else 1
    store = SideMemories(
        tuple(indices), tuple(deltas), torch.zeros(n, dtype=model.dtype), shape, (("a",), ("b",)), mode, "linear",
        positions=positions,
    )  # fmt: skip
    activations = store.activations(read_inputs(model, name, prompts))
    thresholds = []
    for column in activations.T:
        ordered = column.sort().values
        gap = int((ordered[1:] - ordered[:-1]).argmax())
        thresholds.append((ordered[gap] + ordered[gap + 1]) / 2)
    return MemoryEdit(name, replace(store, thresholds=torch.stack(thresholds)), replace(INFO, editor="wise"))


def memoir_edit(model, prompts, positions="onward", layer=LAYER, pool="last"):
    """A residual memory with the masks of prompts 0, 2, 4, and a threshold between them and the others."""
    parts = anatomy(model)
    name, (d_out, d_in) = parts.projection_name(layer), (parts.d_model, parts.d_mlp)
    generator = torch.Generator().manual_seed(4)
    inputs = read_inputs(model, name, prompts)
    features = torch.stack([pooled(own, pool) for own in inputs])
    background = features.mean(0) if len(prompts) > 1 else torch.zeros_like(features[0])
    empty = ResidualMemory(
        2 * torch.randn(d_out, d_in, generator=generator, dtype=model.dtype), torch.zeros(0, d_in, dtype=torch.bool),
        torch.randperm(d_in, generator=generator), background, torch.ones(1), (), (), positions, pool,
    )  # fmt: skip
    masks = replace(empty.top_hash, k=7)(features[0:6:2])
    n = len(masks)
    store = replace(empty, masks=masks, labels=((5, 6),) * n, owners=tuple((f"r{i}",) for i in range(n)))
    nearest = float(store.overlaps(inputs[1:6:2]).max()) if len(prompts) > 1 else 0.0
    assert nearest < 1
    store = replace(store, threshold=torch.tensor([(1 + nearest) / 2]))
    return MemoryEdit(name, store, replace(INFO, editor="memoir"))


def memoir_mean(model, prompts, **options):
    return memoir_edit(model, prompts, pool="mean", **options)


MECHANISMS = {"grace": grace_edit, "wise": wise_edit, "memoir": memoir_edit, "memoir, mean": memoir_mean}


# The slow, obvious version: one row, no padding, no cache ----------------------------------------------------


def naive_scores(model, edits, query):
    logits = naive_logits(model, edits, query.prompt_ids, query.label_ids[:-1])
    part = logits[len(query.prompt_ids) - 1 :].log_softmax(-1)
    return [-float(part[i, label]) for i, label in enumerate(query.label_ids)]


# One decision, however the model is run ----------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generation_agrees_however_it_is_batched(architecture, mechanism):
    model, prompts = tiny_model(architecture, torch.float64), prompts_of()
    edit = MECHANISMS[mechanism](model, prompts)
    expected = [naive_answer(model, [edit], prompt) for prompt in prompts]
    plain = [naive_answer(model, [], prompt) for prompt in prompts]
    changed = [a != b for a, b in zip(expected, plain, strict=True)]
    assert any(changed)  # both kinds of rows are in the batch
    assert not all(changed)
    if mechanism != "wise":
        assert changed == [True, False] * 3
    weights = weights_of(model)
    with applied(edit, model):
        assert generated(model, prompts) == expected
        assert generated(model, prompts, use_cache=False) == expected
        assert generated(model, prompts[::-1]) == expected[::-1]
        assert generated(model, prompts[:2]) + generated(model, prompts[2:]) == expected
        assert [generated(model, [prompt])[0] for prompt in prompts] == expected
        wider = generated(model, [*prompts, (0,) * 30])[:-1]  # more padding
        assert wider == expected
    assert generated(model, prompts) == plain
    assert_untouched(model, weights)
    assert not [name for name in vars(model) if "router" in name or name == "generate"]


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_agree_with_generation(architecture, mechanism):
    model, prompts = tiny_model(architecture, torch.float64), prompts_of()
    edit = MECHANISMS[mechanism](model, prompts)
    generator = torch.Generator().manual_seed(5)
    queries = [Query(p, random_ids(generator, 1 + (i + j) % 4)) for i, p in enumerate(prompts) for j in range(2)]
    said = [Query(p, tuple(naive_answer(model, [edit], p))) for p in prompts]
    queries += [*said, Query((9,), (8, 7)), Query((9,), (6,))]  # and a prompt of one token
    expected = [naive_scores(model, [edit], query) for query in queries]
    # Greedy is greedy, but where the end of the sequence, which answers of a fixed length leave out, is likelier.
    likeliest = []
    for query in said:
        logits = naive_logits(model, [edit], query.prompt_ids, query.label_ids[:-1])[len(query.prompt_ids) - 1 :]
        likeliest.append([int(row.argmax()) == label for row, label in zip(logits, query.label_ids, strict=True)])
        assert all(hit or int(row.argmax()) == 1 for hit, row in zip(likeliest[-1], logits, strict=True))
    with applied(edit, model):
        for size in (1, 3, 100):
            found = score_answers(model, queries, batch_size=size)
            for score, right in zip(found, expected, strict=True):
                torch.testing.assert_close(score.token_nll, right, atol=1e-5, rtol=0)  # scores are float32
            greedy = found[2 * len(prompts) : 3 * len(prompts)]
            assert [list(score.hits) for score in greedy] == likeliest


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_plain_passes_are_told_or_take_the_last_token(architecture, mechanism, side):
    model, prompts = tiny_model(architecture, torch.float64), prompts_of()
    edit = MECHANISMS[mechanism](model, prompts)
    answers = [naive_answer(model, [edit], prompt, n=1 + i % 3) for i, prompt in enumerate(prompts)]
    rows = [(*prompt, *answer) for prompt, answer in zip(prompts, answers, strict=True)]

    def compare(logits, mask, rows, prompts):
        for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            own = logits[i][mask[i].bool()]
            right = naive_logits(model, [edit], prompt, row[len(prompt) :])
            torch.testing.assert_close(own, right, **EXACT)

    with applied(edit, model):
        ids, mask = pad(rows, side, model.device)
        with prompt_lengths([len(prompt) for prompt in prompts]):
            told = model(input_ids=ids, attention_mask=mask, **positions(model, mask)).logits
        ids, some = pad(prompts, side, model.device)
        untold = model(ids, attention_mask=some, **positions(model, some)).logits  # ids by position, as some callers do
    compare(told, mask, rows, prompts)
    compare(untold, some, prompts, prompts)


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_a_cache_keeps_the_decisions_of_its_rows(architecture, mechanism):
    model, prompts = tiny_model(architecture, torch.float64), prompts_of()
    edit = MECHANISMS[mechanism](model, prompts)
    order = torch.tensor([3, 0, 0, 2, 5, 4, 1])
    twice = torch.arange(6).repeat_interleave(2)
    tails = random_ids(torch.Generator().manual_seed(6), 3)
    ids, mask = pad(prompts, "left", model.device)
    for indices, move in (
        (order, lambda cache: cache.batch_select_indices(order)),
        (order, lambda cache: cache.reorder_cache(order)),
        (twice, lambda cache: cache.batch_repeat_interleave(2)),
    ):
        with applied(edit, model):
            output = model(input_ids=ids, attention_mask=mask, use_cache=True, **positions(model, mask))
            cache = copy.deepcopy(output.past_key_values)
            move(cache)
            rows_mask = torch.cat([mask[indices], torch.ones(len(indices), 3, dtype=torch.long)], dim=1)
            more = torch.tensor([tails] * len(indices))
            found = model(
                input_ids=more, attention_mask=rows_mask, past_key_values=cache, **positions(model, rows_mask, last=3)
            ).logits
            step = model(  # the original goes on by itself
                input_ids=more[:6, :1],
                attention_mask=rows_mask.new_ones(6, 1 + ids.shape[1]).mul_(torch.cat([mask, mask[:, -1:]], dim=1)),
                past_key_values=output.past_key_values,
                **positions(model, torch.cat([mask, mask[:, -1:]], dim=1), last=1),
            ).logits
        for row, i in enumerate(indices.tolist()):
            right = naive_logits(model, [edit], prompts[i], tails)[-3:]
            torch.testing.assert_close(found[row], right, **EXACT)
        for i in range(6):
            right = naive_logits(model, [edit], prompts[i], tails[:1])[-1]
            torch.testing.assert_close(step[i, 0], right, **EXACT)


def test_a_prompt_may_come_in_pieces():
    model, prompts = tiny_model("llama", torch.float64), prompts_of()
    for mechanism in MECHANISMS.values():
        edit = mechanism(model, prompts)
        expected = [naive_answer(model, [edit], prompt) for prompt in prompts]
        with applied(edit, model):
            assert generated(model, prompts, prefill_chunk_size=4) == expected
            ids = torch.tensor([prompts[3]])
            with prompt_lengths([len(prompts[3])]):  # an opening: its end is not the prompt's
                clean = model(input_ids=ids[:, :5], use_cache=True).past_key_values
            again = model.generate(
                input_ids=ids, past_key_values=clean, max_new_tokens=N_NEW, do_sample=False, pad_token_id=1
            )
        assert again[0, ids.shape[1] :].tolist() == expected[3]


def test_the_decision_does_not_flip_while_decoding():
    """Keys of continuations are in the codebook too, so that a query at every token would find others."""
    model, prompts = tiny_model("llama", torch.float64), prompts_of()
    edit = grace_edit(model, prompts)
    book = edit.store
    silent = naive_answer(model, [], prompts[1])
    inside = read_inputs(model, edit.module, [(*prompts[1], *silent[:2])])[0][-1]  # met while decoding
    book = replace(
        book,
        keys=torch.cat([book.keys, inside[None]]),
        radii=torch.cat([book.radii, book.radii[:1]]),
        value_of=torch.tensor([0, 1, 0, 1]),
        owners=(*book.owners, ("r3",)),
    )
    edit = replace(edit, store=book)
    held = [naive_answer(model, [edit], prompts[i]) for i in (0, 1)]
    flipping = [naive_answer(model, [edit], prompts[i], per_token=True) for i in (0, 1)]
    assert held[0] != flipping[0]  # an answered row would fall silent
    assert held[1] != flipping[1]  # a silent row would be answered
    assert held[1] == silent
    with applied(edit, model):
        assert generated(model, prompts[:2]) == held
        assert generated(model, prompts[:2], use_cache=False) == held
        found = score_answers(model, [Query(prompts[i], tuple(said)) for i, said in enumerate(held)])
        assert all(all(score.hits) for score in found)


@pytest.mark.parametrize("positions", ["last", "prompt", "all"])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_other_positions_agree_too(mechanism, positions):
    model, prompts = tiny_model("qwen2", torch.float64), prompts_of()
    edit = MECHANISMS[mechanism](model, prompts, positions=positions)
    expected = [naive_answer(model, [edit], prompt) for prompt in prompts]
    assert expected != [naive_answer(model, [], prompt) for prompt in prompts]
    queries = [Query(p, tuple(said)) for p, said in zip(prompts, expected, strict=True)]
    right = [naive_scores(model, [edit], query) for query in queries]
    with applied(edit, model):
        assert generated(model, prompts) == expected
        assert generated(model, prompts, use_cache=False) == expected
        for score, nll in zip(score_answers(model, queries, batch_size=4), right, strict=True):
            torch.testing.assert_close(score.token_nll, nll, atol=1e-5, rtol=0)
        if positions != "last":
            with pytest.raises(UserError, match="must be run in one pass"):
                generated(model, prompts, prefill_chunk_size=4)


def test_sampling_and_beams_use_their_own_rows():
    model, prompts = tiny_model("llama", torch.float64), prompts_of()
    edit = grace_edit(model, prompts)
    with applied(edit, model):
        beams = generated(model, prompts, num_beams=3, num_return_sequences=3, max_new_tokens=4, min_new_tokens=4)
        torch.manual_seed(0)
        generated(model, prompts, do_sample=True, num_return_sequences=2)
    for i, prompt in enumerate(prompts):  # every beam's probability is that of the slow version
        ranked = [-sum(naive_scores(model, [edit], Query(prompt, tuple(said)))) for said in beams[3 * i : 3 * i + 3]]
        assert ranked == sorted(ranked, reverse=True)
        alone = generated_with(model, edit, prompt)
        assert beams[3 * i : 3 * i + 3] == alone


def generated_with(model, edit, prompt):
    with applied(edit, model):
        return generated(model, [prompt], num_beams=3, num_return_sequences=3, max_new_tokens=4, min_new_tokens=4)


def test_low_precision_models_decide_in_float32():
    model, prompts = tiny_model("llama", torch.bfloat16), prompts_of()
    edit = grace_edit(model, prompts, radius=0.5)  # bfloat16 has two to three digits, and keys are of size 4
    with applied(edit, model):
        batch, alone = generated(model, prompts), [generated(model, [prompt])[0] for prompt in prompts]
    routes = edit.routes(model, prompts)
    assert [route.answers for route in routes] == [True, False] * 3
    plain = generated(model, prompts)
    assert all((a != b) == route.answers for a, b, route in zip(batch, plain, routes, strict=True))
    assert alone[0][:1] == batch[0][:1]


# Together with other edits, and out again ----------------------------------------------------------------------


def low_rank(model, layer):
    parts = anatomy(model)
    generator = torch.Generator().manual_seed(8)
    u = torch.randn(parts.d_model, 2, generator=generator, dtype=model.dtype)
    v = torch.randn(2, parts.d_mlp, generator=generator, dtype=model.dtype)
    return LowRankEdit({parts.projection_name(layer): (u, v)}, replace(INFO, editor="memit"), parts.transposed)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("layer", [1, LAYER])
def test_memories_stack_on_changed_weights(architecture, layer):
    model, prompts = tiny_model(architecture, torch.float64), prompts_of()
    weights = weights_of(model)
    with applied(low_rank(model, layer), model):
        edit = grace_edit(model, prompts)
        expected = [naive_answer(model, [edit], prompt) for prompt in prompts]
        with applied(edit, model):
            assert generated(model, prompts) == expected
    assert_untouched(model, weights)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_memories_at_different_layers(order):
    model, prompts = tiny_model("llama", torch.float64), prompts_of()
    weights = weights_of(model)
    lower = wise_edit(model, prompts, layer=1)
    with applied(lower, model):  # the upper one was made on the model with the lower one
        upper = grace_edit(model, prompts[2:], layer=3)
    both = [naive_answer(model, [lower, upper], prompt) for prompt in prompts]
    left = (upper, lower)[order[0]]
    one = [naive_answer(model, [left], prompt) for prompt in prompts]
    handles = [lower.apply(model), upper.apply(model)]
    assert generated(model, prompts) == both
    assert generated(model, prompts, use_cache=False) == both
    handles[order[0]].restore()
    handles[order[0]].restore()  # harmless
    assert generated(model, prompts) == one
    handles[order[1]].restore()
    assert_untouched(model, weights)


def test_one_module_takes_one_memory():
    model, prompts = tiny_model("llama", torch.float64), prompts_of()
    with (
        applied(grace_edit(model, prompts), model),
        pytest.raises(UserError, match=f"memory edit at model.layers.{LAYER}.mlp.down_proj already"),
    ):
        wise_edit(model, prompts).apply(model)


def test_generate_of_the_model_s_own_is_put_back():
    model, prompts = tiny_model("llama", torch.float64), prompts_of()
    own = model.generate
    model.generate = own  # someone has wrapped it before
    with applied(grace_edit(model, prompts), model):
        assert model.__dict__["generate"] is not own
    assert model.__dict__["generate"] is own


# The folder ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mechanism", "mode"), [*((name, None) for name in MECHANISMS), ("wise", "merge")])
def test_saved_and_loaded(tmp_path, mechanism, mode):
    model, prompts = tiny_model("gpt2"), prompts_of()
    options = {"mode": mode} if mode else {}
    edit = MECHANISMS[mechanism](model, prompts, **options)
    info = replace(edit.info, base=describe_base(model, "tiny"), seed=3)
    edit = replace(edit, info=info, texts={"targets.jsonl": '{"id": "a"}\n'})
    loaded = load_edit(edit.save(tmp_path / "edit"))
    assert isinstance(loaded, MemoryEdit)
    assert (loaded.module, loaded.info, loaded.texts) == (edit.module, edit.info, edit.texts)
    assert loaded.store.settings() == edit.store.settings()
    for name, tensor in edit.store.tensors().items():
        assert torch.equal(loaded.store.tensors()[name], tensor), name
    assert loaded.routes(model, prompts) == edit.routes(model, prompts)
    with applied(edit, model):
        expected = generated(model, prompts)
    with applied(loaded, model):
        assert generated(model, prompts) == expected
    again = load_edit(loaded.save(tmp_path / "again"))
    assert (tmp_path / "again" / "memory.safetensors").read_bytes() == (
        tmp_path / "edit" / "memory.safetensors"
    ).read_bytes()
    assert again.info == edit.info
    (tmp_path / "edit" / "memory.json").write_text("{}")
    with pytest.raises(UserError, match="not as it was written"):
        load_edit(tmp_path / "edit")


@pytest.mark.parametrize(
    "change",
    [
        {"mechanism": "melo"},
        {"positions": "nowhere"},
        {"owners": [["r0"]]},
        {"labels": []},
        {"module": None, "mechanism": None},
    ],
)
def test_damaged_settings_are_refused(tmp_path, change):
    model, prompts = tiny_model("llama"), prompts_of()
    folder = grace_edit(model, prompts).save(tmp_path / "edit")
    settings = json.loads((folder / "memory.json").read_text()) | change
    (folder / "memory.json").write_text(json.dumps(settings))
    description = json.loads((folder / "edit.json").read_text())
    from unlearn_eval.utils.provenance import sha256_of_file

    description["files"]["memory.json"] = sha256_of_file(folder / "memory.json")
    (folder / "edit.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="memory.json is damaged"):
        load_edit(folder)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("permutation", lambda tensor: torch.zeros_like(tensor)),
        ("background", lambda tensor: tensor[:-1]),
        ("masks", lambda tensor: tensor[:-1]),
        ("masks", lambda tensor: tensor * torch.tensor([[0], [1], [1]], dtype=torch.uint8)),
    ],
)
def test_damaged_masks_are_refused(name, change):
    model, prompts = tiny_model("llama"), prompts_of()
    store = memoir_edit(model, prompts).store
    tensors = store.tensors() | {name: change(store.tensors()[name])}
    with pytest.raises(ValueError, match="mask|permutation"):
        read_residual_memory(store.settings(), tensors)


@pytest.mark.parametrize("d", [1, 7, 8, 9, 40])
def test_masks_as_bytes(d):
    masks = torch.rand(5, d, generator=torch.Generator().manual_seed(d)) < 0.4
    assert packed(masks).shape == (5, -(-d // 8))
    assert torch.equal(unpacked(packed(masks), d), masks)
    assert packed(torch.tensor([[True, False, True]])).tolist() == [[5]]


def test_an_empty_codebook_changes_nothing():
    model, prompts = tiny_model("llama", torch.float64), prompts_of()
    book = Codebook(torch.zeros(0, 24), torch.zeros(0, WIDTH), torch.zeros(0), torch.zeros(0).long(), (), ())
    edit = MemoryEdit(f"model.layers.{LAYER}.mlp.down_proj", book, INFO)
    plain = generated(model, prompts)
    with applied(edit, model):
        assert generated(model, prompts) == plain
    assert [route.answers for route in edit.routes(model, prompts)] == [False] * 6


# What is refused -----------------------------------------------------------------------------------------------


def test_models_that_do_not_fit_are_refused(monkeypatch):
    model, prompts = tiny_model("llama"), prompts_of()
    edit = grace_edit(model, prompts)
    with pytest.raises(UserError, match=r"model.layers.9.* does not have"):
        replace(edit, module="model.layers.9.mlp.down_proj").apply(model)
    with pytest.raises(UserError, match="fits a module of 16×24, and model.layers.2.mlp.up_proj is 24×16"):
        replace(edit, module="model.layers.2.mlp.up_proj").apply(model)
    monkeypatch.setattr(memory_edits, "free_bytes", lambda device: 100)
    with pytest.raises(UserError, match="the 3 memories of this edit need .* are free"):
        edit.apply(model)
    assert not model._forward_hooks


def test_what_would_break_the_rule_is_refused():
    model, prompts = tiny_model("llama", torch.float64), prompts_of()
    edit = grace_edit(model, prompts)
    ids = torch.tensor([prompts[0]])
    unedited = model(input_ids=ids, use_cache=True).past_key_values
    with applied(edit, model):
        with pytest.raises(UserError, match="filled without the memory edit"):
            model(input_ids=ids[:, :1], past_key_values=unedited)
        with pytest.raises(UserError, match="called alone"):
            model.model(input_ids=ids)
        answered = model(input_ids=ids, use_cache=True).past_key_values
        with pytest.raises(UserError, match="cannot go on from the cache of an edited answer"):
            model.generate(input_ids=torch.tensor([[*prompts[0], 5, 6, 7]]), past_key_values=answered, max_new_tokens=2)
        with pytest.raises(UserError, match="2 prompt lengths were given for a batch of 1"), prompt_lengths([2, 3]):
            model(input_ids=ids)
        with pytest.raises(UserError, match="needs at least one token"), prompt_lengths([0]):
            pass
        four = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        with pytest.raises(UserError, match="cannot tell padding from tokens"):
            model(input_ids=ids, attention_mask=four)
        with pytest.raises(UserError, match="needs input_ids"):
            model()
    assert model.model(input_ids=ids).last_hidden_state.shape[1] == ids.shape[1]


def test_an_error_within_a_pass_leaves_nothing_behind():
    model, prompts = tiny_model("llama", torch.float64), prompts_of()
    weights = weights_of(model)
    edit = grace_edit(model, prompts)
    expected = [naive_answer(model, [], prompts[1])]
    with applied(edit, model):
        with pytest.raises(IndexError):
            model(input_ids=torch.tensor([[VOCABULARY + 5]]))
        assert generated(model, prompts[1:2]) == expected
    assert_untouched(model, weights)
    assert LAYERS == 4
