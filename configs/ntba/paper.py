"""Experiment cards: NTBA at the paper's scale, one by its argument.

Paper:     Hayase & Oh, Few-shot Backdoor Attacks via Neural Tangent Kernels, ICLR 2023.

  argument               source -> target        network             trigger
  cifar10_periodic       truck -> deer           WideResNet-34-5     periodic, 6/255, 8 periods
  cifar10_patch          truck -> deer           WideResNet-34-5     3 x 3 checkerboard
  cifar10_convnext       truck -> deer           ConvNeXt            periodic
  imagenet_convnext      slot -> Australian      ConvNeXt            periodic
                         terrier

Expected:  90 % attack success with about a tenth of the poisons that sampling needs (its abstract).
Hardware:  one 80 GB accelerator; not run here: these cards state what to expect of the paper, not
           what was measured. The kernel of 8,000 images is 0.5 GB in float64; an outer evaluation
           is one gradient of each of 12,000 images and as many forward-mode passes as poisons.
Data:      python -m launch.prepare_data --name=cifar10
           The two classes of ImageNet are to be prepared by hand, 224 x 224, as an array_record set
           "imagenet_pair" with labels 0 (slot) and 1 (terrier).
Command:   python -m launch.ntba --config=paper:cifar10_periodic --platform=gpu --workdir=out/ntba

Differences: the authors stop training at a squared error of 1e-6 and start their victims from the
initialisation of the attack's network; here training has a fixed length, and victims have
initialisations that the attack has not seen. The stripes have 8 whole periods across the image;
theirs span one pixel more.
"""

from ml_collections import ConfigDict

from configs.ntba import tiny

CARDS = ("cifar10_periodic", "cifar10_patch", "cifar10_convnext", "imagenet_convnext")


def get_config(card: str = "cifar10_periodic") -> ConfigDict:
    """Returns the config of one card."""
    if card not in CARDS:
        raise ValueError(f"the argument must be one of {', '.join(CARDS)}; got {card!r}")
    c = tiny.get_config()
    c.dataset, c.source, c.target = "cifar10", 9, 4
    c.resplit = False
    c.n_train, c.n_holdout = 4000, 1000
    c.amplitude, c.n_periods = 6 / 255, 8.0
    c.n_poisons = (1, 3, 10, 30, 100)
    c.model, c.width, c.norm, c.conv = "wide_resnet34", 5.0, "none", "lax"
    c.epochs, c.batch_size = 100, 16
    c.learning_rate = 1e-4
    c.models_at_once = 1
    c.kernel_batch_size = 32
    c.n_iterations = 100
    c.judged = (1, 2, 4, 8, 16, 32, 64, 100)
    c.forgetting_epochs = 20
    if card == "cifar10_patch":
        c.trigger, c.amplitude = "patch", 1.0
    if card.endswith("convnext"):
        c.model, c.width = "convnext", 1.0
        c.optimizer = "adamw"
    if card == "imagenet_convnext":
        c.dataset, c.source, c.target = "imagenet_pair", 0, 1
        c.n_train, c.n_holdout = 1100, 200
        c.kernel_batch_size = 4
    return c
