// The CUDA kernels, run by the emulation of cuda_emulation/, against naive loops in double.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "expect.h"
#include "naive_rated_bce.h"
#include "naive_vlad.h"
#include "pyseg/cuda/batch_statistics.cuh"
#include "pyseg/cuda/dequantize.cuh"
#include "pyseg/rated_bce.cuh"
#include "pyseg/soft_assign.cuh"
#include "pyseg/vlad.cuh"

namespace {

using pyseg::BFloat16;
using pyseg::Float16;
using pyseg::gpu::Device;

// The GPU's type with the bits of the CPU's type T.
template <typename T>
struct OnGpu {
  using type = T;
};
template <>
struct OnGpu<Float16> {
  using type = __half;
};
template <>
struct OnGpu<BFloat16> {
  using type = __nv_bfloat16;
};

// Values of type T as in GPU memory: aligned to 256 bytes like a GPU's allocations, or `offset`
// values after such a boundary, like a view.
template <typename T>
class Memory {
 public:
  using Gpu = typename OnGpu<T>::type;

  explicit Memory(int64_t size, int64_t offset = 0)
      : size_(size), offset_(offset), values_(new (kBoundary) T[offset + size]) {
    std::memset(values_.get(), 0xff, (offset + size) * sizeof(T));
  }
  explicit Memory(const std::vector<T>& values, int64_t offset = 0)
      : Memory(static_cast<int64_t>(values.size()), offset) {
    std::copy(values.begin(), values.end(), values_.get() + offset);
  }
  Gpu* get() const { return reinterpret_cast<Gpu*>(values_.get() + offset_); }
  std::vector<T> read() const {
    return std::vector<T>(values_.get() + offset_, values_.get() + offset_ + size_);
  }

 private:
  static constexpr std::align_val_t kBoundary{256};
  struct Free {
    void operator()(T* memory) const { ::operator delete[](memory, kBoundary); }
  };

