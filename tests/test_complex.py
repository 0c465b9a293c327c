"""Complex leaves and outputs, each framework in its own convention.

phi is Re sum(conj(u) f) in PyTorch and NumPy, Re sum(u f) in JAX; a gradient g stands for the
derivatives (Re g, Im g) there and (Re g, -Im g) here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from xgradcheck import check

Z = np.array([[0.7 - 0.4j, -1.3 + 0.2j], [0.5 + 1.1j, -0.6 - 0.9j], [1.2 + 0.3j, 0.1 - 0.8j]])
W = np.array([0.4 + 0.9j, -1.1 + 0.3j])


class Square(torch.autograd.Function):
    """``z * z``; without ``conjugated`` it is the gradient of people who think of real numbers."""

    conjugated = True

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z * z

    @staticmethod
    def backward(ctx, g):
        (z,) = ctx.saved_tensors
        return 2 * g * (z.conj() if Square.conjugated else z)


FUNCTIONS = {
    "product": lambda z, w: z @ w,
    "square": lambda z, w: Square.apply(z),
    "modulus": lambda z, w: z.abs().sum() + w.abs().sum(),
    "conjugate": lambda z, w: (z * w.conj()).real,
    "phase": lambda z, w: torch.angle(z * w),
    "transform": lambda z, w: torch.fft.fft(z, dim=0),
    "from real": lambda z, w: torch.fft.rfft(z.real, dim=0) * w,
    "inverse": lambda z, w: torch.linalg.inv(z.mH @ z + torch.diag(w)),
}


@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_pytorch_differentiates_is_right(name, dtype):
    assert check(FUNCTIONS[name], torch.from_numpy(Z).to(dtype), torch.from_numpy(W).to(dtype))


@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64])
def test_a_forgotten_conjugate_is_wrong_and_the_part_is_named(dtype, monkeypatch):
    monkeypatch.setattr(Square, "conjugated", False)
    report = check(Square.apply, torch.from_numpy(Z).to(dtype), raise_exception=False)
    assert report.verdict == "FAIL"
    (leaf,) = report.leaves.values()
    assert leaf.size == 12 and leaf.worst.component in ("real", "imag")
    assert f"args[0]{list(leaf.worst.index)}.{leaf.worst.component}:" in str(report)
    assert report.to_dict()["leaves"]["args[0]"]["worst"]["component"] == leaf.worst.component


def test_a_lone_wrong_imaginary_part_is_found():
    def backward(u, z):
        grad = u * 2 * np.conj(z)
        grad[1, 0] += 0.01j
        return grad

    report = check(lambda z: z**2, Z, grads=backward, raise_exception=False)
    (leaf,) = report.leaves.values()
    assert report.verdict == "FAIL" and leaf.wrong == 1
    assert (leaf.worst.index, leaf.worst.component) == ((1, 0), "imag")


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(W).to(torch.complex64))
        self.gain = nn.Parameter(torch.tensor([0.3, 1.2]))

    def forward(self, z):
        return self.gain * (z * self.weight).abs()


def test_a_module_with_complex_parameters():
    model = Mixing()
    places = [p.data_ptr() for p in model.parameters()]
    report = check(model, torch.from_numpy(Z).to(torch.complex64))
    assert [len(leaf.rows) for leaf in report.leaves.values()] == [2, 2]
    assert [p.dtype for p in model.parameters()] == [torch.complex64, torch.float32]
    assert [p.data_ptr() for p in model.parameters()] == places


@pytest.mark.parametrize("z", [Z, Z.astype(np.complex64)], ids=["complex128", "complex64"])
def test_backprop_by_hand_in_numpy(z):
    assert check(lambda z: (np.abs(z) ** 2).sum(), z, grads=lambda z: 2 * z)
    assert check(lambda z: z**2, z, grads=lambda u, z: u * np.conj(2 * z))
    wrong = check(lambda z: z**2, z, grads=lambda u, z: u * 2 * z, raise_exception=False)
    assert wrong.verdict == "FAIL"
    kept = {"z": z.copy()}
    assert check(
        lambda: (np.abs(kept["z"]) ** 2).sum(), wrt=kept, grads=lambda: {"z": 2 * kept["z"]}
    )
    assert kept["z"].tobytes() == z.tobytes()


@pytest.mark.parametrize("z", [Z, jnp.asarray(Z, jnp.complex64)], ids=["complex128", "complex64"])
def test_what_jax_differentiates_is_right(z):
    assert check(lambda z: z**2 * jnp.exp(z), z, backend="jax")
    assert check(
        lambda z: jnp.abs(z).sum() + jnp.real(z[0] * jnp.conj(z[1])).sum(), z, backend="jax"
    )


@pytest.mark.parametrize(("conjugated", "verdict"), [(False, "PASS"), (True, "FAIL")])
def test_jax_takes_no_conjugate(conjugated, verdict):
    @jax.custom_vjp
    def square(z):
        return z * z

    square.defvjp(lambda z: (z * z, z), lambda z, g: (2 * g * (jnp.conj(z) if conjugated else z),))
    assert check(square, Z, backend="jax", raise_exception=False).verdict == verdict


def test_a_complex_output_of_a_real_argument_takes_no_complex_step():
    x = np.array([0.3, -1.2])

    def right(u, x):
        return np.real(np.conj(u) * 1j * np.exp(1j * x))

    assert check(lambda x: np.exp(1j * x), x, grads=right)
