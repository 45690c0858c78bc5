"""Downloads a data set and prepares it for reading without TensorFlow.

  python -m launch.prepare_data --name=cifar10
  python -m launch.prepare_data --name=cifar10 --data_dir=data

NAME is a name in the catalogue of tensorflow-datasets. The bundled sets need no preparation.
"""

import sys
from collections.abc import Sequence

from absl import flags

from launch import _app, _flags


def main(argv: Sequence[str]) -> int:
    """Prepares the set that the command line names, prints its folder and returns 0."""
    again = "the same command goes on with the files that it has"
    with _app.one_sentence("prepare_data"), _app.interruptible("prepare_data", again):
        values = flags.FlagValues()
        values.set_gnu_getopt()
        flags.DEFINE_string("name", None, "name of the data set", flag_values=values)
        flags.DEFINE_string(
            "data_dir",
            None,
            "where to prepare it; $TFDS_DATA_DIR or ~/tensorflow_datasets by default",
            flag_values=values,
        )
        flags.DEFINE_boolean("help", False, "print this", short_name="h", flag_values=values)
        for argument in _flags.parse(values, argv):
            _flags.refuse(argument, values)
        if values.help:
            print(_flags.help_text(__doc__, values))
            return 0
        if not values.name:
            raise _flags.UserError("--name is missing, as in --name=cifar10")
        from jaxml.data import tfds_source

        try:
            print(tfds_source.prepare(values.name, data_dir=values.data_dir, download=True))
        except (ValueError, OSError) as error:
            raise _flags.UserError(str(error)) from error
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
