"""`can_jax.load` on files of other libraries, and the images that its encoder takes."""

import io
import json
import warnings

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import can_jax
from can_jax.augment.crops import resize_and_center_crop
from can_jax.encoders.encoder import load_encoder
from can_jax.export import numpy_vit as plain
from can_jax.utils.errors import UserError
from can_jax.weights.layouts import to_huggingface
from tests.weights.vits import vit

MEAN, STD = [0.5, 0.4, 0.6], [0.25, 0.3, 0.2]
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of Hugging Face with images of 16 x 24 pixels."""
    place = tmp_path_factory.mktemp("vit")
    arrays = to_huggingface(vit(grid=(4, 6)), with_decoder=False)
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, place / "model.safetensors")
    config = {"model_type": "vit", "num_attention_heads": 3, "layer_norm_eps": 1e-6}
    (place / "config.json").write_text(json.dumps(config))
    processor = {"image_mean": MEAN, "image_std": STD}
    (place / "preprocessor_config.json").write_text(json.dumps(processor))
    return place


@pytest.fixture(scope="module")
def encoder(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return can_jax.load(folder)


def test_features_are_those_of_the_model(encoder):
    pixels = ((IMAGES / 255 - MEAN) / STD).astype(np.float32)
    wanted = plain.encode(vit(grid=(4, 6)), pixels, heads=3)
    np.testing.assert_allclose(encoder(IMAGES, "class"), wanted[:, 0], atol=2e-5)
    np.testing.assert_allclose(encoder(IMAGES), wanted[:, 1:].mean(axis=1), atol=2e-5)
    np.testing.assert_array_equal(encoder(list(IMAGES)), encoder(IMAGES))


def test_encoder_says_what_it_is(encoder, folder):
    found = (encoder.image_size, encoder.patch_size, encoder.channels, encoder.width, encoder.heads)
    assert found == ((16, 24), 4, 3, 24, 3) and encoder.depth == 2
    assert list(encoder.mean) == MEAN and list(encoder.std) == STD
    assert str(folder) in repr(encoder) and "uint8 images (n, 16, 24, 3)" in repr(encoder)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            IMAGES / 255,
            r"float64, not uint8 \(n, 16, 24, 3\): convert values in \[0, 1\] to uint8 by",
        ),
        ((IMAGES / 255).astype(np.float32), "images are float32"),
        (IMAGES.astype(np.float16), r"convert values in \[0, 255\] to uint8 by"),
        (IMAGES.astype(np.int64), r"convert values in \[0, 255\] to uint8 by"),
        (IMAGES.astype(np.int16) - 300, "values range from -300 to"),
        (IMAGES / 127.5 - 1, "not normalized"),
        (IMAGES > 3, "images are bool"),
        (IMAGES.transpose(0, 3, 1, 2), r"channels are first, .*; give images\.transpose\(0, 2,"),
        (
            IMAGES[:2].transpose(0, 3, 1, 2) / 255,
            r"of shape \(2, 3, 16, 24\), .*first.*\(255 \* images\.transpose\(0, 2, 3, 1\)\)",
        ),
        (
            list(IMAGES.transpose(0, 3, 1, 2)),
            r"first.*give np\.asarray\(images\)\.transpose\(0, 2,",
        ),
        (
            IMAGES.tolist(),
            r"convert values in \[0, 255\] to uint8 by np\.asarray\(images\)\.round\(\)\.astype",
        ),
        (np.zeros((2, 3, 224, 224), np.uint8), "channels are first.*resize the images"),
        (IMAGES[0].transpose(2, 0, 1), r"single image.*first.*give images\[None\]\.transpose\(0"),
        (IMAGES[0], r"of a single image; give images\[None\]$"),
        (IMAGES[0, :8], r"of a single image; resize"),
        (IMAGES[..., :1], "the encoder takes 3 channels"),
        (np.concatenate([IMAGES, IMAGES[..., :1]], axis=3), "the encoder takes 3 channels"),
        (IMAGES[..., 0], r"shape \(3, 16, 24\), not"),
        (
            IMAGES[:, :, :16],
            "resize the images with encoder.preprocess, or set image_size in can_jax.load",
        ),
        (IMAGES[:, :15], "resize the images"),
        (IMAGES.transpose(0, 2, 1, 3), "resize the images"),
        (IMAGES[:0], "are empty"),
        ([], "are empty"),
        ([IMAGES[0], IMAGES[0, :8]], "the images have different shapes"),
        (None, "images are object"),
        ("photo.jpg", "not uint8"),
    ],
)
def test_images_of_another_kind_are_refused(encoder, images, message):
    with pytest.raises(UserError, match=message) as error:
        encoder(images)
    assert "\n" not in str(error.value)


def test_patch_tokens_and_tokens_of_any_number_of_images(encoder):
    pixels = ((IMAGES / 255 - MEAN) / STD).astype(np.float32)
    wanted = plain.encode(vit(grid=(4, 6)), pixels, heads=3)
    tokens = encoder(IMAGES, "tokens")
    np.testing.assert_allclose(tokens, wanted, atol=2e-5)
    np.testing.assert_array_equal(encoder(IMAGES, "patch_tokens"), tokens[:, 1:])
    assert encoder.grid == (4, 6) and tokens.dtype == np.float32
    many = np.concatenate([IMAGES] * 7)  # more than the batch size, which eight devices share
    small = can_jax.load(encoder._subject.identity["path"], batch_size=3)
    assert small.batch_size == 8
    np.testing.assert_allclose(small(many), np.tile(encoder(IMAGES), (7, 1)), atol=1e-6)


def test_images_are_preprocessed_as_in_an_evaluation(encoder, tmp_path):
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (61, 87, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    view = encoder.preprocess(photo)
    assert view.shape == (16, 24, 3) and view.dtype == np.uint8
    for same in (tmp_path / "photo.png", str(tmp_path / "photo.png"), Image.fromarray(photo),
                 (tmp_path / "photo.png").read_bytes(), np.asarray(view)):  # fmt: skip
        np.testing.assert_array_equal(encoder.preprocess(same), view)
    wanted = resize_and_center_crop(photo, (16, 24)).numpy().astype(int)
    assert np.abs(wanted - view).max() <= 1 and np.mean(wanted != view) < 0.01
    gray = encoder.preprocess(photo[..., 0])
    np.testing.assert_array_equal(gray, encoder.preprocess(Image.fromarray(photo[..., 0])))
    assert encoder([view, gray]).shape == (2, 24)


def truncated():
    """An image of Pillow, which decodes its file only when it is needed."""
    file = io.BytesIO()
    Image.fromarray(IMAGES[0]).save(file, "jpeg")
    return Image.open(io.BytesIO(file.getvalue()[:-40]))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("/no/such.jpg", "^/no/such.jpg cannot be read"),
        (truncated(), "^the image cannot be decoded: .*truncated"),
        (b"x", "^the image cannot be decoded"),
        (np.zeros((9, 9, 3)), r"is float64: give uint8 \(height, width, 3\)$"),
        (np.zeros((3, 9, 9), np.uint8), "channels are first"),
        (np.zeros((9, 9, 2), np.uint8), r"has shape \(9, 9, 2\)"),
        (Image.new("I;16", (9, 9)), "mode I;16, with more than 8 bits"),
        (None, "is object: give .* the path of an image file, or a PIL.Image"),
    ],
)
def test_image_that_cannot_be_preprocessed_is_refused(encoder, image, message):
    with pytest.raises(UserError, match=message):
        encoder.preprocess(image)


def test_features_of_another_name_are_refused(encoder):
    with pytest.raises(
        UserError, match="features='cls': choose one of patches, all, class, both, patch_"
    ):
        encoder(IMAGES, "cls")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 18}, "image_size=18x18 is not a multiple of the patch size 4"),
        ({"image_size": "large"}, "image_size='large': give an int"),
        ({"heads": 4}, "heads=4: the weights have 3 heads"),
        ({"heads": np.int64(4)}, "heads=4: the weights have 3 heads"),
        ({"mean": np.float32("nan"), "std": 0.5}, "mean=nan: nan is not a finite number"),
        ({"mean": [0.5, 0.5]}, "mean=.* has 2 values, but the encoder has 3 channels"),
        ({"mean": [120, 110, 100]}, "not from 0 to 255"),
        ({"step": 3}, "step=3: .* is not a run directory, so"),
        ({"step": 1.5}, "step=1.5: give a whole number"),
        ({"batch_size": 0}, "batch_size=0: give a whole number"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_the_path(folder, options, message):
    with pytest.raises(UserError, match=message) as error:
        load_encoder(folder, **options)  # whose arguments may be anything
    assert str(folder) in str(error.value) and "checkpoint" not in str(error.value)


def test_numbers_of_numpy_are_taken(folder):
    size = (np.int64(16), np.int32(24))
    one = can_jax.load(folder, size, heads=np.int64(3), mean=np.float32(0.5), std=np.ones(3) / 2)
    assert (one.heads, one.image_size, one.mean) == (3, (16, 24), (0.5, 0.5, 0.5))


def test_path_that_is_not_there_is_told_as_it_was_given():
    with pytest.raises(UserError, match="^/no/such/place does not exist$"):
        can_jax.load("/no/such/place")


def test_what_is_assumed_of_a_bare_file_is_warned_of(folder, tmp_path):
    save_file(vit(), tmp_path / "mae.safetensors")
    with pytest.warns(UserWarning, match="does not state mean and std") as told:
        can_jax.load(tmp_path / "mae.safetensors", heads=3)
    assert len(told) == 1
