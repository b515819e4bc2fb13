"""What is cut from an image: the random views of training, or the one view of an evaluation."""

import abc
import dataclasses
from typing import Any

from ml_collections import ConfigDict

from can_jax.augment.crops import crop_and_resize, random_boxes, resize_and_centre_crop
from can_jax.data.decoding.decode import native_pixels, native_size, orient, orientation, reduction
from can_jax.data.decoding.depth import Range
from can_jax.utils.tensorflow import tensorflow


@dataclasses.dataclass(frozen=True)
class Views(abc.ABC):
    """Cuts views from an image; they follow from the image and its position in the stream alone."""

    size: tuple[int, int]  # (height, width) of a view
    channels: int
    max_pixels: int  # of an image
    exif: bool  # whether images are turned upright
    value_range: Range  # of images of more than 8 bits a channel

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int, int, int]:
        """(views, height, width, channels) of what is cut from an image."""

    @abc.abstractmethod
    def from_pixels(self, image: Any, position: Any) -> Any:
        """Views, uint8 `shape`, of a decoded image, (height, width, channels)."""

    @abc.abstractmethod
    def from_bytes(self, encoded: Any, position: Any) -> Any:
        """Views of an encoded image; evaluating them fails if it cannot be decoded natively."""

    def _header(self, encoded: Any) -> tuple[Any, Any]:
        """Size of the upright image, and its EXIF orientation, 1 where that is not asked for."""
        tf = tensorflow()
        size = native_size(encoded, self.max_pixels)
        if not self.exif:
            return size, tf.constant(1)
        turn = tf.ensure_shape(
            tf.numpy_function(
                lambda e: orientation(bytes(e), self.max_pixels), [encoded], tf.int32
            ),
            (),
        )
        return tf.where(turn >= 5, size[::-1], size), turn


@dataclasses.dataclass(frozen=True)
class CentreView(Views):
    """The middle of an image, as `resize_and_centre_crop` gives it."""

    @staticmethod
    def from_config(config: ConfigDict) -> "CentreView":
        """As `data` says."""
        data = config.data
        return CentreView(
            size=data.image_size,
            channels=data.channels,
            max_pixels=data.max_pixels,
            exif=data.exif_orientation,
            value_range=data.range,
        )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the one view."""
        return (1, *self.size, self.channels)

    def from_pixels(self, image: Any, position: Any) -> Any:
        """The view of a decoded image, uint8 `shape`."""
        return resize_and_centre_crop(image, self.size)[None]

    def from_bytes(self, encoded: Any, position: Any) -> Any:
        """The view of an encoded image."""
        _, turn = self._header(encoded)
        image = native_pixels(encoded, self.channels, value_range=self.value_range)
        return self.from_pixels(orient(image, turn) if self.exif else image, position)


@dataclasses.dataclass(frozen=True)
class RandomViews(Views):
    """Random resized crops, which follow from the position in the stream."""

    seed: int
    views: int
    area: tuple[float, float]  # share of the image
    aspect: tuple[float, float]  # width to height, of boxes

    @staticmethod
    def from_config(config: ConfigDict) -> "RandomViews":
        """As `augment` and `data` say."""
        augment, data = config.augment, config.data
        height, width = data.image_size
        low, high = augment.crop_aspect
        return RandomViews(
            seed=config.seed,
            views=augment.views,
            area=tuple(augment.crop_area),
            aspect=(low * width / height, high * width / height),
            size=(height, width),
            channels=data.channels,
            max_pixels=data.max_pixels,
            exif=data.exif_orientation,
            value_range=data.range,
        )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the views of an image."""
        return (self.views, *self.size, self.channels)

    def from_pixels(self, image: Any, position: Any) -> Any:
        """Views, uint8 `shape`, of a decoded image."""
        boxes = self._boxes(_sides(image), position)
        return crop_and_resize(image, boxes, self.size)

    def from_bytes(self, encoded: Any, position: Any) -> Any:
        """Views of an encoded image, which is decoded once, and not larger than they need."""
        tf = tensorflow()
        size, turn = self._header(encoded)
        boxes = self._boxes(size, position)
        # As small as leaves every view at least its own number of pixels.
        ratio = reduction(encoded, tf.reduce_min(boxes[:, 2:] // tf.constant(self.size)))
        boxes = _reduced(boxes, size, ratio)
        if self.exif:
            image = native_pixels(encoded, self.channels, ratio, value_range=self.value_range)
            image = orient(image, turn)
            return crop_and_resize(image, boxes, self.size)
        start = tf.reduce_min(boxes[:, :2], axis=0)
        end = tf.reduce_max(boxes[:, :2] + boxes[:, 2:], axis=0)
        window = tf.concat([start, end - start], axis=0)
        image = native_pixels(encoded, self.channels, ratio, window, self.value_range)
        return crop_and_resize(image, boxes - tf.pad(start, [[0, 2]]), self.size)

    def _boxes(self, size: Any, position: Any) -> Any:
        tf = tensorflow()
        sides = tf.unstack(size, num=2)
        boxes = random_boxes(self.seed, position, sides, self.views, self.area, self.aspect)
        return tf.cast(boxes, tf.int32)


def _sides(image: Any) -> Any:
    """Height and width of an image tensor, as an int32 tensor (2,)."""
    return tensorflow().shape(image)[:2]


def _reduced(boxes: Any, size: Any, ratio: Any) -> Any:
    """Boxes of an image that is decoded smaller by a ratio, to the nearest whole pixels."""
    tf = tensorflow()
    scaled = tf.cast(tf.round(boxes / ratio), tf.int32)
    sides = (size + ratio - 1) // ratio
    start = tf.minimum(scaled[:, :2], sides - 1)
    return tf.concat([start, tf.clip_by_value(scaled[:, 2:], 1, sides - start)], axis=1)
