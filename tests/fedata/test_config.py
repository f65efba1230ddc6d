"""The section's defaults are the specification's, and every impossible combination is refused by name."""

from __future__ import annotations

import pytest

from fedmedseg.core.config import parse_experiment
from fedmedseg.core.errors import ConfigurationError


def test_defaults_are_those_of_the_specification(study):
    section = study().fedata
    assert (section.volumes_per_step, section.crops_per_volume) == (2, 2)
    assert (section.mask_unit, section.mask_ratio, section.smooth_l1_beta) == (16, 0.7, 2.0)
    assert (section.ema.start, section.ema.end) == (0.996, 1.0)
    assert (section.client_mix, section.server_aggregation) == ("ala_attn", "layer_att")
    assert (section.ala.step, section.ala.sample_share) == (1.0, 0.2)
    assert (section.ala.first_passes_max, section.ala.threshold) == (10, 0.01)
    assert (section.kappa, section.server_step, section.collapse.alarm) == (1.0, 1.0, 0.1)
    assert section.starts == ("personal", "shared", "scratch")


@pytest.mark.parametrize(
    ("network", "crop", "given", "top"),
    [("swin_unetr", (64, 64), None, 2), ("unetr", (32, 32), None, 6), ("unetr", (32, 32), 3, 3)],
)
def test_the_number_of_target_blocks_follows_the_network(study, network, crop, given, top):
    experiment = study(network, crop, target_blocks=given)
    assert experiment.fedata.top(experiment) == top


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_unit": 12}, r"fedata.mask_unit: got 12. Expected a divisor of every edge of data.crop \[32, 32\]"),
        ({"mask_unit": 8}, "fedata.mask_unit: got 8. Expected 16, the stride of the tokens that unetr distils"),
        ({"mask_unit": 32}, "fedata.mask_unit: got 32. Expected 16"),
        ({"mask_ratio": 0.9}, "fedata.mask_ratio: got 0.9.*at least one of the crop's 4 units visible, not 4"),
        ({"target_blocks": 13}, "fedata.target_blocks: got 13. Expected at most 12"),
        ({"server_aggregation": "fedavg", "server_step": 0.5}, "fedata.server_step: got 0.5"),
        ({"mask_ration": 0.5}, "an unknown key 'mask_ration'.*write 'mask_ratio'"),
        ({"client_mix": "ala_all"}, "fedata.client_mix: got 'ala_all'"),
        ({"ema": {"start": 0.9, "end": 0.5}}, "ema.start not above ema.end"),
        ({"starts": ["scratch", "scratch"]}, "fedata.starts.*each start once"),
        ({"starts": []}, "fedata.starts"),
        ({"local_steps": 0}, "fedata.local_steps"),
    ],
)
def test_what_cannot_work_is_refused_by_name(settings, change, message):
    with pytest.raises(ConfigurationError, match=message):
        parse_experiment(settings(**change))


def test_swins_target_blocks_are_those_of_its_last_stage(settings):
    with pytest.raises(ConfigurationError, match=r"fedata.target_blocks: got 3. Expected at most 2"):
        parse_experiment(settings("swin_unetr", (64, 64), target_blocks=3))


def test_the_networks_own_limits_are_checked_when_the_study_is_read(settings):
    with pytest.raises(ConfigurationError, match=r"data.crop"):
        parse_experiment(settings("swin_unetr", (32, 32)))
