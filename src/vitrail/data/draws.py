"""Counter-based random numbers, a function of (seed, epoch, sample, stream): no state, any order.

A draw is a hash of its address, so a sample's augmentation is reproducible on any device, in any process and in any
batch. The hash is SplitMix64's finaliser (Steele, Lea and Flood 2014): each (seed, epoch, sample, stream) has
a 64-bit state, and its numbers are those of SplitMix64 from that state. Int64 arithmetic wraps, as in SplitMix64.
"""

# B samples · n numbers each · M single numbers

from __future__ import annotations

import copy
import hashlib
import math
from functools import cache

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)
_SAMPLES = 40  # bits of a sample's key that are its index; those above are its turn
_BITS = 24  # bits that a float32 in [0, 1) represents exactly


def _mix(words: Tensor) -> Tensor:
    """Apply SplitMix64's finaliser, a bijection of the 64-bit words."""
    words = (words ^ _shift(words, 30)) * _MIX1
    words = (words ^ _shift(words, 27)) * _MIX2
    return words ^ _shift(words, 31)


def _shift(words: Tensor, bits: int) -> Tensor:
    return (words >> bits) & ((1 << (64 - bits)) - 1)  # >> copies the sign, which an unsigned shift must not


@cache
def _hash(*parts: int | str) -> int:
    """Hash seed, epoch or stream to a 64-bit word; Python's hash() of a string changes with every process."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little", signed=True)


class Draws:
    """Random numbers of some samples in one epoch, on the device of `indexes`.

    `stream` names their purpose ("flip", "crop_area"…): the same stream always returns the same numbers, two streams are
    independent. Uniform numbers and integers are bit-exact across devices; normal and beta numbers agree up to the
    devices' log, cos and pow.
    """

    def __init__(
        self, *, seed: int, epoch: int, indexes: Int64[Tensor, " B"], turns: Int64[Tensor, " B"] | None = None
    ) -> None:
        """`turns` counts the earlier occurrences of each sample in this epoch; each occurrence has independent draws."""
        samples = indexes if turns is None else indexes + (turns << _SAMPLES)
        self._keys = _mix(samples * _GAMMA + _hash("sample", seed, epoch))  # (B,)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._keys)

    @property
    def device(self) -> torch.device:
        """Device on which numbers are drawn."""
        return self._keys.device

    def on(self, device: torch.device) -> Draws:
        """Return the same numbers, computed on another device."""
        draws = copy.copy(self)
        draws._keys = self._keys.to(device, non_blocking=True)
        return draws

    def uniform(self, stream: str, n: int = 1) -> Float[Tensor, "B n"]:
        """Draw uniform numbers in [0, 1), multiples of 2^-24."""
        return _to_uniform(self._words(stream, n))

    def normal(self, stream: str, n: int = 1) -> Float[Tensor, "B n"]:
        """Draw standard normal numbers."""
        return _to_normal(self._words(stream, n))

    def normal_at(self, stream: str, *, rows: Int64[Tensor, " M"], columns: Int64[Tensor, " M"]) -> Float[Tensor, " M"]:
        """Draw single entries of `normal(stream, n)`, without computing the rest."""
        return _to_normal(_mix(self._states(stream)[rows] + (columns + 1) * _GAMMA))

    def integers(self, stream: str, *, high: int | Int64[Tensor, " B"], n: int = 1) -> Int64[Tensor, "B n"]:
        """Draw uniform integers in 0 … high - 1; `high` is at most 2^24, one for all or one for each sample."""
        top = high[:, None] if isinstance(high, Tensor) else high
        return (_shift(self._words(stream, n), 64 - _BITS) * top) >> _BITS  # in integers: a float product may round up to high

    def beta(self, stream: str, alpha: float) -> Float[Tensor, " B"]:
        """Draw from Beta(alpha, alpha), exactly and without rejection.

        Bailey's (1994) polar t variate with 2 alpha degrees of freedom, √(2α (u^(-1/α) - 1)) cos 2πv, carried to the
        symmetric beta by x = (1 + t / √(2α + t²)) / 2 (Devroye 1996, "Random variate generation in one line of code").
        """
        if alpha <= 0:
            raise ValueError(f"Beta parameter {alpha} must be above 0")
        u, v = self.uniform(stream, 2).unbind(1)
        power = u.pow(1 / alpha)
        cosine = torch.cos(2 * math.pi * v)
        return 0.5 + 0.5 * cosine.sign() / torch.sqrt(1 + power / ((1 - power) * cosine.square()))

    def _words(self, stream: str, n: int) -> Tensor:
        counters = torch.arange(1, n + 1, device=self._keys.device)
        return _mix(self._states(stream)[:, None] + counters * _GAMMA)  # (B, n)

    def _states(self, stream: str) -> Tensor:
        return _mix(self._keys ^ _hash("stream", stream))  # (B,)


def _to_uniform(words: Tensor) -> Tensor:
    return _shift(words, 64 - _BITS).float() * 2.0**-_BITS


def _to_normal(words: Tensor) -> Tensor:
    """Transform words to normal numbers (Box and Muller 1958); the uniforms are the upper and the lower 24 bits."""
    radius = torch.sqrt(-2 * torch.log1p(-_to_uniform(words)))
    return radius * torch.cos(2 * math.pi * _to_uniform(words << (64 - _BITS)))


def permutation(count: int, *, seed: int, epoch: int) -> Int64[Tensor, " N"]:
    """Return the order of an epoch: samples sorted by their hash, independent of torch's version."""
    keys = _mix(torch.arange(count) * _GAMMA + _hash("order", seed, epoch))
    return torch.argsort(keys, stable=True)


def endless(items: Int64[Tensor, " n"], *, seed: int, start: int, count: int) -> Int64[Tensor, " count"]:
    """Return `count` entries, from `start` on, of an endless sequence of random permutations of the items."""
    first, last = start // len(items), -(-(start + count) // len(items))
    rounds = torch.arange(first, last)[:, None]
    keys = _mix(_mix(items * _GAMMA + _hash("endless", seed)) + (rounds + 1) * _GAMMA)  # (rounds, n)
    return items[keys.argsort(dim=1, stable=True)].flatten()[start - first * len(items) :][:count]
