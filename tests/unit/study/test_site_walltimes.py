"""Several pilots of different walltimes: the study takes what comes first."""

from __future__ import annotations

from pathlib import Path

import pytest

from parsl_rasda.errors import InvalidFileError
from parsl_rasda.study import load_site
from parsl_rasda.study.controller_sites import controller_site, site_inside
from parsl_rasda.study.loading import dump_site
from parsl_rasda.study.parsl_site import ParslSiteSpec

SITE = """
provider: {type: SlurmProvider, account: "${RASDA_ACCOUNT}", walltime: "24:00:00"}
pilots: 3
"""
RANGE = SITE.replace("pilots: 3", 'pilots: {min: 1, max: 3, walltimes: ["24:00:00", "02:00:00"]}')


def site_of(folder: Path, more: str, text: str = SITE) -> ParslSiteSpec:
    (folder / "big.yaml").write_text(text + more)
    site = load_site(folder / "big.yaml", environment={"RASDA_ACCOUNT": "mine"})
    assert isinstance(site, ParslSiteSpec)
    return site


def test_pilots_take_turns_in_the_walltimes_of_a_site(tmp_path: Path) -> None:
    site = site_of(tmp_path, 'walltimes: ["24:00:00", "01:00:00"]')
    pilots = [site.for_pilot(number) for number in range(3)]
    assert [p.provider.options["walltime"] for p in pilots] == ["24:00:00", "01:00:00", "24:00:00"]
    assert {p.provider.options["account"] for p in pilots} == {"mine"}
    assert all(("provider", "account") in p.written for p in pilots), "as the file has it"


def test_pilots_may_be_from_so_many_to_so_many(tmp_path: Path) -> None:
    site = site_of(tmp_path, "gpus_per_node: 4", RANGE)
    assert (site.least_pilots, site.most_pilots, site.slots) == (1, 3, 12)
    asked = [site.for_pilot(number).provider.options["walltime"] for number in range(3)]
    assert asked == ["24:00:00", "02:00:00", "24:00:00"]
    (tmp_path / "again.yaml").write_text(dump_site(site))
    again = load_site(tmp_path / "again.yaml", environment={"RASDA_ACCOUNT": "mine"})
    assert again.pilots == site.pilots, "as a run keeps it"
    plain = site_of(tmp_path, "")
    assert (plain.least_pilots, plain.most_pilots) == (3, 3)


def test_without_walltimes_all_pilots_have_the_providers(tmp_path: Path) -> None:
    site = site_of(tmp_path, "")
    assert site.for_pilot(1) == site


@pytest.mark.parametrize(
    ("more", "text", "said"),
    [
        ("walltimes: [1:00]", SITE, r"walltimes\.0: found"),
        ('walltimes: ["01:00:00"]', SITE.replace("Slurm", "LSF"), "walltimes: found"),
        ('walltimes: ["01:00:00"]', RANGE, r"pilots\.walltimes: found .* only once"),
        ("", RANGE.replace("min: 1", "min: 5"), r"pilots\.min: found 5.*at most max, 3"),
        ("", RANGE.replace("max: 3", "max: 0"), r"pilots\.max: found 0"),
        ("", RANGE.replace("max: 3, ", ""), r"pilots\.max"),
        ("", SITE.replace("pilots: 3", "pilots: many"), r"pilots: found .*a whole number from 1 to 1000"),
    ],
)
def test_a_mistake_in_walltimes_is_told(tmp_path: Path, more: str, text: str, said: str) -> None:
    with pytest.raises(InvalidFileError, match=said):
        site_of(tmp_path, more, text)


def test_the_pilot_of_doctor_and_the_job_of_a_controller_have_walltimes_of_their_own(tmp_path: Path) -> None:
    site = site_of(tmp_path, 'walltimes: ["24:00:00"]\ncontroller: {walltime: "10:00:00"}')
    asked = [site.for_trial(1, "00:15:00"), controller_site(site, inside=False)]
    assert [s.for_pilot(0).provider.options["walltime"] for s in asked] == ["00:15:00", "10:00:00"]
    assert site_inside(site).is_local
