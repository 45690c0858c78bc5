"""Experiment card: private least squares on synthetic data, small enough for a laptop.

Paper:     Brown, Hayase, Hopkins, Kong, Liu, Oh, Perdomo & Smith, Insufficient Statistics
           Perturbation, COLT 2024: theory without tables. Claimed: an error that does not grow with
           the condition number, of order sigma d / (epsilon n) beside that of least squares.
Expected:  the rate. Here, d = 10, n = 100000, epsilon = 1, delta = 1e-6, at any condition number:
           error 0.019 (least squares 0.010), AdaSSP 0.042, 0.83 and 0.89 at 1, 1e3 and 1e6.
           n = 200000: 1.2 times the error of least squares. An audit finds nothing (a twentieth of
           the noise gives epsilon 3.6 away).
Hardware:  2 CPU cores.
Time:      30 seconds.
Command:   python -m launch.private_ols --config=tiny --workdir=out/private_ols
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config."""
    c = ConfigDict()
    # Privacy: (epsilon, delta), for replacement of one row.
    c.epsilon = 1.0
    c.delta = 1e-6
    c.fail_rate = 1e-3
    # A CSV file with a header, and the column to be predicted: the rest of these two groups then
    # does not count. Bounds have to come from outside the file, and have no default.
    c.data = ""
    c.target = ""
    c.features = ("",)  # names of columns; empty: all but the target
    c.intercept = True
    c.leverage_bound = 0.0
    c.residual_bound = 0.0
    c.residual_scale = 0.0  # 0: as residual_bound
    # Or the study on synthetic data: rotated normal rows whose standard deviations are spread
    # geometrically over 1 .. 1/condition_number, normal errors of standard deviation noise.
    c.n = (20000, 50000, 100000, 200000)
    c.d = (10,)
    c.condition_number = (1.0, 1e3, 1e6)
    c.noise = 1.0
    c.trials = 5
    c.methods = ("ols", "private_ols", "adassp", "tukey_em", "dp_gd")
    # Of the peers, all told the best that they could know of these data.
    c.n_models = 1000  # TukeyEM, fewer where n / d is less
    c.gd_steps = 30  # DP-GD
    c.gd_clip = 10.0
    c.gd_learning_rate = 0.5
    # The audit: neighbouring data of one column on which the mechanism is at its worst.
    c.audit_n = 12000
    c.audit_draws = 40000
    c.audit_noise = (1.0, 0.2, 0.05)  # times the noise
    c.audit_confidence = 0.999
    # A claim holds within its bound.
    c.bounds = ConfigDict()
    c.bounds.error = 0.045  # d = 10, n = 100000, epsilon = 1
    c.bounds.condition_ratio = 0.01  # error at the largest condition number over that at 1
    c.bounds.adassp_over_private = 10.0  # at the largest condition number
    c.bounds.ols_ratio = 2.0  # error over that of least squares, largest n and smallest d
    c.bounds.predicted_ratio = 0.15  # noise measured over predicted, either way
    c.bounds.slope = -1.0  # of log noise against log n
    return c
