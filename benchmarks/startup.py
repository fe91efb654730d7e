"""Seconds that `import hneurons` and `hneurons --help` take above `python -c pass`.

    python benchmarks/startup.py import
    python benchmarks/startup.py help

In turn, and after a first call that leaves compiled bytecode behind, as a user has it from the second call on.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import sysconfig
from pathlib import Path

from measure import options, seconds, show, way

what = way("import", "help")
given = options(__doc__, rounds=21)
name, target, command = {
    "import": ("python -c 'import hneurons'", 0.2, [sys.executable, "-c", "import hneurons"]),
    "help": ("hneurons --help", 0.5, [str(Path(sysconfig.get_path("scripts")) / "hneurons"), "--help"]),
}[what]
environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


def run(words: list[str]) -> float:
    return seconds(lambda: subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=environment))


nothing = [sys.executable, "-c", "pass"]
run(command)
rounds = 2 if given.quick else given.rounds
extra = [run(command) - run(nothing) for _ in range(rounds)]
show(
    f"start: {name}, seconds above python -c pass", statistics.median(extra), target, "max", rounds, {},
    range=[round(min(extra), 4), round(max(extra), 4)],
)  # fmt: skip
