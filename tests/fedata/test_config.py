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
    assert (section.ala.granularity, section.ala.normalise, section.ala.last_stage) == ("element", False, False)
    assert (section.fedema.tau, section.teacher_sync, section.ema.schedule) == (0.7, "keep", "cosine")
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
        ({"mask_unit": 12}, "fedata.mask_unit: got 12. Expected 16, the stride of the tokens that unetr distils"),
        ({"mask_unit": 8}, "fedata.mask_unit: got 8. Expected 16, the stride of the tokens that unetr distils"),
        ({"mask_unit": 32}, "fedata.mask_unit: got 32. Expected 16"),
        ({"mask_ratio": 0.9}, "fedata.mask_ratio: got 0.9.*at least one of the crop's 4 units visible, not 4"),
        ({"target_blocks": 13}, "fedata.target_blocks: got 13. Expected at most 12"),
        ({"server_aggregation": "fedavg", "server_step": 0.5}, "fedata.server_step: got 0.5"),
        ({"mask_ration": 0.5}, "an unknown key 'mask_ration'.*write 'mask_ratio'"),
        ({"client_mix": "ala_some"}, "fedata.client_mix: got 'ala_some'"),
        ({"ema": {"start": 0.9, "end": 0.5}}, "fedata.ema.start: got 0.9. Expected ema.start not above ema.end"),
        (
            {"ema": {"schedule": "constant", "end": 1.0}},
            "fedata.ema.end: got 1.0. Expected ema.end equal to ema.start, or left out",
        ),
        ({"ema": {"schedule": "linear", "start": 0.9, "end": 0.5}}, "ema.start not above ema.end"),
        ({"starts": ["scratch", "scratch"]}, "fedata.starts.*each start once"),
        (
            {"starts": []},
            r"fedata.starts: got \[\]. Expected at least one of personal, shared, scratch, .*Remedy: as in",
        ),
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


def test_defaults_of_the_pretexts_are_those_of_the_specification(study):
    section = study().fedata
    assert (section.pretext, section.masked_tokens, section.class_weight, section.pixel_weight) == (
        "distillation",
        None,
        0.0,
        0.0,
    )
    assert (section.decoder.depth, section.decoder.width) == (2, None)
    ibot = section.ibot
    assert (ibot.hidden, ibot.bottleneck, ibot.prototypes) == (2048, 256, 8192)
    assert (ibot.student_temperature, ibot.teacher_temperature, ibot.teacher_temperature_end) == (0.1, 0.04, 0.07)
    assert ibot.centre_momentum == 0.9


@pytest.mark.parametrize(
    ("network", "pretext", "given", "drops", "decodes"),
    [
        ("swin_unetr", "distillation", None, False, False),
        ("swin_unetr", "ibot", None, False, False),
        ("swin_unetr", "mae", None, False, True),
        ("unetr", "distillation", None, True, True),
        ("unetr", "ibot", None, True, True),
        ("unetr", "ibot", "replace", False, False),
        ("unetr", "simmim", None, False, False),
        ("unetr", "mae", None, True, True),
        ("unetr", "mae", "replace", False, True),
    ],
)
def test_masked_tokens_and_decoder_follow_network_and_pretext(study, network, pretext, given, drops, decodes):
    from fedmedseg.fedata.network import MaskedEncoder

    experiment = study(network, (64, 64), pretext=pretext, masked_tokens=given)
    model = MaskedEncoder(experiment=experiment)
    assert model.drops is drops
    assert ("decoder" in model.heads) is decodes
    assert (model.mask_token is None) is drops
    if decodes:
        assert model.heads["decoder"].fills is drops


