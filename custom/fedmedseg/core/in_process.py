"""A federation in one process: the job's own learners, contracts, checks and server rules, site after site.

It has no sockets, no processes and no polling, so that a study of many small runs is not spent on starting them.
Every tensor goes through the same contract, schema, guarded aggregator and rule as under FLARE, in the order of the
sites' names; the shared model and the sites' models are the same bytes as the simulator's. Which learner does which
task, and which rule aggregates which stage, is read from the job's FLARE configuration.
"""

from __future__ import annotations

import importlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from fedmedseg.core.aggregator import GuardedAggregator
from fedmedseg.core.config import load_experiment, system_module
from fedmedseg.core.encoder_file import with_encoder
from fedmedseg.core.errors import ConfigurationError, FedMedSegError, Reason
from fedmedseg.core.exchange import Features, Pool, features_of_others, split
from fedmedseg.core.executor import EXPERIMENT_FILE
from fedmedseg.core.jobs import CONFIG
from fedmedseg.core.learner import Learner, Task
from fedmedseg.core.place import Place
from fedmedseg.core.progress import PROGRESS_FILE, Progress
from fedmedseg.core.question import Round
from fedmedseg.core.replies import ECHOED, encode, thin
from fedmedseg.core.robust import earlier_medians
from fedmedseg.core.sealing import refuse_simulation
from fedmedseg.core.start_file import with_start
from fedmedseg.core.state import SiteState
from fedmedseg.core.traffic import Traffic
from fedmedseg.core.transport import codec_of, down_codec_of
from fedmedseg.core.turns import asked, taking_part
from fedmedseg.core.versions import own_versions
from fedmedseg.core.wire import DECLINING, Header, Schema, StageContract

logger = logging.getLogger(__name__)

NONCE = "in-process"


