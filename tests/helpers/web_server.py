"""A web server of a folder that answers range requests, and the parts of the Hugging Face Hub's API
through which data sets are read.

The data set `datasets/user/name` of the Hub holds the files of the folder. As on the Hub, listings
have pages, and files are answered by a redirection to another URL.
"""

import contextlib
import json
import random
import re
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 3  # entries of a listing
TREE = re.compile(r"/api/datasets/user/name/tree/main(?:/(.*))?")
RESOLVE = "/datasets/user/name/resolve/main/"
RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Handler(BaseHTTPRequestHandler):
    """The answers to requests for the files below ``root``."""

    protocol_version = "HTTP/1.1"
    root: Path
    failing: float
    token: str | None
    dice: random.Random

    def log_message(self, *_):
        """Print nothing."""

    def answer(self, status, body=b"", **headers):
        dice = self.dice.random()
        if dice < self.failing / 2:
            status, body, headers = 503, b"", {}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            cut = self.failing / 2 <= dice < self.failing
            self.wfile.write(body[: len(body) // 2] if cut else body)
            self.close_connection = cut

    def do_GET(self):
        url = urlsplit(self.path)
        path = unquote(url.path)
        hub = path.startswith(("/api/", RESOLVE))
        if hub and self.token and self.headers["Authorization"] != f"Bearer {self.token}":
            self.answer(401)
        elif listing := TREE.fullmatch(path):
            self.list(listing[1] or "", {k: v[0] for k, v in parse_qs(url.query).items()})
        elif path.startswith(RESOLVE):
            self.answer(302, Location=f"/{path.removeprefix(RESOLVE)}")
        else:
            self.file(self.root / path.lstrip("/"))

    do_HEAD = do_GET  # noqa: N815

    def list(self, folder, query):
        """Answer with one page of a listing, and the URL of the next."""
        top = self.root / folder
        if not top.is_dir():
            self.answer(404)
            return
        members = sorted(top.rglob("*") if query["recursive"] == "true" else top.iterdir())
        first = int(query.get("cursor", 0))
        entries = [
            {
                "type": "file" if path.is_file() else "directory",
                "path": str(path.relative_to(self.root)),
                "size": path.stat().st_size if path.is_file() else 0,
                "oid": str(path.stat().st_mtime_ns),
            }
            for path in members[first : first + PAGE]
        ]
        more = {}
        if first + PAGE < len(members):
            host, path = self.headers["Host"], urlsplit(self.path).path
            query = f"recursive={query['recursive']}&cursor={first + PAGE}"
            more = {"Link": f'<http://{host}{path}?{query}>; rel="next"'}
        self.answer(200, json.dumps(entries).encode(), **more)

    def file(self, path):
        """Answer with a file, or the requested range of it."""
        if not path.is_file():
            self.answer(404)
            return
        content = path.read_bytes()
        facts = {"Accept_Ranges": "bytes", "ETag": f'"{path.stat().st_mtime_ns}"'}
        if not (asked := RANGE.fullmatch(self.headers.get("Range", ""))):
            self.answer(200, content, **facts)
            return
        start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        if start >= len(content):
            self.answer(416, Content_Range=f"bytes */{len(content)}")
            return
        facts["Content_Range"] = f"bytes {start}-{end}/{len(content)}"
        self.answer(206, content[start : end + 1], **facts)


@contextlib.contextmanager
def serve(folder, certificate=None, failing=0.0, token=None):
    """Serve a folder, and return the port.

    Args:
        folder: The folder.
        certificate: A PEM file with a certificate and its private key; TLS is used if it is given.
        failing: The fraction of the requests that fail, half of them in the middle of the answer.
        token: The token without which the Hub refuses requests.
    """
    options = {"root": folder, "failing": failing, "token": token, "dice": random.Random(0)}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), options))
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
