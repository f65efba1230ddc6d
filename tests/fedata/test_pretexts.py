"""Every pretext on real encoders: it learns, all that is shared gets a gradient, and its switches do what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedmedseg.fedata.distillation import distillation_target, masked_distillation_loss
from fedmedseg.fedata.masking import pick, places, random_masks
from fedmedseg.fedata.objective import MaskedDistillationObjective
from fedmedseg.fedata.pixels import normalised_units
from fedmedseg.fedata.plan import initial_shared
from fedmedseg.fedata.prototypes import prototype_loss
from fedmedseg.networks.units import cut_units

IBOT = {"hidden": 32, "bottleneck": 16, "prototypes": 64}
FULL_IBOT = {"pretext": "ibot", "ibot": IBOT, "class_weight": 0.5, "pixel_weight": 0.1}
CASES = [
    ("swin_unetr", (64, 64), {"pretext": "simmim"}),
    ("swin_unetr", (64, 32, 32), {"pretext": "mae"}),
    ("swin_unetr", (64, 64), FULL_IBOT),
    ("swin_unetr", (64, 64), {"pixel_weight": 0.1}),
    ("unetr", (48, 48), {"pretext": "simmim"}),
    ("unetr", (48, 32, 32), {"pretext": "mae"}),
    ("unetr", (48, 48), {"pretext": "mae", "masked_tokens": "replace"}),
    ("unetr", (48, 32, 32), FULL_IBOT),
    ("unetr", (48, 48), FULL_IBOT | {"masked_tokens": "replace"}),
    ("unetr", (48, 48), {"pixel_weight": 0.1}),
    ("unetr", (48, 48), {"masked_tokens": "replace"}),
]


def _objective(experiment, volumes=3):
    coarse = torch.randn(
        volumes, 1, *[edge // 8 for edge in experiment.data.crop], generator=torch.Generator().manual_seed(1)
    )
    images = torch.nn.functional.interpolate(coarse, size=experiment.data.crop)

    def crop(volume: int, rng: np.random.Generator) -> torch.Tensor:
        return images[volume] + 0.05 * torch.from_numpy(rng.normal(size=images[0].shape).astype(np.float32))

    objective = MaskedDistillationObjective(
        experiment=experiment, volumes=volumes, crop=crop, device=torch.device("cpu")
    )
    objective.initialise(initial_shared(experiment), None)
    return objective


def _batch(objective, crops=4):
    data, section = objective.experiment.data, objective.section
    images = torch.randn(crops, 1, *data.crop, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(3)
    return images, random_masks(crops, data.crop, unit=16, ratio=section.mask_ratio)


@pytest.mark.parametrize(("network", "crop", "settings"), CASES)
def test_all_that_is_shared_gets_a_gradient_and_moves_and_the_rest_does_not(study, network, crop, settings):
    experiment = study(network, crop, **settings)
    shared = initial_shared(experiment)
    objective = _objective(experiment)
    torch.manual_seed(4)
    objective.step(0)
    for name, parameter in objective.network.named_parameters():
        assert (name in shared) == (parameter.grad is not None), name
        if name in shared:
            assert float(parameter.grad.abs().max()) > 0, name
            assert not torch.equal(parameter.detach(), shared[name]), name


@pytest.mark.parametrize(("network", "crop", "settings"), CASES)
def test_the_loss_falls(study, network, crop, settings):
    experiment = study(
        network, crop, optimizer={"learning_rate": 3e-3, "warmup_fraction": 0.0}, local_steps=100, **settings
    )
    objective = _objective(experiment)
    # the same batch and targets all the time, so that what falls is the error, not its noise
    images, masks = _batch(objective)
    objective.network.train()
    losses = []
    for _ in range(15):
        loss, _ = objective._loss(images, masks)
        objective.optimizer.zero_grad()
        loss.backward()
        objective.optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0], losses


@pytest.mark.parametrize("pretext", ["simmim", "mae"])
@pytest.mark.parametrize(("network", "crop"), [("swin_unetr", (64, 64)), ("unetr", (32, 32))])
def test_pixel_pretexts_have_neither_a_teacher_nor_figures_of_one(study, learner, task, network, crop, pretext):
    experiment = study(network, crop, pretext=pretext, local_steps=2)
    shared = initial_shared(experiment)
    site = learner(experiment)
    given = task(experiment, shared)
    reply = site.run(given, shared)
    assert site.objective.teacher is None
    assert set(reply.metrics) == {"loss", "student_std", "set_aside"}
    assert reply.metrics["student_std"] > 0
    personal = given.state.load("personal")
    assert personal["teacher"] == {}
    assert personal["reference"] is None
    again = site.run(task(experiment, shared, round=1), shared)
    assert "student_teacher_gap" not in again.metrics


def test_simmim_is_the_mean_absolute_error_of_hidden_voxels(study):
    objective = _objective(study("swin_unetr", (64, 64), pretext="simmim"))
    images, masks = _batch(objective)
    view = objective.network(images, masks)
    predicted = objective.network.heads["pixels"](view.encoded)
    error = (predicted - cut_units(images, unit=16)).abs()[masks.flatten(1)]
    loss, _ = objective._loss(images, masks)
    torch.testing.assert_close(loss, error.mean())


@pytest.mark.parametrize(("network", "crop"), [("swin_unetr", (64, 64)), ("unetr", (48, 48))])
def test_mae_is_the_mean_squared_error_of_normalised_hidden_voxels(study, network, crop):
    objective = _objective(study(network, crop, pretext="mae"))
    images, masks = _batch(objective)
    predicted = objective.network(images, masks).predicted.flatten(0, 1)
    target = normalised_units(cut_units(images, unit=16))[masks.flatten(1)]
    loss, _ = objective._loss(images, masks)
    torch.testing.assert_close(loss, (predicted - target).square().mean())
    # Swin keeps the whole grid, the ViT the visible tokens
    tokens = objective.network(images, masks).encoded.shape[1]
    assert tokens == (16 if network == "swin_unetr" else 9 - 7)


def test_the_dropping_student_is_compared_with_the_teachers_whole_crop(study):
    objective = _objective(study("unetr", (48, 48)))
    images, masks = _batch(objective)
    target = distillation_target(objective.network.hidden(objective.teacher, images))
    assert target.shape[1] == 9
    predicted = objective.network(images, masks).predicted
    loss, _ = objective._loss(images, masks)
    torch.testing.assert_close(loss, masked_distillation_loss(predicted, target, places(masks).hidden, beta=2.0))


def test_the_pixel_weight_adds_the_masked_error_of_pixels(study):
    """Same weights but for the pixel head, which is drawn last."""
    plain, more = (_objective(study("swin_unetr", (64, 64), pixel_weight=weight)) for weight in (0.0, 0.3))
    images, masks = _batch(plain)
    alone, first = plain._loss(images, masks)
    both, second = more._loss(images, masks)
    head = more.network.heads["pixels"]
    prediction = more.network.predictor(more.network(images, masks).encoded)
    pixels = (head(prediction) - cut_units(images, unit=16)).abs()[masks.flatten(1)].mean()
    torch.testing.assert_close(both, alone + 0.3 * pixels)
    assert "loss/pixels" not in first.figures
    assert second.figures["loss/pixels"] == pytest.approx(float(pixels.detach()))


def _ibot(study, network="swin_unetr", crop=(64, 64), **changed):
    objective = _objective(study(network, crop, pretext="ibot", **{"ibot": IBOT} | changed))
    with torch.no_grad():
        for parameter in (*objective.teacher.parameters(), *objective.pretext.teacher_head.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
    return objective


@pytest.mark.parametrize(("network", "crop"), [("swin_unetr", (64, 64)), ("unetr", (48, 48))])
def test_ibot_is_the_cross_entropy_of_hidden_tokens_and_of_the_other_crops_mean(study, network, crop):
    objective = _ibot(study, network, crop, class_weight=0.5)
    images, masks = _batch(objective)
    objective.pretext.centres = {
        name: torch.linspace(-0.1, 0.1, 64) * sign for name, sign in (("tokens", 1), ("pooled", -1))
    }
    hidden, head, teacher = places(masks).hidden, objective.network.heads["head"], objective.pretext.teacher_head
    with torch.no_grad():
        whole = objective.network.hidden(objective.teacher, images)[-1]
        whole = objective.network.output(objective.teacher, whole)
        view = objective.network(images, masks)

        def entropy(student, target, centre):
            given = {"student_temperature": 0.1, "teacher_temperature": 0.04, "centre": centre}
            return float(prototype_loss(student, target, **given))

        centres = objective.pretext.centres
        tokens = entropy(head(view.predicted), teacher(pick(whole, hidden)), centres["tokens"])
        # crops 0 and 1 are of the first volume, 2 and 3 of the second
        pooled = np.mean(
            [
                entropy(head(view.encoded[v].mean(0)[None]), teacher(whole[q].mean(0)[None]), centres["pooled"])
                for v, q in ((0, 1), (1, 0), (2, 3), (3, 2))
            ]
        )
    loss, outcome = objective._loss(images, masks)
    assert float(loss.detach()) == pytest.approx(tokens + 0.5 * pooled, rel=1e-5)
    assert outcome.figures["loss/class"] == pytest.approx(pooled, rel=1e-5)


def test_the_teachers_temperature_follows_the_steps_of_all_rounds(study):
    """Of 3 rounds of 4 steps the first third is warm-up: halfway at step 2 of round 0, over from round 1 on."""
    objective = _ibot(study, ibot=IBOT | {"temperature_warmup": 1 / 3})
    images, masks = _batch(objective)
    losses = {}
    for round, index in ((0, 0), (0, 2), (1, 0), (1, 2)):
        objective.begin(round=round, rounds=3)
        objective.position = objective.first_step + index
        losses[round, index] = float(objective._loss(images, masks)[0].detach())
    assert losses[0, 0] != losses[0, 2] != losses[1, 0]
    assert losses[1, 0] == losses[1, 2]
    sharper = _ibot(
        study, ibot=IBOT | {"temperature_warmup": 0.0, "teacher_temperature": 0.055, "teacher_temperature_end": 0.055}
    )
    assert losses[0, 2] == pytest.approx(float(sharper._loss(images, masks)[0].detach()))


@pytest.mark.parametrize(
    "change",
    [
        {"student_temperature": 0.3},
        {"teacher_temperature": 0.05},
        {"prototypes": 32},
        {"hidden": 16},
        {"bottleneck": 8},
    ],
)
def test_every_setting_of_ibot_changes_the_loss(study, change):
    objective, changed = _ibot(study), _ibot(study, ibot=IBOT | change)
    images, masks = _batch(objective)
    assert float(objective._loss(images, masks)[0].detach()) != float(changed._loss(images, masks)[0].detach())


def test_the_head_of_ibot_is_as_wide_as_asked_for(study):
    """Hidden 32 and 32, bottleneck 8, and a direction in it for each of 64 prototypes; so is what is sent."""
    ibot = {"hidden": 32, "bottleneck": 8, "prototypes": 64}
    shared = initial_shared(study("unetr", (48, 48), pretext="ibot", ibot=ibot))
    layers = [f"head.mlp.{place}.weight" for place in (0, 2, 4)]
    assert [tuple(shared[name].shape) for name in layers] == [(32, 24), (32, 32), (8, 32)]
    assert tuple(shared["head.prototypes"].shape) == (64, 8)


@pytest.mark.parametrize("beta", [0.05, 2.0])
def test_the_turning_point_of_the_distillation_loss_is_the_one_asked_for(study, beta):
    """Written out: d^2 / (2 beta) below beta, d - beta / 2 above."""
    objective = _objective(study("swin_unetr", (64, 64), smooth_l1_beta=beta))
    images, masks = _batch(objective)
    with torch.no_grad():
        target = distillation_target(objective.network.hidden(objective.teacher, images))
        error = (objective.network(images, masks).predicted - pick(target, places(masks).hidden)).abs()
        loss = float(objective._loss(images, masks)[0])
    assert loss == pytest.approx(
        float(torch.where(error < beta, error.square() / (2 * beta), error - beta / 2).mean()), rel=1e-5
    )


def test_the_predictor_is_as_wide_as_asked_for(study):
    """Linear to the hidden width and back to a token's; unset it is a token's."""
    shapes = {}
    for hidden in (None, 20):
        shared = initial_shared(study("swin_unetr", (64, 64), predictor_hidden=hidden))
        shapes[hidden] = [tuple(shared[f"predictor.{place}.weight"].shape) for place in (1, 3)]
    width = shapes[None][0][0]
    assert shapes == {None: [(width, width)] * 2, 20: [(20, width), (width, 20)]}


@pytest.mark.parametrize(
    ("change", "depth", "width", "heads"),
    [
        ({}, 2, 12, 6),
        ({"depth": 3}, 3, 12, 6),
        ({"width": 24}, 2, 24, 6),
        ({"heads": 2}, 2, 12, 2),
    ],
)
def test_the_students_decoder_is_as_deep_and_wide_as_asked_for(study, change, depth, width, heads):
    """A token of 24 gives a default width of 12."""
    objective = _objective(study("unetr", (48, 48), decoder=change))
    decoder = objective.network.heads["decoder"]
    assert len(decoder.blocks) == depth
    assert decoder.embed.out_features == width
    assert [block.attn.num_heads for block in decoder.blocks] == [heads] * depth
    plain = _objective(study("unetr", (48, 48)))
    batch = _batch(plain)
    losses = [float(one._loss(*batch)[0].detach()) for one in (plain, objective)]
    assert (losses[0] == losses[1]) is (change == {})


def test_the_centre_moves_after_a_step_and_not_while_a_loss_is_only_looked_at(study):
    objective = _ibot(study, class_weight=0.5, ibot=IBOT | {"centre_momentum": 0.75})
    images, masks = _batch(objective)
    objective._loss(images, masks)
    assert all(not centre.any() for centre in objective.pretext.centres.values())
    means = {}
    follow = objective.pretext.follow
    objective.pretext.follow = lambda targets: means.update(targets.tensors) or follow(targets)
    torch.manual_seed(0)
    objective.step(0)
    for name, centre in objective.pretext.centres.items():
        torch.testing.assert_close(centre, 0.25 * means[f"mean/{name}"])
        assert centre.any()


def test_the_teachers_head_follows_by_the_momentum_and_has_no_gradient(study):
    objective = _ibot(study, ema={"start": 0.5, "end": 0.5})
    before = {name: tensor.clone() for name, tensor in objective.memory()["teacher"].items()}
    assert any(name.startswith("head.") for name in before)
    torch.manual_seed(0)
    objective.step(0)
    after = objective.memory()
    for name, tensor in after["teacher"].items():
        torch.testing.assert_close(tensor, 0.5 * before[name] + 0.5 * after["tensors"][name])
    assert all(parameter.grad is None for parameter in objective.pretext.teacher_head.parameters())


def test_what_ibot_remembers_carries_to_the_next_round_and_a_site_without_memory_starts_centred(study, moved):
    experiment = study("unetr", (48, 48), pretext="ibot", ibot=IBOT, class_weight=0.5, client_mix="replace")
    objective = _objective(experiment)
    for index in range(2):
        torch.manual_seed(index)
        objective.step(index)
    memory = objective.memory()
    assert set(memory["pretext"]) == {"tokens", "pooled"}
    following = _objective(experiment)
    following.begin(round=1, rounds=3)
    assert all(not centre.any() for centre in following.pretext.centres.values())
    following.initialise(moved(initial_shared(experiment)), memory)
    carried = following.memory()
    for part in ("pretext", "teacher"):
        assert carried[part].keys() == memory[part].keys()
        assert all(torch.equal(carried[part][name], memory[part][name]) for name in memory[part])


@pytest.mark.parametrize(
    ("network", "crop", "settings"), [("unetr", (48, 48), FULL_IBOT), ("unetr", (32, 32), {"pretext": "mae"})]
)
def test_a_run_that_was_killed_and_restored_equals_one_that_was_not(
    study, learner, task, moved, monkeypatch, network, crop, settings
):
    """Killed after two of four steps of a mixing round, with a checkpoint after every step; a new process goes on."""
    experiment = study(network, crop, ala={"step": 1e3}, **settings)
    shared = initial_shared(experiment)
    incoming = moved(shared)
    plain = MaskedDistillationObjective.step
    replies, memories = [], []
    for kill in (False, True):
        site = learner(experiment)
        site.run(task(experiment, shared), shared)
        given = task(experiment, incoming, round=1, checkpoint_seconds=0.0)
        if kill:

            def dies(self, index):
                if index == 2:
                    raise KeyboardInterrupt
                return plain(self, index)

            with monkeypatch.context() as patch:
                patch.setattr(MaskedDistillationObjective, "step", dies)
                with pytest.raises(KeyboardInterrupt):
                    site.run(given, incoming)
            site = learner(experiment)
        replies.append(site.run(given, incoming))
        memories.append(given.state.load("personal"))
        for name in ("personal", "running_pretraining"):
            given.state.remove(name)
    assert replies[0].metrics == replies[1].metrics
    for part in ("tensors", "teacher", "pretext", "mixing"):
        one, other = memories[0][part], memories[1][part]
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    if settings is FULL_IBOT:
        assert memories[0]["pretext"]["tokens"].any()
        assert memories[0]["pretext"]["pooled"].any()
        assert math.isfinite(replies[0].metrics["loss/class"])
