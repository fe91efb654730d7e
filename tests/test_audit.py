"""`make check` looks up the pinned packages: it fails on what is known, never on what can't be known."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def told(*packages: dict[str, Any]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


CLEAN = {"name": "a", "version": "1.0", "vulns": []}
UNKNOWN = {"name": "b", "skip_reason": "not found"}
BAD = {
    "name": "c",
    "version": "2.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}, {"id": "X", "fix_versions": []}],
}


@pytest.mark.parametrize(
    ("answers", "status", "lines"),
    [
        (("", ""), 0, ["No advisory service can be reached: vulnerabilities were not looked up."]),
        ((told(UNKNOWN), ""), 0, ["No advisory service can be reached: vulnerabilities were not looked up."]),
        ((told(CLEAN, UNKNOWN), ""), 0, ["No known vulnerability in 1 pinned packages (pypi); not known there: b."]),
        (("", told(CLEAN, CLEAN)), 0, ["No known vulnerability in 2 pinned packages (osv)."]),
        ((told(UNKNOWN), told(BAD)), 1, ["c 2.0: PYSEC-1, fixed in 2.1", "c 2.0: X, fixed in no release yet"]),
        ((told(CLEAN, BAD), ""), 1, ["c 2.0: PYSEC-1, fixed in 2.1", "c 2.0: X, fixed in no release yet"]),
    ],
)
def test_what_is_said_of_what_is_known(audit: ModuleType, answers: tuple[str, str], status: int, lines: list[str]):
    replies = dict(zip(("pypi", "osv"), answers, strict=True))
    assert audit.audit("constraints.txt", lambda service, _: replies[service]) == (status, lines)


def test_the_status_is_that_of_the_process(tmp_path: Path):
    """Whatever the network: a file without packages has nothing to look up."""
    (tmp_path / "none.txt").write_text("")
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "audit.py"), str(tmp_path / "none.txt")], capture_output=True
    )
    assert done.returncode == 0
    assert done.stdout.count(b"\n") == 1
