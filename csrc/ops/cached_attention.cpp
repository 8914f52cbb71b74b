// zeropoint::cached_attention: the step of a decoder, one query per head over a cache and what is new, in float32.
#include <algorithm>
#include <cmath>

#include "../engine/operators.h"
#include "../kernels/dispatch.h"
#include "attention_mask.h"
#include "threads.h"

namespace zeropoint {
namespace {

// [batch, heads, rows, features] with features side by side.
struct Rows {
  Tensor tensor;
  explicit Rows(const Tensor& t) : tensor(t.size(3) <= 1 || t.stride(3) == 1 ? t : torch::stable::contiguous(t)) {}
  float* head(int64_t item, int64_t heads) const {
    return static_cast<float*>(tensor.data_ptr()) + item / heads * tensor.stride(0) + item % heads * tensor.stride(1);
  }
  int64_t count() const { return tensor.size(2); }
  int64_t stride() const { return tensor.stride(2); }
};

void copy_rows(const float* from, int64_t stride, int64_t rows, int64_t features, float* to) {
  if (stride == features) {
    std::copy_n(from, rows * features, to);
  } else {
    for (int64_t i = 0; i < rows; ++i) std::copy_n(from + i * stride, features, to + i * features);
  }
}

std::tuple<Tensor, Tensor, Tensor> cached_attention(Tensor q, Tensor past_k, Tensor past_v, Tensor k, Tensor v,
                                                    double factor, OptionalTensor given_mask, bool keep_cache) {
  constexpr const char* what = "cached_attention";
  for (const Tensor& t : {q, past_k, past_v, k, v})
    ZP_REQUIRE(t.scalar_type() == ScalarType::Float && t.dim() == 4,
               "cached_attention: q, keys and values must be float32 [batch, heads, rows, features]");
  const int64_t batch = q.size(0), heads = q.size(1), d = q.size(3), groups = k.size(1), e = v.size(3);
  const int64_t past = past_k.size(2), fresh = k.size(2), keys = past + fresh;
  ZP_REQUIRE(q.size(2) == 1, "cached_attention: one query per head, got " + std::to_string(q.size(2)));
  bool fits = groups >= 1 && heads % groups == 0 && past_v.size(2) == past && v.size(2) == fresh;
  for (const Tensor& t : {past_k, past_v, k, v}) fits = fits && t.size(0) == batch && t.size(1) == groups;
  for (const Tensor& t : {past_k, k}) fits = fits && t.size(3) == d;
  ZP_REQUIRE(
      fits && past_v.size(3) == e,
      "cached_attention: q [B, H, 1, D], keys [B, G, rows, D] and values [B, G, rows, E], G dividing H, do not fit "
      "together");
  ZP_REQUIRE(keys >= 1, "cached_attention: there are no keys");
  ZP_REQUIRE(std::isfinite(static_cast<float>(factor)), "cached_attention: factor must be finite");
  const Rows queries(q), old_keys(past_k), old_values(past_v), new_keys(k), new_values(v);
  std::optional<AttentionMask> mask;
  if (given_mask) mask.emplace(what, *given_mask, batch, heads, 1, keys);

  const Tensor out = empty_contiguous({batch, heads, 1, e}, ScalarType::Float, 0);
  const auto cache = [&](size_t result, int64_t features) {
    return empty_contiguous(keep_cache ? std::vector<int64_t>{batch, groups, keys, features} : std::vector<int64_t>{0},
                            ScalarType::Float, result);
  };
  const Tensor all_keys = cache(1, d), all_values = cache(2, e);
  const auto data = [](const Tensor& t) { return static_cast<float*>(t.data_ptr()); };
  const KernelTable& kernel = kernels();
  const int64_t shared = heads / groups, slots = (keys + kernel.lanes - 1) / kernel.lanes * kernel.lanes;
  parallel(batch * groups, keys * (d + e) * shared, [&](int64_t begin, int64_t end) {
    AttendParams p = {};
    p.d = d;
    p.e = e;
    p.factor = static_cast<float>(factor);
    p.scores = reinterpret_cast<float*>(scratch(Scratch::kWorker, static_cast<size_t>(slots) * 8));
    float* row = p.scores + slots;
    for (int64_t item = begin; item < end; ++item) {
      p.pieces[0] = {old_keys.head(item, groups), old_values.head(item, groups), old_keys.stride(), old_values.stride(),
                     past};
      p.pieces[1] = {new_keys.head(item, groups), new_values.head(item, groups), new_keys.stride(), new_values.stride(),
                     fresh};
      if (keep_cache) {
        float *own_keys = data(all_keys) + item * keys * d, *own_values = data(all_values) + item * keys * e;
        int64_t at = 0;
        for (const AttendParams::Piece& piece : p.pieces) {
          copy_rows(piece.keys, piece.key_stride, piece.n, d, own_keys + at * d);
          copy_rows(piece.values, piece.value_stride, piece.n, e, own_values + at * e);
          at += piece.n;
        }
      }
      for (int64_t i = 0; i < shared; ++i) {
        const int64_t head = item * shared + i;
        if (mask) {
          mask->row(mask->start(head / heads, head % heads, 0), keys, slots, row);
          p.mask = row;
        }
        p.query = queries.head(head, heads);
        p.out = data(out) + head * e;
        kernel.attend_row(p);
      }
    }
  });
  return {out, all_keys, all_values};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zeropoint, CPU, m) { ZP_OPERATOR(m, "cached_attention", cached_attention); }

}  // namespace zeropoint
