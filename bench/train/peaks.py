#!/usr/bin/env python3
"""Learns the weights of the agent's peak predictor (agent/src/estimate/peak/weights.rs) from recorded days.

    pip install numpy scipy numba
    bench/train/peaks.py DAY.csv... --validate 6            # in six parts: learn on all but one, and score on that one
    bench/train/peaks.py DAY.csv... --rust weights.rs       # learn on all days and write the table

A day has a row a task and a number a sample of five minutes, in percent of the task's limit. Two things are learned:

1. for one task, the chance that it rises by more than so much of its limit within the next hour (one hidden layer of tanh, then logistic);
2. for a node, the peak of the next hour as a linear function of shapes of the last day. It starts as the 0.988 quantile and
   is then moved to the least of what is judged: the sum of predictions, and a price for each that is too low.

The shapes are the same, in the same order, as those of agent/src/estimate/peak/{chances,features}.rs.
"""
import argparse
import os

import numpy as np
from numba import njit
from scipy.optimize import minimize

HOUR, WARM_UP, DAY = 12, 24, 288
RISES = (10.0, 20.0, 35.0, 50.0, 70.0)  # percent of the limit
RISKS = (0.001, 0.003, 0.01, 0.03)
TASKS_PER_NODE = (10, 30)
PRICE = {10: 9.0, 30: 5.0}  # of one too low, in mean peaks
BUDGETS = (0.001, 0.003, 0.01, 0.03, 0.1)

# --- what is known of one task at sample t -------------------------------------------------------------------------------
(NOW, MEAN_6, MEAN_24, MEAN, MAX_3, MAX_6, MAX_12, MAX_24, MAX, DEV, DEV_24, STEP, THIRD, VAR_12, STEP_SQ, THIRD_24) = range(16)
CHANCE_OF = (NOW, MEAN_6, MEAN_24, MEAN, MAX_3, MAX_6, MAX_12, MAX_24, MAX, DEV, DEV_24, STEP)


@njit
def task_stats(rows, times, out, rise):
    for i in range(rows.shape[0]):
        for j in range(len(times)):
            t = times[j]
            x = rows[i, :t]
            f = out[i, j]
            day = x
            two = x[max(0, t - 24):]
            f[0], f[1], f[2], f[3] = x[t - 1], x[max(0, t - 6):].mean(), two.mean(), day.mean()
            f[4], f[5], f[6] = x[max(0, t - 3):].max(), x[max(0, t - 6):].max(), x[max(0, t - 12):].max()
            f[7], f[8] = two.max(), day.max()
            f[9], f[10] = day.std(), two.std()
            steps = np.diff(two)
            if len(steps) > 0:
                f[11], f[14] = np.abs(steps).mean(), (steps**2).mean()
            f[12] = ((day - f[3]) ** 3).mean()
            f[13] = x[max(0, t - 12):].var()
            f[15] = ((two - f[2]) ** 3).mean()
            rise[i, j] = rows[i, t:t + 12].max() - f[1]


def chance_inputs(stats, times):
    """Of each task: parts of the limit, logarithms of percents, skew, age, and 1."""
    values = stats[..., CHANCE_OF]
    skew = np.cbrt(stats[..., THIRD])[..., None] / 100
    age = np.broadcast_to(1 / np.sqrt(times)[None, :, None], stats.shape[:2] + (1,))
    return np.concatenate([values / 100, np.log1p(values) / 5, skew, age, np.ones_like(age)], -1)


HIDDEN = 16


def logits(inputs, weights):
    first, second = weights
    hidden = np.tanh(inputs @ first.T)
    return hidden @ second[:, :-1].T + second[:, -1]


