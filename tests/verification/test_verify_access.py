"""Labels alone, a limit on queries, and margins that are read once: the verdict stays the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import encoder_digest, load_encoder
from ssl_wm.errors import EncoderError, VerificationError
from ssl_wm.verification import verify as module
from ssl_wm.verification.carried import Base
from ssl_wm.verification.once import Memory
from ssl_wm.verification.questions import count_queries, question_names, question_size
from ssl_wm.verification.readings import Margins
from ssl_wm.verification.settings import ReadConfig, VerifyConfig
from ssl_wm.verification.verify import affordable, verify

READ = ReadConfig(per_pair=16, recipes=3, reference=20, trigger_count=200, neighbours=5)
CONFIG = VerifyConfig(read=READ, draws=999)
LABELS = CONFIG.model_copy(update={"access": "labels"})


class Counting(nn.Module):
    """A suspect that counts the images it really receives."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.received = net, 0

    def forward(self, images: Tensor) -> Tensor:
        self.received += len(images)
        return self.net(images)


def without_facts(verdict: Any) -> dict[str, Any]:
    return {name: value for name, value in verdict.to_dict().items() if name != "facts"}


# --- labels ------------------------------------------------------------------------------------


def classifier(encoder: Encoder, change: Any = lambda logits: logits) -> Encoder:
    """Return a classifier of 24 classes on an encoder: logits without ties, perhaps changed."""
    head = torch.randn(8, 24, generator=torch.Generator().manual_seed(2))
    return load_encoder(lambda pixels: change((encoder(pixels) - 0.125) @ head))


@pytest.fixture(scope="module")
def by_label(marked, clean, key, images):
    return verify(classifier(marked), key=key, images=images, nulls=[clean], config=LABELS)


@pytest.mark.parametrize(
    "change",
    [lambda z: 100 * z - 3, lambda z: z**3, lambda z: z.softmax(dim=1), lambda z: (9 * z).exp(),
     lambda z: torch.eye(z.shape[1])[z.argmax(dim=1)]],
    ids=["scale and shift", "cube", "softmax", "exp", "label alone"],
)  # fmt: skip
def test_only_the_largest_output_of_a_classifier_is_used(
    marked, clean, key, images, by_label, change
):
    """Any monotone change of the logits, down to the bare label, leaves the verdict as it is."""
    suspect = classifier(marked, change)
    again = verify(suspect, key=key, images=images, nulls=[clean], config=LABELS)
    assert without_facts(again) == without_facts(by_label)


def test_a_mark_shows_in_labels_and_the_clean_encoder_is_not_accused(
    marked, clean, key, images, by_label
):
    assert by_label.facts["settings"]["access"] == "labels"
    assert by_label.p_value <= 0.05
    innocent = classifier(clean)
    verdict = verify(innocent, key=key, images=images, nulls=[clean], config=LABELS)
    assert verdict.decision == "not_detected"
    assert verdict.p_value > 0.1


def test_over_random_keys_labels_accuse_no_more_often_than_alpha(world):
    images, found = world.images(groups=6), []
    suspect, clean = world.convnet(seed=4), world.palette(images)
    least = LABELS.model_copy(update={"max_queries": 600})
    for number in range(20):
        key = world.key(images, number=200 + number)
        found.append(verify(suspect, key=key, images=images, nulls=[clean], config=least).p_value)
    p_values = torch.tensor(found)
    assert int((p_values <= 0.1).sum()) <= 7  # but for 4 in 10,000
    assert int((p_values <= 0.5).sum()) <= 17  # but for 2 in 10,000


def test_a_classifier_with_one_label_for_everything_is_refused(clean, key, images):
    suspect = classifier(clean, lambda z: torch.cat([z[:, :3], z[:, :1] * 0 + 99], dim=1))
    with pytest.raises(EncoderError, match="the label 3"):
        verify(suspect, key=key, images=images, nulls=[clean], config=LABELS)


def test_labels_are_never_remembered_as_margins_of_embeddings(world, clean, key, images):
    memory = Memory()
    suspect, null = world.convnet(seed=1), world.convnet(seed=2)
    verify(suspect, key=key, images=images, nulls=[null], config=LABELS, memory=memory)
    assert memory == Memory()


# --- the budget --------------------------------------------------------------------------------


