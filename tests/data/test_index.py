"""Indexes: what is found, left out, listed and gone on with; and training from them."""

import errno
import json
import os
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

from can_jax.data.index import build, examine, join
from can_jax.data.index.build import build_index
from can_jax.data.index.examine import Part, Plan
from can_jax.data.sources.example_table import FOLDER, Table, load_table
from can_jax.data.sources.folder import open_folder
from can_jax.data.sources.registry import open_source
from can_jax.data.sources.shards import locate_shards, open_tfrecord, open_webdataset
from can_jax.data.storage.files import Names, find_images
from can_jax.utils.errors import UserError
from tests.data.samples import encode, random_image, write_tfrecord, write_webdataset
from tests.helpers.configs import small_config
from tests.helpers.runs import main_in_process

RNG = np.random.default_rng(0)
IMAGES = [encode(RNG.integers(0, 256, (12, 9, 3), dtype=np.uint8)) for _ in range(9)]
IMAGES[4] = b"broken"
IMAGES[7] = IMAGES[2]


def index(root, source, names=None, **options):
    plan = Plan(source, str(root), **{k: v for k, v in options.items() if k == "verify"})
    others = {k: v for k, v in options.items() if k != "verify"}
    names = names or locate_shards(source, str(root), "train")[1]
    build_index(plan, names, root / FOLDER / "train", **others)


def shards(root, source):
    if source == "tfrecord":
        write_tfrecord(root / "train-0.tfrecord", IMAGES[:5], [0, 1, 2, 3, 4])
        write_tfrecord(root / "train-1.tfrecord", IMAGES[5:], [5, 6, 7, 8])
    else:
        write_webdataset(root / "train-0.tar", IMAGES[:5], [0, 1, 2, 3, 4])
        write_webdataset(root / "train-1.tar", IMAGES[5:], [5, 6, 7, 8])


@pytest.mark.parametrize("source", ["tfrecord", "webdataset"])
@pytest.mark.parametrize("drop", [False, True])
def test_index_of_shards(tmp_path, source, drop, capsys):
    shards(tmp_path, source)
    index(tmp_path, source, drop_duplicates=drop)
    lists = {
        name: (tmp_path / FOLDER / "train" / f"{name}.txt").read_text()
        for name in ("undecodable", "duplicates", "cut_off")
    }
    assert lists["undecodable"].count("\n") == lists["duplicates"].count("\n") == 1
    assert "train-0" in lists["undecodable"] and "cannot identify" in lists["undecodable"]
    assert lists["duplicates"].startswith("train-1") and " = train-0" in lists["duplicates"]
    assert f"{8 - drop} examples indexed" in capsys.readouterr().out
    source = (open_tfrecord if source == "tfrecord" else open_webdataset)(str(tmp_path), "train")
    kept = [i for i in range(9) if i != 4 and not (drop and i == 7)]
    images, labels = source.read(np.arange(source.examples))
    assert images == [IMAGES[i] for i in kept] and labels.tolist() == kept
    assert isinstance(source.table.offset, np.memmap)


def test_index_of_a_folder_keeps_its_classes(tmp_path):
    for i, content in enumerate(IMAGES):
        path = tmp_path / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    main_in_process("can_jax.data.index", tmp_path, "--workers=1").check_returncode()
    config = small_config(data__source="folder", data__path=str(tmp_path))
    source = open_source(config.data, "train")
    assert source.examples == 8 and source.label_names == ("class0", "class1")
    assert source.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    (tmp_path / "class0" / "later.png").write_bytes(IMAGES[0])
    assert open_source(config.data, "train").examples == 8  # the index says what there is


@pytest.mark.parametrize("source", ["folder", "tfrecord", "webdataset"])
def test_index_of_a_split_is_found_under_its_other_names(tmp_path, source):
    place = tmp_path
    if source == "folder":
        place = tmp_path / "validation"
        place.mkdir()
        (place / "0.png").write_bytes(IMAGES[0])
    else:
        write = write_tfrecord if source == "tfrecord" else write_webdataset
        suffix = "tfrecord" if source == "tfrecord" else "tar"
        write(tmp_path / f"validation-0.{suffix}", IMAGES[:3], [0, 1, 2])
    options = ["--split=validation", f"--source={source}", "--workers=1"]
    main_in_process("can_jax.data.index", tmp_path, *options).check_returncode()
    assert (place / FOLDER / "validation").exists()
    for split in ("val", "validation", "dev"):
        config = small_config(data__source=source, data__path=str(tmp_path))
        assert isinstance(open_source(config.data, split).table.offset, np.memmap)


