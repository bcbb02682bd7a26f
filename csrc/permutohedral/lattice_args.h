// Lattices as operator arguments: the list of six tensors that permutohedral_build returns.
#pragma once

#include <string>
#include <vector>

#include "../common/check.h"
#include "../common/layout.h"
#include "lattice.h"

namespace segkern {

using TensorList = std::vector<Tensor>;

constexpr int64_t kLatticeTensors = 6;

struct LatticeTensors {
  Tensor vertex, weight, slot, offsets, neighbours, count;

  int64_t batch() const { return vertex.size(0); }
  int64_t points() const { return vertex.size(1); }
  int dims() const { return static_cast<int>(vertex.size(2)) - 1; }
  int64_t bound() const { return neighbours.size(2); }

  // The lattice of one item, without its count.
  LatticeView view(int64_t item) const {
    const int64_t corners = vertex.size(1) * vertex.size(2);
    LatticeView v{};
    v.points = points();
    v.dims = dims();
    v.bound = bound();
    v.vertex = static_cast<int32_t*>(vertex.data_ptr()) + item * corners;
    v.weight = static_cast<float*>(weight.data_ptr()) + item * corners;
    v.slot = static_cast<int32_t*>(slot.data_ptr()) + item * corners;
    v.offsets = static_cast<int32_t*>(offsets.data_ptr()) + item * (v.bound + 1);
    v.neighbours =
        static_cast<int32_t*>(neighbours.data_ptr()) + item * v.corners() * v.bound * 2;
    return v;
  }

  // The same with its count, which lies on the host.
  LatticeView cpu_view(int64_t item) const {
    LatticeView v = view(item);
    v.count = static_cast<const int64_t*>(count.data_ptr())[item];
    return v;
  }
};

// Checks the form of tensors list[first] and on, made for `points` points of one or `batch` items.
inline LatticeTensors lattice_tensors(const char* op, const TensorList& list, int64_t first,
                                      int64_t batch, int64_t points) {
  const auto at = [&](int64_t i) -> const Tensor& { return list[first + i]; };
  const Tensor& vertex = at(0);
  SEGKERN_CHECK(vertex.dim() == 3 && vertex.size(2) >= 2 && vertex.size(2) <= kMaxLatticeDims + 1,
                op, ": lattice must be made by permutohedral_build, got vertices of shape ",
                shape_string(sizes_of(vertex)));
  const int64_t items = vertex.size(0), corners = vertex.size(2);
  SEGKERN_CHECK((items == batch || items == 1) && vertex.size(1) == points, op,
                ": lattice must hold ", points, " points of 1 or ", batch, " items, got ",
                vertex.size(1), " points of ", items);
  const int64_t bound = vertex.size(1) * corners;
  const std::vector<std::vector<int64_t>> wanted = {
      sizes_of(vertex), sizes_of(vertex),           sizes_of(vertex), {items, bound + 1},
      {items, corners, bound, 2}, {items}};
  for (int64_t i = 0; i < kLatticeTensors; ++i) {
    const ScalarType dtype = i == 1   ? ScalarType::Float
                             : i == 5 ? ScalarType::Long
                                      : ScalarType::Int;
    SEGKERN_CHECK(sizes_of(at(i)) == wanted[i] && at(i).scalar_type() == dtype &&
                      at(i).is_contiguous() && at(i).device() == vertex.device(),
                  op, ": lattice must be made by permutohedral_build, got tensor ", i,
                  " of shape ", shape_string(sizes_of(at(i))));
  }
  return {at(0), at(1), at(2), at(3), at(4), at(5)};
}

// Uninitialised lattice tensors for (N, P, d) features: all shapes follow from that one.
inline LatticeTensors empty_lattice(const char* op, const Tensor& features) {
  SEGKERN_CHECK(features.dim() == 3 && features.size(2) >= 1 &&
                    features.size(2) <= kMaxLatticeDims,
                op, ": features must be (N, P, d) with 1 <= d <= ", kMaxLatticeDims, ", got ",
                shape_string(sizes_of(features)));
  SEGKERN_CHECK(features.scalar_type() == ScalarType::Float, op,
                ": features must be float32, got ",
                torch::headeronly::toString(features.scalar_type()));
  const int64_t items = features.size(0), points = features.size(1);
  const int64_t corners = features.size(2) + 1, bound = points * corners;
  SEGKERN_CHECK(bound < INT32_MAX, op, ": features must have fewer than 2^31 corners an item, got ",
                points, " points of ", corners);
  const auto make = [&](const std::vector<int64_t>& sizes, ScalarType dtype) {
    return empty_in_layout(sizes, dtype, features, false);
  };
  const std::vector<int64_t> corner_sizes = {items, points, corners};
  return {make(corner_sizes, ScalarType::Int),         make(corner_sizes, ScalarType::Float),
          make(corner_sizes, ScalarType::Int),         make({items, bound + 1}, ScalarType::Int),
          make({items, corners, bound, 2}, ScalarType::Int), make({items}, ScalarType::Long)};
}

}  // namespace segkern
