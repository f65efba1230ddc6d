"""FLARE filters that a site's own privacy.json names: they see every reply, and block what they do not know.

FLARE's ``DXOFilter`` is not used: it lets a reply pass unseen where the return code is not OK, where it finds no
data object, and where there are figures but no tensors.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from pathlib import Path

import torch
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import FilterKey, FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.utils.fl_context_utils import add_job_audit_event

from fedmedseg.core.audit import Outcome
from fedmedseg.core.audit_flare import note_in
from fedmedseg.core.config import Experiment, load_experiment, system_module
from fedmedseg.core.encryption_keys import load_cipher
from fedmedseg.core.errors import ConfigurationError, FedMedSegError, Reason
from fedmedseg.core.executor import EXPERIMENT_FILE
from fedmedseg.core.place import place_of
from fedmedseg.core.sealing import seal, sealed_name
from fedmedseg.core.wire import Header, Schema, StageContract
from fedmedseg.data.leaving import PrivacySection, require_features
from fedmedseg.data.site import open_site
from fedmedseg.privacy import contents
from fedmedseg.privacy.clipping import bounded, clipping_factor, l2_norm
from fedmedseg.privacy.contents import Contents, blocked
from fedmedseg.privacy.counts import matches, without_small
from fedmedseg.privacy.ledger import charge

CASES = "cases"
"""The metric of an evaluation that says how many cases its means stand on."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a filter decides by: the job's study and contract, and the site's own word."""

    experiment: Experiment
    contract: StageContract
    privacy: PrivacySection
    state: Path
    """The site's state_dir."""
    startup: Path
    """The kit's folder of what provisioning wrote."""


class SiteFilter(Filter):
    """Hands successful replies to ``apply`` and sends a short reason instead of whatever it cannot judge.

    It never raises, as FLARE would tell the server no reason then. A failed or declining reply is reduced to code
    and reason, whatever else it carried. Settings are read anew from the site's file for every reply.
    """

    def __init__(self) -> None:
        super().__init__()
        self._schema: tuple[str, Schema] | None = None

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """The reply as it may leave, or a refusal that says why not."""
        try:
            return self._process(shareable, fl_ctx)
        except FedMedSegError as error:
            self.log_error(fl_ctx, f"reply blocked: {error.local}")
            words = error.public if error.reason == Reason.PRIVACY else f"{Reason.PRIVACY}: {error.public}"
            return self._refuse(words, fl_ctx)
        except Exception as error:
            # its message may quote what must not leave, into a log even
            self.log_error(fl_ctx, f"reply blocked: {type(error).__name__} in {type(self).__name__}")
            return self._refuse(f"{Reason.PRIVACY}: {type(error).__name__} in a filter", fl_ctx)

    @abstractmethod
    def apply(self, reply: Contents, setting: Setting, fl_ctx: FLContext) -> Contents:
        """The contents that may leave.

        Raises:
            FedMedSegError: nothing of this reply may.
        """

    @staticmethod
    def _refuse(words: str, fl_ctx: FLContext) -> Shareable:
        refusal = contents.refusal(words)
        add_job_audit_event(fl_ctx=fl_ctx, msg=f"reply blocked: {refusal.get_header(Header.REASON)}")
        note_in(fl_ctx, action="send reply", outcome=Outcome.REFUSED, reason=refusal.get_header(Header.REASON))
        return refusal

    def _process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        if fl_ctx.get_prop(FLContextKey.FILTER_DIRECTION) != FilterKey.OUT:
            raise blocked("a filter of replies used on something else")
        if not isinstance(shareable, Shareable):
            raise blocked("something else than a reply")
        if shareable.get_return_code() != ReturnCode.OK:
            return contents.failure(shareable)
        if shareable.get_header(Header.DECLINED) is not None:
            return contents.declined(shareable)
        stage = fl_ctx.get_prop(FLContextKey.TASK_NAME)
        reply = contents.read(shareable, stage=stage)
        return contents.write(self.apply(reply, self._setting(stage, fl_ctx), fl_ctx))

    def _setting(self, stage: str, fl_ctx: FLContext) -> Setting:
        place = place_of(fl_ctx)
        experiment = load_experiment(place.config / EXPERIMENT_FILE)
        contracts: dict[str, StageContract] = system_module(experiment.system, "plan").stages(experiment)
        if stage not in contracts:
            raise blocked("a stage that this study does not have")
        site = open_site(
            experiment, name=place.name, local=place.local, workspace=place.workspace, simulated=place.simulated
        )
        if site.privacy is None:
            raise ConfigurationError(
                "the site file has no section privacy",
                expected="this site's word on what may leave it",
                remedy="copy the section privacy of app_configs/sites/example.yaml into the site file",
                reason=Reason.PRIVACY,
            )
        return Setting(
            experiment=experiment,
            contract=contracts[stage],
            privacy=site.privacy,
            state=Path(site.state_root),
            startup=place.workspace / "startup",
        )

    def schema(self, experiment: Experiment) -> Schema:
        """All shared tensors of a study; made once, as it builds the network."""
        if self._schema is None or self._schema[0] != experiment.digest:
            tensors = system_module(experiment.system, "plan").initial_shared(experiment)
            self._schema = (experiment.digest, Schema(tensors))
        return self._schema[1]


