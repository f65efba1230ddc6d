"""The executor that adapts any Learner to FLARE: one task in, one reply out, whatever happens in between."""

from __future__ import annotations

import errno
import logging
import time
import traceback
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.dxo import from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FilterKey, FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.private.privacy_manager import Scope

from fedmedseg.core import checkpoint, large_tensors
from fedmedseg.core.approval import require_approval
from fedmedseg.core.audit import Outcome
from fedmedseg.core.audit_flare import note_in
from fedmedseg.core.checkpoint import content_crc32
from fedmedseg.core.config import Experiment, load_experiment, system_module
from fedmedseg.core.encryption_keys import KitCipher, load_cipher
from fedmedseg.core.errors import ConfigurationError, FedMedSegError, Reason
from fedmedseg.core.exchange import Features
from fedmedseg.core.exchange import split as split_features
from fedmedseg.core.first_task import require_fit
from fedmedseg.core.learner import Learner, Task
from fedmedseg.core.memory import TaskCollector
from fedmedseg.core.own_events import OwnEvents
from fedmedseg.core.place import Place, place_of
from fedmedseg.core.progress import PROGRESS_FILE, Progress
from fedmedseg.core.replies import encode, thin
from fedmedseg.core.scopes import FILTERS, ORDER
from fedmedseg.core.sealing import layouts, refuse_simulation, split, unseal
from fedmedseg.core.state import SiteState
from fedmedseg.core.submission import own_root, submission
from fedmedseg.core.training import Aborted
from fedmedseg.core.transport import Codec, codec_of, down_codec_of
from fedmedseg.core.versions import differences, own_versions
from fedmedseg.core.wire import DECLINING, LASTING, Either, Header, Part, Schema, StageContract
from fedmedseg.core.wishes import Wish, make_wish

logger = logging.getLogger(__name__)

EXPERIMENT_FILE = "experiment.yaml"
CLIENT_FILE = "config_fed_client.json"
AUDITED = frozenset(
    {*LASTING, Reason.CONFIGURATION, Reason.ENCRYPTION, Reason.PREFLIGHT, Reason.PRIVACY, Reason.SCHEMA}
)
"""Reasons for which a site refuses what it was sent; any other failure is its own, and for its log."""


