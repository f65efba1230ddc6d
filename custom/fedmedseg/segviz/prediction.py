"""Several sites' models as one predictor, which answers for one image as any other model does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.config import Experiment
from fedmedseg.segmentation.models import InferenceModel
from fedmedseg.segmentation.prediction import Answer, LabelMap, Origin
from fedmedseg.segviz.fusion import How, fused_prediction, require_every_organ


class FusedPredictor:
    """One label map of ``labels``, structures of ``experiment``, each from the models that know it.

    Raises:
        ConfigurationError: a structure that no model predicts.
    """

    points: tuple[str, ...] = ()
    conditions = False

    def __init__(
        self,
        *,
        experts: Sequence[InferenceModel],
        experiment: Experiment,
        labels: Mapping[int, str],
        how: How = "probability",
        device: str = "cpu",
        flips: bool = False,
    ) -> None:
        self.experts, self.how, self.device, self.flips = experts, how, device, flips
        self.among = dict(experiment.data.labels)
        self.data = experiment.data.model_copy(update={"labels": dict(labels)})
        require_every_organ([expert.data.labels.values() for expert in experts], labels)
        self.names: Mapping[str, Mapping[int, str]] = {"": dict(labels)}
        runs = {expert.run for expert in experts}
        self.origin = Origin(
            study=experiment.study,
            system=experiment.system,
            model=f"{len(experts)} fused by {how}",
            experiment=experiment.digest,
            run=runs.pop() if len(runs) == 1 else "",
            tensors=content_sha256(
                {
                    f"{number}.{name}": tensor
                    for number, expert in enumerate(experts)
                    for name, tensor in expert.model.state_dict().items()
                }
            ),
        )

    def __call__(self, image: Path, *, heart: Path | None = None) -> Answer:
        """See ``segmentation.prediction.Predictor``. ``heart`` is not read."""
        labels = self.names[""]
        found = fused_prediction(
            self.experts, image, labels=labels, among=self.among, how=self.how, device=self.device, flips=self.flips
        )
        return Answer(maps={"": LabelMap(labels=found, names=labels)})
