"""The paths of the reconstruction figures in a run directory."""

from etils import epath

FIGURE = "panel"  # the name of the figures in trackers


def figure_path(workdir: epath.Path, step: int) -> epath.Path:
    """Return the path of the figure that a run writes at a step."""
    return workdir / "figures" / f"step_{step:08d}.png"


def figures_by_step(workdir: epath.Path) -> dict[int, epath.Path]:
    """Return a dict from step to figure path, in ascending order of steps."""
    folder = workdir / "figures"
    paths = sorted(folder.glob("step_*.png")) if folder.is_dir() else []
    steps = {path: path.stem.removeprefix("step_") for path in paths}
    return {int(step): path for path, step in steps.items() if step.isdigit()}
