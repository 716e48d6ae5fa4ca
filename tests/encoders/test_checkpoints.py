"""Foreign weight files: nests and prefixes are undone exactly, and nothing else is guessed."""

from __future__ import annotations

import logging
from collections import OrderedDict

import pytest
import torch
from torch import nn

from ssl_wm.encoders.checkpoints import load_weights, read_state_dict
from ssl_wm.encoders.load import build_encoder, load_encoder
from ssl_wm.encoders.properties import encoder_digest
from ssl_wm.errors import EncoderError


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4)))


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


def fit(state: dict[str, torch.Tensor], module: nn.Module | None = None) -> nn.Module:
    module = module or small(seed=1)
    load_weights(module, state, what="x.pt", arch="small")
    return module


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "backbone.", "encoder.", "module.backbone.", "module._orig_mod.",
     "_orig_mod.module.", "module.encoder.", "encoder.backbone.", "module.encoder_q.",
     "encoder.encoder.", "_orig_mod.module.backbone.encoder."],
)  # fmt: skip
def test_wrapper_prefixes_are_removed_in_any_order(prefix):
    assert same(fit(prefixed(prefix, small().state_dict())), small())


def test_a_prefix_is_removed_whole_and_never_as_a_set_of_characters():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bone = nn.Linear(2, 2)
            self.encoderx = nn.Linear(2, 2)

    source, target = Model(), Model()
    load_weights(target, prefixed("backbone.", source.state_dict()), what="x", arch="y")
    assert same(source, target)


class WithEncoder(nn.Module):
    """An architecture with a submodule that is rightly called ``encoder``."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = small(seed)
        self.norm = nn.LayerNorm(4)


class OnlyEncoder(nn.Module):
    """All its names begin with ``encoder.``."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.encoder = small(seed)


@pytest.mark.parametrize("kind", [WithEncoder, OnlyEncoder])
@pytest.mark.parametrize("prefix", ["", "module.", "encoder.", "module.encoder."])
def test_a_submodule_called_encoder_keeps_its_name(kind, prefix):
    assert same(fit(prefixed(prefix, kind(0).state_dict()), kind(5)), kind(0))


def test_a_library_network_loads_from_a_file_with_any_prefix(tmp_path):
    encoder = build_encoder("timm/test_vit", seed=3, input_size=32)
    for prefix in ("", "module.", "encoder."):
        path = tmp_path / f"{prefix}x.pt"
        torch.save(prefixed(prefix, encoder.backbone.state_dict()), path)
        assert encoder_digest(load_encoder(path, arch="timm/test_vit?size=32")) == encoder_digest(
            encoder
        )


@pytest.mark.parametrize(
    "beside",
    ["fc.weight", "projection_head.0.weight", "projection_head.layers.2.bias", "projector.1.bias",
     "prediction_head.0.weight", "classifier.weight", "head.weight", "queue", "queue_ptr",
     "encoder_k.conv.weight", "backbone_momentum.conv.weight", "prototypes.weight"],
)  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "module."])
def test_heads_beside_the_backbone_are_left_out_and_named(beside, prefix, caplog):
    state = prefixed("backbone.", small().state_dict()) | {beside: torch.zeros(2)}
    with caplog.at_level(logging.WARNING):
        assert same(fit(prefixed(prefix, state)), small())
    assert beside in caplog.text
    assert "left out 1 entries" in caplog.text


def test_a_clean_file_warns_of_nothing(caplog):
    fit(prefixed("module.", small().state_dict()))
    assert caplog.text == ""


def test_a_classifier_inside_the_backbone_is_left_out_and_named(caplog):
    state = prefixed("module.", small().state_dict() | {"fc.weight": torch.zeros(5, 4)})
    assert same(fit(state), small())
    assert "module.fc.weight" in caplog.text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("conv.bias"), r"1 missing \(conv\.bias\)"),
        (lambda state: state.update(extra=torch.zeros(1)), r"1 unexpected \(module\.extra\)"),
        (
            lambda state: state.update({"norm.weight": torch.zeros(5)}),
            r"norm\.weight is float32 \(5,\), should be float32 \(4,\)",
        ),
        (
            lambda state: state.update({"norm.weight": torch.zeros(4, dtype=torch.int8)}),
            r"norm\.weight is int8 \(4,\), should be float32 \(4,\)",
        ),
    ],
    ids=["missing", "unexpected", "shape", "type"],
)
def test_what_does_not_fit_is_counted_and_named(change, says):
    state = dict(small().state_dict())
    change(state)
    with pytest.raises(EncoderError, match=says) as caught:
        fit(prefixed("module.", state))
    assert "after removing the prefix 'module.'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_many_misfits_are_cut_to_a_few_and_a_count():
    other = build_encoder("cnn9").backbone
    with pytest.raises(EncoderError, match=r"and \d+ more") as caught:
        load_weights(other, small().state_dict(), what="x.pt", arch="cnn9")
    assert len(str(caught.value)) < 500


