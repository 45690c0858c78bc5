"""Experiment card: drop duplicates from a pool of text, train on it, count what can be extracted.

Paper:     none: exact deduplication of a pool, training of a small GPT, and extraction against an
           exact index. That duplicates drive extraction is known from Lee et al., "Deduplicating
           Training Data Makes Language Models Better", 2022, and Kandpal, Wallace & Raffel, 2022.
Expected:  here, means over 3 pools: 45 % of the planted excerpts are extracted from the model
           that read all (none of up to 4 copies, 83 % at 16, all from 32 on), none without
           duplicates (another run: 48 %); loss on unseen text 3.58 against 3.23 nats a token.
Hardware:  2 CPU cores.
Time:      50 seconds.
Command:   python -m launch.compose --config=filter_train_extract --workdir=out/extract
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config."""
    c = ConfigDict()
    c.n_seeds = 3
    # Pool: pieces of the source files of Python's standard library, and excerpts of other files
    # planted in it as often as levels say.
    c.body_bytes = 40_000
    c.piece_bytes = 1000
    c.levels = (1, 2, 4, 8, 16, 32, 64)
    c.excerpts_per_level = 2
    c.excerpt_bytes = 400
    c.held_out_bytes = 20_000
    c.vocab_size = 512
    # Model, trained for as many steps on the pool with and without duplicates.
    c.context = 64
    c.width = 64
    c.depth = 2
    c.heads = 4
    c.steps = 300
    c.batch_size = 16
    c.learning_rate = 3e-3
    c.weight_decay = 0.1
    # An excerpt is extracted if the first prompt_tokens, decoded greedily, go on with the next
    # window tokens; and samples are searched for windows of the pool.
    c.prompt_tokens = 20
    c.window = 20
    c.n_samples = 128
    # A claim holds within its bound; in points of the excerpts that are extracted.
    c.bounds = ConfigDict()
    c.bounds.all_over_deduplicated = 25.0
    return ConfigDict({"filter_train_extract": c})
