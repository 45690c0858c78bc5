"""The file of results: one section a benchmark, each with what it was measured on."""

import argparse
import datetime
import importlib.metadata
import os
import pathlib
import platform
import re
from collections.abc import Callable

RESULTS = pathlib.Path(__file__).with_name("RESULTS.md")
_TITLE = """# Benchmark results

Every section is written by the command that it names, except where it says otherwise.
"""


def main(name: str, doc: str, report: Callable[[], str]) -> None:
    """Prints the section that ``report`` returns, and writes it with ``--write``."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="update benchmarks/RESULTS.md")
    write = parser.parse_args().write
    text = report()
    print(text)
    if write:
        write_section(name, text)


def environment(command: str, *, packages: tuple[str, ...], notes: str) -> str:
    """Returns a Markdown list of the date, the command, the machine and the versions."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return (
        f"- date: {datetime.date.today().isoformat()}\n"
        f"- command: `{command}`\n"
        f"- device: CPU, {_cpu_model()}, {os.cpu_count()} cores, "
        f"load average {os.getloadavg()[0]:.1f} at the end\n"
        f"- versions: python {platform.python_version()}, {versions}\n"
        f"- {notes}\n"
    )


def _cpu_model() -> str:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    fields = dict(re.findall(r"^(.+?)\s*: (.+)$", text, flags=re.MULTILINE))
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return name


def write_section(name: str, text: str, *, on_top: bool = False) -> None:
    """Puts ``text`` between the markers of ``name`` in RESULTS.md, in place of what was there.

    A new section goes to the end, or under the title.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n{text.strip()}\n{end}\n"
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else _TITLE
    before, found, rest = old.partition(begin)
    if found:
        new = before + section + rest.partition(f"{end}\n")[2]
    elif on_top:
        new = f"{_TITLE}\n{section}\n{old.removeprefix(_TITLE).lstrip()}"
    else:
        new = f"{old.rstrip()}\n\n{section}"
    RESULTS.write_text(new, encoding="utf-8")
