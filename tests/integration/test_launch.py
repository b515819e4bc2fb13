"""The launchers, with stand-ins for the programs that they start."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.helpers.runs import heeding_signals

LAUNCH = Path(__file__).parents[2] / "launch"
RUN = ["--config=configs/vit_l.py", "--config.data.path=gs://b/{split}-*.tar", "--workdir=a b"]
TPU = {"NAME": "can", "ZONE": "us-west4-a", "TYPE": "v5litepod-256", "VERSION": "v2-tpuv5-lite"}
GKE = {
    "NAME": "can", "IMAGE": "me/can", "ACCELERATOR": "tpu-v5-lite-podslice", "TOPOLOGY": "16x16",
    "HOSTS": "64",
}  # fmt: skip


@pytest.fixture
def stand_in(tmp_path):
    """Programs that note how they were called in a file, and then do as they are told."""

    def make(name, body="exit 0"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        program = tmp_path / "bin" / name
        program.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> {tmp_path}/calls\n{body}\n')
        program.chmod(0o755)

    return make


def calls(tmp_path):
    return (tmp_path / "calls").read_text().splitlines()


def start(tmp_path, script, *arguments, **variables):
    own = {"PYTHON": str(tmp_path / "bin/python"), "PORT": "999"}
    environment = os.environ | own | variables
    environment["PATH"] = f"{tmp_path / 'bin'}:{environment['PATH']}"
    return subprocess.Popen(
        heeding_signals([LAUNCH / script, *arguments]), env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def dry_run(script, *arguments, **variables):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHON"} | variables
    done = subprocess.run(
        [LAUNCH / script, *arguments], env=environment | {"DRY_RUN": "1"}, text=True,
        capture_output=True,
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_no_lint(script):
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert os.access(script, os.X_OK)


STARTED = ("python", "srun", "scontrol", "gcloud", "kubectl", "git")


@pytest.mark.parametrize(
    ("script", "variables"),
    [("local.sh", {}), ("processes.sh 2", {}), ("slurm.sh", {}), ("tpu_vm.sh", TPU),
     ("gke.sh", GKE)],
)  # fmt: skip
def test_dry_run_starts_nothing(tmp_path, stand_in, script, variables):
    for program in STARTED:
        stand_in(program)
    archive = tmp_path / "can_jax-can.tgz"
    archive.write_text("of another run")
    own = {"PYTHON": "python3"} if script == "gke.sh" else {}  # which fills in the manifest by it
    process = start(
        tmp_path, *script.split(), *RUN, DRY_RUN="1", TMPDIR=str(tmp_path), **(variables | own)
    )
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "--workdir=a" in printed.replace("\\", "") and not (tmp_path / "calls").exists()
    assert archive.exists()


@pytest.mark.parametrize("value", ["0", "false", "no", ""])
def test_dry_run_that_is_off_starts_the_run(tmp_path, stand_in, value):
    stand_in("python")
    assert start(tmp_path, "local.sh", *RUN, DRY_RUN=value).wait(30) == 0
    assert calls(tmp_path) == [f"python -m can_jax.main {' '.join(RUN)}"]


@pytest.mark.parametrize("count", ["two", "0", "-1", "1.5", "--config=x"])
def test_number_of_processes_that_is_none_is_one_line(count):
    done = subprocess.run(
        [LAUNCH / "processes.sh", count, *RUN], env=os.environ | {"DRY_RUN": "1"}, text=True,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 1 and not done.stdout and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: COUNT='{count}' is not a number of processes; usage:")


def test_command_on_this_machine_as_it_is():
    line = shlex.split(dry_run("local.sh", *RUN))
    assert line == ["python3", "-m", "can_jax.main", *RUN]


def test_tpu_launcher_outside_a_checkout_says_so(tmp_path):
    (tmp_path / "can_jax" / "launch").mkdir(parents=True)
    script = shutil.copy(LAUNCH / "tpu_vm.sh", tmp_path / "can_jax" / "launch")
    done = subprocess.run([script], env=os.environ | TPU, capture_output=True, text=True)
    assert done.returncode == 1 and "clone the repository" in done.stderr


# One machine


@pytest.mark.parametrize("code", [75, 143])
@pytest.mark.parametrize("script", [["local.sh"], ["processes.sh", "2"]])
def test_preempted_run_is_started_again(tmp_path, stand_in, script, code):
    count = int(script[-1]) if len(script) > 1 else 1
    stand_in("python", f"[ $(wc -l < {tmp_path}/calls) -gt {2 * count} ] && exit 0 || exit {code}")
    process = start(tmp_path, *script, "--config=x")
    assert process.wait(30) == 0, process.stderr.read()
    assert len(calls(tmp_path)) == 3 * count


@pytest.mark.parametrize("code", [1, 130])
@pytest.mark.parametrize("script", [["local.sh"], ["processes.sh", "2"]])
def test_failed_run_is_not(tmp_path, stand_in, script, code):
    stand_in("python", f"exit {code}")
    assert start(tmp_path, *script, "--config=x").wait(30) == code
    assert len(calls(tmp_path)) <= 2


@pytest.mark.parametrize("script", [["local.sh"], ["processes.sh", "1"]])
def test_run_that_ends_unexpectedly_is_started_a_few_times_more(tmp_path, stand_in, script):
    stand_in("python", "exit 70")
    assert start(tmp_path, *script, "--config=x", RETRIES="2").wait(30) == 70
    assert len(calls(tmp_path)) == 3


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)]
)
@pytest.mark.parametrize("script", [["local.sh"], ["processes.sh", "2"]])
def test_signal_reaches_the_run_which_is_waited_for(tmp_path, stand_in, script, number, code):
    stand_in(
        "python",
        "trap 'sleep 0.3; echo saved; exit 75' TERM; echo ready; while true; do sleep 0.1; done",
    )
    count = int(script[-1]) if len(script) > 1 else 1
    process = start(tmp_path, *script, "--config=x")
    for _ in range(count):
        assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.wait(30) == code
    assert process.stdout.read() == "saved\n" * count
    assert len(calls(tmp_path)) == count


@pytest.mark.parametrize("script", [["local.sh"], ["processes.sh", "1"]])
def test_second_ctrl_c_does_not_wait_for_the_run(tmp_path, stand_in, script):
    stand_in("python", "trap '' TERM; echo ready; exec sleep 60")
    process = start(tmp_path, *script, "--config=x")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130


def test_processes_know_their_numbers_and_their_gpus(tmp_path, stand_in):
    stand_in("python", "echo GPU $CUDA_VISIBLE_DEVICES")
    process = start(tmp_path, "processes.sh", "2", *RUN)
    assert process.wait(30) == 0
    assert sorted(process.stdout.read().split("\n")) == ["", "GPU 0", "GPU 1"]
    for number, call in enumerate(sorted(calls(tmp_path))):
        given = f"--coordinator=127.0.0.1:999 --processes=2 --process={number} {' '.join(RUN)}"
        assert call == f"python -m can_jax.main {given}"


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [("6,GPU-8f,2", ["GPU 6", "GPU GPU-8f"]), ("", ["GPU -1"] * 2), ("-1", ["GPU -1"] * 2)],
)
def test_processes_share_the_devices_that_were_given(tmp_path, stand_in, visible, gpus):
    stand_in("python", "echo GPU $CUDA_VISIBLE_DEVICES")
    process = start(tmp_path, "processes.sh", "2", *RUN, CUDA_VISIBLE_DEVICES=visible)
    assert process.wait(30) == 0
    assert sorted(process.stdout.read().splitlines()) == sorted(gpus)


def test_fewer_devices_than_processes_are_refused(tmp_path, stand_in):
    stand_in("python")
    process = start(tmp_path, "processes.sh", "3", *RUN, CUDA_VISIBLE_DEVICES="4,5")
    assert process.wait(30) == 1 and not (tmp_path / "calls").exists()
    assert "CUDA_VISIBLE_DEVICES=4,5 names 2 devices" in process.stderr.read()


def test_jobs_on_one_machine_meet_on_ports_of_their_own():
    ports = {
        re.search(r"127\.0\.0\.1:(\d+)", dry_run("processes.sh", "2", *RUN))[1] for _ in range(3)
    }
    assert len(ports) == 3


def test_where_one_process_fails_the_others_are_stopped(tmp_path, stand_in):
    stand_in("python", '[ "$CUDA_VISIBLE_DEVICES" = 1 ] && exit 1; sleep 60')
    assert start(tmp_path, "processes.sh", "3", "--config=x").wait(30) == 1


def test_dry_run_of_processes():
    lines = dry_run("processes.sh", "2", *RUN).splitlines()
    words = shlex.split(lines[1])
    assert words[:4] == ["CUDA_VISIBLE_DEVICES=1", "python3", "-m", "can_jax.main"]
    assert words[-3:] == RUN and "--process=1" in words and len(lines) == 2


# SLURM


@pytest.mark.parametrize(
    ("code", "before", "queued"),
    [(0, 0, False), (1, 0, False), (130, 0, False), (75, 9, True), (143, 9, True), (70, 2, True),
     (70, 3, False), (142, 2, True), (142, 3, False)],
)  # fmt: skip
def test_slurm_job_is_queued_again_if_that_may_help(tmp_path, stand_in, code, before, queued):
    stand_in("srun", f"exit {code}")
    stand_in("scontrol")
    variables = {"SLURM_JOB_ID": "42", "SLURM_RESTART_COUNT": str(before)}
    process = start(tmp_path, "slurm.sh", *RUN, **variables)
    assert process.wait(30) == code
    (step, *rest) = calls(tmp_path)
    assert step.startswith("srun --kill-on-bad-exit=1") and step.endswith(" ".join(RUN))
    assert rest == (["scontrol requeue 42"] if queued else [])


def test_slurm_gives_each_process_the_cores_of_its_task(tmp_path, stand_in):
    """Since SLURM 22.05, srun does not read the variable that sbatch sets."""
    stand_in("srun", 'echo "cores: ${SRUN_CPUS_PER_TASK:-}"')
    for cores in ("16", ""):
        process = start(tmp_path, "slurm.sh", *RUN, SLURM_CPUS_PER_TASK=cores)
        assert process.communicate(timeout=30)[0] == f"cores: {cores}\n"


def test_slurm_script_says_what_it_needs():
    text = (LAUNCH / "slurm.sh").read_text()
    options = [line.split()[1] for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {"--requeue", "--signal=TERM@300", "--open-mode=append"} <= set(options)
    printed = dry_run("slurm.sh", *RUN).splitlines()
    assert shlex.split(printed[0])[-3:] == RUN and all(line == line.rstrip() for line in printed)


# Cloud TPU


def test_tpu_commands_as_they_are():
    lines = [shlex.split(line) for line in dry_run("tpu_vm.sh", *RUN, **TPU, SPOT="1").splitlines()]
    create, archive, copy, install, train, delete = lines
    assert not re.search(r" $", dry_run("tpu_vm.sh", *RUN, **TPU), re.M)
    off = dry_run("tpu_vm.sh", *RUN, **TPU, SPOT="0", KEEP="1").splitlines()
    assert "--spot" not in off[0] and len(off) == len(lines) - 1
    tpu_vm = ["gcloud", "compute", "tpus", "tpu-vm"]
    assert create == [
        *tpu_vm, "create", "can", "--accelerator-type=v5litepod-256", "--version=v2-tpuv5-lite",
        "--spot", "--zone=us-west4-a",
    ]  # fmt: skip
    assert archive[:2] == ["git", "archive"] and "HEAD" in archive
    assert copy[:5] == [*tpu_vm, "scp"] and "--worker=all" in copy
    assert install[:6] == [*tpu_vm, "ssh", "can"] and "'.[tpu]'" in install[7]
    assert train[:7] == [*tpu_vm, "ssh", "can", "--worker=all"]
    command = shlex.split(train[7].removeprefix("--command="))
    assert command[:3] == ["cd", "can_jax", "&&"] and command[-3:] == RUN
    assert delete == [*tpu_vm, "delete", "can", "--quiet", "--zone=us-west4-a"]


def test_preempted_tpu_is_made_again_and_the_run_goes_on(tmp_path, stand_in):
    """The first slice is taken away while training; then one that saved; then the end."""
    stand_in("git")
    stand_in(
        "gcloud",
        f"""
