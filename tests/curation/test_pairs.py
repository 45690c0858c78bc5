"""Pairs out of tars: every one found, images prepared as in evaluation or cropped at random."""

import concurrent.futures
import io

import numpy as np
import pytest
from PIL import Image

from jaxml.curation import open_pairs, prepare_image, read_pairs, write_shard
from jaxml.curation.pairs import MEAN, STD


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders with 3 and 2 pairs, the last of which is a copy; one sample has no text."""
    root = tmp_path_factory.mktemp("tars")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
    samples = [(f"u{i}-0", {"png": png(x), "txt": f"text {i}"}) for i, x in enumerate(images)]
    samples[4] = ("u0-1", samples[0][1])
    write_shard(root / "a" / "00000000.tar", samples[:2])
    write_shard(root / "a" / "00000001.tar", [("lonely", {"png": png(images[0])}), samples[2]])
    write_shard(root / "b" / "00000000.tar", samples[3:])
    return [root / "a", root / "b"], images


def test_every_pair_comes_back(folders):
    paths, images = folders
    pairs = open_pairs(paths)
    assert pairs.n_pairs == 5 and pairs.sizes.tolist() == [2, 1, 2]
    assert pairs.folder_sizes.tolist() == [3, 2]
    x, texts = read_pairs(pairs, np.array([4, 1, 3, 1]), image_size=8)
    assert texts == ["text 0", "text 1", "text 3", "text 1"]
    wanted = (images[[0, 1, 3, 1]] / 255 - MEAN) / STD
    np.testing.assert_allclose(x, wanted, atol=1e-5)
    assert x.dtype == np.float32
    assert (pairs.ids[0] == pairs.ids[4]).all() and len(np.unique(pairs.ids, axis=0)) == 4


def test_crops_depend_on_seed_step_and_place_and_not_on_threads(folders):
    pairs = open_pairs(folders[0])
    rows = np.array([0, 1, 2, 0])
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        x, y = (
            read_pairs(pairs, rows, image_size=6, seed=5, step=7, pool=p)[0] for p in (None, pool)
        )
    np.testing.assert_array_equal(x, y)
    assert (read_pairs(pairs, rows, image_size=6, seed=5, step=8)[0] != x).any()
    assert x.shape == (4, 6, 6, 3)


def test_evaluation_takes_the_middle_square():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    white = prepare_image(png(wide), image_size=10)
    np.testing.assert_allclose(
        white, np.broadcast_to((1 - np.array(MEAN)) / STD, (10, 10, 3)), rtol=1e-5
    )
    grey = prepare_image(wide[..., :1], image_size=4, channels=1)
    assert grey.shape == (4, 4, 1)


@pytest.mark.parametrize("shape", [(40, 40), (20, 300), (300, 20)])
def test_a_random_crop_keeps_most_of_the_image(shape):
    # A ramp: the crop's mean tells where it was, its range how large.
    ramp = np.linspace(0, 255, shape[0] * shape[1]).reshape(shape).astype(np.uint8)[..., None]
    seen = [
        prepare_image(ramp, image_size=8, channels=1, rng=np.random.default_rng(i))
        for i in range(5)
    ]
    assert all(np.isfinite(x).all() and x.shape == (8, 8, 1) for x in seen)
    if shape == (40, 40):
        assert len({float(x.mean()) for x in seen}) > 1
        assert min(float(np.ptp(x)) for x in seen) * STD[1] > 0.8


def test_bad_folders_are_refused(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no \*.tar in"):
        open_pairs([tmp_path])
    write_shard(tmp_path / "x" / "0.tar", [("a", {"txt": "no image"})])
    with pytest.raises(ValueError, match="no image with a text in"):
        open_pairs([tmp_path / "x"])
    whole = (folders[0][0] / "00000000.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[:700])
    with pytest.raises(ValueError, match=r"0\.tar cannot be read to its end"):
        open_pairs([tmp_path])
