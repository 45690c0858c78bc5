"""Command-line scripts, one a paper: ``python -m launch.<paper>``."""
