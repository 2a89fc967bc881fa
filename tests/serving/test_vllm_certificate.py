"""A server starts for an edit whose certificate passes, and for no other (`serve --require-certificate`)."""

import pytest
from vllm_engines import complete, edits_and_answers, engine_settings, run, serve_command, serving  # noqa: F401

from unlearn_eval.edits.places import DESCRIPTION
from unlearn_eval.results.certificate import certificate_of, write_certificate
from unlearn_eval.runs.forget.policy import Policy
from unlearn_eval.runs.forget.verify import revoke_certificate
from unlearn_eval.utils.provenance import hash_json, sha256_of_file

pytestmark = pytest.mark.vllm
BOUND = {"require": "asked:forget_accuracy<=0", "side": "left", "words": "right answers", "because": "a test"}
NUMBERS = {"value": 0.0, "low": 0.0, "high": 0.5, "n": 4, "before": 1.0, "bound": 0.0, "holds": True, "reason": ""}


def certify(folder, passes):
    """A certificate of an edit, in its folder."""
    policy = Policy.model_validate(
        {"name": "tiny", "description": "for tests", "measurements": [{"name": "asked"}], "bounds": [BOUND]}
    ).model_dump()
    digest = sha256_of_file(folder / DESCRIPTION)
    sentence = f"{'Passes' if passes else 'Does not pass'} the policy tiny."
    content = {
        "schema_version": 1,
        "kind": "unlearn_eval certificate",
        "created": "2026-11-30T00:00:00+00:00",
        "verdict": {
            "outcome": "passes" if passes else "fails",
            "sentence": sentence,
            "failures": [],
            "unmeasured": [],
        },
        "request": {"name": "ada.jsonl", "hash": "0" * 64, "redacted": False, "items": []},
        "model": {"id": "tiny"},
        "edit": {"sha256": digest, "editor": "memit", "kind": "low_rank"},
        "policy": policy,
        "rows": [BOUND | NUMBERS | ({} if passes else {"value": 0.5, "holds": False})],
        "forms": [],
        "trials": [],
        "not_tried": [],
        "cautions": [],
        "hashes": {"edit": digest, "policy": hash_json(policy)},
        "earlier": [],
        "environment": {},
        "budget": {},
    }
    return write_certificate(certificate_of(content), folder)


@pytest.mark.smoke
def test_a_server_starts_for_a_certificate_that_passes(edits, tmp_path):
    _, folder, prompts, plain, edited = edits("llama", "low_rank")
    certificate = certify(folder, passes=True)
    command = serve_command(folder, "--max-num-seqs", "6")
    command.insert(command.index("--"), "--require-certificate")
    i = next(i for i, (a, b) in enumerate(zip(plain, edited, strict=True)) if a != b)
    with serving(command, tmp_path / "log") as port:
        assert complete(port, prompts[i]) == edited[i]
    assert "Passes the policy tiny." in (tmp_path / "log").read_text()
    revoke_certificate(str(certificate), "the person asked again")
    refused(folder, "it was revoked: the person asked again")


def test_no_server_starts_without_one_that_passes(edits):
    _, folder, *_ = edits("qwen2", "low_rank", size=0.2)
    refused(folder, "has no certificate")
    certify(folder, passes=False)
    refused(folder, "Does not pass the policy tiny.")


def refused(folder, why):
    done = run("serve", folder, "--require-certificate")
    assert done.returncode == 1, done.stderr[-2000:]
    assert why in " ".join(done.stderr.split())
    assert "/v1 serves" not in done.stderr
