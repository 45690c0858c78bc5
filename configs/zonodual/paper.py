"""Experiment cards: the five networks of the paper, one by its argument.

Paper:     Jordan, Hayase, Dimakis & Oh, Zonotope Domains for Lagrangian Neural Network
           Verification, NeurIPS 2022. Set-up read off its published code, without its tables.

  argument      network                                      data, radius     training
  ffnet         dense 512-256-128-64                         MNIST, 0.1       plain
  deep          convs 8@4s2, 8@3, 8@3, 8@4s2, dense 100      MNIST, 0.1       plain
  wide          convs 16@4s2, 32@4s2, dense 100              MNIST, 0.1       plain
  cifar_sgd     convs 16@4s2, 32@4s2, dense 100              CIFAR-10, 5/255  plain
  cifar_madry   convs 16@4s2, 32@4s2, dense 100              CIFAR-10, 5/255  attacked within 5/255

Expected:  the paper's figures were not at hand. What to look for is the order of the tiny card:
           CROWN, the LP, ZD-2D, ZD-MIP.
Hardware:  one 80 GB accelerator, and CPU cores for ZD-MIP and certificates. Not run here: these
           cards state the paper's set-up, not what was measured.
Data:      python -m launch.prepare_data --name=mnist (or cifar10)
Command:   python -m launch.zonodual --config=paper:ffnet --workdir=out/zonodual_ffnet

Differences: weights are trained here. Radii are in raw pixels and boxes clipped to [0, 1]; the
published code puts CIFAR's radius in normalised space and does not clip.
"""

from ml_collections import ConfigDict

from configs.zonodual import tiny

CARDS = ("ffnet", "deep", "wide", "cifar_sgd", "cifar_madry")


def get_config(card: str = "ffnet") -> ConfigDict:
    """Returns the config of one card."""
    if card not in CARDS:
        raise ValueError(f"the argument must be one of {', '.join(CARDS)}; got {card!r}")
    c = tiny.get_config()
    cifar = card.startswith("cifar")
    c.dataset = "cifar10" if cifar else "mnist"
    c.model = "wide" if cifar else card
    c.adversarial_eps = 5 / 255 if card == "cifar_madry" else 0.0
    c.adversarial_steps = 7
    c.epochs = 30
    c.learning_rate = 1e-3
    c.epochs_per_checkpoint = 1
    c.n_images = 1000
    c.eps = 5 / 255 if cifar else 0.1
    c.methods = ("crown", "box", "zd2d", "zdmip")
    c.sweep_eps = (c.eps / 4, c.eps / 2, c.eps)
    c.sweep_images = 100
    c.images_at_once = 1
    c.group_size = 32 if card == "ffnet" else 20
    c.group_seconds = 60.0
    if cifar:
        c.dual_rate, c.dual_decay, c.dual_decay_every = 2.5e-3, 0.5, 200
    return c
