"""`fedmedseg job` writes folders that can be submitted as they are, and refuses what could not run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from nvflare.utils.job_launcher_utils import get_resource_manager_spec
from typer.testing import CliRunner

from fedmedseg.cli.main import app
from fedmedseg.core.encoder_file import ENCODER_FILE, load_encoder
from fedmedseg.core.jobs import CONFIG, EXPERIMENT, find_job, read_settings
from fedmedseg.core.tracking import MLFLOW_RECEIVER
from fedmedseg.networks.factory import build_segmentation

SMALL = ("--min-clients", "3", "--rounds", "7")


def job(*options: str) -> tuple[int, str]:
    """Exit code and everything said."""
    result = CliRunner().invoke(app, ["job", *options])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The encoder of the shipped study's network, as somebody else would save it."""
    torch.manual_seed(4)
    model = build_segmentation(read_settings(find_job("fedata"), [])[1])
    file = tmp_path / "theirs.pt"
    torch.save({"state_dict": {f"module.{key}": value for key, value in model.swinViT.state_dict().items()}}, file)
    return file


def test_a_job_is_written_whole_with_its_rounds_and_its_sites(tmp_path: Path) -> None:
    out = tmp_path / "ours"
    code, said = job("fedata", *SMALL, "--preset", "sunnybrook", "--set", "seed=5", "--out", str(out))
    assert code == 0, said
    settings, experiment = read_settings(out, [])
    assert (experiment.study, experiment.seed, experiment.data.crop) == ("fedata-sunnybrook", 5, (96, 96))
    assert {stage: section.rounds for stage, section in experiment.stages.items()} == {
        "pretraining": 7,
        "fine_tuning": 1,
        "evaluation": 1,
    }
    meta = json.loads((out / "meta.json").read_text())
    assert (meta["name"], meta["min_clients"], meta["deploy_map"]) == ("fedata-sunnybrook", 3, {"app": ["@ALL"]})
    origin = find_job("fedata")
    for file in ("config_fed_server.json", "config_fed_client.json"):
        assert (out / CONFIG / file).read_bytes() == (origin / CONFIG / file).read_bytes()
    assert not (out / CONFIG / ENCODER_FILE).exists()
    for words in ("experiment.yaml", "pretraining 7", f"nvflare job submit -j {out}", f"nvflare simulator {out} -n 3"):
        assert words in said
    assert settings["system"] == "fedata"


@pytest.mark.parametrize(("where", "uri"), [("results", None), ("http://tracking:5000", "http://tracking:5000")])
def test_a_job_tells_mlflow_where_that_is_wanted(tmp_path: Path, where: str, uri: str | None) -> None:
    out = tmp_path / "tracked"
    code, said = job("fedavg", "--min-clients", "2", "--mlflow", where, "--out", str(out))
    assert code == 0, said
    receiver = json.loads((out / CONFIG / "config_fed_server.json").read_text())["components"][-1]
    assert receiver["path"] == MLFLOW_RECEIVER
    assert receiver["args"].get("tracking_uri") == uri
    assert receiver["args"]["kw_args"] == {"experiment_name": read_settings(out, [])[1].study}
    assert f"--mlflow {where}" in (out / EXPERIMENT).read_text()
    assert "the server needs the extra tracking" in said


def test_a_place_for_mlflow_that_is_none_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    code, said = job("fedavg", "--min-clients", "2", "--mlflow", "mlruns", "--out", str(tmp_path / "no"))
    assert code == 2
    assert "--mlflow: got mlruns" in said
    assert not (tmp_path / "no").exists()


def test_a_job_asks_for_a_gpu_where_that_is_wanted(tmp_path: Path) -> None:
    """Read by FLARE itself: what its scheduler asks of each site."""
    plain, asking = tmp_path / "plain", tmp_path / "asking"
    assert job("fedata", *SMALL, "--out", str(plain))[0] == 0
    code, said = job("fedata", *SMALL, "--gpu-memory", "16", "--out", str(asking))
    assert code == 0, said
    assert "a free GPU with 16 GiB" in said
    assert "--gpu-memory 16" in (asking / EXPERIMENT).read_text()
    found = [
        get_resource_manager_spec(json.loads((one / "meta.json").read_text()), "site-1") for one in (plain, asking)
    ]
    assert found == [{}, {"num_of_gpus": 1, "mem_per_gpu_in_GiB": 16.0}]


@pytest.mark.parametrize("memory", ["0", "-1", "1e9", "nan"])
def test_no_gpu_has_such_a_memory(tmp_path: Path, memory: str) -> None:
    code, said = job("fedata", *SMALL, "--gpu-memory", memory, "--out", str(tmp_path / "ours"))
    assert code == 2
    assert "--gpu-memory" in said


