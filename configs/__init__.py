"""Experiment cards: one folder a paper, one ``get_config()`` a file."""
