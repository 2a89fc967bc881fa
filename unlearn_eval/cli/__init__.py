"""The command line: one file per group of commands, and the only room that imports typer."""


def main() -> None:
    """Run the command line; `unlearn-eval` and `python -m unlearn_eval.cli` start here."""
    from unlearn_eval.cli.app import main as run

    run()
