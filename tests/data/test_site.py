"""The site file: where it is found, what it must hold, and what a simulated site does without one."""

import errno
import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fedmedseg.core.data_settings import PhantomSection
from fedmedseg.core.errors import ConfigurationError, Reason
from fedmedseg.core.schema import parse, read_yaml
from fedmedseg.data import site as module
from fedmedseg.data.datalist import read_datalist
from fedmedseg.data.leaving import PrivacySection
from fedmedseg.data.phantoms.annotators import share_of
from fedmedseg.data.site import Site, SiteFile, open_site, phantom_index

Hospital = Any
EXAMPLE = Path(__file__).parents[2] / "app_configs" / "sites" / "example.yaml"


class Kit:
    """A kit folder with ``local`` and a workspace, and one data list."""

    def __init__(self, root: Path, hospital: Hospital) -> None:
        self.root, self.hospital = root, hospital
        self.local, self.workspace = root / "local", root / "workspace"
        (self.local / "sites").mkdir(parents=True)
        self.list = hospital.datalist(training=[])

    def write(self, where: str = "fedmedseg.yaml", **settings: Any) -> None:
        content = {"datasets": {"brain": {"list": str(self.list)}}, **settings}
        (self.local / where).write_text(yaml.safe_dump(content))

    def open(self, name: str = "site-1", *, simulated: bool = False, **data: Any) -> Site:
        return open_site(
            self.hospital.experiment(**data), name=name, local=self.local, workspace=self.workspace, simulated=simulated
        )


@pytest.fixture
def kit(tmp_path: Path, hospital: Hospital) -> Kit:
    return Kit(tmp_path / "kit", hospital)


def test_the_example_is_valid_and_shows_every_key() -> None:
    content = read_yaml(EXAMPLE)
    parse(SiteFile, content, source="example.yaml")
    shown = EXAMPLE.read_text()
    for key in SiteFile.model_fields:
        assert f"\n{key}:" in shown or f"\n# {key}:" in shown, key


def test_the_section_privacy_is_shown_with_its_defaults() -> None:
    content = read_yaml(EXAMPLE)["privacy"]
    assert set(content) == set(PrivacySection.model_fields)
    assert parse(PrivacySection, content, source="example.yaml") == PrivacySection.model_validate({})
    noise = re.search(r"# noise: (\{.*?\})", EXAMPLE.read_text())
    assert noise is not None
    section = parse(PrivacySection, {"clip_norm": 1.0, "noise": yaml.safe_load(noise[1])}, source="the comment")
    assert section.noise is not None
    assert (section.noise.multiplier, section.noise.epsilon, section.noise.delta) == (8.5, 8.0, 1e-5)


def test_the_site_carries_its_word_on_privacy_and_none_where_it_said_none(kit: Kit) -> None:
    kit.write(privacy={"min_count": 7})
    privacy = kit.open().privacy
    assert privacy is not None
    assert (privacy.min_count, privacy.metrics, privacy.clip_norm, privacy.noise) == (7, ("*",), None, None)
    kit.write()
    assert kit.open().privacy is None


def test_noise_without_a_bound_is_refused(kit: Kit) -> None:
    kit.write(privacy={"noise": {"multiplier": 1.0, "epsilon": 8.0, "delta": 1e-5}})
    with pytest.raises(ConfigurationError, match=r"privacy\.clip_norm together with privacy\.noise"):
        kit.open()


def test_a_real_site_keeps_its_things_beside_local(kit: Kit) -> None:
    kit.write(min_cases=3, volume_budget_mb=100, device="cpu")
    site = kit.open()
    assert (site.state_root, site.cache, site.models) == tuple(
        kit.root / "fedmedseg" / name for name in ("state", "cache", "models")
    )
    assert (site.min_cases, site.volume_budget_mb, site.device, site.simulated) == (3, 100, "cpu", False)
    assert site.data_list("brain") == kit.list


