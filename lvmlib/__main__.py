"""``python -m lvmlib``: see `lvmlib.experiments.cli`."""

import sys

from lvmlib.experiments.cli import main

if __name__ == "__main__":
    sys.exit(main())
