"""What a model says before it is trained, kept on disk: so that no second model is kept in memory beside it.

Of every row there may be
    log_probs     ln π_r(y_t), (T,): for likelihood ratios (DPO, NPO)
    head_inputs   what goes into the output layer, (T, d): for whole distributions (KL, UNDIAL). A distribution over the
                  vocabulary is a hundred times as large, and comes out of the output layer as it was.
    logits        (T, V), instead of `head_inputs` where a model does more to its logits than one linear layer
    hidden        the output of a block, (T, d): for representations (RMU)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from unlearn_eval.utils.json_files import write_all

SHARD_BYTES = 2**28
Entry = Mapping[str, Tensor]


class ReferenceCache:
    """What the reference said of each row; in a folder, so that a run that is cut off need not ask again.

    Args:
        folder: where the files are.
        fingerprint: of the model and the rows; files with another one are not used.
        process: which process writes here; each asks for what it will need, and reads what is there.
    """

    def __init__(self, folder: Path, fingerprint: str, process: int = 0) -> None:
        self.folder, self.fingerprint, self.process = folder, fingerprint, process
        self._place: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        self._small: dict[str, Tensor] = {}

    def fill(
        self,
        wanted: Sequence[tuple[str, int]],
        ask: Callable[[Sequence[tuple[str, int]]], Sequence[Entry]],
        batch_size: int,
        progress: Callable[[int, int], Any] = lambda done, total: None,
    ) -> None:
        """Ask for the rows that are not here yet, and write them down.

        Args:
            wanted: (kind of row, position) of the rows that this process has to ask for.
            ask: what the model says of some rows, all of one kind.
            batch_size: how many at once.
            progress: told of rows done and to do.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        known = self._read_index()
        missing = _missing(wanted, known)
        waiting: dict[str, Tensor] = {}
        done, n_files = 0, len({*known.values()})
        for batch in _batches(missing, batch_size):
            for (part, position), entry in zip(batch, ask(batch), strict=True):
                for kind, tensor in entry.items():
                    waiting[f"{_name(part, position)}.{kind}"] = tensor.detach().cpu().contiguous()
            done += len(batch)
            progress(done, len(missing))
            if sum(t.numel() * t.element_size() for t in waiting.values()) > SHARD_BYTES or done == len(missing):
                file = f"reference-{self.process}-{n_files}.safetensors"
                self._write(file, waiting, known)
                n_files, waiting = n_files + 1, {}

    def n_batches(self, wanted: Sequence[tuple[str, int]], batch_size: int) -> int:
        """How often `fill` will ask."""
        return sum(1 for _ in _batches(_missing(wanted, self._read_index()), batch_size))

    def open(self) -> None:
        """Make what all processes have written readable."""
        from safetensors import safe_open

        for index in sorted(self.folder.glob("reference-*.json")):
            process = int(index.stem.partition("-")[2])
            for file in sorted({*self._read_index(process).values()}):
                path = self.folder / file
                self._open[path] = safe_open(str(path), framework="pt")
                for key in self._open[path].keys():  # noqa: SIM118 (it is no dictionary)
                    self._place[key] = path
                    if key.endswith(".log_probs"):
                        self._small[key] = self._open[path].get_tensor(key)

    def recall(self, part: str, position: int, kinds: Iterable[str]) -> dict[str, Tensor]:
        """What the reference said of one row."""
        found = {}
        for kind in kinds:
            key = f"{_name(part, position)}.{kind}"
            found[kind] = self._small[key] if key in self._small else self._open[self._place[key]].get_tensor(key)
        return found

    def kinds(self, part: str, position: int, among: Iterable[str]) -> tuple[str, ...]:
        """Which of some kinds of entry there are of a row."""
        return tuple(kind for kind in among if f"{_name(part, position)}.{kind}" in self._place)

    def _index(self, process: int) -> Path:
        return self.folder / f"reference-{process}.json"

    def _read_index(self, process: int | None = None) -> dict[str, str]:
        """Row -> file, of the files of one process that are of this fingerprint."""
        path = self._index(self.process if process is None else process)
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return dict(content["rows"]) if content.get("fingerprint") == self.fingerprint else {}

    def _write(self, file: str, entries: Mapping[str, Tensor], known: dict[str, str]) -> None:
        from safetensors.torch import save_file

        save_file(dict(entries), str(self.folder / file))
        known |= {key.rpartition(".")[0]: file for key in entries}
        text = json.dumps({"fingerprint": self.fingerprint, "rows": known})
        write_all({self._index(self.process).name: text}, self.folder)  # only now do the entries count


def _missing(wanted: Sequence[tuple[str, int]], known: Mapping[str, str]) -> list[tuple[str, int]]:
    return [key for key in wanted if _name(*key) not in known]


def _name(part: str, position: int) -> str:
    return f"{part}.{position}"


def _batches(keys: Sequence[tuple[str, int]], size: int) -> Iterable[Sequence[tuple[str, int]]]:
    """Runs of at most `size` keys of one kind."""
    batch: list[tuple[str, int]] = []
    for key in keys:
        if batch and (len(batch) == size or key[0] != batch[0][0]):
            yield batch
            batch = []
        batch.append(key)
    if batch:
        yield batch
