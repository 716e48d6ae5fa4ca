"""The attempts: one table of what is done, what the strength means and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

from ssl_wm.encoders.encoder import Encoder
from ssl_wm.removal import distilling, finetune, flattening, inputs, outputs, weights
from ssl_wm.removal.given import Given

Kind = Literal["weights", "training", "inputs", "outputs"]


class Run(Protocol):
    """What carries an attempt out, on an encoder that it may change."""

    def __call__(self, encoder: Encoder, *, strength: float, given: Given) -> Encoder:
        """Return the encoder after the attempt."""


@dataclass(frozen=True)
class Removal:
    """One attempt.

    Attributes:
        run: what carries it out.
        kind: what it changes: weights, weights by training, inputs or outputs.
        dial: what the strength means.
        strengths: defaults for a sweep, weakest first.
        neutral: the strength that leaves the encoder as it is.
        low: least strength that is accepted, beside the neutral one.
        high: largest strength that is accepted.
        whole: whether the strength is a whole number.
        needs: what the thief must have besides the encoder. "other labels" are labelled images
            of another task.
        inside: whether it needs the encoder's layers although it changes its answers alone.
        source: where it comes from.
        differs: what is done in another way than there.
    """

    run: Run
    kind: Kind
    dial: str
    strengths: tuple[float, ...]
    neutral: float = 0
    low: float = 0
    high: float = float("inf")
    whole: bool = False
    needs: Literal["nothing", "images", "labels", "other labels"] = "nothing"
    inside: bool = False
    source: str = ""
    differs: str = ""

    @property
    def white_box(self) -> bool:
        """Whether the thief must hold the weights; else embeddings as served are enough."""
        return self.inside or self.kind in ("weights", "training")

    @property
    def wraps(self) -> bool:
        """Whether it leaves a wrapper around the encoder, which no architecture's name builds."""
        around = (inputs.before, outputs.after)
        behind = isinstance(self.run, partial) and self.run.func in around
        return behind or self.run in (flattening.flatten, flattening.flatten_places)


WRT = "Lukas et al., IEEE S&P 2022 (Watermark Robustness Toolbox)"
COMMON = "common practice"
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
SHARES = (0.25, 0.5, 0.75, 0.9)
PRUNED = (0.1, 0.3, 0.5, 0.7, 0.9)
LABELS = "AdamW and a rate that falls; views; a fitted probe as the head"

