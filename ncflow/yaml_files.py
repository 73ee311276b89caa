"""YAML read strictly: one meaning for every text, and no text that grows without end or constructs objects."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml


def read_yaml(path: str | Path, *, aliases: bool = True) -> Any:
    """The content of a YAML file; a ValueError names the file and the line. Options as of `parse_yaml`."""
    try:
        return parse_yaml(Path(path).read_text(encoding="utf-8"), aliases=aliases)
    except ValueError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None


def parse_yaml(text: str, *, aliases: bool = True) -> Any:
    """The value of a YAML text, numbers such as 1e-3 read as numbers; a ValueError names the place of an error.

    `aliases=False` refuses aliases, for files of others: a few of them grow without end, or hold themselves.
    """
    try:
        return yaml.load(text, Loader=_Loader if aliases else _PlainLoader)  # SafeLoaders: they construct no objects
    except Exception as error:  # of values such as 2020-13-45 PyYAML lets any error of Python's own through
        raise ValueError(" ".join(str(error).split())) from None


def dump_yaml(value: Any) -> str:
    """Plain data as YAML text, keys in their order."""
    return yaml.safe_dump(value, sort_keys=False)


class _Loader(yaml.SafeLoader):
    """YAML 1.2, where 1e-3 is a number, << no key, and a key given twice an error: PyYAML would forget the first."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse merge keys: merges of merges grow without end, and a few lines of them fill the memory."""
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                advice = "merge keys (<<) are not YAML 1.2; write the keys out, or give them with --set"
                raise yaml.constructor.ConstructorError(None, None, advice, key.start_mark)
        super().flatten_mapping(node)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """Refuse plain scalars that readers of YAML 1.1 and 1.2 take for different values."""
        if isinstance(node, yaml.ScalarNode) and node.style is None:
            for pattern, advice in _AMBIGUOUS.items():
                if pattern.fullmatch(node.value):
                    raise yaml.constructor.ConstructorError(None, None, f"'{node.value}': {advice}", node.start_mark)
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := [str(key) for i, key in enumerate(keys) if key in keys[:i]]:
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(twice)} given twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _PlainLoader(_Loader):
    """YAML without aliases."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "an alias, which ncflow never writes", self.get_mark())
        return super().compose_node(parent, index)


def _whole(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole)

# The core schema of YAML 1.2: true and false alone are truths, 1:30 and 2020-01-01 are text, 0o17 is octal.
_Loader.yaml_implicit_resolvers = {}
_DIGITS = list("-+.0123456789")
for tag, pattern, first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", _DIGITS),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), first)
# What YAML 1.1 reads as a number or a truth, and 1.2 as something else: a user may mean either.
_AMBIGUOUS = {
    re.compile(pattern): f"{advice}; quote it where it is text"
    for pattern, advice in {
        r"[-+]?0[0-9]+": "a number that starts with 0 is octal to some readers: write it without the 0",
        r"[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?": "digits with colons are seconds to some readers: write a number",
        r"[-+]?[0-9][0-9_]*_[0-9_.]*([eE][-+]?[0-9]+)?": "digits with _ are a number to some readers: leave out the _",
        r"0b[01]+": "0b is a number to some readers: write it in decimal digits",
        r"(?i:yes|no|on|off)": "yes, no, on and off are truths to some readers: write true or false",
    }.items()
}
