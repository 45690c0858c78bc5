"""Experiment card: PLeaS on real digits, all budgets; "digits:disjoint" is the second part.

Paper:     Nasery, Hayase, Koh & Oh, PLeaS, CVPR 2025 (DomainNet; CUB, Pets, Dogs, NABirds).
Expected:  paper, second-hand: 38.6 against 17.8 for Git Re-Basin at 1x; by probes, with labels of
           their own, 74.9 against 66.9 for ZipIt!. Here, shared: 93 % at 1x, 94 % at 1.2x and 1.4x,
           96 % at 1.7x, against 85, 86, 89 and 93 % for the permutation; the ensemble has 95 %.
           Disjoint, 1x: probes on merged features 99 and 97 %, on the other network's 85 %.
           --calibration=noise, 1x: 88 % against 73 % for the permutation and 71 % for least squares
           without it; sequential 86 %, so its claim does not hold without data.
Hardware:  2 CPU cores.
Time:      2 minutes each.
Command:   python -m launch.pleas --config=digits --workdir=out/pleas_digits
           python -m launch.pleas --config=digits:disjoint --workdir=out/pleas_disjoint
"""

from ml_collections import ConfigDict

from configs.pleas import tiny


def get_config(labels: str = "shared") -> ConfigDict:
    """Returns the config of one part: ``"shared"`` or ``"disjoint"`` labels."""
    if labels not in ("shared", "disjoint"):
        raise ValueError(f"the argument must be shared or disjoint; got {labels!r}")
    c = tiny.get_config()
    c.labels = labels
    c.budget = (1.0, 1.2, 1.4, 1.7, 2.0)
    return c
