import os
import signal
import subprocess
import sys

STUCK = """
import time
from can_jax.distributed.preemption import handler
from can_jax.monitoring.watchdog import Watchdog

handler.installed = {command}

def waits_for_ever():
    time.sleep(60)

dog = Watchdog(0.5)
for step in range(1, 8):
    time.sleep(0.15)
    dog.beat(step)
{then}
"""


def run(then, command=True):
    program = STUCK.format(then=then, command=command)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30
    )


def test_run_that_stopped_moving_is_ended_with_the_place_of_every_thread():
    done = run("waits_for_ever()")
    assert done.returncode == 70
    assert "waits_for_ever" in done.stderr  # where it was
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: no progress for 0 s after step 7")


def test_stuck_run_inside_another_program_is_reported_once_and_does_not_end_it():
    """The program's own timer of `faulthandler`, of which a process has one, stays as well."""
    done = run(
        "import faulthandler, sys; faulthandler.dump_traceback_later(2, file=sys.__stdout__)\n"
        "time.sleep(4); dog.close(); time.sleep(0.2)",
        command=False,
    )
    assert done.returncode == 0 and done.stdout.startswith("Timeout")
    assert done.stderr.count("error: no progress for 0 s after step 7") == 1
    assert 'File "<string>", line' in done.stderr  # where it was


def test_full_pipe_or_hung_disk_does_not_keep_a_stuck_run_alive(tmp_path):
    """Nobody reads what it prints, nor the file of the stacks."""
    program = """
import os, sys, time
from can_jax.distributed import abort

abort.WRITE_SECONDS = 0.5
time.strftime = lambda *_: "pipe"  # the stacks go to a pipe, and this one has no reader either
abort.keep_stacks_in(sys.argv[1], "")
os.set_blocking(2, False)
try:
    while True:
        os.write(2, bytes(65536))
except BlockingIOError:
    os.set_blocking(2, True)
abort.abort("stuck")
"""
    os.mkfifo(tmp_path / "pipe")
    reader, writer = os.pipe()
    arguments = [sys.executable, "-c", program, str(tmp_path)]
    process = subprocess.Popen(arguments, stderr=writer)
    assert process.wait(20) == 70
    os.close(reader)
    os.close(writer)


def test_run_that_moves_or_has_ended_is_left_alone():
    assert run("dog.close(); time.sleep(1.5)").returncode == 0
    assert run("").returncode == 0


def test_run_that_was_suspended_is_left_alone():
    program = """
import os, signal, subprocess, sys, time
from can_jax.distributed.preemption import handler
from can_jax.monitoring.watchdog import Watchdog

handler.installed = True
dog = Watchdog(1.0)
wake = f"import os, signal, time; time.sleep(2); os.kill({os.getpid()}, signal.SIGCONT)"
subprocess.Popen([sys.executable, "-c", wake])
os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(0.3)
dog.beat(1)
time.sleep(0.3)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=30).returncode == 0


HELD = """
import ctypes, time
from can_jax.distributed.preemption import handler
from can_jax.monitoring import watchdog

handler.installed = True
watchdog.MARGIN_SECONDS = 1.0
dog = watchdog.Watchdog(1.0)

def holds_the_interpreter():
    ctypes.PyDLL(None).sleep({seconds})

{first}
holds_the_interpreter()
dog.beat(1)
print("moves")
dog.close()
"""


def hold(seconds, first="pass", stderr=subprocess.PIPE):
    """Call C without releasing the interpreter."""
    program = [sys.executable, "-c", HELD.format(seconds=seconds, first=first)]
    return subprocess.run(program, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=60)


def test_stacks_are_printed_while_c_code_holds_the_interpreter():
    done = hold(4)
    assert done.returncode == 0 and done.stdout == "moves\n"
    assert done.stderr.startswith("Timeout") and "in holds_the_interpreter" in done.stderr
    assert "no progress" not in done.stderr  # time in which Python did not run does not count


def test_process_of_a_job_whose_interpreter_is_held_is_killed_after_its_stacks():
    program = """
import ctypes, time
from can_jax.distributed import abort

abort.DEAD_SECONDS, abort.WRITE_SECONDS = 1.0, 0.5
abort.abort_on_sigabrt("lost")

def holds_the_interpreter():
    ctypes.PyDLL(None).sleep(30)

time.sleep(2)  # Python runs, so nothing happens
print("alive", flush=True)
holds_the_interpreter()
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=25)
    assert done.returncode == -signal.SIGALRM and done.stdout == "alive\n"
    assert "in holds_the_interpreter" in done.stderr


def test_timer_in_c_ends_with_the_watchdog():
    assert hold(3, "dog.close(); time.sleep(0.5)").stderr == ""


def test_stacks_that_nobody_reads_do_not_stop_the_run():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    while True:
        try:
            os.write(writer, bytes(4096))
        except BlockingIOError:
            break
    os.set_blocking(writer, True)
    assert hold(4, stderr=writer).stdout == "moves\n"
    os.close(reader)
    os.close(writer)