class TrainingExecutor(Executor):
    """Binds one system's learner; a subclass says which.

    The constructor does nothing that can fail: FLARE ends a simulated job with status 0 when a client component
    cannot be built. What is wrong is told in the reply to the first task instead.
    """

    def __init__(self) -> None:
        super().__init__()
        large_tensors.register()
        self._ready: _Ready | None = None
        self._leaving: tuple[str, Codec, SiteState] | None = None
        """Of the last reply, where it is to be encoded: its nonce, how, and where the site keeps what is left."""
        self._collector = TaskCollector()

    @abstractmethod
    def make_learner(self, experiment: Experiment, place: Place) -> Learner:
        """The learner of this system at this site. Called once per process."""

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Do one task. Never raises: a failure becomes a reply with a reason free of paths and identifiers."""
        self._collector.begin()
        try:
            return self._execute(task_name, shareable, fl_ctx, abort_signal)
        except Aborted:
            return make_reply(ReturnCode.TASK_ABORTED)
        except FedMedSegError as error:
            if error.reason in DECLINING:
                self.log_warning(fl_ctx, f"no part in {task_name}: {error.local}")
                note_in(fl_ctx, action=f"task {task_name}", outcome=Outcome.DECLINED, reason=error.public)
                return _declined(error.public)
            what = f"no part in {task_name}" if error.reason in LASTING else f"{task_name} failed"
            self.log_error(fl_ctx, f"{what}: {error.local}")
            if error.reason in AUDITED:
                note_in(fl_ctx, action=f"task {task_name}", outcome=Outcome.REFUSED, reason=error.public)
            return _failure(error.public)
        except (MemoryError, torch.OutOfMemoryError):
            self.log_error(fl_ctx, f"{task_name} failed: out of memory")
            return _failure(f"{Reason.MEMORY}: out of memory")
        except OSError as error:
            full = error.errno == errno.ENOSPC
            what = "disk full" if full else f"{type(error).__name__} {errno.errorcode.get(error.errno or 0, '')}"
            self.log_error(fl_ctx, f"{task_name} failed: {what}\n{_frames(error)}")
            return _failure(f"{Reason.DISK}: {what}")
        except Exception as error:
            # the message may quote data, so it is told neither to the server nor to the log; the frames are
            self.log_error(fl_ctx, f"{task_name} failed: {type(error).__name__}\n{_frames(error)}")
            return _failure(f"{Reason.INTERNAL}: {type(error).__name__}")

    def _execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        # before anything is read: another version may not even understand the study's settings
        _require_same(differences(shareable.get_header(Header.VERSIONS), own_versions()))
        ready = self._prepare(fl_ctx)
        if not ready.place.simulated:
            _require_site_filters(fl_ctx)
        contract = ready.contracts.get(task_name)
        if contract is None:
            return make_reply(ReturnCode.TASK_UNKNOWN)
        for header, ours in ((Header.EXPERIMENT, ready.experiment.digest), (Header.SCHEMA, ready.schema.digest)):
            if shareable.get_header(header) != ours:
                _require_same(f"{header.removeprefix('fedmedseg.')} other than at the server")
        if ready.learner.needs_approval:
            ready.await_approval(task_name, shareable, abort_signal, job=fl_ctx.get_job_id())
        shared: dict[str, torch.Tensor] = {}
        received: Features | None = None
        if contract.sends == "shared":
            dxo = from_shareable(shareable)
            sent: Part | Either = contract.sent_in(_whole(shareable, Header.ROUND))
            if contract.extra is not None and shareable.get_header(Header.EXTRA) is True:
                sent = Either(sent, contract.extra)
            plain, sealed = split(dxo.data) if ready.encrypted else (dxo.data, {})
            features: dict[str, torch.Tensor] = {}
            if contract.exchange is not None:
                plain, features = split_features(plain)
            schema = ready.schema.part(sent)
            try:
                if (down := down_codec_of(ready.experiment, contract, schema)) is not None:
                    plain = down.opened(plain, sender="the server")
                schema.require(plain, sender="the server")
                if contract.exchange is not None and features:
                    contract.exchange.require(features, sender="the server", received=True)
                    received = contract.exchange.decode(features)
            except FedMedSegError as error:
                # the same reasons may be this site's own fault elsewhere, and are no refusal there
                note_in(fl_ctx, action=f"task {task_name}", outcome=Outcome.REFUSED, reason=error.public)
                raise
            if content_crc32({**plain, **sealed, **features}) != shareable.get_header(Header.BASE):
                raise FedMedSegError(
                    "shared tensors", expected="the checksum that came with them", reason=Reason.SCHEMA
                )
            shared = ready.unsealed(plain, sealed, shareable, stage=task_name) if ready.encrypted else plain
        task = ready.task(task_name, shareable, abort_signal, received=received)
        began = time.monotonic()
        reply = ready.learner.run(task, shared)
        answer = encode(
            reply,
            given=shared,
            schema=ready.schema,
            contract=contract,
            request=shareable,
            seconds=time.monotonic() - began,
        )
        # only now are they known to be numbers that the study declares
        ready.events.write(reply.metrics, stage=task_name, step=task.round)
        codec = codec_of(ready.experiment, contract, ready.schema.part(contract.returned_in(task.round)))
        self._leaving = None if codec is None else (answer.get_header(Header.NONCE), codec, task.state)
        return answer

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Once the site's filters have let this executor's reply pass, put its differences into the form in which they
        travel.
        """
        if event_type == EventType.END_RUN and self._ready is not None:
            self._ready.events.close()
        if event_type != EventType.AFTER_TASK_RESULT_FILTER or self._leaving is None:
            return
        nonce, codec, state = self._leaving
        reply = fl_ctx.get_prop(FLContextKey.TASK_RESULT)
        passed = isinstance(reply, Shareable) and reply.get_return_code() == ReturnCode.OK
        if passed and reply.get_header(Header.NONCE) == nonce:
            self._leaving = None
            self._thin(reply, codec, state, fl_ctx)

    def _thin(self, reply: Shareable, codec: Codec, state: SiteState, fl_ctx: FLContext) -> None:
        """FLARE forgets what an event handler raises, and would send the reply as it is: it becomes a failure here."""
        try:
            thin(reply, codec=codec, state=state)
        except Exception as error:
            full = isinstance(error, OSError) and error.errno == errno.ENOSPC
            what = f"{Reason.DISK}: disk full" if full else f"{Reason.INTERNAL}: {type(error).__name__}"
            self.log_error(fl_ctx, f"the reply could not be encoded: {what}\n{_frames(error)}")
            reply.clear()
            reply.update(_failure(getattr(error, "public", what)))

    def _prepare(self, fl_ctx: FLContext) -> _Ready:
        if self._ready is None:
            place = place_of(fl_ctx)
            if place.simulated and place.folder != place.name:
                raise ConfigurationError(
                    "site name",
                    got=place.name,
                    expected=f"{place.folder}, whose folder this process works in",
                    remedy="start the run again: FLARE's simulator swapped two sites that started at the same moment; "
                    "`fedmedseg simulate` and `-t 1` are safe from it",
                )
            require_fit(place)
            experiment = load_experiment(place.config / EXPERIMENT_FILE)
            torch.set_num_threads(experiment.compute.threads)
            plan = system_module(experiment.system, "plan")
            self._ready = _Ready(
                experiment=experiment,
                contracts=plan.stages(experiment),
                schema=Schema(plan.initial_shared(experiment)),
                learner=self.make_learner(experiment, place),
                place=place,
                encryption=_open_encryption(experiment, place),
            )
        return self._ready


