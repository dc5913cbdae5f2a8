"""``python -m rsbackbones``: the command line."""

import sys

from rsbackbones.cli import main

if __name__ == "__main__":
    sys.exit(main())
