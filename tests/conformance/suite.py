"""The official conformance suite: set up once for the user, run against a URL, and judged by its totals.

``python -m tests.conformance.suite URL`` runs it by hand; a token in ``MCP_BEARER`` goes with every request.
"""

import asyncio
import json
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from tests import npm

VERSION: Final = "0.2.0-alpha.12"
"""Pinned: the npm tag ``latest`` knows nothing of 2026-07-28."""

PACKAGES: Final = (f"@modelcontextprotocol/conformance@{VERSION}",)

EXPECTED: Final = {"2025-11-25": 84, "2026-07-28": 152}
"""Checks passed by wire. The exit status alone would not notice checks that did not run."""

SCENARIO_TIMEOUT_MS: Final = 30_000
WIRE_TIMEOUT: Final = 300.0
"""Seconds for one wire; it takes about ten."""

_TOTAL: Final = re.compile(r"^Total: (\d+) passed, (\d+) failed", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one wire's run said."""

    wire: str
    exit_status: int
    passed: int
    failed: int
    failures: tuple[str, ...]
    """Each failed check: its id, and what it found."""
    output: str

    @property
    def complete(self) -> bool:
        """Every check that exists was run, and passed."""
        return self.exit_status == 0 and self.failed == 0 and self.passed == EXPECTED[self.wire]

    def __str__(self) -> str:
        total = f"{self.wire}: {self.passed} of {EXPECTED[self.wire]} passed, {self.failed} failed"
        return "\n  ".join((total, *self.failures))


@dataclass(frozen=True, slots=True)
class Suite:
    """An installed suite."""

    home: Path

    @property
    def node(self) -> Path:
        return npm.node_of(self.home)

    @property
    def entry(self) -> Path:
        return self.home / "node_modules" / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"

    async def run(self, url: str, wire: str, *, token: str | None = None) -> Outcome:
        """Run every scenario of one protocol revision against the server at ``url``."""
        hook = Path(__file__).with_name("bearer.mjs").as_uri()
        split = urlsplit(url)
        environment = {**os.environ, "MCP_BEARER": token or "", "MCP_ORIGIN": f"{split.scheme}://{split.netloc}"}
        options = ["--suite", "all", "--spec-version", wire, "--timeout", str(SCENARIO_TIMEOUT_MS)]
        with tempfile.TemporaryDirectory() as results:
            process = await asyncio.create_subprocess_exec(
                str(self.node),
                *(("--import", hook) if token else ()),
                *(str(self.entry), "server", "--url", url, *options, "-o", results),
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            try:
                async with asyncio.timeout(WIRE_TIMEOUT):
                    output, _ = await process.communicate()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            failures = _failures(Path(results))
        text = output.decode(errors="replace")
        total = _TOTAL.search(text)
        passed, failed = (int(total[1]), int(total[2])) if total else (0, 0)
        return Outcome(wire, process.returncode or 0, passed, failed, failures, text)


def _failures(results: Path) -> tuple[str, ...]:
    """The failed checks in the files that the suite leaves, one for each scenario."""
    checks = [check for path in sorted(results.rglob("checks.json")) for check in json.loads(path.read_text())]
    return tuple(f"{check['id']}: {check.get('errorMessage')}" for check in checks if check["status"] == "FAILURE")


def install() -> Suite:
    """The suite from the user's cache, installed into it with npm if it is not there yet. Raises UnavailableError."""
    return Suite(npm.install(f"conformance-{VERSION}", PACKAGES))


async def main(url: str) -> int:
    """Run both wires against a URL and print the totals, with the suite's whole output where they fall short."""
    suite = await asyncio.to_thread(install)
    outcomes = [await suite.run(url, wire, token=os.environ.get("MCP_BEARER")) for wire in EXPECTED]
    for outcome in outcomes:
        print(outcome if outcome.complete else f"{outcome.output}\n{outcome}")
    return 0 if all(outcome.complete for outcome in outcomes) else 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(asyncio.run(main(sys.argv[1])))
