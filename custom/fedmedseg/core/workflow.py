"""The workflow of one stage: FLARE's ScatterAndGather with a quorum, finite patience, and a record of every round."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

import torch
from nvflare.apis.client import Client
from nvflare.apis.controller_spec import Task as FlareTask
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.model import ModelLearnableKey
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.workflows.scatter_and_gather import ScatterAndGather
from nvflare.widgets.info_collector import InfoCollector

from fedmedseg.core import large_tensors, live
from fedmedseg.core.aggregator import GuardedAggregator
from fedmedseg.core.attendance import Attendance
from fedmedseg.core.audit import Outcome
from fedmedseg.core.audit_flare import note_in
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.config import load_experiment, system_module
from fedmedseg.core.encryption_keys import KitCipher, load_cipher
from fedmedseg.core.errors import ConfigurationError, Reason, choose
from fedmedseg.core.exchange import features_of_others
from fedmedseg.core.guard import follow_returns
from fedmedseg.core.intake import bound_messages, most_bytes
from fedmedseg.core.memory import keep_to_few_arenas, set_lasting_objects_aside, sweep_from_now_on
from fedmedseg.core.pace import hold_requests, request_interval
from fedmedseg.core.persistor import SharedModelPersistor
from fedmedseg.core.personal import personalise
from fedmedseg.core.place import place_of
from fedmedseg.core.question import Round
from fedmedseg.core.records import RunRecord
from fedmedseg.core.robust import earlier_medians
from fedmedseg.core.rounds import clean, disk_problem, round_record, shortfall, too_few
from fedmedseg.core.sealing import Sealing, refuse_simulation, split
from fedmedseg.core.traffic import Traffic
from fedmedseg.core.transport import codec_of, down_codec_of
from fedmedseg.core.versions import own_versions
from fedmedseg.core.wire import LASTING, Header, StageContract, tensor_bytes

RETRY_SECONDS = 20
TASK_CHECK_SECONDS = 0.02


class QuorumScatterAndGather(ScatterAndGather):
    """One stage of a study.

    Rounds, quorum and timeouts come from experiment.yaml. A round that stays below its quorum is asked again
    once, of the sites that failed, for at most 20 s; then the job ends with the reason, as it does when the
    shared model does not change for ``federation.no_progress_rounds`` rounds.

    A site that declines (no cases, or its own people's word) leaves the quorum: it says that it takes no part. One
    that cannot take part as it is installed (``wire.LASTING``) is asked no more in this stage either, but counts as
    failed: with quorum ``all`` the study stops and names it instead of going on without it. Where every site declines
    the job ends with their reasons, unless the stage collects gifts (``StageContract.collects``).

    With ``federation.encryption`` the stage adds replies up without reading them (``core.sealing``). It starts only
    with an aggregator whose rule is a weighted mean, in a kit that holds the server's context and no secret key.
    Whether the model still changes cannot be seen then.

    Args:
        stage: name of the stage, a key of ``stages`` in experiment.yaml.
        experiment_file: path of experiment.yaml.
        aggregator_id: a ``GuardedAggregator``.
        persistor_id: the job's ``SharedModelPersistor``.
        shareable_generator_id: FLARE's ``FullModelShareableGenerator``.
        record_id: the job's ``RunRecord``.
    """

    def __init__(
        self,
        stage: str,
        experiment_file: str,
        aggregator_id: str,
        persistor_id: str,
        shareable_generator_id: str,
        record_id: str,
    ) -> None:
        self.stage = stage
        self.experiment_file = experiment_file
        self.record_id = record_id
        self.experiment = load_experiment(experiment_file)
        contracts: dict[str, StageContract] = system_module(self.experiment.system, "plan").stages(self.experiment)
        if stage not in contracts:
            raise ConfigurationError(
                "config_fed_server.json: workflows.stage",
                got=repr(stage),
                expected=f"one of {', '.join(contracts)}",
                remedy=choose(stage, contracts),
            )
        self.contract, self._contracts = contracts[stage], contracts
        self._stages = len(contracts)
        self._personal_ahead = any(contracts[name].personal for name in [*contracts][[*contracts].index(stage) :])
        section = self.experiment.stages[stage]
        federation = self.experiment.federation
        timeout = section.timeout or federation.timeout
        super().__init__(
            num_rounds=section.rounds,
            train_task_name=stage,
            train_timeout=timeout,
            wait_time_after_min_received=federation.wait_after_quorum or timeout,
            aggregator_id=aggregator_id,
            persistor_id=persistor_id,
            shareable_generator_id=shareable_generator_id,
            snapshot_every_n_rounds=0,
            # every round: see core.memory
            memory_gc_rounds=1,
            # as many replies may come at once as there are sites: see core.spilled
            enable_tensor_disk_offload=True,
        )
        large_tensors.register()
        self._sites = Attendance()
        self._unchanged = 0
        self._known: str | None = None
        """Digest of the shared tensors as the round before left them."""
        self._encryption: KitCipher | None = None
        self._round_facts: dict[str, Any] = {}
        self._traffic = Traffic()

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Resolve components, resume, and check the quorum against the sites that are here."""
        # the base class keeps its check period to itself and never hands it to the communicator
        self.communicator._task_check_period = TASK_CHECK_SECONDS
        super().start_controller(fl_ctx)
        set_lasting_objects_aside()
        if not place_of(fl_ctx).simulated:
            keep_to_few_arenas()
            sweep_from_now_on()
        record = self._engine.get_component(self.record_id)
        if not (
            isinstance(self.persistor, SharedModelPersistor)
            and isinstance(self.aggregator, GuardedAggregator)
            and isinstance(record, RunRecord)
        ):
            self.system_panic(f"{self.stage}: persistor, aggregator and record must be fedmedseg's", fl_ctx)
            return
        self.record = record
        if not place_of(fl_ctx).simulated:
            follow_returns(self._engine)
            most = most_bytes(
                self.persistor.schema,
                encrypted=self.experiment.federation.encryption != "none",
                features=self.contract.exchange.most_bytes if self.contract.exchange else 0,
            )
            if not bound_messages(self._engine.get_cell(), most, self._refuse_unread):
                self.system_panic("FLARE's receivers of messages were not found: a reply could be of any size", fl_ctx)
                return
        sites = self._connected()
        # before anything can stop the stage, so that a reason finds a record to stand in
        self.record.begin(
            self.experiment,
            sites=sites,
            stages=self._stages,
            history=self.persistor.history,
            shared_sha256=self.persistor.resumed_sha256,
            run=self.persistor.run,
            started=self.persistor.started,
        )
        try:
            self._encryption = self._open_encryption(fl_ctx)
        except ConfigurationError as error:
            self.system_panic(f"{self.stage}: {error}", fl_ctx)
            return
        problem = too_few(
            self.experiment.federation, len(sites), aggregates=bool(self._num_rounds) and self._aggregates
        )
        if problem is not None:
            self.system_panic(problem, fl_ctx)
            return
        if len(sites) == 1:
            self.log_warning(fl_ctx, "only one site takes part: this is local training, nothing is federated")
        self._current_round = self.persistor.rounds_done.get(self.stage, 0)

    def _open_encryption(self, fl_ctx: FLContext) -> KitCipher | None:
        """The server's cipher where the study is encrypted and this stage has rounds.

        Raises:
            ConfigurationError: in the simulator, without the kit's files, or with a rule that reads replies.
        """
        if self.experiment.federation.encryption == "none" or self._num_rounds == 0:
            return None
        place = place_of(fl_ctx)
        if place.simulated:
            refuse_simulation(self.experiment)
        if self.contract.returns == "shared" and self.aggregator.needs_plain:
            raise ConfigurationError(
                "federation.encryption",
                got=f"{self.experiment.federation.encryption}, and {self.aggregator.needs_plain}",
                expected="an aggregator whose rule is a weighted mean",
                remedy="use SharedKeysAggregator or the system's rule fedavg, or set federation.encryption to none",
            )
        return load_cipher(place.workspace / "startup", secret=False)

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Run the stage's rounds."""
        if abort_signal.triggered:
            return
        if self._num_rounds == 0:
            self.log_info(fl_ctx, f"{self.stage}: left out, its rounds are 0")
            self.record.end_stage()
            return
        super().control_flow(abort_signal, fl_ctx)
        if not abort_signal.triggered and self._current_round == self._num_rounds:
            self.record.end_stage()

    def broadcast_and_wait(
        self,
        task: FlareTask,
        fl_ctx: FLContext,
        targets: list[Client] | list[str] | None = None,
        min_responses: int = 1,
        wait_time_after_min_received: int = 0,
        abort_signal: Signal | None = None,
    ) -> None:
        """Ask the sites, once more those that failed, and stop the job below the quorum."""
        current = self._question()
        self._folder = place_of(fl_ctx).run / "report"
        self._sites.open_round()
        self._traffic = Traffic()
        self._round_facts = {
            "shared": self._known or self._digest(),
            "began": time.monotonic(),
            "attempts": 1,
            "refusals": [],
        }
        self.aggregator.open_round(current)
        counted = self._sites.counted(self._connected())
        asked = self._sites.asked(counted)
        needed = self._needed(counted)
        if needed > len(asked):
            # FLARE would refuse to wait for more replies than it asks for, and name no site
            self._round_facts.update(needed=needed, asked=sorted({*counted, *self._sites.declined}))
            self._sites.note_declined()
            self._stop_below_quorum(fl_ctx)
            return
        self._send(task, current, fl_ctx, asked, needed, self._wait_time_after_min_received, abort_signal)
        failed = self._sites.failed(asked, self.aggregator.contributions)
        needed = self._needed(counted)
        alive = len(self._sites.answered()) >= needed
        if self._accepted() < needed and failed and alive and not self._aborted(abort_signal):
            self.log_warning(fl_ctx, f"round {self._current_round}: asking again: {', '.join(failed)}")
            self._round_facts["attempts"] = 2
            current = Round(**{**current.__dict__, "nonce": uuid.uuid4().hex})
            self.aggregator.renew(current.nonce)
            again = FlareTask(
                name=task.name,
                data=task.data,
                operator=task.operator,
                props={},
                timeout=min(RETRY_SECONDS, self._train_timeout),
                before_task_sent_cb=self._prepare_train_task_data,
                result_received_cb=self._process_train_result,
            )
            self._send(again, current, fl_ctx, failed, len(failed), RETRY_SECONDS, abort_signal)
            needed = self._needed(counted)
        self._round_facts.update(needed=needed, asked=counted)
        if self._accepted() < needed and not self._aborted(abort_signal):
            self._stop_below_quorum(fl_ctx)

    def _question(self) -> Round:
        """What this round asks of the sites, and what it takes for an answer."""
        kept = self._global_weights[ModelLearnableKey.WEIGHTS]
        shared, _ = split(kept)
        number, sites, history, schema = (
            self._current_round, self._connected(), self.persistor.history, self.persistor.schema
        )  # fmt: skip
        return Round.begin(
            run=self.persistor.run,
            stage=self.stage,
            number=number,
            nonce=uuid.uuid4().hex,
            contract=self.contract,
            schema=schema,
            shared=shared,
            personal=self.persistor.personal,
            exchanged=features_of_others(
                self.contract.exchange,
                self.persistor.exchanged,
                sites,
                seed=self.experiment.seed,
                stage=self.stage,
                number=number,
            ),
            sealing=self._sealing(kept),
            behind=self.aggregator.behind(history, stage=self.stage, number=number, sites=sites),
            robust=self.experiment.federation.robust,
            medians=earlier_medians(history, stage=self.stage, number=number),
            codec=codec_of(self.experiment, self.contract, schema.part(self.contract.returned_in(number))),
            down=down_codec_of(self.experiment, self.contract, schema.part(self.contract.sent_in(number))),
        )

    def _sealing(self, kept: Mapping[str, torch.Tensor]) -> Sealing | None:
        if self._encryption is None:
            return None
        return Sealing.begin(
            self._encryption.cipher,
            stage=self.stage,
            part=self.contract.sent_in(self._current_round),
            schema=self.persistor.schema,
            contracts=self._contracts,
            whole=kept,
        )

    def _stop_below_quorum(self, fl_ctx: FLContext) -> None:
        facts = self._round_facts
        try:
            self._write_record(None)
        except OSError as error:
            self.log_error(fl_ctx, f"the record of this round could not be written: {disk_problem(error)}")
        why = shortfall(
            stage=self.stage,
            number=self._current_round,
            asked=facts["asked"],
            accepted=self.aggregator.contributions,
            needed=facts["needed"],
            replies=self._sites.replies,
        )
        self.system_panic(why, fl_ctx)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Time the aggregation, judge progress, and close the round's record."""
        super().handle_event(event_type, fl_ctx)
        if event_type == EventType.BEFORE_TASK_DATA_FILTER:
            self._personalise(fl_ctx)
            return
        if event_type == EventType.AFTER_TASK_DATA_FILTER:
            data = fl_ctx.get_prop(FLContextKey.TASK_DATA)
            if isinstance(data, Shareable) and data.get_header(Header.STAGE) == self.stage:
                self._traffic.sent(fl_ctx.get_peer_context().get_identity_name(), data)
            return
        if event_type == InfoCollector.EVENT_TYPE_GET_STATS:
            self._tell_status(fl_ctx)
            return
        if event_type == EventType.CLIENT_DISCONNECTED:
            self._sites.lose(str(fl_ctx.get_prop(FLContextKey.DISCONNECTED_CLIENT_NAME)))
            return
        if event_type == EventType.BEFORE_PROCESS_TASK_REQUEST:
            # FLARE tells of a return only to the stage that saw the loss; whoever asks for work is back
            self._sites.back(fl_ctx.get_peer_context().get_identity_name())
            self._set_pace(fl_ctx)
            return
        if fl_ctx.get_prop(AppConstants.PHASE) is None or self._phase != AppConstants.PHASE_TRAIN:
            return
        if event_type == AppEventType.BEFORE_AGGREGATION:
            self._round_facts["aggregation_began"] = time.monotonic()
        elif event_type == AppEventType.AFTER_SHAREABLE_TO_LEARNABLE:
            self._round_facts["aggregated"] = time.monotonic()
        elif event_type == AppEventType.ROUND_DONE:
            self._finish_round(fl_ctx)

    def _set_pace(self, fl_ctx: FLContext) -> None:
        """Say how soon a site asks again; in the simulator at once, as its question is kept (``core.pace``)."""
        runner = fl_ctx.get_prop(FLContextKey.RUNNER)
        if self._phase != AppConstants.PHASE_TRAIN or "began" not in self._round_facts or runner is None:
            return
        elapsed = time.monotonic() - self._round_facts["began"]
        if place_of(fl_ctx).simulated:
            hold_requests(runner, len(fl_ctx.get_engine().get_clients()))
            elapsed = 0.0
        # FLARE reads it for every answer, and has no other way to change it
        runner.config.task_request_interval = request_interval(elapsed)

    def _tell_status(self, fl_ctx: FLContext) -> None:
        """Answer somebody who looks on; a stage that does not run, or has sent nothing yet, has nothing to say."""
        collector = fl_ctx.get_prop(InfoCollector.CTX_KEY_STATS_COLLECTOR)
        if self._phase != AppConstants.PHASE_TRAIN or "began" not in self._round_facts or collector is None:
            return
        plan = system_module(self.experiment.system, "plan")
        collector.add_info(
            live.GROUP,
            live.status(
                study=self.experiment.study,
                stage=self.stage,
                number=self._current_round,
                rounds={name: self.experiment.stages[name].rounds for name in self._contracts},
                steps=plan.work(self.experiment),
                seconds=time.monotonic() - self._round_facts["began"],
                asked=self._sites.counted(self._connected()),
                replies={site: {"reason": reason} for site, reason in dict(self._sites.declined).items()}
                | dict(self._sites.replies),
                history=self.record.rounds(),
            ),
        )

    def _refuse_unread(self, sender: str, reason: str) -> None:
        """Note that a message was too large to be read, or could not be; ``core.intake`` says by whom this is called.

        Nothing but the record follows from it: the sender's name is its own word.
        """
        site = self._sites.unread(sender, self._connected(), reason)
        if site is None:
            return
        self._round_facts.setdefault("refusals", []).append({"site": site, "reason": reason})
        with self._engine.new_context() as fl_ctx:
            self.log_warning(fl_ctx, f"round {self._current_round}: {site}: {reason}")
            note_in(fl_ctx, action=f"reply {self.stage}", outcome=Outcome.REFUSED, who=site, reason=reason)

    def _personalise(self, fl_ctx: FLContext) -> None:
        """Give a site its own tensors in the copy of the task that FLARE is about to send it; see ``core.personal``.

        The site is the one FLARE assigned the task to after checking its token, not what the request says of itself.
        A task of another stage or of an earlier question stays as it is: it holds the shared tensors, and what comes
        back of it is refused.
        """
        data, number = fl_ctx.get_prop(FLContextKey.TASK_DATA), fl_ctx.get_prop(FLContextKey.TASK_ID)
        current = self.aggregator.round if isinstance(self.aggregator, GuardedAggregator) else None
        if current is None or not current.personal or not isinstance(data, Shareable):
            return
        if (data.get_header(Header.NONCE), data.get_header(Header.STAGE)) != (current.nonce, self.stage):
            return
        client_task = self.communicator.process_task_check(number, fl_ctx)
        payload = current.personal.get(client_task.client.name) if client_task is not None else None
        if payload is not None:
            personalise(data, payload)

    def _finish_round(self, fl_ctx: FLContext) -> None:
        digest = self._known = self._round_facts["shared"]
        if self.contract.returns == "shared":
            digest = self._known = self._digest()
            stands = (digest == self._round_facts["shared"] or self.aggregator.still) and not self.contract.collects
            self._unchanged = self._unchanged + 1 if stands else 0
            self._round_facts["unchanged"] = self._unchanged
        try:
            record = self._write_record(digest)
            self._keep_personal()
            self.persistor.finish_round(self.stage, self._current_round, record)
        except Exception as error:
            # FLARE logs and forgets what an event handler raises, and the job would go on unsaved
            what = disk_problem(error) if isinstance(error, OSError) else getattr(error, "public", type(error).__name__)
            self.system_panic(
                f"{self.stage} round {self._current_round}: the round could not be saved ({what}). "
                "The checkpoint before it stays whole. Remedy: make room and run again with resume.",
                fl_ctx,
            )
            return
        limit = self.experiment.federation.no_progress_rounds
        if self._unchanged >= limit:
            self.system_panic(f"{self.stage}: no progress, the shared model has not changed for {limit} rounds", fl_ctx)

    def _keep_personal(self) -> None:
        """A site that was not heard in this round keeps what it had; what no stage sends any more is let go.

        Of features those of this round alone are kept: older ones are of an encoder that no site has any more.
        """
        self.persistor.exchanged = dict(self.aggregator.exchanged)
        if self.contract.personal:
            self.persistor.personal |= self.aggregator.personal
        elif not self._personal_ahead:
            self.persistor.personal = {}

    def _write_record(self, digest: str | None) -> dict[str, Any]:
        record = round_record(
            stage=self.stage,
            number=self._current_round,
            rounds=self._num_rounds,
            facts=self._round_facts,
            replies=self._sites.replies,
            declined=self._sites.declined,
            aggregator=self.aggregator,
            bytes_down=tensor_bytes(self.aggregator.round.message) if self.contract.sends == "shared" else 0,
            shared_sha256=digest,
            traffic=self._traffic,
        )
        self.record.add_round(record, self._folder)
        return record

    def _send(
        self,
        task: FlareTask,
        current: Round,
        fl_ctx: FLContext,
        targets: list[str],
        enough: int,
        patience: int,
        abort_signal: Signal | None,
    ) -> None:
        if self.contract.sends == "nothing":
            task.data.pop("DXO", None)
        else:
            DXO(DataKind.WEIGHTS, data=dict(current.message)).update_shareable(task.data)
        for header, value in (
            (Header.RUN, current.run),
            (Header.STAGE, current.stage),
            (Header.ROUND, current.number),
            (Header.ROUNDS, self._num_rounds),
            (Header.BASE, current.base),
            (Header.NONCE, current.nonce),
            (Header.SCHEMA, self.persistor.schema.digest),
            (Header.EXPERIMENT, self.experiment.digest),
            (Header.VERSIONS, own_versions()),
        ):
            task.data.set_header(header, value)
        if self._encryption is not None:
            task.data.set_header(Header.KEY, self._encryption.key)
        self._sent = time.monotonic()
        super().broadcast_and_wait(
            task=task,
            fl_ctx=fl_ctx,
            targets=targets,
            min_responses=enough,
            wait_time_after_min_received=patience,
            abort_signal=abort_signal,
        )

    def _accept_train_result(
        self, client_name: str, result: Shareable, fl_ctx: FLContext, is_unknown_task: bool = False
    ) -> bool:
        """Judge one reply. A failure is noted with its reason; the quorum decides what it means for the job."""
        code = result.get_return_code()
        self._traffic.received(client_name, result)
        reason: str | None = None
        accepted, outcome = False, Outcome.REFUSED
        declined = result.get_header(Header.DECLINED)
        if declined:
            self._sites.declined[client_name] = reason = clean(declined)
            outcome = Outcome.DECLINED
            self.log_warning(fl_ctx, f"{client_name} takes no part in {self.stage}: {reason}")
        elif code and code != ReturnCode.OK:
            reason = clean(result.get_header(Header.REASON) or f"{Reason.SITE_ERROR}: {code}")
            outcome = Outcome.FAILED
            if client_name not in self.aggregator.contributions:
                self.aggregator.rejections[client_name] = reason
            if reason.partition(":")[0] in LASTING:
                self._sites.unfit[client_name] = reason
                self.log_warning(fl_ctx, f"{client_name} can take no part in {self.stage}: {reason}")
            else:
                self.log_warning(fl_ctx, f"round {self._current_round}: {client_name} failed: {reason}")
        elif (peer := fl_ctx.get_peer_context()) is None or peer.get_identity_name() != client_name:
            # FLARE knows the client by its token; the name in the context is what the client calls itself, and it is
            # the one an aggregator sees
            reason = f"{Reason.SCHEMA}: a reply in another site's name"
            self.log_warning(fl_ctx, f"round {self._current_round}: {client_name}: {reason}")
        else:
            accepted = super()._accept_train_result(client_name, result, fl_ctx, is_unknown_task)
            if not accepted:
                reason = self.aggregator.rejections.get(client_name, str(Reason.ALREADY_RECEIVED))
        if reason is not None:
            self._round_facts.setdefault("refusals", []).append({"site": client_name, "reason": reason})
            note_in(fl_ctx, action=f"reply {self.stage}", outcome=outcome, who=client_name, reason=reason)
        stands = client_name in self.aggregator.contributions and not accepted
        self._sites.note(client_name, reason, time.monotonic() - self._sent, keep=stands)
        return accepted

    def _digest(self) -> str:
        return content_sha256(self._global_weights[ModelLearnableKey.WEIGHTS])

    def _connected(self) -> list[str]:
        return sorted(client.name for client in self._engine.get_clients())

    def _accepted(self) -> int:
        return len(self.aggregator.contributions)

    def _needed(self, counted: list[str]) -> int:
        taking_part = len(self._sites.counted(counted))
        if self.contract.collects and counted and not taking_part:
            return 0
        return max(1, self.experiment.federation.needed(taking_part), self._least)

    @property
    def _aggregates(self) -> bool:
        """Whether this stage puts updates together."""
        return self.contract.returns == "shared" and not self.contract.collects

    @property
    def _least(self) -> int:
        """Sites without which the study's rule would not hold in this stage."""
        return self.experiment.federation.robust.least if self._aggregates else 1

    @staticmethod
    def _aborted(abort_signal: Signal | None) -> bool:
        return abort_signal is not None and bool(abort_signal.triggered)
