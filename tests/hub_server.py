"""A Hugging Face Hub in miniature, on this machine: what `huggingface_hub` asks when it lists and fetches files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class HubServer:
    """Serves `repositories` at `url`, counts, and misbehaves when told to.

    Attributes:
        requests: how many requests came, by method.
        fetched: the files fetched, in order, as `"owner/name/file"`.
        cut: names of files whose next transfer breaks off in the middle; what follows is refused.
        down: answer everything with 503.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}  # repository -> commit -> file -> content
        self.branches: dict[tuple[str, str], str] = {}
        self.tokens: dict[str, str] = {}
        self.gated: set[str] = set()
        self.requests: Counter[str] = Counter()
        self.fetched: list[str] = []
        self.cut: set[str] = set()
        self.down = False
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def add(self, repository: str, files: dict[str, bytes], branch: str = "main", token: str | None = None) -> str:
        """Commit `files` as all there is on `branch`; returns the commit."""
        text = repr((repository, sorted(files.items()))).encode()
        commit = hashlib.sha1(text).hexdigest()
        self.repositories.setdefault(repository, {})[commit] = dict(files)
        self.branches[repository, branch] = commit
        if token:
            self.tokens[repository] = token
        return commit

    def forget(self) -> None:
        """Begin to count anew."""
        self.requests.clear()
        self.fetched.clear()

    def environment(self, home: Path) -> dict[str, str]:
        """What makes a new process ask this server and keep files in `home`."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN": ""}

    def reach(self, monkeypatch: Any, home: Path) -> None:
        """The same for this process, where `huggingface_hub` has read its environment already."""
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    wbufsize = -1  # an answer in one piece

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str, **headers: str) -> None:
        self._answer(status, json.dumps({"error": code}).encode(), X_Error_Code=code, X_Error_Message=code, **headers)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.hub
        hub.requests[self.command] += 1
        if hub.down:
            return self._refuse(503, "Unavailable")
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        verbs = ("revision", "tree") if api else ("resolve",)
        at = next((i for i, part in enumerate(parts) if part in verbs), len(parts))
        repository, file = "/".join(parts[:at]), "/".join(parts[at + 2:])
        verb, revision = parts[at:at + 2] or ("revision", "main")
        commits = hub.repositories.get(repository)
        token = hub.tokens.get(repository)
        if commits is None or (token and self.headers.get("Authorization") != f"Bearer {token}"):
            return self._refuse(401, "RepoNotFound")  # as the real one says, whether there is none or none to be seen
        if repository in hub.gated:
            return self._refuse(403, "GatedRepo")
        commit = hub.branches.get((repository, revision), revision)
        if commit not in commits:
            return self._refuse(404, "RevisionNotFound")
        files = commits[commit]
        if verb == "revision":
            siblings = [{"rfilename": name} for name in files]
            return self._json({"id": repository, "modelId": repository, "sha": commit, "siblings": siblings,
                               "private": bool(token), "tags": [], "downloads": 0, "likes": 0})
        if verb == "tree":
            return self._json([{"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
                               for name, content in files.items()])
        if file not in files:
            return self._refuse(404, "EntryNotFound", X_Repo_Commit=commit)
        self._file(f"{repository}/{file}", file, files[file], commit)

    def _json(self, content: Any) -> None:
        self._answer(200, json.dumps(content).encode(), Content_Type="application/json")

    def _file(self, name: str, file: str, content: bytes, commit: str) -> None:
        headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": commit, "X-Linked-ETag": f'"{_etag(content)}"',
                   "X-Linked-Size": str(len(content)), "Accept-Ranges": "bytes"}
        if self.command == "GET":
            self.hub.fetched.append(name)
        if self.command == "GET" and file in self.hub.cut:
            self.hub.cut.discard(file)
            self.hub.down = True
            self.send_response(200)
            for header, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            return
        self._answer(200, content, **headers)


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
