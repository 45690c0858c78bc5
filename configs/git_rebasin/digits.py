"""Experiment card: Git Re-Basin on real digits, all widths.

Paper:     Ainsworth, Hayase & Srinivasa, Git Re-Basin, ICLR 2023 (MNIST MLP 3x512).
Expected:  paper: barrier 0 at width 512. Here: falls with width for every matching, to about 8 % of
           the naive train barrier (weights) and 3 % (activations) at width 512.
Hardware:  2 CPU cores.
Time:      7 minutes.
Command:   python -m launch.git_rebasin --config=digits --workdir=out/git_rebasin_digits
"""

from ml_collections import ConfigDict

from configs.git_rebasin import tiny


def get_config() -> ConfigDict:
    """Returns the config."""
    c = tiny.get_config()
    c.width = (32.0, 64.0, 128.0, 256.0, 512.0)
    return c
