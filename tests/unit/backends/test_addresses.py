"""Where pilots reach the controller's machine."""

from __future__ import annotations

import queue
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parsl_rasda.agent.control_relay import ControlClient, reachable
from parsl_rasda.backends.parsl.control_server import ControlServer
from parsl_rasda.backends.parsl.pilot_source import OwnPilots
from parsl_rasda.errors import InvalidFileError, InvalidSettingError
from parsl_rasda.study import load_site
from parsl_rasda.study.addresses import InterfaceSpec
from parsl_rasda.study.parsl_site import ParslSiteSpec


def addresses(**fields: Any) -> tuple[str, ...]:
    site = ParslSiteSpec.model_validate({"name": "s", "provider": {"type": "SlurmProvider"}, **fields})
    pilots = OwnPilots(site, Path(), "mark", workers=1, on_end=lambda label, end: None)
    return pilots.addresses


LOCAL = {"type": "LocalProvider"}


def test_an_interface_gives_its_own_address() -> None:
    assert addresses(address={"interface": "lo"}, provider=LOCAL) == ("127.0.0.1",)


def test_an_address_is_taken_as_it_is() -> None:
    assert addresses(address="10.0.0.1") == ("10.0.0.1",)


def test_jobs_on_this_machine_need_no_network() -> None:
    assert addresses(provider=LOCAL) == ("127.0.0.1",)


def test_of_several_addresses_each_is_offered_once() -> None:
    assert addresses(address=["10.0.0.1", "login1", "10.0.0.1"]) == ("10.0.0.1", "login1")


def test_an_interface_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(InvalidSettingError, match=r"address\.interface: found 'none0: .*allowed: .*lo"):
        addresses(address=["10.0.0.1", {"interface": "none0"}])


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"interface": "lo"}, r"127\.0\.0\.1 of lo, which only this machine itself reaches"),
        ("0.0.0.0", "which leads to no machine"),
        (["10.0.0.1", "169.254.3.4"], r"169\.254\.3\.4, which leads to no machine from another network"),
    ],
)
def test_an_address_to_which_no_node_has_a_way_is_refused_before_anything_queues(
    declared: Any, words: str
) -> None:
    with pytest.raises(InvalidSettingError, match=words):
        addresses(address=declared)


def test_a_host_name_that_leads_back_to_this_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parsl.addresses.socket.gethostbyname", lambda name: "127.0.1.1")
    with pytest.raises(InvalidSettingError, match=r"127\.0\.1\.1, which only this machine itself reaches"):
        addresses()


def test_a_written_loopback_address_is_that_of_a_batch_system_on_this_machine() -> None:
    assert addresses(address="127.0.0.1") == ("127.0.0.1",)


def test_an_agent_takes_the_address_that_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as other:
        closed, url = other.getsockname()[1], f"tcp://127.0.0.1:{server.getsockname()[1]}"
        other.close()
        assert reachable([f"tcp://127.0.0.1:{closed}", url]) == url
        assert reachable([f"tcp://127.0.0.1:{closed}"] * 2) == f"tcp://127.0.0.1:{closed}", "none does"


def test_a_controller_with_several_addresses_is_heard_at_each() -> None:
    heard: queue.Queue[str] = queue.Queue()
    server = ControlServer(["127.0.0.1", "127.0.0.2"], lambda job, message: heard.put(job))
    try:
        for number, url in enumerate(server.control_address.url.split()):
            with ControlClient(replace(server.control_address, url=url), f"job-{number}") as client:
                client.send({"op": "hello"})
                assert heard.get(timeout=30) == f"job-{number}"
    finally:
        server.close()


def test_a_site_file_may_name_either(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("provider: {type: SlurmProvider}\naddress: {interface: bond0}\n")
    site = load_site(str(path))
    assert isinstance(site, ParslSiteSpec)
    assert isinstance(site.address, InterfaceSpec)
    assert site.address.interface == "bond0"
    path.write_text("provider: {type: SlurmProvider}\naddress: {inteface: bond0}\n")
    with pytest.raises(InvalidFileError, match=r"site\.yaml:2: address.*interface"):
        load_site(str(path))
    path.write_text("provider: {type: SlurmProvider}\naddress: [{interface: hsn0}, 10.0.0.1]\n")
    site = load_site(str(path))
    assert isinstance(site, ParslSiteSpec)
    assert site.address == (InterfaceSpec(interface="hsn0"), "10.0.0.1")
