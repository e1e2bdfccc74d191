"""Exponentials of the rate matrices of compartment models, and their gradients, for one subject at a time.

If a matrix K has well-conditioned real eigenvectors (its modes), K = R·diag(rate)·L with L = R⁻¹, its exponential needs
n scalar exponentials. Otherwise (equal rates in a chain, a complex pair of eigenvalues) it is a Taylor series about −κ,
where κ is the fastest loss. For compartments K + κ then has no negative entry, nothing cancels, and every digit of
exp(−κh)·Σ (h(K + κ))^k/k! is right for any eigenvalues (uniformisation, Jensen 1953). For a long interval the series is
that of an interval short enough, and its result is squared repeatedly.
"""

import math
from typing import Any

from neuralpk.solve.compiled.kernels_on_disk import kept
from neuralpk.solve.compiled.scalar_exponential import exp

_CONDITION = 100.0  # largest |R|·|L|, the factor by which eigenvectors may amplify rounding: two of 16 digits
_SERIES = 96.0  # largest κh for which the series is applied to one state; beyond it squaring is cheaper
_SQUARED, _SIGNED = 4.0, 0.5  # largest κh of a series that is squared; with negative entries, of any series
_SWEEPS = 30  # largest number of Jacobi sweeps; about five are needed
TERMS = 204  # number of terms of the series at κh = _SERIES
SQUARINGS = 60

# for kernels that only other kernels call: without wrappers for Python and C they compile faster
_OPTIONS: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
kernel = kept(nogil=True, error_model="numpy", fastmath={"contract"}, **_OPTIONS)


# loops instead of slice assignments: Numba needs seconds to compile the check of their shapes


@kernel
def fill(out, value):
    """Set every entry of a vector."""
    for i in range(len(out)):
        out[i] = value


@kernel
def copy(a, out):
    """Copy a matrix."""
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            out[i, j] = a[i, j]


@kernel
def _scales(k, d):
    """Scales d of the compartments that make every exchange symmetric: k_ij·d_j/d_i = k_ji·d_i/d_j.

    Returns False if there are none: a cycle without detailed balance, or an exchange of opposite signs.
    """
    n = len(d)
    fill(d, 0.0)
    for root in range(n):
        if d[root] != 0.0:
            continue
        d[root] = 1.0
        for _ in range(n):
            for i in range(n):
                for j in range(n):
                    if d[i] != 0.0 and d[j] == 0.0 and k[i, j] * k[j, i] > 0.0:
                        d[j] = d[i] * math.sqrt(k[j, i] / k[i, j])
    for i in range(n):
        for j in range(i):
            product = k[i, j] * k[j, i]
            one, other = k[i, j] * d[j] / d[i], k[j, i] * d[i] / d[j]
            if product < 0.0 or (product > 0.0 and not abs(one - other) <= 1e-14 * abs(one)):
                return False
    return True


@kernel
def _jacobi(s, u):
    """Diagonalise a symmetric s in place; u becomes its eigenvectors (Golub and Van Loan, 4th ed., alg. 8.5.2)."""
    n = len(s)
    for i in range(n):
        for j in range(n):
            u[i, j] = 1.0 if i == j else 0.0
    for _ in range(_SWEEPS):
        rotated = False
        for p in range(n):
            for q in range(p + 1, n):
                if abs(s[p, q]) <= 1e-18 * math.sqrt(abs(s[p, p] * s[q, q])):
                    continue
                rotated = True
                tau = (s[q, q] - s[p, p]) / (2.0 * s[p, q])
                t = math.copysign(1.0, tau) / (abs(tau) + math.hypot(1.0, tau))
                cosine = 1.0 / math.sqrt(1.0 + t * t)
                sine = t * cosine
                s[p, p] -= t * s[p, q]
                s[q, q] += t * s[p, q]
                s[p, q] = s[q, p] = 0.0
                for i in range(n):
                    if i != p and i != q:
                        a, b = s[i, p], s[i, q]
                        s[i, p] = s[p, i] = cosine * a - sine * b
                        s[i, q] = s[q, i] = sine * a + cosine * b
                    a, b = u[i, p], u[i, q]
                    u[i, p], u[i, q] = cosine * a - sine * b, sine * a + cosine * b
        if not rotated:
            return


