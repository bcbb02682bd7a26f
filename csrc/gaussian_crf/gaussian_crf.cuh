// Kernels of the Gaussian CRF: conjugate gradients in one launch where a block can hold a system,
// in two launches an iteration otherwise, and the gradients of the edges. All sums are in double
// and in an order that depends on the system's size only.
#pragma once

#include "../common/device.cuh"
#include "solve_params.h"

namespace segkern {
namespace {

// A cell: its level and position, and its number among the nodes.
struct Cell {
  int32_t level, y, x, node;
};

template <bool kMany>
__device__ __forceinline__ Cell cell_of(const CrfGraph& g, int32_t node) {
  int32_t level = 0;
  if constexpr (kMany) {
    while (level + 1 < g.levels && node >= g.level[level + 1].first) {
      ++level;
    }
  }
  const int32_t at = node - g.level[level].first, width = g.level[level].width;
  return {level, at / width, at % width, node};
}

template <typename T>
__device__ __forceinline__ T edge_at(const void* edges, int64_t plane, int64_t count, int64_t at) {
  return static_cast<const T*>(edges)[plane * count + at];
}

// Sum over the edges of variable k at a cell of edge * value(variable, node) of the other end.
// `item` counts the planes of edges in front of the item's.
template <typename T, bool kMany, typename Value>
__device__ __forceinline__ T neighbour_sum(const CrfGraph& g, int64_t item_planes, int32_t k,
                                           const Cell& c, const Value& value) {
  const CrfLevel& grid = g.level[c.level];
  const int32_t w = grid.width;
  const int64_t right = static_cast<int64_t>(c.y) * (w - 1) + c.x;
  const int64_t down = static_cast<int64_t>(c.y) * w + c.x;
  T sum = 0;
  for (int32_t m = 0; m < g.width; ++m) {
    const int64_t forth = item_planes + static_cast<int64_t>(k) * g.width + m;
    const int64_t back = item_planes + static_cast<int64_t>(m) * g.width + k;
    if (c.x + 1 < w) {
      sum += edge_at<T>(grid.right, forth, grid.rights(), right) * value(m, c.node + 1);
    }
    if (c.x > 0) {
      sum += edge_at<T>(grid.right, back, grid.rights(), right - 1) * value(m, c.node - 1);
    }
    if (c.y + 1 < grid.height) {
      sum += edge_at<T>(grid.down, forth, grid.downs(), down) * value(m, c.node + w);
    }
    if (c.y > 0) {
      sum += edge_at<T>(grid.down, back, grid.downs(), down - w) * value(m, c.node - w);
    }
    if constexpr (kMany) {
      if (c.level + 1 < g.levels) {
        const CrfLevel& coarse = g.level[c.level + 1];
        const int32_t parent = coarse.first +
                               covering(c.y, grid.height, coarse.height) * coarse.width +
                               covering(c.x, w, coarse.width);
        sum += edge_at<T>(grid.across, forth, grid.cells(), down) * value(m, parent);
      }
      if (c.level > 0) {
        const CrfLevel& fine = g.level[c.level - 1];
        const int32_t y_end = first_covered(c.y + 1, fine.height, grid.height);
        const int32_t x_begin = first_covered(c.x, fine.width, w);
        const int32_t x_end = first_covered(c.x + 1, fine.width, w);
        for (int32_t y = first_covered(c.y, fine.height, grid.height); y < y_end; ++y) {
          for (int32_t x = x_begin; x < x_end; ++x) {
            const int32_t at = y * fine.width + x;
            sum += edge_at<T>(fine.across, back, fine.cells(), at) * value(m, fine.first + at);
          }
        }
      }
    }
  }
  return sum;
}

// Of the kernels that walk the graph: asked for no number, ptxas aims so high that it spills.
constexpr int kResidentBlocks = 2;

constexpr int kWarps = kBlockThreads / 32;

// The block's sum, the same in all threads. `parts` must not be in use from a sum before.
__device__ __forceinline__ double block_sum(double value, double* parts) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kFullWarp, value, offset);
  }
  if (threadIdx.x % 32 == 0) {
    parts[threadIdx.x / 32] = value;
  }
  __syncthreads();
  double total = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) {
    total += parts[warp];
  }
  return total;
}

