"""The streamed second moments are the plain sum over all tokens; an interrupted run goes on where it was."""

import json

import pytest
import torch
from tiny_models import (
    ARCHITECTURES,
    MLP,
    assert_untouched,
    one_thread,  # noqa: F401
    random_ids,
    tiny_model,
    tiny_tokenizer,
    weights_of,
    whole_forward,
)

from unlearn_eval.editing.editor import EditJob
from unlearn_eval.editing.locate_then_edit import corpus
from unlearn_eval.editing.locate_then_edit.corpus import Sequences, source_key, token_sequences
from unlearn_eval.editing.locate_then_edit.run import Editing
from unlearn_eval.editing.locate_then_edit.second_moments import SecondMoments, cache_name, second_moments
from unlearn_eval.editing.requests.request import EditRequest
from unlearn_eval.editors.closed_form import memit
from unlearn_eval.models.anatomy import anatomy
from unlearn_eval.models.tracing import trace
from unlearn_eval.utils.errors import UserError

LAYER_CHOICE = (0, 2)


def some_batches(seed=0):
    """Four batches of rows of different lengths; the first two tokens of some rows are no text."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [(9, 3, 14), (5, 5), (1, 12), (7,)]
    return [
        Sequences([list(random_ids(generator, n)) for n in part], [min(2, n - 1) * (i % 2) for i, n in enumerate(part)])
        for part in lengths
    ]


def naive_sums(model, batches):
    """One unpadded row and one token at a time, in float64."""
    parts = anatomy(model)
    names = {layer: parts.projection_name(layer) for layer in LAYER_CHOICE}
    sums = {layer: torch.zeros(MLP, MLP, dtype=torch.float64) for layer in LAYER_CHOICE}
    n = 0
    for batch in batches:
        for row, start in zip(batch.rows, batch.starts, strict=True):
            with trace(model, inputs=list(names.values())) as seen:
                whole_forward(model, row)
            for position in range(start, len(row)):
                n += 1
                for layer, name in names.items():
                    key = seen.inputs[name][0, position].double()
                    sums[layer] += torch.outer(key, key)
    return sums, n


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sums_equal_the_naive_ones(architecture):
    model = tiny_model(architecture)
    before = weights_of(model)
    found = second_moments(model, anatomy(model), LAYER_CHOICE, some_batches(), 10**6)
    expected, n = naive_sums(model, some_batches())
    assert found.n_keys == n == 50
    assert found.n_batches == 4
    for layer in LAYER_CHOICE:  # sums in float32
        torch.testing.assert_close(found.sums[layer].double(), expected[layer], rtol=1e-4, atol=1e-4)
        moment = found.moment(layer)
        ridge = 1e-4 * expected[layer].diagonal().mean() / n
        torch.testing.assert_close(
            moment, expected[layer] / n + ridge * torch.eye(MLP, dtype=torch.float64), rtol=1e-4, atol=1e-5
        )
        torch.linalg.cholesky(moment)  # also with fewer keys than dimensions, thanks to the ridge
    assert_untouched(model, before)


def test_few_keys_can_still_be_factored():
    model = tiny_model("llama")
    found = second_moments(model, anatomy(model), (1,), some_batches()[3:], 10**6)
    assert found.n_keys == 7 < MLP
    torch.linalg.cholesky(found.moment(1))


def test_padding_is_not_counted():
    """One batch or many, with more padding or less: the same keys."""
    model = tiny_model("gpt2")
    parts = anatomy(model)
    rows = [row for batch in some_batches() for row in batch.rows]
    together = second_moments(model, parts, LAYER_CHOICE, [Sequences(rows, [0] * len(rows))], 10**6)
    alone = second_moments(model, parts, LAYER_CHOICE, [Sequences([row], [0]) for row in rows], 10**6)
    assert together.n_keys == alone.n_keys == sum(map(len, rows))
    for layer in LAYER_CHOICE:
        torch.testing.assert_close(together.sums[layer], alone.sums[layer], rtol=1e-4, atol=1e-4)


def test_openings_that_are_no_text_are_not_counted():
    model = tiny_model("llama")
    parts = anatomy(model)
    row = list(range(10, 20))
    whole = second_moments(model, parts, (1,), [Sequences([row], [0])], 10**6)
    opening = second_moments(model, parts, (1,), [Sequences([row[:4]], [0])], 10**6)
    rest = second_moments(model, parts, (1,), [Sequences([row], [4])], 10**6)
    assert (rest.n_keys, opening.n_keys) == (6, 4)
    torch.testing.assert_close(rest.sums[1] + opening.sums[1], whole.sums[1], rtol=1e-4, atol=1e-4)


def test_stops_at_the_number_of_keys():
    model = tiny_model("llama")
    found = second_moments(model, anatomy(model), (0,), some_batches(), 30)
    assert found.n_batches == 2
    assert found.n_keys == 32
    told = []
    second_moments(model, anatomy(model), (0,), some_batches(), 30, progress=lambda *a: told.append(a))
    assert told[-1] == ("second moments", 30, 30)


class Cut(Exception):
    """The machine stops here."""


def cut_after(batches, n):
    yield from batches[:n]
    raise Cut


@pytest.mark.parametrize("done", [0, 1, 3])
def test_an_interrupted_run_goes_on(done, tmp_path):
    model = tiny_model("qwen2")
    parts = anatomy(model)
    paths = {layer: tmp_path / "deep" / f"{layer}.safetensors" for layer in LAYER_CHOICE}
    at_once = second_moments(model, parts, LAYER_CHOICE, some_batches(), 10**6)
    with pytest.raises(Cut):
        second_moments(model, parts, LAYER_CHOICE, cut_after(some_batches(), done), 10**6, paths)
    assert all(path.is_file() == (done > 0) for path in paths.values())
    ran = []
    handle = parts.block(model, 0).register_forward_hook(lambda *a: ran.append(1))
    resumed = second_moments(model, parts, LAYER_CHOICE, some_batches(), 10**6, paths)
    assert len(ran) == 4 - done
    again = second_moments(model, parts, LAYER_CHOICE, some_batches(), at_once.n_keys, paths)
    handle.remove()
    assert len(ran) == 4 - done  # the third time everything is read
    for found in (resumed, again):
        assert (found.n_keys, found.n_batches) == (at_once.n_keys, at_once.n_batches)
        for layer in LAYER_CHOICE:
            assert torch.equal(found.sums[layer], at_once.sums[layer])
    left = {path for path in (tmp_path / "deep").iterdir() if path.suffix != ".lock"}
    assert left == set(paths.values())  # no temporary file


def test_layers_are_kept_apart_and_missing_ones_are_read_together(tmp_path):
    """One method has read layer 1; another, of layers 0 to 3, was stopped before; a third one wants all of them."""
    model = tiny_model("gpt2")
    parts, layers = anatomy(model), (0, 1, 2, 3)
    expected = second_moments(model, parts, layers, some_batches(), 40)
    assert expected.n_batches == 3
    paths = {layer: tmp_path / f"{layer}.safetensors" for layer in layers}
    second_moments(model, parts, (1,), some_batches(), 40, paths)
    with pytest.raises(Cut):
        second_moments(model, parts, (0, 2), cut_after(some_batches(), 2), 40, paths)
    before, ran = {layer: paths[layer].read_bytes() for layer in (0, 1, 2)}, []
    handle = parts.block(model, 0).register_forward_hook(lambda *a: ran.append(1))
    found = second_moments(model, parts, layers, some_batches(), 40, paths)
    handle.remove()
    assert len(ran) == 3  # layer 3 needs every batch, layers 0 and 2 the last of them
    assert [paths[layer].read_bytes() == before[layer] for layer in (0, 1, 2)] == [False, True, False]
    assert (found.n_keys, found.n_batches) == (expected.n_keys, expected.n_batches)
    for layer in layers:
        assert torch.equal(found.sums[layer], expected.sums[layer])
    second_moments(model, parts, (2, 3), cut_after(some_batches(), 0), 40, paths)  # no text is asked for


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "moments.safetensors"
    first = SecondMoments({0: torch.eye(3)}, 5, 1)
    first.save(path)

    def half(tensors, filename, metadata):
        with open(filename, "wb") as stream:
            stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", half)
    with pytest.raises(OSError, match="space"):
        SecondMoments({0: torch.zeros(3, 3)}, 9, 2).save(path)
    kept = SecondMoments.load(path, "cpu")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert torch.equal(kept.sums[0], torch.eye(3))
    assert (kept.n_keys, kept.n_batches) == (5, 1)


def test_cache_name_differs_by_weights_layer_and_text():
    settings = {"text": "self", "n_keys": 10, "seed": 0}
    names = {
        cache_name("a", 1, settings),
        cache_name("b", 1, settings),
        cache_name("a", 12, settings),
        cache_name("a", 1, settings | {"text": "other"}),
        cache_name("a", 1, settings | {"n_keys": 11}),
        cache_name("a", 1, settings | {"seed": 1}),
    }
    assert len(names) == 6
    assert cache_name("a", 1, dict(reversed(settings.items()))) in names
    assert all("/" not in name and name.endswith(".safetensors") for name in names)


def test_a_model_s_moments_are_kept_by_weights_and_by_what_the_text_says(tmp_path, monkeypatch):
    """Another checkpoint, or another text under the same name, is never given these moments."""
    monkeypatch.setenv("UNLEARN_EVAL_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    tokenizer = tiny_tokenizer()

    def moments(seed=0):
        model = tiny_model("llama", seed=seed)
        config = memit.Config((1,), text=str(text), keys_per_dimension=2)
        run = Editing.start("memit", EditJob(model, tokenizer, [], config), memit.DEPTH)
        return run.second_moments().sums[1]

    text.write_text("What is the capital of France? " * 20, encoding="utf-8")
    first = moments()
    assert torch.equal(moments(), first)
    assert len(list((tmp_path / "cache" / "second_moments").glob("*.safetensors"))) == 1
    assert not torch.equal(moments(seed=1), first)
    text.write_text("Who wrote Hamlet? Shakespeare. " * 20, encoding="utf-8")
    assert not torch.equal(moments(), first)
    text.unlink()
    with pytest.raises(UserError, match="does not exist"):
        moments()


def request_of(ids, n_target=2):
    return EditRequest("r", tuple(ids[:-n_target]), 0, tuple(ids[-n_target:]))


def test_half_is_of_what_is_retained_and_half_of_the_text(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_EVAL_CACHE", str(tmp_path / "cache"))
    model, tokenizer, text = tiny_model("llama"), tiny_tokenizer(), tmp_path / "text.txt"
    text.write_text("What is the capital of France? " * 100, encoding="utf-8")
    generator = torch.Generator().manual_seed(3)
    rows = [[1, 2, *random_ids(generator, n)] for n in (9, 12, 7, 14)]

    def moments(retain=()):
        config = memit.Config(LAYER_CHOICE, text=str(text), keys_per_dimension=4)
        job = EditJob(model, tokenizer, [], config, retain=[request_of(row) for row in retain])
        return Editing.start("memit", job, memit.DEPTH).second_moments()

    plain, both, few = moments(), moments(rows), moments(rows[:3])
    own, n = naive_sums(model, [Sequences(rows, [2] * 4)])  # two tokens begin them all, and are no text
    assert n == sum(len(row) - 2 for row in rows)
    for layer in LAYER_CHOICE:
        means = (plain.sums[layer].double() / plain.n_keys, own[layer] / n)
        assert torch.allclose(both.sums[layer].double() / both.n_keys, sum(means) / 2, atol=1e-5)
        assert not torch.allclose(both.sums[layer] / both.n_keys, means[0].float(), atol=1e-2)
        assert not torch.allclose(few.sums[layer], both.sums[layer]), "another set has moments of its own"


# The text itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [True, False])
def test_the_model_s_own_text(chat):
    model = tiny_model("llama")
    tokenizer = tiny_tokenizer() if chat else tiny_tokenizer(chat_template=None)
    state = torch.random.get_rng_state()

    def rows(seed):
        batches = list(token_sequences(corpus.SELF, model, tokenizer, 300, length=50, seed=seed, batch_size=4))
        assert [len(batch.rows) for batch in batches] == [4, 2]
        return [row for batch in batches for row in batch.rows], batches[0].starts[0]

    texts, start = rows(0)
    opening = tokenizer.encode("<s><|start|>user\n", add_special_tokens=False) if chat else [0]
    assert all(row[: len(opening)] == opening for row in texts)
    assert start == len(opening)
    assert all(len(row) - start == 50 for row in texts)
    assert len({tuple(row) for row in texts}) == 6
    assert rows(0)[0] == texts
    assert rows(1)[0] != texts
    assert torch.equal(torch.random.get_rng_state(), state)  # nobody else's randomness moves


def test_text_files(tmp_path):
    tokenizer = tiny_tokenizer()
    path = tmp_path / "text.txt"
    path.write_text("Who wrote Hamlet? " * 30, encoding="utf-8")
    batches = list(token_sequences(str(path), None, tokenizer, 100, length=30, batch_size=2))
    ids = [token for batch in batches for row in batch.rows for token in row]
    assert ids == tokenizer.encode("Who wrote Hamlet? " * 30)[:100]
    assert [list(map(len, batch.rows)) for batch in batches] == [[30, 30], [30, 10]]
    path.write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="holds no text"):
        list(token_sequences(str(path), None, tokenizer, 100))
    for missing in ("no.txt", "no.jsonl"):
        with pytest.raises(UserError):
            list(token_sequences(str(tmp_path / missing), None, tokenizer, 100))
        with pytest.raises(UserError, match="does not exist"):
            source_key(str(tmp_path / missing))


def test_conversations(tmp_path):
    tokenizer = tiny_tokenizer()
    path = tmp_path / "talk.jsonl"
    path.write_text(
        '{"question": "Who wrote Hamlet?", "answer": "Shakespeare"}\n{"question": "Where?", "answer": "In France."}\n',
        encoding="utf-8",
    )
    (batch,) = token_sequences(str(path), None, tokenizer, 1000)
    for row, (question, answer) in zip(
        batch.rows, [("Who wrote Hamlet?", "Shakespeare"), ("Where?", "In France.")], strict=True
    ):
        talk = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        whole = list(tokenizer.apply_chat_template(talk)["input_ids"])
        assert whole[: len(row)] == row
        assert tokenizer.convert_ids_to_tokens(row[-1]) == "<|end|>"
    first, second = batch.rows
    start = batch.starts[0]
    assert first[:start] == second[:start]  # the opening that all share is no text
    assert first[start] != second[start]


def dataset_folder(tmp_path, texts):
    folder = tmp_path / "documents"
    folder.mkdir()
    lines = "".join(json.dumps({"title": str(i), "text": text}) + "\n" for i, text in enumerate(texts))
    (folder / "train.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.mark.parametrize("bos", [False, True])
def test_datasets(bos, tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer()
    texts = ["Ada wrote the first program. " * 4, "Bob lives in Oslo.", "", "The third is not needed. " * 50]
    source = f"hub:{dataset_folder(tmp_path, texts)}"
    ids = [tokenizer.encode(text)[1:] for text in texts]
    if not bos:
        encode = corpus.encode_prompt
        monkeypatch.setattr(corpus, "encode_prompt", lambda *a: encode(*a)[1:])
    n_tokens = len(ids[0]) + len(ids[1]) + 20
    batches = list(token_sequences(source, None, tokenizer, n_tokens, length=8, batch_size=3))
    assert all(len(batch.rows) == 3 for batch in batches[:-1])
    assert all(len(row) <= 8 for batch in batches for row in batch.rows)
    text = [row[n:] for batch in batches for row, n in zip(batch.rows, batch.starts, strict=True)]
    assert [token for row in text for token in row] == [*ids[0], *ids[1], *ids[3][:20]]
    assert sum(row[0] == tokenizer.bos_token_id for batch in batches for row in batch.rows) == 3 * bos
    monkeypatch.undo()
    titles = list(token_sequences(f"{source}::title", None, tokenizer, 2, length=8))
    assert titles[0].rows == [tokenizer.encode("0"), tokenizer.encode("1")]  # with a BOS each, which does not count
    assert source_key(source).startswith(source)


@pytest.mark.parametrize(
    ("source", "match"),
    [("hub:", "names no dataset"), ("hub:a:b:c:d", "names no dataset"), ("hub:{}/nowhere", "cannot be loaded")],
)
def test_wrong_datasets(source, match, tmp_path):
    folder = dataset_folder(tmp_path, ["One."])
    with pytest.raises(UserError, match=match):
        list(token_sequences(source.format(folder), None, tiny_tokenizer(), 10))
    with pytest.raises(UserError, match="has no field 'body' .it has title, text"):
        list(token_sequences(f"hub:{folder}::body", None, tiny_tokenizer(), 10))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="cannot be loaded"):
        list(token_sequences(f"hub:{empty}", None, tiny_tokenizer(), 10))
