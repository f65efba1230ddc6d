"""Encrypted rounds at both ends: what the workflow starts with and keeps, and what an executor opens and refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
import yaml
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import FilterKey, FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.model import ModelLearnableKey, make_model_learnable
from nvflare.private.privacy_manager import Scope

from fedmedseg.core import checkpoint, persistor, workflow
from fedmedseg.core.aggregator import GuardedAggregator, SharedKeysAggregator
from fedmedseg.core.checkpoint import content_crc32, content_sha256
from fedmedseg.core.config import Experiment, load_experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.executor import TrainingExecutor
from fedmedseg.core.learner import Learner, Reply, Task
from fedmedseg.core.persistor import SEALED_FILE, SHARED_FILE, SharedModelPersistor
from fedmedseg.core.place import Place
from fedmedseg.core.question import Round
from fedmedseg.core.records import RunRecord
from fedmedseg.core.rounds import round_record
from fedmedseg.core.scopes import ORDER
from fedmedseg.core.sealing import GUARDS_OFF, Sealing, layouts, seal, sealed_name, split, unseal
from fedmedseg.core.versions import own_versions
from fedmedseg.core.wire import Header, Part, Schema
from fedmedseg.core.workflow import QuorumScatterAndGather
from fedmedseg.privacy import filters

pytest.importorskip("tenseal", reason="the extra he is not installed")

from signed_keys import write_keys

from fedmedseg.core.ckks import GRID, SHARES
from fedmedseg.core.encryption_keys import SITE_FILE, load_cipher

ENTRY = sealed_name("training")
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Signed startup folders ``server``, ``site`` and, of another federation, ``foreign``; only to be read."""
    folder = tmp_path_factory.mktemp("keys")
    write_keys(server=folder / "server", sites=[folder / "site"])
    write_keys(server=folder / "other", sites=[folder / "foreign"])
    return folder


@pytest.fixture
def encrypted_file(experiment_file: Path, settings: dict[str, Any]) -> Path:
    """The toy study with encryption."""
    experiment_file.write_text(yaml.safe_dump({**settings, "federation": {"encryption": "ckks"}}))
    return experiment_file


@pytest.fixture
def give(keys: Path, tmp_path: Path) -> Callable[[str], None]:
    """give("server"): the kit gets that startup folder."""
    return lambda which: shutil.copytree(keys / which, tmp_path / "kit" / "startup") and None


def scope_of(*names: str) -> Scope:
    scope = Scope()
    for name in names:
        scope.add_task_result_filter(getattr(filters, name)(), FilterKey.OUT)
    return scope


