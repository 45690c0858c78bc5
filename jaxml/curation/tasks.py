"""The benchmark's evaluation tasks: 40, of which 38 count."""

from typing import NamedTuple

GROUPS = ("imagenet", "shifts", "vtab", "retrieval")


class Task(NamedTuple):
    """One evaluation set.

    Attributes:
      key: its path, as in the reference's task list.
      name: as results files write it.
      size: images, or cues with candidates.
      n_classes: None for retrieval.
      chance: score of an uninformed answer, as the reference states it; None where it does not.
      metric: the main one; None for a task that does not count.
      group: one of ``GROUPS``, or "" for a task that counts in the average alone.
      tfds: name of the set in tensorflow-datasets; "" where it has none with the same labels.
    """

    key: str
    name: str
    size: int
    n_classes: int | None
    chance: float | None
    metric: str | None
    group: str = ""
    tfds: str = ""


# fmt: off
_ROWS = (
    ("vtab/caltech101", "Caltech-101",
     6085, 102, 0.009804, "mean_per_class_recall", "vtab", "caltech101"),
    ("cifar10", "CIFAR-10", 10000, 10, 0.1, "acc1", "", "cifar10"),
    ("vtab/cifar100", "CIFAR-100", 10000, 100, 0.01, "acc1", "vtab", "cifar100"),
    ("vtab/clevr_count_all", "CLEVR Counts", 15000, 8, 0.125061, "acc1", "vtab"),
    ("vtab/clevr_closest_object_distance", "CLEVR Distance", 15000, 6, 0.19052, "acc1", "vtab"),
    ("country211", "Country211", 21100, 211, 0.004739, "acc1"),
    ("vtab/dtd", "Describable Textures", 1880, 47, 0.021277, "acc1", "vtab", "dtd"),
    ("vtab/eurosat", "EuroSAT", 5400, 10, 0.101483, "acc1", "vtab", "eurosat"),
    ("fgvc_aircraft", "FGVC Aircraft", 3333, 100, 0.01, "mean_per_class_recall"),
    ("food101", "Food-101", 25250, 101, 0.009901, "acc1", "", "food101"),
    ("gtsrb", "GTSRB", 12630, 43, 0.037604, "acc1"),
    ("imagenet1k", "ImageNet 1k", 50000, 1000, 0.001, "acc1", "imagenet", "imagenet2012"),
    ("imagenet_sketch", "ImageNet Sketch", 50889, 1000, 0.001, "acc1", "shifts", "imagenet_sketch"),
    ("imagenetv2", "ImageNet v2", 10000, 1000, 0.001, "acc1", "shifts", "imagenet_v2"),
    ("imagenet-a", "ImageNet-A", 7500, 200, 0.008056, "acc1", "shifts", "imagenet_a"),
    ("imagenet-o", "ImageNet-O", 2000, 200, 0.006047, "acc1", "shifts"),
    ("imagenet-r", "ImageNet-R", 30000, 200, 0.006163, "acc1", "shifts", "imagenet_r"),
    ("vtab/kitti_closest_vehicle_distance", "KITTI Vehicle Distance",
     711, 4, 0.295289, "acc1", "vtab"),
    ("mnist", "MNIST", 10000, 10, 0.10035, "acc1", "", "mnist"),
    ("objectnet", "ObjectNet", 18574, 113, 0.009481, "acc1", "shifts"),
    ("vtab/flowers", "Oxford Flowers-102",
     6149, 102, 0.009804, "mean_per_class_recall", "vtab", "oxford_flowers102"),
    ("vtab/pets", "Oxford-IIIT Pet",
     3669, 37, 0.027027, "mean_per_class_recall", "vtab", "oxford_iiit_pet"),
    ("voc2007", "Pascal VOC 2007", 14976, 20, 0.154038, "acc1"),
    ("vtab/pcam", "PatchCamelyon", 32768, 2, 0.5, "acc1", "vtab", "patch_camelyon"),
    ("renderedsst2", "Rendered SST2", 1821, 2, 0.500001, "acc1"),
    ("vtab/resisc45", "RESISC45", 6300, 45, 0.022342, "acc1", "vtab", "resisc45"),
    ("cars", "Stanford Cars", 8041, 196, 0.00516, "acc1", "", "cars196"),
    ("stl10", "STL-10", 8000, 10, 0.1, "acc1", "", "stl10"),
    ("sun397", "SUN397", 108754, 397, 0.004645, "acc1", "vtab", "sun397"),
    ("vtab/svhn", "SVHN", 26032, 10, 0.117897, "acc1", "vtab", "svhn_cropped"),
    ("retrieval/flickr_1k_test_image_text_retrieval", "Flickr",
     1000, None, None, "mean_recall@1", "retrieval"),
    ("retrieval/mscoco_2014_5k_test_image_text_retrieval", "MSCOCO",
     5000, None, None, "mean_recall@1", "retrieval"),
    ("misc/winogavil", "WinoGAViL", 3563, None, 0.205, "jaccard_score_10-12", "retrieval"),
    ("wilds/iwildcam", "iWildCam", 42791, 182, 0.143056, "F1-macro_all"),
    ("wilds/camelyon17", "Camelyon17", 85054, 2, 0.5, "acc1"),
    ("wilds/fmow", "FMoW", 22108, 62, 0.027193, "acc_worst_region"),
    ("fairness/dollar_street", "Dollar Street", 3503, 58, None, "acc_top5_wg"),
    ("fairness/geode", "GeoDE", 12488, 40, None, "acc_wg"),
    ("fairness/fairface", "FairFace", 10954, None, None, None),
    ("fairness/utkface", "UTKFace", 23703, None, None, None),
)
# fmt: on

TASKS: dict[str, Task] = {row[1]: Task(*row) for row in _ROWS}
"""By name."""

AVERAGED = tuple(task.name for task in TASKS.values() if task.metric is not None)
"""The 38 tasks of the average."""