def test_index_of_another_spelling_s_shards_is_left_alone(tmp_path):
    for name, images in (("val-0.tar", IMAGES[:3]), ("dev-0.tar", IMAGES[:2])):
        write_webdataset(tmp_path / name, images, range(len(images)))
    main_in_process("can_jax.data.index", tmp_path, "--split=dev", "--workers=1")
    assert open_webdataset(str(tmp_path), "dev").examples == 2
    assert open_webdataset(str(tmp_path), "val").examples == 3


def test_index_by_reading_keeps_images_that_are_cut_off(tmp_path):
    (tmp_path / "a.png").write_bytes(IMAGES[0][:-40])
    for verify, kept in (("read", 1), ("decode", 0)):
        out = tmp_path / verify
        options = [f"--out={out}", f"--verify={verify}", "--workers=1"]
        result = main_in_process("can_jax.data.index", tmp_path, *options)
        assert (result.returncode == 0) == bool(kept)


def test_index_elsewhere(tmp_path):
    shards(tmp_path / "data", "tfrecord")
    options = [f"--out={tmp_path / 'index'}", "--verify=none", "--workers=1"]
    run = main_in_process("can_jax.data.index", tmp_path / "data", *options)
    run.check_returncode()
    assert "images were not read" in run.stdout and "0 duplicates" not in run.stdout
    source = open_tfrecord(str(tmp_path / "data"), "train", index=str(tmp_path / "index"))
    assert source.examples == 9 and not (tmp_path / "data" / FOLDER).exists()
    with pytest.raises(UserError, match=r"holds no complete index of can_jax"):
        open_tfrecord(str(tmp_path / "data"), "train", index=str(tmp_path))


def test_second_call_goes_on_where_the_first_was_stopped(tmp_path, monkeypatch):
    names = []
    for i in range(3 * examine.UNIT):
        names.append(f"{i:05d}.png")
        (tmp_path / names[-1]).write_bytes(IMAGES[i % 4])
    whole, looked_at = examine.examine, []

    def stopping(plan, unit):
        looked_at.append(unit[0])
        if len(looked_at) == 3:
            raise KeyboardInterrupt
        return whole(plan, unit)

    monkeypatch.setattr(examine, "examine", stopping)
    with pytest.raises(KeyboardInterrupt):
        index(tmp_path, "folder", names, verify="read")
    assert not (tmp_path / FOLDER / "train" / "index.json").exists()
    (tmp_path / "00000.png").write_bytes(IMAGES[5])  # a unit with another file is done again
    index(tmp_path, "folder", names, verify="read")
    assert looked_at[3:] == [names[0], names[2 * examine.UNIT]]
    table, facts = load_table(tmp_path / FOLDER / "train")
    assert len(table) == len(names) and facts["duplicates"] == len(names) - 5
    assert not (tmp_path / FOLDER / "train" / "parts").exists()