def test_folders_left_out_lie_beside_the_one_given(kit: Kit) -> None:
    kit.write(state_dir="disk/state")
    site = kit.open()
    assert site.state_root == kit.local / "disk/state"
    assert site.cache == kit.local / "disk/cache"
    assert site.models == kit.local / "disk/models"


def test_relative_lists_start_at_the_site_file(kit: Kit) -> None:
    (kit.local / "lists").mkdir()
    (kit.local / "lists/brain.json").write_text("{}")
    kit.write(datasets={"brain": {"list": "lists/brain.json"}})
    assert kit.open().data_list("brain") == kit.local / "lists/brain.json"


def test_a_missing_site_file_in_a_real_federation_is_an_error(kit: Kit) -> None:
    with pytest.raises(ConfigurationError, match=r"copy app_configs/sites/example\.yaml"):
        kit.open()


def test_a_missing_data_list_names_the_key(kit: Kit) -> None:
    kit.write(datasets={"brain": {"list": "absent.json"}})
    with pytest.raises(ConfigurationError, match=r"datasets\.brain\.list: got no file at"):
        kit.open()


def test_a_missing_role_names_those_there_are(kit: Kit) -> None:
    kit.write(datasets={"brian": {"list": str(kit.list)}, "cmr": {"list": str(kit.list)}})
    with pytest.raises(ConfigurationError, match=r"the roles brian, cmr .* or rename 'brian'"):
        kit.open()


def test_an_unknown_key_names_the_nearest(kit: Kit) -> None:
    kit.write(cache_dri="x")
    with pytest.raises(ConfigurationError, match="write 'cache_dir'"):
        kit.open()


def test_a_misspelt_list_names_the_nearest(kit: Kit) -> None:
    kit.write(datasets={"brain": {"lst": "x"}})
    with pytest.raises(ConfigurationError, match="list"):
        kit.open()


@pytest.mark.parametrize("key", ["state_dir", "cache_dir", "models_dir"])
def test_a_folder_that_cannot_be_made_is_an_error(kit: Kit, key: str) -> None:
    (kit.local / "file").write_text("no folder")
    kit.write(**{"state_dir": "state", key: "file/inside"})
    with pytest.raises(ConfigurationError, match=f"{key}: .*a folder this process can write"):
        kit.open()


def _full_disk(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    write = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        if self.parent.name == folder:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)


