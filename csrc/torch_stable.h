// The only file that includes torch headers: the stable ABI (style: no C++ symbol of libtorch, no
// Python.h, so that one build serves every Python and every torch from 2.10 on), and the few helpers
// that operators share.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernels/huge_pages.h"

namespace zeropoint {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Throws std::invalid_argument, which Python sees as ValueError. A macro, so that the message is only built
// when it is needed.
#define ZP_REQUIRE(condition, ...)                              \
  do {                                                          \
    if (!(condition)) throw std::invalid_argument(__VA_ARGS__); \
  } while (false)

inline int64_t element_size(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
    case ScalarType::Char:
    case ScalarType::Bool:
      return 1;
    case ScalarType::Half:
    case ScalarType::BFloat16:
    case ScalarType::Short:
      return 2;
    case ScalarType::Float:
    case ScalarType::Int:
      return 4;
    case ScalarType::ComplexDouble:
      return 16;
    default:
      return 8;
  }
}

// While it lives, an operator on this thread that asks for memory of the shape, strides and dtype of such a place gets
// the place: the engine gives results memory that it has planned. One for each result, or null.
class ResultPlaces {
 public:
  explicit ResultPlaces(std::vector<const Tensor*>* places) { current() = places; }
  ~ResultPlaces() { current() = nullptr; }
  ResultPlaces(const ResultPlaces&) = delete;
  ResultPlaces& operator=(const ResultPlaces&) = delete;

  static const Tensor* take(size_t result, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                            ScalarType dtype) {
    if (!current() || result >= current()->size()) return nullptr;
    const Tensor*& place = (*current())[result];
    return place && fits(*place, sizes, strides, dtype) ? std::exchange(place, nullptr) : nullptr;
  }

 private:
  static bool fits(const Tensor& place, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                   ScalarType dtype) {
    if (place.scalar_type() != dtype || place.dim() != static_cast<int64_t>(sizes.size())) return false;
    const auto s = place.sizes(), t = place.strides();
    for (size_t i = 0; i < sizes.size(); ++i)
      if (s[i] != sizes[i] || t[i] != strides[i]) return false;
    return true;
  }
  static std::vector<const Tensor*>*& current() {
    static thread_local std::vector<const Tensor*>* places = nullptr;
    return places;
  }
};

// aoti_torch_empty_strided costs half of aten::empty through the dispatcher.
inline Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType dtype,
                            size_t result = 0) {
  if (const Tensor* place = ResultPlaces::take(result, sizes, strides, dtype)) return *place;
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                               torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
                               aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

inline std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = step;
    step *= sizes[i] > 1 ? sizes[i] : 1;
  }
  return strides;
}

// Of [N, C, H, W] or [N, C, D, H, W].
inline std::vector<int64_t> channels_last_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  int64_t step = sizes[1];
  for (size_t i = sizes.size() - 1; i > 1; --i) {
    strides[i] = step;
    step *= sizes[i] > 1 ? sizes[i] : 1;
  }
  strides[0] = step;
  return strides;
}

// For an operator's result of that number.
inline Tensor empty_contiguous(const std::vector<int64_t>& sizes, ScalarType dtype, size_t result = 0) {
  return empty_strided(sizes, contiguous_strides(sizes), dtype, result);
}

inline std::vector<int64_t> sizes_of(const Tensor& t) {
  const auto s = t.sizes();
  return {s.begin(), s.end()};
}
inline std::vector<int64_t> strides_of(const Tensor& t) {
  const auto s = t.strides();
  return {s.begin(), s.end()};
}

inline bool is_byte(const Tensor& t) {
  return t.scalar_type() == ScalarType::Byte || t.scalar_type() == ScalarType::Char;
}
// XOR mask that takes the tensor's bytes to the kernels' uint8 domain, and the shift of zero points.
inline uint8_t sign_flip(ScalarType dtype) { return dtype == ScalarType::Char ? 0x80 : 0; }
inline int32_t to_u8_domain(int64_t q, ScalarType dtype) {
  return static_cast<int32_t>(q) + (dtype == ScalarType::Char ? 128 : 0);
}

inline uint8_t* bytes(const Tensor& t) { return static_cast<uint8_t*>(t.data_ptr()); }

// True if elements of size > 1 dimensions are laid out as NHWC or NDHWC without gaps.
inline bool is_channels_last(const Tensor& t) {
  if (t.dim() != 4 && t.dim() != 5) return false;
  const auto sizes = sizes_of(t), strides = strides_of(t), want = channels_last_strides(sizes);
  for (size_t i = 0; i < sizes.size(); ++i)
    if (sizes[i] > 1 && strides[i] != want[i]) return false;
  return true;
}

inline Tensor to_channels_last(const Tensor& t) {
  using torch::headeronly::MemoryFormat;
  if (is_channels_last(t)) return t;
  return torch::stable::contiguous(t, t.dim() == 5 ? MemoryFormat::ChannelsLast3d : MemoryFormat::ChannelsLast);
}

// Asking costs nothing, torch::stable::contiguous a trip through the dispatcher.
inline Tensor to_contiguous(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// Elementwise operators keep a gapless layout (contiguous or NHWC) and make anything else contiguous.
inline Tensor dense(const Tensor& t) {
  return t.is_contiguous() || is_channels_last(t) ? t : torch::stable::contiguous(t);
}
inline Tensor empty_like_dense(const Tensor& t, ScalarType dtype) {
  const auto sizes = sizes_of(t);
  return empty_strided(
      sizes, !t.is_contiguous() && is_channels_last(t) ? channels_last_strides(sizes) : contiguous_strides(sizes),
      dtype);
}
inline bool same_layout(const Tensor& a, const Tensor& b) {
  return (a.is_contiguous() && b.is_contiguous()) || (is_channels_last(a) && is_channels_last(b));
}

// Per-thread memory that only grows: steady state allocates nothing but outputs. Slots keep the uses of
// one call apart; the calling thread also works in parallel_for.
enum class Scratch { kWorker, kEpilogue, kColumns, kInput, kRows, kState, kStateRows, kBounds, kGates, kCount };
inline uint8_t* scratch(Scratch slot, size_t size) {
  static thread_local std::vector<uint8_t> buffers[static_cast<int>(Scratch::kCount)];
  auto& buffer = buffers[static_cast<int>(slot)];
  if (buffer.size() < size + 64) buffer.resize(size + 64);
  const auto address = reinterpret_cast<uintptr_t>(buffer.data());
  return buffer.data() + (64 - address % 64) % 64;
}

// For packed weights of that many bytes.
inline Tensor empty_packed(int64_t bytes) {
  Tensor blob = empty_contiguous({bytes}, ScalarType::Byte);
  prefer_huge_pages(blob.data_ptr(), static_cast<size_t>(bytes));
  return blob;
}

}  // namespace zeropoint
