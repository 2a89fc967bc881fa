"""Certificates: what somebody asked to be forgotten, what was done, what is left, and what it cost; as strict JSON.

A certificate is hashed and signed in its canonical form: keys sorted, no spaces, UTF-8, without the signature.
Ed25519 is `cryptography`'s. A hash says that nothing was changed, a signature by whom it was made. Neither says that it
is true: for that it is measured again (`unlearn-eval verify`).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import dumps, parse, read_text, write_all
from unlearn_eval.utils.provenance import hash_json
from unlearn_eval.utils.schemas import Count, Digest, Number, OpenTable, PlainName, Table, validated

SCHEMA_VERSION = 1
KIND = "unlearn_eval certificate"
CERTIFICATE, REVOKED = "certificate.json", "certificate.revoked.json"
PASSES, FAILS, NOTHING_KNOWN = "passes", "fails", "nothing known"
_HINT = "it was changed or cut off: restore it, or make it again with `unlearn-eval forget`"
_SIGNER = "pip install 'unlearn-eval[sign]'"
Value = Number | None


class Verdict(Table):
    """What comes of it.

    Attributes:
        outcome: whether the policy is passed, or there was nothing to forget.
        sentence: the same in plain words.
        failures: what does not hold.
        unmeasured: what the policy asks for and could not be measured.
    """

    outcome: Literal["passes", "fails", "nothing known"]
    sentence: str
    failures: list[str]
    unmeasured: list[str]


class Item(Table):
    """One question of the request.

    Attributes:
        id, question, answer, subject: of a redacted certificate keyed hashes and initials.
        source: `given`, or made from the `model` or a `text`.
        known: whether the model knew it before; what it did not know was not edited.
        before, after: share of its wordings that give the answer away, by form; `samples` is that of sampled answers.
    """

    id: str
    question: str
    answer: str
    subject: str | None
    source: str
    known: bool
    before: dict[str, Value]
    after: dict[str, Value]


class Row(Table):
    """One bound of the policy, and how it stands.

    Attributes:
        require, side, words, because: as the policy has them.
        value, low, high, n: the metric, its 95 % interval, and the items behind it.
        before: the metric before the edit.
        bound: the number that it is held against.
        holds: whether it holds; None where it could not be measured and need not be.
        reason: why there is no value.
    """

    require: str
    side: Literal["left", "price"]
    words: str
    because: str
    value: Value
    low: Value
    high: Value
    n: Count | None
    before: Value
    bound: Value
    holds: bool | None
    reason: str


class Form(Table):
    """One way of asking: the share that gave the answer away before, and that which is left, with its interval."""

    form: str
    before: Value
    value: Value
    low: Value
    high: Value
    n: Count | None
    reason: str


class Trial(Table):
    """One edit that was tried: what it was, how far it came, what it failed, and what it took."""

    number: Count
    editor: str
    setting: str
    measured: list[str]
    failures: list[str]
    seconds: Number
    chosen: bool


class CertifiedEdit(OpenTable):
    """The edit that the numbers are of; its `edit.json` has the hashes of its other files."""

    sha256: Digest
    editor: str
    kind: str


class Earlier(Table):
    """An earlier certificate that this edit was made on top of, and whether its policy still holds."""

    sha256: Digest
    policy: str
    outcome: str
    failures: list[str]


class Signature(Table):
    """A signature of the canonical form; both texts are base64."""

    algorithm: Literal["ed25519"]
    public_key: str
    value: str


class Requested(Table):
    """The request: its questions, their hash (keyed, of a redacted certificate), and the file that they are in."""

    name: str
    hash: Digest
    redacted: bool
    items: list[Item]


class Certificate(Table):
    """`certificate.json`.

    Attributes:
        policy: the whole of it, so that it can be measured again.
        rows: its bounds.
        forms: what is left in each way of asking.
        trials: everything that was tried.
        not_tried: methods and kinds of attack that were not, with the reason.
        cautions: what these numbers do not say.
        hashes: of base, edit, questions, what was retained, policy and code.
        earlier: certificates of edits that this one goes on from.
        environment: packages and machine.
        budget: seconds that were allowed, and that were spent.
    """

    schema_version: Literal[1]
    kind: Literal["unlearn_eval certificate"]
    created: str
    verdict: Verdict
    request: Requested
    model: dict[str, Any]
    edit: CertifiedEdit | None
    policy: dict[str, Any]
    rows: list[Row]
    forms: list[Form]
    trials: list[Trial]
    not_tried: list[str]
    cautions: list[str]
    hashes: dict[PlainName, Digest | None]
    earlier: list[Earlier]
    environment: dict[str, Any]
    budget: dict[str, Number]
    signature: Signature | None = None

    @property
    def passes(self) -> bool:
        """Whether the policy is passed, by this and by earlier requests."""
        return self.verdict.outcome == PASSES

    @property
    def is_signed(self) -> bool:
        """Whether somebody has signed it."""
        return self.signature is not None

    @property
    def sha256(self) -> str:
        """Of the canonical form."""
        return hash_json(_unsigned(self.model_dump()))


def certificate_of(content: Mapping[str, Any], where: str | Path = "the certificate") -> Certificate:
    """The certificate that plain values are; raises `UserError` if something does not fit."""
    return validated(Certificate, dict(content), where, "is no sound certificate", _HINT)


def certificate_path(place: str | Path) -> Path:
    """The certificate at a place: the file, or that of a folder."""
    path = Path(place).expanduser()
    return path / CERTIFICATE if path.is_dir() else path


def read_certificate(place: str | Path) -> Certificate:
    """The certificate in a file, or in a folder that `forget` wrote.

    Raises:
        UserError: it is missing, not JSON, or something in it does not fit.
    """
    path = certificate_path(place)
    return certificate_of(parse(read_text(path, "certificate"), path, _HINT), path)


def write_certificate(certificate: Certificate, folder: Path) -> Path:
    """Write `certificate.json`, its keys sorted; whole or not at all."""
    write_all({CERTIFICATE: as_text(certificate.model_dump())}, folder)
    return folder / CERTIFICATE


def as_text(content: Mapping[str, Any]) -> str:
    """Plain values as the text of a file, with sorted keys."""
    return dumps(json.loads(json.dumps(content, sort_keys=True, allow_nan=False)), indent=2) + "\n"


# Signatures ------------------------------------------------------------------------------------------------


def canonical(content: Mapping[str, Any]) -> bytes:
    """What is signed: sorted keys, no spaces, UTF-8, without the signature."""
    text = json.dumps(_unsigned(content), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def _unsigned(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != "signature"}


def signature_of(content: Mapping[str, Any], key_file: str | Path) -> dict[str, str]:
    """The Ed25519 signature of plain values by the private key in a PEM file.

    Raises:
        UserError: `cryptography` is not installed, or the file holds no such key.
    """
    key = _key(key_file, "private")
    public = key.public_key().public_bytes_raw()
    value = key.sign(canonical(content))
    return {"algorithm": "ed25519", "public_key": _text(public), "value": _text(value)}


def check_signature(content: Mapping[str, Any], key_file: str | Path | None = None) -> str | None:
    """What is wrong with the signature of plain values, or None.

    Args:
        content: with its `signature`.
        key_file: PEM file of the public key that must have signed; None takes any signer's.

    Raises:
        UserError: `cryptography` is not installed, or the file holds no such key.
    """
    from_key = None if key_file is None else _key(key_file, "public").public_bytes_raw()
    signature = content.get("signature")
    if not signature:
        return None if from_key is None else "it is not signed"
    if from_key is not None and _text(from_key) != signature["public_key"]:
        return "it is signed by another key"
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError as error:
        raise UserError("the certificate is signed, and cryptography is not installed", _SIGNER) from error
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(signature["public_key"], validate=True))
        key.verify(base64.b64decode(signature["value"], validate=True), canonical(content))
    except (InvalidSignature, ValueError):
        return "its signature does not fit what it says"
    return None


def _key(file: str | Path, kind: str) -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
        from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
    except ImportError as error:
        raise UserError("keys need cryptography, which is not installed", _SIGNER) from error
    text = read_text(Path(file).expanduser(), "key").encode()
    try:
        key = load_pem_private_key(text, None) if kind == "private" else load_pem_public_key(text)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{file} holds no {kind} key in PEM without a passphrase", "openssl genpkey -algorithm ed25519 makes one"
        ) from error
    wanted = ed25519.Ed25519PrivateKey if kind == "private" else ed25519.Ed25519PublicKey
    if not isinstance(key, wanted):
        raise UserError(f"the key in {file} is not Ed25519", "openssl genpkey -algorithm ed25519 makes one")
    return key


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()
