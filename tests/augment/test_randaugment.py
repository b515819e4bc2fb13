import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from can_jax.augment import mixup as mixing
from can_jax.augment import randaugment as ra


def picture(seed=0, size=(24, 20)):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 230, (6, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(image)


def planes(image):
    return jnp.asarray(image.transpose(2, 0, 1) / 255.0, jnp.float32)


change, sharpened, moved = map(jax.jit, (ra.change, ra.sharpened, ra.moved))
GRAY = jnp.full(3, 0.5)
move_matrix = jax.jit(ra.move_matrix, static_argnums=2)


def bytes_of(image):
    return np.asarray(image).transpose(1, 2, 0) * 255


def solarize_add(image, amount):
    table = [min(255, i + amount) if i < 128 else i for i in range(256)]
    return image.point(table * 3)


STRENGTH, FACTOR = 0.6, 1.54
PILLOW = {
    "autocontrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "invert": ImageOps.invert,
    "posterize": lambda image: ImageOps.posterize(image, 4 - int(4 * STRENGTH)),
    "solarize": lambda image: ImageOps.solarize(image, 256 - int(256 * STRENGTH)),
    "solarize_add": lambda image: solarize_add(image, int(110 * STRENGTH)),
    "color": lambda image: ImageEnhance.Color(image).enhance(FACTOR),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(FACTOR),
    "brightness": lambda image: ImageEnhance.Brightness(image).enhance(FACTOR),
    "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(FACTOR),
}


@pytest.mark.parametrize("name", ra.CHANGES)
def test_changes_are_pillows(name):
    image = picture()
    number = jnp.int32(ra.CHANGES.index(name))
    found = bytes_of(change(planes(image), number, jnp.float32(STRENGTH), jnp.float32(FACTOR)))
    wanted = np.asarray(PILLOW[name](Image.fromarray(image)), float)
    assert np.abs(found - wanted).max() <= 1.6, np.abs(found - wanted).max()
    assert np.abs(wanted - image).max() > 5


def test_sharpness_knows_pillows_kernel():
    image = Image.fromarray(picture(1))
    smooth = np.asarray(image.filter(ImageFilter.SMOOTH), float)
    found = bytes_of(sharpened(planes(np.asarray(image)), jnp.float32(0.0)))
    assert np.abs(found - smooth).max() <= 1


@pytest.mark.parametrize("name", ra.MOVES)
@pytest.mark.parametrize("amount", [-0.7, 0.4])
def test_moves_are_pillows(name, amount):
    image = picture(2, size=(40, 40))
    number = jnp.int32(ra.MOVES.index(name))
    matrix = move_matrix(number, jnp.float32(amount), (40, 40))
    fill = np.array([128, 64, 191]) / 255
    found = bytes_of(moved(planes(image), matrix, jnp.asarray(fill, jnp.float32)))
    a = np.asarray(matrix, float)
    # Pillow's map is from corners, and its pixels' centres are at a half.
    shift = a[:, 2] + 20 - a[:, :2] @ [20, 20]
    data = (*a[0, :2], shift[0], *a[1, :2], shift[1])
    pillow = Image.fromarray(image).transform(
        (40, 40), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC, fillcolor=(128, 64, 191)
    )
    difference = np.abs(found - np.asarray(pillow, float)).max(axis=2)
    assert (difference < 1.01).mean() > 0.995  # Pillow rounds down; a border pixel may differ


def test_interpolation_between_pixels_is_cubic():
    """Steps overshoot, black and white cut that off, and the point on the border is outside."""
    row = jnp.asarray([0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 1.0, 1.0])
    shifted = moved(jnp.tile(row, (1, 8, 1)), jnp.array([[1, 0, 0.5], [0, 1, 0]]), jnp.zeros(1))
    wanted = [0, -0.0625, 0.25, 0.5625, 0.4375, 0.75, 1.0625, 0]
    np.testing.assert_allclose(shifted[0, 4], np.clip(wanted, 0, 1), atol=1e-6)


TIMM = {
    "AutoContrast": "autocontrast", "Equalize": "equalize", "Invert": "invert", "Rotate": "rotate",
    "PosterizeIncreasing": "posterize", "SolarizeIncreasing": "solarize",
    "SolarizeAdd": "solarize_add", "ColorIncreasing": "color", "ContrastIncreasing": "contrast",
    "BrightnessIncreasing": "brightness", "SharpnessIncreasing": "sharpness", "ShearX": "shear_x",
    "ShearY": "shear_y", "TranslateXRel": "translate_x", "TranslateYRel": "translate_y",
}  # fmt: skip


@pytest.mark.parametrize("sign", [1, -1])
def test_operations_are_those_of_timms_transform_for_mae(monkeypatch, sign):
    """`build_transform` of MAE's util/datasets.py: the operations, their sizes, fill and filter."""
    timm = pytest.importorskip("timm.data")
    mean = (0.485, 0.456, 0.406)
    transform = timm.create_transform(
        64, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic",
        mean=mean, std=(0.229, 0.224, 0.225),
    )  # fmt: skip
    (policy,) = [part for part in transform.transforms if hasattr(part, "num_layers")]
    assert policy.num_layers == 2 and {op.name for op in policy.ops} == set(TIMM)
    monkeypatch.setattr("timm.data.auto_augment._randomly_negate", lambda value: sign * value)
    image = (40 + 0.6 * picture(4, size=(64, 64))).astype(np.uint8)
    for op in policy.ops:
        assert op.prob == ra.APPLIED and (op.magnitude, op.magnitude_std) == (9, 0.5)
        op.prob, op.magnitude_std = 1.0, 0.0
        wanted = np.asarray(op(Image.fromarray(image)), float)
        name, strength = TIMM[op.name], jnp.float32(0.9)
        if name in ra.MOVES:
            turn = -1 if name == "rotate" else 1  # Pillow turns counterclockwise
            number = jnp.int32(ra.MOVES.index(name))
            matrix = move_matrix(number, turn * sign * strength, (64, 64))
            found = moved(planes(image), matrix, jnp.round(255 * jnp.asarray(mean)) / 255)
        else:
            number = jnp.int32(ra.CHANGES.index(name))
            found = change(planes(image), number, strength, jnp.float32(1 + 0.9 * sign * 0.9))
        difference = np.abs(bytes_of(found) - wanted).max(axis=2)
        assert (difference <= 1.6).mean() > 0.995, (name, difference.max(), difference.mean())
        assert (wanted != image).any()


def test_shears_leave_the_corner_in_place():
    """As timm's, which pass (1, factor, 0, 0, 1, 0) and its counterpart to Pillow."""
    for name, wanted in (("shear_x", (1, 0.12, 0, 0, 1, 0)), ("shear_y", (1, 0, 0, 0.12, 1, 0))):
        a = np.asarray(move_matrix(ra.MOVES.index(name), jnp.float32(0.4), (40, 30)), float)
        shift = a[:, 2] + [15, 20] - a[:, :2] @ [15, 20]
        np.testing.assert_allclose((*a[0, :2], shift[0], *a[1, :2], shift[1]), wanted, atol=1e-5)


def test_rotation_by_hand():
    matrix = np.asarray(move_matrix(jnp.int32(0), jnp.float32(1.0), (10, 10)))
    np.testing.assert_allclose(matrix[0, :2], [np.cos(np.pi / 6), np.sin(np.pi / 6)], rtol=1e-6)


def test_half_of_the_operations_are_applied():
    image = planes(picture(3))
    keys = jax.random.split(jax.random.key(0), 200)
    found = jax.jit(jax.vmap(lambda key: ra.randaugment(image, key, 1, 9.0, 0.5, GRAY)))(keys)
    changed = np.abs(np.asarray(found) - np.asarray(image)).max(axis=(1, 2, 3)) > 1e-6
    assert 0.35 < changed.mean() < 0.65
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    same = jax.vmap(lambda key: ra.randaugment(image, key, 0, 9.0, 0.5, GRAY))(keys)
    assert np.abs(np.asarray(same) - np.asarray(image)).max() == 0


def test_erasing_fills_boxes_of_the_right_size():
    image = jnp.full((32, 24, 3), 7.0)
    keys = jax.random.split(jax.random.key(1), 300)
    erase = jax.jit(jax.vmap(lambda key: ra.random_erasing(image, key, 0.5)))
    found = np.asarray(erase(keys))
    hit = (found != 7.0).any(axis=3)
    share = hit.mean(axis=(1, 2))
    erased = share > 0
    assert 0.4 < erased.mean() < 0.6
    assert share[erased].min() > 0.01 and share[erased].max() < 0.37
    for mask in hit[erased][:40]:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_targets_say_what_is_in_the_image(mixup, cutmix):
    # Image i is all ones in channel i, and its target is class i.
    images = jnp.asarray(np.eye(4)[:, None, None].repeat(32, 1).repeat(32, 2), jnp.float32)
    targets = jnp.eye(4)
    mix = jax.jit(lambda key: mixing.mix(images, targets, key, mixup, cutmix))
    shares = set()
    for seed in range(20):
        found, mixed = mix(jax.random.key(seed))
        shares.add(float(mixed[0, 0]))
        np.testing.assert_allclose(
            np.asarray(found, np.float64).mean(axis=(1, 2)), mixed, atol=1e-5
        )
        np.testing.assert_allclose(np.asarray(mixed).sum(axis=1), 1, rtol=1e-6)
    assert len(shares) > 10 and 0 <= min(shares) < max(shares) <= 1
    assert mixing.mix(images, targets, jax.random.key(0), 0.0, 0.0)[0] is images


def test_each_group_of_a_batch_is_mixed_by_itself(monkeypatch):
    monkeypatch.setattr(mixing, "GROUP", 4)
    images, targets = jnp.arange(12.0)[:, None, None, None] * jnp.ones((2, 2, 3)), jnp.eye(12)
    _, mixed = mixing.mix(images, targets, jax.random.key(3), 0.8, 0.0)
    mixed = np.asarray(mixed)
    assert len({float(mixed[start, start]) for start in (0, 4, 8)}) == 3
    for start in (0, 4, 8):
        inside = mixed[start : start + 4, start : start + 4]
        np.testing.assert_allclose(inside.sum(axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose(inside, inside[::-1, ::-1], atol=1e-6)  # a pair shares its ratio
