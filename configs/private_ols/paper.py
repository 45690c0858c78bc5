"""Experiment cards: the sweep that the theory is about; the argument is epsilon.

Paper:     Brown et al., Insufficient Statistics Perturbation, COLT 2024. It has no experiments: the
           claims are the rate in n, d and epsilon, and its independence of the condition number.
Expected:  slopes of log noise: -1 in n far above the threshold, steeper near it; flat in the
           condition number; TukeyEM fails where n / d is below about a thousand rows for each fit.
Hardware:  CPU: float64 throughout; 4 GB of memory at n = 1e6, d = 50.
Time:      an hour or two on 2 cores. Not run here at this size; synthetic is its record.
Command:   python -m launch.private_ols --config=paper:1 --workdir=out/private_ols_paper
           with paper:0.5 and paper:4 for the other budgets.
"""

from ml_collections import ConfigDict

from configs.private_ols import tiny


def get_config(epsilon: str = "1") -> ConfigDict:
    """Returns the config at one epsilon."""
    c = tiny.get_config()
    try:
        c.epsilon = float(epsilon)
    except ValueError:
        raise ValueError(f"the argument must be a number, epsilon; got {epsilon!r}") from None
    c.n = (20000, 50000, 100000, 200000, 500000, 1000000)
    c.d = (5, 10, 20, 50)
    c.trials = 20
    return c
