// zeropoint::normalize and softmax on 8-bit tensors.
#include <cmath>

#include "../engine/operators.h"
#include "../kernels/dispatch.h"
#include "epilogue_params.h"
#include "threads.h"

namespace zeropoint {
namespace {

Tensor normalize(Tensor x, int64_t rows, OptionalTensor weight, OptionalTensor bias, int64_t inner, double x_scale,
                 int64_t x_zero_point, double eps, bool centered, double scale, int64_t zero_point, int64_t quant_min,
                 int64_t quant_max, ScalarType dtype) {
  ZP_REQUIRE(is_byte(x), "normalize: x must be uint8 or int8");
  ZP_REQUIRE(dtype == ScalarType::Byte || dtype == ScalarType::Char, "normalize: dtype must be uint8 or int8");
  check_qparams("normalize", "x", x_scale, x_zero_point, x.scalar_type());
  check_qparams("normalize", "y", scale, zero_point, dtype);
  ZP_REQUIRE(std::isfinite(eps) && eps >= 0, "normalize: eps must be finite and at least 0");
  ZP_REQUIRE(rows >= 0 && inner >= 1 && (rows == 0 ? x.numel() == 0 : x.numel() % rows == 0),
             "normalize: x cannot be cut into " + std::to_string(rows) + " rows");
  const int64_t channels = weight ? weight->numel() : bias ? bias->numel() : 1;
  for (const OptionalTensor* t : {&weight, &bias})
    ZP_REQUIRE(!*t || ((*t)->scalar_type() == ScalarType::Float && (*t)->is_contiguous() && (*t)->numel() == channels &&
                       channels > 0),
               "normalize: weight and bias must be contiguous float32 of the same size");
  x = to_contiguous(x);
  Tensor out = empty_contiguous(sizes_of(x), dtype);
  if (x.numel() == 0) return out;
  const int64_t n = x.numel() / rows;
  ZP_REQUIRE(n <= int64_t{1} << 23, "normalize: rows may have at most 2^23 elements, for exact sums");
  const double inverse = 1.0 / as_f32(scale);
  auto* w = reinterpret_cast<float*>(scratch(Scratch::kColumns, static_cast<size_t>(channels) * 8));
  float* b = w + channels;
  for (int64_t c = 0; c < channels; ++c) {
    w[c] = static_cast<float>(weight ? static_cast<double>(static_cast<const float*>(weight->data_ptr())[c]) * inverse
                                     : inverse);
    b[c] =
        bias ? static_cast<float>(static_cast<double>(static_cast<const float*>(bias->data_ptr())[c]) * inverse) : 0.0f;
  }
  NormalizeParams p = {};
  p.x_xor = sign_flip(x.scalar_type());
  p.out_xor = sign_flip(dtype);
  p.x_zero_point = to_u8_domain(x_zero_point, x.scalar_type());
  p.out_zero_point = to_u8_domain(zero_point, dtype);
  p.lo = static_cast<uint8_t>(to_u8_domain(quant_min, dtype));
  p.hi = static_cast<uint8_t>(to_u8_domain(quant_max, dtype));
  const double s = as_f32(x_scale), count = static_cast<double>(n);
  const KernelTable& kernel = kernels();
  parallel(rows, 4 * n, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const uint8_t* source = bytes(x) + r * n;
      uint8_t* target = bytes(out) + r * n;
      int64_t sum, squares;
      kernel.row_sums(source, n, p.x_xor, &sum, &squares);
      const int64_t z = p.x_zero_point;
      squares += z * (n * z - 2 * sum);
      sum -= n * z;
      const double variance = centered ? static_cast<double>(n * squares - sum * sum) / (count * count)
                                       : static_cast<double>(squares) / count;
      const auto mean = centered ? static_cast<float>(static_cast<double>(sum) / count) : 0.0f;
      const auto rstd = static_cast<float>(s / std::sqrt(variance * (s * s) + eps));
      // Runs that share one weight, or (inner 1) have one each; a row may begin anywhere in the weights.
      for (int64_t i = 0; i < n;) {
        const int64_t at = r * n + i, c = at / inner % channels;
        const int64_t run = channels == 1 ? n : inner > 1 ? inner - at % inner : channels - c;
        const int64_t length = std::min(n - i, run);
        kernel.normalize_row(p, source + i, length, mean, rstd, w + c, b + c, channels == 1 || inner > 1, target + i);
        i += length;
      }
    }
  });
  return out;
}

