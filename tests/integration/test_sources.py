"""Data in every kind of container: the same losses, and what the table of sources promises."""

import re
from pathlib import Path

import numpy as np
import pytest

from can_jax.data.sources.registry import SOURCES, available_splits, open_source
from tests.helpers.configs import small_config
from tests.helpers.losses import losses_of
from tests.helpers.photos import COUNT, PHOTOS, READ, STREAM, STREAMED, write_photos
from tests.helpers.runs import main_in_process

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.slow
def test_same_photos_give_the_same_losses_from_every_container(tmp_path):
    write_photos(tmp_path)
    options = [str(tmp_path / "tars"), "--workers=1", f"--out={tmp_path / 'index'}"]
    main_in_process("can_jax.data.index", *options).check_returncode()
    read = [losses_of(source=READ[kind], path=str(tmp_path / kind)) for kind in READ]
    index = str(tmp_path / "index")
    read.append(losses_of(source="webdataset", path=str(tmp_path / "tars"), index=index))
    assert all(losses == read[0] for losses in read) and np.isfinite(read[0][-1]["loss/total"])
    streamed = [
        losses_of(source=source, path=str(tmp_path / kind), **STREAM)
        for kind, source in STREAMED.items()
    ]
    assert all(losses == streamed[0] for losses in streamed)
    assert streamed[0] != read[0]  # a stream has an order of its own


def rows_of_table():
    """The description of `data.path` for each source, as the page about data gives it."""
    text = (DOCS / "data.md").read_text()
    table = text.split("## Sources", 1)[1].split("\n## ", 1)[0].split("### ", 1)[0]
    return dict(re.findall(r"^\| `(\w+)`[^|]*\| (.+) \|$", table, re.MULTILINE))


def patterns_of(row):
    """The quoted patterns in a row of the table."""
    return re.findall(r"`'/data/(.+?)'`", row)


def check(source, count=COUNT, split="train", **changes):
    """Open a source as a row says, and read its last example."""
    changes = {f"data__{key}": value for key, value in changes.items()}
    config = small_config(data__source=source, **changes)
    opened = open_source(config.data, split)
    assert opened.examples == count
    assert split in available_splits(config.data)
    block = opened.read_block(np.arange(count)[-1:])
    assert block.length[0] > 0
    return opened


def test_table_of_sources_names_them_all():
    assert rows_of_table().keys() == set(SOURCES)


def test_rows_of_sources_of_files_are_true(tmp_path):
    rows, folder = rows_of_table(), write_photos(tmp_path)
    deep = folder / "deep" / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "0.jpg").write_bytes(PHOTOS[0])
    assert "at any depth" in rows["folder"]
    check("folder", path=str(folder / "folder"))
    check("folder", count=1, path=str(folder / "deep"))
    for source, name in (("tfrecord", "records"), ("webdataset", "tars")):
        assert "a folder, or a pattern" in rows[source]
        check(source, path=str(folder / name))
        (pattern,) = patterns_of(rows[source])
        check(source, path=str(folder / name / pattern))


def test_rows_of_other_sources_are_true(tmp_path):
    rows = rows_of_table()
    for split in ("train", "test"):
        assert f"`{split}*.npz`" in rows["arrays"]
        for i in range(2):
            images = np.random.default_rng(i).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
            np.savez(tmp_path / f"{split}-{i}.npz", images=images)
        check("arrays", count=6, split=split, path=str(tmp_path))
    assert rows["shapes"].startswith("not used") and rows["mixture"].startswith("not used")
    check("shapes", count=64)
    assert "one dict per part" in rows["mixture"] and "`weight`" in rows["mixture"]
    parts = ({"source": "arrays", "path": str(tmp_path), "weight": 3.0}, {"source": "shapes"})
    mixed = check("mixture", count=6 + 64, mixture=parts)
    assert mixed.weights == (3.0, 1.0)


@pytest.mark.slow
def test_row_of_tfds_is_true(tmp_path):
    from tests.data.test_tfds import build

    row = rows_of_table()["tfds"]
    assert "`data.name`" in row and "Nothing is downloaded" in row
    build(tmp_path)
    (expression,) = re.findall(r"`(train\[.+?\])`", row)
    check("tfds", count=23, path=str(tmp_path), name="tiny")
    config = small_config(data__source="tfds", data__path=str(tmp_path), data__name="tiny")
    assert open_source(config.data, expression).examples == 21
