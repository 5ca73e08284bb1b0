// batch_statistics on a GPU; the equations are in pyseg/batch_statistics.h. A thread takes a
// column.
#pragma once

#include "pyseg/batch_statistics.h"
#include "pyseg/cuda/common.cuh"

namespace pyseg {
namespace gpu {

constexpr int kStatisticsThreads = 128;

template <typename A>
__global__ void __launch_bounds__(kStatisticsThreads)
    batch_statistics_kernel(BatchStatistics<A> in) {
  const int64_t column = int64_t{blockIdx.x} * kStatisticsThreads + threadIdx.x;
  if (column < in.columns) batch_statistics(in, column);
}

}  // namespace gpu

// Needs the moments, and a column at least.
template <typename A>
cudaError_t launch_batch_statistics(const BatchStatistics<A>& in, cudaStream_t stream) {
  return gpu::launch(gpu::batch_statistics_kernel<A>,
                     gpu::quotient(in.columns, gpu::kStatisticsThreads), gpu::kStatisticsThreads, 0,
                     stream, in);
}

}  // namespace pyseg