// exp in float64 from additions and multiplications alone, so that its last bit is the same everywhere; x <= 0.
double exact_exp(double x) {
  x = x < -40.0 ? -40.0 : x;  // times 2^23 and rounded, that is 0
  const double n = std::nearbyint(x * 1.4426950408889634);
  const double r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  double p = 1.0 / 479001600.0;
  for (const double divisor :
       {39916800.0, 3628800.0, 362880.0, 40320.0, 5040.0, 720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0})
    p = p * r + 1.0 / divisor;
  return std::ldexp(p, static_cast<int>(n));
}

Tensor softmax(Tensor x, int64_t dim, double x_scale, double scale, int64_t zero_point, int64_t quant_min,
               int64_t quant_max, ScalarType dtype) {
  ZP_REQUIRE(is_byte(x), "softmax: x must be uint8 or int8");
  ZP_REQUIRE(dtype == ScalarType::Byte || dtype == ScalarType::Char, "softmax: dtype must be uint8 or int8");
  const int64_t dims = x.dim();
  ZP_REQUIRE(
      dim >= -std::max<int64_t>(dims, 1) && dim < std::max<int64_t>(dims, 1),
      "softmax: dim " + std::to_string(dim) + " is outside the " + std::to_string(dims) + " dimensions of the tensor");
  check_qparams("softmax", "x", x_scale, 0, x.scalar_type());
  check_qparams("softmax", "y", scale, zero_point, dtype);
  if (dim < 0) dim += dims;
  x = to_contiguous(x);
  Tensor out = empty_contiguous(sizes_of(x), dtype);
  if (x.numel() == 0) return out;
  const int64_t n = dims == 0 ? 1 : x.size(dim);
  int64_t inner = 1;
  for (int64_t i = dim + 1; i < dims; ++i) inner *= x.size(i);
  int32_t powers[511] = {};
  for (int d = 0; d < 256; ++d)
    powers[255 - d] =
        static_cast<int32_t>(std::nearbyint(exact_exp(-static_cast<double>(d) * as_f32(x_scale)) * 8388608.0));
  SoftmaxParams p = {};
  p.powers = powers;
  p.scale = as_f32(scale);
  p.out_zero_point = to_u8_domain(zero_point, dtype);
  p.x_xor = sign_flip(x.scalar_type());
  p.out_xor = sign_flip(dtype);
  p.lo = static_cast<uint8_t>(to_u8_domain(quant_min, dtype));
  p.hi = static_cast<uint8_t>(to_u8_domain(quant_max, dtype));
  const KernelTable& kernel = kernels();
  parallel(x.numel() / n, 4 * n + 256, [&](int64_t begin, int64_t end) {
    uint8_t table[256] = {};
    uint8_t* row = inner == 1 ? nullptr : scratch(Scratch::kWorker, static_cast<size_t>(n));
    for (int64_t r = begin; r < end; ++r) {
      const int64_t first = r / inner * n * inner + r % inner;
      const uint8_t* source = bytes(x) + first;
      uint8_t* target = bytes(out) + first;
      if (inner > 1) {
        for (int64_t i = 0; i < n; ++i) row[i] = source[i * inner];
        kernel.softmax_table(p, row, n, table);
        for (int64_t i = 0; i < n; ++i) target[i * inner] = table[row[i] ^ p.x_xor];
      } else {
        kernel.softmax_table(p, source, n, table);
        if (p.x_xor)
          for (int q = 0; q < 128; ++q) std::swap(table[q], table[q + 128]);  // by the bytes as stored
        kernel.lookup(source, n, table, target);
      }
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zeropoint, CPU, m) {
  ZP_OPERATOR(m, "normalize", normalize);
  ZP_OPERATOR(m, "softmax", softmax);
}

}  // namespace zeropoint
