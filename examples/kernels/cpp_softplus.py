"""Softplus as an operator of ``torch.library`` in C++, its backward another one; and a backward
that forgets what is left over after blocks of eight.

Needs a C++ compiler and ninja; the first call builds both operators.

    xgradcheck check examples/kernels/cpp_softplus.py:softplus 'f64[3,5]'
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils import cpp_extension

SOURCE = r"""
#include <cmath>
#include <torch/library.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <ATen/Dispatch.h>

at::Tensor softplus(const at::Tensor& given) {
  const at::Tensor x = given.contiguous();
  at::Tensor y = at::empty_like(x);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "softplus", [&] {
    const scalar_t* from = x.const_data_ptr<scalar_t>();
    scalar_t* to = y.mutable_data_ptr<scalar_t>();
    for (int64_t i = 0; i < x.numel(); ++i)
      to[i] = std::max(from[i], scalar_t(0)) + std::log1p(std::exp(-std::abs(from[i])));
  });
  return y;
}

// The derivative in blocks of eight, and what is left over one by one, unless that is forgotten.
at::Tensor softplus_backward(const at::Tensor& cotangent, const at::Tensor& given, bool rest) {
  const at::Tensor grad = cotangent.contiguous(), x = given.contiguous();
  at::Tensor out = at::zeros_like(x);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "softplus_backward", [&] {
    const scalar_t* from = x.const_data_ptr<scalar_t>();
    const scalar_t* by = grad.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    const int64_t whole = x.numel() / 8 * 8, end = rest ? x.numel() : whole;
    for (int64_t i = 0; i < whole; i += 8)
      for (int64_t j = i; j < i + 8; ++j) to[j] = by[j] / (1 + std::exp(-from[j]));
    for (int64_t i = whole; i < end; ++i) to[i] = by[i] / (1 + std::exp(-from[i]));
  });
  return out;
}

TORCH_LIBRARY(xgradcheck_examples, library) {
  library.def("softplus(Tensor x) -> Tensor");
  library.def("softplus_without_the_rest(Tensor x) -> Tensor");
  library.def("softplus_backward(Tensor grad, Tensor x, bool rest) -> Tensor");
}

TORCH_LIBRARY_IMPL(xgradcheck_examples, CPU, library) {
  library.impl("softplus", &softplus);
  library.impl("softplus_without_the_rest", &softplus);
  library.impl("softplus_backward", &softplus_backward);
}
"""


def like_the_first(first: Tensor, *_: Any) -> Tensor:
    return first.new_empty(first.shape)


@functools.cache
def operators() -> Any:
    """The operators, built when they are first asked for."""
    cpp_extension.load_inline(
        "xgradcheck_examples", SOURCE, is_python_module=False, no_implicit_headers=True
    )
    found = torch.ops.xgradcheck_examples
    for name in ("softplus", "softplus_without_the_rest", "softplus_backward"):
        torch.library.register_fake(f"xgradcheck_examples::{name}", like_the_first)

    def kept(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    for name, rest in (("softplus", True), ("softplus_without_the_rest", False)):

        def backward(ctx: Any, grad: Tensor, rest: bool = rest) -> Tensor:
            return found.softplus_backward(grad, *ctx.saved_tensors, rest)

        torch.library.register_autograd(
            f"xgradcheck_examples::{name}", backward, setup_context=kept
        )
    return found


def softplus(x: Tensor) -> Tensor:
    return operators().softplus(x)


def without_the_rest(x: Tensor) -> Tensor:
    return operators().softplus_without_the_rest(x)


def plain(x: Tensor) -> Tensor:
    return torch.nn.functional.softplus(x)
