"""The method of Tsitouras (2011): order 5, an error estimate of order 4, and a dense output of order 4.

Stage i of a step from y of size h is k_i = f(t + C_i·h, y + h·Σ_j A_ij·k_j); the step ends at y + h·Σ_i B_i·k_i, where
the seventh stage stands, which is the first of the next step; the error is about h·Σ_i E_i·k_i. Inside the step, at the
share s of it, the solution is y + h·Σ_i w_i(s)·k_i. It takes a tenth fewer steps than the method of Dormand and Prince.

Coefficients: Ch. Tsitouras, Runge–Kutta pairs of order 5(4) satisfying only the first column simplifying assumption,
Computers & Mathematics with Applications 62 (2011) 770–775.
"""

import numpy as np
from numpy.polynomial import Polynomial

STAGES = 7
C = np.array([0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0])
A = np.zeros((STAGES, STAGES))
A[1, :1] = [0.161]
A[2, :2] = [-0.008480655492356989, 0.335480655492357]
A[3, :3] = [2.8971530571054935, -6.359448489975075, 4.3622954328695815]
A[4, :4] = [5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525]
A[5, :5] = [5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383]
A[6, :6] = [
    0.09646076681806523,
    0.01,
    0.4798896504144996,
    1.379008574103742,
    -3.290069515436081,
    2.324710524099774,
]
B = A[6].copy()
E = np.array(
    [
        -0.00178001105222577714,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        1 / 66,
    ]
)

# w_i(s), each as factor·s^power·(its other factors)
_s = Polynomial([0.0, 1.0])
_WEIGHTS = (
    -1.0530884977290216 * _s * (_s - 1.3299890189751412) * (_s**2 - 1.4364028541716351 * _s + 0.7139816917074209),
    0.1017 * _s**2 * (_s**2 - 2.1966568338249754 * _s + 1.2949852507374631),
    2.490627285651252793 * _s**2 * (_s**2 - 2.38535645472061657 * _s + 1.57803468208092486),
    -16.54810288924490272 * _s**2 * (_s - 1.21712927295533244) * (_s - 0.61620406037800089),
    47.37952196281928122 * _s**2 * (_s - 1.203071208372362603) * (_s - 0.658047292653547382),
    -34.87065786149660974 * _s**2 * (_s - 1.2) * (_s - 0.666666666666666667),
    2.5 * _s**2 * (_s - 1.0) * (_s - 0.6),
)
# DENSE[i, p] is the coefficient of s^(p+1) in w_i
DENSE = np.stack([weight.coef[1:5] for weight in _WEIGHTS])

# the controller: the next step is h·SAFETY·error^(−1/5), within these limits
SAFETY, SHRINK, GROW = 0.92, 0.2, 10.0
# an explicit method of order 5 is stable up to h·|eigenvalue| of about 3.5: so many steps there in a row are stiffness
STABILITY, STIFF_STEPS = 3.0, 10
# how the explicit method ends for such a subject, beside the values of `neuralpk.solve.solve_result.Status`
STIFF = 4
# compiled on the CPU, thirty steps cost less than the new start; of a perceptron many more are borne first, because
# compiling its implicit steps takes seconds
COMPILED_STIFF_STEPS, PERCEPTRON_STIFF_STEPS = 30, 300