@pytest.mark.parametrize(
    ("network", "change", "message"),
    [
        (
            "swin_unetr",
            {"masked_tokens": "drop"},
            "fedata.masked_tokens: got drop.*shifted windows need the whole grid",
        ),
        (
            "unetr",
            {"masked_tokens": "drop", "pretext": "simmim"},
            "fedata.masked_tokens: got drop.*replace with pretext",
        ),
        (
            "unetr",
            {"class_weight": 0.1},
            "fedata.class_weight: got 0.1.*nothing here: it is read with pretext ibot alone",
        ),
        ("unetr", {"class_weight": 0.1, "pretext": "mae"}, "fedata.class_weight"),
        ("unetr", {"pixel_weight": 0.1, "pretext": "simmim"}, "fedata.pixel_weight: got 0.1.*distillation or ibot"),
        (
            "unetr",
            {"class_weight": 0.1, "pretext": "ibot", "crops_per_volume": 3},
            "fedata.crops_per_volume: got 3. Expected 2 with class_weight",
        ),
        ("unetr", {"predictor_hidden": 8}, "fedata.predictor_hidden: got 8.*with masked_tokens replace"),
        ("swin_unetr", {"predictor_hidden": 8, "pretext": "ibot"}, "fedata.predictor_hidden: got 8"),
        ("swin_unetr", {"decoder": {"depth": 3}}, "fedata.decoder: got.*pretext mae or masked_tokens drop"),
        ("unetr", {"decoder": {"width": 30}}, r"fedata.decoder.width: got 30. Expected a multiple of 12 \(6 heads, 2D"),
        ("unetr", {"ibot": {"prototypes": 64}}, "fedata.ibot: got"),
        ("unetr", {"ibot": {"prototypes": 1}, "pretext": "ibot"}, "fedata.ibot.prototypes: got 1"),
        (
            "unetr",
            {"ibot": {"teacher_temperature": 0.2}, "pretext": "ibot"},
            "ibot.teacher_temperature: got .* Expected ibot.teacher_temperature not above ibot.teacher_temperature_end",
        ),
        ("unetr", {"smooth_l1_beta": 1.0, "pretext": "ibot"}, "fedata.smooth_l1_beta: got 1.0"),
        ("unetr", {"target_blocks": 2, "pretext": "mae"}, "fedata.target_blocks: got 2"),
        ("unetr", {"ema": {"start": 0.9}, "pretext": "mae"}, "fedata.ema: got.*which have a teacher"),
        ("unetr", {"collapse": {"alarm": 0.5}, "pretext": "simmim"}, "fedata.collapse: got.*which have a teacher"),
        ("unetr", {"pretext": "moco"}, "fedata.pretext: got 'moco'"),
    ],
)
def test_what_a_pretext_does_not_read_or_cannot_do_is_refused(settings, network, change, message):
    with pytest.raises(ConfigurationError, match=message):
        parse_experiment(settings(network, (64, 64), **change))


def test_defaults_of_the_server_rules_are_those_of_the_specification(study):
    section = study().fedata
    assert (section.server_aggregation, section.kappa, section.standardised) == ("layer_att", 1.0, False)
    assert (section.fedatt.step, section.fedatt.noise) == (1.2, 0.001)
    assert (section.pair.temperature, section.pair.prox) == (0.1, 0.0)


@pytest.mark.parametrize(
    ("rule", "setting"),
    [
        ("layer_att", {"kappa": 2.0}),
        ("layer_att", {"standardised": True}),
        ("layer_att", {"server_step": 0.5}),
        ("fedatt_faithful", {"fedatt": {"noise": 0.0}}),
        ("pair_att", {"pair": {"prox": 0.1}}),
    ],
)
def test_a_setting_of_one_server_rule_is_refused_with_every_other(settings, rule, setting):
    (field,) = setting
    for other in ("layer_att", "fedavg", "pair_att", "fedatt_faithful", "none"):
        starts = ["personal"] if other == "none" else ["personal", "shared", "scratch"]
        content = settings(server_aggregation=other, starts=starts, **setting)
        if other == rule:
            assert parse_experiment(content).wing.server_aggregation == rule
        else:
            with pytest.raises(ConfigurationError, match=rf"fedata.{field}: got .*read with server_aggregation {rule}"):
                parse_experiment(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"standardised": True, "kappa": 0.0}, "fedata.standardised: got True.*kappa"),
        ({"kappa": -1.0}, "fedata.kappa"),
        ({"server_aggregation": "fedatt_faithful", "fedatt": {"noise": -0.1}}, "fedata.fedatt.noise"),
        ({"server_aggregation": "fedatt_faithful", "fedatt": {"step": 0}}, "fedata.fedatt.step"),
        ({"server_aggregation": "pair_att", "pair": {"temperature": 0}}, "fedata.pair.temperature"),
        # 1 / 1e-320 is infinite, and a share of it not a number
        ({"server_aggregation": "pair_att", "pair": {"temperature": 1e-320}}, "fedata.pair.temperature: got 1e-320"),
        ({"server_aggregation": "pair_att", "pair": {"prox": -1}}, "fedata.pair.prox"),
        ({"server_aggregation": "layer_attention"}, "fedata.server_aggregation"),
    ],
)
def test_server_settings_out_of_range_are_refused_by_name(settings, change, message):
    with pytest.raises(ConfigurationError, match=message):
        parse_experiment(settings(**change))


