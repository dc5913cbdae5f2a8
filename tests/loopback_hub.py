"""A Hub on 127.0.0.1 that misbehaves on request.

    with LoopbackHub() as hub:
        hub.add_file("zoo/croma", REVISION, "model.safetensors", data)
        hub.fault("reset", path="model.safetensors", method="GET", after=100_000)
        ...  # a client with HF_ENDPOINT=hub.url: see hub_client.py
        assert [r.status for r in hub.requests("model.safetensors", "GET")] == [200]

The read side of the Hub's HTTP interface is served well enough for the stock client: resolve
(HEAD, GET, Range), large files behind a redirect to a second origin, model info, tree, refs, and
the error headers from which the client picks its exception class. A request becomes a `Reply` by
way of `ROUTES`, the first fault that matches edits that reply, then it is sent; so a new route and
a new fault are one function each. Repositories are made, and commits uploaded, over HTTP (not over xet:
clients set HF_HUB_DISABLE_XET).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

CHUNK = 64 * 1024
LINGER_ZERO = struct.pack("ii", 1, 0)  # with it close() sends RST instead of FIN
BEFORE_HEADERS = -1


# --- what is stored, what happened, what is asked and answered -----------------------------------
@dataclass(frozen=True)
class HubFile:
    data: bytes
    lfs: bool

    @property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def etag(self) -> str:
        """Also the name of the blob in the client's cache."""
        return hashlib.sha256(self.data).hexdigest() if self.lfs else self.git_oid


@dataclass
class Repo:
    access: str = "public"  # public | private | gated
    commits: dict[str, dict[str, HubFile]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, HubFile], branch: str = "main") -> str:
        """Add or change files on a branch; the new commit is returned."""
        parent = self.branches.get(branch, "")
        sha = hashlib.sha1(f"{parent} {len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[sha] = self.commits.get(parent, {}) | files
        self.branches[branch] = sha
        return sha


@dataclass
class Record:
    """One request of the log. `status` stays 0 where no answer was begun."""

    origin: str  # hub | cdn
    method: str
    path: str
    range: str | None
    auth: str | None
    status: int = 0
    bytes_sent: int = 0


@dataclass(frozen=True)
class Request:
    hub: LoopbackHub
    method: str
    path: str  # unquoted, without the query
    headers: Any
    body: bytes

    @property
    def token(self) -> str:
        return str(self.headers.get("Authorization", "")).removeprefix("Bearer ")


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    ranged: bool = False  # the body is a file: serve Range requests from it
    cut: int | None = None  # after so many bytes of the body (or BEFORE_HEADERS) comes `ending`
    ending: str = "fin"  # fin | rst | stall
    pause: float = 0.0  # seconds before each chunk; of the stall, where that is the ending
    extra_length: int = 0  # by how much the Content-Length header is off


def as_json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    headers = {"Content-Type": "application/json"} | (headers or {})
    return Reply(status, headers, json.dumps(content).encode())


class Refused(Exception):
    """Carries an error reply out of a route."""

    def __init__(self, status: int, code: str, text: str, **headers: str) -> None:
        about = {"X-Error-Code": code, "X-Error-Message": text}
        self.reply = as_json({"error": text}, status, about | headers)


# --- routes --------------------------------------------------------------------------------------
Route = Callable[..., Reply]
ROUTES: list[tuple[str, re.Pattern[str], Route]] = []
API = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"


def route(methods: str, pattern: str) -> Callable[[Route], Route]:
    """Register a handler `(request, **groups of the pattern) -> Reply`; methods as "GET|HEAD"."""

    def register(handler: Route) -> Route:
        ROUTES.append((methods, re.compile(pattern), handler))
        return handler

    return register


def find_repo(request: Request, name: str, kind: str = "models") -> Repo:
    signed_in = request.token in request.hub.tokens
    repo = request.hub.repos.get(name if kind == "models" else f"{kind}/{name}")
    if repo is None or (repo.access == "private" and not signed_in):
        # The Hub does not tell strangers whether a repository exists.
        raise Refused(404 if signed_in else 401, "RepoNotFound", "Repository not found")
    return repo


def find_commit(repo: Repo, revision: str) -> tuple[str, dict[str, HubFile]]:
    sha = repo.branches.get(revision) or repo.tags.get(revision) or revision
    if sha not in repo.commits:
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return sha, repo.commits[sha]


NAME = r"(?P<name>(datasets/|spaces/)?[^/]+/[^/]+)"


@route("HEAD|GET", "/" + NAME + r"/resolve/(?P<rev>[^/]+)/(?P<file>.+)")
def resolve(request: Request, name: str, rev: str, file: str) -> Reply:
    repo = find_repo(request, name)
    sha, files = find_commit(repo, rev)
    if repo.access == "gated" and request.token not in request.hub.tokens:
        raise Refused(403 if request.token else 401, "GatedRepo", f"Access to {name} is restricted")
    if file not in files:
        raise Refused(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": sha})
    found = files[file]
    headers = {"X-Repo-Commit": sha, "ETag": f'"{found.etag}"'}
    if not found.lfs:
        return Reply(200, headers, found.data, ranged=True)
    headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(found.data))}
    return Reply(302, headers | {"Location": f"{request.hub.cdn_url}/cdn/{name}/{sha}/{file}"})


