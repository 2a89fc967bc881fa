"""The command that serves an edit: `unlearn-eval serve EDIT_DIR`."""

from __future__ import annotations

from typing import Annotated

import typer

from unlearn_eval.cli.options import check_there
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.terminal import say


def serve(
    context: typer.Context,
    edit: Annotated[str, typer.Argument(help="Folder of the edit, or hub:ORG/NAME.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The base model, if edit.json's name is of no use here.")
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 is for other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar="UNLEARN_EVAL_API_KEY", help="What clients must send.")
    ] = None,
    edits_root: Annotated[
        str | None,
        typer.Option("--edits-root", help="Folder below which POST /v1/edit finds edits. [default: the edit's parent]"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="By which clients name it. [default: the folder's name]")] = None,
    require_certificate: Annotated[
        bool, typer.Option("--require-certificate", help="Refuse an edit without a certificate that passes its policy.")
    ] = False,
    certificate: Annotated[
        str | None, typer.Option("--certificate", help="Where that is. [default: in the folder, or beside it]")
    ] = None,
) -> None:
    """Serve an edit with vLLM, by OpenAI's routes.

    GET /health says which edit it is; POST /v1/edit takes another one of the same base. With a key every route
    needs it, and /health without it says only that the server is well.
    Whatever stands after -- goes to `vllm serve`, e.g. -- --dtype bfloat16 --max-model-len 2048.
    """
    check_there(model=model, edits=[edit])
    if require_certificate or certificate:
        from unlearn_eval.edits.places import local_folder
        from unlearn_eval.runs.forget.verify import check_certified

        say(check_certified(local_folder(edit), certificate).verdict.sentence)
    from unlearn_eval.serving.gate import KEY_HINT, is_loopback
    from unlearn_eval.serving.start import serve, server_command

    if not is_loopback(host) and not api_key:
        raise UserError(f"{host} can be reached from other machines, without a key", KEY_HINT)
    command = server_command(edit, model, host, port, name, context.args)
    say(f"http://{host}:{port}/v1 serves {edit}; stop with Ctrl-C")
    serve(command, api_key, edits_root)
