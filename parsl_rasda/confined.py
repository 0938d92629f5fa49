"""Names that somebody else has chosen, as paths that stay in their folder."""

from __future__ import annotations

from pathlib import Path, PurePosixPath


def confined(folder: Path, name: str) -> Path:
    """Return the path of a name in a folder.

    Links in the folder are followed when they are opened: whoever made them could write there.

    Raises:
        ValueError: If the name leads out of the folder, or is none.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise ValueError(f"{name!r} leads out of {folder}")
    return folder / name
