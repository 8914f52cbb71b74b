// zeropoint::add, mul and lookup on 8-bit tensors.
#include "../kernels/dispatch.h"
#include "epilogue_params.h"

namespace zeropoint {
namespace {

constexpr int64_t kBlock = 8192;

using BinaryKernel = void (*)(const BinaryParams&, int64_t);

Tensor run_binary(const char* what, BinaryKernel kernel, Tensor a, Tensor b, BinaryParams p, double a_scale,
                  int64_t a_zero_point, double b_scale, int64_t b_zero_point, double scale, int64_t zero_point,
                  int64_t quant_min, int64_t quant_max, ScalarType dtype) {
  ZP_REQUIRE(is_byte(a) && is_byte(b), std::string(what) + ": a and b must be uint8 or int8");
  ZP_REQUIRE(sizes_of(a) == sizes_of(b),
             std::string(what) + ": a and b must have the same shape; broadcast them first");
  ZP_REQUIRE(dtype == ScalarType::Byte || dtype == ScalarType::Char,
             std::string(what) + ": dtype must be uint8 or int8");
  check_qparams(what, "a", a_scale, a_zero_point, a.scalar_type());
  check_qparams(what, "b", b_scale, b_zero_point, b.scalar_type());
  check_qparams(what, "y", scale, zero_point, dtype);
  a = dense(a);
  if (!same_layout(a, b))
    b = is_channels_last(a) && !a.is_contiguous() ? to_channels_last(b) : torch::stable::contiguous(b);
  Tensor out = empty_like_dense(a, dtype);
  p.a = bytes(a);
  p.b = bytes(b);
  p.out = bytes(out);
  p.a_zero_point = to_u8_domain(a_zero_point, a.scalar_type());
  p.b_zero_point = to_u8_domain(b_zero_point, b.scalar_type());
  p.out_zero_point = to_u8_domain(zero_point, dtype);
  p.a_xor = sign_flip(a.scalar_type());
  p.b_xor = sign_flip(b.scalar_type());
  p.out_xor = sign_flip(dtype);
  p.lo = static_cast<uint8_t>(to_u8_domain(quant_min, dtype));
  p.hi = static_cast<uint8_t>(to_u8_domain(quant_max, dtype));
  const int64_t n = a.numel();
  parallel((n + kBlock - 1) / kBlock, kBlock, [&](int64_t begin, int64_t end) {
    BinaryParams part = p;
    part.a += begin * kBlock;
    part.b += begin * kBlock;
    part.out += begin * kBlock;
    kernel(part, std::min(n, end * kBlock) - begin * kBlock);
  });
  return out;
}

Tensor add(Tensor a, double a_scale, int64_t a_zero_point, Tensor b, double b_scale, int64_t b_zero_point, double scale,
           int64_t zero_point, int64_t quant_min, int64_t quant_max, ScalarType dtype) {
  BinaryParams p = {};
  const double inverse = 1.0 / as_f32(scale);
  p.a_mult = static_cast<float>(as_f32(a_scale) * inverse);
  p.b_mult = static_cast<float>(as_f32(b_scale) * inverse);
  return run_binary("add", kernels().add, a, b, p, a_scale, a_zero_point, b_scale, b_zero_point, scale, zero_point,
                    quant_min, quant_max, dtype);
}

Tensor mul(Tensor a, double a_scale, int64_t a_zero_point, Tensor b, double b_scale, int64_t b_zero_point, double scale,
           int64_t zero_point, int64_t quant_min, int64_t quant_max, ScalarType dtype) {
  BinaryParams p = {};
  p.a_mult = static_cast<float>(as_f32(a_scale) * as_f32(b_scale) * (1.0 / as_f32(scale)));
  return run_binary("mul", kernels().mul, a, b, p, a_scale, a_zero_point, b_scale, b_zero_point, scale, zero_point,
                    quant_min, quant_max, dtype);
}

Tensor lookup(Tensor x, Tensor table) {
  ZP_REQUIRE(is_byte(x), "lookup: x must be uint8 or int8");
  ZP_REQUIRE(is_byte(table) && table.numel() == 256 && table.is_contiguous(),
             "lookup: table must be 256 contiguous 8-bit values");
  x = dense(x);
  Tensor out = empty_like_dense(x, table.scalar_type());
  const int64_t n = x.numel();
  const KernelTable& kernel = kernels();
  parallel((n + kBlock - 1) / kBlock, kBlock, [&](int64_t begin, int64_t end) {
    kernel.lookup(bytes(x) + begin * kBlock, std::min(n, end * kBlock) - begin * kBlock, bytes(table),
                  bytes(out) + begin * kBlock);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zeropoint, CPU, m) {
  m.impl("add", TORCH_BOX(&add));
  m.impl("mul", TORCH_BOX(&mul));
  m.impl("lookup", TORCH_BOX(&lookup));
}

}  // namespace zeropoint
