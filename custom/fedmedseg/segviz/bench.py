"""A site's network, volumes and files for the organs that it marks."""

from __future__ import annotations

from functools import cached_property

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import DataError, Reason
from fedmedseg.data.site import Site
from fedmedseg.data.volumes import Section, Volumes
from fedmedseg.segmentation.bench import Bench
from fedmedseg.segviz.organs import organs_of, own_labels, own_study, predicted, windowed


class PartialLabelBench(Bench):
    """``experiment`` is the study as this site's models see it, ``study`` the one all sites share.

    Raises:
        DataError: no training case marks anything (reason NO_CASES), or ``organs_of`` finds the data list damaged.
    """

    def __init__(self, *, study: Experiment, site: Site) -> None:
        self.study = study
        self.organs = predicted(study, organs_of(site, study))
        """Label numbers of the study that this site's models predict, in the order of their outputs."""
        super().__init__(experiment=own_study(study, self.organs), site=site)

    @property
    def read_as(self) -> Experiment:
        """The study whose data settings this site's files are checked and prepared by: with every site's labels."""
        return windowed(self.study, self.organs)

    @cached_property
    def training(self) -> Volumes:
        """Labelled volumes, after ``data.labelled_fraction`` or ``data.labelled_patients``."""
        data = self.study.data
        return self._volumes("training", fraction=data.labelled_fraction, patients=data.labelled_patients)

    @cached_property
    def validation(self) -> Volumes | None:
        """Volumes that choices are made on, or None where the site has none that mark its organs."""
        try:
            return self._volumes("validation")
        except DataError as error:
            if error.reason != Reason.NO_CASES:
                raise
            return None

    @cached_property
    def test(self) -> Volumes:
        """Volumes that are read once, at the end."""
        return self._volumes("test")

    def _volumes(self, section: Section, *, fraction: float = 1.0, patients: int | None = None) -> Volumes:
        volumes = Volumes(
            site=self.site, experiment=self.read_as, section=section, fraction=fraction, patients=patients
        )
        return own_labels(volumes, self.organs)