class _Ready:
    """What a process builds once and keeps for all its tasks."""

    def __init__(
        self,
        *,
        experiment: Experiment,
        contracts: dict[str, StageContract],
        schema: Schema,
        learner: Learner,
        place: Place,
        encryption: KitCipher | None,
    ) -> None:
        self.experiment = experiment
        self.contracts = contracts
        self.schema = schema
        self.learner = learner
        self.place = place
        self.events = OwnEvents(run=place.run, site=place.name)
        self._encryption = encryption

    @property
    def encrypted(self) -> bool:
        """Whether the study's replies are encrypted."""
        return self._encryption is not None

    def unsealed(
        self, plain: dict[str, torch.Tensor], sealed: dict[str, torch.Tensor], request: Shareable, *, stage: str
    ) -> dict[str, torch.Tensor]:
        """The shared tensors, put together here alone; kept in the site's run folder, as the server cannot read them.

        Raises:
            ConfigurationError: the server's kit names another key than this site's.
            FedMedSegError: reason ENCRYPTION, or a schema's; what came is no sum under this site's key.
        """
        assert self._encryption is not None
        if request.get_header(Header.KEY) != self._encryption.key:
            raise ConfigurationError(
                "encryption key",
                got="another than the server's kit names",
                expected="kits of one provisioning, at the server and at every site",
                remedy="ask the federation's network administrator for this site's kit again",
            )
        part = self.contracts[stage].sent_in(_whole(request, Header.ROUND))
        opened = unseal(self._encryption.cipher, plain, sealed, layouts(self.schema, self.contracts, part))
        self.schema.part(part).require(opened, sender="the server, after decryption")
        if sealed:
            content = {
                "format": 1,
                "system": self.experiment.system,
                "study": self.experiment.study,
                "experiment": self.experiment.digest,
                "tensors": opened,
            }
            checkpoint.save(self.place.run / "models" / f"shared.{stage}.safetensors", content)
        return opened

    def await_approval(self, stage: str, request: Shareable, abort_signal: Signal, *, job: str) -> None:
        """Wait for the word of this site's people, as long as the server waits for a round of ``stage``."""
        require_approval(
            Path(self.learner.state_root),
            self._wish(_text(request, Header.RUN)),
            job=job,
            aborted=lambda: bool(abort_signal.triggered),
            patience=self.experiment.stages[stage].timeout or self.experiment.federation.timeout,
        )

    def _wish(self, run: str) -> Wish:
        submitter, scope = submission(self.place)
        return make_wish(
            self.experiment,
            contracts=self.contracts,
            schema=self.schema,
            run=run,
            submitter=submitter,
            scope=scope,
            components=(self.place.config / CLIENT_FILE).read_bytes(),
        )

    def task(self, stage: str, request: Shareable, abort_signal: Signal, *, received: Features | None = None) -> Task:
        """The learner's view of ``request``."""
        experiment, site = self.experiment, self.place.name
        state = SiteState(
            own_root(Path(self.learner.state_root), self.place),
            study=experiment.study,
            experiment=experiment.digest,
            site=site,
            run=_text(request, Header.RUN),
        )
        number, rounds = _whole(request, Header.ROUND), _whole(request, Header.ROUNDS)
        return Task(
            site=site,
            stage=stage,
            round=number,
            rounds=rounds,
            seed=experiment.seed,
            base=_text(request, Header.BASE),
            state=state,
            progress=Progress(site=site, stage=stage, round=number, rounds=rounds, file=self.place.run / PROGRESS_FILE),
            received=received,
            aborted=lambda: bool(abort_signal.triggered),
            checkpoint_seconds=experiment.compute.checkpoint_seconds,
        )


