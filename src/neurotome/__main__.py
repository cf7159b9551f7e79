"""``python -m neurotome``: the same as the command ``neurotome``."""

import sys

from neurotome.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
