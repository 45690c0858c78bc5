"""Experiment card: private least squares against its peers, on synthetic data of many sizes.

Paper:     Brown et al., Insufficient Statistics Perturbation, COLT 2024: theory without tables.
Expected:  here, epsilon = 1, any condition number, error at n = 20000, 100000, 300000: d = 5:
           0.087, 0.0081, 0.0051 (1.2 times least squares); d = 10: 0.27, 0.021, 0.0061; d = 20:
           1.03, 0.042, 0.012. AdaSSP at 1e6: 0.87 to 0.94. At condition 1 AdaSSP is better at
           n = 20000 for d = 10 and 20, DP-GD nearly everywhere. --d=50 --n=100000: 0.114, AdaSSP
           0.178, 0.86, 0.93; TukeyEM fails.
Hardware:  2 CPU cores, 1 GB of memory.
Time:      5 minutes.
Command:   python -m launch.private_ols --config=synthetic --workdir=out/private_ols_synthetic
"""

from ml_collections import ConfigDict

from configs.private_ols import tiny


def get_config() -> ConfigDict:
    """Returns the config."""
    c = tiny.get_config()
    c.n = (20000, 100000, 300000)
    c.d = (5, 10, 20)
    c.trials = 3
    return c
