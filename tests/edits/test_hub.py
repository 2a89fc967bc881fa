"""Edits on the hub (a fake one): pushed with a card, read as a folder is, and redacted on request."""

import dataclasses
import json
import re
from inspect import get_annotations, signature

import fake_hub
import huggingface_hub
import pytest
import yaml
from huggingface_hub.hf_api import RepoSibling
from odd_files import EDITS, IDS, sound_edit
from report_data import metric, result
from tiny_models import assert_untouched, one_thread, weights_of  # noqa: F401
from typer.testing import CliRunner

from unlearn_eval.cli import app as cli
from unlearn_eval.data.forget_sets import load_forget_set
from unlearn_eval.editing.editor import check_state
from unlearn_eval.edits.base import MEMORY, applied
from unlearn_eval.edits.description import describe_edit
from unlearn_eval.edits.forgotten import read_forgotten
from unlearn_eval.edits.load import load_edit
from unlearn_eval.edits.places import edit_name, local_folder
from unlearn_eval.edits.redaction import Names
from unlearn_eval.edits.sharing import push_edit
from unlearn_eval.harness.models import EditedLM
from unlearn_eval.harness.plan import EvalPlan
from unlearn_eval.results.files import write_result
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.hub import upload

REPOSITORY = "lab/forgetful"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    return fake_hub.install(tmp_path / "hub", monkeypatch)


@pytest.fixture
def edit(loaded, tmp_path):
    return lambda kind: sound_edit(kind, loaded, tmp_path / kind)


def card_of(hub, repository=REPOSITORY):
    text = hub.files(repository)["README.md"].decode()
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def a_result(folder, edit, **changes):
    """A result of an edit, with 3 of 4 forgotten."""
    values = {"forget_accuracy": metric([0.0, 0.0, 0.0, 1.0], False), "accuracy, France": metric([1.0, 0.0], True)}
    own = dataclasses.replace(result("after", values), edit={**load_edit(edit).info.as_stored(), **changes})
    return write_result(own, folder / "after.json")


def test_the_library_has_what_the_fake_stands_for():
    """The calls with the names of their arguments, and the fields of what they return; an upgrade may change both."""
    for name in ("create_repo", "repo_info", "upload_folder"):
        ours, theirs = (signature(getattr(kind, name)).parameters for kind in (fake_hub.FakeHub, huggingface_hub.HfApi))
        assert ours.keys() <= theirs.keys(), name
    download = signature(huggingface_hub.snapshot_download).parameters
    assert signature(fake_hub.FakeHub.snapshot_download).parameters.keys() - {"self"} <= download.keys()
    for kind in (huggingface_hub.ModelInfo, huggingface_hub.DatasetInfo):
        assert {"private", "sha", "siblings"} <= set(get_annotations(kind))
    assert "rfilename" in get_annotations(RepoSibling)


# Pushing and reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EDITS)
def test_what_is_pushed_is_read_as_it_was(kind, edit, hub, loaded):
    folder = edit(kind)
    own = load_edit(folder)
    address = own.push_to_hub(REPOSITORY, private=True, tokenizer=loaded.tokenizer, model_config=loaded.model.config)
    assert address == f"https://huggingface.co/{REPOSITORY}"
    assert hub.repository(None, REPOSITORY).private
    pushed = hub.files(REPOSITORY)
    there = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {name: pushed[name] for name in there} == there, "bit for bit, hashes and all"
    assert pushed.keys() - there.keys() == {".gitattributes", "README.md"}
    again = load_edit(f"hub:{REPOSITORY}")
    assert again.info.as_stored() == own.info.as_stored()
    before = weights_of(loaded.model)
    with applied(again, loaded.model):
        pass
    assert_untouched(loaded.model, before)


def test_a_revision_is_read_and_the_newest_stays_the_same_within_a_process(edit, hub):
    push_edit(edit("low_rank"), REPOSITORY)
    first = hub.repository(None, REPOSITORY).commits[-1].name
    folder = local_folder(f"hub:{REPOSITORY}")
    push_edit(edit("grace"), REPOSITORY)
    assert "adapter_model.safetensors" not in hub.files(REPOSITORY), "what was there before is replaced"
    assert local_folder(f"hub:{REPOSITORY}") == folder
    assert load_edit(f"hub:{REPOSITORY}@main").kind == MEMORY
    assert load_edit(f"hub:{REPOSITORY}@{first}").kind == "low_rank"
    assert edit_name(f"hub:{REPOSITORY}@refs/pr/1") == "forgetful"


