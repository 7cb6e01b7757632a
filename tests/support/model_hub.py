"""A hub of models on this machine, as far as `huggingface_hub` asks: it takes what is pushed, and gives it back.

What arrives is checked as a hub checks it: who pushes has a token, large files have the digest and size that were
said, and a README.md has metadata that can be read.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import yaml

TOKEN = "hf_of_nobody"
REPO = r"([\w.-]+/[\w.-]+)"


@dataclass
class Hub:
    """What the hub has."""

    address: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)  # name -> path -> content
    commits: list[str] = field(default_factory=list)  # a line each: repository and message
    faults: list[str] = field(default_factory=list)  # what a hub would have refused
    blobs: dict[str, bytes] = field(default_factory=dict)  # digest -> content, of large files

    def sha(self, repo: str) -> str:
        """The commit that a repository is at."""
        seen = hashlib.sha1()
        for path, body in sorted(self.repos[repo].items()):
            seen.update(path.encode() + hashlib.sha256(body).digest())
        return seen.hexdigest()


@contextmanager
def hub_of_models() -> Iterator[Hub]:
    """A hub without anything, for HF_ENDPOINT."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
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

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            place = self.path.partition("?")[0]
            if found := re.fullmatch(rf"/{REPO}/resolve/[^/]+/(.+)", place):
                self.file(found[1], found[2])
            elif found := re.fullmatch(rf"/api/models/{REPO}(?:/revision/[^/]+)?", place):
                self.about(found[1])
            elif found := re.fullmatch(rf"/api/models/{REPO}/tree/[^/]+/?(.*)", place):
                self.listed(found[1])
            else:
                self.answer(b"{}", 404, X_Error_Code="EntryNotFound")

        def about(self, repo: str) -> None:
            if repo not in hub.repos:
                self.answer(b"{}", 404, X_Error_Code="RepoNotFound")
                return
            siblings = [{"rfilename": path} for path in sorted(hub.repos[repo])]
            self.as_json({"id": repo, "sha": hub.sha(repo), "siblings": siblings, "private": False, "tags": []})

        def listed(self, repo: str) -> None:
            self.as_json(
                [
                    {"type": "file", "path": path, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                    for path, body in sorted(hub.repos.get(repo, {}).items())
                ]
            )

        def file(self, repo: str, path: str) -> None:
            if repo not in hub.repos:
                self.answer(b"", 404, X_Error_Code="RepoNotFound")
            elif path not in hub.repos[repo]:
                self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=hub.sha(repo))
            else:
                body = hub.repos[repo][path]
                self.answer(body, ETag=f'"{hashlib.sha256(body).hexdigest()}"', X_Repo_Commit=hub.sha(repo))

        def do_PUT(self) -> None:
            body, oid = self.body(), self.path.rpartition("/")[2]
            if hashlib.sha256(body).hexdigest() != oid:
                hub.faults.append(f"{oid} is another file")
            hub.blobs[oid] = body
            self.answer(b"")

        def do_POST(self) -> None:
            place, body = self.path.partition("?")[0], self.body()
            if place != "/api/validate-yaml" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                hub.faults.append(f"{place} by nobody")
            if place == "/api/repos/create":
                asked = json.loads(body)
                repo = f"{asked['organization']}/{asked['name']}"
                hub.repos.setdefault(repo, {})
                self.as_json({"url": f"{hub.address}/{repo}", "id": repo, "name": repo})
            elif place == "/api/validate-yaml":
                self.validate(json.loads(body)["content"])
            elif re.fullmatch(rf"/api/models/{REPO}/preupload/[^/]+", place):
                files = [one["path"] for one in json.loads(body)["files"]]
                modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in files}
                self.as_json(
                    {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]}
                )
            elif re.fullmatch(rf"/{REPO}\.git/info/lfs/objects/batch", place):
                objects = [
                    {**one, "actions": {"upload": {"href": f"{hub.address}/lfs/{one['oid']}"}}}
                    for one in json.loads(body)["objects"]
                ]
                self.as_json({"transfer": "basic", "objects": objects})
            elif found := re.fullmatch(rf"/api/models/{REPO}/commit/[^/]+", place):
                self.commit(found[1], [json.loads(line) for line in body.splitlines() if line])
            else:
                self.answer(b"{}", 404)

        def validate(self, text: str) -> None:
            """As a hub does before a README.md is taken."""
            front = text.split("---\n")[1] if text.startswith("---\n") else ""
            data = yaml.safe_load(front)
            if not isinstance(data, dict) or not isinstance(data.get("library_name"), str):
                hub.faults.append(f"a card without metadata: {text[:60]!r}")
            self.as_json({"errors": [], "warnings": []})

        def commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    hub.commits.append(f"{repo}: {value['summary']}")
                elif line["key"] == "file":
                    hub.repos[repo][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    blob = hub.blobs.get(value["oid"], b"")
                    if len(blob) != value["size"]:
                        hub.faults.append(f"{value['path']} was never uploaded")
                    hub.repos[repo][value["path"]] = blob
                else:
                    hub.faults.append(f"{line['key']} is not known here")
            sha = hub.sha(repo)
            self.as_json(
                {
                    "success": True,
                    "commitOid": sha,
                    "commitUrl": f"{hub.address}/{repo}/commit/{sha}",
                    "hookOutput": "",
                }
            )

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
