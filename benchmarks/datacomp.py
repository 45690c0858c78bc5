"""DataComp against what it is usually done with: the pool's metadata and tars, and CLIP.

pip install -e '.[datacomp]'
pip install pandas webdataset                # the pool's peers; without webdataset no such row
python -m benchmarks.datacomp --part=pool    # prints the tables; --part=clip, --part=all
python -m benchmarks.datacomp --write        # and puts them into benchmarks/RESULTS.md
"""

import os

os.environ.update(
    JAX_PLATFORMS="cpu",
    OPENBLAS_NUM_THREADS="1",
    OMP_NUM_THREADS="1",
    XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
)

import argparse
import importlib
import time

from benchmarks._results import environment, write_section
from jaxml.report import to_markdown

PARTS = ("pool", "clip")


def section(part: str) -> str:
    """Measures one part and returns its section."""
    module = importlib.import_module(f"benchmarks._datacomp_{part}")
    start = time.perf_counter()
    tables = module.run()
    minutes = (time.perf_counter() - start) / 60
    command = f"python -m benchmarks.datacomp --part={part} --write"
    head = environment(command, packages=module.PACKAGES, notes=module.NOTES)
    parts = [f"## DataComp: {module.TITLE}\n\n{head}- whole run: {minutes:.1f} minutes\n"]
    for caption, rows in tables.items():
        parts.append(f"### {caption}\n\n{rows if isinstance(rows, str) else to_markdown(rows)}")
    return "\n".join(parts)


def main() -> None:
    """Prints the sections that the command line names, and writes them with ``--write``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--write", action="store_true", help="update benchmarks/RESULTS.md")
    flags = parser.parse_args()
    for part in PARTS if flags.part == "all" else (flags.part,):
        text = section(part)
        print(text)
        if flags.write:
            write_section(f"datacomp-{part}", text)


if __name__ == "__main__":
    main()
