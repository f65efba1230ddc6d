"""Encoders in other people's files: every known layout gives the very tensors, and what does not fit is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedmedseg.core import checkpoint
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.networks import swin, vit
from fedmedseg.networks.factory import build_segmentation, encoder_names
from fedmedseg.networks.pretrained import encoder_of, match, require
from fedmedseg.networks.weight_files import read_tensors

SWIN = ("swin_unetr", (64, 64))
UNETR = ("unetr", (32, 32))


def network(experiment, seed: int = 5):
    torch.manual_seed(seed)
    return build_segmentation(experiment).eval()


def trained(model, experiment) -> dict[str, torch.Tensor]:
    """What pretraining trains of ``model``."""
    state = model.state_dict()
    return {name: state[name] for name in encoder_names(model, experiment)}


def ssl_layout(model, shift: float = 0.0) -> dict[str, Any]:
    """As MONAI's self-supervised recipe saves the encoder, with its heads and its optimiser."""
    names = {f"module.{name.replace('mlp.linear', 'mlp.fc')}": tensor + 0 for name, tensor in
             model.swinViT.state_dict().items()}  # fmt: skip
    heads = {"module.norm.weight": torch.ones(3), "module.rotation_head.weight": torch.ones(4, 3)}
    return {"epoch": 7, "state_dict": {**names, **heads}, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}


def found_in(content: dict[str, Any], experiment, tmp_path, **options):
    """The match of a file that was saved and read again."""
    file = tmp_path / "weights.pt"
    torch.save(content, file)
    return match(read_tensors(file), encoder_of(experiment), **options)


def assert_whole(found, model, experiment) -> None:
    expected = trained(model, experiment)
    assert found.share == 1.0
    assert found.matched.keys() == expected.keys()
    assert all(torch.equal(found.matched[name], expected[name]) for name in expected)
    assert (found.missing, found.mismatched, found.foreign) == ((), {}, ())
    require(found, least=1.0)


@pytest.mark.parametrize("crop", [(64, 64), (64, 32, 32)])
def test_the_ssl_layout_matches_whole_and_gives_identical_tokens(study, tmp_path, crop):
    experiment = study("swin_unetr", crop)
    source = network(experiment)
    found = found_in(ssl_layout(source), experiment, tmp_path)
    assert_whole(found, source, experiment)
    assert found.prefix == "state_dict.module."
    target = network(experiment, seed=6)
    images = torch.randn(1, 1, *crop)
    with torch.no_grad():
        before, wanted = (swin.block_tokens(model.swinViT, images, top=1)[0] for model in (target, source))
        target.load_state_dict(found.matched, strict=False)
        after = swin.block_tokens(target.swinViT, images, top=1)[0]
    assert torch.equal(after, wanted)
    assert not torch.equal(before, wanted)


def test_the_ssl_layout_is_read_as_monai_reads_it(study, tmp_path):
    experiment = study(*SWIN)
    content = ssl_layout(network(experiment))
    reference = network(experiment, seed=6)
    reference.load_from(content)
    assert_whole(found_in(content, experiment, tmp_path), reference, experiment)


def test_the_doubled_stage_index_is_undone_as_monais_filter_undoes_it(study, tmp_path):
    from monai.networks.nets.swin_unetr import filter_swinunetr

    experiment = study(*SWIN)
    source = network(experiment)
    content = {
        f"encoder.{name.replace('.0.', '.0.0.', 1) if name.startswith('layers') else name}": tensor
        for name, tensor in source.swinViT.state_dict().items()
    }
    content |= {"encoder.mask_token": torch.zeros(1), "encoder.norm.weight": torch.zeros(3)}
    assert_whole(found_in({"model": content}, experiment, tmp_path), source, experiment)
    filtered = dict(item for item in (filter_swinunetr(*pair) for pair in content.items()) if item is not None)
    assert filtered.keys() == {f"swinViT.{name}" for name in source.swinViT.state_dict()}


@pytest.mark.parametrize(("name", "crop"), [SWIN, UNETR])
def test_a_plain_state_dict_of_the_whole_network_matches(study, tmp_path, name, crop):
    experiment = study(name, crop)
    source = network(experiment)
    found = found_in(source.state_dict(), experiment, tmp_path)
    assert_whole(found, source, experiment)
    assert any(name.startswith("decoder") for name in found.unused)


