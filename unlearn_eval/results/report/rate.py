"""One answer at a time in a browser on this machine, for a person to rate; every rating is on disk at once."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from threading import Lock

from unlearn_eval.results.ratings import ASK, CLASSES, SCALE, add_rating, check_rating, read_ratings, row
from unlearn_eval.results.report.page import as_script_json, csp_source
from unlearn_eval.results.report.serve import LocalHandler, LocalServer, bound
from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.json_files import Record

_MOST_BYTES = 10_000  # of a rating


def rating_page(answers: Sequence[Record], rater: str, rated: Mapping[str, Record], token: str) -> str:
    """The page; neither labels nor methods are in it.

    Args:
        answers: What is rated, in order.
        rater: Who rates.
        rated: Id -> what that person has said before.
        token: Without which the server takes no rating, so that no other page can send one.
    """
    folder = files("unlearn_eval.results.report")
    template, shared, own_style, script = (
        (folder / name).read_text(encoding="utf-8") for name in ("rate.html", "page.css", "rate.css", "rate.js")
    )
    style = shared + own_style
    shown = {"ask": ASK, "classes": CLASSES, "scale": SCALE, "rater": rater, "token": token}
    own = {key: {name: mark.get(name) for name in ("id", "rating", "class", "comment")} for key, mark in rated.items()}
    parts = {
        "POLICY": f"default-src 'none'; script-src '{csp_source(script)}'; style-src '{csp_source(style)}'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'",
        "STYLE": style,
        "DATA": as_script_json({**shown, "rated": own, "answers": [row(answer) for answer in answers]}),
        "SCRIPT": script,
    }
    pieces = template.split("@@")
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


class RatingServer(LocalServer):
    """Serves one rater's sheet, and writes what is rated."""

    answers: Sequence[Record]
    folder: Path
    rater: str
    token: str
    lock: Lock

    def page(self) -> bytes:
        """The page as it is now."""
        rated = read_ratings(self.folder).get(self.rater, {})
        return rating_page(self.answers, self.rater, rated, self.token).encode()


class _Handler(LocalHandler):
    server: RatingServer

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if not self.is_ours():
            return
        if not secrets.compare_digest(self.headers.get("X-Rating") or "", self.server.token):
            self.send_error(403, "reload the page")
        elif self.path != "/rating" or not 0 < length <= _MOST_BYTES:
            self.send_error(404)
        else:
            try:
                given = json.loads(self.rfile.read(length))
                ids = [str(own["id"]) for own in self.server.answers]
                rating = check_rating(given if isinstance(given, dict) else {}, ids)
                with self.server.lock:
                    add_rating(self.server.folder, self.server.rater, rating)
                self.answer(200, b"saved", "text/plain")
            except (UserError, ValueError) as error:
                self.answer(400, str(error).encode(), "text/plain")


def rating_server(answers: Sequence[Record], folder: Path, rater: str, port: int) -> RatingServer:
    """A server of one rater's sheet on 127.0.0.1.

    Raises:
        UserError: the port is taken.
    """
    made = bound(RatingServer, port, _Handler)
    made.answers, made.folder, made.rater = answers, folder, rater
    made.token, made.lock = secrets.token_hex(16), Lock()
    return made
