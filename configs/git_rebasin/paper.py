"""Experiment cards: Git Re-Basin at the paper's scale, one by its argument.

Paper:     Ainsworth, Hayase & Srinivasa, Git Re-Basin, ICLR 2023.

  argument           network                     expected after weight matching
  mnist_mlp          MLP 3x512                   barrier 0 with all three methods
  cifar10_resnet20   ResNet20 (LayerNorm) 32x    barrier 0; clearly above 0 at 1x
  cifar100_resnet20  ResNet20 (LayerNorm) 32x    as above, on 100 classes
  cifar10_vgg16      VGG16 (LayerNorm) 4x        falls to 0 with width

Hardware:  one 80 GB accelerator; MNIST takes minutes, 32x networks take days. Not run here: these
           cards state what to expect of the paper, not what was measured.
Data:      python -m launch.prepare_data --name=cifar10
Command:   python -m launch.git_rebasin --config=paper:cifar10_resnet20 --workdir=out/resnet20
           --width=1,4,16,32 adds the width sweep; --x64 and --num_devices as for every script.

Differences: images are cropped and flipped (the authors' code also zooms and rotates); weight decay
is 1e-4 as in their code, where the paper says 5e-4.
"""

from ml_collections import ConfigDict

from configs.git_rebasin import tiny

CARDS = ("mnist_mlp", "cifar10_resnet20", "cifar100_resnet20", "cifar10_vgg16")


def get_config(card: str = "mnist_mlp") -> ConfigDict:
    """Returns the config of one card."""
    if card not in CARDS:
        raise ValueError(f"the argument must be one of {', '.join(CARDS)}; got {card!r}")
    c = tiny.get_config()
    c.dataset, c.model = card.split("_")
    c.standardize = True
    c.conv = "lax"
    c.models_at_once = 1
    c.calibration_size = 10_000
    c.eval_batch_size = 1000
    c.epochs_per_checkpoint = 5
    c.n_planted = 0
    c.bounds.weight_of_naive = 0.05
    c.bounds.activation_of_naive = 0.05
    if card == "mnist_mlp":
        c.width = (512.0,)
        c.n_pairs = 3
        c.epochs = 100
        c.batch_size = 500
        c.schedule = "constant"
        c.ste_max_width = 512.0
        return c
    c.width = (4.0,) if c.model == "vgg16" else (32.0,)
    c.n_pairs = 1
    c.epochs = 250
    c.batch_size = 100
    c.optimizer = "sgd"
    c.learning_rate = 0.1
    c.warmup_epochs = 5.0
    c.weight_decay = 1e-4
    c.augment = "crop_flip"
    c.method = ("weight", "activation")
    c.merge_many = 0
    c.lambda_chunk = 1
    return c
