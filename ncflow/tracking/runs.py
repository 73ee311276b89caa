"""A training run as a run in MLflow: what it logs, each step once, and how it ends."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ncflow.dotted import flatten
from ncflow.files import unwritable
from ncflow.interruption import interruptible, undisturbed
from ncflow.tracking.experiments import find_experiment, refuse_deleted
from ncflow.tracking.stores import store

if TYPE_CHECKING:
    import numpy as np
    import torch


@contextmanager
def start_run(
    *,
    root: Path,
    name: str,
    config: Mapping[str, Any],
    tags: Mapping[str, object] | None = None,
    color: str | None = None,
    attempt: str | None = None,
    enabled: bool = True,
) -> Iterator[RunLogger]:
    """One flat MLflow run around one configuration, in MLflow's default experiment or the one its environment names.

    A run that was opened before for the same `attempt`, and killed or not, is continued; otherwise the run that `mlflow
    run` opened is taken, once, and else a new one is made. `color` is that of its curves in the UI, such as "#0072B2".
    Leaving normally ends the run FINISHED; an error ends it FAILED; an interruption, exit or SIGTERM ends it KILLED,
    each with the message in the tag `error`. `enabled=False`, for all processes but the main one, logs nothing
    anywhere.
    """
    if not enabled:
        yield RunLogger(_Nothing(), run_id=None)
        return
    with store(root) as mlflow, interruptible():
        all_tags = _strings({**(tags or {}), **_NOBODY, "mlflow.runColor": color, "attempt": attempt})
        failed_store = mlflow.exceptions.MlflowException
        writing = undisturbed if _is_database(mlflow) else nullcontext  # a server may make one wait for minutes
        run = None
        try:
            with writing():
                run_id = _lost_run(mlflow, attempt) or _opened_run(mlflow)
                if run_id is None:
                    find_experiment(mlflow)
                run = mlflow.start_run(run_id, run_name=name, tags=all_tags)
                if "error" in run.data.tags:  # a run that is continued has not failed after all
                    mlflow.delete_tag("error")
                mlflow.log_params(_strings(flatten(config, "cfg.")))
            logged = {metric.key: metric.step for metric in run.data.to_proto().metrics}
            yield RunLogger(mlflow, run.info.run_id, logged=logged, writing=writing)
        except BaseException as error:
            if run is not None:
                # What fails may be the store itself: the first failure is the one to hear of.
                with _in_haste(), suppress(failed_store):
                    mlflow.set_tags(_strings({"error": f"{type(error).__name__}: {error}"}))
                with _in_haste(), suppress(failed_store):
                    mlflow.end_run("FAILED" if isinstance(error, Exception) else "KILLED")
                if isinstance(error, failed_store):
                    with suppress(failed_store):
                        refuse_deleted(mlflow, run.info.run_id)
            raise
        with writing():
            mlflow.end_run("FINISHED")


def has_finished(root: Path, tags: Mapping[str, str]) -> bool:
    """Whether the store has a finished run with all of these tags."""
    with store(root) as mlflow:
        asked = [f"tags.{name} = '{value}'" for name, value in tags.items()]
        filter_string = " AND ".join([*asked, "attributes.status = 'FINISHED'"])
        return bool(mlflow.search_runs(search_all_experiments=True, filter_string=filter_string, output_format="list"))


@dataclass(frozen=True)
class RunLogger:
    """What a run can say to MLflow while `start_run` holds it open.

    Whatever has a step is there once for each step, even if it is said again after an interruption: `logged` holds the
    last step of each metric that a continued run has already. Inside of `writing` signals wait, where they would leave
    a database locked.
    """

    mlflow: Any
    run_id: str | None
    logged: Mapping[str, int] = field(default_factory=dict)
    writing: Callable[[], AbstractContextManager[None]] = nullcontext

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """All metrics of one step in one call, which is an order of magnitude faster than one by one."""
        new = {key: v for key, v in values.items() if step > self.logged.get(key, -1)}
        with self.writing():
            self.mlflow.log_metrics(new, step=step)

    def images(self, images: Mapping[str, np.ndarray], step: int) -> None:
        """Images (H,W,3) uint8, each key a row of the run's image grid with a slider over the steps."""
        from PIL import Image

        with TemporaryDirectory() as folder:
            for key, pixels in images.items():
                # The names by which MLflow's grid knows images, but the same each time: then the second replaces the
                # first. MLflow's own `log_image` invents new ones, and returns before the files are written.
                file = Path(folder) / f"{key}+step+{step}+timestamp+{step}+{uuid.uuid5(uuid.NAMESPACE_OID, key)}.png"
                image = Image.fromarray(pixels)
                image.save(file)
                image.thumbnail((_THUMBNAIL, _THUMBNAIL))
                image.save(file.with_name(f"{file.stem}+compressed.webp"))
            for file in sorted(Path(folder).iterdir()):
                self.artifact(file, "images")
        with self.writing():
            self.mlflow.set_tag("mlflow.loggedImages", True)

    def table(self, columns: Mapping[str, Iterable[Any]], artifact_file: str, step: int) -> None:
        """Columns of equal length, as rows of a step; MLflow compares those of the same `artifact_file` across runs."""
        if not (self.logged and step in self._steps_of(artifact_file)):  # a run that is new has no rows yet
            rows = {name: list(column) for name, column in columns.items()}
            with self._writing():
                self.mlflow.log_table({"step": [step] * len(next(iter(rows.values()))), **rows}, artifact_file)

    def artifacts(self, folder: Path, artifact_path: str | None = None) -> None:
        """A copy of every file in `folder`."""
        with self._writing():
            self.mlflow.log_artifacts(str(folder), artifact_path)

    def keep(self, folder: Path) -> None:
        """As `artifacts`, of a run that has failed: in haste, and hiding no failure by another one."""
        with _in_haste(), suppress(OSError):
            self.artifacts(folder)

    def artifact(self, file: Path, artifact_path: str | None = None) -> None:
        """A copy of one file."""
        with self._writing():
            self.mlflow.log_artifact(str(file), artifact_path)

    def dataset(self, name: str, digest: str, source: Path, context: str = "training") -> None:
        """The data version, shown in the runs table as `name (digest)`; MLflow keeps 36 characters of the digest."""
        data = self.mlflow.data
        origin = data.sources.LocalArtifactDatasetSource(source.resolve().as_uri())
        version = data.meta_dataset.MetaDataset(origin, name=name, digest=digest[:36])
        with self.writing():
            self.mlflow.log_input(version, context=context)

    def model(self, classifier: torch.nn.Module, images: torch.Tensor, *, name: str = "model", step: int = 0) -> str:
        """The classifier as the run's logged model; returns its URI. `images` (B,3,S,S) show the input's shape.

        `mlflow.pytorch.load_model(uri)` gives back images (B,3,S,S) -> logits (B,K) in evaluation mode, for any B and
        without ncflow installed. It is a traced graph and runs no foreign code when loaded, as a pickle would; features
        are had from the run folder's checkpoint.
        """
        import torch

        if (there := self._whole_model(name)) is not None:
            return there
        pair = images[:1].detach().cpu().repeat(2, 1, 1, 1)  # tracing a batch of one would fix B = 1
        classifier = deepcopy(classifier).cpu().eval()
        classifier.register_forward_hook(lambda module, inputs, output: output.logits)
        with torch.no_grad():
            signature = self.mlflow.models.infer_signature(pair.numpy(), classifier(pair).numpy())
        with self._writing(), warnings.catch_warnings():  # of shared weights that may be on a GPU: these are on the CPU
            warnings.filterwarnings("ignore", message="No complete tensor found")
            logged = self.mlflow.pytorch.log_model(
                classifier,
                name=name,
                step=step,
                input_example=pair.numpy(),
                signature=signature,
                serialization_format="pt2",
                pip_requirements=["mlflow", f"torch=={torch.__version__.partition('+')[0]}"],
            )
        return str(logged.model_uri)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Inside, what a disk or a server refuses is said with the place of the artifacts."""
        try:
            with self.writing():
                yield
        except (OSError, self.mlflow.exceptions.MlflowException) as error:
            where, reason = self.mlflow.active_run().info.artifact_uri, getattr(error, "strerror", None) or error
            raise unwritable(f"MLflow's artifacts to {where}", reason) from error

    def _steps_of(self, artifact_file: str) -> set[int]:
        """The steps that a table has rows of."""
        files = [file.path for file in self.mlflow.artifacts.list_artifacts(run_id=self.run_id)]
        if artifact_file not in files:
            return set()
        return set(self.mlflow.load_table(artifact_file, run_ids=[self.run_id])["step"])

    def _whole_model(self, name: str) -> str | None:
        """The URI of the model logged before an interruption; one that the interruption left incomplete is deleted."""
        where = [self.mlflow.active_run().info.experiment_id]
        ours = f"source_run_id = '{self.run_id}' AND name = '{name}'"
        for model in self.mlflow.search_logged_models(where, filter_string=ours, output_format="list"):
            if model.status == "READY":
                return str(model.model_uri)
            self.mlflow.MlflowClient().delete_logged_model(model.model_id)
        return None


@contextmanager
def _in_haste() -> Iterator[None]:
    """Inside, a server that does not answer is not waited for: for what led here, that has been done."""
    patience = os.environ.get(_RETRIES)
    os.environ[_RETRIES] = "1"
    try:
        yield
    finally:
        del os.environ[_RETRIES]
        if patience is not None:
            os.environ[_RETRIES] = patience


def _is_database(mlflow: Any) -> bool:
    """Whether the store is a database on this machine, whose transactions an exception may leave open."""
    return str(mlflow.get_tracking_uri()).startswith("sqlite:")


def _lost_run(mlflow: Any, attempt: str | None) -> str | None:
    """The run that an earlier process opened for this attempt, even if it was killed before it could note the ID."""
    if attempt is None:
        return None
    filter_string = f"tags.attempt = '{attempt}'"
    runs = mlflow.search_runs(search_all_experiments=True, filter_string=filter_string, output_format="list")
    return runs[0].info.run_id if runs else None


def _opened_run(mlflow: Any) -> str | None:
    """The run that `mlflow run` opened for this process, unless another configuration has taken it already."""
    run_id = os.environ.pop("MLFLOW_RUN_ID", None)
    if not run_id:
        return None
    try:
        params = mlflow.get_run(run_id).data.params
    except mlflow.exceptions.MlflowException as error:
        if "RESOURCE_DOES_NOT_EXIST" not in str(getattr(error, "error_code", "")):
            raise
        raise ValueError(
            f"expected MLFLOW_RUN_ID to name a run in {mlflow.get_tracking_uri()}, got '{run_id}', which is not there; "
            "unset it, or name the store of that run in MLFLOW_TRACKING_URI"
        ) from error
    return None if any(key.startswith("cfg.") for key in params) else run_id


def _strings(values: Mapping[str, object]) -> dict[str, str]:
    """Values as MLflow stores them: text, cut where it would refuse more; what is None is left out."""
    return {key: str(value)[:_LONGEST] for key, value in values.items() if value is not None}


class _Nothing:
    """Stands in for mlflow in processes that do not log: any attribute, any call, no effect."""

    def __getattr__(self, name: str) -> _Nothing:
        return self

    def __call__(self, *args: object, **options: object) -> _Nothing:
        return self

    def __iter__(self) -> Iterator[_Nothing]:
        return iter(())


# MLflow would note the user's name and the path of ncflow's files on this machine.
_NOBODY = {"mlflow.user": "", "mlflow.source.name": "ncflow", "mlflow.source.type": "LOCAL"}
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"  # MLflow's default, 7, takes some four minutes
_THUMBNAIL = 256  # pixels, as MLflow's
_LONGEST = 5000  # characters; MLflow takes 6,000 in a parameter and 8,000 in a tag, its older servers 5,000
