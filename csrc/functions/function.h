// What every function class has. A class `Name` in Name.h is a template on the vector type V that
// it computes in, and defines
//
//   has_turn, minimum()     whether it falls to a minimum, and what that is
//   parameter_count         how many doubles its constructor reads (0: derive from Parameterless)
//   Stage, start(x)         the part with the exponential, shared by f, f' and f''; stage.x is x
//                             itself near a minimum
//   f, df, d2f (stage)      the function and its derivatives
//   Output<S>               the derivative from the output, which was stored as S:
//                             Stage, start(y, right), df(stage)
//
// and, if its parameters can be trained (derive from Trainable),
//
//   a constructor from an array of V   parameters that differ from lane to lane
//   dp(stage, V*)                      the derivatives with respect to the parameters
//
// and, if f and f' divide by the same number (derive from Divides),
//
//   reciprocal(stage)                  1 over that number
//   f, df (stage, reciprocal)          the same with one division for both
//
// No finite x gives a NaN, ±inf gives the limit, and NaN gives NaN.
#pragma once
#include "../math.h"

namespace mishkit {
namespace MISHKIT_ISA {

struct Parameterless {
  static constexpr int parameter_count = 0;
  explicit Parameterless(const double*) {}
};
struct Monotone {
  static constexpr bool has_turn = false;
};
// If some parameters need a formula of their own, Variant is the class that has it, and `varies`
// tells whether any of an array of first parameters needs it.
struct Trainable {
  using Variant = void;
};
// The minimum of f, as the parabola y + (bend·(x − turn))², which float can't distinguish from f up
// to `reach` above y.
struct Minimum {
  double turn, y, bend, reach;
  constexpr Minimum(double turn, double y, double bend)
      : Minimum(turn, y, bend, -y * 0x1p-18) {}
  constexpr Minimum(double turn, double y, double bend, double reach)
      : turn(turn), y(y), bend(bend), reach(reach) {}
};
template <class Fit> constexpr Minimum minimum_of{Fit::turn, Fit::y_min, Fit::bend};
// f' is 0 on a whole side, or on both. No gradient passes there, not even an infinite one, as in
// torch's own.
struct Dead {};
// f and f' have a division in common, which gates share.
struct Divides {};
// A decoder of outputs that iterates, with all vectors of a block in lockstep: settle(stage) takes
// one step and returns whether it was the last.
struct Iterating {};
template <class Class> constexpr bool iterates = __is_base_of(Iterating, Class);
template <class Base, class Class> constexpr bool is_base_of = __is_base_of(Base, Class);

// f and f' together.
template <class Function, class V>
MISHKIT_INLINE void value_and_slope(const Function& function, const typename Function::Stage& stage,
                                    V& y, V& slope) {
  if constexpr (is_base_of<Divides, Function>) {
    const V r = function.reciprocal(stage);
    y = function.f(stage, r);
    slope = function.df(stage, r);
  } else {
    y = function.f(stage);
    slope = function.df(stage);
  }
}

}  // namespace MISHKIT_ISA
}  // namespace mishkit
