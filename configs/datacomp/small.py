"""Experiment card: DataComp's small scale, on a pool of your own.

Paper:     Gadre, Ilharco, Fang et al., "DataComp: In search of the next generation of multimodal
           datasets", NeurIPS 2023.
Recipe:    12.8 M pairs, as many samples seen; ViT-B/32, batch 4096, AdamW 5e-4, 500 warm-up steps.
Expected:  mean of 38 tasks .173, ImageNet .051, for the 30 % with the highest L/14 score (the
           released model, as open_clip lists it). Not run here.
Hardware:  about 4 hours of an A100 there.
Data:      the benchmark's own downloads: metadata (parquet, and npz for the image-based filter),
           tars of images with captions, the evaluation sets. Nothing is downloaded here.
Command:   python -m launch.datacomp --config=small --metadata_dir=M --tars_dir=T --eval_dir=E
           --tokenizer=bpe_simple_vocab_16e6.txt.gz --language=COLUMN --workdir=out/datacomp_small

Differences: pairs are drawn one by one (--sampling=shard: as there); bfloat16 in place of scaled
float16; exactly 3125 steps (there the number of workers adds some).
"""

from ml_collections import ConfigDict

from configs.datacomp import tiny


def get_config() -> ConfigDict:
    """Returns the config."""
    c = tiny.get_config()
    c.pool = "files"
    c.scale = "small"
    c.filter = "clip_score"
    c.arch = "l14"
    c.fraction = 0.3
    c.n_clusters = 100_000
    c.shard_size = 10_000
    c.tokenizer = ""
    c.crop = True
    c.remat = True
    c.decode_threads = 16
    c.tasks = ("all",)
    c.eval_batch_size = 64
    return c
