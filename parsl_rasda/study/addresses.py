"""Where nodes reach the controller's machine, as a site file says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag

from parsl_rasda.diagnostics import MARK, refused
from parsl_rasda.study.spec import Label, Spec


class InterfaceSpec(Spec):
    """A network interface of this machine."""

    interface: Label = Field(description="Its name, for example bond0; `ip -br addr` lists them.")


def _one(value: object) -> object:
    if isinstance(value, str | Mapping | InterfaceSpec):
        return value
    raise refused(value, "an address, or {interface: NAME}")


def _some(value: object) -> object:
    if isinstance(value, list | tuple):
        if not value:
            raise refused(value, "one address at least")
        return value
    return _one(value)


def _tag(value: object) -> str:
    if isinstance(value, list | tuple):
        return MARK + "addresses"
    return MARK + ("address" if isinstance(value, str) else "interface")


Address: TypeAlias = Annotated[
    Annotated[str, Tag(MARK + "address")] | Annotated[InterfaceSpec, Tag(MARK + "interface")],
    Discriminator(_tag),
    BeforeValidator(_one),
]
Addresses: TypeAlias = Annotated[
    Annotated[str, Tag(MARK + "address")]
    | Annotated[InterfaceSpec, Tag(MARK + "interface")]
    | Annotated[tuple[Address, ...], Tag(MARK + "addresses")],
    Discriminator(_tag),
    BeforeValidator(_some),
]
