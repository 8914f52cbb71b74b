// zeropoint::rnn_static: one layer of a recurrent network in one direction on bytes whose grids are known. A cell is
// the operators linear, add, mul and lookup, in the order of nn/quantizable/rnn.py.
#include <algorithm>
#include <cstring>

#include "../engine/operators.h"
#include "binary_params.h"
#include "gemm.h"
#include "team.h"
#include "unit_share.h"

namespace zeropoint {
namespace {

constexpr const char* kName = "rnn_static";

enum Kind : int64_t { kLstm, kGru, kSimple };

struct Grid {
  double scale;
  int64_t zero_point;
};

// Places in `grids`; all kinds begin with those of the input and of the first state.
enum LstmGrid { kCell0 = 2, kLstmInput, kLstmState, kGates, kI, kF, kG, kO, kKept, kAdded, kCell, kCellTanh, kLstmOut };
enum GruGrid {
  kGruInput = 2,
  kGruState,
  kResetSum,
  kReset,
  kUpdateSum,
  kUpdate,
  kScaled,
  kNewSum,
  kNew,
  kDifference,
  kStep,
  kGruOut
};
enum SimpleGrid { kSimpleInput = 2, kSimpleState, kSum, kSimpleOut };

struct Shape {
  int64_t gates, grids, tables, from_input, from_state, out;
};
constexpr Shape kShapes[] = {{4, kLstmOut + 1, 5, kLstmInput, kLstmState, kLstmOut},
                             {3, kGruOut + 1, 3, kGruInput, kGruState, kGruOut},
                             {1, kSimpleOut + 1, 1, kSimpleInput, kSimpleState, kSimpleOut}};

BinaryParams between(const Grid& a, const Grid& b, const Grid& y) {
  BinaryParams p = {};
  p.a_zero_point = static_cast<int32_t>(a.zero_point);
  p.b_zero_point = static_cast<int32_t>(b.zero_point);
  p.out_zero_point = static_cast<int32_t>(y.zero_point);
  p.hi = 255;
  return p;
}
BinaryParams sum_of(const Grid& a, const Grid& b, const Grid& y) {
  BinaryParams p = between(a, b, y);
  set_add_multipliers(p, a.scale, b.scale, y.scale);
  return p;
}
BinaryParams product_of(const Grid& a, const Grid& b, const Grid& y) {
  BinaryParams p = between(a, b, y);
  set_mul_multiplier(p, a.scale, b.scale, y.scale);
  return p;
}

using BinaryKernel = void (*)(const BinaryParams&, int64_t);
void apply(BinaryKernel kernel, BinaryParams p, const uint8_t* a, const uint8_t* b, int64_t n, uint8_t* out) {
  p.a = a;
  p.b = b;
  p.out = out;
  kernel(p, n);
}

// What follows the two products, on n units of a row. `first`: the states are on the grids of the first step. Columns
// of the gates are `hidden` apart; `work` has room for 4 * n bytes; h is read before it is written.
class Cell {
 public:
  Cell(const KernelTable& kernel, int64_t kind, const std::vector<Grid>& g, const uint8_t* tables, bool first)
      : kernel_(kernel), kind_(kind), tables_(tables) {
    const Grid& h = g[first ? 1 : static_cast<size_t>(kShapes[kind].out)];
    if (kind == kLstm) {
      sums_[0] = sum_of(g[kLstmInput], g[kLstmState], g[kGates]);
      products_[0] = product_of(g[kF], first ? g[kCell0] : g[kCell], g[kKept]);
      products_[1] = product_of(g[kI], g[kG], g[kAdded]);
      products_[2] = product_of(g[kO], g[kCellTanh], g[kLstmOut]);
      sums_[1] = sum_of(g[kKept], g[kAdded], g[kCell]);
    } else if (kind == kGru) {
      sums_[0] = sum_of(g[kGruInput], g[kGruState], g[kResetSum]);
      sums_[1] = sum_of(g[kGruInput], g[kGruState], g[kUpdateSum]);
      products_[0] = product_of(g[kReset], g[kGruState], g[kScaled]);
      sums_[2] = sum_of(g[kGruInput], g[kScaled], g[kNewSum]);
      // Times -1: the byte 255 - q on a grid with the zero point 255 - z.
      sums_[3] = sum_of(h, {g[kNew].scale, 255 - g[kNew].zero_point}, g[kDifference]);
      sums_[3].b_xor = 0xFF;
      products_[1] = product_of(g[kUpdate], g[kDifference], g[kStep]);
      sums_[4] = sum_of(g[kNew], g[kStep], g[kGruOut]);
    } else {
      sums_[0] = sum_of(g[kSimpleInput], g[kSimpleState], g[kSum]);
    }
  }

  void run(const uint8_t* from_input, const uint8_t* from_state, int64_t hidden, int64_t n, const uint8_t* h,
           uint8_t* c, uint8_t* work, uint8_t* out) const {
    uint8_t *a = work, *b = a + n, *d = b + n, *e = d + n;
    if (kind_ == kLstm) {
      uint8_t* const gates[4] = {a, b, d, e};
      for (int g = 0; g < 4; ++g) {
        add(0, from_input + g * hidden, from_state + g * hidden, n, gates[g]);
        look_up(g, n, gates[g]);
      }
      multiply(0, b, c, n, b);
      multiply(1, a, d, n, a);
      add(1, b, a, n, c);
      kernel_.lookup(c, n, tables_ + 4 * 256, a);
      multiply(2, e, a, n, out);
    } else if (kind_ == kGru) {
      add(0, from_input, from_state, n, a);
      look_up(0, n, a);
      add(1, from_input + hidden, from_state + hidden, n, b);
      look_up(1, n, b);
      multiply(0, a, from_state + 2 * hidden, n, a);
      add(2, from_input + 2 * hidden, a, n, d);
      look_up(2, n, d);
      add(3, h, d, n, e);
      multiply(1, b, e, n, e);
      add(4, d, e, n, out);
    } else {
      add(0, from_input, from_state, n, out);
      look_up(0, n, out);
    }
  }

 private:
  void add(int which, const uint8_t* a, const uint8_t* b, int64_t n, uint8_t* out) const {
    apply(kernel_.add, sums_[which], a, b, n, out);
  }
  void multiply(int which, const uint8_t* a, const uint8_t* b, int64_t n, uint8_t* out) const {
    apply(kernel_.mul, products_[which], a, b, n, out);
  }
  void look_up(int which, int64_t n, uint8_t* bytes) const { kernel_.lookup(bytes, n, tables_ + which * 256, bytes); }

  const KernelTable& kernel_;
  int64_t kind_;
  const uint8_t* tables_;
  BinaryParams sums_[5] = {}, products_[3] = {};
};

struct Weight {
  const PackedHeader* header;
  const uint8_t* blob;
  const Tensor& scale;
  const OptionalTensor& bias;

  Weight(const KernelTable& kernel, const Tensor& weight, const Tensor& packed, const Tensor& scale,
         const OptionalTensor& bias)
      : header(&linear_header(kName, kernel, weight, packed)), blob(bytes(packed)), scale(scale), bias(bias) {}

  // The product of rows on grid `x`, to bytes on grid `y`. Its arrays are this thread's until the next one.
  IgemmParams product(const uint8_t* rows, const Grid& x, const Grid& y, uint8_t* out) const {
    IgemmParams p = {};
    p.a = rows;
    p.a_stride = p.kc = header->kc;
    p.unique_taps = 1;
    p.taps = header->repeats;
    p.b = blob + header->data_offset;
    p.n = p.out_stride = header->n;
    p.out = out;
    const OutputSpec spec{x.scale, x.zero_point, ScalarType::Byte, y.scale, y.zero_point, 0, 255, ScalarType::Byte};
    p.epilogue = make_epilogue(kName, blob, *header, scale, bias, spec, TailSpec{});
    return p;
  }
};

std::tuple<Tensor, Tensor, Tensor> rnn_static(Tensor x, Tensor h, Tensor c, Tensor ih, Tensor ih_packed,
                                              Tensor ih_scale, OptionalTensor, OptionalTensor ih_bias, Tensor hh,
                                              Tensor hh_packed, Tensor hh_scale, OptionalTensor, OptionalTensor hh_bias,
                                              Tensor tables, Tensor grids, int64_t kind, bool reverse) {
  const KernelTable& kernel = kernels();
  ZP_REQUIRE(kind >= kLstm && kind <= kSimple, "rnn_static: kind must be 0 (LSTM), 1 (GRU) or 2 (one gate)");
  const Shape& shape = kShapes[kind];
  const auto is_u8 = [](const Tensor& t, int64_t dims) {
    return t.scalar_type() == ScalarType::Byte && t.dim() == dims;
  };
  ZP_REQUIRE(
      is_u8(x, 3) && is_u8(h, 2) && h.size(0) == x.size(1) && h.size(0) > 0 && h.size(1) > 0,
      "rnn_static: x must be uint8 [steps, batch, features] and h uint8 [batch, hidden], of one batch, 1 or more");
  ZP_REQUIRE(kind != kLstm || (is_u8(c, 2) && sizes_of(c) == sizes_of(h)), "rnn_static: c must be uint8 of h's shape");
  ZP_REQUIRE(is_u8(tables, 2) && tables.size(0) == shape.tables && tables.size(1) == 256 && tables.is_contiguous(),
             "rnn_static: tables must be contiguous uint8 [" + std::to_string(shape.tables) + ", 256]");
  ZP_REQUIRE(
      grids.scalar_type() == ScalarType::Double && grids.dim() == 2 && grids.size(0) == shape.grids &&
          grids.size(1) == 2 && grids.is_contiguous(),
      "rnn_static: grids must be contiguous float64 [" + std::to_string(shape.grids) + ", 2], scales and zero points");
  std::vector<Grid> g;
  const auto* pairs = static_cast<const double*>(grids.data_ptr());
  for (int64_t i = 0; i < shape.grids; ++i) {
    const double zero_point = pairs[2 * i + 1];
    // Compared as numbers: what is no number of a byte must not be converted.
    ZP_REQUIRE(zero_point >= 0 && zero_point <= 255, "rnn_static: zero points must lie between 0 and 255");
    g.push_back({pairs[2 * i], static_cast<int64_t>(zero_point)});
    check_qparams(kName, "grid", g.back().scale, g.back().zero_point, ScalarType::Byte);
  }
  const int64_t steps = x.size(0), batch = h.size(0), hidden = h.size(1), columns = shape.gates * hidden;
  const Weight from_input(kernel, ih, ih_packed, ih_scale, ih_bias),
      from_state(kernel, hh, hh_packed, hh_scale, hh_bias);
  ZP_REQUIRE(from_input.header->n == columns && from_state.header->n == columns && from_state.header->kc == hidden &&
                 from_input.header->kc == x.size(2),
             "rnn_static: x has " + std::to_string(x.size(2)) + " features and h " + std::to_string(hidden) +
                 ", the weights expect " + std::to_string(from_input.header->kc) + " and " +
                 std::to_string(from_state.header->kc) + " with " + std::to_string(shape.gates) + " gates");
  x = to_contiguous(x);
  h = torch::stable::clone(to_contiguous(h));
  c = torch::stable::clone(to_contiguous(c));
  Tensor out = empty_contiguous({steps, batch, hidden}, ScalarType::Byte);
  if (steps == 0) return {out, h, c};

  const EpilogueCache::Scope several(nullptr);  // it keeps the arrays of one product
  const int64_t features = x.size(2), state_bytes = batch * hidden;
  uint8_t* inputs = bytes(x);
  if (features % 4) {  // room to read to a multiple of 4
    inputs = scratch(Scratch::kInput, static_cast<size_t>(x.numel()) + 4);
    std::memcpy(inputs, bytes(x), static_cast<size_t>(x.numel()));
  }
  // The inputs' product runs some steps ahead: enough rows to multiply well, a few megabytes at most.
  const int64_t ahead = std::clamp<int64_t>((int64_t{1} << 22) / (batch * columns), 1, steps);
  uint8_t* a = scratch(Scratch::kGates, static_cast<size_t>((ahead + 1) * batch * columns));
  uint8_t* b = a + ahead * batch * columns;
  // States of even and odd steps: while some members write the next one, others may still read.
  uint8_t* states[2] = {scratch(Scratch::kState, static_cast<size_t>(2 * state_bytes) + 72), nullptr};
  states[1] = states[0] + (state_bytes + 4 + 63) / 64 * 64;
  std::memcpy(states[0], bytes(h), static_cast<size_t>(state_bytes));
  const Grid &input_grid = g[static_cast<size_t>(shape.from_input)], &out_grid = g[static_cast<size_t>(shape.out)],
             &state_grid = g[static_cast<size_t>(shape.from_state)];
  const Cell first(kernel, kind, g, bytes(tables), true), other(kernel, kind, g, bytes(tables), false);

  const UnitShare share(kernel, hidden, shape.gates);
  const auto cores = static_cast<int64_t>(torch::stable::get_num_threads());
  uint8_t *cells = bytes(c), *outputs = bytes(out);
  for (int64_t begin = 0; begin < steps; begin += ahead) {
    const int64_t end = std::min(steps, begin + ahead), early = reverse ? steps - end : begin;  // in time
    run_igemm(kernel, from_input.product(inputs + early * batch * features, g[0], input_grid, a),
              (end - begin) * batch);
    if (begin == 0) run_igemm(kernel, from_state.product(states[0], g[1], state_grid, b), batch);
    const IgemmParams later = from_state.product(nullptr, out_grid, state_grid, b);
    Team::run(share.small(batch) ? 1 : std::min(cores, share.blocks), [&](int rank, int size, Team& team) {
      const int64_t unit0 = share.first(rank, size), units = share.count(rank, size);
      uint8_t* work = scratch(Scratch::kRows, static_cast<size_t>(4 * std::max<int64_t>(units, 0)));
      for (int64_t s = begin; s < end; ++s) {
        const uint8_t* state = states[s % 2];
        if (s > begin) team.barrier();  // products need all units of the state
        if (s > 0) {
          IgemmParams p = later;
          p.a = state;
          share.multiply(kernel, p, batch, rank, size);
          if (!share.aligned) team.barrier();  // members need each other's columns
        }
        const int64_t time = reverse ? steps - 1 - s : s;
        const Cell& cell = s > 0 ? other : first;
        for (int64_t i = 0; i < batch && units > 0; ++i) {
          uint8_t* next = states[(s + 1) % 2] + i * hidden + unit0;
          cell.run(a + ((time - early) * batch + i) * columns + unit0, b + i * columns + unit0, hidden, units,
                   state + i * hidden + unit0, cells + i * hidden + unit0, work, next);
          std::memcpy(outputs + (time * batch + i) * hidden + unit0, next, static_cast<size_t>(units));
        }
      }
    });
  }
  std::memcpy(bytes(h), states[steps % 2], static_cast<size_t>(state_bytes));
  return {out, h, c};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zeropoint, CPU, m) { ZP_OPERATOR(m, "rnn_static", rnn_static); }

}  // namespace zeropoint