def test_only_the_files_of_the_edit_are_downloaded(edit, hub):
    push_edit(edit("low_rank"), REPOSITORY)
    hub.commit(("model", REPOSITORY), {**hub.files(REPOSITORY), "run_me.py": b"", "weights.bin": b"0" * 99})
    load_edit(f"hub:{REPOSITORY}")
    assert not {"run_me.py", "weights.bin", "README.md"} & set(hub.downloads)


def test_a_changed_file_on_the_hub_is_refused(edit, hub):
    push_edit(edit("low_rank"), REPOSITORY)
    files = hub.files(REPOSITORY)
    changed = bytes([files["adapter_model.safetensors"][-1] ^ 1])
    files["adapter_model.safetensors"] = files["adapter_model.safetensors"][:-1] + changed
    hub.commit(("model", REPOSITORY), files)
    with pytest.raises(UserError, match="is not as it was written"):
        load_edit(f"hub:{REPOSITORY}")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("hub:lab/nothing", "does not exist, or is not yours"),
        (f"hub:{REPOSITORY}@v9", "no such revision"),
        (f"hub:{REPOSITORY}@", "names no revision"),
        ("hub:forgetful", "is not the name of a repository"),
        ("hub:../etc/passwd", "is not the name of a repository"),
        ("hub:lab/a_model", "is not an edit: it has no edit.json"),
    ],
)
def test_what_is_no_edit_on_the_hub_is_said(place, message, edit, hub):
    push_edit(edit("low_rank"), REPOSITORY)
    hub.create_repo("lab/a_model")
    hub.commit(("model", "lab/a_model"), {"model.safetensors": b"0"})
    with pytest.raises(UserError, match=message) as error:
        load_edit(place)
    assert error.value.hint
    assert "model.safetensors" not in hub.downloads


