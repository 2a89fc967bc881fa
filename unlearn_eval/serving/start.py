"""The command line of vLLM's server for an edit, and its environment."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from unlearn_eval.edits.folder import check_architecture, check_names_base, read_description
from unlearn_eval.edits.places import DESCRIPTION, edit_name, local_folder
from unlearn_eval.harness.backends import check_vllm
from unlearn_eval.models.places import resolve_model
from unlearn_eval.serving.gate import NAME
from unlearn_eval.serving.routes import ROOT
from unlearn_eval.utils.errors import UserError

LOCAL = "127.0.0.1"
DEFAULT_ARGUMENTS = "--default-chat-template-kwargs"  # vLLM's: arguments of the template for requests without any


def server_command(
    edit: str,
    model: str | None = None,
    host: str = LOCAL,
    port: int = 8000,
    name: str | None = None,
    more: Sequence[str] = (),
) -> list[str]:
    """The command that serves an edit's folder with vLLM.

    Args:
        edit: the folder, or `hub:ORG/NAME[@REVISION]`.
        model: another place of the base model than the one that edit.json names.
        host, port: where it listens.
        name: by which clients name the model; the folder's, if None.
        more: further arguments of `vllm serve`.

    Raises:
        UserError: no vLLM, no edit, no base, or one of these without a port of its own.
    """
    check_vllm()
    folder = local_folder(edit)
    description = read_description(folder)
    check_architecture(folder)
    check_names_base(description["info"]["base"])
    base = model or description["info"]["base"].get("id")
    if not base:
        raise UserError(f"{folder / DESCRIPTION} does not say which model it was made on", "give it with --model")
    try:
        place = resolve_model(base)
    except UserError as error:
        raise UserError(f"the edit's base is not here: {error.message}", "give it with --model") from error
    command = [sys.executable, "-c", "from vllm.entrypoints.cli.main import main; main()", "serve", str(folder)]
    command += ["--host", host, "--port", str(port), "--served-model-name", name or edit_name(edit)]
    command += ["--model-loader-extra-config", json.dumps({"base": place})]
    arguments = description["info"].get("requests", {}).get("chat_template_kwargs")
    if arguments and DEFAULT_ARGUMENTS not in more:
        command += [DEFAULT_ARGUMENTS, json.dumps(arguments)]
    return [*command, *more]


def server_environment(
    environment: Mapping[str, str], api_key: str | None = None, edits_root: str | None = None
) -> dict[str, str]:
    """The environment with our plug-ins named: routes are loaded only where they are, and then nothing unnamed is.

    The key that clients must send is there too, and not in the command, which every user of the machine can read.

    Raises:
        UserError: the edits' root is no folder.
    """
    if edits_root is not None and not Path(edits_root).is_dir():
        raise UserError(f"{edits_root} is no folder, and edits are to be below it", "give another --edits-root")
    said = environment.get("VLLM_PLUGINS")
    if said is None:
        names = [point.name for point in importlib.metadata.entry_points(group="vllm.general_plugins")]
    else:
        names = [name for name in said.split(",") if name]
    wanted = dict.fromkeys([*names, "unlearn_eval", NAME])
    key = {"VLLM_API_KEY": api_key} if api_key else {}
    root = {ROOT: str(Path(edits_root).resolve())} if edits_root is not None else {}
    return {**environment, "VLLM_PLUGINS": ",".join(wanted), **key, **root}


def serve(command: Sequence[str], api_key: str | None = None, edits_root: str | None = None) -> None:
    """Become the server (nothing after this is run)."""
    environment = server_environment(os.environ, api_key, edits_root)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], list(command), environment)
