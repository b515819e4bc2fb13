"""Kills a run again and again, and shows that it ends as if nothing had happened.

    python -m tests.torture.kill --kills=30 --steps=240 -- --config.data.source=arrays \
        --config.data.path=/data/cifar10 --config.data.image_size=32

Runs a tiny recipe once in peace, and once more while it is killed (SIGKILL) at random moments: when
starting, training, probing, saving. Both must end with the same metrics and the same state, to
the last bit. What stands after `--` goes to both runs.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.runs import RECIPE, ROOT, assert_same_run, command


def options(steps: int) -> list[str]:
    """Saves at nearly every moment, and probes and figures now and then."""
    return [
        f"total_steps={steps}", "checkpoint.every_steps=2", "checkpoint.keep_last=2",
        f"probe.every_steps={max(steps // 4, 1)}", f"figures.every_steps={max(steps // 4, 1)}",
    ]  # fmt: skip


def in_peace(recipe: Path, workdir: Path, overrides: list[str], extra: list[str]) -> None:
    """A run that nobody disturbs."""
    arguments = [*command(recipe, workdir, *overrides), *extra]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the undisturbed run failed: {done.stderr}")


def one_life(
    recipe: Path, workdir: Path, overrides: list[str], extra: list[str], rng: random.Random
) -> int | None:
    """One start of the run, killed at a random moment; its exit code if it ended before that.

    Most lives end within two seconds after training began, some while it is still starting; a few
    are long enough for a probe, after which comes a save.
    """
    process = subprocess.Popen(
        [*command(recipe, workdir, *overrides), *extra], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    training = threading.Event()

    def listen() -> None:
        for line in process.stdout:
            if line.startswith("compiled the train step"):
                training.set()

    threading.Thread(target=listen, daemon=True).start()
    if rng.random() < 0.15:
        time.sleep(rng.uniform(0, 6))
    else:
        while not training.wait(0.05) and process.poll() is None:
            pass
        time.sleep(rng.uniform(0, 2 if rng.random() < 0.7 else 10))
    code = process.poll()
    process.send_signal(signal.SIGKILL)
    process.wait()
    return code


def torture(
    recipe: Path, folder: Path, kills: int, steps: int, extra: list[str], seed: int = 0
) -> int:
    """Run in peace and under fire, and compare.

    Returns:
        How often it was killed; fewer than wanted if the run had reached its end.
    """
    overrides = options(steps)
    in_peace(recipe, folder / "peace", overrides, extra)
    rng, killed = random.Random(seed), 0
    while killed < kills:
        code = one_life(recipe, folder / "fire", overrides, extra, rng)
        if code == 0:
            break
        if code is not None:
            sys.exit(f"the run failed by itself with exit code {code}, after {killed} kills")
        killed += 1
        saved = sorted(
            int(path.name)
            for path in (folder / "fire" / "checkpoints").glob("*")
            if path.name.isdigit()
        )
        print(f"killed {killed} times; saved up to step {saved[-1] if saved else 0}", flush=True)
    in_peace(recipe, folder / "fire", overrides, extra)
    assert_same_run(folder / "peace", folder / "fire", steps)
    return killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("extra", nargs="*", help="options of the run, after --")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "tiny.py"
        recipe.write_text(RECIPE)
        killed = torture(recipe, Path(folder), given.kills, given.steps, given.extra, given.seed)
    print(f"killed {killed} times, and the same to the last bit")


if __name__ == "__main__":
    main()
