"""Name the extra of ncflow that installs a missing package, in one message for all of ncflow's imports."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from typing import Any


def explain_missing_packages() -> None:
    """Let every import of ncflow that fails name its remedy, from now on in this process."""
    if not any(isinstance(finder, ExtraFinder) for finder in sys.meta_path):
        sys.meta_path.append(ExtraFinder())


class MissingPackage(ModuleNotFoundError):
    """A package that ncflow imports and that is not installed. The message has the command that installs it."""


class ExtraFinder:
    """The last of Python's finders: where no other one finds a module that ncflow imports, raise MissingPackage.

    Imports by other packages stay as they are: many of them try a package and do without it.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        importer = _importer()
        if path is None and importer.partition(".")[0] == "ncflow" and name != "ncflow":
            raise MissingPackage(f"{importer} needs {remedy(name)}", name=name)


def require(*modules: str) -> None:
    """Raise MissingPackage now for a module that is needed later, before work starts that would be lost."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise MissingPackage(f"ncflow needs {remedy(module)}", name=module)


def remedy(module: str) -> str:
    """The package of a missing module, with the command that installs it: an extra of ncflow, or the package alone."""
    package = PACKAGES.get(module, module)
    extra = dict(_optional()).get(_plain(package))
    wanted = shlex.quote(f"ncflow[{extra}]" if extra else package)
    return f"the package {package}, which is not installed; install it with `pip install {wanted}`"


def _optional() -> Iterator[tuple[str, str]]:
    """Package -> extra, as the metadata of the installed ncflow has them. A bare source tree has none."""
    from importlib.metadata import PackageNotFoundError, requires  # slow to import, and seldom needed

    try:
        lines = requires("ncflow") or []
    except PackageNotFoundError:
        return
    for line in lines:
        if (found := _REQUIREMENT.match(line)) and found["extra"] != "all":
            yield _plain(found["package"]), found["extra"]


def _plain(package: str) -> str:
    """The name by which all spellings of a package are equal."""
    return re.sub(r"[-_.]+", "-", package).lower()


def _importer() -> str:
    """The name of the module whose code imports now, seen from a finder."""
    frame = sys._getframe(2)
    while frame.f_back and frame.f_globals.get("__name__", "") in _IMPORT_SYSTEM:
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", ""))


PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}  # module -> package of another name
_IMPORT_SYSTEM = ("importlib", "importlib._bootstrap", "importlib._bootstrap_external")
_REQUIREMENT = re.compile(r"(?P<package>[\w.-]+).*;.*extra *== *['\"](?P<extra>[\w.-]+)['\"]")
