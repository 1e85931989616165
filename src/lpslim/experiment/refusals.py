"""Refusals of Hydra and OmegaConf in the user's words: what was typed, and what it may be."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from lpslim.base.errors import RunError, UserError
from lpslim.experiment.config import Config, declared

KEYS = [key for key, _, _ in declared(Config())]
PLUGIN_KEYS = ("regularizer.options.", "regularizer.penalty_options.")


@contextmanager
def explained(words: Sequence[str], conf: Path = Path()) -> Iterator[None]:
    """Turn what Hydra raises in the block into a UserError of one line: what was typed, what it may be."""
    try:
        yield
    except (UserError, RunError):
        raise
    except Exception as problem:
        raise UserError(_explanation(problem, {key_of(word): word for word in words}, conf)) from problem


def _explanation(problem: Exception, typed: Mapping[str, str], conf: Path) -> str:
    # OmegaConf's errors know their key; under a debugger, or measured, they have causes that know none
    cause = problem if getattr(problem, "full_key", None) else problem.__cause__ or problem
    if isinstance(problem, OverrideParseException) or "" in typed:
        word = getattr(problem, "override", typed.get(""))
        return f"{word}: cannot be read as key=value; quote what is special: 'key=\"a b\"'"
    if isinstance(problem, MissingConfigException | ValueError):
        missing, known = getattr(problem, "missing_cfg_file", None) or "", getattr(problem, "options", None)
        for key, word in typed.items():
            empty = (conf / key).is_dir() and word.endswith(("=", "=null"))
            if missing.startswith(f"{key}/") or empty:
                files = (path.relative_to(conf / key) for path in (conf / key).rglob("[!_]*.yaml"))
                names = {*(str(path.with_suffix("")) for path in files), *(known or ())}
                choices = sorted(name for name in names if name[0] != "_")  # bases of others
                if word.partition("=")[2] in choices:  # a preset is there, but not Hydra's plug-in for it
                    return f"{word}: needs Hydra's plug-in {missing}"
                return f"{word}: must be one of {', '.join(choices)}"
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        key = str(cause.full_key)
        return no_such(key, [*KEYS, *(path.name for path in conf.iterdir())])
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        key = cause.full_key.partition("[")[0]
        return f"{typed.get(key, key)}: {str(cause.msg).splitlines()[0]}"
    text = " ".join(str(cause).split())
    if global_file := re.match(r"In '([^/']+)/([^']+)': ConfigKeyError.*: Key '\1' ", text):
        group, name = global_file.groups()
        line = "its first line must be '# @package _global_', with no byte-order mark before it"
        return f"{group}={name}: {line}, or all its keys stand below {group}"
    return text


def no_such(key: str, known: Sequence[str]) -> str:
    """Return that there is no such key, with those that are like it."""
    if key.startswith(PLUGIN_KEYS):
        return f"{key}: no such key; ++{key}=... adds it"
    spelled = {name.lower(): name for name in known}
    near = [spelled[name] for name in difflib.get_close_matches(key.lower(), spelled, n=2, cutoff=0.5)]
    hint = f"did you mean {' or '.join(near)}?" if near else "see --help"
    return f"{key}: no such key; {hint}"


def key_of(word: str) -> str:
    """Return the key of a word such as ``+key=value``."""
    return word.lstrip("+~").partition("=")[0]