REMOVALS: dict[str, Removal] = {
    "prune": Removal(
        weights.prune, "weights", "share of each tensor's weights set to 0", PRUNED, high=0.999,
        source=f"Han et al., NeurIPS 2015; {WRT}", differs="norms are never pruned",
    ),
    "prune-global": Removal(
        weights.prune_global, "weights", "share of all weights set to 0", PRUNED, high=0.999,
        source="Han et al., NeurIPS 2015", differs="one threshold for all layers",
    ),
    "prune-channels": Removal(
        weights.prune_channels, "weights", "share of each convolution's channels silenced",
        (0.05, 0.1, 0.3, 0.5, 0.7), high=0.999, source="Li et al., ICLR 2017",
        differs="all convolutions at once; the shape stays; no training afterwards",
    ),
    "fine-prune": Removal(
        weights.fine_prune, "weights", "share of the last convolution's channels silenced",
        (0.1, 0.3, 0.5, 0.7, 0.9), high=0.999, needs="images", source="Liu et al., RAID 2018",
        differs="the fine-tuning is a second attempt of a stack",
    ),
    "float": Removal(
        weights.round_floats, "weights", "bits of the mantissa: 10 fp16, 7 bf16, 3 e4m3, 2 e5m2",
        (10, 7, 3, 2), neutral=23, low=2, high=23, whole=True, source=COMMON,
        differs="weights and running statistics alone; activations stay float32",
    ),
    "round-weights": Removal(
        weights.round_weights, "weights", "bits of a weight; 8 is int8", (8, 6, 5, 4, 3, 2),
        neutral=24, low=2, high=16, whole=True, source=f"Jacob et al., CVPR 2018; {WRT}",
        differs="weights alone, by channel and symmetric; no training afterwards",
    ),
    "weight-shift": Removal(
        weights.shift_weights, "weights", "lambda: mean filters taken off", (0.5, 1, 1.5, 2.5),
        source=WRT, differs="linear maps too; its noise and fine-tuning are attempts of a stack",
    ),
    "weight-noise": Removal(
        weights.noise_weights, "weights", "deviation, relative to the tensor's",
        (0.05, 0.1, 0.2, 0.4, 0.8), source=COMMON,
    ),
    "cut-layers": Removal(
        weights.cut_layers, "weights", "layers dropped from the end", (1, 2, 3, 4), high=1000,
        whole=True, source="Bordes et al., TMLR 2023 (guillotine regularisation)",
        differs="one layer's input, averaged over its places; no training afterwards",
    ),
    "ssl": Removal(
        finetune.continue_ssl, "training", "peak learning rate", RATES, high=1, needs="images",
        source="SSL-WM (Lv et al., NDSS 2024)", differs="AdamW, 5 epochs, any objective",
    ),
    "ftal": Removal(
        partial(finetune.fine_tune, parts="all"), "training", "peak learning rate", RATES, high=1,
        needs="labels", source=WRT, differs=LABELS,
    ),
    "ftll": Removal(
        partial(finetune.fine_tune, parts="last"), "training", "peak learning rate", RATES, high=1,
        needs="labels", source=WRT, differs=f"the encoder's last layer with the head; {LABELS}",
    ),
    "rtal": Removal(
        partial(finetune.fine_tune, parts="all", reset=True), "training", "peak learning rate",
        RATES, high=1, needs="labels", source=WRT,
        differs="the encoder's last layer is reset with the head; AdamW; views",
    ),
    "rtll": Removal(
        partial(finetune.fine_tune, parts="last", reset=True), "training", "peak learning rate",
        RATES, high=1, needs="labels", source=WRT,
        differs="the encoder's last layer is reset with the head; AdamW; views",
    ),
    "decay": Removal(
        finetune.decay, "training", "weight decay (decoupled)", (0.1, 1, 3, 10), high=1000,
        needs="images", source=WRT,
        differs="self-supervised; both phases as long as the settings say; no early stop",
    ),
    "mixed-labels": Removal(
        finetune.mixed_labels, "training", "peak learning rate", RATES, high=1, needs="labels",
        source="the adaptive attack of MEA-Defender, IEEE S&P 2024",
        differs="five mixers drawn at random; random classes; half of the loss",
    ),
    "mixed-features": Removal(
        finetune.mixed_features, "training", "peak learning rate", RATES, high=1, needs="images",
        source="own",
    ),
    "overwrite": Removal(
        finetune.overwrite, "training", "peak learning rate", RATES, high=1, needs="images",
        source=WRT, differs="three marks of the thief's own, in feature space",
    ),
    "wrk": Removal(
        finetune.wrk, "training", "peak learning rate", RATES, high=1, needs="labels",
        source="WRK (Class-Feature Watermark, AAAI 2026)",
        differs="the head is the thief's probe; AdamW and a rate that falls; views",
    ),
    "distil": Removal(
        distilling.distil, "training", "rounds, each from random weights", (1, 2, 3, 4), high=100,
        whole=True, needs="images", source=WRT, differs="cosine of embeddings, without labels",
    ),
    "transfer": Removal(
        finetune.transfer, "training", "peak learning rate", RATES, high=1, needs="other labels",
        source=WRT, differs="AdamW and a rate that falls; views",
    ),
    "noise": Removal(
        partial(inputs.before, change=inputs.noise), "inputs", "deviation, pixels in [0, 1]",
        (0.01, 0.03, 0.05, 0.1), source=WRT, differs="the same image gets the same noise",
    ),
    "blur": Removal(
        partial(inputs.before, change=inputs.blur), "inputs", "deviation in pixels",
        (0.5, 0.6, 0.7, 1.0, 1.5), high=100, source=WRT,
    ),
    "median": Removal(
        partial(inputs.before, change=inputs.median), "inputs", "radius in pixels; 1 is 3 x 3",
        (1, 2, 3, 4), high=100, whole=True, source=WRT,
    ),
    "jpeg": Removal(
        partial(inputs.before, change=inputs.jpeg), "inputs", "100 minus the quality",
        (5, 35, 55, 75, 90), low=1, high=99, whole=True, source=WRT,
    ),
    "bit-depth": Removal(
        partial(inputs.before, change=inputs.bit_depth), "inputs", "bits of a channel",
        (6, 5, 4, 3, 2), neutral=8, low=1, high=8, whole=True,
        source=f"Xu et al., NDSS 2018; {WRT}",
    ),
    "flip": Removal(
        partial(inputs.before, change=inputs.flip), "inputs", "share of images mirrored",
        (0.25, 0.5, 0.75, 1), high=1, source=WRT, differs="chosen by the image's pixels",
    ),
    "round": Removal(
        partial(outputs.after, change=outputs.rounding), "outputs",
        "step, relative to the embedding's root mean square", (0.25, 0.5, 1, 2),
        source="Liu et al., CCS 2022", differs="the step is relative, not decimals",
    ),
    "top-k": Removal(
        partial(outputs.after, change=outputs.top_k), "outputs", "share of coordinates set to 0",
        SHARES, high=0.999, source="Liu et al., CCS 2022", differs="largest magnitudes stay",
    ),
    "answer-noise": Removal(
        partial(outputs.after, change=outputs.answer_noise), "outputs",
        "deviation, relative to the embedding's root mean square", (0.1, 0.3, 1, 2),
        source="Liu et al., CCS 2022", differs="the same image gets the same noise",
    ),
    "flatten": Removal(
        flattening.flatten, "outputs", "leading coordinates whose products are taken out",
        (5, 10, 15, 20), low=2, high=1000, whole=True, needs="images",
        source="own: the adaptive attempt on carriers of the answers",
    ),
    "flatten-places": Removal(
        flattening.flatten_places, "outputs",
        "leading coordinates of the places inside whose products are taken out",
        (5, 10, 15, 20), low=2, high=1000, whole=True, needs="images", inside=True,
        source="own: the adaptive attempt on carriers of the places",
    ),
    "pca-leading": Removal(
        partial(outputs.drop_components, end="leading"), "outputs",
        "components of largest variance dropped", (1, 2, 4, 8, 16), whole=True, needs="images",
        source="the elimination step of CSE (Shetty et al., ACL 2024), for text",
        differs="a fixed number of components, without reference to another encoder",
    ),
    "pca-trailing": Removal(
        partial(outputs.drop_components, end="trailing"), "outputs",
        "share of components dropped, least variance first", SHARES, high=0.999, needs="images",
        source=COMMON,
    ),
    "rotate": Removal(
        outputs.rotate, "outputs", "share of axes turned", (0.25, 0.5, 0.75, 1), high=1,
        source="control", differs="must change nothing",
    ),
    "permute": Removal(
        outputs.permute, "outputs", "share of coordinates permuted", (0.25, 0.5, 0.75, 1), high=1,
        source=f"control, as the feature permutation of {WRT}", differs="must change nothing",
    ),
    "scale": Removal(
        outputs.scale, "outputs", "factor", (2, 5, 10, 100), neutral=1, low=1e-3, high=1e3,
        source="control", differs="must change nothing",
    ),
    "shorten": Removal(
        partial(outputs.after, change=outputs.shorten), "outputs",
        "power of the length that is divided by; 1 is unit length", (0.25, 0.5, 0.75, 1), high=1,
        source=COMMON,
    ),
    "narrow": Removal(
        outputs.narrow, "outputs", "share of the width given up", SHARES, high=0.999,
        source="Johnson and Lindenstrauss, 1984",
        differs="rows of an orthogonal matrix",
    ),
}  # fmt: skip