def test_a_plain_state_dict_of_another_number_of_classes_matches(study, tmp_path):
    from monai.networks.nets import SwinUNETR

    experiment = study(*SWIN)
    source = SwinUNETR(1, 9, feature_size=12, window_size=4, depths=(1, 1, 1, 2), spatial_dims=2)
    assert_whole(found_in(source.state_dict(), experiment, tmp_path), source, experiment)


def test_monais_autoencoding_vit_matches_and_gives_identical_tokens(study, tmp_path):
    from monai.networks.nets import ViTAutoEnc

    experiment = study(*UNETR)
    torch.manual_seed(5)
    source = ViTAutoEnc(
        1, (32, 32), (16, 16), hidden_size=24, mlp_dim=48, num_layers=12, num_heads=2, spatial_dims=2
    ).eval()
    stale = {f"blocks.{block}.cross_attn.out_proj.weight": torch.zeros(24, 24) for block in range(12)}
    found = found_in({**source.state_dict(), **stale}, experiment, tmp_path)
    require(found, least=1.0)
    assert set(found.unused) == {
        f"conv3d_transpose{which}.{kind}" for which in ("", "_1") for kind in ("weight", "bias")
    }
    target = network(experiment, seed=6)
    target.load_state_dict(found.matched, strict=False)
    images = torch.randn(1, 1, 32, 32)
    for block in source.blocks:
        # the same kernel as in the study's network; another one rounds differently
        block.attn.use_flash_attention = True
    with torch.no_grad():
        (tokens,) = vit.block_tokens(target.vit, images, top=1)
        assert torch.equal(tokens, source(images)[1][-1])


def test_our_own_shared_model_matches(study, tmp_path):
    experiment = study(*SWIN)
    source = network(experiment)
    tensors = trained(source, experiment) | {"mask_token": torch.zeros(12), "predictor.0.weight": torch.zeros(96)}
    checkpoint.save(tmp_path / "shared.safetensors", {"format": 1, "study": "x", "tensors": tensors})
    found = match(read_tensors(tmp_path / "shared.safetensors"), encoder_of(experiment))
    assert_whole(found, source, experiment)
    assert found.unused == ("tensors.mask_token", "tensors.predictor.0.weight")


def test_a_student_and_its_teacher_are_told_apart_by_the_users_word_only(study, tmp_path):
    experiment = study(*UNETR)
    student, teacher = network(experiment), network(experiment, seed=6)
    content = {"student": student.vit.state_dict(), "teacher": teacher.vit.state_dict()}
    with pytest.raises(ConfigurationError, match=r"2 encoders: 'student.', 'teacher.'.*--prefix"):
        found_in(content, experiment, tmp_path)
    for prefix, model in (("student", student), ("teacher.", teacher)):
        assert_whole(found_in(content, experiment, tmp_path, prefix=prefix), model, experiment)
    with pytest.raises(ConfigurationError, match=r"--prefix: got 'teecher'.*'student.', 'teacher.'"):
        found_in(content, experiment, tmp_path, prefix="teecher")


def test_half_precision_becomes_the_studys_own_type(study, tmp_path):
    experiment = study(*UNETR)
    source = network(experiment)
    content = {name: tensor.half() for name, tensor in source.vit.state_dict().items()}
    found = found_in(content, experiment, tmp_path)
    name = "vit.norm.weight"
    assert {tensor.dtype for tensor in found.matched.values()} == {torch.float32}
    assert torch.equal(found.matched[name], source.vit.norm.weight.half().float())


@pytest.mark.parametrize(
    ("here", "there", "words"),
    [
        ({"feature_size": 24}, {"feature_size": 12}, r"swinViT.patch_embed.proj.weight: got \(12, 1, 2, 2\) in the "),
        ({"window": 3}, {"window": 4}, r"relative_position_bias_table: got \(49, 3\) in the file, \(25, 3\) in this"),
        ({"heads": (3, 6, 12, 12)}, {}, r"layers4.0.blocks.0.attn.relative_position_bias_table: got \(49, 24\)"),
        ({"depths": (1, 1, 1, 3)}, {}, r"layers4.0.blocks.2.norm1.weight: got not in the file"),
        ({"depths": (1, 1, 1, 1)}, {}, r"layers4.0.blocks.1.*got 13 tensor\(s\) of a larger or another encoder"),
    ],
)
def test_a_swin_of_another_shape_is_refused_by_the_tensors_name(study, tmp_path, here, there, words):
    content = ssl_layout(network(study(*SWIN, **there)))
    with pytest.raises(ConfigurationError, match=words):
        require(found_in(content, study(*SWIN, **here), tmp_path), least=1.0)