class InProcessFederation:
    """One run of one job.

    Args:
        job: the job's folder, as ``nvflare simulator`` takes it.
        workspace: what the simulator would call its workspace; state, caches and models lie beside it.
        sites: names of the sites; ``workspace/local/sites/<name>.yaml`` where a site has a file of its own.
        run: token of this run, under which the sites keep what they remember; letters and digits.
        participation: share of the sites, rounded up, that each round asks which trains shared tensors; the others are
            not asked, as a site that is away (``core.turns``).
    """

    def __init__(
        self, *, job: Path, workspace: Path, sites: Sequence[str], run: str, participation: float = 1.0
    ) -> None:
        self.job, self.workspace, self.run, self.participation = job, workspace.resolve(), run, participation
        self.sites = sorted(sites)
        if not self.sites or len(set(self.sites)) != len(self.sites):
            raise ConfigurationError("sites", got=list(sites), expected="one or more different names")
        self.experiment = load_experiment(job / CONFIG / EXPERIMENT_FILE)
        refuse_simulation(self.experiment)
        torch.set_num_threads(self.experiment.compute.threads)
        plan = system_module(self.experiment.system, "plan")
        self.contracts: dict[str, StageContract] = plan.stages(self.experiment)
        initial = plan.initial_shared(self.experiment)
        initial = with_start(with_encoder(initial, self.experiment, job / CONFIG), self.experiment, job / CONFIG)
        self.shared: dict[str, torch.Tensor] = dict(initial)
        self.schema = Schema(self.shared)
        self.personal: dict[str, Mapping[str, torch.Tensor]] = {}
        """Per site: tensors of its own, which it is sent in place of the shared ones of these names."""
        self.exchanged: Pool = {}
        """Features that sites gave in the last round of a stage that exchanges them."""
        self.history: list[dict[str, Any]] = []
        """Per round what a rule may read of it later: ``stage``, ``round`` and its ``notes``."""
        self.traffic: list[dict[str, dict[str, int]]] = []
        """Per round and site: ``down`` and ``up``, bytes of what FLARE would have encoded (``core.traffic``)."""
        self.declined: dict[str, dict[str, str]] = {}
        """Per stage: the sites that decline it (``wire.DECLINING``), with their reasons."""
        self._client = json.loads((job / CONFIG / "config_fed_client.json").read_text(encoding="utf-8"))
        self._server = json.loads((job / CONFIG / "config_fed_server.json").read_text(encoding="utf-8"))
        self._executors: dict[str, Any] = {}
        self._learners: dict[tuple[str, str], Learner] = {}

    def run_stage(self, stage: str) -> list[dict[str, dict[str, float]]]:
        """All rounds of one stage; returns, per round, each site's metrics with ``seconds`` among them.

        Raises:
            FedMedSegError: a site failed, or fewer took part than the quorum; unlike under FLARE nobody is left out.
            ConfigurationError: no such stage.
        """
        if stage not in self.contracts:
            raise ConfigurationError("stage", got=repr(stage), expected=f"one of {', '.join(self.contracts)}")
        rounds = self.experiment.stages[stage].rounds
        if rounds:
            self._require_participation(stage)
        return [self._run_round(stage, number, rounds) for number in range(rounds)]

    def state(self, site: str, stage: str) -> SiteState:
        """What ``site`` remembers under this run."""
        return SiteState(
            Path(self.learner(site, stage).state_root),
            study=self.experiment.study,
            experiment=self.experiment.digest,
            site=site,
            run=self.run,
        )

    def _run_round(self, stage: str, number: int, rounds: int) -> dict[str, dict[str, float]]:
        contract = self.contracts[stage]
        aggregator = self._aggregator(stage)
        current = Round.begin(
            run=self.run,
            stage=stage,
            number=number,
            nonce=NONCE,
            contract=contract,
            schema=self.schema,
            shared=self.shared,
            personal=self.personal,
            exchanged=features_of_others(
                contract.exchange, self.exchanged, self.sites, seed=self.experiment.seed, stage=stage, number=number
            ),
            behind=aggregator.behind(self.history, stage=stage, number=number, sites=self.sites),
            robust=self.experiment.federation.robust,
            medians=earlier_medians(self.history, stage=stage, number=number),
            codec=codec_of(self.experiment, contract, self.schema.part(contract.returned_in(number))),
            down=down_codec_of(self.experiment, contract, self.schema.part(contract.sent_in(number))),
        )
        aggregator.open_round(current)
        metrics: dict[str, dict[str, float]] = {}
        traffic = Traffic()
        sites = self._asked(stage, number)
        for site in sites:
            if site in self.declined.get(stage, {}):
                continue
            began = time.monotonic()
            given, features = split(current.given_to(site))
            received = contract.exchange.decode(features) if contract.exchange and features else None
            task = self._task(site, stage, number, rounds, current.base_of(site), received)
            try:
                reply = self.learner(site, stage).run(task, given)
            except FedMedSegError as error:
                if error.reason not in DECLINING:
                    raise
                self.declined.setdefault(stage, {})[site] = error.public
                logger.warning("%s takes no part in %s: %s", site, stage, error.public)
                continue
            seconds = time.monotonic() - began
            answer = encode(
                reply,
                given=given,
                schema=self.schema,
                contract=contract,
                request=_request(current, site),
                seconds=seconds,
            )
            if current.codec is not None:
                thin(answer, codec=current.codec, state=task.state)
            traffic.sent(site, self._message(current, site, rounds))
            traffic.received(site, answer)
            if not aggregator.accept(answer, _from(site)):
                raise FedMedSegError(f"{stage}: {site}", got=aggregator.rejections[site], expected="an accepted reply")
            metrics[site] = {**reply.metrics, "seconds": seconds}
        self._require_quorum(stage, metrics, sites)
        result = from_shareable(aggregator.aggregate(_context()))
        if result.data_kind == DataKind.WEIGHTS:
            self.shared = dict(result.data)
        else:
            for name, difference in result.data.items():
                self.shared[name] = self.shared[name] + difference
        self.personal |= aggregator.personal
        self.exchanged = aggregator.exchanged
        self.history.append({"stage": stage, "round": number, "notes": aggregator.notes})
        self.traffic.append({site: {"down": traffic.down[site], "up": traffic.up[site]} for site in metrics})
        return metrics

    def _message(self, current: Round, site: str, rounds: int) -> Shareable:
        """The task as a server would send it to ``site``."""
        tensors = dict(current.message_to(site))
        task = DXO(DataKind.WEIGHTS, data=tensors).to_shareable() if tensors else Shareable()
        own = current.personal.get(site)
        for header, value in (
            *((header, _request(current, site).get_header(header)) for header in ECHOED),
            (Header.ROUNDS, rounds),
            (Header.SCHEMA, self.schema.digest),
            (Header.EXPERIMENT, self.experiment.digest),
            (Header.VERSIONS, own_versions()),
            *([(Header.EXTRA, True)] if own is not None and own.extra else []),
        ):
            task.set_header(header, value)
        return task

    def _asked(self, stage: str, number: int) -> list[str]:
        """The sites that a round asks: all, unless it trains shared tensors and not all take part in each round."""
        contract = self.contracts[stage]
        if contract.returns != "shared" or contract.collects:
            return self.sites
        return taking_part(self.sites, self.participation, seed=self.experiment.seed, stage=stage, number=number)

    def _require_participation(self, stage: str) -> None:
        """Refuse some of the sites where a rule needs more, or where a site must have been there from the start."""
        contract, count = self.contracts[stage], asked(self.participation, len(self.sites))
        if count == len(self.sites) or contract.returns != "shared" or contract.collects:
            return
        if contract.sent_later is not None:
            raise ConfigurationError(
                f"participation in {stage}",
                got=f"{count} of {len(self.sites)} sites in a round",
                expected="all of them: this stage sends in its first round what later ones build on",
                remedy="use participation 1.0 for this method",
            )
        least = self.experiment.federation.robust.least
        if count < least:
            raise ConfigurationError(
                f"participation in {stage}",
                got=f"{count} of {len(self.sites)} sites in a round",
                expected=f"at least {least} for {self.experiment.federation.robust.named}",
                remedy="raise participation, or remove federation.robust",
            )

    def _require_quorum(self, stage: str, metrics: Mapping[str, Any], sites: Sequence[str]) -> None:
        present = len(set(sites) - set(self.declined.get(stage, {})))
        if self.contracts[stage].collects and not present:
            return
        needed = max(1, self.experiment.federation.needed(present))
        if len(metrics) < needed:
            raise FedMedSegError(
                f"{stage}: sites", got=len(metrics), expected=f"at least {needed}", reason=Reason.NO_CASES
            )

    def _task(
        self, site: str, stage: str, number: int, rounds: int, base: str, received: Features | None = None
    ) -> Task:
        return Task(
            site=site,
            stage=stage,
            round=number,
            rounds=rounds,
            seed=self.experiment.seed,
            base=base,
            received=received,
            state=self.state(site, stage),
            progress=Progress(
                site=site, stage=stage, round=number, rounds=rounds, file=self._place(site).run / PROGRESS_FILE
            ),
            checkpoint_seconds=self.experiment.compute.checkpoint_seconds,
        )

    def _place(self, site: str) -> Place:
        run = self.workspace / site
        run.mkdir(parents=True, exist_ok=True)
        return Place(
            name=site,
            simulated=True,
            folder=site,
            workspace=self.workspace,
            local=self.workspace / "local",
            config=self.job / CONFIG,
            run=run,
        )

    def learner(self, site: str, stage: str) -> Learner:
        """The learner behind the executor that the job configures for ``stage``; one per executor and site."""
        entries = [entry for entry in self._client["executors"] if stage in entry["tasks"]]
        path = entries[0]["executor"]["path"]
        if (path, site) not in self._learners:
            if path not in self._executors:
                self._executors[path] = _class(path)(**entries[0]["executor"].get("args", {}))
            learner = self._executors[path].make_learner(self.experiment, self._place(site))
            if learner.needs_approval:
                raise ConfigurationError(
                    f"{site}: approval",
                    got="each_job",
                    expected="none: a federation in one process asks nobody",
                    remedy="use the simulator, or a site file without approval",
                )
            self._learners[path, site] = learner
        return self._learners[path, site]

    def _aggregator(self, stage: str) -> GuardedAggregator:
        """The aggregator that the job configures for ``stage``."""
        args = next(flow["args"] for flow in self._server["workflows"] if flow["args"]["stage"] == stage)
        entry = next(part for part in self._server["components"] if part["id"] == args["aggregator_id"])
        given = dict(entry.get("args", {}))
        if "experiment_file" in given:
            given["experiment_file"] = str(self.job / CONFIG / EXPERIMENT_FILE)
        return _class(entry["path"])(**given)


