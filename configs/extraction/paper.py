"""Experiment card: extraction from a GPT-2-shaped model of your own, at the paper's scale.

Paper:     Nasr et al., Scalable Extraction of Training Data from (Production) Language Models,
           2023: five tokens of Wikipedia before each generation, windows of 50 tokens, 1e9
           generated tokens a model.
Expected:  0.1 to 1 % of the tokens memorised, 1 to 10 million unique 50-grams, for open models of
           1 to 65 billion parameters. Not run here.
Hardware:  one 80 GB accelerator for generation; for matching, memory for the generations only, as
           the corpus is streamed once for each of the widths.
Data:      --huggingface=FOLDER with config.json, model.safetensors and tokenizer.json;
           --corpus=FOLDER with what the model was trained on, a document a text file, or token ids
           in .npy files; --prompts=FOLDER with text that it was not trained on.
Command:   python -m launch.extraction --config=paper --workdir=out/gpt2 --huggingface=FOLDER
           --corpus=FOLDER --prompts=FOLDER

Differences: none is known; how the paper samples is second-hand.
"""

from ml_collections import ConfigDict

from configs.extraction import tiny


def get_config() -> ConfigDict:
    """Returns the config."""
    c = tiny.get_config()
    c.n_generations = 4_000_000
    c.generation_seeds = 1
    c.n_tokens = 250
    c.batch_size = 1024
    c.index = "stream"
    c.widths = (50,)
    c.prefix_length = 50
    c.n_sequences = 10_000
    c.n_ranked = 100_000
    c.words = (" poem", " company", " send")
    c.divergence_rows = 10_000
    c.divergence_prompt = 50
    return c
