"""Which backend reaches a site: the only module that knows those there are, and imports them when asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

from parsl_rasda.orchestration.backend import Backend, BackendContext
from parsl_rasda.plugins import load_plugin
from parsl_rasda.study.plugins import BACKENDS
from parsl_rasda.study.sites import ExecutorSite, GlobusSiteSpec, ParslSiteSpec, PluginSiteSpec, SiteSpec


class EmbeddedBackend(Backend, Protocol):
    """A backend inside a program that may end before its search does."""

    def lose(self, cause: str) -> None:
        """Count every pilot as ended by its owner."""
        ...


def build_backend(site: SiteSpec, context: BackendContext) -> Backend:
    """Return the backend of a site; nothing is started before it is opened.

    Args:
        site: ``provider:`` is reached by Parsl, ``endpoint_id:`` by Globus Compute, ``backend: NAME`` by
            what an installed package offers under that name: a class that takes a site and a context.
        context: Of the study.

    Raises:
        InvalidSettingError: If no package offers the backend, or it refuses a setting of the site.
        RunDirectoryError: If it cannot work in the run directory.
    """
    match site:
        case ParslSiteSpec():
            from parsl_rasda.backends.parsl.backend import build

            return build(site, context)
        case GlobusSiteSpec():
            from parsl_rasda.backends.globus.backend import GlobusBackend

            return GlobusBackend(site, context)
        case PluginSiteSpec():
            plugin = load_plugin(BACKENDS, site.backend, key=f"site {site.name}: backend", built_in=())
            # What a package offers is known when it is used: the contract suite is for its author.
            return cast("Callable[[SiteSpec, BackendContext], Backend]", plugin)(site, context)


def build_embedded_backend(site: ExecutorSite, context: BackendContext, kernel: Any) -> EmbeddedBackend:
    """Return the backend of an executor of a loaded ``parsl.DataFlowKernel`` (Parsl is untyped)."""
    from parsl_rasda.backends.parsl.backend import attach

    return attach(site, context, kernel)