def test_without_a_connection_it_is_said(monkeypatch):
    """Of the real library, which asks nobody while HF_HUB_OFFLINE is set."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot be reached from here, or HF_HUB_OFFLINE is set"):
        load_edit("hub:lab/never-downloaded-by-anyone")
    with pytest.raises(UserError, match="cannot write to lab/new on the hub"):
        upload(None, "lab/new", "model", "edit.json", False, "")


def test_a_place_on_the_hub_stands_wherever_a_folder_does(edit, hub, model, tmp_path, monkeypatch):
    folder = edit("low_rank")
    push_edit(folder, REPOSITORY)
    place = f"hub:{REPOSITORY}"
    assert [len(chosen.forget) for chosen in read_forgotten(place).sets] == [2]
    assert EvalPlan.from_edit(place, "unlearn_facts").metadata == EvalPlan.from_edit(folder, "unlearn_facts").metadata
    assert describe_edit(place)["sha256"] == describe_edit(folder)["sha256"]
    lm = EditedLM(str(model), edit=place, device="cpu", batch_size=1)
    assert (local_folder(place) / "edit.json").samefile(f"{lm.edit_folder}/edit.json")
    monkeypatch.chdir(tmp_path)
    for words in (
        ["inspect", place, "--json"],
        ["export", place, "--merged", "merged", "--model", str(model)],
        ["push", place, "lab/copy"],
    ):
        done = CliRunner().invoke(cli.app, words)
        assert done.exit_code == 0, (done.output, done.exception)
    assert (tmp_path / "merged" / "config.json").is_file()
    assert hub.files("lab/copy")["edit.json"] == hub.files(REPOSITORY)["edit.json"]


def test_the_server_is_named_after_the_repository(edit, hub, model, monkeypatch):
    from unlearn_eval.serving import start

    push_edit(edit("low_rank"), REPOSITORY)
    monkeypatch.setattr(start, "check_vllm", lambda: None)
    command = start.server_command(f"hub:{REPOSITORY}", str(model))
    assert command[command.index("--served-model-name") + 1] == "forgetful"
    assert command[command.index("serve") + 1] == str(local_folder(f"hub:{REPOSITORY}"))


# Repositories that are refused -----------------------------------------------------------------------------


def test_a_repository_of_something_else_is_left_alone(edit, hub):
    hub.create_repo(REPOSITORY)
    hub.commit(("model", REPOSITORY), {"model.safetensors": b"0", "README.md": b"mine"})
    with pytest.raises(UserError, match="holds something else"):
        push_edit(edit("low_rank"), REPOSITORY)
    assert hub.files(REPOSITORY) == {"model.safetensors": b"0", "README.md": b"mine"}


def test_private_is_not_put_into_a_public_repository(edit, hub):
    hub.create_repo(REPOSITORY, private=False)
    with pytest.raises(UserError, match="is public"):
        push_edit(edit("low_rank"), REPOSITORY, private=True)
    assert hub.files(REPOSITORY).keys() == {".gitattributes"}


def test_a_redacted_edit_does_not_follow_one_that_is_not(edit, hub):
    push_edit(edit("low_rank"), REPOSITORY)
    with pytest.raises(UserError, match="its history keeps what is replaced"):
        push_edit(edit("low_rank"), REPOSITORY, redact=True)


def test_a_result_of_another_edit_is_refused(edit, hub, tmp_path):
    folder = edit("low_rank")
    with pytest.raises(UserError, match="is not a result of this edit"):
        push_edit(folder, REPOSITORY, result=a_result(tmp_path, folder, seed=7))
    assert not hub.repositories


# The card --------------------------------------------------------------------------------------------------


def test_the_card_says_what_edit_and_result_say(edit, hub, tmp_path):
    folder = edit("low_rank")
    path = folder / "edit.json"
    push_edit(folder, REPOSITORY, result=a_result(tmp_path, folder))
    head, body = card_of(hub)
    info = json.loads(path.read_text())["info"]
    assert head["library_name"] == "unlearn-eval"
    assert {"machine-unlearning", "memit", "peft"} <= set(head["tags"])
    assert "base_model" not in head, "a folder is no model of the hub"
    assert info["base"]["canonical_hash"] in body
    assert "forget 2 facts" in body
    assert "1 of 2 targets became the most likely answer" in body
    assert "went from 0.100 to 0.900" in body
    # 1 of 4: Wilson's interval, as scipy.stats.binomtest(1, 4).proportion_ci(method="wilson") has it
    assert "| `unlearn_facts` | `forget_accuracy` | 0.25 | 0.0456 to 0.699 | 4 |" in body
    assert f'load_edit("hub:{REPOSITORY}")' in body
    assert "A memory is a filter" not in body


def test_the_base_model_is_linked_if_it_is_of_the_hub(loaded, hub, tmp_path):
    own = load_edit(sound_edit("grace", loaded, tmp_path / "edit"))
    base = {**own.info.base, "id": "lab/tiny", "revision": "abc"}
    dataclasses.replace(own, info=dataclasses.replace(own.info, base=base)).push_to_hub(REPOSITORY)
    head, body = card_of(hub)
    assert head["base_model"] == "lab/tiny"
    assert "[lab/tiny](https://huggingface.co/lab/tiny) at `abc`" in body
    assert "A memory is a filter" in body
    assert "No evaluation is attached" in body
    assert "PeftModel" not in body


@pytest.mark.parametrize("redact", [False, True])
def test_the_card_names_no_fact(redact, edit, hub, tmp_path):
    folder = edit("low_rank")
    settings = {"layers": [1], "note": "about the capital of France"}
    rewrite(folder, config=settings)
    push_edit(folder, REPOSITORY, redact=redact, result=a_result(tmp_path, folder))
    assert not named_in(card_of(hub)[1])
    assert '"note": "redacted"' in card_of(hub)[1]


# Redaction -------------------------------------------------------------------------------------------------


def rewrite(folder, **changes):
    path = folder / "edit.json"
    content = json.loads(path.read_text())
    content["info"] |= changes
    path.write_text(json.dumps(content))


def facts():
    return load_forget_set("facts").select(IDS).items


def named_in(text):
    """The subjects, questions, answers and ids that a text names."""
    words = {text for item in facts() for text in (item.id, item.subject, item.question, item.answer)}
    return {word for word in words if re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE)}


@pytest.mark.parametrize("kind", EDITS)
def test_a_redacted_edit_names_nothing_and_loads(kind, edit, hub, loaded):
    folder = edit(kind)
    info = load_edit(folder).info
    notes = {
        **info.notes,
        "target_loss": {IDS[0]: 0.5, f"{IDS[1]} and 3 more": 0.25},
        "said": ["Paris is the capital of France"],
        "components": {"method": "fact_lookup", "facts": {"skipped": {IDS[0]: "France is in no question"}}},
        "editor_file": {"name": "forget_paris.py", "sha256": "0"},
    }
    requests = {
        **info.requests,
        "ids": IDS,
        "lookup": dict.fromkeys(IDS, "subject"),
        "contexts": ["In France,"],
        "retain_set": "paris.jsonl",
        "system": "You know Berlin.",
        "forget_set_hash": "f" * 64,
    }
    rewrite(folder, notes=notes, requests=requests, config={"layers": [1], "text": "x/france.txt", "kept": "cosine"})
    assert {"France", "Paris"} <= named_in((folder / "edit.json").read_text()), "the control"
    push_edit(folder, REPOSITORY, redact=True)
    files = hub.files(REPOSITORY)
    assert "targets.jsonl" not in files
    for name, content in files.items():
        if name.endswith(("edit.json", ".md", "memory.json", "adapter_config.json", "dense.json")):
            assert not named_in(content.decode()), name
            assert "f" * 64 not in content.decode()
    own, before = load_edit(f"hub:{REPOSITORY}"), load_edit(folder)
    assert own.info.requests.n == 2
    assert own.info.config == {"layers": [1], "text": "redacted", "kept": "cosine"}
    assert own.info.notes["weight_norms"] == info.notes["weight_norms"]
    assert sorted(own.info.notes["target_loss"].values()) == [0.25, 0.5]
    assert own.info.self_check == before.info.self_check
    assert len(set(own.info.requests.ids)) == 2
    assert own.texts == {}
    with applied(before, loaded.model):
        wanted = weights_of(loaded.model)
    with applied(own, loaded.model):
        for name, tensor in weights_of(loaded.model).items():
            assert tensor.equal(wanted[name])
    if kind in ("grace", "wise", "memoir"):
        settings = json.loads(files["memory.json"])
        assert settings.get("prompts", []) == [], "token ids can be decoded"
        assert settings.get("labels") in (None, [[0], [1]])
        assert {name for owners in settings["owners"] for name in owners} == set(own.info.requests.ids)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("The Hobbit", True),
        ("forget_the_hobbit.jsonl", True),
        ("author_of/the_hobbit and 3 more", True),
        ("TOLKIEN!", True),
        ("hobbits of Tolkienshire", False),
        ("12", True),
        ("layer 12", False),
        ("text", False),
    ],
)
def test_names_are_found_however_they_are_spelled(text, named):
    names = Names(frozenset({"author_of/the_hobbit", "12"}), frozenset({"The Hobbit", "Tolkien", "42", "Au"}))
    assert names.names(text) is named


def test_without_the_data_the_ids_still_tell_the_words(edit, hub):
    folder = edit("low_rank")
    requests = {"n": 1, "ids": ["mine/quark"], "sets": [{"name": "gone.jsonl", "hash": None, "ids": ["mine/quark"]}]}
    rewrite(folder, requests=requests, config={"note": "no quark, please"})
    push_edit(folder, REPOSITORY, redact=True)
    assert load_edit(f"hub:{REPOSITORY}").info.config == {"note": "redacted"}


def test_hidden_ids_differ_from_push_to_push(edit, hub):
    """A hash without a key could be found by guessing."""
    folder = edit("low_rank")
    rewrite(folder, requests={"n": 2, "ids": IDS, "sets": [{"name": "facts", "hash": None, "ids": IDS}]})
    for name in ("lab/a", "lab/b"):
        push_edit(folder, name, redact=True)
    first, second = (set(load_edit(f"hub:{name}").info.requests.ids) for name in ("lab/a", "lab/b"))
    assert not first & second


def test_a_redacted_edit_says_that_it_does_not_say(edit, hub):
    push_edit(edit("low_rank"), REPOSITORY, redact=True)
    assert "does not say what was forgotten" in EvalPlan.from_edit(f"hub:{REPOSITORY}", "unlearn_facts").reason
    with pytest.raises(UserError, match="the edit to go on from is redacted"):
        check_state(load_edit(f"hub:{REPOSITORY}"), "memit")


# The command -----------------------------------------------------------------------------------------------


def test_the_command_pushes_as_it_is_told(edit, hub, tmp_path):
    folder = edit("low_rank")
    path = a_result(tmp_path, folder)
    words = ["push", str(folder), REPOSITORY, "--private", "--redact", "--result", str(path)]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip().endswith(f"https://huggingface.co/{REPOSITORY}")
    assert hub.repository(None, REPOSITORY).private
    assert "0.0456 to 0.699" in card_of(hub)[1]
    assert load_edit(f"hub:{REPOSITORY}").info.notes["redacted"] is True
