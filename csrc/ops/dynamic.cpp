// zeropoint::linear_dynamic and rnn_dynamic: float in, float out, activations quantized at run time.
#include <algorithm>
#include <cmath>

#include "../engine/operators.h"
#include "gemm.h"
#include "team.h"
#include "threads.h"
#include "unit_share.h"

namespace zeropoint {
namespace {

constexpr float kEps = 1.1920928955078125e-07f;  // smallest scale, as choose_qparams

struct RowQparams {
  float scale, inverse;
  int32_t zero_point;
};

// choose_qparams for quint8, affine, over [lo, hi] that holds 0 (tensor/_qparams.py).
RowQparams choose(float lo, float hi, float levels) {
  RowQparams q;
  q.scale = std::max((hi - lo) / levels, kEps);
  q.inverse = 1.0f / q.scale;
  // Half to even of a value in [-levels, 0]; without a call, as this stands between the steps of a recurrent layer.
  const float shift = (lo / q.scale + 12582912.0f) - 12582912.0f;
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
    header = &linear_header(what, kernel, weight, packed);
    blob = bytes(packed);
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

// Quantized rows in this thread's scratch.
struct Rows {
  uint8_t* data;
  float *low, *high, *scale, *inverse;
  int32_t* zero_point;

  Rows(int64_t m, uint8_t* bytes, Scratch qparams) : data(bytes) {
    low = reinterpret_cast<float*>(scratch(qparams, static_cast<size_t>(m) * 20));
    high = low + m;
    scale = high + m;
    inverse = scale + m;
    zero_point = reinterpret_cast<int32_t*>(inverse + m);
  }

  // From ranges to qparams; false where a range is not finite.
  bool choose_all(int64_t m, bool per_row, float levels) {
    if (!per_row)
      for (int64_t i = 1; i < m; ++i) {
        low[0] = std::min(low[0], low[i]);
        high[0] = std::max(high[0], high[i]);
      }
    RowQparams q = {};
    for (int64_t i = 0; i < m; ++i) {
      if (per_row || i == 0) q = choose(low[i], high[i], levels);
      if (!std::isfinite(q.scale)) return false;  // also where a bound is infinite
      scale[i] = q.scale;
      inverse[i] = q.inverse;
      zero_point[i] = q.zero_point;
    }
    return true;
  }
};

[[noreturn]] void no_range(const char* what) {
  throw std::invalid_argument(std::string(what) +
                              ": the input has infinite values, which leave no range to quantize to, or a range that "
                              "overflows float32");
}

// The product of the rows from `first` on.
IgemmParams product(const DynamicWeight& w, const Rows& rows, int64_t first, bool relu, float* out) {
  IgemmParams p = {};
  p.a = rows.data + first * w.header->kc;
  p.a_stride = w.header->kc;
  p.unique_taps = 1;
  p.taps = w.header->repeats;
  p.kc = w.header->kc;
  p.b = w.blob + w.header->data_offset;
  p.n = w.header->n;
  p.out = out;
  p.out_stride = w.header->n;
  p.epilogue.output = Epilogue::Output::kRowF32;
  p.epilogue.init = w.zeros;
  p.epilogue.row_scale = rows.scale + first;
  p.epilogue.row_zero_point = rows.zero_point + first;
  p.epilogue.column_sums = column_sums(w.blob);
  p.epilogue.column_scale = w.scale;
  p.epilogue.column_bias = w.bias;
  p.epilogue.relu = relu;
  return p;
}

// Quantizes x [m, k] on all threads.
void quantize_rows(const char* what, const KernelTable& kernel, const float* x, int64_t m, int64_t k, bool per_row,
                   float levels, Rows& rows) {
  parallel(m, k, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernel.row_range(x + i * k, k, rows.low + i, rows.high + i);
  });
  if (!rows.choose_all(m, per_row, levels)) no_range(what);
  parallel(m, k, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      kernel.quantize_u8(x + i * k, k, rows.inverse[i], rows.zero_point[i], 0, rows.data + i * k);
  });
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
  const int64_t k = w.header->kc, m = x.numel() / k;
  if (m == 0 || w.header->n == 0) return out;
  Rows rows(m, scratch(Scratch::kInput, static_cast<size_t>(m * k) + 4), Scratch::kRows);
  quantize_rows(what, kernel, floats(x), m, k, per_row, reduce_range ? 127.0f : 255.0f, rows);
  run_igemm(kernel, product(w, rows, 0, relu, static_cast<float*>(out.data_ptr())), m);
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
  ZP_REQUIRE(h.scalar_type() == ScalarType::Float && h.dim() == 2, "rnn_dynamic: h must be float32 [batch, hidden]");
  ZP_REQUIRE(x.scalar_type() == ScalarType::Float && (x.dim() == 2 || (x.dim() == 3 && batch_sizes.empty())),
             "rnn_dynamic: x must be float32 [rows, features], or [steps, batch, features] without batch sizes");
  const bool padded = x.dim() == 3;
  if (padded) {
    ZP_REQUIRE(x.size(1) == h.size(0) && x.size(1) > 0, "rnn_dynamic: x and h must have the same batch, 1 or more");
    batch_sizes.assign(static_cast<size_t>(x.size(0)), x.size(1));
  }
  const DynamicWeight from_input(what, kernel, ih, ih_packed, ih_scale, ih_bias);
  const DynamicWeight from_state(what, kernel, hh, hh_packed, hh_scale, hh_bias);
  const int64_t hidden = h.size(1), batch = h.size(0), gates = kind == kLstm ? 4 : kind == kGru ? 3 : 1;
  ZP_REQUIRE(from_input.header->n == gates * hidden && from_state.header->n == gates * hidden &&
                 from_state.header->kc == hidden && from_input.header->kc == x.size(-1),
             "rnn_dynamic: x has " + std::to_string(x.size(-1)) + " features and h " + std::to_string(hidden) +
                 ", the weights expect " + std::to_string(from_input.header->kc) + " and " +
                 std::to_string(from_state.header->kc) + " with " + std::to_string(gates) + " gates");
  ZP_REQUIRE(kind != kLstm || (c.scalar_type() == ScalarType::Float && sizes_of(c) == sizes_of(h)),
             "rnn_dynamic: c must be float32 of h's shape");
  int64_t total = 0;
  for (int64_t n : batch_sizes) {
    ZP_REQUIRE(n >= 1 && n <= batch, "rnn_dynamic: batch sizes must lie between 1 and h's batch");
    total += n;
  }
  ZP_REQUIRE(padded || total == x.size(0), "rnn_dynamic: the batch sizes sum to " + std::to_string(total) + ", x has " +
                                               std::to_string(x.size(0)) + " rows");
  x = to_contiguous(x);
  h = torch::stable::clone(to_contiguous(h));
  c = torch::stable::clone(to_contiguous(c));
  Tensor out = padded ? empty_contiguous({x.size(0), batch, hidden}, ScalarType::Float)
                      : empty_contiguous({total, hidden}, ScalarType::Float);
  auto* hp = static_cast<float*>(h.data_ptr());
  auto* cp = static_cast<float*>(c.data_ptr());
  auto* op = static_cast<float*>(out.data_ptr());
  const auto steps = static_cast<int64_t>(batch_sizes.size());
  const int64_t features = from_input.header->kc, columns = gates * hidden;
  Rows inputs(total, scratch(Scratch::kInput, static_cast<size_t>(total * features) + 4), Scratch::kRows);
  quantize_rows(what, kernel, floats(x), total, features, per_row, 255.0f, inputs);
  // The inputs' product runs some steps ahead: enough rows to multiply well, few enough to stay in the cache, and about
  // as many in each chunk, as a row alone takes as long as reading all weights.
  const int64_t least = std::max({batch, int64_t{48}, (int64_t{1} << 17) / std::max<int64_t>(columns, 1)});
  const int64_t chunks = std::max<int64_t>(1, total / least);
  const int64_t ahead = total / chunks + 1 + batch;  // at most: whole steps
  auto* a = reinterpret_cast<float*>(scratch(Scratch::kGates, static_cast<size_t>((ahead + batch) * columns) * 4));
  float* b = a + ahead * columns;
  uint8_t* shared = scratch(Scratch::kState, static_cast<size_t>(batch * hidden) + 4);  // the quantized state
  const UnitShare share(kernel, hidden, gates);
  const bool small = share.small(total / std::max<int64_t>(steps, 1));
  // Rows do not need each other. Where each member has enough of them to multiply well and the weights fit its own
  // cache, members share rows; else they share units, so that each weight is read once.
  const auto cores = static_cast<int64_t>(torch::stable::get_num_threads());
  const bool by_rows = !small && cores > 1 && batch >= 8 &&
                       from_input.header->total_bytes + from_state.header->total_bytes <= int64_t{768} << 10;
  const int64_t threads = small ? 1 : std::min(cores, by_rows ? batch / 4 : share.blocks);
  // Low and high of each member's part of each row, in turn for even and odd steps: the last step's may still be read.
  auto* bounds = reinterpret_cast<float*>(scratch(Scratch::kBounds, static_cast<size_t>(2 * threads * batch) * 8));
  std::atomic<bool> finite{true};
  Team::run(threads, [&](int rank, int size, Team& team) {
    const int64_t unit0 = by_rows ? 0 : share.first(rank, size), units = by_rows ? hidden : share.count(rank, size);
    const int64_t row0 = by_rows ? batch * rank / size : 0, row1 = by_rows ? batch * (rank + 1) / size : batch;
    float *from_x = a, *from_h = b;
    if (by_rows) {
      from_x = reinterpret_cast<float*>(scratch(Scratch::kGates, static_cast<size_t>(2 * (row1 - row0) * columns) * 4));
      from_h = from_x + (row1 - row0) * columns;
    }
    const auto multiply = [&](const IgemmParams& p, int64_t m) {
      share.multiply(kernel, p, m, by_rows ? 0 : rank, by_rows ? 1 : size);
    };
    const auto size_of = [&](int64_t s) { return batch_sizes[static_cast<size_t>(reverse ? steps - 1 - s : s)]; };
    Rows state(batch, shared, Scratch::kStateRows);
    // Ranges of the state's first n rows, of which this member owns m, from what all members see of them.
    const auto find_ranges = [&](int64_t s, int64_t n, int64_t m) {
      float* parts = bounds + s % 2 * 2 * threads * batch;
      float* mine = parts + rank * 2 * batch;
      std::fill(mine, mine + 2 * n, 0.0f);
      for (int64_t i = row0; i < row0 + m && units > 0; ++i)
        kernel.row_range(hp + i * hidden + unit0, units, mine + 2 * i, mine + 2 * i + 1);
      const bool enough = by_rows && per_row;  // nobody else has anything to say about the own rows
      if (!enough) team.barrier();
      for (int64_t i = 0; i < n; ++i) {
        state.low[i] = mine[2 * i];
        state.high[i] = mine[2 * i + 1];
        for (int other = 0; other < size && !enough; ++other) {
          const float* theirs = parts + (other * batch + i) * 2;
          state.low[i] = std::min(state.low[i], theirs[0]);
          state.high[i] = std::max(state.high[i], theirs[1]);
        }
      }
    };
    int64_t at = reverse ? total : 0;  // row of x where the next step starts, or, reversed, ends
    int64_t first = 0, ready = 0;      // rows [first, first + ready) have their product in from_x
    int64_t chunk = 0, done = 0;       // chunks and rows whose product was computed
    for (int64_t s = 0; s < steps; ++s) {
      const int64_t n = size_of(s), m = std::max<int64_t>(std::min(n, row1) - row0, 0);
      find_ranges(s, n, m);
      if (!state.choose_all(n, per_row, 255.0f)) {
        finite = false;  // members that wait for each other have all seen it
        return;
      }
      for (int64_t i = row0; i < row0 + m && units > 0; ++i)
        kernel.quantize_u8(hp + i * hidden + unit0, units, state.inverse[i], state.zero_point[i], 0,
                           shared + i * hidden + unit0);
      if (!by_rows) team.barrier();  // products need all units of the state
      if (reverse) at -= n;
      if (by_rows) {
        first = at + row0;
        if (m > 0) multiply(product(from_input, inputs, first, false, from_x), m);
      } else if (at < first || at >= first + ready) {
        const int64_t before = done, goal = total * ++chunk / chunks;
        for (int64_t t = s; t < steps && done < goal; ++t) done += size_of(t);
        ready = done - before;
        first = reverse ? at + n - ready : at;
        multiply(product(from_input, inputs, first, false, from_x), ready);
      }
      if (m > 0) multiply(product(from_state, state, row0, false, from_h), m);
      if (!by_rows && !share.aligned) team.barrier();  // members need each other's columns
      for (int64_t i = row0; i < row0 + m && units > 0; ++i) {
        const float* ai = from_x + (at + i - first) * columns + unit0;
        const float* bi = from_h + (i - row0) * columns + unit0;
        float* hi = hp + i * hidden + unit0;
        if (kind == kLstm)
          kernel.lstm_gates(ai, bi, hidden, units, hi, cp + i * hidden + unit0);
        else if (kind == kGru)
          kernel.gru_gates(ai, bi, hidden, units, hi);
        else
          kernel.rnn_gates(ai, bi, units, kind == kRelu, hi);
        std::copy(hi, hi + units, op + (at + i) * hidden + unit0);
      }
      if (!reverse) at += n;
    }
  });
  if (!finite) no_range(what);
  return {out, h, c};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zeropoint, CPU, m) {
  ZP_OPERATOR(m, "linear_dynamic", linear_dynamic);
  ZP_OPERATOR(m, "rnn_dynamic", rnn_dynamic);
}

}  // namespace zeropoint
