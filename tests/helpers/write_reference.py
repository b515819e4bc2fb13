"""Write the reference file that ships in the package, for the self-check without `--reference`.

    python -m tests.helpers.write_reference can_jax/selfcheck/reference.npz

The values come from the NumPy oracle alone.
"""

import sys
from pathlib import Path

from tests.helpers.oracle import write_reference

if __name__ == "__main__":
    write_reference(Path(sys.argv[1]))
