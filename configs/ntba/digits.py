"""Experiment card: NTBA on real digits, more pairs of networks, classes and triggers.

  argument   what differs from the tiny card
  mlp        nothing but five data seeds and seven numbers of poisons
  conv       a convolutional network
  seven      a seven taken for a one
  patch      a checkerboard at a random place as the trigger
  holdout    the attack is judged on held-out images only, as in the paper

Paper:     Hayase & Oh, Few-shot Backdoor Attacks via Neural Tangent Kernels, ICLR 2023 (pairs of
           classes of CIFAR-10 and ImageNet, WideResNet-34-5 and ConvNeXt).
Expected:  paper: 90 % attack success with about a tenth of the poisons that sampling needs (its
           abstract).
Hardware:  2 CPU cores.
Command:   python -m launch.ntba --config=digits:conv --workdir=out/ntba_conv
"""

from ml_collections import ConfigDict

from configs.ntba import tiny

CARDS = ("mlp", "conv", "seven", "patch", "holdout")


def get_config(card: str = "mlp") -> ConfigDict:
    """Returns the config of one card."""
    if card not in CARDS:
        raise ValueError(f"the argument must be one of {', '.join(CARDS)}; got {card!r}")
    c = tiny.get_config()
    if card == "mlp":
        c.data_seeds = (0, 1, 2, 3, 4)
        c.n_poisons = (1, 2, 3, 5, 10, 20, 40)
    if card == "conv":
        c.model, c.width, c.norm = "convnet", 0.5, "none"
        c.epochs = 120
    if card == "seven":
        c.source, c.target = 7, 1
    if card == "patch":
        c.trigger, c.amplitude = "patch", 1.0
    if card == "holdout":
        c.queries = "holdout"
    return c
