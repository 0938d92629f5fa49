"""Looking up plug-ins: what an installed package offers under one of our entry-point groups."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points

from parsl_rasda.errors import InvalidSettingError


def load_plugin(group: str, kind: object, *, key: str, built_in: Sequence[str]) -> object:
    """Return what an installed package offers as ``kind`` in an entry-point group.

    Args:
        group: For example ``parsl_rasda.schedulers``.
        kind: The name asked for, which is none of the built-in ones.
        key: The setting that asked, for the error.
        built_in: The kinds that need no plug-in, for the error.

    Raises:
        InvalidSettingError: If no package offers it; it lists what there is.
    """
    offered = {entry.name: entry for entry in entry_points(group=group)}
    if isinstance(kind, str) and kind in offered:
        plugin: object = offered[kind].load()
        return plugin
    names = ", ".join([*built_in, *sorted(offered)])
    raise InvalidSettingError(key, kind, f"{names} (packages add to them by entry points in {group!r})")
