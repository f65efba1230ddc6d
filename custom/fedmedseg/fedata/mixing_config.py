"""Settings of what a site keeps of its own model and of its teacher, and which of them mean something together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from fedmedseg.core.bounds import Fraction, Positive
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.schema import Misfit, Strict, refuse_unread

if TYPE_CHECKING:
    from fedmedseg.fedata.config import Section

ClientMix = Literal["ala_attn", "ala_all", "keep_attn_local", "fedema", "replace"]
TeacherSync = Literal["keep", "reset", "aggregate"]
Schedule = Literal["cosine", "linear", "constant"]
LEARNED = ("ala_attn", "ala_all")
"""Values of ``client_mix`` that learn mixing weights."""
START = 0.996


class EMASection(Strict):
    """Momentum of the teacher from ``start`` to ``end`` over all steps of all rounds."""

    schedule: Schedule = "cosine"
    """``cosine``: half a cosine; ``linear``: a straight line, as in data2vec; ``constant``: ``start`` throughout."""
    start: float = Field(default=START, ge=0.0, le=1.0)
    end: float = Field(default=1.0, ge=0.0, le=1.0)
    """With ``constant`` it is ``start``, and need not be given."""

    @model_validator(mode="before")
    @classmethod
    def _constant_ends_where_it_starts(cls, content: Any) -> Any:
        if isinstance(content, dict) and content.get("schedule") == "constant" and "end" not in content:
            return {**content, "end": content.get("start", START)}
        return content

    @model_validator(mode="after")
    def _rises(self) -> EMASection:
        if self.schedule == "constant" and self.start != self.end:
            raise Misfit(
                "end", got=self.end, expected="ema.end equal to ema.start, or left out, with ema.schedule constant"
            )
        if self.start > self.end:
            raise Misfit("start", got=self.start, expected="ema.start not above ema.end")
        return self


class ALASection(Strict):
    """How a site learns which share of the server's tensors it takes."""

    step: float = Field(default=1.0, gt=0.0)
    """Step size of the mixing weights. The weights hardly leave 1 at the published 1.0, because the gradient of a
    pretext averaged over channels is small; ``mixing/weight_mean`` in the replies shows how far they went. See
    ``normalise``."""
    sample_share: Fraction = 0.2
    """Share of the site's volumes one pass looks at, rounded up to a volume."""
    first_passes_max: Positive = 10
    """Most passes of the first use; every later use is one pass."""
    threshold: float = Field(default=0.01, ge=0.0, lt=1.0)
    """The first use ends when the mean loss of a pass differs from that of the pass before by less than this share.
    Reconstruction: the published code waits until the standard deviation of the last 10 losses is below 0.1, which
    suits a cross-entropy; with at most ``first_passes_max`` passes of few batches two means are compared instead."""
    granularity: Literal["element", "tensor", "head"] = "element"
    """One mixing weight per element, as published; per tensor; or per tensor and attention head, with one per tensor
    where heads have no part. Fewer weights suit sites with few volumes."""
    normalise: bool = False
    """Divide the gradient of all mixing weights by its largest absolute value in each batch, so that ``step`` is the
    largest change of a weight per batch (our addition; 0.1 is then a moderate step)."""
    last_stage: bool = False
    """Mix all tensors of the encoder's last stage (swin_unetr) or last block (unetr) beside the attention tensors."""


class FedEMASection(Strict):
    """How much of its own model a site keeps with ``client_mix: fedema``."""

    tau: Fraction = 0.7
    """Share of its own model at the site's first mixing; it sets the factor of all later ones."""


def check_mixing(section: Section) -> None:
    """Refuse settings that the chosen mixing or server does not read, and combinations that cannot work.

    Raises:
        ConfigurationError: naming the field, what came, what was expected and how to mend it.
    """
    if section.server_aggregation == "none":
        _check_alone(section)
    refuse_unread(section, "fedata", _readers(section))
    scoped = (section.client_mix != "ala_all", "client_mix ala_attn (ala_all mixes every tensor)")
    refuse_unread(section.ala, "fedata.ala", {"last_stage": scoped})


def _check_alone(section: Section) -> None:
    """Sites that pretrain on their own have no server to average teachers or to start from."""
    if section.teacher_sync == "aggregate":
        raise ConfigurationError(
            "fedata.teacher_sync",
            got=section.teacher_sync,
            expected="keep or reset with server_aggregation none, which averages nothing",
            remedy="remove teacher_sync, or choose another server_aggregation",
        )
    if "shared" in section.starts:
        raise ConfigurationError(
            "fedata.starts",
            got=list(section.starts),
            expected="personal or scratch with server_aggregation none, which trains no shared model",
            remedy="set starts to [personal, scratch]",
        )


def _readers(section: Section) -> dict[str, tuple[bool, str]]:
    """Per setting: whether this mixing reads it, and which one would; a site on its own mixes with nobody."""
    mixes = section.server_aggregation != "none"
    server = "" if mixes else " under another server_aggregation than none"
    learned = f"client_mix {' or '.join(LEARNED)}{server}"
    return {
        "client_mix": (mixes, "another server_aggregation than none"),
        "ala": (mixes and section.client_mix in LEARNED, learned),
        "fedema": (mixes and section.client_mix == "fedema", f"client_mix fedema{server}"),
    }
