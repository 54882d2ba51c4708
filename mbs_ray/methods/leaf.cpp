// What leaf.py and grid.py compute, on CPUs: a tile of rows stays in the first cache of a core from the first column to
// the last. Every operation rounds as torch's does, so that a leaf has the same bits; only sums over columns have another
// order. Compiled where it is used, by cpu_kernel.py, with STORED, the dtype of the weight.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

namespace {

constexpr int64_t TILE = 64;   // rows; of as many columns, 32 KB
constexpr int64_t MOST = 128;  // columns of a leaf
constexpr int64_t MOST_OF_GROUP = 8;  // columns of an n:m group
constexpr int64_t AHEAD = 8;  // columns

typedef float Lanes __attribute__((vector_size(64), may_alias));
constexpr int64_t LANES = 16, PARTS = TILE / LANES;

// Rounds half to even what is below 2²² and leaves the rest beyond any code.
template <class Value>
inline Value rounded(Value value) { return (value + 12582912.0f) - 12582912.0f; }

float as_stored(float value) { return static_cast<float>(static_cast<STORED>(value)); }

template <class Function>
inline void each(Function function) {
  for (int64_t i = 0; i < TILE; ++i) function(i);
}

// Reads some rows of a line; what is beyond them is computed with, but never written.
template <class From, class To>
inline void load(const From* from, int64_t rows, To beyond, To* to) {
  if (rows == TILE) return each([&](int64_t i) { to[i] = static_cast<To>(from[i]); });
  for (int64_t i = 0; i < TILE; ++i) to[i] = i < rows ? static_cast<To>(from[i]) : beyond;
}

template <class From, class To>
inline void store(const From* from, int64_t rows, To* to) {
  if (rows == TILE) return each([&](int64_t i) { to[i] = static_cast<To>(from[i]); });
  for (int64_t i = 0; i < rows; ++i) to[i] = static_cast<To>(from[i]);
}

// The lines of a tile lie too far apart for the processor to foresee which one is next.
template <class From>
inline void prefetch(const From* line) {
  for (int64_t i = 0; i < TILE; i += LANES) __builtin_prefetch(line + i);
}

// Calls body(first row, rows) for all tiles, in as many threads as asked for.
template <class Body>
void over_tiles(int64_t rows, int64_t threads, Body body) {
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < rows; row += TILE) body(row, std::min(TILE, rows - row));
}

}  // namespace

extern "C" {

// As the arguments of leaf.py; null where there is none. Lines of `rows` values, one for each column.
struct Leaf {
  float* work;
  STORED* written;
  uint8_t* codes;
  const uint8_t* pruned;  // 0 or 1, as int32_t wherever it is computed with: selected by vectors
  const float* scale;  // the next column's line begins grid_stride later, 0 where all columns share one
  const float* zero;
  const float* square;  // S, or H
  const float* roots;
  const float* costs;
  double* losses;
  float* best;
  int64_t columns, rows, square_stride, grid_stride;
  int64_t stays, group;  // the pattern n:m; 0
  float top;
};

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

}  // extern "C"