@kernel
def decompose(k, rate, right, left, work):
    """K = right·diag(rate)·left. Returns False where this would lose digits; then the series must be used.

    Compartments with exchange in both directions form blocks. A scale makes each block symmetric, and Jacobi rotations
    diagonalise it. Flow in one direction (from a depot, in a chain) couples the blocks into a triangular system. Its
    eigenvectors follow by substitution; they become very large if two of its rates are nearly equal.
    """
    n = len(rate)
    s, u, c, x, d = work[0], work[1], work[2], work[3], work[4, 0]
    if not _scales(k, d):
        return False
    for i in range(n):
        for j in range(n):
            both = i == j or k[i, j] * k[j, i] > 0.0
            scaled = k[i, j] * d[j] / d[i]
            s[i, j] = scaled if both and i >= j else 0.0
            c[i, j] = 0.0 if both else scaled
    coupled = False
    for i in range(n):
        for j in range(i):
            s[j, i] = s[i, j]
            coupled |= c[i, j] != 0.0 or c[j, i] != 0.0
    _jacobi(s, u)
    for i in range(n):
        rate[i] = s[i, i]
        for j in range(n):
            right[i, j] = d[i] * u[i, j]
            left[i, j] = u[j, i] / d[j]
    if coupled and not _couple(c, rate, right, left, work[1], x, s):
        return False
    for i in range(n):
        for j in range(n):
            loss = 0.0
            for m in range(n):
                loss += abs(right[i, m] * left[m, j])
            if not loss <= _CONDITION:
                return False
    return True


@kernel
def _product(a, b, out):
    for i in range(len(a)):
        for j in range(len(a)):
            total = 0.0
            for m in range(len(a)):
                total += a[i, m] * b[m, j]
            out[i, j] = total


@kernel
def _couple(c, rate, right, left, u, x, spare):
    """Turn the eigenvectors of the blocks into those of K: X with (diag(rate) + uᵀcu)·X = X·diag(rate).

    The substitution is repeated for all entries until nothing changes, about as often as the chain is long. Returns
    False if it does not end, because the flow has a cycle.
    """
    n = len(rate)
    _product(c, u, spare)
    for i in range(n):
        for j in range(n):
            total = 0.0
            for m in range(n):
                total += u[m, i] * spare[m, j]
            x[i, j] = total
    copy(x, c)
    for i in range(n):
        for j in range(n):
            x[i, j] = 1.0 if i == j else 0.0
    changed = True
    for _ in range(n + 1):
        changed = False
        _product(c, x, spare)
        for i in range(n):
            for j in range(n):
                if i == j:
                    changed |= spare[i, i] != 0.0
                elif spare[i, j] != 0.0:
                    value = spare[i, j] / (rate[j] - rate[i])
                    changed |= value != x[i, j]
                    x[i, j] = value
        if not changed:
            break
    if changed:
        return False
    _product(right, x, spare)
    copy(spare, right)
    for i in range(n):
        x[i, i] = 0.0
    copy(left, c)
    for _ in range(n):  # x⁻¹·left, by the same substitution
        _product(x, left, spare)
        for i in range(n):
            for j in range(n):
                left[i, j] = c[i, j] - spare[i, j]
    return True


@kernel
def divided(a, b, ea, eb, h):
    """∫ exp((h−s)a)·exp(sb) ds = (exp(ha) − exp(hb))/(a − b), without cancellation where a and b are close."""
    z = 0.5 * h * (a - b)
    if abs(z) > 0.25:
        return (ea - eb) / (a - b)
    z *= z
    return h * math.sqrt(ea * eb) * (1.0 + z / 6.0 * (1.0 + z / 20.0 * (1.0 + z / 42.0 * (1.0 + z / 72.0))))