class Adds(TrainingExecutor):
    """An executor whose learner adds one, and keeps what it was given."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.state_root, self.needs_approval = root, False
        self.given: list[Mapping[str, torch.Tensor]] = []

    def make_learner(self, experiment: Experiment, place: Place) -> Learner:
        return self

    def run(self, task: Task, shared: Mapping[str, torch.Tensor]) -> Reply:
        self.given.append(shared)
        return Reply(tensors={name: tensor + 1 for name, tensor in shared.items()}, examples=3, steps=1)


class Site:
    """One site and the tasks that reach it."""

    def __init__(self, tmp_path: Path, file: Path, keys: Path, context: Callable[..., FLContext], shared: Tensors):
        self.file, self.shared, self.make_context = file, shared, context
        self.executor = Adds(tmp_path / "state")
        self.server = load_cipher(keys / "server", secret=False)
        self.site = load_cipher(keys / "site", secret=True)
        self.scope = scope_of(*ORDER)

    def sum_of(self, value: float, cipher: Any = None) -> torch.Tensor:
        """The encrypted sum after a round whose mean difference is ``value`` everywhere."""
        reply = seal(cipher or self.site.cipher, {name: torch.full_like(t, value) for name, t in self.shared.items()})
        return self.server.cipher.add(None, {"site-1": reply}, {"site-1": SHARES})

    def do(self, sealed: Tensors, *, base: str | None = None, **headers: Any) -> Shareable:
        sent = {**self.shared, **sealed}
        request = DXO(data_kind=DataKind.WEIGHTS, data=sent).to_shareable()
        for header, value in {
            Header.RUN: "a1b2",
            Header.STAGE: "training",
            Header.ROUND: 1,
            Header.ROUNDS: 2,
            Header.BASE: base or content_crc32(sent),
            Header.NONCE: "c3d4",
            Header.SCHEMA: Schema(self.shared).digest,
            Header.EXPERIMENT: load_experiment(self.file).digest,
            Header.VERSIONS: own_versions(),
            Header.KEY: self.server.key,
            **{getattr(Header, name): value for name, value in headers.items()},
        }.items():
            request.set_header(header, value)
        fl_ctx = self.make_context()
        fl_ctx.set_prop(FLContextKey.SCOPE_OBJECT, self.scope, private=True, sticky=False)
        return self.executor.execute("training", request, fl_ctx, Signal())


@pytest.fixture
def site(
    tmp_path: Path,
    encrypted_file: Path,
    keys: Path,
    give: Callable[[str], None],
    context: Callable[..., FLContext],
    shared: Tensors,
) -> Site:
    give("site")
    return Site(tmp_path, encrypted_file, keys, context, shared)


def failed(reply: Shareable, reason: str) -> None:
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert reply.get_header(Header.REASON) == reason


def test_a_site_learns_from_the_start_plus_the_sum_and_hands_plain_differences_to_its_filters(site: Site) -> None:
    reply = site.do({ENTRY: site.sum_of(0.25)})
    assert reply.get_return_code() == ReturnCode.OK, reply.get_header(Header.REASON)
    [given] = site.executor.given
    for name, tensor in site.shared.items():
        assert float((given[name] - tensor - 0.25).abs().max()) <= GRID
    assert {name: t.unique().tolist() for name, t in from_shareable(reply).data.items()} == {"a": [1.0], "b": [1.0]}


def test_the_first_round_has_no_sum_yet(site: Site) -> None:
    assert site.do({}).get_return_code() == ReturnCode.OK
    assert content_sha256(site.executor.given[0]) == content_sha256(site.shared)


def test_the_site_keeps_the_shared_model_in_plain_as_the_server_cannot(site: Site, tmp_path: Path) -> None:
    site.do({})
    models = tmp_path / "kit" / "job" / "models"
    assert not models.exists()
    site.do({ENTRY: site.sum_of(0.25)})
    kept = checkpoint.load_file(models / "shared.training.safetensors")
    assert content_sha256(kept["tensors"]) == content_sha256(site.executor.given[1])
    assert kept["study"] == "toy-study"


def test_a_sum_under_another_key_is_refused_before_anything_is_trained(site: Site, keys: Path) -> None:
    foreign = load_cipher(keys / "foreign", secret=True).cipher
    failed(site.do({ENTRY: site.sum_of(0.25, foreign)}), "ENCRYPTION: encrypted tensors")
    assert site.executor.given == []


def test_a_kit_of_another_provisioning_is_known_by_the_name_of_its_key(site: Site, keys: Path) -> None:
    other = load_cipher(keys / "foreign", secret=True).key
    failed(site.do({}, KEY=other), "CONFIGURATION: encryption key")
    failed(site.do({}, KEY=None), "CONFIGURATION: encryption key")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({ENTRY: torch.zeros(3, dtype=torch.uint8)}, "TENSOR_SHAPE: encrypted tensors"),
        ({"sealed.other": torch.zeros(3, dtype=torch.uint8)}, "UNKNOWN_TENSORS: encrypted tensors"),
        ({"c": torch.zeros(3)}, "UNKNOWN_TENSORS: tensors from the server"),
    ],
)
def test_what_is_no_sum_of_this_study_is_refused(site: Site, entry: Tensors, reason: str) -> None:
    failed(site.do(entry), reason)


def test_the_digest_covers_the_encrypted_entries(site: Site) -> None:
    failed(site.do({ENTRY: site.sum_of(0.25)}, base=content_sha256(site.shared)), "SCHEMA: shared tensors")


@pytest.mark.parametrize("active", [ORDER[:-1], (ORDER[-1], *ORDER[:-1])], ids=["older", "not last"])
def test_a_site_whose_filters_would_not_encrypt_takes_no_part(site: Site, active: tuple[str, ...]) -> None:
    site.scope = scope_of(*active)
    failed(site.do({}), "CONFIGURATION: local/privacy.json")
    assert site.executor.given == []


def test_a_kit_without_a_key_says_so(site: Site, tmp_path: Path) -> None:
    (tmp_path / "kit" / "startup" / SITE_FILE).unlink()
    failed(site.do({}), f"CONFIGURATION: startup/{SITE_FILE}")


def test_the_servers_kit_is_no_sites(site: Site, tmp_path: Path, keys: Path) -> None:
    shutil.rmtree(tmp_path / "kit" / "startup")
    shutil.copytree(keys / "server", tmp_path / "kit" / "startup")
    failed(site.do({}), f"CONFIGURATION: startup/{SITE_FILE}")


def test_a_simulated_site_refuses(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    place = MagicMock(simulated=True)
    place.name = place.folder = "site-1"
    place.config = site.file.parent
    monkeypatch.setattr("fedmedseg.core.executor.place_of", lambda fl_ctx: place)
    failed(site.do({}), "CONFIGURATION: federation.encryption")


class Server:
    """A stage's workflow up to the point where it asks the sites."""

    def __init__(self, file: Path, context: Callable[..., FLContext], aggregator: GuardedAggregator) -> None:
        self.context = context
        self.flow = QuorumScatterAndGather(
            stage="training",
            experiment_file=str(file),
            aggregator_id="rule",
            persistor_id="shared",
            shareable_generator_id="generator",
            record_id="record",
        )
        self.panics: list[str] = []
        self.flow.system_panic = lambda reason, fl_ctx: self.panics.append(reason)
        self.flow.aggregator = aggregator
        self.flow.persistor = SharedModelPersistor(experiment_file=str(file))
        self.flow.persistor.open(context("server"))
        self.flow.record = RunRecord(reporter=MagicMock())
        self.flow.record.begin(
            self.flow.experiment, sites=["site-1"], stages=3, history=[], run="r1", started="2026-01-02T03:04:05+00:00"
        )
        self.flow._current_round = 0

    def open(self, *, simulated: bool = False) -> None:
        self.flow._encryption = self.flow._open_encryption(self.context("server", simulated=simulated))