__device__ __forceinline__ bool is_finite(double value) { return fabs(value) < INFINITY; }

// Whether to go on with residual r.r = rr after some iterations.
__device__ __forceinline__ SolveState residual_state(double rr, double target, int32_t iteration,
                                                     int32_t most) {
  return !is_finite(rr)      ? SolveState::kNotFinite
         : rr <= target      ? SolveState::kConverged
         : iteration >= most ? SolveState::kUnconverged
                             : SolveState::kRunning;
}

// Whether to go on with curvature p.Mp.
__device__ __forceinline__ SolveState curvature_state(double pq) {
  return pq > 0 ? SolveState::kRunning
         : is_finite(pq) ? SolveState::kIndefinite
                         : SolveState::kNotFinite;
}

// The cells of a thread: every 256th of a block's.
template <bool kMany>
struct CellWalk {
  Cell cell;
  int32_t rows, columns;  // of a step, on a single level

  __device__ __forceinline__ explicit CellWalk(const CrfGraph& g)
      : cell(cell_of<kMany>(g, static_cast<int32_t>(threadIdx.x))),
        rows(kBlockThreads / g.level[0].width),
        columns(kBlockThreads % g.level[0].width) {}

  __device__ __forceinline__ void step(const CrfGraph& g) {
    const int32_t node = cell.node + kBlockThreads;
    if constexpr (kMany) {
      if (node < g.nodes) {
        cell = cell_of<kMany>(g, node);
      }
    } else {
      const bool wraps = cell.x + columns >= g.level[0].width;
      cell.x += columns - (wraps ? g.level[0].width : 0);
      cell.y += rows + (wraps ? 1 : 0);
    }
    cell.node = node;
  }
};

// A block owns a system of one variable a cell, a thread every 256th cell: the direction p in
// shared memory, where neighbours are; x, r and q = M p, which a thread shares with no other, in
// memory that the caches of the multiprocessor hold, as they do the edges. Three barriers an
// iteration: latency bounds it.
template <typename T, int kCells, bool kMany>
__global__ void __launch_bounds__(kBlockThreads, kResidentBlocks)
    crf_solve_kernel(CrfSolveParams p) {
  __shared__ T direction[kCells];
  __shared__ double rr_parts[kWarps], pq_parts[kWarps];
  const int64_t system = blockIdx.x;
  const int64_t item = blockIdx.x / static_cast<uint32_t>(p.systems);
  const T scale = static_cast<T>(system == item * p.systems ? p.first_scale : p.scale);
  const T diagonal = static_cast<T>(p.diagonal);
  const int32_t nodes = p.graph.nodes, thread = static_cast<int32_t>(threadIdx.x);
  const T* __restrict__ rhs = static_cast<const T*>(p.rhs) + system * nodes;
  T* __restrict__ x = static_cast<T*>(p.x) + system * nodes;
  T* __restrict__ r = static_cast<T*>(p.r) + system * nodes;
  T* __restrict__ q = static_cast<T*>(p.q) + system * nodes;

  double sum = 0;
  for (int32_t i = thread; i < nodes; i += kBlockThreads) {
    const T value = rhs[i];
    x[i] = 0;
    r[i] = value;
    direction[i] = value;
    sum += static_cast<double>(value) * static_cast<double>(value);
  }
  double rr = block_sum(sum, rr_parts);
  const double target = p.tolerance * p.tolerance * rr;
  int32_t iteration = 0;
  SolveState state;
  while (true) {
    state = residual_state(rr, target, iteration, p.max_iterations);
    if (state != SolveState::kRunning) {
      break;
    }
    sum = 0;
    for (CellWalk<kMany> walk(p.graph); walk.cell.node < nodes; walk.step(p.graph)) {
      const int32_t i = walk.cell.node;
      const T own = direction[i];
      const T product =
          diagonal * own +
          scale * neighbour_sum<T, kMany>(
                      p.graph, item, 0, walk.cell,
                      [&](int32_t, int32_t other) { return direction[other]; });
      q[i] = product;
      sum += static_cast<double>(own) * static_cast<double>(product);
    }
    const double pq = block_sum(sum, pq_parts);
    state = curvature_state(pq);
    if (state != SolveState::kRunning) {
      break;
    }
    const T alpha = static_cast<T>(rr / pq);
    sum = 0;
    for (int32_t i = thread; i < nodes; i += kBlockThreads) {
      x[i] += alpha * direction[i];
      const T rest = r[i] - alpha * q[i];
      r[i] = rest;
      sum += static_cast<double>(rest) * static_cast<double>(rest);
    }
    const double next = block_sum(sum, rr_parts);
    const T beta = static_cast<T>(next / rr);
    rr = next;
    ++iteration;
    for (int32_t i = thread; i < nodes; i += kBlockThreads) {
      direction[i] = r[i] + beta * direction[i];
    }
    __syncthreads();
  }
  if (thread == 0) {
    p.iterations[system] = iteration;
    p.first_state[system] = static_cast<int32_t>(state);
    p.second_state[system] = static_cast<int32_t>(SolveState::kRunning);
  }
}

