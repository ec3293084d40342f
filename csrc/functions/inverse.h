// The derivative from the output, for functions whose inverse has no closed form.
//
// float, BFloat16 and Float16 outputs meet the polynomials of df_y_tables.h, which says how they
// are made up; tools/fit_df_y.py makes them. double outputs are inverted by Newton's method.
#pragma once
#include "df_y_tables.h"
#include "function.h"

namespace mishkit {
namespace MISHKIT_ISA {

// A factor of the outputs, to more digits than T has.
template <class T> struct Scale {
  Vec<T> high, low;
  Vec<T> most;  // an output beyond every table, so that inf·low stays a number
  explicit Scale(double s) : high(s), low(s - (double)(T)s), most(64 / s) {}
};

template <class Fit> struct Fitted : Parameterless {
  using Parameterless::Parameterless;
  using V = Vec<float>;
  struct Stage {
    V t;  // less the centre of its piece
    V::Ints piece;
  };

  MISHKIT_INLINE_MEMBER Stage start(V y, Mask<float> right) const {
    V above = min(V(Fit::y_max), y) + V(Fit::y_min_hi);
    if constexpr (Fit::y_min_lo != 0) above = above + V(Fit::y_min_lo);
    return staged(y, above, right);
  }
  // The same for the output scale·y.
  MISHKIT_INLINE_MEMBER Stage start(V y, const Scale<float>& scale, Mask<float> right) const {
    constexpr float end = Fit::y_max + Fit::y_min_hi;  // the very number that y_max leads to
    y = min(scale.most, y);
    V scaled = y * scale.high;
    V above = sum_of_product(y, scale.high, scaled, V(Fit::y_min_hi));
    above = min(V(end), fma(y, scale.low, above));
    if constexpr (Fit::y_min_lo != 0) above = above + V(Fit::y_min_lo);
    return staged(scaled, above, right);
  }
  MISHKIT_INLINE_MEMBER V df(Stage s) const {
    V p = lookup4(Fit::coefficient[Fit::degree], s.piece);
    MISHKIT_UNROLL for (int i = Fit::degree - 1; i >= 0; i--)
      p = fma(p, s.t, lookup4(Fit::coefficient[i], s.piece));
    return p;
  }

 private:
  MISHKIT_INLINE_MEMBER static Stage staged(V y, V above, Mask<float> right) {
    const Mask<float> tail = and_not(less(V(Fit::y_tail), y), right);
    V root = sqrt(select(tail, abs(y), max(V(Fit::least), above)));
    // The piece is chosen by y: choosing it by t would put the root before the tables.
    V::Ints piece = plus_where(V::Ints{} + 1, tail, -1);
    piece = plus_where(piece, right & less(V(Fit::break1), y), 1);
    piece = plus_where(piece, right & less(V(Fit::break2), y), 1);
    return {select(right, root, -root) - lookup4(Fit::center, piece), piece};
  }
};

// Newton's method between brackets that close by bisection where it strays.
template <class Function> struct Inverted {
  using V = Vec<double>;
  Function function;
  explicit Inverted(const double* parameters) : function(parameters) {}
  struct Stage {
    typename Function::Stage at;
  };

  MISHKIT_INLINE_MEMBER Stage start(V y, Mask<double> right) const {
    const V turn = function.turn();
    // Every function of this family is at least x − 1, and on the right past 1 before x = 3.
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
      // A lane that has settled stays, so that no result depends on its neighbours.
      Mask<double> moves = less(abs(x) * V(0x1p-52), abs(next - x)) & unsettled;
      x = select(moves, next, x);
      unsettled = moves;
      if (!to_bits(moves)) break;
    }
    return {function.start(select(less(y, y + V(1.0)), x, y))};
  }
  // The same for the output scale·y.
  MISHKIT_INLINE_MEMBER Stage start(V y, const Scale<double>& scale, Mask<double> right) const {
    return start(y * scale.high, right);
  }
  MISHKIT_INLINE_MEMBER V df(Stage s) const { return function.df(s.at); }
};

// The decoder for outputs that were stored as S.
template <class Function, class ForFloat, class ForBFloat16, class ForFloat16, class S>
struct Decoder;
template <class Function, class F, class B, class H> struct Decoder<Function, F, B, H, double> {
  using type = Inverted<Function>;
};
template <class Function, class F, class B, class H> struct Decoder<Function, F, B, H, float> {
  using type = Fitted<F>;
};
template <class Function, class F, class B, class H> struct Decoder<Function, F, B, H, BFloat16> {
  using type = Fitted<B>;
};
template <class Function, class F, class B, class H> struct Decoder<Function, F, B, H, Float16> {
  using type = Fitted<H>;
};
template <class Function, class F, class B, class H, class S>
using FromOutput = typename Decoder<Function, F, B, H, S>::type;

}  // namespace MISHKIT_ISA
}  // namespace mishkit
