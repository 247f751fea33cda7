"""Random streams: SplitMix64 to the bit, the same in any company, and statistically sound."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from langevin_xtal.sampling.streams import (
    CandidateStreams,
    mix,
    normals,
    stream_keys,
    uniforms,
)

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def splitmix_output(z: int) -> int:
    """The output function of SplitMix64 on unsigned integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def unsigned(values: Tensor) -> list[int]:
    return [v & MASK for v in values.tolist()]


def signed(value: int) -> int:
    value &= MASK
    return value - (1 << 64) if value >> 63 else value


def starts(*counts: int) -> Tensor:
    return torch.tensor([0, *np.cumsum(counts).tolist()])


def keys(n: int, seed: int = 0) -> Tensor:
    return stream_keys(seed, torch.arange(n), torch.zeros(n, dtype=torch.int64))


def test_mix_is_splitmix64():
    rng = np.random.default_rng(0)
    x = rng.integers(-(2**63), 2**63, 1000)
    x[:5] = [0, 1, -1, 2**63 - 1, -(2**63)]
    found = unsigned(mix(torch.from_numpy(x)))
    assert found == [splitmix_output(int(v) & MASK) for v in x]


def test_published_sequence():
    """First outputs of SplitMix64 from state 1234567 (Vigna's splitmix64.c)."""
    counter = torch.arange(1, 6)
    found = unsigned(mix(1234567 + counter * signed(GOLDEN)))
    assert found == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_uniforms_are_outputs_of_the_generator():
    key = keys(50, seed=3)
    slots = torch.arange(50) * 7
    for draw in (0, 1, 4000):
        found = uniforms(key, slots, draw)
        for k, slot, u in zip(unsigned(key), slots.tolist(), found.tolist(), strict=True):
            bits = splitmix_output((k + (slot + draw * 2**24 + 1) * GOLDEN) & MASK) >> 11
            assert u == (bits + 0.5) / 2**53


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63, 2**64 - 1])
def test_keys(seed):
    """Seed, index and attempt each count, in this order."""
    index, attempt = torch.tensor([0, 5, 5, 9]), torch.tensor([0, 0, 1, 2])
    expected = []
    for i, a in zip(index.tolist(), attempt.tolist(), strict=True):
        key = splitmix_output((seed + GOLDEN) & MASK)
        for part in (i, a):
            key = splitmix_output((key + (part + 1) * GOLDEN) & MASK)
        expected.append(key)
    assert unsigned(stream_keys(seed, index, attempt)) == expected


def test_keys_are_all_different():
    """Also seed and index, or index and attempt, swapped."""
    index = torch.arange(100)
    every = [
        stream_keys(seed, i, a)
        for seed in (0, 1, 2, 100)
        for i, a in [torch.cartesian_prod(index, index[:10]).T]
    ]
    assert len(torch.cat(every).unique()) == 4 * 100 * 10


def test_streams_do_not_depend_on_the_batch():
    """Alone, in another order, with other mates: the same numbers to the bit."""
    key = keys(4)
    counts = [3, 1, 4, 2]
    together = CandidateStreams(key, starts(*counts))
    order = [2, 0, 3, 1]
    shuffled = CandidateStreams(key[order], starts(*[counts[k] for k in order]))
    alone = [CandidateStreams(key[k : k + 1], starts(counts[k])) for k in range(4)]
    for name in ["site_normals", "crystal_normals", "site_normals"]:
        sizes = counts if name.startswith("site") else [1] * 4
        whole = getattr(together, name)().split(sizes)
        other = getattr(shuffled, name)().split([sizes[k] for k in order])
        for place, k in enumerate(order):
            assert torch.equal(whole[k], other[place])
            assert torch.equal(whole[k], getattr(alone[k], name)())


def test_shapes_and_an_empty_crystal():
    streams = CandidateStreams(keys(3), starts(2, 0, 1))
    assert streams.site_normals().shape == (3, 3)
    assert streams.crystal_normals().shape == (3, 6)
    with_empty = streams.site_normals()
    without = CandidateStreams(keys(3)[[0, 2]], starts(2, 1))
    for _ in range(3):
        numbers = without.site_normals()
    assert torch.equal(with_empty, numbers)


def test_uniform_moments():
    u = uniforms(keys(200).repeat_interleave(500), torch.arange(500).repeat(200), 3)
    assert u.dtype == torch.float64
    assert u.min() > 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 5 / (12 * len(u)) ** 0.5
    assert abs(u.var() - 1 / 12) < 1e-3
    share = torch.histc(u, 20, 0, 1) / len(u)
    assert (share - 0.05).abs().max() < 5 * (0.05 * 0.95 / len(u)) ** 0.5


def unmix(z: int) -> int:
    """The inverse of ``splitmix_output``."""
    for shift, factor in [(31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9), (30, 1)]:
        x = z
        for _ in range(64 // shift + 1):
            x = z ^ (x >> shift)
        z = (x * pow(factor, -1, 1 << 64)) & MASK
    return z


@pytest.mark.parametrize("bits", [0, 1, (1 << 53) - 1, (1 << 53) - 2, 1 << 52])
def test_uniforms_are_inside_at_the_extremes(bits):
    key = torch.tensor([signed(unmix(bits << 11) - GOLDEN)])
    assert unsigned(mix(key + signed(GOLDEN))) == [bits << 11]
    u = uniforms(key, torch.zeros(1, dtype=torch.int64), 0)
    assert 0 < u < 1
    assert abs(u - bits / 2**53) <= 2**-53


def test_normal_moments():
    z = normals(keys(200).repeat_interleave(500), torch.arange(500).repeat(200), 3)
    n = len(z)
    assert z.isfinite().all()
    assert abs(z.mean()) < 5 / n**0.5
    assert abs(z.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((z**3).mean()) < 5 * (15 / n) ** 0.5
    assert abs((z**4).mean() - 3) < 5 * (96 / n) ** 0.5
    assert (z.abs() > 3).double().mean() == pytest.approx(0.0027, abs=1e-3)


def test_neighbouring_numbers_are_uncorrelated():
    streams = CandidateStreams(keys(300), starts(*[4] * 300))
    draws = torch.stack([streams.site_normals().view(300, 12) for _ in range(20)])
    for a, b in [
        (draws[1:], draws[:-1]),
        (draws[:, 1:], draws[:, :-1]),
        (draws[..., 1:], draws[..., :-1]),
    ]:
        assert abs((a * b).mean()) < 5 / a.numel() ** 0.5


def test_no_number_repeats():
    """Across candidates, sites, directions, draws, kinds of draw, and with those of starts."""
    streams = CandidateStreams(keys(100), starts(*[6] * 100))
    numbers = torch.cat(
        [
            kind().flatten()
            for _ in range(20)
            for kind in (streams.site_normals, streams.crystal_normals)
        ]
    )
    assert len(numbers) == 20 * (1800 + 600) == 48000
    assert len(numbers.unique()) == len(numbers)
    other = CandidateStreams(keys(100, seed=1), starts(*[6] * 100))
    more = [other.site_normals().flatten() for _ in range(20)]
    slots = torch.arange(18).repeat(100)
    more += [normals(keys(100).repeat_interleave(18), slots, draw) for draw in range(1, 12)]
    assert len(torch.cat([numbers, *more]).unique()) == len(numbers) + 31 * 1800
