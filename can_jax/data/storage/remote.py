"""Reads, writes and listings of object stores, and reads from web servers, through `obstore`.

`obstore` is the Python package of the Rust library `object_store`. `obstore` reads without holding
Python's GIL, so threads read in parallel. In `fsspec`, all clients share one event loop in Python.
In one measurement, a ranged read of 100 kB with `obstore` took 172 µs of CPU time.

`obstore` retries requests with exponential backoff and jitter.
"""

import contextlib
import errno
import functools
import os
import re
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from can_jax.data.storage import hugging_face
from can_jax.utils.errors import UserError
from can_jax.utils.extras import install_command
from can_jax.utils.files import BUCKETS, STORES, WEB

THREADS = 64  # concurrent requests for sizes or existence
PAGE = 1000  # objects per listing request, the limit of S3
SUPPORTED = (*STORES, *WEB)
# Beyond the library's own retries, reads are retried by `can_jax.data.storage.reading.patiently`.
RETRY = {
    "max_retries": 4,
    "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=8)},
    "retry_timeout": timedelta(seconds=20),
}
CLIENT = {
    "connect_timeout": "10s",
    "read_timeout": "20s",  # without receiving a byte
    "timeout": "120s",
    "pool_max_idle_per_host": "1024",
}
EMULATOR = "STORAGE_EMULATOR_HOST"  # the environment variable that names a test server
# HTTP statuses of refused requests, including refused requests for credentials.
REFUSED = re.compile(r"status code: 40[0134]")
BEYOND = re.compile(r"StartTooLarge|416 Range Not Satisfiable")


class Place(NamedTuple):
    """The location of an object or folder: the server, and the name on that server.

    Attributes:
        store: The `obstore` client of the bucket or web server.
        key: The name of the object or folder in the bucket or on the server, without a slash at
            either end.
        base: The URL of the bucket or server, to which ``key`` is appended.
    """

    store: Any
    key: str
    base: str


class Object(NamedTuple):
    """An entry of a listing: the URL of an object, its size in bytes, and a version that changes
    with its content."""

    url: str
    size: int
    version: str


def is_remote(path: str) -> bool:
    """Return whether a path is a URL, such as `gs://bucket/folder`."""
    return "://" in path


def can_list(url: str) -> bool:
    """Return whether the objects below a URL can be listed, which is not possible on web
    servers."""
    return urlsplit(url).scheme not in WEB


def can_write(url: str) -> bool:
    """Return whether an object can be written at a URL, which requires a bucket."""
    return urlsplit(url).scheme in (*BUCKETS, "memory")


def size(url: str) -> int:
    """Return the size in bytes of a remote object.

    Raises:
        OSError: The object does not exist, or the request fails.
        UserError: The URL's scheme is not supported, or `obstore` is not installed.
    """
    obstore, place = _library(), _place(url)
    with _errors(url):
        return int(obstore.head(place.store, place.key)["size"])


def read_range(url: str, offset: int, length: int, most: int = sys.maxsize) -> bytes:
    """Return a range of bytes of a remote object; fewer bytes than requested at the end of the
    object.

    Args:
        url: The URL of the object, such as `gs://bucket/train-0.tar`.
        offset: The offset of the first byte to read, at least 0.
        length: The number of bytes; -1 for all bytes from ``offset`` on.
        most: The largest permitted size of the object in bytes, checked only if ``length`` is -1.

    Raises:
        ValueError: The object is larger than ``most``.
        OSError: The object does not exist, or the request fails.
        UserError: The URL's scheme is not supported, or `obstore` is not installed.
    """
    if length == 0:
        return b""
    obstore, place = _library(), _place(url)
    with _errors(url):
        try:
            if length < 0:
                options: Any = {"range": {"offset": offset}} if offset else None
                answer = obstore.get(place.store, place.key, options=options)
                if answer.meta["size"] > most:
                    raise ValueError(
                        f"the object has {answer.meta['size']} bytes, more than the limit of {most}"
                    )
                return bytes(answer.bytes())
            return bytes(obstore.get_range(place.store, place.key, start=offset, length=length))
        except obstore.exceptions.GenericError as error:
            if BEYOND.search(str(error)):
                return b""
            raise


