// zeropoint::embedding and embedding_bag: rows of 8 or 4 bits, each with a scale and a zero point, as float32.
#include <algorithm>

#include "../engine/operators.h"
#include "../kernels/dispatch.h"
#include "threads.h"

namespace zeropoint {
namespace {

struct Rows {
  const uint8_t* data;
  const float *scale, *zero_point;
  int64_t count, width, features;
  bool four_bits;

  Rows(const std::string& what, const Tensor& weight, const Tensor& scales, const Tensor& zero_points, int64_t bits,
       int64_t features)
      : features(features), four_bits(bits == 4) {
    ZP_REQUIRE(bits == 8 || bits == 4, what + ": bits must be 8 or 4");
    ZP_REQUIRE(weight.scalar_type() == ScalarType::Byte && weight.dim() == 2 && weight.is_contiguous() &&
                   features >= 1 && weight.size(1) == (bits == 8 ? features : (features + 1) / 2),
               what + ": weight must be contiguous uint8 [rows, features], or two 4-bit values a byte");
    count = weight.size(0);
    width = weight.size(1);
    for (const Tensor& t : {scales, zero_points})
      ZP_REQUIRE(t.scalar_type() == ScalarType::Float && t.is_contiguous() && t.numel() == count,
                 what + ": scale and zero_point must be contiguous float32 with one value per row");
    data = bytes(weight);
    scale = static_cast<const float*>(scales.data_ptr());
    zero_point = static_cast<const float*>(zero_points.data_ptr());
  }
  const uint8_t* row(int64_t i) const { return data + i * width; }
};

// int32 or int64 values.
class Integers {
 public:
  Integers(const std::string& what, const Tensor& t) : tensor_(to_contiguous(t)), size_(tensor_.numel()) {
    const bool is_wide = t.scalar_type() == ScalarType::Long;
    ZP_REQUIRE(is_wide || t.scalar_type() == ScalarType::Int, what + " must be int64 or int32");
    (is_wide ? wide_ : narrow_) = tensor_.data_ptr();
  }
  int64_t operator[](int64_t i) const {
    return wide_ ? static_cast<const int64_t*>(wide_)[i] : int64_t{static_cast<const int32_t*>(narrow_)[i]};
  }
  int64_t size() const { return size_; }

 private:
  Tensor tensor_;
  int64_t size_;
  const void *wide_ = nullptr, *narrow_ = nullptr;
};

void check_indices(const std::string& what, const Integers& indices, int64_t rows) {
  for (int64_t i = 0; i < indices.size(); ++i) {
    const int64_t index = indices[i];
    if (index < 0 || index >= rows)
      throw std::invalid_argument(what + ": index " + std::to_string(index) + " is outside the " +
                                  std::to_string(rows) + " rows");
  }
}

Tensor embedding(Tensor indices, Tensor weight, Tensor scale, Tensor zero_point, int64_t bits, int64_t features) {
  const Integers index("embedding: indices", indices);
  const Rows rows("embedding", weight, scale, zero_point, bits, features);
  check_indices("embedding", index, rows.count);
  std::vector<int64_t> sizes = sizes_of(indices);
  sizes.push_back(features);
  Tensor out = empty_contiguous(sizes, ScalarType::Float);
  auto* target = static_cast<float*>(out.data_ptr());
  const KernelTable& kernel = kernels();
  parallel(index.size(), features, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = index[i];
      kernel.embedding_row(rows.row(row), features, rows.four_bits, rows.scale[row], rows.zero_point[row],
                           target + i * features);
    }
  });
  return out;
}

enum Mode : int64_t { kSum, kMean, kMax };

