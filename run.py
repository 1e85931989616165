"""Train, sparsify, prune and fine-tune one network, or sweep over many: ``python run.py --help``."""

import sys
from pathlib import Path

from lpslim import cli

if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:], Path(__file__).parent.absolute() / "conf"))