@route("HEAD|GET", r"/cdn/(?P<name>.+)/(?P<sha>[0-9a-f]{40})/(?P<file>.+)")
def storage(request: Request, name: str, sha: str, file: str) -> Reply:
    found = request.hub.repos[name].commits[sha][file]
    return Reply(200, {"ETag": f'"{found.etag}"'}, found.data, ranged=True)


@route("GET", API + r"(/revision/(?P<rev>[^/]+))?")
def info(request: Request, kind: str, name: str, rev: str | None) -> Reply:
    repo = find_repo(request, name, kind)
    sha, files = find_commit(repo, rev or "main")
    about = {"_id": "0", "id": name, "sha": sha, "tags": [], "private": repo.access == "private"}
    return as_json(about | {"siblings": [sibling(*item) for item in sorted(files.items())]})


def sibling(path: str, file: HubFile) -> dict[str, Any]:
    lfs = {"lfs": {"sha256": file.etag, "size": len(file.data), "pointerSize": 130}} if file.lfs else {}
    return {"rfilename": path, "size": len(file.data), "blobId": file.git_oid} | lfs


def tree_entry(path: str, file: HubFile) -> dict[str, Any]:
    size = len(file.data)
    lfs = {"lfs": {"oid": file.etag, "size": size, "pointerSize": 130}} if file.lfs else {}
    return {"type": "file", "path": path, "size": size, "oid": file.git_oid} | lfs


@route("GET", API + r"/tree/(?P<rev>[^/]+)")
def tree(request: Request, kind: str, name: str, rev: str) -> Reply:
    _, files = find_commit(find_repo(request, name, kind), rev)
    return as_json([tree_entry(*item) for item in sorted(files.items())])


@route("POST", API + r"/paths-info/(?P<rev>[^/]+)")
def paths_info(request: Request, kind: str, name: str, rev: str) -> Reply:
    _, files = find_commit(find_repo(request, name, kind), rev)
    wanted = parse_qs(request.body.decode()).get("paths", [])
    return as_json([tree_entry(path, files[path]) for path in wanted if path in files])


