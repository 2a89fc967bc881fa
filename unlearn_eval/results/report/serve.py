"""The page on this machine: one address, for this machine's own browser only."""

from __future__ import annotations

import errno
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from unlearn_eval.results.report.page import build_page
from unlearn_eval.results.runs import json_files_in, read_runs
from unlearn_eval.utils.errors import UserError

Say = Callable[[str], Any]
Bound = TypeVar("Bound", bound=ThreadingHTTPServer)


class Pages:
    """The page of a folder, made again when one of its files has changed."""

    def __init__(self, folder: str, say: Say) -> None:
        self._folder, self._say, self._lock = folder, say, Lock()
        self._seen: Any = None
        self._page = b""

    def page(self) -> bytes:
        """The page of the files as they are now."""
        with self._lock:
            files = json_files_in([Path(self._folder).expanduser()])
            seen = [(path, path.stat().st_mtime_ns, path.stat().st_size) for path in files]
            if seen != self._seen:
                runs = read_runs(self._folder)
                for line in runs.notes:
                    self._say(line)
                self._page = build_page(runs, say=self._say).encode()
                self._seen = seen
            return self._page


class LocalServer(ThreadingHTTPServer):
    """Serves a page; threads end with the process.

    Attributes:
        page: the page as it is now.
    """

    daemon_threads = True
    page: Callable[[], bytes]


class LocalHandler(BaseHTTPRequestHandler):
    """Answers this machine alone, with the server's page."""

    server: LocalServer

    def do_GET(self) -> None:
        """Answer with the page, or with a `UserError` in its place."""
        if not self.is_ours():
            return
        if self.path not in ("/", "/index.html"):
            self.send_error(404)
            return
        try:
            self.answer(200, self.server.page(), "text/html")
        except UserError as error:
            self.answer(500, f"error: {error}\n".encode(), "text/plain")

    def is_ours(self) -> bool:
        """Whether this machine's own name was asked for, and no other that was pointed at it; else that is refused."""
        port = self.server.server_port
        if self.headers.get("Host") in (f"127.0.0.1:{port}", f"localhost:{port}"):
            return True
        self.send_error(403, "ask 127.0.0.1")
        return False

    def answer(self, status: int, content: bytes, kind: str) -> None:
        """Send an answer that nothing keeps."""
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Nothing: the terminal is for what the user has to know."""


def server(folder: str, port: int, say: Say) -> LocalServer:
    """A server of the folder's page on 127.0.0.1; the page is made once, so that mistakes show before it is served.

    Raises:
        UserError: there is no result in the folder, or the port is taken.
    """
    pages = Pages(folder, say)
    pages.page()
    made = bound(LocalServer, port, LocalHandler)
    made.page = pages.page
    return made


def bound(kind: type[Bound], port: int, handler: type[BaseHTTPRequestHandler]) -> Bound:
    """A server on a port of this machine, for itself alone.

    Raises:
        UserError: the port is taken.
    """
    try:
        return kind(("127.0.0.1", port), handler)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise UserError(f"port {port}: {error.strerror}", "leave --port out, and a free one is taken") from error
