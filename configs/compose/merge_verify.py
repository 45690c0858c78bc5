"""Experiment card: merge two digits networks, and verify the merged one beside its sources.

Paper:     none: Ainsworth et al., Git Re-Basin, ICLR 2023, Nasery et al., PLeaS, CVPR 2025, and
           Jordan et al., ZonoDual, NeurIPS 2022, together.
Expected:  here, means over 3 pairs at radius 0.08: certified 52 % of the images for PLeaS, 44 %
           for weight matching, 36 % for the sources; test accuracy 96.9, 94.4 and 96.6 %. Two more
           runs of 3 pairs: 48 and 44 % for PLeaS, 36 and 35 % for the sources.
Hardware:  2 CPU cores.
Time:      45 seconds.
Command:   python -m launch.compose --config=merge_verify --workdir=out/merge
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config."""
    c = ConfigDict()
    c.n_pairs = 3
    c.dataset = "digits"
    # Networks.
    c.width = 64
    c.depth = 2
    c.epochs = 30
    c.batch_size = 64
    c.learning_rate = 1e-3
    # Certificates: for the first n_images of the test set, against all other classes.
    c.n_images = 16
    c.eps = (0.06, 0.08, 0.1)  # in units of a pixel, which lies in [0, 1]
    c.steps = 100
    # A claim holds within its bound, at the middle radius; in points of certified accuracy.
    c.bounds = ConfigDict()
    c.bounds.merged_over_sources = 5.0
    return ConfigDict({"merge_verify": c})
