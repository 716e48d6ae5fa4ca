"""What an encoder is asked when it is read with a key: which images, in which order.

Every set of images has a name and is a pure function of the key, the images and the settings,
so whoever holds the revealed sub-keys renders the same bytes again. Nothing else is ever shown
to a suspect: an accuser cannot slip in images of his own making.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssl_wm.errors import VerificationError
from ssl_wm.rng import torch_stream
from ssl_wm.verification.settings import ReadConfig
from ssl_wm.watermark.subkeys import decoy_recipe
from ssl_wm.watermark.triggers import composites, ordered_pairs

if TYPE_CHECKING:
    from ssl_wm.data.image_set import Images
    from ssl_wm.watermark.mixers import Mixer
    from ssl_wm.watermark.open_key import OpenKey
    from ssl_wm.watermark.subkeys import SubKey

REFERENCE = "reference"
"""Natural training images that fix the groups' centres and fit the readers."""
PAIRS, RECIPES, FRESH, OTHERS = "pairs", "recipes", "fresh", "others"
BLOCK = 2048


def question_names(key: OpenKey, *, config: ReadConfig, rates: bool = True) -> list[str]:
    """Return the names of all sets of images that ``key`` asks about.

    ``reference``; then for each sub-key ``pairs/I`` (composites of every ordered pair of groups
    under its mixer), ``recipes/I`` (its own pair under decoy recipes), and with ``rates`` also
    ``fresh/I`` (more of its own composites) and ``others/I`` (its pair under other mixers). With
    ``natural_only`` there is ``reference`` alone.
    """
    if config.natural_only:
        return [REFERENCE]
    kinds = [
        PAIRS,
        *([RECIPES] if config.decoy_recipes else []),
        *([FRESH, OTHERS] if rates else []),
    ]
    return [REFERENCE, *(f"{kind}/{sub.index}" for sub in key.sub_keys for kind in kinds)]


def question_size(name: str, key: OpenKey, *, config: ReadConfig) -> int:
    """Return the number of images in the set ``name``."""
    if name == REFERENCE:
        return len(reference_indices(key, config=config))
    kind, sub_key = _parse(name, key)
    if kind == PAIRS:
        return len(ordered_pairs(len(key.groups))) * config.per_pair
    if kind == RECIPES:
        return config.recipes * config.per_pair
    if kind == FRESH:
        return config.trigger_count
    return len(sub_key.others) * -(-config.trigger_count // len(sub_key.others))


def count_queries(key: OpenKey, *, config: ReadConfig, rates: bool = True) -> int:
    """Return how many images a suspect is sent in all."""
    names = question_names(key, config=config, rates=rates)
    return sum(question_size(name, key, config=config) for name in names)


def within_budget(key: OpenKey, *, config: ReadConfig, limit: int | None) -> ReadConfig:
    """Return ``config`` with as much read as ``limit`` queries allow.

    What matters least goes first: images behind the rates, decoy recipes, composites per pair,
    reference images.

    Raises:
        VerificationError: not even the least reading fits.
    """
    fits = config
    mixed = (("trigger_count", 100), ("recipes", 0), ("per_pair", 8))
    for name, least in (*(() if config.natural_only else mixed), ("reference", 50)):
        while limit is not None and count_queries(key, config=fits) > limit:
            value = getattr(fits, name)
            if value <= least:
                break
            fits = fits.model_copy(update={name: max(value // 2 if value > 1 else 0, least)})
    needed = count_queries(key, config=fits)
    if limit is not None and needed > limit:
        raise VerificationError(
            f"this key needs at least {needed:,} queries and --max-queries allows {limit:,}; "
            "raise it, or verify with fewer sub-keys (--sub-key 0)"
        )
    return fits


def render(name: str, key: OpenKey, images: Images, *, config: ReadConfig) -> Iterator[Tensor]:
    """Yield the images of the set ``name``, uint8 (B, 3, H, W), in blocks.

    Raises:
        VerificationError: there is no such set.
    """
    if name == REFERENCE:
        indices = reference_indices(key, config=config)
        for chosen in indices.tensor_split(-(-len(indices) // BLOCK)):
            yield images.train.take(chosen)
        return
    kind, sub_key = _parse(name, key)
    groups = key.groups.test
    own = (sub_key.a, sub_key.b)

    def mixed(pairs: Sequence[tuple[int, int]], mixer: Mixer, count: int, seed: bytes) -> Tensor:
        return composites(images.test, groups, pairs=pairs, mixer=mixer, per_pair=count, seed=seed)

    if kind == PAIRS:
        pairs = ordered_pairs(len(key.groups))
        step = max(1, BLOCK // config.per_pair)
        for start in range(0, len(pairs), step):
            some = pairs[start : start + step]
            yield mixed(some, sub_key.mixer, config.per_pair, sub_key.derive("pairs"))
    elif kind == RECIPES:
        for number in range(config.recipes):
            mixer, seed = decoy_recipe(sub_key, number, terms=key.terms)
            yield mixed([own], mixer, config.per_pair, seed)
    elif kind == FRESH:
        yield mixed([own], sub_key.mixer, config.trigger_count, sub_key.derive("fresh"))
    else:
        share = -(-config.trigger_count // len(sub_key.others))
        for place, mixer in enumerate(sub_key.others.values()):
            yield mixed([own], mixer, share, sub_key.derive("others", place))


def reference_counts(key: OpenKey, *, config: ReadConfig) -> Tensor:
    """Return how many reference images each group has, (G,)."""
    members = torch.stack([(key.groups.train == group).sum() for group in range(len(key.groups))])
    return members.clamp(max=config.reference)


def own_size(key: OpenKey, *, config: ReadConfig) -> int:
    """Return how many images of each sub-key itself the interval of its contrast rests on."""
    if config.natural_only:
        return int(reference_counts(key, config=config).min())
    return config.per_pair


def reference_indices(key: OpenKey, *, config: ReadConfig) -> Tensor:
    """Return up to ``config.reference`` training images of each group, a public choice, (N,)."""
    chosen = []
    for group in range(len(key.groups)):
        members = (key.groups.train == group).nonzero().flatten()
        order = torch.randperm(len(members), generator=torch_stream(0, "reference", group))
        chosen.append(members[order[: config.reference]])
    return torch.cat(chosen).sort().values


def _parse(name: str, key: OpenKey) -> tuple[str, SubKey]:
    kind, _, index = name.partition("/")
    known = {str(sub.index): sub for sub in key.sub_keys}
    if kind not in (PAIRS, RECIPES, FRESH, OTHERS) or index not in known:
        raise VerificationError(f"there is no set of images '{name}' for this key")
    return kind, known[index]
