"""A site's view of a study: the one data set, with its label map, that this site takes part with.

A study may accept several data sets (``data.alternatives``): cine and late enhancement, say, whose label maps differ.
Which of them a site has is told by the roles its own file offers. The view has that data set for ``data``; contracts,
schema and digest stay those of the whole study.
"""

from __future__ import annotations

from collections.abc import Collection

from fedmedseg.core.config import Experiment
from fedmedseg.core.data_settings import DataSection
from fedmedseg.core.errors import ConfigurationError, nearest


def data_sets(data: DataSection) -> list[DataSection]:
    """Every data set of a study, each laid over its section ``data`` and with no alternative beside it."""
    base = data.model_copy(update={"alternatives": ()})
    # an alternative without phantoms has none: those of the base have other labels
    return [
        base,
        *(
            base.model_copy(update={**one.model_dump(exclude_none=True), "phantom": one.phantom, "labels": one.labels})
            for one in data.alternatives
        ),
    ]


def site_view(experiment: Experiment, roles: Collection[str], *, preferred: str | None = None) -> Experiment:
    """The study as a site sees it that offers ``roles``; a study of one data set is its own view.

    ``preferred`` is the role that the site's file takes part with where several fit.

    Raises:
        ConfigurationError: the site offers none of the study's roles, or several and prefers none of them.
    """
    offered = [one for one in data_sets(experiment.data) if one.role in roles]
    if len(offered) > 1:
        offered = [one for one in offered if one.role == preferred] or offered
    if len(offered) == 1:
        return experiment if not experiment.data.alternatives else experiment.with_data(offered[0])
    accepted = " or ".join(map(repr, experiment.data.roles))
    if offered:
        raise ConfigurationError(
            "datasets",
            got=f"the roles {', '.join(one.role for one in offered)}, with each of which this site could take part",
            expected=f"one of the roles {accepted}: a site takes part with one data set",
            remedy=f"write prefers: {offered[0].role}, or the other, into the site file",
        )
    wanted = experiment.data.role
    guess = nearest(wanted, roles)
    raise ConfigurationError(
        f"datasets.{wanted}",
        got=f"the roles {', '.join(sorted(roles)) or '(none)'} in the site file",
        expected=f"role {accepted}, which the experiment asks for (data.role)",
        remedy=f"add datasets.{wanted}.list to the site file" + (f", or rename {guess!r}" if guess else ""),
    )


def phantom_view(experiment: Experiment, index: int) -> Experiment:
    """The view of simulated site number ``index`` (from 0): as many sites as each data set's phantoms count, in turn.

    Sites beyond them begin anew with the first. A study without phantoms is its own view.
    """
    each = [one for one in data_sets(experiment.data) if one.phantom is not None for _ in range(one.phantom.sites)]
    if not each or not experiment.data.alternatives:
        return experiment
    return experiment.with_data(each[index % len(each)])


def planned_sites(experiment: Experiment) -> int:
    """How many sites the study's phantoms are meant for; two where it has none."""
    return sum(one.phantom.sites for one in data_sets(experiment.data) if one.phantom is not None) or 2
