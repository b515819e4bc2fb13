"""URLs and listings of data sets on the Hugging Face Hub, `hf://datasets/USER/NAME/PATH`."""

import errno
import functools
import json
import os
import re
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from can_jax.utils.errors import UserError, one_line
from can_jax.utils.extras import install_command

ENDPOINT = "HF_ENDPOINT"  # the environment variable that huggingface_hub reads
HUB = "https://huggingface.co"
ADDRESS = re.compile(r"hf://(datasets/[\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.*))?")
NEXT = re.compile(r'<([^>]+)>;\s*rel="next"')
TIMEOUT = 60.0  # the timeout of a request in seconds
BUSY = (429, 500, 502, 503, 504)  # HTTP statuses after which a request is repeated
# Retries of one request. `can_jax.data.storage.reading.patiently` also retries a whole listing.
RETRIES = 4
Entry = tuple[str, int, str]  # the URL, the size in bytes and the version of a file


def headers() -> tuple[tuple[str, str], ...]:
    """Return the HTTP headers of requests to the Hub. They contain the token in the environment
    variable `HF_TOKEN` if this variable is set."""
    token = os.environ.get("HF_TOKEN")
    return (("Authorization", f"Bearer {token}"),) if token else ()


def resolve(url: str) -> tuple[str, str]:
    """Split the `hf://` URL of a file into the HTTP URL of the data set's files and the path of the
    file below this URL.

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
    """Yield the entries of the Hub's listing of a folder, which is requested page by page. If the
    folder does not exist, there are no entries.

    Raises:
        UserError: The Hub refuses the request, its answer is not JSON, or `urllib3` is not
            installed.
        OSError: The Hub cannot be reached, or is too busy to answer.
    """
    repository, revision, path = _parts(url)
    page: str | None = f"{_hub()}/api/{repository}/tree/{revision}/{path}".rstrip("/")
    page = f"{page}?recursive={'true' if recursive else 'false'}"
    while page:
        answer = _get(page, url)
        if answer.status == 404 and path:
            return
        if answer.status != 200:
            raise UserError(f"{url} cannot be listed: HTTP {answer.status} {answer.reason}")
        try:
            entries = json.loads(answer.data)
        except ValueError as error:
            raise UserError(f"{url} cannot be listed: {one_line(error)}") from error
        yield from entries
        following = NEXT.search(answer.headers.get("Link", ""))
        page = following[1] if following else None


def _get(page: str, url: str) -> Any:
    """Return the response to a request, which is repeated up to `RETRIES` times if the Hub is busy.

    Args:
        page: The HTTP URL to request.
        url: The `hf://` URL of the data set, for error messages.

    Raises:
        UserError: `urllib3` is not installed.
        OSError: The Hub cannot be reached, or is still busy after all retries.
    """
    client = _client(_hub())
    from urllib3.exceptions import HTTPError

    try:
        return client.request("GET", page, headers=dict(headers()), timeout=TIMEOUT)
    except HTTPError as error:
        raise OSError(errno.EIO, f"cannot be listed: {one_line(error)}", url) from error


@functools.cache
def _client(hub: str) -> Any:
    """Return an HTTP client for a Hub. The client uses the proxy in the environment variables if
    one is set."""
    try:
        import urllib3
    except ModuleNotFoundError as error:
        raise UserError(f"reading hf:// requires urllib3: {install_command('remote')}") from error
    retries = urllib3.Retry(
        RETRIES, status_forcelist=BUSY, backoff_factor=0.25, backoff_max=8, backoff_jitter=0.5
    )
    server = urlsplit(hub)
    proxy = urllib.request.getproxies().get(server.scheme)
    if proxy and not urllib.request.proxy_bypass(server.netloc):
        return urllib3.ProxyManager(proxy, retries=retries)
    return urllib3.PoolManager(retries=retries)
