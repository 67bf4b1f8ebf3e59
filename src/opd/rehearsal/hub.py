"""A hub of this machine, for what a rehearsal stands in for: the part of the Hugging Face hub's
interface that its clients ask for to lock, fetch and stream repositories.

A repository is a folder ``models/ORG/NAME`` or ``datasets/ORG/NAME``; it has one commit, whatever
revision is asked for.
"""

import hashlib
import json
import re
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = re.compile("[0-9a-f]{1,40}")
# The type of a repository as addresses have it, its name, then what is asked of it.
API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info|refs|auth-check)(?:/(.*))?)?"
)
FILE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


def commit(name: str, known: str = "") -> str:
    """A commit (40 hex digits) for a repository, beginning with what is ``known`` of it: the digits
    of a revision that is no branch or tag."""
    begun = known if COMMIT.fullmatch(known) else ""
    return (begun + hashlib.sha1(name.encode()).hexdigest())[:40]


@contextmanager
def served(
    root: Path,
    commits: dict[str, str],
    requests: list[str] | None = None,
    gated: Collection[str] = (),
) -> Iterator[str]:
    """Serve the repositories below ``root`` while this context lasts; yields the address.
    ``commits``: repository (``models/ORG/NAME``) -> its commit; ``requests``: gets the method and
    address of all that is asked for; ``gated``: repositories whose files nobody may have."""
    handler = partial(_Handler, root, commits, [] if requests is None else requests, gated)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(
        self,
        root: Path,
        commits: dict[str, str],
        requests: list[str],
        gated: Collection[str],
        *given: Any,
    ) -> None:
        self.root, self.commits, self.requests, self.gated = root, commits, requests, gated
        super().__init__(*given)

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        given = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.requests.append(f"{self.command} {self.path}")
        address = urlsplit(self.path)
        path = unquote(address.path)
        if asked := FILE.fullmatch(path):
            kind, name, _, file = asked.groups()
            self._file(f"{kind or 'models'}/{name}", file)
        elif asked := API.fullmatch(path):
            kind, name, what, rest = asked.groups()
            self._about(f"{kind}/{name}", what or "revision", rest or "", address.query, given)
        else:
            self._json({"error": f"nothing is at {path}"}, HTTPStatus.NOT_FOUND)

    do_HEAD = do_GET = do_POST = _answer

    def _about(self, repository: str, what: str, rest: str, query: str, given: bytes) -> None:
        folder = self.root / repository
        if repository not in self.commits or not folder.is_dir():
            self._json(
                {"error": f"no stand-in for {repository}"}, HTTPStatus.NOT_FOUND, "RepoNotFound"
            )
            return
        if what == "auth-check" and repository in self.gated:
            self._json({"error": "it is gated"}, HTTPStatus.FORBIDDEN, "GatedRepo")
            return
        sha = self.commits[repository]
        files = {
            p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()
        }
        if what == "revision":
            _, _, name = repository.partition("/")
            about = {
                **{"_id": sha[:24], "id": name, "modelId": name, "sha": sha, "private": False},
                **{
                    "gated": repository in self.gated and "manual",
                    "disabled": False,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                },
                "siblings": [
                    {"rfilename": file, **_entry(file, path)} for file, path in files.items()
                ],
            }
            self._json(about)
        elif what == "tree":
            below = rest.partition("/")[2]
            deep = parse_qs(query).get("recursive", ["false"])[0].lower() in ("true", "1")
            self._json(_tree(files, below, deep))
        elif what == "paths-info":
            asked = _paths(given, self.headers.get("Content-Type", ""))
            found = [_entry(path, files[path]) for path in asked if path in files]
            folders = [p for p in asked if p not in files and _tree(files, p, False)]
            self._json(found + [_folder(path) for path in folders])
        else:
            self._json(
                {
                    "branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": sha}],
                    "tags": [],
                    "converts": [],
                }
            )

    def _file(self, repository: str, name: str) -> None:
        folder = (self.root / repository).resolve()
        path = (folder / name).resolve()
        if repository not in self.commits or not path.is_relative_to(folder) or not path.is_file():
            self._json(
                {"error": f"no {name} in {repository}"}, HTTPStatus.NOT_FOUND, "EntryNotFound"
            )
            return
        data = path.read_bytes()
        first, last, status = 0, len(data) - 1, HTTPStatus.OK
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(part[1]), min(int(part[2] or last), last)
            status = HTTPStatus.PARTIAL_CONTENT
        self.send_response(status)
        if status == HTTPStatus.PARTIAL_CONTENT:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("X-Repo-Commit", self.commits[repository])
        self.send_header("ETag", f'"{_blob(data)}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last + 1 - first))
        self._end(data[first : last + 1])

    def _json(self, value: Any, status: HTTPStatus = HTTPStatus.OK, code: str = "") -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", value["error"])
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self._end(data)

    def _end(self, data: bytes) -> None:
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _blob(data: bytes) -> str:
    """The name that git gives to a file with these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(name: str, path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    oid = _blob(data)
    return {"type": "file", "path": name, "size": len(data), "oid": oid, "blobId": oid}


def _folder(name: str) -> dict[str, Any]:
    return {
        "type": "directory",
        "path": name,
        "size": 0,
        "oid": hashlib.sha1(name.encode()).hexdigest(),
    }


def _tree(files: dict[str, Path], below: str, deep: bool) -> list[dict[str, Any]]:
    prefix = f"{below}/" if below else ""
    entries: dict[str, dict[str, Any]] = {}
    for name, path in files.items():
        if name.startswith(prefix):
            inner = name.removeprefix(prefix).split("/")
            for depth in range(1, len(inner) if deep else min(2, len(inner))):
                folder = prefix + "/".join(inner[:depth])
                entries[folder] = _folder(folder)
            if deep or len(inner) == 1:
                entries[name] = _entry(name, path)
    return [*entries.values()]


def _paths(given: bytes, content_type: str) -> list[str]:
    if "json" in content_type:
        paths = json.loads(given or b"{}").get("paths", [])
    else:
        paths = parse_qs(given.decode()).get("paths", [])
    return [paths] if isinstance(paths, str) else list(paths)
