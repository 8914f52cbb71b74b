// The per-call arrays of an epilogue: initial accumulators, multipliers and biases in panel order.
#pragma once
#include "../pack/pack.h"
#include "../torch_stable.h"

namespace zeropoint {

// What every operator that ends in a requantization is told.
struct OutputSpec {
  double x_scale;
  int64_t x_zero_point;
  ScalarType x_dtype;
  double scale;  // ignored unless the output is 8 bit
  int64_t zero_point, quant_min, quant_max;
  ScalarType dtype;  // Byte, Char, Float or Int
};

// Optional tail: residual addition, then table.
struct TailSpec {
  OptionalTensor residual;
  double residual_scale = 1;
  int64_t residual_zero_point = 0;
  double sum_scale = 1;
  int64_t sum_zero_point = 0, sum_min = 0, sum_max = 255;
  OptionalTensor table;
};

// Remembers an epilogue between calls that differ in the residual's place alone: the engine keeps one for each
// instruction of a frame, so that the arrays are filled once.
class EpilogueCache {
 public:
  // While it lives, make_epilogue on this thread reads and fills `cache`.
  class Scope {
   public:
    explicit Scope(EpilogueCache* cache) { current() = cache; }
    ~Scope() { current() = nullptr; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
  };
  static EpilogueCache*& current() {
    static thread_local EpilogueCache* cache = nullptr;
    return cache;
  }

  // Room for the arrays, at the begin of a line of the cache: a vector that lies in two of them is read twice.
  uint8_t* resize(size_t bytes) {
    arrays_.resize(bytes + 64);
    return arrays_.data() + (64 - reinterpret_cast<uintptr_t>(arrays_.data()) % 64) % 64;
  }

  bool filled = false;
  Epilogue epilogue;
  uint8_t table[256] = {};

 private:
  std::vector<uint8_t> arrays_;
};

// Fills `e` for all groups; arrays live in the calling thread's scratch until its next operator. Group g
// begins at slot g * slots_per_group(h).
int64_t slots_per_group(const PackedHeader& h);
Epilogue make_epilogue(const char* what, const uint8_t* blob, const PackedHeader& h, const Tensor& w_scale,
                       const OptionalTensor& bias, const OutputSpec& spec, const TailSpec& tail);

// The scale as float32 holds it. Through memory: GCC 12 drops the rounding where it makes vectors of two of these
// (numerics.md says float32, and one bit of a multiplier moves a tie).
inline double as_f32(double scale) {
  const volatile float rounded = static_cast<float>(scale);
  return static_cast<double>(rounded);
}

void check_qparams(const char* what, const char* name, double scale, int64_t zero_point, ScalarType dtype);

}  // namespace zeropoint
