// program FUNCTION [PARAMETER…]: reads float32 inputs, writes f, f' from the input and f' from the
// output of each, a row after the other, then a quarter of f and three of ReLU, and the derivative
// of that. FUNCTION is a number in the order of the table, which begins with ReLU.
#include "../csrc/kernels.h"

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace mishkit {
namespace neon {
extern const InstructionSet instruction_set;
}
}  // namespace mishkit

int main(int count, char** arguments) {
  using namespace mishkit;
  const auto& kernels =
      neon::instruction_set.functions[std::atoi(arguments[1])].kernels[(int)Dtypes::float32];
  double parameters[max_parameters] = {};
  for (int i = 2; i < count; i++) parameters[i - 2] = std::atof(arguments[i]);

  std::vector<float> x;
  for (float value; std::fread(&value, sizeof value, 1, stdin) == 1;) x.push_back(value);
  std::vector<float> y(x.size()), ones(x.size(), 1.0f), df(x.size()), df_y(x.size());
  std::vector<uint8_t> side(x.size() / 8 + 1);

  auto run = [&](Bodies body, const void* in0, const void* in1, void* out) {
    Arguments a{};
    a.parameters = parameters;
    a.in[0] = in0;
    a.in[1] = in1;
    a.out[0] = out;
    a.side_in = a.side_out = side.data();
    kernels[(int)body](a, 0, (int64_t)x.size());
  };
  run(Bodies::forward_packed, x.data(), nullptr, y.data());
  run(Bodies::backward, ones.data(), x.data(), df.data());
  run(Bodies::backward_packed, ones.data(), y.data(), df_y.data());

  std::vector<float> blend(x.size()), slope(x.size());
  auto mix = [&](Bodies body, const void* grad, void* out) {
    const auto& relu = neon::instruction_set.functions[0].kernels[(int)Dtypes::float32];
    const bool backward = body == Bodies::backward;
    BlendArguments a{grad, x.data(), out, {kernels[(int)body], relu[(int)body]},
                     {parameters, parameters}, 0.75, false};
    neon::instruction_set.blend->of[(int)Dtypes::float32][backward](a, 0, (int64_t)x.size());
  };
  mix(Bodies::forward, nullptr, blend.data());
  mix(Bodies::backward, ones.data(), slope.data());
  for (const auto& row : {y, df, df_y, blend, slope})
    std::fwrite(row.data(), sizeof(float), row.size(), stdout);
}
