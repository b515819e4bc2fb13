"""The arrays of files of weights, in which nothing is executed."""

from typing import Any

import numpy as np
from etils import epath

from can_jax.errors import UserError, one_line
from can_jax.weights.layouts import to_mae
from can_jax.weights.torch_file import read_torch


def _npz(place: epath.Path) -> dict[str, Any]:
    with place.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name.removeprefix("param/"): arrays[name] for name in arrays.files}


def _safetensors(place: epath.Path) -> dict[str, Any]:
    from safetensors.numpy import load

    return load(place.read_bytes())


READERS = {
    ".npz": _npz,
    ".safetensors": _safetensors,
    **dict.fromkeys((".pth", ".pt", ".bin"), lambda place: read_torch(place.read_bytes())),
}


def read_arrays(place: epath.Path) -> dict[str, np.ndarray]:
    """The arrays of a file, under MAE's names if they are a ViT in a layout that is known.

    Raises:
        UserError: it is of another kind, cannot be read, or holds what is no finite number.
    """
    if place.suffix not in READERS:
        kinds = ", ".join(READERS)
        raise UserError(f"{place}: a file of weights is one of {kinds}")
    try:
        arrays = READERS[place.suffix](place)
    except Exception as error:  # of any kind, from a file that may be anything
        raise UserError(f"{place} cannot be read: {one_line(error)}") from error
    for name, array in arrays.items():
        # Types that NumPy does not know of, such as bfloat16, have no kind of their own.
        if array.dtype.kind in "fV" and not np.isfinite(array.astype(np.float32)).all():
            raise UserError(f"{place}: {name} holds NaN or infinity")
    try:
        return to_mae(arrays)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
