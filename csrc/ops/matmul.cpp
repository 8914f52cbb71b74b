// zeropoint::matmul: batched product of two activations.
#include <algorithm>
#include <limits>

#include "../engine/operators.h"
#include "gemm.h"
#include "threads.h"

namespace zeropoint {
namespace {

// A batch of matrices with strides in elements; vectors as matrices, missing dimensions as ones.
struct Batch {
  const uint8_t* data;
  std::vector<int64_t> sizes, strides;  // of the batch dimensions
  int64_t rows, columns, row_stride, column_stride;

  Batch(const Tensor& t, bool left) : data(bytes(t)) {
    sizes = sizes_of(t);
    strides = strides_of(t);
    const auto take = [&] {
      const std::pair<int64_t, int64_t> last{sizes.back(), strides.back()};
      sizes.pop_back();
      strides.pop_back();
      return last;
    };
    if (sizes.size() == 1) {
      const auto [n, step] = take();
      rows = left ? 1 : n;
      columns = left ? n : 1;
      row_stride = left ? n : step;
      column_stride = left ? step : 1;
    } else {
      std::tie(columns, column_stride) = take();
      std::tie(rows, row_stride) = take();
    }
  }

  // Offset of batch item `index` of a broadcast batch of `shape`.
  int64_t offset(int64_t index, const std::vector<int64_t>& shape) const {
    int64_t at = 0;
    for (size_t i = 0; i < shape.size(); ++i) {
      const size_t from_end = i + 1;
      const int64_t position = index % shape[shape.size() - from_end];
      index /= shape[shape.size() - from_end];
      if (from_end <= sizes.size() && sizes[sizes.size() - from_end] > 1)
        at += position * strides[strides.size() - from_end];
    }
    return at;
  }
};

std::vector<int64_t> broadcast(const std::vector<int64_t>& a, const std::vector<int64_t>& b) {
  std::vector<int64_t> shape(std::max(a.size(), b.size()));
  for (size_t i = 1; i <= shape.size(); ++i) {
    const int64_t x = i <= a.size() ? a[a.size() - i] : 1, y = i <= b.size() ? b[b.size() - i] : 1;
    ZP_REQUIRE(x == y || x == 1 || y == 1, "matmul: the batch dimensions do not broadcast");
    shape[shape.size() - i] = x == 1 ? y : x;
  }
  return shape;
}

Tensor matmul(Tensor a, double a_scale, int64_t a_zero_point, Tensor b, double b_scale, int64_t b_zero_point,
              double scale, int64_t zero_point, int64_t quant_min, int64_t quant_max, ScalarType dtype) {
  ZP_REQUIRE(is_byte(a) && is_byte(b), "matmul: a and b must be uint8 or int8");
  ZP_REQUIRE(a.dim() > 0 && b.dim() > 0, "matmul: both arguments must have at least one dimension");
  ZP_REQUIRE(dtype == ScalarType::Byte || dtype == ScalarType::Char, "matmul: dtype must be uint8 or int8");
  check_qparams("matmul", "a", a_scale, a_zero_point, a.scalar_type());
  check_qparams("matmul", "b", b_scale, b_zero_point, b.scalar_type());
  check_qparams("matmul", "y", scale, zero_point, dtype);
  if (a.dim() > 1 && a.stride(-1) != 1 && a.size(-1) > 1) a = torch::stable::contiguous(a);
  const Batch left(a, true), right(b, false);
  const int64_t m = left.rows, k = left.columns, n = right.columns;
  ZP_REQUIRE(k == right.rows,
             "matmul: a has " + std::to_string(k) + " columns, b has " + std::to_string(right.rows) + " rows");
  // |a - za| and |b - zb| are at most 255 each.
  ZP_REQUIRE(k <= std::numeric_limits<int32_t>::max() / (255 * 255),
             "matmul: the inner dimension may be at most 33025, so that int32 holds every sum");
  const std::vector<int64_t> shape = broadcast(left.sizes, right.sizes);
  std::vector<int64_t> sizes = shape;
  if (a.dim() > 1) sizes.push_back(m);
  if (b.dim() > 1) sizes.push_back(n);
  Tensor out = empty_contiguous(sizes, dtype);
  if (out.numel() == 0) return out;

  const KernelTable& kernel = kernels();
  const int64_t lanes = kernel.lanes, slots = (n + lanes - 1) / lanes * lanes;
  const int64_t k_groups = ceil_div(k, 4);
  const auto mult = static_cast<float>(as_f32(a_scale) * as_f32(b_scale) * (1.0 / as_f32(scale)));
  ZP_REQUIRE(std::isfinite(mult), "matmul: a_scale * b_scale / y_scale is not finite in float32");
  auto* mults = reinterpret_cast<float*>(scratch(Scratch::kColumns, static_cast<size_t>(slots) * 8));
  float* biases = mults + slots;
  std::fill(mults, mults + slots, mult);
  std::fill(biases, biases + slots, 0.0f);

  const uint8_t a_flip = sign_flip(a.scalar_type());
  const int32_t za = to_u8_domain(a_zero_point, a.scalar_type());
  const int32_t zb = to_u8_domain(b_zero_point, b.scalar_type()) - 128;
  const bool copied = a_flip || k % 4 || left.column_stride != 1;
  // Packs the right matrix of one batch item and sets up its product.
  const auto prepare = [&](int64_t item, IgemmParams& p) {
    auto* init = reinterpret_cast<int32_t*>(
        scratch(Scratch::kEpilogue, static_cast<size_t>(slots) * 4 + static_cast<size_t>(m) * 4 + 64));
    int32_t* row_init = init + slots;
    uint8_t* packed = scratch(Scratch::kGates, static_cast<size_t>(k_groups * slots) * 4);
    ActivationView view = {};
    view.data = right.data + right.offset(item, shape);
    view.k = k;
    view.n = n;
    view.stride_k = right.row_stride;
    view.stride_n = right.column_stride;
    view.flip = sign_flip(b.scalar_type());
    view.zero_point = zb;
    kernel.pack_activation(view, za, packed, init);
    const uint8_t* rows = left.data + left.offset(item, shape);
    int64_t stride = left.row_stride;
    if (copied) {
      // With the sign bit flipped and room to read to a multiple of 4.
      uint8_t* copy = scratch(Scratch::kInput, static_cast<size_t>(m * k) + 4);
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < k; ++j) copy[i * k + j] = rows[i * stride + j * left.column_stride] ^ a_flip;
      rows = copy;
      stride = k;
    }
    p = {};
    if (zb != 0) {
      start_rows(kernel, rows, stride, m, k, zb, row_init);
      p.epilogue.row_init = row_init;
    }
    p.a = rows;
    p.a_stride = stride;
    p.unique_taps = p.taps = 1;
    p.kc = k;
    p.b = packed;
    p.n = n;
    p.out = bytes(out) + item * m * n;
    p.out_stride = n;
    p.epilogue.init = init;
    p.epilogue.mult = mults;
    p.epilogue.bias = biases;
    p.epilogue.zero_point = to_u8_domain(zero_point, dtype);
    p.epilogue.lo = static_cast<uint8_t>(to_u8_domain(quant_min, dtype));
    p.epilogue.hi = static_cast<uint8_t>(to_u8_domain(quant_max, dtype));
    p.epilogue.out_xor = sign_flip(dtype);
  };
  int64_t items = 1;
  for (const int64_t size : shape) items *= size;
  if (items >= static_cast<int64_t>(torch::stable::get_num_threads())) {
    parallel(items, (m + 8) * k * n / 32, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        IgemmParams p;
        prepare(item, p);
        kernel.igemm(p, 0, m, 0, kernel.panels(n), scratch(Scratch::kWorker, kernel.igemm_scratch(p)));
      }
    });
  } else {
    for (int64_t item = 0; item < items; ++item) {
      IgemmParams p;
      prepare(item, p);
      run_igemm(kernel, p, m);
    }
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zeropoint, CPU, m) { ZP_OPERATOR(m, "matmul", matmul); }

}  // namespace zeropoint
