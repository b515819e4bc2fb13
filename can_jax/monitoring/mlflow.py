"""The tracker of MLflow (optional extra `mlflow`), with a server or a local store.

The environment variable ``MLFLOW_TRACKING_URI`` sets the server or store. The variable
``MLFLOW_EXPERIMENT_NAME`` sets the experiment, by default `can_jax`.
"""

import contextlib
import csv
import io
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from can_jax.monitoring.trackers import Outcome, Tracker, run_id
from can_jax.utils.environment import restored_environment
from can_jax.utils.nested import flatten

TAG = "can_jax.run"  # holds the identifier by which a resume finds the run
MOST_PARAMETERS = 100  # the maximum number of parameters in a request
LONGEST = 5000  # characters to which values are cut; MLflow's limit is 6000 or 8000
NO_URLS = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


@contextlib.contextmanager
def _without_urls() -> Iterator[None]:
    """Keep MLflow from printing the URL of the run, unless the user has set the environment
    variable ``MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT``."""
    with restored_environment(NO_URLS):
        os.environ.setdefault(NO_URLS, "true")
        yield


class MLflow(Tracker):
    """The tracker that sends a run to MLflow. A resumed run continues the same MLflow run.

    MLflow cannot replace a logged value, so the metrics of steps that a resume or a rollback
    repeats are not sent again. An MLflow parameter keeps its first value; the artifact
    ``config.json`` holds the current configuration.

    Args:
        workdir: The run directory, whose name becomes the name of the MLflow run.
    """

    in_background = True

    def __init__(self, workdir: epath.Path):
        self._workdir = workdir
        self._client: Any = None
        self._run = ""
        self._present: set[tuple[str, int]] = set()  # the metrics and steps that MLflow holds
        self._figures: set[tuple[str, int]] = set()
        self._parameters: set[str] = set()
        self._outcome: Outcome = "finished"

    def start(self, step: int) -> None:
        """Create or resume the MLflow run. A second call, as after a rollback, does nothing."""
        if self._client:
            return
        with _without_urls():
            self._start()

    def _start(self) -> None:
        from mlflow import MlflowClient

        client, identifier = MlflowClient(), run_id(self._workdir)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "can_jax")
        experiment = client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
        runs = client.search_runs([experiment_id], f"tags.`{TAG}` = '{identifier}'", max_results=1)
        if runs:
            data, self._run = runs[0].data, runs[0].info.run_id
            client.update_run(self._run, status="RUNNING")
            self._parameters = set(data.params)
            for metric in data.metrics:
                history = client.get_metric_history(self._run, metric)
                self._present |= {(metric, point.step) for point in history}
            # log_image names a file by key, step and time.
            for file in client.list_artifacts(self._run, "images"):
                if match := re.search(r"([^/]+?)[%+]step[%+](\d+)[%+]", file.path):
                    self._figures.add((match[1], int(match[2])))
        else:
            tags = {TAG: identifier}
            created = client.create_run(experiment_id, tags=tags, run_name=self._workdir.name)
            self._run = created.info.run_id
        self._client = client

    def hyperparameters(self, config: dict[str, Any]) -> None:
        """Send the configuration as parameters, and as the artifact `config.json`."""
        from mlflow.entities import Param

        values = {key: str(value)[:LONGEST] for key, value in flatten(config).items()}
        new = [Param(key, value) for key, value in values.items() if key not in self._parameters]
        for first in range(0, len(new), MOST_PARAMETERS):
            part = new[first : first + MOST_PARAMETERS]
            self._client.log_batch(self._run, params=part, synchronous=True)
        self._parameters |= values.keys()
        self._client.log_dict(self._run, config, "config.json")

    def environment(self, facts: dict[str, Any]) -> None:
        """Send the commit and command as tags, and all facts as the artifact `environment.json`."""
        tags = {
            "mlflow.source.git.commit": facts.get("commit"),
            "mlflow.source.name": shlex.join(sys.argv),
            "mlflow.source.type": "LOCAL",
        }
        for key, value in tags.items():
            if value:
                self._client.set_tag(self._run, key, value[:LONGEST])
        self._client.log_dict(self._run, facts, "environment.json")

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Send the metrics of a step. Metrics that MLflow already holds for this step are skipped,
        so a replay fills the gaps that failed requests left."""
        from mlflow.entities import Metric

        moment = int(1000 * time.time())
        new = {key: v for key, v in values.items() if (key, step) not in self._present}
        if new:
            batch = [Metric(key, value, moment, step) for key, value in new.items()]
            self._client.log_batch(self._run, metrics=batch, synchronous=True)
            self._present |= {(key, step) for key in new}

    def figure(self, step: int, name: str, image: UInt8[np.ndarray, "height width 3"]) -> None:
        """Send a figure, unless MLflow already holds it."""
        if (name, step) not in self._figures:
            self._client.log_image(self._run, image, key=name, step=step, synchronous=True)
            self._figures.add((name, step))

    def table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        """Send a table as a CSV artifact in `tables`."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([columns, *rows])
        self._client.log_text(self._run, text.getvalue(), f"tables/{name}.csv")

    def checkpoint(self, step: int, path: str) -> None:
        """Send the path of the latest checkpoint as the tag `checkpoint`."""
        self._client.set_tag(self._run, "checkpoint", path[:LONGEST])

    def outcome(self, outcome: Outcome) -> None:
        """Store the outcome of the run until `finish` sends it."""
        self._outcome = outcome

    def finish(self) -> None:
        """Set the final status of the MLflow run."""
        if self._client:
            with _without_urls():
                self._client.set_terminated(self._run, STATUS[self._outcome])
