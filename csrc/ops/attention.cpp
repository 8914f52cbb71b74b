// zeropoint::attention: softmax(q k' * factor) v with exact products and 8-bit probabilities.
#include <algorithm>
#include <cmath>

#include "../engine/operators.h"
#include "attention_mask.h"
#include "gemm.h"
#include "threads.h"

namespace zeropoint {
namespace {

constexpr int64_t kRowBlock = 48;  // queries whose scores are alive at once

// One [rows, columns] matrix of a head; columns lie side by side.
struct Head {
  const uint8_t* data;
  int64_t row_stride;
};

struct Operand {
  Tensor tensor;
  uint8_t flip;
  int32_t zero_point;  // of the uint8 domain
  int64_t rows, columns;

  Operand(Tensor t, const char* name, double scale, int64_t zero)
      : tensor(t.stride(-1) == 1 || t.size(-1) == 1 ? t : torch::stable::contiguous(t)),
        flip(sign_flip(t.scalar_type())),
        zero_point(to_u8_domain(zero, t.scalar_type())),
        rows(t.size(2)),
        columns(t.size(3)) {
    check_qparams("attention", name, scale, zero, t.scalar_type());
  }
  Head head(int64_t item, int64_t heads) const {
    return {bytes(tensor) + item / heads * tensor.stride(0) + item % heads * tensor.stride(1), tensor.stride(2)};
  }
};

// What one worker needs for a head.
struct Workspace {
  uint8_t *keys, *values, *queries, *probabilities;
  int32_t *key_init, *value_init, *row_init, *scores, *sums;
  float* mask;
};

Tensor attention(Tensor q, double q_scale, int64_t q_zero_point, Tensor k, double k_scale, int64_t k_zero_point,
                 Tensor v, double v_scale, int64_t v_zero_point, double factor, double scale, int64_t zero_point,
                 ScalarType dtype, OptionalTensor given_mask, bool causal) {
  constexpr const char* what = "attention";
  for (const Tensor& t : {q, k, v})
    ZP_REQUIRE(is_byte(t) && t.dim() == 4,
               "attention: q, k and v must be uint8 or int8 [batch, heads, rows, features]");
  ZP_REQUIRE(dtype == ScalarType::Byte || dtype == ScalarType::Char, "attention: dtype must be uint8 or int8");
  const int64_t batch = q.size(0), heads = q.size(1), m = q.size(2), d = q.size(3), t = k.size(2), dv = v.size(3);
  const int64_t key_heads = k.size(1);
  ZP_REQUIRE(k.size(0) == batch && v.size(0) == batch && v.size(1) == key_heads && k.size(3) == d && v.size(2) == t &&
                 key_heads >= 1 && heads % key_heads == 0,
             "attention: q [B, H, M, D], k [B, G, T, D] and v [B, G, T, E], G dividing H, do not fit together");
  ZP_REQUIRE(!causal || !given_mask, "attention: give a mask or causal, not both");
  ZP_REQUIRE(t >= 1 && d >= 1 && dv >= 1, "attention: k and v must not be empty");
  ZP_REQUIRE(d <= 16512 && t <= 33025,
             "attention: at most 16512 features and 33025 keys, so that int32 holds every sum");
  const Operand queries(q, "q", q_scale, q_zero_point), keys(k, "k", k_scale, k_zero_point),
      values(v, "v", v_scale, v_zero_point);
  check_qparams(what, "y", scale, zero_point, dtype);
  // Scores are powers of e, of 2 where no mask is added to them first.
  const double of_scores = as_f32(q_scale) * as_f32(k_scale) * factor;
  const auto score_scale = static_cast<float>(given_mask ? of_scores : of_scores * 1.4426950408889634);
  ZP_REQUIRE(std::isfinite(score_scale) && score_scale > 0,
             "attention: q_scale * k_scale * factor must be > 0 and finite");
  const double value_scale = as_f32(v_scale) / as_f32(scale);
  ZP_REQUIRE(std::isfinite(static_cast<float>(value_scale)), "attention: v_scale / y_scale is not finite in float32");
  // Rows of all heads side by side: what follows joins the heads without a copy.
  Tensor out = empty_strided({batch, heads, m, dv}, {m * heads * dv, dv, heads * dv, 1}, dtype);
  if (out.numel() == 0) return out;
  std::optional<AttentionMask> mask;
  if (given_mask) mask.emplace(what, *given_mask, batch, heads, m, t);

  const KernelTable& kernel = kernels();
  const int64_t lanes = kernel.lanes;
  const auto slots = [&](int64_t n) { return ceil_div(n, lanes) * lanes; };
  const auto groups = [&](int64_t n) { return ceil_div(n, 4); };
  const int64_t p_stride = ceil_div(t, 4) * 4, s_stride = slots(t), o_stride = slots(dv);
  const int64_t block = std::min(m, kRowBlock);
  const bool copies = queries.flip || d % 4;

  const auto pack = [&](const Operand& operand, Head head, bool transposed, int32_t a_zero_point, uint8_t* packed,
                        int32_t* init) {
    ActivationView view = {};
    view.data = head.data;
    view.k = transposed ? operand.columns : operand.rows;
    view.n = transposed ? operand.rows : operand.columns;
    view.stride_k = transposed ? 1 : head.row_stride;
    view.stride_n = transposed ? head.row_stride : 1;
    view.flip = operand.flip;
    view.zero_point = operand.zero_point - 128;
    kernel.pack_activation(view, a_zero_point, packed, init);
  };
  const auto multiply = [&](const uint8_t* a, int64_t a_stride, int64_t rows, int64_t inner, const uint8_t* b,
                            int64_t n, const int32_t* init, const int32_t* row_init, int32_t* result, int64_t stride) {
    IgemmParams p = {};
    p.a = a;
    p.a_stride = a_stride;
    p.unique_taps = p.taps = 1;
    p.kc = inner;
    p.b = b;
    p.n = n;
    p.out = result;
    p.out_stride = stride;
    p.epilogue.output = Epilogue::Output::kI32;
    p.epilogue.init = init;
    p.epilogue.row_init = row_init;
    kernel.igemm(p, 0, rows, 0, kernel.panels(n), scratch(Scratch::kWorker, kernel.igemm_scratch(p)));
  };

  parallel(batch * heads, (m + 8) * t * (d + dv) / 32, [&](int64_t begin, int64_t end) {
    Workspace w;
    const auto ints = [](Scratch slot, int64_t count) {
      return reinterpret_cast<int32_t*>(scratch(slot, static_cast<size_t>(count) * 4));
    };
    w.keys = scratch(Scratch::kGates, static_cast<size_t>((groups(d) * slots(t) + groups(t) * slots(dv)) * 4));
    w.values = w.keys + groups(d) * slots(t) * 4;
    w.key_init = ints(Scratch::kEpilogue, slots(t) + slots(dv) + block);
    w.value_init = w.key_init + slots(t);
    w.row_init = w.value_init + slots(dv);
    w.scores = ints(Scratch::kRows, block * (s_stride + o_stride + 1));
    w.sums = w.scores + block * s_stride + block * o_stride;
    w.probabilities = scratch(Scratch::kState, static_cast<size_t>(block * p_stride) + 64);
    w.mask = mask ? reinterpret_cast<float*>(scratch(Scratch::kBounds, static_cast<size_t>(s_stride) * 4)) : nullptr;
    w.queries = copies ? scratch(Scratch::kInput, static_cast<size_t>(block * d) + 64) : nullptr;
    int32_t* products = w.scores + block * s_stride;
    int64_t packed = -1;  // head of the keys, which queries of several heads may share
    int64_t masked = -1;  // start of the mask's row
    for (int64_t item = begin; item < end; ++item) {
      const int64_t key_item = item / heads * key_heads + item % heads / (heads / key_heads);
      if (key_item != packed) {
        pack(keys, keys.head(key_item, key_heads), true, queries.zero_point, w.keys, w.key_init);
        // The last panel's columns without a key; a mask hides them by itself.
        const int64_t first = t / kernel.panel_columns() * kernel.panel_columns();
        const int64_t vectors = vectors_of_panel(t - first, lanes, kernel.panel_vectors);
        for (int64_t i = t; i < slots(t) && !mask; ++i)
          w.key_init[first + panel_slot(i - first, lanes, vectors)] = kNoScore;
        pack(values, values.head(key_item, key_heads), false, 0, w.values, w.value_init);
        packed = key_item;
      }
      const Head head = queries.head(item, heads);
      uint8_t* target = bytes(out) + (item / heads * m * heads + item % heads) * dv;
      for (int64_t row = 0; row < m; row += block) {
        const int64_t rows = std::min(block, m - row);
        const uint8_t* source = head.data + row * head.row_stride;
        int64_t stride = head.row_stride;
        if (copies) {
          for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < d; ++j) w.queries[i * d + j] = source[i * stride + j] ^ queries.flip;
          source = w.queries;
          stride = d;
        }
        // What the keys' zero point takes from all scores of a row makes a difference to masked ones alone.
        if (mask) start_rows(kernel, source, stride, rows, d, keys.zero_point - 128, w.row_init);
        multiply(source, stride, rows, d, w.keys, s_stride, w.key_init, mask ? w.row_init : nullptr, w.scores,
                 s_stride);
        for (int64_t i = 0; i < rows; ++i) {
          uint8_t* p = w.probabilities + i * p_stride;
          if (mask) {
            const int64_t start = mask->start(item / heads, item % heads, row + i);
            if (start != masked) mask->row(start, t, s_stride, w.mask);
            masked = start;
          }
          const int64_t seen = causal ? std::min(t, row + i + 1) : t;
          int32_t* scores = w.scores + i * s_stride;
          if (seen < t) std::fill(scores + seen, scores + slots(seen), kNoScore);
          w.sums[i] = kernel.attention_row(scores, seen, score_scale, w.mask, p);
          std::fill(p + seen, p + p_stride, uint8_t{0});
          w.row_init[i] =
              static_cast<int32_t>(-static_cast<uint32_t>(values.zero_point - 128) * static_cast<uint32_t>(w.sums[i]));
        }
        multiply(w.probabilities, p_stride, rows, t, w.values, o_stride, w.value_init, w.row_init, products, o_stride);
        for (int64_t i = 0; i < rows; ++i)
          kernel.requantize(products + i * o_stride, dv, w.sums[i] ? static_cast<float>(value_scale / w.sums[i]) : 0.0f,
                            to_u8_domain(zero_point, dtype), sign_flip(dtype), target + (row + i) * heads * dv);
      }
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zeropoint, CPU, m) { ZP_OPERATOR(m, "attention", attention); }

}  // namespace zeropoint
