// APTx: (alpha + tanh(beta·x))·gamma·x = x·gamma·((alpha + 1)·e + (alpha − 1))/(e + 1) with e =
// exp(2·beta·x), which keeps every digit in both tails. For alpha < 0 it is written in 1/e: then
// the smaller of the two limits is at e = 0, which e approaches all the way, and not at large e,
// which stops at exp(near).
#pragma once
#include "silu.h"

namespace mishkit {
namespace MISHKIT_ISA {

// For g(u) = u·(alpha + tanh u): the u of its minimum, for |alpha| < 1. g' rises through 0 there.
static inline double aptx_turn(double alpha) {
  double low = -1.2, high = 1.2;
  for (;;) {
    double middle = (low + high) / 2;
    if (!(low < middle && middle < high)) return middle;
    double t = tanh(middle);
    (alpha + t + middle * (1 - t * t) < 0 ? low : high) = middle;
  }
}

template <class V, Accuracy accuracy> struct APTx : Trainable, Divides {
  using T = typename V::Scalar;
  static constexpr bool has_turn = true;
  static constexpr int parameter_count = 3;
  static constexpr double near = 40.0;  // above this σ rounds to 1, in double too
  static constexpr double largest =
      sizeof(T) == 4 ? 0x1.fffffep127 : 0x1.fffffffffffffp1023;

  V gamma, from, to;     // alpha ∓ 1: the weight of gamma·x at e = 0, and at the other end
  Factor<T> sharpness;   // ±2·beta
  V base, height, top;   // the weight of x is base + height·σ, and its limit is top
  V low, high;                 // bounds that x is clamped to for the exponential
  V least, most;               // bounds that x is clamped to for its own use: inf·0 would be a NaN
  double alpha, beta, gamma_exact;  // for the minimum

  explicit APTx(const double* p)
      : gamma(p[2]),
        from(p[0] - sign(p[0])),
        to(p[0] + sign(p[0])),
        sharpness(2 * sign(p[0]) * p[1]),
        base(p[2] * (p[0] - sign(p[0]))),
        height(2 * sign(p[0]) * p[2]),
        top(p[2] * (p[0] + sign(p[0]))),
        alpha(p[0]),
        beta(p[1]),
        gamma_exact(p[2]) {
    set_bounds();
  }
  explicit APTx(const V* p)
      : gamma(p[2]),
        from(p[0] - sign(p[0])),
        to(p[0] + sign(p[0])),
        sharpness(sign(p[0]) * (p[1] + p[1])),
        base(p[2] * from),
        height(sign(p[0]) * (p[2] + p[2])),
        top(p[2] * to),
        alpha(0),
        beta(0),
        gamma_exact(0) {
    set_bounds();
  }
  Minimum minimum() const {
    const double rise = beta * gamma_exact, scale = gamma_exact / beta;
    if (alpha == 1) {  // gamma/beta·silu(2·beta·x)
      constexpr Minimum of = SiLU<V, accuracy>::minimum();
      return {of.turn / (2 * beta), of.y * scale, of.bend * 2 * __builtin_sqrt(rise)};
    }
    const double u = aptx_turn(alpha), t = tanh(u), s = 1 - t * t;
    return {u / beta, u * (alpha + t) * scale, __builtin_sqrt(rise * s * (1 - u * t))};
  }

  struct Stage {
    V x, c, z, e;  // c: x clamped; z = 2·beta·c, e = exp(z)
  };
  MISHKIT_INLINE_MEMBER Stage start(V x) const {
    V c = min(high, max(low, x));
    x = min(most, max(least, x));
    return {x, c, c * sharpness.high, exp<accuracy>(c, sharpness)};
  }
  MISHKIT_INLINE_MEMBER V f(Stage s) const {
    return s.x * (fma(s.e, top, base) / (s.e + V(1.0)));
  }
  MISHKIT_INLINE_MEMBER V reciprocal(Stage s) const { return V(1.0) / (s.e + V(1.0)); }
  MISHKIT_INLINE_MEMBER V df(Stage s) const { return df(s, reciprocal(s)); }
  MISHKIT_INLINE_MEMBER V f(Stage s, V r) const { return s.x * (fma(s.e, top, base) * r); }
  MISHKIT_INLINE_MEMBER V df(Stage s, V r) const {
    return fma(s.e, top, base) * r + height * (s.z * r) * (s.e * r);
  }
  MISHKIT_INLINE_MEMBER V d2f(Stage s) const {
    V r = reciprocal(s);
    V sigma = s.e * r;
    return height * sharpness.high * sigma * r * fma(s.z, r - sigma, V(2.0));
  }
  // gamma·x; 4·gamma·x²·σ(z)·σ(−z); x·(alpha + tanh u)
  MISHKIT_INLINE_MEMBER void dp(Stage s, V* d) const {
    V r = reciprocal(s);
    V sigma = s.e * r;
    d[0] = gamma * s.x;
    d[1] = gamma * V(4.0) * (s.c * sigma) * (s.c * r);
    d[2] = s.x * (fma(s.e, to, from) * r);
  }

  struct Balanced;
  using Variant = Balanced;
  static constexpr double balanced = 0.25;
  template <class Number> static bool varies(const Number* alphas, int64_t count) {
    for (int64_t i = 0; i < count; i++)
      if (-balanced < alphas[i] && alphas[i] < balanced) return true;
    return false;
  }

  // alpha = 1: f = gamma/beta·silu(2·beta·x).
  template <class S> struct Output : SiLU<V, accuracy>::template ScaledOutput<S> {
    using Base = typename SiLU<V, accuracy>::template ScaledOutput<S>;
    V height;
    Mask<T> mirrored;
    explicit Output(const double* p)
        : Base(p[1] / p[2]), height(2 * p[2]), mirrored(less(V(p[1]), V(0.0))) {}
    MISHKIT_INLINE_MEMBER typename Base::Stage start(V y, Mask<T> right) const {
      return Base::start(y, right ^ mirrored);
    }
    MISHKIT_INLINE_MEMBER V df(typename Base::Stage s) const { return Base::df(s) * height; }
  };

  // alpha < 1: there is no table, so g is inverted. Newton's method for v = u − turn, between
  // brackets that close by bisection where a step leaves them. g − g_min = v·d + turn·(d − s·v),
  // with d = tanh u − tanh turn and s = tanh' turn, keeps its digits near the minimum, where it is
  // a parabola. The iteration uses the square root of g − g_min, which is nearly linear in v.
  static bool iterates(const double* p) { return p[0] != 1; }
  template <class S> struct Iterated : Iterating {
    static constexpr double end = 25;  // the |u| beyond which the slope equals its limit
    static constexpr int most_steps = 80;
    // After a step this small, Newton's next step would be below the last place.
    static constexpr double settled = sizeof(T) == 4 ? 0x1p-11 : 0x1p-26;
    V scale, scale_low, gamma;
    Mask<T> mirrored;
    V bottom, t0, s0, depth_high, depth_low, lowest, per_root, most = end;
    V per_slope_right, per_slope_left, limit_right, limit_left;
    explicit Iterated(const double* p)
        : scale(p[1] / p[2]),
          scale_low(p[1] / p[2] - (double)(T)(p[1] / p[2])),
          gamma(p[2]),
          mirrored(less(V(p[1]), V(0.0))) {
      double u = aptx_turn(p[0]), t = tanh(u), s = 1 - t * t, depth = -u * (p[0] + t);
      Centring centring = MISHKIT_ISA::centring<S>(depth * p[2] / p[1]);
      depth += p[1] / p[2] * centring.shift, lowest = p[1] / p[2] * centring.least;
      bottom = u, t0 = t, s0 = s;
      depth_high = depth, depth_low = depth - (double)(T)depth;
      per_root = 1 / __builtin_sqrt(s * (1 - u * t));
      per_slope_right = 1 / (1 + p[0]), per_slope_left = 1 / (1 - p[0]);
      limit_right = at(most - bottom).above, limit_left = at(-most - bottom).above;
    }
    struct At {
      V above, rise;  // g − g_min and g'
    };
    MISHKIT_INLINE_MEMBER At at(V v) const {
      // tanh v = e/(e + 2) with e = exp(2v) − 1, combined with its divisor into one fraction.
      V e = expm1<accuracy>(v + v);
      V r = V(1.0) / fma(t0, e, e + V(2.0));
      V d = s0 * e * r;
      V bend = s0 * V(4.0) * ((e + V(1.0)) * r) * r;
      return {fma(v, d, bottom * fnma(s0, v, d)), fma(bottom + v, bend, fnma(bottom, s0, d))};
    }

    struct Stage {
      V root;  // of g − g_min
      V v, low, far;
      Mask<T> unsettled;
    };
    MISHKIT_INLINE_MEMBER Stage start(V y, Mask<T> right) const {
      right = right ^ mirrored;
      V far = select(right, most - bottom, -most - bottom);
      V limit = select(right, limit_right, limit_left);
      y = min(limit / scale, y);
      V above = sum_of_product(y, scale, y * scale, depth_high);
      above = min(limit, max(lowest, fma(y, scale_low, above) + depth_low));
      V root = sqrt(above);
      // Between the parabola of the minimum and the straight line far out, whose slope is 1 ±
      // alpha.
      V line = (above - depth_high) * select(right, per_slope_right, per_slope_left);
      V v = max(root * per_root, select(right, line - bottom, line + bottom));
      v = min(abs(far), v);
      return {root, select(right, v, -v), V(0.0), far, less(V(0.0), root)};
    }
    // Takes one step; returns whether the iteration is finished.
    MISHKIT_INLINE_MEMBER bool settle(Stage& s) const {
      At here = at(s.v);
      V size = sqrt(max(V(0.0), here.above));
      Mask<T> beyond = less(s.root, size);
      s.low = select(beyond, s.low, s.v);
      s.far = select(beyond, s.v, s.far);
      V newton = s.v - (size + size) * (size - s.root) / here.rise;
      Mask<T> inside = less_equal((newton - s.low) * (newton - s.far), V(0.0));
      V next = select(inside, newton, (s.low + s.far) * V(0.5));
      Mask<T> moves = less(abs(s.v) * V(settled), abs(next - s.v)) & s.unsettled;
      // A lane that has settled stays unchanged, so that no result depends on its neighbours.
      s.v = select(s.unsettled, next, s.v);
      s.unsettled = moves;
      return !to_bits(moves);
    }
    MISHKIT_INLINE_MEMBER V df(Stage s) const {
      V rise = select(less(V(0.0), s.root), at(s.v).rise, s.root);
      return rise * gamma;
    }
  };

 private:
  static double sign(double alpha) { return alpha < 0 ? -1.0 : 1.0; }
  MISHKIT_INLINE_MEMBER static V sign(V alpha) {
    return select(less(alpha, V(0.0)), V(-1.0), V(1.0));
  }
  MISHKIT_INLINE_MEMBER void set_bounds() {
    // If beta is nearly 0: numbers that can still be split for an exact product.
    const V end = largest / (sizeof(T) == 4 ? 0x1p14 : 0x1p28);
    V a = V(exp_floor<T>) / sharpness.high, b = V(near) / sharpness.high;
    low = max(-end, min(a, b)), high = min(end, max(a, b));
    Mask<T> falling = less(sharpness.high, V(0.0));
    V on_left = select(falling, top, base), on_right = select(falling, base, top);
    V none = __builtin_inf();
    least = select(less_equal(abs(on_left), V(0.0)), V(-largest), -none);
    most = select(less_equal(abs(on_right), V(0.0)), V(largest), none);
  }
};

// The same if some alpha is so near 0 that near x = 0 the weight is small compared with its limits.
// There it is computed from tanh itself; other lanes are left unchanged.
template <class V, Accuracy accuracy>
struct APTx<V, accuracy>::Balanced : APTx<V, accuracy> {
  using Base = APTx<V, accuracy>;
  using Variant = void;
  V offset, side;  // alpha, and the sign of beta in e
  Mask<T> is_balanced;