def test_position_embeddings_of_another_crop_are_refused_and_never_interpolated(study, tmp_path):
    content = network(study("unetr", (48, 48))).state_dict()
    found = found_in(content, study(*UNETR), tmp_path)
    assert found.mismatched == {
        "vit.patch_embedding.position_embeddings": "(1, 9, 24) in the file, (1, 4, 24) in this study"
    }
    with pytest.raises(ConfigurationError, match=r"position_embeddings.*data.crop"):
        require(found, least=1.0)
    require(found, least=found.share)
    assert "vit.patch_embedding.position_embeddings" not in found.matched


def test_a_swin_with_convolutions_between_its_stages_is_another_encoder(study, tmp_path):
    from monai.networks.nets import SwinUNETR

    content = SwinUNETR(
        1, 3, feature_size=12, window_size=4, depths=(1, 1, 1, 2), spatial_dims=2, use_v2=True
    ).state_dict()
    found = found_in(content, study(*SWIN), tmp_path)
    assert found.share == 1.0
    with pytest.raises(ConfigurationError, match=r"layers1c.*another encoder"):
        require(found, least=0.1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tensors_that_are_not_finite_are_refused(study, tmp_path, value):
    content = ssl_layout(network(study(*SWIN)))
    content["state_dict"]["module.patch_embed.proj.bias"][3] = value
    with pytest.raises(ConfigurationError, match=r"state_dict.module.patch_embed.proj.bias: got NaN or infinity"):
        found_in(content, study(*SWIN), tmp_path)


def test_numbers_that_overflow_the_studys_type_are_refused(study, tmp_path):
    content = network(study(*UNETR)).vit.state_dict()
    content["norm.weight"] = torch.full((24,), 1e300, dtype=torch.float64)
    with pytest.raises(ConfigurationError, match=r"norm\.weight: got NaN or infinity"):
        found_in(content, study(*UNETR), tmp_path)


def test_whole_numbers_do_not_pass_for_weights(study, tmp_path):
    content = network(study(*UNETR)).vit.state_dict()
    content["norm.weight"] = torch.ones(24, dtype=torch.int64)
    found = found_in(content, study(*UNETR), tmp_path)
    assert found.mismatched == {"vit.norm.weight": "(24,) of torch.int64 in the file, (24,) in this study"}


def test_two_names_of_one_tensor_are_refused(study, tmp_path):
    content = ssl_layout(network(study(*SWIN)))
    twin = "module.layers1.0.blocks.0.mlp.linear1.weight"
    content["state_dict"][twin] = torch.zeros(48, 12)
    with pytest.raises(ConfigurationError, match="another name of"):
        found_in(content, study(*SWIN), tmp_path)


def test_a_file_of_something_else_is_told_with_names_from_both_sides(study, tmp_path):
    with pytest.raises(ConfigurationError, match=r"names like resnet.conv1.weight.*an encoder with names like"):
        found_in({"resnet": {"conv1.weight": torch.zeros(3)}}, study(*SWIN), tmp_path)


def test_a_vit_in_a_swins_place_does_not_match(study, tmp_path):
    with pytest.raises(ConfigurationError):
        require(found_in(network(study(*UNETR)).state_dict(), study(*SWIN), tmp_path), least=0.01)


def test_looking_at_an_encoder_leaves_the_generators_alone(study):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    encoder_of(study(*SWIN))
    assert torch.equal(torch.get_rng_state(), state)


def test_matched_tensors_are_copies(study):
    experiment = study(*UNETR)
    tensors = {f"vit.{name}": tensor for name, tensor in network(experiment).vit.state_dict().items()}
    found = match(tensors, encoder_of(experiment))
    tensors["vit.norm.weight"].zero_()
    assert found.matched["vit.norm.weight"].abs().sum() > 0