def _require_same(difference: str) -> None:
    """Take no part where server and site differ in what must be the same."""
    if difference:
        raise FedMedSegError(
            difference,
            expected="the server's",
            remedy="install the wheel that the study's kits name, at the server and at every site, and submit the job "
            "again",
            reason=Reason.VERSION,
        )


def _require_site_filters(fl_ctx: FLContext) -> None:
    """FLARE accepts every job and runs no filter where a kit has no privacy.json, and those alone that one names.

    A site whose scope runs other filters than ours, or not all of them, takes no part: what its people set in the site
    file, noise say, would be left out without a word.
    """
    scope = fl_ctx.get_prop(FLContextKey.SCOPE_OBJECT)
    active = getattr(scope, Scope.TASK_RESULT_FILTERS_NAME, {}).get(FilterKey.OUT, [])
    found = [f"{type(one).__module__}.{type(one).__name__}" for one in active]
    if found != [f"{FILTERS}{name}" for name in ORDER]:
        raise ConfigurationError(
            "local/privacy.json",
            got=f"the filters {', '.join(name.rpartition('.')[2] for name in found) or '(none)'} in force",
            expected=f"{', '.join(ORDER)}, all of {FILTERS.rstrip('.')} and in this order",
            remedy="write what fedmedseg.core.scopes.privacy_policy() returns to local/privacy.json of this site's "
            "kit; kits of our builder have it",
        )


def _open_encryption(experiment: Experiment, place: Place) -> KitCipher | None:
    """This site's cipher where the study is encrypted.

    Raises:
        ConfigurationError: in the simulator, or a kit without the key.
    """
    if experiment.federation.encryption == "none":
        return None
    if place.simulated:
        refuse_simulation(experiment)
    return load_cipher(place.workspace / "startup", secret=True)


def _text(request: Shareable, header: str) -> str:
    value = request.get_header(header)
    if not isinstance(value, str) or not value.isalnum() or len(value) > 64:
        raise FedMedSegError(header, got=type(value).__name__, expected="a short token", reason=Reason.SCHEMA)
    return value


def _whole(request: Shareable, header: str) -> int:
    value: Any = request.get_header(header)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise FedMedSegError(header, got=type(value).__name__, expected="a whole number", reason=Reason.SCHEMA)
    return value


def _failure(reason: str) -> Shareable:
    reply = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    reply.set_header(Header.REASON, reason)
    return reply


def _declined(reason: str) -> Shareable:
    reply = make_reply(ReturnCode.OK)
    reply.set_header(Header.DECLINED, reason)
    return reply


def _frames(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    return "\n".join(f"  {Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
