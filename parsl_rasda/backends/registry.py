"""Which backend reaches a site: the only module that knows those there are, and imports them when asked."""

from __future__ import annotations

from typing import Any, Protocol

from parsl_rasda.orchestration.backend import Backend, BackendContext
from parsl_rasda.plugins import BACKENDS
from parsl_rasda.study.sites import ExecutorSite, SiteSpec


class EmbeddedBackend(Backend, Protocol):
    """A backend inside a program that may end before its search does."""

    def lose(self, cause: str) -> None:
        """Count every pilot as ended by its owner."""
        ...


def build_backend(site: SiteSpec, context: BackendContext) -> Backend:
    """Return the backend of a site; nothing is started before it is opened.

    Args:
        site: ``provider:`` is reached by Parsl, ``endpoint_id:`` by Globus Compute, ``backend: NAME`` by
            the plug-in of that name, which is called with its options, the site and the context.
        context: Of the study.

    Raises:
        InvalidFileError: If there is no such plug-in, or its options are wrong.
        InvalidSettingError: If it refuses a setting of the site.
        RunDirectoryError: If it cannot work in the run directory.
    """
    backend: Backend = BACKENDS.build(site.backend_choice, site, context)
    return backend


def build_embedded_backend(site: ExecutorSite, context: BackendContext, kernel: Any) -> EmbeddedBackend:
    """Return the backend of an executor of a loaded ``parsl.DataFlowKernel`` (Parsl is untyped)."""
    from parsl_rasda.backends.parsl.backend import attach

    return attach(site, context, kernel)
