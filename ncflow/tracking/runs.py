"""A training run as an MLflow run: it logs each step once, and its end sets the status."""

from __future__ import annotations

import logging
import os
import re
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from shutil import disk_usage
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING, Any

from ncflow.dotted import flatten
from ncflow.files import unwritable
from ncflow.interruption import interruptible, undisturbed
from ncflow.tracking.experiments import find_experiment, refuse_deleted, refuse_missing_place
from ncflow.tracking.light import import_model_writer, without_inventory
from ncflow.tracking.mirrors import Mirror, Mirrored, mirrored
from ncflow.tracking.stores import advice_on, exists, store, tracking_uri, without_secrets, write_shared

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
    also: Sequence[str] = (),
    watched: bool = False,
    enabled: bool = True,
) -> Iterator[RunLogger]:
    """Open one MLflow run for one configuration and yield its logger.

    The run is in MLflow's default experiment, or in the one that MLflow's environment variables name. A run that an
    earlier process opened for the same `attempt` is resumed. Otherwise the run that `mlflow run` opened is used, once.
    Otherwise a new run is created. `color` is the color of its curves in the UI, such as "#0072B2".
    `also` names rows of MIRRORS: other trackers that get the same metrics and images. `watched` logs the load of CPU,
    memory, disk and GPU once a minute, unless MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING says otherwise.

    A normal exit ends the run as FINISHED. An error ends it as FAILED. An interruption, an exit or SIGTERM ends it as
    KILLED. The tag `error` holds the message. `enabled=False` logs nothing; all processes except the main one use it.
    """
    if not enabled:
        yield RunLogger(NullMlflow(), None, root)
        return
    with store(root) as mlflow, interruptible():
        all_tags = _strings({**(tags or {}), **_NOBODY, "mlflow.runColor": color, "attempt": attempt})
        failed_store = mlflow.exceptions.MlflowException
        writing = undisturbed if _is_database(mlflow) else nullcontext  # only a database: a server may take minutes
        run, began = None, time.monotonic()
        try:
            with writing():
                run_id = _lost_run(mlflow, attempt) or _opened_run(mlflow)
                if run_id is None:
                    refuse_missing_place(find_experiment(mlflow), root)
                run = mlflow.start_run(run_id, run_name=name, tags=all_tags, log_system_metrics=_watch(watched))
                for tag in ("error", *_local_remote(run.data.tags)):  # a resumed run has not failed
                    if tag in run.data.tags:
                        mlflow.delete_tag(tag)
                mlflow.log_params(_strings(flatten(config, "cfg.")))
            logged = {metric.key: metric.step for metric in run.data.to_proto().metrics}
            last = max((step for key, step in logged.items() if not key.startswith("system/")), default=0)
            copied = Mirrored(root, name, run.info.run_id, config, after=last)
            with mirrored(also, copied) as mirrors:
                yield RunLogger(mlflow, run.info.run_id, root, logged=logged, writing=writing, mirrors=mirrors)
        except BaseException as error:
            if run is not None:
                # The store itself may be what fails. Report the first failure.
                with _in_haste(), suppress(failed_store):
                    mlflow.set_tags(_strings({"error": without_secrets(f"{type(error).__name__}: {error}")}))
                with _in_haste(), suppress(failed_store):
                    _end(mlflow, run, "FAILED" if isinstance(error, Exception) else "KILLED", began)
                if isinstance(error, failed_store):
                    with suppress(failed_store):
                        refuse_deleted(mlflow, run.info.run_id)
            raise
        with writing():
            _end(mlflow, run, "FINISHED", began)


def has_finished(root: Path, tags: Mapping[str, str]) -> bool:
    """Whether the store has a finished run with all of these tags (name -> value)."""
    with store(root) as mlflow:
        return bool(_finished_runs(mlflow, tags))


