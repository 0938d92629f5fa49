"""Sites behind a Globus Compute endpoint, which has one pilot.

On the controller: `backend` (the port), `pilot` (how the endpoint's pilot is come by, after a `handshake`),
`jobs`, `stages`, `client` (tasks and their results, with `rate_limited_client`), `record` and `recovery`
(what the next controller must know). What the endpoint runs is `agent.endpoint_tasks`. The SDK is imported on
opening.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from parsl_rasda.plugins import NoOptions, Plugin

if TYPE_CHECKING:
    from parsl_rasda.orchestration.backend import Backend, BackendContext
    from parsl_rasda.study.sites import GlobusSiteSpec


def _build(_: NoOptions, site: GlobusSiteSpec, context: BackendContext) -> Backend:
    from parsl_rasda.backends.globus.backend import GlobusBackend

    return GlobusBackend(site, context)


PLUGIN = Plugin(_build)