  template <class Number>
  explicit Balanced(const Number* p)
      : Base(p),
        offset(p[0]),
        side(Base::sign(offset)),
        is_balanced(less(abs(offset), V(Base::balanced))) {}

  struct Stage : Base::Stage {
    V sum;  // alpha + tanh(beta·x)
  };
  MISHKIT_INLINE_MEMBER Stage start(V x) const {
    typename Base::Stage s = Base::start(x);
    V e = expm1<accuracy>(s.z);
    return {s, fma(side, e / (e + V(2.0)), offset)};
  }
  MISHKIT_INLINE_MEMBER V f(Stage s) const {
    V weight = fma(s.e, this->top, this->base) / (s.e + V(1.0));
    return s.x * select(is_balanced, this->gamma * s.sum, weight);
  }
  MISHKIT_INLINE_MEMBER V weight(Stage s, V r) const {
    return select(is_balanced, this->gamma * s.sum, fma(s.e, this->top, this->base) * r);
  }
  MISHKIT_INLINE_MEMBER V df(Stage s) const { return df(s, this->reciprocal(s)); }
  MISHKIT_INLINE_MEMBER V f(Stage s, V r) const { return s.x * weight(s, r); }
  MISHKIT_INLINE_MEMBER V df(Stage s, V r) const {
    return weight(s, r) + this->height * (s.z * r) * (s.e * r);
  }
  MISHKIT_INLINE_MEMBER void dp(Stage s, V* d) const {
    Base::dp(s, d);
    d[2] = select(is_balanced, s.x * s.sum, d[2]);
  }
};

}  // namespace MISHKIT_ISA
}  // namespace mishkit
