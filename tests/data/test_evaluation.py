import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from can_jax.data.evaluation.examples import EvaluationSet
from can_jax.data.sources.base import ArraySource
from can_jax.data.sources.registry import open_source
from tests.data.samples import encode
from tests.helpers.configs import small_config


def numbered(count):
    """Images that show their number, which is also their label."""
    images = np.full((count, 16, 16, 3), np.arange(count)[:, None, None, None], np.uint8)
    return ArraySource(images, np.arange(count, dtype=np.int32))


def check_every_example_counts_once(size, count, hosts, local):
    examples = EvaluationSet(small_config(), numbered(size), count, labeled=False)
    assert len(examples) == min(size, count)
    shares = np.split(np.arange(hosts * local), hosts)
    parts = [list(examples.batches(hosts * local, rows)) for rows in shares]
    assert len({len(part) for part in parts}) == 1
    seen = []
    for batches in zip(*parts, strict=True):
        for batch in batches:
            assert batch.images.shape == (local, 16, 16, 3)
            shown = batch.images[:, 0, 0, 0]
            assert (shown[batch.valid] == batch.label[batch.valid]).all()
            seen += shown[batch.valid].tolist()
    alone = [label for b in examples.batches(7, np.arange(7)) for label in b.label[b.valid]]
    assert seen == alone and len(set(seen)) == len(examples)


@pytest.mark.parametrize("cases", [5, pytest.param(25, marks=pytest.mark.slow)])
def test_every_example_counts_once_on_any_number_of_hosts(cases):
    drawn = given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 3), st.integers(1, 5))
    settings(deadline=None, max_examples=cases)(drawn(check_every_example_counts_once))()


@pytest.mark.parametrize("labeled", [True, False])
def test_what_cannot_be_decoded_does_not_count(tmp_path, labeled):
    for name in ("a/0", "a/1", "b/2", "b/3"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(np.full((9, 9, 3), int(name[-1]), np.uint8)))
    (tmp_path / "a/1.png").write_bytes(b"broken")
    (tmp_path / "b/3.png").write_bytes(encode(np.full((9, 9, 3), 3, np.uint8), "gif"))
    config = small_config(data__source="folder", data__path=str(tmp_path))
    source = open_source(config.data, "train")
    examples = EvaluationSet(config, source, 10, labeled=labeled)
    (batch,) = examples.batches(6, np.arange(6))
    assert batch.valid.tolist() == [True, False, True, True, False, False]
    assert batch.label[batch.valid].tolist() == [0, 1, 1]
    assert examples.images()[:, 0, 0, 0].tolist() == [0, 2, 3]


def test_unlabelled_images_are_left_out_where_labels_are_asked_for():
    images = np.zeros((3, 16, 16, 3), np.uint8)
    source = ArraySource(images, np.array([0, -1, 1], np.int32))
    counted = [
        EvaluationSet(small_config(), source, 9, labeled=labeled) for labeled in (True, False)
    ]
    assert [len(examples) for examples in counted] == [2, 3]


def test_examples_are_spread_over_the_source():
    examples = EvaluationSet(small_config(), numbered(100), 5, labeled=False)
    (batch,) = examples.batches(5, np.arange(5))
    assert batch.label.tolist() == [10, 30, 50, 70, 90]
