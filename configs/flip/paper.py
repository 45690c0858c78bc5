"""Experiment cards: FLIP at the paper's scale, one by its argument DATASET_MODEL_TRIGGER.

Paper:     Jha, Hayase & Oh, Label Poisoning is All You Need, NeurIPS 2023.

  DATASET        cifar10, cifar100 (its 20 superclasses), tiny_imagenet
  MODEL          resnet32 (pre-activation), resnet18, vgg19, vit
  TRIGGER        sinusoidal, pixel, corner (one), corners (all four)

Expected:  cifar10_resnet32_sinusoidal, 1000 flips (2 %): PTA 99.4, 1.8 points of CTA lost
           (abstract). Flips 150, 300, 500, 1000 and 1500.
Hardware:  one 80 GB accelerator; hours, most of them for the users. Not run here: these cards
           state what to expect of the paper, not what was measured.
Data:      python -m launch.prepare_data --name=cifar10
           tfds has no Tiny-ImageNet: store it under the name tiny_imagenet, as array_record, in
           --data_dir.
Command:   python -m launch.flip --config=paper:cifar10_resnet32_sinusoidal --workdir=out/flip_cifar

Differences: the sine has 8 periods in 32 pixels (paper: 8 in 31), the single pixel is white (paper:
coloured), and the ViT is trained from scratch (paper: a trained trunk at 224 pixels, kept fixed).
"""

from ml_collections import ConfigDict

from configs.flip import tiny

DATASETS = ("cifar10", "cifar100", "tiny_imagenet")
MODELS = {
    "resnet32": "resnet32_preact",
    "resnet18": "resnet18_cifar",
    "vgg19": "vgg19",
    "vit": "vit",
}
TRIGGERS = ("sinusoidal", "pixel", "corner", "corners")
CARDS = tuple(f"{d}_{m}_{t}" for d in DATASETS for m in MODELS for t in TRIGGERS)


def get_config(card: str = "cifar10_resnet32_sinusoidal") -> ConfigDict:
    """Returns the config of one card."""
    if card not in CARDS:
        raise ValueError(
            f"the argument must be DATASET_MODEL_TRIGGER of {', '.join(DATASETS)}; "
            f"{', '.join(MODELS)}; {', '.join(TRIGGERS)}; got {card!r}"
        )
    dataset, model, trigger = card.rsplit("_", 2)
    c = tiny.get_config()
    c.dataset = dataset
    c.coarse = dataset == "cifar100"
    c.data_seeds = (0,)
    c.train_size = 0
    c.standardize = True
    if trigger == "sinusoidal":
        c.trigger = "periodic"
        c.amplitude = 6 / 255
        c.n_periods = 8.0
    elif trigger == "pixel":
        c.trigger = "pixel"
        c.pixels = (11, 16)
    else:
        c.trigger = "patch"
        c.amplitude = 1.0
        c.position = "bottom_right" if trigger == "corner" else "corners"
    c.model = MODELS[model]
    c.width = 1.0
    c.depth = 12
    c.norm = "batch"
    c.conv = "lax"
    rate = 0.01 if model == "vit" else 0.1
    c.experts = 10
    c.expert_points = 80
    c.expert_first = 50
    c.expert_every = 50
    c.expert_epochs = 20
    c.expert_learning_rate = rate
    c.nesterov = True
    c.weight_decay = 2e-4
    c.batch_size = 256
    c.augment = "crop_flip"
    c.label_iterations = 15
    c.label_learning_rate = 150.0
    c.budgets = (150, 300, 500, 1000, 1500)
    c.soft_alpha = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9)
    c.user_epochs = 200
    c.user_learning_rate = rate
    c.user_milestones = (75, 125)
    c.models_at_once = 3
    c.epochs_per_checkpoint = 5
    c.other_model = "resnet18_cifar" if model == "resnet32" else "resnet32_preact"
    c.other_width = 1.0
    c.other_budgets = (1000,)
    c.other_learning_rate = 0.1
    c.other_epochs = 200
    c.defended_budgets = (1000,)
    return c
