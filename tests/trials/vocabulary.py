"""A million features of a language model's size, streamed: `python tests/trials/vocabulary.py` takes some minutes.

N = 1,000,000 features of width 768 in 50,257 classes give all metrics of moments in at most 4 GB and five minutes on
two cores. Exit code 0 if both hold, 1 if not.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.classes import stream

MOST_SECONDS, MOST_GIGABYTES = 300, 4


def main() -> int:
    """Measure, print what came, and return the exit code."""
    start = time.perf_counter()
    metrics = stream(1_000_000, 50_257, 768)()
    seconds = time.perf_counter() - start
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    sys.stdout.write(f"{len(metrics)} metrics in {seconds:.0f} s, peak of the process {gigabytes:.1f} GB\n")
    return int(seconds > MOST_SECONDS or gigabytes > MOST_GIGABYTES)


if __name__ == "__main__":
    sys.exit(main())
