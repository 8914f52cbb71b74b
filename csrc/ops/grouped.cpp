// zeropoint::linear_grouped: float activations times 8- or 4-bit weights with qparams per group of K.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>

#include "../engine/operators.h"
#include "../kernels/dispatch.h"
#include "../pack/grouped_pack.h"
#include "../torch_stable.h"
#include "threads.h"

namespace zeropoint {
namespace {

bool is_float(ScalarType t) { return t == ScalarType::Float || t == ScalarType::BFloat16 || t == ScalarType::Half; }

bool is_paired(const Tensor& weight) { return weight.scalar_type() == ScalarType::Byte; }

int64_t in_features(const Tensor& weight) { return is_paired(weight) ? 2 * weight.size(1) : weight.size(1); }

void check_groups(const char* what, const Tensor& weight, const Tensor& scale, const OptionalTensor& zero_point,
                  int64_t group_size, int64_t bits) {
  ZP_REQUIRE(
      weight.dim() == 2 && is_byte(weight) && weight.size(1) > 0 && (bits == 4 || !is_paired(weight)),
      std::string(what) +
          ": weight must be int8 [out_features, in_features], or of 4 bits uint8 [out_features, in_features / 2]");
  const int64_t groups = group_size > 0 ? (in_features(weight) + group_size - 1) / group_size : 0;
  ZP_REQUIRE(scale.scalar_type() == ScalarType::Float && scale.is_contiguous() && scale.dim() == 2 &&
                 scale.size(0) == weight.size(0) && (scale.size(1) == 1 || scale.size(1) == groups),
             std::string(what) + ": w_scale must be contiguous float32 [out_features, 1 or " + std::to_string(groups) +
                 " groups]");
  ZP_REQUIRE(
      !zero_point || (zero_point->scalar_type() == ScalarType::Float && zero_point->is_contiguous() &&
                      zero_point->dim() == 2 && zero_point->size(0) == weight.size(0) && zero_point->size(1) == groups),
      std::string(what) + ": w_zero_point must be contiguous float32 [out_features, " + std::to_string(groups) +
          " groups]");
}

Tensor linear_grouped_pack(Tensor weight, Tensor w_scale, OptionalTensor w_zero_point, int64_t group_size,
                           int64_t w_bits) {
  check_groups("linear_grouped_pack", weight, w_scale, w_zero_point, group_size, w_bits);
  const GroupedHeader h = plan_grouped(weight.size(0), in_features(weight), w_bits, group_size, w_scale.size(1) > 1,
                                       w_zero_point.has_value(), kernels());
  Tensor blob = empty_packed(h.total_bytes);
  pack_grouped(h, bytes(weight), is_paired(weight), weight.stride(0), weight.stride(1),
               static_cast<const float*>(w_scale.data_ptr()),
               w_zero_point ? static_cast<const float*>(w_zero_point->data_ptr()) : nullptr, bytes(blob));
  return blob;
}

// Row `i` of x as float32; `buffer` holds it where x has another dtype.
const float* row_of(const Tensor& x, int64_t i, int64_t k, float* buffer) {
  if (x.scalar_type() == ScalarType::Float) return static_cast<const float*>(x.data_ptr()) + i * k;
  if (x.scalar_type() == ScalarType::BFloat16) {
    const auto* source = static_cast<const uint16_t*>(x.data_ptr()) + i * k;
    for (int64_t j = 0; j < k; ++j) {
      const uint32_t wide = static_cast<uint32_t>(source[j]) << 16;
      __builtin_memcpy(buffer + j, &wide, 4);
    }
  } else {
    const auto* source = static_cast<const torch::headeronly::Half*>(x.data_ptr()) + i * k;
    for (int64_t j = 0; j < k; ++j) buffer[j] = static_cast<float>(source[j]);
  }
  return buffer;
}

constexpr int64_t kPart = 64;  // columns: all instruction sets' panels end with them

// Whether `parts` of all columns follow each other and end with panels.
bool are_parts(const std::vector<int64_t>& parts, int64_t columns) {
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i] < 1 || parts[i] > columns || (parts[i] % kPart != 0 && i + 1 < parts.size())) return false;
    columns -= parts[i];
  }
  return columns == 0;
}