def carry(name: str, source: InProcessFederation, target: InProcessFederation, *, stages: tuple[str, str]) -> None:
    """Hand what each site remembers as ``name`` in one run to another run, a fine-tuning on fewer labels say.

    ``stages`` name a stage of the source and one of the target, whose executors know the sites' folders.
    """
    for site in source.sites:
        tree = source.state(site, stages[0]).load(name)
        if tree is not None:
            target.state(site, stages[1]).save(name, tree)


def _request(current: Round, site: str) -> Shareable:
    """The headers of the task that ``site`` would be sent."""
    request = Shareable()
    headers = (current.run, current.stage, current.number, current.base_of(site), current.nonce)
    for header, value in zip(ECHOED, headers, strict=True):
        request.set_header(header, value)
    return request


def _from(site: str) -> FLContext:
    """The context that a reply of ``site`` comes with."""
    peer, context = FLContext(), _context()
    peer.set_prop(ReservedKey.IDENTITY_NAME, site, private=False, sticky=False)
    context.set_peer_context(peer)
    return context


class _NoListeners:
    """In place of FLARE's engine, which every log line of a component is an event to: here nobody listens."""

    def fire_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Do nothing."""


def _context() -> FLContext:
    context = FLContext()
    context.set_prop(ReservedKey.ENGINE, _NoListeners(), private=True, sticky=False)
    return context


def _class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
