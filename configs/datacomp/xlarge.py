"""Experiment card: DataComp's xlarge scale, on a pool of your own.

Paper:     as in small.py, where the data and the differences stand too.
Recipe:    12.8 B pairs, as many samples seen; ViT-L/14, batch 90112, AdamW 1e-3 (b2 0.95), 10000
           warm-up steps, bfloat16. 40960 samples would not fill a batch and are dropped.
Expected:  mean of 38 tasks .663, ImageNet .792, for the image-based filter AND the 30 % with the
           highest L/14 score, DataComp-1B (the released model; open_clip lists it). Not run here.
Hardware:  hundreds of accelerators; start the same command on each host with --distributed.
Command:   python -m launch.datacomp --config=xlarge --metadata_dir=M --tars_dir=T --eval_dir=E
           --target_embeddings=N.npy --tokenizer=bpe_simple_vocab_16e6.txt.gz --language=COLUMN
           --workdir=out/datacomp_xlarge

N.npy holds the L/14 embeddings of the images of ImageNet's training set.
"""

from ml_collections import ConfigDict

from configs.datacomp import small


def get_config() -> ConfigDict:
    """Returns the config."""
    c = small.get_config()
    c.scale = "xlarge"
    c.filter = "image_based_intersect_clip_score"
    c.split_state = True
    return c
