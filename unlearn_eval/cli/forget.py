"""The commands around a request: `unlearn-eval forget REQUEST | verify CERTIFICATE | revoke CERTIFICATE`."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from unlearn_eval.cli.options import (
    ChatOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    RowsOption,
    SeedOption,
    check_there,
)
from unlearn_eval.cli.terminal import progress
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import dumps
from unlearn_eval.utils.terminal import new_console, put, say

NOT_PASSED = 3  # exit code of a run that is finished, and whose policy is not passed
_BUDGET = re.compile(r"(\d+(?:\.\d+)?)\s*([smh]?)")
CertificateArgument = Annotated[str, typer.Argument(help="certificate.json, or the folder that forget wrote.")]
SignOption = Annotated[str | None, typer.Option("--sign", help="Private key (Ed25519, PEM) with which to sign.")]


def forget(
    request: Annotated[str, typer.Argument(help="Questions and answers, or a YAML with subject, texts, documents.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder; a second run goes on from it.")],
    model: ModelOption = "default",
    policy: Annotated[str, typer.Option(help="standard, strict, or a .yaml file.")] = "standard",
    budget: Annotated[str, typer.Option(help="Time for the search: 90s, 30m, 2h.")] = "30m",
    review: Annotated[bool, typer.Option("--review", help="Write the questions, show them, and stop.")] = False,
    redact: Annotated[
        bool, typer.Option("--redact", help="Name nothing of the request in certificate and edit.")
    ] = False,
    retain: Annotated[str | None, typer.Option("--retain", help="A set or file of what should stay.")] = None,
    editor: Annotated[
        list[str] | None, typer.Option("--editor", "-e", help="Try only this method; may be repeated.")
    ] = None,
    after: Annotated[
        str | None, typer.Option("--after", help="Certificate of an earlier request, on top of which this one is met.")
    ] = None,
    sign: SignOption = None,
    chat: ChatOption = None,
    batch_size: RowsOption = 32,
    dtype: DtypeOption = "float32",
    seed: SeedOption = 0,
    device: DeviceOption = None,
) -> None:
    """Meet a request to forget, and certify what came of it.

    Exit codes: 0 the policy is passed or there was nothing to forget, 3 it is not passed.
    """
    check_there(model=model)
    seconds = _seconds(budget)
    from unlearn_eval.harness.patching import quiet_libraries
    from unlearn_eval.results.certificate import FAILS, Certificate
    from unlearn_eval.results.report.certificate import write_pages
    from unlearn_eval.runs.forget.run import ForgetConfig
    from unlearn_eval.runs.forget.run import forget as run_forget

    config = ForgetConfig(
        request=request,
        output=output,
        model=model,
        policy=policy,
        budget_seconds=seconds,
        retain=retain,
        editors=tuple(editor or ()),
        earlier=after,
        redact=redact,
        review=review,
        sign=sign,
        chat=chat,
        batch_size=batch_size,
        dtype=dtype,
        device=device,
        seed=seed,
    )
    with quiet_libraries():
        found = run_forget(config, say, progress())
    if not isinstance(found, Certificate):
        new_console().print(_questions_table(found))
        say(f"edit them if need be, then run the same command without --review: {output}/work/questions.jsonl")
        put(f"{output}/work/questions.jsonl")
        return
    write_pages(found, output)
    say(found.verdict.sentence)
    put(f"{output}/certificate.html")
    if found.verdict.outcome == FAILS:
        raise typer.Exit(NOT_PASSED)


def verify(
    certificate: CertificateArgument,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Base model, if it is elsewhere here.")] = None,
    edit: Annotated[str | None, typer.Option("--edit", help="Folder of the edit. [default: beside it]")] = None,
    work: Annotated[
        str | None, typer.Option("--work", help="Folder with the questions. [default: work, beside it]")
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Repeat only these measurements, separated by commas; none: hashes.")
    ] = None,
    key: Annotated[str | None, typer.Option("--key", help="Public key (PEM) that must have signed.")] = None,
    batch_size: RowsOption = 32,
    device: DeviceOption = None,
    json_: JsonOption = False,
) -> None:
    """Measure again what a certificate says; for CI.

    Exit codes: 0 all of it agrees and the policy is passed, 1 something does not agree, 2 wrong input, 3 all of it
    agrees, and the certificate says that the policy is not passed.
    """
    from unlearn_eval.harness.patching import quiet_libraries
    from unlearn_eval.runs.forget.verify import verify_certificate

    names = None if only is None else [part.strip() for part in only.split(",") if part.strip() not in ("", "none")]
    try:
        with quiet_libraries():
            found = verify_certificate(certificate, model, edit, work, names, key, batch_size, device, say, progress())
    except (UserError, OSError) as error:
        say(f"error: {error}")
        raise typer.Exit(2) from error
    if json_:
        put(dumps(found.as_json, indent=2))
    else:
        for line in found.lines:
            put(line)
    if not found.agrees:
        raise typer.Exit(1)
    if not found.passes:
        raise typer.Exit(NOT_PASSED)


def revoke(
    certificate: CertificateArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why it no longer holds.")],
    sign: SignOption = None,
) -> None:
    """Revoke a certificate, so that verify and serve refuse it."""
    from unlearn_eval.runs.forget.verify import revoke_certificate

    put(revoke_certificate(certificate, reason, sign))


def _seconds(text: str) -> float:
    found = _BUDGET.fullmatch(text.strip().lower())
    if found is None or float(found[1]) <= 0:
        raise UserError(f"--budget cannot be '{text}'", "give a time such as 90s, 30m or 2h")
    return float(found[1]) * {"s": 1, "": 1, "m": 60, "h": 3600}[found[2]]


def _questions_table(questions: Any) -> Any:
    from rich import box
    from rich.table import Table

    from unlearn_eval.utils.terminal import styled

    table = Table(title="what is asked", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("from", "agree", "question", "answer"):
        table.add_column(column, overflow="fold", no_wrap=column in ("from", "agree"))
    for own in questions:
        agree = "" if own.agreement is None else f"{own.agreement:.0%}"
        table.add_row(own.source, agree, styled(own.item.question), styled(own.item.answer))
    return table