def write(url: str, content: Any, mode: Literal["create", "overwrite"] = "overwrite") -> None:
    """Write an object to a bucket.

    Args:
        url: The URL of the object, such as `gs://bucket/train-0.tar`.
        content: The content as bytes, or the path of a local file. A large file is uploaded in
            parts, unless ``mode`` is ``create``.
        mode: ``overwrite`` replaces an existing object; ``create`` raises an error if the object
            exists. For ``create``, the server checks for an existing object and writes in one
            operation. With ``create``, only one of several concurrent writers succeeds.

    Raises:
        FileExistsError: The mode is ``create``, and the object exists.
        OSError: The server refuses the write, or the request fails.
        UserError: The URL is not in a bucket, or `obstore` is not installed.
    """
    if not can_write(url):
        supported = ", ".join(f"{name}://" for name in BUCKETS)
        raise UserError(f"{url} cannot be written; only {supported} can be written")
    obstore, place = _library(), _place(url)
    multipart = False if mode == "create" else None  # parts cannot be written exclusively
    with _errors(url):
        obstore.put(place.store, place.key, content, mode=mode, use_multipart=multipart)


def below(url: str) -> Iterator[Object]:
    """Yield all objects below a remote folder, at any depth; the listing is requested page by page.

    Raises:
        OSError: The listing request fails.
        UserError: The folder is on a web server, the URL's scheme is not supported, or `obstore`
            is not installed.
    """
    if urlsplit(url).scheme == "hf":
        yield from (Object(*entry) for entry in hugging_face.below(url))
        return
    obstore, place = _library(), _listable(url)
    with _errors(url):
        for page in obstore.list(place.store, place.key or None, chunk_size=PAGE):
            yield from (_object(place, entry) for entry in page)


def inside(url: str) -> tuple[list[str], list[Object]]:
    """Return the names of a remote folder's subfolders, and the objects directly in the folder.

    Raises:
        OSError: The listing request fails.
        UserError: The folder is on a web server, the URL's scheme is not supported, or `obstore`
            is not installed.
    """
    if urlsplit(url).scheme == "hf":
        folders, entries = hugging_face.inside(url)
        return folders, [Object(*entry) for entry in entries]
    obstore, place = _library(), _listable(url)
    with _errors(url):
        found = obstore.list_with_delimiter(place.store, place.key or None)
    files = [_object(place, entry) for entry in found["objects"]]
    return [path.rsplit("/", 1)[-1] for path in found["common_prefixes"]], files


def _object(place: Place, entry: Any) -> Object:
    """Convert an entry of an `obstore` listing to an `Object`. If the store has no ETags, the
    version of an object is the time of its last change."""
    version = str(entry["e_tag"] or entry["last_modified"])
    return Object(place.base + entry["path"], int(entry["size"]), version)


def is_folder(url: str) -> bool:
    """Return whether there is any object below a URL; False for a URL on a web server, which cannot
    be listed."""
    return can_list(url) and next(below(url), None) is not None


def exists(url: str) -> bool:
    """Return whether an object or a folder exists at a URL."""
    return url in existing([url]) or is_folder(url)


def existing(urls: Iterable[str]) -> dict[str, int]:
    """Return a dict from the URL of each object that exists to its size in bytes.

    If several objects are in the same folder, one listing gives all of their sizes.

    Raises:
        OSError: A request fails for a reason other than a missing object.
        UserError: The scheme of a URL is not supported, or `obstore` is not installed.
    """
    folders: dict[str, list[str]] = {}
    for url in urls:
        folders.setdefault(os.path.dirname(url), []).append(url)
    sizes: dict[str, int] = {}
    alone: list[str] = []
    for folder, members in folders.items():
        if len(members) > 1 and can_list(folder):
            listing = {entry.url: entry.size for entry in inside(folder)[1]}
            sizes.update({url: listing[url] for url in members if url in listing})
        else:
            alone += members

    def size_or_none(url: str) -> int | None:
        with contextlib.suppress(FileNotFoundError):
            return size(url)
        return None

    with ThreadPoolExecutor(min(THREADS, max(1, len(alone)))) as threads:
        for url, found in zip(alone, threads.map(size_or_none, alone), strict=True):
            if found is not None:
                sizes[url] = found
    return sizes


