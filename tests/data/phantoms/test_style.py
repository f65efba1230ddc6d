"""Hospitals: distinct, stable, unbounded in number, and refused by name when unknown."""

import pytest

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.data.phantoms.style import AXCODES, LABELS, LANDMARKS, dealt_out, families, site_style

FAMILIES = ("cine_mr", "late_enhancement_mr", "abdominal_ct", "cardiac_ct")


def test_every_family_of_an_experiment_can_be_written():
    from typing import get_args

    from fedmedseg.core.data_settings import PhantomSection

    assert set(get_args(PhantomSection.model_fields["family"].annotation)) == set(families()) == set(LABELS)


@pytest.mark.parametrize("family", FAMILIES)
def test_first_four_sites_differ_in_scanner_orientation_and_patients(family):
    styles = [site_style(family, i) for i in range(4)]
    assert len({s.axcodes for s in styles}) == 4
    assert len({(s.spacing, s.size) for s in styles}) == 4
    assert len({tuple(s.tissue.values()) for s in styles}) == 4
    assert len({tuple(s.anatomy.values()) for s in styles}) == 4
    assert all(set(s.tissue) == set(styles[0].tissue) for s in styles)


@pytest.mark.parametrize("family", FAMILIES)
def test_any_further_site_has_a_stable_style_between_the_first(family):
    for index in (4, 5, 17, 123456789):
        style = site_style(family, index)
        assert style == site_style(family, index)
        assert style.axcodes == AXCODES[index % len(AXCODES)]
        for tissue, value in style.tissue.items():
            known = [site_style(family, i).tissue[tissue] for i in range(4)]
            assert min(known) <= value <= max(known)
        assert sum(style.anatomy.values()) == pytest.approx(1)
    assert site_style(family, 4).tissue != site_style(family, 5).tissue


@pytest.mark.parametrize("family", ["cine_mr", "late_enhancement_mr"])
def test_mr_sites_annotate_everything(family):
    assert all(site_style(family, i).annotated_labels is None for i in range(8))


@pytest.mark.parametrize("family", ["abdominal_ct", "cardiac_ct"])
def test_ct_sites_annotate_a_part_and_together_all(family):
    styles = [site_style(family, i) for i in range(4)]
    annotated = {label for s in styles for label in s.annotated_labels}
    assert annotated == set(LABELS[family])
    assert any(set(s.annotated_labels) != annotated for s in styles)
    if family == "cardiac_ct":
        assert {name for s in styles for name in s.annotated_landmarks} == set(LANDMARKS)


def test_unknown_family_names_the_nearest():
    with pytest.raises(ConfigurationError, match="'cine_mr'") as caught:
        site_style("cine_mri", 0)
    assert caught.value.field == "data.phantom.family"


def test_negative_index_is_refused():
    with pytest.raises(ConfigurationError, match="site_index"):
        site_style("cine_mr", -1)


@pytest.mark.parametrize(("sites", "sharing"), [(1, 1), (2, 2), (3, 3), (4, 4), (6, 4)])
def test_structures_dealt_out_have_each_a_site_and_no_more_than_needed(sites, sharing):
    hands = [dealt_out(tuple(LABELS["abdominal_ct"]), index, sites) for index in range(sites)]
    assert {number for hand in hands for number in hand} == set(LABELS["abdominal_ct"])
    assert len(set(hands)) == sharing
    assert sum(len(hand) for hand in set(hands)) == 4


def test_two_sites_get_two_organs_each_and_four_one():
    assert [dealt_out((1, 2, 3, 4), index, 2) for index in range(2)] == [(1, 3), (2, 4)]
    assert [dealt_out((1, 2, 3, 4), index, 4) for index in range(4)] == [(1,), (2,), (3,), (4,)]
