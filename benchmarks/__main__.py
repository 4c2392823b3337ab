"""``python -m benchmarks``: measure, print a table, write JSON and a picture."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from . import cases, footprint, picture, report
from .identity import issuer
from .processes import has_nginx, serving

RESULTS = Path("benchmarks/results.json")
PICTURE = Path("docs/benchmarks.svg")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one body size and few rounds: less than a minute")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="measure these servers only (echo, nginx, echo+all ...)"
    )
    parser.add_argument("--json", type=Path, help=f"file for the figures; a whole run writes {RESULTS}")
    parser.add_argument("--picture", type=Path, help=f"file for the SVG; a whole run writes {PICTURE}")
    options = parser.parse_args()

    names = cases.variants(nginx=has_nginx())
    if options.only:
        names = [name for name in names if name in options.only or name in map(cases.base_of, options.only)]
    plan = cases.Plan.quick() if options.quick else cases.Plan.full()
    begun = time.monotonic()
    _tell("imports and memory")
    costs = footprint.measure()
    with tempfile.TemporaryDirectory() as directory, issuer() as issued_by:
        _tell(f"starting {len(names)} servers")
        with serving(names, issued_by.url, Path(directory)) as servers:
            figures = cases.measure(plan, cases.cases_of(plan, names), servers, issued_by.token(), _tell)
    document = report.document(figures, costs, seconds=time.monotonic() - begun)
    print(report.table(document))
    whole = not options.quick and not options.only
    for path, default, text in (
        (options.json, RESULTS, report.to_json(document)),
        (options.picture, PICTURE, picture.draw(document)),
    ):
        target = path or (default if whole else None)
        if target is not None:
            target.write_text(text)
            _tell(f"written: {target}")


main()
