"""A hub in a folder: what of huggingface_hub we call, with the same arguments, errors and semantics.

`create_repo`, `repo_info` and `upload_folder` of `HfApi`, and `snapshot_download`. Each upload is a commit, a folder of
its own; a snapshot has the files that were asked for, as links, in a folder that is named after the commit.
"""

from __future__ import annotations

import hashlib
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError


def _absent(kind, name):
    return kind(f"404: {name}", response=SimpleNamespace(headers={}, request=None))


class FakeHub:
    """Repositories by (kind, name); each has its privacy, and its commits in order."""

    def __init__(self, root: Path) -> None:
        self.root, self.repositories, self.messages, self.downloads = root, {}, [], []

    # As HfApi --------------------------------------------------------------------------------------------------

    def create_repo(self, repo_id, *, repo_type=None, private=None, exist_ok=False):
        key = (repo_type or "model", repo_id)
        if key in self.repositories:
            assert exist_ok
        else:
            self.repositories[key] = SimpleNamespace(private=bool(private), commits=[])
            self.commit(key, {".gitattributes": b"*.safetensors filter=lfs\n"})
        return f"https://huggingface.co/{repo_id}"

    def repo_info(self, repo_id, *, repo_type=None):
        found = self.repository(repo_type, repo_id)
        siblings = [SimpleNamespace(rfilename=name) for name in self.files(repo_id, repo_type)]
        return SimpleNamespace(private=found.private, sha=found.commits[-1].name, siblings=siblings)

    def upload_folder(self, *, repo_id, folder_path, repo_type=None, commit_message=None, delete_patterns=None):
        key, folder = (repo_type or "model", repo_id), Path(folder_path)
        kept = self.files(repo_id, repo_type)
        if delete_patterns is not None:
            kept = {n: c for n, c in kept.items() if n == ".gitattributes" or not fnmatch(n, delete_patterns)}
        new = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        self.messages.append(commit_message)
        self.commit(key, kept | new)

    # As the module ---------------------------------------------------------------------------------------------

    def snapshot_download(self, repo_id, *, revision=None, allow_patterns=None):
        commits = {commit.name: commit for commit in self.repository(None, repo_id).commits}
        name = list(commits)[-1] if revision in (None, "main") else revision
        if name not in commits:
            raise _absent(RevisionNotFoundError, f"{repo_id}@{revision}")
        target = self.root / "cache" / f"models--{repo_id.replace('/', '--')}" / "snapshots" / name
        target.mkdir(parents=True, exist_ok=True)
        for file, content in self.files(repo_id, None, name).items():
            if any(fnmatch(file, pattern) for pattern in allow_patterns or ["*"]) and not (target / file).exists():
                self.downloads.append(file)
                blob = self.root / "cache" / "blobs" / hashlib.sha256(content).hexdigest()
                blob.parent.mkdir(parents=True, exist_ok=True)
                blob.write_bytes(content)
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                (target / file).symlink_to(blob)
        return str(target)

    # For tests -------------------------------------------------------------------------------------------------

    def repository(self, kind, name):
        if (kind or "model", name) not in self.repositories:
            raise _absent(RepositoryNotFoundError, name)
        return self.repositories[kind or "model", name]

    def commit(self, key, files):
        commits = self.repositories[key].commits
        digest = hashlib.sha1(repr((key, len(commits), sorted(files.items()))).encode()).hexdigest()
        folder = self.root / "commits" / digest
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        commits.append(folder)

    def files(self, name, kind=None, commit=None):
        """The files of a repository's last commit, or of another one."""
        commits = self.repository(kind, name).commits
        folder = next(own for own in commits if own.name == commit) if commit else commits[-1]
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def install(root: Path, monkeypatch) -> FakeHub:
    """Put a fake hub in place of the real one, also for what was resolved before."""
    import huggingface_hub

    from unlearn_eval.edits import places

    fake = FakeHub(root)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    places._snapshot.cache_clear()
    shutil.rmtree(root / "cache", ignore_errors=True)
    return fake
