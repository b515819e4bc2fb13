"""The class `Encoder`, which `can_jax.load` returns, and functions that open an encoder."""

import os
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8
from ml_collections import ConfigDict

from can_jax.checkpoint.run_directory import step_path
from can_jax.config.pretrained import FEATURES, encoder_table, resolve_blocks
from can_jax.config.resolve import as_size
from can_jax.distributed.mesh import batch_sharding, make_mesh, whole_batch
from can_jax.encoders.images import checked, preprocess
from can_jax.encoders.pretrained import PretrainedEncoder, open_encoder
from can_jax.models.backbones import encoder_size, encoder_width
from can_jax.models.can import grid_of
from can_jax.utils.errors import UserError
from can_jax.utils.files import checked_path
from can_jax.utils.settings import Whole, configuration
from can_jax.weights.read_weights import channel_values

COUNT, STEP = Whole(1, 2**24), Whole(0, 2**31 - 1)
TOKENS = ("patch_tokens", "tokens")  # The kinds of features that are not pooled.


class Encoder:
    """A pretrained encoder that computes features of images.

    Attributes:
        image_size: The (height, width) of the input images in pixels.
        patch_size: The side length of a patch in pixels.
        grid: The number of patches along (height, width).
        channels: The number of channels of the input images.
        width: The number of features per token.
        depth, heads: The numbers of transformer blocks and of attention heads in each block; None
            if the backbone is not a ViT.
        mean, std: The mean and standard deviation per channel by which images in [0, 1] are
            normalized.
        step: The training step at which the weights were saved; None if unknown.
        batch_size: The maximum number of images in a forward pass.
    """

    def __init__(self, subject: PretrainedEncoder, mesh: Mesh, batch_size: int):
        """Wrap a `PretrainedEncoder`, whose functions are compiled on first use.

        Args:
            subject: The pretrained encoder to wrap, with its configuration and parameters.
            mesh: The device mesh on which the parameters are placed and over which batches are
                split.
            batch_size: The maximum number of images in a forward pass. ``batch_size`` is rounded up
                to a multiple of the number of batch shards.
        """
        config = subject.config
        vit = config.model.backbone == "vit"
        size = encoder_size(config.model)
        self.image_size: tuple[int, int] = config.data.image_size
        self.patch_size: int = config.model.patch_size
        self.grid: tuple[int, int] = grid_of(config)
        self.channels: int = config.data.channels
        self.width: int = encoder_width(config)
        self.depth: int | None = size.depth if vit else None
        self.heads: int | None = size.heads if vit else None
        self.mean: tuple[float, ...] = config.augment.mean
        self.std: tuple[float, ...] = config.augment.std
        self.step: int | None = subject.identity["step"]
        self.batch_size: int = whole_batch(batch_size, mesh)
        self._subject, self._mesh = subject, mesh
        self._pooled = jax.jit(subject.features)
        self._tokens = jax.jit(lambda p, images: subject.tokens(p, images).astype(jnp.float32))

    def __repr__(self) -> str:
        height, width = self.image_size
        kind = f"{self._subject.config.model.backbone} of width {self.width}"
        if self.depth is not None:
            kind = f"ViT of width {self.width}, {self.depth} blocks, {self.heads} heads"
        step = "" if self.step is None else f", step {self.step}"
        return (
            f"Encoder({self.path!r}{step}: {kind}, patches of "
            f"{self.patch_size}; uint8 images (n, {height}, {width}, {self.channels}))"
        )

    @property
    def path(self) -> str:
        """The path from which the weights were read."""
        path: str = self._subject.identity["path"]
        return path

    @property
    def sha256(self) -> str:
        """The SHA-256 checksum of the parameters, as a hexadecimal string."""
        digest: str = self._subject.identity["sha256"]
        return digest

    @property
    def model(self) -> dict[str, Any]:
        """The size, the options and the patch size of the encoder, and the dtype of its
        activations."""
        subject = self._subject
        return subject.identity["model"] | {"dtype": subject.config.model.dtype}

    @property
    def data(self) -> ConfigDict:
        """A copy of the config block `data`, which sets how images are decoded and cropped."""
        return self._subject.config.data.copy_and_resolve_references()

    def preprocess(self, image: Any) -> UInt8[np.ndarray, "height width channels"]:
        """Decode, resize and center-crop one image, as evaluations do.

        A list of crops from several calls can be passed to `Encoder.__call__` as a batch. Image
        files are decoded by Pillow, without TensorFlow.

        Args:
            image: The path of an image file, its content as bytes, a `PIL.Image.Image`, or a uint8
                array (height, width) or (height, width, channels).

        Raises:
            UserError: The image cannot be read or decoded, or its type or shape is not supported.
        """
        return preprocess(image, self._subject.config.data)

    def __call__(self, images: Any, features: str = "patches") -> np.ndarray:
        """Compute features of any number of images, in batches of up to `batch_size`.

        Args:
            images: A uint8 array (n, height, width, channels) of values from 0 to 255, or an object
                that NumPy converts to one, such as a list of results of `preprocess`.
            features: The kind of features to return, by default ``patches``. ``patches`` returns
                the mean of the patch tokens, and ``all`` the mean of all tokens. ``class`` returns
                the class token. ``both`` returns the class token and the mean patch token,
                concatenated. ``patch_tokens`` returns all patch tokens in row-major order, without
                pooling. ``tokens`` returns the class token followed by the patch tokens.

        Returns:
            A float32 array of shape (n, width), or (n, 2 * width) for ``both``. For
            ``patch_tokens`` the shape is (n, patches, width), and for ``tokens`` it is (n, 1 +
            patches, width).

        Raises:
            UserError: The images are not uint8, their shape does not match the encoder, or
                ``features`` is an unknown kind.
        """
        if features not in (*FEATURES, *TOKENS):
            kinds = ", ".join((*FEATURES, *TOKENS))
            raise UserError(f"features={features!r}: choose one of {kinds}")
        array = checked(images, (*self.image_size, self.channels))
        compute = self._tokens if features in TOKENS else self._pooled
        parts = [
            self._batch(compute, array[start : start + self.batch_size])
            for start in range(0, len(array), self.batch_size)
        ]
        outputs = np.concatenate(parts)
        if features in TOKENS:
            return outputs[:, 1:] if features == "patch_tokens" else outputs
        return self._subject.select(outputs, features)

    def _batch(self, compute: Callable[..., Any], images: np.ndarray) -> np.ndarray:
        """Return the outputs of ``compute`` for at most `batch_size` images.

        The batch is padded to the next power of two, at most `batch_size`, and then to a multiple
        of the number of batch shards. The padding limits the number of batch sizes for which
        ``compute`` is compiled.
        """
        power = min(1 << (len(images) - 1).bit_length(), self.batch_size)
        rows = whole_batch(power, self._mesh)
        padding = [(0, rows - len(images)), (0, 0), (0, 0), (0, 0)]
        with jax.set_mesh(self._mesh):
            placed = jax.device_put(np.pad(images, padding), batch_sharding(self._mesh))
            return np.asarray(compute(self._subject.parameters, placed))[: len(images)]