@kernel
def _divided_twice(a, b, pa, pb, ab, h):
    """The second divided difference of exp(h·) at a, b and 0, from the first ones pa at (a, 0), pb at (b, 0) and ab."""
    far = max(abs(a), abs(b), abs(a - b))
    if far * h > 1.0:
        if far == abs(a):
            return (ab - pb) / a
        return (ab - pa) / b if far == abs(b) else (pa - pb) / (a - b)
    total, power, homogeneous, factor = 0.0, 1.0, 1.0, 0.5 * h * h
    for m in range(1, 20):
        total += factor * homogeneous
        power *= b
        homogeneous = a * homogeneous + power
        factor *= h / (m + 2)
    return total


# the next functions take whole arrays and indices (subject s, period p, node): array views cost more than a step


@kernel
def _to_modes(left, s, p, vectors, node, out):
    """Coordinates of a node's vector in the modes of period p; returns whether any is not 0."""
    n = out.shape[1]
    there = False
    for i in range(n):
        total = 0.0
        for j in range(n):
            total += left[s, p, i, j] * vectors[s, node, j]
        out[node, i] = total
        there |= total != 0.0
    return there


@kernel
def enter(left, s, p, states, input_, node, at, flow):
    """State and input at a node in coordinates of the modes; returns whether there is any input."""
    _to_modes(left, s, p, states, node, at)
    return _to_modes(left, s, p, input_, node, flow)


@kernel
def modal_step(rate, right, s, p, at, flow, node, h, out):
    """out = exp(hK)·y + ∫ exp(sK)·u ds with y and u from `enter`, ``at, flow [node, mode]``."""
    n = len(out)
    fill(out, 0.0)
    for i in range(n):
        e = exp(h * rate[s, p, i])
        total = e * at[node, i]
        if flow[node, i] != 0.0:
            total += divided(rate[s, p, i], 0.0, e, 1.0, h) * flow[node, i]
        for j in range(n):
            out[j] += right[s, p, j, i] * total


@kernel
def modal_read(rate, right, s, p, period, at, flow, driven, wanted, since, out, work, sums):
    """`modal_step` to all wanted times of a period, mode by mode, so that the exponentials use vector instructions."""
    n, first, end = out.shape[2], wanted.shape[1], 0
    for t in range(wanted.shape[1]):
        if period[s, wanted[s, t]] == p:
            first, end = min(first, t), t + 1
    for t in range(first, end):
        for j in range(n):
            sums[j, t] = 0.0
    for i in range(n):
        own = rate[s, p, i]
        for t in range(first, end):
            work[t] = exp(own * since[t])
        for t in range(first, end):
            node, e = wanted[s, t], work[t]
            work[t] = e * at[node, i]
            if driven and flow[node, i] != 0.0:
                work[t] += divided(own, 0.0, e, 1.0, since[t]) * flow[node, i]
        for j in range(n):
            weight = right[s, p, j, i]
            for t in range(first, end):
                sums[j, t] += weight * work[t]
    for t in range(first, end):
        if period[s, wanted[s, t]] == p:
            for j in range(n):
                out[s, t, j] = sums[j, t]