def test_the_header_says_how_it_was_made_without_anybodys_paths(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("seed: 3\n")
    options = ("--preset", str(mine), "--set", "data.labels={1: left ventricle}", "--out", str(tmp_path / "o"))
    code, said = job("fedata", *SMALL, *options)
    assert code == 0, said
    header = [line for line in (tmp_path / "o" / EXPERIMENT).read_text().splitlines() if line.startswith("#")]
    assert header[1] == (
        "#   fedmedseg job fedata --preset mine.yaml --set 'data.labels={1: left ventricle}' --rounds 7 --min-clients 3"
    )
    assert str(tmp_path) not in "".join(header)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "federation.quorum=4"], ["federation.quorum", "got 4", "at most 3", "--min-clients"]),
        (["--rounds", "0"], ["--rounds", "got 0", "at least 1"]),
        (["--min-clients", "0"], ["--min-clients", "got 0", "at least 1"]),
        (["--min-clients", "99999999999999999999"], ["--min-clients", "got 99999999999999999999", "at most 10000"]),
        (["--set", "data.spatial_dims=3"], ["data.crop: got [64, 64]", "data.spatial_dims"]),
        (["--set", "fedata.mask_unit=12"], ["fedata.mask_unit", "use 16"]),
        (["--preset", "sunnybrok"], ["preset", "write 'sunnybrook'"]),
        (["--preset", "no_pretraining", "--rounds", "9"], ["stages.fine_tuning.rounds", "got 9", "on their own"]),
    ],
)
def test_what_could_not_run_is_refused_and_nothing_is_written(
    tmp_path: Path, options: list[str], words: list[str]
) -> None:
    code, said = job("fedata", *SMALL, "--out", str(tmp_path / "o"), *options)
    assert code == 2
    for word in words:
        assert word in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("quorum", "words"), [("2", "2: so many"), ("0.5", "0.5: this share"), ("all", "all: every")])
def test_a_quorum_that_the_sites_can_reach_is_kept_and_explained(tmp_path: Path, quorum: str, words: str) -> None:
    code, said = job("fedata", *SMALL, "--set", f"federation.quorum={quorum}", "--out", str(tmp_path / "o"))
    assert code == 0
    assert words in said
    assert str(read_settings(tmp_path / "o", [])[1].federation.quorum) == quorum


def test_the_rounds_are_those_of_the_first_stage_that_runs(tmp_path: Path) -> None:
    code, said = job("fedata", *SMALL, "--preset", "fedavg_scratch", "--out", str(tmp_path / "o"))
    assert code == 0, said
    stages = read_settings(tmp_path / "o", [])[1].stages
    assert (stages["pretraining"].rounds, stages["fine_tuning"].rounds) == (0, 7)


def test_without_rounds_the_settings_own_count(tmp_path: Path) -> None:
    code, _ = job("fedata", "--min-clients", "2", "--preset", "sunnybrook", "--out", str(tmp_path / "o"))
    assert code == 0
    assert read_settings(tmp_path / "o", [])[1].stages["pretraining"].rounds == 10


def test_phantoms_stay_for_the_simulator_are_told_and_can_be_left_out(tmp_path: Path) -> None:
    code, said = job("fedata", *SMALL, "--out", str(tmp_path / "o"))
    assert code == 0
    assert "data.phantom is read by the simulator alone" in said
    assert "data.phantom is read by the simulator alone" in (tmp_path / "o" / EXPERIMENT).read_text()
    assert read_settings(tmp_path / "o", [])[1].data.phantom is not None
    code, said = job("fedata", *SMALL, "--without-phantoms", "--out", str(tmp_path / "p"))
    assert code == 0
    assert read_settings(tmp_path / "p", [])[1].data.phantom is None
    assert "phantom" not in (tmp_path / "p" / EXPERIMENT).read_text().split("\n\n")[0].splitlines()[3:]
    assert "--sites" in said


def test_only_a_job_folder_is_replaced_and_only_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "o"
    out.mkdir()
    assert job("fedata", *SMALL, "--out", str(out))[0] == 0, "an empty folder holds nothing to lose"
    code, said = job("fedata", *SMALL, "--out", str(out), "--set", "seed=5")
    assert code == 2
    assert "--force" in said
    assert read_settings(out, [])[1].seed == 1
    assert job("fedata", *SMALL, "--out", str(out), "--set", "seed=5", "--force")[0] == 0
    assert read_settings(out, [])[1].seed == 5
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("years of work")
    for path in (other, other / "chapter.txt"):
        code, said = job("fedata", *SMALL, "--out", str(path), "--force")
        assert code == 2
        assert "no job folder" in said
    assert (other / "chapter.txt").read_text() == "years of work"


def test_a_written_job_is_a_job_for_the_next_call(tmp_path: Path) -> None:
    out = tmp_path / "o"
    assert job("fedata", *SMALL, "--set", "seed=5", "--out", str(out))[0] == 0
    code, said = job(str(out), "--min-clients", "2", "--rounds", "3", "--out", str(tmp_path / "p"))
    assert code == 0, said
    experiment = read_settings(tmp_path / "p", [])[1]
    assert (experiment.seed, experiment.stages["pretraining"].rounds) == (5, 3)


