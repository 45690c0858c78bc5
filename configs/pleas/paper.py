"""Experiment cards: PLeaS at the paper's scale, one by its argument.

Paper:     Nasery, Hayase, Koh & Oh, PLeaS, CVPR 2025. Its numbers are second-hand.

  argument             what is merged                           expected accuracy at 1x
  domainnet_A_B        A, B of clipart, infograph, painting,    38.6 (mean of all pairs); Git
                       real: 345 shared labels, ResNet-50       Re-Basin 17.8, RegMean 12.1
  cub_pets, cub_dogs,  birds, pets and dogs, each with labels   74.9 by linear probes (with NABirds,
  pets_dogs            of its own, ResNet-50                    which tfds lacks); ZipIt! 66.9
  cifar10_resnet20     digits' label split on CIFAR-10          not in the paper

Hardware:  one 80 GB accelerator; by arithmetic 1.5 hours to train a ResNet-50 (docs/scaling.md).
           Not run here: these cards state what to expect of the paper, not what was measured.
Data:      python -m launch.prepare_data --name=cifar10
           tfds keeps the photographs of the other sets in sizes of their own, and this reader takes
           one size, all in memory: store them resized, under their tfds name, as array_record in
           --data_dir. At 224 x 224 an image is 0.6 MB of float32, so DomainNet real needs 70 GB and
           clipart 20 GB of host memory; at 64 x 64 they need 6 GB and 2 GB.
Command:   python -m launch.pleas --config=paper:domainnet_clipart_real --workdir=out/clipart_real
           --model=resnet18 or resnet101 for the other sizes of the paper.

Differences: the paper fine-tunes networks that were trained on ImageNet, these cards train from
scratch; networks trained elsewhere come in by --checkpoint_a and --checkpoint_b.
"""

import itertools

from ml_collections import ConfigDict

from configs.pleas import tiny

DOMAINS = ("clipart", "infograph", "painting", "real")
SPECIES = {"cub": "caltech_birds2011", "pets": "oxford_iiit_pet", "dogs": "stanford_dogs"}
CARDS = (
    *(f"domainnet_{a}_{b}" for a, b in itertools.combinations(DOMAINS, 2)),
    *(f"{a}_{b}" for a, b in itertools.combinations(SPECIES, 2)),
    "cifar10_resnet20",
)


def get_config(card: str = "domainnet_clipart_real") -> ConfigDict:
    """Returns the config of one card."""
    if card not in CARDS:
        raise ValueError(f"the argument must be one of {', '.join(CARDS)}; got {card!r}")
    c = tiny.get_config()
    c.standardize = True
    c.conv = "lax"
    c.optimizer = "sgd"
    c.learning_rate = 0.1
    c.schedule = "cosine"
    c.warmup_epochs = 5.0
    c.weight_decay = 1e-4
    c.augment = "crop_flip"
    c.batch_size = 100
    c.epochs_per_checkpoint = 5
    c.calibration_size = 3200
    *_, a, b = card.split("_")
    if card == "cifar10_resnet20":
        c.dataset, c.model = a, b
        c.epochs = 100
        c.budget = (1.0, 1.2, 1.4, 1.7, 2.0)
        return c
    if card.startswith("domainnet"):
        c.dataset, c.dataset_b = f"domainnet/{a}", f"domainnet/{b}"
    else:
        c.dataset, c.dataset_b = SPECIES[a], SPECIES[b]
        c.labels = "disjoint"
    c.model = "resnet50"
    c.n_pairs = 1
    c.epochs = 90
    c.budget = (1.0, 1.2, 1.55, 1.8, 2.0)
    c.eval_batch_size = 50
    return c
