"""Experiment card: Git Re-Basin on real digits, small enough for a laptop.

Paper:     Ainsworth, Hayase & Srinivasa, Git Re-Basin, ICLR 2023 (MNIST MLP 3x512).
Expected:  paper: barrier 0 after matching. Here (1,437 images, width 256): the matching by weights
           keeps about 12 % of the naive train barrier, the one by activations about 4 %.
Hardware:  2 CPU cores.
Time:      75 seconds.
Command:   python -m launch.git_rebasin --config=tiny --workdir=out/git_rebasin
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config."""
    c = ConfigDict()
    # Data and networks.
    c.dataset = "digits"
    c.standardize = False
    c.model = "mlp"
    c.width = (32.0, 64.0, 256.0)
    c.depth = 3
    c.norm = "layer"
    c.conv = "patches"
    # Pair p trains from seeds seed_a + 2 p and seed_b + 2 p.
    c.n_pairs = 8
    c.seed_a = 0
    c.seed_b = 1
    c.models_at_once = 16
    # Training.
    c.epochs = 60
    c.batch_size = 100
    c.optimizer = "adam"
    c.learning_rate = 1e-3
    c.schedule = "cosine"
    c.warmup_epochs = 0.0
    c.momentum = 0.9
    c.weight_decay = 0.0
    c.augment = "none"  # or "crop_flip"
    c.epochs_per_checkpoint = 10
    # Or two checkpoints in place of training; module is "package.module:Class".
    c.checkpoint_a = ""
    c.checkpoint_b = ""
    c.module = ""
    c.module_kwargs = ""
    # Matching.
    c.method = ("weight", "activation", "ste")
    c.n_restarts = 1
    c.metric = "inner"
    c.calibration_size = 2000
    c.ste_steps = 100
    c.ste_batch_size = 200
    c.ste_learning_rate = 0.1
    c.ste_max_width = 64.0  # straight-through matching is skipped above
    # Measuring.
    c.n_lambdas = 25
    c.lambda_chunk = 5
    c.eval_batch_size = 2000
    c.repair = True
    c.merge_many = 5  # 0 is off
    c.n_planted = 10
    # A claim holds within its bound; all bounds are ratios of means over pairs.
    c.bounds = ConfigDict()
    c.bounds.weight_of_naive = 0.15
    c.bounds.activation_of_naive = 0.08
    c.bounds.widest_of_narrowest = 0.33
    c.bounds.ste_of_weight = 0.60
    c.bounds.planted = 0.9
    c.bounds.many_of_naive = 0.5
    return c
