"""A Pillow baseline for the input pipeline: random views of an image, augmented as in torchvision.

The crops, color jitter, grayscale, blur and normalization use the settings of `config.augment`.
This module imports neither JAX nor TensorFlow, so that worker processes start quickly.
"""

import contextlib
import dataclasses
import math
import random
import time

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from can_jax.data.decoding.open_image import open_image
from can_jax.utils.cpu import end_with_parent
from can_jax.utils.errors import UserError

_encoded: list[bytes] = []  # The images of this worker process.


@dataclasses.dataclass(frozen=True)
class TwoViews:
    """A random augmentation that returns ``views`` views of an image.

    ``size`` is the (height, width) of a view in pixels. All fields except ``size`` have the names
    and values of keys in `config.augment`.
    """

    size: tuple[int, int]
    views: int
    crop_area: tuple[float, float]
    crop_aspect: tuple[float, float]
    crop_interpolation: str
    flip: float
    jitter: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    grayscale: float
    blur: float
    blur_sigma: tuple[float, float]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, encoded: bytes) -> np.ndarray:
        """Return normalized float32 views of an encoded image, of shape (views, 3, height,
        width)."""
        with open_image(encoded) as image:
            whole = image.convert("RGB")
        return np.stack([self._normalized(self._view(whole)) for _ in range(self.views)])

    def _normalized(self, view: Image.Image) -> np.ndarray:
        planes = np.ascontiguousarray(np.asarray(view).transpose(2, 0, 1)).astype(np.float32) / 255
        mean, std = (np.array(v, np.float32)[:, None, None] for v in (self.mean, self.std))
        return (planes - mean) / std

    def _view(self, image: Image.Image) -> Image.Image:
        part = image.crop(self._box(image))
        view = part.resize(self.size[::-1], Image.Resampling[self.crop_interpolation.upper()])
        if random.random() < self.flip:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if random.random() < self.jitter:
            for change in random.sample((self._light, self._contrast, self._color, self._hue), 4):
                view = change(view)
        if random.random() < self.grayscale:
            view = view.convert("L").convert("RGB")
        if random.random() < self.blur:
            view = view.filter(ImageFilter.GaussianBlur(random.uniform(*self.blur_sigma)))
        return view

    def _box(self, image: Image.Image) -> tuple[int, int, int, int]:
        for _ in range(10):
            area = random.uniform(*self.crop_area) * image.width * image.height
            ratio = math.exp(random.uniform(*map(math.log, self.crop_aspect)))
            width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < width <= image.width and 0 < height <= image.height:
                left = random.randint(0, image.width - width)
                top = random.randint(0, image.height - height)
                return left, top, left + width, top + height
        return 0, 0, image.width, image.height

    def _light(self, view: Image.Image) -> Image.Image:
        return ImageEnhance.Brightness(view).enhance(self._factor(self.brightness))

    def _contrast(self, view: Image.Image) -> Image.Image:
        return ImageEnhance.Contrast(view).enhance(self._factor(self.contrast))

    def _color(self, view: Image.Image) -> Image.Image:
        return ImageEnhance.Color(view).enhance(self._factor(self.saturation))

    def _hue(self, view: Image.Image) -> Image.Image:
        hue, saturation, value = view.convert("HSV").split()
        shift = round(255 * random.uniform(-self.hue, self.hue))
        turned = Image.fromarray(np.asarray(hue) + np.uint8(shift % 256))
        return Image.merge("HSV", (turned, saturation, value)).convert("RGB")

    @staticmethod
    def _factor(strength: float) -> float:
        return random.uniform(max(0.0, 1 - strength), 1 + strength)


def start_worker(encoded: list[bytes]) -> None:
    """Initialize a worker process with those encoded images that Pillow can decode."""
    end_with_parent()
    for image in encoded:
        with contextlib.suppress(Exception), open_image(image) as opened:
            opened.convert("RGB")
            _encoded.append(image)


def count_images(views: TwoViews, seconds: float) -> tuple[int, float]:
    """Augment images for ``seconds``; return the number of images and the elapsed seconds.

    Raises:
        UserError: Pillow can decode none of the images.
    """
    if not _encoded:
        raise UserError(
            "the Pillow baseline cannot be measured, since Pillow can decode none of the sampled "
            "images; use images in another format"
        )
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        views(_encoded[count % len(_encoded)])
        count += 1
    return count, elapsed
