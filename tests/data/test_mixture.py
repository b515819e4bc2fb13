import numpy as np
import pytest

from can_jax.data.source import open_source
from can_jax.errors import UserError
from tests.conftest import small_config
from tests.data.samples import encode, write_tfrecord


@pytest.fixture
def parts(tmp_path):
    for i in range(6):
        path = tmp_path / "folder" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(np.full((16, 16, 3), i, np.uint8)))
    records = [encode(np.full((16, 16, 3), 100 + i, np.uint8)) for i in range(4)]
    write_tfrecord(tmp_path / "records.tfrecord", records)
    return (
        {"source": "folder", "path": str(tmp_path / "folder"), "weight": 3.0},
        {"source": "tfrecord", "path": str(tmp_path / "records.tfrecord")},
        {"source": "shapes", "shapes_count": 32},
    )


def test_parts_follow_each_other(parts):
    config = small_config(data__source="mixture", data__mixture=parts)
    source = open_source(config.data, "train")
    assert source.examples == 6 + 4 + 32 and source.weights == (3.0, 1.0, 1.0)
    assert source.sizes == (6, 4, 32)
    images, labels = source.read(np.array([41, 0, 6, 5]))
    folder = source.parts[0]
    assert images[1:] == [
        folder.read(np.array([0]))[0][0],
        source.parts[1].read(np.array([0]))[0][0],
        folder.read(np.array([5]))[0][0],
    ]
    assert labels.tolist() == [2 + source.parts[2].labels[31], 0, -1, 1]
    assert source.label_names[:3] == ("class0", "class1", "disc")
    assert source.describe(5).endswith("class1/5.png") and "records.tf" in source.describe(6)


def test_what_is_wrong_with_a_mixture_is_one_line(parts):
    for broken, message in [
        ((), "mixture is empty"),
        (({"weight": 0.0, **parts[1]} | {"weight": 0.0},), "weight=0.0 is not above 0"),
        (({"source": "mixture"},), "cannot be a mixture"),
        (({"sorce": "folder"},), "unknown key 'sorce'; did you mean 'source'"),
        (({"source": "folder"},), "data.path is not set"),
    ]:
        with pytest.raises(UserError, match=message):
            small_config(data__source="mixture", data__mixture=broken)
