"""Classes that are matched by name, and splits that are kept apart."""

import numpy as np
import pytest

from can_jax.data.evaluation.overlap import hold_out
from can_jax.data.evaluation.pairs import TEST_SPLITS, open_pair
from can_jax.data.index.build import build_index
from can_jax.data.index.examine import Plan
from can_jax.data.sources.folder import scan_folder
from can_jax.data.sources.labels import Classes
from can_jax.utils.errors import UserError
from tests.data import samples
from tests.helpers.configs import small_config

CLASSES = ("a_red", "b_green", "c_blue")


def image_of(name, number):
    """An image of its own for each class and number."""
    rng = np.random.default_rng([ord(name[0]), number])
    return samples.random_image(rng, 16, 16)


def encoded(name, number):
    """The same image as a PNG."""
    return samples.encode(image_of(name, number))


def folder(root, contents, count=4):
    """Class folders ``contents[split]``; equal class and number is the same image in each split."""
    for split, names in contents.items():
        for name in names:
            place = root / split / name
            place.mkdir(parents=True)
            for i in range(count):
                (place / f"{i}.png").write_bytes(encoded(name, i))
    return root


def arrays(root, contents, count=4):
    """The same as npz files, with names in the order given, which need not be that of training."""
    for split, names in contents.items():
        images = np.stack([image_of(name, i) for name in names for i in range(count)])
        labels = np.repeat(np.arange(len(names)), count)
        np.savez(root / f"{split}.npz", images=images, labels=labels, label_names=list(names))
    return root


def pair(source, path, *splits, **options):
    config = small_config(data__source=source, data__path=str(path))
    return open_pair(config.data, splits or TEST_SPLITS, **{"share": 0.25, "seed": 0} | options)


def named(part):
    """The class of each chosen example, by name."""
    return [part.classes.names[i] for i in part.numbering(part.labels)]


@pytest.mark.parametrize("write", [folder, arrays])
@pytest.mark.parametrize(
    "there", [CLASSES, CLASSES[1:], CLASSES[::2], CLASSES[:1], CLASSES[::-1], CLASSES[2:0:-1]]
)
def test_classes_are_matched_by_name_whatever_is_missing(tmp_path, write, there):
    found = pair(write.__name__, write(tmp_path, {"train": CLASSES, "test": there}))
    assert named(found.train) == [name for name in CLASSES for _ in range(4)]
    wanted = sorted(there) if write is folder else there
    assert named(found.test) == [name for name in wanted for _ in range(4)]
    said = [note for note in found.notes if "has no image of" in note]
    missing = [name for name in CLASSES if name not in there]
    assert bool(said) == bool(missing)
    if missing:
        assert f"{len(missing)} of 3 classes" in said[0] and repr(missing[0]) in said[0]
    assert any("byte for byte" in note for note in found.notes)  # the images are those of training


@pytest.mark.parametrize("write", [folder, arrays])
def test_class_that_training_has_not_is_refused_by_name(tmp_path, write):
    source = write.__name__
    root = write(tmp_path, {"train": CLASSES[1:], "test": CLASSES})
    with pytest.raises(UserError, match="the split 'test' has the class 'a_red' that the sp"):
        pair(source, root)
    other = tmp_path / "case"
    other.mkdir()
    write(other, {"train": ("Cat", "dog"), "test": ("cat", "dog")})
    with pytest.raises(UserError, match="the class 'cat' .*did you mean 'Cat'"):
        pair(source, other)


def test_two_spellings_of_a_class_are_named(tmp_path):
    found = pair("folder", folder(tmp_path, {"train": ("Cat", "cat", "dog"), "val": ("cat",)}))
    assert any("differ only in spelling: 'Cat' and 'cat'" in note for note in found.notes)
    assert named(found.test) == ["cat"] * 4


