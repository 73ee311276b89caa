"""Whole models in one file: exported programs and TorchScript, opened only if nothing in them can run foreign code.

`torch.export.load` unpickles what an archive marks as pickled, and evaluates its expressions. TorchScript is a program,
and two of its operators read and write files. So each archive is read through first, and refused if it goes beyond
tensors, plain operators and plain names.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch


def kind_of(file: Path) -> str:
    """The kind of model in an archive by its content: "exported", "scripted", or "weights" for tensors by key.

    Raises ValueError for a file that is missing, or is no archive of torch.
    """
    if not file.is_file():
        raise ValueError(f"no file {file}; expected an exported program (.pt2) or a TorchScript file")
    names = set(_open(file).get_all_records())
    if any(name.startswith("models/") for name in names):
        return "exported"
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return "scripted"
    if "data.pkl" in names:
        return "weights"
    raise ValueError(f"{file} holds no model: expected an exported program (.pt2) or a TorchScript file")


def load_exported(file: Path) -> torch.export.ExportedProgram:
    """The exported program of a .pt2 file. Raises ValueError if it is damaged, or could run foreign code."""
    _refuse(file, _faults_of_exported(_open(file)))
    with _readable(file), file.open("rb") as content:
        return torch.export.load(content)


def load_scripted(file: Path) -> torch.jit.ScriptModule:
    """The TorchScript module of a file, on the CPU in evaluation mode. Raises ValueError as `load_exported` does."""
    _refuse(file, _faults_of_scripted(_open(file)))
    with _readable(file), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch advises torch.export to those who write such files
        load: Callable[..., torch.jit.ScriptModule] = torch.jit.load
        return load(file, map_location="cpu").eval()


def _open(file: Path) -> Any:
    """The reader that torch itself uses: another one could see another content."""
    try:
        return torch._C.PyTorchFileReader(str(file))
    except RuntimeError as error:
        raise ValueError(f"{file} is damaged, or no archive of torch: {_brief(error)}") from error


class _readable:
    """Inside, an error of torch's loaders names the file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            raise ValueError(f"{self.file} cannot be loaded: {_brief(error)}") from error


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _refuse(file: Path, faults: Iterator[str]) -> None:
    try:
        fault = next(faults, None)
    except Exception as error:
        raise ValueError(f"{file} is damaged: {_brief(error)}") from error
    if fault:
        raise ValueError(
            f"{file} is not opened, because it could run foreign code: it has {fault}; "
            "save a state_dict, and name its model with --model and --checkpoint"
        )


def _faults_of_scripted(archive: Any) -> Iterator[str]:
    """What TorchScript code names that reaches beyond tensors. Its pickles are read without Python's classes."""
    for name in archive.get_all_records():
        if name.startswith("code/") and name.endswith(".py"):
            code = archive.get_record(name).decode("utf-8", "replace")
            if found := FILE_OPERATORS.search(code):
                yield f"the operator '{found[0]}' in {name}"


def _faults_of_exported(archive: Any) -> Iterator[str]:
    names = archive.get_all_records()
    yield from (f"the record {name}" for name in names if not RECORDS.fullmatch(name))
    for name in names:
        if name.startswith("data/sample_inputs/"):
            try:
                torch.load(io.BytesIO(archive.get_record(name)), map_location="cpu", weights_only=True)
            except Exception:
                yield f"more than tensors in {name}"
        elif name.endswith(".json"):
            content = json.loads(archive.get_record(name))
            yield from _pickled(name, content) if name.startswith("data/") else _texts(name, content)


def _pickled(name: str, payload: Any) -> Iterator[str]:
    """The entries of a table of tensors that would be unpickled."""
    for key, entry in payload["config"].items():
        if entry.get("use_pickle") is not False or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
            yield f"a pickle for {key[:80]!r} in {name}"


def _texts(where: str, content: Any, key: str = "") -> Iterator[str]:
    """Texts of a program that could become Python code: torch builds its graph's code from names and expressions."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            if name != "metadata":  # source lines and modules, for messages
                yield from _texts(where, name)
                yield from _texts(where, value, name)
    elif isinstance(content, list):
        for value in content:
            yield from _texts(where, value, key)
    elif isinstance(content, str) and not TEXTS.get(key, _is_name)(content):
        yield f"{content[:80]!r} as {key or 'a name'} in {where}"


def _is_name(text: str) -> bool:
    return re.fullmatch(r"[\w.]*", text, re.ASCII) is not None


def _is_operator(text: str) -> bool:
    return OPERATORS.fullmatch(text) is not None and not FILE_OPERATORS.search(text)


def _is_expression(text: str) -> bool:
    """Whether an expression of sizes has only symbols, numbers and functions of sizes."""
    text = SYMBOL.sub(r"\1", text)
    words = re.findall(r"[A-Za-z_]\w*", text)
    return re.fullmatch(r"[\w ()+\-*/,<>=.]*", text, re.ASCII) is not None and all(
        SIZE_FUNCTIONS.fullmatch(word) for word in words
    )


def _is_tree(text: str) -> bool:
    """Whether a description of nested inputs has only plain containers, and keys that are names."""
    return re.fullmatch(r'(?:[\w\s.,:{}\[\]"]|\\")*', text, re.ASCII) is not None and "__enum__" not in text


def _is_plain(text: str) -> bool:
    """Whether a text argument of an operator, such as "bilinear" or a message, stays inside of quotes."""
    return re.fullmatch(r"[ !#-\[\]-~]*", text, re.ASCII) is not None


# What TorchScript and exported programs could read or write files with.
FILE_OPERATORS = re.compile(r"\b(save|from_file|load_tensor)\b")
RECORDS = re.compile(
    r"\.?data/(weights|constants)/((weight|tensor)_\d+|\w+_config\.json)|data/sample_inputs/\w+\.pt|models/\w+\.json"
    r"|archive_format|archive_version|byteorder|version|\.data/\w+|extra/.*"
)
OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|torchvision)\.\w+\.\w+|torch\.sym_\w+"
    r"|torch\.ops\.higher_order\.(wrap_with_autocast|wrap_with_set_grad_enabled|cond)"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|math\.(ceil|floor|trunc|sqrt)",
    re.ASCII,
)
SYMBOL = re.compile(r"Symbol\('([a-z]{1,4}\d+)'(?:, \w+=(?:True|False))*\)", re.ASCII)
SIZE_FUNCTIONS = re.compile(
    "Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|ModularIndexing|IntTrueDiv|FloatTrueDiv|TruncToInt|FloorToInt|CeilToInt|"
    "RoundToInt|ToFloat|Max|Min|Where|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|Identity|oo|int_oo|True|False|true|false|Add|Mul|Pow|"
    "Integer|Rational|Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan|[a-z]{1,4}\\d+",
    re.ASCII,
)
# key of a text in a program -> whether it is harmless; the guards are never run
TEXTS: dict[str, Callable[[str], bool]] = {
    "target": _is_operator,
    "expr_str": _is_expression,
    "in_spec": _is_tree,
    "out_spec": _is_tree,
    "as_string": _is_plain,
    "as_strings": _is_plain,
    "as_float": lambda text: text in ("Infinity", "-Infinity", "NaN"),
    "torch_version": _is_plain,
    "guards_code": lambda text: True,
}
