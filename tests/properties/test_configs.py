"""Configurations: nested data, a file or --set is taken as it was said, or refused by its path."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from thrown import refusal, throw

from ncflow import assembly
from ncflow.checks import LARGEST
from ncflow.nn.heads import HEADS
from ncflow.params import WIDEST, Params, head_section, load_params, make_params

REPOSITORY = Path(__file__).parents[2]
VALID = [make_params({"head": {"name": name}}).model_dump(mode="json") for name in HEADS]
EXAMPLE = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
OPEN = ("loss_options", "optimizer_options", "schedule_options")  # sections whose keys are those of a table's row


def paths(values: Any, *above: str) -> list[tuple[str, ...]]:
    """The way to every key, sections included."""
    if not isinstance(values, dict):
        return []
    return [path for key, value in values.items() for path in [(*above, key), *paths(value, *above, key)]]


def section_of(values: Any, path: tuple[str, ...]) -> Any:
    for key in path[:-1]:
        values = values[key]
    return values


def replaced(values: Any, path: tuple[str, ...], value: Any) -> Any:
    values = deepcopy(values)
    section_of(values, path)[path[-1]] = value
    return values


def said(path: tuple[str, ...]) -> str:
    """The path as a message names it; a head of an unknown name is refused as a whole."""
    return ".".join(path).removesuffix(".name") if path[0] == "head" else ".".join(path)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 1, 2, 7, 8, 2**31, 2**32, 2**63, 10**30])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", ".", "..", "/", "linear", "full", "K", "K+1", "ema", "nan", "1e-3", "true", "null", "\0"])
)
anything = st.recursive(
    scalars | st.binary(max_size=4) | st.dates() | st.just(object) | st.complex_numbers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=6) | st.integers(), inner, max_size=3)
        | st.tuples(inner)
    ),
    max_leaves=6,
)
wrong_for_all = st.sampled_from(
    [math.nan, math.inf, -math.inf, b"bytes", object, 1j, {1}, {2: 3}, {None: 1}, [[]], [{}], [math.nan]]
)
valid_configs = st.sampled_from(VALID)


@st.composite
def configs_and_paths(draw: st.DrawFn) -> tuple[Any, tuple[str, ...]]:
    values = draw(valid_configs)
    return values, draw(st.sampled_from(paths(values)))


@throw(500)
@given(configs_and_paths(), wrong_for_all)
def test_a_value_that_no_key_can_have_is_refused_by_its_path(config_and_path, value):
    config, path = config_and_path
    message = refusal(lambda: make_params(replaced(config, path, value)))
    assert message is not None and said(path) in message


@throw(300)
@given(configs_and_paths(), anything)
def test_any_value_is_taken_unchanged_or_refused_by_its_path(config_and_path, value):
    config, path = config_and_path
    taken = []
    message = refusal(lambda: taken.append(make_params(replaced(config, path, value))))
    if message is not None:
        assert said(path) in message
    elif path[-1] != "head" and not isinstance(value, dict):
        (params,) = taken
        assert section_of(params.model_dump(), path)[path[-1]] == value


@throw(150)
@given(configs_and_paths(), st.text(max_size=10) | st.integers() | st.none())
def test_a_key_that_is_no_text_is_refused_by_its_place(config_and_path, key):
    config, path = config_and_path
    section = section_of(config, path)
    assume(key not in section and not {*path[:-1]} & {*OPEN})
    message = refusal(lambda: make_params(replaced(config, (*path[:-1], key), 1)))
    assert message is not None
    assert ".".join(map(str, (*path[:-1], key))) in message


@throw(100)
@given(anything)
def test_a_configuration_of_any_shape_is_taken_or_refused(values):
    taken = []
    if refusal(lambda: taken.append(make_params(values))) is None:
        assert taken == [Params()] or values


@throw(100)
@given(anything)
def test_a_run_name_that_is_taken_stays_in_its_folder(name):
    if refusal(lambda: make_params({"exp_name": name})) is None:
        assert (Path("/models") / name).resolve().parent == Path("/models") and not name.startswith(("-", "."))


# --- sizes ---

SCHEMA = Params.model_json_schema()
SCHEMA["properties"]["head"] = {"anyOf": [head_section(name).model_json_schema() for name in HEADS]}


def numbers(schema: Any, kind: str, *above: str) -> Iterator[tuple[str, ...]]:
    """The paths of all fields that may be of this kind, integer or number, those of every head among them."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    if schema.get("type") == kind:
        yield above
    for choice in [*schema.get("anyOf", []), *schema.get("oneOf", []), *filter(None, [schema.get("items")])]:
        yield from numbers(choice, kind, *above)
    for key, field in schema.get("properties", {}).items():
        yield from numbers(field, kind, *above, key)