@kernel
def modal_pull(rate, right, left, s, p, at, flow, node, h, a, out, dy, dinput, dmodes, work):
    """Repeat `modal_step`, and compute the gradients from a = dL/d(its result).

    dL/dy is written to dy. The others are added: dL/du to dinput at the node, dL/dK to dmodes of the period, in
    coordinates of the modes (dL/dK = leftᵀ·dmodes·rightᵀ). The entry (i, j) of ∫ exp((h−s)Kᵀ)·a·(y(s))ᵀ ds in these
    coordinates contains the divided difference of exp at the rates i and j.
    """
    n = len(a)
    for i in range(n):
        e, b = exp(h * rate[s, p, i]), 0.0
        for j in range(n):
            b += right[s, p, j, i] * a[j]
        work[0, i], work[1, i], work[2, i] = e, b, divided(rate[s, p, i], 0.0, e, 1.0, h)
        work[3, i] = e * at[node, i] + work[2, i] * flow[node, i]
    for i in range(n):
        for j in range(n):
            both = divided(rate[s, p, i], rate[s, p, j], work[0, i], work[0, j], h)
            drift = at[node, j] * both
            if flow[node, j] != 0.0:
                drift += flow[node, j] * _divided_twice(rate[s, p, i], rate[s, p, j], work[2, i], work[2, j], both, h)
            dmodes[p, i, j] += work[1, i] * drift
    for j in range(n):
        out[j], dy[j], du = 0.0, 0.0, 0.0
        for i in range(n):
            out[j] += right[s, p, j, i] * work[3, i]
            dy[j] += left[s, p, i, j] * work[0, i] * work[1, i]
            du += left[s, p, i, j] * work[2, i] * work[1, i]
        dinput[s, node, j] += du


@kernel
def modal_gradient(right, left, dmodes, dk):
    """Add dL/dK to dk, from the dmodes of `modal_pull`, which are in coordinates of the modes."""
    n = len(dk)
    for i in range(n):
        for j in range(n):
            for m in range(n):
                part = 0.0
                for q in range(n):
                    part += dmodes[m, q] * right[j, q]
                dk[i, j] += left[m, i] * part


@kernel
def _shifted(k, u, block):
    """Write [[K, u], [0, 0]] + κ to `block`: the input becomes a constant component of the state (Van Loan 1978).

    Returns κ, the norm of the shifted K (infinite where K is not finite), and whether it has negative entries.
    """
    n = len(u)
    kappa, norm, signed = 0.0, 0.0, False
    for i in range(n):
        kappa = max(kappa, -k[i, i])
    for j in range(n):
        block[n, j] = 0.0
        block[j, n] = u[j]
        column = 0.0
        for i in range(n):
            block[i, j] = k[i, j] + (kappa if i == j else 0.0)
            signed |= block[i, j] < 0.0
            column += abs(block[i, j])
        norm = max(norm, column) if column < math.inf else math.inf
    block[n, n] = kappa
    return kappa, max(norm, kappa), signed


@kernel
def _squarings(size, signed):
    """Number of squarings of a propagator; 0 where the series may be applied to the state itself."""
    if size <= (_SIGNED if signed else _SERIES):
        return 0
    return min(math.ceil(math.log2(size / (_SIGNED if signed else _SQUARED))), SQUARINGS)


@kernel
def _series(block, kappa, size, h, x, terms, out):
    """out = exp(h(block − κ))·x; stores the terms and returns their number.

    The number depends on the matrix alone, so that the derivative converges even where the value is zero. What the
    series leaves out is the tail of a Poisson distribution, below 2⁻⁶⁰.
    """
    m = block.shape[1]
    used = min(math.ceil(size + 10.0 * math.sqrt(size)) + 10, TERMS)
    for i in range(m):
        out[i] = terms[0, i] = x[i]
    for k in range(1, used):
        for i in range(m):
            total = 0.0
            for j in range(m):
                total += block[i, j] * terms[k - 1, j]
            terms[k, i] = total * h / k
            out[i] += terms[k, i]
    decay = math.exp(-kappa * h)
    for i in range(m):
        out[i] *= decay
    return used


@kernel
def _series_pull(block, kappa, h, terms, used, a, dx, dblock, later):
    """Gradients of `_series` from a = dL/d(its result): dL/dx is written to dx, dL/dblock is added to dblock."""
    m = block.shape[1]
    decay = math.exp(-kappa * h)
    for i in range(m):
        dx[i] = decay * a[i]
    for k in range(used - 1, 0, -1):
        for i in range(m):
            later[i] = dx[i] * h / k
            for j in range(m):
                dblock[i, j] += later[i] * terms[k - 1, j]
        for j in range(m):
            total = 0.0
            for i in range(m):
                total += block[i, j] * later[i]
            dx[j] = decay * a[j] + total


