"""Whether a snapshot's source data has changed. A cheap listing decides if its content must be read again."""

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

NAMED = 50_000  # largest number of files whose names a listing keeps, to name the changed files


@dataclass(frozen=True)
class Listing:
    """The files of a source below `root`: path -> size in bytes, and when content and entry last changed, in ns.

    Archives and copies keep the time of the content, and two folders can agree in all sizes and times. So the listing
    also has the folder and the time of the entry, which users cannot set.
    """

    root: str
    files: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, root: Path | None, splits: Mapping[str, ImageSource]) -> Listing:
        """The listing of the splits of a source; empty for built-in data."""
        return cls.of_files(root, (file for source in splits.values() for file in source.files))

    @classmethod
    def of_files(cls, root: Path | None, files: Iterable[Path]) -> Listing:
        stats = {_below(root, file): file.stat() for file in sorted(set(files))}
        times = {name: (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats.items()}
        return cls(printable(str(root.resolve())) if root is not None else "", times)

    @cached_property
    def content(self) -> str:
        """sha256 over paths and sizes: the same for copies of the files."""
        return _sha256([(name, size) for name, (size, *_) in self.files.items()])

    @cached_property
    def stamp(self) -> str:
        """sha256 over folder, paths, sizes and times: the same until the files are touched."""
        return _sha256([self.root, list(self.files.items())])

    def changes(self, now: Listing) -> str:
        """The files that were added, removed or changed, for a message."""
        kinds = {
            "added": now.files.keys() - self.files.keys(),
            "removed": self.files.keys() - now.files.keys(),
            "changed": {name for name in self.files.keys() & now.files.keys() if self._differs(now, name)},
        }
        return "; ".join(
            f"{len(names)} files {kind} ({shown(sorted(names))})" for kind, names in kinds.items() if names
        )

    def _differs(self, now: Listing, name: str) -> bool:
        """Whether a file may have changed. In another folder times differ anyway, so only sizes count."""
        here, there = self.files[name], now.files[name]
        return here != there if self.root == now.root else here[0] != there[0]


def remembered(record: Path) -> Listing | None:
    """The listing of a source that this machine keeps, or None if it is missing or unreadable."""
    try:
        kept = json.loads(record.read_text(encoding="utf-8"))
        files = {str(name): (int(size), int(time), int(entry)) for name, (size, time, entry) in kept["files"].items()}
        return Listing(str(kept["root"]), files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def remember(record: Path, listing: Listing) -> None:
    """Keep a listing, so the content need not be read again. If writing fails, it is read again."""
    files = listing.files if len(listing.files) <= NAMED else {f"sha256 {listing.stamp}": (len(listing.files), 0, 0)}
    partial = record.with_name(f"{record.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps({"root": listing.root, "files": files}), encoding="utf-8")
        partial.replace(record)
    except OSError:
        partial.unlink(missing_ok=True)


def is_same(kept: Listing | None, now: Listing) -> bool:
    """Whether a kept listing shows that the files are untouched."""
    return kept is not None and (kept.stamp == now.stamp or f"sha256 {now.stamp}" in kept.files)


def _below(root: Path | None, file: Path) -> str:
    name = file.relative_to(root) if root is not None and file.is_relative_to(root) else file
    return printable(name.as_posix())


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
