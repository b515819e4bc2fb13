"""`python -m can_jax.selfcheck [--reference=FILE.npz] [--weights=FILE] [--x64] [--json]`

Verifies this installation with a file of reference vectors, which holds weights, inputs and
expected values. The command computes outputs, losses and gradients from the weights and inputs, and
compares these results with the expected values. By default, the command uses a small file in the
package, whose values an independent NumPy implementation computed. `--weights` loads the weights
from another file, in any supported layout, to verify that this file is read correctly.
"""

import json

from rich.table import Table

from can_jax.cli.command import Command
from can_jax.monitoring.console import plain_console
from can_jax.selfcheck.compare import SHIPPED, check
from can_jax.utils.errors import UserError
from can_jax.utils.jax_config import jax_config
from can_jax.utils.progress import apart, phase

COMMAND = Command(__doc__)
FLAGS = COMMAND.flags
_REFERENCE = FLAGS.path(
    "reference", "The npz file of reference vectors; by default the one in the package."
)
_WEIGHTS = FLAGS.path("weights", "A file of weights to use instead of those in the reference file.")
_X64 = FLAGS.switch("x64", False, "Compute in double precision.")
_JSON = FLAGS.switch("json", False, "Print JSON instead of a table.")


@COMMAND.runs
def main() -> None:
    """Run the self-check and print the error of each quantity; fail if an error exceeds its
    tolerance."""
    comparing = phase("comparing this installation with reference vectors")
    with apart(_JSON.value), comparing, jax_config(jax_enable_x64=_X64.value):
        report = check(_REFERENCE.value or str(SHIPPED), _X64.value, _WEIGHTS.value)
    if _JSON.value:
        print(json.dumps(report, indent=2))
    else:
        table = Table("quantity", "largest relative error", "tolerance", "", title="Self-check")
        for quantity, error in report["max_relative_error"].items():
            limit = report["tolerance"][quantity]
            verdict = "ok" if error <= limit else "TOO LARGE"
            table.add_row(quantity, f"{error:.2e}", f"{limit:.0e}", verdict)
        plain_console().print(table)
        if _WEIGHTS.value is not None:
            weights = report["weights"]
            print(
                f"{weights['taken']} of {weights['of']} arrays of weights are from {_WEIGHTS.value}"
            )
            if weights["left_over"]:
                print(f"not used from this file: {', '.join(weights['left_over'])}")
    if not report["passed"]:
        worst = report["max_relative_error"]
        off = [name for name, error in worst.items() if error > report["tolerance"][name]]
        raise UserError(
            f"the errors of {len(off)} of {len(worst)} quantities exceed their tolerances: "
            f"{', '.join(off)}"
        )
