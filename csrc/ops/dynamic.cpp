// zeropoint::linear_dynamic and rnn_dynamic: float in, float out, activations quantized at run time.
#include <cmath>

#include "gemm.h"

namespace zeropoint {
namespace {

constexpr float kEps = 1.1920928955078125e-07f;  // smallest scale, as choose_qparams

struct RowQparams {
  float scale, inverse;
  int32_t zero_point;
};

// choose_qparams for quint8, affine, over [lo, hi] that holds 0 (tensor/_qparams.py).
RowQparams choose(const char* what, float lo, float hi, float levels) {
  ZP_REQUIRE(std::isfinite(lo) && std::isfinite(hi),
             std::string(what) + ": the input has infinite values, which leave no range to quantize to");
  RowQparams q;
  q.scale = std::max((hi - lo) / levels, kEps);
  ZP_REQUIRE(std::isfinite(q.scale), std::string(what) + ": the range of the input overflows float32");
  q.inverse = 1.0f / q.scale;
  const float shift = std::nearbyint(lo / q.scale);
  q.zero_point = static_cast<int32_t>(std::min(std::max(0.0f - shift, 0.0f), levels));
  return q;
}

// A packed weight with what the float output needs, checked once.
struct DynamicWeight {
  const PackedHeader* header;
  const uint8_t* blob;
  const float* scale;  // one per column
  const float* bias;
  const int32_t* zeros;       // initial accumulators
  std::vector<float> spread;  // holds the scales where there is only one

  DynamicWeight(const char* what, const KernelTable& kernel, const Tensor& weight, const Tensor& packed,
                const Tensor& w_scale, const OptionalTensor& b) {
    header = &read_header(bytes(packed), packed.numel(), kernel, what);
    blob = bytes(packed);
    ZP_REQUIRE(header->kind == PackKind::kDirect && header->unique_taps == 1 && header->groups == 1,
               std::string(what) + ": `packed` is a packed convolution weight; use linear_pack");
    ZP_REQUIRE(weight.dim() == 2 && weight.size(0) == header->n && weight.size(1) == header->kc,
               std::string(what) + ": weight and packed disagree in shape");
    ZP_REQUIRE(
        w_scale.scalar_type() == ScalarType::Float && w_scale.is_contiguous() &&
            (w_scale.numel() == 1 || w_scale.numel() == header->n),
        std::string(what) + ": w_scale must be contiguous float32 with 1 or " + std::to_string(header->n) + " values");
    const auto* s = static_cast<const float*>(w_scale.data_ptr());
    scale = s;
    if (w_scale.numel() == 1 && header->n > 1) {
      spread.assign(static_cast<size_t>(header->n), s[0]);
      scale = spread.data();
    }
    bias = nullptr;
    if (b) {
      ZP_REQUIRE(b->scalar_type() == ScalarType::Float && b->is_contiguous() && b->numel() == header->n,
                 std::string(what) + ": bias must be contiguous float32 with " + std::to_string(header->n) + " values");
      bias = static_cast<const float*>(b->data_ptr());
    }
    // Zeros never change: they are shared by all calls of this thread and only grow.
    static thread_local std::vector<int32_t> none;
    if (none.size() < static_cast<size_t>(slots_per_group(*header)))
      none.assign(static_cast<size_t>(slots_per_group(*header)), 0);
    zeros = none.data();
  }
};

// out [m, n] from x [m, k].
void run(const char* what, const KernelTable& kernel, const DynamicWeight& w, const float* x, int64_t m, bool per_row,
         float levels, bool relu, float* out) {
  const int64_t k = w.header->kc, n = w.header->n;
  if (m == 0 || n == 0) return;
  // Per row: low, high, scale, inverse and zero point.
  auto* low = reinterpret_cast<float*>(scratch(Scratch::kRows, static_cast<size_t>(m) * 20));
  float *high = low + m, *scale = high + m, *inverse = scale + m;
  auto* zero_point = reinterpret_cast<int32_t*>(inverse + m);
  parallel(m, k, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernel.row_range(x + i * k, k, low + i, high + i);
  });
  if (!per_row)
    for (int64_t i = 1; i < m; ++i) {
      low[0] = std::min(low[0], low[i]);
      high[0] = std::max(high[0], high[i]);
    }
  RowQparams q = {};
  for (int64_t i = 0; i < m; ++i) {
    if (per_row || i == 0) q = choose(what, low[i], high[i], levels);
    scale[i] = q.scale;
    inverse[i] = q.inverse;
    zero_point[i] = q.zero_point;
  }
  uint8_t* data = scratch(Scratch::kInput, static_cast<size_t>(m * k) + 4);
  parallel(m, k, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernel.quantize_u8(x + i * k, k, inverse[i], zero_point[i], 0, data + i * k);
  });
  IgemmParams p = {};
  p.a = data;
  p.a_stride = k;
  p.unique_taps = 1;
  p.taps = w.header->repeats;
  p.kc = k;
  p.b = w.blob + w.header->data_offset;
  p.n = n;
  p.out = out;
  p.out_stride = n;
  p.epilogue.output = Epilogue::Output::kRowF32;
  p.epilogue.init = w.zeros;
  p.epilogue.row_scale = scale;
  p.epilogue.row_zero_point = zero_point;
  p.epilogue.column_sums = column_sums(w.blob);
  p.epilogue.column_scale = w.scale;
  p.epilogue.column_bias = w.bias;
  p.epilogue.relu = relu;
  run_igemm(kernel, p, m);
}

const float* floats(const Tensor& t) { return static_cast<const float*>(t.data_ptr()); }

