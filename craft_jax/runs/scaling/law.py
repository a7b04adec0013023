"""Loss as a sum of powers of size and data: fit, intervals, best split.

`loss = E + A N^-alpha + B D^-beta`, N parameters, D tokens read: approach 3
of Hoffmann et al. (arXiv:2203.15556, section 3.3 and appendix D.3).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.optimize

# Residuals of log loss beyond this count in proportion, not squared. Seeds of
# small models differ by about that (Hoffmann et al. take 0.001 for large ones).
HUBER = 0.01
CONSTANTS = 5  # of the law
COVERED = 0.9  # share of the bootstrap that an interval holds
_EXPONENTS = (0.02, 3.0)  # bounds of alpha and beta
_STARTS = np.geomspace(0.05, 2.0, 8)  # of each exponent
_POLISHED = 6  # best starts that are followed to their end
_LEAST = 10.0  # a term may be exp(-10) of the least loss, no less


@dataclasses.dataclass(frozen=True)
class Law:
  """`loss(N, D) = E + A N^-alpha + B D^-beta`.

  Attributes:
    E: loss of an endless model on endless data, in the unit of the loss.
    A: of the size.
    alpha: its power.
    B: of the data.
    beta: its power.
  """

  E: float
  A: float
  alpha: float
  B: float
  beta: float

  def loss(self, params, tokens):
    """The loss at numbers of parameters and of tokens read; they broadcast."""
    return self.E + self.A * params**-self.alpha + self.B * tokens**-self.beta


@dataclasses.dataclass(frozen=True)
class Cost:
  """`flops per token = scale N^power`: 6 and 1 of a model of products alone.

  Attributes:
    scale: FLOPs.
    power: of the parameters.
  """

  scale: float
  power: float

  def per_token(self, params):
    """FLOPs of training on a token."""
    return self.scale * params**self.power


@dataclasses.dataclass(frozen=True)
class Split:
  """How to spend a budget.

  Attributes:
    params: N.
    tokens: D.
    loss: by the law.
  """

  params: float
  tokens: float
  loss: float


def cost_of(params: np.ndarray, flops: np.ndarray) -> Cost:
  """The cost by size: a line through the logarithms.

  Args:
    params: of the runs.
    flops: theirs per token.
  """
  power, level = np.polyfit(np.log(params), np.log(flops), 1)
  return Cost(float(np.exp(level)), float(power))


def best_split(law: Law, cost: Cost, flops: float) -> Split:
  """The least loss for so many FLOPs.

  With D = flops / (c N^p) the derivative by log N is zero where
  `alpha A N^-alpha = p beta B D^-beta`.
  """
  spent = flops / cost.scale
  turn = law.alpha + cost.power * law.beta
  ratio = law.alpha * law.A / (cost.power * law.beta * law.B)
  # In logarithms: powers of a wild draw of the bootstrap may be large.
  log_params = (np.log(ratio) + law.beta * np.log(spent)) / turn
  params = float(np.exp(np.clip(log_params, 0.0, 100.0)))
  tokens = flops / cost.per_token(params)
  return Split(params, tokens, float(law.loss(params, tokens)))


def fit(params: np.ndarray, tokens: np.ndarray, loss: np.ndarray) -> Law:
  """The law nearest to the runs, in the Huber loss of log residuals.

  Every pair of exponents of a grid gives a start, with E, A and B by
  non-negative least squares; the best are followed downhill.
  """
  problem = _Problem(params, tokens, loss)
  return problem.law(problem.solve(problem.starts(), np.ones(len(loss))))


def bootstrap(
  params: np.ndarray,
  tokens: np.ndarray,
  loss: np.ndarray,
  groups: np.ndarray,
  draws: int = 200,
) -> list[Law]:
  """Laws of the same runs with random weights; the same ones each time.

  The Bayesian bootstrap (Rubin, Annals of Statistics 9, 1981): each group has
  a random weight of mean 1. To draw groups instead would often leave fewer
  sizes than the law has constants. The variance of the weights is G / (G - 5)
  of G groups, not 1, since the law has bent to the runs with 5 constants; with
  1 the intervals of 9 groups are a third too narrow.

  Args:
    params: by run.
    tokens: by run.
    loss: by run.
    groups: number of the group of each run, from 0; seeds of one setting
      share one. There are more than `CONSTANTS`.
    draws: how many laws.
  """
  problem, random = _Problem(params, tokens, loss), np.random.default_rng(0)
  count = int(groups.max()) + 1
  starts = problem.starts()
  whole = problem.solve(starts, np.ones(len(groups)))
  shape = (count - CONSTANTS) / count
  weights = random.gamma(shape, 1 / shape, (draws, count))
  return [
    problem.law(problem.solve([whole, starts[0]], weight[groups]))
    for weight in weights
  ]


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
  """The middle `COVERED` of the values."""
  low, high = np.quantile(values, [(1 - COVERED) / 2, (1 + COVERED) / 2])
  return float(low), float(high)


class _Problem:
  """The fit in the variables `log a, log b, log e, alpha, beta`.

  a and b are what the terms come to at the middle of the runs, which makes
  them almost independent of the exponents.
  """

  def __init__(self, params, tokens, loss):
    self._logs = np.log([params, tokens])
    self._middle = self._logs.mean(axis=1)
    self._x = self._logs - self._middle[:, None]  # [2, runs]
    self._loss = np.asarray(loss, float)
    self._log_loss = np.log(self._loss)
    low, high = _EXPONENTS
    least = self._log_loss.min()
    floor = least - _LEAST
    self._low = np.array([floor, floor, floor, low, low])
    self._high = np.array([np.inf, np.inf, least, high, high])

  def starts(self) -> list[np.ndarray]:
    """The grid, best first."""
    found: list[tuple[float, int, np.ndarray]] = []
    for alpha in _STARTS:
      for beta in _STARTS:
        terms = np.exp(-np.array([alpha, beta])[:, None] * self._x)
        columns = np.stack([*terms, np.ones_like(self._loss)], axis=1)
        shares, _ = scipy.optimize.nnls(
          columns / self._loss[:, None], np.ones_like(self._loss)
        )
        logs = np.log(np.maximum(shares, 1e-300))
        point = np.clip([*logs, alpha, beta], self._low, self._high)
        found.append((_huber(self._residuals(point)), len(found), point))
    return [point for _, _, point in sorted(found)[:_POLISHED]]

  def solve(self, starts: Sequence[np.ndarray], weight: np.ndarray):
    """The best end of the descents from some starts."""

    def rho(z):  # of squared residuals over HUBER squared: Huber's, weighted
      root = np.sqrt(np.maximum(z, 1.0))
      inside = z <= 1
      value = np.where(inside, z, 2 * root - 1)
      first = np.where(inside, 1.0, 1 / root)
      second = np.where(inside, 0.0, -0.5 / root**3)
      return np.stack([value, first, second]) * weight

    margin = 1e-9 * (1 + np.abs(self._low))
    ends = [
      scipy.optimize.least_squares(
        self._residuals,
        np.clip(start, self._low + margin, self._high - margin),
        self._jacobian,
        bounds=(self._low, self._high),
        loss=rho,
        f_scale=HUBER,
        xtol=1e-8,
        ftol=1e-8,
        gtol=1e-10,
        max_nfev=300,
      )
      for start in starts
    ]
    return min(ends, key=lambda end: end.cost).x

  def law(self, point: np.ndarray) -> Law:
    """Back from the variables of the fit."""
    a, b, e, alpha, beta = map(float, point)
    middle_n, middle_d = map(float, self._middle)
    return Law(
      float(np.exp(e)),
      float(np.exp(a + alpha * middle_n)),
      alpha,
      float(np.exp(b + beta * middle_d)),
      beta,
    )

  def _terms(self, point: np.ndarray) -> np.ndarray:
    """Logarithms of the three terms of each run, `[3, runs]`."""
    a, b, e, alpha, beta = point
    return np.stack(
      [
        a - alpha * self._x[0],
        b - beta * self._x[1],
        np.full_like(self._loss, e),
      ]
    )

  def _residuals(self, point: np.ndarray) -> np.ndarray:
    """Log of the law over the loss."""
    return np.logaddexp.reduce(self._terms(point)) - self._log_loss

  def _jacobian(self, point: np.ndarray) -> np.ndarray:
    terms = self._terms(point)
    share = np.exp(terms - np.logaddexp.reduce(terms))  # [3, runs]
    return np.stack([*share, *(-share[:2] * self._x)], axis=1)


def _huber(residuals: np.ndarray) -> float:
  size = np.abs(residuals)
  inside = size <= HUBER
  return np.where(inside, size**2 / 2, HUBER * (size - HUBER / 2)).sum()
