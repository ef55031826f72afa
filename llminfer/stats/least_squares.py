"""Least squares of what a simulation answers, which it does in small jumps."""

import math
from collections.abc import Callable

import numpy as np

from llminfer.base.arrays import FloatArray

_ROBUST = 0.05  # errors above it count linearly, not squared
_ROUNDS, _CLOUDS = 7, 2  # of the search; bundles of directions in each round
_WIDE, _FURTHEST = 0.3, 1.0  # widest cloud and longest step


def robust(errors: FloatArray) -> FloatArray:
    """The root of the soft-L1 loss, so that its squares add up to it.

    >>> robust(np.array([-0.001, 0.0, 5.0])).round(3).tolist()
    [-0.001, 0.0, 0.704]
    """
    scaled = errors / _ROBUST
    root = np.sqrt(2.0 * (np.sqrt(1.0 + scaled**2) - 1.0))
    return np.asarray(_ROBUST * np.sign(scaled) * root)


def least_squares(
    residuals: Callable[[FloatArray], FloatArray], start: FloatArray, unsure: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Where squared residuals have the least sum, the Jacobian and residuals there.

    A simulation answers in small jumps. So each round looks at a cloud of points, as
    wide as the place is unsure after the round before; a plane through their residuals
    gives the derivatives and the next point.

    Args:
        residuals: Of a point of shape (n,).
        start: The first point; a step of 1 is long.
        unsure: The standard error of a residual, which makes the clouds' width.

    >>> at, _, _ = least_squares(lambda x: x - np.array([0.5, 2.0]), np.zeros(2), 0.01)
    >>> at.round(6).tolist()
    [0.5, 2.0]
    """
    rng, size = np.random.default_rng(0), len(start)
    at, spread, best = start, _WIDE * np.eye(size), (math.inf, start, start)
    for last in range(_ROUNDS + 1):
        if (cost := float((here := residuals(at)) @ here)) < best[0]:
            best = cost, at, here
        if last == _ROUNDS:
            at = best[1]  # the derivatives where they are reported
        bundles = np.linalg.qr(rng.normal(size=(_CLOUDS, size, size)))[0]
        moves = math.sqrt(size) * np.concatenate(bundles) @ spread.T
        moves = np.concatenate((moves, -moves))
        seen = [residuals(at + move) for move in moves]
        plane = np.column_stack((np.ones(len(moves)), moves))
        fitted = np.linalg.lstsq(plane, np.stack(seen))[0]
        middle, slopes = fitted[0], np.asarray(fitted[1:].T, np.float64)
        step = -np.linalg.lstsq(slopes, middle)[0]
        at = at + step * min(1.0, _FURTHEST / float(np.abs(step).max()))
        spread[:] = unsure * np.linalg.cholesky(np.linalg.inv(slopes.T @ slopes))
        spread *= min(1.0, _WIDE / float(np.sqrt((spread**2).sum(axis=1)).max()))
    return best[1], slopes, best[2]
