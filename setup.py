"""Install the recipes and launchers inside the package, which keeps them at the repository's top.

`pyproject.toml` can either find packages or map folders to them. A package of its own named
`configs` would be in the way of others.
"""

from setuptools import find_packages, setup

FOLDERS = ("configs", "configs/eval", "configs/healthy", "configs/study", "launch")
SHIPPED = {f"can_jax.{folder.replace('/', '.')}": folder for folder in FOLDERS}

setup(
    packages=[*find_packages(include=["can_jax*"]), *SHIPPED],
    package_dir=SHIPPED,
    package_data={"": ["*.json", "*.sh", "*.yaml", "py.typed"]},
)
