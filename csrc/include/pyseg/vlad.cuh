// Soft-assignment aggregation of NetVLAD and NeXtVLAD on a GPU, forward and backward; the twin on
// the CPU is pyseg/vlad.h. No framework: raw device pointers, sizes and a stream; the launchers
// return the first error of their launches.
//
//   w[n,k] = attention[n] p[n,k],  p = softmax_k(y[n,:])          n: the T * G rows of one video
//   v[f,k] = sum_n w[n,k] (features[n,f] - centers[f,k])
//   output[f,k] = v[f,k] / sqrt(max(sum_f v[f,k]^2, eps))
//
// y is the assignment, or its batch normalisation (pyseg/vlad_shape.h). Backward, with
// scale[k] = 1 / sqrt(max(sum_f v[f,k]^2, eps)) and projection[k] = sum_f grad[f,k] output[f,k], or
// 0 where the norm is clamped:
//
//   d[f,k] = scale[k] (grad[f,k] - output[f,k] projection[k])     the gradient of v
//   g[n,k] = sum_f (features[n,f] - centers[f,k]) d[f,k]          that of w
//   d_features[n,f] = sum_k w[n,k] d[f,k],  d_centers[f,k] = -sum_b mass[b,k] d[b,f,k]
//   d_attention[n] = sum_k p[n,k] g[n,k],  e[n,k] = w[n,k] (g[n,k] - d_attention[n])
//
// e is the gradient of y; cuda/assignment.cuh computes that of the assignment from it.
//
// T is float, double, __half or __nv_bfloat16; sums are kept in float (double for double). Every
// sum has one owner and a fixed order: there are no atomics, the same input gives the same bits,
// and a video's result does not depend on its batch. cuda/vlad_mma.cuh has the kernels on tensor
// cores, cuda/vlad_fma.cuh those of multiply-adds for all other cases.
//
// On tensor cores, for bfloat16 with B = 80, T = 300, G = 8, F = 288, K = 112 on 132
// multiprocessors (features 110.6 MB, assignment 43.0 MB, output 5.2 MB), counted, not measured:
//
//   forward                  reads    writes   products     lower bound
//     aggregate              154 MB   31 MB    12.4 GFLOP   154 MB read
//     normalize              41 MB    15 MB                 5 MB written
//   backward
//     main kernel            249 MB   154 MB   24.8 GFLOP   164 MB read, 154 MB written
//     centers                10 MB    0.1 MB
//     sums, final pass       87 MB    43 MB                 86 MB read, 43 MB written, or nothing
//
// The lower bound is 159 MB forward and 318 MB backward, and 129 MB more where the gradient goes
// through the statistics of the assignment: 53, 106 and 43 us at 3 TB/s. In addition the forward
// moves the sums of the three slices of a video, 31 MB each way, and v twice; the backward reads
// gradient and output twice for each of the two or three blocks that share a video, 52 MB instead
// of 10, and the assignment a second time, 43 MB. These fit an L2 cache of 50 MB or stay in it
// while they are needed. With T = 5 the forward is one launch and the backward two, four with the
// statistics.
#pragma once

#include <type_traits>

#include "pyseg/cuda/assignment.cuh"
#include "pyseg/cuda/common.cuh"
#include "pyseg/cuda/vlad_fma.cuh"
#include "pyseg/cuda/vlad_mma_backward.cuh"
#include "pyseg/cuda/vlad_mma_forward.cuh"
#include "pyseg/vlad_shape.h"

