"""Where a series takes a new level.

Seeded binary segmentation finds splits, narrowest interval first; each must then stand out of the noise of its two
sides, autocorrelation included, and be a jump rather than a part of a slope, a spike or a tail.

PELT (`ruptures`, in C, its penalty from the noise here) is no replacement: on 10,000 autocorrelated values without a
change it takes twenty times as long, and over the noises of `benchmarks/answers/drift.py` it has eight times the
false alarms, most of them on slopes, and a lower F1.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
from scipy import special, stats
from scipy.ndimage import median_filter

from stagetrace.analysis.arrays import Floats, Indices

SHORTEST: Final = 4  # values in a segment: fewer are a spike, not a level
ALARMS: Final = 0.01  # how many false changes one series without change may give, on average
_PRIOR_DF: Final = 8.0  # weight of the noise of the whole series in that of one segment, in degrees of freedom
_CANDIDATE: Final = 0.75  # share of the final threshold that makes a split worth testing
_SMOOTHEST: Final = 0.95  # beyond this autocorrelation a noise is a random walk, and has no level
# Values, and the autocorrelation that at most is taken for one: in few values two steps alone look like it.
_VALUES: Final = (60, 200)
_AT_MOST: Final = (0.5, _SMOOTHEST)
_SPIKE: Final = 3.5  # standard deviations from the running median
_NEARBY: Final = 40  # values on either side that decide between a jump and a slope
_FAR: Final = 30  # values on either side whose noise a segment is taken to have
_RANKED: Final = 2000  # values on either side whose ranks are compared
_GRID: Final = 64  # splits of an interval that are looked at
_FEW: Final = 8  # values of one side, or of both, whose ranks are compared exactly
_EXACT: Final = 80
_QUIETEST: Final = 1e-9  # noise, in ranges of the series: of rounding
_KNEES: Final = 7  # where a slope may begin or end
_BLOCKS: Final = 500  # means on either side that a jump is told from a slope by
_JUMP: Final = 1e-4  # chance at which a jump between two slopes is none


Checked = dict[tuple[int, int, int], bool]


def despiked(values: Floats) -> Floats:
    """Clip what stands out of the running median of seven values by more than _SPIKE deviations.

    A run of up to three spikes is thus no level, while a step stays where it is (Hampel 1974).
    """
    if len(values) < 2 * SHORTEST:
        return values
    middle = median_filter(values, size=7, mode="nearest")
    off = values - middle
    scale = max(spread(off), noise_of_differences(values))
    return middle + np.clip(off, -_SPIKE * scale, _SPIKE * scale) if scale > 0 else values


def spread(off: Floats) -> float:
    """Return a standard deviation from the median of absolute values."""
    return float(np.median(np.abs(off))) / 0.6745 if len(off) else 0.0


def trimmed(differences: Floats) -> float:
    """Return the standard deviation of the values other than 0, from their smallest 85 %: the rest may be steps."""
    squares = np.sort(differences * differences)
    kept = squares[: max(1, int(0.85 * len(squares)))]
    return float(np.sqrt(kept.mean() / 0.5605)) if len(kept) else 0.0


def noise_of_differences(values: Floats) -> float:
    """Return the deviation of the noise from neighbouring values, which steps hardly change."""
    return trimmed(np.diff(values)) / 2**0.5


class Noise:
    """The noise of a series as a first-order autoregression, from differences (Chakar et al. 2017): blind to steps."""

    def __init__(self, values: Floats) -> None:
        """Take the autocorrelation from differences at lags 1, 2 and 4, and the deviation that fits it."""
        near = trimmed(np.diff(values)) ** 2 / 2
        self.rho = self.autocorrelation(values, near)
        self.deviation = float(np.sqrt(near / (1 - self.rho)))

    @staticmethod
    def autocorrelation(values: Floats, near: float) -> float:
        """Return the lag-1 autocorrelation: differences at lag 2k over lag k have variances in the ratio 1 + rho**k."""
        if near <= 0:
            return 0.0
        guess = 0.0
        for lag in (1, 2):
            if len(values) < 12 * lag:
                break
            one, two = trimmed(values[lag:] - values[:-lag]), trimmed(values[2 * lag :] - values[: -2 * lag])
            share = (two / one) ** 2 - 1 if one > 0 else 0.0
            guess = max(guess, max(share - 0.5 / np.sqrt(len(values)), 0.0) ** (1 / lag) if lag > 1 else share)
        return float(np.clip(guess, 0.0, np.interp(len(values), _VALUES, _AT_MOST)))

    def of_mean(self, size: Any) -> Any:
        """Return the variance of the mean of `size` neighbours, in variances of one value."""
        rho, size = self.rho, np.asarray(size, dtype=float)
        return ((1 + rho) / (1 - rho) - 2 * rho * (1 - rho**size) / (size * (1 - rho) ** 2)) / size

    def of_contrast(self, left: Any, right: Any) -> Any:
        """Return the variance of the difference of two adjacent means, in variances of one value."""
        rho = self.rho
        left, right = np.asarray(left, dtype=float), np.asarray(right, dtype=float)
        shared = rho * (1 - rho**left) * (1 - rho**right) / (1 - rho) ** 2 / (left * right)
        return self.of_mean(left) + self.of_mean(right) - 2 * shared


def intervals(size: int) -> list[tuple[int, Indices]]:
    """Return seeded intervals as (length, starts), which overlap by half (Kovács et al. 2023, Biometrika 110)."""
    lengths: list[int] = []
    length = float(2 * SHORTEST)
    while length < size:
        lengths.append(int(length))
        length = max(length * 1.4142, int(length) + 1)
    found = []
    for each in [*lengths, size]:
        count = max(1, int(np.ceil((size - each) / (each / 2))) + 1)
        found.append((each, np.unique(np.linspace(0, size - each, count).astype(np.int64))))
    return found


def candidates(values: Floats, noise: Noise, threshold: float) -> Indices:
    """Return splits whose contrast passes the threshold, narrowest interval first (Baranowski et al. 2019, NOT)."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    rows = []
    for length, starts in intervals(len(values)):
        inner = np.arange(SHORTEST, length - SHORTEST + 1)
        if len(inner) > _GRID:  # a coarse grid: where exactly is settled afterwards
            inner = np.unique(np.linspace(inner[0], inner[-1], _GRID).astype(np.int64))
        scale = noise.deviation * np.sqrt(noise.of_contrast(inner, length - inner))
        for part in np.array_split(starts, max(1, len(starts) * len(inner) // 2_000_000)):
            at = part[:, None] + inner[None, :]
            low, high = sums[part][:, None], sums[part + length][:, None]
            ratio = np.abs((sums[at] - low) / inner - (high - sums[at]) / (length - inner)) / scale
            best = ratio.argmax(axis=1)
            top = ratio[np.arange(len(part)), best]
            rows += [
                (length, -float(top[index]), int(part[index]), int(part[index] + inner[best[index]]))
                for index in np.flatnonzero(top > threshold)
            ]
    rows.sort()
    return chosen(rows, len(values))


def chosen(rows: list[tuple[int, float, int, int]], size: int) -> Indices:
    """Return the splits of rows (length, -ratio, start, split), but where an interval holds an earlier one."""
    taken = np.zeros(size + 1, dtype=bool)
    for length, _, start, split in rows:
        if not taken[start + 1 : start + length].any():
            taken[split] = True
    return np.flatnonzero(taken)


class Segments:
    """The series cut at `splits`, with the sums that tests of a cut need."""

    def __init__(self, values: Floats, splits: Indices, noise: Noise) -> None:
        """Sum each segment up."""
        self.values, self.splits, self.noise = values, splits, noise
        edges = np.concatenate([[0], splits, [len(values)]])
        self.sizes = np.diff(edges)
        self.means = np.add.reduceat(values, edges[:-1]) / self.sizes
        self.residuals = values - np.repeat(self.means, self.sizes)
        self.squares = np.add.reduceat(self.residuals**2, edges[:-1])

    def p_values(self) -> Floats:
        """Return for each cut the chance of its contrast under the noise of its two segments (Welch), two-sided."""
        left, right = self.sizes[:-1], self.sizes[1:]
        variances = self.variances()
        share = self.noise.of_contrast(left, right) / (1 / left + 1 / right)
        error = np.sqrt(share * (variances[:-1] / left + variances[1:] / right))
        freedom = _PRIOR_DF + (left + right - 2) * np.minimum(1.0, (1 - self.noise.rho) / (1 + self.noise.rho))
        step = np.abs(np.diff(self.means))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(step > 0, step / error, 0.0)
        return np.asarray(2 * special.stdtr(freedom, -ratio))

    def variances(self) -> Floats:
        """Return the variance of the noise in each segment, drawn towards that around it where it is short."""
        freedom = np.maximum(self.sizes * (1 - self.noise.of_mean(self.sizes)), 0.0)
        sums = np.concatenate([[0.0], np.cumsum(self.residuals**2)])
        edges = np.concatenate([[0], self.splits, [len(self.values)]])
        low, high = np.maximum(edges[:-1] - _FAR, 0), np.minimum(edges[1:] + _FAR, len(self.values))
        around = (sums[high] - sums[low]) / (high - low) / max(float(freedom.sum()) / len(self.values), 0.1)
        around = np.maximum(around, self.noise.deviation**2)
        return np.asarray((_PRIOR_DF * around + self.squares) / (_PRIOR_DF + freedom))


def is_level(values: Floats, split: int, start: int, end: int, noise: Noise, limit: float) -> bool:
    """Return whether the split is a jump, and its two sides differ in rank as well: tails make no level."""
    if not is_jump(values, split, start, end, noise):
        return False
    before, after = values[max(start, split - _RANKED) : split], values[split : min(end, split + _RANKED)]
    small, total = min(len(before), len(after)), len(before) + len(after)
    is_exact = small <= _FEW or total <= _EXACT
    chance = float(stats.mannwhitneyu(before, after, method="exact" if is_exact else "asymptotic").pvalue)
    # Sides that hardly overlap are as different as ranks can be.
    return chance <= max(3 * limit, 2.5 / float(special.comb(total, small)))


def is_jump(values: Floats, split: int, start: int, end: int, noise: Noise) -> bool:
    """Return whether the split is a jump: better than any slope of the two segments, or clear between two slopes."""
    at, part, weights = _blocks(values, split, start, end)
    if _rest(at >= 0, part, weights) <= _hinge(at, part, weights)[0]:
        return True
    low, high = max(start, split - _NEARBY), min(end, split + _NEARBY)
    at = np.arange(low - split, high - split, dtype=float)
    if len(at) < 4 * SHORTEST:
        return False
    rest, ratio = left_over(values[low:high], at >= 0, at, at * (at >= 0))
    freedom = (len(at) - 4) * (1 - noise.rho) / (1 + noise.rho)
    return rest <= 0 or 2 * special.stdtr(max(freedom, 1.0), -ratio / np.sqrt(noise.of_mean(len(at)) * len(at))) < _JUMP


def _blocks(values: Floats, split: int, start: int, end: int) -> tuple[Floats, Floats, Floats]:
    """Return the values on both sides of a split as means of at most _BLOCKS each: where, what, and of how many.

    A split is tested as often as one next to it is dropped; of all values, that would take the square of their number.
    """
    found: list[tuple[Floats, Floats, Floats]] = []
    for low, high in ((start, split), (split, end)):
        width = -(-(high - low) // _BLOCKS)
        edges = np.arange(low, high, width)
        sizes = np.diff(np.append(edges, high)).astype(float)
        found.append((edges - split + (sizes - 1) / 2, np.add.reduceat(values[low:high], edges - low) / sizes, sizes))
    at, means, sizes = (np.concatenate(some) for some in zip(*found, strict=True))
    return at, means, sizes


def hinge(values: Floats) -> tuple[float, int, int]:
    """Return the best line that is flat but for one slope, at its beginning or its end: (sum of squares, from, to)."""
    size = len(values)
    rest, low, high = _hinge(np.arange(size, dtype=float), values, np.ones(size))
    return rest, max(round(low), 0), min(round(high), size)


def _hinge(at: Floats, values: Floats, weights: Floats) -> tuple[float, float, float]:
    """Return the same of weighted values at such places."""
    first, last = float(at[0]), float(at[-1]) + 1
    best = (_rest(at, values, weights), first, last)
    for knee in np.unique(np.linspace(first, last, _KNEES + 2)[1:-1].astype(int)):
        for column, low, high in ((np.maximum(at - knee, 0), knee, last), (np.minimum(at - knee, 0), first, knee)):
            rest = _rest(column, values, weights)
            if rest < best[0]:
                best = (rest, float(low), float(high))
    return best


def _rest(column: Any, values: Floats, weights: Floats) -> float:
    """Return the sum of weighted squares that a constant and one column leave."""
    total = weights.sum()
    off, x = values - weights @ values / total, np.asarray(column, dtype=float)
    x = x - weights @ x / total
    of_x, of_off = float(weights @ (x * x)), float(weights @ (off * off))
    return max(of_off - float(weights @ (x * off)) ** 2 / of_x, 0.0) if of_x > 0 else of_off


def left_over(values: Floats, *columns: Any) -> tuple[float, float]:
    """Return the sum of squares that a constant and the columns leave, and the t ratio of the first column."""
    design = np.column_stack([*columns, np.ones(len(values))]).astype(float)
    fit = np.linalg.lstsq(design, values, rcond=None)[0]
    rest = float(((values - design @ fit) ** 2).sum())
    freedom = max(len(values) - design.shape[1], 1)
    error = np.sqrt(rest / freedom * np.linalg.pinv(design.T @ design)[0, 0])
    return rest, float(abs(fit[0]) / error) if error > 0 else np.inf


def pruned(values: Floats, splits: Indices, noise: Noise, limit: float) -> Indices:
    """Drop splits until each stands out of the noise: of neighbours that do not, the least likely first."""
    while len(splits):
        chance = np.concatenate([[-1.0], Segments(values, splits, noise).p_values(), [-1.0]])
        worst = (chance > limit) & (chance >= np.roll(chance, 1)) & (chance > np.roll(chance, -1))
        if not worst[1:-1].any():
            worst = chance > limit
        if not worst[1:-1].any():
            break
        splits = splits[~worst[1:-1]]
    return splits


def confirmed(values: Floats, splits: Indices, noise: Noise, limit: float, checked: Checked) -> Indices:
    """Drop the splits that only divide a slope or cut off a tail; of neighbours the smaller step first.

    `checked` keeps what was found out of (start, split, end).
    """
    kept = [int(split) for split in splits]
    while kept:
        edges = [0, *kept, len(values)]
        bad = []
        for place in range(1, len(edges) - 1):
            key = (edges[place - 1], edges[place], edges[place + 1])
            if key not in checked:
                checked[key] = is_level(values, key[1], key[0], key[2], noise, limit)
            if not checked[key]:
                bad.append((abs(values[key[1] : key[2]].mean() - values[key[0] : key[1]].mean()), place))
        if not bad:
            break
        gone: set[int] = set()
        for _, place in sorted(bad):
            if not gone & {place - 1, place + 1}:
                gone.add(place)
        kept = [split for place, split in enumerate(kept, 1) if place not in gone]
    return np.asarray(kept, dtype=np.int64)


def settled(values: Floats, splits: Indices) -> Indices:
    """Move each split to where the contrast of its two segments is largest."""
    edges = [0, *(int(split) for split in splits), len(values)]
    for place in range(1, len(edges) - 1):
        low, high = edges[place - 1], edges[place + 1]
        edges[place] = low + best_split(values[low:high])
    return np.asarray(edges[1:-1], dtype=np.int64)


def best_split(part: Floats) -> int:
    """Return the split of the part with the largest likelihood of two levels."""
    sums, size = np.cumsum(part), len(part)
    left = np.arange(SHORTEST, size - SHORTEST + 1)
    before = sums[left - 1] / left
    after = (sums[-1] - sums[left - 1]) / (size - left)
    return int(left[np.argmax((before - after) ** 2 * left * (size - left))])


def missed(values: Floats, splits: Indices) -> Indices:
    """Return the splits and the best one inside each segment that is long enough for one."""
    edges = [0, *(int(split) for split in splits), len(values)]
    new = [low + best_split(values[low:high]) for low, high in pairwise(edges) if high - low >= 2 * SHORTEST]
    return np.union1d(splits, np.asarray(new, dtype=np.int64))


class Levels(NamedTuple):
    """Where new levels begin, how likely each would be by chance in a series of this length, and the noise."""

    starts: Indices
    p_values: Floats
    noise: Noise  # of values divided by `unit`
    unit: float


def levels(values: Floats, alarms: float = ALARMS) -> Levels:
    """Return the levels of finite values; in a series without any, `alarms` of them are found on average."""
    size = len(values)
    clean = despiked(values / max(float(np.abs(values).max(initial=0)), 1e-300))
    unit = float(np.ptp(clean)) if size else 0.0
    if size < 2 * SHORTEST or unit == 0:
        return Levels(np.zeros(0, dtype=np.int64), np.zeros(0), Noise(np.zeros(1)), 0.0)
    clean = (clean - np.median(clean)) / unit
    unit *= float(np.abs(values).max())
    noise = Noise(clean)
    noise.deviation = max(noise.deviation, _QUIETEST)
    limit = alarms / size
    splits = candidates(clean, noise, -_CANDIDATE * float(special.ndtri(limit / 2)))
    checked: Checked = {}
    for _ in range(4):
        before = splits
        splits = settled(clean, pruned(clean, splits, noise, limit))
        splits = confirmed(clean, splits, noise, limit, checked)
        splits = pruned(clean, missed(clean, splits), noise, limit)
        if np.array_equal(splits, before):
            break
    splits = confirmed(clean, pruned(clean, settled(clean, splits), noise, limit), noise, limit, checked)
    chances = Segments(clean, splits, noise).p_values() if len(splits) else np.zeros(0)
    places = size * np.log2(size)  # at which a level may begin, and how long it may be
    return Levels(splits, np.minimum(chances * places, 1.0), noise, unit)
