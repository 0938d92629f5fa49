"""Where pilots reach the controller's machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parsl_rasda.backends.parsl.pilot_source import OwnPilots
from parsl_rasda.errors import InvalidFileError, InvalidSettingError
from parsl_rasda.study import load_site
from parsl_rasda.study.sites import ParslSiteSpec


def address(**fields: Any) -> str:
    site = ParslSiteSpec.model_validate({"name": "s", "provider": {"type": "SlurmProvider"}, **fields})
    pilots = OwnPilots(site, Path(), "mark", workers=1, on_end=lambda label, end: None)
    return pilots.address


def test_an_interface_gives_its_own_address() -> None:
    assert address(address={"interface": "lo"}) == "127.0.0.1"


def test_an_address_is_taken_as_it_is() -> None:
    assert address(address="10.0.0.1") == "10.0.0.1"


def test_jobs_on_this_machine_need_no_network() -> None:
    assert address(provider={"type": "LocalProvider"}) == "127.0.0.1"


def test_an_interface_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(InvalidSettingError, match=r"address\.interface: found 'none0: .*allowed: .*lo"):
        address(address={"interface": "none0"})


def test_a_site_file_may_name_either(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("provider: {type: SlurmProvider}\naddress: {interface: bond0}\n")
    site = load_site(str(path))
    assert isinstance(site, ParslSiteSpec)
    assert not isinstance(site.address, str | None)
    assert site.address.interface == "bond0"
    path.write_text("provider: {type: SlurmProvider}\naddress: {inteface: bond0}\n")
    with pytest.raises(InvalidFileError, match=r"site\.yaml:2: address.*interface"):
        load_site(str(path))
