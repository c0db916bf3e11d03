"""What the scripts share: a warning they silence, and arguments that name files to write.

Import it before lt_det, so that the warning is silenced in time.
"""

import argparse
import os
import warnings
from pathlib import Path

# Detectron2 and fvcore script small functions at import; nothing a user can do about it.
warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")


def make_folder(folder):
    """Make a folder that files are to be written to.

    Raises:
        OSError: it cannot be made, or not be written to.
    """
    os.makedirs(folder, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"the folder {folder} cannot be written to")


def output_file(text):
    """For argparse: a file to write. Its folder is made now, so that nothing computed is lost."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; give the name of a file")
    try:
        make_folder(path.parent)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be written: {error}") from error
    return text


def picture_file(text):
    """For argparse: a picture to write, in a format that matplotlib has."""
    from matplotlib.backend_bases import FigureCanvasBase

    # pgf needs a TeX installation, and would fail only when it is written.
    formats = sorted(set(FigureCanvasBase.get_supported_filetypes()) - {"pgf"})
    if Path(text).suffix.lower().removeprefix(".") not in formats:
        raise argparse.ArgumentTypeError(
            f"{text} has no suffix of a picture; accepted: {', '.join(formats)}"
        )
    return output_file(text)
