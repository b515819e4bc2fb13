"""Commands as functions and as processes, and the package as a guest of another program."""

import importlib
import os
import subprocess
import sys

import pytest

import can_jax
from can_jax.cli.start import COMMANDS, Entry, console
from tests.helpers.runs import ROOT

GUEST = """
import faulthandler, gc, importlib, logging, os, signal, sys, threading, warnings

def state():
    return (
        gc.get_threshold(), sys.unraisablehook, sys.excepthook, threading.active_count(),
        signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), os.getpid(),
        os.environ.get("GLIBC_TUNABLES"), logging.root.level, logging.root.filters,
        list(logging.root.handlers), faulthandler.is_enabled(),
        logging.getLogger("absl").filters, logging.getLogger("absl").level,
        logging.getLogger("asyncio").level,
        [entry for entry in warnings.filters if "PIL" in str(entry[3])],
    )

before = state()
for package in ("can_jax", "can_jax.main", "can_jax.encoders.encoder", "can_jax.train.pretrain"):
    importlib.import_module(package)
    after = state()
    print(package, [pair for pair in zip(before, after) if pair[0] != pair[1]])

import can_jax
try:
    can_jax.load("/no/such/run")
except can_jax.utils.errors.UserError:
    can_jax.main.main(["--no_such_option"])
print("calls", [pair for pair in zip(before, state()) if pair[0] != pair[1]])
"""


def test_every_command_is_a_function_that_returns_its_exit_code(capsys):
    for name, info in COMMANDS.items():
        main = Entry(name)
        assert main(["--help"]) == 0, name
        assert f"python -m {info.module}" in capsys.readouterr().out
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"can_jax {can_jax.__version__}\n"
        assert main(["--no_such_option=1"]) == 1
        assert "unknown option --no_such_option" in capsys.readouterr().err


def test_every_module_holds_its_command():
    for name, info in COMMANDS.items():
        spec = importlib.util.find_spec(info.module)
        module = f"{info.module}.__main__" if spec.submodule_search_locations else info.module
        assert importlib.import_module(module).main.name == name


def test_second_call_has_none_of_the_flags_of_the_first(capsys):
    main = Entry("train")
    assert main(["--config=quickstart", "--config.batch_size=3"]) == 1
    assert "--workdir=DIR is missing" in capsys.readouterr().err
    assert main([]) == 1
    assert "--config=NAME is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "shown"),
    [("--debug", 1), ("--debug=true", 1), ("--debug=True", 1), ("-debug=1", 1), ("--debug=0", 0)],
)
def test_trace_is_shown_when_it_is_asked_for(flag, shown, capsys):
    assert Entry("replay")(["/no/such/capture", flag]) == 1
    err = capsys.readouterr().err
    assert err.count("Traceback") == shown and err.count("error: /no/such/capture is no") == 1


def run_python(*arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_console():
    def run(*arguments):
        return run_python("-m", "can_jax", *arguments)

    assert run("--version").stdout == f"can_jax {can_jax.__version__}\n"
    listed = run().stdout
    assert all(f"  {name} " in listed for name in COMMANDS)
    wrong = run("evalute")
    assert wrong.returncode == 1 and wrong.stdout == ""
    assert wrong.stderr == (
        "error: unknown command 'evalute': did you mean evaluate? see can-jax --help\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--verson"], "--verson is not a command: did you mean --version? see can-jax --help"),
        (["--config=vit_s"], "--config=vit_s is not a command: the command comes first, as in"),
        (["--workdir=\x1b[31m"], "--workdir=\\x1b[31m is not a command"),
    ],
)
def test_option_in_the_place_of_a_command(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["can-jax", *arguments])
    with pytest.raises(SystemExit) as stop:
        console()
    assert stop.value.code == 1 and capsys.readouterr().err.startswith(f"error: {message}")


def test_help_of_a_command(monkeypatch):
    started = []
    monkeypatch.setattr(Entry, "run", lambda entry: started.append(entry.name) or sys.exit(0))
    monkeypatch.setattr(sys, "argv", ["can-jax", "help", "plan-table"])
    with pytest.raises(SystemExit):
        console()
    assert started == ["plan-table"] and sys.argv == ["can-jax plan-table", "--help"]


def test_installed_program_runs_commands():
    program = "import can_jax.cli.start as s; s.console()"  # as pip writes it
    assert "vit_l" in run_python("-c", program, "recipes").stdout


def test_package_leaves_its_host_alone(tmp_path):
    """As a module of somebody's package that is run by `python -m`."""
    (tmp_path / "guest").mkdir()
    (tmp_path / "guest" / "__main__.py").write_text("")
    (tmp_path / "guest" / "__init__.py").write_text(GUEST)
    done = subprocess.run(
        [sys.executable, "-m", "guest"], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 5 and all(line.endswith(" []") for line in lines), (
        done.stdout + done.stderr
    )


def test_public_names_are_no_modules():
    for name in can_jax.__all__:
        assert callable(getattr(can_jax, name)) and getattr(can_jax, name).__doc__
        assert importlib.util.find_spec(f"can_jax.{name}") is None
