"""Import what a run uses of MLflow, with telemetry and messages off: for the fork server of warm runs."""

from contextlib import suppress
from importlib import import_module

from ncflow.tracking.light import import_model_writer
from ncflow.tracking.stores import _import_mlflow

# MLflow imports these when it opens a database or saves a model. Another version may not have all of them.
MODULES = (
    "mlflow.pyfunc.loaders",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "mlflow.tracing.processor.base_mlflow",
    "mlflow.utils.search_logged_model_utils",
    "alembic.command",
    "alembic.config",
    "git",
    "pyarrow.pandas_compat",
    "sqlalchemy.dialects.sqlite",
    "networkx",
    "sympy.tensor.tensor",
    "torch._dynamo",
    "torch._functorch.aot_autograd",
    "torch._inductor.codecache",
    "torch._inductor.ir",
    "torch.export._trace",
    "torch.export.pt2_archive",
    "torch.fx.experimental.validator",
    "torch.utils.serialization.config",
)

_import_mlflow()
import_model_writer()
for module in MODULES:
    with suppress(ImportError):
        import_module(module)
