"""Experiment card: all three recipes across domains, small enough for a laptop.

Paper:     none: what the papers of this package give together.
Expected:  as on the cards of the three, of which this config consists.
Hardware:  2 CPU cores.
Time:      110 seconds.
Command:   python -m launch.compose --config=tiny --workdir=out/compose
"""

from ml_collections import ConfigDict

from configs.compose import filter_train_extract, merge_verify, poison_detect_retrain


def get_config() -> ConfigDict:
    """Returns the config."""
    c = ConfigDict()
    for recipe in (poison_detect_retrain, merge_verify, filter_train_extract):
        c.update(recipe.get_config())
    return c
