"""Experiment card: extraction of planted text from a small model, small enough for a laptop.

Paper:     Nasr et al., Scalable Extraction of Training Data from (Production) Language Models,
           2023 (models of 1 to 65 billion parameters).
Expected:  paper: 0.1 to 1 % of the tokens memorised, 1 to 10 million unique 50-grams, for open
           models. Here, three models (--seed 0, 1, 2) of 0.54 million parameters, 2688
           generations of 122 tokens each, windows of 50 tokens:
             memorised tokens 2.5, 3.6, 2.7 %; unique windows 295, 351, 317; by windows of 10, 20,
             50, 100 tokens 14, 5.2, 2.5, 0.28 % (seed 0)
             extracted of what is planted 64 times, medians of 896 generations, 94, 96, 95 % (all
             2688: 98 to 100); 32 times, all, 66, 97, 75; 16 times 2, 7, 0; fewer 0; windows of the
             rest that occur once at most 0.02; by the control none that is planted
             discoverable of 429 planted sequences 229, 205, 224, extractable 112, 113, 109, all of
             them discoverable too
             intervals from random halves hold the number of all 20 of 20 times, for each model;
             they are as wide as a third to a half of it
             memorised among the first 100 of a ranking of 512, near-duplicates left out:
             perplexity 12, 10, 11 %, zlib 13, 11, 11 %, of 2 to 3 %; AUC 0.90 to 0.94 and 0.96 to
             0.98
             exposure of canaries planted 64 times 12 of 12 bits, of others 1.1 to 1.6
             divergence: 0.6, 1.3, 1.4 times the rate after short prompts, 0 to 17 % by the word:
             nothing to be said, and the model is no chat model
Hardware:  2 CPU cores.
Time:      45 seconds, and once 3 minutes for the model and its control.
Command:   python -m launch.extraction --config=tiny --workdir=out/extraction
"""

from ml_collections import ConfigDict

from configs._language import language_model


def get_config() -> ConfigDict:
    """Returns the config."""
    c = ConfigDict()
    # Which part to do; earlier parts have to be in the workdir.
    c.mode = "all"  # or "train", "generate", "match", "estimate", "rank", "divergence"
    # The model that is trained where no other is given, and its text.
    c.lm = language_model()
    # A model of your own: a folder in Hugging Face's GPT-2 layout, or a Flax module with its
    # parameters; "" for none.
    c.huggingface = ""  # folder with config.json, model.safetensors, tokenizer.json
    c.module = ""  # "package.module:Class"
    c.module_kwargs = ""  # JSON
    c.checkpoint = ""  # safetensors
    c.tokenizer = ""  # tokenizer.json
    c.context = 0  # tokens that the module takes; 0: its own attribute
    c.bos = -1  # id that begins documents; -1: that of the tokenizer's <|endoftext|>
    c.corpus = ""  # what it was trained on: a folder of text files, or .npy files of token ids
    c.prompts = ""  # text that it was not trained on; "": the topics of Python's help()
    # Generations: after prompt_length tokens of unread text, each with a key of its own.
    c.n_generations = 896  # of each seed
    c.generation_seeds = 3
    c.prompt_length = 5
    c.n_tokens = 122
    c.top_k = 40  # 0: all tokens
    c.temperature = 1.0
    c.batch_size = 128
    c.part_size = 8192  # generations that are kept at a time, to go on from
    # Matching: a window index of the corpus in memory, or the corpus streamed from its files.
    c.index = "window"  # or "stream"
    c.shards = 1
    c.block_size = 131_072  # tokens of the stream at a time
    c.window = 50
    c.widths = (10, 20, 50, 100)
    # Discoverable: greedy decoding after a training prefix. The paper has 50 and 50 tokens.
    c.prefix_length = 25
    c.suffix_length = 50
    c.n_sequences = 64  # of each level
    # Estimates, by bootstrap over generations.
    c.n_resamples = 200
    c.n_halves = 20
    c.factors = (2.0, 5.0, 10.0)
    # Ranking without the corpus, and exposure.
    c.n_ranked = 512  # of the first seed's generations
    c.precision_at = 100
    c.untrained_seeds = 3
    c.n_references = 4096
    # Divergence: words that are repeated in the prompt.
    c.divergence_rows = 64  # generations of each word; 0: none
    c.divergence_prompt = 24  # tokens
    c.words = (" the", " self", " import", " return", "hello jax world ", "all tests are green ")
    c.word_ids = ()  # token ids of more words, for a corpus without a tokenizer
    # A claim holds within its bound.
    c.bounds = ConfigDict()
    c.bounds.memorised_tokens = 1.0  # percent
    c.bounds.most_planted = 30.0  # percent of their windows
    c.bounds.body = 0.5
    c.bounds.coverage = 0.8  # of intervals
    c.bounds.auc = 0.95
    c.bounds.untrained_auc = 0.15  # from 0.5
    c.bounds.exposure = 10.0  # bits
    c.bounds.unplanted = 1.0  # bits, from 1 / ln 2
    return c
