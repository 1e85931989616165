"""The one exception for mistakes of the user's: shown without a traceback, exit code 2."""


class UserError(Exception):
    """Bad input: the message names the key, the value and what it may be."""
