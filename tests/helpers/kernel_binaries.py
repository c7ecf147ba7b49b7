"""What the compiler makes of every launch, for chips that are not there: read once (CHIPS), committed as a record.

    python tests/helpers/kernel_binaries.py records/kernel-binaries.json

kernels/README.md has the table of it; test_kernel_aot.py sees to it that what is compiled is still what stands there.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from minibeft.show.files import write_json
from minibeft.show.record import provenance

CHIPS = (80, 90, 100)


def compiled(chip: int, *options: str) -> list[dict[str, Any]]:
    """What kernel_compile.py says of every binary, from a process without the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = Path(__file__).with_name("kernel_compile.py")
    command = [sys.executable, str(program), str(chip), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def spills(binary: dict[str, Any]) -> bool:
    """Registers that do not suffice go to memory."""
    return bool(binary["stack"] or binary["local"] or binary["spill_instructions"])


if __name__ == "__main__":
    write_json(Path(sys.argv[1]), provenance() | {"chips": {str(chip): compiled(chip) for chip in CHIPS}})
