"""Experiment card: ZonoDual on real digits, small enough for a laptop.

Paper:     Jordan, Hayase, Dimakis & Oh, Zonotope Domains for Lagrangian Neural Network
           Verification, NeurIPS 2022 (MNIST, CIFAR-10).
Expected:  paper: tighter than the linear-programming relaxation, in less time. Here, mean gain over
           CROWN's bound of 6.25: LP 0.03, ZD-2D 0.47, ZD-MIP 1.66 (an attack attains 11.6), ZD-2D
           in 0.3 to 0.8 of the LP's time. Margins certified at radius 0.12: 51 of 135, CROWN
           43; over six networks 1.10 to 1.21 times as many, for the gain lifts few over 0.
Hardware:  2 CPU cores.
Time:      25 seconds.
Command:   python -m launch.zonodual --config=tiny --workdir=out/zonodual
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config."""
    c = ConfigDict()
    c.dataset = "digits"  # images in [0, 1]; every eps is in these units, and boxes are clipped
    # Network: "mlp", or "ffnet", "deep", "wide" of the paper; n_networks from as many seeds.
    c.model = "mlp"
    c.width = 100
    c.depth = 2
    c.n_networks = 1
    # Training, on inputs attacked within adversarial_eps (0: plain).
    c.adversarial_eps = 0.06
    c.adversarial_steps = 3
    c.epochs = 60
    c.batch_size = 100
    c.learning_rate = 3e-3
    c.epochs_per_checkpoint = 20
    # Or a checkpoint in place of training; module is "package.module:Class".
    c.checkpoint = ""
    c.module = ""
    c.module_kwargs = ""
    # Margins that are bounded by every method: of the first n_images that are classified right.
    c.n_images = 6
    c.eps = 0.08
    c.targets = "next"  # label + 1, as in the paper; or "all"
    c.methods = ("ibp", "deepz", "crown", "alpha", "box", "lp", "zd2d", "zdmip")  # and "mip"
    # Certified accuracy over the first sweep_images, at each radius.
    c.sweep_eps = (0.04, 0.06, 0.08, 0.1, 0.12)
    c.sweep_images = 16
    c.sweep_steps = 200
    c.images_at_once = 4
    # ZonoDual.
    c.partition = "similarity"  # or "random", "axalign", "single"; "spatial", "depthwise" for convs
    c.start = "crown"  # or "zero", "kw", "alpha"
    c.steps = 1000
    c.layer_steps = 0  # steps for every hidden neuron first: tighter boxes, and slow
    c.dual_rate = 1e-2
    c.dual_decay = 0.75  # every dual_decay_every steps
    c.dual_decay_every = 100
    c.max_order = 0  # generators for each value that are kept; 0 keeps all
    c.group_size = 16  # of ZD-MIP, in the last relu layer
    c.group_seconds = 5.0  # at most, for each group
    c.mip_seconds = 15.0  # at most, for each exact program
    c.attack_steps = 50
    # Or files in place of all this: one property, or a list "onnx,vnnlib,timeout" a line.
    c.onnx = ""
    c.vnnlib = ""
    c.instances = ""
    c.timeout = 60.0
    # A claim holds within its bound.
    c.bounds = ConfigDict()
    c.bounds.zd_gain_over_lp_gain = 2.0  # of means over images, both over CROWN
    # Of medians, certificates apart; between the two, other work on the machine may decide.
    c.bounds.zd_seconds_over_lp_seconds = (1.0, 2.0)
    c.bounds.mip_gain_over_zd_gain = 2.0  # both over the LP
    c.bounds.certified_over_crown = 1.05  # margins, at the largest radius of the sweep
    return c
