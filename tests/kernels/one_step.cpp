// One call of stage_step for test_instructions.py: `one_step BATCH SHARED`, samples of 4x32x32.

#include <cstdlib>
#include <vector>

#include "step.h"

extern "C" void stage_step(const float*, const float*, const float*, const float*, const stage::Coefficients*, int64_t,
                           const uint64_t*, const uint32_t*, int64_t, int64_t, int64_t, float*, uint8_t*, int) noexcept;

int main(int, char** arguments) {
  const int64_t batch = std::atoll(arguments[1]), channels = 4, plane = 32 * 32, size = batch * channels * plane;
  stage::Coefficients row{1.54f, 1.17f, 0.0031f, 0.9957f, 0.0837f, 0.25f, 0.25f, 0.65f, 0.76f,
                          static_cast<uint32_t>(std::atoi(arguments[2])), 400, 1.0f, 0.0f, 0, 1.0f};
  std::vector<float> x(size, 0.5f), eps(size, -0.25f), clean(size, 1.0f), mask(batch * plane, 1.0f), next(size);
  std::vector<uint64_t> seeds(batch, 7);
  std::vector<uint32_t> samples(batch, 3);
  std::vector<uint8_t> finite(batch);
  stage_step(x.data(), eps.data(), clean.data(), mask.data(), &row, 0, seeds.data(), samples.data(), batch, channels,
             plane, next.data(), finite.data(), 1);
  for (const uint8_t whole : finite)
    if (!whole) return 1;
  return 0;
}
