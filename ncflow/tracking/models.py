"""Models in MLflow, as files: an exported program is fetched, and nothing is unpickled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ncflow.tracking.stores import store

SCHEMES = ("models:/", "runs:/")


@contextmanager
def fetched_model(root: Path, uri: str) -> Iterator[Path]:
    """Inside, the exported program (.pt2) of a model such as models:/<name>/<version> or runs:/<id>/model is a file.

    Raises ValueError for an unknown model, and for one that MLflow stores as a pickle, which could run foreign code.
    """
    with store(root) as mlflow, TemporaryDirectory() as folder:
        try:
            there = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))
        except (mlflow.exceptions.MlflowException, OSError) as error:
            raise ValueError(f"no model {uri}: {' '.join(str(error).split())[:200]}") from error
        if not (there / "MLmodel").is_file():
            raise ValueError(
                f"{uri} is no model of MLflow: expected a file MLmodel, as `mlflow.pytorch.log_model` writes"
            )
        program = there / "data" / "model.pt2"
        if not program.is_file():
            raise ValueError(
                f"{uri} is not opened, because it holds no exported program: pickles could run foreign code. "
                "Log it with mlflow.pytorch.log_model(…, serialization_format='pt2')"
            )
        yield program
