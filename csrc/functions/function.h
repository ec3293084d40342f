// What every function class has. A class `Name` of Name.h is a template on the vector V that it
// computes in, and says
//
//   has_turn, minimum()     whether it falls to a minimum, and what that is
//   parameter_count         how many doubles its constructor reads (0: derive from Parameterless)
//   Stage, start(x)         the part with the exponential, in one place for f, f' and f''; stage.x
//                             is x itself beside a minimum
//   f, df, d2f (stage)      the function and its derivatives
//   Output<S>               the derivative from the output, which was stored as S:
//                             Stage, start(y, right), df(stage)
//
// and, where its parameters can be trained (derive from Trainable),
//
//   a constructor from an array of V   parameters that differ from lane to lane
//   dp(stage, V*)                      the derivatives towards the parameters
//
// No finite x gives a NaN, ±inf gives the limit, NaN gives NaN.
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
// Where some parameters ask for a formula of its own, Variant is the class that has it, and
// `varies` says whether any of an array of first parameters does.
struct Trainable {
  using Variant = void;
};
// Where f has its minimum, as a parabola there: y + (bend·(x − turn))², as exactly as float can tell
// up to `reach` above y.
struct Minimum {
  double turn, y, bend, reach;
  constexpr Minimum(double turn, double y, double bend)
      : Minimum(turn, y, bend, -y * 0x1p-18) {}
  constexpr Minimum(double turn, double y, double bend, double reach)
      : turn(turn), y(y), bend(bend), reach(reach) {}
};
template <class Fit> constexpr Minimum minimum_of{Fit::turn, Fit::y_min, Fit::bend};
// f' is 0 on a whole side. There no gradient passes, not even an infinite one, as in torch's own.
struct Dead {};
// A decoder of outputs that takes steps, all vectors of a block together: settle(stage) takes one
// and says whether it was the last.
struct Iterating {};
template <class Class> constexpr bool iterates = __is_base_of(Iterating, Class);
template <class Base, class Class> constexpr bool is_base_of = __is_base_of(Base, Class);

}  // namespace MISHKIT_ISA
}  // namespace mishkit
