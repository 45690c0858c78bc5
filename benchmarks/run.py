"""Runs every benchmark and gathers all bounds in one table on top of benchmarks/RESULTS.md.

    python -m benchmarks.run                       # everything, one after the other: about an hour
    python -m benchmarks.run --only=flip,ntba      # some
    python -m benchmarks.run --summary             # only gathers what is in RESULTS.md

Peers that are not installed leave out their rows, as each benchmark says. A benchmark that fails is
named at the end, and its section stays as it was.
"""

import argparse
import pathlib
import re
import subprocess
import sys

from benchmarks._results import RESULTS, write_section

_SECTION = re.compile(r"<!-- begin (\w[\w-]*) -->\n## (.+?)\n(.*?)<!-- end \1 -->", re.DOTALL)
_SUMMARY = "summary"


def names() -> list[str]:
    """Returns the benchmarks in alphabetical order."""
    files = pathlib.Path(__file__).parent.glob("[a-z]*.py")
    return sorted({path.stem for path in files} - {"run"})


def bounds(text: str) -> list[tuple[str, str, str, str]]:
    """Returns ``(section, bound, measured, holds)`` for each row of a table of bounds."""
    found = []
    for name, title, body in _SECTION.findall(text):
        if name == _SUMMARY:
            continue
        inside = False
        for line in body.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not line.startswith("|"):
                inside = False
            elif cells[0] == "bound":
                inside = True
            elif inside and not cells[0].startswith("---"):
                *bound, measured, holds = cells
                found.append((title, ", against ".join(bound), measured, holds))
    return found


def summary(text: str) -> str:
    """Returns the section that stands on top of RESULTS.md."""
    rows = bounds(text)
    holding = sum(holds == "yes" for *_, holds in rows)
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return (
        f"## All bounds\n\n{holding} of {len(rows)} hold. Machine, versions and command of each "
        "stand in its section below, and\nthere too why a bound does not hold. Written by "
        "`python -m benchmarks.run --summary`.\n\n"
        f"| benchmark | bound | measured | holds |\n| --- | --- | --- | --- |\n{table}\n"
    )


def main() -> int:
    """Runs what the command line asks for; returns 1 when a benchmark fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(names()), help="names, separated by commas")
    parser.add_argument("--summary", action="store_true", help="run nothing")
    values = parser.parse_args()
    chosen = [] if values.summary else values.only.split(",")
    if unknown := sorted(set(chosen) - set(names())):
        parser.error(
            f"--only: there is no benchmark {unknown[0]!r}; there are {', '.join(names())}"
        )
    failed = []
    for i, name in enumerate(chosen, start=1):
        print(f"[{i}/{len(chosen)}] {name}", flush=True)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--write"], check=False)
        if done.returncode:
            failed.append(name)
    write_section(_SUMMARY, summary(RESULTS.read_text(encoding="utf-8")), on_top=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