def log_to_finished(root: Path, tags: Mapping[str, str], metrics: Mapping[str, float], *, step: int) -> bool:
    """Log metrics of one step to the newest finished run with all of these tags; return whether there is one.

    The run stays finished. A missing database is not created.
    """
    if not exists(tracking_uri(root)):
        return False
    with store(root) as mlflow:
        runs = _finished_runs(mlflow, tags)
        if runs:
            mlflow.log_metrics(dict(metrics), step=step, run_id=runs[0].info.run_id)
        return bool(runs)


@dataclass(frozen=True)
class RunLogger:
    """Logger of the MLflow run that `start_run` holds open.

    Each step is logged once, even if training resumes and logs it again. `logged` holds the last step of each metric
    that a resumed run already has. Inside `writing`, signals wait where they would leave a database locked.
    """

    mlflow: Any
    run_id: str | None
    root: Path
    logged: Mapping[str, int] = field(default_factory=dict)
    writing: Callable[[], AbstractContextManager[None]] = nullcontext
    mirrors: Sequence[Mirror] = ()

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log all metrics of one step in one call, which is about ten times faster than one call per metric."""
        new = {key: v for key, v in values.items() if step > self.logged.get(key, -1)}
        for mirror in self.mirrors if new else ():  # first: after a kill here, MLflow's last step still counts
            mirror.metrics(new, step)
        with self.writing():
            self.mlflow.log_metrics(new, step=step)

    def describe(self, text: str) -> None:
        """Set the description of the run, which its page in MLflow shows as Markdown."""
        with self.writing():
            self.mlflow.set_tag("mlflow.note.content", text)

    def images(self, images: Mapping[str, np.ndarray], step: int) -> None:
        """Log images (H,W,3) uint8. Each key is a row of the run's image grid, with a slider over the steps."""
        from PIL import Image

        for mirror in self.mirrors:
            mirror.images(images, step)
        with TemporaryDirectory() as folder:
            for key, pixels in images.items():
                # MLflow's grid finds images by names of this form. A fixed name lets a second image replace the first.
                # MLflow's `log_image` creates a new name each time, and returns before the files are written.
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
        """Log columns of equal length as rows of a step; MLflow compares tables of one `artifact_file` across runs."""
        if not (self.logged and step in self._steps_of(artifact_file)):  # a new run has no rows yet
            rows = {name: list(column) for name, column in columns.items()}
            with self._writing():
                self.mlflow.log_table({"step": [step] * len(next(iter(rows.values()))), **rows}, artifact_file)

    def artifacts(self, folder: Path, artifact_path: str | None = None) -> None:
        """Log a copy of every file in `folder`."""
        with self._writing():
            self.mlflow.log_artifacts(str(folder), artifact_path)

    def keep(self, folder: Path) -> None:
        """Log the files of a failed run as `artifacts` does, without retries and without a second error."""
        with _in_haste(), suppress(OSError):
            self.artifacts(folder)

    def artifact(self, file: Path, artifact_path: str | None = None) -> None:
        """Log a copy of one file."""
        with self._writing():
            self.mlflow.log_artifact(str(file), artifact_path)

    def dataset(self, name: str, digest: str, source: Path, context: str = "training") -> None:
        """Log the data version; the runs table shows `name (digest)`. MLflow keeps 36 characters of the digest.

        A source inside of the project is logged relative to it, so it stays right when the project moves.
        """
        data, place, root = self.mlflow.data, source.resolve(), self.root.resolve()
        inside = place.is_relative_to(root)
        origin = data.sources.LocalArtifactDatasetSource(str(place.relative_to(root)) if inside else place.as_uri())
        version = data.meta_dataset.MetaDataset(origin, name=name, digest=digest[:36])
        with self.writing():
            write_shared(self.mlflow, lambda: self.mlflow.log_input(version, context=context))

    def model(self, model: torch.nn.Module, *, card: ModelCard, step: int = 0) -> str:
        """Log a model of pictures (B,H,W,C) uint8, of any size, as the run's model and return its URI.

        `mlflow.pytorch.load_model(uri)` returns pictures -> logits (B,K) in evaluation mode, and does not need ncflow.
        It is a traced graph; unlike a pickle it runs no foreign code when loaded. For features, use the checkpoint in
        the run folder. The metrics of `step` are linked to the model, those of the test split with the training data.
        """
        if (there := self._whole_model(card.file_name)) is None:
            model = deepcopy(model).cpu().eval()
            _refuse_full(Path(gettempdir()), model)
            with self._writing(), TemporaryDirectory() as folder:
                there = self._log_model(model, card, step, Path(folder) / "model")
        if card.register and there:
            self._register(there, card)
        return there

    def _log_model(self, model: torch.nn.Module, card: ModelCard, step: int, folder: Path) -> str:
        """Write a model to `folder` and log it.

        MLflow's `log_model` would load the model again and read the history of every metric, which takes as long.
        """
        mlflow, client, run = self.mlflow, self.mlflow.MlflowClient(), self.mlflow.get_run(self.run_id)
        tags = {**_NOBODY, **card.tags, "mlflow.note.content": card.description}
        logged = mlflow.initialize_logged_model(
            name=card.file_name, source_run_id=self.run_id, tags=tags, params=run.data.params
        )
        for tag in _local_remote(logged.tags):
            client.delete_logged_model_tag(logged.model_id, tag)
        described = mlflow.models.Model(
            artifact_path=logged.artifact_location,
            model_uuid=logged.model_id,
            model_id=logged.model_id,
            run_id=self.run_id,
            metadata=dict(card.metadata),
        )
        _save_model(mlflow, model, folder, described)
        client.log_model_artifacts(logged.model_id, str(folder))
        client.log_outputs(self.run_id, [mlflow.entities.LoggedModelOutput(logged.model_id, step)])
        client.log_batch(self.run_id, metrics=_metrics_of(mlflow, run, logged.model_id, step))
        mlflow.finalize_logged_model(logged.model_id, "READY")
        return str(logged.model_uri)

    def _register(self, uri: str, card: ModelCard) -> None:
        """Register the run's model under a name, as a new version, once for each run."""
        client, name = self.mlflow.MlflowClient(), card.register
        with self._writing():
            if client.search_model_versions(f"name = '{name}' and run_id = '{self.run_id}'"):
                return
            with redirect_stderr(StringIO()):  # it prints two lines for each version
                version = self.mlflow.register_model(uri, name, tags=dict(card.tags)).version
            client.update_model_version(name, version, description=card.description)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Inside, an error of the disk, the server or the bucket names the place of the artifacts."""
        try:
            with self.writing():
                yield
        except Exception as error:
            known = isinstance(error, OSError | self.mlflow.exceptions.MlflowException)
            if not known and type(error).__module__.partition(".")[0] not in _BUCKETS:
                raise
            place, uri = self.mlflow.active_run().info.artifact_uri, self.mlflow.get_tracking_uri()
            where = f"{place} of {uri}" if place.startswith("mlflow-artifacts:") else place
            reason = without_secrets(getattr(error, "strerror", None) or error, uri)
            shows_secret = without_secrets(error, uri) != str(error)
            raise unwritable(f"MLflow's artifacts to {without_secrets(where, uri)}", reason + advice_on(reason)) from (
                None if shows_secret else error
            )

    def _steps_of(self, artifact_file: str) -> set[int]:
        """The steps that have rows in a table."""
        files = [file.path for file in self.mlflow.artifacts.list_artifacts(run_id=self.run_id)]
        if artifact_file not in files:
            return set()
        return set(self.mlflow.load_table(artifact_file, run_ids=[self.run_id])["step"])

    def _whole_model(self, name: str) -> str | None:
        """The URI of the model logged before an interruption; deletes a model that is incomplete."""
        where = [self.mlflow.active_run().info.experiment_id]
        ours = f"source_run_id = '{self.run_id}' AND name = '{name}'"
        for model in self.mlflow.search_logged_models(where, filter_string=ours, output_format="list"):
            if model.status == "READY":
                return str(model.model_uri)
            self.mlflow.MlflowClient().delete_logged_model(model.model_id)
        return None


@dataclass(frozen=True)
class ModelCard:
    """What MLflow shows of a model: its name, a description, tags, and metadata of any plain values.

    `register` is the name in MLflow's registry that gets a version of it; None registers nothing.
    """

    name: str = "model"
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    register: str | None = None

    @property
    def file_name(self) -> str:
        """The name with `_` in place of the characters that MLflow refuses in names of models."""
        return re.sub(r"[/:.%\"']", "_", self.name)


def _save_model(mlflow: Any, model: torch.nn.Module, folder: Path, described: Any) -> None:
    """Write a model as a traced graph. The example's sizes all differ, because equal ones would stay equal."""
    import numpy as np
    import torch

    example = np.zeros((2, 9, 11, 3), np.uint8)
    with torch.no_grad():
        num_classes = model(torch.from_numpy(example)).shape[1]
    tensor, schema = mlflow.types.TensorSpec, mlflow.types.Schema
    inputs = schema([tensor(np.dtype(np.uint8), (-1, -1, -1, -1))])
    outputs = schema([tensor(np.dtype(np.float32), (-1, num_classes))])
    with without_inventory(), warnings.catch_warnings():  # of shared weights on a GPU: here all are on the CPU
        warnings.filterwarnings("ignore", message="No complete tensor found")
        import_model_writer()
        mlflow.pytorch.save_model(
            model,
            str(folder),
            mlflow_model=described,
            input_example=example,
            signature=mlflow.models.ModelSignature(inputs, outputs),
            serialization_format="pt2",
            pip_requirements=["mlflow", f"torch=={torch.__version__.partition('+')[0]}"],
        )


