"""Experiment card: DataComp on more pools of real digits.

Paper:     as in tiny.py, whose pools, recipe and filters these are.
Expected:  percent, mean of three tests, 6 pools x 5 training seeds (sd over both): no filter 57.7
           (2.5), random, as many as CLIP 44.3 (3.3), basic 60.5 (3.0), text-based 63.1 (2.7),
           image-based 63.4 (2.6), LAION-like 77.3 (1.1), CLIP score 30 % 73.1 (1.9), image-based
           AND CLIP 71.9 (2.4), oracle 83.3 (1.2), oracle, as few as image AND CLIP 74.8 (2.2).
Hardware:  2 CPU cores.
Time:      3 minutes.
Command:   python -m launch.datacomp --config=digits --workdir=out/datacomp_digits
"""

from ml_collections import ConfigDict

from configs.datacomp import tiny


def get_config() -> ConfigDict:
    """Returns the config."""
    c = tiny.get_config()
    c.pool_seeds = (20, 21, 22, 23, 24, 25)
    c.train_seeds = 5
    return c
