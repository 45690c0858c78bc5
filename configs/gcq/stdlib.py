"""Experiment card: GCQ with the queries that its goal was set on, and three seeds.

Paper:     Hayase, Borevkovic, Carlini, Tramer & Nasr, Query-Based Adversarial Prompt Generation,
           NeurIPS 2024 (gpt-3.5-turbo-instruct, 574 strings, proxy Mistral-7B).
Expected:  not run as a whole. With 5,000 queries random and position-first search solve 9 of 12
           targets in one seed; the other three stay unsolved by white-box GCG too.
Hardware:  2 CPU cores.
Time:      not measured; 5,000 queries on the targets that stay unsolved take most of it.
Command:   python -m launch.gcq --config=stdlib --workdir=out/gcq_stdlib
"""

from configs.gcq import tiny


def get_config():
    """Returns the config: ``tiny`` with 5,000 queries, three seeds and twice the neighbours."""
    c = tiny.get_config()
    c.max_queries = 5000
    c.seeds = 3
    c.proxy_batch = 256
    c.searches = (*c.searches, "gcq, ideal proxy")
    c.detector.universal_queries = 40_000
    return c
