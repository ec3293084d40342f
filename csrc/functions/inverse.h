// The derivative from the output, for functions without a closed-form inverse.
//
// float, BFloat16 and Float16 outputs use the polynomials of df_y_tables.h, which describes their
// form; tools/fit_df_y.py generates them. double outputs are inverted by Newton's method.
#pragma once
#include "df_y_tables.h"
#include "function.h"

namespace mishkit {
namespace MISHKIT_ISA {

// How to centre the gradients that share one output, for outputs stored as S near a minimum of
// −depth. Where f is a parabola, the gradient is the root of y − y_min. The gradients sharing an
// output lie between the roots of a − h and a + h, and their midpoint is the root of (a + √(a² −
// h²))/2. In the lowest interval, which begins with 0, it is the root of a quarter of the upper
// end. So y − y_min is shifted, and raised to at least `least`.
struct Centring {
  double shift = 0, least = 0;
};
template <class S> static inline Centring centring(double depth) {
  // double is inverted as it is, and near a minimum of 0 no digit of y is lost.
  if (sizeof(S) == 8 || depth == 0) return {};
  constexpr int precision = sizeof(S) == 4 ? 24 : __is_same(S, BFloat16) ? 8 : 11;
  int exponent;
  __builtin_frexp(depth, &exponent);
  double unit = __builtin_ldexp(1.0, exponent - precision);
  double rounded = __builtin_rint(depth / unit) * unit;
  // Below a power of two the spacing of numbers is halved.
  if (__builtin_frexp(rounded, &exponent) == 0.5) unit /= 2;
  double lowest = depth - rounded, next = lowest + unit;
  double least = (lowest + unit / 2) / 4;
  double shift = (__builtin_sqrt(next * next - unit * unit / 4) - next) / 2;
  return {shift < least - lowest ? shift : least - lowest, least};
}

template <class Fit> struct Fitted : Parameterless {
  using Parameterless::Parameterless;
  using V = Vec<float>;
  struct Stage {
    V t;  // minus the centre of its piece
    V::Ints piece;
  };

  MISHKIT_INLINE_MEMBER Stage start(V y, Mask<float> right) const {
    V above = min(V(Fit::y_max), y) + V(Fit::y_min_hi);
    if constexpr (Fit::y_min_lo != 0) above = above + V(Fit::y_min_lo);
    return staged(y, max(V(Fit::least), above), right);
  }
  MISHKIT_INLINE_MEMBER V df(Stage s) const {
    V p = lookup4(Fit::coefficient[Fit::degree], s.piece);
    MISHKIT_UNROLL for (int i = Fit::degree - 1; i >= 0; i--)
      p = fma(p, s.t, lookup4(Fit::coefficient[i], s.piece));
    return p;
  }

 protected:
  MISHKIT_INLINE_MEMBER static Stage staged(V y, V above, Mask<float> right) {
    const Mask<float> tail = and_not(less(V(Fit::y_tail), y), right);
    V root = sqrt(select(tail, abs(y), above));
    // The piece is chosen by y: choosing it by t would delay the tables until the root is known.
    V::Ints piece = plus_where(V::Ints{} + 1, tail, -1);
    piece = plus_where(piece, right & less(V(Fit::break1), y), 1);
    piece = plus_where(piece, right & less(V(Fit::break2), y), 1);
    return {select(right, root, -root) - lookup4(Fit::center, piece), piece};
  }
};

// The same table for outputs stored as S where scale·y, and not y, is the output of its function.
template <class Fit, class S> struct ScaledFit : Fitted<Fit> {
  using Base = Fitted<Fit>;
  using typename Base::Stage;
  using V = Vec<float>;
  V high, low;  // the scale, to more digits than float has
  V most;       // an output beyond the table, so that inf·low doesn't become NaN
  V offset, rest, least;  // offset + rest: the depth of the minimum, and the centring

  explicit ScaledFit(double scale)
      : Base(nullptr),
        high(scale),
        low(scale - (double)(float)scale),
        most(2 * Fit::y_max / scale) {
    // These outputs round differently from those that the table was centred for.
    Centring centring = MISHKIT_ISA::centring<S>(-Fit::y_min / scale);
    double depth = -Fit::y_min + scale * centring.shift;
    offset = depth, rest = depth - (double)(float)depth;
    least = scale * centring.least;
  }
  MISHKIT_INLINE_MEMBER Stage start(V y, Mask<float> right) const {
    // Exactly the number that y_max leads to.
    constexpr float end = (Fit::y_max + Fit::y_min_hi) + Fit::y_min_lo;
    y = min(most, y);
    V scaled = y * high;
    V above = fma(y, low, sum_of_product(y, high, scaled, offset));
    if constexpr (sizeof(S) == 4) above = above + rest;
    return Base::staged(scaled, max(least, min(V(end), above)), right);
  }
};

// Newton's method between brackets that close by bisection where a step leaves them.
template <class Function> struct Inverted {
  using V = Vec<double>;
  Function function;
  explicit Inverted(const double* parameters) : function(parameters) {}
  struct Stage {
    typename Function::Stage at;
  };

  MISHKIT_INLINE_MEMBER Stage start(V y, Mask<double> right) const {
    const V turn = function.minimum().turn;
    // Functions of this family are at least x − 1, and on the right exceed 1 before x = 3.
    V low = select(right, turn, V(-800.0));
    V high = select(right, max(V(0.0), y) + V(3.0), turn);
    V x = select(right, max(turn + V(1.0), y), turn - V(1.0));
    Mask<double> unsettled = less(low, high);
    for (int step = 0; step < 64; step++) {
      auto at = function.start(x);
      V excess = function.f(at) - y;
      V rising = select(right, excess, -excess);
      Mask<double> below = less(rising, V(0.0));
      low = select(below, x, low);
      high = select(below, high, x);
      V newton = x - excess / function.df(at);
      Mask<double> above_low = less(low, newton), below_high = less(newton, high);
      V middle = (low + high) * V(0.5);
      V next = select(above_low, select(below_high, newton, middle), middle);
      // A lane that has settled stays unchanged, so that no result depends on its neighbours.
      Mask<double> moves = less(abs(x) * V(0x1p-52), abs(next - x)) & unsettled;
      x = select(moves, next, x);
      unsettled = moves;
      if (!to_bits(moves)) break;
    }
    return {function.start(select(less(y, y + V(1.0)), x, y))};
  }
  MISHKIT_INLINE_MEMBER V df(Stage s) const { return function.df(s.at); }
};

template <class Function> struct ScaledInverse : Inverted<Function> {
  using Base = Inverted<Function>;
  using V = Vec<double>;
  V scale;
  explicit ScaledInverse(double scale) : Base(nullptr), scale(scale) {}
  MISHKIT_INLINE_MEMBER typename Base::Stage start(V y, Mask<double> right) const {
    return Base::start(y * scale, right);
  }
};

// The decoder for outputs stored as S, and for those that must be scaled. bfloat16 may round scaled
// outputs more finely than the function's own, which its table is made for.
template <class Function, class ForFloat, class ForBFloat16, class ForFloat16, class S>
struct Decoder;
template <class Function, class F, class B, class H> struct Decoder<Function, F, B, H, double> {
  using type = Inverted<Function>;
  using scaled = ScaledInverse<Function>;
};
template <class Function, class F, class B, class H> struct Decoder<Function, F, B, H, float> {
  using type = Fitted<F>;
  using scaled = ScaledFit<F, float>;
};
template <class Function, class F, class B, class H> struct Decoder<Function, F, B, H, BFloat16> {
  using type = Fitted<B>;
  using scaled = ScaledFit<H, BFloat16>;
};
template <class Function, class F, class B, class H> struct Decoder<Function, F, B, H, Float16> {
  using type = Fitted<H>;
  using scaled = ScaledFit<H, Float16>;
};
template <class Function, class F, class B, class H, class S>
using FromOutput = typename Decoder<Function, F, B, H, S>::type;
template <class Function, class F, class B, class H, class S>
using FromScaledOutput = typename Decoder<Function, F, B, H, S>::scaled;

}  // namespace MISHKIT_ISA
}  // namespace mishkit