// ---- many blocks a system: a block owns a chunk of a system's unknowns --------------------------

struct Chunk {
  int32_t system, number, begin, end;  // unknowns of the system

  __device__ __forceinline__ explicit Chunk(const CrfSolveParams& p)
      : system(static_cast<int32_t>(blockIdx.x / static_cast<uint32_t>(p.chunks()))),
        number(static_cast<int32_t>(blockIdx.x) - system * static_cast<int32_t>(p.chunks())) {
    const int32_t size = static_cast<int32_t>(p.chunk());
    const int32_t unknowns = static_cast<int32_t>(p.graph.unknowns());
    begin = number * size + static_cast<int32_t>(threadIdx.x);
    end = unknowns - number * size < size ? unknowns : (number + 1) * size;
  }
  __device__ __forceinline__ bool reports() const { return number == 0 && threadIdx.x == 0; }
};

// Every block adds the parts of its system's chunks, in the same order.
__device__ __forceinline__ double sum_of_parts(const CrfSolveParams& p, const double* parts,
                                               int32_t system, double* shared) {
  const int32_t chunks = static_cast<int32_t>(p.chunks());
  parts += static_cast<int64_t>(system) * chunks;
  double sum = 0;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < chunks; i += kBlockThreads) {
    sum += parts[i];
  }
  return block_sum(sum, shared);
}

// r = right-hand side, x = 0, r.r.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads) crf_begin_kernel(CrfSolveParams p) {
  __shared__ double shared[kWarps];
  const Chunk chunk(p);
  const int64_t base = static_cast<int64_t>(chunk.system) * p.graph.unknowns();
  double sum = 0;
  for (int32_t i = chunk.begin; i < chunk.end; i += kBlockThreads) {
    const T value = static_cast<const T*>(p.rhs)[base + i];
    static_cast<T*>(p.r)[base + i] = value;
    static_cast<T*>(p.x)[base + i] = 0;
    sum += static_cast<double>(value) * static_cast<double>(value);
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) {
    p.rr_parts[blockIdx.x] = sum;
  }
  if (chunk.reports()) {
    p.iterations[chunk.system] = 0;
    p.first_state[chunk.system] = static_cast<int32_t>(SolveState::kRunning);
    p.second_state[chunk.system] = static_cast<int32_t>(SolveState::kRunning);
  }
}

