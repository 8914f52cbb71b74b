// zeropoint::add_norm: a residual sum, its layer or RMS norm, and that in 8 bits, in one pass over rows of float32.
#include <cmath>

#include "../engine/operators.h"
#include "../kernels/dispatch.h"
#include "epilogue_params.h"
#include "threads.h"

namespace zeropoint {
namespace {

std::tuple<Tensor, Tensor, Tensor> add_norm(Tensor x, OptionalTensor residual, OptionalTensor weight,
                                            OptionalTensor bias, double eps, bool centered, bool keep_sum,
                                            bool keep_norm, double scale, int64_t zero_point,
                                            std::optional<ScalarType> dtype) {
  ZP_REQUIRE(x.scalar_type() == ScalarType::Float && x.dim() >= 1, "add_norm: x must be float32 [..., features]");
  ZP_REQUIRE(std::isfinite(eps) && eps >= 0, "add_norm: eps must be finite and at least 0");
  const int64_t n = x.size(-1);
  const std::vector<int64_t> sizes = sizes_of(x);
  ZP_REQUIRE(!residual || (residual->scalar_type() == ScalarType::Float && sizes_of(*residual) == sizes),
             "add_norm: residual must be float32 of the shape of x");
  for (const OptionalTensor* t : {&weight, &bias})
    ZP_REQUIRE(!*t || ((*t)->scalar_type() == ScalarType::Float && (*t)->is_contiguous() && (*t)->numel() == n),
               "add_norm: weight and bias must be contiguous float32 [" + std::to_string(n) + "]");
  if (dtype) {
    ZP_REQUIRE(*dtype == ScalarType::Byte || *dtype == ScalarType::Char, "add_norm: dtype must be uint8 or int8");
    check_qparams("add_norm", "y", scale, zero_point, *dtype);
  }
  x = to_contiguous(x);
  if (residual) residual = to_contiguous(*residual);
  const auto result = [&](size_t number, bool wanted, ScalarType type) {
    return empty_contiguous(wanted ? sizes : std::vector<int64_t>{0}, type, number);
  };
  const Tensor sum = result(0, keep_sum, ScalarType::Float), norm = result(1, keep_norm, ScalarType::Float),
               q = result(2, dtype.has_value(), dtype.value_or(ScalarType::Byte));
  if (x.numel() == 0) return {sum, norm, q};
  const auto at = [](const Tensor& t, int64_t i) { return static_cast<float*>(t.data_ptr()) + i; };
  const auto fixed = [&](const OptionalTensor& t) { return t ? at(*t, 0) : nullptr; };
  const NormParams params{.n = n,
                          .weight = fixed(weight),
                          .bias = fixed(bias),
                          .eps = static_cast<float>(eps),
                          .centered = centered,
                          .inv_scale = 1.0f / static_cast<float>(scale),
                          .zero_point = dtype ? to_u8_domain(zero_point, *dtype) : 0,
                          .out_xor = dtype ? sign_flip(*dtype) : uint8_t{0}};
  const KernelTable& kernel = kernels();
  parallel(x.numel() / n, 4 * n, [&](int64_t begin, int64_t end) {
    auto* rows = reinterpret_cast<float*>(scratch(Scratch::kWorker, static_cast<size_t>(n) * 8));
    for (int64_t first = begin * n; first < end * n; first += n) {
      float* own_sum = keep_sum ? at(sum, first) : rows;
      if (keep_sum && !residual) std::copy_n(at(x, first), n, own_sum);
      kernel.norm_row(params, at(x, first), residual ? at(*residual, first) : nullptr, own_sum,
                      keep_norm ? at(norm, first) : (dtype ? nullptr : rows + n), dtype ? bytes(q) + first : nullptr);
    }
  });
  return {sum, norm, q};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zeropoint, CPU, m) { ZP_OPERATOR_OVER(m, "add_norm", add_norm, 1); }

}  // namespace zeropoint