namespace {

struct alignas(64) Tile {
  float columns[MOST][TILE];  // how much those that are final have changed; the others once they are read
  float value[TILE], before[TILE], scale[TILE], zero[TILE], loss[TILE];
  int32_t zeros[MOST_OF_GROUP][TILE];
};

void read(const Leaf& leaf, int64_t column, int64_t row, int64_t rows, Tile& tile) {
  if (column + AHEAD < leaf.columns) {
    prefetch(leaf.work + (column + AHEAD) * leaf.rows + row);
    prefetch(leaf.written + (column + AHEAD) * leaf.rows + row);
  }
  load(leaf.work + column * leaf.rows + row, rows, 0.0f, tile.columns[column]);
}

// Brings a column that has been read up to date with the changes of some others, which have become final.
void update(const Leaf& leaf, int64_t column, int64_t first, int64_t last, Tile& tile) {
  Lanes sums[PARTS];  // in registers
  Lanes* own = reinterpret_cast<Lanes*>(tile.columns[column]);
  for (int64_t part = 0; part < PARTS; ++part) sums[part] = own[part];
  for (int64_t j = first; j < last; ++j) {
    const float reach = leaf.square[j * leaf.square_stride + column];
    const Lanes* change = reinterpret_cast<const Lanes*>(tile.columns[j]);
    for (int64_t part = 0; part < PARTS; ++part) sums[part] -= reach * change[part];
  }
  for (int64_t part = 0; part < PARTS; ++part) own[part] = sums[part];
}

// Chooses what to prune of the next group of columns, from what is best for all of them at once.
void choose(const Leaf& leaf, int64_t first, int64_t row, int64_t rows, Tile& tile) {
  float changes[MOST_OF_GROUP][TILE], scores[MOST_OF_GROUP][TILE];
  int32_t ranks[MOST_OF_GROUP][TILE];
  int32_t kept[MOST_OF_GROUP][TILE] = {};
  for (int64_t k = 0; k < leaf.group; ++k) {
    const int64_t column = first + k;
    float best[TILE];
    read(leaf, column, row, rows, tile);
    update(leaf, column, 0, first, tile);
    each([&](int64_t i) { best[i] = tile.columns[column][i]; });
    for (int64_t j = 0; j < k; ++j) {
      const float reach = leaf.square[(first + j) * leaf.square_stride + column];
      each([&](int64_t i) { best[i] -= reach * changes[j][i]; });
    }
    load(leaf.written + column * leaf.rows + row, rows, 0.0f, tile.before);
    const float root = leaf.roots[column];
    each([&](int64_t i) {
      changes[k][i] = best[i] - tile.before[i];
      scores[k][i] = std::abs(best[i]) * root;
    });
    if (leaf.pruned) {
      load(leaf.pruned + column * leaf.rows + row, rows, 0, kept[k]);
      each([&](int64_t i) { scores[k][i] = kept[k][i] ? -1.0f : scores[k][i]; });
    }
    each([&](int64_t i) { ranks[k][i] = 0; });
  }
  for (int64_t later = 0; later < leaf.group; ++later)
    for (int64_t earlier = 0; earlier < later; ++earlier)
      each([&](int64_t i) {
        const int32_t first_of_both = scores[earlier][i] <= scores[later][i];
        ranks[later][i] += first_of_both;
        ranks[earlier][i] += 1 - first_of_both;
      });
  const int32_t count = static_cast<int32_t>(leaf.group - leaf.stays);
  for (int64_t k = 0; k < leaf.group; ++k)
    each([&](int64_t i) { tile.zeros[k][i] = kept[k][i] | (ranks[k][i] < count); });
}

// Turns tile.value into the final values of a column, and writes them and their codes.
void finish(const Leaf& leaf, int64_t column, int64_t row, int64_t rows, Tile& tile) {
  const int64_t place = column * leaf.rows + row;
  float value[TILE];  // a copy that nothing else can reach, so that the loops below are of vectors
  each([&](int64_t i) { value[i] = tile.value[i]; });
  if (leaf.group) {
    const int32_t* zeros = tile.zeros[column % leaf.group];
    each([&](int64_t i) { value[i] = zeros[i] ? 0.0f : value[i]; });
  } else if (leaf.pruned) {
    int32_t zeros[TILE];
    load(leaf.pruned + place, rows, 0, zeros);
    each([&](int64_t i) { value[i] = zeros[i] ? 0.0f : value[i]; });
  }
  if (leaf.scale) {
    if (column == 0 || leaf.grid_stride) {
      load(leaf.scale + column * leaf.grid_stride + row, rows, 1.0f, tile.scale);
      load(leaf.zero + column * leaf.grid_stride + row, rows, 0.0f, tile.zero);
    }
    float steps[TILE];
    each([&](int64_t i) {
      const float step = rounded(value[i] / tile.scale[i]) + tile.zero[i];
      const float positive = step < 0.0f ? 0.0f : step;
      steps[i] = positive > leaf.top ? leaf.top : positive;
      value[i] = (steps[i] - tile.zero[i]) * tile.scale[i];
    });
    if (leaf.codes) store(steps, rows, leaf.codes + place);
  }
  each([&](int64_t i) { tile.value[i] = as_stored(value[i]); });
  store(tile.value, rows, leaf.written + place);
}

void solve_rows(const Leaf& leaf, int64_t row, int64_t rows) {
  Tile tile;
  each([&](int64_t i) { tile.loss[i] = 0.0f; });
  for (int64_t j = 0; j < leaf.columns; ++j) {
    int64_t begun = 0;
    if (leaf.group) {
      begun = j - j % leaf.group;
      if (begun == j) choose(leaf, j, row, rows, tile);
    } else {
      read(leaf, j, row, rows, tile);
    }
    update(leaf, j, begun, j, tile);
    float* own = tile.columns[j];
    load(leaf.written + j * leaf.rows + row, rows, 0.0f, tile.before);
    each([&](int64_t i) { tile.value[i] = own[i]; });
    finish(leaf, j, row, rows, tile);
    const float cost = leaf.costs[j];
    each([&](int64_t i) {
      const float error = tile.value[i] - own[i];
      tile.loss[i] += error * error * cost;
      own[i] = tile.value[i] - tile.before[i];
    });
    store(own, rows, leaf.work + j * leaf.rows + row);
  }
  for (int64_t i = 0; i < rows; ++i) leaf.losses[row + i] += tile.loss[i];
}

// What is best for each column once those before it are as they should be; changes nothing.
void update_rows(const Leaf& leaf, int64_t row, int64_t rows) {
  Tile tile;
  for (int64_t j = 0; j < leaf.columns; ++j) {
    read(leaf, j, row, rows, tile);
    update(leaf, j, 0, j, tile);
    float* own = tile.columns[j];
    store(own, rows, leaf.best + j * leaf.rows + row);
    load(leaf.written + j * leaf.rows + row, rows, 0.0f, tile.before);
    each([&](int64_t i) { own[i] -= tile.before[i]; });
  }
}

void descend_rows(const Leaf& leaf, int64_t row, int64_t rows) {
  Tile tile;
  for (int64_t j = 0; j < leaf.columns; ++j) {
    read(leaf, j, row, rows, tile);
    update(leaf, j, 0, j, tile);
    float* own = tile.columns[j];
    const float curve = leaf.square[j * leaf.square_stride + j];
    load(leaf.written + j * leaf.rows + row, rows, 0.0f, tile.before);
    each([&](int64_t i) { tile.value[i] = tile.before[i] + own[i] / curve; });
    finish(leaf, j, row, rows, tile);
    each([&](int64_t i) { own[i] = tile.value[i] - tile.before[i]; });
    store(own, rows, leaf.work + j * leaf.rows + row);
  }
}

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

extern "C" {

void solve_leaf(const Leaf* leaf, int64_t threads) {
  over_tiles(leaf->rows, threads, [&](int64_t row, int64_t rows) { solve_rows(*leaf, row, rows); });
}

void update_leaf(const Leaf* leaf, int64_t threads) {
  over_tiles(leaf->rows, threads, [&](int64_t row, int64_t rows) { update_rows(*leaf, row, rows); });
}

void descend_leaf(const Leaf* leaf, int64_t threads) {
  over_tiles(leaf->rows, threads, [&](int64_t row, int64_t rows) { descend_rows(*leaf, row, rows); });
}

void fit_group(const Group* group, int64_t threads) {
  over_tiles(group->rows, threads, [&](int64_t row, int64_t rows) {
    std::vector<Lanes> weights(group->columns * PARTS);
    fit_rows(*group, row, rows, reinterpret_cast<float*>(weights.data()));
  });
}

}  // extern "C"