  int64_t size_, offset_;
  std::unique_ptr<T[], Free> values_;
};

void expect_success(cudaError_t error, const std::string& what) {
  expect(error == cudaSuccess, what + " was not launched");
}

template <typename T>
struct Results {
  std::vector<T> output, features, assignment, attention, centers;
  std::vector<Accumulate<T>> norm_sums;
};

template <typename T>
struct Case {
  VladShape s;
  double eps;
  std::vector<T> x, z, a, c, grad;
  Norm norm;
};

template <typename T>
Results<T> run(const Case<T>& test, bool tf32, const Device& device, bool with_features,
               int64_t offset, const std::string& what) {
  using A = Accumulate<T>;
  using Gpu = typename OnGpu<T>::type;
  const auto [B, N, G, F, K] = test.s;
  const bool has_norm = !test.norm.values.empty();
  const auto narrowed = [](const Doubles& values) {
    return std::vector<A>(values.begin(), values.end());
  };
  const Memory<T> x(test.x, offset), z(test.z, offset), a(test.a, offset), c(test.c, offset);
  const Memory<T> grad(test.grad, offset);
  const Memory<A> values(narrowed(test.norm.values)), weights(narrowed(test.norm.row_weights));
  const pyseg::VladInput<Gpu, A> in{
      x.get(),
      z.get(),
      a.get(),
      c.get(),
      {has_norm ? values.get() : nullptr, test.norm.row_weights.empty() ? nullptr : weights.get()}};
  const Memory<T> output(B * F * K);
  const Memory<A> mass(B * K), square_norm(B * K);
  const Memory<float> forward_work(
      pyseg::vlad_forward_workspace<Gpu>(test.s, has_norm, tf32, device) / 4);
  expect_success(pyseg::launch_vlad_forward<Gpu>(test.s, in, test.eps, tf32, device,
                                                 {output.get(), mass.get(), square_norm.get()},
                                                 forward_work.get(), nullptr),
                 what + " forward");

  const Memory<T> features(with_features ? B * N * F : 0), assignment(B * N * K), attention(B * N);
  const Memory<T> centers(F * K);
  const Memory<A> norm_sums(has_norm ? 2 * G * K : 0);
  const Memory<float> work(pyseg::vlad_backward_workspace<Gpu>(test.s, has_norm, tf32, device) / 4);
  expect_success(pyseg::launch_vlad_backward<Gpu>(
                     test.s, in, {grad.get(), output.get(), mass.get(), square_norm.get()},
                     test.eps, tf32, device,
                     {with_features ? features.get() : nullptr, assignment.get(), attention.get(),
                      centers.get(), has_norm ? norm_sums.get() : nullptr},
                     work.get(), nullptr),
                 what + " backward");
  return {output.read(),    features.read(), assignment.read(),
          attention.read(), centers.read(),  norm_sums.read()};
}

template <typename T>
bool same_bits(const Results<T>& a, const Results<T>& b) {
  return same_bits(a.output, b.output) && same_bits(a.assignment, b.assignment) &&
         same_bits(a.attention, b.attention) && same_bits(a.centers, b.centers) &&
         same_bits(a.norm_sums, b.norm_sums);
}

constexpr Device kTensorCores{132, 232448, true};
constexpr Device kPlain{80, 49152, false};

template <typename T>
void test_shape(const VladShape& s, double eps, Kind kind, bool tf32, const Device& device,
                double tolerance, std::string what) {
  const auto [B, N, G, F, K] = s;
  what += " norm " + std::to_string(static_cast<int>(kind)) + (tf32 ? " tf32 (" : " (");
  for (const int64_t size : {B, N, G, F, K}) what += std::to_string(size) + " ";
  what.back() = ')';
  std::mt19937_64 generator(1);
  Case<T> test{s, eps, {}, random_values<T>(B * N * K, 3, generator), {}, {}, {}, {}};
  test.norm = make_norm(s, test.z, kind, generator);
  test.x = random_values<T>(B * N * F, 1, generator);
  test.a = random_values<T>(B * N, 1, generator);
  test.c = random_values<T>(F * K, 1, generator);
  test.grad = random_values<T>(B * F * K, 1, generator);
  const Expected expected = naive(s, test.x, test.z, test.a, test.c, test.norm, test.grad, eps);
  const Results<T> d = run(test, tf32, device, true, 0, what);
  expect_close(d.output, expected.output, tolerance, what + " output");
  expect_close(d.features, expected.features, tolerance, what + " gradient of features");
  expect_close(d.assignment, expected.assignment, tolerance, what + " gradient of assignment");
  expect_close(d.attention, expected.attention, tolerance, what + " gradient of attention");
  expect_close(d.centers, expected.centers, tolerance, what + " gradient of centers");
  expect_close(d.norm_sums, expected.norm_sums, tolerance, what + " norm_sums");
  // Repeated with threads and blocks in another order.
  expect(same_bits(d, run(test, tf32, device, false, 1, what)),
         what + " depends on more than values");
}

void test_vlad() {
  for (const VladShape& s :
       {VladShape{2, 5, 1, 7, 3}, VladShape{1, 40, 8, 72, 112}, VladShape{1, 66, 3, 24, 16},
        VladShape{2, 20, 4, 33, 136}, VladShape{1, 0, 1, 3, 2}, VladShape{0, 4, 2, 3, 2},
        VladShape{1, 12, 2, 0, 3}, VladShape{9, 2, 2, 8, 24}, VladShape{1, 20, 2, 33, 120}}) {
    for (const Kind kind : {Kind::kPlain, Kind::kConstants, Kind::kStatistics}) {
      test_shape<Float16>(s, 1e-12, kind, false, kTensorCores, 1e-2, "float16");
      test_shape<float>(s, 1e-12, kind, true, kTensorCores, 6e-3, "float");
    }
    test_shape<BFloat16>(s, 1e-12, Kind::kStatistics, false, kTensorCores, 4e-2, "bfloat16");
    test_shape<float>(s, 1e-12, Kind::kStatistics, false, kPlain, 8e-6, "float");
    test_shape<double>(s, 1e-12, Kind::kStatistics, false, kPlain, 1e-12, "double");
    test_shape<float>(s, 1e4, Kind::kPlain, true, kTensorCores, 6e-3, "clamped");
  }
}

template <typename T>
void test_slices(const VladShape& s, bool tf32, int64_t slices, int64_t f_slices, double tolerance,
                 const std::string& name) {
  const auto plan = pyseg::gpu::plan_forward<typename OnGpu<T>::type>(s, true, kTensorCores);
  expect(plan.slices == slices && plan.f_slices == f_slices, name + ": other slices than expected");
  test_shape<T>(s, 1e-12, Kind::kConstants, tf32, kTensorCores, tolerance, name);
}

// Shapes whose forward takes several slices of rows or of columns.
void test_slices() {
  for (const auto& [shape, slices, f_slices] : {std::tuple{VladShape{1, 1050, 3, 24, 16}, 2, 1},
                                                {VladShape{1, 40, 2, 592, 16}, 1, 2},
                                                {VladShape{1, 40, 1, 160, 136}, 1, 2}}) {
    test_slices<Float16>(shape, false, slices, f_slices, 1e-2, "float16");
    test_slices<float>(shape, true, slices, f_slices, 6e-3, "float");
  }
  test_slices<BFloat16>({1, 2400, 8, 8, 16}, false, 3, 1, 4e-2, "bfloat16");
  test_slices<Float16>({2, 1040, 2, 584, 3}, false, 2, 2, 1e-2, "float16");
}

// `offset`: of all arrays of values from a 16-byte boundary. A GPU of one multiprocessor, so that a
// block does several tiles.
template <typename T>
void test_soft_assign(const VladShape& s, Kind kind, bool turned, int64_t offset, double tolerance,
                      std::string what) {
  using A = Accumulate<T>;
  using Gpu = typename OnGpu<T>::type;
  constexpr Device kSmall{1, 232448, true};
  const auto [B, N, G, F, K] = s;
  what += " soft_assign norm " + std::to_string(static_cast<int>(kind)) + " G " +
          std::to_string(G) + " K " + std::to_string(K) + " offset " + std::to_string(offset) +
          (turned ? " by cluster" : "");
  std::mt19937_64 generator(2);
  const auto z = random_values<T>(B * N * K, 3, generator),
             a = random_values<T>(B * N, 1, generator);
  const auto grad = random_values<T>(B * N * K, 1, generator);
  const Norm norm = make_norm(s, z, kind, generator);
  const Doubles p = probabilities(s, z, norm);
  Doubles weights(p.size()), dw(p.size());
  for (size_t i = 0; i < p.size(); ++i) {
    weights[i] = p[i] * value_of(a[i / K]);
    dw[i] = value_of(grad[i]);
  }
  Expected expected;
  naive_assignment(s, z, a, norm, p, dw, expected);

  const Memory<T> z_(z, offset), a_(a, offset), weights_(B * N * K, offset);
  const Memory<T> grad_(turned ? by_cluster(s, grad) : grad, offset);
  const Memory<T> assignment(B * N * K, offset), attention(B * N);
  const Memory<A> values(std::vector<A>(norm.values.begin(), norm.values.end()), offset);
  const Memory<A> row_weights(std::vector<A>(norm.row_weights.begin(), norm.row_weights.end()));
  const Memory<A> norm_sums(kind == Kind::kPlain ? 0 : 2 * G * K);
  const pyseg::VladNorm<A> norm_{kind == Kind::kPlain ? nullptr : values.get(),
                                 kind == Kind::kStatistics ? row_weights.get() : nullptr};
  expect_success(pyseg::launch_soft_assign<Gpu>(s, z_.get(), a_.get(), norm_,
                                                {weights_.get(), turned}, kSmall, nullptr),
                 what);
  expect_close(weights_.read(), turned ? by_cluster(s, weights) : weights, tolerance, what);
  const Memory<std::byte> work(
      pyseg::soft_assign_backward_workspace<Gpu>(s, kind != Kind::kPlain, kSmall));
  expect_success(pyseg::launch_soft_assign_backward<Gpu>(
                     s, {grad_.get(), turned}, z_.get(), a_.get(), norm_,
                     {nullptr, assignment.get(), attention.get(), nullptr, norm_sums.get()},
                     work.get(), kSmall, nullptr),
                 what + " backward");
  expect_close(assignment.read(), expected.assignment, tolerance, what + " assignment");
  expect_close(attention.read(), expected.attention, tolerance, what + " attention");
  expect_close(norm_sums.read(), expected.norm_sums, tolerance, what + " norm_sums");
}

template <typename T>
void test_moments(int64_t rows, int64_t columns, bool weighted, double tolerance) {
  using A = Accumulate<T>;
  std::mt19937_64 generator(3);
  const auto x = random_values<T>(rows * columns, 1, generator);
  std::vector<A> weights(rows);
  for (int64_t r = 0; r < rows; ++r) weights[r] = static_cast<A>(r % 3) / rows;
  Doubles expected(2 * columns);
  for (int64_t i = 0; i < 2 * rows * columns; ++i) {
    const int64_t r = i / columns % rows, c = i % columns;
    const double w = weighted ? weights[r] : 1. / rows, value = value_of(x[r * columns + c]);
    const double deviation = value - expected[c];
    if (i < rows * columns) {
      expected[c] += w * value;
    } else {
      expected[columns + c] += w * deviation * deviation;
    }
  }
  using Gpu = typename OnGpu<T>::type;
  const std::string what = "moments of " + std::to_string(rows) + " rows";
  const Memory<T> x_(x);
  const Memory<A> weights_(weights), result(2 * columns);
  const Memory<std::byte> work(pyseg::moments_workspace<Gpu>(rows, columns));
  expect_success(
      pyseg::launch_moments<Gpu>(rows, columns, x_.get(), weighted ? weights_.get() : nullptr,
                                 result.get(), work.get(), nullptr),
      what);
  expect_close(result.read(), expected, tolerance, what);
}

// One column less than a block of threads has, and more.
void test_batch_statistics(int64_t columns, bool deferred, float momentum) {
  std::mt19937_64 generator(4);
  std::vector<float> vectors[6];
  for (auto& values : vectors) values = random_values<float>(columns, 1, generator);
  auto& [mean, weight, bias, deferred_bias, running_mean, running_var] = vectors;
  std::vector<float> moments(mean);
  for (int64_t c = 0; c < columns; ++c) moments.push_back(mean[c] * mean[c]);
  Doubles norm(4 * columns), means(columns), variances(columns);
  const double eps = 1e-3, correction = 1.25;
  for (int64_t c = 0; c < columns; ++c) {
    const double variance = moments[columns + c];
    norm[c] = mean[c];
    norm[columns + c] = 1 / std::sqrt(variance + eps);
    norm[2 * columns + c] = weight[c];
    norm[3 * columns + c] = bias[c];
    const double center = mean[c] + (deferred ? double{deferred_bias[c]} : 0);
    means[c] = running_mean[c] + momentum * (center - running_mean[c]);
    variances[c] = running_var[c] + momentum * (variance * correction - running_var[c]);
  }
  const std::string what = "batch statistics of " + std::to_string(columns) + " columns";
  const Memory<float> moments_(moments), weight_(weight), bias_(bias), deferred_(deferred_bias);
  const Memory<float> mean_(running_mean), var_(running_var), norm_(4 * columns);
  expect_success(pyseg::launch_batch_statistics<float>(
                     {columns, moments_.get(), weight_.get(), bias_.get(),
                      deferred ? deferred_.get() : nullptr, momentum, static_cast<float>(eps),
                      static_cast<float>(correction), mean_.get(), var_.get(), norm_.get()},
                     nullptr),
                 what);
  expect_close(norm_.read(), norm, 1e-6, what + " norm");
  expect_close(mean_.read(), means, 1e-6, what + " running mean");
  expect_close(var_.read(), variances, 1e-6, what + " running variance");
}

// `in` with its logits in GPU memory.
template <typename T>
pyseg::RatedBceInput<typename OnGpu<T>::type, Accumulate<T>> on_gpu(
    const pyseg::RatedBceInput<T, Accumulate<T>>& in, const Memory<T>& logits) {
  return {in.batch,       in.classes,      logits.get(),      in.ratings,
          in.correlation, in.rated_weight, in.unrated_weight, in.absent_evidence};
}

template <typename T>
void test_rated_bce(int64_t batch, int64_t classes, bool correlated, double tolerance) {
  using A = Accumulate<T>;
  using Gpu = typename OnGpu<T>::type;
  const RatedBceCase<T> example(batch, classes, 6, 3);
  const auto in = example.input(correlated, A(0.25));
  Doubles expected(batch), gradient(batch * classes);
  naive_rated_bce(in, expected, gradient);
  double mean = 0;
  for (const double loss : expected) mean += loss / batch;
  // The gradient is that of the rows' mean, in float16 that of their sum.
  const double share = std::is_same_v<T, Float16> ? 1 : 1. / batch;
  for (double& slope : gradient) slope *= share;

  const std::string what = "rated loss (" + std::to_string(batch) + ", " + std::to_string(classes) +
                           ")" + (correlated ? " correlated" : "");
  const Memory<T> logits(example.logits), gradient_(batch * classes), scaled(batch * classes);
  const Memory<A> row_loss(batch), loss(1), grad_output(std::vector<A>{3});
  expect_success(pyseg::launch_rated_bce<Gpu>(on_gpu(in, logits), loss.get(), gradient_.get(),
                                              row_loss.get(), nullptr),
                 what);
  expect_close(loss.read(), {mean}, tolerance, what);
  expect_close(gradient_.read(), gradient, tolerance, what + " gradient");
  expect_success(pyseg::launch_rated_bce_backward<Gpu>(grad_output.get(), gradient_.get(), batch,
                                                       classes, scaled.get(), nullptr),
                 what + " backward");
  for (double& slope : gradient) slope *= 3 / (share * batch);
  expect_close(scaled.read(), gradient, 2 * tolerance, what + " scaled gradient");
  // In place, and by so few blocks that each takes several places.
  namespace kernels = pyseg::gpu::rated_bce;
  expect_success(
      pyseg::gpu::launch(kernels::scale_kernel<Gpu>, 2, kernels::kThreads, 0, nullptr,
                         gradient_.get(), grad_output.get(), kernels::missing_share<Gpu>(batch),
                         batch * classes, gradient_.get()),
      what + " backward in place");
  expect(std::memcmp(gradient_.get(), scaled.get(), batch * classes * sizeof(T)) == 0,
         what + " gradient scaled in place");
  // A scale of 1 leaves the gradient unread.
  const Memory<A> one(std::vector<A>{static_cast<A>(std::is_same_v<T, Float16> ? batch : 1)});
  expect_success(
      pyseg::launch_rated_bce_backward<Gpu>(one.get(), nullptr, batch, classes, nullptr, nullptr),
      what + " backward of a scale of 1");
}

// An invalid rating that only one thread of a block reads makes its whole row NaN, and nothing
// else.
void test_wrong_rating() {
  RatedBceCase<float> example(3, 40, 0, 3);
  example.rated = {3, 40, 5};
  example.scores = {1, 1, 1};
  example.offsets = {0, 0, 3, 3};
  const auto in = example.input(false, 0);
  const Memory<float> logits(example.logits), gradient(3 * 40), row_loss(3), loss(1);
  expect_success(pyseg::launch_rated_bce<float>(on_gpu(in, logits), loss.get(), gradient.get(),
                                                row_loss.get(), nullptr),
                 "wrong rating");
  const std::vector<float> losses = row_loss.read(), slopes = gradient.read();
  for (int64_t b = 0; b < 3; ++b) {
    expect(std::isnan(losses[b]) == (b == 1), "loss of a row beside a wrong rating");
  }
  for (int64_t i = 0; i < 3 * 40; ++i) {
    expect(std::isnan(slopes[i]) == (i / 40 == 1), "gradient beside a wrong rating");
  }
  expect(std::isnan(loss.read()[0]), "mean loss with a wrong rating");
}

// Rows of `stride` bytes, from `offset` bytes after a boundary on.
template <typename T>
void test_dequantize(int64_t rows, int64_t width, int64_t stride, int64_t offset, bool masked,
                     bool given, double unit) {
  using A = Accumulate<T>;
  std::mt19937_64 generator(4);
  std::vector<uint8_t> bytes(rows * stride), valid(rows);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(generator());
  for (uint8_t& value : valid) value = generator() % 3 > 0;
  std::vector<A> parameters(3 * width);
  for (int64_t i = 0; i < 3 * width; ++i) {
    const int64_t whole = static_cast<int64_t>(generator() % 256);
    parameters[i] = i < width ? A(whole) : (A(whole) - 100) / 64;
  }
  Doubles expected(rows * width), terms(rows * width);
  for (int64_t i = 0; i < rows * width; ++i) {
    const int64_t r = i / width, n = i % width;
    const double q = bytes[r * stride + n];
    const double product = given ? (q - parameters[n]) * parameters[width + n] : q * (4. / 255);
    const double added = given ? parameters[2 * width + n] : 4. / 512 - 2;
    expected[i] = masked && valid[r] == 0 ? 0 : product + added;
    terms[i] = std::abs(product) + std::abs(added);
  }
  const Memory<uint8_t> bytes_(bytes, offset), valid_(valid);
  const Memory<A> parameters_(parameters);
  const Memory<T> values(rows * width);
  const std::string what = "dequantize (" + std::to_string(rows) + ", " + std::to_string(width) +
                           ") of stride " + std::to_string(stride);
  const pyseg::StoredFrames<A> in{rows,
                                  width,
                                  bytes_.get(),
                                  stride,
                                  masked ? reinterpret_cast<const bool*>(valid_.get()) : nullptr,
                                  given ? parameters_.get() : nullptr};
  using Gpu = typename OnGpu<T>::type;
  const int64_t vector = 16 / sizeof(T);
  expect(pyseg::gpu::dequantize::aligned<Gpu>(in, values.get()) ==
             (width % vector == 0 && stride % vector == 0 && offset % vector == 0),
         what + " takes vectors only where it may");
  expect_success(pyseg::launch_dequantize<Gpu>(in, values.get(), nullptr, 300), what);
  const std::vector<T> found = values.read();
  for (int64_t i = 0; i < rows * width; ++i) {
    const double error = std::abs(value_of(found[i]) - expected[i]);
    // One rounding of the result, and those of the sum.
    const double allowed =
        unit * std::abs(expected[i]) + std::numeric_limits<A>::epsilon() * terms[i];
    expect(masked && valid[i / width] == 0 ? error == 0 : error <= allowed, what);
  }
}

void test_dequantization() {
  for (const bool masked : {false, true}) {
    for (const bool given : {false, true}) {
      for (const auto& [rows, width, stride, offset] : {std::array{7, 16, 16, 0},
                                                        {1, 1152, 1152, 0},
                                                        {900, 24, 40, 8},
                                                        {5, 16, 21, 0},
                                                        {5, 16, 24, 3},
                                                        {9, 7, 16, 0},
                                                        {0, 16, 16, 0},
                                                        {3, 0, 8, 0}}) {
        test_dequantize<Float16>(rows, width, stride, offset, masked, given, 0x1.01p-11);
        test_dequantize<BFloat16>(rows, width, stride, offset, masked, given, 0x1.01p-8);
        test_dequantize<float>(rows, width, stride, offset, masked, given, 0);
        test_dequantize<double>(rows, width, stride, offset, masked, given, 0);
      }
    }
  }
}

void test_soft_assignments() {
  // A block takes 8 or 16 rows at a time: full and partial tiles, for every number of pieces.
  for (const VladShape& s :
       {VladShape{1, 88, 8, 0, 112}, VladShape{1, 7, 1, 0, 1}, VladShape{2, 20, 1, 0, 8},
        VladShape{2, 21, 3, 0, 7}, VladShape{2, 32, 8, 0, 136}, VladShape{1, 35, 5, 0, 256},
        VladShape{1, 14, 2, 0, 512}, VladShape{1, 56, 8, 0, 300}, VladShape{1, 63, 9, 0, 64},
        VladShape{1, 85, 17, 0, 16}, VladShape{0, 4, 2, 0, 8}}) {
    for (const Kind kind : {Kind::kPlain, Kind::kConstants, Kind::kStatistics}) {
      test_soft_assign<BFloat16>(s, kind, false, 0, 2e-2, "bfloat16");
      test_soft_assign<BFloat16>(s, kind, true, 0, 2e-2, "bfloat16");
      test_soft_assign<float>(s, kind, kind != Kind::kConstants, 0, 8e-6, "float");
    }
    const bool turned = s.groups == 8;
    test_soft_assign<Float16>(s, Kind::kStatistics, !turned, 0, 4e-3, "float16");
    test_soft_assign<double>(s, Kind::kStatistics, turned, 0, 1e-12, "double");
    test_soft_assign<BFloat16>(s, Kind::kConstants, turned, 1, 2e-2, "bfloat16");
  }
}

void test_all_moments() {
  for (const bool weighted : {false, true}) {
    for (const auto& [rows, columns] : {std::pair{1, 1}, {7, 19}, {100, 136}, {300, 5}}) {
      test_moments<float>(rows, columns, weighted, 1e-6);
      test_moments<double>(rows, columns, weighted, 1e-14);
      test_moments<BFloat16>(rows, columns, weighted, 1e-6);
    }
  }
  for (const int64_t columns : {1, 127, 300}) {
    test_batch_statistics(columns, columns != 127, columns == 300 ? 0.75f : 0.25f);
  }
}

void test_rated_losses() {
  for (const bool correlated : {false, true}) {
    for (const auto& [batch, classes] : {std::pair{1, 1}, {3, 5}, {2, 257}, {3, 4999}}) {
      test_rated_bce<float>(batch, classes, correlated, 1e-6);
      test_rated_bce<double>(batch, classes, correlated, 1e-14);
      test_rated_bce<BFloat16>(batch, classes, correlated, 8e-3);
      test_rated_bce<Float16>(batch, classes, correlated, 1e-3);
    }
  }
}

// Every partition of the work for smaller shared memories, on a GPU so small that one block takes a
// whole video.
template <typename T>
void test_plans(bool tf32, double tolerance, const std::string& name) {
  using Gpu = typename OnGpu<T>::type;
  const VladShape s{2, 152, 4, 200, 24};
  std::set<std::array<int, 4>> plans;
  std::set<int> slices;
  Device device = kTensorCores;
  device.multiprocessors = 1;
  for (; device.shared > 0; device.shared -= 256) {
    const auto forward = pyseg::gpu::plan_forward<Gpu>(s, true, device);
    const auto backward = pyseg::gpu::plan_backward<Gpu>(s, true, device);
    const std::array<int, 4> plan{forward.warps_f, forward.chunk * forward.stages, backward.tiles_k,
                                  backward.slices};
    if (!plans.insert(plan).second) continue;
    if (backward.tiles_k > 0) slices.insert(backward.slices);
    const std::string what = name + " in " + std::to_string(device.shared) + " bytes";
    test_shape<T>(s, 1e-12, Kind::kStatistics, tf32, device, tolerance, what);
  }
  expect(slices.count(1) && slices.count(2) && slices.count(3),
         name + " with one, two and three slices of features");
}

}  // namespace

int main() {
  test_vlad();
  test_slices();
  test_plans<Float16>(false, 1e-2, "float16");
  test_plans<float>(true, 6e-3, "float");
  test_soft_assignments();
  test_all_moments();
  test_dequantization();
  test_rated_losses();
  test_wrong_rating();
  if (failures == 0) std::printf("passed\n");
  return failures == 0 ? 0 : 1;
}
