"""Servers that tests ask: llama.cpp's own, and stand-ins for what goes wrong on the way to one."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import xllamacpp

from ropescale.export.engines import vllm


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


@contextmanager
def vllm_server(path: Path, *flags: str) -> Iterator[str]:
    """The address of vLLM's own server with a checkpoint, in float32 unless a flag says otherwise."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [vllm.python_with_vllm(), "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--model", str(path), "--enforce-eager", "--max-num-seqs", "1"]
    command += ["--dtype", "float32"] if "--dtype" not in flags else []
    settings = {
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [*command, *flags], stdout=said, stderr=said, env={**os.environ, **settings}, start_new_session=True
        )
        try:
            for _ in range(600):
                if process.poll() is not None:
                    said.seek(0)
                    raise AssertionError(said.read()[-3000:])
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                    break
                time.sleep(1)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # with the engine, which is a process of its own
            process.wait(60)


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


def shortening(url: str, length: int) -> Answer:
    """A gateway before a server of vLLM's that has it cut prompts to their last tokens."""

    def answer(connection: BaseHTTPRequestHandler, question: dict[str, Any]) -> None:
        more = {"truncate_prompt_tokens": length} if question else {}
        status, content = forwarded(url + connection.path, {**question, **more})
        send(connection, content, status)

    return answer


def forwarded(url: str, question: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The status and the object with which a server answers."""
    asked = json.dumps(question).encode() if question else None
    try:
        with urllib.request.urlopen(urllib.request.Request(url, asked, {"Content-Type": "application/json"})) as given:
            return given.status, json.load(given)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def send(connection: BaseHTTPRequestHandler, content: object, status: int = 200, **headers: str) -> None:
    """Answer with JSON, or with a text as it is."""
    body = (content if isinstance(content, str) else json.dumps(content)).encode()
    connection.send_response(status)
    for name, value in headers.items():
        connection.send_header(name, value)
    connection.send_header("Content-Length", str(len(body)))
    connection.end_headers()
    connection.wfile.write(body)
