"""Experiment card: GCQ with the batches and the buffer of the paper.

Paper:     Hayase, Borevkovic, Carlini, Tramer & Nasr, Query-Based Adversarial Prompt Generation,
           NeurIPS 2024 (gpt-3.5-turbo-instruct, 574 strings, proxy Mistral-7B).
Expected:  paper: 28 % by initialisation alone, 79.6 % within 0.10 dollars a target and 86 % within
           0.20 (second-hand); not run here.
           The launcher audits the study's own model; weights of yours go through the library
           (`language.run_search` with `LogprobOracle`; `completions_top_k` asks a server of yours).
Hardware:  2 CPU cores carry the study's own models. Through the library, one accelerator with room
           for target and proxy; the candidates are split over a mesh.
Time:      not measured. 8192 neighbours of 50 tokens through a proxy of 7 billion parameters, as in
           the paper, are about 6 PFLOP a step.
Command:   python -m launch.gcq --config=paper --targets_file=targets.txt --workdir=out/gcq_paper
"""

from configs.gcq import tiny


def get_config():
    """Returns the config: the paper's batches and buffer."""
    c = tiny.get_config()
    c.proxy_batch = 8192
    c.query_batch = 32
    c.buffer_size = 128
    c.expand = "best"
    c.max_queries = 50_000
    c.top_k = 256
    c.gcg_batch = 512
    c.n_tries = 64
    return c
