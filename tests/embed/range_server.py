"""A web server of files with ranges, whose signed URLs expire, and which fails when told so.

It is a process of its own: GDAL may wait for an answer while it holds the interpreter.
"""

import json
import multiprocessing
import tempfile
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse


class Server:
    """What a test says to the server, and hears of it."""

    def __init__(self, url: str, control: Path) -> None:
        self.url, self._control = url, control

    def tell(self, **state: object) -> None:
        """Set ``signed`` (URLs expire), and by file ``status``, or ``once``: statuses to begin with.

        With ``again`` another time.
        """
        (self._control / "state.json").write_text(json.dumps(state))

    def sign(self, name: str, seconds: float) -> str:
        """A URL that can be read for some seconds."""
        return f"{self.url}/{name}?expires={time.time() + seconds:.3f}"

    @property
    def statuses(self) -> set[int]:
        """All statuses that were answered."""
        return {int(line) for line in (self._control / "log").read_text().split()}


class _Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        state = json.loads((self.server.control / "state.json").read_text())
        parts = urlparse(self.path)
        name = parts.path.lstrip("/")
        path = self.server.folder / name
        status = state.get("status", {}).get(name)
        begun = self.server.begun.setdefault(
            (name, "again" in state), list(state.get("once", {}).get(name, []))
        )
        if status is None and begun:
            status = begun.pop()
        expires = parse_qs(parts.query).get("expires", ["0"])[0]
        if status is None and state.get("signed") and float(expires) < time.time():
            status = 403
        if status is None and not path.is_file():
            status = 404
        data = b"" if status else path.read_bytes()
        first, last, code = 0, len(data) - 1, status or 200
        if not status and (wanted := self.headers.get("Range", "")).startswith("bytes="):
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last, code = int(begin), min(int(end or last), last), 206
        with (self.server.control / "log").open("a") as log:
            log.write(f"{code}\n")
        self.send_response(code)
        self.send_header("Accept-Ranges", "bytes")
        if not status:
            self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        if code == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        if body:
            self.wfile.write(data[first : last + 1])

    def log_message(self, *_: object) -> None:
        pass


def _run(folder: Path, control: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.folder, server.control, server.begun = folder, control, {}
    (control / "port").write_text(str(server.server_port))
    server.serve_forever()


@contextmanager
def serve(folder: Path):
    with tempfile.TemporaryDirectory() as name:
        control = Path(name)
        (control / "state.json").write_text("{}")
        (control / "log").touch()
        process = multiprocessing.get_context("forkserver").Process(target=_run, args=(folder, control))
        process.start()
        try:
            while not (control / "port").exists() or not (control / "port").read_text():
                time.sleep(0.02)
            yield Server(f"http://127.0.0.1:{(control / 'port').read_text()}", control)
        finally:
            process.kill()
            process.join()