SEARCH = {"solver": "riemannian", "max_iterations": 3}  # a search to a tolerance of almost 0 takes many seconds


def throw_at(path: tuple[str, ...], value: Any) -> str | None:
    """Why a configuration that has this value is refused; one that is taken is one that `--check` takes."""
    section = {"name": "vit_tiny"} if path[0] == "model" else {}  # which has all of its options
    if path[0] == "head":
        name = next(name for name in HEADS if path[1] in head_section(name).model_fields)
        section = {"name": name, **(SEARCH if name == "nearest_etf" else {})}
    inner = [value] if path == ("grid", "seed") else value
    for key in reversed(path[1:]):
        inner = {key: inner}
    values = {path[0]: section | inner if len(path) > 1 else inner}
    return refusal(lambda: assembly.check(make_params(values)))


@pytest.mark.parametrize("path", sorted({*numbers(SCHEMA, "integer")}), ids=".".join)
@pytest.mark.parametrize("value", [10**12, 10**30, 10**400, -(10**30), -1], ids=shortened)
def test_a_whole_number_beyond_any_machine_is_refused_by_its_path(path, value):
    in_bytes = path[-1].endswith("_bytes") and value > 0  # machines have terabytes
    message = throw_at(path, value * 10**6 if in_bytes else value)
    assert message is not None and ".".join(path) in message


@pytest.mark.parametrize("path", sorted({*numbers(SCHEMA, "number")}), ids=".".join)
@pytest.mark.parametrize("value", [1e308, -1e308, math.nan, math.inf, -math.inf, 10**400], ids=shortened)
def test_a_number_that_float32_cannot_hold_is_refused_by_its_path(path, value):
    message = throw_at(path, value)
    assert message is not None and ".".join(path) in message


@pytest.mark.parametrize("path", sorted({*numbers(SCHEMA, "number")}), ids=".".join)
@pytest.mark.parametrize("value", [1e30, 10**12, 1e-320, 0, -1])
def test_a_number_at_the_edge_is_taken_or_refused_by_its_path(path, value):
    message = throw_at(path, value)
    assert message is None or path[-1] in message


@pytest.mark.parametrize("value", [10**400, -(10**400), 1e308, [1, 10**400]], ids=shortened)
@pytest.mark.parametrize("options", OPEN)
def test_an_option_of_a_row_is_a_number_that_float32_can_hold(options, value):
    message = refusal(lambda: make_params({"train": {options: {"gain": value}}}))
    assert message is not None and f"train.{options}.gain: must be a number of at most 1e+30" in message


def test_every_kind_of_number_is_found_in_the_schema():
    whole, real = {*numbers(SCHEMA, "integer")}, {*numbers(SCHEMA, "number")}
    assert {("seed",), ("grid", "seed"), ("model", "num_features"), ("train", "batch_size")} < whole
    assert {("train", "lr"), ("head", "tolerance"), ("head", "momentum"), ("dataset", "val_fraction")} < real


def test_the_widest_features_are_those_of_the_geometry():
    assert WIDEST == LARGEST


# --- files ---


