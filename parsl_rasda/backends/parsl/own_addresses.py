"""Where a site's pilots reach this machine: asked of its interfaces before anything is queued."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator

from parsl_rasda.agent.lean_parsl import import_parsl
from parsl_rasda.errors import InvalidSettingError
from parsl_rasda.study.addresses import InterfaceSpec
from parsl_rasda.study.parsl_site import ParslSiteSpec

LOOPBACK = "127.0.0.1"


def addresses_of(site: ParslSiteSpec) -> tuple[str, ...]:
    """Return where a site's pilots may reach this machine, each once; nodes try all of them.

    A loopback address counts only where it is written out: there a batch system runs its nodes here.

    Raises:
        InvalidSettingError: If an interface is not there, or an address leads nowhere from another machine.
    """
    if site.address is None:
        return (LOOPBACK,) if site.is_local else (_routable("address", of_host_name()),)
    declared = site.address if isinstance(site.address, tuple) else (site.address,)
    return tuple(dict.fromkeys(_address_of(site, each) for each in declared))


def _address_of(site: ParslSiteSpec, declared: str | InterfaceSpec) -> str:
    if isinstance(declared, str):
        return declared if _is_loopback(declared) else _routable("address", declared)
    import_parsl()
    from parsl.addresses import address_by_interface

    name = declared.interface
    try:
        found = str(address_by_interface(name))
    except OSError as error:
        there = ", ".join(known for _, known in socket.if_nameindex())
        raise InvalidSettingError("address.interface", f"{name}: {error.strerror}", there) from error
    return found if site.is_local else _routable("address.interface", found, f" of {name}")


def _routable(key: str, address: str, of: str = "") -> str:
    """Return an address that nodes may have a way to; a host name is taken as it is.

    Raises:
        InvalidSettingError: If they cannot.
    """
    if (why := _why_nowhere(address)) is None:
        return address
    others = ", ".join(f"{name} ({other})" for name, other in _own() if _why_nowhere(other) is None)
    allowed = f"an address that nodes reach; this machine's: {others or 'none'}"
    raise InvalidSettingError(key, f"{address}{of}, {why}", allowed)


def _why_nowhere(address: str) -> str | None:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return None
    if found.is_loopback:
        return "which only this machine itself reaches"
    if found.is_unspecified or found.is_multicast or found.is_link_local:
        return "which leads to no machine from another network"
    return None


def _is_loopback(address: str) -> bool:
    return address == "localhost" or address.startswith("127.")


def _own() -> Iterator[tuple[str, str]]:
    """Yield the interfaces of this machine with their addresses."""
    import psutil

    for name, found in psutil.net_if_addrs().items():
        yield from ((name, each.address) for each in found if each.family == socket.AF_INET)


def of_host_name() -> str:
    """Return the address that this machine's host name leads to."""
    import_parsl()
    from parsl.addresses import address_by_hostname

    return str(address_by_hostname())