def _metrics_of(mlflow: Any, run: Any, model_id: str, step: int) -> list[Any]:
    """The metrics of a step of a run, linked to a model; those of the test split also to the run's data.

    Their times stay, so MLflow takes them as the same points.
    """
    data = next((each.dataset for each in run.inputs.dataset_inputs), None)
    found = []
    for metric in run.data.to_proto().metrics:
        linked = data if metric.key.startswith("test/") else None
        if metric.step == step:
            found.append(
                mlflow.entities.Metric(
                    *(metric.key, metric.value, metric.timestamp, metric.step),
                    model_id=model_id,
                    run_id=run.info.run_id,
                    dataset_name=linked and linked.name,
                    dataset_digest=linked and linked.digest,
                )
            )
    return found


def _watch(watched: bool) -> bool | None:
    """Whether MLflow logs the machine's load; None leaves it to the environment. Runs under a minute log nothing."""
    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)  # it would announce its start and its end
    for name, value in _EVERY_MINUTE.items():
        os.environ.setdefault(name, value)
    return None if _WATCH in os.environ else watched


@contextmanager
def _in_haste() -> Iterator[None]:
    """Inside, MLflow does not retry much: the call that failed has already waited for the server."""
    patience = os.environ.get(_RETRIES)
    os.environ[_RETRIES] = "1"
    try:
        yield
    finally:
        del os.environ[_RETRIES]
        if patience is not None:
            os.environ[_RETRIES] = patience


