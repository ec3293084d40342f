// The bodies, each written once for all functions and storage types, and the one loop that
// runs them. A function (functions/*.h) computes in two steps:
//
//   Stage start(V x)      the part with the exponential
//   V f/df/d2f(Stage)     the part with the division
//
// The loop starts the next block before it finishes the current one, so that the two overlap.
#pragma once
#include "functions/function.h"
#include "kernels.h"
#include "math.h"
#include "vec.h"

namespace mishkit {
namespace MISHKIT_ISA {

// The type that formulas compute in, and the accuracy needed for f and for its slopes.
template <class S> struct Computed {
  using type = float;
  static constexpr Accuracy accuracy = Accuracy::half, slopes = Accuracy::half;
};
template <> struct Computed<float> {
  using type = float;
  static constexpr Accuracy accuracy = Accuracy::full, slopes = Accuracy::slope;
};
template <> struct Computed<double> {
  using type = double;
  static constexpr Accuracy accuracy = Accuracy::full, slopes = Accuracy::slope;
};

// Vectors started together; in pairs, since memory is accessed in pairs.
constexpr int block_pairs = 2;

template <class S> struct Block {
  using V = Vec<typename Computed<S>::type>;
  static constexpr int pairs = block_pairs;
  static constexpr int vectors = 2 * pairs;
  static constexpr int pair_elements = 2 * V::lanes;
  static constexpr int elements = pairs * pair_elements;
  static_assert(elements % 8 == 0 && elements <= 64, "the sides of a block are whole bytes, one word");
};

// The position of one block: pointers to its elements in every array.
template <class S> struct Cursor {
  const S* in[3];
  S* out[2];
  const uint8_t* side_in;
  uint8_t* side_out;

  Cursor(const Arguments& a, int64_t begin)
      : in{(const S*)a.in[0] + begin, (const S*)a.in[1] + begin, (const S*)a.in[2] + begin},
        out{(S*)a.out[0] + begin, (S*)a.out[1] + begin},
        side_in(a.side_in + begin / 8),
        side_out(a.side_out + begin / 8) {}

  MISHKIT_INLINE_MEMBER void advance() {
    constexpr int n = Block<S>::elements;
    for (auto& p : in) p += n;
    for (auto& p : out) p += n;
    side_in += n / 8;
    side_out += n / 8;
  }
};

template <class V> double sum(V v) {
  double total = 0;
  for (int i = 0; i < V::lanes; i++) total += v.v[i];
  return total;
}
// Where an element is after pairs of vectors have been loaded, counted through the vectors.
template <class S> int64_t place_of(int64_t element) {
  constexpr int pair = Block<S>::pair_elements;
  if constexpr (__is_same(S, BFloat16))
    return element / pair * pair + element % 2 * (pair / 2) + element % pair / 2;
  else return element;
}

template <class S> using Vectors = typename Block<S>::V[Block<S>::vectors];

template <class S> MISHKIT_INLINE void load_block(const S* p, Vectors<S>& v) {
  MISHKIT_UNROLL for (int i = 0; i < Block<S>::pairs; i++)
    load(p + i * Block<S>::pair_elements, v[2 * i], v[2 * i + 1]);
}
template <Store how, class S> MISHKIT_INLINE void store_block(S* p, const Vectors<S>& v) {
  MISHKIT_UNROLL for (int i = 0; i < Block<S>::pairs; i++)
    store<how>(p + i * Block<S>::pair_elements, v[2 * i], v[2 * i + 1]);
}

// ---- bodies: start reads the inputs of a block, finish writes its outputs ----------------------

template <class Function, class S> struct Forward {
  static constexpr int inputs = 1, outputs = 1;
  static constexpr bool may_stream = true;
  static constexpr bool reads_side = false, writes_side = false;
  using Storage = S;
  using V = typename Block<S>::V;
  struct State {
    typename Function::Stage stage[Block<S>::vectors];
  };
  Function function;
  explicit Forward(const double* parameters) : function(parameters) {}

  MISHKIT_INLINE_MEMBER void start(const Cursor<S>& at, State& state) const {
    Vectors<S> x;
    load_block(at.in[0], x);
    MISHKIT_UNROLL for (int i = 0; i < Block<S>::vectors; i++) state.stage[i] = function.start(x[i]);
  }
  template <Store how> MISHKIT_INLINE_MEMBER void finish(const Cursor<S>& at, const State& state) const {
    Vectors<S> y;
    MISHKIT_UNROLL for (int i = 0; i < Block<S>::vectors; i++) y[i] = function.f(state.stage[i]);
    store_block<how>(at.out[0], y);
  }
};

// f near its minimum, computed as the parabola it is there. One output stands for a whole range of
// gradients, and every rounding on the way to it would widen that range; this rounds only once.
template <class V> struct Bottom {
  using T = typename V::Scalar;
  V bend, shift, high, low, reach;
  Bottom() = default;
  explicit Bottom(const Minimum& m)
      : bend(m.bend),
        shift(-m.turn * (double)(T)m.bend),
        high(m.y),
        low(m.y - (double)(T)m.y),
        reach(m.reach + (m.y - (double)(T)m.y)) {}  // relative to `high`, like `above`
  MISHKIT_INLINE_MEMBER V rounded_once(V x, V y) const {
    V root = fma(x, bend, shift);
    V above = fma(root, root, low);
    return select(less(above, reach), high + above, y);
  }
};

// Forward, and the side of each element.
template <class Function, class S> struct ForwardPacked : Forward<Function, S> {
  using Base = Forward<Function, S>;
  using typename Base::V;
  static constexpr bool writes_side = Function::has_turn;
  struct State : Base::State {
    uint64_t side;
  };
  // 16-bit outputs are dominated by one rounding anyway; double ones are not decoded with a table.
  static constexpr bool rounds_once = writes_side && sizeof(S) == 4;
  V turn = 0.0;
  Bottom<V> bottom;
  explicit ForwardPacked(const double* parameters) : Base(parameters) {
    if constexpr (writes_side) {
      const Minimum minimum = this->function.minimum();
      turn = minimum.turn;
      bottom = Bottom<V>(minimum);
    }
  }

  MISHKIT_INLINE_MEMBER void start(const Cursor<S>& at, State& state) const {
    Vectors<S> x;
    load_block(at.in[0], x);
    MISHKIT_UNROLL for (int i = 0; i < Block<S>::vectors; i++)
      state.stage[i] = this->function.start(x[i]);
    state.side = 0;
    if constexpr (writes_side)
      MISHKIT_UNROLL for (int i = 0; i < Block<S>::pairs; i++) {
        uint64_t bits = pair_bits<S>(less(turn, x[2 * i]), less(turn, x[2 * i + 1]));
        state.side |= bits << (i * Block<S>::pair_elements);
      }
  }
  template <Store how> MISHKIT_INLINE_MEMBER void finish(const Cursor<S>& at, const State& state) const {
    Vectors<S> y;
    MISHKIT_UNROLL for (int i = 0; i < Block<S>::vectors; i++) {
      y[i] = this->function.f(state.stage[i]);
      if constexpr (rounds_once) y[i] = bottom.rounded_once(state.stage[i].x, y[i]);
    }
    store_block<how>(at.out[0], y);
    if constexpr (writes_side) memcpy(at.side_out, &state.side, Block<S>::elements / 8);
  }
};

// grad·slope
template <bool dead, class V> MISHKIT_INLINE V passed(V grad, V slope) {
  V product = grad * slope;
  if constexpr (!dead) return product;
  return select(less_equal(abs(slope), V(0.0)), slope, product);
}

// grad·f'(x)
template <class Function, class S> struct Backward : Forward<Function, S> {
  using Base = Forward<Function, S>;
  static constexpr bool may_stream = false;
  static constexpr int inputs = 2;
  using Base::Base;
  using State = typename Base::State;

  MISHKIT_INLINE_MEMBER void start(Cursor<S> at, State& state) const {
    at.in[0] = at.in[1];
    Base::start(at, state);
  }
  template <Store how> MISHKIT_INLINE_MEMBER void finish(const Cursor<S>& at, const State& state) const {
    Vectors<S> grad;
    load_block(at.in[0], grad);
    MISHKIT_UNROLL for (int i = 0; i < Block<S>::vectors; i++)
      grad[i] = passed<is_base_of<Dead, Function>>(grad[i], this->function.df(state.stage[i]));
    store_block<how>(at.out[0], grad);
  }
};

// f(g)·u
template <class Function, class S> struct GateForward : Forward<Function, S> {
  using Base = Forward<Function, S>;
  static constexpr bool may_stream = true;
  static constexpr int inputs = 2;
  using Base::Base;
  using State = typename Base::State;

  template <Store how> MISHKIT_INLINE_MEMBER void finish(const Cursor<S>& at, const State& state) const {
    Vectors<S> u;
    load_block(at.in[1], u);
    MISHKIT_UNROLL for (int i = 0; i < Block<S>::vectors; i++)
      u[i] = this->function.f(state.stage[i]) * u[i];
    store_block<how>(at.out[0], u);
  }
};

// grad·u·f'(g) and grad·f(g)
template <class Function, class S> struct GateBackward : Forward<Function, S> {
  using Base = Forward<Function, S>;
  using typename Base::V;
  static constexpr bool may_stream = false;
  static constexpr int inputs = 3, outputs = 2;
  static constexpr int prefetched_bytes = 1024;  // ahead of each array
  using Base::Base;
  using State = typename Base::State;

  template <Store how> MISHKIT_INLINE_MEMBER void finish(const Cursor<S>& at, const State& state) const {
    Vectors<S> u, grad;
    load_block(at.in[1], u);
    load_block(at.in[2], grad);
    MISHKIT_UNROLL for (int i = 0; i < Block<S>::vectors; i++) {
      V y, slope;
      value_and_slope(this->function, state.stage[i], y, slope);
      u[i] = passed<is_base_of<Dead, Function>>(grad[i] * u[i], slope);
      grad[i] = grad[i] * y;
    }
    store_block<how>(at.out[0], u);
    store_block<how>(at.out[1], grad);
  }
};

// f(x) and f'(x)
template <class Function, class S> struct ValueAndSlope : Forward<Function, S> {
  using Base = Forward<Function, S>;
  static constexpr bool may_stream = false;
  static constexpr int outputs = 2;
  using Base::Base;
  using State = typename Base::State;

  template <Store how> MISHKIT_INLINE_MEMBER void finish(const Cursor<S>& at, const State& state) const {
    Vectors<S> y, slope;
    MISHKIT_UNROLL for (int i = 0; i < Block<S>::vectors; i++)
      value_and_slope(this->function, state.stage[i], y[i], slope[i]);
    store_block<how>(at.out[0], y);
    store_block<how>(at.out[1], slope);
  }
};

// grad_grad·f'(x) and grad_grad·grad·f''(x)
template <class Function, class S> struct DoubleBackward : Forward<Function, S> {
  using Base = Forward<Function, S>;
  static constexpr bool may_stream = false;
  static constexpr int inputs = 3, outputs = 2;
  using Base::Base;
  using State = typename Base::State;

  MISHKIT_INLINE_MEMBER void start(Cursor<S> at, State& state) const {
    at.in[0] = at.in[2];
    Base::start(at, state);
  }
  template <Store how> MISHKIT_INLINE_MEMBER void finish(const Cursor<S>& at, const State& state) const {
    Vectors<S> grad_grad, grad;
    load_block(at.in[0], grad_grad);
    load_block(at.in[1], grad);
    MISHKIT_UNROLL for (int i = 0; i < Block<S>::vectors; i++) {
      grad[i] = passed<is_base_of<Dead, Function>>(grad_grad[i] * grad[i], this->function.d2f(state.stage[i]));
      grad_grad[i] = passed<is_base_of<Dead, Function>>(grad_grad[i], this->function.df(state.stage[i]));
    }
    store_block<how>(at.out[0], grad_grad);
    store_block<how>(at.out[1], grad);
  }
};

// grad·f'(x) from y and the side, using Decoder
template <class Function, class Decoder, class S> struct BackwardPacked {
  static constexpr bool may_stream = false;
  static constexpr int inputs = 2, outputs = 1;
  static constexpr bool reads_side = Function::has_turn, writes_side = false;
  using Storage = S;
  using V = typename Block<S>::V;
  struct State {
    typename Decoder::Stage stage[Block<S>::vectors];
  };
  Decoder output;
  explicit BackwardPacked(const double* parameters) : output(parameters) {}

  MISHKIT_INLINE_MEMBER void start(const Cursor<S>& at, State& state) const {
    Vectors<S> y;
    load_block(at.in[1], y);
    uint64_t side = 0;
    if constexpr (reads_side) memcpy(&side, at.side_in, Block<S>::elements / 8);
    MISHKIT_UNROLL for (int i = 0; i < Block<S>::pairs; i++) {
      Mask<typename V::Scalar> a, b;
      constexpr uint64_t all = ((uint64_t)1 << Block<S>::pair_elements) - 1;
      split_bits<S>((uint32_t)(side >> (i * Block<S>::pair_elements) & all), a, b);
      state.stage[2 * i] = output.start(y[2 * i], a);
      state.stage[2 * i + 1] = output.start(y[2 * i + 1], b);
    }
    if constexpr (iterates<Decoder>) {  // in lockstep, so that the divisions overlap
      bool settled = false;
      for (int step = 0; step < Decoder::most_steps && !settled; step++) {
        settled = true;
        MISHKIT_UNROLL for (int i = 0; i < Block<S>::vectors; i++)
          settled &= output.settle(state.stage[i]);
      }
    }
  }
  template <Store how> MISHKIT_INLINE_MEMBER void finish(const Cursor<S>& at, const State& state) const {
    Vectors<S> grad;
    load_block(at.in[0], grad);
    MISHKIT_UNROLL for (int i = 0; i < Block<S>::vectors; i++)
      grad[i] = passed<is_base_of<Dead, Function>>(grad[i], output.df(state.stage[i]));
    store_block<how>(at.out[0], grad);
  }
};

// ---- the loop ----------------------------------------------------------------------------------

// Bodies that move five arrays wait for the last cache, whatever the processor fetches by itself.
template <class Body, class = void> constexpr bool prefetches = false;
template <class Body> constexpr bool prefetches<Body, decltype(void(Body::prefetched_bytes))> = true;

template <class Body, class S> MISHKIT_INLINE void prefetch(const Cursor<S>& at) {
  constexpr int line = 64, ahead = Body::prefetched_bytes;
  MISHKIT_UNROLL for (int k = 0; k < Block<S>::elements * (int)sizeof(S); k += line) {
    MISHKIT_UNROLL for (int i = 0; i < Body::inputs; i++)
      __builtin_prefetch((const char*)at.in[i] + ahead + k, 0);
    MISHKIT_UNROLL for (int i = 0; i < Body::outputs; i++)
      __builtin_prefetch((char*)at.out[i] + ahead + k, 1);
  }
}

template <Store how, class Body, class S>
MISHKIT_INLINE void whole_blocks(const Body& body, Cursor<S> at, int64_t blocks) {
  typename Body::State state;
  body.start(at, state);
  for (int64_t i = 1; i < blocks; i++) {
    typename Body::State next;
    Cursor<S> after = at;
    after.advance();
    if constexpr (prefetches<Body>) prefetch<Body>(at);
    // In this order, so that overwriting an input is safe: the next block is read first.
    body.start(after, next);
    body.template finish<how>(at, state);
    state = next;
    at = after;
  }
  body.template finish<how>(at, state);
}

// Fewer elements than a block go through buffers, so that all elements use the same instructions.
template <class Body, class S>
MISHKIT_INLINE void tail(const Body& body, const Cursor<S>& at, int count) {
  constexpr int size = Block<S>::elements;
  alignas(64) S in[Body::inputs][size] = {}, out[Body::outputs][size];
  alignas(8) uint8_t side_in[8] = {}, side_out[8] = {};
  Cursor<S> buffer = at;
  for (int i = 0; i < Body::inputs; i++) {
    memcpy(in[i], at.in[i], count * sizeof(S));
    buffer.in[i] = in[i];
  }
  for (int i = 0; i < Body::outputs; i++) buffer.out[i] = out[i];
  if constexpr (Body::reads_side) memcpy(side_in, at.side_in, (count + 7) / 8);
  buffer.side_in = side_in;
  buffer.side_out = side_out;
  whole_blocks<Store::cached>(body, buffer, 1);
  for (int i = 0; i < Body::outputs; i++) memcpy(at.out[i], out[i], count * sizeof(S));
  if constexpr (Body::writes_side) {
    if (count % 8) side_out[count / 8] &= (uint8_t)((1 << count % 8) - 1);
    memcpy(at.side_out, side_out, (count + 7) / 8);
  }
}

// Elements [begin, end) of the arguments; begin is a multiple of 8.
template <class Body> void run(const Arguments& arguments, int64_t begin, int64_t end) {
  using S = typename Body::Storage;
  const Body body(arguments.parameters);
  Cursor<S> at(arguments, begin);
  constexpr int size = Block<S>::elements;
  int64_t blocks = (end - begin) / size;
  int rest = (int)((end - begin) % size);
  if (blocks) {
    const bool streaming = Body::may_stream && arguments.streaming;
    if constexpr (Body::may_stream)
      if (streaming) {
        whole_blocks<Store::streaming>(body, at, blocks);
        fence();
      }
    if (!streaming) whole_blocks<Store::cached>(body, at, blocks);
  }
  if (rest) tail(body, Cursor<S>(arguments, begin + blocks * size), rest);
}

// ---- a function's kernels, for one storage type --------------------------------------------------

// Parameters that need a formula of their own have their own loop.
template <template <class, class> class Body, class F, class S>
__attribute__((noinline)) void run_variant(const Arguments& arguments, int64_t begin, int64_t end) {
  run<Body<typename F::Variant, S>>(arguments, begin, end);
}
template <template <class, class> class Body, class F, class S>
__attribute__((flatten)) void run_either(const Arguments& arguments, int64_t begin, int64_t end) {
  if (F::varies(arguments.parameters, 1)) return run_variant<Body, F, S>(arguments, begin, end);
  run<Body<F, S>>(arguments, begin, end);
}
template <class F> constexpr bool has_variant() {
  if constexpr (is_base_of<Trainable, F>) return !__is_same(typename F::Variant, void);
  else return false;
}
template <template <class, class> class Body, class F, class S> constexpr Kernel kernel_of() {
  if constexpr (has_variant<F>()) return run_either<Body, F, S>;
  else return run<Body<F, S>>;
}

// The parameters decide how the output is decoded; each way has its own loop.
template <class F, class S>
void run_backward_packed(const Arguments& arguments, int64_t begin, int64_t end) {
  if constexpr (is_base_of<Trainable, F>)
    if (F::iterates(arguments.parameters))
      return run<BackwardPacked<F, typename F::template Iterated<S>, S>>(arguments, begin, end);
  run<BackwardPacked<F, typename F::template Output<S>, S>>(arguments, begin, end);
}

template <template <class, Accuracy> class Function, class S>
constexpr void fill(Kernel (&by_body)[body_count]) {
  using F = Function<Vec<typename Computed<S>::type>, Computed<S>::accuracy>;
  using Slope = Function<Vec<typename Computed<S>::type>, Computed<S>::slopes>;
  by_body[(int)Bodies::forward] = kernel_of<Forward, F, S>();
  by_body[(int)Bodies::forward_packed] = kernel_of<ForwardPacked, F, S>();
  by_body[(int)Bodies::backward] = kernel_of<Backward, Slope, S>();
  by_body[(int)Bodies::backward_packed] = run_backward_packed<Slope, S>;
  by_body[(int)Bodies::double_backward] = kernel_of<DoubleBackward, Slope, S>();
}

}  // namespace MISHKIT_ISA
}  // namespace mishkit
