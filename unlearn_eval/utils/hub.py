"""Repositories of the Hugging Face hub: snapshots that are read, folders that are uploaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.folders import is_of_the_disk

CARD = "README.md"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_FROM_THE_HUB = {".gitattributes", CARD}  # files that are in repositories which nobody has filled


def check_repository(name: str) -> str:
    """The name of a repository, ORG/NAME.

    Raises:
        UserError: it is not of that form.
    """
    if not _REPOSITORY.fullmatch(name):
        raise UserError(f"'{name}' is not the name of a repository on the hub", "give ORG/NAME")
    return name


def snapshot(repository: str, revision: str | None, files: Sequence[str]) -> Path:
    """The folder on this machine that holds some files of a model repository, downloaded unless they are there.

    Args:
        repository: ORG/NAME.
        revision: Branch, tag or commit; None is the main branch.
        files: Names of the files; those that the repository lacks are left out.

    Raises:
        UserError: there is no such repository or revision, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    with _on_hub(repository, "read"):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))


def upload(
    folder: Path, repository: str, kind: str, marker: str, private: bool, message: str, afresh: bool = False
) -> str:
    """Make a repository hold the files of a folder and no others, in one commit; returns its address.

    Args:
        folder: Folder to upload.
        repository: ORG/NAME; it is created if it does not exist.
        kind: "model" or "dataset".
        marker: File by which an earlier upload is known; a repository with other files and without it is refused.
        private: Whether a new repository is private; one that is public already is refused.
        message: Commit message.
        afresh: Whether an earlier upload is refused too.

    Raises:
        UserError: the repository holds something else, or the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _on_hub(check_repository(repository), "write to"):
        address = api.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
        found = api.repo_info(repository, repo_type=kind)
        if private and not found.private:
            raise UserError(f"the repository {repository} is public", "give another ORG/NAME, or make it private first")
        there = {file.rfilename for file in found.siblings or ()} - _FROM_THE_HUB
        if there and marker not in there:
            raise UserError(f"the repository {repository} holds something else", "give another ORG/NAME")
        if afresh and there:
            raise UserError(
                f"the repository {repository} is not empty, and its history keeps what is replaced",
                "give another ORG/NAME, or delete the repository first",
            )
        api.upload_folder(
            repo_id=repository,
            folder_path=str(folder),
            repo_type=kind,
            commit_message=message,
            delete_patterns="*",  # of an earlier upload
        )
    return str(address)


@contextmanager
def _on_hub(repository: str, doing: str) -> Iterator[None]:
    from huggingface_hub.errors import (
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = f"cannot {doing} {repository} on the hub"
    try:
        yield
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{what}: it does not exist, or is not yours to {doing}", "check the name, or log in: hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{what}: it has no such revision", "give a branch, a tag or a commit after @") from error
    except HFValidationError as error:
        raise UserError(f"'{repository}' is not the name of a repository on the hub", "give ORG/NAME") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(
            f"{what}: it cannot be reached from here, or HF_HUB_OFFLINE is set",
            "try again with a connection; what was downloaded once is found without one",
        ) from error
    except (OSError, HTTPError) as error:
        if is_of_the_disk(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{what}: {reason}", "log in (hf auth login), or try again later") from error
