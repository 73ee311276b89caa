"""Whether the data behind a snapshot has changed: a cheap listing decides if its content must be read again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ncflow.data.images import ImageSource, printable
from ncflow.data.labels import shown

NAMED = 50_000  # files up to which a listing is kept by name, so that a change can be told by name


@dataclass(frozen=True)
class Listing:
    """The files of a source below `root`: path -> size in bytes, and when content and entry last changed, in ns.

    Archives and copies keep the time of the content, and two folders can agree in all sizes and times. So the time of
    the entry, which nobody can set, and the folder itself belong to it.
    """

    root: str
    files: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, root: Path | None, splits: Mapping[str, ImageSource]) -> Listing:
        """That of the splits of a source; empty for what is built in."""
        return cls.of_files(root, (file for source in splits.values() for file in source.files))

    @classmethod
    def of_files(cls, root: Path | None, files: Iterable[Path]) -> Listing:
        stats = {_below(root, file): file.stat() for file in sorted(set(files))}
        times = {name: (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats.items()}
        return cls(printable(str(root.resolve())) if root is not None else "", times)

    @cached_property
    def content(self) -> str:
        """sha256 over paths and sizes: the same wherever the files are copied to."""
        return _sha256([(name, size) for name, (size, *_) in self.files.items()])

    @cached_property
    def stamp(self) -> str:
        """sha256 over folder, paths, sizes and times: the same while nobody touches the files."""
        return _sha256([self.root, list(self.files.items())])

    def changes(self, now: Listing) -> str:
        """What is different now, for a message."""
        kinds = {
            "added": now.files.keys() - self.files.keys(),
            "removed": self.files.keys() - now.files.keys(),
            "changed": {name for name in self.files.keys() & now.files.keys() if self._differs(now, name)},
        }
        return "; ".join(
            f"{len(names)} files {kind} ({shown(sorted(names))})" for kind, names in kinds.items() if names
        )

    def _differs(self, now: Listing, name: str) -> bool:
        """Whether a file may have changed; files of another folder have other times without a change."""
        here, there = self.files[name], now.files[name]
        return here != there if self.root == now.root else here[0] != there[0]


def remembered(record: Path) -> Listing | None:
    """The listing that this machine keeps of a source, or None where there is none that can be read."""
    try:
        kept = json.loads(record.read_text(encoding="utf-8"))
        files = {str(name): (int(size), int(time), int(entry)) for name, (size, time, entry) in kept["files"].items()}
        return Listing(str(kept["root"]), files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def remember(record: Path, listing: Listing) -> None:
    """Keep a listing, so that the content need not be read again; where that is not possible it will be."""
    files = listing.files if len(listing.files) <= NAMED else {f"sha256 {listing.stamp}": (len(listing.files), 0, 0)}
    partial = record.with_name(f"{record.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps({"root": listing.root, "files": files}), encoding="utf-8")
        partial.replace(record)
    except OSError:
        partial.unlink(missing_ok=True)


def is_same(kept: Listing | None, now: Listing) -> bool:
    """Whether a listing that was kept says that nobody has touched the files."""
    return kept is not None and (kept.stamp == now.stamp or f"sha256 {now.stamp}" in kept.files)


def _below(root: Path | None, file: Path) -> str:
    name = file.relative_to(root) if root is not None and file.is_relative_to(root) else file
    return printable(name.as_posix())


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