def _finished_runs(mlflow: Any, tags: Mapping[str, str]) -> list[Any]:
    """The finished runs with all of these tags (name -> value), the newest first."""
    asked = [*(f"tags.{name} = '{value}'" for name, value in tags.items()), "attributes.status = 'FINISHED'"]
    found: list[Any] = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=" AND ".join(asked),
        order_by=["attributes.start_time DESC"],
        output_format="list",
    )
    return found


def _is_database(mlflow: Any) -> bool:
    """Whether the store is a database on this machine; an exception may leave its transactions open."""
    return str(mlflow.get_tracking_uri()).startswith("sqlite:")


def _lost_run(mlflow: Any, attempt: str | None) -> str | None:
    """The run that an earlier process opened for this attempt, even if it was killed before it saved the ID."""
    if attempt is None:
        return None
    filter_string = f"tags.attempt = '{attempt}'"
    runs = mlflow.search_runs(search_all_experiments=True, filter_string=filter_string, output_format="list")
    return runs[0].info.run_id if runs else None


def _opened_run(mlflow: Any) -> str | None:
    """The run that `mlflow run` opened for this process, unless another configuration already uses it."""
    run_id = os.environ.pop("MLFLOW_RUN_ID", None)
    if not run_id:
        return None
    try:
        params = mlflow.get_run(run_id).data.params
    except mlflow.exceptions.MlflowException as error:
        if "RESOURCE_DOES_NOT_EXIST" not in str(getattr(error, "error_code", "")):
            raise
        raise ValueError(
            f"expected MLFLOW_RUN_ID to name a run in {without_secrets(mlflow.get_tracking_uri())}, got '{run_id}', "
            "which does not exist; unset it, or name the store of that run in MLFLOW_TRACKING_URI"
        ) from None
    return None if any(key.startswith("cfg.") for key in params) else run_id


