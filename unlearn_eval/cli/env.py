"""The command that shows what is installed: `unlearn-eval env`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from unlearn_eval.utils.terminal import new_console, put, say


def env(json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False) -> None:
    """Print versions, devices, caches and patches.

    Each patch changes lm-eval or vLLM at run time; the table shows whether it fits the installed version.
    """
    from unlearn_eval.runs.environment import environment

    say("importing lm-eval, and vLLM if it is installed")
    found = environment()
    if json_:
        put(json.dumps(found, indent=2, ensure_ascii=False))
        return
    console = new_console(width=120)
    for table in tables(found):
        console.print(table)


def tables(found: dict[str, Any]) -> list[Any]:
    """The machine, the packages and the patches of `environment()`, for a terminal."""
    machine, versions, patches = (_table(title, *columns) for title, *columns in _TITLES)
    git, cpu = found["git"], found["cpu"]
    machine.add_row("python", f"{found['python']}, {found['executable']}")
    machine.add_row("commit", (git["commit"] or git["reason"]) + (" (changed)" if git["dirty"] else ""))
    machine.add_row("platform", found["platform"])
    machine.add_row("cpu", f"{cpu['model']}, {cpu['usable_cores']} of {cpu['cores']} cores, {found['threads']} threads")
    for gpu in found["gpus"] or [None]:
        text = "none" if gpu is None else f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB, CUDA {gpu['cuda']}"
        machine.add_row("gpu", text)
    for cache in found["caches"]:
        machine.add_row(f"cache: {cache['name']}", cache["folder"] + ("" if cache["exists"] else " (empty)"))
    for name, version in {"unlearn_eval": found["unlearn_eval"], **found["packages"]}.items():
        versions.add_row(name, version)
    for patch in found["patches"]:
        fits = patch["status"] + (f": {patch['reason']}" if patch["reason"] else "")
        installed = f"{patch['package']} {patch['version'] or '-'}"
        patches.add_row(patch["name"], installed, ", ".join(patch["tested"]), fits, patch["changes"])
    return [machine, versions, patches]


_TITLES = (
    ("machine", "", ""),
    ("packages", "", "version"),
    ("patches", "name", "installed", "tested with", "fits?", "changes"),
)


def _table(title: str, *columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("name", "installed"))
    return table
