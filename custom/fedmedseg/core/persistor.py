"""The server's shared model: initial tensors from the system's plan, then checkpoints that a new job can resume."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import torch
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.model import ModelLearnable, ModelLearnableKey, make_model_learnable
from nvflare.app_common.abstract.model_persistor import ModelPersistor

from fedmedseg.core import checkpoint
from fedmedseg.core.config import load_experiment, system_module
from fedmedseg.core.encoder_file import with_encoder
from fedmedseg.core.homes import SERVER
from fedmedseg.core.place import Place, place_of
from fedmedseg.core.rounds import disk_problem
from fedmedseg.core.sealing import split
from fedmedseg.core.start_file import with_start
from fedmedseg.core.state import SiteState, earlier_run, hold_alone, require_earlier
from fedmedseg.core.submission import own_root
from fedmedseg.core.wire import Schema

SHARED_FILE = "shared.safetensors"
SEALED_FILE = "shared.sealed.safetensors"
"""In its place where replies are encrypted: plain start and encrypted sums, which only a site can put together."""
SECONDS_BETWEEN_EXPORTS = 60.0
"""The run folder's copy of the model is at most this much older than the checkpoint while a run goes on."""


class SharedModelPersistor(ModelPersistor):
    """Keeps the shared tensors and how far each stage came, on the server's disk.

    Args:
        experiment_file: path of experiment.yaml; read in the constructor, because FLARE ends a job with a clear
            message only when a server component cannot be built.
    """

    def __init__(self, experiment_file: str) -> None:
        super().__init__()
        self.experiment_file = experiment_file
        self.experiment = load_experiment(experiment_file)
        initial = system_module(self.experiment.system, "plan").initial_shared(self.experiment)
        initial = with_encoder(initial, self.experiment, Path(experiment_file).parent)
        initial = with_start(initial, self.experiment, Path(experiment_file).parent)
        self.schema = Schema(initial)
        self._shared: Mapping[str, torch.Tensor] = initial
        self._state: SiteState | None = None
        self._place: Place | None = None
        self._alone: IO[str] | None = None
        self.run = ""
        self.started = ""
        """When the run began that this one may continue: ISO 8601, UTC."""
        self.personal: dict[str, Mapping[str, torch.Tensor]] = {}
        """Tensors of single sites, which replace the shared ones of these names in what that site alone is sent."""
        self.exchanged: dict[str, Mapping[str, torch.Tensor]] = {}
        """Features that sites gave in the last round of a stage that exchanges them (``core.exchange``)."""
        self.rounds_done: dict[str, int] = {}
        self.history: list[dict[str, Any]] = []
        self.resumed_sha256: str | None = None
        """Digest of the tensors a resumed run starts from."""
        self._saved: Mapping[str, torch.Tensor] = initial
        """The tensors as the checkpoint has them."""
        self._exported = -math.inf
        self._to_export = False

    def open(self, fl_ctx: FLContext) -> None:
        """Claim this study's state: a resumed study continues the earlier run, any other sets it aside.

        Raises:
            ConfigurationError: another job of this study is running, or there is nothing of this submitter's to
                resume.
        """
        if self._state is not None:
            return
        self._place = place_of(fl_ctx)
        key = {"study": self.experiment.study, "experiment": self.experiment.digest, "site": SERVER}
        root = own_root(self._place.home / "state", self._place)
        if not self._place.simulated:
            self._alone = hold_alone(root, **key)
        if self.experiment.resume:
            require_earlier(root, asked="resume", **key)
        known = earlier_run(root, **key) if self.experiment.resume else None
        self.run = known or uuid.uuid4().hex
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self._state = SiteState(root, run=self.run, **key)
        saved = self._state.load("shared") if known else None
        if saved is not None:
            self.schema.require(split(saved["tensors"])[0], sender="this server's checkpoint")
            self._shared = self._saved = saved["tensors"]
            for tensors in saved.get("personal", {}).values():
                self.schema.require({**self._shared, **tensors}, sender="this server's checkpoint")
            self.personal = dict(saved.get("personal", {}))
            self.exchanged = dict(saved.get("exchanged", {}))
            self.rounds_done = dict(saved["rounds_done"])
            self.history = list(saved["history"])
            # a checkpoint of an earlier state of this version does not say when its run began
            self.started = saved.get("started", self.started)
            self.resumed_sha256 = checkpoint.content_sha256(self._shared)
            self._export()
            self.log_info(fl_ctx, f"resuming after {self.rounds_done}")

    def load_model(self, fl_ctx: FLContext) -> ModelLearnable:
        """The shared tensors as they stand."""
        self.open(fl_ctx)
        return make_model_learnable(dict(self._shared), {})

    def save_model(self, model: ModelLearnable, fl_ctx: FLContext) -> None:
        """Remember the tensors; ``finish_round`` writes them."""
        self._shared = dict(model[ModelLearnableKey.WEIGHTS])

    def finish_round(self, stage: str, number: int, record: dict[str, Any]) -> None:
        """Write all tensors, position and record of a finished round as one checkpoint.

        Tensors and features of single sites lie in it, too, so that they and the shared ones are always of the same
        round. They never enter the run folder, which is what is handed out.

        Raises:
            OSError: the disk is full; the checkpoint before it stays whole.
        """
        assert self._state is not None, "the persistor was not opened"
        self.rounds_done[stage] = number + 1
        self.history.append(record)
        tree = {
            "tensors": dict(self._shared),
            "personal": self.personal,
            "exchanged": self.exchanged,
            "rounds_done": self.rounds_done,
            "history": self.history,
            "started": self.started,
        }
        self._state.save("shared", tree)
        self._saved, self._to_export = dict(self._shared), True
        if time.monotonic() - self._exported >= SECONDS_BETWEEN_EXPORTS:
            try:
                self._export()
            except OSError as error:
                # the round is saved: a copy of it for people is tried again, at the latest when the run ends
                self.logger.error(f"the model could not be put among the results ({disk_problem(error)})")

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """However the run ends, unless its process is killed, the last saved model lies among the job's results."""
        if event_type == EventType.END_RUN and self._to_export:
            try:
                self._export()
            except OSError as error:
                # nobody is left to stop: the checkpoint holds the same tensors
                self.log_error(fl_ctx, f"the model could not be put among the results ({disk_problem(error)})")

    def _export(self) -> None:
        """Put the shared model into the run folder, where the job's results are fetched from, with what it was made by:
        whoever has the file alone can build and feed its networks."""
        assert self._place is not None
        name = SHARED_FILE if self.experiment.federation.encryption == "none" else SEALED_FILE
        checkpoint.save(
            self._place.run / "models" / name,
            {
                "format": 1,
                "system": self.experiment.system,
                "study": self.experiment.study,
                "experiment": self.experiment.digest,
                "settings": self.experiment.model_dump(mode="json", exclude={"resume"}),
                "run": self.run,
                "tensors": dict(self._saved),
            },
        )
        self._exported, self._to_export = time.monotonic(), False
