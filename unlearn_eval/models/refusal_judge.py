"""From answers to refusal alignment: embeds the texts, loads references and calibration, asks `metrics.alignment`.

Where the encoder cannot be loaded, everything that reads words is still there, and the rest is None with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unlearn_eval.metrics.alignment import (
    CONTRAST,
    FEATURES,
    KINDS,
    NEAREST,
    Alignment,
    Calibration,
    Question,
    judge,
    split_vectors,
    texts_of,
)
from unlearn_eval.metrics.languages import ENGLISH
from unlearn_eval.models.embedding import Encoder, load_encoder
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import parse, read_jsonl, read_text
from unlearn_eval.utils.provenance import hash_json

if TYPE_CHECKING:
    from unlearn_eval.models.load import LoadedModel

FOLDER = Path(__file__).parents[1] / "tasks" / "refusal"
REFERENCES_FILE = FOLDER / "references.jsonl"
CALIBRATION_FILE = FOLDER / "calibration.json"
MULTILINGUAL_FILE = FOLDER / "calibration_multilingual.json"
OWN_FILE = "refusal_calibration.json"  # in the folder of a user's encoder
ANSWERS_AT_ONCE = 256
NOT_CALIBRATED = "not calibrated for this encoder: a logistic curve through references and contrast, for English only"


@dataclass(frozen=True)
class References:
    """The frozen texts that answers are compared with.

    Attributes:
        refusals: of the three kinds.
        contrast: texts that refuse nothing.
        hash: of all of them.
    """

    refusals: tuple[str, ...]
    contrast: tuple[str, ...]
    hash: str


@dataclass
class Judge:
    """Judges answers; made by `load_judge`.

    Attributes:
        encoder: None if it could not be loaded.
        calibration: None without encoder.
        references: (R, d), None without encoder.
        contrast: (C, d), None without encoder.
        missing: why there is no encoder.
        note: what a reader of the numbers must know.
    """

    encoder: Encoder | None
    calibration: Calibration | None = None
    references: npt.NDArray[np.float32] | None = None
    contrast: npt.NDArray[np.float32] | None = None
    missing: str = ""
    note: str = ""

    def __call__(
        self,
        answers: Sequence[tuple[str, Question]],
        nlls: Sequence[float | None] | None = None,
        nll_cut: float | None = None,
    ) -> Iterator[Alignment]:
        """The alignment of each answer, in order, a few hundred at a time: memory does not grow with their number.

        Args:
            answers: what was said, and what was asked.
            nlls: of each answer under the unedited model, per token, where the run has them.
            nll_cut: above it an answer is no text.
        """
        given = list(nlls) if nlls is not None else [None] * len(answers)
        if len(given) != len(answers):
            raise UserError(f"{len(given)} likelihoods for {len(answers)} answers", "give one for each, or None")
        for start in range(0, len(answers), ANSWERS_AT_ONCE):
            part = answers[start : start + ANSWERS_AT_ONCE]
            yield from self._judge(part, given[start : start + ANSWERS_AT_ONCE], nll_cut)

    def _judge(
        self, answers: Sequence[tuple[str, Question]], nlls: Sequence[float | None], cut: float | None
    ) -> Iterator[Alignment]:
        texts = [texts_of(text, asked) for text, asked in answers]
        rows = None if self.encoder is None else self.encoder([text for own in texts for text in own.all])
        end = 0
        for (text, asked), own, nll in zip(answers, texts, nlls, strict=True):
            start, end = end, end + len(own.all)
            yield judge(
                text,
                asked,
                None if rows is None else split_vectors(own, rows[start:end]),
                self.references,
                self.contrast,
                self.calibration,
                nll=nll,
                nll_cut=cut,
                missing=self.missing,
            )

    def describe(self) -> dict[str, Any]:
        """What a result says of how its answers were judged."""
        if self.encoder is None or self.calibration is None:
            return {"encoder": None, "reason": self.missing}
        own = {k: v for k, v in asdict(self.calibration).items() if k not in ("encoder",)}
        return {"encoder": self.encoder.name, "calibration": own, **({"note": self.note} if self.note else {})}


@cache
def load_judge(encoder: str | None = None, device: str | None = None) -> Judge:
    """The judge with an encoder; without one (and with the reason) if it cannot be loaded.

    Args:
        encoder: `default`, `off`, a hub id or a folder; None takes `UNLEARN_EVAL_ENCODER`, or else the default.
        device: `cpu`, `cuda`, ...; None takes a GPU if there is one.
    """
    try:
        loaded = load_encoder(encoder, device)
    except UserError as error:
        return Judge(None, missing=error.message)
    texts = read_references()
    references, contrast = loaded(texts.refusals), loaded(texts.contrast)
    calibration, note = calibration_for(loaded.name, texts, references, contrast)
    return Judge(loaded, calibration, references, contrast, note=note)


def read_references(path: Path = REFERENCES_FILE) -> References:
    """The reference refusals and the contrast.

    Raises:
        UserError: the file is missing or malformed, has another kind, or a kind is empty.
    """
    records = read_jsonl(path, required_fields=("id", "kind", "text"))
    by_kind: dict[str, list[str]] = {kind: [] for kind in (*KINDS, CONTRAST)}
    for record in records:
        if record["kind"] not in by_kind:
            raise UserError(f"{path}: the kind {record['kind']!r}", f"allowed: {', '.join(by_kind)}")
        by_kind[record["kind"]].append(str(record["text"]))
    if empty := [kind for kind, texts in by_kind.items() if len(texts) < NEAREST]:
        raise UserError(
            f"{path} has fewer than {NEAREST} texts of the kind {empty[0]}", "it was damaged: install again"
        )
    refusals = tuple(text for kind in KINDS for text in by_kind[kind])
    return References(refusals, tuple(by_kind[CONTRAST]), hash_json(by_kind))


def calibration_for(
    encoder: str, texts: References, references: npt.NDArray[np.float32], contrast: npt.NDArray[np.float32]
) -> tuple[Calibration, str]:
    """The calibration that belongs to the encoder, else one from the references, and a note that says so.

    Shipped are those of the two encoders that can be named; a folder may hold its own, `refusal_calibration.json`, as
    `benchmarks/refusal_alignment.py --encoder FOLDER` writes it.

    Raises:
        UserError: the calibration is of other references.
    """
    for file in (CALIBRATION_FILE, MULTILINGUAL_FILE, Path(encoder) / OWN_FILE):
        shipped = read_calibration(file) if file.is_file() else None
        if shipped is not None and (shipped.encoder == encoder or file.parent == Path(encoder)):
            if shipped.references_hash != texts.hash:
                raise UserError(
                    "the calibration was made with other references than those of this package",
                    "run benchmarks/refusal_alignment.py, or restore tasks/refusal/references.jsonl",
                )
            return shipped, ""
    return uncalibrated(encoder, texts.hash, references, contrast), NOT_CALIBRATED


def read_calibration(path: Path) -> Calibration:
    """The calibration in a file that `benchmarks/refusal_alignment.py` wrote.

    Raises:
        UserError: the file is missing or not such a file.
    """
    content = parse(read_text(path, "calibration"), path, "run benchmarks/refusal_alignment.py")
    try:
        return Calibration(
            encoder=str(content["encoder"]),
            weights=tuple(float(content["weights"][name]) for name in FEATURES),
            intercept=float(content["intercept"]),
            on_topic=float(content["on_topic"]),
            paraphrase=None if content["paraphrase"] is None else float(content["paraphrase"]),
            references_hash=str(content["references_hash"]),
            languages=tuple(str(language) for language in content.get("languages", (ENGLISH,))),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no calibration: {error!r}", "run benchmarks/refusal_alignment.py") from error


def uncalibrated(
    encoder: str, references_hash: str, references: npt.NDArray[np.float32], contrast: npt.NDArray[np.float32]
) -> Calibration:
    """σ((top-3 similarity − b) / τ) with b and τ from the references alone.

    b lies half-way between the mean similarity of a reference to the others and of a contrast text to the references;
    at these two means the probability is .95 and .05.
    """
    own = references @ references.T
    np.fill_diagonal(own, -np.inf)
    near = float(np.sort(own, axis=1)[:, -NEAREST:].mean())
    far = float(np.sort(contrast @ references.T, axis=1)[:, -NEAREST:].mean())
    slope = 2 * float(np.log(19)) / max(near - far, 1e-6)
    weights = tuple(slope if name == "masked" else 0.0 for name in FEATURES)
    return Calibration(encoder, weights, -slope * (near + far) / 2, far, None, references_hash)


def base_likelihoods(
    loaded: LoadedModel, asked: Sequence[tuple[str, str]], prompt_format: PromptFormat, batch_size: int = 16
) -> list[float | None]:
    """Mean nll per token, in nats, of texts after their questions, without the end token; None for an empty text.

    Args:
        loaded: the unedited model (`models.LoadedModel`).
        asked: (question, text) pairs.
        prompt_format: how it is asked.
        batch_size: rows in one forward pass.
    """
    from unlearn_eval.models.scoring import Query, score_answers

    found: list[float | None] = [None] * len(asked)
    queries, owners = [], []
    for i, (question, text) in enumerate(asked):
        prompt = prompt_format.render_to_answer(question)
        ids = prompt_format.encode(prompt)
        labels = prompt_format.answer_labels(prompt, ids, text)
        if labels.n_answer:
            queries.append(Query(tuple(ids), tuple(labels.ids[: labels.n_answer])))
            owners.append(i)
    for owner, score in zip(owners, score_answers(loaded.model, queries, batch_size), strict=True):
        found[owner] = float(np.mean(score.token_nll))
    return found