Tensor linear_dynamic(Tensor x, Tensor weight, Tensor packed, Tensor w_scale, OptionalTensor, OptionalTensor bias,
                      bool per_row, bool reduce_range, bool relu) {
  constexpr const char* what = "linear_dynamic";
  const KernelTable& kernel = kernels();
  ZP_REQUIRE(x.scalar_type() == ScalarType::Float && x.dim() >= 1,
             "linear_dynamic: x must be float32 [..., in_features]");
  const DynamicWeight w(what, kernel, weight, packed, w_scale, bias);
  ZP_REQUIRE(x.size(-1) == w.header->kc, "linear_dynamic: x has " + std::to_string(x.size(-1)) +
                                             " features in its last dimension, the weight expects " +
                                             std::to_string(w.header->kc));
  x = to_contiguous(x);
  std::vector<int64_t> sizes = sizes_of(x);
  sizes.back() = w.header->n;
  Tensor out = empty_contiguous(sizes, ScalarType::Float);
  run(what, kernel, w, floats(x), x.numel() / w.header->kc, per_row, reduce_range ? 127.0f : 255.0f, relu,
      static_cast<float*>(out.data_ptr()));
  return out;
}

enum Kind : int64_t { kLstm, kGru, kTanh, kRelu };

std::tuple<Tensor, Tensor, Tensor> rnn_dynamic(Tensor x, std::vector<int64_t> batch_sizes, Tensor h, Tensor c,
                                               Tensor ih, Tensor ih_packed, Tensor ih_scale, OptionalTensor,
                                               OptionalTensor ih_bias, Tensor hh, Tensor hh_packed, Tensor hh_scale,
                                               OptionalTensor, OptionalTensor hh_bias, int64_t kind, bool per_row,
                                               bool reverse) {
  constexpr const char* what = "rnn_dynamic";
  const KernelTable& kernel = kernels();
  ZP_REQUIRE(kind >= kLstm && kind <= kRelu, "rnn_dynamic: kind must be 0 (LSTM), 1 (GRU), 2 (tanh) or 3 (relu)");
  ZP_REQUIRE(x.scalar_type() == ScalarType::Float && x.dim() == 2, "rnn_dynamic: x must be float32 [steps, features]");
  ZP_REQUIRE(h.scalar_type() == ScalarType::Float && h.dim() == 2, "rnn_dynamic: h must be float32 [batch, hidden]");
  const DynamicWeight from_input(what, kernel, ih, ih_packed, ih_scale, ih_bias);
  const DynamicWeight from_state(what, kernel, hh, hh_packed, hh_scale, hh_bias);
  const int64_t hidden = h.size(1), batch = h.size(0), gates = kind == kLstm ? 4 : kind == kGru ? 3 : 1;
  ZP_REQUIRE(from_input.header->n == gates * hidden && from_state.header->n == gates * hidden &&
                 from_state.header->kc == hidden && from_input.header->kc == x.size(1),
             "rnn_dynamic: the weights do not fit the sizes of x and h");
  ZP_REQUIRE(kind != kLstm || (c.scalar_type() == ScalarType::Float && sizes_of(c) == sizes_of(h)),
             "rnn_dynamic: c must be float32 of h's shape");
  int64_t total = 0;
  for (int64_t n : batch_sizes) {
    ZP_REQUIRE(n >= 1 && n <= batch, "rnn_dynamic: batch sizes must lie between 1 and h's batch");
    total += n;
  }
  ZP_REQUIRE(total == x.size(0), "rnn_dynamic: the batch sizes sum to " + std::to_string(total) + ", x has " +
                                     std::to_string(x.size(0)) + " rows");
  x = to_contiguous(x);
  h = torch::stable::clone(to_contiguous(h));
  c = torch::stable::clone(to_contiguous(c));
  Tensor out = empty_contiguous({total, hidden}, ScalarType::Float);
  Tensor inputs = empty_contiguous({total, gates * hidden}, ScalarType::Float);
  Tensor states = empty_contiguous({batch, gates * hidden}, ScalarType::Float);
  auto* a = static_cast<float*>(inputs.data_ptr());
  auto* b = static_cast<float*>(states.data_ptr());
  auto* hp = static_cast<float*>(h.data_ptr());
  auto* cp = static_cast<float*>(c.data_ptr());
  auto* op = static_cast<float*>(out.data_ptr());
  run(what, kernel, from_input, floats(x), total, per_row, 255.0f, false, a);
  const auto steps = static_cast<int64_t>(batch_sizes.size());
  int64_t at = reverse ? total : 0;
  for (int64_t s = 0; s < steps; ++s) {
    const int64_t n = batch_sizes[static_cast<size_t>(reverse ? steps - 1 - s : s)];
    if (reverse) at -= n;
    run(what, kernel, from_state, hp, n, per_row, 255.0f, false, b);
    const float* ap = a + at * gates * hidden;
    parallel(n, gates * hidden * 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const float *ai = ap + i * gates * hidden, *bi = b + i * gates * hidden;
        if (kind == kLstm)
          kernel.lstm_gates(ai, bi, hidden, hp + i * hidden, cp + i * hidden);
        else if (kind == kGru)
          kernel.gru_gates(ai, bi, hidden, hp + i * hidden);
        else
          kernel.rnn_gates(ai, bi, hidden, kind == kRelu, hp + i * hidden);
      }
    });
    std::copy(hp, hp + n * hidden, op + at * hidden);
    if (!reverse) at += n;
  }
  return {out, h, c};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zeropoint, CPU, m) {
  m.impl("linear_dynamic", TORCH_BOX(&linear_dynamic));
  m.impl("rnn_dynamic", TORCH_BOX(&rnn_dynamic));
}

}  // namespace zeropoint
