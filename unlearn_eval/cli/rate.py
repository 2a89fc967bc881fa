"""`unlearn-eval rate`: people say which answers they would accept."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from unlearn_eval.cli.options import JsonOption
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import dumps, write_all
from unlearn_eval.utils.terminal import put, say


def rate(
    answers: Annotated[
        str | None, typer.Argument(help="A JSONL file of answers: id, question, accepted, text. [default: ours]")
    ] = None,
    rater: Annotated[str | None, typer.Option("--rater", help="Who rates; two people rate apart.")] = None,
    folder: Annotated[str, typer.Option("--output", "-o", help="Folder of the ratings, a file for each.")] = "ratings",
    n: Annotated[int, typer.Option(min=1, help="Answers to rate, evenly over their classes.")] = 200,
    seed: Annotated[int, typer.Option(help="Random seed of which, and in which order.")] = 0,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 0,
    export: Annotated[str | None, typer.Option("--export", help="Write all ratings to this file (.csv).")] = None,
    json_: JsonOption = False,
) -> None:
    """Rate answers in a browser, or without --rater say how far two people agree.

    `python benchmarks/refusal_alignment.py --ratings FOLDER` makes the calibration of refusal alignment again from what
    two people have said.
    """
    from unlearn_eval.results.ratings import agreement, as_csv, check_rater, draw, read_answers, read_ratings

    place = Path(folder).expanduser()
    if rater is None:
        ratings = read_ratings(place)
        if not ratings:
            raise UserError(f"there are no ratings in {place}", "let somebody rate: --rater NAME")
        if export:
            path = Path(export).expanduser()
            write_all({path.name: as_csv(ratings)}, path.parent)
            put(path)
            return
        found = agreement(ratings)
        put(dumps(found, indent=2) if json_ else _told(found))
        return
    from unlearn_eval.results.report.rate import rating_server

    chosen = draw(read_answers(answers), n, seed)
    with rating_server(chosen, place, check_rater(rater), port) as serving:
        put(f"http://127.0.0.1:{serving.server_port}/")
        say(f"{len(chosen)} answers; ratings go to {place / rater}.jsonl; stop with Ctrl-C")
        with suppress(KeyboardInterrupt):
            serving.serve_forever()


def _told(found: dict[str, Any]) -> str:
    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    one, other = found["raters"]
    return (
        f"{one} and {other}, {found['n']} answers: weighted kappa {number(found['weighted_kappa'])}, "
        f"accepted or not {number(found['kappa_accepted'])}, classes {number(found['kappa_class'])} "
        f"({found['n_class']} answers)"
    )
