// The CPU loops that pooling's backward, unpooling and unpooling's backward share. All of them
// return false if an index was out of range.
#pragma once

#include "../max_pool/window.h"

namespace segkern {

// Windows that tile the plane, codes that say where in the tile: whole tiles are read or written
// once, without a zero fill.
inline bool can_tile(const PoolParams& p) {
  const PoolWindow& w = p.window;
  return p.format != IndexFormat::kFlat && (p.channels_last ? w.tiled() : w.tiled_2x2());
}
bool expand_tiles(const PoolParams& params);
bool select_tiles(const PoolParams& params);

// Any windows and any format, plane by plane in raster order of the windows.
bool scatter_last(const PoolParams& params);
bool scatter_add(const PoolParams& params);
bool gather(const PoolParams& params, bool winners_only);

}  // namespace segkern
