"""The list of commands, in groups that fit on a screen; and -q and -v, wherever they stand."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

GROUPS = {
    "Start": ("demo", "forget", "ls"),
    "Edit": ("edit", "finetune", "inspect", "export", "serve"),
    "Measure": ("eval", "compare", "attack", "localize"),
    "Studies and reports": ("run", "meta", "report", "check"),
}
_ANYWHERE = ("-q", "--quiet", "-v", "--verbose")
_OPTIONS = "Options: -h; anywhere -q (errors only), -v (libraries too); --version, --install-completion"


class CommandGroups(TyperGroup):
    """Commands in groups; those that stand in none are named in one line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take -q and -v from wherever they stand before `--`."""
        end = args.index("--") if "--" in args else len(args)
        moved = [own for own in args[:end] if own in _ANYWHERE]
        rest = [own for own in args[:end] if own not in _ANYWHERE]
        return super().parse_args(ctx, [*moved, *rest, *args[end:]])

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """The usage, without an empty line after it."""
        formatter.write(f"Usage: {ctx.command_path} {' '.join(self.collect_usage_pieces(ctx))}\n")

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """What the program is for, without an empty line before it."""
        formatter.write(f"{self.help or ''}\n")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The options in a line, then the commands."""
        formatter.write(f"{_OPTIONS}\n")
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Every command with what it does, under its group."""
        shown = [name for name in self.list_commands(ctx) if not self.commands[name].hidden]
        width = max(map(len, shown)) + 2
        grouped = {name for own in GROUPS.values() for name in own}
        for title, names in GROUPS.items():
            if own := [name for name in names if name in shown]:
                formatter.write(f" {title}\n")
            for name in own:
                text = self.commands[name].get_short_help_str(formatter.width - width - 4)
                formatter.write(f"   {name:{width}}{text}\n")
        if more := [name for name in shown if name not in grouped]:
            formatter.write(f" And {', '.join(more)}: each has --help\n")