@pytest.fixture
def server(encrypted_file: Path, context: Callable[..., FLContext]) -> Callable[..., Server]:
    return lambda aggregator=None: Server(encrypted_file, context, aggregator or SharedKeysAggregator())


def test_the_servers_stage_starts_in_a_kit_with_the_servers_context(
    server: Callable[..., Server], give: Callable[[str], None], keys: Path
) -> None:
    give("server")
    made = server()
    made.open()
    assert made.flow._encryption.key == load_cipher(keys / "server", secret=False).key
    assert not made.flow._encryption.cipher.private


@pytest.mark.parametrize(
    ("folder", "words"), [(None, "no such file"), ("site", "no such file")], ids=["no keys", "a site's"]
)
def test_it_refuses_any_other_kit(
    server: Callable[..., Server], give: Callable[[str], None], folder: str | None, words: str
) -> None:
    if folder is not None:
        give(folder)
    with pytest.raises(ConfigurationError, match=words):
        server().open()


def test_it_refuses_a_rule_that_reads_replies_and_says_which(
    server: Callable[..., Server], give: Callable[[str], None]
) -> None:
    class Distances(GuardedAggregator):
        pass

    give("server")
    with pytest.raises(ConfigurationError, match=r"Distances reads the sites' differences.*a weighted mean"):
        server(Distances()).open()


def test_it_refuses_the_simulator(server: Callable[..., Server], give: Callable[[str], None]) -> None:
    give("server")
    with pytest.raises(ConfigurationError, match="without startup kits"):
        server().open(simulated=True)


def test_a_plain_study_reads_no_keys(experiment_file: Path, context: Callable[..., FLContext]) -> None:
    plain = Server(experiment_file, context, SharedKeysAggregator())
    plain.open()
    assert plain.flow._encryption is None