def demand_listing(url: str) -> None:
    """Raise an error if the objects below a URL cannot be listed.

    Raises:
        UserError: The URL is on a web server.
    """
    if not can_list(url):
        raise UserError(
            f"{url}: a web server does not list its files; give their names as a range, such as "
            "https://server/train-{000..127}.tar"
        )


def _listable(url: str) -> Place:
    """Return the `Place` of a remote folder; raise `UserError` if the folder cannot be listed."""
    demand_listing(url)
    return _place(url)


def _place(url: str) -> Place:
    """Return the `Place` to which a URL refers.

    Raises:
        UserError: The URL's scheme is not supported, or `obstore` is not installed.
    """
    scheme, rest = url.split("://", 1)
    bucket, _, key = rest.partition("/")
    if scheme == "hf":
        base, key = hugging_face.resolve(url)
        return Place(_web(base, hugging_face.headers()), key, url[: len(url) - len(key)])
    key = re.sub("/+", "/", key).strip("/")
    store = _store(scheme, bucket, os.environ.get(EMULATOR) if scheme == "gs" else None)
    return Place(store, unquote(key) if scheme in WEB else key, f"{scheme}://{bucket}/")


@functools.cache
def _store(scheme: str, bucket: str, emulator: str | None) -> Any:
    """Return the `obstore` client of a bucket or web server. The client of a bucket takes its
    credentials from the environment."""
    if scheme not in (*BUCKETS, *WEB, "memory"):
        raise UserError(
            f"{scheme}:// cannot be read; supported are {', '.join(f'{s}://' for s in SUPPORTED)}. "
            "Mount the store, or copy its files"
        )
    stores = _library().store
    if scheme in WEB:
        return _web(f"{scheme}://{bucket}", ())
    if scheme == "memory":
        return stores.MemoryStore()
    if scheme == "gs":
        config = {}
        if emulator:
            config = {"base_url": emulator, "bearer_token": "emulator"}
        return stores.GCSStore(
            bucket, config=config, client_options=CLIENT | {"allow_http": True}, retry_config=RETRY
        )
    kind = stores.S3Store if scheme == "s3" else stores.AzureStore
    # A server in the user's own network, given by AWS_ENDPOINT_URL for example, may lack TLS.
    return kind(bucket, client_options=CLIENT | {"allow_http": True}, retry_config=RETRY)


@functools.cache
def _web(base: str, headers: tuple[tuple[str, str], ...]) -> Any:
    options: dict[str, Any] = CLIENT | {"allow_http": base.startswith("http://")}
    if headers:
        options["default_headers"] = dict(headers)
    return _library().store.HTTPStore.from_url(base, client_options=options, retry_config=RETRY)


def _library() -> Any:
    """Return the module `obstore`.

    Raises:
        UserError: The package `obstore` is not installed.
    """
    try:
        import obstore.store
    except ModuleNotFoundError as error:
        raise UserError(f"reading URLs requires obstore: {install_command('remote')}") from error
    return obstore


@contextlib.contextmanager
def _errors(url: str) -> Iterator[None]:
    """Convert the errors of `obstore` to `OSError`; a missing object raises `FileNotFoundError`."""
    kinds = _library().exceptions
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "not found", url) from error
    except (kinds.AlreadyExistsError, FileExistsError) as error:
        raise FileExistsError(errno.EEXIST, "already exists", url) from error
    except (kinds.PermissionDeniedError, kinds.UnauthenticatedError) as error:
        raise PermissionError(errno.EACCES, _reason(error), url) from error
    except kinds.BaseError as error:
        refused = REFUSED.search(str(error))
        raise OSError(errno.EACCES if refused else errno.EIO, _reason(error), url) from error


def _reason(error: Exception) -> str:
    """Return the message of an `obstore` error on one line, without the dump of internal
    objects."""
    return " ".join(str(error).split("\n\nDebug source")[0].split())[:300]
