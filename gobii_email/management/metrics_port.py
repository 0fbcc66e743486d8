"""`/metrics` and `/healthz` of processes that are no web server, at GOBII_METRICS_PORT.

All processes of a machine share their counts, so one of them answers for all: the first that gets the
port, and when that ends, the next. Asks for METRICS_TOKEN where that is set; without one, the port is open.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from django.db import connections

from gobii_email.conf import config
from gobii_email.services import expose

logger = logging.getLogger(__name__)

_TRY_EVERY_SECONDS = 10.0
_Start = Callable[[str, list[tuple[str, str]]], object]


def show_metrics() -> None:
    """Answers from now on, or as soon as the port is free; without GOBII_METRICS_PORT, never."""
    if config().metrics_port is not None:
        threading.Thread(target=_serve, args=config().metrics_port, name="metrics", daemon=True).start()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    timeout = 10

    def log_message(self, *_: object) -> None:
        """Scrapes are nobody's news."""


def _serve(address: str, port: int) -> None:
    while True:
        try:
            server = make_server(address, port, _answer, _class_for(address), _Handler)
        except OSError:  # another process of this machine answers
            time.sleep(_TRY_EVERY_SECONDS)
            continue
        logger.info("metrics.shown")
        server.serve_forever()


def _class_for(address: str) -> type[WSGIServer]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return type("_Server", (_Server,), {"address_family": family})


def _answer(environ: dict[str, Any], start: _Start) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/healthz":
        return _text(start, "200 OK", b"ok\n")
    if environ["PATH_INFO"] != "/metrics":
        return _text(start, "404 Not Found", b"See /metrics.\n")
    if config().metrics_token and not expose.is_token(environ.get("HTTP_AUTHORIZATION", "")):
        return _text(start, "401 Unauthorized", b"Ask with METRICS_TOKEN as a bearer token.\n")
    try:
        return _text(start, "200 OK", expose.exposition(), expose.CONTENT_TYPE)
    finally:
        connections.close_all()


def _text(start: _Start, status: str, body: bytes, kind: str = "text/plain") -> Iterable[bytes]:
    start(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]