@pytest.mark.parametrize("access", ["embeddings", "labels"])
@pytest.mark.parametrize("limit", [None, 1200, 900])
@pytest.mark.parametrize("sub_keys", [1, 2])
def test_a_suspect_receives_exactly_the_images_that_were_announced(
    world, clean, images, access, limit, sub_keys
):
    key = world.key(images, number=1, sub_keys=sub_keys)
    limit = limit and limit * sub_keys
    counting = Counting(world.palette(images, key=key))
    config = CONFIG.model_copy(update={"access": access, "max_queries": limit})
    verdict = verify(
        Encoder(counting, preprocessing=world.flat), key=key, images=images, nulls=[clean],
        config=config,
    )  # fmt: skip
    fits = affordable(config, key)
    assert counting.received == count_queries(key, config=fits.read)
    assert counting.received == verdict.facts["queries"]
    assert limit is None or counting.received <= limit
    names = question_names(key, config=fits.read)
    assert counting.received == sum(question_size(n, key, config=fits.read) for n in names)
    assert verdict.facts["settings"] == fits.model_dump(mode="json")


def test_nothing_is_sent_when_the_least_reading_exceeds_the_limit(world, clean, key, images):
    counting = Counting(world.palette(images))
    with pytest.raises(VerificationError, match=r"--max-queries allows 600"):
        verify(
            Encoder(counting, preprocessing=world.flat), key=key, images=images, nulls=[clean],
            config=CONFIG.model_copy(update={"max_queries": 600}),
        )  # fmt: skip
    assert counting.received == 0


# --- what is remembered ------------------------------------------------------------------------


@pytest.fixture
def read(monkeypatch):
    """Return the list of keys whose margins were read, one entry an encoder."""
    done, real = [], module.read_margins

    def record(answers: Any, key: Any, *, config: ReadConfig, base: Base | None) -> Margins:
        done.append(key)
        return real(answers, key, config=config, base=base)

    monkeypatch.setattr(module, "read_margins", record)
    return done


def test_a_null_is_read_once_and_only_where_nothing_that_matters_differs(world, images, read):
    suspect, null, memory = world.convnet(seed=1), world.convnet(seed=2), Memory()
    key = world.key(images, number=1, sub_keys=2)

    def reads(encoder: Encoder = suspect, *, key=key, null=null, **changes: Any) -> int:
        before = len(read)
        config = CONFIG.model_copy(update=changes)
        verify(encoder, key=key, images=images, nulls=[null], config=config, memory=memory)
        return len(read) - before

    def differing(**changes: Any) -> ReadConfig:
        return READ.model_copy(update=changes)

    assert suspect.arch != "custom"
    assert reads() == 2  # the suspect is read for every verdict
    assert reads() == 1
    assert reads(alpha=0.2, look=3, draws=99) == 1
    assert reads(world.convnet(seed=3)) == 1
    assert reads(key=key.reveal()) == 1
    changed = copy.deepcopy(null)
    changed.backbone[0].bias.data[0] += 1e-3
    assert reads(null=changed) == 2
    assert reads(key=world.key(images, number=2, sub_keys=2)) == 2
    assert reads(key=key.with_beacon("round 7")) == 2
    assert reads(key=key.with_beacon("round 8")) == 2
    assert reads(key=key.reveal([0])) == 2
    assert reads(key=key.reveal([1])) == 2
    for change in ({"per_pair": 17}, {"recipes": 2}, {"reference": 19}, {"precision": "bfloat16"}):
        assert reads(read=differing(**change)) == 2
    assert reads() == 1
    bound = {"carriers": 3, "encoder": encoder_digest(null)}
    carrying = world.key(images, number=1, sub_keys=2, **bound)
    assert [reads(key=carrying) for _ in range(2)] == [2, 1]


def test_what_is_remembered_changes_no_verdict(world, key, images):
    suspect, null, memory = world.convnet(seed=1), world.convnet(seed=2), Memory()
    first, again, fresh = (
        verify(suspect, key=key, images=images, nulls=[null], config=CONFIG, memory=kept)
        for kept in (memory, memory, None)
    )
    assert first.to_dict() == again.to_dict() == fresh.to_dict()


class Wrapped(nn.Module):
    """A thief's code around the encoder; its weights are named as the encoder's own."""

    def __init__(self, net: nn.Module, *, flip: bool) -> None:
        super().__init__()
        self.__dict__["net"], self.flip = net, flip
        for name, buffer in net.named_buffers():
            self.register_buffer(name, buffer)

    def forward(self, images: Tensor) -> Tensor:
        return -self.__dict__["net"](images).square() if self.flip else self.__dict__["net"](images)


def test_other_code_around_the_same_weights_is_another_encoder(world, clean, key, images):
    same, other = (
        Encoder(Wrapped(clean.backbone, flip=flip), preprocessing=world.flat).eval()
        for flip in (False, True)
    )
    assert encoder_digest(same) == encoder_digest(other) == encoder_digest(clean)
    memory = Memory()
    one, two = (
        verify(suspect, key=key, images=images, nulls=[clean], config=CONFIG, memory=memory)
        for suspect in (same, other)
    )
    assert one.p_value == 1
    assert two.p_value < 1
    assert memory == Memory()
