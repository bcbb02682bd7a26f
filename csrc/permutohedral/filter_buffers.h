// Device buffers of one filter, allocated through torch.
#pragma once

#include "lattice_args.h"
#include "lattice_params.h"
#include "rows.h"

namespace segkern {

// The arrays of a lattice that is already built.
inline LatticeArrays lattice_arrays(const LatticeTensors& lattice) {
  const LatticeView view = lattice.view(0);
  LatticeArrays l{};
  l.items = lattice.batch();
  l.points = view.points;
  l.bound = view.bound;
  l.dims = view.dims;
  l.vertex = view.vertex;
  l.weight = view.weight;
  l.corners = view.slot;
  l.offsets = view.offsets;
  l.neighbours = view.neighbours;
  l.count = static_cast<int64_t*>(lattice.count.data_ptr());
  return l;
}

// The arrays of one of their items.
inline LatticeArrays only_item(LatticeArrays l, int64_t item) {
  const int64_t at = l.items == 1 ? 0 : item;
  l.items = 1;
  l.vertex += at * l.item_corners();
  l.weight += at * l.item_corners();
  l.corners += at * l.item_corners();
  l.offsets += at * (l.bound + 1);
  l.neighbours += at * (l.dims + 1) * l.bound * 2;
  l.count += at;
  return l;
}

struct FilterBuffers {
  Tensor sums, other, heads, tails;
  FilterParams params{};

  FilterBuffers(const LatticeTensors& lattice, int64_t batch, int64_t channels) {
    FilterParams& p = params;
    p.lattice = lattice_arrays(lattice);
    p.batch = batch;
    p.stride = row_stride(channels);
    p.values_item = p.lattice.points * p.stride;
    p.lane_bits = row_lane_bits(p.stride);
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