@route("GET", API + r"/refs")
def refs(request: Request, kind: str, name: str) -> Reply:
    repo = find_repo(request, name, kind)

    def rows(prefix: str, named: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": n, "ref": prefix + n, "targetCommit": sha} for n, sha in named.items()]

    heads, tags = rows("refs/heads/", repo.branches), rows("refs/tags/", repo.tags)
    return as_json({"branches": heads, "tags": tags, "converts": [], "pullRequests": []})


@route("GET", API + r"/commits/(?P<rev>[^/]+)")
def commits(request: Request, kind: str, name: str, rev: str) -> Reply:
    repo = find_repo(request, name, kind)
    find_commit(repo, rev)
    same = {"authors": [], "date": "2024-01-01T00:00:00.000Z", "title": "", "message": ""}
    return as_json([{"id": sha} | same for sha in reversed(repo.commits)])


@route("GET", API + r"/auth-check")
def auth_check(request: Request, kind: str, name: str) -> Reply:
    find_repo(request, name, kind)
    return as_json({})


@route("GET", API + r"/xet-read-token/(?P<rev>[^/]+)")
def xet_token(request: Request, kind: str, name: str, rev: str) -> Reply:
    expires = {"X-Xet-Token-Expiration": str(int(time.time()) + 3600)}
    cas = {"X-Xet-Cas-Url": request.hub.dead_url, "X-Xet-Access-Token": "token"}
    return as_json({}, headers=expires | cas)


@route("GET", r"/api/agent-harnesses")
def agent_harnesses(request: Request) -> Reply:
    return as_json({})  # the client asks once per fresh HF_HOME, unless telemetry is off


# --- uploads -------------------------------------------------------------------------------------
def find_writable(request: Request, name: str) -> Repo:
    repo = find_repo(request, name)
    check_writer(request)
    return repo


def check_writer(request: Request) -> None:
    if request.token not in request.hub.tokens:
        raise Refused(401, "", "Invalid username or password.")
    if request.token in request.hub.read_only:
        raise Refused(403, "", "Forbidden: you must use a write token")


@route("POST", r"/api/repos/create")
def create_repo(request: Request) -> Reply:
    check_writer(request)
    asked = json.loads(request.body)
    name = f"{asked['organization']}/{asked['name']}"
    url = {"url": f"{request.hub.url}/{name}"}
    if name in request.hub.repos:
        return as_json({"error": "You already created this model repo"} | url, 409)
    access = "private" if asked.get("visibility") == "private" else "public"
    request.hub.repos[name] = repo = Repo(access)
    repo.commit({".gitattributes": HubFile(b"*.safetensors filter=lfs\n", lfs=False)})
    return as_json(url)


@route("POST", r"/api/validate-yaml")
def validate_yaml(request: Request) -> Reply:
    content = json.loads(request.body)["content"]
    if re.match(r"---\n.*?\n---\n", content, re.DOTALL):
        return as_json({"errors": [], "warnings": []})
    return as_json({"errors": [{"message": "no metadata"}], "warnings": []}, 400)


@route("POST", API + r"/preupload/(?P<rev>[^/]+)")
def preupload(request: Request, kind: str, name: str, rev: str) -> Reply:
    _, files = find_commit(find_writable(request, name), rev)

    def row(path: str) -> dict[str, Any]:
        mode = "lfs" if path.endswith(".safetensors") else "regular"
        known = {"oid": files[path].etag} if path in files else {}
        return {"path": path, "uploadMode": mode, "shouldIgnore": False} | known

    return as_json({"files": [row(file["path"]) for file in json.loads(request.body)["files"]]})


@route("POST", "/" + NAME + r"\.git/info/lfs/objects/batch")
def lfs_batch(request: Request, name: str) -> Reply:
    find_writable(request, name)

    def row(oid: str, size: int) -> dict[str, Any]:
        upload = {"upload": {"href": f"{request.hub.cdn_url}/upload/{oid}"}}
        return {"oid": oid, "size": size} | ({} if oid in request.hub.large else {"actions": upload})

    objects = [row(asked["oid"], asked["size"]) for asked in json.loads(request.body)["objects"]]
    return as_json({"transfer": "basic", "objects": objects})


@route("PUT", r"/upload/(?P<oid>[0-9a-f]{64})")
def upload(request: Request, oid: str) -> Reply:
    if hashlib.sha256(request.body).hexdigest() != oid:
        return Reply(400)
    request.hub.large[oid] = request.body
    return Reply(200)


@route("POST", API + r"/commit/(?P<rev>[^/]+)")
def commit(request: Request, kind: str, name: str, rev: str) -> Reply:
    repo = find_writable(request, name)
    rows = [json.loads(line) for line in request.body.splitlines()]
    asked = [(row["key"], row["value"]) for row in rows]
    parent = next(value for key, value in asked if key == "header").get("parentCommit")
    if parent not in (None, repo.branches[rev]):
        raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
    files = {v["path"]: HubFile(base64.b64decode(v["content"]), lfs=False) for k, v in asked if k == "file"}
    files |= {v["path"]: HubFile(request.hub.large[v["oid"]], lfs=True) for k, v in asked if k == "lfsFile"}
    sha = repo.commit(files, rev)
    return as_json({"success": True, "commitOid": sha, "commitUrl": f"{request.hub.url}/{name}/commit/{sha}"})


# --- faults --------------------------------------------------------------------------------------
def status(_: Request, reply: Reply, code: int, headers: dict[str, str] | None = None) -> Reply:
    """Another status, with headers such as Retry-After or X-Error-Code."""
    return as_json({"error": "injected"}, code, headers)


def truncate(_: Request, reply: Reply, after: int) -> Reply:
    """Close the connection in an orderly way (FIN) too early."""
    return replace(reply, cut=after, ending="fin")


def reset(_: Request, reply: Reply, after: int = BEFORE_HEADERS) -> Reply:
    """Tear the connection down (RST)."""
    return replace(reply, cut=after, ending="rst")


def stall(_: Request, reply: Reply, after: int = BEFORE_HEADERS, seconds: float = 3600) -> Reply:
    """Fall silent for a while; with the defaults, never answer."""
    return replace(reply, cut=after, ending="stall", pause=seconds)


def slow(_: Request, reply: Reply, pause: float) -> Reply:
    """Wait before each 64 KiB."""
    return replace(reply, pause=pause)


def length(_: Request, reply: Reply, by: int) -> Reply:
    """A Content-Length that is too long, or too short where `by` is negative."""
    return replace(reply, extra_length=by)


def corrupt(_: Request, reply: Reply, at: int = -1) -> Reply:
    """Flip one bit of the file; its size stays right."""
    if not reply.ranged:
        return reply
    body = bytearray(reply.body)
    body[at] ^= 1
    return replace(reply, body=bytes(body))


def no_range(_: Request, reply: Reply) -> Reply:
    """Answer a Range request with the whole file and 200, as some proxies do."""
    return replace(reply, ranged=False)


def header(_: Request, reply: Reply, name: str, value: str | None = None) -> Reply:
    """Set a header (a wrong X-Linked-Size, say), or drop it."""
    kept = {key: was for key, was in reply.headers.items() if key != name}
    return replace(reply, headers=kept if value is None else kept | {name: value})


def redirect_loop(request: Request, reply: Reply) -> Reply:
    return Reply(302, {"Location": request.path})


def captive_portal(_: Request, reply: Reply) -> Reply:
    """The login page of a hotel: 200 and HTML, none of the Hub's headers."""
    return Reply(200, {"Content-Type": "text/html"}, b"<html>Accept our terms to go online</html>")


def dead_xet(request: Request, reply: Reply) -> Reply:
    """Say that the file lives in xet storage; every connection to that is refused."""
    name, _, rev, *_ = request.path[1:].rsplit("/", 3)  # for files at the top of the repository
    renew = f"{request.hub.url}/api/models/{name}/xet-read-token/{rev}"
    xet = {"X-Xet-Hash": "ab" * 32, "X-Xet-Refresh-Route": renew}
    return replace(reply, headers=reply.headers | xet)


def overtake(request: Request, reply: Reply) -> Reply:
    """Let somebody else commit to the repository first; the reply is as it was."""
    name = "/".join(request.path.split("/")[3:5])
    request.hub.repos[name].commit({"theirs.txt": HubFile(b"theirs", lfs=False)})
    return reply


KINDS = (status, truncate, reset, stall, slow, length, corrupt, no_range, header)
FAULTS = {f.__name__: f for f in (*KINDS, redirect_loop, captive_portal, dead_xet, overtake)}


@dataclass
class ErrorClass:
    edit: Callable[..., Reply]
    options: dict[str, Any]
    method: str | None
    path: str
    times: int | None  # None: for ever
    unheard: bool  # the request has no effect
    hits: int = 0


# --- the servers ---------------------------------------------------------------------------------
class LoopbackHub:
    """The Hub and, on a second port, the storage that its large files live on."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.tokens: set[str] = set()  # what counts as signed in
        self.read_only: set[str] = set()  # of these tokens, those that may not write
        self.large: dict[str, bytes] = {}  # uploaded files by sha256, committed or not yet
        self.log: list[Record] = []
        self.faults: list[ErrorClass] = []
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self.servers = [Server(self, "hub"), Server(self, "cdn")]
        self.url, self.cdn_url = (f"http://127.0.0.1:{s.server_port}" for s in self.servers)
        self.dead = socket.socket()  # bound and not listening: the port stays refused and taken
        self.dead.bind(("127.0.0.1", 0))
        self.dead_url = f"http://127.0.0.1:{self.dead.getsockname()[1]}"

    def __enter__(self) -> LoopbackHub:
        for server in self.servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.dead.close()
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def add_file(self, repo_id: str, revision: str, filename: str, data: bytes, lfs: bool = True) -> HubFile:
        """Store a file; `main` moves to its revision. `datasets/a/b` names a data set."""
        repo = self.repos.setdefault(repo_id, Repo())
        repo.branches["main"] = revision
        repo.commits.setdefault(revision, {})[filename] = HubFile(data, lfs)
        return repo.commits[revision][filename]

    def fault(
        self,
        kind: str,
        path: str = "",
        method: str | None = None,
        times: int | None = 1,
        unheard: bool = False,
        **options: Any,
    ) -> ErrorClass:
        """Let the next `times` requests (None: all) go wrong whose path contains `path`.

        What they ask for is done all the same, unless they are `unheard`.
        """
        self.faults.append(ErrorClass(FAULTS[kind], options, method, path, times, unheard))
        return self.faults[-1]

    def next_fault(self, request: Request) -> ErrorClass | None:
        """The first fault that matches and is not used up, so that a row of them is a sequence."""
        with self.lock:
            for fault in self.faults:
                left = fault.times is None or fault.hits < fault.times
                asked = fault.method in (None, request.method) and fault.path in request.path
                if left and asked:
                    fault.hits += 1
                    return fault
        return None

    def clear(self) -> None:
        """Forget the faults and the log, keep the files."""
        self.faults, self.log = [], []

    def requests(self, path: str = "", method: str | None = None) -> list[Record]:
        return [r for r in self.log if path in r.path and method in (None, r.method)]


class Server(ThreadingHTTPServer):
    request_queue_size = 64

    def __init__(self, hub: LoopbackHub, origin: str) -> None:
        self.hub, self.origin = hub, origin
        super().__init__(("127.0.0.1", 0), Handler)

    def shutdown_request(self, request: Any) -> None:
        if request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == LINGER_ZERO:
            self.close_request(request)  # shutdown() would send the FIN that a reset must not send
        else:
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # clients that hang up are no news here
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def answer(self) -> None:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        body = self.read_body()
        request = Request(hub, self.command, path, self.headers, body)
        asked = (self.headers.get("Range"), self.headers.get("Authorization"))
        record = Record(self.server.origin, self.command, path, *asked)
        hub.log.append(record)
        fault = hub.next_fault(request)
        reply = Reply(200) if fault and fault.unheard else self.find_reply(request)
        if fault:
            reply = fault.edit(request, reply, **fault.options)
        self.send(reply, record)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

    def find_reply(self, request: Request) -> Reply:
        for methods, pattern, handler in ROUTES:
            match = pattern.fullmatch(request.path)
            if match and request.method in methods.split("|"):
                try:
                    return handler(request, **match.groupdict())
                except Refused as refused:
                    return refused.reply
        return as_json({"error": f"no route for {request.method} {request.path}"}, 404)

    def send(self, reply: Reply, record: Record) -> None:
        """Send, keeping the record up to date: it must be true for a client that is killed too."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", record.range or "")
        if reply.ranged and asked:
            size = len(reply.body)
            start, end = int(asked[1]), int(asked[2] or size - 1)
            where = {"Content-Range": f"bytes {start}-{end}/{size}"}
            body = reply.body[start : end + 1]
            reply = replace(reply, status=206, headers=reply.headers | where, body=body)
        if reply.cut == BEFORE_HEADERS and self.end_early(reply):
            return
        record.status = reply.status
        self.send_response_only(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body) + reply.extra_length))
        self.end_headers()
        self.close_connection |= reply.extra_length != 0
        for piece in pieces(reply) if self.command != "HEAD" else ():
            if record.bytes_sent == reply.cut and self.end_early(reply):
                return
            if reply.ending != "stall" and reply.pause:
                self.server.hub.closing.wait(reply.pause)
            self.wfile.write(piece)
            record.bytes_sent += len(piece)

    def end_early(self, reply: Reply) -> bool:
        """Do what the fault does at the cut; False where the reply goes on after it."""
        if reply.ending == "stall":
            self.server.hub.closing.wait(reply.pause)
            return False
        if reply.ending == "rst":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
        self.close_connection = True
        return True

    def log_message(self, format: str, *args: Any) -> None:
        pass


def pieces(reply: Reply) -> Iterator[bytes]:
    """The body in chunks; one begins exactly at the cut."""
    cut = min(max(reply.cut or 0, 0), len(reply.body))
    for start, end in ((0, cut), (cut, len(reply.body))):
        for at in range(start, end, CHUNK):
            yield reply.body[at : min(at + CHUNK, end)]
