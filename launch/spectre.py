"""Filters representations by SPECTRE: finds poisoned rows among those of one label.

  python -m launch.spectre --reps=deer.npy --num_poison=250
  python -m launch.spectre --reps=deer.npy --num_poison=250 --k=64 --method=pca --out=out/deer

The file holds float representations [n, d] of all training examples that carry one label. Writes
mask.npy (true where a row is kept; floor(1.5 m) are not) and scores.npy (the larger, the more
suspicious).
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from launch import _app, _flags

METHODS = ("spectre", "pca", "norm", "mahalanobis")


def main(argv: Sequence[str]) -> int:
    """Filters the file that the command line names and returns 0."""
    with _app.one_sentence("spectre"), _app.interruptible("spectre", "nothing was written"):
        values = flags.FlagValues()
        values.set_gnu_getopt()

        def define(kind, name, *args, **kwargs):
            getattr(flags, f"DEFINE_{kind}")(name, *args, flag_values=values, **kwargs)

        define("string", "reps", None, "file of representations [n, d]")
        define("integer", "num_poison", None, "m, an upper bound on the poisoned rows")
        define("string", "k", "auto", "principal directions, or auto to choose by the data")
        define("enum", "method", "spectre", METHODS, "the score")
        define("string", "out", ".", "folder for mask.npy and scores.npy")
        define("boolean", "help", False, "print this", short_name="h")
        for argument in _flags.parse(values, argv):
            _flags.refuse(argument, values)
        if values.help:
            print(_flags.help_text(__doc__, values))
            return 0
        for name in ("reps", "num_poison"):
            if values[name].value is None:
                raise _flags.UserError(f"--{name} is missing; --help shows how to call this")
        if values.k != "auto" and not values.k.isdecimal():
            raise _flags.UserError(f"--k must be a number or auto, got {values.k!r}")
        _filter(values)
        return 0


def _filter(values) -> None:
    import numpy as np

    try:
        h = np.load(values.reps, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _flags.UserError(f"--reps: cannot read {values.reps}: {error}") from error
    if h.dtype == np.float64 or h.dtype == np.float16:
        h = h.astype(np.float32)
    from jaxml.backdoor.spectre import spectre_filter

    k = None if values.k == "auto" else int(values.k)
    try:
        found = spectre_filter(h, n_outliers=values.num_poison, k=k, method=values.method)
        out = pathlib.Path(values.out)
        out.mkdir(parents=True, exist_ok=True)
        np.save(out / "mask.npy", found.keep)
        np.save(out / "scores.npy", found.scores)
    except (ValueError, OSError) as error:
        raise _flags.UserError(str(error)) from error
    print(
        f"{int((~found.keep).sum())} of {len(h)} rows removed, k = {found.k}: "
        f"{out / 'mask.npy'}, {out / 'scores.npy'}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