def learn_chances(inputs, rises):
    """One hidden layer, for all steps together. Inputs end with 1."""
    hit = np.stack([rises > step for step in RISES], -1).astype(np.float32)
    center, spread = inputs[:, :-1].mean(0), inputs[:, :-1].std(0) + 1e-9
    x = np.concatenate([(inputs[:, :-1] - center) / spread, np.ones((len(inputs), 1))], 1).astype(np.float32)
    count, out = x.shape[1], len(RISES)
    random = np.random.default_rng(0)
    start = np.concatenate([random.normal(0, 0.3 / np.sqrt(count), HIDDEN * count),
                            random.normal(0, 0.1, out * HIDDEN), np.log(hit.mean(0) / (1 - hit.mean(0)))])
    split = HIDDEN * count

    def parts(w):
        second = np.concatenate([w[split:split + out * HIDDEN].reshape(out, HIDDEN), w[split + out * HIDDEN:, None]], 1)
        return w[:split].reshape(HIDDEN, count), second

    def loss(w):
        first, second = (part.astype(np.float32) for part in parts(w))
        hidden = np.tanh(x @ first.T)
        z = hidden @ second[:, :-1].T + second[:, -1]
        value = (np.logaddexp(0, z) - hit * z).mean() * out
        slope = (1 / (1 + np.exp(-z)) - hit) / len(x)
        back = (slope @ second[:, :-1]) * (1 - hidden**2)
        gradient = np.concatenate([(back.T @ x).ravel(), (slope.T @ hidden).ravel(), slope.sum(0)])
        decay = np.where(np.arange(len(w)) < split + out * HIDDEN, DECAY, 0)
        return float(value) + (decay * w * w).sum() / 2, gradient.astype(float) + decay * w

    first, second = parts(minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 250}).x)
    scaled = first[:, :-1] / spread
    return np.concatenate([scaled, (first[:, -1] - scaled @ center)[:, None]], 1), second


DECAY = 3e-6


def spike_shapes(chances):
    """Of a node: rises that some task makes with each of RISKS, and how many tasks are expected to make each but the first of
    RISES."""
    count = chances.shape[1]
    expected = chances.sum(1)  # node, time, step
    levels = np.log(np.maximum(expected, 1e-7))
    levels = np.concatenate([np.full(levels.shape[:2] + (1,), np.log(0.9 * count)), levels], -1)
    steps = (0.0,) + RISES
    out = []
    for risk in RISKS:
        at = np.log(risk)
        rise = np.minimum(steps[-1] + np.maximum(0, levels[..., -1] - at) * 12, 130)
        found = levels[..., -1] > at
        for s in range(len(steps) - 1):
            here = ~found & (levels[..., s] >= at) & (levels[..., s + 1] < at)
            part = (levels[..., s] - at) / (levels[..., s] - levels[..., s + 1] + 1e-9)
            rise = np.where(here, steps[s] + part * (steps[s + 1] - steps[s]), rise)
            found |= here
        out.append(rise)
    return np.stack(out + [40 * expected[..., s] for s in range(1, len(RISES))], -1)


# --- what is known of a node ---------------------------------------------------------------------------------------------
@njit
def total_shapes(total, times, out, peak):
    for j in range(len(times)):
        t = times[j]
        x = total[:t]
        f = out[j]
        now = x[t - 1]
        f[0], f[1], f[2] = now, x.mean(), x.std()
        for n, w in enumerate((6, 12, 24)):
            part = x[max(0, t - w):]
            f[3 + 3 * n], f[4 + 3 * n], f[5 + 3 * n] = part.max(), part.mean(), part.std()
        f[12], f[13], f[14] = x[max(0, t - 3):].max(), x[max(0, t - 3):].mean(), x[max(0, t - 48):].max()
        f[15] = x.max()
        steps = np.diff(x)
        if t > 1:
            f[16], f[17], f[18] = np.abs(steps[max(0, len(steps) - 35):]).mean(), np.abs(steps).mean(), steps.max()
        if t >= 36:
            rises = np.zeros(33)
            ups = np.zeros(33)
            count = 0
            for u in range(max(1, t - 108), t - 11, 3):
                top = x[u:u + 12].max()
                rises[count] = top - x[u - 1]
                ups[count] = top - x[max(0, u - 12):u].max()
                count += 1
            rises, ups = rises[:count], ups[:count]
            f[19], f[20], f[21] = np.quantile(rises, 0.5), np.quantile(rises, 0.9), rises.max()
            f[22], f[23], f[24] = np.quantile(ups, 0.5), np.quantile(ups, 0.9), ups.max()
        else:
            rise = x[1:].max() - now if t > 1 else 0.0
            f[19], f[20], f[21], f[22], f[23], f[24] = rise / 2, rise, rise, 0.0, rise / 2, rise
        peak[j] = total[t:t + 12].max() if t + 12 <= len(total) else np.nan


def task_shapes(s):
    """Sums over the tasks of each node; `s` is node, task, time, statistic."""
    root = lambda squares: np.sqrt(squares.sum(1))
    gap = s[..., MAX] - s[..., NOW]
    largest = -np.sort(-gap, 1)
    return np.stack([
        root(s[..., DEV] ** 2), s[..., DEV].sum(1), root(s[..., DEV_24] ** 2), s[..., DEV_24].sum(1), root(s[..., VAR_12]),
        s[..., MAX_3].sum(1), s[..., MAX_6].sum(1), s[..., MAX_12].sum(1), s[..., MAX_24].sum(1), s[..., MAX].sum(1),
        largest[:, 0], largest[:, :3].sum(1), root(largest[:, :2] ** 2), s[..., DEV].max(1),
        root((s[..., MAX_24] - s[..., NOW]) ** 2), root(gap ** 2), root((s[..., MAX_24] - s[..., MEAN_24]) ** 2),
        root((s[..., MAX] - s[..., MEAN]) ** 2), root(s[..., STEP_SQ]),
        np.cbrt(np.maximum(s[..., THIRD].sum(1), 0)), np.cbrt(np.maximum(s[..., THIRD_24].sum(1), 0)),
    ], -1)