class DeclaredContents(SiteFilter):
    """Lets exactly the tensors that the stage's contract declares pass, in name, shape and type, and its metrics.

    Features pass where the contract declares an exchange and the site file says ``privacy.features: true``.

    The declaration is that of the package installed here, for the job's settings. A metric that is not declared
    blocks the reply; one that the site does not want to tell is left out.

    Args:
        tensors: whether tensors may leave at all.
    """

    def __init__(self, tensors: bool = True) -> None:
        super().__init__()
        self.tensors = tensors

    def apply(self, reply: Contents, setting: Setting, fl_ctx: FLContext) -> Contents:
        """Check everything, change nothing but which metrics go along."""
        contract = setting.contract
        contract.check_metrics(reply.metrics)
        if (Header.HELD in reply.tokens) != contract.held:
            raise blocked("an undeclared header, or one that is missing")
        whole = self.schema(setting.experiment).part(contract.returned_in(reply.round))
        returned = contract.replies_of(whole).get(reply.tokens[Header.SCHEMA])
        if returned is None:
            raise blocked("another schema than that of this site")
        if contract.returns == "metrics":
            if reply.tensors:
                raise blocked("tensors in a stage that returns metrics")
        elif not self.tensors:
            raise blocked("tensors, which the scope keeps here")
        else:
            returned.require(reply.tensors, sender="this site")
        self._check_features(reply, setting)
        told = {name: float(value) for name, value in reply.metrics.items() if matches(name, setting.privacy.metrics)}
        return dataclasses.replace(reply, metrics=told)

    @staticmethod
    def _check_features(reply: Contents, setting: Setting) -> None:
        """Refuse features that the stage does not declare, or that this site keeps."""
        exchange = setting.contract.exchange
        if exchange is None:
            if reply.features:
                raise blocked("features in a stage that exchanges none")
            return
        require_features(setting.privacy, reason=Reason.PRIVACY)
        exchange.require(reply.features, sender="this site")


class SmallCounts(SiteFilter):
    """Withholds counts of cases below the site's ``min_count`` and all figures of a reply that stands on fewer."""

    def apply(self, reply: Contents, setting: Setting, fl_ctx: FLContext) -> Contents:
        """The server weighs all sites alike in a round where one withholds its number of examples."""
        metrics, examples = without_small(
            reply.metrics,
            examples=reply.examples,
            counting=setting.contract.counts,
            cases=CASES,
            least=setting.privacy.min_count,
        )
        withheld = len(reply.metrics) - len(metrics) + (reply.examples is not None and examples is None)
        if withheld:
            self.log_info(fl_ctx, f"{withheld} figure(s) withheld: counts below {setting.privacy.min_count}")
        return dataclasses.replace(reply, metrics=metrics, examples=examples)


