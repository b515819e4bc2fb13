"""Import of the Python files that a user names: recipes, and modules that register objectives, data
sources and other extensions."""

import hashlib
import importlib
import importlib.machinery
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from can_jax.utils.errors import UserError, one_line
from can_jax.utils.files import expand_home

MODULES = "modules"  # The name of the flag.
OPTION = re.compile(rf"--?{MODULES}(=(.*))?$")


def import_modules(argv: Sequence[str]) -> None:
    """Import the modules that ``--modules`` names on a command line, before other options are read.

    Keys of a recipe can be set only after the modules that define them are imported.

    Args:
        argv: The arguments without the program name.

    Raises:
        UserError: A module does not exist, is not a Python file, or raises an exception. The
            message names the file and, if known, the line of the exception.
    """
    for position, argument in enumerate(argv):
        if argument == "--":
            return
        if match := OPTION.match(argument):
            value = match[2] if match[1] else "".join(argv[position + 1 : position + 2])
            for name in filter(None, value.split(",")):
                _import_module(name)


def import_file(path: str) -> ModuleType:
    """Execute a Python file as a new module, and return the module.

    Args:
        path: The path of the Python file.
    """
    digest = hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:8]
    loader = importlib.machinery.SourceFileLoader(f"{Path(path).stem}_{digest}", path)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # Dataclasses look up their module.
    loader.exec_module(module)
    return module


def place_of(error: BaseException, path: str) -> str:
    """Return the file and line at which the import of a user's file failed, as text, or ``path`` if
    the line is unknown."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    # The result is the innermost frame in the file or its base recipe, not one in a library.
    frames = traceback.extract_tb(error.__traceback__)
    start = next((i for i, frame in enumerate(frames) if frame.filename == path), len(frames))
    own = [f for f in frames[start:] if f.filename == path or f.name == "get_config"]
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else path


def reason_for(error: BaseException) -> str:
    """Return the message of an exception, without Python's type names where possible."""
    if isinstance(error, SyntaxError):
        return error.msg
    if isinstance(error, SystemExit):
        return f"the file ends the program with exit code {error.code}"
    text = str(error.args[0]) if error.args else ""
    if match := re.search(r'Key "(\w+)" does not exist', text) or re.match(r"'(\w+)'\s+Did", text):
        near = re.search(r'Did you mean "(\w+)" instead', text)  # ConfigDict's message ends so.
        return f"unknown key {match[1]}" + (f"; did you mean {near[1]}?" if near else "")
    if isinstance(error, KeyError) or not text:
        return one_line(error)
    return re.sub(r"<class '([\w.]+)'>", r"\1", " ".join(str(error).split()))


def _import_module(name: str) -> None:
    option = f"--{MODULES}={name}"
    try:
        path = expand_home(name)
    except UserError as error:
        raise UserError(f"--{MODULES}={error}") from None
    is_file = path.endswith(".py") or os.sep in path
    if is_file and not Path(path).is_file():
        raise UserError(f"{option}: there is no such file")
    if is_file and not path.endswith(".py"):
        raise UserError(f"{option}: a module must be a Python file, whose name ends in .py")
    try:
        if is_file:
            import_file(path)
        else:
            importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path.partition(".")[0]:
            raise UserError(f"{option}: {place_of(error, path)}: {reason_for(error)}") from error
        raise UserError(
            f"{option}: there is no such module; give a .py file, or install the module"
        ) from None
    except (Exception, SystemExit) as error:
        raise UserError(f"{option}: {place_of(error, path)}: {reason_for(error)}") from error