// Decides from r.r whether to go on; then the new direction p = r + beta p, made where it is
// needed, q = M p and p.q. In the launch after the last iteration it only decides.
template <typename T, bool kMany>
__global__ void __launch_bounds__(kBlockThreads, kResidentBlocks)
    crf_direction_kernel(CrfSolveParams p) {
  __shared__ double rr_shared[kWarps], pq_shared[kWarps];
  const Chunk chunk(p);
  if (p.second_state[chunk.system] != static_cast<int32_t>(SolveState::kRunning)) {
    return;
  }
  const bool start = p.iteration == 0;
  double* scalars = p.scalars + 3 * chunk.system;
  const double rr = sum_of_parts(p, p.rr_parts, chunk.system, rr_shared);
  const double target = start ? p.tolerance * p.tolerance * rr : scalars[2];
  const SolveState state = residual_state(rr, target, p.iteration, p.max_iterations);
  if (chunk.reports()) {
    if (state == SolveState::kRunning) {
      scalars[p.iteration % 2] = rr;
      if (start) {
        scalars[2] = target;
      }
    } else if (p.first_state[chunk.system] == static_cast<int32_t>(SolveState::kRunning)) {
      p.first_state[chunk.system] = static_cast<int32_t>(state);
      p.iterations[chunk.system] = p.iteration;
    }
  }
  if (state != SolveState::kRunning) {
    return;
  }
  const T beta = start ? T(0) : static_cast<T>(rr / scalars[(p.iteration + 1) % 2]);
  const int64_t item = chunk.system / static_cast<int32_t>(p.systems);
  const T scale =
      static_cast<T>(chunk.system == item * p.systems ? p.first_scale : p.scale);
  const int64_t base = static_cast<int64_t>(chunk.system) * p.graph.unknowns();
  const int32_t nodes = p.graph.nodes;
  const T* r = static_cast<const T*>(p.r) + base;
  const T* before = static_cast<const T*>(p.p[(p.iteration + 1) % 2]) + base;
  T* now = static_cast<T*>(p.p[p.iteration % 2]) + base;
  T* q = static_cast<T*>(p.q) + base;
  const auto direction = [&](int32_t k, int32_t node) {
    const int64_t at = static_cast<int64_t>(k) * nodes + node;
    return start ? r[at] : r[at] + beta * before[at];
  };
  const int64_t planes = item * p.graph.width * p.graph.width;
  double sum = 0;
  for (int32_t i = chunk.begin; i < chunk.end; i += kBlockThreads) {
    const int32_t k = i / nodes;
    const Cell c = cell_of<kMany>(p.graph, i - k * nodes);
    const T own = direction(k, c.node);
    const T product = static_cast<T>(p.diagonal) * own +
                      scale * neighbour_sum<T, kMany>(p.graph, planes, k, c, direction);
    now[i] = own;
    q[i] = product;
    sum += static_cast<double>(own) * static_cast<double>(product);
  }
  sum = block_sum(sum, pq_shared);
  if (threadIdx.x == 0) {
    p.pq_parts[blockIdx.x] = sum;
  }
}

// Decides from p.q whether to go on; then x += alpha p, r -= alpha q and r.r.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads) crf_step_kernel(CrfSolveParams p) {
  __shared__ double pq_shared[kWarps], rr_shared[kWarps];
  const Chunk chunk(p);
  if (p.first_state[chunk.system] != static_cast<int32_t>(SolveState::kRunning)) {
    return;
  }
  const double pq = sum_of_parts(p, p.pq_parts, chunk.system, pq_shared);
  const SolveState state = curvature_state(pq);
  if (state != SolveState::kRunning) {
    if (chunk.reports() &&
        p.second_state[chunk.system] == static_cast<int32_t>(SolveState::kRunning)) {
      p.second_state[chunk.system] = static_cast<int32_t>(state);
      p.iterations[chunk.system] = p.iteration;
    }
    return;
  }
  const T alpha = static_cast<T>(p.scalars[3 * chunk.system + p.iteration % 2] / pq);
  const int64_t base = static_cast<int64_t>(chunk.system) * p.graph.unknowns();
  T* x = static_cast<T*>(p.x) + base;
  T* r = static_cast<T*>(p.r) + base;
  const T* direction = static_cast<const T*>(p.p[p.iteration % 2]) + base;
  const T* q = static_cast<const T*>(p.q) + base;
  double sum = 0;
  for (int32_t i = chunk.begin; i < chunk.end; i += kBlockThreads) {
    x[i] += alpha * direction[i];
    const T rest = r[i] - alpha * q[i];
    r[i] = rest;
    sum += static_cast<double>(rest) * static_cast<double>(rest);
  }
  sum = block_sum(sum, rr_shared);
  if (threadIdx.x == 0) {
    p.rr_parts[blockIdx.x] = sum;
  }
}

// ---- before and after -------------------------------------------------------------------------

