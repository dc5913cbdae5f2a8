"""A web server of files with ranges, whose signed URLs expire, and which fails when told so."""

import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse


class Server(ThreadingHTTPServer):
    """Attributes: ``status`` by file name, which it answers with; ``log`` of (name, status)."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.status, self.log, self.signed = folder, {}, [], False
        self.once = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sign(self, name: str, seconds: float) -> str:
        """A URL that can be read for some seconds."""
        return f"{self.url}/{name}?expires={time.time() + seconds:.3f}"


class _Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        parts = urlparse(self.path)
        name = parts.path.lstrip("/")
        path = self.server.folder / name
        status = self.server.status.get(name)
        if status is None and self.server.once.get(name):
            status = self.server.once[name].pop()
        expires = parse_qs(parts.query).get("expires", ["0"])[0]
        if status is None and self.server.signed and float(expires) < time.time():
            status = 403
        if status is None and not path.is_file():
            status = 404
        if status is not None:
            self.server.log.append((name, status))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        first, last, code = 0, len(data) - 1, 200
        if (wanted := self.headers.get("Range", "")).startswith("bytes="):
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last, code = int(begin), min(int(end or last), last), 206
        self.server.log.append((name, code))
        self.send_response(code)
        self.send_header("Accept-Ranges", "bytes")
        if code == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        if body:
            self.wfile.write(data[first : last + 1])

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve(folder: Path):
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
