"""`python -m can_jax.recipes [NAME]`

Lists the shipped recipes, evaluation protocols, studies, reference ranges and launchers. With NAME,
prints the path of the file of that name. To change a recipe, copy its file, and edit the copy. To
run a launcher, use
`bash "$(python -m can_jax.recipes launch/local)" --config=NAME --workdir=DIR`.
"""

from can_jax.cli.command import Command
from can_jax.config.shipped import KINDS, find, find_shipped, names_of, summary

COMMAND = Command(__doc__, "[NAME]")


@COMMAND.runs
def main(name: str | None = None) -> None:
    """Print the list of shipped files, or the path of one of them."""
    if name is not None:
        kinds = [k for k in KINDS if find_shipped(name, k)]
        print(find(name, kinds[0] if kinds else "recipe", name).absolute())
        return
    for kind, facts in KINDS.items():
        program = facts.command if facts.command == "bash" else f"python -m {facts.command}"
        print(f"{facts.title}, for {program}:")
        width = max(map(len, names_of(kind)))
        for shipped in names_of(kind):
            path = find_shipped(shipped, kind)
            print(f"    {shipped:{width}}  {summary(path) if path else ''}")