Tensor embedding_bag(Tensor indices, OptionalTensor offsets, Tensor weight, Tensor scale, Tensor zero_point,
                     int64_t bits, int64_t features, int64_t mode, bool include_last_offset,
                     OptionalTensor per_sample_weights, std::optional<int64_t> padding_idx) {
  const std::string what = "embedding_bag";
  const bool in_rows = indices.dim() == 2 && !offsets;
  ZP_REQUIRE(in_rows || (indices.dim() == 1 && offsets && offsets->dim() == 1),
             "embedding_bag: give indices [bags, n] without offsets, or indices [n] with offsets [bags]");
  const Integers index(what + ": indices", indices), offset(what + ": offsets", in_rows ? indices : *offsets);
  const Rows rows(what, weight, scale, zero_point, bits, features);
  ZP_REQUIRE(mode >= kSum && mode <= kMax, "embedding_bag: mode must be 0 (sum), 1 (mean) or 2 (max)");
  const float* weights = nullptr;
  if (per_sample_weights) {
    ZP_REQUIRE(mode == kSum, "embedding_bag: per_sample_weights need mode 0 (sum)");
    ZP_REQUIRE(per_sample_weights->scalar_type() == ScalarType::Float && per_sample_weights->is_contiguous() &&
                   sizes_of(*per_sample_weights) == sizes_of(indices),
               "embedding_bag: per_sample_weights must be contiguous float32 with one value per index");
    weights = static_cast<const float*>(per_sample_weights->data_ptr());
  }
  check_indices(what, index, rows.count);
  const int64_t n = index.size(), per_row = in_rows ? indices.size(1) : 0;
  ZP_REQUIRE(in_rows || !include_last_offset || offset.size() >= 1,
             "embedding_bag: there must be at least one offset, the last, with include_last_offset");
  const int64_t bags = in_rows ? indices.size(0) : offset.size() - (include_last_offset ? 1 : 0);
  const auto start = [&](int64_t bag) { return in_rows ? bag * per_row : bag < offset.size() ? offset[bag] : n; };
  for (int64_t bag = 0; bag < bags; ++bag)
    ZP_REQUIRE(start(bag) >= 0 && start(bag) <= start(bag + 1) && start(bag + 1) <= n && (bag > 0 || start(0) == 0),
               "embedding_bag: offsets must begin with 0, not fall, and end at most at the number of indices");
  Tensor out = empty_contiguous({bags, features}, ScalarType::Float);
  auto* target = static_cast<float*>(out.data_ptr());
  const KernelTable& kernel = kernels();
  parallel(bags, features * std::max<int64_t>(1, n / std::max<int64_t>(bags, 1)), [&](int64_t begin, int64_t end) {
    BagParams p = {};
    p.data = rows.data;
    p.width = rows.width;
    p.features = features;
    p.four_bits = rows.four_bits;
    p.maximum = mode == kMax;
    p.scale = rows.scale;
    p.zero_point = rows.zero_point;
    const int64_t most = end > begin ? start(end) - start(begin) : 0;
    auto* known = reinterpret_cast<int64_t*>(scratch(Scratch::kWorker, static_cast<size_t>(most) * 12));
    auto* kept = reinterpret_cast<float*>(known + most);
    p.rows = known;
    p.weights = weights ? kept : nullptr;
    for (int64_t bag = begin; bag < end; ++bag) {
      p.count = 0;
      for (int64_t i = start(bag); i < start(bag + 1); ++i) {
        if (padding_idx && index[i] == *padding_idx) continue;
        known[p.count] = index[i];
        if (weights) kept[p.count] = weights[i];
        ++p.count;
      }
      p.out = target + bag * features;
      if (p.count == 0)
        std::fill_n(p.out, features, 0.0f);
      else
        kernel.embedding_bag(p);
      if (p.count > 0 && mode == kMean)
        for (int64_t i = 0; i < features; ++i) p.out[i] = p.out[i] / static_cast<float>(p.count);
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zeropoint, CPU, m) {
  ZP_OPERATOR(m, "embedding", embedding);
  ZP_OPERATOR(m, "embedding_bag", embedding_bag);
}

}  // namespace zeropoint
