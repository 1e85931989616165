"""Options that all renderers share on their command lines."""

from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

from reproduce.aggregate import PROTOCOL


def folder(text: str) -> Path:
    """Return the path of a folder, for argparse."""
    if not (path := Path(text)).is_dir():
        raise ArgumentTypeError(f"{text}: no such folder")
    return path


def command_line(name: str, about: str | None) -> ArgumentParser:
    """Return the parser of the options that all renderers share."""
    parser = ArgumentParser(f"python -m reproduce.{name}", description=about)
    parser.add_argument("--results", type=folder, default="results", help="folder of records/ and output")
    parser.add_argument("--protocol", choices=PROTOCOL, default="last", help="which accuracy to show")
    parser.add_argument("--outdated", action="store_true", help="also what older code measured, with a mark")
    return parser
