"""Train, sparsify, prune and fine-tune one network, or sweep over many: ``python run.py --help``."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from lpslim import cli

CONF = Path(__file__).parent / "conf"
cli.register(CONF)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(composed: DictConfig) -> object:
    """Compose, check, run; the record's path is the last line. What is returned, a sweep sums up."""
    cli.register(CONF)  # again, for a sweep's process that did not begin with this file
    return cli.task(composed)


if __name__ == "__main__":
    cli.guarded(main)