def test_several_processes_find_the_same(tmp_path):
    shards(tmp_path, "webdataset")
    for workers, name in ((2, "two"), (1, "one")):
        options = [f"--workers={workers}", f"--out={tmp_path / name}"]
        main_in_process("can_jax.data.index", tmp_path, *options).check_returncode()
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_workers_end_with_a_command_that_is_killed(tmp_path):
    for i in range(2000):
        (tmp_path / f"{i}.png").write_bytes(IMAGES[i % 4])
    command = [sys.executable, "-m", "can_jax.data.index", str(tmp_path), "--workers=2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    parts = tmp_path / FOLDER / "train" / "parts"
    deadline = time.monotonic() + 60
    while not (parts.exists() and any(parts.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=20)  # until the last of the workers has closed stderr
    main_in_process(*command[2:4], "--workers=1").check_returncode()
    assert len(load_table(tmp_path / FOLDER / "train")[0]) == 2000


def test_cut_off_shard_is_indexed_as_far_as_it_goes(tmp_path, capsys):
    shards(tmp_path, "tfrecord")
    path = tmp_path / "train-1.tfrecord"
    path.write_bytes(path.read_bytes()[:-9])
    index(tmp_path, "tfrecord")
    assert "train-1.tfrecord is truncated: the record at byte" in capsys.readouterr().out
    assert open_tfrecord(str(tmp_path), "train").examples == 7


def test_index_that_is_not_of_the_data_is_refused(tmp_path):
    shards(tmp_path, "tfrecord")
    index(tmp_path, "tfrecord")
    path = tmp_path / "train-1.tfrecord"
    content = path.read_bytes()
    write_tfrecord(path, IMAGES[5:8])
    with pytest.raises(UserError, match=r"train-1\.tfrecord, whose size has changed; rebuild"):
        open_tfrecord(str(tmp_path), "train")
    path.write_bytes(content)
    write_tfrecord(tmp_path / "train-2.tfrecord", IMAGES[:1])
    with pytest.raises(UserError, match=r"only one of them contains train-2\.tfrecord"):
        open_tfrecord(str(tmp_path), "train")


def test_index_of_other_data_in_the_same_folder_is_refused(tmp_path):
    shards(tmp_path, "webdataset")
    index(tmp_path, "webdataset")
    config = small_config(data__source="folder", data__path=str(tmp_path))
    with pytest.raises(UserError, match="is an index of webdataset data, not of folder data"):
        open_source(config.data, "train")


def test_damaged_index_is_refused(tmp_path):
    shards(tmp_path, "tfrecord")
    index(tmp_path, "tfrecord")
    folder = tmp_path / FOLDER / "train"
    np.save(folder / "offset.npy", np.zeros(2, np.int64))
    with pytest.raises(UserError, match="is damaged: its columns differ in length"):
        load_table(folder)
    facts = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(facts | {"format": 99}))
    with pytest.raises(UserError, match="index of format 99"):
        load_table(folder)


def test_nothing_to_index_is_one_line(tmp_path):
    (tmp_path / "a.png").write_bytes(b"broken")
    run = main_in_process("can_jax.data.index", tmp_path)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith(
        f"error: {tmp_path} holds no image that can be used; for the reasons, see "
    )
    for arguments, message in [((), "PATH is missing"), (("none",), "none does not exist")]:
        run = main_in_process("can_jax.data.index", *arguments)
        assert run.returncode == 1 and message in run.stderr and run.stderr.count("\n") == 1


def test_millions_of_names_take_little_memory(tmp_path):
    names = Names.of([f"folder{i % 100}/ü{i}.jpg" for i in range(100_000)])
    assert (
        len(names) == 100_000
        and names[99_999] == "folder99/ü99999.jpg"
        and names[0][-6:] == "ü0.jpg"
    )
    count = len(names)
    table = Table(
        names, np.arange(count, dtype=np.int32), *np.full((2, count), -1), np.zeros(count, np.int32)
    )
    table.save(tmp_path, {})
    loaded, _ = load_table(tmp_path)
    assert isinstance(loaded.names.text, np.memmap) and loaded.names[4321] == names[4321]
    with pytest.raises(IndexError):
        names[count]


def test_find_images_keeps_to_names(tmp_path):
    for name in ("b.TIFF", "a.jpg", "c", "d.txt", ".e.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "c").write_bytes(encode(random_image(np.random.default_rng(0), 4, 4)))
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "round").symlink_to(tmp_path)  # leads back, and is not followed
    (tmp_path / "elsewhere").symlink_to("more")
    (tmp_path / "more" / "f.png").touch()
    images = ["a.jpg", "b.TIFF", "c", "elsewhere/f.png", "more/f.png"]
    assert find_images(str(tmp_path)) == (images, ["d.txt"])


def test_what_an_index_leaves_out_is_logged(tmp_path, caplog):
    for i, content in enumerate(IMAGES[:5]):
        path = tmp_path / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    names = [f"class{i % 2}/{i}.png" for i in (0, 2, 4, 1, 3)]
    labels = np.array([0, 0, 0, 1, 1], np.int32)
    classes = ("class0", "class1")
    index(tmp_path, "folder", names, file_labels=labels, label_names=classes)
    config = small_config(data__source="folder", data__path=str(tmp_path))
    assert open_source(config.data, "train").examples == 4
    (line,) = (record.getMessage() for record in caplog.records)
    assert "leaves out 1 images that could not be decoded" in line
    caplog.clear()
    facts = tmp_path / FOLDER / "train" / "index.json"
    old = json.loads(facts.read_text())
    del old["request"], old["undecodable"]
    facts.write_text(json.dumps(old))
    (tmp_path / "class2").mkdir()
    (tmp_path / "class2" / "5.png").write_bytes(IMAGES[0])
    assert open_source(config.data, "train").examples == 4
    older, new = (record.getMessage() for record in caplog.records)
    assert "was written by an older version" in older and "built: class2/; rebuild" in new


def test_images_added_after_an_index_was_built_are_logged(tmp_path, caplog):
    def put(name):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(IMAGES[0])

    def messages():
        caplog.clear()
        open_folder(str(tmp_path), "train")
        return [record.getMessage() for record in caplog.records]

    names = [f"{folder}/{i}.png" for folder in ("a", "a/deep", "b") for i in range(2)]
    for name in names:
        put(name)
    index(tmp_path, "folder", sorted(names))
    assert messages() == []
    put("val/0.png"), put(".hidden/0.png"), put("text/0.txt"), put("text/.thumbs/0.png")
    (tmp_path / "link").symlink_to("a")
    for folder in ("", "a", "a/deep", "b"):  # such as a copy of the data
        os.utime(tmp_path / folder)
    assert messages() == []
    put("a/deep/2.png"), put("more/0.png")
    (line,) = messages()
    assert "lacks 2 images or folders of images" in line and "built: more/, a/deep/2.png" in line
    os.utime(tmp_path / "a/deep", (0, 0))
    assert "lacks 1 images or folders" in messages()[0]
    (tmp_path / "more/0.png").rename(tmp_path / "b/2")  # an image without a suffix
    assert "lacks 1 images or folders" in messages()[0] and "built: b/2;" in messages()[0]


def test_memory_of_joining_does_not_grow_with_messages(tmp_path, monkeypatch):
    """One broken image with a long message took 4 bytes a character for each row."""
    rng = np.random.default_rng(0)
    names = [f"{i:03d}.tar" for i in range(100)]
    digests = rng.integers(0, 2**63, (100, 5000), np.uint64)
    digests[70, :9] = digests[20, :9]

    def parts():
        for i, digest in enumerate(digests):
            reason = np.array([""] * 5000, "<U1" if i != 3 else "<U400")
            reason[0] = "x" * 400 if i == 3 else ""
            zeros = np.zeros(5000, np.int64)
            yield Part(
                zeros, np.arange(5000), zeros + 9, zeros, digest, reason, np.array([], str),
                np.array([".txt=1"]),
            )  # fmt: skip

    monkeypatch.setattr(join, "SORTED_AT_ONCE", 2**16)  # several files to sort
    tracemalloc.start()
    whole = join.join_parts(parts(), names, 1, tmp_path, tmp_path / "undecodable.txt")
    rows, firsts = join.copies_of(whole.columns["digest"], tmp_path)
    count = join.write_columns(whole.columns, tmp_path, rows, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6  # 500,000 rows; the concatenated messages alone took 800 MB
    assert (count, whole.undecodable, whole.unused[".txt"]) == (499_990, 1, 100)
    assert (tmp_path / "undecodable.txt").read_text() == f"003.tar: {'x' * 400}\n"
    assert rows.tolist() == [70 * 5000 - 1 + i for i in range(9)]
    assert firsts.tolist() == [20 * 5000 - 1 + i for i in range(9)]
    stored = np.load(tmp_path / "digest.npy")
    assert len(np.unique(stored)) == count == len(stored)


def test_rebuilt_index_is_new_or_incomplete_and_does_not_change_under_a_run(tmp_path, monkeypatch):
    root = tmp_path / "data"
    root.mkdir()
    out = root / FOLDER / "train"
    shards(root, "webdataset")
    index(root, "webdataset")
    before = load_table(out)[0]
    offsets, names = before.offset.tolist(), [before.names[i] for i in range(2)]
    write_webdataset(root / "train-0.tar", IMAGES[:4], [0, 1, 2, 3])
    write_webdataset(root / "train-2.tar", IMAGES[5:6], [9])

    def fail(*arguments):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(build, "write_facts", fail)
        with pytest.raises(UserError, match="cannot be written: Read-only file system; give"):
            index(root, "webdataset")
    with pytest.raises(UserError, match="holds no complete index"):
        load_table(out)
    index(root, "webdataset")
    after = load_table(out)[0]
    assert [after.names[i] for i in range(3)] == ["train-0.tar", "train-1.tar", "train-2.tar"]
    assert before.offset.tolist() == offsets
    assert [before.names[i] for i in range(2)] == names == ["train-0.tar", "train-1.tar"]
    assert sorted(path.suffix for path in out.iterdir() if path.is_dir()) == []


def test_shard_in_the_working_directory_is_indexed_by_its_name(tmp_path):
    write_webdataset(tmp_path / "images.tar", IMAGES[:3], [0, 1, 2])
    (tmp_path / "taken").write_text("a file")
    refusals = {
        "taken": "--out=taken is a file: give the path of a folder",
        "taken/below": "--out=taken/below cannot be written: taken is not a folder",
        "index": None,
    }
    for out, message in refusals.items():
        options = [f"--out={out}", "--workers=1", "--verify=none"]
        done = main_in_process("can_jax.data.index", "images.tar", *options, cwd=tmp_path)
        assert done.returncode == (message is not None), done.stderr
        assert message is None or done.stderr.strip() == f"error: {message}"
    assert len(load_table(tmp_path / "index")[0].offset) == 3
