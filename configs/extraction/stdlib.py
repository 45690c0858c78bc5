"""Experiment card: the same model, ten times the generations.

Paper:     Nasr et al., Scalable Extraction of Training Data from (Production) Language Models,
           2023.
Expected:  not run here; ten times the generations of tiny show how the number of unique windows
           goes on.
Hardware:  2 CPU cores.
Time:      not measured; some ten minutes by the speed of tiny.
Command:   python -m launch.extraction --config=stdlib --workdir=out/extraction_stdlib
"""

from ml_collections import ConfigDict

from configs.extraction import tiny


def get_config() -> ConfigDict:
    """Returns the config."""
    c = tiny.get_config()
    c.n_generations = 8960
    c.n_ranked = 2000
    c.n_halves = 50
    return c
