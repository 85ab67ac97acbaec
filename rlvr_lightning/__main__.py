"""`python -m rlvr_lightning VERB ...`."""

import sys

from rlvr_lightning.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
