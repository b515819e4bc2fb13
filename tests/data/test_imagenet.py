"""Preparing ImageNet, from small tars and folders with the layout of the official ones."""

import io
import json
import tarfile

import numpy as np
import pytest
from scipy.io import savemat

from can_jax.data.conversion import imagenet
from can_jax.data.conversion.images import DEVKIT, TRAIN_TAR, VAL_TAR, Image, find_train, find_val
from can_jax.data.sources.shards import open_tfrecord
from can_jax.utils.errors import UserError
from tests.data.samples import encode, write_tar, write_tfrecord
from tests.helpers.runs import main_in_process

CLASSES = ("n01", "n02", "n03")
RNG = np.random.default_rng(0)
TRAIN = {
    f"{name}/{name}_{i}.JPEG": encode(RNG.integers(0, 256, (9, 8, 3), dtype=np.uint8), "jpeg")
    for name in CLASSES
    for i in range(4)
}
VAL = [encode(RNG.integers(0, 256, (9, 8, 3), dtype=np.uint8), "jpeg") for _ in range(5)]
VAL_IDS = [3, 1, 2, 2, 1]  # in the numbering of the development kit
WNID_OF = {1: "n02", 2: "n03", 3: "n01"}


def tar_of(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def official(tmp_path):
    root = tmp_path / "official"
    inner = [
        (f"{c}.tar", tar_of([(n.split("/")[1], b) for n, b in TRAIN.items() if n.startswith(c)]))
        for c in CLASSES
    ]
    write_tar(root / TRAIN_TAR, inner)
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 6)]
    write_tar(root / VAL_TAR, list(zip(names, VAL, strict=True))[::-1])
    kind = [("ILSVRC2012_ID", "f8"), ("WNID", "O")]
    synsets = np.array(list(WNID_OF.items()), kind)
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    truth = "".join(f"{i}\n" for i in VAL_IDS).encode()
    with tarfile.open(root / DEVKIT, "w:gz") as tar:
        for name, content in [
            ("ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue()),
            ("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth),
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return root


@pytest.fixture
def prepare(capsys):
    """Run the command in this process; returns what it prints."""

    def call(root, target=None, **options):
        imagenet.write_imagenet(root, target, **options)
        return capsys.readouterr().out

    return call


def contents(root, split):
    source = open_tfrecord(str(root), split)
    images, labels = source.read(np.arange(source.examples))
    assert source.label_names == CLASSES
    return sorted(zip(images, labels.tolist(), strict=True))


def test_official_tars_become_indexed_shards(official, tmp_path, prepare):
    out = tmp_path / "out"
    printed = prepare(official, out, shards=3, partial=True)
    assert "train: 12 images in 3 classes, where ImageNet-1k has 1281167" in printed
    train = [(content, CLASSES.index(name.split("/")[0])) for name, content in TRAIN.items()]
    assert contents(out, "train") == sorted(train)
    val = [(image, CLASSES.index(WNID_OF[i])) for image, i in zip(VAL, VAL_IDS, strict=True)]
    assert contents(out, "val") == sorted(val)
    shards = sorted(path.name for path in out.glob("train-*"))
    assert shards == [f"train-{i:05d}-of-00003.tfrecord" for i in range(3)]
    # A shard that is missing is written again, to the byte; those that are there are left alone.
    lost, kept = out / shards[1], out / shards[0]
    before, time = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    prepare(official, out, shards=3, partial=True)
    assert lost.read_bytes() == before and kept.stat().st_mtime_ns == time
    with pytest.raises(UserError, match="is from another conversion"):
        prepare(official, out, shards=2, partial=True)
    # Another order, such as that of folders instead of tars, would repeat and omit images.
    images = find_train(official)[::-1]
    with pytest.raises(UserError, match="is from another conversion"):
        imagenet.write_shards(out, "train", images, list(CLASSES), 3)


def test_validation_images_are_labeled_by_the_numbers_in_their_names(official, tmp_path, prepare):
    """The order of the names is another one here, as that of `10.JPEG` and `2.JPEG`."""
    (official / VAL_TAR).unlink()
    (official / "val").mkdir()
    for number, image in zip((1, 2, 3, 4, 5), VAL, strict=True):
        (official / "val" / f"{10 ** (5 - number)}_{number}.JPEG").write_bytes(image)
    prepare(official, tmp_path / "out", shards=1, partial=True)
    val = [(image, CLASSES.index(WNID_OF[i])) for image, i in zip(VAL, VAL_IDS, strict=True)]
    assert contents(tmp_path / "out", "val") == sorted(val)


def test_folder_of_the_source_is_not_the_target(official, prepare):
    with pytest.raises(UserError, match=r"TO=.* is FROM: give another folder"):
        prepare(official, official, shards=3, partial=True)


def test_shards_with_stale_labels_are_refused(tmp_path):
    """A corrected list of labels, and images moved between classes, leave the names in order."""
    files = {name: tmp_path / name for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png")}
    for size, path in enumerate(files.values()):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100 + size))

    def write(*classes, order=tuple(files)):
        images = [
            Image(str(files[name]), 0, -1, name[2:], label)
            for name, label in zip(order, classes, strict=True)
        ]
        imagenet.write_shards(tmp_path / "out", "val", images, ["a", "b"], 1)

    write("a", "a", "b", "b")
    note = tmp_path / "out" / "val.json"
    plan = json.loads(note.read_text())
    for classes, order in [("aabb", [*files][2:] + [*files][:2]), ("abab", [*files])]:
        with pytest.raises(UserError, match=r"val\.json is from another conversion"):
            write(*classes, order=order)
    del plan["labels"]  # the note of an earlier version
    note.write_text(json.dumps(plan))
    write("a", "a", "b", "b")


def test_folders_and_records(tmp_path, prepare):
    for name, content in TRAIN.items():
        path = tmp_path / "folders" / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    prepare(tmp_path / "folders", tmp_path / "out")
    assert len(contents(tmp_path / "out", "train")) == 12
    write_tfrecord(tmp_path / "records" / "train-00000-of-00001", list(TRAIN.values()))
    assert "is not used" not in prepare(tmp_path / "records")
    printed = prepare(tmp_path / "records", tmp_path / "unused")
    assert f"which are indexed in place: {tmp_path / 'unused'} is not used" in printed
    assert open_tfrecord(str(tmp_path / "records"), "train").examples == 12


def test_what_is_missing_or_cut_off_is_named(official, tmp_path):
    tar = official / TRAIN_TAR
    tar.write_bytes(tar.read_bytes()[:9000])
    with pytest.raises(UserError, match=rf"{tar} is .*check that the download is complete"):
        find_train(official)
    tar.unlink()
    with pytest.raises(UserError, match=rf"neither {tar} nor {official}/train/CLASS"):
        find_train(official)
    (official / DEVKIT).write_bytes(b"no archive")
    with pytest.raises(UserError, match="is not the development kit"):
        find_val(official)
    with tarfile.open(official / DEVKIT, "w:gz") as kit:
        info = tarfile.TarInfo("data/meta.mat")
        info.size = 200_000
        kit.addfile(info, io.BytesIO(bytes(info.size)))
    with pytest.raises(UserError, match="is not the development kit.* meta.mat has 200000 bytes"):
        find_val(official)
    (official / DEVKIT).unlink()
    assert find_val(official) == []
    run = main_in_process("can_jax.data.imagenet", tmp_path / "none", tmp_path / "out")
    assert run.returncode == 1 and f"{tmp_path / 'none'} is not a folder" in run.stderr
    (tmp_path / "loose" / "train").mkdir(parents=True)
    (tmp_path / "loose" / "train" / "a.jpg").write_bytes(VAL[0])
    with pytest.raises(UserError, match="is in no class folder"):
        find_train(tmp_path / "loose")


def test_validation_images_without_all_of_the_labels(official):
    """The number of an image in its name gives its label if the user accepts a partial tar."""
    members = [(f"ILSVRC2012_val_{i:08d}.JPEG", VAL[i - 1]) for i in (2, 5)]
    write_tar(official / VAL_TAR, members)
    with pytest.raises(UserError, match=r"has 2 images, but .* 5 labels; .* with --partial"):
        find_val(official)
    labels = [image.class_name for image in find_val(official, partial=True)]
    assert labels == [WNID_OF[VAL_IDS[1]], WNID_OF[VAL_IDS[4]]]
    for name in ("ILSVRC2012_val_00000006.JPEG", "first.JPEG"):
        write_tar(official / VAL_TAR, [(name, VAL[0])])
        with pytest.raises(UserError, match=rf"{name} must end in a number from 1 to 5"):
            find_val(official, partial=True)


def test_files_that_are_left_out_are_named(tmp_path, caplog):
    for name in ("train/n01/a.jpg", "train/n01/b.heic", "train/n01/c.jpg.part"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(VAL[0])
    assert [image.name for image in find_train(tmp_path)] == ["a.jpg"]
    assert "2 files are not recognized as images" in caplog.text and "are HEIC" in caplog.text


def test_tar_with_attributes_for_all_members_is_read(official):
    tar = official / TRAIN_TAR
    images = len(find_train(official))
    with tarfile.open(tar) as old:
        members = [(member, old.extractfile(member).read()) for member in old]
    with tarfile.open(tar, "w", pax_headers={"comment": "of git archive"}) as new:
        for member, content in members:
            new.addfile(member, io.BytesIO(content))
    assert len(find_train(official)) == images > 0


@pytest.mark.parametrize("inner", [False, True])
def test_damaged_header_is_refused(official, inner):
    """Each image behind the header would be missing, and each class another number."""
    tar = official / TRAIN_TAR
    content = bytearray(tar.read_bytes())
    with tarfile.open(tar) as outer:
        member = outer.getmembers()[1]
    place = member.offset
    if inner:
        with tarfile.open(fileobj=io.BytesIO(content[member.offset_data :])) as tar_of_class:
            place = member.offset_data + tar_of_class.getmembers()[2].offset
    content[place + 20] ^= 1
    tar.write_bytes(content)
    with pytest.raises(UserError, match=r"valid header.*check that the download is complete"):
        find_train(official)


def test_official_tars_with_other_counts_are_refused(official, tmp_path, prepare):
    told = "has 12 images, but ImageNet-1k has 1281167: .* accept it with --partial"
    with pytest.raises(UserError, match=told):
        prepare(official, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_records_that_cannot_be_indexed_are_refused(tmp_path, prepare):
    (tmp_path / "train-00000-of-00001").write_bytes(b"no record")
    with pytest.raises(UserError, match="holds no image that can be used"):
        prepare(tmp_path)
    (tmp_path / "train-00000-of-00001").rename(tmp_path / "train-00000-of-00001.parquet")
    with pytest.raises(UserError, match="neither .* nor .* exists"):
        prepare(tmp_path)


def test_room_is_checked_before_anything_is_written(official, tmp_path, monkeypatch):
    images = find_train(official)
    monkeypatch.setattr(
        imagenet.shutil, "disk_usage", lambda _: imagenet.shutil._ntuple_diskusage(9, 9, 9)
    )
    with pytest.raises(UserError, match=r"GB free, .* GB are needed"):
        imagenet.write_shards(tmp_path / "out", "train", images, list(CLASSES))
    assert list((tmp_path / "out").iterdir()) == []