def _strings(values: Mapping[str, object]) -> dict[str, str]:
    """Values as text, cut to the length that MLflow accepts; None is left out."""
    return {key: str(value)[:_LONGEST] for key, value in values.items() if value is not None}


class NullMlflow:
    """Replacement for mlflow in processes that do not log: accepts any attribute and any call, without effect."""

    def __getattr__(self, name: str) -> NullMlflow:
        return self

    def __call__(self, *args: object, **options: object) -> NullMlflow:
        return self

    def __iter__(self) -> Iterator[NullMlflow]:
        return iter(())


def _refuse_full(folder: Path, model: torch.nn.Module) -> None:
    """Raise OSError if a model does not fit in a folder. On a full disk torch's writer would abort the process."""
    needed = sum(tensor.nbytes for tensor in model.state_dict().values()) + _PROGRAM
    if (free := disk_usage(folder).free) < needed:
        raise unwritable(folder, f"a copy of the model needs {needed} bytes there, and {free} are free")


def _end(mlflow: Any, run: Any, status: str, began: float) -> None:
    """End a run. Its end lies behind its start by the seconds since `began`, if somebody has set the clock back."""
    mlflow.end_run(status)
    earliest = run.info.start_time + round(1000 * (time.monotonic() - began))
    if time.time() * 1000 < earliest:
        mlflow.MlflowClient().set_terminated(run.info.run_id, status, end_time=earliest)


def _local_remote(tags: Mapping[str, str]) -> list[str]:
    """The name of MLflow's tag of the git remote, if that is a path of this machine, which may hold a user's name."""
    remote = tags.get(_REMOTE, "")
    local = remote and (remote.startswith("file:") or not re.match(r"[a-z+]+://|[\w.@-]{2,}:", remote))
    return [_REMOTE] if local else []


# Without these, MLflow stores the user's name and the path of ncflow's files on this machine.
_NOBODY = {"mlflow.user": "", "mlflow.source.name": "ncflow", "mlflow.source.type": "LOCAL"}
_PROGRAM = 2**21  # bytes of a model's graph and its description, rounded up
_REMOTE = "mlflow.source.git.repoURL"
_WATCH = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
_EVERY_MINUTE = {"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "10", "MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING": "6"}
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"  # MLflow's default, 7, takes about four minutes
_BUCKETS = ("boto3", "botocore", "google", "azure")  # packages with errors of their own for a bucket
_THUMBNAIL = 256  # pixels, as in MLflow
_LONGEST = 5000  # characters; MLflow takes 6,000 in a parameter and 8,000 in a tag, older servers take 5,000