def _plain(value: Any) -> Any:
    """Convert NumPy or JAX scalars to Python numbers, and arrays and lists to tuples."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def evaluated_encoder(checkpoint: str, config: ConfigDict) -> Encoder:
    """Open an encoder on the devices that the configuration of an evaluation selects.

    Args:
        checkpoint: The path of the weights, as in `open_encoder`.
        config: The resolved configuration of the evaluation.

    Raises:
        UserError: The weights cannot be read, or do not match the configuration.
    """
    mesh = make_mesh(config.mesh)
    return Encoder(open_encoder(checkpoint, False, config, mesh), mesh, config.batch_size)


def load_encoder(
    path: "str | os.PathLike[str]",
    image_size: Any = None,
    *,
    heads: Any = None,
    gelu: Any = None,
    mean: Any = None,
    std: Any = None,
    step: Any = None,
    batch_size: Any = 256,
) -> Encoder:
    """Implement `can_jax.load`: check all arguments, and open the pretrained encoder.

    Raises:
        UserError: An argument is invalid, or the weights cannot be read.
    """
    location = checked_path(path)
    image_size, heads, mean, std = map(_plain, (image_size, heads, mean, std))
    step, batch_size = map(_plain, (step, batch_size))
    for name, value, kind in (("batch_size", batch_size, COUNT), ("step", step, STEP)):
        unset = name == "step" and value is None
        if not unset and not kind.accepts(value):
            raise UserError(f"{location}: {name}={value!r}: give {kind.describe()}")
    location = step_path(location, step)
    if image_size is not None:
        try:
            as_size(image_size)
        except UserError:
            raise UserError(
                f"{location}: image_size={image_size!r}: give an int, or (height, width), in pixels"
            ) from None
    for name, value in (("mean", mean), ("std", std)):
        if value is not None:
            try:
                channel_values(name, value, len(value) if isinstance(value, tuple) else 1)
            except UserError as error:
                raise UserError(f"{location}: {error}") from None
    table = encoder_table()
    changes = configuration(table)
    with changes.ignore_type():
        changes.data.image_size = image_size
        changes.model.update(dtype="float32", heads=heads, gelu=gelu, mean=mean, std=std)
    mesh = make_mesh(changes.mesh, jax.local_devices())
    try:
        changes = resolve_blocks(changes, table, "can_jax.load()")
    except UserError as error:
        reason = str(error).removeprefix("config.model.")
        raise UserError(f"{location}: {reason}") from None
    assumed: list[str] = []
    subject = open_encoder(location, False, changes, mesh, assumed.append)
    for line in assumed:
        warnings.warn(line, stacklevel=3)  # attributes the warning to the caller of `can_jax.load`
    return Encoder(subject, mesh, batch_size)