// A tensor for each of `parts`, which are numbers of columns that follow each other; none: one of all.
std::vector<Tensor> product(Tensor x, Tensor weight, Tensor packed, Tensor w_scale, OptionalTensor w_zero_point,
                            OptionalTensor bias, int64_t group_size, int64_t w_bits, int64_t x_bits, bool relu,
                            std::vector<int64_t> parts) {
  constexpr const char* what = "linear_grouped";
  const KernelTable& kernel = kernels();
  ZP_REQUIRE(is_float(x.scalar_type()) && x.dim() >= 1,
             "linear_grouped: x must be float32, bfloat16 or float16 [..., in_features]");
  ZP_REQUIRE(x_bits == 8 || x_bits == 15,
             "linear_grouped: activations have 8 or 15 bits, got " + std::to_string(x_bits));
  const GroupedHeader& h = read_grouped(bytes(packed), packed.numel(), kernel, what);
  check_groups(what, weight, w_scale, w_zero_point, group_size, w_bits);
  ZP_REQUIRE(h.n == weight.size(0) && h.k == in_features(weight) && h.group_size == group_size && h.bits == w_bits &&
                 (h.group_scales != 0) == (w_scale.size(1) > 1) && (h.zero_points != 0) == w_zero_point.has_value(),
             "linear_grouped: weight and packed disagree in shape, bits or groups");
  ZP_REQUIRE(x.size(-1) == h.k, "linear_grouped: x has " + std::to_string(x.size(-1)) +
                                    " features in its last dimension, the weight expects " + std::to_string(h.k));
  ZP_REQUIRE(!bias || (bias->scalar_type() == ScalarType::Float && bias->is_contiguous() && bias->numel() == h.n),
             "linear_grouped: bias must be contiguous float32 with " + std::to_string(h.n) + " values");
  x = to_contiguous(x);
  const int64_t k = h.k, n = h.n, groups = h.groups(), k_padded = h.k_padded(), m = x.numel() / k;
  const int terms = x_bits == 15 ? 2 : 1;
  ZP_REQUIRE(parts.empty() || are_parts(parts, n),
             "linear_grouped_split: parts must be multiples of 64 but for the last one, with the weight's " +
                 std::to_string(n) + " outputs together");
  if (parts.empty()) parts = {n};
  std::vector<int64_t> sizes = sizes_of(x);
  std::vector<Tensor> out;
  for (const int64_t columns : parts) {
    sizes.back() = columns;
    out.push_back(empty_contiguous(sizes, ScalarType::Float, out.size()));
  }
  const auto finished = [&] {
    if (x.scalar_type() != ScalarType::Float)
      for (Tensor& t : out) t = torch::stable::to(t, x.scalar_type());
    return out;
  };
  if (m == 0 || n == 0) return finished();

  auto* data = reinterpret_cast<int8_t*>(scratch(Scratch::kInput, static_cast<size_t>(m * terms * k_padded)));
  auto* scale = reinterpret_cast<float*>(scratch(Scratch::kRows, static_cast<size_t>(m * groups) * 8));
  auto* sum = reinterpret_cast<int32_t*>(scale + m * groups);
  parallel(m, k, [&](int64_t begin, int64_t end) {
    auto* buffer = reinterpret_cast<float*>(scratch(Scratch::kWorker, static_cast<size_t>(k) * 4));
    for (int64_t i = begin; i < end; ++i) {
      const float* row = row_of(x, i, k, buffer);
      int8_t* high = data + i * terms * k_padded;
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t first = g * group_size, real = std::min(group_size, k - first);
        kernel.quantize_group(row + first, real, std::min(group_size, k_padded - first), high + first,
                              terms == 2 ? high + k_padded + first : nullptr, scale + i * groups + g,
                              sum + i * groups + g);
      }
    }
  });
  for (int64_t i = 0; i < m * groups; ++i)
    ZP_REQUIRE(std::isfinite(scale[i]),
               "linear_grouped: the input has infinite values, which leave no range to quantize to");

  GroupedParams p = {};
  p.a = data;
  p.a_scale = scale;
  p.a_sum = sum;
  p.k_padded = k_padded;
  p.group_size = group_size;
  p.groups = groups;
  p.terms = terms;
  p.bits = h.bits;
  p.offset = h.offset();
  p.group_scales = h.group_scales != 0;
  p.zero_points = h.zero_points != 0;
  p.b = bytes(packed) + kGroupedDataOffset;
  p.column_scale = static_cast<const float*>(w_scale.data_ptr());
  p.column_bias = bias ? static_cast<const float*>(bias->data_ptr()) : nullptr;
  p.relu = relu;
  const size_t worker = kernel.grouped_scratch(p);
  const int64_t columns = kernel.panel_columns();
  parallel(kernel.panels(n), m * terms * k * columns / 32, [&](int64_t begin, int64_t end) {
    GroupedParams part = p;
    int64_t first = 0;  // column of all
    for (size_t i = 0; i < parts.size(); first += parts[i++]) {
      part.first_column = first;
      part.n = first + parts[i];
      part.out = static_cast<float*>(out[i].data_ptr());
      part.out_stride = parts[i];
      const int64_t panel0 = std::max(begin, first / columns), panel1 = std::min(end, kernel.panels(part.n));
      if (panel0 < panel1) kernel.grouped(part, 0, m, panel0, panel1, scratch(Scratch::kWorker, worker));
    }
  });
  return finished();
}

Tensor linear_grouped(Tensor x, Tensor weight, Tensor packed, Tensor w_scale, OptionalTensor w_zero_point,
                      OptionalTensor bias, int64_t group_size, int64_t w_bits, int64_t x_bits, bool relu) {
  return product(x, weight, packed, w_scale, w_zero_point, bias, group_size, w_bits, x_bits, relu, {})[0];
}

std::vector<Tensor> linear_grouped_split(Tensor x, Tensor weight, Tensor packed, Tensor w_scale,
                                         OptionalTensor w_zero_point, OptionalTensor bias, int64_t group_size,
                                         int64_t w_bits, int64_t x_bits, bool relu, std::vector<int64_t> parts) {
  ZP_REQUIRE(!parts.empty(), "linear_grouped_split: parts must not be empty");
  return product(x, weight, packed, w_scale, w_zero_point, bias, group_size, w_bits, x_bits, relu, std::move(parts));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zeropoint, CPU, m) {
  ZP_OPERATOR(m, "linear_grouped_pack", linear_grouped_pack);
  ZP_OPERATOR(m, "linear_grouped", linear_grouped);
  ZP_OPERATOR(m, "linear_grouped_split", linear_grouped_split);
}

}  // namespace zeropoint
