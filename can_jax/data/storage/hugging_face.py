"""URLs and listings of data sets on the Hugging Face Hub, `hf://datasets/USER/NAME/PATH`."""

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from can_jax.utils.errors import UserError, one_line

ENDPOINT = "HF_ENDPOINT"  # the variable of huggingface_hub
HUB = "https://huggingface.co"
ADDRESS = re.compile(r"hf://(datasets/[\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.*))?")
NEXT = re.compile(r'<([^>]+)>;\s*rel="next"')
TIMEOUT = 60.0  # seconds of a request
Entry = tuple[str, int, str]  # the URL, the size in bytes and the version of a file


def headers() -> tuple[tuple[str, str], ...]:
    """Return the HTTP headers of requests to the Hub, with the token in the environment variable
    `HF_TOKEN` if that is set."""
    token = os.environ.get("HF_TOKEN")
    return (("Authorization", f"Bearer {token}"),) if token else ()


def resolve(url: str) -> tuple[str, str]:
    """Return the HTTP URL below which the Hub serves a data set's files, and the path of a file
    relative to it.

    Raises:
        UserError: The URL is not of the form `hf://datasets/USER/NAME/PATH`.
    """
    repository, revision, path = _parts(url)
    return f"{_hub()}/{repository}/resolve/{revision}", path


def below(url: str) -> Iterator[Entry]:
    """Yield the URL, size and version of every file below a folder of a data set."""
    for entry in _tree(url, recursive=True):
        if entry["type"] == "file":
            yield _file(url, entry)


def inside(url: str) -> tuple[list[str], list[Entry]]:
    """Return the names of a folder's subfolders, and the URL, size and version of each file
    directly in it."""
    entries = list(_tree(url, recursive=False))
    folders = [e["path"].rsplit("/", 1)[-1] for e in entries if e["type"] == "directory"]
    return folders, [_file(url, entry) for entry in entries if entry["type"] == "file"]


def _parts(url: str) -> tuple[str, str, str]:
    match = ADDRESS.fullmatch(url)
    if not match:
        raise UserError(
            f"{url}: give hf://datasets/USER/NAME/PATH; models and Spaces are not supported"
        )
    return match[1], match[2] or "main", (match[3] or "").strip("/")


def _hub() -> str:
    return os.environ.get(ENDPOINT, HUB).rstrip("/")


def _file(url: str, entry: dict[str, Any]) -> Entry:
    path = _parts(url)[2]
    base = url.rstrip("/")[: len(url.rstrip("/")) - len(path)].rstrip("/")
    return f"{base}/{entry['path']}", int(entry["size"]), str(entry["oid"])


def _tree(url: str, recursive: bool) -> Iterator[dict[str, Any]]:
    """Yield the entries of the Hub's listing of a folder, requested page by page; no entry if the
    folder does not exist.

    Raises:
        UserError: The Hub cannot be reached, or refuses the request.
    """
    repository, revision, path = _parts(url)
    page: str | None = f"{_hub()}/api/{repository}/tree/{revision}/{path}".rstrip("/")
    page = f"{page}?recursive={'true' if recursive else 'false'}"
    while page:
        try:
            request = urllib.request.Request(page, headers=dict(headers()))
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                yield from json.load(answer)
                following = NEXT.search(answer.headers.get("Link", ""))
        except urllib.error.HTTPError as error:
            if error.code == 404 and path:
                return
            raise UserError(f"{url} cannot be listed: HTTP {error.code} {error.reason}") from error
        except (OSError, ValueError) as error:
            raise UserError(f"{url} cannot be listed: {one_line(error)}") from error
        page = following[1] if following else None
