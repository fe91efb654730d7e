"""Known vulnerabilities of the pinned packages: status 1 and a line each if there are any.

Where the advisory services can't be reached nothing is known: one line says so, and the status is 0, so that a check
can be run without a network.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

SERVICES = ("pypi", "osv")
SECONDS = 120
Ask = Callable[[str, str], str]
"""(service, requirements file) -> pip-audit's JSON; empty where it failed."""


def ask(service: str, requirements: str) -> str:
    """Have pip-audit look up each pin; nothing is installed or resolved."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", requirements, "--no-deps", "--disable-pip"]
    command += ["--vulnerability-service", service, "--format", "json", "--progress-spinner", "off", "--timeout", "5"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS).stdout
    except subprocess.TimeoutExpired:
        return ""


def audit(requirements: str, ask: Ask = ask) -> tuple[int, list[str]]:
    """(exit status, what to say) of the first service that knows any of the packages."""
    for service in SERVICES:
        try:
            packages: list[dict[str, Any]] = json.loads(ask(service, requirements))["dependencies"]
        except ValueError:
            continue
        known = [package for package in packages if "vulns" in package]
        found = [(package, each) for package in known for each in package["vulns"]]
        if found:
            return 1, [f"{p['name']} {p['version']}: {v['id']}, fixed in {_fixed(v)}" for p, v in found]
        if known:
            unknown = ", ".join(package["name"] for package in packages if package not in known)
            rest = f"; not known there: {unknown}" if unknown else ""
            return 0, [f"No known vulnerability in {len(known)} pinned packages ({service}){rest}."]
    return 0, ["No advisory service can be reached: vulnerabilities were not looked up."]


def _fixed(vulnerability: dict[str, Any]) -> str:
    return ", ".join(vulnerability["fix_versions"]) or "no release yet"


if __name__ == "__main__":
    status, lines = audit(sys.argv[1])
    print("\n".join(lines))
    sys.exit(status)