def test_a_full_cache_disk_is_only_a_warning(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kit.write()
    _full_disk(monkeypatch, "cache")
    kit.open()
    assert "cache_dir is full" in caplog.text


def test_a_full_state_disk_is_an_error_with_its_reason(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    kit.write()
    _full_disk(monkeypatch, "state")
    with pytest.raises(ConfigurationError, match="free space") as caught:
        kit.open()
    assert caught.value.reason is Reason.DISK


def test_the_salt_is_made_once_and_private(kit: Kit) -> None:
    kit.write()
    first, second = kit.open(), kit.open()
    assert first.salt == second.salt
    assert len(first.salt) == 64
    file = first.state_root / "salt"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in first.state_root.iterdir()] == ["salt"]


def test_a_salt_of_the_site_file_counts(kit: Kit) -> None:
    kit.write(salt="long enough a secret")
    site = kit.open()
    assert site.salt == "long enough a secret"
    assert not (site.state_root / "salt").exists()


def test_a_damaged_salt_is_an_error(kit: Kit) -> None:
    kit.write()
    (kit.open().state_root / "salt").write_text("")
    with pytest.raises(ConfigurationError, match="salt"):
        kit.open()


@pytest.mark.parametrize(
    ("own", "asked", "present", "expected"),
    [
        ("auto", "auto", False, "cpu"),
        ("auto", "auto", True, "cuda"),
        ("cpu", "cuda", True, "cpu"),
        ("auto", "cpu", True, "cpu"),
        ("cuda", "cpu", True, "cuda"),
        ("cuda", "auto", False, None),
        ("auto", "cuda", False, None),
    ],
)
def test_the_sites_word_on_devices_counts(
    monkeypatch: pytest.MonkeyPatch, own: str, asked: str, present: bool, expected: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    if expected is None:
        with pytest.raises(ConfigurationError, match="device"):
            module._device(own, asked)
    else:
        assert module._device(own, asked) == expected


def test_the_simulator_reads_the_sites_own_file_first(kit: Kit) -> None:
    kit.write(min_cases=1)
    kit.write("sites/site-2.yaml", min_cases=7)
    assert kit.open("site-2", simulated=True).min_cases == 7
    assert kit.open("site-1", simulated=True).min_cases == 1


def test_a_hospital_has_one_file_which_is_the_one_its_people_check(kit: Kit) -> None:
    kit.write(min_cases=1)
    kit.write("sites/site-2.yaml", min_cases=7)
    assert kit.open("site-2", simulated=False).min_cases == 1


def test_simulated_sites_lie_beside_the_workspace(kit: Kit) -> None:
    kit.write()
    one, two = kit.open("site-1", simulated=True), kit.open("site-2", simulated=True)
    assert one.state_root == kit.root / "workspace.fedmedseg/site-1/state"
    assert two.models == kit.root / "workspace.fedmedseg/site-2/models"


def test_simulated_sites_that_share_a_file_get_folders_of_their_own(kit: Kit) -> None:
    kit.write(state_dir="/" + str(kit.root / "disk/state").lstrip("/"))
    one, two = kit.open("site-1", simulated=True), kit.open("site-2", simulated=True)
    assert one.state_root == kit.root / "disk/state/site-1"
    assert two.models == kit.root / "disk/models/site-2"


@pytest.mark.parametrize("simulated", [False, True])
def test_a_local_person_is_asked_where_the_file_says_so_and_nowhere_else(kit: Kit, simulated: bool) -> None:
    kit.write()
    assert kit.open(simulated=simulated).approval == "none"
    kit.write(approval="each_job")
    assert kit.open(simulated=simulated).approval == "each_job"
    kit.write(approval="sometimes")
    with pytest.raises(ConfigurationError, match="approval"):
        kit.open(simulated=simulated)


@pytest.mark.parametrize("simulated", [False, True])
def test_a_site_writes_its_page_unless_its_file_says_otherwise(kit: Kit, simulated: bool) -> None:
    kit.write()
    assert kit.open(simulated=simulated).report is True
    kit.write(report=False)
    assert kit.open(simulated=simulated).report is False


def test_figures_on_fewer_patients_than_the_site_tells_stay_where_it_says_so(kit: Kit) -> None:
    kit.write()
    assert kit.open().least_told == 0, "and no filter lets anything pass"
    kit.write(privacy={"min_count": 7})
    assert kit.open().least_told == 7


@pytest.mark.parametrize("name", ["../site", "a/b", "", ".hidden"])
def test_a_name_that_leads_elsewhere_is_refused(kit: Kit, name: str) -> None:
    kit.write()
    with pytest.raises(ConfigurationError, match="site name"):
        kit.open(name, simulated=True)


def test_without_a_file_and_without_phantoms_a_simulated_site_is_an_error(kit: Kit) -> None:
    with pytest.raises(ConfigurationError, match=r"no data\.phantom"):
        kit.open(simulated=True)


def test_without_a_file_a_simulated_site_gets_phantoms_once(kit: Kit) -> None:
    phantom = {"family": "cine_mr", "unlabeled": 1, "training": 1, "validation": 0, "test": 1, "size": (48, 48, 4)}
    data = {"phantom": phantom, "labels": {1: "left", 2: "muscle", 3: "right"}}
    site = kit.open(simulated=True, **data)
    listed = site.data_list("brain")
    assert listed.is_relative_to(kit.root / "workspace.fedmedseg/site-1/data")
    sections = read_datalist(listed, salt=site.salt)
    assert {name: len(cases) for name, cases in sections.items()} == {
        "training": 1,
        "validation": 0,
        "test": 1,
        "unlabeled": 1,
    }
    written = {path: path.stat().st_mtime_ns for path in listed.parent.rglob("*")}
    assert kit.open(simulated=True, **data).data_list("brain") == listed
    assert {path: path.stat().st_mtime_ns for path in listed.parent.rglob("*")} == written
    # other settings are other phantoms
    other = kit.open(simulated=True, **{**data, "phantom": {**phantom, "test": 2}}).data_list("brain")
    assert other != listed
    assert not list(listed.parents[1].glob(".*"))


def test_interrupted_phantoms_leave_no_data_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fedmedseg.data.phantoms as phantoms

    def broken(*_: object, out: Path, **__: object) -> Path:
        out.mkdir(parents=True)
        (out / "datalist.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(phantoms, "write_site", broken)
    section = PhantomSection(family="cine_mr")
    with pytest.raises(KeyboardInterrupt):
        module.write_phantoms(section, seed=1, name="site-1", home=tmp_path)
    assert not list(tmp_path.rglob("datalist.json"))


def test_phantoms_that_another_version_marked_otherwise_are_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedmedseg.data.phantoms.style import LABELS

    section = PhantomSection(family="cine_mr", size=(48, 48, 4), unlabeled=0, training=1, validation=0, test=0)
    first = module.write_phantoms(section, seed=1, name="site-1", home=tmp_path)
    assert module.write_phantoms(section, seed=1, name="site-1", home=tmp_path) == first
    monkeypatch.setitem(LABELS, "cine_mr", {1: "left_ventricle", 2: "right_ventricle", 3: "myocardium"})
    second = module.write_phantoms(section, seed=1, name="site-1", home=tmp_path)
    assert second != first
    assert json.loads(first.read_text())["description"] != json.loads(second.read_text())["description"]


def test_phantom_styles_follow_the_sites_number() -> None:
    assert [phantom_index(name) for name in ("site-1", "site-2", "hospital12", "site-0")] == [0, 1, 11, 0]
    assert phantom_index("charite") == phantom_index("charite")
    assert 0 <= phantom_index("charite") < 1000


SMALL = {"unlabeled": 0, "training": 1, "validation": 0, "test": 1, "size": (48, 48, 4), "sites": 1}
LATE = {"role": "lge", "labels": {1: "left", 2: "muscle", 3: "scar", 4: "core"}}


def test_simulated_sites_get_the_phantoms_of_their_own_data_set(kit: Kit) -> None:
    late = {**LATE, "phantom": {**SMALL, "family": "late_enhancement_mr"}}
    data = {
        "phantom": {**SMALL, "family": "cine_mr"},
        "labels": {1: "left", 2: "muscle", 3: "right"},
        "alternatives": [late],
    }
    found = {name: kit.open(name, simulated=True, **data) for name in ("site-1", "site-2", "site-3")}
    assert [list(site.datasets) for site in found.values()] == [["brain"], ["lge"], ["brain"]]
    content = json.loads(found["site-2"].data_list("lge").read_text())
    assert content["name"] == "phantom late_enhancement_mr"


def test_a_site_that_offers_two_data_sets_of_a_study_says_which(kit: Kit) -> None:
    both = {role: {"list": str(kit.list)} for role in ("brain", "lge")}
    kit.write(datasets=both)
    with pytest.raises(ConfigurationError, match="prefers: brain"):
        kit.open(alternatives=[LATE])
    assert kit.open().prefers is None, "a study of one data set asks nobody"
    kit.write(datasets=both, prefers="lge")
    assert kit.open(alternatives=[LATE]).prefers == "lge"


@pytest.mark.parametrize(("sites", "marks"), [(2, [1, 3]), (4, [1])])
def test_phantom_sites_share_the_structures_out(tmp_path, sites, marks):
    section = PhantomSection(
        family="abdominal_ct",
        annotation="shared_out",
        sites=sites,
        size=(32, 36, 24),
        unlabeled=0,
        training=1,
        validation=0,
        test=0,
    )
    listed = module.write_phantoms(section, seed=1, name="site-1", home=tmp_path)
    assert json.loads(listed.read_text())["training"][0]["annotated_labels"] == marks
    assert share_of(section.model_copy(update={"annotation": "style"}), 0).marks is None
