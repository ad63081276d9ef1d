"""One page over HTTP on this machine alone, from memory; nothing of the file system can be asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mpeval.errors import UsageError

HOST = "127.0.0.1"
HTTP = 80
PATHS = ("/", "/index.html")


def server(page: str, port: int) -> ThreadingHTTPServer:
    """Return a server that is bound but does not answer yet; port 0 takes any that is free.

    Raises:
        UsageError: the port is taken, or not for this user.
    """
    try:
        return _Server((HOST, port), _handler(page.encode()))
    except OSError as error:
        hint = "leave `--port` out: any port that is free is taken then"
        raise UsageError(f"cannot serve at {HOST}:{port}: {error.strerror}", hint) from error


def serve(page: str, port: int, said: Callable[[str], object]) -> None:
    """Serve `page` until Ctrl-C, after its address was `said`."""
    with server(page, port) as bound:
        try:
            said(f"http://{HOST}:{bound.server_port}/")
            bound.serve_forever()
        except KeyboardInterrupt:
            return


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that went away in the middle, as they do."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _names(address: Any) -> set[str]:
    """Return what a request may call the server at `address`; browsers leave HTTP's own port out."""
    port = address[1]
    return {f"{host}{end}" for host in (HOST, "localhost") for end in (f":{port}", *([""] if port == HTTP else []))}


def _handler(page: bytes) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answers with the page, and only to who asks for this machine by its name.

        Otherwise a page from elsewhere, whose name its owner lets point here, could read this one.
        """

        server_version = "mpeval"
        sys_version = ""

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            if self.headers.get("Host") not in _names(self.server.server_address):
                self.send_error(421)
            elif self.path.partition("?")[0] not in PATHS:
                self.send_error(404)
            else:
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(page)))
                self.send_header("Cache-Control", "no-store")
                self.send_header("X-Content-Type-Options", "nosniff")
                self.send_header("X-Frame-Options", "DENY")
                self.end_headers()
                if body:
                    self.wfile.write(page)

        def log_message(self, *_: Any) -> None:
            """Say nothing: the terminal has the address."""

    return Handler
