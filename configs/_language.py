"""The recipe of the language model that two papers audit, each with its own share of copying."""

from ml_collections import ConfigDict


def language_model() -> ConfigDict:
    """Returns the fields of ``lm``."""
    c = ConfigDict()
    # Text: a body of pieces of the corpus, with excerpts and canaries planted in it 1 to 64 times;
    # a disjoint body for the control, as long as that all together; and what nobody reads.
    c.corpus = "stdlib"
    c.body_bytes = 240_000
    c.piece_bytes = 4000
    c.held_out_bytes = 160_000
    c.excerpts_per_level = 4
    c.excerpt_bytes = 320
    c.canaries_per_level = 4
    c.copy_share = 0.2  # of the tokens, in documents that repeat themselves
    c.vocab_size = 1024
    # Model.
    c.context = 128
    c.width = 128
    c.depth = 2
    c.heads = 4
    # Training.
    c.passes = 2  # differently cut and ordered, each gone through in every epoch
    c.epochs = 4
    c.batch_size = 16
    c.learning_rate = 3e-3
    c.weight_decay = 0.1
    c.warmup_steps = 50
    return c