namespace pyseg {
namespace gpu {

// float takes the tensor cores only where TF32 is allowed for matrix products.
template <typename T>
ForwardPlan choose_forward(const VladShape& shape, bool norm, bool allow_tf32,
                           const Device& device) {
  if constexpr (std::is_same_v<T, double>) {
    return {};
  } else {
    if (std::is_same_v<T, float> && !allow_tf32) return {};
    return plan_forward<T>(shape, norm, device);
  }
}
template <typename T>
BackwardPlan choose_backward(const VladShape& shape, bool norm, bool allow_tf32,
                             const Device& device) {
  if constexpr (std::is_same_v<T, double>) {
    return {};
  } else {
    if (std::is_same_v<T, float> && !allow_tf32) return {};
    return plan_backward<T>(shape, norm, device);
  }
}

template <typename A>
ForwardWorkspace<A> forward_workspace(const VladShape& shape, const ForwardPlan& plan,
                                      Arena& arena) {
  const auto [B, N, G, F, K] = shape;
  ForwardWorkspace<A> work{};
  if (plan.warps_f == 0) work.rows = arena.take<Row<A>>(B * N);
  if (plan.warps_f == 0 || plan.slices > 1 || plan.f_slices > 1) {
    work.vlad = arena.take<A>(B * plan.slices * F * K);
    work.masses = arena.take<A>(B * plan.slices * K);
  }
  return work;
}

template <typename A>
BackwardWorkspace<A> backward_workspace(const VladShape& shape, bool norm, const BackwardPlan& plan,
                                        Arena& arena) {
  const auto [B, N, G, F, K] = shape;
  BackwardWorkspace<A> work{};
  work.columns = arena.take<A>(B * 3 * K);
  if (plan.tiles_k == 0) {
    work.rows = arena.take<Row<A>>(B * N);
    work.attention = arena.take<A>(B * N);
  }
  if (norm) {
    work.norm_sums =
        arena.take<A>(plan.norm_sums ? plan.blocks * 2 * G * K : norm_sums_size(shape));
  }
  return work;
}

}  // namespace gpu

// Bytes of workspace of the launchers below, which must be aligned to 256 bytes. `device` is the
// result of gpu::current_device, here and below.
template <typename T>
int64_t vlad_forward_workspace(const VladShape& shape, bool norm, bool allow_tf32,
                               const gpu::Device& device) {
  gpu::Arena arena(nullptr);
  const auto plan = gpu::choose_forward<T>(shape, norm, allow_tf32, device);
  gpu::forward_workspace<gpu::Sum<T>>(shape, plan, arena);
  return arena.size();
}
template <typename T>
int64_t vlad_backward_workspace(const VladShape& shape, bool norm, bool allow_tf32,
                                const gpu::Device& device) {
  gpu::Arena arena(nullptr);
  const auto plan = gpu::choose_backward<T>(shape, norm, allow_tf32, device);
  gpu::backward_workspace<gpu::Sum<T>>(shape, norm, plan, arena);
  return arena.size();
}

// Forward. K is at least 1, every other size may be 0; T * G is less than 2^31.
template <typename T>
cudaError_t launch_vlad_forward(const VladShape& shape, const VladInput<T, gpu::Sum<T>>& in,
                                double eps, bool allow_tf32, const gpu::Device& device,
                                const VladOutput<T, gpu::Sum<T>>& out, void* workspace,
                                cudaStream_t stream) {
  using A = gpu::Sum<T>;
  const auto plan = gpu::choose_forward<T>(shape, in.norm.values != nullptr, allow_tf32, device);
  gpu::Arena arena(workspace);
  const auto work = gpu::forward_workspace<A>(shape, plan, arena);
  if constexpr (!std::is_same_v<T, double>) {
    if (plan.warps_f > 0) {
      return gpu::launch_vlad_forward_mma<T>(shape, in, eps, out, plan, work, stream);
    }
  }
  return gpu::launch_vlad_forward_fma<T>(shape, in, eps, out, work, stream);
}

// Backward: all gradients in `out`.
template <typename T>
cudaError_t launch_vlad_backward(const VladShape& shape, const VladInput<T, gpu::Sum<T>>& in,
                                 const VladSaved<T, gpu::Sum<T>>& saved, double eps,
                                 bool allow_tf32, const gpu::Device& device,
                                 const VladGradient<T, gpu::Sum<T>>& out, void* workspace,
                                 cudaStream_t stream) {
  using A = gpu::Sum<T>;
  const bool norm = in.norm.values != nullptr;
  const auto plan = gpu::choose_backward<T>(shape, norm, allow_tf32, device);
  gpu::Arena arena(workspace);
  const auto work = gpu::backward_workspace<A>(shape, norm, plan, arena);
  cudaError_t error = cudaSuccess;
  if constexpr (!std::is_same_v<T, double>) {
    if (plan.tiles_k > 0) {
      error = gpu::launch_vlad_backward_mma<T>(shape, in, saved, eps, out, plan, work, stream);
    }
  }
  if (plan.tiles_k == 0) {
    error = gpu::launch_vlad_backward_fma<T>(shape, in, saved, eps, out, work, stream);
  }
  if (error != cudaSuccess || !norm) return error;
  if (!plan.norm_sums) {
    return gpu::launch_norm_backward<T>(shape, in.assignment, in.norm, out, work.norm_sums, stream);
  }
  error = gpu::launch_norm_sums_finish(shape, in.norm, plan.blocks, work.norm_sums, out.norm_sums,
                                       stream);
  if (error != cudaSuccess || in.norm.row_weights == nullptr) return error;
  return gpu::launch_norm_gradient<T>(shape, in.assignment, in.norm, out, stream);
}

}  // namespace pyseg
