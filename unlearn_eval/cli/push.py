"""The command that shares an edit: `unlearn-eval push EDIT ORG/NAME`."""

from __future__ import annotations

from typing import Annotated

import typer

from unlearn_eval.cli.options import check_there
from unlearn_eval.utils.terminal import put, say


def push(
    edit: Annotated[str, typer.Argument(help="Folder of the edit, or hub:ORG/NAME.")],
    repository: Annotated[str, typer.Argument(help="ORG/NAME; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    redact: Annotated[
        bool, typer.Option("--redact", help="Name no subject, question, answer or id of what was forgotten.")
    ] = False,
    result: Annotated[
        str | None, typer.Option("--result", help="Result file of an evaluation of this edit, for the card.")
    ] = None,
) -> None:
    """Upload an edit to the Hugging Face hub, with a card.

    It is then hub:ORG/NAME wherever the folder of an edit is expected.
    """
    check_there(edits=[edit])
    from unlearn_eval.edits.sharing import push_edit

    address = push_edit(edit, repository, private=private, redact=redact, result=result)
    say(f"use it as hub:{repository}")
    put(address)