def test_a_failed_load_changes_no_weight():
    module = small(seed=1)
    state = dict(small().state_dict())
    del state["norm.bias"]
    with pytest.raises(EncoderError):
        fit(state, module)
    assert same(module, small(seed=1))


def test_checkpoints_without_batch_counters_load():
    state = {k: v for k, v in small().state_dict().items() if not k.endswith("tracked")}
    assert same(fit(state), small())


def test_half_precision_weights_become_float32():
    state = {
        name: v.half() if v.is_floating_point() else v for name, v in small().state_dict().items()
    }
    module = fit(state)
    assert module.conv.weight.dtype == torch.float32
    torch.testing.assert_close(module.conv.weight, small().conv.weight, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "nest",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}},
        lambda state: {"model": state, "lr": 0.1},
        lambda state: {"model_state_dict": state},
        lambda state: {"teacher": prefixed("module.backbone.", state)},
        lambda state: {"checkpoint": {"model": {"state_dict": state}}},
        lambda state: {"my_own_name": state, "step": 4},
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".pth.tar"])
def test_the_state_dict_is_found_in_its_nest(nest, suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    torch.save(nest(small().state_dict()), path)
    assert same(fit(read_state_dict(path)), small())


def test_of_a_teacher_and_a_student_the_teacher_is_taken_and_it_is_said(tmp_path, caplog):
    torch.save(
        {"student": small(3).state_dict(), "teacher": small(4).state_dict()}, tmp_path / "x.pt"
    )
    assert same(fit(read_state_dict(tmp_path / "x.pt")), small(4))
    assert "took 'teacher', left out student" in caplog.text


def test_entries_that_are_no_tensors_are_named(tmp_path, caplog):
    torch.save({**small().state_dict(), "epoch": 3}, tmp_path / "x.pt")
    assert same(fit(read_state_dict(tmp_path / "x.pt")), small())
    assert "epoch" in caplog.text


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.zeros(3), "holds a Tensor"),
        ([torch.zeros(3)], "holds a list"),
        ({}, "only nothing"),
        ({"epoch": 3, "lr": 0.1}, "only epoch, lr"),
        ({"w": torch.zeros(2, 2).to_sparse()}, "sparse"),
        ({"w": torch.zeros(2, device="meta")}, "without data"),
        (None, "holds a NoneType"),
    ],
    ids=str,
)
def test_a_file_without_a_state_dict_says_what_it_holds(value, says, tmp_path):
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(EncoderError, match=says):
        read_state_dict(tmp_path / "x.pt")


def test_a_nest_that_contains_itself_ends(tmp_path):
    loop: dict[str, object] = {}
    loop["model"] = loop
    torch.save(loop, tmp_path / "x.pt")
    with pytest.raises(EncoderError, match="no state dict"):
        read_state_dict(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["x.onnx", "x.npz", "x.pt2", "x"])
def test_other_kinds_of_file_are_refused_by_name(name, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(EncoderError, match=r"\.safetensors, \.pt"):
        read_state_dict(tmp_path / name)


def test_a_library_checkpoint_with_its_classifier_loads_through_load_encoder(tmp_path, caplog):
    from torchvision import models

    torch.manual_seed(0)
    whole = models.mnasnet0_5(weights=None)
    torch.save({"state_dict": prefixed("module.", whole.state_dict())}, tmp_path / "x.pth")
    encoder = load_encoder(f"{tmp_path / 'x.pth'}?arch=torchvision/mnasnet0_5?size=32")
    assert torch.equal(encoder.backbone.layers[0].weight, whole.layers[0].weight)
    assert "module.classifier.1.weight" in caplog.text