ALONE = {"server_aggregation": "none", "starts": ["personal"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"client_mix": "replace", "ala": {"step": 2.0}},
            "fedata.ala: got {'step': 2.0}.*read with client_mix ala_attn or ala_all alone",
        ),
        ({"client_mix": "fedema", "ala": {"granularity": "head"}}, "fedata.ala: .*read with client_mix ala_attn"),
        ({"fedema": {"tau": 0.5}}, "fedata.fedema: .*read with client_mix fedema alone"),
        ({"client_mix": "fedema", "fedema": {"tau": 0.0}}, "fedema.tau"),
        ({"client_mix": "fedema", "fedema": {"tau": 1.5}}, "fedema.tau"),
        ({"client_mix": "ala_all", "ala": {"last_stage": True}}, "fedata.ala.last_stage: got True"),
        (
            {"pretext": "mae", "teacher_sync": "reset"},
            r"fedata.teacher_sync: got reset.*pretext distillation or ibot \(which have a teacher\)",
        ),
        (ALONE | {"client_mix": "replace"}, "fedata.client_mix: got replace.*another server_aggregation than none"),
        (ALONE | {"ala": {"step": 2.0}}, "fedata.ala: .*another server_aggregation than none"),
        (ALONE | {"fedema": {"tau": 0.5}}, "fedata.fedema: .*another server_aggregation than none"),
        (ALONE | {"teacher_sync": "aggregate"}, "fedata.teacher_sync: got aggregate.*keep or reset"),
        ({"server_aggregation": "none"}, "fedata.starts: got .*shared.*which trains no shared model"),
    ],
)
def test_mixing_and_teacher_settings_that_nothing_reads_are_refused(settings, change, message):
    with pytest.raises(ConfigurationError, match=message):
        parse_experiment(settings(**change))


@pytest.mark.parametrize(
    "change",
    [
        {"client_mix": "ala_all", "ala": {"granularity": "tensor", "normalise": True, "step": 0.1}},
        {"client_mix": "ala_attn", "ala": {"last_stage": True}},
        {"client_mix": "keep_attn_local", "teacher_sync": "aggregate"},
        {"client_mix": "fedema", "fedema": {"tau": 1.0}},
        {"pretext": "ibot", "teacher_sync": "reset"},
        ALONE | {"teacher_sync": "reset"},
    ],
)
def test_mixing_and_teacher_settings_that_work_together_are_accepted(study, change):
    assert study(**change).fedata.client_mix == change.get("client_mix", "ala_attn")


def test_a_constant_momentum_needs_no_end_and_has_the_one_it_starts_with(study):
    for given, value in (({}, 0.996), ({"start": 0.9}, 0.9), ({"start": 0.9, "end": 0.9}, 0.9)):
        ema = study(ema={"schedule": "constant", **given}).fedata.ema
        assert (ema.start, ema.end) == (value, value)
        assert type(ema).model_validate(ema.model_dump()) == ema


@pytest.mark.parametrize(
    "change",
    [
        {},
        ALONE,
        {"server_aggregation": "fedavg", "client_mix": "replace"},
        {"pretext": "mae"},
        {"pretext": "ibot", "ema": {"schedule": "constant"}},
    ],
)
def test_a_study_written_out_in_full_is_read_again(study, change):
    """A setting at its default counts as not given, whatever reads it."""
    experiment = study(**change)
    assert parse_experiment(experiment.model_dump(mode="json")).digest == experiment.digest


def test_a_pretraining_that_no_start_uses_is_refused(settings):
    with pytest.raises(ConfigurationError, match=r"stages.pretraining.rounds: got 3. Expected 0.*Remedy: set"):
        parse_experiment(settings(starts=["scratch"]))
    assert parse_experiment(settings(rounds=0, starts=["scratch"])).wing.starts == ("scratch",)


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("layer_att", "attention weighs sites by the distances"),
        ("fedatt_faithful", "attention weighs sites by the norms"),
        ("pair_att", "personal models rest on the cosines"),
    ],
)
def test_a_rule_that_reads_replies_refuses_encryption_with_the_reason(settings, rule, why):
    content = settings(server_aggregation=rule)
    content["federation"] = {"encryption": "ckks"}
    with pytest.raises(ConfigurationError, match=rf"federation.encryption.*{rule}: {why}.*fedavg"):
        parse_experiment(content)


def test_the_mean_takes_encrypted_replies_and_so_does_a_study_without_pretraining(settings):
    content = settings(server_aggregation="fedavg")
    content["federation"] = {"encryption": "ckks"}
    assert parse_experiment(content).federation.encryption == "ckks"
    content = settings(starts=["scratch"])
    content["federation"] = {"encryption": "ckks"}
    content["stages"]["pretraining"]["rounds"] = 0
    with pytest.raises(ConfigurationError, match="nothing to encrypt"):
        parse_experiment(content)
    content["segmentation"]["fine_tuning"] = "federated"
    assert parse_experiment(content).federation.encryption == "ckks"


def test_a_study_that_pretrains_alone_has_nothing_to_encrypt(settings):
    content = settings(server_aggregation="none", starts=["personal"])
    content["federation"] = {"encryption": "ckks"}
    with pytest.raises(ConfigurationError, match="nothing to encrypt"):
        parse_experiment(content)
