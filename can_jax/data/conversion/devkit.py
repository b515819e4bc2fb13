"""The labels of ImageNet-1k's validation images, from the development kit of ILSVRC 2012."""

import io
import os
import tarfile
from pathlib import Path

from can_jax.utils.errors import UserError, one_line

# The files to read from the development kit, and the maximum size of each in bytes: several times
# the official size. The limits bound the memory used, as meta.mat can expand a thousandfold.
DEVKIT_FILES = {"meta.mat": 2**17, "ILSVRC2012_validation_ground_truth.txt": 2**20}


def labels_of_devkit(path: Path) -> list[str]:
    """Return the class name of each validation image, in the order of the image names.

    Args:
        path: The path of the development kit, a tar.

    Raises:
        UserError: The file at ``path`` is not the development kit of ImageNet-1k.
    """
    from scipy.io import loadmat

    try:
        with tarfile.open(path) as tar:
            contents = {}
            for member in tar:
                name = os.path.basename(member.name)
                if name in DEVKIT_FILES:
                    if member.size > DEVKIT_FILES[name]:
                        limit = DEVKIT_FILES[name]
                        raise ValueError(f"{name} has {member.size} bytes, more than {limit}")
                    file = tar.extractfile(member)
                    contents[name] = file.read() if file else b""
        synsets = loadmat(io.BytesIO(contents["meta.mat"]), squeeze_me=True)["synsets"]
        ids = map(int, contents["ILSVRC2012_validation_ground_truth.txt"].split())
        names = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        return [names[class_id] for class_id in ids]
    except Exception as error:  # SciPy raises many types of exception
        reason = one_line(error)
        raise UserError(f"{path} is not the development kit of ImageNet-1k: {reason}") from error
