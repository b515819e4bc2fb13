"""The trackers, with their real clients: a run that is killed in the middle and resumed.

The clients are optional extras. `make test-trackers` installs and tests them.
"""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from can_jax.monitoring import mlflow as mlflow_tracker
from can_jax.monitoring import wandb as wandb_tracker
from can_jax.monitoring.trackers import check_trackers, run_id
from can_jax.utils.errors import UserError
from can_jax.utils.nested import flatten
from tests.helpers.runs import RECIPE, ROOT, command, metrics

CLIENTS = [name for name in ("wandb", "mlflow", "aim") if importlib.util.find_spec(name)]
CLIENT = {name: pytest.mark.skipif(name not in CLIENTS, reason=f"no {name}") for name in
          ("wandb", "mlflow", "aim")}  # fmt: skip

# A callback that kills the first start after step 7, once MLflow has its metrics. Checkpoint 4 is
# then the last one, so the steps 5 to 7 are repeated.
KILLER = """
import os, signal, time
from can_jax.train.callback import CALLBACKS, Callback, PeriodicAction

@CALLBACKS.register("killer")
class Killer(Callback):
    def __init__(self, run):
        self._begins = not (run.workdir / "checkpoints" / "4").exists()

    def periodic_actions(self):
        return [PeriodicAction(every=1, act=self.act)] if self._begins else []

    def act(self, step, state):
        if step == 7:
            self.wait()
            os.kill(os.getpid(), signal.SIGKILL)

    def wait(self):
        if "MLFLOW_TRACKING_URI" not in os.environ:
            time.sleep(20)
            return
        from mlflow import MlflowClient
        client, end = MlflowClient(), time.monotonic() + 120
        while time.monotonic() < end:
            place = client.get_experiment_by_name("can_jax")
            for run in client.search_runs([place.experiment_id]) if place else []:
                steps = client.get_metric_history(run.info.run_id, "loss/total")
                if any(point.step == 7 for point in steps):
                    return
            time.sleep(0.5)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of an MLflow server with an empty store, or None without MLflow."""
    if "mlflow" not in CLIENTS:
        yield None
        return
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    options = [f"--port={port}", "--host=127.0.0.1", "--workers=1"]
    options += ["--backend-store-uri=sqlite:///store.db", "--artifacts-destination=artifacts"]
    program = [sys.executable, "-m", "mlflow", "server", *options]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            program, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, server):
    """The directory of a run of 10 steps that was killed after step 7, and resumed from step 4."""
    folder = tmp_path_factory.mktemp("trackers")
    recipe, killer, workdir = folder / "recipe.py", folder / "killer.py", folder / "run"
    recipe.write_text(RECIPE)
    killer.write_text(KILLER)
    (folder / "aim").mkdir()
    settings = (
        "total_steps=10",
        "checkpoint.every_steps=4",
        "figures.every_steps=4",
        "probe.every_steps=4",
    )
    names = ",".join(["tensorboard", *CLIENTS])
    arguments = [*command(recipe, workdir, *settings, f"trackers={names}"), f"--modules={killer}"]
    environment = os.environ | {"WANDB_MODE": "offline", "AIM_REPO": str(folder / "aim")}
    if server:
        environment["MLFLOW_TRACKING_URI"] = server
    for code in (-signal.SIGKILL, 0):
        done = subprocess.run(
            arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "cannot be written by the tracker" not in done.stderr, done.stderr
    assert "resumed from the checkpoint of step 4" in done.stdout
    return workdir


def expected(workdir):
    """The values of `metrics.jsonl` by name and step."""
    values = {}
    for line in metrics(workdir):
        for name, value in line.items():
            if name not in ("step", "time", "elapsed_seconds"):
                values.setdefault(name, {})[line["step"]] = np.nan if value is None else value
    assert list(values["loss/total"]) == list(range(1, 11)) and "probe/knn" in values
    return values


def assert_equal(found, wanted):
    """Two dicts of values by name and step are equal, up to what is timed and float32."""
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert list(found[name]) == list(values), name
        if name not in ("images_per_second", "mfu", "data_wait"):
            np.testing.assert_allclose(list(found[name].values()), list(values.values()), 1e-5)


@pytest.mark.trackers
@CLIENT["mlflow"]
def test_mlflow_has_one_complete_run(resumed, server):
    from mlflow import MlflowClient

    client = MlflowClient(server)
    place = client.get_experiment_by_name("can_jax").experiment_id
    (run,) = client.search_runs([place])
    found = {}
    for name in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, name)
        assert len({point.step for point in history}) == len(history), name
        found[name] = {p.step: p.value for p in sorted(history, key=lambda point: point.step)}
    assert_equal(found, expected(resumed))
    config = flatten(json.loads((resumed / "config.json").read_text()))
    assert run.data.params.keys() == config.keys() and run.data.params["batch_size"] == "16"
    environment = json.loads((resumed / "environment.json").read_text())
    tags = run.data.tags
    assert tags.get("mlflow.source.git.commit") == environment["commit"]
    assert tags["checkpoint"] == str(resumed / "checkpoints/10")
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"config.json", "environment.json", "images", "tables"} <= files
    images = {f.path for f in client.list_artifacts(run.info.run_id, "images")}
    pngs = [path for path in images if path.endswith(".png")]
    assert sorted(int(path.split("step")[1].strip("%+").split("%")[0].split("+")[0])
                  for path in pngs) == [4, 8, 10]  # fmt: skip
    tables = {file.path for file in client.list_artifacts(run.info.run_id, "tables")}
    assert {"tables/Parameters.csv", "tables/Run.csv", "tables/Finished.csv"} <= tables


