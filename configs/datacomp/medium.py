"""Experiment card: DataComp's medium scale, on a pool of your own.

Paper:     as in small.py, where the data and the differences stand too.
Recipe:    128 M pairs, as many samples seen; ViT-B/32, batch 4096, AdamW 5e-4, 500 warm-up steps.
Expected:  mean of 38 tasks .328, ImageNet .297, for the image-based filter AND the 30 % with the
           highest L/14 score (the released model, as open_clip lists it). Not run here.
Hardware:  ten times that of small.
Command:   python -m launch.datacomp --config=medium --metadata_dir=M --tars_dir=T --eval_dir=E
           --target_embeddings=N.npy --tokenizer=bpe_simple_vocab_16e6.txt.gz --language=COLUMN
           --workdir=out/datacomp_medium

N.npy holds the L/14 embeddings of the images of ImageNet's training set.
"""

from ml_collections import ConfigDict

from configs.datacomp import small


def get_config() -> ConfigDict:
    """Returns the config."""
    c = small.get_config()
    c.scale = "medium"
    c.filter = "image_based_intersect_clip_score"
    return c
