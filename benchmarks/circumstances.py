"""When, where and by which command a benchmark was measured, for docs/benchmarks.md."""

import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path


def circumstances() -> dict[str, str]:
    """Those of this moment, in words; the load is the mean number of busy processes of the last quarter of an hour."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{processor}, {os.cpu_count()} cores",
        "load": f"{os.getloadavg()[2]:.1f}",
    }


def _lines(path: str) -> list[str]:
    """Of a file, where the system has it."""
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []
