// Vocabulary of plain C++: four lanes as an array, no intrinsics. Slow, and the same on every CPU:
// the other vocabularies are tested against it, and it runs where no faster one does.
#pragma once
#include <cstdint>

namespace zeropoint {
namespace {

struct Scalar {
  using Half = Scalar;  // never used: kHalfLanes is 0
  struct I32 {
    int32_t lane[4];
  };
  struct F32 {
    float lane[4];
  };
  struct U8 {
    uint8_t byte[16];
  };
  struct DwWeight {
    int8_t tap[16];  // [channel][tap]
  };
  static constexpr int kLanes = 4;
  static constexpr int kPanelVectors = 2;
  static constexpr bool kSplits = false;
  static constexpr int64_t kLookupBytes = 0;
  static constexpr int kHalfLanes = 0;
  static constexpr bool kGathers = false;
  static constexpr bool kJoins = false;
  static constexpr bool kOrders = false;  // kRowF32 goes through memory
  static constexpr bool kStaggers = false;
  using DwInput = I32;
  static constexpr int kDwBytes = 16;
  static constexpr int kDwInputBytes = 16;
  // Depthwise kernels in registers: weights of that many columns times groups of rows; windows of three columns.
  static constexpr int kDwTaps = 0;
  static constexpr bool kDwColumns = false;

  template <class F>
  static I32 each_i32(F f) {
    I32 r;
    for (int i = 0; i < 4; ++i) r.lane[i] = f(i);
    return r;
  }
  template <class F>
  static F32 each_f32(F f) {
    F32 r;
    for (int i = 0; i < 4; ++i) r.lane[i] = f(i);
    return r;
  }

  // kLanes bytes.
  static I32 load_bytes(const uint8_t* p) {
    I32 r;
    for (int i = 0; i < kLanes; ++i) r.lane[i] = p[i];
    return r;
  }
  // Of values of 0 to 255.
  static void store_bytes(uint8_t* p, I32 v) {
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<uint8_t>(v.lane[i]);
  }
  static I32 max_i32(I32 a, I32 b) {
    return each_i32([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  // x > y ? a : b.
  static F32 where_above(F32 x, F32 y, F32 a, F32 b) {
    return each_f32([&](int i) { return x.lane[i] > y.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  // Over the lanes; of floats none is NaN.
  template <class Vector>
  static auto largest(Vector v) {
    auto most = v.lane[0];
    for (int i = 1; i < kLanes; ++i) most = v.lane[i] > most ? v.lane[i] : most;
    return most;
  }
  static int32_t sum(I32 v) {
    int32_t total = 0;
    for (int i = 0; i < kLanes; ++i) total += v.lane[i];
    return total;
  }
  static I32 load_i32(const int32_t* p) {
    I32 r;
    __builtin_memcpy(&r, p, sizeof r);
    return r;
  }
  static void store_i32(int32_t* p, I32 v) { __builtin_memcpy(p, &v, sizeof v); }
  static I32 set_i32(int32_t x) { return {{x, x, x, x}}; }
  static I32 sub_i32(I32 a, I32 b) {
    return each_i32([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static F32 load_f32(const float* p) {
    F32 r;
    __builtin_memcpy(&r, p, sizeof r);
    return r;
  }
  static void store_f32(float* p, F32 v) { __builtin_memcpy(p, &v, sizeof v); }
  static F32 set_f32(float x) { return {{x, x, x, x}}; }
  static F32 to_f32(I32 v) {
    return each_f32([&](int i) { return static_cast<float>(v.lane[i]); });
  }
  static F32 mul(F32 a, F32 b) {
    return each_f32([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static F32 add(F32 a, F32 b) {
    return each_f32([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static F32 sub(F32 a, F32 b) {
    return each_f32([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static F32 div(F32 a, F32 b) {
    return each_f32([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  static F32 fma(F32 a, F32 b, F32 c) {
    return each_f32([&](int i) { return __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]); });
  }
  // 2^n from the float n + 1.5 * 2^23, whose low bits are n.
  static F32 power_of_2(F32 shifted) {
    return each_f32([&](int i) {
      uint32_t bits;
      __builtin_memcpy(&bits, &shifted.lane[i], 4);
      bits = (bits - (0x4B400000U - 127U)) << 23;
      float power;
      __builtin_memcpy(&power, &bits, 4);
      return power;
    });
  }
  // x * 2^n, x and the product normal, for the float n + 1.5 * 2^23, by way of x's exponent.
  static F32 times_power_of_2(F32 x, F32 shifted) {
    return each_f32([&](int i) {
      uint32_t bits, n;
      __builtin_memcpy(&bits, &x.lane[i], 4);
      __builtin_memcpy(&n, &shifted.lane[i], 4);
      bits += n << 23;
      float product;
      __builtin_memcpy(&product, &bits, 4);
      return product;
    });
  }
  static F32 min(F32 a, F32 b) {
    return each_f32([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static F32 max(F32 a, F32 b) {
    return each_f32([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  // Half to even by the shift of elementwise.h; below -2^21 every narrowing saturates alike.
  static F32 round_f32(F32 v) {
    return each_f32([&](int i) { return __builtin_nearbyintf(v.lane[i]); });
  }
  static I32 round_i32(F32 v) {
    return each_i32([&](int i) {
      const float x = v.lane[i] > -2097152.0f ? v.lane[i] : -2097152.0f;
      const float shifted = x + 12582912.0f;
      int32_t bits;
      __builtin_memcpy(&bits, &shifted, 4);
      return bits - 0x4B400000;
    });
  }

  // Opaque to the optimiser.
  static void keep(I32& v) { __asm__ volatile("" : "+m"(v)); }

  static I32 broadcast_a(const uint8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return set_i32(four);
  }
  // Four products of unsigned and signed bytes a lane; unsigned addition, so that intermediate sums may wrap
  // (numerics.md).
  static I32 dot(I32 acc, I32 a, I32 b) {
    uint8_t x[16];
    int8_t y[16];
    __builtin_memcpy(x, &a, 16);
    __builtin_memcpy(y, &b, 16);
    return each_i32([&](int i) {
      uint32_t sum = static_cast<uint32_t>(acc.lane[i]);
      for (int t = 0; t < 4; ++t) sum += static_cast<uint32_t>(x[4 * i + t] * y[4 * i + t]);
      return static_cast<int32_t>(sum);
    });
  }

  static I32 add_i32(I32 a, I32 b) {
    return each_i32([&](int i) {
      return static_cast<int32_t>(static_cast<uint32_t>(a.lane[i]) + static_cast<uint32_t>(b.lane[i]));
    });
  }
  static I32 mul_i32(I32 a, I32 b) {
    return each_i32([&](int i) {
      return static_cast<int32_t>(static_cast<uint32_t>(a.lane[i]) * static_cast<uint32_t>(b.lane[i]));
    });
  }
  static F32 max_0(F32 a) {
    return each_f32([&](int i) { return a.lane[i] > 0.0f ? a.lane[i] : 0.0f; });
  }

  // Grouped products: bytes of B (unsigned) times four bytes of A (signed) per lane.
  using GroupA = I32;
  using GroupB = I32;
  static GroupA broadcast_group(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return set_i32(four);
  }
  static GroupB group_bytes(const uint8_t* p) { return load_i32(reinterpret_cast<const int32_t*>(p)); }
  static void group_nibbles(const uint8_t* p, GroupB& low, GroupB& high) {
    const I32 x = group_bytes(p);
    low = each_i32([&](int i) { return x.lane[i] & 0x0F0F0F0F; });
    high = each_i32([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(x.lane[i]) >> 4 & 0x0F0F0F0FU); });
  }
  static I32 dot_group(I32 acc, GroupB b, GroupA a) { return dot(acc, b, a); }

  static DwWeight load_dw(const uint8_t* p) {
    DwWeight w;
    __builtin_memcpy(&w, p, sizeof w);
    return w;
  }
  static DwInput load_dw_input(const uint8_t* p) {
    I32 x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
  }
  static void store_dw_input(uint8_t* p, I32 mixed) { __builtin_memcpy(p, &mixed, sizeof mixed); }
  static I32 dot_dw(I32 acc, DwInput x, DwWeight w) {
    uint8_t b[16];
    __builtin_memcpy(b, &x, 16);
    return each_i32([&](int i) {
      uint32_t sum = static_cast<uint32_t>(acc.lane[i]);
      for (int t = 0; t < 4; ++t) sum += static_cast<uint32_t>(b[4 * i + t] * w.tap[4 * i + t]);
      return static_cast<int32_t>(sum);
    });
  }
  static I32 dot_mixed(I32 acc, I32 mixed, DwWeight w) { return dot_dw(acc, mixed, w); }
  // Of 16 bytes at the place, those that `which` names: 0 where it is above 127.
  template <bool Run>
  static U8 spread(const uint8_t* p, const int32_t (&where)[1], U8 which) {
    U8 r;
    for (int i = 0; i < 16; ++i) r.byte[i] = which.byte[i] > 127 ? uint8_t{0} : p[where[0] + which.byte[i]];
    return r;
  }
  static U8 or_u8(U8 a, U8 b) {
    for (int i = 0; i < 16; ++i) a.byte[i] = static_cast<uint8_t>(a.byte[i] | b.byte[i]);
    return a;
  }
  static I32 words(U8 bytes) {
    I32 r;
    __builtin_memcpy(&r, &bytes, sizeof r);
    return r;
  }
  static void interleave(const U8 (&t)[4], I32 (&out)[4]) {
    for (int v = 0; v < 4; ++v) {
      uint8_t b[16];
      for (int i = 0; i < 4; ++i)
        for (int k = 0; k < 4; ++k) b[4 * i + k] = t[k].byte[4 * v + i];
      __builtin_memcpy(&out[v], b, 16);
    }
  }

  template <int NV, bool Plain>
  static U8 narrow(const I32 (&q)[NV], int32_t zero_point, uint8_t lo, uint8_t hi) {
    U8 r = {};
    for (int v = 0; v < NV; ++v)
      for (int i = 0; i < 4; ++i) {
        const int32_t x = q[v].lane[i] + (Plain ? 0 : zero_point);  // |lane| <= 2^21
        const int32_t low = Plain ? 0 : lo, high = Plain ? 255 : hi;
        r.byte[4 * v + i] = static_cast<uint8_t>(x < low ? low : x > high ? high : x);
      }
    return r;
  }
  template <int NV>
  static void byte_floats(U8 bytes, float zero_point, F32 (&f)[NV]) {
    for (int v = 0; v < NV; ++v)
      f[v] = each_f32([&](int i) { return static_cast<float>(bytes.byte[4 * v + i]) - zero_point; });
  }
  template <int NV>
  static void store_u8(uint8_t* p, U8 bytes, int count) {
    for (int i = 0; i < count; ++i) p[i] = bytes.byte[i];
  }
  template <int NV>
  static U8 load_u8(const uint8_t* p, int count) {
    U8 r = {};
    for (int i = 0; i < count; ++i) r.byte[i] = p[i];
    return r;
  }
  static U8 max_u8(U8 a, U8 b) {
    for (int i = 0; i < 16; ++i) a.byte[i] = a.byte[i] > b.byte[i] ? a.byte[i] : b.byte[i];
    return a;
  }
  static U8 flip(U8 bytes, uint8_t mask) {
    for (uint8_t& b : bytes.byte) b ^= mask;
    return bytes;
  }
  static U8 lookup(U8 bytes, const uint8_t* table) {
    for (uint8_t& b : bytes.byte) b = table[b];
    return bytes;
  }
};

}  // namespace
}  // namespace zeropoint
