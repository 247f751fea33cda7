"""Measured powder patterns: what they hold, how they are read, and what is refused.

Formats by content: columns of numbers (xy, xye, csv; any separator, lines of text before and
comments are passed over) and PANalytical's xrdml. Intensities may be counts or anything
proportional to them; where no errors are given, the noise is estimated from the pattern itself.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from langevin_xtal.config.solving import TUBE
from langevin_xtal.diffraction.radiation import Radiation, radiation
from langevin_xtal.errors import DataError

FloatArray = NDArray[np.float64]

FEWEST_POINTS = 50
MOST_POINTS = 1_000_000
MOST_BYTES = 64 * 1024 * 1024
PEAK_SIGNAL = 6.0
"""Height above the background, in standard errors, of what counts as a peak."""
ERROR_FLOOR = 1e-3
"""Least error of a point, as a share of the highest intensity."""
POINTS_PER_WIDTH = 3.5
"""Points that a full width at half maximum keeps when a pattern is made coarser."""

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eEdD][+-]?\d+)?"
_ROW = re.compile(rf"^\s*{_NUMBER}(?:[\s,;]+(?:{_NUMBER}|nan|inf))+[\s,;]*$", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Pattern:
    """Intensities over the diffraction angle.

    Raises
    ------
    DataError
        For arrays that do not fit each other, angles outside 0 to 180 degrees or not increasing,
        fewer than 50 points, numbers that are not finite, errors that are not positive.
    """

    two_theta: FloatArray  #: (N,) [degrees], increasing
    intensity: FloatArray  #: (N,)
    error: FloatArray  #: (N,) standard errors of the intensities
    radiation: Radiation
    name: str = "pattern"

    @classmethod
    def of(
        cls,
        two_theta: ArrayLike,
        intensity: ArrayLike,
        error: ArrayLike | None = None,
        *,
        wavelength: str | float | Radiation = TUBE,
        name: str = "pattern",
    ) -> Pattern:
        """A pattern of (N,) angles [degrees] and intensities, checked.

        Parameters
        ----------
        error
            (N,) standard errors; by default estimated.
        wavelength
            A tube such as ``"CuKa"``, or Å.
        """
        x, y = np.asarray(two_theta, dtype=float), np.asarray(intensity, dtype=float)
        given = None if error is None else np.asarray(error, dtype=float)
        _check(name, x, y, given)
        source = wavelength if isinstance(wavelength, Radiation) else radiation(wavelength)
        return cls(x, y, estimated_error(y) if given is None else given, source, name)

    def __len__(self) -> int:
        return len(self.two_theta)

    def within(self, low: float, high: float) -> Pattern:
        """The part between two angles [degrees]."""
        inside = (self.two_theta >= low) & (self.two_theta <= high)
        if inside.sum() < FEWEST_POINTS:
            raise DataError(
                f"{self.name}: {int(inside.sum())} points lie between {low:g} and {high:g} "
                f"degrees; give a range with {FEWEST_POINTS} or more"
            )
        return replace(
            self,
            two_theta=self.two_theta[inside],
            intensity=self.intensity[inside],
            error=self.error[inside],
        )

    def coarser(self, step: float) -> Pattern:
        """Neighbouring points averaged so that they lie about ``step`` degrees apart."""
        count = int(step / float(np.median(np.diff(self.two_theta))) + 1e-6)
        if count < 2 or len(self) // count < FEWEST_POINTS:
            return self
        size = len(self) // count * count
        parts = [
            array[:size].reshape(-1, count)
            for array in (self.two_theta, self.intensity, self.error)
        ]
        error = np.sqrt((parts[2] ** 2).sum(axis=1)) / count
        return replace(
            self,
            two_theta=parts[0].mean(axis=1),
            intensity=parts[1].mean(axis=1),
            error=error,
        )


def estimated_error(intensity: FloatArray) -> FloatArray:
    """(N,) standard errors by the scatter of neighbouring points.

    Variance is taken as proportional to intensity, as of counts on any scale; the factor is the
    median of squared second differences over intensities, with a floor.
    """
    y = np.maximum(intensity, 0.0)
    smooth = np.convolve(np.pad(y, 2, mode="edge"), np.full(5, 0.2), mode="valid")
    second = y[:-2] - 2 * y[1:-1] + y[2:]
    quiet = smooth[1:-1] <= np.median(smooth)
    positive = quiet & (smooth[1:-1] > 0)
    factor = 0.0
    if positive.any():
        # the median of chi squared with one degree of freedom is 0.455, the variance of a second
        # difference six times that of a point
        factor = float(np.median(second[positive] ** 2 / smooth[1:-1][positive])) / (0.455 * 6)
    floor = ERROR_FLOOR * float(y.max())
    # counts of nothing are known to about one count
    least = factor * max(float(np.median(smooth)), factor)
    return np.sqrt(np.maximum(np.maximum(factor * smooth, least), floor**2))


def background_of(intensity: FloatArray, step: float, width: float = 4.0) -> FloatArray:
    """(N,) a smooth lower envelope: medians of the lower half in windows of ``width`` degrees."""
    size = max(5, int(width / step))
    starts = np.arange(0, len(intensity), max(1, size // 2))
    centres: list[int] = []
    levels: list[float] = []
    for start in starts.tolist():
        part = np.sort(intensity[max(0, start - size // 2) : start + size // 2 + 1])
        centres.append(min(start, len(intensity) - 1))
        levels.append(float(part[: max(1, len(part) // 3)].mean()))
    return np.interp(np.arange(len(intensity)), np.array(centres), np.array(levels))


def peak_width(pattern: Pattern) -> float:
    """Median full width at half maximum [degrees] of the strong peaks, overlaps included.

    Raises
    ------
    DataError
        When nothing rises above the noise.
    """
    from scipy.signal import find_peaks, peak_widths

    step = float(np.median(np.diff(pattern.two_theta)))
    y = pattern.intensity - background_of(pattern.intensity, step)
    # a running mean of about a tenth of a degree, so that noise makes no peaks
    size = max(1, round(0.06 / step))
    smooth = np.convolve(np.pad(y, size, mode="edge"), np.full(size, 1 / size), mode="same")
    smooth = smooth[size:-size]
    error = float(np.median(pattern.error)) / math.sqrt(size)
    high = max(PEAK_SIGNAL * error, 0.02 * float(smooth.max()))
    found, _ = find_peaks(smooth, height=high, prominence=high)
    if not len(found):
        raise DataError(
            f"{pattern.name} has no peaks above its noise; give a powder pattern with peaks, "
            "angles in the first column and intensities in the second"
        )
    order = found[np.argsort(-smooth[found])][:20]
    widths = peak_widths(smooth, order, rel_height=0.5)[0] * step
    return float(np.clip(np.quantile(widths, 0.4), 0.02, 2.0))


def read_pattern(
    path: str | os.PathLike[str], *, wavelength: str | float | None = None
) -> Pattern:
    """Read a file of columns (xy, xye, csv) or xrdml.

    Parameters
    ----------
    wavelength
        A tube such as ``"CuKa"``, or Å; by default what the file says, and Cu Kα otherwise.

    Raises
    ------
    DataError
        For a file that is missing, too large or no pattern; the message says what is wrong.
    """
    path = Path(path)
    try:
        if not path.is_file():
            problem = "is no file" if path.exists() else "does not exist"
            raise DataError(f"{path} {problem}; give a powder pattern (xy, xye, csv or xrdml)")
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path} has more than {MOST_BYTES // 2**20} MB; patterns are smaller")
        text = path.read_bytes().decode("utf-8-sig", "replace")
    except OSError as failure:
        raise DataError(f"{path} cannot be read: {failure.strerror or failure}") from None
    if text.lstrip()[:1] == "<":
        columns, stated = _xrdml(text, path.name)
    else:
        columns, stated = _columns(text, path.name), None
    x, y, error = columns
    chosen: Any = wavelength if wavelength is not None else stated or TUBE
    return Pattern.of(x, y, error, wavelength=chosen, name=path.name)


def _columns(text: str, name: str) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    rows: list[list[float]] = []
    for line in text.splitlines():
        if not _ROW.match(line):
            continue
        parts = re.split(r"[\s,;]+", line.strip().strip(",;").strip())
        rows.append([float(part.lower().replace("d", "e")) for part in parts[:3]])
        if len(rows) > MOST_POINTS:
            raise DataError(f"{name} has more than {MOST_POINTS} points; patterns have fewer")
    if not rows:
        raise DataError(
            f"{name} has no lines of two or three numbers; give angles [degrees] and intensities "
            "as columns, or xrdml"
        )
    width = min(len(row) for row in rows)
    table = np.array([row[:width] for row in rows])
    error = table[:, 2] if width == 3 else None
    if error is not None and np.isfinite(error).all() and not (error > 0).all():
        # programs write 0 for points without a count
        error = None if not (error > 0).any() else np.where(
            error > 0, error, error[error > 0].min()
        )  # fmt: skip
    return table[:, 0], table[:, 1], error


def _xrdml(
    text: str, name: str
) -> tuple[tuple[FloatArray, FloatArray, FloatArray | None], float | str | None]:
    """Angles and counts of the first scan, and the wavelength the file states."""
    from xml.etree import ElementTree

    # entities can make a small file huge; no pattern needs a document type
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(f"{name} declares XML entities, which no pattern needs; remove them")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise DataError(f"{name} is no sound XML: {error}") from None

    def found(parent: Any, tag: str) -> Any:
        return next((e for e in parent.iter() if str(e.tag).rsplit("}", 1)[-1] == tag), None)

    points = found(root, "dataPoints")
    if points is None:
        raise DataError(f"{name} is XML without dataPoints; give an xrdml file with a scan")
    counts = next(
        (e for tag in ("counts", "intensities") if (e := found(points, tag)) is not None), None
    )
    try:
        y = np.array(
            [float(v) for v in ((counts.text if counts is not None else "") or "").split()]
        )
        axis = next(
            e
            for e in points.iter()
            if str(e.tag).rsplit("}", 1)[-1] == "positions" and e.get("axis") == "2Theta"
        )
        places = found(axis, "listPositions")
        if places is not None:
            x = np.array([float(v) for v in (places.text or "").split()])
        else:
            start, end = (float(found(axis, t).text) for t in ("startPosition", "endPosition"))
            x = np.linspace(start, end, len(y))
        alpha1, alpha2, ratio = (
            None if (e := found(root, t)) is None or e.text is None else float(e.text)
            for t in ("kAlpha1", "kAlpha2", "ratioKAlpha2KAlpha1")
        )
    except (StopIteration, ValueError, AttributeError, TypeError):
        raise DataError(
            f"{name} has no 2Theta positions with counts; give an xrdml file of one powder scan"
        ) from None
    stated: Any = alpha1
    if alpha1 and alpha2 and ratio:
        stated = Radiation(((alpha1, 1 / (1 + ratio)), (alpha2, ratio / (1 + ratio))), "file")
    return (x, y, None), stated


def _check(name: str, x: FloatArray, y: FloatArray, error: FloatArray | None) -> None:
    if x.ndim != 1 or x.shape != y.shape or (error is not None and error.shape != x.shape):
        raise DataError(f"{name} has {x.size} angles and {y.size} intensities; give one for each")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        bad = int(np.argmax(~(np.isfinite(x) & np.isfinite(y)))) + 1
        raise DataError(f"{name}: point {bad} is no number; give finite angles and intensities")
    if len(x) < FEWEST_POINTS:
        raise DataError(f"{name} has {len(x)} points; give {FEWEST_POINTS} or more")
    if len(x) > MOST_POINTS:
        raise DataError(f"{name} has {len(x)} points; the most is {MOST_POINTS}")
    if x.min() < 0 or x.max() > 180:
        raise DataError(
            f"{name} has angles from {x.min():g} to {x.max():g}; give 2θ in degrees, 0 to 180"
        )
    if not (np.diff(x) > 0).all():
        k = int(np.argmax(np.diff(x) <= 0)) + 1
        raise DataError(
            f"{name}: angles do not increase from point {k} ({x[k - 1]:g}) to {k + 1} ({x[k]:g}); "
            "sort them, one scan per file"
        )
    if error is not None and not (np.isfinite(error).all() and (error > 0).all()):
        raise DataError(f"{name} has errors that are not positive; leave the third column out")
    if not y.max() > 0:
        raise DataError(f"{name} has no positive intensity; give a powder pattern with peaks")
