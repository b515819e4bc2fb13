"""Crops of an image: several random views for training, or one center view for evaluation."""

import abc
import dataclasses
from typing import Any

from ml_collections import ConfigDict

from can_jax.augment.crops import crop_and_resize, random_boxes, resize_and_center_crop
from can_jax.data.decoding.decode import native_pixels, native_size, orient, orientation, reduction
from can_jax.data.decoding.depth import Range
from can_jax.utils.tensorflow import tensorflow


@dataclasses.dataclass(frozen=True)
class Views(abc.ABC):
    """A description of the views to crop from an image. For a given description, the crop boxes
    depend only on the size and the stream position of the image.

    Attributes:
        size: The (height, width) of a view in pixels.
        channels: The number of channels of a view.
        max_pixels: The maximum number of pixels, width times height, of an image that is decoded.
        exif: Whether to rotate and mirror images by their EXIF orientation.
        value_range: The two pixel values that are mapped to 0 and 255 in images of more than 8 bits
            per channel; None if `config.data.range` is unset.
    """

    size: tuple[int, int]
    channels: int
    max_pixels: int
    exif: bool
    value_range: Range

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int, int, int]:
        """The shape (views, height, width, channels) of the views of an image."""

    @abc.abstractmethod
    def from_pixels(self, image: Any, position: Any) -> Any:
        """Return the views of a decoded image (height, width, channels) as a uint8 tensor of the
        shape ``self.shape``."""

    @abc.abstractmethod
    def from_bytes(self, encoded: Any, position: Any) -> Any:
        """Return the views of an encoded image as a uint8 tensor of the shape ``self.shape``.

        Evaluating the views raises a TensorFlow error if TensorFlow cannot decode the image, or the
        image has more than ``max_pixels`` pixels.
        """

    def _header(self, encoded: Any) -> tuple[Any, Any]:
        """Return the (height, width) after the EXIF rotation, and the EXIF orientation. If
        ``self.exif`` is False, the orientation is 1, and height and width are not swapped."""
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
class CenterView(Views):
    """A description of a single view, the center crop that `resize_and_center_crop` returns."""

    @staticmethod
    def from_config(config: ConfigDict) -> "CenterView":
        """Return the center view that the config block `data` describes."""
        data = config.data
        return CenterView(
            size=data.image_size,
            channels=data.channels,
            max_pixels=data.max_pixels,
            exif=data.exif_orientation,
            value_range=data.range,
        )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape (1, height, width, channels) of the single view."""
        return (1, *self.size, self.channels)

    def from_pixels(self, image: Any, position: Any) -> Any:
        """Return the view of a decoded image as a uint8 tensor of the shape ``self.shape``."""
        return resize_and_center_crop(image, self.size)[None]

    def from_bytes(self, encoded: Any, position: Any) -> Any:
        """Return the view of an encoded image as a uint8 tensor of the shape ``self.shape``.

        Evaluating the view raises a TensorFlow error if TensorFlow cannot decode the image, or the
        image has more than ``max_pixels`` pixels.
        """
        _, turn = self._header(encoded)
        image = native_pixels(encoded, self.channels, value_range=self.value_range)
        return self.from_pixels(orient(image, turn) if self.exif else image, position)


@dataclasses.dataclass(frozen=True)
class RandomViews(Views):
    """A description of random resized crops, seeded by the run's seed and the stream position.

    Attributes:
        seed: The seed of the run, from which the random keys of the crops are derived.
        views: The number of views per image.
        area: The smallest and largest area of a crop, as a fraction of the image.
        aspect: The smallest and largest ratio of width to height of a crop.
        interpolation: The interpolation of resized crops; see `config.augment.crop_interpolation`.
        fit: The handling of a crop that exceeds the image; see `config.augment.crop_fit`.
    """

    seed: int
    views: int
    area: tuple[float, float]
    aspect: tuple[float, float]
    interpolation: str = "bilinear"
    fit: str = "redraw"

    @staticmethod
    def from_config(config: ConfigDict) -> "RandomViews":
        """Return the random views that the config blocks `augment` and `data` describe."""
        augment, data = config.augment, config.data
        height, width = data.image_size
        low, high = augment.crop_aspect
        return RandomViews(
            seed=config.seed,
            views=augment.views,
            area=tuple(augment.crop_area),
            aspect=(low * width / height, high * width / height),
            interpolation=augment.crop_interpolation,
            fit=augment.crop_fit,
            size=(height, width),
            channels=data.channels,
            max_pixels=data.max_pixels,
            exif=data.exif_orientation,
            value_range=data.range,
        )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape (views, height, width, channels) of the views of an image."""
        return (self.views, *self.size, self.channels)

    def from_pixels(self, image: Any, position: Any) -> Any:
        """Return the views of a decoded image as a uint8 tensor of the shape ``self.shape``."""
        boxes = self._boxes(_sides(image), position)
        return self._cut(image, boxes)

    def from_bytes(self, encoded: Any, position: Any) -> Any:
        """Return the views of an encoded image, which is decoded once.

        For bilinear crops, a JPEG is downscaled during decoding as far as possible without making
        a crop smaller than its view. Images in other formats, and all images for bicubic crops, are
        decoded at full resolution.

        Evaluating the views raises a TensorFlow error if TensorFlow cannot decode the image, or the
        image has more than ``max_pixels`` pixels.
        """
        tf = tensorflow()
        size, turn = self._header(encoded)
        boxes = self._boxes(size, position)
        # The strongest reduction that leaves every crop at least as large as its view.
        largest = tf.reduce_min(boxes[:, 2:] // tf.constant(self.size))
        ratio = reduction(encoded, 1 if self.interpolation == "bicubic" else largest)
        boxes = _reduced(boxes, size, ratio)
        if self.exif:
            image = native_pixels(encoded, self.channels, ratio, value_range=self.value_range)
            image = orient(image, turn)
            return self._cut(image, boxes)
        start = tf.reduce_min(boxes[:, :2], axis=0)
        end = tf.reduce_max(boxes[:, :2] + boxes[:, 2:], axis=0)
        window = tf.concat([start, end - start], axis=0)
        image = native_pixels(encoded, self.channels, ratio, window, self.value_range)
        return self._cut(image, boxes - tf.pad(start, [[0, 2]]))

    def _cut(self, image: Any, boxes: Any) -> Any:
        """Crop int32 ``boxes`` (views, 4) from an image, and return the views as a uint8 tensor of
        the shape ``self.shape``."""
        return crop_and_resize(image, boxes, self.size, self.interpolation)

    def _boxes(self, size: Any, position: Any) -> Any:
        """Return the crop boxes at a stream position: top, left, height and width, as an int32
        tensor (views, 4)."""
        tf = tensorflow()
        sides = tf.unstack(size, num=2)
        boxes = random_boxes(
            self.seed, position, sides, self.views, self.area, self.aspect, self.fit
        )
        return tf.cast(boxes, tf.int32)


def _sides(image: Any) -> Any:
    """Return the (height, width) of an image tensor, as an int32 tensor (2,)."""
    return tensorflow().shape(image)[:2]


def _reduced(boxes: Any, size: Any, ratio: Any) -> Any:
    """Scale crop boxes to an image that was downscaled by ``ratio``, and round them to whole pixels
    inside that image."""
    tf = tensorflow()
    scaled = tf.cast(tf.round(boxes / ratio), tf.int32)
    sides = (size + ratio - 1) // ratio
    start = tf.minimum(scaled[:, :2], sides - 1)
    return tf.concat([start, tf.clip_by_value(scaled[:, 2:], 1, sides - start)], axis=1)