class BoundedDifferences(SiteFilter):
    """Clips the differences to the site's ``clip_norm`` and adds the site's noise, entered in its ledger first.

    Args:
        clip: whether a site that sets no ``clip_norm`` may let differences leave as they are.
        noise: whether one that sets no ``noise`` may.
    """

    def __init__(self, clip: str = "optional", noise: str = "optional") -> None:
        super().__init__()
        for name, value in (("clip", clip), ("noise", noise)):
            if value not in ("optional", "required"):
                raise ConfigurationError(f"privacy.json: {name}", got=repr(value), expected="optional or required")
        self.clip = clip
        self.noise = noise

    def apply(self, reply: Contents, setting: Setting, fl_ctx: FLContext) -> Contents:
        """A reply without tensors stays as it is and costs nothing; its figures are outside any guarantee."""
        if not reply.tensors and not setting.contract.separable:
            return reply
        limit, noise = setting.privacy.clip_norm, setting.privacy.noise
        for needed, value, name in ((self.clip, limit, "clip_norm"), (self.noise, noise, "noise")):
            if needed == "required" and value is None:
                raise ConfigurationError(
                    f"the site file sets no privacy.{name}",
                    expected=f"privacy.{name}, which this scope requires",
                    remedy="set it in the site file, or ask for another scope of this site",
                    reason=Reason.PRIVACY,
                )
        if limit is None:
            return reply
        if noise is not None:
            reply = self._whole(reply, setting)
        norm = l2_norm(reply.tensors)
        if not math.isfinite(norm):
            raise blocked("differences whose norm is not finite")
        deviation = 0.0
        if noise is not None:
            standing = charge(
                setting.state,
                study=setting.experiment.study,
                multiplier=noise.multiplier,
                epsilon=noise.epsilon,
                delta=noise.delta,
            )
            deviation = noise.multiplier * limit
            outside = f"; {len(reply.metrics)} figure(s) leave outside this guarantee" if reply.metrics else ""
            self.log_info(
                fl_ctx,
                f"noise added: release {standing.releases} of this site, epsilon {standing.epsilon:.4g} of "
                f"{noise.epsilon:g} at delta {noise.delta:g}{outside}",
            )
        factor = clipping_factor(norm, limit)
        if factor < 1.0:
            # not the norm itself, which is a figure of this site that nobody declared
            self.log_info(fl_ctx, f"differences clipped to norm {limit:g}")
        tensors = bounded(reply.tensors, factor=factor, deviation=deviation)
        Schema(reply.tensors).require(tensors, sender="the noise")
        return dataclasses.replace(reply, tensors=tensors)

    def _whole(self, reply: Contents, setting: Setting) -> Contents:
        """With zeros for what did not move: what a reply holds must not tell what noise is to hide."""
        schema = self.schema(setting.experiment).part(setting.contract.returned_in(reply.round))
        missing = {name: one for name, one in schema.specs.items() if name not in reply.tensors}
        if not missing:
            return reply
        zeros = {name: torch.zeros(one.shape, dtype=one.dtype) for name, one in missing.items()}
        tensors = {name: {**reply.tensors, **zeros}[name] for name in schema.specs}
        return dataclasses.replace(reply, tensors=tensors, tokens={**reply.tokens, Header.SCHEMA: schema.digest})


class EncryptedDifferences(SiteFilter):
    """Encrypts the differences where the study asks for it, after every other filter has seen them in plain.

    Figures, counts and times stay as they are. A site that requires encryption lets no plain differences leave.
    """

    def apply(self, reply: Contents, setting: Setting, fl_ctx: FLContext) -> Contents:
        """One entry of bytes in place of the tensors; the key is read from the kit for every reply."""
        if not reply.tensors:
            return reply
        if setting.experiment.federation.encryption == "none":
            if setting.privacy.encryption == "required":
                raise ConfigurationError(
                    "plain differences",
                    expected="federation.encryption in the study: the site file sets privacy.encryption to required",
                    remedy="submit the study with federation.encryption: ckks, or change the site file",
                    reason=Reason.PRIVACY,
                )
            return reply
        cipher = load_cipher(setting.startup, secret=True).cipher
        return dataclasses.replace(reply, tensors={sealed_name(reply.stage): seal(cipher, reply.tensors)})
