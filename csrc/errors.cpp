// The statistics of `mishkit accuracy --exhaustive`: float32 results compared with references in
// double. This is not in Python because it processes every float32 there is. It is a library of its own,
// loaded by lab/accuracy/exhaustive.py, because the kernels don't need it.
#include <cstdint>
#include <cstring>

namespace mishkit {
namespace {

// The names and their order are those of ROWS in lab/accuracy/exhaustive.py.
struct Row {
  double max, at;  // the largest error and its input; at is NaN as long as max is 0
  double total, count;

  // A NaN counts as an infinite error, or comparisons would miss it.
  void add(double error, double x) {
    error = error == error ? error : __builtin_inf();
    if (error > max) max = error, at = x;
    total += error;
    count += 1;
  }
};
constexpr int slopes = 11;
struct Errors {
  Row f_ulp, f_abs, tail;  // f outside the tail, and in it
  Row falls, tail_falls;   // how far f falls where it should rise, in ULP, and in the tail
  Row df_abs;
  Row df_y, df_y_beyond;  // against the gradient of the input, and beyond the rounding of y
  Row df_far;  // df in ULP, where |x − turn| is at least 1
  Row df_ulp[slopes];  // and by |f'|: at least 1, at least 1/2, …, less than 2⁻⁹
};
struct Differences {
  Row ulp, abs;  // total: how many differ in their bits
};

struct Rules {
  double turn;               // −∞ for a monotone function
  double tail, tail_weight;  // |f| < tail or |f| < |x|·tail_weight: the tail
  double far;                // an error of df_y that must be examined more closely

  bool in_tail(double x, double f) const {
    double size = __builtin_fabs(f);
    return size < tail || size < __builtin_fabs(x) * tail_weight;
  }
};

int exponent_of(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return (int)(bits >> 52 & 2047) - 1023;
}
// 1/ULP of float32 at a value, with the ULP at least that of the smallest normal number.
double per_ulp(double value) {
  int exponent = exponent_of(value);
  uint64_t bits = (uint64_t)(1023 + 23 - (exponent > -126 ? exponent : -126)) << 52;
  double unit;
  memcpy(&unit, &bits, sizeof unit);
  return unit;
}
bool overflows(double f, float y) {
  return __builtin_fabs(f) > __FLT_MAX__ && y == __builtin_copysign(__builtin_inf(), f);
}

// f' where f is y, to second order in y − f about an x on that side. This is exact where f is a
// parabola, as it is near its minimum. 0 if y is below the minimum.
double df_of_output(double y, double f, double df, double d2f, bool right) {
  double square = df * df + 2 * d2f * (y - f);
  double size = square > 0 ? __builtin_sqrt(square) : 0;
  return right ? size : -size;
}

}  // namespace
}  // namespace mishkit

// Counts the errors of y (f, by a kernel), gradient (of 1, from x) and decoded (of 1, from y and
// the side). x and y have one more element, the next bit pattern, which f may rise or fall to.
// Returns how many errors of df_y are above `far`; these are not counted, but their indices are put
// in `places`.
extern "C" __attribute__((visibility("default"))) int64_t mishkit_add_errors(
    const float* x, const float* y, const float* gradient, const float* decoded, const double* f,
    const double* df, const double* d2f, int64_t count, const mishkit::Rules* rules,
    mishkit::Errors* errors, int64_t* places) {
  using namespace mishkit;
  Errors& e = *errors;
  int64_t far = 0;
  for (int64_t i = 0; i < count; i++) {
    const double at = x[i], unit = per_ulp(f[i]);
    const bool right = at > rules->turn;

    const double error = overflows(f[i], y[i]) ? 0 : __builtin_fabs(y[i] - f[i]);
    const bool tail = rules->in_tail(at, f[i]);
    if (tail) {
      e.tail.add(error, at);
    } else {
      e.f_ulp.add(error * unit, at);
      e.f_abs.add(error, at);
    }

    if (right == (x[i + 1] > rules->turn)) {
      // The next bit pattern is farther from 0; to the left of the turn f falls towards it.
      const bool rises = right != (bool)__builtin_signbit(x[i]);
      const double step = (double)y[i + 1] - y[i], fall = rises ? -step : step;
      if (fall > 0) (tail ? e.tail_falls : e.falls).add(tail ? fall : fall * unit, at);
    }

    // Errors of slopes are relative where these are larger than 1.
    const double size = __builtin_fabs(df[i]), scale = size > 1 ? size : 1;
    const double slope_error = overflows(df[i], gradient[i]) ? 0 : __builtin_fabs(gradient[i] - df[i]);
    e.df_abs.add(slope_error / scale, at);
    if (!rules->in_tail(at, df[i])) {
      const double in_ulp = slope_error * per_ulp(df[i]);
      const int place = -exponent_of(df[i]);
      e.df_ulp[place < 0 ? 0 : place < slopes ? place : slopes - 1].add(in_ulp, at);
      if (__builtin_fabs(at - rules->turn) >= 1) e.df_far.add(in_ulp, at);
    }

    if (overflows(f[i], y[i])) continue;  // the output only tells that the input is large
    e.df_y.add(__builtin_fabs(decoded[i] - df[i]) / scale, at);
    double beyond = __builtin_fabs(decoded[i] - df_of_output(y[i], f[i], df[i], d2f[i], right)) / scale;
    if (!(beyond <= rules->far)) {
      const double half = 0.5 / per_ulp(y[i]);
      const double a = df_of_output(y[i] - half, f[i], df[i], d2f[i], right);
      const double b = df_of_output(y[i] + half, f[i], df[i], d2f[i], right);
      const double below = (a < b ? a : b) - decoded[i], above = decoded[i] - (a < b ? b : a);
      beyond = (below > above ? below : above) / scale;
    }
    if (beyond <= rules->far) e.df_y_beyond.add(beyond > 0 ? beyond : 0, at);
    else places[far++] = i;
  }
  return far;
}

// Counts where results a and b differ: in how many bit patterns, by how much, and, outside the
// tail, by how many ULP of f (which may be null).
extern "C" __attribute__((visibility("default"))) void mishkit_add_differences(
    const float* x, const float* a, const float* b, const double* f, int64_t count,
    const mishkit::Rules* rules, mishkit::Differences* differences) {
  using namespace mishkit;
  for (int64_t i = 0; i < count; i++) {
    const bool same = memcmp(a + i, b + i, sizeof *a) == 0 || (a[i] != a[i] && b[i] != b[i]);
    double error = same ? 0 : __builtin_fabs((double)a[i] - b[i]);
    if (!(error == error)) error = __builtin_inf();
    auto add = [&](Row& row, double by) {
      if (by > row.max) row.max = by, row.at = x[i];
      row.total += !same;
      row.count += 1;
    };
    add(differences->abs, error);
    if (f && !rules->in_tail(x[i], f[i])) add(differences->ulp, error * per_ulp(f[i]));
  }
}
