"""Compose configurations as the command line does, in this process."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from lpslim import cli
from lpslim.experiment.config import Config

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"

ConfigStore.instance().store(name="schema", node=Config)


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))


def configured(*overrides: str) -> Config:
    """Return what a command line of these words runs, checked."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        both = cli.compose(overrides, CONF)
        return cli.checked(both, both.hydra)