def test_numbers_are_compared_where_there_are_no_names(tmp_path):
    images = np.zeros((6, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "train.npz", images=images, labels=[7, 7, 2**31 - 1, 2**31 - 1, 40, 40])
    np.savez(tmp_path / "test.npz", images=images[:2], labels=[2**31 - 1, 7])
    found = pair("arrays", tmp_path)
    assert len(found.classes) == 3  # and not 2**31
    assert found.train.numbering(found.train.labels).tolist() == [0, 0, 2, 2, 1, 1]
    assert found.test.numbering(found.test.labels).tolist() == [2, 0]
    np.savez(tmp_path / "test.npz", images=images[:2], labels=[8, 7])
    with pytest.raises(UserError, match="has the class '8' that"):
        pair("arrays", tmp_path)
    np.savez(tmp_path / "test.npz", images=images[:2], labels=[1, 0], label_names=["x", "y"])
    with pytest.raises(UserError, match="has 2 classes, such as '0', '1', that"):
        pair("arrays", tmp_path)
    np.savez(tmp_path / "train.npz", images=images, labels=[10, 2, 10, 2, 1, 1])
    names = ["1", "10", "2"]  # as folders of classes are sorted
    np.savez(tmp_path / "test.npz", images=images[:3], labels=[0, 1, 2], label_names=names)
    found = pair("arrays", tmp_path)
    assert found.classes.labels[found.test.numbering(found.test.labels)].tolist() == [1, 10, 2]
    np.savez(tmp_path / "test.npz", images=images[:2], labels=[1, 0], label_names=["x", "y"])
    np.savez(tmp_path / "train.npz", images=images, labels=[0, 0, 0, 1, 1, 1])
    assert any("matched by number" in note for note in pair("arrays", tmp_path).notes)


def test_names_that_do_not_tell_classes_apart():
    known = Classes(np.arange(3), ("crane", "crane", "dog"))
    both = np.arange(2)
    same = known.match(both, ["crane", "crane", "dog"], "the split 'test'", "train")
    assert same(both).tolist() == [0, 1]  # the same list: its numbers mean the same
    with pytest.raises(UserError, match="train has two classes named 'crane'"):
        known.match(both, ["dog", "crane"], "the split 'test'", "train")
    with pytest.raises(UserError, match="the split 'test' has two classes named 'dog'"):
        Classes(np.arange(2), ("cat", "dog")).match(
            both, ["dog", "dog"], "the split 'test'", "train"
        )
    accents = Classes(np.arange(2), ("caf\u00e9", "th\u00e9"))  # one letter each, and two below
    assert accents.match(both, ["the\u0301", "cafe\u0301"], "test", "train")(both).tolist() == [
        1,
        0,
    ]
    with pytest.raises(UserError, match="has the label 1, but only 1 label_names"):
        known.match(both, ["dog"], "the split 'test'", "train")


@pytest.mark.parametrize("source", ["tfrecord", "webdataset"])
def test_shards_without_names(tmp_path, source):
    write = getattr(samples, f"write_{source}")
    end = {"tfrecord": "tfrecord", "webdataset": "tar"}[source]
    contents = [encoded("x", i) for i in range(6)]
    write(tmp_path / f"train-0.{end}", contents, [5, 5, 9, 9, 1, 1])
    write(tmp_path / f"test-0.{end}", contents[:2], [9, 1])
    found = pair(source, tmp_path)
    assert found.train.numbering(found.train.labels).tolist() == [1, 1, 2, 2, 0, 0]
    assert found.test.numbering(found.test.labels).tolist() == [2, 0]
    learned = found.train.labeled()
    assert learned.read(np.array([5, 0]))[1].tolist() == [0, 1]
    write(tmp_path / f"test-0.{end}", contents[:2], [9, 2])
    with pytest.raises(UserError, match="has the class '2' that"):
        pair(source, tmp_path)


@pytest.mark.parametrize("source", ["folder", "mixture"])
def test_index_of_the_training_split_is_not_that_of_the_test_split(tmp_path, source):
    data = folder(tmp_path / "data", {"train": CLASSES})
    folder(data, {"test": CLASSES}, count=6)  # with the names of training images, and others
    index, table = tmp_path / "index", scan_folder(str(data), "train")
    options = {"file_labels": table.label, "label_names": table.label_names}
    plan = Plan("folder", str(data / "train"), "none")
    build_index(plan, [table.names[i] for i in range(12)], index, **options)
    part = {"path": str(data), "index": str(index)}
    changes = part | {"source": "folder"} if source == "folder" else {"mixture": (part,)}
    config = small_config(**{f"data__{k}": v for k, v in ({"source": source} | changes).items()})
    found = open_pair(config.data, TEST_SPLITS, share=0.25, seed=0)
    assert len(found.train.examples) == 12 and len(found.test.examples) == 18
    assert config.data.index == changes.get("index")


@pytest.mark.parametrize("name", ["val", "Validation"])
def test_other_split_takes_the_place_of_test_and_is_named(tmp_path, name):
    root = folder(tmp_path, {"train": CLASSES, name: CLASSES[:2]})
    found = pair("folder", root)
    assert found.test.name == "val" and len(found.test.examples) == 8
    assert any("no split 'test'; 'val' is used instead" in note for note in found.notes)
    with pytest.raises(UserError, match="test"):
        pair("folder", root, "test", chosen=True)
    with pytest.raises(UserError, match="minival"):
        pair("folder", root, "minival")


def test_test_split_without_labels_is_no_test_split(tmp_path):
    root = folder(tmp_path, {"train": CLASSES, "val": CLASSES})
    (root / "test").mkdir()
    (root / "test" / "0.png").write_bytes(encoded("t", 0))
    found = pair("folder", root)
    assert found.test.name == "val" and "'test' has no labels" in " ".join(found.notes)
    for image in (root / "val").glob("*/*"):
        image.rename(root / "val" / f"{image.parent.name}-{image.name}")
    found = pair("folder", root)
    assert found.test.name == "train (held out)"
    assert "the split 'test' has no labels; the split 'val' has no labels" in found.notes


@pytest.mark.parametrize("splits", [(), ("train",)])
def test_share_is_held_out_where_there_is_no_other_split(tmp_path, splits):
    root = folder(tmp_path, {"train": CLASSES}, count=4)
    found = pair("folder", root, *splits)
    train, test = set(found.train.examples.tolist()), set(found.test.examples.tolist())
    assert not train & test and len(train | test) == 12 and len(test) == 3
    assert set(named(found.train)) == set(CLASSES)
    assert any("3 examples of the split 'train' are held out" in note for note in found.notes)
    again = pair("folder", root, *splits)
    np.testing.assert_array_equal(again.test.examples, found.test.examples)
    few = pair("folder", root, *splits, counts=(5, 2))
    assert len(few.test.examples) == 2 and len(few.train.examples) == 5
    assert not set(few.train.examples.tolist()) & set(few.test.examples.tolist())
    fewer = pair("folder", root, *splits, counts=(2, 3))  # one example of each class is kept
    assert len(fewer.train.examples) == 2 and len(fewer.test.examples) == 2


def test_same_file_under_two_names_is_held_out_or_said(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "all.npz", images=images, labels=[0, 1] * 4)
    found = pair("arrays", tmp_path / "all.npz")
    assert not set(found.train.examples.tolist()) & set(found.test.examples.tolist())
    (tmp_path / "val.npz").symlink_to(tmp_path / "all.npz")
    linked = pair("arrays", tmp_path, "val", train=found.train.source)
    assert not set(linked.train.examples.tolist()) & set(linked.test.examples.tolist())
    chosen = pair("arrays", tmp_path / "all.npz", "train", chosen=True)
    assert len(chosen.test.examples) == 8
    assert any("are the same examples" in note for note in chosen.notes)


def test_partial_overlap_is_counted(tmp_path):
    root = folder(tmp_path, {"train": CLASSES, "test": CLASSES[:1]}, count=4)
    for i in range(3):
        (root / "test" / "a_red" / f"{i}.png").write_bytes(encoded("n", i))
    assert any("1 of 4 compared examples" in note for note in pair("folder", root).notes)


def test_every_class_keeps_an_example():
    labels = np.array([0, 1, 1, 2, 2, 2])
    for seed in range(20):
        kept, out = hold_out(labels, 3, seed)
        assert set(labels[kept]) == {0, 1, 2} and len(out) == 3
        assert sorted([*kept, *out]) == list(range(6))
    with pytest.raises(UserError, match="no class has two"):
        hold_out(np.arange(5), 2, 0)


def test_split_without_a_known_class_is_passed_over(tmp_path):
    root = folder(tmp_path, {"train": CLASSES, "val": CLASSES, "test": ["unknown"]})
    found = pair("folder", root)
    assert found.test.name == "val"
    said = (
        "the split 'test' has no class of the training split, only 'unknown'; 'val' is used instead"
    )
    assert said in found.notes
    with pytest.raises(UserError, match="has the class 'unknown' that"):
        pair("folder", root, "test")


def test_split_of_two_spellings_is_named(tmp_path):
    root = folder(tmp_path, {"train": CLASSES, "valid": CLASSES, "validation": CLASSES})
    found = pair("folder", root)
    assert "in several ways: valid, validation" in " ".join(found.notes)
    assert "held out" in found.test.name


def test_single_class_is_named(tmp_path):
    found = pair("folder", folder(tmp_path, {"train": CLASSES[:1], "test": CLASSES[:1]}))
    assert any("single class, 'a_red': accuracies are meaningless" in note for note in found.notes)


def test_copies_among_held_out_examples_are_counted(tmp_path):
    root = folder(tmp_path, {"train": CLASSES}, count=4)
    for name in CLASSES:
        for i in range(4):
            (root / "train" / name / f"{i}.png").write_bytes(encoded("n", 0))
    notes = " ".join(pair("folder", root).notes)
    assert "3 of 3 compared examples of the split 'train (held out)'" in notes
    assert "also among the examples kept for training" in notes


def test_parts_of_a_mixture_that_are_shared_are_counted(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        folder(tmp_path / name, {"train": CLASSES, "test": CLASSES})
    for file in (tmp_path / "one" / "test").rglob("*.png"):
        file.write_bytes(encoded("n", CLASSES.index(file.parent.name) * 4 + int(file.stem)))
    whole = {"path": str(tmp_path / "one")}
    shared = {"path": str(tmp_path / "two"), "split": "train"}
    copied = {"path": str(tmp_path / "two")}
    for parts in ((whole, shared), (shared, whole), (whole, copied)):
        config = small_config(data__source="mixture", data__mixture=parts)
        found = open_pair(config.data, TEST_SPLITS, share=0.25, seed=0)
        assert found.test.name == "test"
        assert "12 of 24 compared examples of the split 'test'" in " ".join(found.notes)


@pytest.mark.parametrize("copy", ["of an array", "of a file", "none"])
def test_arrays_and_files_of_a_mixture_are_compared(tmp_path, copy):
    for split, kinds in (("train", "tv"), ("test", "uw")):
        stack = np.stack([image_of(kinds[0], i) for i in range(6)])
        files = [encoded(kinds[1], i) for i in range(5)]
        if split == "test" and copy == "of an array":
            files[0] = encoded("t", 2)
        elif split == "test" and copy == "of a file":
            stack[3] = image_of("v", 1)
        (tmp_path / "files" / split / "a").mkdir(parents=True)
        for i, file in enumerate([*files, b"no image", samples.encode(stack[0, :8])]):
            (tmp_path / "files" / split / "a" / f"{i}.png").write_bytes(file)
        np.savez(tmp_path / f"{split}.npz", images=stack, labels=np.arange(6) % 2)
    parts = {"path": str(tmp_path / "files")}, {"source": "arrays", "path": str(tmp_path)}
    config = small_config(data__source="mixture", data__mixture=parts)
    notes = " ".join(open_pair(config.data, TEST_SPLITS, share=0.25, seed=0).notes)
    copies = 1 if copy == "none" else 2  # the image that is no image, and perhaps one more
    assert f"{copies} of 13 compared examples of the split 'test'" in notes
