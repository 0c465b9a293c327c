"""Leaves that cannot move freely are checked along the directions that are left to them."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from xgradcheck import InvalidCase, check

RNG = np.random.default_rng(0)


def positive_definite(size: int = 4) -> torch.Tensor:
    root = RNG.normal(size=(size, size))
    matrix = root @ root.T + size * np.eye(size)
    return torch.from_numpy((matrix + matrix.T) / 2).requires_grad_()


def probabilities() -> np.ndarray:
    weights = RNG.uniform(0.2, 1.0, size=(3, 4))
    return weights / weights.sum(-1, keepdims=True)


# torch gives these the symmetric gradient, though they read one triangle alone.
@pytest.mark.parametrize("fn", [torch.linalg.cholesky, torch.linalg.eigvalsh])
def test_a_function_of_symmetric_matrices_is_right_along_symmetric_directions(fn):
    matrix = positive_definite()
    assert check(fn, matrix, constraint="symmetric").verdict == "PASS"
    free = check(fn, matrix, raise_exception=False)
    assert free.verdict == "INCONCLUSIVE"
    assert [finding.kind for finding in free.findings] == ["symmetric"]
    assert "constraint='symmetric'" in str(free)


def test_a_matrix_that_is_symmetric_but_for_rounding_is_symmetric():
    matrix = positive_definite().detach()
    matrix[0, 1] = np.nextafter(matrix[0, 1].item(), np.inf)
    report = check(torch.linalg.cholesky, matrix, raise_exception=False)
    assert [finding.kind for finding in report.findings] == ["symmetric"]
    matrix[0, 1] += 1e-6
    assert check(torch.linalg.cholesky, matrix, raise_exception=False).verdict == "FAIL"


class HalfCholesky(torch.autograd.Function):
    """Off by a factor in one row."""

    @staticmethod
    def forward(ctx, matrix):
        ctx.save_for_backward(matrix)
        return torch.linalg.cholesky(matrix)

    @staticmethod
    def backward(ctx, g):
        (matrix,) = ctx.saved_tensors
        with torch.enable_grad():
            matrix = matrix.detach().requires_grad_()
            (grad,) = torch.autograd.grad(torch.linalg.cholesky(matrix), matrix, g)
        grad[1] *= 1.01
        return grad


@pytest.mark.parametrize("constraint", [None, "symmetric"])
def test_a_wrong_gradient_is_wrong_along_symmetric_directions_too(constraint):
    report = check(
        HalfCholesky.apply, positive_definite(), constraint=constraint, raise_exception=False
    )
    assert report.verdict == "FAIL"


@pytest.mark.parametrize("constraint", [None, "symmetric"])
def test_a_function_of_all_matrices_needs_no_constraint(constraint):
    assert check(torch.linalg.inv, positive_definite(), constraint=constraint).verdict == "PASS"


def test_a_transposed_gradient_at_a_symmetric_matrix_is_wrong():
    """Symmetrised it is right, but no convention transposes."""
    right = np.arange(9.0).reshape(3, 3)
    matrix = np.eye(3) + 0.5

    def value(w):
        return float((w * right).sum())

    report = check(value, matrix, grads=lambda w: right.T, raise_exception=False)
    assert report.verdict == "FAIL"
    assert check(value, matrix, grads=lambda w: right).verdict == "PASS"


def entropy(p):
    return float((p * np.log(p)).sum())


def test_on_the_simplex_a_constant_along_each_row_is_free():
    """d sum p log p = log p + 1; the 1 cannot be seen where the rows sum to 1."""
    p = probabilities()
    assert check(entropy, p, grads=lambda p: np.log(p), constraint="simplex").verdict == "PASS"
    free = check(entropy, p, grads=lambda p: np.log(p), raise_exception=False)
    assert free.verdict == "FAIL"
    wrong = check(
        entropy, p, grads=lambda p: 1.001 * np.log(p), constraint="simplex", raise_exception=False
    )
    assert wrong.verdict == "FAIL"


def test_a_function_that_checks_its_simplex_is_never_given_anything_else():
    def value(p):
        if (p <= 0).any() or np.abs(p.sum(-1) - 1).max() > 1e-12:
            raise ValueError("not on the simplex")
        return entropy(p)

    report = check(value, probabilities(), grads=np.log, constraint="simplex")
    assert report.verdict == "PASS"
    assert not any("ValueError" in note for note in report.notes)


def test_positive_numbers_stay_positive():
    seen = []

    def value(x):
        seen.append(x.min())
        return float(np.log(x).sum())

    x = np.array([1e-6, 0.1, 2.0, 3.0])
    assert check(value, x, grads=lambda x: 1 / x, constraint="positive").verdict == "PASS"
    assert min(seen) > 0


def test_a_linear_projection_gives_the_directions():
    """Columns that sum to 0."""

    def centred(x):
        return x - x.mean(0)

    x = centred(RNG.normal(size=(4, 2)))
    shift = np.array([3.0, -2.0])

    def value(x):
        return float((x**3).sum())

    def shifted(x):
        return 3 * x**2 + shift

    assert check(value, x, grads=shifted, constraint=centred).verdict == "PASS"
    assert check(value, x, grads=shifted, raise_exception=False).verdict == "FAIL"


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_a_projection_onto_a_curved_set_is_differentiated(library):
    """On the unit sphere the radial part of a gradient is free."""
    w = RNG.normal(size=5)
    w /= np.linalg.norm(w)

    x = torch.from_numpy(w) if library == "torch" else w
    sin, cos = (torch.sin, torch.cos) if library == "torch" else (jnp.sin, jnp.cos)

    def onto(w):
        return w / (w**2).sum() ** 0.5

    def fn(w):
        return sin(onto(w)).sum()

    assert check(fn, x, grads=cos, constraint=onto, backend=library).verdict == "PASS"
    free = check(fn, x, grads=cos, backend=library, raise_exception=False)
    assert free.verdict == "FAIL"


def test_a_constraint_for_one_leaf_leaves_the_others_free():
    matrix, vector = positive_definite(), torch.randn(4, dtype=torch.float64, requires_grad=True)

    def solve(a, b):
        return torch.cholesky_solve(b[:, None], torch.linalg.cholesky(a))

    assert check(solve, matrix, vector, constraint={"a": "symmetric"}).verdict == "PASS"
    report = check(solve, matrix, vector, constraint="symmetric")
    assert report.verdict == "PASS"
    assert [note for note in report.notes if "tangent space" in note] == [
        "a: compared in the tangent space of symmetric matrices"
    ]


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        ("symetric", "'symmetric', 'simplex', 'positive' or a projection"),
        ("simplex", "x is not positive throughout"),
        ("symmetric", "x is not square"),
        ({"y": "positive"}, "the leaves are x"),
        ({"x": "positive"}, "x is not positive throughout"),
        (lambda x: 2 * x, "twice is not once"),
        (lambda x: x[:1], "must keep the shape"),
        (lambda x: x / np.linalg.norm(x), "pass the projected value"),
    ],
)
def test_a_constraint_that_does_not_hold_is_refused(constraint, words):
    x = np.array([1.0, -2.0, 3.0])
    with pytest.raises(InvalidCase, match=words):
        check(lambda x: float((x**2).sum()), x, grads=lambda x: 2 * x, constraint=constraint)


def hermitian(dtype=np.complex128, batch: tuple[int, ...] = (), size: int = 3) -> np.ndarray:
    parts = np.random.default_rng(1).normal(size=(2, *batch, size, size))
    root = parts[0] + 1j * parts[1]
    return (root @ root.conj().swapaxes(-1, -2) + np.eye(size)).astype(dtype)


def eigvalsh_by_hand(cotangent, matrix):
    _, vectors = np.linalg.eigh(matrix)
    return (vectors * cotangent[..., None, :]) @ vectors.conj().swapaxes(-1, -2)


COMPLEX = pytest.mark.parametrize("dtype", [np.complex128, np.complex64])


@COMPLEX
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_a_function_of_hermitian_matrices_is_right_along_hermitian_directions(
    dtype, batch, library
):
    matrix = hermitian(dtype, batch)
    if library == "torch":
        call, how = (torch.linalg.cholesky, torch.from_numpy(matrix)), {}
    else:
        call, how = (np.linalg.eigvalsh, matrix), {"grads": eigvalsh_by_hand}
    report = check(*call, **how, constraint="symmetric")
    assert "tangent space of Hermitian matrices" in " ".join(report.notes)
    assert report.leaves[next(iter(report.leaves))].floor < 1e-3
    free = check(*call, **how, raise_exception=False)
    assert free.verdict == "INCONCLUSIVE"
    assert [finding.kind for finding in free.findings] == ["symmetric"]
    assert "meant for Hermitian matrices" in free.findings[0].text


@COMPLEX
def test_a_function_of_hermitian_matrices_in_jax(dtype):
    matrix = jnp.asarray(hermitian(dtype)) if dtype is np.complex64 else hermitian(dtype)
    assert check(jnp.linalg.eigvalsh, matrix, constraint="symmetric", backend="jax")
    assert check(jnp.linalg.cholesky, matrix, constraint=onto_hermitian, backend="jax")


def onto_hermitian(matrix):
    return (matrix + matrix.conj().swapaxes(-1, -2)) / 2


@COMPLEX
@pytest.mark.parametrize("constraint", [None, "symmetric", onto_hermitian])
@pytest.mark.parametrize(
    "spoil",
    [np.conj, lambda grad: 1.01 * grad, np.real, lambda grad: np.where(np.eye(3), 2, 1) * grad],
)
def test_a_wrong_gradient_of_hermitian_matrices_fails(dtype, constraint, spoil):
    def spoiled(cotangent, matrix):
        return spoil(eigvalsh_by_hand(cotangent, matrix))

    call = np.linalg.eigvalsh, hermitian(dtype)
    report = check(*call, grads=spoiled, constraint=constraint, raise_exception=False)
    assert report.verdict == "FAIL"


@pytest.mark.parametrize("constraint", [None, "symmetric"])
def test_many_hermitian_elements_are_judged_as_few_are(constraint):
    matrix = torch.from_numpy(hermitian(size=14))
    report = check(torch.linalg.cholesky, matrix, constraint=constraint, raise_exception=False)
    assert report.verdict == ("PASS" if constraint else "INCONCLUSIVE")
    assert {finding.kind for finding in report.findings} == (set() if constraint else {"symmetric"})


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        ("simplex", "z is complex"),
        ("positive", "z is complex"),
        ("symmetric", "z is not Hermitian"),
        (lambda z: z.real, "returns float64: it must return complex128"),
    ],
)
def test_a_constraint_that_complex_leaves_do_not_have_is_refused(constraint, words):
    z = np.array([[1.0 + 2.0j, 0.5], [0.5, 3.0]])
    with pytest.raises(InvalidCase, match=words):
        check(lambda z: z.real.sum(), z, grads=lambda z: 0 * z + 1, constraint=constraint)
