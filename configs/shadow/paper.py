"""Experiment cards: shadow learning at the paper's scale, one data set by its argument.

Paper:     Wang, Hayase, Fanti & Oh, "Towards a Defense Against Federated Backdoor Attacks Under
           Continuous Training", 2023. Its numbers are second-hand.

  argument        what is simulated                                 expected success
  emnist          1000 clients of 100 images, 50 a round, a         below 0.1 for shadow learning,
                  convolutional network, 2000 rounds                about 1 for every other defence
  cifar10         100 clients, 20 a round, ResNet-18                the same ordering
  cifar100        likewise
  tiny_imagenet   likewise, from a folder in tfds form

Hardware:  one 80 GB accelerator; by arithmetic minutes for EMNIST (docs/scaling.md). Not run here:
           these cards state what to expect of the paper, not what was measured.
Data:      python -m launch.prepare_data --name=emnist/digits (or cifar10, cifar100).
           tfds has no Tiny-ImageNet: store it, under the name tiny_imagenet, as array_record in
           --data_dir.
Command:   python -m launch.shadow --config=paper:emnist --workdir=out/shadow_emnist

Differences: tfds' EMNIST has no writers, so clients are drawn alike, or with --split=dirichlet;
GroupNorm in place of BatchNorm, whose statistics a round does not average; no dropout. Clients run
in chunks of clients_at_once, which bounds memory.
"""

from ml_collections import ConfigDict

from configs.shadow import tiny

CARDS = ("emnist", "cifar10", "cifar100", "tiny_imagenet")


def get_config(card: str = "emnist") -> ConfigDict:
    """Returns the config of one data set."""
    if card not in CARDS:
        raise ValueError(f"the argument must be one of {', '.join(CARDS)}; got {card!r}")
    c = tiny.get_config()
    c.seeds = (0,)
    c.conv = "lax"
    c.norm = "group"
    c.k = 16
    c.n_pooled = 8
    c.style = (0.0, 0.0, 0.0)
    c.share = 1.0
    c.sources = (7,)
    c.rounds = 2000
    c.converged_level = 0.5 if card in ("cifar100", "tiny_imagenet") else 0.9
    if card == "emnist":
        c.dataset, c.model, c.width = "emnist/digits", "convnet", 2.0
        c.n_clients, c.per_label, c.clients_per_round = 1000, 10, 50
        c.alpha = c.alpha_bar = 0.15
        return c
    c.dataset, c.model, c.width = card, "resnet18", 1.0
    c.n_clients, c.clients_per_round, c.clients_at_once = 100, 20, 5
    c.per_label = 50 if card == "cifar10" else 5
    c.alpha = c.alpha_bar = 0.2
    return c
