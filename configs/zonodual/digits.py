"""Experiment card: ZonoDual on real digits, three networks and more images, with exact programs.

Paper:     Jordan, Hayase, Dimakis & Oh, Zonotope Domains for Lagrangian Neural Network
           Verification, NeurIPS 2022 (MNIST, CIFAR-10).
Expected:  paper: tighter than the linear-programming relaxation, in less time.
Hardware:  2 CPU cores.
Time:      about 10 minutes, reckoned from the tiny config; not run yet.
Command:   python -m launch.zonodual --config=digits --workdir=out/zonodual_digits
"""

from ml_collections import ConfigDict

from configs.zonodual import tiny


def get_config() -> ConfigDict:
    """Returns the config."""
    c = tiny.get_config()
    c.n_networks = 3
    c.n_images = 8
    c.methods = (*c.methods, "mip")
    c.sweep_images = 40
    return c