pieces = st.sampled_from(
    [*"{}[]&*!|>%@`'\",:-?# \n\t\0", "!!int ''", "!!float x", "!!bool x", "!!timestamp x", "!!map [1]", "!!set {a}",
     "<<: 1", "!!binary '='", "&a [*a]", "2020-13-45", "2020-01-01", "- ", "? ", ": ", "---\n", "...\n", "\ufeff",
     "0x", "0b", "1:99", "!!python/object/apply:os.system [false]", "!!omap [1]", "!!pairs [a]", "[[[[", "9" * 5000,
     ".nan", "-.inf"]
)  # fmt: skip


@st.composite
def mutated_files(draw: st.DrawFn) -> bytes:
    """The repository's own parameters with a few places changed."""
    content = EXAMPLE.encode()
    for _ in range(draw(st.integers(1, 3))):
        place, removed = draw(st.integers(0, len(content))), draw(st.integers(0, 6))
        put = draw(st.binary(max_size=3) | pieces.map(str.encode))
        content = content[:place] + put + content[place + removed :]
    return content


@throw(350)
@given(content=mutated_files() | st.binary(max_size=30) | st.lists(pieces, max_size=8).map("".join).map(str.encode))
def test_a_file_of_any_content_is_taken_or_refused_by_name(content, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "thrown.yaml"
    file.write_bytes(content)
    message = refusal(lambda: load_params(file))
    if message is not None:
        assert "thrown.yaml is not YAML" in message or re.search(r"^\S+: .* got |^unknown |configuration is", message)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=False)
)


def test_a_file_that_unfolds_without_end_is_refused_at_once(tmp_path):
    for text in (
        BOMB,
        BOMB + "train: {loss_options: {alpha: *j}}",
        BOMB + "exp_name: *j",
        BOMB + "dataset: {name: *j}",
        BOMB + "head: {name: *j}",
        BOMB + "head: *j",
        BOMB + "grid: {head: *j}",
        "train: &a {loss_options: *a}",
        "train: {loss_options: &a {alpha: *a}}",
        "grid: {seed: &a [*a]}",
        "train: {loss: " + "[" * 300 + "]" * 300 + "}",
        "[" * 100_000,
    ):
        (tmp_path / "bomb.yaml").write_text(text)
        message = refusal(lambda: load_params(tmp_path / "bomb.yaml"))
        assert message is not None and len(message) < 20_000


def merges(levels: int) -> str:
    """Mappings that each merge the one before nine times over."""
    first = "a0: &a0 {x: 1}\n"
    return first + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, levels))


@pytest.mark.parametrize("levels", [2, 5, 20])
def test_merge_keys_are_refused_with_line_and_remedy(tmp_path, levels):
    (tmp_path / "merges.yaml").write_text(merges(levels))
    words = r"merges.yaml is not YAML: merge keys \(<<\) are not YAML 1.2; write the keys out.* line 2, column 10"
    assert re.search(words, str(refusal(lambda: load_params(tmp_path / "merges.yaml"))))
    message = refusal(lambda: make_params({}, ["train={<<: {lr: 0.1}}"]))
    assert message is not None and "is not a YAML value" in message


def test_a_quoted_merge_key_is_a_key_like_any_other(tmp_path):
    (tmp_path / "quoted.yaml").write_text("'<<': {train: {lr: 0.5}}")
    assert "unknown key '<<'" in str(refusal(lambda: load_params(tmp_path / "quoted.yaml")))


# --- overrides ---

keys = st.sampled_from([".".join(path) for values in VALID for path in paths(values)])
values_of_overrides = st.text(max_size=10) | pieces | st.lists(pieces, max_size=4).map("".join)


@throw(300)
@given(keys | st.text(max_size=10), values_of_overrides)
def test_an_override_of_any_text_is_taken_or_refused_as_typed(key, value):
    message = refusal(lambda: make_params({}, [f"{key}={value}"]))
    if message is not None:
        assert "--set" in message or f"{key}={value}".split("=")[0].split(".")[0].strip() in message


@example("a." * 20_000 + "b=1")
@example("train=" + "[" * 500)
@example("train.loss_options." + "a." * 2000 + "b=1")
@throw(150)
@given(st.text(max_size=30))
def test_any_text_as_an_override_is_taken_or_refused(text):
    refusal(lambda: make_params({}, [text]))
