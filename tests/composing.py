"""Compose a configuration as the command line does, in this process."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from lpslim import cli

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"

cli.register(CONF)


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))
