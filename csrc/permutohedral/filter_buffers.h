// Device buffers of one filter, allocated through torch.
#pragma once

#include <cmath>

#include "lattice_args.h"
#include "lattice_params.h"
#include "rows.h"

namespace segkern {

// The arrays of a lattice that is already built.
inline LatticeParams lattice_params(const LatticeTensors& lattice) {
  const LatticeView view = lattice.view(0);
  LatticeParams p{};
  p.items = lattice.batch();
  p.points = view.points;
  p.bound = view.bound;
  p.dims = view.dims;
  p.vertex = view.vertex;
  p.weight = view.weight;
  p.corners = view.slot;
  p.offsets = view.offsets;
  p.neighbours = view.neighbours;
  p.count = static_cast<int64_t*>(lattice.count.data_ptr());
  return p;
}

struct FilterBuffers {
  Tensor sums, other, heads, tails;
  FilterParams params{};

  FilterBuffers(const LatticeTensors& lattice, int64_t batch, int64_t channels) {
    FilterParams& p = params;
    p.lattice = lattice_params(lattice);
    p.batch = batch;
    p.channels = channels;
    p.stride = row_stride(channels);
    const auto rows = [&](int64_t count) {
      return empty_in_layout({batch, count, p.stride}, ScalarType::Float, lattice.vertex, false);
    };
    sums = rows(p.lattice.bound);
    other = rows(p.lattice.bound);
    heads = rows(p.chunks());
    tails = rows(p.chunks());
    p.sums = static_cast<float*>(sums.data_ptr());
    p.other = static_cast<float*>(other.data_ptr());
    p.heads = static_cast<float*>(heads.data_ptr());
    p.tails = static_cast<float*>(tails.data_ptr());
  }
};

}  // namespace segkern