class Day:
    def __init__(self, path, times):
        self.name, self.times = os.path.basename(path), np.asarray(times)
        self.rows = np.loadtxt(path, delimiter=",")
        self.stats = np.zeros((len(self.rows), len(times), 16))
        self.rises = np.zeros(self.stats.shape[:2])
        task_stats(self.rows, self.times, self.stats, self.rises)

    def nodes(self, chance_weights, k, seed):
        """Shapes, scale and peak of each node and time."""
        order = np.random.default_rng(seed).permutation(len(self.rows))
        order = order[:len(order) // k * k].reshape(-1, k)
        times = self.times
        chances = 1 / (1 + np.exp(-logits(chance_inputs(self.stats, times), chance_weights)))
        totals, peak = np.zeros((len(order), len(times), 25)), np.zeros((len(order), len(times)))
        for i, node in enumerate(order):
            total_shapes(self.rows[node].sum(0), times, totals[i], peak[i])
        tasks = task_shapes(self.stats[order])
        values = np.concatenate([totals, tasks, spike_shapes(chances[order])], -1)
        scale = values[..., 10] + tasks[..., 0] + 1
        age = np.broadcast_to(1 / np.sqrt(times), scale.shape)[..., None]
        shapes = np.concatenate([values / scale[..., None], age], -1)
        size = np.clip(np.log(scale / 400), -1.2, 1.2)[..., None]
        shapes = np.concatenate([shapes, size, shapes * size], -1).astype(np.float32)
        return shapes.reshape(-1, shapes.shape[-1]), scale.ravel(), peak.ravel()


def gather(days, chance_weights, seeds):
    parts = []
    for d, day in enumerate(days):
        for k in TASKS_PER_NODE:
            for seed in seeds:
                shapes, scale, peak = day.nodes(chance_weights, k, seed)
                early = np.tile(day.times < WARM_UP, len(peak) // len(day.times))
                parts.append((shapes, scale, peak, np.full(len(peak), d), np.full(len(peak), k), early))
    return [np.concatenate(part) for part in zip(*parts)]


def learn(shapes, scale, peak, k, early):
    center, spread = shapes.mean(0), shapes.std(0) + 1e-9
    x = np.concatenate([(shapes - center) / spread, np.ones((len(shapes), 1), np.float32)], 1).astype(np.float32)
    few = k == TASKS_PER_NODE[0]
    each = np.where(few, 1 / few.mean(), 1 / (~few).mean()) / 2 / len(peak) * np.where(early, 0.3, 1)
    mean = np.where(few, peak[few].mean(), peak[~few].mean())
    price = np.where(few, PRICE[10], PRICE[30])
    ratio = peak / scale
    w = np.zeros(x.shape[1])
    w[-1] = np.quantile(ratio, 0.988)

    def step(loss, w, iterations):
        def smooth(v):
            value, slope = loss(x @ v.astype(np.float32))
            rest = v - w
            rest[-1] = 0
            return value + RIDGE * rest @ rest / 2, (x.T @ slope.astype(np.float32)).astype(float) + RIDGE * rest
        return minimize(smooth, w, jac=True, method="L-BFGS-B", options={"maxiter": iterations}).x

    RIDGE = 3e-5
    for soft in (0.3, 0.1, 0.05):
        def quantile(o):
            e = (ratio - o) / soft
            slope = each * scale / mean * (0.988 - 1 / (1 + np.exp(np.clip(e, -30, 30)))) * -1
            return (each * scale / mean * soft * (0.988 * e + np.logaddexp(0, -e))).sum(), slope
        w = step(quantile, w, 120)
    for soft in (0.08, 0.05, 0.04, 0.03):
        width = soft * np.where(few, 1, 0.7)

        def judged(o):
            z = np.clip((ratio - o) / width, -30, 30)
            low = 1 / (1 + np.exp(-z))
            value = each * (scale / mean * o + price * (low + 0.02 * np.logaddexp(0, z - 2)))
            slope = each * (scale / mean - price / width * (low * (1 - low) + 0.02 / (1 + np.exp(2 - z))))
            return value.sum(), slope
        w = step(judged, w, 100)
    weights = w[:-1] / spread
    return np.append(w[-1] - center @ weights, weights)


def score(title, weights, data):
    shapes, scale, peak, day, k, early = data
    answer = np.maximum((weights[0] + shapes @ weights[1:]), shapes[:, 0]) * scale
    for count in TASKS_PER_NODE:
        mine = (k == count) & ~early
        ratio = peak[mine] / answer[mine]
        factor = np.quantile(ratio, 0.99)
        each = ["%.2f" % (100 * (ratio > 1)[day[mine] == d].mean()) for d in np.unique(day)]
        print("%s k=%d: %.2f %% too low, margin %.3f; at 1 %%: %.4f (factor %.3f); days %s" % (
            title, count, 100 * (ratio > 1).mean(), answer[mine].sum() / peak[mine].sum(),
            factor * answer[mine].sum() / peak[mine].sum(), factor, " ".join(each)), flush=True)


def learn_all(days):
    inputs = np.concatenate([chance_inputs(d.stats, d.times).reshape(-1, 27) for d in days])
    chances = learn_chances(inputs[::2], np.concatenate([d.rises.ravel() for d in days])[::2])
    shapes, scale, peak, _, k, early = gather(days, chances, (1, 2, 4, 5))
    return chances, learn(shapes, scale, peak, k, early)


def rust(days, chances, weights, data):
    shapes, scale, peak, _, k, early = data
    answer = (weights[0] + shapes @ weights[1:]) * scale
    mine = (k == 10) & ~early
    now = np.quantile(peak[mine] / answer[mine], 0.99)
    factors = [(b, np.quantile(peak[mine] / answer[mine], 1 - b) / now) for b in BUDGETS]
    numbers = lambda row: ", ".join("%.5f" % v for v in row)
    names = ", ".join(day.name.removesuffix(".csv") for day in days)
    return f"""//! What the learned predictor learned. Written by `bench/train/peaks.py`.
//!
//! From these days of PlanetLab machines (CoMon, published with CloudSim), dealt out four times to nodes of 10 and 30 tasks:
//! {names}. `docs/estimating.md` says how what was learned on some of them did on the others.

use super::{{chances::{{CHANCE_INPUTS, HIDDEN_UNITS, RISES}}, features::FEATURES}};

/// Share of answers that may be too low, and the factor that makes it so, relative to one in a hundred.
pub(super) const FACTORS: [(f64, f64); {len(factors)}] = [{", ".join("(%g, %.3f)" % f for f in factors)}];

/// Weights of the hidden units' inputs.
pub(super) const HIDDEN: [[f64; CHANCE_INPUTS]; HIDDEN_UNITS] = [
{chr(10).join("    [" + numbers(row) + "]," for row in chances[0])}
];

/// Of the logarithm of the odds that a task rises by more than each of the steps: a weight for each hidden unit, and the
/// constant.
pub(super) const CHANCES: [[f64; HIDDEN_UNITS + 1]; RISES.len()] = [
{chr(10).join("    [" + numbers(row) + "]," for row in chances[1])}
];

/// The constant, then one for each feature.
pub(super) const WEIGHTS: [f64; FEATURES + 1] = [{numbers(weights)}];
"""


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("days", nargs="+")
    options.add_argument("--validate", type=int, default=0, metavar="PARTS", help="leave each part of the days out in turn")
    options.add_argument("--rust", help="write the table here")
    options = options.parse_args()
    learned_at = [1, 2, 3, 4, 6, 9, 12, 18, *range(WARM_UP, DAY - HOUR + 1, 3)]
    days = [Day(path, learned_at) for path in sorted(options.days)]
    for part in range(options.validate):
        held = {day.name for day in days[part * len(days) // options.validate:(part + 1) * len(days) // options.validate]}
        chances, weights = learn_all([day for day in days if day.name not in held])
        tests = [Day(path, range(WARM_UP, DAY - HOUR + 1)) for path in sorted(options.days) if os.path.basename(path) in held]
        score("learned without " + " ".join(sorted(held)), weights, gather(tests, chances, (103, 104)))
    if options.rust:
        chances, weights = learn_all(days)
        tests = [Day(path, [1, 2, 4, 6, 12, *range(WARM_UP, DAY - HOUR + 1)]) for path in sorted(options.days)]
        data = gather(tests, chances, (103, 104))
        score("learned on all", weights, data)
        with open(options.rust, "w") as out:
            out.write(rust(days, chances, weights, data))


if __name__ == "__main__":
    main()
