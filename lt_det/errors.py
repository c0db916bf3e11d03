"""Errors that a user can act on.

``tools/train_net.py`` prints these as one message, without a traceback.
"""

from __future__ import annotations


class LtDetError(Exception):
    """Base of the errors below."""


class ConfigError(LtDetError, ValueError):
    """A configuration value that cannot be used; the message names the key."""


class DataError(LtDetError, ValueError):
    """An annotation or image that cannot be used; the message names file, image and annotation."""


class MissingFileError(LtDetError, FileNotFoundError):
    """A file that is not there.

    The message names the path looked for, the environment variable that moves it and the
    script that prepares it.
    """

    def __str__(self) -> str:
        # FileNotFoundError with one argument would print it fine, but with two it would
        # read them as (errno, text).
        return " ".join(str(a) for a in self.args)


class CheckpointError(LtDetError, RuntimeError):
    """A checkpoint that does not fit the model; the message names file, parameter and key."""


def user_message(error: LtDetError) -> str:
    """The message of `error` alone.

    An error of a loader process arrives with that process's traceback in its text; its own
    message is what follows the last line that names its class.
    """
    return str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].strip()
