"""A hub with one data set on this machine, as far as `datasets` asks: loaded by its name, the way that users do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

NAME = "owner/name"
COMMIT = "a" * 40


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[str]:
    """The address of a hub with these files in the data set `owner/name`, for HF_ENDPOINT."""

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            return

        def answer(self, body: bytes, code: int = 200, **headers: str) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def as_json(self, found: Any) -> None:
            self.answer(json.dumps(found).encode(), Content_Type="application/json")

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            place = self.path.partition("?")[0]
            if place.startswith(f"/api/datasets/{NAME}/tree/{COMMIT}"):
                under = place.removeprefix(f"/api/datasets/{NAME}/tree/{COMMIT}").strip("/")
                self.as_json(listed(under))
            elif place.startswith(f"/api/datasets/{NAME}"):
                siblings = [{"rfilename": path} for path in files]
                self.as_json({"id": NAME, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
            elif place.startswith(f"/datasets/{NAME}/resolve/"):
                self.file(place.removeprefix(f"/datasets/{NAME}/resolve/").partition("/")[2])
            else:
                self.answer(b"", 404, X_Error_Code="RepoNotFound")

        def file(self, path: str) -> None:
            if path not in files:
                self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
                return
            body = files[path]
            headers = {"ETag": f'"{oid(path)}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
            asked = self.headers.get("Range")
            if asked is None:
                self.answer(body, **headers)
                return
            first, _, last = asked.removeprefix("bytes=").partition("-")
            part = body[int(first) : int(last or len(body)) + 1]
            stop = int(first) + len(part) - 1
            self.answer(part, 206, Content_Range=f"bytes {first}-{stop}/{len(body)}", **headers)

    def oid(path: str) -> str:
        return hashlib.sha1(files[path]).hexdigest()

    def listed(under: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [
            {"type": "file", "path": path, "size": len(body), "oid": oid(path)}
            for path, body in files.items()
            if path.rpartition("/")[0] == under
        ]
        folders = {path.split("/")[0] for path in files if "/" in path and not under}
        return found + [{"type": "directory", "path": folder, "oid": "0"} for folder in sorted(folders)]

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
