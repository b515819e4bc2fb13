"""Folders as people have them: links, pipes, odd names, no permissions, few descriptors."""

import contextlib
import ctypes
import errno
import fcntl
import os
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from can_jax.data.index.build import build_index
from can_jax.data.index.examine import Plan
from can_jax.data.index.folder_lock import LOCK
from can_jax.data.sources.example_table import FOLDER, load_table
from can_jax.data.sources.folder import open_folder
from can_jax.data.sources.shards import open_webdataset
from can_jax.data.storage import reading
from can_jax.data.storage.files import find_images
from can_jax.data.storage.reading import OpenFiles, open_limit, open_random, patiently
from can_jax.utils.errors import UserError
from tests.data.samples import encode, write_tar
from tests.helpers.runs import main_in_process

RNG = np.random.default_rng(0)
SETS = ("effective", "permitted", "inheritable")
IMAGES = [encode(RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)) for _ in range(4)]


def put(root, **content):
    for name, image in content.items():
        path = root / f"{name.replace('_', '/')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)


class Capabilities(ctypes.Structure):
    """The sets of capget(2): two words of each."""

    _fields_ = [(name + word, ctypes.c_uint32) for word in "01" for name in SETS]


@contextlib.contextmanager
def bound_by_permissions():
    """This thread, and those it starts, may read only what modes allow, also as root."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # the version of the two structures; this thread
    given = Capabilities()
    libc = ctypes.CDLL(None)
    assert libc.capget(header, ctypes.byref(given)) == 0
    bound = Capabilities.from_buffer_copy(given)
    bound.effective0 &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, ctypes.byref(bound)) == 0
    try:
        yield
    finally:
        assert libc.capset(header, ctypes.byref(given)) == 0


@contextlib.contextmanager
def descriptors(limit):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_below(folder):
    """Return the names of the files of a folder that this process has open, sorted."""
    paths = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one of this listing
            paths.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return sorted(os.path.basename(path) for path in paths if path.startswith(f"{folder}/"))


def used_descriptors():
    return max(map(int, os.listdir("/dev/fd"))) + 1


def test_what_is_no_readable_file_is_counted_with_its_cause(tmp_path, capsys):
    put(tmp_path, a_good=IMAGES[0], b_good=IMAGES[1])
    (tmp_path / "a/gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "a/self.jpg").symlink_to("self.jpg")
    os.mkfifo(tmp_path / "b/pipe.jpg")
    names = find_images(str(tmp_path))[0]
    build_index(Plan("folder", str(tmp_path)), names, tmp_path / FOLDER / "train")
    assert "3 undecodable images are left out" in capsys.readouterr().out
    lines = (tmp_path / FOLDER / "train/undecodable.txt").read_text().splitlines()
    assert lines == [
        "a/gone.jpg: cannot be read: No such file or directory",
        "a/self.jpg: cannot be read: Too many levels of symbolic links",
        "b/pipe.jpg: cannot be read: not a regular file",
    ]
    assert len(load_table(tmp_path / FOLDER / "train")[0]) == 2


def test_pipes_are_never_waited_for(tmp_path, caplog):
    put(tmp_path, a=IMAGES[0])
    os.mkfifo(tmp_path / "b.png")
    os.mkfifo(tmp_path / "c")
    (tmp_path / "d.png").symlink_to("nowhere.png")
    (tmp_path / "e.png").symlink_to("e.png")
    source = open_folder(str(tmp_path), "train")
    assert source.read(np.arange(source.examples))[0] == [IMAGES[0]]
    assert "3 images that are broken links or not regular files are left out" in caplog.text
    assert "b.png, d.png, e.png" in caplog.text
    os.mkfifo(tmp_path / "train.tar")
    with pytest.raises(UserError, match=r"train\.tar cannot be read: not a regular file"):
        open_webdataset(str(tmp_path / "train.tar"), "train")


def test_links_and_pipes_among_shards_are_left_out(tmp_path, caplog, capsys):
    write_tar(tmp_path / "train-0.tar", [("0.png", IMAGES[0])])
    (tmp_path / "train-1.tar").symlink_to("nowhere.tar")
    os.mkfifo(tmp_path / "train-2.tar")
    source = open_webdataset(str(tmp_path), "train")
    assert source.read(np.arange(source.examples))[0] == [IMAGES[0]]
    assert "train-1.tar cannot be read: No such file or directory; 0 of its" in caplog.text
    assert "train-2.tar cannot be read: not a regular file" in caplog.text
    names = [f"train-{i}.tar" for i in range(3)]
    build_index(Plan("webdataset", str(tmp_path)), names, tmp_path / FOLDER / "train")
    assert "train-1.tar cannot be read" in capsys.readouterr().out
    assert open_webdataset(str(tmp_path), "train").examples == 1
    (tmp_path / "train-1.tar").unlink()
    (tmp_path / "train-1.tar").symlink_to("train-0.tar")
    with pytest.raises(UserError, match=r"does not match .*train-1\.tar, whose size has changed"):
        open_webdataset(str(tmp_path), "train")


def test_what_may_not_be_read_is_counted_with_its_cause(tmp_path, caplog, capsys):
    data = tmp_path / "data"
    put(data, a_open=IMAGES[0], b_closed=IMAGES[1], c_inside=IMAGES[2])
    write_tar(tmp_path / "tars/train-0.tar", [("0.png", IMAGES[0])])
    write_tar(tmp_path / "tars/train-1.tar", [("1.png", IMAGES[1])])
    (data / "b/closed.png").chmod(0)
    (data / "c").chmod(0)
    (tmp_path / "tars/train-1.tar").chmod(0)
    data.chmod(0o555)
    out = tmp_path / "out"
    with bound_by_permissions():
        names = find_images(str(data))[0]
        assert names == ["a/open.png", "b/closed.png"]
        assert "1 folders cannot be read and are left out" in caplog.text
        assert f"{data}/c: Permission denied" in caplog.text
        build_index(Plan("folder", str(data)), names, out / "a")
        assert "closed.png: cannot be read: Permission" in (out / "a/undecodable.txt").read_text()
        shards = ["train-0.tar", "train-1.tar"]
        build_index(Plan("webdataset", str(tmp_path / "tars")), shards, out / "b")
        assert "train-1.tar cannot be read: Permission denied" in capsys.readouterr().out
        source = open_webdataset(str(tmp_path / "tars"), "train", index=str(out / "b"))
        assert source.examples == 1
        assert open_webdataset(str(tmp_path / "tars"), "train").examples == 1
        with pytest.raises(UserError, match=r"index cannot be written: Permission denied; give"):
            build_index(Plan("folder", str(data)), names, data / "index")
    for folder in (data, data / "c"):
        folder.chmod(0o755)


def test_links_in_circles_show_each_file_once(tmp_path):
    put(tmp_path, a_1=IMAGES[0], b_2=IMAGES[1], c_3=IMAGES[2])
    for link, target in [("a/b", "b"), ("b/c", "c"), ("c/a", "a"), ("b/a", "a"), ("a/self", "a")]:
        (tmp_path / link).symlink_to(tmp_path / target)
    assert find_images(str(tmp_path))[0] == ["a/1.png", "b/2.png", "c/3.png"]
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    put(outside, x_4=IMAGES[3])
    (outside / "back").symlink_to(tmp_path)
    (tmp_path / "d").symlink_to(outside)
    assert find_images(str(tmp_path))[0] == ["a/1.png", "b/2.png", "c/3.png", "d/x/4.png"]


def test_links_too_many_on_a_path_are_named(tmp_path, caplog):
    for level in range(7):
        put(tmp_path.parent / f"{tmp_path.name}-{level}", image=IMAGES[0])
    for level in range(7):
        above = tmp_path.parent / f"{tmp_path.name}-{level - 1}" if level else tmp_path
        (above / "next").symlink_to(tmp_path.parent / f"{tmp_path.name}-{level}")
    assert len(find_images(str(tmp_path))[0]) == 5
    left_out = tmp_path / "/".join(["next"] * 6)
    told = f"1 folders behind more than 5 nested symbolic links are left out: {left_out}"
    assert told in caplog.text


def test_names_that_are_not_utf8(tmp_path):
    folder = os.fsencode(tmp_path) + b"/train/caf\xe9"
    os.makedirs(folder)
    for name, content in [(b"1.png", IMAGES[0]), (b"2.png", IMAGES[0]), (b"no\xff.png", b"no")]:
        with open(folder + b"/" + name, "wb") as file:
            file.write(content)
    with open(folder + b"/note\xe9.txt", "wb"):
        pass
    done = main_in_process("can_jax.data.index", tmp_path, "--workers=1")
    assert done.returncode == 0, done.stderr
    assert "note\\xe9.txt" in done.stdout and "2 examples indexed" in done.stdout
    out = tmp_path / "train" / FOLDER / "train"
    assert (out / "undecodable.txt").read_bytes().startswith(b"caf\xe9/no\xff.png: cannot")
    assert (out / "duplicates.txt").read_bytes() == b"caf\xe9/2.png = caf\xe9/1.png\n"
    source = open_folder(str(tmp_path), "train")
    assert source.read(np.arange(2))[0] == [IMAGES[0]] * 2
    assert os.fsencode(source.label_names[0]) == b"caf\xe9"


def test_shard_whose_name_is_not_utf8(tmp_path, caplog):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/train-\xe9.tar")
    write_tar(tmp_path / "ok.tar", [("caf\udce9.png", IMAGES[0]), ("2.png", b"no"), ("3.txt", b"")])
    os.rename(tmp_path / "ok.tar", path)
    with open(path, "r+b") as file:
        file.truncate(3000)
    done = main_in_process("can_jax.data.index", tmp_path, "--workers=1")
    assert done.returncode == 0, done.stderr
    assert "train-\\xe9.tar" in done.stdout and "1 examples indexed" in done.stdout
    assert open_webdataset(str(tmp_path), "train").examples == 1


def test_several_indexers_at_once(tmp_path):
    put(tmp_path, **{f"a_{i}": IMAGES[i % 4] for i in range(450)})
    names = find_images(str(tmp_path))[0]
    plan, out = Plan("folder", str(tmp_path), "read"), tmp_path / FOLDER / "train"
    with ThreadPoolExecutor(3) as threads:  # the lock tells threads apart, as it does processes
        done = [threads.submit(build_index, plan, names, out) for _ in range(3)]
        assert [one.result() for one in done] == [None] * 3
    assert len(load_table(out)[0]) == 450 and not (out / "parts").exists()


def test_indexer_waits_for_another_and_not_for_a_dead_one(tmp_path, capsys):
    put(tmp_path, a=IMAGES[0])
    out = tmp_path / FOLDER / "train"
    out.mkdir(parents=True)
    held = os.open(out / LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    plan = Plan("folder", str(tmp_path))
    waiting = threading.Thread(target=build_index, args=(plan, ["a.png"], out))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive() and not (out / "index.json").exists()
    os.close(held)  # as the kernel does when a process is killed
    waiting.join(20)
    assert (out / "index.json").exists()
    assert "another process is writing" in capsys.readouterr().out
    build_index(plan, ["a.png"], out)  # the lock file that stayed stops nobody
    assert "waiting" not in capsys.readouterr().out


def test_few_descriptors_break_no_image(tmp_path):
    for i in range(120):
        write_tar(tmp_path / f"train-{i:05d}.tar", [("0.png", IMAGES[i % 4])])
    with descriptors(used_descriptors() + 48):
        sources = [open_webdataset(str(tmp_path), "train") for _ in range(3)]
        for _ in range(2):
            for source in sources:
                assert source.read(np.arange(120))[0] == [IMAGES[i % 4] for i in range(120)]
        assert open_limit() < 120
        assert 0 < len(open_below(tmp_path)) <= open_limit()


def test_no_descriptor_left_stops_with_one_line(tmp_path, monkeypatch):
    put(tmp_path, a=IMAGES[0])
    source = open_folder(str(tmp_path), "train")
    monkeypatch.setattr(reading, "WAITS", (0.01,))
    OpenFiles.release()  # those of other tests would be, and make room
    fill = []
    with descriptors(used_descriptors() + 2):
        with contextlib.suppress(OSError):
            while True:
                fill.append(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(UserError, match=r"reached its limit of open files.*ulimit -n"):
            source.read(np.arange(1))
        for file in fill:
            os.close(file)


def test_descriptors_that_come_free_are_waited_for(tmp_path):
    put(tmp_path, a=IMAGES[0])
    fill = []
    with descriptors(used_descriptors() + 4):
        with contextlib.suppress(OSError):
            while True:
                fill.append(os.open(os.devnull, os.O_RDONLY))
        free = threading.Timer(0.3, lambda: [os.close(file) for file in fill])
        free.start()
        assert open_random(str(tmp_path / "a.png")).read(0, -1) == IMAGES[0]
        free.join()


@pytest.mark.parametrize(("number", "tries"), [(errno.EIO, 3), (errno.ENOENT, 1)])
def test_errors_that_pass_are_tried_again(monkeypatch, number, tries):
    monkeypatch.setattr(reading, "WAITS", (0.01, 0.01, 0.01))
    calls = []

    def call():
        calls.append(time.monotonic())
        if len(calls) < 3:
            raise OSError(number, "no")
        return "read"

    if tries == 1:
        with pytest.raises(FileNotFoundError):
            patiently(call)
    else:
        assert patiently(call) == "read"
    assert len(calls) == tries


def test_open_files_close_the_oldest(tmp_path, monkeypatch):
    put(tmp_path, a=IMAGES[0], b=IMAGES[1], c=IMAGES[2])
    monkeypatch.setattr(reading, "OPEN_FILES", 2)
    OpenFiles.release()  # those of other tests count, too
    kept, other = OpenFiles(), OpenFiles()
    for name in "abc":
        assert kept.get(str(tmp_path / f"{name}.png"), str).read(0, -1) == IMAGES["abc".index(name)]
    assert open_below(tmp_path) == ["b.png", "c.png"]
    assert other.get(str(tmp_path / "a.png"), str).read(0, -1) == IMAGES[0]
    assert open_below(tmp_path) == ["a.png", "c.png"]