@pytest.mark.trackers
@CLIENT["mlflow"]
def test_replay_fills_a_gap_in_mlflow_and_repeats_nothing(server, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "gap")
    for steps in ((1, 3), (1, 2, 3, 4)):  # The first start failed to send step 2.
        tracker = mlflow_tracker.MLflow(epath.Path(tmp_path))
        tracker.start(0)
        for step in steps:
            tracker.metrics(step, {"loss/total": float(step)})
    client = MlflowClient(server)
    (run,) = client.search_runs([client.get_experiment_by_name("gap").experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss/total")
    assert sorted((point.step, point.value) for point in history) == [(n, n) for n in range(1, 5)]


@pytest.mark.trackers
@CLIENT["wandb"]
def test_both_offline_folders_of_wandb_hold_each_step_once(resumed):
    from wandb.proto.wandb_internal_pb2 import Record

    identifier = run_id(epath.Path(resumed))
    paths = sorted((resumed / "wandb").glob("offline-run-*/*.wandb"))
    assert [path.name for path in paths] == [f"run-{identifier}.wandb"] * 2
    found, images, config, summary, marks = {}, [], {}, {}, []
    for path in paths:
        for content in wandb_tracker.records(path.read_bytes()):
            record = Record()
            record.ParseFromString(content)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                assert record.run.run_id == identifier
                marks.append(record.run.resume)
            for item in record.config.update if kind == "config" else ():
                config[item.key] = json.loads(item.value_json)
            for item in record.summary.update if kind == "summary" else ():
                summary[item.key or item.nested_key[0]] = item.value_json
            row = record.history.item if kind == "history" else ()
            for item in row:
                name, value = item.key or "/".join(item.nested_key), json.loads(item.value_json)
                if name == "panel/path":
                    images.append(record.history.step.num)
                    assert (path.parent / "files" / value).is_file()
                elif name[0] != "_" and name.split("/")[0] not in ("panel", "tables"):
                    by_step = found.setdefault(name, {})
                    assert record.history.step.num not in by_step, name
                    by_step[record.history.step.num] = float(value)
    assert_equal(found, expected(resumed))
    assert images == [4, 8, 10] and marks and all(marks)
    assert config["batch_size"] == 16 and "commit" in config["environment"]
    assert str(resumed / "checkpoints/10") in summary["checkpoint"]


@pytest.mark.trackers
@CLIENT["aim"]
def test_aim_has_one_complete_run(resumed):
    from aim import Repo
    from aim.sdk.index_manager import RepoIndexManager
    from aim.storage.context import Context

    place = str(resumed.parent / "aim")
    (identifier,) = Repo(place).list_all_runs()
    RepoIndexManager.get_index_manager(Repo(place)).index(identifier)  # as `aim up` does
    (run,) = Repo(place).iter_runs()
    found = {}
    for series in run.metrics():
        steps, (values, *_) = series.data.items_list()
        found[series.name] = dict(sorted(zip(steps, values, strict=True)))
    assert_equal(found, expected(resumed))
    images = run.get_image_sequence("panel", Context({}))
    assert images.data.items_list()[0] == [4, 8, 10]
    assert run["hparams"]["batch_size"] == 16 and "commit" in run["environment"]
    assert run["checkpoint"] == str(resumed / "checkpoints/10")
    assert run["tables"]["Parameters"]["columns"][0] == "part"
    assert not run.active and run.name == "run"


@pytest.mark.trackers
def test_tensorboard_and_lines_hold_each_step_once(resumed):
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    events = EventAccumulator(str(resumed / "tensorboard")).Reload()
    wanted = expected(resumed)
    for name, values in wanted.items():
        assert [event.step for event in events.Tensors(name)] == list(values)
    assert [event.step for event in events.Tensors("panel")] == [4, 8, 10]
    seconds = [line["elapsed_seconds"] for line in metrics(resumed)]
    moments = [line["time"] for line in metrics(resumed)]
    assert seconds == sorted(seconds) and moments == sorted(moments)
    texts = ("config", "environment", "checkpoint", "tables/Parameters", "tables/Finished")
    assert set(texts) <= set(events.Tags()["tensors"])
    path = events.Tensors("checkpoint")[-1].tensor_proto.string_val[0].decode()
    assert path == str(resumed / "checkpoints/10")
    plugin = events.PluginTagToContent("hparams")
    session = plugin_data_pb2.HParamsPluginData.FromString(plugin["_hparams_/session_start_info"])
    values = session.session_start_info.hparams
    assert (
        values["batch_size"].number_value == 16 and values["data.source"].string_value == "shapes"
    )


def test_tracker_without_its_client_or_name_is_one_line(monkeypatch):
    check_trackers(("tensorboard", "jsonl"))
    with pytest.raises(UserError, match="no tracker 'wandbb'; did you mean 'wandb'"):
        check_trackers(("wandbb",))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"client library is not installed: pip install .*\[mlflow\]"
    ):
        check_trackers(("mlflow",))


def test_a_folder_of_the_name_of_a_client_is_no_client(tmp_path, monkeypatch):
    """Clients make folders of their name in the current one."""
    (Path(tmp_path) / "aim").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "aim", raising=False)
    with pytest.raises(UserError, match="client library is not installed"):
        check_trackers(("aim",))
