"""Install the recipes and launchers inside the package, which keeps them at the repository's top.

`pyproject.toml` can either find packages or map folders to them. A package of its own named
`configs` would be in the way of others.

An editable installation has the recipes beside the package, and leaves the mapping out: without one
setuptools adds the repository to Python's path. Its other way, a finder that comes after the path,
loses to a folder named `can_jax` there, such as the checkout in the folder that holds it.
"""

import sys

from setuptools import find_packages, setup

FOLDERS = ("configs", "configs/eval", "configs/healthy", "configs/study", "launch")
SHIPPED = {f"can_jax.{folder.replace('/', '.')}": folder for folder in FOLDERS}
if "editable_wheel" in sys.argv:
    SHIPPED = {}

setup(
    packages=[*find_packages(include=["can_jax*"]), *SHIPPED],
    package_dir={"": "."} | SHIPPED,
    package_data={
        "": ["*.json", "*.npz", "*.sh", "*.yaml", "py.typed", "shipped/*/*", "templates/*"]
    },
)