def test_the_task_carries_start_sum_and_the_keys_name(
    server: Callable[..., Server],
    give: Callable[[str], None],
    keys: Path,
    shared: Tensors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    give("server")
    made = server()
    made.open()
    site, adder = load_cipher(keys / "site", secret=True), made.flow._encryption.cipher
    entry = adder.add(None, {"site-1": seal(site.cipher, shared)}, {"site-1": SHARES})
    made.flow._global_weights = make_model_learnable({**shared, ENTRY: entry}, {})
    made.flow._engine = MagicMock()
    client = MagicMock()
    client.name = "site-1"
    made.flow._engine.get_clients.return_value = [client]
    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        workflow.ScatterAndGather, "broadcast_and_wait", lambda flow, **call: seen.update(data=call["task"].data)
    )
    task = MagicMock(data=Shareable({"DXO": {}}))
    made.flow.broadcast_and_wait(task, made.context("server"), abort_signal=Signal())
    assert set(from_shareable(seen["data"]).data) == {"a", "b", ENTRY}
    assert seen["data"].get_header(Header.KEY) == site.key
    assert seen["data"].get_header(Header.BASE) == content_crc32({**shared, ENTRY: entry})
    # nobody answered: the record of the round names the guards that were off
    report = json.loads((made.flow._folder / "run.json").read_text())
    assert report["encryption"] == {"scheme": "ckks", "guards_off": list(GUARDS_OFF)}
    assert report["rounds"][0]["guards_off"] == list(GUARDS_OFF)
    assert report["rounds"][0]["sites"]["site-1"]["bytes_down"] == 24 + entry.numel()


def test_a_plain_round_has_no_guard_off(aggregator: SharedKeysAggregator) -> None:
    facts = {"asked": [], "attempts": 1, "needed": 1, "refusals": [], "began": 0.0}
    record = round_record(
        stage="training",
        number=0,
        rounds=1,
        facts=facts,
        replies={},
        declined=[],
        aggregator=aggregator,
        bytes_down=0,
        shared_sha256=None,
    )
    assert record["guards_off"] == []


def test_checkpoints_hold_start_and_sum_and_a_resumed_server_goes_on_from_them(
    encrypted_file: Path,
    settings: dict[str, Any],
    context: Callable[..., FLContext],
    keys: Path,
    shared: Tensors,
    tmp_path: Path,
) -> None:
    ciphers = [load_cipher(keys / name, secret=name == "site").cipher for name in ("server", "site")]
    entry = ciphers[0].add(None, {"site-1": seal(ciphers[1], shared)}, {"site-1": SHARES})
    first = SharedModelPersistor(experiment_file=str(encrypted_file))
    model = first.load_model(context("server"))
    first.save_model(make_model_learnable({**model[ModelLearnableKey.WEIGHTS], ENTRY: entry}, {}), context("server"))
    first.finish_round("training", 0, {"stage": "training", "round": 0})
    models = tmp_path / "kit" / "job" / "models"
    assert (models / SEALED_FILE).is_file()
    assert not (models / SHARED_FILE).exists(), "nobody may take ciphertext for a model"
    again = {**settings, "federation": {"encryption": "ckks"}, "resume": True}
    encrypted_file.write_text(yaml.safe_dump(again))
    second = SharedModelPersistor(experiment_file=str(encrypted_file))
    kept = second.load_model(context("server"))[ModelLearnableKey.WEIGHTS]
    assert second.rounds_done == {"training": 1}
    plain, sealed = split(kept)
    contracts = {"training": persistor.system_module("toy", "plan").stages(None)["training"]}
    opened = unseal(ciphers[1], plain, sealed, layouts(Schema(plain), contracts, Part()))
    for name, tensor in shared.items():
        assert float((opened[name] - 2 * tensor).abs().max()) <= GRID


def test_a_round_is_begun_with_the_entries_that_bear_on_it(
    round_of: Callable[..., Round], keys: Path, shared: Tensors
) -> None:
    entry = torch.zeros(1, dtype=torch.uint8)
    contracts = {"training": round_of().contract, "tuning": round_of("tuning").contract}
    sealing = Sealing.begin(
        load_cipher(keys / "server", secret=False).cipher,
        stage="training",
        part=Part(within=("a",)),
        schema=Schema(shared),
        contracts=contracts,
        whole={**shared, ENTRY: entry, "sealed.gone": entry},
    )
    assert list(sealing.sent) == [ENTRY]
    assert sealing.count == 6