@pytest.mark.parametrize("where", [".", "inside", "app/deeper", "../o"])
def test_a_job_is_never_written_over_or_into_the_one_it_is_made_from(tmp_path: Path, where: str) -> None:
    source = tmp_path / "o"
    assert job("fedata", *SMALL, "--out", str(source))[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, said = job(str(source), *SMALL, "--set", "seed=5", "--out", str(source / where), "--force")
    assert code == 2
    assert "the job that is copied" in said
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_shipped_study_is_not_overwritten() -> None:
    shipped = find_job("fedata")
    before = (shipped / EXPERIMENT).read_bytes()
    code, said = job("fedata", *SMALL, "--out", str(shipped), "--force")
    assert code == 2
    assert "choose another" in said
    assert (shipped / EXPERIMENT).read_bytes() == before


@pytest.mark.parametrize("there", ["job", "nothing", "itself"])
def test_a_link_is_not_followed_to_what_it_names(tmp_path: Path, there: str) -> None:
    target, link = tmp_path / "real", tmp_path / "link"
    if there == "job":
        assert job("fedata", *SMALL, "--out", str(target))[0] == 0
    link.symlink_to(link if there == "itself" else target)
    code, said = job("fedata", *SMALL, "--set", "seed=5", "--out", str(link), "--force")
    assert code == 2
    assert "a symbolic link" in said
    assert link.is_symlink()
    assert target.exists() == (there == "job")
    if there == "job":
        assert read_settings(target, [])[1].seed == 1


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    for out in (tmp_path / "file" / "sub", tmp_path / ("n" * 300), Path("/proc/x")):
        code, said = job("fedata", *SMALL, "--out", str(out))
        assert code == 2
        assert "--out: got" in said
        assert "a folder that can be written" in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("rounds", ["1000001", "99999999999999999999"])
def test_rounds_beyond_any_meaning_are_refused(tmp_path: Path, rounds: str) -> None:
    code, said = job("fedata", "--min-clients", "3", "--rounds", rounds, "--out", str(tmp_path / "o"))
    assert code == 2
    assert f"stages.pretraining.rounds: got {rounds}. Expected less than or equal to 1000000" in said
    assert job("fedata", "--min-clients", "3", "--rounds", "1000000", "--out", str(tmp_path / "o"))[0] == 0


def test_an_encoder_travels_in_the_job_and_is_named_by_its_digest(tmp_path: Path, weights: Path) -> None:
    from fedmedseg.core.persistor import SharedModelPersistor

    out = tmp_path / "o"
    code, said = job("fedata", *SMALL, "--encoder", str(weights), "--out", str(out))
    assert code == 0, said
    experiment = read_settings(out, [])[1]
    assert experiment.network.pretrained is not None
    assert experiment.network.pretrained[:16] in said
    assert "115 of 115 encoder tensors" in said
    theirs = torch.load(weights, weights_only=True)["state_dict"]
    shared = SharedModelPersistor(experiment_file=str(out / EXPERIMENT))._shared
    carried = load_encoder(out / CONFIG / ENCODER_FILE)
    assert {name for name in shared if name.startswith("swinViT.")} == carried.keys()
    for name, tensor in carried.items():
        expected = theirs[name.replace("swinViT.", "module.")]
        assert torch.equal(shared[name], expected)
        assert torch.equal(tensor, expected)

    again = tmp_path / "again"
    assert job(str(out), *SMALL, "--set", "seed=8", "--out", str(again))[0] == 0
    assert load_encoder(again / CONFIG / ENCODER_FILE).keys() == carried.keys(), "a copy of the job keeps it"
    plain = tmp_path / "plain"
    assert job(str(out), *SMALL, "--set", "network.pretrained=null", "--out", str(plain))[0] == 0
    assert not (plain / CONFIG / ENCODER_FILE).exists()


def test_an_encoder_that_does_not_fit_or_is_not_there_is_refused(tmp_path: Path, weights: Path) -> None:
    out = str(tmp_path / "o")
    code, said = job("fedata", *SMALL, "--encoder", str(weights), "--set", "network.feature_size=24", "--out", out)
    assert code == 2
    assert "swinViT.patch_embed.proj.weight" in said
    assert "set network.* and data.crop to those of the file" in said
    assert "--min-matched" not in said, "`job` has no such option"
    code, said = job("fedata", *SMALL, "--set", f"network.pretrained={'a' * 64}", "--out", out)
    assert code == 2
    assert "network.pretrained" in said
    code, said = job("fedata", *SMALL, "--encoder", str(weights), "--preset", "no_pretraining", "--out", out)
    assert code == 2
    assert "no start would use it" in said
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.pt"]


def test_an_encoder_without_further_pretraining_is_a_start_of_its_own(tmp_path: Path, weights: Path) -> None:
    out = tmp_path / "o"
    changes = ["--set", "stages.pretraining.rounds=0", "--set", "fedata.starts=[shared, scratch]"]
    code, said = job("fedata", "--min-clients", "2", "--encoder", str(weights), *changes, "--out", str(out))
    assert code == 0, said
    code, said = job("fedata", "--min-clients", "2", *changes, "--out", str(tmp_path / "p"))
    assert code == 2
    assert "scratch alone where stages.pretraining.rounds is 0" in said
