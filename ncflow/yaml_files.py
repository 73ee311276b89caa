"""Read YAML strictly: every text has one meaning, cannot construct objects, and cannot expand without limit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml


def read_yaml(path: str | Path, *, aliases: bool = True) -> Any:
    """The content of a YAML file. Raises ValueError with the file and the line. `aliases` is as in `parse_yaml`."""
    try:
        return parse_yaml(Path(path).read_text(encoding="utf-8"), aliases=aliases)
    except ValueError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None


def parse_yaml(text: str, *, aliases: bool = True) -> Any:
    """The value of a YAML text, where 1e-3 is a number. Raises ValueError with the place of an error.

    `aliases=False` rejects aliases, for files of others. A few aliases can expand without limit or form a cycle.
    """
    try:
        return yaml.load(text, Loader=_Loader if aliases else _PlainLoader)  # SafeLoaders: they construct no objects
    except Exception as error:  # for values such as 2020-13-45 PyYAML raises errors of other types
        raise ValueError(" ".join(str(error).split())) from None


def dump_yaml(value: Any) -> str:
    """Plain data as YAML text. Keys keep their order."""
    return yaml.safe_dump(value, sort_keys=False)


class _Loader(yaml.SafeLoader):
    """YAML 1.2: 1e-3 is a number, << is no key, and a key given twice is an error. PyYAML would drop the first."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Reject merge keys: nested merges in a few lines fill the memory."""
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                advice = "merge keys (<<) are not YAML 1.2; write the keys out, or give them with --set"
                raise yaml.constructor.ConstructorError(None, None, advice, key.start_mark)
        super().flatten_mapping(node)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """Reject plain scalars that readers of YAML 1.1 and 1.2 read as different values."""
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
            raise yaml.composer.ComposerError(None, None, "got an alias, which ncflow never writes", self.get_mark())
        return super().compose_node(parent, index)


def _whole(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole)

# The core schema of YAML 1.2: only true and false are booleans, 1:30 and 2020-01-01 are text, 0o17 is octal.
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
# YAML 1.1 reads these as a number or a boolean, and 1.2 reads them differently. A user may mean either.
_AMBIGUOUS = {
    re.compile(pattern): f"{advice}; quote it if it is text"
    for pattern, advice in {
        r"[-+]?0[0-9]+": "a number that starts with 0 is octal to some readers: write it without the 0",
        r"[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?": "digits with colons are seconds to some readers: write a number",
        r"[-+]?[0-9][0-9_]*_[0-9_.]*([eE][-+]?[0-9]+)?": "digits with _ are a number to some readers: leave out the _",
        r"0b[01]+": "0b is a number to some readers: write it in decimal digits",
        r"(?i:yes|no|on|off)": "yes, no, on and off are booleans to some readers: write true or false",
    }.items()
}
