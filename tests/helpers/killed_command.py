"""Run by test_kills: kills a command before a change that it makes to the disk, runs it again; JSON on stdout.

A moment is the number of a change (a file opened for writing, renamed or removed, a folder made or removed) below the
folders of the command and of its cache, so the last moments of a run, which a clock rarely meets, are met too.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from forked import ended, prepare, start

CHANGES = {"os.rename": 2, "os.mkdir": 2, "os.remove": 1, "os.rmdir": 1}  # event -> where its folder's descriptor is


def place_of(event: str, arguments: tuple[object, ...]) -> str | None:
    """The path that an event of the interpreter is about to change."""
    if event == "open":
        path, _, flags = arguments
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
        return os.fspath(path) if writes and isinstance(path, str | os.PathLike) else None
    if event not in CHANGES or not isinstance(arguments[0], str | os.PathLike):
        return None
    descriptor = arguments[CHANGES[event]]
    below = "" if descriptor == -1 else os.readlink(f"/proc/self/fd/{descriptor}")
    return os.path.join(below, os.fspath(arguments[0]))


def watch(folder: Path, kill_at: int) -> None:
    """Count the changes below a folder in its `changes`; end this process at one of them as a kill would."""
    seen = [0]
    counter = os.open(f"{folder}.changes", os.O_WRONLY | os.O_CREAT)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        place = place_of(event, arguments)
        if place is None or not os.path.abspath(place).startswith(f"{folder}{os.sep}"):
            return
        seen[0] += 1
        os.pwrite(counter, str(seen[0]).encode(), 0)
        if seen[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def run(words: list[str], folder: Path, kill_at: int = 0) -> int:
    """The exit code of the command in a folder, with a cache there."""
    folder.mkdir(exist_ok=True)
    os.environ["UNLEARN_EVAL_CACHE"] = str(folder / "cache")
    own = [word.replace("FOLDER", str(folder)) for word in words]
    return ended(start(own, Path(f"{folder}.log"), lambda: watch(folder, kill_at)))


def main(folder: Path, shares: list[float], words: list[str]) -> None:
    """Run `words` whole, then kill it after shares of its changes, and run it again.

    FOLDER in the words is each run's own. Of a folder as the kill has left it there is a copy, `thenN`.
    """
    prepare(words[0])
    if run(words, folder / "whole"):
        raise SystemExit((folder / "whole.log").read_text()[-3000:])
    changes = int((folder / "whole.changes").read_text())
    found = []
    for moment in sorted({1 + round(share * (changes - 1)) for share in shares}):
        own = folder / f"killed{moment}"
        code = run(words, own, moment)
        shutil.copytree(own, folder / f"then{moment}", ignore_dangling_symlinks=True)
        found.append({"moment": moment, "killed": code == -signal.SIGKILL, "again": run(words, own)})
    print(json.dumps({"changes": changes, "moments": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:])
