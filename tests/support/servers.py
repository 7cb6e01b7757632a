"""Servers that tests ask: llama.cpp's own, and stand-ins for what goes wrong on the way to one."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import xllamacpp


def llama_server(path: Path, **settings: Any) -> xllamacpp.Server:
    """llama.cpp's server with one file, as its program starts it: caches in float16, and the context of the file."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx = 0
    parameters.n_parallel = 1
    parameters.warmup = parameters.fit_params = parameters.ui = False
    parameters.verbosity = -1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    for name, value in settings.items():
        setattr(parameters, name, value)
    return xllamacpp.Server(parameters)


Answer = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


@contextmanager
def stand_in(answer: Answer) -> Iterator[str]:
    """The address of a server that answers as a function does: it gets the connection and what was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self, {})

        def do_POST(self) -> None:
            answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def send(connection: BaseHTTPRequestHandler, content: object, status: int = 200, **headers: str) -> None:
    """Answer with JSON, or with a text as it is."""
    body = (content if isinstance(content, str) else json.dumps(content)).encode()
    connection.send_response(status)
    for name, value in headers.items():
        connection.send_header(name, value)
    connection.send_header("Content-Length", str(len(body)))
    connection.end_headers()
    connection.wfile.write(body)
