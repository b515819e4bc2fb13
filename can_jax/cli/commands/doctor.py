"""`python -m can_jax.doctor [--json]`

Prints the properties of this machine that affect a run: devices, drivers, package versions,
resource limits and file systems. The command also prints the measured speed of a matrix product, of
a copy to the device and of decoding an image. Then the command runs the self-check,
which compares results of this installation with reference vectors. Finally, the command prints a
remedy for each problem that it found. The exit code is 1 if the self-check fails.
"""

import json

from can_jax.cli.command import Command
from can_jax.monitoring.console import fact_table, plain_console
from can_jax.selfcheck import machine
from can_jax.selfcheck.compare import SHIPPED, check
from can_jax.utils.errors import UserError
from can_jax.utils.progress import apart, phase

COMMAND = Command(__doc__)
_JSON = COMMAND.flags.switch("json", False, "Print JSON instead of tables.")
GROUPS = {
    "Devices and versions": machine.devices,
    "Limits": machine.limits,
    "File systems": machine.file_systems,
    "Speed": machine.speeds,
}


@COMMAND.runs
def main() -> None:
    """Print the machine's properties, the result of the self-check, and remedies for problems."""
    console = plain_console(width=120, soft_wrap=True, highlight=False)
    findings = []
    for title, find in GROUPS.items():
        with apart(_JSON.value), phase(f"checking: {title.lower()}"):
            group = find()
        findings += group
        if not _JSON.value:
            console.print(fact_table(title, {finding.name: finding.value for finding in group}))
    with apart(_JSON.value), phase("comparing this installation with reference vectors"):
        report = check(str(SHIPPED), x64=False)
    mend = {finding.name: finding.mend for finding in findings if finding.mend}
    if _JSON.value:
        values = {finding.name: finding.value for finding in findings}
        print(json.dumps({"found": values, "mend": mend, "selfcheck": report}, indent=2))
    else:
        worst = max(report["max_relative_error"].values())
        count = len(report["max_relative_error"])
        verdict = "agree" if report["passed"] else "DO NOT AGREE"
        console.print(
            f"self-check: {count} quantities {verdict} with the reference vectors; the largest "
            f"relative error is {worst:.1e}"
        )
        for name, advice in mend.items():
            console.print(f"problem: {name}: {advice}")
        if not mend and report["passed"]:
            console.print("no problems found")
    if not report["passed"]:
        raise UserError(
            "the self-check failed: run can-jax selfcheck to print the relative error of each "
            "quantity"
        )
