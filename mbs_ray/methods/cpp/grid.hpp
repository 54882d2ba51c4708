// Grid.of of grid.py for the weights of one group; only the sums over columns have another order.
#pragma once

#include "tile.hpp"

struct Group {
  const float* weights;  // [columns, rows]
  const float* importance;  // [columns]
  const float* low;  // [rows], the range before any update; null
  const float* high;
  const float* shares;  // of the whole range, to be tried
  float* scale;  // [rows], takes the grid
  float* zero;
  int64_t columns, rows, tried;
  float top, middle, least_scale;
  bool symmetric;
};

namespace {

struct alignas(64) Grids {
  float scale[TILE], zero[TILE], error[TILE];
};

// Grid.covering
void cover(const Group& group, float* low, float* high, Grids& grids) {
  each([&](int64_t i) {
    float least = low[i] > 0.0f ? 0.0f : low[i], most = high[i] < 0.0f ? 0.0f : high[i];
    if (group.symmetric) {
      most = std::max(-least, most);
      least = -most;
    }
    const float scale = std::max(as_stored((most - least) / group.top), group.least_scale);
    const float zero = std::nearbyint(-least / scale);
    grids.scale[i] = scale;
    grids.zero[i] = group.symmetric ? group.middle : zero < 0.0f ? 0.0f : zero > group.top ? group.top : zero;
  });
}

// The squared error of sixteen rows; a sum of few columns at a time, so that it is exact enough in float.
void measure(const Group& group, const float* weights, int64_t part, Grids& grids) {
  const Lanes scale = reinterpret_cast<const Lanes*>(grids.scale)[part];
  const Lanes least = -reinterpret_cast<const Lanes*>(grids.zero)[part], most = group.top + least;
  Lanes total = {};
  for (int64_t first = 0; first < group.columns; first += MOST) {
    Lanes sum = {};
    for (int64_t j = first; j < std::min(first + MOST, group.columns); ++j) {
      const Lanes weight = *reinterpret_cast<const Lanes*>(weights + j * TILE + part * LANES);
      Lanes step = rounded(weight / scale);
      step = step < least ? least : step;
      step = step > most ? most : step;
      Lanes value = step * scale;
      if constexpr (!std::is_same_v<STORED, float>)
        for (int64_t i = 0; i < LANES; ++i) value[i] = as_stored(value[i]);
      const Lanes missed = value - weight;
      sum += missed * missed * group.importance[j];
    }
    total += sum;
  }
  reinterpret_cast<Lanes*>(grids.error)[part] = total;
}

void fit_rows(const Group& group, int64_t row, int64_t rows, float* weights) {
  alignas(64) float low[TILE], high[TILE], least[TILE], most[TILE];
  for (int64_t j = 0; j < group.columns; ++j) {
    float* own = weights + j * TILE;
    if (j + AHEAD < group.columns) prefetch(group.weights + (j + AHEAD) * group.rows + row);
    load(group.weights + j * group.rows + row, rows, 0.0f, own);
    each([&](int64_t i) {
      low[i] = j == 0 || own[i] < low[i] ? own[i] : low[i];
      high[i] = j == 0 || own[i] > high[i] ? own[i] : high[i];
    });
  }
  Grids best, other;
  cover(group, low, high, best);
  const int64_t tried = group.shares ? group.tried : group.low ? 1 : 0;
  for (int64_t part = 0; tried && part < PARTS; ++part) measure(group, weights, part, best);
  for (int64_t index = 0; index < tried; ++index) {
    if (group.shares) {
      const float share = group.shares[index];
      each([&](int64_t i) { least[i] = low[i] * share; most[i] = high[i] * share; });
    } else {
      load(group.low + row, rows, 0.0f, least);
      load(group.high + row, rows, 0.0f, most);
      each([&](int64_t i) { least[i] = std::max(low[i], least[i]); most[i] = std::min(high[i], most[i]); });
    }
    cover(group, least, most, other);
    for (int64_t part = 0; part < PARTS; ++part) measure(group, weights, part, other);
    each([&](int64_t i) {
      const bool better = other.error[i] < best.error[i];
      best.error[i] = better ? other.error[i] : best.error[i];
      best.scale[i] = better ? other.scale[i] : best.scale[i];
      best.zero[i] = better ? other.zero[i] : best.zero[i];
    });
  }
  store(best.scale, rows, group.scale + row);
  store(best.zero, rows, group.zero + row);
}

}  // namespace
