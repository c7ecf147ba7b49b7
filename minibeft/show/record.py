"""What made a number: command, versions and machine, as every committed record states them."""

import os
import platform
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# What provenance() says.
MADE = ("command", "date", "versions", "machine")
PACKAGES = ("minibeft", "torch", "numpy", "sympy", "triton", "transformers", "peft")


def provenance() -> dict[str, Any]:
    """Command line, date, package versions and the machine, with its CUDA card if it has one; no host or user name."""
    versions = {"python": platform.python_version()} | {name: found for name in PACKAGES if (found := installed(name))}
    torch = sys.modules.get("torch")
    cards = {"gpu": torch.cuda.get_device_name()} if torch is not None and torch.cuda.is_available() else {}
    return {
        "command": " ".join([program(), *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": versions,
        "machine": {
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        }
        | cards,
    }


def program() -> str:
    """What was typed before the arguments: minibeft, or python -m and a module's name."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {module.name.removesuffix('.__main__')}" if module else Path(sys.argv[0]).name


def made_by(record: Mapping[str, Any], quote: str = "") -> str:
    """A record's command, versions and machine, and those of the record that it extends, as a line under its tables."""
    machine, torch, command = record["machine"], record["versions"]["torch"], f"{quote}{record['command']}{quote}"
    card = f", {machine['gpu']}" if "gpu" in machine else ""
    line = f"{command}; torch {torch}, {machine['cores']} cores ({machine['cpu']}){card}, {record['date']}"
    return f"{line}; it extends {made_by(record['extends'], quote)}" if "extends" in record else line


@cache
def installed(name: str) -> str | None:
    """A package's version, None when it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()