@kernel
def _powers(block, kappa, size, h, squarings, terms, powers, work):
    """powers[s] = exp(h(block − κ)·2^s): powers[0] by the series, each further one as the square of the one before."""
    m = block.shape[1]
    for j in range(m):
        fill(work[0], 0.0)
        work[0, j] = 1.0
        _series(block, kappa, size, h, work[0], terms, work[1])
        for i in range(m):
            powers[0, i, j] = work[1, i]
    for s in range(squarings):
        _product(powers[s], powers[s], powers[s + 1])


@kernel
def series_step(k, y, u, h, out, work, terms, powers):
    """out = exp(hK)·y + ∫ exp(sK)·u ds for any K."""
    n = len(u)
    block, x, end = work[0], work[1, 0], work[1, 1]
    kappa, norm, signed = _shifted(k, u, block)
    size = h * norm
    if not size < math.inf:
        fill(out, math.nan)
        return
    for i in range(n):
        x[i] = y[i]
    x[n] = 1.0
    squarings = _squarings(size, signed)
    if squarings == 0:
        _series(block, kappa, size, h, x, terms, end)
    else:
        size, h = math.ldexp(size, -squarings), math.ldexp(h, -squarings)
        _powers(block, kappa, size, h, squarings, terms, powers, work[2])
        for i in range(n):
            end[i] = 0.0
            for j in range(n + 1):
                end[i] += powers[squarings, i, j] * x[j]
    for i in range(n):
        out[i] = end[i]


@kernel
def series_pull(k, y, u, h, a, out, dy, du, dk, work, terms, powers):
    """Repeat `series_step`, and compute the gradients from a = dL/d(its result).

    dL/dy is written to dy; dL/du and dL/dK are added to du and dk.
    """
    n = len(u)
    m = n + 1
    block, x, end, wide, dx = work[0], work[1, 0], work[1, 1], work[1, 2], work[1, 3]
    small, dblock, dpower, spare = work[2], work[3], work[4], work[5]
    kappa, norm, signed = _shifted(k, u, block)
    size = h * norm
    if not size < math.inf:
        fill(out, math.nan)
        fill(dy, math.nan)
        return
    for i in range(n):
        x[i], wide[i] = y[i], a[i]
    x[n], wide[n] = 1.0, 0.0
    for i in range(m):
        fill(dblock[i], 0.0)
    squarings = _squarings(size, signed)
    if squarings == 0:
        used = _series(block, kappa, size, h, x, terms, end)
        for i in range(n):
            out[i] = end[i]
        _series_pull(block, kappa, h, terms, used, wide, dx, dblock, small[0])
    else:
        size, h = math.ldexp(size, -squarings), math.ldexp(h, -squarings)
        _powers(block, kappa, size, h, squarings, terms, powers, small)
        for j in range(m):
            dx[j] = end[j] = 0.0
            for i in range(m):
                end[j] += powers[squarings, j, i] * x[i]
                dx[j] += powers[squarings, i, j] * wide[i]
                dpower[i, j] = wide[i] * x[j]
        for i in range(n):
            out[i] = end[i]
        for s in range(squarings - 1, -1, -1):
            for i in range(m):
                for j in range(m):
                    spare[i, j] = 0.0
                    for q in range(m):
                        spare[i, j] += dpower[i, q] * powers[s, j, q] + powers[s, q, i] * dpower[q, j]
            copy(spare[:m], dpower)
        for j in range(m):
            fill(small[0], 0.0)
            small[0, j] = 1.0
            used = _series(block, kappa, size, h, small[0], terms, end)
            for i in range(m):
                wide[i] = dpower[i, j]
            _series_pull(block, kappa, h, terms, used, wide, small[1], dblock, small[2])
    for i in range(n):
        dy[i] = dx[i]
        du[i] += dblock[i, n]
        for j in range(n):
            dk[i, j] += dblock[i, j]