// A thread owns a cell with all its labels. Reads and writes each score once (twice where it needs
// their sum first).
template <typename T>
__global__ void __launch_bounds__(kBlockThreads) crf_mix_kernel(LabelMixParams p) {
  const int64_t index = thread_index<int64_t>();
  if (index >= p.items * p.nodes) {
    return;
  }
  const int64_t item = index / p.nodes, node = index - item * p.nodes;
  const bool join = p.mix == LabelMix::kJoin, split = p.mix == LabelMix::kSplit;
  bool solved = true;
  for (int64_t s = 0; p.states && s < p.systems; ++s) {
    const int64_t at = item * p.systems + s;
    const int32_t found =
        p.first_state[at] > p.second_state[at] ? p.first_state[at] : p.second_state[at];
    solved = solved && found == static_cast<int32_t>(SolveState::kConverged);
    if (node == 0) {
      p.states[at] = found;
    }
  }
  const T* from = static_cast<const T*>(p.from) +
                  item * (join ? p.systems : p.labels) * p.nodes + node;
  T* to = static_cast<T*>(p.to) + item * (split ? p.systems : p.labels) * p.nodes + node;
  T base = 0;
  if (p.mix == LabelMix::kSplit || p.mix == LabelMix::kCentre) {
    for (int64_t k = 0; k < p.labels; ++k) {
      base += from[k * p.nodes];
    }
    if (split) {
      *to = base;
      to += p.nodes;
    }
    base *= static_cast<T>(-1.0 / static_cast<double>(split ? p.labels : p.labels - 1));
  } else if (join) {
    base = *from * static_cast<T>(1.0 / static_cast<double>(p.labels));
    from += p.nodes;
  }
  for (int64_t k = 0; k < p.labels; ++k) {
    to[k * p.nodes] = solved ? from[k * p.nodes] + base : static_cast<T>(NAN);
  }
}

// A thread owns an edge of one plane. In the general model it reads four numbers, which the caches
// have from other planes; else two columns of labels for each of x and y.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads) crf_edge_gradient_kernel(EdgeGradientParams p) {
  const CrfLevel& grid = p.graph.level[p.level];
  const int64_t count = p.set == 0 ? grid.rights() : p.set == 1 ? grid.downs() : grid.cells();
  const int64_t planes = p.pairwise == Pairwise::kGeneral ? p.labels * p.labels : 1;
  const int64_t index = thread_index<int64_t>();
  if (index >= p.items * planes * count) {
    return;
  }
  const int64_t plane = index / count;
  const int32_t edge = static_cast<int32_t>(index - plane * count);
  const int64_t item = plane / planes;
  int32_t first, second;
  if (p.set == 0) {
    first = grid.first + edge + edge / (grid.width - 1);
    second = first + 1;
  } else if (p.set == 1) {
    first = grid.first + edge;
    second = first + grid.width;
  } else {
    const CrfLevel& coarse = p.graph.level[p.level + 1];
    first = grid.first + edge;
    second = coarse.first +
             covering(edge / grid.width, grid.height, coarse.height) * coarse.width +
             covering(edge % grid.width, grid.width, coarse.width);
  }
  const int64_t nodes = p.graph.nodes;
  const T* x = static_cast<const T*>(p.x) + item * p.labels * nodes;
  const T* y = static_cast<const T*>(p.y) + item * p.labels * nodes;
  T sum = 0;
  if (p.pairwise == Pairwise::kGeneral) {
    const int64_t pair = plane - item * planes;
    const int64_t l = pair / p.labels * nodes, m = pair % p.labels * nodes;
    sum = y[l + first] * x[m + second] + y[m + second] * x[l + first];
  } else {
    T at_first = 0, at_second = 0;  // sums of x over labels, in the Potts model
    for (int64_t k = 0; p.pairwise == Pairwise::kPotts && k < p.labels; ++k) {
      at_first += x[k * nodes + first];
      at_second += x[k * nodes + second];
    }
    const T sign = p.pairwise == Pairwise::kPotts ? T(-1) : T(1);
    for (int64_t k = 0; k < p.labels; ++k) {
      const int64_t at = k * nodes;
      sum += y[at + first] * (at_second + sign * x[at + second]) +
             y[at + second] * (at_first + sign * x[at + first]);
    }
  }
  static_cast<T*>(p.gradient)[index] = -static_cast<T>(p.factor) * sum;
}

}  // namespace
}  // namespace segkern