runs=$(grep -c 'exec .venv' {tmp_path}/calls)
case "$*" in
  *describe*) if [ -e {tmp_path}/taken ]; then echo PREEMPTED; elif [ -e {tmp_path}/made ]; then
              echo READY; fi ;;
  *create*) rm -f {tmp_path}/taken; touch {tmp_path}/made ;;
  *"exec .venv"*) case $runs in 1) touch {tmp_path}/taken; exit 255 ;; 2) exit 75 ;; esac ;;
esac""",
    )
    process = start(tmp_path, "tpu_vm.sh", *RUN, **TPU)
    assert process.wait(60) == 0, process.stderr.read()
    verbs = [call.split()[4] for call in calls(tmp_path) if call.startswith("gcloud")]
    # Each run is a copy and two commands.
    expected = ["create", "scp", "ssh", "ssh", "delete", "create", *["scp", "ssh", "ssh"] * 2]
    assert [verb for verb in verbs if verb != "describe"] == [*expected, "delete"]


def test_uncommitted_changes_are_refused_before_a_slice_is_made(tmp_path, stand_in):
    """They are not in the archive of the last commit, so another recipe would be trained."""
    stand_in("git", '[ "$1" != diff ]')
    stand_in("gcloud")
    process = start(tmp_path, "tpu_vm.sh", *RUN, **TPU)
    assert process.wait(30) == 1 and "has uncommitted changes" in process.stderr.read()
    assert calls(tmp_path) == ["git diff --quiet HEAD"]


def test_run_that_fails_on_a_tpu_ends_there(tmp_path, stand_in):
    stand_in("git")
    stand_in("gcloud", 'case "$*" in *describe*) echo READY ;; *exec*) exit 1 ;; esac')
    assert start(tmp_path, "tpu_vm.sh", *RUN, **TPU).wait(30) == 1


def test_run_that_ends_unexpectedly_on_a_tpu_is_started_a_few_times_more(tmp_path, stand_in):
    stand_in("git")
    stand_in("gcloud", 'case "$*" in *describe*) echo READY ;; *exec*) exit 70 ;; esac')
    assert start(tmp_path, "tpu_vm.sh", *RUN, **TPU, RETRIES="2").wait(30) == 70
    assert len([call for call in calls(tmp_path) if "exec .venv" in call]) == 3


@pytest.mark.parametrize(
    ("script", "variables"), [("tpu_vm.sh", TPU), ("gke.sh", GKE), ("processes.sh", {})]
)
def test_what_is_missing_is_named(script, variables):
    name = next(iter(variables), "COUNT")
    given = {k: v for k, v in variables.items() if k != name}
    done = subprocess.run([LAUNCH / script], env=os.environ | given, capture_output=True, text=True)
    assert done.returncode != 0 and name in done.stderr


# GKE


def manifest():
    return yaml.safe_load(dry_run("gke.sh", *RUN, **GKE, SLICES="2"))


def test_jobset_holds_what_was_asked_for():
    (slices,) = manifest()["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    pod = job["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"]) == (2, 64, 64)
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "16x16"
    assert pod["containers"][0]["args"] == RUN
    assert pod["containers"][0]["resources"]["limits"]["google.com/tpu"] == 4


def test_manifest_keeps_any_text_as_it_is():
    told = {"NAME": "123", "IMAGE": "a: b #c", "ACCELERATOR": "true", "TOPOLOGY": "1e3"}
    found = yaml.safe_load(dry_run("gke.sh", "--workdir=\U0001f600 é", **GKE | told))
    (slices,) = found["spec"]["replicatedJobs"]
    pod = slices["template"]["spec"]["template"]["spec"]
    assert found["metadata"]["name"] == "123" and pod["containers"][0]["image"] == "a: b #c"
    assert list(pod["nodeSelector"].values()) == ["true", "1e3"]
    assert pod["containers"][0]["args"] == ["--workdir=\U0001f600 é"]


def test_jobs_of_the_jobset_meet_the_schema():
    """The JobSet itself has no published schema; what it is made of has."""
    found = manifest()
    assert set(found) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(found["spec"]) <= {"failurePolicy", "replicatedJobs"}
    template = found["spec"]["replicatedJobs"][0]["template"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}} | template
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(job, version, strict=True)
    job["spec"]["parallelims"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, version, strict=True)


def test_manifest_is_applied(tmp_path, stand_in):
    stand_in("kubectl", f"cat > {tmp_path}/applied")
    process = start(tmp_path, "gke.sh", *RUN, **GKE, PYTHON="python3")
    assert process.wait(30) == 0, process.stderr.read()
    assert calls(tmp_path) == ["kubectl apply -f -"]
    assert json.dumps(RUN) in (tmp_path / "applied").read_text()


def console_blocks():
    """Commands of docs/launch.md with what they print, by command."""
    text = (LAUNCH.parent / "docs/launch.md").read_text()
    for block in text.split("```console\n$ ")[1:]:
        command, output = block.split("```")[0].split("\n", 1)
        yield command, output


@pytest.mark.parametrize(("command", "output"), console_blocks())
def test_page_shows_what_a_dry_run_prints(command, output):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "TMPDIR")}
    done = subprocess.run(
        ["bash", "-c", command], cwd=LAUNCH.parent, env=environment, capture_output=True, text=True
    )
    found = [line.rstrip() for line in done.stdout.splitlines()]
    assert found == output.splitlines()
